"""A bounded cache of encoded chunks on a local disk, shared by processes.

::

    <folder>/lock                                    bytes in use, 8 bytes, under flock
             <tree hash>/<array>/<shard>/<chunk>     encoded bytes as the store has them

An entry is named after the seal of its store, so a store that was written again finds none of the
old ones. It is written under the lock and renamed into place, and the bytes are entered before
they are written: a killed process leaves the count too high, never too low, and the next eviction
counts anew. What lies in an entry is proved by the chunk's own checksum when it is decoded.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from cubes.store.disk import PARTIAL
from cubes.types import CubeError

BLOCK = 4096
"""An entry counts as whole blocks of the file system."""

KEEP = 0.9
"""Share of the bound that an eviction leaves, so that the next one is not due at once."""


class Cache:
    """Entries of at most `limit` bytes under `folder`; the least recently used go first.

    Parameters
    ----------
    folder
        Made if it is not there.
    limit
        Bytes, of all processes that use the folder together.

    Raises
    ------
    CubeError
        The folder cannot be written.
    """

    def __init__(self, folder: str, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._thread = threading.Lock()
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._handle = os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT, 0o666)
            with self._locked():
                if os.fstat(self._handle).st_size != 8:
                    self._enter(self._evict(limit))
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> CubeError:
        return CubeError(
            f"the cache at {self.folder} cannot be used: {error.strerror or error}; give "
            "Storage(cache=...) a folder that can be written and has room for cache_bytes, or None"
        )

    def has(self, name: str) -> bool:
        """Return whether there is an entry; it may be gone when it is asked for."""
        return os.path.exists(f"{self.folder}/{name}")  # noqa: PTH110 - 1.5 us, Path takes 4

    def get(self, name: str) -> bytes | None:
        """Return an entry and mark it as used, or None."""
        path = f"{self.folder}/{name}"
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            size = os.fstat(handle).st_size
            data = os.read(handle, size)
            os.utime(handle)
        except OSError as error:
            raise self._failed(error) from error
        finally:
            os.close(handle)
        return data

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Keep `data`; others go where there is no room.

        Raises
        ------
        CubeError
            Larger than the whole cache, or the folder cannot be written.
        """
        size = _blocks(len(data))
        if size > self.limit:
            raise CubeError(
                f"an entry of {size:,} bytes does not fit in the cache of {self.limit:,} bytes at "
                f"{self.folder}: raise Storage(cache_bytes=...), or cache=None"
            )
        path = f"{self.folder}/{name}"
        try:
            with self._locked():
                if self.has(name):
                    return
                total = self._total()
                if total + size > self.limit:
                    total = self._evict(min(int(self.limit * KEEP), self.limit - size))
                self._enter(total + size)
                partial = f"{path}{PARTIAL}"
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
                with open(partial, "wb") as file:  # noqa: PTH123
                    file.write(data)
                os.replace(partial, path)  # noqa: PTH105
        except OSError as error:
            raise self._failed(error) from error

    def drop(self, name: str) -> None:
        """Remove an entry that is not what it should be."""
        with self._locked():
            path = Path(self.folder, name)
            if path.exists():
                self._enter(max(0, self._total() - _blocks(path.stat().st_size)))
                path.unlink()

    def used(self) -> int:
        """Return the bytes in use, whole blocks, as counted."""
        with self._locked():
            return self._total()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        with self._thread:
            fcntl.flock(self._handle, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _total(self) -> int:
        data = os.pread(self._handle, 8, 0)
        return int(struct.unpack("<q", data)[0]) if len(data) == 8 else self._evict(self.limit)

    def _enter(self, total: int) -> None:
        os.pwrite(self._handle, struct.pack("<q", total), 0)

    def _evict(self, until: int) -> int:
        """Remove the least recently used entries down to `until` bytes; return what is left."""
        found: list[tuple[int, int, str]] = []
        total = 0
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = f"{folder}/{name}"
                if name.endswith(PARTIAL):  # only under the lock, which is ours: of the killed
                    Path(path).unlink(missing_ok=True)
                elif folder != self.folder:
                    status = os.stat(path)  # noqa: PTH116
                    found.append((status.st_mtime_ns, _blocks(status.st_size), path))
                    total += _blocks(status.st_size)
        for _, size, path in sorted(found):
            if total <= until:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
            with suppress(OSError):  # not empty; entries are made under the lock, which is ours
                Path(path).parent.rmdir()
        return total


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@lru_cache(maxsize=8)
def _opened(folder: str, limit: int, process: int) -> Cache:  # noqa: ARG001 - flock is by open file
    return Cache(folder, limit)


def opened(folder: str | os.PathLike[str], limit: int) -> Cache:
    """Return this process's cache at `folder`."""
    return _opened(os.fspath(folder), limit, os.getpid())
