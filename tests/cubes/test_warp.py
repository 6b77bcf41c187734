"""Weighted reads between CRSs against GDAL's own warper, over zones and latitudes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from cubes import registry
from cubes.reading.read import read
from cubes.types import Access, Asset

ARCSECOND = 1 / 3600


def hills(path: Path, crs: str, transform: Affine, shape: tuple[int, int]) -> np.ndarray:
    """Write and return heights of about 100 m that no kernel finds straight: 23 px a wave."""
    y, x = np.indices(shape, dtype=np.float64)
    heights = 500 + 100 * np.sin(x / 3.7) * np.cos(y / 4.1) + 20 * np.sin((x + y) / 9)
    rows, columns = shape
    with rasterio.open(
        path, "w", driver="GTiff", height=rows, width=columns, count=1, dtype="float32", crs=crs,
        transform=transform, tiled=True,
    ) as file:  # fmt: skip
        file.write(heights.astype("float32"), 1)
    return heights.astype("float32")


def around(lon: float, lat: float, crs: str, edge: float, size: int) -> Affine:
    """Return the grid of `size` pixels a side whose middle is near a place."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(lon, lat)
    # on no round number, so that lattices have phases
    return Affine(edge, 0, x - edge * (size / 2 + 0.3), 0, -edge, y + edge * (size / 2 + 0.4))


PLACES = [
    # degrees shrink toward the poles: within these cubes the extent of a pixel is no one number
    ("EPSG:4326", "EPSG:32632", 6.02, 47.36),
    ("EPSG:4326", "EPSG:32633", 17.9, 65.34),
    ("EPSG:4326", "EPSG:32610", -120.2, 38.76),
    ("EPSG:4326", "EPSG:32721", -54.1, -32.49),
    # and here it is
    ("EPSG:4326", "EPSG:32631", 5.99, 52.0),
    ("EPSG:4326", "EPSG:32649", 108.3, 0.02),
    ("EPSG:32631", "EPSG:32632", 6.0, 50.1),
    ("EPSG:32632", "EPSG:32633", 12.0, 71.2),
    ("EPSG:3035", "EPSG:32629", -8.9, 41.0),
]


@pytest.mark.parametrize(("kernel", "edge"), [("bilinear", 10.0), ("average", 90.0)])
@pytest.mark.parametrize("place", PLACES, ids=lambda p: f"{p[0]}-{p[1]}")
def test_weighted_reads_between_crss_equal_gdal(
    place: tuple[str, str, float, float], kernel: str, edge: float, tmp_path: Path, figure
) -> None:
    source, target, lon, lat = place
    step = ARCSECOND if CRS.from_user_input(source).is_geographic else 30.0
    size = 1000
    transform = around(lon, lat, source, step, size)
    hills(tmp_path / "dem.tif", source, transform, (size, size))
    pixels = 1000 if kernel == "bilinear" else 100
    corner = around(lon, lat, target, edge, pixels)
    box = GeoBox((pixels, pixels), corner, target)
    layer = replace(registry.layer("terrain/elevation"), kernel=kernel)
    asset = Asset(href=str(tmp_path / "dem.tif"), item="dem", key="data")
    access = Access(schemes=("file",), roots=(str(tmp_path),))
    found = read(asset, box, layer, access)
    # the extent of a pixel is one number in some blocks and a plane in others: same bits
    half = pixels // 2
    for part in ((slice(0, half), slice(0, 37)), (slice(half, pixels), slice(half - 9, pixels))):
        np.testing.assert_array_equal(read(asset, box[part], layer, access), found[part])
    with (
        rasterio.open(tmp_path / "dem.tif") as file,
        # GDAL's default is off by an eighth of a pixel along each line: 1.8 m of these hills
        WarpedVRT(
            file, crs=target, transform=corner, width=pixels, height=pixels, nodata=np.nan,
            resampling=Resampling[kernel], tolerance=1e-4,
        ) as warped,
    ):  # fmt: skip
        wanted = warped.read(1)
    both = np.isfinite(found) & np.isfinite(wanted)
    assert both.mean() > 0.99
    off = float(np.abs(found - wanted)[both].max())
    # of an average GDAL takes another footprint, the box around a pixel's turned outline
    bar = {"bilinear": 0.01, "average": 2.0}[kernel]
    figure(f"{kernel} {source} to {target}, off GDAL, m of 120 m", off, f"{bar}")
    assert off < bar
