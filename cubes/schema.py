"""What makes a DataTree a cube: `check` lists everything that `write` could not keep as it is.

A cube that passes comes back from a store as it went in. What a store has no place for (coordinates
of two dimensions, variables beside the groups, groups within groups, uneven spacing) is refused
here, never dropped or made regular on the way.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubes import grid, registry
from cubes.types import CHANNEL_DIMS, STACK_DIMS, TIME_COORDS, CubeError, Layer

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

OFF_GRID = 0.01
"""Pixels by which coordinates may miss an even spacing, or two groups each other: rounding."""

CLIPPED_FEW, CLIPPED_SHARE = 16, 1e-3
"""Numbers outside a layer's range that are taken for outliers (glint, a strong reflector) and
clipped: at most 16, or one in a thousand of those with data. More are a sign of other units."""

SAMPLE = 128
"""Edge in pixels of the central window of which values are looked at."""
ENOUGH = 256
"""Values with data from which decibels can be told from linear power."""

_NEEDED = {
    ("s1", "time"): ("relative_orbit", "orbit_state", "platform"),
    ("insar", "pair"): ("reference_time", "secondary_time", "temporal_baseline"),
    ("s2", "time"): ("platform",),
}
_GRID = ("y", "x", "spatial_ref")


def check(cube: xr.DataTree, *, values: bool = True) -> None:
    """Return nothing if a DataTree is a cube as documented.

    Parameters
    ----------
    cube : DataTree
        Groups of arrays in physical units.
    values : bool
        Look at values in memory, and not only at what stands around them.

    Raises
    ------
    CubeError
        Not a DataTree; else lists every violation: unknown groups or variables, dimensions,
        dtypes, units, attributes that contradict a layer's row; coordinates that are missing,
        unsorted, doubled, along another dimension than the documented one, or of a form that a
        store does not keep; grids that are not even, differ from group to group or lie in degrees.
        Of arrays in memory a central window is compared with the layer's range; dask arrays are
        not computed: their values are looked at while they are written.
    """
    if not isinstance(cube, xr.DataTree):
        raise CubeError(
            f"a cube is an xarray.DataTree of groups, not a {type(cube).__name__}: give the group "
            "its name, such as xarray.DataTree.from_dict({'s2': dataset})"
        )
    found = list(_violations(cube))
    if values:
        found += values_of_other_units(cube, registry.layers())
    if found:
        raise CubeError("this is not a cube:\n- " + "\n- ".join(found))


def outside(values: npt.NDArray[Any], layer: Layer) -> int:
    """Return how many physical values a layer would clip: outside its range by more than a step.

    None where it is stored as floats, as in a lossless layout.
    """
    if layer.kind not in ("continuous", "phase") or np.dtype(layer.dtype).kind == "f":
        return 0
    low, high = layer.valid_range
    slack = layer.scale
    # NaN compares as False on both sides
    return int(np.count_nonzero((values < low - slack) | (values > high + slack)))


def wrong_values(values: npt.NDArray[Any], layer: Layer) -> str | None:
    """Return why physical values cannot be in a layer's units, or None where they may be.

    Parameters
    ----------
    values : array
        Any shape; NaN = nodata.
    layer : Layer
        The row, as it is stored.
    """
    if layer.kind not in ("continuous", "phase"):
        return None
    known = int(values.size - np.count_nonzero(np.isnan(values)))
    count = outside(values, layer)
    low, high = layer.valid_range
    if count > max(CLIPPED_FEW, CLIPPED_SHARE * known):
        reach = (np.nanmin(values), np.nanmax(values))
        return (
            f"{layer.name!r}: {count:,} of {known:,} values lie outside {low:g} to {high:g} in "
            f"{layer.units!r} (they reach {reach[0]:g} to {reach[1]:g}) and would be "
            f"clipped; convert them to {layer.units!r}, and set what is missing to NaN"
        )
    if layer.units == "dB" and known >= ENOUGH and float(np.nanmin(values)) >= 0:
        return (
            f"{layer.name!r}: none of {known:,} values is below 0, so they are linear power and "
            "not dB; convert them with 10 * log10, where power is above 0"
        )
    return None


# ------------------------------------------------------------------------------------ the tree


def _violations(cube: xr.DataTree) -> Iterable[str]:
    known = registry.layers()
    groups = {n.split("/")[0] for n in known}
    if not cube.children:
        yield f"no groups; known: {', '.join(sorted(groups))}"
    yield from _root_violations(cube)
    boxes: dict[str, GeoBox] = {}
    for name, node in cube.children.items():
        if name not in groups:
            yield f"unknown group {name!r}; known: {', '.join(sorted(groups))}"
            continue
        for inner in node.children:
            yield f"group '{name}/{inner}' lies within a group; a store keeps one level of groups"
        data = node.to_dataset()
        box = yield from _grid_violations(name, data)
        if box is not None:
            boxes[name] = box
        for variable, array in data.data_vars.items():
            layer = known.get(f"{name}/{variable}")
            if layer is None:
                yield f"unknown layer '{name}/{variable}'; add a row to the registry"
            else:
                yield from _array_violations(layer, array)
        yield from _axis_violations(name, data)
        yield from _coordinate_violations(name, data)
    yield from _grids_that_differ(boxes)


def _root_violations(cube: xr.DataTree) -> Iterable[str]:
    for name in cube.data_vars:
        yield f"variable {name!r} stands beside the groups; a store keeps layers in groups"
    for name in cube.coords:
        if name not in _GRID:
            yield f"coordinate {name!r} stands beside the groups; a store keeps y, x, spatial_ref"
    yield from _attribute_violations("the cube", cube.attrs)


def _attribute_violations(what: str, attrs: Mapping[Any, Any]) -> Iterable[str]:
    for name, value in attrs.items():
        try:
            json.dumps(plain(value))
        except (TypeError, ValueError):
            yield (
                f"attribute {str(name)!r} of {what} is a {type(value).__name__}, which a store "
                "does not keep; give text, numbers, lists or dicts"
            )


def plain(value: Any) -> Any:
    """Return `value` with numpy's numbers and arrays as Python's, at any depth."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value


# ------------------------------------------------------------------------------------- the grid


def _grid_violations(name: str, data: xr.Dataset) -> Generator[str, None, GeoBox | None]:
    """Yield what is wrong with a group's grid; return the grid where nothing is."""
    import odc.geo.xr  # noqa: F401  registers the accessor

    if any(d not in data.coords or data[d].dims != (d,) for d in ("y", "x")):
        yield f"{name!r} lacks coordinates y and x (pixel centres)"
        return None
    wrong = list(_spacing_violations(name, data))
    yield from wrong
    if "spatial_ref" not in data.coords:
        yield f"{name!r} lacks the coordinate spatial_ref; write it with .odc.assign_crs(...)"
        return None
    if wrong:
        return None
    box: GeoBox | None = data.odc.geobox
    if box is None or box.crs is None:
        yield f"{name!r} has no grid with a CRS; write one with .odc.assign_crs(...)"
        return None
    problem = grid.in_degrees(box.crs, box.boundingbox.bbox)
    if problem:
        yield f"{name!r}: {problem}"
        return None
    return box


def _spacing_violations(name: str, data: xr.Dataset) -> Iterable[str]:
    for dim, sign, rule in (("y", -1, "is not north up: y must descend"),
                            ("x", 1, "runs westwards: x must ascend")):  # fmt: skip
        values = data[dim].to_numpy().astype(np.float64)
        if len(values) < 2:
            continue
        step = (values[-1] - values[0]) / (len(values) - 1)
        if step * sign <= 0:
            yield f"{name!r} {rule}"
            continue
        off = np.abs(values - (values[0] + step * np.arange(len(values)))) / abs(step)
        # NaN must not pass either
        if not float(off.max()) <= OFF_GRID:
            at = int(np.argmax(off))
            yield (
                f"{name!r} is not evenly spaced along {dim}: {dim}[{at}] is {values[at]:g}, "
                f"{off[at]:.2f} px from a spacing of {abs(step):g}; bring it onto an even grid"
            )


def _grids_that_differ(boxes: Mapping[str, GeoBox]) -> Iterable[str]:
    """Compare every group's grid with the first one's."""
    if not boxes:
        return
    (first, want), *others = boxes.items()
    for name, box in others:
        scale = abs(want.resolution.x), abs(want.resolution.y)
        bounds = zip(box.boundingbox.bbox, want.boundingbox.bbox, (*scale, *scale), strict=True)
        same = box.shape == want.shape and box.crs == want.crs
        if not (same and all(abs(a - b) <= OFF_GRID * px for a, b, px in bounds)):
            yield (
                f"{name!r} lies on {_place(box)}, {first!r} on {_place(want)}: a cube has "
                "one grid; bring one onto the other first"
            )


def _place(box: GeoBox) -> str:
    left, _, _, top = box.boundingbox.bbox
    crs = f"EPSG:{box.crs.epsg}" if box.crs is not None and box.crs.epsg else str(box.crs)
    return (
        f"{box.shape[0]} x {box.shape[1]} px of {abs(box.resolution.x):g} from ({left:.10g}, "
        f"{top:.10g}) in {crs}"
    )


# ------------------------------------------------------------------------- axes and coordinates


def _stacks(data: xr.Dataset) -> list[str]:
    """Return the stack dimensions that the layers of a group use."""
    return [d for d in STACK_DIMS if any(d in v.dims for v in data.data_vars.values())]


def _axis_violations(name: str, data: xr.Dataset) -> Iterable[str]:
    for dim in _stacks(data):
        if dim not in data.indexes:
            yield f"{name!r} lacks the coordinate {dim!r} along {dim!r}"
            continue
        index = data.indexes[dim]
        if index.hasnans:
            yield f"{dim} of {name!r} holds an unknown value"
        elif index.has_duplicates:
            twice = index[index.duplicated()][0]
            yield f"{dim} of {name!r} holds {twice} more than once; leave one of them out"
        elif dim in ("time", "year") and not index.is_monotonic_increasing:
            yield f"{dim}s of {name!r} are not sorted"
    for coord in TIME_COORDS:
        if coord in data.coords and data[coord].dtype.kind != "M":
            yield f"{coord} of {name!r} has dtype {data[coord].dtype}, must be datetime64 (UTC)"
    for (group, dim), needed in _NEEDED.items():
        if group == name and dim in data.dims:
            for coord in needed:
                if coord not in data.coords or data[coord].dims != (dim,):
                    yield f"{name!r} lacks coordinate {coord!r} along {dim!r}"


def _coordinate_violations(name: str, data: xr.Dataset) -> Iterable[str]:
    """Yield coordinates of which a store would make something else, or nothing."""
    stacks = _stacks(data)
    for label, coord in data.coords.items():
        text, dims = str(label), coord.dims
        if text in _GRID or (text in CHANNEL_DIMS and dims == (text,)):
            continue
        if len(dims) != 1 or dims[0] not in stacks:
            yield (
                f"coordinate {text!r} of {name!r} has dims {dims}; a store keeps coordinates along "
                f"one of {', '.join(stacks) or 'no dimension here'}: drop it with .drop_vars, or "
                "make it a layer with a row of its own"
            )
        elif dims == ("track",) and text != "track" and not text.startswith("track_"):
            yield (
                f"coordinate {text!r} of {name!r} lies along 'track'; there it is called "
                f"'track_{text}', since the bare name belongs to time"
            )
        elif dims != ("track",) and text.startswith("track_"):
            yield f"coordinate {text!r} of {name!r} lies along {dims[0]!r}, must be along 'track'"


# ------------------------------------------------------------------------------------ the arrays


def _array_violations(layer: Layer, array: xr.DataArray) -> Iterable[str]:
    if tuple(array.dims) != layer.dims:
        yield f"{layer.name!r} has dims {tuple(array.dims)}, must be {layer.dims}"
    want = {"mask": "bool", "class": layer.dtype}.get(layer.kind, "float32")
    if str(array.dtype) != want:
        yield f"{layer.name!r} has dtype {array.dtype}, must be {want} in physical units"
    units = array.attrs.get("units", layer.units)
    if units != layer.units:
        yield f"{layer.name!r} has units {units!r}, must be {layer.units!r}"
    if layer.kind == "class" and array.attrs.get("nodata", layer.nodata) != layer.nodata:
        yield (
            f"{layer.name!r} has the attribute nodata={array.attrs['nodata']!r}, its row says "
            f"{layer.nodata}; give missing pixels the row's number"
        )
    yield from _channel_violations(layer, array)
    if layer.name == "s1/backscatter" and "calibration" not in array.attrs:
        yield f"{layer.name!r} lacks the attribute calibration"
    yield from _attribute_violations(repr(layer.name), array.attrs)


def _channel_violations(layer: Layer, array: xr.DataArray) -> Iterable[str]:
    dim = layer.channel_dim
    if not dim or dim not in array.dims:
        return
    if dim not in array.coords:
        yield f"{layer.name!r} lacks the coordinate {dim!r}: label its channels"
        return
    every = registry.all_channels(layer.name)
    labels = [str(v) for v in array[dim].to_numpy()]
    for label in labels:
        if label not in every:
            yield f"{layer.name!r}: unknown {dim} {label!r}; known: {', '.join(every)}"
    if len(set(labels)) < len(labels):
        yield f"{layer.name!r} holds a {dim} more than once: {', '.join(labels)}"


def values_of_other_units(cube: xr.DataTree, layers: Mapping[str, Layer]) -> list[str]:
    """Return which arrays in memory hold values that cannot be in their layer's units.

    Parameters
    ----------
    cube : DataTree
        Arrays on dask are passed over: they are not computed for a check.
    layers : mapping
        Name -> row, as it is stored.
    """
    found = []
    for group, node in cube.children.items():
        for variable, array in node.data_vars.items():
            layer = layers.get(f"{group}/{variable}")
            if layer is None or array.chunks is not None or array.dtype.kind != "f":
                continue
            if tuple(array.dims) == layer.dims:
                found.append(wrong_values(_sample(layer, array), layer))
    return [text for text in found if text]


def _sample(layer: Layer, array: xr.DataArray) -> npt.NDArray[Any]:
    """Return a central window of the first and the middle step."""
    where: dict[str, Any] = {}
    for dim in ("y", "x"):
        first = max(0, (array.sizes[dim] - SAMPLE) // 2)
        where[dim] = slice(first, first + SAMPLE)
    if layer.stack_dim:
        n = array.sizes[layer.stack_dim]
        where[layer.stack_dim] = sorted({0, n // 2} if n else set())
    return np.asarray(array.isel(where).to_numpy())
