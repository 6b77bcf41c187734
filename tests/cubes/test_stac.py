"""Granules from every kind of catalogue; lazy arrays equal to `block` through both libraries."""

from __future__ import annotations

import contextlib
import copy
import http.server
import json
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from cubes.reading.read import block
from cubes.stac import arrays
from cubes.stac import search as stac
from cubes.stac.items import COLUMNS, absolute, answers, interval, row
from cubes.types import Access, ArrayPlan, Asset, Catalog, CubeError, Layer

UTM31 = "EPSG:32631"
READERS: tuple[Literal["odc", "stackstac"], ...] = ("odc", "stackstac")


def item(n: int, **changes: Any) -> dict[str, Any]:
    """Return one of a row of granules, each a degree wide and a day later."""
    west = float(n)
    ring = [[west, 50], [west + 1, 50], [west + 1, 51], [west, 51], [west, 50]]
    properties = {
        "datetime": f"2021-05-{n + 1:02d}T10:00:00Z", "platform": "Sentinel-2A",
        "eo:cloud_cover": 10.0 * n, **changes.pop("properties", {}),
    }  # fmt: skip
    return {
        "type": "Feature", "stac_version": "1.1.0", "id": f"granule-{n}", "collection": "optical",
        "geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": [west, 50, west + 1, 51],
        "properties": properties, "links": [], "assets": {"red": {"href": f"../data/{n}.tif"}},
        **changes,
    }  # fmt: skip


ITEMS = [item(n) for n in range(6)]


def ids(found: Any) -> list[str]:
    return list(found["id"])


# ------------------------------------------------------------------------------------ filters


def test_filters_and_order_are_ours() -> None:
    given = [*ITEMS, copy.deepcopy(ITEMS[2])]
    random.Random(1).shuffle(given)
    found = stac.granules(given, "optical")
    assert ids(found) == [f"granule-{n}" for n in range(6)]
    assert tuple(found.columns) == COLUMNS
    assert found["time"].dtype == "datetime64[ns]"
    assert ids(stac.granules(given, "optical", time=("2021-05-02", "2021-05-03"))) == [
        "granule-1", "granule-2",
    ]  # fmt: skip
    assert ids(stac.granules(given, "optical", bbox=(2.5, 50.2, 3.5, 50.4))) == [
        "granule-2", "granule-3",
    ]  # fmt: skip
    area = shapely.Point(4.5, 50.5).buffer(0.1)
    assert ids(stac.granules(given, "optical", geometry=area)) == ["granule-4"]
    assert ids(stac.granules(given, "optical", query={"eo:cloud_cover": {"lt": 15}})) == [
        "granule-0", "granule-1",
    ]  # fmt: skip


def test_a_bare_date_counts_to_its_end() -> None:
    start, end = interval(("2021-05-01", "2021-05"))
    assert str(start) == "2021-05-01 00:00:00"
    assert str(end) == "2021-05-31 23:59:59.999999999"
    assert str(interval(("2020", "2020-02-03T04:05:06+02:00"))[1]) == "2020-02-03 02:05:06"
    with pytest.raises(CubeError, match="reversed"):
        interval(("2021-06-01", "2021-05-01"))
    with pytest.raises(CubeError, match="ISO 8601"):
        interval(("yesterday", ".."))


def test_the_newest_of_one_id_is_kept() -> None:
    old = item(0, properties={"updated": "2021-06-01T00:00:00Z", "eo:cloud_cover": 1})
    new = item(0, properties={"updated": "2021-07-01T00:00:00Z", "eo:cloud_cover": 2})
    for given in ([old, new], [new, old]):
        assert stac.granules(given, "optical")["cloud_cover"].tolist() == [2.0]


def test_queries() -> None:
    have = {"a": 3, "b": "xyz"}
    for query in ({"a": 3}, {"a": {"gte": 3, "lt": 4}}, {"b": {"startsWith": "x"}},
                  {"b": {"in": ["xyz", "q"]}}, {"a": {"neq": 4}}):  # fmt: skip
        assert answers(have, query)
    for query in ({"a": 4}, {"a": {"gt": 2, "lt": 3}}, {"c": {"lt": 1}}, {"b": {"contains": "q"}}):
        assert not answers(have, query)
    with pytest.raises(CubeError, match=r"unknown operator 'like'.*startsWith"):
        answers(have, {"b": {"like": "x%"}})


def test_the_antimeridian() -> None:
    east = item(0, geometry=shapely.geometry.mapping(shapely.box(179, -17, 180, -16)))
    west = item(1, geometry=shapely.geometry.mapping(shapely.box(-180, -17, -179, -16)))
    far = item(2, geometry=shapely.geometry.mapping(shapely.box(0, -17, 1, -16)))
    found = stac.granules([east, west, far], "optical", bbox=(179.5, -17, -179.5, -16))
    assert ids(found) == ["granule-0", "granule-1"]


def test_empty_results_say_why() -> None:
    with pytest.raises(CubeError, match=r"'optical'.*time 2022.*6 items.*2021-05-01"):
        stac.granules(ITEMS, "optical", time=("2022-01-01", "2022-02-01"))
    with pytest.raises(CubeError, match=r"area 80\.0000, 0\.0000, 81\.0000, 1\.0000"):
        stac.granules(ITEMS, "optical", bbox=(80, 0, 81, 1))
    west, south, east, north = ITEMS[0]["bbox"]
    with pytest.raises(CubeError, match="longitude and latitude swapped"):
        stac.granules(ITEMS, "optical", bbox=(south, west, north, east))
    with pytest.raises(CubeError, match=r"within 0\.0000, 50\.0000, .* the area lies outside"):
        stac.granules(ITEMS, "optical", bbox=(80, 0, 81, 1))
    with pytest.raises(CubeError, match=r"'optica'.*has collections optical; 'optical'\?"):
        stac.granules(ITEMS, "optica")


# -------------------------------------------------------------------------------- items in hand


def test_anything_that_holds_items(tmp_path: Path) -> None:
    collection = {"type": "FeatureCollection", "features": ITEMS}
    path = tmp_path / "deep" / "items.json"
    path.parent.mkdir()
    path.write_text(json.dumps(collection))
    parsed = [pystac.Item.from_dict(copy.deepcopy(i)) for i in ITEMS]
    expected = ids(stac.granules(ITEMS, "optical"))
    for given in (collection, path, str(path), parsed, pystac.ItemCollection(parsed), [path]):
        assert ids(stac.granules(given, "optical")) == expected
    found = stac.granules(path, "optical")
    assert found["assets"][0]["red"]["href"] == str(tmp_path / "data" / "0.tif")
    for wrong in (3, {"type": "Polygon"}, [None]):
        with pytest.raises(CubeError, match="STAC item"):
            stac.granules(wrong, "optical")


@pytest.mark.parametrize(
    ("href", "base", "expected"),
    [
        ("../a.tif", "/x/y/item.json", "/x/a.tif"),
        ("./a.tif", "file:///x/y/item.json", "/x/y/a.tif"),
        ("../a.tif?v=1", "https://h.org/x/y/item.json", "https://h.org/x/a.tif?v=1"),
        ("../a.tif", "s3://bucket/x/y/item.json", "s3://bucket/x/a.tif"),
        ("../../../../a.tif", "s3://bucket/x/item.json", "s3://bucket/a.tif"),
        ("https://h.org/a.tif", "/x/item.json", "https://h.org/a.tif"),
        ("/abs/a.tif", "/x/item.json", "/abs/a.tif"),
        ("a.tif", None, "a.tif"),
    ],
)
def test_hrefs_become_absolute(href: str, base: str | None, expected: str) -> None:
    assert absolute(href, base) == expected


def items_of(path: Path) -> list[dict[str, Any]]:
    body = json.loads(path.read_text())
    if body.get("type") == "FeatureCollection":
        return list(body["features"])
    return [body] if body.get("type") == "Feature" else []


@pytest.mark.real
def test_every_real_item_becomes_a_row(real: Path) -> None:
    rows = [
        row(i, str(path))
        for path in sorted((real / "items").rglob("*json"))
        for i in items_of(path)
    ]
    assert len(rows) > 60
    by_id = {r["id"]: r for r in rows}
    s1 = by_id["S1A_IW_GRDH_1SDV_20191215T004314_20191215T004339_030352_0378DC_rtc"]
    assert s1["orbit_state"] in ("ascending", "descending")
    assert s1["absolute_orbit"] == 30352
    assert all(a["href"].startswith("https://") for a in s1["assets"].values())
    s2 = by_id["S2A_28QCH_20200714_0_L2A"]
    assert (s2["tile"], str(s2["time"])[:10]) == ("28QCH", "2020-07-14")
    assert 0 <= s2["cloud_cover"] <= 100
    # said only by the product's name in this catalogue
    assert (s2["baseline"], s2["relative_orbit"]) == ("02.14", 123)
    esa = by_id["ESA_WorldCover_10m_2021_v200_N00E006"]
    assert str(esa["time"]).startswith("2021")
    assert sum(r["tile"] is not None for r in rows) > 20


@pytest.mark.real
def test_earth_search_scenes(real: Path) -> None:
    paths = sorted((real / "s2-scenes").glob("*/*.json"))
    found = stac.granules(paths, "sentinel-2-l2a", bbox=(15.0, 46.2, 15.1, 46.3))
    assert set(found["tile"]) == {"33TWM"}
    assert len(found) == 2
    assert found["baseline"].tolist() == ["05.09", "05.09"]
    assert found["platform"].tolist() == ["sentinel-2b"] * 2
    assert found["sun_elevation"].between(40, 60).all()


# ------------------------------------------------------------------------------------- static


def static(tmp_path: Path, **access: Any) -> Catalog:
    """Write a catalogue of two collections, one in nested folders, and return its row."""
    (tmp_path / "optical" / "2021").mkdir(parents=True)
    (tmp_path / "radar").mkdir()

    def write(path: str, body: dict[str, Any]) -> None:
        (tmp_path / path).write_text(json.dumps(body))

    def link(rel: str, href: str) -> dict[str, str]:
        return {"rel": rel, "href": href}

    write("catalog.json", {"type": "Catalog", "id": "c", "links": [
        link("root", "./catalog.json"), link("child", "optical/collection.json"),
        link("child", "radar/collection.json")]})  # fmt: skip
    write("optical/collection.json", {"type": "Collection", "id": "optical", "links": [
        link("parent", "../catalog.json"), link("child", "2021/catalog.json"),
        link("child", "../optical/collection.json")]})  # fmt: skip
    write("optical/2021/catalog.json", {"type": "Catalog", "id": "y", "links": [
        link("item", f"{i['id']}.json") for i in ITEMS]})  # fmt: skip
    for i in ITEMS:
        write(f"optical/2021/{i['id']}.json", i)
    # this one must not be opened when the other is asked for: it does not even parse
    write("radar/collection.json", {"type": "Collection", "id": "radar", "links": [
        link("item", "broken.json")]})  # fmt: skip
    (tmp_path / "radar" / "broken.json").write_text("{")
    return Catalog(
        name="mine", url=str(tmp_path / "catalog.json"), kind="static", products={},
        access=Access(schemes=("file",), **access),
    )  # fmt: skip


def test_static_catalogues(tmp_path: Path) -> None:
    catalog = static(tmp_path)
    found = stac.granules(catalog, "optical", time=("2021-05-02", "2021-05-04"))
    assert ids(found) == ["granule-1", "granule-2", "granule-3"]
    assert found["assets"][0]["red"]["href"] == str(tmp_path / "optical" / "data" / "1.tif")
    assert found["self_href"][0] == str(tmp_path / "optical" / "2021" / "granule-1.json")
    with pytest.raises(CubeError, match=r"no collection 'optic'.*optical, radar.*mean 'optical'"):
        stac.granules(catalog, "optic")
    with pytest.raises(CubeError, match=r"broken\.json cannot be read"):
        stac.granules(catalog, "radar")


def test_static_links_may_not_leave_the_catalogue(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps(ITEMS[0]))
    root = tmp_path / "in"
    root.mkdir()
    catalog = static(root)
    body = {
        "type": "Catalog",
        "id": "y",
        "links": [{"rel": "item", "href": "../../../outside.json"}],
    }
    (root / "optical" / "2021" / "catalog.json").write_text(json.dumps(body))
    with pytest.raises(CubeError, match="outside its own folder"):
        stac.granules(catalog, "optical")
    body["links"][0]["href"] = "https://127.0.0.1/item.json"
    (root / "optical" / "2021" / "catalog.json").write_text(json.dumps(body))
    with pytest.raises(CubeError, match="scheme 'https' is not allowed"):
        stac.granules(catalog, "optical")


@pytest.mark.real
def test_flanders(real: Path) -> None:
    catalog = Catalog(
        name="flanders", url=str(real / "flanders" / "catalog.json"), kind="static", products={}
    )
    counts = {c: len(stac.granules(catalog, c)) for c in ("sentinel-2-l2a", "sentinel-1-sigma0")}
    assert counts == {"sentinel-2-l2a": 118, "sentinel-1-sigma0": 159}
    found = stac.granules(catalog, "sentinel-2-l2a", query={"eo:cloud_cover": {"lt": 5}})
    assert 0 < len(found) < 118
    assert Path(found["assets"][0]["B02"]["href"]).is_file()


# ---------------------------------------------------------------------------------------- API


def served(tmp_path: Path, server: Callable[..., str], given: list[dict[str, Any]]) -> Catalog:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    body = {
        "type": "Collection", "stac_version": "1.1.0", "id": "optical", "description": "x",
        "license": "other", "extent": extent, "links": [],
    }  # fmt: skip
    (tmp_path / "collection.json").write_text(json.dumps(body))
    features = {"type": "FeatureCollection", "features": given}
    (tmp_path / "items.json").write_text(json.dumps(features))
    url = server(tmp_path / "collection.json", tmp_path / "items.json")
    return Catalog(name="api", url=url, kind="api", products={}, page_size=2)


@pytest.mark.server
def test_a_real_api_pages_and_a_wide_search_answers_the_narrow_ones_in_it(
    tmp_path: Path, server: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [
        item(n, assets={"red": {"href": f"https://h.org/{n}.tif"}}) for n in (5, 3, 1, 0, 2, 4)
    ]
    catalog = served(tmp_path, server, given)
    whole = stac.granules(catalog, "optical", bbox=(-1, 49, 9, 52), time=("2021-05-01", ".."))
    assert ids(whole) == [f"granule-{n}" for n in range(6)]
    part = stac.granules(
        catalog, "optical", bbox=(1.5, 50, 3.5, 51), time=("2021-05-01", "2021-05-03")
    )
    assert ids(part) == ["granule-1", "granule-2"]
    # rustac answers a query with nothing: asked again without, filtered here
    clear = stac.granules(catalog, "optical", query={"eo:cloud_cover": {"lt": 15}})
    assert ids(clear) == ["granule-0", "granule-1"]

    asked = []
    ask = stac._ask
    monkeypatch.setattr(stac, "_ask", lambda *a, **k: asked.append(a[1]) or ask(*a, **k))
    area, period = shapely.box(-1, 49, 9, 52), ("2021-05-01", "2021-05-31")
    narrow = {"bbox": (1.5, 50, 3.5, 51), "time": ("2021-05-01", "2021-05-03")}
    with stac.searched(catalog, [("optical", True, {})], area, period):
        assert asked == ["optical"]
        assert ids(stac.granules(catalog, "optical", **narrow)) == ids(part)
        assert asked == ["optical"]
        # what it does not cover is asked for: a wider area, another time, another query
        stac.granules(catalog, "optical", bbox=(-9, 49, 9, 52))
        stac.granules(catalog, "optical", bbox=(1.5, 50, 3.5, 51), time=("2021-04-01", ".."))
        stac.granules(catalog, "optical", **narrow, query={"eo:cloud_cover": {"lt": 99}})
        assert len(asked) == 4
    # outside the block nothing is remembered: a catalogue grows while a session lives
    stac.granules(catalog, "optical", **narrow)
    assert len(asked) == 5


@contextlib.contextmanager
def web(host: str, answer: Callable[[str], tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """Serve whatever `answer` gives for a path; yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with http.server.ThreadingHTTPServer((host, 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{served.server_port}"
        finally:
            served.shutdown()
            thread.join(10)


def test_a_static_catalogue_cannot_be_redirected_past_the_list() -> None:
    inner = []

    def secret(path: str) -> tuple[int, dict[str, str], bytes]:
        inner.append(path)
        return 200, {}, json.dumps(item(0, assets={})).encode()

    with web("127.0.0.2", secret) as inside:
        goes = {
            "/away.json": f"{inside}/latest",
            "/on.json": "/item.json",
            "/round.json": "round.json",
        }

        def public(path: str) -> tuple[int, dict[str, str], bytes]:
            if path in goes:
                return 302, {"Location": goes[path]}, b""
            if path == "/item.json":
                return 200, {}, json.dumps(item(7, assets={})).encode()
            link = {"rel": "item", "href": path.removeprefix("/to").removesuffix("/catalog.json")}
            return 200, {}, json.dumps({"type": "Catalog", "id": "a", "links": [link]}).encode()

        with web("127.0.0.1", public) as outside:
            access = Access(schemes=("http",), hosts=("127.0.0.1",))

            def found(to: str) -> list[str]:
                url = f"{outside}/to/{to}/catalog.json"
                catalog = Catalog(name="m", url=url, kind="static", access=access, products={})
                return ids(stac.granules(catalog, "optical"))

            assert found("on.json") == ["granule-7"]
            with pytest.raises(CubeError, match=r"127\.0\.0\.2"):
                found("away.json")
            with pytest.raises(CubeError, match="redirects more than"):
                found("round.json")
    assert inner == []


def test_an_api_that_is_not_there_is_named() -> None:
    catalog = Catalog(name="gone", url="http://127.0.0.1:9/?token=SECRET", kind="api", products={})
    with pytest.raises(CubeError, match="searching catalogue 'gone'") as caught:
        stac._ask(catalog, "optical", None, None, {})
    assert "SECRET" not in str(caught.value)


# --------------------------------------------------------------------------------------- lazy


def layer(**changes: Any) -> Layer:
    body: dict[str, Any] = {
        "name": "s2/reflectance", "long_name": "x", "dims": ("time", "band", "y", "x"),
        "channels": ("B02", "B03"), "units": "1", "kind": "continuous", "work_dtype": "uint16",
        "work_nodata": 0, "convert": "stored", "dtype": "uint16", "nodata": 0,
        "kernel": "nearest", "resolution": 10, "valid_range": (-1, 7),
    }  # fmt: skip
    return Layer(**{**body, **changes})


GRID = GeoBox((150, 170), Affine(10, 0, 500_020, 0, -10, 5_599_970), UTM31)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of granules: two lattices, two zones, holes, float power beside integers."""
    folder = tmp_path_factory.mktemp("archive")
    rng = np.random.default_rng(2)
    places = [
        (UTM31, Affine(10, 0, 500_000, 0, -10, 5_600_000)),
        (UTM31, Affine(20, 0, 500_400, 0, -20, 5_600_400)),
        ("EPSG:32632", Affine(10, 0, 73_000, 0, -10, 5_615_000)),
    ]
    for n, (crs, transform) in enumerate(places):
        for k in range(2):
            pixels = rng.integers(1, 9000, (210, 200)).astype("uint16")
            pixels[rng.random(pixels.shape) < 0.2] = 0
            for name, values in ((f"{n}{k}", pixels), (f"{n}{k}f", pixels.astype("float32") / 1e4)):
                with rasterio.open(
                    folder / f"{name}.tif", "w", driver="GTiff", height=210, width=200, count=1,
                    dtype=values.dtype, crs=crs, transform=transform, tiled=True, blockxsize=64,
                    blockysize=64, compress="deflate",
                ) as out:  # fmt: skip
                    out.write(values, 1)
    return folder


def planned(folder: Path, *, floats: bool = False) -> ArrayPlan:
    def one(n: int, k: int) -> Asset:
        name = f"{n}{k}f" if floats else f"{n}{k}"
        return Asset(href=str(folder / f"{name}.tif"), item=f"i{n}", key=f"k{k}", nodata=0)

    far = Asset(href=str(folder / "absent.tif"), item="far", key="k", bbox=(90, 1, 91, 2))
    steps = (
        {"B02": (one(0, 0),), "B03": (one(0, 1),)},
        {"B02": (), "B03": ()},
        {"B02": (far, one(1, 0), one(0, 0), one(2, 0)), "B03": (one(2, 1), one(1, 1))},
        {"B02": (one(2, 0), one(0, 1))},
    )
    if not floats:
        return ArrayPlan(layer=layer(), steps=steps)
    power = layer(work_dtype="float32", work_nodata=float("nan"), kernel="average")
    return ArrayPlan(layer=power, steps=steps)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("floats", [False, True])
def test_lazy_equals_block(archive: Path, reader: Any, floats: bool) -> None:
    allowed = Access(schemes=("file",), roots=(str(archive),))
    array = planned(archive, floats=floats)
    expected = np.stack([block(array, n, GRID, allowed) for n in range(4)])
    assert 0.3 < ((expected > 0) & np.isfinite(expected)).mean() < 1
    for chunks in ((150, 170), (64, 64), (70, 33)):
        found = arrays.lazy(array, GRID, allowed, chunks=chunks, reader=reader)
        assert found.shape == (4, 2, 150, 170)
        assert found.dtype == array.layer.work_dtype
        assert found.chunks[2:] == _chunks((150, 170), chunks)
        assert found.chunks[:2] == ((1,) * 4, (1,) * 2)
        np.testing.assert_array_equal(found.compute(scheduler="threads"), expected)
    # one channel of one step reads that one alone
    np.testing.assert_array_equal(found[2, 1, :40, :40].compute(), expected[2, 1, :40, :40])


def _chunks(shape: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(min(s, n - i) for i in range(0, n, s)) for n, s in zip(shape, size, strict=True)
    )


@pytest.mark.parametrize("reader", READERS)
def test_names_follow_the_plan(archive: Path, reader: Any) -> None:
    allowed = Access(schemes=("file",), roots=(str(archive),))
    array = planned(archive)

    def name(plan: ArrayPlan) -> str:
        return str(arrays.lazy(plan, GRID, allowed, chunks=(64, 64), reader=reader).name)

    assert name(array) == name(planned(archive))
    first = array.steps[0]["B02"][0]
    shifted = Asset(href=first.href, item=first.item, key=first.key, nodata=0, shift=1000.0)
    steps = ({"B02": (shifted,), "B03": array.steps[0]["B03"]}, *array.steps[1:])
    assert name(ArrayPlan(layer=array.layer, steps=steps)) != name(array)


@pytest.mark.parametrize("reader", READERS)
def test_graphs_travel_to_other_processes(archive: Path, reader: Any) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    allowed = Access(schemes=("file",), roots=(str(archive),))
    found = arrays.lazy(planned(archive), GRID, allowed, chunks=(150, 170), reader=reader)
    again = pickle.loads(cloudpickle.dumps(found))
    np.testing.assert_array_equal(again.compute(), found.compute())


@pytest.mark.parametrize("reader", READERS)
def test_layers_without_channels_and_without_assets(archive: Path, reader: Any) -> None:
    allowed = Access(schemes=("file",), roots=(str(archive),))
    flat = layer(name="terrain/elevation", dims=("y", "x"), channels=())
    one = Asset(href=str(archive / "00.tif"), item="i", key="k", nodata=0)
    array = ArrayPlan(layer=flat, steps=({"": (one,)},))
    found = arrays.lazy(array, GRID, allowed, chunks=(64, 64), reader=reader)
    np.testing.assert_array_equal(found.compute()[0], block(array, 0, GRID, allowed))
    nothing = ArrayPlan(layer=layer(), steps=({}, {}))
    found = arrays.lazy(nothing, GRID, allowed, chunks=(64, 64), reader=reader)
    assert found.shape == (2, 2, 150, 170)
    assert not found.compute().any()


def test_what_lazy_refuses(archive: Path) -> None:
    array = planned(archive)
    wrong: Any = "gdal"
    with pytest.raises(CubeError, match="odc and stackstac"):
        arrays.lazy(array, GRID, Access(), chunks=(64, 64), reader=wrong)
    derived = ArrayPlan(layer=layer(derived_from="s2/scl"), steps=())
    with pytest.raises(CubeError, match="s2/scl"):
        arrays.lazy(derived, GRID, Access(), chunks=(64, 64))
    odd = GeoBox((9, 9), Affine(10, 0, 0, 0, -10, 0), "+proj=laea +lat_0=51 +lon_0=4")
    with pytest.raises(CubeError, match="reader='odc'"):
        arrays.lazy(array, odd, Access(), chunks=(9, 9), reader="stackstac")


@pytest.mark.real
def test_two_readers_on_real_scenes(real: Path) -> None:
    """Tiles 33TWL and 33TWM on two days, their hrefs pointed to the files, `proj:` untrusted."""
    names = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}
    found = stac.granules(sorted((real / "s2-scenes").glob("*/*.json")), "sentinel-2-l2a")
    days = sorted(set(found["time"].dt.date))
    steps = tuple(
        {
            band: tuple(
                Asset(
                    href=str(real / "s2-scenes" / r.id / f"{band}.tif"), item=r.id, key=key,
                    bbox=r.bbox, nodata=0, shift=1000.0,
                )
                for r in found[found["time"].dt.date == day].itertuples()
            )
            for band, key in names.items()
        }
        for day in days
    )  # fmt: skip
    assert len(steps) == 2
    array = ArrayPlan(layer=layer(channels=tuple(names)), steps=steps)
    allowed = Access(schemes=("file",), roots=(str(real),))
    grid = GeoBox((256, 256), Affine(120, 0, 520_000, 0, -120, 5_115_000), "EPSG:32633")
    expected = np.stack([block(array, n, grid, allowed) for n in range(2)])
    assert (expected > 0).mean() > 0.9
    assert expected[expected > 0].min() >= 1000
    for reader in READERS:
        lazy = arrays.lazy(array, grid, allowed, chunks=(128, 128), reader=reader)
        np.testing.assert_array_equal(lazy.compute(), expected)


@pytest.mark.parametrize("reader", READERS)
def test_a_thousand_items_of_twelve_bands(reader: Any) -> None:
    """The bar: under 2 s, at most a task per step, band and block, give or take opening."""
    bands = tuple(f"B{n:02d}" for n in range(12))
    steps = tuple(
        {
            b: (Asset(href=f"/a/{n}/{b}.tif", item=f"i{n}", key=b, bbox=(3.0, 50.0, 4.0, 51.0)),)
            for b in bands
        }
        for n in range(1000)
    )
    array = ArrayPlan(layer=layer(channels=bands), steps=steps)
    grid = GeoBox((1024, 1024), Affine(10, 0, 500_000, 0, -10, 5_600_000), UTM31)
    small = ArrayPlan(layer=array.layer, steps=steps[:2])
    arrays.lazy(small, grid, Access(), chunks=(1024, 1024), reader=reader)  # imports
    started = time.process_time()
    found = arrays.lazy(array, grid, Access(), chunks=(1024, 1024), reader=reader)
    assert time.process_time() - started < 2
    assert found.numblocks == (1000, 12, 1, 1)
    if reader == "odc":
        # one task per step, band and block, one per granule for opening, the grid, the settings
        assert len(dict(found.dask)) <= 12_000 + 1_000 + 10
