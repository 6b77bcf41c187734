"""Local incidence, slope, layover and shadow, from a terrain model and a track's look vectors.

A look vector points from the target to the sensor, in local east, north, up of the ellipsoid.
Grids in a projection are turned against true north by the grid convergence (up to 3 degrees at a
zone's edge), so look vectors are turned before they meet slopes taken along the grid's axes.

Local incidence is the angle between look vector and surface normal; layover and shadow cannot be
had from it alone (at 36 degrees, slopes of 12 and 60 degrees facing the sensor both read 24):
they come from the order of slant ranges and of lines of sight along the look direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubes.types import CubeError

Floats = npt.NDArray[np.float64]

NONE, SHADOW, LAYOVER, BOTH, NO_DATA = 0, 1, 2, 3, 255
"""Codes of a layover and shadow mask (those of OPERA, NODATA that of the layer's row)."""


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


def _heights(elevation: xr.DataArray) -> tuple[Floats, float, float]:
    """Return heights and the steps along y and x in metres, of a DEM on a projected grid."""
    import odc.geo.xr  # noqa: F401  registers the accessor

    box = elevation.odc.geobox
    if box is None or box.crs is None:
        raise CubeError("the terrain model has no CRS; write one with .odc.assign_crs(...)")
    if box.crs.geographic:
        raise CubeError(
            f"the terrain model lies in degrees ({box.crs}): slopes would be in metres per "
            "degree. Reproject it to the cube's grid first"
        )
    return np.asarray(elevation, np.float64), float(box.resolution.y), float(box.resolution.x)


def gradient(elevation: xr.DataArray, *, smooth: float = 20.0) -> tuple[Floats, Floats]:
    """Return dz/dx (east) and dz/dy (north) along the grid's axes, (y, x), metres per metre.

    Parameters
    ----------
    elevation : xarray.DataArray
        Metres, (y, x), on a projected grid, NaN = no data.
    smooth : float
        Standard deviation in metres of the Gaussian that brings the model to the radar's
        resolution first (Sentinel-1: about 20 m); 0 for none.

    Raises
    ------
    CubeError
        The model has no CRS, lies in degrees, or is smaller than 3 x 3 pixels.
    """
    heights, step_y, step_x = _heights(elevation)
    if min(heights.shape) < 3:
        raise CubeError(
            f"a terrain model of {heights.shape} px has no slope; give a margin of 1 px"
        )
    if smooth > 0:
        heights = _smoothed(heights, (smooth / abs(step_y), smooth / abs(step_x)))
    dz_dy, dz_dx = np.gradient(heights, step_y, step_x)
    return np.asarray(dz_dx), np.asarray(dz_dy)


def _smoothed(heights: Floats, sigma: tuple[float, float]) -> Floats:
    """Return a Gaussian mean that leaves NaN out and keeps planes planes at the edges."""
    from scipy.ndimage import gaussian_filter

    good = np.isfinite(heights)
    # "reflect" would bend a plane at the edge: extend it linearly instead
    margin = int(np.ceil(4 * max(sigma)))
    filled = np.where(good, heights, np.nanmean(heights) if good.any() else 0.0)
    padded = np.pad(filled, margin, mode="reflect", reflect_type="odd")
    weight = np.pad(good.astype(np.float64), margin, mode="reflect")
    total = gaussian_filter(padded * weight, sigma)
    share = gaussian_filter(weight, sigma)
    inner = (slice(margin, -margin or None),) * 2
    with np.errstate(invalid="ignore", divide="ignore"):
        out = total[inner] / share[inner]
    out[~good] = np.nan
    return np.asarray(out)


def slope_aspect(
    elevation: xr.DataArray, *, smooth: float = 0.0
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return slope and aspect, (y, x) float32 degrees, NaN = no data.

    Slope is the steepest descent, 0..90; aspect the direction it faces, clockwise from grid north,
    0..360, NaN on level ground.
    """
    dz_dx, dz_dy = gradient(elevation, smooth=smooth)
    steep = np.hypot(dz_dx, dz_dy)
    aspect = np.rad2deg(np.arctan2(-dz_dx, -dz_dy)) % 360
    slope = elevation.copy(data=np.rad2deg(np.arctan(steep)).astype(np.float32))
    facing = elevation.copy(data=np.where(steep > 0, aspect, np.nan).astype(np.float32))
    return (
        slope.rename("slope").assign_attrs(long_name="slope", units="degrees"),
        facing.rename("aspect").assign_attrs(long_name="aspect", units="degrees"),
    )


def local_incidence(elevation: xr.DataArray, look: Look, *, smooth: float = 20.0) -> xr.DataArray:
    """Return the local incidence angle, (y, x) float32 degrees 0..180, NaN = no data.

    ``cos(incidence) = look . normal`` with ``normal = (-dz/dx, -dz/dy, 1) / |...|`` (Ulaby and
    Long 2014, 4-5). Above 90 degrees the surface faces away and lies in shadow.

    Parameters
    ----------
    elevation : xarray.DataArray
        Metres, (y, x), on a projected grid.
    look : Look
        In true east, north, up; turned here by the grid's convergence.
    smooth : float
        See `gradient`.

    Raises
    ------
    CubeError
        See `gradient`; a look whose shape is not the grid's.
    """
    dz_dx, dz_dy = gradient(elevation, smooth=smooth)
    grid_look = _on_grid(elevation, look)
    length = np.sqrt(1 + dz_dx**2 + dz_dy**2)
    cosine = (-dz_dx * grid_look.east - dz_dy * grid_look.north + grid_look.up) / length
    angle = np.rad2deg(np.arccos(np.clip(cosine, -1, 1))).astype(np.float32)
    return elevation.copy(data=angle).rename("incidence").assign_attrs(
        long_name="local incidence angle", units="degrees", dem_smoothing_m=smooth
    )  # fmt: skip


def local_incidence_from_angles(
    incidence: Any, look_azimuth: Any, slope: Any, aspect: Any
) -> Floats:
    """Return the local incidence angle by angles alone, degrees: the same as the vector form.

    ``cos(i) = cos(t) cos(s) + sin(t) sin(s) cos(b - a)``, t ellipsoidal incidence, b azimuth from
    target to sensor, s slope, a aspect (downslope azimuth), all degrees.
    """
    theta, beta, tilt, facing = (
        np.deg2rad(np.asarray(v, np.float64)) for v in (incidence, look_azimuth, slope, aspect)
    )
    cosine = np.cos(theta) * np.cos(tilt) + np.sin(theta) * np.sin(tilt) * np.cos(beta - facing)
    return np.asarray(np.rad2deg(np.arccos(np.clip(cosine, -1, 1))))


def _on_grid(elevation: xr.DataArray, look: Look) -> Look:
    for part in (look.east, look.north, look.up):
        if np.ndim(part) and np.shape(part) != elevation.shape:
            raise CubeError(
                f"the look vectors have shape {np.shape(part)}, the terrain model "
                f"{elevation.shape}: bring them to one grid first"
            )
    return look.turned(convergence(elevation.odc.geobox))


def layover_shadow(elevation: xr.DataArray, look: Look) -> xr.DataArray:
    """Return layover and shadow, (y, x) uint8: 0 none, 1 shadow, 2 layover, 3 both, 255 no data.

    Along each line of sight on the ground, from near to far: a point is laid over where its slant
    range is not greater than that of every nearer point and less than that of every farther one
    (active slopes and the passive ground they fall on alike); it is in shadow where a nearer point
    rises above its line to the sensor.

    Parameters
    ----------
    elevation : xarray.DataArray
        Metres, (y, x), on a projected grid of square pixels; not smoothed. Shadow and layover
        reach in from outside: give a margin of relief x tan(incidence), a few kilometres in
        mountains.
    look : Look
        In true east, north, up; one direction for the area (its mean is taken: over 100 km it
        turns by less than half a degree).

    Raises
    ------
    CubeError
        See `gradient`; pixels that are not square; look vectors without a direction.
    """
    heights, step_y, step_x = _heights(elevation)
    if abs(abs(step_y) - abs(step_x)) > 1e-6:
        raise CubeError(f"layover needs square pixels, not {abs(step_x)} x {abs(step_y)} m")
    grid_look = _on_grid(elevation, look)
    east, north, up = (_mean(v) for v in (grid_look.east, grid_look.north, grid_look.up))
    ground = np.hypot(east, north)
    if not ground > 0:
        raise CubeError(
            f"the look vectors (mean east {east:g}, north {north:g}, up {up:g}) have no direction "
            "on the ground: a radar looks sideways; give vectors from target to sensor with data"
        )
    theta = np.arctan2(ground, up)
    lines = _Lines.along(heights.shape, (east / ground, -north / ground))
    profile = lines.take(heights)
    away = np.arange(profile.shape[1]) * abs(step_x)
    reach = away * np.sin(theta) - profile * np.cos(theta)  # slant range, up to a constant
    before = _running(np.fmax, reach)
    after = _running(np.fmin, reach[:, ::-1])[:, ::-1]
    layover = (reach <= before) | (reach >= after)
    sight = profile + away / np.tan(theta)
    shadow = sight < _running(np.fmax, sight)
    code = np.where(layover, LAYOVER, 0) + np.where(shadow, SHADOW, 0)
    out = lines.put(code.astype(np.uint8))
    out[~np.isfinite(heights)] = NO_DATA
    return elevation.copy(data=out).rename("layover_shadow").assign_attrs(
        long_name="layover and shadow: 0 none, 1 shadow, 2 layover, 3 both", units="1"
    )  # fmt: skip


def _mean(values: Any) -> float:
    """Return the mean of the finite numbers, NaN where there are none."""
    numbers = np.asarray(values, np.float64)
    known = numbers[np.isfinite(numbers)]
    return float(known.mean()) if known.size else float("nan")


def _running(extreme: np.ufunc, values: Floats) -> Floats:
    """Return the extreme over all earlier columns (not the own); nothing before the first."""
    start = np.full((values.shape[0], 1), -np.inf if extreme is np.fmax else np.inf)
    return np.concatenate([start, extreme.accumulate(values, axis=1)[:, :-1]], axis=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lines:
    """Parallel ground lines over a grid, one pixel apart, from near the sensor to far."""

    shape: tuple[int, int]
    rows: Floats
    columns: Floats
    """Place of each point of each line in the grid, (line, point)."""
    toward: tuple[float, float]

    @staticmethod
    def along(shape: tuple[int, int], toward: tuple[float, float]) -> _Lines:
        """Return lines that cover a grid; `toward` the sensor as (columns, rows), unit length."""
        dx, dy = toward
        half = int(np.ceil(np.hypot(*shape) / 2)) + 1
        along = np.arange(-half, half + 1, dtype=np.float64)
        centre_y, centre_x = (shape[0] - 1) / 2, (shape[1] - 1) / 2
        across, distance = np.meshgrid(along, along, indexing="ij")
        return _Lines(
            shape=shape,
            # distance grows away from the sensor
            rows=centre_y - distance * dy + across * dx,
            columns=centre_x - distance * dx - across * dy,
            toward=toward,
        )

    def take(self, heights: Floats) -> Floats:
        """Return heights along the lines, bilinear, NaN outside."""
        from scipy.ndimage import map_coordinates

        return np.asarray(map_coordinates(heights, [self.rows, self.columns], order=1, cval=np.nan))

    def put(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return codes of the lines on the grid, nearest point."""
        y, x = np.indices(self.shape, dtype=np.float64)
        y -= (self.shape[0] - 1) / 2
        x -= (self.shape[1] - 1) / 2
        dx, dy = self.toward
        half = codes.shape[0] // 2
        line = np.rint(-x * dy + y * dx).astype(int) + half
        point = np.rint(-x * dx - y * dy).astype(int) + half
        out: npt.NDArray[np.uint8] = codes[line, point]
        return out
