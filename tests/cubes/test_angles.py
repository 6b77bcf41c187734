"""Angles that start anew after a turn are never averaged or interpolated as numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import cubes
from cubes import registry
from cubes.radar import geometry
from cubes.reading.read import read
from cubes.types import Access, Asset, CubeError

BOX = GeoBox((40, 40), Affine(10, 0, 600_000, 0, -10, 5_600_000), "EPSG:32631")
NORTHERLY = np.where(np.arange(40)[:, None] % 2, 359.0, 1.0).repeat(40, 1).astype("float32")


def off(found: np.ndarray, wanted: float) -> float:
    """Return the greatest angle from a direction, degrees."""
    return float(
        np.abs(np.angle(np.exp(1j * np.deg2rad(np.asarray(found) - wanted)), deg=True)).max()
    )


@pytest.mark.parametrize("name", ["terrain/aspect", "terrain/facing"])
def test_fields_have_the_mean_direction(name: str) -> None:
    variable = name.split("/")[1]
    attrs = {} if name in registry.layers() else {"kind": "phase", "units": "degrees"}
    layer = xr.DataArray(NORTHERLY, dims=("y", "x"), coords=xr_coords(BOX), attrs=attrs)
    tree = xr.DataTree.from_dict({"terrain": xr.Dataset({variable: layer})})
    field = shapely.box(600_000, 5_599_800, 600_200, 5_600_000)
    table = cubes.extract(tree, _frame(field), layers=[name])
    assert off(table["mean"].to_numpy(), 0) < 1e-4
    assert 0 <= table["mean"].item() <= 360
    assert table["spread"].item() == pytest.approx(1, abs=0.01), "degrees"


def _frame(field):
    import geopandas as gpd

    return gpd.GeoDataFrame(geometry=[field], crs=32631)


@pytest.mark.parametrize("kernel", ["bilinear", "average"])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_reads_interpolate_directions(tmp_path: Path, kernel: str, shift: float) -> None:
    with rasterio.open(
        tmp_path / "aspect.tif", "w", driver="GTiff", height=40, width=40, count=1,
        dtype="float32", crs="EPSG:32631", transform=BOX.affine,
    ) as file:  # fmt: skip
        file.write(NORTHERLY, 1)
    corner = Affine(20, 0, 600_100 + shift, 0, -20, 5_599_900 - shift)
    layer = replace(registry.layer("terrain/aspect"), kernel=kernel)
    found = read(
        Asset(href=str(tmp_path / "aspect.tif"), item="a", key="data"),
        GeoBox((8, 8), corner, "EPSG:32631"), layer,
        Access(schemes=("file",), roots=(str(tmp_path),)),
    )  # fmt: skip
    assert off(found, 0) < 1.01
    assert ((found >= 0) & (found <= 360)).all()


def test_a_row_of_a_full_turn_must_say_that_it_is_an_angle(tmp_path: Path) -> None:
    row = """
[layers."terrain/facing"]
long_name = "x"
dims = ["y", "x"]
units = "{units}"
kind = "{kind}"
work_dtype = "float32"
work_nodata = nan
convert = "identity"
dtype = "float32"
nodata = nan
kernel = "bilinear"
resolution = 30
valid_range = {range}
"""
    path = tmp_path / "rows.toml"
    for units, span in (("degrees", [0, 360]), ("degrees", [-180, 180]), ("rad", [-3.15, 3.15])):
        path.write_text(row.format(units=units, kind="continuous", range=span))
        with pytest.raises(CubeError, match=r"angle of a full turn.*give kind = \"phase\""):
            cubes.add(path)
    path.write_text(row.format(units="m", kind="phase", range=[0, 360]))
    with pytest.raises(CubeError, match="give it in rad or degrees"):
        cubes.add(path)


def test_aspect_of_a_terrain_model_is_such_a_layer(tmp_path: Path) -> None:
    y, _ = np.indices(BOX.shape.yx) * 10.0
    model = xr.DataArray((500 + y / 5).astype("float32"), dims=("y", "x"), coords=xr_coords(BOX))
    _, aspect = geometry.slope_aspect(model)
    assert aspect.attrs["kind"] == registry.layer("terrain/aspect").kind == "phase"
    tree = xr.DataTree.from_dict({"terrain": xr.Dataset({"aspect": aspect})})
    cubes.check(tree)
    cubes.write(tree, tmp_path / "a.zarr")
    stored = cubes.open(tmp_path / "a.zarr")["terrain"].aspect
    np.testing.assert_array_equal(stored, aspect)
    assert off(stored, float(geometry.convergence(BOX).mean())) < 0.1, "facing grid north"
