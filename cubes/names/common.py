"""What all parsers of ids share: exact matching, dates, tiles and tracks that there are."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

from cubes.types import CubeError

TRACKS = 175
"""Relative orbits of Sentinel-1: in 12 days it flies 175 orbits."""

STAMP = "%Y%m%dT%H%M%S"


class OtherForm(CubeError):
    """A text that is no id of a kind at all, rather than a wrong one of it."""


def matched(pattern: re.Pattern[str], text: str, what: str, example: str) -> dict[str, Any]:
    """Return the named parts of an id, refusing dates and times that there are not.

    Raises
    ------
    OtherForm
        Another form than the pattern's.
    CubeError
        No such date or time.
    """
    found = pattern.fullmatch(text)
    if found is None:
        article = "an" if what[0] in "AEIOU" else "a"
        raise OtherForm(f"{text!r} is not {article} {what} id such as {example}")
    return parts(found, what)


def parts(found: re.Match[str], what: str) -> dict[str, Any]:
    """Return the named parts of a match, see `matched`."""
    for part in found.groups(""):
        if not _possible(part):
            raise CubeError(f"{found[0]!r} is no {what} id: there is no date or time {part!r}")
    return found.groupdict()


def _possible(part: str) -> bool:
    """Return False for what is written as a date or time and is none."""
    if not re.fullmatch(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}(T[0-9]{6})?", part):
        return True
    try:
        dt.datetime.fromisoformat(part)
    except ValueError:
        return False
    return True


def moment(stamp: str) -> dt.datetime:
    """Return a time written as ``yyyymmddThhmmss``."""
    return dt.datetime.strptime(stamp, STAMP)


_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
_BANDS = "CDEFGHJKLMNPQRSTUVWX"


def check_tile(tile: str, text: str) -> None:
    """Raise CubeError unless there is such an MGRS tile: zone, band, column of the zone, row."""
    zone = int(tile[:-3])
    band, column, row = tile[-3], tile[-2], tile[-1]
    columns = _COLUMNS[zone % 3]
    if not (1 <= zone <= 60 and band in _BANDS and column in columns and row in _ROWS):
        raise CubeError(
            f"{text!r} names tile {tile}, which MGRS does not have: zones 01 to 60, bands C to X, "
            f"columns {columns} in this zone, rows A to V, no I and no O"
        )


def check_track(track: int, text: str) -> None:
    """Raise CubeError unless Sentinel-1 has such a relative orbit."""
    if not 1 <= track <= TRACKS:
        raise CubeError(f"{text!r} names relative orbit {track}; Sentinel-1 has 1 to {TRACKS}")


_PLATFORM = re.compile(r"S(?:ENTINEL)?[-_ ]?([0-9])[-_ ]?([A-Z])")


def platform(text: str) -> str:
    """Return a platform as ids write it: ``S1A`` for ``sentinel-1a``, ``SENTINEL-1A`` or ``S1A``.

    Other platforms come back in capital letters.
    """
    capitals = str(text).strip().upper()
    found = _PLATFORM.fullmatch(capitals)
    return f"S{found[1]}{found[2]}" if found else capitals
