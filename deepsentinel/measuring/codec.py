"""The limit of any loader: the chunks of some samples, from memory, through the codec alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cubes.sampling.sampleset import Samples
from cubes.sampling.stored import MAPS, StoredArray
from cubes.store import shards
from cubes.types import CubeError

CHECKSUM = 4
"""Bytes of the CRC-32C that follows a chunk."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """The inner chunks that a loader decodes for some batches, in its order."""

    jobs: tuple[tuple[bytes, int], ...]
    """Encoded, without checksum, and the bytes that it decodes to."""
    files: tuple[str, ...]
    """The objects that they lie in."""
    samples: int

    @property
    def decoded(self) -> int:
        """Bytes that they decode to."""
        return sum(n for _, n in self.jobs)

    @property
    def encoded(self) -> int:
        """Bytes that they are stored in."""
        return sum(len(data) for data, _ in self.jobs)


def chunks(samples: Samples, batches: Sequence[np.ndarray], *, epoch: int | None = 0) -> Chunks:
    """Return copies of the chunks that `batches` (positions of samples) are decoded from.

    They are those that `Samples.units` asks for: a chunk that several crops of a batch need is
    there once.

    Raises
    ------
    CubeError
        An array that zarr-python reads, for its layout or codec is another than lz4, or that is
        not on a local disk: there is no such limit to tell.
    """
    jobs: list[tuple[bytes, int]] = []
    files: dict[str, None] = {}
    for rows in batches:
        for unit in samples.units(rows, samples.empty(len(rows)), epoch=epoch):
            call = getattr(unit, "func", None)
            array = getattr(call, "__self__", None)
            if type(array) is not StoredArray or call != array.run:
                raise CubeError(
                    f"{getattr(array, 'path', samples)} has no codec's limit: it is not on a local "
                    "disk, or written in another layout or codec than cubes.write does by itself "
                    "(lz4), and is read through zarr-python"
                )
            key, items = unit.args  # type: ignore[attr-defined]
            shard, name = MAPS.get(array, key), array.object(key)
            if shard is None or name is None:
                continue
            files[name] = None
            for number, *_ in items:
                offset, size = shard.index[number]
                if offset != shards.ABSENT:
                    end = offset + size - CHECKSUM * array._checked
                    jobs.append((bytes(shard.view[offset:end]), array.chunk_bytes))
    return Chunks(tuple(jobs), tuple(files), sum(len(rows) for rows in batches))


def codec(these: Chunks, threads: int) -> Callable[[], None]:
    """Return a pass over chunks: Blosc alone, no checksum, into reused buffers of one chunk each.

    The buffers stay in the processor's cache; a batch does not.
    """
    from numcodecs import blosc

    def work(mine: Sequence[tuple[bytes, int]]) -> None:
        buffer = np.empty(max((n for _, n in mine), default=0), np.uint8)
        views = {n: buffer[:n] for _, n in mine}
        for data, n in mine:
            blosc.decompress(data, views[n])

    def run() -> None:
        crew = [
            threading.Thread(target=work, args=(these.jobs[i::threads],)) for i in range(threads)
        ]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()

    return run
