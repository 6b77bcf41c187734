"""From stored integers to what a model takes: physical values, normalised, with masks.

Everything follows from the layers' rows: a continuous layer is brought to mean 0 and deviation 1
of the training samples, a phase becomes cosine and sine, and classes and masks are no input. Runs
on the device of the batch.

Shape letters: B samples, T dates, K tracks, C channels, L layers, H and W pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import xarray as xr
from torch import Tensor

from cubes.types import CubeError, Layer
from deepsentinel.model import STATIC

# Within a group: what has dates of its own, then pairs, then what is per track.
_STACKS = ("time", "pair", "track")


class Stored(Protocol):
    """What `inputs` needs of a batch."""

    @property
    def stored(self) -> Mapping[str, Tensor]:
        """Layer name -> stored integers."""
        ...

    @property
    def days(self) -> Mapping[str, Tensor]:
        """Group -> (B, T) days."""
        ...

    @property
    def present(self) -> Mapping[str, Tensor]:
        """Group -> (B, T) bool."""
        ...

    @property
    def track(self) -> Tensor | None:
        """(B, T) plane of each date."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Normaliser:
    """Layer rows and the statistics of the training samples; plain numbers, goes in checkpoints."""

    layers: Mapping[str, Layer]
    """Layer name -> row: scale, offset, nodata, kind, channels. In the order of the registry."""
    mean: Mapping[str, tuple[float, ...]]
    """Layer name -> one mean per channel, physical units; continuous layers only."""
    std: Mapping[str, tuple[float, ...]]
    """Layer name -> one standard deviation per channel, physical units."""

    @staticmethod
    def of(stats: xr.Dataset, layers: Mapping[str, Layer]) -> Normaliser:
        """Return the normaliser from `cubes.stats` of training samples and `Samples.layers`.

        Raises
        ------
        CubeError
            A continuous layer has no statistics or no valid pixel.
        """
        mean: dict[str, tuple[float, ...]] = {}
        std: dict[str, tuple[float, ...]] = {}
        for name, layer in layers.items():
            if layer.kind != "continuous":
                continue
            mine = stats.isel(entry=stats["layer"].to_numpy() == name)
            if mine.sizes["entry"] != layer.n_channels:
                raise CubeError(f"there are no statistics of {name}; take them of these samples")
            if (mine["count"] == 0).any():
                raise CubeError(
                    f"{name} has no valid pixel in the samples that the statistics were taken "
                    "of: leave the layer out with Samples.select, or take other samples"
                )
            mean[name] = tuple(float(v) for v in mine["mean"].to_numpy())
            # A constant channel (flat terrain) says nothing; elsewhere it varies, and divided by
            # next to nothing would drown every other number.
            both = zip(mean[name], mine["std"].to_numpy(), strict=True)
            std[name] = tuple(1.0 if v <= 1e-6 * abs(m) else float(v) for m, v in both)
        return Normaliser(layers=dict(layers), mean=mean, std=std)

    def to_json(self) -> str:
        """Return it as JSON."""
        body = {
            "layers": {
                k: {
                    n: "NaN" if isinstance(x, float) and math.isnan(x) else x
                    for n, x in asdict(v).items()
                }
                for k, v in self.layers.items()
            },
            "mean": dict(self.mean),
            "std": dict(self.std),
        }
        return json.dumps(body, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Normaliser:
        """Return what `to_json` wrote."""
        body = json.loads(text)
        return Normaliser(
            layers={k: Layer(**{n: _tuple(x) for n, x in v.items()})
                    for k, v in body["layers"].items()},
            mean={k: tuple(v) for k, v in body["mean"].items()},
            std={k: tuple(v) for k, v in body["std"].items()},
        )  # fmt: skip

    def groups(self, layers: Iterable[str] | None = None) -> dict[str, tuple[Layer, ...]]:
        """Return the model's input: group -> its layers in the order of their channels.

        Groups are the clocks (``s1`` also carries ``insar`` where both are there) and ``static``.

        Parameters
        ----------
        layers
            Names to use; None: every continuous layer and phase that is no label.
        """
        wanted = set(self.layers) if layers is None else set(layers)
        unknown = wanted - set(self.layers)
        if unknown:
            raise CubeError(
                f"no layer {sorted(unknown)[0]!r} here; there are {', '.join(self.layers)}"
            )
        timed = {v.group for v in self.layers.values() if v.stack_dim == "time"}
        found: dict[str, list[Layer]] = {}
        for name, layer in self.layers.items():
            if name in wanted and layer.kind in ("continuous", "phase"):
                found.setdefault(_group(layer, timed), []).append(layer)
        found.pop("", None)
        order = sorted(found, key=lambda g: (g == STATIC, g))
        return {g: tuple(sorted(found[g], key=_place)) for g in order}

    def channels(self, layer: Layer) -> tuple[str, ...]:
        """Return the model's channels that a layer becomes, e.g. ``vv cos``, ``vv sin``."""
        names = layer.channels or (layer.variable,)
        if layer.kind == "phase":
            return tuple(f"{n} {part}" for n in names for part in ("cos", "sin"))
        return names


def _tuple(value: Any) -> Any:
    if value == "NaN":  # strict JSON has no NaN
        return float("nan")
    return tuple(value) if isinstance(value, list) else value


def _group(layer: Layer, timed: set[str]) -> str:
    """Return the group of the model's input that a layer belongs to; empty: to none."""
    if layer.stack_dim is None:
        return STATIC
    if layer.stack_dim == "year":
        return ""
    if layer.stack_dim == "pair" and "s1" in timed:
        return "s1"
    return layer.group


def _place(layer: Layer) -> tuple[int, bool]:
    """Return the sort key: by stack, then continuous before phase; else as the rows are."""
    stack = _STACKS.index(layer.stack_dim) if layer.stack_dim in _STACKS else len(_STACKS)
    return stack, layer.kind != "continuous"


def inputs(
    batch: Stored,
    norm: Normaliser,
    *,
    layers: Iterable[str] | None = None,
    held: Mapping[str, Layer] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Return what a model takes, on the device of the batch.

    Parameters
    ----------
    batch
        Stored integers.
    norm
        Rows and statistics: what becomes of them.
    layers
        Names to use; None: all that `norm` and the batch have.
    held
        Layer name -> row by which the batch holds it, where scale, offset, nodata or dtype are
        others than in `norm` (see `contract`), and a layer that the batch lacks, of a group that
        is there, is nowhere valid; None: as `norm` says, and such a layer is left out.

    Returns
    -------
    dict
        Group -> ``x`` (B, T, C, H, W) float32, 0 where invalid; ``valid`` (B, T, L, H, W) bool,
        one per layer, True where all its channels have a value; ``clear`` (B, T, 1, H, W) bool
        where the sensor has such a mask; ``days`` (B, T) float32 since 2000-01-01, 0 where
        padded; ``present`` (B, T) bool. ``static``: ``x`` (B, C, H, W) and ``valid``
        (B, L, H, W). A group that no cube of the samples has is left out; one that this
        sample's cube lacks is not present.

    Raises
    ------
    CubeError
        The batch lacks a layer asked for by name.
    """
    result: dict[str, dict[str, Tensor]] = {}
    named = None if layers is None else set(layers)
    stored = {} if held is None else held
    for group, rows in norm.groups(named).items():
        there = [row for row in rows if row.name in batch.stored]
        missing = [row.name for row in rows if row.name not in batch.stored]
        if named is not None and missing:
            raise CubeError(f"the batch has no {missing[0]}; it has {', '.join(batch.stored)}")
        clock = _clock(batch, group, there)
        if not there or clock is None:
            continue
        known = {r.name: _layer(batch, norm, r, stored.get(r.name, r)) for r in there}
        like = next(iter(known.values()))[1]
        taken = there if held is None else rows
        parts = [known.get(row.name) or _absent(norm, row, like) for row in taken]
        x, valid = (torch.cat(p, dim=2) for p in zip(*parts, strict=True))
        if group == STATIC:
            result[group] = {"x": x[:, 0], "valid": valid[:, 0]}
            continue
        result[group] = {
            "x": x,
            "valid": valid,
            "days": torch.nan_to_num(batch.days[clock]).to(torch.float32),
            "present": batch.present[clock],
        }
        mask = f"{group}/clear"  # by its name: a mask of water or fields says nothing of clouds
        if mask in norm.layers and mask in batch.stored:
            clear = batch.stored[mask] != 0
            result[group]["clear"] = clear & batch.present[clock][:, :, None, None, None]
    return result


def _clock(batch: Stored, group: str, there: Iterable[Layer]) -> str | None:
    """Return whose dates a group has; pairs have those of S1, or their own where it is not there.

    None where it has none: a geometry without a date says nothing.
    """
    if group == STATIC:
        return STATIC
    paired = {name for r in there if r.stack_dim == "pair" for name in (r.group, "s1")}
    return next((name for name in (group, *sorted(paired)) if name in batch.days), None)


def _absent(norm: Normaliser, row: Layer, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `_layer` returns, of a layer that is nowhere; `like` is (B, T, 1, H, W) bool."""
    valid = torch.zeros_like(like)
    return valid.to(torch.float32).expand(-1, -1, len(norm.channels(row)), -1, -1), valid


def _layer(batch: Stored, norm: Normaliser, row: Layer, held: Layer) -> tuple[Tensor, Tensor]:
    """Return (B, T, C, H, W) float32 and (B, T, 1, H, W) bool of one layer, held as `held` says."""
    # Through float32 at once: every 16-bit integer is exact in it, and uint16 has few operators.
    value_BTCHW = batch.stored[row.name].to(torch.float32)
    valid_BTCHW = torch.isfinite(value_BTCHW)
    if held.nodata is not None and not math.isnan(held.nodata):
        valid_BTCHW &= value_BTCHW != held.nodata
    if row.kind == "phase":
        value_BTCHW = (value_BTCHW * held.scale + held.offset) * row.turn
        parts = torch.stack([value_BTCHW.cos(), value_BTCHW.sin()], dim=3)
        value_BTCHW = parts.flatten(2, 3)
        filled = valid_BTCHW.repeat_interleave(2, dim=2)
    else:
        # (stored * scale + offset - mean) / std as one multiplication and addition
        device = value_BTCHW.device
        std = torch.tensor(norm.std[row.name], dtype=torch.float64)
        mean = torch.tensor(norm.mean[row.name], dtype=torch.float64)
        a = (held.scale / std).to(device, torch.float32)[:, None, None]
        b = ((held.offset - mean) / std).to(device, torch.float32)[:, None, None]
        value_BTCHW = torch.addcmul(b, value_BTCHW, a)
        filled = valid_BTCHW
    value_BTCHW = torch.where(filled, value_BTCHW, 0.0)
    valid_BT1HW = valid_BTCHW.all(dim=2, keepdim=True)
    if row.stack_dim == "track":
        return _by_track(batch, value_BTCHW), _by_track(batch, valid_BT1HW)
    return value_BTCHW, valid_BT1HW


def _by_track(batch: Stored, value_BK1HW: Tensor) -> Tensor:
    """Return a per-track layer for each date, 0 (False) where the date has no track."""
    if batch.track is None:
        raise CubeError("the batch has per-track layers and no track of its dates")
    track_BT = batch.track.long()
    rows = torch.arange(len(track_BT), device=track_BT.device)[:, None]
    picked = value_BK1HW[rows, track_BT.clamp(min=0)]
    return picked * (track_BT >= 0)[:, :, None, None, None].to(picked.dtype)
