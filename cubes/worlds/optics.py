"""Sentinel-2 as it sees the land: spectra, sun, haze, clouds and their erring mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from .geometry import convergence, native, to_lonlat
from .land import BUILT, CONIFER, WATER, Landscape
from .noise import Array, block_mean, convolve, power_law, stream
from .params import CLASSES, Params
from .season import Season, State, state

BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RESOLUTION = dict(zip(BANDS, (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20), strict=True))

# Reflectance of pure covers in the bands above, set by hand to what spectral libraries (USGS,
# ECOSTRESS) show: green leaves, needles, dry matter, dry soil, water, bright roofs, asphalt, yellow
# bloom, and the near-infrared plateau by which leaves of one class exceed those of wheat.
SPECTRA = np.array(
    [
        [0.020, 0.025, 0.055, 0.028, 0.085, 0.300, 0.400, 0.430, 0.455, 0.460, 0.215, 0.105],
        [0.015, 0.018, 0.032, 0.020, 0.048, 0.145, 0.185, 0.200, 0.215, 0.220, 0.105, 0.052],
        [0.080, 0.095, 0.130, 0.165, 0.200, 0.220, 0.240, 0.265, 0.280, 0.290, 0.360, 0.270],
        [0.075, 0.090, 0.120, 0.155, 0.175, 0.190, 0.205, 0.225, 0.240, 0.250, 0.330, 0.290],
        [0.050, 0.045, 0.042, 0.028, 0.022, 0.018, 0.016, 0.013, 0.012, 0.012, 0.006, 0.004],
        [0.120, 0.140, 0.165, 0.185, 0.195, 0.205, 0.215, 0.225, 0.230, 0.235, 0.255, 0.235],
        [0.070, 0.075, 0.085, 0.092, 0.098, 0.102, 0.105, 0.108, 0.110, 0.112, 0.130, 0.125],
        [0.030, 0.040, 0.160, 0.150, 0.190, 0.330, 0.400, 0.430, 0.450, 0.450, 0.220, 0.110],
        [0.000, 0.000, 0.000, 0.000, 0.000, 0.300, 0.400, 0.430, 0.455, 0.460, 0.000, 0.000],
    ],
    np.float32,
)
CLOUD = np.array(
    [0.62, 0.61, 0.60, 0.60, 0.62, 0.64, 0.65, 0.66, 0.66, 0.45, 0.48, 0.38], np.float32
)
# Diffuse skylight that still lights a shadow, and the spectrum of residual aerosol.
SKYLIGHT = np.array(
    [0.55, 0.50, 0.44, 0.38, 0.36, 0.34, 0.33, 0.31, 0.30, 0.30, 0.22, 0.20], np.float32
)
HAZE = np.array([1.15, 1.0, 0.75, 0.55, 0.48, 0.42, 0.38, 0.34, 0.31, 0.29, 0.12, 0.08], np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpticalDate:
    """When, by what and under which sun an acquisition was made."""

    index: int
    day: int
    """Of the season."""
    time: datetime
    platform: str
    """``A`` or ``B``."""
    relative_orbit: int
    absolute_orbit: int
    old_baseline: bool
    """Published before baseline 04.00: no offset."""
    sun_azimuth: float
    """Degrees clockwise from true north."""
    sun_elevation: float
    """Degrees above the horizon."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpticalScene:
    """One acquisition over the whole world, and its truth."""

    date: OpticalDate
    reflectance: dict[str, Array]
    """Band to surface reflectance (y, x) at its own resolution, from the native grid's corner."""
    scl: NDArray[np.uint8]
    """(y, x) at 20 m: the classification as published, with its errors."""
    seen: NDArray[np.bool_]
    """(y, x) at 20 m: False outside the swath."""
    clear: NDArray[np.bool_]
    """Truth, (y, x) at 20 m: neither cloud (optical thickness over 0.05) nor shadow."""
    ndvi: Array
    """Truth, (y, x) at 10 m: of the surface, before sun, haze, cloud, noise and shift."""
    shift: tuple[float, float]
    """Misregistration in metres (x, y): what lies at p is published at p + shift."""


def optical_dates(params: Params, seed: int) -> list[OpticalDate]:
    """Return the acquisitions in order of time: two relative orbits, two platforms by turns."""
    p, rng = params.optics, stream(seed, "optical-dates")
    lon, lat = to_lonlat(params.place.epsg, params.place.x0 + 5120, params.place.y0 + 5120)
    old = rng.permutation(p.dates) < round(p.old_baseline * p.dates)
    out = []
    for i in range(p.dates):
        orbit, clock = ((108, (10, 30, 31)), (8, (10, 40, 21)))[i % 2]
        day = p.first + p.step * i
        time = params.start + timedelta(
            days=day, hours=clock[0], minutes=clock[1], seconds=clock[2] - 2 * (i % 3)
        )
        azimuth, elevation = sun(time, float(lon), float(lat))
        out.append(
            OpticalDate(
                index=i,
                day=day,
                time=time,
                platform="AB"[(i // 2) % 2],
                relative_orbit=orbit,
                absolute_orbit=30000 + 143 * (day // 10) + orbit,
                old_baseline=bool(old[i]),
                sun_azimuth=azimuth,
                sun_elevation=elevation,
            )
        )
    return out


def sun(time: datetime, lon: float, lat: float) -> tuple[float, float]:
    """Return azimuth and elevation of the sun in degrees (Spencer 1971; good to 0.3 degrees)."""
    doy = time.timetuple().tm_yday
    hours = time.hour + time.minute / 60 + time.second / 3600
    g = 2 * math.pi * (doy - 1 + (hours - 12) / 24) / 365
    equation = 229.18 * (
        0.000075
        + 0.001868 * math.cos(g)
        - 0.032077 * math.sin(g)
        - 0.014615 * math.cos(2 * g)
        - 0.040849 * math.sin(2 * g)
    )
    declination = (
        0.006918
        - 0.399912 * math.cos(g)
        + 0.070257 * math.sin(g)
        - 0.006758 * math.cos(2 * g)
        + 0.000907 * math.sin(2 * g)
    )
    angle = math.radians(15 * (hours - 12) + lon + equation / 4)
    phi = math.radians(lat)
    east = -math.cos(declination) * math.sin(angle)
    north = math.cos(phi) * math.sin(declination) - math.sin(phi) * math.cos(
        declination
    ) * math.cos(angle)
    up = math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(
        angle
    )
    return math.degrees(math.atan2(east, north)) % 360, math.degrees(math.asin(up))


def surface(params: Params, land: Landscape, past: Season, now: State) -> NDArray[np.float32]:
    """Return surface reflectance (band, y, x) float32: endmembers mixed by cover.

    Green cover is 1 - exp(-0.55 LAI) (gap fraction of Nilson 1971 at nadir); wet soil darkens by
    exp(-1.9 moisture) (after Lobell and Asner 2002); canopy water lowers the short-wave infrared.
    """
    green = 1 - np.exp(np.float32(-0.55) * now.lai)
    dry = now.dry * (1 - green)
    soil = 1 - green - dry
    needle = land.label == CONIFER
    wet = np.exp(np.float32(-1.9) * now.moisture + np.float32(0.25))
    tone = np.exp(np.float32(0.13) * past.brightness)[land.parcel]
    built = land.label == BUILT
    roof = 1 / (1 + np.exp(-1.5 * land.texture))
    bloom = _bloom(params, land, past, now.day)
    leaf = np.where(needle, 0, green)
    cover = np.stack(
        [
            leaf * (1 - bloom),
            np.where(needle, green, 0),
            dry * tone,
            np.where(built, 0, soil * wet * tone),
            np.zeros_like(green),
            np.where(built, soil * roof, 0),
            np.where(built, soil * (1 - roof), 0),
            leaf * bloom,
            leaf * (_of_class(params, "nir")[land.label] - 1),
        ]
    )
    water = land.label == WATER
    cover[:, water] = 0
    cover[4, water] = 1
    mixed = (SPECTRA.T @ cover.reshape(len(SPECTRA), -1)).reshape(len(BANDS), *green.shape)
    mixed *= np.exp(np.float32(params.optics.texture) * land.texture * (0.3 + 0.7 * soil))
    mixed[10:] *= 1 - np.float32(0.10) * np.clip(now.water - 0.6, -1, 1.5) * green
    return np.asarray(mixed, np.float32)


def _of_class(params: Params, name: str) -> Array:
    return np.array([0.0, *(getattr(params.classes[c], name) for c in CLASSES[1:])], np.float32)


def _bloom(params: Params, land: Landscape, past: Season, day: int) -> Array:
    """Return the share (y, x) of the canopy that is yellow with flowers."""
    after = _of_class(params, "flower")[land.parcel_class]
    doy = params.start.timetuple().tm_yday + day
    share = 0.55 * np.exp(-(((doy - past.sos - after) / 9.0) ** 2)) * (after > 0)
    return np.asarray(share, np.float32)[land.parcel]


def cloud_field(params: Params, seed: int, date: OpticalDate) -> tuple[Array, Array, str]:
    """Return optical thickness and shadow depth (y, x) at 20 m, and the kind of sky.

    Clouds are a power-law field above a quantile (the fractal clouds of Barker and Davies
    1992); the shadow is the same field moved along the sun's azimuth by height / tan(elevation).
    """
    p, rng = params.clouds, stream(seed, "clouds", date.index)
    h, w = shape_20(params)
    u = rng.random()
    if u < p.clear:
        fraction, kind = float(rng.uniform(0, 0.02)), "clear"
    elif u < p.clear + p.overcast:
        fraction, kind = float(rng.uniform(0.9, 1.0)), "overcast"
    else:
        fraction, kind = float(np.clip(rng.beta(1.5, 1.5 / p.mean - 1.5), 0.02, 0.95)), "broken"
    height = float(rng.uniform(700, 2600))
    reach = height / max(math.tan(math.radians(date.sun_elevation)), 0.2)
    angle = math.radians(
        date.sun_azimuth - convergence(params.place.epsg, params.place.x0, params.place.y0)
    )
    dy, dx = round(math.cos(angle) * reach / 20), round(-math.sin(angle) * reach / 20)
    pad = max(abs(dy), abs(dx)) + 1
    field = power_law(rng, (h + 2 * pad, w + 2 * pad), p.slope, scale=float(rng.uniform(60, 400)))
    edge = np.float32(np.quantile(field, 1 - fraction))
    tau = np.maximum(field - edge, 0) * np.float32(p.thickness * rng.uniform(0.6, 2.2))
    deep = 1 - np.exp(-1.4 * tau)
    shadow = deep[pad - dy : pad - dy + h, pad - dx : pad - dx + w]
    tau = tau[pad : pad + h, pad : pad + w]
    if rng.random() < p.cirrus:
        veil = power_law(rng, (h, w), 2.2, scale=300.0)
        tau = tau + np.float32(0.12) * np.maximum(veil - np.float32(0.2), 0)
    return tau, shadow * np.exp(-tau), kind


def shape_20(params: Params) -> tuple[int, int]:
    """Return the native grid's shape at 20 m."""
    h, w = native(params).shape
    return h // 2, w // 2


def observe(
    params: Params, seed: int, latents: tuple[Landscape, Season], date: OpticalDate
) -> OpticalScene:
    """Return one Sentinel-2 acquisition with its truth."""
    land, past = latents
    p, rng = params.optics, stream(seed, "optics", date.index)
    now = state(params, land, past, date.day)
    clean = surface(params, land, past, now)
    red, nir = clean[3], clean[7]
    ndvi = (nir - red) / (nir + red)
    light = _illumination(params, land, date)
    tau20, shadow20, _ = cloud_field(params, seed, date)
    haze20 = np.maximum(
        p.haze * (rng.normal(0.6, 0.8) + 0.5 * power_law(rng, tau20.shape, 1.8, scale=300.0)),
        -0.004,
    ).astype(np.float32)
    sd = params.registration.s2_sd * 10
    shift = tuple(float(np.clip(v, -10, 10)) for v in rng.normal(0, sd, 2))
    out: dict[str, Array] = {}
    sky = {20: (tau20, shadow20, haze20)}
    sky[10] = tuple(_double(a) for a in sky[20])  # type: ignore[assignment]
    sky[60] = tuple(block_mean(a, 3) for a in sky[20])  # type: ignore[assignment]
    for i, name in enumerate(BANDS):
        size = RESOLUTION[name]
        band = clean[i] * light
        if size > 10:
            band = block_mean(band, size // 10)
        band = subpixel_shift(band, shift[0] / size, -shift[1] / size)
        tau, shadow, haze = sky[size]
        band = band * (1 - (1 - SKYLIGHT[i]) * shadow) + haze * HAZE[i]
        cover = 1 - np.exp(-tau)
        band = band + cover * (CLOUD[i] - band)
        band += np.float32(p.noise * (10 / size) ** 0.5) * rng.standard_normal(
            band.shape, dtype=np.float32
        )
        out[name] = band
    scl = classify(params, rng, out, (tau20, shadow20), land)
    seen = swath(params, date)
    return OpticalScene(
        date=date,
        reflectance=out,
        scl=np.where(seen, scl, 0).astype(np.uint8),
        seen=seen,
        clear=(tau20 < 0.05) & (shadow20 < 0.08),
        ndvi=ndvi.astype(np.float32),
        shift=(shift[0], shift[1]),
    )


def _double(a: Array) -> Array:
    return np.repeat(np.repeat(a, 2, axis=0), 2, axis=1)


def _illumination(params: Params, land: Landscape, date: OpticalDate) -> Array:
    """Return the factor (y, x) left by an imperfect topographic correction."""
    gy, gx = np.gradient(land.elevation, 10.0)
    zenith = math.radians(90 - date.sun_elevation)
    azimuth = math.radians(
        date.sun_azimuth - convergence(params.place.epsg, params.place.x0, params.place.y0)
    )
    # Rows run south, so dz/dnorth is -gy; the outward normal is (-dz/dx, -dz/dy, 1).
    norm = np.sqrt(1 + gx * gx + gy * gy)
    lit = (
        -gx * math.sin(azimuth) * math.sin(zenith)
        + gy * math.cos(azimuth) * math.sin(zenith)
        + math.cos(zenith)
    ) / norm
    ratio = np.clip(lit / math.cos(zenith), 0.2, 2.0)
    return np.asarray(1 + params.optics.illumination * (ratio - 1), np.float32)


def subpixel_shift(a: Array, columns: float, rows: float) -> Array:
    """Return `a` (y, x) moved right by `columns` and down by `rows` pixels, bilinear."""
    for amount, axis in ((rows, 0), (columns, 1)):
        whole = math.floor(amount)
        part = np.float32(amount - whole)
        if amount == 0:
            continue
        a = (1 - part) * _roll_edge(a, whole, axis) + part * _roll_edge(a, whole + 1, axis)
    return a


def _roll_edge(a: Array, n: int, axis: int) -> Array:
    index = np.clip(np.arange(a.shape[axis]) - n, 0, a.shape[axis] - 1)
    return a.take(index, axis=axis)


def swath(params: Params, date: OpticalDate) -> NDArray[np.bool_]:
    """Return where the acquisition saw the ground, (y, x) at 20 m."""
    h, w = shape_20(params)
    seen = np.ones((h, w), bool)
    if params.optics.swath_edge and date.relative_orbit == 8:
        y, x = np.mgrid[0:h, 0:w]
        # The swath's edge runs from north-north-east to south-south-west (inclination 98.6).
        seen = x + 0.29 * y > 0.17 * w
    return seen


def classify(
    params: Params,
    rng: np.random.Generator,
    bands: dict[str, Array],
    sky: tuple[Array, Array],
    land: Landscape,
) -> NDArray[np.uint8]:
    """Return a scene classification (y, x) uint8 at 20 m that errs as Sen2Cor's does.

    Thin edges and cirrus are missed, bright roofs and bare soil are called cloud, a share of the
    shadow is not marked while water and dark woods are, and fringes come out as class 7
    (compare Baetens et al. 2019; Tarrio et al. 2020).
    """
    p = params.clouds
    tau, shadow = sky
    ten = {k: block_mean(bands[k], 2) for k in ("B02", "B04", "B08")}
    swir = bands["B11"]
    ndvi = (ten["B08"] - ten["B04"]) / np.maximum(ten["B08"] + ten["B04"], 0.02)
    out = np.full(tau.shape, 5, np.uint8)
    out[ndvi > 0.38] = 4
    middle = (ndvi > 0.26) & (ndvi <= 0.38)
    out[middle & (rng.random(tau.shape, dtype=np.float32) < 0.45)] = 7
    out[(ten["B08"] < 0.06) & (swir < 0.05)] = 6
    dark = (ten["B08"] < 0.16) & (swir < 0.11) & (out != 6)
    out[dark] = 2
    coarse = power_law(rng, tau.shape, 1.3, scale=30.0)
    guess = tau * np.exp(0.35 * coarse)
    marked = (shadow * (1 + 0.25 * coarse) > 0.35) & (coarse > -_upper(p.shadow_miss))
    out[marked] = 3
    false_shadow = (out == 6) & (coarse > 1.7)
    out[false_shadow] = 3
    bright = (ten["B02"] > 0.115) & (rng.random(tau.shape, dtype=np.float32) < p.false_bright)
    out[bright & (block_mean((land.label == BUILT).astype(np.float32), 2) > 0.3)] = 8
    out[(guess > 0.55 * p.miss) & (guess <= p.miss)] = 7
    out[guess > p.miss] = 10
    out[guess > 0.45] = 8
    out[guess > 0.95] = 9
    return _majority_fringe(out, rng)


def _upper(share: float) -> float:
    """Return the normal quantile z with P(Z > z) = share, by 1.702 logistic approximation."""
    return math.log((1 - share) / share) / 1.702


def _majority_fringe(scl: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the map with its cloud classes grown by a ragged pixel, as Sen2Cor's filter does."""
    cloud = ((scl == 8) | (scl == 9)).astype(np.float32)
    kernel = np.full(3, 1 / 3, np.float32)
    near = convolve(convolve(cloud, kernel, 0), kernel, 1)
    grow = (near > 0.3) & (cloud == 0) & (rng.random(scl.shape, dtype=np.float32) < 0.5)
    out = scl.copy()
    out[grow] = 8
    return out
