"""From a source's pixels to a grid's, in plain numpy, with bits that do not depend on chunking.

Both grids are counted from absolute lattice lines (pixel i of a grid of edge r and phase p covers
``p + i*r .. p + (i+1)*r``), so a pixel's source coordinates are a function of its own index and
never of the block it is read in. Between CRSs they are computed exactly on every 16th line and
interpolated inside (5e-5 of a pixel off between UTM zones at 10 m), because PROJ on every pixel
costs more than decoding the pixels.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from cubes.types import CubeError, Kernel

if TYPE_CHECKING:
    from affine import Affine

NODE = 16
"""Pixels between exactly transformed lattice lines."""

ALIGNED = 1e-3
"""Pixels by which two lattices may differ and still count as one; float noise of real products."""

_QUANTUM = 2.0**20

_CACHE_BYTES = 192 * 2**20
"""Most memory of one process for coordinate maps (16 bytes per pixel of the grid)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lattice:
    """A north-up or south-up pixel grid without ends: CRS, pixel edges (signed), phase."""

    crs: str
    """WKT or code; equal text, equal CRS."""
    rx: float
    ry: float
    """Pixel edge along x and y, CRS units; negative where the coordinate falls with the index."""
    px: float
    py: float
    """Coordinate of line 0, between 0 and one edge."""
    wrap: float | None = None
    """For longitudes: the centre around which they are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A block of a lattice: first column and row, and size."""

    lattice: Lattice
    col: int
    row: int
    width: int
    height: int


def _axis(origin: float, edge: float) -> tuple[int, float]:
    """Return the index of the line at `origin`, and the lattice's phase rounded to 2^-20."""
    index = math.floor(origin / edge + ALIGNED)
    phase = round((origin / edge - index) * _QUANTUM) / _QUANTUM
    return index, phase * edge


def frame(crs: str, transform: Affine, shape: tuple[int, int], *, degrees: bool = False) -> Frame:
    """Return where a raster lies on its own lattice.

    Parameters
    ----------
    crs : str
        CRS as text.
    transform : Affine
        Pixel corner to CRS coordinates.
    shape : (int, int)
        Rows and columns.
    degrees : bool
        Whether x is a longitude, which may then be counted in turns.

    Raises
    ------
    CubeError
        The grid is rotated or sheared.
    """
    if abs(transform.b) > 1e-9 * abs(transform.a) or abs(transform.d) > 1e-9 * abs(transform.e):
        raise CubeError(
            f"the pixel grid {tuple(transform)[:6]} is rotated; only grids along x and y are read: "
            "warp it to a plain grid first"
        )
    height, width = shape
    col, px = _axis(transform.c, transform.a)
    row, py = _axis(transform.f, transform.e)
    wrap = transform.c + transform.a * width / 2 if degrees else None
    lattice = Lattice(crs=crs, rx=transform.a, ry=transform.e, px=px, py=py, wrap=wrap)
    return Frame(lattice=lattice, col=col, row=row, width=width, height=height)


@dataclass(frozen=True, kw_only=True, slots=True)
class Map:
    """Where each pixel centre of a grid block lies on a source's lattice.

    ``u`` and ``v`` are column and row coordinates (pixel i covers i..i+1), float64, and ``wu``,
    ``wv`` the size of a grid pixel in source pixels: one row and one column within a CRS, planes
    (height, width) between CRSs.
    """

    u: np.ndarray
    v: np.ndarray
    wu: np.ndarray
    wv: np.ndarray


@lru_cache(maxsize=64)
def _transformer(target: str, source: str) -> Any:
    from pyproj import Transformer

    return Transformer.from_crs(target, source, always_xy=True)


def _snap(value: float, tolerance: float) -> float:
    return float(round(value)) if abs(value - round(value)) < tolerance else value


def _same_crs_map(target: Frame, source: Lattice) -> Map:
    t = target.lattice
    # snapped so that 20 m / 10 m is 2 and not 2 - 4e-16
    wu, wv = _snap(t.rx / source.rx, 1e-9), _snap(t.ry / source.ry, 1e-9)
    cols = np.arange(target.col, target.col + target.width) + 0.5
    rows = np.arange(target.row, target.row + target.height) + 0.5
    u = cols * wu + _snap((t.px - source.px) / source.rx, ALIGNED)
    v = rows * wv + _snap((t.py - source.py) / source.ry, ALIGNED)
    return Map(u=u, v=v, wu=np.full(1, abs(wu)), wv=np.full(1, abs(wv)))


def _nodes(first: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lattice lines to transform, and for each pixel its lower line and fraction."""
    lines = np.arange(first // NODE, (first + count - 1) // NODE + 2)
    index = np.arange(first, first + count)
    lower = index // NODE
    return lines, lower - lines[0], (index + 0.5 - lower * NODE) / NODE


def _cross_crs_map(target: Frame, source: Lattice) -> Map:
    t = target.lattice
    node_cols, j, g = _nodes(target.col, target.width)
    node_rows, i, f = _nodes(target.row, target.height)
    x = (t.px + node_cols * NODE * t.rx)[None, :].repeat(len(node_rows), 0)
    y = (t.py + node_rows * NODE * t.ry)[:, None].repeat(len(node_cols), 1)
    xs, ys = _transformer(t.crs, source.crs).transform(x, y)
    if source.wrap is not None:
        xs = xs - 360.0 * np.round((xs - source.wrap) / 360.0)
    u = (xs - source.px) / source.rx
    v = (ys - source.py) / source.ry
    lost = ~(np.isfinite(u) & np.isfinite(v))
    u[lost] = v[lost] = _NOWHERE
    f = f[:, None]

    def between(grid: np.ndarray) -> np.ndarray:
        # rows of nodes to columns of pixels, then down: the same operations for every block
        along = grid[:, j] * (1 - g) + grid[:, j + 1] * g
        return np.asarray(along[i] * (1 - f) + along[i + 1] * f)

    # Extent of a grid pixel along the source's axes, one number per cell between nodes, rounded
    # to 1/64 so that it hardly ever varies within a cube.
    du = np.hypot(np.diff(u, axis=1)[:-1], np.diff(u, axis=0)[:, :-1]) / NODE
    dv = np.hypot(np.diff(v, axis=1)[:-1], np.diff(v, axis=0)[:, :-1]) / NODE
    wu, wv = (np.maximum(np.round(np.minimum(d, 1e4) * 64), 1) / 64 for d in (du, dv))

    def spread(cells: np.ndarray) -> np.ndarray:
        same = bool((cells == cells[0, 0]).all())
        return cells[:1, :1] if same else np.asarray(cells[i][:, j])

    return Map(u=between(u), v=between(v), wu=spread(wu), wv=spread(wv))


_NOWHERE = -1e9
"""Source coordinate of what lies outside the projection; far from any pixel, inside an int32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Taps:
    """Which source pixels make each pixel of a block, and with what weights.

    ``iu`` and ``iv`` are the first source column and row (int32, on the source's lattice), of
    shape (width,) and (height,) within a CRS, else (height, width); ``wu`` and ``wv`` the weights
    of that pixel and the next ones (float32), empty for nearest.
    """

    separable: bool
    iu: np.ndarray
    iv: np.ndarray
    wu: tuple[np.ndarray, ...]
    wv: tuple[np.ndarray, ...]
    window: tuple[int, int, int, int]
    """First and last-plus-one row, first and last-plus-one column that any pixel needs."""
    plain: bool
    """Whether pixels map one to one: reading the window is all there is to do."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(a.nbytes for a in (self.iu, self.iv, *self.wu, *self.wv))


def _weights(
    c: np.ndarray, width: np.ndarray, kernel: Kernel
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return the first source index and the weights of it and the next ones, along one axis.

    ``average``: overlap of the grid pixel's extent with each source pixel. ``bilinear``: a
    triangle as wide as the larger of the two pixels, so that it does not alias when it shrinks.
    """
    if kernel == "nearest":
        # a centre on the line between two pixels takes the later one, whatever its float noise
        return np.floor(c + 1e-6).astype(np.int32), ()
    if kernel == "average":
        low, high = c - width / 2, c + width / 2
        base = np.floor(low + 1e-6)
        count = max(1, math.ceil(float((high - base).max()) - 1e-6))
        weights = [
            np.clip(np.minimum(high, base + n + 1) - np.maximum(low, base + n), 0, None)
            for n in range(count)
        ]
    else:
        half = np.maximum(width, 1.0)
        base = np.floor(c - half + 0.5 + 1e-6)
        count = max(1, math.ceil(float((c + half - 0.5 - base).max()) - 1e-6))
        weights = [np.clip(1 - np.abs(base + n + 0.5 - c) / half, 0, None) for n in range(count)]
    total = np.add.reduce(weights)
    return base.astype(np.int32), tuple((w / total).astype(np.float32) for w in weights)


def _span(index: np.ndarray, taps: int) -> tuple[int, int]:
    """Return the first index and one past the last that are needed, without what is nowhere."""
    low = int(index.min())
    if low <= _NOWHERE / 2:
        real = index[index > _NOWHERE / 2]
        if not real.size:
            return 0, 0
        low = int(real.min())
    return low, int(index.max()) + max(1, taps)


def _make_taps(target: Frame, source: Lattice, kernel: Kernel) -> Taps:
    same = target.lattice.crs == source.crs
    found = _same_crs_map(target, source) if same else _cross_crs_map(target, source)
    iu, wu = _weights(found.u, found.wu, kernel)
    iv, wv = _weights(found.v, found.wv, kernel)
    one = same and all(
        i[-1] - i[0] == len(i) - 1 and (len(w) <= 1) and (len(i) == 1 or i[1] - i[0] == 1)
        for i, w in ((iu, wu), (iv, wv))
    )
    exact = kernel == "nearest" or bool((found.wu <= 1).all() and (found.wv <= 1).all())
    return Taps(
        separable=same,
        iu=iu,
        iv=iv,
        wu=wu,
        wv=wv,
        window=(*_span(iv, len(wv)), *_span(iu, len(wu))),
        plain=one and exact,
    )


_cache: OrderedDict[tuple[Frame, Lattice, Kernel], Taps] = OrderedDict()
_cache_lock = threading.Lock()


def taps(target: Frame, source: Lattice, kernel: Kernel) -> Taps:
    """Return the taps of a block, from a cache bounded by bytes (thread-safe).

    The writer asks for the same block at every step, and all scenes of a tile share a lattice, so
    most calls find them made.
    """
    key = (target, source, kernel)
    with _cache_lock:
        found = _cache.get(key)
        if found is not None:
            _cache.move_to_end(key)
            return found
    made = _make_taps(target, source, kernel)
    with _cache_lock:
        _cache[key] = made
        held = sum(t.nbytes for t in _cache.values())
        while held > _CACHE_BYTES and len(_cache) > 1:
            _, old = _cache.popitem(last=False)
            held -= old.nbytes
    return made


def _padded(block: np.ndarray, fill: Any, before: tuple[int, int], shape: Any) -> np.ndarray:
    """Return an array of `shape` of `fill` with `block` at `before`; `block` itself if equal."""
    if block.shape == tuple(shape) and before == (0, 0):
        return block
    out = np.full(shape, fill, block.dtype)
    out[before[0] : before[0] + block.shape[0], before[1] : before[1] + block.shape[1]] = block
    return out


def pick(t: Taps, block: np.ndarray, row: int, col: int, *, fill: Any) -> np.ndarray:
    """Return the nearest source pixel of each grid pixel, `fill` outside the block.

    Parameters
    ----------
    t : Taps
        Made for ``nearest``.
    block : ndarray
        (rows, columns) source pixels, any dtype.
    row, col : int
        Lattice row and column of its first pixel.
    fill : scalar
        Nodata, for what the block does not cover.
    """
    r0, r1, c0, c1 = t.window
    if t.plain:
        return _padded(block, fill, (row - r0, col - c0), (r1 - r0, c1 - c0))
    if t.separable:
        whole = _padded(block, fill, (row - r0, col - c0), (r1 - r0, c1 - c0))
        rows, cols = t.iv - r0, t.iu - c0
        # the costly gather, along columns, on the fewer rows
        if len(rows) > whole.shape[0]:
            return np.asarray(whole.take(cols, 1).take(rows, 0))
        return np.asarray(whole.take(rows, 0).take(cols, 1))
    # one line of fill all around; whatever lies outside is clipped onto it
    padded = _padded(block, fill, (1, 1), (block.shape[0] + 2, block.shape[1] + 2))
    flat = np.clip(t.iv - (row - 1), 0, padded.shape[0] - 1)
    flat *= padded.shape[1]
    flat += np.clip(t.iu - (col - 1), 0, padded.shape[1] - 1)
    return np.asarray(padded.ravel().take(flat))


def weigh(t: Taps, planes: list[np.ndarray], row: int, col: int) -> list[np.ndarray]:
    """Return the weighted sums over the taps of each plane, zero outside the block.

    Parameters
    ----------
    t : Taps
        Made for ``average`` or ``bilinear``.
    planes : list of ndarray
        (rows, columns) float source pixels, zero where not valid.
    row, col : int
        Lattice row and column of their first pixel.
    """
    if t.separable:
        return [_weigh_separable(t, p, row, col) for p in planes]
    ny, nx = len(t.wv), len(t.wu)
    rows, cols = (n + 2 * m for n, m in zip(planes[0].shape, (ny, nx), strict=True))
    padded = [_padded(p, 0, (ny, nx), (rows, cols)).ravel() for p in planes]
    flat = np.clip(t.iv - (row - ny), 0, rows - ny)
    flat *= cols
    flat += np.clip(t.iu - (col - nx), 0, cols - nx)
    sums = [np.zeros(flat.shape, p.dtype) for p in planes]
    for m in range(ny):
        for n in range(nx):
            weight = t.wv[m] * t.wu[n]
            index = flat + (m * cols + n)
            for total, plane in zip(sums, padded, strict=True):
                total += plane.take(index) * weight
    return sums


def _weigh_separable(t: Taps, plane: np.ndarray, row: int, col: int) -> np.ndarray:
    r0, r1, c0, c1 = t.window
    whole = _padded(plane, 0, (row - r0, col - c0), (r1 - r0, c1 - c0))
    across = np.zeros((whole.shape[0], len(t.iu)), plane.dtype)
    for n, weight in enumerate(t.wu):
        across += whole[:, t.iu - c0 + n] * weight
    out = np.zeros((len(t.iv), len(t.iu)), plane.dtype)
    for m, weight in enumerate(t.wv):
        out += across[t.iv - r0 + m] * weight[:, None]
    return out
