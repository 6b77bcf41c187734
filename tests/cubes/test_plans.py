"""What a digital number means, decided by the product's baseline and never by its date."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import cubes
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


STRIP = "S2A_OPER_MSI_L2A_DS_2BPS_20220501T124817_S20220501T100008_N"
URI = "S2A_MSIL2A_20220501T100031_N0301_R060_T31UDS_20220501T112621.SAFE"
CDSE = "S2A_MSIL2A_20241107T113311_N0511_R080_T31VDH_20241107T123948"
NEW, OLD = {"s2:processing_baseline": "05.09"}, {"s2:processing_baseline": "03.01"}
APPLIED = "earthsearch:boa_offset_applied"
BANDS = "raster:bands"
NO_OFFSET, OFFSET = ({BANDS: [{"scale": 1e-4, "offset": v}]} for v in (0, -0.1))


@pytest.mark.parametrize(
    ("rule", "properties", "asset", "item", "word"),
    [
        ("earthsearch_flag", {**NEW, APPLIED: "false"}, {}, "a", "'false', which is neither"),
        ("earthsearch_flag", {**NEW, APPLIED: 1}, {}, "a", "1, which is neither"),
        ("earthsearch_flag", {**OLD, APPLIED: True}, {}, "a", "03.01, which never had one"),
        ("earthsearch_flag", {**NEW, APPLIED: False}, NO_OFFSET, "a", "offset of 0 in the asset"),
        ("always", NEW, NO_OFFSET, "a", "offset of 0 in the asset"),
        ("always", {}, {"raster:offset": 0}, "a", "offset of 0 in the asset"),
        ("always", {}, {"bands": [{"name": "B04", "raster:offset": 0}]}, "a", "offset of 0 in"),
        ("always", {**NEW, APPLIED: True}, OFFSET, "a", "this catalogue removes no offset"),
        ("always", OLD, {}, "a", "03.01, but the catalogue's products carry"),
        ("baseline", {**NEW, APPLIED: True}, {}, "a", "this catalogue removes no offset"),
        ("baseline", {"s2:processing_baseline": "03.00", "s2:datastrip_id": f"{STRIP}05.09"}, {},
         "a", "s2:datastrip_id 05.09, but s2:processing_baseline 03.00"),
        ("baseline", {**NEW, "s2:product_uri": URI}, {}, "a", "s2:product_uri 03.01"),
        ("baseline", {"processing:version": "03.01"}, {}, CDSE, "id 05.11, but processing:version"),
        ("baseline", NEW, NO_OFFSET, "a", "offset of 0 in the asset's metadata"),
        ("baseline", OLD, OFFSET, "a", "offset of -0.1 in the asset's metadata"),
        ("baseline", {"s2:processing_baseline": "99.99"}, {}, "a", "'99.99'"),
        ("baseline", {"s2:processing_baseline": "٠٥.٠٩"}, {}, "a", "cannot be known"),
    ],
)  # fmt: skip
def test_contradictory_offset_metadata_is_refused(
    rule: str, properties: dict[str, Any], asset: dict[str, Any], item: str, word: str
) -> None:
    with pytest.raises(CubeError, match=word):
        plans.offset_shift(rule, properties, item, asset=asset)


@pytest.mark.parametrize(
    ("rule", "properties", "asset", "item", "shift"),
    [
        # Earth Search writes -0.1 whether or not it has removed the offset: the flag decides
        ("earthsearch_flag", {**NEW, APPLIED: True}, OFFSET, "a", OLDER),
        ("earthsearch_flag", {**NEW, APPLIED: False}, OFFSET, "a", ESA_TODAY),
        ("always", NEW, OFFSET, "a", ESA_TODAY),
        ("baseline", NEW, OFFSET, "a", ESA_TODAY),
        ("baseline", {"processing:version": "05.11"}, {}, CDSE, ESA_TODAY),
        ("baseline", {}, {}, CDSE, ESA_TODAY),
        # both after 04.00: two statements, one offset
        ("baseline", {**NEW, "s2:datastrip_id": f"{STRIP}05.10"}, {}, "a", ESA_TODAY),
        # a version of software, which is no baseline
        ("baseline", {**NEW, "processing:version": "Sen2Cor 2.11"}, {}, "a", ESA_TODAY),
    ],
)
def test_offset_metadata_that_agrees(
    rule: str, properties: dict[str, Any], asset: dict[str, Any], item: str, shift: float
) -> None:
    assert plans.offset_shift(rule, properties, item, asset=asset) == shift


def test_a_plan_refuses_contradictory_offsets() -> None:
    """The asset's own metadata reaches the rule."""
    row = registry.catalog("earth-search-c1")
    product = row.products["s2/reflectance"]
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "a", "collection": product.collection,
        "bbox": [3, 50, 4, 51], "links": [], "geometry": None,
        "properties": {"datetime": "2022-05-01T10:00:00Z", "platform": "sentinel-2a", **NEW},
        "assets": {product.assets["B04"]: {"href": "https://a.s3.us-west-2.amazonaws.com/x.tif",
                                           **NO_OFFSET}},
    }  # fmt: skip
    request = cubes.Request.of((3.5, 50.5), "2022", ["s2/reflectance"], catalog=row, bands=["B04"],
                               size=2560, items=[item])  # fmt: skip
    with pytest.raises(CubeError, match="contradicts itself"):
        request.plan()


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
        shift = plans.offset_shift(
            rule, item["properties"], item["id"], asset=item["assets"]["red"]
        )
        assert shift == OLDER
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
        asset = item["assets"]["B02_10m"]
        shift = plans.offset_shift(row.offset_rule, item["properties"], name, asset=asset)
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
