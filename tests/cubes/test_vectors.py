"""Labels from vector files: codes, nodata, overlaps, other CRS, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import cubes
from cubes import registry
from cubes.fields import vectors
from cubes.types import Legend

gpd = pytest.importorskip("geopandas")

BOX = GeoBox((60, 80), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32631")
LEFT = shapely.box(600000, 4999400, 600400, 5000000)
RIGHT = shapely.box(600400, 4999400, 600700, 5000000)
"""The last 10 columns are nobody's."""


def _table(column: list, shapes: list | None = None, crs: int = 32631):
    return gpd.GeoDataFrame({"code": column}, geometry=shapes or [LEFT, RIGHT], crs=crs)


def _rasterise(table, legend="worldcover", **options):
    return vectors.rasterise(table, BOX, column="code", legend=legend, year=2021, **options)


def test_codes_land_where_the_polygons_are() -> None:
    labels = _rasterise(_table([10, 40]))
    assert labels.dims == ("year", "y", "x")
    assert labels.dtype == np.uint8
    assert labels.name == "worldcover"
    assert (labels[0, :, :40] == 10).all()
    assert (labels[0, :, 40:70] == 40).all()
    assert (labels[0, :, 70:] == 0).all()
    assert labels.attrs["polygons"] == 2
    assert labels.attrs["contested_pixels"] == 0
    assert labels.attrs["origin"] == "mapped"


@pytest.mark.parametrize(
    "column",
    [["10", "40"], [10.0, 40.0], ["tree", "crop"]],
    ids=["text", "floats", "names"],
)
def test_codes_may_be_text_or_names(column: list) -> None:
    legend = Legend(
        name="mine", title="mine", origin="measured", nodata=0,
        classes={10: ("tree", "#000000"), 40: ("crop", "#ffffff")},
    )  # fmt: skip
    assert set(np.unique(_rasterise(_table(column), legend))) == {0, 10, 40}


def test_unknown_codes_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(cubes.CubeError, match=r"1 values .* not in legend 'worldcover'.*: 41"):
        _rasterise(_table([10, 41]))
    name = registry.legend("worldcover").classes[40][0]
    with pytest.raises(cubes.CubeError, match=f"did you mean '{name}'"):
        _rasterise(_table([name + "s", "10"]))
    with pytest.raises(cubes.CubeError, match="did you mean 'code'"):
        vectors.rasterise(_table([10, 40]), BOX, column="cod", legend="worldcover", year=2021)


@pytest.mark.parametrize("text", ["1_0", "１０", "+10", "1e1"])
def test_what_only_looks_like_a_code_is_refused(text: str) -> None:
    with pytest.raises(cubes.CubeError, match="1 values that are not in legend 'worldcover'"):
        vectors._codes(np.array([text, "20"], object), registry.legend("worldcover"), "c")
    found = vectors._codes(np.array(["10", 20, 30.0], object), registry.legend("worldcover"), "c")
    assert found.tolist() == [10, 20, 30]


def test_nodata_is_never_a_class_and_zero_of_sigpac_is() -> None:
    labels = _rasterise(_table([0, 40]))
    assert labels.attrs["polygons_without_class"] == 1
    assert (labels[0, :, :40] == 0).all()
    labels = _rasterise(_table([None, 0], [LEFT, RIGHT]), "sigpac")
    nodata = labels.attrs["nodata"]
    assert nodata not in registry.legend("sigpac").classes
    assert (labels[0, :, :40] == nodata).all()
    assert (labels[0, :, 40:70] == 0).all()
    assert (labels[0, :, 70:] == nodata).all()


def test_the_smaller_polygon_wins_whatever_the_row_order() -> None:
    pond = shapely.box(600100, 4999700, 600200, 4999800)
    for shapes, codes in (([LEFT, pond], [40, 80]), ([pond, LEFT], [80, 40])):
        labels = _rasterise(_table(codes, shapes))
        assert (labels == 80).sum() == 100
        assert labels.attrs["contested_pixels"] == 100
    same = _rasterise(_table([10, 40], [LEFT, LEFT]))
    assert (same[0, :, :40] == 10).all()
    assert "smallest" in same.attrs["overlap_rule"]


def test_another_crs_gives_the_same_pixels() -> None:
    lens = shapely.Point(600400, 4999700).buffer(222)
    here = _rasterise(_table([10, 40], [lens, RIGHT]))
    there = _rasterise(_table([10, 40], [lens, RIGHT]).to_crs(4326))
    assert int((here != there).sum()) <= 2  # centres within a millimetre of an edge


def test_long_edges_bend_with_the_projection() -> None:
    # one degree of a parallel: its chord in UTM lies 60 m from the arc
    band = shapely.box(3.9, 45.145, 4.9, 45.3)
    labels = vectors.rasterise(
        _table([10], [band], 4326), BOX, column="code", legend="worldcover", year=2021
    )
    from pyproj import Transformer

    x, y = np.meshgrid(BOX.coordinates["x"].values, BOX.coordinates["y"].values)
    _, lat = Transformer.from_crs(32631, 4326, always_xy=True).transform(x, y)
    inside = lat > 45.145
    assert 0 < inside.sum() < inside.size
    assert int(((labels[0].to_numpy() == 10) != inside).sum()) <= 2


def test_all_touched_takes_more(tmp_path: Path) -> None:
    thin = shapely.box(600001, 4999401, 600004, 4999999)
    with pytest.raises(cubes.CubeError, match="no polygon touches"):
        _rasterise(_table([10], [shapely.box(0, 0, 1, 1)]))
    assert (_rasterise(_table([10], [thin])) == 10).sum() == 0
    assert (_rasterise(_table([10], [thin]), all_touched=True) == 10).sum() == 60


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg", ".geojson"])
def test_files_equal_tables(tmp_path: Path, suffix: str) -> None:
    table = _table([10, 40, 80], [LEFT, RIGHT, shapely.box(9e5, 4e6, 9.1e5, 4.1e6)])
    table = table.to_crs(4326)
    path = tmp_path / f"fields{suffix}"
    table.to_parquet(path) if suffix == ".parquet" else table.to_file(path)
    assert _rasterise(str(path)).equals(_rasterise(table))


def test_bad_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(cubes.CubeError, match="no CRS"):
        _rasterise(gpd.GeoDataFrame({"code": [10]}, geometry=[LEFT]))
    gpd.GeoDataFrame({"code": [10]}, geometry=[LEFT]).to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(cubes.CubeError, match=r"bare\.parquet has no CRS"):
        _rasterise(tmp_path / "bare.parquet")
    with pytest.raises(cubes.CubeError, match="holds Point"):
        _rasterise(_table([10], [shapely.Point(600100, 4999500)]))
    with pytest.raises(cubes.CubeError, match="no such file"):
        _rasterise(tmp_path / "none.gpkg")
    (tmp_path / "a.gpkg").write_text("not a geopackage")
    with pytest.raises(cubes.CubeError, match="not a vector file"):
        _rasterise(tmp_path / "a.gpkg")
    (tmp_path / "a.parquet").write_text("not parquet")
    with pytest.raises(cubes.CubeError, match="not GeoParquet"):
        _rasterise(tmp_path / "a.parquet")
    both = tmp_path / "two.gpkg"
    _table([10, 40]).to_file(both, layer="a")
    _table([10, 40]).to_file(both, layer="b")
    with pytest.raises(cubes.CubeError, match=r"2 layers \(a, b\)"):
        _rasterise(both)
    with pytest.raises(cubes.CubeError, match="cannot read polygons from a list"):
        _rasterise([LEFT])


def test_broken_polygons_are_mended() -> None:
    bowtie = shapely.Polygon(
        [(600000, 5000000), (600400, 4999600), (600400, 5000000), (600000, 4999600)]
    )
    assert 700 <= int((_rasterise(_table([10], [bowtie])) == 10).sum()) <= 820


@pytest.mark.parametrize("legend", ["worldcover", "cdl", "sigpac", "corine", "common"])
def test_labels_of_shipped_legends_are_a_cube_that_can_be_written(
    legend: str, tmp_path: Path
) -> None:
    codes = registry.legend(legend).scored[:2]
    labels = vectors.rasterise(_table(list(codes)), BOX, column="code", legend=legend, year=2020)
    cube = xr.DataTree.from_dict({"labels": labels.to_dataset()})
    cubes.check(cube)
    assert cubes.write(cube, tmp_path / "a.zarr").state == "sealed"
    again = cubes.open(tmp_path / "a.zarr", chunks=None)[f"labels/{legend}"]
    np.testing.assert_array_equal(again, labels)
    assert set(cubes.valid(again).to_numpy()[0, 0].tolist()) == {True, False}
