"""Bursts of one pass laid over each other, and files of one acquisition processed twice."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import cubes
from cubes.files import cslc
from cubes.radar import insar
from cubes.types import CubeError

pytest.importorskip("h5py")
_spec = importlib.util.spec_from_file_location(
    "cslc_files", Path(__file__).with_name("test_files.py")
)
assert _spec is not None
assert _spec.loader is not None
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

DAYS = ("2022-12-16 16:16:51", "2022-12-28 16:16:51")
ONE, TWO = "t087_185683_iw2", "t087_185684_iw2"
BOX = GeoBox((200, 200), Affine(10, 0, 157_320, 0, -10, 2_172_300), "EPSG:32605")


def overlapping(folder: Path, coherences: tuple[float, float]) -> list[Path]:
    """Write two bursts of 100 and 120 rows that share rows 80 to 100, pure NaN elsewhere."""
    paths = []
    for burst, true, rows in zip(
        (ONE, TWO), coherences, (slice(0, 100), slice(80, 200)), strict=True
    ):
        for day, image in zip(DAYS, made.speckle((200, 400), true, 0.5), strict=True):
            seen = np.full_like(image, np.nan)
            seen[rows] = image[rows]
            path = folder / f"{burst}_{day[:10]}.h5"
            paths.append(made.write_cslc(path, seen, day, burst_id=burst.encode()))
    return paths


@pytest.mark.parametrize("swap", [False, True])
def test_the_rim_of_a_burst_does_not_cover_another_s_inside(
    tmp_path: Path, swap: bool, figure
) -> None:
    """Noise in one burst and coherence 0.9 in the other say whose number stands where."""
    true = (0.9, 0.0) if swap else (0.0, 0.9)
    group = cslc.open_pairs(overlapping(tmp_path, true), grid=BOX)
    found = group.coherence[0, 0, :, 10:-10].load()
    assert group.coherence.attrs["bursts"] == f"{ONE}, {TWO}"
    assert group.phase.attrs["bursts"] == f"{ONE}, {TWO}"
    assert "superseded" not in group.coherence.attrs
    assert np.isfinite(found).all()
    rows = found.mean("x").to_numpy()
    first, second = (float(insar.expected_coherence(t, 50)) for t in true)
    # inside of both the first stands; at its own rim, rows 96 to 99, the second's inside
    np.testing.assert_allclose(rows[5:90], first, atol=0.05)
    np.testing.assert_allclose(rows[96:195], second, atol=0.05)
    figure("row 98, the rim of the first burst, off the second's", rows[98] - second, "0.05")
    figure("row 82, the rim of the second burst, off the first's", rows[82] - first, "0.05")
    tree = xr.DataTree.from_dict({"insar": group})
    cubes.check(tree)
    small = cslc.open_pairs(overlapping(tmp_path, true), grid=BOX).chunk(y=33, x=41)
    np.testing.assert_array_equal(small.coherence[0, 0, :, 10:-10], found)


def test_of_an_acquisition_processed_twice_the_newest_is_taken(tmp_path: Path) -> None:
    images = made.speckle((128, 160), 0.9, 0.3)
    old = [
        made.write_cslc(tmp_path / f"{n}_v1.9.h5", image, day, product_version=b"1.9")
        for n, (image, day) in enumerate(zip(images, DAYS, strict=True))
    ]
    # 1.10 is newer than 1.9; reprocessing moves the start by microseconds
    new = made.write_cslc(
        tmp_path / "1_v1.10.h5", images[0], DAYS[1] + ".000013", product_version=b"1.10"
    )
    for paths in ([*old, new], [new, *old]):
        group = cslc.open_pairs(paths)
        assert group["items"].to_numpy().tolist() in (["0_v1.9,1_v1.10"], ["1_v1.10,0_v1.9"])
        assert group.coherence.attrs["superseded"] == "1_v1.9"
        np.testing.assert_allclose(group.coherence[0, 0, 5:-5, 5:-5], 1, atol=1e-5)
    twin = made.write_cslc(tmp_path / "1_twin.h5", images[1], DAYS[1], product_version=b"1.9")
    with pytest.raises(CubeError, match=r"1_v1\.9 and 1_twin are one acquisition.*leave one out"):
        cslc.open_pairs([*old, twin])
    with made.h5py.File(twin, "r+") as file:
        file["identification/processing_date_time"] = b"2024-05-04 18:50:04.213154"
    assert cslc.open_pairs([*old, twin]).phase.attrs["superseded"] == "1_v1.9"
