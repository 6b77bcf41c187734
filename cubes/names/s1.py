"""Ids of Sentinel-1: products, relative orbits, Earth Engine, Indigo.

Sources: Sentinel-1 Product Definition (naming); Earth Engine's data catalogue (COPERNICUS/S1_GRD);
the items of stactools-sentinel1. Relative orbits: ESA, SentiWiki "S1 Products", SAR naming
convention (A, B, C), and isce2 pull requests 28123 (D: 42) and 28130 (C: 99 after the manoeuvre
of June 2026), which cite ESA's presentation at FRINGE 2026.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass

from cubes.names.common import TRACKS, check_tile, matched, moment, platform
from cubes.types import CubeError

_S1_PRODUCT = re.compile(
    r"^(?P<platform>S1[A-Z])_(?P<mode>IW|EW|SM|S[1-6]|WV)_(?P<kind>GRD[FHM]|SLC_|SL1_|RAW_|OCN_)"
    r"_(?P<level>[012])(?P<product_class>[SANC_])(?P<polarisation>SV|SH|DV|DH|VV|HH|VH|HV)"
    r"_(?P<start>[0-9]{8}T[0-9]{6})_(?P<stop>[0-9]{8}T[0-9]{6})_(?P<orbit>[0-9]{6})_(?P<datatake>[0-9A-F]{6})"
    r"(?:_(?P<unique>[0-9A-F]{4}))?(?P<suffix>_rtc)?(?:\.SAFE)?$"
)
_EARTH_ENGINE = re.compile(
    r"^(?P<collection>COPERNICUS/S1_GRD(?:_FLOAT)?)/(?P<product>S1[A-Z0-9_]+)$"
)
_INDIGO = re.compile(
    r"^(?P<platform>S1[A-Z])_(?P<date>[0-9]{8})_(?P<tile>[0-9]{2}[A-Z]{3})_(?P<direction>ASC|DSC)$"
)

_SHIFTS = {"S1A": 73, "S1B": 27, "S1C": 172, "S1D": 42}
"""Relative orbit = (absolute orbit - this) mod 175 + 1."""
_LAST_BEFORE, _SHIFT_SINCE = 8018, 99
_LEFT, _MOVED = dt.datetime(2026, 6, 9), dt.datetime(2026, 6, 24)
"""S1C left its track after orbit 8018, on 8 June 2026, and was on its new one on 24 June."""


def relative_orbit(of: str, orbit: int, time: dt.datetime) -> int | None:
    """Return the relative orbit 1..175 of an absolute orbit; None where no rule is known.

    Parameters
    ----------
    of : str
        Platform in any spelling.
    orbit : int
        Absolute orbit.
    time : datetime
        Of the acquisition, UTC: Sentinel-1C moved to other tracks in June 2026.
    """
    name = platform(of)
    shift = _SHIFTS.get(name)
    if shift is None or orbit < 1:
        return None
    if name == "S1C" and orbit > _LAST_BEFORE:
        if time < _MOVED:
            return None  # between two tracks
        shift = _SHIFT_SINCE
    return (orbit - shift) % TRACKS + 1


def same_tracks(of: str, one: dt.datetime, other: dt.datetime) -> bool:
    """Return whether a platform (in any spelling) flew the same tracks at two times, UTC."""
    return platform(of) != "S1C" or (one < _LEFT) == (other < _LEFT)


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
        """Relative orbit 1..175; None for a platform without a rule, see `relative_orbit`."""
        return relative_orbit(self.platform, self.orbit, moment(self.start))

    def __str__(self) -> str:
        """Return the id."""
        unique = f"_{self.unique}" if self.unique else ""
        return (
            f"{self.platform}_{self.mode}_{self.kind}_{self.level}{self.product_class}"
            f"{self.polarisation}_{self.start}_{self.stop}_{self.orbit:06d}_{self.datatake}"
            f"{unique}{self.suffix or ''}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EarthEngineS1:
    """An Earth Engine image id of Sentinel-1: the collection, and the product's own id."""

    collection: str
    """``COPERNICUS/S1_GRD`` (dB) or ``COPERNICUS/S1_GRD_FLOAT`` (power)."""
    product: S1Product

    def __str__(self) -> str:
        """Return the id."""
        return f"{self.collection}/{self.product}"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndigoS1:
    """An item id of Indigo's Sentinel-1 RTC: one platform, day, MGRS tile and direction."""

    platform: str
    date: str
    """``yyyymmdd``."""
    tile: str
    direction: str
    """``ASC`` or ``DSC``."""

    def __str__(self) -> str:
        """Return the id."""
        return f"{self.platform}_{self.date}_{self.tile}_{self.direction}"


def parse_s1_product(text: str) -> S1Product:
    """Return the parts of a Sentinel-1 product id (also in the Planetary Computer's RTC form).

    Raises
    ------
    CubeError
        Not such an id; a time that there is not, an end before the start, orbit 0, or a level that
        is not the kind's.
    """
    g = matched(_S1_PRODUCT, text, "Sentinel-1 product",
               "S1A_IW_GRDH_1SDV_20220518T054334_20220518T054359_043261_052A9D_60B6")  # fmt: skip
    orbit, level = int(g["orbit"]), _LEVELS.get(g["kind"], "1")
    if orbit < 1:
        raise CubeError(f"{text!r} names absolute orbit 0; they count from 1")
    if g["stop"] < g["start"]:
        raise CubeError(f"{text!r} ends at {g['stop']}, before it starts at {g['start']}")
    if g["level"] != level:
        raise CubeError(f"{text!r} is {g['kind']} of level {g['level']}; that is level {level}")
    return S1Product(**{**g, "orbit": orbit})


_LEVELS = {"RAW_": "0", "OCN_": "2"}
"""Of the kinds that are not level 1."""


def parse_earth_engine_s1(text: str) -> EarthEngineS1:
    """Return the parts of an Earth Engine image id of Sentinel-1.

    Raises
    ------
    CubeError
        Not such an id; see `parse_s1_product`.
    """
    g = matched(_EARTH_ENGINE, text, "Earth Engine Sentinel-1", "COPERNICUS/S1_GRD/"
                "S1A_IW_GRDH_1SDV_20220518T054334_20220518T054359_043261_052A9D_60B6")  # fmt: skip
    product = parse_s1_product(g["product"])
    if not product.kind.startswith("GRD") or product.suffix or product.unique is None:
        raise CubeError(f"{text!r} is no Earth Engine id: its images are whole GRD products")
    return EarthEngineS1(collection=g["collection"], product=product)


def parse_indigo(text: str) -> IndigoS1:
    """Return the parts of an item id of Indigo's Sentinel-1 RTC.

    Raises
    ------
    CubeError
        Not such an id; a date or tile that there is not.
    """
    g = matched(_INDIGO, text, "Indigo Sentinel-1", "S1A_20200103_17RMJ_ASC")
    check_tile(g["tile"], text)
    return IndigoS1(**g)
