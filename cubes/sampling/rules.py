"""Dates by a rule: runs of Sentinel-1 on one track, and the Sentinel-2 dates near their newest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from cubes import runs
from cubes.sampling.index import StoreIndex, days_since, length
from cubes.sampling.tables import Cells
from cubes.store import ledger
from cubes.types import CubeError, Series


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """The runs of a store, whatever the window."""

    radar: np.ndarray
    """(run, date) int32, ascending steps of s1."""
    optical: np.ndarray | None
    """(run, near) int32 steps of s2 from the nearest to the newest of the run on, then -1; None
    without s2."""

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.radar)


def check(series: Series) -> None:
    """Raise CubeError where a rule makes no sense."""
    if isinstance(series.dates, bool) or int(series.dates) != series.dates or series.dates < 1:
        raise CubeError(f"Series(dates={series.dates!r}): a whole number, at least 1")
    if length("Series.step", series.step, "12D") <= 0:
        raise CubeError(f"Series(step={series.step!r}): longer than nothing, such as '12D'")
    length("Series.gap", series.gap, "3D")
    if series.match not in ("nearest", "random", "all"):
        raise CubeError(f"Series(match={series.match!r}): one of 'nearest', 'random' and 'all'")


def within(apart: np.ndarray, gap: float) -> np.ndarray:
    """Return whether times are at most `gap` days apart: to the millisecond, as they are stated.

    Days are float64 and lose a bit at day 8192 (2022-06-06): exactly three may be a hair more.
    """
    close: np.ndarray = apart <= gap + 1e-3 / 86_400
    return close


def listed(store: StoreIndex, series: Series) -> Runs:
    """Return the runs of a store in time, by its coordinates; none where it has no s1."""
    if "s1" not in store.days:
        return Runs(radar=np.empty((0, series.dates), np.int32), optical=None)
    table = _acquisitions(store, "s1", ("time",))
    if series.pairs:
        pairs = [e.steps for e in store.entries.values() if e.steps is not None]
        there = [steps >= 0 for steps in pairs] or [np.zeros(len(table), bool)]
        table = table[np.all(there, axis=0)]
    found = runs.runs(table, dates=series.dates, step=series.step)
    radar = np.array(found["rows"].tolist(), np.int32).reshape(-1, series.dates)
    if "s2" not in store.days:
        return Runs(radar=radar, optical=None)
    apart = store.days["s2"][None, :] - store.days["s1"][radar[:, -1]][:, None]
    close = within(np.abs(apart), length("Series.gap", series.gap, "3D"))
    # by distance, to the millisecond; a stable sort keeps the earlier of two equally near first
    far = np.where(close, np.round(np.abs(apart) * 86_400_000), np.inf)
    order = np.argsort(far, axis=1, kind="stable").astype(np.int32)
    near = np.where(np.take_along_axis(close, order, axis=1), order, -1)
    return Runs(radar=radar, optical=near[:, : max(1, int(close.sum(axis=1).max(initial=0)))])


def with_pairs(store: StoreIndex, series: Series) -> StoreIndex:
    """Return a store whose layers of pairs hold the pair that looks back one step of the series."""
    if not series.pairs or "s1" not in store.days:
        return store
    slack = runs.REPEAT_SLACK
    s1 = _acquisitions(store, "s1", ("time",))
    entries = dict(store.entries)
    for name, entry in store.entries.items():
        if entry.steps is None:
            continue
        pairs = _acquisitions(store, entry.layer.group, ("secondary_time", "reference_time"))
        apart = pairs["secondary_time"] - pairs["reference_time"]
        wanted = np.abs(apart.to_numpy() - pd.Timedelta(series.step).to_timedelta64()) <= (
            slack.to_timedelta64()
        )
        ends = s1["time"].to_numpy()[:, None] - pairs["secondary_time"].to_numpy()[None, :]
        same = (np.abs(ends) <= slack.to_timedelta64()) & wanted[None, :]
        if "track" in pairs:
            same &= s1["track"].to_numpy()[:, None] == pairs["track"].to_numpy()[None, :]
        steps = np.where(same.any(axis=1), same.argmax(axis=1), -1).astype(np.int32)
        since = days_since(pairs["reference_time"])[steps]
        since = np.where(steps >= 0, since, np.nan)
        entries[name] = replace(entry, steps=steps, since=since)
    return replace(store, entries=entries)


def _acquisitions(store: StoreIndex, group: str, times: tuple[str, ...]) -> pd.DataFrame:
    """Return the dates or pairs of a group: track, and datetime64 columns `times` (UTC)."""
    axes = ledger.build_plan(ledger.load_build(store.folder)).axes
    coords = next(a.coords for a in axes if a.group == group and times[0] in a.coords)
    columns: dict[str, object] = {
        name: pd.to_datetime(list(coords[name]), utc=True, format="ISO8601").tz_localize(None)
        for name in times
    }
    if {"relative_orbit", "orbit_state"} <= set(coords):  # of pairs a cube need not state them
        tracks = zip(coords["relative_orbit"], coords["orbit_state"], strict=True)
        columns["track"] = [f"{orbit}{str(state)[:1].upper()}" for orbit, state in tracks]
    return pd.DataFrame(columns)


def chosen(
    found: Runs,
    series: Series,
    shares: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    counts: dict[str, int],
) -> Cells:
    """Return the windows and runs all of whose dates are usable; adds to `counts`.

    Parameters
    ----------
    found, series
        Of the store.
    shares
        Clock -> (window, step) bool, whether usable; and clock -> (window, step) share of clear
        pixels, where the sensor has such a mask.
    counts
        ``windows``, ``valid`` and ``near``, of windows times runs.
    """
    usable, clear = shares
    if not len(found):
        return Cells(
            order=np.empty(0, int), window=np.empty(0, np.int32),
            ranges={c: np.empty((0, 2), np.int32) for c in usable},
            steps={c: np.empty((0, 1), np.int32) for c in usable},
            clear={c: np.empty(0, np.float32) for c in clear},
        )  # fmt: skip
    good = usable["s1"][:, found.radar].all(axis=2)
    counts["windows"] += good.size
    counts["valid"] += int(good.sum())
    run, window = np.nonzero(good.T)
    steps = {"s1": found.radar[run]}
    if found.optical is not None:
        near = found.optical[run]
        ok = usable["s2"][window[:, None], near] & (near >= 0)
        keep = ok.any(axis=1)
        run, window, near, ok = run[keep], window[keep], near[keep], ok[keep]
        if series.match == "nearest":
            near = np.take_along_axis(near, ok.argmax(axis=1)[:, None], axis=1)
        else:  # ascending, what is not usable behind them
            near = np.sort(np.where(ok, near, np.iinfo(np.int32).max), axis=1)
            near = np.where(near == np.iinfo(np.int32).max, -1, near)
        steps = {"s1": found.radar[run], "s2": near}
    counts["near"] += len(run)
    return Cells(
        order=run,
        window=window.astype(np.int32),
        ranges={c: _range(s) for c, s in steps.items()},
        steps=steps,
        clear={c: _mean(clear[c], window, s) for c, s in steps.items() if c in clear},
    )


def _range(steps: np.ndarray) -> np.ndarray:
    """Return (n, 2) int32 first step and one past the last, whatever is -1 left out."""
    first = np.where(steps < 0, np.iinfo(np.int32).max, steps).min(axis=1)
    return np.stack([first, steps.max(axis=1) + 1], axis=1).astype(np.int32)


def _mean(share: np.ndarray, window: np.ndarray, steps: np.ndarray) -> np.ndarray:
    there = steps >= 0
    total = np.where(there, share[window[:, None], steps], 0).sum(axis=1)
    mean: np.ndarray = (total / np.maximum(there.sum(axis=1), 1)).astype(np.float32)
    return mean
