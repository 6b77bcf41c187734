"""What gathering a recipe would come to, before anything starts: no search, no pixel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cubes import grid, places, registry
from cubes.corpora.recipes import Recipe, recipe, there
from cubes.times import time_range
from cubes.types import CubeError

REPEAT_DAYS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Foretold:
    """How much a run of a recipe is."""

    recipe: str
    where: str
    """Name of the area."""
    patches: int
    """Cells, or points."""
    kind: str
    """``cells`` or ``points``."""
    edge: float
    """Of a patch, metres."""
    time: tuple[str, str]
    dates: int
    """Of each sensor and patch, at most: every 12 days of one track, or one pair."""
    labels: tuple[str, ...]
    """Layers of labels, by where the area lies."""
    gib: float
    """Stored numbers before compression, if every patch has that many dates."""
    folder: Path

    def __str__(self) -> str:
        """Return it in words."""
        first, last = (t[:10] for t in self.time)
        each = "1 pair of dates" if self.dates == 1 else f"about {self.dates} dates a track"
        labels = ", ".join(name.removeprefix("labels/") for name in self.labels) or "none"
        return (
            f"{self.recipe} for {self.where}: {self.patches:,} {self.kind} of "
            f"{self.edge / 1000:g} km, {first} to {last}, {each}, labels: {labels}, about "
            f"{self.gib:,.2g} GiB before compression for one track; cubes go into "
            f"{self.folder / 'cubes'}"
        )


def foretell(
    name: str | Recipe, area: Any, out: str | Path, *, limit: int | None = None
) -> Foretold:
    """Return what `cubes.corpora.gathering.gather` of the same arguments would come to.

    Raises
    ------
    CubeError
        Unknown names; an area where the recipe needs one, or that no cell covers.
    """
    made = recipe(name)
    where = None if area is None else grid.as_aoi(area)
    made = there(made, where)
    if made.where == "cover":
        if where is None:
            raise CubeError(f"recipe {made.name!r} covers an area: name one, such as 'california'")
        cells = places.patches([where.geometry], size=made.edge)
        count = int((cells["share"] >= made.min_share).sum())
        if not count:
            raise CubeError(f"no cell covers {where.name}: nothing to gather")
    else:
        count = made.points
    count = count if limit is None else min(count, limit)
    first, last = time_range(made.time)
    days = (pd.Timestamp(last) - pd.Timestamp(first)) / pd.Timedelta("1D")
    dates = max(1, round(days / REPEAT_DAYS)) if made.rule is not None else 1
    size = sum(_bytes(layer, made, dates) for layer in made.layers) * (made.edge / 10) ** 2
    return Foretold(
        recipe=made.name,
        where="all land" if where is None else where.name,
        patches=count,
        kind="cells" if made.where == "cover" else "points",
        edge=made.edge,
        time=(first, last),
        dates=dates,
        labels=tuple(layer for layer in made.layers if layer.startswith("labels/")),
        gib=size * count / 2**30,
        folder=Path(out),
    )


def _bytes(name: str, made: Recipe, dates: int) -> int:
    """Return the bytes of a pixel of a layer with all its steps."""
    layer = registry.layer(name)
    channels = len(registry.all_channels(name)) or 1
    if name == "s2/reflectance":
        channels = len(made.bands)
    steps = dates if layer.stack_dim in ("time", "pair") else 1
    return channels * steps * np.dtype(layer.dtype).itemsize
