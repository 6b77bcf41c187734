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
from cubes.store import ledger, metadata, opened, tree
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
    build: ledger.Build | None = None
    """The store, None where a DataTree is read."""
    guard: opened.Guard | None = None
    """Sees whether the store is still the one that `identity` names."""
    written: frozenset[str] = frozenset()
    """Keys of the objects that the store's ledger records: one of these is never absent."""
    cube: xr.DataTree | None = None

    @staticmethod
    def of(cube: xr.DataTree | str | Path, contract: Contract) -> CubeReader:
        """Return the reader of a store or DataTree for what a model takes.

        Raises
        ------
        CubeError
            Not a sealed store or cube, one that lost objects or whose ledger was changed, or its
            layers mean other things than the model's.
        """
        build, guard, written = None, None, frozenset[str]()
        if isinstance(cube, xr.DataTree):
            source = tree.source(cube)
            plan, identity = source.plan, source.name
            held = {a.layer.name: a.layer for a in plan.arrays}
        else:
            build = ledger.load_build(cube)
            seal = ledger.sealed(build)
            if seal is None:
                raise CubeError(f"{cube} is not finished: run cubes.write again before embedding")
            identity = str(seal["tree_sha256"])
            guard = opened.Guard.of(build, identity)
            _refuse_lost(build, opened.lost(build))
            ledger.refuse_broken(build)
            written = frozenset(ledger.load_table(build).objects)
            if ledger.sealed(build) != seal:
                # replaced between the look at the seal and the guard's, which then knows only
                # the new one
                raise CubeError(f"{cube} was written anew while it was opened: embed it again")
            plan = ledger.build_plan(build)
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
            build=build,
            guard=guard,
            written=written,
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
        """Return the stored numbers of a part of the cube.

        Raises
        ------
        CubeError
            The store was written anew since it was opened, or lost objects.
        """
        self._check()
        held = self.agreed.held
        try:
            stored = {n: self._layer(r, rows, columns) for n, r in held.items()}
        except Exception:
            self._check()  # where the store was replaced meanwhile, that is why
            raise
        # again: what was replaced or lost during the read lies in the numbers, as another cube's
        # pixels or as nodata
        self._check()
        if self.build is not None:
            _refuse_lost(self.build, self._lost(self.build, rows, columns))
        return Source(stored=stored)

    def _lost(self, build: ledger.Build, rows: slice, columns: slice) -> list[str]:
        """Return the keys of objects of a part of the cube that were written and are gone."""
        arrays = ledger.build_arrays(build)
        keys = {
            array.key(block, row, column)
            for array in (arrays[name] for name in self.agreed.held)
            for block in range(-(-array.steps // array.steps_per_shard))
            for row in range(rows.start // array.shard[-2], -(-rows.stop // array.shard[-2]))
            for column in range(
                columns.start // array.shard[-1], -(-columns.stop // array.shard[-1])
            )
        }
        return sorted(k for k in keys & self.written if not (build.store / k).is_file())

    def _check(self) -> None:
        if self.guard is not None:
            self.guard.check()

    def _layer(self, row: Layer, rows: slice, columns: slice) -> Array:
        if self.build is not None:
            import zarr

            array = zarr.open_array(self.build.store, path=row.name, mode="r", zarr_format=3)
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


def _refuse_lost(build: ledger.Build, gone: Sequence[str]) -> None:
    """Raise CubeError if objects are gone that were written: they would read as nodata."""
    if gone:
        raise CubeError(
            f"{build.store} lacks {len(gone)} objects that were written, first {gone[0]}; they "
            "would be embedded as nodata. cubes.repair(store) makes them again"
        )


def _clocks(rows: Any, there: Mapping[str, Array]) -> set[str]:
    """Return whose dates these layers have: pairs have those of S1 where the cube has it."""
    pairs = "s1" if "s1" in there else None
    return {
        pairs or r.group if r.stack_dim == "pair" else r.group
        for r in rows
        if r.stack_dim in ("time", "pair")
    }
