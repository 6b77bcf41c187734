"""Areas over several UTM zones become several cubes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import shapely

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
    parts: dict[int, list[Any]] = {}
    for west, east, south, north in _zone_pieces(*whole.geometry.bounds):
        piece = shapely.intersection(whole.geometry, shapely.box(west, south, east, north))
        if piece.area > 0 or whole.geometry.area == 0:
            zone = utm_zone((west + east) / 2, (south + north) / 2)
            parts.setdefault(zone, []).append(piece)
    if whole.geometry.geom_type == "Point" or len(parts) == 1:
        centre = whole.geometry.centroid
        zone = utm_zone(centre.x, centre.y)
        return [(whole, Grid(crs=f"EPSG:{32600 + zone}"))]
    out = []
    for zone, pieces in sorted(parts.items()):
        found = as_aoi(_polygons(shapely.union_all(pieces)), name=f"{whole.name}-z{zone:02d}")
        out.append((found, Grid(crs=f"EPSG:{32600 + zone}")))
    return out


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


def _polygons(geometry: Any) -> Any:
    """Return the areas of a geometry: a cut may leave lines along the border."""
    parts = [g for g in getattr(geometry, "geoms", [geometry]) if g.area > 0]
    return shapely.union_all(parts)
