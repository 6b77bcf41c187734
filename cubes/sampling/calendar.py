"""Which dates samples may use, and which they do: pure functions of (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cubes.sampling.draws import salt, uniform
from cubes.sampling.index import StoreIndex
from cubes.sampling.tables import Table
from cubes.types import Window


class Calendar:
    """The dates of samples: usable ones from the table and the stores, used ones drawn.

    Attributes
    ----------
    most
        Clock -> dates that a sample uses at most.
    """

    def __init__(
        self,
        stores: Sequence[StoreIndex],
        window: Window,
        seed: int,
        table: Table,
        usable: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        self._window, self._seed, self._table, self._usable = window, seed, table, usable
        longest: dict[str, int] = {}
        for store in stores:
            for clock, days in store.days.items():
                longest[clock] = max(longest.get(clock, 0), len(days))
        self.most = {clock: min(window.dates, n) for clock, n in sorted(longest.items())}
        if window.rule is not None:
            for clock, steps in table.steps.items():
                k = steps.shape[1] if clock == "s1" else min(window.dates, steps.shape[1])
                self.most[clock] = 1 if clock == "s2" and window.rule.match == "random" else k
        self._lengths: np.ndarray | None = None

    def candidates(self, row: int, clock: str) -> np.ndarray:
        """Return the usable steps of one sample, ascending."""
        t = self._table
        if clock in t.steps:
            listed: np.ndarray = t.steps[clock][row]
            return listed[listed >= 0]
        bits = self._usable[t.store[row]].get(clock)
        if bits is None:
            return np.empty(0, np.intp)
        low, high = t.ranges[clock][row]
        mask = np.unpackbits(bits[t.window[row]], count=int(high))[low:]
        steps: np.ndarray = np.flatnonzero(mask) + low
        return steps

    def pick(self, row: int, clock: str, epoch: int | None) -> np.ndarray:
        """Return the steps that one sample uses, ascending; see `Samples.dates`."""
        steps = self.candidates(row, clock)
        k = self.most.get(clock, 0)
        if len(steps) <= k:
            return steps
        edges = np.arange(k + 1) * len(steps) // k
        draw: Any = 0.5
        if epoch is not None:
            cell = int(self._table.id[row]) // self._window.crops  # whose crops share their dates
            draw = uniform((self._seed, epoch, cell, salt(clock)), k)
        chosen: np.ndarray = steps[edges[:-1] + (draw * np.diff(edges)).astype(np.intp)]
        return chosen

    def lengths(self) -> np.ndarray:
        """Return (n, clocks) int32 steps that each sample is padded to, clocks in order of name."""
        if self._lengths is None:
            bucket = self._window.bucket
            found = np.empty((len(self._table.id), len(self.most)), np.int32)
            for column, (clock, most) in zip(found.T, self.most.items(), strict=True):
                column[:] = most
                if bucket is not None:  # never none at all: a model takes at least a date
                    dates = np.maximum(np.minimum(self.counts(clock), most), 1)
                    column[:] = np.minimum(-(-dates // bucket) * bucket, most)
            self._lengths = found
        return self._lengths

    def counts(self, clock: str) -> np.ndarray:
        """Return the number of usable dates of each sample, (n,) int32."""
        t = self._table
        if clock in t.steps:
            counts: np.ndarray = (t.steps[clock] >= 0).sum(axis=1, dtype=np.int32)
            return counts
        counts = np.zeros(len(t.id), np.int32)
        for s in np.unique(t.store):
            if clock in self._usable[s]:
                rows = np.flatnonzero(t.store == s)
                low, high = t.ranges[clock][rows].T
                bits = np.unpackbits(self._usable[s][clock], axis=1).astype(np.int16)
                until = np.pad(np.cumsum(bits, axis=1), ((0, 0), (1, 0)))
                window = t.window[rows]
                counts[rows] = until[window, high] - until[window, low]
        return counts
