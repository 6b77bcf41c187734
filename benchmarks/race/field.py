"""What all rivals share: the samples, what one of them needs, and how records are packed."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import cubes
from benchmarks import stream
from cubes.store import shards
from cubes.types import Window

CORES = 2
"""Threads or processes of everyone."""

Batches = Iterable[Mapping[str, Any]]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What one sample takes from the store; small enough to pickle to a worker."""

    patch: int
    y: int
    x: int
    steps: Mapping[str, tuple[int, ...]]
    """Layer -> steps of the store."""
    small: Mapping[str, np.ndarray]
    """Dates, places: what does not come from pixels."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The samples of the race, in order, and the store's pixels in memory to write layouts from."""

    where: stream.Race
    wanted: tuple[Wanted, ...]
    pixels: Mapping[str, np.ndarray]
    """Layer -> (step, channel, y, x), stored integers, of the whole cube."""
    truth: Mapping[str, np.ndarray]
    """What `Samples.read` gives for the samples of a pass."""
    clocks: Mapping[str, str]
    """Layer -> ``s1``, ``s2`` or ``static``."""

    @property
    def size(self) -> int:
        """Edge of a sample, pixels."""
        return int(self.where.samples.window.size)

    @property
    def patches(self) -> int:
        """Patches of the cube."""
        return 1 + max(w.patch for w in self.wanted)

    @property
    def shapes(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Layer -> shape and dtype in a sample."""
        spec = self.where.samples.spec()
        return {name: spec[name] for name in self.pixels}

    def window(self, wanted: Wanted, name: str) -> np.ndarray:
        """Return all steps of one layer in the window of a sample, (step, channel, y, x)."""
        part = (slice(wanted.y, wanted.y + self.size), slice(wanted.x, wanted.x + self.size))
        return self.pixels[name][(..., *part)]

    def first(self, patch: int) -> Wanted:
        """Return a sample of a patch."""
        return next(w for w in self.wanted if w.patch == patch)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One way to store and to read; `start` gives the batches of one pass, as often as called."""

    name: str
    layout: str
    compressed: bool | None
    """None: neither (a limit), counted in no bar."""
    start: Callable[[], Batches]
    path: Path | None = None
    """What lies on the disk for it."""
    stored: int | None = None
    """Samples on the disk: patches where all dates are stored, samples where twelve are."""
    fresh: bool = True
    """Whether an epoch can have dates of its own."""
    n: int = 16
    """Samples of one pass."""
    notes: str = ""
    close: Callable[[], None] = field(default=lambda: None)

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return 0 if self.path is None else tree_bytes(self.path)

    def run(self) -> None:
        """Take a pass, and drop it."""
        for batch in self.start():
            assert len(batch)


def course(path: Path, *, size: int, samples: int, batch: int = 4) -> Course:
    """Return the samples of a race over a sealed store: every patch in turn, each time new dates.

    Parameters
    ----------
    path
        Store of `stream.store`.
    size
        Edge of a sample and of the patches, pixels.
    samples
        Of one pass.
    batch
        Samples a batch.
    """
    plan = cubes.plan(path, Window(size=size, dates=12))
    picks = plan.take(np.arange(samples) % len(plan))
    # Another number is another draw of dates: a pass of 16 samples reads nearly the whole store,
    # where four patches with the same dates each time would be a quarter of it.
    picks = picks._with(dataclasses.replace(picks._table, id=np.arange(samples)))
    where = stream.Race(path=path, samples=picks, rows=np.arange(samples), batch=batch)
    truth = picks.read(where.rows, epoch=0)
    entries = plan.stores[0].entries
    table, columns = picks.table(), plan.stores[0].shape[1] // size
    wanted = []
    for row in range(samples):
        y, x = int(table.y[row]), int(table.x[row])
        wanted.append(
            Wanted(
                patch=y // size * columns + x // size,
                y=y,
                x=x,
                steps={n: tuple(where.steps(row, n)) for n in picks.layers},
                small={k: v[row].copy() for k, v in truth.items() if k not in picks.layers},
            )
        )
    return Course(
        where=where,
        wanted=tuple(wanted),
        pixels={n: _pixels(path / n, picks.layers[n].n_channels) for n in picks.layers},
        truth=truth,
        clocks={n: entries[n].clock or "static" for n in picks.layers},
    )


def _pixels(path: Path, channels: int) -> np.ndarray:
    import zarr

    whole = np.asarray(zarr.open_array(path, mode="r")[...])
    return whole.reshape(-1, channels, *whole.shape[-2:])


def check(rival: Rival, course: Course) -> None:
    """Take a pass of a rival and compare every sample with what our reader gives.

    Raises
    ------
    AssertionError
        A number differs, a sample came twice or never.
    """
    import torch

    seen: list[int] = []
    for batch in rival.start():
        for name, value in batch.items():
            assert isinstance(value, torch.Tensor), (rival.name, name)
            assert value.is_contiguous(), (rival.name, name)
        assert set(batch) == set(course.truth), (rival.name, set(batch))
        rows = batch["place"][:, 3].tolist()
        seen += rows
        for name, value in batch.items():
            expected = course.truth[name][rows]
            assert value.numpy().dtype == expected.dtype, (rival.name, name, value.dtype)
            assert np.array_equal(value.numpy(), expected, equal_nan=expected.dtype.kind == "f"), (
                rival.name,
                rival.layout,
                name,
            )
    assert sorted(seen) == list(range(rival.n)), (rival.name, rival.layout, seen)


# ------------------------------------------------------------------------------------- packing


def pack(part: np.ndarray) -> np.ndarray:
    """Return steps (t, channel, y, x) as one Blosc frame each, with the codec of our stores."""
    frames = [shards.encode(p, "lz4")[:-4] for p in part]  # without the checksum, as rivals store
    head = np.array([len(frames), *map(len, frames)], np.int64).tobytes()
    return np.frombuffer(head + b"".join(frames), np.uint8)


def unpack(data: Any, out: np.ndarray, steps: Iterable[int] | None = None) -> None:
    """Decode frames of `pack` straight into `out`, (t, channel, y, x): all, or some steps."""
    from numcodecs import blosc

    view = memoryview(data).cast("B")
    n = int(np.frombuffer(view[:8], np.int64)[0])
    ends = 8 * (n + 1) + np.cumsum(np.frombuffer(view[8 : 8 * (n + 1)], np.int64))
    for t, step in enumerate(range(n) if steps is None else steps):
        start = 8 * (n + 1) if step == 0 else int(ends[step - 1])
        blosc.decompress(view[start : int(ends[step])], out[t].reshape(-1).view(np.uint8))


def tree_bytes(path: Path) -> int:
    """Return the bytes of a file or of all files below a folder."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def fresh(path: Path) -> Path:
    """Return an empty folder."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def forget(paths: Iterable[Path]) -> None:
    """Ask the system to forget the pages of files below some folders."""
    for path in paths:
        stream._cold(path)


def files(path: Path) -> Iterator[str]:
    """Yield the files of a folder, in order."""
    yield from sorted(str(p) for p in path.iterdir())
