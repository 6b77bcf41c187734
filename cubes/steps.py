"""Granules become the steps of an axis: its coordinates, and the granules that fill each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from cubes import series
from cubes.types import CubeError, Layer, Plan

Steps = Mapping[tuple[str, str], Sequence[int]]
"""(group, dimension) -> positions along it."""


def _text(values: Sequence[Any], default: str = "") -> str:
    """Return the distinct known values of a step, joined by ``/``."""
    known = dict.fromkeys(str(v) for v in values if not _absent(v))
    return "/".join(known) or default


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _mean(values: Sequence[Any]) -> float:
    known = [float(v) for v in values if not _absent(v)]
    return float(np.mean(known)) if known else float("nan")


def mean_azimuth(values: Sequence[Any]) -> float:
    """Return the mean direction in degrees 0..360: of 359 and 1 it is 0, not 180."""
    known = [float(v) for v in values if not _absent(v)]
    if len(set(known)) <= 1:
        return known[0] if known else float("nan")
    turns = np.exp(1j * np.deg2rad(known))
    return float(np.rad2deg(np.angle(turns.mean())) % 360)


def _whole(values: Sequence[Any]) -> int:
    """Return the first known whole number, 0 where unknown (orbits count from 1)."""
    return next((int(v) for v in values if not _absent(v)), 0)


def _items(rows: pd.DataFrame) -> str:
    return ",".join(rows["id"])


def _iso(time: Any) -> str:
    stamp = pd.Timestamp(time)
    return (stamp.tz_convert(None) if stamp.tz is not None else stamp).isoformat()


Coordinates = dict[str, Any]
Grouped = list[tuple[Coordinates, list[Any]]]
"""Coordinates of each step, and its granules as objects with the attributes of `_NEEDED`."""

_NEEDED = ("id", "time", "bbox", "baseline", "properties", "assets")


def _time_steps(table: pd.DataFrame, group: str) -> Grouped:
    table = series.passes(series.deduplicate(series.with_tracks(table)))
    # columns as lists, taken out once: pandas by the step took 1 s of opening 1,000 granules
    columns = {name: table[name].tolist() for name in _OF_A_STEP}
    records = _records(table)
    out: Grouped = []
    for _, places in sorted(table.groupby("step").indices.items()):
        of = {name: [values[i] for i in places] for name, values in columns.items()}
        coords: Coordinates = {
            "time": _iso(min(of["time"])),
            "platform": _text(of["platform"]),
            "relative_orbit": _whole(of["relative_orbit"]),
            "items": ",".join(of["id"]),
        }
        if group == "s1":
            coords |= {
                "orbit_state": _text(of["orbit_state"]),
                "absolute_orbit": _whole(of["absolute_orbit"]),
                "processor_version": _text(
                    [p.get("processing:version") or p.get("s1:processor_version")
                     for p in of["properties"]]
                ),
            }  # fmt: skip
        else:
            coords |= {
                "baseline": _text(of["baseline"]),
                "cloud_cover": _mean(of["cloud_cover"]),
                "sun_azimuth": mean_azimuth(of["sun_azimuth"]),
                "sun_elevation": _mean(of["sun_elevation"]),
                "view_azimuth": mean_azimuth([p.get("view:azimuth") for p in of["properties"]]),
                "view_incidence": _mean(
                    [p.get("view:incidence_angle", p.get("s2:mean_incidence_angle"))
                     for p in of["properties"]]
                ),
            }  # fmt: skip
        out.append((coords, [records[i] for i in places]))
    return out


_OF_A_STEP = (
    "id", "time", "platform", "relative_orbit", "orbit_state", "absolute_orbit", "baseline",
    "cloud_cover", "sun_azimuth", "sun_elevation", "properties",
)  # fmt: skip


def _pair_steps(table: pd.DataFrame) -> Grouped:
    reference = [p.get("insar:reference_datetime") for p in table["properties"]]
    secondary = [p.get("insar:secondary_datetime") for p in table["properties"]]
    for item, first, second in zip(table["id"], reference, secondary, strict=True):
        if not (first and second):
            raise CubeError(
                f"item {item!r} lacks insar:reference_datetime or insar:secondary_datetime, so "
                "its pair is unknown"
            )
    table = table.assign(
        _reference=[_iso(v) for v in reference], _secondary=[_iso(v) for v in secondary]
    )
    out: Grouped = []
    keys = ["_secondary", "_reference", "relative_orbit", "orbit_state"]
    for _, rows in table.groupby(keys, sort=True, dropna=False):
        row = rows.iloc[0]
        first, second = pd.Timestamp(row["_reference"]), pd.Timestamp(row["_secondary"])
        track = series.track_label(row["relative_orbit"], row["orbit_state"])
        properties = row["properties"]
        coords: Coordinates = {
            "pair": f"{first:%Y%m%dT%H%M%S}_{second:%Y%m%dT%H%M%S}_{track}",
            "reference_time": row["_reference"],
            "secondary_time": row["_secondary"],
            # days between passes, whole: orbits repeat to within seconds
            "temporal_baseline": round((second - first) / pd.Timedelta("1D")),
            "perpendicular_baseline": _mean([properties.get("insar:perpendicular_baseline")]),
            "relative_orbit": _whole([row["relative_orbit"]]),
            "orbit_state": _text([row["orbit_state"]]),
            "items": _items(rows),
        }
        out.append((coords, _records(rows)))
    return out


def _track_steps(table: pd.DataFrame) -> Grouped:
    table = series.with_tracks(table)
    labels = [series.track_label(r.relative_orbit, r.orbit_state) for r in table.itertuples()]
    out: Grouped = []
    for label, rows in table.assign(_track=labels).groupby("_track", sort=True):
        coords: Coordinates = {
            "track": str(label),
            "relative_orbit": _whole(rows["relative_orbit"].tolist()),
            "orbit_state": _text(rows["orbit_state"].tolist()),
            "items": _items(rows),
        }
        out.append((coords, _records(rows)))
    return out


def _year_steps(table: pd.DataFrame, time: tuple[str, str]) -> Grouped:
    """Return label maps by year: those inside the time range, or else the nearest year's."""
    years = table["time"].dt.year
    first, last = (pd.Timestamp(t).year for t in time)
    inside = (years >= first) & (years <= last)
    if not inside.any():
        away = np.minimum((years - first).abs(), (years - last).abs())
        inside = away == away.min()
    out: Grouped = []
    for year, rows in table[inside].groupby(years[inside], sort=True):
        out.append(({"year": int(year), "items": _items(rows)}, _records(rows)))
    return out


def steps(layer: Layer, table: pd.DataFrame, time: tuple[str, str]) -> Grouped:
    """Return the steps along a layer's axis: coordinates, and the granules that make each."""
    if layer.stack_dim == "time":
        return _time_steps(table, layer.group)
    if layer.stack_dim == "pair":
        return _pair_steps(table)
    if layer.stack_dim == "track":
        return _track_steps(table)
    if layer.stack_dim == "year":
        return _year_steps(table, time)
    return [({}, _records(table))]


def _records(rows: pd.DataFrame) -> list[Any]:
    """Return rows as objects: itertuples makes a class per call, 1 s for 1,000 steps."""
    values = zip(*(rows[n] for n in _NEEDED), strict=True)
    return [SimpleNamespace(**dict(zip(_NEEDED, v, strict=True))) for v in values]


def picked(plan: Plan, steps: Steps) -> Plan:
    """Return the plan with some steps of some axes, in their order; other axes stay whole."""
    chosen = {key: sorted(set(where)) for key, where in steps.items()}

    def of(layer: Layer | None, key: tuple[str, str | None], values: Sequence[Any]) -> Any:
        where = chosen.get(key)  # type: ignore[arg-type]
        derived = layer is not None and bool(layer.derived_from)
        return tuple(values) if where is None or derived else tuple(values[i] for i in where)

    return replace(
        plan,
        axes=tuple(
            replace(a, coords={n: of(None, (a.group, a.dim), v) for n, v in a.coords.items()})
            for a in plan.axes
        ),
        arrays=tuple(
            replace(a, steps=of(a.layer, (a.layer.group, a.layer.stack_dim), a.steps))
            for a in plan.arrays
        ),
    )
