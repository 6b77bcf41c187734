"""Pixels of an asset on a grid: kernels, nodata, blocks, the allow-list, and a failing server."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from cubes.reading import access as gate
from cubes.reading.read import BELOW_NOISE, block, close_all, counting, mosaic, read
from cubes.reading.resample import frame, taps
from cubes.types import Access, ArrayPlan, Asset, AssetReadError, CubeError, Layer

UTM31, UTM32 = "EPSG:32631", "EPSG:32632"
ORIGIN = Affine(10, 0, 500_000, 0, -10, 5_600_000)
NAN = float("nan")


def layer(dtype: str = "uint16", nodata: float | None = 0, **changes: Any) -> Layer:
    body: dict[str, Any] = {
        "name": "s2/reflectance", "long_name": "x", "dims": ("time", "band", "y", "x"),
        "channels": ("B02", "B03"), "units": "1", "kind": "continuous", "work_dtype": dtype,
        "work_nodata": nodata, "convert": "stored", "dtype": dtype, "nodata": nodata,
        "kernel": "nearest", "resolution": 10, "valid_range": (-1, 7),
    }  # fmt: skip
    return Layer(**{**body, **changes})


FLOAT = layer("float32", NAN)


def tif(
    path: Path, pixels: np.ndarray, transform: Affine = ORIGIN, crs: str = UTM31, **profile: Any
) -> Path:
    height, width = pixels.shape
    profile = {
        "driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": pixels.dtype,
        "crs": crs, "transform": transform, "tiled": True, "blockxsize": 64, "blockysize": 64,
        "compress": "deflate", **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        out.write(pixels, 1)
    return path


def asset(href: str | Path, **fields: Any) -> Asset:
    return Asset(href=str(href), item="granule", key="B02", **fields)


def box(col: float, row: float, width: int, height: int, edge: float = 10) -> GeoBox:
    """Return a grid of UTM 31 whose corner is at a pixel of ORIGIN."""
    corner = ORIGIN @ Affine.translation(col, row) @ Affine.scale(edge / 10)
    return GeoBox((height, width), corner, UTM31)


@pytest.fixture
def local(tmp_path: Path) -> Access:
    return Access(schemes=("file",), roots=(str(tmp_path),))


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(1, 5000, (200, 230)).astype("uint16")


@pytest.fixture
def path(tmp_path: Path, image: np.ndarray) -> Path:
    return tif(tmp_path / "image.tif", image, nodata=0)


# ------------------------------------------------------------------------------------ kernels


@pytest.mark.parametrize("corner", [(0, 0), (37, 11), (-20, -30), (150, 190), (229, 199)])
def test_one_lattice_is_a_plain_window(
    path: Path, image: np.ndarray, local: Access, corner: tuple[int, int]
) -> None:
    col, row = corner
    expected = np.zeros((70, 90), "uint16")
    for r in range(70):
        for c in range(90):
            if 0 <= r + row < 200 and 0 <= c + col < 230:
                expected[r, c] = image[r + row, c + col]
    for kernel in ("nearest", "average", "bilinear"):
        found = read(asset(path), box(col, row, 90, 70), layer(kernel=kernel), local)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.uint16


def test_far_away_is_nodata_and_reads_nothing(path: Path, local: Access) -> None:
    with counting() as counts:
        found = read(asset(path), box(5000, 5000, 8, 8), FLOAT, local)
    assert np.isnan(found).all()
    assert counts.pixels == 0


@pytest.mark.parametrize("kernel", ["nearest", "average"])
def test_coarser_source_repeats(
    tmp_path: Path, image: np.ndarray, local: Access, kernel: str
) -> None:
    coarse = tif(tmp_path / "c.tif", image, ORIGIN @ Affine.scale(2), nodata=0)
    found = read(asset(coarse), box(3, 5, 40, 30), layer(kernel=kernel), local)
    np.testing.assert_array_equal(found, image.repeat(2, 0).repeat(2, 1)[5:35, 3:43])


def test_average_is_the_block_mean_of_valid_numbers(
    tmp_path: Path, image: np.ndarray, local: Access
) -> None:
    source = image.astype("float32")
    source[20:90, 30:77] = np.nan
    source[100, 100] = np.inf
    made = tif(tmp_path / "f.tif", source)
    found = read(asset(made), box(6, 9, 30, 25, 30), layer("float32", NAN, kernel="average"), local)
    clean = np.where(np.isfinite(source), source, np.nan)[9 : 9 + 75, 6 : 6 + 90]
    cells = clean.reshape(25, 3, 30, 3).swapaxes(1, 2).reshape(25, 30, 9)
    with pytest.warns(RuntimeWarning, match="empty"):
        expected = np.nanmean(cells, axis=2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isnan(found).any()


def test_shifted_lattice_is_weighted_by_area(
    tmp_path: Path, image: np.ndarray, local: Access
) -> None:
    made = tif(tmp_path / "f.tif", image.astype("float64"))
    found = read(asset(made), box(4.3, 7.8, 20, 20), layer("float32", NAN, kernel="average"), local)
    i = image.astype(float)
    a, b = i[7:27, 4:24], i[7:27, 5:25]
    c, d = i[8:28, 4:24], i[8:28, 5:25]
    expected = 0.2 * (0.7 * a + 0.3 * b) + 0.8 * (0.7 * c + 0.3 * d)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def smooth(col: np.ndarray, row: np.ndarray) -> np.ndarray:
    return 300 + 80 * np.sin(col / 25) + 50 * np.cos(row / 31)


def other_zone(edge: float = 10, size: int = 150) -> GeoBox:
    x, y = Transformer.from_crs(UTM31, UTM32, always_xy=True).transform(501_000, 5_599_000)
    left, top = round(x / 10) * 10 - edge * size / 2, round(y / 10) * 10 + edge * size / 2
    return GeoBox((size, size), Affine(edge, 0, left, 0, -edge, top), UTM32)


def exact(geobox: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Return column and row coordinates in ORIGIN's grid of each pixel centre, by PROJ alone."""
    rows, cols = np.indices(geobox.shape.yx) + 0.5
    x, y = geobox.transform.c + 10 * cols, geobox.transform.f - 10 * rows
    xs, ys = Transformer.from_crs(str(geobox.crs), UTM31, always_xy=True).transform(x, y)
    return (xs - ORIGIN.c) / 10, (ORIGIN.f - ys) / 10


def test_nearest_between_zones_is_exact(path: Path, image: np.ndarray, local: Access) -> None:
    target = other_zone()
    u, v = exact(target)
    inside = (u >= 0) & (v >= 0) & (u < 230) & (v < 200)
    expected = np.zeros(u.shape, "uint16")
    expected[inside] = image[v[inside].astype(int), u[inside].astype(int)]
    found = read(asset(path), target, layer(), local)
    assert inside.mean() > 0.9
    # a centre within 1e-5 of a line may fall to either side
    assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize("kernel", ["average", "bilinear"])
def test_weighted_kernels_between_zones(tmp_path: Path, local: Access, kernel: str) -> None:
    rows, cols = np.indices((200, 230)) + 0.5
    made = tif(tmp_path / "s.tif", smooth(cols, rows).astype("float32"))
    target = other_zone()
    u, v = exact(target)
    found = read(asset(made), target, layer("float32", NAN, kernel=kernel), local)
    inside = (u > 2) & (v > 2) & (u < 228) & (v < 198)
    np.testing.assert_allclose(found[inside], smooth(u, v)[inside], atol=0.06)
    far = (u < -1) | (v < -1) | (u > 231) | (v > 201)
    assert np.isnan(found[far]).all()


def test_bilinear_is_bilinear_at_exact_coordinates(
    tmp_path: Path, image: np.ndarray, local: Access
) -> None:
    """GDAL is no oracle: it widens its kernel by the ratio of the two windows, so by the chunk."""
    made = tif(tmp_path / "f.tif", image.astype("float32"))
    target = other_zone()
    found = read(asset(made), target, layer("float32", NAN, kernel="bilinear"), local)
    u, v = exact(target)
    inside = (u > 1) & (v > 1) & (u < 229) & (v < 199)
    a, b = u[inside] - 0.5, v[inside] - 0.5
    i, j = a.astype(int), b.astype(int)
    f, g = a - i, b - j
    top = image[j, i] * (1 - f) + image[j, i + 1] * f
    below = image[j + 1, i] * (1 - f) + image[j + 1, i + 1] * f
    # white noise of amplitude 5,000 and coordinates good to 5e-5 of a pixel
    np.testing.assert_allclose(found[inside], top * (1 - g) + below * g, atol=0.5)
    assert inside.mean() > 0.9


def test_degrees_over_the_antimeridian(tmp_path: Path, local: Access) -> None:
    """A source written as 179.9..180.1 and a grid in UTM 1 meet, whichever way PROJ counts."""
    pixels = np.arange(1, 201, dtype="float32")[None, :].repeat(100, 0)
    made = tif(tmp_path / "d.tif", pixels, Affine(1e-3, 0, 179.9, 0, -1e-3, 0.05), "EPSG:4326")
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32601", always_xy=True).transform(-179.95, 0.0)
    target = GeoBox((4, 4), Affine(100, 0, x - 200, 0, -100, y + 200), "EPSG:32601")
    found = read(asset(made, bbox=(179.9, -0.05, -179.9, 0.05)), target, FLOAT, local)
    assert np.abs(found - 151).max() < 3
    same = mosaic((asset(made, bbox=(179.9, -0.05, -179.9, 0.05)),), target, FLOAT, local)
    np.testing.assert_array_equal(found, same)


KINDS = [
    ("continuous", "nearest"), ("continuous", "average"), ("continuous", "bilinear"),
    ("phase", "average"), ("phase", "nearest"), ("class", "nearest"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "kernel"), KINDS)
@pytest.mark.parametrize("place", ["aligned", "shifted", "coarser", "zone", "degrees"])
def test_any_chunking_gives_the_same_bits(
    tmp_path: Path, local: Access, kind: str, kernel: str, place: str
) -> None:
    rng = np.random.default_rng(3)
    pixels = rng.uniform(-3.1, 3.1, (200, 230)).astype("float32")
    pixels[rng.random(pixels.shape) < 0.1] = np.nan
    pixels[60:90, 40:80] = np.nan
    made = tif(tmp_path / "p.tif", pixels)
    targets = {
        "aligned": box(10, 20, 150, 140),
        "shifted": box(10.37, 20.81, 150, 140),
        "coarser": box(10.1, 20.2, 60, 55, 27),
        "zone": other_zone(),
        "degrees": GeoBox((130, 150), Affine(1.3e-4, 0, 3.001, 0, -1.3e-4, 50.548), "EPSG:4326"),
    }
    target = targets[place]
    one = layer("float32", NAN, kind=kind, kernel=kernel)
    whole = read(asset(made), target, one, local)
    assert 0.3 < np.isfinite(whole).mean() < 1
    height, width = whole.shape
    for rows, cols in ((height, 17), (23, width), (37, 41)):
        parts = np.full_like(whole, -9)
        for r in range(0, height, rows):
            for c in range(0, width, cols):
                part = target[r : min(r + rows, height), c : min(c + cols, width)]
                parts[r : r + rows, c : c + cols] = read(asset(made), part, one, local)
        np.testing.assert_array_equal(parts, whole)


def test_phase_is_averaged_on_the_circle(tmp_path: Path, local: Access) -> None:
    pixels = np.full((64, 64), np.pi - 0.1, "float32")
    pixels[:, 1::2] = -np.pi + 0.1
    made = tif(tmp_path / "p.tif", pixels)
    target = box(0, 0, 8, 8, 20)
    phase = layer("float32", NAN, kind="phase", kernel="average")
    assert np.abs(np.abs(read(asset(made), target, phase, local)) - np.pi).max() < 1e-6
    plain = layer("float32", NAN, kernel="average")
    assert np.abs(read(asset(made), target, plain, local)).max() < 1e-6


def test_classes_are_never_averaged(tmp_path: Path, local: Access) -> None:
    pixels = np.random.default_rng(1).choice([2, 9], (64, 64)).astype("uint8")
    made = tif(tmp_path / "c.tif", pixels)
    classes = layer("uint8", 0, kind="class", kernel="average")
    found = read(asset(made), box(0.5, 0.5, 20, 20, 30), classes, local)
    assert set(np.unique(found)) == {2, 9}


def test_maps_are_cached_within_bounds() -> None:
    target = frame(UTM32, other_zone().transform, (150, 150))
    source = frame(UTM31, ORIGIN, (200, 230)).lattice
    assert taps(target, source, "nearest") is taps(target, source, "nearest")
    # another scene on the same lattice shares the map
    moved = frame(UTM31, ORIGIN @ Affine.translation(1000, -37), (9, 9))
    assert moved.lattice == source


def test_rotated_grids_are_refused(path: Path, local: Access) -> None:
    turned = GeoBox((8, 8), ORIGIN @ Affine.rotation(10), UTM31)
    with pytest.raises(CubeError, match="rotated"):
        read(asset(path), turned, layer(), local)


# ------------------------------------------------------------------------- nodata and numbers


def one_row(tmp_path: Path, values: list[float], dtype: str, **profile: Any) -> Path:
    return tif(tmp_path / f"row-{dtype}.tif", np.array([values], dtype), **profile)


def test_offset_shifts_valid_numbers_only_and_never_onto_nodata(
    tmp_path: Path, local: Access
) -> None:
    made = one_row(tmp_path, [0, 1, 999, 1000, 65535], "uint16")
    grid = box(0, 0, 5, 1)
    found = read(asset(made, nodata=0, shift=1000), grid, layer(), local)
    assert found.tolist() == [[0, 1001, 1999, 2000, 65535]]
    found = read(asset(made, nodata=0, shift=-1000), grid, layer(), local)
    assert found.tolist() == [[0, 1, 1, 1, 64535]]


def test_scale_makes_working_numbers(tmp_path: Path, local: Access) -> None:
    made = one_row(tmp_path, [0, 4123], "uint16", nodata=0)
    found = read(asset(made, scale=0.01), box(0, 0, 2, 1), FLOAT, local)
    np.testing.assert_allclose(found, [[NAN, 41.23]], rtol=1e-6)


def test_zeros_by_the_rows_rule(tmp_path: Path, local: Access) -> None:
    made = one_row(tmp_path, [-32768, 0, 0.25, -0.01, NAN], "float32")
    grid = box(0, 0, 5, 1)

    def power(zero: Any) -> np.ndarray:
        return read(asset(made, nodata=-32768, zero=zero), grid, FLOAT, local)[0]

    np.testing.assert_array_equal(power("nodata"), np.float32([NAN, NAN, 0.25, -0.01, NAN]))
    floor = np.float32(BELOW_NOISE)
    np.testing.assert_array_equal(power("below_noise"), [NAN, floor, 0.25, floor, NAN])
    np.testing.assert_array_equal(power("valid"), np.float32([NAN, 0, 0.25, -0.01, NAN]))


def test_unflagged_zeros_do_not_bleed_into_averages(tmp_path: Path, local: Access) -> None:
    pixels = np.full((64, 64), 0.2, "float32")
    pixels[:, :31] = 0
    made = tif(tmp_path / "z.tif", pixels)
    power = layer("float32", NAN, kernel="average")
    found = read(asset(made, zero="nodata"), box(0, 0, 32, 32, 20), power, local)
    assert np.isnan(found[:, :15]).all()
    np.testing.assert_allclose(found[:, 15:], 0.2)


def test_nodata_of_the_file_and_its_mask_count(tmp_path: Path, local: Access) -> None:
    grid = box(0, 0, 3, 1)
    made = one_row(tmp_path, [7, 8, 9], "uint8", nodata=8)
    assert read(asset(made), grid, layer(), local).tolist() == [[7, 0, 9]]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(
        tmp_path / "m.tif", "w", driver="GTiff", height=1, width=3, count=1, dtype="uint8",
        crs=UTM31, transform=ORIGIN,
    ) as out:  # fmt: skip
        out.write(np.array([[7, 8, 9]], "uint8"), 1)
        out.write_mask(np.array([[True, True, False]]))
    bytes_ = layer("uint8", 0)
    for stated in (None, 0):
        one = asset(tmp_path / "m.tif", nodata=stated)
        assert read(one, grid, layer(), local).tolist() == [[7, 8, 0]]
        assert read(one, grid, bytes_, local).tolist() == [[7, 8, 0]]


def test_gdals_scale_tags_are_not_trusted(tmp_path: Path, local: Access) -> None:
    made = one_row(tmp_path, [5, 6], "uint16")
    with rasterio.open(made, "r+") as out:
        out.scales, out.offsets = (100.0,), (7.0,)
    assert read(asset(made), box(0, 0, 2, 1), layer(), local).tolist() == [[5, 6]]


# ------------------------------------------------------------------------------------- blocks


def test_first_valid_pixel_wins(tmp_path: Path, local: Access) -> None:
    first = np.full((64, 64), 5, "uint16")
    first[:, 40:] = 0
    a = tif(tmp_path / "a.tif", first)
    b = tif(tmp_path / "b.tif", np.full((64, 64), 6, "uint16"))
    array = ArrayPlan(
        layer=layer(), steps=({"B02": (asset(a, nodata=0), asset(b, nodata=0)), "B03": ()},)
    )
    found = block(array, 0, box(0, 0, 64, 64), local)
    assert found.shape == (2, 64, 64)
    assert (found[0, :, :40] == 5).all()
    assert (found[0, :, 40:] == 6).all()
    assert (found[1] == 0).all()


def test_granules_that_miss_or_are_not_needed_are_not_opened(path: Path, local: Access) -> None:
    here = asset(path)
    far = asset(path.with_name("absent.tif"), bbox=(100.0, 10.0, 101.0, 11.0))
    under = asset(path.with_name("absent.tif"))
    found = mosaic((far, here, under), box(0, 0, 64, 64), layer(), local)
    assert found.all()
    with pytest.raises(AssetReadError, match="No such file"):
        mosaic((here, under), box(200, 0, 64, 64), layer(), local)


def test_block_without_channels_and_derived_layers(path: Path, local: Access) -> None:
    flat = layer(name="terrain/elevation", dims=("y", "x"), channels=())
    found = block(ArrayPlan(layer=flat, steps=({"": (asset(path),)},)), 0, box(0, 0, 9, 7), local)
    assert found.shape == (1, 7, 9)
    derived = layer(derived_from="s2/scl")
    with pytest.raises(CubeError, match="s2/scl"):
        block(ArrayPlan(layer=derived, steps=()), 0, box(0, 0, 9, 7), local)


def test_counts_are_whole_source_blocks_and_nest(path: Path, local: Access) -> None:
    close_all()
    with counting() as outer:
        read(asset(path), box(10, 10, 20, 20), layer(), local)
        with counting() as inner:
            read(asset(path), box(60, 60, 10, 10), layer(), local)
    assert inner.pixels == 128 * 128
    assert inner.opened == 0
    assert (outer.pixels, outer.opened, outer.retries) == (64 * 64 + 128 * 128, 1, 0)


def test_a_replaced_file_is_read_anew(tmp_path: Path, local: Access) -> None:
    made = tif(tmp_path / "r.tif", np.full((64, 64), 3, "uint16"))
    assert (read(asset(made), box(0, 0, 4, 4), layer(), local) == 3).all()
    tif(tmp_path / "new.tif", np.full((70, 64), 4, "uint16")).replace(made)
    assert (read(asset(made), box(0, 0, 4, 4), layer(), local) == 4).all()


def test_a_block_of_a_far_coarser_grid_is_refused(
    path: Path, local: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cubes.reading.read.MAX_WINDOW", 200 * 100)
    assert read(asset(path), box(0, 0, 20, 10, 100), FLOAT, local).shape == (10, 20)
    with pytest.raises(AssetReadError, match="191 x 221 source pixels"):
        read(asset(path), box(0, 0, 23, 20, 100), FLOAT, local)


def test_threads_agree(path: Path, image: np.ndarray, local: Access) -> None:
    def one(n: int) -> bool:
        row, col = n * 7 % 100, n * 13 % 100
        found = read(asset(path), box(col, row, 60, 60), layer(), local)
        return bool((found == image[row : row + 60, col : col + 60]).all())

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, range(120)))


@pytest.mark.real
def test_flanders_equals_plain_rasterio(real: Path) -> None:
    rng = np.random.default_rng(0)
    allowed = Access(schemes=("file",), roots=(str(real),))
    paths = sorted((real / "flanders" / "data" / "s2").glob("*_L2A_B*.tif"))
    for n in rng.choice(len(paths), 20, replace=False):
        with rasterio.open(paths[n]) as source:
            whole, k = source.read(1), int(source.res[0] / 10)
        row, col = rng.integers(0, 40, 2)
        grid = GeoBox((24, 24), Affine(10, 0, 501360 + 10 * col, 0, -10, 5629680 - 10 * row), UTM31)
        found = read(asset(paths[n], nodata=0), grid, layer(), allowed)
        expected = whole.repeat(k, 0).repeat(k, 1)[row : row + 24, col : col + 24]
        np.testing.assert_array_equal(found, expected)


# --------------------------------------------------------------------------------- allow-list

REFUSED = {
    "http://example.org/a.tif": "scheme 'http'",
    "zip+https://example.org/a.zip!a.tif": "scheme 'zip\\+https'",
    "vrt://https://example.org/a.tif": "scheme 'vrt'",
    "https://evil.org/a.tif?sig=SECRET": "host 'evil.org'",
    "https://good.org.evil.org/a.tif": "host",
    "https://good.org@evil.org/a.tif": "carries credentials",
    "https://127.0.0.1/a.tif": "host",
    "/vsicurl/https://good.org/a.tif": "not an absolute path",
    "relative/a.tif": "not an absolute path",
    "/etc/hostname": "outside the folders",
    "file:///etc/hostname": "outside the folders",
}


@pytest.mark.parametrize("href", REFUSED)
def test_what_is_not_listed_is_refused(href: str, tmp_path: Path) -> None:
    allowed = Access(
        schemes=("https", "file"), hosts=("good.org", "*.good.net"), roots=(str(tmp_path),)
    )
    with pytest.raises(AssetReadError, match=REFUSED[href]) as caught:
        read(asset(href), box(0, 0, 4, 4), layer(), allowed)
    assert "SECRET" not in str(caught.value)
    assert caught.value.attempts == 1


def test_roots_hold_against_dots_and_links(path: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link.tif").symlink_to(path)
    allowed = Access(schemes=("file",), roots=(str(inner),))
    for href in (f"{inner}/../image.tif", f"{inner}/link.tif"):
        with pytest.raises(AssetReadError, match="outside the folders"):
            read(asset(href), box(0, 0, 4, 4), layer(), allowed)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.8", "169.254.169.254", "[::1]", "localhost"])
def test_private_networks_need_an_entry_of_their_own(host: str) -> None:
    name = host.strip("[]")
    with pytest.raises(CubeError, match="private network"):
        gate.permit(f"https://{host}/a.tif", Access())
    with pytest.raises(CubeError, match="host"):
        gate.permit(f"https://{host}/a.tif", Access(hosts=("*.example.org",)))
    href = f"https://{host}/a.tif"
    assert gate.permit(href, Access(hosts=(name,))) == href


def test_hosts_and_buckets() -> None:
    allowed = Access(schemes=("https", "s3"), hosts=("bucket", "one.org"))
    assert gate.permit("s3://bucket/a%20b.tif", allowed) == "/vsis3/bucket/a b.tif"
    assert gate.permit("https://one.org/a.tif?x=1", allowed) == "https://one.org/a.tif?x=1"
    with pytest.raises(CubeError, match="bucket 'other'"):
        gate.permit("s3://other/a.tif", allowed)


def test_a_vrt_called_tif_is_refused(path: Path, local: Access) -> None:
    vrt = path.with_name("trap.tif")
    vrt.write_text(
        '<VRTDataset rasterXSize="230" rasterYSize="200"><SRS>EPSG:32631</SRS><GeoTransform>'
        '500000,10,0,5600000,0,-10</GeoTransform><VRTRasterBand dataType="UInt16" band="1">'
        f"<SimpleSource><SourceFilename>{path}</SourceFilename></SimpleSource></VRTRasterBand>"
        "</VRTDataset>"
    )
    with rasterio.open(vrt) as opened:  # GDAL alone would follow it
        assert opened.read(1).any()
    with pytest.raises(AssetReadError, match="not recognized"):
        read(asset(vrt), box(0, 0, 4, 4), layer(), local)


def test_errors_name_what_failed_and_survive_pickling(tmp_path: Path, local: Access) -> None:
    bare = tif(tmp_path / "bare.tif", np.ones((64, 64), "uint16"), crs=None)  # type: ignore[arg-type]
    with pytest.raises(AssetReadError, match="no CRS") as caught:
        read(asset(bare), box(0, 0, 4, 4), layer(), local)
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value)
    assert "item 'granule', asset 'B02', x 500000..500040" in str(error)


def test_gdal_settings_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    env = gate.gdal_env(Access(), "https://example.org/a.tif")
    assert "GDAL_NUM_THREADS" not in env
    assert env["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"
    assert "/vsicurl/" in env["CPL_VSIL_CURL_NON_CACHED"]
    assert not any("BEARER" in key for key in env)
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "5")
    assert gate.gdal_env(Access(), "/a.tif")["GDAL_HTTP_TIMEOUT"] == "5"
    with pytest.raises(CubeError, match="NO_SUCH_TOKEN"):
        gate.gdal_env(Access(auth="NO_SUCH_TOKEN", hosts=("a.org",)), "https://a.org/a.tif")


def test_redaction() -> None:
    for text in (
        "https://a.blob.core.windows.net/c/x.tif?se=2026&sig=SECRET",
        "/vsicurl/https://h/x.tif?X-Amz-Signature=SECRET failed",
        "x.tif?sig=SECRET, band 1: read failed",
        "Authorization: Bearer SECRET",
        "token=SECRET",
    ):
        assert "SECRET" not in gate.redact(text)
    plain = "is a.tif there? yes, 3 of 4"
    assert gate.redact(plain) == plain


# -------------------------------------------------------------------------- a failing server


class Flaky:
    """The fault server of ``flaky_server.py`` and its remote control."""

    def __init__(self, port: int, folder: Path) -> None:
        self.url, self.folder = f"http://127.0.0.1:{port}", folder

    def post(self, path: str, body: dict[str, Any]) -> None:
        request = urllib.request.Request(self.url + path, data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()

    def plan(self, path: str, *faults: Any, forever: Any = None, **more: Any) -> None:
        self.post("/_plan", {"path": path, "faults": list(faults), "forever": forever, **more})

    @property
    def log(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(self.url + "/_log", timeout=5) as answer:
            entries: list[dict[str, Any]] = json.load(answer)
        return entries


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flaky]:
    folder = tmp_path_factory.mktemp("served")
    script = Path(__file__).with_name("flaky_server.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield Flaky(int(server.stdout.readline()), folder)
        server.terminate()


PIXELS = np.random.default_rng(5).integers(1, 9000, (300, 300)).astype("uint16")


@pytest.fixture
def flaky(process: Flaky, monkeypatch: pytest.MonkeyPatch) -> Flaky:
    close_all()
    process.post("/_clear", {})
    tif(process.folder / "a.tif", PIXELS)
    monkeypatch.setenv("CUBES_READ_BUDGET", "8")
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "1")
    return process


WEB = Access(schemes=("http",), hosts=("127.0.0.1",))
GRID = box(100, 100, 120, 120)
WANTED = PIXELS[100:220, 100:220]


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, "short", "reset"])
def test_passing_faults_are_retried_and_bits_agree(flaky: Flaky, fault: Any) -> None:
    # GDAL asks again by itself, up to five times in one read, where a body is short
    flaky.plan("/a.tif", *[fault] * (4 if isinstance(fault, int) else 14))
    with counting() as counts:
        found = read(asset(f"{flaky.url}/a.tif"), GRID, layer(), WEB)
    np.testing.assert_array_equal(found, WANTED)
    assert 1 <= counts.retries <= 6


def test_a_stall_is_cut_off_and_retried(flaky: Flaky) -> None:
    flaky.plan("/a.tif", None, None, "stall", "stall")
    started = time.monotonic()
    np.testing.assert_array_equal(read(asset(f"{flaky.url}/a.tif"), GRID, layer(), WEB), WANTED)
    assert time.monotonic() - started < 8


def test_failures_between_reads_of_an_open_file(flaky: Flaky) -> None:
    one = asset(f"{flaky.url}/a.tif")
    read(one, box(0, 0, 4, 4), layer(), WEB)
    flaky.plan("/a.tif", *[503] * 14)
    with counting() as counts:
        np.testing.assert_array_equal(read(one, GRID, layer(), WEB), WANTED)
    assert counts.retries >= 1
    assert counts.opened >= 1


def test_permanent_failure_ends_within_the_budget_and_leaves_nothing_poisoned(
    flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBES_READ_BUDGET", "1.5")
    one = asset(f"{flaky.url}/a.tif?sig=SECRET")
    flaky.plan("/a.tif", forever=503)
    started = time.monotonic()
    with pytest.raises(AssetReadError, match="HTTP 503") as caught:
        read(one, GRID, layer(), WEB)
    assert time.monotonic() - started < 4
    assert caught.value.attempts >= 3
    assert "SECRET" not in str(caught.value)
    flaky.plan("/a.tif")
    np.testing.assert_array_equal(read(one, GRID, layer(), WEB), WANTED)


@pytest.mark.parametrize(("status", "said"), [(404, "not there"), (403, "access refused")])
def test_final_statuses_are_not_repeated(flaky: Flaky, status: int, said: str) -> None:
    flaky.plan("/a.tif", forever=status)
    with pytest.raises(AssetReadError, match=f"HTTP {status}.*{said}") as caught:
        read(asset(f"{flaky.url}/a.tif"), GRID, layer(), WEB)
    assert caught.value.attempts == 1


def test_a_status_met_while_reading_is_known(flaky: Flaky) -> None:
    one = asset(f"{flaky.url}/a.tif")
    read(one, box(0, 0, 4, 4), layer(), WEB)
    flaky.plan("/a.tif", forever=404)
    with pytest.raises(AssetReadError, match="HTTP 404"):
        read(one, box(250, 250, 40, 40), layer(), WEB)


def test_no_secret_in_any_log(
    flaky: Flaky, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBES_READ_BUDGET", "1")
    caplog.set_level(logging.DEBUG)
    flaky.plan("/a.tif", 503, None, None, "short", forever=503)
    with pytest.raises(AssetReadError):
        read(asset(f"{flaky.url}/a.tif?sig=SECRET&se=1"), GRID, layer(), WEB)
    assert "redacted" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.fixture
def signer(flaky: Flaky, monkeypatch: pytest.MonkeyPatch) -> Iterator[Access]:
    """Let the server hand out tokens, and sign with them as the Planetary Computer's are."""
    monkeypatch.setenv("PC_SDK_SAS_URL", f"{flaky.url}/sas")
    monkeypatch.setattr(gate, "_blob", lambda _: ("account", "container"))
    gate._tokens.clear()
    flaky.plan("/a.tif", token=True)
    yield dataclasses.replace(WEB, sign="planetary-computer")
    gate._tokens.clear()


def test_signed_at_read_time_with_one_shared_token(flaky: Flaky, signer: Access) -> None:
    one = asset(f"{flaky.url}/a.tif")
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: read(one, GRID, layer(), signer), range(8)):
            np.testing.assert_array_equal(found, WANTED)
    assert sum(entry["path"].startswith("/sas/") for entry in flaky.log) == 1
    with pytest.raises(AssetReadError, match="HTTP 403"):
        read(one, GRID, layer(), WEB)


def test_an_expired_token_is_renewed(flaky: Flaky, signer: Access) -> None:
    """The server says a token lives an hour and refuses it at once: renewed, then read."""
    one = asset(f"{flaky.url}/a.tif")
    gate._tokens["account", "container"] = ("se=1&sig=OLD", time.time() + 3600)
    with counting() as counts:
        np.testing.assert_array_equal(read(one, GRID, layer(), signer), WANTED)
    assert counts.retries == 1


def test_a_busy_signing_service_is_waited_for(flaky: Flaky, signer: Access) -> None:
    flaky.plan("/sas/account/container", 429, 503)
    with counting() as counts:
        read(asset(f"{flaky.url}/a.tif"), GRID, layer(), signer)
    assert counts.retries == 2


def test_a_remote_vrt_opens_nothing_inside(flaky: Flaky) -> None:
    (flaky.folder / "trap.tif").write_text(
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="UInt16" band="1">'
        f"<SimpleSource><SourceFilename>/vsicurl/{flaky.url}/internal.tif</SourceFilename>"
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(AssetReadError, match="not recognized"):
        read(asset(f"{flaky.url}/trap.tif"), GRID, layer(), WEB)
    assert not [entry for entry in flaky.log if "internal" in entry["path"]]


def test_redirects_are_followed_only_where_a_read_may_go(
    flaky: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL follows them unasked; so an open list of hosts is walked by us first."""
    monkeypatch.setattr(gate, "_public", lambda host, _: host == "127.0.0.1")
    anywhere = Access(schemes=("http",))
    tif(flaky.folder / "internal.tif", PIXELS)
    port = flaky.url.rsplit(":", 1)[1]
    flaky.plan("/a.tif", forever=f"redirect:http://localhost:{port}/internal.tif?sig=SECRET")
    with pytest.raises(AssetReadError, match="'localhost' is on a loopback") as caught:
        read(asset(f"{flaky.url}/a.tif"), GRID, layer(), anywhere)
    assert "SECRET" not in str(caught.value)
    assert not [entry for entry in flaky.log if "internal" in entry["path"]]
    flaky.plan("/a.tif", forever="redirect:/internal.tif")
    found = read(asset(f"{flaky.url}/a.tif"), GRID, layer(), anywhere)
    np.testing.assert_array_equal(found, WANTED)
    close_all()
    flaky.plan("/a.tif", forever="redirect:/a.tif")
    with pytest.raises(AssetReadError, match="redirects more than"):
        read(asset(f"{flaky.url}/a.tif"), GRID, layer(), anywhere)


def test_a_bearer_token_stays_with_its_read(flaky: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    from rasterio._env import get_gdal_config

    monkeypatch.setenv("SOME_TOKEN", "SECRET")
    monkeypatch.setattr(
        gate, "gdal_env",
        _as_if_https(gate.gdal_env),
    )  # fmt: skip
    seen: list[Any] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.append(get_gdal_config("GDAL_HTTP_BEARER"))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        private = dataclasses.replace(WEB, auth="SOME_TOKEN")
        read(asset(f"{flaky.url}/a.tif"), GRID, layer(), private)
    finally:
        stop.set()
        watcher.join()
    assert {entry["auth"] for entry in flaky.log} == {"Bearer SECRET"}
    assert set(seen) == {None}


def _as_if_https(real: Callable[..., dict[str, str]]) -> Callable[..., dict[str, str]]:
    """Tokens go over https only; the test's server has no certificate."""
    return lambda access, location: real(access, location.replace("http:", "https:"))


def test_tokens_never_go_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "SECRET")
    private = dataclasses.replace(WEB, auth="SOME_TOKEN")
    assert "SECRET" not in gate.gdal_env(private, "http://127.0.0.1/a.tif").values()
    assert "SECRET" in gate.gdal_env(private, "https://127.0.0.1/a.tif").values()
