"""Withholding blocks of dates: a cube without them to learn from, and when they were."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from cubes.types import CubeError


def withhold(
    cube: xr.DataTree, block: str = "45D", *, every: int = 3, group: str = "s2"
) -> tuple[xr.DataTree, tuple[tuple[str, str], ...]]:
    """Return the cube without the dates of some blocks, and the spans of those blocks.

    Time is cut into blocks of equal length from the group's first date on; the middle one of each
    `every` is held out, so that there are dates on both sides. A score on random dates flatters:
    the next date, three days away, all but tells the one asked for.

    Parameters
    ----------
    cube
        As `open` and `open_aoi` return it.
    block
        Length of a block, such as ``"45D"``.
    every
        One block in so many is held out, 2 or more.
    group
        The sensor whose dates are held out; the others keep theirs.

    Returns
    -------
    rest : DataTree
        The cube, lazy as it was, without those dates: `write` it for the model to learn from.
    held : tuple of (start, end)
        ISO 8601 in UTC, end excluded: ``Options(held=...)`` scores the dates in them.

    Raises
    ------
    CubeError
        No such group with dates; a block or `every` that leaves nothing on one of the two sides.
    """
    if group not in cube or "time" not in cube[group].dims:
        timed = [name for name, node in cube.children.items() if "time" in node.dims]
        raise CubeError(f"no group {group!r} with dates here; there are {', '.join(timed)}")
    length = _length(block)
    if every < 2:
        raise CubeError(f"every={every}: one block in two (2) or fewer (3, 4, ...) is held out")
    time = cube[group].to_dataset()["time"].to_numpy().astype("datetime64[ns]")
    number = (time - time[0]) // length
    out = number % every == every // 2
    if not out.any():
        raise CubeError(
            f"block={block!r}, every={every}: {group} spans {str(time[0])[:10]} to "
            f"{str(time[-1])[:10]}, too short for one block to be held out; take shorter blocks"
        )
    start = [time[0] + int(k) * length for k in np.unique(number[out])]
    held = tuple((_iso(s), _iso(s + length)) for s in start)
    nodes = {name: node.to_dataset(inherit=False) for name, node in cube.subtree_with_keys}
    nodes[group] = nodes[group].isel(time=~out)
    return xr.DataTree.from_dict(nodes), held


def _length(block: str) -> np.timedelta64:
    try:
        # a plain number would be one of nanoseconds
        unit = isinstance(block, str) and not block.strip().lstrip("+-").isdigit()
        length = np.timedelta64(pd.Timedelta(block if unit else "NaT").value, "ns")
    except ValueError as error:
        raise CubeError(f"block={block!r} is not a length of time such as '45D'") from error
    if np.isnat(length):
        raise CubeError(f"block={block!r} is not a length of time such as '45D'")
    if length <= np.timedelta64(0):
        raise CubeError(f"block={block!r}: a block is longer than nothing, such as '45D'")
    return length


def _iso(moment: np.datetime64) -> str:
    return str(moment.astype("datetime64[s]"))
