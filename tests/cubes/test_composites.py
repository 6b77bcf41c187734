"""Composites and masks against brute force on a small cube, whatever its chunks."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from scipy.ndimage import distance_transform_edt

import cubes
from cubes.optical import composites
from cubes.optical.composites import BestPixel
from cubes.types import ClearPolicy

SIZE = 40
TIMES = np.array(
    ["2021-04-20", "2021-05-02", "2021-05-12", "2021-05-22", "2021-06-01", "2021-07-15"],
    "datetime64[ns]",
)
BANDS = ["B04", "B08"]


def _cube(chunks: dict[str, int] | None = None) -> xr.DataTree:
    rng = np.random.default_rng(11)
    box = GeoBox((SIZE, SIZE), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32631")
    n = len(TIMES)
    reflectance = rng.uniform(0.01, 0.6, (n, 2, SIZE, SIZE)).astype("float32")
    reflectance[1, :, :, :9] = np.nan  # edge of a swath
    reflectance[3, 1, 5, 5] = np.nan  # one band of one pixel
    reflectance[:, :, 0, 0] = np.nan  # never seen
    scl = rng.choice([4, 5, 8, 9], (n, SIZE, SIZE), p=[0.5, 0.3, 0.1, 0.1]).astype("uint8")
    scl[:, 20:24, 20:24] = 9  # always cloudy
    scl[1, :, :9] = 0
    backscatter = rng.normal(-12, 3, (n, 1, SIZE, SIZE)).astype("float32")
    backscatter[0, :, :7] = np.nan
    coords = {**xr_coords(box), "time": TIMES}
    s2 = xr.Dataset(
        {
            "reflectance": (("time", "band", "y", "x"), reflectance, {"units": "1"}),
            "scl": (("time", "y", "x"), scl),
            "clear": (("time", "y", "x"), np.isin(scl, [4, 5])),
        },
        coords={**coords, "band": BANDS, "platform": ("time", ["sentinel-2a"] * n)},
    )
    s1 = xr.Dataset(
        {"backscatter": (("time", "pol", "y", "x"), backscatter, {"units": "dB"})},
        coords={**coords, "pol": ["vv"]},
    )
    tree = xr.DataTree.from_dict({"s2": s2, "s1": s1})
    return tree.chunk(chunks) if chunks else tree


CHUNKS = [None, {"time": 1, "y": 17, "x": 13}, {"time": 4, "y": 40, "x": 40}]


@pytest.fixture(scope="module")
def cube() -> xr.DataTree:
    return _cube()


def _numbers(cube: xr.DataTree) -> tuple[np.ndarray, np.ndarray]:
    """Return reflectance (time, band, y, x) and where it is clear with all bands valid."""
    values = cube["s2/reflectance"].to_numpy()
    good = cube["s2/clear"].to_numpy() & ~np.isnan(values).any(1)
    return values, good


@pytest.mark.parametrize("chunks", CHUNKS)
def test_median_equals_nanmedian(chunks) -> None:
    cube = _cube(chunks)
    out = composites.median(cube)
    assert out["reflectance"].chunks is not None
    values, good = _numbers(cube)
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning, match="All-NaN"):
        expected = np.nanmedian(np.where(good[:, None], values, np.nan), axis=0)
    np.testing.assert_allclose(out["reflectance"], expected, atol=1e-7)
    np.testing.assert_array_equal(out["observations"], good.sum(0))
    assert out["reflectance"].dtype == np.float32
    assert out["reflectance"].dims == ("band", "y", "x")
    assert np.isnan(out["reflectance"][:, 20:24, 20:24]).all()


def test_median_of_backscatter_is_of_power(cube: xr.DataTree) -> None:
    out = composites.median(cube, layer="s1/backscatter")
    power = 10 ** (cube["s1/backscatter"].to_numpy().astype(float) / 10)
    # an even count: the mean of the two middle powers, not of their dB
    np.testing.assert_allclose(out["backscatter"], 10 * np.log10(np.nanmedian(power, 0)), atol=1e-4)
    assert float(abs(out["backscatter"] - cube["s1/backscatter"].median("time")).max()) > 0.05
    assert out.attrs["mask"] == "none"


def test_median_by_period(cube: xr.DataTree) -> None:
    out = composites.median(cube, every="1MS")
    assert out["reflectance"].dims == ("time", "band", "y", "x")
    starts = pd.DatetimeIndex(out["time"].to_numpy())
    assert starts.strftime("%Y-%m").tolist() == ["2021-04", "2021-05", "2021-06", "2021-07"]
    may = composites.median(
        xr.DataTree.from_dict({"s2": cube["s2"].to_dataset().isel(time=slice(1, 4))})
    )
    np.testing.assert_array_equal(out["reflectance"][1], may["reflectance"])
    empty = composites.median(cube, every="10D")
    assert np.isnan(empty["reflectance"].sel(time="2021-06-09")).all()
    assert (empty["observations"].sel(time="2021-06-09") == 0).all()
    with pytest.raises(cubes.CubeError, match="'xyz' is no period"):
        composites.median(cube, every="xyz")


def _brute(
    values: np.ndarray, good: np.ndarray, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return by loops the values and places of the best of the good dates."""
    out = np.full(values.shape[1:], np.nan, "float32")
    place = np.full(good.shape[1:], -1)
    for y, x in np.ndindex(good.shape[1:]):
        dates = [t for t in range(len(values)) if good[t, y, x]]
        if dates:
            best = max(dates, key=lambda t: (score[t, y, x], -t))
            out[:, y, x], place[y, x] = values[best, :, y, x], best
    return out, place


@pytest.mark.parametrize("chunks", CHUNKS)
def test_nearest_equals_a_loop(chunks) -> None:
    cube = _cube(chunks)
    out = composites.nearest(cube, "2021-05-17")
    values, good = _numbers(cube)
    days = (TIMES - np.datetime64("2021-05-17")) / np.timedelta64(1, "D")
    # 12 and 22 May are equally far: the earlier one
    expected, place = _brute(values, good, np.broadcast_to(-abs(days)[:, None, None], good.shape))
    np.testing.assert_array_equal(out["reflectance"], expected)
    np.testing.assert_array_equal(out["day"], np.where(place < 0, np.nan, days[place]))
    assert "score" not in out
    assert set(np.unique(place)) >= {-1, 2, 3}


def test_nearest_within_a_gap(cube: xr.DataTree) -> None:
    out = composites.nearest(cube, "2021-05-17", max_gap="6D")
    assert float(abs(out["day"]).max()) == 5
    wide = composites.nearest(cube, "2021-05-17")
    assert np.isnan(out["day"]).sum() > np.isnan(wide["day"]).sum()
    with pytest.raises(cubes.CubeError, match="no date of s2/reflectance lies within 3D"):
        composites.nearest(cube, "2021-05-17", max_gap="3D")


@pytest.mark.parametrize("chunks", CHUNKS)
def test_best_equals_a_loop(chunks) -> None:
    cube = _cube(chunks)
    policy = BestPixel(distance=60, days=20, cloud_weight=2, day_weight=1)
    out = composites.best(cube, "2021-05-17", policy=policy)
    values, good = _numbers(cube)
    valid = ~np.isnan(values).any(1)
    cloudy = ~cube["s2/clear"].to_numpy() & valid
    away = np.stack([np.minimum(distance_transform_edt(~c), 6) for c in cloudy])
    days = (TIMES - np.datetime64("2021-05-17")) / np.timedelta64(1, "D")
    gauss = np.exp(-0.5 * (days / 20) ** 2)[:, None, None]
    score = (2 / (1 + np.exp(-10 * (away / 6 - 0.5))) + gauss) / 3
    expected, place = _brute(values, good, score.astype("float32"))
    got = np.where(place < 0, np.nan, np.take_along_axis(score, np.maximum(place, 0)[None], 0)[0])
    np.testing.assert_allclose(out["score"], got, atol=1e-6)
    same = (out["reflectance"].to_numpy() == expected) | np.isnan(expected)
    assert same.mean() > 0.999  # float32 ties between dates may fall either way
    assert np.isnan(out["reflectance"].to_numpy()[:, place < 0]).all()
    # nodata is not cloud: the swath's edge at column 9 has no penalty of its own
    assert valid[1, 1, 9]


def test_a_composite_says_what_was_done(cube: xr.DataTree) -> None:
    out = composites.best(cube, "2021-05-17", mask=ClearPolicy(classes=(4,), dilate=1))
    attrs = out["reflectance"].attrs
    assert attrs["composite"] == "best pixel around 2021-05-17"
    assert attrs["mask"] == "classes 4; dilated by 1 px"
    assert "cloud_weight=1.0" in attrs["policy"]
    assert (attrs["dates"], attrs["first_date"], attrs["last_date"]) == (
        6, "2021-04-20", "2021-07-15",
    )  # fmt: skip
    assert attrs["units"] == "1"
    assert out.odc.geobox == cube["s2"].to_dataset().odc.geobox
    assert composites.median(cube).attrs["mask"] == "the cube's clear"


@pytest.mark.parametrize("chunks", CHUNKS)
def test_a_policy_is_that_of_opening(chunks) -> None:
    from cubes import physics

    cube, policy = _cube(chunks), ClearPolicy(classes=(4, 5), dilate=3)
    mask = composites.usable(cube, policy)
    np.testing.assert_array_equal(mask, physics.clear(_cube()["s2/scl"].to_numpy(), policy))


@pytest.mark.parametrize("chunks", CHUNKS)
def test_dilation_is_a_disc_whatever_the_chunks(chunks) -> None:
    cube = _cube(chunks)
    grown = composites.dilate(cube["s2/clear"], 4)
    clear = _cube()["s2/clear"].to_numpy()
    y, x = np.mgrid[:SIZE, :SIZE]
    expected = clear[0].copy()
    for i, j in np.argwhere(~clear[0]):
        expected &= (y - i) ** 2 + (x - j) ** 2 > 16
    np.testing.assert_array_equal(grown[0], expected)
    np.testing.assert_array_equal(composites.dilate(cube["s2/clear"], 0), clear)
    assert grown.chunks == (cube["s2/clear"].chunks or grown.chunks)


def test_own_masks_are_used_and_checked(cube: xr.DataTree) -> None:
    mask = xr.zeros_like(cube["s2/clear"])
    mask[3] = True
    out = composites.median(cube, mask=mask)
    values = cube["s2/reflectance"].to_numpy()[3]
    np.testing.assert_array_equal(
        out["reflectance"], np.where(np.isnan(values).any(0), np.nan, values)
    )
    assert out.attrs["mask"] == "supplied by the user"
    still = composites.median(cube, mask=mask[3].drop_vars("time"))
    assert int(still["observations"].max()) == 6
    with pytest.raises(cubes.CubeError, match="dtype float64"):
        composites.median(cube, mask=mask.astype(float))
    with pytest.raises(cubes.CubeError, match="another time"):
        composites.median(cube, mask=mask.isel(time=slice(3)))
    with pytest.raises(cubes.CubeError, match="another x"):
        composites.median(cube, mask=mask.assign_coords(x=mask["x"] + 10))
    with pytest.raises(cubes.CubeError, match="not a str"):
        composites.median(cube, mask="clear")


def test_what_is_refused(cube: xr.DataTree) -> None:
    with pytest.raises(cubes.CubeError, match=r"no layer 'insar/coherence'.*s2/reflectance"):
        composites.median(cube, layer="insar/coherence")
    with pytest.raises(cubes.CubeError, match="is class along time"):
        composites.median(cube, layer="s2/scl")
    bare = xr.DataTree.from_dict({"s2": cube["s2"].to_dataset().drop_vars("scl")})
    with pytest.raises(cubes.CubeError, match="needs the layer s2/scl"):
        composites.median(bare, mask=ClearPolicy())
    with pytest.raises(cubes.CubeError, match="above 0"):
        composites.best(cube, "2021-05-17", policy=BestPixel(days=0))


def test_blocks_stay_in_bounds(cube: xr.DataTree, monkeypatch) -> None:
    monkeypatch.setattr(composites, "BLOCK_BYTES", 6 * 2 * 20 * 20 * 4)
    out = composites.median(cube)
    assert max(out["reflectance"].data.chunks[-1]) <= 32
    assert out["reflectance"].equals(composites.median(_cube(CHUNKS[1]))["reflectance"])


@pytest.mark.parametrize("function", [composites.nearest, composites.best])
def test_dates_may_have_a_zone_and_must_be_dates(function) -> None:
    cube = _cube()
    plain, zoned = (function(cube, d) for d in ("2021-05-12 10:00", "2021-05-12T12:00+02:00"))
    xr.testing.assert_equal(plain.load(), zoned.load())
    for wrong in ("next week", None):
        with pytest.raises(cubes.CubeError, match=r"cannot read .* as a Timestamp"):
            function(cube, wrong)


@pytest.mark.parametrize("chunks", [None, {"time": 1, "y": 7, "x": 9}])
def test_masks_grow_as_policies_do(chunks) -> None:
    """What is missing is no cloud: it grows in neither where it is told apart."""
    rng = np.random.default_rng(5)
    codes = np.where(rng.random((2, 40, 50)) < 0.02, 9, 4).astype("uint8")
    codes[:, :, :12] = 0
    scl = xr.DataArray(codes, dims=("time", "y", "x"), attrs={"nodata": 0})
    scl = scl if chunks is None else scl.chunk(chunks)
    policy = cubes.ClearPolicy(dilate=3)
    plain = composites.clear_of(scl, cubes.ClearPolicy())
    by_policy = composites.clear_of(scl, policy)
    grown = composites.dilate(plain, 3, valid=cubes.valid(scl))
    np.testing.assert_array_equal(grown, by_policy)
    assert by_policy[:, :, 12].any()
    assert not composites.dilate(plain, 3)[:, :, 12].any()  # a mask alone cannot know
    with pytest.raises(cubes.CubeError, match="must be bool"):
        composites.dilate(plain, 3, valid=scl)
    with pytest.raises(cubes.CubeError, match="another y"):
        composites.dilate(plain, 3, valid=cubes.valid(scl)[:, 1:])


def test_a_gap_must_be_a_length_of_time() -> None:
    with pytest.raises(cubes.CubeError, match="'a month' as a Timedelta; give one such as '30D'"):
        composites.nearest(_cube(), "2021-05-12", max_gap="a month")
    with pytest.raises(cubes.CubeError, match=r"cannot dilate by 1\.5 pixels"):
        composites.dilate(_cube()["s2"].to_dataset()["clear"], 1.5)


@pytest.mark.parametrize(
    ("aim", "picked", "days"),
    [
        ("2021-06-15", 1, 0),
        (np.datetime64("2021-06-15"), 1, 0),
        (date(2021, 6, 15), 1, 0),
        (datetime(2021, 6, 15), 1, 0),
        ("2021-06-15T00:00:00", 0, -100 / 1440),
        ("2021-06-16", 1, -1),
        ("2021-06-14", 0, 0),
        ("2021-06-15T23:00:00+02:00", 1, 80 / 1440),
    ],
)
def test_a_date_means_all_of_its_day(aim: Any, picked: int, days: float) -> None:
    """Two passes at 22:20: midnight of the 15th is 100 minutes after the first."""
    times = np.array(["2021-06-14T22:20", "2021-06-15T22:20", "2021-07-15"], "datetime64[ns]")
    group = _cube()["s2"].to_dataset().isel(time=[0, 2, 4]).assign_coords(time=times)
    group["clear"][:] = True
    cube = xr.DataTree.from_dict({"s2": group})
    out = composites.nearest(cube, aim)
    pixel = {"y": 30, "x": 30}
    assert float(out["day"].isel(pixel)) == pytest.approx(days, abs=1e-6)
    np.testing.assert_array_equal(
        out["reflectance"].isel(pixel), group["reflectance"].isel(time=picked, **pixel)
    )
    best = composites.best(cube, aim, policy=BestPixel(cloud_weight=0))
    assert float(best["day"].isel(pixel)) == pytest.approx(days, abs=1e-6)
