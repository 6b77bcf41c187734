"""Decoding in forkserver processes, through a standard ``torch.utils.data.DataLoader``.

Workers decode into buffers that they share with this process, and send back only the number of
the buffer. Sending tensors would allocate, fault in and copy 21 MB of shared memory a sample.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from cubes.sampling.sampleset import Samples
from cubes.types import CubeError
from deepsentinel.loading.ring import Lease, Ring

Order = Iterable[tuple[np.ndarray, int | None]]
"""For each batch the positions of its samples, and the epoch their dates are drawn for."""


class Shared:
    """Samples as worker processes get them: one copy in shared memory, whatever their number.

    The columns of 250,000 samples are 18 MB. A torch pickle between processes sends them as a file
    descriptor and 3 KB; any other pickle holds the bytes.
    """

    def __init__(self, samples: Samples) -> None:
        found: list[pickle.PickleBuffer] = []
        head = pickle.dumps(samples, protocol=5, buffer_callback=found.append)
        parts = [memoryview(head), *(buffer.raw() for buffer in found)]
        ends = np.cumsum([0, *(-(-part.nbytes // 64) * 64 for part in parts)]).tolist()
        places = [(start, part.nbytes) for start, part in zip(ends, parts, strict=False)]
        # the places of all parts too: a plan of many stores has many small arrays
        parts.append(memoryview(pickle.dumps(places)))
        self._last = ends[-1], parts[-1].nbytes
        # beside the bytes: credentials go to a process that is being started, into no other pickle
        self._storage = [store.storage for store in samples.stores]
        self._bytes = torch.empty(sum(self._last), dtype=torch.uint8)
        self._bytes.share_memory_()  # type: ignore[no-untyped-call]
        raw = self._bytes.numpy().data
        for (start, size), part in zip([*places, self._last], parts, strict=True):
            raw[start : start + size] = part

    def samples(self) -> Samples:
        """Return the samples; their columns are views of the shared ones, read-only."""
        raw = self._bytes.numpy().data.toreadonly()

        def part(start: int, size: int) -> memoryview:
            return raw[start : start + size]

        head, *columns = [part(*place) for place in pickle.loads(part(*self._last))]
        samples: Samples = pickle.loads(head, buffers=columns)
        pairs = zip(samples.stores, self._storage, strict=True)
        samples.stores = tuple(replace(store, storage=how) for store, how in pairs)
        return samples


class SampleDataset(Dataset[dict[str, Tensor]]):
    """Samples as a map-style dataset for a ``DataLoader`` or training loop of one's own.

    Items are dicts of tensors, as `cubes.Samples.read` names them, without the sample axis; the
    default collation of torch stacks them. Whole batches (``__getitems__``) share chunks.
    """

    def __init__(self, samples: Samples, *, epoch: int | None = None) -> None:
        self.samples, self.epoch = samples, epoch
        self._shared: tuple[Samples, Shared] | None = None
        self._process = os.getpid()
        self._guarded = False

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """Return one sample."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        """Return several samples, decoded together."""
        self._not_forked()
        if not self._guarded and get_worker_info() is not None:
            self._guarded = True
            _end_with_parent()
        read = self.samples.read(rows, epoch=self.epoch)
        tensors = {k: torch.from_numpy(v) for k, v in read.items()}
        return [{k: v[i] for k, v in tensors.items()} for i in range(len(rows))]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a forkserver or spawned process needs."""
        if self._shared is None or self._shared[0] is not self.samples:
            self._shared = self.samples, Shared(self.samples)
        return {"shared": self._shared[1], "epoch": self.epoch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.samples, self.epoch = state["shared"].samples(), state["epoch"]
        self._shared = self.samples, state["shared"]
        self._process = os.getpid()
        self._guarded = False

    def _not_forked(self) -> None:
        if os.getpid() != self._process:
            raise CubeError(
                "this worker was forked: it inherits locks of threads that no longer run, and "
                "can hang; use DataLoader(..., multiprocessing_context='forkserver')"
            )


class _Decoder(Dataset[int]):
    """What runs in a worker: fills the shared buffer that it is told."""

    def __init__(self, shared: Shared, slots: list[Tensor], batch_size: int, threads: int):
        self.shared, self.slots, self.threads = shared, slots, threads
        self.batch_size = batch_size

    @cached_property
    def samples(self) -> Samples:
        """Made in the worker, when it gets its first batch."""
        return self.shared.samples()

    def __getitems__(self, key: tuple[int, np.ndarray, int | None]) -> Any:
        """Return None when the buffer `key[0]` is filled, or new tensors where it is -1."""
        slot, rows, epoch = key
        if slot < 0:
            read = self.samples.read(rows, threads=self.threads, epoch=epoch)
            return {k: torch.from_numpy(v) for k, v in read.items()}
        views = self.__dict__.setdefault("views", Ring(self.samples, self.batch_size)).views
        arrays = views(self.slots[slot].numpy(), rows)
        self.samples.read(rows, arrays, threads=self.threads, epoch=epoch)
        return None


class Workers:
    """Worker processes that live as long as their loader, one epoch after another."""

    def __init__(
        self, samples: Samples, batch_size: int, workers: int, how: tuple[str, int, int, float]
    ) -> None:
        context, prefetch, threads, timeout = how
        self._ring = Ring(samples, batch_size)
        slots = workers * prefetch + 2
        _check_shared(slots * self._ring.size)
        shared = [torch.empty(self._ring.size, dtype=torch.uint8) for _ in range(slots)]
        for slot in shared:
            slot.share_memory_()  # type: ignore[no-untyped-call]
        self._ring.free.extend(s.numpy() for s in shared)
        self._number = {s.data_ptr(): i for i, s in enumerate(shared)}
        _preload()
        self._order: Order = ()
        self._lent: list[Lease | None] = []
        self._loader: DataLoader[int] = DataLoader(
            _Decoder(Shared(samples), shared, batch_size, max(1, threads // workers)),
            batch_sampler=_Sampler(self._keys),
            num_workers=workers,
            collate_fn=_as_is,
            worker_init_fn=_end_with_parent,
            multiprocessing_context=context,
            prefetch_factor=prefetch,
            persistent_workers=True,
            # No timeout of torch's: with one it does not look whether its workers are alive, and
            # a killed worker is noticed only when it has passed; without, after five seconds.
        )
        self._timeout = timeout
        # Left to the interpreter's exit, workers outlive their queues and it warns of leaks.
        weakref.finalize(self, _end, self._loader)

    def close(self) -> None:
        """End the processes."""
        _end(self._loader)

    def _keys(self) -> Iterator[tuple[int, np.ndarray, int | None]]:
        """Yield what each batch is; runs in this process, when a worker is given work."""
        # Workers have finished what an interrupted pass left them: the DataLoader saw to it.
        self._lent = []
        for rows, epoch in self._order:
            lease = self._ring.take(rows) if self._ring.free else None
            self._lent.append(lease)
            number = -1 if lease is None else self._number[lease.slot.ctypes.data]
            yield number, rows, epoch

    def batches(self, order: Order) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of each batch of `order`.

        Raises
        ------
        CubeError
            A worker failed, was killed, or did not answer in time.
        """
        self._order = order
        results = iter(self._loader)
        number = 0
        while True:
            try:
                with _deadline(self._loader, self._timeout):
                    filled = next(results)
            except StopIteration:
                return
            except CubeError:
                raise
            except RuntimeError as error:
                raise CubeError(
                    f"a worker process of the loader ended or did not answer: {error}"
                ) from error
            lease, self._lent[number] = self._lent[number], None
            number += 1
            if lease is None:
                yield filled
            else:
                tensors = lease.tensors()
                del lease
                yield tensors
                del tensors


def _end_with_parent(_worker: int = 0) -> None:
    """Let this worker end when the process that started it does, however that ends.

    torch asks whether the parent of a worker has changed; that is the fork server, and it lives
    as long as any worker: after a kill of the training process both stayed for good, with all
    the shared memory.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()  # type: ignore[union-attr]
        os._exit(1)

    if parent is not None:
        threading.Thread(target=watch, name="cubes-parent", daemon=True).start()


def _preload() -> None:
    """Let the fork server import what workers need once, unless its modules were chosen already.

    A worker then starts in 0.4 s of processor time instead of 2.5 and has 42 MB of its own
    instead of 226: torch and pandas lie in pages that all of them share.
    """
    if forkserver._forkserver._preload_modules == ["__main__"]:  # type: ignore[attr-defined]
        forkserver.set_forkserver_preload(["__main__", __name__])


class _Sampler:
    """Iterable over the keys of the pass at hand."""

    def __init__(self, keys: Callable[[], Iterator[Any]]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[Any]:
        return self._keys()


@contextmanager
def _deadline(loader: DataLoader[int], seconds: float) -> Iterator[None]:
    """End the workers if what is inside takes longer; torch then raises, within five seconds."""

    def late() -> None:
        for process in getattr(loader._iterator, "_workers", ()):
            process.terminate()

    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()  # 0.1 ms; a batch takes ten times as long at least
    try:
        yield
    finally:
        timer.cancel()


def _end(loader: DataLoader[int]) -> None:
    running = loader._iterator
    if running is not None:
        running._shutdown_workers()  # type: ignore[attr-defined]
        loader._iterator = None


def _as_is(value: Any) -> Any:
    return value


def _check_shared(needed: int) -> None:
    """Raise where shared memory is too small: writing past its end kills the worker."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CubeError(
            f"the workers' buffers need {needed / 2**20:,.0f} MiB of shared memory and {folder} "
            f"has {free / 2**20:,.0f}: use threads (workers=0), a smaller batch_size or prefetch, "
            "or give the container more (docker: --shm-size)"
        )
