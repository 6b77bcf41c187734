"""The real road on one field patch in Belgium: every date, to the last bit of what is stored."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

import cubes

pytestmark = pytest.mark.real

HERE = Path(__file__).parent.parent / "real"
OWN_GRID = GeoBox((64, 64), Affine(10, 0, 501360, 0, -10, 5629680), "EPSG:32631")
PATCH = (3.0194, 50.8132, 3.0283, 50.8188)
LAYERS = ("s1/backscatter", "s2/reflectance", "s2/scl", "s2/clear", "terrain/elevation")


@pytest.fixture(scope="module")
def request_(real: Path, monkeypatch_module: pytest.MonkeyPatch) -> cubes.Request:
    monkeypatch_module.setenv("DEEPSENTINEL_REAL", str(real))
    return cubes.Request.of(
        PATCH, "2017-08/2018-11", LAYERS, catalog=HERE / "flanders.toml", grid=OWN_GRID
    )


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def store(request_: cubes.Request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flanders") / "flanders.zarr"
    report = cubes.write(request_, path)
    assert report.state == "sealed", str(report)
    return path


def test_every_acquisition_is_there(request_: cubes.Request) -> None:
    cube = request_.open()
    assert cube["s1"].sizes["time"] == 159
    assert cube["s2"].sizes["time"] == 118
    cubes.check(cube)
    for group in ("s1", "s2"):
        assert np.all(np.diff(cube[group]["time"].values) > np.timedelta64(0))
        assert cube[group].to_dataset().odc.geobox == OWN_GRID
    assert cube["s1/backscatter"].attrs["calibration"] == "sigma0"
    assert set(cube["s1"]["orbit_state"].values) == {"ascending"}


def _plain(item: dict[str, object], folder: Path, key: str) -> np.ndarray:
    """Return an asset's pixels on the 10 m grid by plain rasterio and repetition."""
    href = item["assets"][key]["href"]  # type: ignore[index]
    with rasterio.open((folder / href).resolve()) as source:
        pixels = source.read(1)
    factor = 64 // pixels.shape[0]
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _items(real: Path, collection: str) -> list[tuple[dict[str, object], Path]]:
    paths = sorted((real / "flanders" / collection).glob("*/*.json"))
    found = [(json.loads(p.read_text()), p.parent) for p in paths]
    return sorted(found, key=lambda v: (v[0]["properties"]["datetime"], v[0]["id"]))


def test_what_the_source_is_comes_from_the_source(request_: cubes.Request) -> None:
    """Its radar has pixels of 20 m, where the layer's own row says 10."""
    tree = request_.open()
    assert tree["s1/backscatter"].attrs["native_resolution_m"] == 20
    edges = tree["s2/reflectance"].attrs["native_resolution_m"]
    bands = dict(part.split() for part in edges.split(", "))
    assert list(bands) == tree["s2"].band.to_numpy().tolist()
    assert (bands["B04"], bands["B11"]) == ("10", "20")


def test_stored_integers_equal_plain_rasterio(real: Path, store: Path) -> None:
    rng = np.random.default_rng(20261120)
    group = zarr.open_group(store, mode="r")
    s2, s1 = _items(real, "sentinel-2-l2a"), _items(real, "sentinel-1-sigma0")
    bands = list(cubes.layer("s2/reflectance").channels)
    for _ in range(20):
        y, x = rng.integers(0, 48, 2)
        window = np.s_[y : y + 16, x : x + 16]
        step, band = int(rng.integers(len(s2))), int(rng.integers(len(bands)))
        item, folder = s2[step]
        raw = _plain(item, folder, bands[band])
        old = item["properties"]["s2:processing_baseline"] < "04.00"  # type: ignore[index]
        # ESA's numbers of today: +1000 where an older baseline left it out, nodata untouched
        expected = np.where(raw == 0, 0, raw + (1000 if old else 0))[window]
        stored = group["s2/reflectance"][step, band][window]
        np.testing.assert_array_equal(stored, expected, err_msg=f"{item['id']} {bands[band]}")
        scl = _plain(item, folder, "SCL")[window]
        np.testing.assert_array_equal(group["s2/scl"][step][window], scl)

        step, pol = int(rng.integers(len(s1))), int(rng.integers(2))
        item, folder = s1[step]
        power = _plain(item, folder, ("vv", "vh")[pol])[window]
        expected = np.array(
            [[-32768 if p == -32768 else round(float(np.float32(10) * np.log10(p)) / 0.01)
              for p in row] for row in power]
        )  # fmt: skip
        stored = group["s1/backscatter"][step, pol][window].astype(int)
        # the same rounding, computed pixel by pixel in plain Python
        np.testing.assert_array_equal(stored, expected, err_msg=f"{item['id']} pol {pol}")


def test_both_readers_give_the_same_bits(request_: cubes.Request) -> None:
    from dataclasses import replace

    small = replace(request_, time=("2018-05-01T00:00:00", "2018-05-20T00:00:00"))
    one, two = small.open(), replace(small, reader="stackstac").open()
    for name in LAYERS:
        xr.testing.assert_identical(one[name].compute(), two[name].compute())


def test_opened_cubes_are_the_lazy_ones(request_: cubes.Request, store: Path) -> None:
    opened, lazy = cubes.open(store), request_.open()
    cubes.check(opened)
    picked = {"time": [3, 50, 117]}
    for name in ("s2/reflectance", "s2/scl", "s2/clear"):
        one, two = (c[name].isel(picked).compute() for c in (opened, lazy))
        xr.testing.assert_equal(one, two)
    radar = lazy["s1/backscatter"].isel(picked).compute()
    stored = opened["s1/backscatter"].isel(picked).compute()
    assert float(abs(radar - stored).max()) <= 0.005 + 1e-4  # half a step of 0.01 dB
    assert math.isclose(float(opened["terrain/elevation"].mean()), 40, abs_tol=8)


def test_a_sealed_cube_is_not_built_again(request_: cubes.Request, store: Path) -> None:
    report = cubes.write(request_, store)
    assert (report.written, report.pixels_read, report.bytes_written) == (0, 0, 0)
    assert report.reused > 0
    assert report.state == "sealed"
    assert cubes.verify(store).damaged == ()


@pytest.mark.parametrize("place", range(5))
def test_places_open_with_their_gaps(real: Path, monkeypatch, place: int) -> None:
    monkeypatch.setenv("DEEPSENTINEL_REAL", str(real))
    items = sorted((real / "places" / "sentinel-2-l2a").glob("*/*.json"))
    item = json.loads(items[place].read_text())
    shape, transform = (item["assets"]["B02"][f"proj:{k}"] for k in ("shape", "transform"))
    box = GeoBox(tuple(shape), Affine(*transform[:6]), item["properties"]["proj:code"])
    cube = cubes.open_aoi(
        tuple(item["bbox"]), "2015/2025",
        ["s1/backscatter", "s2/reflectance", "terrain/elevation", "labels/io-lulc"],
        catalog=HERE / "places.toml", grid=box,
        bands=list(cubes.registry.all_channels("s2/reflectance")),
    ).compute()  # fmt: skip
    cubes.check(cube)
    reflectance = cube["s2/reflectance"]
    assert reflectance.sizes["time"] == cube["s1"].sizes["time"] == 1
    with rasterio.open(items[place].parent / item["assets"]["B05"]["href"]) as source:
        raw = source.read(1)
    expected = np.where(raw == 0, np.nan, raw * 1e-4)
    np.testing.assert_allclose(reflectance.sel(band="B05")[0], expected, atol=1e-6)


def test_windows_smaller_than_a_patch_are_judged_by_their_own_pixels(
    real: Path, store: Path, figure
) -> None:
    """The field of 64 px lies in a patch of 256: its borders must not take its middle along."""
    samples = cubes.plan(store, cubes.Window(size=16, dates=4))
    figure("windows of 16 px in a field of 64 px, inner ones", len(samples), ">= 4")
    assert len(samples) >= 4
