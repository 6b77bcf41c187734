"""Points uniform by area and equal in time; patches that keep their source row."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from scipy.stats import chi2

from cubes import places, registry
from cubes.grid import geobox
from cubes.types import CubeError


def test_a_hundred_thousand_points_take_seconds_and_none_lies_in_antarctica(figure) -> None:
    began = time.perf_counter()
    table = places.points(100_000, seed=1)
    seconds = time.perf_counter() - began
    figure("100,000 land points, seconds", seconds, "10")
    assert seconds < 10
    assert len(table) == 100_000
    assert table["lat"].min() > -60
    assert shapely.contains_xy(places.land(), table["lon"], table["lat"]).mean() > 0.9999
    assert (table["country"] != "").all()
    assert "AQ" not in set(table["country"])


def test_points_are_uniform_by_area(figure) -> None:
    """Chi-square over equal-area cells of 10 degrees, against the land's own area in each."""
    from pyproj import Geod

    geod = Geod(ellps="WGS84")
    land = places.land()
    cells, areas = [], []
    for west in range(-180, 180, 20):
        for south in range(-60, 80, 10):
            part = shapely.intersection(land, shapely.box(west, south, west + 20, south + 10))
            area = abs(geod.geometry_area_perimeter(shapely.segmentize(part, 0.5))[0])
            if area > 2e11:
                cells.append((west, south))
                areas.append(area)
    share = np.array(areas) / sum(areas)
    passed = 0
    for seed in range(20):
        table = places.points(20_000, seed=seed)
        key = list(zip((table["lon"] // 20 * 20).astype(int), (table["lat"] // 10 * 10).astype(int),
                       strict=True))  # fmt: skip
        counts = pd.Series(key).value_counts().reindex(cells, fill_value=0).to_numpy()
        expected = share * counts.sum()
        statistic = ((counts - expected) ** 2 / expected).sum()
        passed += chi2.sf(statistic, len(cells) - 1) > 0.01
    figure("seeds of 20 whose chi-square has p > 0.01", passed, "18")
    assert passed >= 18


def test_the_north_gets_its_share_and_no_more() -> None:
    """Uniform in degrees would put 20 % of the points between 60 and 75 N; the land has 11 %."""
    lat = places.points(50_000, seed=2)["lat"]
    assert ((lat > 60) & (lat < 75)).mean() == pytest.approx(0.111, abs=0.006)


def _decoded(topology: dict, name: str) -> shapely.Geometry:
    """Return a country of a TopoJSON file: arcs of quantised steps, joined to rings."""
    scale, shift = (np.array(topology["transform"][k]) for k in ("scale", "translate"))
    arcs = [np.cumsum(arc, axis=0) * scale + shift for arc in topology["arcs"]]
    found = next(g for g in topology["objects"]["countries"]["geometries"]
                 if g["properties"]["name"] == name)  # fmt: skip
    rings = []
    for polygon in found["arcs"]:
        parts = [arcs[i] if i >= 0 else arcs[~i][::-1] for i in polygon[0]]
        rings.append(shapely.Polygon(np.concatenate(parts)))
    return shapely.union_all([shapely.make_valid(ring) for ring in rings])


@pytest.mark.real
def test_no_part_of_eurasia_is_lost_at_the_antimeridian(real: Path, figure) -> None:
    """The easternmost tip of Russia lies west of 180 degrees; points fall on both sides."""
    table = places.points(60_000, seed=3, within=["RU"])
    assert (table["lon"] < -170).any()
    assert (table["lon"] > 175).any()
    topology = json.loads((real / "naturalearth" / "countries-110m.json").read_text())
    theirs = _decoded(topology, "Russia")
    # another edition: coasts and borders differ by a hundredth
    assert theirs.symmetric_difference(places.land(["RU"])).area < 0.02 * theirs.area
    beyond = shapely.box(-180, 0, -168, 90)
    share = places.land(["RU"]).intersection(beyond).area / theirs.intersection(beyond).area
    figure("Russia beyond 180 degrees, of Natural Earth's own", share, "1")
    assert share == pytest.approx(1, abs=0.01)
    assert len(topology["objects"]["countries"]["geometries"]) == len(places.countries()) + 3


def test_equal_counts_per_window_and_exactly_n() -> None:
    table = places.points(100, seed=4, time=("2019-08-01", "2019-09-17"))
    counts = table.groupby("start").size()
    assert counts.sum() == 100
    assert len(counts) == 4  # 48 days: the last one counts
    assert set(counts) == {25}
    assert ((table["end"] - table["start"]) == pd.Timedelta("12D")).all()


@pytest.mark.parametrize(
    ("time", "count", "end"),
    [
        (("2019-08-01", "2019-09-17"), 4, "2019-09-18"),
        ("2019-08-01/2019-09-17", 4, "2019-09-18"),
        (("2019-08-01", "2019-09-18"), 4, "2019-09-18"),
        (("2019-08-01", "2019-09-16"), 3, "2019-09-06"),
        (("2019-08-01T00:00:00", "2019-09-17T00:00:00"), 3, "2019-09-06"),
        (("2019-08-01T00:00:00Z", "2019-09-18T00:00:00Z"), 4, "2019-09-18"),
        ("2020", 30, "2020-12-26"),
    ],
)  # fmt: skip
def test_a_last_day_counts_whole(time: object, count: int, end: str) -> None:
    found = places.windows(time)
    assert len(found) == count
    assert found[-1][1] == pd.Timestamp(end)
    assert all(b - a == pd.Timedelta("12D") for a, b in found)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(found))


def test_a_range_without_a_window_is_refused() -> None:
    with pytest.raises(CubeError, match="holds no window"):
        places.windows(("2019-08-01", "2019-08-11"))


def test_seeds_decide() -> None:
    one, two = places.points(50, seed=5), places.points(50, seed=5)
    pd.testing.assert_frame_equal(one, two)
    assert not one["lon"].equals(places.points(50, seed=6)["lon"])


def test_fewer_points_than_windows() -> None:
    table = places.points(6, seed=1, time=("2020-01-01", "2020-12-31"), within="IT")
    assert len(table) == table["start"].nunique() == 6
    assert set(table["country"]) == {"IT"}


def test_strata_have_draws_of_their_own() -> None:
    """One seed in two strata of the same longitudes: no point of one mirrors one of the other."""
    north, south = shapely.box(5, 47, 7, 48), shapely.box(5, 46, 7, 47)
    one, two = (places.points(50, seed=1, within=area) for area in (north, south))
    assert not set(one["lon"]) & set(two["lon"])
    assert abs(np.corrcoef(one["lon"], two["lon"])[0, 1]) < 0.4
    pd.testing.assert_frame_equal(one, places.points(50, seed=1, within=north))


@pytest.mark.parametrize("said", ["MA", "ma", "MAR", "Morocco", "morocco", ["Morocco"]])
def test_a_country_goes_by_all_its_names(said: str | list[str]) -> None:
    one, two = places.points(5, seed=1, within="MA"), places.points(5, seed=1, within=said)
    pd.testing.assert_frame_equal(one, two)
    assert set(one["country"]) == {"MA"}


def test_countries_that_are_known_by_two_english_names() -> None:
    for name, code in {"Bolivia": "BO", "W. Sahara": "EH", "Western Sahara": "EH",
                       "Dem. Rep. Congo": "CD", "XKX": "XK", "Taiwan": "TW"}.items():  # fmt: skip
        assert places.land(name).equals(places.land(code))
    guiana = shapely.Point(-53, 4)
    assert places.land("FR").contains(guiana), "as `countries` says"
    west, east = shapely.Point(-13.5, 26.0), shapely.Point(-10.0, 26.0)
    assert places.land("MA").contains(west)
    assert places.land("EH").contains(east)


def test_an_unknown_country_names_the_nearest() -> None:
    with pytest.raises(CubeError, match=r"'Marocco'; did you mean 'MA' \(morocco\)\?"):
        places.points(3, seed=1, within="Marocco")
    with pytest.raises(CubeError, match="unknown country code 'QQ'"):
        places.points(3, seed=1, within=["FR", "QQ"])
    assert len(places.points(3, seed=1, within="california")) == 3
    assert places.land("UG").equals(places.land("Uganda"))
    assert not places.land("UG").equals(places.land("uganda"))


def test_within_countries_and_areas() -> None:
    assert set(places.points(200, seed=7, within=["FR", "de"])["country"]) <= {"FR", "DE"}
    table = places.points(200, seed=7, within=(5.0, 45.0, 8.0, 50.0))
    assert table["lon"].between(5, 8).all()
    assert table["lat"].between(45, 50).all()
    assert geobox(table["aoi"].iloc[0]).shape == (256, 256)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: places.points(0, seed=0), "at least 1"),
        (lambda: places.points(1, seed=0, within=["ZZ"]), "unknown country code 'ZZ'"),
        (lambda: places.points(1, seed=0, within=(-30, 0, -29, 1)), "no land within"),
        (lambda: places.points(1, seed=0, within=(-40, 83, -30, 83.5)), "drawn from -60 to 82.8"),
        (lambda: places.points(1, seed=0, time=("2020-01-01", "2020-01-05")), "holds no window"),
        (lambda: places.patches([shapely.box(0, 0, 1, 1)], size=2555), "whole number of pixels"),
        (lambda: places.patches(gpd.GeoSeries([shapely.box(0, 0, 1, 1)])), "no CRS"),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        call()


def test_patches_cover_their_geometries_and_keep_the_row() -> None:
    fields = gpd.GeoDataFrame(
        {"crop": ["wheat", "maize", "none", "polar"]},
        geometry=[shapely.box(5.0, 50.0, 5.08, 50.03), shapely.Point(5.5, 50.5),
                  shapely.Polygon(), shapely.box(0, 86, 1, 87)],
        index=["a", "b", "c", "d"], crs="EPSG:4326",
    )  # fmt: skip
    table = places.patches(fields)
    assert table.attrs["unmatched"] == ["c", "d"]
    assert set(table["row"]) == {"a", "b"}
    assert (table["row"] == "b").sum() == 1
    assert (table["x"] % 2560 == 0).all()
    assert (table["y"] % 2560 == 0).all()
    # together the cells of a row hold the whole geometry
    from pyproj import Geod

    area = abs(Geod(ellps="WGS84").geometry_area_perimeter(fields.geometry["a"])[0])
    covered = table.loc[table["row"] == "a", "share"].sum() * 2560**2
    assert covered == pytest.approx(area, rel=2e-3)
    first = table.iloc[0]
    assert geobox(first["aoi"]) == first["grid"].geobox


def test_a_cell_written_in_degrees_is_one_cell() -> None:
    """Its corners in degrees make edges that bulge by metres into the cells around it."""
    cell = shapely.box(512_000, 5_601_280, 514_560, 5_603_840)
    table = places.patches(gpd.GeoSeries([cell], crs="EPSG:32631"))
    assert table[["x", "y"]].to_numpy().tolist() == [[512_000, 5_603_840]]
    assert table["share"].item() == pytest.approx(1, abs=2e-3)
    # thinner than the slack and along a border: it has a cell all the same
    thin = shapely.box(512_000, 5_601_277, 514_000, 5_601_283)
    assert len(places.patches(gpd.GeoSeries([thin], crs="EPSG:32631"))) >= 1


def test_cells_lie_in_the_zone_of_their_ground() -> None:
    """California lies in zones 10 and 11; on one lattice its coast would be 0.45 % too large."""
    table = places.patches([registry.named_aoi("california").geometry], size=20_480.0)
    assert set(table["crs"]) == {"EPSG:32610", "EPSG:32611"}
    middles = table["aoi"].map(lambda a: a.geometry.centroid.x)
    west = table["crs"] == "EPSG:32610"
    assert (middles[west] < -120 + 0.13).all()  # half a cell reaches over the border
    assert (middles[~west] > -120 - 0.13).all()


def test_points_lie_where_their_columns_say() -> None:
    table = places.points(500, seed=8)
    x, y = (table["aoi"].map(lambda a, k=k: getattr(a.geometry, k)) for k in "xy")
    assert np.abs(x - table["lon"]).max() < 1e-6
    assert np.abs(y - table["lat"]).max() < 1e-6


@pytest.mark.parametrize(
    "box",
    [
        shapely.box(179.97, -16.9, 180, -16.85),
        shapely.box(-180, -16.9, -179.97, -16.85),
        shapely.MultiPolygon(
            [shapely.box(179.97, 65, 180, 65.03), shapely.box(-180, 65, -179.97, 65.03)]
        ),
        shapely.box(-35, 83.95, -34.9, 83.999),
        shapely.box(-35, -79.99, -34.9, -79.95),
    ],
)
def test_cells_at_180_degrees_and_at_the_ends_of_utm(box: shapely.Geometry) -> None:
    """They once ended the call, and every other row went with them."""
    from pyproj import Geod

    table = places.patches([shapely.box(5, 50, 5.05, 50.05), box])
    assert table.attrs["unmatched"] == []
    assert set(table["row"]) == {0, 1}
    here = table[table["row"] == 1]
    area = sum(
        abs(Geod(ellps="WGS84").geometry_area_perimeter(part)[0]) for part in shapely.get_parts(box)
    )
    assert here["share"].sum() * 2560**2 == pytest.approx(area, rel=4e-3)
    for aoi, grid in zip(here["aoi"], here["grid"], strict=True):
        west, _, east, _ = aoi.geometry.bounds
        assert east - west < 0.5
        assert grid.geobox.shape == (256, 256)


def test_rows_in_metres_over_180_degrees_have_cells_on_both_sides() -> None:
    middle = gpd.GeoSeries([shapely.Point(180, -16.9)], crs="EPSG:4326").to_crs("EPSG:32660")
    table = places.patches(middle.buffer(6000, cap_style="square"))
    assert set(table["crs"]) == {"EPSG:32660", "EPSG:32601"}
    assert table["share"].sum() * 2560**2 == pytest.approx(12_000**2, rel=3e-3)
    assert len(table) < 80


def test_rows_without_cells_say_why() -> None:
    rows = [
        shapely.box(5, 50, 5.05, 50.05),
        shapely.Polygon(),
        shapely.box(-179.99, 10, 179.99, 11),
        shapely.box(500_000, 10, 500_100, 80),
        shapely.box(0, 85, 1, 86),
    ]
    table = places.patches(rows)
    assert set(table["row"]) == {0}
    assert table.attrs["unmatched"] == [1, 2, 3, 4]
    for reason, word in zip(
        table.attrs["reasons"], ["empty", "either side", "CRS", "range of UTM"], strict=True
    ):
        assert word in reason
