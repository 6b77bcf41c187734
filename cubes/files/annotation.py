"""The look of a Sentinel-1 SLC or GRD from its annotation: no look vectors, no orbit needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from cubes import grid as grids
from cubes.files.geotiff import PathLike
from cubes.radar.geometry import Look
from cubes.types import CubeError, Grid

Floats = npt.NDArray[np.float64]


def annotation_look(paths: PathLike | Sequence[PathLike], like: Any) -> Look:
    """Return the look vectors of a pass on a grid, (y, x) float64, NaN outside of its swaths.

    Incidence and direction come from the geolocation grid of the annotation. The direction is that
    from near to far range where the ground is seen: ``platformHeading`` is the satellite's own,
    true 400 to 900 km away, and 2 degrees off at 32 degrees north (meridians converge). What this
    gives lies within 0.14 degrees of azimuth of the line to the orbit's state vectors (measured on
    a real IW1: ``tests/cubes/test_pairs.py``).

    Parameters
    ----------
    paths : path or sequence of path
        ``annotation/*.xml`` of a SAFE folder: of all swaths that the grid needs, of one pass.
    like : GeoBox, Grid, cube or xarray object
        The grid, in any projection; a `Grid` must have its place (``Grid(geobox=...)``).

    Returns
    -------
    Look
        For `cubes.radar.geometry.local_incidence` and `layover_shadow`.

    Raises
    ------
    CubeError
        No such file, no annotation of Sentinel-1, swaths of several passes, or none on the grid.
    """
    from odc.geo.geobox import GeoBox
    from pyproj import Transformer
    from scipy.interpolate import LinearNDInterpolator

    box = like if isinstance(like, GeoBox) else None
    if box is None:
        box = (like if isinstance(like, Grid) else grids.like(like)).geobox
    if box is None or box.crs is None:
        raise CubeError("the grid has no place or no CRS; give a GeoBox, or Grid(geobox=...)")
    files = (
        [paths] if isinstance(paths, str | Path) or hasattr(paths, "__fspath__") else list(paths)
    )
    read = [_points(path) for path in files]
    passes = sorted({orbit for orbit, _ in read})
    if len(passes) != 1:
        raise CubeError(
            f"the annotations are of {len(passes)} passes, absolute orbits "
            f"{', '.join(map(str, passes))}: give those of one"
        )
    lon, lat, incidence, toward = np.concatenate([points for _, points in read], axis=1)
    forward = Transformer.from_crs("EPSG:4326", box.crs.proj, always_xy=True)
    x, y = forward.transform(lon, lat)
    seen = np.isfinite(x) & np.isfinite(y)
    look = Look.from_angles(incidence, toward - 90)
    values = np.stack([look.east, look.north, look.up], axis=1)
    found = LinearNDInterpolator(np.stack([x, y], axis=1)[seen], values[seen])
    ys, xs = (np.asarray(box.coordinates[d].values) for d in box.dimensions)
    east, north, up = np.moveaxis(found(*np.meshgrid(xs, ys)), -1, 0)
    if np.isnan(up).all():
        raise CubeError(
            f"no pixel of the grid lies in the swaths of {', '.join(str(f) for f in files)}, "
            f"{lon.min():.2f} to {lon.max():.2f} E, {lat.min():.2f} to {lat.max():.2f} N"
        )
    length = np.sqrt(east**2 + north**2 + up**2)
    return Look(east=east / length, north=north / length, up=up / length)


def _points(path: PathLike) -> tuple[int, Floats]:
    """Return the absolute orbit, and (4, n): longitude, latitude, incidence, direction of range.

    Degrees; the direction clockwise from north, toward far range.
    """
    from pyproj import Geod

    if not Path(path).is_file():
        raise CubeError(f"no such file: {path}")
    try:
        root = ElementTree.parse(path).getroot()
        found = root.findall(".//geolocationGridPoint")
        names = ("line", "pixel", "longitude", "latitude", "incidenceAngle")
        numbers = np.array([[float(point.find(n).text) for n in names] for point in found])  # type: ignore[union-attr,arg-type]
        orbit = int(root.find(".//absoluteOrbitNumber").text)  # type: ignore[union-attr,arg-type]
        numbers = numbers[np.lexsort((numbers[:, 1], numbers[:, 0]))]
        columns = len(np.unique(numbers[:, 1]))
        table = numbers.reshape(-1, columns, len(names))
        if columns < 2:
            raise ValueError("a geolocation grid of one column")
    except (ElementTree.ParseError, AttributeError, ValueError, IndexError) as error:
        raise CubeError(
            f"{path} is no annotation of a Sentinel-1 SLC or GRD (annotation/s1*.xml of a SAFE "
            f"folder): {error}"
        ) from None
    lon, lat = table[..., 2], table[..., 3]
    geod = Geod(ellps="WGS84")
    # to the neighbours on both sides; at the ends to the one there is
    low = np.maximum(np.arange(columns) - 1, 0)
    high = np.minimum(np.arange(columns) + 1, columns - 1)
    toward, _, length = geod.inv(lon[:, low], lat[:, low], lon[:, high], lat[:, high])
    del length
    # the azimuth at `low`, turned to the middle by half of what the meridians converge
    turn = (lon - lon[:, low]) * np.sin(np.deg2rad((lat + lat[:, low]) / 2))
    return orbit, np.stack([lon, lat, table[..., 4], toward + turn]).reshape(4, -1)
