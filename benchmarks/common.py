"""What benchmarks share: synthetic archives, measuring, tables that say where they come from."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cubes.types import Access, Catalog, Product

THREADS = max(2, os.cpu_count() or 2)
"""Worker threads of everything that is compared: what `cubes.write` takes by itself."""

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
COARSE = ("B01", "B05", "B06", "B07", "B8A", "B09", "B11", "B12")
"""Bands published at 20 m here (B01 and B09 are 60 m in reality; open counts tasks, not pixels)."""

CRS = "EPSG:32631"
ORIGIN = (499_200, 5_602_560)
"""Left and top of the cubes, metres: a corner of the 2,560 m lattice."""

SHIFT = (1_730, 2_410)
"""Metres from a tile's corner to the cube's: on the 10 m grid, never on that of 512-px blocks."""


# --------------------------------------------------------------------------------- archives


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """Files on this disk and the STAC items that describe them."""

    kind: str
    """``optical``: Sentinel-2, ten bands at 10 and 20 m, on the cube's zone; ``zone``: the same in
    the neighbouring UTM zone; ``radar``: Sentinel-1 VV and VH, linear power."""
    items: tuple[Mapping[str, Any], ...]
    """STAC items, absolute hrefs."""
    edge: int
    """Rows and columns of the cube that lies inside all of them."""
    folder: str

    @property
    def assets(self) -> tuple[str, ...]:
        """Keys of the assets, in the order of the channels of the cube."""
        return ("vv", "vh") if self.kind == "radar" else BANDS

    @property
    def layer(self) -> str:
        """Name of the layer that the archive fills."""
        return "s1/backscatter" if self.kind == "radar" else "s2/reflectance"

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(p.stat().st_size for p in Path(self.folder).glob("*.tif"))

    def geobox(self) -> Any:
        """Return the cube's grid."""
        return geobox(self.edge)

    def catalog(self) -> Catalog:
        """Return the catalogue row under which `cubes` reads this folder."""
        return catalog(self.folder)

    def request(self) -> Any:
        """Return the request for the cube, items in hand."""
        import cubes

        return cubes.Request.of(
            lonlat(self.geobox()),
            "2023",
            [self.layer],
            catalog=self.catalog(),
            grid=self.geobox(),
            items=self.items,
        )

    def pystac(self) -> list[Any]:
        """Return the items as the rivals take them."""
        return as_pystac(self.items)


def geobox(edge: int) -> Any:
    """Return a grid of `edge` x `edge` pixels of 10 m on the lattice."""
    from odc.geo.geobox import GeoBox

    left, top = ORIGIN
    return GeoBox.from_bbox((left, top - 10 * edge, left + 10 * edge, top), CRS, resolution=10)


def lonlat(box: Any) -> tuple[float, float, float, float]:
    """Return west, south, east, north of a grid, degrees, a little inside of it."""
    w, s, e, n = box.boundingbox.buffered(-20).to_crs("EPSG:4326").bbox
    return float(w), float(s), float(e), float(n)


def catalog(folder: str) -> Catalog:
    """Return a catalogue row for the archives of this module under `folder`."""
    return Catalog(
        name="benchmark",
        url=str(Path(folder) / "catalog.json"),
        kind="static",
        access=Access(schemes=("file",), roots=(str(folder),)),
        products={
            "s2/reflectance": Product(
                collection="sentinel-2-l2a",
                assets={b: b for b in ("B01", "B09", *BANDS)},
                nodata=0,
                offset_rule="baseline",
            ),
            "s1/backscatter": Product(
                collection="sentinel-1-rtc",
                assets={"vv": "vv", "vh": "vh"},
                nodata=-32768,
                zero="nodata",
                calibration="gamma0_rtc",
            ),
        },
    )


def as_pystac(items: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return STAC items as pystac objects."""
    import pystac

    return [pystac.Item.from_dict(json.loads(json.dumps(i))) for i in items]


def metadata(kind: str, dates: int, *, folder: str, edge: int, bands: Sequence[str]) -> list[Any]:
    """Return STAC items of an archive, one a day; makes no file.

    Parameters
    ----------
    kind : {"optical", "zone", "radar"}
        See `Archive.kind`.
    dates : int
        Number of items.
    folder : str
        Where hrefs point to.
    edge : int
        Rows and columns of the cube that the tiles cover.
    bands : sequence of str
        Asset keys.
    """
    crs, left, top, size = tile(kind, edge)
    box = _tile_bounds(crs, left, top, size)
    out = []
    for n in range(dates):
        day = np.datetime64("2023-01-01T10:50:31") + np.timedelta64(n * 5 if dates < 60 else n, "D")
        stamp = str(day).replace("-", "").replace(":", "")
        name = f"{'S1A' if kind == 'radar' else 'S2A'}_{stamp}_R051_T31UES_{n:04d}"
        assets = {}
        for band in bands:
            edge_m = 20 if band in COARSE else 10
            assets[band] = {
                "href": str(Path(folder) / f"{name}_{band}.tif"),
                "type": "image/tiff; application=geotiff; profile=cloud-optimized",
                "roles": ["data"],
                "proj:shape": [size * 10 // edge_m, size * 10 // edge_m],
                "proj:transform": [edge_m, 0, left, 0, -edge_m, top],
            }
        out.append(_item(kind, name, f"{day}Z", crs, box, assets))
    return out


def tile(kind: str, edge: int) -> tuple[str, int, int, int]:
    """Return CRS, left, top (metres) and edge (10 m pixels) of an archive's tiles."""
    if kind == "zone":  # the zone to the east: turned by 4.6 degrees, 6 degrees off its meridian
        box = geobox(edge).extent.to_crs("EPSG:32632").boundingbox
        left, top = (round(v / 100) * 100 for v in (box.left - SHIFT[0], box.top + SHIFT[1]))
        return "EPSG:32632", left, top, -(-round(max(box.span_x, box.span_y) / 10 + 400) // 2) * 2
    return CRS, ORIGIN[0] - SHIFT[0], ORIGIN[1] + SHIFT[1], edge + 512


def _tile_bounds(crs: str, left: int, top: int, size: int) -> tuple[float, float, float, float]:
    from pyproj import Transformer

    to = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    return tuple(to.transform_bounds(left, top - 10 * size, left + 10 * size, top))


def _item(
    kind: str,
    name: str,
    when: str,
    crs: str,
    box: tuple[float, float, float, float],
    assets: Mapping[str, Any],
) -> dict[str, Any]:
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    properties = {
        "datetime": when,
        "proj:code": crs,
        "proj:epsg": int(crs.split(":")[1]),  # stackstac knows no other key
        "platform": "SENTINEL-1A" if kind == "radar" else "Sentinel-2A",
        "sat:relative_orbit": 51,
        "sat:orbit_state": "descending",
    }
    if kind == "radar":
        properties["sat:absolute_orbit"] = 40_000 + int(name[-4:])
    else:
        properties |= {
            "s2:processing_baseline": "05.09",
            "s2:mgrs_tile": "31UES",
            "s2:datatake_id": f"GS2A_{name[4:19]}_{name[-4:]}_N05.09",
            "eo:cloud_cover": 12.5,
        }
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [
            "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
        ],
        "id": name,
        "collection": "sentinel-1-rtc" if kind == "radar" else "sentinel-2-l2a",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": list(box),
        "properties": properties,
        "assets": dict(assets),
        "links": [],
    }


def archive(folder: Path, kind: str, *, edge: int = 1024, dates: int = 8) -> Archive:
    """Return an archive of COGs, written to `folder` unless it is already there.

    Deflate with a predictor, 512-px blocks and overviews, as Planetary Computer's; smooth fields
    under noise that leaves about one byte in two of the 16-bit bands, as real ones do. Level 1
    writes in a third of the time of level 6 and is read at the same speed.
    """
    folder = folder / f"{kind}-{edge}-{dates}"
    bands = ("vv", "vh") if kind == "radar" else BANDS
    items = metadata(kind, dates, folder=str(folder), edge=edge, bands=bands)
    made = Archive(kind=kind, items=tuple(items), edge=edge, folder=str(folder))
    done = folder / "done"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        crs, left, top, size = tile(kind, edge)
        base = _field(size)
        jobs = [
            (item["assets"][band]["href"], crs, (left, top), base, (n, b, kind))
            for n, item in enumerate(items)
            for b, band in enumerate(bands)
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda job: _write(*job), jobs):
                pass
        done.touch()
    return made


def _field(size: int) -> np.ndarray:
    """Return (y, x) float32 like a landscape: smooth, unit variance."""
    from scipy.ndimage import gaussian_filter

    rough = np.random.default_rng(7).normal(size=(size, size)).astype(np.float32)
    field = gaussian_filter(rough, 6, mode="wrap")
    return np.asarray(field / field.std(), np.float32)


def _write(
    href: str,
    crs: str,
    corner: tuple[int, int],
    base: np.ndarray,
    which: tuple[int, int, str],
) -> None:
    import rasterio
    from rasterio.transform import Affine

    date, band, kind = which
    rng = np.random.default_rng([date, band])
    edge = 20 if Path(href).stem.split("_")[-1] in COARSE else 10
    base = np.roll(base, 37 * date, axis=1)[:: edge // 10, :: edge // 10]
    noise = rng.standard_normal(base.shape, dtype=np.float32)
    if kind == "radar":
        # speckle of about 4.4 looks: the log of a gamma variate is nearly normal at that many
        pixels = np.exp(-2.3 - 1.4 * band + 0.5 * base + 0.48 * noise).astype(np.float32)
        nodata: float = -32768
    else:
        level = 1300 + 250 * band
        pixels = np.clip(level + 250 * base + 60 * noise, 1, 65535).astype(np.uint16)
        nodata = 0
    with rasterio.open(
        href, "w", driver="COG", height=base.shape[0], width=base.shape[1], count=1,
        dtype=pixels.dtype.name, crs=crs, nodata=nodata, blocksize=512, compress="deflate",
        level=1, predictor="yes", num_threads=1,
        transform=Affine(edge, 0, corner[0], 0, -edge, corner[1]),
    ) as file:  # fmt: skip
        file.write(pixels, 1)


# ----------------------------------------------------------------------------------- cubes


def cube(edge: int, s1: int, s2: int, *, bands: Sequence[str] = BANDS) -> Any:
    """Return a cube in memory: backscatter, reflectance and scene classification with clouds.

    Parameters
    ----------
    edge : int
        Rows and columns.
    s1, s2 : int
        Dates of each sensor.
    bands : sequence of str
        Of Sentinel-2.

    Returns
    -------
    DataTree
        Physical units, as `cubes.write` takes it.
    """
    import xarray as xr
    from odc.geo.xr import xr_coords

    from cubes import registry

    rng = np.random.default_rng(3)
    base = _field(edge)
    grid = xr_coords(geobox(edge))

    def noisy(shape: tuple[int, ...]) -> np.ndarray:
        return base + rng.standard_normal((*shape, edge, edge), dtype=np.float32)

    def group(name: str, steps: int, arrays: Mapping[str, tuple[Any, np.ndarray]]) -> Any:
        days = np.datetime64("2023-01-01", "ns") + np.arange(steps) * np.timedelta64(3, "D")
        coords: dict[str, Any] = {
            "time": days,
            "platform": ("time", ["SENTINEL-1A" if name == "s1" else "Sentinel-2A"] * steps),
            "relative_orbit": ("time", [51] * steps),
            "orbit_state": ("time", ["descending"] * steps),
        }
        coords |= {"pol": ["vv", "vh"]} if name == "s1" else {"band": list(bands)}
        return xr.Dataset(dict(arrays), coords={**grid, **coords})

    level = np.array([-10, -17], np.float32)[:, None, None]
    power = (level + 2 * noisy((s1, 2))).astype(np.float32)
    attrs = {"units": "dB", "calibration": "gamma0_rtc"}
    radar = {"backscatter": (("time", "pol", "y", "x"), power, attrs)}
    values = (0.15 + 0.03 * noisy((s2, len(bands)))).clip(0.01, 1).astype(np.float32)
    cloudy = noisy((s2,)) > 1.5
    scl = np.where(cloudy, 9, 4).astype(registry.layer("s2/scl").dtype)
    optical = {
        "reflectance": (("time", "band", "y", "x"), values, {"units": "1"}),
        "scl": (("time", "y", "x"), scl, {"units": "1"}),
        "clear": (("time", "y", "x"), ~cloudy, {"units": "1"}),
    }
    groups = {"/": xr.Dataset(coords=grid), "s1": group("s1", s1, radar),
              "s2": group("s2", s2, optical)}  # fmt: skip
    return xr.DataTree.from_dict(groups)


# ------------------------------------------------------------------------------ measuring


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the rivals' warnings out of the tables (of their own old calls, nothing of ours)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def seconds(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def rounds(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return seconds of each call, `repeats` times, in turns, so that noise meets all alike."""
    out: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(repeats):
        order = list(calls.items())
        for name, call in order if n % 2 == 0 else reversed(order):
            out[name].append(seconds(call))
    return out


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median of paired ratios ``slow / fast`` of runs taken in turns."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def machine() -> str:
    """Return one line: processor, cores, memory, system, Python."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [v for v in info.read_text().splitlines() if v.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    memory = ""
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        memory = f", {gib:.0f} GiB"
    cores = os.cpu_count()
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{model}, {cores} cores{memory}, {system}"


def versions(*names: str) -> str:
    """Return the installed versions of packages, in one line."""
    out = []
    for name in names:
        try:
            out.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            out.append(f"{name} (absent)")
    return ", ".join(out)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], *packages: str) -> str:
    """Return a Markdown table with the machine and the versions it was measured with."""
    cells = [[_cell(v) for v in row] for row in rows]
    widths = [max(len(r[n]) for r in [list(head), *cells]) for n in range(len(head))]

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(v.ljust(w) for v, w in zip(values, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    body = [line(list(head)), rule, *(line(r) for r in cells)]
    return "\n".join([title, "", *body, "", f"{machine()}; {versions(*packages)}", ""])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(text: str) -> None:
    """Write a line to standard output at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
