"""Which acquisitions belong together: tables in, tables out, no input or output of its own.

A table of granules has one row per catalogue item and the columns ``id, time, platform,
relative_orbit, orbit_state, absolute_orbit, datatake, tile, baseline, properties`` (missing
values None); see `cubes.stac.search.granules`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cubes import names
from cubes.types import CubeError

PASS_GAP = pd.Timedelta("30min")
"""Granules of one sensor less than this apart belong to one pass: an orbit takes 99-101 minutes,
and an area on one grid is passed in under two."""

SAME_START = pd.Timedelta("5s")
"""Reprocessings repeat an acquisition start to within seconds; the two datastrips of a split
datatake start further apart."""


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)


def _datastrip_time(row: Any) -> pd.Timestamp:
    """Return the acquisition start of the granule's datastrip, or its own time without one."""
    strip = row.properties.get("s2:datastrip_id")
    if strip:
        try:
            return pd.to_datetime(names.parse_s2_datastrip(strip).time, format="%Y%m%dT%H%M%S")
        except CubeError:
            pass  # an id in another form: the item's own time serves
    time: pd.Timestamp = row.time
    return time


SAME_PLACE = 1e-3
"""Degrees by which the edges of the bounding boxes of one acquisition differ at most between
reprocessings: 100 m, a thousandth of a burst or slice."""

CYCLE, SAME_TRACK = pd.Timedelta("12D"), pd.Timedelta("5min")
"""A satellite of Sentinel-1 is back on a track after its cycle to within seconds; an area is passed
in under two minutes, and the neighbouring tracks come 98 minutes earlier and later."""


def _processed(row: Any) -> tuple[tuple[int, ...], int, str]:
    """Return what sorts reprocessings: baseline, then the time of processing, then the id.

    As numbers: ``4.00`` is before ``05.09``, and ``09:00+01:00`` before ``08:30Z``.
    """
    properties = row.properties
    made = (
        properties.get("s2:generation_time")
        or properties.get("processing:datetime")
        or properties.get("created")
    )
    baseline = _text(row.baseline)
    numbers = baseline.split(".") if re.fullmatch(r"[0-9]+(\.[0-9]+)*", baseline) else []
    since = -1  # in no form of time: baseline and id remain
    if made:
        with contextlib.suppress(ValueError):
            since = int(pd.to_datetime([made], utc=True, format="ISO8601").as_unit("ns").asi8[0])
    return tuple(int(n) for n in numbers), since, str(row.id)


def deduplicate(table: pd.DataFrame) -> pd.DataFrame:
    """Return the granules without reprocessed duplicates, split granules kept.

    Two granules are the same acquisition if platform, tile and absolute orbit agree, their
    acquisitions start within `SAME_START` and, where there is no tile, the edges of their boxes lie
    within `SAME_PLACE`; so are those that a third joins in this way. The newest baseline, then the
    newest processing, stays.
    Sentinel-2 granules of one datatake and tile from two datastrips are a split scene: both stay,
    and the mosaic joins them. The column ``dropped`` of a kept row names the ids it replaces.
    """
    if table.empty:
        return table.assign(dropped=pd.Series(dtype=object))
    rows = list(table.itertuples())
    whose = [
        (_text(r.collection), names.platform(_text(r.platform)), _text(r.tile),
         _text(r.absolute_orbit))
        for r in rows
    ]  # fmt: skip
    starts = np.array([_datastrip_time(r) for r in rows], "datetime64[ns]").astype(np.int64)
    # a tile is a place; without one two granules of the same second may be neighbours
    places = np.array([(0.0,) * 4 if _text(r.tile) else r.bbox for r in rows])
    made = [_processed(r) for r in rows]
    newest = {n: i for i, n in enumerate(sorted(range(len(rows)), key=lambda n: made[n]))}
    keyed = table.assign(
        _acquisition=_acquisitions(whose, starts, places),
        _made=[newest[n] for n in range(len(rows))],
    )
    same: dict[int, list[str]] = {}
    # without a frame per acquisition: 1,000 of them took a second
    keyed = keyed.sort_values(["_acquisition", "_made"], kind="stable")
    for number, item in zip(keyed["_acquisition"], keyed["id"], strict=True):
        same.setdefault(number, []).append(item)
    kept = keyed[~keyed["_acquisition"].duplicated(keep="last")]  # the newest is last
    dropped = np.empty(len(kept), object)
    for n, (number, item) in enumerate(zip(kept["_acquisition"], kept["id"], strict=True)):
        dropped[n] = tuple(i for i in same[number] if i != item)
    out = kept.assign(dropped=dropped).sort_values(["time", "id"], kind="stable")
    out = out.reset_index(drop=True)
    return out.drop(columns=["_made", "_acquisition"])


def _acquisitions(
    whose: Sequence[tuple[str, ...]],
    starts: npt.NDArray[np.int64],
    places: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """Return a number per row, equal where rows are of one acquisition.

    Parameters
    ----------
    whose : sequence of tuple
        What must be equal.
    starts : array (n,), int64
        Nanoseconds.
    places : array (n, 4), float64
        Edges of the boxes, degrees.
    """
    out = np.arange(len(whose))
    order = sorted(range(len(whose)), key=lambda n: (whose[n], int(starts[n])))
    for i, n in enumerate(order):
        for earlier in reversed(order[:i]):
            if whose[earlier] != whose[n] or starts[n] - starts[earlier] > SAME_START.value:
                break
            if np.abs(places[n] - places[earlier]).max() <= SAME_PLACE:
                out[out == out[n]] = out[earlier]
    return out


def passes(table: pd.DataFrame) -> pd.DataFrame:
    """Return the granules with a column ``step``: 0, 1, ... one per pass, in time order.

    A pass is one platform, one relative orbit and direction (as far as known), with less than
    `PASS_GAP` between neighbours: slices of one pass and tiles of one datatake share a step,
    passes are never mixed, and two passes of one day stay two steps.
    """
    if table.empty:
        return table.assign(step=pd.Series(dtype=int))
    track = [
        "|".join(_text(v) for v in (r.platform, r.relative_orbit, r.orbit_state))
        for r in table.itertuples()
    ]
    ordered = table.assign(_track=track).sort_values(["_track", "time", "id"], kind="stable")
    new = (ordered["_track"] != ordered["_track"].shift()) | (ordered["time"].diff() >= PASS_GAP)
    ordered["_pass"] = new.cumsum()
    order = ordered.groupby("_pass", as_index=False).agg({"time": "min", "_track": "first"})
    order = order.sort_values(["time", "_track"], kind="stable")
    rank = {p: i for i, p in enumerate(order["_pass"])}
    ordered["step"] = ordered["_pass"].map(rank)
    out = ordered.sort_values(["step", "time", "id"], kind="stable").reset_index(drop=True)
    return out.drop(columns=["_track", "_pass"])


def track_label(relative_orbit: Any, orbit_state: Any) -> str:
    """Return a track as ``132A`` or ``37D``.

    ``0`` stands for an unknown orbit, no letter for an unknown direction.
    """
    number = 0 if _text(relative_orbit) == "" else int(relative_orbit)
    return f"{number}{_text(orbit_state)[:1].upper()}"


def with_tracks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the granules with relative orbits of Sentinel-1 filled in where they are absent.

    From the product id; else from platform, absolute orbit and time, see
    `cubes.names.relative_orbit`; else from another granule whose track is known: one of the same
    platform, whole cycles of 12 days away to within `SAME_TRACK`, flying the same way as far as
    known. Granules of one table are of one area, so that a time is a track. Where known granules
    disagree, or none is near, the orbit stays unknown.
    """
    orbits = [_orbit_of(row) for row in table.itertuples()]
    if any(_text(o) == "" for o in orbits) and any(_text(o) != "" for o in orbits):
        orbits = _by_cycle(table, orbits)
    return table.assign(relative_orbit=pd.Series(orbits, index=table.index, dtype=object))


def _orbit_of(row: Any) -> Any:
    """Return the relative orbit that a granule says itself, None where it does not."""
    if _text(row.relative_orbit) != "":
        return row.relative_orbit
    try:
        named = names.parse(str(row.id))
    except CubeError:
        named = None
    if isinstance(named, names.S1Product) and named.relative_orbit is not None:
        return named.relative_orbit
    if isinstance(named, names.OperaProduct):
        return named.track
    absolute = _text(row.absolute_orbit)
    if absolute == "" or _text(row.platform) == "":
        return None
    time = pd.Timestamp(row.time).to_pydatetime(warn=False)
    return names.relative_orbit(str(row.platform), int(float(absolute)), time)


def _by_cycle(table: pd.DataFrame, orbits: list[Any]) -> list[Any]:
    """Return the orbits with those filled in that a granule of the same track tells."""
    platforms = [names.platform(_text(p)) for p in table["platform"]]
    states = [_text(s)[:1].lower() for s in table["orbit_state"]]
    times = table["time"].to_numpy().astype("datetime64[ns]").astype(np.int64)
    known = [n for n, orbit in enumerate(orbits) if _text(orbit) != ""]
    out = list(orbits)
    for n, orbit in enumerate(orbits):
        if _text(orbit) != "" or not platforms[n].startswith("S1"):
            continue
        away = np.abs((times[known] - times[n] + CYCLE.value // 2) % CYCLE.value - CYCLE.value // 2)
        found = {
            int(orbits[k])
            for k, gap in zip(known, away.tolist(), strict=True)
            if gap <= SAME_TRACK.value
            and platforms[k] == platforms[n]
            and (not states[k] or not states[n] or states[k] == states[n])
            and names.same_tracks(platforms[n], *pd.to_datetime(times[[k, n]]))
        }
        if len(found) == 1:
            out[n] = found.pop()
    return out
