"""Samples and the store beneath them: rewritten, mended, damaged, lost, with a user's own rows."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import cubes
from cubes import CubeError, Layout, Window, plan
from cubes.sampling import index as indexes
from cubes.sampling import samples as samples_module
from cubes.sampling import stored

_spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("streams.py"))
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(60)
S1 = "s1/backscatter"
WINDOW = Window(size=64, dates=4)
PLAIN, ZSTD = Layout(patch=64, shards=False), Layout(patch=64, codec="zstd")


def shards(path: Path, name: str = S1) -> list[Path]:
    """Return the objects of one array."""
    return sorted(p for p in (path / name / "c").rglob("*") if p.is_file())


def small(path: Path, **options: Any) -> dict[str, np.ndarray]:
    """Write four patches of 64 px and four dates; return what is stored."""
    given = {"shape": (128, 128), "layers": (S1,), "s1": 4, "layout": Layout(patch=64)}
    stored: dict[str, np.ndarray] = streams.write_store(path, **(given | options))
    return stored


def patch(stored: dict[str, np.ndarray], row: int, name: str = S1) -> np.ndarray:
    """Return one patch of all dates, numbered as the samples are."""
    y, x = divmod(row, 2)
    return stored[name][..., 64 * y : 64 * y + 64, 64 * x : 64 * x + 64]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_rewritten_store_is_read_anew_and_its_old_samples_refused(
    tmp_path: Path, codec: Any, threads: int
) -> None:
    """Same plan, same zarr.json, other pixels: nothing but the seal tells them apart."""
    path = tmp_path / "c.zarr"
    layout = Layout(patch=64, codec=codec)
    first = small(path, seed=1, layout=layout)
    old = plan(path, WINDOW)
    np.testing.assert_array_equal(old.read([0], threads=threads)[S1][0], patch(first, 0))
    sent = pickle.dumps(old)
    second = small(path, seed=2, layout=layout, force=True)
    assert (first[S1] != second[S1]).any()
    for rows in ([0], [3]):  # one that was read before, one that was not
        for samples in (old, pickle.loads(sent)):
            with pytest.raises(CubeError, match=r"c\.zarr.*planned on.*cubes\.plan again"):
                samples.read(rows, threads=threads)
    new = plan(path, WINDOW)
    assert new.sha256 != old.sha256
    read = new.read([0, 3], threads=threads)[S1]
    np.testing.assert_array_equal(read, np.stack([patch(second, 0), patch(second, 3)]))
    mean = float(cubes.stats(new)["mean"][0])
    opened = cubes.open(path)["s1"]["backscatter"]
    assert mean == pytest.approx(float(opened.isel(pol=0).mean()), abs=1e-3)


def test_a_rewrite_in_the_middle_of_a_batch_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    small(path, seed=1)
    samples = plan(path, WINDOW)
    out = samples.empty(4)
    units = samples.units(np.arange(4), out)
    units[0]()
    small(path, seed=2, force=True)
    assert len(units) == 4
    with pytest.raises(CubeError, match=r"planned on.*cubes\.plan again"):
        units[1]()


def test_samples_of_a_store_that_is_being_written_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    small(path)
    samples = plan(path, WINDOW)
    samples.read([0])
    (path / "__cubes__" / "sealed.json").unlink()
    with pytest.raises(CubeError, match=r"c\.zarr is not sealed.*cubes\.plan again"):
        samples.read([0])


@pytest.mark.parametrize("codec", ["lz4", "zstd", "no shards"])
@pytest.mark.parametrize("warm", [False, True])
def test_a_lost_object_is_an_error_until_it_is_mended(
    tmp_path: Path, codec: Any, warm: bool
) -> None:
    path = tmp_path / "lost.zarr"
    layout = PLAIN if codec == "no shards" else Layout(patch=64, codec=codec)
    stored = small(path, layout=layout)
    samples = plan(path, WINDOW)
    across = plan(path, Window(size=64, stride=32, dates=4))  # windows that touch the patch
    if warm:
        samples.read([0])  # another patch: the store's array is open
    lost = [p for p in shards(path) if p.parts[-2:] == ("0", "1")]
    assert len(lost) == (4 if codec == "no shards" else 1)
    lost[0].unlink()
    with pytest.raises(
        CubeError, match=r"lost\.zarr lacks 1 objects.*s1/backscatter/c/.*0/1: run cubes\.repair"
    ):
        plan(path, WINDOW)
    for threads in (1, 2):
        with pytest.raises(
            CubeError, match=r"lost\.zarr.*s1/backscatter.*patch row 0, column 1.*cubes\.repair"
        ):
            samples.read([1], threads=threads)
        np.testing.assert_array_equal(samples.read([2])[S1][0], patch(stored, 2))
        with pytest.raises(CubeError, match=r"column 1.*cubes\.repair"):
            across.read([1])
    assert cubes.repair(path, source=cubes_of(path, stored)).state == "sealed"
    for found in (samples, plan(path, WINDOW)):  # the same bytes again: both may read them
        np.testing.assert_array_equal(found.read([1])[S1][0], patch(stored, 1))


def cubes_of(path: Path, stored: dict[str, np.ndarray]) -> xr.DataTree:
    """Return the DataTree that `small` wrote, from what `streams` keeps of it."""
    tree: xr.DataTree = streams.WRITTEN[path]
    assert stored[S1].shape[0] == tree["s1"].sizes["time"]
    return tree


def test_a_damaged_object_reads_right_once_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    stored = small(path)
    samples = plan(path, WINDOW)
    target = shards(path)[0]
    body = bytearray(target.read_bytes())
    body[100] ^= 1
    target.write_bytes(body)
    with pytest.raises(CubeError, match=r"crc32c.*cubes\.repair"):
        samples.read([0])
    cubes.repair(path, source=cubes_of(path, stored))
    np.testing.assert_array_equal(samples.read([0])[S1][0], patch(stored, 0))


@pytest.mark.parametrize("layout", [Layout(patch=64), PLAIN, ZSTD])
def test_what_was_never_written_stays_nodata(tmp_path: Path, layout: Layout) -> None:
    path = tmp_path / "hole.zarr"
    hole = {S1: (slice(None), slice(None), slice(0, 64), slice(64, 128))}
    stored = small(path, nodata=hole, layout=layout)
    samples = plan(path, WINDOW, min_valid=0)
    read = samples.read([0, 1])[S1]
    np.testing.assert_array_equal(read[0], patch(stored, 0))
    assert (read[1] == -32768).all()


@pytest.mark.parametrize("layout", [ZSTD, Layout(patch=64, codec="none"), PLAIN])
def test_damage_in_any_layout_is_named(tmp_path: Path, layout: Layout) -> None:
    path = tmp_path / "c.zarr"
    small(path, layout=layout)
    samples = plan(path, WINDOW)
    target = next(p for p in shards(path) if p.parts[-2:] == ("0", "1"))
    body = bytearray(target.read_bytes())
    body[50] ^= 1
    target.write_bytes(body)
    with pytest.raises(CubeError, match=r"backscatter.*patch row 0, column 1.*cubes\.repair"):
        samples.read([1])
    target.write_bytes(body[:20])
    with pytest.raises(CubeError, match=r"backscatter.*patch row 0, column 1.*cubes\.repair"):
        samples.read([1])


def test_the_seal_is_looked_at_once_a_batch(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "c.zarr"
    small(path)
    samples = plan(path, WINDOW)
    samples.read(np.arange(4))
    looks = []
    stat = os.stat

    def counted(what: Any, *args: Any, **kwargs: Any) -> Any:
        looks.append(str(what))
        return stat(what, *args, **kwargs)

    monkeypatch.setattr(os, "stat", counted)
    samples.read(np.tile(np.arange(4), 8))
    assert [Path(p).name for p in looks] == ["sealed.json"]


def test_maps_of_a_store_that_went_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    small(path, seed=1)
    stored.MAPS.clear()
    plan(path, WINDOW).read(np.arange(4))
    assert len(stored.MAPS._open) == 4
    small(path, seed=2, force=True)
    plan(path, WINDOW).read([0])
    assert len(stored.MAPS._open) == 1
    small(path, seed=3, force=True)
    plan(path, WINDOW).read([1])
    assert len(stored.MAPS._open) == 1
    assert stored.MAPS._touched <= shards(path)[0].stat().st_size + 2**20


OWN = """
[layers."s2/index"]
long_name = "an index of my own"
dims = ["time", "y", "x"]
units = "1"
kind = "continuous"
work_dtype = "float32"
work_nodata = nan
convert = "identity"
dtype = "int16"
scale = 1e-4
nodata = -32768
kernel = "nearest"
resolution = 10
valid_range = [-3, 3]
"""

WRITE = """
import sys, numpy as np, pandas as pd, xarray as xr, cubes
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
cubes.add(sys.argv[2])
box = GeoBox.from_bbox((501760, 5601280, 502400, 5601920), "EPSG:32631", resolution=10)
time = pd.date_range("2022-03-01", periods=2, freq="5D").values.astype("datetime64[ns]")
flat = np.full((2, 64, 64), 0.25, "float32")
coords = dict(xr_coords(box)) | {
    "time": ("time", time), "band": ["B04"],
    "platform": ("time", np.array(["sentinel-2a"] * 2, object)),
}
s2 = xr.Dataset(
    {"index": (("time", "y", "x"), flat),
     "reflectance": (("time", "band", "y", "x"), flat[:, None])}, coords=coords)
cubes.write(xr.DataTree.from_dict({"s2": s2}), sys.argv[1])
"""

READ = """
import sys, json, cubes
samples = cubes.plan(sys.argv[1], cubes.Window(size=64))
read = samples.read([0])
stats = cubes.stats(samples)
print(json.dumps([
    list(samples.layers), read["s2/index"].shape, int(read["s2/index"].mean()),
    stats["entry"].values.tolist(), stats["mean"].values.round(4).tolist(),
    stats["units"].values.tolist(),
]))
"""


def test_a_store_with_rows_of_a_users_own_opens_anywhere(tmp_path: Path) -> None:
    """Another process does not know the row: all that samples need stands in the store's plan."""
    path, rows = tmp_path / "own.zarr", tmp_path / "own.toml"
    rows.write_text(OWN)

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, str(path), str(rows)],
            capture_output=True, text=True, check=False, timeout=50,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-800:]
        return done.stdout

    python(WRITE)
    layers, shape, mean, entries, means, units = json.loads(python(READ))
    assert layers == ["s2/reflectance", "s2/index"], "rows that are not known here come last"
    assert shape == [1, 2, 1, 64, 64]
    assert mean == 2500
    assert entries == ["s2/reflectance/B04", "s2/index"]
    assert means == [0.25, 0.25]
    assert units == ["1", "1"]


OWN_AXES = """
[layers."change/amplitude"]
long_name = "change between two passes"
dims = ["pair", "y", "x"]
units = "1"
kind = "continuous"
work_dtype = "float32"
work_nodata = nan
convert = "identity"
dtype = "int16"
scale = 1e-4
nodata = -32768
kernel = "nearest"
resolution = 10
valid_range = [-3, 3]

[layers."mine/height"]
long_name = "height of a season"
dims = ["year", "y", "x"]
units = "m"
kind = "continuous"
work_dtype = "float32"
work_nodata = nan
convert = "identity"
dtype = "int16"
scale = 0.01
nodata = -32768
kernel = "nearest"
resolution = 10
valid_range = [0, 100]

[layers."s1/water"]
long_name = "water"
dims = ["time", "y", "x"]
units = "1"
kind = "mask"
work_dtype = "uint8"
convert = "stored"
dtype = "uint8"
kernel = "nearest"
resolution = 10
valid_range = [0, 1]
"""

WRITE_AXES = """
import sys, numpy as np, xarray as xr, cubes
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
cubes.add(sys.argv[2])
box = GeoBox.from_bbox((501760, 5601280, 502400, 5601920), "EPSG:32631", resolution=10)
days = np.datetime64("2022-03-01T06:00", "ns") + np.arange(4) * np.timedelta64(6, "D")
orbit = {"relative_orbit": ("time", np.full(4, 132)),
         "orbit_state": ("time", np.full(4, "ascending", object)),
         "platform": ("time", np.full(4, "sentinel-1a", object))}
flat = np.ones((64, 64), "float32")
steps = lambda *values: np.stack([np.float32(v) * flat for v in values])
water = np.zeros((4, 64, 64), bool)
water[:, :8] = True
s1 = xr.Dataset(
    {"backscatter": (("time", "pol", "y", "x"), steps(-1, -2, -3, -4)[:, None],
                     {"calibration": "gamma0_rtc"}),
     "water": (("time", "y", "x"), water)},
    coords=dict(xr_coords(box)) | orbit | {"time": days, "pol": ["vv"]})
ends = np.array([1, 3])
change = xr.Dataset(
    {"amplitude": (("pair", "y", "x"), steps(0.1, 0.3))},
    coords=dict(xr_coords(box)) | {
        "pair": ["a", "b"], "secondary_time": ("pair", days[ends]),
        "reference_time": ("pair", days[ends - 1]), "temporal_baseline": ("pair", [6.0, 6.0]),
        "relative_orbit": ("pair", [132, 132]),
        "orbit_state": ("pair", np.array(["ascending"] * 2, object))})
mine = xr.Dataset({"height": (("year", "y", "x"), steps(1, 2, 3))},
                  coords=dict(xr_coords(box)) | {"year": [2019, 2022, 2030]})
cubes.write(xr.DataTree.from_dict({"s1": s1, "change": change, "mine": mine}), sys.argv[1])
"""


def test_pairs_years_and_masks_of_a_users_own(tmp_path: Path) -> None:
    """Each group has its own pairs and years, and a mask is a mask of clouds only by its name."""
    path, rows = tmp_path / "own.zarr", tmp_path / "own.toml"
    rows.write_text(OWN_AXES)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRITE_AXES, str(path), str(rows)],
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-800:]
    samples = plan(path, Window(size=64, dates=4))
    assert samples.layers["s1/water"].kind == "mask"
    read = samples.read([0], epoch=None)
    assert read["s1/backscatter"][0, :, 0, 0, 0].tolist() == [-100, -200, -300, -400]
    assert read["change/amplitude"][0, :, 0, 0, 0].tolist() == [-32768, 1000, -32768, 3000]
    assert read["mine/height"][0, :, 0, 0, 0].tolist() == [200]
    assert "s1_clear" not in samples.table()
    counts = cubes.stats(samples)["count"].to_series()
    assert counts["s1/backscatter/vv"] == 4 * 64 * 64
    assert counts["change/amplitude"] == 2 * 64 * 64


def test_stores_that_hold_a_layer_in_other_forms_do_not_mix(tmp_path: Path) -> None:
    """One array holds the numbers of all: another scale or dtype would be read as this one."""
    path = tmp_path / "c.zarr"
    small(path)
    one = plan(path, WINDOW).stores[0]
    entry = one.entries[S1]
    for change in (
        {"scale": 0.1}, {"offset": 1.0}, {"nodata": 0}, {"units": "1"}, {"dtype": "int32"},
        {"kind": "class"}, {"legend": "other"}, {"dims": ("pair", "pol", "y", "x")},
    ):  # fmt: skip
        layer = replace(entry.layer, **change)
        two = replace(one, path="other.zarr", entries={S1: replace(entry, layer=layer)})
        with pytest.raises(
            CubeError, match=rf"other\.zarr.*s1/backscatter.*{next(iter(change))}.*c\.zarr"
        ):
            indexes.common_layers([one, two])
    other = replace(entry.layer, long_name="another name", convert="power_to_db")
    same = replace(one, entries={S1: replace(entry, layer=other)})
    assert list(indexes.common_layers([one, same])) == [S1]


@pytest.mark.timeout(10)
def test_what_read_and_take_refuse(tmp_path: Path) -> None:
    small(tmp_path / "c.zarr")
    samples = plan(tmp_path / "c.zarr", WINDOW)
    for rows in (np.array([True, False, True, True]), [0.5], ["1"]):
        with pytest.raises(CubeError, match=r"rows.*integer positions"):
            samples.read(rows)
    assert samples.read([])["place"].shape == (0, 4)
    for mask in ([True], [False] * 5):
        with pytest.raises(CubeError, match=rf"mask of {len(mask)}.*4 samples"):
            samples.take(mask)
    with pytest.raises(CubeError, match=r"rows.*integer positions"):
        samples.take([1.5])
    for threads in (0, -1):
        with pytest.raises(CubeError, match=f"threads={threads}.*1 or more"):
            samples.read([0], threads=threads)
        with pytest.raises(CubeError, match=f"threads={threads}.*1 or more"):
            cubes.stats(samples, threads=threads)
    for limit in (0, -1):
        with pytest.raises(CubeError, match=f"limit={limit}.*1 or more"):
            cubes.stats(samples, limit=limit)
    out = samples.empty(2)
    out[S1] = np.empty((2, 4, 2, 64, 128), np.int16)[..., ::2]
    with pytest.raises(CubeError, match=r"s1/backscatter.*C-contiguous"):
        samples.read([0, 1], out)
    with pytest.raises(CubeError, match="no samples"):
        cubes.split(samples.take([]))
    with pytest.raises(CubeError, match="sum 1"):
        cubes.split(samples, fractions=(float("nan"), 0.5))


def test_a_gap_is_inclusive_to_the_second(tmp_path: Path) -> None:
    """Days since 2000 lose a bit on 2022-06-06, day 8192, between two dates three days apart."""
    days = [indexes.days_since([f"2022-06-{d:02d}T05:41:{s:02d}"])[0]
            for d in (4, 7) for s in range(60)]  # fmt: skip
    gaps = np.array(days[60:]) - np.array(days[:60])
    assert (gaps > 3).any(), "exactly three days, and yet more"
    assert all(samples_module.within(g, 3.0) for g in gaps)
    assert not samples_module.within(3 + 1 / 86400, 3.0)


def test_a_ledger_that_changed_after_the_seal_is_refused(tmp_path: Path) -> None:
    """Which dates are usable is read from its counts, so they must be the sealed ones."""
    path = tmp_path / "c.zarr"
    small(path)
    counts = path / "__cubes__" / "valid.npz"
    with np.load(counts) as saved:
        changed = {name: saved[name] for name in saved.files}
    changed[S1] = changed[S1] * 0
    np.savez_compressed(counts, **changed)
    with pytest.raises(CubeError, match=r"c\.zarr.*valid\.npz changed after the cube was sealed"):
        plan(path, WINDOW)
