"""Requests to object stores: many in flight on one thread of their own, tried again, counted.

`Storage` says how; `Place` makes them. Decoding threads wait for bytes and never for a connection:
one event loop per process holds all requests, and what a batch needs is asked for when the batch is
begun, so that the number in flight follows the latency and not the number of threads.
"""

from __future__ import annotations

import asyncio
import multiprocessing.context
import os
import random
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from cubes.corpora.remote import Cloud, Part, Passing, connect
from cubes.reading import access, opener
from cubes.sampling import cache
from cubes.types import CubeError

T = TypeVar("T")

OPEN = frozenset({
    "endpoint", "endpoint_url", "region", "default_region", "skip_signature", "allow_http",
    "virtual_hosted_style_request", "request_payer", "bucket", "container_name", "account_name",
    "client_options",
})  # fmt: skip
"""Options that are no secret; all others are left out where samples are pickled to keep them."""

OPEN_CLIENT = frozenset({"allow_http", "timeout", "connect_timeout", "read_timeout"})
"""The same of ``client_options``: headers may carry a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Storage:
    """How cubes on an object store are read; give it to `cubes.plan`.

    Options that may be secret are not printed, and not pickled either but to a worker process that
    is being started: samples that were kept that way must be planned again.
    """

    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Settings of obstore, see `cubes.open_corpus`; credentials are by default taken from the
    environment."""
    requester_pays: bool | str = False
    """True for S3, the name of the project that is billed for GCS."""
    cache: str | os.PathLike[str] | None = None
    """Folder on a local disk where encoded chunks are kept; several processes may share it."""
    cache_bytes: int = 50 * 2**30
    """Bound on what lies there, the same for all who share it; the least recently used go first."""
    in_flight: int = 32
    """Requests under way at once, of one process."""
    gap: int = 128 * 2**10
    """Chunks of a shard this many bytes apart, or fewer, come with one request."""
    withheld: tuple[str, ...] = ()
    """Names of options that were left out when these samples were pickled."""

    def __post_init__(self) -> None:
        if self.in_flight < 1 or self.gap < 0 or self.cache_bytes < 1:
            raise CubeError(
                f"Storage(in_flight={self.in_flight}, gap={self.gap}, cache_bytes="
                f"{self.cache_bytes}): at least 1, 0 and 1"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what is pickled: secrets only while a process of our own is being started."""
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        if multiprocessing.context.get_spawning_popen() is None:
            kept = {k: v for k, v in self.options.items() if _harmless(k, v)}
            client = kept.get("client_options", {})
            if client:
                kept["client_options"] = {k: v for k, v in client.items() if k in OPEN_CLIENT}
            lost = [*(set(self.options) - set(kept)), *(set(client) - OPEN_CLIENT)]
            said |= {"options": kept, "withheld": (*self.withheld, *sorted(lost))}
        return _restored, (said,)

    @property
    def key(self) -> str:
        """What tells connections apart within this process; holds secrets, so never shown."""
        return repr([sorted(self.options.items(), key=str), self.requester_pays, self.in_flight])


def _harmless(name: str, value: Any) -> bool:
    plain = name.lower().removeprefix("aws_").removeprefix("google_").removeprefix("azure_")
    return plain in OPEN and not (isinstance(value, str) and access.signed(value))


def _restored(said: dict[str, Any]) -> Storage:
    return Storage(**said)


def is_url(text: str | os.PathLike[str]) -> bool:
    """Return whether `text` names something that is not a folder of this machine."""
    return "://" in os.fspath(text) and not os.fspath(text).startswith("file://")


# ------------------------------------------------------------------------------------------ loop

_starting = threading.Lock()
_running: tuple[int, asyncio.AbstractEventLoop] | None = None


def _loop() -> asyncio.AbstractEventLoop:
    """Return this process's event loop of requests, on a thread of its own."""
    global _running  # noqa: PLW0603 - one loop a process, started with the first request
    with _starting:
        if _running is None or _running[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="cubes-requests", daemon=True).start()
            _running = os.getpid(), loop
        return _running[1]


def begin(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Return the future of `work`, which is begun at once; cancelling it ends its requests."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


# ---------------------------------------------------------------------------------------- places

_places: dict[tuple[int, str, str], Place] = {}
_slots: dict[tuple[int, str], asyncio.Semaphore] = {}


class Place:
    """A folder of an object store and the connection to it, shared by the cubes that lie in it."""

    def __init__(self, url: str, storage: Storage) -> None:
        if access.signed(url):
            raise CubeError(
                f"{access.redact(url)} carries credentials: leave them to the environment, or "
                "give them in Storage(options=...)"
            )
        if storage.withheld:
            raise CubeError(
                f"these samples were pickled without the options {', '.join(storage.withheld)}, "
                "which may be secret: call cubes.plan again with storage=Storage(options=...)"
            )
        client = {"timeout": "60s", **storage.options.get("client_options", {})}
        # tried again below, by the same rules as every other read
        once = {"client_options": client, "retry_config": {"max_retries": 0}}
        found = connect(
            url, options={**storage.options, **once}, requester_pays=storage.requester_pays
        )
        assert isinstance(found, Cloud)
        self.cloud, self.url = found, found.url
        process = os.getpid()
        self._slots = _slots.setdefault(
            (process, storage.key), asyncio.Semaphore(storage.in_flight)
        )
        self.requests = 0

    async def get(
        self, key: str, *, span: tuple[int, int] | int | None = None, tag: str | None = None
    ) -> Part:
        """Return bytes of an object, see `cubes.corpora.remote.Cloud.part`; tried again in time.

        Raises
        ------
        FileNotFoundError
            There is none.
        Altered
            It is another one than that of `tag`.
        CubeError
            Refused, or still failing when the budget of seconds for retries was spent.
        """
        ends: float | None = None
        wait, attempts = 0.1, 1
        while True:
            try:
                async with self._slots:
                    self.requests += 1
                    return await self.cloud.part(key, span=span, tag=tag)
            except Passing as error:
                ends = opener.deadline() if ends is None else ends
                pause = wait * random.uniform(0.5, 1.5)
                if time.monotonic() + pause > ends:
                    raise CubeError(
                        f"cannot read {self.url}/{key} after {attempts} attempts: {error}"
                    ) from None
            await asyncio.sleep(pause)
            wait, attempts = min(wait * 2, 10.0), attempts + 1


def place(url: str, storage: Storage) -> tuple[Place, str]:
    """Return the place that a cube lies in, and the prefix of its keys there.

    Raises
    ------
    CubeError
        An unknown scheme, credentials in the URL, or options that cannot be used.
    """
    parent, _, name = url.rstrip("/").rpartition("/")
    if parent.endswith("/"):  # the cube is the bucket
        parent, name = url.rstrip("/"), ""
    key = (os.getpid(), parent, storage.key)
    with _starting:
        found = _places.get(key)
    if found is None:
        made = Place(parent, storage)
        with _starting:
            found = _places.setdefault(key, made)
    return found, f"{name}/" if name else ""


def kept(storage: Storage, needed: int = 0) -> cache.Cache | None:
    """Return the cache, if there is one.

    Raises
    ------
    CubeError
        It cannot be written, or has less room than the `needed` bytes of one batch.
    """
    if storage.cache is None:
        return None
    if needed > storage.cache_bytes:
        raise CubeError(
            f"a batch may need {needed:,} bytes and the cache at {storage.cache} holds "
            f"{storage.cache_bytes:,}: it would never be of use; raise Storage(cache_bytes=...), "
            "take smaller batches, or cache=None"
        )
    return cache.opened(Path(storage.cache).expanduser(), storage.cache_bytes)
