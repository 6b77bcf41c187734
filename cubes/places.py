"""Where to sample: equal-area land points in space and time, and patches that cover geometries."""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry

from cubes import registry
from cubes.bounds import cut_at_180, outline
from cubes.grid import as_aoi
from cubes.times import time_range
from cubes.types import AOI, CubeError, Grid
from cubes.zones import by_zone_of

EQUAL_AREA = "EPSG:6933"
"""Cylindrical equal-area projection of the WGS84 ellipsoid: uniform there is uniform on Earth."""

SOUTHERNMOST, NORTHERNMOST = -60.0, 82.8
"""No land but Antarctica lies further south; Sentinel-2 sees no further north."""

_UTM = shapely.box(-180, -80, 180, 84)

PATCH = 2560.0
"""Edge of a patch in metres: 256 pixels of 10 m, one cell of the lattice."""


@cache
def _countries() -> dict[str, BaseGeometry]:
    """Return land by ISO 3166 two-letter code, Antarctica left out (Natural Earth 1:110m)."""
    text = files("cubes.registry").joinpath("land.json").read_text(encoding="utf-8")
    parts: dict[str, list[BaseGeometry]] = {}
    for feature in json.loads(text)["features"]:
        code = feature["properties"]["code"]
        if code != "AQ":
            parts.setdefault(code, []).append(shape(feature["geometry"]))
    return {code: shapely.union_all(geometries) for code, geometries in parts.items()}


def countries() -> tuple[str, ...]:
    """Return the codes that `points` knows, ISO 3166 two-letter; three-letter ones and names too.

    Borders are those of Natural Earth, 1:110 million. Parts overseas belong to their country where
    ISO gives them no code of their own on that map: French Guiana and Corsica to FR, Alaska and
    Hawaii to US; Greenland (GL), New Caledonia (NC), Puerto Rico (PR), the Falklands (FK) stand by
    themselves, and smaller islands are not on it. Western Sahara is divided along the berm: what
    lies west of it is MA, the rest EH. Cut others off by an area: ``land`` of a box around them.
    """
    return tuple(sorted(_countries()))


@cache
def _names() -> dict[str, str]:
    """Return the code of each country by all that it is called, casefolded."""
    text = files("cubes.registry").joinpath("land.json").read_text(encoding="utf-8")
    rows = [f["properties"] for f in json.loads(text)["features"]]
    kept = [row for row in rows if row["code"] in _countries()]
    return {
        row[k].casefold(): row["code"] for row in kept for k in ("name", "english", "iso3", "code")
    }


def _codes(within: Any) -> list[str] | None:
    """Return the codes that codes and names of countries stand for; None for an area.

    Raises
    ------
    CubeError
        A text that is neither a country nor an area, or both in one list.
    """
    texts = [within] if isinstance(within, str) else within
    if not (isinstance(texts, Sequence) and texts and all(isinstance(t, str) for t in texts)):
        return None
    if isinstance(within, str) and (
        within in registry.aois() or within.endswith((".geojson", ".json"))
    ):
        return None
    known = _names()
    lost = [t for t in texts if t.casefold() not in known]
    if not lost:
        return sorted({known[t.casefold()] for t in texts})
    near = difflib.get_close_matches(lost[0].casefold(), [*known, *registry.aois()], n=1)
    named = f"; did you mean {known.get(near[0], near[0])!r} ({near[0]})?" if near else ""
    kind = "country code" if len(lost[0]) == 2 else "country or area"
    raise CubeError(
        f"unknown {kind} {lost[0]!r}{named or '.'} Countries go by ISO 3166 code, two or three "
        f"letters, or English name; areas by {', '.join(registry.aois())}, or a GeoJSON file"
    )


def land(within: Any = None) -> BaseGeometry:
    """Return land without Antarctica, EPSG:4326, whole or within something.

    Parameters
    ----------
    within : str, sequence of str, or area, optional
        Countries by ISO 3166 code (two or three letters) or English name, see `countries`; or
        anything `cubes.aoi` takes; an area is cut by the coast. A listed area's name as it is
        written (``"uganda"``) is that area.

    Raises
    ------
    CubeError
        Unknown country, or an area without land.
    """
    known = _countries()
    if within is None:
        return shapely.union_all(list(known.values()))
    codes = _codes(within)
    if codes is not None:
        return shapely.union_all([known[c] for c in codes])
    area = as_aoi(within).geometry
    found = shapely.intersection(shapely.union_all(list(known.values())), area)
    if found.is_empty or found.area == 0:
        raise CubeError(
            f"there is no land within {area.bounds} on a map of 1:110 million; small islands are "
            "not on it: give the points yourself"
        )
    return found


def windows(time: Any, length: str = "12D") -> list[tuple[pd.Timestamp, pd.Timestamp]]:
    """Return the whole windows of `length` that fit in a time range, first to last.

    One rule for every sampling by time: a last day counts whole (`cubes.times.time_range`), so that
    2019-08-01 to 2019-09-17 are 48 days and 4 windows of 12; windows begin at the start and lie end
    to end; what is left of the range after the last whole one is in none, because as many points
    in a shorter window would be denser in time.

    Parameters
    ----------
    time : tuple or str
        A range in any form that `cubes.times.time_range` takes.
    length : str
        Of a window.

    Returns
    -------
    list of (Timestamp, Timestamp)
        First moment, and the first after it; UTC, no zone.

    Raises
    ------
    CubeError
        Reversed, no time range, or shorter than one window.
    """
    # a range ends with its last microsecond, a window with the first moment after it
    start, stop = (pd.Timestamp(t).ceil("s") for t in time_range(time))
    step = pd.Timedelta(length)
    if step <= pd.Timedelta(0):
        raise CubeError(f"a window of {length!r} must be positive")
    count = int((stop - start) / step)
    if count < 1:
        raise CubeError(
            f"{start:%Y-%m-%d} to {stop:%Y-%m-%d} holds no window of {length}; give a later end"
        )
    return [(start + i * step, start + (i + 1) * step) for i in range(count)]


def points(
    n: int,
    *,
    seed: int,
    time: tuple[Any, Any] | None = None,
    within: Any = None,
    window: str = "12D",
    size: float = PATCH,
) -> pd.DataFrame:
    """Return exactly `n` land points, uniform by area, equally many in each time window.

    Parameters
    ----------
    n : int
        Number of points.
    seed : int
        The same seed gives the same points.
    time : (start, end), optional
        Cut into whole windows of `window` as `windows` does; the first ``n mod windows`` of them
        get one point more.
    within : optional
        See `land`; strata are drawn by calling once per stratum: with one seed, the draws in two
        areas are independent of each other.
    window : str
        Length of a time window: 12 days are one repeat of a Sentinel-1 satellite.
    size : float
        Edge of the patch around a point, metres.

    Returns
    -------
    pandas.DataFrame
        One row per point: ``aoi`` (`AOI`, a point with its size), ``lon``, ``lat`` (degrees),
        ``country``, and with `time` ``start``, ``end`` (UTC).

    Raises
    ------
    CubeError
        n below 1; unknown country; no land; a time range without a window.
    """
    if n < 1:
        raise CubeError(f"cannot draw {n} points; ask for at least 1")
    area = land(within)
    slots = windows(time, window) if time is not None else [None]
    counts = [n // len(slots) + (i < n % len(slots)) for i in range(len(slots))]
    own = _salt(within)
    lonlat = np.concatenate(
        [
            _draw(area, count, np.random.default_rng([seed, i, *own]))
            for i, count in enumerate(counts)
        ]
    )
    table = pd.DataFrame({"lon": lonlat[:, 0].round(6), "lat": lonlat[:, 1].round(6)})
    table.insert(0, "aoi", [_point(lon, lat, size) for lon, lat in lonlat.round(6)])
    table["country"] = _country_of(lonlat)
    if time is not None:
        which = np.repeat(np.arange(len(slots)), counts)
        table["start"] = pd.to_datetime([slots[i][0] for i in which])  # type: ignore[index]
        table["end"] = pd.to_datetime([slots[i][1] for i in which])  # type: ignore[index]
    return table


def _salt(within: Any) -> list[int]:
    """Return what makes the draws in one area differ from those of the same seed in another."""
    if within is None:
        return []
    codes = _codes(within)
    said = as_aoi(within).wkt if codes is None else " ".join(codes)
    return [zlib.crc32(said.encode())]


def _point(lon: float, lat: float, size: float) -> AOI:
    return AOI(name=f"lat_{lat:.4f}_lon_{lon:.4f}", wkt=f"POINT ({lon:.6f} {lat:.6f})", size=size)


def _draw(area: BaseGeometry, n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return `n` points of an area by rejection in an equal-area projection, degrees (n, 2)."""
    from pyproj import Transformer

    plane = Transformer.from_crs("EPSG:4326", EQUAL_AREA, always_xy=True)
    west, south, east, north = area.bounds
    south, north = max(south, SOUTHERNMOST), min(north, NORTHERNMOST)
    if south >= north:
        raise CubeError(
            f"the area lies between {area.bounds[1]:.2f} and {area.bounds[3]:.2f} degrees north; "
            f"points are drawn from {SOUTHERNMOST:g} to {NORTHERNMOST:g}"
        )
    (x0, x1), (y0, y1) = plane.transform([west, east], [south, north])
    shapely.prepare(area)
    found: list[npt.NDArray[np.float64]] = [np.empty((0, 2))]
    have = 0
    while have < n:
        # land is 3 in 10 of the globe: a few rounds suffice, and few are thrown away
        tries = max(256, int((n - have) * 3.6))
        x, y = rng.uniform(x0, x1, tries), rng.uniform(y0, y1, tries)
        lon, lat = plane.transform(x, y, direction="INVERSE")
        inside = shapely.contains_xy(area, lon, lat)
        found.append(np.stack([lon[inside], lat[inside]], axis=1))
        have += int(inside.sum())
    return np.concatenate(found)[:n]


def _country_of(lonlat: npt.NDArray[np.float64]) -> npt.NDArray[np.object_]:
    known = _countries()
    tree = shapely.STRtree(list(known.values()))
    point, country = tree.query(shapely.points(lonlat), predicate="within")
    out = np.full(len(lonlat), "", object)
    # last to first, so that on a shared border the first code stays
    out[point[::-1]] = np.array(list(known), object)[country[::-1]]
    return out


def patches(geometries: Any, *, size: float = PATCH, resolution: float = 10.0) -> pd.DataFrame:
    """Return the lattice cells that cover vector geometries, each with its source row.

    Parameters
    ----------
    geometries : GeoDataFrame, GeoSeries or iterable of shapely geometries
        In any CRS where it has one, else longitude and latitude.
    size : float
        Edge of a cell in metres; cells lie on the lattice of multiples of it.
    resolution : float
        Pixel edge of the grids, metres.

    Returns
    -------
    pandas.DataFrame
        One row per geometry and cell: ``row`` (index label of the source), ``crs``, ``x``, ``y``
        (west and north edge, metres), ``share`` (of the cell that the geometry covers), ``aoi``
        and ``grid``. Of a cell over 180 degrees ``aoi`` is the larger side, and of one over an
        end of UTM's range the part within; ``grid`` is always the whole cell. Rows that match no
        cell are listed in ``attrs["unmatched"]``, and why, in that order, in ``attrs["reasons"]``.

    Raises
    ------
    CubeError
        A table without a CRS; a cell that is not a whole number of pixels.
    """
    if abs(size / resolution - round(size / resolution)) > 1e-9:
        raise CubeError(f"a patch of {size} m is not a whole number of pixels of {resolution} m")
    rows: list[dict[str, Any]] = []
    unmatched: list[Any] = []
    reasons: list[str] = []
    for label, geometry in _labelled(geometries):
        reason = _uncoverable(geometry)
        if reason is None:
            cells = _cells(geometry, size, resolution)
            rows += [{"row": label, **_patch(c, size, resolution)} for c in cells]
        else:
            unmatched.append(label)
            reasons.append(reason)
    table = pd.DataFrame(rows, columns=["row", "crs", "x", "y", "share", "aoi", "grid"])
    table.attrs["unmatched"], table.attrs["reasons"] = unmatched, reasons
    return table


def _labelled(geometries: Any) -> Iterable[tuple[Any, Any]]:
    if hasattr(geometries, "to_crs"):
        if geometries.crs is None:
            raise CubeError("the table of geometries has no CRS; set one with .set_crs(...)")
        series = geometries.to_crs("EPSG:4326").geometry
        if geometries.crs.is_projected:
            return [(label, _unrolled(geometry)) for label, geometry in series.items()]
        return list(series.items())
    return list(enumerate(geometries))


def _unrolled(geometry: Any) -> Any:
    """Return what was projected to degrees, cut at 180 where its edges jump across the world."""
    if geometry is None or geometry.is_empty or np.ptp(geometry.bounds[::2]) <= 180:
        return geometry
    return cut_at_180(
        shapely.transform(geometry, lambda xy: xy + np.where(xy[:, :1] < 0, [[360, 0]], [[0, 0]]))
    )


def _uncoverable(geometry: Any) -> str | None:
    """Return why a geometry has no cells, None where it has."""
    if geometry is None or geometry.is_empty:
        return "empty"
    bounds = shapely.bounds(shapely.get_parts(geometry))
    west, south, east, north = geometry.bounds
    if not np.isfinite(bounds).all():
        return "coordinates that are no numbers"
    if south < -80 or north > 84:
        return f"latitudes {south:.2f} to {north:.2f} leave the range of UTM (-80 to 84)"
    if (bounds[:, 2] - bounds[:, 0] > 180).any() or west < -180 or east > 360:
        return (
            f"a part of longitudes {west:.2f} to {east:.2f}: over 180 degrees write a MultiPolygon "
            "with a part on either side; metres need a table with a CRS"
        )
    return None


def _cells(
    geometry: BaseGeometry, size: float, resolution: float
) -> Iterable[tuple[str, float, float, float]]:
    """Yield (crs, west, north, share) of the cells that a geometry covers, zone by zone.

    As in `cubes.grid.geobox`, a cell counts when the geometry reaches more than half a pixel into
    it: a cell written as four corners in degrees bulges by 2 m into its neighbours.
    """
    from pyproj import Transformer

    for zone, part in by_zone_of(geometry):
        crs = f"EPSG:{32600 + zone}"
        forward = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        dense = shapely.segmentize(part, 0.01)
        xy = np.column_stack(forward.transform(*shapely.get_coordinates(dense).T))
        flat = shapely.set_coordinates(dense, xy)
        # what lies wholly within half a pixel of borders has a cell all the same
        found = _touched(flat, size, resolution / 2) or _touched(flat, size, 0.0)
        for west, south in found:
            box = shapely.box(west, south, west + size, south + size)
            share = shapely.intersection(flat, box).area / size**2
            yield crs, west, south + size, float(share)


def _touched(flat: BaseGeometry, size: float, slack: float) -> list[tuple[float, float]]:
    """Return (west, south) of the cells that a geometry reaches into, north to south."""
    left, bottom, right, top = flat.bounds
    columns = np.arange(np.floor(left / size), np.floor(right / size) + 1) * size
    lines = np.arange(np.floor(bottom / size), np.floor(top / size) + 1)[::-1] * size
    shapely.prepare(flat)
    found: list[tuple[float, float]] = []
    for south in lines:
        cores = shapely.box(
            columns + slack, south + slack, columns + size - slack, south + size - slack
        )
        hit = shapely.intersects(flat, cores)
        found += [(float(west), float(south)) for west in columns[hit]]
    return found


def _patch(cell: tuple[str, float, float, float], size: float, resolution: float) -> dict[str, Any]:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    crs, west, north, share = cell
    edge = round(size / resolution)
    box = GeoBox((edge, edge), Affine(resolution, 0, west, 0, -resolution, north), crs)
    whole = outline((west, north - size, west + size, north), crs, size / 4)
    within = shapely.get_parts(shapely.intersection(whole, _UTM))
    area = max(within, key=lambda part: float(part.area))
    return {
        "crs": crs, "x": west, "y": north, "share": share, "aoi": as_aoi(area),
        "grid": Grid(geobox=box),
    }  # fmt: skip
