"""What sampling knows of a store: layers, clocks, which step belongs to which, what is valid.

Built once per store from coordinates and the ledger's table of counts; reads no pixel, keeps no
open file, and is small enough to pickle to a worker.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from cubes import registry, stream
from cubes.types import CubeError, Layer

EPOCH = np.datetime64("2000-01-01", "ns")
"""Days are counted from here (float64: 1e-5 s still resolved in 2100)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One layer in one store: its row, where its array lies, and how its steps are found."""

    layer: Layer
    path: str
    identity: str
    """sha256 of the array's ``zarr.json``."""
    clock: str | None
    """Group whose dates pick the steps (``s1`` also for ``insar`` where the cube has both); None
    for tracks, years and static layers, which have no dates."""
    steps: np.ndarray | None
    """(step of the clock,) int32: step of this array for each step of its clock, -1 where there
    is none; None where they are the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreIndex:
    """What sampling needs to know of one store."""

    path: str
    identity: str
    """Hash over every ``zarr.json``: names the arrays these samples were planned on."""
    aoi: str
    crs: str
    shape: tuple[int, int]
    transform: tuple[float, ...]
    """Affine coefficients a, b, c, d, e, f of pixel corners."""
    entries: Mapping[str, Entry]
    """Layer name -> entry."""
    days: Mapping[str, np.ndarray]
    """Clock -> (step,) float64 days since 2000-01-01, ascending."""
    track: np.ndarray | None
    """(step of s1,) int16: which plane of the per-track layers a date belongs to."""
    years: tuple[int, ...]
    """Years of the labels."""

    def corner(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return easting and northing (float64, CRS units) of pixel corners."""
        a, b, c, d, e, f = self.transform
        return a * x + b * y + c, d * x + e * y + f


def days_since(times: Any) -> np.ndarray:
    """Return float64 days since 2000-01-01 of datetime64 values."""
    return (np.asarray(times, "datetime64[ns]") - EPOCH) / np.timedelta64(1, "D")


def index(store: str | Path) -> StoreIndex:
    """Return what sampling needs to know of `store`; reads coordinates and no pixel.

    Raises
    ------
    CubeError
        No cube there, or not sealed.
    """
    path = Path(store)
    if not path.is_dir():
        raise CubeError(f"there is no store at {path}; write one with cubes.write")
    tree = _tree(path)
    arrays = {
        f"{group}/{name}": (stream.StoredArray(path / group / str(name)), group)
        for group in sorted(tree.children)
        for name, variable in sorted(tree[group].data_vars.items())
        if variable.dims[-2:] == ("y", "x")
    }
    if not arrays:
        raise CubeError(f"{path} has no layer (y, x) in its groups; is it a cube?")
    clocks = _clocks(tree)
    pairs, track = _pairs(tree, clocks), _tracks(tree)
    entries = {}
    for name, (array, group) in arrays.items():
        layer = _layer(name, array, tree[group].to_dataset())
        clock = group if layer.stack_dim == "time" else None
        steps = None
        if layer.stack_dim == "pair":
            clock = "s1" if "s1" in clocks else group
            steps = pairs if clock == "s1" else None
        entries[name] = Entry(
            layer=layer, path=array.path, identity=array.identity, clock=clock, steps=steps
        )
    used = {e.clock for e in entries.values()}
    first = next(iter(arrays.values()))[0]
    geobox = tree[next(iter(tree.children))].to_dataset().odc.geobox
    if geobox is None or geobox.crs is None:
        raise CubeError(f"{path} has no CRS (spatial_ref); write the cube with cubes.write")
    years = tree["labels"]["year"].to_numpy() if "labels" in tree.children else ()
    identities = sorted((name, e.identity) for name, e in entries.items())
    return StoreIndex(
        path=str(path),
        identity=hashlib.sha256(repr(identities).encode()).hexdigest(),
        aoi=str(tree.attrs.get("aoi", path.stem)),
        crs=str(geobox.crs),
        shape=first.shape[2:],
        transform=tuple(geobox.transform)[:6],
        entries=entries,
        days={k: v for k, v in clocks.items() if k in used},
        track=track,
        years=tuple(int(y) for y in np.asarray(years)),
    )


def _tree(path: Path) -> xr.DataTree:
    """Return the store's coordinates (pixels stay where they are)."""
    import odc.geo.xr  # noqa: F401  registers .odc

    return xr.open_datatree(path, engine="zarr", chunks=None)


def _clocks(tree: xr.DataTree) -> dict[str, np.ndarray]:
    clocks = {g: days_since(tree[g]["time"].to_numpy()) for g in tree.children if "time" in tree[g]}
    if "insar" in tree.children and "s1" not in clocks:
        clocks["insar"] = days_since(tree["insar"]["secondary_time"].to_numpy())
    for name, days in clocks.items():
        if (np.diff(days) < 0).any():
            raise CubeError(f"the dates of {name} are not ascending; sort them before writing")
    return clocks


def _pairs(tree: xr.DataTree, clocks: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return for each S1 date the pair that ends there: same track, shortest baseline, or -1."""
    if "insar" not in tree.children or "s1" not in clocks:
        return None
    insar, s1 = tree["insar"].to_dataset(), tree["s1"].to_dataset()
    second, first = (days_since(insar[f"{k}_time"].to_numpy()) for k in ("secondary", "reference"))
    # The same acquisition can carry two time stamps some seconds apart (granule against burst);
    # two passes of one track are days apart.
    same = np.abs(clocks["s1"][:, None] - second[None, :]) < 0.25
    for name in ("relative_orbit", "orbit_state"):
        if name in s1 and name in insar:
            same &= s1[name].to_numpy()[:, None] == insar[name].to_numpy()[None, :]
    span = np.where(same, np.abs(second - first)[None, :], np.inf)
    return np.where(same.any(axis=1), span.argmin(axis=1), -1).astype(np.int32)


def _tracks(tree: xr.DataTree) -> np.ndarray | None:
    """Return for each S1 date the plane of the per-track layers, or -1."""
    if "s1" not in tree.children or "track" not in tree["s1"].dims:
        return None
    s1 = tree["s1"].to_dataset()
    labels = [str(v) for v in s1["track"].to_numpy()]
    orbit = [str(v)[:1].upper() for v in s1["orbit_state"].to_numpy()]
    names = [f"{int(r)}{o}" for r, o in zip(s1["relative_orbit"].to_numpy(), orbit, strict=True)]
    return np.array([labels.index(n) if n in labels else -1 for n in names], np.int16)


def _layer(name: str, array: stream.StoredArray, group: xr.Dataset) -> Layer:
    """Return the layer's row with the channels and the dtype that this store holds."""
    row = registry.layer(name)
    if row.channel_dim is not None:
        row = replace(row, channels=tuple(str(c) for c in group[row.channel_dim].to_numpy()))
    if array.dtype != np.dtype(row.dtype):
        raise CubeError(
            f"{array.path} holds {array.dtype}, and the row of {name} says {row.dtype}: samples "
            "are stored integers; write the cube without Layout(lossless=True)"
        )
    return row


def fractions(store: StoreIndex, name: str) -> tuple[np.ndarray, int]:
    """Return the valid pixels of each step and patch of a layer, from the ledger's table.

    Returns
    -------
    counts
        (step, patch row, patch column) int64 pixels.
    patch
        Edge of a patch in pixels.

    Raises
    ------
    CubeError
        The store has no such table.
    """
    try:
        with np.load(Path(store.path) / "__cubes__" / "valid.npz") as table:
            return table[name].astype(np.int64), int(table["patch"])
    except (FileNotFoundError, KeyError) as error:
        raise CubeError(
            f"{store.path} has no counts of valid pixels for {name}: write it with cubes.write"
        ) from error


def instant(days: float) -> pd.Timestamp:
    """Return the UTC time (tz-naive) of days since 2000-01-01."""
    return pd.Timestamp(EPOCH) + pd.Timedelta(days, unit="D")
