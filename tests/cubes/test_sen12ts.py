"""SEN12TS both ways: the rule against brute force, every bit back, every number once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import cubes
from cubes import names, registry, sen12ts, worlds
from cubes.corpora import gathering
from cubes.cube import attributes
from cubes.files import geotiff as files
from cubes.sen12ts.bands import BANDS
from cubes.series import track_label
from cubes.types import CubeError, Layout, Legend

EDGE = 32
BOX = GeoBox((EDGE, 2 * EDGE), Affine(10, 0, 600_000, 0, -10, 4_000_000), "EPSG:32611")
RULE = sen12ts.Rule(size=EDGE)
LOSSLESS = Layout(patch=64, lossless=True)


def field(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return noise on a smooth field, float32 (.., y, x)."""
    y, x = np.mgrid[: BOX.shape[0], : BOX.shape[1]] / 20
    return (np.sin(y) * np.cos(x) + 0.3 * rng.normal(size=(*shape, *BOX.shape))).astype("float32")


def layer(name: str, data: np.ndarray, **extra: Any) -> tuple[Any, ...]:
    row = registry.layer(name)
    return row.dims, data, attributes(row, extra)


ASCENDING, DESCENDING = (137, "ascending", "01:58:54"), (64, "descending", "13:52:08")
Track = tuple[int, str, str]


def world(days: int = 190, tracks: tuple[Track, ...] = (ASCENDING, DESCENDING)) -> xr.DataTree:
    """Return a cube of 12-day passes and Sentinel-2 every five days, seeded."""
    rng = np.random.default_rng(4)
    start = pd.Timestamp("2020-01-01")
    passes = sorted(
        (start + pd.Timedelta(days=d + 5 * k) + pd.Timedelta(time), orbit, state)
        for k, (orbit, state, time) in enumerate(tracks)
        for d in range(0, days - 5 * k, 12)
    )
    times = pd.DatetimeIndex([p[0] for p in passes])
    labels = [track_label(o, s) for o, s in ((o, s) for o, s, _ in tracks)]
    orbits = {"relative_orbit": [p[1] for p in passes], "orbit_state": [p[2] for p in passes]}
    n = len(passes)
    s1 = xr.Dataset(
        {
            "backscatter": layer(
                "s1/backscatter", field(rng, n, 2) * 4 - 12, calibration="gamma0_rtc"
            ),
            "incidence": layer("s1/incidence", field(rng, len(tracks)) + 39),
            "layover_shadow": layer(
                "s1/layover_shadow", (field(rng, len(tracks)) > 1.2).astype("uint8")
            ),
        },
        coords={
            "time": times, "pol": ["vv", "vh"], "track": labels,
            "platform": ("time", ["S1A"] * n),
            **{k: ("time", v) for k, v in orbits.items()},
        },
    )  # fmt: skip
    insar = xr.Dataset(
        {
            "coherence": layer("insar/coherence", np.clip(field(rng, n, 1) / 3 + 0.5, 0, 1)),
            "phase": layer("insar/phase", field(rng, n, 1)),
        },
        coords={
            "pair": [f"{t:%Y%m%d}_{o}" for t, o, _ in passes], "pol": ["vv"],
            "reference_time": ("pair", times - pd.Timedelta("12D")),
            # the product's stamp is half a second off the granule's, as real ones are
            "secondary_time": ("pair", times + pd.Timedelta("500ms")),
            "temporal_baseline": ("pair", [12] * n),
            **{k: ("pair", v) for k, v in orbits.items()},
        },
    )  # fmt: skip
    optical = pd.date_range(start + pd.Timedelta("18:31:00"), periods=days // 5, freq="5D")
    m = len(optical)
    dn = np.clip(field(rng, m, 12) * 900 + 2500, 0, 10_000).round()
    s2 = xr.Dataset(
        {
            "reflectance": layer("s2/reflectance", (dn.astype("float64") * 1e-4).astype("float32")),
            "scl": layer("s2/scl", rng.integers(4, 7, (m, *BOX.shape)).astype("uint8")),
            "clear": layer("s2/clear", rng.random((m, *BOX.shape)) > 0.1),
        },
        coords={
            "time": optical, "band": list(BANDS), "platform": ("time", ["S2B"] * m),
            "cloud_cover": ("time", rng.choice([0.2, 3.0, 5.0, 5.1, 40.0], m)),
        },
    )  # fmt: skip
    groups = {
        "s1": s1, "insar": insar, "s2": s2,
        "terrain": xr.Dataset({"slope": layer("terrain/slope", field(rng) + 3)}),
        "labels": xr.Dataset(
            {"worldcover": layer(
                "labels/worldcover", rng.choice([10, 30, 40], (1, *BOX.shape)).astype("uint8"))},
            coords={"year": [2020]},
        ),
    }  # fmt: skip
    grid = dict(xr_coords(BOX))
    return xr.DataTree.from_dict({k: v.assign_coords(grid) for k, v in groups.items()})


@pytest.fixture(scope="module")
def cube() -> xr.DataTree:
    made = world()
    cubes.check(made)
    return made


@pytest.fixture(scope="module")
def exported(cube: xr.DataTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triplets")
    sen12ts.export(cube, folder, rule=RULE)
    return folder


def put(cube: xr.DataTree, group: str, **changes: Any) -> xr.DataTree:
    """Return a copy of a cube with variables or coordinates of one group replaced."""
    whole = {k: v.to_dataset() for k, v in cube.children.items()}
    whole[group] = whole[group].assign_coords(
        {k: v for k, v in changes.items() if k in whole[group].coords}
    ).assign({k: v for k, v in changes.items() if k not in whole[group].coords})  # fmt: skip
    return xr.DataTree.from_dict(whole)


def tree_bytes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.tif"))}


# ------------------------------------------------------------------------------------- the rule


def brute_force(cube: xr.DataTree) -> set[tuple[str, str]]:
    """Return newest radar date and Sentinel-2 date of every triplet, by trying all."""
    s1, s2 = cube["s1"].to_dataset(), cube["s2"].to_dataset()
    insar = cube["insar"].to_dataset()
    days = pd.DatetimeIndex(s1.time.to_numpy()).normalize()
    ends = {
        (pd.Timestamp(t).normalize(), int(o))
        for t, o, b in zip(
            insar.secondary_time.to_numpy(), insar.relative_orbit.to_numpy(),
            insar.temporal_baseline.to_numpy(), strict=True,
        )
        if b == 12
    }  # fmt: skip
    have = set(zip(days, s1.relative_orbit.to_numpy().tolist(), strict=True))
    clear = [
        pd.Timestamp(t).normalize()
        for t, c in zip(s2.time.to_numpy(), s2.cloud_cover.to_numpy(), strict=True)
        if c <= 5
    ]
    out = set()
    for newest, orbit in have:
        dates = [(newest - pd.Timedelta(days=12 * k), orbit) for k in range(4)]
        near = [(abs(t - newest), t) for t in clear if abs(t - newest) <= pd.Timedelta("3D")]
        if all(d in have and d in ends for d in dates) and near:
            out.add((f"{newest:%Y-%m-%d} {orbit}", f"{min(near)[1]:%Y-%m-%d}"))
    return out


def test_every_triplet_of_the_rule_is_found_and_no_other(cube: xr.DataTree) -> None:
    table = sen12ts.series(cube, sen12ts.Rule(size=EDGE, per_season=None))
    assert set(table["tile"]) == {(0, 0, EDGE), (0, EDGE, EDGE)}
    wanted = brute_force(cube)
    assert len(wanted) > 8
    for _, mine in table.groupby("place"):
        parsed = [names.parse_sen12ts(n) for n in mine["name"]]
        found = {(f"{p.s1_date} {p.track}", p.s2_date) for p in parsed}
        assert found == wanted
        assert len(mine) == len(wanted)
    s1, s2 = cube["s1"], cube["s2"]
    for row in table.to_dict("records"):
        times = pd.DatetimeIndex(s1.time.to_numpy()[list(row["s1"])])
        assert (np.diff(times) == -pd.Timedelta("12D")).all(), "newest first"
        ends = cube["insar"].secondary_time.to_numpy()[list(row["pairs"])]
        assert (abs(pd.DatetimeIndex(ends) - times) < pd.Timedelta("1s")).all()
        assert float(s2.cloud_cover[row["s2"]]) <= 5


def test_a_season_has_at_most_four_drawn_from_a_seed() -> None:
    cube = world(366)
    table = sen12ts.series(cube, RULE)
    counts = table.groupby(["place", "season"]).size()
    assert counts.max() == 4
    assert set(table["season"]) == {"winter", "spring", "summer", "autumn"}
    every = sen12ts.series(cube, sen12ts.Rule(size=EDGE, per_season=None))
    assert set(table["name"]) < set(every["name"])
    other = sen12ts.series(cube, sen12ts.Rule(size=EDGE, seed=1))
    assert set(other["name"]) != set(table["name"])
    again = sen12ts.series(world(366), RULE)
    assert again["name"].tolist() == table["name"].tolist()


@pytest.mark.parametrize(("pixels", "kept"), [(10, True), (11, False)])
def test_one_percent_of_a_layer_group_may_be_missing(
    cube: xr.DataTree, pixels: int, kept: bool
) -> None:
    """1,024 pixels: 10 are 0.98 %, 11 are 1.07 %; the second tile is untouched."""
    data = cube["insar"].phase.copy(deep=True)
    step = 12
    data[step, 0, 5, 20 : 20 + pixels] = np.nan
    broken = put(cube, "insar", phase=data)
    rule = sen12ts.Rule(size=EDGE, per_season=None)
    using = [
        row["tile"][1]
        for row in sen12ts.series(broken, rule).to_dict("records")
        if step in row["pairs"]
    ]
    assert EDGE in using
    assert (0 in using) is kept


def test_a_gap_in_dates_or_pairs_ends_a_series(cube: xr.DataTree) -> None:
    baselines = cube["insar"].temporal_baseline.to_numpy().copy()
    baselines[10] = 6
    changed = put(cube, "insar", temporal_baseline=("pair", baselines))
    rule = sen12ts.Rule(size=EDGE, per_season=None)
    assert not any(10 in row for row in sen12ts.series(changed, rule)["pairs"])
    found = {
        (f"{p.s1_date} {p.track}", p.s2_date)
        for p in map(names.parse_sen12ts, sen12ts.series(changed, rule)["name"])
    }
    assert found == brute_force(changed) < brute_force(cube)


# ------------------------------------------------------------------------------------ both ways


def test_export_read_export_is_the_same_bytes(exported: Path, tmp_path: Path) -> None:
    """Through memory, and through a lossless store."""
    first = tree_bytes(exported)
    assert len(first) > 2 * 2 * 6
    for place, tile in sen12ts.read_all(exported):
        cubes.check(tile)
        sen12ts.export(tile, tmp_path / "memory")
        report = cubes.write(tile, tmp_path / f"{place}.zarr", layout=LOSSLESS)
        assert report.state == "sealed"
        sen12ts.export(tmp_path / f"{place}.zarr", tmp_path / "store")
    assert tree_bytes(tmp_path / "memory") == first
    assert tree_bytes(tmp_path / "store") == first


def test_what_counts_as_clear_comes_back(cube: xr.DataTree, tmp_path: Path) -> None:
    policy = {"clear_classes": [4, 5], "clear_dilate_px": 2}
    clear = cube["s2/clear"].assign_attrs(policy)
    sen12ts.export(put(cube, "s2", clear=clear), tmp_path / "stated", rule=RULE)
    sen12ts.export(cube, tmp_path / "silent", rule=RULE)
    _, tile = next(sen12ts.read_all(tmp_path / "stated"))
    assert {k: tile["s2/clear"].attrs[k] for k in policy} == policy
    # published files do not say: then what is clear in their pixels
    _, tile = next(sen12ts.read_all(tmp_path / "silent"))
    seen = np.unique(tile["s2/scl"].to_numpy()[tile["s2/clear"].to_numpy()])
    assert tile["s2/clear"].attrs["clear_classes"] == [c for c in seen.tolist() if c]
    assert "clear_dilate_px" not in tile["s2/clear"].attrs
    assert "somewhere in the files" in tile["s2/clear"].attrs["clear_rule"]


def test_labels_of_ones_own_legend_are_read_without_its_row(
    cube: xr.DataTree, tmp_path: Path
) -> None:
    """The files hold the legend whole: nothing of it is known in this process."""
    classes = {1: ("wheat", "#d8b56b"), 2: ("grass/fallow", "#00aa00")}
    legend = Legend(name="parcels", title="Crops", origin="measured", nodata=255, classes=classes)
    codes = np.full((1, *BOX.shape), 1, np.uint8)
    codes[:, ::2], codes[:, :7] = 2, 255
    labels = (("year", "y", "x"), codes, {"nodata": 255, "legend_json": legend.to_json()})
    coords = {**xr_coords(BOX), "year": [2020]}
    mine = cube.copy()
    mine["labels"] = xr.Dataset({"parcels": labels}, coords=coords)
    sen12ts.export(mine, tmp_path, rule=RULE)
    assert "parcels" not in registry.legends()
    _, tile = next(sen12ts.read_all(tmp_path))
    found = tile["labels/parcels"]
    assert registry.legend(found) == legend
    assert (found.attrs["legend"], found.attrs["nodata"]) == ("parcels", 255)
    np.testing.assert_array_equal(found, codes[:, :EDGE, :EDGE])


def test_every_date_stands_once_and_the_numbers_are_the_cubes(
    cube: xr.DataTree, exported: Path
) -> None:
    table = sen12ts.inventory(exported)
    place = table["place"].iloc[0]
    tile = sen12ts.read(exported, place)
    series = sen12ts.series(cube, RULE)
    mine = series[series["place"] == place]
    radar = sorted({i for row in mine["s1"] for i in row})
    images = sorted(set(mine["s2"]))
    assert len(mine) * 4 > len(radar) == tile["s1"].sizes["time"] == tile["insar"].sizes["pair"]
    assert len(images) == tile["s2"].sizes["time"]
    start = mine["tile"].iloc[0][1]
    part = {
        g: cube[g].to_dataset().isel(y=slice(EDGE), x=slice(start, start + EDGE))
        for g in cube.children
    }
    s1 = part["s1"].isel(time=radar)
    np.testing.assert_array_equal(tile["s1"].backscatter, s1.backscatter)
    assert tile["s1"].pol.to_numpy().tolist() == ["vv", "vh"]
    np.testing.assert_array_equal(tile["s1"].time, s1.time)
    assert tile["s1"].backscatter.attrs["calibration"] == "gamma0_rtc"
    for name in ("coherence", "phase"):
        np.testing.assert_array_equal(tile["insar"][name], part["insar"][name].isel(pair=radar))
    s2 = part["s2"].isel(time=images)
    for name in ("reflectance", "scl", "clear"):
        np.testing.assert_array_equal(tile["s2"][name], s2[name])
    for name in ("time", "cloud_cover", "platform"):
        np.testing.assert_array_equal(tile["s2"][name], s2[name])
    np.testing.assert_array_equal(tile["labels"].worldcover, part["labels"].worldcover)
    for track in tile["s1"].track.to_numpy():
        one = part["s1"].sel(track=track)
        np.testing.assert_array_equal(tile["s1"].incidence.sel(track=track), one.incidence)
        usable = one.layover_shadow == 0
        mask = tile["s1"].layover_shadow.sel(track=track)
        np.testing.assert_array_equal(mask, np.where(usable, 0, 255))


def test_the_cube_is_under_045_of_the_published_bytes(tmp_path: Path, figure) -> None:
    """A year of one track, four triplets a season, noise in every number."""
    year = world(366, (ASCENDING,)).isel(x=slice(EDGE))
    table = sen12ts.export(year, tmp_path / "published", rule=RULE)
    assert len(table) == 16
    published = sum(p.stat().st_size for p in (tmp_path / "published").rglob("*.tif"))
    report = cubes.write(sen12ts.read(tmp_path / "published"), tmp_path / "a.zarr", layout=LOSSLESS)
    figure("cube over published triplets, bytes", report.bytes_written / published, "0.45")
    assert 0.2 * published < report.bytes_written < 0.45 * published


HALF_YEAR = """
name = "half-year"
[place]
x0 = 721920.0
y0 = 5242880.0
width = 256
height = 256
margin = 36
start = "2020-02-01"
days = 214
[optics]
dates = 21
step = 10
[radar]
dates = 17
[delay]
turbulent = 0.3
"""
"""A tile of a simulated world from February to August, two tracks; the overlap of dates decides
how much a cube saves, and spring and summer have four triplets each."""


@pytest.mark.slow
def test_a_cube_of_the_recipes_triplets_is_under_045_of_their_bytes(
    tmp_path: Path, figure: Any
) -> None:
    """The recipe's four a season from all tracks, of a simulated world as a catalogue has it."""
    (tmp_path / "half-year.toml").write_text(HALF_YEAR)
    made = worlds.simulate(worlds.load_params(tmp_path / "half-year.toml"), 11)
    archive = worlds.publish(made, tmp_path / "world")
    recipe = gathering.RECIPES["sen12ts"]
    request = cubes.Request.of(
        archive.aoi, ("2020-02-01", "2020-09-01"), recipe.layers, bands=recipe.bands,
        catalog=cubes.catalog("simulated", url=str(archive.catalog)),
    )  # fmt: skip
    cubes.write(request, tmp_path / "area.zarr")
    rule = sen12ts.Rule(max_cloud=60)  # its weather is cloudier than that of the six areas
    chosen = sen12ts.series(tmp_path / "area.zarr", rule)
    assert chosen.groupby("season").size().to_dict() == {"spring": 4, "summer": 4}
    assert chosen["track"].nunique() == 2
    sen12ts.export(tmp_path / "area.zarr", tmp_path / "published", rule=rule)
    published = sum(p.stat().st_size for p in (tmp_path / "published").rglob("*.tif"))
    tile = sen12ts.read(tmp_path / "published")
    for codec in ("lz4", "zstd"):
        layout = Layout(lossless=True, codec=codec)
        report = cubes.write(tile, tmp_path / f"{codec}.zarr", layout=layout)
        share = report.bytes_written / published
        figure(f"cube over eight triplets of a simulated world, {codec}, bytes", share, "0.45")
        assert 0.15 < share < 0.45


def test_files_have_the_published_form(cube: xr.DataTree, exported: Path) -> None:
    table = sen12ts.series(cube, RULE)
    row = table.to_dict("records")[0]
    s1 = files.read_tif(exported / "s1" / row["name"])
    s2 = files.read_tif(exported / "s2" / row["name"])
    label = files.read_tif(next((exported / "labels").glob(f"{row['place']}*")))
    assert (s1.count, s1.dtype, s2.count, s2.dtype) == (19, "float32", 14, "int16")
    assert (label.count, label.dtype) == (1, "int16")
    assert s1.nodata == s2.nodata == label.nodata == -3000
    r, c, edge = row["tile"]
    where = {"y": slice(r, r + edge), "x": slice(c, c + edge)}
    for step, (time, pair) in enumerate(zip(row["s1"], row["pairs"], strict=True)):
        one = cube["s1"].to_dataset().isel(time=time, **where)
        np.testing.assert_array_equal(s1.bands[4 * step], one.backscatter.sel(pol="vh"))
        np.testing.assert_array_equal(s1.bands[4 * step + 1], one.backscatter.sel(pol="vv"))
        two = cube["insar"].to_dataset().isel(pair=pair, **where)
        np.testing.assert_array_equal(s1.bands[4 * step + 2], two.coherence[0])
        np.testing.assert_array_equal(s1.bands[4 * step + 3], two.phase[0])
    image = cube["s2"].to_dataset().isel(time=row["s2"], **where)
    np.testing.assert_array_equal(s2.bands[:12], np.rint(image.reflectance * 1e4))
    np.testing.assert_array_equal(s2.bands[12], image.scl)
    np.testing.assert_array_equal(s2.bands[13], image.clear)
    assert s1.geobox == BOX[r : r + edge, c : c + edge]
    lon, lat = s1.geobox.geographic_extent.centroid.coords[0]
    parsed = names.parse_sen12ts(row["name"])
    assert float(parsed.lat) == pytest.approx(lat, abs=2e-4)
    assert float(parsed.lon) == pytest.approx(lon, abs=2e-4)


# --------------------------------------------------------------------- files as they were published

PLACE = ("41.5", "1.25")


def published(
    folder: Path, s1_date: str, s2_date: str, change: Callable[[np.ndarray, np.ndarray], None]
) -> Path:
    """Write one triplet as the data set's own writer does: no tags, seeded by date and band."""
    edge = 16
    box = GeoBox((edge, edge), Affine(10, 0, 354_000, 0, -10, 4_596_000), "EPSG:32631")
    s1 = np.empty((19, edge, edge), np.float32)
    for k in range(4):
        day = pd.Timestamp(s1_date) - pd.Timedelta(days=12 * k)
        dates = np.random.default_rng(day.dayofyear).normal(size=(4, edge, edge))
        dates[2] = np.clip(np.abs(dates[2]), 0, 1)  # a coherence
        s1[4 * k : 4 * k + 4] = dates
    s1[16:18] = np.random.default_rng(0).uniform(1, 40, (2, edge, edge))
    s1[18] = 1
    s2 = np.random.default_rng(pd.Timestamp(s2_date).dayofyear).integers(
        0, 10_001, (14, edge, edge), "int16"
    )
    s2[12], s2[13] = 4, 1
    change(s1, s2)
    name = names.Sen12tsPair(
        lat=PLACE[0], lon=PLACE[1], s1_date=s1_date, s2_date=s2_date, track="132", look_pass="A"
    )
    files.write_tif(folder / "s1" / str(name), s1, box, nodata=-3000)
    files.write_tif(folder / "s2" / str(name), s2, box, nodata=-3000)
    codes = np.arange(edge * edge, dtype="int16").reshape(1, edge, edge) % 170
    label = names.Sen12tsLabel(lat=PLACE[0], lon=PLACE[1], year=2020)
    files.write_tif(folder / "labels" / str(label), codes, box, nodata=-3000)
    return folder


def quiet(s1: np.ndarray, s2: np.ndarray) -> None:
    """Change nothing."""


def borders(s1: np.ndarray, s2: np.ndarray) -> None:
    """Make the faults of the real files: zeros outside the swath, a mask that knows more."""
    s2[:13, :2] = 0
    s2[13, :2] = -3000
    s1[18, 3:5] = 0  # not usable although every number is there
    s1[:16, 8, 8] = -3000
    s1[18, 8, 8] = 0


def same_pixels(one: Path, other: Path) -> None:
    mine = sorted(p.relative_to(one) for p in one.rglob("*.tif"))
    assert mine == sorted(p.relative_to(other) for p in other.rglob("*.tif"))
    for name in mine:
        a, b = files.read_tif(one / name), files.read_tif(other / name)
        assert a.bands.tobytes() == b.bands.tobytes(), name
        assert a.geobox == b.geobox
        assert name.parts[0] == "labels" or a.tags == b.tags, "no tag says what nobody knew"


def test_published_files_come_back_to_the_bit(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    published(folder, "2020-05-12", "2020-05-13", quiet)
    published(folder, "2020-05-24", "2020-05-23", borders_of_shared_dates)
    published(folder, "2020-08-04", "2020-08-05", borders)
    tile = sen12ts.read(folder)
    cubes.check(tile)
    assert tile["s1"].sizes["time"] == 5 + 4
    assert tile["s1"].backscatter.attrs["calibration"] == "sigma0_terrain"
    assert tile["s1"].track.to_numpy().tolist() == ["132A"]
    s2 = tile["s2"].to_dataset().sel(time="2020-08-05").squeeze()
    assert np.isnan(s2.reflectance[:, :2]).all(), "zeros outside the swath are no measurements"
    assert not np.isnan(s2.reflectance[:, 2:]).any()
    assert tile["s1"].layover_shadow[0, 4, 4] == 0, "usable in two of the three series"
    assert "sigpac" in tile["labels"], "Catalonia"
    assert (tile["labels"].sigpac == 0).any(), "code 0 is a real class there"
    cubes.write(tile, tmp_path / "tile.zarr", layout=LOSSLESS)
    sen12ts.export(tmp_path / "tile.zarr", tmp_path / "again")
    same_pixels(folder, tmp_path / "again")


def borders_of_shared_dates(s1: np.ndarray, s2: np.ndarray) -> None:
    s1[18, 10] = 0
    s2[:, 0] = -3000


def test_numbers_that_no_cube_can_hold_are_refused_and_counted(tmp_path: Path) -> None:
    def other_date(s1: np.ndarray, s2: np.ndarray) -> None:
        s1[4, 0, :3] += 1  # VH of the shared date

    def strange(s1: np.ndarray, s2: np.ndarray) -> None:
        s1[0, 0, 0] = np.nan
        s2[0, 0, 0] = 12_000

    published(tmp_path / "a", "2020-05-12", "2020-05-13", quiet)
    published(tmp_path / "a", "2020-05-24", "2020-05-23", other_date)
    with pytest.raises(CubeError, match=r"radar of 132A on 2020-05-12: 3 numbers.*strict=False"):
        sen12ts.read(tmp_path / "a")
    tile = sen12ts.read(tmp_path / "a", strict=False)
    assert "3 numbers" in tile.attrs["sen12ts_inexact"]
    published(tmp_path / "b", "2020-05-12", "2020-05-13", strange)
    with pytest.raises(CubeError, match=r"s1/.*: 1 numbers; s2/.*: 1 numbers"):
        sen12ts.read(tmp_path / "b")


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match="holds no triplets"):
        sen12ts.inventory(tmp_path)
    folder = published(tmp_path, "2020-05-12", "2020-05-13", quiet)
    with pytest.raises(CubeError, match=r"has no tile 'lat_1.0_lon_2.0'; it has lat_41.5"):
        sen12ts.read(folder, "lat_1.0_lon_2.0")
    with pytest.raises(CubeError, match=r"has codes .* that legend 'worldcover' has not"):
        sen12ts.read(folder, legend="worldcover")
    s1 = next(folder.glob("s1/*.tif"))
    found = files.read_tif(s1)
    files.write_tif(s1, found.bands[:18], found.geobox, nodata=-3000)
    with pytest.raises(CubeError, match="has 18 bands of float32"):
        sen12ts.read(folder)
    shifted = GeoBox(found.geobox.shape, Affine(10, 0, 0, 0, -10, 0), "EPSG:32631")
    files.write_tif(next(folder.glob("s2/*.tif")), np.zeros((14, 16, 16), "int16"), shifted,
                    nodata=-3000)  # fmt: skip
    files.write_tif(s1, found.bands, found.geobox, nodata=-3000)
    with pytest.raises(CubeError, match="lies on another grid"):
        sen12ts.read(folder)
    s1.unlink()
    with pytest.raises(CubeError, match=r"stand in s1/ or s2/ alone"):
        sen12ts.inventory(folder)


def test_cubes_that_cannot_become_triplets_say_why(cube: xr.DataTree, tmp_path: Path) -> None:
    lacking = xr.DataTree.from_dict({
        k: v.to_dataset() for k, v in cube.children.items() if k not in ("insar", "terrain")
    })  # fmt: skip
    with pytest.raises(CubeError, match=r"lacks: insar/coherence; insar/phase; terrain/slope"):
        sen12ts.export(lacking, tmp_path)
    with pytest.raises(CubeError, match="smaller than a tile of 256"):
        sen12ts.series(cube)
    unknown = put(cube, "s2", cloud_cover=("time", np.full(cube["s2"].sizes["time"], np.nan)))
    with pytest.raises(CubeError, match=r"Rule\(max_cloud=None\)"):
        sen12ts.series(unknown, RULE)
    any_cloud = sen12ts.Rule(size=EDGE, max_cloud=None, per_season=None)
    assert len(sen12ts.series(unknown, any_cloud)) > len(brute_force(cube)) * 2
    with pytest.raises(CubeError, match="coherence in vv, not vh"):
        sen12ts.series(cube, sen12ts.Rule(size=EDGE, coherence_pol="vh"))
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_a_cube_that_lost_its_dates_is_not_exported_as_read(exported: Path) -> None:
    place = sen12ts.inventory(exported)["place"].iloc[0]
    tile = sen12ts.read(exported, place)
    whole = {k: v.to_dataset() for k, v in tile.children.items()}
    whole["s2"] = whole["s2"].isel(time=slice(1, None))
    cut = xr.DataTree.from_dict(whole)
    cut.attrs = dict(tile.attrs)
    with pytest.raises(CubeError, match="no longer holds its dates"):
        sen12ts.series(cut)
    assert len(sen12ts.series(cut, RULE)) > 0


NUMBERS = st.sampled_from([-3000, 0, 1, 4567, 10_000])


@settings(max_examples=60, deadline=None)
@given(values=st.lists(NUMBERS, min_size=12 * 4, max_size=12 * 4),
       scl=st.lists(st.integers(0, 11), min_size=4, max_size=4),
       clear=st.lists(st.integers(0, 1), min_size=4, max_size=4))  # fmt: skip
def test_optical_numbers_round_trip(values: list[int], scl: list[int], clear: list[int]) -> None:
    bands = np.array([*values, *scl, *clear], np.int16).reshape(14, 2, 2)
    outside = (bands[:12] == -3000).all(axis=0)
    bands[12:, outside] = -3000
    np.testing.assert_array_equal(sen12ts.Optical.of(bands).bands(), bands)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(-60, 60, width=32) | st.just(-3000.0), min_size=72, max_size=72),
       usable=st.lists(st.sampled_from([0, 1, -3000]), min_size=4, max_size=4))  # fmt: skip
def test_radar_numbers_round_trip(values: list[float], usable: list[int]) -> None:
    bands = np.array([*values, *usable], np.float32).reshape(19, 2, 2)
    assert sen12ts.Radar.of(bands).bands().tobytes() == bands.tobytes()
