"""Which dates of a cube make triplets: the series rule, tiles, validity, seasons and caps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from cubes import names, runs
from cubes.radar import geometry
from cubes.sen12ts.bands import BANDS, DATES, FILES, POLS, REPEAT, Array
from cubes.series import track_label
from cubes.types import CubeError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox


Row = Mapping[Any, Any]
"""A row of the table that `series` returns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How triplets are chosen from a cube; the defaults are SEN12TS's."""

    size: int = 256
    """Edge of a tile in pixels; tiles start at the cube's upper left, a rest is left out."""
    max_gap: int = 3
    """Most days between the newest radar date and the Sentinel-2 image."""
    max_cloud: float | None = 5.0
    """Most scene cloud cover in percent; None takes any (and a cube that does not know)."""
    max_invalid: float = 0.01
    """Most pixels without data in a layer group: backscatter, insar, geometry, s2. A pixel counts
    where any band of the group lacks it."""
    per_season: int | None = 4
    """Most triplets per tile and season of the Sentinel-2 date; None keeps all."""
    seed: int = 0
    """Of the draw where a season has more."""
    coherence_pol: str = "vv"
    """Which coherence and phase; SEN12TS does not say which it holds."""


# ----------------------------------------------------------------------------- what a cube holds


def group(cube: xr.DataTree, name: str) -> xr.Dataset:
    """Return a group of a cube as a Dataset, empty where the cube lacks it."""
    return cube[name].to_dataset() if name in cube.children else xr.Dataset()


def _check_layers(cube: xr.DataTree) -> None:
    """Raise CubeError naming every layer of the recipe that the cube lacks."""
    needed: dict[str, dict[str, tuple[str, ...]]] = {
        "s1": {"backscatter": POLS, "incidence": ()},
        "insar": {"coherence": (), "phase": ()},
        "s2": {"reflectance": BANDS, "scl": (), "clear": ()},
    }
    lacking = []
    for where, layers in needed.items():
        data = group(cube, where)
        for name, channels in layers.items():
            if name not in data:
                lacking.append(f"{where}/{name}")
            elif channels:
                dim = "pol" if where == "s1" else "band"
                lost = [c for c in channels if c not in data[dim].to_numpy()]
                lacking += [f"{where}/{name} {', '.join(lost)}"] if lost else []
    terrain = group(cube, "terrain")
    if "slope" not in terrain and "elevation" not in terrain:
        lacking.append("terrain/slope (or terrain/elevation)")
    if not {"layover_shadow", "series_valid"} & set(group(cube, "s1")):
        lacking.append("s1/layover_shadow")
    if lacking:
        raise CubeError(
            f"triplets of SEN12TS need layers that this cube lacks: {'; '.join(lacking)}. Open it "
            "with them, from a catalogue that delivers them"
        )


def _tracks(data: xr.Dataset) -> list[str]:
    states = data["orbit_state"].to_numpy()
    return [
        track_label(int(o), str(s))
        for o, s in zip(data["relative_orbit"].to_numpy(), states, strict=True)
    ]


def _acquisitions(s1: xr.Dataset) -> pd.DataFrame:
    return pd.DataFrame({"time": pd.DatetimeIndex(s1["time"].to_numpy()), "track": _tracks(s1)})


def _pairs(insar: xr.Dataset) -> pd.DataFrame:
    """Return the 12-day pairs, the index their place along ``pair``."""
    table = pd.DataFrame(
        {
            "track": _tracks(insar),
            "secondary_time": pd.DatetimeIndex(insar["secondary_time"].to_numpy()),
            "temporal_baseline": insar["temporal_baseline"].to_numpy(),
        }
    )
    return table[table["temporal_baseline"] == REPEAT.days]


def _pair_of(pairs: pd.DataFrame, track: str, time: pd.Timestamp) -> int:
    near = pairs[pairs["track"] == track]
    gaps = (near["secondary_time"] - time).abs()
    gaps = gaps[gaps <= runs.REPEAT_SLACK]
    if gaps.empty:
        raise CubeError(f"the cube has no 12-day pair of track {track} that ends at {time}")
    return int(gaps.index[int(gaps.argmin())])


def prepared(cube: xr.DataTree | str | os.PathLike[str]) -> xr.DataTree:
    """Return a cube (or the one in a store) that holds every layer of a triplet, slope included.

    Raises
    ------
    CubeError
        A layer is missing.
    """
    if not isinstance(cube, xr.DataTree):
        from cubes.store import verbs as store

        cube = store.open(cube, chunks=None)
    _check_layers(cube)
    terrain = group(cube, "terrain")
    if "slope" in terrain:
        return cube
    slope, _ = geometry.slope_aspect(terrain["elevation"].compute())
    whole = {name: node.to_dataset() for name, node in cube.children.items()}
    whole["terrain"] = terrain.assign(slope=slope)
    out = xr.DataTree.from_dict(whole, name=cube.name)
    out.attrs = dict(cube.attrs)
    return out


def series(cube: xr.DataTree | str | os.PathLike[str], rule: Rule | None = None) -> pd.DataFrame:
    """Return the triplets of a cube, one row each.

    Parameters
    ----------
    cube : DataTree or path
        As `cubes.open_aoi` and `cubes.open` give it, or the store of one. To judge validity by
        `rule`, the pixels of every candidate date are read, tile by tile: write a cube of a
        catalogue to a store first.
    rule : Rule, optional
        By default the triplets that the cube was read from, where it was, else ``Rule()``.

    Returns
    -------
    DataFrame
        ``name`` (file name), ``place``, ``tile`` (first row, first column, edge in pixels),
        ``track``, ``s1`` and ``pairs`` (places along time and pair, newest first), ``s2`` (place
        along time), ``gap`` (Timedelta by calendar date), ``season``; ``attrs["why"]`` says how
        many each part of the rule left, in the order in which they are asked.

    Raises
    ------
    CubeError
        A layer is missing; the cube is smaller than a tile or not of 10 m pixels; no cloud cover
        is known although the rule limits it.
    """
    cube = prepared(cube)
    if rule is None and FILES in cube.attrs:
        return _named(cube, [str(n) for n in cube.attrs[FILES]])
    rule = rule or Rule()
    found = candidates(cube, rule)
    out, tried = [], 0
    for tile in _tiles(cube, rule.size):
        valid = _Valid(cube=cube, tile=tile, rule=rule)
        tried += len(found)
        place = _place(tile_geobox(cube, tile))
        for row in valid.within(found).to_dict("records"):
            name = names.Sen12tsPair(
                lat=place[0], lon=place[1], s1_date=f"{row['end']:%Y-%m-%d}",
                s2_date=f"{row['date']:%Y-%m-%d}", track=str(row["relative_orbit"]),
                look_pass=row["orbit_state"] or "unknown",
            )  # fmt: skip
            out.append({**row, "name": str(name), "place": name.place, "tile": tile})
    table = pd.DataFrame(out, columns=["name", "place", "tile", *found.columns])
    if rule.per_season is not None and len(table):
        table = runs.cap(table, rule.per_season, by=("place", "season"), seed=rule.seed)
    keep = ["name", "place", "tile", "track", "s1", "pairs", "s2", "gap", "season"]
    kept = table[keep].reset_index(drop=True)
    kept.attrs["why"] = (
        f"{found.attrs['why']}; on all tiles together {len(out)} of {tried} miss at most "
        f"{100 * rule.max_invalid:g} % of the pixels of a layer (max_invalid); {len(kept)} stay "
        f"with at most {rule.per_season} a tile and season (per_season)"
    )
    return kept


def candidates(cube: xr.DataTree, rule: Rule) -> pd.DataFrame:
    """Return every series with its Sentinel-2 image, whatever its pixels: none is read.

    One row each: ``track``, ``end``, ``date``, ``relative_orbit``, ``orbit_state``, ``s1`` and
    ``pairs`` (places along time and pair, newest first), ``s2`` (place along time), ``gap``,
    ``season``.
    """
    s1, insar, s2 = (group(cube, name) for name in ("s1", "insar", "s2"))
    pairs = _pairs(insar)
    found = runs.runs(_acquisitions(s1), dates=DATES, step="12D", pairs=pairs)
    dates = pd.DatetimeIndex(s2["time"].to_numpy()).normalize()
    optical = pd.DataFrame({"time": dates}, index=range(len(dates)))
    if rule.max_cloud is not None:
        cloud = s2["cloud_cover"].to_numpy() if "cloud_cover" in s2.coords else np.array([np.nan])
        if np.isnan(cloud).all():
            raise CubeError(
                "the cube does not know the cloud cover of its Sentinel-2 scenes (coordinate "
                "cloud_cover): pass Rule(max_cloud=None) to take any"
            )
        # a scene that does not know its cloud cover among scenes that do is not taken
        known = optical.assign(cloud_cover=cloud)
        optical = runs.within(known, {"cloud_cover": rule.max_cloud}, unknown="drop")
    by_date = found.assign(end=pd.DatetimeIndex(found["end"]).normalize())
    together = runs.matches(by_date, optical, max_gap=f"{rule.max_gap}D")
    out = []
    for match in together.to_dict("records"):
        one = found.loc[match["radar"]]
        steps = tuple(int(i) for i in reversed(one["rows"]))
        out.append({
            "track": one["track"], "end": one["end"], "date": dates[match["optical"]],
            "relative_orbit": int(s1["relative_orbit"][steps[0]]),
            "orbit_state": str(s1["orbit_state"][steps[0]].item()),
            "s1": steps,
            "pairs": tuple(_pair_of(pairs, one["track"], t) for t in reversed(one["times"])),
            "s2": int(match["optical"]), "gap": match["gap"],
        })  # fmt: skip
    columns = ["track", "end", "date", "relative_orbit", "orbit_state", "s1", "pairs", "s2", "gap"]
    table = pd.DataFrame(out, columns=columns)
    table = table.assign(season=runs.season(pd.to_datetime(table["date"])))
    table.attrs["why"] = (
        f"{s1.sizes['time']} radar dates and {len(pairs)} 12-day pairs make {len(found)} series of "
        f"{DATES}; {len(optical)} of {len(dates)} Sentinel-2 scenes have at most "
        f"{rule.max_cloud} % cloud (max_cloud); {len(table)} of the series end within "
        f"{rule.max_gap} days of one (max_gap)"
    )
    return table


def _named(cube: xr.DataTree, published: Sequence[str]) -> pd.DataFrame:
    """Return the triplets of a cube that was read from files of these names."""
    s1, pairs = _acquisitions(group(cube, "s1")), _pairs(group(cube, "insar"))
    dates = pd.DatetimeIndex(group(cube, "s2")["time"].to_numpy()).normalize()
    rows, columns = _whole(cube).shape
    out = []
    for text in published:
        name = names.parse_sen12ts(text)
        assert isinstance(name, names.Sen12tsPair), text
        track = track_label(name.relative_orbit, name.orbit_state)
        newest, optical = pd.Timestamp(name.s1_date), pd.Timestamp(name.s2_date)
        mine = s1[(s1["track"] == track) & (s1["time"].dt.normalize() == newest)]
        if mine.empty or optical not in dates or rows != columns:
            raise CubeError(
                f"the cube was read from {text} but no longer holds its dates or its whole tile: "
                "give a rule to choose triplets anew"
            )
        times = [mine["time"].iloc[0] - k * REPEAT for k in range(DATES)]
        steps = [_step_of(s1, track, t, text) for t in times]
        out.append({
            "name": str(name), "place": name.place, "tile": (0, 0, rows), "track": track,
            "s1": tuple(steps), "pairs": tuple(_pair_of(pairs, track, t) for t in times),
            "s2": int(np.flatnonzero(dates == optical)[0]), "gap": optical - newest,
        })  # fmt: skip
    table = pd.DataFrame(
        out, columns=["name", "place", "tile", "track", "s1", "pairs", "s2", "gap"]
    )
    seasons = runs.season(pd.to_datetime(table["name"].str.extract(r"s2date_([0-9-]+)")[0]))
    return table.assign(season=seasons)


def _step_of(s1: pd.DataFrame, track: str, time: pd.Timestamp, text: str) -> int:
    near = s1[(s1["track"] == track) & ((s1["time"] - time).abs() <= runs.REPEAT_SLACK)]
    if near.empty:
        raise CubeError(f"the cube was read from {text} but has no radar date {time:%Y-%m-%d}")
    return int(near.index[0])


# ------------------------------------------------------------------------------------------ tiles

Tile = tuple[int, int, int]
"""First row, first column, edge in pixels."""


def _tiles(cube: xr.DataTree, size: int) -> Iterator[Tile]:
    box = _whole(cube)
    rows, columns = box.shape
    if abs(box.resolution.x) != 10 or abs(box.resolution.y) != 10:
        raise CubeError(f"tiles of SEN12TS have pixels of 10 m, this cube {box.resolution.x:g} m")
    if min(rows, columns) < size:
        raise CubeError(f"the cube of {rows} x {columns} px is smaller than a tile of {size} px")
    for row in range(0, rows - size + 1, size):
        for column in range(0, columns - size + 1, size):
            yield row, column, size


def _whole(cube: xr.DataTree) -> GeoBox:
    import odc.geo.xr  # noqa: F401  registers the accessor

    box: GeoBox = group(cube, "s1").odc.geobox
    return box


def tile_geobox(cube: xr.DataTree, tile: Tile) -> GeoBox:
    """Return the grid of a tile, its CRS named by its code."""
    from odc.geo.geobox import GeoBox

    row, column, edge = tile
    box = _whole(cube)
    epsg = box.crs.epsg if box.crs is not None else None
    part: GeoBox = box[row : row + edge, column : column + edge]
    return GeoBox(part.shape, part.affine, f"EPSG:{epsg}") if epsg else part


def _place(box: GeoBox) -> tuple[str, str]:
    """Return latitude and longitude of a tile's centre as SEN12TS writes them."""
    from pyproj import Transformer

    assert box.crs is not None
    left, bottom, right, top = box.boundingbox.bbox
    back = Transformer.from_crs(box.crs.proj, "EPSG:4326", always_xy=True)
    lon, lat = back.transform((left + right) / 2, (bottom + top) / 2)
    # + 0.0: no "-0.0"
    return str(round(float(lat), 4) + 0.0), str(round(float(lon), 4) + 0.0)


def cut(data: xr.DataArray, tile: Tile) -> xr.DataArray:
    """Return a tile's part of an array that ends in (y, x)."""
    row, column, edge = tile
    return data.isel(y=slice(row, row + edge), x=slice(column, column + edge))


class _Valid:
    """Which dates of a tile have data, read once each."""

    def __init__(self, *, cube: xr.DataTree, tile: Tile, rule: Rule) -> None:
        self.rule = rule
        self.tracks = [str(t) for t in group(cube, "s1")["track"].to_numpy()]
        s1, insar, s2 = (group(cube, g) for g in ("s1", "insar", "s2"))
        one = insar.sel(pol=coherence_of(insar, rule.coherence_pol))
        parts = {
            "backscatter": (s1["backscatter"].sel(pol=list(POLS)),),
            "insar": (one["coherence"], one["phase"]),
            "geometry": (s1["incidence"],),
            "s2": (s2["reflectance"].sel(band=list(BANDS)),),
        }
        # variables: indexing them by the step takes a tenth of the time of a DataArray
        self.layers = {k: [cut(v, tile).variable for v in part] for k, part in parts.items()}
        self.seen: dict[tuple[str, int], Array] = {}

    def within(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the triplets of which no layer group misses more pixels than the rule allows."""
        for group in self.layers:
            # group by group: what one leaves out is not read for the next
            shares = [self.invalid(group, row) for row in table.to_dict("records")]
            told = table.assign(**{f"invalid_{group}": np.array(shares, float)})
            kept = runs.within(told, {f"invalid_{group}": self.rule.max_invalid})
            table = kept[table.columns]
        return table

    def invalid(self, group: str, row: Row) -> float:
        """Return the share of pixels that any step of a layer group lacks, 0..1."""
        steps: Sequence[int]
        if group == "geometry":
            steps = [_place_of(self.tracks, str(row["track"]))]
        else:
            column = {"backscatter": "s1", "insar": "pairs", "s2": "s2"}[group]
            steps = np.atleast_1d(row[column]).tolist()
        return float(np.mean(~np.all([self.has(group, i) for i in steps], axis=0)))

    def has(self, what: str, step: int) -> Array:
        """Return where a step of a layer group has data in every band, (y, x) bool."""
        key = (what, step)
        if key not in self.seen:
            good = [~np.isnan(v[step].to_numpy()) for v in self.layers[what]]
            self.seen[key] = np.all(
                [g.reshape(-1, *g.shape[-2:]).all(axis=0) for g in good], axis=0
            )
        return self.seen[key]


def coherence_of(insar: xr.Dataset, wanted: str) -> str:
    """Return `wanted` if the group has coherence in it, else raise CubeError."""
    have = [str(p) for p in insar["pol"].to_numpy()]
    if wanted not in have:
        raise CubeError(
            f"the cube has coherence in {', '.join(have)}, not {wanted}: coherence_pol="
        )
    return wanted


def track_index(cube: xr.DataTree, track: str) -> int:
    """Return the place of a track along the static layers, or raise CubeError without it."""
    return _place_of([str(t) for t in group(cube, "s1")["track"].to_numpy()], track)


def _place_of(labels: list[str], track: str) -> int:
    if track not in labels:
        raise CubeError(f"the cube has incidence of tracks {', '.join(labels)}, not of {track}")
    return labels.index(track)
