"""HDF5 files as xarray sees them: opened for each piece that is read. Needs h5py."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubes.files import geotiff as files
from cubes.files.geotiff import PathLike
from cubes.types import CubeError

Array = npt.NDArray[Any]

CHUNK = 1024
"""Wanted edge of a dask chunk; rounded to whole chunks of the file, 128 px in production."""


@contextmanager
def opened(path: PathLike) -> Iterator[Any]:
    """Open an HDF5 file for reading.

    Raises
    ------
    CubeError
        h5py is not installed; the file is missing or no HDF5.
    """
    try:
        import h5py
    except ImportError:
        raise CubeError(
            "reading OPERA's HDF5 files needs h5py: pip install 'deepsentinel[insar]'"
        ) from None
    if not Path(path).is_file():
        raise CubeError(f"no such file: {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CubeError(f"{path} cannot be read as HDF5: {error}") from None
    with file:
        yield file


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A two-dimensional HDF5 dataset as something dask can slice: opened for each piece."""

    path: str
    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    chunks: tuple[int, int]
    stamp: tuple[int, int]
    """Size and time of change: another file under the same name is another array."""
    ndim: int = 2

    def __getitem__(self, key: tuple[slice, slice]) -> Array:
        """Return pixels of the dataset."""
        with opened(self.path) as file:
            out: Array = file[self.name][key]
        return out


def value_of(file: Any, name: str, path: PathLike) -> Any:
    """Return a scalar of the file as a plain Python value."""
    if name not in file:
        raise CubeError(f"{path} lacks {name}: is it an OPERA CSLC-S1 or CSLC-S1-STATIC file?")
    value = file[name][()]
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode() if isinstance(value, bytes) else value


def lazy(file: Any, path: PathLike, name: str, coords: Mapping[str, Any]) -> xr.DataArray:
    """Return a dataset of an open file on dask, (y, x), in whole chunks of the file."""
    import dask.array as da

    stored = file[name]
    rows, columns = stored.shape
    inner = stored.chunks or (CHUNK, CHUNK)
    if any(v > CHUNK for v in inner):
        chunk = tuple(min(v, n) for v, n in zip(inner, stored.shape, strict=True))
    else:
        chunk = tuple(v * max(1, CHUNK // v) for v in inner)
    source = Dataset(
        path=os.fspath(path), name=name, shape=(rows, columns), dtype=stored.dtype,
        chunks=inner, stamp=files.file_stamp(path),
    )  # fmt: skip
    from_array: Any = da.from_array
    data = from_array(source, chunks=(min(rows, chunk[0]), min(columns, chunk[1])), asarray=False)
    return xr.DataArray(data, dims=("y", "x"), coords=dict(coords))


def grid_of(file: Any, path: PathLike) -> dict[str, Any]:
    """Return the coordinates of a CSLC file's grid: y, x (pixel centres) and spatial_ref.

    Raises
    ------
    CubeError
        The stated spacing is not that of the coordinates.
    """
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import xr_coords

    x, y = (file[f"data/{axis}_coordinates"][()] for axis in "xy")
    step_x, step_y = (float(value_of(file, f"data/{axis}_spacing", path)) for axis in "xy")
    for axis, values, step in (("x", x, step_x), ("y", y, step_y)):
        if len(values) > 1 and not np.allclose(np.diff(values), step, atol=1e-6):
            raise CubeError(f"{path}: {axis}_coordinates are not {step:g} m apart as it says")
    epsg = int(value_of(file, "data/projection", path))
    corner = Affine(step_x, 0, x[0] - step_x / 2, 0, step_y, y[0] - step_y / 2)
    box = GeoBox((len(y), len(x)), corner, f"EPSG:{epsg}")
    return {str(name): coord for name, coord in xr_coords(box).items()}
