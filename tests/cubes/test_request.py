"""What a person may ask for, in any usual form; what is wrong is said before any work."""

from __future__ import annotations

import pickle

import pandas as pd
import pytest

from cubes.request import Request, time_range
from cubes.types import CubeError, Grid

AREA = (5.0, 50.0, 5.1, 50.1)


@pytest.mark.parametrize(
    ("given", "first", "last"),
    [
        ("2020", "2020-01-01T00:00:00", "2020-12-31T23:59:59"),
        ("2020-02", "2020-02-01T00:00:00", "2020-02-29T23:59:59"),
        ("2020-03/2020-10", "2020-03-01T00:00:00", "2020-10-31T23:59:59"),
        (("2020-03-01", "2020-03-02"), "2020-03-01T00:00:00", "2020-03-02T23:59:59"),
        (slice("2020-03", "2020-04"), "2020-03-01T00:00:00", "2020-04-30T23:59:59"),
        ((pd.Timestamp("2020-03-01 10:00"), pd.Timestamp("2020-03-02")),
         "2020-03-01T10:00:00", "2020-03-02T00:00:00"),
    ],
)  # fmt: skip
def test_time_ranges(given: object, first: str, last: str) -> None:
    assert time_range(given) == (first, last)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ("2021/2020", "reversed"),
        ("soon", "cannot read"),
        (7, "cannot read"),
        (("a",), "cannot read"),
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
