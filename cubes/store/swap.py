"""One cube in place of another: built beside it, switched by a rename once it is whole.

Beside ``area.zarr`` stands ``area.zarr.new`` while it is written. At the switch the two change
names in one step where the system can (Linux, local file systems); else the old one becomes
``area.zarr.old`` for a moment. What is to go carries a mark, so that whoever comes after a kill
knows which of two whole cubes is which.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from cubes.store import disk
from cubes.store.disk import MARK, aside
from cubes.types import CubeError


def beside(path: Path) -> Path:
    """Return where a cube is built that takes the place of the one at `path`."""
    return disk.sibling(path, ".new")


def begun(path: Path) -> Path | None:
    """Return the cube being built to take the place of the one at `path`, if there is one."""
    new = beside(path)
    return new if (new / disk.FOLDER / "build.json").exists() and not disk.marked(new) else None


def settle(path: Path) -> None:
    """Bring to its end a switch that was cut short between two renames."""
    new, old = beside(path), aside(path)
    if disk.cut_short(path):
        whole = new if (new / disk.FOLDER / "sealed.json").exists() else old
        with disk.lock(whole):
            whole.rename(path)
            disk.sync_folder(path.resolve().parent)


def clear(path: Path) -> None:
    """Remove what an interrupted switch left; needs the lock.

    Cut short before it, the cube at `path` stays what it was, and the next write finds the one
    beside it whole.
    """
    (path / disk.FOLDER / MARK).unlink(missing_ok=True)
    for gone in (beside(path), aside(path)):
        if disk.marked(gone):
            _remove(gone)


def refuse_occupied(path: Path) -> None:
    """Raise CubeError where there is no place for the old cube to wait."""
    old = aside(path)
    if old.exists():
        raise CubeError(
            f"{old} stands where the old cube must go for a moment when {path} is replaced; move "
            "it away"
        )


def switch(path: Path) -> None:
    """Put the sealed cube beside `path` in its place and remove the old one; holds both locks."""
    new, old = beside(path), aside(path)
    path = path.resolve()
    refuse_occupied(path)
    disk.write_atomic(path / disk.FOLDER / MARK, b"")
    if exchange(new, path):
        new.rename(old)
    else:
        path.rename(old)
        new.rename(path)
    disk.sync_folder(path.parent)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a cube, its ledger last: half removed it is still known for what it is."""
    for entry in [*path.iterdir()]:
        if entry.name != disk.FOLDER:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in [*(path / disk.FOLDER).iterdir()]:
        if entry.name != MARK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.rmtree(path)


_HERE = -100
_EXCHANGE = 2


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change names in one step; return False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    done: int = rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
    return done == 0
