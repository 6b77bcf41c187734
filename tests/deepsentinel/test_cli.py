"""The command line: what it accepts, what it says when something is wrong, and with which code."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepsentinel import cli

Stores = dict[str, Path]
COMMANDS = (
    "demo", "search", "build", "publish", "info", "repair", "resume", "stats", "train", "evaluate",
    "embed", "bench", "report",
)  # fmt: skip


def test_commands_are_those_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in said] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert command in capsys.readouterr().out


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom deepsentinel import cli\n"
        "try:\n    cli.main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "bad = [m for m in ('torch', 'numpy', 'xarray', 'rasterio') if m in sys.modules]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "--area", "nowhere", "--time", "2020"], "unknown aoi 'nowhere'"),
        (["search", "--area=1,2,3,4", "--time", "2021/2020"], "reversed"),
        (
            ["search", "--area=1,2,3,4", "--time", "2020", "--layers", "s1/backscater"],
            "s1/backscatter",
        ),
        (
            ["search", "--area=1,2,3,4", "--time", "2020", "--catalog", "planetary"],
            "planetary-computer",
        ),
        (["info", "no-such-store.zarr"], "no-such-store.zarr"),
        (["build", "x.zarr", "--area=3,2,1,4", "--time", "2020"], "antimeridian"),
        (["build", "x.zarr", "--area=1,2,3,4"], "--time missing"),
        (["build"], "--area, --time, STORE missing"),
        (["build", "--like", "sen12t", "uganda"], "did you mean 'sen12ts'"),
        (
            ["build", "--like", "sen12ts", "uganda"],
            "insar/coherence: the catalogue has no such layer",
        ),
        (["build", "--like", "sen12ts"], "covers an area: name one"),
    ],
)
def test_a_users_mistake_is_one_line_and_code_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith(f"deepsentinel {arguments[0]}: ")
    assert "Traceback" not in captured.err


def test_our_own_mistakes_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(cli.stores, "_info", broken)
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["info", "x.zarr"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    run = subprocess.run(
        f"{sys.executable} -m deepsentinel.cli search --help | head -n 1",
        check=False, shell=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.stderr == ""
    assert "usage" in run.stdout


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the arguments that ask for the whole of a published `tiny` world."""
    from cubes import worlds

    out = tmp_path_factory.mktemp("cli") / "world"
    made = worlds.publish(worlds.simulate(worlds.load_params("tiny"), 3), out)
    return [
        f"--area={made.aoi}",
        "--time=2021-05/2021-06",
        "--catalog=simulated",
        f"--url={made.catalog}",
        "--layers=s1/backscatter,s2/reflectance,s2/clear,labels/worldcover",
        "--bands=B04,B08",
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_verbs_in_order(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run, embedding = (str(tmp_path / name) for name in ("a.zarr", "run", "e.zarr"))
    samples = ["--window=64", "--dates=4", "--block=640"]

    def said(*arguments: str) -> str:
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out

    assert "s1.time: " in said("search", *request_of)
    assert "sealed; 3 written" in said("build", store, *request_of)
    assert "0 px read" in said("build", store, *request_of)
    assert "sealed" in said("info", store, "--verify")
    table = said("stats", store, *samples, "--out", str(tmp_path / "stats.json"))
    assert "s1/backscatter/vv" in table
    assert (tmp_path / "stats.json").stat().st_size > 1000
    model = said("train", store, *samples, "--set", "train.steps=2", "--out", run).strip()
    assert Path(model, "model.safetensors").is_file()
    said("embed", model, store, embedding, "--dims", "16")
    assert "sealed" in said("info", embedding, "--quick")


@pytest.mark.timeout(200)
def test_a_predecessors_recipe(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [a.removeprefix("--area=") for a in request_of if a.startswith("--area=")]
    source = [a for a in request_of if a.startswith(("--catalog", "--url"))]
    asked = ["build", "--like", "deepsentinel-1k", *where, *source, "--limit", "2",
             "--time=2021-05-01/2021-06-17", "--out", str(tmp_path / "ds")]  # fmt: skip
    assert cli.main(asked) == 0
    assert "2 cubes in" in capsys.readouterr().out
    assert len(list((tmp_path / "ds" / "cubes").glob("*.zarr"))) == 2
    assert (tmp_path / "ds" / "patches.csv").is_file()


def test_a_recipe_is_foretold(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    source = [a for a in request_of if a.startswith(("--catalog", "--url"))]
    folders = []
    for east in ("6.12", "6.13"):
        asked = ["build", "--like", "sen12ts", f"5.9,47.2,{east},47.25", *source, "--dry-run"]
        assert cli.main(asked) == 0
        told = capsys.readouterr().err
        assert re.search(r"sen12ts for .*: \d+ cells of 20.48 km, 2020-01-01 to 2020-12-31", told)
        assert re.search(r"about [\d.e+]+ GiB before compression", told)
        folders.append(told.rpartition("cubes go into ")[2].strip())
    assert folders == ["sen12ts-5.9_47.2_6.12_47.25/cubes", "sen12ts-5.9_47.2_6.13_47.25/cubes"]
    asked = ["build", "--like", "deepsentinel-1k", "mine", "--area=5.9,47.2,6.1,47.5", "--limit=2"]
    assert cli.main([*asked, *source, "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert "2 points of 2.56 km, 2019-08-01 to 2019-09-17, 1 pair of dates" in told
    assert told.strip().endswith("cubes go into mine/cubes")
    assert not list(tmp_path.iterdir()), "nothing is written"
    assert cli.main([*asked, *source, "--out", "b"]) == 2
    assert "where to: mine or --out b?" in capsys.readouterr().err
    assert cli.main(["build", "--like", "sen12ts", "uganda", "--catalog", "simulated"]) == 2
    assert "has no url of its own: say where it lies, --url FOLDER/" in capsys.readouterr().err


def test_damage_is_exit_code_1(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "a.zarr"
    short = [a for a in request_of if not a.startswith("--layers")]
    assert cli.main(["build", str(store), *short, "--layers=labels/worldcover"]) == 0
    shard = max((p for p in store.rglob("c/**/*") if p.is_file()), key=lambda p: p.stat().st_size)
    body = bytearray(shard.read_bytes())
    body[len(body) // 2] ^= 1
    shard.write_bytes(body)
    assert cli.main(["info", "--verify", str(store)]) == 1
    said = capsys.readouterr().out
    assert f"1 objects damaged or lost: {shard.relative_to(store)}" in said
    assert f"deepsentinel repair {store}" in said
    where = [a for a in request_of if a.startswith(("--catalog", "--url"))]
    assert cli.main(["repair", str(store), *where]) == 0
    assert cli.main(["resume", str(store), *where]) == 0
    capsys.readouterr()
    assert cli.main(["info", "--verify", str(store)]) == 0
    assert "objects checked by hash, all as recorded" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["repair", "resume"])
def test_a_url_alone_is_that_of_the_plans_catalogue(
    verb: str,
    request_of: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cubes import grants

    store = tmp_path / "a.zarr"
    short = [a for a in request_of if not a.startswith("--layers")]
    assert cli.main(["build", str(store), *short, "--layers=labels/worldcover"]) == 0
    next(p for p in store.glob("labels/worldcover/c/**/*") if p.is_file()).unlink()
    monkeypatch.setattr(grants, "_known", {})  # as in another process
    assert cli.main([verb, str(store)]) == 2
    assert "outside of the folders that may be read" in capsys.readouterr().err
    url = next(a for a in request_of if a.startswith("--url"))
    assert cli.main([verb, str(store), url]) == 0
    assert "sealed" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["repair", "resume"])
def test_a_url_is_never_dropped(
    verb: str, fields: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    # a cube of a person's own data names no catalogue
    assert cli.main([verb, str(fields["train"]), "--url=x"]) == 2
    assert "--url x: the plan of" in capsys.readouterr().err


def test_sizes_are_said_before_anything_is_read(
    request_of: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [a for a in request_of if not a.startswith("--layers")]
    command = ["build", str(tmp_path / "a.zarr"), *short, "--layers=labels/worldcover"]
    assert cli.main(command) == 0
    said = capsys.readouterr().err.splitlines()[0]
    assert "px of 10 m in EPSG:326" in said
    assert said.endswith("GiB uncompressed")
    assert cli.main(["search", *short, "--layers=labels/worldcover", "--fit"]) == 0
    assert "px of 10 m" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("python", "flags"),
    [
        ("ask for it with max_gib=", "ask for it with --max-gib"),
        ("or write it anew with force=True.", "or write it anew with --force."),
        ('pass on_missing="mask" to', "pass --on-missing mask to"),
        ("(without=)", "(--without)"),
        ("coarser Grid(resolution=), or", "coarser --resolution, or"),
        ("Window(size=64) or less", "Window(size=64) or less"),
    ],
)
def test_messages_speak_of_flags(python: str, flags: str) -> None:
    assert cli.spoken(python) == flags


def test_what_comes_with_the_learning_side_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("deepsentinel.cli.learning.load_model", absent)
    assert cli.main(["embed", "a", "b", "c"]) == 2
    assert "pip install '.[learn]'" in capsys.readouterr().err


# -- learning, on a landscape of 128 x 192 pixels ------------------------------------------------

SAMPLES = ["--window=32", "--dates=4", "--min-valid=0", "--block=320"]
SMALL = [
    "--set=model.width=16", "--set=model.heads=2", "--set=model.stem=4", "--set=model.detail=8",
    "--set=model.neck=8", "--set=model.dims=16", "--set=train.steps=2", "--set=train.warmup=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, fields: Stores) -> Path:
    """Return the run folder of a model of two steps, split by blocks."""
    run = tmp_path_factory.mktemp("run") / "run"
    code = cli.main(["train", str(fields["train"]), *SAMPLES, *SMALL, "--out", str(run)])
    assert code == 0
    return run


def test_fractions_that_are_no_numbers_are_one_line(
    fields: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["stats", str(fields["train"]), *SAMPLES, "--fractions", "abc"]) == 2
    said = capsys.readouterr().err
    assert said == (
        "deepsentinel stats: --fractions abc: two or three numbers with sum 1, such as "
        "0.7,0.15,0.15\n"
    )


def test_stats_of_too_few_blocks_name_the_way_out(
    fields: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["stats", str(fields["train"]), "--window=64", "--dates=4", "--min-valid=0"]
    assert cli.main([*asked, "--block=10240"]) == 2
    said = capsys.readouterr().err
    assert "blocks of 10240 m hold all" in said
    assert said.endswith("Of all samples, where none of them will be tested on: --all\n")
    assert cli.main([*asked, "--block=10240", "--all"]) == 0
    assert "s2/reflectance" in capsys.readouterr().out


def test_evaluate_takes_the_split_of_the_run_and_report_shows_it(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(trained)
    for task in ("landcover", "ndvi"):
        assert cli.main(["evaluate", out, "--task", task, "--tile=32", "--out", out]) == 0
        captured = capsys.readouterr()
        assert "random encoder" in captured.out
        assert re.search(r"evaluate +8/17 samples, learning", captured.err)  # as build tells
    assert cli.main(["report", out]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == trained / "report.html"
    text = page.read_text()
    for head in ("Land cover from the frozen", "NDVI from Sentinel-1 alone", "Training"):
        assert f"<h2>{head}" in text


def test_what_was_trained_on_is_never_scored(
    trained: Path, fields: Stores, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["evaluate", str(trained / "model"), "--task=landcover", "--tile=32"]
    assert cli.main([*asked, "--split-seed", "7"]) == 2
    said = capsys.readouterr().err
    assert "overlap samples that this model was trained on" in said
    assert cli.main([*asked, "--test", str(fields["train"])]) == 2
    assert "overlap samples" in capsys.readouterr().err
    # another draw of dates is another question to the same ground, and no other ground
    assert cli.main([*asked, "--seed", "7"]) == 0
    capsys.readouterr()
    # a model that lost its run folder: the flags must give what its card says it was trained on
    model = tmp_path / "model"
    shutil.copytree(trained / "model", model)
    asked = ["evaluate", str(model), str(fields["train"]), "--task=landcover", "--tile=32"]
    assert cli.main([*asked, *SAMPLES, "--split-seed", "7"]) == 2
    assert "cannot be made again" in capsys.readouterr().err
    assert cli.main([*asked, *SAMPLES]) == 0
    assert cli.main([*asked, *SAMPLES, "--split-seed", "7", "--unchecked"]) == 0
    capsys.readouterr()
    for text in ("{", "[]", "{}"):
        (tmp_path / "flags.json").write_text(text)
        assert cli.main([*asked, *SAMPLES]) == 2
        assert "flags.json cannot be read" in capsys.readouterr().err


def test_spans_held_out_must_not_have_been_trained_on(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", str(trained), "--task=ndvi", "--tile=32"]
    assert cli.main([*asked, "--held=2022-04-10/2022-04-20"]) == 2
    assert "1 Sentinel-2 dates in --held" in capsys.readouterr().err
    assert cli.main([*asked, "--held=2022-04-20/2022-04-10"]) == 2
    assert "the first before the second" in capsys.readouterr().err
    assert cli.main([*asked, "--gap=30", "--label=labels/worldcover", "--dims=8"]) == 0
    assert "linear interpolation" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_one_line(
    trained: Path, fields: Stores, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for device in ("cpuu", "cuda:97"):
        asked = ["embed", str(trained), str(fields["test"]), str(tmp_path / "e.zarr")]
        assert cli.main([*asked, "--dims=16", "--device", device]) == 2
        assert f"--device {device}: " in capsys.readouterr().err
    assert cli.main([*asked, "--dims=16", "--overlap=16", "--device=cpu"]) == 0
    assert "1/1 block" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--overlap=24", "--dtype=float32"]])
def test_a_damaged_embedding_is_mended_by_what_info_advises(
    flags: list[str],
    trained: Path,
    fields: Stores,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "my embedding.zarr"
    asked = ["embed", str(trained), str(fields["test"]), str(out), "--dims=16", *flags]
    assert cli.main(asked) == 0
    assert cli.main(["info", "--verify", str(out)]) == 0
    for file in ("embeddings/c/0/0/0/0", "__embedding__/sealed.json"):
        if file.endswith(".json"):
            (out / file).unlink()  # as one that was interrupted
        else:
            body = bytearray((out / file).read_bytes())
            body[len(body) // 2] ^= 1
            (out / file).write_bytes(body)
        capsys.readouterr()
        assert cli.main(["info", "--verify", str(out)]) == 1
        said = capsys.readouterr().out.splitlines()[-1]
        advice = shlex.split(said[said.index("deepsentinel embed") :].partition(" (")[0])
        put = {"MODEL": str(trained), "STORE": str(fields["test"])}
        assert cli.main([put.get(word, word) for word in advice[1:]]) == 0
        assert cli.main(["info", "--verify", str(out)]) == 0


def test_stores_are_published_as_a_corpus(
    fields: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("obstore")
    import cubes

    url = str(tmp_path / "published")
    assert cli.main(["publish", *map(str, fields.values()), url, "--name", "two"]) == 0
    assert "sealed" in capsys.readouterr().out
    there = cubes.open_corpus(url)
    assert sorted(there.table.index) == ["test", "train"]
    assert cubes.verify_corpus(there).state == "sealed"
    for flags in ([], ["--verify"], ["--quick"]):
        assert cli.main(["info", url, *flags]) == 0
        said = capsys.readouterr().out
        assert "corpus 'two': 2 cubes, " in said
        assert f"cubes.open_corpus({url!r})" in said
        assert "labels/worldcover" in said
        assert ("all as recorded" in said) is bool(flags)
    shard = next(p for p in (tmp_path / "published" / "cubes").rglob("c/0/0/0/0") if p.is_file())
    shard.write_bytes(b"not what was sealed")
    assert cli.main(["info", url, "--verify"]) == 1
    assert f"Mend it: deepsentinel publish STORES {url} --name two" in capsys.readouterr().out
    assert cli.main(["publish", str(tmp_path / "none.zarr"), url, "--name", "two"]) == 2
