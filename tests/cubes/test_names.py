"""Product ids: strict parsing, exact rebuilding, real ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cubes import names
from cubes.types import CubeError

STAMP = st.datetimes().map(lambda t: f"{t.year:04d}{t:%m%dT%H%M%S}")
STRIP = "S2B_OPER_MSI_L2A_DS_2BPS_20230820T124817_S20230820T094908_N05.09"
GRANULE = "S2A_OPER_MSI_L2A_TL_2BPS_20230820T124817_A033710_T33TWM_N05.09"
RTC = "OPERA_L2_RTC-S1_T137-292318-IW1_20250102T015857Z_20250102T190143Z_S1A_30_v1.0"
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
       unique=st.none() | st.from_regex(r"\A[0-9A-F]{4}\Z"),
       suffix=st.sampled_from([None, "_rtc"]))  # fmt: skip
def test_s1_products_round_trip(**parts: object) -> None:
    made = names.S1Product(
        mode="IW", kind="GRDH", level="1", product_class="S", polarisation="DV", **parts
    )  # type: ignore[arg-type]
    assert names.parse_s1_product(str(made)) == made


@given(platform=st.sampled_from(["S2A", "S2C"]), level=st.sampled_from(["L1C", "L2A"]),
       centre=st.from_regex(r"\A[A-Z0-9_]{4}\Z"), created=STAMP, orbit=st.integers(0, 999_999),
       tile=TILE, baseline=st.from_regex(r"\A[0-9]{2}\.[0-9]{2}\Z"))  # fmt: skip
def test_granules_round_trip(**parts: object) -> None:
    made = names.S2Granule(file_class="OPER", **parts)  # type: ignore[arg-type]
    assert names.parse_s2_granule(str(made)) == made


@given(level=st.sampled_from(["L1C", "L2A"]), tile=TILE, orbit=st.integers(0, 999_999), time=STAMP)
def test_granule_folders_round_trip(**parts: object) -> None:
    made = names.S2Folder(**parts)  # type: ignore[arg-type]
    assert names.parse_s2_folder(str(made)) == made


@given(collection=st.sampled_from([None, "COPERNICUS/S2", "COPERNICUS/S2_SR_HARMONIZED"]),
       datatake=STAMP, datastrip=STAMP, tile=TILE)  # fmt: skip
def test_earth_engine_ids_round_trip(**parts: str) -> None:
    made = names.EarthEngineS2(**parts)
    assert names.parse_earth_engine(str(made)) == made


@st.composite
def operas(draw: st.DrawFn) -> names.OperaProduct:
    kind = draw(st.sampled_from(["RTC-S1", "RTC-S1-STATIC", "CSLC-S1", "CSLC-S1-STATIC"]))
    static, rtc = kind.endswith("STATIC"), kind.startswith("RTC")
    layers = {
        "RTC-S1": [None, "VV", "VH", "HH", "mask"],
        "RTC-S1-STATIC": [None, "local_incidence_angle", "mask", "rtc_anf_gamma0_to_sigma0"],
    }
    time = draw(STAMP)
    return names.OperaProduct(
        kind=kind, track=draw(st.integers(1, 175)), burst=draw(st.integers(0, 999_999)),
        swath=draw(st.sampled_from(["IW1", "IW2", "IW3"])), time=time[:8] if static else time,
        generated=None if static else draw(STAMP),
        platform=draw(st.sampled_from(["S1A", "S1C", "S1D"])), posting=30 if rtc else None,
        polarisation=draw(st.sampled_from(["VV", "HH"])) if kind == "CSLC-S1" else None,
        version=draw(st.sampled_from(["0.1", "1.0", "1.1"])),
        layer=draw(st.sampled_from(layers.get(kind, [None]))),
    )  # fmt: skip


@given(made=operas(), extension=st.sampled_from(["", ".h5"]))
def test_opera_names_round_trip(made: names.OperaProduct, extension: str) -> None:
    assert names.parse_opera(f"{made}{extension}") == made


DEGREES = st.floats(-80, 80).map(lambda v: str(round(v, 4) + 0.0)).filter(lambda v: "e" not in v)
DAY = st.dates().map(lambda d: f"{d:%Y-%m-%d}".zfill(10))


@given(lat=DEGREES, lon=DEGREES, s1_date=DAY, s2_date=DAY,
       track=st.integers(1, 175).map(str),
       look_pass=st.sampled_from(["ascending", "D"]))  # fmt: skip
def test_sen12ts_names_round_trip(**parts: str) -> None:
    made = names.Sen12tsPair(**parts)
    assert names.parse_sen12ts(str(made)) == made
    assert made.orbit_state == {"a": "ascending", "D": "descending"}[parts["look_pass"][0]]
    assert made.relative_orbit == int(parts["track"])
    label = names.Sen12tsLabel(lat=parts["lat"], lon=parts["lon"], year=2020)
    assert names.parse_sen12ts(str(label)) == label
    assert label.place == made.place


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (names.parse_s2_granule, STRIP),
        (names.parse_s2_folder, "L2A_T33TWM_A33710_20230820T094908"),
        (names.parse_earth_engine, "COPERNICUS/S1_GRD/20230820T094549_20230820T094908_T33TWM"),
        (names.parse_earth_engine, "20230820T094549_20230820T094908_T33TWM.tif"),
        (names.parse_opera, RTC.replace("IW1", "IW4")),
        (names.parse_opera, f"{RTC}\n"),
        (names.parse_opera, "OPERA_L2_RTC-S1-STATIC_T137-292318-IW1_20140403_S1A_30_v1.0_VV.tif"),
        (names.parse_opera, "OPERA_L2_CSLC-S1_T087-185683-IW2_20221228T161651Z_S1A_VV_v1.1.h5"),
        (names.parse_sen12ts, "lat_36.12345_lon_-119.5_date_2020_lulc_label.tif"),
        (names.parse_sen12ts, "lat_36.1_lon_-119.5_s1date_2020-06-20_s2date_2020-06-19.tif"),
    ],
)  # fmt: skip
def test_other_names_are_refused(parse, text: str) -> None:
    with pytest.raises(CubeError, match=r"is not an? .*such as"):
        parse(text)


def test_product_and_datastrip_of_different_platforms_are_no_image() -> None:
    product = names.parse_s2_product("S2A_MSIL2A_20230820T094549_N0509_R079_T33TWM_20230820T124817")
    strip = names.parse_s2_datastrip(STRIP)
    with pytest.raises(CubeError, match="different platforms"):
        names.earth_engine(product, strip)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (names.parse_s2_product, "S2A_MSIL2A_20230116T021341_R060_T50KPC"),
        (names.parse_s2_product, "xS2A_MSIL2A_20230116T021341_R060_T50KPC_20230116T112621"),
        (
            names.parse_s2_datastrip,
            GRANULE,
        ),
        (names.parse_s1_product, "S1A_IW_GRDH_1SDV_20220518_20220518T054359_043261_052A9D"),
    ],
)
def test_other_ids_are_refused(parse, text: str) -> None:
    with pytest.raises(CubeError, match="is not a Sentinel"):
        parse(text)


@pytest.mark.parametrize(
    ("parse", "text", "word"),
    [
        (names.parse_s2_product, "S2A_MSIL2A_20239999T999999_N0509_R060_T50KPC_20230116T112621",
         "no date or time '20239999T999999'"),
        (names.parse_s2_product, "S2A_MSIL2A_20230116T021341_N0509_R060_T50KPC_20230230T112621",
         "no date or time '20230230T112621'"),
        (names.parse_s2_product, "S2A_MSIL2A_20230116T021341_N0509_R999_T50KPC_20230116T112621",
         "relative orbit 999; Sentinel-2 has 1 to 143"),
        (names.parse_s2_product, "S2A_MSIL2A_20230116T021341_N0509_R000_T50KPC_20230116T112621",
         "relative orbit 0"),
        (names.parse_s2_datastrip, STRIP.replace("S20230820T09", "S20230820T24"), "no date"),
        (names.parse_opera, RTC.replace("20250102T0158", "20251302T0158"), "no date"),
    ],
)  # fmt: skip
def test_ids_of_moments_and_orbits_that_there_are_not(parse: Any, text: str, word: str) -> None:
    with pytest.raises(CubeError, match=word):
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


@pytest.mark.real
def test_real_granules_give_earth_engine_ids(real: Path) -> None:
    seen = 0
    for path in sorted(real.rglob("*.json")):
        body = json.loads(path.read_text())
        features = body.get("features", [body]) if isinstance(body, dict) else []
        for item in features:
            properties = item.get("properties", {}) if isinstance(item, dict) else {}
            granule = properties.get("s2:granule_id")
            if not granule:
                continue
            parsed = names.parse_s2_granule(granule)
            assert str(parsed) == granule
            product = names.parse_s2_product(properties["s2:product_uri"])
            strip = names.parse_s2_datastrip(properties["s2:datastrip_id"])
            assert (parsed.tile, parsed.created) == (product.tile, strip.created)
            image = names.earth_engine(product, strip, harmonized=True)
            assert names.parse_earth_engine(str(image)) == image
            assert image.tile == parsed.tile
            seen += 1
    assert seen >= 42


@pytest.mark.real
def test_real_opera_files_parse(real: Path) -> None:
    seen = 0
    for path in sorted(real.glob("opera-*/**/OPERA_*")):
        parsed = names.parse_opera(path.name)
        assert str(parsed) == path.stem, "the last part after the dot is the extension alone"
        if path.parent.name.startswith("T"):
            assert parsed.burst_id == path.parent.name
        seen += 1
    assert seen == 212
