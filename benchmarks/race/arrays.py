"""Rivals that read slices of arrays into the batch buffer: TensorStore, zarrs, zarr-python, files.

The three layouts are our store as it is, the same chunks without shards, and the same chunks
without compression; files have one `.npy` per patch and layer, or per date, or one for all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import cubes
from benchmarks import stream
from benchmarks.race.field import CORES, Arrays, Course, Rival, Wanted, fresh
from cubes.types import Layout

Read = Callable[[str, Wanted, np.ndarray], None]
"""(layer, sample, target (t, channel, y, x)): fill the target."""


def batches(
    course: Course, read: Read, n: int, threads: int = CORES
) -> Iterator[Mapping[str, Any]]:
    """Yield batches in one reused buffer, filled by threads that take a layer of a sample each."""
    import torch

    size = course.where.batch
    out = course.where.samples.empty(size)
    tensors = {k: torch.from_numpy(v) for k, v in out.items()}
    for start in range(0, n, size):
        jobs = []
        for i, wanted in enumerate(course.wanted[start : start + size]):
            for k, v in wanted.small.items():
                out[k][i] = v
            jobs += [partial(read, name, wanted, out[name][i]) for name in course.pixels]
        share(jobs, threads)
        yield tensors


def share(jobs: Sequence[Callable[[], None]], threads: int) -> None:
    """Run calls in threads; the first error is raised here."""
    queue, errors = iter(list(jobs)), []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                job = next(queue, None)
            if job is None or errors:
                return
            try:
                job()
            except BaseException as error:
                errors.append(error)

    crew = [threading.Thread(target=work) for _ in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    if errors:
        raise errors[0]


def entry(course: Course, name: str, layout: str, path: Path, read: Read, **how: Any) -> Rival:
    """Return a rival over a folder with all dates."""
    n = how.pop("n", len(course.wanted))
    threads = how.pop("threads", CORES)
    return Rival(
        name=name,
        layout=layout,
        path=path,
        stored=course.patches,
        start=lambda: batches(course, read, n, threads),
        n=n,
        **how,
    )


# ----------------------------------------------------------------------------------- Zarr


ZARR = ("our store", "without shards", "uncompressed")


def store(course: Course, folder: Path, layout: str) -> Path:
    """Return the store in one of the three layouts, written from ours if it is not there."""
    if layout == ZARR[0]:
        return course.where.path
    path = folder / f"{layout.replace(' ', '-')}.zarr"
    if not path.exists():
        how: dict[str, Any] = {"shards": False} if layout == ZARR[1] else {"codec": "none"}
        cubes.write(cubes.open(course.where.path), path, layout=Layout(patch=course.size, **how))
    return path


def zarr(course: Course, folder: Path, layout: str, pipeline: str, way: str) -> Rival:
    """Return zarr-python or zarrs: a step at a time, or all steps of a layer in one selection."""
    import zarr as library

    path, size = store(course, folder, layout), course.size
    with library.config.set({"codec_pipeline.path": pipeline}):
        arrays = {n: library.open_array(path / n, mode="r") for n in course.pixels}

    def slices(name: str, wanted: Wanted, target: np.ndarray) -> None:
        part = (slice(wanted.y, wanted.y + size), slice(wanted.x, wanted.x + size))
        for t, step in enumerate(wanted.steps[name]):
            target[t] = arrays[name][(step, ..., *part)]

    def selection(name: str, wanted: Wanted, target: np.ndarray) -> None:
        part = (slice(wanted.y, wanted.y + size), slice(wanted.x, wanted.x + size))
        steps = list(wanted.steps[name])
        array = arrays[name]
        every = (slice(None),) * (array.ndim - 3)  # the channels, where it has them
        target[...] = array.oindex[(steps, *every, *part)].reshape(target.shape)

    name = "zarrs" if pipeline == stream.ZARRS else "zarr-python"
    n = min(len(course.wanted), 8)
    threads = CORES if "threads" in way else 1
    read = selection if "selection" in way else slices
    return entry(
        course, name, layout, path, read, compressed=layout != ZARR[2], n=n,
        threads=threads,
    )  # fmt: skip


def tensorstore(course: Course, folder: Path, layout: str) -> Rival:
    """Return TensorStore: all reads of a sample in flight, copied by its own two threads."""
    import tensorstore as ts

    path, size = store(course, folder, layout), course.size
    limit = {"limit": CORES}
    context = ts.Context({"data_copy_concurrency": limit, "file_io_concurrency": limit})
    arrays = {
        n: ts.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / n)}},
            context=context,
            open=True,
            read=True,
        ).result()
        for n in course.pixels
    }

    def start() -> Iterator[Mapping[str, Any]]:
        import torch

        out = course.where.samples.empty(course.where.batch)
        tensors = {k: torch.from_numpy(v) for k, v in out.items()}
        for first in range(0, len(course.wanted), course.where.batch):
            flying = []
            for i, wanted in enumerate(course.wanted[first : first + course.where.batch]):
                for k, v in wanted.small.items():
                    out[k][i] = v
                part = (slice(wanted.y, wanted.y + size), slice(wanted.x, wanted.x + size))
                for name, array in arrays.items():
                    for t, step in enumerate(wanted.steps[name]):
                        source = array[(step, ..., *part)]
                        target = ts.array(out[name][i, t].reshape(source.shape), copy=False)
                        flying.append(target.write(source))
            for future in flying:
                future.result()
            yield tensors

    return Rival(
        name="TensorStore", layout=layout, compressed=layout != ZARR[2], path=path,
        stored=course.patches, start=start, n=len(course.wanted),
    )  # fmt: skip


# ---------------------------------------------------------------------------------- plain files


PLAIN = ("array per patch, mapped", "array per patch, read", "file per date, read")


def plain(course: Course, folder: Path, layout: str) -> Rival:
    """Return uncompressed files: mapped and copied, or read straight into the batch buffer."""
    per_date = layout == PLAIN[2]
    path = folder / ("npy-dates" if per_date else "npy")
    if not path.exists():
        fresh(path)
        for patch in range(course.patches):
            for name in course.pixels:
                whole = np.ascontiguousarray(course.window(course.first(patch), name))
                stem = f"{patch}-{name.replace('/', '_')}"
                if per_date:
                    for t, part in enumerate(whole):
                        np.save(path / f"{stem}-{t:03d}.npy", part)
                else:
                    np.save(path / f"{stem}.npy", whole)
    maps: Arrays = {}
    if not per_date:
        maps = {f.stem: np.load(f, mmap_mode="r") for f in sorted(path.glob("*.npy"))}

    def mapped(name: str, wanted: Wanted, target: np.ndarray) -> None:
        source = maps[f"{wanted.patch}-{name.replace('/', '_')}"]
        for t, step in enumerate(wanted.steps[name]):
            np.copyto(target[t], source[step])

    handles: dict[str, int] = {}

    def read(name: str, wanted: Wanted, target: np.ndarray) -> None:
        stem = f"{wanted.patch}-{name.replace('/', '_')}"
        for t, step in enumerate(wanted.steps[name]):
            file, at = (f"{stem}-{step:03d}", 0) if per_date else (stem, step)
            if file not in handles:
                handles[file] = os.open(path / f"{file}.npy", os.O_RDONLY)
            head = os.fstat(handles[file]).st_size - target[t].nbytes * (
                1 if per_date else course.pixels[name].shape[0]
            )
            got = os.preadv(handles[file], [target[t].reshape(-1).view(np.uint8)],
                            head + at * target[t].nbytes)  # fmt: skip
            assert got == target[t].nbytes

    how = mapped if layout == PLAIN[0] else read
    return entry(course, "plain .npy files", layout, path, how, compressed=False)


def memcpy(course: Course) -> Rival:
    """Return copies of arrays that are in memory already: no file, no codec."""
    parts = {
        (patch, name): np.ascontiguousarray(course.window(course.first(patch), name))
        for patch in range(course.patches)
        for name in course.pixels
    }

    def copy(name: str, wanted: Wanted, target: np.ndarray) -> None:
        for t, step in enumerate(wanted.steps[name]):
            np.copyto(target[t], parts[wanted.patch, name][step])

    n = len(course.wanted)
    return Rival(
        name="memcpy", layout="from memory", compressed=None, n=n,
        start=lambda: batches(course, copy, n),
    )  # fmt: skip
