"""Which pixels belong to which field: polygons on a grid, tile by tile."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from cubes.fields.vectors import NUDGE, read_vectors
from cubes.types import CubeError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """The fields of one tile: which pixels of its window each has."""

    window: tuple[int, int, int, int]
    """Rows and columns of the cube: first, after last, first, after last."""
    fields: Ints
    """Numbers of the fields, one per part."""
    starts: Ints
    """Where the pixels of each part begin."""
    pixels: npt.NDArray[np.int32]
    """Flat pixel numbers in the window, part after part."""

    @property
    def sizes(self) -> Ints:
        """Pixels of each part."""
        return np.diff(np.append(self.starts, len(self.pixels)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """The polygons on a grid, in its CRS."""

    ids: npt.NDArray[Any]
    geometries: npt.NDArray[np.object_]
    box: GeoBox

    def tiles(self, rows: Sequence[int], columns: Sequence[int]) -> list[Members]:
        """Return the members of every tile that has any; tiles are given by their edges."""
        tree = shapely.STRtree(self.geometries)
        ys, xs = (self.box.coordinates[d].values for d in self.box.dimensions)  # noqa: PD011
        ys, xs = ys + NUDGE[1] * self.box.resolution.y, xs + NUDGE[0] * self.box.resolution.x
        found = []
        for top, bottom in itertools.pairwise(rows):
            for left, right in itertools.pairwise(columns):
                y, x = ys[top:bottom], xs[left:right]
                # centres decide, so the box of centres is enough
                near = np.sort(tree.query(shapely.box(x.min(), y.min(), x.max(), y.max())))
                members = self._members(near, (top, left), y, x)
                if members is not None:
                    found.append(members)
        return found

    def _members(self, near: Ints, corner: tuple[int, int], y: Floats, x: Floats) -> Members | None:
        parts = [(n, *_inside(self.geometries[n], y, x)) for n in near.tolist()]
        parts = [p for p in parts if len(p[1])]
        if not parts:
            return None
        rows, columns = (np.concatenate([p[i] for p in parts]) for i in (1, 2))
        top, left = int(rows.min()), int(columns.min())
        bottom, right = int(rows.max()) + 1, int(columns.max()) + 1
        sizes = [len(p[1]) for p in parts]
        return Members(
            window=(top + corner[0], bottom + corner[0], left + corner[1], right + corner[1]),
            fields=np.array([p[0] for p in parts], np.int64),
            starts=np.cumsum([0, *sizes[:-1]], dtype=np.int64),
            pixels=((rows - top) * (right - left) + columns - left).astype(np.int32),
        )


def _inside(geometry: Any, y: Floats, x: Floats) -> tuple[Ints, Ints]:
    """Return rows and columns of the pixel centres that a geometry contains."""
    left, bottom, right, top = geometry.bounds
    rows = np.flatnonzero((y >= bottom) & (y <= top))
    columns = np.flatnonzero((x >= left) & (x <= right))
    if not (len(rows) and len(columns)):
        return rows[:0], columns[:0]
    shapely.prepare(geometry)
    inside = shapely.contains_xy(geometry, *np.meshgrid(x[columns], y[rows]))
    r, c = np.nonzero(inside)
    return rows[r], columns[c]


def on_grid(polygons: Any, box: GeoBox, *, buffer: float, field: str | None) -> Fields:
    """Return the rows of a vector table as fields on a grid.

    Parameters
    ----------
    polygons : path, GeoDataFrame or GeoSeries
        See `cubes.fields.vectors.read_vectors`.
    box : GeoBox
        The grid.
    buffer : float
        Metres by which they grow or, negative, shrink.
    field : str or None
        Column of unique ids; None takes the index.

    Raises
    ------
    CubeError
        Unknown column; ids that repeat; no row on the grid; a buffer in degrees.
    """
    table = read_vectors(polygons, box)
    if field is not None and field not in table.columns:
        near = difflib.get_close_matches(field, [str(c) for c in table.columns], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        columns = ", ".join(str(c) for c in table.columns if c != table.geometry.name)
        raise CubeError(f"the polygons have no column {field!r}{hint} They have {columns}")
    if not len(table):
        raise CubeError(
            f"no polygon touches the cube, {tuple(round(v) for v in box.boundingbox.bbox)} in "
            f"{box.crs}; is the table's CRS the one its coordinates are in?"
        )
    ids = table.index.to_numpy() if field is None else table[field].to_numpy()
    twice = pd.Series(ids)[pd.Series(ids).duplicated()]
    if len(twice):
        raise CubeError(
            f"{len(twice)} field ids occur more than once, first {twice.iloc[0]!r}; name a column "
            "of unique ids with field=, or .dissolve() the parts of a field"
        )
    geometries = table.geometry.to_numpy()
    if buffer:
        if box.crs is not None and box.crs.geographic:
            raise CubeError(f"a buffer is in metres, but the cube lies in degrees ({box.crs})")
        geometries = shapely.buffer(geometries, buffer)
    return Fields(ids=ids, geometries=geometries, box=box)


def summary(fields: Fields, tiles: Sequence[Members]) -> pd.DataFrame:
    """Return the fields that have pixels, and in the attributes what became of the others.

    Raises
    ------
    CubeError
        No field has a pixel.
    """
    pixels = np.zeros(len(fields.ids), np.int64)
    for members in tiles:
        np.add.at(pixels, members.fields, members.sizes)
    if not pixels.any():
        raise CubeError(
            f"none of {len(pixels)} fields contains a pixel centre of the cube (pixels of "
            f"{abs(fields.box.resolution.x):g} units); points, lines and slivers need buffer > 0"
        )
    outline = shapely.box(*fields.box.boundingbox.bbox)
    whole = shapely.covers(outline, fields.geometries)
    out = pd.DataFrame({"field": fields.ids, "pixels": pixels})[pixels > 0]
    out.attrs["unmatched"] = fields.ids[pixels == 0].tolist()
    out.attrs["clipped"] = fields.ids[(pixels > 0) & ~whole].tolist()
    return out.reset_index(drop=True)
