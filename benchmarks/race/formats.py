"""Rivals that store samples: litdata, webdataset, MosaicML streaming (MDS).

Each in three layouts, uncompressed and compressed. *Twelve dates*: a sample as it is delivered,
dates chosen when it was written (every epoch has the same). *A record per date* and *all dates in a
record* choose when reading, as ours does. Compressed by what the format's documentation names, or
with the Blosc frames of our own store in the records (``Blosc``), decoded by the workers.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.race import loading
from benchmarks.race.field import Batches, Course, Rival, files, fresh, pack
from benchmarks.race.loading import key

LAYOUTS = {
    False: ("12 dates", "record per date", "all dates"),
    True: ("12 dates, zstd", "12 dates, Blosc", "record per date, Blosc"),
}
"""Compressed or not -> three layouts."""

CHUNK = 64 * 2**20
"""Bytes of a chunk or shard file: what litdata and MDS take by themselves."""

Records = Iterator[tuple[int, dict[str, Any]]]


def records(course: Course, layout: str) -> Records:
    """Yield the records of a layout, numbered, fields under names without slashes."""
    blosc = "Blosc" in layout
    form: Callable[[np.ndarray], Any] = pack if blosc else np.ascontiguousarray
    if layout.startswith("12 dates"):
        for i in range(len(course.wanted)):
            record = {key(n): form(course.truth[n][i]) for n in course.pixels}
            small = {key(k): v for k, v in course.wanted[i].small.items()}
            yield i, record | small
        return
    dates = max(len(p) for p in course.pixels.values())
    for patch in range(course.patches):
        wanted = course.first(patch)
        whole = {n: course.window(wanted, n) for n in course.pixels}
        if layout.startswith("all dates"):
            yield patch, {key(n): form(whole[n]) for n in whole}
            continue
        for clock, steps in (("s1", dates), ("s2", dates), ("static", 1)):
            layers = [n for n, c in course.clocks.items() if c == clock]
            # formats with fixed columns take every field, of one kind, in every record
            for step in range(steps):
                at = slice(None) if clock == "static" else slice(step, step + 1)
                record = {key(n): form(whole[n][at]) for n in layers}
                others = {key(n): _none(course, n, blosc) for n in whole if n not in layers}
                yield loading.number(patch, clock, step, dates), record | others


def _none(course: Course, name: str, blosc: bool) -> np.ndarray:
    if blosc:
        return np.zeros(1, np.uint8)
    return np.zeros((1, 1, 1, 1), course.pixels[name].dtype)


def pieces(course: Course, start: Callable[[], Any], layout: str) -> loading.Pieces:
    """Return the map-style data set over records that `start` opens."""
    dates = max(len(p) for p in course.pixels.values()) if "per date" in layout else None
    return loading.Pieces(start, course.wanted, course.shapes, course.clocks, dates)


def rival(course: Course, name: str, layout: str, compressed: bool, path: Path) -> Rival:
    """Return an entry that has yet to get its `start`."""
    twelve = layout.startswith("12")
    return Rival(
        name=name,
        layout=layout,
        compressed=compressed,
        start=list,
        path=path,
        stored=len(course.wanted) if twelve else course.patches,
        fresh=not twelve,
        n=len(course.wanted),
    )


def named(course: Course, batches: Batches) -> Batches:
    """Yield batches under our names."""
    ours = {key(n): n for n in course.truth}
    return (loading.names(b, ours) for b in batches)


# ------------------------------------------------------------------------------------- litdata


def litdata(course: Course, folder: Path, layout: str, compressed: bool, workers: int) -> Rival:
    """Return litdata: chunks written by its writer, StreamingDataset and StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.cache import Cache

    path = folder / "litdata"
    if not (path / "index.json").exists():
        how = {"compression": "zstd", "compression_level": "sample"} if "zstd" in layout else {}
        cache = Cache(str(fresh(path)), chunk_bytes=CHUNK, **how)
        for i, record in records(course, layout):
            cache[i] = record
        cache.done()
        cache.merge(1)
    entry = rival(course, "litdata", layout, compressed, path)
    if not layout.startswith("12"):
        data: Any = pieces(course, partial(open_litdata, str(path)), layout)
        made = loading.loader(data, course.where.batch, workers)
        return replace(entry, start=lambda: iter(made))
    transform = loading.Unpacked(course.shapes) if "Blosc" in layout else None
    data = StreamingDataset(str(path), shuffle=False, drop_last=False, transform=transform)
    made = loading.loader(data, course.where.batch, workers, kind=StreamingDataLoader)
    return replace(entry, start=lambda: named(course, made))


def open_litdata(path: str) -> Callable[[int], Mapping[str, Any]]:
    """Return record number -> fields."""
    from litdata import StreamingDataset

    data = StreamingDataset(path, shuffle=False)
    return lambda i: data[i]


# ---------------------------------------------------------------------------------- webdataset


def webdataset(course: Course, folder: Path, layout: str, compressed: bool, workers: int) -> Rival:
    """Return webdataset: tar shards, decoded by handlers, batched and collated in the workers.

    A tar file is read from end to end, so "record per date" does not exist: its place takes "all
    dates", each field of each date a member of its own, of which only those wanted are decoded.
    """
    import webdataset as wds

    path = folder / "webdataset"
    own = "zstd" in layout
    if own:
        layout = layout.replace("zstd", "gzip")  # what its documentation has
    elif "per date" in layout:
        layout = layout.replace("record per date", "all dates, member per date")
    suffix = ".tar.gz" if own else ".tar"
    split = "member per date" in layout
    if not path.exists():
        fresh(path)
        store = layout.replace(", member per date", "")
        found = list(records(course, store.replace("gzip", "Own")))
        each = max(1, len(found) // 4) if layout.startswith("12") else 1
        for s in range(0, len(found), each):
            with wds.TarWriter(f"{path}/{s // each:04d}{suffix}", compress=own) as sink:
                for i, record in found[s : s + each]:
                    sink.write({"__key__": f"{i:06d}", **_members(record, split, course)})
    entry = rival(course, "webdataset", layout, compressed, path)
    urls = list(files(path))
    if not layout.startswith("12"):
        entry = replace(entry, n=min(8, entry.n))  # reads all dates of a patch for every sample
        urls *= entry.n // len(urls)
    finish: Callable[..., Any] = _Members(course.shapes)
    if not layout.startswith("12"):
        finish = _Chosen(course.shapes, course.wanted[: entry.n], split)
    data = wds.WebDataset(urls, shardshuffle=False, empty_check=False)
    batched = data.compose(finish).batched(course.where.batch)
    made = loading.loader(batched, None, workers, kind=wds.WebLoader)
    return replace(entry, start=lambda: named(course, made))


def _members(record: Mapping[str, Any], split: bool, course: Course) -> dict[str, Any]:
    ext = {k: "bin" if v.ndim == 1 and v.dtype == np.uint8 else "npy" for k, v in record.items()}
    if not split:
        return {f"{k}.{ext[k]}": _bytes(v, ext[k]) for k, v in record.items()}
    out = {}
    for name, pixels in course.pixels.items():
        for t in range(len(pixels)):
            part = _step(record[key(name)], t)
            out[f"{key(name)}.{t:03d}.{ext[key(name)]}"] = _bytes(part, ext[key(name)])
    return out


def _step(value: np.ndarray, t: int) -> np.ndarray:
    if value.ndim > 1:
        return np.ascontiguousarray(value[t : t + 1])
    head = int(value[:8].view(np.int64)[0])
    sizes = value[8 : 8 * (head + 1)].view(np.int64)
    start = 8 * (head + 1) + int(sizes[:t].sum())
    one = np.array([1, sizes[t]], np.int64).view(np.uint8)
    return np.concatenate([one, value[start : start + int(sizes[t])]])


def _bytes(value: np.ndarray, ext: str) -> bytes:
    from webdataset.writer import numpy_dumps

    return bytes(value.tobytes() if ext == "bin" else numpy_dumps(value))


def _field(name: str, data: bytes) -> Any:
    from webdataset.autodecode import npy_loads

    return npy_loads(data) if name.endswith(".npy") else data


class _Members:
    """Decodes the members of a sample of twelve dates."""

    def __init__(self, shapes: loading.Shapes) -> None:
        self.finish = loading.Unpacked(shapes)

    def __call__(self, source: Any) -> Iterator[dict[str, Any]]:
        for sample in source:
            found = {k.rpartition(".")[0]: _field(k, v) for k, v in sample.items() if k[0] != "_"}
            yield self.finish(found)


class _Chosen:
    """Decodes, of a record of all dates, those that the next sample of its patch wants.

    A pass names every shard once for each sample of its patch, and the workers take the list of
    shards in strides; so the samples of a patch are taken in the order of the visits.
    """

    def __init__(self, shapes: loading.Shapes, wanted: Sequence[Any], split: bool) -> None:
        self.shapes, self.wanted, self.split = shapes, wanted, split

    def __call__(self, source: Any) -> Iterator[dict[str, Any]]:
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        mine = list(self.wanted)[(info.id if info else 0) :: (info.num_workers if info else 1)]
        for sample, wanted in zip(source, mine, strict=True):
            yield {key(k): v for k, v in self.one(sample, wanted).items()}

    def one(self, sample: Mapping[str, bytes], wanted: Any) -> dict[str, Any]:
        out = {n: np.empty(*s) for n, s in self.shapes.items()}
        ends = {k.rpartition(".")[0]: k for k in sample if k[0] != "_"}
        for name, target in out.items():
            if not self.split:
                member = ends[key(name)]
                loading.fill(_field(member, sample[member]), target, wanted.steps[name])
                continue
            for t, step in enumerate(wanted.steps[name]):
                member = ends[f"{key(name)}.{step:03d}"]
                loading.fill(_field(member, sample[member]), target[t : t + 1], None)
        return out | dict(wanted.small)


# ------------------------------------------------------------------------------------------ MDS


def base() -> Any:
    """Return MosaicML's package `streaming.base`.

    The package above it imports torchvision for data sets of photographs, unconditionally, and
    there is no build of that for a torch without CUDA; what is wanted here does not use it. So the
    submodule is loaded without the imports of the package above. Workers do the same on unpickling.
    """
    if "streaming" not in sys.modules:
        try:
            importlib.import_module("streaming")
        except (ImportError, RuntimeError):
            for name in [n for n in sys.modules if n.partition(".")[0] == "streaming"]:
                del sys.modules[name]
            package = types.ModuleType("streaming")
            package.__path__ = [str(distribution("mosaicml-streaming").locate_file("streaming"))]
            sys.modules["streaming"] = package
    return importlib.import_module("streaming.base")


def mds(course: Course, folder: Path, layout: str, compressed: bool, workers: int) -> Rival:
    """Return MosaicML streaming: MDS shards, StreamingDataset and StreamingDataLoader.

    Compressed shards are expanded into a cache on the disk; it may hold some of them, as it would
    of a data set larger than the disk, or compression would save nothing. The workers are forked,
    which is its default: a fresh process could not import the package (see `base`).
    """
    streaming = base()
    path, own = folder / "mds", "zstd" in layout
    if not (path / "index.json").exists():
        found = records(course, layout)
        columns, writer = {}, None
        for _, record in found:
            if writer is None:
                columns = dict.fromkeys(record, "ndarray")
                how = {"compression": "zstd:1"} if own else {}
                writer = streaming.MDSWriter(
                    out=str(fresh(path)), columns=columns, size_limit=CHUNK // (1 + own), **how
                )
            writer.write({k: _number(v) for k, v in record.items()})
        assert writer is not None
        writer.finish()
    entry = rival(course, "MDS", layout, compressed, path)
    how = {"local": str(path)}
    if own:
        cache = fresh(folder / "mds-cache")
        how = {"remote": str(path), "local": str(cache), "cache_limit": 3 * CHUNK}
    if not layout.startswith("12"):
        data: Any = pieces(course, partial(open_mds, str(path), course.where.batch), layout)
        # opened here, before the fork: two processes would not agree on its shared memory
        data._get = data.start()
        made = loading.loader(data, course.where.batch, workers, **_forked(workers))
        return replace(entry, start=lambda: iter(made))
    kind = _finished(streaming.StreamingDataset, loading.Unpacked(course.shapes))
    data = kind(**how, shuffle=False, batch_size=course.where.batch)
    loader = streaming.StreamingDataLoader
    made = loading.loader(data, course.where.batch, workers, kind=loader, **_forked(workers))
    return replace(entry, start=lambda: named(course, made))


def _number(value: np.ndarray) -> np.ndarray:
    return value.view(np.int8) if value.dtype == bool else value  # MDS has no bool


def _forked(workers: int) -> dict[str, Any]:
    return {"multiprocessing_context": "fork"} if workers else {}


def _finished(kind: Any, finish: Callable[[Any], Any]) -> Any:
    """Return the data set with a call on every sample, as its documentation has transforms."""

    class Finished(kind):  # type: ignore[misc]
        def get_item(self, at: int, retry: int = 7) -> Any:
            return finish(super().get_item(at, retry))

    return Finished


def open_mds(path: str, batch: int) -> Callable[[int], Mapping[str, Any]]:
    """Return record number -> fields."""
    data = base().StreamingDataset(local=path, shuffle=False, batch_size=batch)
    return lambda i: data[i]  # type: ignore[no-any-return]


FORMATS = {"litdata": litdata, "webdataset": webdataset, "MDS": mds}
