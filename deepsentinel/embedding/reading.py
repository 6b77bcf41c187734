"""Reading a cube for its embedding: stored numbers of any window, with its dates, as a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from cubes import physics
from cubes.sampling import index
from cubes.store import ledger, metadata, tree
from cubes.types import CubeError, Layer, Plan

if TYPE_CHECKING:
    from deepsentinel.loading.batch import Batch
    from deepsentinel.loading.contract import Agreement, Contract

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Stored numbers of a part of a cube: layer -> (step, channel, y, x)."""

    stored: Mapping[str, Array]

    def crop(self, rows: slice, columns: slice) -> Source:
        """Return a part of it (views)."""
        return Source(stored={k: v[..., rows, columns] for k, v in self.stored.items()})


@dataclass(frozen=True, kw_only=True)
class CubeReader:
    """A cube as an embedding needs it: stored numbers of any window, with its dates."""

    plan: Plan
    identity: str
    agreed: Agreement
    """Which layers are read, and how they become the model's inputs."""
    clocks: Mapping[str, Array]
    """Group -> days since 2000-01-01 of its dates."""
    pairs: Array | None
    """Pair of each S1 date, -1 where none."""
    track: Array | None
    """Plane of the per-track layers of each S1 date."""
    store: Path | None = None
    cube: xr.DataTree | None = None

    @staticmethod
    def of(cube: xr.DataTree | str | Path, contract: Contract) -> CubeReader:
        """Return the reader of a store or DataTree for what a model takes.

        Raises
        ------
        CubeError
            Not a sealed store or cube, or its layers mean other things than the model's.
        """
        if isinstance(cube, xr.DataTree):
            source = tree.source(cube)
            plan, identity, store = source.plan, source.name, None
            held = {a.layer.name: a.layer for a in plan.arrays}
        else:
            build = ledger.load_build(cube)
            seal = ledger.sealed(build)
            if seal is None:
                raise CubeError(f"{cube} is not finished: run cubes.write again before embedding")
            plan, identity, store = ledger.build_plan(build), str(seal["tree_sha256"]), Path(cube)
            held = {n: a.layer for n, a in ledger.build_arrays(build).items()}
            for name, row in held.items():
                if name in contract.names and row.dtype != plan.array(name).layer.dtype:
                    raise CubeError(
                        f"{cube} holds {name} in working numbers ({row.dtype}), and a model takes "
                        f"stored ones ({plan.array(name).layer.dtype}): give embed the cube "
                        "itself, cubes.open(store), or write it without Layout(lossless=True)"
                    )
        marks = {a.layer.name: str(a.attrs.get("calibration", "")) for a in plan.arrays}
        agreed = contract.agree(held, {k: v for k, v in marks.items() if v})
        clocks, pairs, track = index.alignment(plan)
        return CubeReader(
            plan=plan,
            identity=identity,
            agreed=agreed,
            clocks={g: d for g, d in clocks.items() if g in _clocks(agreed.held.values(), clocks)},
            pairs=pairs,
            track=track,
            store=store,
            cube=cube if isinstance(cube, xr.DataTree) else None,
        )

    @property
    def geobox(self) -> GeoBox:
        """The cube's grid."""
        return self.plan.geobox

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.geobox.shape[0]), int(self.geobox.shape[1])

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the layers used."""
        return tuple(self.agreed.held)

    @property
    def catalog(self) -> str:
        """Name of the catalogue that the cube was built from, empty where unstated."""
        return str(self.plan.attrs.get("catalog", ""))

    @property
    def span(self) -> tuple[np.datetime64, np.datetime64]:
        """First and last date of any sensor."""
        days = np.concatenate([*self.clocks.values()])
        stamps = index.EPOCH + (days * 86_400_000_000_000).astype("timedelta64[ns]")
        return stamps.min(), stamps.max()

    def grid_attributes(self) -> dict[str, Any]:
        """Return the ``proj:`` and ``spatial:`` attributes of the grid."""
        return dict(metadata.geo_attributes(self.geobox))

    def read(self, rows: slice, columns: slice) -> Source:
        """Return the stored numbers of a part of the cube."""
        held = self.agreed.held
        return Source(stored={n: self._layer(r, rows, columns) for n, r in held.items()})

    def _layer(self, row: Layer, rows: slice, columns: slice) -> Array:
        if self.store is not None:
            import zarr

            array = zarr.open_array(self.store, path=row.name, mode="r", zarr_format=3)
            values = np.asarray(array[..., rows, columns])
        else:
            assert self.cube is not None
            data = self.cube[row.group].to_dataset()[row.variable].isel(y=rows, x=columns)
            values = physics.encode(data.to_numpy(), row)
        return values.reshape(-1, row.n_channels, *values.shape[-2:])

    def batch(self, windows: Sequence[Source]) -> Batch:
        """Return windows of one size as a batch, each with all dates of the cube."""
        import torch

        from deepsentinel.loading.batch import as_batch

        n = len(windows)
        out: dict[str, Any] = {
            name: torch.from_numpy(np.stack([self._dated(row, w) for w in windows]))
            for name, row in self.agreed.held.items()
        }
        for clock, days in self.clocks.items():
            out[f"{clock}/days"] = torch.from_numpy(np.tile(days, (n, 1)))
            out[f"{clock}/present"] = torch.ones(n, len(days), dtype=torch.bool)
        if self.track is not None:
            out["s1/track_of_date"] = torch.from_numpy(np.tile(self.track, (n, 1)))
        out["place"] = torch.zeros(n, 4, dtype=torch.int64)
        out["lonlat"] = torch.zeros(n, 2, dtype=torch.float64)
        return as_batch(out)

    def _dated(self, row: Layer, window: Source) -> Array:
        """Return a layer in the order of its clock: pairs by the S1 date that they end at."""
        values = window.stored[row.name]
        if row.stack_dim == "pair" and self.pairs is not None:
            assert row.nodata is not None
            picked = values[np.maximum(self.pairs, 0)]
            picked[self.pairs < 0] = row.nodata
            return picked
        return np.ascontiguousarray(values)


def _clocks(rows: Any, there: Mapping[str, Array]) -> set[str]:
    """Return whose dates these layers have: pairs have those of S1 where the cube has it."""
    pairs = "s1" if "s1" in there else None
    return {
        pairs or r.group if r.stack_dim == "pair" else r.group
        for r in rows
        if r.stack_dim in ("time", "pair")
    }
