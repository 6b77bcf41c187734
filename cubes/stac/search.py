"""Searching: an API, a static catalogue, or items in hand; the only user of pystac-client.

`granules` always filters and sorts again on our side.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from cubes.errors import NothingFound
from cubes.reading.access import redact
from cubes.stac import remembered
from cubes.stac.items import Bounds, area, in_hand, interval, matches, row, self_href, table
from cubes.stac.static import TIMEOUT, Item, walk
from cubes.types import AOI, Catalog, CubeError

if TYPE_CHECKING:
    import pandas as pd
    from shapely.geometry.base import BaseGeometry

MAX_ITEMS = 100_000
"""Most items taken from one search; a server that pages for ever is stopped here."""


# ------------------------------------------------------------------------------------- search


def granules(
    catalog: Catalog | Any,
    collection: str,
    *,
    bbox: Bounds | None = None,
    geometry: BaseGeometry | None = None,
    time: tuple[str, str] | None = None,
    query: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return the granules of a collection in an area and time range, one row each.

    Parameters
    ----------
    catalog : Catalog or items in hand
        A row (API or static), or anything that holds STAC items: pystac Items, an ItemCollection,
        mappings, a path to a JSON file, or a list of these.
    collection : str
        Collection id.
    bbox : (west, south, east, north), optional
        EPSG:4326; west > east across the antimeridian.
    geometry : shapely geometry, optional
        EPSG:4326; in place of `bbox`.
    time : (str, str), optional
        First and last time, ISO 8601, UTC; a bare date counts to its end; ``..`` is open.
    query : mapping, optional
        Property -> value or ``{"lt": ...}`` as in STAC's query extension.

    Returns
    -------
    DataFrame
        Columns of `cubes.stac.items.COLUMNS`, sorted by (time, id), one row per id. ``time`` is
        datetime64[ns] in UTC; ``assets`` maps a key to the asset with an absolute href; what an
        item does not say is None or NaN.

    Raises
    ------
    NothingFound
        Names collection, area, time, catalogue and remedy.
    CubeError
        A catalogue that cannot be read; a reversed time range.
    """
    wanted = dict(query or {})
    span = None if time is None else interval(time)
    where = area(bbox, geometry)
    if isinstance(catalog, Catalog):
        name = f"catalogue {catalog.name!r} ({redact(catalog.url)})"
        asked = _asked(catalog, collection, wanted)
        known = remembered.find(_answers.get(), asked, where, span)
        found = _found(catalog, collection, where, time, wanted) if known is None else known
    else:
        name = "the items given"
        found = list(in_hand(catalog))
    rows = [row(item, base) for item, base in found if _may_be(item, collection)]
    kept = [r for r in rows if matches(r, collection, where=where, span=span, query=wanted)]
    if not kept:
        raise _nothing(found, collection, name, {"area": where, "time": time, "query": wanted})
    return table(kept)


@contextlib.contextmanager
def searched(
    catalog: Catalog,
    collections: Iterable[tuple[str, bool, Mapping[str, Any]]],
    where: BaseGeometry,
    time: tuple[str, str],
) -> Iterator[None]:
    """Search collections once for a wide area; inside the block searches within it ask nothing.

    Parameters
    ----------
    catalog : Catalog
        A row.
    collections : iterable of (collection id, timed, query)
        Those not timed are searched without regard to `time`.
    where : shapely geometry
        EPSG:4326.
    time : (str, str)
        See `granules`.

    Raises
    ------
    CubeError
        See `granules`; that there is nothing is an answer.
    """
    answers = []
    for collection, timed, query in collections:
        period = time if timed else None
        found = _found(catalog, collection, where, period, dict(query))
        answers.append(
            remembered.Answer(
                asked=_asked(catalog, collection, dict(query)),
                where=where,
                span=None if period is None else interval(period),
                items=found,
            )
        )
    token = _answers.set((*_answers.get(), *answers))
    try:
        yield
    finally:
        _answers.reset(token)


_answers: ContextVar[tuple[remembered.Answer, ...]] = ContextVar("answers", default=())


def _asked(catalog: Catalog, collection: str, query: Mapping[str, Any]) -> str:
    return json.dumps([catalog.url, collection, query], sort_keys=True, default=str)


def _found(
    catalog: Catalog,
    collection: str,
    where: BaseGeometry | None,
    time: tuple[str, str] | None,
    query: dict[str, Any],
) -> list[Item]:
    """Return the items of a source, more than asked for where it cannot filter."""
    if catalog.kind == "api":
        return _ask(catalog, collection, where, time, query)
    return list(walk(catalog, collection))


def holds(
    catalog: Catalog, collection: str, area_: AOI, time: tuple[str, str] | None = None
) -> bool:
    """Return whether a collection has anything in an area and time; asks an API for one item."""
    import shapely

    where = area(None, shapely.from_wkt(area_.wkt))
    try:
        if catalog.kind == "api":
            return bool(_ask(catalog, collection, where, time, {}, most=1))
        return bool(len(granules(catalog, collection, geometry=where, time=time)))
    except NothingFound:
        return False


def _may_be(item: Mapping[str, Any], collection: str) -> bool:
    return item.get("collection") in (None, collection)


def _nothing(
    found: list[Item], collection: str, name: str, asked: Mapping[str, Any]
) -> NothingFound:
    """Return the error for an empty result, saying which condition emptied it."""
    where, time, query = asked["area"], asked["time"], asked["query"]
    said = [f"collection {collection!r}"]
    if where is not None:
        said.append("area " + ", ".join(f"{v:.4f}" for v in where.bounds))
    if time is not None:
        said.append(f"time {time[0]} .. {time[1]}")
    if query:
        said.append(f"query {json.dumps(query, default=str)}")
    held = sorted({str(i.get("collection")) for i, _ in found})
    if found and collection not in held and "None" not in held:
        near = difflib.get_close_matches(collection, held, 1)
        hint = f"it has collections {', '.join(held)}" + (f"; {near[0]!r}?" if near else "")
    elif found:
        mine = [i for i, _ in found if _may_be(i, collection)]
        hint = f"it has {len(mine)} items of this collection{_extent(mine, where)}"
    else:
        hint = "check the collection's name and coverage, or widen area and time"
    return NothingFound(f"no granules in {name} for {'; '.join(said)}: {hint}")


def _extent(items: list[dict[str, Any]], where: BaseGeometry | None) -> str:
    """Return when and where items are, and what may be wrong with an area that meets none."""
    import shapely

    times = sorted(
        str(p.get("datetime") or p.get("start_datetime"))
        for p in (item.get("properties", {}) for item in items)
    )
    boxes = shapely.box(*np.array([remembered.bounds(item) for item in items]).T)
    west, south, east, north = shapely.total_bounds(boxes)
    said = (
        f", from {times[0]} to {times[-1]}, within {west:.4f}, {south:.4f}, {east:.4f}, "
        f"{north:.4f} (west, south, east, north)"
    )
    if where is None or shapely.intersects(boxes, where).any():
        return f"{said}, none of which fits area, time and query together: widen one of them"
    w, s, e, n = where.bounds
    if w >= -90 and e <= 90 and shapely.intersects(boxes, shapely.box(s, w, n, e)).any():
        return f"{said}: are longitude and latitude swapped?"
    return f"{said}: the area lies outside"


# ---------------------------------------------------------------------------------------- API


def _ask(
    catalog: Catalog,
    collection: str,
    where: BaseGeometry | None,
    time: tuple[str, str] | None,
    query: dict[str, Any],
    *,
    most: int | None = None,
) -> list[Item]:
    import pystac_client
    import requests
    from pystac_client.exceptions import APIError

    asked: dict[str, Any] = {
        "collections": [collection], "limit": catalog.page_size, "max_items": most,
    }  # fmt: skip
    if where is not None:
        asked["intersects"] = json.loads(_geojson(where))
    if time is not None:
        start, end = interval(time)
        open_start, open_end = time[0] in (None, "..", ""), time[1] in (None, "..", "")
        asked["datetime"] = (
            f"{'..' if open_start else start.isoformat() + 'Z'}/"
            f"{'..' if open_end else end.floor('us').isoformat() + 'Z'}"
        )
    try:
        with warnings.catch_warnings():
            # a server that does not list its conformance classes is asked all the same
            warnings.simplefilter("ignore")
            client = pystac_client.Client.open(catalog.url, timeout=TIMEOUT, stac_io=_stac_io())
            # A plain value means equality here; servers take nothing but operators.
            operators = {k: v if isinstance(v, Mapping) else {"eq": v} for k, v in query.items()}
            found = _pages(client, {**asked, **({"query": operators} if query else {})}, catalog)
            if not found and query:
                # Some servers take a query and answer nothing (rustac in memory): ask without,
                # and filter here.
                found = _pages(client, asked, catalog)
    except (APIError, requests.RequestException) as error:
        raise CubeError(
            f"searching catalogue {catalog.name!r} at {redact(catalog.url)} failed: "
            f"{redact(str(error))[:500]}"
        ) from None
    return found


def _geojson(where: BaseGeometry) -> str:
    import shapely

    return str(shapely.to_geojson(where))


def _stac_io() -> Any:
    from pystac_client.stac_api_io import StacApiIO
    from urllib3 import Retry

    passing = (429, 500, 502, 503, 504)
    # a server that is not there is given up after a second, one that is busy after half a minute
    retry = Retry(
        total=6, connect=2, backoff_factor=0.5, status_forcelist=passing, allowed_methods=None
    )
    return StacApiIO(max_retries=retry, timeout=TIMEOUT)


def _pages(client: Any, asked: dict[str, Any], catalog: Catalog) -> list[Item]:
    found: list[Item] = []
    for item in client.search(**asked).items_as_dicts():
        found.append((item, self_href(item) or catalog.url))
        if len(found) > MAX_ITEMS:
            raise CubeError(
                f"catalogue {catalog.name!r} gave more than {MAX_ITEMS:,} items of "
                f"{asked['collections'][0]!r}: make area or time smaller"
            )
    return found
