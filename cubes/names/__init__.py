"""Product ids: parse and build; pure strings, strict, platforms open-ended.

``parse(text)`` tells which kind an id is; a noun of each kind builds it again with ``str()``.
"""

from __future__ import annotations

from collections.abc import Callable

from cubes.names.common import OtherForm
from cubes.names.common import platform as platform
from cubes.names.derived import Hyp3Rtc as Hyp3Rtc
from cubes.names.derived import OperaProduct as OperaProduct
from cubes.names.derived import Sen12tsLabel as Sen12tsLabel
from cubes.names.derived import Sen12tsPair as Sen12tsPair
from cubes.names.derived import parse_hyp3_rtc as parse_hyp3_rtc
from cubes.names.derived import parse_opera as parse_opera
from cubes.names.derived import parse_sen12ts as parse_sen12ts
from cubes.names.s1 import EarthEngineS1 as EarthEngineS1
from cubes.names.s1 import IndigoS1 as IndigoS1
from cubes.names.s1 import S1Product as S1Product
from cubes.names.s1 import parse_earth_engine_s1 as parse_earth_engine_s1
from cubes.names.s1 import parse_indigo as parse_indigo
from cubes.names.s1 import parse_s1_product as parse_s1_product
from cubes.names.s1 import relative_orbit as relative_orbit
from cubes.names.s1 import same_tracks as same_tracks
from cubes.names.s2 import EarthEngineS2 as EarthEngineS2
from cubes.names.s2 import EarthSearchS2 as EarthSearchS2
from cubes.names.s2 import S2Datastrip as S2Datastrip
from cubes.names.s2 import S2Folder as S2Folder
from cubes.names.s2 import S2Granule as S2Granule
from cubes.names.s2 import S2Product as S2Product
from cubes.names.s2 import earth_engine as earth_engine
from cubes.names.s2 import parse_earth_engine as parse_earth_engine
from cubes.names.s2 import parse_earth_search as parse_earth_search
from cubes.names.s2 import parse_s2_datastrip as parse_s2_datastrip
from cubes.names.s2 import parse_s2_folder as parse_s2_folder
from cubes.names.s2 import parse_s2_granule as parse_s2_granule
from cubes.names.s2 import parse_s2_product as parse_s2_product
from cubes.types import CubeError

Name = (
    S1Product
    | S2Product
    | S2Granule
    | S2Datastrip
    | S2Folder
    | EarthSearchS2
    | EarthEngineS1
    | EarthEngineS2
    | IndigoS1
    | OperaProduct
    | Hyp3Rtc
    | Sen12tsPair
    | Sen12tsLabel
)
"""Any id; its class is its kind."""

_PARSERS: tuple[Callable[[str], Name], ...] = (
    parse_s1_product,
    parse_s2_product,
    parse_s2_granule,
    parse_s2_datastrip,
    parse_s2_folder,
    parse_earth_search,
    parse_earth_engine_s1,
    parse_earth_engine,
    parse_indigo,
    parse_opera,
    parse_hyp3_rtc,
    parse_sen12ts,
)


def parse(text: str) -> Name:
    """Return an id of any known kind as its noun, whose class says which kind it is.

    No text is an id of two kinds.

    Raises
    ------
    CubeError
        No kind has ids of this form; or one has, with a date, tile or orbit that there is not.
    """
    for parser in _PARSERS:
        try:
            return parser(text)
        except OtherForm:
            pass  # perhaps the next kind's
    kinds = ", ".join(p.__name__.removeprefix("parse_") for p in _PARSERS)
    raise CubeError(f"{text!r} is an id of no known kind: {kinds}")
