"""Batches: from stored integers in a ring of buffers to normalised tensors on the device.

`loader` runs `cubes.Samples` as a stream: decoding threads in this process, or forkserver workers
that decode into the same shared buffers. The order is a pure function of (seed, epoch, step),
whatever the number of threads, workers or ranks. `inputs` turns a batch into what a model takes.

Shape letters: B samples, T dates, K tracks, C channels, L layers, H and W pixels.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cubes.sampling import draws, pool
from cubes.sampling.sampleset import Samples
from cubes.types import CubeError
from deepsentinel.loading.normalise import Normaliser, inputs
from deepsentinel.loading.ring import Lease, Ring
from deepsentinel.loading.workers import SampleDataset, Workers

__all__ = [
    "Batch",
    "Loader",
    "Normaliser",
    "SampleDataset",
    "Stream",
    "as_batch",
    "inputs",
    "loader",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples as stored integers, with their dates and places. Made by `loader`."""

    stored: Mapping[str, Tensor]
    """Layer name -> stored integers: (B, T, C, H, W) where it has dates (``insar`` layers follow
    the dates of ``s1``), (B, K, 1, H, W) per track, (B, 1, C, H, W) labels and static layers.
    Nodata where padded or absent."""
    days: Mapping[str, Tensor]
    """Group -> (B, T) float64 days since 2000-01-01, NaN where padded."""
    present: Mapping[str, Tensor]
    """Group -> (B, T) bool; False is padding."""
    track: Tensor | None
    """(B, T) int16: plane of the per-track layers for each S1 date, -1 where none."""
    place: Tensor
    """(B, 4) int64: number of the store, y, x (upper left pixel), sample id."""
    lonlat: Tensor
    """(B, 2) float64 degrees, centre of the window."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.place)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch on `device`."""
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def clone(self) -> Batch:
        """Return a copy with memory of its own (buffers of the ring are free again)."""
        return self._map(torch.clone)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            stored={k: change(v) for k, v in self.stored.items()},
            days={k: change(v) for k, v in self.days.items()},
            present={k: change(v) for k, v in self.present.items()},
            track=None if self.track is None else change(self.track),
            place=change(self.place),
            lonlat=change(self.lonlat),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """How a loader runs. None of it but `shuffle`, `drop_last` and `world` changes the batches."""

    shuffle: bool | Literal["blocks"] = True
    """A new order and new dates every epoch; False: plan order and evenly spread dates.
    ``"blocks"``: shard after shard, `mix` of them at a time, so that each is read in one go."""
    mix: int = 64
    """With ``shuffle="blocks"``: so many shards are mixed (docs/samples.md says how well)."""
    drop_last: bool = True
    """Leave out the last batch where it would be smaller; of every bucket (`Window.bucket`), whose
    smaller batches otherwise come at the end."""
    rank: int = 0
    world: int = 1
    """Of how many processes this is which: ranks share out every global batch."""
    threads: int = 2
    """Decoding threads; with workers shared out among them, at least one each."""
    prefetch: int = 2
    """Batches decoded ahead, of each worker; `Loader.memory` is what they take."""
    context: Literal["forkserver", "spawn"] = "forkserver"
    """How worker processes start; never fork."""
    timeout: float = 300.0
    """Seconds without a batch after which the loader gives up with an error."""


def loader(
    samples: Samples,
    batch_size: int,
    *,
    workers: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    **how: Any,
) -> Loader:
    """Return an iterable of batches, one epoch per pass.

    Parameters
    ----------
    samples
        What to read.
    batch_size
        Samples per batch of this rank.
    workers
        0: decoding threads in this process (the fastest); otherwise forkserver processes.
    seed
        Order and dates are a pure function of (seed, epoch, step).
    device
        Batches arrive there; on CUDA through pinned buffers and a stream of their own.
    **how
        Any field of `Stream`: ``shuffle``, ``mix``, ``drop_last``, ``rank``, ``world``,
        ``threads``, ``prefetch``, ``context``, ``timeout``.

    Raises
    ------
    CubeError
        No sample, fewer samples than a batch with ``drop_last``, sizes that make no sense, an
        unknown option.
    """
    fields = [f.name for f in dataclasses.fields(Stream)]
    for name in how:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            raise CubeError(
                f"loader has no option {name!r}{f'; did you mean {near[0]!r}?' if near else ''} "
                f"It takes {', '.join(fields)}"
            )
    stream = Stream(**how)
    return Loader(samples, batch_size, workers=workers, seed=seed, device=device, stream=stream)


class Loader:
    """Batches in a stated order, with a position that can be saved and resumed."""

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        workers: int = 0,
        seed: int = 0,
        device: torch.device | str | None = None,
        stream: Stream | None = None,
    ) -> None:
        how = Stream() if stream is None else stream
        _check(samples, batch_size, workers, how)
        self.samples, self.batch_size, self.workers, self.seed = samples, batch_size, workers, seed
        self.device = None if device is None else torch.device(device)
        self.stream = how
        self.epoch = 0
        self._step = 0
        self._begun = False
        self._fingerprint = int(samples.sha256[:15], 16)
        if how.drop_last and not len(self):
            raise CubeError(
                f"no bucket of these samples fills a batch of {batch_size} x {how.world} ranks: "
                f"{samples.shapes().to_dict('records')}; take a smaller batch_size, a larger "
                "Window(bucket=...), or Stream(drop_last=False)"
            )

    def __len__(self) -> int:
        """Return the batches of an epoch (of this rank)."""
        whole, rest = np.divmod(np.bincount(self._buckets), self._each)
        last = 0 if self.stream.drop_last else int((rest > self.stream.rank).sum())
        return int(whole.sum()) + last

    @property
    def memory(self) -> int:
        """Bytes of the buffers that batches are decoded into, at most while none is kept.

        ``prefetch + 2`` batches (``+ 3`` on the way to a GPU), with workers ``workers * prefetch
        + 2`` in memory that all processes share. Batches that the caller keeps add their
        own; mapped files are page cache, of which up to a gigabyte counts as resident.
        """
        cuda = self.device is not None and self.device.type == "cuda"
        extra = int(cuda and not self.workers)
        ahead = max(self.workers, 1) * self.stream.prefetch
        return (ahead + 2 + extra) * Ring(self.samples, self.batch_size).size

    def rows(self, step: int) -> np.ndarray:
        """Return the positions of the samples of batch `step` of this epoch and rank, (B,)."""
        crops = self.samples.window.crops
        order, edges = self._batches()
        cells = order[edges[step] : edges[step + 1]]
        # Striding gives every rank a share of the last, smaller batch too.
        mine = cells[self.stream.rank :: self.stream.world]
        # The crops of a cell stay together: what they share is decoded once a batch.
        rows: np.ndarray = (mine[:, None] * crops + np.arange(crops)).reshape(-1)
        return rows

    @property
    def _each(self) -> int:
        """Cells (samples, or runs of a cell's crops) of a batch of all ranks."""
        return self.batch_size * self.stream.world // self.samples.window.crops

    @cached_property
    def _buckets(self) -> np.ndarray:
        """Number of the shape of each cell, (cells,)."""
        return self.samples.buckets()[:: self.samples.window.crops]

    def _batches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of this epoch, (cells,), and the edges of its batches in it."""
        key = (self.seed, self.epoch)
        cached: tuple[Any, tuple[np.ndarray, np.ndarray]] | None = self.__dict__.get("_cached")
        if cached is None or cached[0] != key:
            n, how = len(self._buckets), self.stream
            if how.shuffle == "blocks":
                blocks = self.samples.blocks()[:: self.samples.window.crops]
                order, _ = draws.mixed(blocks, how.mix, *key)
            else:
                order = draws.shuffled(n, *key) if how.shuffle else np.arange(n)
            cut = draws.bucketed(order, self._buckets, self._each)
            cached = self.__dict__["_cached"] = (key, cut)
        return cached[1]

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be `epoch`, from its beginning."""
        self.epoch, self._step, self._begun = epoch, 0, False

    def on(self, device: torch.device | str | None) -> None:
        """Let batches arrive on `device` from the next pass on."""
        self.device = None if device is None else torch.device(device)
        self.__dict__.pop("_buffers", None)  # those of a GPU are pinned

    def close(self) -> None:
        """End worker processes, if there are any; the loader can be used again."""
        made: Workers | None = self.__dict__.pop("_made", None)
        if made is not None:
            made.close()

    def state_dict(self) -> dict[str, int]:
        """Return where the stream is: the next batch is `step` of `epoch`."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "step": self._step,
            "global_batch": self.batch_size * self.stream.world,
            "shuffle": self._shuffle(),
            "drop_last": int(self.stream.drop_last),
            "fingerprint": self._fingerprint,
        }

    def _shuffle(self) -> int:
        """Return the kind of order as a number: 0 plan's, 1 full, 1 + `mix` by blocks."""
        how = self.stream
        return 1 + how.mix if how.shuffle == "blocks" else int(how.shuffle)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state` says.

        Raises
        ------
        CubeError
            The state is of other samples, another seed, batch size, shuffle or drop_last.
        """
        mine = self.state_dict()
        why = {
            "fingerprint": "it was saved with other samples (plan, split, layers or stores differ)",
            "seed": "it was saved with another seed",
            "global_batch": "it was saved with another batch size times ranks",
            "shuffle": "its samples came in another order, for shuffle or mix was another",
            "drop_last": "its epochs were of another length, for drop_last was another",
        }
        for key, reason in why.items():
            if state.get(key) != mine[key]:
                raise CubeError(
                    f"this loader cannot continue from that state: {reason} ({key} was "
                    f"{state.get(key)}, is {mine[key]}); build the loader as it was, or start anew"
                )
        self.epoch, self._step = int(state["epoch"]), int(state["step"])
        self._begun = False
        if self._step >= len(self):
            self.set_epoch(self.epoch + 1)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch.

        The first pass begins where `set_epoch` or `load_state_dict` say (epoch 0, step 0 without
        them); every later one is the next epoch from its beginning, also where the pass before
        was broken off.
        """
        if self._begun:
            self.set_epoch(self.epoch + 1)
        self._begun = True
        read = self._by_threads if self.workers == 0 else self._by_workers
        steps = range(self._step, len(self))
        for step, batch in zip(steps, self._on_device(read(steps)), strict=True):
            self._step = step + 1
            yield batch

    def _draw(self) -> int | None:
        """Return the epoch that dates are drawn for; None: evenly spread."""
        return self.epoch if self.stream.shuffle else None

    def _by_threads(self, steps: range) -> Iterator[Batch]:
        ring = _ring(self)
        readers = pool.Pool(self.stream.threads)
        ahead: deque[tuple[pool.Job, Lease]] = deque()
        pending = iter(steps)
        try:
            for _ in range(self.stream.prefetch + 1):
                self._submit(pending, ring, readers, ahead)
            while ahead:
                job, lease = ahead.popleft()
                job.wait(self.stream.timeout)
                batch = as_batch(lease.tensors())
                del lease
                yield batch
                del batch  # its buffers are free for the next one, unless the caller kept it
                self._submit(pending, ring, readers, ahead)
        finally:
            readers.close()

    def _submit(
        self,
        pending: Iterator[int],
        ring: Ring,
        readers: pool.Pool,
        ahead: deque[tuple[pool.Job, Lease]],
    ) -> None:
        step = next(pending, None)
        if step is None:
            return
        rows, draw = self.rows(step), self._draw()
        lease = ring.take(rows)
        units: Callable[[], list[Callable[[], None]]] = lambda: self.samples.units(  # noqa: E731
            rows, lease.arrays, epoch=draw
        )
        ahead.append((readers.submit(pool.Job(units)), lease))

    def _by_workers(self, steps: range) -> Iterator[Batch]:
        how = self.stream
        made: Workers | None = self.__dict__.get("_made")
        if made is None:
            options = (how.context, how.prefetch, how.threads, how.timeout)
            made = Workers(self.samples, self.batch_size, self.workers, options)
            self.__dict__["_made"] = made
        draw = self._draw()
        for tensors in made.batches([(self.rows(step), draw) for step in steps]):
            yield as_batch(tensors)
            del tensors

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        if self.device is None or self.device.type == "cpu":
            yield from batches
        elif self.device.type != "cuda":
            for batch in batches:
                yield batch.to(self.device)
        else:
            yield from _uploaded(batches, self.device)


def _uploaded(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield batches on a GPU, each uploaded while the one before is used."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting: tuple[Batch, Batch, torch.cuda.Event] | None = None

    def ready(entry: tuple[Batch, Batch, torch.cuda.Event]) -> Batch:
        _, moved, event = entry
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for tensor in _tensors(moved):
            tensor.record_stream(current)  # the allocator must not reuse it on the side stream
        return moved

    for batch in batches:
        with torch.cuda.stream(side):
            moved = batch.to(device, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(side)
        if waiting is not None:
            waiting[2].synchronize()  # only now may its pinned buffers be filled again
            yield ready((waiting[0], waiting[1], waiting[2]))
        waiting = (batch, moved, event)
    if waiting is not None:
        waiting[2].synchronize()
        yield ready(waiting)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    yield from batch.stored.values()
    yield from batch.days.values()
    yield from batch.present.values()
    yield from (t for t in (batch.track, batch.place, batch.lonlat) if t is not None)


def _check(samples: Samples, batch_size: int, workers: int, how: Stream) -> None:
    if batch_size < 1 or workers < 0 or how.prefetch < 1 or how.threads < 1:
        raise CubeError(
            f"batch_size={batch_size}, workers={workers}, prefetch={how.prefetch}, "
            f"threads={how.threads}: at least 1 (workers: 0)"
        )
    if how.shuffle not in (True, False, "blocks") or how.mix < 1:
        raise CubeError(
            f"shuffle={how.shuffle!r}, mix={how.mix}: shuffle is True, False or 'blocks', and mix "
            "at least 1"
        )
    if not 0 <= how.rank < how.world:
        raise CubeError(f"rank {how.rank} of {how.world}: from 0 to world - 1")
    if not len(samples):
        raise CubeError("there are no samples to load")
    _check_crops(samples, batch_size)
    if how.drop_last and len(samples) < batch_size * how.world:
        raise CubeError(
            f"{len(samples)} samples do not fill one batch of {batch_size} x {how.world} ranks: "
            "take a smaller batch_size, or Stream(drop_last=False)"
        )
    if how.context not in ("forkserver", "spawn"):
        raise CubeError(
            f"workers cannot start by {how.context!r}: a forked process inherits the locks of "
            "threads that no longer run, and hangs; use 'forkserver' (or 'spawn')"
        )


def _check_crops(samples: Samples, batch_size: int) -> None:
    crops = samples.window.crops
    if batch_size % crops:
        less = batch_size // crops * crops
        fit = f"{less} or {less + crops}" if less else str(crops)
        raise CubeError(
            f"batch_size={batch_size} would part the {crops} crops of a cell, which are decoded "
            f"together: take a multiple of {crops}, such as {fit}"
        )
    cells = samples.ids // crops
    whole = len(cells) % crops == 0 and (cells.reshape(-1, crops) == cells[::crops, None]).all()
    if not whole:
        raise CubeError(
            f"these samples do not hold all {crops} crops of a cell one after another: take whole "
            "cells of a plan, or plan with Window(crops=1)"
        )


def _ring(owner: Loader) -> Ring:
    ring: Ring | None = owner.__dict__.get("_buffers")
    if ring is None:
        cuda = owner.device is not None and owner.device.type == "cuda"
        ring = Ring(owner.samples, owner.batch_size, pinned=cuda)
        owner.__dict__["_buffers"] = ring
    return ring


def as_batch(tensors: Mapping[str, Tensor]) -> Batch:
    """Return what `cubes.Samples.read` gave, as tensors, in the form of a batch."""
    small = ("place", "lonlat", "s1/track_of_date")
    return Batch(
        stored={
            k: v
            for k, v in tensors.items()
            if k not in small and not k.endswith(("/days", "/present"))
        },
        days={k.removesuffix("/days"): v for k, v in tensors.items() if k.endswith("/days")},
        present={k.removesuffix("/present"): v for k, v in tensors.items() if "/present" in k},
        track=tensors.get("s1/track_of_date"),
        place=tensors["place"],
        lonlat=tensors["lonlat"],
    )
