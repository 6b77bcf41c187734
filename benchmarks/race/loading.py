"""The rivals' side of torch: map-style data sets over records, and their DataLoader.

Workers import this module; it knows numpy and torch, and opens a rival's files where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.race.field import Arrays, Wanted, unpack

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
Get = Callable[[int], Mapping[str, Any]]


def loader(data: Any, batch: int | None, workers: int, **how: Any) -> DataLoader[Any]:
    """Return torch's DataLoader as the rivals' documentation has it; processes stay between passes.

    Forkserver, because the process that starts them has run threads.
    """
    if workers:
        how = {"multiprocessing_context": "forkserver", "persistent_workers": True} | how
    kind = how.pop("kind", DataLoader)
    made: DataLoader[Any] = kind(data, batch_size=batch, num_workers=workers, **how)
    return made


@dataclass
class Pieces(Dataset[Arrays]):
    """Samples put together from records of one date each, or of all dates, at random."""

    start: Callable[[], Get]
    """Opens the files; gives record -> fields."""
    wanted: Sequence[Wanted]
    shapes: Shapes
    clocks: Mapping[str, str]
    dates: int | None
    """Steps of the store, where every date is a record; None: a record has all of a patch."""
    _get: Get | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_get": None}

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, i: int) -> Arrays:
        if self._get is None:
            self._get = self.start()
        wanted = self.wanted[i]
        out = {k: np.empty(*self.shapes[k]) for k in self.shapes}
        if self.dates is None:
            record = self._get(wanted.patch)
            for name, target in out.items():
                fill(record[key(name)], target, wanted.steps[name])
        else:
            for clock in sorted(set(self.clocks.values())):
                layers = [n for n, c in self.clocks.items() if c == clock]
                steps = wanted.steps[layers[0]] if clock != "static" else (0,)
                for t, step in enumerate(steps):
                    record = self._get(number(wanted.patch, clock, step, self.dates))
                    for name in layers:
                        part = out[name] if clock == "static" else out[name][t : t + 1]
                        fill(record[key(name)], part, None)
        return out | dict(wanted.small)


def fill(value: Any, target: np.ndarray, steps: Sequence[int] | None) -> None:
    """Copy, or decode, some steps of a field into (t, channel, y, x)."""
    if isinstance(value, bytes) or (value.ndim == 1 and value.dtype == np.uint8):
        unpack(value, target, steps)
    else:
        shaped = np.asarray(value).reshape(-1, *target.shape[1:])
        np.take(shaped, steps, axis=0, out=target) if steps is not None else np.copyto(
            target, shaped
        )


def number(patch: int, clock: str, step: int, dates: int) -> int:
    """Return the number of a record of one date: per patch all of S1, all of S2, the static one."""
    at = {"s1": 0, "s2": dates, "static": 2 * dates}[clock]
    return patch * (2 * dates + 1) + at + step


def key(name: str) -> str:
    """Return a layer's name as a field: archives split names at dots and slashes."""
    return name.replace("/", "_")


def names(batch: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, Any]:
    """Return a batch under our names."""
    return {wanted[k]: v for k, v in batch.items() if k in wanted}


@dataclass(frozen=True)
class Unpacked:
    """Decodes the frames of a whole sample, where its format gives bytes; a picklable call."""

    shapes: Shapes

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        out = {k: v for k, v in record.items() if not k.startswith("_")}
        for name in [k for k in out if k.endswith("_present")]:
            out[name] = np.asarray(out[name]).view(bool)
        for name, (shape, dtype) in self.shapes.items():
            value = record[key(name)]
            raw = value if isinstance(value, bytes) else np.asarray(value)
            if isinstance(raw, bytes) or (raw.ndim == 1 and raw.dtype == np.uint8):
                out[key(name)] = np.empty(shape, dtype)
                unpack(raw, out[key(name)])
        return out
