"""The one function that reads pixels of an asset, and the blocks that the steps of a cube make.

`read` makes working numbers of one asset on one grid; `block` lays the assets of one step over
each other. Every other way to pixels (odc-stac, stackstac, the writer) goes through them, so that
the allow-list, signing, retries, redaction, nodata and units hold everywhere and bits agree.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cubes.bounds import reprojected
from cubes.reading.opener import Counts, Opened, close_all, count, counting, crs_name, with_dataset
from cubes.reading.resample import Frame, Taps, frame, pick, taps, weigh
from cubes.types import Access, ArrayPlan, Asset, CubeError, Layer

if TYPE_CHECKING:
    from affine import Affine
    from odc.geo.geobox import GeoBox

__all__ = [
    "BELOW_NOISE", "Counts", "block", "close_all", "counting", "filled", "misses", "mosaic", "read",
]  # fmt: skip

BELOW_NOISE = 1e-5
"""Linear power (-50 dB, 25 dB under the noise floor of Sentinel-1) kept where a source of
``zero = "below_noise"`` holds 0 or less: measured, and too dark to tell how dark."""

MAX_WINDOW = 2**27
"""Most source pixels read for one block: 1 GB as float64. A grid a hundred times coarser than its
source would otherwise ask for a scene at once."""

MARGIN = 0.005
"""Degrees by which a granule's stated bounding box is trusted less: they are rounded, or follow
the footprint of the scene and not of its pixels."""


@lru_cache(maxsize=4096)
def _frame(crs: str, transform: Affine, shape: tuple[int, int]) -> Frame:
    name, degrees = crs_name(crs)
    return frame(name, transform, shape, degrees=degrees)


def _target(geobox: GeoBox) -> Frame:
    """Return a grid block as a frame.

    Cached by text and numbers: the hash of a GeoBox writes out its CRS each time (30 us).
    """
    if geobox.crs is None:
        raise CubeError("the grid has no CRS; give the GeoBox one")
    return _frame(str(geobox.crs), geobox.transform, geobox.shape.yx)


def _valid(pixels: np.ndarray, nodata: float | None, zero: str) -> np.ndarray | None:
    """Return where source numbers are measurements (True = usable), or None for everywhere."""
    masks = []
    if pixels.dtype.kind in "fc":
        masks.append(np.isfinite(pixels))
    if nodata is not None and not np.isnan(nodata):
        masks.append(pixels != nodata)
    if zero == "nodata":
        masks.append(pixels != 0)
    if not masks:
        return None
    valid: np.ndarray = masks[0]
    for more in masks[1:]:
        valid &= more
    return valid


def _limits(layer: Layer) -> tuple[int, int]:
    """Return the least and greatest working integer that is not nodata."""
    limits = np.iinfo(layer.work_dtype)
    low, high = int(limits.min), int(limits.max)
    return low + (layer.work_nodata == low), high - (layer.work_nodata == high)


def _fit(values: np.ndarray, layer: Layer) -> np.ndarray:
    """Return float numbers in the working dtype; valid integers never land on nodata."""
    dtype = np.dtype(layer.work_dtype)
    if dtype.kind == "f":
        return np.asarray(values, dtype)
    return np.asarray(np.clip(np.rint(values), *_limits(layer)).astype(dtype))


def _shifted(pixels: np.ndarray, asset: Asset, layer: Layer) -> np.ndarray:
    """Return every source number as a working one, nodata included (it is set right after)."""
    dtype = np.dtype(layer.work_dtype)
    if asset.shift == 0 and asset.scale == 1 and pixels.dtype == dtype:
        return pixels
    shift = int(asset.shift)
    if (
        pixels.dtype.kind in "iu"
        and dtype.kind in "iu"
        and (asset.scale, shift) == (1, asset.shift)
    ):
        # digital numbers stay integers: a third of the time of going through float64
        wide = np.add(pixels, shift, dtype=np.int32 if pixels.dtype.itemsize <= 2 else np.int64)
        return np.asarray(np.clip(wide, *_limits(layer), out=wide).astype(dtype))
    values = pixels.astype(np.float64 if dtype.kind != "f" or dtype.itemsize > 4 else dtype)
    if asset.scale != 1:
        values *= values.dtype.type(asset.scale)
    if asset.shift != 0:
        values += values.dtype.type(asset.shift)
    if dtype.kind != "f" and pixels.dtype.kind == "f":
        values[~np.isfinite(values)] = 0  # NaN has no integer
    return _fit(values, layer)


def _working(
    pixels: np.ndarray, valid: np.ndarray | None, asset: Asset, layer: Layer
) -> np.ndarray:
    """Return working numbers of source pixels, nodata where not valid."""
    dtype = np.dtype(layer.work_dtype)
    out = _shifted(pixels, asset, layer)
    if asset.zero == "below_noise" and dtype.kind == "f":
        out = np.maximum(out, dtype.type(BELOW_NOISE))  # NaN stays NaN
    if valid is None or layer.work_nodata is None:
        return out
    return np.where(valid, out, dtype.type(layer.work_nodata))


def _resampled(
    t: Taps, work: np.ndarray, valid: np.ndarray | None, row: int, col: int, layer: Layer
) -> np.ndarray:
    """Return working numbers on the grid: nearest, or weighted means of the valid ones.

    A phase is averaged as ``e^(i phi)``; power, reflectance and height as they are. A pixel keeps
    no value where less than a thousandth (average) or half (bilinear) of its weight is valid.
    """
    dtype = np.dtype(layer.work_dtype)
    fill = dtype.type(0 if layer.work_nodata is None else layer.work_nodata)
    if not t.wu:
        return pick(t, work, row, col, fill=fill)
    if t.plain:
        return pick(t, work, row, col, fill=fill)
    kind = dtype if dtype == np.float32 else np.dtype(np.float64)
    there = np.ones(work.shape, bool) if valid is None else valid
    weight = there.astype(kind)
    clean = np.where(there, work, 0).astype(kind)
    if layer.kind == "phase":
        angle = clean * kind.type(layer.turn)
        total, real, imag = weigh(
            t, [weight, np.cos(angle) * weight, np.sin(angle) * weight], row, col
        )
        mean = layer.wrapped(np.arctan2(imag, real))
    else:
        total, summed = weigh(t, [weight, clean], row, col)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = summed / total
    enough = total > (1e-3 if layer.kernel == "average" else 0.5 - 1e-5)
    mean[~enough] = 0
    return np.where(enough, _fit(mean, layer), fill)


def _empty(geobox: GeoBox, layer: Layer) -> np.ndarray:
    fill = 0 if layer.work_nodata is None else layer.work_nodata
    return np.full(geobox.shape.yx, fill, layer.work_dtype)


def _clip(first: int, last: int, size: int) -> tuple[int, int]:
    first, last = max(first, 0), min(last, size)
    return (first, last) if first < last else (0, 0)


def read(asset: Asset, geobox: GeoBox, layer: Layer, access: Access) -> np.ndarray:
    """Return the pixels of one asset on a grid, as the layer's working numbers.

    The first band is read. Within one CRS, pixels map by index arithmetic (a plain windowed read
    where the lattices agree); between CRSs by exact coordinates on every 16th line. Either way a
    pixel's value depends on its place alone, never on the block it is read in. Only the window of
    the source that the grid needs is read, at full resolution (overviews would be another kernel).

    Parameters
    ----------
    asset : Asset
        Where the pixels lie and what they mean.
    geobox : GeoBox
        The grid: any CRS, axes along x and y.
    layer : Layer
        Decides dtype, nodata and kernel.
    access : Access
        What may be opened.

    Returns
    -------
    ndarray
        (y, x), ``layer.work_dtype``, ``layer.work_nodata`` where the asset has no data: linear
        power for backscatter, harmonised digital numbers for reflectance.

    Raises
    ------
    AssetReadError
        Not allowed, not readable, or still failing when the budget of `BUDGET` seconds was spent.
    """
    target = _target(geobox)
    kernel = "nearest" if layer.kind in ("class", "mask") else layer.kernel

    def use(opened: Opened) -> np.ndarray:
        source = opened.frame
        t = taps(target, source.lattice, kernel)
        r0, r1, c0, c1 = t.window
        rows = _clip(r0 - source.row, r1 - source.row, source.height)
        cols = _clip(c0 - source.col, c1 - source.col, source.width)
        if rows[0] == rows[1] or cols[0] == cols[1]:
            return _empty(geobox, layer)
        if (rows[1] - rows[0]) * (cols[1] - cols[0]) > MAX_WINDOW:
            raise CubeError(
                f"this block needs {rows[1] - rows[0]:,} x {cols[1] - cols[0]:,} source pixels at "
                f"once, more than {MAX_WINDOW:,}: read smaller blocks, or take a finer grid"
            )
        pixels, valid = _pixels(opened, asset, rows, cols)
        work = _working(pixels, valid, asset, layer)
        return _resampled(t, work, valid, source.row + rows[0], source.col + cols[0], layer)

    def where() -> str:
        left, bottom, right, top = geobox.boundingbox
        return f"x {left:.10g}..{right:.10g}, y {bottom:.10g}..{top:.10g} of {geobox.crs}"

    return with_dataset(asset, access, where, use)


def _pixels(
    opened: Opened, asset: Asset, rows: tuple[int, int], cols: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return source numbers of a window and where they are valid (None: everywhere)."""
    window = (rows, cols)
    pixels = opened.dataset.read(1, window=window)
    by, bx = opened.block
    height = min(-(-rows[1] // by) * by, opened.frame.height) - rows[0] // by * by
    width = min(-(-cols[1] // bx) * bx, opened.frame.width) - cols[0] // bx * bx
    count(pixels=height * width)
    nodata = opened.nodata if asset.nodata is None else asset.nodata
    valid = _valid(pixels, nodata, asset.zero)
    if opened.mask:
        mask = opened.dataset.read_masks(1, window=window) != 0
        valid = mask if valid is None else valid & mask
    return pixels, valid


# -------------------------------------------------------------------------------------- steps


@lru_cache(maxsize=4096)
def _lonlat(
    crs: str, transform: Affine, shape: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return west, south, east, north of a grid block; west > east over the antimeridian."""
    x0, y0 = transform.c, transform.f
    x1, y1 = x0 + transform.a * shape[1], y0 + transform.e * shape[0]
    outer = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
    return reprojected(outer, crs_name(crs)[0])


def misses(bbox: tuple[float, float, float, float] | None, geobox: GeoBox) -> bool:
    """Return whether a granule's bounding box (EPSG:4326) surely has no pixel of the grid."""
    if bbox is None:
        return False
    west, south, east, north = bbox
    w, s, e, n = _lonlat(str(geobox.crs), geobox.transform, geobox.shape.yx)
    if not np.isfinite((w, s, e, n)).all() or south - MARGIN > n or north + MARGIN < s:
        return bool(np.isfinite((w, s, e, n)).all())
    width = (east - west) % 360 if west > east else east - west
    span = (e - w) % 360 if w > e else e - w
    apart = (w - west) % 360
    return apart > width + 2 * MARGIN and apart + span < 360 - 2 * MARGIN


def filled(work: np.ndarray, layer: Layer) -> np.ndarray:
    """Return where working numbers are valid (True = usable), same shape."""
    nodata = layer.work_nodata
    if nodata is None:
        return np.ones(work.shape, bool)
    if np.isnan(nodata):
        return np.asarray(~np.isnan(work))
    return np.asarray(work != nodata)


def mosaic(assets: tuple[Asset, ...], geobox: GeoBox, layer: Layer, access: Access) -> np.ndarray:
    """Return (y, x) working numbers of assets laid over each other; the first valid pixel wins.

    Assets whose bounding box misses the grid are not opened, nor any more once it is full.

    Raises
    ------
    AssetReadError
        An asset could not be read.
    """
    out: np.ndarray | None = None
    full: np.ndarray | None = None
    near = [a for a in assets if not misses(a.bbox, geobox)]
    for n, asset in enumerate(near):
        found = read(asset, geobox, layer, access)
        if out is None:
            out = found
        else:
            assert full is not None
            if not out.flags.writeable:
                out = out.copy()
            np.copyto(out, found, where=~full)
        if n + 1 < len(near):
            full = filled(out, layer)
            if full.all():
                break
    return _empty(geobox, layer) if out is None else out


def block(array: ArrayPlan, step: int, geobox: GeoBox, access: Access) -> np.ndarray:
    """Return the pixels of one step of an array on a grid block, as working numbers.

    Parameters
    ----------
    array : ArrayPlan
        Layer and assets; not a derived layer.
    step : int
        Index along the stack dimension; 0 for a static layer.
    geobox : GeoBox
        The block: any part of the cube's grid.
    access : Access
        The plan's.

    Returns
    -------
    ndarray
        (channel, y, x), of one channel where the layer has none; ``layer.work_dtype``,
        ``layer.work_nodata`` where no asset has data.

    Raises
    ------
    CubeError
        The layer is derived from another and has no assets of its own.
    AssetReadError
        An asset could not be read.
    """
    layer = array.layer
    if layer.derived_from is not None:
        raise CubeError(
            f"layer {layer.name!r} is computed from {layer.derived_from!r}; read that one"
        )
    channels = layer.channels or ("",)
    assets = array.steps[step]
    if len(channels) == 1:
        return mosaic(assets.get(channels[0], ()), geobox, layer, access)[None]
    out = np.empty((len(channels), *geobox.shape.yx), layer.work_dtype)
    for n, channel in enumerate(channels):
        out[n] = mosaic(assets.get(channel, ()), geobox, layer, access)
    return out
