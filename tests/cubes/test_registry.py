"""Rows become nouns; unknown names and keys get the nearest one that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from cubes import registry
from cubes.types import AOI, CubeError


@pytest.mark.parametrize("name", list(registry.layers()))
def test_every_layer_row_is_consistent(name: str) -> None:
    layer = registry.layer(name)
    assert layer.dims[-2:] == ("y", "x")
    assert (layer.channel_dim is None) == (not layer.channels)
    assert set(layer.channels) <= set(registry.all_channels(name))
    assert layer.valid_range[0] < layer.valid_range[1]
    if layer.legend:
        legend = registry.legend(layer.legend)
        assert layer.nodata not in legend.classes
        assert legend.nodata in (layer.nodata, None)  # None: every code of the legend is real
    if layer.derived_from:
        assert registry.layer(layer.derived_from).group == layer.group


@pytest.mark.parametrize("name", registry.catalogs())
def test_every_catalogue_row_names_known_layers_and_channels(name: str) -> None:
    row = registry.catalog(name)
    assert row.products
    for layer, product in row.products.items():
        assert set(product.assets) <= set(registry.all_channels(layer)) | {""}


def test_extending_rows_keeps_what_is_not_replaced() -> None:
    base, c1 = registry.catalog("earth-search"), registry.catalog("earth-search-c1")
    assert c1.url == base.url
    assert c1.products["s2/reflectance"].assets == base.products["s2/reflectance"].assets
    assert c1.products["s2/reflectance"].offset_rule == "always"
    assert base.products["s2/reflectance"].offset_rule == "earthsearch_flag"


@pytest.mark.parametrize(
    ("look", "word"),
    [
        (lambda: registry.layer("s1/backscater"), "did you mean 's1/backscatter'"),
        (lambda: registry.catalog("planetary-computr"), "did you mean 'planetary-computer'"),
        (lambda: registry.legend("worldcove"), "did you mean 'worldcover'"),
        (lambda: registry.named_aoi("californa"), "did you mean 'california'"),
        (lambda: registry.layer("s2/reflectance").pick(("B10",)), "has no band 'B10'"),
    ],
)
def test_unknown_names_get_the_nearest(look, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        look()


def test_a_users_file_adds_rows_and_confines_reads_to_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[catalogs.mine-x]\nextends="planetary-computer"\nurl="data/catalog.json"\nkind="static"\n'
        'access={schemes=["file"], hosts=[], sign=""}\n'
        "[aois.my-field]\nwkt='POINT (5 50)'\nsize=640\n"
    )
    row = registry.catalog(path)
    assert row.url == str(tmp_path / "data" / "catalog.json")
    assert row.access.roots == (str(tmp_path / "data"),)
    assert row.access.sign is None
    assert registry.add(path) == ("mine-x", "my-field")
    assert registry.catalog("mine-x") == row
    assert registry.named_aoi("my-field") == AOI(name="my-field", wkt="POINT (5 50)", size=640)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[catalogs.a]\nurl='x'\nkindd='api'\n", "did you mean 'kind'"),
        ("[catalog.a]\nurl='x'\n", "did you mean 'catalogs'"),
        ("[catalogs.a]\nextends='a'\n", "unknown|extends itself"),
        ("not toml", "not valid TOML"),
        ("[aois.a]\nwkt='POINT (0 0)'\n", "holds 0 catalogues"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(CubeError, match=word):
        registry.catalog(path)


@pytest.mark.parametrize(
    ("name", "land_km2", "towns"),
    [
        # areas as the states and countries give them; towns lon, lat
        ("california", 403_900, [(-121.49, 38.58), (-117.16, 32.72), (-122.20, 41.97)]),
        ("central-valley", 47_000, [(-119.79, 36.74), (-121.84, 39.73), (-119.02, 35.37)]),
        ("iowa", 145_700, [(-93.62, 41.59), (-96.40, 42.50), (-90.66, 42.50)]),
        ("catalonia", 32_100, [(2.17, 41.39), (0.63, 41.62), (1.25, 41.12)]),
        ("ethiopia", 1_104_000, [(38.75, 9.02), (41.87, 9.60), (39.47, 13.49)]),
        ("uganda", 241_000, [(32.58, 0.35), (30.66, -0.61), (34.18, 1.08)]),
        ("sumatra", 434_000, [(98.67, 3.59), (104.75, -2.98), (100.36, -0.90)]),
    ],
)
def test_areas_of_the_predecessors(
    name: str, land_km2: float, towns: list[tuple[float, float]]
) -> None:
    import pyproj
    import shapely

    area = shapely.from_wkt(registry.named_aoi(name).wkt)
    assert area.is_valid
    for lon, lat in towns:
        assert area.contains(shapely.Point(lon, lat)), (lon, lat)
    parts = area.geoms if hasattr(area, "geoms") else [area]
    geod = pyproj.Geod(ellps="WGS84")
    km2 = sum(abs(geod.geometry_area_perimeter(p)[0]) for p in parts) / 1e6
    assert km2 == pytest.approx(land_km2, rel=0.10 if name == "central-valley" else 0.03)
    assert name in registry.aois()
