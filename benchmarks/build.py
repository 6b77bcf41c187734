"""From COGs to Zarr: `cubes.write` beside odc-stac and stackstac, all writing the same arrays.

The rivals write with xarray's ``to_zarr`` on dask's threads: same shards, inner chunks, codecs,
dtype and numbers (`same` compares them), each at the chunking that served it best. What only ours
does is left in its time: plan and ledger, SHA-256 of every object, fsync, counts of valid pixels.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import Archive

WAYS = ("ours", "odc-stac", "stackstac")
KINDS = ("optical", "zone", "radar")
CHUNKS = {
    "odc-stac": ((1024, 1), (1024, -1), (512, 1)),
    "stackstac": ((1024, 1), (512, 1), (256, -1)),
}
"""Chunkings tried: edge in pixels; steps a chunk, where -1 is a whole shard at once (then nothing
needs to be put together before it is written)."""

BEST = {"odc-stac": (1024, 1), "stackstac": (512, 1)}
"""What won for each on the machine of docs/benchmarks.md; `main` tries all of `CHUNKS`. Whole
shards, (1024, -1), are as good for odc-stac with few dates: `paired` runs both."""


# ------------------------------------------------------------------------------ the three ways


def ours(archive: Archive, store: Path) -> None:
    """Write the archive's cube with `cubes.write`, from STAC items to the seal."""
    import cubes

    report = cubes.write(archive.request(), store)
    assert report.state == "sealed", report


def odc(archive: Archive, store: Path, chunks: tuple[int, int]) -> None:
    """Write it with ``odc.stac.load(...)`` and ``to_zarr``."""
    import odc.stac

    edge, steps = chunks
    radar = archive.kind == "radar"
    box = archive.geobox()
    with common.quiet():
        loaded = odc.stac.load(
            archive.pystac(),
            bands=list(archive.assets),
            geobox=box,
            chunks={"x": edge, "y": edge, "time": len(archive.items) if steps < 0 else steps},
            dtype="float32" if radar else "uint16",
            nodata=-32768 if radar else 0,
            groupby="id",
            resampling="average" if radar else "nearest",
        )
        cube = loaded[list(archive.assets)].to_array("channel").transpose(
            "time", "channel", "y", "x"
        )  # fmt: skip
        _to_zarr(archive, cube, store, max(256, edge))


def stackstac(archive: Archive, store: Path, chunks: tuple[int, int]) -> None:
    """Write it with ``stackstac.stack(...)`` and ``to_zarr``."""
    import stackstac as library
    from rasterio.enums import Resampling

    edge, steps = chunks
    radar = archive.kind == "radar"
    per = len(archive.items) if steps < 0 else steps
    with common.quiet():
        cube = library.stack(
            archive.pystac(),
            assets=list(archive.assets),
            epsg=32631,
            resolution=10,
            bounds=tuple(archive.geobox().boundingbox),
            chunksize=(per, 1, edge, edge),
            dtype="float32" if radar else "uint16",
            fill_value=np.float32(-32768) if radar else np.uint16(0),
            resampling=Resampling.average if radar else Resampling.nearest,
            rescale=False,
            properties=False,
            band_coords=False,
            xy_coords="center",
        )
        _to_zarr(archive, cube.rename(band="channel"), store, max(256, edge))


def _decibels(power: np.ndarray) -> np.ndarray:
    """Return int16 hundredths of a dB of linear power; -32768 where it has no data."""
    with np.errstate(divide="ignore", invalid="ignore"):
        stored = np.rint(np.log10(power) * np.float32(1000))
    return np.where(power > 0, stored, -32768).astype(np.int16)


def _to_zarr(archive: Archive, cube: Any, store: Path, edge: int) -> None:
    """Write (time, channel, y, x) as `cubes.write` lays it out, on `common.THREADS` threads."""
    import dask
    import xarray as xr
    from zarr.codecs import BloscCodec, Crc32cCodec

    data = cube.data
    dtype = np.dtype("int16" if archive.kind == "radar" else "uint16")
    if archive.kind == "radar":
        data = data.map_blocks(_decibels, dtype="int16")
    patch = min(256, archive.edge)
    steps, channels = data.shape[:2]
    # a region write must cover whole shards: time and channels in one chunk
    data = data.rechunk((steps, channels, edge, edge))
    variable = xr.Dataset({"data": (("time", "channel", "y", "x"), data)})
    blosc = BloscCodec(typesize=dtype.itemsize, cname="lz4", clevel=5, shuffle="bitshuffle")
    encoding = {
        "chunks": (1, channels, patch, patch),
        "shards": (steps, channels, patch, patch),
        "compressors": [blosc, Crc32cCodec()],
        "fill_value": dtype.type(-32768 if dtype == np.int16 else 0),
    }
    with dask.config.set(scheduler="threads", num_workers=common.THREADS):
        variable.to_zarr(
            store, zarr_format=3, consolidated=False, encoding={"data": encoding}, mode="w"
        )


def ways(archive: Archive, **chunks: tuple[int, int]) -> dict[str, Callable[[Path], None]]:
    """Return each way as a function of the store alone, at its best chunking or at `chunks`."""
    best = {**BEST, **chunks}
    return {
        "ours": partial(ours, archive),
        "odc-stac": partial(odc, archive, chunks=best["odc-stac"]),
        "stackstac": partial(stackstac, archive, chunks=best["stackstac"]),
    }


# ----------------------------------------------------------------------------- what they wrote


def stored(archive: Archive, way: str, store: Path) -> np.ndarray:
    """Return the stored integers that a way wrote, (time, channel, y, x)."""
    import zarr

    array: Any = zarr.open_array(store, path=archive.layer if way == "ours" else "data", mode="r")
    return np.asarray(array[:])


def same(archive: Archive, mine: np.ndarray, theirs: np.ndarray) -> float:
    """Return the share of numbers that agree: equal, or one hundredth of a dB apart for radar.

    GDAL's average and ours round differently in the last bit of a float32; a nearest neighbour
    between zones is another pixel where GDAL interpolates coordinates with a tolerance.
    """
    if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
        return 0.0
    away = np.abs(mine.astype(np.int32) - theirs.astype(np.int32))
    return float((away <= (1 if archive.kind == "radar" else 0)).mean())


def layout(archive: Archive, way: str, store: Path) -> tuple[Any, ...]:
    """Return shards, inner chunks, dtype and codecs of what a way wrote."""
    import zarr

    array: Any = zarr.open_array(store, path=archive.layer if way == "ours" else "data", mode="r")
    codecs = [
        (c.to_dict()["name"], c.to_dict().get("configuration", {})) for c in array.compressors
    ]
    return array.shards, array.chunks, str(array.dtype), repr(codecs)


# --------------------------------------------------------------------------------- measuring


def fresh(way: Callable[[Path], None], folder: Path) -> float:
    """Return the seconds of one build into a new store, which is deleted again."""
    from cubes.reading import read

    store = Path(tempfile.mkdtemp(dir=folder)) / "cube.zarr"
    read.close_all()  # files opened by an earlier run are no part of this one
    try:
        return common.seconds(lambda: way(store))
    finally:
        shutil.rmtree(store.parent, ignore_errors=True)


def paired(archive: Archive, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Return seconds of the ways, run in turns into new stores; odc-stac in both chunkings."""
    made = ways(archive)
    made["odc-stac, whole shards"] = partial(odc, archive, chunks=(1024, -1))
    return common.rounds({n: partial(fresh, w, folder) for n, w in made.items()}, repeats)


class Build:
    """Seconds from STAC items to a Zarr store, three archives, three ways."""

    params = [list(KINDS), list(WAYS)]
    param_names = ["archive", "way"]
    number, repeat, rounds, warmup_time = 1, 2, 1, 0.0
    timeout = 300
    edge, dates = 1024, 6
    quick = {"edge": 256, "dates": 2}

    def setup_cache(self) -> str:
        folder = Path("archives").resolve()
        for kind in KINDS:
            common.archive(folder, kind, edge=self.edge, dates=self.dates)
        return str(folder)

    def setup(self, folder: str, kind: str, way: str) -> None:
        self.archive = common.archive(Path(folder), kind, edge=self.edge, dates=self.dates)
        self.work = Path(tempfile.mkdtemp())
        self.way = ways(self.archive)[way]

    def teardown(self, folder: str, kind: str, way: str) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def time_build(self, folder: str, kind: str, way: str) -> None:
        fresh(self.way, self.work)

    def peakmem_build(self, folder: str, kind: str, way: str) -> None:
        fresh(self.way, self.work)


def main(
    kinds: Sequence[str] = KINDS, *, edge: int = 1024, dates: int = 12, repeats: int = 3
) -> str:
    """Return a table: for each archive every way and chunking, and ratios to ours."""
    rows: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in kinds:
            rows += _rows(common.archive(folder, kind, edge=edge, dates=dates), folder, repeats)
    head = ("archive", "way", "chunk, px x steps", "s, median", "over ours", "equal")
    title = (
        f"Build: {edge} px, {dates} dates, {common.THREADS} threads, median of {repeats} in turns"
    )
    return common.table(
        title, head, rows, "deepsentinel", "odc-stac", "odc-loader", "stackstac", "dask", "xarray",
        "zarr", "rasterio",
    )  # fmt: skip


def _rows(archive: Archive, folder: Path, repeats: int) -> list[tuple[Any, ...]]:
    calls: dict[tuple[str, str], Callable[[Path], None]] = {("ours", ""): partial(ours, archive)}
    for name, made in (("odc-stac", odc), ("stackstac", stackstac)):
        for edge, steps in CHUNKS[name]:
            if edge <= archive.edge:
                label = f"{edge} x {'all' if steps < 0 else steps}"
                calls[name, label] = partial(made, archive, chunks=(edge, steps))
    truth: np.ndarray | None = None
    agrees: dict[tuple[str, str], float] = {}
    for key, call in calls.items():  # warms the page cache for all, and compares what they wrote
        store = folder / "compared.zarr"
        call(store)
        wrote = stored(archive, key[0], store)
        truth = wrote if truth is None else truth
        agrees[key] = same(archive, truth, wrote)
        shutil.rmtree(store)
    spent: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for n in range(repeats):
        order = list(calls.items())
        for key, call in order if n % 2 == 0 else reversed(order):
            spent[key].append(fresh(call, folder))
    return [
        (
            archive.kind, key[0], key[1] or "-", float(np.median(times)),
            common.ratio(times, spent["ours", ""]), f"{agrees[key]:.4%}",
        )
        for key, times in spent.items()
    ]  # fmt: skip


if __name__ == "__main__":
    for one in KINDS:  # a table each, so that the first is there while the others run
        common.show(main((one,)))
