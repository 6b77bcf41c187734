"""Files of a person's own: GeoTIFFs, HyP3 (to its guide), OPERA CSLC-S1, STATIC and RTC-S1."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import cubes
from cubes.files import cslc, rtc
from cubes.files import geotiff as files
from cubes.radar import geometry, insar
from cubes.types import CubeError

h5py = pytest.importorskip("h5py")

BOX = GeoBox((48, 64), Affine(10, 0, 500_000, 0, -10, 4_000_000), "EPSG:32611")


# ----------------------------------------------------------------------------------------- tifs


def test_tifs_come_back_to_the_bit_and_are_the_same_bytes(tmp_path: Path) -> None:
    bands = np.random.default_rng(1).normal(size=(3, 48, 64)).astype("float32")
    bands[0, 0, 0] = -3000
    sizes = [
        files.write_tif(tmp_path / name, bands, BOX, nodata=-3000, names=("a", "b", "c"),
                        tags={"TIME": "2020-01-01"})
        for name in ("one.tif", "two.tif")
    ]  # fmt: skip
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()
    assert sizes[0] == sizes[1] == (tmp_path / "one.tif").stat().st_size
    assert bands.nbytes < sizes[0] < bands.nbytes + 4096, "uncompressed"
    back = files.read_tif(tmp_path / "one.tif")
    np.testing.assert_array_equal(back.bands, bands)
    assert (back.geobox, back.nodata, back.tags["TIME"]) == (BOX, -3000, "2020-01-01")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.tif", "two.tif"]
    lazy = files.open_tif(tmp_path / "one.tif", band=1, chunk=20)
    assert lazy.chunks == ((20, 20, 8), (20, 20, 20, 4))
    assert np.isnan(lazy[0, 0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(lazy))[1:], bands[0, 1:])
    assert lazy.odc.geobox == BOX
    files.write_tif(tmp_path / "one.tif", bands + 1, BOX, nodata=-3000)
    assert files.open_tif(tmp_path / "one.tif").data.name != lazy.data.name


def test_a_tif_in_degrees_opens_as_y_and_x(tmp_path: Path) -> None:
    box = GeoBox((48, 64), Affine(2e-4, 0, -8.83, 0, -2e-4, 31.84), "EPSG:4326")
    bands = np.arange(48 * 64, dtype="float32").reshape(1, 48, 64)
    files.write_tif(tmp_path / "dem.tif", bands, box, nodata=-9999)
    dem = files.open_tif(tmp_path / "dem.tif", chunk=32)
    assert dem.dims == ("y", "x")
    assert dem.odc.geobox == box
    assert float(dem.y[0]) == pytest.approx(31.84 - 1e-4)
    np.testing.assert_array_equal(dem, bands[0])
    utm = dem.odc.reproject("EPSG:32629", resolution=20)
    assert np.nanmax(utm) > 2900


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.vrt").write_text('<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>')
    files.write_tif(tmp_path / "a.tif", np.zeros((1, 48, 64), "uint8"), BOX, nodata=0)
    with pytest.raises(CubeError, match="cannot be read as a GeoTIFF"):
        files.read_tif(tmp_path / "x.vrt")
    with pytest.raises(CubeError, match="no such file"):
        files.read_tif(tmp_path / "b.tif")
    with pytest.raises(CubeError, match="has bands 1 to 1, not 2"):
        files.open_tif(tmp_path / "a.tif", band=2)


# ----------------------------------------------------------------------------------------- HyP3

HYP3 = "S1_064_290876_IW1_20200604_20200616_VV_INT80_7EB5"
GRANULES = (
    "Reference Granule: S1_290876_IW1_20200604T005150_VV_1A2B-BURST, "
    "S1_290875_IW1_20200604T005147_VV_1A2B-BURST\n"
    "Secondary Granule: S1_290876_IW1_20200616T005151_VV_3C4D-BURST\n"
    "Reference Pass Direction: ASCENDING\nBaseline: -81.5\nRange looks: 20\nAzimuth looks: 4\n"
)


@pytest.fixture
def hyp3(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    corr = rng.uniform(0.1, 1, (1, 48, 64)).astype("float32")
    corr[0, :4] = 0
    layers = {
        "corr": corr,
        "wrapped_phase": rng.uniform(-np.pi, np.pi, (1, 48, 64)).astype("float32"),
        # 51 degrees above the horizon, sensor in the west
        "lv_theta": np.where(corr > 0, np.deg2rad(51), 0).astype("float32"),
        "lv_phi": np.where(corr > 0, np.pi, 0).astype("float32"),
    }
    for name, bands in layers.items():
        files.write_tif(tmp_path / f"{HYP3}_{name}.tif", bands, BOX, nodata=0)
    (tmp_path / f"{HYP3}.txt").write_text(GRANULES)
    return tmp_path


def test_hyp3_is_an_insar_group_that_can_be_stored(hyp3: Path) -> None:
    pair = files.open_hyp3(hyp3, chunk=32)
    assert pair.coherence.dims == pair.phase.dims == ("pair", "pol", "y", "x")
    assert pair.coherence.chunks is not None
    assert pair.pair.item() == "20200604T005147_20200616T005151_64A"
    assert pair.temporal_baseline.item() == 12
    assert pair.perpendicular_baseline.item() == -81.5
    assert pair.secondary_time.item() == pd.Timestamp("2020-06-16T00:51:51").value
    assert np.isnan(pair.coherence[0, 0, :4]).all()
    assert np.isnan(pair.phase[0, 0, :4]).all()
    assert not np.isnan(pair.phase[0, 0, 4:]).any()
    tree = xr.DataTree.from_dict({"insar": pair})
    cubes.check(tree)
    cubes.write(tree, hyp3 / "pair.zarr", layout=cubes.Layout(patch=64))
    stored = cubes.open(hyp3 / "pair.zarr")["insar"].coherence
    np.testing.assert_allclose(stored, pair.coherence, atol=5.1e-5)
    look, box = files.hyp3_look(hyp3)
    assert box == BOX
    assert np.nanmean(look.incidence) == pytest.approx(39, abs=1e-4)
    assert np.nanmax(look.east) < 0
    assert np.isnan(look.up[:4]).all()


def test_hyp3_of_an_unknown_polarisation_is_refused(hyp3: Path) -> None:
    for path in list(hyp3.iterdir()):
        path.rename(path.with_name(path.name.replace("_VV_", "_")))
    with pytest.raises(CubeError, match="does not say its polarisation"):
        files.open_hyp3(hyp3)


def test_hyp3_without_its_text_or_of_two_products_is_refused(hyp3: Path) -> None:
    text = hyp3 / f"{HYP3}.txt"
    text.write_text("Baseline: 3\n")
    with pytest.raises(CubeError, match="names no acquisition under 'Reference Granule'"):
        files.open_hyp3(hyp3)
    text.unlink()
    with pytest.raises(CubeError, match="lacks S1_064"):
        files.open_hyp3(hyp3)
    shutil.copy(hyp3 / f"{HYP3}_corr.tif", hyp3 / "other_corr.tif")
    with pytest.raises(CubeError, match="holds 2 files"):
        files.open_hyp3(hyp3)


# ----------------------------------------------------------------------------------------- CSLC


def speckle(shape: tuple[int, int], coherence: float, phase: float) -> list[np.ndarray]:
    """Return two complex images of a coherence, the first ahead of the second by `phase`."""
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=shape) + 1j * rng.normal(size=shape) for _ in range(2))
    second = (coherence * a + np.sqrt(1 - coherence**2) * b) * np.exp(-1j * phase)
    return [a.astype("complex64"), second.astype("complex64")]


def write_cslc(path: Path, image: np.ndarray, time: str, **changes: object) -> Path:
    """Write the parts of a CSLC-S1 file that are read, in the production chunks."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        rows, columns = image.shape
        data["x_coordinates"] = 157_322.5 + 5 * np.arange(columns)
        data["y_coordinates"] = 2_172_295.0 - 10 * np.arange(rows)
        data["x_spacing"], data["y_spacing"], data["projection"] = 5.0, -10.0, np.int32(32605)
        data.create_dataset(
            changes.pop("pol", "VV"),
            data=image,
            chunks=(128, 128),
            compression="gzip",
            shuffle=True,
        )
        for key, value in {
            "burst_id": b"t087_185683_iw2", "track_number": 87, "absolute_orbit_number": 46534,
            "orbit_pass_direction": b"Descending", "mission_id": b"S1A", "product_version": b"1.1",
            "look_direction": b"Right", "zero_doppler_start_time": time.encode(), **changes,
        }.items():  # fmt: skip
            if not key.endswith("applied"):
                file[f"identification/{key}"] = value
        for key in cslc.FLATTENING:
            file[f"{cslc.PARAMETERS}/{key}"] = changes.get(key, True)
    return path


def test_a_simulated_pair_has_its_coherence_and_phase(tmp_path: Path) -> None:
    images = speckle((300, 400), 0.6, 0.7)
    images[1][:20] = np.nan * (1 + 1j)
    times = ("2022-12-16 16:16:51.013157", "2022-12-28 16:16:51.013157")
    a, b = (
        cslc.open_cslc(write_cslc(tmp_path / f"{i}.h5", image, time))
        for i, (image, time) in enumerate(zip(images, times, strict=True))
    )
    assert a.dtype == np.complex64
    assert a.chunks == ((300,), (400,))
    assert a.odc.geobox.affine == Affine(5, 0, 157_320, 0, -10, 2_172_300)
    assert (a.attrs["burst"], a.attrs["track"]) == ("t087_185683_iw2", "87D")
    pair = insar.coherence(a, b, window=(5, 10))
    inner = pair.isel(y=slice(30, None)).load()
    wanted = float(insar.expected_coherence(0.6, 50))
    assert float(inner.coherence.mean()) == pytest.approx(wanted, abs=0.01)
    assert float(inner.phase.mean()) == pytest.approx(0.7, abs=0.02)
    assert np.isnan(pair.coherence[:20]).all(), "no data does not grow"
    assert np.isfinite(pair.coherence[20:, 5:-5]).all()
    with pytest.raises(CubeError, match="temporal baseline is zero"):
        insar.coherence(a, a)


def test_what_is_no_flattened_cslc_is_refused(tmp_path: Path) -> None:
    image = speckle((128, 128), 0.5, 0)[0]
    time = "2022-12-16 16:16:51.013157"
    rough = write_cslc(
        tmp_path / "rough.h5", image, time, topographic_flattening_applied=False
    )  # fmt: skip
    with pytest.raises(CubeError, match="topographic_flattening_applied = False"):
        cslc.open_cslc(rough)
    opened = cslc.open_cslc(rough, flattened=False)
    assert opened.attrs["topographic_flattening_applied"] is False
    with pytest.raises(CubeError, match=r"no polarisation 'VH'; it has VV"):
        cslc.open_cslc(rough, polarisation="vh", flattened=False)
    with pytest.raises(CubeError, match="no data/los_east"):
        cslc.open_cslc_static(rough)
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(CubeError, match="cannot be read as HDF5"):
        cslc.open_cslc(tmp_path / "text.h5")
    with h5py.File(rough, "r+") as file:
        file["data/x_coordinates"][5] += 1
    with pytest.raises(CubeError, match="x_coordinates are not 5 m apart"):
        cslc.open_cslc(rough, flattened=False)


def test_pairs_of_different_bursts_are_refused(tmp_path: Path) -> None:
    images = speckle((128, 128), 0.5, 0)
    a, b = (
        cslc.open_cslc(write_cslc(tmp_path / f"{i}.h5", image, time, burst_id=burst))
        for i, (image, time, burst) in enumerate(
            [(images[0], "2022-12-16 16:16:51", b"t087_185683_iw2"),
             (images[1], "2022-12-28 16:16:51", b"t087_185684_iw2")]
        )
    )  # fmt: skip
    with pytest.raises(CubeError, match="different bursts"):
        insar.coherence(a, b)


def test_pairs_of_bursts_and_polarisations_make_a_group(tmp_path: Path) -> None:
    """Two bursts of one pass, three dates; the pass straddles 15 h, a border of rounded times."""
    phases = {"t087_185683_iw2": 0.5, "t087_185684_iw2": -2.0}
    days = ("2022-12-16 14:59:59", "2022-12-22 14:59:59", "2022-12-28 14:59:59")
    paths = []
    for place, (burst, phase) in enumerate(phases.items()):
        first, second = speckle((160, 240), 0.8, phase)
        third = (first + second).astype("complex64")
        for k, (time, image) in enumerate(zip(days, (first, third, second), strict=True)):
            path = tmp_path / f"{burst}_{k}.h5"
            later = str(pd.Timestamp(time) + pd.Timedelta(seconds=3 * place))
            write_cslc(path, image, later, burst_id=burst.encode())
            with h5py.File(path, "r+") as file:  # the second burst 150 rows further south
                file["data/y_coordinates"][...] -= 1500 * place
            paths.append(path)
    with pytest.raises(CubeError, match="lie in 2 bursts: give grid= or like="):
        cslc.open_pairs(paths)
    box = GeoBox((310, 120), Affine(10, 0, 157_320, 0, -10, 2_172_300), "EPSG:32605")
    group = cslc.open_pairs(paths, grid=box, baselines=(12,))
    assert group.coherence.dims == group.phase.dims == ("pair", "pol", "y", "x")
    assert group.coherence.chunks is not None
    assert group.pair.to_numpy().tolist() == ["20221216T145959_20221228T145959_87D"]
    assert group["items"].item().count(",") == 3
    cubes.check(xr.DataTree.from_dict({"insar": group}))
    assert group.looks_effective.dims == ("pair",)
    assert group.looks_effective.chunks is not None, "opening reads no pixel"
    # white speckle: window (5, 10), multilooked (1, 2), see test_insar
    assert float(group.looks_effective[0]) == pytest.approx(52.6, rel=0.05)
    loaded = group.load().isel(pair=0, pol=0)
    missing = np.isnan(loaded.coherence)
    # in the corners less than half of a window lies in the burst
    assert not missing[2:-2].any()
    assert not missing[:, 3:-3].any()
    upper, lower = loaded.isel(y=slice(5, 145)), loaded.isel(y=slice(165, 305))
    wanted = float(insar.expected_coherence(0.8, 60))
    for part, phase in ((upper, 0.5), (lower, -2.0)):
        assert float(part.coherence.mean()) == pytest.approx(wanted, abs=0.02)
        assert np.angle(np.exp(1j * part.phase).mean().item()) == pytest.approx(phase, abs=0.02)
    other = GeoBox((40, 40), box.affine, "EPSG:32604")
    with pytest.raises(CubeError, match="burst lies in EPSG:32605, the grid in EPSG:32604"):
        cslc.open_pairs(paths, grid=other)
    alone = cslc.open_pairs(paths[:3])
    assert alone.temporal_baseline.to_numpy().tolist() == [6, 12, 6]
    direct = insar.coherence(
        cslc.open_cslc(paths[0]), cslc.open_cslc(paths[2]), multilook=(1, 2)
    )  # fmt: skip
    np.testing.assert_array_equal(alone.phase.isel(pair=1, pol=0), direct.phase)
    assert alone.odc.geobox.resolution.x == 10
    with pytest.raises(CubeError, match=r"make no pair .* that is 24 days apart"):
        cslc.open_pairs(paths, baselines=(24,))


def test_a_polarisation_without_a_partner_is_no_data(tmp_path: Path) -> None:
    images = speckle((128, 160), 0.9, 0.3)
    days = ("2022-12-16 16:16:51", "2022-12-28 16:16:51", "2023-01-09 16:16:51")
    paths = [
        write_cslc(tmp_path / f"{k}_{pol}.h5", images[k % 2], time, pol=pol)
        for pol, dates in (("VH", days[:2]), ("VV", days))
        for k, time in enumerate(dates)
    ]
    group = cslc.open_pairs(paths, baselines=(12,)).load()
    assert group.pol.to_numpy().tolist() == ["vv", "vh"]
    assert group.sizes["pair"] == 2
    missing = np.isnan(group.coherence).all(("y", "x")).to_numpy()
    assert missing.tolist() == [[False, False], [False, True]]
    np.testing.assert_array_equal(group.phase[0, 0], group.phase[0, 1])
    cubes.write(xr.DataTree.from_dict({"insar": group}), tmp_path / "pairs.zarr")
    stored = cubes.open(tmp_path / "pairs.zarr")["insar"]
    np.testing.assert_array_equal(stored.looks_effective, group.looks_effective)
    np.testing.assert_allclose(stored.coherence, group.coherence, atol=5.1e-5)
    assert stored.orbit_state.to_numpy().tolist() == ["descending"] * 2


@pytest.fixture
def real_cslc(real: Path) -> Callable[[str], Path]:
    return lambda kind: next((real / "opera-cslc").glob(f"OPERA_L2_{kind}_*.h5"))


@pytest.mark.real
def test_a_pair_in_the_real_layout(real_cslc: Callable[[str], Path], tmp_path: Path) -> None:
    """Simulated pixels in copies of the real file: its groups, attributes, chunks and filters."""
    where = (slice(203, 353), slice(5000, 5400))
    pair = []
    for days, image in zip((0, 12), speckle((150, 400), 0.3, -1.2), strict=True):
        path = tmp_path / f"{days}.h5"
        shutil.copyfile(real_cslc("CSLC-S1"), path)
        with h5py.File(path, "r+") as file:
            file["data/VV"][where] = image
            start = file["identification/zero_doppler_start_time"]
            time = pd.Timestamp(start[()].decode()) + pd.Timedelta(days=days)
            start[...] = np.bytes_(time.strftime("%Y-%m-%d %H:%M:%S.%f"))
            file["identification/absolute_orbit_number"][...] += 175 * days // 12
        pair.append(cslc.open_cslc(path))
        assert pair[-1].chunks[0][0] == 203
    a, b = pair
    assert pd.Timestamp(b.attrs["time"]) - pd.Timestamp(a.attrs["time"]) == pd.Timedelta("12D")
    assert (a.attrs["ellipsoidal_flattening_applied"], a.attrs["wavelength"]) == (True, 0.05546576)
    found = insar.coherence(a[where], b[where], window=(5, 10)).isel(y=slice(5, -5)).load()
    assert float(found.coherence.mean()) == pytest.approx(
        float(insar.expected_coherence(0.3, 50)), abs=0.01
    )
    turned = np.exp(1j * found.phase).mean().item()
    assert np.angle(turned) == pytest.approx(-1.2, abs=0.05)


@pytest.mark.real
def test_real_orbit_and_static_geometry(real_cslc: Callable[[str], Path]) -> None:
    orbit = cslc.open_cslc_orbit(real_cslc("CSLC-S1"))
    acquired = pd.Timestamp(cslc.open_cslc(real_cslc("CSLC-S1")).attrs["time"])
    assert orbit.time.to_index()[0] < acquired < orbit.time.to_index()[-1]
    # Sentinel-1: 693 km above an ellipsoid of 6,357 to 6,378 km, 7.6 km/s
    np.testing.assert_allclose(np.linalg.norm(orbit.position, axis=1), 7_073_000, atol=15_000)
    np.testing.assert_allclose(np.linalg.norm(orbit.velocity, axis=1), 7_597, atol=10)
    moved = orbit.position.diff("time") / (orbit.time.diff("time") / np.timedelta64(1, "s"))
    mean = orbit.velocity.rolling(time=2).mean().isel(time=slice(1, None))
    np.testing.assert_allclose(moved, mean, atol=40)  # metres per second, over 10 s of an arc
    static = cslc.open_cslc_static(real_cslc("CSLC-S1-STATIC"))
    assert static.attrs["burst"] == "t087_185683_iw2"
    part = static.isel(y=slice(None, None, 500), x=slice(None, None, 2000)).load()
    look = geometry.Look.from_opera(part.los_east, part.los_north)
    assert np.nanmedian(look.incidence) == pytest.approx(39, abs=1.5)
    assert np.nanmax(part.los_north) < 0 < np.nanmin(part.los_east), "descending, looking west"
    outside = np.isnan(part.los_east.to_numpy())
    assert 0 < outside.sum() < outside.size
    assert (part.layover_shadow.to_numpy()[outside] == geometry.NO_DATA).all()


# ------------------------------------------------------------------------------------------ RTC


def write_rtc(folder: Path, name: str, value: float, box: GeoBox = BOX, **tags: str) -> None:
    files.write_tif(
        folder / name, np.full((1, *box.shape), value, "float32"), box,
        nodata=float("nan"), tags=tags,
    )  # fmt: skip


NAME = "OPERA_L2_RTC-S1_T137-{burst}-IW1_{time}Z_{made}Z_S1A_30_v1.0_{layer}.tif"


def test_rtc_bursts_become_passes_and_reprocessings_give_way(tmp_path: Path) -> None:
    beside = GeoBox((48, 64), Affine(10, 0, 500_640, 0, -10, 4_000_000), "EPSG:32611")
    both = [("292318", BOX, "20230101T015858"), ("292319", beside, "20230101T015900")]
    for burst, box, time in both:
        for layer, power in (("VV", 0.1), ("VH", 0.0)):
            name = NAME.format(burst=burst, time=time, made="20230102T000000", layer=layer)
            write_rtc(tmp_path, name, power, box, ORBIT_PASS_DIRECTION="Ascending")
    for layer in ("VV", "VH"):  # the second burst again, processed later
        name = NAME.format(burst="292319", time="20230101T015900", made="20250102T000000",
                           layer=layer)  # fmt: skip
        write_rtc(tmp_path, name, 0.2, beside, ORBIT_PASS_DIRECTION="Ascending")
    static = "OPERA_L2_RTC-S1-STATIC_T137-{}-IW1_20140403_S1A_30_v1.0_{}.tif"
    for burst, box, _ in both:
        write_rtc(tmp_path, static.format(burst, "local_incidence_angle"), 40.0, box)
    (tmp_path / "OPERA_L2_RTC-S1_notes.tif").write_text("someone's own")
    cube = rtc.open_rtc(tmp_path)
    cubes.check(cube)
    s1 = cube["s1"]
    assert s1.sizes["time"] == 1
    assert s1.sizes["x"] == 128
    assert (s1.orbit_state.item(), s1.relative_orbit.item()) == ("ascending", 137)
    vv, vh = s1.backscatter[0, 0], s1.backscatter[0, 1]
    np.testing.assert_allclose(vv[:, :64], -10, atol=1e-5)
    np.testing.assert_allclose(vv[:, 64:], 10 * np.log10(0.2), atol=1e-5)
    np.testing.assert_allclose(vh[:, :64], -50, atol=1e-5)  # below noise, measured
    assert (s1.incidence == 40).all()
    assert s1.backscatter.attrs["calibration"] == "gamma0_rtc"
    one = rtc.open_rtc(tmp_path, burst="T137-292318-IW1", pols=("vv",))
    assert one["s1"].backscatter.shape == (1, 1, 48, 64)


def test_rtc_refusals(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match="holds no OPERA RTC-S1 files"):
        rtc.open_rtc(tmp_path)
    for burst, code in (("292318", 32611), ("292319", 32610)):
        box = GeoBox(BOX.shape, BOX.affine, f"EPSG:{code}")
        name = NAME.format(burst=burst, time="20230101T015858", made="20230102T000000", layer="VV")
        write_rtc(tmp_path, name, 0.1, box)
    with pytest.raises(CubeError, match="lie in EPSG:32610, EPSG:32611: give geobox="):
        rtc.open_rtc(tmp_path)
    with pytest.raises(CubeError, match="no burst 'T137-1-IW1'; it has T137-292318-IW1"):
        rtc.open_rtc(tmp_path, burst="T137-1-IW1")
    with pytest.raises(CubeError, match="1 assets are missing"):
        rtc.open_rtc(tmp_path, burst="T137-292318-IW1")


@pytest.mark.real
def test_real_rtc_is_a_lazy_group_and_a_store(real: Path, tmp_path: Path) -> None:
    folder = real / "opera-rtc"
    request = rtc.request(folder, burst="T137-292318-IW1")
    cube = request.open()
    cubes.check(cube)
    data = cube["s1"].backscatter
    assert data.shape == (21, 2, 100, 100)
    assert data.chunks is not None
    assert set(cube["s1"].platform.to_numpy()) == {"S1A", "S1B"}
    last = sorted((folder / "T137-292318-IW1").glob("*_VH.tif"))
    by_time = sorted(last, key=lambda p: p.name.split("_")[4])
    for step in (0, 20):
        power = files.read_tif(by_time[step]).bands[0]
        floor = np.maximum(power, 1e-5)
        np.testing.assert_allclose(data[step, 1], 10 * np.log10(floor), atol=1e-4)
    report = cubes.write(request, tmp_path / "rtc.zarr")
    assert report.state == "sealed"
    stored = cubes.open(tmp_path / "rtc.zarr")["s1"].backscatter
    np.testing.assert_allclose(stored, data, atol=0.0051)


@pytest.mark.real
def test_real_zeros_are_below_noise_and_bursts_meet_on_one_lattice(real: Path) -> None:
    request = rtc.request(real / "opera-rtc")
    assert request.grid.geobox.shape == (4422, 3404)
    plan = request.plan()
    assert len(plan.axes[0]) == 21
    assert {n.count(",") for n in plan.axes[0].coords["items"]} == {4}
    zeros = dark = 0
    for folder in sorted((real / "opera-rtc").iterdir()):
        for path in folder.glob("*.tif"):
            zeros += int((files.read_tif(path).bands == 0).sum())
        data = rtc.open_rtc(folder)["s1"].backscatter.load()
        assert not np.isnan(data).any()
        dark += int((data < -49.999).sum())
    assert dark >= zeros == 19
