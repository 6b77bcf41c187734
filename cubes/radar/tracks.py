"""Local incidence, layover and shadow of several tracks, as the static layers of a cube."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd
import xarray as xr

from cubes.radar import geometry
from cubes.radar.look import Look
from cubes.types import CubeError


def track_geometry(
    elevation: xr.DataArray,
    looks: Mapping[str, Look],
    *,
    within: Any = None,
    smooth: float = 20.0,
) -> xr.DataTree:
    """Return a cube of ``s1/incidence`` and ``s1/layover_shadow``, (track, y, x), static.

    To be joined with the backscatter of these tracks: ``cubes.join(cube, track_geometry(...))``.

    Parameters
    ----------
    elevation : xarray.DataArray
        Metres, (y, x), on a projected grid of square pixels; computed here.
    looks : dict of str to Look
        Track such as ``87D`` (relative orbit and A or D) -> its look; see
        `cubes.radar.geometry.local_incidence` and `layover_shadow`.
    within : GeoBox, optional
        The cube's grid, a part of the model's; the model must reach further by as much as its
        relief throws shadow. Without it the cube covers the model.
    smooth : float
        Metres, for the incidence; layover and shadow are of the model as it is.

    Returns
    -------
    DataTree
        Group ``s1``: ``incidence`` float32 degrees, NaN = no data; ``layover_shadow`` uint8, kinds
        told apart (bits: 1 shadow, 2 layover, 4 active layover, 8 active shadow), 255 = no data.

    Raises
    ------
    CubeError
        No tracks, or a label that is none; and what those two functions refuse.
    """
    from odc.geo.xr import xr_coords

    if not looks:
        raise CubeError("no tracks: give looks such as {'87D': Look.from_angles(36, 193)}")
    for track in looks:
        if not re.fullmatch(r"[1-9]\d{0,2}[AD]", track):
            raise CubeError(f"{track!r} is no track such as '87D': relative orbit, then A or D")
    heights = elevation.compute()
    parts: dict[str, list[xr.DataArray]] = {"incidence": [], "layover_shadow": []}
    for look in looks.values():
        angle = geometry.local_incidence(heights, look, smooth=smooth, within=within)
        parts["incidence"].append(angle.astype("float32"))
        parts["layover_shadow"].append(
            geometry.layover_shadow(heights, look, kinds=True, within=within)
        )
    along = pd.Index(list(looks), name="track")
    layers = {n: xr.concat(v, along, combine_attrs="override") for n, v in parts.items()}
    box = within if within is not None else elevation.odc.geobox
    # the grid's own coordinates, so that they equal the cube's to the bit
    data = xr.Dataset({n: v.drop_vars(["y", "x"]) for n, v in layers.items()})
    data = data.assign_coords({str(k): v for k, v in xr_coords(box).items()})
    tree = xr.DataTree.from_dict({"s1": data})
    tree.attrs["catalog"] = "terrain model"
    return tree
