"""Images of one grid on a person's own: which part is needed, in blocks of how many looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import xarray as xr

from cubes import grid as grids
from cubes.radar import insar
from cubes.types import CubeError, Grid

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox


def box(images: Sequence[xr.DataArray], grid: Any, like: Any) -> GeoBox | None:
    """Return the wanted grid of pairs, None for the burst's own.

    Raises
    ------
    CubeError
        Two grids; a grid in another projection than the bursts.
    """
    if grid is not None and like is not None:
        raise CubeError("give grid= or like=, not both")
    wanted = grids.like(like) if like is not None else grid
    own = [image.odc.geobox for image in images]
    if isinstance(wanted, Grid) and wanted.geobox is None:
        area = grids.as_aoi(shapely.union_all([b.geographic_extent.geom for b in own]))
        wanted = grids.geobox(area, replace(wanted, crs=wanted.crs or _code(own[0])))
    box = wanted.geobox if isinstance(wanted, Grid) else wanted
    for burst in own:
        if box is not None and burst.crs != box.crs:
            raise CubeError(
                f"the burst lies in {_code(burst)}, the grid in {_code(box)}: give a grid in the "
                "burst's own projection, then cubes.radar.regridding.regrid(pairs, grid) brings "
                "coherence and phase to another"
            )
    return box


def looks(image: xr.DataArray, box: GeoBox | None) -> insar.Window:
    """Return the rows and columns of an image that make about a pixel of a grid, or a square."""
    own = image.odc.geobox.resolution
    square = max(abs(own.y), abs(own.x))
    wanted = (square, square) if box is None else (box.resolution.y, box.resolution.x)
    rows, columns = (max(1, round(abs(w / o))) for w, o in zip(wanted, (own.y, own.x), strict=True))
    return rows, columns


def cut(
    image: xr.DataArray, box: GeoBox | None, window: insar.Window, looks: insar.Window
) -> xr.DataArray:
    """Return the part of an image that pixels of a grid are made of, the windows' reach included.

    It starts with a whole block of looks; of one that is as large as a pixel of the grid, where a
    pixel does.
    """
    if box is None:
        return image
    source = image.odc.geobox
    for dim, reach, block in zip(("y", "x"), window, looks, strict=True):
        step, size = getattr(source.resolution, dim), image.sizes[dim]
        pixel = getattr(box.resolution, dim)
        zero = float(image[dim][0]) - step / 2
        ends = np.asarray(box.coordinates[dim].values)[[0, -1]] + np.array([-pixel, pixel]) / 2
        low, high = sorted((ends - zero) / step)
        same = np.isclose(abs(pixel), abs(step) * block)
        start = round(low) % block if same and block > 1 else 0
        first = start + max(0, int((low - start - reach - block) // block)) * block
        last = start + max(0, -int(-(high - start + reach + block) // block)) * block
        if high <= 0 or low >= size:  # nothing of it is seen: what is left gives no data
            first, last = 0, 2 * (reach + block)
        image = image.isel({dim: slice(first, last)})
    return image


def on(pair: xr.Dataset, box: GeoBox | None) -> xr.Dataset:
    """Return a pair on a grid, by the nearest pixel; as it is without one."""
    from odc.geo.xr import xr_coords

    source = pair.odc.geobox
    if box is None or source == box:
        return pair
    # by coordinates: exact, lazy, and no angle is interpolated
    out = pair
    for dim in ("y", "x"):
        half = abs(float(getattr(source.resolution, dim))) / 2 * (1 + 1e-9)
        place = np.asarray(box.coordinates[dim].values)
        out = out.reindex({dim: place}, method="nearest", tolerance=half)
    return out.assign_coords({str(k): v for k, v in xr_coords(box).items()})


def _code(box: GeoBox) -> str:
    epsg = box.crs.epsg if box.crs is not None else None
    return f"EPSG:{epsg}" if epsg else str(box.crs)
