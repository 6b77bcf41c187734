"""What changes through a season: weather, phenology, canopy water and structure, events.

Greenness drives the optical sensor. The radar sees canopy *water* and *structure*, which trail or
lead greenness by class and vary between parcels by themselves, and the ground beneath.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .land import Landscape
from .noise import Array, power_law, stream
from .params import CLASSES, Params


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weather:
    """Daily weather of a season."""

    rain: Array
    """(day,) mm."""
    moisture: Array
    """(day,) mean volumetric soil moisture, m3/m3."""
    temperature: Array
    """(day,) morning temperature at the base elevation, degrees C."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Season:
    """Daily state of every parcel; float32 tables (parcel, day)."""

    weather: Weather
    lai: Array
    """Green leaf area index."""
    dry: Array
    """Cover of standing dry matter and stubble, 0..1."""
    water: Array
    """Canopy water, relative to a full wheat canopy."""
    structure: Array
    """Stems, ears, wood; relative."""
    disturbed: NDArray[np.int16]
    """Day of the latest harvest, cut or tillage; -999 before any."""
    roughness: Array
    """(parcel,) standard normal soil roughness."""
    brightness: Array
    """(parcel,) standard normal soil and canopy brightness."""
    sos: Array
    """(parcel,) day of year of fastest greening."""
    moisture_pattern: Array
    """(y, x) standard normal pattern of soil moisture."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class State:
    """The land on one day, all (y, x) float32 on the native grid."""

    day: int
    lai: Array
    dry: Array
    water: Array
    structure: Array
    moisture: Array
    """Volumetric, m3/m3."""
    frozen: NDArray[np.bool_]
    """True where ground and canopy are below 0 degrees C in the morning."""


def weather(params: Params, seed: int) -> Weather:
    """Return daily rain, soil moisture and temperature.

    Rain is a Bernoulli-exponential process; moisture an antecedent precipitation index (Kohler and
    Linsley 1951) that decays with `dry_days` and saturates.
    """
    p, rng = params.weather, stream(seed, "weather")
    n = params.place.days + 1
    spin = 40
    wet = rng.random(n + spin) < p.rain_probability
    rain = np.where(wet, rng.exponential(p.rain_mean, n + spin), 0.0)
    store = np.zeros(n + spin)
    level = 0.3
    for day in range(n + spin):
        level = level * np.exp(-1 / p.dry_days)
        level += (1 - level) * (1 - np.exp(-rain[day] / 22.0))
        store[day] = level
    moisture = p.moisture_min + (p.moisture_max - p.moisture_min) * store[spin:]
    doy = params.start.timetuple().tm_yday + np.arange(n)
    mean = p.temperature - p.temperature_amplitude * np.cos(2 * np.pi * (doy - 20) / 365.25)
    noise = np.zeros(n)
    kick = rng.normal(0, p.temperature_sd * np.sqrt(1 - 0.7**2), n)
    for day in range(1, n):
        noise[day] = 0.7 * noise[day - 1] + kick[day]
    return Weather(
        rain=rain[spin:].astype(np.float32),
        moisture=moisture.astype(np.float32),
        temperature=(mean + noise - 5.0).astype(np.float32),
    )


def season(params: Params, seed: int, land: Landscape) -> Season:
    """Return the season of every parcel.

    Green leaf area is the double logistic of Beck et al. (2006); cuts are followed by an
    exponential return; ripening crops lose water before and keep structure after they yellow.
    """
    codes = land.parcel_class
    rng = stream(seed, "season")
    n, days = codes.size, params.place.days + 1
    doy = (params.start.timetuple().tm_yday + np.arange(days, dtype=np.float32))[None, :]
    draw = rng.standard_normal((7, n)).astype(np.float32)[:, :, None]
    c = params.canopy

    def of(name: str) -> Array:
        values = [0.0] + [getattr(params.classes[k], name) for k in CLASSES[1:]]
        return np.array(values, np.float32)[codes][:, None]

    sos = of("sos") + c.shift + c.sos_sd * draw[0]
    eos = of("eos") + c.shift + c.eos_sd * (0.4 * draw[0] + 0.9 * draw[1])
    peak = np.exp(c.amplitude_sd * draw[2])
    green = _logistic((doy - sos) / of("rise")) - _logistic((doy - eos) / of("fall"))
    green = np.maximum(green, 0)
    lai = of("lai_min") + (of("lai_max") - of("lai_min")) * green * peak
    ripe = _logistic((doy - eos) / of("fall"))
    grown = _logistic((doy - sos - 12) / (1.3 * of("rise")))
    structure = of("stand") * grown * np.exp(c.structure_sd * draw[3])
    structure = np.where(
        np.isin(codes, WOODS)[:, None], of("stand") * (0.8 + 0.2 * grown), structure
    )
    lag = of("water_lag")
    wet = _logistic((doy - sos - np.maximum(lag, 0)) / of("rise"))
    wet = np.maximum(wet - _logistic((doy - eos - lag) / (1.4 * of("fall"))), 0)
    base = 0.12 * of("lai_min")
    water = base + wet * of("stand") ** 0.5 * np.exp(
        c.water_sd * draw[4] + 0.3 * c.amplitude_sd * draw[2]
    )
    dry = np.clip(0.75 * ripe * np.minimum(of("lai_max") / 4, 1), 0, 0.8)
    dry = np.where(of("harvest") + of("mow") > 0, dry, 0.3 * dry)
    disturbed = np.full((n, days), -999, np.int16)
    tables = [
        np.broadcast_to(a, (n, days)).astype(np.float32) for a in (lai, dry, water, structure)
    ]
    _events(params, rng, (doy, sos, eos), codes, tables, disturbed)
    if c.dependence < 1:
        for k in (2, 3):
            tables[k] = _class_mean(tables[k], codes, c.dependence)
    return Season(
        weather=weather(params, seed),
        lai=tables[0],
        dry=tables[1],
        water=tables[2],
        structure=tables[3],
        disturbed=disturbed,
        roughness=draw[6, :, 0],
        brightness=draw[5, :, 0],
        sos=np.broadcast_to(sos, (n, 1))[:, 0].astype(np.float32),
        moisture_pattern=power_law(stream(seed, "moisture"), land.grid.shape, 1.4, scale=60.0),
    )


WOODS = [CLASSES.index("broadleaf"), CLASSES.index("conifer")]


def _logistic(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(z, -30, 30))), np.float32)


def _class_mean(table: Array, codes: NDArray[np.uint8], keep: float) -> Array:
    """Return the table drawn towards its class mean: what the negative control needs."""
    out = table.copy()
    for code in np.unique(codes):
        rows = codes == code
        mean = table[rows].mean(axis=0)
        out[rows] = mean + keep * (table[rows] - mean)
    return out


def _events(
    params: Params,
    rng: np.random.Generator,
    phase: tuple[Array, Array, Array],
    codes: NDArray[np.uint8],
    tables: list[Array],
    disturbed: NDArray[np.int16],
) -> None:
    """Cut, mow and till, in place, parcel by parcel."""
    doy, sos, eos = phase
    lai, dry, water, structure = tables
    day = np.arange(doy.size)
    first = float(doy[0, 0])
    for i, code in enumerate(codes):
        crop = params.classes[CLASSES[code]]
        if crop.till:
            when = round(float(sos[i, 0]) - crop.till + rng.normal(0, 5) - first)
            after = day >= when
            disturbed[i, after] = np.maximum(disturbed[i, after], when)
            water[i, after & (day < when + 30)] *= 0.3
        if crop.harvest:
            when = round(float(eos[i, 0]) + crop.harvest + rng.normal(0, 5) - first)
            after = day >= when
            disturbed[i, after] = np.maximum(disturbed[i, after], when)
            lai[i, after] = 0.12
            dry[i, after] = 0.55 * np.exp(-(day[after] - when) / 60.0)
            water[i, after] = 0.02
            structure[i, after] *= 0.12
        if crop.mow:
            when = int(rng.uniform(0.3, 1.3) * crop.mow) + int(115 - first)
            while when < doy.size:
                after = day >= max(when, 0)
                if after.any() and when >= 0:
                    disturbed[i, after] = when
                    back = 1 - 0.7 * np.exp(-(day[after] - when) / 16.0)
                    lai[i, after] *= back
                    water[i, after] *= back
                    structure[i, after] *= 1 - 0.8 * np.exp(-(day[after] - when) / 24.0)
                    dry[i, after] = np.maximum(
                        dry[i, after], 0.35 * np.exp(-(day[after] - when) / 7)
                    )
                when += max(18, int(rng.normal(crop.mow, 8)))


def state(params: Params, land: Landscape, past: Season, day: int) -> State:
    """Return the land on a day of the season."""
    p = params.weather
    at = land.parcel
    moisture = past.weather.moisture[day] + p.moisture_sd * past.moisture_pattern
    height = land.elevation - np.float32(params.relief.base)
    cold = past.weather.temperature[day] - np.float32(0.0065) * height
    return State(
        day=day,
        lai=past.lai[:, day][at] * land.vigour,
        dry=past.dry[:, day][at],
        water=past.water[:, day][at] * land.vigour,
        structure=past.structure[:, day][at],
        moisture=np.clip(moisture, p.moisture_min * 0.6, p.moisture_max).astype(np.float32),
        frozen=cold < 0,
    )
