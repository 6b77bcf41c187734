"""The columns of samples: integer arrays, one entry per sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The columns of samples; every array has one entry per sample."""

    store: np.ndarray
    """int32, number of the store."""
    window: np.ndarray
    """int32, row of the store's usable steps."""
    y: np.ndarray
    x: np.ndarray
    """int32, upper left pixel of the cell: of the window, where that is all of it."""
    id: np.ndarray
    """int64, number in the plan; kept by subsets, so that dates do not depend on a split."""
    ranges: Mapping[str, np.ndarray]
    """Clock -> (n, 2) int32, first step and one past the last; 0, 0 where the cube lacks it."""
    steps: Mapping[str, np.ndarray]
    """Clock -> (n, k) int32, ascending steps of a sample by rule, -1 behind them; empty where
    samples are not by a rule: theirs are the usable ones of `ranges`."""
    clear: Mapping[str, np.ndarray]
    """Clock -> (n,) float32 mean share of clear pixels over the usable dates; NaN without."""
    lonlat: np.ndarray
    """(n, 2) float64, degrees, centre of the cell."""

    def take(self, rows: np.ndarray) -> Table:
        """Return some rows."""
        return Table(
            store=self.store[rows],
            window=self.window[rows],
            y=self.y[rows],
            x=self.x[rows],
            id=self.id[rows],
            ranges={k: v[rows] for k, v in self.ranges.items()},
            steps={k: v[rows] for k, v in self.steps.items()},
            clear={k: v[rows] for k, v in self.clear.items()},
            lonlat=self.lonlat[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """Where and when a store has samples; every array has one entry per cell."""

    order: np.ndarray
    """Number of the period or run: cells come in the order of time, then of windows."""
    window: np.ndarray
    """int32."""
    ranges: Mapping[str, np.ndarray]
    steps: Mapping[str, np.ndarray]
    clear: Mapping[str, np.ndarray]
    """As in `Table`."""


def gathered(parts: Sequence[Cells], first: Sequence[int]) -> Cells:
    """Return the cells of blocks of windows, which begin at `first`, as those of all of them."""
    order = np.concatenate([p.order for p in parts])
    rows = np.argsort(order, kind="stable")

    def columns(name: str) -> dict[str, np.ndarray]:
        found = [getattr(p, name) for p in parts]
        return {c: np.concatenate([f[c] for f in found])[rows] for c in found[0]}

    windows = np.concatenate([p.window + i for p, i in zip(parts, first, strict=True)])
    return Cells(
        order=order[rows],
        window=windows[rows].astype(np.int32),
        ranges=columns("ranges"),
        steps=columns("steps"),
        clear=columns("clear"),
    )


def concat(tables: Sequence[Table], clocks: Sequence[str]) -> Table:
    """Return the tables of several stores as one, numbered anew."""

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(t, name) for t in tables])

    total = sum(len(t.id) for t in tables)
    none = {c: [np.zeros((len(t.id), 2), np.int32) for t in tables] for c in clocks}
    return Table(
        store=column("store"),
        window=column("window"),
        y=column("y"),
        x=column("x"),
        id=np.arange(total, dtype=np.int64),
        ranges={
            c: np.concatenate([t.ranges.get(c, z) for t, z in zip(tables, none[c], strict=True)])
            for c in clocks
        },
        steps={
            c: _padded([t.steps.get(c, np.full((len(t.id), 1), -1, np.int32)) for t in tables])
            for c in clocks
            if any(t.steps for t in tables)
        },
        clear={
            c: np.concatenate(
                [t.clear.get(c, np.full(len(t.id), np.nan, np.float32)) for t in tables]
            )
            for c in sorted({c for t in tables for c in t.clear})
        },
        lonlat=column("lonlat"),
    )


def _padded(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return lists of steps below one another, of one width."""
    width = max(c.shape[1] for c in columns)
    return np.concatenate(
        [np.pad(c, ((0, 0), (0, width - c.shape[1])), constant_values=-1) for c in columns]
    )
