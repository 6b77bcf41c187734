"""Areas over several UTM zones become several cubes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from cubes.grid import as_aoi, utm_zone
from cubes.types import AOI, Grid


def by_zone(area: Any) -> list[tuple[AOI, Grid]]:
    """Return an area cut at the borders of UTM zones, each part with the grid of its zone.

    Parameters
    ----------
    area : AOI or anything `cubes.aoi` takes
        Norway's and Svalbard's exceptions are kept to. Cubes of two zones cover whole cells of
        their own lattices, so they overlap by up to a cell along the border.

    Returns
    -------
    list of (AOI, Grid)
        From west to east, named ``<area>-z31``; the area itself where it lies in one zone.

    Raises
    ------
    CubeError
        See `cubes.aoi`.
    """
    whole = as_aoi(area)
    parts = by_zone_of(whole.geometry)
    if len(parts) == 1:
        return [(whole, Grid(crs=f"EPSG:{32600 + parts[0][0]}"))]
    return [
        (as_aoi(part, name=f"{whole.name}-z{zone:02d}"), Grid(crs=f"EPSG:{32600 + zone}"))
        for zone, part in parts
    ]


def by_zone_of(geometry: BaseGeometry) -> list[tuple[int, BaseGeometry]]:
    """Return a geometry in longitude and latitude cut at the borders of UTM zones, west to east."""
    parts: dict[int, list[BaseGeometry]] = {}
    if geometry.geom_type == "Point":
        lon, lat = geometry.bounds[:2]
        return [(utm_zone(lon, lat), geometry)]
    flat = geometry.area == 0
    for west, east, south, north in _zone_pieces(*geometry.bounds):
        piece = shapely.intersection(geometry, shapely.box(west, south, east, north))
        if piece.area > 0 or (flat and not piece.is_empty):
            zone = utm_zone((west + east) / 2, (south + north) / 2)
            parts.setdefault(zone, []).append(piece)
    if len(parts) == 1:
        return [(next(iter(parts)), geometry)]
    # what a cut leaves of areas along a border is lines: no ground of that zone
    joined = {
        zone: shapely.union_all(pieces if flat else [_areas(piece) for piece in pieces])
        for zone, pieces in parts.items()
    }
    return sorted(joined.items())


def _zone_pieces(
    west: float, south: float, east: float, north: float
) -> Iterator[tuple[float, float, float, float]]:
    """Yield boxes within which the zone is one: cut where a border, also an exception's, may be."""
    # the exceptions lie on multiples of 3 degrees of longitude, and between these latitudes
    xs = [west, *(x for x in range(-180, 181, 3) if west < x < east), east]
    ys = [south, *(y for y in (56, 64, 72, 84) if south < y < north), north]
    for x0, x1 in itertools.pairwise(xs):
        for y0, y1 in itertools.pairwise(ys):
            yield x0, x1, y0, y1


def _areas(geometry: BaseGeometry) -> BaseGeometry:
    """Return the areas of a geometry, without lines and points."""
    return shapely.union_all([g for g in shapely.get_parts(geometry) if g.area > 0])
