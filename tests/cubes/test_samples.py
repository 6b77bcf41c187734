"""Samples: which windows and dates, read as they were stored, split without leaks."""

from __future__ import annotations

import importlib.util
import pickle
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xbatcher
from odc.geo.geobox import GeoBox

from cubes import CubeError, Layout, Window, plan, split
from cubes.sampling import index as indexes
from cubes.sampling import pool as pools
from cubes.sampling import stored as stores
from cubes.sampling.draws import uniform
from cubes.sampling.sampleset import Samples
from cubes.sampling.splits import leaks

_spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("streams.py"))
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("samples") / "flat.zarr"
    return path, streams.write_store(path, bands=("B02", "B04", "B08"))


def expected(samples: Any, stored: dict[str, np.ndarray], row: int, epoch: int | None) -> Any:
    """Return layer -> (T, C, y, x) by slicing what was written, the slow and plain way."""
    table, size = samples.table(), samples.window.size
    y, x = int(table.y[row]), int(table.x[row])
    steps = {c: samples.dates(row, c, epoch=epoch) for c in samples.clocks}
    out = {}
    for name, layer in samples.layers.items():
        window = stored[name][..., y : y + size, x : x + size]
        if layer.stack_dim == "time":
            out[name] = window[steps[layer.group]]
        elif layer.stack_dim == "pair":  # streams: pair i ends at date i + 2
            nodata = np.full_like(window[0], layer.nodata)
            out[name] = np.stack([window[s - 2] if s >= 2 else nodata for s in steps["s1"]])
        elif layer.stack_dim == "year":
            out[name] = window[1:2]  # the season of 2022
        else:
            out[name] = window
    return out


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "window",
    [
        Window(size=128, dates=4),  # whole patches
        Window(size=64, dates=20),  # parts of patches; more dates asked than there are
        Window(size=100, stride=39, dates=3),  # across patches, overlapping
        Window(size=200, stride=56, dates=2),  # larger than a patch
    ],
    ids=["aligned", "crops", "across", "larger"],
)
def test_reads_what_was_stored(cube: Any, window: Window, threads: int) -> None:
    path, stored = cube
    samples = plan(path, window, seed=3)
    rows = np.random.default_rng(0).permutation(len(samples))[:5]
    rows = np.append(rows, rows[0])  # twice in one batch
    read = samples.read(rows, threads=threads, epoch=7)
    for i, row in enumerate(rows):
        for name, want in expected(samples, stored, int(row), 7).items():
            got = read[name][i]
            assert got.dtype == stored[name].dtype
            np.testing.assert_array_equal(got[: len(want)], want, err_msg=name)
            nodata = samples.layers[name].nodata or 0
            np.testing.assert_array_equal(got[len(want) :], nodata)


def test_batch_columns(cube: Any) -> None:
    path, _ = cube
    samples = plan(path, Window(size=128, dates=9))
    read = samples.read([2, 0], epoch=None)
    s2 = samples.stores[0].days["s2"]
    assert len(s2) == 8  # fewer than nine: the axis is as long as the longest cube's
    np.testing.assert_array_equal(read["s2/days"][0], s2)
    first = np.datetime64("2022-03-01T06:00") - np.datetime64("2000-01-01T00:00")
    assert read["s1/days"][0, 0] == first / np.timedelta64(1, "D")
    assert read["s1/present"].all()
    assert read["s1/days"].shape == (2, 9)
    # tracks alternate from date to date: 132A, then 37D
    steps = samples.dates(2, "s1", epoch=None)
    np.testing.assert_array_equal(read["s1/track_of_date"][0], steps % 2)
    assert read["place"].tolist() == [[0, 128, 0, 2], [0, 0, 0, 0]]
    assert 3 < read["lonlat"][0, 0] < 3.1
    assert 50 < read["lonlat"][0, 1] < 51


@pytest.mark.parametrize(
    "layout",
    [
        Layout(patch=128, steps=3),
        Layout(patch=128, shards=False),
        Layout(patch=128, codec="zstd"),
        Layout(patch=128, codec="none"),
    ],
    ids=["short shards", "no shards", "zstd", "uncompressed"],
)
def test_every_layout_reads_the_same(tmp_path: Path, cube: Any, layout: Layout) -> None:
    path, _ = cube
    other = tmp_path / "other.zarr"
    streams.write_store(other, bands=("B02", "B04", "B08"), layout=layout)
    window = Window(size=96, stride=80, dates=5)
    mine, theirs = plan(path, window), plan(other, window)
    one, two = mine.read([0, 3], threads=2), theirs.read([0, 3], threads=2)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    array = indexes.index(other).entries["s2/reflectance"].path
    assert stores.StoredArray(array).fast == (layout.codec == "lz4" and layout.shards)


def test_plan_goes_through_xbatcher(
    cube: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[dict[str, int], dict[str, int]]] = []
    original = xbatcher.BatchGenerator

    class Spy(original):  # type: ignore[misc, valid-type]
        def __init__(self, ds: Any, **how: Any) -> None:
            made.append((dict(ds.sizes), how["input_overlap"]))
            # The array behind has stride 0 everywhere: one number, however large the grid.
            assert set(ds["grid"].data.strides) == {0}
            super().__init__(ds, **how)

    from cubes.sampling import samples as module

    module._windows.cache_clear()
    monkeypatch.setattr(xbatcher, "BatchGenerator", Spy)
    second = tmp_path / "second.zarr"
    streams.write_store(second, layers=("s1/backscatter",), s1=4, seed=4)
    samples = plan([cube[0], second], Window(size=64, stride=48, dates=2))
    assert [m[0] for m in made] == [{"y": 256, "x": 256}], "one generator per distinct shape"
    assert made[0][1] == {"y": 16, "x": 16}
    assert len(samples) == 2 * 5 * 5
    assert sorted(set(samples.table().y)) == [0, 48, 96, 144, 192]
    module._windows.cache_clear()


def test_planning_reads_no_pixel(cube: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a shard was opened")

    monkeypatch.setattr(stores.StoredArray, "map", refuse)
    monkeypatch.setattr(stores.StoredArray, "slices", refuse)
    samples = plan(cube[0], Window(size=64, dates=2))
    samples.table()
    split(samples, block=640, fractions=(0.5, 0.5))


def test_dates_are_a_pure_function(cube: Any) -> None:
    samples = plan(cube[0], Window(size=64, dates=4), seed=5)
    part = samples.take([9, 3])
    for epoch in (0, 1, None):
        np.testing.assert_array_equal(
            part.dates(1, "s1", epoch=epoch), samples.dates(3, "s1", epoch=epoch)
        )
    again = plan(cube[0], Window(size=64, dates=4), seed=5)
    assert again.sha256 == samples.sha256
    assert plan(cube[0], Window(size=64, dates=4), seed=6).sha256 != samples.sha256
    assert part.sha256 != samples.sha256
    assert samples.select(["s2/scl"]).sha256 != samples.sha256
    drawn = {tuple(samples.dates(0, "s1", epoch=e)) for e in range(30)}
    assert len(drawn) > 10
    for steps in drawn:  # one of each run of 2.5 dates, ascending
        assert list(steps) == sorted(set(steps))
        assert [s * 4 // 10 for s in steps] == [0, 1, 2, 3] or steps[1] - steps[0] <= 5
    assert len({tuple(samples.dates(0, "s1", epoch=None)) for _ in range(3)}) == 1


def test_uniform_numbers() -> None:
    values = uniform((1, 2, 3), 20000)
    assert ((values >= 0) & (values < 1)).all()
    counts = np.bincount((values * 20).astype(int), minlength=20)
    assert counts.min() > 850
    assert counts.max() < 1150
    assert not np.array_equal(values[:9], uniform((1, 2, 4), 9))
    # Fixed for ever: a change of these numbers changes every run that is resumed.
    np.testing.assert_allclose(uniform((0, 0, 0), 2), uniform((0, 0, 0), 3)[:2], rtol=0)


def test_min_valid_leaves_out_dates_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "holes.zarr"
    nodata = {
        # date 3 lacks half of the lower left patch; the lower right patch has no S1 at all
        "s1/backscatter": (slice(None), slice(None), slice(128, 256), slice(128, 256)),
        "s2/reflectance": (3, slice(None), slice(128, 192), slice(0, 128)),
    }
    streams.write_store(path, bands=("B02", "B04"), nodata=nodata)
    window = Window(size=128, dates=8)
    samples = plan(path, window)
    table = samples.table()
    assert [(int(y), int(x)) for y, x in zip(table.y, table.x, strict=True)] == [
        (0, 0), (0, 128), (128, 0)]  # fmt: skip
    assert table.s2_dates.tolist() == [8, 8, 7]
    assert 3 not in samples.dates(2, "s2")
    assert 3 in plan(path, window, min_valid=0.5).dates(2, "s2")
    assert len(plan(path, window, max_gap=None)) == 4, "any sensor will do"
    # a window across patches has the mean of what it touches: 3/4 valid here
    across = plan(path, Window(size=256, dates=8), min_valid=0.8, max_gap=None)
    assert across.table().s1_dates.tolist() == [0]
    assert plan(path, Window(size=256, dates=8), min_valid=0.7).table().s1_dates.tolist() == [10]


def test_max_gap(tmp_path: Path) -> None:
    path = tmp_path / "gap.zarr"
    # S1 every 12 days, S2 every 12 days, 5 days and 3 hours later
    streams.write_store(path, bands=("B02",), every=(12, 12), lag=5, s1=3, s2=3)
    assert len(plan(path, Window(size=128), max_gap="6D")) == 4
    with pytest.raises(CubeError, match=r"no sample left: 4 windows.*max_gap=4D"):
        plan(path, Window(size=128), max_gap="4D")
    # with periods of 12 days that begin with an S1 date each has both
    assert len(plan(path, Window(size=128, period="12D"), max_gap="6D")) == 4 * 2


def test_periods(cube: Any) -> None:
    samples = plan(cube[0], Window(size=128, dates=3, period="20D", step="10D"), max_gap=None)
    table = samples.table()
    # 55 days from the first to the last date: periods from day 0, 10, 20, 30
    assert len(samples) == 4 * 4
    days = (table.start - table.start.min()).dt.days
    assert sorted(set(days)) == [0, 11, 21, 30]
    assert ((table.end - table.start).dt.days < 20).all()
    for row in range(len(samples)):
        low = 8095 + 10 * (row // 4)
        chosen = samples.stores[0].days["s1"][samples.dates(row, "s1")]
        assert ((chosen >= low) & (chosen < low + 20)).all()
    with pytest.raises(CubeError, match=r"spans 5[0-9] days"):
        plan(cube[0], Window(size=128, period="90D"))


def test_several_cubes_sensors_missing(cube: Any, tmp_path: Path) -> None:
    only = tmp_path / "radar.zarr"
    box = GeoBox.from_bbox((399360, 5601280, 400640, 5602560), "EPSG:32632", resolution=10)
    stored = streams.write_store(
        only, shape=(128, 128), layers=("s1/backscatter",), s1=5, geobox=box, seed=9
    )
    samples = plan([cube[0], only], Window(size=128, dates=6))
    assert len(samples) == 5
    read = samples.read([4, 1])
    assert read["place"][0].tolist() == [1, 0, 0, 4]
    np.testing.assert_array_equal(read["s1/backscatter"][0, :5], stored["s1/backscatter"])
    assert (read["s1/backscatter"][0, 5:] == -32768).all()
    assert read["s1/present"][0].tolist() == [True] * 5 + [False]
    assert not read["s2/present"][0].any()
    assert (read["s2/reflectance"][0] == 0).all()
    assert np.isnan(read["s2/days"][0]).all()
    assert read["s2/present"][1].all()
    assert (read["s1/track_of_date"][0] == -1).all()
    np.testing.assert_allclose(read["lonlat"][0, 0], 7.57, atol=0.05)


def test_cubes_that_do_not_mix(cube: Any, tmp_path: Path) -> None:
    bands = tmp_path / "bands.zarr"
    streams.write_store(bands, bands=("B02", "B03", "B08"), layers=("s2/reflectance",))
    with pytest.raises(CubeError, match="channels B02, B03, B08"):
        plan([cube[0], bands], Window(size=64))
    sigma = tmp_path / "sigma.zarr"
    streams.write_store(sigma, layers=("s1/backscatter",), calibration="sigma0")
    with pytest.raises(CubeError, match=r"sigma0.*gamma0_rtc"):
        plan([cube[0], sigma], Window(size=64))


def test_errors_name_value_and_remedy(cube: Any, tmp_path: Path) -> None:
    path = cube[0]
    cases: list[tuple[str, Window, dict[str, Any]]] = [
        (r"window of 512 px is larger than .*256 x 256.*Window\(size=256\)", Window(size=512), {}),
        ("no length of time", Window(size=64), {"max_gap": "three days"}),
        ("between 0 and 1", Window(size=64), {"min_valid": 99}),
        ("at least 1 pixel", Window(size=64, stride=0), {}),
        ("whole days", Window(size=64, period="36h"), {}),
    ]
    for match, window, how in cases:
        with pytest.raises(CubeError, match=match):
            plan(path, window, **how)
    with pytest.raises(CubeError, match="no store given"):
        plan([])
    with pytest.raises(CubeError, match="no store at"):
        plan(tmp_path / "nothing.zarr")
    samples = plan(path, Window(size=64))
    with pytest.raises(CubeError, match="sample 99 does not exist"):
        samples.read([99])
    with pytest.raises(CubeError, match="no layer 's2/reflectanse'"):
        samples.select(["s2/reflectanse"])
    with pytest.raises(CubeError, match=r"out\['s1/backscatter'\] must be int16"):
        samples.read([0], out={})


def test_unsealed_and_rewritten_stores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    streams.write_store(path, layers=("s1/backscatter",), s1=3)
    samples = plan(path, Window(size=128, dates=2))
    samples.read([0])
    # other pixels of the same plan, no cache cleared: only the seal can tell
    streams.write_store(path, layers=("s1/backscatter",), s1=3, seed=1, force=True)
    with pytest.raises(CubeError, match="not the store these samples were planned on"):
        samples.read([0])
    shutil.rmtree(path)
    streams.write_store(path, layers=("s1/backscatter",), s1=4)
    with pytest.raises(CubeError, match="not the store these samples were planned on"):
        samples.read([0])
    (path / "__cubes__" / "sealed.json").unlink()
    with pytest.raises(CubeError, match="not sealed"):
        plan(path, Window(size=128))


def test_flipped_bits_never_reach_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "bits.zarr"
    streams.write_store(path, shape=(64, 64), layers=("s1/backscatter",), s1=4)
    samples = plan(path, Window(size=64, dates=4))
    good = samples.read([0])["s1/backscatter"].copy()
    shard = next(p for p in (path / "s1" / "backscatter" / "c").rglob("*") if p.is_file())
    whole = shard.read_bytes()
    rng = np.random.default_rng(0)
    try:
        for place in [*rng.integers(0, len(whole), 200), len(whole) - 1, len(whole) - 30]:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            shard.write_bytes(damaged)
            stores.MAPS.clear()
            with pytest.raises(CubeError, match=r"backscatter.*patch row 0, column 0.*repair"):
                samples.read([0])
        shard.write_bytes(whole[: len(whole) // 2])
        stores.MAPS.clear()
        with pytest.raises(CubeError, match="backscatter"):
            samples.read([0])
    finally:
        shard.write_bytes(whole)
        stores.MAPS.clear()
    np.testing.assert_array_equal(samples.read([0])["s1/backscatter"], good)


def test_an_error_in_a_thread_reaches_the_caller_and_the_pool_goes_on(cube: Any) -> None:
    def fail() -> None:
        raise CubeError("broken unit")

    done = threading.Event()
    workers = pools.Pool(2)
    bad = workers.submit(pools.Job(lambda: [fail] * 5))
    good = workers.submit(pools.Job(lambda: [done.set]))
    with pytest.raises(CubeError, match="broken unit"):
        bad.wait(10)
    good.wait(10)
    assert done.is_set()
    never = threading.Event()
    slow = workers.submit(pools.Job(lambda: [lambda: never.wait(20) and None]))  # type: ignore
    with pytest.raises(CubeError, match="no batch for"):
        slow.wait(0.05)
    never.set()
    workers.close()


def test_open_maps_are_bounded(cube: Any) -> None:
    samples = plan(cube[0], Window(size=128, dates=10)).select(["s2/reflectance"])
    samples.read([0])
    one = stores.MAPS._touched
    maps = stores.Maps(files=2, size=10**12)
    array = samples.stores[0].array("s2/reflectance")
    keys = [(0, 0, r, c) for r in (0, 1) for c in (0, 1)]
    for key in keys:
        maps.touch(maps.get(array, key), 100)  # type: ignore[arg-type]
    assert len(maps._open) == 2
    assert maps._touched == 200
    assert one > 0


def test_pickles_small_without_open_files(cube: Any) -> None:
    samples = plan(cube[0], Window(size=32, stride=2, dates=4))
    samples.read([0])
    blob = pickle.dumps(samples)
    assert len(samples) == 113 * 113
    assert len(blob) < 80 * len(samples) + 50_000
    twin = pickle.loads(blob)
    assert twin.sha256 == samples.sha256
    for name, value in twin.read([77]).items():
        np.testing.assert_array_equal(value, samples.read([77])[name])


def test_table(cube: Any) -> None:
    path, stored = cube
    table = plan(path, Window(size=128, dates=4)).table()
    assert table.aoi.tolist() == ["flat"] * 4
    assert (table.right - table.left == 1280).all()
    assert table.top.max() == 5603840
    assert table.loc[0, "left"] == 501760
    np.testing.assert_allclose(
        table.loc[1, "s2_clear"], stored["s2/clear"][:, 0, :128, 128:].mean(), atol=1e-4
    )


# --------------------------------------------------------------------------------------- splits


def test_split_by_block(cube: Any) -> None:
    samples = plan(cube[0], Window(size=32, dates=2))
    parts = split(samples, block=640, buffer=0, seed=1)
    assert list(parts) == ["train", "val", "test"]
    ids = np.concatenate([p.ids for p in parts.values()])
    assert len(ids) == len(set(ids.tolist())) == 64, "without a buffer nothing is lost"
    assert len(leaks(parts)) == 0
    for part in parts.values():  # whole blocks of the lattice of the CRS, not of the cube
        left, bottom = part.bounds()[:, 0], part.bounds()[:, 1]
        mine = set(zip(left // 640, bottom // 640, strict=True))
        others = [p for p in parts.values() if p is not part]
        for other in others:
            theirs = set(zip(other.bounds()[:, 0] // 640, other.bounds()[:, 1] // 640, strict=True))
            assert not mine & theirs
    assert split(samples, block=640, seed=1)["test"].sha256 == parts["test"].sha256
    assert split(samples, block=640, seed=2)["test"].sha256 != parts["test"].sha256


def test_split_buffer(cube: Any) -> None:
    samples = plan(cube[0], Window(size=16, dates=2))
    loose = split(samples, block=640, fractions=(0.75, 0.25), seed=3)
    near = leaks(loose, buffer=200)
    assert len(near) > 0
    tight = split(samples, block=640, buffer=200, fractions=(0.75, 0.25), seed=3)
    assert len(leaks(tight, buffer=200)) == 0
    assert tight["test"].sha256 == loose["test"].sha256, "only train gives way"
    lost = set(loose["train"].ids.tolist()) - set(tight["train"].ids.tolist())
    assert lost == set(near.id.tolist())
    with pytest.raises(CubeError, match=r"no sample left in 'train'.*blocks of 640 m.*buffer=9000"):
        split(samples, block=640, buffer=9000, fractions=(0.75, 0.25))


def test_split_drops_overlapping_windows(cube: Any) -> None:
    samples = plan(cube[0], Window(size=32, stride=16, dates=2))
    parts = split(samples, block=800, fractions=(0.6, 0.4), seed=2)
    assert len(leaks(parts)) == 0
    assert sum(map(len, parts.values())) < len(samples)
    # The checker itself finds what is wrong: the same samples on two sides.
    assert len(leaks({"a": samples.take([0]), "b": samples.take([1])})) == 1


def test_split_sees_leaks_between_zones(tmp_path: Path, cube: Any) -> None:
    other = tmp_path / "zone.zarr"  # the same ground in the next zone
    box = GeoBox.from_bbox((77000, 5618400, 79560, 5620960), "EPSG:32632", resolution=10)
    streams.write_store(other, geobox=box, layers=("s2/reflectance",), bands=("B02", "B04", "B08"))
    samples = plan([cube[0], other], Window(size=128, dates=2), max_gap=None)
    far = plan(cube[0], Window(size=128, dates=2))
    parts = {"here": far, "there": samples.take(samples.numbers == 1)}
    import shapely
    from pyproj import Transformer

    to = Transformer.from_crs("EPSG:32632", "EPSG:32631", always_xy=True)
    boxes = [shapely.transform(shapely.box(*b), lambda p: np.stack(to.transform(*p.T), 1))
             for b in parts["there"].bounds()]  # fmt: skip
    want = sum(
        shapely.area(shapely.intersection(shapely.box(*b), o)) > 1
        for b in far.bounds()
        for o in boxes
    )
    assert want > 0
    assert len(leaks(parts)) == want


def test_split_by_time_and_area(cube: Any, tmp_path: Path) -> None:
    samples = plan(cube[0], Window(size=128, dates=2, period="10D"), max_gap=None)
    parts = split(samples, by="time", block="10D", buffer="1h", fractions=(0.6, 0.4))
    starts = {name: set(p.table().start.dt.date) for name, p in parts.items()}
    assert not starts["train"] & starts["test"]
    with pytest.raises(CubeError, match="Window\\(period="):
        split(plan(cube[0], Window(size=128)), by="time")
    second = tmp_path / "second.zarr"
    box = GeoBox.from_bbox((521760, 5601280, 524320, 5603840), "EPSG:32631", resolution=10)
    streams.write_store(second, layers=("s1/backscatter",), aoi="second", geobox=box)
    both = plan([cube[0], second], Window(size=128, dates=2), max_gap=None)
    areas = split(both, by="aoi", fractions=(0.5, 0.5))
    found = {name: set(part.table().aoi) for name, part in areas.items()}
    assert sorted(found["train"] | found["test"]) == ["flat", "second"]
    assert len(found["train"]) == len(found["test"]) == 1


def test_a_cube_in_hand_is_no_store(cube: Any) -> None:
    import cubes

    with pytest.raises(CubeError, match="planned on stores: write the cube"):
        plan(cubes.open(cube[0]))  # type: ignore[arg-type]


def test_areas_are_places_not_names_of_files(tmp_path: Path) -> None:
    """Three places of a file called aoi.geojson, one of them in two cubes of other years."""
    paths = []
    for name, west in {"a": 500000, "a-later": 500000, "b": 560000, "c": 620000}.items():
        box = GeoBox.from_bbox((west, 5601280, west + 2560, 5603840), "EPSG:32631", resolution=10)
        paths.append(tmp_path / f"{name}.zarr")
        streams.write_store(paths[-1], layers=("s1/backscatter",), aoi="aoi", geobox=box)
    samples = plan(paths, Window(size=128, dates=2), max_gap=None)
    parts = split(samples, by="aoi", seed=1)
    where = {name: {Path(s.path).stem[0] for s in _used(part)} for name, part in parts.items()}
    assert sorted(map(sorted, where.values())) == [["a"], ["b"], ["c"]]
    held = split(samples, by={"val": ("c",), "test": ("a",)})
    assert list(held) == ["train", "val", "test"]
    assert {Path(s.path).stem for s in _used(held["test"])} == {"a", "a-later"}
    assert {Path(s.path).stem for s in _used(held["train"])} == {"b"}
    assert "from 2 stores" in repr(held["test"])
    assert not len(leaks(held))
    with pytest.raises(CubeError, match=r"names 'd', .* aoi \(a\), aoi \(b\), aoi \(c\)"):
        split(samples, by={"test": ("d",)})
    with pytest.raises(CubeError, match="held out for two parts"):
        split(samples, by={"val": ("a",), "test": ("a-later",)})
    with pytest.raises(CubeError, match="nothing is left to train on"):
        split(samples, by={"test": ("aoi",)})
    with pytest.raises(CubeError, match="a sequence of names"):
        split(samples, by={"test": "b"})
    with pytest.raises(
        CubeError, match=r"2 areas \(aoi \(b\), aoi \(c\)\) hold all .* cubes of more areas"
    ):
        split(plan(paths[2:], Window(size=128, dates=2), max_gap=None), by="aoi")


def _used(part: Any) -> list[Any]:
    return [part.stores[i] for i in np.unique(part.numbers)]


@pytest.mark.parametrize("s1", [True, False], ids=["with s1", "pairs alone"])
def test_pairs_belong_to_a_part_only_if_both_acquisitions_do(tmp_path: Path, s1: bool) -> None:
    """A pair of two weeks reached back from the test's first days into those of training."""
    own = ("s1/backscatter",) if s1 else ()
    layers = (*own, "insar/coherence", "insar/phase", "s2/reflectance")
    path = tmp_path / "pairs.zarr"
    streams.write_store(path, layers=layers, bands=("B04",), s1=16, s2=18)
    samples = plan(path, Window(size=128, dates=9, period="20D"), max_gap=None)
    parts = split(samples, by="time", block="20D", fractions=(0.5, 0.5), seed=1)
    clock = "s1" if s1 else "insar"
    date = samples.stores[0].days[clock]
    spans = {k: np.unique(np.stack(p.span(), axis=1), axis=0) for k, p in parts.items()}
    kept = lost = 0
    for name, part in parts.items():
        for row in range(len(part)):
            read = part.read([row], epoch=None)
            for step, pixels in zip(
                part.dates(row, clock, epoch=None), read["insar/coherence"][0], strict=False
            ):
                if s1 and step < 2:
                    continue  # no pair ends there
                first = date[step] - 12  # streams: pairs of twelve days
                own = ((spans[name][:, 0] <= first + 0.01) & (first <= spans[name][:, 1])).any()
                assert (pixels != part.layers["insar/coherence"].nodata).any() == own
                kept, lost = kept + own, lost + (not own)
    assert kept
    assert lost
    assert leaks(parts).empty
    # the checker sees what a split by hand leaves: the same samples, with every pair
    by_hand = {k: samples.take(np.isin(samples.ids, p.ids)) for k, p in parts.items()}
    assert not leaks(by_hand).empty
    still = {k: p.select(["s2/reflectance"]) for k, p in by_hand.items()}
    assert leaks(still).empty
    assert not leaks(still, gap="10D").empty
    assert parts["test"].sha256 != by_hand["test"].sha256
    for gap in (3, "-1D", "soon"):
        with pytest.raises(CubeError, match=r"gap=.*such as '12D'"):
            leaks(still, gap=gap)  # type: ignore[arg-type]


def test_split_errors(cube: Any) -> None:
    samples = plan(cube[0], Window(size=128, dates=2))
    with pytest.raises(CubeError, match="blocks of 9999 m hold all 4 samples"):
        split(samples, block=9999, fractions=(0.5, 0.5))
    with pytest.raises(CubeError, match="sum 1"):
        split(samples, fractions=(0.5, 0.6))
    with pytest.raises(CubeError, match="choose block, time or aoi"):
        split(samples, by="place")  # type: ignore[arg-type]
    with pytest.raises(CubeError, match="metres"):
        split(samples, buffer="3D")


def _in_crs(samples: Any, crs: str) -> Samples:
    """Return samples whose store says it lies in another CRS."""
    stores = [replace(s, crs=crs) for s in samples.stores]
    return Samples(stores, samples.window, seed=0, table=samples._table, usable=samples._usable)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:2263", "None"], ids=["degrees", "feet", "none"])
def test_splits_are_of_metres(cube: Any, crs: str) -> None:
    """A millimetre is no thousandth of a degree: 111 m of overlap would count as touching."""
    samples = _in_crs(plan(cube[0], Window(size=64, stride=32, dates=2)), crs)
    for how in ({}, {"block": 0.006}, {"by": "aoi"}, {"block": 640, "buffer": 100}):
        with pytest.raises(CubeError, match=rf"flat\.zarr.*{crs}.*metres"):
            split(samples, fractions=(0.5, 0.5), **how)
    with pytest.raises(CubeError, match=rf"flat\.zarr.*{crs}.*metres"):
        leaks({"a": samples.take([0]), "b": samples.take([1])})


def test_negative_and_senseless_distances_are_refused(cube: Any) -> None:
    samples = plan(cube[0], Window(size=64, dates=2, period="10D"), max_gap=None)
    for buffer in (-1, -1e-9, "-5", float("nan"), float("inf"), "3D", None):
        with pytest.raises(CubeError, match=r"buffer=.*metres"):
            split(samples, buffer=buffer)  # type: ignore[arg-type]
        with pytest.raises(CubeError, match=r"buffer=.*metres"):
            split(samples, by="aoi", buffer=buffer)  # type: ignore[arg-type]
        with pytest.raises(CubeError, match=r"buffer=.*metres"):
            leaks({"a": samples.take([0]), "b": samples.take([1])}, buffer=buffer)  # type: ignore[arg-type]
    for block in (-640, 0, float("nan"), float("inf"), "30D", "-640"):
        with pytest.raises(CubeError, match=r"block=.*metres"):
            split(samples, block=block)
    # by time a plain number would be nanoseconds
    for length in ("-60D", "-1ns", -3, 3, 1.5, "3", "NaT", "soon", float("nan")):
        with pytest.raises(CubeError, match=r"buffer=.*such as '30D'"):
            split(samples, by="time", buffer=length)
        with pytest.raises(CubeError, match=r"block=.*such as '30D'"):
            split(samples, by="time", block=length)
    with pytest.raises(CubeError, match=r"block='0D'.*such as '30D'"):
        split(samples, by="time", block="0D")
    for zero in (0, 0.0, "0D"):
        parts = split(samples, by="time", block="10D", buffer=zero, fractions=(0.6, 0.4))
        assert len(leaks(parts)) == 0
    for length in ("3", "NaT", "-3D", ""):
        with pytest.raises(CubeError, match=r"max_gap=.*such as '3D'"):
            plan(cube[0], Window(size=64, dates=2), max_gap=length)


def test_splits_by_time_need_dates(tmp_path: Path) -> None:
    streams.write_store(tmp_path / "still.zarr", layers=("terrain/elevation",))
    samples = plan(tmp_path / "still.zarr", Window(size=64, period="10D"))
    with pytest.raises(CubeError, match=r"still\.zarr.*no date"):
        split(samples, by="time", block="10D", fractions=(0.5, 0.5))


def test_many_samples(cube: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick to plan, small to keep, small to send to a worker."""
    from cubes.sampling import samples as module

    real = indexes.index(cube[0])
    monkeypatch.setattr(module, "index", lambda *_: replace(real, shape=(25600, 25600)))
    one = np.ones((10, 200, 200), np.float32)
    monkeypatch.setattr(
        module,
        "fractions",
        lambda _s, names: (
            {n: one[: len(_days(real, n))] for n in names},
            dict.fromkeys(names, 128),
        ),
    )
    began = time.process_time()
    samples = module.plan(cube[0], Window(size=128, dates=4))
    table = samples.table()
    spent = time.process_time() - began
    assert len(samples) == len(table) == 40_000
    assert (table.s2_dates == 8).all()
    assert len(pickle.dumps(samples)) < 100 * len(samples)  # columns of integers, no objects
    # 250,000 took 2.3 s of processor time, imports included
    assert spent < 5


def _days(store: Any, name: str) -> np.ndarray:
    return np.asarray(store.days[store.entries[name].clock])
