"""Sentinel-1 and Sentinel-2 on one lazy grid: search, cube, Zarr, samples. No torch.

The road::

    cube = cubes.open_aoi((5.9, 50.0, 6.1, 50.1), "2020-04/2020-10")   # lazy xarray DataTree
    cubes.write(request, "area.zarr")                                  # resumable, sealed
    samples = cubes.plan("area.zarr")                                  # 256-px windows in time
    parts = cubes.split(samples)                                       # by spatial block
    statistics = cubes.stats(parts["train"])

What lies in rooms of its own: `cubes.radar` (coherence, incidence, layover and shadow, filters),
`cubes.files` (OPERA CSLC-S1 and RTC-S1, HyP3, annotation, GeoTIFF), `cubes.optical` (composites,
NBAR), `cubes.names` (product ids), `cubes.series` and `cubes.runs` (which acquisitions belong
together), `cubes.places` (points and patches), `cubes.sen12ts` (triplets), `cubes.corpora`.

Names are resolved on first use: importing this package loads neither rasterio nor pystac-client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubes.corpora.corpus import corpus, open_corpus
    from cubes.corpora.fetching import fetch_corpus
    from cubes.corpora.publishing import publish, verify_corpus
    from cubes.cube import valid
    from cubes.fields import extract
    from cubes.fields.vectors import rasterise
    from cubes.grid import as_aoi as aoi
    from cubes.grid import like
    from cubes.joining import join
    from cubes.optical.nbar import Angles, nbar
    from cubes.places import patches, points
    from cubes.registry import add, catalog, catalogs, layer, layers, legend
    from cubes.request import Request, open_aoi
    from cubes.sampling.choosing import where
    from cubes.sampling.inflight import Storage
    from cubes.sampling.samples import Samples, plan, split
    from cubes.sampling.stats import stats
    from cubes.sampling.withhold import withhold
    from cubes.store.ledger import load_plan
    from cubes.store.verbs import open, repair, resume, verify, write
    from cubes.types import (
        AOI,
        Access,
        AssetReadError,
        Catalog,
        ClearPolicy,
        CubeError,
        Grid,
        Layer,
        Layout,
        Plan,
        Product,
        Report,
        Series,
        Window,
    )
    from cubes.zones import by_zone

__version__ = "0.1.0"

_HOMES = {
    "AOI": "types",
    "Access": "types",
    "Angles": "optical.nbar",
    "AssetReadError": "types",
    "Catalog": "types",
    "ClearPolicy": "types",
    "CubeError": "types",
    "Grid": "types",
    "Layer": "types",
    "Layout": "types",
    "Plan": "types",
    "Product": "types",
    "Report": "types",
    "Request": "request",
    "Samples": "sampling.samples",
    "Series": "types",
    "Storage": "sampling.inflight",
    "Window": "types",
    "add": "registry",
    "aoi": "grid:as_aoi",
    "by_zone": "zones",
    "catalog": "registry",
    "catalogs": "registry",
    "check": "schema",
    "corpus": "corpora.corpus",
    "extract": "fields.extract",
    "fetch_corpus": "corpora.fetching",
    "join": "joining",
    "layer": "registry",
    "layers": "registry",
    "legend": "registry",
    "like": "grid",
    "load_plan": "store.ledger",
    "nbar": "optical.nbar",
    "open": "store.verbs",
    "open_aoi": "request",
    "open_corpus": "corpora.corpus",
    "patches": "places",
    "plan": "sampling.samples",
    "points": "places",
    "publish": "corpora.publishing",
    "rasterise": "fields.vectors",
    "repair": "store.verbs",
    "resume": "store.verbs",
    "split": "sampling.samples",
    "stats": "sampling.stats",
    "valid": "cube",
    "verify": "store.verbs",
    "verify_corpus": "corpora.publishing",
    "where": "sampling.choosing",
    "withhold": "sampling.withhold",
    "write": "store.verbs",
}

__all__ = [
    "AOI",
    "Access",
    "Angles",
    "AssetReadError",
    "Catalog",
    "ClearPolicy",
    "CubeError",
    "Grid",
    "Layer",
    "Layout",
    "Plan",
    "Product",
    "Report",
    "Request",
    "Samples",
    "Series",
    "Storage",
    "Window",
    "add",
    "aoi",
    "by_zone",
    "catalog",
    "catalogs",
    "check",
    "corpus",
    "extract",
    "fetch_corpus",
    "join",
    "layer",
    "layers",
    "legend",
    "like",
    "load_plan",
    "nbar",
    "open",
    "open_aoi",
    "open_corpus",
    "patches",
    "plan",
    "points",
    "publish",
    "rasterise",
    "repair",
    "resume",
    "split",
    "stats",
    "valid",
    "verify",
    "verify_corpus",
    "where",
    "withhold",
    "write",
]


def __getattr__(name: str) -> Any:
    """Return a public name from its module, imported on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cubes' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    value = getattr(import_module(f"cubes.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
