"""Rows become nouns; unknown names and keys get the nearest one that is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from cubes import registry
from cubes.types import AOI, CubeError


@pytest.fixture(autouse=True)
def rows_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a test adds are known to no other."""
    monkeypatch.setattr(registry, "_rows", registry._Rows())


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


CATALOG = """
[catalogs.a]
url = "https://example.org"
kind = "api"
[catalogs.a.products."s1/backscatter"]
collection = "c"
assets = { vv = "vv" }
"""
LAYER = """
[layers."s9/heat"]
long_name = "heat"
dims = ["time", "y", "x"]
units = "K"
kind = "continuous"
work_dtype = "float32"
work_nodata = nan
convert = "identity"
dtype = "int16"
scale = 0.01
nodata = -32768
kernel = "bilinear"
resolution = 1000
valid_range = [200, 380]
"""


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('kind = "api"', 'kind = "apy"', "catalogue 'a': 'apy'; did you mean 'api'"),
        ('url = "https://example.org"', "", "catalogue 'a' lacks 'url'"),
        ('url = "https://example.org"', 'url = "x.json"', 'on a disk has kind = "static"'),
        ('assets = { vv = "vv" }', "", "lacks 'assets'"),
        ('assets = { vv = "vv" }', 'assets = { VV = "vv" }', "name 'VV'; channels .* vv, vh"),
        ("{ vv = ", '{ vv = "vv" }\nzero = "no data"\nquery = { x = ', "did you mean 'nodata'"),
        ("{ vv = ", '{ vv = "vv" }\noffset_rule = "basline"\nquery = { x = ',
         "did you mean 'baseline'"),
        ("{ vv = ", '{ vv = "vv" }\ncalibration = "gamma0-rtc"\nquery = { x = ',
         "did you mean 'gamma0_rtc'"),
        ("{ vv = ", '{ vv = "vv" }\nnodata = "0"\nquery = { x = ', "is '0', not a number"),
        ('"s1/backscatter"]', '"s2/reflectance"]\nscale = 0.0001', "raster:scale is another thing"),
        ('"s1/backscatter"]', '"s2/scl"]', 'has no channels: assets = { "" = "KEY" }'),
    ],
)  # fmt: skip
def test_a_value_that_a_catalogue_row_cannot_have(
    tmp_path: Path, old: str, new: str, word: str
) -> None:
    path = tmp_path / "bad.toml"
    assert old in CATALOG
    text = CATALOG.replace(old, new, 1)
    if "s2/" in new:
        text = text.replace("{ vv =", "{ B04 =")
    path.write_text(text)
    with pytest.raises(CubeError, match=word):
        registry.catalog(path)
    with pytest.raises(CubeError, match=f"bad.toml.*{word}"):
        registry.add(path)
    assert "a" not in registry.catalogs()


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('"identity"', '"kelvin"', "value for convert .*'kelvin'"),
        ('"bilinear"', '"cubicc"', "value for kernel"),
        ('"continuous"', '"continous"', "did you mean 'continuous'"),
        ('["time", "y", "x"]', '["y", "x", "time"]', "dims of layer .* then y, x"),
        ('["time", "y", "x"]', '["time", "band", "y", "x"]', "needs channels where"),
        ('dtype = "int16"', 'dtype = "int17"', "did you mean 'int16'"),
        ("[200, 380]", "[380, 200]", "least, most"),
        ("valid_range = [200, 380]", "", "lacks 'valid_range'"),
        ('units = "K"', "units = 5", "units of .* is 5, not a text"),
        ('"s9/heat"', '"heat"', "a name is GROUP/VARIABLE"),
    ],
)
def test_a_value_that_a_layer_row_cannot_have(
    tmp_path: Path, old: str, new: str, word: str
) -> None:
    path = tmp_path / "bad.toml"
    assert old in LAYER
    path.write_text(LAYER.replace(old, new, 1))
    with pytest.raises(CubeError, match=f"bad.toml.*{word}"):
        registry.add(path)
    assert not {"s9/heat", "heat"} & set(registry.layers())


def test_a_file_with_one_catalogue_brings_its_layers_along(tmp_path: Path) -> None:
    path = tmp_path / "whole.toml"
    text = CATALOG.replace("s1/backscatter", "s8/warmth").replace("{ vv =", '{ "" =')
    path.write_text(LAYER.replace("s9/heat", "s8/warmth") + text)
    row = registry.catalog(path)
    assert set(row.products) == {"s8/warmth"}
    assert registry.layer("s8/warmth").units == "K"


def test_a_catalogues_url_may_be_a_path() -> None:
    path = Path("a") / "catalog.json"
    named = registry.catalog("simulated", url="a/catalog.json")
    assert registry.catalog("simulated", url=path).url == named.url
    assert isinstance(named.url, str)
