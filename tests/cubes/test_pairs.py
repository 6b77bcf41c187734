"""Pairs of SLCs on a person's own grid, the look of an annotation, and the way to other grids."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import cubes
from cubes.files import annotation, cslc
from cubes.files import geotiff as files
from cubes.radar import insar
from cubes.radar.regridding import regrid
from cubes.types import CubeError

h5py = pytest.importorskip("h5py")

LEFT, TOP = 157_320.0, 2_172_300.0
SHAPE = (400, 800)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two CSLCs of 400 x 800 px of 10 x 5 m: coherence 0.6, a ramp in x, a hole, zeros."""
    rng = np.random.default_rng(8)
    a, b = (rng.normal(size=SHAPE) + 1j * rng.normal(size=SHAPE) for _ in range(2))
    ramp = np.exp(1j * np.linspace(0, 6 * np.pi, SHAPE[1]))[None]
    a[200:220, 300:360] = np.nan * (1 + 1j)
    images = (a * ramp, 0.6 * a + 0.8 * b)
    images[0][300:320, 300:360] = images[1][300:320, 300:360] = 0
    folder = tmp_path_factory.mktemp("cslc")
    out = []
    for number, (image, day) in enumerate(zip(images, ("16", "28"), strict=True)):
        path = folder / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["data/x_coordinates"] = LEFT + 2.5 + 5 * np.arange(SHAPE[1])
            file["data/y_coordinates"] = TOP - 5 - 10 * np.arange(SHAPE[0])
            file["data/x_spacing"], file["data/y_spacing"] = 5.0, -10.0
            file["data/projection"] = np.int32(32605)
            file.create_dataset("data/VV", data=image.astype("complex64"), chunks=(128, 128))
            for key, value in {
                "burst_id": b"t087_185683_iw2", "track_number": 87,
                "absolute_orbit_number": 46534, "orbit_pass_direction": b"Descending",
                "mission_id": b"S1A", "product_version": b"1.1", "look_direction": b"Right",
                "zero_doppler_start_time": f"2022-12-{day} 16:16:51.013157".encode(),
            }.items():  # fmt: skip
                file[f"identification/{key}"] = value
            for key in cslc.FLATTENING:
                file[f"{cslc.PARAMETERS}/{key}"] = True
        out.append(path)
    return out


def box(rows: int, columns: int, res: float, row: int, column: int) -> GeoBox:
    """Return a grid whose upper left corner lies on a corner of a pixel of the images."""
    corner = Affine(res, 0, LEFT + 5 * column, 0, -res, TOP - 10 * row)
    return GeoBox((rows, columns), corner, "EPSG:32605")


@pytest.mark.parametrize("corner", [(150, 250), (-20, -40), (370, 700), (151, 251)])
def test_a_part_is_as_of_the_whole_burst(pair: list[Path], corner: tuple[int, int], figure) -> None:
    """Cut before estimating: what the windows of the grid's pixels reach is all that is needed."""
    wanted = box(100, 100, 10, *corner)
    part = cslc.open_pairs(pair, grid=wanted).isel(pair=0, pol=0).load()
    a, b = (cslc.open_cslc(p).isel(x=slice(corner[1] % 2, None)) for p in pair)
    whole = insar.coherence(a, b, multilook=(1, 2)).load()
    whole = whole.reindex(y=part.y, x=part.x, method="nearest", tolerance=1)
    for name in ("coherence", "phase"):
        assert (np.isnan(part[name]) == np.isnan(whole[name])).all()
        apart = float(abs(part[name] - whole[name]).max())
        figure(f"{name} of a part at {corner} apart from the burst's", apart, "1e-6")
        assert apart < 1e-6
    assert part.coherence.notnull().sum() > 1000


def test_a_small_grid_reads_a_small_part(pair: list[Path], monkeypatch) -> None:
    read = set()
    inner = cslc.hdf5.Dataset.__getitem__

    def reading(self: object, key: tuple[slice, slice]) -> np.ndarray:
        read.add(tuple((k.start, k.stop) for k in key if k.stop))
        return inner(self, key)

    monkeypatch.setattr(cslc.hdf5.Dataset, "__getitem__", reading)
    monkeypatch.setattr(cslc.hdf5, "CHUNK", 128)
    made = cslc.open_pairs(pair, grid=box(20, 20, 10, 50, 100))
    assert read <= {()}, "opening reads no pixel"
    made.coherence.drop_vars("looks_effective").load()
    high = np.array(list(read - {()}))[..., 1]
    assert (high.max(axis=0) <= [128, 256]).all(), "of 400 x 800, in chunks of 128"


def test_a_coarser_grid_gets_its_looks(pair: list[Path]) -> None:
    """30 m are 3 x 6 pixels of 10 x 5 m: sums over them, in blocks that lie as the grid's do."""
    wanted = box(20, 20, 30, 31, 43)
    made = cslc.open_pairs(pair, grid=wanted).isel(pair=0, pol=0).load()
    assert made.coherence.attrs["multilook"] == made.phase.attrs["multilook"] == [3, 6]
    assert made.coherence.attrs["resampling"] == "nearest"
    a, b = (cslc.open_cslc(p).isel(y=slice(31 % 3, None), x=slice(43 % 6, None)) for p in pair)
    direct = insar.coherence(a, b, multilook=(3, 6)).sel(y=made.y, x=made.x)
    np.testing.assert_allclose(made.coherence, direct.coherence, atol=1e-6)
    fine = cslc.open_pairs(pair, grid=wanted, multilook=(1, 2)).isel(pair=0, pol=0)
    assert fine.coherence.attrs["multilook"] == [1, 2]
    assert float(made.coherence.std()) < float(fine.coherence.std())


def test_a_grid_is_given_as_elsewhere(pair: list[Path]) -> None:
    wanted = box(40, 40, 20, 100, 200)
    one = cslc.open_pairs(pair, grid=wanted)
    assert one.coherence.attrs["multilook"] == [2, 4]
    for same in (
        cslc.open_pairs(pair, grid=cubes.Grid(geobox=wanted)),
        cslc.open_pairs(pair, like=one),
        cslc.open_pairs(pair, like=xr.DataTree.from_dict({"insar": one})),
    ):
        xr.testing.assert_equal(one.coherence.load(), same.coherence.load())
    placed = cslc.open_pairs(pair, grid=cubes.Grid(resolution=20, snap=None))
    assert placed.odc.geobox.resolution.x == 20
    # the burst's 4 km square, and what its bent edges in degrees bulge
    assert 200 <= placed.sizes["x"] <= 206
    assert np.isfinite(placed.coherence.isel(pair=0, pol=0, y=100, x=100).load())
    with pytest.raises(CubeError, match="grid= or like=, not both"):
        cslc.open_pairs(pair, grid=wanted, like=one)
    with pytest.raises(CubeError, match="like= takes a cube"):
        cslc.open_pairs(pair, like=wanted)


def test_another_projection_by_the_helper_that_the_message_names(pair: list[Path]) -> None:
    """The ramp of the phase stays one, coherence its mean, across the zone's border."""
    other = box(60, 60, 20, 100, 200).to_crs("EPSG:32604", resolution=20)
    with pytest.raises(CubeError, match=r"cubes\.radar\.regridding\.regrid"):
        cslc.open_pairs(pair, grid=other)
    made = cslc.open_pairs(pair, grid=box(170, 170, 20, 20, 40)).load()
    moved = regrid(made, cubes.Grid(geobox=other))
    assert moved.coherence.dims == moved.phase.dims == ("pair", "pol", "y", "x")
    assert moved.odc.geobox == other
    assert moved.coherence.attrs["resampling"] == "bilinear"
    assert moved.coherence.attrs["multilook"] == [2, 4]
    assert moved["items"].item() == made["items"].item()
    cubes.check(xr.DataTree.from_dict({"insar": moved.drop_vars("looks_effective")}))
    from pyproj import Transformer

    back = Transformer.from_crs("EPSG:32604", "EPSG:32605", always_xy=True)
    x, _ = back.transform(*np.meshgrid(moved.x.to_numpy(), moved.y.to_numpy()))
    ramp = 6 * np.pi * (x - LEFT - 2.5) / (5 * (SHAPE[1] - 1))
    off = np.angle(np.exp(1j * (moved.phase[0, 0].to_numpy() - ramp)))
    assert np.nanstd(off) < 0.12
    assert abs(np.nanmean(off)) < 0.02
    assert float(moved.coherence.mean()) == pytest.approx(0.61, abs=0.02)
    with pytest.raises(CubeError, match="takes coherence and phase, not amplitude"):
        regrid(made.rename(coherence="amplitude"), other)


# ------------------------------------------------------------------------------------ annotation

XML = """<product><adsHeader><absoluteOrbitNumber>{orbit}</absoluteOrbitNumber></adsHeader>
<geolocationGrid><geolocationGridPointList>{points}</geolocationGridPointList></geolocationGrid>
</product>"""


def write_annotation(path: Path, *, orbit: int, west: float, incidence: float) -> Path:
    """Write a swath of 100 km by 100 km whose far range lies due west, at 45 N."""
    points = ""
    for i in range(5):
        for j in range(6):
            lon, lat = west - 0.2 * j, 45.2 - 0.2 * i
            points += (
                f"<geolocationGridPoint><line>{i}</line><pixel>{j * 100}</pixel><latitude>{lat}"
                f"</latitude><longitude>{lon}</longitude><incidenceAngle>{incidence + j}"
                "</incidenceAngle></geolocationGridPoint>"
            )
    path.write_text(XML.format(orbit=orbit, points=points))
    return path


def test_the_look_of_two_swaths(tmp_path: Path) -> None:
    near = write_annotation(tmp_path / "iw1.xml", orbit=7, west=10.0, incidence=31.0)
    far = write_annotation(tmp_path / "iw2.xml", orbit=7, west=9.0, incidence=36.0)
    grid = GeoBox((5, 21), Affine(0.09, 0, 8.0, 0, -0.09, 45.0), "EPSG:4326")
    look = annotation.annotation_look([near, far], grid)
    assert look.east.shape == (5, 21)
    lon = 8.0 + 0.09 * (np.arange(21) + 0.5)
    np.testing.assert_allclose(look.incidence[2], 31 + (10 - lon) / 0.2, atol=0.01)
    # on a parallel west is west, to what a parallel bends: the sensor stands due east
    np.testing.assert_allclose(np.rad2deg(np.arctan2(look.east, look.north)), 90, atol=0.1)
    np.testing.assert_allclose(look.east**2 + look.north**2 + look.up**2, 1, atol=1e-12)
    one = annotation.annotation_look(near, grid)
    assert np.isnan(one.up[:, lon < 8.99]).all()
    other = write_annotation(tmp_path / "b.xml", orbit=8, west=9.0, incidence=36.0)
    with pytest.raises(CubeError, match="2 passes, absolute orbits 7, 8"):
        annotation.annotation_look([near, other], grid)
    away = GeoBox((5, 5), Affine(0.1, 0, 20.0, 0, -0.1, 45.0), "EPSG:4326")
    with pytest.raises(CubeError, match=r"no pixel of the grid .* 9\.00 to 10\.00 E"):
        annotation.annotation_look(near, away)
    with pytest.raises(CubeError, match="no annotation of a Sentinel-1"):
        annotation.annotation_look(_text(tmp_path / "x.xml", "<a/>"), grid)
    with pytest.raises(CubeError, match="no such file"):
        annotation.annotation_look(tmp_path / "y.xml", grid)


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.real
def test_the_look_of_a_real_annotation_is_that_to_its_orbit(real: Path, figure) -> None:
    """Independent: lines from the grid's points to the state vectors at their azimuth times."""
    from pyproj import Transformer
    from scipy.interpolate import CubicSpline

    path = next((real / "insar-morocco").glob("s1a-iw1-slc-vv-20230904*.xml"))
    root = ElementTree.parse(path).getroot()
    number = lambda node, key: float(node.find(key).text)  # noqa: E731
    seconds = lambda text: np.datetime64(text).astype("datetime64[us]").astype(float) / 1e6  # noqa: E731
    states = root.findall(".//orbit")
    times = [seconds(s.find("time").text) for s in states]
    orbit = CubicSpline(times, [[number(s, f"position/{a}") for a in "xyz"] for s in states])
    points = root.findall(".//geolocationGridPoint")
    lon, lat, height, incidence = (
        np.array([number(p, k) for p in points])
        for k in ("longitude", "latitude", "height", "incidenceAngle")
    )
    earth = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    ground = np.stack(earth.transform(lon, lat, height), axis=1)
    line = orbit([seconds(p.find("azimuthTime").text) for p in points]) - ground
    line /= np.linalg.norm(line, axis=1)[:, None]
    p, t = np.deg2rad(lon), np.deg2rad(lat)
    east = -line[:, 0] * np.sin(p) + line[:, 1] * np.cos(p)
    north = -np.sin(t) * (line[:, 0] * np.cos(p) + line[:, 1] * np.sin(p)) + line[:, 2] * np.cos(t)
    wide = GeoBox.from_bbox(
        (lon.min(), lat.min(), lon.max(), lat.max()), crs=4326, shape=(300, 300)
    )
    look = annotation.annotation_look(path, wide)
    row = ((wide.boundingbox.top - lat) / abs(wide.resolution.y)).astype(int).clip(0, 299)
    column = ((lon - wide.boundingbox.left) / wide.resolution.x).astype(int).clip(0, 299)
    azimuth = np.rad2deg(np.arctan2(look.east, look.north))[row, column]
    inside = ~np.isnan(azimuth)
    assert inside.sum() > 150
    truth = np.rad2deg(np.arctan2(east, north))
    apart = np.abs(azimuth - truth)[inside].max()
    figure("azimuth of the look, annotation against orbit, degrees", apart, "0.15")
    assert apart < 0.15
    assert np.abs(look.incidence[row, column] - incidence)[inside].max() < 0.1
    # what platformHeading alone would have given
    heading = number(root, ".//platformHeading")
    assert np.abs((heading - 90) % 360 - truth).min() > 1


def test_a_dem_in_degrees_meets_the_look(tmp_path: Path) -> None:
    """From a GeoTIFF in degrees to local incidence, by public functions alone."""
    from cubes.radar import geometry

    degrees = GeoBox((120, 120), Affine(1e-3, 0, 9.0, 0, -1e-3, 45.0), "EPSG:4326")
    files.write_tif(
        tmp_path / "dem.tif", np.full((1, 120, 120), 300, "float32"), degrees, nodata=-1
    )
    near = write_annotation(tmp_path / "iw1.xml", orbit=7, west=10.0, incidence=31.0)
    metres = GeoBox((100, 100), Affine(20, 0, 503_000, 0, -20, 4_980_000), "EPSG:32632")
    dem = files.open_tif(tmp_path / "dem.tif").odc.reproject(metres, resampling="bilinear")
    look = annotation.annotation_look(near, metres)
    local = geometry.local_incidence(dem.compute(), look)
    np.testing.assert_allclose(local[5:-5, 5:-5], look.incidence[5:-5, 5:-5], atol=1e-3)
