"""A small archive of GeoTIFFs with a plan over it; run as a script it writes it, slowly.

``python store_plans.py <archive> <store> <seconds per read> [file size limit]`` is the process that
the tests kill.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from cubes import registry
from cubes.store import build, ledger
from cubes.store import verbs as store
from cubes.types import Access, ArrayPlan, Asset, Axis, ClearPolicy, Layout, Plan

SIZE = 160
"""Pixels an edge of the cube: three patches of 64, the last one ragged."""
MARGIN = 40
"""Pixels by which the sources reach beyond the cube."""
STEPS = 5
LAYOUT = Layout(patch=64, steps=2)
BANDS = ("B02", "B04", "B08")
TIMES = tuple(f"2021-0{1 + t}-11T10:36:2{t}.024500" for t in range(STEPS))
NODATA_CORNER = 64 + MARGIN
"""Sources hold no reflectance above and left of this: the cube's first patch is empty."""


def _write(path: Path, pixels: np.ndarray, edge: float, nodata: float) -> None:
    origin = 600000 - MARGIN * 10, 5000000 + MARGIN * 10
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=1,
        dtype=pixels.dtype,
        crs="EPSG:32631",
        transform=Affine(edge, 0, origin[0], 0, -edge, origin[1]),
        nodata=nodata,
        tiled=True,
        blockxsize=64,
        blockysize=64,
        compress="deflate",
    ) as file:
        file.write(pixels, 1)


def sources(folder: Path) -> Path:
    """Write the archive's files (the same bytes each time) and return `folder`."""
    rng = np.random.default_rng(2)
    full = SIZE + 2 * MARGIN
    for t in range(STEPS):
        for band in BANDS:
            pixels = rng.integers(1, 9000, (full, full)).astype("uint16")
            pixels[:NODATA_CORNER, :NODATA_CORNER] = 0
            _write(folder / f"{t}_{band}.tif", pixels, 10, 0)
        scl = rng.choice([0, 3, 4, 5, 8], (full // 2, full // 2), p=[0.02, 0.01, 0.5, 0.45, 0.02])
        _write(folder / f"{t}_SCL.tif", scl.astype("uint8"), 20, 0)
        for pol in ("vv", "vh"):
            power = rng.gamma(4.4, 0.02, (full, full)).astype("float32")
            power[rng.random(power.shape) < 0.01] = np.nan
            _write(folder / f"{t}_{pol}.tif", power, 10, float("nan"))
    _write(folder / "dem.tif", rng.normal(80, 9, (full, full)).astype("float32"), 10, float("nan"))
    return folder


def _asset(folder: Path, name: str, nodata: float) -> tuple[Asset, ...]:
    href = str(folder / f"{name}.tif")
    item, _, key = name.partition("_")
    return (Asset(href=href, item=f"item-{item}", key=key or "data", nodata=nodata),)


def plan(folder: Path, *, dilate: int = 2, steps: int = STEPS) -> Plan:
    """Return a plan with S1, S2 with its clear mask, and elevation."""
    reflectance = registry.layer("s2/reflectance").pick(BANDS)
    backscatter = registry.layer("s1/backscatter")
    nan = float("nan")
    s2 = [{b: _asset(folder, f"{t}_{b}", 0) for b in BANDS} for t in range(steps)]
    scl = [{"": _asset(folder, f"{t}_SCL", 0)} for t in range(steps)]
    s1 = [{p: _asset(folder, f"{t}_{p}", nan) for p in ("vv", "vh")} for t in range(steps)]
    columns: dict[str, tuple[Any, ...]] = {
        "time": TIMES[:steps],
        "items": tuple(f"item-{t}" for t in range(steps)),
    }
    return Plan(
        geobox=GeoBox((SIZE, SIZE), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32631"),
        axes=(
            Axis(
                group="s1",
                dim="time",
                coords={
                    **columns,
                    "relative_orbit": tuple(range(10, 10 + steps)),
                    "orbit_state": ("ascending",) * steps,
                    "platform": ("sentinel-1a",) * steps,
                },
            ),
            Axis(
                group="s2",
                dim="time",
                coords={
                    **columns,
                    "platform": ("sentinel-2a",) * (steps - 1) + (None,),
                    "cloud_cover": (2.5,) * (steps - 1) + (None,),
                },
            ),
        ),
        arrays=(
            ArrayPlan(layer=backscatter, steps=tuple(s1), attrs={"calibration": "gamma0_rtc"}),
            ArrayPlan(layer=reflectance, steps=tuple(s2)),
            ArrayPlan(layer=registry.layer("s2/scl"), steps=tuple(scl)),
            ArrayPlan(layer=registry.layer("s2/clear"), steps=()),
            ArrayPlan(
                layer=registry.layer("terrain/elevation"),
                steps=({"": _asset(folder, "dem", nan)},),
            ),
        ),
        clear=ClearPolicy(dilate=dilate),
        access=Access(schemes=("file",), roots=(str(folder),)),
        attrs={"aoi": "corner", "time": ["2021-01-01", "2021-05-31"]},
    )


def pixels(folder: Path, name: str) -> np.ndarray:
    """Return the cube's window of a 10 m source, read with nothing but rasterio."""
    with rasterio.open(folder / f"{name}.tif") as file:
        whole: np.ndarray = file.read(1)
    return whole[MARGIN : MARGIN + SIZE, MARGIN : MARGIN + SIZE]


def files(path: Path) -> dict[str, bytes]:
    """Return every object of a store that is not its ledger."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and ledger.FOLDER not in p.parts
    }


def child_of_ours(archive: Path, path: Path, wait: float, *more: str) -> dict[str, Any]:
    """Return the arguments that start the process which writes the archive's cube, slowly."""
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    return {
        "args": [sys.executable, __file__, str(archive), str(path), str(wait), *more],
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [before])])},
        "text": True,
    }


def litter(path: Path) -> list[Path]:
    return list(path.rglob("*.partial"))


def main() -> None:
    """Write the archive's cube, waiting before each read."""
    folder, target, wait = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    if len(sys.argv) > 4:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
    quick = build._read_block

    def slow(*args: Any) -> Any:
        time.sleep(wait)
        return quick(*args)

    build._read_block = slow
    sys.stdout.write(str(store.write(plan(folder), target, layout=LAYOUT)))


if __name__ == "__main__":
    main()
