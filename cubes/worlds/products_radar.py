"""Sentinel-1 scenes and interferograms of a world."""

from __future__ import annotations

import math
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cog import trim, write_cog
from .documents import asset, item, stamp
from .geometry import Raster, cover, gather, positions
from .noise import Array
from .radar import POLS, RadarScene, denoise, interferogram, multilook, slc_grid, window_power
from .world import World


class TrackWriter:
    """Writes the passes of one track in order; keeps the last for the next interferogram."""

    def __init__(self, world: World, track: int, archive: Path) -> None:
        self.world, self.archive = world, archive
        self.row = world.params.tracks[track]
        self.last: tuple[RadarScene, tuple[Array, Array]] | None = None
        grid = world.land.grid
        self.pair_grid = cover(
            grid.bounds, grid.epsg, to=self.row.epsg, step=float(world.params.decorrelation.posting)
        )

    def write(self, scene: RadarScene) -> list[dict[str, Any]]:
        """Write a pass and, but for the first, its pair; return their items."""
        out = self._scenes(scene)
        power = tuple(window_power(self.world.params, z) for z in scene.slc)
        powers = (power[0], power[1])
        if self.last is not None:
            out.append(self._pair(scene, powers))
        self.last = (scene, powers)
        return out

    def _scenes(self, scene: RadarScene) -> list[dict[str, Any]]:
        shapes = self.world.params.shapes
        looked = [multilook(self.world.params, z) for z in scene.slc]
        split = scene.index % 3 == 1 and scene.index // 3 < shapes.split_slices
        if not split:
            return [self._scene(scene, looked, None)]
        return [self._scene(scene, looked, part) for part in (0, 1)]

    def _scene(self, scene: RadarScene, looked: list[Array], part: int | None) -> dict[str, Any]:
        grid = self.world.land.grid
        w, s, e, n = grid.bounds
        epsg = self.row.epsg
        ascending = self.row.orbit_state == "ascending"
        order = 0
        if part is not None:
            # The slices overlap by a tenth; the second of an ascending pass lies north.
            north = (part == 1) == ascending
            s, n = (s + 0.45 * (n - s), n) if north else (s, s + 0.55 * (n - s))
            order = part
            if part == 1:
                epsg = 32631 + 32632 - epsg if epsg in (32631, 32632) else epsg
        target = cover((w, s, e, n), grid.epsg, to=epsg, step=10.0, offset=5.0)
        sample = gather(slc_grid(self.world.params), target, shift=scene.shift)
        filled = self._borders(scene, target, (s, n))
        start = scene.time + timedelta(seconds=25 * order - 12)
        end = start + timedelta(seconds=25)
        take = zlib.crc32(f"{scene.absolute_orbit}".encode()) & 0xFFFFF
        name = (
            f"S1A_IW_GRDH_1SDV_{start:%Y%m%dT%H%M%S}_{end:%Y%m%dT%H%M%S}_"
            f"{scene.absolute_orbit:06d}_{take:06X}_rtc"
        )
        assets = {}
        for pol, power in zip(POLS, looked, strict=True):
            pixels = denoise(self.world.params, sample(power, 0.0))
            pixels = np.where(filled == 1, pixels, np.where(filled == 0, 0, -32768.0))
            href = f"sentinel-1-rtc/{name}/iw-{pol}.rtc.tiff"
            write_cog(self.archive / href, trim(pixels.astype(np.float32)), target, nodata=-32768.0)
            assets[pol] = asset(href, target, title=f"{pol.upper()}: gamma nought, linear")
        middle = start + (end - start) / 2
        properties = {
            "datetime": stamp(middle),
            "start_datetime": stamp(start),
            "end_datetime": stamp(end),
            "platform": "SENTINEL-1A",
            "constellation": "Sentinel-1",
            "sar:instrument_mode": "IW",
            "sar:frequency_band": "C",
            "sar:polarizations": ["VV", "VH"],
            "sar:product_type": "GRD",
            "sar:looks_equivalent_number": 4.4,
            "sat:orbit_state": self.row.orbit_state,
            "sat:relative_orbit": self.row.relative_orbit,
            "sat:absolute_orbit": scene.absolute_orbit,
            "s1:slice_number": str(5 + order),
            "s1:datatake_id": str(take),
        }
        return item(name, "sentinel-1-rtc", properties, assets, grid=target)

    def _borders(
        self, scene: RadarScene, target: Raster, rows: tuple[float, float]
    ) -> NDArray[np.int8]:
        """Return 1 where measured, 0 where zero-filled, -1 where flagged nodata."""
        params, grid = self.world.params, self.world.land.grid
        w, _, e, _ = grid.bounds
        s, n = rows
        x, y = positions(grid, target)
        width = params.shapes.zero_border
        depth = np.minimum(np.minimum(x - w, e - x), np.minimum(y - s, n - y))
        if params.shapes.missing_corner and scene.index == 2:
            # A swath that ends inside the area: its edge leans with the orbit.
            lean = 0.2 if self.row.orbit_state == "ascending" else -0.2
            edge = w + 0.22 * (e - w) + lean * (y - (s + n) / 2)
            depth = np.minimum(depth, x - edge)
        out = np.where(depth > width, 1, np.where(depth > -width, 0, -1))
        return out.astype(np.int8)

    def _pair(self, scene: RadarScene, power: tuple[Array, Array]) -> dict[str, Any]:
        assert self.last is not None
        before, power_before = self.last
        params, target = self.world.params, self.pair_grid
        grid = self.world.land.grid
        sample = gather(grid, target, shift=scene.shift)
        name = (
            f"S1A_IW_INSAR_T{self.row.relative_orbit:03d}_{before.time:%Y%m%dT%H%M%S}_"
            f"{scene.time:%Y%m%dT%H%M%S}"
        )
        assets = {}
        for k, pol in enumerate(POLS):
            cross = sample(interferogram(params, before.slc[k], scene.slc[k]), np.nan)
            one, two = (sample(p, np.nan) for p in (power_before[k], power[k]))
            coherence = np.clip(np.abs(cross) / np.sqrt(one * two), 0, 1)
            for key, layer in (("coherence", coherence), ("phase", np.angle(cross))):
                href = f"sim-insar/{name}/{key}_{pol}.tif"
                pixels = np.where(sample.inside, layer, np.nan).astype(np.float32)
                write_cog(
                    self.archive / href, trim(pixels), target, nodata=float("nan"), kernel="nearest"
                )
                assets[f"{key}_{pol}"] = asset(href, target, title=f"{key}, {pol.upper()}")
        d = params.decorrelation
        properties = {
            "datetime": stamp(scene.time),
            "platform": "SENTINEL-1A",
            "constellation": "Sentinel-1",
            "sar:instrument_mode": "IW",
            "sar:frequency_band": "C",
            "sar:polarizations": ["VV", "VH"],
            "sar:product_type": "INSAR",
            "sat:orbit_state": self.row.orbit_state,
            "sat:relative_orbit": self.row.relative_orbit,
            "sat:absolute_orbit": scene.absolute_orbit,
            "insar:reference_datetime": stamp(before.time),
            "insar:secondary_datetime": stamp(scene.time),
            "insar:temporal_baseline": (scene.time - before.time).days,
            "insar:perpendicular_baseline": self._baseline(before.index, scene.index),
            "insar:window": [d.window_azimuth, d.window_range],
            "insar:looks": round(effective_looks(self.world), 1),
        }
        return item(name, "sim-insar", properties, assets, grid=target)

    def _baseline(self, first: int, second: int) -> float:
        """Return a perpendicular baseline in metres, within the orbital tube of 100 m."""
        place = [60 * math.sin(2.4 * i + self.row.relative_orbit) for i in (first, second)]
        return round(place[1] - place[0], 1)


def effective_looks(world: World) -> float:
    """Return the looks of the coherence window: N^2 / sum of |rho|^2 over all pairs of samples.

    rho is the complex image's autocorrelation exp(-x^2 / (4 sigma^2)), which a Gaussian point
    spread of standard deviation sigma gives.
    """
    d, p = world.params.decorrelation, world.params.speckle
    out = 1.0
    for n, step, sigma in (
        (d.window_range, 5.0, p.psf_range),
        (d.window_azimuth, 10.0, p.psf_azimuth),
    ):
        lag = np.subtract.outer(np.arange(n), np.arange(n)) * step
        out *= n * n / float(np.exp(-(lag**2) / (2 * sigma**2)).sum())
    return out
