"""Which files of one acquisition count, and bursts of one pass laid over each other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from cubes import physics
from cubes.types import CubeError

Array = npt.NDArray[Any]


def newest(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with each acquisition once, and the items that newer ones replace.

    Raises
    ------
    CubeError
        Two of the same version and time of processing.
    """

    def age(index: Any) -> tuple[tuple[int, ...], str]:
        version = re.findall(r"\d+", table["version"][index])
        return tuple(map(int, version)), table["processed"][index]

    old = []
    for _, same in table.groupby(["burst", "pol", "pass"]):
        order = sorted(same.index, key=age)
        if len(order) > 1 and age(order[-1]) == age(order[-2]):
            one, two = (table["item"][i] for i in order[-2:])
            raise CubeError(
                f"{one} and {two} are one acquisition, both of version "
                f"{table['version'][order[-1]]} and processed at one time: leave one out"
            )
        old += order[:-1]
    return table.drop(index=old), sorted(table["item"][i] for i in old)


def reach(window: tuple[int, int], looks: tuple[int, int]) -> int:
    """Return how many pixels of the result are made with fewer looks along a burst's rim."""
    return max(-(-w // (2 * m)) for w, m in zip(window, looks, strict=True)) + 1


def mosaic(parts: Sequence[xr.Dataset], reach: int) -> xr.Dataset:
    """Return datasets of one grid laid over each other; coherence decides for both layers.

    The one with the most data within `reach` pixels wins.
    """
    out = parts[0]
    if len(parts) == 1:
        return out
    depth = _data_around(out["coherence"], reach)
    for more in parts[1:]:
        other = _data_around(more["coherence"], reach)
        have = depth >= other
        out = xr.Dataset({name: out[name].where(have, more[name]) for name in out})
        depth = depth.where(have, other)
    return out


def _data_around(coherence: xr.DataArray, reach: int) -> xr.DataArray:
    """Return how many pixels around each have data, int32; 0 where a pixel itself has none."""
    part = partial(_counted, reach=reach)
    return physics.with_halo(coherence, part, reach, boundary=np.nan, dtype=np.int32)


def _counted(block: Array, *, reach: int) -> Array:
    from scipy.ndimage import correlate1d

    good = np.isfinite(block)
    count = good.astype(np.int32)  # whole numbers: the same in any chunks
    for axis in (-2, -1):
        count = correlate1d(count, np.ones(2 * reach + 1, np.int32), axis, mode="constant")
    return np.where(good, count, 0).astype(np.int32)
