"""Per-field time series from a cube: what most users want first, as one long table.

Every chunk of the cube is read once: a tile gives each field that it touches a partial sum for
every step, the parts of a field are added up over tiles, and only sums are ever kept. Means are
taken where they mean something: backscatter in linear power, phase through e^(i phi), classes as
shares, reflectance over clear pixels only.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from cubes import physics, registry, series
from cubes.fields.polygons import Fields, Floats, Ints, Members, on_grid, summary
from cubes.fields.vectors import grid_of
from cubes.fields.writing import write_tables
from cubes.store import verbs as store
from cubes.types import CubeError, Layer

COLUMNS = (
    "field", "layer", "channel", "time", "step", "track", "mean", "spread", "count", "pixels",
    "clear",
)  # fmt: skip
"""Columns of a table of field series, see `extract`."""

BLOCK_BYTES = 64 * 2**20
"""Most float32 pixels that one task holds: 16 steps of 12 bands of a 256-px patch are 50 MB."""

TILE = 256
"""Edge of a tile where the cube is not on dask: the patch of a store."""

AT_ONCE = 256
"""Fields whose rows are made together."""


# ---------------------------------------------------------------------------------------- layers


@dataclass(frozen=True, kw_only=True, slots=True)
class _Series:
    """One layer of a cube as (step, channel, y, x), and what its steps are called."""

    layer: Layer
    data: xr.DataArray
    clear: xr.DataArray | None
    channels: tuple[str, ...]
    steps: pd.DataFrame
    """Per step: time, step, track."""

    def edges(self) -> tuple[list[int], list[int]]:
        """Return the tile edges along y and x: the chunks on dask, else patches."""
        out = []
        for axis in (2, 3):
            size = self.data.shape[axis]
            chunks = self.data.chunks[axis] if self.data.chunks else ()
            out.append([0, *np.cumsum(chunks).tolist()] if chunks else _every(size, TILE))
        return out[0], out[1]


def _every(size: int, step: int) -> list[int]:
    return [*range(0, size, step), size]


def _series(cube: xr.DataTree, name: str) -> _Series:
    group, variable = name.split("/")
    dataset = cube[group].to_dataset()
    data = dataset[variable]
    layer = registry.layers().get(name) or _guessed(name, data)
    dims = [str(d) for d in data.dims if d not in ("y", "x")]
    channel = next((d for d in dims if d in ("pol", "band")), None)
    stack = next((d for d in dims if d != channel), None)
    wide = data.drop_vars([c for c in data.coords if c not in data.dims])
    for dim, present in (("_step", stack), ("_channel", channel)):
        wide = wide.rename({present: dim}) if present else wide.expand_dims(dim)
    masked = name != "s2/clear" and layer.kind != "class" and "clear" in dataset
    clear = None
    if masked and stack is not None and stack in dataset["clear"].dims:
        clear = dataset["clear"].transpose(stack, "y", "x")
    return _Series(
        layer=layer,
        data=wide.transpose("_step", "_channel", "y", "x"),
        clear=clear,
        channels=tuple(str(v) for v in dataset[channel].to_numpy()) if channel else ("",),
        steps=_steps(dataset, stack),
    )


def _guessed(name: str, data: xr.DataArray) -> Layer:
    """Return a row for a user's own layer: floats are averaged, whole numbers are classes."""
    kind = {"f": "continuous", "b": "mask"}.get(data.dtype.kind, "class")
    template = {"continuous": "terrain/elevation", "mask": "s2/clear", "class": "labels/worldcover"}
    nodata = data.attrs.get("nodata")
    if kind == "continuous" and data.attrs.get("kind") == "phase":
        units = "insar/phase" if data.attrs.get("units") == "rad" else "terrain/aspect"
        return replace(registry.layer(units), name=name)
    like = registry.layer(template[kind])
    return replace(like, name=name, nodata=nodata if kind == "class" else like.nodata)


def _steps(dataset: xr.Dataset, stack: str | None) -> pd.DataFrame:
    count = dataset.sizes[stack] if stack else 1
    nothing = [""] * count
    out: dict[str, Any] = {"time": [pd.NaT] * count, "step": nothing, "track": nothing}
    if stack is None:
        return pd.DataFrame(out).astype({"time": "datetime64[ns]"})

    def coordinate(name: str) -> Any:
        for label in (name, f"{stack}_{name}"):
            if label in dataset.coords and dataset[label].dims == (stack,):
                return dataset[label].to_numpy()
        return None

    time = coordinate("time" if stack == "time" else "secondary_time")
    if time is not None:
        out["time"] = time
    if stack != "time":
        out["step"] = [str(v) for v in dataset[stack].to_numpy()]
    orbit, state = coordinate("relative_orbit"), coordinate("orbit_state")
    if orbit is not None and state is not None:
        out["track"] = [series.track_label(o, s) for o, s in zip(orbit, state, strict=True)]
    return pd.DataFrame(out).astype({"time": "datetime64[ns]"})


def _names(cube: xr.DataTree, layers: Sequence[str] | None) -> list[str]:
    have = [
        f"{group}/{variable}"
        for group, node in cube.children.items()
        for variable in map(str, node.data_vars)
        if {"y", "x"} <= set(node[variable].dims)
    ]
    if layers is None:
        return [n for n in have if n != "s2/clear"]
    for name in layers:
        if name not in have:
            near = difflib.get_close_matches(name, have, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise CubeError(f"this cube has no layer {name!r}{hint} It has {', '.join(have)}")
    return list(layers)


# ------------------------------------------------------------------------------------------ sums


def _sums(values: Any, clear: Any, *, members: Members, layer: Layer) -> Floats:
    """Return sums over the pixels of each part, (part, step, channel, 5).

    The five: pixels used, and of those a first, a second and a third sum; and clear pixels. The
    sums are of power, dB and dB squared; of cosine and sine; or of values and their squares.
    """
    values = np.asarray(values)
    steps, channels = values.shape[:2]
    out = np.zeros((len(members.fields), steps, channels, 5))
    for step in range(steps):
        # step by step, so that float64 copies stay small
        flat = values[step].reshape(channels, -1)[:, members.pixels]
        used = ~np.isnan(flat) if flat.dtype.kind == "f" else np.ones(flat.shape, bool)
        if clear is not None:
            good = np.asarray(clear[step], bool).reshape(-1)[members.pixels]
            used &= good
            out[:, step, :, 4] = np.add.reduceat(good, members.starts, dtype=np.int64)[:, None]
        numbers = np.where(used, flat, 0).astype(np.float64)
        for i, term in enumerate([used, *_terms(numbers, used, layer)]):
            out[:, step, :, i] = np.add.reduceat(term, members.starts, axis=1, dtype=np.float64).T
    return out


def _terms(numbers: Floats, used: npt.NDArray[np.bool_], layer: Layer) -> tuple[Any, ...]:
    if layer.kind == "phase":
        return np.cos(numbers * layer.turn) * used, np.sin(numbers * layer.turn) * used
    if layer.convert == "power_to_db":
        return 10 ** (numbers / 10) * used, numbers, numbers**2
    return numbers, numbers**2


def _moments(sums: Floats, layer: Layer) -> tuple[Floats, Floats]:
    """Return mean and spread, NaN where no pixel was used."""
    n = sums[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second, third = (np.where(n > 0, sums[..., i] / n, np.nan) for i in (1, 2, 3))
        if layer.kind == "phase":
            spread = np.sqrt(-2 * np.log(np.minimum(np.hypot(first, second), 1)))
            return layer.wrapped(np.arctan2(second, first)), spread / layer.turn
        if layer.convert == "power_to_db":
            return 10 * np.log10(first), np.sqrt(np.maximum(third - second**2, 0))
    return first, np.sqrt(np.maximum(second - first**2, 0))


def _class_counts(values: Any, clear: Any, *, members: Members, layer: Layer) -> Ints:
    """Return rows of (part, step, code, pixels) of a class layer, its nodata left out."""
    del clear
    values = np.asarray(values)
    owner = np.repeat(np.arange(len(members.fields)), members.sizes)
    out = []
    for step in range(len(values)):
        codes, good = _codes(values[step, 0].reshape(-1)[members.pixels], layer)
        # numbered, so that a code of any size and a part make one key
        found, number = np.unique(codes[good], return_inverse=True)
        base = max(1, len(found))
        keys, counts = np.unique(owner[good] * base + number, return_counts=True)
        steps = np.full(len(keys), step)
        out.append(np.stack([keys // base, steps, found[keys % base], counts], 1))
    return np.concatenate(out)


def _codes(values: npt.NDArray[Any], layer: Layer) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return class codes as int64, and which of them are data."""
    finite = np.isfinite(values)
    if values.dtype.kind == "f":  # codes with NaN for nodata
        values = np.where(finite, values, 0)
    elif values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
        raise CubeError(
            f"{layer.name} holds the class code {values.max()}: codes are counted as int64, up to "
            f"{np.iinfo(np.int64).max}; number the classes anew (numpy.unique, return_inverse)"
        )
    codes = values.astype(np.int64)
    return codes, finite & physics.is_valid(codes, layer.nodata)


# ----------------------------------------------------------------------------------- the stream


Job = tuple[int, tuple[int, int], Any]
"""Number of a tile, first step and after the last, and their sums: delayed, then done."""


def _jobs(one: _Series, tiles: Sequence[Members]) -> Iterator[Job]:
    """Yield the jobs of one layer."""
    from dask.delayed import delayed

    work = _class_counts if one.layer.kind == "class" else _sums
    for number, members in enumerate(tiles):
        top, bottom, left, right = members.window
        size = (bottom - top) * (right - left) * one.data.shape[1] * 4
        span = max(1, min(len(one.steps), BLOCK_BYTES // size))
        for start in range(0, len(one.steps), span):
            where = {"y": slice(top, bottom), "x": slice(left, right)}
            block = one.data.isel({"_step": slice(start, start + span), **where})
            clear = None
            if one.clear is not None:
                along = {str(one.clear.dims[0]): slice(start, start + span)}
                clear = one.clear.isel({**along, **where})
            task = partial(work, members=members, layer=one.layer)
            last = min(len(one.steps), start + span)
            if one.data.chunks is not None:
                done = delayed(task, pure=False)(block.data, None if clear is None else clear.data)
            else:
                done = delayed(partial(_read, task, block, clear), pure=False)()
            yield number, (start, last), done


def _read(task: Any, block: xr.DataArray, clear: xr.DataArray | None) -> Any:
    return task(block.to_numpy(), None if clear is None else clear.to_numpy())


def _computed(jobs: Iterator[Job]) -> Iterator[Job]:
    """Yield the jobs done, a few at a time: what is in flight is what is held."""
    import dask.base

    size = 2 * (os.cpu_count() or 2)
    while batch := list(itertools.islice(jobs, size)):
        results = dask.base.compute(  # type: ignore[no-untyped-call]
            *(job[2] for job in batch)
        )
        for (tile, steps, _), result in zip(batch, results, strict=True):
            yield tile, steps, result


@dataclass(kw_only=True, slots=True)
class _Open:
    """A field of which not every tile is done."""

    steps: int = 0
    """Steps still to come, summed over its tiles."""
    pixels: int = 0
    sums: Any = None
    """Floats (step, channel, 5), or for classes rows of (step, code, pixels)."""


def _rows(one: _Series, fields: Fields, tiles: Sequence[Members]) -> Iterator[pd.DataFrame]:
    """Yield the rows of one layer, field by field as the last tile of each is done."""
    total, classes = len(one.steps), one.layer.kind == "class"
    waiting: dict[int, _Open] = {}
    for members in tiles:
        for number, size in zip(members.fields.tolist(), members.sizes.tolist(), strict=True):
            field = waiting.setdefault(number, _Open())
            field.steps += total
            field.pixels += size
    ready: dict[int, _Open] = {}
    table = _class_table if classes else _table
    for tile, (start, last), result in _computed(_jobs(one, tiles)):
        for part, number in enumerate(tiles[tile].fields.tolist()):
            field = waiting[number]
            if classes:
                mine = result[result[:, 0] == part, 1:] + np.array([start, 0, 0])
                field.sums = mine if field.sums is None else np.concatenate([field.sums, mine])
            else:
                if field.sums is None:
                    field.sums = np.zeros((total, len(one.channels), 5))
                field.sums[start:last] += result[part]
            field.steps -= last - start
            if field.steps == 0:
                ready[number] = waiting.pop(number)
        if len(ready) >= AT_ONCE:
            yield table(one, fields, ready)
            ready = {}
    if ready:
        yield table(one, fields, ready)


def _table(one: _Series, fields: Fields, ready: dict[int, _Open]) -> pd.DataFrame:
    """Return a row per field, step and channel."""
    numbers = np.array(list(ready), np.int64)
    sums = np.stack([field.sums for field in ready.values()])
    pixels = np.array([field.pixels for field in ready.values()], np.int64)
    shape = sums.shape[:3]
    mean, spread = _moments(sums, one.layer)
    clear = np.full(shape, np.nan)
    if one.clear is not None:
        clear = sums[..., 4] / pixels[:, None, None]
    which, step, channel = (v.ravel() for v in np.indices(shape))
    return _frame(
        one,
        step,
        {
            "field": fields.ids[numbers[which]],
            "channel": np.array(one.channels, object)[channel],
            "mean": mean.ravel(),
            "spread": spread.ravel(),
            "count": sums[..., 0].ravel(),
            "pixels": pixels[which],
            "clear": clear.ravel(),
        },
    )


def _class_table(one: _Series, fields: Fields, ready: dict[int, _Open]) -> pd.DataFrame:
    """Return a row per field, step and class found: its share of the field's pixels with data."""
    numbers = np.array(list(ready), np.int64)
    pixels = np.array([field.pixels for field in ready.values()], np.int64)
    found = pd.DataFrame(
        np.concatenate([f.sums for f in ready.values()]), columns=["step", "code", "n"]
    )
    found["which"] = np.repeat(np.arange(len(numbers)), [len(f.sums) for f in ready.values()])
    # a field's tiles counted the same class apart
    counts = found.groupby(["which", "step", "code"], as_index=False)["n"].sum()
    total = counts.groupby(["which", "step"])["n"].transform("sum").to_numpy()
    which, step = counts["which"].to_numpy(), counts["step"].to_numpy()
    share = counts["n"].to_numpy() / total
    return _frame(
        one,
        step,
        {
            "field": fields.ids[numbers[which]],
            "channel": counts["code"].astype(str).to_numpy(object),
            "mean": share,
            "spread": np.sqrt(share * (1 - share)),
            "count": total,
            "pixels": pixels[which],
            "clear": np.full(len(counts), np.nan),
        },
    )


def _frame(one: _Series, step: Ints, columns: dict[str, Any]) -> pd.DataFrame:
    steps: dict[str, Any] = {str(n): column.to_numpy()[step] for n, column in one.steps.items()}
    out = pd.DataFrame({"layer": one.layer.name, **steps, **columns})[list(COLUMNS)]
    return out.astype({"count": "int32", "pixels": "int32", "clear": "float32"})


# --------------------------------------------------------------------------------------- extract


def extract(
    cube: Any,
    polygons: Any,
    *,
    layers: Sequence[str] | None = None,
    buffer: float = 0.0,
    field: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Return the time series of every polygon in every layer of a cube, as one long table.

    Nothing but sums is held: the cube is read tile by tile, each chunk once, on dask's scheduler of
    the moment (threads, or the cluster of an active client).

    Parameters
    ----------
    cube : DataTree or path
        A cube, lazy or opened from a store; or a store's folder.
    polygons : path, GeoDataFrame or GeoSeries
        Fields in any CRS, see `cubes.fields.vectors.read_vectors`. A pixel belongs to every
        field that contains its centre; fields may overlap.
    layers : sequence of str, optional
        Such as ``("s1/backscatter", "s2/reflectance")``; every layer but ``s2/clear`` by default.
    buffer : float
        Metres by which fields grow; negative: shrink, which leaves out mixed pixels at edges.
    field : str, optional
        Column of unique field ids; the table's index by default.
    path : path, optional
        Write the series there as Parquet while they are made, and return the table of fields only.

    Returns
    -------
    pandas.DataFrame
        One row per field, layer, channel and step: ``field``; ``layer``; ``channel`` (band,
        polarisation, or class code); ``time`` (datetime64[ns] UTC; of a pair its second pass; NaT
        for static layers); ``step`` (label of a pair, track or year, else empty); ``track`` (such
        as ``132A``); ``mean`` in the layer's units; ``spread``; ``count`` (pixels used);
        ``pixels`` (of the field on the grid); ``clear`` (share of them that is clear, NaN where the
        group has no mask). Pixels without data are left out, those not clear too where the group
        has a ``clear`` mask; with none left ``mean`` is NaN and ``count`` 0. By kind of layer:

        * backscatter: mean in linear power, given in dB; spread the standard deviation of the dB;
        * phase: circular mean and circular standard deviation, radians, sqrt(-2 ln R) with R the
          length of the mean of e^(i phi) (Mardia and Jupp 2000, Directional Statistics);
        * classes: a row per class that occurs, mean its share, spread sqrt(p (1 - p));
        * others: mean and (population) standard deviation.

        Sorted by field as given, then layer, channel and step. With `path`: one row per field,
        ``field`` and ``pixels``; the file is sorted by layer and holds the fields in the order in
        which they were done. In both, ``attrs["unmatched"]`` lists the fields that touch the grid
        but hold no pixel centre, ``attrs["clipped"]`` those that reach beyond it, and ``units``
        (of ``mean``, by layer), ``crs`` (of the grid) and ``buffer`` say what the numbers are; a
        file has all of them too: ``pandas.read_parquet(path).attrs``.

    Raises
    ------
    CubeError
        Unknown layer or column; ids that repeat; no field on the grid, or none with a pixel.
    """
    tree = cube if isinstance(cube, xr.DataTree) else store.open(cube, chunks=None)
    names = _names(tree, layers)
    fields = on_grid(polygons, grid_of(tree), buffer=buffer, field=field)
    tilings: dict[tuple[tuple[int, ...], ...], list[Members]] = {}

    def tables() -> Iterator[pd.DataFrame]:
        for name in names:
            one = _series(tree, name)
            edges = tuple(tuple(e) for e in one.edges())
            if edges not in tilings:
                tilings[edges] = fields.tiles(*edges)
            # a class layer without data has no rows, nor types for a file to begin with
            yield from (t for t in _rows(one, fields, tilings[edges]) if len(t))

    first = fields.tiles(*(_every(n, TILE) for n in fields.box.shape))
    tilings[tuple(tuple(_every(n, TILE)) for n in fields.box.shape)] = first
    found = summary(fields, first)
    if path is None:
        rows = list(tables())
        out = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(COLUMNS))
        out = _sorted(out, fields, names)
    else:
        out = found
    crs = fields.box.crs
    code = crs.epsg if crs is not None else None
    told: dict[Any, Any] = {
        "units": {n: _units(tree, n) for n in names},
        "crs": f"EPSG:{code}" if code else str(crs),
    }
    out.attrs = {**found.attrs, "buffer": buffer, **told}
    if path is not None:
        write_tables(tables(), Path(path), {str(k): v for k, v in out.attrs.items()})
    return out


def _sorted(table: pd.DataFrame, fields: Fields, names: Sequence[str]) -> pd.DataFrame:
    places = pd.Series(np.arange(len(fields.ids)), index=fields.ids)
    layers = {name: i for i, name in enumerate(names)}
    # rows of one layer are in step and channel order already; a stable sort keeps it
    codes = pd.to_numeric(table["channel"], errors="coerce").to_numpy(np.float64)
    channel = np.where(np.isnan(codes), pd.factorize(table["channel"])[0], codes)
    order = np.lexsort(
        (channel, table["layer"].map(layers.get).to_numpy(), places.loc[table["field"]].to_numpy())
    )
    return table.iloc[order].reset_index(drop=True)


def _units(tree: xr.DataTree, name: str) -> str:
    """Return the units of ``mean`` of a layer: those it states, shares of classes "1"."""
    group, variable = name.split("/")
    data = tree[group].to_dataset()[variable]
    layer = registry.layers().get(name) or _guessed(name, data)
    return "1" if layer.kind in ("class", "mask") else str(data.attrs.get("units", ""))
