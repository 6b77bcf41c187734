"""Small cubes for the tests of samples: pixels with realistic entropy, written by cubes.write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from scipy.ndimage import gaussian_filter

from cubes import physics, registry
from cubes.store import verbs as store
from cubes.types import Layer, Layout

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
LAYERS = (
    "s1/backscatter", "s1/incidence", "insar/coherence", "insar/phase", "s2/reflectance", "s2/scl",
    "s2/clear", "terrain/elevation", "labels/worldcover",
)  # fmt: skip
WRITTEN: dict[Path, xr.DataTree] = {}
"""What was written last to each path: a cube of one's own is repaired from itself."""


def texture(rng: np.random.Generator, edge: int) -> np.ndarray:
    """Return (edge, edge) float32 like a landscape: smooth fields of unit variance."""
    field = gaussian_filter(rng.normal(size=(edge, edge)), 6, mode="wrap")
    return (field / field.std()).astype(np.float32)


def frame(name: str, rng: np.random.Generator, base: np.ndarray, channels: int) -> np.ndarray:
    """Return one step of a layer, (channel, y, x), as stored integers."""
    noise = rng.standard_normal((channels, *base.shape), dtype=np.float32)
    if name == "s2/reflectance":
        level = np.arange(1, channels + 1)[:, None, None] * 250 + 1000
        return np.clip(level + 250 * base + 60 * noise, 1, 65535).astype(np.uint16)
    if name == "s1/backscatter":
        return (-1200 + 200 * base + 250 * noise).astype(np.int16)
    if name in ("insar/coherence", "s1/incidence"):
        return np.clip(4500 + 1500 * base + 900 * noise, 0, 10000).astype(np.int16)
    if name == "insar/phase":
        return np.clip(12000 * base + 3000 * noise, -31415, 31415).astype(np.int16)
    if name == "s2/clear":
        return (base[None] + 0.2 * noise < 1).astype(np.uint8)
    if name == "terrain/elevation":
        return (200 + 50 * base[None]).astype(np.float32)
    return (4 + (base[None] > 0.5) + 3 * (base[None] > 1.2)).astype(np.uint8)


def row(name: str, bands: tuple[str, ...] = BANDS) -> Layer:
    """Return the row of a layer with the channels used here."""
    layer = registry.layer(name)
    return layer.pick(bands) if layer.channel_dim == "band" else layer


def write_store(
    path: Path, *, shape: tuple[int, int] = (256, 256), s1: int = 10, s2: int = 8, **options: Any
) -> dict[str, np.ndarray]:
    """Write a cube and return what it stores: layer name -> (step, channel, y, x).

    Options: ``layers, bands, seed, nodata`` (layer -> index set to nodata), ``layout, geobox,
    aoi, every`` (days between S1 and S2 dates), ``lag`` (days of S2 behind S1), ``calibration,
    force`` (replace what is there).
    """
    rng = np.random.default_rng(options.get("seed", 0))
    bands = options.get("bands", BANDS)
    box = options.get("geobox") or GeoBox.from_bbox(
        (501760, 5601280, 501760 + 10 * shape[1], 5601280 + 10 * shape[0]),
        "EPSG:32631", resolution=10,
    )  # fmt: skip
    base = texture(rng, max(shape))[: shape[0], : shape[1]]
    counts = {"s1": s1, "s2": s2, "insar": max(1, s1 - 2), "labels": 2}
    stored: dict[str, np.ndarray] = {}
    groups: dict[str, dict[str, xr.DataArray]] = {}
    for name in options.get("layers", LAYERS):
        layer = row(name, bands)
        steps = 2 if layer.stack_dim == "track" else counts.get(layer.group, 1)
        values = np.stack([frame(name, rng, base, layer.n_channels) for _ in range(steps)])
        if name in options.get("nodata", {}):
            values[options["nodata"][name]] = layer.nodata
        stored[name] = values
        physical = physics.decode(values, layer)
        full = [len(values)] if layer.stack_dim else []
        full += [layer.n_channels] if layer.channel_dim else []
        groups.setdefault(layer.group, {})[layer.variable] = xr.DataArray(
            physical.reshape(*full, *shape),
            dims=layer.dims,
            attrs={"calibration": options.get("calibration", "gamma0_rtc")}
            if name == "s1/backscatter" else {},
        )  # fmt: skip
    nodes = {"/": xr.Dataset(attrs={"aoi": options.get("aoi", path.stem)})}
    for group, arrays in groups.items():
        coords = _coords(group, set().union(*(a.dims for a in arrays.values())), counts, options)
        nodes[f"/{group}"] = xr.Dataset(arrays, coords=coords | xr_coords(box))
    WRITTEN[path] = xr.DataTree.from_dict(nodes)
    layout = options.get("layout", Layout(patch=128))
    store.write(WRITTEN[path], path, layout=layout, force=options.get("force", False))
    return stored


def _coords(group: str, dims: set[Any], counts: dict[str, int], options: Any) -> dict[str, Any]:
    every, lag = options.get("every", (6, 5)), options.get("lag", 1)
    day, start = np.timedelta64(86_400_000_000_000, "ns"), np.datetime64("2022-03-01T06:00", "ns")
    first = start + np.arange(counts["s1"]) * every[0] * day
    second = start + (np.arange(counts["s2"]) * every[1] + lag) * day + np.timedelta64(3, "h")
    # two tracks in turn, so that a twelve-day pair joins every other date
    orbits = np.where(np.arange(counts["s1"]) % 2, 37, 132)
    passes = np.where(orbits == 37, "descending", "ascending").astype(object)
    coords: dict[str, Any] = {}
    if "pol" in dims:
        coords["pol"] = ["vv", "vh"]
    if "band" in dims:
        coords["band"] = list(options.get("bands", BANDS))
    if group == "s1":
        coords |= {
            "time": first,
            "platform": ("time", np.full(len(first), "sentinel-1a", object)),
            "relative_orbit": ("time", orbits),
            "orbit_state": ("time", passes),
        }
        if "track" in dims:
            coords |= {
                "track": ["132A", "37D"],
                "track_relative_orbit": ("track", [132, 37]),
                "track_orbit_state": ("track", np.array(["ascending", "descending"], object)),
            }
    elif group == "s2":
        coords["time"] = second
        coords["platform"] = ("time", np.full(len(second), "sentinel-2b", object))
    elif group == "insar":
        n = counts["insar"]
        ends = np.minimum(np.arange(n) + 2, counts["s1"] - 1)
        coords |= {
            "pair": [f"p{i}" for i in range(n)],
            "secondary_time": ("pair", first[ends]),
            "reference_time": ("pair", first[ends - 2]),
            "temporal_baseline": ("pair", np.full(n, 2.0 * every[0])),
            "relative_orbit": ("pair", orbits[ends]),
            "orbit_state": ("pair", passes[ends]),
        }
    elif group == "labels":
        coords["year"] = [2021, 2022]
    return coords
