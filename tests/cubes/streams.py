"""Small stores for the tests of samples, written with zarr-python in the documented layout."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from scipy.ndimage import gaussian_filter
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from cubes import registry

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


def texture(rng: np.random.Generator, edge: int) -> np.ndarray:
    """Return (edge, edge) float32 like a landscape: smooth fields of unit variance."""
    field = gaussian_filter(rng.normal(size=(edge, edge)), 6, mode="wrap")
    return (field / field.std()).astype(np.float32)


def frame(name: str, rng: np.random.Generator, base: np.ndarray, channels: int) -> np.ndarray:
    """Return one step of a layer, (channel, y, x), stored integers with realistic entropy."""
    noise = rng.normal(size=(channels, *base.shape)).astype(np.float32)
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
        return (base[None] < 1).astype(np.uint8)
    if name == "terrain/elevation":
        return (200 + 50 * base[None]).astype(np.float32)
    return (4 + (base[None] > 0.5) + 3 * (base[None] > 1.2)).astype(np.uint8)


def write_store(
    path: Path,
    *,
    shape: tuple[int, int] = (256, 256),
    s1: int = 10,
    s2: int = 8,
    patch: int = 128,
    layers: tuple[str, ...] = (
        "s1/backscatter",
        "insar/coherence",
        "s1/incidence",
        "s2/reflectance",
        "s2/scl",
        "s2/clear",
        "terrain/elevation",
        "labels/worldcover",
    ),
    **options: Any,
) -> dict[str, np.ndarray]:
    """Write a cube and return what was stored: layer name -> (step, channel, y, x)."""
    rng = np.random.default_rng(options.get("seed", 0))
    bands = options.get("bands", BANDS)
    box = options.get("geobox") or GeoBox.from_bbox(
        (500000, 5600000, 500000 + 10 * shape[1], 5600000 + 10 * shape[0]),
        "EPSG:32631", resolution=10,
    )  # fmt: skip
    root = zarr.create_group(path, attributes={"aoi": options.get("aoi", path.stem)})
    base, kept, counts = texture(rng, max(shape))[: shape[0], : shape[1]], {}, {}
    lengths = {"time": 0, "pair": max(0, s1 - 1), "track": 2, "year": 2}
    for name in layers:
        row = registry.layer(name)
        group, variable = name.split("/")
        labels = bands if row.channel_dim == "band" else ("vv", "vh")
        channels = len(labels) if row.channel_dim else 1
        lengths["time"] = s1 if group == "s1" else s2
        steps = lengths[row.stack_dim] if row.stack_dim else 1
        values = np.stack([frame(name, rng, base, channels) for _ in range(steps)])
        nodata = options.get("nodata", {}).get(name)
        if nodata is not None and row.nodata is not None:
            values[nodata] = row.nodata
        kept[name] = values
        folder = root.require_group(group)
        _array(folder, variable, (row, values, patch, options))
        if row.nodata is not None:
            rows, columns = -(-shape[0] // patch), -(-shape[1] // patch)
            good = (values != row.nodata).all(axis=1)
            counts[name] = np.array([[[
                good[s, i * patch:(i + 1) * patch, j * patch:(j + 1) * patch].sum()
                for j in range(columns)] for i in range(rows)] for s in range(steps)])  # fmt: skip
        if row.channel_dim and row.channel_dim not in folder:
            _coord(folder, row.channel_dim, (row.channel_dim,), np.array(labels, "T"))
    _coords(root, box, (s1, s2), options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr: consolidated metadata is not in the v3 standard
        zarr.consolidate_metadata(str(path))
    (path / "__cubes__").mkdir()
    np.savez(path / "__cubes__" / "valid.npz", patch=patch, **counts)
    return kept


def _array(folder: zarr.Group, name: str, what: tuple[Any, ...]) -> None:
    row, values, patch, options = what
    shape: list[int] = []
    chunk: list[int] = []
    shard: list[int] = []
    if row.stack_dim:
        shape.append(len(values)), chunk.append(1)
        shard.append(min(options.get("steps", 64), len(values)))
    if row.channel_dim:
        for part in (shape, chunk, shard):
            part.append(values.shape[1])
    edge = min(patch, max(values.shape[2:]))
    shape += values.shape[2:]
    chunk += [edge, edge]
    shard += [edge, edge]
    codec = options.get("codec", "lz4")
    compressors: list[Any] = [ZstdCodec(level=3, checksum=True)]
    if codec == "lz4":
        size = values.dtype.itemsize
        compressors = [
            BloscCodec(typesize=size, cname="lz4", clevel=5, shuffle="bitshuffle"),
            Crc32cCodec(),
        ]
    array = folder.create_array(
        name, shape=tuple(shape), chunks=tuple(chunk), dtype=values.dtype,
        shards=tuple(shard) if options.get("shards", True) else None,
        compressors=compressors, filters=None, fill_value=0 if row.nodata is None else row.nodata,
        dimension_names=row.dims, attributes={"grid_mapping": "spatial_ref",
                                              "coordinates": "spatial_ref"},
    )  # fmt: skip
    array[...] = values.reshape(shape)


def _coord(group: zarr.Group, name: str, dims: tuple[str, ...], values: Any, **attrs: Any) -> None:
    values = np.asarray(values)
    array = group.create_array(
        name, shape=values.shape, dtype="string" if values.dtype.kind in "UT" else values.dtype,
        dimension_names=dims, attributes=attrs,
    )  # fmt: skip
    array[...] = values


def _coords(root: zarr.Group, box: GeoBox, counts: tuple[int, int], options: Any) -> None:
    every = options.get("every", (6, 5))
    start = np.datetime64("2022-03-01T06:00", "ns").astype(np.int64)
    day = 86_400 * 10**9
    ns = {"units": "nanoseconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    lag = options.get("lag", 1)
    first = start + np.arange(counts[0]) * every[0] * day
    second = start + (np.arange(counts[1]) * every[1] + lag) * day + 3 * 3600 * 10**9
    for name, group in root.groups():
        for key, coord in xr_coords(box).items():
            attrs = {k: v for k, v in coord.attrs.items() if isinstance(v, str | float | int)}
            _coord(group, str(key), tuple(map(str, coord.dims)), coord.values, **attrs)
        if name == "s1":
            _coord(group, "time", ("time",), first, **ns)
            orbits = np.where(np.arange(counts[0]) % 2, 37, 132)
            _coord(group, "relative_orbit", ("time",), orbits)
            _coord(group, "orbit_state", ("time",),
                   np.where(orbits == 37, "descending", "ascending"))  # fmt: skip
            if "incidence" in group:
                _coord(group, "track", ("track",), np.array(["132A", "37D"]))
        if name == "s2":
            _coord(group, "time", ("time",), second, **ns)
        if name == "insar":  # twelve days: a date with the one but last, of the same track
            n = max(0, counts[0] - 1)
            end = np.minimum(np.arange(n) + 2, counts[0] - 1)
            _coord(group, "pair", ("pair",), np.array([f"p{i}" for i in range(n)]))
            _coord(group, "secondary_time", ("pair",), first[end], **ns)
            _coord(group, "reference_time", ("pair",), first[end - 2], **ns)
            _coord(group, "relative_orbit", ("pair",), np.where(end % 2, 37, 132))
            _coord(group, "orbit_state", ("pair",),
                   np.where(end % 2, "descending", "ascending"))  # fmt: skip
        if name == "labels":
            _coord(group, "year", ("year",), np.array([2021, 2022]))
