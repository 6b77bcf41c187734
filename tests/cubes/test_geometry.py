"""Incidence, layover and shadow on planes and ridges with known answers, and on real geometry."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr

from cubes.radar import geometry
from cubes.radar.geometry import Look
from cubes.types import CubeError

# on the central meridian, so that grid north is true north
BOX = GeoBox((120, 160), Affine(10, 0, 499200, 0, -10, 5000600), "EPSG:32631")
FLAT_LOOK = Look.from_angles(36.0, -13.0)


def terrain(heights: np.ndarray, box: GeoBox = BOX) -> xr.DataArray:
    return wrap_xr(np.asarray(heights, "float32"), box)


def plane(slope: float, facing: float) -> xr.DataArray:
    """Return a plane of `slope` degrees that descends toward azimuth `facing`."""
    y, x = np.indices(BOX.shape) * 10.0
    toward = np.deg2rad(facing)
    distance = x * np.sin(toward) - y * np.cos(toward)
    return terrain(500 - distance * np.tan(np.deg2rad(slope)))


@pytest.mark.parametrize("slope", [0.0, 5.0, 20.0, 30.0])
def test_a_plane_tilted_toward_the_sensor_reads_ellipsoidal_minus_slope(slope: float) -> None:
    toward = -13.0 - 90.0
    facing = geometry.local_incidence(plane(slope, toward), FLAT_LOOK)
    averted = geometry.local_incidence(plane(slope, toward + 180), FLAT_LOOK)
    np.testing.assert_allclose(facing, 36 - slope, atol=0.02)
    np.testing.assert_allclose(averted, 36 + slope, atol=0.02)
    assert facing.dtype == np.float32


def test_vector_and_angle_form_agree(figure) -> None:
    rng = np.random.default_rng(3)
    theta, heading = rng.uniform(20, 50, 500), rng.uniform(-180, 180, 500)
    slope, aspect = rng.uniform(0, 70, 500), rng.uniform(0, 360, 500)
    look = Look.from_angles(theta, heading)
    steep = np.tan(np.deg2rad(slope))
    dz_dx, dz_dy = -steep * np.sin(np.deg2rad(aspect)), -steep * np.cos(np.deg2rad(aspect))
    cosine = (-dz_dx * look.east - dz_dy * look.north + look.up) / np.sqrt(1 + steep**2)
    by_vector = np.rad2deg(np.arccos(cosine))
    by_angle = geometry.local_incidence_from_angles(theta, heading - 90, slope, aspect)
    np.testing.assert_allclose(by_vector, by_angle, atol=1e-9)
    figure("vector and angle form, degrees", float(np.abs(by_vector - by_angle).max()), "1e-9")


@pytest.mark.parametrize("facing", [0.0, 45.0, 135.0, 270.0])
def test_slope_and_aspect_of_a_plane(facing: float) -> None:
    slope, aspect = geometry.slope_aspect(plane(12, facing))
    np.testing.assert_allclose(slope, 12, atol=0.01)
    turn = np.angle(np.exp(1j * np.deg2rad(aspect.to_numpy() - facing)), deg=True)
    np.testing.assert_allclose(turn, 0, atol=0.05)


def test_convergence_equals_the_reference_and_turns_the_look() -> None:
    from pyproj import Geod, Transformer

    box = GeoBox((50, 60), Affine(1000, 0, 720000, 0, -1000, 5300000), "EPSG:32631")
    angles = geometry.convergence(box)
    assert 1.5 < angles.mean() < 3
    # reference: the azimuth on the ellipsoid of one metre along grid north
    to_degrees = Transformer.from_crs(box.crs, "EPSG:4326", always_xy=True)
    for row, column in ((0, 0), (25, 30), (49, 59)):
        x, y = (float(box.coordinates[d].values[i]) for d, i in (("x", column), ("y", row)))
        start, stop = to_degrees.transform(x, y), to_degrees.transform(x, y + 1)
        azimuth, _, _ = Geod(ellps="WGS84").inv(*start, *stop)
        assert angles[row, column] == pytest.approx(azimuth, abs=1e-4)
    north = Look(east=0.0, north=1.0, up=0.0).turned(2.0)
    # true north lies 2 degrees west of this grid's north
    assert north.east == pytest.approx(-np.sin(np.deg2rad(2)))


def ridge(near: float, far: float) -> tuple[xr.DataArray, np.ndarray]:
    """Return an east-west profile: flat, up at `near` degrees over 300 m, down at `far`, flat."""
    x = (np.arange(BOX.shape[1]) - 60) * 10.0
    top = 300 * np.tan(np.deg2rad(near))
    up = np.clip(x * np.tan(np.deg2rad(near)), 0, top)
    down = np.clip((x - 300) * np.tan(np.deg2rad(far)), 0, top)
    return terrain(np.tile(up - down, (BOX.shape[0], 1))), x


FROM_WEST = Look.from_angles(36.0, 0.0)


def test_incidence_alone_cannot_tell_a_gentle_from_a_layover_slope_but_the_mask_can() -> None:
    gentle, x = ridge(12, 12)
    steep, _ = ridge(60, 30)
    middle = (x > 100) & (x < 200)
    for model in (gentle, steep):
        angle = geometry.local_incidence(model, FROM_WEST, smooth=0)[60, middle]
        np.testing.assert_allclose(angle, 24, atol=0.1)
    assert (geometry.layover_shadow(gentle, FROM_WEST) == geometry.NONE).all()
    codes = geometry.layover_shadow(steep, FROM_WEST)[60].to_numpy()
    assert (codes[(x > 10) & (x < 290)] == geometry.LAYOVER).all()
    # passive layover: the ground before the slope whose range the slope covers
    top = 300 * np.tan(np.deg2rad(60))
    reach = (top * np.cos(np.deg2rad(36)) - 300 * np.sin(np.deg2rad(36))) / np.sin(np.deg2rad(36))
    before = (x < -10) & (x > -reach + 20)
    assert (codes[before] == geometry.LAYOVER).all()
    assert (codes[x < -reach - 30] == geometry.NONE).all()


def test_shadow_falls_as_far_as_the_sun_of_the_radar_says() -> None:
    model, x = ridge(30, 80)
    codes = geometry.layover_shadow(model, FROM_WEST)[60].to_numpy()
    top = 300 * np.tan(np.deg2rad(30))
    foot = 300 + top / np.tan(np.deg2rad(80))
    end = 300 + top * np.tan(np.deg2rad(36))
    dark = np.isin(codes, (geometry.SHADOW, geometry.BOTH))
    assert dark[(x > foot + 5) & (x < end - 20)].all()
    assert not dark[x > end + 20].any()
    assert not dark[x < 290].any()
    # from the other side the same ridge casts no shadow before its face
    other = geometry.layover_shadow(model, Look.from_angles(36.0, 180.0))[60].to_numpy()
    assert not np.isin(other[x > foot + 20], (geometry.SHADOW, geometry.BOTH)).any()


@pytest.mark.parametrize("heading", [0.0, -13.0, 90.0, 193.0])
def test_layover_turns_with_the_look(heading: float) -> None:
    y, x = np.indices((161, 161)) * 10.0 - 800
    cone = np.clip(400 - np.hypot(x, y) * np.tan(np.deg2rad(55)), 0, None)
    box = GeoBox((161, 161), Affine(10, 0, 499195, 0, -10, 5000805), "EPSG:32631")
    codes = geometry.layover_shadow(terrain(cone, box), Look.from_angles(36.0, heading)).to_numpy()
    laid = np.isin(codes, (geometry.LAYOVER, geometry.BOTH))
    toward = np.deg2rad(heading - 90)
    centre = np.array([x[laid].mean(), -y[laid].mean()])
    direction = np.array([np.sin(toward), np.cos(toward)])
    assert centre @ direction > 100
    np.testing.assert_allclose(centre / np.linalg.norm(centre), direction, atol=0.05)


def test_no_data_stays_no_data() -> None:
    model = plane(5, 90).copy()
    model[10:14, 20:24] = np.nan
    assert np.isnan(geometry.local_incidence(model, FLAT_LOOK)[11, 21])
    assert (geometry.layover_shadow(model, FLAT_LOOK)[10:14, 20:24] == geometry.NO_DATA).all()


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (wrap_xr(np.zeros((9, 9), "float32"),
                 GeoBox((9, 9), Affine(0.001, 0, 5, 0, -0.001, 50), "EPSG:4326")), "in degrees"),
        (xr.DataArray(np.zeros((9, 9)), dims=("y", "x")), "no CRS"),
        (terrain(np.zeros(BOX.shape))[:2], "no slope"),
    ],
)  # fmt: skip
def test_models_without_slopes_are_refused(model: xr.DataArray, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        geometry.local_incidence(model, FLAT_LOOK)


def test_looks_of_another_shape_are_refused() -> None:
    with pytest.raises(CubeError, match="bring them to one grid"):
        geometry.local_incidence(plane(5, 0), Look.from_angles(np.full((3, 3), 36.0), 0.0))


def test_hyp3_angles_are_above_the_horizon_and_from_east() -> None:
    look = Look.from_hyp3(np.deg2rad(54.0), np.deg2rad(180.0))
    assert look.incidence == pytest.approx(36)
    assert (look.east, look.north) == (pytest.approx(-np.sin(np.deg2rad(36))), pytest.approx(0))


@pytest.mark.real
def test_real_opera_look_vectors_give_the_product_s_incidence(real: Path, figure) -> None:
    h5py = pytest.importorskip("h5py")
    path = next((real / "opera-cslc").glob("*STATIC*.h5"))
    with h5py.File(path) as file:
        east, north = (file[f"data/los_{d}"][::40, ::80] for d in ("east", "north"))
        x, y = (file[f"data/{d}_coordinates"][()] for d in ("x", "y"))
    seen = np.isfinite(east) & (east != 0)
    look = Look.from_opera(np.where(seen, east, np.nan), np.where(seen, north, np.nan))
    figure("OPERA STATIC, mean incidence", float(np.nanmean(look.incidence)), "about 39")
    assert np.nanmean(look.incidence) == pytest.approx(39, abs=2)
    # descending or ascending: a right-looking sensor stands heading - 90 from the target
    azimuth = np.rad2deg(np.arctan2(np.nanmean(look.east), np.nanmean(look.north)))
    heading = (azimuth + 90) % 360
    assert min(abs(heading - 193), abs(heading - 347)) < 8
    box = GeoBox((len(y) // 40, len(x) // 80), Affine(400, 0, x[0], 0, -400, y[0]), "EPSG:32605")
    turned = look.turned(geometry.convergence(box).mean())
    np.testing.assert_allclose(np.hypot(turned.east, turned.north)[seen],
                               np.hypot(look.east, look.north)[seen])  # fmt: skip


def _annotation(path: Path) -> tuple[float, np.ndarray]:
    root = ET.parse(path).getroot()
    heading = float(root.findtext(".//platformHeading") or "nan")
    points = [
        [float(p.findtext(k) or "nan") for k in ("longitude", "latitude", "incidenceAngle")]
        for p in root.findall(".//geolocationGridPoint")
    ]
    return heading, np.array(points)


@pytest.mark.real
def test_real_backscatter_falls_with_local_incidence_only_under_the_true_look(
    real: Path, figure
) -> None:
    """Morocco, descending: a slope that faces the sensor is bright, one that faces away is dark."""
    from scipy.interpolate import griddata

    folder = real / "insar-morocco"
    heading, points = _annotation(sorted(folder.glob("*.xml"))[0])
    box = GeoBox.from_bbox((705500, 3514500, 712500, 3522000), "EPSG:32629", resolution=20)
    with rasterio.open(folder / "dem.tif") as source:
        place = GeoBox(source.shape, source.transform, source.crs.to_epsg())
        dem = wrap_xr(source.read(1).astype("float32"), place, nodata=np.nan)
    with rasterio.open(folder / "amp_prm_vv.tif") as source:
        place = GeoBox(source.shape, source.transform, source.crs.to_epsg())
        power = wrap_xr(source.read(1) ** 2, place, nodata=0.0)
    west, south, east, north = (float(v) for v in place.boundingbox.bbox)
    box = place.to_crs("EPSG:32629", resolution=20)
    dem = dem.odc.reproject(box, resampling="bilinear", dst_nodata=np.nan)
    power = power.odc.reproject(box, resampling="average", dst_nodata=np.nan)
    lon, lat = np.meshgrid(np.linspace(west, east, 9), np.linspace(south, north, 9))
    theta = float(griddata(points[:, :2], points[:, 2], (lon, lat)).mean())
    good = np.isfinite(power.to_numpy()) & (power.to_numpy() > 0)
    level = 10 * np.log10(np.where(good, power, 1))

    def against(direction: float) -> tuple[float, np.ndarray]:
        angle = geometry.local_incidence(dem, Look.from_angles(theta, direction)).to_numpy()
        usable = good & np.isfinite(angle)
        return float(np.corrcoef(level[usable], angle[usable])[0, 1]), angle[usable]

    true, angles = against(heading)
    mirrored, _ = against(heading + 180)
    low, high = np.percentile(angles, [1, 99])
    figure("Morocco, dB against local incidence, true look", true, "< -0.2")
    figure("Morocco, dB against local incidence, heading + 180", mirrored, "> 0.2")
    figure("Morocco, local incidence, 1st and 99th percentile", f"{low:.1f}, {high:.1f}", "23, 47")
    assert true < -0.2
    assert mirrored > 0.2
    assert 20 < low < 26
    assert 44 < high < 50


@pytest.mark.parametrize("look", [Look(east=0, north=0, up=1), "unknown"])
def test_a_look_without_direction_is_refused(look: Look | str) -> None:
    dem = plane(0.1, 0.0)
    if isinstance(look, str):
        nothing = np.full(dem.shape, np.nan)
        look = Look(east=nothing, north=nothing, up=nothing)
    with pytest.raises(CubeError, match="have no direction on the ground"):
        geometry.layover_shadow(dem, look)
