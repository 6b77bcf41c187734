"""Preallocated buffers that batches are decoded into, lent out and taken back by themselves."""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

import numpy as np
import torch

from cubes.sampling.sampleset import Samples


class Lease:
    """Buffers lent to one batch: they return to the ring when its last tensor is gone."""

    def __init__(self, ring: Ring, slot: np.ndarray, rows: np.ndarray) -> None:
        self._ring, self.slot = ring, slot
        owner = _Owner(slot)
        weakref.finalize(owner, ring.free.append, slot).atexit = False
        raw = np.asarray(owner)
        self.arrays = ring.views(raw, rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the buffers as tensors (no copy)."""
        return {k: torch.from_numpy(v) for k, v in self.arrays.items()}


class _Owner:
    """What every view of a slot keeps alive: NumPy follows views to the object that lent memory."""

    def __init__(self, slot: np.ndarray) -> None:
        self.__array_interface__ = slot.__array_interface__
        self._slot = slot


class Ring:
    """Preallocated buffers of one batch each, reused as batches are dropped.

    Fresh memory for each batch would cost a page fault per 4 KiB: 21 MB a sample took longer to
    fault in than to decode. A caller who keeps batches gets new buffers and memory grows by them.
    """

    def __init__(self, samples: Samples, batch_size: int, *, pinned: bool = False) -> None:
        self._samples, self.spec = samples, samples.spec()
        self.batch_size, self.pinned = batch_size, pinned
        self.free: deque[np.ndarray] = deque()
        self.size = sum(_padded(s, d, batch_size) for s, d in self.spec.values())

    def take(self, rows: np.ndarray) -> Lease:
        """Return buffers for the batch of the samples at `rows`."""
        try:
            slot = self.free.popleft()
        except IndexError:
            if self.pinned:
                slot = torch.empty(self.size, dtype=torch.uint8, pin_memory=True).numpy()
            else:  # NumPy asks for huge pages, torch does not: fewer TLB misses while decoding
                slot = np.empty(self.size, np.uint8)
        return Lease(self, slot, rows)

    def views(self, raw: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the named arrays that lie in a slot, for the samples at `rows`."""
        out, start, n = {}, 0, len(rows)
        bucketed = self._samples.window.bucket is not None
        spec = self._samples.spec(rows) if bucketed else self.spec
        for name, (shape, dtype) in spec.items():
            size = n * int(np.prod(shape)) * dtype.itemsize
            out[name] = raw[start : start + size].view(dtype).reshape(n, *shape)
            start += _padded(shape, dtype, self.batch_size)
        return out


def _padded(shape: tuple[int, ...], dtype: np.dtype[Any], n: int) -> int:
    """Return the bytes of an array, rounded up to 64 (cache line; widest vector load)."""
    return -(-n * int(np.prod(shape)) * dtype.itemsize // 64) * 64
