"""Which acquisitions belong together: tables in, tables out, no input or output of its own.

A table of granules has one row per catalogue item and the columns ``id, time, platform,
relative_orbit, orbit_state, absolute_orbit, datatake, tile, baseline, properties`` (missing
values None); see `cubes.stac.search.granules`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
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


def _processed(row: Any) -> str:
    """Return what sorts reprocessings: baseline, then the time of processing, then the id."""
    properties = row.properties
    made = (
        properties.get("s2:generation_time")
        or properties.get("processing:datetime")
        or properties.get("created")
        or ""
    )
    return f"{_text(row.baseline)}|{made}|{row.id}"


def deduplicate(table: pd.DataFrame) -> pd.DataFrame:
    """Return the granules without reprocessed duplicates, split granules kept.

    Two granules are the same acquisition if platform, tile and absolute orbit agree and their
    acquisitions start within `SAME_START`; the newest baseline, then the newest processing, stays.
    Sentinel-2 granules of one datatake and tile from two datastrips are a split scene: both stay,
    and the mosaic joins them. The column ``dropped`` of a kept row names the ids it replaces.
    """
    if table.empty:
        return table.assign(dropped=pd.Series(dtype=object))
    keyed = table.assign(
        _start=[_datastrip_time(r) for r in table.itertuples()],
        _made=[_processed(r) for r in table.itertuples()],
        _what=[
            "|".join(_text(v) for v in (r.collection, r.platform, r.tile, r.absolute_orbit))
            + ("" if _text(r.tile) else f"|{_kind(r)}")
            for r in table.itertuples()
        ],
    ).sort_values(["_what", "_start", "_made", "id"], kind="stable")
    new = (keyed["_what"] != keyed["_what"].shift()) | (keyed["_start"].diff().abs() > SAME_START)
    keyed["_acquisition"] = new.cumsum()
    same: dict[int, list[str]] = {}
    for number, item in zip(keyed["_acquisition"], keyed["id"], strict=True):
        same.setdefault(number, []).append(item)
    # without a frame per acquisition: 1,000 of them took a second
    keyed = keyed.sort_values(["_acquisition", "_made"], kind="stable")
    kept = keyed[~keyed["_acquisition"].duplicated(keep="last")]  # the newest is last
    dropped = np.empty(len(kept), object)
    for n, (number, item) in enumerate(zip(kept["_acquisition"], kept["id"], strict=True)):
        dropped[n] = tuple(i for i in same[number] if i != item)
    out = kept.assign(dropped=dropped).sort_values(["time", "id"], kind="stable")
    out = out.reset_index(drop=True)
    return out.drop(columns=["_start", "_made", "_what", "_acquisition"])


def _kind(row: Any) -> str:
    """Return what tells apart items that are no reprocessings although tile and orbit are unknown.

    Without a tile two granules of the same second may be neighbours: their places decide.
    """
    return ",".join(f"{v:.3f}" for v in row.bbox)


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
    """Return the granules with relative orbits filled in from product ids where they are absent."""
    orbits = []
    for row in table.itertuples():
        orbit = row.relative_orbit
        if _text(orbit) == "":
            try:
                orbit = names.parse_s1_product(str(row.id)).relative_orbit
            except CubeError:
                orbit = None
        orbits.append(orbit)
    return table.assign(relative_orbit=pd.Series(orbits, index=table.index, dtype=object))
