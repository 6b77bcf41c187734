"""The nouns of samples: what one is in space, and which dates it has.

`cubes.types` hands them on; everybody else takes them from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Sentinel-1 dates at a step on one track, and the Sentinel-2 dates near the newest of them.

    ``Series(dates=4)`` is SEN12TS's rule, ``Series(dates=1)`` plain pairs of both sensors.
    """

    dates: int = 1
    """Sentinel-1 dates of a sample; every run of so many is one, also where runs overlap."""
    step: str = "12D"
    """Between neighbours, six hours either way (`cubes.runs`)."""
    pairs: bool = False
    """Each date needs an interferometric pair that ends there and looks back one `step`, and the
    layers of pairs hold that one, also where a shorter one ends there."""
    gap: str = "3D"
    """Between the newest Sentinel-1 date and a Sentinel-2 one, either way, inclusive; for cubes
    without Sentinel-2 it says nothing."""
    match: Literal["nearest", "random", "all"] = "nearest"
    """Of the usable Sentinel-2 dates that near: the nearest (the earlier of two equally near), one
    drawn each epoch, or all of them (at most `Window.dates`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What one sample is: its size in space, and how many dates of each sensor."""

    size: int = 256
    """Edge in pixels."""
    stride: int | None = None
    """Distance between windows, or cells; None: their edge (patch-aligned, no overlap)."""
    within: int | None = None
    """Edge in pixels of a cell in which the window lies anywhere: where is drawn each epoch."""
    crops: int = 1
    """Windows in each cell, each a sample; they share dates, and what is decoded."""
    dates: int = 12
    """Dates kept per stack axis; fewer where a period holds fewer (the rest is padding)."""
    clear: float = 0.0
    """A date of a sensor with a cloud mask is used where at least this share of the window (of its
    cell) is clear."""
    period: str | None = None
    """Length of a sample in time, e.g. ``180D``; None takes the whole cube."""
    step: str | None = None
    """Distance between periods; None: `period`."""
    bucket: int | None = None
    """A batch holds samples whose dates of each sensor round up to the same multiples of this, and
    is padded to those alone; None: to the most that any sample has."""
    rule: Series | None = None
    """Dates by a rule in place of periods; then `dates` only limits ``Series(match="all")``."""

    @property
    def cell(self) -> int:
        """Edge in pixels of what a sample may read of: `within`, or the window itself."""
        return self.size if self.within is None else self.within
