"""Every search the toolkit makes, against stac-fastapi.pgstac, whose answers are not of our making.

What comes back must be what the same search finds in the same items in hand: nothing lost between
pages, nothing twice, nothing that the filters exclude.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

import cubes
from cubes import worlds
from cubes.stac import search as stac
from cubes.types import Catalog, CubeError

_spec = importlib.util.spec_from_file_location("pgstac", Path(__file__).with_name("pgstac.py"))
assert _spec is not None
assert _spec.loader is not None
pgstac = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pgstac)

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

MANY = 3_000
REPLACED = ("geometry", "bbox", "self_href", "assets", "properties")
"""Columns that a server may word differently: compared by what they mean."""


def collection(name: str) -> dict[str, Any]:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    return {
        "type": "Collection", "stac_version": "1.1.0", "id": name, "description": name,
        "license": "other", "extent": extent, "links": [],
    }  # fmt: skip


def many() -> list[dict[str, Any]]:
    """Return items of a degree, all over the world, many at the very same moment."""
    rng = np.random.default_rng(7)
    items = []
    for n in range(MANY):
        west, south = rng.uniform(-179, 178), rng.uniform(-60, 70)
        ring = shapely.box(west, south, west + 1, south + 1)
        day, hour = int(rng.integers(1, 29)), int(rng.integers(0, 4))
        items.append({
            "type": "Feature", "stac_version": "1.1.0", "id": f"g-{n:05d}", "collection": "many",
            "geometry": json.loads(shapely.to_geojson(ring)), "bbox": list(ring.bounds),
            "properties": {
                "datetime": f"2021-{1 + n % 12:02d}-{day:02d}T{hour:02d}:00:00Z",
                "eo:cloud_cover": float(rng.integers(0, 101)),
                "platform": ("sentinel-2a", "sentinel-2b")[n % 2],
            },
            "links": [], "assets": {"B04": {"href": f"https://h.org/{n}.tif"}},
        })  # fmt: skip
    return items


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[str, Any]]:
    if lacks := pgstac.missing():
        pytest.skip(lacks)
    with pgstac.running() as started:
        yield started


@pytest.fixture(scope="module")
def crowd(api: tuple[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    url, database = api
    items = many()
    pgstac.load(database, [collection("many")], items)
    return url, items


def served(url: str, page_size: int = 250) -> Catalog:
    return Catalog(name="pgstac", url=url, kind="api", products={}, page_size=page_size)


def same(api: Any, hand: Any) -> None:
    """Assert that two tables of granules are the same granules with the same properties."""
    assert list(api["id"]) == list(hand["id"])
    for name in api.columns.difference(REPLACED):
        a, b = (t[name].astype(object).where(t[name].notna(), None) for t in (api, hand))
        assert a.tolist() == b.tolist(), name
    for a, b in zip(api["geometry"], hand["geometry"], strict=True):
        assert shapely.equals_exact(shapely.normalize(a), shapely.normalize(b), 1e-9)
    for a, b in zip(api["assets"], hand["assets"], strict=True):
        assert {k: v["href"] for k, v in a.items()} == {k: v["href"] for k, v in b.items()}


@pytest.mark.parametrize("page_size", [10, 250, 10_000])
def test_pages_lose_and_repeat_nothing(crowd: Any, page_size: int) -> None:
    url, items = crowd

    # a page of ten means hundreds of requests: there a month will do
    time = ("2021-03", "2021-03") if page_size == 10 else None
    found = stac.granules(served(url, page_size), "many", time=time)
    assert len(found) == (MANY // 12 if time else MANY)
    assert found["id"].is_unique
    same(found, stac.granules(items, "many", time=time))


@pytest.mark.parametrize(
    "asked",
    [
        {"bbox": (5.0, 45.0, 25.0, 60.0)},
        {"bbox": (170.0, -20.0, -170.0, 20.0)},
        {"geometry": shapely.Point(10, 50).buffer(8)},
        {"geometry": shapely.MultiPolygon([shapely.box(0, 0, 9, 9), shapely.box(60, 20, 80, 40)])},
        {"time": ("2021-03-04", "2021-05")},
        {"time": ("2021-11-20T03:00:00Z", "..")},
        {"time": ("..", "2021-01-03")},
        {"query": {"eo:cloud_cover": {"lt": 20}}},
        {"query": {"eo:cloud_cover": {"gte": 20, "lte": 30}, "platform": "sentinel-2b"}},
        {
            "bbox": (-60.0, -30.0, 60.0, 60.0),
            "time": ("2021-04-01", "2021-09-30"),
            "query": {"eo:cloud_cover": {"lte": 50}},
        },
    ],
)
def test_a_search_finds_what_it_finds_in_hand(crowd: Any, asked: dict[str, Any]) -> None:
    url, items = crowd
    found = stac.granules(served(url), "many", **asked)
    assert 0 < len(found) < MANY
    assert (found.sort_values(["time", "id"]).index == found.index).all()
    same(found, stac.granules(items, "many", **asked))


INSIDE = shapely.box(-90.0, -45.0, 90.0, 60.0)


def _inside(item: dict[str, Any]) -> bool:
    west, south, east, north = item["bbox"]
    return bool(west <= 90 and east >= -90 and south <= 60 and north >= -45)


def _in_time(item: dict[str, Any]) -> bool:
    return bool("2021-03-04" <= item["properties"]["datetime"] < "2021-06")


def _answers(item: dict[str, Any]) -> bool:
    properties = item["properties"]
    return bool(properties["eo:cloud_cover"] < 20 and properties["platform"] == "sentinel-2b")


QUERY = {"eo:cloud_cover": {"lt": 20}, "platform": "sentinel-2b"}


@pytest.mark.parametrize(
    ("where", "time", "query", "fits"),
    [
        (INSIDE, None, {}, _inside),
        (None, ("2021-03-04", "2021-05"), {}, _in_time),
        (None, None, QUERY, _answers),
    ],
    ids=["area", "time", "query"],
)
def test_the_server_itself_is_asked(
    crowd: Any, where: Any, time: Any, query: dict[str, Any], fits: Any
) -> None:
    """Before our own filter: the server's answer is the one that plain Python finds."""
    url, items = crowd
    answer = stac._ask(served(url), "many", where, time, query)
    ids = [item["id"] for item, _ in answer]
    assert len(ids) == len(set(ids))
    assert set(ids) == {item["id"] for item in items if fits(item)}


def test_an_answer_too_wide_and_out_of_order_is_filtered_and_sorted(
    crowd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that ignores what it is asked, and repeats itself, changes nothing."""
    url, items = crowd
    ask = stac._ask

    def careless(catalog: Catalog, collection: str, *_: Any) -> Any:
        everything = ask(catalog, collection, None, None, {})
        return everything + everything[:50]

    monkeypatch.setattr(stac, "_ask", careless)

    found = stac.granules(
        served(url), "many", geometry=INSIDE, time=("2021-03-04", "2021-05"), query=QUERY
    )

    fit = [i for i in items if _inside(i) and _in_time(i) and _answers(i)]
    expected = sorted((i["properties"]["datetime"], i["id"]) for i in fit)
    assert expected
    assert list(found["id"]) == [name for _, name in expected]


def test_nothing_found_says_what_was_asked(crowd: Any) -> None:
    catalog = served(crowd[0])
    with pytest.raises(CubeError, match=r"no granules.*'many'.*time 1999"):
        stac.granules(catalog, "many", time=("1999", "2000"))
    with pytest.raises(CubeError, match="collection 'mani'"):
        stac.granules(catalog, "mani", bbox=(0, 0, 1, 1))


def test_a_changed_item_is_found_as_it_is_now(crowd: Any, api: tuple[str, Any]) -> None:
    url, items = crowd
    changed = copy.deepcopy(items[0])
    changed["properties"]["eo:cloud_cover"] = 100.0
    area = tuple(changed["bbox"])
    before = stac.granules(served(url), "many", bbox=area).set_index("id")
    assert before.loc["g-00000", "cloud_cover"] == items[0]["properties"]["eo:cloud_cover"] != 100
    pgstac.load(api[1], [], [changed])
    after = stac.granules(served(url), "many", bbox=area).set_index("id")
    assert after.loc["g-00000", "cloud_cover"] == 100
    pgstac.load(api[1], [], [items[0]])


@pytest.mark.real
def test_real_items_come_back_as_they_went_in(api: tuple[str, Any], real: Path) -> None:
    by_id: dict[tuple[str, str], dict[str, Any]] = {}
    for path in sorted((real / "items").rglob("*.json")):
        body = json.loads(path.read_text())
        for item in body.get("features", [body]):
            if item.get("type") == "Feature" and item.get("geometry") and item["assets"]:
                item = {**item, "collection": "real-" + str(item.get("collection") or "none")}
                if all("://" in a["href"] for a in item["assets"].values()):
                    by_id[item["collection"], item["id"]] = item
    names = sorted({name for name, _ in by_id})
    assert len(names) >= 6
    assert len(by_id) > 40
    pgstac.load(api[1], [collection(n) for n in names], list(by_id.values()))
    for name in names:
        items = [item for (c, _), item in by_id.items() if c == name]
        found = stac.granules(served(api[0], 10), name)
        same(found, stac.granules(items, name))
        where = shapely.from_geojson(json.dumps(items[0]["geometry"])).representative_point()
        near = where.buffer(0.01)
        same(
            stac.granules(served(api[0], 10), name, geometry=near),
            stac.granules(items, name, geometry=near),
        )


def test_a_cube_is_the_same_from_the_api_and_from_files(
    api: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = worlds.simulate(worlds.load_params("tiny"), 7)
    published = worlds.publish(world, tmp_path_factory.mktemp("pgstac") / "tiny")
    collections, items = [], []
    for path in published.server:
        body = json.loads(path.read_text())
        if body["type"] == "Collection":
            collections.append(body)
        else:
            items += body["features"]
    pgstac.load(api[1], collections, items)
    layers = (
        "s1/backscatter", "s1/incidence", "insar/coherence", "s2/reflectance", "s2/clear",
        "terrain/elevation", "labels/worldcover",
    )  # fmt: skip
    plans = []
    for url in (api[0], published.catalog):
        request = cubes.Request.of(
            published.aoi, ("2021-05-01", "2021-08-01"), layers,
            catalog=cubes.catalog("simulated", url=str(url), **_kind(url)),
        )  # fmt: skip
        plans.append(request.plan())
    one, two = plans
    for a, b in zip(one.axes, two.axes, strict=True):
        assert (a.group, a.dim) == (b.group, b.dim)
        for name in a.coords:
            np.testing.assert_array_equal(a.coords[name], b.coords[name], err_msg=name)
    for first, second in zip(one.arrays, two.arrays, strict=True):
        assert first.layer.name == second.layer.name
        assert places(first) == places(second)


def places(array: Any) -> list[list[list[tuple[str, float]]]]:
    """Return what each step is read from; the API has URLs where the files have paths."""
    return [
        [[(a.href.removeprefix("file://"), a.shift) for a in assets] for assets in step.values()]
        for step in array.steps
    ]


def _kind(url: Any) -> dict[str, Any]:
    return {"kind": "api"} if str(url).startswith("http") else {"kind": "static"}
