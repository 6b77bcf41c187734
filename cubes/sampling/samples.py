"""Which windows are samples: xbatcher selects, the ledger's counts decide, no pixel is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from cubes.corpora.corpus import Corpus
from cubes.sampling import rules
from cubes.sampling.index import StoreIndex, fractions, index, length
from cubes.sampling.inflight import Storage
from cubes.sampling.rules import within
from cubes.sampling.sampleset import Samples
from cubes.sampling.splits import split
from cubes.sampling.tables import Cells, Table, concat, gathered
from cubes.types import CubeError, Series, Window

__all__ = ["Samples", "plan", "split"]

BLOCK = 2**20
"""Pairs of a window and a step that are judged at a time: some arrays of 8 MB, where 250,000
windows of 150 dates took 300 MB each."""


def plan(
    stores: str | Path | Sequence[str | Path] | Corpus,
    window: Window | None = None,
    *,
    max_gap: str | None = "3D",
    min_valid: float = 0.99,
    seed: int = 0,
    storage: Storage | None = None,
) -> Samples:
    """Return the samples that cubes hold; reads coordinates and the ledger's counts, no pixel.

    xbatcher selects windows in space, and periods in time where `window` has them; partial ones
    at the far edges are left out.

    Parameters
    ----------
    stores
        Paths of sealed cubes, or URLs where they lie on an object store, or a corpus; they may
        differ in zone, shape, dates, and lack a sensor.
    window
        What one sample is; ``Window()`` by default.
    max_gap
        In cubes with both sensors, samples without an S1 and an S2 date this close are left out;
        None keeps every sample that has a date of any sensor. Samples by rule have the gap of
        their ``Window.rule`` instead, and cubes without S1 none of them.
    min_valid
        A date is used by a sample where at least this fraction of its pixels is valid (nodata
        counts, clouds never do). The ledger knows it by cells of 8 px, larger in large cubes (16 px
        at 1,000 x 1,000 px and 1,000 dates, 128 px at a whole tile and 150); where a window cuts
        cells, their mean counts, weighted by area. A sample without a date of each sensor is left
        out.
    seed
        Of the choice of dates.
    storage
        How URLs are read: credentials, requests in flight, a cache on a local disk. Of a corpus
        that was opened from a URL, the options it was opened with are the default.

    Raises
    ------
    CubeError
        A window larger than a cube, no sample left, stores that do not fit together, or one that
        is not sealed or lacks objects; a corpus that was changed after it was published.
    """
    window = Window() if window is None else window
    _check_window(window)
    _check_rule(window)
    _check_share("min_valid", min_valid)
    _check_share("Window.clear", window.clear)
    gap = None if max_gap is None else length("max_gap", max_gap, "3D")
    indexes = _indexes(stores, storage)
    if window.rule is not None:
        indexes = [rules.with_pairs(store, window.rule) for store in indexes]
    tables, usable, counts = [], [], {"windows": 0, "valid": 0, "near": 0}
    for number, store in enumerate(indexes):
        table, masks = _plan_store(store, window, number, (min_valid, window.clear, gap), counts)
        tables.append(table)
        usable.append(masks)
    table = concat(tables, sorted({k for s in indexes for k in s.days}))
    if not len(table.id) and window.rule is not None:
        raise CubeError(
            f"no sample left: {counts['windows']:,} windows of {window.cell} px times runs by "
            f"{window.rule}, {counts['valid']:,} with all dates of the run at "
            f"min_valid={min_valid}, {counts['near']:,} with a usable S2 date near the newest; "
            "lower min_valid, raise gap, or ask for fewer dates or another step"
        )
    if not len(table.id):
        raise CubeError(
            f"no sample left: {counts['windows']:,} windows of {window.cell} px, "
            f"{counts['valid']:,} with a date of each sensor at min_valid={min_valid}"
            f"{f' and Window(clear={window.clear})' if window.clear else ''}, "
            f"{counts['near']:,} with S1 and S2 within max_gap={max_gap}; lower min_valid, "
            "raise max_gap (None asks for any date), or take a longer period"
        )
    return Samples(indexes, window, seed=seed, table=table, usable=usable)


def _indexes(
    stores: str | Path | Sequence[str | Path] | Corpus, storage: Storage | None
) -> list[StoreIndex]:
    given: Any = stores  # what the types rule out is what people try
    if isinstance(given, xr.DataTree | xr.Dataset):
        raise CubeError(
            "samples are planned on stores: write the cube with cubes.write(request, 'area.zarr') "
            "and plan on that path"
        )
    if not isinstance(stores, Corpus):
        paths = [stores] if isinstance(stores, str | Path) else list(stores)
        if not paths:
            raise CubeError("no store given; pass one path or a list of them")
        return [index(p, storage) for p in paths]
    how = storage or Storage()
    if not how.options:
        how = replace(how, **stores.access)
    found = [index(place, how) for place in stores.places]
    for name, one in zip(stores.table.index, found, strict=True):
        if one.identity != stores.table.loc[name, "tree_sha256"]:
            raise CubeError(
                f"{one.path} is not the cube in the table of corpus {stores.name!r}; it was "
                "changed after that was made: open or make the corpus again"
            )
    return found


def _check_window(window: Window) -> None:
    numbers = {
        k: getattr(window, k) for k in ("size", "stride", "within", "crops", "dates", "bucket")
    }
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or int(value) != value):
            raise CubeError(f"Window({name}={value!r}): a whole number")
    if window.size < 1 or window.dates < 1 or window.crops < 1:
        raise CubeError(
            f"Window(size={window.size}, dates={window.dates}, crops={window.crops}): each is at "
            "least 1"
        )
    if window.bucket is not None and window.bucket < 1:
        raise CubeError(f"Window(bucket={window.bucket}): dates round up to a multiple, such as 4")
    if window.stride is not None and window.stride < 1:
        raise CubeError(
            f"Window(stride={window.stride}): windows of {window.cell} px would overlap by "
            f"{window.cell - window.stride} px, which is not less than their edge; take a stride "
            "of at least 1 pixel, or None for no overlap"
        )
    if window.within is not None and window.within < window.size:
        raise CubeError(
            f"Window(size={window.size}, within={window.within}): a window cannot leave its cell; "
            f"take within={window.size} or more, such as {2 * window.size}"
        )
    if window.crops > 1 and window.within is None:
        raise CubeError(
            f"Window(crops={window.crops}): of what? Give within, the edge of the cell that they "
            f"lie in, such as within={2 * window.size}"
        )


def _check_rule(window: Window) -> None:
    if window.rule is None:
        return
    rules.check(window.rule)
    if window.period is not None or window.step is not None:
        raise CubeError(
            f"Window(period={window.period!r}, step={window.step!r}, rule={window.rule}): a sample "
            "has its dates of a period or by a rule; leave one of them out"
        )


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise CubeError(f"{name}={value} is a fraction between 0 and 1")


@lru_cache(maxsize=64)
def _windows(sizes: tuple[tuple[str, int, int, int], ...]) -> np.ndarray:
    """Return (n, dims) first index of each window that xbatcher selects on a grid of this shape.

    The dataset is one number broadcast to the grid, so it costs no memory; selectors are turned
    into integers at once (a selector is some 700 bytes of Python objects).
    """
    import xbatcher

    dims = [name for name, *_ in sizes]
    grid = np.broadcast_to(np.zeros((), bool), [length for _, length, _, _ in sizes])
    generator = xbatcher.BatchGenerator(
        xr.Dataset({"grid": (dims, grid)}),
        input_dims={name: size for name, _, size, _ in sizes},
        input_overlap={name: size - stride for name, _, size, stride in sizes},
        preload_batch=False,
    )
    chosen = generator._batch_selectors.selectors
    starts = [[s[d].start for d in dims] for (s,) in (chosen[i] for i in range(len(generator)))]
    return np.array(starts, np.int32).reshape(-1, len(dims))


def _plan_store(
    store: StoreIndex,
    window: Window,
    number: int,
    least: tuple[float, float, float | None],
    counts: dict[str, int],
) -> tuple[Table, dict[str, np.ndarray]]:
    size, stride = window.cell, window.stride or window.cell
    if size > min(store.shape):
        name = "size" if window.within is None else "within"
        raise CubeError(
            f"a window of {size} px is larger than {store.path} ({store.shape[0]} x "
            f"{store.shape[1]} px): choose Window({name}={min(store.shape)}) or less"
        )
    height, width = store.shape
    place = _windows((("y", height, size, stride), ("x", width, size, stride)))
    by = _by_period if window.rule is None else _by_rule
    cells, usable = by(store, place, window, least, counts)
    return _table(store, number, place, cells, window), usable


def _blocks(store: StoreIndex, place: np.ndarray) -> tuple[list[int], list[np.ndarray]]:
    """Return windows in blocks that are judged at a time, and the number of each one's first."""
    n = max(1, BLOCK // max((len(d) for d in store.days.values()), default=1))
    first = list(range(0, len(place), n))
    return first, [place[i : i + n] for i in first]


def _by_period(
    store: StoreIndex,
    place: np.ndarray,
    window: Window,
    least: tuple[float, float, float | None],
    counts: dict[str, int],
) -> tuple[Cells, dict[str, np.ndarray]]:
    """Return the windows and periods that hold enough, and clock -> their usable steps."""
    ranges = _periods(store, window)
    found = [_judge(store, part, window.cell, ranges, least) for part in _blocks(store, place)[1]]
    for name in counts:
        counts[name] += sum(f.counts[name] for f in found)
    order, windows = np.nonzero(np.concatenate([f.keep for f in found], axis=1))
    clear = {c: np.concatenate([f.clear[c] for f in found], axis=1) for c in found[0].clear}
    cells = Cells(
        order=order,
        window=windows.astype(np.int32),
        ranges={c: np.array([piece[c] for piece in ranges], np.int32)[order] for c in store.days},
        steps={},
        clear={c: share[order, windows] for c, share in clear.items()},
    )
    return cells, {c: np.concatenate([f.usable[c] for f in found]) for c in store.days}


def _by_rule(
    store: StoreIndex,
    place: np.ndarray,
    window: Window,
    least: tuple[float, float, float | None],
    counts: dict[str, int],
) -> tuple[Cells, dict[str, np.ndarray]]:
    """Return the windows and runs that hold enough; their steps are listed."""
    series = window.rule or Series()
    runs = rules.listed(store, series)
    first, parts = _blocks(store, place)
    found = []
    for part in parts:
        at = part, window.cell
        usable = {c: _usable(store, c, at, *least[:2]) for c in ("s1", "s2") if c in store.days}
        clear = {}
        for name, entry in store.entries.items():
            if series.pairs and entry.steps is not None and entry.layer.nodata is not None:
                share = np.where(entry.steps >= 0, data_share(store, name, *at)[:, entry.steps], 0)
                usable["s1"] &= share >= least[0] - 1e-6
            if entry.layer.variable == "clear" and entry.clock in usable and entry.steps is None:
                clear[str(entry.clock)] = data_share(store, name, *at)
        found.append(rules.chosen(runs, series, (usable, clear), counts))
    return gathered(found, first), {}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """What the ledger's counts say of some windows."""

    usable: dict[str, np.ndarray]
    """Clock -> (window, step) bool, packed along the steps."""
    keep: np.ndarray
    """(period, window) bool."""
    clear: dict[str, np.ndarray]
    """Clock -> (period, window) float32 mean share of its ``clear`` mask over usable dates."""
    counts: dict[str, int]


def _judge(
    store: StoreIndex,
    place: np.ndarray,
    size: int,
    periods: list[dict[str, tuple[int, int]]],
    rules: tuple[float, float, float | None],
) -> _Judged:
    *least, gap = rules
    usable = {c: _usable(store, c, (place, size), *least) for c in store.days}
    both = gap is not None and {"s1", "s2"} <= set(usable)
    if both:
        apart = np.abs(store.days["s1"][:, None] - store.days["s2"][None, :])
        close = within(apart, gap or 0).astype(np.float32)
    counts = {"windows": len(place) * len(periods), "valid": 0, "near": 0}
    keep = np.ones((len(periods), len(place)), bool)
    for ranges, mine in zip(periods, keep, strict=True):
        masks = {c: usable[c][:, low:high] for c, (low, high) in ranges.items()}
        some = [m.any(axis=1) for m in masks.values()]
        if some:
            mine[:] = np.any(some, axis=0) if gap is None else np.all(some, axis=0)
        counts["valid"] += int(mine.sum())
        if both:
            (low, high), (first, last) = ranges["s1"], ranges["s2"]
            near = masks["s1"].astype(np.float32) @ close[low:high, first:last]
            mine &= ((near > 0) & masks["s2"]).any(axis=1)
        counts["near"] += int(mine.sum())
    return _Judged(
        usable={c: np.packbits(m, axis=1) for c, m in usable.items()},
        keep=keep,
        clear=_clear(store, place, size, (usable, periods)),
        counts=counts,
    )


def _usable(
    store: StoreIndex,
    clock: str,
    windows: tuple[np.ndarray, int],
    min_valid: float,
    min_clear: float,
) -> np.ndarray:
    """Return (window, step) bool: whether a date has enough valid and clear pixels in a window."""
    place, size = windows
    mine = [n for n, e in store.entries.items() if e.clock == clock and e.layer.nodata is not None]
    # Coherence may lack a date that has backscatter; classes and masks follow their sensor.
    main = [n for n in mine if store.entries[n].layer.kind == "continuous"
            and store.entries[n].layer.stack_dim == "time"] or mine  # fmt: skip
    ok = np.ones((len(place), len(store.days[clock])), bool)
    for name in main:
        share, steps = data_share(store, name, place, size), store.entries[name].steps
        if steps is not None:  # pairs: a date has the one that ends there, or none
            share = np.where(steps >= 0, share[:, steps], 0)
        ok &= share >= min_valid - 1e-6
    masks = [n for n, e in store.entries.items() if e.clock == clock and e.steps is None
             and e.layer.variable == "clear"]  # fmt: skip
    for name in masks if min_clear else ():
        ok &= data_share(store, name, place, size) >= min_clear - 1e-6
    return ok


def data_share(store: StoreIndex, name: str, place: np.ndarray, size: int) -> np.ndarray:
    """Return (window, step) share of a layer's pixels with data: of cells, weighted by area."""
    shares, edges = fractions(store, [name])
    per_y, iy = _covered(place[:, 0], size, edges[name], shares[name].shape[1])
    per_x, ix = _covered(place[:, 1], size, edges[name], shares[name].shape[2])
    # (row of windows, cell row) @ (cell row, step x cell column), then @ (cell column, column):
    # two products of matrices, not two for each step
    pixels = np.tensordot(np.tensordot(per_y, shares[name], (1, 1)), per_x, (2, 1))
    result: np.ndarray = pixels[iy, :, ix] / size**2
    return result


def _covered(starts: np.ndarray, size: int, edge: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (distinct start, cell) pixels of each cell under a window, and the inverse."""
    distinct, inverse = np.unique(starts, return_inverse=True)
    low = np.arange(cells) * edge
    covered = np.minimum(low + edge, distinct[:, None] + size)
    covered = np.maximum(covered - np.maximum(low, distinct[:, None]), 0)
    return covered.astype(np.float32), inverse


def _clear(
    store: StoreIndex,
    place: np.ndarray,
    size: int,
    found: tuple[dict[str, np.ndarray], list[dict[str, tuple[int, int]]]],
) -> dict[str, np.ndarray]:
    """Return clock -> (period, window) mean share of its `clear` mask over the usable dates."""
    usable, periods = found
    out = {}
    for name, entry in store.entries.items():
        clock = entry.clock
        if entry.layer.variable == "clear" and clock in usable and entry.steps is None:
            ends = np.array([p[clock] for p in periods]).T
            share = np.where(usable[clock], data_share(store, name, place, size), 0)
            # sums up to each step: a period is a difference, and many overlap
            shares, dates = (
                np.pad(np.cumsum(v, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
                for v in (share, usable[clock])
            )
            low, high = ends
            total, n = shares[:, high] - shares[:, low], dates[:, high] - dates[:, low]
            out[clock] = (total / np.maximum(n, 1)).T.astype(np.float32)
    return out


def _periods(store: StoreIndex, window: Window) -> list[dict[str, tuple[int, int]]]:
    """Return clock -> (first step, one past the last) of each period."""
    if window.period is None or not store.days:
        return [{c: (0, len(d)) for c, d in store.days.items()}]
    first = int(min(np.floor(d.min()) for d in store.days.values()))
    total = int(max(np.floor(d.max()) for d in store.days.values())) + 1 - first
    period = length("Window.period", window.period, "60D")
    step = period if window.step is None else length("Window.step", window.step, "30D")
    if period < 1 or step < 1 or period % 1 or step % 1:
        raise CubeError(
            f"Window(period={window.period!r}, step={window.step!r}): whole days, at least one"
        )
    if period > total:
        raise CubeError(
            f"a period of {window.period} is longer than {store.path}, which spans {total} days"
        )
    starts = _windows((("day", total, int(period), int(step)),))[:, 0] + first
    return [
        {
            c: (int(np.searchsorted(d, s)), int(np.searchsorted(d, s + period)))
            for c, d in store.days.items()
        }
        for s in starts
    ]


def _table(
    store: StoreIndex, number: int, place: np.ndarray, cells: Cells, window: Window
) -> Table:
    # the crops of a cell come one after another: its number is theirs divided by their count
    def each(column: np.ndarray) -> np.ndarray:
        return np.repeat(column, window.crops, axis=0)

    windows = each(cells.window)
    lonlat = store.lonlat(place[:, 0] + window.cell / 2, place[:, 1] + window.cell / 2)
    return Table(
        store=np.full(len(windows), number, np.int32),
        window=windows,
        y=place[windows, 0],
        x=place[windows, 1],
        id=np.arange(len(windows), dtype=np.int64),
        ranges={c: each(v) for c, v in cells.ranges.items()},
        steps={c: each(v) for c, v in cells.steps.items()},
        clear={c: each(v) for c, v in cells.clear.items()},
        lonlat=lonlat[windows],
    )
