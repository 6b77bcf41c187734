"""Granules become a plan: axes with their coordinates, and for each step the assets that fill it.

Everything that decides what a cube's numbers mean happens here, once, before any pixel is read:
which granules are one pass, which assets in which order, and what to add to a digital number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pandas as pd

from cubes import series
from cubes.types import (
    STACK_DIMS,
    ArrayPlan,
    Asset,
    Axis,
    Catalog,
    CubeError,
    Layer,
    OnMissing,
    Product,
)

OFFSET_SINCE = (4, 0)
"""Processing baseline from which ESA's Sentinel-2 digital numbers carry +1000 (2022-01-25)."""

ESA_OFFSET = 1000.0

Search = Callable[[str, bool, Mapping[str, Any]], pd.DataFrame]
"""(collection, whether the time range applies, property query) -> table of granules."""

TEXT = frozenset({"items", "platform", "orbit_state", "baseline", "label", "tile", "datatake"})
"""Coordinates that are text even where every value is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Want:
    """What to plan: layers, how a catalogue delivers them, and what to do about gaps."""

    layers: tuple[Layer, ...]
    catalog: Catalog
    crs: str
    """Of the grid: granules in it come first in a mosaic, so that fewer pixels are resampled."""
    time: tuple[str, str]
    on_missing: OnMissing = "raise"


def offset_shift(
    rule: str, properties: Mapping[str, Any], item: str, *, baseline: str | None = None
) -> float:
    """Return what brings an item's digital numbers to ESA's convention of today (+1000 inside).

    Parameters
    ----------
    rule : str
        ``Product.offset_rule``.
    properties : mapping
        The STAC item's properties.
    item : str
        Its id, for messages.
    baseline : str, optional
        Processing baseline known otherwise, such as from the product name; the property wins.

    Raises
    ------
    CubeError
        The rule needs a processing baseline or flag that the item lacks.
    """
    if rule == "always":
        return 0.0
    if rule == "none":
        return ESA_OFFSET
    stated = properties.get("s2:processing_baseline") or properties.get("processing:version")
    text = stated or baseline
    try:
        new = tuple(int(v) for v in str(text).split(".")[:2]) >= OFFSET_SINCE
    except ValueError:
        raise CubeError(
            f"item {item!r} has processing baseline {text!r}, so whether its digital numbers carry "
            "ESA's offset of +1000 cannot be known; give the catalogue row "
            'offset_rule = "none" (no offset in the pixels) or "always" (offset inside)'
        ) from None
    if rule == "baseline" or not new:
        # before 04.00 no catalogue has an offset in the pixels, whatever its flag says
        return 0.0 if new else ESA_OFFSET
    applied = properties.get("earthsearch:boa_offset_applied")
    if applied is None:
        raise CubeError(
            f"item {item!r} is of baseline {text} but lacks earthsearch:boa_offset_applied, so "
            "whether the offset was already removed cannot be known; leave the item out, or give "
            'the catalogue row offset_rule = "always" or "none"'
        )
    return ESA_OFFSET if applied else 0.0


def _unsigned(href: str, catalog: Catalog) -> str:
    """Return the href without its query where the catalogue signs at read time: tokens expire."""
    if catalog.access.sign is None or "?" not in href:
        return href
    return urlunsplit((*urlsplit(href)[:3], "", ""))


def _asset(row: Any, channel: str, layer: Layer, want: Want) -> Asset | None:
    product = want.catalog.products[layer.name]
    key = product.assets[channel]
    found = row.assets.get(key)
    if found is None:
        return None
    shift = (
        offset_shift(product.offset_rule, row.properties, row.id, baseline=row.baseline)
        if layer.name == "s2/reflectance"
        else 0.0
    )
    return Asset(
        href=_unsigned(found["href"], want.catalog),
        item=row.id,
        key=key,
        bbox=tuple(row.bbox),
        nodata=product.nodata,
        zero=product.zero,
        shift=shift,
        scale=product.scale,
    )


def product_of(layer: Layer, catalog: Catalog) -> Product:
    """Return how `catalog` delivers `layer`, every channel included.

    Raises
    ------
    CubeError
        It does not; the message lists what it has.
    """
    product = catalog.products.get(layer.name)
    if product is None:
        raise CubeError(
            f"catalogue {catalog.name!r} does not deliver layer {layer.name!r}; it has "
            f"{', '.join(catalog.products) or 'no layers'}. Take another catalogue, leave the "
            "layer out, or add a product row of your own"
        )
    for channel in layer.channels or ("",):
        if channel not in product.assets:
            have = ", ".join(c for c in layer.channels if c in product.assets)
            raise CubeError(
                f"catalogue {catalog.name!r} has no {layer.channel_dim or 'asset'} {channel!r} "
                f"for {layer.name!r}; it has {have or 'none'}: name those with "
                f"{'bands' if layer.channel_dim == 'band' else 'pols'}=(...)"
            )
    return product


def _step_assets(
    rows: Sequence[Any], layer: Layer, want: Want
) -> tuple[dict[str, tuple[Asset, ...]], list[str]]:
    """Return the assets of one step by channel, and ``item/asset`` of those that are missing."""
    assets: dict[str, tuple[Asset, ...]] = {}
    missing: list[str] = []
    for channel in layer.channels or ("",):
        found = []
        for row in rows:
            asset = _asset(row, channel, layer, want)
            if asset is None:
                missing.append(f"{row.id}/{want.catalog.products[layer.name].assets[channel]}")
            else:
                found.append(asset)
        assets[channel] = tuple(found)
    return assets, missing


def _text(values: Sequence[Any], default: str = "") -> str:
    """Return the distinct known values of a step, joined by ``/``."""
    known = dict.fromkeys(str(v) for v in values if not _absent(v))
    return "/".join(known) or default


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _mean(values: Sequence[Any]) -> float:
    known = [float(v) for v in values if not _absent(v)]
    return float(np.mean(known)) if known else float("nan")


def _mean_azimuth(values: Sequence[Any]) -> float:
    """Return the mean direction in degrees 0..360: of 359 and 1 it is 0, not 180."""
    known = [float(v) for v in values if not _absent(v)]
    if len(set(known)) <= 1:
        return known[0] if known else float("nan")
    turns = np.exp(1j * np.deg2rad(known))
    return float(np.rad2deg(np.angle(turns.mean())) % 360)


def _whole(values: Sequence[Any]) -> int:
    """Return the first known whole number, 0 where unknown (orbits count from 1)."""
    return next((int(v) for v in values if not _absent(v)), 0)


def _items(rows: pd.DataFrame) -> str:
    return ",".join(rows["id"])


def _iso(time: Any) -> str:
    stamp = pd.Timestamp(time)
    return (stamp.tz_convert(None) if stamp.tz is not None else stamp).isoformat()


Coordinates = dict[str, Any]
Grouped = list[tuple[Coordinates, list[Any]]]
"""Coordinates of each step, and its granules as objects with the attributes of `_NEEDED`."""

_NEEDED = ("id", "time", "bbox", "baseline", "properties", "assets")


def _time_steps(table: pd.DataFrame, group: str) -> Grouped:
    table = series.passes(series.deduplicate(series.with_tracks(table)))
    # columns as lists, taken out once: pandas by the step took 1 s of opening 1,000 granules
    columns = {name: table[name].tolist() for name in _OF_A_STEP}
    records = _records(table)
    out: Grouped = []
    for _, places in sorted(table.groupby("step").indices.items()):
        of = {name: [values[i] for i in places] for name, values in columns.items()}
        coords: Coordinates = {
            "time": _iso(min(of["time"])),
            "platform": _text(of["platform"]),
            "relative_orbit": _whole(of["relative_orbit"]),
            "items": ",".join(of["id"]),
        }
        if group == "s1":
            coords |= {
                "orbit_state": _text(of["orbit_state"]),
                "absolute_orbit": _whole(of["absolute_orbit"]),
                "processor_version": _text(
                    [p.get("processing:version") or p.get("s1:processor_version")
                     for p in of["properties"]]
                ),
            }  # fmt: skip
        else:
            coords |= {
                "baseline": _text(of["baseline"]),
                "cloud_cover": _mean(of["cloud_cover"]),
                "sun_azimuth": _mean_azimuth(of["sun_azimuth"]),
                "sun_elevation": _mean(of["sun_elevation"]),
                "view_azimuth": _mean_azimuth([p.get("view:azimuth") for p in of["properties"]]),
                "view_incidence": _mean(
                    [p.get("view:incidence_angle", p.get("s2:mean_incidence_angle"))
                     for p in of["properties"]]
                ),
            }  # fmt: skip
        out.append((coords, [records[i] for i in places]))
    return out


_OF_A_STEP = (
    "id", "time", "platform", "relative_orbit", "orbit_state", "absolute_orbit", "baseline",
    "cloud_cover", "sun_azimuth", "sun_elevation", "properties",
)  # fmt: skip


def _pair_steps(table: pd.DataFrame) -> Grouped:
    reference = [p.get("insar:reference_datetime") for p in table["properties"]]
    secondary = [p.get("insar:secondary_datetime") for p in table["properties"]]
    for item, first, second in zip(table["id"], reference, secondary, strict=True):
        if not (first and second):
            raise CubeError(
                f"item {item!r} lacks insar:reference_datetime or insar:secondary_datetime, so "
                "its pair is unknown"
            )
    table = table.assign(
        _reference=[_iso(v) for v in reference], _secondary=[_iso(v) for v in secondary]
    )
    out: Grouped = []
    keys = ["_secondary", "_reference", "relative_orbit", "orbit_state"]
    for _, rows in table.groupby(keys, sort=True, dropna=False):
        row = rows.iloc[0]
        first, second = pd.Timestamp(row["_reference"]), pd.Timestamp(row["_secondary"])
        track = series.track_label(row["relative_orbit"], row["orbit_state"])
        properties = row["properties"]
        coords: Coordinates = {
            "pair": f"{first:%Y%m%dT%H%M%S}_{second:%Y%m%dT%H%M%S}_{track}",
            "reference_time": row["_reference"],
            "secondary_time": row["_secondary"],
            # days between passes, whole: orbits repeat to within seconds
            "temporal_baseline": round((second - first) / pd.Timedelta("1D")),
            "perpendicular_baseline": _mean([properties.get("insar:perpendicular_baseline")]),
            "relative_orbit": _whole([row["relative_orbit"]]),
            "orbit_state": _text([row["orbit_state"]]),
            "items": _items(rows),
        }
        out.append((coords, _records(rows)))
    return out


def _track_steps(table: pd.DataFrame) -> Grouped:
    table = series.with_tracks(table)
    labels = [series.track_label(r.relative_orbit, r.orbit_state) for r in table.itertuples()]
    out: Grouped = []
    for label, rows in table.assign(_track=labels).groupby("_track", sort=True):
        coords: Coordinates = {
            "track": str(label),
            "relative_orbit": _whole(rows["relative_orbit"].tolist()),
            "orbit_state": _text(rows["orbit_state"].tolist()),
            "items": _items(rows),
        }
        out.append((coords, _records(rows)))
    return out


def _year_steps(table: pd.DataFrame, time: tuple[str, str]) -> Grouped:
    """Return label maps by year: those inside the time range, or else the nearest year's."""
    years = table["time"].dt.year
    first, last = (pd.Timestamp(t).year for t in time)
    inside = (years >= first) & (years <= last)
    if not inside.any():
        away = np.minimum((years - first).abs(), (years - last).abs())
        inside = away == away.min()
    out: Grouped = []
    for year, rows in table[inside].groupby(years[inside], sort=True):
        out.append(({"year": int(year), "items": _items(rows)}, _records(rows)))
    return out


def _steps(layer: Layer, table: pd.DataFrame, time: tuple[str, str]) -> Grouped:
    """Return the steps along a layer's axis: coordinates, and the granules that make each."""
    if layer.stack_dim == "time":
        return _time_steps(table, layer.group)
    if layer.stack_dim == "pair":
        return _pair_steps(table)
    if layer.stack_dim == "track":
        return _track_steps(table)
    if layer.stack_dim == "year":
        return _year_steps(table, time)
    return [({}, _records(table))]


def _mosaic_order(rows: list[Any], crs: str) -> list[Any]:
    """Return the rows of a step as they are laid: the grid's own CRS first, then time, then id."""

    def key(row: Any) -> tuple[bool, Any, str]:
        code = row.properties.get("proj:code") or f"EPSG:{row.properties.get('proj:epsg')}"
        return (str(code) != crs, row.time, row.id)

    return sorted(rows, key=key)


def _records(rows: pd.DataFrame) -> list[Any]:
    """Return rows as objects: itertuples makes a class per call, 1 s for 1,000 steps."""
    values = zip(*(rows[n] for n in _NEEDED), strict=True)
    return [SimpleNamespace(**dict(zip(_NEEDED, v, strict=True))) for v in values]


def _attrs(layer: Layer, product: Product) -> dict[str, Any]:
    attrs: dict[str, Any] = {"collection": product.collection}
    if layer.name == "s1/backscatter":
        if product.calibration is None:
            raise CubeError(
                f"the product row of {layer.name!r} in collection {product.collection!r} does not "
                "say its calibration; add calibration = one of beta0, sigma0, gamma0, gamma0_rtc, "
                "sigma0_terrain"
            )
        attrs["calibration"] = product.calibration
        if product.looks is not None:
            attrs["equivalent_looks"] = product.looks
    if layer.name == "s2/reflectance":
        attrs["offset_rule"] = product.offset_rule
    return attrs


def arrays(want: Want, search: Search) -> tuple[list[Axis], list[ArrayPlan], list[str]]:
    """Return axes, arrays, and ``item/asset`` of missing assets, for all wanted layers.

    Raises
    ------
    CubeError
        A layer the catalogue lacks; one axis asked of two collections; an asset missing from an
        item while ``on_missing`` is ``raise``.
    """
    axes: dict[tuple[str, str | None], tuple[str, Grouped]] = {}
    planned: list[ArrayPlan] = []
    missing: list[str] = []
    for layer in want.layers:
        if layer.derived_from:
            planned.append(ArrayPlan(layer=layer, steps=()))
            continue
        product = product_of(layer, want.catalog)
        # static layers of one group may come from different collections: no axis joins them
        key = (layer.group, layer.stack_dim or layer.name)
        if layer.stack_dim == "year":
            key = (layer.name, layer.stack_dim)
        if key not in axes:
            timed = layer.stack_dim in ("time", "pair")
            table = search(product.collection, timed, product.query)
            axes[key] = (product.collection, _steps(layer, table, want.time))
        collection, steps = axes[key]
        if collection != product.collection:
            raise CubeError(
                f"layers of {layer.group!r} along {layer.stack_dim!r} come from two collections, "
                f"{collection!r} and {product.collection!r}; they have no common axis"
            )
        filled = [_step_assets(_mosaic_order(rows, want.crs), layer, want) for _, rows in steps]
        missing += [m for _, absent in filled for m in absent]
        planned.append(
            ArrayPlan(
                layer=layer, steps=tuple(assets for assets, _ in filled),
                attrs=_attrs(layer, product),
            )
        )  # fmt: skip
    if missing and want.on_missing == "raise":
        raise CubeError(
            f"{len(missing)} assets are missing from their items, first {missing[0]!r}; pass "
            'on_missing="mask" to make their pixels nodata (recorded in the report)'
        )
    made = [_axis(key, steps) for key, (_, steps) in axes.items() if key[1] in STACK_DIMS]
    return _joined(made), planned, missing


def _axis(key: tuple[str, str | None], steps: Grouped) -> Axis:
    group, dim = key
    assert dim is not None
    names = list(steps[0][0])
    coords = {n: tuple(c[n] for c, _ in steps) for n in names}
    return Axis(group=group.split("/")[0], dim=dim, coords=coords)


def _joined(axes: list[Axis]) -> list[Axis]:
    """Return the axes, refusing two of one name that differ (label maps of different years)."""
    out: list[Axis] = []
    for axis in axes:
        same = [a for a in out if (a.group, a.dim) == (axis.group, axis.dim)]
        if not same:
            out.append(axis)
        elif same[0].coords[axis.dim] != axis.coords[axis.dim]:
            raise CubeError(
                f"the label layers cover different years, {same[0].coords[axis.dim]} and "
                f"{axis.coords[axis.dim]}; open them as two cubes"
            )
    return out


def column(name: str, values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return plain coordinate values as one array, so that a missing one never makes it `object`.

    Parameters
    ----------
    name : str
        Of the coordinate; not a time.
    values : sequence
        Plain values of an `Axis`, None where unknown.

    Returns
    -------
    array
        Text as ``object`` of str with "" where unknown; bool; int64; or float64 with NaN.
    """
    known = [v for v in values if v is not None]
    if name in TEXT or any(isinstance(v, str) for v in known):
        return np.array(["" if v is None else str(v) for v in values], object)
    if len(known) == len(values) and all(isinstance(v, bool | np.bool_) for v in known):
        return np.array(values, bool)
    if len(known) == len(values) and all(isinstance(v, int | np.integer) for v in known):
        return np.array(values, np.int64)
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)
