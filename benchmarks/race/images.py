"""GeoTIFF as rivals read it: windows by rasterio, and torchgeo's RasterDataset where it imports.

Three layouts, 256-px tiles: Deflate with a predictor, ZSTD with a predictor, uncompressed. One file
per layer and date, bands inside; per-track and static layers one file per plane.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from benchmarks.race import loading
from benchmarks.race.field import Arrays, Course, Rival, Wanted, fresh

TIFF = {
    "deflate": {"compress": "deflate", "predictor": 2, "zlevel": 6},
    "zstd": {"compress": "zstd", "predictor": 2, "zstd_level": 1},
    "uncompressed": {},
}


def write(course: Course, folder: Path, layout: str) -> Path:
    """Return a folder of GeoTIFFs, written if it is not there."""
    import rasterio
    from rasterio.transform import Affine

    path = folder / f"tiff-{layout}"
    if path.exists():
        return path
    fresh(path)
    index = course.where.samples.stores[0]
    for name, pixels in course.pixels.items():
        for t, part in enumerate(pixels):
            with rasterio.open(
                path / file(name, t), "w", driver="GTiff", count=len(part),
                height=part.shape[1], width=part.shape[2], dtype=part.dtype.name, crs=index.crs,
                transform=Affine(*index.transform), tiled=True, blockxsize=course.size,
                blockysize=course.size, interleave="band", **TIFF[layout],
            ) as out:  # fmt: skip
                out.write(part)
    return path


def file(name: str, step: int) -> str:
    """Return the file of one step of a layer: a day number in place of a date."""
    day = np.datetime64("2022-01-03") + np.timedelta64(step, "D")
    return f"{name.replace('/', '_')}_{str(day).replace('-', '')}.tif"


@dataclass
class Windows(Dataset[Arrays]):
    """Samples out of open files, by rasterio's windowed reads into the sample's array."""

    path: Path
    wanted: tuple[Wanted, ...]
    shapes: loading.Shapes
    size: int
    _open: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, i: int) -> Arrays:
        import rasterio
        from rasterio.windows import Window

        wanted = self.wanted[i]
        window = Window(wanted.x, wanted.y, self.size, self.size)
        out = {n: np.empty(*s) for n, s in self.shapes.items()}
        for name, target in out.items():
            for t, step in enumerate(wanted.steps[name]):
                which = file(name, step)
                if which not in self._open:
                    self._open[which] = rasterio.open(self.path / which)
                self._open[which].read(window=window, out=target[t])
        return out | dict(wanted.small)


def geotiff(course: Course, folder: Path, layout: str, workers: int) -> Rival:
    """Return windows of GeoTIFFs by rasterio, file handles kept, in a DataLoader."""
    path = write(course, folder, layout)
    data = Windows(path, course.wanted, course.shapes, course.size)
    return _rival(course, "GeoTIFF, rasterio", layout, path, (data, workers))


def torchgeo(course: Course, folder: Path, layout: str, workers: int) -> Rival:
    """Return torchgeo: a RasterDataset per layer, one query per date, in a DataLoader.

    A query merges what lies in its time, so a series of dates is a query each.
    """
    importlib.import_module("torchgeo.datasets")  # it wants torchvision: say so before writing
    path = write(course, folder, layout)
    index = course.where.samples.stores[0]
    data = Queries(path, course.wanted, course.shapes, (course.size, index.transform))
    return _rival(course, "torchgeo RasterDataset", layout, path, (data, workers))


def _rival(course: Course, name: str, layout: str, path: Path, how: tuple[Any, int]) -> Rival:
    made = loading.loader(how[0], course.where.batch, how[1])
    return Rival(
        name=name, layout=layout, compressed=bool(TIFF[layout]), path=path,
        stored=course.patches, start=lambda: iter(made), n=len(course.wanted),
    )  # fmt: skip


@dataclass
class Queries(Dataset[Arrays]):
    """Samples out of one torchgeo RasterDataset per layer."""

    path: Path
    wanted: tuple[Wanted, ...]
    shapes: loading.Shapes
    grid: tuple[int, tuple[float, ...]]
    _open: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, i: int) -> Arrays:
        import pandas as pd

        if not self._open:
            self._open = {name: self._dataset(name) for name in self.shapes}
        wanted = self.wanted[i]
        size, (dx, _, left, _, dy, top, *_) = self.grid
        x, y = left + wanted.x * dx, top + (wanted.y + size) * dy
        place = (slice(x, x + size * dx, dx), slice(y, y - size * dy, -dy))
        out: Arrays = {}
        for name, (shape, dtype) in self.shapes.items():
            out[name] = np.empty(shape, dtype)
            for t, step in enumerate(wanted.steps[name]):
                day = pd.Timestamp("2022-01-03") + pd.Timedelta(days=step)
                when = slice(day, day + pd.Timedelta(hours=23))
                out[name][t] = self._open[name][(*place, when)]["image"].numpy()
        return out | dict(wanted.small)

    def _dataset(self, name: str) -> Any:
        import torch
        from torchgeo.datasets import RasterDataset

        stem = name.replace("/", "_")
        # integers, as everyone delivers; its default is float32, twice the bytes
        kind: Callable[..., Any] = type(
            "Layer",
            (RasterDataset,),
            {
                "filename_glob": f"{stem}_*.tif",
                "filename_regex": stem + r"_(?P<date>\d{8})",
                "dtype": property(lambda _: torch.int32),
            },
        )
        return kind(str(self.path))
