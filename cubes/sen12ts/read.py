"""Published triplets as de-duplicated cubes: every radar date once, static layers once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from cubes import grid as grids
from cubes import names, registry
from cubes.cube import attributes, legend_attributes
from cubes.files import geotiff as files
from cubes.files.geotiff import Tif
from cubes.radar import geometry
from cubes.registry.labels import label_layer
from cubes.sen12ts.bands import (
    BANDS,
    DATES,
    FILES,
    NODATA,
    OPTICAL_FILLS,
    POLS,
    PUBLISHED,
    REPEAT,
    S1_NAMES,
    S2_NAMES,
    UNKNOWN,
    Array,
    Optical,
    Radar,
)  # fmt: skip
from cubes.sen12ts.choose import series
from cubes.sen12ts.write import optical, radar
from cubes.series import track_label
from cubes.types import CubeError, Layer, Legend

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

PathLike = str | os.PathLike[str]
Key = tuple[pd.Timestamp, str]
"""Time and track of a radar date."""

UNITED_STATES = (-125.0, 24.0, -66.0, 50.0)
CATALONIA = (0.1, 40.5, 3.4, 42.9)
"""West, south, east, north: where SEN12TS took CDL and SIGPAC; elsewhere WorldCover."""


def inventory(folder: PathLike) -> pd.DataFrame:
    """Return the triplets in a folder, one row each, from the names of its files alone.

    Parameters
    ----------
    folder : path
        With ``s1/``, ``s2/`` and ``labels/`` as published.

    Returns
    -------
    DataFrame
        ``place``, ``name``, ``s1_date``, ``s2_date``, ``track`` (such as ``137A``), ``label``
        (name of the tile's label file, "" without one), ordered by place and name.

    Raises
    ------
    CubeError
        No such folder or no triplets; a file of another name; a radar file without its optical
        one or the reverse.
    """
    root = Path(folder)
    listed = {part: sorted(p.name for p in root.glob(f"{part}/*.tif")) for part in _PARTS}
    alone = sorted(set(listed["s1"]) ^ set(listed["s2"]))
    if alone:
        raise CubeError(
            f"{len(alone)} files of {root} stand in s1/ or s2/ alone, first {alone[0]}: fetch the "
            "other halves, or take them out"
        )
    if not listed["s1"]:
        raise CubeError(f"{root} holds no triplets: no s1/*.tif and s2/*.tif")
    labels = {}
    for name in listed["labels"]:
        parsed = names.parse_sen12ts(name)
        labels[parsed.place] = name
    rows = []
    for name in listed["s1"]:
        parsed = names.parse_sen12ts(name)
        if not isinstance(parsed, names.Sen12tsPair):
            raise CubeError(f"{root}/s1/{name} is named as a label file")
        rows.append({
            "place": parsed.place, "name": name, "s1_date": parsed.s1_date,
            "s2_date": parsed.s2_date,
            "track": track_label(parsed.relative_orbit, parsed.orbit_state),
            "label": labels.get(parsed.place, ""),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values(["place", "name"], ignore_index=True)


_PARTS = ("s1", "s2", "labels")


def read(
    folder: PathLike, place: str | None = None, *, legend: str | None = None, strict: bool = True
) -> xr.DataTree:
    """Return one tile's triplets as a cube: each date once, incidence once a track, slope once.

    Parameters
    ----------
    folder : path
        With ``s1/``, ``s2/`` and ``labels/`` as published.
    place : str, optional
        ``lat_..._lon_...`` as in the names; needed where the folder has several tiles
        (`inventory` lists them, `read_all` reads one after the other).
    legend : str, optional
        ``worldcover``, ``cdl`` or ``sigpac``. By default what the label file's tags say (files of
        `export` hold their legend whole, and need no row of it here), else by place as SEN12TS
        chose: CDL in the United States, SIGPAC in Catalonia, WorldCover elsewhere.
    strict : bool
        Refuse files from which the cube would not give back every bit: one date with two sets of
        numbers, codes or masks that no cube can hold. False takes the newest file's numbers, and
        the attribute ``sen12ts_inexact`` says how many differ.

    Returns
    -------
    xarray.DataTree
        In memory; `cubes.write` stores it (``Layout(lossless=True)`` to the bit, otherwise as small
        integers). Groups ``s1`` (backscatter dB, incidence, layover_shadow: 0 where a series was
        usable, else 255; series_valid: the files' mask at the newest date of each series),
        ``insar`` (coherence, phase of 12-day pairs, taken for VV), ``s2``, ``terrain`` (slope),
        ``labels``. Times are midnight where the files know dates only.

    Raises
    ------
    CubeError
        No such place; files of other shapes; what `strict` refuses.
    """
    table = inventory(folder)
    places = table["place"].unique().tolist()
    if place is None and len(places) > 1:
        raise CubeError(f"{folder} holds {len(places)} tiles: name one, such as {places[0]!r}")
    place = place or places[0]
    if place not in places:
        raise CubeError(f"{folder} has no tile {place!r}; it has {', '.join(places[:5])} ...")
    tile = _Tile(place=place)
    for name in table.loc[table["place"] == place, "name"]:
        _add(tile, name, *(_checked(Path(folder) / part / name, part, tile) for part in _PARTS[:2]))
    label = table.loc[table["place"] == place, "label"].iloc[0]
    if label:
        _add_label(tile, label, _checked(Path(folder) / "labels" / label, "labels", tile), legend)
    cube = _cube(tile)
    lost = _lost(cube, tile)
    if lost:
        said = "; ".join(f"{what}: {n} numbers" for what, n in lost.items())
        if strict:
            raise CubeError(
                f"the triplets of {place} do not fit a cube to the bit: {said}. Pass strict=False "
                "to read them all the same"
            )
        cube.attrs["sen12ts_inexact"] = said
    return cube


def read_all(
    folder: PathLike, *, legend: str | None = None, strict: bool = True
) -> Iterator[tuple[str, xr.DataTree]]:
    """Yield place and cube of every tile in a folder, one in memory at a time; see `read`."""
    for place in inventory(folder)["place"].unique():
        yield str(place), read(folder, str(place), legend=legend, strict=strict)


# -------------------------------------------------------------------------------------- gathering


@dataclass(slots=True, kw_only=True)
class _Tile:
    """What the files of one tile hold, each thing once."""

    place: str
    geobox: GeoBox | None = None
    radar: dict[Key, tuple[Array, Array, Array, str]] = field(default_factory=dict)
    """Backscatter (VH, VV), coherence, phase, platform."""
    usable: dict[Key, Array] = field(default_factory=dict)
    incidence: dict[str, Array] = field(default_factory=dict)
    orbits: dict[str, tuple[int, str]] = field(default_factory=dict)
    slope: dict[str, Array] = field(default_factory=dict)
    optical: dict[pd.Timestamp, tuple[Optical, str, float]] = field(default_factory=dict)
    label: tuple[int, Layer, Legend, Array, int] | None = None
    """Year, row, legend, codes, and what stands for no data in the file."""
    policies: set[tuple[str, str]] = field(default_factory=set)
    """Classes and pixels of what counts as clear, as the files' tags say; empty texts: not."""
    calibration: str = PUBLISHED
    names: list[str] = field(default_factory=list)
    files: dict[str, Array] = field(default_factory=dict)
    """Bands of every file as read, to compare with."""
    lost: dict[str, int] = field(default_factory=dict)

    def once(self, store: dict[Any, Array], key: Any, values: Array, what: str) -> None:
        """Keep values under a key, counting bits that differ from those already there."""
        if key in store:
            self.differ(what, _different(store[key], values))
        store[key] = values

    def differ(self, what: str, count: int) -> None:
        """Count numbers that are not the same in two files."""
        if count:
            self.lost[what] = self.lost.get(what, 0) + count


def _different(one: Array, other: Array) -> int:
    """Return how many numbers differ in their bits (NaN equals NaN)."""
    a, b = (np.ascontiguousarray(v).view(f"u{v.dtype.itemsize}") for v in (one, other))
    same = a == b
    if one.dtype.kind == "f":
        same |= np.isnan(one) & np.isnan(other)
    return int((~same).sum())


_SHAPES = {"s1": (len(S1_NAMES), "float32"), "s2": (len(S2_NAMES), "int16"), "labels": (1, "int16")}


def _checked(path: Path, part: str, tile: _Tile) -> Tif:
    found = files.read_tif(path)
    count, dtype = _SHAPES[part]
    if (found.count, found.dtype) != (count, dtype):
        raise CubeError(
            f"{path} has {found.count} bands of {found.dtype}, but files of {part}/ have "
            f"{count} of {dtype}"
        )
    if tile.geobox is None:
        tile.geobox = found.geobox
    elif tile.geobox != found.geobox:
        raise CubeError(f"{path} lies on another grid than the other files of {tile.place}")
    return found


def _times(tags: Mapping[str, str], newest: str, count: int) -> list[pd.Timestamp]:
    """Return the times of a file, newest first: as tagged, else dates 12 days apart."""
    if "TIMES" in tags:
        return [pd.Timestamp(t) for t in tags["TIMES"].split(",")]
    return [pd.Timestamp(newest) - k * REPEAT for k in range(count)]


def _add(tile: _Tile, name: str, s1: Tif, s2: Tif) -> None:
    parsed = names.parse_sen12ts(name)
    assert isinstance(parsed, names.Sen12tsPair), name
    track = track_label(parsed.relative_orbit, parsed.orbit_state)
    tile.names.append(name)
    tile.files[f"s1/{name}"], tile.files[f"s2/{name}"] = s1.bands, s2.bands
    tile.orbits[track] = (parsed.relative_orbit, parsed.orbit_state)
    calibration = s1.tags.get("CALIBRATION", PUBLISHED)
    if len(tile.names) > 1 and calibration != tile.calibration:
        raise CubeError(f"{name} is {calibration}, other files of the tile {tile.calibration}")
    tile.calibration = calibration
    part = Radar.of(s1.bands)
    tile.once(tile.incidence, track, part.incidence, f"incidence of {track}")
    tile.once(tile.slope, "slope", part.slope, "slope")
    platforms = s1.tags.get("PLATFORMS", "," * (DATES - 1)).split(",")
    times = _times(s1.tags, parsed.s1_date, DATES)
    for k, (time, platform) in enumerate(zip(times, platforms, strict=True)):
        key, found = (time, track), (part.backscatter[k], part.coherence[k], part.phase[k])
        if key in tile.radar:
            differing = map(_different, tile.radar[key][:3], found)
            tile.differ(f"radar of {track} on {time:%Y-%m-%d}", sum(differing))
        tile.radar[key] = (*found, platform)
    tile.once(tile.usable, (times[0], track), part.usable, f"mask of {track}, {times[0]:%Y-%m-%d}")
    image, time = Optical.of(s2.bands), _times(s2.tags, parsed.s2_date, 1)[0]
    if time in tile.optical:
        tile.differ(
            f"Sentinel-2 on {time:%Y-%m-%d}",
            _different(tile.optical[time][0].bands(), image.bands()),
        )
    tile.policies.add((s2.tags.get("CLEAR_CLASSES", ""), s2.tags.get("CLEAR_DILATE_PX", "")))
    cloud = float(s2.tags.get("CLOUD_COVER", "nan"))
    tile.optical[time] = (image, s2.tags.get("PLATFORMS", ""), cloud)


def _add_label(tile: _Tile, name: str, found: Tif, legend: str | None) -> None:
    parsed = names.parse_sen12ts(name)
    assert isinstance(parsed, names.Sen12tsLabel), name
    wanted = legend or found.tags.get("LEGEND") or _legend_at(float(parsed.lat), float(parsed.lon))
    text = found.tags.get("LEGEND_JSON")
    known = registry.legend(wanted if text is None else Legend.from_json(text))
    if known.name != wanted:  # the file came with another than was asked for
        known = registry.legend(wanted)
    row = label_layer(known)
    codes = found.bands[0]
    missing = codes == NODATA
    fill = NODATA
    if row.nodata is not None and not missing.any() and (codes == row.nodata).any():
        fill = int(row.nodata)
    strange = sorted(set(np.unique(codes[~missing]).tolist()) - {*known.classes, row.nodata})
    if strange:
        raise CubeError(
            f"{name} has codes {strange[:5]} that legend {wanted!r} has not: name another, legend="
        )
    tile.files["labels"] = codes
    kept = codes.astype(row.dtype)
    if row.nodata is not None:
        kept[missing] = int(row.nodata)
    tile.label = (parsed.year, row, known, kept, fill)


def _legend_at(lat: float, lon: float) -> str:
    for name, (west, south, east, north) in (("cdl", UNITED_STATES), ("sigpac", CATALONIA)):
        if west <= lon <= east and south <= lat <= north:
            return name
    return "worldcover"


# ------------------------------------------------------------------------------------------- cube


def _array(name: str, data: Array, **extra: Any) -> tuple[tuple[str, ...], Array, dict[str, Any]]:
    layer = registry.layer(name)
    return layer.dims, data, attributes(layer, extra)


def _instants(times: list[pd.Timestamp]) -> Array:
    return np.array(times, "datetime64[ns]")


def _cube(tile: _Tile) -> xr.DataTree:
    from odc.geo.xr import xr_coords

    assert tile.geobox is not None
    grid = dict(xr_coords(tile.geobox))
    groups = {"s1": _s1(tile), "insar": _insar(tile), "s2": _s2(tile)}
    slope = _array("terrain/slope", tile.slope["slope"])
    groups["terrain"] = xr.Dataset({"slope": slope})
    if tile.label is not None:
        year, row, legend, codes, fill = tile.label
        attrs = attributes(row, {**legend_attributes(legend), "nodata_number": fill})
        found = (row.dims, codes[None], attrs)
        groups["labels"] = xr.Dataset({row.variable: found}, coords={"year": [year]})
    tree = xr.DataTree.from_dict(
        {"/": xr.Dataset(coords=grid), **{k: v.assign_coords(grid) for k, v in groups.items()}},
        name=tile.place,
    )
    west, south, east, north = grids.lonlat_bounds(tile.geobox)
    corners = f"{west} {south}, {east} {south}, {east} {north}, {west} {north}, {west} {south}"
    tree.attrs = {
        "aoi": tile.place,
        "aoi_wkt": f"POLYGON (({corners}))",
        "catalog": "sen12ts",
        FILES: tile.names,
    }
    return tree


def _s1(tile: _Tile) -> xr.Dataset:
    keys = sorted(tile.radar)
    tracks = sorted(tile.incidence)
    rows, columns = tile.slope["slope"].shape
    usable = np.full((len(keys), rows, columns), UNKNOWN, np.uint8)
    for key, mask in tile.usable.items():
        usable[keys.index(key)] = mask
    ever = np.stack([
        np.any([m == 1 for (_, t), m in tile.usable.items() if t == track], axis=0)
        for track in tracks
    ])  # fmt: skip
    static = np.where(ever, geometry.NONE, geometry.NO_DATA).astype(np.uint8)
    # VH comes first in the files, VV in a cube
    power = np.stack([tile.radar[k][0][::-1] for k in keys])
    orbits = [tile.orbits[t] for _, t in keys]
    return xr.Dataset(
        {
            "backscatter": _array("s1/backscatter", power, calibration=tile.calibration),
            "series_valid": _array("s1/series_valid", usable),
            "incidence": _array("s1/incidence", np.stack([tile.incidence[t] for t in tracks])),
            "layover_shadow": _array("s1/layover_shadow", static),
        },
        coords={
            "time": _instants([time for time, _ in keys]),
            "pol": list(reversed(POLS)),
            "track": tracks,
            "platform": ("time", [tile.radar[k][3] for k in keys]),
            "relative_orbit": ("time", [o for o, _ in orbits]),
            "orbit_state": ("time", [s for _, s in orbits]),
            "track_relative_orbit": ("track", [tile.orbits[t][0] for t in tracks]),
            "track_orbit_state": ("track", [tile.orbits[t][1] for t in tracks]),
        },
    )


def _insar(tile: _Tile) -> xr.Dataset:
    keys = sorted(tile.radar)
    orbits = [tile.orbits[t] for _, t in keys]
    first = [time - REPEAT for time, _ in keys]
    labels = [
        f"{a:%Y%m%dT%H%M%S}_{b:%Y%m%dT%H%M%S}_{t}" for a, (b, t) in zip(first, keys, strict=True)
    ]
    data = {
        "coherence": _array("insar/coherence", np.stack([tile.radar[k][1][None] for k in keys])),
        "phase": _array("insar/phase", np.stack([tile.radar[k][2][None] for k in keys])),
    }
    return xr.Dataset(
        data,
        coords={
            "pair": labels,
            "pol": ["vv"],
            "reference_time": ("pair", _instants(first)),
            "secondary_time": ("pair", _instants([time for time, _ in keys])),
            "temporal_baseline": ("pair", [REPEAT.days] * len(keys)),
            "relative_orbit": ("pair", [o for o, _ in orbits]),
            "orbit_state": ("pair", [s for _, s in orbits]),
        },
    )


def _s2(tile: _Tile) -> xr.Dataset:
    times = sorted(tile.optical)
    images = [tile.optical[t][0] for t in times]
    fills = np.array([i.fills for i in images])
    return xr.Dataset(
        {
            "reflectance": _array("s2/reflectance", np.stack([i.reflectance for i in images])),
            "scl": _array("s2/scl", np.stack([i.scl for i in images])),
            "clear": _array(
                "s2/clear", np.stack([i.clear for i in images]), **_policy(tile, images)
            ),
        },
        coords={
            "time": _instants(times),
            "band": list(BANDS),
            "platform": ("time", [tile.optical[t][1] for t in times]),
            "cloud_cover": ("time", [tile.optical[t][2] for t in times]),
            **{name: ("time", fills[:, i]) for i, name in enumerate(OPTICAL_FILLS)},
        },
    )


def _policy(tile: _Tile, images: list[Optical]) -> dict[str, Any]:
    """Return what counts as clear: as the files' tags say, else as their pixels show.

    Published files say nothing of it; the classes that are clear somewhere are those that count.
    """
    if len(tile.policies) == 1 and "" not in next(iter(tile.policies)):
        classes, pixels = next(iter(tile.policies))
        codes = [int(c) for c in classes.split(",")]
        return {"clear_classes": codes, "clear_dilate_px": int(pixels)}
    codes = sorted({int(c) for i in images for c in np.unique(i.scl[i.clear])} - {0})
    return {"clear_classes": codes, "clear_rule": "classes that are clear somewhere in the files"}


def _lost(cube: xr.DataTree, tile: _Tile) -> dict[str, int]:
    """Return how many numbers the cube would not give back as they were read, by file."""
    out = dict(tile.lost)
    for row in series(cube).to_dict("records"):
        name = row["name"]
        for part, made in (("s1", radar(cube, row).bands()), ("s2", optical(cube, row).bands())):
            count = _exactly_different(tile.files[f"{part}/{name}"], made)
            if count:
                out[f"{part}/{name}"] = count
    if tile.label is not None:
        _, row_, _, codes, fill = tile.label
        made = codes.astype(np.int16)
        if row_.nodata is not None:
            made[codes == row_.nodata] = fill
        count = _exactly_different(tile.files["labels"], made)
        if count:
            out["labels"] = count
    return out


def _exactly_different(one: Array, other: Array) -> int:
    """Return how many numbers differ in any bit."""
    kind = f"u{one.dtype.itemsize}"
    return int(
        (np.ascontiguousarray(one).view(kind) != np.ascontiguousarray(other).view(kind)).sum()
    )
