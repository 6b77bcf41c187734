"""What a person asks for: from names and plain values to a plan, and to a lazy cube."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from cubes import grid as grids
from cubes import plans, registry
from cubes.cube import BLOCK, legends_of, open_plan
from cubes.reading.access import without_secrets
from cubes.stac import search as stac
from cubes.stac.items import in_hand, self_href
from cubes.times import time_range
from cubes.types import AOI, Catalog, ClearPolicy, CubeError, Grid, Layer, OnMissing, Plan

DEFAULT_LAYERS = ("s1/backscatter", "s2/reflectance", "s2/scl", "s2/clear")

READ_RATE = 60e6
"""Source bytes per second and core assumed when the time of a build is estimated; order of
magnitude for deflate COGs on local disk, network is slower."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Request:
    """What a person asks for; frozen and hashable. `plan` searches, `open` makes the lazy cube."""

    aoi: AOI
    time: tuple[str, str]
    """First and last moment, ISO 8601, UTC."""
    layers: tuple[Layer, ...]
    catalog: Catalog
    grid: Grid = field(default_factory=Grid)
    on_missing: OnMissing = "raise"
    """An asset missing from an item: ``raise``, or ``mask`` its pixels and say so."""
    clear: ClearPolicy = field(default_factory=ClearPolicy)
    reader: Literal["odc", "stackstac"] = "odc"
    max_gib: float = 200.0
    """Refuse a cube that would be larger than this on disk, uncompressed."""
    items: tuple[str, ...] | None = None
    """JSON of STAC items in hand, in place of searching."""

    def __eq__(self, other: object) -> bool:
        """Return whether the two decide the same cube.

        By hash: rows hold NaN as nodata, which equals nothing (from Python 3.13 on not even itself
        inside a dataclass).
        """
        return isinstance(other, Request) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        """Return a hash of what decides the cube."""
        return hash(self.sha256)

    def __repr__(self) -> str:
        """Return area, time, layers and catalogue on one line."""
        layers = ", ".join(v.name for v in self.layers)
        return (
            f"<Request of {self.aoi.name!r}, {self.time[0]} .. {self.time[1]}, from "
            f"{self.catalog.name!r}: {layers}>"
        )

    @property
    def sha256(self) -> str:
        """Hash of every field, the same in every process."""
        body = asdict(replace(self, grid=replace(self.grid, geobox=None)))
        body["geobox"] = repr(self.grid.geobox)
        return hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode()).hexdigest()

    @staticmethod
    def of(
        aoi: Any,
        time: Any,
        layers: Iterable[str | Layer] | None = None,
        *,
        catalog: str | Path | Catalog = "planetary-computer",
        **request: Any,
    ) -> Request:
        """Return a request from names, objects and plain values.

        Parameters
        ----------
        aoi : AOI or anything `cubes.aoi` takes
            The area.
        time : str, tuple or slice
            ``"2020-03/2020-10"``, ``("2020-03-01", "2020-10-31")`` or one ``"2020"``; the last
            day, month or year is included whole. UTC.
        layers : iterable of str or Layer, optional
            Default: backscatter, reflectance, scene classification and the clear mask.
        catalog : str, path or Catalog
            Name, TOML file with one catalogue, or the object.
        **request
            ``bands``, ``pols``: channels in place of the default ones. ``grid``: a `Grid` or a
            GeoBox. ``like``: an xarray object to lie on. ``size``: edge in metres of the square
            around a point. ``items``: STAC items in hand. ``on_missing``, ``clear``, ``reader``,
            ``max_gib``: see the fields.

        Raises
        ------
        CubeError
            Anything unknown or contradictory, before any work.
        """
        return _request(aoi, time, layers, catalog, request)

    def geobox(self) -> Any:
        """Return the exact pixel grid."""
        return grids.geobox(self.aoi, self.grid)

    def plan(self) -> Plan:
        """Return the plan: searches the catalogue, reads no pixel.

        Raises
        ------
        CubeError
            Nothing found; an asset missing; a cube over ``max_gib``.
        """
        box = self.geobox()
        _refuse_if_huge(self, box, {})
        want = plans.Want(
            layers=self.layers,
            catalog=self.catalog,
            crs=str(box.crs),
            time=self.time,
            on_missing=self.on_missing,
        )
        axes, arrays, missing = plans.arrays(want, self._search(grids.lonlat_bounds(box)))
        plan = Plan(
            geobox=box,
            axes=tuple(axes),
            arrays=tuple(arrays),
            clear=self.clear,
            access=self.catalog.access,
            attrs={
                "aoi": self.aoi.name,
                "aoi_wkt": self.aoi.wkt,
                "time": list(self.time),
                "catalog": self.catalog.name,
                "catalog_url": without_secrets(self.catalog.url),
            },
            missing=tuple(missing),
            legends=legends_of(self.layers),
        )
        _refuse_if_huge(self, box, {(a.group, a.dim): len(a) for a in axes})
        return plan

    def _search(self, bounds: tuple[float, float, float, float]) -> plans.Search:
        where: Any = self.catalog
        if self.items is not None:
            where = [json.loads(i) for i in self.items]

        def search(collection: str, timed: bool, query: Mapping[str, Any]) -> pd.DataFrame:
            return stac.granules(
                where,
                collection,
                bbox=bounds,
                time=self.time if timed else None,
                query=query,
            )

        return search

    def open(self) -> xr.DataTree:
        """Return the lazy cube of this request; see `open_aoi`."""
        return open_plan(self.plan(), reader=self.reader)


_OPTIONS = ("on_missing", "clear", "reader", "max_gib")


def _request(
    aoi: Any,
    time: Any,
    layers: Iterable[str | Layer] | None,
    catalog: str | Path | Catalog,
    given: dict[str, Any],
) -> Request:
    known = ("bands", "pols", "grid", "like", "size", "items", *_OPTIONS)
    for key in given:
        if key not in known:
            raise CubeError(f"unknown option {key!r}; known: {', '.join(known)}")
    _one_of("on_missing", given.get("on_missing", "raise"), ("raise", "mask"))
    _one_of("reader", given.get("reader", "odc"), ("odc", "stackstac"))
    row = registry.catalog(catalog)
    if layers is not None and not isinstance(layers, str | Layer):
        layers = tuple(layers)
        if not layers:
            raise CubeError(
                f"layers=() asks for nothing; leave it out for {', '.join(DEFAULT_LAYERS)}, or "
                f"choose from {', '.join(registry.layers())}"
            )
    chosen = _layers(layers or DEFAULT_LAYERS, given.get("bands"), given.get("pols"))
    for layer in chosen:
        if layer.derived_from is None:
            plans.product_of(layer, row)
    items = given.get("items")
    return Request(
        aoi=grids.as_aoi(aoi, size=given.get("size")),
        time=time_range(time),
        layers=chosen,
        catalog=row,
        grid=_grid(given.get("grid"), given.get("like")),
        items=None if items is None else _items_json(items),
        **{k: given[k] for k in _OPTIONS if k in given},
    )


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise CubeError(f"{name}={value!r} is not one of {', '.join(allowed)}")


def _items_json(items: Any) -> tuple[str, ...]:
    """Return items in hand, in any form that a search takes, as JSON with absolute hrefs."""
    return tuple(json.dumps(_standing(*found), sort_keys=True) for found in in_hand(items))


def _standing(body: Mapping[str, Any], base: str | None) -> Mapping[str, Any]:
    """Return an item that says itself where it stands, for the sake of its relative hrefs."""
    if base is None or self_href(body) is not None:
        return body
    return {**body, "links": [*body.get("links", ()), {"rel": "self", "href": base}]}


def _grid(grid: Any, like: Any) -> Grid:
    if like is not None:
        if grid is not None:
            raise CubeError("give grid= or like=, not both")
        return grids.like(like)
    if grid is None:
        return Grid()
    return grid if isinstance(grid, Grid) else Grid(geobox=grid)


def _layers(
    names: Iterable[str | Layer], bands: Sequence[str] | None, pols: Sequence[str] | None
) -> tuple[Layer, ...]:
    """Return the rows of `names` with the channels asked for, and what derived layers need."""
    if isinstance(names, str | Layer):
        names = (names,)
    out: dict[str, Layer] = {}
    for name in names:
        layer = registry.layer(name)
        parent = layer.derived_from
        if parent and parent not in out:
            out[parent] = registry.layer(parent)
        wanted = {"band": bands, "pol": pols}.get(layer.channel_dim or "")
        if wanted and not isinstance(name, Layer):
            every = replace(layer, channels=registry.all_channels(layer.name))
            layer = every.pick(tuple([wanted] if isinstance(wanted, str) else wanted))
        out[layer.name] = layer
    # parents first: a derived layer is computed from what stands before it
    return tuple(sorted(out.values(), key=lambda v: v.derived_from is not None))


def _refuse_if_huge(request: Request, box: Any, steps: Mapping[tuple[str, str], int]) -> None:
    """Raise if the cube would pass ``max_gib``; without `steps` a guess of one per five days."""
    days = (pd.Timestamp(request.time[1]) - pd.Timestamp(request.time[0])) / pd.Timedelta("1D")
    guess = max(1, int(days / 5))
    pixels = box.shape[0] * box.shape[1]
    size = objects = tasks = 0.0
    for layer in request.layers:
        timed = layer.stack_dim in ("time", "pair")
        n = steps.get((layer.group, layer.stack_dim or ""), guess if timed else 1)
        size += pixels * n * layer.n_channels * np.dtype(layer.dtype).itemsize
        objects += np.ceil(pixels / 256**2) * np.ceil(n / 64)
        tasks += np.ceil(pixels / BLOCK**2) * n * layer.n_channels
    gib = size / 2**30
    if gib > request.max_gib:
        hours = size / READ_RATE / 3600
        raise CubeError(
            f"area {request.aoi.name!r} on {box.shape[0]:,} x {box.shape[1]:,} px would make "
            f"{gib:,.0f} GiB in about {objects:,.0f} objects and {tasks:,.0f} tasks, some "
            f"{hours:,.0f} core hours; the limit is {request.max_gib:g} GiB. Take a smaller area, "
            "time range or coarser Grid(resolution=), or ask for it with max_gib="
        )


def open_aoi(
    aoi: Any,
    time: Any,
    layers: Iterable[str | Layer] | None = None,
    *,
    catalog: str | Path | Catalog = "planetary-computer",
    **request: Any,
) -> xr.DataTree:
    """Return a lazy cube of an area: one DataTree, one grid, one clock per sensor.

    Parameters
    ----------
    aoi, time, layers, catalog, **request
        As for `Request.of`.

    Returns
    -------
    xarray.DataTree
        Groups ``s1``, ``insar``, ``s2``, ``terrain``, ``labels`` as asked for, each a Dataset of
        dask-backed arrays in physical units (float32, NaN = nodata): backscatter (time, pol, y, x)
        dB, incidence (track, y, x) degrees, coherence and phase (pair, pol, y, x), reflectance
        (time, band, y, x), scl (time, y, x) uint8 with 0 = nodata, clear (time, y, x) bool,
        elevation (y, x) m. No pixel is read until it is needed.

    Raises
    ------
    CubeError
        Nothing found, or anything asked for that cannot be had; names the remedy.
    """
    return Request.of(aoi, time, layers, catalog=catalog, **request).open()
