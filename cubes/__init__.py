"""Sentinel-1 and Sentinel-2 on one lazy grid: search, cube, Zarr, samples. No torch.

The road::

    cube = cubes.open_aoi((5.9, 50.0, 6.1, 50.1), "2020-04/2020-10")   # lazy xarray DataTree
    cubes.write(request, "area.zarr")                                  # resumable, sealed
    samples = cubes.plan("area.zarr")                                  # 256-px windows in time
    parts = cubes.split(samples)                                       # by spatial block
    statistics = cubes.stats(parts["train"])

Names are resolved on first use: importing this package loads neither rasterio nor pystac-client.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubes.corpus import corpus, open_corpus
    from cubes.cube import check, valid
    from cubes.fields import extract
    from cubes.grid import as_aoi as aoi
    from cubes.grid import like
    from cubes.ledger import load_plan
    from cubes.nbar import Angles
    from cubes.places import patches, points
    from cubes.publishing import publish
    from cubes.registry import add, catalog, catalogs, layer, layers, legend
    from cubes.request import Request, open_aoi
    from cubes.samples import Samples, plan, split
    from cubes.stats import stats
    from cubes.store import open, repair, verify, write
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
        Window,
    )
    from cubes.vectors import rasterise
    from cubes.withhold import withhold

__version__ = "0.1.0"

_HOMES = {
    "AOI": "types",
    "Access": "types",
    "Angles": "nbar",
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
    "Samples": "samples",
    "Window": "types",
    "add": "registry",
    "aoi": "grid.as_aoi",
    "catalog": "registry",
    "catalogs": "registry",
    "check": "cube",
    "corpus": "corpus",
    "extract": "fields",
    "layer": "registry",
    "layers": "registry",
    "legend": "registry",
    "like": "grid",
    "load_plan": "ledger",
    "open": "store",
    "open_aoi": "request",
    "open_corpus": "corpus",
    "patches": "places",
    "plan": "samples",
    "points": "places",
    "publish": "publishing",
    "rasterise": "vectors",
    "repair": "store",
    "split": "samples",
    "stats": "stats",
    "valid": "cube",
    "verify": "store",
    "withhold": "withhold",
    "write": "store",
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
    "Window",
    "add",
    "aoi",
    "catalog",
    "catalogs",
    "check",
    "corpus",
    "extract",
    "layer",
    "layers",
    "legend",
    "like",
    "load_plan",
    "open",
    "open_aoi",
    "open_corpus",
    "patches",
    "plan",
    "points",
    "publish",
    "rasterise",
    "repair",
    "split",
    "stats",
    "valid",
    "verify",
    "withhold",
    "write",
]


def __getattr__(name: str) -> Any:
    """Return a public name from its module, imported on first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'cubes' has no attribute {name!r}")
    module, _, attribute = home.partition(".")
    value = getattr(import_module(f"cubes.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)


class _Package(ModuleType):
    """Package in which ``cubes.stats`` stays the verb when the module of its name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep a public verb from being replaced by its module."""
        if name in _HOMES and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
