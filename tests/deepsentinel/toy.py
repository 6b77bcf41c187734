"""A toy landscape for tests of the learning side: S2 is a function of fields that S1 sees too.

Voronoi-like fields of a few classes; a season of green-up whose start differs from field to field
drives NDVI and, with class-specific strength, backscatter and coherence, under speckle; clouds,
of which some are missed by the mask. Normalised inputs straight away: no store, no loader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepsentinel.training.sources import Fetched

GROUPS = {
    "s1": {
        "layers": [
            {
                "name": "s1/backscatter",
                "channels": ["vv", "vh"],
                "kind": "continuous",
                "units": "dB",
                "calibration": "gamma0_rtc",
                "mean": [-10.0, -17.0],
                "std": [3.0, 3.0],
            },
            {
                "name": "insar/coherence",
                "channels": ["vv", "vh"],
                "kind": "continuous",
                "units": "1",
                "mean": [0.5, 0.4],
                "std": [0.2, 0.2],
            },
            {
                "name": "s1/incidence",
                "channels": ["incidence"],
                "kind": "continuous",
                "units": "degrees",
                "mean": [38.0],
                "std": [4.0],
                "aux": True,
            },
        ]
    },
    "s2": {
        "layers": [
            {
                "name": "s2/reflectance",
                "channels": ["B03", "B04", "B08", "B11"],
                "kind": "continuous",
                "units": "1",
                "mean": [0.09, 0.10, 0.28, 0.22],
                "std": [0.04, 0.06, 0.12, 0.08],
            }
        ]
    },
    "static": {
        "layers": [
            {
                "name": "terrain/elevation",
                "channels": ["elevation"],
                "kind": "continuous",
                "units": "m",
                "mean": [100.0],
                "std": [30.0],
            }
        ]
    },
}

# start of season (day), length, amplitude, base; VV and VH base (dB); sensitivity of VH and VV
CLASSES = torch.tensor(
    [
        [100.0, 90.0, 0.65, 0.15, -10.0, -18.0, 5.0, -2.0],
        [150.0, 80.0, 0.70, 0.15, -9.0, -17.0, 6.0, 2.5],
        [80.0, 200.0, 0.45, 0.35, -11.0, -17.5, 2.0, 0.5],
        [110.0, 170.0, 0.25, 0.60, -8.0, -14.0, 0.8, 0.3],
        [120.0, 150.0, 0.08, 0.12, -5.0, -13.0, 0.0, 0.0],
        [120.0, 150.0, 0.02, -0.1, -20.0, -26.0, 0.0, 0.0],
    ]
)


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A landscape: inputs of one big sample, and the truth."""

    inputs: dict[str, dict[str, Tensor]]
    label: Tensor
    """(H,W)"""

    def sample(
        self, size: int, batch: int, *, dates: int | None, generator: torch.Generator
    ) -> tuple[dict[str, dict[str, Tensor]], Tensor]:
        """Return random crops with random dates, and their labels (B,H,W)."""
        edge = self.label.shape[0]
        parts, labels = [], []
        for _ in range(batch):
            y, x = torch.randint(0, edge - size + 1, (2,), generator=generator).tolist()
            one: dict[str, dict[str, Tensor]] = {}
            for group, data in self.inputs.items():
                pick: slice | Tensor = slice(None)
                if group != "static" and dates is not None:
                    total = data["x"].shape[0]
                    pick = torch.randperm(total, generator=generator)[:dates].sort().values
                one[group] = {
                    k: (v[..., y : y + size, x : x + size] if v.ndim >= 3 else v)
                    if group == "static"
                    else (v[pick][..., y : y + size, x : x + size] if v.ndim >= 3 else v[pick])
                    for k, v in data.items()
                }
            parts.append(one)
            labels.append(self.label[y : y + size, x : x + size])
        stacked = {
            g: {k: torch.stack([p[g][k] for p in parts]) for k in parts[0][g]} for g in parts[0]
        }
        return stacked, torch.stack(labels)


def _smooth(shape: tuple[int, ...], scale: int, generator: torch.Generator) -> Tensor:
    """Return smooth noise of about unit variance, (..., H, W)."""
    size = (shape[-2] // scale + 3, shape[-1] // scale + 3)
    coarse = torch.randn(*shape[:-2], *size, generator=generator)
    flat = coarse.reshape(-1, 1, *coarse.shape[-2:])
    up = torch.nn.functional.interpolate(flat, scale_factor=scale, mode="bicubic")
    return up[..., : shape[-2], : shape[-1]].reshape(shape) * 1.4


def landscape(
    seed: int,
    *,
    edge: int = 256,
    n_s1: int = 16,
    n_s2: int = 20,
    shift: float = 0.0,
    looks: int = 5,
) -> Toy:
    """Return a landscape of `edge` pixels; `shift` days later than usual, with other speckle."""
    g = torch.Generator().manual_seed(seed)
    n_fields = (edge // 22) ** 2
    centres = torch.rand(n_fields, 2, generator=g) * edge
    yy, xx = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
    points = torch.stack([yy, xx], -1).reshape(-1, 2).float()
    points = points + 1.5 * _smooth((2, edge, edge), 16, g).reshape(2, -1).T
    field = torch.cdist(points, centres).argmin(1).reshape(edge, edge)
    label_of = torch.randint(0, len(CLASSES), (n_fields,), generator=g)
    traits = CLASSES[label_of] + torch.randn(n_fields, 8, generator=g) * torch.tensor(
        [12.0, 10.0, 0.06, 0.03, 0.6, 0.6, 0.4, 0.3]
    )

    def green(days: Tensor) -> Tensor:
        """Return NDVI (T,H,W)."""
        start, length, amplitude, base = traits[:, :4].T
        doy = (days % 365.2425)[:, None] - shift
        up, down = torch.sigmoid((doy - start) / 9), torch.sigmoid((doy - start - length) / 11)
        ndvi = base + amplitude * (up - down)
        return ndvi[:, field] + 0.03 * _smooth((len(days), edge, edge), 4, g)

    year = 365.2425 * 20
    d1 = year + 60 + torch.arange(n_s1) * (220 / n_s1) + torch.rand(1, generator=g) * 6
    d2 = (year + 60 + torch.rand(n_s2, generator=g) * 220).sort().values
    n1, n2 = green(d1), green(d2)
    vv0, vh0, sens_vh, sens_vv = traits[:, 4:].T[:, field]
    wet = 0.7 * torch.randn(n_s1, 1, 1, generator=g) + 0.4 * _smooth((n_s1, edge, edge), 32, g)
    angle = 38 + 3 * _smooth((1, edge, edge), 64, g)
    bare = 1 - n1.clamp(0, 1)
    vv = vv0 + sens_vv * n1 + wet * bare - 0.12 * (angle - 38)
    vh = vh0 + sens_vh * n1 + 0.4 * wet * bare - 0.12 * (angle - 38)
    gamma = torch.distributions.Gamma(float(looks), float(looks))
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        speckle = gamma.sample((2, n_s1, edge, edge))
    s1 = torch.stack([vv, vh], 1) + 10 * torch.log10(speckle).transpose(0, 1)
    loss = torch.cat([torch.zeros(1, edge, edge), (n1[1:] - n1[:-1]).abs()])
    coherence = 0.75 * torch.exp(-2.5 * n1.clamp(0) - 4 * loss)
    coherence = coherence[:, None] + 0.1 * torch.randn(n_s1, 2, edge, edge, generator=g)
    veg = ((n2 + 0.1) / 1.0).clamp(0, 1)
    red = 0.16 * (1 - veg) + 0.03 * veg
    nir = red * (1 + n2) / (1 - n2.clamp(max=0.93))
    s2 = torch.stack([red * 0.8 + 0.02, red, nir, 0.28 * (1 - veg) + 0.14 * veg], 1)
    s2 = s2 * (1 + 0.04 * torch.randn(s2.shape, generator=g))
    cloudiness = torch.rand(n_s2, 1, 1, generator=g) * 3 - 1.8
    cloud = _smooth((n_s2, edge, edge), 32, g) < cloudiness
    s2 = torch.where(cloud[:, None], 0.5 + 0.1 * s2, s2)
    missed = _smooth((n_s2, edge, edge), 16, g) > 1.8
    s1 = torch.cat([s1, coherence, angle.expand(n_s1, 1, edge, edge)], 1)
    has_pair = torch.ones(n_s1, 1, edge, edge, dtype=torch.bool)
    has_pair[0] = False
    ones = torch.ones_like(has_pair)
    inputs = {
        "s1": {
            "x": normalised("s1", s1),
            "valid": torch.cat([ones, has_pair, ones], 1),
            "days": d1.float(),
            "present": torch.ones(n_s1, dtype=torch.bool),
        },
        "s2": {
            "x": normalised("s2", s2),
            "valid": torch.ones(n_s2, 1, edge, edge, dtype=torch.bool),
            "clear": (~cloud | missed)[:, None],
            "days": d2.float(),
            "present": torch.ones(n_s2, dtype=torch.bool),
        },
        "static": {
            "x": _smooth((1, edge, edge), 64, g),
            "valid": torch.ones(1, edge, edge, dtype=torch.bool),
        },
    }
    return Toy(inputs=inputs, label=label_of[field])


def normalised(group: str, x: Tensor) -> Tensor:
    """Return physical values (T,C,H,W) as z-scores of the rows above."""
    rows = GROUPS[group]["layers"]
    mean = torch.tensor([m for r in rows for m in r["mean"]])[:, None, None]
    std = torch.tensor([s for r in rows for s in r["std"]])[:, None, None]
    return (x - mean) / std


class ToySource:
    """Batches of a landscape for `deepsentinel.train`: a pure function of (seed, number)."""

    def __init__(
        self, toy: Toy, *, size: int = 16, batch: int = 2, dates: int = 3, length: int = 5
    ) -> None:
        self.toy, self.size, self.batch, self.dates = toy, size, batch, dates
        self.length, self.number = length, 0
        self.poison: set[int] = set()
        self.groups: Mapping[str, Mapping[str, Any]] = GROUPS
        self.normaliser: Mapping[str, Any] = {}
        self.sha256 = "toy"

    def __iter__(self) -> Iterator[Fetched]:
        while True:
            g = torch.Generator().manual_seed(self.number)
            inputs, _ = self.toy.sample(self.size, self.batch, dates=self.dates, generator=g)
            if self.number in self.poison:
                inputs["s2"]["x"] = torch.full_like(inputs["s2"]["x"], float("inf"))
            ids = [f"toy {self.number}.{i}" for i in range(self.batch)]
            self.number += 1
            yield Fetched((inputs, ids), {"number": self.number})
            if self.number % self.length == 0:
                return

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.number = state["number"]

    def rewind(self) -> None:
        self.number = 0

    def to(self, batch: Any, device: torch.device) -> Any:
        inputs, ids = batch
        return {g: {k: v.to(device) for k, v in d.items()} for g, d in inputs.items()}, ids

    def inputs(self, batch: Any, generator: torch.Generator) -> Any:  # noqa: ARG002
        return batch[0]

    def ids(self, batch: Any) -> list[str]:
        return list(batch[1])
