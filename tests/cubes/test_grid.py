"""Areas from anything; grids on one lattice; wrong areas refused with the remedy."""

from __future__ import annotations

from pathlib import Path

import geopandas as gpd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from cubes import grid
from cubes.types import CubeError, Grid

LATTICE = 2560


@settings(max_examples=60, deadline=None)
@given(
    lon=st.floats(-179, 179),
    lat=st.floats(-79, 83),
    width=st.floats(0.001, 0.3),
    height=st.floats(0.001, 0.3),
)
def test_cubes_cover_their_area_in_whole_lattice_cells(
    lon: float, lat: float, width: float, height: float
) -> None:
    area = grid.as_aoi((lon, lat, min(lon + width, 180), lat + height))
    box = grid.geobox(area)
    west, south, east, north = box.boundingbox.bbox
    assert all(v % LATTICE == 0 for v in (west, south, east, north))
    assert box.shape[0] % 256 == 0 == box.shape[1] % 256
    assert box.crs is not None
    assert 32601 <= box.crs.epsg <= 32660
    left, bottom, right, top = grid._projected_bounds(area, f"EPSG:{box.crs.epsg}")
    slack = 5.001  # half a pixel
    assert west <= left + slack
    assert south <= bottom + slack
    assert east >= right - slack
    assert north >= top - slack
    # no cell more than needed
    assert left - west < LATTICE + slack
    assert east - right < LATTICE + slack


def test_the_lattice_runs_through_the_equator() -> None:
    south = grid.geobox(grid.as_aoi((3.0, -0.02, 3.01, -0.01)))
    north = grid.geobox(grid.as_aoi((3.0, 0.01, 3.01, 0.02)))
    assert south.crs == north.crs
    assert south.boundingbox.top <= 0 <= north.boundingbox.bottom


def test_a_square_drawn_on_the_lattice_comes_back_exactly() -> None:
    box = GeoBox.from_bbox((281600, 5555200, 291840, 5565440), "EPSG:32632", resolution=10)
    bounds = shapely.Polygon(box.extent.to_crs("EPSG:4326").exterior.coords)
    again = grid.geobox(grid.as_aoi(bounds))
    assert again == box


def test_points_keep_their_own_square() -> None:
    box = grid.geobox(grid.as_aoi((5.1234, 50.1), size=2560))
    assert box.shape == (256, 256)


@pytest.mark.parametrize(
    ("lon", "lat", "zone"),
    [(5.0, 60.0, 32), (5.0, 50.0, 31), (8.0, 75.0, 31), (10.0, 75.0, 33), (22.0, 78.0, 35),
     (35.0, 78.0, 37), (-180.0, 0.0, 1), (180.0, 0.0, 1), (179.9, -10.0, 60)],
)  # fmt: skip
def test_zones_with_their_exceptions(lon: float, lat: float, zone: int) -> None:
    assert grid.utm_zone(lon, lat) == zone


def test_forms_of_an_area_agree() -> None:
    bounds = (5.0, 50.0, 5.1, 50.1)
    polygon = shapely.box(*bounds)
    table = gpd.GeoDataFrame(geometry=[polygon], crs="EPSG:4326").to_crs("EPSG:3857")
    json = polygon.__geo_interface__
    feature = {"type": "Feature", "properties": {}, "geometry": json}
    forms = [bounds, list(bounds), polygon, json, table, feature]
    boxes = [grid.geobox(grid.as_aoi(f)) for f in forms]
    assert all(b == boxes[0] for b in boxes)


@pytest.mark.parametrize(
    ("area", "word"),
    [
        ((1, 1, 1, 2), "zero area"),
        ((170, 0, -170, 1), "antimeridian"),
        ((-179, 0, 179, 1), "antimeridian"),
        ((0, 1, 1, 0), "above north"),
        ((0, 0), "needs size"),
        ((0, 0, 200, 10), "not longitude and latitude"),
        ((0, 85, 1, 86), "range of UTM"),
        ("nowhere", "unknown aoi 'nowhere'"),
        ("nofile.geojson", "no such file"),
        (7, "cannot make an area"),
        (shapely.Polygon(), "empty"),
        (shapely.LineString([(0, 0), (1, 1)]), "zero area"),
        ({"type": "FeatureCollection", "features": []}, "no features"),
    ],
)
def test_wrong_areas_are_refused_with_a_remedy(area: object, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        grid.as_aoi(area)


@pytest.mark.parametrize(
    ("wanted", "word"),
    [(Grid(resolution=0), "must be positive"), (Grid(resolution=30), "does not divide")],
)
def test_wrong_grids_are_refused(wanted: Grid, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        grid.geobox(grid.as_aoi((5, 50, 5.1, 50.1)), wanted)


def test_too_wide_areas_are_refused() -> None:
    with pytest.raises(CubeError, match="zone by zone"):
        grid.geobox(grid.as_aoi((0, 50, 20, 51)))


def test_given_grids_win() -> None:
    area = grid.as_aoi((5.0, 50.0, 5.1, 50.1))
    assert grid.geobox(area, Grid(resolution=20, shape=(100, 50))).shape == (100, 50)
    own = GeoBox.from_bbox((0, 0, 1000, 500), "EPSG:3035", resolution=20)
    assert grid.geobox(area, Grid(geobox=own)) is own
    loose = grid.geobox(area, Grid(snap=None))
    assert loose.shape[0] % 256 or loose.shape[1] % 256


def test_like_takes_the_grid_of_an_object() -> None:
    import odc.geo.xr
    import xarray as xr

    own = GeoBox.from_bbox((500000, 0, 501000, 500), "EPSG:32631", resolution=10)
    assert grid.like(odc.geo.xr.xr_zeros(own)).geobox == own
    with pytest.raises(CubeError, match="no grid with a CRS"):
        grid.like(xr.DataArray([[1.0]], dims=("a", "b")))


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("{", "no GeoJSON"),
        ("null", "has no features"),
        ('{"type": "Feature", "geometry": null}', "has no features"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "has no features"),
        ('{"type": "Polygon"}', "holds no geometry that can be read"),
        ('{"type": "Polygone", "coordinates": []}', "holds no geometry that can be read"),
    ],
)
def test_broken_geojson_is_named(body: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text(body)
    with pytest.raises(CubeError, match=word):
        grid.as_aoi(path)


def test_an_area_in_hand_can_be_given_another_size() -> None:
    small = grid.as_aoi((5.0, 50.0), size=2560)
    assert grid.geobox(grid.as_aoi(small, size=5120)).shape == (512, 512)
    assert grid.as_aoi(small, name="here").name == "here"
    with pytest.raises(CubeError, match=r"shape \(0, 10\) has no pixel"):
        grid.geobox(small, Grid(shape=(0, 10)))
