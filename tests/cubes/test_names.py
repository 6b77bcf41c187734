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
COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")


@st.composite
def tiles(draw: st.DrawFn) -> str:
    zone = draw(st.integers(1, 60))
    band, row = (draw(st.sampled_from(s)) for s in ("CDEFGHJKLMNPQRSTUVWX", "ABCHJNPUV"))
    return f"{zone:02d}{band}{draw(st.sampled_from(COLUMNS[zone % 3]))}{row}"


TILE = tiles()


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


@given(times=st.tuples(STAMP, STAMP).map(sorted), orbit=st.integers(1, 999_999),
       datatake=st.from_regex(r"\A[0-9A-F]{6}\Z"), platform=st.sampled_from(["S1A", "S1D"]),
       unique=st.none() | st.from_regex(r"\A[0-9A-F]{4}\Z"),
       suffix=st.sampled_from([None, "_rtc"]))  # fmt: skip
def test_s1_products_round_trip(times: list[str], **parts: object) -> None:
    made = names.S1Product(
        mode="IW", kind="GRDH", level="1", product_class="S", polarisation="DV", start=times[0],
        stop=times[1], **parts,
    )  # type: ignore[arg-type]  # fmt: skip
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
        kind=kind, track=draw(st.integers(1, 175)), burst=draw(st.integers(1, 375_887)),
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


S1 = "S1A_IW_GRDH_1SDV_20220518T054334_20220518T054359_043261_052A9D_60B6"
S2 = "S2A_MSIL2A_20230116T021341_N0509_R060_T50KPC_20230116T112621"
SEN12TS = "lat_36.1_lon_-119.5_s1date_2020-06-20_s2date_2020-06-19_s1track_137_s1lookpass_ascending"
CSLC = "OPERA_L2_CSLC-S1_T087-185683-IW2_20221228T161651Z_20240504T181714Z_S1A_VV_v1.1"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (S2.replace("060", "٠٦٠"), "no known kind"),
        (S2.replace("N0509", "N٠٥٠٩"), "no known kind"),
        (CSLC.replace("087", "٠٨٧"), "no known kind"),
        (S2.replace("50KPC", "99ZZZ"), "tile 99ZZZ"),
        (S2.replace("50KPC", "00AAA"), "tile 00AAA"),
        (S2.replace("50KPC", "50KAC"), "columns JKLMNPQR in this zone"),
        (GRANULE.replace("33TWM", "61TWM"), "tile 61TWM"),
        ("L2A_T33AWM_A033710_20230820T094908", "tile 33AWM"),
        ("S2A_33IWM_20230810_0_L2A", "tile 33IWM"),
        ("S2A_33TWM_20231310_0_L2A", "no date or time '20231310'"),
        ("S2A_33TWM_20230810_00_L2A", "writes 0"),
        ("COPERNICUS/S2_SR/20230820T094549_20230820T094908_T33TWW", "tile 33TWW"),
        (CSLC.replace("T087", "T999"), "relative orbit 999"),
        (CSLC.replace("185683", "999999"), "burst 999999"),
        (SEN12TS.replace("36.1", "99.9"), "no such place"),
        (SEN12TS.replace("-119.5", "999.9"), "no such place"),
        (SEN12TS.replace("_137_", "_999_"), "relative orbit 999"),
        (SEN12TS.replace("ascending", "asdf"), "looks 'asdf'"),
        ("lat_36.0_lon_-119.5_date_0000_lulc_label.tif", "year 0000"),
        (S1.replace("054359", "054333"), "before it starts"),
        (S1.replace("043261", "000000"), "absolute orbit 0"),
        (S1.replace("1SDV", "2SDV"), "GRDH of level 2"),
        (S1.replace("1SDV", "9SDV"), "no known kind"),
        ("COPERNICUS/S1_GRD/S1A_IW_SLC__1SDV_20220518T054334_20220518T054359_043261_052A9D_60B6",
         "whole GRD products"),
        (f"{S1}\n", "no known kind"),
        ("LC08_L2SP_033032_20231008_02_T1", "no known kind"),
        ("", "no known kind"),
    ],
)  # fmt: skip
def test_ids_that_cannot_be_are_refused(text: str, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        names.parse(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (S1, names.S1Product),
        (S1.removesuffix("_60B6") + "_rtc", names.S1Product),
        ("S1A_IW_SL1__1_SH_20141031T095929_20141031T100002_003072_003842_91FC", names.S1Product),
        ("S1C_WV_SLC__1SSV_20250518T054334_20250518T055359_002261_004A9D_60B6", names.S1Product),
        (S2, names.S2Product),
        (STRIP, names.S2Datastrip),
        (GRANULE, names.S2Granule),
        ("L2A_T33TWM_A033710_20230820T094908", names.S2Folder),
        ("S2A_33TWM_20230810_0_L2A", names.EarthSearchS2),
        ("S2A_5QKB_20230810_12_L2A", names.EarthSearchS2),
        ("S2A_T13TDE_20240422T174753_L2A", names.EarthSearchS2),
        ("COPERNICUS/S2_SR/20230820T094549_20230820T094908_T33TWM", names.EarthEngineS2),
        (f"COPERNICUS/S1_GRD/{S1}", names.EarthEngineS1),
        (f"COPERNICUS/S1_GRD_FLOAT/{S1}", names.EarthEngineS1),
        ("S1A_20200103_17RMJ_ASC", names.IndigoS1),
        (CSLC, names.OperaProduct),
        (f"{RTC}_VV", names.OperaProduct),
        ("S1A_IW_20180128T161201_DVP_RTC30_G_gpuned_FD6A", names.Hyp3Rtc),
        ("S1B_IW_20210401T130109_SHR_RTC10_G_sdwfcm_9CF5_ls_map.tif", names.Hyp3Rtc),
        (f"{SEN12TS}.tif", names.Sen12tsPair),
        ("lat_36.0_lon_-119.5_date_2020_lulc_label.tif", names.Sen12tsLabel),
    ],
)  # fmt: skip
def test_parse_tells_the_kind_and_builds_the_same_id(text: str, kind: type) -> None:
    parsed = names.parse(text)
    assert type(parsed) is kind
    assert str(parsed) == text


@given(made=st.builds(
    names.Hyp3Rtc, platform=st.sampled_from(["S1A", "S1D"]), mode=st.sampled_from(["IW", "EW"]),
    time=STAMP, polarisation=st.sampled_from(["DV", "SH"]), orbits=st.sampled_from("PRO"),
    posting=st.sampled_from([10, 20, 30]), software=st.just("G"),
    options=st.sampled_from(["gpuned", "sdwfcm"]), unique=st.from_regex(r"\A[0-9A-F]{4}\Z"),
    layer=st.sampled_from([None, "VV", "inc_map"]), extension=st.sampled_from([None, ".tif"]),
))  # fmt: skip
def test_hyp3_names_round_trip(made: names.Hyp3Rtc) -> None:
    assert names.parse_hyp3_rtc(str(made)) == made


@given(made=st.builds(
    names.EarthSearchS2, platform=st.sampled_from(["S2A", "S2C"]), tile=TILE,
    time=st.dates().map(lambda d: f"{d.year:04d}{d:%m%d}"), number=st.integers(0, 20),
    level=st.sampled_from(["L1C", "L2A"]),
) | st.builds(
    names.EarthSearchS2, platform=st.just("S2B"), tile=TILE, time=STAMP, number=st.none(),
    level=st.just("L2A"),
))  # fmt: skip
def test_earth_search_ids_round_trip(made: names.EarthSearchS2) -> None:
    assert names.parse_earth_search(str(made)) == made


@pytest.mark.parametrize(
    ("strip", "word"),
    [
        (STRIP.replace("S2B", "S2A").replace("N05.09", "N05.10"), "different baselines"),
        (STRIP.replace("S2B", "S2A"), "starts 216 days"),  # the critic's seven months
        (STRIP.replace("S2B", "S2A").replace("S20230820T09", "S20230116T01"), "starts -1 day"),
    ],
)
def test_product_and_datastrip_of_two_acquisitions_are_no_image(strip: str, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        names.earth_engine(names.parse_s2_product(S2), names.parse_s2_datastrip(strip))


@pytest.mark.parametrize(
    ("text", "orbit"),
    [
        ("S1A_IW_GRDH_1SDV_20230628T210705_20230628T210730_049191_05EA4D_21D1", 119),  # its item
        ("S1B_IW_GRDH_1SDV_20210810T044826_20210810T044859_028179_035C9B_6C5A", 153),
        # sentineleof: orbit 1681 is track 110, 8018 track 147; isce2 28130 from 24 June 2026
        ("S1C_IW_SLC__1SDV_20250331T060000_20250331T060030_001681_002A9D_60B6", 110),
        ("S1C_IW_SLC__1SDV_20260608T060000_20260608T060030_008018_002A9D_60B6", 147),
        ("S1C_IW_SLC__1SDV_20260615T060000_20260615T060030_008120_002A9D_60B6", None),
        ("S1C_IW_SLC__1SDV_20260701T060000_20260701T060030_008352_002A9D_60B6", 29),
        # s1-reader 151: orbit 2389 is track 73 by its manifest
        ("S1D_IW_SLC__1SDV_20260417T060000_20260417T060030_002389_002A9D_60B6", 73),
        ("S1E_IW_SLC__1SDV_20360417T060000_20360417T060030_002389_002A9D_60B6", None),
    ],
)
def test_relative_orbits_of_every_platform(text: str, orbit: int | None) -> None:
    assert names.parse_s1_product(text).relative_orbit == orbit


@pytest.mark.parametrize(
    ("text", "code"),
    [("S1A", "S1A"), ("SENTINEL-1A", "S1A"), ("sentinel-1a", "S1A"), ("Sentinel 1A", "S1A"),
     ("sentinel1a", "S1A"), ("S2C", "S2C"), ("landsat-8", "LANDSAT-8")],
)  # fmt: skip
def test_platforms_have_one_spelling(text: str, code: str) -> None:
    assert names.platform(text) == code


@pytest.mark.real
def test_every_real_id_parses_and_is_built_again(real: Path, figure: Any) -> None:
    """Every id of a Sentinel product in the real items, whatever property it stands in."""
    keys = ("s2:datastrip_id", "s2:granule_id", "s2:product_uri", "s1:product_identifier",
            "sentinel:product_id")  # fmt: skip
    seen = {}
    for path in sorted((real / "items").rglob("*.json")):
        body = json.loads(path.read_text())
        for item in body.get("features", [body]) if isinstance(body, dict) else []:
            properties = item.get("properties") or {}
            ids = [str(properties[k]) for k in keys if properties.get(k)]
            own = str(item.get("id"))
            if properties and own.startswith(("S1", "S2")):
                ids.append(own)
            for text in ids:
                parsed = names.parse(text)
                assert str(parsed) == text.removesuffix(".SAFE")
                seen[text] = type(parsed).__name__
    figure("ids of real items parsed and built again", len(seen), "150")
    assert len(seen) >= 150
    assert set(seen.values()) == {"S1Product", "S2Product", "S2Granule", "S2Datastrip", "IndigoS1",
                                  "EarthSearchS2"}  # fmt: skip


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
