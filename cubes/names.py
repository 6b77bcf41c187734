"""Product ids: parse and build; pure strings, strict, platforms open-ended.

Sources: Sentinel-1 Product Definition (naming), Sentinel-2 Products Specification Document 14.9
(compact naming, granule and datastrip ids), Earth Engine's data catalogue (COPERNICUS/S2*), the
product specifications of OPERA RTC-S1 (JPL D-108758) and CSLC-S1 (JPL D-108278), and the published
names of SEN12TS.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Any

from cubes.types import CubeError

_S2_PRODUCT = re.compile(
    r"^(?P<platform>S2[A-Z])_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})"
    r"(?:_N(?P<baseline>\d{4}))?_R(?P<orbit>\d{3})_T(?P<tile>\d{2}[A-Z]{3})"
    r"_(?P<generated>\d{8}T\d{6})(?:\.SAFE)?$"
)
_S2_DATASTRIP = re.compile(
    r"^(?P<platform>S2[A-Z])_(?P<file_class>[A-Z]{4})_MSI_(?P<level>L1C|L2A)_DS_"
    r"(?P<centre>[A-Z0-9_]{4})_(?P<created>\d{8}T\d{6})_S(?P<time>\d{8}T\d{6})"
    r"_N(?P<baseline>\d{2}\.\d{2})$"
)
_S1_PRODUCT = re.compile(
    r"^(?P<platform>S1[A-Z])_(?P<mode>IW|EW|SM|S[1-6]|WV)_(?P<kind>GRD[FHM]|SLC_|RAW_|OCN_)"
    r"_(?P<level>\d)(?P<product_class>[SANC])(?P<polarisation>SV|SH|DV|DH|VV|HH|VH|HV)"
    r"_(?P<start>\d{8}T\d{6})_(?P<stop>\d{8}T\d{6})_(?P<orbit>\d{6})_(?P<datatake>[0-9A-F]{6})"
    r"(?:_(?P<unique>[0-9A-F]{4}))?(?P<suffix>_rtc)?(?:\.SAFE)?$"
)

_S2_GRANULE = re.compile(
    r"^(?P<platform>S2[A-Z])_(?P<file_class>[A-Z]{4})_MSI_(?P<level>L1C|L2A)_TL_"
    r"(?P<centre>[A-Z0-9_]{4})_(?P<created>\d{8}T\d{6})_A(?P<orbit>\d{6})_T(?P<tile>\d{2}[A-Z]{3})"
    r"_N(?P<baseline>\d{2}\.\d{2})$"
)
_S2_FOLDER = re.compile(
    r"^(?P<level>L1C|L2A)_T(?P<tile>\d{2}[A-Z]{3})_A(?P<orbit>\d{6})_(?P<time>\d{8}T\d{6})$"
)
_EARTH_ENGINE = re.compile(
    r"^(?:(?P<collection>COPERNICUS/S2(?:_SR)?(?:_HARMONIZED)?)/)?(?P<datatake>\d{8}T\d{6})"
    r"_(?P<datastrip>\d{8}T\d{6})_T(?P<tile>\d{2}[A-Z]{3})$"
)
_BURST = r"T(?P<track>\d{3})-(?P<burst>\d{6})-(?P<swath>IW[123])"
_OPERA = (
    re.compile(
        rf"^OPERA_L2_(?P<kind>RTC-S1)_{_BURST}_(?P<time>\d{{8}}T\d{{6}})Z"
        r"_(?P<generated>\d{8}T\d{6})Z_(?P<platform>S1[A-Z])_(?P<posting>\d+)_v(?P<version>\d+\.\d+)"
        r"(?:_(?P<layer>VV|VH|HH|HV|mask|BROWSE))?(?:\.(?:tif|h5|png))?$"
    ),
    re.compile(
        rf"^OPERA_L2_(?P<kind>RTC-S1-STATIC)_{_BURST}_(?P<time>\d{{8}})_(?P<platform>S1[A-Z])"
        r"_(?P<posting>\d+)_v(?P<version>\d+\.\d+)"
        r"(?:_(?P<layer>local_incidence_angle|incidence_angle|number_of_looks|mask|BROWSE"
        r"|rtc_anf_gamma0_to_beta0|rtc_anf_gamma0_to_sigma0))?(?:\.(?:tif|h5|png))?$"
    ),
    re.compile(
        rf"^OPERA_L2_(?P<kind>CSLC-S1)_{_BURST}_(?P<time>\d{{8}}T\d{{6}})Z"
        r"_(?P<generated>\d{8}T\d{6})Z_(?P<platform>S1[A-Z])_(?P<polarisation>VV|VH|HH|HV)"
        r"_v(?P<version>\d+\.\d+)(?:_(?P<layer>BROWSE))?(?:\.(?:h5|png))?$"
    ),
    re.compile(
        rf"^OPERA_L2_(?P<kind>CSLC-S1-STATIC)_{_BURST}_(?P<time>\d{{8}})_(?P<platform>S1[A-Z])"
        r"_v(?P<version>\d+\.\d+)(?:\.h5)?$"
    ),
)
_PLACE = r"lat_(?P<lat>-?\d{1,2}\.\d{1,4})_lon_(?P<lon>-?\d{1,3}\.\d{1,4})"
_SEN12TS_PAIR = re.compile(
    rf"^{_PLACE}_s1date_(?P<s1_date>\d{{4}}-\d{{2}}-\d{{2}})_s2date_(?P<s2_date>\d{{4}}-\d{{2}}-\d{{2}})"
    r"_s1track_(?P<track>[A-Za-z]*\d{1,3})_s1lookpass_(?P<look_pass>[A-Za-z]+)(?:\.tif)?$"
)
_SEN12TS_LABEL = re.compile(rf"^{_PLACE}_date_(?P<year>\d{{4}})_lulc_label(?:\.tif)?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class S2Product:
    """A Sentinel-2 product id; `baseline` is None in the Planetary Computer's shortened form."""

    platform: str
    level: str
    time: str
    """Datatake sensing start, ``yyyymmddThhmmss``."""
    baseline: str | None
    """``0509`` for 05.09."""
    orbit: int
    tile: str
    generated: str

    def __str__(self) -> str:
        """Return the id."""
        baseline = f"_N{self.baseline}" if self.baseline else ""
        return (
            f"{self.platform}_MSI{self.level}_{self.time}{baseline}"
            f"_R{self.orbit:03d}_T{self.tile}_{self.generated}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class S2Datastrip:
    """A Sentinel-2 datastrip id."""

    platform: str
    file_class: str
    level: str
    centre: str
    """Four characters, padded with ``_``."""
    created: str
    time: str
    """Acquisition (validity) start."""
    baseline: str
    """``05.09``."""

    def __str__(self) -> str:
        """Return the id."""
        return (
            f"{self.platform}_{self.file_class}_MSI_{self.level}_DS_{self.centre}"
            f"_{self.created}_S{self.time}_N{self.baseline}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class S1Product:
    """A Sentinel-1 product id; `unique` and `suffix` (``_rtc``) are optional."""

    platform: str
    mode: str
    kind: str
    level: str
    product_class: str
    polarisation: str
    start: str
    stop: str
    orbit: int
    """Absolute orbit."""
    datatake: str
    unique: str | None
    suffix: str | None

    @property
    def relative_orbit(self) -> int | None:
        """Relative orbit 1..175, by ESA's rule for A and B; None for platforms without one here.

        Source: Sentinel-1 orbit numbering as used by ESA's SNAP and ASF: A: (orbit - 73) mod 175
        + 1, B: (orbit - 27) mod 175 + 1.
        """
        shift = {"S1A": 73, "S1B": 27}.get(self.platform)
        return None if shift is None else (self.orbit - shift) % 175 + 1

    def __str__(self) -> str:
        """Return the id."""
        unique = f"_{self.unique}" if self.unique else ""
        return (
            f"{self.platform}_{self.mode}_{self.kind}_{self.level}{self.product_class}"
            f"{self.polarisation}_{self.start}_{self.stop}_{self.orbit:06d}_{self.datatake}"
            f"{unique}{self.suffix or ''}"
        )


def _match(pattern: re.Pattern[str], text: str, what: str, example: str) -> dict[str, str | None]:
    found = pattern.fullmatch(text)
    if found is None:
        raise CubeError(f"{text!r} is not a {what} id such as {example}")
    return _parts(found, what)


def _parts(found: re.Match[str], what: str) -> dict[str, Any]:
    """Return the parts of an id, refusing dates and times that there are not."""
    for part in found.groups(""):
        if not _possible(part):
            raise CubeError(f"{found[0]!r} is no {what} id: there is no date or time {part!r}")
    return found.groupdict()


def _possible(part: str) -> bool:
    """Return False for what is written as a date or time and is none."""
    if not re.fullmatch(r"\d{4}-?\d\d-?\d\d(T\d{6})?", part):
        return True
    try:
        dt.datetime.fromisoformat(part)
    except ValueError:
        return False
    return True


def parse_s2_product(text: str) -> S2Product:
    """Return the parts of a Sentinel-2 product id (with or without baseline and ``.SAFE``).

    Raises
    ------
    CubeError
        Not such an id; a date, time or relative orbit that there is not.
    """
    g = _match(_S2_PRODUCT, text, "Sentinel-2 product",
               "S2A_MSIL2A_20230116T021341_N0509_R060_T50KPC_20230116T112621")  # fmt: skip
    orbit = int(g["orbit"] or 0)
    if not 1 <= orbit <= 143:
        raise CubeError(f"{text!r} names relative orbit {orbit}; Sentinel-2 has 1 to 143")
    return S2Product(**{**g, "orbit": orbit})  # type: ignore[arg-type]


def parse_s2_datastrip(text: str) -> S2Datastrip:
    """Return the parts of a Sentinel-2 datastrip id.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = _match(_S2_DATASTRIP, text, "Sentinel-2 datastrip",
               "S2B_OPER_MSI_L2A_DS_2BPS_20230820T124817_S20230820T094908_N05.09")  # fmt: skip
    return S2Datastrip(**g)  # type: ignore[arg-type]


def parse_s1_product(text: str) -> S1Product:
    """Return the parts of a Sentinel-1 product id (also in the Planetary Computer's RTC form).

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = _match(_S1_PRODUCT, text, "Sentinel-1 product",
               "S1A_IW_GRDH_1SDV_20220518T054334_20220518T054359_043261_052A9D_60B6")  # fmt: skip
    return S1Product(**{**g, "orbit": int(g["orbit"] or 0)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class S2Granule:
    """A Sentinel-2 granule (tile) id of the archive, as STAC's ``s2:granule_id`` has it."""

    platform: str
    file_class: str
    level: str
    centre: str
    """Four characters, padded with ``_``."""
    created: str
    orbit: int
    """Absolute orbit."""
    tile: str
    baseline: str
    """``05.09``."""

    def __str__(self) -> str:
        """Return the id."""
        return (
            f"{self.platform}_{self.file_class}_MSI_{self.level}_TL_{self.centre}"
            f"_{self.created}_A{self.orbit:06d}_T{self.tile}_N{self.baseline}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class S2Folder:
    """The short granule id that names a folder under ``GRANULE/`` of a Sentinel-2 product."""

    level: str
    tile: str
    orbit: int
    """Absolute orbit."""
    time: str
    """Start of the datastrip's sensing (not of the datatake)."""

    def __str__(self) -> str:
        """Return the id."""
        return f"{self.level}_T{self.tile}_A{self.orbit:06d}_{self.time}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EarthEngineS2:
    """An Earth Engine image id of Sentinel-2; `collection` is None for a bare ``system:index``."""

    collection: str | None
    """``COPERNICUS/S2``, ``COPERNICUS/S2_SR`` or their ``_HARMONIZED`` twins."""
    datatake: str
    """Datatake sensing start, as in a product id."""
    datastrip: str
    """Datastrip sensing start."""
    tile: str

    def __str__(self) -> str:
        """Return the id."""
        prefix = f"{self.collection}/" if self.collection else ""
        return f"{prefix}{self.datatake}_{self.datastrip}_T{self.tile}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OperaProduct:
    """An OPERA product id or file name: RTC-S1, RTC-S1-STATIC, CSLC-S1, CSLC-S1-STATIC."""

    kind: str
    track: int
    """Relative orbit."""
    burst: int
    swath: str
    time: str
    """Acquisition start ``yyyymmddThhmmss``, UTC; for STATIC the day ``yyyymmdd`` it is valid
    from."""
    generated: str | None = None
    """Time of processing; None for STATIC."""
    platform: str
    posting: int | None = None
    """Pixel edge in metres, RTC only."""
    polarisation: str | None = None
    """CSLC-S1 only."""
    version: str
    layer: str | None = None
    """Last part of a file name: ``VV``, ``mask``, ``local_incidence_angle``; None: the product."""

    @property
    def burst_id(self) -> str:
        """``T137-292318-IW1``, as in the name."""
        return f"T{self.track:03d}-{self.burst:06d}-{self.swath}"

    def __str__(self) -> str:
        """Return the id, without extension."""
        static = self.kind.endswith("STATIC")
        parts = [
            f"OPERA_L2_{self.kind}",
            self.burst_id,
            self.time if static else f"{self.time}Z",
            None if self.generated is None else f"{self.generated}Z",
            self.platform,
            None if self.posting is None else str(self.posting),
            self.polarisation,
            f"v{self.version}",
            self.layer,
        ]
        return "_".join(p for p in parts if p is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sen12tsPair:
    """Name of a SEN12TS file under ``s1/`` or ``s2/``; the same for both."""

    lat: str
    lon: str
    """Of the tile's centre, degrees, as written: up to four decimals, no trailing zeros."""
    s1_date: str
    """Newest of the four radar dates, ``yyyy-mm-dd``."""
    s2_date: str
    track: str
    """Relative orbit as written."""
    look_pass: str
    """``ascending`` or ``descending``, as written."""

    @property
    def place(self) -> str:
        """``lat_..._lon_...``: what the files of one tile share."""
        return f"lat_{self.lat}_lon_{self.lon}"

    @property
    def relative_orbit(self) -> int:
        """The digits of `track`."""
        return int(re.sub(r"\D", "", self.track))

    @property
    def orbit_state(self) -> str:
        """``ascending`` or ``descending``; empty where `look_pass` begins with another letter."""
        return {"a": "ascending", "d": "descending"}.get(self.look_pass[0].lower(), "")

    def __str__(self) -> str:
        """Return the file name."""
        return (
            f"{self.place}_s1date_{self.s1_date}_s2date_{self.s2_date}"
            f"_s1track_{self.track}_s1lookpass_{self.look_pass}.tif"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sen12tsLabel:
    """Name of a SEN12TS file under ``labels/``: one per tile."""

    lat: str
    lon: str
    year: int

    @property
    def place(self) -> str:
        """``lat_..._lon_...``: what the files of one tile share."""
        return f"lat_{self.lat}_lon_{self.lon}"

    def __str__(self) -> str:
        """Return the file name."""
        return f"{self.place}_date_{self.year:04d}_lulc_label.tif"


def parse_s2_granule(text: str) -> S2Granule:
    """Return the parts of a Sentinel-2 granule id.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = _match(_S2_GRANULE, text, "Sentinel-2 granule",
               "S2A_OPER_MSI_L2A_TL_2APS_20240824T013055_A047900_T13TDE_N05.11")  # fmt: skip
    return S2Granule(**{**g, "orbit": int(g["orbit"] or 0)})  # type: ignore[arg-type]


def parse_s2_folder(text: str) -> S2Folder:
    """Return the parts of the short granule id that names a folder of a Sentinel-2 product.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = _match(_S2_FOLDER, text, "Sentinel-2 granule folder", "L2A_T33TWM_A033710_20230820T094908")
    return S2Folder(**{**g, "orbit": int(g["orbit"] or 0)})  # type: ignore[arg-type]


def parse_earth_engine(text: str) -> EarthEngineS2:
    """Return the parts of an Earth Engine image id of Sentinel-2, with or without collection.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = _match(_EARTH_ENGINE, text, "Earth Engine Sentinel-2",
               "COPERNICUS/S2_SR/20230820T094549_20230820T094908_T33TWM")  # fmt: skip
    return EarthEngineS2(**g)  # type: ignore[arg-type]


def earth_engine(
    product: S2Product, datastrip: S2Datastrip, *, harmonized: bool = False
) -> EarthEngineS2:
    """Return the Earth Engine id of a Sentinel-2 product, which takes its datastrip to know.

    Parameters
    ----------
    product, datastrip
        Of one acquisition; the datastrip is in STAC's ``s2:datastrip_id``.
    harmonized : bool
        Of the collections without ESA's offset of +1000.

    Raises
    ------
    CubeError
        Platform or level of the two differ.
    """
    if (product.platform, product.level) != (datastrip.platform, datastrip.level):
        raise CubeError(
            f"product {product} and datastrip {datastrip} are of different platforms or levels"
        )
    level = {"L1C": "S2", "L2A": "S2_SR"}[product.level]
    return EarthEngineS2(
        collection=f"COPERNICUS/{level}{'_HARMONIZED' if harmonized else ''}",
        datatake=product.time,
        datastrip=datastrip.time,
        tile=product.tile,
    )


def parse_opera(text: str) -> OperaProduct:
    """Return the parts of an OPERA product id or file name, of any of the four Sentinel-1 kinds.

    Raises
    ------
    CubeError
        Not such an id.
    """
    for pattern in _OPERA:
        found = pattern.fullmatch(text)
        if found is not None:
            g = _parts(found, "OPERA")
            numbers = {k: int(g[k]) for k in ("track", "burst", "posting") if g.get(k)}
            return OperaProduct(**{**g, **numbers})
    raise CubeError(
        f"{text!r} is not an OPERA RTC-S1, CSLC-S1 or STATIC id such as "
        "OPERA_L2_RTC-S1_T137-292318-IW1_20250102T015857Z_20250102T190143Z_S1A_30_v1.0_VV.tif"
    )


def parse_sen12ts(text: str) -> Sen12tsPair | Sen12tsLabel:
    """Return the parts of a SEN12TS file name: of an image file or of a label file.

    Raises
    ------
    CubeError
        Not such a name.
    """
    found = _SEN12TS_PAIR.fullmatch(text)
    if found is not None:
        return Sen12tsPair(**_parts(found, "SEN12TS"))
    g = _match(
        _SEN12TS_LABEL,
        text,
        "SEN12TS",
        "lat_36.1234_lon_-119.5_s1date_2020-06-20_s2date_2020-06-19_s1track_137"
        "_s1lookpass_ascending.tif or lat_36.1234_lon_-119.5_date_2020_lulc_label.tif",
    )
    return Sen12tsLabel(lat=str(g["lat"]), lon=str(g["lon"]), year=int(g["year"] or 0))
