"""Units of decoding: what a batch needs, as calls that any thread may make in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from cubes.sampling.stored import Copy, Item, StoredArray

UNIT_BYTES = 4 * 2**20
"""Decoded bytes after which a unit of work is cut: small enough that two threads end together,
large enough that taking a unit (about 2 us) does not show."""


class Work:
    """Units of decoding collected for one batch; chunks that several samples need go once."""

    def __init__(self) -> None:
        self.units: list[Callable[[], None]] = []
        self._crops: dict[tuple[StoredArray, tuple[int, ...]], dict[int, list[Copy]]] = {}

    def add(
        self, array: StoredArray, steps: Sequence[int], y: int, x: int, dest: np.ndarray
    ) -> None:
        """Ask for the window at (`y`, `x`) of some `steps` of `array`.

        Parameters
        ----------
        array
            What to read.
        steps
            Step numbers, one per entry of `dest`; negative ones become fill.
        y, x
            Upper left pixel.
        dest
            (step, channel, y, x), dtype of the array, C-contiguous; filled when the units ran.
        """
        for t, step in enumerate(steps):
            if step < 0:
                dest[t] = array.fill_value
        if not array.fast:
            wanted = [t for t, step in enumerate(steps) if step >= 0]
            self.units += [partial(array.slices, steps[t], y, x, dest[t]) for t in wanted]
        elif dest.shape[-2:] == array.chunk[2:] and not (y % array.chunk[2] or x % array.chunk[3]):
            self._whole(array, steps, (y // array.chunk[2], x // array.chunk[3]), dest)
        else:
            self._cropped(array, steps, (y, x), dest)

    def _whole(
        self,
        array: StoredArray,
        steps: Sequence[int],
        place: tuple[int, int],
        dest: np.ndarray,
    ) -> None:
        per, length = array._per, array.shard[0]
        (row, r), (column, c) = divmod(place[0], per[2]), divmod(place[1], per[3])
        inner, plane = r * per[3] + c, per[2] * per[3]
        shards: dict[int, list[Item]] = {}
        for t, step in enumerate(steps):
            if step >= 0:
                block, k = divmod(step, length)
                shards.setdefault(block, []).append((k * plane + inner, dest[t], []))
        for block, items in shards.items():
            self._cut(array, (block, 0, row, column), items)

    def _cropped(
        self,
        array: StoredArray,
        steps: Sequence[int],
        place: tuple[int, int],
        dest: np.ndarray,
    ) -> None:
        per, length = array._per, array.shard[0]
        plane = per[2] * per[3]
        parts = [
            (row, column, target, source)
            for row, ty, sy in _overlaps(place[0], dest.shape[2], array.chunk[2])
            for column, tx, sx in _overlaps(place[1], dest.shape[3], array.chunk[3])
            for target, source in [((slice(None), ty, tx), (slice(None), sy, sx))]
        ]
        for row, column, target, source in parts:
            inner = (row % per[2]) * per[3] + column % per[3]
            for t, step in enumerate(steps):
                if step < 0:
                    continue
                block, k = divmod(step, length)
                key = (block, 0, row // per[2], column // per[3])
                chunks = self._crops.setdefault((array, key), {})
                chunks.setdefault(k * plane + inner, []).append((dest[t][target], source))

    def _cut(self, array: StoredArray, key: tuple[int, ...], items: list[Item]) -> None:
        n = max(1, UNIT_BYTES // array.chunk_bytes)
        for i in range(0, len(items), n):
            self.units.append(array.unit(key, items[i : i + n]))

    def done(self) -> list[Callable[[], None]]:
        """Return the units; each may run in any thread, in any order."""
        for (array, key), chunks in self._crops.items():
            self._cut(array, key, [(k, None, copies) for k, copies in chunks.items()])
        self._crops = {}
        return self.units


def _overlaps(start: int, size: int, chunk: int) -> list[tuple[int, slice, slice]]:
    """Return chunk number, slice of the window and slice of the chunk for each chunk touched."""
    found = []
    for number in range(start // chunk, (start + size - 1) // chunk + 1):
        low, high = max(start, number * chunk), min(start + size, (number + 1) * chunk)
        found.append(
            (
                number,
                slice(low - start, high - start),
                slice(low - number * chunk, high - number * chunk),
            )
        )
    return found


def blank(out: Mapping[str, np.ndarray]) -> None:
    """Fill the columns of dates as if no sample had any."""
    for name in out:
        if name.endswith("/days"):
            out[name][...] = np.nan
        elif name.endswith(("/present", "/track_of_date")):
            out[name][...] = 0 if name.endswith("/present") else -1
