"""An embedding as it is written: the first numbers of each pixel, int8 with one scale per pixel.

Whoever scores an embedding scores these numbers, not the longer float32 ones they were cut from.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DIMS = 64
"""Numbers per pixel that `embed`, and so the demo and every score, takes unless told otherwise."""

Floats = npt.NDArray[np.float32]


def quantise(values: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Return int8 numbers and a scale per pixel: value = number * scale.

    Parameters
    ----------
    values : array
        (embedding, y, x) float32, NaN where nodata.

    Returns
    -------
    numbers
        (embedding, y, x) int8, -127 to 127; 0 where nodata.
    scales
        (y, x) float32, largest magnitude of the pixel / 127; +inf where nodata.
    """
    there = np.isfinite(values).all(0)
    filled = np.where(there, values, 0)
    scale = np.maximum(np.abs(filled).max(0) / np.float32(127), np.float32(1e-12))
    numbers = np.rint(filled / scale).astype(np.int8)
    return numbers, np.where(there, scale, np.inf).astype(np.float32)


def dequantise(numbers: npt.NDArray[np.int8], scales: Floats) -> Floats:
    """Return the values that numbers and scales stand for, float32, NaN where nodata."""
    known = np.where(np.isfinite(scales), scales, np.nan).astype(np.float32)
    return np.multiply(numbers, known, dtype=np.float32)
