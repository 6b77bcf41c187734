"""What can be written as a cube, and where its stored numbers come from."""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from odc.geo.geobox import GeoBox

from cubes import grants, grid, physics, registry, schema
from cubes.reading.access import redact, signed
from cubes.registry import checks
from cubes.store import ledger
from cubes.store.build import Pixels, PlanPixels, window
from cubes.store.layout import ArrayLayout, Region, axis_name, region_arrays, spans
from cubes.store.ledger import Build
from cubes.types import STACK_DIMS, Access, ArrayPlan, Axis, CubeError, Layer, Legend, Plan

Array = npt.NDArray[Any]


class CubeSource(Protocol):
    """Something that can be written: a plan of its shape, and its pixels."""

    @property
    def plan(self) -> Plan:
        """Grid, axes and arrays."""
        ...

    @property
    def name(self) -> str:
        """What the pixels come from; part of a store's identity."""
        ...

    @property
    def remote(self) -> bool:
        """Whether any process can read the pixels with nothing but the store's plan."""
        ...

    def pixels(self, arrays: dict[str, ArrayLayout], client: Any) -> Pixels:
        """Return the reader of stored numbers."""
        ...

    def spans(self, arrays: dict[str, ArrayLayout], slots: int) -> dict[str, int]:
        """Return patches per region edge, see `cubes.store.layout.spans`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSource:
    """A plan: its pixels come from assets, so any process can read them."""

    plan: Plan
    access: Access
    """What may be read for it, which is not what a plan in a stranger's store says."""
    name: str = "plan"
    remote: bool = True

    def pixels(self, arrays: dict[str, ArrayLayout], client: Any) -> Pixels:
        """Return the reader of stored numbers."""
        del client
        return PlanPixels(plan=replace(self.plan, access=self.access), arrays=arrays)

    def spans(self, arrays: dict[str, ArrayLayout], slots: int) -> dict[str, int]:
        """Return patches per region edge."""
        return spans(arrays, slots)


def source(what: Any) -> CubeSource:
    """Return `what` as something that `cubes.store.verbs` can write.

    Raises
    ------
    CubeError
        Neither a plan, nor something with ``plan()``, nor a DataTree that is a cube; a plan read
        from a file whose catalogue is not known here.
    """
    if isinstance(what, Plan):
        return _plan_source(what, None)
    if isinstance(what, xr.DataTree):
        # of values only those are refused that the layout asked for would alter, see `spans`
        schema.check(what, values=False)
        return TreeSource(plan=tree_plan(what), tree=what, name=f"tree {fingerprint(what)}")
    if callable(getattr(what, "plan", None)):
        return _plan_source(what.plan(), None)
    raise CubeError(
        f"cannot write a {type(what).__name__}; give a Request, a Plan or an xarray.DataTree "
        "(for a Dataset: xarray.DataTree.from_dict({'s2': dataset}))"
    )


def _plan_source(plan: Plan, by: grants.Voucher) -> PlanSource:
    out = PlanSource(plan=_storable(plan), access=grants.granted(plan, by))
    grants.remember(plan)
    return out


def _storable(plan: Plan) -> Plan:
    """Return a plan none of whose addresses is signed: it is stored, and may be published.

    Raises
    ------
    CubeError
        One carries a signature, a token or a password; the grid lies in degrees.
    """
    problem = grid.in_degrees(plan.geobox.crs, plan.geobox.boundingbox.bbox)
    if problem:
        raise CubeError(problem)
    hrefs = (
        asset.href
        for array in plan.arrays
        for step in array.steps
        for assets in step.values()
        for asset in assets
    )
    for href in hrefs:
        if signed(href):
            raise CubeError(
                f"{redact(href)} is signed or carries a token, and a store keeps the addresses "
                "that its pixels came from. Give unsigned items and let the catalogue row sign "
                "them when they are read (access.sign), or name a variable with a token "
                "(access.auth); opening without writing takes them as they are"
            )
    return plan


def again(
    build: Build, what: xr.DataTree | None = None, access: grants.Voucher = None
) -> CubeSource:
    """Return the source that `build` was written from, to mend it.

    Raises
    ------
    CubeError
        The cube came from a DataTree and `what` is missing or another one; nobody vouches for the
        addresses in the plan, see `cubes.grants.granted`.
    """
    if build.source == "plan":
        return _plan_source(ledger.build_plan(build), access)
    if what is None:
        raise CubeError(
            f"{build.store} was written from a DataTree, so it can only be finished with "
            "cubes.write(tree, store), and repaired with cubes.repair(store, source=tree)"
        )
    found = source(what)
    if found.name != build.source or found.plan.sha256 != build.plan_sha256:
        raise CubeError(
            f"this is not the DataTree that {build.store} was written from (arrays in memory are "
            "recognised by their bytes, dask arrays by their names); give the same one, or write "
            "the cube again with force=True"
        )
    return found


# ------------------------------------------------------------------------------- your own cubes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TreeSource:
    """A person's own DataTree in physical units, on numpy or dask."""

    plan: Plan
    tree: xr.DataTree
    name: str
    remote: bool = False
    """Its pixels live in this process: a dask client computes them, this process encodes."""

    def pixels(self, arrays: dict[str, ArrayLayout], client: Any) -> Pixels:
        """Return the reader of stored numbers."""
        return TreePixels(tree=self.tree, arrays=arrays, client=client)

    def spans(self, arrays: dict[str, ArrayLayout], slots: int) -> dict[str, int]:
        """Return patches per region edge: whole dask chunks, so that none is computed twice.

        Raises
        ------
        CubeError
            Arrays in memory hold values in other units; before anything is written.
        """
        rows = {name: array.layer for name, array in arrays.items()}
        problems = schema.values_of_other_units(self.tree, rows)
        if problems:
            raise CubeError("this cube cannot be stored as it is:\n- " + "\n- ".join(problems))
        out = spans(arrays, slots)
        for array in arrays.values():
            chunks = _variable(self.tree, array.layer).chunks
            if chunks is not None:
                edge = max(max(c) for c in chunks[-2:])
                name = axis_name(array.layer)
                out[name] = max(out[name], -(-edge // array.patch[0]))
        return out


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TreePixels:
    """Pixels of a DataTree: computed in runs of steps that dask keeps in one chunk."""

    tree: xr.DataTree
    arrays: dict[str, ArrayLayout]
    client: Any = None
    clipped: dict[str, int] = field(default_factory=dict)
    """Layer -> numbers stored as the nearest one inside its range, so far."""
    guard: Lock = field(default_factory=Lock)

    def runs(self, region: Region) -> list[tuple[int, int]]:
        """Return the runs of steps between chunk borders that all arrays of the region share."""
        first, last = region.steps
        borders = set(range(first, last + 1))
        for array in region_arrays(self.arrays, region):
            chunks = _variable(self.tree, array.layer).chunks
            if chunks is not None and array.layer.stack_dim:
                borders &= {0, *itertools.accumulate(chunks[0])}
        return list(itertools.pairwise(sorted(borders | {first, last})))

    def read(self, region: Region, run: tuple[int, int]) -> tuple[dict[str, Array], int, int]:
        """Return stored numbers of a run of steps by layer, and the pixels computed.

        Raises
        ------
        CubeError
            More than a few values lie outside their layer's range, see `cubes.schema`.
        """
        from dask.base import compute

        parts = []
        mine = region_arrays(self.arrays, region)
        for array in mine:
            rows, columns = window(region, array)
            where: dict[str, slice] = {"y": rows, "x": columns}
            if array.layer.stack_dim:
                where[array.layer.stack_dim] = slice(*run)
            parts.append(_variable(self.tree, array.layer).isel(where).data)
        scheduler = "threads" if self.client is None else self.client.get
        values: tuple[Any, ...] = compute(*parts, scheduler=scheduler)  # type: ignore[no-untyped-call]
        out, pixels = {}, 0
        for array, block in zip(mine, values, strict=True):
            pixels += block.size
            self._look(np.asarray(block), array)
            stored = _stored(np.asarray(block), array)
            shape = (run[1] - run[0], array.layer.n_channels, *block.shape[-2:])
            out[array.name] = stored.reshape(shape)
        return out, pixels, 0

    def _look(self, block: Array, array: ArrayLayout) -> None:
        """Count what will be clipped; refuse values that are in other units."""
        problem = schema.wrong_values(block, array.layer)
        if problem:
            raise CubeError(problem)
        count = schema.outside(block, array.layer)
        if count:
            with self.guard:
                self.clipped[array.name] = self.clipped.get(array.name, 0) + count


def _variable(tree: xr.DataTree, layer: Layer) -> xr.Variable:
    variable = tree[layer.group].dataset[layer.variable].variable
    assert isinstance(variable, xr.Variable)
    return variable


def _stored(values: Array, array: ArrayLayout) -> Array:
    """Return physical values as this layout stores them."""
    layer = array.layer
    if not array.lossless:
        return physics.encode(values, layer)
    if layer.convert == "identity":
        return values.astype(layer.dtype, copy=False)
    return physics.encode(values, layer)


def tree_plan(tree: xr.DataTree) -> Plan:
    """Return the plan of a DataTree: its grid, axes and layers, and no assets."""
    import odc.geo.xr  # noqa: F401  registers the accessor

    axes, arrays, box = [], [], None
    legends: dict[str, Legend] = {}
    for group, node in tree.children.items():
        data = node.to_dataset()
        box = _geobox(data) if box is None else box
        for dim in dict.fromkeys(str(d) for v in data.data_vars.values() for d in v.dims):
            if dim in STACK_DIMS:
                axes.append(_axis(group, dim, data))
        for variable, array in data.data_vars.items():
            made = _array_plan(f"{group}/{variable}", array)
            arrays.append(made)
            if made.layer.legend:
                _carry(legends, array, made.layer)
    if box is None:
        raise CubeError("the DataTree has no grid: no group carries y, x and spatial_ref")
    # conventions like proj: and spatial: describe a store, and are written for each anew
    attrs = {str(k): schema.plain(v) for k, v in tree.attrs.items() if ":" not in str(k)}
    for name in ("Conventions", "plan_sha256", "coordinates", "zarr_conventions"):
        attrs.pop(name, None)
    return Plan(
        geobox=box,
        axes=tuple(axes),
        arrays=tuple(arrays),
        attrs=attrs,
        legends=tuple(legends[name] for name in sorted(legends)),
    )


def _carry(legends: dict[str, Legend], array: xr.DataArray, layer: Layer) -> None:
    """Keep the legend that a layer came with, else the one that its row names.

    Raises
    ------
    CubeError
        Not the legend that the row names; another layer came with other classes under that name;
        the layer cannot hold the classes.
    """
    carried = registry.CARRIED in array.attrs
    legend = registry.legend(array if carried else str(layer.legend))
    if legend.name != layer.legend:
        raise CubeError(
            f"layer {layer.name!r} comes with the legend {legend.name!r}, and its row names "
            f"{layer.legend!r}: rename one of them, or drop the attribute {registry.CARRIED!r}"
        )
    checks.fitting(layer, legend)
    known = legends.setdefault(legend.name, legend)
    if known != legend:
        raise CubeError(
            f"layer {layer.name!r} comes with another legend {legend.name!r} than a layer before "
            f"it: {known.differing(legend)}; a cube has one legend of a name"
        )


def _geobox(data: xr.Dataset) -> GeoBox:
    box: GeoBox = data.odc.geobox
    epsg = box.crs.epsg if box.crs is not None else None
    # spatial_ref holds WKT; a plan names a CRS by its code where it has one
    return box if epsg is None else GeoBox(box.shape, box.affine, f"EPSG:{epsg}")


def _axis(group: str, dim: str, data: xr.Dataset) -> Axis:
    coords: dict[str, tuple[Any, ...]] = {}
    if dim not in data.coords:
        raise CubeError(f"group {group!r} lacks the coordinate {dim!r}")
    for name in [dim, *sorted(str(c) for c in data.coords if c != dim)]:
        coord = data.coords[name]
        if coord.dims == (dim,):
            # an axis knows its own coordinates by bare names, see `Plan.coordinates`
            bare = name.removeprefix("track_") if dim == "track" else name
            coords[bare] = tuple(_plain(v) for v in coord.to_numpy())
    return Axis(group=group, dim=dim, coords=coords)


def _plain(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        stamp = pd.Timestamp(value)
        return None if np.isnat(value) else stamp.isoformat()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _array_plan(name: str, array: xr.DataArray) -> ArrayPlan:
    row = registry.layer(name)
    dim = row.channel_dim
    if dim:
        every = replace(row, channels=registry.all_channels(name))
        row = every.pick(tuple(str(c) for c in array[dim].to_numpy()))
    if row.convert == "power_to_db":
        # a person's own cube is in dB: linear power would not come back to the last bit
        row = replace(row, convert="identity")
    # a plan holds its legends once, beside its layers
    drop = ("grid_mapping", *((registry.CARRIED,) if row.legend else ()))
    attrs = {str(k): schema.plain(v) for k, v in array.attrs.items() if k not in drop}
    # given, not derived: it is what the person says it is
    return ArrayPlan(layer=replace(row, derived_from=None), steps=(), attrs=attrs)


def fingerprint(tree: xr.DataTree) -> str:
    """Return a hash of a DataTree's pixels: bytes of arrays in memory, names of dask arrays."""
    digest = hashlib.sha256()
    for group, node in tree.children.items():
        for variable, array in node.to_dataset().data_vars.items():
            digest.update(f"{group}/{variable} {array.dtype} {array.shape} ".encode())
            if array.chunks is not None:
                digest.update(str(array.data.name).encode())
            else:
                digest.update(np.ascontiguousarray(array.to_numpy()).data)
    return digest.hexdigest()
