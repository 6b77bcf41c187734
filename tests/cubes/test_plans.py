"""What a digital number means, decided by the product's baseline and never by its date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cubes import plans, registry, steps
from cubes.types import CubeError

ESA_TODAY, OLDER = 0.0, 1000.0


@pytest.mark.parametrize(
    ("rule", "properties", "shift"),
    [
        ("baseline", {"s2:processing_baseline": "02.14"}, OLDER),
        ("baseline", {"s2:processing_baseline": "03.01"}, OLDER),
        ("baseline", {"s2:processing_baseline": "04.00"}, ESA_TODAY),
        ("baseline", {"s2:processing_baseline": "05.11"}, ESA_TODAY),
        ("baseline", {"processing:version": "05.00"}, ESA_TODAY),
        # a scene of 2017 reprocessed in 2023: the date would mislead
        ("baseline", {"s2:processing_baseline": "05.00", "datetime": "2017-07-01"}, ESA_TODAY),
        ("earthsearch_flag", {"s2:processing_baseline": "05.09",
                              "earthsearch:boa_offset_applied": True}, OLDER),
        ("earthsearch_flag", {"s2:processing_baseline": "05.09",
                              "earthsearch:boa_offset_applied": False}, ESA_TODAY),
        # before 04.00 there was nothing to remove, whatever the flag says (earth-search#66)
        ("earthsearch_flag", {"s2:processing_baseline": "03.01",
                              "earthsearch:boa_offset_applied": False}, OLDER),
        ("always", {}, ESA_TODAY),
        ("none", {}, OLDER),
    ],
)  # fmt: skip
def test_offsets(rule: str, properties: dict[str, Any], shift: float) -> None:
    assert plans.offset_shift(rule, properties, "item") == shift


@pytest.mark.parametrize(
    ("rule", "properties", "word"),
    [
        ("baseline", {}, "processing baseline None"),
        ("baseline", {"s2:processing_baseline": "unknown"}, "'unknown'"),
        ("earthsearch_flag", {"s2:processing_baseline": "05.09"}, "lacks earthsearch:boa_offset"),
    ],
)
def test_unknown_offsets_are_an_error_never_a_guess(
    rule: str, properties: dict[str, Any], word: str
) -> None:
    with pytest.raises(CubeError, match=word):
        plans.offset_shift(rule, properties, "item")


def _items(folder: Path, collection: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.json")):
        body = json.loads(path.read_text())
        for item in body.get("features", [body]):
            if item.get("collection") == collection and "assets" in item:
                yield item


@pytest.mark.real
def test_real_items_get_their_catalogues_rule(real: Path) -> None:
    """Real Earth Search v1 items: flag True on 05.09, so the offset must be put back."""
    row = registry.catalog("earth-search")
    rule = row.products["s2/reflectance"].offset_rule
    seen = 0
    for item in _items(real / "s2-scenes", "sentinel-2-l2a"):
        assert plans.offset_shift(rule, item["properties"], item["id"]) == OLDER
        for band, key in row.products["s2/reflectance"].assets.items():
            if band in ("B02", "B03", "B04", "B08"):
                assert key in item["assets"]
        seen += 1
    assert seen == 4


@pytest.mark.real
def test_real_cdse_items_have_the_assets_and_baseline_of_their_row(real: Path) -> None:
    row = registry.catalog("cdse").products["s2/reflectance"]
    seen = 0
    for item in _items(real / "items" / "Open-EO+openeo-geopyspark-driver", "sentinel-2-l2a"):
        if "B02_10m" not in item["assets"]:
            continue
        name = item["id"]
        baseline = name.split("_N")[1][:2]
        shift = plans.offset_shift(row.offset_rule, item["properties"], name)
        assert shift == (ESA_TODAY if int(baseline) >= 4 else OLDER), name
        seen += 1
    assert seen >= 1


def _row(**columns: Any) -> Any:
    return next(pd.DataFrame([columns]).itertuples())


def test_layers_a_catalogue_lacks_are_refused_with_what_it_has() -> None:
    pc = registry.catalog("planetary-computer")
    with pytest.raises(CubeError, match=r"does not deliver layer 'insar/coherence'.*sentinel|has"):
        plans.product_of(registry.layer("insar/coherence"), pc)
    es = registry.catalog("earth-search")
    with pytest.raises(CubeError, match="does not deliver layer 's1/backscatter'"):
        plans.product_of(registry.layer("s1/backscatter"), es)


def test_signed_queries_never_enter_a_plan() -> None:
    pc = registry.catalog("planetary-computer")
    href = "https://x.blob.core.windows.net/a/b.tif"
    assert plans._unsigned(f"{href}?se=2020&sig=SECRET", pc) == href
    es = registry.catalog("earth-search")
    assert plans._unsigned(f"{href}?v=1", es) == f"{href}?v=1"


def test_directions_are_averaged_around_the_circle() -> None:
    around = steps.mean_azimuth([359.0, 1.0])
    assert min(around, 360 - around) < 1e-9
    assert steps.mean_azimuth([150.2, None, 150.2]) == 150.2
    assert steps.mean_azimuth([80.0, 100.0]) == pytest.approx(90)
