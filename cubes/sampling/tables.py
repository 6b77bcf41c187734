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
            clear={k: v[rows] for k, v in self.clear.items()},
            lonlat=self.lonlat[rows],
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
        clear={
            c: np.concatenate(
                [t.clear.get(c, np.full(len(t.id), np.nan, np.float32)) for t in tables]
            )
            for c in sorted({c for t in tables for c in t.clear})
        },
        lonlat=column("lonlat"),
    )
