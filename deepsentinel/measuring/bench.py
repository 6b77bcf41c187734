"""Which part holds training back on this machine: disk, codec, loader or device.

`measure` runs each by itself and then all together, on the samples that training would read and
with the step that it would take. Every rate is of decoded samples a second, so that they compare;
warm-up does not count; where two are compared they ran in turns.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cubes.sampling import stored
from cubes.sampling.sampleset import Samples
from cubes.sampling.stats import stats
from cubes.types import CubeError, Progress
from deepsentinel.loading.batch import loader
from deepsentinel.loading.contract import Contract
from deepsentinel.loading.normalise import Normaliser
from deepsentinel.measuring import device as devices
from deepsentinel.measuring.codec import Chunks, chunks, codec
from deepsentinel.measuring.steps import LEAST, RESIDENT, STREAM, Turn, Turns, ratio, timed
from deepsentinel.recipe import Recipe
from deepsentinel.training.sources import CubeSource

FAST = 0.95
"""Share of the device's own rate from which on the device is what holds training back."""
KEPT = 512 * 2**20
"""Bytes of encoded chunks kept in memory for the codec's limit."""
STATED = 64
"""Samples whose statistics stand for all, where no model brings its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How long it measures, and with how many threads and workers."""

    seconds: float = 10.0
    """About, for each part; three rounds are always finished."""
    rounds: int = 5
    """Turns of each part in comparisons, where there is time."""
    threads: tuple[int, ...] = ()
    """Decoding threads tried; empty: one, the recipe's, and as many as there are cores."""
    workers: int = 2
    """Worker processes tried; 0: none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """How fast one part is by itself."""

    what: str
    samples: float
    """Decoded samples a second."""
    mb: float
    """MB a second of stored numbers decoded, 10^6 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Steps of training."""

    what: str
    n: int
    p50: float
    p95: float
    """Seconds a step."""
    samples: float
    """Decoded samples a second."""
    mb: float
    waited: float
    """Share of the time in which the step waited for its batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What was measured, and what it means."""

    sample: Mapping[str, Any]
    """``samples`` planned, ``mb`` decoded of each, ``batch`` and ``crops``, ``layers``."""
    device: Mapping[str, Any]
    """``name``, ``model`` and ``precision``, ``first_step`` seconds (with compiling),
    ``flops`` of a step, ``ceiling`` a second and where that is from, ``mfu``, and the ``ratio`` of
    end to end to resident steps: the median of pairs."""
    rates: tuple[Rate, ...]
    steps: tuple[Steps, ...]
    holds: str
    """``device``, ``disk``, ``codec``, ``loader`` or ``cores``."""
    verdict: str
    """One sentence: what holds training back, and what to try."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dataclasses.asdict(self)


def measure(
    samples: Samples,
    recipe: Recipe,
    *,
    model: Any = None,
    effort: Effort | None = None,
    progress: Progress | None = None,
) -> Found:
    """Return how fast samples are read, how fast a step is, and which holds the other back.

    Parameters
    ----------
    samples
        What training would read.
    recipe
        The step: model size, objective, batch, crops, precision, device.
    model
        A trained Fusion whose layers and statistics count; None takes all layers of the samples.
    effort
        How long and with what.
    progress
        Told (part, parts, what) before each part.

    Raises
    ------
    CubeError
        A model of other layers, no such device, fewer samples than a batch, a store in a layout
        or codec that is not read straight from its files.
    """
    how = Effort() if effort is None else effort
    tell = (lambda *_: None) if progress is None else progress
    device = devices.chosen(recipe.train.accelerator)
    source = _source(samples, recipe, model)
    read = source.loader.samples
    batch = recipe.data.batch_size

    tell(0, 4, "codec")
    some = _some(read, batch)
    these = chunks(read, some, epoch=None)
    if not these.jobs:
        raise CubeError("these samples hold no data at all: nothing is decoded for them")
    tell(1, 4, "loader")
    rates, cold = _rates(read, some, these, _Plan.of(how, recipe))
    tell(2, 4, "steps")
    each = these.decoded / these.samples / 1e6
    taken = timed(source, recipe, Turns(rounds=how.rounds, seconds=2 * how.seconds))
    source.loader.close()
    steps = tuple(_steps(taken.done, mode, batch, each) for mode in (RESIDENT, STREAM))
    tell(3, 4, "operations")
    flops = devices.step_flops(CubeSource(read, recipe, source.norm, learn=True), recipe)
    top = devices.ceiling(device, recipe.train.precision)
    pairs = ratio(taken.done)
    holds, verdict = _verdict(rates, cold, steps, (pairs, device.type == "cpu", recipe))
    tell(4, 4, "done")
    return Found(
        sample={
            "samples": len(samples), "mb": each, "batch": batch, "crops": recipe.data.crops,
            "layers": list(read.layers),
        },
        device={
            "name": devices.name(device), "model": recipe.model.size,
            "precision": recipe.train.precision, "first_step": taken.first_step, "flops": flops,
            "ceiling": top.flops, "ceiling_from": top.source,
            "mfu": flops / steps[0].p50 / top.flops, "ratio": pairs,
        },
        rates=rates if cold is None else (*rates, cold),
        steps=steps,
        holds=holds,
        verdict=verdict,
    )  # fmt: skip


def _source(samples: Samples, recipe: Recipe, model: Any) -> CubeSource:
    if model is not None:
        contract = Contract.of(model)
        return CubeSource(samples, recipe, contract.norm, learn=True, contract=contract)
    spread = np.unique(np.linspace(0, len(samples) - 1, STATED).astype(int))
    norm = Normaliser.of(stats(samples.take(spread)), samples.layers)
    return CubeSource(samples, recipe, norm, learn=True)


def _some(samples: Samples, batch: int) -> list[np.ndarray]:
    """Return positions of the samples of some batches: enough for the cache to be too small."""
    each = sum(v.nbytes for v in samples.empty(1).values())
    n = max(1, min(len(samples) // batch, int(KEPT // (each * batch)), 64))
    cells = samples.window.crops  # crops of a cell are read together, as the loader does
    order = np.random.default_rng(0).permutation(len(samples) // cells)
    rows = (order[:, None] * cells + np.arange(cells)).reshape(-1)[: n * batch]
    return list(rows.reshape(-1, batch))


# ---------------------------------------------------------------------------------------- rates


@dataclass(frozen=True, slots=True)
class _Plan:
    threads: tuple[int, ...]
    workers: int
    rounds: int
    seconds: float

    @staticmethod
    def of(how: Effort, recipe: Recipe) -> _Plan:
        cores = cores_here()
        some = how.threads or tuple(sorted({1, min(recipe.data.threads, 64), cores}))
        return _Plan(some, how.workers, how.rounds, how.seconds)


def cores_here() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _rates(
    samples: Samples, some: Sequence[np.ndarray], these: Chunks, plan: _Plan
) -> tuple[tuple[Rate, ...], Rate | None]:
    """Return the rates of codec and loader from memory, in turns, and of the loader from disk."""
    rows = np.concatenate(some)
    batch = len(some[0])
    each = these.decoded / these.samples / 1e6

    def loading(threads: int, workers: int = 0) -> Callable[[], None]:
        one = loader(samples.take(rows), batch, threads=threads, workers=workers, shuffle=False)

        def run() -> None:
            for read in one:
                assert len(read)
            one.set_epoch(0)

        return run

    calls: dict[str, Callable[[], None]] = {}
    for threads in plan.threads:
        label = f"{threads} thread{'s' * (threads > 1)}"
        calls[f"codec alone, {label}"] = codec(these, threads)
        calls[f"loader, {label}"] = loading(threads)
    most = plan.threads[-1]
    forgotten = forget(samples, these)
    began = time.perf_counter()
    loading(most)()  # the first pass is from disk
    first = len(rows) / (time.perf_counter() - began)
    cold = Rate(what=f"loader, {most} threads, from disk", samples=first, mb=first * each)
    if plan.workers:
        label = f"loader, {plan.workers} worker{'s' * (plan.workers > 1)}"
        calls[label] = loading(max(1, most // plan.workers), plan.workers)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # buffers, processes
    began = time.perf_counter()
    for n in range(plan.rounds):
        if n >= LEAST and time.perf_counter() - began > plan.seconds:
            break
        for name in calls if n % 2 == 0 else reversed(calls):
            start = time.perf_counter()
            calls[name]()
            spent[name].append(time.perf_counter() - start)
    made = [(name, len(rows) / statistics.median(took)) for name, took in spent.items()]
    rates = tuple(Rate(what=name, samples=n, mb=n * each) for name, n in made)
    return rates, cold if forgotten else None


def forget(samples: Samples, these: Chunks) -> bool:
    """Ask the system to forget the pages of some chunks; False where it cannot be asked.

    It may keep those that another process has mapped.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for store in samples.stores:
        stored.MAPS.clear(store.path)
    for name in these.files:
        fd = os.open(name, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return True


# ---------------------------------------------------------------------------------------- steps


def _steps(turns: Sequence[Turn], mode: str, batch: int, each: float) -> Steps:
    seconds = np.concatenate([t.seconds for t in turns if t.mode == mode])
    waited = sum(sum(t.waited) for t in turns if t.mode == mode)
    rate = batch * len(seconds) / float(seconds.sum())
    return Steps(
        what=mode,
        n=len(seconds),
        p50=float(np.quantile(seconds, 0.5)),
        p95=float(np.quantile(seconds, 0.95)),
        samples=rate,
        mb=rate * each if mode == STREAM else 0.0,
        waited=waited / float(seconds.sum()) if mode == STREAM else 0.0,
    )


# -------------------------------------------------------------------------------------- verdict


def _verdict(
    rates: Sequence[Rate], cold: Rate | None, steps: Sequence[Steps], rest: tuple[float, bool, Any]
) -> tuple[str, str]:
    """Return which part holds training back, and a sentence for a person."""
    kept, cpu, recipe = rest
    unsteady = kept > 1 / FAST or steps[0].p95 > 1.5 * steps[0].p50
    by = {r.what: r.samples for r in rates}
    loaders = {k: v for k, v in by.items() if k.startswith("loader")}
    best = max(loaders, key=lambda k: loaders[k])
    step, whole = steps[0].samples, steps[1].samples
    mine = f"loader, {recipe.data.threads} thread{'s' * (recipe.data.threads > 1)}"
    if recipe.data.workers or mine not in loaders:
        mine = best
    spare = f"{loaders[best] / step:,.{0 if loaders[best] > 10 * step else 1}f}"
    disk = cold is not None and cold.samples < 0.5 * loaders[best] and cold.samples < step
    notes = ""
    if unsteady:
        notes = (
            " (unsteady: steps that do not wait for data take from "
            f"{steps[0].p50:.3g} to {steps[0].p95:.3g} s, so something else uses this machine; "
            "measure again when it is idle)"
        )
    if disk and cold is not None:
        notes += (
            f" (from disk the loader gives {cold.samples:.3g} samples/s, fewer than the "
            f"{step:.3g} of the device: as long as the store is larger than memory, the disk "
            "holds you back; try a faster disk, or several crops of a sample)"
        )
    if kept >= FAST:
        return "disk" if disk else "device", (
            f"The device holds you back: training takes {whole:.3g} samples/s of the {step:.3g} "
            f"that a step allows, and the loader could give {loaders[best]:.3g}"
            f" ({spare} times as many); try a smaller model, or another device{notes}."
        )
    if loaders[mine] < step:
        if loaders[best] > 1.2 * loaders[mine]:
            return "loader", (
                f"The loader holds you back: {loaders[mine]:.3g} samples/s for a device that takes "
                f"{step:.3g}; try data.threads or data.workers as in '{best}', which gives "
                f"{loaders[best]:.3g}{notes}."
            )
        limit = max(v for k, v in by.items() if k.startswith("codec"))
        return "codec", (
            f"Decoding holds you back: {loaders[best]:.3g} samples/s, {loaders[best] / limit:.0%} "
            f"of what the codec alone gives on these cores, for a device that takes {step:.3g}; "
            "try several crops of each sample (data.crop, data.crops), fewer dates or layers, "
            f"or more cores{notes}."
        )
    if cpu:
        return "cores", (
            f"Loader and model share the cores: alone the loader gives {loaders[mine]:.3g} "
            f"samples/s and the step takes {step:.3g}, together {whole:.3g}; try several crops of "
            "each sample (data.crop, data.crops), fewer threads for torch (OMP_NUM_THREADS) than "
            f"cores, or more cores{notes}."
        )
    return "loader", (
        f"The way from loader to device holds you back: the loader gives {loaders[mine]:.3g} "
        f"samples/s and the step takes {step:.3g}, together {whole:.3g}; try more threads "
        f"(data.threads), or several crops of each sample (data.crop, data.crops){notes}."
    )
