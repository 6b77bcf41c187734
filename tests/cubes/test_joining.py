"""Layers of several catalogues as one cube; Indigo's row and its traps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import cubes
from cubes.files import geotiff, rtc
from cubes.types import Access, CubeError

BOX = GeoBox((64, 64), Affine(20, 0, 419_960, 0, -20, 2_890_040), "EPSG:32617")
AREA = "stactools-packages+sentinel1/examples/rtc/sentinel1-rtc-aws/2020"


def indigo(real: Path, folder: Path, days: tuple[int, ...] = (3, 15)) -> list[dict[str, Any]]:
    """Return real items of Indigo, each with small files in place of its own."""
    name = "S1A_20200103_17RMJ_ASC"
    body = json.loads((real / "items" / AREA / name / f"{name}.json").read_text())
    out = []
    for day in days:
        item = json.loads(json.dumps(body).replace("2020-01-03", f"2020-01-{day:02d}"))
        item["id"] = name.replace("0103", f"01{day:02d}")
        for key, value, dtype in (("gamma0_vv", 0.1, "float32"), ("gamma0_vh", 0.02, "float32"),
                                  ("incidence", 3850, "uint16")):  # fmt: skip
            path = folder / f"{item['id']}_{key}.tif"
            data = np.full((1, *BOX.shape), value, dtype)
            data[:, :, :8] = 0  # outside the swath, and no tag in the file says so
            with rasterio.open(
                path, "w", driver="GTiff", height=64, width=64, count=1, dtype=dtype,
                crs=str(BOX.crs), transform=BOX.transform,
            ) as file:  # fmt: skip
                file.write(data)
                if key == "incidence":
                    file.scales = (100.0,)  # as the real ones say; STAC's 0.01 is right
            item["assets"][key]["href"] = str(path)
        out.append(item)
    return out


def opened(real: Path, folder: Path, **options: Any) -> xr.DataTree:
    row = replace(cubes.catalog("indigo"), access=Access(schemes=("file",), roots=(str(folder),)))
    return cubes.open_aoi(
        cubes.grid.lonlat_bounds(BOX), "2020-01",
        ["s1/backscatter", "s1/incidence"], catalog=row, items=indigo(real, folder), grid=BOX,
        **options,
    )  # fmt: skip


@pytest.mark.real
def test_indigo_with_its_traps(real: Path, tmp_path: Path) -> None:
    s1 = opened(real, tmp_path)["s1"]
    assert s1.sizes["time"] == 2
    assert s1.track.to_numpy().tolist() == ["121A"]
    vv = s1.backscatter.sel(pol="vv").to_numpy()
    assert np.isnan(vv[:, :, :8]).all()
    np.testing.assert_allclose(vv[:, :, 8:], -10, atol=1e-4)
    angle = s1.incidence.to_numpy()
    assert np.isnan(angle[..., :8]).all()
    np.testing.assert_allclose(angle[..., 8:], 38.5, atol=1e-4)
    assert s1.backscatter.attrs["calibration"] == "gamma0_rtc"
    assert s1.backscatter.attrs["equivalent_looks"] == 4.3


STATIC = "OPERA_L2_RTC-S1-STATIC_T{track}-292318-IW1_20140403_S1A_30_v1.0_{layer}.tif"


def static(folder: Path, tracks: tuple[str, ...]) -> None:
    folder.mkdir()
    for track in tracks:
        for layer, value in (("local_incidence_angle", 41.0), ("mask", 0)):
            data = np.full((1, *BOX.shape), value, "float32" if value else "uint8")
            geotiff.write_tif(
                folder / STATIC.format(track=track, layer=layer), data, BOX,
                nodata=float("nan") if value else 255,
                tags={"ORBIT_PASS_DIRECTION": "Ascending"},
            )  # fmt: skip


@pytest.mark.real
def test_incidence_of_another_catalogue_goes_beside_backscatter(real: Path, tmp_path: Path) -> None:
    whole = opened(real, tmp_path)
    radar = whole.copy()
    radar["s1"] = whole["s1"].to_dataset().drop_dims("track")
    static(tmp_path / "static", ("121", "050"))
    geometry = rtc.open_rtc(tmp_path / "static", geobox=BOX)
    assert set(geometry["s1"].data_vars) == {"incidence", "layover_shadow"}
    assert geometry["s1"].track.to_numpy().tolist() == ["121A", "50A"]
    both = cubes.join(radar, geometry)
    cubes.check(both)
    s1 = both["s1"]
    assert s1.track.to_numpy().tolist() == ["121A"]  # the tracks that there are dates of
    assert (s1.incidence == 41).all()
    xr.testing.assert_equal(s1.backscatter, radar["s1"].backscatter)
    assert both.attrs["catalog"] == "indigo, opera-rtc-files"
    cubes.write(both, tmp_path / "both.zarr")
    stored = cubes.open(tmp_path / "both.zarr")
    np.testing.assert_allclose(stored["s1"].incidence, 41, atol=0.01)
    with pytest.raises(CubeError, match="layer s1/incidence stands in two of the cubes"):
        cubes.join(whole, geometry)
    static(tmp_path / "other", ("050",))
    with pytest.raises(CubeError, match=r"track 121A has dates and no static layers.*50A"):
        cubes.join(radar, rtc.open_rtc(tmp_path / "other", geobox=BOX))
    shifted = GeoBox(BOX.shape, BOX.affine * Affine.translation(1, 0), BOX.crs)
    with pytest.raises(CubeError, match=r"lies on two grids \(they differ along x\)"):
        cubes.join(radar, rtc.open_rtc(tmp_path / "static", geobox=shifted))
    half = radar.copy()
    half["s1"] = radar["s1"].to_dataset().isel(time=[0]).rename(backscatter="other")
    with pytest.raises(CubeError, match="2 labels along time in one cube and 1 others"):
        cubes.join(radar, half)
