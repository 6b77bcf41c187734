"""From a plan to a lazy cube, an xarray DataTree on one grid, and what stands on its arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr

from cubes import grants, physics, plans, registry
from cubes.optical import composites
from cubes.stac.arrays import lazy
from cubes.types import TIME_COORDS, Access, ArrayPlan, CubeError, Layer, Legend, Plan

BLOCK = 1024
"""Edge of a lazy chunk: two 512-px COG blocks. For 1,000 items x 12 bands of a 1,024-px cube this
builds 8x fewer tasks than 256-px chunks (DESIGN, Facts)."""


def open_plan(plan: Plan, *, reader: Literal["odc", "stackstac"] = "odc") -> xr.DataTree:
    """Return the lazy cube of a plan, see `open_aoi`; reads no pixel, searches nothing.

    Raises
    ------
    CubeError
        A plan read from a file, whose catalogue is not known here.
    """
    access = grants.granted(plan)
    groups: dict[str, dict[str, xr.DataArray]] = {}
    for array in plan.arrays:
        layer = array.layer
        if layer.derived_from:
            data = _derived(array, groups[layer.group], plan)
        else:
            data = _physical(array, plan, access, reader)
        groups.setdefault(layer.group, {})[layer.variable] = data
    tree: dict[str, xr.Dataset] = {"/": _root(plan)}
    for group, arrays in groups.items():
        tree[group] = dataset(arrays, group, plan)
    return xr.DataTree.from_dict(tree, name=str(plan.attrs.get("aoi", "cube")))


def _root(plan: Plan) -> xr.Dataset:
    from odc.geo.xr import xr_coords

    attrs = {**plan.attrs, "Conventions": "CF-1.10", "plan_sha256": plan.sha256}
    return xr.Dataset(coords=xr_coords(plan.geobox), attrs=attrs)


def dataset(arrays: Mapping[str, xr.DataArray], group: str, plan: Plan) -> xr.Dataset:
    """Return a group's Dataset: arrays with the coordinates of its axes and the grid mapping."""
    from odc.geo.xr import xr_coords

    coords: dict[Any, Any] = dict(xr_coords(plan.geobox))
    for name, (dim, values) in plan.coordinates(group).items():
        coords[name] = (dim, _values(name, values))
    out = xr.Dataset({**arrays}, coords=coords)
    for array in out.data_vars.values():
        array.encoding["grid_mapping"] = "spatial_ref"
    return out


def _values(name: str, values: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    if name in TIME_COORDS:
        return np.array(values, dtype="datetime64[ns]")
    column = plans.column(name, values)
    return column.astype(str) if column.dtype == object else column


def _chunks(plan: Plan) -> tuple[int, int]:
    rows, columns = plan.geobox.shape
    return min(rows, BLOCK), min(columns, BLOCK)


def _physical(
    array: ArrayPlan, plan: Plan, access: Access, reader: Literal["odc", "stackstac"]
) -> xr.DataArray:
    layer = array.layer
    work = lazy(array, plan.geobox, access, chunks=_chunks(plan), reader=reader)
    if layer.kind in ("continuous", "phase"):
        data = work.map_blocks(physics.to_physical, layer, dtype="float32")
    else:
        data = work.astype(layer.dtype)
    if layer.channel_dim is None:
        data = data[:, 0]
    if layer.stack_dim is None:
        data = data[0]
    coords = {layer.channel_dim: list(layer.channels)} if layer.channel_dim else {}
    return xr.DataArray(data, dims=layer.dims, coords=coords, attrs=described(array, plan))


def _derived(array: ArrayPlan, group: Mapping[str, xr.DataArray], plan: Plan) -> xr.DataArray:
    layer = array.layer
    assert layer.name == "s2/clear", layer.name  # the one derived layer there is
    data = composites.clear_of(group["scl"], plan.clear).data
    return xr.DataArray(data, dims=layer.dims, attrs=described(array, plan))


def described(array: ArrayPlan, plan: Plan) -> dict[str, Any]:
    """Return what stands on an array of a plan's cube, lazy or stored."""
    extra: dict[str, Any] = {}
    if array.layer.kind == "mask" and array.layer.derived_from:
        extra = {
            "clear_classes": list(plan.clear.classes),
            "clear_dilate_px": plan.clear.dilate,
        }
    return attributes(array.layer, {**extra, **array.attrs}, plan.legends)


def attributes(
    layer: Layer, extra: Mapping[str, Any], legends: Iterable[Legend] = ()
) -> dict[str, Any]:
    """Return what stands on a cube's variable: CF names, nodata, and what made the numbers.

    Parameters
    ----------
    layer : Layer
        Its row.
    extra : mapping
        More attributes; they win.
    legends : iterable of Legend
        Those that a plan carries; others are looked up in the registry.
    """
    attrs: dict[str, Any] = {
        "long_name": layer.long_name,
        "units": layer.units,
        "native_resolution_m": layer.resolution,
        "resampling": layer.kernel,
    }
    if layer.kind == "class":
        # classes stay integers, so what is missing must be said; netCDF has no null
        attrs["nodata"] = NO_NODATA if layer.nodata is None else int(layer.nodata)
    if layer.legend:
        carried = {v.name: v for v in legends}
        attrs |= legend_attributes(registry.legend(carried.get(layer.legend, layer.legend)))
    return {**attrs, **extra}


def legend_attributes(legend: Legend) -> dict[str, str]:
    """Return what stands on a class layer about its legend: name, origin, and all of it."""
    return {"legend": legend.name, "origin": legend.origin, registry.CARRIED: legend.to_json()}


def legends_of(layers: Iterable[Layer]) -> tuple[Legend, ...]:
    """Return the legends of class layers, for a plan to carry.

    Raises
    ------
    CubeError
        A row names a legend that is not known here.
    """
    return tuple(registry.legend(n) for n in sorted({v.legend for v in layers if v.legend}))


NO_NODATA = "none"
"""Attribute ``nodata`` of a class layer in which every code is real."""


def valid(data: xr.DataArray) -> xr.DataArray:
    """Return where a layer of a cube has data, bool, True = usable; nothing about clouds.

    Parameters
    ----------
    data : DataArray
        Floats (NaN = nodata), masks (always valid), or integers with an attribute ``nodata`` or
        ``_FillValue``, which class layers of a cube have; its name does not matter.

    Raises
    ------
    CubeError
        Integers that do not say what their nodata is.
    """
    if data.dtype.kind in "fc":
        return data.notnull()
    if data.dtype.kind == "b":
        return xr.ones_like(data, dtype=bool)
    nodata = data.attrs.get("nodata", data.attrs.get("_FillValue"))
    if nodata is None:
        raise CubeError(
            f"{str(data.name or 'this array')!r} holds {data.dtype} and does not say what its "
            "nodata is: set it, such as .assign_attrs(nodata=0), or nodata='none' where every "
            "number is real"
        )
    if nodata == NO_NODATA:
        return xr.ones_like(data, dtype=bool)
    return data != int(nodata)
