"""STAC documents of a published world, as plain dictionaries in the Planetary Computer's shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .geometry import Raster, ring, to_lonlat

COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "eo": "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "sar": "https://stac-extensions.github.io/sar/v1.0.0/schema.json",
    "sat": "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
    "view": "https://stac-extensions.github.io/view/v1.0.0/schema.json",
}
TITLES = {
    "sentinel-1-rtc": "Simulated Sentinel-1, radiometrically terrain-corrected gamma nought",
    "sentinel-2-l2a": "Simulated Sentinel-2 Level-2A surface reflectance",
    "cop-dem-glo-30": "Simulated 30 m elevation model",
    "esa-worldcover": "Simulated 10 m land cover in ESA WorldCover codes",
    "sim-insar": "Simulated 12-day interferometric coherence and wrapped phase",
    "s1-static": "Simulated static layers of the Sentinel-1 tracks",
}


def stamp(time: datetime) -> str:
    """Return a UTC time in STAC's form, e.g. ``2021-04-03T17:25:41Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ").replace(".000000Z", "Z")


def footprint(grid: Raster) -> tuple[dict[str, Any], list[float]]:
    """Return the GeoJSON polygon and bbox in degrees of a grid."""
    if grid.epsg == 4326:
        w, s, e, n = grid.bounds
        points = [[w, s], [e, s], [e, n], [w, n], [w, s]]
    else:
        points = ring(grid.epsg, grid.bounds, n=4)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    box = [min(xs), min(ys), max(xs), max(ys)]
    return {"type": "Polygon", "coordinates": [points]}, [round(v, 7) for v in box]


def asset(href: str, grid: Raster, **more: Any) -> dict[str, Any]:
    """Return a COG asset; its grid is stated with the projection extension's version 2."""
    return {
        "href": href,
        "type": COG_TYPE,
        "roles": ["data"],
        "proj:code": f"EPSG:{grid.epsg}",
        "proj:shape": [grid.height, grid.width],
        "proj:transform": [float(v) for v in grid.transform],
        "proj:bbox": [float(v) for v in grid.bounds],
        **more,
    }


def item(
    name: str,
    collection: str,
    properties: Mapping[str, Any],
    assets: Mapping[str, dict[str, Any]],
    *,
    grid: Raster,
) -> dict[str, Any]:
    """Return an item whose asset hrefs are still paths relative to the archive's root."""
    geometry, box = footprint(grid)
    prefixes = {k.split(":")[0] for k in properties} | {"proj"}
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": [EXTENSIONS[p] for p in sorted(prefixes & set(EXTENSIONS))],
        "id": name,
        "geometry": geometry,
        "bbox": box,
        "properties": {**properties, "proj:code": f"EPSG:{grid.epsg}"},
        "links": [],
        "assets": dict(assets),
        "collection": collection,
    }


def collection(name: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the collection document of some items."""
    boxes = [i["bbox"] for i in items]
    times: list[str] = []
    for i in items:
        p = i["properties"]
        times += [t for k in ("start_datetime", "datetime", "end_datetime") if (t := p.get(k))]
    box = [
        min(b[0] for b in boxes),
        min(b[1] for b in boxes),
        max(b[2] for b in boxes),
        max(b[3] for b in boxes),
    ]
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "title": TITLES[name],
        "description": TITLES[name] + ". No measurement: made from a seed and a parameter file.",
        "license": "Apache-2.0",
        "extent": {
            "spatial": {"bbox": [box]},
            "temporal": {"interval": [[min(times), max(times)]]},
        },
        "links": [],
    }


def aoi_feature(epsg: int, bounds: tuple[float, float, float, float]) -> dict[str, Any]:
    """Return the area of interest as a GeoJSON feature.

    Drawn 2 m inside its lattice square, so that rounding to 7 decimals of a degree (1 cm) and
    the bend of straight lines between zones cannot pull in a row of the next lattice cell.
    """
    w, s, e, n = bounds
    points = ring(epsg, (w + 2, s + 2, e - 2, n - 2), n=16)
    lon, lat = to_lonlat(epsg, (w + e) / 2, (s + n) / 2)
    return {
        "type": "Feature",
        "properties": {
            "proj:code": f"EPSG:{epsg}",
            "proj:bbox": [float(v) for v in bounds],
            "centroid": [round(float(lon), 7), round(float(lat), 7)],
        },
        "geometry": {"type": "Polygon", "coordinates": [points]},
    }


def dump(path: Path, document: Any) -> None:
    """Write JSON whose bytes depend on nothing but the document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def write_catalogue(
    root: Path, name: str, aoi: dict[str, Any], items: Mapping[str, Sequence[dict[str, Any]]]
) -> Path:
    """Write a static catalogue with relative links; return the path of ``catalog.json``."""
    children = []
    for kind, members in items.items():
        folder = root / kind
        links = []
        for member in members:
            home = folder / member["id"]
            links.append(
                {
                    "rel": "item",
                    "href": f"./{member['id']}/{member['id']}.json",
                    "type": "application/geo+json",
                }
            )
            document = {
                **member,
                "assets": {
                    k: {**a, "href": f"./{Path(a['href']).name}"}
                    for k, a in member["assets"].items()
                },
                "links": [
                    {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
                    {"rel": "parent", "href": "../collection.json", "type": "application/json"},
                    {"rel": "collection", "href": "../collection.json", "type": "application/json"},
                ],
            }
            dump(home / f"{member['id']}.json", document)
        links.insert(0, {"rel": "root", "href": "../catalog.json", "type": "application/json"})
        links.insert(1, {"rel": "parent", "href": "../catalog.json", "type": "application/json"})
        dump(folder / "collection.json", {**collection(kind, members), "links": links})
        children.append(
            {
                "rel": "child",
                "href": f"./{kind}/collection.json",
                "type": "application/json",
                "title": TITLES[kind],
            }
        )
    dump(
        root / "catalog.json",
        {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": name,
            "description": f"Simulated world {name}: for tests and demonstrations, no measurement.",
            "deepsentinel:aoi": aoi,
            "links": [
                {"rel": "root", "href": "./catalog.json", "type": "application/json"},
                *children,
                {"rel": "aoi", "href": "./aoi.geojson", "type": "application/geo+json"},
            ],
        },
    )
    dump(root / "aoi.geojson", aoi)
    return root / "catalog.json"


def write_server_files(
    folder: Path, root: Path, items: Mapping[str, Sequence[dict[str, Any]]]
) -> tuple[Path, ...]:
    """Write what a STAC API server loads: one file per collection and all items; absolute hrefs.

    Returns the paths in the order in which ``rustac serve`` wants them: it takes one collection
    per file (a list of them is refused) and items after their collections. Asset hrefs name this
    machine's folders, so ``items.json``, alone of all, differs between two places of one world.
    """
    paths = []
    features: list[dict[str, Any]] = []
    for kind, members in items.items():
        path = folder / f"{kind}.collection.json"
        dump(path, collection(kind, members))
        paths.append(path)
        for member in members:
            features.append(
                {
                    **member,
                    "assets": {
                        # A plain path would be resolved against the server's own address.
                        k: {**a, "href": (root / a["href"]).resolve().as_uri()}
                        for k, a in member["assets"].items()
                    },
                }
            )
    dump(folder / "items.json", {"type": "FeatureCollection", "features": features})
    return (*paths, folder / "items.json")
