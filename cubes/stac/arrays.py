"""Planned arrays as dask, through odc-stac or stackstac, both on our own reader.

The only user of the two libraries.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cubes.types import Access, ArrayPlan, Asset, CubeError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox


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
    """Return a planned array as dask, read when computed; bit-equal to `cubes.reading.read.block`.

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

    from cubes.reading.drivers import BAND, FIELD, OdcDriver, Source

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
    from cubes.reading.read import filled

    out = np.array(blocks[:1])
    for more in blocks[1:]:
        np.copyto(out[0], more, where=~filled(out[0], layer))
    return out


def _lazy_stackstac(
    array: ArrayPlan, geobox: GeoBox, access: Access, chunks: tuple[int, int]
) -> Any:
    import stackstac

    from cubes.reading.drivers import StackReader, pack

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
