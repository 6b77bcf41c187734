"""Sentinel-2 granules of a world: two tiles in two UTM zones, baselines, splits, duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cog import write_cog
from .documents import asset, item, stamp
from .geometry import Gather, Raster, cover, gather, mgrs_tile, to_lonlat
from .noise import block_mean
from .optics import BANDS, RESOLUTION, OpticalScene
from .world import World

Sampled = tuple[dict[str, NDArray[np.float32]], NDArray[np.uint8], dict[int, NDArray[np.bool_]]]
"""Reflectance per band, classification, validity per resolution."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tile:
    """One tile of the archive and how it is sampled from the native grid."""

    name: str
    grid: Raster
    """At 10 m; its edges are multiples of 60 m."""
    samples: dict[int, Gather]
    """Per resolution."""


def tiles(world: World) -> list[Tile]:
    """Return the two tiles, west and east of the border of the zones."""
    native = world.land.grid
    w, s, e, n = native.bounds
    lon, _ = to_lonlat(native.epsg, (w + e) / 2, (s + n) / 2)
    zone = round(float(lon) / 6) + 30
    out = []
    for epsg, (f0, f1) in (
        (32600 + zone, world.params.shapes.west),
        (32601 + zone, world.params.shapes.east),
    ):
        part = (w + (e - w) * f0, s, w + (e - w) * f1, n)
        grid = cover(part, native.epsg, to=epsg, step=60.0)
        fine = Raster(
            epsg=epsg,
            x0=grid.x0,
            y1=grid.y1,
            dx=10.0,
            dy=10.0,
            height=grid.height * 6,
            width=grid.width * 6,
        )
        samples = {
            size: gather(native.coarser(size // 10), fine.coarser(size // 10))
            for size in (10, 20, 60)
        }
        name = mgrs_tile(epsg, (grid.bounds[0] + grid.bounds[2]) / 2, grid.y1)
        out.append(Tile(name=name, grid=fine, samples=samples))
    return out


class OpticalWriter:
    """Writes the granules of a world's Sentinel-2 acquisitions."""

    def __init__(self, world: World, archive: Path) -> None:
        self.world, self.archive = world, archive
        self.tiles = tiles(world)
        self.old = [d.index for d in world.s2_dates if d.old_baseline]

    def write(self, scene: OpticalScene) -> list[dict[str, Any]]:
        """Write one acquisition; return its items: one per tile, edition and part."""
        shapes, index = self.world.params.shapes, scene.date.index
        split = index % 7 == 3 and index // 7 < shapes.split_granules
        twice = index in self.old[: shapes.duplicates]
        baselines = [_baseline(index, old=scene.date.old_baseline)]
        if twice:
            baselines.append("05.10")
        out = []
        for tile in self.tiles:
            layers = _sampled(scene, tile)
            for number, baseline in enumerate(baselines):
                for part in (0, 1) if split else (None,):
                    edition = (baseline, number, part)
                    out.append(self._granule(scene, (tile, layers), edition))
        return out

    def _granule(
        self,
        scene: OpticalScene,
        sampled: tuple[Tile, Sampled],
        edition: tuple[str, int, int | None],
    ) -> dict[str, Any]:
        tile, (bands, scl, valid) = sampled
        baseline, number, part = edition
        date = scene.date
        made = _processed(date.time, baseline, number, part)
        sensing = date.time.strftime("%Y%m%dT%H%M%S")
        name = (
            f"S2{date.platform}_MSIL2A_{sensing}_R{date.relative_orbit:03d}_T{tile.name}_"
            f"{made:%Y%m%dT%H%M%S}"
        )
        stem = f"sentinel-2-l2a/{name}/T{tile.name}_{sensing}"
        held = {size: _rows(tile.grid.height, size, part)[:, None] for size in (10, 20, 60)}
        offset = 1000 if float(baseline) >= 4 else 0
        assets: dict[str, dict[str, Any]] = {}
        for band in BANDS:
            if band == self.world.params.shapes.drop_asset and date.index == 1:
                continue
            size = RESOLUTION[band]
            grid = tile.grid.coarser(size // 10)
            # 0 is nodata: a measured value below 1 is published as 1.
            number_ = np.clip(np.rint(bands[band] * 10000) + offset, 1, 65535)
            pixels = np.where(valid[size] & held[size], number_, 0).astype(np.uint16)
            href = f"{stem}_{band}_{size}m.tif"
            write_cog(self.archive / href, pixels, grid, nodata=0)
            assets[band] = asset(href, grid, gsd=size)
        classes = np.where(held[20], scl, 0).astype(np.uint8)
        grid = tile.grid.coarser(2)
        href = f"{stem}_SCL_20m.tif"
        write_cog(self.archive / href, classes, grid, nodata=0, kernel="nearest")
        assets["SCL"] = asset(href, grid, gsd=20)
        properties = _properties(scene, tile, classes, (baseline, made, sensing))
        return item(name, "sentinel-2-l2a", properties, assets, grid=tile.grid)


def _rows(height: int, size: int, part: int | None) -> NDArray[np.bool_]:
    """Return which rows of a band a granule holds; all bands are cut along one 60 m line."""
    row = np.arange(height * 10 // size) * size // 60
    limit = round(height / 6 * 0.55)
    if part is None:
        return np.ones(row.size, bool)
    return row < limit if part == 0 else row >= limit


def _baseline(index: int, *, old: bool) -> str:
    return ("02.14", "03.00")[index % 2] if old else ("04.00", "05.10")[index % 2]


def _sampled(scene: OpticalScene, tile: Tile) -> Sampled:
    """Return reflectance, classification and validity of a tile; invalid reflectance is 0."""
    seen = {20: scene.seen}
    seen[10] = np.repeat(np.repeat(scene.seen, 2, axis=0), 2, axis=1)
    seen[60] = block_mean(scene.seen.astype(np.float32), 3) == 1
    valid = {size: tile.samples[size].nearest(seen[size], False) for size in (10, 20, 60)}
    bands = {b: tile.samples[RESOLUTION[b]](scene.reflectance[b], 0.0) for b in BANDS}
    scl = tile.samples[20].nearest(scene.scl, 0)
    return bands, np.where(valid[20], scl, 0).astype(np.uint8), valid


def _processed(time: datetime, baseline: str, number: int, part: int | None) -> datetime:
    made = time + timedelta(hours=9, minutes=7 * (part or 0), seconds=11)
    return made if baseline != "05.10" else made + timedelta(days=480 + number)


def _properties(
    scene: OpticalScene, tile: Tile, scl: NDArray[np.uint8], edition: tuple[str, datetime, str]
) -> dict[str, Any]:
    baseline, made, sensing = edition
    date = scene.date
    count = np.bincount(scl.ravel(), minlength=12)
    seen = max(int(count[1:].sum()), 1)
    share = 100 * count / seen
    platform = f"S2{date.platform}"
    return {
        "datetime": stamp(date.time + timedelta(milliseconds=24)),
        "platform": f"Sentinel-2{date.platform}",
        "constellation": "Sentinel 2",
        "instruments": ["msi"],
        "eo:cloud_cover": round(float(share[8:11].sum()), 6),
        "sat:orbit_state": "descending",
        "sat:relative_orbit": date.relative_orbit,
        "s2:mgrs_tile": tile.name,
        "s2:processing_baseline": baseline,
        "s2:datatake_id": f"G{platform}_{sensing}_{date.absolute_orbit:06d}_N{baseline}",
        "s2:datastrip_id": (
            f"{platform}_OPER_MSI_L2A_DS_SIM_{made:%Y%m%dT%H%M%S}_S{sensing}_N{baseline}"
        ),
        "s2:granule_id": (
            f"{platform}_OPER_MSI_L2A_TL_SIM_{made:%Y%m%dT%H%M%S}_A{date.absolute_orbit:06d}"
            f"_T{tile.name}_N{baseline}"
        ),
        "s2:generation_time": stamp(made),
        "s2:product_type": "S2MSI2A",
        "s2:nodata_pixel_percentage": round(100 * float(count[0]) / scl.size, 6),
        "s2:vegetation_percentage": round(float(share[4]), 6),
        "s2:cloud_shadow_percentage": round(float(share[3]), 6),
        "s2:mean_solar_zenith": round(90 - date.sun_elevation, 6),
        "s2:mean_solar_azimuth": round(date.sun_azimuth, 6),
        "view:sun_azimuth": round(date.sun_azimuth, 6),
        "view:sun_elevation": round(date.sun_elevation, 6),
    }
