"""The predecessors' recipes: what they gather, by which rules, and which labels stand where."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import shapely
from shapely.geometry.base import BaseGeometry

from cubes import places, registry, sen12ts
from cubes.types import AOI, CubeError

WORLDCOVER = "labels/worldcover"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a corpus is gathered."""

    name: str
    layers: tuple[str, ...]
    bands: tuple[str, ...]
    time: tuple[str, str]
    """Default period, ISO 8601, UTC."""
    where: Literal["cover", "points"]
    """Cells that cover the area, or points drawn in it, equally many per window of 12 days."""
    edge: float
    """Edge of a cell, or of the square around a point, metres."""
    min_share: float = 0.01
    """Of a cell that the area must cover: slivers along borders are left out."""
    points: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    """Label layer -> the place where it stands instead of WorldCover: one of `PLACES`, or what
    `cubes.places.land` takes. What lies in it by more than half counts as there."""
    rule: sen12ts.Rule | None = None
    """Rule of the series (SEN12TS); None: one pair of dates, drawn at random."""
    max_gap: str = "3D"
    """Of a pair."""
    seed: int = 0
    """Of points, pairs and caps."""


PLACES = {"conterminous US": ("US", (-125.0, 24.0, -66.0, 50.0))}
"""Name -> what `cubes.places.land` takes, and the box (west, south, east, north) that cuts it: CDL
is made of the states without Alaska and Hawaii."""

_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="sen12ts",
            layers=(
                "s1/backscatter", "s1/incidence", "s1/layover_shadow", "insar/coherence",
                "insar/phase", "s2/reflectance", "s2/scl", "s2/clear", "terrain/elevation",
                "labels/worldcover",
            ),
            bands=_BANDS,
            time=("2020-01-01", "2020-12-31"),
            where="cover",
            edge=20_480.0,
            labels={"labels/cdl": "conterminous US", "labels/sigpac": "catalonia"},
            rule=sen12ts.Rule(),
        ),
        Recipe(
            name="deepsentinel-1k",
            layers=("s1/backscatter", "s2/reflectance", "s2/scl", "s2/clear"),
            bands=_BANDS,
            time=("2019-08-01", "2019-09-17"),
            where="points",
            edge=2_560.0,
            points=1_000,
        ),
    )
}  # fmt: skip
"""Name -> recipe. A cell of SEN12TS holds 8 x 8 of its tiles: dates that they share stand once."""


def recipe(name: str | Recipe, *, without: Sequence[str] = (), **changes: Any) -> Recipe:
    """Return a recipe by name, or as it is, without some layers and with some fields replaced.

    Raises
    ------
    CubeError
        No such recipe; a layer that it has not, or that its dates are chosen by.
    """
    if isinstance(name, str) and name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CubeError(f"unknown recipe {name!r}{hint} Known: {', '.join(RECIPES)}")
    made = RECIPES[name] if isinstance(name, str) else name
    for layer in without:
        if layer not in made.layers:
            raise CubeError(
                f"recipe {made.name!r} has no layer {layer!r}: {', '.join(made.layers)}"
            )
        if layer in ("s1/backscatter", "s2/reflectance") or layer.startswith("insar/"):
            raise CubeError(
                f"recipe {made.name!r} chooses its dates by {layer!r}: it must be there"
            )
    layers = tuple(layer for layer in made.layers if layer not in without)
    return replace(made, layers=layers, **changes)


def there(made: Recipe, area: AOI | None) -> Recipe:
    """Return the recipe with the label layer of an area, by where it lies, whatever its name."""
    if area is None or WORLDCOVER not in made.layers:
        return made
    for own, place in made.labels.items():
        if _mostly(area.geometry, _ground(place)):
            layers = tuple(own if layer == WORLDCOVER else layer for layer in made.layers)
            return replace(made, layers=layers)
    return made


def _ground(place: str) -> BaseGeometry:
    if place in registry.aois():
        # an area of one's own outlines is finer than the map of the countries
        return registry.named_aoi(place).geometry
    where, box = PLACES.get(place, (place, None))
    ground = places.land(where)
    return ground if box is None else shapely.clip_by_rect(ground, *box)


def _mostly(area: BaseGeometry, ground: BaseGeometry) -> bool:
    """Return whether more than half of an area's land is within; of a point whether it is."""
    if not area.area:
        return bool(ground.intersects(area))
    within = shapely.intersection(area, ground).area
    land = shapely.intersection(area, shapely.union(places.land(), ground)).area
    return bool(within > 0.5 * (land or area.area))
