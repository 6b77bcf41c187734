"""Splitting samples so that no pixel, and where asked for no neighbourhood, is on two sides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
import shapely

from cubes.sampling import areas
from cubes.sampling.draws import uniform
from cubes.sampling.index import StoreIndex, length
from cubes.sampling.sampleset import Samples
from cubes.types import CubeError

BURST = 0.01
"""Days that the time stamps of one acquisition differ by at most, of a burst and of its granule."""

_MORE = {"block": "larger blocks, or more area", "time": "longer blocks, or a longer time"}

NAMES = {2: ("train", "test"), 3: ("train", "val", "test")}


def split(
    samples: Samples,
    *,
    by: Literal["block", "time", "aoi"] | Mapping[str, Sequence[str]] = "block",
    block: float | str | None = None,
    buffer: float | str = 0,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> dict[str, Samples]:
    """Return samples by split: ``train``, ``val``, ``test`` (two fractions: train and test).

    Whole blocks are dealt to the splits until each holds its fraction of the samples. Then, so
    that nothing leaks, samples that come nearer than `buffer` to a sample of a later split (in
    the order train, val, test), or overlap it, are left out of the earlier one.

    By time, an interferometric pair belongs to a part only if both of its acquisitions do: one
    whose earlier acquisition lies outside of the part's samples is nodata there. What has no date
    is not divided by time: parts share static layers, and label planes of a year that both lie in.
    For scores of labels split by block or aoi.

    Parameters
    ----------
    samples
        What to divide.
    by
        ``block``: squares of ground on the lattice of the CRS (the same for all cubes of a zone);
        ``time``: runs of days (samples need ``Window.period`` or ``rule``); ``aoi``: whole areas.
    block
        Edge in metres, default four windows; by time a length such as ``"30D"``, default two
        periods; by aoi not used.
    buffer
        Least distance in metres between windows of different splits; by time a length of time
        between their periods.
    fractions
        Of the samples, two or three numbers with sum 1.
    seed
        Deals the blocks.

    Raises
    ------
    CubeError
        Too few blocks, a split left empty by the buffer, or fractions that make no sense; a block
        or buffer that is negative or no length; by block or aoi a grid that is not in metres.
    """
    names = NAMES.get(len(fractions))
    if names is None or not (min(fractions) > 0 and abs(sum(fractions) - 1) < 1e-6):
        raise CubeError(f"fractions={tuple(fractions)}: two or three positive numbers with sum 1")
    if not len(samples):
        raise CubeError("there are no samples to split")
    if not isinstance(by, Mapping) and by not in ("block", "time", "aoi"):
        raise CubeError(f"by={by!r}: choose block, time or aoi, or {{'test': ('AREA',)}}")
    if by == "time":
        gap = 0.0 if buffer == 0 else length("buffer", buffer, "30D")
    else:
        gap = _metres("buffer", buffer)
        _in_metres(samples)
    if isinstance(by, Mapping):
        if "train" in by or not by:
            raise CubeError(f"by={dict(by)!r}: name what is held out; the rest is 'train'")
        names, what = ("train", *by), "held out by name"
        side = areas.held(samples.stores, by)[samples.numbers]
    else:
        keys, what = _blocks(samples, by, block)
        side = _deal(keys, fractions, seed, what)
    keep = _buffered(samples, side, str(by), gap)
    result = {}
    for number, name in enumerate(names):
        mine = side == number
        if not (mine & keep).any():
            raise CubeError(
                f"no sample left in {name!r}: its {int(mine.sum())} samples of {len(samples)} "
                f"({what}) all come within buffer={buffer!r} of another split; take a smaller "
                f"buffer, {_MORE.get(str(by), 'or more areas')}"
            )
        result[name] = samples.take(mine & keep)
        if by == "time":
            result[name] = _whole_pairs(result[name])
        result[name].part = f"{samples.part}/{name}".lstrip("/")
    return result


def leaks(
    splits: Mapping[str, Samples], *, buffer: float = 0.0, gap: float | str = 0
) -> pd.DataFrame:
    """Return pairs of samples of different splits that share ground and time; empty when clean.

    Parameters
    ----------
    splits
        Name -> samples.
    buffer
        Distance in metres below which two windows count as sharing ground; 0: overlap.
    gap
        Length of time, such as ``"12D"``, up to which they count as sharing time; 0: overlap. The
        earlier acquisitions of the pairs that a sample may read count with its own dates.

    Returns
    -------
    pandas.DataFrame
        Columns ``split, id, other_split, other_id``.

    Raises
    ------
    CubeError
        A grid that is not in metres, a buffer that is no distance, or a gap that is no length.
    """
    buffer = _metres("buffer", buffer)
    days = 0.0 if gap == 0 else length("gap", gap, "12D")
    for samples in splits.values():
        _in_metres(samples)
    found = []
    names = list(splits)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            pairs = _near(splits[name], splits[other], buffer)
            pairs = pairs[:, _meet(splits[name], splits[other], pairs, days)]
            found.append(
                pd.DataFrame(
                    {
                        "split": name,
                        "id": splits[name].ids[pairs[0]],
                        "other_split": other,
                        "other_id": splits[other].ids[pairs[1]],
                    }
                )
            )
    columns = ["split", "id", "other_split", "other_id"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)


def _blocks(samples: Samples, by: str, block: float | str | None) -> tuple[np.ndarray, str]:
    """Return (sample, k) keys of the block that each sample's centre lies in, and words for it."""
    store = samples.numbers
    if by == "aoi":
        number, names = areas.places(samples.stores)
        return number[store][:, None], f"areas ({', '.join(names[:5])})"
    if by == "time":
        start, end = samples.span()
        period, rule = samples.window.period, samples.window.rule
        if period is None and rule is None:
            raise CubeError(
                "by='time' needs samples with a period, and these take all dates of a cube: plan "
                "with Window(period='60D') or so"
            )
        if block is None and rule is not None:
            days = 2 * rule.dates * length("Series.step", rule.step, "12D")
        elif block is None:
            days = 2 * length("Window.period", period, "60D")
        else:
            days = length("block", block, "30D")
        if days <= 0:
            raise CubeError(f"block={block!r}: a block is longer than nothing, such as '30D'")
        none = np.flatnonzero(np.isnan(start))
        if len(none):
            path = samples.stores[store[none[0]]].path
            raise CubeError(
                f"by='time': {len(none)} samples, the first in {path}, have no date; split them by "
                "block or aoi"
            )
        return np.floor((start + end) / 2 / days).astype(np.int64)[:, None], f"blocks of {days:g} D"
    bounds = samples.bounds()
    edge = 4 * float(bounds[0, 2] - bounds[0, 0])
    if block is not None:
        edge = _metres("block", block)
        if edge == 0:
            raise CubeError("block=0: blocks have an edge of more than 0 metres")
    crs = np.unique(np.array([s.crs for s in samples.stores]), return_inverse=True)[1][store]
    x, y = (bounds[:, 0] + bounds[:, 2]) / 2, (bounds[:, 1] + bounds[:, 3]) / 2
    cells = [crs, np.floor(x / edge), np.floor(y / edge)]
    return np.stack(cells, axis=1).astype(np.int64), f"blocks of {edge:g} m"


def _deal(keys: np.ndarray, fractions: Sequence[float], seed: int, what: str) -> np.ndarray:
    """Return the split of each sample: blocks in an order drawn by seed, cut at the fractions."""
    blocks, inverse, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    k = len(fractions)
    if len(blocks) < k:
        more = "take smaller blocks, or more area or time"
        if what.startswith("areas"):
            more = "take cubes of more areas, or split by block"
        raise CubeError(
            f"{len(blocks)} {what} hold all {len(keys)} samples, and {k} splits need at least "
            f"{k}: {more}"
        )
    order = np.argsort([uniform((seed, *map(int, key)), 1)[0] for key in blocks], kind="stable")
    # A block goes to the split in whose share its middle lies ...
    middle = (np.cumsum(counts[order]) - counts[order] / 2) / len(keys)
    side = np.searchsorted(np.cumsum(fractions)[:-1], middle, side="right")
    # ... and every split gets at least one: pull the borders where one would be empty.
    for number in range(k):
        side[number] = min(side[number], number)
        side[len(order) - k + number] = max(side[len(order) - k + number], number)
    side = np.maximum.accumulate(side)
    of_block = np.empty(len(blocks), np.int64)
    of_block[order] = side
    result: np.ndarray = of_block[inverse]
    return result


def _buffered(samples: Samples, side: np.ndarray, by: str, gap: float) -> np.ndarray:
    """Return which samples stay: those far enough from every later split."""
    keep = np.ones(len(samples), bool)
    for number in range(int(side.max())):
        mine, later = np.flatnonzero(side == number), np.flatnonzero((side > number) & keep)
        if by == "time":
            start, end = samples.span()
            lows, highs = start[later], end[later]
            keep[mine] = [
                not ((start[i] - highs <= gap) & (lows - end[i] <= gap)).any() for i in mine
            ]
        else:
            near = _near(samples.take(mine), samples.take(later), gap)
            keep[mine[np.unique(near[0])]] = False
    return keep


def _metres(name: str, value: Any) -> float:
    try:
        metres = float(value)
    except (TypeError, ValueError):
        metres = math.nan
    if not 0 <= metres < math.inf:
        raise CubeError(
            f"{name}={value!r} is no distance: a number of metres, 0 or more (by='time' a length "
            "such as '30D')"
        )
    return metres


def _in_metres(samples: Samples) -> None:
    """Raise CubeError where a store's grid is not in metres: distances are taken on the grid."""
    for number in np.unique(samples.numbers):
        store = samples.stores[number]
        if not _of_metres(store.crs):
            raise CubeError(
                f"{store.path} lies in {store.crs}, whose units are not metres: blocks, buffers "
                "and overlap are distances on the grid; split by='time', or write the cube on a "
                "projected grid in metres, such as UTM"
            )


@lru_cache(maxsize=256)
def _of_metres(crs: str) -> bool:
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        found = CRS(crs)
    except CRSError:
        return False
    return found.is_projected and all(a.unit_conversion_factor == 1 for a in found.axis_info)


def _near(first: Samples, second: Samples, distance: float) -> np.ndarray:
    """Return (2, pairs) positions of windows nearer than `distance` metres, or overlapping."""
    pairs = []
    for crs in sorted({first.stores[i].crs for i in np.unique(first.numbers)}):
        mine = np.flatnonzero(np.array([s.crs == crs for s in first.stores])[first.numbers])
        boxes = _boxes(first.take(mine), crs)
        # Windows that only touch share no pixel: shrink by a millimetre.
        others = shapely.buffer(_boxes(second, crs), -1e-3, join_style="mitre")
        found = shapely.STRtree(others).query(boxes, predicate="dwithin", distance=distance)
        pairs.append(np.stack([mine[found[0]], found[1]]))
    return np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), np.int64)


def _boxes(samples: Samples, crs: str) -> np.ndarray:
    """Return the windows as polygons in `crs`, empty where they cannot be projected to it."""
    from pyproj import Transformer

    bounds = samples.bounds()
    boxes = shapely.box(*bounds.T)
    of = np.array([s.crs for s in samples.stores])[samples.numbers]
    for other in np.unique(of[of != crs]):
        rows = np.flatnonzero(of == other)
        to = Transformer.from_crs(str(other), crs, always_xy=True)  # pyproj takes no np.str_
        points = shapely.get_coordinates(boxes[rows])
        moved = np.stack(to.transform(*points.T), axis=1)
        bad = ~np.isfinite(moved).all(axis=1).reshape(-1, 5).all(axis=1)
        moved[np.repeat(bad, 5)] = 0
        new = shapely.set_coordinates(boxes[rows], moved)
        new[bad] = shapely.Polygon()
        boxes[rows] = new
    result: np.ndarray = boxes
    return result


def _meet(first: Samples, second: Samples, pairs: np.ndarray, gap: float) -> np.ndarray:
    """Return which pairs come within `gap` days in time (samples without dates always do)."""
    (start, end), (low, high) = first.span(), second.span()
    meet: np.ndarray = ~(
        (start[pairs[0]] > high[pairs[1]] + gap) | (low[pairs[1]] > end[pairs[0]] + gap)
    )
    # between those apart, by all acquisitions: own dates, and those that pairs reach back to
    mine, theirs = _references(first), _references(second)
    apart = np.flatnonzero(~meet)
    keys = np.stack([mine[0][pairs[0, apart]], theirs[0][pairs[1, apart]]])
    for one, two in np.unique(keys, axis=1).T.tolist():
        if not (len(mine[1][one]) or len(theirs[1][two])):
            continue
        same = apart[(keys[0] == one) & (keys[1] == two)]
        i, j = pairs[:, same[0]]
        ours = np.array([[start[i], end[i]], *((d, d) for d in mine[1][one])])
        other = np.array([[low[j], high[j]], *((d, d) for d in theirs[1][two])])
        far = (ours[:, None, 0] > other[None, :, 1] + gap) | (
            other[None, :, 0] > ours[:, None, 1] + gap
        )
        meet[same] = not far.all()
    return meet


def _references(samples: Samples) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return which kind of period each sample is, (n,), and of each the days its pairs reach to.

    A kind is a store and a range of its dates: the same for all windows of a period.
    """
    kinds, found = np.zeros(len(samples), np.int64), list[np.ndarray]()
    for s in np.unique(samples.numbers):
        rows = np.flatnonzero(samples.numbers == s)
        ranges = samples.ranges(rows)
        distinct, inverse = np.unique(
            np.concatenate([ranges[c] for c in sorted(ranges)], axis=1) if ranges else
            np.zeros((len(rows), 0), np.int32), axis=0, return_inverse=True,
        )  # fmt: skip
        kinds[rows] = inverse.reshape(-1) + len(found)
        entries = [samples.stores[s].entries.get(n) for n in samples.layers]
        for kind in distinct:
            limits = dict(zip(sorted(ranges), kind.reshape(-1, 2).tolist(), strict=True))
            days = [
                e.since[slice(*limits[e.clock])]
                for e in entries
                if e is not None and e.since is not None and e.clock is not None
            ]
            every = np.unique(np.concatenate(days)) if days else np.empty(0)
            found.append(every[~np.isnan(every)])
    return kinds, found


def _whole_pairs(part: Samples) -> Samples:
    """Return a part of a split by time without the pairs that begin outside of its samples."""
    start, end = part.span()
    order = np.argsort(start)
    start, end = start[order], np.maximum.accumulate(end[order])

    def within(store: StoreIndex) -> StoreIndex:
        entries = dict(store.entries)
        for name, entry in entries.items():
            if entry.since is None:
                continue
            # of the samples that begin no later than a pair, one must end after it
            last = np.searchsorted(start, entry.since + BURST, side="right") - 1
            keep = (last >= 0) & (entry.since <= end[last] + BURST)
            steps = np.arange(len(keep)) if entry.steps is None else entry.steps
            entries[name] = replace(
                entry,
                steps=np.where(keep, steps, -1).astype(np.int32),
                since=np.where(keep, entry.since, np.nan),
            )
        return replace(store, entries=entries)

    return part.on([within(store) for store in part.stores])
