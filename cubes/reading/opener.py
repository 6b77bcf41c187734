"""Open datasets: kept between reads, opened through the gate, retried within a budget, counted.

Every read of a pixel runs inside `with_dataset`; nothing else in `cubes` opens an href.
"""

from __future__ import annotations

import atexit
import os
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from cubes.reading import access as gate
from cubes.reading.resample import Frame, frame
from cubes.types import Access, Asset, AssetReadError, CubeError

T = TypeVar("T")

BUDGET = 60.0
"""Seconds that one read may spend on retries, all attempts together; the environment variable
``CUBES_READ_BUDGET`` overrides."""

OPEN_FILES = 256
"""Most datasets kept open in a process for later reads."""


# ---------------------------------------------------------------------------------- counting


@dataclass(slots=True)
class Counts:
    """What reads have cost: source pixels decoded, files opened, attempts repeated."""

    pixels: int = 0
    """Pixels of every source block touched: GDAL decodes whole blocks."""
    opened: int = 0
    retries: int = 0


_counts: ContextVar[tuple[Counts, ...]] = ContextVar("_counts", default=())


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the reads of this thread inside the ``with``; contexts nest, and each counts all.

    A task counts its own reads and returns the numbers, so that they survive dask processes.
    """
    mine = Counts()
    token = _counts.set((*_counts.get(), mine))
    try:
        yield mine
    finally:
        _counts.reset(token)


def count(*, pixels: int = 0, opened: int = 0, retries: int = 0) -> None:
    """Add to every `counting` context of this thread."""
    for c in _counts.get():
        c.pixels += pixels
        c.opened += opened
        c.retries += retries


# ------------------------------------------------------------------------------ open datasets


@dataclass(frozen=True, slots=True)
class Opened:
    """An open dataset and what every read asks of it, fetched once: each costs microseconds."""

    dataset: Any
    frame: Frame
    nodata: float | None
    dtype: np.dtype
    mask: bool
    block: tuple[int, int]
    stamp: tuple[int, int] | None


class _Pool:
    """Datasets between reads: taken out by one thread at a time, the least used closed first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.lock = threading.Lock()
        self.idle: OrderedDict[tuple[Any, ...], list[Opened]] = OrderedDict()
        self.count = 0

    def take(self, key: tuple[Any, ...]) -> Opened | None:
        with self.lock:
            waiting = self.idle.get(key)
            if not waiting:
                return None
            self.count -= 1
            found = waiting.pop()
            if not waiting:
                del self.idle[key]
            return found

    def give(self, key: tuple[Any, ...], opened: Opened) -> None:
        closing: list[Opened] = []
        with self.lock:
            self.idle.setdefault(key, []).append(opened)
            self.idle.move_to_end(key)
            self.count += 1
            while self.count > self.size:
                oldest = next(iter(self.idle))
                closing += self.idle.pop(oldest)
                self.count = sum(map(len, self.idle.values()))
        for old in closing:
            old.dataset.close()

    def clear(self) -> None:
        with self.lock:
            waiting, self.idle, self.count = self.idle, OrderedDict(), 0
        for group in waiting.values():
            for opened in group:
                opened.dataset.close()

    def forget(self) -> None:
        """Drop what a forked child inherited: its file offsets are shared with the parent."""
        self.lock = threading.Lock()
        _inherited.append(self.idle)  # kept, so that nothing closes the parent's handles
        self.idle, self.count = OrderedDict(), 0


_inherited: list[Any] = []
_pool = _Pool(OPEN_FILES)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


def close_all() -> None:
    """Close every dataset kept open for later reads (before deleting their files, say)."""
    _pool.clear()


# rasterio 1.5 prints an error per dataset that is still open when the interpreter ends
atexit.register(close_all)


@lru_cache(maxsize=256)
def crs_name(text: str) -> tuple[str, bool]:
    """Return one name for a CRS however it is written, and whether it counts in degrees."""
    from pyproj import CRS

    crs = CRS.from_user_input(text)
    epsg = crs.to_epsg()
    return (f"EPSG:{epsg}" if epsg else crs.to_wkt()), bool(crs.is_geographic)


def _stamp(path: str) -> tuple[int, int]:
    """Return what changes when a local file is replaced."""
    found = os.stat(path)  # noqa: PTH116 - a third of the time of Path.stat, on every read
    return found.st_mtime_ns, found.st_size


def _open(location: str, asset: Asset, access: Access) -> Opened:
    """Return a freshly opened dataset; signed here and nowhere else."""
    import rasterio
    from rasterio.enums import MaskFlags

    stamp = _stamp(location) if gate.scheme_of(asset.href) == "file" else None
    dataset = rasterio.open(
        gate.settle(gate.sign(location, access), access),
        driver=gate.driver_of(asset.href),
        sharing=False,
    )
    try:
        count(opened=1)
        if dataset.crs is None:
            raise CubeError("the file has no CRS, so its pixels have no place")
        epsg = dataset.crs.to_epsg()
        name, degrees = crs_name(f"EPSG:{epsg}" if epsg else dataset.crs.to_wkt())
        return Opened(
            dataset=dataset,
            frame=frame(name, dataset.transform, dataset.shape, degrees=degrees),
            nodata=dataset.nodata,
            dtype=np.dtype(dataset.dtypes[0]),
            mask=MaskFlags.per_dataset in dataset.mask_flag_enums[0],
            block=dataset.block_shapes[0],
            stamp=stamp,
        )
    except BaseException:
        dataset.close()
        raise


# ------------------------------------------------------------------------------------ retries

_STATUS = re.compile(r"response[ _]code[^\d\n]{0,3}([3-5]\d\d)", re.I)
RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that pass by themselves."""
_NOT_AN_IMAGE = "not recognized as being in a supported"


def _texts(error: BaseException) -> str:
    """Return everything an error and its causes say: rasterio puts the reason in the cause."""
    said: list[str] = []
    at: BaseException | None = error
    while at is not None and len(said) < 8:
        said.append(str(at))
        at = at.__cause__ or at.__context__
    return "; ".join(dict.fromkeys(s for s in said if s))


@dataclass(slots=True)
class _Attempts:
    """Decides whether a failed read is tried again, within one budget of seconds."""

    asset: Asset
    where: str
    ends: float
    number: int = 1
    refused: int = 0
    wait: float = 0.1

    def failed(self, error: Exception, logged: list[str], access: Access) -> None:
        """Sleep before the next attempt, or raise `AssetReadError`."""
        text = _texts(error)
        remote = gate.scheme_of(self.asset.href) != "file"
        status = next((int(m[1]) for t in (text, *logged) if (m := _STATUS.search(t))), None)
        if status in (401, 403):
            self.refused += 1
            # an expired token: ask for a new one, twice at most
            again = self.refused <= 2 and gate.unsign(self.asset.href, access)
        elif status is not None:
            again = status in RETRYABLE
        else:
            # A remote body that does not decode was cut short more often than it is corrupt at
            # rest; what is no image at all is asked for three times, not for a minute.
            again = remote and (_NOT_AN_IMAGE not in text or self.number < 3)
        pause = self.wait * random.uniform(0.5, 1.5)
        if not again or time.monotonic() + pause > self.ends:
            said = f"HTTP {status}" if status else gate.redact(text)
            hint = ""
            if status == 404 or isinstance(error, FileNotFoundError):
                hint = ': the file is not there; on_missing="mask" makes absent assets nodata'
            elif status in (401, 403):
                hint = ": access refused; check the row's sign and auth"
            raise AssetReadError(
                self.asset.item, self.asset.key, reason=f"{said}{hint}",
                where=self.where, attempts=self.number,
            ) from None  # fmt: skip
        time.sleep(pause)
        self.wait = min(self.wait * 2, 10.0)
        self.number += 1
        count(retries=1)


def _apart(work: Callable[[], T]) -> T:
    """Return what `work` makes, on a thread of its own.

    rasterio sets GDAL's options for the whole process on the main thread and for one thread
    elsewhere (measured, rasterio 1.4.4); a bearer token must not reach another thread's hosts.
    """
    context = copy_context()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(context.run, work).result()


def _attempt(
    opened: Opened | None, asset: Asset, access: Access, use: Callable[[Opened], T]
) -> tuple[Opened, T]:
    """Return the open dataset and what `use` made of it."""
    import rasterio

    if opened is not None and opened.stamp is not None:
        # a local file needs no settings; what they cost (60 us) is more than a cached block
        return opened, use(opened)
    location = gate.permit(asset.href, access)
    env = gate.gdal_env(access, location)

    def work() -> tuple[Opened, T]:
        with rasterio.Env(**env):
            fresh = opened or _open(location, asset, access)
            return fresh, use(fresh)

    secret = "GDAL_HTTP_BEARER" in env and threading.current_thread() is threading.main_thread()
    return _apart(work) if secret else work()


def _unchanged(opened: Opened | None) -> Opened | None:
    """Return a kept dataset unless its local file was replaced since; then it is closed."""
    if opened is None or opened.stamp is None or opened.stamp == _stamp(opened.dataset.name):
        return opened
    opened.dataset.close()
    return None


def with_dataset(
    asset: Asset, access: Access, where: Callable[[], str], use: Callable[[Opened], T]
) -> T:
    """Return what `use` makes of the asset's open dataset; opens, signs, retries as needed.

    Parameters
    ----------
    asset : Asset
        What to open.
    access : Access
        What may be opened.
    where : callable
        Says for an error which pixels were wanted.
    use : callable
        Reads; called again with a fresh dataset after a failure that may pass.

    Raises
    ------
    AssetReadError
        Not allowed, or failed for good.
    """
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError

    key = (asset.href, access)
    attempts: _Attempts | None = None
    while True:
        opened: Opened | None = None
        logged: list[str] = []
        token = gate.heard.set(logged)
        try:
            opened = _unchanged(_pool.take(key))
            opened, made = _attempt(opened, asset, access, use)
        except (AssetReadError, MemoryError):
            raise
        except CubeError as error:
            raise AssetReadError(
                asset.item, asset.key, reason=gate.redact(str(error)), where=where(),
                attempts=attempts.number if attempts else 1,
            ) from None  # fmt: skip
        except (OSError, RasterioError, CPLE_BaseError) as error:
            if opened is not None:
                opened.dataset.close()
            attempts = attempts or _Attempts(asset=asset, where=where(), ends=deadline())
            attempts.failed(error, logged, access)
        else:
            _pool.give(key, opened)
            return made
        finally:
            gate.heard.reset(token)


def deadline() -> float:
    """Return when retries end; counted from the first failure."""
    return time.monotonic() + float(os.environ.get("CUBES_READ_BUDGET", BUDGET))
