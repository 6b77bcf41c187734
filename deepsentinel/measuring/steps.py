"""Steps of training timed as training takes them: on a batch that is there, and with loading.

Both are steps of one `deepsentinel.train`: the same model, optimiser and threads, in turns, so
that a slow or busy machine slows both. What is different is where a batch comes from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from deepsentinel.recipe import Recipe
from deepsentinel.training.sources import Fetched, Source
from deepsentinel.training.train import train

RESIDENT, STREAM = "resident", "end to end"
SETTLE = 4
"""Steps at the beginning of a turn that do not count. The loader's buffers (prefetch + 2 batches)
are full when its turn begins, and are filled again in the turn after it."""
LEAST = 3
"""Rounds that are taken however long they last: fewer have no median."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """How many steps are timed."""

    rounds: int = 5
    """Pairs of turns, one on the resident batch and one with loading; fixed beforehand."""
    steps: int = 9
    """Timed in a turn, after `SETTLE` that are not: a multiple of the batches that the loader has
    under way (prefetch + 1, 3), for where reading is slow these become ready together. With 2 steps
    a loader that took 2 s a batch was seen to cost nothing."""
    seconds: float = float("inf")
    """No further round begins after so long; there are always `LEAST`."""


@dataclass(kw_only=True, slots=True)
class Turn:
    """The steps of one turn."""

    mode: str
    seconds: list[float] = field(default_factory=list)
    """Of each step, waiting for its batch included."""
    waited: list[float] = field(default_factory=list)
    """Seconds of those in which the step waited for its batch."""
    processor: float = 0.0
    """Processor seconds of all threads in the timed steps together."""


class Enough(Exception):
    """Ends a training run from inside, without the model that nobody wants."""


class Resident:
    """A source that gives one batch of another, in memory on the device, for ever."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.groups, self.normaliser, self.sha256 = source.groups, source.normaliser, source.sha256
        first = next(iter(source))
        self.batch = Fetched(first.batch.clone(), first.position)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batch."""
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
            self.batch = Fetched(moved, self.batch.position)
            return moved
        return self.source.to(batch, device)

    def inputs(self, batch: Any, generator: Any) -> Any:
        """Return what the model takes."""
        return self.source.inputs(batch, generator)

    def ids(self, batch: Any) -> list[str]:
        """Return the samples' names."""
        names: list[str] = self.source.ids(batch)
        return names


class InTurns(Resident):
    """A source that gives the resident batch and loaded ones in turns, and times the steps."""

    def __init__(self, source: Any, turns: Turns) -> None:
        super().__init__(source)
        self.turns, self.done = turns, list[Turn]()
        self.first_step = 0.0
        self._ready = False

    def on(self, device: torch.device) -> None:
        """Let loaded batches arrive on a device."""
        self.source.on(device)

    def rewind(self) -> None:
        """Let the next pass be that of the steps."""
        self._ready = True

    def __len__(self) -> int:
        """Return more than anybody takes: with a length, Lightning asks for no batch ahead."""
        return 2**31

    def __iter__(self) -> Iterator[Any]:
        """Yield batches; nothing to what trains nothing (the basis that is fitted before).

        Raises
        ------
        Enough
            All turns are done.
        """
        if not self._ready:
            return
        loaded, began = self._epochs(), time.perf_counter()
        yield self.batch
        self.first_step = time.perf_counter() - began
        for n in range(self.turns.rounds):
            if n >= LEAST and time.perf_counter() - began > self.turns.seconds:
                break
            order = (RESIDENT, STREAM) if n % 2 == 0 else (STREAM, RESIDENT)
            for mode in order:
                turn, used = Turn(mode=mode), 0.0
                for i in range(SETTLE + self.turns.steps):
                    start, used = time.perf_counter(), used if i > SETTLE else time.process_time()
                    fetched = self.batch if mode == RESIDENT else next(loaded)
                    there = time.perf_counter()
                    yield fetched
                    del fetched  # its buffers are wanted for the next
                    if i >= SETTLE:
                        turn.seconds.append(time.perf_counter() - start)
                        turn.waited.append(there - start)
                turn.processor = time.process_time() - used
                self.done.append(turn)
        loaded.close()
        raise Enough

    def _epochs(self) -> Any:
        self.source.rewind()
        while True:
            yield from self.source


def timed(source: Source, recipe: Recipe, turns: Turns) -> InTurns:
    """Return a source after the steps of a training run that it was measured in."""
    steps = dataclasses.replace(
        recipe.train, steps=10**9, accumulate=1, log_every=10**8, save_every=10**8,
        validate_every=10**8,
    )  # fmt: skip
    measured = InTurns(source, turns)
    with tempfile.TemporaryDirectory(prefix="bench-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = dataclasses.replace(recipe, train=steps)
        with contextlib.suppress(Enough):
            train(made, {"train": measured}, out=Path(name, "run"))
    return measured


def ratio(turns: Sequence[Turn]) -> float:
    """Return the rate of end to end over resident steps: the median of neighbouring turns."""
    by = {m: [sum(t.seconds) for t in turns if t.mode == m] for m in (RESIDENT, STREAM)}
    return statistics.median(a / b for a, b in zip(by[RESIDENT], by[STREAM], strict=True))
