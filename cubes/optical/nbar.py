"""Nadir BRDF-adjusted reflectance by the c-factor method, from sun and view angles.

Roy et al. (2016), Remote Sensing of Environment 176, 255-271: one set of MODIS kernel parameters
per band, globally; Roy et al. (2017), Remote Sensing of Environment 199, 25-38, adds the red edge.
The c-factor is the modelled reflectance at nadir view over the modelled reflectance at the view
that was had, both under the sun that was had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubes.types import CubeError

Floats = npt.NDArray[np.float64]

COEFFICIENTS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "B02": (0.0774, 0.0079, 0.0372),
        "B03": (0.1306, 0.0178, 0.0580),
        "B04": (0.1690, 0.0227, 0.0574),
        "B05": (0.2085, 0.0256, 0.0845),
        "B06": (0.2316, 0.0273, 0.1003),
        "B07": (0.2599, 0.0294, 0.1197),
        "B08": (0.3093, 0.0330, 0.1535),
        # no value of its own was published: that of the near infrared, as HLS does
        "B8A": (0.3093, 0.0330, 0.1535),
        "B11": (0.3430, 0.0453, 0.1154),
        "B12": (0.2658, 0.0387, 0.0639),
    }
)
"""Band -> (isotropic, geometric, volumetric) parameter; Roy et al. (2016), red edge B05 to B07 from
Roy et al. (2017)."""

SOURCE = "c-factor, Roy et al. 2016 (10.1016/j.rse.2016.01.023), 2017 (10.1016/j.rse.2017.06.019)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Angles:
    """Sun and view angles, degrees: DataArrays along time, on the grid, or both; or numbers."""

    sun_zenith: Any
    sun_azimuth: Any
    view_zenith: Any
    """From the target's vertical to the sensor."""
    view_azimuth: Any
    """From the target to the sensor, clockwise from north (as in the product metadata)."""


def ross_thick(sun: Any, view: Any, azimuth: Any) -> Floats:
    """Return the volumetric kernel (Ross-Thick) of zeniths and relative azimuth in degrees."""
    s, v, a = (np.deg2rad(np.asarray(x, np.float64)) for x in (sun, view, azimuth))
    cosine = np.clip(np.cos(s) * np.cos(v) + np.sin(s) * np.sin(v) * np.cos(a), -1, 1)
    phase = np.arccos(cosine)
    out = ((np.pi / 2 - phase) * cosine + np.sin(phase)) / (np.cos(s) + np.cos(v)) - np.pi / 4
    return np.asarray(out, np.float64)


def li_sparse(sun: Any, view: Any, azimuth: Any) -> Floats:
    """Return the geometric kernel (Li-Sparse, reciprocal, b/r = 1, h/b = 2) of degrees."""
    s, v, a = (np.deg2rad(np.asarray(x, np.float64)) for x in (sun, view, azimuth))
    ts, tv = np.tan(s), np.tan(v)
    secants = 1 / np.cos(s) + 1 / np.cos(v)
    cosine = np.cos(s) * np.cos(v) + np.sin(s) * np.sin(v) * np.cos(a)
    # b/r = 1: the angles of the spheroids are those of the ground
    square = np.maximum(ts**2 + tv**2 - 2 * ts * tv * np.cos(a), 0)
    t = np.arccos(np.clip(2 * np.sqrt(square + (ts * tv * np.sin(a)) ** 2) / secants, -1, 1))
    overlap = (t - np.sin(t) * np.cos(t)) * secants / np.pi
    out = overlap - secants + (1 + cosine) / (2 * np.cos(s) * np.cos(v))
    return np.asarray(out, np.float64)


def c_factor(band: str, sun_zenith: Any, view_zenith: Any, relative_azimuth: Any) -> Floats:
    """Return what reflectance is multiplied by to be that of a nadir view, float64.

    Parameters
    ----------
    band : str
        A band of `COEFFICIENTS`.
    sun_zenith, view_zenith, relative_azimuth : float or array
        Degrees; at relative azimuth 0 the sun stands behind the sensor.

    Raises
    ------
    CubeError
        A band without published coefficients.
    """
    if band not in COEFFICIENTS:
        raise CubeError(
            f"there are no published c-factor coefficients for band {band!r}; there are for "
            f"{', '.join(COEFFICIENTS)}: select those with .sel(band=[...])"
        )
    iso, geo, vol = COEFFICIENTS[band]

    def modelled(view: Any, azimuth: Any) -> Floats:
        return np.asarray(
            iso
            + geo * li_sparse(sun_zenith, view, azimuth)
            + vol * ross_thick(sun_zenith, view, azimuth)
        )

    nadir = np.zeros_like(np.asarray(view_zenith, np.float64))
    return np.asarray(modelled(nadir, relative_azimuth) / modelled(view_zenith, relative_azimuth))


def nbar(cube: xr.DataTree, *, angles: Angles | None = None) -> xr.DataArray:
    """Return the reflectance of a cube adjusted to a nadir view, lazy.

    Parameters
    ----------
    cube : DataTree
        A cube with ``s2/reflectance``.
    angles : Angles, optional
        Angles of your own, for example on the grid from the granules' metadata. By default the
        coordinates ``sun_azimuth``, ``sun_elevation``, ``view_azimuth`` and ``view_incidence`` of
        the cube: one value per date, the mean of its granules. Within a granule the view zenith
        runs from 0 to 12 degrees, and neighbouring detectors look from opposite sides, so of a
        whole swath only the mean is adjusted.

    Returns
    -------
    xarray.DataArray
        As ``s2/reflectance``: ``(time, band, y, x)``, float32, NaN where nodata. Attribute ``nbar``
        says what was done; the sun stays where it was. Bands without published coefficients (B01,
        B09) are handed on as they are, so that the cube keeps its bands; the attribute
        ``nbar_unadjusted`` names them.

    Raises
    ------
    CubeError
        No such layer; angles missing or out of range; no band with coefficients.
    """
    if "s2" not in cube.children or "reflectance" not in cube["s2"].data_vars:
        raise CubeError("this cube has no layer 's2/reflectance', of which NBAR is made")
    data = cube["s2"].to_dataset()["reflectance"]
    if "nbar" in data.attrs:
        raise CubeError(f"this reflectance is adjusted already: {data.attrs['nbar']}")
    given = angles or _stored(data)
    sun, view, azimuth = _checked(given, data)
    bands = [str(band) for band in data["band"].to_numpy()]
    known = [band for band in bands if band in COEFFICIENTS]
    if not known:
        raise CubeError(
            f"there are no published c-factor coefficients for {', '.join(bands)}; there are for "
            f"{', '.join(COEFFICIENTS)}: open the cube with some of those"
        )
    factors = [
        xr.apply_ufunc(
            lambda s, v, a, band=band: c_factor(band, s, v, a),
            sun, view, azimuth, dask="parallelized", output_dtypes=[np.float64],
        )
        if band in known else xr.DataArray(1.0)
        for band in bands
    ]  # fmt: skip
    factor = xr.concat(factors, "band", coords="minimal", compat="override")
    factor = factor.assign_coords(band=data["band"]).astype(np.float32)
    out: xr.DataArray = (data * factor).transpose(*data.dims).astype(np.float32)
    what = "angles supplied by the user" if angles else "mean angles of each date's granules"
    out.attrs = {**data.attrs, "nbar": f"{SOURCE}; {what}"}
    left = [band for band in bands if band not in known]
    if left:
        out.attrs["nbar_unadjusted"] = ", ".join(left)
    out.encoding["grid_mapping"] = "spatial_ref"
    return out.rename("reflectance")


_COORDS = ("sun_azimuth", "sun_elevation", "view_azimuth", "view_incidence")


def _stored(data: xr.DataArray) -> Angles:
    """Return the angles in a cube's coordinates.

    Raises
    ------
    CubeError
        Coordinates that are missing, or without a value for some dates.
    """
    absent = [n for n in _COORDS if n not in data.coords]
    if absent:
        raise CubeError(
            f"the cube's s2 group lacks the coordinates {', '.join(absent)}; give "
            "angles=cubes.Angles(...)"
        )
    for name in _COORDS:
        unknown = np.isnan(data[name].to_numpy())
        if unknown.any():
            date = data["time"].to_numpy()[unknown.argmax()]
            raise CubeError(
                f"{name} is unknown for {unknown.sum()} of {len(unknown)} dates, first "
                f"{np.datetime_as_string(date, 'D')} (many catalogues state no view angles, "
                "Planetary Computer among them): NBAR is not guessed. Leave those dates out, or "
                "give angles=cubes.Angles(...) from the granules' metadata"
            )
    plain = {n: data[n].reset_coords(drop=True) for n in _COORDS}
    return Angles(
        sun_zenith=90 - plain["sun_elevation"],
        sun_azimuth=plain["sun_azimuth"],
        view_zenith=plain["view_incidence"],
        view_azimuth=plain["view_azimuth"],
    )


def _checked(angles: Angles, data: xr.DataArray) -> tuple[xr.DataArray, ...]:
    arrays = [
        v if isinstance(v, xr.DataArray) else xr.DataArray(float(v))
        for v in (angles.sun_zenith, angles.sun_azimuth, angles.view_zenith, angles.view_azimuth)
    ]
    for array in arrays:
        for dim in array.dims:
            if dim not in data.dims or array.sizes[dim] != data.sizes[dim]:
                raise CubeError(
                    f"angles have {array.sizes[dim]} values along {dim!r}, which the reflectance "
                    f"({dict(data.sizes)}) does not; bring them onto its grid and times"
                )
            # arithmetic would keep the common labels alone, and lose dates without a word
            if dim in array.coords and not array.indexes[dim].equals(data.indexes[dim]):
                raise CubeError(
                    f"angles lie on another {dim!r} than the reflectance, though as long; bring "
                    "them onto its grid and times"
                )
    sun, sun_azimuth, view, view_azimuth = arrays
    for name, array, limit in (("sun_zenith", sun, 90), ("view_zenith", view, 90)):
        # of what is in memory; arrays on dask are the caller's, and not computed for a check
        if array.chunks is None and ((array < 0) | (array >= limit)).any():
            raise CubeError(
                f"{name} reaches {float(array.max()):g}; it must be 0 to {limit} degrees"
            )
    return sun, view, sun_azimuth - view_azimuth
