"""A wide search, asked once, that answers the many narrow ones inside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from cubes.stac.static import Item

if TYPE_CHECKING:
    from shapely import STRtree
    from shapely.geometry.base import BaseGeometry

Span = tuple[pd.Timestamp, pd.Timestamp]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Every item that a source gave for one wide search."""

    asked: str
    """Which source, collection and query: searches of the same text are comparable."""
    where: BaseGeometry
    """EPSG:4326."""
    span: Span | None
    """None: all times."""
    items: list[Item]
    _tree: STRtree = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Index the items by the boxes around their footprints."""
        import shapely

        boxes = [shapely.box(*bounds(item)) for item, _ in self.items]
        object.__setattr__(self, "_tree", shapely.STRtree(boxes))

    def covers(self, asked: str, where: BaseGeometry, span: Span | None) -> bool:
        """Return whether all that another search could find is among the items."""
        if asked != self.asked or not self.where.covers(where):
            return False
        return self.span is None or (
            span is not None and self.span[0] <= span[0] and span[1] <= self.span[1]
        )

    def near(self, where: BaseGeometry) -> list[Item]:
        """Return the items whose boxes touch an area; the caller filters them."""
        return [self.items[i] for i in sorted(self._tree.query(where))]


def find(
    answers: Iterable[Answer], asked: str, where: BaseGeometry | None, span: Span | None
) -> list[Item] | None:
    """Return what a remembered answer holds of a search, or None where none covers it."""
    if where is None:
        return None
    for answer in answers:
        if answer.covers(asked, where, span):
            return answer.near(where)
    return None


def bounds(item: dict[str, Any]) -> tuple[float, float, float, float]:
    """Return the box around an item; an item that does not say where it is may be anywhere."""
    from shapely.geometry import shape

    geometry = item.get("geometry")
    if not geometry:
        return (-180.0, -90.0, 180.0, 90.0)
    west, south, east, north = shape(geometry).bounds
    return (west, south, east, north)
