"""Where training batches come from: a loader over cubes, or anything with the same few verbs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch

from cubes.types import CubeError
from deepsentinel.loading.batch import Batch, loader
from deepsentinel.loading.normalise import Normaliser, inputs
from deepsentinel.recipe import Recipe
from deepsentinel.training.augment import crop

if TYPE_CHECKING:
    from cubes.sampling.sampleset import Samples
    from deepsentinel.model import Inputs


class Fetched(NamedTuple):
    """A batch, and where its source goes on after it (plain integers)."""

    batch: Any
    position: dict[str, int]


@runtime_checkable
class Source(Protocol):
    """Batches with a position: what `deepsentinel.train` learns from."""

    groups: Mapping[str, Mapping[str, Any]]
    """Layers of the inputs, as in `FusionConfig.groups`."""
    normaliser: Mapping[str, Any]
    """Statistics behind the inputs, plain JSON; kept with the model."""
    sha256: str
    """Of what the batches are made of."""

    def __iter__(self) -> Iterator[Fetched]:
        """Yield the rest of the epoch; the next pass is the next epoch."""
        ...

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at a position."""
        ...

    def rewind(self) -> None:
        """Start again from the first batch of the first epoch."""
        ...

    def to(self, batch: Any, device: torch.device) -> Any:
        """Return a batch on a device."""
        ...

    def inputs(self, batch: Any, generator: torch.Generator) -> Inputs:
        """Return what the model takes of a batch; draws (crops) come from the generator."""
        ...

    def ids(self, batch: Any) -> list[str]:
        """Return a name for a person for every sample of a batch."""
        ...


class CubeSource:
    """Batches of samples of cubes, cropped and normalised as a recipe says."""

    def __init__(self, samples: Samples, recipe: Recipe, norm: Normaliser, *, learn: bool) -> None:
        names = recipe.model.layers or None
        self.norm = _only(norm, names)
        self.groups: Mapping[str, Mapping[str, Any]] = group_rows(self.norm, calibrations(samples))
        self.normaliser: Mapping[str, Any] = json.loads(self.norm.to_json())
        self.sha256 = samples.sha256
        self.data, self.stores = recipe.data, [s.path for s in samples.stores]
        self.loader = loader(
            samples.select([n for n in samples.layers if n in self.norm.layers]),
            recipe.data.batch_size,
            workers=recipe.data.workers,
            seed=recipe.seed,
            shuffle=learn,
            drop_last=learn,
            threads=recipe.data.threads,
        )

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Fetched]:
        """Yield batches, each with the position after it."""
        for batch in self.loader:
            yield Fetched(batch, dict(self.loader.state_dict()))

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at a position; refused where the samples are others."""
        self.loader.load_state_dict(state)

    def rewind(self) -> None:
        """Start again from the first batch of the first epoch."""
        self.loader.set_epoch(0)

    def to(self, batch: Batch, device: torch.device) -> Batch:
        """Return a batch on a device."""
        return batch.to(device, non_blocking=True)

    def inputs(self, batch: Batch, generator: torch.Generator) -> Inputs:
        """Return what the model takes: random crops, normalised."""
        if self.data.crop is not None:
            batch = crop(batch, self.data.crop, each=self.data.crops, generator=generator)
        return inputs(batch, self.norm)

    def ids(self, batch: Batch) -> list[str]:
        """Return store, place and number of every sample."""
        return [
            f"sample {i} of {self.stores[store]} at y={y}, x={x}"
            for store, y, x, i in batch.place.tolist()
        ]


def _only(norm: Normaliser, names: tuple[str, ...] | None) -> Normaliser:
    """Return a normaliser of the model's layers and of the masks that go with them."""
    used = {layer.name for rows in norm.groups(names).values() for layer in rows}
    groups = {norm.layers[n].group for n in used}
    keep = {
        n: v
        for n, v in norm.layers.items()
        if n in used or (v.kind == "mask" and v.group in groups and v.stack_dim == "time")
    }
    return replace(
        norm,
        layers=keep,
        mean={k: v for k, v in norm.mean.items() if k in used},
        std={k: v for k, v in norm.std.items() if k in used},
    )


def group_rows(
    norm: Normaliser, calibration: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the layers of a model's inputs as `FusionConfig.groups` wants them."""
    made: dict[str, dict[str, Any]] = {}
    for group, layers in norm.groups().items():
        rows = []
        for layer in layers:
            row: dict[str, Any] = {
                "name": layer.name,
                "channels": list(norm.channels(layer)),
                "kind": layer.kind,
                "units": layer.units,
            }
            if layer.stack_dim == "track":
                row["aux"] = True  # geometry is known for dates on which nothing was seen
            if layer.name in norm.mean:
                row["mean"], row["std"] = list(norm.mean[layer.name]), list(norm.std[layer.name])
            if calibration and layer.name in calibration:
                row["calibration"] = calibration[layer.name]
            rows.append(row)
        made[group] = {"layers": rows}
    return made


def calibrations(samples: Samples) -> dict[str, str]:
    """Return layer name -> radiometric calibration, as the stores' attributes say.

    Raises
    ------
    CubeError
        Two stores differ: sigma nought and gamma nought are not the same quantity.
    """
    found: dict[str, tuple[str, str]] = {}
    for store in samples.stores:
        for name in samples.layers:
            note = Path(store.path) / name / "zarr.json"
            if not note.is_file():
                continue
            value = json.loads(note.read_text()).get("attributes", {}).get("calibration")
            if value is None:
                continue
            first, where = found.setdefault(name, (str(value), str(store.path)))
            if first != value:
                raise CubeError(
                    f"{name} is {first} in {where} and {value} in {store.path}: a model takes one "
                    "calibration; convert one cube, or train on cubes of one kind"
                )
    return {name: value for name, (value, _) in found.items()}
