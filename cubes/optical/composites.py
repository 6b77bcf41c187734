"""Lazy composites over time, cloud masks by other policies, and nadir-adjusted reflectance.

Everything here takes a cube and returns dask-backed arrays on its grid whose attributes say what
was done to them. A composite is no cube: it has left the time axis, or has a coarser one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from cubes import physics, registry
from cubes.times import days_from, read_as
from cubes.types import ClearPolicy, CubeError, Layer

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Mask = xr.DataArray | ClearPolicy | None
"""What counts as usable: None takes the cube's own ``clear``, a policy derives another from its
scene classification, an array (bool, True = usable) is a person's own."""

BLOCK_BYTES = 256 * 2**20
"""Most float32 pixels of all dates and bands that one task holds."""


# ---------------------------------------------------------------------------------------- masks


def usable(cube: xr.DataTree, mask: Mask = None, *, layer: str = "s2/reflectance") -> xr.DataArray:
    """Return where a layer of a cube may be used by a stated choice, lazy.

    Parameters
    ----------
    cube : DataTree
        A cube with `layer`.
    mask : DataArray or ClearPolicy, optional
        A person's own mask, ``(time, y, x)`` or ``(y, x)``, bool, True = usable; or a policy, for
        which the cube needs ``s2/scl``; by default ``clear`` of the layer's group where it has one,
        else everything.
    layer : str
        The layer it is for.

    Returns
    -------
    xarray.DataArray
        ``(time, y, x)``, bool, True = usable; nothing about nodata, for which see `cubes.valid`.
        Attribute ``mask`` says which choice it was.

    Raises
    ------
    CubeError
        No such layer; a policy without ``s2/scl``; a mask that is not bool or on another grid.
    """
    dataset, data, _ = _layer(cube, layer)
    template = data.isel({d: 0 for d in data.dims if d in ("pol", "band")}, drop=True)
    if isinstance(mask, ClearPolicy):
        if "scl" not in dataset:
            raise CubeError("a ClearPolicy needs the layer s2/scl in the cube; open it with it")
        text = f"classes {', '.join(map(str, mask.classes))}; dilated by {mask.dilate} px"
        return clear_of(dataset["scl"], mask).assign_attrs(mask=text)
    if isinstance(mask, xr.DataArray):
        return _own(mask, template)
    if mask is not None:
        raise CubeError(f"a mask is a DataArray or a ClearPolicy, not a {type(mask).__name__}")
    if "clear" in dataset and dataset["clear"].dims == template.dims:
        return dataset["clear"].assign_attrs(mask="the cube's clear")
    return xr.ones_like(template, dtype=bool).assign_attrs(mask="none")


def clear_of(scl: xr.DataArray, policy: ClearPolicy) -> xr.DataArray:
    """Return where a scene classification, (..., y, x) uint8, is clear by a policy, bool, lazy."""
    function: Callable[..., Any] = partial(physics.clear, policy=policy)
    return physics.with_halo(scl, function, policy.dilate, boundary=0, dtype=bool)


def _own(mask: xr.DataArray, template: xr.DataArray) -> xr.DataArray:
    if mask.dtype != bool:
        raise CubeError(
            f"the mask has dtype {mask.dtype}; it must be bool, True where usable (for example "
            "probability < 40)"
        )
    for dim in mask.dims:
        if dim not in template.dims:
            raise CubeError(f"the mask has a dimension {dim!r}; a mask has time, y and x, or y, x")
        same = mask.sizes[dim] == template.sizes[dim]
        if same and dim in mask.coords:
            same = bool((mask[dim].to_numpy() == template[dim].to_numpy()).all())
        if not same:
            raise CubeError(
                f"the mask lies on another {dim} than the layer: {mask.sizes[dim]} values, the "
                f"layer has {template.sizes[dim]}; bring it onto the cube's grid and times first"
            )
    plain = mask.drop_vars([c for c in mask.coords if c not in mask.dims])
    wide = plain.broadcast_like(template).transpose(*template.dims)
    return wide.assign_attrs(mask="supplied by the user")


def dilate(mask: xr.DataArray, pixels: int, *, valid: xr.DataArray | None = None) -> xr.DataArray:
    """Return a mask whose unusable areas have grown by a disc, lazy.

    Parameters
    ----------
    mask : DataArray
        ``(time, y, x)`` or ``(y, x)``, bool, True = usable.
    pixels : int
        Radius in pixels.
    valid : DataArray, optional
        Where there is data, bool, dims of `mask`, such as ``cubes.valid(cube["s2/scl"])``: what is
        missing is no cloud and does not grow, as in `ClearPolicy`. A mask alone does not tell
        missing from cloudy: without `valid` everything that is unusable grows, the outside of a
        swath too.

    Raises
    ------
    CubeError
        Not bool, `valid` on another grid, or a negative radius.
    """
    if mask.dtype != bool:
        raise CubeError(f"the mask has dtype {mask.dtype}; it must be bool, True where usable")
    if pixels < 0 or pixels != int(pixels):
        raise CubeError(f"cannot dilate by {pixels} pixels; give whole pixels, 0 or more")
    grown = mask
    if valid is not None:
        # a person's own mask is held to the same rules
        grown = mask | ~_own(valid, mask)
    near = physics.with_halo(
        grown, partial(_dilated, pixels=pixels), pixels, boundary=True, dtype=bool
    )
    out = near if valid is None else near & mask
    return out.assign_attrs(mask=f"{mask.attrs.get('mask', 'mask')}, dilated by {pixels} px")


def _dilated(block: Bools, *, pixels: int) -> Bools:
    return np.asarray((_distance(~block, pixels + 1) > pixels) & block)


def _distance(cloudy: Bools, reach: float) -> npt.NDArray[np.float32]:
    """Return the distance to the nearest True in pixels, at most `reach`, per image."""
    from scipy.ndimage import distance_transform_edt

    out = np.full(cloudy.shape, reach, np.float32)
    for index in np.ndindex(cloudy.shape[:-2]):
        if cloudy[index].any():
            out[index] = np.minimum(distance_transform_edt(~cloudy[index]), reach)
    return out


# ------------------------------------------------------------------------------------ composites


def median(
    cube: xr.DataTree,
    *,
    every: str | None = None,
    mask: Mask = None,
    layer: str = "s2/reflectance",
) -> xr.Dataset:
    """Return the median over time of the usable dates of each pixel, lazy.

    Parameters
    ----------
    cube : DataTree
        A cube.
    every : str, optional
        Length of a period as pandas writes it, such as ``1MS`` or ``30D``: one median each, periods
        without a date included. By default one over all dates.
    mask : DataArray or ClearPolicy, optional
        See `usable`.
    layer : str
        A layer along time, not a class or a phase.

    Returns
    -------
    xarray.Dataset
        The layer's variable, float32 in its units (of backscatter the median in linear power, in
        dB), NaN where no date is usable, ``(band, y, x)`` or with `every` ``(time, band, y, x)``,
        time the start of the period; ``observations``, int16, usable dates of each pixel.

    Raises
    ------
    CubeError
        See `usable`; a layer without a median.
    """
    data, good, row = _inputs(cube, layer, mask)
    function = partial(_median_block, linear=row.convert == "power_to_db")

    def one(part: xr.DataArray, clear: xr.DataArray) -> xr.Dataset:
        values = _reduced(function, part, clear, row.variable)
        return values.to_dataset().assign(observations=clear.sum("time").astype("int16"))

    extra = {"composite": "median over time", "mask": good.attrs["mask"]}
    if every is None:
        return _described(one(data, good), data, extra)
    parts = [
        one(data.isel(time=where), good.isel(time=where)).expand_dims(time=[start])
        for start, where in _periods(data, every)
    ]
    out = xr.concat(parts, "time", data_vars="all", coords="minimal", compat="override")
    return _described(out, data, {**extra, "composite": f"median over periods of {every}"})


def _median_block(values: Floats, good: Bools, *, linear: bool) -> Floats:
    """Return the median of (..., time) where good (..., time)."""
    numbers = np.where(good, physics.power(values) if linear else values, np.nan)
    numbers.sort(axis=-1)  # NaN last; np.nanmedian takes 5 times as long and warns
    count = (~np.isnan(numbers)).sum(-1, keepdims=True)
    low = np.take_along_axis(numbers, np.maximum(count - 1, 0) // 2, -1)
    high = np.take_along_axis(numbers, count // 2 % numbers.shape[-1], -1)
    middle = np.where(count > 0, (low + high) / 2, np.nan)[..., 0].astype(np.float32)
    return physics.db(middle) if linear else middle


def _periods(data: xr.DataArray, every: str) -> list[tuple[pd.Timestamp, npt.NDArray[np.intp]]]:
    times = pd.Series(np.arange(data.sizes["time"]), index=data.indexes["time"])
    try:
        groups = times.resample(every)
    except (TypeError, ValueError):
        raise CubeError(f"{every!r} is no period; write it as pandas does: 30D, 1MS, QS") from None
    return [(pd.Timestamp(str(start)), part.to_numpy()) for start, part in groups]


def nearest(
    cube: xr.DataTree,
    date: Any,
    *,
    max_gap: str | None = None,
    mask: Mask = None,
    layer: str = "s2/reflectance",
) -> xr.Dataset:
    """Return each pixel as of the usable date nearest to a day, all bands from one date, lazy.

    Parameters
    ----------
    cube : DataTree
        A cube.
    date : date or str
        The day aimed at, whole: all of its dates are at distance 0. With a time of day that moment.
    max_gap : str, optional
        Longest distance in time, such as ``30D``; beyond it a pixel stays NaN.
    mask : DataArray or ClearPolicy, optional
        See `usable`.
    layer : str
        A layer along time.

    Returns
    -------
    xarray.Dataset
        The layer's variable, ``(band, y, x)``, float32, NaN where no date is usable; ``day``,
        ``(y, x)``, float32, days from `date` (negative: before; whole where it is a day). Of two
        dates equally far the earlier one.

    Raises
    ------
    CubeError
        See `usable`; no date within `max_gap`; what is no date or no length of time.
    """
    data, good, row = _inputs(cube, layer, mask)
    day, days = days_from(data.indexes["time"], date)
    if max_gap is not None:
        limit = read_as(pd.Timedelta, max_gap, "'30D'") / pd.Timedelta("1D")
        if not (np.abs(days) <= limit).any():
            raise CubeError(f"no date of {layer} lies within {max_gap} of {day:%Y-%m-%d}")
        good = good & xr.DataArray(np.abs(days) <= limit, dims="time")
    score = xr.DataArray(-np.abs(days).astype(np.float32), dims="time").broadcast_like(good)
    text = f"nearest usable date to {day:%Y-%m-%d}"
    extra = {"composite": text, "max_gap": max_gap or "none", "mask": _mask_text(cube, mask, layer)}
    return _described(_picked(data, good, score, days, row), data, extra).drop_vars("score")


@dataclass(frozen=True, kw_only=True, slots=True)
class BestPixel:
    """How candidates for a pixel are scored; only usable ones count at all.

    The form of Griffiths et al. (2013, IEEE JSTARS 6): a sigmoid of the distance to the nearest
    unusable pixel and a Gaussian of the days from the day aimed at, weighted and added.
    """

    distance: float = 500.0
    """Metres from an unusable pixel at which the distance no longer matters."""
    days: float = 30.0
    """Standard deviation of the Gaussian in time."""
    cloud_weight: float = 1.0
    day_weight: float = 1.0


def best(
    cube: xr.DataTree,
    date: Any,
    *,
    policy: BestPixel | None = None,
    mask: Mask = None,
    layer: str = "s2/reflectance",
) -> xr.Dataset:
    """Return each pixel from its best date by a stated policy, all bands from one date, lazy.

    Parameters
    ----------
    cube : DataTree
        A cube.
    date : date or str
        The day aimed at, whole: all of its dates are at distance 0. With a time of day that moment.
    policy : BestPixel, optional
        How distance to cloud and in time are weighed.
    mask : DataArray or ClearPolicy, optional
        See `usable`.
    layer : str
        A layer along time.

    Returns
    -------
    xarray.Dataset
        The layer's variable, ``(band, y, x)``, float32, NaN where no date is usable; ``day``,
        ``(y, x)``, days from `date`; ``score``, ``(y, x)``, 0 to 1.

    Raises
    ------
    CubeError
        See `usable`; a policy of weights or lengths that are not positive; what is no date.
    """
    policy = policy or BestPixel()
    total = policy.cloud_weight + policy.day_weight
    weights = (policy.cloud_weight, policy.day_weight)
    if policy.distance <= 0 or policy.days <= 0 or total <= 0 or min(weights) < 0:
        raise CubeError(
            f"{policy}: distance, days and the sum of the weights must be above 0, no weight below"
        )
    data, good, row = _inputs(cube, layer, mask)
    aim, days = days_from(data.indexes["time"], date)
    pixel = abs(float(data["x"][1] - data["x"][0])) if data.sizes["x"] > 1 else 10.0
    reach = max(1.0, policy.distance / pixel)
    clear = usable(cube, mask, layer=layer)
    # nodata is not cloud: a pixel at the edge of a swath is as good as any
    cloudy = ~clear.transpose(*good.dims) & _valid(data)
    near = physics.with_halo(
        cloudy.chunk(_chunks_of(good)),
        partial(_distance, reach=reach),
        math.ceil(reach),
        boundary=False,
        dtype=np.float32,
    )
    # 50 px of 30 m in the paper: the slope of its sigmoid, 0.2 per px, in units of the reach
    cloud = 1 / (1 + np.exp(-10 * (near / np.float32(reach) - 0.5)))
    gauss = np.exp(-0.5 * (days / policy.days) ** 2)
    day = xr.DataArray(gauss.astype(np.float32), dims="time")
    score = (day * policy.day_weight + cloud * policy.cloud_weight) / total
    extra = {
        "composite": f"best pixel around {aim:%Y-%m-%d}",
        "policy": str(policy),
        "mask": clear.attrs["mask"],
    }
    return _described(_picked(data, good, score.transpose(*good.dims), days, row), data, extra)


# -------------------------------------------------------------------------------------- plumbing


def _layer(cube: xr.DataTree, name: str) -> tuple[xr.Dataset, xr.DataArray, Layer]:
    row = registry.layer(name)
    if row.group not in cube.children or row.variable not in cube[row.group].data_vars:
        have = [f"{g}/{v}" for g, node in cube.children.items() for v in node.data_vars]
        raise CubeError(f"this cube has no layer {name!r}; it has {', '.join(have)}")
    dataset = cube[row.group].to_dataset()
    data = dataset[row.variable]
    if "time" not in data.dims or row.kind != "continuous":
        raise CubeError(
            f"layer {name!r} is {row.kind} along {data.dims[0]}: it has no composite; take one of "
            "measurements along time, such as s2/reflectance or s1/backscatter"
        )
    return dataset, data, row


def _inputs(cube: xr.DataTree, layer: str, mask: Mask) -> tuple[xr.DataArray, xr.DataArray, Layer]:
    """Return a layer, where it may be used and has data, both chunked over space alone."""
    _, data, row = _layer(cube, layer)
    clear = usable(cube, mask, layer=layer)
    data = data.drop_vars([c for c in data.coords if c not in (*data.dims, "spatial_ref")])
    clear = clear.drop_vars([c for c in clear.coords if c not in clear.dims])
    edges = _edges(data)
    data = data.chunk({"time": -1, **{d: -1 for d in data.dims if d in ("pol", "band")}, **edges})
    clear = clear.chunk({"time": -1, **edges})
    good = (clear & _valid(data)).assign_attrs(mask=clear.attrs["mask"])
    return data, good, row


def _valid(data: xr.DataArray) -> xr.DataArray:
    """Return where every channel has data: all bands of a pixel come from one date."""
    present = data.notnull()  # noqa: PD004 - xarray's own name
    channels = [d for d in data.dims if d in ("pol", "band")]
    return present.all(channels) if channels else present


def _edges(data: xr.DataArray) -> dict[str, int]:
    """Return edges along y and x that keep all dates and channels of a block in bounds."""
    have = dict(zip(data.dims, data.chunks, strict=True)) if data.chunks else {}
    edges = {d: int(max(have.get(d, (256,)))) for d in ("y", "x")}
    depth = data.size // (data.sizes["y"] * data.sizes["x"])
    while depth * edges["y"] * edges["x"] * 4 > BLOCK_BYTES and max(edges.values()) > 32:
        longer = max(edges, key=lambda d: edges[d])
        edges[longer] = math.ceil(edges[longer] / 2)
    return {d: min(e, data.sizes[d]) for d, e in edges.items()}


def _chunks_of(data: xr.DataArray) -> dict[Any, Any]:
    assert data.chunks is not None
    return {**dict(zip(data.dims, data.chunks, strict=True)), "time": 1}


def _reduced(
    function: Callable[..., Any], data: xr.DataArray, good: xr.DataArray, name: str
) -> xr.DataArray:
    """Return a function of (..., time) blocks; all NaN where there is no date at all."""
    if data.sizes["time"] == 0:
        empty = data.sum("time", keep_attrs=True, dtype="float32")
        return xr.full_like(empty, np.nan, dtype=np.float32).rename(name)
    out: xr.DataArray = xr.apply_ufunc(
        function,
        data,
        good,
        input_core_dims=[["time"], ["time"]],
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    return out.rename(name)


def _picked(
    data: xr.DataArray, good: xr.DataArray, score: xr.DataArray, days: Floats, row: Layer
) -> xr.Dataset:
    """Return for each pixel the date of the highest score among the good ones."""
    score = score.chunk({"time": -1}).where(good, -np.inf)
    found = good.any("time")
    # of equal scores the first, which is the earlier date
    place = score.argmax("time").where(found, -1)
    values = xr.apply_ufunc(
        _take,
        data,
        place,
        input_core_dims=[["time"], []],
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    day = xr.apply_ufunc(
        partial(_look_up, table=np.append(days, np.nan).astype(np.float32)),
        place,
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    top = score.max("time").astype("float32").where(found)
    return xr.Dataset({row.variable: values, "day": day, "score": top})


def _take(values: Floats, place: npt.NDArray[np.intp]) -> Floats:
    """Return of (..., time) the value at each place, NaN where the place is -1."""
    wide = np.broadcast_to(place, values.shape[:-1])[..., None]
    taken = np.take_along_axis(values, np.maximum(wide, 0), -1)[..., 0]
    return np.where(wide[..., 0] >= 0, taken, np.float32(np.nan)).astype(np.float32)


def _look_up(place: npt.NDArray[np.intp], *, table: Floats) -> Floats:
    return np.asarray(table[place])


def _mask_text(cube: xr.DataTree, mask: Mask, layer: str) -> str:
    return str(usable(cube, mask, layer=layer).attrs["mask"])


def _described(out: xr.Dataset, data: xr.DataArray, extra: Mapping[str, Any]) -> xr.Dataset:
    """Return a composite with the grid mapping, the layer's attributes and what was done."""
    times = data.indexes["time"]
    dates: dict[str, Any] = {"dates": len(times)}
    if len(times):
        dates |= {"first_date": f"{times.min():%Y-%m-%d}", "last_date": f"{times.max():%Y-%m-%d}"}
    if "spatial_ref" in data.coords:
        out = out.assign_coords(spatial_ref=data.coords["spatial_ref"])
    for name, array in out.data_vars.items():
        if name == data.name:
            array.attrs = {**data.attrs, **extra, **dates}
        array.encoding["grid_mapping"] = "spatial_ref"
    return out.assign_attrs({**extra, **dates})
