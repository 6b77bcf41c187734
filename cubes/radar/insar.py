"""Coherence and phase from two coregistered complex images, lazily, and what they are worth.

The estimator (Touzi et al. 1999, IEEE TGRS 37, eq. 1): over a window W of ``reference`` a and
``secondary`` b,

    gamma = <a b*> / sqrt(<|a|^2> <|b|^2>),      coherence = |gamma|,  phase = arg <a b*>.

The three means are taken in the posting of the images, then summed over the pixels of the wanted
grid (multilooking the sums, never the ratio), before anything is reprojected. The sign convention
is reference times conjugate of secondary, reference the earlier pass.

A window of N pixels is worth fewer than N looks where pixels are correlated: ``effective_looks``
measures it, ``expected_coherence`` is the bias that so many looks leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from cubes.types import CubeError

Window = tuple[int, int]
"""Rows and columns."""

DEFAULT_WINDOW: Window = (5, 10)
"""50 x 50 m of OPERA CSLC's 10 x 5 m posting; about 26 effective looks (floor 0.17)."""

DEFAULT_SHARE = 0.5
"""Least share of a window that must have data. Fewer looks read higher: the mean of pure noise is
0.13 over the 50 pixels of the default window, 0.18 over half of them, 1 over a single one."""


def coherence(
    reference: xr.DataArray,
    secondary: xr.DataArray,
    *,
    window: Window = DEFAULT_WINDOW,
    multilook: Window = (1, 1),
    share: float = DEFAULT_SHARE,
) -> xr.Dataset:
    """Return coherence and phase of two coregistered complex images, lazily.

    Parameters
    ----------
    reference, secondary : xarray.DataArray
        Complex images on the same grid, dims ending in (y, x), numpy or dask; NaN = no data. The
        earlier pass is the reference: a pair the other way round is refused, because its phase has
        the other sign. Attributes ``burst``, ``track`` and ``polarisation`` and the CRS, where both
        have them, must agree; ``time`` (ISO 8601, UTC unless it says otherwise) must rise.
    window : (int, int)
        Rows and columns of the estimation window, in pixels of the images.
    multilook : (int, int)
        Rows and columns of the images that make one pixel of the result; a rest at the lower and
        right edge is dropped.
    share : float
        Least share, 0..1, of the window (and of the pixels that are multilooked) that must have
        data in both images; what lies beyond the image has none.

    Returns
    -------
    xarray.Dataset
        ``coherence`` (..., y, x) float32 0..1 and ``phase`` (..., y, x) float32 radians, NaN where
        either image has no data in the pixel itself, or in too much of the window around it.
        Attributes state window, multilook, share and sign.

    Raises
    ------
    CubeError
        Grids, CRSs, bursts, tracks or polarisations differ; not complex; the same acquisition
        twice, or the later one first; a window that is not positive or larger than the image; a
        share outside 0..1.
    """
    _check_pair(reference, secondary, window, multilook)
    if not 0 <= share <= 1:
        raise CubeError(f"share {share} must lie in 0..1: of the window's pixels with data")
    a, b = xr.align(reference, secondary, join="exact", copy=False)
    interferogram, power_a, power_b = (
        _multilooked(_window_mean(v, window, share), multilook, share) for v in _products(a, b)
    )
    denominator: xr.DataArray = (power_a * power_b) ** 0.5
    some = denominator > 0
    gamma = abs(interferogram) / denominator.where(some)  # NaN divides without a warning, 0 not
    # rounding can leave 1 + 1e-16
    magnitude = gamma.clip(0, 1).astype("float32")
    angle: xr.DataArray = xr.apply_ufunc(np.angle, interferogram, dask="allowed")
    phase = angle.where(some)
    attrs = {
        "window": list(window),
        "multilook": list(multilook),
        "least_valid_share": share,
        "nominal_looks": nominal_looks(window, multilook),
        "sign": "reference * conj(secondary)",
    }
    return xr.Dataset(
        {
            "coherence": magnitude.assign_attrs(
                long_name="interferometric coherence", units="1", **attrs
            ),
            "phase": phase.astype("float32").assign_attrs(
                long_name="interferometric phase", units="rad", **attrs
            ),
        }
    )


def nominal_looks(window: Window, multilook: Window = (1, 1)) -> float:
    """Return the looks of window and multilook together if all pixels were independent.

    The pixels averaged, weighted as they are: those at the edge of a multilooked window count
    less. ``effective_looks`` is what correlated pixels leave of it.
    """
    # the lag 0 of each axis: the sum of the squared weights
    rows, columns = (
        float(_overlaps(size, more)[size + more - 2])
        for size, more in zip(window, multilook, strict=True)
    )
    return round(1 / (rows * columns), 3)


def _check_pair(a: xr.DataArray, b: xr.DataArray, window: Window, multilook: Window) -> None:
    for name, image in (("reference", a), ("secondary", b)):
        if tuple(image.dims[-2:]) != ("y", "x"):
            raise CubeError(f"{name} has dims {image.dims}; they must end in (y, x)")
        if image.dtype.kind != "c":
            raise CubeError(f"{name} has dtype {image.dtype}; coherence needs complex images")
    for key in ("burst", "track", "relative_orbit", "polarisation"):
        one, two = (str(v.attrs.get(key, "")).lower() for v in (a, b))
        if one and two and one != two:
            raise CubeError(
                f"the images are of different {key}s, {a.attrs[key]} and {b.attrs[key]}: "
                "only acquisitions of one are coherent"
            )
    _check_times(a.attrs.get("time"), b.attrs.get("time"))
    one, two = (_crs(v) for v in (a, b))
    if one is not None and two is not None and one != two:
        raise CubeError(
            f"the images lie in different CRSs, {_named(one)} and {_named(two)}: coregister them "
            "on one grid first"
        )
    same = a.sizes == b.sizes and all(
        np.array_equal(a[d], b[d]) for d in ("y", "x") if d in a.coords and d in b.coords
    )
    if not same:
        raise CubeError(
            f"the images lie on different grids, {dict(a.sizes)} and {dict(b.sizes)}, or on "
            "shifted ones: coregister them first; resampling here would destroy coherence"
        )
    for what, size in (("window", window), ("multilook", multilook)):
        if min(size) < 1:
            raise CubeError(f"{what} {size} must be at least 1 x 1")
        if size[0] > a.sizes["y"] or size[1] > a.sizes["x"]:
            raise CubeError(
                f"{what} {size} is larger than the image of {a.sizes['y']} x {a.sizes['x']}"
            )


def _crs(image: xr.DataArray) -> Any:
    import odc.geo.xr  # noqa: F401  registers the accessor

    return image.odc.crs


def _named(crs: Any) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs)


def _check_times(first: Any, second: Any) -> None:
    """Raise where both times are known and the second is not later than the first."""
    if first is None or second is None:
        return
    if first == second:
        raise CubeError(f"both images are of {first}: the temporal baseline is zero")
    stamps = []
    for text in (first, second):
        try:
            stamp = pd.Timestamp(text)
        except (TypeError, ValueError):
            raise CubeError(f"the image's time {text!r} is no ISO 8601 time") from None
        stamps.append(stamp.tz_localize("UTC") if stamp.tz is None else stamp.tz_convert("UTC"))
    if stamps[0] == stamps[1]:
        raise CubeError(
            f"both images are of one instant, {first} and {second}: the temporal baseline is zero"
        )
    if stamps[0] > stamps[1]:
        raise CubeError(
            f"the reference, {first}, is later than the secondary, {second}: give the earlier one "
            "first, as the sign of the phase says; the conjugate of a phase is minus it"
        )


def _products(a: xr.DataArray, b: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Return a b*, |a|^2 and |b|^2, NaN in all where either is, in double precision."""
    a, b = a.astype("complex128"), b.astype("complex128")
    cross = a * np.conj(b)
    missing = np.isnan(cross.real) | np.isnan(cross.imag)
    return (
        cross.where(~missing),
        (abs(a) ** 2).where(~missing),
        (abs(b) ** 2).where(~missing),
    )


def _window_mean(image: xr.DataArray, window: Window, share: float) -> xr.DataArray:
    """Return the mean over the window around each pixel, NaN left out, lazily and per chunk.

    NaN where the pixel itself is NaN, or more of the window than `share` allows.

    An even window reaches one pixel further up and left. Chunks overlap by the window, so that
    any chunking gives the same numbers to within rounding (1e-12 in double precision).
    """
    if window == (1, 1):
        return image
    if not hasattr(image.data, "dask"):
        return image.copy(data=_box_mean(image.to_numpy(), window, share))
    ndim = image.ndim
    depth = {ndim - 2: window[0] // 2 + 1, ndim - 1: window[1] // 2 + 1}
    data = image.data.map_overlap(
        _box_mean, window=window, share=share, depth=depth, boundary=np.nan,
        dtype=image.dtype, meta=np.empty((0,) * ndim, image.dtype),
    )  # fmt: skip
    return image.copy(data=data)


def _box_mean(block: npt.NDArray[Any], window: Window, share: float) -> npt.NDArray[Any]:
    good = ~np.isnan(block)
    total = _box_sum(np.where(good, block, 0), window)
    count = _box_sum(good.astype(np.float64), window)
    out = np.full(block.shape, np.nan, block.dtype)
    # the pixel itself counts one; a tolerance, so that 0.1 of 50 pixels is 5 of them
    enough = good & (count >= share * window[0] * window[1] - 1e-6)
    np.divide(total, count, out=out, where=enough)
    return out


def _box_sum(block: npt.NDArray[Any], window: Window) -> npt.NDArray[Any]:
    """Return sums over windows, zero outside, as sums of shifted copies.

    Not as differences of running sums: those carry the rounding of everything before a pixel, so
    that chunks would differ by the power of the brightest target upstream.
    """
    for axis, size in zip((-2, -1), window, strict=True):
        before = size // 2
        pad = [(0, 0)] * block.ndim
        pad[axis] = (before, size - 1 - before)
        padded = np.pad(block, pad)
        length = block.shape[axis]
        index: list[Any] = [slice(None)] * block.ndim
        out = np.zeros_like(block)
        for shift in range(size):
            index[axis] = slice(shift, shift + length)
            out += padded[tuple(index)]
        block = out
    return block


def _multilooked(image: xr.DataArray, looks: Window, share: float) -> xr.DataArray:
    """Return the mean over blocks of `looks` pixels, NaN left out, at the blocks' centres.

    NaN where less than `share` of a block has data.
    """
    if looks == (1, 1):
        return image
    blocks = image.coarsen(y=looks[0], x=looks[1], boundary="trim")
    return blocks.mean().where(blocks.count() >= share * looks[0] * looks[1] - 1e-6)


def effective_looks(image: Any, window: Window, *, multilook: Window = (1, 1)) -> float:
    """Return what a window is worth in independent looks, from the image's own correlation.

    Parameters
    ----------
    image : array
        Complex speckle, shape (y, x), NaN = no data; a homogeneous part gives the best answer.
    window, multilook : (int, int)
        As for `coherence`; both together make the area that is averaged.

    Returns
    -------
    float
        ``N^2 / sum over pairs |rho|^2`` with rho the complex autocorrelation of the image
        (Goodman, Speckle Phenomena in Optics, 2007, 4.6); N for white speckle.

    Raises
    ------
    CubeError
        The image is smaller than the window or all NaN.
    """
    values = np.asarray(image)
    rows, columns = window[0] + multilook[0] - 1, window[1] + multilook[1] - 1
    if values.shape[-2] <= rows or values.shape[-1] <= columns:
        raise CubeError(f"the image {values.shape} is not larger than the window {(rows, columns)}")
    good = np.isfinite(values)
    if not good.any():
        raise CubeError("the image has no data")
    values = np.where(good, values, 0).astype(np.complex128)
    # local contrast (fields, targets) is not speckle: bring each pixel to the mean power around it
    local = _box_sum(np.abs(values) ** 2, (15, 15))
    count = _box_sum(good.astype(np.float64), (15, 15))
    values = (values / np.sqrt(np.where(local > 0, local / np.maximum(count, 1), 1))).astype(
        np.complex128
    )
    correlation = _autocorrelation(values, good, rows, columns)
    weight_y, weight_x = _overlaps(window[0], multilook[0]), _overlaps(window[1], multilook[1])
    weights = np.outer(weight_y, weight_x)
    return float(1.0 / np.sum(weights * np.abs(correlation) ** 2))


LOOKS_SAMPLE = 512
"""Edge in pixels of the part in the middle of an image that `lazy_looks` measures."""


def lazy_looks(images: Sequence[xr.DataArray], window: Window, multilook: Window) -> Any:
    """Return the mean of the effective looks of images, one number on dask: no pixel is read yet.

    Of each image `LOOKS_SAMPLE` pixels in the middle; NaN where none has data there, or all are
    smaller than the window.
    """
    import dask
    import dask.array as da

    delayed: Any = dask.delayed  # type: ignore[attr-defined]
    from_delayed: Any = da.from_delayed
    parts = []
    for image in images:
        first = {d: max(0, (image.sizes[d] - LOOKS_SAMPLE) // 2) for d in ("y", "x")}
        part = image.isel({d: slice(at, at + LOOKS_SAMPLE) for d, at in first.items()})
        parts.append(delayed(_sample_looks, pure=True)(part.data, window, multilook))
    return from_delayed(delayed(_mean_of, pure=True)(parts), shape=(1,), dtype=np.float64)


def _sample_looks(image: npt.NDArray[Any], window: Window, multilook: Window) -> float:
    smallest = [w + m for w, m in zip(window, multilook, strict=True)]
    if any(n < least for n, least in zip(image.shape, smallest, strict=True)):
        return float("nan")
    if not np.isfinite(image).any():
        return float("nan")
    return effective_looks(image, window, multilook=multilook)


def _mean_of(numbers: Sequence[float]) -> npt.NDArray[np.float64]:
    known = [n for n in numbers if not np.isnan(n)]
    return np.array([np.mean(known) if known else np.nan])


def _overlaps(window: int, looks: int) -> npt.NDArray[np.float64]:
    """Return how often each lag occurs between two pixels of the averaged area, summing to 1.

    The area's weights are a box of `window` smeared over `looks` pixels.
    """
    weights = np.convolve(np.full(window, 1 / window), np.full(looks, 1 / looks))
    return np.correlate(weights, weights, mode="full")


def _autocorrelation(
    values: npt.NDArray[np.complex128], good: npt.NDArray[np.bool_], rows: int, columns: int
) -> npt.NDArray[np.complex128]:
    """Return the complex autocorrelation at lags -(rows-1)..rows-1 by -(columns-1)..columns-1."""
    shape = tuple(s + n for s, n in zip(values.shape, (rows, columns), strict=True))
    spectrum = np.abs(np.fft.fft2(values, shape)) ** 2
    counts = np.abs(np.fft.fft2(good.astype(float), shape)) ** 2
    sums, pairs = np.fft.ifft2(spectrum), np.fft.ifft2(counts).real
    mean = sums / np.maximum(pairs, 1)
    lags_y, lags_x = np.arange(-(rows - 1), rows), np.arange(-(columns - 1), columns)
    out: npt.NDArray[np.complex128] = mean[np.ix_(lags_y, lags_x)] / mean[0, 0].real
    return out


def expected_coherence(true: npt.ArrayLike, looks: float) -> npt.NDArray[np.float64]:
    """Return the mean of the sample coherence for a true coherence and independent looks.

    Touzi et al. (1999), IEEE TGRS 37(1), eq. 15: ``Gamma(L) Gamma(3/2) / Gamma(L + 1/2)
    3F2(3/2, L, L; L + 1/2, 1; g^2) (1 - g^2)^L``; L may be fractional (effective looks).

    Raises
    ------
    CubeError
        Looks below 1, or a coherence outside 0..1.
    """
    gamma = np.atleast_1d(np.asarray(true, np.float64))
    if looks < 1:
        raise CubeError(f"looks {looks} must be at least 1")
    if np.any((gamma < 0) | (gamma > 1)):
        raise CubeError("a coherence lies outside 0..1")
    out = np.where(np.isnan(gamma), np.nan, 1.0)
    for index in zip(*np.nonzero(gamma < 1), strict=True):
        out[index] = _mean_ratio(float(gamma[index]) ** 2, looks)
    return out.reshape(np.shape(true)) if np.ndim(true) else out[0:1].reshape(())


TERMS = 8192
"""Most terms of the series that are summed; of longer ones as many, evenly spaced."""


def _mean_ratio(square: float, looks: float) -> float:
    """Return the series of `expected_coherence` for a squared coherence below 1.

    With (1 - g^2)^L inside, its k-th term is the probability of k under a negative binomial law
    times ``Gamma(k + 3/2) Gamma(k + L) / (Gamma(k + L + 1/2) Gamma(k + 1))``: a mean over that law,
    whose bulk may lie at millions (many looks, or a coherence near 1).
    """
    from scipy.special import gammaln, xlogy

    middle, spread = looks * square / (1 - square), np.sqrt(looks * square) / (1 - square)
    first, last = max(0, int(middle - 12 * spread)), int(middle + 40 * spread) + 40
    step = max(1, (last - first) // TERMS)
    # the first thousand one by one: there the law of few looks bends
    head = np.arange(first, min(first + 1000, last + 1), dtype=np.float64)
    tail = np.arange(head[-1] + 1, last + 1, step, dtype=np.float64)
    k = np.concatenate([head, tail])
    weights = gammaln(looks + k) - gammaln(k + 1) + xlogy(k, square)
    weights = np.exp(weights - weights.max())
    weights[len(head) :] *= step
    # Euler-Maclaurin: the first of the spaced terms stands for half a step, none before it
    weights[len(head) : len(head) + 1] *= (step + 1) / (2 * step)
    ratio = np.exp(
        gammaln(k + 1.5) - gammaln(k + 1) + gammaln(looks + k) - gammaln(looks + k + 0.5)
    )
    return float((weights * ratio).sum() / weights.sum())


def unbiased_coherence(sample: npt.ArrayLike, looks: float) -> npt.NDArray[np.float32]:
    """Return the coherence whose expected sample value is `sample`; 0 below the floor of noise.

    Inverts `expected_coherence` on a table of 512 values. It corrects the mean, not the spread:
    single pixels stay noisy.

    Raises
    ------
    CubeError
        One look or fewer: every sample is 1.
    """
    if looks <= 1:
        raise CubeError(f"{looks} looks say nothing about coherence: take a larger window")
    table = np.linspace(0, 1, 512)
    values = np.asarray(sample, np.float64)
    corrected = np.interp(values, expected_coherence(table, looks), table)
    return np.where(np.isnan(values), np.nan, corrected).astype(np.float32)


def significance(looks: float, *, level: float = 0.05) -> float:
    """Return the sample coherence that pure noise exceeds with probability `level`.

    For zero true coherence P(g > t) = (1 - t^2)^(L - 1) (Touzi et al. 1999, eq. 14).

    Raises
    ------
    CubeError
        One look or fewer: the estimate is always 1 and says nothing.
    """
    if looks <= 1:
        raise CubeError(f"{looks} looks say nothing about coherence: take a larger window")
    return float(np.sqrt(1 - level ** (1 / (looks - 1))))


def regrid_phase(phase: xr.DataArray, like: Any, *, kernel: str = "bilinear") -> xr.DataArray:
    """Return a wrapped phase on another grid, resampled through e^(i phi), radians, NaN = no data.

    Parameters
    ----------
    phase : xarray.DataArray
        Radians, dims (..., y, x), with a CRS (odc-geo).
    like : GeoBox
        The wanted grid.
    kernel : str
        GDAL's name of the kernel, applied to cosine and sine.

    Raises
    ------
    CubeError
        The phase has no CRS.

    Notes
    -----
    Angles themselves are never interpolated: between +pi and -pi lies pi, not 0.
    """
    import odc.geo.xr  # noqa: F401  registers the accessor

    if phase.odc.geobox is None or phase.odc.geobox.crs is None:
        raise CubeError("the phase has no grid with a CRS; write one with .odc.assign_crs(...)")
    turned: list[xr.DataArray] = [
        xr.apply_ufunc(part, phase, dask="allowed").astype("float32") for part in (np.cos, np.sin)
    ]
    cosine, sine = (v.odc.reproject(like, resampling=kernel, dst_nodata=np.nan) for v in turned)
    out: xr.DataArray = xr.apply_ufunc(np.arctan2, sine, cosine, dask="allowed")
    return out.assign_attrs(phase.attrs)
