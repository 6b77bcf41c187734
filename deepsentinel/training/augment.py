"""Views of a sample: random crops, and dates, sensors and blocks of ground that are hidden.

Hiding never writes a value: it clears the masks, and the model treats what is masked as absent.
Every draw comes from the generator given, so that a step of training is a function of its seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cubes.types import CubeError
from deepsentinel.model import STATIC, Inputs

if TYPE_CHECKING:
    from deepsentinel.loading.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Hiding:
    """How much of a sample its training view lacks; probabilities are per sample."""

    sensor: Mapping[str, float] = field(default_factory=lambda: {"s2": 0.4, "s1": 0.1})
    """Group -> probability that the whole group is hidden (at most one group at a time)."""
    together: bool = False
    """Draw the hidden group once for the whole batch: its encoder then has nothing to do, which
    is a third of a step saved where a sensor is hidden half of the time."""
    dates: tuple[float, float] = (0.0, 0.75)
    """Bounds of the fraction of dates hidden in each group that is not hidden whole."""
    alone: tuple[float, float] = (0.0, 0.3)
    """The same where another group is hidden whole: as in use, most dates are there."""
    blocks: float = 0.25
    """Probability that a square of ground is hidden in all dates of one group."""
    block: int = 16
    """Edge of such a square is a multiple of this many pixels, up to half the sample."""

    def __post_init__(self) -> None:
        """Refuse probabilities that are none."""
        total = sum(self.sensor.values())
        if not (min([*self.sensor.values(), 0.0]) >= 0 and total <= 1):  # nan is neither
            raise CubeError(f"hiding.sensor {dict(self.sensor)} must be >= 0 and sum to <= 1")
        for name in ("dates", "alone"):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= 1:
                raise CubeError(f"hiding.{name} {(low, high)} must be 0 <= low <= high <= 1")
        if not 0 <= self.blocks <= 1:
            raise CubeError(f"hiding.blocks is {self.blocks}; it must be at least 0 and at most 1")
        if self.block < 1:
            raise CubeError(f"hiding.block is {self.block}; it must be at least 1")


def timed(inputs: Inputs) -> list[str]:
    """Return the groups that have dates, in order."""
    return [g for g in inputs if g != STATIC]


def hide(
    inputs: Inputs, hiding: Hiding, generator: torch.Generator
) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return a view with parts hidden, and what is hidden.

    Returns
    -------
    view : dict
        `inputs` with ``valid`` and ``present`` cleared where hidden; values are shared, not copied.
    hidden : dict
        Group -> bool (B,T,H,W), True where the view lacks what `inputs` had or may have had.
    """
    names = timed(inputs)
    first = inputs[names[0]]["x"]
    batch, device = first.shape[0], first.device
    draw = torch.rand(1 if hiding.together else batch, generator=generator).to(device).expand(batch)
    whole, low = {}, 0.0
    for g in names:
        high = low + hiding.sensor.get(g, 0.0)
        # A sensor is hidden whole only where another one is there to go by.
        others = [inputs[o]["present"].any(1) for o in names if o != g and "present" in inputs[o]]
        there = torch.stack(others).any(0) if others else torch.zeros_like(draw, dtype=torch.bool)
        whole[g] = (draw >= low) & (draw < high) & there
        low = high
    alone = torch.stack(list(whole.values())).any(0)
    view, hidden = dict(inputs), {}
    for g in names:
        data = inputs[g]
        dates = _hidden_dates(data, hiding, alone, generator) | whole[g][:, None]
        ground = _hidden_ground(data["x"], hiding, generator)
        hidden[g] = dates[..., None, None] | ground
        view[g] = {
            **data,
            "valid": data["valid"] & ~ground[:, :, None],
            "present": _present(data) & ~dates,
        }
    return view, hidden


def compact(view: Inputs, multiple: int = 4) -> dict[str, Mapping[str, Tensor]]:
    """Return a view without dates that no sample has, and without groups that have none left.

    Dates that are there move to the front; their number is rounded up to a multiple, so that a
    compiled model meets few shapes. What is absent costs nothing then; the result is the same.
    """
    out: dict[str, Mapping[str, Tensor]] = {g: d for g, d in view.items() if g not in timed(view)}
    for g in timed(view):
        present = _present(view[g])
        most = int(present.sum(1).max())
        if most == 0 and len(timed(view)) > 1:
            continue
        keep = min(present.shape[1], -(-max(most, 1) // multiple) * multiple)
        order = (~present).to(torch.uint8).argsort(dim=1, stable=True)[:, :keep]
        rows = torch.arange(len(order), device=order.device)[:, None]
        out[g] = {k: v[rows, order] for k, v in view[g].items()}
    return {g: out[g] for g in view if g in out}


def _present(data: Mapping[str, Tensor]) -> Tensor:
    if "present" in data:
        return data["present"]
    return torch.ones(data["x"].shape[:2], dtype=torch.bool, device=data["x"].device)


def _hidden_dates(
    data: Mapping[str, Tensor], hiding: Hiding, alone: Tensor, generator: torch.Generator
) -> Tensor:
    """Return which dates (B,T) are hidden; a sample keeps at least one of its present dates."""
    present = _present(data)
    b, t = present.shape
    u = torch.rand(b, generator=generator).to(present.device)
    order = torch.rand(b, t, generator=generator).to(present.device)
    low = torch.where(alone, hiding.alone[0], hiding.dates[0])
    high = torch.where(alone, hiding.alone[1], hiding.dates[1])
    n = present.sum(1)
    count = torch.minimum((n * (low + u * (high - low))).round(), n - 1)
    rank = order.masked_fill(~present, 2.0).argsort(1).argsort(1)
    return present & (rank < count[:, None])


def _hidden_ground(x: Tensor, hiding: Hiding, generator: torch.Generator) -> Tensor:
    """Return one hidden square per sample, or none, as bool (B,1,H,W)."""
    b, (h, w) = x.shape[0], x.shape[-2:]
    u = torch.rand(b, 4, generator=generator).to(x.device)
    steps = max(1, min(h, w) // (2 * hiding.block))
    edge = ((u[:, 0] * steps).floor() + 1) * hiding.block
    top, left = u[:, 1] * (h - edge).clamp(min=0), u[:, 2] * (w - edge).clamp(min=0)
    y = torch.arange(h, device=x.device)[:, None]
    xx = torch.arange(w, device=x.device)[None]
    rows = (y >= top.floor()[:, None, None]) & (y < (top.floor() + edge)[:, None, None])
    cols = (xx >= left.floor()[:, None, None]) & (xx < (left.floor() + edge)[:, None, None])
    return ((u[:, 3] < hiding.blocks)[:, None, None] & rows & cols)[:, None]


def crop(batch: Batch, size: int, *, each: int = 1, generator: torch.Generator) -> Batch:
    """Return a batch of `each` random crops of every sample, sample-major, ``size`` pixels square.

    A decoded 256-px window costs the same whether one or ten 64-px crops of it are used, so small
    models get several from each. ``place`` moves with the crop; nothing is resampled.

    Raises
    ------
    CubeError
        A sample is smaller than the crop.
    """
    first = next(iter(batch.stored.values()))
    (b, (h, w)) = first.shape[0], first.shape[-2:]
    if size > min(h, w):
        raise CubeError(f"crops of {size} px from samples of {h} x {w} px: use a larger window")
    if size == h == w and each == 1:
        return batch
    top = torch.randint(0, h - size + 1, (b, each), generator=generator)
    left = torch.randint(0, w - size + 1, (b, each), generator=generator)

    def cut(x: Tensor) -> Tensor:
        parts = [
            x[
                i,
                ...,
                int(top[i, k]) : int(top[i, k]) + size,
                int(left[i, k]) : int(left[i, k]) + size,
            ]
            for i in range(b)
            for k in range(each)
        ]
        return torch.stack(parts)

    def again(x: Tensor) -> Tensor:
        return x.repeat_interleave(each, 0)

    place = again(batch.place)
    place[:, 1] += top.flatten().to(place)
    place[:, 2] += left.flatten().to(place)
    return replace(
        batch,
        stored={k: cut(v) for k, v in batch.stored.items()},
        days={k: again(v) for k, v in batch.days.items()},
        present={k: again(v) for k, v in batch.present.items()},
        track=None if batch.track is None else again(batch.track),
        place=place,
        lonlat=again(batch.lonlat),
    )
