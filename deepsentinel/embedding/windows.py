"""Windows over a whole cube: which pixels are computed, which kept, and reading them.

The cores of the windows partition the cube; each window is its core and a margin, moved inwards
at the cube's edges, and starts at a multiple of the model's patch so that every pixel lies at the
same place of its patch in whatever window it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from odc.geo.geobox import GeoBox

from cubes import physics
from cubes.sampling import index
from cubes.store import ledger, metadata, tree
from cubes.types import CubeError, Layer, Plan

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A window: pixels y0:y1, x0:x1 are computed, `core` of the cube is kept."""

    y0: int
    y1: int
    x0: int
    x1: int
    core: tuple[slice, slice]
    """Rows and columns of the cube."""

    @property
    def keep(self) -> tuple[slice, slice]:
        """Rows and columns of the window."""
        rows, columns = self.core
        return (
            slice(rows.start - self.y0, rows.stop - self.y0),
            slice(columns.start - self.x0, columns.stop - self.x0),
        )


def tiles(
    shape: tuple[int, int],
    block: tuple[slice, slice],
    *,
    core: int,
    overlap: int,
    patch: int,
) -> list[Tile]:
    """Return the windows whose cores partition a block of a cube.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns of the cube.
    block : tuple of slice
        Rows and columns to be covered; starts are multiples of `core`.
    core, overlap, patch : int
        Pixels; core and overlap are multiples of patch.
    """
    rows, columns = (
        [_span(start, min(start + core, part.stop), n, core, overlap, patch)
         for start in range(part.start, part.stop, core)]
        for part, n in zip(block, shape, strict=True)
    )  # fmt: skip
    return [
        Tile(y0=y0, y1=y1, x0=x0, x1=x1, core=(kept_y, kept_x))
        for y0, y1, kept_y in rows
        for x0, x1, kept_x in columns
    ]


def _span(
    start: int, stop: int, n: int, core: int, overlap: int, patch: int
) -> tuple[int, int, slice]:
    """Return the first and last pixel of a window along one axis, and its core."""
    size = core + 2 * overlap
    # inwards at the far edge, by whole patches; the window may then end past the edge by less
    # than a patch, which the reader leaves out and the model pads
    last = max(0, -(-(n - size) // patch) * patch)
    first = min(max(start - overlap, 0), last)
    return first, min(first + size, n), slice(start, stop)


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
    layers: Mapping[str, Layer]
    """Layers read: the model's, and the masks that go with them."""
    model_name: str
    clocks: Mapping[str, Array]
    """Group -> days since 2000-01-01 of its dates."""
    pairs: Array | None
    """Pair of each S1 date, -1 where none."""
    track: Array | None
    """Plane of the per-track layers of each S1 date."""
    store: Path | None = None
    cube: xr.DataTree | None = None
    norm: Any = field(default=None, repr=False)

    @staticmethod
    def of(cube: xr.DataTree | str | Path, model: Any) -> CubeReader:
        """Return the reader of a store or DataTree for a model.

        Raises
        ------
        CubeError
            Not a sealed store or cube, or its layers mean other things than the model's.
        """
        from deepsentinel.evaluation.tasks import normaliser

        norm = normaliser(model)
        if isinstance(cube, xr.DataTree):
            source = tree.source(cube)
            plan, identity, store = source.plan, source.name, None
        else:
            build = ledger.load_build(cube)
            seal = ledger.sealed(build)
            if seal is None:
                raise CubeError(f"{cube} is not finished: run cubes.write again before embedding")
            plan, identity, store = ledger.build_plan(build), str(seal["tree_sha256"]), Path(cube)
        there = {a.layer.name: a.layer for a in plan.arrays}
        layers = {name: row for name, row in norm.layers.items() if name in there}
        _refuse_others(plan, layers, model)
        clocks, pairs, track = index.alignment(plan)
        return CubeReader(
            plan=plan,
            identity=identity,
            layers=layers,
            model_name=str(dict(model.config.card).get("model", "deepsentinel Fusion")),
            clocks={g: d for g, d in clocks.items() if any(n.startswith(f"{g}/") for n in layers)},
            pairs=pairs,
            track=track,
            store=store,
            cube=cube if isinstance(cube, xr.DataTree) else None,
            norm=norm,
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
        return tuple(self.layers)

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
        return Source(stored={n: self._layer(r, rows, columns) for n, r in self.layers.items()})

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

    def run(self, model: Any, windows: Sequence[Source], dims: int) -> tuple[Array, Array]:
        """Return the dense features of windows, (B, dims, H, W), and where any sensor saw.

        The latter is bool, (B, 1, H, W): a layer that makes a date (not its geometry alone) is
        valid, and clear where it can be cloudy.
        """
        from deepsentinel.evaluation.tasks import features
        from deepsentinel.loading.batch import as_batch, inputs

        batch = as_batch(self._tensors(windows))
        device = next(iter(model.parameters())).device
        names = [n for n, r in self.layers.items() if r.kind in ("continuous", "phase")]
        x = inputs(batch.to(device), self.norm, layers=names)
        seen: Array = np.zeros((len(windows), 1, *windows[0].stored[names[0]].shape[-2:]), bool)
        for group, values in x.items():
            if "days" in values:
                rows = [r for r in model.config.layers(group) if r["name"] in names]
                own = [i for i, r in enumerate(rows) if not r.get("aux", False)]
                there = values["valid"][:, :, own].any(2, keepdim=True)
                there = there & values["clear"] if "clear" in values else there
                seen |= there.any(1).cpu().numpy()
        return features(model, x)[:, :dims], seen

    def _tensors(self, windows: Sequence[Source]) -> dict[str, Any]:
        import torch

        n = len(windows)
        out: dict[str, Any] = {
            name: torch.from_numpy(np.stack([self._dated(row, w) for w in windows]))
            for name, row in self.layers.items()
        }
        for clock, days in self.clocks.items():
            out[f"{clock}/days"] = torch.from_numpy(np.tile(days, (n, 1)))
            out[f"{clock}/present"] = torch.ones(n, len(days), dtype=torch.bool)
        if self.track is not None:
            out["s1/track_of_date"] = torch.from_numpy(np.tile(self.track, (n, 1)))
        out["place"] = torch.zeros(n, 4, dtype=torch.int64)
        out["lonlat"] = torch.zeros(n, 2, dtype=torch.float64)
        return out

    def _dated(self, row: Layer, window: Source) -> Array:
        """Return a layer in the order of its clock: pairs by the S1 date that they end at."""
        values = window.stored[row.name]
        if row.stack_dim == "pair" and self.pairs is not None:
            assert row.nodata is not None
            picked = values[np.maximum(self.pairs, 0)]
            picked[self.pairs < 0] = row.nodata
            return picked
        return np.ascontiguousarray(values)


def _refuse_others(plan: Plan, layers: Mapping[str, Layer], model: Any) -> None:
    """Refuse a cube whose layers are not what the model was trained on."""
    from deepsentinel.evaluation.tasks import normaliser
    from deepsentinel.model import ModelError, check_groups
    from deepsentinel.training.sources import group_rows

    if not any(r.stack_dim in ("time", "pair") for r in layers.values() if r.kind != "mask"):
        wanted = [row["name"] for g in model.config.groups for row in model.config.layers(g)]
        raise CubeError(
            f"the cube has none of the dated layers that this model takes: {', '.join(wanted)}"
        )
    for name, row in layers.items():
        held = plan.array(name).layer
        if (held.channels, held.dtype) != (row.channels, row.dtype):
            raise CubeError(
                f"{name} has {', '.join(held.channels) or 'one channel'} as {held.dtype}, and the "
                f"model takes {', '.join(row.channels) or 'one'} as {row.dtype}"
            )
    marks = {a.layer.name: str(a.attrs.get("calibration", "")) for a in plan.arrays}
    given = group_rows(normaliser(model), {k: v for k, v in marks.items() if v})
    held_groups = {
        g: {"layers": [r for r in body["layers"] if r["name"] in layers]}
        for g, body in given.items()
    }
    try:
        check_groups(model.config.groups, held_groups)
    except ModelError as error:
        raise CubeError(str(error)) from None
