"""Samples: windows and dates over stores as integer arrays, and reading them as stored integers.

`cubes.plan` makes them. The dates of a sample are a pure function of (seed, epoch, sample),
whatever the batch, worker or rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from cubes.sampling import pool, stored, stream
from cubes.sampling.calendar import Calendar
from cubes.sampling.draws import offset, salt, spread
from cubes.sampling.index import StoreIndex, common_layers, instant
from cubes.sampling.tables import Table
from cubes.types import CubeError, Layer, Window

Read = dict[str, np.ndarray]
"""Name -> array with the samples along the first axis; see `Samples.read`."""


class Samples:
    """Windows in space and time over stores: made by `plan`, subset by `take` and `split`.

    Holds integer arrays and paths; no open file, so it pickles small. ``len()`` is the number of
    samples.

    Attributes
    ----------
    stores
        What is known of each store.
    window
        What one sample is.
    seed
        Of the choice of dates.
    layers
        Layer name -> row, in the order of reading.
    part
        Which part of a split these are (``train``; split again ``train/val``), else empty.
    """

    part = ""

    def __init__(
        self,
        stores: Sequence[StoreIndex],
        window: Window,
        *,
        seed: int,
        table: Table,
        usable: Sequence[Mapping[str, np.ndarray]],
    ) -> None:
        self.stores, self.window, self.seed = tuple(stores), window, seed
        self._table, self._usable = table, tuple(usable)
        self._calendar = Calendar(self.stores, window, seed, table, self._usable)
        self.layers: dict[str, Layer] = common_layers(self.stores)
        self.clocks = tuple(sorted({k for s in self.stores for k in s.days}))

    def __len__(self) -> int:
        return len(self._table.id)

    def __repr__(self) -> str:
        n, w = len(self), self.window
        return (
            f"<Samples: {n:,} of {w.size} px, up to {w.dates} dates of "
            f"{', '.join(self.clocks) or 'nothing'}, from {len(np.unique(self.numbers))} stores; "
            f"{', '.join(self.layers)}>"
        )

    def take(self, rows: Any) -> Samples:
        """Return some of these samples.

        Parameters
        ----------
        rows
            Integer positions, (n,), or a boolean mask of all samples.

        Raises
        ------
        CubeError
            No such sample; a mask of another length.
        """
        rows = np.asarray(rows)
        if rows.dtype != bool:
            rows = self._checked(rows)
        elif rows.shape != (len(self),):
            raise CubeError(
                f"a mask of {rows.size} cannot choose from {len(self):,} samples: give one bool "
                f"for each of the {len(self)} samples, or integer positions"
            )
        return self._with(self._table.take(rows))

    def select(self, layers: Iterable[str]) -> Samples:
        """Return the same samples with some layers only (dates stay the same).

        Raises
        ------
        CubeError
            No such layer.
        """
        wanted = tuple(layers)
        unknown = [name for name in wanted if name not in self.layers]
        if unknown:
            raise CubeError(f"no layer {unknown[0]!r} here; there are {', '.join(self.layers)}")
        new = self._with(self._table)
        new.layers = {name: self.layers[name] for name in wanted}
        return new

    def on(self, stores: Sequence[StoreIndex]) -> Samples:
        """Return the same samples on other accounts of their stores."""
        return self._with(self._table, stores)

    def _with(self, table: Table, on: Sequence[StoreIndex] = ()) -> Samples:
        stores = on or self.stores
        new = Samples(stores, self.window, seed=self.seed, table=table, usable=self._usable)
        new.layers, new.part = self.layers, self.part
        return new

    @property
    def ids(self) -> np.ndarray:
        """Number of each sample in its plan, (n,) int64; subsets keep them."""
        return self._table.id

    @property
    def numbers(self) -> np.ndarray:
        """Position in `stores` of each sample's store, (n,) int32."""
        return self._table.store

    @property
    def sha256(self) -> str:
        """Hash of everything a batch depends on: stores, windows, seed, samples and layers."""
        digest = hashlib.sha256()
        head = [asdict(self.window), self.seed, [s.identity for s in self.stores]]
        digest.update(repr([*head, list(self.layers)]).encode())
        t = self._table
        dates = [by[k] for by in (t.ranges, t.steps) for k in self.clocks if k in by]
        for column in (t.store, t.window, t.y, t.x, t.id, *dates):
            digest.update(np.ascontiguousarray(column).tobytes())
        for usable in self._usable:
            for clock in sorted(usable):
                digest.update(usable[clock].tobytes())
        for entry in (e for s in self.stores for e in s.entries.values()):
            if entry.steps is not None:  # a split by time leaves out pairs
                digest.update(entry.steps.tobytes())
        return digest.hexdigest()

    def table(self) -> pd.DataFrame:
        """Return one row per sample: store, aoi, id, window, place, dates.

        Returns
        -------
        pandas.DataFrame
            Columns ``id, store, aoi, crs, y, x`` (upper left pixel of the window, or of the cell
            that it is drawn in), ``left, bottom, right, top`` (CRS units), ``lon, lat`` (centre)
            of the same, ``start, end`` (UTC, first and last step in range),
            ``<clock>_dates``, the number of usable dates, and where the sensor has such a mask
            ``<clock>_clear``, the mean share of clear pixels over those dates.
        """
        t = self._table
        bounds = self.bounds()
        start, end = self.span()
        columns: dict[str, Any] = {
            "id": t.id,
            "store": [self.stores[i].path for i in t.store],
            "aoi": [self.stores[i].aoi for i in t.store],
            "crs": [self.stores[i].crs for i in t.store],
            "y": t.y,
            "x": t.x,
            **dict(zip(("left", "bottom", "right", "top"), bounds.T, strict=True)),
            "lon": t.lonlat[:, 0],
            "lat": t.lonlat[:, 1],
            "start": [instant(v) if np.isfinite(v) else pd.NaT for v in start],
            "end": [instant(v) if np.isfinite(v) else pd.NaT for v in end],
        }
        for clock in self.clocks:
            columns[f"{clock}_dates"] = self._calendar.counts(clock)
        columns |= {f"{clock}_clear": share for clock, share in t.clear.items()}
        return pd.DataFrame(columns)

    def bounds(self) -> np.ndarray:
        """Return (n, 4) float64 left, bottom, right, top of each window in its cube's CRS.

        Of its cell, where it is drawn in one: what a sample may ever read.
        """
        out = np.empty((len(self), 4))
        size = self.window.cell
        for s, rows in self._by_store():
            y, x = self._table.y[rows], self._table.x[rows]
            x0, y0 = self.stores[s].corner(y, x)
            x1, y1 = self.stores[s].corner(y + size, x + size)
            out[rows] = np.stack(
                [np.minimum(x0, x1), np.minimum(y0, y1), np.maximum(x0, x1), np.maximum(y0, y1)], 1
            )
        return out

    def blocks(self) -> np.ndarray:
        """Return which objects of a store each sample begins in, (n,) int64.

        Samples of one block read the same shards: those of one patch and run of steps.
        """
        t = self._table
        keys = np.zeros((len(self), 4), np.int64)
        for s, rows in self._by_store():
            steps, height, width = self.stores[s].shard
            low = [t.ranges[c][rows, 0] for c in self.stores[s].days] or [np.zeros(len(rows), int)]
            keys[rows] = np.stack(
                [np.full(len(rows), s), np.min(low, axis=0) // steps, t.y[rows] // height,
                 t.x[rows] // width], axis=1,
            )  # fmt: skip
        numbers: np.ndarray = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
        return numbers

    def _by_store(self) -> Iterable[tuple[int, np.ndarray]]:
        for s in np.unique(self._table.store):
            yield int(s), np.flatnonzero(self._table.store == s)

    def span(self) -> tuple[np.ndarray, np.ndarray]:
        """Return first and last day of each sample, (n,) float64 days since 2000, NaN without."""
        start, end = np.full(len(self), np.inf), np.full(len(self), -np.inf)
        for s, rows in self._by_store():
            for clock, days in self.stores[s].days.items():
                low, high = self._table.ranges[clock][rows].T
                some = high > low
                start[rows[some]] = np.minimum(start[rows[some]], days[low[some]])
                end[rows[some]] = np.maximum(end[rows[some]], days[high[some] - 1])
        none = ~np.isfinite(start)
        start[none] = end[none] = np.nan
        return start, end

    def ranges(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return clock -> (n, 2) first step, and the one past the last, of some samples."""
        return {clock: self._table.ranges[clock][rows] for clock in self.clocks}

    def dates(self, row: int, clock: str, *, epoch: int | None = 0) -> np.ndarray:
        """Return the steps that a sample uses: a pure function of (seed, epoch, sample).

        Parameters
        ----------
        row
            Position in these samples.
        clock
            ``s1``, ``s2``, or ``insar`` where there is no ``s1``.
        epoch
            None picks the same evenly spread dates every time (for evaluation).

        Returns
        -------
        numpy.ndarray
            (k,) ascending steps, k <= ``window.dates``: one drawn from each of k equal runs of
            the usable dates, so that they spread over the whole range.
        """
        return self._calendar.pick(row, clock, epoch)

    def places(self, rows: Any, *, epoch: int | None = 0) -> np.ndarray:
        """Return the upper left pixel of each window: a pure function of (seed, epoch, sample).

        Parameters
        ----------
        rows
            Integer positions, (n,).
        epoch
            None spreads the crops of a cell evenly over it, the same every time.

        Returns
        -------
        numpy.ndarray
            (n, 2) int64 y, x.
        """
        rows, window = self._checked(rows), self.window
        corners = np.stack([self._table.y[rows], self._table.x[rows]], axis=1).astype(np.int64)
        room = window.cell - window.size
        if room:
            drawn, ids = salt("crop"), self._table.id[rows].tolist()
            corners += [
                spread(i % window.crops, window.crops, room)
                if epoch is None
                else offset((self.seed, epoch, i, drawn), room)
                for i in ids
            ] or np.empty((0, 2), np.int64)
        return corners

    def buckets(self) -> np.ndarray:
        """Return which row of `shapes` each sample has, (n,) int64."""
        if self.window.bucket is None:
            return np.zeros(len(self), np.int64)
        _, numbers = np.unique(self._calendar.lengths(), axis=0, return_inverse=True)
        return numbers.reshape(-1)

    def shapes(self) -> pd.DataFrame:
        """Return the numbers of steps that batches have: one row, or with ``Window.bucket`` some.

        Returns
        -------
        pandas.DataFrame
            One column per clock, int: steps that its dates are padded to; and ``samples``, how
            many are so. A model that is compiled for fixed shapes is compiled once for each row.
        """
        found, counts = np.unique(self._calendar.lengths(), axis=0, return_counts=True)
        columns = dict(zip(self._calendar.most, found.T, strict=True))
        return pd.DataFrame({**columns, "samples": counts})

    def spec(self, rows: Any = None) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return name -> (shape without the sample axis, dtype) of all that `read` returns.

        Of the samples at `rows`; None: of any, the longest.
        """
        size, dates = self.window.size, self._calendar.most
        if self.window.bucket is not None and rows is not None and len(rows):
            lengths = self._calendar.lengths()[rows].max(axis=0).tolist()
            dates = dict(zip(dates, lengths, strict=True))
        shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        for name, layer in self.layers.items():
            length = self._steps(name, dates)
            shapes[name] = ((length, layer.n_channels, size, size), np.dtype(layer.dtype))
        for clock in self.clocks:
            shapes[f"{clock}/days"] = ((dates[clock],), np.dtype(np.float64))
            shapes[f"{clock}/present"] = ((dates[clock],), np.dtype(bool))
        if any(s.track is not None for s in self.stores):
            shapes["s1/track_of_date"] = ((dates["s1"],), np.dtype(np.int16))
        shapes["place"] = ((4,), np.dtype(np.int64))
        shapes["lonlat"] = ((2,), np.dtype(np.float64))
        return shapes

    def _steps(self, name: str, dates: Mapping[str, int]) -> int:
        """Return the length of a layer's step axis in a batch."""
        entries = [s.entries[name] for s in self.stores if name in s.entries]
        if entries[0].clock is not None:
            return max(dates[e.clock] for e in entries if e.clock is not None)
        if entries[0].layer.stack_dim == "track":
            return max(e.length for e in entries)
        return 1

    def empty(self, rows: Any) -> Read:
        """Return uninitialised arrays that `read` can fill with the samples at `rows`.

        Or with so many of any kind, if it is a number; with ``Window.bucket`` shapes depend on
        the samples.
        """
        some = None if isinstance(rows, int | np.integer) else rows
        n = len(rows) if some is not None else int(rows)
        return {k: np.empty((n, *shape), dtype) for k, (shape, dtype) in self.spec(some).items()}

    def read(
        self, rows: Any, out: Read | None = None, *, threads: int = 1, epoch: int | None = 0
    ) -> Read:
        """Return samples as stored integers, decoded straight into `out`.

        Parameters
        ----------
        rows
            Integer positions, (n,).
        out
            Arrays as `empty` makes them; None makes new ones.
        threads
            Decoding threads; 1 works in the calling thread.
        epoch
            Decides the dates together with the seed; None: evenly spread ones.

        Returns
        -------
        dict
            Layer name -> (n, T, C, y, x) stored integers, nodata where padded or absent (a mask
            ``clear`` that a cube lacks is True throughout: it hides nothing): T dates
            for ``time`` layers (``insar`` layers follow the dates of ``s1``: the pair that ends
            there), K planes for per-track layers, 1 for labels (year nearest to the middle of
            the sample) and static layers. ``<clock>/days`` (n, T) float64 days since
            2000-01-01, NaN where padded; ``<clock>/present`` (n, T) bool; ``s1/track_of_date``
            (n, T) int16 plane of the per-track layers, -1 where none; ``place`` (n, 4) int64
            store, y, x, id; ``lonlat`` (n, 2) float64 degrees.

        Raises
        ------
        CubeError
            An object is lost or damaged (the ledger says which were written), a store was
            written again since the plan, or `out` does not fit.
        """
        rows = self._checked(rows)
        if threads < 1:
            raise CubeError(f"threads={threads}: 1 or more decode")
        if out is None:
            out = self.empty(rows)
        self._fits(out, rows)
        if threads == 1:
            for unit in self.units(rows, out, epoch=epoch):
                unit()
        else:
            job = pool.Job(lambda: self.units(rows, out, epoch=epoch))
            pool.pool(threads).submit(job).wait()
        return out

    def units(
        self, rows: np.ndarray, out: Read, *, epoch: int | None = 0
    ) -> list[Callable[[], None]]:
        """Fill the small columns of `out` and return the units of work that fill its pixels."""
        work, t = stream.Work(), self._table
        opened = self._opened(rows, out)
        present = [n for n in self.layers if n in out]
        stream.blank(out)
        last, picks = (-1, -1), dict[str, np.ndarray]()
        corners = self.places(rows, epoch=epoch)
        out["place"][...] = np.column_stack([t.store[rows], corners, t.id[rows]])
        out["lonlat"][...] = self._lonlat(rows, corners)
        for i, (row, (y, x)) in enumerate(zip(rows.tolist(), corners.tolist(), strict=True)):
            number = int(t.store[row])
            store = self.stores[number]
            cell = number, int(t.id[row]) // self.window.crops
            if cell != last:  # its crops share their dates
                picks = {c: self.dates(row, c, epoch=epoch) for c in store.days}
                last = cell
            for clock, steps in picks.items():
                out[f"{clock}/days"][i, : len(steps)] = store.days[clock][steps]
                out[f"{clock}/present"][i, : len(steps)] = True
                if clock == "s1" and store.track is not None:
                    out["s1/track_of_date"][i, : len(steps)] = store.track[steps]
            for name in present:
                dest = out[name][i]
                entry = store.entries.get(name)
                if entry is None:
                    # a cube without a cloud mask says nothing against its pixels: all are clear
                    clear = self.layers[name].variable == "clear"
                    dest[...] = 1 if clear else self._nodata(name)
                    continue
                array = opened[number].array(entry.path, entry.identity, entry.recorded)
                if entry.clock is not None:
                    chosen = picks[entry.clock]
                    steps = chosen if entry.steps is None else entry.steps[chosen]
                elif entry.layer.stack_dim == "year":
                    steps = np.array([self._year(row, store, entry.years)])
                else:
                    steps = np.arange(array.shape[0])
                if len(steps) < len(dest):
                    dest[len(steps) :] = self._nodata(name)
                work.add(array, steps.tolist(), y, x, dest[: len(steps)])
        return work.done()

    def _opened(self, rows: np.ndarray, out: Read) -> dict[int, stored.SealedStore]:
        """Return the stores of a batch: the one look at the seals, before anything is read."""
        numbers = np.unique(self._table.store[rows]).tolist()
        batch = sum(array.nbytes for array in out.values())
        return {s: self.stores[s].open(batch) for s in numbers}

    def _lonlat(self, rows: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """Return (n, 2) float64 degrees, the centre of each window."""
        out: np.ndarray = self._table.lonlat[rows]
        if self.window.within is not None:
            numbers, centres = self._table.store[rows], corners + self.window.size / 2
            for s in np.unique(numbers):
                mine = numbers == s
                out[mine] = self.stores[s].lonlat(*centres[mine].T)
        return out

    def _nodata(self, name: str) -> float:
        nodata = self.layers[name].nodata
        return 0 if nodata is None else nodata

    def _year(self, row: int, store: StoreIndex, years: tuple[int, ...]) -> int:
        ends = [
            store.days[c][s]
            for c in store.days
            for low, high in [self._table.ranges[c][row]]
            if high > low
            for s in (low, high - 1)
        ]
        if not ends:
            return len(years) - 1
        middle = instant((min(ends) + max(ends)) / 2).year
        return int(np.argmin(np.abs(np.array(years) - middle)))

    def _checked(self, wanted: Any) -> np.ndarray:
        given = np.asarray(wanted)
        if given.size and given.dtype.kind not in "iu":
            raise CubeError(
                f"rows are integer positions, and these are {given.dtype}: {given.reshape(-1)[0]!r}"
                " ...; a boolean mask goes to Samples.take"
            )
        rows: np.ndarray = given.astype(np.intp).reshape(-1)
        bad = rows[(rows < 0) | (rows >= len(self))]
        if len(bad):
            raise CubeError(f"sample {bad[0]} does not exist; there are {len(self):,}, from 0")
        return rows

    def _fits(self, out: Read, rows: np.ndarray) -> None:
        n = len(rows)
        for name, (shape, dtype) in self.spec(rows).items():
            array = out.get(name)
            fits = array is not None and array.shape == (n, *shape) and array.dtype == dtype
            if array is None or not fits or not array.flags.c_contiguous:
                found = "nothing" if array is None else f"{array.dtype} {array.shape}"
                found += " with gaps between its numbers" if fits else ""
                raise CubeError(
                    f"out[{name!r}] must be {dtype} {(n, *shape)}, C-contiguous; got {found}: "
                    "use Samples.empty"
                )
