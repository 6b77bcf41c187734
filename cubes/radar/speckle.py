"""Speckle filters, lazily and in linear power: averaging decibels is low by 0.5-0.8 dB."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubes import physics
from cubes.types import CubeError

Floats = npt.NDArray[np.float32]

ENOUGH = 1024
"""Values with data from which decibels can be told from linear power: of 32 x 32 pixels of a city
in dB some are below 0, of power none is."""
MOST_DB = 30.0
"""A median that no surface has; the brightest reflector of an image may be above."""


def lee(backscatter: xr.DataArray, *, size: int = 15, looks: float = 4.4) -> xr.DataArray:
    """Return backscatter after Lee's filter, dB, same dims and chunks, NaN = nodata.

    How many looks are left varies with the weight from pixel to pixel: ``equivalent_looks`` of the
    source is renamed ``equivalent_looks_unfiltered``.

    Each pixel becomes ``mean + w (pixel - mean)`` over a square of `size` pixels, with ``w = max(0,
    1 - Cu^2 / Ci^2)``, Ci the local coefficient of variation of power and ``Cu^2 = 1 / looks`` that
    of speckle (Lee 1980, IEEE PAMI 2, in the form for multiplicative noise of Lopes et al. 1990).
    Size 15 is SAR2VI's.

    Parameters
    ----------
    backscatter : xarray.DataArray
        Decibels, dims ending in (y, x), numpy or dask.
    size : int
        Edge of the window in pixels, odd.
    looks : float
        Equivalent number of looks (attribute ``equivalent_looks`` of the source).

    Raises
    ------
    CubeError
        Not in dB: other units stated, or values of linear power (of arrays on dask when they are
        computed); an even or too small window; looks below 1.
    """
    _check(backscatter, size)
    if not 1 <= looks < np.inf:  # NaN is neither
        raise CubeError(f"looks {looks} must be a number of at least 1")
    out = _per_image(backscatter, _lee_block, size // 2, size=size, looks=looks)
    return _described(out, f"Lee {size}x{size}, {looks:g} looks")


def multitemporal(backscatter: xr.DataArray, *, size: int = 7) -> xr.DataArray:
    """Return backscatter after the multitemporal filter of Quegan and Yu, dB, NaN = nodata.

    ``J_k = <I_k> / N  sum_i I_i / <I_i>`` over the N dates that have data at a pixel, ``<I>`` the
    mean over a square of `size` pixels (Quegan and Yu 2001, IEEE TGRS 39): speckle of one date is
    averaged against the others, while the radiometry of each date stays its own. Tracks differ in
    geometry: filter one at a time. ``equivalent_looks`` is renamed as by `lee`: what is left
    depends on the dates that a pixel has.

    Parameters
    ----------
    backscatter : xarray.DataArray
        Decibels, dims (time, ..., y, x), one track.
    size : int
        Edge of the window in pixels, odd.

    Raises
    ------
    CubeError
        Not in dB (see `lee`); an even or too small window; no time; several tracks.
    """
    _check(backscatter, size)
    if "time" not in backscatter.dims:
        raise CubeError("the multitemporal filter needs a dimension time; use lee for one date")
    for name in ("relative_orbit", "orbit_state"):
        if name in backscatter.coords and len(np.unique(backscatter[name])) > 1:
            found = np.unique(backscatter[name]).tolist()
            raise CubeError(
                f"the dates are of several tracks ({name} {found}): select one, such as "
                ".sel(time=cube.relative_orbit == 88)"
            )
    whole = backscatter.chunk(time=-1) if hasattr(backscatter.data, "dask") else backscatter
    axis = whole.get_axis_num("time")
    out = _per_image(whole, _multitemporal_block, size // 2, size=size, axis=axis)
    return _described(out, f"Quegan and Yu {size}x{size}")


def _check(backscatter: xr.DataArray, size: int) -> None:
    if tuple(backscatter.dims[-2:]) != ("y", "x"):
        raise CubeError(f"backscatter has dims {backscatter.dims}; they must end in (y, x)")
    if backscatter.attrs.get("units", "dB") != "dB":
        raise CubeError(f"backscatter is in {backscatter.attrs['units']!r}, not dB")
    if size < 3 or size % 2 == 0:
        raise CubeError(f"a window of {size} px has no centre; take an odd number from 3 on")


def _decibels(block: Floats) -> Floats:
    """Return a block as it came.

    Raises
    ------
    CubeError
        Its values are linear power, or digital numbers.
    """
    known = block[np.isfinite(block)]
    if known.size < ENOUGH:
        return block
    middle = float(np.median(known))
    if known.min() >= 0:
        raise CubeError(
            f"none of {known.size:,} values of backscatter is below 0 (median {middle:.3g}), so "
            "they are linear power and not dB; convert them with 10 * log10, where power is above 0"
        )
    if middle > MOST_DB:
        raise CubeError(
            f"the median of {known.size:,} values of backscatter is {middle:.3g}, which is no dB "
            "of any surface; convert them with 10 * log10 of power"
        )
    return block


def _described(out: xr.DataArray, what: str) -> xr.DataArray:
    """Return filtered backscatter with what was done, and no looks that it has no more."""
    attrs = dict(out.attrs)
    if "equivalent_looks" in attrs:
        attrs["equivalent_looks_unfiltered"] = attrs.pop("equivalent_looks")
    return out.drop_attrs(deep=False).assign_attrs({**attrs, "speckle_filter": what})


def _per_image(data: xr.DataArray, function: Any, halo: int, **options: Any) -> xr.DataArray:
    if not hasattr(data.data, "dask"):
        return data.copy(data=function(data.to_numpy(), **options))
    part = partial(function, **options)
    return physics.with_halo(data, part, halo, boundary=np.nan, dtype=np.float32)


def _box(values: npt.NDArray[np.float64], size: int, axis: int) -> npt.NDArray[np.float64]:
    """Return sums over `size` pixels, zero outside, each from its own pixels alone.

    Not as differences of running sums (scipy's uniform_filter): beside a target of +50 dB their
    rounding is 0.04 dB of the pixels behind it, so that chunks would show.
    """
    from scipy.ndimage import correlate1d

    return np.asarray(correlate1d(values, np.ones(size), axis, mode="constant"))


def _mean(values: npt.NDArray[np.float64], good: npt.NDArray[np.bool_], size: int) -> Any:
    """Return the mean over squares, nodata left out; NaN where a square has none."""
    total, share = np.where(good, values, 0.0), good.astype(np.float64)
    for axis in (-2, -1):
        total, share = (_box(v, size, axis) for v in (total, share))
    return np.divide(total, share, out=np.full(values.shape, np.nan), where=share > 0)


def _lee_block(block: Floats, *, size: int, looks: float) -> Floats:
    linear = physics.power(_decibels(block)).astype(np.float64)
    good = np.isfinite(linear)
    mean = _mean(linear, good, size)
    square = _mean(linear**2, good, size)
    with np.errstate(invalid="ignore", divide="ignore"):
        variation = np.maximum(square / mean**2 - 1, 0)
        weight = np.where(variation > 0, np.clip(1 - (1 / looks) / variation, 0, 1), 0)
    out = mean + weight * (linear - mean)
    return physics.db(np.where(good, out, np.nan))


def _multitemporal_block(block: Floats, *, size: int, axis: int) -> Floats:
    linear = physics.power(_decibels(block)).astype(np.float64)
    good = np.isfinite(linear)
    mean = _mean(linear, good, size)
    usable = good & (mean > 0)
    ratio = np.divide(linear, mean, out=np.zeros_like(linear), where=usable)
    dates = usable.sum(axis=axis, keepdims=True)
    common = ratio.sum(axis=axis, keepdims=True) / np.maximum(dates, 1)
    return physics.db(np.where(usable, mean * common, np.nan))
