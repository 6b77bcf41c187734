"""Coherence and phase on another grid, also of another projection."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from cubes import grid as grids
from cubes.radar.insar import regrid_phase
from cubes.types import CubeError, Grid


def regrid(pairs: xr.Dataset, like: Any, *, kernel: str = "bilinear") -> xr.Dataset:
    """Return an ``insar`` group on another grid: each layer in the way that its numbers allow.

    Phase goes through e^(i phi), coherence as it is. Estimate at about the resolution of the wanted
    grid first (`cubes.files.cslc.open_pairs`): this looks at neighbours, it does not add looks.

    Parameters
    ----------
    pairs : xarray.Dataset
        ``coherence`` or ``phase`` or both, dims (..., y, x), with a CRS (odc-geo). Coordinates
        without y and x stay.
    like : GeoBox, Grid or xarray object
        The wanted grid, in any projection; a `Grid` must have its place (``Grid(geobox=...)``).
    kernel : str
        GDAL's name of the kernel.

    Returns
    -------
    xarray.Dataset
        The same layers, float32, NaN = no data; ``resampling`` among their attributes.

    Raises
    ------
    CubeError
        No CRS; a layer that is neither; a `Grid` without a place.
    """
    import odc.geo.xr  # noqa: F401  registers the accessor
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import xr_coords

    box = like if isinstance(like, GeoBox) else None
    if box is None:
        box = (like if isinstance(like, Grid) else grids.like(like)).geobox
    if box is None:
        raise CubeError(f"{like!r} has no place yet: give a GeoBox, or Grid(geobox=...)")
    unknown = sorted(map(str, set(pairs.data_vars) - {"coherence", "phase"}))
    if unknown or not len(pairs.data_vars):
        raise CubeError(
            f"regrid takes coherence and phase, not {', '.join(unknown) or 'an empty Dataset'}"
        )
    source = pairs.odc.geobox
    if source is None or source.crs is None:
        raise CubeError("the pairs have no grid with a CRS; write one with .odc.assign_crs(...)")
    made: dict[str, xr.DataArray] = {}
    for name, layer in pairs.data_vars.items():
        if name == "phase":
            out = regrid_phase(layer, box, kernel=kernel)
        else:
            whole = layer.astype("float32")
            out = whole.odc.reproject(box, resampling=kernel, dst_nodata=np.nan, always_yx=True)
        made[str(name)] = out.assign_attrs(layer.attrs, resampling=kernel)
    # a layer carries the old grid's spatial_ref among its scalar coordinates
    coords = {str(k): v for k, v in xr_coords(box, always_yx=True).items()}
    kept = {n: c for n, c in pairs.coords.items() if not {"y", "x", "spatial_ref"} & {n, *c.dims}}
    bare = {n: v.drop_vars([c for c in v.coords if c not in v.dims]) for n, v in made.items()}
    return xr.Dataset(bare, attrs=pairs.attrs).assign_coords({**kept, **coords})
