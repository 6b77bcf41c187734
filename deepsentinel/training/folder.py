"""The folder of a run: whose it is, who writes it now, and what its samples were.

``recipe.json`` says what the run was asked for and what it learned from; ``split.json`` which
samples of which stores were in which part. ``lock`` is held by the one process that writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cubes.types import CubeError
from deepsentinel.recipe import Recipe

if TYPE_CHECKING:
    from deepsentinel.training.sources import Source

LOCK = "lock"
SPLIT = "split.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, made where it is not there, against every other writer.

    The lock is the system's and goes with the process, however that ends; the file only tells a
    person who holds it, and the mark of a dead process is no lock.

    Raises
    ------
    CubeError
        Another process or thread is training into this folder.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise CubeError(
                f"{folder} is being trained into by {file.read().strip() or 'another process'}: "
                "wait for it, end it, or give another folder"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def claim(
    folder: Path, recipe: Recipe, sources: Mapping[str, Source], *, force: bool
) -> dict[str, Any] | None:
    """Return what ``run.json`` says of the finished run that is there, None where there is none.

    The folder is then ours to work in; the caller holds its lock.

    Raises
    ------
    CubeError
        Another run is there: other recipe, samples, statistics or validation samples.
    """
    mine = asked(recipe, sources)
    note = folder / "recipe.json"
    theirs = _read(note)
    if theirs is not None and theirs != mine:
        if not force:
            what = [_NAMES[k] for k in _NAMES if theirs.get(k) != mine[k]]
            raise CubeError(
                f"{folder} holds a run of another {' and another '.join(what)}: give another "
                "folder (out=, --out), or remove this run first: in Python with force=True, on "
                f"the command line with rm -r {folder}"
            )
        for entry in folder.iterdir():
            if entry.name != LOCK:  # it is ours
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    done = _read(folder / "run.json")
    if done is not None:
        return done
    note.write_text(json.dumps(mine, indent=1, sort_keys=True) + "\n")
    return None


_NAMES = {
    "recipe": "recipe",
    "samples_sha256": "set of samples",
    "inputs_sha256": "normaliser or calibration",
    "val_sha256": "set of validation samples",
}


def asked(recipe: Recipe, sources: Mapping[str, Source]) -> dict[str, Any]:
    """Return what tells one run from another, plain JSON."""
    source = sources["train"]
    meaning = {"groups": source.groups, "normaliser": source.normaliser}
    text = json.dumps(meaning, sort_keys=True, default=str)
    return {
        "recipe": json.loads(recipe.to_json()),
        "samples_sha256": source.sha256,
        "inputs_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "val_sha256": sources["val"].sha256 if "val" in sources else None,
    }


def write_split(folder: Path, parts: Mapping[str, Any]) -> Path:
    """Return the file written: which samples were in which part of the split.

    ``{"train": {"sha256", "n", "ids", "numbers", "stores": [{"path", "identity"}], "window",
    "seed"}, ...}``: `ids` are the samples' numbers in their plan and `numbers` the positions of
    their stores, as in `cubes.Samples`. Of a `Source` of one's own there is its hash alone.
    """
    body: dict[str, Any] = {}
    for name, part in parts.items():
        body[name] = {"sha256": str(part.sha256)}
        if hasattr(part, "ids") and hasattr(part, "window"):
            body[name] |= {
                "n": len(part),
                "ids": part.ids.tolist(),
                "numbers": part.numbers.tolist(),
                "stores": [{"path": s.path, "identity": s.identity} for s in part.stores],
                "window": dataclasses.asdict(part.window),
                "seed": part.seed,
            }
    return _write(folder / SPLIT, body)


def _read(note: Path) -> dict[str, Any] | None:
    """Return a JSON object, None where there is no file.

    Raises
    ------
    CubeError
        It cannot be read.
    """
    if not note.is_file():
        return None
    try:
        return dict(json.loads(note.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CubeError(
            f"{note} cannot be read ({error}): remove the folder, or give another one"
        ) from None


def _write(path: Path, body: Mapping[str, Any]) -> Path:
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(json.dumps(body, sort_keys=True, default=str) + "\n", encoding="utf-8")
    draft.replace(path)
    return path
