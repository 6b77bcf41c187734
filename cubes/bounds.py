"""Bounds and outline of a rectangle in another CRS, where its edges are bent."""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from cubes.types import CubeError

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top; in degrees west, south, east, north."""

POINTS = 21
"""Points along each edge: it bends, and the outermost place may lie between two corners."""

LONLAT = "EPSG:4326"


def reprojected(bounds: Bounds, crs: Any, to: Any = LONLAT) -> Bounds:
    """Return the bounds in another CRS, edges followed and not only corners.

    Parameters
    ----------
    bounds : tuple of float
        Left, bottom, right, top.
    crs, to
        Anything pyproj takes; degrees are longitude first.

    Returns
    -------
    tuple of float
        In degrees, west > east means over the antimeridian. Infinite where it cannot be projected.
    """
    from pyproj import Transformer

    forward = Transformer.from_crs(crs, to, always_xy=True)
    left, bottom, right, top = forward.transform_bounds(*bounds, densify_pts=POINTS)
    return float(left), float(bottom), float(right), float(top)


def outline(bounds: Bounds, crs: Any, step: float) -> BaseGeometry:
    """Return a rectangle as longitude and latitude, cut at 180 degrees where it crosses them.

    As RFC 7946 (3.1.9) has it: a MultiPolygon with a part on either side. One around a pole is
    closed along the pole.

    Parameters
    ----------
    bounds : tuple of float
        Left, bottom, right, top.
    crs
        Anything pyproj takes.
    step : float
        Longest piece of an edge, units of the CRS: edges bend.

    Raises
    ------
    CubeError
        It cannot be projected to degrees.
    """
    from pyproj import Transformer

    back = Transformer.from_crs(crs, LONLAT, always_xy=True)
    ring = shapely.get_coordinates(shapely.segmentize(shapely.box(*bounds), step))
    lon, lat = (np.asarray(v) for v in back.transform(*ring.T))
    if not (np.isfinite(lon).all() and np.isfinite(lat).all()):
        raise CubeError(
            f"{bounds} in {crs} has no longitude and latitude; are they in the units of that CRS?"
        )
    lon = np.unwrap(lon, period=360.0)  # neighbours lie less than half the world apart
    if abs(lon[-1] - lon[0]) > 180:  # once around a pole
        pole = np.copysign(90.0, lat.mean())
        lon = np.append(lon, [lon[-1], lon[0]])
        lat = np.append(lat, [pole, pole])
    return cut_at_180(shapely.Polygon(np.column_stack([lon, lat])))


def cut_at_180(geometry: BaseGeometry) -> BaseGeometry:
    """Return a geometry whose longitudes run on beyond +-180 as one within them, cut there."""
    west, _, east, _ = geometry.bounds
    if west >= -180 and east <= 180:
        return geometry
    parts: list[BaseGeometry] = []
    for turn in range(int((west + 180) // 360), int((east + 180) // 360) + 1):
        slab = shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)
        here = shapely.intersection(geometry, slab)
        moved = translate(here, xoff=-360 * turn)
        # what only touches 180 degrees is a line there
        parts += [g for g in shapely.get_parts(moved) if g.area > 0 or geometry.area == 0]
    return parts[0] if len(parts) == 1 else shapely.union_all(parts)


def lonlat_bbox(geometry: BaseGeometry) -> Bounds:
    """Return west, south, east, north of a geometry cut at 180 degrees; west > east over them."""
    west, south, east, north = (float(v) for v in geometry.bounds)
    parts = shapely.bounds(shapely.get_parts(geometry))
    # a part on either side of 180 degrees, each touching it, and nothing between them at 0
    if (
        east - west > 180
        and west == -180
        and east == 180
        and not (parts[:, 2] > 0)[parts[:, 0] < 0].any()
    ):
        return (
            float(parts[parts[:, 0] >= 0, 0].min()), south,
            float(parts[parts[:, 0] < 0, 2].max()), north,
        )  # fmt: skip
    return west, south, east, north
