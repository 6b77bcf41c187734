"""Granules become a plan: axes with their coordinates, and for each step the assets that fill it.

Everything that decides what a cube's numbers mean happens here, once, before any pixel is read:
which granules are one pass, which assets in which order, and what to add to a digital number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pandas as pd

from cubes.steps import Grouped
from cubes.steps import steps as steps_of
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
    rule: str,
    properties: Mapping[str, Any],
    item: str,
    *,
    baseline: str | None = None,
    asset: Mapping[str, Any] | None = None,
) -> float:
    """Return what brings an item's digital numbers to ESA's convention of today (+1000 inside).

    Everything that an item says of it must agree: its processing baseline (as a property, in the
    names of product, datastrip and granule), ``earthsearch:boa_offset_applied``, and the offset of
    the asset (``raster:bands`` or ``raster:offset``; not under the rule ``earthsearch_flag``
    where the flag is true: Earth Search then writes -0.1 although it has been removed).

    Parameters
    ----------
    rule : str
        ``Product.offset_rule``.
    properties : mapping
        The STAC item's properties.
    item : str
        Its id, in which the name of the product may stand.
    baseline : str, optional
        Processing baseline known otherwise.
    asset : mapping, optional
        The asset to be read.

    Raises
    ------
    CubeError
        The rule needs a processing baseline or flag that the item lacks, or it says two things.
    """
    if rule == "none":
        return ESA_OFFSET
    said = _baselines(properties, item, baseline)
    new = _since_offset(said, item, needed=rule != "always")
    removed = _removed(properties, item)
    if rule == "always" and new is False:
        raise _contradiction(item, _listed(said), "the catalogue's products carry the offset")
    if rule == "earthsearch_flag" and new and removed is None:
        raise CubeError(
            f"item {item!r} is of baseline {next(iter(said.values()))} but lacks {FLAG}, so "
            "whether the offset was already removed cannot be known; leave the item out, or give "
            'the catalogue row offset_rule = "always" or "none"'
        )
    if removed and rule != "earthsearch_flag":
        raise _contradiction(item, f"{FLAG} true", "this catalogue removes no offset")
    if removed and new is False:
        raise _contradiction(item, f"{FLAG} true", f"{_listed(said)}, which never had one")
    inside = rule == "always" or bool(new and not removed)
    stated = None if removed else _offset_of(asset or {})
    if stated is not None and (stated != 0) != inside:
        says = f"an offset of {stated:g} in the asset's metadata"
        what = _listed(said) or f"offset_rule {rule!r}"
        raise _contradiction(item, says, f"{what}: the offset is {'' if inside else 'not '}inside")
    return 0.0 if inside else ESA_OFFSET


FLAG = "earthsearch:boa_offset_applied"

_IN_PRODUCT = re.compile(r"_N([0-9]{2})([0-9]{2})_R[0-9]{3}(_|$)")
_AT_END = re.compile(r"_N([0-9]{2})\.([0-9]{2})$")
_BASELINE = re.compile(r"[0-9]{1,2}(\.[0-9]{1,2})*")


def _baselines(properties: Mapping[str, Any], item: str, otherwise: str | None) -> dict[str, str]:
    """Return every processing baseline that an item states, by where it does."""
    said = {}
    own = properties.get("s2:processing_baseline")
    version = properties.get("processing:version")
    if own:
        said["s2:processing_baseline"] = str(own)
    if version and (not own or _BASELINE.fullmatch(str(version))):
        said["processing:version"] = str(version)
    for key in ("s2:product_uri", "sentinel:product_id", "id"):
        found = _IN_PRODUCT.search(item if key == "id" else str(properties.get(key) or ""))
        if found:
            said[key] = f"{found[1]}.{found[2]}"
    for key in ("s2:datastrip_id", "s2:granule_id"):
        found = _AT_END.search(str(properties.get(key) or ""))
        if found:
            said[key] = f"{found[1]}.{found[2]}"
    return said or ({"baseline": str(otherwise)} if otherwise else {})


def _since_offset(said: Mapping[str, str], item: str, *, needed: bool) -> bool | None:
    """Return whether an item is of `OFFSET_SINCE` or later; None where it does not say.

    Statements that differ on one side of it are no contradiction here: the offset is the same.
    """
    new = {}
    for where, text in said.items():
        # 99.99 is what Sen2Cor writes on a user's machine: of any version
        if not _BASELINE.fullmatch(text) or text == "99.99":
            raise _unknown_baseline(item, text)
        new[where] = tuple(int(v) for v in text.split(".")[:2]) >= OFFSET_SINCE
    if not new and needed:
        raise _unknown_baseline(item, None)
    if len(set(new.values())) > 1:
        one, other = (next(w for w, is_new in new.items() if is_new is v) for v in (True, False))
        raise _contradiction(item, f"{one} {said[one]}", f"{other} {said[other]}")
    return next(iter(new.values()), None)


def _unknown_baseline(item: str, text: str | None) -> CubeError:
    return CubeError(
        f"item {item!r} has processing baseline {text!r}, so whether its digital numbers carry "
        "ESA's offset of +1000 cannot be known; give the catalogue row "
        'offset_rule = "none" (no offset in the pixels) or "always" (offset inside)'
    )


def _contradiction(item: str, one: str, other: str) -> CubeError:
    return CubeError(
        f"item {item!r} contradicts itself about ESA's offset of +1000: {one}, but {other}. Find "
        "out from its pixels which is right, and correct the item or leave it out"
    )


def _listed(said: Mapping[str, str]) -> str:
    return ", ".join(f"{where} {text}" for where, text in said.items())


def _removed(properties: Mapping[str, Any], item: str) -> bool | None:
    """Return what Earth Search's flag says; None where there is none."""
    flag = properties.get(FLAG)
    if flag is not None and not isinstance(flag, bool):
        # the text "false" is true to a program
        raise CubeError(f"item {item!r} has {FLAG} {flag!r}, which is neither true nor false")
    return flag


def _offset_of(asset: Mapping[str, Any]) -> float | None:
    """Return the offset that an asset states in any version of STAC's raster extension."""
    bands = [*asset.get("raster:bands", ()), *asset.get("bands", ())]
    for said in (asset, *bands):
        for key in ("raster:offset", "offset"):
            if isinstance(said.get(key), int | float):
                return float(said[key])
    return None


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
        offset_shift(
            product.offset_rule, row.properties, row.id, baseline=row.baseline, asset=found
        )
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


def _mosaic_order(rows: list[Any], crs: str) -> list[Any]:
    """Return the rows of a step as they are laid: the grid's own CRS first, then time, then id."""

    def key(row: Any) -> tuple[bool, Any, str]:
        code = row.properties.get("proj:code") or f"EPSG:{row.properties.get('proj:epsg')}"
        return (str(code) != crs, row.time, row.id)

    return sorted(rows, key=key)


def _pixel(row: Any, key: str) -> float | None:
    """Return the pixel edge of an asset in metres as its item states it, or None."""
    asset = row.assets.get(key)
    if asset is None:
        return None
    transform = asset.get("proj:transform") or row.properties.get("proj:transform")
    code = asset.get("proj:code") or row.properties.get("proj:code")
    code = code or f"EPSG:{asset.get('proj:epsg') or row.properties.get('proj:epsg')}"
    if transform and re.fullmatch(r"EPSG:32[67]\d\d", str(code)):  # UTM: its numbers are metres
        return float(abs(transform[0]))
    said = asset.get("gsd") or next(
        (b["spatial_resolution"] for b in asset.get("raster:bands", ())
         if "spatial_resolution" in b), None
    )  # fmt: skip
    return float(said) if said else None


def _native(product: Product, layer: Layer, rows: Sequence[Any]) -> float | str:
    """Return the pixel edge of the source in metres: a number, or a text where channels differ.

    What the first item says, else the layer's row. The text names each channel (``B02 10, B11
    20``): a list in the order of the channels would be wrong once some of them are selected.
    """
    edges = {
        c: next((e for row in rows[:1] if (e := _pixel(row, product.assets[c]))), layer.resolution)
        for c in (layer.channels or ("",))
        if c in product.assets
    }
    if len(set(edges.values())) > 1:
        return ", ".join(f"{channel} {edge:g}" for channel, edge in edges.items())
    return next(iter(edges.values()), layer.resolution)


def _attrs(layer: Layer, product: Product, rows: Sequence[Any]) -> dict[str, Any]:
    attrs: dict[str, Any] = {
        "collection": product.collection,
        "native_resolution_m": _native(product, layer, rows),
    }
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
            axes[key] = (product.collection, steps_of(layer, table, want.time))
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
                attrs=_attrs(layer, product, steps[0][1] if steps else ()),
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
