"""The files of SEN12TS as stacks of bands, and the physical numbers that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Array = npt.NDArray[Any]

NODATA = -3000
DATES = 4
REPEAT = pd.Timedelta("12D")
POLS = ("vh", "vv")
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
S1_NAMES = (
    *(f"{name} {step}" for step in range(DATES) for name in ("VH", "VV", "coherence", "phase")),
    "local incidence angle", "slope", "usable",
)  # fmt: skip
S2_NAMES = (*BANDS, "SCL", "clear")
UNKNOWN = 255
"""Nodata of the row ``s1/series_valid``: no series ends at that date."""
PUBLISHED = "sigma0_terrain"
"""Calibration of SEN12TS: sigma nought plus a terrain factor, dB."""

FILES = "sen12ts_files"
"""Attribute of a cube that was read from triplets: the names of their files."""
OPTICAL_FILLS = ("nodata_number", "mask_nodata_number")
"""Coordinates along the times of ``s2``: what stands for no data in bands, and in the mask."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Radar:
    """The numbers of one ``s1/`` file, in physical units, dates newest first."""

    backscatter: Array
    """(4, 2, y, x) float32 dB, VH then VV, NaN = no data."""
    coherence: Array
    phase: Array
    """(4, y, x) float32, NaN = no data."""
    incidence: Array
    slope: Array
    """(y, x) float32 degrees, NaN = no data."""
    usable: Array
    """(y, x) uint8: 0 no, 1 yes, 255 not stated."""

    def bands(self) -> Array:
        """Return the file's bands, (19, y, x) float32."""
        parts = [np.concatenate([b, c[None], p[None]]) for b, c, p in
                 zip(self.backscatter, self.coherence, self.phase, strict=True)]  # fmt: skip
        out = np.concatenate([*parts, self.incidence[None], self.slope[None]]).astype(np.float32)
        out[np.isnan(out)] = NODATA
        usable = self.usable.astype(np.float32)
        usable[self.usable == UNKNOWN] = NODATA
        return np.concatenate([out, usable[None]])

    @staticmethod
    def of(bands: Array) -> Radar:
        """Return the numbers of a file's bands, (19, y, x) float32."""
        values = np.where(bands == NODATA, np.float32(np.nan), bands)
        steps = values[: 4 * DATES].reshape(DATES, 4, *values.shape[1:])
        usable = np.where(bands[18] == 1, 1, np.where(bands[18] == NODATA, UNKNOWN, 0))
        return Radar(
            backscatter=steps[:, :2], coherence=steps[:, 2], phase=steps[:, 3],
            incidence=values[16], slope=values[17], usable=usable.astype(np.uint8),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Optical:
    """The numbers of one ``s2/`` file, in physical units."""

    reflectance: Array
    """(12, y, x) float32, NaN = no data."""
    scl: Array
    """(y, x) uint8, 0 = no data."""
    clear: Array
    """(y, x) bool."""
    fills: tuple[int, int] = (NODATA, NODATA)
    """What the file has in its bands, and in its mask, where no band has data: published files
    have zeros there."""

    def bands(self) -> Array:
        """Return the file's bands, (14, y, x) int16."""
        missing = np.isnan(self.reflectance)
        numbers = np.rint(np.where(missing, 0, self.reflectance.astype(np.float64)) * 1e4)
        out = np.empty((14, *self.scl.shape), np.int16)
        out[:12] = np.clip(numbers, 0, 10_000)
        out[12], out[13] = self.scl, self.clear
        out[:12][missing] = NODATA
        outside = missing.all(axis=0)
        out[:12, outside] = self.fills[0]
        if self.fills[0] == NODATA:
            out[12, outside & (self.scl == 0)] = NODATA
        out[13, outside & ~self.clear] = self.fills[1]
        return out

    @staticmethod
    def of(bands: Array) -> Optical:
        """Return the numbers of a file's bands, (14, y, x) int16."""
        numbers, scl, mask = bands[:12], bands[12], bands[13]
        outside, fill = (numbers == NODATA).all(axis=0), NODATA
        if not outside.any():
            zeros = (numbers == 0).all(axis=0) & (scl == 0)
            outside, fill = (zeros, 0) if zeros.any() else (outside, NODATA)
        missing = (numbers == NODATA) | outside
        values = (numbers.astype(np.float64) * 1e-4).astype(np.float32)
        values[missing] = np.nan
        unclear = mask[outside & (mask != 1)]
        return Optical(
            reflectance=values,
            scl=np.where(scl == NODATA, 0, scl).astype(np.uint8),
            clear=mask == 1,
            fills=(fill, int(unclear[0]) if unclear.size else NODATA),
        )
