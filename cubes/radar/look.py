"""Where a radar stands: look vectors, and how a grid is turned against them.

A look vector points from the target to the sensor, in local east, north, up of the ellipsoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cubes.types import CubeError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Unit vector from target to sensor: east, north, up; scalars, or arrays on the grid (y, x)."""

    east: Any
    north: Any
    up: Any

    @staticmethod
    def from_opera(los_east: Any, los_north: Any) -> Look:
        """Return the look of OPERA's STATIC layers: unit vector target to sensor, NaN kept.

        Source: opera_utils geometry: up = sqrt(1 - east^2 - north^2).
        """
        east, north = (np.asarray(v, np.float64) for v in (los_east, los_north))
        return Look(east=east, north=north, up=np.sqrt(1 - east**2 - north**2))

    @staticmethod
    def from_hyp3(lv_theta: Any, lv_phi: Any) -> Look:
        """Return the look of HyP3's ``lv_theta`` and ``lv_phi``, radians; unproven on real files.

        Source: HyP3 InSAR product guide: theta above the horizontal, phi counter-clockwise from
        east.
        """
        theta, phi = (np.asarray(v, np.float64) for v in (lv_theta, lv_phi))
        return Look(
            east=np.cos(theta) * np.cos(phi), north=np.cos(theta) * np.sin(phi), up=np.sin(theta)
        )

    @staticmethod
    def from_angles(incidence: Any, heading: Any) -> Look:
        """Return the look of a right-looking sensor from incidence and heading, degrees.

        Parameters
        ----------
        incidence : float or array
            Angle between look and ellipsoid normal.
        heading : float or array
            Of the platform, clockwise from north (about -13 ascending, 193 descending).
        """
        theta = np.deg2rad(np.asarray(incidence, np.float64))
        # the sensor stands left of what it sees: heading - 90 degrees, from the target
        azimuth = np.deg2rad(np.asarray(heading, np.float64) - 90)
        return Look(
            east=np.sin(theta) * np.sin(azimuth),
            north=np.sin(theta) * np.cos(azimuth),
            up=np.cos(theta),
        )

    @property
    def incidence(self) -> Floats:
        """Ellipsoidal incidence, degrees."""
        return np.asarray(np.rad2deg(np.arccos(np.clip(self.up, -1, 1))), np.float64)

    def turned(self, convergence: Any) -> Look:
        """Return the look along a grid's axes, for a convergence in degrees.

        A positive convergence (east of the central meridian, northern hemisphere) means that grid
        north lies east of true north.
        """
        angle = np.deg2rad(np.asarray(convergence, np.float64))
        cosine, sine = np.cos(angle), np.sin(angle)
        return Look(
            east=self.east * cosine - self.north * sine,
            north=self.east * sine + self.north * cosine,
            up=self.up,
        )


def convergence(geobox: Any) -> Floats:
    """Return the grid convergence on a grid, (y, x) degrees: the angle of grid north east of true.

    Computed with PROJ on a coarse lattice of at most 33 x 33 points and interpolated: it varies by
    less than 1e-6 degrees from a plane over 100 km of UTM.

    Raises
    ------
    CubeError
        The grid has no projected CRS.
    """
    from pyproj import Proj, Transformer
    from scipy.interpolate import RegularGridInterpolator

    if geobox.crs is None or geobox.crs.geographic:
        raise CubeError(
            f"grid convergence needs a projected CRS, not {geobox.crs}; reproject first"
        )
    rows, columns = geobox.shape
    ys, xs = (geobox.coordinates[d].values for d in geobox.dimensions)
    coarse_y = np.linspace(ys[0], ys[-1], min(rows, 33)) if rows > 1 else ys
    coarse_x = np.linspace(xs[0], xs[-1], min(columns, 33)) if columns > 1 else xs
    x, y = np.meshgrid(coarse_x, coarse_y)
    lon, lat = Transformer.from_crs(geobox.crs.proj, "EPSG:4326", always_xy=True).transform(x, y)
    factors = Proj(geobox.crs.proj).get_factors(lon, lat)
    angles = np.asarray(factors.meridian_convergence, np.float64)
    if rows == 1 or columns == 1:
        return np.broadcast_to(angles.mean(), (rows, columns)).copy()
    interpolate = RegularGridInterpolator((coarse_y, coarse_x), angles)
    return np.asarray(interpolate(np.stack(np.meshgrid(ys, xs, indexing="ij"), -1)))
