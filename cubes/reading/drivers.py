"""`cubes.reading.read` as a reader of odc-stac and of stackstac: duck-typed, none imported here.

Both get their work from items that `cubes.stac.arrays.lazy` makes of a plan; both end in the
functions that the writer uses, so a lazy cube and a stored one agree to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cubes.reading.read import misses, read
from cubes.types import Access, Asset, Layer

BAND = "data"
"""The one asset key of the items made for odc-stac: all channels of a granule are one band."""

FIELD = "cubes:source"
"""Extra field of those assets that carries a `Source`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What one item of a lazy cube stands for: at most one asset per channel of a layer."""

    layer: Layer
    access: Access
    assets: Mapping[str, Asset]


class _Reader:
    """odc-loader's RasterReader: one open source, read on any block of the grid."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def read(
        self, cfg: Any, dst_geobox: Any, *, dst: Any = None, selection: Any = None
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return (where in the block, (channel, y, x) working numbers)."""
        del cfg, dst
        layer, access = self.source.layer, self.source.access
        channels = layer.channels or ("",)
        picked = channels if selection is None else channels[selection]
        fill = 0 if layer.work_nodata is None else layer.work_nodata
        out = np.full((len(picked), *dst_geobox.shape.yx), fill, layer.work_dtype)
        for n, channel in enumerate(picked):
            asset = self.source.assets.get(channel)
            if asset is not None and not misses(asset.bbox, dst_geobox):
                out[n] = read(asset, dst_geobox, layer, access)
        rows, cols = dst_geobox.shape.yx
        return (slice(0, rows), slice(0, cols)), out


class OdcDriver:
    """odc-loader's ReaderDriver; name it ``driver="cubes.reading.drivers.OdcDriver"`` or pass it.

    It has no settings of its own: ``driver_data`` of each band source is a `Source`. The token
    makes dask names follow the plan, because odc-loader's ignore driver data.
    """

    def __init__(self, token: str = "") -> None:
        self.token = token

    def new_load(self, geobox: Any, *, chunks: Any = None) -> dict[str, Any]:
        """Return the state of a load: none is needed."""
        del geobox, chunks
        return {}

    def finalise_load(self, load_state: Any) -> Any:
        """Return the state unchanged."""
        return load_state

    def capture_env(self) -> dict[str, Any]:
        """Return what a worker needs to know, which odc-loader hashes into dask names."""
        return {"cubes": self.token}

    @contextmanager
    def restore_env(self, env: dict[str, Any], load_state: Any) -> Iterator[Any]:
        """Do nothing: `cubes.reading.read` sets GDAL up around each read itself."""
        del env
        yield load_state

    def open(self, src: Any, ctx: Any) -> _Reader:
        """Return a reader of one source; opens nothing yet."""
        del ctx
        return _Reader(src.driver_data)

    @property
    def md_parser(self) -> OdcDriver:
        """The driver reads its own items' metadata."""
        return self

    @property
    def dask_reader(self) -> None:
        """None: one dask task per chunk."""

    @property
    def aux_reader(self) -> None:
        """None: no properties become arrays."""

    def extract(self, md: Any) -> Any:
        """Return odc-loader's description of the one band, all channels in it."""
        from odc.loader.types import FixedCoord, RasterBandMetadata, RasterGroupMetadata

        layer = md.assets[BAND].extra_fields[FIELD].layer
        channels = list(layer.channels or ("",))
        nodata = 0 if layer.work_nodata is None else layer.work_nodata
        band = RasterBandMetadata(
            data_type=layer.work_dtype, nodata=nodata, units=layer.units, dims=("channel", "y", "x")
        )
        return RasterGroupMetadata(
            bands={(BAND, 1): band},
            extra_dims={"channel": len(channels)},
            extra_coords=[FixedCoord("channel", channels)],
        )

    def driver_data(self, md: Any, band_key: Any) -> Source:
        """Return the `Source` an item carries."""
        del band_key
        source: Source = md.assets[BAND].extra_fields[FIELD]
        return source


def pack(asset: Asset) -> str:
    """Return an asset as text, for stackstac, whose readers are given a URL and nothing else."""
    from dataclasses import asdict

    return json.dumps(asdict(asset), sort_keys=True)


class StackReader:
    """stackstac's Reader: give it with layer and access bound by ``functools.partial``."""

    def __init__(self, *, url: str, spec: Any, layer: Layer, access: Access, **_: Any) -> None:
        body = json.loads(url)
        if body["bbox"] is not None:
            body["bbox"] = tuple(body["bbox"])
        self.asset = Asset(**body)
        self.spec, self.layer, self.access = spec, layer, access

    def read(self, window: Any, **_: Any) -> np.ndarray:
        """Return (y, x) working numbers of a window of the grid."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        left, _bottom, _right, top = self.spec.bounds
        rx, ry = self.spec.resolutions_xy
        full = Affine(rx, 0.0, left, 0.0, -ry, top)
        shape = int(window.height), int(window.width)
        moved = full @ Affine.translation(int(window.col_off), int(window.row_off))
        geobox = GeoBox(shape, moved, f"EPSG:{self.spec.epsg}")
        if misses(self.asset.bbox, geobox):
            fill = 0 if self.layer.work_nodata is None else self.layer.work_nodata
            return np.full(shape, fill, self.layer.work_dtype)
        return read(self.asset, geobox, self.layer, self.access)

    def close(self) -> None:
        """Do nothing: `cubes.reading.read` keeps files open between reads, and closes them."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
