"""Every byte of a cube's Zarr metadata and coordinates: a pure function of plan and layout.

We write it ourselves rather than through a Zarr library, so that one plan gives one set of bytes
whatever the version installed; the tests open it with zarr-python and xarray.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt
import pandas as pd
from odc.geo.geobox import GeoBox

from cubes import cube, plans
from cubes.store import shards
from cubes.store.layout import ArrayLayout, array_layouts
from cubes.types import TIME_COORDS, ArrayPlan, CubeError, Layer, Layout, Plan

Array = npt.NDArray[Any]

TIME_UNITS = "nanoseconds since 1970-01-01"
"""Of every time coordinate, int64, UTC: exact for the microseconds of Sentinel-1 start times, and
what xarray decodes to datetime64[ns] without rounding."""
NAT = -(2**63)

CONVENTIONS = [
    {
        "schema_url": "https://raw.githubusercontent.com/zarr-experimental/geo-proj/refs/tags/v1/schema.json",
        "spec_url": "https://github.com/zarr-experimental/geo-proj/blob/v1/README.md",
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj:",
        "description": "Coordinate reference system information for geospatial data",
    },
    {
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v1/README.md",
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial:",
        "description": "Spatial coordinate information",
    },
]


# ---------------------------------------------------------------------------------- coordinates


@dataclass(frozen=True, kw_only=True, slots=True)
class Coordinate:
    """One coordinate variable of a group, as stored."""

    dims: tuple[str, ...]
    data: Array
    """float64, int64, bool, or object (text)."""
    attrs: Mapping[str, Any]


def coordinates(plan: Plan, group: str) -> dict[str, Coordinate]:
    """Return the coordinate variables of one group (empty string: the root), as stored.

    Times are int64 nanoseconds since 1970 in UTC. Names are those of `Plan.coordinates`.

    Raises
    ------
    CubeError
        Layers of a group name different channels along one dimension.
    """
    out = _grid_coordinates(plan.geobox)
    for name, (along, values) in plan.coordinates(group).items():
        out[name] = _coordinate(name, along, values)
    channels: dict[str, tuple[str, ...]] = {}
    for layer in (a.layer for a in plan.arrays if a.layer.group == group):
        dim = layer.channel_dim
        if dim is None:
            continue
        if channels.setdefault(dim, layer.channels) != layer.channels:
            raise CubeError(
                f"layers of group {group!r} have different channels along {dim!r}: "
                f"{', '.join(channels[dim])} and {', '.join(layer.channels)} ({layer.name}); "
                "ask for the same channels of both"
            )
        out[dim] = Coordinate(dims=(dim,), data=np.array(layer.channels, object), attrs={})
    return out


def _grid_coordinates(geobox: GeoBox) -> dict[str, Coordinate]:
    from odc.geo.xr import xr_coords

    out = {}
    for name, coord in xr_coords(geobox).items():
        attrs = {str(k): _plain(v) for k, v in coord.attrs.items()}
        if name != "spatial_ref":
            attrs["standard_name"] = f"projection_{name}_coordinate"
        out[str(name)] = Coordinate(
            dims=tuple(str(d) for d in coord.dims), data=coord.to_numpy(), attrs=attrs
        )
    return out


def _coordinate(name: str, dim: str, values: Sequence[Any]) -> Coordinate:
    if name in TIME_COORDS:
        stamps = np.array([_nanoseconds(v) for v in values], np.int64)
        attrs: dict[str, Any] = {"units": TIME_UNITS, "calendar": "proleptic_gregorian"}
        if (stamps == NAT).any():
            attrs["_FillValue"] = NAT
        return Coordinate(dims=(dim,), data=stamps, attrs=attrs)
    return Coordinate(dims=(dim,), data=plans.column(name, values), attrs={})


def _nanoseconds(value: Any) -> int:
    if value is None:
        return NAT
    stamp = pd.Timestamp(value)
    if stamp.tzinfo is not None:
        stamp = stamp.tz_convert("UTC").tz_localize(None)
    return int(stamp.as_unit("ns").value)


def decoded(name: str, coord: Coordinate) -> tuple[tuple[str, ...], Array, dict[str, Any]]:
    """Return a stored coordinate as xarray has it: times as datetime64[ns], text as str."""
    if name in TIME_COORDS:
        return coord.dims, coord.data.view("datetime64[ns]"), {}
    if coord.data.dtype == object:
        return coord.dims, coord.data.astype(str), dict(coord.attrs)
    # the CF standard names are for other readers; the lazy cube has none
    return coord.dims, coord.data, {k: v for k, v in coord.attrs.items() if k != "standard_name"}


# ------------------------------------------------------------------------------------- metadata


def attributes(array: ArrayPlan, plan: Plan) -> dict[str, Any]:
    """Return what an array of physical values says about itself, as the lazy cube does."""
    plain = _plain(cube.described(array, plan))
    assert isinstance(plain, dict)
    return plain


def _encoding_attributes(layer: Layer) -> dict[str, Any]:
    """Return the CF attributes that turn stored into physical numbers for any reader."""
    dtype = np.dtype(layer.dtype)
    out: dict[str, Any] = {}
    if layer.kind == "mask":
        return {"dtype": "bool"}
    if layer.kind != "class" and (layer.scale, layer.offset) != (1.0, 0.0):
        out["scale_factor"] = layer.scale
        # Without an offset xarray decodes to float32, with any offset to float64: leave a 0 out.
        if layer.offset:
            out["add_offset"] = layer.offset
    if layer.nodata is not None and layer.kind != "class":
        # xarray's own form of the attribute in Zarr v3: floats as base64 of a little-endian double
        out["_FillValue"] = (
            base64.standard_b64encode(struct.pack("<d", layer.nodata)).decode()
            if dtype.kind == "f"
            else int(layer.nodata)
        )
    elif layer.nodata is not None:
        out["nodata"] = int(layer.nodata)  # a class stays an integer for every reader
    return out


def geo_attributes(geobox: GeoBox) -> dict[str, Any]:
    """Return the ``proj:`` and ``spatial:`` attributes (GeoZarr) of a group on `geobox`."""
    crs = geobox.crs
    out: dict[str, Any] = {"zarr_conventions": CONVENTIONS}
    epsg = crs.epsg if crs is not None else None
    if epsg is not None:
        out["proj:code"] = f"EPSG:{epsg}"
    elif crs is not None:
        out["proj:wkt2"] = crs.to_wkt()
    box = geobox.boundingbox
    out["spatial:dimensions"] = ["y", "x"]
    out["spatial:bbox"] = [box.left, box.bottom, box.right, box.top]
    out["spatial:transform"] = [float(v) for v in tuple(geobox.transform)[:6]]
    out["spatial:shape"] = [int(v) for v in geobox.shape]
    out["spatial:registration"] = "pixel"
    return out


def _plain(value: Any) -> Any:
    """Return `value` as strict JSON has it: NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _json(node: Mapping[str, Any]) -> bytes:
    text = json.dumps(node, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode()


def _array_node(array: ArrayLayout, plan: Plan, aux: list[str]) -> dict[str, Any]:
    layer = array.layer
    dtype = np.dtype(layer.dtype)
    inner = shards.codecs(array.codec, dtype.itemsize)
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(array.chunk),
            "codecs": inner,
            "index_codecs": index,
            "index_location": "end",
        },
    }
    fill = array.fill.item()
    attrs = attributes(plan.array(layer.name), plan)
    # what is stored may be linear power where the person's values are decibels
    attrs |= {"units": layer.units, "long_name": layer.long_name} | _encoding_attributes(layer)
    attrs["grid_mapping"] = "spatial_ref"
    if aux:
        attrs["coordinates"] = " ".join(aux)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(array.shape),
        "data_type": dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(array.shard)},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": "NaN" if isinstance(fill, float) and math.isnan(fill) else fill,
        "codecs": [sharding] if array.sharded else inner,
        "attributes": attrs,
        "dimension_names": list(layer.dims),
        "storage_transformers": [],
    }


def _coordinate_node(coord: Coordinate) -> tuple[dict[str, Any], bytes]:
    """Return the metadata and the one chunk of a coordinate: plain bytes and their CRC-32C."""
    text = coord.data.dtype == object
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    if text:
        words = [str(v).encode() for v in coord.data]
        body = struct.pack("<I", len(words)) + b"".join(
            struct.pack("<I", len(w)) + w for w in words
        )
        first: dict[str, Any] = {"name": "vlen-utf8"}
    else:
        values = np.ascontiguousarray(coord.data)
        body = values.astype(values.dtype.newbyteorder("<")).tobytes()
        first = little if values.dtype.itemsize > 1 else {"name": "bytes"}
    fill: Any = "" if text else coord.data.dtype.type(0).item()
    node = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(coord.data.shape),
        "data_type": "string" if text else coord.data.dtype.name,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(coord.data.shape)},
        },
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [first, {"name": "crc32c"}],
        "attributes": dict(coord.attrs),
        "dimension_names": list(coord.dims),
        "storage_transformers": [],
    }
    return node, body + struct.pack("<I", crc32c.crc32c(body))


def _group_node(attrs: Mapping[str, Any], members: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": dict(attrs),
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(members),
        },
    }


def root_attributes(plan: Plan) -> dict[str, Any]:
    """Return the attributes of the root: provenance, the same as a lazy cube's."""
    plain = _plain(dict(plan.attrs))
    assert isinstance(plain, dict)
    return plain | {"Conventions": "CF-1.10", "plan_sha256": plan.sha256}


def groups(plan: Plan) -> list[str]:
    """Return the names of the groups of `plan`, in its order."""
    return list(dict.fromkeys(a.layer.group for a in plan.arrays))


def metadata(plan: Plan, layout: Layout) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return every object of the store that is not pixels: key -> bytes.

    Two sets: arrays and coordinates, written first; and the groups with the root, written when
    the cube is sealed, so that no Zarr reader takes a half-written cube for a whole one.
    """
    first: dict[str, bytes] = {}
    last: dict[str, bytes] = {}
    nodes: dict[str, Any] = {}
    layouts = array_layouts(plan, layout)
    geo = geo_attributes(plan.geobox)
    for group in ["", *groups(plan)]:
        prefix = f"{group}/" if group else ""
        coords = coordinates(plan, group)
        aux = [n for n, c in coords.items() if (n,) != c.dims]
        members: dict[str, Any] = {}
        for name, coord in coords.items():
            node, chunk = _coordinate_node(coord)
            members[name] = node
            # a chunk's key has one number per dimension; a scalar's is the bare "c"
            first["/".join([prefix + name, "c", *["0"] * len(coord.dims)])] = chunk
        for name, array in layouts.items():
            if array.layer.group == group:
                mine = [n for n in aux if set(coords[n].dims) <= set(array.layer.dims)]
                members[array.layer.variable] = _array_node(array, plan, mine)
                assert name == prefix + array.layer.variable
        for name, node in members.items():
            first[f"{prefix}{name}/zarr.json"] = _json(node)
            nodes[prefix + name] = node
        if group:
            attrs = geo | {"coordinates": " ".join(aux)}
            nodes[group] = _group_node(attrs, {})
            last[f"{group}/zarr.json"] = _json(_group_node(attrs, members))
    root = geo | {"coordinates": "spatial_ref"} | root_attributes(plan)
    last["zarr.json"] = _json(_group_node(root, nodes))
    return first, last
