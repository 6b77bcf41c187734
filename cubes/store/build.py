"""Write one region: read step by step, encode as it goes, prove what was written.

What runs on a worker, in a thread or in a dask process. Peak memory is the steps in flight plus
at most `BUFFER_BYTES` of encoded chunks per region; beyond that they wait in the shards' own
half-written files.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cubes import physics
from cubes.store import disk, ledger, shards
from cubes.store.layout import ArrayLayout, Cells, Region, cells, classed, counted, region_arrays
from cubes.store.ledger import Build, Record
from cubes.types import CubeError, Plan

Array = npt.NDArray[Any]

BUFFER_BYTES = 128 * 2**20
"""Encoded bytes a region keeps in memory before it appends them to its files. A 1,024-px cube of
20 dates stays below it and touches each file once."""

SYNCS = 8
"""Objects completed at once: fsync is waiting, and a file system commits those that wait together.
32 objects of 2 MB on ext4: 0.46 s one after the other, 0.19 s eight at once."""


class Stopped(Exception):
    """The build was told to stop; nothing half-written is left."""


class Pixels(Protocol):
    """Where the stored numbers of a region's arrays come from."""

    def runs(self, region: Region) -> list[tuple[int, int]]:
        """Return the runs of steps that are best read at once, in order, covering the region."""
        ...

    def read(self, region: Region, run: tuple[int, int]) -> tuple[dict[str, Array], int, int]:
        """Return stored numbers by layer, source pixels decoded, and retries.

        Stored numbers have shape (steps of the run, channels, y, x).
        """
        ...


def _read_block(array: Any, step: int, geobox: Any, plan: Plan) -> tuple[Array, int, int]:
    """Read one step of one array; the only place from which a build touches a source."""
    from cubes.reading import read

    with read.counting() as counts:
        block = read.block(array, step, geobox, plan.access)
    return block, counts.pixels, counts.retries


def window(region: Region, array: ArrayLayout) -> tuple[slice, slice]:
    """Return the region's rows and columns of pixels in the cube."""
    height, width = array.patch
    return (
        slice(region.rows[0] * height, min(region.rows[1] * height, array.shape[-2])),
        slice(region.columns[0] * width, min(region.columns[1] * width, array.shape[-1])),
    )


@dataclass(kw_only=True, slots=True)
class PlanPixels:
    """Pixels of a plan: its assets, one call of `cubes.reading.read.block` per array and step."""

    plan: Plan
    arrays: dict[str, ArrayLayout]

    def runs(self, region: Region) -> list[tuple[int, int]]:
        """Return each step by itself."""
        return [(t, t + 1) for t in range(*region.steps)]

    def read(self, region: Region, run: tuple[int, int]) -> tuple[dict[str, Array], int, int]:
        """Return stored numbers of one step by layer, and source pixels and retries."""
        step = run[0]
        mine = region_arrays(self.arrays, region)
        out: dict[str, Array] = {}
        pixels = retries = 0
        for array in mine:
            rows, columns = window(region, array)
            children = [a for a in mine if a.layer.derived_from == array.name]
            if array.layer.derived_from:
                continue
            halo = self.plan.clear.dilate if children else 0
            box, inner = _padded(rows, columns, halo, array.shape)
            block, seen, again = _read_block(
                self.plan.array(array.name), step, self.plan.geobox[box], self.plan
            )
            pixels, retries = pixels + seen, retries + again
            out[array.name] = array.stored(np.ascontiguousarray(block[(..., *inner)]))[None]
            for child in children:
                out[child.name] = self._derive(child, block)[(..., *inner)][None]
        missing = [a.name for a in mine if a.name not in out]
        if missing:
            parent = self.arrays[missing[0]].layer.derived_from
            raise CubeError(
                f"layer {missing[0]!r} is derived from {parent!r}, which the plan lacks; "
                "add it to the layers asked for"
            )
        return out, pixels, retries

    def _derive(self, array: ArrayLayout, source: Array) -> Array:
        if array.layer.kind != "mask":
            raise CubeError(
                f"no rule to derive layer {array.name!r} from {array.layer.derived_from!r}"
            )
        return physics.clear(source, self.plan.clear).astype(array.layer.dtype)


def _padded(
    rows: slice, columns: slice, halo: int, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the window grown by `halo` within the cube, and where the window lies in it."""
    grown, inner = [], []
    for part, size in ((rows, shape[-2]), (columns, shape[-1])):
        start, stop = max(0, part.start - halo), min(size, part.stop + halo)
        grown.append(slice(start, stop))
        inner.append(slice(part.start - start, part.stop - start))
    return (grown[0], grown[1]), (inner[0], inner[1])


# ------------------------------------------------------------------------------- encoding a step


@dataclass(kw_only=True, slots=True)
class _Encoded:
    """One run of steps, encoded: layer -> per step, per patch (row-major) bytes, and counts."""

    chunks: dict[str, list[list[bytes | None]]]
    valid: dict[str, npt.NDArray[np.unsignedinteger[Any]]]
    pixels: int
    retries: int


def _encode_run(
    source: Pixels, arrays: list[ArrayLayout], region: Region, run: tuple[int, int], stop: Event
) -> _Encoded:
    if stop.is_set():
        raise Stopped
    stored, pixels, retries = source.read(region, run)
    out = _Encoded(chunks={}, valid={}, pixels=pixels, retries=retries)
    for array in arrays:
        steps, parts, by_class = [], cells(array), dict[str, Array]()
        counts = np.stack([np.zeros(parts.grid, parts.dtype)[parts.of(region)]] * (run[1] - run[0]))
        for number, step in enumerate(stored.pop(array.name)):
            if stop.is_set():
                raise Stopped
            if classed(array):
                for name, found in _by_class(step, (array, parts), region, counts[number]).items():
                    by_class.setdefault(name, np.zeros_like(counts))[number] = found
            steps.append(
                [_chunk(step, (array, parts), region, p, counts[number]) for p in region.patches]
            )
        out.chunks[array.name] = steps
        out.valid[array.name] = counts
        out.valid |= by_class
    return out


def _by_class(
    step: Array, laid: tuple[ArrayLayout, Cells], region: Region, blank: Array
) -> dict[str, Array]:
    """Return the pixels of each class in a step: ``name=code`` -> counts of cells."""
    array, parts = laid
    (height, width), (down, across) = array.patch, parts.per_patch
    out: dict[str, Array] = {}
    for row, column in ((p[0] - region.rows[0], p[1] - region.columns[0]) for p in region.patches):
        piece = step[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
        for code in np.unique(piece[physics.is_valid(piece, array.layer.nodata)]):
            counts = out.setdefault(f"{array.name}={int(code)}", np.zeros_like(blank))
            where = (
                slice(row * down, (row + 1) * down),
                slice(column * across, (column + 1) * across),
            )
            counts[where] = parts.count(piece == code)
    return out


def _chunk(
    step: Array,
    laid: tuple[ArrayLayout, Cells],
    region: Region,
    patch: tuple[int, int],
    counts: Array,
) -> bytes | None:
    """Return one patch of one step encoded, None where all nodata; count its valid pixels."""
    array, parts = laid
    height, width = array.patch
    row, column = patch[0] - region.rows[0], patch[1] - region.columns[0]
    piece = step[..., row * height : (row + 1) * height, column * width : (column + 1) * width]
    layer = array.layer
    good = piece if layer.kind == "mask" else physics.is_valid(piece, layer.nodata)
    down, across = parts.per_patch
    counts[row * down : (row + 1) * down, column * across : (column + 1) * across] = parts.count(
        good
    )
    if piece.shape[-2:] != (height, width):
        whole = np.full((*piece.shape[:-2], height, width), array.fill, piece.dtype)
        whole[..., : piece.shape[-2], : piece.shape[-1]] = piece
        piece = whole
    # As zarr-python: a chunk that is all fill value is not stored.
    if not good.any() and not physics.is_valid(piece, array.fill.item()).any():
        return None
    return shards.encode(piece, array.codec)


# -------------------------------------------------------------------------------- writing shards


@dataclass(kw_only=True, slots=True)
class _Object:
    """One object being written: chunks gathered in memory, or already in its half-written file."""

    build: Build
    path: Path
    partial: Path
    lengths: list[int | None] = field(default_factory=list)
    waiting: list[bytes] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0

    def add(self, chunk: bytes | None) -> int:
        """Take the next inner chunk; return the bytes now waiting in memory for it."""
        self.lengths.append(None if chunk is None else len(chunk))
        if chunk is None:
            return 0
        self.put(chunk)
        return len(chunk)

    def put(self, data: bytes) -> None:
        """Take bytes."""
        self.waiting.append(data)
        self.digest.update(data)
        self.size += len(data)

    def flush(self, *, sync: bool = False) -> None:
        """Append what waits to the half-written file."""
        ledger.still(self.build)
        self.partial.parent.mkdir(parents=True, exist_ok=True)
        with self.partial.open("ab") as file:
            file.writelines(self.waiting)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        self.waiting = []

    def finish(self, chunks: int | None) -> tuple[str, int] | None:
        """Complete the object (`chunks` per shard; None without shards); return hash and size."""
        if all(length is None for length in self.lengths):
            ledger.still(self.build)
            self.path.unlink(missing_ok=True)
            return None
        if chunks is not None:
            self.put(shards.build_index([*self.lengths, *[None] * (chunks - len(self.lengths))]))
        self.flush(sync=True)
        # a task outlives its writer: between the two, another run may have taken the store over
        ledger.still(self.build)
        self.partial.replace(self.path)
        return self.digest.hexdigest(), self.size


class _Writer:
    """The objects of one region, written together."""

    def __init__(self, build: Build, region: Region, arrays: list[ArrayLayout]) -> None:
        self.build, self.region, self.arrays = build, region, arrays
        self.store = build.store
        self.mark = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.open: dict[str, _Object] = {}
        self.waiting = 0
        self.done: dict[str, tuple[str, int]] = {}

    def add(self, run: tuple[int, int], encoded: _Encoded) -> None:
        """Take the chunks of one run of steps."""
        for array in self.arrays:
            for number, patches in enumerate(encoded.chunks.pop(array.name)):
                block = self.region.block if array.sharded else run[0] + number
                for (row, column), chunk in zip(self.region.patches, patches, strict=True):
                    key = array.key(block, row, column)
                    self.waiting += self._object(key).add(chunk)
                    if not array.sharded:
                        self._finish(key, None)
        if self.waiting > BUFFER_BYTES:
            for item in self.open.values():
                item.flush()
            self.waiting = 0

    def _object(self, key: str) -> _Object:
        if key not in self.open:
            path = disk.place(self.store, key)
            partial = path.with_name(f".{path.name}.{self.mark}{ledger.PARTIAL}")
            self.open[key] = _Object(build=self.build, path=path, partial=partial)
        return self.open[key]

    def _finish(self, key: str, chunks: int | None) -> None:
        proof = self.open[key].finish(chunks)
        del self.open[key]  # not before: `abandon` removes what did not finish
        if proof is not None:
            self.done[key] = proof

    def finish(self) -> dict[str, tuple[str, int]]:
        """Complete every object; return key -> hash and size of those that hold data."""
        per = {a.name: a.steps_per_shard for a in self.arrays}

        def one(key: str) -> tuple[str, tuple[str, int] | None]:
            return key, self.open[key].finish(per[key.split("/c/", maxsplit=1)[0]])

        with ThreadPoolExecutor(SYNCS, thread_name_prefix="cubes-sync") as pool:
            for key, proof in pool.map(one, list(self.open)):
                if proof is not None:
                    self.done[key] = proof
            list(pool.map(ledger.sync_folder, {(self.store / key).parent for key in self.done}))
        self.open.clear()
        return self.done

    def abandon(self) -> None:
        """Remove what is half-written."""
        for item in self.open.values():
            item.partial.unlink(missing_ok=True)


@dataclass(kw_only=True, slots=True)
class Crew:
    """What a region is worked with."""

    pool: Executor
    """Reads and encodes runs of steps."""
    ahead: int = 4
    """Runs in flight per region, waiting ones included: with what the pool works on, this bounds
    the memory."""
    stop: Event = field(default_factory=Event)
    """Set from elsewhere, ends the work between two chunks."""
    tick: Callable[[int, str], None] | None = None
    """Told the number of steps and the region after each run."""


def build_region(build: Build, region: Region, source: Pixels, crew: Crew) -> Record:
    """Write one region and its record; return the record.

    Parameters
    ----------
    build : Build
        The store.
    region : Region
        What to write.
    source : PlanPixels or TreePixels
        Where stored numbers come from.
    crew : Crew
        Threads that do it.

    Raises
    ------
    AssetReadError, OSError
        Reading failed for good; the disk is full. No object of the region is left half-written.
    Superseded
        Another run writes the store by now.
    Stopped
        The crew was told to stop.
    """
    began = time.monotonic()
    arrays = region_arrays(ledger.build_arrays(build), region)
    writer = _Writer(build, region, arrays)
    parts: list[_Encoded] = []
    try:
        for run, encoded in _in_order(source, arrays, region, crew):
            ledger.still(build)
            writer.add(run, encoded)
            parts.append(encoded)
            if crew.tick:
                crew.tick(run[1] - run[0], region.id)
        objects = writer.finish()
    except BaseException:
        writer.abandon()
        raise
    record = Record(
        region=region.id,
        plan_sha256=build.plan_sha256,
        objects=objects,
        valid={
            name: np.concatenate(
                # a class that a run of steps lacks counts nothing in it
                [p.valid.get(name, np.zeros_like(p.valid[a.name])) for p in parts]
            )
            for a in arrays
            for name in counted({n for p in parts for n in p.valid}, a.name)
        },
        pixels_read=sum(p.pixels for p in parts),
        retries=sum(p.retries for p in parts),
        seconds=round(time.monotonic() - began, 3),
    )
    ledger.save_record(build, record)
    return record


def _in_order(
    source: Pixels, arrays: list[ArrayLayout], region: Region, crew: Crew
) -> Iterator[tuple[tuple[int, int], _Encoded]]:
    """Yield encoded runs in time order, at most ``crew.ahead`` of them in flight."""
    runs = deque(source.runs(region))
    flying: deque[tuple[tuple[int, int], Future[_Encoded]]] = deque()
    try:
        while runs or flying:
            while runs and len(flying) < crew.ahead:
                run = runs.popleft()
                job = crew.pool.submit(_encode_run, source, arrays, region, run, crew.stop)
                flying.append((run, job))
            run, future = flying.popleft()
            yield run, future.result()
    finally:
        for _, future in flying:
            future.cancel()
