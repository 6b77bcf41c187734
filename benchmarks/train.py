"""Training on this machine: seconds a step, samples a second, memory, and what loading costs.

End to end is `deepsentinel.train` on a store; resident is the same run given one batch that is
already there, again and again, in turns (`deepsentinel.measuring.steps`) and with the same number
of torch's threads. Their ratio is what the loader leaves of the model's own speed: 1 means that
the model never waits for data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from cubes.types import Layout
from deepsentinel.measuring.codec import chunks
from deepsentinel.measuring.device import ceiling, step_flops
from deepsentinel.measuring.steps import RESIDENT, STREAM, InTurns, Resident, Turns, ratio, timed
from deepsentinel.training.heap import keep_heap
from deepsentinel.training.sources import CubeSource

__all__ = ["Resident", "Train"]

SIZES = ("nano", "tiny")
MODES = (RESIDENT, STREAM)
STEPS = 6
"""Timed in a turn."""
EDGE, DATES = 512, 64


def store(folder: Path, *, edge: int = EDGE, dates: int = DATES, patch: int = 256) -> Path:
    """Return a sealed cube of `edge` pixels and `dates` dates of each sensor, made if needed."""
    import cubes

    path = folder / f"train-{edge}-{dates}-{patch}.zarr"
    if not path.exists():
        cubes.write(common.cube(edge, dates, dates), path, layout=Layout(patch=patch))
    return path


def samples(path: Path, *, size: int, dates: int) -> Any:
    """Return the samples of a store: windows of `size` pixels and up to `dates` dates."""
    import cubes

    return cubes.plan([path], cubes.Window(size=size, dates=dates), min_valid=0.5)


def recipe(model: str, *, batch: int = 4, crop: int | None = None, crops: int = 1) -> Any:
    """Return what is trained: a size of Fusion with the masked objective, 32-bit."""
    from deepsentinel.recipe import make_recipe

    data: dict[str, Any] = {"batch_size": batch, "threads": 1, "crops": crops}
    return make_recipe(
        {
            "name": f"benchmark-{model}",
            "model": {"size": model},
            "data": data if crop is None else data | {"crop": crop},
            "train": {"accelerator": "cpu"},
        }
    )


def measured(found: Any, made: Any, norm: Any, turns: Turns) -> InTurns:
    """Return the steps of one training run, with loading and on a batch that is there, in turns."""
    with common.quiet():
        return timed(CubeSource(found, made, norm, learn=True), made, turns)


def normaliser(found: Any) -> Any:
    """Return the statistics of samples as `train` makes them."""
    import cubes
    from deepsentinel.loading.normalise import Normaliser

    return Normaliser.of(cubes.stats(found), found.layers)


@contextmanager
def peak() -> Iterator[list[float]]:
    """Give a list that holds, after the ``with``, the largest memory of this process, MiB."""
    import psutil

    process, out, done = psutil.Process(), [0.0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            out[0] = max(out[0], process.memory_info().rss / 2**20)
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield out
    finally:
        done.set()
        thread.join()


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a step takes: as many pixels in each case, from 256-px samples or whole windows."""

    what: str
    patch: int
    """Edge in pixels of stored chunks, and of the windows read."""
    batch: int
    crop: int | None = None
    crops: int = 1

    def samples(self, folder: Path) -> Any:
        """Return the samples; long epochs of a small store, as those of a large one are."""
        found = samples(store(folder, patch=self.patch), size=self.patch, dates=12)
        return found.take(np.tile(np.arange(len(found)), -(-256 // len(found))))

    def recipe(self, model: str) -> Any:
        """Return the recipe of a size of Fusion."""
        return recipe(model, batch=self.batch, crop=self.crop, crops=self.crops)


CASES = {
    "crops": Case(what="4 crops of 32 px of 4 samples of 256 px", patch=256, batch=4, crop=32,
                  crops=4),
    "whole": Case(what="a whole window of 128 px", patch=128, batch=1),
}  # fmt: skip


class Train:
    """Seconds a step and peak memory of a training run, with and without loading."""

    params = [["nano"], [RESIDENT, STREAM]]
    param_names = ["model", "mode"]
    timeout = 300
    edge, dates, window, steps, batch, threads = 256, 24, 32, 3, 4, common.THREADS
    quick = {"edge": 64, "dates": 3, "window": 16, "steps": 1, "batch": 2, "threads": 1}

    def setup_cache(self) -> str:
        return str(store(Path.cwd(), edge=self.edge, dates=self.dates))

    def setup(self, path: str, model: str, mode: str) -> None:
        import torch

        self.before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        self.samples = samples(Path(path), size=self.window, dates=min(12, self.dates))
        self.norm = normaliser(self.samples)

    def teardown(self, path: str, model: str, mode: str) -> None:
        import torch

        torch.set_num_threads(self.before)

    def _run(self, model: str) -> InTurns:
        made = recipe(model, batch=self.batch)
        return measured(self.samples, made, self.norm, Turns(rounds=1, steps=self.steps))

    def track_step(self, path: str, model: str, mode: str) -> float:
        took = [s for t in self._run(model).done if t.mode == mode for s in t.seconds]
        return statistics.median(took)

    track_step.unit = "s"  # type: ignore[attr-defined]

    def peakmem_train(self, path: str, model: str, mode: str) -> None:
        self._run(model)


def row(model: str, case: Case, folder: Path, *, rounds: int, threads: int) -> dict[str, Any]:
    """Return the figures of one case: pairs of turns, as many as `rounds`, and their ratios."""
    import torch

    torch.set_num_threads(threads)
    found = case.samples(folder)
    norm, made = normaliser(found.take(np.arange(4))), case.recipe(model)
    each = chunks(found, [np.arange(case.batch)])
    source = CubeSource(found, made, norm, learn=True)
    flops, top = step_flops(source, made), ceiling(torch.device("cpu"), "32-true")
    with peak() as memory:
        run = measured(found, made, norm, Turns(rounds=rounds, steps=STEPS))
    took = {m: np.concatenate([t.seconds for t in run.done if t.mode == m]) for m in MODES}
    rate = case.batch / float(took[STREAM].mean())
    waited = sum(sum(t.waited) for t in run.done if t.mode == STREAM)
    used = {m: sum(t.processor for t in run.done if t.mode == m) for m in MODES}
    return {
        "model": model,
        "step": case.what,
        "threads": threads,
        "p50, s": float(np.quantile(took[STREAM], 0.5)),
        "p95, s": float(np.quantile(took[STREAM], 0.95)),
        "samples/s": rate,
        "MB/s decoded": rate * each.decoded / each.samples / 1e6,
        "waits": waited / float(took[STREAM].sum()),
        "first step, s": run.first_step,
        "of a matmul": flops / float(np.quantile(took[RESIDENT], 0.5)) / top.flops,
        "over resident": ratio(run.done),
        "over resident (CPU)": used[RESIDENT] / used[STREAM],
        "peak MiB": memory[0],
    }


def main(arguments: Sequence[str] = ()) -> str:
    """Return a table: steps of the same run with loading and on a batch that is there, in turns.

    Seconds are those with loading; ``waits`` is the share of them in which the step waits for its
    batch, ``of a matmul`` what resident steps do of a large float32 product's operations a second.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train")
    parser.add_argument("--models", nargs="+", default=list(SIZES))
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, common.THREADS])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="figures instead of the table")
    asked = parser.parse_args(list(arguments))
    keep_heap()  # as `deepsentinel train` does
    with tempfile.TemporaryDirectory(prefix="train-") as folder:
        rows = [
            row(model, CASES[case], Path(folder), rounds=asked.rounds, threads=threads)
            for model in asked.models
            for case in asked.cases
            for threads in asked.threads
        ]
    if asked.json:
        return json.dumps(rows)
    title = (
        f"Train on the CPU: steps of 16,384 px, 12 of {DATES} dates of each sensor, "
        f"{len(common.BANDS)} bands; {asked.rounds} pairs of turns of {STEPS} steps, median ratio"
    )
    packages = ("deepsentinel", "torch", "lightning", "zarr", "numcodecs")
    return common.table(title, list(rows[0]), [list(r.values()) for r in rows], *packages)


if __name__ == "__main__":
    common.show(main(sys.argv[1:]))
