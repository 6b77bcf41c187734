"""Sentinel-1 from one complex stack per track: backscatter, coherence and phase agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from .geometry import Raster, convergence, native
from .land import BUILT, WATER, Landscape
from .noise import Array, box_mean, convolve, gaussian_kernel, power_law, stream
from .params import CLASSES, Params, Track
from .season import WOODS, Season, State, state

POLS = ("vv", "vh")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Viewing:
    """Static geometry of a track on the native grid."""

    ellipsoid: Array
    """(y, x) incidence on the ellipsoid, degrees."""
    local: Array
    """(y, x) local incidence, degrees, 0..180."""
    mask: NDArray[np.uint8]
    """(y, x) 0 seen, 1 shadow, 2 layover, 3 both."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RadarScene:
    """One pass of a track, and its truth."""

    track: int
    """Index in `Params.tracks`."""
    index: int
    """Of the pass."""
    day: int
    time: datetime
    absolute_orbit: int
    shift: tuple[float, float]
    """Misregistration in metres (x, y)."""
    slc: tuple[NDArray[np.complex64], NDArray[np.complex64]]
    """VV and VH, (y, x) at 10 m x 5 m: terrain-flattened amplitude, phase flattened."""
    gamma0: tuple[Array, Array]
    """Truth, VV and VH (y, x) linear, without speckle and noise."""
    coherence: tuple[Array, Array] | None
    """Truth, VV and VH (y, x), with the pass before, noise included; None for the first."""
    screen: Array
    """Truth, (y, x) rad: this date's phase."""


def slc_grid(params: Params) -> Raster:
    """Return the grid of the complex images: 5 m along x (range), 10 m along y (azimuth)."""
    g = native(params)
    return Raster(
        epsg=g.epsg, x0=g.x0, y1=g.y1, dx=5.0, dy=10.0, height=g.height, width=2 * g.width
    )


def viewing(land: Landscape, track: Track) -> Viewing:
    """Return incidence and layover and shadow of a track.

    cos(local) = l . n with l the unit vector from target to sensor and n the normal of the
    elevation model in the grid's axes; azimuths are turned by the grid's convergence.
    Active layover is where the ground rises away from the sensor more steeply than the
    incidence, active shadow where it falls away more steeply than the line of sight (Kropatsch
    and Strobl 1990); what is covered passively by them, beyond the slope itself, is left out.
    """
    grid = land.grid
    turn = convergence(grid.epsg, grid.x0 + grid.width * 5, grid.y1 - grid.height * 5)
    azimuth = math.radians(track.look_azimuth - turn)
    y, x = np.mgrid[0 : grid.height, 0 : grid.width].astype(np.float32)
    # Metres of ground towards the sensor from the centre; incidence falls by 0.0573 degrees
    # per km at 693 km altitude and 38 degrees (16 degrees over the 250 km swath).
    towards = (x - grid.width / 2) * 10 * math.sin(azimuth) - (y - grid.height / 2) * 10 * math.cos(
        azimuth
    )
    theta = np.radians(track.incidence - 0.0000573 * towards).astype(np.float32)
    gy, gx = np.gradient(land.elevation, 10.0)
    lx, ly, lz = np.sin(theta) * math.sin(azimuth), np.sin(theta) * math.cos(azimuth), np.cos(theta)
    cosine = (-gx * lx + gy * ly + lz) / np.sqrt(1 + gx * gx + gy * gy)
    local = np.degrees(np.arccos(np.clip(cosine, -1, 1))).astype(np.float32)
    # Slope towards the sensor, positive where the ground rises away from it.
    facing = -(gx * math.sin(azimuth) - gy * math.cos(azimuth))
    mask = np.zeros(grid.shape, np.uint8)
    mask[facing > np.tan(theta)] |= 2
    mask[-facing > 1 / np.tan(theta)] |= 1
    return Viewing(ellipsoid=np.degrees(theta).astype(np.float32), local=local, mask=mask)


def backscatter(
    params: Params, latents: tuple[Landscape, Season], now: State, view: Viewing
) -> tuple[Array, Array]:
    """Return terrain-flattened gamma nought of VV and VH (y, x), linear, without speckle.

    The water-cloud model (Attema and Ulaby 1978) in gamma nought:
    g = A V1 (1 - T) + T g_soil with T = exp(-2 B V2 / cos(theta)), where V1 is structure and
    V2 canopy water, so that the radar does not see greenness itself. The ground in dB is linear in
    moisture (Ulaby 1974); its VH answers with 0.7 of the slope.
    """
    land, past = latents
    p = params.radar
    codes = land.parcel_class
    cosine = np.cos(np.radians(np.clip(view.local, 5, 80)))
    angle = (cosine / np.float32(math.cos(math.radians(38.0)))) ** np.float32(p.angle_power)
    stand = _table(params, "stand")[codes]
    v1 = now.structure / np.maximum(stand, 0.05)[land.parcel]
    moist = np.float32(p.moisture_db) * (now.moisture - np.float32(params.weather.moisture_min))
    rough = (p.roughness_db * past.roughness).astype(np.float32)
    rough[np.isin(codes, [WATER, *WOODS])] *= 0.4
    # Water and masonry do not answer to moisture or frost.
    wet = ~np.isin(land.parcel_class, [WATER, BUILT])
    frost = np.where(now.frozen, np.float32(p.frost_db), np.float32(0))
    out = []
    for pol, answer in (("vv", 1.0), ("vh", 0.7)):
        a, b, dry = (_table(params, f"{k}_{pol}")[codes][land.parcel] for k in ("a", "b", "soil"))
        through = np.exp(-2 * b * now.water / cosine)
        ground = dry + (rough[land.parcel] + np.float32(answer) * moist) * wet[land.parcel]
        ground = np.float32(10) ** (ground / 10) * angle
        total = a * v1 * (1 - through) + through * ground
        change = p.texture_db * land.roughness + frost * wet[land.parcel]
        total = total * np.float32(10) ** (change / 10)
        total[(view.mask & 1) > 0] = 0
        out.append(np.asarray(total, np.float32))
    return out[0], out[1]


def _table(params: Params, name: str) -> Array:
    return np.array([0.0, *(getattr(params.classes[c], name) for c in CLASSES[1:])], np.float32)


def decorrelation(
    params: Params,
    latents: tuple[Landscape, Season],
    states: tuple[State, State],
    days: tuple[int, int],
    patch: Array,
) -> Array:
    """Return the coherence of VV (y, x) of the ground between two days, without noise.

    A product of losses (Zebker and Villasenor 1992): the ground's own 12-day coherence, growth,
    moving canopy, change of moisture, and events in between.
    """
    land, past = latents
    p = params.decorrelation
    first, second = states
    at = land.parcel
    base = _table(params, "coherence")[land.parcel_class]
    change = np.abs(second.structure - first.structure) + np.abs(second.water - first.water)
    volume = np.float32(0.5) * (first.water + second.water)
    loss = p.growth * change + p.volume * volume
    loss += p.rain * np.abs(second.moisture - first.moisture)
    loss *= np.exp(np.float32(p.patchiness) * patch)
    when = past.disturbed[:, days[1]]
    hit = (when > days[0]) & (when <= days[1])
    factor = base * np.where(hit, np.float32(p.event), np.float32(1))
    out = factor[at] * np.exp(-loss)
    out = np.where(first.frozen != second.frozen, out * np.float32(0.6), out)
    return np.asarray(np.clip(out, 0, 0.98), np.float32)


def phase_screen(
    params: Params, seed: int, track: int, index: int, fields: tuple[Landscape, State]
) -> Array:
    """Return one date's residual phase (y, x) rad: turbulence, stratification, ramp, moisture.

    Turbulent delay has a power-law spectrum (Hanssen 2001, 4.7); the stratified part is linear
    in height; moisture adds phase as De Zan et al. (2014) find.
    """
    land, now = fields
    p, rng = params.delay, stream(seed, "delay", track, index)
    shape = land.grid.shape
    h, w = shape
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    ramp = p.ramp * (rng.normal() * (x / w - 0.5) + rng.normal() * (y / h - 0.5))
    out = p.turbulent * power_law(rng, shape, p.slope, scale=400.0) + ramp
    out = out + p.stratified * rng.normal() * (land.elevation - params.relief.base) / 100
    return np.asarray(out + p.moisture * now.moisture, np.float32)


def circular_noise(
    params: Params, rng: np.random.Generator, shape: tuple[int, int]
) -> NDArray[np.complex64]:
    """Return circular Gaussian noise (y, x) of mean power 1 with the image's point spread."""
    p = params.speckle
    flat = rng.standard_normal((shape[0], 2 * shape[1]), dtype=np.float32).view(np.complex64)
    kx, ky = gaussian_kernel(p.psf_range / 5.0), gaussian_kernel(p.psf_azimuth / 10.0)
    gain = np.float32(1 / math.sqrt(2 * float((kx**2).sum() * (ky**2).sum())))
    return np.asarray(convolve(convolve(flat, kx * gain, 1), ky, 0), np.complex64)


def passes(params: Params, track: int) -> list[tuple[int, datetime, int]]:
    """Return day, time and absolute orbit of each pass of a track."""
    row = params.tracks[track]
    h, m, s = (int(v) for v in row.time.split(":"))
    out = []
    for i in range(params.radar.dates):
        day = row.first + 12 * i
        time = params.start + timedelta(days=day, hours=h, minutes=m, seconds=s)
        # Sentinel-1A: relative orbit = (absolute - 73) mod 175 + 1; 175 orbits in 12 days.
        elapsed = (time - datetime(2014, 4, 3, 21, 2, tzinfo=time.tzinfo)).days
        n = round((elapsed / 12 * 175 - (row.relative_orbit + 72)) / 175)
        out.append((day, time, n * 175 + row.relative_orbit + 72))
    return out


def observe_track(
    params: Params, seed: int, latents: tuple[Landscape, Season], track: int
) -> Iterator[RadarScene]:
    """Yield the passes of a track in order of time, each from the same evolving speckle.

    Speckle is an autoregression in time: u2 = c u1 + sqrt(1 - c2) w, so that the complex
    correlation of neighbouring dates is c exactly and more distant ones are products of it.
    """
    land, past = latents
    row = params.tracks[track]
    view = viewing(land, row)
    shape = slc_grid(params).shape
    constant = stream(seed, "registration", track)
    angle = constant.uniform(0, 2 * math.pi)
    offset = np.array([math.cos(angle), math.sin(angle)]) * params.registration.s1_offset * 10
    noise = np.float32(10 ** (params.radar.noise_db / 10))
    # One field of thermal noise, moved elsewhere for every image: as good as a new one at each
    # pixel, and 12 % of a world's time cheaper.
    thermal = circular_noise(params, stream(seed, "thermal", track), shape) * np.sqrt(noise)
    speckle: list[NDArray[np.complex64]] = []
    before: tuple[State, tuple[Array, Array], int] | None = None
    for i, (day, time, orbit) in enumerate(passes(params, track)):
        rng = stream(seed, "radar", track, i)
        now = state(params, land, past, day)
        gain = np.float32(10 ** (rng.normal(0, params.radar.calibration_db) / 10))
        true = backscatter(params, latents, now, view)
        screen = phase_screen(params, seed, track, i, (land, now))
        turn = np.exp(1j * np.repeat(screen, 2, axis=1)).astype(np.complex64)
        truth: list[Array] = []
        images = []
        coherence = None
        if before is not None:
            patch = power_law(stream(seed, "patch", track, i), land.grid.shape, 1.2, scale=60.0)
            coherence = decorrelation(params, latents, (before[0], now), (before[2], day), patch)
        for k in range(2):
            fresh = circular_noise(params, rng, shape)
            if coherence is None or before is None:
                speckle.append(fresh)
            else:
                c = coherence if k == 0 else coherence ** np.float32(params.decorrelation.cross)
                fine = np.repeat(c, 2, axis=1)
                speckle[k] = fine * speckle[k] + np.sqrt(1 - fine * fine) * fresh
                a, b = before[1][k], true[k]
                truth.append(c * np.sqrt(a * b / ((a + noise) * (b + noise))))
            image = np.repeat(np.sqrt(true[k]), 2, axis=1) * speckle[k] * turn
            image += np.roll(thermal, tuple(rng.integers(0, shape)), axis=(0, 1))
            images.append((image * np.sqrt(gain)).astype(np.complex64))
        jitter = rng.normal(0, params.registration.s1_sd * 10, 2)
        yield RadarScene(
            track=track,
            index=i,
            day=day,
            time=time,
            absolute_orbit=orbit,
            shift=(float(offset[0] + jitter[0]), float(offset[1] + jitter[1])),
            slc=(images[0], images[1]),
            gamma0=true,
            coherence=(truth[0], truth[1]) if truth else None,
            screen=screen,
        )
        before = (now, true, day)


def multilook(params: Params, slc: NDArray[np.complex64]) -> Array:
    """Return intensity (y, x) on the complex image's grid, averaged by the detector's kernel."""
    p = params.speckle
    power = slc.real**2 + slc.imag**2
    power = convolve(power, gaussian_kernel(p.look_range / 5.0), 1)
    return np.asarray(convolve(power, gaussian_kernel(p.look_azimuth / 10.0), 0), np.float32)


def denoise(params: Params, power: Array) -> Array:
    """Return power less the noise the processor estimates, clipped from below."""
    p = params.radar
    floor = np.float32(10 ** (p.clip_db / 10))
    estimate = np.float32((1 - p.noise_residual) * 10 ** (p.noise_db / 10))
    return np.asarray(np.maximum(power - estimate, floor), np.float32)


def window_power(params: Params, slc: NDArray[np.complex64]) -> Array:
    """Return intensity (y, x) at 10 m, averaged over the coherence window."""
    return np.asarray(_window(params, slc.real**2 + slc.imag**2), np.float32)


def interferogram(
    params: Params, reference: NDArray[np.complex64], secondary: NDArray[np.complex64]
) -> NDArray[np.complex64]:
    """Return reference times conjugate secondary (y, x) at 10 m, averaged over the window."""
    return np.asarray(_window(params, reference * secondary.conj()), np.complex64)


def _window(
    params: Params, a: NDArray[np.float32 | np.complex64]
) -> NDArray[np.float32 | np.complex64]:
    p = params.decorrelation
    pairs = (a[:, 0::2] + a[:, 1::2]) * np.float32(0.5)
    return box_mean(pairs, p.window_azimuth, p.window_range // 2)
