"""What lies still for a season: relief, parcels, classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .geometry import Raster, native
from .noise import Array, convolve, gaussian_kernel, power_law, stream, voronoi
from .params import CLASSES, Params

GRASS, BROADLEAF, CONIFER, WATER, BUILT, BARE = (
    CLASSES.index(n) for n in ("grass", "broadleaf", "conifer", "water", "built_up", "bare")
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Landscape:
    """Latents that do not change in a season, all on the native grid."""

    grid: Raster
    elevation: Array
    """(y, x) m above the geoid."""
    parcel: NDArray[np.int32]
    """(y, x) index of the management unit; every pixel has one."""
    parcel_class: NDArray[np.uint8]
    """(parcel,) class code."""
    label: NDArray[np.uint8]
    """(y, x) class code, `parcel_class[parcel]`."""
    vigour: Array
    """(y, x) factor of canopy density within parcels, mean about 1."""
    texture: Array
    """(y, x) standard normal field of surface brightness, constant in time."""
    roughness: Array
    """(y, x) standard normal field of radar texture, constant in time."""


def relief(params: Params, seed: int) -> Array:
    """Return elevation (y, x) float32 m: a fractal surface with flattened valley floors.

    Spectral synthesis (Saupe 1988, amplitude k^-(H+1)); 10 m posting smoothed to what a 30 m
    elevation model resolves, so that slopes are those that products are made with.
    """
    p, shape = params.relief, native(params).shape
    z = power_law(stream(seed, "relief"), shape, p.hurst + 1.0, scale=900.0)
    floor = np.float32(np.quantile(z, p.plain))
    # A soft hinge: the plain keeps a tenth of its relief, without a kink at its edge.
    hinge = np.float32(0.25) * np.logaddexp(0.0, (z - floor) / 0.25, dtype=np.float32)
    z = (hinge + np.float32(0.1) * (z - floor)) * np.float32(p.height)
    z = z + np.float32(p.scarp) * _scarp(stream(seed, "scarp"), shape)
    kernel = gaussian_kernel(1.5)
    z = convolve(convolve(z, kernel, 0), kernel, 1)
    return np.asarray(z + np.float32(p.base), np.float32)


def _scarp(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    """Return a step (y, x) of 0 to 1 along a curved line, that fades out along it.

    Over some 40 m, so that 55 m of height make slopes of 45 to 55 degrees: steeper than the
    incidence, which a fractal surface of this relief never is.
    """
    line = power_law(rng, shape, 2.6, scale=0.8 * max(shape))
    gy, gx = np.gradient(line)
    steep = np.sqrt(gy * gy + gx * gx) + np.float32(0.2 * np.abs(gy).mean())
    distance = line / steep
    fade = 1 / (1 + np.exp(-3 * power_law(rng, shape, 2.2, scale=0.5 * max(shape))))
    return np.asarray(fade / (1 + np.exp(-np.clip(distance / 1.0, -30, 30))), np.float32)


def landscape(params: Params, seed: int) -> Landscape:
    """Return the landscape of a world."""
    grid = native(params)
    elevation = relief(params, seed)
    rng = stream(seed, "parcels")
    parcel, border, centre = voronoi(rng, grid.shape, params.land.parcel / 10, warp=4.0)
    classes = _parcel_classes(params, seed, elevation, centre)
    parcel, classes = _overlays(params, seed, elevation, (parcel, classes), border)
    vigour = np.exp(
        np.float32(params.land.vigour)
        * (
            0.7 * power_law(stream(seed, "vigour"), grid.shape, 1.3, scale=40.0)
            + 0.7 * power_law(stream(seed, "vigour-fine"), grid.shape, 0.5)
        )
    )
    return Landscape(
        grid=grid,
        elevation=elevation,
        parcel=parcel,
        parcel_class=classes,
        label=classes[parcel],
        vigour=np.asarray(vigour, np.float32),
        texture=power_law(stream(seed, "texture"), grid.shape, 0.7),
        roughness=power_law(stream(seed, "roughness"), grid.shape, 0.6),
    )


def _parcel_classes(
    params: Params, seed: int, elevation: Array, centre: Array
) -> NDArray[np.uint8]:
    """Return a class per parcel: woods and grass prefer hills and clump; crops are mixed."""
    p, rng = params.land, stream(seed, "classes")
    shape = elevation.shape
    at = tuple(np.clip(centre.round().astype(int), 0, np.array(shape) - 1).T)
    n = len(centre)
    height = (elevation[at] - elevation.mean()) / elevation.std()
    woods = power_law(stream(seed, "woods"), shape, 1.8, scale=120.0)[at] + 0.8 * height
    out = np.zeros(n, np.uint8)
    names = list(p.crops)
    share = np.array([p.crops[c] for c in names])
    out[:] = np.array([CLASSES.index(c) for c in names])[
        rng.choice(len(names), n, p=share / share.sum())
    ]
    order = np.argsort(-woods, kind="stable")
    n_woods = round(p.forest * n)
    conifer = power_law(stream(seed, "conifer"), shape, 1.8, scale=120.0)[at] + 0.5 * height
    out[order[:n_woods]] = np.where(conifer[order[:n_woods]] > 0.4, CONIFER, BROADLEAF)
    rest = order[n_woods:]
    meadow = (
        power_law(stream(seed, "meadow"), shape, 1.6, scale=90.0)[at][rest] + 0.5 * height[rest]
    )
    meadow = meadow + rng.normal(0, 0.7, rest.size)
    rest = rest[np.argsort(-meadow, kind="stable")]
    n_grass = round(p.grass * n)
    out[rest[:n_grass]] = GRASS
    out[rng.choice(rest[n_grass:], max(1, round(p.bare * n)), replace=False)] = BARE
    return out


def _overlays(
    params: Params,
    seed: int,
    elevation: Array,
    parcels: tuple[NDArray[np.int32], NDArray[np.uint8]],
    border: Array,
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return parcels and classes with what ignores parcel borders drawn over them."""
    parcel, classes = parcels
    shape, rng = parcel.shape, stream(seed, "overlays")
    new = classes.size
    extra: list[int] = []

    def paint(mask: NDArray[np.bool_], label: int) -> None:
        parcel[mask] = new + len(extra)
        extra.append(label)

    # Grass verges and hedges between parcels: where mixed pixels of real scenes come from.
    seam = border < np.float32(0.55)
    verge = power_law(stream(seed, "verge"), shape, 1.0)
    paint(seam & (verge > 0.2), GRASS)
    paint(seam & (verge > 1.6), BROADLEAF)
    height, width = shape
    n = max(1, round(params.land.villages * height * width / 1e6))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    grain = power_law(stream(seed, "grain"), shape, 0.45)
    outline = power_law(stream(seed, "outline"), shape, 1.4, scale=60.0)
    low = np.argwhere(elevation <= np.quantile(elevation, 0.7))
    dense = np.zeros(shape, np.float32)
    for cy, cx in low[rng.integers(0, len(low), n)]:
        radius = np.float32(rng.uniform(9, 28))
        d2 = ((y - cy) ** 2 + (x - cx) ** 2) / radius**2
        dense = np.maximum(dense, np.exp(-d2) * np.float32(rng.uniform(0.8, 1.6)))
    dense = dense + 0.12 * outline
    village = dense > 0.38
    paint(village, GRASS)
    paint(village & (grain > 1.1), BROADLEAF)
    paint(village & (grain < 0.35 + 0.5 * (dense - 0.38)), BUILT)
    road = np.abs(power_law(stream(seed, "road"), shape, 2.0, scale=150.0)) < 0.012
    paint(road, BUILT)
    # The lake level follows the ground, so that lakes lie in hollows of any height.
    wide = gaussian_kernel(25.0)
    hollow = elevation - convolve(convolve(elevation, wide, 0), wide, 1)
    hollow = hollow + 2.0 * power_law(stream(seed, "lake"), shape, 1.7, scale=50.0)
    paint(hollow < np.quantile(hollow, params.land.water), WATER)
    river = np.abs(power_law(stream(seed, "river"), shape, 2.1, scale=400.0)) < 0.02
    paint(river & (elevation < np.quantile(elevation, 0.6)), WATER)
    return parcel, np.concatenate([classes, np.array(extra, np.uint8)])
