"""Embeddings of whole cubes: windows with trimmed margins, written block by block to Zarr.

    embedding = embed(model, "area.zarr", "area-embedding.zarr")   # run again: goes on
    embedding = open_embeddings("area-embedding.zarr")             # lazy, float32

The store follows the GeoZarr conventions ``proj:``, ``spatial:`` and ``geoemb:``: an array
``embeddings`` (time, embedding, y, x), int8 with one float32 scale per pixel in ``scales``, or
float32. A block is one shard. What is done is recorded per block with its hash, and the seal is
written last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubes.types import CubeError, Progress
from deepsentinel.embedding import embedstore
from deepsentinel.embedding.embedstore import FORMAT, Block, Target, verify_embeddings
from deepsentinel.embedding.encoding import Encoder
from deepsentinel.embedding.reading import CubeReader
from deepsentinel.embedding.tiling import Tile, tiles, window_size
from deepsentinel.quantised import DIMS, dequantise, quantise

__all__ = ["embed", "open_embeddings", "quantise", "verify_embeddings"]

CORE = 128
"""Edge of what is kept of a window: with margins of 32 px, 2.25 pixels are computed for each one
kept (4 at 64), and a window of 40 dates takes 0.5 GB in the nano model."""
OVERLAP = 32
"""Pixels computed around each window and trimmed."""
BATCH_PIXELS = 2 * 128 * 128
"""Pixels of the windows that go through the model at once."""
SIMULATED = "simulated"
"""Name of the catalogue of `cubes.worlds`."""
Floats = npt.NDArray[np.float32]


def embed(
    model: Any,
    cube: xr.DataTree | str | Path,
    store: str | Path | None = None,
    *,
    dims: int = DIMS,
    dtype: str = "int8",
    overlap: int = OVERLAP,
) -> xr.DataTree:
    """Return the embedding of every pixel of a cube, from all its dates together.

    Parameters
    ----------
    model : Fusion
        With the normalisation statistics that it was trained with.
    cube : DataTree or path
        A cube in physical units, or the store of one (faster). Select dates beforehand to embed
        a part of them.
    store : path, optional
        Where to write; goes on where an earlier call with the same model, cube and arguments
        stopped, and writes anew what is damaged since (every block is checked by its hash). None
        keeps everything in memory.
    dims : int
        Numbers per pixel: the first of the model's embedding (Matryoshka).
    dtype : {"int8", "float32"}
        ``int8``: value = number * scale of the pixel.
    overlap : int
        Pixels that are computed around each window and trimmed, so that no seam shows.

    Returns
    -------
    DataTree
        ``embeddings`` (time, embedding, y, x) float32, NaN where no sensor saw the pixel; one
        time, the middle of the dates, with ``time_bounds``. Lazy if there is a store.

    Raises
    ------
    CubeError
        Sizes or layers that do not fit the model, another embedding in `store`, or a cube that
        lost objects, whose ledger was changed, or that was replaced meanwhile.
    """
    job = Job.of(model, cube, dims=dims, dtype=dtype, overlap=overlap)
    if store is None:
        target = job.target()
        rows = [[job.block(b) for b in row] for row in target.blocks()]
        return _in_memory(target, np.concatenate([np.concatenate(r, -1) for r in rows], -2))
    return job.write(Path(store))


def open_embeddings(store: str | Path, *, partial: bool = False) -> xr.DataTree:
    """Return the embedding in a store: lazy on dask, dequantised to float32 as it is read.

    Parameters
    ----------
    store : path
        Written by `embed`.
    partial : bool
        Also open one that is not finished; missing blocks are NaN.

    Returns
    -------
    DataTree
        ``embeddings`` (time, embedding, y, x) float32, NaN where nodata.

    Raises
    ------
    CubeError
        No embedding there, of a newer version, or not finished.
    """
    path = Path(store)
    plan = embedstore.read_plan(path)
    if not embedstore.sealed(path) and not partial:
        n = len(list((path / embedstore.FOLDER / "blocks").glob("*.json")))
        raise CubeError(
            f"the embedding in {path} is not finished ({n} blocks are): call embed again with the "
            "same arguments, or open it with partial=True"
        )
    data = embedstore.lazy(path)
    if plan["dtype"] == "int8":
        value = data["embeddings"] * data["scales"].where(np.isfinite(data["scales"]))
        data["embeddings"] = value.transpose(*data["embeddings"].dims).assign_attrs(
            data["embeddings"].attrs
        )
        data = data.drop_vars("scales")
    data["embeddings"].encoding["grid_mapping"] = "spatial_ref"
    return xr.DataTree(data, name=path.stem)


def _check(model: Any, dims: int, dtype: str, overlap: int) -> None:
    from deepsentinel.model import DIMS as CUTS

    most = int(model.config.dims)
    allowed = sorted({d for d in CUTS if d <= most} | {most})
    if dims not in allowed:
        near = min(allowed, key=lambda d: abs(d - dims))
        raise CubeError(
            f"dims={dims}: this model's embedding may be cut to "
            f"{', '.join(map(str, allowed))}; the nearest is {near}"
        )
    if dtype not in ("int8", "float32"):
        raise CubeError(f"dtype={dtype!r}: choose 'int8' or 'float32'")
    if overlap < 0:
        raise CubeError(f"overlap={overlap}: pixels, 0 or more")


def _doubt(model: Any, reader: CubeReader) -> None:
    """Warn where nothing that the model was trained on is of the cube's kind of ground."""
    if list(dict(model.config.card).get("catalogs", ())) == [SIMULATED] != [reader.catalog]:
        warnings.warn(
            "this model was trained on simulated ground alone (its card says so), and this cube "
            "is not simulated: its embedding says what the simulation knew. Train a model on "
            "cubes of real ground for anything but a trial",
            stacklevel=4,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """An embedding to be made: everything that decides its bytes."""

    encoder: Encoder
    dims: int
    dtype: str
    overlap: int
    """A multiple of the model's patch."""
    patch: int
    identity: str
    """Hash of model, cube and arguments."""

    @staticmethod
    def of(
        model: Any, cube: xr.DataTree | str | Path, *, dims: int, dtype: str, overlap: int
    ) -> Job:
        """Return the job that `embed` was asked for.

        Warns where the model saw nothing but simulated ground and the cube is of other ground.

        Raises
        ------
        CubeError
            Arguments or a cube that do not fit the model.
        """
        _check(model, dims, dtype, overlap)  # before anything is read
        encoder = Encoder.of(model, cube)
        _doubt(model, encoder.reader)
        patch = int(model.config.patch)
        margin = -(-overlap // patch) * patch
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        # Not the weights alone: what decides over dates and reach has no weight of its own.
        body = [FORMAT, digest.hexdigest(), dataclasses.asdict(model.config)]
        body += [encoder.reader.identity, dims, dtype, margin, CORE]
        identity = hashlib.sha256(json.dumps(body, sort_keys=True, default=str).encode())
        return Job(
            encoder=encoder,
            dims=dims,
            dtype=dtype,
            overlap=margin,
            patch=patch,
            identity=identity.hexdigest(),
        )

    @property
    def reader(self) -> CubeReader:
        """The cube."""
        return self.encoder.reader

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the cube."""
        return self.reader.shape

    def target(self) -> Target:
        """Return what is written."""
        reader = self.reader
        attrs = {
            **reader.grid_attributes(),
            "geoemb:model": str(
                dict(self.encoder.model.config.card).get("model", "deepsentinel Fusion")
            ),
            "geoemb:source_data": list(reader.sources),
            "geoemb:gsd": abs(float(reader.geobox.resolution.x)),
            "deepsentinel:overlap_px": self.overlap,
            "deepsentinel:window_px": window_size(CORE, self.overlap, self.patch),
        }
        return Target(
            identity=self.identity,
            dims=self.dims,
            dtype=self.dtype,
            shape=self.shape,
            coords=_coords(reader),
            attrs=attrs,
        )

    def write(self, path: Path, progress: Progress | None = None) -> xr.DataTree:
        """Return the embedding in `path`, after writing the blocks that are not there, or damaged.

        Parameters
        ----------
        path : Path
            The store.
        progress : callable, optional
            Told (blocks done, blocks, what) after every block.

        Raises
        ------
        CubeError
            `path` holds something else.
        """
        target = self.target()
        embedstore.start(path, target)
        blocks = [block for row in target.blocks() for block in row]
        for done, block in enumerate(blocks, 1):
            if not embedstore.done(path, block):
                embedstore.unseal(path)
                embedstore.write_block(path, target, block, self.block(block))
            if progress is not None:
                progress(done, len(blocks), f"block {block.id}")
        embedstore.seal(path, target)
        return open_embeddings(path)

    def block(self, block: Block) -> Floats:
        """Return the embedding of a block, float32 (embedding, y, x), NaN where nodata.

        Memory holds the block's source numbers with their margins and some windows, no more.
        """
        plan = tiles(
            self.shape,
            (block.rows, block.columns),
            core=CORE,
            overlap=self.overlap,
            patch=self.patch,
        )
        top, bottom = min(t.y0 for t in plan), max(t.y1 for t in plan)
        left, right = min(t.x0 for t in plan), max(t.x1 for t in plan)
        source = self.reader.read(slice(top, bottom), slice(left, right))
        height = block.rows.stop - block.rows.start
        width = block.columns.stop - block.columns.start
        out = np.full((self.dims, height, width), np.nan, np.float32)
        for group in _batched(plan):
            batch = [
                source.crop(slice(t.y0 - top, t.y1 - top), slice(t.x0 - left, t.x1 - left))
                for t in group
            ]
            values, seen = self.encoder.run(batch, self.dims)
            for tile, value, there in zip(group, values, seen, strict=True):
                kept = np.where(there, value, np.nan)[:, tile.keep[0], tile.keep[1]]
                rows = slice(
                    tile.core[0].start - block.rows.start, tile.core[0].stop - block.rows.start
                )
                columns = slice(
                    tile.core[1].start - block.columns.start,
                    tile.core[1].stop - block.columns.start,
                )
                out[:, rows, columns] = kept
        return out


def _batched(plan: list[Tile]) -> Iterator[list[Tile]]:
    """Yield tiles of one shape, a bounded number of pixels at a time."""
    by_shape: dict[tuple[int, int], list[Tile]] = {}
    for tile in plan:
        by_shape.setdefault((tile.y1 - tile.y0, tile.x1 - tile.x0), []).append(tile)
    for (h, w), group in by_shape.items():
        n = max(1, BATCH_PIXELS // (h * w))
        for i in range(0, len(group), n):
            yield group[i : i + n]


def _coords(reader: CubeReader) -> xr.Dataset:
    from odc.geo.xr import xr_coords

    first, last = reader.span
    middle = first + (last - first) // 2
    return xr.Dataset(
        coords={
            **xr_coords(reader.geobox),
            "time": ("time", np.array([middle], "datetime64[ns]")),
            "time_bounds": (("time", "bound"), np.array([[first, last]], "datetime64[ns]")),
        }
    )


def _in_memory(target: Target, values: Floats) -> xr.DataTree:
    data = target.coords.copy()
    if target.dtype == "int8":
        values = dequantise(*quantise(values))
    data["embeddings"] = (("time", "embedding", "y", "x"), values[None].astype(np.float32))
    data["embeddings"].attrs = {"long_name": "embedding", "units": "1"}
    data["embeddings"].encoding["grid_mapping"] = "spatial_ref"
    data.attrs = target.attributes()
    return xr.DataTree(data, name="embedding")
