"""What a corpus says to people: whose data it is, how much there is, and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import pandas as pd
import shapely
from shapely.geometry.base import BaseGeometry

from cubes import places

COPERNICUS = "https://sentinels.copernicus.eu/documents/247904/690755/Sentinel_Data_Legal_Notice"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Whose data a layer is."""

    title: str
    license: str
    """SPDX id, or the name of the terms."""
    url: str
    attribution: str
    """``{years}`` stands for the years of the corpus."""


_SENTINEL = Source(
    title="Copernicus Sentinel-1 and Sentinel-2",
    license="Copernicus Sentinel Data Legal Notice",
    url=COPERNICUS,
    attribution="Contains modified Copernicus Sentinel data {years}",
)

SOURCES: Mapping[str, Source] = {
    "s1": _SENTINEL,
    "insar": _SENTINEL,
    "s2": _SENTINEL,
    "terrain": Source(
        title="Copernicus DEM GLO-30",
        license="Copernicus DEM licence",
        url="https://dataspace.copernicus.eu/explore-data/data-collections/copernicus-contributing-missions/collections-description/COP-DEM",
        attribution="© DLR e.V. 2010-2014 and © Airbus Defence and Space GmbH 2014-2018 provided "
        "under COPERNICUS by the European Union and ESA; all rights reserved",
    ),
    "labels/worldcover": Source(
        title="ESA WorldCover",
        license="CC-BY-4.0",
        url="https://esa-worldcover.org/en/data-access",
        attribution="© ESA WorldCover project / Contains modified Copernicus Sentinel data "
        "processed by ESA WorldCover consortium",
    ),
    "labels/io-lulc": Source(
        title="Impact Observatory land use and land cover",
        license="CC-BY-4.0",
        url="https://www.impactobservatory.com/maps-for-good/",
        attribution="Impact Observatory, Microsoft, and Esri",
    ),
    "labels/cdl": Source(
        title="USDA NASS Cropland Data Layer",
        license="public domain",
        url="https://www.nass.usda.gov/Research_and_Science/Cropland/SARS1a.php",
        attribution="USDA National Agricultural Statistics Service, Cropland Data Layer",
    ),
    "labels/corine": Source(
        title="CORINE Land Cover",
        license="Copernicus Land Monitoring Service data policy",
        url="https://land.copernicus.eu/en/data-policy",
        attribution="© European Union, Copernicus Land Monitoring Service, European Environment "
        "Agency (EEA)",
    ),
}
"""Group or layer -> source, for cubes from the shipped catalogues; a layer's own row goes before
its group's. What is not listed is named in the card as of unstated origin."""

SIMULATED = Source(
    title="simulated world",
    license="CC0-1.0",
    url="https://creativecommons.org/publicdomain/zero/1.0/",
    attribution="Simulated data; nothing in it was measured",
)


def sources(layers: Iterable[str], *, simulated: bool = False) -> list[Source]:
    """Return the distinct sources of layers, in their order."""
    if simulated:
        return [SIMULATED]
    found = (SOURCES.get(name) or SOURCES.get(name.split("/")[0]) for name in layers)
    return list(dict.fromkeys(s for s in found if s is not None))


def unstated(layers: Iterable[str], *, simulated: bool = False) -> list[str]:
    """Return the layers of which `SOURCES` knows no origin."""
    return [n for n in layers if not (simulated or n in SOURCES or n.split("/")[0] in SOURCES)]


def attribution(found: Sequence[Source], table: pd.DataFrame) -> tuple[str, ...]:
    """Return one line per source, with the years that a corpus covers."""
    years = sorted({*table["start"].dt.year, *table["end"].dt.year})
    span = str(years[0]) if len(years) == 1 else f"{years[0]}-{years[-1]}"
    return tuple(s.attribution.format(years=span) for s in found)


# ------------------------------------------------------------------------------------------ text


def text(meta: Mapping[str, Any], table: pd.DataFrame, found: Sequence[Source]) -> str:
    """Return the data card of a corpus, Markdown.

    Parameters
    ----------
    meta : mapping
        ``name``, ``title``, ``description``, ``license``, ``attribution``, ``unstated``.
    table : pandas.DataFrame
        One row per cube, see `cubes.corpora.corpus.Corpus`.
    found : sequence of Source
        Whose data it is.
    """
    first, last = table["start"].min(), table["end"].max()
    west, south, east, north = _bounds(table)
    lines = [
        f"# {meta['title']}",
        "",
        meta["description"] or "Sentinel-1 and Sentinel-2 cubes on one grid each.",
        "",
        "![Map of the cubes](map.svg)",
        "",
        "| | |",
        "|---|---|",
        f"| name | `{meta['name']}` |",
        f"| cubes | {len(table):,} |",
        f"| time | {first:%Y-%m-%d} to {last:%Y-%m-%d} |",
        f"| place | {west:.3f} to {east:.3f} degrees east, {south:.3f} to {north:.3f} north |",
        f"| projections | {_counted(table['crs'])} |",
        f"| pixels an edge | {_counted(f'{a} x {b}' for a, b in table['shape'])} |",
        f"| size | {table['bytes'].sum():,} bytes in {table['objects'].sum():,} objects |",
        f"| licence | {meta['license']} |",
        "",
        "## Layers",
        "",
        "| layer | cubes | steps | share of pixels with data |",
        "|---|---|---|---|",
        *_layer_lines(table),
        "",
        "For `s2/clear` the share is that of clear pixels. Numbers are stored as small integers "
        "with CF `scale_factor` and `add_offset`.",
        "",
        "## Licence and attribution",
        "",
        *(f"- {s.title}: [{s.license}]({s.url})" for s in found),
        "",
        "Users must show:",
        "",
        *(f"> {line}" for line in meta["attribution"]),
        "",
    ]
    if meta["unstated"]:
        names = ", ".join(f"`{n}`" for n in meta["unstated"])
        lines += [f"The origin of {names} was not stated by whoever published this corpus.", ""]
    lines += [
        "## Use",
        "",
        "```python",
        "import cubes",
        "",
        'corpus = cubes.open_corpus("URL of the folder that holds collection.json")',
        "corpus.table           # one row per cube",
        "cube = corpus.open(corpus.table.index[0])",
        "```",
        "",
        "`items.parquet` is GeoParquet with a STAC item per row; `objects.parquet` lists the "
        "SHA-256 of every object; each cube is a Zarr v3 store.",
        "",
    ]
    return "\n".join(lines)


def _bounds(table: pd.DataFrame) -> tuple[float, float, float, float]:
    found = shapely.total_bounds(table["geometry"].to_numpy())
    return tuple(float(v) for v in found)  # type: ignore[return-value]


def _counted(values: Iterable[Any]) -> str:
    counts = pd.Series([str(v) for v in values]).value_counts()
    shown = [f"{value} ({count:,})" for value, count in counts.head(6).items()]
    return ", ".join(shown) + (f" and {len(counts) - 6} more" if len(counts) > 6 else "")


def _layer_lines(table: pd.DataFrame) -> list[str]:
    names = list(dict.fromkeys(n for row in table["layers"] for n in row))
    out = []
    for name in names:
        steps = pd.Series([row[name] for row in table["steps"] if name in row])
        valid = pd.Series([row[name] for row in table["valid"] if name in row])
        low, high = int(steps.min()), int(steps.max())
        span = f"{low}" if low == high else f"{low} to {high}"
        out.append(f"| `{name}` | {len(steps):,} | {span} | {valid.mean():.3f} |")
    return out


# ------------------------------------------------------------------------------------------- map


def map_svg(table: pd.DataFrame) -> str:
    """Return a map of the cubes' centres as SVG, equirectangular, the world or a part of it."""
    west, south, east, north = _view(_bounds(table))
    width = 800.0
    scale = width / (east - west)
    height = (north - south) * scale

    def path(geometry: BaseGeometry) -> str:
        parts = []
        for polygon in getattr(geometry, "geoms", [geometry]):
            if polygon.geom_type == "Polygon":
                points = [
                    f"{(x - west) * scale:.1f} {(north - y) * scale:.1f}"
                    for x, y in polygon.exterior.coords
                ]
                parts.append(f"M{'L'.join(points)}Z")
        return "".join(parts)

    land = shapely.clip_by_rect(places.land(), west, south, east, north)
    centres = shapely.get_coordinates(shapely.centroid(table["geometry"].to_numpy()))
    dots = "".join(
        f'<circle cx="{(x - west) * scale:.1f}" cy="{(north - y) * scale:.1f}" r="3"/>'
        for x, y in centres
    )
    size = f"0 0 {width:.0f} {height:.0f}"
    title = escape(f"{len(table):,} cubes")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" width="{width:.0f}">'
        f"<title>{title}</title>"
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#eef3f7"/>'
        f'<path d="{path(land)}" fill="#d8d5c8" stroke="#8a8a80" stroke-width="0.5"/>'
        f'<g fill="#b3261e" fill-opacity="0.7">{dots}</g></svg>\n'
    )


def _view(bounds: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """Return bounds at least 20 degrees wide and 10 high around others, within the world."""
    west, south, east, north = bounds
    x, y = (west + east) / 2, (south + north) / 2
    half = max((east - west) * 0.65, 10.0), max((north - south) * 0.65, 5.0)
    return (
        max(x - half[0], -180),
        max(y - half[1], -90),
        min(x + half[0], 180),
        min(y + half[1], 90),
    )
