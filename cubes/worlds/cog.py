"""Writing cloud-optimised GeoTIFFs whose bytes are a function of their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .geometry import Raster


def write_cog(
    path: Path, pixels: NDArray[Any], grid: Raster, *, nodata: float | None, kernel: str = "average"
) -> Path:
    """Write one band (y, x) as a COG of 512-px blocks with overviews; return its path.

    Zstandard level 1 with a predictor: 0.046 s and 0.61 of the size for 5.3 MB of float32
    speckle, against 0.070 s and 0.63 with deflate; 0.029 and 0.053 s for 2.4 MB of uint16.
    """
    import rasterio
    from rasterio.transform import Affine

    assert pixels.shape == grid.shape, (pixels.shape, grid.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="COG",
        height=grid.height,
        width=grid.width,
        count=1,
        dtype=pixels.dtype.name,
        crs=f"EPSG:{grid.epsg}",
        transform=Affine(*grid.transform),
        nodata=nodata,
        blocksize=512,
        compress="zstd",
        level=1,
        predictor="yes" if pixels.dtype.itemsize > 1 else "no",
        overview_resampling=kernel,
        num_threads=1,
    ) as file:
        file.write(pixels, 1)
    return path


def trim(pixels: NDArray[np.float32], bits: int = 13) -> NDArray[np.float32]:
    """Return float32 with the mantissa's last bits zeroed, as OPERA does: half the bytes.

    Rounded to nearest; with 13 bits dropped 10 remain, a relative error under 5e-4 (0.002 dB).
    """
    raw = np.ascontiguousarray(pixels, np.float32).view(np.uint32)
    half = np.uint32(1 << (bits - 1))
    kept = (raw + half) & np.uint32((0xFFFFFFFF << bits) & 0xFFFFFFFF)
    return np.where(np.isfinite(pixels), kept.view(np.float32), pixels).astype(np.float32)
