"""Elevation, land cover and the tracks' static layers."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from .cog import trim, write_cog
from .documents import asset, item, stamp
from .geometry import Raster, cover, gather
from .noise import power_law, stream
from .params import WORLDCOVER
from .world import World

Items = list[dict[str, Any]]


def write_static(world: World, archive: Path) -> Items:
    """Write what has no date; return its items."""
    return [
        *write_dem(world, archive),
        *write_worldcover(world, archive),
        *write_geometry(world, archive),
    ]


def degree_tiles(world: World, per_degree: int, side: int) -> list[tuple[Raster, int, int]]:
    """Return grids in EPSG:4326 that cover the world, cut at multiples of `side` degrees.

    Each with the latitude and longitude of its tile's south-western corner.
    """
    grid = world.land.grid
    step = 1 / per_degree
    whole = cover(grid.bounds, grid.epsg, to=4326, step=step)
    w, s, e, n = whole.bounds
    out = []
    for lat in range(math.floor(s / side) * side, math.ceil(n), side):
        for lon in range(math.floor(w / side) * side, math.ceil(e), side):
            x0, x1 = max(w, lon), min(e, lon + side)
            y0, y1 = max(s, lat), min(n, lat + side)
            width, height = round((x1 - x0) * per_degree), round((y1 - y0) * per_degree)
            if width > 0 and height > 0:
                tile = Raster(epsg=4326, x0=x0, y1=y1, dx=step, dy=step, height=height, width=width)
                out.append((tile, lat, lon))
    return out


def _corner(lat: int, lon: int) -> tuple[str, str]:
    return (
        f"{'N' if lat >= 0 else 'S'}{abs(lat):02d}",
        f"{'E' if lon >= 0 else 'W'}{abs(lon):03d}",
    )


def write_dem(world: World, archive: Path) -> Items:
    """Write the elevation model at 1 arc second, with 0.6 m of correlated error."""
    out = []
    for tile, lat, lon in degree_tiles(world, 3600, 1):
        # Real tiles are point-registered: their edges lie half a pixel off the whole degree.
        tile = Raster(
            epsg=4326,
            x0=tile.x0 - tile.dx / 2,
            y1=tile.y1 + tile.dy / 2,
            dx=tile.dx,
            dy=tile.dy,
            height=tile.height,
            width=tile.width,
        )
        pixels = gather(world.land.grid, tile)(world.land.elevation, np.nan)
        error = power_law(stream(world.seed, "dem-error", lat, lon), tile.shape, 0.8)
        pixels = np.where(np.isfinite(pixels), pixels + 0.6 * error, -32767.0).astype(np.float32)
        ns, ew = _corner(lat, lon)
        name = f"Copernicus_DSM_COG_10_{ns}_00_{ew}_00_DEM"
        href = f"cop-dem-glo-30/{name}/{name}.tif"
        write_cog(archive / href, trim(pixels, 8), tile, nodata=-32767.0)
        out.append(
            item(
                name,
                "cop-dem-glo-30",
                {"datetime": "2021-04-22T00:00:00Z", "platform": "tandem-x", "gsd": 30},
                {"data": asset(href, tile, title=name)},
                grid=tile,
            )
        )
    return out


def write_worldcover(world: World, archive: Path) -> Items:
    """Write land cover in WorldCover codes at 1/12,000 degree, with its share of errors.

    WorldCover 2021 states 76.7 % overall accuracy; most errors sit on borders and between grass,
    crops and bare soil. Here every tenth patch of a few pixels is taken from 30 m away.
    """
    grid = world.land.grid
    codes = np.array(WORLDCOVER, np.uint8)[world.land.label]
    rng = stream(world.seed, "worldcover")
    wrong = power_law(rng, grid.shape, 0.9, scale=20.0) > 1.35
    y, x = np.indices(grid.shape)
    dy, dx = rng.integers(-6, 7, (2, *grid.shape))
    codes = np.where(
        wrong,
        codes[np.clip(y + dy, 0, grid.height - 1), np.clip(x + dx, 0, grid.width - 1)],
        codes,
    ).astype(np.uint8)
    out = []
    for tile, lat, lon in degree_tiles(world, 12000, 3):
        pixels = gather(grid, tile).nearest(codes, 0)
        name = f"ESA_WorldCover_10m_2021_v200_{''.join(_corner(lat, lon))}"
        href = f"esa-worldcover/{name}/{name}_Map.tif"
        write_cog(archive / href, pixels, tile, nodata=0, kernel="mode")
        out.append(
            item(
                name,
                "esa-worldcover",
                {
                    "datetime": "2021-01-01T00:00:00Z",
                    "start_datetime": "2021-01-01T00:00:00Z",
                    "end_datetime": "2021-12-31T23:59:59Z",
                    "esa_worldcover:product_version": "2.0.0",
                },
                {"map": asset(href, tile, title="Land cover")},
                grid=tile,
            )
        )
    return out


def write_geometry(world: World, archive: Path) -> Items:
    """Write each track's incidence and layover and shadow at 30 m, as OPERA's static layers."""
    out = []
    grid = world.land.grid
    fine = grid.crop(slice(0, grid.height // 3 * 3), slice(0, grid.width // 3 * 3))
    rows, cols = slice(0, fine.height), slice(0, fine.width)
    for index, track in enumerate(world.params.tracks):
        view = world.view(index)
        target = cover(grid.bounds, grid.epsg, to=track.epsg, step=30.0)
        sample = gather(fine.coarser(3), target)
        name = f"OPERA_L2_RTC-S1-STATIC_T{track.relative_orbit:03d}-SIM_20140403_S1A_30_v1.0"
        assets = {}
        for key, layer in (
            ("local_incidence_angle", view.local),
            ("incidence_angle", view.ellipsoid),
        ):
            coarse = layer[rows, cols].reshape(fine.height // 3, 3, -1, 3).mean((1, 3))
            pixels = sample(coarse.astype(np.float32), np.nan)
            href = f"s1-static/{name}/{name}_{key}.tif"
            write_cog(archive / href, trim(pixels, 9), target, nodata=float("nan"))
            assets[key] = asset(href, target, title=key.replace("_", " ") + ", degrees")
        worst = view.mask[rows, cols].reshape(fine.height // 3, 3, -1, 3)
        worst = np.bitwise_or.reduce(np.bitwise_or.reduce(worst, axis=3), axis=1)
        href = f"s1-static/{name}/{name}_layover_shadow.tif"
        write_cog(archive / href, sample.nearest(worst, 255), target, nodata=255, kernel="mode")
        assets["layover_shadow"] = asset(href, target, title="0 seen, 1 shadow, 2 layover, 3 both")
        out.append(
            item(
                name,
                "s1-static",
                {
                    "datetime": stamp(datetime(2014, 4, 3)),
                    "sat:relative_orbit": track.relative_orbit,
                    "sat:orbit_state": track.orbit_state,
                    "view:incidence_angle": track.incidence,
                    "deepsentinel:look_azimuth": track.look_azimuth,
                },
                assets,
                grid=target,
            )
        )
    return out
