"""Write cubes/registry/land.json: countries of Natural Earth as small polygons with ISO codes.

Run once, with the file ``countries-110m.json`` of the npm package world-atlas 2.0.2 (Natural Earth
1:110m, public domain; the package under ISC) and the PyPI package pycountry for two-letter codes::

    python tools/make_land.py countries-110m.json cubes/registry/land.json

TopoJSON stores shared borders once, as arcs of quantised differences; here each country becomes
plain rings in longitude and latitude, rounded to 0.01 degrees. Polygons that touch the
antimeridian are invalid as they come: ``make_valid`` keeps their area, ``buffer(0)`` would drop a
tenth of Eurasia's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycountry  # type: ignore[import-not-found]
import shapely

# Natural Earth draws these without an ISO number
UNNUMBERED = {"Kosovo": "XK", "N. Cyprus": "CY", "Somaliland": "SO"}
# in use, and not in ISO 3166
UNLISTED = {"XK": ("XKX", "Kosovo")}


def rings(topology: dict[str, Any], arcs: list[int]) -> np.ndarray:
    """Return a ring's coordinates, from arc numbers (negative: reversed)."""
    scale, shift = (np.array(topology["transform"][k]) for k in ("scale", "translate"))
    parts = []
    for number in arcs:
        index = number if number >= 0 else ~number
        points = np.cumsum(topology["arcs"][index], axis=0) * scale + shift
        parts.append((points if number >= 0 else points[::-1])[bool(parts) :])
    return np.concatenate(parts)


def polygons(topology: dict[str, Any], shape: dict[str, Any]) -> shapely.Geometry:
    """Return a country's valid geometry."""
    many = shape["arcs"] if shape["type"] == "MultiPolygon" else [shape["arcs"]]
    made = [
        shapely.Polygon(rings(topology, p[0]), [rings(topology, h) for h in p[1:]]) for p in many
    ]
    valid = shapely.make_valid(shapely.MultiPolygon(made))
    parts = [g for g in shapely.get_parts(valid) if g.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts)


def code(shape: dict[str, Any]) -> str:
    """Return the ISO 3166 two-letter code."""
    name = shape["properties"]["name"]
    if name in UNNUMBERED:
        return UNNUMBERED[name]
    return str(pycountry.countries.get(numeric=str(shape["id"]).zfill(3)).alpha_2)


def names(two: str) -> dict[str, str]:
    """Return the three-letter code and the English name of a two-letter code."""
    if two in UNLISTED:
        three, english = UNLISTED[two]
        return {"iso3": three, "english": english}
    row = pycountry.countries.get(alpha_2=two)
    return {"iso3": row.alpha_3, "english": getattr(row, "common_name", row.name)}


def main(source: str, target: str) -> None:
    """Write the file."""
    topology = json.loads(Path(source).read_text(encoding="utf-8"))
    features = []
    for shape in topology["objects"]["countries"]["geometries"]:
        geometry = shapely.set_precision(polygons(topology, shape), 0.01)
        features.append({
            "type": "Feature",
            "properties": {
                "code": code(shape), "name": shape["properties"]["name"], **names(code(shape))
            },
            "geometry": json.loads(shapely.to_geojson(geometry)),
        })  # fmt: skip
    features.sort(key=lambda f: (f["properties"]["code"], f["properties"]["name"]))
    body = {
        "type": "FeatureCollection",
        "source": "Natural Earth 1:110m countries, public domain, by npm world-atlas 2.0.2",
        "features": features,
    }
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    Path(target).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3])
