"""The command line: what it accepts, what it says when something is wrong, and with which code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deepsentinel import cli

COMMANDS = (
    "demo", "search", "build", "info", "stats", "train", "evaluate", "embed", "report",
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

    monkeypatch.setattr(cli, "_info", broken)
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
    assert "sealed" in said("info", embedding, "--verify", "quick")


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
    assert cli.main(["info", str(store), "--verify"]) == 1
    assert "1 damaged" in capsys.readouterr().out
