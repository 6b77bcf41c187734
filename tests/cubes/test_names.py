"""Product ids: strict parsing, exact rebuilding, real ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cubes import names
from cubes.types import CubeError

STAMP = st.datetimes().map(lambda t: f"{t.year:04d}{t:%m%dT%H%M%S}")
TILE = st.from_regex(r"\A[0-9]{2}[A-Z]{3}\Z")


@given(
    platform=st.sampled_from(["S2A", "S2B", "S2C", "S2D"]), level=st.sampled_from(["L1C", "L2A"]),
    time=STAMP, baseline=st.none() | st.from_regex(r"\A[0-9]{4}\Z"),
    orbit=st.integers(1, 143), tile=TILE, generated=STAMP,
)  # fmt: skip
def test_s2_products_round_trip(**parts: object) -> None:
    made = names.S2Product(**parts)  # type: ignore[arg-type]
    assert names.parse_s2_product(str(made)) == made


@given(centre=st.from_regex(r"\A[A-Z0-9_]{4}\Z"), created=STAMP, time=STAMP,
       baseline=st.from_regex(r"\A[0-9]{2}\.[0-9]{2}\Z"))  # fmt: skip
def test_datastrips_round_trip(**parts: str) -> None:
    made = names.S2Datastrip(platform="S2B", file_class="OPER", level="L2A", **parts)
    assert names.parse_s2_datastrip(str(made)) == made


@given(start=STAMP, stop=STAMP, orbit=st.integers(1, 999_999),
       datatake=st.from_regex(r"\A[0-9A-F]{6}\Z"), platform=st.sampled_from(["S1A", "S1D"]),
       unique=st.none() | st.from_regex(r"\A[0-9A-F]{4}\Z"), suffix=st.sampled_from([None, "_rtc"]))  # fmt: skip
def test_s1_products_round_trip(**parts: object) -> None:
    made = names.S1Product(
        mode="IW", kind="GRDH", level="1", product_class="S", polarisation="DV", **parts
    )  # type: ignore[arg-type]
    assert names.parse_s1_product(str(made)) == made


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (names.parse_s2_product, "S2A_MSIL2A_20230116T021341_R060_T50KPC"),
        (names.parse_s2_product, "xS2A_MSIL2A_20230116T021341_R060_T50KPC_20230116T112621"),
        (names.parse_s2_datastrip, "S2A_OPER_MSI_L2A_TL_2BPS_20230820T124817_A033710_T33TWM_N05.09"),
        (names.parse_s1_product, "S1A_IW_GRDH_1SDV_20220518_20220518T054359_043261_052A9D"),
    ],
)
def test_other_ids_are_refused(parse, text: str) -> None:
    with pytest.raises(CubeError, match="is not a Sentinel"):
        parse(text)


@pytest.mark.real
def test_real_ids_agree_with_their_items(real: Path) -> None:
    seen = 0
    for path in sorted((real / "s2-scenes").glob("*/*.json")):
        item = json.loads(path.read_text())["properties"]
        product = names.parse_s2_product(item["s2:product_uri"])
        strip = names.parse_s2_datastrip(item["s2:datastrip_id"])
        assert str(product) == item["s2:product_uri"].removesuffix(".SAFE")
        assert str(strip) == item["s2:datastrip_id"]
        assert strip.baseline == item["s2:processing_baseline"]
        assert product.tile == item["grid:code"].removeprefix("MGRS-")
        seen += 1
    for path in sorted((real / "items").rglob("*.json")):
        body = json.loads(path.read_text())
        for item in body.get("features", [body]):
            text = str(item.get("id", ""))
            if text.startswith(("S1A_IW_GRDH", "S1B_IW_GRDH")) and item.get("properties"):
                product = names.parse_s1_product(text)
                orbit = item["properties"].get("sat:relative_orbit")
                assert str(product) == text
                assert orbit is None or product.relative_orbit == orbit, text
                seen += 1
    assert seen >= 5
