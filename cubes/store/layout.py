"""How the arrays of a cube lie in Zarr: shapes, shards, keys; a pure function of the plan."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cubes import physics
from cubes.store import shards
from cubes.types import CubeError, Layer, Layout, Plan

Array = npt.NDArray[Any]

NAME = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+")
"""Layer names become paths, also when a stranger's store is opened."""

PART = re.compile(r"(?!__cubes__$|zarr\.json$)[\w+-][\w .:+-]{0,119}")
"""So do those of groups, dimensions and coordinates. Those of a person's own cube may hold what
other tools put there (``eo:cloud_cover``), but nothing that leads elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayLayout:
    """One array in the store: shapes of array, shard and inner chunk, and what a number means."""

    layer: Layer
    """The row, with ``dtype``, ``nodata``, ``scale`` and ``offset`` as stored in this layout."""
    shape: tuple[int, ...]
    """In the order of ``layer.dims``."""
    shard: tuple[int, ...]
    """Shape of one object: (steps per shard, channels, patch, patch), absent dims left out."""
    chunk: tuple[int, ...]
    """Shape of one inner chunk: one step, all channels, one patch."""
    codec: shards.Codec
    sharded: bool
    """False: one object per chunk."""
    lossless: bool = False
    """Working numbers are stored in place of the row's small integers."""

    @property
    def name(self) -> str:
        """Path of the array in the store: the layer's name."""
        return self.layer.name

    @property
    def steps(self) -> int:
        """Steps along the stack dimension; 1 for a static layer."""
        return self.shape[0] if self.layer.stack_dim else 1

    @property
    def steps_per_shard(self) -> int:
        """Inner chunks of one shard."""
        return self.shard[0] if self.layer.stack_dim else 1

    @property
    def patch(self) -> tuple[int, int]:
        """Rows and columns of one patch."""
        return self.chunk[-2], self.chunk[-1]

    @property
    def fill(self) -> Any:
        """The number that an object not stored stands for, as a scalar of the stored dtype."""
        nodata = 0 if self.layer.nodata is None else self.layer.nodata
        return np.dtype(self.layer.dtype).type(nodata)

    def key(self, block: int, row: int, column: int) -> str:
        """Return the store's key of one object.

        Parameters
        ----------
        block : int
            Number of the time shard (of the step where the layout has no shards).
        row, column : int
            Number of the patch.
        """
        place = [str(block)] if self.layer.stack_dim else []
        place += ["0"] if self.layer.channel_dim else []
        return "/".join([self.name, "c", *place, str(row), str(column)])

    def physical(self, stored: Array) -> Array:
        """Return stored numbers as physical values: float32 with NaN, classes as is, masks bool."""
        if self.lossless:
            return physics.to_physical(stored, self.layer)
        return physics.decode(stored, self.layer)

    def stored(self, work: Array) -> Array:
        """Return working numbers as stored numbers."""
        return work if self.lossless else physics.to_stored(work, self.layer)


def stored_layer(layer: Layer, layout: Layout) -> Layer:
    """Return the row as `layout` stores it: itself, or in working numbers where lossless."""
    if not layout.lossless:
        return layer
    if layer.convert == "stored":
        return replace(layer, dtype=layer.work_dtype, nodata=layer.work_nodata)
    power = layer.convert == "power_to_db"
    return replace(
        layer,
        dtype=layer.work_dtype,
        nodata=layer.work_nodata,
        scale=1.0,
        offset=0.0,
        units="1" if power else layer.units,
        long_name=f"{layer.long_name}, linear power" if power else layer.long_name,
    )


def check_layout(layout: Layout) -> None:
    """Raise CubeError where a layout makes no sense."""
    if layout.patch < 16:
        raise CubeError(f"Layout.patch is {layout.patch}; at least 16 pixels (256 is usual)")
    if layout.steps is not None and layout.steps < 1:
        raise CubeError(f"Layout.steps is {layout.steps}; 1 or more, or None for all in one shard")
    if layout.codec not in ("lz4", "zstd", "none"):
        raise CubeError(f"Layout.codec is {layout.codec!r}; lz4, zstd or none")


def patch_edge(shape: tuple[int, int], layout: Layout) -> int:
    """Return the edge of a patch in pixels: the layout's, or less where the cube is smaller."""
    return min(layout.patch, max(shape))


def array_layout(layer: Layer, steps: int, shape: tuple[int, int], layout: Layout) -> ArrayLayout:
    """Return how one array lies in the store.

    Parameters
    ----------
    layer : Layer
        Its row.
    steps : int
        Length of its stack dimension; ignored for a static layer.
    shape : tuple of int
        Rows and columns of the cube.
    layout : Layout
        As asked for.
    """
    edge = patch_edge(shape, layout)
    stack = layer.stack_dim is not None
    head = (layer.n_channels,) if layer.channel_dim else ()
    per_shard = min(layout.steps or steps, steps) if layout.shards else 1
    return ArrayLayout(
        layer=stored_layer(layer, layout),
        shape=((steps,) if stack else ()) + head + tuple(shape),
        shard=((per_shard,) if stack else ()) + head + (edge, edge),
        chunk=((1,) if stack else ()) + head + (edge, edge),
        codec=layout.codec,
        sharded=layout.shards,
        lossless=layout.lossless,
    )


def array_layouts(plan: Plan, layout: Layout) -> dict[str, ArrayLayout]:
    """Return how each array of `plan` lies in the store, by layer name.

    Raises
    ------
    CubeError
        A layer's stack dimension has no axis, or no steps; its name, or one of an axis, cannot
        be a path.
    """
    check_layout(layout)
    for each in plan.axes:
        for name in (each.group, each.dim, *each.coords):
            if not PART.fullmatch(name):
                raise CubeError(
                    f"{name!r}, of the axis {each.dim!r} of {each.group!r}, cannot be a name in a "
                    "store; use letters, digits, - and _"
                )
    out: dict[str, ArrayLayout] = {}
    for array in plan.arrays:
        group = array.layer.name.split("/")[0]
        if not (NAME.fullmatch(array.layer.name) and PART.fullmatch(group)):
            raise CubeError(
                f"layer name {array.layer.name!r} is not group/variable of letters, digits, - and _"
            )
        axis = plan.axis(array.layer)
        if array.layer.stack_dim and (axis is None or len(axis) == 0):
            raise CubeError(
                f"layer {array.layer.name!r} is stacked along {array.layer.stack_dim!r}, but the "
                "plan has no step there; leave the layer out or widen the time range"
            )
        steps = len(axis) if axis is not None else 1
        shape = (int(plan.geobox.shape[0]), int(plan.geobox.shape[1]))
        out[array.layer.name] = array_layout(array.layer, steps, shape, layout)
    return out


# -------------------------------------------------------------------------------------- regions


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """What one task writes: whole shards of every array of one group along one axis."""

    group: str
    dim: str
    """Stack dimension; empty for static layers."""
    block: int
    """Number of the time shard."""
    steps: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    """First and last (excluded) step, patch row and patch column."""

    @property
    def id(self) -> str:
        """Name of the region, unique in a cube and safe in a path."""
        place = f"{self.block}.{self.rows[0]}.{self.columns[0]}"
        return f"{_slug(self.group)}.{_slug(self.dim) if self.dim else 'static'}.{place}"

    @property
    def patches(self) -> list[tuple[int, int]]:
        """Row and column of each patch, row-major."""
        return [(r, c) for r in range(*self.rows) for c in range(*self.columns)]


STEP_BYTES = 256 * 2**20
"""Stored bytes of one array that a task holds per step: its patches are chosen so. With ten bands
that is 14 x 14 patches, 3,584 px: then blocks of 512 px on another lattice are decoded at most
((3584 + 512) / 3584)**2 = 1.31 times on average however large the cube, and once where one region
covers it."""


def spans(layouts: dict[str, ArrayLayout], slots: int = 1) -> dict[str, int]:
    """Return patches per region edge for each ``group.dim``.

    Parameters
    ----------
    layouts : dict
        As `array_layouts` gives.
    slots : int
        Tasks that can run at once. Regions are halved, down to four patches an edge, until there
        are as many; the cube's bytes do not depend on it.
    """
    out: dict[str, int] = {}
    for array in layouts.values():
        name = axis_name(array.layer)
        step = int(np.prod(array.chunk)) * np.dtype(array.layer.dtype).itemsize
        fits = max(1, int((STEP_BYTES / step) ** 0.5))
        out[name] = min(out.get(name, fits), fits)
    for array in layouts.values():
        name, (rows, columns) = axis_name(array.layer), patch_grid(array)
        # as many regions, but equal ones: 43 patches make 4 x 11, not 14 + 14 + 14 + 1
        even = max(-(-n // -(-n // out[name])) for n in (rows, columns))
        out[name] = min(out[name], even)
    while len(list(regions(layouts, out))) < slots and any(v > 4 for v in out.values()):
        out = {k: max(4, v // 2) if v > 4 else v for k, v in out.items()}
    return out


def axis_name(layer: Layer) -> str:
    """Return the name of the set of arrays that are written together: group and stack dimension."""
    return f"{layer.group}.{layer.stack_dim or ''}"


def patch_grid(array: ArrayLayout) -> tuple[int, int]:
    """Return how many rows and columns of patches an array has."""
    rows, columns = array.shape[-2:]
    return -(-rows // array.patch[0]), -(-columns // array.patch[1])


MOST_CELLS = 2**22
"""Counts kept of one array, 8 MiB: cells are as small as that allows."""
SMALLEST_CELL = 8
"""Pixels along a cell, at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """The squares of which the ledger counts the valid pixels: equal parts of patches.

    With them windows that are no patches are judged by their own pixels, not by their patch's.
    """

    edge: int
    """Pixels."""
    per_patch: tuple[int, int]
    """Rows and columns of them in a patch."""
    grid: tuple[int, int]
    """Rows and columns of them in an array; the last may lie beyond its edge."""
    shape: tuple[int, int]
    """Rows and columns of pixels of the array."""
    channels: int
    """Numbers of a pixel: each is counted."""

    @property
    def dtype(self) -> str:
        """Of the counts."""
        return "uint16" if self.edge**2 * self.channels < 2**16 else "uint32"

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Real numbers of each cell, shape `grid`: fewer at ragged edges, none beyond them."""
        sides = (
            np.clip(size - np.arange(n) * self.edge, 0, self.edge)
            for size, n in zip(self.shape, self.grid, strict=True)
        )
        ys, xs = sides
        return self.channels * np.multiply.outer(ys, xs).astype(np.int64)

    def of(self, region: Region) -> tuple[slice, slice]:
        """Return where the cells of a region's patches are."""
        (r0, r1), (c0, c1) = region.rows, region.columns
        down, across = self.per_patch
        return slice(r0 * down, r1 * down), slice(c0 * across, c1 * across)

    def by_patch(self, counts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return sums over the cells of each patch, (..., rows, columns) of patches."""
        down, across = self.per_patch
        rows, columns = counts.shape[-2] // down, counts.shape[-1] // across
        shape = (*counts.shape[:-2], rows, down, columns, across)
        summed: npt.NDArray[np.int64] = counts.reshape(shape).sum(axis=(-3, -1), dtype=np.int64)
        return summed

    def count(self, good: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Return the valid numbers of each cell of a patch.

        Parameters
        ----------
        good : array
            (..., y, x) bool of the patch's real pixels.
        """
        out = np.zeros(self.per_patch, self.dtype)
        height, width = good.shape[-2:]
        if good.all():  # most of all chunks
            rows, columns = (
                np.clip(size - np.arange(n) * self.edge, 0, self.edge)
                for size, n in zip((height, width), self.per_patch, strict=True)
            )
            out[...] = self.channels * np.multiply.outer(rows, columns)
        elif good.any():
            flat = good.reshape(-1, height, width).sum(axis=0, dtype=np.uint32)
            ys, xs = (np.arange(0, size, self.edge) for size in (height, width))
            out[: len(ys), : len(xs)] = np.add.reduceat(
                np.add.reduceat(flat, ys, axis=0), xs, axis=1
            )
        return out


def classed(array: ArrayLayout) -> bool:
    """Return whether pixels are counted by class: of labels, not of a class layer of every date."""
    return array.layer.kind == "class" and array.layer.stack_dim != "time"


def counted(names: Iterable[str], array: str) -> list[str]:
    """Return the names under which pixels of an array are counted: its own, and ``name=code``."""
    return [array, *sorted(n for n in names if n.startswith(f"{array}="))]


def enter_counts(
    table: dict[str, Array], found: Mapping[str, Array], array: ArrayLayout, region: Region
) -> None:
    """Enter what was counted in a region; a class that is not in it counts nothing there."""
    where = slice(*region.steps), *cells(array).of(region)
    for name in counted({*table, *found}, array.name):
        if name not in table:
            table[name] = np.zeros_like(table[array.name])
        table[name][where] = found[name] if name == array.name else found.get(name, 0)


def cells(array: ArrayLayout) -> Cells:
    """Return the cells of an array: the smallest that divide its patches and are few enough.

    Those of an array of one patch need not divide it: the last are cut, as they are at any edge.
    """
    rows, columns = patch_grid(array)
    patch = array.patch[0]
    alone = rows == columns == 1
    edges = [e for e in range(SMALLEST_CELL, patch) if alone or patch % e == 0]
    for edge in (*edges, patch):
        per = -(-patch // edge), -(-patch // edge)
        grid = rows * per[0], columns * per[1]
        if array.steps * grid[0] * grid[1] <= MOST_CELLS:
            break
    return Cells(
        edge=edge, per_patch=per, grid=grid, shape=(array.shape[-2], array.shape[-1]),
        channels=array.layer.n_channels,
    )  # fmt: skip


def regions(layouts: dict[str, ArrayLayout], span: dict[str, int]) -> list[Region]:
    """Return the regions of a cube: a partition of its shards, in a fixed order."""
    out = []
    for name, edge in span.items():
        first = next(a for a in layouts.values() if axis_name(a.layer) == name)
        rows, columns = patch_grid(first)
        # without shards a region still takes a run of steps, so that a source is opened once
        per = first.steps_per_shard if first.sharded else min(64, first.steps)
        for block, t in enumerate(range(0, first.steps, per)):
            for r in range(0, rows, edge):
                for c in range(0, columns, edge):
                    out.append(
                        Region(
                            group=first.layer.group,
                            dim=first.layer.stack_dim or "",
                            block=block,
                            steps=(t, min(t + per, first.steps)),
                            rows=(r, min(r + edge, rows)),
                            columns=(c, min(c + edge, columns)),
                        )
                    )
    return out


def region_arrays(layouts: dict[str, ArrayLayout], region: Region) -> list[ArrayLayout]:
    """Return the arrays that a region writes, sources before what is derived from them."""
    mine = [
        a
        for a in layouts.values()
        if (a.layer.group, a.layer.stack_dim or "") == (region.group, region.dim)
    ]
    return sorted(mine, key=lambda a: a.layer.derived_from is not None)


def region_keys(array: ArrayLayout, region: Region) -> list[str]:
    """Return the keys of the objects of one array in a region, stored or not."""
    blocks = [region.block] if array.sharded else list(range(*region.steps))
    return [array.key(b, r, c) for b in blocks for r, c in region.patches]


def _slug(text: str) -> str:
    """Return `text` as a safe file name: letters, digits, ``._-``, and a hash if it changed."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:80]
    if safe == text:
        return safe
    return f"{safe or 'x'}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
