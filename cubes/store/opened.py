"""A store as a lazy DataTree in physical units, with or without dask."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from cubes.store import disk, ledger, metadata
from cubes.store.layout import ArrayLayout, array_layouts
from cubes.store.ledger import Build
from cubes.types import CubeError, Layout, Plan

Chunks = Literal["stored"] | Mapping[str, int] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """Sees, by a look at a file around each read, that a store is still the one that was opened."""

    store: Path
    tree_sha256: str
    mark: tuple[int, int]

    @classmethod
    def of(cls, build: Build, tree_sha256: str) -> Guard:
        """Return the guard of a sealed store."""
        return cls(store=build.store, tree_sha256=tree_sha256, mark=cls._mark(build.store))

    @staticmethod
    def _mark(store: Path) -> tuple[int, int]:
        found = (store / ledger.FOLDER / "sealed.json").stat()
        return found.st_ino, found.st_mtime_ns

    def check(self) -> None:
        """Raise CubeError if the cube was replaced by another one since it was opened."""
        try:
            if self._mark(self.store) == self.mark:
                return
            now = ledger.sealed(ledger.load_build(self.store))
        except (FileNotFoundError, disk.Torn):
            now = None
        if now is None or now["tree_sha256"] != self.tree_sha256:
            raise CubeError(
                f"{self.store} was written anew since it was opened, and this cube still describes "
                "what lay there before; open it again"
            )


class _Physical(BackendArray):
    """One array of a store as physical values, read and decoded only where it is indexed."""

    def __init__(self, store: Any, array: ArrayLayout, guard: Guard | None) -> None:
        self.store, self.array, self.guard = store, array, guard
        self.shape = array.shape
        kind = array.layer.kind
        self.dtype = np.dtype({"mask": "bool", "class": array.layer.dtype}.get(kind, "float32"))

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> Any:
        if self.guard is None:
            return self._values(key)
        self.guard.check()
        try:
            return self._values(key)
        finally:
            # again, for a switch meanwhile: then what was read, or the failure to read it, is of
            # the other cube
            self.guard.check()

    def _values(self, key: tuple[Any, ...]) -> Any:
        import zarr

        # opened per read: cheap (one small file), and safe to pickle and to fork
        raw = zarr.open_array(self.store, path=self.array.name, mode="r", zarr_format=3)
        return self.array.physical(np.asarray(raw.oindex[key]))


def cube(build: Build, chunks: Chunks, *, partial: bool) -> xr.DataTree:
    """Return the cube in a store, see `cubes.open`."""
    missing = _missing(build, partial)
    seal = ledger.sealed(build)
    gone = lost(build)
    if gone and not partial:
        raise CubeError(
            f"{build.store} lacks {len(gone)} objects that were written, first {gone[0]}; they "
            "would read as nodata. cubes.repair(store) makes them again, partial=True opens the "
            "cube without them"
        )
    if seal and not partial:
        ledger.refuse_broken(build)
    guard = Guard.of(build, seal["tree_sha256"]) if seal else None
    # a sealed store never changes, so a name can say what it holds; else a new one each time
    token = f"{build.store}-{seal['tree_sha256']}" if seal else uuid.uuid4().hex
    out = assembled(
        ledger.build_plan(build),
        build.layout,
        str(build.store),
        chunks=chunks,
        token=token,
        guard=guard,
    )
    out.name = out.name or build.store.stem
    if missing:
        out.attrs["missing_regions"] = missing
    if gone:
        out.attrs["missing_objects"] = len(gone)
    return out


def assembled(
    plan: Plan,
    layout: Layout,
    source: Any,
    *,
    chunks: Chunks,
    token: str,
    guard: Guard | None = None,
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
    guard : Guard, optional
        Asked before and after each read.
    """
    arrays = array_layouts(plan, layout)

    def variable(array: ArrayLayout) -> xr.Variable:
        lazy = indexing.LazilyIndexedArray(_Physical(source, array, guard))
        attrs = metadata.attributes(plan.array(array.name), plan)
        out = xr.Variable(array.layer.dims, lazy, attrs=attrs)
        out.encoding["grid_mapping"] = "spatial_ref"
        return out if chunks is None else _chunked(out, array, chunks, token)

    tree = {}
    for group in ["", *metadata.groups(plan)]:
        coords = {
            name: metadata.decoded(name, coord)
            for name, coord in metadata.coordinates(plan, group).items()
        }
        mine = [a for a in arrays.values() if a.layer.group == group]
        data = {a.layer.variable: variable(a) for a in mine}
        tree[group or "/"] = xr.Dataset(data, coords=coords)
    tree["/"].attrs = metadata.root_attributes(plan)
    name = plan.attrs.get("aoi")
    return xr.DataTree.from_dict(tree, name=None if name is None else str(name))


def lost(build: Build) -> list[str]:
    """Return the keys that the ledger recorded and that are gone: an absent shard reads as nodata.

    One walk through the folders, no look at a file: 12 ms for 10,000 objects on a local disk.
    """
    recorded = ledger.load_table(build).objects
    root = str(build.store)
    there: set[str] = set()
    for folder, _, names in os.walk(root):
        start = folder[len(root) + 1 :].replace(os.sep, "/")
        there.update(f"{start}/{name}" if start else name for name in names)
    return sorted(k for k in recorded if k not in there)


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
