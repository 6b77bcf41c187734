"""Where: areas from anything a person has, and pixel grids on one lattice per UTM zone.

The lattice: in the UTM zone of an area (northern zones also south of the equator, with negative
northings, because 10,000 km is no multiple of 2,560 m and 326xx and 327xx patches would gap or
overlap) the plane is cut into squares of 2,560 m, 256 pixels of 10 m. A cube covers whole squares,
so cubes of one zone meet without gap, overlap or resampling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shapely
from shapely.geometry.base import BaseGeometry

from cubes import registry
from cubes.bounds import reprojected
from cubes.types import AOI, CubeError, Grid

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

MAX_SPAN_DEGREES = 9.0
"""Widest area, in longitude, put on one zone's grid: 1.5 zones. Beyond, scale errors of UTM pass
0.3 % and sources would be resampled across whole zones: one cube per zone is the honest answer."""


def as_aoi(area: Any, *, size: float | None = None, name: str | None = None) -> AOI:
    """Return an area of interest from a name, bounds, point, geometry or table of geometries.

    Parameters
    ----------
    area : AOI, str, Path, sequence, mapping, geometry or GeoDataFrame
        A known name; a path to GeoJSON; ``(west, south, east, north)``; ``(lon, lat)`` with `size`;
        GeoJSON as a mapping; a shapely geometry in longitude and latitude; anything with
        ``to_crs`` and ``union_all`` (GeoDataFrame, GeoSeries), in any CRS.
    size : float, optional
        Edge in metres of the square around a point.
    name : str, optional
        Name given to the area.

    Raises
    ------
    CubeError
        Unknown name; west not below east (an area over the antimeridian is written as two);
        outside the world; zero area without a size; over the antimeridian; near a pole.
    """
    if isinstance(area, AOI):
        changes = {"size": size, "name": name}
        return replace(area, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
    if isinstance(area, str) and not area.endswith((".geojson", ".json")):
        return registry.named_aoi(area)
    geometry, label = _geometry(area)
    size = _check_geometry(geometry, size)
    return AOI(
        name=name or label or _coordinates_name(geometry),
        wkt=shapely.to_wkt(geometry, rounding_precision=9, trim=True),
        size=size,
    )


def _coordinates_name(geometry: BaseGeometry) -> str:
    centre = geometry.centroid
    return f"lat_{centre.y:.4f}_lon_{centre.x:.4f}"


def _geometry(area: Any) -> tuple[BaseGeometry, str | None]:
    if isinstance(area, BaseGeometry):
        return area, None
    if isinstance(area, str | Path):
        path = Path(area)
        if not path.exists():
            raise CubeError(f"no such file: {path}")
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CubeError(f"{path} is no GeoJSON: {error}") from None
        return _from_geojson(body), path.stem
    if isinstance(area, Mapping):
        return _from_geojson(area), None
    if hasattr(area, "to_crs") and hasattr(area, "union_all"):
        if area.crs is None:
            raise CubeError("the table of geometries has no CRS; set one with .set_crs(...)")
        return area.to_crs("EPSG:4326").union_all(), None
    if hasattr(area, "__geo_interface__"):
        return _from_geojson(area.__geo_interface__), None
    try:
        numbers = [float(v) for v in area]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) == 2:
        return shapely.Point(numbers), None
    if len(numbers) == 4:
        return _box(numbers), None
    raise CubeError(
        f"cannot make an area of {area!r}; give a known name ({', '.join(registry.aois())}), "
        "(west, south, east, north), (lon, lat) with size=metres, GeoJSON, a shapely geometry "
        "or a GeoDataFrame"
    )


def _box(numbers: list[float]) -> BaseGeometry:
    west, south, east, north = numbers
    if west > east:
        raise CubeError(
            f"west {west} is east of east {east}: an area over the antimeridian is two areas, "
            f"({west}, {south}, 180, {north}) and (-180, {south}, {east}, {north})"
        )
    if south > north:
        raise CubeError(
            f"south {south} is above north {north}; bounds are west, south, east, north"
        )
    if west == east or south == north:
        raise CubeError(
            f"the bounds {tuple(numbers)} have zero area; for a point give (lon, lat) and size="
        )
    return shapely.box(west, south, east, north)


def _from_geojson(body: Mapping[str, Any]) -> BaseGeometry:
    from shapely.geometry import shape

    kind = body.get("type") if isinstance(body, Mapping) else type(body).__name__
    if kind == "FeatureCollection":
        parts = [f.get("geometry") for f in body.get("features", [])]
    else:
        parts = [body.get("geometry") if kind == "Feature" else body]
    parts = [part for part in parts if part]
    if not parts:
        raise CubeError(f"the GeoJSON ({kind}) has no features with a geometry")
    try:
        return shapely.union_all([shape(part) for part in parts])
    except (AttributeError, KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
        raise CubeError(
            f"the GeoJSON ({kind}) holds no geometry that can be read ({error}); it needs type and "
            "coordinates, in longitude and latitude"
        ) from None


def _check_geometry(geometry: BaseGeometry, size: float | None) -> float | None:
    if geometry.is_empty:
        raise CubeError("the area is empty")
    west, south, east, north = geometry.bounds
    if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        raise CubeError(
            f"bounds {geometry.bounds} are not longitude and latitude; reproject to EPSG:4326 "
            "(a GeoDataFrame is reprojected for you)"
        )
    if geometry.geom_type == "Point":
        if size is None or size <= 0:
            raise CubeError(f"a point needs size= in metres (for example 2560), not {size}")
    elif geometry.area == 0:
        raise CubeError(
            f"the area has zero area ({geometry.geom_type} {geometry.bounds}); "
            "give a polygon, or a point with size="
        )
    if east - west > 180:
        raise CubeError(
            f"the area spans {east - west:.1f} degrees of longitude: it crosses the antimeridian "
            "or the world; split it at 180 degrees into areas of its own"
        )
    if north > 84 or south < -80:
        raise CubeError(
            f"latitudes {south:.2f} to {north:.2f} leave the range of UTM (-80 to 84); give "
            "Grid(geobox=...) in a polar projection for areas nearer to a pole"
        )
    return size


def utm_zone(lon: float, lat: float) -> int:
    """Return the UTM zone number, 1 to 60, with the exceptions of Norway and Svalbard.

    The exceptions are those of the UTM/MGRS definition (NGA.STND.0037): zone 32 is widened over
    south-west Norway, and 33, 35, 37 over Svalbard.
    """
    lon = (lon + 180) % 360 - 180
    if 56 <= lat < 64 and 3 <= lon < 12:
        return 32
    if 72 <= lat <= 84 and 0 <= lon < 42:
        return 31 if lon < 9 else 33 if lon < 21 else 35 if lon < 33 else 37
    return int((lon + 180) // 6) % 60 + 1


def utm_crs(lon: float, lat: float) -> str:
    """Return the EPSG code of the point's northern UTM zone, also south of the equator."""
    return f"EPSG:{32600 + utm_zone(lon, lat)}"


def geobox(aoi: AOI, grid: Grid | None = None) -> GeoBox:
    """Return the exact pixel grid of an area: CRS, transform (north up) and shape.

    Parameters
    ----------
    aoi : AOI
        The area.
    grid : Grid, optional
        The wanted grid; by default 10 m on the 2,560 m lattice of the area's UTM zone.

    Raises
    ------
    CubeError
        Resolution not positive or not dividing the lattice; an area too wide for one zone; a CRS
        in degrees.
    """
    from affine import Affine
    from odc.geo.geobox import GeoBox

    grid = grid or Grid()
    if grid.geobox is not None:
        _refuse_degrees(grid.geobox.crs, aoi)
        return grid.geobox
    res = grid.resolution
    if res <= 0:
        raise CubeError(f"resolution {res} must be positive metres")
    geometry = aoi.geometry
    west, _, east, _ = geometry.bounds
    if grid.crs is None and east - west > MAX_SPAN_DEGREES:
        raise CubeError(
            f"area {aoi.name!r} spans {east - west:.1f} degrees of longitude, more than "
            f"{MAX_SPAN_DEGREES:g}: open it zone by zone, or give Grid(crs=...)"
        )
    centre = geometry.centroid
    crs = grid.crs or utm_crs(centre.x, centre.y)
    _refuse_degrees(crs, aoi)
    left, bottom, right, top = _projected_bounds(aoi, crs)
    shape = grid.shape
    if shape is None and geometry.geom_type == "Point":
        # a point keeps its own square: 2,560 m are 256 px around it, not the cells they touch
        edge = max(1, round((aoi.size or res) / res))
        shape = (edge, edge)
    if shape is not None:
        rows, columns = shape
        if rows < 1 or columns < 1:
            raise CubeError(f"the grid's shape {shape} has no pixel: at least 1 x 1")
        x0 = round(((left + right) / 2 - columns * res / 2) / res) * res
        y0 = round(((bottom + top) / 2 + rows * res / 2) / res) * res
        return GeoBox((rows, columns), Affine(res, 0, x0, 0, -res, y0), crs)
    cell = grid.snap if grid.snap is not None else res
    if not math.isclose(cell / res, round(cell / res), abs_tol=1e-9):
        raise CubeError(
            f"resolution {res} m does not divide the lattice of {cell} m; "
            f"use 10, 20, 40, ... or Grid(snap=None)"
        )
    # A cell counts when the area reaches more than half a pixel into it: a 10 km square drawn in
    # UTM and written as four lon/lat corners bulges by 2.3 m, and would pull in a row of cells.
    slack = res / 2 if grid.snap is not None else 1e-6
    x0, x1 = math.floor((left + slack) / cell) * cell, math.ceil((right - slack) / cell) * cell
    y0, y1 = math.floor((bottom + slack) / cell) * cell, math.ceil((top - slack) / cell) * cell
    rows, columns = max(1, round((y1 - y0) / res)), max(1, round((x1 - x0) / res))
    return GeoBox((rows, columns), Affine(res, 0, x0, 0, -res, y1), crs)


def in_degrees(crs: Any, lonlat: tuple[float, float, float, float]) -> str | None:
    """Return why a grid in `crs` is refused: no CRS, or degrees; None where it is projected.

    Parameters
    ----------
    crs : CRS or str
        Of the grid.
    lonlat : tuple of float
        West, south, east, north of it, degrees: the remedy names their zone.
    """
    from odc.geo.crs import CRS

    if crs is None:
        return "the grid has no CRS: give GeoBox(..., crs='EPSG:...')"
    if not CRS(crs).geographic:
        return None
    west, south, east, north = lonlat
    zone = utm_crs((west + east) / 2, (south + north) / 2)
    return (
        f"the grid lies in degrees ({crs}), but resolutions, windows and distances of a cube are "
        f"metres: project it first, for example to {zone}, the UTM zone of the area"
    )


def _refuse_degrees(crs: Any, aoi: AOI) -> None:
    """Raise where a wanted grid has no CRS, or one in degrees."""
    problem = in_degrees(crs, aoi.geometry.bounds)
    if problem:
        raise CubeError(f"{problem}; Grid() alone takes the zone of the area")


def _projected_bounds(aoi: AOI, crs: str) -> tuple[float, float, float, float]:
    from pyproj import Transformer

    forward = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    geometry = aoi.geometry
    if geometry.geom_type == "Point":
        x, y = forward.transform(geometry.centroid.x, geometry.centroid.y)
        half = (aoi.size or 0) / 2
        return x - half, y - half, x + half, y + half
    # edges bend under projection: points along them, so that a bulge is not cut off
    span = max(geometry.bounds[2] - geometry.bounds[0], geometry.bounds[3] - geometry.bounds[1])
    dense = shapely.segmentize(geometry, max(span / 64, 1e-9))
    coordinates = shapely.get_coordinates(dense)
    xs, ys = forward.transform(coordinates[:, 0], coordinates[:, 1])
    if not (math.isfinite(xs.min()) and math.isfinite(ys.max())):
        raise CubeError(f"area {aoi.name!r} cannot be projected to {crs}; give another Grid(crs=)")
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def lonlat_bounds(box: GeoBox) -> tuple[float, float, float, float]:
    """Return (west, south, east, north) of a grid in degrees, its bent edges included."""
    if box.crs is None:
        raise CubeError("the grid has no CRS; give GeoBox(..., crs='EPSG:...')")
    return reprojected(box.boundingbox.bbox, box.crs.proj)


def like(dataset: Any) -> Grid:
    """Return the grid of a cube or xarray object with a CRS (through odc-geo), to build beside it.

    Raises
    ------
    CubeError
        The object has no recognisable grid.
    """
    import odc.geo.xr  # noqa: F401  registers the accessor

    if hasattr(dataset, "children"):  # a cube: its groups lie on one grid
        dataset = next(iter(dataset.children.values()), dataset).to_dataset()
    if not hasattr(dataset, "odc"):
        raise CubeError(
            f"like= takes a cube, a Dataset or a DataArray, not a {type(dataset).__name__}; of a "
            "GeoBox or Grid it is grid="
        )
    box = dataset.odc.geobox
    if box is None or box.crs is None:
        raise CubeError("this object has no grid with a CRS; write one with .odc.assign_crs(...)")
    return Grid(geobox=box)
