"""Samples per second into a batch buffer: ours, xbatcher, zarr-python, zarrs, and the codec alone.

Everyone delivers the same samples of the same store: 12 of 60 or more dates of each sensor, S2 ten
bands uint16, SCL and clear uint8, S1 and coherence two int16 channels each, incidence per track,
256 px. Direct Zarr slices and ours land in the same preallocated batch buffer; xbatcher returns
what it returns. The limit is Blosc alone: the same chunks, already in memory, decoded by the same
number of threads into reused buffers of one chunk each (they stay in the cache; a batch does
not), without checksum. All in one process and in turns; ratios are medians of paired runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.xr import xr_coords

import cubes
from benchmarks import common
from cubes import physics, registry
from cubes.sampling import stored
from cubes.sampling.sampleset import Samples
from cubes.types import Layout, Window

LAYERS = (
    "s1/backscatter", "s1/incidence", "insar/coherence", "s2/reflectance", "s2/scl", "s2/clear",
)  # fmt: skip
FULL = {"edge": 1024, "dates": 64, "size": 256}
QUICK = {"edge": 128, "dates": 16, "size": 64}


# ---------------------------------------------------------------------------------------- data


def store(folder: Path, *, edge: int, dates: int, size: int) -> Path:
    """Return a sealed store of noise over smooth fields, written once.

    Sixteen-bit numbers keep 0.7 of their bytes under LZ4 and bitshuffle; real Sentinel-2 bands
    keep 0.66 to 0.83 and backscatter 0.74. Zeros would flatter everyone.
    """
    import dask.array as da

    path = folder / f"stream-{edge}-{dates}-{size}.zarr"
    if (path / "__cubes__" / "sealed.json").exists():
        return path
    box = common.geobox(edge)
    base = common._field(edge)
    nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs={"aoi": "benchmark"})}
    groups: dict[str, dict[str, Any]] = {}
    for name in LAYERS:
        layer = registry.layer(name)
        steps = 2 if layer.stack_dim == "track" else dates
        parts = [
            da.from_delayed(
                _delayed(name, base, step), (layer.n_channels, edge, edge), _dtype(layer)
            )
            for step in range(steps)
        ]
        pixels = da.stack(parts)
        if layer.channel_dim is None:
            pixels = pixels[:, 0]
        attrs = {"calibration": "gamma0_rtc"} if name == "s1/backscatter" else {}
        groups.setdefault(layer.group, {})[layer.variable] = xr.DataArray(
            pixels, dims=layer.dims, attrs=attrs
        )
    for group, arrays in groups.items():
        coords = _coords(group, dates) | dict(xr_coords(box))
        used = set().union(*(a.dims for a in arrays.values()))
        coords = {k: v for k, v in coords.items() if k not in ("pol", "band") or k in used}
        nodes[f"/{group}"] = xr.Dataset(arrays, coords=coords)
    cubes.write(xr.DataTree.from_dict(nodes), path, layout=Layout(patch=size))
    return path


def _dtype(layer: Any) -> Any:
    kind: Any = {"mask": bool, "class": layer.dtype}.get(layer.kind, np.float32)
    return np.dtype(kind)


def _delayed(name: str, base: np.ndarray, step: int) -> Any:
    import dask

    return dask.delayed(_frame, pure=True)(name, base, step)


def _frame(name: str, base: np.ndarray, step: int) -> np.ndarray:
    """Return one step of a layer, (channel, y, x), in physical values."""
    layer = registry.layer(name)
    rng = np.random.default_rng([step, *name.encode()])
    base = np.roll(base, 37 * step, axis=1)[None]
    noise = rng.standard_normal((layer.n_channels, *base.shape[1:]), dtype=np.float32)
    if name == "s2/reflectance":
        level = np.arange(layer.n_channels)[:, None, None] * 250 + 1300
        stored = np.clip(level + 250 * base + 60 * noise, 1, 65535).astype(np.uint16)
    elif name == "s1/backscatter":
        stored = (-1200 + 200 * base + 210 * noise).astype(np.int16)
    elif layer.kind == "mask":
        stored = (base + 0.1 * noise < 1).astype(np.uint8)
    elif layer.kind == "class":
        stored = (4 + (base > 0.5) + 3 * (base + 0.1 * noise > 1.2)).astype(np.uint8)
    else:
        stored = np.clip(4500 + 1500 * base + 900 * noise, 0, 10000).astype(np.int16)
    return np.asarray(physics.decode(stored, layer))


def _coords(group: str, dates: int) -> dict[str, Any]:
    days = np.arange(dates) * np.timedelta64(6, "D")
    start = np.datetime64("2022-01-03T06:00:00", "ns")
    orbits, passes = np.full(dates, 132), np.full(dates, "ascending", object)
    coords: dict[str, Any] = {"pol": ["vv", "vh"], "band": list(common.BANDS)}
    if group == "insar":
        return coords | {
            "pair": [f"p{i}" for i in range(dates)],
            "secondary_time": ("pair", start + days),
            "reference_time": ("pair", start + days - np.timedelta64(12, "D")),
            "temporal_baseline": ("pair", np.full(dates, 12.0)),
            "relative_orbit": ("pair", orbits),
            "orbit_state": ("pair", passes),
        }
    shift = np.timedelta64(1, "D") if group == "s2" else np.timedelta64(0, "D")
    coords |= {
        "time": start + days + shift,
        "platform": ("time", np.full(dates, group, object)),
    }
    if group == "s1":
        coords |= {
            "relative_orbit": ("time", orbits),
            "orbit_state": ("time", passes),
            "track": ["132A", "37D"],
            "track_relative_orbit": ("track", [132, 37]),
            "track_orbit_state": ("track", np.array(["ascending", "descending"], object)),
        }
    return coords


# ----------------------------------------------------------------------------------- contenders


@dataclass(frozen=True, kw_only=True)
class Race:
    """A store, the samples that everyone delivers, in this order, and how many a batch."""

    path: Path
    samples: Samples
    rows: np.ndarray
    batch: int

    def batches(self) -> list[np.ndarray]:
        """Return the positions of the samples of each batch."""
        return [self.rows[i : i + self.batch] for i in range(0, len(self.rows), self.batch)]

    def steps(self, row: int, name: str) -> list[int]:
        """Return the steps of one layer that a sample needs."""
        entry = self.samples.stores[0].entries[name]
        if entry.clock is None:
            return list(range(entry.length))
        chosen = self.samples.dates(row, entry.clock, epoch=0)
        return (chosen if entry.steps is None else entry.steps[chosen]).tolist()


def race(path: Path, *, size: int, batch: int = 4, rounds: int = 2) -> Race:
    """Return the race over every patch of the store, `rounds` times, in an order drawn once."""
    samples = cubes.plan(path, Window(size=size, dates=12))
    rng = np.random.default_rng(1)
    rows = np.concatenate([rng.permutation(len(samples)) for _ in range(rounds)])
    return Race(path=path, samples=samples, rows=rows, batch=batch)


def crops(where: Race, part: int = 2) -> Race:
    """Return the race in four windows drawn in each patch, of an edge `part` times smaller.

    Four of a patch cost the decoding of one aligned sample; halves give as many pixels.
    """
    edge = where.samples.window.size
    window = Window(size=edge // part, within=edge, crops=4, dates=12)
    samples = cubes.plan(where.path, window)
    rows = (where.rows[:, None] * 4 + np.arange(4)).reshape(-1)
    return Race(path=where.path, samples=samples, rows=rows, batch=4 * where.batch)


def codec(where: Race, threads: int) -> Callable[[], None]:
    """Return the limit: the same chunks from memory, Blosc alone, into reused buffers."""
    from deepsentinel.measuring import codec as measuring

    return measuring.codec(measuring.chunks(where.samples, where.batches()), threads)


def ours(where: Race, threads: int, workers: int = 0) -> Callable[[], None]:
    """Return our loader over the samples of the race, every batch taken and dropped."""
    from deepsentinel.loading.batch import loader

    samples = where.samples.take(where.rows)
    one = loader(samples, where.batch, threads=threads, workers=workers, drop_last=False)

    def run() -> None:
        for batch in one:
            assert len(batch)
        one.set_epoch(0)

    return run


def plain_dataloader(where: Race, workers: int) -> Callable[[], None]:
    """Return torch's own DataLoader over our samples, collated by torch, every batch dropped."""
    from torch.utils.data import DataLoader

    from deepsentinel.loading.batch import SampleDataset

    one = DataLoader(
        SampleDataset(where.samples.take(where.rows), epoch=0),
        batch_size=where.batch,
        num_workers=workers,
        multiprocessing_context="forkserver",
        persistent_workers=True,
    )

    def run() -> None:
        for batch in one:
            assert len(batch["place"])

    return run


def xbatcher_documented(where: Race) -> Callable[[], None]:
    """Return xbatcher as its documentation shows: a chunked dataset, patches of it, loaded."""
    import xbatcher

    tree = cubes.open(where.path)
    size = where.samples.window.size
    groups = [tree[g].to_dataset() for g in ("s1", "insar", "s2")]
    n = len(where.rows)

    def run() -> None:
        done = 0
        # A dataset has one time axis here: xbatcher cannot pick 12 of 64 dates by itself, so the
        # user picks them before, as documented for any selection.
        picked = [
            g.isel({d: _spread(g.sizes[d]) for d in ("time", "pair") if d in g.dims})
            for g in groups
        ]
        makers = [xbatcher.BatchGenerator(g, {"y": size, "x": size}) for g in picked]
        while done < n:
            for parts in zip(*makers, strict=True):
                for part in parts:
                    part.load()
                done += 1
                if done >= n:
                    return

    return run


def xbatcher_best(where: Race, pipeline: str) -> Callable[[], None]:
    """Return xbatcher at its best: no dask, stored integers, all dimensions given, 12 dates on end.

    Consecutive dates, because it selects slices: less scattered than what the others deliver.
    """
    import xbatcher
    import zarr

    size = where.samples.window.size
    raw = [
        xr.open_zarr(where.path, group=g, chunks=None, mask_and_scale=False, decode_times=False)
        for g in ("s1", "insar", "s2")
    ]
    n = len(where.rows)

    def run() -> None:
        done = 0
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            makers = []
            for g in raw:
                sizes = {str(d): int(k) for d, k in g.sizes.items()}
                wanted = {d: min(12, k) if d in ("time", "pair") else k for d, k in sizes.items()}
                makers.append(xbatcher.BatchGenerator(g, wanted | {"y": size, "x": size}))
            while done < n:
                for parts in zip(*makers, strict=False):
                    for part in parts:
                        part.load()
                    done += 1
                    if done >= n:
                        return

    return run


def direct(where: Race, pipeline: str) -> Callable[[], None]:
    """Return Zarr slices, one step at a time, copied into the batch buffer that ours fills."""
    import zarr

    table, size = where.samples.table(), where.samples.window.size
    out = where.samples.empty(where.batch)
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        arrays = {n: zarr.open_array(where.path / n, mode="r") for n in where.samples.layers}

    def run() -> None:
        for rows in where.batches():
            for i, row in enumerate(rows.tolist()):
                y, x = int(table.y[row]), int(table.x[row])
                window = (slice(y, y + size), slice(x, x + size))
                for name, array in arrays.items():
                    for t, step in enumerate(where.steps(row, name)):
                        out[name][i, t] = array[(step, ..., *window)]

    return run


def _spread(n: int) -> list[int]:
    return [i * n // 12 for i in range(12)]


PYTHON = "zarr.core.codec_pipeline.BatchedCodecPipeline"
ZARRS = "zarrs.ZarrsCodecPipeline"


def _cold(path: Path) -> None:
    """Ask the system to forget the store's pages (it may keep those that are mapped)."""
    stored.MAPS.clear()
    for file in path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


class Stream:
    """Seconds that a pass over every patch takes, twelve dates of each sensor a sample."""

    params = [["codec, 1 thread", "codec, 2 threads", "ours, 1 thread", "ours, 2 threads",
               "xbatcher over dask", "xbatcher, no dask", "zarr-python"]]  # fmt: skip
    param_names = ["way"]
    number, repeat, warmup_time = 1, 3, 0.0
    size = FULL
    quick = {"size": QUICK}

    def setup(self, way: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="stream-"))
        found = race(store(self.folder, **self.size), size=self.size["size"], rounds=1)
        self.run = {
            "codec": lambda: codec(found, int(way.split()[1])),
            "ours": lambda: ours(found, int(way.split()[1])),
            "xbatcher over dask": lambda: xbatcher_documented(found),
            "xbatcher": lambda: xbatcher_best(found, PYTHON),
            "zarr-python": lambda: direct(found, PYTHON),
        }[way if way == "xbatcher over dask" else way.split(",", maxsplit=1)[0]]()
        with common.quiet():
            self.run()

    def teardown(self, way: str) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def time_pass(self, way: str) -> None:
        with common.quiet():
            self.run()


def contenders(where: Race, pairs: bool) -> dict[str, Callable[[], None]]:
    """Return name -> one pass, in the order of the table."""
    calls: dict[str, Callable[[], None]] = {}
    for threads in (1, 2):
        calls[f"codec alone, {threads} thread{'s' * (threads > 1)}"] = codec(where, threads)
        calls[f"ours, {threads} thread{'s' * (threads > 1)}"] = ours(where, threads)
        calls[f"ours, 4 crops a patch, {threads} thread{'s' * (threads > 1)}"] = ours(
            crops(where), threads
        )
    if not pairs:
        calls["ours, 2 forkserver workers"] = ours(where, 2, 2)
        calls["torch's DataLoader over our samples, 2 workers"] = plain_dataloader(where, 2)
        calls["zarr-python slices"] = direct(where, PYTHON)
        calls["zarrs slices"] = direct(where, ZARRS)
        calls["xbatcher, no dask, zarr-python"] = xbatcher_best(where, PYTHON)
        calls["xbatcher, no dask, zarrs"] = xbatcher_best(where, ZARRS)
        calls["xbatcher over dask, as documented"] = xbatcher_documented(where)
    return calls


def main(arguments: Sequence[str] = ()) -> str:
    """Return the table of samples per second and of ratios to the codec's limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream")
    parser.add_argument("--folder", type=Path, help="keep the store here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small store")
    parser.add_argument("--pairs", action="store_true", help="codec and ours only")
    chosen = parser.parse_args(list(arguments))
    size = QUICK if chosen.quick else FULL
    with tempfile.TemporaryDirectory(prefix="stream-") as scratch, common.quiet():
        where = race(store(chosen.folder or Path(scratch), **size), size=size["size"], rounds=1)
        n = len(where.rows)
        mb = sum(v.nbytes for v in where.samples.empty(1).values()) / 1e6
        calls = contenders(where, chosen.pairs)
        for call in calls.values():  # warm: page cache, processes, imports
            call()
        used: dict[str, list[float]] = {name: [] for name in calls}

        def timed(name: str, call: Callable[[], None]) -> Callable[[], None]:
            def run() -> None:
                began = time.process_time()
                call()
                used[name].append(time.process_time() - began)

            return run

        spent = common.rounds({k: timed(k, v) for k, v in calls.items()}, chosen.repeats)
        _cold(where.path)
        cold = common.seconds(calls["ours, 2 threads"])
    rows = []
    documented = spent.get("xbatcher over dask, as documented")
    for name, took in spent.items():
        limit = "codec alone, 1 thread" if "1 thread" in name else "codec alone, 2 threads"
        rows.append(
            (
                name,
                n / min(took),
                n * mb / min(took),
                common.ratio(spent[limit], took),
                min(used[limit]) / min(used[name]) if "workers" not in name else "",
                common.ratio(documented, took) if documented else "",
            )
        )
    rows.append(("ours, 2 threads, cold page cache", n / cold, n * mb / cold, "", "", ""))
    head = ("into one batch buffer", "samples/s", "MB/s", "of the limit (wall)",
            "of the limit (CPU)", "x xbatcher over dask")  # fmt: skip
    title = (
        f"Stream: samples of {mb:.1f} MB, 12 of {size['dates']} dates, {size['size']} px, "
        f"{n} a pass, best and median ratio of {chosen.repeats} passes in turns"
    )
    packages = ("deepsentinel", "xbatcher", "zarr", "zarrs", "numcodecs", "crc32c", "torch")
    return common.table(title, head, rows, *packages)


if __name__ == "__main__":
    common.show(main(sys.argv[1:]))
