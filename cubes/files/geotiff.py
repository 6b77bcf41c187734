"""GeoTIFFs on a disk: read whole or lazily, written atomically; HyP3's interferometric products.

For files that a person has beside any catalogue. Only GDAL's GTiff driver is used, so that a file
can never lead to another one (a VRT does).
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from cubes import registry
from cubes.radar.geometry import Look
from cubes.series import track_label
from cubes.types import CubeError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]

# ----------------------------------------------------------------------------------------- tifs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tif:
    """A GeoTIFF: its grid and what it says of itself, with pixels once read."""

    geobox: GeoBox
    bands: Array
    """(band, y, x) as in the file; empty where only the header was read."""
    dtype: str
    count: int
    """Number of bands."""
    nodata: float | None
    tags: Mapping[str, str] = field(default_factory=dict)


def read_tif(path: PathLike, *, pixels: bool = True) -> Tif:
    """Return a GeoTIFF, bands as in the file.

    Parameters
    ----------
    path : path
        Of a local file.
    pixels : bool
        False reads the header alone.

    Raises
    ------
    CubeError
        It is missing, no GeoTIFF, damaged, or has no CRS.
    """
    import rasterio
    from odc.geo.geobox import GeoBox

    if not Path(path).is_file():
        raise CubeError(f"no such file: {path}")
    try:
        with rasterio.open(path, driver="GTiff") as file:
            if file.crs is None:
                raise CubeError(f"{path} has no CRS: it cannot be placed")
            epsg = file.crs.to_epsg()
            crs = f"EPSG:{epsg}" if epsg else file.crs.to_wkt()
            return Tif(
                geobox=GeoBox(file.shape, file.transform, crs),
                bands=file.read() if pixels else np.empty((0, *file.shape), file.dtypes[0]),
                dtype=str(file.dtypes[0]),
                count=int(file.count),
                nodata=file.nodata,
                tags=dict(file.tags()),
            )
    except rasterio.errors.RasterioError as error:
        raise CubeError(f"{path} cannot be read as a GeoTIFF: {error}") from None


def write_tif(
    path: PathLike,
    bands: Array,
    geobox: GeoBox,
    *,
    nodata: float,
    names: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
) -> int:
    """Return the size in bytes of a GeoTIFF just written: uncompressed, one band after the other.

    The same arguments give the same bytes. A file is there whole or not at all.

    Parameters
    ----------
    path : path
        Of the file; its folder is made.
    bands : array
        (band, y, x) in the dtype of the file.
    geobox : GeoBox
        The grid.
    nodata : float
        Stated for all bands.
    names : sequence of str
        Descriptions of the bands.
    tags : mapping, optional
        Metadata of the file.
    """
    import rasterio

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    count, rows, columns = bands.shape
    try:
        with rasterio.open(
            unfinished, "w", driver="GTiff", height=rows, width=columns, count=count,
            dtype=bands.dtype, crs=str(geobox.crs), transform=geobox.transform, nodata=nodata,
            interleave="band",
        ) as file:  # fmt: skip
            file.write(bands)
            file.update_tags(**(tags or {}))
            for number, name in enumerate(names, 1):
                file.set_band_description(number, name)
        with unfinished.open("rb") as written:
            os.fsync(written.fileno())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return target.stat().st_size


@dataclass(frozen=True, kw_only=True, slots=True)
class _Band:
    """One band of a file as something dask can slice: opened for each piece, safe to pickle."""

    path: str
    band: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    stamp: tuple[int, int]
    """Size and time of change: another file under the same name is another array."""
    ndim: int = 2

    def __getitem__(self, key: tuple[slice, slice]) -> Array:
        """Return pixels of the band."""
        import rasterio
        from rasterio.windows import Window

        rows, columns = (k.indices(n) for k, n in zip(key, self.shape, strict=True))
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        with rasterio.open(self.path, driver="GTiff") as file:
            out: Array = file.read(self.band, window=window)
        return out


def open_tif(path: PathLike, *, band: int = 1, chunk: int = 1024) -> xr.DataArray:
    """Return one band of a local GeoTIFF, lazily, (y, x) with its CRS, metres or degrees.

    Parameters
    ----------
    path : path
        Of the file.
    band : int
        Counted from 1.
    chunk : int
        Edge of a dask chunk in pixels.

    Returns
    -------
    xarray.DataArray
        dtype of the file; floats have NaN where the file's nodata stands.

    Raises
    ------
    CubeError
        See `read_tif`; no such band.
    """
    import dask.array as da

    header = read_tif(path, pixels=False)
    if not 1 <= band <= header.count:
        raise CubeError(f"{path} has bands 1 to {header.count}, not {band}")
    rows, columns = header.geobox.shape
    source = _Band(
        path=os.fspath(path), band=band, shape=(rows, columns), dtype=np.dtype(header.dtype),
        stamp=file_stamp(path),
    )  # fmt: skip
    from_array: Any = da.from_array
    data = from_array(source, chunks=(min(rows, chunk), min(columns, chunk)), asarray=False)
    out = xr.DataArray(data, dims=("y", "x"), coords=_yx(header.geobox))
    nodata = header.nodata
    if out.dtype.kind == "f" and nodata is not None and not np.isnan(nodata):
        out = out.where(out != out.dtype.type(nodata))
    return out


def _yx(box: GeoBox) -> dict[str, Any]:
    """Return coordinates y and x of a grid, whatever its CRS calls its axes."""
    from odc.geo.xr import xr_coords

    return {str(k): v for k, v in xr_coords(box, always_yx=True).items()}


def file_stamp(path: PathLike) -> tuple[int, int]:
    """Return size and time of change of a file, which tell one state of it from another."""
    state = Path(path).stat()
    return state.st_size, state.st_mtime_ns


# ----------------------------------------------------------------------------------------- HyP3

_HYP3_PARTS = {"coherence": "corr", "phase": "wrapped_phase"}
_STAMP = re.compile(r"(?<![0-9])(\d{8}T\d{6})(?![0-9])")
_HYP3_TRACK = re.compile(r"^S1[A-Z]?_(\d{3})_")


def open_hyp3(folder: PathLike, *, chunk: int = 1024) -> xr.Dataset:
    """Return coherence and wrapped phase of one HyP3 product as an ``insar`` group, lazily.

    Unproven: written from the product guide and tested on files made to it; no file of HyP3 was
    at hand. Times come from the granules that the product's text file names.

    Parameters
    ----------
    folder : path
        Of the unpacked product, with one ``*_corr.tif``, its ``*_wrapped_phase.tif`` (absent: no
        phase) and the ``*.txt`` of its parameters.
    chunk : int
        Edge of a dask chunk in pixels.

    Returns
    -------
    xarray.Dataset
        ``coherence`` (pair, pol, y, x) float32 0..1 and ``phase`` float32 rad, NaN = no data (also
        where coherence is 0, which HyP3 writes outside the data), and the coordinates of a pair.
        The sign of the phase is the file's own, not checked against this project's.

    Raises
    ------
    CubeError
        No product or several; the text file lacks the granules; the name lacks the polarisation;
        the two files' grids differ.
    """
    stem, parameters = _hyp3_product(folder)
    reference, secondary = (
        _hyp3_time(parameters, f"{which} Granule", stem) for which in ("Reference", "Secondary")
    )
    pol = _hyp3_pol(stem.name)
    orbit, state = _hyp3_orbit(parameters, stem.name)
    coherence = open_tif(f"{stem}_corr.tif", chunk=chunk)
    coherence = coherence.where(coherence != 0)
    arrays = {"coherence": coherence}
    if Path(f"{stem}_wrapped_phase.tif").is_file():
        phase = open_tif(f"{stem}_wrapped_phase.tif", chunk=chunk)
        if phase.odc.geobox != coherence.odc.geobox:
            raise CubeError(f"{stem.name}: coherence and phase lie on different grids")
        arrays["phase"] = phase.where(~np.isnan(coherence))
    label = f"{reference:%Y%m%dT%H%M%S}_{secondary:%Y%m%dT%H%M%S}_{track_label(orbit, state)}"
    days = round((secondary - reference) / pd.Timedelta("1D"))
    coords = {
        "pair": ("pair", [label]),
        "pol": [pol],
        "reference_time": ("pair", np.array([reference], "datetime64[ns]")),
        "secondary_time": ("pair", np.array([secondary], "datetime64[ns]")),
        "temporal_baseline": ("pair", [days]),
        "perpendicular_baseline": ("pair", [_hyp3_number(parameters, "Baseline")]),
        "relative_orbit": ("pair", [orbit]),
        "orbit_state": ("pair", [state]),
        "items": ("pair", [stem.name]),
    }
    out = xr.Dataset(
        {
            name: array.astype("float32")
            .expand_dims(pair=1, pol=1)
            .assign_attrs(
                long_name=registry.layer(f"insar/{name}").long_name,
                units=registry.layer(f"insar/{name}").units,
                processor="HyP3",
                sign="as in the file",
                range_looks=parameters.get("Range looks", ""),
                azimuth_looks=parameters.get("Azimuth looks", ""),
            )
            for name, array in arrays.items()
        },
    )
    return out.assign_coords(coords)


def hyp3_look(folder: PathLike) -> tuple[Look, GeoBox]:
    """Return the look vectors of a HyP3 product, arrays (y, x) float64, and their grid; unproven.

    Raises
    ------
    CubeError
        No product or several; ``*_lv_theta.tif`` or ``*_lv_phi.tif`` missing; their grids differ.
    """
    stem, _ = _hyp3_product(folder)
    theta, phi = (open_tif(f"{stem}_lv_{part}.tif") for part in ("theta", "phi"))
    if theta.odc.geobox != phi.odc.geobox:
        raise CubeError(f"{stem.name}: lv_theta and lv_phi lie on different grids")
    # GDAL's nodata of these files is 0, and a look along the horizon due east does not occur
    outside = ((theta == 0) & (phi == 0)).to_numpy()
    angles = (np.where(outside, np.nan, v.to_numpy()) for v in (theta, phi))
    return Look.from_hyp3(*angles), theta.odc.geobox


def _hyp3_product(folder: PathLike) -> tuple[Path, dict[str, str]]:
    """Return the common stem of a product's files, and the parameters of its text file."""
    import odc.geo.xr  # noqa: F401  registers the accessor

    found = sorted(Path(folder).glob("*_corr.tif"))
    if len(found) != 1:
        raise CubeError(
            f"{folder} holds {len(found)} files *_corr.tif; give the folder of one HyP3 product"
        )
    stem = found[0].with_name(found[0].name.removesuffix("_corr.tif"))
    text = stem.with_name(f"{stem.name}.txt")
    if not text.is_file():
        raise CubeError(f"{folder} lacks {text.name}, which says what pair the product is of")
    lines = (line.partition(":") for line in text.read_text(encoding="utf-8").splitlines())
    return stem, {key.strip(): value.strip() for key, _, value in lines}


def _hyp3_time(parameters: Mapping[str, str], key: str, stem: Path) -> pd.Timestamp:
    """Return the first time stamp in a parameter: that of the first burst of several."""
    found = sorted(_STAMP.findall(parameters.get(key, "").replace("_", " ")))
    if not found:
        raise CubeError(f"{stem.name}.txt names no acquisition under {key!r}: the pair is unknown")
    return pd.Timestamp(found[0])


def _hyp3_pol(name: str) -> str:
    found = [p for p in ("VV", "VH", "HH", "HV") if f"_{p}" in name]
    if len(found) != 1:
        raise CubeError(
            f"the name {name!r} does not say its polarisation, as HyP3's do (_VVP012_, _VV_): "
            "keep the product's own file names"
        )
    return found[0].lower()


def _hyp3_number(parameters: Mapping[str, str], key: str) -> float:
    try:
        return float(parameters[key].split()[0])
    except (KeyError, ValueError, IndexError):
        return float("nan")


def _hyp3_orbit(parameters: Mapping[str, str], name: str) -> tuple[int, str]:
    """Return relative orbit (0 where unknown) and orbit state."""
    state = parameters.get("Reference Pass Direction", "").lower()
    named = _HYP3_TRACK.match(name)
    if named:
        return int(named[1]), state
    # S1A and S1B count absolute orbits with different starts; a burst product does not say which
    return 0, state
