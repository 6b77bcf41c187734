"""Cubes on an object store as the reader reads them: ranged requests, and the bytes checked alike.

Nothing but what a batch needs is fetched. Of each shard the index comes with one request for the
end of the object, and is kept; wanted chunks come with one request each, neighbours together. Bytes
are those of the plan, or an error: the index must belong to an object of the size that the ledger
states while the seal is still the planned one, chunks are asked for under the index's entity tag,
and each is proved by its own checksum. What the cache holds was checked before it got there.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cubes.corpora.publishing import LEDGER
from cubes.corpora.remote import Altered, Part, connect
from cubes.sampling import cache, inflight, stored
from cubes.sampling.inflight import Storage
from cubes.store import ledger, shards
from cubes.types import CubeError

INDEXES = 16384
"""Bound on indexes of shards kept in memory: 1 KiB each with 64 steps a shard."""

MOST = 8 * 2**20
"""Chunks are joined to requests of up to this many bytes, if one of them is not larger."""

_indexes: OrderedDict[tuple[Any, ...], asyncio.Task[Index]] = OrderedDict()
"""Used on the thread of requests alone."""


class Index:
    """Where the chunks of one object lie, and the entity tag it had."""

    __slots__ = ("rows", "size", "tag")

    def __init__(self, tail: memoryview, chunks: int, size: int, tag: str | None) -> None:
        self.rows, self.size, self.tag = shards.parse_index(tail, chunks), size, tag
        there = self.rows[self.rows[:, 0] != shards.ABSENT]
        if len(there) and int(there.sum(axis=1).max()) > size:
            raise shards.Damaged("the shard index points out of the shard")


# ----------------------------------------------------------------------------------------- store


class RemoteStore(stored.SealedStore):
    """A store as this process found it sealed; its arrays are opened once."""

    __slots__ = ("_now", "_soon", "cache", "gap", "place", "prefix", "storage")

    def __init__(self, url: str, identity: str, storage: Storage) -> None:
        self.path, self.identity, self.stamp, self.storage = url, identity, (), storage
        self.place, self.prefix = inflight.place(url, storage)
        self.cache, self.gap = inflight.kept(storage), storage.gap
        self._arrays = {}
        self._now: asyncio.Task[None] | None = None
        self._soon: asyncio.Task[None] | None = None
        inflight.begin(self.look()).result()

    def _open(self, path: str, recorded: np.ndarray | None, planned: str) -> stored.StoredArray:
        return RemoteArray(self, path, recorded, planned)

    async def get(self, key: str, **options: Any) -> Part:
        """Return bytes of an object of the store."""
        return await self.place.get(self.prefix + key, **options)

    async def look(self) -> None:
        """Look at the seal, after now; those who ask while one look is under way share the next.

        Raises
        ------
        CubeError
            The store is not the one that was planned on (any more).
        """
        if self._soon is None:
            self._soon = _task(self._look(self._now))
        await asyncio.shield(self._soon)

    async def _look(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._now, self._soon = self._soon, None
        try:
            seal = await self.get(f"{ledger.FOLDER}/sealed.json")
        except FileNotFoundError:
            raise stored.unsealed(self.path) from None
        found = _tree(seal, self.path)
        if found != self.identity:
            raise stored.another(self.path, found, self.identity)


def _task(work: Any) -> asyncio.Task[Any]:
    """Return a task whose error nobody needs to fetch."""
    task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    return task


def _tree(seal: Part, url: str) -> str:
    try:
        return str(json.loads(bytes(seal.data))["tree_sha256"])
    except (ValueError, KeyError, TypeError):
        raise CubeError(
            f"{url}/{ledger.FOLDER}/sealed.json is not a seal; publish the cube again"
        ) from None


# ----------------------------------------------------------------------------------------- array


class RemoteArray(stored.StoredArray):
    """An array of a store on an object store; `recorded` are the sizes of its objects, 0 none."""

    def __init__(
        self, store: RemoteStore, path: str, recorded: np.ndarray | None, planned: str
    ) -> None:
        self.name, self._remote = path[len(store.path) + 1 :], store
        super().__init__(path, store, recorded, planned)
        self._chunks = int(np.prod(self._per))
        self._folder = f"{store.identity[:32]}/{self.name.replace('/', '.')}"

    def _text(self) -> bytes:
        return bytes(inflight.begin(self._remote.get(f"{self.name}/zarr.json")).result().data)

    def unchanged(self) -> None:
        """Raise CubeError where what was just read may be of another cube, written over this."""
        inflight.begin(self._remote.look()).result()

    def unit(self, key: tuple[int, ...], items: Sequence[stored.Item]) -> Callable[[], None]:
        """Return the call that fills `items`; what is not in the cache is on its way then."""
        if self.object(key) is None:
            return partial(self._nothing, items)
        numbers, kept = sorted({number for number, _, _ in items}), self._remote.cache
        if kept is not None:
            numbers = [n for n in numbers if not kept.has(self._entry(key, n))]
        return Fetching(self, key, items, numbers)

    def run(self, key: tuple[int, ...], items: Sequence[stored.Item]) -> None:
        """Fetch, check and decode inner chunks of one shard into their destinations."""
        self.unit(key, items)()

    def _nothing(self, items: Sequence[stored.Item]) -> None:
        for item in items:
            self.put(item, None)

    def _entry(self, key: tuple[int, ...], chunk: int | str) -> str:
        return f"{self._folder}/{'.'.join(map(str, key))}/{chunk}"

    def _object(self, key: tuple[int, ...]) -> str:
        name = self.object(key)
        assert name is not None
        return name[len(self._remote.path) + 1 :]

    def take(
        self,
        key: tuple[int, ...],
        items: Sequence[stored.Item],
        fetched: dict[int, memoryview | None],
    ) -> None:
        """Check and decode chunks that were fetched, the others from the cache.

        Raises
        ------
        CubeError
            A chunk is damaged or lost, or the store was written again.
        """
        kept = self._remote.cache
        for item in items:
            number = item[0]
            if number not in fetched:
                if kept is not None and self._cached(kept, key, item):
                    continue
                # it went from the cache since, or was damaged there
                fetched |= inflight.begin(self.fetch(key, [number])).result()
            data = fetched[number]
            try:
                self.put(item, data)
            except shards.Damaged as error:
                self.unchanged()
                raise self.damaged(key, str(error), number) from error
            if kept is not None and data is not None:
                kept.put(self._entry(key, number), data)

    def _cached(self, kept: cache.Cache, key: tuple[int, ...], item: stored.Item) -> bool:
        data = kept.get(self._entry(key, item[0]))
        if data is None:
            return False
        try:
            self.put(item, memoryview(data))
        except shards.Damaged:
            kept.drop(self._entry(key, item[0]))
            return False
        return True

    # ------------------------------------------------------------ on the thread of requests

    async def fetch(self, key: tuple[int, ...], numbers: list[int]) -> dict[int, memoryview | None]:
        """Return the encoded bytes of some chunks of one shard, None where nothing was written.

        Raises
        ------
        CubeError
            The object is lost or damaged, the store was written again, or does not answer.
        """
        for again in (True, False):
            index = await self._index(key, fresh=not again)
            try:
                return await self._spans(key, index, numbers)
            except Altered:
                # Sent again with the same bytes, as a copy may be, it has another tag; written
                # anew, the store has another seal, which the next index is judged by.
                continue
            except FileNotFoundError:
                raise await self._lost(key) from None
        raise self.damaged(key, "its object is replaced again and again while it is read")

    async def _lost(self, key: tuple[int, ...]) -> CubeError:
        await self._remote.look()
        return self.damaged(key, "an object that was written is lost")

    async def _index(self, key: tuple[int, ...], *, fresh: bool) -> Index:
        name = (self.path, self._remote.identity, key)
        task = _indexes.get(name)
        failed = task is not None and task.done() and (task.cancelled() or task.exception())
        if task is None or failed or (fresh and task.done()):
            task = _indexes[name] = _task(self._load(key, fresh=fresh))
        _indexes.move_to_end(name)
        while len(_indexes) > INDEXES:
            _indexes.popitem(last=False)
        return await asyncio.shield(task)

    async def _load(self, key: tuple[int, ...], *, fresh: bool) -> Index:
        """Return the index of one shard, from the cache unless `fresh`, or from its end."""
        length = shards.index_size(self._chunks)
        assert self._recorded is not None
        size = int(self._recorded[key[0], key[2], key[3]])
        kept, entry = self._remote.cache, self._entry(key, "index")
        if kept is not None and not fresh:
            data = kept.get(entry)
            try:
                if data is not None:
                    tag = data[length:].decode() or None
                    return Index(memoryview(data)[:length], self._chunks, size, tag)
            except (shards.Damaged, UnicodeDecodeError):
                kept.drop(entry)
        # Azure knows no request for the end of an object
        end = (max(0, size - length), size) if self.path.startswith(("az", "abfs")) else length
        try:
            part = await self._remote.get(self._object(key), span=end)
        except FileNotFoundError:
            raise await self._lost(key) from None
        await self._remote.look()
        if part.size != size:
            raise self.damaged(key, f"its object has {part.size:,} bytes, the ledger says {size:,}")
        try:
            index = Index(part.data, self._chunks, size, part.tag)
        except shards.Damaged as error:
            raise self.damaged(key, str(error)) from error
        if kept is not None:
            if fresh:
                kept.drop(entry)
            data = bytes(part.data) + (part.tag or "").encode()
            await asyncio.get_running_loop().run_in_executor(None, kept.put, entry, data)
        return index

    async def _spans(
        self, key: tuple[int, ...], index: Index, numbers: list[int]
    ) -> dict[int, memoryview | None]:
        found: dict[int, memoryview | None] = dict.fromkeys(numbers)
        places = [(int(index.rows[n, 0]), int(index.rows[n, 1]), n) for n in numbers]
        groups = _joined([p for p in places if p[0] != shards.ABSENT], self._remote.gap)

        async def one(group: list[tuple[int, int, int]]) -> None:
            low, high = group[0][0], max(offset + size for offset, size, _ in group)
            part = await self._remote.get(self._object(key), span=(low, high), tag=index.tag)
            if part.size != index.size:
                raise Altered(key)
            for offset, size, number in group:
                found[number] = part.data[offset - low : offset - low + size]

        await asyncio.gather(*(one(group) for group in groups))
        if groups and index.tag is None:
            await self._remote.look()  # nothing else says that the chunks are those of the index
        return found

    # ----------------------------------------------------------- layouts read by zarr-python

    def slices(self, step: int, y: int, x: int, dest: np.ndarray) -> None:
        """Read the window of one step through zarr-python, see `StoredArray.slices`."""
        try:
            super().slices(step, y, x, dest)
        except (CubeError, MemoryError):
            raise
        except Exception as error:
            raise self._remote.place.cloud.failed(
                "read", self._remote.prefix + self.name, error
            ) from None

    def _source(self) -> Any:
        storage = self._remote.storage
        there = connect(
            self._remote.path, options=storage.options, requester_pays=storage.requester_pays
        )
        return there.zarr(self.name)

    def _there(self, name: str) -> bool:
        key = name[len(self._remote.path) + 1 :]
        try:
            inflight.begin(self._remote.get(key, span=(0, 1))).result()
        except FileNotFoundError:
            return False
        return True


class Fetching:
    """Chunks on their way, and the call that decodes them; dropped uncalled, it asks no more."""

    def __init__(
        self,
        array: RemoteArray,
        key: tuple[int, ...],
        items: Sequence[stored.Item],
        numbers: list[int],
    ) -> None:
        self._array, self._key, self._items = array, key, items
        self._future: Future[dict[int, memoryview | None]] | None = None
        if numbers:
            self._future = inflight.begin(array.fetch(key, numbers))

    def __call__(self) -> None:
        """Wait for the bytes, then check and decode them."""
        fetched = {} if self._future is None else self._future.result()
        self._array.take(self._key, self._items, fetched)

    def __del__(self) -> None:
        """Cancel what nobody waits for."""
        if self._future is not None:
            self._future.cancel()


def _joined(places: list[tuple[int, int, int]], gap: int) -> list[list[tuple[int, int, int]]]:
    """Return (offset, size, number) grouped into what one request fetches."""
    groups: list[list[tuple[int, int, int]]] = []
    for offset, size, number in sorted(places):
        if groups:
            first, (last, length, _) = groups[-1][0][0], groups[-1][-1]
            if offset - (last + length) <= gap and offset + size - first <= MOST:
                groups[-1].append((offset, size, number))
                continue
        groups.append([(offset, size, number)])
    return groups


# --------------------------------------------------------------------------- stores of a process

_stores: OrderedDict[tuple[Any, ...], RemoteStore] = OrderedDict()
_mirrors: dict[tuple[Any, ...], Path] = {}
_lock = threading.Lock()


def sealed_store(url: str, identity: str, storage: Storage, batch: int = 0) -> RemoteStore:
    """Return the store at `url`; its seal is looked at when it is opened, and with each index.

    Parameters
    ----------
    url, identity, storage
        Where, sealed as what, and how it is read.
    batch
        Decoded bytes of one batch, which the cache must have room for.

    Raises
    ------
    CubeError
        It is not sealed (any more), or another cube; the cache cannot be used.
    """
    inflight.kept(storage, batch)
    key = (os.getpid(), url, identity, storage.key, storage.cache, storage.cache_bytes, storage.gap)
    with _lock:
        if key in _stores:
            _stores.move_to_end(key)
            return _stores[key]
    made = RemoteStore(url, identity, storage)
    with _lock:
        found = _stores.setdefault(key, made)
        while len(_stores) > stored.STORES:
            _stores.popitem(last=False)
    return found


def ledger_of(url: str, storage: Storage, identity: str | None = None) -> Path:
    """Return a folder with the ledger and the metadata of a store, fetched once by a process.

    Parameters
    ----------
    url, storage
        Where it lies, and how it is read.
    identity
        The tree hash its seal must state, or None for the one it has now.

    Raises
    ------
    CubeError
        Nothing there, not sealed, refused, or written again meanwhile.
    """
    key = (os.getpid(), url, identity, storage.key)
    with _lock:
        if key in _mirrors:
            return _mirrors[key]
    place, prefix = inflight.place(url, storage)
    seal = inflight.begin(_seal(place, prefix, url)).result()
    found = _tree(seal, url)
    if identity is not None and found != identity:
        raise stored.another(url, found, identity)
    key = (os.getpid(), url, found, storage.key)
    with _lock:
        if key in _mirrors:
            return _mirrors[key]
    folder = Path(tempfile.mkdtemp(prefix="cubes-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    inflight.begin(_mirror(place, prefix, url, folder)).result()
    if _tree(inflight.begin(_seal(place, prefix, url)).result(), url) != found:
        raise CubeError(f"{url} is being written again: wait until it is sealed, then plan again")
    with _lock:
        return _mirrors.setdefault(key, folder)


def forget(folder: Path) -> None:
    """Drop what `ledger_of` returned: it is not what was sealed."""
    with _lock:
        for key in [k for k, found in _mirrors.items() if found == folder]:
            del _mirrors[key]
    shutil.rmtree(folder, ignore_errors=True)


async def _seal(place: inflight.Place, prefix: str, url: str) -> Part:
    try:
        return await place.get(f"{prefix}{ledger.FOLDER}/sealed.json")
    except FileNotFoundError:
        pass
    try:
        await place.get(f"{prefix}{ledger.FOLDER}/build.json")
    except FileNotFoundError:
        raise CubeError(
            f"there is no cube at {url}: it has no {ledger.FOLDER}/sealed.json. Is it the URL of "
            "one cube, <corpus>/cubes/<id>.zarr, and the bucket the right one?"
        ) from None
    raise CubeError(
        f"{url} is not finished (not sealed): finish it with cubes.write and copy it whole, the "
        "seal last, before planning samples on it"
    )


async def _mirror(place: inflight.Place, prefix: str, url: str, folder: Path) -> None:
    async def copy(key: str) -> None:
        try:
            part = await place.get(prefix + key)
        except FileNotFoundError:
            raise CubeError(f"{url} lacks {key}: it was not copied whole; copy it again") from None
        target = folder / ledger.check_key(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(part.data)

    await asyncio.gather(*(copy(f"{ledger.FOLDER}/{name}") for name in LEDGER))
    arrays = ledger.build_arrays(ledger.load_build(folder))
    await asyncio.gather(*(copy(f"{name}/zarr.json".lstrip("/")) for name in ("", *arrays)))
