"""Vector files meet cubes: tables of polygons in any CRS, and labels made by rasterising them.

A pixel belongs to a polygon that contains its centre (with ``all_touched``: that touches it); one
whose centre lies on an edge belongs to one of the two sides, see `NUDGE`. What
no polygon claims is nodata, and nodata is never a class; a code that the legend does not have is an
error, never a new class.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely
import xarray as xr

from cubes import registry
from cubes.bounds import reprojected
from cubes.cube import attributes, legend_attributes
from cubes.registry.labels import label_layer
from cubes.types import CubeError, Layer, Legend

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Array = npt.NDArray[Any]

OVERLAP_RULE = "where polygons overlap, the smallest by area wins; of equal ones the first row"
"""A small polygon drawn over a large one (a pond in a field) survives, whatever the row order."""

NUDGE = (-1e-6, -1.618e-6)
"""Columns and rows by which centres are moved before they are looked up: one on an edge that two
polygons share (parcels drawn on the grid of an image) is then inside one of them, in labels and in
field series alike. To the north-west, and along no edge that runs at a usual angle."""

_PARQUET = (".parquet", ".geoparquet", ".pq")
_EDGE_METRES, _EDGE_DEGREES = 1000.0, 0.01
"""Longest polygon edge before reprojection: the chord of 1 km lies 2 cm from the arc."""


# ------------------------------------------------------------------------------- grids and tables


def grid_of(like: Any) -> GeoBox:
    """Return the pixel grid of a cube, of an xarray object with a CRS, or of a GeoBox.

    Raises
    ------
    CubeError
        The object has no recognisable grid, or one in degrees that is rotated or without a CRS.
    """
    import odc.geo.xr  # noqa: F401  registers the accessor
    from odc.geo.geobox import GeoBox

    if isinstance(like, GeoBox):
        box: GeoBox | None = like
    elif isinstance(like, xr.DataTree):
        node = like if "y" in like.coords else next(iter(like.children.values()), like)
        box = node.to_dataset().odc.geobox
    elif isinstance(like, xr.Dataset | xr.DataArray):
        box = like.odc.geobox
    else:
        raise CubeError(
            f"a {type(like).__name__} has no pixel grid; give a cube, a Dataset or DataArray of "
            "one, or an odc-geo GeoBox"
        )
    if box is None or box.crs is None:
        raise CubeError("this object has no grid with a CRS; write one with .odc.assign_crs(...)")
    return box


def read_vectors(vectors: Any, box: GeoBox) -> Any:
    """Return the rows of a vector table that touch a grid, in the grid's CRS.

    Parameters
    ----------
    vectors : path, GeoDataFrame or GeoSeries
        GeoParquet (``.parquet``), or any single-layer file that GDAL reads (GeoPackage, GeoJSON,
        Shapefile, FlatGeobuf); in any CRS. From files only what lies near the grid is read where
        the format allows it.
    box : GeoBox
        The grid.

    Returns
    -------
    geopandas.GeoDataFrame
        Index and columns of the source; geometries valid, not empty, without Z.

    Raises
    ------
    CubeError
        geopandas missing; no such file; no CRS; a file of several layers.
    """
    geopandas = _geopandas()
    if isinstance(vectors, str | os.PathLike):
        table = _read_file(Path(vectors), box, geopandas)
    elif isinstance(vectors, geopandas.GeoSeries):
        table = vectors.to_frame("geometry")
    elif isinstance(vectors, geopandas.GeoDataFrame):
        table = vectors
    else:
        raise CubeError(
            f"cannot read polygons from a {type(vectors).__name__}; give a GeoDataFrame or a path "
            "to GeoParquet or GeoPackage (for shapely geometries: geopandas.GeoSeries(..., crs=))"
        )
    if table.crs is None:
        named = os.fspath(vectors) if isinstance(vectors, str | os.PathLike) else "the vector table"
        raise CubeError(f"{named} has no CRS; read it and set the one it is in, .set_crs(...)")
    table = table[~(table.geometry.isna() | table.geometry.is_empty)]
    table = _near(table, box)
    return _reprojected(table, box)


def _geopandas() -> Any:
    try:
        import geopandas
    except ImportError:
        raise CubeError(
            "vector tables need geopandas: pip install 'deepsentinel[vectors]'"
        ) from None
    return geopandas


def _read_file(path: Path, box: GeoBox, geopandas: Any) -> Any:
    if not path.exists():
        raise CubeError(f"no such file: {path}")
    if path.suffix.lower() in _PARQUET:
        try:
            return geopandas.read_parquet(path)
        except (ValueError, TypeError) as error:
            raise CubeError(f"{path} is not GeoParquet: {error}") from None
    import pyogrio

    try:
        layers = pyogrio.list_layers(path)
        if len(layers) != 1:
            names = ", ".join(str(v) for v in layers[:, 0]) or "none"
            raise CubeError(
                f"{path} holds {len(layers)} layers ({names}); read one yourself: "
                "geopandas.read_file(path, layer=NAME)"
            )
        info = pyogrio.read_info(path)
        bounds = _bounds_in(box, info["crs"]) if info["crs"] else None
        return geopandas.read_file(path, engine="pyogrio", bbox=bounds)
    except pyogrio.errors.DataSourceError as error:
        raise CubeError(f"{path} is not a vector file that GDAL reads: {error}") from None


def _bounds_in(box: GeoBox, crs: Any) -> tuple[float, float, float, float] | None:
    """Return the grid's bounds in another CRS with a pixel's margin; None where that fails."""
    assert box.crs is not None
    margin = 2 * max(abs(box.resolution.x), abs(box.resolution.y))
    left, bottom, right, top = box.boundingbox.bbox
    outer = (left - margin, bottom - margin, right + margin, top + margin)
    found = reprojected(outer, box.crs.proj, crs)
    if not np.isfinite(found).all() or found[0] > found[2]:
        return None  # over the antimeridian or a pole: take every row
    return found


def _near(table: Any, box: GeoBox) -> Any:
    bounds = _bounds_in(box, table.crs)
    if bounds is None:
        return table
    return table.iloc[np.sort(table.sindex.query(shapely.box(*bounds), predicate="intersects"))]


def _reprojected(table: Any, box: GeoBox) -> Any:
    from pyproj import CRS

    assert box.crs is not None
    geometries = shapely.make_valid(shapely.force_2d(table.geometry.to_numpy()))
    table = table.set_geometry(_geopandas().GeoSeries(geometries, index=table.index, crs=table.crs))
    target = CRS.from_user_input(box.crs.proj)
    if table.crs != target:
        step = _EDGE_DEGREES if table.crs.is_geographic else _EDGE_METRES
        table = table.set_geometry(table.geometry.segmentize(step)).to_crs(target)
    outline = shapely.box(*box.boundingbox.bbox)
    return table[table.geometry.intersects(outline)]


# ----------------------------------------------------------------------------------- rasterising


def rasterise(
    vectors: Any,
    like: Any,
    *,
    column: str,
    legend: str | Legend,
    year: int,
    all_touched: bool = False,
) -> xr.DataArray:
    """Return labels on a cube's grid from a table of polygons.

    Parameters
    ----------
    vectors : path, GeoDataFrame or GeoSeries
        Polygons in any CRS, see `read_vectors`.
    like : DataTree, Dataset, DataArray or GeoBox
        What to lay the labels on.
    column : str
        Column of class codes: whole numbers (or their text), or the legend's class names. Rows
        without a value, or with the legend's nodata, leave nodata.
    legend : str or Legend
        The legend of the codes.
    year : int
        The year that the labels are of.
    all_touched : bool
        True: every pixel that a polygon touches; False: pixels whose centre it contains.

    Returns
    -------
    xarray.DataArray
        ``(year, y, x)``, one year, named after the legend, dtype of its layer row (uint8, or
        uint16), nodata where no polygon is. Attributes: ``legend``, ``origin``, ``nodata``,
        ``pixel_rule``, ``overlap_rule``, ``polygons`` (used), ``polygons_without_class``,
        ``contested_pixels`` (claimed by polygons of different classes).

    Raises
    ------
    CubeError
        Unknown column, legend or codes; geometries that are not polygons; no polygon on the grid.
    """
    found, layer, box = registry.legend(legend), label_layer(legend), grid_of(like)
    table = read_vectors(vectors, box)
    if column not in table.columns:
        near = difflib.get_close_matches(column, [str(c) for c in table.columns], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        columns = ", ".join(str(c) for c in table.columns if c != table.geometry.name)
        raise CubeError(f"the vector table has no column {column!r}{hint} It has {columns}")
    if not len(table):
        raise CubeError(
            f"no polygon touches the grid {tuple(round(v) for v in box.boundingbox.bbox)} in "
            f"{box.crs}; is the table's CRS the one its coordinates are in?"
        )
    _refuse_others(table.geometry)
    codes = _codes(table[column].to_numpy(), found, column)
    good = codes >= 0
    polygons = table.geometry.to_numpy()[good]
    burnt, contested = _burn(polygons, codes[good], box, layer, all_touched=all_touched)
    extra = {
        **legend_attributes(found),
        "nodata": _nodata(layer),
        "column": column,
        "pixel_rule": "touched by the polygon" if all_touched else "centre inside the polygon",
        "overlap_rule": OVERLAP_RULE,
        "polygons": int(good.sum()),
        "polygons_without_class": int((~good).sum()),
        "contested_pixels": contested,
    }
    return _on_grid(burnt, box, layer, year=year, attrs=attributes(layer, extra))


def _nodata(layer: Layer) -> int:
    assert layer.nodata is not None, layer.name
    return int(layer.nodata)


def _refuse_others(geometries: Any) -> None:
    kinds = set(geometries.geom_type) - {"Polygon", "MultiPolygon", "GeometryCollection"}
    if kinds:
        raise CubeError(
            f"labels are made from polygons, but the table holds {', '.join(sorted(kinds))}; give "
            "them an area first with .buffer(metres) in a projected CRS"
        )


def _codes(values: Array, legend: Legend, column: str) -> npt.NDArray[np.int64]:
    """Return one code per row, -1 where there is none.

    Raises
    ------
    CubeError
        A value that is neither a code nor a name of the legend.
    """
    import pandas as pd

    names = {name: code for code, (name, _) in legend.classes.items()}
    distinct, places = np.unique(
        np.array(["" if pd.isna(v) else _text(v) for v in values], object).astype(str),
        return_inverse=True,
    )
    codes = np.full(len(distinct), -1, np.int64)
    unknown = []
    for i, text in enumerate(distinct.tolist()):
        code = _code(text, names)
        if text == "" or (code is not None and code == legend.nodata):
            continue
        if code is None or code not in legend.classes:
            unknown.append(text)
        else:
            codes[i] = code
    if unknown:
        raise CubeError(_unknown(unknown, column, legend, names))
    return codes[places]


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def _code(text: str, names: Mapping[str, int]) -> int | None:
    if text in names:
        return names[text]
    # int() takes 1_0 for 10, and digits of other scripts
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None


def _unknown(unknown: list[str], column: str, legend: Legend, names: Mapping[str, int]) -> str:
    near = difflib.get_close_matches(unknown[0], list(names), n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    codes = sorted(legend.classes)
    return (
        f"column {column!r} holds {len(unknown)} values that are not in legend {legend.name!r} "
        f"({legend.title}): {', '.join(unknown[:5])}{hint}. It has {len(codes)} codes from "
        f"{codes[0]} to {codes[-1]}: take another legend, add one with cubes.add(path), or leave "
        "those rows out"
    )


def _burn(
    polygons: Array,
    codes: npt.NDArray[np.int64],
    box: GeoBox,
    layer: Layer,
    *,
    all_touched: bool,
) -> tuple[Array, int]:
    """Return class codes (y, x), and how many pixels polygons of different classes claim."""
    from affine import Affine
    from rasterio.features import rasterize

    moved = box.transform if all_touched else box.transform * Affine.translation(*NUDGE)

    def burn(order: npt.NDArray[np.int64]) -> Array:
        if not len(order):
            return np.full(box.shape, _nodata(layer), layer.dtype)
        burnt: Array = rasterize(
            zip(polygons[order], codes[order].tolist(), strict=True),
            out_shape=tuple(box.shape),
            transform=moved,
            fill=_nodata(layer),
            all_touched=all_touched,
            dtype=layer.dtype,
        )
        return burnt

    # what is burnt last stays: large to small, and of equal ones the last row first
    rows = np.arange(len(polygons))
    labels = burn(np.lexsort((-rows, -shapely.area(polygons))))
    # the lowest and the highest code of each pixel differ exactly where classes compete
    by_code = np.argsort(codes, kind="stable")
    contested = int((burn(by_code) != burn(by_code[::-1])).sum())
    return labels, contested


def _on_grid(
    values: Array, box: GeoBox, layer: Layer, *, year: int, attrs: Mapping[str, Any]
) -> xr.DataArray:
    from odc.geo.xr import xr_coords

    coords: dict[Any, Any] = {**xr_coords(box), "year": [int(year)]}
    out = xr.DataArray(
        values[None], dims=("year", "y", "x"), coords=coords, name=layer.variable, attrs=attrs
    )
    out.encoding["grid_mapping"] = "spatial_ref"
    return out
