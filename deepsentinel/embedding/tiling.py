"""Windows over a whole cube: which pixels are computed, and which of them are kept.

The cores of the windows partition the cube; each window is its core and a margin, moved inwards
at the cube's edges, and starts at a multiple of the model's patch so that every pixel lies at the
same place of its patch in whatever window it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A window: pixels y0:y1, x0:x1 are computed, `core` of the cube is kept."""

    y0: int
    y1: int
    x0: int
    x1: int
    core: tuple[slice, slice]
    """Rows and columns of the cube."""

    @property
    def keep(self) -> tuple[slice, slice]:
        """Rows and columns of the window."""
        rows, columns = self.core
        return (
            slice(rows.start - self.y0, rows.stop - self.y0),
            slice(columns.start - self.x0, columns.stop - self.x0),
        )


def window_size(core: int, overlap: int, patch: int) -> int:
    """Return the edge of a window in pixels, a multiple of `patch`.

    Where `core` is no multiple of it, windows begin up to a patch before their margin does.
    """
    slack = 0 if core % patch == 0 else patch - 1
    return -(-(core + 2 * overlap + slack) // patch) * patch


def tiles(
    shape: tuple[int, int],
    block: tuple[slice, slice],
    *,
    core: int,
    overlap: int,
    patch: int,
) -> list[Tile]:
    """Return the windows whose cores partition a block of a cube.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the cube.
    block : tuple of slice
        Rows and columns to be covered; starts are multiples of `core`.
    core, overlap, patch : int
        Pixels kept of a window, margin on each side, and edge of the model's patches.
    """
    size = window_size(core, overlap, patch)
    rows, columns = (
        [_span(start, min(start + core, part.stop), n, size, (overlap, patch))
         for start in range(part.start, part.stop, core)]
        for part, n in zip(block, shape, strict=True)
    )  # fmt: skip
    return [
        Tile(y0=y0, y1=y1, x0=x0, x1=x1, core=(kept_y, kept_x))
        for y0, y1, kept_y in rows
        for x0, x1, kept_x in columns
    ]


def _span(
    start: int, stop: int, n: int, size: int, lattice: tuple[int, int]
) -> tuple[int, int, slice]:
    """Return the first and last pixel of a window along one axis, and its core."""
    overlap, patch = lattice
    # inwards at the far edge, by whole patches; the window may then end past the edge by less
    # than a patch, which the reader leaves out and the model pads
    last = max(0, -(-(n - size) // patch) * patch)
    first = min(max(start - overlap, 0) // patch * patch, last)
    return first, min(first + size, n), slice(start, stop)
