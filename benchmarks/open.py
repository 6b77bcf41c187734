"""Opening lazily: from STAC items in hand to a cube of which no pixel has been read.

Twelve bands on a 1,024-px cube; the files do not exist, so that nothing but the making of the
graph is measured. Tasks are those of the dask graph.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from benchmarks import common

TWELVE = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12",
)  # fmt: skip
EDGE = 1024
WAYS = ("ours", "ours, stackstac", "odc-stac", "stackstac")
"""``ours`` is `cubes.open_aoi` with its default reader (odc-stac), then with the other; the rest
are the libraries by themselves in chunks of `EDGE`, grouped by item."""


def items(count: int) -> list[Any]:
    """Return the metadata of `count` Sentinel-2 items of twelve bands, one a day."""
    return common.metadata("optical", count, folder="/nowhere", edge=EDGE, bands=TWELVE)


def open_ours(found: list[Any], reader: str = "odc") -> Any:
    """Return (time, band, y, x) reflectance as `cubes.open_aoi` gives it."""
    import cubes

    box = common.geobox(EDGE)
    cube = cubes.open_aoi(
        common.lonlat(box),
        "2022/2026",
        ["s2/reflectance"],
        catalog=common.catalog("/nowhere"),
        bands=TWELVE,
        grid=box,
        items=found,
        reader=reader,
    )
    return cube["s2"]["reflectance"]


def open_odc(found: list[Any]) -> Any:
    """Return a Dataset of one variable a band as odc-stac gives it."""
    import odc.stac

    chunks = {"x": EDGE, "y": EDGE}
    return odc.stac.load(
        common.as_pystac(found), bands=list(TWELVE), geobox=common.geobox(EDGE), chunks=chunks,
        dtype="uint16", nodata=0, groupby="id",
    )  # fmt: skip


def open_stackstac(found: list[Any]) -> Any:
    """Return (time, band, y, x) as stackstac gives it."""
    import numpy as np
    import stackstac

    return stackstac.stack(
        common.as_pystac(found), assets=list(TWELVE), epsg=32631, resolution=10,
        bounds=tuple(common.geobox(EDGE).boundingbox), chunksize=EDGE, dtype="uint16",
        fill_value=np.uint16(0), rescale=False, properties=False, band_coords=False,
    )  # fmt: skip


def run(way: str, found: list[Any]) -> Any:
    """Return the lazy cube made in one of `WAYS`."""
    with common.quiet():
        if way == "odc-stac":
            return open_odc(found)
        if way == "stackstac":
            return open_stackstac(found)
        return open_ours(found, "stackstac" if "," in way else "odc")


def tasks(cube: Any) -> int:
    """Return the number of tasks in the graph of a lazy cube (dask's optimisation keeps them)."""
    return len(cube.__dask_graph__())


class Open:
    """Seconds and tasks of opening 10, 100 and 1,000 items of twelve bands."""

    params = [[10, 100, 1000], list(WAYS)]
    param_names = ["items", "way"]
    number, repeat, warmup_time = 1, 3, 0.0
    quick = {"params": [[10], list(WAYS)]}

    def setup(self, count: int, way: str) -> None:
        self.items = items(count)
        run(way, self.items[:2])  # imports are measured by `imports`

    def time_open(self, count: int, way: str) -> None:
        run(way, self.items)

    def track_tasks(self, count: int, way: str) -> int:
        return tasks(run(way, self.items))

    track_tasks.unit = "tasks"  # type: ignore[attr-defined]


def _timed(way: str, found: list[Any], cpu: list[float]) -> None:
    began = time.process_time()
    run(way, found)
    cpu.append(time.process_time() - began)


def main(repeats: int = 3) -> str:
    """Return a table of seconds (best of `repeats`) and tasks, for every count and way."""
    rows: list[tuple[Any, ...]] = []
    for way in WAYS:
        run(way, items(2))
    for count in Open.params[0]:
        found = items(int(count))
        cpu: dict[str, list[float]] = {w: [] for w in WAYS}
        calls = {w: partial(_timed, w, found, cpu[w]) for w in WAYS}
        spent = common.rounds(calls, repeats)
        for w in WAYS:
            rows.append((count, w, min(spent[w]), min(cpu[w]), tasks(run(w, found))))
    head = ("items", "way", f"s, best of {repeats}", "processor s", "tasks")
    packages = ("deepsentinel", "odc-stac", "odc-loader", "stackstac", "dask")
    return common.table(f"Open: 12 bands, {EDGE} px", head, rows, *packages)


if __name__ == "__main__":
    common.show(main())
