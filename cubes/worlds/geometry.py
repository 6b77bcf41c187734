"""Grids of a world: the UTM frame of the latents and those of the published products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from .params import Params

MGRS_ROWS = "ABCDEFGHJKLMNPQRSTUV"
MGRS_COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
MGRS_BANDS = "CDEFGHJKLMNPQRSTUVWX"


@dataclass(frozen=True, kw_only=True, slots=True)
class Raster:
    """A north-up grid: CRS, upper left corner, pixel size, shape."""

    epsg: int
    x0: float
    """Western edge."""
    y1: float
    """Northern edge."""
    dx: float
    """Pixel width."""
    dy: float
    """Pixel height, positive."""
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Affine coefficients in the order of STAC and rasterio."""
        return (self.dx, 0.0, self.x0, 0.0, -self.dy, self.y1)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north."""
        return (
            self.x0,
            self.y1 - self.height * self.dy,
            self.x0 + self.width * self.dx,
            self.y1,
        )

    def coarser(self, n: int) -> Raster:
        """Return the grid of n x n blocks, whose number must divide."""
        assert (self.height % n, self.width % n) == (0, 0)
        return Raster(
            epsg=self.epsg,
            x0=self.x0,
            y1=self.y1,
            dx=self.dx * n,
            dy=self.dy * n,
            height=self.height // n,
            width=self.width // n,
        )

    def crop(self, rows: slice, columns: slice) -> Raster:
        """Return the grid of a window with explicit start and stop."""
        return Raster(
            epsg=self.epsg,
            x0=self.x0 + columns.start * self.dx,
            y1=self.y1 - rows.start * self.dy,
            dx=self.dx,
            dy=self.dy,
            height=rows.stop - rows.start,
            width=columns.stop - columns.start,
        )

    def centres(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x (width,) and y (height,) of the pixel centres."""
        columns = np.arange(self.width, dtype=np.float64)
        rows = np.arange(self.height, dtype=np.float64)
        return self.x0 + (columns + 0.5) * self.dx, self.y1 - (rows + 0.5) * self.dy


def native(params: Params) -> Raster:
    """Return the grid of the latents: 10 m, AOI and margin, edges on multiples of 60 m."""
    p = params.place
    m = p.margin * 10
    x0 = math.floor((p.x0 - m) / 60) * 60
    y0 = math.floor((p.y0 - m) / 60) * 60
    x1 = math.ceil((p.x0 + p.width * 10 + m) / 60) * 60
    y1 = math.ceil((p.y0 + p.height * 10 + m) / 60) * 60
    return Raster(
        epsg=p.epsg,
        x0=x0,
        y1=y1,
        dx=10.0,
        dy=10.0,
        height=int(y1 - y0) // 10,
        width=int(x1 - x0) // 10,
    )


def aoi_bounds(params: Params) -> tuple[float, float, float, float]:
    """Return west, south, east, north of the AOI in metres of its own zone."""
    p = params.place
    return p.x0, p.y0, p.x0 + p.width * 10.0, p.y0 + p.height * 10.0


def aoi_window(params: Params) -> tuple[slice, slice]:
    """Return the rows and columns of the AOI in the native grid."""
    grid, (x0, _, x1, y1) = native(params), aoi_bounds(params)
    row, col = round((grid.y1 - y1) / 10), round((x0 - grid.x0) / 10)
    return slice(row, row + params.place.height), slice(col, col + round((x1 - x0) / 10))


def to_lonlat(epsg: int, x: Any, y: Any) -> tuple[Any, Any]:
    """Return longitude and latitude in degrees of points in a CRS."""
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
    return lon, lat


def ring(epsg: int, bounds: tuple[float, float, float, float], n: int = 8) -> list[list[float]]:
    """Return the closed lon/lat ring of a rectangle, n points per side, 7 decimals.

    A straight side in UTM is a bent line in degrees: 10 km sides bend by up to 3 m.
    """
    w, s, e, t = bounds
    f = np.linspace(0, 1, n, endpoint=False)
    xs = np.concatenate([w + (e - w) * f, np.full(n, e), e - (e - w) * f, np.full(n, w)])
    ys = np.concatenate([np.full(n, s), s + (t - s) * f, np.full(n, t), t - (t - s) * f])
    lon, lat = to_lonlat(epsg, xs, ys)
    points = [[round(float(a), 7), round(float(b), 7)] for a, b in zip(lon, lat, strict=True)]
    return [*points, points[0]]


def convergence(epsg: int, x: float, y: float) -> float:
    """Return degrees by which grid north lies east of true north (positive clockwise)."""
    lon, lat = to_lonlat(epsg, x, y)
    central = (epsg - 32600) * 6 - 183
    return math.degrees(
        math.atan(math.tan(math.radians(lon - central)) * math.sin(math.radians(lat)))
    )


def mgrs_tile(epsg: int, x: float, y: float) -> str:
    """Return the 100 km MGRS square of a point, e.g. ``31TGN``."""
    zone = epsg - 32600
    _, lat = to_lonlat(epsg, x, y)
    band = MGRS_BANDS[int((lat + 80) // 8)]
    column = MGRS_COLUMNS[zone % 3][int(x // 100_000) - 1]
    shift = 0 if zone % 2 else 5
    return f"{zone:02d}{band}{column}{MGRS_ROWS[(int(y // 100_000) + shift) % 20]}"


@dataclass(frozen=True, slots=True, eq=False)
class Gather:
    """Bilinear sampling of arrays on one grid at the pixel centres of another."""

    shape: tuple[int, int]
    """Of the result."""
    source: tuple[int, int]
    """Shape of the arrays it is made for."""
    inside: NDArray[np.bool_]
    """(y, x), True where all four neighbours exist."""
    flat: NDArray[np.intp]
    """(n,) index of the upper left neighbour, for pixels inside."""
    fy: NDArray[np.float32]
    fx: NDArray[np.float32]

    def __call__(self, a: NDArray[Any], fill: float) -> NDArray[Any]:
        """Return `a` (y, x) sampled, in its own dtype, `fill` outside."""
        return _gather(a, self.flat, (self.fy, self.fx), self.inside, fill)

    def nearest(self, a: NDArray[Any], fill: float) -> NDArray[Any]:
        """Return the nearest sample of `a` (y, x), `fill` outside."""
        w = a.shape[1]
        index = self.flat + (self.fy >= 0.5) * w + (self.fx >= 0.5)
        out = np.full(self.shape, fill, a.dtype)
        out[self.inside] = a.ravel()[index]
        return out


def _gather(
    a: NDArray[Any],
    flat: NDArray[np.intp],
    weights: tuple[NDArray[np.float32], NDArray[np.float32]],
    inside: NDArray[np.bool_],
    fill: float,
) -> NDArray[Any]:
    fy, fx = weights
    w = a.shape[1]
    v = a.ravel()
    # v[n:] shifts the origin instead of the index: one index array for all four neighbours.
    top, bottom = v.take(flat), v[w:].take(flat)
    right = v[1:].take(flat)
    right -= top
    right *= fx
    top += right
    right = v[w + 1 :].take(flat)
    right -= bottom
    right *= fx
    bottom += right
    bottom -= top
    bottom *= fy
    values = top
    values += bottom
    if inside.all():
        return np.asarray(values.reshape(inside.shape))
    out = np.full(inside.shape, fill, a.dtype)
    out[inside] = values
    return out


def gather(source: Raster, target: Raster, *, shift: tuple[float, float] = (0.0, 0.0)) -> Gather:
    """Return the bilinear sampling from `source` to `target`.

    The projection is evaluated on every 16th pixel and interpolated: off by under 1 mm for
    UTM to UTM over 10 km.

    Parameters
    ----------
    source, target : Raster
    shift : tuple
        Metres (x, y) by which the target's own georeferencing is wrong: what lies at p is
        published at p + shift.
    """
    x, y = positions(source, target)
    col = (x - shift[0] - source.x0) / source.dx - 0.5
    row = (source.y1 - (y - shift[1])) / source.dy - 0.5
    c0, r0 = np.floor(col), np.floor(row)
    inside = (c0 >= 0) & (r0 >= 0) & (c0 < source.width - 1) & (r0 < source.height - 1)
    flat = (r0[inside] * source.width + c0[inside]).astype(np.intp)
    fy, fx = (row - r0)[inside].astype(np.float32), (col - c0)[inside].astype(np.float32)
    return Gather(target.shape, source.shape, inside, flat, fy, fx)


def positions(source: Raster, target: Raster) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return x, y (height, width) in the source's CRS of the target's pixel centres."""
    cx, cy = target.centres()
    if source.epsg == target.epsg:
        gx, gy = np.meshgrid(cx, cy)
        return gx, gy
    step = 16
    rows = np.arange(0, target.height + step, step)
    cols = np.arange(0, target.width + step, step)
    gx, gy = np.meshgrid(target.x0 + (cols + 0.5) * target.dx, target.y1 - (rows + 0.5) * target.dy)
    px, py = Transformer.from_crs(target.epsg, source.epsg, always_xy=True).transform(gx, gy)
    return (
        _refine(np.asarray(px), step, target.shape),
        _refine(np.asarray(py), step, target.shape),
    )


def _refine(coarse: NDArray[np.float64], step: int, shape: tuple[int, int]) -> NDArray[np.float64]:
    h, w = shape
    f = (np.arange(step) / step)[None, :, None]
    rows = (coarse[:-1, None] * (1 - f) + coarse[1:, None] * f).reshape(-1, coarse.shape[1])[:h]
    g = (np.arange(step) / step)[None, None, :]
    out = (rows[:, :-1, None] * (1 - g) + rows[:, 1:, None] * g).reshape(h, -1)[:, :w]
    return np.asarray(out)


def cover(
    bounds: tuple[float, float, float, float],
    epsg: int,
    *,
    to: int,
    step: float,
    offset: float = 0.0,
) -> Raster:
    """Return the smallest grid in CRS `to` that covers a rectangle, edges at offset + n step."""
    w, s, e, n = bounds
    f = np.linspace(0, 1, 9)
    xs = np.concatenate([w + (e - w) * f, np.full(9, e), w + (e - w) * f, np.full(9, w)])
    ys = np.concatenate([np.full(9, s), s + (n - s) * f, np.full(9, n), s + (n - s) * f])
    px, py = Transformer.from_crs(epsg, to, always_xy=True).transform(xs, ys)
    x0 = math.floor((px.min() - offset) / step) * step + offset
    y0 = math.floor((py.min() - offset) / step) * step + offset
    x1 = math.ceil((px.max() - offset) / step) * step + offset
    y1 = math.ceil((py.max() - offset) / step) * step + offset
    return Raster(
        epsg=to,
        x0=x0,
        y1=y1,
        dx=step,
        dy=step,
        height=round((y1 - y0) / step),
        width=round((x1 - x0) / step),
    )
