"""Which windows are samples: crops in cells, and what makes an error of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import Transformer

from cubes import CubeError, Window, plan, split, where
from cubes.sampling import choosing, draws
from cubes.sampling import index as indexes
from cubes.sampling import stored as stores
from cubes.sampling.splits import leaks

_spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("streams.py"))
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(60)

PIXELS = ("s1/backscatter", "s1/incidence", "s2/reflectance", "s2/scl", "s2/clear",
          "terrain/elevation")  # fmt: skip


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("windows") / "flat.zarr"
    return path, streams.write_store(path, bands=("B02", "B08"))


# ---------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("epoch", [None, 0, 5])
@pytest.mark.parametrize(
    "window",
    [
        Window(size=48, within=128, crops=4, dates=3),  # cells are patches
        Window(size=48, within=100, stride=52, crops=3, dates=3),  # across patches, overlapping
        Window(size=200, within=256, dates=3),  # larger than a patch, one a cell
    ],
    ids=["patches", "across", "larger"],
)
def test_crops_hold_what_was_stored(cube: Any, window: Window, epoch: int | None) -> None:
    path, stored = cube
    samples = plan(path, window, seed=3)
    rows = np.random.default_rng(0).permutation(len(samples))[:9]
    read = samples.read(rows, threads=2, epoch=epoch)
    size, table = window.size, samples.table()
    for i, row in enumerate(rows.tolist()):
        _, y, x, number = read["place"][i].tolist()
        assert number == row
        assert 0 <= y - table.y[row] <= window.cell - size, "a crop never leaves its cell"
        assert 0 <= x - table.x[row] <= window.cell - size
        for name in PIXELS:
            want = stored[name][..., y : y + size, x : x + size]
            clock = samples.stores[0].entries[name].clock
            if clock is not None:
                want = want[samples.dates(row, clock, epoch=epoch)]
            np.testing.assert_array_equal(read[name][i], want, err_msg=name)
        to = Transformer.from_crs(samples.stores[0].crs, "EPSG:4326", always_xy=True)
        lonlat = to.transform(501760 + 10 * (x + size / 2), 5603840 - 10 * (y + size / 2))
        np.testing.assert_allclose(read["lonlat"][i], lonlat, rtol=0, atol=1e-9)


def test_crops_are_a_pure_function(cube: Any) -> None:
    window = Window(size=32, within=128, crops=4, dates=3)
    samples = plan(cube[0], window, seed=5)
    assert len(samples) == 4 * 4
    rows = np.arange(len(samples))
    first = samples.places(rows, epoch=0)
    np.testing.assert_array_equal(plan(cube[0], window, seed=5).places(rows, epoch=0), first)
    np.testing.assert_array_equal(samples.take([9, 3]).places([0, 1], epoch=0), first[[9, 3]])
    assert (samples.places(rows, epoch=1) != first).any()
    assert (plan(cube[0], window, seed=6).places(rows, epoch=0) != first).any()
    for cell in first.reshape(4, 4, 2):
        assert len(np.unique(cell, axis=0)) == 4, "the crops of a cell are drawn apart"
    drawn = np.concatenate([samples.places(rows, epoch=e) for e in range(200)]) % 128
    room = 128 - 32
    assert drawn.min() == 0
    assert drawn.max() == room
    counts = np.stack([np.bincount(d * 8 // (room + 1), minlength=8) for d in drawn.T])
    assert counts.min() > 320, "anywhere: 400 in each eighth"
    assert counts.max() < 480
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05


def test_crops_of_a_cell_share_their_dates(cube: Any) -> None:
    samples = plan(cube[0], Window(size=32, within=128, crops=4, dates=3), seed=5)
    for epoch in (None, 0, 1):
        dates = [tuple(samples.dates(r, "s1", epoch=epoch)) for r in range(16)]
        assert all(len(set(dates[i : i + 4])) == 1 for i in range(0, 16, 4))
        assert epoch is None or len(set(dates)) > 1
    # the number of crops changes which pixels, not which dates
    one = plan(cube[0], Window(size=32, within=128, dates=3), seed=5)
    assert [tuple(one.dates(c, "s1")) for c in range(4)] == [
        tuple(samples.dates(4 * c, "s1")) for c in range(4)
    ]


def test_crops_that_are_not_drawn_spread_evenly(cube: Any) -> None:
    samples = plan(cube[0], Window(size=32, within=128, crops=4, dates=3))
    corners = samples.places(np.arange(4), epoch=None)
    assert corners.tolist() == [[0, 0], [0, 96], [96, 0], [96, 96]]
    assert [draws.spread(0, 1, 96), draws.spread(0, 2, 96)] == [(48, 48), (48, 0)]
    for crops in range(1, 17):
        places = {draws.spread(i, crops, 96) for i in range(crops)}
        assert len(places) == crops
        assert all(0 <= v <= 96 for place in places for v in place)


def test_what_crops_share_is_decoded_once(cube: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = stores.shards.decode

    def count(data: Any, out: np.ndarray, **how: Any) -> None:
        decoded.append(out.nbytes)
        original(data, out, **how)

    monkeypatch.setattr(stores.shards, "decode", count)
    whole = plan(cube[0], Window(size=128, dates=3))
    whole.read([1])
    aligned = sum(decoded)
    decoded.clear()
    crops = plan(cube[0], Window(size=48, within=128, crops=4, dates=3))
    crops.read(np.arange(4, 8))
    assert sum(decoded) <= aligned, "the four crops read one patch once"
    assert sum(decoded) > 0.8 * aligned


def test_cells_are_what_splits_keep_apart(cube: Any) -> None:
    window = Window(size=24, within=64, stride=48, crops=4, dates=2)
    samples = plan(cube[0], window)
    bounds = samples.bounds()
    assert set(np.round(bounds[:, 2] - bounds[:, 0])) == {640}
    parts = split(samples, block=1280, fractions=(0.5, 0.5))
    assert leaks(parts).empty
    for part in parts.values():
        assert (np.bincount(part.ids // 4)[np.unique(part.ids // 4)] == 4).all(), "cells are whole"
    seen = {}
    for name, part in parts.items():
        seen[name] = np.zeros((256, 256), bool)
        for epoch in range(20):
            for y, x in part.places(np.arange(len(part)), epoch=epoch):
                seen[name][y : y + 24, x : x + 24] = True
    assert not (seen["train"] & seen["test"]).any()


@pytest.mark.parametrize(
    ("window", "match"),
    [
        (Window(size=64, within=48), r"cannot leave its cell.*within=64 or more, such as 128"),
        (Window(size=64, crops=4), r"crops=4\): of what\? Give within"),
        (Window(size=64, within=128, crops=0), "crops=0.* at least 1"),
        (Window(size=64, within=300), r"window of 300 px is larger.*Window\(within=256\)"),
        (Window(size=64, stride=0), "overlap by 64 px, which is not less than their edge"),
        (Window(size=64, stride=-8), "overlap by 72 px.*at least 1 pixel"),
        (Window(size=64, within=96.5), "within=96.5.*whole number"),  # type: ignore[arg-type]
    ],
)
def test_windows_that_make_no_sense(cube: Any, window: Window, match: str) -> None:
    with pytest.raises(CubeError, match=match):
        plan(cube[0], window)


# ---------------------------------------------------------------------------------- what they hold


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A cube with holes in its labels, two patches an edge, the last of them ragged."""
    path = tmp_path_factory.mktemp("labels") / "labels.zarr"
    nodata = {"labels/worldcover": (1, slice(None), slice(40, 120), slice(0, 90))}
    layers = ("s1/backscatter", "s2/reflectance", "s2/clear", "labels/worldcover")
    shape = (200, 216)
    return path, streams.write_store(
        path, shape=shape, layers=layers, bands=("B02",), nodata=nodata
    )


@pytest.mark.parametrize("size", [64, 40])
def test_class_shares_are_those_of_the_pixels(labelled: Any, size: int) -> None:
    path, stored = labelled
    samples = plan(path, Window(size=size, stride=32, dates=2))
    table = samples.table()
    labels = stored["labels/worldcover"][1, 0]  # of two planes 2022, the year of all dates
    codes = [int(c) for c in np.unique(labels) if c]
    got = choosing.class_shares(samples, "labels/worldcover", codes)
    for row, (y, x) in enumerate(zip(table.y, table.x, strict=True)):
        window = labels[y : y + size, x : x + size]
        assert got[None][row] == pytest.approx((window != 0).mean(), abs=1e-6)
        for code in codes:
            assert got[code][row] == pytest.approx((window == code).mean(), abs=1e-6)
    first = stored["labels/worldcover"][0, 0]
    assert (np.bincount(first.ravel()) != np.bincount(labels.ravel())).any()
    assert len(codes) > 1


def test_where_keeps_samples_by_classes_and_clouds(
    labelled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, stored = labelled
    samples = plan(path, Window(size=64, stride=8, dates=2))
    monkeypatch.setattr(stores.StoredArray, "map", lambda *_: pytest.fail("a pixel was read"))
    table, labels = samples.table(), stored["labels/worldcover"][1, 0]
    windows = [labels[y : y + 64, x : x + 64] for y, x in zip(table.y, table.x, strict=True)]
    has = np.array([(w != 0).mean() >= 0.5 for w in windows])
    code = int(labels.max())
    rare = np.array([(w == code).mean() >= 0.05 for w in windows])
    assert 0 < (has & rare).sum() < has.sum() < len(samples)
    layer = samples.layers["labels/worldcover"]
    monkeypatch.setattr(choosing, "legend_of", lambda *_: legend_of(labels))
    assert layer.legend
    np.testing.assert_array_equal(where(samples, labelled=0.5).ids, samples.ids[has])
    both = where(samples, labelled=0.5, classes={f"class {code}": 0.05})
    np.testing.assert_array_equal(both.ids, samples.ids[has & rare])
    np.testing.assert_array_equal(where(samples, classes={code: 0.05}).ids, samples.ids[rare])
    least = float(table.s2_clear.median())
    clear = where(samples, clear={"s2": least})
    np.testing.assert_array_equal(clear.ids, samples.ids[table.s2_clear >= least])
    assert len(where(samples)) == len(samples)
    for match, how in [
        (rf"no sample left of {len(samples)}: labelled >= 0.5 dropped {(~has).sum()} .*"
         rf"then class {code} >= 1 dropped {has.sum()} \(alone {len(samples)}\)",
         {"labelled": 0.5, "classes": {code: 1.0}}),
        ("has no class 'cheese'; it has", {"classes": {"cheese": 0.1}}),
        ("labels='labels/x': say which.*worldcover", {"labels": "labels/x", "labelled": 0.1}),
        ("s3 has no cloud mask; there are masks of s2", {"clear": {"s3": 0.1}}),
        ("labelled=5 is a fraction", {"labelled": 5}),
    ]:  # fmt: skip
        with pytest.raises(CubeError, match=match):
            where(samples, **how)


def legend_of(labels: np.ndarray) -> Any:
    from cubes.rows import Legend

    classes = {int(c): (f"class {c}", "#000000") for c in np.unique(labels) if c}
    return Legend(name="x", title="x", origin="mapped", nodata=0, classes=classes)


def test_counts_of_classes_are_whole_or_an_error(labelled: Any, tmp_path: Path) -> None:
    """A store from before classes were counted has none of the counts, or those of some regions."""
    samples = plan(labelled[0], Window(size=64, dates=2))
    table = indexes._table(samples.stores[0].folder, samples.stores[0].identity)
    gone = next(n for n in table.valid if "=" in n)
    kept = table.valid.pop(gone)
    try:
        with pytest.raises(CubeError, match=r"written before classes were counted.*force=True"):
            where(samples, labelled=0.1)
    finally:
        table.valid[gone] = kept
    assert len(where(samples, labelled=0.1))


def test_cloudy_dates_are_not_used(labelled: Any) -> None:
    path, stored = labelled
    samples = plan(path, Window(size=64, dates=8, clear=0.8), max_gap=None)
    table = samples.table()
    shares = [
        stored["s2/clear"][:, 0, y : y + 64, x : x + 64].mean(axis=(1, 2))
        for y, x in zip(table.y, table.x, strict=True)
    ]
    for row, share in enumerate(shares):
        assert samples.dates(row, "s2").tolist() == np.flatnonzero(share >= 0.8).tolist()
    assert 0 < table.s2_dates.min() + table.s2_dates.max() < 16
    with pytest.raises(CubeError, match=r"0 with a date of each.*Window\(clear=1"):
        plan(path, Window(size=64, dates=8, clear=1.0))
