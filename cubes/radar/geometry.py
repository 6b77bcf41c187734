"""Local incidence, slope, layover and shadow, from a terrain model and a track's look vectors.

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

from cubes.radar.look import Floats, Look, convergence
from cubes.types import CubeError

__all__ = [
    "ACTIVE_LAYOVER", "ACTIVE_SHADOW", "BOTH", "LAYOVER", "NONE", "NO_DATA", "SHADOW", "Look",
    "convergence", "gradient", "layover_shadow", "local_incidence", "local_incidence_from_angles",
    "slope_aspect",
]  # fmt: skip

NONE, SHADOW, LAYOVER, BOTH, NO_DATA = 0, 1, 2, 3, 255
"""Codes of a layover and shadow mask (those of OPERA, NODATA that of the layer's row)."""
ACTIVE_LAYOVER, ACTIVE_SHADOW = 4, 8
"""Bits added where the kinds are told apart: the slope itself causes it; without, it is covered by
another. ``codes & 3`` are OPERA's again."""


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
    if tuple(elevation.dims) != tuple(box.dimensions):
        raise CubeError(
            f"the terrain model has dims {elevation.dims}, not {tuple(box.dimensions)}: its rows "
            "would be taken for columns; give elevation.transpose('y', 'x'), one band"
        )
    return np.asarray(elevation, np.float64), float(box.resolution.y), float(box.resolution.x)


Part = tuple[slice, slice]


def _part(elevation: xr.DataArray, within: Any, reach: dict[str, float]) -> Part:
    """Return the rows and columns of a DEM that are a grid, which it must exceed by margins.

    Parameters
    ----------
    elevation : xarray.DataArray
        The terrain model.
    within : GeoBox or None
        The grid; None for all of the model, whatever its margin.
    reach : dict
        Margin in metres toward ``north``, ``south``, ``west`` and ``east``.

    Raises
    ------
    CubeError
        Another lattice, or too little margin.
    """
    box = elevation.odc.geobox
    if within is None:
        return slice(0, box.shape.y), slice(0, box.shape.x)
    shift = ~box.affine * within.affine
    columns, rows = round(shift.c), round(shift.f)
    if box.crs != within.crs or not np.allclose(
        tuple(shift)[:6], (1, 0, columns, 0, 1, rows), atol=1e-3
    ):
        raise CubeError(
            f"the terrain model ({box.crs}, pixels of {box.resolution.x:g} m) does not lie on the "
            "pixels of the grid: read it on the grid with a margin, such as geobox.buffered(2000)"
        )
    up, left = box.resolution.y < 0, box.resolution.x > 0
    last_row, last_column = rows + within.shape.y, columns + within.shape.x
    rest = {
        "north" if up else "south": rows * abs(box.resolution.y),
        "south" if up else "north": (box.shape.y - last_row) * abs(box.resolution.y),
        "west" if left else "east": columns * abs(box.resolution.x),
        "east" if left else "west": (box.shape.x - last_column) * abs(box.resolution.x),
    }
    short = {side: reach[side] - have for side, have in rest.items() if have < reach[side] - 1e-6}
    if short:
        missing = ", ".join(f"{np.ceil(m):,.0f} m in the {side}" for side, m in short.items())
        raise CubeError(
            f"the terrain model ends too near the grid: {missing} are missing. What lies there "
            "reaches into the grid; read the model on geobox.buffered(...) of as much more"
        )
    return slice(rows, last_row), slice(columns, last_column)


def _slope_reach(elevation: xr.DataArray, smooth: float) -> dict[str, float]:
    """Return the margin in metres by which a slope looks around itself."""
    _, step_y, step_x = _heights(elevation)
    y, x = (
        (1 + (int(4 * smooth / abs(step) + 0.5) if smooth > 0 else 0)) * abs(step)
        for step in (step_y, step_x)
    )
    return {"north": y, "south": y, "east": x, "west": x}


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
    elevation: xr.DataArray, *, smooth: float = 0.0, within: Any = None
) -> tuple[xr.DataArray, xr.DataArray]:
    """Return slope and aspect, (y, x) degrees, NaN = no data, in the model's precision.

    Slope is the steepest descent, 0..90; aspect the direction it faces, clockwise from true north
    (the grid's convergence is added), 0..360, NaN on level ground: an angle, never to be averaged
    or interpolated as it is.

    Parameters
    ----------
    elevation : xarray.DataArray
        Metres, (y, x), on a projected grid.
    smooth : float
        See `gradient`; stands in the attribute ``dem_smoothing_m``.
    within : GeoBox, optional
        The grid of the result, a part of the model's. Without it the result covers the model, and
        at its rim (attribute ``one_sided_px``) slopes are taken from one side alone, so that they
        differ from those of the same ground inside a larger model.

    Raises
    ------
    CubeError
        See `gradient`; a model that does not reach far enough around `within`.
    """
    dz_dx, dz_dy, like = _gradient_on(elevation, smooth, within)
    steep = np.hypot(dz_dx, dz_dy)
    turn = convergence(like.odc.geobox)
    aspect = (np.rad2deg(np.arctan2(-dz_dx, -dz_dy)) + turn) % 360
    slope = np.rad2deg(np.arctan(steep))
    facing = np.where(steep > 0, aspect, np.nan)
    attrs = _slope_attrs(elevation, smooth, within)
    return (
        _like(like, slope, "slope").assign_attrs(long_name="slope", **attrs),
        _like(like, facing, "aspect").assign_attrs(
            long_name="aspect, clockwise from true north", kind="phase", **attrs
        ),
    )


def _gradient_on(
    elevation: xr.DataArray, smooth: float, within: Any
) -> tuple[Floats, Floats, xr.DataArray]:
    """Return dz/dx, dz/dy and the heights of a grid within a model."""
    part = _part(elevation, within, _slope_reach(elevation, smooth))
    dz_dx, dz_dy = gradient(elevation, smooth=smooth)
    return dz_dx[part], dz_dy[part], elevation[part]


def _slope_attrs(elevation: xr.DataArray, smooth: float, within: Any) -> dict[str, Any]:
    step = max(abs(float(s)) for s in _heights(elevation)[1:])
    rim = round(max(_slope_reach(elevation, smooth).values()) / step)
    attrs: dict[str, Any] = {"units": "degrees", "dem_smoothing_m": smooth}
    return attrs if within is not None else {**attrs, "one_sided_px": rim}


def _like(elevation: xr.DataArray, values: Floats, name: str) -> xr.DataArray:
    """Return numbers on the grid of a model, in its precision (float32 of whole numbers)."""
    dtype = elevation.dtype if elevation.dtype.kind == "f" else np.dtype(np.float32)
    out: xr.DataArray = elevation.copy(data=values.astype(dtype)).rename(name)
    out.attrs = {}
    return out


def local_incidence(
    elevation: xr.DataArray, look: Look, *, smooth: float = 20.0, within: Any = None
) -> xr.DataArray:
    """Return the local incidence angle, (y, x) degrees 0..180, NaN = no data.

    ``cos(incidence) = look . normal`` with ``normal = (-dz/dx, -dz/dy, 1) / |...|`` (Ulaby and
    Long 2014, 4-5). Above 90 degrees the surface faces away and lies in shadow. float64 of a
    float64 model, else float32.

    Parameters
    ----------
    elevation : xarray.DataArray
        Metres, (y, x), on a projected grid.
    look : Look
        In true east, north, up; turned here by the grid's convergence.
    smooth, within
        See `gradient` and `slope_aspect`.

    Raises
    ------
    CubeError
        See `slope_aspect`; a look whose shape is not the grid's.
    """
    dz_dx, dz_dy, like = _gradient_on(elevation, smooth, within)
    grid_look = _on_grid(like, look)
    length = np.sqrt(1 + dz_dx**2 + dz_dy**2)
    cosine = (-dz_dx * grid_look.east - dz_dy * grid_look.north + grid_look.up) / length
    angle = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    return _like(like, angle, "incidence").assign_attrs(
        long_name="local incidence angle", **_slope_attrs(elevation, smooth, within)
    )


def local_incidence_from_angles(
    incidence: Any, look_azimuth: Any, slope: Any, aspect: Any
) -> Floats:
    """Return the local incidence angle by angles alone, degrees: the same as the vector form.

    ``cos(i) = cos(t) cos(s) + sin(t) sin(s) cos(b - a)``, t ellipsoidal incidence, b azimuth from
    target to sensor, s slope, a aspect (downslope azimuth), all degrees; both azimuths clockwise
    from true north, as `slope_aspect` gives aspect. Level ground has no aspect: NaN counts as 0
    where the slope is 0.
    """
    theta, beta, tilt, facing = (
        np.deg2rad(np.asarray(v, np.float64)) for v in (incidence, look_azimuth, slope, aspect)
    )
    facing = np.where(tilt == 0, 0.0, facing)
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


def layover_shadow(
    elevation: xr.DataArray, look: Look, *, kinds: bool = False, within: Any = None
) -> xr.DataArray:
    """Return layover and shadow, (y, x) uint8: 0 none, 1 shadow, 2 layover, 3 both, 255 no data.

    Along each line of sight on the ground, from near to far: a point is laid over where its slant
    range is not greater than that of every nearer point and less than that of every farther one
    (active slopes and the passive ground they fall on alike); it is in shadow where a nearer point
    rises above its line to the sensor.

    Parameters
    ----------
    elevation : xarray.DataArray
        Metres, (y, x), north-up or south-up, on a projected grid of square pixels; not smoothed.
        Shadow and layover reach in from outside: give a margin of relief x tan(incidence), a few
        kilometres in mountains.
    look : Look
        In true east, north, up; one direction for the area (its mean is taken: over 100 km it
        turns by less than half a degree).
    kinds : bool
        Whether to tell active from passive: 4 is added where the slope itself is laid over (range
        falls with distance), 8 where it faces away from the sensor. So 6 is active and 2 passive
        layover, 9 active and 1 passive shadow; codes & 3 are as without.
    within : GeoBox, optional
        The grid of the result, a part of the model's, which must reach as far around it as the
        model's relief can throw shadow and layover. Without it nothing says that what reaches in
        from outside is missing.

    Raises
    ------
    CubeError
        See `gradient`; pixels that are not square; look vectors without a direction; a model that
        does not reach far enough around `within`.
    """
    heights, step_y, step_x = _heights(elevation)
    if abs(abs(step_y) - abs(step_x)) > 1e-6:
        raise CubeError(f"layover needs square pixels, not {abs(step_x)} x {abs(step_y)} m")
    grid_look = _on_grid(
        elevation if within is None else elevation[_inside(elevation, within)], look
    )
    east, north, up = (_mean(v) for v in (grid_look.east, grid_look.north, grid_look.up))
    ground = np.hypot(east, north)
    if not ground > 0:
        raise CubeError(
            f"the look vectors (mean east {east:g}, north {north:g}, up {up:g}) have no direction "
            "on the ground: a radar looks sideways; give vectors from target to sensor with data"
        )
    theta = np.arctan2(ground, up)
    toward = (east / ground, north / ground)
    part = _part(elevation, within, _throw(heights, float(theta), toward, abs(step_x)))
    # rows run south and columns east in the lines below
    turned = (
        slice(None, None, -1 if step_y > 0 else 1),
        slice(None, None, -1 if step_x < 0 else 1),
    )
    lines = _Lines.along(heights.shape, (toward[0], -toward[1]))
    codes = _codes(lines.take(heights[turned]), float(theta), abs(step_x))
    out = lines.put(codes if kinds else codes & np.uint8(BOTH))[turned]
    out[~np.isfinite(heights)] = NO_DATA
    name = "layover and shadow: 0 none, 1 shadow, 2 layover, 3 both"
    found: xr.DataArray = elevation[part].copy(data=out[part]).rename("layover_shadow")
    found.attrs = {
        "long_name": f"{name}; + 4 active layover, + 8 active shadow" if kinds else name,
        "units": "1",
        "nodata": NO_DATA,
    }
    return found


def _inside(elevation: xr.DataArray, within: Any) -> Part:
    return _part(elevation, within, dict.fromkeys(("north", "south", "east", "west"), 0.0))


def _throw(
    heights: Floats, theta: float, toward: tuple[float, float], step: float
) -> dict[str, float]:
    """Return how far outside a grid ground can lie that shades it or is laid over it, metres."""
    known = heights[np.isfinite(heights)]
    relief = float(np.ptp(known)) if known.size else 0.0
    # a shadow comes from the near side; who covers whom in range may lie on either
    far = relief / np.tan(theta)
    near = max(relief * np.tan(theta), far)
    east, north = toward
    return {
        "east": step + max(near * east, far * -east),
        "west": step + max(near * -east, far * east),
        "north": step + max(near * north, far * -north),
        "south": step + max(near * -north, far * north),
    }


def _codes(profile: Floats, theta: float, step: float) -> npt.NDArray[np.uint8]:
    """Return layover, shadow and their kinds along lines from near to far, uint8."""
    away = np.arange(profile.shape[1]) * step
    reach = away * np.sin(theta) - profile * np.cos(theta)  # slant range, up to a constant
    before = _running(np.fmax, reach)
    after = _running(np.fmin, reach[:, ::-1])[:, ::-1]
    layover = (reach <= before) | (reach >= after)
    sight = profile + away / np.tan(theta)
    shadow = sight < _running(np.fmax, sight)
    # both kinds by the slope at the point itself
    active_layover = layover & (np.gradient(reach, axis=1) < 0)
    active_shadow = shadow & (np.gradient(sight, axis=1) < 0)
    parts = ((shadow, SHADOW), (layover, LAYOVER), (active_layover, ACTIVE_LAYOVER),
             (active_shadow, ACTIVE_SHADOW))  # fmt: skip
    out = np.zeros(profile.shape, np.uint8)
    for where, bit in parts:
        out |= np.where(where, bit, 0).astype(np.uint8)
    return out


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
