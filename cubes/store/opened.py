"""A store as a lazy DataTree in physical units, with or without dask."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from cubes.store import ledger, metadata
from cubes.store.layout import ArrayLayout, array_layouts
from cubes.store.ledger import Build
from cubes.types import CubeError, Layout, Plan

Chunks = Literal["stored"] | Mapping[str, int] | None


class _Physical(BackendArray):
    """One array of a store as physical values, read and decoded only where it is indexed."""

    def __init__(self, store: Any, array: ArrayLayout) -> None:
        self.store, self.array = store, array
        self.shape = array.shape
        kind = array.layer.kind
        self.dtype = np.dtype({"mask": "bool", "class": array.layer.dtype}.get(kind, "float32"))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        import zarr

        # opened per read: cheap (one small file), and safe to pickle and to fork
        raw = zarr.open_array(self.store, path=self.array.name, mode="r", zarr_format=3)
        return self.array.physical(np.asarray(raw.oindex[key]))


def cube(build: Build, chunks: Chunks, *, partial: bool) -> xr.DataTree:
    """Return the cube in a store, see `cubes.open`."""
    missing = _missing(build, partial)
    seal = ledger.sealed(build)
    # a sealed store never changes, so a name can say what it holds; else a new one each time
    token = f"{build.store}-{seal['tree_sha256']}" if seal else uuid.uuid4().hex
    out = assembled(
        ledger.build_plan(build), build.layout, str(build.store), chunks=chunks, token=token
    )
    out.name = out.name or build.store.stem
    if missing:
        out.attrs["missing_regions"] = missing
    return out


def assembled(
    plan: Plan, layout: Layout, source: Any, *, chunks: Chunks, token: str
) -> xr.DataTree:
    """Return the cube of a plan whose arrays lie in a Zarr store, lazy, in physical units.

    Parameters
    ----------
    plan, layout : Plan, Layout
        What was written, and how.
    source : str or zarr.abc.store.Store
        Folder, or a Zarr store that can be pickled.
    chunks : "stored", dict or None
        See `cubes.open`.
    token : str
        Names the dask arrays: equal for equal bytes.
    """
    arrays = array_layouts(plan, layout)
    tree = {"/": _dataset(plan, "", source, {}, chunks=chunks, token=token)}
    for group in metadata.groups(plan):
        mine = {n: a for n, a in arrays.items() if a.layer.group == group}
        tree[group] = _dataset(plan, group, source, mine, chunks=chunks, token=token)
    tree["/"].attrs = metadata.root_attributes(plan)
    name = plan.attrs.get("aoi")
    return xr.DataTree.from_dict(tree, name=None if name is None else str(name))


def _missing(build: Build, partial: bool) -> int:
    if ledger.sealed(build) is not None:
        return 0
    total = len(ledger.build_regions(build))
    missing = total - len(ledger.load_table(build).done)
    if not partial:
        raise CubeError(
            f"{build.store} is not finished: {missing} of {total} regions are missing and it is "
            "not sealed. Run cubes.write again to finish it, or open what there is with "
            "partial=True"
        )
    return missing


def _dataset(
    plan: Plan,
    group: str,
    source: Any,
    arrays: Mapping[str, ArrayLayout],
    *,
    chunks: Chunks,
    token: str,
) -> xr.Dataset:
    coords = {}
    for name, coord in metadata.coordinates(plan, group).items():
        coords[name] = metadata.decoded(name, coord)
    data = {}
    for name, array in arrays.items():
        lazy = indexing.LazilyIndexedArray(_Physical(source, array))
        variable = xr.Variable(
            array.layer.dims, lazy, attrs=metadata.attributes(plan.array(name), plan)
        )
        variable.encoding["grid_mapping"] = "spatial_ref"
        if chunks is not None:
            variable = _chunked(variable, array, chunks, token)
        data[array.layer.variable] = variable
    return xr.Dataset(data, coords=coords)


def _chunked(
    variable: xr.Variable,
    array: ArrayLayout,
    chunks: Literal["stored"] | Mapping[str, int],
    token: str,
) -> xr.Variable:
    """Return `variable` on dask, named after the plan and not after the time of opening."""
    dims = array.layer.dims
    shard = dict(zip(dims, array.shard, strict=True))
    given = shard if chunks == "stored" else {d: chunks.get(d, shard[d]) for d in dims}
    name = f"open-{array.layer.variable}-{ledger.sha256(token.encode())[:16]}"
    return variable.chunk(given, name=name)
