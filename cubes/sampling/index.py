"""What sampling knows of a store: layers, clocks, which step belongs to which, what is valid.

Built once per store from coordinates and the ledger's table of counts; reads no pixel, keeps no
open file, and is small enough to pickle to a worker.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cubes import registry
from cubes.sampling import inflight, remote, stored
from cubes.sampling.inflight import Storage
from cubes.store import layout, ledger, opened
from cubes.types import CubeError, Layer, Legend, Plan

_Axes = Mapping[tuple[str, str], Mapping[str, tuple[Any, ...]]]

FORM = ("dims", "kind", "dtype", "scale", "offset", "nodata", "units", "legend")
"""What of a row decides what a stored number means; stores that differ in it cannot be mixed."""

EPOCH = np.datetime64("2000-01-01", "ns")
"""Days are counted from here (float64: 1e-5 s still resolved in 2100)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One layer in one store: its row, where its array lies, and how its steps are found."""

    layer: Layer
    path: str
    identity: str
    """sha256 of the array's ``zarr.json``."""
    length: int
    """Steps of the array."""
    recorded: np.ndarray | None
    """(step block, row, column) bool: which objects the ledger records, so that a lost one is not
    taken for one that was all nodata; None: all of them. On an object store int64, their sizes."""
    clock: str | None
    """Group whose dates pick the steps (``s1`` also for ``insar`` where the cube has both); None
    for tracks, years and static layers, which have no dates."""
    steps: np.ndarray | None
    """(step of the clock,) int32: step of this array for each step of its clock, -1 where there
    is none; None where they are the same."""
    since: np.ndarray | None = None
    """(step of the clock,) float64: day of the earlier acquisition of a pair, NaN where there is
    no pair; None of other layers."""
    years: tuple[int, ...] = ()
    """Of a layer with a plane a year."""
    calibration: str = ""
    """Of backscatter; stores that differ in it cannot be mixed."""
    legend: Legend | None = None
    """Of a class layer, as the store's plan carries it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreIndex:
    """What sampling needs to know of one store."""

    path: str
    identity: str
    """Tree hash of the sealed store: names the bytes these samples were planned on."""
    aoi: str
    crs: str
    shape: tuple[int, int]
    transform: tuple[float, ...]
    """Affine coefficients a, b, c, d, e, f of pixel corners."""
    shard: tuple[int, int, int]
    """Steps, rows and columns of an object of the arrays with dates."""
    entries: Mapping[str, Entry]
    """Layer name -> entry."""
    days: Mapping[str, np.ndarray]
    """Clock -> (step,) float64 days since 2000-01-01, ascending."""
    track: np.ndarray | None
    """(step of s1,) int16: which plane of the per-track layers a date belongs to."""
    storage: Storage | None = None
    """How it is read, if `path` is the URL of a cube on an object store."""

    @property
    def folder(self) -> str:
        """Folder of its metadata and ledger: its own, or a copy of what lies at the URL."""
        if self.storage is None:
            return self.path
        return str(remote.ledger_of(self.path, self.storage, self.identity))

    def open(self, batch: int = 0) -> stored.SealedStore:
        """Return the store, after a look at its seal (see `stored`, and `remote` for URLs).

        Parameters
        ----------
        batch
            Bytes of one batch, which a cache must have room for.

        Raises
        ------
        CubeError
            The store was written again since, or is not sealed; a cache that cannot be used.
        """
        if self.storage is None:
            return stored.sealed_store(self.path, self.identity)
        return remote.sealed_store(self.path, self.identity, self.storage, batch)

    def array(self, name: str) -> stored.StoredArray:
        """Return a layer's array, open for reading.

        Raises
        ------
        CubeError
            The store was written again since, or is not sealed.
        """
        entry = self.entries[name]
        return self.open().array(entry.path, entry.identity, entry.recorded)

    def corner(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return easting and northing (float64, CRS units) of pixel corners."""
        a, b, c, d, e, f = self.transform
        return a * x + b * y + c, d * x + e * y + f

    def lonlat(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Return (n, 2) float64 degrees of pixel corners."""
        return np.stack(_to_lonlat(self.crs).transform(*self.corner(y, x)), axis=1)


_local = threading.local()


def _to_lonlat(crs: str) -> Any:
    """Return this thread's own transformer to degrees: pyproj's are not safe in several."""
    from pyproj import Transformer

    made: dict[str, Any] = _local.__dict__.setdefault("made", {})
    if crs not in made:
        made[crs] = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    return made[crs]


def days_since(times: Iterable[Any]) -> np.ndarray:
    """Return float64 days since 2000-01-01 of ISO times (UTC where they name no zone)."""
    stamps = pd.to_datetime(list(times), utc=True, format="ISO8601").tz_localize(None)
    days: np.ndarray = (stamps.to_numpy("datetime64[ns]") - EPOCH) / np.timedelta64(1, "D")
    return days


def length(name: str, value: Any, example: str) -> float:
    """Return a length of time such as ``"30D"`` in days.

    Raises
    ------
    CubeError
        Negative, or no length; a plain number would be one of nanoseconds.
    """
    days = math.nan
    if isinstance(value, str) and not value.strip().lstrip("+-").replace(".", "").isdigit():
        try:
            days = float(pd.Timedelta(value) / pd.Timedelta(1, "D"))
        except ValueError:
            days = math.nan
    if not days >= 0:
        raise CubeError(
            f"{name}={value!r} is no length of time of 0 or more, with its unit; write it such as "
            f"{example!r}"
        )
    return days


def index(store: str | os.PathLike[str], storage: Storage | None = None) -> StoreIndex:
    """Return what sampling needs to know of `store`: its plan, and what lies where; no pixel.

    Parameters
    ----------
    store
        A folder, or the URL of a cube on an object store; of that the ledger and the metadata are
        fetched, and objects that were lost are found when they are read.
    storage
        How a URL is read.

    Raises
    ------
    CubeError
        No cube there, not sealed, objects lost, its ledger changed, or stored in working numbers.
    """
    if not inflight.is_url(store):
        return _index(store)
    url, storage = os.fspath(store).rstrip("/"), storage or Storage()
    inflight.kept(storage)
    folder = remote.ledger_of(url, storage)
    try:
        found = _index(folder, url)
    except CubeError as error:
        remote.forget(folder)
        raise CubeError(str(error).replace(str(folder), url)) from None
    return replace(found, storage=storage)


def _index(store: str | os.PathLike[str], url: str | None = None) -> StoreIndex:
    build = ledger.load_build(store)
    seal = ledger.sealed(build)
    if seal is None:
        raise CubeError(
            f"{build.store} is not finished (not sealed): run cubes.write again before planning "
            "samples on it"
        )
    ledger.refuse_broken(build)
    gone = opened.lost(build) if url is None else ()
    if gone:
        raise CubeError(
            f"{build.store} lacks {len(gone)} objects that were written, first {gone[0]}: run "
            "cubes.repair on it, then plan again"
        )
    plan = ledger.build_plan(build)
    axes = {(a.group, a.dim): a.coords for a in plan.axes}
    clocks = _clocks(axes)
    table = _table(str(build.store), str(seal["tree_sha256"]))
    recorded = _recorded(build, table, np.dtype(bool if url is None else np.int64))
    place = str(build.store) if url is None else url
    entries, shard = {}, (1, 1, 1)
    for name, array in ledger.build_arrays(build).items():
        if array.lossless and array.layer.dtype != plan.array(name).layer.dtype:
            raise CubeError(
                f"{build.store} holds {name} in working numbers ({array.layer.dtype}): samples are "
                "stored integers; write the cube without Layout(lossless=True)"
            )
        found = stored.StoredArray(build.store / name)
        clock = array.layer.group if array.layer.stack_dim == "time" else None
        shard = max(shard, (found.shard[0], found.shard[2], found.shard[3]))
        steps = since = None
        if array.layer.stack_dim == "pair":
            clock = "s1" if "s1" in clocks else array.layer.group
            steps = _pairs(axes, clocks, array.layer.group) if clock == "s1" else None
            since = days_since(axes[array.layer.group, "pair"]["reference_time"])
            since = since if steps is None else np.where(steps >= 0, since[steps], np.nan)
        entries[name] = Entry(
            layer=array.layer,
            path=f"{place}/{name}",
            identity=found.identity,
            length=array.steps,
            recorded=recorded[name],
            clock=clock,
            steps=steps,
            since=since,
            years=tuple(int(y) for y in axes.get((array.layer.group, "year"), {}).get("year", ())),
            calibration=str(plan.array(name).attrs.get("calibration", "")),
            legend=_legend(name, plan),
        )
    used = {e.clock for e in entries.values()}
    return StoreIndex(
        path=place,
        identity=str(seal["tree_sha256"]),
        aoi=str(plan.attrs.get("aoi", Path(place).stem)),
        crs=str(plan.geobox.crs),
        shape=(int(plan.geobox.shape[0]), int(plan.geobox.shape[1])),
        transform=tuple(float(v) for v in tuple(plan.geobox.transform)[:6]),
        shard=shard,
        entries=entries,
        days={k: v for k, v in clocks.items() if k in used},
        track=_tracks(axes) if "s1" in used else None,
    )


def _legend(name: str, plan: Plan) -> Legend | None:
    """Return the legend that a plan carries of a layer, in itself or on the array."""
    array = plan.array(name)
    if registry.CARRIED in array.attrs:
        return Legend.from_json(str(array.attrs[registry.CARRIED]))
    return next((v for v in plan.legends if v.name == array.layer.legend), None)


def legend_of(stores: Iterable[StoreIndex], name: str) -> Legend:
    """Return the legend of a class layer of stores: the one they were written with.

    Raises
    ------
    CubeError
        They carry none, and none of its name is known here.
    """
    entries = [s.entries[name] for s in stores if name in s.entries]
    found = next((e.legend for e in entries if e.legend is not None), None)
    if found is None:
        found = registry.legend(entries[0].layer.legend or entries[0].layer.variable)
    return found


def alignment(
    plan: Plan,
) -> tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray | None]:
    """Return how the steps of a cube belong together.

    Returns
    -------
    clocks
        Group -> days since 2000-01-01 of its dates, float64, ascending.
    pairs
        For each Sentinel-1 date the interferometric pair that ends there, int32, -1 where none;
        None without pairs.
    track
        For each Sentinel-1 date its plane of the per-track layers, int16, -1 where none; None
        without such layers.
    """
    axes = {(a.group, a.dim): a.coords for a in plan.axes}
    clocks = _clocks(axes)
    return clocks, _pairs(axes, clocks), _tracks(axes)


def _clocks(axes: _Axes) -> dict[str, np.ndarray]:
    clocks = {g: days_since(c["time"]) for (g, dim), c in axes.items() if dim == "time"}
    for (group, dim), coords in axes.items():
        if dim == "pair" and "s1" not in clocks:
            clocks[group] = days_since(coords["secondary_time"])
    for name, days in clocks.items():
        if not (np.diff(days) >= 0).all():
            raise CubeError(f"the dates of {name} are not ascending; sort them before writing")
    return clocks


def _pairs(
    axes: _Axes, clocks: Mapping[str, np.ndarray], group: str = "insar"
) -> np.ndarray | None:
    """Return for each S1 date the pair that ends there: same track, shortest baseline, or -1."""
    insar, s1 = axes.get((group, "pair")), axes.get(("s1", "time"))
    if insar is None or s1 is None:
        return None
    second, first = (days_since(insar[f"{k}_time"]) for k in ("secondary", "reference"))
    # The same acquisition can carry two time stamps some seconds apart (granule against burst);
    # two passes of one track are days apart.
    same = np.abs(clocks["s1"][:, None] - second[None, :]) < 0.25
    for name in ("relative_orbit", "orbit_state"):
        if name in s1 and name in insar:
            same &= np.array(s1[name], object)[:, None] == np.array(insar[name], object)[None, :]
    span = np.where(same, np.abs(second - first)[None, :], np.inf)
    return np.where(same.any(axis=1), span.argmin(axis=1), -1).astype(np.int32)


def _tracks(axes: _Axes) -> np.ndarray | None:
    """Return for each S1 date the plane of the per-track layers, or -1."""
    tracks, s1 = axes.get(("s1", "track")), axes.get(("s1", "time"))
    if tracks is None or s1 is None:
        return None
    # By label ("132A"): other coordinates of the two axes may share a name and carry a prefix.
    planes = {str(label): i for i, label in enumerate(tracks["track"])}
    dates = zip(s1["relative_orbit"], s1["orbit_state"], strict=True)
    names = [f"{orbit}{str(state)[:1].upper()}" for orbit, state in dates]
    return np.array([planes.get(name, -1) for name in names], np.int16)


@lru_cache(maxsize=1)
def _table(path: str, identity: str) -> ledger.Table:
    """Return the ledger's table of a sealed store; `identity` tells apart what lay at this path."""
    build = ledger.load_build(path)
    table = ledger.load_table(build)
    seal = ledger.sealed(build)
    if seal is None or seal["tree_sha256"] != identity:
        raise CubeError(f"{path} is being written again: wait until it is sealed, then plan again")
    return table


def _recorded(
    build: ledger.Build, table: ledger.Table, dtype: np.dtype[Any]
) -> dict[str, np.ndarray | None]:
    """Return layer -> (step block, row, column): the objects recorded, or their sizes.

    As bool None where all are.
    """
    out: dict[str, np.ndarray | None] = {}
    arrays = ledger.build_arrays(build)
    every = {
        name: np.zeros((-(-a.steps // a.steps_per_shard), *layout.patch_grid(a)), dtype)
        for name, a in arrays.items()
    }
    for key, (_, size) in table.objects.items():
        name, _, place = key.partition("/c/")
        if name in every and place:
            numbers = [int(n) for n in place.split("/")]
            block = numbers[0] if arrays[name].layer.stack_dim else 0
            every[name][block, numbers[-2], numbers[-1]] = size
    for name, found in every.items():
        out[name] = None if dtype.kind == "b" and found.all() else found
    return out


def fractions(
    store: StoreIndex, names: Iterable[str]
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the share of each cell and step that holds data (of masks: that is True).

    Returns
    -------
    shares
        Layer -> (step, cell row, cell column) float32, 0 to 1; from the ledger, no pixel is read.
        ``name=code`` asks for one class of a label layer.
    edges
        Layer -> edge of a cell in pixels.
    """
    folder = store.folder
    table = _table(folder, store.identity)
    arrays = ledger.build_arrays(ledger.load_build(folder))
    shares, edges = {}, {}
    for name in names:
        of = name.partition("=")[0]
        parts = layout.cells(arrays[of])
        # of cells beyond a ragged edge there is no pixel, and no window has one of them
        numbers = np.maximum(parts.numbers, 1).astype(np.float32)
        # a class that occurs nowhere in the store has no counts
        shares[name] = table.valid.get(name, np.zeros_like(table.valid[of])) / numbers
        edges[name] = parts.edge
    return shares, edges


def all_classes(store: StoreIndex, name: str) -> bool:
    """Return whether every pixel that the ledger counts in a label layer is counted by class."""
    table = _table(store.folder, store.identity)
    own, *classes = layout.counted(table.valid, name)
    total = sum(int(table.valid[c].sum(dtype=np.int64)) for c in classes)
    return total == int(table.valid[own].sum(dtype=np.int64))


def common_layers(stores: Iterable[StoreIndex]) -> dict[str, Layer]:
    """Return the layers of stores by name, in the order in which samples are read.

    Raises
    ------
    CubeError
        Stores hold one in different forms: calibration, channels, legend, or what a number means.
    """
    layers: dict[str, Layer] = {}
    first: dict[str, tuple[str, str]] = {}
    legends: dict[str, tuple[Legend, str]] = {}
    for store in stores:
        for name, entry in store.entries.items():
            known = layers.setdefault(name, entry.layer)
            calibration, path = first.setdefault(name, (entry.calibration, store.path))
            if calibration != entry.calibration:
                raise CubeError(
                    f"{store.path} has {name} as {entry.calibration or 'nothing stated'}, and "
                    f"{path} as {calibration or 'nothing stated'}: calibrations do not mix; plan "
                    "these stores apart"
                )
            if entry.legend is not None:
                legend, path_ = legends.setdefault(name, (entry.legend, store.path))
                if legend is not entry.legend and legend != entry.legend:
                    raise CubeError(
                        f"{store.path} has {name} by another legend {entry.legend.name!r} than "
                        f"{path_}: {legend.differing(entry.legend)}; plan these stores apart, or "
                        "write one again with the other's legend"
                    )
            if known.channels != entry.layer.channels:
                raise CubeError(
                    f"{store.path} has {name} with channels {', '.join(entry.layer.channels)}, "
                    f"another store with {', '.join(known.channels)}: plan them apart"
                )
            for part in FORM:
                ours, theirs = getattr(known, part), getattr(entry.layer, part)
                nan = all(isinstance(v, float) and math.isnan(v) for v in (ours, theirs))
                if ours != theirs and not nan:
                    raise CubeError(
                        f"{store.path} has {name} with {part} {theirs!r}, and {path} with "
                        f"{ours!r}: one array cannot hold both; plan these stores apart, or write "
                        "one again with the other's row"
                    )
    # in the registry's order; rows of a user's own that it does not know here come last, by name
    order = {name: number for number, name in enumerate(registry.layers())}
    return dict(sorted(layers.items(), key=lambda kv: (order.get(kv[0], len(order)), kv[0])))


def instant(days: float) -> pd.Timestamp:
    """Return the UTC time (tz-naive) of days since 2000-01-01."""
    # float64 days know a date to 0.2 microseconds; nobody states more than milliseconds
    return pd.Timestamp(EPOCH) + pd.Timedelta(round(days * 86_400_000), unit="ms")
