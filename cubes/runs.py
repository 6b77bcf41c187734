"""Runs of dates on one track, interferometric pairs, S1-S2 matches, seasons and caps.

Tables in, tables out. An acquisition table has one row per acquisition (pass over one place) and
the columns ``time`` (datetime64, UTC; a time without a zone is UTC) and ``track`` (for example
``132A``); ``place``, ``platform``, ``burst`` and any others are used where named and carried along.

No row is lost without a word. Rows whose place or burst is missing are one group of their own. A
missing time or track is refused, and a missing platform where platforms are kept apart: rows that
do not say whose they are cannot be called the same. ``S1A``, ``SENTINEL-1A`` and ``sentinel-1a``
are one platform.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from cubes import names
from cubes.types import CubeError

REPEAT_SLACK = pd.Timedelta("6h")
"""Repeat passes come at the same time of day to within seconds; a pass of another track of the
same place is at least half a day of phase away."""

SEASONS = dict(
    zip(
        (12, *range(1, 12)),
        np.repeat(["winter", "spring", "summer", "autumn"], 3).tolist(),
        strict=True,
    )
)
"""Seasons of the north as SEN12TS counts them: winter is January, February and December of one
calendar year."""


def _need(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    for column in columns:
        if column not in table.columns:
            have = ", ".join(map(str, table.columns))
            raise CubeError(f"{what} needs a column {column!r}; the table has {have}")


def _whole(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise unless every row has a value in each of these columns."""
    _need(table, columns, what)
    for column in columns:
        lost = table.index[table[column].isna()]
        if len(lost):
            raise CubeError(
                f"{what} needs a {column} in every row; {len(lost)} of {len(table)} rows lack one, "
                f"the first with index {lost[0]}: leave them out, table[table.{column}.notna()]"
            )


def _step(step: str | pd.Timedelta) -> pd.Timedelta:
    length = pd.Timedelta(step)
    if length <= pd.Timedelta(0):
        raise CubeError(f"step {step!r} must be positive, for example '12D'")
    return length


def _groups(table: pd.DataFrame, by: Sequence[str]) -> list[str]:
    return [c for c in by if c in table.columns]


def chains(
    table: pd.DataFrame, *, step: str = "12D", same_platform: bool = False
) -> list[pd.DataFrame]:
    """Return the longest runs of acquisitions exactly `step` apart on one track and place.

    Parameters
    ----------
    table : DataFrame
        Acquisitions, with ``time`` and ``track``, optionally ``place`` and ``platform``.
    step : str
        Time between neighbours; `REPEAT_SLACK` either way.
    same_platform : bool
        Keep platforms apart (a 6-day run then falls into two of 12 days).

    Returns
    -------
    list of DataFrame
        One per run, rows in time order; every acquisition is in exactly one run.

    Raises
    ------
    CubeError
        A column is missing, a row has no time, track or (with `same_platform`) platform, or the
        step is not positive.
    """
    _whole(table, ("time", "track"), "a run")
    length = _step(step)
    if same_platform:
        _whole(table, ("platform",), "a run on one platform")
    keys: list[Any] = [table[c] for c in _groups(table, ("place", "track"))]
    if same_platform:
        keys.append(table["platform"].map(names.platform))
    out: list[pd.DataFrame] = []
    for group in _grouped(table, keys):
        times = _ns(group["time"])
        used = np.zeros(len(times), bool)
        for first in range(len(times)):
            if used[first]:
                continue
            run = [first]
            used[first] = True
            while (following := _at(times, used, int(times[run[-1]]) + length.value)) is not None:
                run.append(following)
                used[following] = True
            out.append(group.iloc[run].reset_index(drop=True))
    return out


def _grouped(table: pd.DataFrame, keys: Sequence[pd.Series]) -> list[pd.DataFrame]:
    """Return the rows of each group in time order; a missing key is a key."""
    order = np.argsort(_ns(table["time"]), kind="stable")
    by = []
    for key in keys:
        codes, _ = pd.factorize(key.iloc[order], sort=True)
        by.append(np.where(codes < 0, len(codes), codes))
    return [group for _, group in table.iloc[order].groupby(by, sort=True)]


def _utc(times: pd.Series) -> pd.Series:
    """Return times without a zone, in UTC, which is what a time without a zone is in."""
    if times.dtype == object:  # a mix of both, or text
        return pd.to_datetime(times, utc=True, format="ISO8601").dt.tz_localize(None)
    zoned = isinstance(times.dtype, pd.DatetimeTZDtype)
    return times.dt.tz_convert("UTC").dt.tz_localize(None) if zoned else times


def _ns(times: pd.Series) -> np.ndarray:
    """Return times as whole nanoseconds, so that arithmetic is the same in every pandas."""
    return _utc(times).to_numpy().astype("datetime64[ns]").astype(np.int64)


def _at(times: np.ndarray, used: np.ndarray, wanted: int) -> int | None:
    """Return the unused time nearest to `wanted` within the slack, or None; nanoseconds."""
    slack = REPEAT_SLACK.value
    low, high = np.searchsorted(times, [wanted - slack, wanted + slack + 1])
    near = [i for i in range(low, high) if not used[i]]
    return min(near, key=lambda i: abs(int(times[i]) - wanted)) if near else None


def runs(
    table: pd.DataFrame,
    *,
    dates: int = 4,
    step: str = "12D",
    same_platform: bool = False,
    pairs: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return every series of `dates` acquisitions exactly `step` apart, SEN12TS's rule by default.

    Parameters
    ----------
    table : DataFrame
        Acquisitions, see `chains`.
    dates, step, same_platform
        Length and spacing of a series.
    pairs : DataFrame, optional
        Interferometric pairs with ``track``, ``secondary_time``, ``temporal_baseline`` (days) and
        ``place`` where the table has it; then every date of a series needs a pair that ends there
        and looks back one `step` (so that a series of 4 x 12 days looks back 48 days).

    Returns
    -------
    DataFrame
        One row per series: ``place``, ``track``, ``start``, ``end`` (the newest date), ``times``
        (tuple, ascending) and ``rows`` (tuple of the table's index labels).

    Raises
    ------
    CubeError
        Fewer than one date; see `chains`.
    """
    if dates < 1:
        raise CubeError(f"a series of {dates} dates is none; ask for at least 1")
    table = table.assign(_row=table.index)
    allowed = table if pairs is None else _with_pairs(table, pairs, _step(step))
    out = []
    for run in chains(allowed, step=step, same_platform=same_platform):
        for first in range(len(run) - dates + 1):
            part = run.iloc[first : first + dates]
            out.append({
                **{k: part[k].iloc[0] for k in _groups(part, ("place", "track"))},
                "start": part["time"].iloc[0], "end": part["time"].iloc[-1],
                "times": tuple(part["time"]), "rows": tuple(part["_row"]),
            })  # fmt: skip
    columns = [*_groups(table, ("place", "track")), "start", "end", "times", "rows"]
    found = pd.DataFrame(out, columns=columns)
    return found.sort_values(["end", *columns[:-4]], kind="stable").reset_index(drop=True)


def _with_pairs(table: pd.DataFrame, pairs: pd.DataFrame, step: pd.Timedelta) -> pd.DataFrame:
    _whole(pairs, ("track", "secondary_time", "temporal_baseline"), "a series with coherence")
    _whole(table, ("time", "track"), "a run")
    shared = [c for c in ("place", "track") if c in table.columns and c in pairs.columns]
    looking_back = pairs[pairs["temporal_baseline"] == step / pd.Timedelta("1D")]
    ends: dict[tuple[Any, ...], list[int]] = {}
    stamps = _ns(looking_back["secondary_time"]).tolist()
    for key, end in zip(_keys(looking_back, shared), stamps, strict=True):
        ends.setdefault(key, []).append(end)
    near = [
        any(abs(end - time) <= REPEAT_SLACK.value for end in ends.get(key, ()))
        for key, time in zip(_keys(table, shared), _ns(table["time"]).tolist(), strict=True)
    ]
    return table[np.array(near, bool)]


def _keys(table: pd.DataFrame, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return a key of each row, the same for every kind of missing value."""
    parts = [[None if pd.isna(v) else v for v in table[c]] for c in columns]
    return list(zip(*parts, strict=True)) if parts else [()] * len(table)


def pairs(table: pd.DataFrame, *, baselines: Sequence[int] = (6, 12)) -> pd.DataFrame:
    """Return interferometric pairs: same place, track and burst, a wanted number of days apart.

    Parameters
    ----------
    table : DataFrame
        Acquisitions with ``time`` and ``track``, optionally ``place`` and ``burst``.
    baselines : sequence of int
        Temporal baselines in days.

    Returns
    -------
    DataFrame
        One row per pair: the shared columns, ``reference_time`` (the earlier),
        ``secondary_time``, ``temporal_baseline`` (days), ``reference``, ``secondary`` (the table's
        index labels), ordered by secondary then reference.

    Raises
    ------
    CubeError
        A baseline that is not positive: an image and itself are no pair; a row without a time or
        track.
    """
    _whole(table, ("time", "track"), "a pair")
    if not baselines or min(baselines) <= 0:
        raise CubeError(f"temporal baselines {tuple(baselines)} must be positive days")
    keys = _groups(table, ("place", "track", "burst"))
    out = []
    for group in _grouped(table, [table[c] for c in keys]):
        shared = {c: group[c].iloc[0] for c in keys}
        times, stamps = _ns(group["time"]), group["time"].tolist()
        for days in sorted(set(baselines)):
            for i, time in enumerate(times):
                unused = np.zeros(len(times), bool)
                j = _at(times, unused, int(time) + pd.Timedelta(days=days).value)
                if j is not None:
                    out.append({
                        **shared, "reference_time": stamps[i], "secondary_time": stamps[j],
                        "temporal_baseline": days, "reference": group.index[i],
                        "secondary": group.index[j],
                    })  # fmt: skip
    columns = [*keys, "reference_time", "secondary_time", "temporal_baseline", "reference",
               "secondary"]  # fmt: skip
    found = pd.DataFrame(out, columns=columns)
    order = ["secondary_time", "reference_time", *keys]
    return found.sort_values(order, kind="stable").reset_index(drop=True)


How = Literal["nearest", "random", "all"]


def matches(
    radar: pd.DataFrame,
    optical: pd.DataFrame,
    *,
    max_gap: str = "3D",
    how: How = "nearest",
    seed: int = 0,
) -> pd.DataFrame:
    """Return which optical acquisition goes with which radar one (or series), and how far apart.

    Parameters
    ----------
    radar : DataFrame
        Acquisitions with ``time``, or series of `runs` with ``end``: a series is matched against
        its newest date.
    optical : DataFrame
        Acquisitions with ``time``; both with ``place``, or neither.
    max_gap : str
        Largest time between the two, inclusive.
    how : {"nearest", "random", "all"}
        Per radar row the nearest (the earlier of two equally near), one drawn at random from
        `seed`, or all.
    seed : int
        For ``random``. What a row draws depends on the seed and on the two acquisitions
        themselves (their times, and place, track, platform and burst where given), not on which
        other rows there are, their order or labels: it changes only if its partner goes or a
        new one comes near. Of rows equal in all of these, the first, second, ... draw apart.

    Returns
    -------
    DataFrame
        ``radar``, ``optical`` (index labels), ``gap`` (optical minus radar, Timedelta), ``place``
        where given, and all that the tables hold of the two, as ``radar_track``,
        ``optical_cloud_cover`` and so on; ordered by radar row, then gap.

    Raises
    ------
    CubeError
        Unknown `how`, negative gap, a missing column, or a row without a time.
    """
    if how not in ("nearest", "random", "all"):
        raise CubeError(f"how={how!r} is not one of nearest, random, all")
    limit = pd.Timedelta(max_gap)
    if limit < pd.Timedelta(0):
        raise CubeError(f"max_gap {max_gap!r} is negative")
    when = "end" if "end" in radar.columns else "time"
    _whole(radar, (when,), "a match")
    _whole(optical, ("time",), "a match")
    placed = "place" in radar.columns and "place" in optical.columns
    by_place: dict[tuple[Any, ...], list[int]] = {}
    for i, place in enumerate(_keys(optical, ["place"] if placed else [])):
        by_place.setdefault(place, []).append(i)
    places = _keys(radar, ["place"] if placed else [])
    ends, times = _utc(radar[when]), _utc(optical["time"])
    drawn = how == "random"
    one, two = (_identities(t, at) if drawn else [] for t, at in ((radar, when), (optical, "time")))
    out, chosen = [], list[tuple[int, int]]()
    for number, label in enumerate(radar.index):
        near = np.array(by_place.get(places[number], []), int)
        gaps = times.iloc[near] - ends.iloc[number]
        close = np.flatnonzero(gaps.abs() <= limit)
        gap = gaps.to_numpy()[close]
        close = close[np.lexsort((gap, np.abs(gap)))]
        if how == "nearest":
            close = close[:1]
        elif drawn and len(close):
            # every pair has its own number, and the least one wins: who else is there tells nothing
            close = close[[int(np.argmin([_draw(seed, one[number], two[near[i]]) for i in close]))]]
        out += [
            {**({"place": places[number][0]} if placed else {}), "radar": label,
             "optical": gaps.index[i], "gap": gaps.iloc[i]}
            for i in close.tolist()
        ]  # fmt: skip
        chosen += [(number, int(near[i])) for i in close.tolist()]
    found = pd.DataFrame(out, columns=[*(["place"] if placed else []), "radar", "optical", "gap"])
    kept = [
        table.drop(columns="place" if placed else []).iloc[[pair[side] for pair in chosen]]
        for side, table in enumerate((radar, optical))
    ]
    sides = [
        t.add_prefix(p).reset_index(drop=True)
        for t, p in zip(kept, ("radar_", "optical_"), strict=True)
    ]
    return pd.concat([found, *sides], axis=1)


def _identities(table: pd.DataFrame, when: str) -> list[str]:
    """Return what each row is, whatever its label: its time and whose; equal ones numbered."""
    keys = _groups(table, ("place", "track", "platform", "burst"))
    rows = zip(_ns(table[when]), *(table[k] for k in keys), strict=True)
    seen: Counter[str] = Counter()
    out = []
    for row in rows:
        name = "|".join(map(str, row))
        out.append(f"{name}|{seen[name]}")
        seen[name] += 1
    return out


def _draw(seed: int, one: str, two: str) -> int:
    """Return a number that is a pure function of a seed and two acquisitions, on every machine."""
    digest = hashlib.blake2b(f"{seed}|{one}||{two}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def season(times: pd.Series) -> pd.Series:
    """Return the season of each time: winter, spring, summer or autumn (see `SEASONS`).

    Raises
    ------
    CubeError
        A time is missing.
    """
    _whole(times.to_frame("time"), ("time",), "a season")
    named: pd.Series = times.dt.month.map(SEASONS)
    return named


def within(
    table: pd.DataFrame,
    limits: Mapping[str, float],
    *,
    unknown: Literal["raise", "drop", "keep"] = "raise",
) -> pd.DataFrame:
    """Return the rows whose numbers are all at most their limits, in the table's order.

    For limits of cloud and of pixels without data, per patch and layer group: one row per patch
    and date (or series), one column per number, such as ``cloud_cover`` (percent) and
    ``invalid_s2`` (share 0..1).

    Parameters
    ----------
    table : DataFrame
        With a column for each limit.
    limits : mapping
        Column -> the most that it may be, inclusive.
    unknown : {"raise", "drop", "keep"}
        What becomes of rows that lack a number.

    Raises
    ------
    CubeError
        A missing column; a limit that is no number; a row that lacks a number, unless `unknown`
        says otherwise.
    """
    if unknown not in ("raise", "drop", "keep"):
        raise CubeError(f"unknown={unknown!r} is not one of raise, drop, keep")
    _need(table, tuple(limits), "a limit")
    good = np.ones(len(table), bool)
    for column, most in limits.items():
        if np.isnan(most):
            raise CubeError(f"the limit of {column} is {most}; leave it out to take any")
        if unknown == "raise":
            _whole(table, (column,), f"the limit {column} <= {most:g}")
        low = (table[column] <= most).to_numpy()
        good &= low | table[column].isna().to_numpy() if unknown == "keep" else low
    return table[good]


def cap(table: pd.DataFrame, most: int, *, by: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Return at most `most` rows per group, drawn at random from `seed`, in the table's order.

    Rows that lack a value of `by` are groups of their own, by what else they have.

    Raises
    ------
    CubeError
        A column is missing, or `most` is below 1.
    """
    if most < 1:
        raise CubeError(f"a cap of {most} keeps nothing; leave it out or give at least 1")
    _need(table, by, "a cap")
    rank = pd.Series(np.random.default_rng(seed).random(len(table)))
    by_row = [table[c].reset_index(drop=True) for c in by]
    kept = rank.groupby(by_row, dropna=False).rank(method="first") <= most
    return table[kept.to_numpy()]
