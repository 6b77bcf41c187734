"""Which cubes lie in one place: by the name of their area and the ground that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import shapely

from cubes.bounds import outline
from cubes.sampling.index import StoreIndex
from cubes.types import CubeError

TOUCH = 0.05
"""Degrees within which cubes of one area's name are one place: the parts of an area over two zones
abut, and its cubes of several years lie on each other; another file of the same name lies apart."""


def places(stores: Sequence[StoreIndex]) -> tuple[np.ndarray, list[str]]:
    """Return which place each cube lies in, (store,), and the names of the places, sorted.

    A place is called as its area, and as its area and first cube where several places have one
    area's name (which often is a file's).
    """
    ground = [outline(_bounds(s), s.crs, step=10_000.0) for s in stores]
    groups: list[list[int]] = []
    for i, store in enumerate(stores):
        mine = [
            g for g in groups
            if any(
                stores[j].aoi == store.aoi and shapely.dwithin(ground[i], ground[j], TOUCH)
                for j in g
            )
        ]  # fmt: skip
        groups = [g for g in groups if g not in mine] + [sorted([i, *(j for g in mine for j in g)])]
    called = [stores[g[0]].aoi for g in groups]
    names = [
        name if called.count(name) == 1 else f"{name} ({stem(stores[g[0]])})"
        for name, g in zip(called, groups, strict=True)
    ]
    order = sorted(range(len(groups)), key=lambda k: (names[k], groups[k][0]))
    number = np.empty(len(stores), np.int64)
    for place, k in enumerate(order):
        number[groups[k]] = place
    return number, [names[k] for k in order]


def stem(store: StoreIndex) -> str:
    """Return the name of a cube: that of its folder, without ``.zarr``."""
    return Path(store.path).stem


def held(stores: Sequence[StoreIndex], parts: Mapping[str, Sequence[str]]) -> np.ndarray:
    """Return which part each cube is held out for, (store,): 1 and up as they are given, 0: none.

    Parameters
    ----------
    stores
        The cubes.
    parts
        Part -> names of areas, places (`places`) or cubes.

    Raises
    ------
    CubeError
        A name that nothing has, or that is held out twice; a part of no name; nothing left.
    """
    number, names = places(stores)
    side = np.zeros(len(stores), np.int64)
    for part, (name, wanted) in enumerate(parts.items(), 1):
        if isinstance(wanted, str) or not wanted:
            raise CubeError(f"by={{{name!r}: {wanted!r}}}: a sequence of names, such as ('a', 'b')")
        for area in wanted:
            mine = np.array(
                [area in (names[n], s.aoi, stem(s)) for n, s in zip(number, stores, strict=True)]
            )
            if not mine.any():
                raise CubeError(
                    f"by={{{name!r}: ...}} names {area!r}, which no area or cube is called; there "
                    f"are {', '.join(names)} (cubes: {', '.join(sorted(set(map(stem, stores))))})"
                )
            mine = np.isin(number, number[mine])  # a place is held out whole
            if (side[mine] > 0).any() and (side[mine] != part).any():
                raise CubeError(f"{area!r} is held out for two parts: name it once")
            side[mine] = part
    if (side > 0).all():
        raise CubeError(f"all areas are held out ({', '.join(names)}): nothing is left to train on")
    return side


def _bounds(store: StoreIndex) -> tuple[float, float, float, float]:
    rows, columns = store.shape
    x, y = store.corner(np.array([0, rows]), np.array([0, columns]))
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())
