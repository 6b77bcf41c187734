"""What cubes computes beside what others computed of the same ground, in physical units.

``python -m benchmarks.agreement`` prints the table of docs/cross-check.md; it needs the real data
of ``DEEPSENTINEL_REAL``. Each row has a reference that shares no code with ours.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr

import cubes
from benchmarks import common
from cubes.files import cslc
from cubes.radar import geometry, insar
from cubes.radar.geometry import Look

Array = npt.NDArray[np.float64]
ROWS = Path(__file__).resolve().parent.parent / "tests" / "real"


class Row(NamedTuple):
    """One comparison: ours minus theirs."""

    what: str
    reference: str
    unit: str
    median: float
    p95: float
    """95th percentile of the absolute difference."""
    correlation: float
    n: int


def compared(what: str, reference: str, unit: str, ours: Any, theirs: Any) -> Row:
    """Return the row of two arrays of the same pixels; what is NaN in either is left out."""
    a, b = (np.asarray(v, np.float64).ravel() for v in (ours, theirs))
    good = np.isfinite(a) & np.isfinite(b)
    a, b = a[good], b[good]
    off = a - b
    r = float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")
    return Row(
        what, reference, unit, float(np.median(off)), float(np.percentile(abs(off), 95)), r, len(a)
    )


# ------------------------------------------------------------------------------------- geometry


class Orbit:
    """State vectors of a pass, earth-fixed, in seconds since the first."""

    def __init__(self, seconds: Array, position: Array, velocity: Array) -> None:
        from scipy.interpolate import CubicHermiteSpline

        self.span = float(seconds[0]), float(seconds[-1])
        self.position = CubicHermiteSpline(seconds, position, velocity)
        self.velocity = self.position.derivative()

    def line_of_sight(self, ground: Array) -> Array:
        """Return unit vectors (n, 3) from ground points to where their Doppler was zero."""
        t = np.full(len(ground), sum(self.span) / 2)
        for _ in range(30):
            away = self.position(t) - ground
            v = self.velocity(t)
            step = (away * v).sum(1) / (v * v).sum(1)
            t = np.clip(t - step, *self.span)
            if abs(step).max() < 1e-7:
                break
        away = self.position(t) - ground
        return np.asarray(away / np.linalg.norm(away, axis=1, keepdims=True))


def frame(lon: Array, lat: Array) -> tuple[Array, Array, Array]:
    """Return unit vectors east, north and up of the ellipsoid, each (n, 3)."""
    lam, phi = np.deg2rad(lon), np.deg2rad(lat)
    zero = np.zeros_like(lam)
    east = np.stack([-np.sin(lam), np.cos(lam), zero], 1)
    up = np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], 1)
    return east, np.cross(up, east), up


def ecef(lon: Array, lat: Array, height: Array) -> Array:
    """Return earth-fixed coordinates (n, 3) in metres."""
    from pyproj import Transformer

    there = Transformer.from_crs("EPSG:4979", "EPSG:4978", always_xy=True)
    return np.stack(there.transform(lon, lat, height), 1)


def opera(real: Path) -> list[Row]:
    """Return incidence and look azimuth by OPERA's look vectors beside the orbit of the product."""
    folder = real / "opera-cslc"
    state = cslc.open_cslc_orbit(next(folder.glob("OPERA_L2_CSLC-S1_T*.h5")))
    times = state.time.to_numpy()
    seconds = (times - times[0]) / np.timedelta64(1, "s")
    orbit = Orbit(seconds, state.position.to_numpy(), state.velocity.to_numpy())
    static = cslc.open_cslc_static(next(folder.glob("*STATIC*.h5")))
    part = static.isel(y=slice(None, None, 40), x=slice(None, None, 80)).load()
    look = Look.from_opera(part.los_east, part.los_north)
    x, y = (v.ravel() for v in np.meshgrid(part.x, part.y))
    from pyproj import Transformer

    crs = part.odc.crs or static.odc.crs
    lon, lat = Transformer.from_crs(str(crs), "EPSG:4326", always_xy=True).transform(x, y)
    sight = orbit.line_of_sight(ecef(lon, lat, np.zeros_like(lon)))
    east, north, up = frame(lon, lat)
    theirs = np.rad2deg(np.arccos((sight * up).sum(1)))
    turn = np.rad2deg(np.arctan2((sight * east).sum(1), (sight * north).sum(1)))
    ours = np.rad2deg(np.arctan2(np.asarray(look.east), np.asarray(look.north))).ravel()
    reference = "zero-Doppler solution on the product's orbit, on the ellipsoid"
    return [
        compared("incidence from OPERA STATIC look vectors", reference, "degrees",
                 np.asarray(look.incidence), theirs),
        compared("look azimuth from OPERA STATIC", reference, "degrees", ours, turn),
    ]  # fmt: skip


def annotated(path: Path) -> tuple[float, Array, Orbit]:
    """Return heading, (lon, lat, incidence) of the grid, and orbit of a Sentinel-1 annotation."""
    root = ET.parse(path).getroot()
    heading = float(root.findtext(".//platformHeading") or "nan")
    names = ("longitude", "latitude", "incidenceAngle")
    grid = np.array(
        [
            [float(p.findtext(k) or "nan") for k in names]
            for p in root.findall(".//geolocationGridPoint")
        ]
    )
    states = root.findall(".//orbitList/orbit")
    times = pd.to_datetime([s.findtext("time") for s in states])
    axes = ("x", "y", "z")
    position, velocity = (
        np.array([[float(s.findtext(f"{kind}/{a}") or "nan") for a in axes] for s in states])
        for kind in ("position", "velocity")
    )
    seconds = np.asarray((times - times[0]).total_seconds(), np.float64)
    return heading, grid, Orbit(seconds, position, velocity)


def normals(dem: xr.DataArray, lon: Array, lat: Array) -> Array:
    """Return unit normals (n, 3) of a surface as cross products of its earth-fixed neighbours."""
    height = dem.to_numpy().astype(np.float64)
    points = ecef(lon.ravel(), lat.ravel(), height.ravel()).reshape(*height.shape, 3)
    right = np.gradient(points, axis=1)
    down = np.gradient(points, axis=0)
    normal = np.cross(down, right)
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def morocco(real: Path) -> list[Row]:
    """Return local incidence on a DEM beside earth-fixed vectors, and coherence of the product."""
    import rasterio
    from pyproj import Transformer
    from scipy.interpolate import griddata

    folder = real / "insar-morocco"
    heading, grid, orbit = annotated(sorted(folder.glob("*.xml"))[0])

    def read(name: str) -> xr.DataArray:
        with rasterio.open(folder / name) as source:
            box = GeoBox(source.shape, source.transform, source.crs.to_epsg())
            return wrap_xr(source.read(1).astype("float32"), box, nodata=np.nan)

    dem = read("dem.tif")
    box = dem.odc.geobox.to_crs("EPSG:32629", resolution=20)
    dem = dem.odc.reproject(box, resampling="bilinear", dst_nodata=np.nan)
    x, y = np.meshgrid(dem.x, dem.y)
    lon, lat = Transformer.from_crs("EPSG:32629", "EPSG:4326", always_xy=True).transform(x, y)
    inside = np.isfinite(dem.to_numpy())
    theta = griddata(grid[:, :2], grid[:, 2], (lon, lat))
    ours = geometry.local_incidence(dem, Look.from_angles(theta, heading), smooth=0.0).to_numpy()
    filled = dem.fillna(float(dem.median()))
    ground = ecef(lon.ravel(), lat.ravel(), filled.to_numpy().ravel().astype(np.float64))
    sight = orbit.line_of_sight(ground)
    facing = (sight * normals(filled, lon, lat).reshape(-1, 3)).sum(1)
    theirs = np.where(inside.ravel(), np.rad2deg(np.arccos(np.clip(facing, -1, 1))), np.nan)
    flat = np.rad2deg(np.arccos((sight * frame(lon.ravel(), lat.ravel())[2]).sum(1)))
    rows = [
        compared("ellipsoidal incidence from the annotation grid", "zero-Doppler on its orbit",
                 "degrees", np.where(inside, theta, np.nan), flat),
        compared("local incidence, heading + annotation on a DEM",
                 "orbit and surface normals in earth-fixed vectors", "degrees", ours, theirs),
    ]  # fmt: skip
    prm, sec, phase, product = (
        read(n).to_numpy() for n in ("amp_prm_vv.tif", "amp_sec_vv.tif", "phi_vv.tif", "coh_vv.tif")
    )
    seen = (prm > 0) & (sec > 0) & np.isfinite(phase)
    place = read("coh_vv.tif").rename(latitude="y", longitude="x")
    a = place.copy(data=np.where(seen, prm, np.nan).astype("complex64"))
    b = place.copy(data=np.where(seen, sec * np.exp(-1j * phase), np.nan).astype("complex64"))
    found = insar.coherence(a, b, window=(3, 3)).coherence.to_numpy()
    rows.append(
        compared("coherence of its multilooked amplitudes and phase, 3 x 3",
                 "the product's coherence (of full-resolution SLCs)", "1",
                 np.where(seen, found, np.nan), np.where(seen, product, np.nan))
    )  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------- reflectance


def reflectance(real: Path) -> list[Row]:
    """Return reflectance of the Flanders catalogue beside odc-stac's own reading of it."""
    import odc.stac
    import pystac

    os.environ["DEEPSENTINEL_REAL"] = str(real)
    box = GeoBox((64, 64), Affine(10, 0, 501360, 0, -10, 5629680), "EPSG:32631")
    layers = ("s2/reflectance", "s1/backscatter")
    tree = cubes.open_aoi(
        (3.0194, 50.8132, 3.0283, 50.8188), "2018-04/2018-06", layers,
        catalog=ROWS / "flanders.toml", grid=box,
    )  # fmt: skip
    rows = []
    for group, collection, channel, nodata in (
        ("s2", "sentinel-2-l2a", "band", 0),
        ("s1", "sentinel-1-sigma0", "pol", -32768),
    ):
        ours = tree[group].to_dataset()
        folder = real / "flanders" / collection
        found = [pystac.Item.from_file(str(p)) for p in sorted(folder.glob("*/*.json"))]
        names = {str(name) for name in ours["items"].to_numpy()}
        items = [i for i in found if i.id in names]
        bands = [str(b) for b in ours[channel].to_numpy()]
        config = {"*": {"assets": {"*": {"nodata": nodata}}}}
        theirs = odc.stac.load(
            items, bands=bands, geobox=box, resampling="nearest", stac_cfg=config, groupby="id"
        )
        theirs = theirs.sortby("time")
        stack = np.stack([theirs[b].to_numpy() for b in bands], 1).astype(np.float64)
        if group == "s2":
            stack = np.where(
                stack == 0, np.nan, stack * 1e-4
            )  # all of an older baseline: no offset
            rows.append(compared("reflectance, ten bands", "odc-stac's own reading, x 1e-4",
                                 "1", ours["reflectance"], stack))  # fmt: skip
        else:
            level = 10 * np.log10(np.where(stack == -32768, np.nan, stack))
            rows.append(compared("backscatter, VV and VH", "odc-stac's own reading, 10 log10",
                                 "dB", ours["backscatter"], level))  # fmt: skip
    return rows


PARTS: Sequence[Callable[[Path], list[Row]]] = (opera, morocco, reflectance)


def rows(real: Path) -> list[Row]:
    """Return every comparison."""
    return [row for part in PARTS for row in part(real)]


def main() -> None:
    """Print the table."""
    real = Path(os.environ.get("DEEPSENTINEL_REAL", ROWS.parents[2] / "shared" / "real"))
    head = ("ours", "beside", "unit", "median difference", "95 % within", "correlation", "pixels")
    table = [
        (r.what, r.reference, r.unit, f"{r.median:.2g}", f"{r.p95:.2g}", f"{r.correlation:.4f}",
         f"{r.n:,}")
        for r in rows(real.resolve())
    ]  # fmt: skip
    common.show(common.table("Agreement", head, table, "odc-stac", "rasterio", "pyproj"))


if __name__ == "__main__":
    main()
