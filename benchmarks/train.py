"""Training on this machine: seconds a step, samples a second, memory, and what loading costs.

End to end is `deepsentinel.train` on a store; resident is the same loop given one batch that is
already there, again and again. Their ratio is what the loader leaves of the model's own speed: 1
means that the model never waits for data.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import common

SIZES = ("nano", "tiny")
MODES = ("end to end", "resident")
STEPS = 16
LOG = 4
"""Steps between clock readings; the first ones, in which everything is set up, do not count."""


def store(folder: Path, *, edge: int, dates: int) -> Path:
    """Return a sealed cube of `edge` pixels and `dates` dates of each sensor, made if needed."""
    import cubes

    path = folder / f"train-{edge}-{dates}.zarr"
    if not path.exists():
        cubes.write(common.cube(edge, dates, dates), path)
    return path


def samples(path: Path, *, size: int, dates: int) -> Any:
    """Return the samples of a store: windows of `size` pixels and up to `dates` dates."""
    import cubes

    return cubes.plan([path], cubes.Window(size=size, dates=dates), min_valid=0.5)


def recipe(model: str, *, steps: int = STEPS, batch: int = 4) -> Any:
    """Return what is trained: a size of Fusion with the masked objective, 32-bit."""
    from deepsentinel.recipe import make_recipe

    return make_recipe(
        {
            "name": f"benchmark-{model}",
            "model": {"size": model},
            "data": {"batch_size": batch, "threads": 1},
            "train": {
                "steps": steps, "log_every": LOG, "save_every": 10**6, "validate_every": 10**6,
            },
        }
    )  # fmt: skip


class Resident:
    """A source that gives one batch of another, in memory on the device, for ever."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.groups, self.normaliser, self.sha256 = source.groups, source.normaliser, source.sha256
        first = next(iter(source))
        self.batch = type(first)(first.batch.clone(), first.position)

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batch

    def load_state_dict(self, state: Any) -> None:
        """Do nothing: there is one batch."""

    def rewind(self) -> None:
        """Do nothing: there is one batch."""

    def to(self, batch: Any, device: Any) -> Any:
        """Return the batch on the device, kept there from the first time on."""
        if batch is self.batch.batch:
            moved = self.source.to(batch, device)
            self.batch = type(self.batch)(moved, self.batch.position)
            return moved
        return batch

    def inputs(self, batch: Any, generator: Any) -> Any:
        """Return what the model takes."""
        return self.source.inputs(batch, generator)

    def ids(self, batch: Any) -> list[str]:
        """Return the samples' names."""
        names: list[str] = self.source.ids(batch)
        return names


def seconds_per_step(found: Any, made: Any, mode: str, norm: Any) -> float:
    """Return the steady seconds of a step of one training run, from its own history."""
    import pandas as pd

    from deepsentinel.training.sources import CubeSource
    from deepsentinel.training.train import train

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source: Any = CubeSource(found, made, norm, learn=True)
        if mode == "resident":
            source = Resident(source)
        run = train(made, {"train": source}, out=Path(name) / "run")
        history = pd.read_csv(Path(run.out) / "history.csv")
    first, last = history.iloc[0], history.iloc[-1]
    return float((last["seconds"] - first["seconds"]) / (last["step"] - first["step"]))


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


class Train:
    """Seconds a step and peak memory of a training run, with and without loading."""

    params = [["nano"], list(MODES)]
    param_names = ["model", "mode"]
    timeout = 300
    edge, dates, window, steps, batch, threads = 256, 24, 32, 8, 4, common.THREADS
    quick = {"edge": 64, "dates": 3, "window": 16, "steps": LOG + 1, "batch": 2, "threads": 1}

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

    def track_step(self, path: str, model: str, mode: str) -> float:
        made = recipe(model, steps=self.steps, batch=self.batch)
        return seconds_per_step(self.samples, made, mode, self.norm)

    track_step.unit = "s"  # type: ignore[attr-defined]

    def peakmem_train(self, path: str, model: str, mode: str) -> None:
        made = recipe(model, steps=LOG + 1, batch=self.batch)
        seconds_per_step(self.samples, made, mode, self.norm)


def main(
    models: Sequence[str] = SIZES,
    *,
    edge: int = 256,
    dates: int = 64,
    window: int = 32,
    repeats: int = 3,
) -> str:
    """Return a table: for each size of the model, steps of the same loop with and without loading.

    Memory is the process's, read while the runs of that row were on; the process before the first
    run is given in the title.
    """
    import psutil
    import torch

    torch.set_num_threads(common.THREADS)
    folder = Path(tempfile.mkdtemp())
    rows: list[tuple[Any, ...]] = []
    batch = 4
    try:
        found = samples(store(folder, edge=edge, dates=dates), size=window, dates=12)
        norm = normaliser(found)
        bare = psutil.Process().memory_info().rss / 2**20
        for model in models:
            made = recipe(model, batch=batch)
            spent: dict[str, list[float]] = {mode: [] for mode in MODES}
            with peak() as memory:
                for n in range(repeats):
                    for mode in MODES if n % 2 == 0 else reversed(MODES):
                        spent[mode].append(seconds_per_step(found, made, mode, norm))
            step = sorted(spent["end to end"])[repeats // 2]
            kept = common.ratio(spent["resident"], spent["end to end"])
            rows.append((model, step, batch / step, kept, memory[0]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    title = (
        f"Train on {device}, {common.THREADS} threads: {batch} samples of {window} px, 12 of "
        f"{dates} dates of each sensor, {len(common.BANDS)} bands; median of {repeats} in turns; "
        f"{bare:,.0f} MiB before the first run"
    )
    head = ("model", "s a step", "samples/s", "end to end over resident", "peak MiB")
    packages = ("deepsentinel", "torch", "lightning", "zarr", "numcodecs")
    return common.table(title, head, rows, *packages)


if __name__ == "__main__":
    for one in SIZES:  # a table each, so that the first is there while the other runs
        common.show(main((one,)))
