"""What an embedding measures is learned before the first step: a basis fitted to training data."""

from __future__ import annotations

import torch

from deepsentinel.model import Fusion
from deepsentinel.training.sources import Source

FIT_BATCHES, FIT_PIXELS = 16, 4_096
"""First batches, and pixels of each, that the measured part of the embedding is fitted to."""


def fit_basis(model: Fusion, source: Source, seed: int) -> None:
    """Fit the measured part of a model's embedding; the source stands at its beginning after it.

    A resumed run has its own from the checkpoint; this is the same one, and costs a second.
    """
    found = []
    for number, fetched in zip(range(FIT_BATCHES), source, strict=False):
        batch = source.to(fetched.batch, torch.device("cpu"))
        generator = torch.Generator().manual_seed(1_000_003 * seed + number)
        rows = model.statistics(source.inputs(batch, generator))
        found.append(rows[torch.randperm(len(rows), generator=generator)[:FIT_PIXELS]])
    source.rewind()
    rows = torch.cat(found) if found else torch.zeros(0)
    if len(rows) > 10 * max(rows.shape[-1], 1) and bool(rows.isfinite().all()):
        model.fit(rows)
