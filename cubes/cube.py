"""From a plan to a lazy cube, an xarray DataTree on one grid; and the schema that cubes keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from cubes import physics, plans, registry
from cubes.stac.arrays import lazy
from cubes.types import TIME_COORDS, ArrayPlan, Axis, ClearPolicy, CubeError, Layer, Plan

BLOCK = 1024
"""Edge of a lazy chunk: two 512-px COG blocks. For 1,000 items x 12 bands of a 1,024-px cube this
builds 8x fewer tasks than 256-px chunks (DESIGN, Facts)."""


def open_plan(plan: Plan, *, reader: Literal["odc", "stackstac"] = "odc") -> xr.DataTree:
    """Return the lazy cube of a plan, see `open_aoi`; reads no pixel, searches nothing."""
    groups: dict[str, dict[str, xr.DataArray]] = {}
    for array in plan.arrays:
        layer = array.layer
        if layer.derived_from:
            data = _derived(layer, groups[layer.group], plan.clear)
        else:
            data = _physical(array, plan, reader)
        groups.setdefault(layer.group, {})[layer.variable] = data
    tree: dict[str, xr.Dataset] = {"/": _root(plan)}
    for group, arrays in groups.items():
        axes = [a for a in plan.axes if a.group == group]
        tree[group] = dataset(arrays, axes, plan)
    return xr.DataTree.from_dict(tree, name=str(plan.attrs.get("aoi", "cube")))


def _root(plan: Plan) -> xr.Dataset:
    from odc.geo.xr import xr_coords

    attrs = {**plan.attrs, "Conventions": "CF-1.10", "plan_sha256": plan.sha256}
    return xr.Dataset(coords=xr_coords(plan.geobox), attrs=attrs)


def dataset(arrays: Mapping[str, xr.DataArray], axes: Sequence[Axis], plan: Plan) -> xr.Dataset:
    """Return a group's Dataset: arrays with the coordinates of its axes and the grid mapping."""
    from odc.geo.xr import xr_coords

    coords: dict[Any, Any] = dict(xr_coords(plan.geobox))
    for axis in axes:
        for name, values in axis.coords.items():
            # two axes of a group may both know the orbit: the second says whose it is
            label = name if name not in coords else f"{axis.dim}_{name}"
            coords[label] = (axis.dim, _values(name, values))
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


def _physical(array: ArrayPlan, plan: Plan, reader: Literal["odc", "stackstac"]) -> xr.DataArray:
    layer = array.layer
    work = lazy(array, plan.geobox, plan.access, chunks=_chunks(plan), reader=reader)
    if layer.kind in ("continuous", "phase"):
        data = work.map_blocks(physics.to_physical, layer, dtype="float32")
    else:
        data = work.astype(layer.dtype)
    if layer.channel_dim is None:
        data = data[:, 0]
    if layer.stack_dim is None:
        data = data[0]
    coords = {layer.channel_dim: list(layer.channels)} if layer.channel_dim else {}
    return xr.DataArray(data, dims=layer.dims, coords=coords, attrs=attributes(layer, array.attrs))


def _derived(layer: Layer, group: Mapping[str, xr.DataArray], policy: ClearPolicy) -> xr.DataArray:
    assert layer.name == "s2/clear", layer.name  # the one derived layer there is
    scl = group["scl"].data
    halo = {scl.ndim - 2: policy.dilate, scl.ndim - 1: policy.dilate}
    clear: Callable[..., Any] = physics.clear
    empty = np.empty((0,) * scl.ndim, bool)
    data = scl.map_overlap(clear, depth=halo, boundary=0, policy=policy, dtype=bool, meta=empty)
    attrs = {"clear_classes": list(policy.classes), "clear_dilate_px": policy.dilate}
    return xr.DataArray(data, dims=layer.dims, attrs=attributes(layer, attrs))


def attributes(layer: Layer, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands on a cube's variable: CF names, and what made the numbers."""
    attrs: dict[str, Any] = {
        "long_name": layer.long_name,
        "units": layer.units,
        "native_resolution_m": layer.resolution,
        "resampling": layer.kernel,
    }
    if layer.legend:
        attrs["legend"] = layer.legend
        attrs["origin"] = registry.legend(layer.legend).origin
    return {**attrs, **extra}


def valid(data: xr.DataArray) -> xr.DataArray:
    """Return where a layer of a cube has data, bool, True = usable; nothing about clouds."""
    layer = _layer_of(data)
    nodata = layer.nodata if layer is not None and data.dtype.kind in "iu" else None
    if data.dtype.kind == "f":
        return data.notnull()
    if data.dtype.kind == "b" or nodata is None:
        return xr.ones_like(data, dtype=bool)
    return data != int(nodata)


def _layer_of(data: xr.DataArray) -> Layer | None:
    return next((v for v in registry.layers().values() if v.variable == data.name), None)


def check(cube: xr.DataTree) -> None:
    """Return nothing if a DataTree is a cube as documented.

    Raises
    ------
    CubeError
        Lists every violation: unknown groups or variables, dimensions, dtypes, units, missing or
        unsorted coordinates, grids that differ, values far outside a layer's range are not read.
    """
    found = list(_violations(cube))
    if found:
        raise CubeError("this is not a cube:\n- " + "\n- ".join(found))


_NEEDED = {
    ("s1", "time"): ("relative_orbit", "orbit_state", "platform"),
    ("insar", "pair"): ("reference_time", "secondary_time", "temporal_baseline"),
    ("s2", "time"): ("platform",),
}


def _violations(cube: xr.DataTree) -> Iterable[str]:
    known = registry.layers()
    groups = {n.split("/")[0] for n in known}
    if not cube.children:
        yield f"no groups; known: {', '.join(sorted(groups))}"
    for name, node in cube.children.items():
        if name not in groups:
            yield f"unknown group {name!r}; known: {', '.join(sorted(groups))}"
            continue
        data = node.to_dataset()
        yield from _grid_violations(name, data)
        for variable, array in data.data_vars.items():
            layer = known.get(f"{name}/{variable}")
            if layer is None:
                yield f"unknown layer '{name}/{variable}'; add a row to the registry"
            else:
                yield from _array_violations(layer, array)
        for (group, dim), needed in _NEEDED.items():
            if group == name and dim in data.dims:
                for coord in needed:
                    if coord not in data.coords:
                        yield f"{name!r} lacks coordinate {coord!r} along {dim!r}"
        if "time" in data.indexes and not data.indexes["time"].is_monotonic_increasing:
            yield f"times of {name!r} are not sorted"


def _grid_violations(name: str, data: xr.Dataset) -> Iterable[str]:
    import odc.geo.xr  # noqa: F401  registers the accessor

    if "y" not in data.coords or "x" not in data.coords:
        yield f"{name!r} lacks coordinates y and x (pixel centres)"
        return
    if data.sizes["y"] > 1 and float(data.y[0]) < float(data.y[-1]):
        yield f"{name!r} is not north up: y must descend"
    if "spatial_ref" not in data.coords:
        yield f"{name!r} lacks the coordinate spatial_ref; write it with .odc.assign_crs(...)"


def _array_violations(layer: Layer, array: xr.DataArray) -> Iterable[str]:
    if tuple(array.dims) != layer.dims:
        yield f"{layer.name!r} has dims {tuple(array.dims)}, must be {layer.dims}"
    want = {"mask": "bool", "class": layer.dtype}.get(layer.kind, "float32")
    if str(array.dtype) != want:
        yield f"{layer.name!r} has dtype {array.dtype}, must be {want} in physical units"
    units = array.attrs.get("units", layer.units)
    if units != layer.units:
        yield f"{layer.name!r} has units {units!r}, must be {layer.units!r}"
    dim = layer.channel_dim
    if dim and dim in array.coords:
        every = registry.all_channels(layer.name)
        for channel in array[dim].to_numpy():
            if str(channel) not in every:
                yield f"{layer.name!r}: unknown {dim} {str(channel)!r}; known: {', '.join(every)}"
    if layer.name == "s1/backscatter" and "calibration" not in array.attrs:
        yield f"{layer.name!r} lacks the attribute calibration"
