"""Cubes of several catalogues on one grid, put together as one."""

from __future__ import annotations

from typing import Any

import xarray as xr

from cubes import series
from cubes.schema import check
from cubes.types import CubeError


def join(first: xr.DataTree, *others: xr.DataTree) -> xr.DataTree:
    """Return one cube that holds the layers of several on the same grid, lazily.

    For layers that no one catalogue has together: backscatter of Planetary Computer with OPERA's
    incidence of the same tracks, or with coherence made from SLCs.

    Parameters
    ----------
    first, *others : DataTree
        Cubes, each opened on the grid of the first (``like=first["s1"].to_dataset()``). What
        stands along ``track`` is kept for the tracks that ``s1`` has dates of.

    Returns
    -------
    DataTree
        As documented for cubes. Texts among the root's attributes that differ are joined by commas;
        of others the first cube's stands.

    Raises
    ------
    CubeError
        A layer stands in two of them; a group's dates, pairs or years differ; a track with dates
        has no static layers; the grids differ.
    """
    cubes = (first, *others)
    groups: dict[str, xr.Dataset] = {}
    for cube in cubes:
        for name in cube.children:
            data = cube[name].to_dataset()
            groups[name] = _joined(name, groups[name], data) if name in groups else data
    if "s1" in groups and {"track", "time"} <= set(groups["s1"].dims):
        groups["s1"] = _tracks_of_dates(groups["s1"])
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = _attrs([{str(k): v for k, v in cube.attrs.items()} for cube in cubes])
    check(tree)
    return tree


def _joined(name: str, one: xr.Dataset, two: xr.Dataset) -> xr.Dataset:
    """Return the layers of two Datasets of one group.

    Raises
    ------
    CubeError
        The same layer, or other labels along the same dimension.
    """
    twice = sorted(map(str, set(one.data_vars) & set(two.data_vars)))
    if twice:
        raise CubeError(
            f"layer {name}/{twice[0]} stands in two of the cubes; drop it from one: "
            f"cube[{name!r}] = cube[{name!r}].to_dataset().drop_vars({twice[0]!r})"
        )
    for dim in sorted(map(str, (set(one.dims) & set(two.dims)) - {"y", "x"})):
        if dim in one.indexes and not one.indexes[dim].equals(two.indexes.get(dim)):
            raise CubeError(
                f"group {name!r} has {one.sizes[dim]} labels along {dim} in one cube and "
                f"{two.sizes[dim]} others in another; select the same in both before joining"
            )
    for dim in ("y", "x"):
        if not one.indexes[dim].equals(two.indexes[dim]):
            raise CubeError(
                f"group {name!r} lies on two grids (they differ along {dim}): open the second cube "
                "with like= an array of the first"
            )
    mine = [c for c in two.coords if c not in one.coords]
    return one.assign_coords({c: two[c] for c in mine}).assign(dict(two.data_vars))


def _tracks_of_dates(s1: xr.Dataset) -> xr.Dataset:
    """Return the group with the static layers of those tracks that it has dates of.

    Raises
    ------
    CubeError
        One of them has none.
    """
    pairs = zip(s1["relative_orbit"].to_numpy(), s1["orbit_state"].to_numpy(), strict=True)
    seen = sorted({series.track_label(int(o), str(s)) for o, s in pairs})
    known = [str(t) for t in s1["track"].to_numpy()]
    lost = [track for track in seen if track not in known]
    if lost:
        raise CubeError(
            f"track {lost[0]} has dates and no static layers; there are some of "
            f"{', '.join(known)}. Give those of its bursts too, or leave its dates out"
        )
    return s1.sel(track=seen)


def _attrs(each: list[dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for attrs in each:
        for key, value in attrs.items():
            if key not in out or out[key] == value:
                out[key] = value
            elif isinstance(value, str) and isinstance(out[key], str):
                out[key] = f"{out[key]}, {value}"
    return out
