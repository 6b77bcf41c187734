"""Running a model over windows of a cube: dense features, and where any sensor saw the ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from deepsentinel.embedding.reading import CubeReader, Source

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model and the cube it is run over."""

    model: Any
    """A Fusion in evaluation mode."""
    reader: CubeReader

    @staticmethod
    def of(model: Any, cube: xr.DataTree | str | Path) -> Encoder:
        """Return a model with a cube that it can be run over.

        Raises
        ------
        CubeError
            Not a sealed store or cube, or its layers mean other things than the model's.
        """
        from deepsentinel.loading.contract import Contract

        return Encoder(model=model.eval(), reader=CubeReader.of(cube, Contract.of(model)))

    def run(self, windows: Sequence[Source], dims: int) -> tuple[Array, Array]:
        """Return the dense features of windows, (B, dims, H, W), and where any sensor saw.

        The latter is bool, (B, 1, H, W): a layer that makes a date (not its geometry alone) is
        valid, and clear where it can be cloudy.
        """
        import torch

        from deepsentinel.model import STATIC, usable

        device = next(iter(self.model.parameters())).device
        x = self.reader.agreed.inputs(self.reader.batch(windows).to(device))
        first = next(iter(x.values()))["x"]
        seen: Array = np.zeros((len(windows), 1, *first.shape[-2:]), bool)
        for group in (g for g in x if g != STATIC):
            rows = self.model.config.layers(group)
            own = [i for i, r in enumerate(rows) if not r.get("aux", False)]
            there = usable(x[group])[:, :, own].any(2, keepdim=True)
            seen |= there.any(1).cpu().numpy()
        with torch.inference_mode():
            dense: Array = self.model(x)["dense"][:, :dims].float().cpu().numpy()
        return dense, seen
