"""Ids of Sentinel-2: products, granules, datastrips, Earth Search and Earth Engine.

Sources: Sentinel-2 Products Specification Document 14.9 (compact naming, granule and datastrip
ids), Earth Engine's data catalogue (COPERNICUS/S2*), the items of Earth Search in both of its
collections.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

from cubes.names.common import check_tile, matched, moment
from cubes.types import CubeError

_S2_PRODUCT = re.compile(
    r"^(?P<platform>S2[A-Z])_MSI(?P<level>L1C|L2A)_(?P<time>[0-9]{8}T[0-9]{6})"
    r"(?:_N(?P<baseline>[0-9]{4}))?_R(?P<orbit>[0-9]{3})_T(?P<tile>[0-9]{2}[A-Z]{3})"
    r"_(?P<generated>[0-9]{8}T[0-9]{6})(?:\.SAFE)?$"
)
_S2_DATASTRIP = re.compile(
    r"^(?P<platform>S2[A-Z])_(?P<file_class>[A-Z]{4})_MSI_(?P<level>L1C|L2A)_DS_"
    r"(?P<centre>[A-Z0-9_]{4})_(?P<created>[0-9]{8}T[0-9]{6})_S(?P<time>[0-9]{8}T[0-9]{6})"
    r"_N(?P<baseline>[0-9]{2}\.[0-9]{2})$"
)
_S2_GRANULE = re.compile(
    r"^(?P<platform>S2[A-Z])_(?P<file_class>[A-Z]{4})_MSI_(?P<level>L1C|L2A)_TL_"
    r"(?P<centre>[A-Z0-9_]{4})_(?P<created>[0-9]{8}T[0-9]{6})_A(?P<orbit>[0-9]{6})_T(?P<tile>[0-9]{2}[A-Z]{3})"
    r"_N(?P<baseline>[0-9]{2}\.[0-9]{2})$"
)
_S2_FOLDER = re.compile(
    r"^(?P<level>L1C|L2A)_T(?P<tile>[0-9]{2}[A-Z]{3})_A(?P<orbit>[0-9]{6})_(?P<time>[0-9]{8}T[0-9]{6})$"
)
_EARTH_ENGINE = re.compile(
    r"^(?:(?P<collection>COPERNICUS/S2(?:_SR)?(?:_HARMONIZED)?)/)?(?P<datatake>[0-9]{8}T[0-9]{6})"
    r"_(?P<datastrip>[0-9]{8}T[0-9]{6})_T(?P<tile>[0-9]{2}[A-Z]{3})$"
)
EARLIER, DATATAKE = dt.timedelta(minutes=1), dt.timedelta(hours=1)
"""Longest times from the start of one of its datastrips to that of a datatake, which real ids name
up to 4 s late, and back: an orbit is 100 minutes, and Sentinel-2 images its day side at most."""

_EARTH_SEARCH = re.compile(
    r"^(?P<platform>S2[A-Z])_(?P<tile>[0-9]{1,2}[A-Z]{3})_(?P<time>[0-9]{8})_(?P<number>[0-9]+)"
    r"_(?P<level>L1C|L2A)$"
)
_EARTH_SEARCH_C1 = re.compile(
    r"^(?P<platform>S2[A-Z])_T(?P<tile>[0-9]{2}[A-Z]{3})_(?P<time>[0-9]{8}T[0-9]{6})_(?P<level>L1C|L2A)$"
)


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
class EarthSearchS2:
    """An Earth Search item id of Sentinel-2, of either collection."""

    platform: str
    tile: str
    """As written: without a leading zero in ``sentinel-2-l2a``, where an id may lack it."""
    time: str
    """Day ``yyyymmdd`` in ``sentinel-2-l2a``; start of the datastrip, ``yyyymmddThhmmss``, in
    ``sentinel-2-c1-l2a``."""
    number: int | None
    """Which scene of the tile and day; None in ``sentinel-2-c1-l2a``."""
    level: str

    def __str__(self) -> str:
        """Return the id."""
        if self.number is None:
            return f"{self.platform}_T{self.tile}_{self.time}_{self.level}"
        return f"{self.platform}_{self.tile}_{self.time}_{self.number}_{self.level}"


def parse_s2_product(text: str) -> S2Product:
    """Return the parts of a Sentinel-2 product id (with or without baseline and ``.SAFE``).

    Raises
    ------
    CubeError
        Not such an id; a date, time, tile or relative orbit that there is not.
    """
    g = matched(_S2_PRODUCT, text, "Sentinel-2 product",
               "S2A_MSIL2A_20230116T021341_N0509_R060_T50KPC_20230116T112621")  # fmt: skip
    orbit = int(g["orbit"])
    check_tile(g["tile"], text)
    if not 1 <= orbit <= 143:
        raise CubeError(f"{text!r} names relative orbit {orbit}; Sentinel-2 has 1 to 143")
    return S2Product(**{**g, "orbit": orbit})


def parse_s2_datastrip(text: str) -> S2Datastrip:
    """Return the parts of a Sentinel-2 datastrip id.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = matched(_S2_DATASTRIP, text, "Sentinel-2 datastrip",
               "S2B_OPER_MSI_L2A_DS_2BPS_20230820T124817_S20230820T094908_N05.09")  # fmt: skip
    return S2Datastrip(**g)


def parse_s2_granule(text: str) -> S2Granule:
    """Return the parts of a Sentinel-2 granule id.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = matched(_S2_GRANULE, text, "Sentinel-2 granule",
               "S2A_OPER_MSI_L2A_TL_2APS_20240824T013055_A047900_T13TDE_N05.11")  # fmt: skip
    check_tile(g["tile"], text)
    return S2Granule(**{**g, "orbit": int(g["orbit"])})


def parse_s2_folder(text: str) -> S2Folder:
    """Return the parts of the short granule id that names a folder of a Sentinel-2 product.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = matched(_S2_FOLDER, text, "Sentinel-2 granule folder", "L2A_T33TWM_A033710_20230820T094908")
    check_tile(g["tile"], text)
    return S2Folder(**{**g, "orbit": int(g["orbit"])})


def parse_earth_engine(text: str) -> EarthEngineS2:
    """Return the parts of an Earth Engine image id of Sentinel-2, with or without collection.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = matched(_EARTH_ENGINE, text, "Earth Engine Sentinel-2",
               "COPERNICUS/S2_SR/20230820T094549_20230820T094908_T33TWM")  # fmt: skip
    check_tile(g["tile"], text)
    return EarthEngineS2(**g)


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
        Platform, level or baseline of the two differ, or the datastrip does not start within
        `DATATAKE` after the datatake.
    """
    if (product.platform, product.level) != (datastrip.platform, datastrip.level):
        raise CubeError(
            f"product {product} and datastrip {datastrip} are of different platforms or levels"
        )
    if product.baseline is not None and product.baseline != datastrip.baseline.replace(".", ""):
        raise CubeError(
            f"product {product} and datastrip {datastrip} are of different baselines: another "
            "processing of the acquisition"
        )
    later = moment(datastrip.time) - moment(product.time)
    if not -EARLIER <= later <= DATATAKE:
        raise CubeError(
            f"datastrip {datastrip} starts {later} after the datatake of product {product}; of one "
            f"acquisition it is at most {DATATAKE}"
        )
    level = {"L1C": "S2", "L2A": "S2_SR"}[product.level]
    return EarthEngineS2(
        collection=f"COPERNICUS/{level}{'_HARMONIZED' if harmonized else ''}",
        datatake=product.time,
        datastrip=datastrip.time,
        tile=product.tile,
    )


def parse_earth_search(text: str) -> EarthSearchS2:
    """Return the parts of an Earth Search item id of Sentinel-2, of either collection.

    Raises
    ------
    CubeError
        Not such an id; a date, time or tile that there is not.
    """
    pattern = _EARTH_SEARCH_C1 if _EARTH_SEARCH_C1.fullmatch(text) else _EARTH_SEARCH
    g = matched(pattern, text, "Earth Search Sentinel-2", "S2A_33TWM_20230810_0_L2A or "
                "S2A_T33TWM_20230810T095000_L2A")  # fmt: skip
    check_tile(g["tile"], text)
    number = g.get("number")
    if number is not None and str(int(number)) != number:
        raise CubeError(f"{text!r} numbers its scene {number}; Earth Search writes {int(number)}")
    return EarthSearchS2(**{**g, "number": None if number is None else int(number)})
