"""STAC and GeoParquet of a corpus: items, the collection, and the table that holds both."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import shapely

from cubes.bounds import lonlat_bbox
from cubes.corpora.card import Source
from cubes.store import metadata
from cubes.types import TIME_COORDS, Axis, CubeError, Plan

VERSION = "1.1.0"
"""Of STAC."""

PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
DATACUBE = "https://stac-extensions.github.io/datacube/v2.2.0/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"

ZARR = "application/vnd.zarr; version=3"
PARQUET = "application/vnd.apache.parquet"

OWN = ("crs", "shape", "layers", "steps", "valid", "bytes", "objects", "tree_sha256", "plan_sha256")
"""Columns of a corpus table that STAC has no name for; in the Parquet table as ``cubes:...``."""


def multihash(sha256: str) -> str:
    """Return a SHA-256 as STAC's ``file:checksum`` has it."""
    return f"1220{sha256}"


def utc(time: Any) -> str:
    """Return a time as RFC 3339 in UTC."""
    return f"{pd.Timestamp(time).isoformat(timespec='seconds')}Z"


# -------------------------------------------------------------------------------------- datacube


def dimensions(plan: Plan) -> dict[str, Any]:
    """Return ``cube:dimensions`` of a cube; stack and channel dimensions carry their group."""
    box = plan.geobox
    left, bottom, right, top = box.boundingbox.bbox
    assert box.crs is not None
    reference: Any = box.crs.epsg or box.crs.to_wkt()
    out: dict[str, Any] = {}
    for axis, low, high, step in (
        ("x", left, right, box.resolution.x),
        ("y", bottom, top, box.resolution.y),
    ):
        out[axis] = {
            "type": "spatial",
            "axis": axis,
            # of pixel centres, as the coordinates are
            "extent": [low + abs(step) / 2, high - abs(step) / 2],
            "step": abs(step),
            "reference_system": reference,
        }
    for axis_ in plan.axes:
        out[f"{axis_.group}/{axis_.dim}"] = _stack(axis_)
    for layer in (a.layer for a in plan.arrays):
        if layer.channel_dim:
            name = f"{layer.group}/{layer.channel_dim}"
            out[name] = {"type": "bands", "values": list(layer.channels)}
    return out


def _stack(axis: Axis) -> dict[str, Any]:
    values = axis.coords[axis.dim]
    if axis.dim in TIME_COORDS:
        ends = sorted(pd.Timestamp(v) for v in values)
        extent = [utc(ends[0]), utc(ends[-1])] if ends else [None, None]
        return {"type": "temporal", "extent": extent, "step": None}
    return {"type": axis.dim, "values": list(values)}


def variables(plan: Plan) -> dict[str, Any]:
    """Return ``cube:variables`` of a cube, by layer name."""
    out = {}
    for layer in (a.layer for a in plan.arrays):
        out[layer.name] = {
            "dimensions": [d if d in ("x", "y") else f"{layer.group}/{d}" for d in layer.dims],
            "type": "data",
            "description": layer.long_name,
            "unit": layer.units,
        }
    return out


# ----------------------------------------------------------------------------------------- items


def item(name: str, row: pd.Series, plan: Plan, collection: str) -> dict[str, Any]:
    """Return the STAC item of one cube, its asset relative to ``items/``."""
    box = plan.geobox
    assert box.crs is not None
    geo = metadata.geo_attributes(box)
    properties: dict[str, Any] = {
        "datetime": None,
        "start_datetime": utc(row["start"]),
        "end_datetime": utc(row["end"]),
        "title": str(plan.attrs.get("aoi", name)),
        "proj:code": geo.get("proj:code"),
        "proj:shape": geo["spatial:shape"],
        "proj:transform": geo["spatial:transform"],
        "proj:bbox": geo["spatial:bbox"],
        "cube:dimensions": dimensions(plan),
        "cube:variables": variables(plan),
        **{f"cubes:{n}": row[n] for n in ("tree_sha256", "plan_sha256", "objects")},
        "cubes:valid": row["valid"],
    }
    if "proj:wkt2" in geo:
        properties["proj:wkt2"] = geo["proj:wkt2"]
    links = [
        {"rel": rel, "href": "../collection.json", "type": "application/json"}
        for rel in ("root", "parent", "collection")
    ]
    return {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": [PROJECTION, DATACUBE, FILE],
        "id": name,
        "collection": collection,
        "geometry": json.loads(shapely.to_geojson(row["geometry"])),
        "bbox": list(lonlat_bbox(row["geometry"])),
        "properties": properties,
        "links": links,
        "assets": {"cube": {**_asset(name, row), "href": f"../cubes/{name}.zarr"}},
    }


def _asset(name: str, row: pd.Series) -> dict[str, Any]:
    return {
        "href": f"cubes/{name}.zarr",
        "type": ZARR,
        "roles": ["data"],
        "title": "Zarr v3 store",
        "file:size": int(row["bytes"]),
    }


def items_parquet(table: pd.DataFrame, collection: str) -> bytes:
    """Return a corpus table as GeoParquet in which every row is a STAC item.

    Follows the stac-geoparquet layout: properties as columns, links and assets nested. The
    datacube fields, which differ in shape from cube to cube, are in the items' own files.
    """
    import pyarrow as pa
    from pyarrow import parquet

    geometry = table["geometry"].to_numpy()
    bounds = shapely.bounds(geometry)
    stamp = pa.timestamp("us", tz="UTC")
    boxes = [dict(zip(_BOX, map(float, b), strict=True)) for b in bounds]
    columns: dict[str, Any] = {
        "type": ["Feature"] * len(table),
        "stac_version": [VERSION] * len(table),
        "stac_extensions": [[PROJECTION]] * len(table),
        "id": table.index.tolist(),
        "geometry": shapely.to_wkb(geometry).tolist(),
        "bbox": boxes,
        "links": [_links(str(n)) for n in table.index],
        "assets": [{"cube": _asset(str(n), row)} for n, row in table.iterrows()],
        "collection": [collection] * len(table),
        "datetime": pa.nulls(len(table), stamp),
        "start_datetime": _stamps(table["start"], stamp),
        "end_datetime": _stamps(table["end"], stamp),
        "proj:code": [c if c.startswith("EPSG:") else None for c in table["crs"]],
        "proj:shape": [list(map(int, s)) for s in table["shape"]],
        "proj:transform": [list(map(float, t)) for t in table["transform"]],
        **{f"cubes:{n}": _own(n, table[n]) for n in OWN if n != "shape"},
    }
    rows = pa.table(columns)
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {
            "geometry": {
                "encoding": "WKB",
                "geometry_types": sorted({g.geom_type for g in geometry}),
                "bbox": [*bounds[:, :2].min(0).tolist(), *bounds[:, 2:].max(0).tolist()],
                "covering": {"bbox": {k: ["bbox", k] for k in _BOX}},
            }
        },
    }
    rows = rows.replace_schema_metadata({b"geo": json.dumps(geo).encode()})
    out = io.BytesIO()
    parquet.write_table(rows, out, compression="zstd")
    return out.getvalue()


_BOX = ("xmin", "ymin", "xmax", "ymax")


def _links(name: str) -> list[dict[str, str]]:
    return [
        {"rel": "self", "href": f"items/{name}.json", "type": "application/geo+json"},
        {"rel": "collection", "href": "collection.json", "type": "application/json"},
    ]


def _stamps(times: pd.Series, kind: Any) -> Any:
    import pyarrow as pa

    return pa.array(times.dt.tz_localize("UTC").astype("datetime64[us, UTC]"), kind)


def _own(name: str, column: pd.Series) -> list[Any]:
    """Return a column as Parquet holds it: maps as JSON, since each row has keys of its own."""
    if name in ("steps", "valid"):
        return [json.dumps(v) for v in column]
    if name == "layers":
        return [list(v) for v in column]
    return [v.item() if isinstance(v, np.generic) else v for v in column]


def read_items(data: bytes) -> pd.DataFrame:
    """Return the corpus table in a GeoParquet made by `items_parquet`.

    Raises
    ------
    CubeError
        Not such a file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(data))
        columns = {n: rows[f"cubes:{n}"].to_pylist() for n in OWN if n != "shape"}
        table = pd.DataFrame(columns, index=pd.Index(rows["id"].to_pylist(), name="id"))
        table["geometry"] = shapely.from_wkb(rows["geometry"].to_pylist())
        for ours, theirs in (("start", "start_datetime"), ("end", "end_datetime")):
            times = pd.to_datetime(pd.Series(rows[theirs].to_pylist(), index=table.index))
            table[ours] = times.dt.tz_localize(None).astype("datetime64[ns]")
        table["shape"] = [tuple(v) for v in rows["proj:shape"].to_pylist()]
        table["transform"] = [tuple(v) for v in rows["proj:transform"].to_pylist()]
        table["layers"] = [tuple(v) for v in table["layers"]]
        for name in ("steps", "valid"):
            table[name] = [json.loads(v) for v in table[name]]
    except (pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
        raise CubeError(f"items.parquet is not the table of a corpus: {error}") from None
    return table


# ------------------------------------------------------------------------------------ collection


def collection(
    meta: Mapping[str, Any],
    table: pd.DataFrame,
    found: Sequence[Source],
    assets: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the STAC collection of a corpus.

    Parameters
    ----------
    meta : mapping
        ``name``, ``title``, ``description``, ``license``, ``attribution``, ``format``.
    table : pandas.DataFrame
        One row per cube.
    found : sequence of Source
        Whose data it is.
    assets : mapping
        Files beside the collection.
    """
    bounds = list(lonlat_bbox(shapely.union_all(table["geometry"].to_numpy())))
    span = [utc(table["start"].min()), utc(table["end"].max())]
    layers = list(dict.fromkeys(n for row in table["layers"] for n in row))
    links: list[dict[str, Any]] = [
        {"rel": "root", "href": "collection.json", "type": "application/json"},
        {"rel": "items", "href": "items.parquet", "type": PARQUET},
        *({"rel": "license", "href": s.url, "title": s.license} for s in found),
        *(
            {"rel": "item", "href": f"items/{name}.json", "type": "application/geo+json"}
            for name in table.index
        ),
    ]
    place = {"type": "spatial", "reference_system": 4326}
    note = "degrees; every cube has a grid of its own, in its item"
    return {
        "type": "Collection",
        "stac_version": VERSION,
        "stac_extensions": [PROJECTION, DATACUBE, FILE],
        "id": meta["name"],
        "title": meta["title"],
        "description": meta["description"] or meta["title"],
        "license": meta["license"],
        "keywords": ["Sentinel-1", "Sentinel-2", "data cube", "Zarr"],
        "providers": [{"name": s.title, "roles": ["licensor"], "url": s.url} for s in found],
        "extent": {"spatial": {"bbox": [bounds]}, "temporal": {"interval": [span]}},
        "summaries": {
            "proj:code": sorted({c for c in table["crs"] if c.startswith("EPSG:")}),
            "cubes:layers": layers,
        },
        "cube:dimensions": {
            "x": {**place, "axis": "x", "extent": bounds[0::2], "description": note},
            "y": {**place, "axis": "y", "extent": bounds[1::2], "description": note},
            "time": {"type": "temporal", "extent": span},
        },
        "item_assets": {"cube": {"type": ZARR, "roles": ["data"], "title": "Zarr v3 store"}},
        "assets": {k: dict(v) for k, v in assets.items()},
        "links": links,
        "cubes:format": meta["format"],
        "cubes:attribution": list(meta["attribution"]),
        "cubes:count": len(table),
    }
