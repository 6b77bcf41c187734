"""A source of granules and of lazy arrays; the only user of pystac-client, odc-stac and stackstac.

`granules` searches an API, a static catalogue or items in hand and always filters and sorts again
on our side. `lazy` turns a planned array into dask, through either library, on our own reader.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cubes.access import redact
from cubes.items import Bounds, area, in_hand, interval, matches, row, self_href, table
from cubes.static import TIMEOUT, Item, walk
from cubes.types import AOI, Access, ArrayPlan, Asset, Catalog, CubeError

if TYPE_CHECKING:
    import pandas as pd
    from odc.geo.geobox import GeoBox
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
        Columns of `cubes.items.COLUMNS`, sorted by (time, id), one row per id. ``time`` is
        datetime64[ns] in UTC; ``assets`` maps a key to the asset with an absolute href; what an
        item does not say is None or NaN.

    Raises
    ------
    CubeError
        Nothing found: collection, area, time, catalogue and remedy; a catalogue that cannot be
        read; a reversed time range.
    """
    wanted = dict(query or {})
    span = None if time is None else interval(time)
    where = area(bbox, geometry)
    if isinstance(catalog, Catalog):
        name = f"catalogue {catalog.name!r} ({redact(catalog.url)})"
        if catalog.kind == "api":
            found = _cached(catalog, collection, where, time, wanted)
        else:
            found = list(walk(catalog, collection))
    else:
        name = "the items given"
        found = list(in_hand(catalog))
    rows = [row(item, base) for item, base in found if _may_be(item, collection)]
    kept = [r for r in rows if matches(r, collection, where=where, span=span, query=wanted)]
    if not kept:
        raise _nothing(found, collection, name, {"area": where, "time": time, "query": wanted})
    return table(kept)


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
    except CubeError as error:
        if "no granules" in str(error):
            return False
        raise


def _may_be(item: Mapping[str, Any], collection: str) -> bool:
    return item.get("collection") in (None, collection)


def _nothing(found: list[Item], collection: str, name: str, asked: Mapping[str, Any]) -> CubeError:
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
        times = sorted(str(i.get("properties", {}).get("datetime")) for i, _ in found)
        hint = (
            f"it has {len(found)} items of this collection, from {times[0]} to {times[-1]}, none "
            "of which fits area, time and query together: widen one of them"
        )
    else:
        hint = "check the collection's name and coverage, or widen area and time"
    return CubeError(f"no granules in {name} for {'; '.join(said)}: {hint}")


# ---------------------------------------------------------------------------------------- API

_searches: OrderedDict[str, list[Item]] = OrderedDict()
_searches_lock = threading.Lock()


def forget_searches() -> None:
    """Forget the searches that this process remembers."""
    with _searches_lock:
        _searches.clear()


def _cached(
    catalog: Catalog,
    collection: str,
    where: BaseGeometry | None,
    time: tuple[str, str] | None,
    query: dict[str, Any],
) -> list[Item]:
    """Return an API's answer, asked once per process: layers of one collection share it."""
    wkb = "" if where is None else where.wkb_hex
    key = json.dumps([catalog.url, collection, wkb, time, query], sort_keys=True, default=str)
    with _searches_lock:
        if key in _searches:
            _searches.move_to_end(key)
            return _searches[key]
    found = _ask(catalog, collection, where, time, query)
    with _searches_lock:
        _searches[key] = found
        while len(_searches) > 64:
            _searches.popitem(last=False)
    return found


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


# --------------------------------------------------------------------------------------- lazy

_PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"


def _layers_of(step: Mapping[str, tuple[Asset, ...]], channels: tuple[str, ...]) -> list[
    dict[str, Asset]
]:  # fmt: skip
    """Return a step's assets in mosaic order: the n-th dict has each channel's n-th asset."""
    stacks = zip_longest(*(step.get(c, ()) for c in channels))
    return [{c: a for c, a in zip(channels, s, strict=True) if a is not None} for s in stacks]


def _token(array: ArrayPlan, geobox: GeoBox, access: Access) -> str:
    """Return a hash of everything the pixels depend on, for dask's names."""
    body = repr((array.layer, [sorted(s.items()) for s in array.steps], access))
    grid = (str(geobox.crs), tuple(geobox.transform)[:6], tuple(geobox.shape))
    return hashlib.sha256(f"{body}{grid}".encode()).hexdigest()


def lazy(
    array: ArrayPlan,
    geobox: GeoBox,
    access: Access,
    *,
    chunks: tuple[int, int],
    reader: Literal["odc", "stackstac"] = "odc",
) -> Any:
    """Return a planned array as dask, read when computed; bit-equal to `cubes.read.block`.

    Parameters
    ----------
    array : ArrayPlan
        Layer and assets per step; not a derived layer.
    geobox : GeoBox
        The cube's grid.
    access : Access
        The plan's.
    chunks : (int, int)
        Rows and columns of a chunk; one step and one channel each. Source blocks are a good size.
    reader : str
        ``odc`` or ``stackstac``.

    Returns
    -------
    dask.array.Array
        (step, channel, y, x), ``layer.work_dtype``, working numbers; one channel where the layer
        has none. Equal input gives equal dask names.

    Raises
    ------
    CubeError
        Unknown reader; a derived layer; a grid that stackstac cannot express.
    """
    if array.layer.derived_from is not None:
        raise CubeError(f"layer {array.layer.name!r} is computed from {array.layer.derived_from!r}")
    if reader not in ("odc", "stackstac"):
        raise CubeError(f"unknown reader {reader!r}; odc and stackstac can")
    if not any(assets for step in array.steps for assets in step.values()):
        import dask.array as da

        full: Any = da.full
        fill = 0 if array.layer.work_nodata is None else array.layer.work_nodata
        shape = (len(array.steps), array.layer.n_channels, *geobox.shape.yx)
        return full(shape, fill, dtype=array.layer.work_dtype, chunks=(1, 1, *chunks))
    build = _lazy_odc if reader == "odc" else _lazy_stackstac
    return build(array, geobox, access, chunks)


def _lazy_odc(array: ArrayPlan, geobox: GeoBox, access: Access, chunks: tuple[int, int]) -> Any:
    import datetime as dt

    import odc.stac
    import pystac

    from cubes.drivers import BAND, FIELD, OdcDriver, Source

    layer = array.layer
    channels = layer.channels or ("",)
    epoch = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    # Projection metadata only tells odc-stac which chunks an item may touch. Ours says "all": the
    # reader skips by the granule's own box, and no footprint has to be projected.
    crs: Any = geobox.crs
    place = {
        "proj:shape": list(geobox.shape.yx),
        "proj:transform": list(geobox.transform)[:6],
        **({"proj:code": f"EPSG:{crs.epsg}"} if crs.epsg else {"proj:wkt2": crs.to_wkt()}),
    }
    items = []
    for n, step in enumerate(array.steps):
        # a step without assets still has its place on the axis
        for m, assets in enumerate(_layers_of(step, channels) or [{}]):
            when = epoch + dt.timedelta(seconds=n)
            item = pystac.Item(f"{n:06d}-{m:04d}", None, None, when, {})
            item.stac_extensions = [_PROJECTION]
            source = Source(layer=layer, access=access, assets=assets)
            # dask names and merges by uri: no two granules may share one
            asset = pystac.Asset(f"https://invalid/{n}/{m}", extra_fields={**place, FIELD: source})
            item.add_asset(BAND, asset)
            items.append(item)
    with warnings.catch_warnings():
        # odc-geo 0.5.3 calls shapely.ops.transform, which shapely 2.2 deprecates
        warnings.filterwarnings("ignore", ".*shapely.ops.transform", DeprecationWarning)
        loaded = odc.stac.load(
            items,
            bands=[BAND],
            geobox=geobox,
            chunks={"time": 1, "channel": 1, "y": chunks[0], "x": chunks[1]},
            groupby="time",
            preserve_original_order=True,
            driver=OdcDriver(_token(array, geobox, access)),
        )
    return loaded[BAND].data


def _first_valid(blocks: np.ndarray, layer: Any) -> np.ndarray:
    """Return (1, channel, y, x) of (item, channel, y, x): the first valid number of each pixel."""
    from cubes.read import filled

    out = np.array(blocks[:1])
    for more in blocks[1:]:
        np.copyto(out[0], more, where=~filled(out[0], layer))
    return out


def _lazy_stackstac(
    array: ArrayPlan, geobox: GeoBox, access: Access, chunks: tuple[int, int]
) -> Any:
    import stackstac

    from cubes.drivers import StackReader, pack

    layer = array.layer
    channels = layer.channels or ("",)
    epsg = geobox.crs.epsg if geobox.crs is not None else None
    t = geobox.transform
    if epsg is None or t.a <= 0 or t.e >= 0:
        raise CubeError(
            "stackstac reads only north-up grids of a CRS with an EPSG code, not "
            f"{geobox.crs} {tuple(t)[:6]}; take reader='odc'"
        )
    bounds = tuple(geobox.boundingbox)
    properties = {"datetime": "2000-01-01T00:00:00Z", "proj:epsg": epsg, "proj:bbox": bounds}
    items: list[dict[str, Any]] = []
    depth: list[int] = []
    for n, step in enumerate(array.steps):
        stacked = _layers_of(step, channels) or [{}]
        depth.append(len(stacked))
        for m, assets in enumerate(stacked):
            # an empty href is stackstac's own word for "no asset": it stays nodata
            packed = {
                f"c{k}": {"href": pack(assets[c]) if c in assets else ""}
                for k, c in enumerate(channels)
            }
            items.append({
                "id": f"{n}-{m}", "type": "Feature", "properties": properties, "assets": packed,
                "bbox": None, "geometry": None, "links": [],
            })  # fmt: skip
    dtype = np.dtype(layer.work_dtype)
    fill = dtype.type(0 if layer.work_nodata is None else layer.work_nodata)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        stacked_array = stackstac.stack(
            items,
            assets=[f"c{k}" for k in range(len(channels))],
            epsg=epsg,
            resolution=(t.a, -t.e),
            bounds=bounds,
            snap_bounds=False,
            dtype=dtype,
            fill_value=fill,
            rescale=False,
            sortby_date=False,
            xy_coords=False,
            properties=False,
            band_coords=False,
            chunksize=(tuple(depth), 1, *chunks),
            reader=partial(StackReader, layer=layer, access=access),
        ).data
    if max(depth) == 1:
        return stacked_array
    return stacked_array.map_blocks(
        _first_valid, layer, dtype=dtype, chunks=((1,) * len(depth), *stacked_array.chunks[1:])
    )
