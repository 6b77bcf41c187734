"""What is done, proved by hashes: plan, records, seal and lock, beside the data in ``__cubes__``.

::

    area.zarr/
      zarr.json              root with consolidated metadata; written last: before the seal no Zarr
      s1/zarr.json           reader finds a group, so a half-written cube never looks whole
      s1/backscatter/zarr.json, c/0/0/0/0, ...
      __cubes__/build.json   format, plan hash, layout, partition into regions, id of the run
                plan.json    the plan; `resume` and `repair` need nothing else
                regions/     one record per finished region, until the seal
                table.npz    all records in one table, once sealed
                valid.npz    layer -> valid numbers (step, cell row, cell column), by class too
                sealed.json  hashes over every object, the counts and the build; its presence is
                             the seal
                lock         held by the one writer

Plain readers never list ``__cubes__``: they take the consolidated metadata of the root.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cubes.store.disk import FOLDER as FOLDER
from cubes.store.disk import PARTIAL as PARTIAL
from cubes.store.disk import check_key as check_key
from cubes.store.disk import cut_short as cut_short
from cubes.store.disk import file_sha256 as file_sha256
from cubes.store.disk import lock as lock
from cubes.store.disk import sha256 as sha256
from cubes.store.disk import store_path as store_path
from cubes.store.disk import sweep as sweep
from cubes.store.disk import sync_folder as sync_folder
from cubes.store.disk import whole as whole
from cubes.store.disk import write_atomic as write_atomic
from cubes.store.layout import (
    ArrayLayout,
    Region,
    array_layouts,
    cells,
    counted,
    enter_counts,
    region_arrays,
    region_keys,
)
from cubes.store.layout import regions as all_regions
from cubes.types import FORMAT_VERSION, CubeError, Layout, Plan

Counts = npt.NDArray[np.unsignedinteger[Any]]

# ---------------------------------------------------------------------------------------- build


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """What a store was started as: enough to know its arrays, regions and objects."""

    store: Path
    plan_sha256: str
    layout: Layout
    span: Mapping[str, int]
    """Patches per region edge for each ``group.dim``."""
    source: str
    """``plan``: pixels come from assets; ``tree <hash>``: from a person's own DataTree."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Of the run that may write here, drawn at random; under no hash."""

    @property
    def body(self) -> dict[str, Any]:
        """What ``build.json`` says, without the run: the same for the same store."""
        return {
            "format": FORMAT_VERSION,
            "plan_sha256": self.plan_sha256,
            "layout": asdict(self.layout),
            "span": dict(self.span),
            "source": self.source,
        }

    @property
    def folder(self) -> Path:
        """Where the ledger lies."""
        return self.store / FOLDER


def read_plan(path: str, sha256: str) -> Plan:
    """Return the plan in a file, after checking its hash."""
    with whole(path):
        plan = Plan.from_json(Path(path).read_text(encoding="utf-8"))
    if plan.sha256 != sha256:
        raise CubeError(
            f"{path} is not the plan that this store was started with (hash {plan.sha256[:12]}, "
            f"recorded {sha256[:12]}); restore the file, or write the cube again with force=True"
        )
    return plan


_plan_of = lru_cache(maxsize=8)(read_plan)


def build_plan(build: Build) -> Plan:
    """Return the plan of a store, cached per process."""
    return _plan_of(str(build.folder / "plan.json"), build.plan_sha256)


def build_arrays(build: Build) -> dict[str, ArrayLayout]:
    """Return how each array of a store lies in it, by layer name."""
    return array_layouts(build_plan(build), build.layout)


def build_regions(build: Build) -> list[Region]:
    """Return the regions of a store."""
    return all_regions(build_arrays(build), dict(build.span))


def load_build(store: str | os.PathLike[str]) -> Build:
    """Return what the store was started as.

    Raises
    ------
    CubeError
        No such folder; not a cube, or no longer; written by a newer version.
    """
    path = store_path(store)
    file = path / FOLDER / "build.json"
    if cut_short(path):
        raise CubeError(
            f"{path} was being replaced when that was cut short between two renames; "
            "cubes.resume(store) puts the new cube there"
        )
    if not path.exists():
        raise CubeError(f"no store at {path}; write one with cubes.write(request, {str(path)!r})")
    if not file.exists():
        raise CubeError(
            f"{path} is not a cube written by cubes.write: it has no {FOLDER}/build.json"
        )
    with whole(file):
        body = json.loads(file.read_text(encoding="utf-8"))
        if body["format"] > FORMAT_VERSION:
            raise CubeError(
                f"{path} has store format {body['format']}; this version of cubes reads up to "
                f"{FORMAT_VERSION}: upgrade deepsentinel"
            )
        names = ("plan_sha256", "span", "source")
        layout = Layout(**body["layout"])
        return Build(
            store=path, layout=layout, id=body.get("id", ""), **{n: body[n] for n in names}
        )


def save_build(build: Build, plan: Plan) -> None:
    """Start a store: write its plan, then what makes it a store."""
    write_atomic(build.folder / "plan.json", plan.to_json().encode())
    _save_body(build)


def _save_body(build: Build) -> None:
    body = json.dumps(build.body | {"id": build.id}, sort_keys=True)
    write_atomic(build.folder / "build.json", body.encode())


def renew(build: Build) -> Build:
    """Return the build under a new id: what still runs of earlier runs stops before it writes."""
    out = replace(build, id=uuid.uuid4().hex)
    _save_body(out)
    return out


class Superseded(CubeError):
    """Another run writes the store by now: this one must not touch it again."""


def still(build: Build) -> None:
    """Raise Superseded unless the store is still that of this run; asked before every rename."""
    try:
        body = json.loads((build.folder / "build.json").read_text(encoding="utf-8"))
        found = body.get("id", "")
    except (OSError, ValueError):
        found = None
    if found != build.id:
        raise Superseded(
            f"{build.store} belongs to another run by now (this one was interrupted, or the cube "
            "was replaced): nothing more is written from here"
        )


def load_plan(store: str | os.PathLike[str]) -> Plan:
    """Return the plan that a store was written from: grid, steps, assets; reads no pixel.

    Raises
    ------
    CubeError
        Not a cube, or of a newer version.
    """
    return build_plan(load_build(store))


# -------------------------------------------------------------------------------------- records


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What one finished region holds."""

    region: str
    plan_sha256: str
    objects: Mapping[str, tuple[str, int]]
    """Key -> SHA-256 and size of each object written; shards that are all nodata are absent."""
    valid: Mapping[str, Counts]
    """Layer -> numbers that hold data (True for masks), of all channels together, shape (steps,
    rows, columns) of the cells of the region's patches; ``name=code`` -> of that class."""
    pixels_read: int = 0
    retries: int = 0
    seconds: float = 0.0

    @property
    def size(self) -> int:
        """Bytes written."""
        return sum(size for _, size in self.objects.values())


def save_record(build: Build, record: Record) -> None:
    """Write the record of a finished region; from then on the region is done.

    Raises
    ------
    Superseded
        Another run writes the store by now.
    """
    body = asdict(record)
    body["valid"] = {k: [list(v.shape), _packed(v)] for k, v in record.valid.items()}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    path = build.folder / "regions" / f"{record.region}.json"
    still(build)
    write_atomic(path, text.encode())
    sync_folder(path.parent)


def _load_record(path: Path) -> Record | None:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        body["objects"] = {k: (sha, size) for k, (sha, size) in body["objects"].items()}
        body["valid"] = {
            k: _unpacked(text).reshape(shape) for k, (shape, text) in body["valid"].items()
        }
        return Record(**body)
    except (ValueError, KeyError, TypeError, zlib.error):
        return None  # torn or foreign: the region counts as not done and is written again


def _packed(counts: Counts) -> str:
    """Return counts as text: deflated, since most of a region is full or empty."""
    return base64.b64encode(zlib.compress(counts.astype("<u4").tobytes(), 1)).decode()


def _unpacked(text: str) -> Counts:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.uint32)


@dataclass(kw_only=True, slots=True)
class Table:
    """All that the ledger knows: grows as records are added."""

    done: set[str] = field(default_factory=set)
    """Ids of finished regions."""
    objects: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Key -> SHA-256 and size, of every object (metadata too, once sealed)."""
    valid: dict[str, Counts] = field(default_factory=dict)
    """Layer -> valid numbers per step and cell, shape (steps, rows, columns); of labels
    ``name=code`` -> pixels of that class too."""


def load_table(build: Build) -> Table:
    """Return everything that is done: the sealed table, then newer records over it.

    A table that cannot be read counts as nothing done, as a torn record does.
    """
    arrays = build_arrays(build)
    table = _sealed_table(build, arrays) or Table(
        valid={n: np.zeros((a.steps, *(c := cells(a)).grid), c.dtype) for n, a in arrays.items()}
    )
    by_id = {r.id: r for r in build_regions(build)}
    for path in records(build):
        record = _load_record(path)
        if record and record.plan_sha256 == build.plan_sha256 and record.region in by_id:
            add_record(table, arrays, by_id[record.region], record)
    return table


def records(build: Build) -> list[Path]:
    """Return the records of regions finished since the seal, or since the start."""
    return sorted((build.folder / "regions").glob("*.json"))


def _sealed_table(build: Build, arrays: Mapping[str, ArrayLayout]) -> Table | None:
    """Return the table alone, or None where there is none that can be read."""
    out = Table()
    try:
        with (
            # through memory: of a torn file numpy leaves the handle open
            np.load(io.BytesIO((build.folder / "table.npz").read_bytes())) as saved,
            np.load(io.BytesIO((build.folder / "valid.npz").read_bytes())) as counts,
        ):
            out.done = set(saved["regions"].tolist())
            shas = [row.tobytes().hex() for row in saved["object_sha256"]]
            sizes = saved["object_size"].tolist()
            out.objects = dict(
                zip(saved["object_key"].tolist(), zip(shas, sizes, strict=True), strict=True)
            )
            for name, array in arrays.items():
                parts = cells(array)
                for each in counted(counts.files, name):
                    part = counts[each].astype(parts.dtype, copy=False)
                    out.valid[each] = part.reshape((array.steps, *parts.grid))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    for key in out.objects:
        check_key(key)
    return out


def add_record(
    table: Table, arrays: dict[str, ArrayLayout], region: Region, record: Record
) -> None:
    """Enter a finished region into `table`."""
    table.done.add(region.id)
    for array in region_arrays(arrays, region):
        for key in region_keys(array, region):
            table.objects.pop(key, None)
        enter_counts(table.valid, record.valid, array, region)
    table.objects.update(record.objects)


def save_table(build: Build, table: Table) -> None:
    """Write all records as two tables: of objects, and of valid pixels."""
    keys = sorted(table.objects)
    shas = b"".join(bytes.fromhex(table.objects[k][0]) for k in keys)
    _save_npz(build.folder / "valid.npz", table.valid)
    _save_npz(
        build.folder / "table.npz",
        {
            "regions": np.array(sorted(table.done), str),
            "object_key": np.array(keys, str),
            "object_sha256": np.frombuffer(shas, np.uint8).reshape(-1, 32),
            "object_size": np.array([table.objects[k][1] for k in keys], np.int64),
        },
    )


def _save_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getvalue())


# ----------------------------------------------------------------------------------------- seal


def tree_sha256(objects: Mapping[str, tuple[str, int]]) -> str:
    """Return one hash over all objects: SHA-256 of the sorted lines ``key sha256``."""
    lines = "\n".join(f"{key} {objects[key][0]}" for key in sorted(objects))
    return hashlib.sha256(lines.encode()).hexdigest()


def seal(build: Build, table: Table) -> str:
    """Compact the records into one table and seal the store; return the tree hash."""
    tree = tree_sha256(table.objects)
    old = sealed(build)
    if old is not None and old["tree_sha256"] != tree:
        # a kill from here on must find a store not finished, not one that contradicts its seal
        (build.folder / "sealed.json").unlink()
    save_table(build, table)
    body = {
        "format": FORMAT_VERSION,
        "plan_sha256": build.plan_sha256,
        "tree_sha256": tree,
        "build_sha256": _body_sha256(build),
        "valid_sha256": file_sha256(build.folder / "valid.npz"),
        "objects": len(table.objects),
        "bytes": sum(size for _, size in table.objects.values()),
        "regions": len(table.done),
    }
    write_atomic(build.folder / "sealed.json", json.dumps(body, sort_keys=True).encode())
    sync_folder(build.folder)
    # only now: until the seal stands, a kill must find the records
    for path in records(build):
        path.unlink()
    return tree


def _body_sha256(build: Build) -> str:
    return sha256(json.dumps(build.body, sort_keys=True).encode())


def sealed(build: Build) -> dict[str, Any] | None:
    """Return the seal, or None where the store is not finished."""
    path = build.folder / "sealed.json"
    if not path.exists():
        return None
    with whole(path):
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def broken(build: Build) -> list[str]:
    """Return the keys of the ledger's files that are not those of the seal; none without a seal.

    The tree hash in the seal is the cube's name in samples and corpora: here it is computed from
    the table again. Seals made before the counts and the build were hashed lack those hashes.
    """
    found = sealed(build)
    if found is None:
        return []
    out = []
    if found.get("build_sha256", now := _body_sha256(build)) != now:
        out.append("build.json")
    table = _sealed_table(build, build_arrays(build))
    if table is None or tree_sha256(table.objects) != found["tree_sha256"]:
        out.append("table.npz")
    valid = build.folder / "valid.npz"
    if not valid.exists() or found.get("valid_sha256", now := file_sha256(valid)) != now:
        out.append("valid.npz")
    return [f"{FOLDER}/{name}" for name in out]


def proved(build: Build) -> dict[str, Any]:
    """Return the seal of a finished store, after checking the ledger against it.

    Raises
    ------
    CubeError
        Not finished; a ledger that is not the one that was sealed.
    """
    found = sealed(build)
    if found is None:
        raise CubeError(f"{build.store} is not finished (not sealed): run cubes.write again")
    refuse_broken(build)
    return found


def refuse_broken(build: Build) -> None:
    """Raise CubeError if the ledger is not the one that was sealed."""
    wrong = broken(build)
    if wrong:
        # not by a repair: how the cube lies in its objects is not known then
        anew = f"{FOLDER}/build.json" in wrong
        way = "writing it again with force=True" if anew else "cubes.repair(store)"
        raise CubeError(
            f"{build.store}: {', '.join(wrong)} changed after the cube was sealed, so its hash "
            f"proves nothing; {way} makes the cube again from its sources, or take a fresh copy"
        )


# ------------------------------------------------------------------------------- what is in there


def valid_fractions(
    store: str | os.PathLike[str], layers: Iterable[str] | None = None
) -> dict[str, npt.NDArray[np.float32]]:
    """Return how much of each patch and step holds data, from the ledger; reads no pixel.

    Parameters
    ----------
    store : path
        A cube, sealed or not (regions not written count as no data).
    layers : iterable of str, optional
        Layer names; all by default.

    Returns
    -------
    dict
        Layer -> float32, shape (steps, rows, columns) of patches, 0 to 1: pixels that hold data
        over all pixels. For masks (``s2/clear``) the share that is True.
    """
    build = load_build(store)
    table = load_table(build)
    arrays = build_arrays(build)
    out = {}
    for name in arrays if layers is None else layers:
        parts = cells(arrays[name])
        counts, numbers = (parts.by_patch(v) for v in (table.valid[name], parts.numbers))
        out[name] = (counts / numbers).astype(np.float32)
    return out
