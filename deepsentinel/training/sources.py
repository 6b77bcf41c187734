"""Where training batches come from: a loader over cubes, or anything with the same few verbs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from deepsentinel.loading.batch import Batch, loader
from deepsentinel.loading.contract import Contract, calibrations, chosen, group_rows
from deepsentinel.loading.normalise import Normaliser
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

    def __init__(
        self,
        samples: Samples,
        recipe: Recipe,
        norm: Normaliser,
        *,
        learn: bool,
        contract: Contract | None = None,
    ) -> None:
        """Begin at the first batch.

        Parameters
        ----------
        samples, recipe, norm
            What is read, how, and the statistics of the training samples.
        learn
            In a new order every epoch; otherwise always in the same one, which spreads any first
            batches over all samples.
        contract
            Of the source that is learned from, where this one is for watching; None: of `samples`.

        Raises
        ------
        CubeError
            The samples are not what `norm` or `contract` are of.
        """
        said = calibrations(samples)
        if contract is None:
            used = chosen(norm, recipe.model.layers or None)
            contract = Contract(norm=used, groups=group_rows(used, said))
        self.contract, self.norm = contract, contract.norm
        self.agreed = contract.agree(samples.layers, said)
        self.groups: Mapping[str, Mapping[str, Any]] = contract.groups
        self.normaliser: Mapping[str, Any] = json.loads(self.norm.to_json())
        self.sha256 = samples.sha256
        self.catalogs = _catalogs(samples)
        self.data, self.stores = recipe.data, [s.path for s in samples.stores]
        read = samples.select([n for n in samples.layers if n in self.norm.layers])
        if not learn:
            # The samples of one corner have one weather: the first batches must be of everywhere.
            order = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(read))
            read = read.take(order)
        self.loader = loader(
            read,
            recipe.data.batch_size,
            workers=recipe.data.workers,
            seed=recipe.seed,
            shuffle=learn,
            drop_last=learn,
            threads=recipe.data.threads,
        )

    def on(self, device: torch.device) -> None:
        """Let batches arrive on a device: on CUDA through pinned buffers, while the step runs."""
        self.loader.on(device)

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
        return self.agreed.inputs(batch)

    def ids(self, batch: Batch) -> list[str]:
        """Return store, place and number of every sample."""
        return [
            f"sample {i} of {self.stores[store]} at y={y}, x={x}"
            for store, y, x, i in batch.place.tolist()
        ]


def _catalogs(samples: Samples) -> tuple[str, ...]:
    """Return the names of the catalogues that the cubes were built from, empty where unstated."""
    found = set()
    for store in samples.stores:
        note = Path(store.path) / "zarr.json"
        if note.is_file():
            attrs = json.loads(note.read_text()).get("attributes", {})
            found.add(str(attrs.get("catalog", "")))
    return tuple(sorted(found))
