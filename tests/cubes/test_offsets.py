"""One field on both sides of baseline 04.00, as each catalogue delivers it: one reflectance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

import cubes
from cubes.grid import lonlat_bounds
from cubes.types import Access

BOX = GeoBox((64, 64), Affine(10, 0, 600_000, 0, -10, 5_600_000), "EPSG:32631")
FIELD = np.linspace(-0.05, 0.9, 64 * 64).reshape(64, 64).round(4)
"""True reflectance: below zero over dark water, as Sen2Cor gives it."""

OLD, NEW = {"s2:processing_baseline": "03.01"}, {"s2:processing_baseline": "05.09"}
HARMONISED = {**NEW, "earthsearch:boa_offset_applied": True}
AS_ESA = {**NEW, "earthsearch:boa_offset_applied": False}


def pixels(plus: int) -> np.ndarray:
    """Return what a producer writes: counts of 1e-4, the offset in them or not, 0 = nodata."""
    counts = np.rint(FIELD * 1e4).astype(int) + plus
    return np.maximum(counts, 1).astype("uint16")  # a count has no sign: without it 0 is cut off


@pytest.mark.parametrize(
    ("name", "scenes"),
    [
        ("planetary-computer", [(OLD, 0), (NEW, 1000)]),
        ("earth-search", [(OLD, 0), (HARMONISED, 0), (AS_ESA, 1000)]),
        ("earth-search-c1", [({"s2:processing_baseline": "05.00"}, 1000), (NEW, 1000)]),
        ("cdse", [(OLD, 0), (NEW, 1000)]),
    ],
)
def test_one_field_is_one_reflectance(
    tmp_path: Path, name: str, scenes: list[tuple[dict[str, Any], int]], figure: Any
) -> None:
    row = replace(cubes.catalog(name), access=Access(schemes=("file",), roots=(str(tmp_path),)))
    product = row.products["s2/reflectance"]
    west, south, east, north = lonlat_bounds(BOX)
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    items = []
    for number, (said, plus) in enumerate(scenes):
        path = tmp_path / f"{number}.tif"
        with rasterio.open(
            path, "w", driver="GTiff", height=64, width=64, count=1, dtype="uint16",
            crs="EPSG:32631", transform=BOX.transform, nodata=0,
        ) as file:  # fmt: skip
            file.write(pixels(plus), 1)
        items.append({
            "type": "Feature", "stac_version": "1.0.0", "id": f"scene-{number}",
            "collection": product.collection, "bbox": [west, south, east, north],
            "geometry": {"type": "Polygon", "coordinates": [ring]}, "links": [],
            # the last scene is older than the others: no date decides
            "properties": {"datetime": f"20{25 - number}-05-01T10:00:00Z",
                           "platform": "sentinel-2a", **said},
            "assets": {product.assets["B04"]: {"href": str(path)}},
        })  # fmt: skip
    request = cubes.Request.of(
        (west, south, east, north), "2015/2026", ["s2/reflectance"], bands=["B04"], catalog=row,
        items=items, grid=BOX,
    )  # fmt: skip
    lazy = request.open()["s2/reflectance"].isel(band=0).to_numpy()
    cubes.write(request, tmp_path / "a.zarr")
    stored = cubes.open(tmp_path / "a.zarr")["s2/reflectance"].isel(band=0).to_numpy()
    np.testing.assert_array_equal(stored, lazy)
    worst = 0.0
    for step, (_, plus) in enumerate(reversed(scenes)):
        shown = FIELD if plus else np.maximum(FIELD, 1e-4)  # what was cut off cannot come back
        worst = max(worst, float(np.abs(lazy[step] - shown).max()))
        if plus:
            assert lazy[step].min() == pytest.approx(-0.05, abs=1e-6)
    figure(f"{name}: one field across baseline 04.00, reflectance off", worst, "1e-4")
    assert worst < 1e-4
