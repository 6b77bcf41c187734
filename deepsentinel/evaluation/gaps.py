"""Views of a batch in which dates of Sentinel-2 are hidden: what is asked, what may be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cubes import physics
from cubes.types import CubeError
from deepsentinel.evaluation.tasks import Options, Scored

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class View:
    """A batch of which some Sentinel-2 dates are hidden: what is asked, and what may be seen."""

    item: Scored
    x: dict[str, Any]
    """The model's input without the hidden dates."""
    truth: Floats
    """(B, T, H, W), NaN where not clear."""
    block: Ints
    """(B, T), which block of dates asked for each date is in; -1: it may be seen."""
    days: Doubles
    """(B, T), of Sentinel-2; padding holds anything."""

    @property
    def hidden(self) -> Bools:
        """The dates asked for, (B, T)."""
        return self.block >= 0

    @property
    def gapped(self) -> bool:
        """Whether some of Sentinel-2 may be seen."""
        return "s2" in self.x


def truth_ndvi(item: Scored) -> tuple[Floats, Doubles, Bools]:
    """Return measured NDVI (B, T, H, W), NaN where not clear; days (B, T); present (B, T).

    Raises
    ------
    CubeError
        The batch has no Sentinel-2 reflectance with B04 and B08.
    """
    values = item.physical("s2/reflectance")
    row = item.layer("s2/reflectance")
    if values is None or not {"B04", "B08"} <= set(row.channels):
        raise CubeError("the NDVI task needs s2/reflectance with the bands B04 and B08 in the cube")
    red, nir = (values[:, :, row.channels.index(b)] for b in ("B04", "B08"))
    index = np.clip(physics.ndvi(red, nir), -1, 1)
    present = item.batch.present["s2"].cpu().numpy().astype(bool)
    usable = np.broadcast_to(present[:, :, None, None], index.shape).copy()
    clear = item.batch.stored.get("s2/clear")
    if clear is not None:
        usable &= clear[:, :, 0].cpu().numpy().astype(bool)
    days = item.batch.days["s2"].cpu().numpy().astype(np.float64)
    return np.where(usable, index, np.nan).astype(np.float32), days, present


def views(item: Scored, options: Options) -> list[View]:
    """Return the batch with all Sentinel-2 hidden, or once per block of so many days."""
    truth, days, present = _asked_of(item)
    gap = options.gap or (_length(options.held[0]) if options.held else None)
    if gap is None:
        x = {k: v for k, v in item.x.items() if k != "s2"}
        return [View(item=item, x=x, truth=truth, block=present.astype(np.int64) - 1, days=days)]
    first = np.where(present, days, np.inf).min(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        block = np.where(present, np.floor((days - first) / gap), -1).astype(np.int64)
    return [
        _hiding(item, truth, np.where(block == k, k, -1), days)
        for k in range(int(block.max()) + 1)
        if (block == k).any()
    ]


def held_views(item: Scored, options: Options) -> list[View]:
    """Return the batch with the dates of all spans held out hidden, if it has any."""
    truth, days, present = _asked_of(item)
    block = np.full(days.shape, -1)
    for k, span in enumerate(options.held or ()):
        start, end = (_day(v) for v in span)
        block[present & (days >= start) & (days < end)] = k
    return [_hiding(item, truth, block, days)] if (block >= 0).any() else []


def _asked_of(item: Scored) -> tuple[Floats, Doubles, Bools]:
    if "s1" not in item.x:
        raise CubeError("the NDVI task needs s1/backscatter in the cube")
    return truth_ndvi(item)


def _hiding(item: Scored, truth: Floats, block: Ints, days: Doubles) -> View:
    x = {**item.x, "s2": _without(item.x["s2"], block >= 0)}
    return View(item=item, x=x, truth=truth, block=block, days=days)


def _day(moment: str) -> float:
    """Return days since 2000-01-01 of an ISO 8601 moment in UTC."""
    since = np.datetime64(moment, "s") - np.datetime64("2000-01-01", "s")
    return float(since / np.timedelta64(1, "D"))


def _length(span: tuple[str, str]) -> float:
    return _day(span[1]) - _day(span[0])


def _without(values: dict[str, Any], hidden: Bools) -> dict[str, Any]:
    """Return a group's input with some dates turned into padding."""
    keep = torch.from_numpy(~hidden).to(values["x"].device)
    wide = keep[:, :, None, None, None]
    out = {**values, "x": values["x"] * wide, "present": values["present"] & keep}
    for name in ("valid", "clear"):
        if name in values:
            out[name] = values[name] & wide
    return out
