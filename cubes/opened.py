"""A store as a lazy DataTree in physical units, with or without dask."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from cubes import ledger, metadata
from cubes.layout import ArrayLayout
from cubes.ledger import Build
from cubes.types import CubeError, Plan

Chunks = Literal["stored"] | Mapping[str, int] | None


class _Physical(BackendArray):
    """One array of a store as physical values, read and decoded only where it is indexed."""

    def __init__(self, store: str, array: ArrayLayout) -> None:
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
    plan = ledger.build_plan(build)
    arrays = ledger.build_arrays(build)
    tree = {"/": _dataset(build, plan, "", {}, chunks)}
    for group in metadata.groups(plan):
        mine = {n: a for n, a in arrays.items() if a.layer.group == group}
        tree[group] = _dataset(build, plan, group, mine, chunks)
    tree["/"].attrs = metadata.root_attributes(plan)
    if missing:
        tree["/"].attrs["missing_regions"] = missing
    return xr.DataTree.from_dict(tree, name=str(plan.attrs.get("aoi", build.store.stem)))


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
    build: Build,
    plan: Plan,
    group: str,
    arrays: Mapping[str, ArrayLayout],
    chunks: Chunks,
) -> xr.Dataset:
    coords = {}
    for name, coord in metadata.coordinates(plan, group).items():
        coords[name] = metadata.decoded(name, coord)
    data = {}
    for name, array in arrays.items():
        lazy = indexing.LazilyIndexedArray(_Physical(str(build.store), array))
        variable = xr.Variable(
            array.layer.dims, lazy, attrs=metadata.attributes(plan.array(name), plan)
        )
        variable.encoding["grid_mapping"] = "spatial_ref"
        if chunks is not None:
            variable = _chunked(variable, build, array, chunks)
        data[array.layer.variable] = variable
    return xr.Dataset(data, coords=coords)


def _chunked(
    variable: xr.Variable,
    build: Build,
    array: ArrayLayout,
    chunks: Literal["stored"] | Mapping[str, int],
) -> xr.Variable:
    """Return `variable` on dask, named after the plan and not after the time of opening."""
    dims = array.layer.dims
    shard = dict(zip(dims, array.shard, strict=True))
    given = shard if chunks == "stored" else {d: chunks.get(d, shard[d]) for d in dims}
    seal = ledger.sealed(build)
    # a sealed store never changes, so its name can say what it holds; else a new one each time
    token = f"{build.store}-{seal['tree_sha256']}" if seal else uuid.uuid4().hex
    name = f"open-{array.layer.variable}-{ledger.sha256(token.encode())[:16]}"
    return variable.chunk(given, name=name)
