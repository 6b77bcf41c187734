"""STAC items as a table: one row per granule, the properties every catalogue spells its own way.

Pure: JSON in, a pandas table out. What a server was asked is asked again here, because servers
ignore filters, repeat items between pages, and sort as they like.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import pandas as pd
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from cubes.reading.access import scheme_of
from cubes.types import CubeError

Bounds = tuple[float, float, float, float]
"""West, south, east, north in EPSG:4326; west > east across the antimeridian."""

COLUMNS = (
    "id", "collection", "time", "geometry", "bbox", "platform", "relative_orbit", "orbit_state",
    "absolute_orbit", "datatake", "tile", "baseline", "cloud_cover", "sun_azimuth",
    "sun_elevation", "properties", "assets", "self_href",
)  # fmt: skip
"""Columns of a table of granules, in order."""

_TEXT = {
    "platform": ("platform",),
    "orbit_state": ("sat:orbit_state", "s1:orbit_state"),
    "datatake": ("s2:datatake_id", "eopf:datatake_id", "s1:datatake_id", "product:datatake_id"),
    "baseline": ("s2:processing_baseline", "processing:version"),
}
_NUMBERS = {
    "relative_orbit": ("sat:relative_orbit",),
    "absolute_orbit": ("sat:absolute_orbit",),
    "cloud_cover": ("eo:cloud_cover",),
    "sun_azimuth": ("view:sun_azimuth", "s2:mean_solar_azimuth"),
    "sun_elevation": ("view:sun_elevation",),
}


# --------------------------------------------------------------------------------------- hrefs


def absolute(href: str, base: str | None) -> str:
    """Return `href` resolved against the file or URL it stands in; unchanged where it can be.

    Parameters
    ----------
    href : str
        Absolute or relative.
    base : str or None
        URL or path of the JSON document; None leaves a relative href as it is.
    """
    if base is None or scheme_of(href) != "file" or href.startswith("file:"):
        return href
    scheme = scheme_of(base)
    if scheme == "file":
        folder = posixpath.dirname(base.removeprefix("file://"))
        return href if posixpath.isabs(href) else posixpath.normpath(posixpath.join(folder, href))
    if scheme in ("http", "https"):
        return urljoin(base, href)
    host, _, path = base.removeprefix(f"{scheme}://").partition("/")
    joined = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), href))
    return f"{scheme}://{host}{joined}"


def self_href(item: Mapping[str, Any]) -> str | None:
    """Return the item's absolute ``self`` link, or None."""
    for link in item.get("links", ()):
        if link.get("rel") == "self":
            href = str(link.get("href", ""))
            if scheme_of(href) != "file" or href.startswith(("file:", "/")):
                return href
    return None


# ----------------------------------------------------------------------------- items in hand


def in_hand(given: Any) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Yield (item as JSON, where it stands) of anything that holds STAC items.

    Parameters
    ----------
    given : pystac.Item, pystac.ItemCollection, mapping, str, Path or an iterable of these
        A mapping is a Feature or a FeatureCollection; a path names a JSON file of one.

    Raises
    ------
    CubeError
        Something else stands among them.
    """
    if isinstance(given, str | Path):
        path = Path(given)
        if not path.is_file():
            raise CubeError(f"no such file of STAC items: {path}")
        text = path.read_text(encoding="utf-8")
        base = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
        for item, _ in in_hand(json.loads(text)):
            yield item, self_href(item) or base
    elif isinstance(given, Mapping):
        if given.get("type") == "FeatureCollection":
            for item in given.get("features", ()):
                yield from in_hand(item)
        elif "assets" in given and "id" in given:
            yield dict(given), self_href(given)
        else:
            raise CubeError(
                f"a mapping of type {given.get('type')!r} is no STAC item: it needs id and assets"
            )
    elif hasattr(given, "to_dict") and hasattr(given, "assets"):  # pystac.Item
        base = given.get_self_href()
        yield given.to_dict(include_self_link=True, transform_hrefs=False), base
    elif isinstance(given, Iterable):
        for item in given:
            yield from in_hand(item)
    else:
        raise CubeError(
            f"{type(given).__name__} holds no STAC items; give pystac Items, an ItemCollection, "
            "GeoJSON mappings, or a path to a JSON file of them"
        )


# ------------------------------------------------------------------------------------ filters


def instant(text: Any) -> pd.Timestamp:
    """Return a time as a tz-naive UTC timestamp.

    Raises
    ------
    CubeError
        It is no ISO 8601 time.
    """
    try:
        stamp = pd.Timestamp(text)
    except ValueError:
        raise CubeError(f"{text!r} is no ISO 8601 time, like 2021-05-01 or 2021-05-01T10:00:00Z") \
            from None  # fmt: skip
    return (stamp.tz_convert("UTC").tz_localize(None) if stamp.tz else stamp).as_unit("ns")


def interval(time: tuple[str, str] | str) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Return first and last instant of a time range; a bare date counts to its end.

    Raises
    ------
    CubeError
        Not a time, or the range is reversed.
    """
    first, last = (time, time) if isinstance(time, str) else time
    start = pd.Timestamp.min if first in (None, "..", "") else instant(first)
    if last in (None, "..", ""):
        end = pd.Timestamp.max
    else:
        end = instant(last)
        steps = {4: {"years": 1}, 7: {"months": 1}, 10: {"days": 1}}.get(len(str(last)))
        if steps:
            end = end + pd.DateOffset(**steps) - pd.Timedelta(1, "ns")  # type: ignore[arg-type]
    if end < start:
        raise CubeError(f"the time range {first} .. {last} is reversed: give the earlier one first")
    return start, end


_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda have, want: have == want,
    "neq": lambda have, want: have != want,
    "lt": lambda have, want: have < want,
    "lte": lambda have, want: have <= want,
    "gt": lambda have, want: have > want,
    "gte": lambda have, want: have >= want,
    "in": lambda have, want: have in want,
    "startsWith": lambda have, want: str(have).startswith(want),
    "endsWith": lambda have, want: str(have).endswith(want),
    "contains": lambda have, want: want in have,
}


def answers(properties: Mapping[str, Any], query: Mapping[str, Any]) -> bool:
    """Return whether an item's properties satisfy a STAC ``query`` (all of it).

    Raises
    ------
    CubeError
        Unknown operator.
    """
    for key, wanted in query.items():
        tests = wanted if isinstance(wanted, Mapping) else {"eq": wanted}
        have = properties.get(key)
        for name, value in tests.items():
            test = _TESTS.get(name)
            if test is None:
                raise CubeError(
                    f"unknown operator {name!r} in the query on {key!r}; known: {', '.join(_TESTS)}"
                )
            if have is None or not test(have, value):
                return False
    return True


def area(bbox: Bounds | None, geometry: BaseGeometry | None = None) -> BaseGeometry | None:
    """Return the searched area in EPSG:4326, split where it crosses the antimeridian."""
    if geometry is not None or bbox is None:
        return geometry
    west, south, east, north = bbox
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.union_all(
        [shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)]
    )


# --------------------------------------------------------------------------------------- rows


def _first(properties: Mapping[str, Any], keys: Iterable[str]) -> Any:
    return next((properties[k] for k in keys if properties.get(k) is not None), None)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


_PRODUCT = re.compile(r"_N(\d\d)(\d\d)_R(\d{3})_T(\d\d[C-X][A-Z]{2})_")
"""Baseline, relative orbit and tile inside a Sentinel-2 product name."""


def _tile(properties: Mapping[str, Any]) -> str | None:
    """Return the MGRS tile, e.g. ``33TWM``, from any of its spellings."""
    tile = properties.get("s2:mgrs_tile")
    code = str(properties.get("grid:code", ""))
    if tile is None and code.startswith("MGRS-"):
        tile = code.removeprefix("MGRS-")
    if tile is None and properties.get("mgrs:utm_zone"):
        parts = ("utm_zone", "latitude_band", "grid_square")
        tile = "".join(str(properties.get(f"mgrs:{k}", "")) for k in parts)
    return str(tile) if tile else None


def _named(properties: Mapping[str, Any], identity: str) -> dict[str, Any]:
    """Return what a Sentinel-2 product's name says: items of some catalogues say it only there."""
    keys = ("s2:product_uri", "sentinel:product_id")
    for name in (*(str(properties.get(k, "")) for k in keys), identity):
        found = _PRODUCT.search(name + "_")
        if found:
            major, minor, orbit, tile = found.groups()
            return {"baseline": f"{major}.{minor}", "relative_orbit": float(orbit), "tile": tile}
    return {}


def _times(properties: Mapping[str, Any], item: str) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Return when an item counts: its datetime; the range it spans only where that is null."""
    start, end = properties.get("start_datetime"), properties.get("end_datetime")
    one = properties.get("datetime")
    if one is None and start is None:
        raise CubeError(f"item {item!r} has neither datetime nor start_datetime")
    return instant(one or start), instant(one or end or start)


def _shape(item: Mapping[str, Any]) -> tuple[BaseGeometry, Bounds]:
    box = item.get("bbox")
    if box and len(box) == 6:
        box = [*box[:2], *box[3:5]]
    if item.get("geometry"):
        found = shape(item["geometry"])
        # rounded footprints cross themselves now and then, and GEOS then refuses to intersect
        found = found if found.is_valid else shapely.make_valid(found)
    elif box:
        found = area(tuple(box)) or shapely.Point()
    else:
        raise CubeError(f"item {item.get('id')!r} has neither geometry nor bbox")
    west, south, east, north = map(float, box or found.bounds)
    return found, (west, south, east, north)


def _assets(item: Mapping[str, Any], base: str | None) -> dict[str, dict[str, Any]]:
    return {
        key: {**asset, "href": absolute(str(asset["href"]), base)}
        for key, asset in item.get("assets", {}).items()
        if asset.get("href")
    }


def row(item: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """Return one granule as a row of `COLUMNS`, with ``_start`` and ``_end`` of its time.

    Parameters
    ----------
    item : mapping
        A STAC item's JSON.
    base : str or None
        URL or path it was read from, for relative hrefs.

    Raises
    ------
    CubeError
        It has no time, or no place.
    """
    properties = dict(item.get("properties", {}))
    identity = str(item["id"])
    start, end = _times(properties, identity)
    footprint, box = _shape(item)
    out: dict[str, Any] = {
        "id": identity,
        "collection": item.get("collection"),
        "time": start,
        "geometry": footprint,
        "bbox": box,
        "tile": _tile(properties),
        "properties": properties,
        "assets": _assets(item, base),
        "self_href": base or self_href(item),
        "_start": start,
        "_end": end,
    }
    for name, keys in _TEXT.items():
        value = _first(properties, keys)
        out[name] = None if value is None else str(value)
    for name, keys in _NUMBERS.items():
        out[name] = _number(_first(properties, keys))
    for name, value in _named(properties, identity).items():
        if out[name] is None or out[name] != out[name]:
            out[name] = value
    return out


def table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a table sorted by (time, id), one row per id: the last updated one."""
    newest: dict[str, Mapping[str, Any]] = {}
    for found in rows:
        held = newest.get(found["id"])
        stamp = str(found["properties"].get("updated", ""))
        if held is None or stamp > str(held["properties"].get("updated", "")):
            newest[found["id"]] = found
    ordered = sorted(newest.values(), key=lambda r: (r["time"], r["id"]))
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        values = [r[name] for r in ordered]
        if name == "time":
            columns[name] = np.array(values, dtype="datetime64[ns]")
        elif name in _NUMBERS:
            columns[name] = np.array(values, dtype="float64")
        else:
            # tuples and dicts would be taken apart otherwise
            cells = np.empty(len(values), dtype=object)
            for n, value in enumerate(values):
                cells[n] = value
            columns[name] = cells
    return pd.DataFrame(columns)


def matches(
    found: Mapping[str, Any],
    collection: str,
    *,
    where: BaseGeometry | None,
    span: tuple[pd.Timestamp, pd.Timestamp] | None,
    query: Mapping[str, Any],
) -> bool:
    """Return whether a row is what was asked for: collection, time, area, query."""
    if found["collection"] not in (None, collection):
        return False
    if span is not None and (found["_end"] < span[0] or found["_start"] > span[1]):
        return False
    if not answers(found["properties"], query):
        return False
    return where is None or bool(found["geometry"].intersects(where))
