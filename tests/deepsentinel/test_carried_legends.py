"""A legend of one's own goes with the data: train here, score and show in a process without it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray as xr

import cubes
from cubes import registry
from cubes.sampling.index import legend_of
from cubes.types import CubeError, Layout, Legend
from deepsentinel import cli
from deepsentinel.evaluation.evaluate import Options, assess
from deepsentinel.evaluation.tasks import Evaluation
from deepsentinel.pictures import figures

ROWS = """
[legends.crops]
title = "Crops of my fields"
origin = "measured"
nodata = 255
[legends.crops.classes]
10 = ["wheat", "#d8b56b"]
30 = ["maize", "{colour}"]
40 = ["rape", "#ffff00"]
80 = ["grass/fallow", "#00aa00"]
[layers."labels/crops"]
long_name = "crops of my fields"
dims = ["year", "y", "x"]
units = "1"
kind = "class"
work_dtype = "uint8"
work_nodata = 255
convert = "stored"
dtype = "uint8"
nodata = 255
kernel = "nearest"
resolution = 10
valid_range = [0, 254]
legend = "crops"
"""
SAMPLES = ["--window=32", "--dates=4", "--min-valid=0", "--block=320"]
SMALL = [
    "--set=model.width=16", "--set=model.heads=2", "--set=model.stem=4", "--set=model.detail=8",
    "--set=model.neck=8", "--set=model.dims=16", "--set=train.steps=2", "--set=train.warmup=1",
]  # fmt: skip
FRESH = """
import sys
import cubes
from deepsentinel import cli
try:
    cubes.legend("crops")
except cubes.CubeError:
    sys.exit(cli.main(sys.argv[1:]))
sys.exit("this process knows the legend by itself")
"""

Knowing = Callable[[str], None]


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Knowing]:
    """Return who makes the rows known with a colour for maize; an empty one: none of them."""
    before = {kind: dict(registry._rows.table(kind)) for kind in ("layers", "legends")}

    def forget() -> None:
        for kind, rows in before.items():
            registry._rows.table(kind).clear()
            registry._rows.table(kind).update(rows)

    def know(colour: str) -> None:
        forget()
        if colour:
            (tmp_path / "crops.toml").write_text(ROWS.replace("{colour}", colour))
            cubes.add(tmp_path / "crops.toml")

    yield know
    forget()


def store(path: Path, land: ModuleType, seed: int = 1) -> Path:
    """Return the store of a landscape whose labels are crops, a corner of it without any."""
    cube = land.landscape(seed=seed)
    codes = cube["labels/worldcover"].to_numpy().copy()
    codes[codes == 0] = 255
    coords = cube["labels"].to_dataset().coords
    cube["labels"] = xr.Dataset({"crops": (("year", "y", "x"), codes)}, coords=coords)
    assert cubes.write(cube, path, layout=Layout(patch=128)).state == "sealed"
    return path


@pytest.mark.timeout(240)
def test_a_run_on_own_labels_is_scored_and_shown_by_a_process_that_knows_no_such_legend(
    land: ModuleType, known: Knowing, tmp_path: Path
) -> None:
    known("#ff0000")
    path, run = store(tmp_path / "cubes" / "train.zarr", land), tmp_path / "run"
    assert cli.main(["train", str(path), *SAMPLES, *SMALL, "--out", str(run)]) == 0
    for arguments in (
        ["evaluate", str(run), "--task=landcover", "--tile=32", "--out", str(tmp_path / "scores")],
        ["report", str(tmp_path)],
    ):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FRESH, *arguments],
            capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    meta = Evaluation.load(tmp_path / "scores", "landcover").meta
    assert meta["names"] == ["wheat", "maize", "rape", "grass/fallow"]
    assert meta["colours"][1] == "#ff0000"
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_what_a_store_carries_wins_over_a_legend_of_the_same_name(
    land: ModuleType, known: Knowing, tmp_path: Path
) -> None:
    known("#ff0000")
    path = store(tmp_path / "a.zarr", land)
    for colour in ("", "#0000ff"):
        known(colour)
        samples, cube = land.samples(path), cubes.open(path, chunks=None)
        assert legend_of(samples.stores, "labels/crops").classes[30] == ("maize", "#ff0000")
        codes, legend = figures.labels(cube)
        assert legend.classes[30] == ("maize", "#ff0000")
        shown = figures.class_colours(codes, legend)
        assert (shown[codes == 30] == (255, 0, 0)).all()
        assert len(cubes.where(samples, classes={"maize": 0.01})) > 0
        assert cubes.legend(cube["labels/crops"]) == legend
    # and written again it keeps what its codes were made by, not what is known meanwhile
    again = tmp_path / "again.zarr"
    cubes.write(cubes.open(path), again, layout=Layout(patch=128))
    assert cubes.load_plan(again).legends[0].classes[30] == ("maize", "#ff0000")
    assert {v.name for v in cubes.load_plan(again).legends} == {"crops", "scl"}


def test_two_legends_of_one_name_are_never_mixed(
    land: ModuleType, known: Knowing, tmp_path: Path
) -> None:
    known("#ff0000")
    one = store(tmp_path / "a.zarr", land)
    known("#0000ff")
    two = store(tmp_path / "b.zarr", land, seed=2)
    match = r"b\.zarr has labels/crops by another legend 'crops' than .*a\.zarr: code 30 is 'maize'"
    with pytest.raises(CubeError, match=match):
        cubes.plan([one, two], cubes.Window(size=32, dates=9), min_valid=0.0)
    options = Options(controls=False, tile=32, train_pixels=500)
    model, parts = land.model(one), [land.samples(p) for p in (one, two)]
    with pytest.raises(CubeError, match="labels/crops of the test samples came with another"):
        assess(model, parts[1], task="landcover", train_samples=parts[0], options=options)


def test_a_legend_in_attributes_is_checked(
    land: ModuleType, known: Knowing, tmp_path: Path
) -> None:
    known("#ff0000")
    cube = cubes.open(store(tmp_path / "a.zarr", land), chunks=None)
    labels, mine = cube["labels/crops"], cubes.legend("crops")
    for text, match in [
        ("{", "'{' holds no legend"),
        (replace(mine, name="other").to_json(), "comes with the legend 'other', .* names 'crops'"),
        (replace(mine, nodata=None, classes={255: ("a", "#000000")}).to_json(), "nodata 255"),
    ]:
        cube["labels"] = labels.assign_attrs({registry.CARRIED: text}).to_dataset(name="crops")
        with pytest.raises(CubeError, match=match):
            cubes.write(cube, tmp_path / "b.zarr", layout=Layout(patch=128))


def test_json_gives_the_same_legend_back(known: Knowing) -> None:
    for name in registry.legends():
        legend = cubes.legend(name)
        again = Legend.from_json(legend.to_json())
        assert again == legend
        assert Legend.from_json(legend.to_json()) is again
        assert np.all(np.diff(list(again.classes)) > 0)
