"""NBAR: kernels and c-factors against an independent implementation, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import cubes
from cubes.optical import nbar
from cubes.optical.nbar import Angles

# sen2nbar 2024.6.0, kernels.py and axioms.py, computed once: (band, sun zenith, view zenith,
# relative azimuth) -> c-factor
REFERENCE = {
    ("B02", 30, 8, 0): 0.95822151,
    ("B04", 30, 8, 0): 0.956713507,
    ("B05", 30, 8, 180): 1.043411584,
    ("B08", 30, 8, 180): 1.043497779,
    ("B12", 55, 11, 30): 0.954188007,
    ("B04", 65, 10.5, 145): 1.041675625,
    ("B08", 20, 5, 90): 1.001958455,
}


@pytest.mark.parametrize("case", REFERENCE, ids=str)
def test_c_factors_are_those_of_sen2nbar(case) -> None:
    assert nbar.c_factor(*case) == pytest.approx(REFERENCE[case], abs=1e-8)


def test_kernels_vanish_at_nadir_and_c_is_one_there() -> None:
    assert nbar.ross_thick(0, 0, 0) == pytest.approx(0, abs=1e-15)
    assert nbar.li_sparse(0, 0, 0) == pytest.approx(0, abs=1e-15)
    for band in nbar.COEFFICIENTS:
        assert nbar.c_factor(band, 48.0, 0.0, 77.0) == pytest.approx(1, abs=1e-15)


def test_li_sparse_is_reciprocal() -> None:
    sun, view, azimuth = np.meshgrid([5.0, 30, 60], [2.0, 12, 40], [0.0, 45, 180])
    np.testing.assert_allclose(
        nbar.li_sparse(sun, view, azimuth), nbar.li_sparse(view, sun, azimuth), atol=1e-12
    )


def _cube(**coords) -> xr.DataTree:
    box = GeoBox((6, 8), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32631")
    values = np.random.default_rng(1).uniform(0, 0.5, (2, 2, 6, 8)).astype("float32")
    values[0, 0, 0, 0] = np.nan
    times = np.array(["2021-05-02", "2021-05-05"], "datetime64[ns]")
    known = {
        "sun_azimuth": [150.0, 155], "sun_elevation": [55.0, 57],
        "view_azimuth": [105.0, 285], "view_incidence": [8.0, 8.5], **coords,
    }  # fmt: skip
    data = xr.Dataset(
        {"reflectance": (("time", "band", "y", "x"), values, {"units": "1"})},
        coords={
            **xr_coords(box), "time": times, "band": ["B04", "B8A"],
            **{k: ("time", v) for k, v in known.items() if v is not None},
        },
    )  # fmt: skip
    return xr.DataTree.from_dict({"s2": data})


def test_stored_angles_are_applied_by_date_and_band() -> None:
    cube = _cube()
    for source in (cube, cube.chunk({"time": 1, "y": 4})):
        out = nbar.nbar(source)
        assert out.dims == ("time", "band", "y", "x")
        assert out.dtype == np.float32
        for t, (sun, view, azimuth) in enumerate([(35, 8, 45), (33, 8.5, -130)]):
            for b, band in enumerate(("B04", "B08")):
                factor = nbar.c_factor(band, sun, view, azimuth)
                expected = cube["s2/reflectance"].to_numpy()[t, b] * factor
                np.testing.assert_allclose(out[t, b], expected, rtol=1e-6)
        assert np.isnan(out[0, 0, 0, 0])
    assert "mean angles of each date" in out.attrs["nbar"]
    assert out.attrs["units"] == "1"
    # toward the sun a scene is brighter than at nadir, away from it darker
    assert float(out[0, 0, 1, 1]) < float(cube["s2/reflectance"][0, 0, 1, 1])
    assert float(out[1, 0, 1, 1]) > float(cube["s2/reflectance"][1, 0, 1, 1])


def test_own_angles_may_lie_on_the_grid() -> None:
    cube = _cube(view_azimuth=[np.nan, np.nan])
    view = xr.DataArray(np.linspace(0, 11, 8), dims="x")
    out = nbar.nbar(
        cube, angles=Angles(sun_zenith=40, sun_azimuth=150, view_zenith=view, view_azimuth=105)
    )
    ratio = (out / cube["s2/reflectance"])[1, 0, 2]
    np.testing.assert_allclose(ratio, nbar.c_factor("B04", 40, view, 45), rtol=1e-6)
    assert "supplied by the user" in out.attrs["nbar"]


def test_missing_angles_are_refused_not_guessed() -> None:
    with pytest.raises(cubes.CubeError, match=r"view_incidence is unknown for 1 of 2 .*2021-05-05"):
        nbar.nbar(_cube(view_incidence=[8.0, np.nan]))
    with pytest.raises(cubes.CubeError, match="lacks the coordinates view_azimuth"):
        nbar.nbar(_cube(view_azimuth=None))
    with pytest.raises(cubes.CubeError, match="sun_zenith reaches 95"):
        nbar.nbar(_cube(sun_elevation=[55.0, -5]))
    three = xr.DataArray([1.0, 2, 3], dims="time")
    wrong = Angles(sun_zenith=three, sun_azimuth=0, view_zenith=0, view_azimuth=0)
    with pytest.raises(cubes.CubeError, match="3 values along 'time'"):
        nbar.nbar(_cube(), angles=wrong)


def test_bands_without_coefficients_are_handed_on_and_named() -> None:
    """All of a cube's bands come back, so that the result fits where the reflectance was."""
    cube = _cube()
    whole = nbar.nbar(cube)
    assert "nbar_unadjusted" not in whole.attrs
    data = cube["s2"].to_dataset()
    bands = data.band.to_numpy().tolist()
    mixed = data.assign_coords(band=["B01", *bands[1:]])
    out = nbar.nbar(xr.DataTree.from_dict({"s2": mixed}))
    assert out.dims == data.reflectance.dims
    assert out.band.to_numpy().tolist() == ["B01", *bands[1:]]
    assert out.attrs["nbar_unadjusted"] == "B01"
    np.testing.assert_array_equal(out[:, 0], mixed.reflectance[:, 0])
    np.testing.assert_array_equal(out[:, 1:], whole[:, 1:])
    assert not np.allclose(whole[:, 1:], data.reflectance[:, 1:])


def test_bands_without_coefficients_and_second_helpings_are_refused() -> None:
    cube = _cube()
    data = cube["s2"].to_dataset().assign_coords(band=["B01", "B09"])
    with pytest.raises(cubes.CubeError, match=r"no published c-factor coefficients for B01, B09"):
        nbar.nbar(xr.DataTree.from_dict({"s2": data}))
    with pytest.raises(cubes.CubeError, match=r"no published c-factor coefficients for band 'B01'"):
        nbar.c_factor("B01", 30, 5, 0)
    twice = cube["s2"].to_dataset().assign(reflectance=nbar.nbar(cube))
    with pytest.raises(cubes.CubeError, match="adjusted already"):
        nbar.nbar(xr.DataTree.from_dict({"s2": twice}))
    with pytest.raises(cubes.CubeError, match="no layer 's2/reflectance'"):
        nbar.nbar(xr.DataTree())


@pytest.mark.real
def test_real_items_give_factors_near_one(real) -> None:
    import json

    names = ("view:sun_elevation", "view:sun_azimuth", "view:incidence_angle", "view:azimuth")
    seen = []
    for path in sorted(real.rglob("*.json")):
        body = json.loads(path.read_text(encoding="utf-8"))
        for item in body.get("features", [body]) if isinstance(body, dict) else []:
            known = item.get("properties", {})
            if known.get("constellation") != "sentinel-2" or not all(known.get(n) for n in names):
                continue
            elevation, sun, view, azimuth = (known[n] for n in names)
            assert 0 < view < 13, path  # the swath of Sentinel-2 is 20.6 degrees wide
            seen.append(float(nbar.c_factor("B08", 90 - elevation, view, sun - azimuth)))
    assert len(seen) >= 10
    # Roy et al. (2017) report differences of some per cent between the edges of a swath
    assert 0.9 < min(seen) < 1 < max(seen) < 1.1


def test_angles_of_other_times_are_refused_and_lose_no_date() -> None:
    cube = _cube()
    times = cube["s2"].to_dataset().time + np.timedelta64(1, "D")
    sun = xr.DataArray([35.0, 33], dims="time", coords={"time": times.to_numpy()})
    angles = Angles(sun_zenith=sun, sun_azimuth=150, view_zenith=8, view_azimuth=105)
    with pytest.raises(cubes.CubeError, match="angles lie on another 'time'"):
        nbar.nbar(cube, angles=angles)
