"""`deepsentinel bench`: what it measures, what it concludes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cubes
from cubes.store import shards
from cubes.types import CubeError, Layout
from deepsentinel import cli
from deepsentinel.measuring import bench, device
from deepsentinel.measuring.bench import Rate, Steps
from deepsentinel.measuring.codec import chunks, codec
from deepsentinel.measuring.steps import RESIDENT, SETTLE, STREAM, Turns, timed
from deepsentinel.recipe import load_recipe, make_recipe
from deepsentinel.training.sources import CubeSource

pytestmark = pytest.mark.timeout(300)
FLAGS = ["--window=32", "--dates=3", "--min-valid=0.5"]
SMALL = ["--set", "data.batch_size=2", "--seconds=0.01", "--workers=0", "--threads", "1"]


@pytest.fixture(scope="module")
def store(fields: dict[str, Path]) -> Path:
    return fields["train"]


@pytest.fixture(scope="module")
def samples(store: Path) -> Any:
    return cubes.plan([store], cubes.Window(size=32, dates=3), min_valid=0.5)


# ----------------------------------------------------------------------------------------- codec


def test_the_limit_decodes_what_a_loader_reads(
    samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [np.arange(4), np.arange(2, 6)]
    these = chunks(samples, rows)
    seen: list[int] = []
    plain = shards.decode

    def counting(data: memoryview, out: np.ndarray, *, checked: bool = True) -> None:
        seen.append(out.nbytes)
        plain(data, out, checked=checked)

    monkeypatch.setattr(shards, "decode", counting)
    for some in rows:
        samples.read(some)
    assert sorted(n for _, n in these.jobs) == sorted(seen)
    assert these.samples == 8
    assert these.decoded == sum(seen)
    assert 0 < these.encoded < these.decoded


def test_the_limit_takes_any_number_of_threads(samples: Any) -> None:
    these = chunks(samples, [np.arange(2)])
    for threads in (1, 3):
        codec(these, threads)()


def test_another_codec_has_no_limit(tmp_path: Path, store: Path) -> None:
    cubes.write(cubes.open(store), tmp_path / "z.zarr", layout=Layout(codec="zstd"))
    found = cubes.plan([tmp_path / "z.zarr"], cubes.Window(size=32, dates=3), min_valid=0.5)
    with pytest.raises(CubeError, match="no codec's limit"):
        chunks(found, [np.arange(2)])


# ----------------------------------------------------------------------------------------- steps


def test_turns_time_what_they_say(samples: Any) -> None:
    recipe = load_recipe("default", ["data.batch_size=2", "train.accelerator=cpu"])
    norm = bench._source(samples, recipe, None).norm
    source = CubeSource(samples, recipe, norm, learn=True)
    fed: list[tuple[int, bool]] = []
    plain = source.inputs

    def inputs(batch: Any, generator: torch.Generator) -> Any:
        fed.append((int(batch.stored["s2/reflectance"].data_ptr()), bool(batch.place.any())))
        return plain(batch, generator)

    source.inputs = inputs  # type: ignore[method-assign]
    measured = timed(source, recipe, Turns(rounds=2, steps=3))
    assert [t.mode for t in measured.done] == [RESIDENT, STREAM, STREAM, RESIDENT]
    assert all(len(t.seconds) == len(t.waited) == 3 for t in measured.done)
    assert all(s >= w >= 0 for t in measured.done for s, w in zip(t.seconds, t.waited, strict=True))
    # one step to begin with, then turns of SETTLE + 3; the resident ones see one and the same batch
    assert len(fed) == 1 + 4 * (SETTLE + 3)
    turn = SETTLE + 3
    first, last = fed[: 1 + turn], fed[1 + 3 * turn :]
    assert len({pointer for pointer, _ in first + last}) == 1
    assert first[0][0] not in {pointer for pointer, _ in fed[1 + turn : 1 + 3 * turn]}


def test_data_that_is_slow_is_seen_as_waiting(samples: Any) -> None:
    class Slow(CubeSource):
        def __iter__(self) -> Any:
            for fetched in super().__iter__():
                time.sleep(0.5)
                yield fetched

    recipe = load_recipe("default", ["data.batch_size=2", "train.accelerator=cpu"])
    norm = bench._source(samples, recipe, None).norm
    measured = timed(Slow(samples, recipe, norm, learn=True), recipe, Turns(rounds=1, steps=2))
    by = {t.mode: t for t in measured.done}
    assert min(by[STREAM].waited) >= 0.5
    assert max(by[RESIDENT].waited) < 0.1


def test_peaks_are_found_by_the_longest_name() -> None:
    assert all(wide > single for wide, single in device.PEAKS.values())
    names = list(device.PEAKS)  # the first that fits counts
    for i, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:i]), name


def test_a_ceiling_is_above_any_step(samples: Any) -> None:
    top = device.ceiling(torch.device("cpu"), "32-true")
    assert top.source == "matmul"
    assert 1e9 < top.flops < 1e14
    recipe = load_recipe("default", ["data.batch_size=2", "train.accelerator=cpu"])
    one = device.step_flops(bench._source(samples, recipe, None), recipe, 1)
    twice = load_recipe("default", ["data.batch_size=4", "train.accelerator=cpu"])
    two = device.step_flops(bench._source(samples, twice, None), twice, 1)
    assert one > 1e8
    assert 1.3 < two / one < 3


# --------------------------------------------------------------------------------------- verdict


def judged(
    *, loader: float, step: float, whole: float, cpu: bool = False, cold: float | None = None
) -> tuple[str, str]:
    rates = [
        Rate(what="codec alone, 2 threads", samples=1.2 * loader, mb=1),
        Rate(what="loader, 1 thread", samples=loader, mb=1),
        Rate(what="loader, 2 threads", samples=1.05 * loader, mb=1),
    ]
    rest: dict[str, Any] = {"mb": 1.0, "waited": 0.0, "n": 9}
    steps = [
        Steps(what=RESIDENT, samples=step, p50=1 / step, p95=1.1 / step, **rest),
        Steps(what=STREAM, samples=whole, p50=1 / whole, p95=1.1 / whole, **rest),
    ]
    disk = None if cold is None else Rate(what="loader, 2 threads, from disk", samples=cold, mb=1)
    recipe = make_recipe({"data": {"threads": 1}})
    return bench._verdict(rates, disk, steps, (whole / step, cpu, recipe))


def test_each_part_can_be_what_holds_back() -> None:
    assert judged(loader=100, step=10, whole=9.9)[0] == "device"
    holds, said = judged(loader=10, step=100, whole=10)
    assert holds == "codec"
    assert "data.crops" in said
    assert judged(loader=100, step=50, whole=30, cpu=True)[0] == "cores"
    assert judged(loader=100, step=50, whole=30)[0] == "loader"
    holds, said = judged(loader=100, step=50, whole=49, cold=5)
    assert holds == "disk"
    assert "faster disk" in said
    assert judged(loader=100, step=2, whole=2, cold=5)[0] == "device"


def test_a_busy_machine_is_said() -> None:
    assert "unsteady" not in judged(loader=100, step=10, whole=9.9)[1]
    assert "unsteady" in judged(loader=100, step=10, whole=20)[1]


def test_more_threads_are_advised_where_they_help() -> None:
    rates = [
        Rate(what="codec alone, 1 thread", samples=12, mb=1),
        Rate(what="loader, 1 thread", samples=10, mb=1),
        Rate(what="loader, 8 threads", samples=70, mb=1),
    ]
    rest: dict[str, Any] = {"mb": 1.0, "waited": 0.9, "n": 9}
    steps = [
        Steps(what=RESIDENT, samples=100, p50=0.01, p95=0.011, **rest),
        Steps(what=STREAM, samples=10, p50=0.1, p95=0.11, **rest),
    ]
    recipe = make_recipe({"data": {"threads": 1}})
    holds, said = bench._verdict(rates, None, steps, (0.1, False, recipe))
    assert holds == "loader"
    assert "data.threads" in said
    assert "8 threads" in said


# ----------------------------------------------------------------------------------- the command


def test_bench_tells_every_part(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", str(store), *FLAGS, *SMALL, "--device=cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = [r["what"] for r in found["rates"]]
    assert names[:2] == ["codec alone, 1 thread", "loader, 1 thread"]
    assert all(r["samples"] > 0 and r["mb"] > 0 for r in found["rates"])
    assert [s["what"] for s in found["steps"]] == [RESIDENT, STREAM]
    assert all(s["p95"] >= s["p50"] > 0 for s in found["steps"])
    assert 0 < found["device"]["mfu"] < 1
    assert found["holds"] in ("device", "disk", "codec", "loader", "cores")
    assert found["verdict"].endswith(".")
    assert list(store.parent.glob("bench-*")) == []


def test_text_has_every_figure() -> None:
    from deepsentinel.cli.measuring import text

    found = bench.Found(
        sample={"samples": 9, "mb": 4.0, "batch": 2, "crops": 3, "layers": ["s2/clear"]},
        device={"name": "CPU", "model": "nano", "precision": "32-true", "first_step": 1.0,
                "flops": 2e9, "ceiling": 5e10, "ceiling_from": "matmul", "mfu": 0.25,
                "ratio": 0.9},
        rates=(Rate(what="loader, 1 thread", samples=123.0, mb=456.0),),
        steps=(
            Steps(what=RESIDENT, n=3, p50=0.5, p95=0.6, samples=4.0, mb=0, waited=0),
            Steps(what=STREAM, n=3, p50=0.7, p95=0.8, samples=3.0, mb=12, waited=0.125),
        ),
        holds="cores",
        verdict="Said.",
    )  # fmt: skip
    said = text(found)
    for part in ("123.0", "456", "0.5", "0.6", "0.7", "0.8", "12.5%", "25%", "0.90", "3 crops"):
        assert part in said, part
    assert said.endswith("Said.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], "no store at"),
        (["unsealed"], "not sealed"),
        (["--device=cuda"], "there is cpu"),
        (["--device=tpu"], "'cuda'"),
        (["--model=nowhere"], "nowhere"),
        (["--threads", "0"], "threads from 1"),
        (["--set", "data.batch_size=10000"], "do not fill one batch"),
        (["--set", "data.crop=512"], "larger window"),
    ],
)
def test_bad_input_is_one_line(
    change: list[str], said: str, store: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    where = tmp_path / "gone.zarr" if not change else store
    if change == ["unsealed"]:
        where, change = tmp_path / "copy.zarr", []
        shutil.copytree(store, where)
        (where / "__cubes__" / "sealed.json").unlink()
    assert cli.main(["bench", str(where), *FLAGS, *SMALL, *change]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.strip().splitlines()[-1]
    assert last.startswith("deepsentinel bench: ")
    assert said in last


def test_a_model_of_other_layers_is_refused(
    samples: Any, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from deepsentinel.model import Fusion, FusionConfig

    recipe = load_recipe("default", ["data.batch_size=2", "model.layers=['s1/backscatter']"])
    source = bench._source(samples, recipe, None)
    config = FusionConfig.sized(
        "nano", source.groups, normaliser=source.normaliser,
        card={"recipe": json.loads(recipe.to_json())},
    )  # fmt: skip
    Fusion(config).save_pretrained(tmp_path / "model")
    optical = tmp_path / "optical.zarr"
    tree = cubes.open(store)
    cubes.write(tree.filter(lambda node: node.name != "s1"), optical)
    arguments = ["bench", str(optical), *FLAGS, *SMALL, "--model", str(tmp_path / "model")]
    assert cli.main(arguments) == 2
    assert "none of the dated layers that this model takes" in capsys.readouterr().err
