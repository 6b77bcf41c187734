"""Rows of label layers: a legend says what its labels need."""

from __future__ import annotations

import numpy as np

from cubes import registry
from cubes.registry import checks
from cubes.types import Layer, Legend


def label_layer(legend: str | Legend) -> Layer:
    """Return the layer row of a legend's labels, ``labels/<legend>``.

    A row of the registry where there is one, else one made from the legend: uint8 where every code
    and the nodata fit, else uint16; nodata the legend's own, or for a legend in which every code is
    real the largest number of the dtype.

    Raises
    ------
    CubeError
        No such legend, one that cannot be used, or one that the row known here does not fit.
    """
    found = registry.legend(legend)
    name = f"labels/{found.name}"
    if name in registry.layers():
        row = registry.layer(name)
        checks.fitting(row, found)
        return row
    codes = [*found.classes, *(() if found.nodata is None else (found.nodata,))]
    # 255 and 65535 stay free for nodata where the legend has none of its own
    dtype = "uint8" if max(codes) < 255 else "uint16"
    nodata = found.nodata if found.nodata is not None else int(np.iinfo(dtype).max)
    return Layer(
        name=name,
        long_name=found.title,
        dims=("year", "y", "x"),
        units="1",
        kind="class",
        work_dtype=dtype,
        work_nodata=nodata,
        convert="stored",
        dtype=dtype,
        nodata=nodata,
        kernel="nearest",
        resolution=10.0,
        valid_range=(0, max(codes)),
        legend=found.name if found.name in registry.legends() else None,
    )
