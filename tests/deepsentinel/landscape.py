"""A small cube whose answers are known: blocks of classes, NDVI that backscatter follows exactly.

NDVI of a field rises and falls with the season; VV in dB is a straight line of it (or knows
nothing of it, on demand); classes differ in reflectance, slightly and noisily.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from torch import nn

import cubes
from cubes.types import Layout

BANDS = ("B03", "B04", "B08", "B11")
CLASSES = (10, 30, 40, 80)
DAY = np.timedelta64(86_400_000_000_000, "ns")
FIRST = np.datetime64("2022-03-05T06:00", "ns")


def landscape(
    *,
    shape: tuple[int, int] = (128, 192),
    seed: int = 0,
    blind: bool = False,
    noise: float = 0.02,
    hole: bool = True,
) -> xr.DataTree:
    """Return a cube of 10 S1, 6 pairs, 9 S2 dates; `blind` radar knows nothing of vegetation."""
    rng = np.random.default_rng(seed)
    height, width = shape
    fields = rng.integers(0, len(CLASSES), (-(-height // 16), -(-width // 16)))
    kind = np.kron(fields, np.ones((16, 16), int))[:height, :width]
    vigour = np.kron(rng.random(fields.shape), np.ones((16, 16)))[:height, :width]
    s1 = FIRST + np.arange(10) * 12 * DAY
    s2 = FIRST + (np.arange(9) * 13 + 1) * DAY

    def green(times: Any) -> np.ndarray:
        phase = (times - FIRST) / DAY / 120 * np.pi
        return 0.2 + 0.6 * np.sin(phase)[:, None, None] * (0.3 + 0.7 * vigour)

    sight = 0.5 + 0 * green(s1) if blind else green(s1)
    speckle = rng.normal(0, 0.3, (10, *shape))
    vv = -18 + 12 * sight + speckle
    back = np.stack([vv, vv - 7 + rng.normal(0, 0.3, vv.shape)], 1)
    coherence = np.clip(0.9 - 0.8 * sight[1:7, None] + rng.normal(0, 0.05, (6, 2, *shape)), 0, 1)
    ndvi = green(s2) + rng.normal(0, noise, (9, *shape))
    red = 0.06 + 0.02 * kind + rng.normal(0, 0.002, ndvi.shape)
    nir = red * (1 + ndvi) / (1 - ndvi)
    swir = 0.10 + 0.03 * (kind % 2) + rng.normal(0, 0.02, ndvi.shape)
    reflectance = np.stack([red * 0.8, red, nir, swir], 1)
    cloud = rng.random((9, -(-height // 32), -(-width // 32))) < 0.25
    clear = ~np.kron(cloud, np.ones((1, 32, 32), bool))[:, :height, :width]
    reflectance = np.where(clear[:, None], reflectance, 0.6)
    codes = np.asarray(CLASSES, np.uint8)[kind]
    if hole:
        back[:, :, :40, :30] = coherence[:, :, :40, :30] = np.nan
        reflectance[:, :, :40, :30] = np.nan
        clear[:, :40, :30] = False
        codes[100:, 100:] = 0
    tracks = np.where(np.arange(10) % 2, 37, 132)
    passes = np.where(tracks == 37, "descending", "ascending").astype(object)
    ends = np.arange(2, 8)
    groups = {
        "s1": xr.Dataset(
            {
                "backscatter": (
                    ("time", "pol", "y", "x"), back.astype("f4"), {"calibration": "gamma0_rtc"}
                ),
                "incidence": (
                    ("track", "y", "x"), 38 + rng.normal(0, 1, (2, *shape)).astype("f4")
                ),
            },
            coords={
                "time": s1,
                "pol": ["vv", "vh"],
                "relative_orbit": ("time", tracks),
                "orbit_state": ("time", passes),
                "platform": ("time", np.full(10, "sentinel-1a", object)),
                "track": ["132A", "37D"],
            },
        ),
        "insar": xr.Dataset(
            {"coherence": (("pair", "pol", "y", "x"), coherence.astype("f4"))},
            coords={
                "pair": [f"p{i}" for i in range(6)],
                "pol": ["vv", "vh"],
                "secondary_time": ("pair", s1[ends]),
                "reference_time": ("pair", s1[ends - 2]),
                "temporal_baseline": ("pair", np.full(6, 24.0)),
                "relative_orbit": ("pair", tracks[ends]),
                "orbit_state": ("pair", passes[ends]),
            },
        ),
        "s2": xr.Dataset(
            {
                "reflectance": (("time", "band", "y", "x"), reflectance.astype("f4")),
                "scl": (("time", "y", "x"), np.where(clear, 4, 9).astype("u1")),
                "clear": (("time", "y", "x"), clear),
            },
            coords={
                "time": s2,
                "band": list(BANDS),
                "platform": ("time", np.full(9, "sentinel-2b", object)),
            },
        ),
        "terrain": xr.Dataset({"elevation": (("y", "x"), (100 + 50 * vigour).astype("f4"))}),
        "labels": xr.Dataset(
            {"worldcover": (("year", "y", "x"), codes[None], {"legend": "worldcover"})},
            coords={"year": [2022]},
        ),
    }  # fmt: skip
    box = GeoBox.from_bbox(
        (501760, 5601280, 501760 + 10 * width, 5601280 + 10 * height), "EPSG:32631", resolution=10
    )
    tree = {k: v.assign_coords(xr_coords(box)) for k, v in groups.items()}
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs={"aoi": f"field-{seed}"}), **tree})


def write(path: Path, **options: Any) -> Path:
    """Return the store of a landscape."""
    cubes.write(landscape(**options), path, layout=Layout(patch=128))
    return path


def samples(path: Path, size: int = 32, dates: int = 9) -> cubes.Samples:
    """Return every window of a store."""
    return cubes.plan(path, cubes.Window(size=size, dates=dates), min_valid=0.0)


def model(path: Path, seed: int = 0, **options: Any) -> nn.Module:
    """Return an untrained nano Fusion for the layers of a store."""
    import json

    import torch

    from deepsentinel.loading.contract import calibrations, group_rows
    from deepsentinel.loading.normalise import Normaliser
    from deepsentinel.model import Fusion, FusionConfig

    parts = samples(path)
    norm = Normaliser.of(cubes.stats(parts), parts.layers)
    config = FusionConfig.sized(
        "nano",
        group_rows(norm, calibrations(parts)),
        normaliser=json.loads(norm.to_json()),
        **options,
    )
    torch.manual_seed(seed)
    return Fusion(config).eval()
