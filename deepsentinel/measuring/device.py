"""What a device can do at most, and what a step of training asks of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cubes.types import CubeError
from deepsentinel.model import Fusion, FusionConfig
from deepsentinel.recipe import Recipe
from deepsentinel.training.objectives import objective
from deepsentinel.training.sources import Source

PEAKS: dict[str, tuple[float, float]] = {
    "B200": (2250, 75), "GH200": (989, 67), "H200": (989, 67), "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60), "H100": (989, 67), "A100": (312, 19.5), "A40": (150, 37.4),
    "A10G": (70, 31.2), "A10": (125, 31.2), "A30": (165, 10.3), "L40S": (362, 91.6),
    "L40": (181, 90.5), "L4": (121, 30.3), "RTX 4090": (165, 82.6), "RTX 3090": (71, 35.6),
}  # fmt: skip
"""Part of a device's name -> 10^12 operations a second that its data sheet states, dense: in
bfloat16 with float32 sums, and in float32 without TF32. The first one that fits counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceiling:
    """The most that a device does in a second."""

    flops: float
    source: str
    """``data sheet``, or ``matmul`` where it was measured."""


def chosen(accelerator: str) -> torch.device:
    """Return the device that ``train.accelerator`` stands for.

    Raises
    ------
    CubeError
        It is not here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    kind = {"gpu": "cuda" if cuda or not mps else "mps"}.get(accelerator, accelerator)
    if kind == "auto":
        kind = "cuda" if cuda else "mps" if mps else "cpu"
    here = ["cpu", *(["cuda"] if cuda else []), *(["mps"] if mps else [])]
    if kind not in here:
        raise CubeError(
            f"device {accelerator!r}: this machine, or this build of torch ({torch.__version__}), "
            f"has none; there is {', '.join(here)}"
        )
    return torch.device(kind)


def name(device: torch.device) -> str:
    """Return what a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def ceiling(device: torch.device, precision: str) -> Ceiling:
    """Return the most operations a second: of the data sheet, else of a measured product."""
    half = precision != "32-true"
    label = name(device)
    for part, (wide, single) in PEAKS.items():
        if device.type == "cuda" and part in label:
            return Ceiling(flops=1e12 * (wide if half else single), source="data sheet")
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if half else torch.float32)
    best = float("inf")
    for _ in range(8):  # the best: a ceiling that a busy moment lowers is none
        began = time.perf_counter()
        a @ a
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        best = min(best, time.perf_counter() - began)
    return Ceiling(flops=2 * n**3 / best, source="matmul")


def step_flops(source: Source, recipe: Recipe, draws: int = 4) -> float:
    """Return operations of matrix products in a step, forward and backward, counted on the CPU.

    What is hidden is drawn in every step, and hidden dates are not computed: the mean of some.
    """
    config = FusionConfig.sized(recipe.model.size, source.groups, **recipe.model.options())
    model = Fusion(config)
    wanted = objective(recipe.objective.name, **dict(recipe.objective.options))
    fetched = next(iter(source))
    batch = source.to(fetched.batch, torch.device("cpu"))
    total = 0
    for n in range(draws):
        generator = torch.Generator().manual_seed(n)
        inputs = source.inputs(batch, generator)
        # the counter does not know the CPU's fused attention, but the products it is made of
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            wanted(model, inputs, generator=generator, batch=batch)["loss"].backward()  # type: ignore[no-untyped-call]
        total += counter.get_total_flops()
    return total / draws
