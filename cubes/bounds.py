"""Bounds of a rectangle in another CRS, where its edges are bent."""

from __future__ import annotations

from typing import Any

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
