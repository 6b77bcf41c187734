"""Simulated worlds: what is published agrees with the truth it was made from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.warp import Resampling, reproject

from cubes.types import CubeError
from cubes.worlds import CLASSES, Published, load_params, publish, shipped_params, simulate, truth
from cubes.worlds.geometry import aoi_bounds, convergence, mgrs_tile
from cubes.worlds.noise import stream
from cubes.worlds.optics import cloud_field, optical_dates
from cubes.worlds.radar import circular_noise, multilook

SEED = 3


@dataclass(frozen=True)
class Tiny:
    """A published `tiny` world and its truth."""

    root: Path
    published: Published
    truth: Any

    def items(self, collection: str) -> list[dict[str, Any]]:
        found = [
            json.loads(p.read_text())
            for p in sorted((self.root / "archive" / collection).glob("*/*.json"))
        ]
        return sorted(found, key=lambda i: (i["properties"]["datetime"], i["id"]))

    def path(self, item: dict[str, Any], asset: str) -> Path:
        folder = self.root / "archive" / item["collection"] / item["id"]
        return folder / item["assets"][asset]["href"]

    def pixels(self, item: dict[str, Any], asset: str) -> np.ndarray:
        with rasterio.open(self.path(item, asset)) as file:
            return file.read(1)

    def on_aoi(
        self, item: dict[str, Any], asset: str, *, fill: float = np.nan, kernel: str = "nearest"
    ) -> np.ndarray:
        """Return an asset on the truth's grid by GDAL's warper, not by the code under test."""
        t = self.truth
        x, y = t.x.values, t.y.values
        out = np.full((y.size, x.size), fill, np.float32)
        with rasterio.open(self.path(item, asset)) as file:
            reproject(
                file.read(1).astype(np.float32),
                out,
                src_transform=file.transform,
                src_crs=file.crs,
                src_nodata=file.nodata,
                dst_transform=rasterio.transform.from_origin(x[0] - 5, y[0] + 5, 10, 10),
                dst_crs=t.attrs["crs"],
                dst_nodata=fill,
                resampling=Resampling[kernel],
            )
        return out


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    out = tmp_path_factory.mktemp("worlds") / "tiny"
    published = publish(simulate("tiny", SEED), out)
    return Tiny(root=out, published=published, truth=truth(out).load())


def interior(t: Any, margin: int = 3) -> np.ndarray:
    """Return pixels all of whose neighbours belong to the same parcel."""
    parcel = t.parcel.values
    same = np.ones(parcel.shape, bool)
    for dy in range(-margin, margin + 1):
        for dx in range(-margin, margin + 1):
            same &= np.roll(parcel, (dy, dx), (0, 1)) == parcel
    return same


def db(power: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.where(power > 0, power, np.nan))


# -- the same seed, the same bytes --------------------------------------------------------------


def small() -> Any:
    p = load_params("tiny")
    return replace(
        p,
        place=replace(p.place, width=256, margin=12),
        optics=replace(p.optics, dates=2),
        radar=replace(p.radar, dates=2),
        shapes=replace(p.shapes, zero_border=30.0),
    )


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for part in ("archive", "truth")
        for p in sorted((root / part).rglob("*"))
        if p.is_file()
    }


def test_same_seed_same_bytes_and_another_seed_differs(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        publish(simulate(small(), seed), tmp_path / name)
    a, b, c = (contents(tmp_path / n) for n in "abc")
    assert len(a) > 60
    assert a.keys() == b.keys()
    assert [k for k in a if a[k] != b[k]] == []
    pixels = [k for k in a if k.endswith((".tif", ".tiff")) and k in c]
    # The ellipsoid knows no seed, and a mask without layover or shadow may be the same.
    same = [k for k in pixels if a[k] == c[k]]
    same = [k for k in same if "layover" not in k and "1.0_incidence_angle" not in k]
    assert len(pixels) > 30
    assert same == []


def test_streams_of_processes_are_their_own() -> None:
    one = stream(1, "clouds", 3).standard_normal(4)
    assert (one == stream(1, "clouds", 3).standard_normal(4)).all()
    for other in (stream(1, "clouds", 4), stream(1, "radar", 3), stream(2, "clouds", 3)):
        assert not (one == other.standard_normal(4)).any()


# -- agreement with the truth -------------------------------------------------------------------


def expected_coherence(gamma: float, looks: float) -> float:
    """Return the mean of the sample coherence of `looks` independent circular Gaussian pairs."""
    rng = np.random.default_rng(0)
    shape = (4000, round(looks))
    a, b = (rng.normal(size=shape) + 1j * rng.normal(size=shape) for _ in range(2))
    b = gamma * a + math.sqrt(1 - gamma**2) * b
    cross = np.abs((a * b.conj()).sum(1))
    return float((cross / np.sqrt((abs(a) ** 2).sum(1) * (abs(b) ** 2).sum(1))).mean())


@pytest.mark.parametrize("pol", ["vv", "vh"])
def test_coherence_is_the_truth_with_the_bias_of_its_looks(tiny: Tiny, pol: str) -> None:
    t, inside = tiny.truth, interior(tiny.truth, 4)
    true, seen = [], []
    for item in tiny.items("sim-insar"):
        when = np.datetime64(item["properties"]["datetime"][:19])
        true.append(t.coherence.sel(pair_time=when, pol=pol).values[inside])
        seen.append(tiny.on_aoi(item, f"coherence_{pol}")[inside])
    a, b = np.concatenate(true), np.concatenate(seen)
    assert np.isfinite(b).all()
    looks = item["properties"]["insar:looks"]
    assert 15 < looks < 50
    checked = 0
    for low in np.arange(0.0, 0.8, 0.1):
        pick = (a >= low) & (a < low + 0.1)
        if pick.sum() > 2000:
            # Measured: 0.005 to 0.02; texture and borders of parcels make up the difference.
            assert b[pick].mean() == pytest.approx(
                expected_coherence(float(a[pick].mean()), looks), abs=0.035
            )
            checked += 1
    assert checked >= 4


def test_phase_is_the_difference_of_the_dates_screens(tiny: Tiny) -> None:
    t, inside = tiny.truth, interior(tiny.truth)
    errors, spread = [], []
    for item in tiny.items("sim-insar"):
        when = np.datetime64(item["properties"]["insar:secondary_datetime"][:19])
        before = np.datetime64(item["properties"]["insar:reference_datetime"][:19])
        true = t.phase_screen.sel(s1_time=before) - t.phase_screen.sel(s1_time=when)
        gamma = t.coherence.sel(pair_time=when, pol="vv").values
        good = inside & (gamma > 0.5)
        error = np.angle(np.exp(1j * (tiny.on_aoi(item, "phase_vv") - true.values)))[good]
        # Phase noise at coherence g and L looks (Rodriguez and Martin 1992, high coherence).
        looks = item["properties"]["insar:looks"]
        errors.append(error / np.sqrt((1 - gamma[good] ** 2) / (2 * looks * gamma[good] ** 2)))
        spread.append(float(true.std()))
    error = np.concatenate(errors)
    assert error.size > 5000
    assert np.mean(spread) > 0.2
    assert 0.8 < error.std() < 1.5
    assert abs(error.mean()) < 0.15


def test_incidence_follows_from_the_published_elevation_and_look(tiny: Tiny) -> None:
    t = tiny.truth
    dem = np.full((t.y.size, t.x.size), np.nan, np.float32)
    for item in tiny.items("cop-dem-glo-30"):
        part = tiny.on_aoi(item, "data", kernel="cubic")
        dem = np.where(np.isfinite(part), part, dem)
    ok = np.isfinite(dem)
    assert ok.mean() > 0.98  # a seam of one pixel between two tiles at most
    gy, gx = np.gradient(dem, 10.0)
    epsg = int(t.attrs["crs"][5:])
    turn = convergence(epsg, float(t.x.mean()), float(t.y.mean()))
    for item in tiny.items("s1-static"):
        theta = np.radians(tiny.on_aoi(item, "incidence_angle"))
        azimuth = math.radians(item["properties"]["deepsentinel:look_azimuth"] - turn)
        east, north = np.sin(theta) * math.sin(azimuth), np.sin(theta) * math.cos(azimuth)
        dot = (-gx * east + gy * north + np.cos(theta)) / np.sqrt(1 + gx**2 + gy**2)
        mine = np.degrees(np.arccos(np.clip(dot, -1, 1)))
        seen = tiny.on_aoi(item, "local_incidence_angle", kernel="bilinear")
        use = np.isfinite(mine) & np.isfinite(seen)
        # 0.6 m of elevation error over 60 m is 0.8 degrees of slope.
        assert np.std((mine - seen)[use]) < 2.0
        assert abs(np.mean((mine - seen)[use])) < 0.3
        assert np.std(seen[use]) > 2.0
        assert np.corrcoef(mine[use], seen[use])[0, 1] > 0.9


def test_the_two_tracks_look_from_opposite_sides(tiny: Tiny) -> None:
    one, two = (i - i.mean() for i in tiny.truth.incidence.values)
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] < -0.7


def test_ndvi_of_clear_pixels_is_the_truth(tiny: Tiny) -> None:
    t, inside = tiny.truth, interior(tiny.truth)
    checked = 0
    for item in tiny.items("sentinel-2-l2a"):
        p = item["properties"]
        offset = 1000 if float(p["s2:processing_baseline"]) >= 4 else 0
        red, nir = (tiny.on_aoi(item, b, fill=0) for b in ("B04", "B08"))
        when = np.datetime64(p["datetime"][:19])
        clear = t.clear.sel(s2_time=when).values.astype(bool)
        use = (red > 0) & (nir > 0) & clear & inside & (t.label.values != CLASSES.index("water"))
        if use.sum() < 3000:
            continue
        red, nir = red[use] - offset, nir[use] - offset
        error = (nir - red) / (nir + red) - t.ndvi.sel(s2_time=when).values[use]
        # Haze moves a whole date by up to 0.05, thin cloud below the truth's threshold too.
        assert abs(error.mean()) < 0.06
        assert error.std() < 0.04
        checked += 1
    assert checked >= 6


def test_backscatter_is_the_truth_times_speckle(tiny: Tiny) -> None:
    t, inside = tiny.truth, interior(tiny.truth)
    crops = inside & (t.label.values < CLASSES.index("water"))
    for item in tiny.items("sentinel-1-rtc")[::3]:
        when = np.datetime64(item["properties"]["start_datetime"][:10])
        index = int(np.flatnonzero(t.s1_time.values.astype("datetime64[D]") == when)[0])
        seen = tiny.on_aoi(item, "vv")
        use = crops & (seen > 0)
        ratio = seen[use] / 10 ** (t.gamma0.sel(pol="vv").values[index][use] / 10)
        # Calibration of 0.15 dB, and a tenth of the noise that subtraction leaves.
        assert ratio.mean() == pytest.approx(1.03, abs=0.1)
        assert 2.5 < ratio.mean() ** 2 / ratio.var() < 7


def test_speckle_has_the_looks_and_correlation_of_real_products() -> None:
    params = load_params("demo-train")
    image = circular_noise(params, np.random.Generator(np.random.SFC64(1)), (500, 1000))
    assert float((abs(image) ** 2).mean()) == pytest.approx(1, abs=0.02)
    power = multilook(params, image)[5:-5, 10:-10:2]
    d = power - power.mean()
    # Real RTC at 10 m: neighbour correlation 0.55-0.70, 4.4-9 looks.
    assert 4.2 < power.mean() ** 2 / power.var() < 6.5
    assert 0.5 < (d[:, 1:] * d[:, :-1]).mean() / d.var() < 0.72
    assert 0.5 < (d[1:] * d[:-1]).mean() / d.var() < 0.72


def test_neighbouring_dates_correlate_as_stated_and_polarisations_do_not() -> None:
    world = simulate(small(), 4)
    first, second = list(world.s1(0))
    assert first.coherence is None
    assert second.coherence is not None
    screen = np.exp(1j * np.repeat(second.screen - first.screen, 2, axis=1))
    for k in range(2):
        true = np.repeat(second.coherence[k], 2, axis=1)
        a, b = first.slc[k], second.slc[k]
        cross = (a * b.conj() * screen) / np.sqrt(
            np.repeat(first.gamma0[k] * second.gamma0[k], 2, axis=1) + 1e-9
        )
        for low, high in ((0.1, 0.3), (0.3, 0.5), (0.5, 0.9)):
            pick = (true > low) & (true < high)
            if pick.sum() < 40_000:
                continue
            noise = np.repeat(
                np.sqrt(
                    (first.gamma0[k] + 10**-2.2)
                    * (second.gamma0[k] + 10**-2.2)
                    / (first.gamma0[k] * second.gamma0[k] + 1e-9)
                ),
                2,
                axis=1,
            )
            # Calibration of two dates: 0.15 dB each, 3.5 % of amplitude.
            assert abs((cross / noise)[pick].mean()) == pytest.approx(
                float(true[pick].mean()), rel=0.1, abs=0.03
            )
    vv, vh = first.slc
    assert abs((vv * vh.conj()).mean()) / math.sqrt(
        float((abs(vv) ** 2).mean() * (abs(vh) ** 2).mean())
    ) == pytest.approx(0, abs=0.03)


def test_water_is_dark_noisy_and_incoherent(tiny: Tiny) -> None:
    t = tiny.truth
    water = (t.label.values == CLASSES.index("water")) & interior(t, 2)
    assert water.sum() > 300
    item = tiny.items("sentinel-1-rtc")[0]
    vh = tiny.on_aoi(item, "vh")[water]
    floor = np.nanmin(db(vh))
    assert -34 < floor < -32  # clipped after noise subtraction, never 0: 0 means border
    assert np.mean(db(vh) < -32.5) > 0.1
    assert float(t.coherence.values[:, 0][:, water].max()) < 0.01


def test_the_radar_does_not_follow_greenness_alone(tiny: Tiny) -> None:
    t = tiny.truth
    crop = interior(t) & (t.label.values <= CLASSES.index("potato"))
    parcel = t.parcel.values[crop]
    names, index = np.unique(parcel, return_inverse=True)
    count = np.bincount(index)
    nearest = [int(np.abs(t.s1_time.values - w).argmin()) for w in t.s2_time.values]
    ndvi = np.stack(
        [np.bincount(index, t.ndvi.values[i][crop]) / count for i in range(len(nearest))]
    )
    radar = np.stack(
        [
            [np.bincount(index, t.gamma0.values[n, p][crop]) / count for n in nearest]
            for p in range(2)
        ]
    )
    assert names.size > 60
    design = np.stack([np.ones(ndvi.size), radar[0].ravel(), radar[1].ravel()], axis=1)
    residual = ndvi.ravel() - design @ np.linalg.lstsq(design, ndvi.ravel(), rcond=None)[0]
    explained = 1 - residual.var() / ndvi.var()
    # A world in which greenness drove both sensors would give above 0.9; none, 0.
    assert 0.1 < explained < 0.8


def test_negative_control_leaves_the_radar_only_class_and_season() -> None:
    p = small()
    world = simulate(replace(p, canopy=replace(p.canopy, dependence=0.0)), 2)
    free = simulate(p, 2)
    wheat = world.land.parcel_class == CLASSES.index("winter_wheat")
    assert wheat.sum() > 10
    for name in ("water", "structure"):
        assert np.ptp(getattr(world.season, name)[wheat], axis=0).max() < 1e-5
        assert np.ptp(getattr(free.season, name)[wheat], axis=0).max() > 0.2
    assert (world.season.lai == free.season.lai).all()


def test_classification_errs_both_ways_but_not_wildly(tiny: Tiny) -> None:
    t = tiny.truth
    missed = cloudy = false = clear = 0
    for item in tiny.items("sentinel-2-l2a"):
        scl = tiny.on_aoi(item, "SCL", fill=0)
        true = t.clear.sel(s2_time=np.datetime64(item["properties"]["datetime"][:19])).values
        seen, called = scl > 0, np.isin(scl, [4, 5, 6, 7])
        cloudy += (seen & (true == 0)).sum()
        missed += (seen & (true == 0) & called).sum()
        clear += (seen & (true == 1)).sum()
        false += (seen & (true == 1) & ~called).sum()
    assert 0.02 < missed / cloudy < 0.4
    assert 0.002 < false / clear < 0.12


# -- as awkward as the real thing ---------------------------------------------------------------


@pytest.mark.parametrize(("name", "seed"), [("demo-train", 1), ("demo-test", 2)])
def test_the_demos_have_enough_usable_dates(name: str, seed: int) -> None:
    params = load_params(name)
    shares = []
    for date in optical_dates(params, seed):
        tau, shadow, _ = cloud_field(params, seed, date)
        shares.append(float(((tau < 0.05) & (shadow < 0.08)).mean()))
    assert sum(s > 0.2 for s in shares) >= 18
    assert len(params.tracks) * (params.radar.dates - 1) >= 15


def test_area_is_exactly_lattice_cells_and_straddles_the_zone_border(tiny: Tiny) -> None:
    area = json.loads(tiny.published.aoi.read_text())
    root = json.loads(tiny.published.catalog.read_text())
    assert root["deepsentinel:aoi"] == area
    lon = [p[0] for p in area["geometry"]["coordinates"][0]]
    assert min(lon) < 6 < max(lon)
    for name in shipped_params():
        w, s, e, n = aoi_bounds(load_params(name))
        assert (w % 2560, s % 2560, e % 2560, n % 2560) == (0, 0, 0, 0)
        epsg = load_params(name).place.epsg
        middle = Transformer.from_crs(epsg, 4326, always_xy=True).transform(
            (w + e) / 2, (s + n) / 2
        )
        assert int((middle[0] + 180) // 6) + 32601 == epsg
    w, s, e, n = aoi_bounds(load_params("tiny"))
    to = Transformer.from_crs(4326, 32631, always_xy=True)
    xs, ys = to.transform(*np.array(area["geometry"]["coordinates"][0]).T)
    assert w < xs.min() < w + 10
    assert s < ys.min() < s + 10
    assert e - 10 < xs.max() < e
    assert n - 10 < ys.max() < n


def test_every_collection_is_there_and_every_file_is_a_cog(tiny: Tiny) -> None:
    counts = tiny.published.items_by_collection
    assert counts == {
        "cop-dem-glo-30": 2,
        "esa-worldcover": 2,
        "s1-static": 2,
        "sentinel-1-rtc": 14,
        "sentinel-2-l2a": counts["sentinel-2-l2a"],
        "sim-insar": 10,
    }
    assert counts["sentinel-2-l2a"] >= 2 * (8 + 1 + 1)
    for name in counts:
        item = tiny.items(name)[0]
        assert item["properties"]["proj:code"].startswith("EPSG:")
        assert "proj:epsg" not in json.dumps(item)
        for key, asset in item["assets"].items():
            with rasterio.open(tiny.path(item, key)) as file:
                assert list(file.shape) == asset["proj:shape"]
                assert list(file.transform)[:6] == asset["proj:transform"]
                assert f"EPSG:{file.crs.to_epsg()}" == asset["proj:code"]
                assert file.block_shapes == [(512, 512)] or max(file.shape) <= 512
                assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert bool(file.overviews(1)) == (max(file.shape) > 512)


def test_links_of_the_static_catalogue_lead_somewhere(tiny: Tiny) -> None:
    root = tiny.published.catalog
    seen = 0
    pending = [root]
    while pending:
        path = pending.pop()
        document = json.loads(path.read_text())
        seen += document["type"] == "Feature"
        for link in document["links"]:
            target = (path.parent / link["href"]).resolve()
            assert target.is_file(), (path, link)
            if link["rel"] in ("child", "item"):
                pending.append(target)
        for asset in document.get("assets", {}).values():
            assert (path.parent / asset["href"]).is_file()
    assert seen == sum(tiny.published.items_by_collection.values())


def test_products_lie_in_two_zones_and_off_the_lattice(tiny: Tiny) -> None:
    for name in ("sentinel-1-rtc", "sentinel-2-l2a"):
        items = tiny.items(name)
        assert {i["properties"]["proj:code"] for i in items} == {"EPSG:32631", "EPSG:32632"}
        for item in items:
            t = next(iter(item["assets"].values()))["proj:transform"]
            assert t[2] % 2560
            assert t[5] % 2560
    t = tiny.items("sentinel-1-rtc")[0]["assets"]["vv"]["proj:transform"]
    assert (t[2] % 10, t[5] % 10) == (5, 5)
    names = {i["properties"]["s2:mgrs_tile"] for i in tiny.items("sentinel-2-l2a")}
    assert names == {"31TGN", "32TKT"}
    assert mgrs_tile(32631, 725_000, 5_245_000) == "31TGN"
    assert mgrs_tile(32632, 275_000, 5_245_000) == "32TKT"


def by_take(tiny: Tiny) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for item in tiny.items("sentinel-2-l2a"):
        p = item["properties"]
        groups.setdefault((p["datetime"], p["s2:mgrs_tile"]), []).append(item)
    return groups


def test_an_acquisition_is_split_into_complementary_granules(tiny: Tiny) -> None:
    found = 0
    for items in by_take(tiny).values():
        if len(items) == 2 and len({i["properties"]["s2:datatake_id"] for i in items}) == 1:
            for band in ("B02", "B05", "B01", "SCL"):
                one, two = (tiny.pixels(i, band) > 0 for i in items)
                assert not (one & two).any()
                assert one.any()
                assert two.any()
            found += 1
    assert found == 2  # one acquisition, two tiles


def test_a_reprocessed_duplicate_differs_by_its_offset_alone(tiny: Tiny) -> None:
    found = 0
    for items in by_take(tiny).values():
        versions = {i["properties"]["s2:processing_baseline"]: i for i in items}
        if len(versions) == 2:
            old, new = (versions[k] for k in sorted(versions))
            assert float(old["properties"]["s2:processing_baseline"]) < 4
            a, b = (tiny.pixels(i, "B08").astype(int) for i in (old, new))
            assert ((a == 0) == (b == 0)).all()
            # A value below 1 is published as 1 where there is no offset.
            assert (b[a > 1] - a[a > 1] == 1000).all()
            found += 1
    assert found == 2
    baselines = {i["properties"]["s2:processing_baseline"] for i in tiny.items("sentinel-2-l2a")}
    assert len(baselines) >= 3


def test_scenes_have_flagged_and_unflagged_borders(tiny: Tiny) -> None:
    zero = flagged = 0
    for item in tiny.items("sentinel-1-rtc"):
        with rasterio.open(tiny.path(item, "vv")) as file:
            assert file.nodata == -32768
            values = file.read(1)
        zero += (values == 0).any()
        flagged += (values == -32768).any()
        assert ((values > 0) | (values == 0) | (values == -32768)).all()
    assert zero == len(tiny.items("sentinel-1-rtc"))
    assert flagged >= 6


def test_a_pass_comes_in_two_overlapping_slices_of_two_zones(tiny: Tiny) -> None:
    orbits: dict[int, list[dict[str, Any]]] = {}
    for item in tiny.items("sentinel-1-rtc"):
        orbits.setdefault(item["properties"]["sat:absolute_orbit"], []).append(item)
    split = [v for v in orbits.values() if len(v) == 2]
    assert len(split) == 2
    for one, two in split:
        assert one["properties"]["proj:code"] != two["properties"]["proj:code"]
        assert one["properties"]["s1:datatake_id"] == two["properties"]["s1:datatake_id"]
        a, b = (np.nan_to_num(tiny.on_aoi(i, "vv")) > 0 for i in (one, two))
        assert (a & b).mean() > 0.02
        assert (a | b).mean() > 0.99
        assert min((a & ~b).mean(), (b & ~a).mean()) > 0.3


def test_orbits_are_consistent_and_pairs_are_twelve_days(tiny: Tiny) -> None:
    for item in tiny.items("sentinel-1-rtc"):
        p = item["properties"]
        assert (p["sat:absolute_orbit"] - 73) % 175 + 1 == p["sat:relative_orbit"]
        assert item["id"].split("_")[6] == f"{p['sat:absolute_orbit']:06d}"
    pairs = tiny.items("sim-insar")
    passes = {i["properties"]["sat:absolute_orbit"] for i in tiny.items("sentinel-1-rtc")}
    for item in pairs:
        p = item["properties"]
        assert p["insar:temporal_baseline"] == 12
        assert p["datetime"] == p["insar:secondary_datetime"]
        assert p["sat:absolute_orbit"] in passes
        assert p["sat:absolute_orbit"] - 175 in passes


def test_a_swath_edge_and_a_short_pass_leave_gaps(tiny: Tiny) -> None:
    seen = {"full": 0, "part": 0}
    for item in tiny.items("sentinel-2-l2a"):
        if item["properties"]["s2:mgrs_tile"].startswith("31"):
            share = (tiny.pixels(item, "B02") > 0).mean()
            seen["full" if share > 0.99 else "part"] += 1
    assert min(seen.values()) >= 2
    both = np.zeros(tiny.truth.label.shape, bool)
    for item in tiny.items("sentinel-2-l2a"):
        if item["properties"]["sat:relative_orbit"] == 108:
            both |= tiny.on_aoi(item, "B02", fill=0) > 0
    assert both.all()  # two tiles, neither of which covers the area alone
    gaps = [
        1 - (np.nan_to_num(tiny.on_aoi(i, "vv")) > 0).mean() for i in tiny.items("sentinel-1-rtc")
    ]
    assert sum(g < 0.001 for g in gaps) >= 8
    assert sum(0.1 < g < 0.5 for g in gaps) >= 2


def test_an_asset_can_be_left_out(tmp_path: Path) -> None:
    p = small()
    out = tmp_path / "w"
    publish(simulate(replace(p, shapes=replace(p.shapes, drop_asset="B05")), 1), out)
    lacking = [
        path
        for path in (out / "archive" / "sentinel-2-l2a").glob("*/*.json")
        if "B05" not in json.loads(path.read_text())["assets"]
    ]
    assert len(lacking) == 2  # one acquisition, two tiles


@pytest.mark.server
def test_a_server_serves_and_pages(tiny: Tiny, server: Callable[..., str]) -> None:
    import pystac_client

    client = pystac_client.Client.open(server(*tiny.published.server))
    area = json.loads(tiny.published.aoi.read_text())["geometry"]
    for name, count in tiny.published.items_by_collection.items():
        search = client.search(collections=[name], intersects=area, limit=10)
        items = list(search.items())
        assert len(items) == len({i.id for i in items}) == count
        hrefs = [a.href for i in items for a in i.assets.values()]
        assert all(h.startswith("file:///") for h in hrefs)
        assert all(Path(h.removeprefix("file://")).is_file() for h in hrefs)


# -- bad input ----------------------------------------------------------------------------------


def row(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n' + text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[canopy]\nshfit = 3", r"unknown key 'shfit' in \[canopy\].*nearest is 'shift'"),
        ("[radar]\ndates = 2.5", "dates = 2.5 is float, not int"),
        ("[place]\nx0 = 719361.0", "multiples of 2,560"),
        ("[place]\nwidth = 300", "multiples of 256"),
        ("[place]\ndays = 40", "last acquisition falls on day"),
        ("[place]\nepsg = 4326", "no northern UTM zone"),
        ("[[tracks]]\nrelative_orbit = 3", "lacks orbit_state"),
        ("[land\n", "not valid TOML"),
    ],
)
def test_bad_parameters_are_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CubeError, match=said):
        load_params(row(tmp_path, text))


def test_unknown_world_names_the_nearest() -> None:
    with pytest.raises(CubeError, match="nearest is 'demo-train'"):
        load_params("demo-trian")
    with pytest.raises(CubeError, match="no parameter file"):
        load_params("/nowhere/w.toml")


def test_a_file_of_ones_own_states_only_what_differs(tmp_path: Path) -> None:
    mine = load_params(row(tmp_path, "[canopy]\nshift = 20.0"))
    assert mine.canopy.shift == 20.0
    assert mine.radar == load_params("demo-train").radar


def test_publish_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(CubeError, match="not empty"):
        publish(simulate(small(), 1), tmp_path)


def test_truth_says_what_it_expected(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match="no truth of a simulated world"):
        truth(tmp_path)
