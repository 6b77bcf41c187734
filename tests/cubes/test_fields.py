"""Field series against brute force, from stores and lazy cubes, streamed and whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import cubes
from cubes import cube as lazy_cubes
from cubes import registry
from cubes.fields import extract as fields
from cubes.fields import vectors
from cubes.store import opened
from cubes.store import verbs as store

gpd = pytest.importorskip("geopandas")

ORIGIN = (600000, 5000000)
DISC = shapely.Point(600800, 4999200).buffer(555)
SQUARE = shapely.box(600100, 4999000, 600400, 4999300)
EDGE = shapely.Point(601590, 4998410).buffer(100)
SPECK = shapely.box(600001, 4999998, 600003, 4999999)


def _polygons(shapes: dict[str, object]):
    table = gpd.GeoDataFrame({"id": list(shapes)}, geometry=list(shapes.values()), crs=32631)
    return table.to_crs(4326)


FIELDS = {"disc": DISC, "square": SQUARE, "edge": EDGE}


def _mask(shape, size: int = 160) -> np.ndarray:
    centres = np.arange(size) * 10 + 5
    x, y = np.meshgrid(ORIGIN[0] + centres, ORIGIN[1] - centres)
    return shapely.contains_xy(shape, x, y)


@pytest.fixture(scope="module")
def table(whole) -> pd.DataFrame:
    path, _ = whole
    return fields.extract(path, _polygons(FIELDS), field="id")


def _expected(tree: xr.DataTree, layer: str, channel: str | None, step: int, mask: np.ndarray):
    data = tree[layer]
    data = data.sel({("pol" if "pol" in data.dims else "band"): channel}) if channel else data
    values = (data.isel(time=step) if "time" in data.dims else data).to_numpy()[mask]
    if layer == "s2/reflectance":
        values = values[tree["s2/clear"].to_numpy()[step][mask]]
    return values[~np.isnan(values)].astype(float)


def _row(table: pd.DataFrame, **where) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


@pytest.mark.parametrize("name", FIELDS)
def test_means_and_spreads_equal_brute_force(whole, table: pd.DataFrame, name: str) -> None:
    tree = store.open(whole[0], chunks=None)
    mask = _mask(FIELDS[name])
    for step in (0, 4):
        time = tree["s2"]["time"].to_numpy()[step]
        values = _expected(tree, "s2/reflectance", "B04", step, mask)
        row = _row(table, field=name, layer="s2/reflectance", channel="B04", time=time)
        assert row["count"] == len(values)
        assert row["pixels"] == mask.sum()
        assert row["mean"] == pytest.approx(values.mean(), abs=1e-9)
        assert row["spread"] == pytest.approx(values.std(), abs=1e-9)
        assert row["clear"] == pytest.approx(
            tree["s2/clear"].to_numpy()[step][mask].mean(), abs=1e-6
        )
        values = _expected(tree, "s1/backscatter", "vh", step, mask)
        row = _row(table, field=name, layer="s1/backscatter", channel="vh", time=time)
        # in linear power; the mean of dB would be lower by 0.5 dB on four looks
        assert row["mean"] == pytest.approx(10 * np.log10((10 ** (values / 10)).mean()), abs=1e-9)
        assert row["mean"] - values.mean() > 0.3
        assert row["spread"] == pytest.approx(values.std(), abs=1e-6)
        assert np.isnan(row["clear"])
        assert row["track"] == f"{10 + step}A"
    values = _expected(tree, "terrain/elevation", None, 0, mask)
    row = _row(table, field=name, layer="terrain/elevation")
    assert row["mean"] == pytest.approx(values.mean(), abs=1e-6)
    assert pd.isna(row["time"])


def test_classes_are_shares(whole, table: pd.DataFrame) -> None:
    scl = store.open(whole[0], chunks=None)["s2/scl"]
    values = scl.to_numpy()[1][_mask(DISC)]
    values = values[values != 0]
    of = table[(table["field"] == "disc") & (table["layer"] == "s2/scl")]
    of = of[of["time"] == scl["time"].to_numpy()[1]]
    assert of["channel"].tolist() == [str(c) for c in np.unique(values)]
    for row in of.itertuples():
        assert row.mean == pytest.approx((values == int(row.channel)).mean())
        assert row.count == len(values)
    assert of["mean"].sum() == pytest.approx(1)


def test_order_columns_and_reports(table: pd.DataFrame) -> None:
    assert tuple(table.columns) == fields.COLUMNS
    assert table["field"].drop_duplicates().tolist() == list(FIELDS)
    assert table.attrs["clipped"] == ["edge"]
    assert table.attrs["unmatched"] == []
    assert "s2/clear" not in set(table["layer"])
    assert len(table[table["layer"] == "s2/reflectance"]) == 3 * 5 * 3


def test_store_dask_and_lazy_cubes_agree(whole, plan, table: pd.DataFrame, monkeypatch) -> None:
    polygons = _polygons(FIELDS)
    monkeypatch.setattr(fields, "BLOCK_BYTES", 64 * 64 * 4)
    on_dask = fields.extract(store.open(whole[0]), polygons, field="id")
    pd.testing.assert_frame_equal(on_dask, table, check_exact=False, rtol=1e-12)
    lazy = fields.extract(lazy_cubes.open_plan(plan), polygons, field="id")
    # a lazy cube's dB are not rounded to the 0.01 dB of the store
    pd.testing.assert_frame_equal(lazy, table, check_exact=False, atol=0.006)


def test_each_pixel_is_read_at_most_once(whole, monkeypatch) -> None:
    read: dict[str, int] = {}
    plain = opened._Physical._read

    def counted(self, key):
        out = plain(self, key)
        read[self.array.name] = read.get(self.array.name, 0) + out.size
        return out

    monkeypatch.setattr(opened._Physical, "_read", counted)
    everywhere = _polygons({"all": shapely.box(*(600000, 4998400), *(601600, 5000000))})
    for chunks in (None, "stored"):
        read.clear()
        fields.extract(store.open(whole[0], chunks=chunks), everywhere, layers=["s2/reflectance"])
        assert read["s2/reflectance"] == 5 * 3 * 160 * 160
    read.clear()
    fields.extract(whole[0], _polygons({"square": SQUARE}), layers=["s2/reflectance"])
    assert read["s2/reflectance"] == 5 * 3 * 30 * 30


def test_streamed_parquet_equals_the_table(whole, table: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "series.parquet"
    summary = fields.extract(whole[0], _polygons(FIELDS), field="id", path=path)
    assert summary["field"].tolist() == list(FIELDS)
    assert summary["pixels"].tolist() == [int(_mask(s).sum()) for s in FIELDS.values()]
    keys = ["field", "layer", "channel", "time", "step"]
    written = pd.read_parquet(path).sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(
        written, table.sort_values(keys, ignore_index=True), check_dtype=False
    )
    assert [p.name for p in tmp_path.iterdir()] == ["series.parquet"]


def test_the_file_says_what_its_numbers_are(whole, tmp_path: Path) -> None:
    path = tmp_path / "series.parquet"
    speck = shapely.Polygon([(600101, 4999501), (600103, 4999501), (600102, 4999502)])
    shapes = {**FIELDS, "speck": speck}
    summary = fields.extract(whole[0], _polygons(shapes), field="id", path=path, buffer=-0.1)
    for attrs in (pd.read_parquet(path).attrs, summary.attrs):
        assert attrs["units"]["s1/backscatter"] == "dB"
        assert attrs["crs"] == str(cubes.load_plan(whole[0]).geobox.crs)
        assert attrs["buffer"] == -0.1
        assert attrs["unmatched"] == ["speck"]


def test_a_failed_stream_leaves_no_file(whole, tmp_path: Path, monkeypatch) -> None:
    def fail(*args):
        raise OSError("disk on fire")

    monkeypatch.setattr(opened._Physical, "_read", fail)
    with pytest.raises(OSError, match="on fire"):
        fields.extract(whole[0], _polygons(FIELDS), path=tmp_path / "series.parquet")
    assert list(tmp_path.iterdir()) == []


def test_buffers_and_unmatched(whole) -> None:
    polygons = _polygons({**FIELDS, "speck": SPECK})
    layers = ["terrain/elevation"]
    plain = fields.extract(whole[0], polygons, field="id", layers=layers)
    assert plain.attrs["unmatched"] == ["speck"]
    inner = fields.extract(whole[0], polygons, field="id", layers=layers, buffer=-10)
    assert _row(inner, field="square")["pixels"] == 28 * 28
    with pytest.raises(cubes.CubeError, match="none of 1 fields contains a pixel centre"):
        fields.extract(whole[0], _polygons({"speck": SPECK}))
    point = _polygons({"point": shapely.Point(600800, 4999200)})
    out = fields.extract(whole[0], point, field="id", layers=layers, buffer=25)
    assert _row(out, field="point")["pixels"] == 16  # the corners of a 4 x 4 square lie at 21 m


def test_overlapping_fields_are_each_their_own(whole) -> None:
    twice = _polygons({"a": SQUARE, "b": SQUARE})
    out = fields.extract(whole[0], twice, field="id", layers=["terrain/elevation"])
    a, b = out.iloc[0], out.iloc[1]
    assert a["pixels"] == b["pixels"] == 900
    assert a["mean"] == b["mean"]


@pytest.mark.parametrize("seed", range(3))
def test_abutting_fields_and_labels_share_no_pixel_and_lose_none(seed: int) -> None:
    """Edges through pixel centres, as of parcels drawn on an image's grid: each is in one field."""
    size = 40
    box = GeoBox((size, size), Affine(10, 0, *ORIGIN[:1], 0, -10, ORIGIN[1]), "EPSG:32631")
    rng = np.random.default_rng(seed)
    corners = np.array([(-5, -5), (-5, size * 10 + 5), (size * 10 + 5, -5), (size * 10 + 5,) * 2])
    points = np.concatenate([corners, rng.integers(0, size, (9, 2)) * 10 + 5])
    points = points * [1, -1] + ORIGIN
    shapes = list(shapely.delaunay_triangles(shapely.MultiPoint(points)).geoms)
    codes = registry.legend("worldcover").classes
    table = gpd.GeoDataFrame(
        {"code": [list(codes)[i % len(codes)] for i in range(len(shapes))]},
        geometry=shapes,
        crs=32631,
    )
    values = xr.DataArray(np.ones((size, size), "float32"), dims=("y", "x"))
    tree = xr.DataTree.from_dict(
        {"/terrain": xr.Dataset({"elevation": values}, coords=xr_coords(box))}
    )
    series = fields.extract(tree, table)
    assert series["pixels"].sum() == size**2
    labels = vectors.rasterise(table, box, column="code", legend="worldcover", year=2021)
    assert (labels != labels.attrs["nodata"]).all()
    assert labels.attrs["contested_pixels"] == 0
    by_code = series.groupby(table["code"].loc[series["field"]].to_numpy())["pixels"].sum()
    for code, pixels in by_code.items():
        assert pixels == (labels == code).sum()
    # two rectangles, 20 lines, a shared edge through the centres of a column
    x, y = ORIGIN
    left, right = shapely.box(x, y, x + 105, y - 200), shapely.box(x + 105, y, x + 200, y - 200)
    two = fields.extract(tree, gpd.GeoSeries([left, right], crs=32631))
    assert two["pixels"].tolist() == [220, 180]


def test_layers_without_data_or_steps(tmp_path: Path) -> None:
    tree = _phase_cube()
    box = tree["insar"].to_dataset().odc.geobox
    nothing = xr.DataArray(
        np.zeros((1, 20, 20), "uint8"), dims=("year", "y", "x"),
        coords={**xr_coords(box), "year": [2021]}, name="worldcover",
    )  # fmt: skip
    square = _polygons({"f": shapely.box(600000, 4999800, 600200, 5000000)})
    empty = xr.DataTree.from_dict({"labels": nothing.to_dataset()})
    assert len(fields.extract(empty, square)) == 0
    none = xr.DataTree.from_dict({"insar": tree["insar"].to_dataset().isel(pair=slice(0))})
    assert tuple(fields.extract(none, square).columns) == fields.COLUMNS
    both = xr.DataTree.from_dict(
        {"labels": nothing.to_dataset(), "insar": tree["insar"].to_dataset()}
    )
    fields.extract(both, square, path=tmp_path / "a.parquet")
    assert len(pd.read_parquet(tmp_path / "a.parquet")) == 2


def test_what_is_refused(whole) -> None:
    polygons = _polygons(FIELDS)
    with pytest.raises(cubes.CubeError, match="did you mean 's2/reflectance'"):
        fields.extract(whole[0], polygons, layers=["s2/reflectanc"])
    with pytest.raises(cubes.CubeError, match="no column 'ids'; did you mean 'id'"):
        fields.extract(whole[0], polygons, field="ids")
    with pytest.raises(cubes.CubeError, match="more than once, first 'x'"):
        fields.extract(whole[0], polygons.assign(id="x"), field="id")
    with pytest.raises(cubes.CubeError, match="no polygon touches the cube"):
        fields.extract(whole[0], _polygons({"far": shapely.box(7e5, 49e5, 7.01e5, 49.01e5)}))


@pytest.mark.parametrize(
    ("dtype", "codes"),
    [
        ("int32", [3_000_000, 3_000_001]),
        ("int32", [-5, 7]),
        ("int64", [-(2**62), 2**62]),
        ("uint32", [2**20, 2**32 - 1]),
        ("uint64", [2**63 - 1, 2**40]),
        ("int16", [-1, 0]),
    ],
)
def test_codes_of_any_size_are_counted(dtype: str, codes: list[int]) -> None:
    """Codes of parcels or basins do not fit into twenty bits, and a user's own may be negative."""
    tree = _phase_cube()
    pixels = np.full((64, 64), codes[0], dtype)
    pixels[:, 32:] = codes[1]
    data = tree["insar"].to_dataset().drop_vars(["phase", "pair"], errors="ignore")
    data = data[[]].assign(parcel=(("y", "x"), pixels))
    tree = xr.DataTree.from_dict({"/mine": data})
    box = data.odc.geobox.boundingbox
    # the second field holds the second code only, and its number is not 0
    shapes = [
        shapely.box(*box),
        shapely.box((box.left + box.right) / 2 + 1, box.bottom, box.right, box.top),
    ]
    table = gpd.GeoDataFrame(geometry=shapes, crs=str(data.odc.geobox.crs))
    found = fields.extract(tree, table)
    got = {(r.field, int(r.channel)): r.mean for r in found.itertuples()}
    assert got == {(0, codes[0]): 0.5, (0, codes[1]): 0.5, (1, codes[1]): 1.0}
    assert (found["count"] == found["pixels"]).all()


def test_codes_beyond_int64_are_refused() -> None:
    tree = _phase_cube()
    data = tree["insar"].to_dataset()[[]].drop_vars("pair", errors="ignore")
    data = data.assign(parcel=(("y", "x"), np.full((64, 64), 2**63, "uint64")))
    tree = xr.DataTree.from_dict({"/mine": data})
    table = gpd.GeoDataFrame(
        geometry=[shapely.box(*data.odc.geobox.boundingbox)], crs=str(data.odc.geobox.crs)
    )
    with pytest.raises(cubes.CubeError, match=r"mine/parcel.*9223372036854775808.*int64"):
        fields.extract(tree, table)


def _phase_cube() -> xr.DataTree:
    box = GeoBox((20, 20), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32631")
    rng = np.random.default_rng(4)
    # around +pi: the mean of the angles themselves would be near 0
    phase = np.angle(np.exp(1j * (np.pi + rng.normal(0, 0.3, (2, 1, 20, 20))))).astype("float32")
    phase[1, 0, :, :10] = np.nan
    pairs = {
        "pair": ["a_b_10A", "a_c_10A"],
        "reference_time": ("pair", np.array(["2021-01-01", "2021-01-01"], "datetime64[ns]")),
        "secondary_time": ("pair", np.array(["2021-01-13", "2021-01-07"], "datetime64[ns]")),
        "temporal_baseline": ("pair", [12, 6]),
        "relative_orbit": ("pair", [10, 10]),
        "orbit_state": ("pair", ["ascending", "ascending"]),
    }
    data = xr.Dataset(
        {"phase": (("pair", "pol", "y", "x"), phase)},
        coords={**xr_coords(box), "pol": ["vv"], **pairs},
    )
    return xr.DataTree.from_dict({"insar": data})


def test_phase_is_a_circular_mean() -> None:
    tree = _phase_cube()
    square = _polygons({"f": shapely.box(600000, 4999800, 600200, 5000000)})
    out = fields.extract(tree, square, field="id")
    phase = tree["insar/phase"].to_numpy().astype(float)
    for step, time, count in ((0, "2021-01-13", 400), (1, "2021-01-07", 200)):
        row = _row(out, time=pd.Timestamp(time))
        values = phase[step, 0][~np.isnan(phase[step, 0])]
        mean = np.exp(1j * values).mean()
        assert row["count"] == count
        assert row["mean"] == pytest.approx(np.angle(mean), abs=1e-9)
        assert abs(row["mean"]) > 3  # the mean of the angles is within 0.5 of zero
        assert abs(values.mean()) < 0.5
        assert row["spread"] == pytest.approx(np.sqrt(-2 * np.log(abs(mean))), abs=1e-9)
        assert row["spread"] == pytest.approx(0.3, abs=0.05)
        assert row["track"] == "10A"
        assert row["step"] == tree["insar"]["pair"].to_numpy()[step]


def test_no_geopandas_is_explained(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "geopandas", None)
    with pytest.raises(cubes.CubeError, match=r"deepsentinel\[vectors\]"):
        fields.extract(_phase_cube(), "fields.gpkg")


@pytest.mark.real
def test_a_real_field_greens_in_summer(real: Path, monkeypatch) -> None:
    monkeypatch.setenv("DEEPSENTINEL_REAL", str(real))
    box = GeoBox((64, 64), Affine(10, 0, 501360, 0, -10, 5629680), "EPSG:32631")
    request = cubes.Request.of(
        (3.0194, 50.8132, 3.0283, 50.8188),
        "2018-03/2018-07",
        ("s1/backscatter", "s2/reflectance", "s2/scl", "s2/clear"),
        catalog=Path(__file__).parent.parent / "real" / "flanders.toml",
        bands=("B04", "B08"),
        grid=cubes.Grid(geobox=box),
    )
    cube = request.open()
    middle = shapely.box(501460, 5629140, 501900, 5629580)
    square = gpd.GeoDataFrame({"id": ["patch"]}, geometry=[middle], crs=32631).to_crs(4326)
    out = fields.extract(cube, square, field="id", layers=["s1/backscatter", "s2/reflectance"])
    s1 = out[out["layer"] == "s1/backscatter"]
    assert len(s1) == 2 * cube["s1"].sizes["time"]
    assert s1.groupby("channel")["mean"].median().between(-25, -5).all()
    s2 = out[(out["layer"] == "s2/reflectance") & (out["clear"] > 0.9)]
    wide = s2.pivot_table(index="time", columns="channel", values="mean")
    ndvi = (wide["B08"] - wide["B04"]) / (wide["B08"] + wide["B04"])
    assert len(ndvi) >= 8
    assert ndvi[ndvi.index.month.isin([4, 5, 6])].median() > 0.35
    assert ndvi.between(-0.2, 1).all()
    assert (out["pixels"] == 44 * 44).all()
