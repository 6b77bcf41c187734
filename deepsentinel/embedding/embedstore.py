"""The Zarr store of an embedding: made, filled block by block, verified, sealed.

Conventions: Zarr v3, sharded, zstd with its checksum; attributes ``proj:``, ``spatial:`` and
``geoemb:``. Beside the arrays lies ``__embedding__`` with the plan, one record per finished block
and the seal, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubes.store import ledger
from cubes.types import CubeError, Report
from deepsentinel.quantised import quantise

FORMAT = 1
FOLDER = "__embedding__"
BLOCK = 256
"""Edge of a shard in pixels."""
CHUNK = 64
"""Edge of an inner chunk: 64 x 64 px x 64 int8 numbers are 256 KiB before compression."""
GEOEMB = {
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention/"
    "refs/tags/v1/schema.json",
}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One shard of the result."""

    row: int
    column: int
    rows: slice
    columns: slice

    @property
    def id(self) -> str:
        """Name of its record."""
        return f"{self.row:04d}-{self.column:04d}"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be written: everything that a store says about itself."""

    identity: str
    """Hash of model, cube and arguments."""
    dims: int
    dtype: str
    shape: tuple[int, int]
    coords: xr.Dataset
    """y, x, spatial_ref, time, time_bounds."""
    attrs: Mapping[str, Any]

    def blocks(self) -> list[list[Block]]:
        """Return the shards by row."""
        height, width = self.shape
        return [
            [
                Block(
                    row=y // BLOCK,
                    column=x // BLOCK,
                    rows=slice(y, min(y + BLOCK, height)),
                    columns=slice(x, min(x + BLOCK, width)),
                )
                for x in range(0, width, BLOCK)
            ]
            for y in range(0, height, BLOCK)
        ]

    def attributes(self) -> dict[str, Any]:
        """Return the store's attributes, those of the conventions among them."""
        attrs = dict(self.attrs) | {
            "Conventions": "CF-1.10",
            "geoemb:type": "pixel",
            "geoemb:dimensions": self.dims,
            "geoemb:data_type": self.dtype,
        }
        attrs["zarr_conventions"] = [*attrs.get("zarr_conventions", ()), GEOEMB]
        if self.dtype == "int8":
            attrs["geoemb:quantization"] = {
                "method": "per_pixel_scale",
                "original_dtype": "float32",
                "quantized_dtype": "int8",
                "scale": {"type": "array", "array_name": "scales", "nodata": "+inf"},
            }
        return attrs


def read_plan(path: Path) -> dict[str, Any]:
    """Return what an embedding store was started as.

    Raises
    ------
    CubeError
        Not an embedding store, or of a newer version.
    """
    note = path / FOLDER / "plan.json"
    if not note.is_file():
        raise CubeError(f"{path} is not an embedding store: it has no {FOLDER}/plan.json")
    body: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
    if body["format"] > FORMAT:
        raise CubeError(
            f"{path} has embedding format {body['format']}; this version reads up to {FORMAT}: "
            "upgrade deepsentinel"
        )
    return body


def start(path: Path, target: Target) -> None:
    """Make the store, or accept the one that is there.

    Raises
    ------
    CubeError
        It holds something else.
    """
    if (path / FOLDER / "plan.json").is_file():
        if read_plan(path)["identity"] != target.identity:
            raise CubeError(
                f"{path} holds another embedding (other model, cube, dims, dtype or overlap): "
                "give another path, or remove it"
            )
        return
    if path.exists() and any(path.iterdir()):
        raise CubeError(f"{path} is there and is no embedding store: give another path")
    path.mkdir(parents=True, exist_ok=True)
    try:
        _make_arrays(path, target)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    body = {
        "format": FORMAT,
        "identity": target.identity,
        "dims": target.dims,
        "dtype": target.dtype,
        "shape": list(target.shape),
    }
    ledger.write_atomic(path / FOLDER / "plan.json", json.dumps(body, indent=1).encode())


def _make_arrays(path: Path, target: Target) -> None:
    import zarr

    data = target.coords.copy()
    data.attrs = target.attributes()
    times = {"units": "nanoseconds since 1970-01-01", "dtype": "int64"}
    encoding = {"time": times, "time_bounds": {"dtype": "int64"}}
    data["time"].attrs["bounds"] = "time_bounds"
    data.to_zarr(path, mode="w", zarr_format=3, consolidated=False, encoding=encoding)
    root = zarr.open_group(path, mode="r+", zarr_format=3)
    height, width = target.shape
    root.create_array(
        "embeddings",
        shape=(1, target.dims, height, width),
        dtype=target.dtype,
        shards=(1, target.dims, BLOCK, BLOCK),
        chunks=(1, target.dims, CHUNK, CHUNK),
        compressors=[_zstd()],
        fill_value=0 if target.dtype == "int8" else float("nan"),
        attributes={"long_name": "embedding", "units": "1", "grid_mapping": "spatial_ref"},
        dimension_names=["time", "embedding", "y", "x"],
    )
    if target.dtype == "int8":
        root.create_array(
            "scales",
            shape=(1, height, width),
            dtype="float32",
            shards=(1, BLOCK, BLOCK),
            chunks=(1, CHUNK, CHUNK),
            compressors=[_zstd()],
            fill_value=float("inf"),
            attributes={
                "long_name": "scale of the pixel's numbers: value = number * scale",
                "grid_mapping": "spatial_ref",
            },
            dimension_names=["time", "y", "x"],
        )
    with warnings.catch_warnings():
        # zarr-python warns that consolidated metadata is no part of the v3 specification yet;
        # xarray reads it, and without it would list folders that are none of its business
        warnings.filterwarnings("ignore", message="Consolidated metadata", category=UserWarning)
        zarr.consolidate_metadata(path, zarr_format=3)


def _zstd() -> Any:
    from zarr.codecs import ZstdCodec

    return ZstdCodec(level=3, checksum=True)


def _keys(dtype: str, block: Block) -> list[str]:
    keys = [f"embeddings/c/0/0/{block.row}/{block.column}"]
    return keys + ([f"scales/c/0/{block.row}/{block.column}"] if dtype == "int8" else [])


def write_block(path: Path, target: Target, block: Block, values: Floats) -> None:
    """Write a block, float32 (embedding, y, x) with NaN where nodata, and then its record."""
    import zarr

    for key in _keys(target.dtype, block):
        # at the edges of the cube a block is a part of its shard, of which Zarr reads the index
        # before it writes: damage there would stop it
        (path / key).unlink(missing_ok=True)
    root: Any = zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)
    if target.dtype == "int8":
        numbers, scales = quantise(values)
        root["scales"][0, block.rows, block.columns] = scales
        root["embeddings"][0, :, block.rows, block.columns] = numbers
    else:
        root["embeddings"][0, :, block.rows, block.columns] = values
    objects = {}
    for key in _keys(target.dtype, block):
        file = path / key
        if file.is_file():  # a block without data leaves no object
            objects[key] = [ledger.file_sha256(file), file.stat().st_size]
    record = {
        "identity": target.identity,
        "objects": objects,
        "valid": round(float(np.isfinite(values[0]).mean()), 6),
    }
    data = json.dumps(record, sort_keys=True).encode()
    ledger.write_atomic(path / FOLDER / "blocks" / f"{block.id}.json", data)


def done(path: Path, block: Block) -> bool:
    """Return whether a block is recorded and its objects are those recorded, by their hash.

    Hashing costs seconds where the model costs hours, and damage may keep a file's size.
    """
    objects = _recorded(path / FOLDER / "blocks" / f"{block.id}.json")
    if objects is None or _damage(path, objects, quick=False):
        return False
    dtype = str(read_plan(path)["dtype"])
    return all(key in objects or not (path / key).is_file() for key in _keys(dtype, block))


def _recorded(note: Path) -> dict[str, tuple[str, int]] | None:
    """Return the objects of a block's record, None where it is torn or not there."""
    try:
        objects = json.loads(note.read_text(encoding="utf-8"))["objects"]
        return {str(key): (str(sha), int(size)) for key, (sha, size) in objects.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _records(path: Path) -> dict[str, dict[str, tuple[str, int]] | None]:
    """Return the objects of every record, by the record's key."""
    notes = sorted((path / FOLDER / "blocks").glob("*.json"))
    return {f"{FOLDER}/blocks/{note.name}": _recorded(note) for note in notes}


def _damage(path: Path, objects: Mapping[str, tuple[str, int]], *, quick: bool) -> list[str]:
    """Return the objects of a block that are not as recorded."""
    bad = []
    for key, (sha, size) in objects.items():
        file = path / key
        whole = file.is_file() and file.stat().st_size == size
        if not whole or not (quick or ledger.file_sha256(file) == sha):
            bad.append(key)
    return bad


def seal(path: Path, target: Target) -> None:
    """Seal a store whose blocks are all done."""
    data = _seal(path, target.identity)
    note = path / FOLDER / "sealed.json"
    if not note.is_file() or note.read_bytes() != data:
        ledger.write_atomic(note, data)


def _seal(path: Path, identity: str) -> bytes:
    """Return what the seal of the records that are there says."""
    records = _records(path)
    lines = [
        f"{key} {sha}"
        for objects in records.values()
        for key, (sha, _) in sorted((objects or {}).items())
    ]
    tree = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    body = {"identity": identity, "blocks": len(records), "tree_sha256": tree}
    return json.dumps(body, sort_keys=True).encode()


def unseal(path: Path) -> None:
    """Say that the store is not finished, before a block of it is written anew."""
    (path / FOLDER / "sealed.json").unlink(missing_ok=True)


def sealed(path: Path) -> bool:
    """Return whether the store is finished."""
    return (path / FOLDER / "sealed.json").is_file()


def verify_embeddings(store: str | Path, *, quick: bool = False) -> Report:
    """Return whether an embedding is whole: every block's bytes are those recorded and sealed.

    `embed` with the same arguments writes anew what is damaged.

    Parameters
    ----------
    store : path
        Written by `embed`.
    quick : bool
        Compare sizes, not hashes.

    Raises
    ------
    CubeError
        No embedding there.
    """
    path = Path(store)
    identity = str(read_plan(path)["identity"])
    damaged, good = [], 0
    for key, objects in _records(path).items():
        bad = [key] if objects is None else _damage(path, objects, quick=quick)
        damaged += bad
        good += not bad
    note = f"{FOLDER}/sealed.json"
    if sealed(path) and (path / note).read_bytes() != _seal(path, identity):
        damaged.append(note)  # a record is gone, or is not the one that was sealed
    state = "damaged" if damaged else "sealed" if sealed(path) else "partial"
    return Report(store=str(path), state=state, reused=good, damaged=tuple(damaged))  # type: ignore[arg-type]


def lazy(path: Path) -> xr.Dataset:
    """Return the stored arrays, numbers as they are, on dask."""
    data: xr.Dataset = xr.open_zarr(path, chunks={}, zarr_format=3, mask_and_scale=False)
    return data.set_coords([n for n in ("spatial_ref", "time_bounds") if n in data])
