"""What a model is trained to do: objectives behind one protocol, and signs of collapse.

An objective is called once per step with the inputs of a batch and a generator, and returns the
loss and what a person wants to see beside it. It is a function of its arguments: no state, so a
step can be repeated to the last bit.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cubes import registry
from cubes.types import CubeError
from deepsentinel.model import (
    DIMS,
    STATIC,
    Encoded,
    Fusion,
    Inputs,
    order_statistics,
    patchify,
    usable,
)
from deepsentinel.recipe import build
from deepsentinel.training.augment import Hiding, compact, hide

if TYPE_CHECKING:
    from deepsentinel.loading.batch import Batch

Losses = dict[str, Tensor]


class Objective(Protocol):
    """Anything that turns a model and a batch into a loss."""

    def __call__(
        self,
        model: Fusion,
        inputs: Inputs,
        *,
        generator: torch.Generator,
        batch: Batch | None = None,
    ) -> Losses:
        """Return ``loss`` (a scalar with a gradient) and detached figures to log."""
        ...


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Say what a hidden date, sensor or block of ground would have shown: masked fusion.

    L = sum over groups of w [L1(decoder) + alone * L1(embedding and date alone)
        + summary * smoothL1(statistics of the series, linear in the embedding)
        + index * L1(NDVI)] + contrast * InfoNCE(two views)

    Only pixels that are valid, clear and hidden from the view count. L1 of normalised values, as
    its optimum (the median) shrugs off missed clouds and speckle.
    """

    hiding: Hiding = field(default_factory=Hiding)
    groups: Mapping[str, float] = field(default_factory=lambda: {"s2": 1.0, "s1": 0.5})
    """Group -> weight of its reconstruction."""
    layers: Mapping[str, float] = field(
        default_factory=lambda: {"s1/incidence": 0.0, "insar/phase": 0.0}
    )
    """Layer -> weight within its group; 1 where not named. Incidence is geometry and phase nearly
    noise: neither is worth capacity."""
    queries: int = 3
    """Dates asked of the decoder per group and sample."""
    alone: float = 0.5
    """Weight of the answer that has only the embedding to go by; 0 leaves it out."""
    summary: float = 1.0
    """Weight of the statistics of the whole series, which the embedding must tell linearly for
    every pixel, also of a hidden sensor; 0 leaves it out."""
    index: float = 0.5
    """Weight of the error of NDVI, computed from the answer in physical units; needs the layer's
    mean and standard deviation in the model's configuration. 0 leaves it out."""
    contrast: float = 0.0
    """Weight of InfoNCE between two views; 0 saves the second pass."""
    temperature: float = 0.1

    def __post_init__(self) -> None:
        """Refuse numbers that would turn learning round, or end it."""
        if self.queries < 1:
            raise CubeError(f"objective queries is {self.queries}; it must be at least 1")
        if not 0 < self.temperature < float("inf"):
            raise CubeError(f"objective temperature is {self.temperature}; it must be above 0")
        numbers = {n: getattr(self, n) for n in ("alone", "summary", "index", "contrast")}
        for name in ("groups", "layers"):
            numbers |= {f"{name}.{k}": v for k, v in getattr(self, name).items()}
        for name, value in numbers.items():
            if not 0 <= value < float("inf"):
                raise CubeError(f"objective {name} is {value}; a weight must be at least 0")

    def __call__(
        self,
        model: Fusion,
        inputs: Inputs,
        *,
        generator: torch.Generator,
        batch: Batch | None = None,  # noqa: ARG002 - protocol
    ) -> Losses:
        """Return ``loss``, its terms, and the diagnostics of the dense embedding."""
        total, figures, pooled = self._view(model, inputs, generator)
        if self.contrast:
            second, _, other = self._view(model, inputs, generator)
            contrast = info_nce(pooled, other, self.temperature)
            total = (total + second) / 2 + self.contrast * contrast
            figures["contrast"] = contrast.detach()
        return {"loss": total, **figures}

    def _view(
        self, model: Fusion, inputs: Inputs, generator: torch.Generator
    ) -> tuple[Tensor, Losses, Tensor]:
        view, hidden = hide(inputs, self.hiding, generator)
        encoded = model.encode(compact(view))
        total = encoded.place_BND.new_zeros(())
        figures: Losses = {}
        cut = DIMS[int(torch.randint(len(DIMS), (), generator=generator))]
        for group, weight in self.groups.items():
            if group not in inputs or not weight:
                continue
            target = self._target(model, inputs[group], hidden[group], group, generator)
            full = model.decoder(encoded, group, target.days_BQ)
            loss = target.error(full)
            figures[f"rec/{group}"] = loss.detach()
            if self.alone:
                short = model.decoder(encoded, group, target.days_BQ[:, :1], dims=cut)
                alone = target.error(short)
                figures[f"alone/{group}"] = alone.detach()
                loss = loss + self.alone * alone
            if self.summary:
                summary = self._summary(model, encoded, inputs[group], group, cut)
                figures[f"summary/{group}"] = summary.detach()
                loss = loss + self.summary * summary
            if self.index and target.ndvi is not None:
                error = target.ndvi_error(full)
                figures[f"ndvi/{group}"] = error.detach()
                loss = loss + self.index * error
            total = total + weight * loss
        if not figures:
            raise CubeError(
                f"nothing to learn: the inputs have {', '.join(inputs)}, and the objective asks "
                f"for {', '.join(g for g, w in self.groups.items() if w) or 'no group'}"
            )
        dense = encoded.embedding_BNPE.detach().flatten(0, 2)
        some = torch.randint(len(dense), (min(256, len(dense)),), generator=generator)
        return total, {**figures, **collapse(dense[some.to(dense.device)])}, _pooled(model, encoded)

    def _target(
        self,
        model: Fusion,
        data: Mapping[str, Tensor],
        hidden: Tensor,
        group: str,
        generator: torch.Generator,
    ) -> _Target:
        """Return dates to ask for, those hidden and clear first, with values and weights."""
        ok = usable(data)
        wanted = hidden & ok.any(2)
        share = wanted.float().mean((-2, -1))
        q = min(self.queries, share.shape[1])
        # Random among dates with something to score, so that a clear date is not always chosen.
        noise = torch.rand(share.shape, generator=generator).to(share.device)
        chosen = (noise + (share > 0.05).float() + (share > 0).float()).topk(q, dim=1).indices
        rows = torch.arange(chosen.shape[0], device=chosen.device)[:, None]
        days = data["days"][rows, chosen].float()
        index, scale = self._weights(model, group, days.device)
        p = model.config.patch
        weight = ok[rows, chosen][:, :, index] & hidden[rows, chosen][:, :, None]
        values = torch.where(weight, data["x"][rows, chosen], 0.0)
        weight_BNQPC = patchify(_to_multiple(weight.float(), p), p)
        return _Target(
            days_BQ=days,
            value=patchify(_to_multiple(values, p), p),
            weight=weight_BNQPC * scale,
            ndvi=ndvi_constants(model.config.layers(group)),
        )

    def _weights(self, model: Fusion, group: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the layer of every channel of a group, and its weight."""
        layers = model.config.layers(group)
        index = [i for i, r in enumerate(layers) for _ in r["channels"]]
        weight = [self.layers.get(r["name"], 1.0) for r in layers for _ in r["channels"]]
        return torch.tensor(index, device=device), torch.tensor(weight, device=device)

    def _summary(
        self, model: Fusion, encoded: Encoded, data: Mapping[str, Tensor], group: str, cut: int
    ) -> Tensor:
        """Return the smooth L1 error of the statistics of all that there was, hidden or not."""
        index, scale = self._weights(model, group, data["x"].device)
        ok = usable(data)[:, :, index]
        truth = order_statistics(torch.where(ok, data["x"], 0.0), ok)
        weight = ok.any(1).float() * scale[:, None, None]
        p = model.config.patch
        both = torch.stack([truth, weight.repeat(1, truth.shape[1] // weight.shape[1], 1, 1)], 1)
        truth_BNPF, weight_BNPF = patchify(_to_multiple(both, p), p).unbind(2)
        pixel = model.decoder.summarise(encoded.embedding_BNPE, group, dims=cut).float()
        error = F.smooth_l1_loss(pixel, truth_BNPF, reduction="none") * weight_BNPF
        # The patch's own embedding tells the mean of its pixels.
        own = F.layer_norm(model.to_patch(encoded.place_BND).float(), (model.config.dims,))
        patch = model.decoder.summarise(own, group, dims=cut).float()
        share = weight_BNPF.sum(2)
        mean = (truth_BNPF * weight_BNPF).sum(2) / share.clamp(min=1e-6)
        coarse = F.smooth_l1_loss(patch, mean, reduction="none") * share
        return (error.sum() + 0.5 * coarse.sum()) / weight_BNPF.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class _Target:
    days_BQ: Tensor
    value: Tensor
    weight: Tensor
    """Both (B,N,Q,P,C)."""
    ndvi: tuple[int, int, float, float, float, float] | None

    def error(self, answer: Tensor) -> Tensor:
        """Return the weighted mean absolute error, float32, over the first queries answered."""
        q = answer.shape[2]
        weight = self.weight[:, :, :q]
        off = (answer.float() - self.value[:, :, :q]).abs() * weight
        return off.sum() / weight.sum().clamp(min=1)

    def ndvi_error(self, answer: Tensor) -> Tensor:
        """Return the mean absolute error of NDVI."""
        assert self.ndvi is not None
        weight = self.weight[..., self.ndvi[0]] * self.weight[..., self.ndvi[1]]
        off = (ndvi(answer.float(), self.ndvi) - ndvi(self.value, self.ndvi)).abs() * weight
        return off.sum() / weight.sum().clamp(min=1)


def _to_multiple(x: Tensor, p: int) -> Tensor:
    pad = (-x.shape[-2] % p, -x.shape[-1] % p)
    return F.pad(x, (0, pad[1], 0, pad[0])) if any(pad) else x


def ndvi_constants(
    layers: list[Mapping[str, Any]],
) -> tuple[int, int, float, float, float, float] | None:
    """Return (red, nir, mean and std of red, of nir) from a group's rows, or None without them."""
    place: dict[str, tuple[int, float, float]] = {}
    start = 0
    for row in layers:
        mean, std = row.get("mean"), row.get("std")
        for i, channel in enumerate(row["channels"]):
            if mean is not None and std is not None:
                place[channel.lower()] = (start + i, float(mean[i]), float(std[i]))
        start += len(row["channels"])
    if "b04" not in place or "b08" not in place:
        return None
    (red, mean_r, std_r), (nir, mean_n, std_n) = place["b04"], place["b08"]
    return red, nir, mean_r, std_r, mean_n, std_n


def ndvi(x: Tensor, constants: tuple[int, int, float, float, float, float]) -> Tensor:
    """Return NDVI of normalised reflectances (..., C), (...,).

    The sum of the bands is kept above 0.05 reflectance (deep water lies at 0.02-0.05), where the
    ratio, and its gradient, would be noise over noise.
    """
    i_red, i_nir, mean_r, std_r, mean_n, std_n = constants
    red, nir = x[..., i_red] * std_r + mean_r, x[..., i_nir] * std_n + mean_n
    return (nir - red) / (nir + red).clamp(min=0.05)


def _pooled(model: Fusion, encoded: Encoded) -> Tensor:
    return F.layer_norm(model.to_patch(encoded.place_BND).float().mean(1), (model.config.dims,))


def info_nce(a: Tensor, b: Tensor, temperature: float = 0.1) -> Tensor:
    """Return the symmetric InfoNCE loss of two views (B,E), in float32 outside autocast.

    Reference: van den Oord et al. 2018, arXiv:1807.03748, equation 4.
    """
    with torch.autocast(device_type=a.device.type, enabled=False):
        u, v = F.normalize(a.float(), dim=-1), F.normalize(b.float(), dim=-1)
        score = u @ v.T / temperature
        label = torch.arange(len(u), device=u.device)
        return (F.cross_entropy(score, label) + F.cross_entropy(score.T, label)) / 2


@torch.no_grad()
def collapse(x: Tensor) -> Losses:
    """Return ``rank``, ``uniformity`` and ``cosine`` of embeddings (n,E): signs of collapse.

    Effective rank is exp(entropy of the normalised singular values), Roy and Vetterli 2007;
    uniformity log mean exp(-2 |u-v|^2), Wang and Isola 2020: -4 is spread out, 0 collapsed.
    """
    x = x.detach().float()
    if not torch.isfinite(x).all():
        return {}  # the loss is not finite either, and training names the samples
    s = torch.linalg.svdvals(x - x.mean(0))
    share = s / s.sum().clamp(min=1e-12)
    u = F.normalize(x, dim=-1)
    cosine = u @ u.T
    off = ~torch.eye(len(u), dtype=torch.bool, device=u.device)
    pairs = cosine[off]
    if pairs.numel() == 0:
        return {}
    return {
        "rank": torch.exp(-(share * share.clamp(min=1e-12).log()).sum()),
        "uniformity": torch.exp(-2 * (2 - 2 * pairs)).mean().log(),
        "cosine": pairs.mean(),
    }


OBJECTIVES: dict[str, type[Masked]] = {"masked": Masked}
"""Name -> the dataclass that a recipe's options fill."""


def objective(name: str | Objective, **options: Any) -> Objective:
    """Return an objective by name, or the object itself.

    Raises
    ------
    CubeError
        The name, or an option, is unknown.
    """
    if not isinstance(name, str):
        return name
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CubeError(f"unknown objective {name!r}: {', '.join(OBJECTIVES)}{hint}")
    made: Objective = build(OBJECTIVES[name], options, "objective.options")
    return made


def check_names(
    wanted: Objective, options: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse options that name groups or layers which neither the inputs nor the registry have.

    A name that nobody answers to would silently leave a sensor never hidden, or a layer at its
    full weight. Names that the registry knows are let pass: a recipe for two sensors serves one.

    Parameters
    ----------
    wanted
        The objective.
    options
        What the recipe says of it; what it leaves out are defaults, made for all inputs.
    groups
        Of the inputs, as `FusionConfig.groups`.

    Raises
    ------
    CubeError
        Such a name; says the nearest one.
    """
    if not isinstance(wanted, Masked):
        return
    rows = registry.layers()
    timed = {g for g in groups if g != STATIC} | {
        row.group for row in rows.values() if row.stack_dim == "time" and row.kind == "continuous"
    }
    layers = {row["name"] for body in groups.values() for row in body["layers"]} | set(rows)
    named = {
        "hiding.sensor": (dict(options.get("hiding", {})).get("sensor", {}), timed),
        "groups": (options.get("groups", {}), timed),
        "layers": (options.get("layers", {}), layers),
    }
    for key, (given, known) in named.items():
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                here = groups if known is timed else (n for n in layers if _is_input(n, groups))
                raise CubeError(
                    f"objective.options.{key} names {name!r}; the inputs have "
                    f"{', '.join(sorted(here))}; did you mean {near[0]!r}?"
                )


def _is_input(name: str, groups: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(row["name"] == name for body in groups.values() for row in body["layers"])
