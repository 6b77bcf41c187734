"""What a person may ask for, in any usual form; what is wrong is said before any work."""

from __future__ import annotations

import datetime as dt
import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cubes
from cubes.request import Request
from cubes.stac.items import interval
from cubes.times import time_range
from cubes.types import Access, Catalog, CubeError, Grid, Product

AREA = (5.0, 50.0, 5.1, 50.1)


DAY = "T23:59:59.999999"


@pytest.mark.parametrize(
    ("given", "first", "last"),
    [
        ("2020", "2020-01-01T00:00:00", f"2020-12-31{DAY}"),
        ("2020-02", "2020-02-01T00:00:00", f"2020-02-29{DAY}"),
        ("2020-03/2020-10", "2020-03-01T00:00:00", f"2020-10-31{DAY}"),
        (("2020-03-01", "2020-03-02"), "2020-03-01T00:00:00", f"2020-03-02{DAY}"),
        (slice("2020-03", "2020-04"), "2020-03-01T00:00:00", f"2020-04-30{DAY}"),
        # a date is meant whole, whatever type and form it is written in
        (("2020-3-1", "2020-3-31"), "2020-03-01T00:00:00", f"2020-03-31{DAY}"),
        ("20200301/20200331", "2020-03-01T00:00:00", f"2020-03-31{DAY}"),
        (("1 March 2020", "31 March 2020"), "2020-03-01T00:00:00", f"2020-03-31{DAY}"),
        ("2020Q1", "2020-01-01T00:00:00", f"2020-03-31{DAY}"),
        (("2020-03", np.datetime64("2020-04")), "2020-03-01T00:00:00", f"2020-04-30{DAY}"),
        (("2020-03-01", dt.date(2020, 3, 2)), "2020-03-01T00:00:00", f"2020-03-02{DAY}"),
        (("2020-03-01", np.datetime64("2020-03-02")), "2020-03-01T00:00:00", f"2020-03-02{DAY}"),
        ((pd.Timestamp("2020-03-01 10:00"), pd.Timestamp("2020-03-02")),
         "2020-03-01T10:00:00", f"2020-03-02{DAY}"),
        (pd.Timestamp("2020-03-01"), "2020-03-01T00:00:00", f"2020-03-01{DAY}"),
        # a moment is that moment, in UTC
        ("2020-03-01T12:00:00+02:00/2020-03-02T00:00:00", "2020-03-01T10:00:00",
         "2020-03-02T00:00:00"),
        ((pd.Timestamp("2020-03-01 01:00", tz="Asia/Tokyo"), "2020-03-01T00:00:00Z"),
         "2020-02-29T16:00:00", "2020-03-01T00:00:00"),
        (("2020-03-01", dt.datetime(2020, 3, 2, 6)), "2020-03-01T00:00:00", "2020-03-02T06:00:00"),
    ],
)  # fmt: skip
def test_time_ranges(given: object, first: str, last: str) -> None:
    assert time_range(given) == (first, last)


def test_the_last_half_second_of_the_last_day_is_found() -> None:
    start, end = interval(time_range("2020-10-31"))
    assert start <= pd.Timestamp("2020-10-31T23:59:59.9999") <= end


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("2021/2020", "reversed"),
        ("soon", "cannot read"),
        (7, "cannot read"),
        (("a",), "cannot read"),
        (slice("2020", None), "name the last day"),
        (("2020-03", ".."), "name the last day"),
        ((None, None), "name the last day"),
        (None, "cannot read"),
        ((pd.NaT, "2020"), "cannot read"),
    ],
)
def test_wrong_times(given: object, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        time_range(given)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"layers": ["s1/backscater"]}, "did you mean 's1/backscatter'"),
        ({"catalog": "planetary"}, "did you mean 'planetary-computer'"),
        ({"bands": ["B10"]}, "has no band 'B10'"),
        ({"layers": ["insar/coherence"]}, "does not deliver"),
        ({"on_missing": "ignore"}, "not one of raise, mask"),
        ({"reader": "rio"}, "not one of odc, stackstac"),
        ({"resolution": 20}, "unknown option 'resolution'"),
        ({"grid": Grid(), "like": object()}, "not both"),
    ],
)
def test_wrong_options_are_refused_before_any_search(options: dict[str, object], word: str) -> None:
    with pytest.raises(CubeError, match=word):
        Request.of(AREA, "2020", **options)  # type: ignore[arg-type]


def test_absurd_sizes_are_refused_before_any_search() -> None:
    request = Request.of((0, 40, 9, 50), "2015/2024")
    with pytest.raises(CubeError, match=r"GiB in about .* objects and .* tasks.*max_gib="):
        request.plan()


def test_requests_are_values() -> None:
    one = Request.of(AREA, "2020", bands=["B04", "B08"])
    two = Request.of(list(AREA), ("2020", "2020"), bands=("B04", "B08"))
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)).sha256 == one.sha256
    assert Request.of(AREA, "2021").sha256 != one.sha256


def test_derived_layers_bring_what_they_are_computed_from() -> None:
    names = [v.name for v in Request.of(AREA, "2020", ["s2/clear"]).layers]
    assert names == ["s2/scl", "s2/clear"]
    assert [
        v.channels for v in Request.of(AREA, "2020", ["s2/reflectance"], bands="B04").layers
    ] == [("B04",)]


def _optical(host: str, href: str) -> tuple[Catalog, dict[str, object]]:
    """Return a row of a catalogue, and an item of it whose one asset lies at `href`."""
    product = Product(collection="optical", assets={"B04": "red"}, nodata=0)
    row = Catalog(
        name="mine",
        url=f"https://user:SECRET1@{host}/stac?token=SECRET2",
        kind="static",
        access=Access(schemes=("https", "file"), hosts=(host,)),
        products={"s2/reflectance": product},
    )
    ring = [[4, 49], [6, 49], [6, 51], [4, 51], [4, 49]]
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "x", "collection": "optical",
        "bbox": [4, 49, 6, 51], "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": "2023-05-01T10:00:00Z", "platform": "sentinel-2a"},
        "links": [], "assets": {"red": {"href": href}},
    }  # fmt: skip
    return row, item


@pytest.mark.parametrize(
    "query",
    ["X-Amz-Signature=SECRET3&X-Amz-Credential=AKIA", "se=2026&sig=SECRET3", "token=SECRET3"],
)
def test_nothing_signed_is_stored(query: str, tmp_path: Path) -> None:
    row, item = _optical("example.org", f"https://example.org/a.tif?{query}")
    asked = Request.of(
        AREA, "2023", ["s2/reflectance"], bands=["B04"], catalog=row, items=[item],
        grid=Grid(shape=(64, 64)),
    )  # fmt: skip
    plan = asked.plan()
    assert "SECRET1" not in plan.to_json()
    assert "SECRET2" not in plan.to_json()
    assert plan.attrs["catalog_url"] == "https://example.org/stac"
    # opened lazily it is taken as it is; kept it is not
    assert asked.open()["s2/reflectance"].shape == (1, 1, 64, 64)
    with pytest.raises(CubeError, match=r"is signed or carries a token.*access\.sign") as caught:
        cubes.write(asked, tmp_path / "a.zarr")
    assert "SECRET" not in str(caught.value)
    assert not (tmp_path / "a.zarr").exists()


def test_items_in_hand_come_in_every_form(tmp_path: Path) -> None:
    import pystac

    row, item = _optical("example.org", "../a.tif")
    path = tmp_path / "items" / "item.json"
    path.parent.mkdir()
    path.write_text(json.dumps(item))
    collection = {"type": "FeatureCollection", "features": [item]}
    forms = [[item], item, collection, path, [path], [pystac.Item.from_file(str(path))]]
    for given in forms:
        asked = Request.of(
            AREA, "2023", ["s2/reflectance"], bands=["B04"], catalog=row, items=given,
            grid=Grid(shape=(8, 8)),
        )  # fmt: skip
        plan = asked.plan()
        assert plan.axes[0].coords["items"] == ("x",), given
        if given is path:
            href = plan.arrays[0].steps[0]["B04"][0].href
            assert href == str(tmp_path / "a.tif")


def test_no_layers_is_no_default() -> None:
    with pytest.raises(CubeError, match=r"layers=\(\) asks for nothing"):
        Request.of(AREA, "2023", [])
