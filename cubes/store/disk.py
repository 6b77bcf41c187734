"""Files of a store: written whole or not at all, hashed, never outside of it; one writer a time."""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cubes.reading.access import redact
from cubes.types import CubeError

FOLDER = "__cubes__"
PARTIAL = ".partial"
"""Ending of files being written; swept when the next writer starts."""
MARK = "replaced"
"""File in the ledger of a cube that goes once the other is in its place."""


def store_path(store: str | os.PathLike[str]) -> Path:
    """Return `store` as a path.

    Raises
    ------
    CubeError
        A URL: cubes are written to and read from folders.
    """
    text = os.fspath(store)
    if "://" in text:
        raise CubeError(
            f"a store is a folder, not a URL: {redact(text)!r}; write to a local folder and "
            "copy it whole (a sealed cube is plain files)"
        )
    return Path(text)


def sibling(path: Path, ending: str) -> Path:
    """Return the folder beside a store that is named after it."""
    whole = path.resolve()
    return whole.with_name(whole.name + ending)


def aside(path: Path) -> Path:
    """Return where the cube at `path` waits to be removed once another is in its place."""
    return sibling(path, ".old")


def marked(path: Path) -> bool:
    """Return whether the cube at `path` is one that is replaced."""
    return (path / FOLDER / MARK).exists()


def cut_short(path: Path) -> bool:
    """Return whether a switch ended between two renames: nothing is at `path`, the old one aside.

    A folder of that name without the mark is somebody's own.
    """
    return not path.exists() and marked(aside(path))


class Torn(CubeError):
    """A file that says what a store is cannot be read any more."""


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of a file that is gone, cut off or not ours what mends that, while it is read.

    Raises
    ------
    Torn
        In place of the error of the reader.
    """
    try:
        yield
    except CubeError:
        raise
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise Torn(
            f"{path} is gone, cut off or not what was written ({type(error).__name__}); restore "
            "it from a copy, or write the cube again with force=True"
        ) from error


def check_key(key: str) -> str:
    """Return the key of an object in a store.

    Raises
    ------
    CubeError
        It would lie elsewhere: absolute, or with ``..`` in it.
    """
    if not key or key.startswith("/") or "\\" in key or "\0" in key or ".." in key.split("/"):
        raise CubeError(
            f"{key!r} names something outside of its store; whoever made the store meant harm, or "
            "its ledger is damaged: do not use it"
        )
    return key


def place(store: Path, key: str) -> Path:
    """Return where an object of a store is written.

    Raises
    ------
    CubeError
        Outside of the store, by its name or by a link on the way.
    """
    path = store / check_key(key)
    root = store.resolve()
    folder = path.parent.resolve()
    if folder != root and root not in folder.parents:
        raise CubeError(
            f"{path.parent} leads out of the store, to {folder}; nothing is written there: replace "
            "the link by the folder it stands for"
        )
    return path


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds all of it or what it held before, power loss included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` survive a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(store: Path) -> int:
    """Remove files that a killed writer left half-written; return how many. Needs the lock."""
    swept = 0
    for folder, _, names in os.walk(store):
        for name in names:
            if name.endswith(PARTIAL):
                Path(folder, name).unlink(missing_ok=True)
                swept += 1
    return swept


def sha256(data: bytes) -> str:
    """Return the SHA-256 of `data`, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(store: Path) -> Iterator[None]:
    """Hold the store's write lock; the system frees it when the process dies, however it dies.

    Raises
    ------
    CubeError
        Another process (or thread) is writing this store.
    """
    import fcntl

    path = place(store, f"{FOLDER}/lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise CubeError(
                f"{store} is being written by {holder}; wait for it, or write to another path"
            ) from None
        if not _same(file.fileno(), path):
            raise CubeError(f"{store} was replaced just now by another process; run this again")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _same(handle: int, path: Path) -> bool:
    """Return whether an open file is the one at `path`: a store switched away takes its lock."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
