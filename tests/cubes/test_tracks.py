"""Incidence at a zone's edge against ECEF, kinds of layover and shadow, margins, static layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr, xr_coords
from pyproj import Transformer

import cubes
from cubes.radar import geometry
from cubes.radar.geometry import Look
from cubes.radar.tracks import track_geometry
from cubes.types import CubeError

# ------------------------------------------------------------------------------- convergence

EDGES = [
    # west and east of the central meridian, both hemispheres: convergence of either sign
    ("EPSG:32631", 240_000, 5_600_000),
    ("EPSG:32631", 760_000, 5_600_000),
    ("EPSG:32731", 240_000, 4_400_000),
    ("EPSG:32731", 760_000, 4_400_000),
]


def hilly(
    crs: str, left: float, top: float, dtype: str = "float64", size: int = 40
) -> xr.DataArray:
    box = GeoBox((size, size), Affine(10, 0, left, 0, -10, top), crs)
    y, x = np.indices(box.shape.yx, dtype=np.float64)
    heights = 800 + 4.1 * x - 2.3 * y + 20 * np.sin(x / 7 + y / 11)
    return wrap_xr(heights.astype(dtype), box)


def ecef_incidence(dem: xr.DataArray, theta: float, azimuth: float) -> np.ndarray:
    """Return the angle between surface and look in geocentric coordinates, by PROJ alone."""
    to_degrees = Transformer.from_crs(dem.odc.crs.proj, "EPSG:4979", always_xy=True)
    to_earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    x, y = np.meshgrid(dem.x.to_numpy(), dem.y.to_numpy())
    lon, lat = to_degrees.transform(x, y)[:2]
    points = np.stack(to_earth.transform(lon, lat, dem.to_numpy()))
    # rows run south: east x north is up
    east, south = points[:, :, 2:] - points[:, :, :-2], points[:, 2:] - points[:, :-2]
    normal = np.cross(east[:, 1:-1], -south[:, :, 1:-1], axis=0)
    normal /= np.linalg.norm(normal, axis=0)
    lon, lat = (np.deg2rad(v[1:-1, 1:-1]) for v in (lon, lat))
    zero = np.zeros_like(lon)
    e = np.stack([-np.sin(lon), np.cos(lon), zero])
    n = np.stack([-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)])
    u = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])
    t, b = np.deg2rad(theta), np.deg2rad(azimuth)
    look = np.sin(t) * (np.sin(b) * e + np.cos(b) * n) + np.cos(t) * u
    return np.asarray(np.rad2deg(np.arccos((normal * look).sum(0))))


@pytest.mark.parametrize("heading", [-13.0, 193.0])
@pytest.mark.parametrize(("crs", "left", "top"), EDGES)
def test_incidence_at_a_zone_s_edge_is_that_of_the_earth(
    crs: str, left: float, top: float, heading: float, figure
) -> None:
    dem = hilly(crs, left, top)
    turn = float(geometry.convergence(dem.odc.geobox).mean())
    assert 2 < abs(turn) < 3.2
    found = geometry.local_incidence(dem, Look.from_angles(36.0, heading), smooth=0)
    wanted = ecef_incidence(dem, 36.0, heading - 90)
    off = float(np.abs(found[1:-1, 1:-1] - wanted).max())
    # what is left is the projection's scale, 1.0004 at the edge; no turn would be off by 0.5 and
    # more, a turn the wrong way by twice that
    figure(f"local incidence off ECEF, {crs} {left}, heading {heading}", off, "0.02")
    assert off < 0.02


@pytest.mark.parametrize(("crs", "left", "top"), EDGES)
def test_vector_and_angle_form_agree_through_the_public_functions(
    crs: str, left: float, top: float, figure
) -> None:
    dem = hilly(crs, left, top)
    dem[5:9, 5:9] = 800.0  # level ground has no aspect
    vector = geometry.local_incidence(dem, Look.from_angles(36.0, 193.0), smooth=0)
    slope, aspect = geometry.slope_aspect(dem)
    assert np.isnan(aspect[6, 6])
    angles = geometry.local_incidence_from_angles(36.0, 193.0 - 90, slope, aspect)
    off = float(np.abs(vector - angles).max())
    figure(f"vector and angle form, degrees, {crs} {left}", off, "1e-9")
    assert off < 1e-9
    assert vector.dtype == slope.dtype == np.float64
    assert geometry.slope_aspect(dem.astype("float32"))[0].dtype == np.float32


# ---------------------------------------------------------------------- layover and shadow

BOX = GeoBox((41, 201), Affine(10, 0, 499_000, 0, -10, 5_000_200), "EPSG:32631")
WEST = Look.from_angles(36.0, 0.0)
"""From the west, on the central meridian: along the rows."""


def profile(points: list[tuple[float, float]], box: GeoBox = BOX) -> xr.DataArray:
    """Return a terrain that runs along x through (metres, height) and does not change along y."""
    x = np.arange(box.shape.x) * 10.0
    line = np.interp(x, *zip(*points, strict=True))
    return wrap_xr(np.tile(line, (box.shape.y, 1)).astype("float32"), box)


def brute(heights: np.ndarray, theta: float) -> np.ndarray:
    """Return the codes of a profile seen from its left, pair by pair of its points."""
    t, n = np.deg2rad(theta), len(heights)
    x = np.arange(n) * 10.0
    out = np.zeros(n, np.uint8)
    toward = np.array([-np.sin(t), np.cos(t)])
    for i in range(n):
        for j in range(n):
            gap = np.array([x[j] - x[i], heights[j] - heights[i]])
            closer = gap @ toward  # how much nearer to the sensor j is
            if (j < i and closer <= 1e-9) or (j > i and closer >= -1e-9):
                out[i] |= geometry.LAYOVER
            # is j above the line from i to the sensor?
            if j < i and gap[1] > (x[i] - x[j]) / np.tan(t) + 1e-9:
                out[i] |= geometry.SHADOW
        if 0 < i < n - 1:
            rise = heights[i + 1] - heights[i - 1]
            if out[i] & geometry.LAYOVER and rise > 20 * np.tan(t) + 1e-9:
                out[i] |= geometry.ACTIVE_LAYOVER
            if out[i] & geometry.SHADOW and -rise > 20 / np.tan(t) + 1e-9:
                out[i] |= geometry.ACTIVE_SHADOW
    return out


# a ridge with a dark back, and a wall facing the sensor right behind it: its foot is both
GORGE = [(0, 0), (500, 0), (700, 190), (760, 0), (800, 0), (860, 160), (1200, 160), (2000, 160)]


# a gentle ridge with a steep back: its shadow falls on ground that nothing covers
LONE = [(0, 0), (500, 0), (900, 150), (920, 0), (2000, 0)]


@pytest.mark.parametrize(("points", "has"), [(GORGE, {0, 2, 3, 6, 9, 11}), (LONE, {0, 1, 9})])
def test_codes_are_those_of_pairs_of_points(points: list, has: set[int]) -> None:
    for one in (points, [(2000 - x, z) for x, z in points[::-1]]):
        dem = profile(one)
        codes = geometry.layover_shadow(dem, WEST, kinds=True)[20].to_numpy()
        np.testing.assert_array_equal(codes, brute(dem[20].to_numpy().astype(float), 36.0))
        assert set(np.unique(codes)) >= (has if one is points else {0})


def test_active_and_passive_layover_and_shadow_are_told_apart() -> None:
    dem = profile(GORGE)
    codes = geometry.layover_shadow(dem, WEST, kinds=True)[20].to_numpy()
    assert (codes[[63, 65]] == 6).all(), "the front of the ridge: active layover"
    assert (codes[[72, 74]] & 9 == 9).all(), "its back: active shadow"
    assert codes[78] == geometry.BOTH, "between: dark, and laid over by the wall behind"
    assert (codes[[81, 83]] & 6 == 6).all(), "the wall"
    assert "8 active shadow" in geometry.layover_shadow(dem, WEST, kinds=True).attrs["long_name"]
    plain = geometry.layover_shadow(dem, WEST)[20].to_numpy()
    np.testing.assert_array_equal(plain, codes & 3)
    assert (plain[[75, 78, 79]] == geometry.BOTH).all(), "the one does not hide the other"


@pytest.mark.parametrize("heading", [0.0, 60.0, 193.0])
def test_south_up_models_give_the_same_ground(heading: float) -> None:
    rng = np.random.default_rng(2)
    y, x = np.indices((90, 90)) * 10.0
    box = GeoBox((90, 90), Affine(10, 0, 499_000, 0, -10, 5_000_450), "EPSG:32631")
    cone = np.clip(300 - np.hypot(x - 450, y - 300) * 1.3, 0, None) + rng.normal(0, 0.1, (90, 90))
    dem = wrap_xr(cone, box)
    look = Look.from_angles(36.0, heading)
    wanted = geometry.layover_shadow(dem, look, kinds=True)
    assert set(np.unique(wanted)) >= {0, 2, 6}
    for turned in (dem[::-1], dem[:, ::-1], dem[::-1, ::-1]):
        found = geometry.layover_shadow(turned, look, kinds=True)
        np.testing.assert_array_equal(found.y, turned.y)
        same = found.sortby("y", ascending=False).sortby("x")
        np.testing.assert_array_equal(same, wanted)
        angle = geometry.local_incidence(turned, look).sortby("y", ascending=False).sortby("x")
        np.testing.assert_allclose(angle, geometry.local_incidence(dem, look), atol=1e-9)


def test_columns_are_not_taken_for_rows() -> None:
    dem = hilly(*EDGES[0])
    look = Look.from_angles(36.0, -13.0)
    for call in (geometry.local_incidence, geometry.layover_shadow):
        with pytest.raises(CubeError, match=r"dims \('x', 'y'\).*transpose\('y', 'x'\)"):
            call(dem.transpose("x", "y"), look)
        with pytest.raises(CubeError, match="one band"):
            call(dem.expand_dims("band"), look)


# ---------------------------------------------------------------------------------- margins


@pytest.mark.parametrize("smooth", [0.0, 20.0])
def test_slopes_at_a_cube_s_edge_are_those_of_the_same_ground_inside(smooth: float) -> None:
    wide = hilly(*EDGES[0], size=80)
    reach = 1 + round(4 * smooth / 10)
    near = wide[20 - reach : 60 + reach, 20 - reach : 60 + reach]
    cube = wide[20:60, 20:60].odc.geobox
    look = Look.from_angles(36.0, -13.0)
    inside = (slice(20, 60), slice(20, 60))
    whole = geometry.slope_aspect(wide, smooth=smooth)
    for found, wanted in zip(
        geometry.slope_aspect(near, smooth=smooth, within=cube), whole, strict=True
    ):
        assert found.odc.geobox == cube
        np.testing.assert_allclose(found, wanted[inside], atol=1e-6)
        assert found.attrs["dem_smoothing_m"] == smooth
        assert "one_sided_px" not in found.attrs
        assert wanted.attrs["one_sided_px"] == reach
    angle = geometry.local_incidence(near, look, smooth=smooth, within=cube)
    np.testing.assert_allclose(
        angle, geometry.local_incidence(wide, look, smooth=smooth)[inside], atol=1e-6
    )
    # without a margin they differ, which is why it is stated
    alone = geometry.slope_aspect(wide[inside], smooth=smooth)[0]
    assert np.abs(alone - whole[0][inside]).max() > 0.05
    with pytest.raises(CubeError, match=r"too near the grid: 10 m in the north are missing"):
        geometry.slope_aspect(near[1:], smooth=smooth, within=cube)
    with pytest.raises(CubeError, match=r"20 m in the south, 10 m in the east are missing"):
        geometry.local_incidence(near[:-2, :-1], look, smooth=smooth, within=cube)
    with pytest.raises(CubeError, match="does not lie on the pixels of the grid"):
        geometry.slope_aspect(near, within=cube.zoom_out(2))


def test_a_model_smaller_than_its_shadows_is_refused() -> None:
    """A wall of 190 m outside the cube darkens 138 m of it; seen from the west, at 36 degrees."""
    dem = profile(GORGE)
    cube = dem[:, 76:].odc.geobox
    tall, relief = geometry.layover_shadow, 190.0
    with pytest.raises(CubeError, match=r"model ends too near the grid: 11 m in the north"):
        tall(dem, WEST, within=cube)
    cube = dem[5:-5, 76:-40].odc.geobox
    found = tall(dem, WEST, within=cube)
    np.testing.assert_array_equal(found, tall(dem, WEST)[5:-5, 76:-40])
    assert (found[:, 2] == geometry.BOTH).all()
    assert found.odc.geobox == cube
    # from the near side relief / tan(incidence), more than relief x tan(incidence), and a pixel
    need = relief / np.tan(np.deg2rad(36)) + 10
    short = dem[:, 60:]
    word = rf"{np.ceil(need - 160):.0f} m in the west are missing"
    with pytest.raises(CubeError, match=word):
        tall(short, WEST, within=cube)


# ------------------------------------------------------------------------------ static layers


def test_tracks_of_a_model_go_beside_backscatter(tmp_path: Path) -> None:
    dem = profile(GORGE)
    box = dem[5:-5, 60:-60].odc.geobox
    looks = {"87D": Look.from_angles(39.0, 193.0), "15A": WEST}
    wide = wrap_xr(
        np.pad(dem.to_numpy(), ((60, 60), (0, 0)), mode="edge"), dem.odc.geobox.pad(0, 60)
    )
    still = track_geometry(wide, looks, within=box)
    s1 = still["s1"]
    assert s1.incidence.dims == s1.layover_shadow.dims == ("track", "y", "x")
    assert (s1.incidence.dtype, s1.layover_shadow.dtype) == (np.float32, np.uint8)
    for track, look in looks.items():
        np.testing.assert_array_equal(
            s1.incidence.sel(track=track), geometry.local_incidence(wide, look, within=box)
        )
        np.testing.assert_array_equal(
            s1.layover_shadow.sel(track=track),
            geometry.layover_shadow(wide, look, kinds=True, within=box),
        )
    assert not np.array_equal(s1.layover_shadow[0], s1.layover_shadow[1])
    shape = (1, 2, *box.shape.yx)
    radar = xr.Dataset(
        {"backscatter": (("time", "pol", "y", "x"), np.full(shape, -10, "float32"),
                         {"units": "dB", "calibration": "gamma0_rtc"})},
        coords={**{str(k): v for k, v in xr_coords(box).items()}, "pol": ["vv", "vh"],
                "time": pd.DatetimeIndex(["2021-01-01"]).as_unit("ns"),
                "platform": ("time", ["S1A"]), "items": ("time", ["one"]),
                "relative_orbit": ("time", [15]), "orbit_state": ("time", ["ascending"])},
    )  # fmt: skip
    both = cubes.join(xr.DataTree.from_dict({"s1": radar}), still)
    assert both["s1"].track.to_numpy().tolist() == ["15A"]
    cubes.write(both, tmp_path / "both.zarr")
    stored = cubes.open(tmp_path / "both.zarr")["s1"]
    np.testing.assert_array_equal(stored.layover_shadow[0], s1.layover_shadow.sel(track="15A"))
    assert {6, 9} <= set(np.unique(stored.layover_shadow))
    np.testing.assert_allclose(stored.incidence[0], s1.incidence.sel(track="15A"), atol=0.0051)
    with pytest.raises(CubeError, match="'87' is no track such as '87D'"):
        track_geometry(dem, {"87": WEST})
    with pytest.raises(CubeError, match="no tracks"):
        track_geometry(dem, {})
