"""OPERA CSLC-S1 and its STATIC product from HDF5 files: complex images, orbits, look vectors.

CSLC-S1 is complex, geocoded, coregistered by burst, and flattened by ellipsoid and terrain, so two
of one burst go into `cubes.radar.insar.coherence` as they are. Layout: product specification JPL
D-108278. Needs the extra ``insar`` (h5py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from cubes import registry, runs
from cubes.files import hdf5, laying, placing
from cubes.files.geotiff import PathLike
from cubes.radar import insar
from cubes.radar.geometry import NO_DATA
from cubes.series import PASS_GAP, track_label
from cubes.types import CubeError, Grid

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

Array = npt.NDArray[Any]

IDENTIFICATION = "identification"
PARAMETERS = "metadata/processing_information/parameters"
FLATTENING = ("ellipsoidal_flattening_applied", "topographic_flattening_applied")
STATIC_FILL = 127
"""Fill of ``layover_shadow_mask`` in CSLC-S1-STATIC."""

# ---------------------------------------------------------------------------------------- images


def _identity(file: Any, path: PathLike) -> dict[str, Any]:
    """Return the attributes that say which acquisition a file holds."""

    def value(key: str) -> Any:
        return hdf5.value_of(file, f"{IDENTIFICATION}/{key}", path)

    made = "processing_date_time"
    orbit, state = int(value("track_number")), str(value("orbit_pass_direction")).lower()
    return {
        "burst": str(value("burst_id")),
        "track": track_label(orbit, state),
        "relative_orbit": orbit,
        "orbit_state": state,
        "absolute_orbit": int(value("absolute_orbit_number")),
        "platform": str(value("mission_id")),
        "product_version": str(value("product_version")),
        "processed": str(value(made)) if f"{IDENTIFICATION}/{made}" in file else "",
        "look_direction": str(value("look_direction")).lower(),
    }


def open_cslc(
    path: PathLike, *, polarisation: str | None = None, flattened: bool = True
) -> xr.DataArray:
    """Return a CSLC-S1 product, complex and lazy, ready for `cubes.radar.insar.coherence`.

    Parameters
    ----------
    path : path
        Of the HDF5 file.
    polarisation : str, optional
        ``VV`` or another; by default the one in the file.
    flattened : bool
        Refuse a product from which the phase of ellipsoid or terrain was not removed: two of them
        make fringes that look like decorrelation.

    Returns
    -------
    xarray.DataArray
        complex64, (y, x) on the burst's own grid (10 x 5 m) with its CRS, NaN = no data.
        Attributes: ``time`` (zero-Doppler start, ISO 8601, UTC), ``burst``, ``track`` (``87D``),
        ``relative_orbit``, ``orbit_state``, ``absolute_orbit``, ``platform``, ``polarisation``,
        ``wavelength`` (m) and the two flattening flags.

    Raises
    ------
    CubeError
        h5py is not installed; no CSLC-S1 file; no such polarisation; not flattened.
    """
    with hdf5.opened(path) as file:
        coords = hdf5.grid_of(file, path)
        have = [p for p in ("VV", "VH", "HH", "HV") if f"data/{p}" in file]
        wanted = polarisation.upper() if polarisation else (have[0] if have else "")
        if wanted not in have:
            raise CubeError(
                f"{path} has no polarisation {wanted or '(any)'!r}; it has "
                f"{', '.join(have) or 'none: is it a STATIC file? then open_cslc_static'}"
            )
        flags = {k: bool(hdf5.value_of(file, f"{PARAMETERS}/{k}", path)) for k in FLATTENING}
        if flattened and not all(flags.values()):
            raise CubeError(
                f"{path} has {', '.join(k for k, v in flags.items() if not v)} = False: its "
                "interferograms would carry fringes of orbit and terrain. Take a flattened "
                "product, or pass flattened=False and remove them yourself"
            )
        out = hdf5.lazy(file, path, f"data/{wanted}", coords)
        start = pd.Timestamp(hdf5.value_of(file, f"{IDENTIFICATION}/zero_doppler_start_time", path))
        wavelength = f"{PARAMETERS.removesuffix('/parameters')}/input_burst_metadata/wavelength"
        attrs = {
            **_identity(file, path),
            "time": start.isoformat(),
            "polarisation": wanted.lower(),
            "wavelength": float(hdf5.value_of(file, wavelength, path))
            if wavelength in file
            else None,
            **flags,
        }
    return out.rename(wanted.lower()).assign_attrs(
        {k: v for k, v in attrs.items() if v is not None}
    )


def open_cslc_orbit(path: PathLike) -> xr.Dataset:
    """Return the orbit of a CSLC-S1 or STATIC product.

    Returns
    -------
    xarray.Dataset
        ``position`` and ``velocity`` (time, axis) float64, metres and metres per second, Earth
        fixed (ECEF) x, y, z; ``time`` datetime64[ns], UTC.

    Raises
    ------
    CubeError
        h5py is not installed, or the file has no orbit.
    """
    with hdf5.opened(path) as file:
        epoch = pd.Timestamp(hdf5.value_of(file, "metadata/orbit/reference_epoch", path))
        seconds = file["metadata/orbit/time"][()]
        states = {
            what: np.stack([file[f"metadata/orbit/{what}_{axis}"][()] for axis in "xyz"], axis=-1)
            for what in ("position", "velocity")
        }
        kind = str(hdf5.value_of(file, "metadata/orbit/orbit_type", path))
    times = np.datetime64(epoch.as_unit("ns").to_datetime64()) + np.rint(seconds * 1e9).astype(
        "timedelta64[ns]"
    )
    units = {"position": "m", "velocity": "m s-1"}
    return xr.Dataset(
        {what: (("time", "axis"), v, {"units": units[what]}) for what, v in states.items()},
        coords={"time": times, "axis": ["x", "y", "z"]},
        attrs={"orbit_type": kind},
    )


def open_cslc_static(path: PathLike) -> xr.Dataset:
    """Return the geometry of a burst from CSLC-S1-STATIC, lazily, on the burst's own grid.

    Returns
    -------
    xarray.Dataset
        (y, x): ``los_east``, ``los_north`` float32, unit vector from target to sensor in true east
        and north (`cubes.radar.geometry.Look.from_opera` takes them), NaN = no data;
        ``incidence`` float32 degrees, local; ``layover_shadow`` uint8: 0 none, 1 shadow,
        2 layover, 3 both, 255 no data. Attributes as of `open_cslc`.

    Raises
    ------
    CubeError
        h5py is not installed, or no CSLC-S1-STATIC file.
    """
    with hdf5.opened(path) as file:
        if "data/los_east" not in file:
            raise CubeError(f"{path} has no data/los_east: it is no CSLC-S1-STATIC file")
        coords = hdf5.grid_of(file, path)
        raw = {
            name: hdf5.lazy(file, path, f"data/{stored}", coords)
            for name, stored in {
                "los_east": "los_east",
                "los_north": "los_north",
                "incidence": "local_incidence_angle",
                "layover_shadow": "layover_shadow_mask",
            }.items()
        }
        attrs = _identity(file, path)
    # outside the burst stands NaN, in older files 0: no side-looking radar looks straight down
    east, north = raw["los_east"], raw["los_north"]
    seen = ((east != 0) | (north != 0)) & ~np.isnan(east)
    mask = raw["layover_shadow"].astype("uint8").where(seen, NO_DATA)
    return xr.Dataset(
        {
            "los_east": raw["los_east"].where(seen).assign_attrs(units="1"),
            "los_north": raw["los_north"].where(seen).assign_attrs(units="1"),
            "incidence": raw["incidence"]
            .where(seen)
            .assign_attrs(units="degrees", long_name="local incidence angle"),
            "layover_shadow": mask.where(mask != STATIC_FILL, NO_DATA).assign_attrs(
                long_name="layover and shadow: 0 none, 1 shadow, 2 layover, 3 both",
                units="1",
                nodata=NO_DATA,
            ),
        },
        attrs=attrs,
    )


# ---------------------------------------------------------------------------------------- pairs


def open_pairs(
    paths: Iterable[PathLike],
    *,
    grid: Grid | GeoBox | None = None,
    like: Any = None,
    baselines: Sequence[int] = (6, 12),
    window: insar.Window = insar.DEFAULT_WINDOW,
    multilook: insar.Window | None = None,
) -> xr.Dataset:
    """Return the ``insar`` group of a cube from CSLC-S1 products: every pair they make, lazily.

    Coherence and phase are estimated burst by burst in the images' posting, of the part that the
    grid needs, multilooked to about the grid's pixels, brought to the grid by the layers' kernel
    (nearest: no angle is interpolated), then bursts of one pass are laid over each other: where two
    overlap, the one with more data around a pixel wins, so that no burst's rim (windows of fewer
    looks) covers another's inside; of equals the first by name.

    Of one burst, pass and polarisation processed twice the newest is taken: by product version,
    then by time of processing; the others stand in the attribute ``superseded``.

    Parameters
    ----------
    paths : iterable of path
        CSLC-S1 files of any bursts, tracks, dates and polarisations.
    grid : Grid or GeoBox, optional
        The grid, in the bursts' projection (of a `Grid` without a place: over all of the bursts);
        by default that of the multilooked burst, where there is one alone.
    like : xarray object, optional
        One that lies on the wanted grid, in place of `grid`.
    baselines : sequence of int
        Temporal baselines in days.
    window, multilook : (int, int)
        Rows and columns, see `cubes.radar.insar.coherence`. By default as many looks as come
        nearest to a pixel of the grid: of OPERA's 10 x 5 m one row and two columns for 10 m, three
        and six for 30 m. Where they are exactly one, blocks of looks lie as the grid's pixels do.

    Returns
    -------
    xarray.Dataset
        ``coherence`` (pair, pol, y, x) float32 0..1 and ``phase`` float32 rad, NaN = no data, with
        the coordinates of pairs; attributes ``window``, ``multilook``, ``resampling``,
        ``bursts`` (all that were used) and, where there are any, ``superseded``.
        ``perpendicular_baseline`` is NaN: not computed here.
        ``looks_effective`` (pair), float64, on dask: what window and multilook are worth in
        independent looks, see `cubes.radar.insar.lazy_looks`.

    Raises
    ------
    CubeError
        Fewer than two files, no pair of these baselines, several bursts without a grid, or
        a grid in another projection; two files of one acquisition that nothing tells apart.
    """
    images, table = _images(paths)
    newest, superseded = laying.newest(table)
    found = pd.concat(
        [runs.pairs(part, baselines=baselines) for _, part in newest.groupby("pol", sort=True)]
    )
    if found.empty:
        raise CubeError(
            f"{len(images)} files make no pair of one burst and polarisation that is "
            f"{' or '.join(map(str, baselines))} days apart"
        )
    bursts = sorted(set(found["burst"]))
    box = placing.box(images, grid, like)
    if box is None and len(bursts) > 1:
        raise CubeError(
            f"the pairs lie in {len(bursts)} bursts: give grid= or like= to mosaic them"
        )
    looks = multilook if multilook is not None else placing.looks(images[0], box)
    found = found.assign(
        pol=[table["pol"][i] for i in found["reference"]],
        _first=[table["pass"][i] for i in found["reference"]],
        _second=[table["pass"][i] for i in found["secondary"]],
    )
    pols = sorted(set(found["pol"]), key=registry.all_channels("insar/coherence").index)
    steps = []
    for _, rows in found.groupby(["_second", "_first"], sort=True):
        parts = {}
        for pol, mine in rows.groupby("pol"):
            ordered = mine.sort_values("burst")
            made = []
            for both in zip(ordered["reference"], ordered["secondary"], strict=True):
                one_image, other = (placing.cut(images[i], box, window, looks) for i in both)
                made.append(
                    placing.on(
                        insar.coherence(one_image, other, window=window, multilook=looks), box
                    )
                )
            parts[str(pol)] = laying.mosaic(made, laying.reach(window, looks))
        empty = xr.full_like(next(iter(parts.values())), np.nan)
        one = xr.concat([parts.get(p, empty) for p in pols], pd.Index(pols, name="pol"))
        used = sorted({*rows["reference"], *rows["secondary"]})
        worth = insar.lazy_looks([images[i] for i in used], window, looks)
        steps.append(
            one.expand_dims("pair").assign_coords(
                {**_pair_coords(rows, images, table), "looks_effective": ("pair", worth)}
            )
        )
    out = xr.concat(steps, "pair", combine_attrs="override")
    for name, array in out.data_vars.items():
        array.attrs["resampling"] = registry.layer(f"insar/{name}").kernel
        array.attrs["bursts"] = ", ".join(bursts)
        if superseded:
            array.attrs["superseded"] = ", ".join(superseded)
    return out


def _images(paths: Iterable[PathLike]) -> tuple[list[xr.DataArray], pd.DataFrame]:
    """Return the opened images, and a table of what each is and of which pass, in their order."""
    images, rows = [], []
    for path in paths:
        image = open_cslc(path)
        attrs = image.attrs
        images.append(image)
        rows.append({
            "time": pd.Timestamp(attrs["time"]), "track": attrs["track"], "burst": attrs["burst"],
            "pol": attrs["polarisation"], "item": Path(path).stem,
            "version": attrs["product_version"], "processed": attrs.get("processed", ""),
        })  # fmt: skip
    if len(images) < 2:
        raise CubeError(f"{len(images)} CSLC-S1 files make no pair: give two or more")
    table = pd.DataFrame(rows)
    # bursts of one pass start seconds apart; passes are numbered in the order of time
    order = table.sort_values(["track", "time"], kind="stable")
    new = (order["track"] != order["track"].shift()) | (order["time"].diff() >= PASS_GAP)
    started = order["time"].groupby(new.cumsum()).transform("min")
    ranks = list(zip(started, order["track"], strict=True))
    known = {key: number for number, key in enumerate(sorted(set(ranks)))}
    return images, table.assign(**{"pass": pd.Series([known[k] for k in ranks], order.index)})


def _pair_coords(
    rows: pd.DataFrame, images: Sequence[xr.DataArray], table: pd.DataFrame
) -> dict[str, Any]:
    """Return the coordinates of one pair along ``pair``."""
    first, second = rows["reference_time"].min(), rows["secondary_time"].min()
    attrs = images[int(rows["reference"].iloc[0])].attrs
    used = sorted({*rows["reference"], *rows["secondary"]})
    label = f"{first:%Y%m%dT%H%M%S}_{second:%Y%m%dT%H%M%S}_{attrs['track']}"
    return {
        "pair": ("pair", [label]),
        "reference_time": ("pair", np.array([first], "datetime64[ns]")),
        "secondary_time": ("pair", np.array([second], "datetime64[ns]")),
        "temporal_baseline": ("pair", [int(rows["temporal_baseline"].iloc[0])]),
        "perpendicular_baseline": ("pair", [np.nan]),
        "relative_orbit": ("pair", [attrs["relative_orbit"]]),
        "orbit_state": ("pair", [attrs["orbit_state"]]),
        "items": ("pair", [",".join(table["item"][i] for i in used)]),
    }
