"""What makes a DataTree a cube: nothing is lost, moved or altered on the way through a store."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import odc.geo.xr  # noqa: F401  registers the accessor
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import cubes
from cubes import registry
from cubes.types import ArrayPlan, Axis, ClearPolicy, CubeError, Grid, Legend, Plan


def box(
    n: int = 64, x: float = 500000, y: float = 5600000, px: float = 10, crs: str = "EPSG:32631"
) -> GeoBox:
    return GeoBox((n, n), Affine(px, 0, x, 0, -px, y), crs)


def s2(where: GeoBox, dates: int = 3) -> xr.Dataset:
    rng = np.random.default_rng(0)
    values = rng.normal(0.2, 0.01, (dates, 1, *where.shape)).astype("float32")
    times = pd.date_range("2020-01-01", periods=dates, freq="10D").as_unit("ns")
    coords: dict[Any, Any] = dict(xr_coords(where))
    coords |= {"time": times, "band": ["B04"], "platform": ("time", ["sentinel-2a"] * dates)}
    return xr.Dataset({"reflectance": (("time", "band", "y", "x"), values)}, coords=coords)


def s1(where: GeoBox, dates: int = 3) -> xr.Dataset:
    rng = np.random.default_rng(1)
    values = rng.normal(-10, 1, (dates, 1, *where.shape)).astype("float32")
    times = pd.date_range("2020-01-02", periods=dates, freq="12D").as_unit("ns")
    coords: dict[Any, Any] = dict(xr_coords(where))
    coords |= {
        "time": times,
        "pol": ["vv"],
        "platform": ("time", ["sentinel-1a"] * dates),
        "relative_orbit": ("time", [88] * dates),
        "orbit_state": ("time", ["ascending"] * dates),
    }
    out = xr.Dataset({"backscatter": (("time", "pol", "y", "x"), values)}, coords=coords)
    out["backscatter"].attrs["calibration"] = "gamma0_rtc"
    return out


def tree(**groups: xr.Dataset) -> xr.DataTree:
    return xr.DataTree.from_dict(groups)


def test_a_cube_of_ones_own_passes_and_comes_back_as_it_went_in(tmp_path: Path) -> None:
    mine = tree(s1=s1(box()), s2=s2(box()))
    cubes.check(mine)
    report = cubes.write(mine, tmp_path / "a.zarr")
    assert (report.state, dict(report.clipped)) == ("sealed", {})
    back = cubes.open(tmp_path / "a.zarr", chunks=None)
    for group in ("s1", "s2"):
        for name, coord in mine[group].coords.items():
            xr.testing.assert_equal(back[group][name].drop_vars("spatial_ref"),
                                    coord.drop_vars("spatial_ref"))  # fmt: skip
    cubes.check(back)


# ----------------------------------------------------------------------------------------- grids


@pytest.mark.parametrize(
    "other",
    [
        box(x=900010, y=1000000, px=20),
        box(x=500010),
        box(x=500005),
        box(y=5600010),
        box(n=32),
        box(crs="EPSG:32632"),
    ],
    ids=["elsewhere", "shifted", "half a pixel", "north", "smaller", "zone"],
)
def test_groups_on_different_grids_are_refused(other: GeoBox, tmp_path: Path) -> None:
    mine = tree(s1=s1(box()), s2=s2(other))
    with pytest.raises(CubeError, match=r"'s2' lies on .* a cube has one grid"):
        cubes.check(mine)
    with pytest.raises(CubeError, match="one grid"):
        cubes.write(mine, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def _moved(data: xr.Dataset, dim: str) -> xr.Dataset:
    values = data[dim].to_numpy().copy()
    values[30:] += -5000 if dim == "y" else 5000
    return data.assign_coords({dim: values})


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: _moved(d, "y"), r"not evenly spaced along y: y\[\d+\]"),
        (lambda d: _moved(d, "x"), r"not evenly spaced along x: x\[\d+\]"),
        (lambda d: d.isel(x=slice(None, None, -1)), "runs westwards"),
        (lambda d: d.isel(y=slice(None, None, -1)), "not north up"),
        (lambda d: d.drop_vars("spatial_ref"), "lacks the coordinate spatial_ref"),
    ],
)
def test_a_grid_that_would_be_made_regular_is_refused(
    change: Callable[[xr.Dataset], xr.Dataset], word: str
) -> None:
    with pytest.raises(CubeError, match=word):
        cubes.check(tree(s2=change(s2(box()))))


def test_coordinates_may_miss_by_rounding() -> None:
    data = s2(box())
    cubes.check(tree(s1=s1(box()), s2=data.assign_coords(x=data.x + 1e-6)))


@pytest.mark.parametrize(
    "grid",
    [
        Grid(crs="EPSG:4326"),
        Grid(geobox=GeoBox((64, 64), Affine(2e-4, 0, 5, 0, -2e-4, 50), "EPSG:4326")),
        Grid(crs="EPSG:4258", resolution=0.0001, snap=None),
    ],
)
def test_grids_in_degrees_are_refused_with_the_zone(grid: Grid) -> None:
    request = cubes.Request.of((5.0, 50.0, 5.1, 50.1), "2020", grid=grid)
    with pytest.raises(CubeError, match=r"degrees .*metres.* EPSG:32631, the UTM zone"):
        request.geobox()
    with pytest.raises(CubeError, match="degrees"):
        request.plan()


def test_a_grid_without_a_crs_is_refused() -> None:
    nowhere = Grid(geobox=GeoBox((64, 64), Affine(10, 0, 0, 0, -10, 0), None))
    with pytest.raises(CubeError, match="has no CRS: give"):
        cubes.Request.of((5.0, 50.0, 5.1, 50.1), "2020", grid=nowhere).geobox()


def test_a_plan_in_degrees_is_never_sealed(tmp_path: Path) -> None:
    plan = Plan(
        geobox=GeoBox((64, 64), Affine(2e-4, 0, 5, 0, -2e-4, 50), "EPSG:4326"),
        axes=(Axis(group="s2", dim="time", coords={"time": ("2020-01-01",)}),),
        arrays=(ArrayPlan(layer=registry.layer("s2/scl"), steps=({"": ()},)),),
    )
    with pytest.raises(CubeError, match=r"lies in degrees .*EPSG:32631"):
        cubes.write(plan, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_a_tree_in_degrees_is_refused_with_the_zone() -> None:
    degrees = GeoBox((64, 64), Affine(2e-4, 0, 5, 0, -2e-4, 50), "EPSG:4326")
    data = s2(box()).drop_vars("spatial_ref")
    data = data.assign_coords(
        y=degrees.coordinates["latitude"].values, x=degrees.coordinates["longitude"].values
    ).odc.assign_crs("EPSG:4326")
    with pytest.raises(CubeError, match=r"'s2': the grid lies in degrees .*EPSG:32631"):
        cubes.check(tree(s2=data))


# ----------------------------------------------------------------------- what would have been lost


def _extra(data: xr.Dataset) -> xr.Dataset:
    shape = data["reflectance"].isel(band=0).shape
    return data.assign_coords(view_zenith=(("time", "y", "x"), np.ones(shape)))


@pytest.mark.parametrize(
    ("nodes", "word"),
    [
        (lambda d: {"s2": _extra(d)}, "'view_zenith' of 's2' has dims"),
        (lambda d: {"s2": d.assign_coords(note=("y", np.arange(64.0)))}, "'note' of 's2'"),
        (lambda d: {"s2": d.assign_coords(run=7)}, "'run' of 's2' has dims"),
        (lambda d: {"/": xr.Dataset({"mine": ("q", [1, 2])}), "s2": d}, "variable 'mine' stands"),
        (lambda d: {"/": xr.Dataset(coords={"run": 7}), "s2": d}, "coordinate 'run' stands"),
        (lambda d: {"s2": d, "s2/extra": xr.Dataset({"z": ("k", [1])})}, "'s2/extra' lies within"),
        (lambda d: {"s2": d.isel(time=[0, 1, 1, 2])}, "2020-01-11 00:00:00 more than once"),
        (lambda d: {"s2": d.isel(time=[1, 0, 2])}, "times of 's2' are not sorted"),
        (lambda d: {"s2": d.drop_vars("time")}, "lacks the coordinate 'time'"),
        (lambda d: {"s2": d.assign_coords(time=[0, 1, 2])}, "time of 's2' has dtype int64"),
        (lambda d: {"s2": d.drop_vars("band")}, "lacks the coordinate 'band'"),
        (lambda d: {"s2": d.isel(band=[0, 0])}, "a band more than once"),
        (lambda d: {"s2": d.assign_coords(platform=("band", ["a"]))}, "'platform' along 'time'"),
    ],
)
def test_what_a_store_cannot_keep_is_refused(nodes: Any, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        cubes.check(xr.DataTree.from_dict(nodes(s2(box()))))


def test_attributes_are_kept_or_refused(tmp_path: Path) -> None:
    data = s2(box())
    data["reflectance"].attrs |= {"gain": np.float32(2), "matrix": np.eye(2)}
    cubes.write(tree(s2=data), tmp_path / "a.zarr")
    attrs = cubes.open(tmp_path / "a.zarr")["s2"]["reflectance"].attrs
    assert (attrs["gain"], attrs["matrix"]) == (2, [[1, 0], [0, 1]])
    data["reflectance"].attrs["when"] = pd.Timestamp("2020")
    with pytest.raises(CubeError, match="attribute 'when' of 's2/reflectance' is a Timestamp"):
        cubes.check(tree(s2=data))


@pytest.mark.parametrize("chunks", [None, {"time": 1}])
@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda b: {"s2": s2(b).assign(reflectance=s2(b).reflectance * 10000)},
         "lie outside -0.0999 to 6.4535"),
        (lambda b: {"s1": s1(b).assign(backscatter=(10 ** (s1(b).backscatter / 10)).assign_attrs(
            calibration="gamma0_rtc"))}, "linear power"),
        (lambda b: {"s1": s1(b).assign(backscatter=(s1(b).backscatter - np.inf).assign_attrs(
            calibration="gamma0_rtc"))}, "set what is missing to NaN"),
    ],
    ids=["x 10,000", "linear power", "log of zero"],
)  # fmt: skip
def test_other_units_are_refused_and_never_clipped_in_silence(
    make: Any, word: str, chunks: Any, tmp_path: Path
) -> None:
    mine = xr.DataTree.from_dict(make(box()))
    if chunks is None:
        with pytest.raises(CubeError, match=word):
            cubes.write(mine, tmp_path / "a.zarr")
        return
    # dask arrays are not computed for a check: each region looks at its values as it is written
    mine = mine.chunk(chunks)
    cubes.check(mine)
    report = cubes.write(mine, tmp_path / "a.zarr")
    assert report.state == "partial"
    assert all(word in text for text in report.failed.values())


def test_units_that_contradict_the_row_are_refused() -> None:
    data = s1(box())
    data["backscatter"].attrs["units"] = "1"
    with pytest.raises(CubeError, match="units '1', must be 'dB'"):
        cubes.check(tree(s1=data))


def test_a_few_outliers_are_clipped_and_counted(tmp_path: Path) -> None:
    data = s2(box())
    values = data["reflectance"].to_numpy()
    values[0, 0, 3, :5] = 9.0
    values[1, 0, 0, 0] = -0.5
    values[2, 0, 0, 0] = -0.09995  # half a stored step: rounding
    report = cubes.write(tree(s2=data), tmp_path / "a.zarr")
    assert report.state == "sealed"
    assert dict(report.clipped) == {"s2/reflectance": 6}
    assert "6 numbers clipped" in str(report)
    again = cubes.open(tmp_path / "a.zarr", chunks=None)["s2"]["reflectance"]
    assert float(again[0, 0, 3, 0]) == pytest.approx(6.4535), "one pixel is read by itself"


# ------------------------------------------------------------------------------------ whose orbit


def _tracks(where: GeoBox) -> dict[str, Any]:
    return {
        "incidence": (("track", "y", "x"), np.full((2, *where.shape), 35, "float32")),
    }


TRACK = {
    "track": ["88A", "139D"],
    "track_relative_orbit": ("track", [88, 139]),
    "track_orbit_state": ("track", ["ascending", "descending"]),
}


@pytest.mark.parametrize("turn", [1, -1], ids=["time first", "track first"])
@pytest.mark.parametrize("both", [True, False], ids=["time and track", "track alone"])
def test_bare_names_belong_to_time_whatever_the_order(
    turn: int, both: bool, tmp_path: Path
) -> None:
    axes = (
        Axis(group="s1", dim="time", coords={
            "time": ("2020-01-02",), "relative_orbit": (88,), "orbit_state": ("ascending",),
            "platform": ("s1a",)}),
        Axis(group="s1", dim="track", coords={
            "track": ("88A", "139D"), "relative_orbit": (88, 139),
            "orbit_state": ("ascending", "descending")}),
    )[0 if both else 1:]  # fmt: skip
    arrays = (
        ArrayPlan(
            layer=registry.layer("s1/backscatter"),
            steps=({"vv": (), "vh": ()},),
            attrs={"calibration": "gamma0_rtc"},
        ),
        ArrayPlan(layer=registry.layer("s1/incidence"), steps=({"": ()}, {"": ()})),
    )[0 if both else 1 :]
    plan = Plan(geobox=box(), axes=axes[::turn], arrays=arrays[::turn])
    lazy = cubes.cube.open_plan(plan)
    cubes.write(plan, tmp_path / "a.zarr")
    stored = cubes.open(tmp_path / "a.zarr")
    cubes.write(stored, tmp_path / "b.zarr")
    for made in (lazy, stored, cubes.open(tmp_path / "b.zarr")):
        cubes.check(made)
        group = made["s1"].to_dataset()
        assert group["track_relative_orbit"].dims == ("track",)
        assert group["track_relative_orbit"].to_numpy().tolist() == [88, 139]
        assert ("relative_orbit" in group.coords) is both
        if both:
            assert group["relative_orbit"].dims == group["orbit_state"].dims == ("time",)
    again = cubes.load_plan(tmp_path / "b.zarr")
    track = next(a for a in again.axes if a.dim == "track")
    assert track.coords["relative_orbit"] == (88, 139)


@pytest.mark.parametrize(
    ("rename", "word"),
    [
        ({"track_relative_orbit": "relative_orbit", "relative_orbit": "time_relative_orbit"},
         "'relative_orbit' along 'time'"),
        ({"track_relative_orbit": "look"}, "'look' of 's1' lies along 'track'.*'track_look'"),
        ({"platform": "track_platform", "track_relative_orbit": "track_o"},
         "'track_platform' of 's1' lies along 'time'"),
    ],
)  # fmt: skip
def test_standard_coordinates_along_another_dimension_are_refused(
    rename: dict[str, str], word: str
) -> None:
    data = s1(box()).assign(_tracks(box())).assign_coords(TRACK)
    cubes.check(tree(s1=data))
    with pytest.raises(CubeError, match=word):
        cubes.check(tree(s1=data.rename(rename)))


def test_a_dataset_is_no_cube_and_is_told_how_to_become_one() -> None:
    data = s2(box())
    with pytest.raises(CubeError, match=r"DataTree of groups, not a Dataset: .*from_dict\(\{'s2'"):
        cubes.check(data)  # type: ignore[arg-type]
    cubes.check(xr.DataTree.from_dict({"s2": data}))


# ------------------------------------------------------------------------------- rows of one's own

ROWS = """
[legends.mine]
title = "Mine"
origin = "measured"
nodata = 0
[legends.mine.classes]
1 = ["a", "#112233"]
[legends.mine.remap.common]
1 = [1]
[layers."labels/mine"]
long_name = "mine"
dims = ["year", "y", "x"]
units = "1"
kind = "class"
work_dtype = "uint8"
work_nodata = 0
convert = "stored"
dtype = "uint8"
nodata = 0
kernel = "nearest"
resolution = 10
valid_range = [0, 1]
legend = "mine"
"""

STRANGER = """
import sys, cubes
for verb in (cubes.verify, cubes.open, cubes.plan):
    verb(sys.argv[1])
labels = cubes.open(sys.argv[1])["labels"]["mine"]
legend, = cubes.load_plan(sys.argv[1]).legends
print(labels.attrs["origin"], labels.attrs["legend"], legend.classes, legend.remap,
      float(cubes.valid(labels).mean()))
"""


def test_a_store_says_what_its_classes_are_in_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("layers", "legends"):
        monkeypatch.setitem(registry._rows._tables, kind, dict(registry._rows.table(kind)))
    (tmp_path / "mine.toml").write_text(ROWS)
    cubes.add(tmp_path / "mine.toml")
    codes = np.ones((1, 256, 256), "uint8")
    codes[:, :128] = 0
    labels = xr.Dataset(
        {"mine": (("year", "y", "x"), codes)}, coords={**xr_coords(box(256)), "year": [2020]}
    )
    path = tmp_path / "a.zarr"
    mine = tree(s2=s2(box(256), dates=2), labels=labels)
    assert cubes.write(mine, path).state == "sealed"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STRANGER, str(path)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "measured mine {1: ('a', '#112233')} {'common': {1: 1}} 0.5"


def test_plans_of_other_formats_are_refused_with_the_remedy() -> None:
    plan = Plan(
        geobox=box(),
        axes=(Axis(group="s2", dim="time", coords={"time": ("2020-01-01",)}),),
        arrays=(ArrayPlan(layer=registry.layer("s2/scl"), steps=({"": ()},)),),
        legends=(registry.legend("scl"), registry.legend("cdl")),
    )
    again = Plan.from_json(plan.to_json())
    assert again.legends == plan.legends
    assert again.sha256 == plan.sha256
    assert replace(plan, legends=()).sha256 != plan.sha256
    body = json.loads(plan.to_json())
    with pytest.raises(CubeError, match=r"format 1, from before .* make it again from its request"):
        Plan.from_json(json.dumps(body | {"format": 1}))
    with pytest.raises(CubeError, match="upgrade"):
        Plan.from_json(json.dumps(body | {"format": 99}))


# ----------------------------------------------------------------------------------- valid, clear


def test_valid_goes_by_what_an_array_says_and_never_by_its_name() -> None:
    scl = xr.DataArray(np.zeros((1, 4, 4), "uint8"), dims=("time", "y", "x"), name="scl")
    scl[0, 0] = 4
    for name in ("scl", "scl_2020", None):
        assert float(cubes.valid(scl.rename(name).assign_attrs(nodata=0)).mean()) == 0.25
        with pytest.raises(CubeError, match=r"does not say what its nodata is.*assign_attrs"):
            cubes.valid(scl.rename(name))
    assert bool(cubes.valid(scl.assign_attrs(nodata="none")).all())
    assert float(cubes.valid(scl.assign_attrs(_FillValue=np.uint8(4))).mean()) == 0.75
    assert bool(cubes.valid(scl.astype(bool)).all())
    assert not cubes.valid(scl.where(False)).any()


def test_valid_knows_rasterised_polygons() -> None:
    import geopandas as gpd
    import shapely

    classes = {1: ("a", "#111111")}
    legend = Legend(name="m2", title="m", origin="measured", nodata=0, classes=classes)
    left, _, _, top = box().boundingbox.bbox
    edge = shapely.box(left, box().boundingbox.bottom, left + 160, top)
    table = gpd.GeoDataFrame({"c": [1]}, geometry=[edge], crs="EPSG:32631")
    labels = cubes.rasterise(table, box(), column="c", legend=legend, year=2020)
    assert float(cubes.valid(labels).mean()) == 0.25


def test_a_nodata_that_contradicts_the_row_is_refused() -> None:
    scl = xr.DataArray(
        np.full((3, 64, 64), 4, "uint8"), dims=("time", "y", "x"), attrs={"nodata": 255}
    )
    with pytest.raises(CubeError, match="nodata=255, its row says 0"):
        cubes.check(tree(s2=s2(box()).assign(scl=scl)))


@pytest.mark.parametrize("dilate", [3, 63, 70, 200])
def test_clouds_may_grow_beyond_a_small_cube(dilate: int, tmp_path: Path) -> None:
    from cubes import physics

    source = np.full((64, 64), 4, "uint8")
    source[10, 20] = 9
    policy = ClearPolicy(dilate=dilate)
    data = s2(box(), dates=1).assign(
        scl=(("time", "y", "x"), source[None], {"nodata": 0})
    ).drop_vars("reflectance")  # fmt: skip
    cubes.write(tree(s2=data), tmp_path / "a.zarr")
    plan = replace(cubes.load_plan(tmp_path / "a.zarr"), clear=policy)
    clear = ArrayPlan(layer=registry.layer("s2/clear"), steps=())
    with pytest.MonkeyPatch.context() as patch:
        import dask.array as da

        patch.setattr(cubes.cube, "lazy", lambda *_, **__: da.from_array(source[None, None], 32))
        lazy = cubes.cube.open_plan(replace(plan, arrays=(*plan.arrays, clear)))
    got = lazy["s2"]["clear"].to_numpy()[0]
    np.testing.assert_array_equal(got, physics.clear(source, policy))
    assert got.any() == (dilate < 68)  # pixels to the farthest corner


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"dilate": -1}, "dilate is -1"),
        ({"dilate": 1.5}, "dilate is 1.5"),
        ({"classes": (0, 4)}, "holds 0"),
        ({"classes": (400,)}, "holds 400"),
    ],
)
def test_impossible_policies_are_refused(options: dict[str, Any], word: str) -> None:
    with pytest.raises(CubeError, match=word):
        ClearPolicy(**options)
