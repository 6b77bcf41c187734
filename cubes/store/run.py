"""Run regions: in threads of this process, or on a dask cluster; collect, count, show, stop."""

from __future__ import annotations

import errno
import os
import sys
import time
import uuid
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from threading import Lock
from typing import Any

import numpy as np

from cubes.store import layout as layouts
from cubes.store import ledger
from cubes.store.build import Crew, Pixels, PlanPixels, build_region
from cubes.store.layout import Region
from cubes.store.ledger import Build, Record
from cubes.types import Access, CubeError, Progress

DRIVERS = 2
"""Regions in flight at once in one process: while one waits for its last step, the next reads."""

STEP_COPIES = 4
"""Times a step's working numbers are held while it is read, converted and encoded (measured: 3 to
4 on 2,048 px with ten bands)."""
LEAVE = 10.0
"""Seconds given to running tasks of a cluster to end when their writer is interrupted."""
HOPELESS = 8
"""Regions, far apart in time and space, that all must fail before the others are given up: a wrong
token or a dead server fails each region only after its retries, and a large cube has thousands."""

Kind = tuple[str, str]
"""Group and stack dimension: regions that may share one source."""


@dataclass(kw_only=True, slots=True)
class Tally:
    """What a run has done so far."""

    total: int
    tell: Progress | None
    first: frozenset[str] = frozenset()
    """Regions tried first, of all groups."""
    probes: Mapping[Kind, frozenset[str]] = field(default_factory=dict)
    """Regions of each group that are tried before its others."""
    alive: set[Kind] = field(default_factory=set)
    """Groups of which a region was written."""
    done: int = 0
    written: list[Record] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    guard: Lock = field(default_factory=Lock)

    @property
    def hopeless(self) -> bool:
        """Whether nothing can be read: the regions tried first all failed."""
        return bool(self.first) and not self.alive and self.first <= self.failed.keys()

    @property
    def doubtful(self) -> bool:
        """Whether so much failed that no more is begun until the regions tried first are through.

        What is corrupt may fail at once where what is sound takes its time.
        """
        return not self.alive and len(self.failed) >= HOPELESS

    def given_up(self, region: Region) -> bool:
        """Return whether nothing of the region's group can be read: its probes all failed."""
        kind = region.group, region.dim
        return kind not in self.alive and self.probes[kind] <= self.failed.keys()

    def tick(self, steps: int, what: str) -> None:
        """Count steps and show them."""
        with self.guard:
            self.done += steps
            if self.tell:
                self.tell(self.done, self.total, what)


def weight(build: Build, region: Region) -> int:
    """Return the size of a region's numbers: the largest go first, so that none is left to wait."""
    mine = layouts.region_arrays(ledger.build_arrays(build), region)
    channels = sum(a.layer.n_channels for a in mine)
    return (region.steps[1] - region.steps[0]) * len(region.patches) * channels


def planned(build: Build, todo: list[Region], tell: Progress | None) -> tuple[list[Region], Tally]:
    """Return regions in the order to try them, and the tally of a run over them.

    First the few that show whether there is anything to be read, overall and of each group, then
    the largest.
    """
    todo = sorted(todo, key=lambda r: -weight(build, r))
    kinds: dict[Kind, list[Region]] = {}
    for region in todo:
        kinds.setdefault((region.group, region.dim), []).append(region)
    first = apart(todo)
    probes = {kind: apart(mine) for kind, mine in kinds.items()}
    order = {r.id: r for r in [*first, *chain.from_iterable(probes.values()), *todo]}
    tally = Tally(
        total=sum(r.steps[1] - r.steps[0] for r in todo),
        tell=tell,
        first=frozenset(r.id for r in first),
        probes={kind: frozenset(r.id for r in mine) for kind, mine in probes.items()},
    )
    return list(order.values()), tally


def apart(regions: list[Region]) -> list[Region]:
    """Return up to `HOPELESS` regions of as many groups, steps and places as there are.

    One bad date, tile or group is then never all that a run sees. The same for the same regions.
    """
    if not regions:
        return []
    at = np.array([(r.block, r.rows[0], r.columns[0]) for r in regions], float)
    at /= np.maximum(at.max(axis=0), 1)
    traits: tuple[list[Hashable], ...] = (
        [(r.group, r.dim) for r in regions],
        [r.block for r in regions],
        [(r.rows[0], r.columns[0]) for r in regions],
    )
    numbers = [{v: n for n, v in enumerate(dict.fromkeys(t))} for t in traits]
    codes = [np.array([n[v] for v in t]) for n, t in zip(numbers, traits, strict=True)]
    near = np.full(len(regions), 3.0)  # squared distance to the nearest one taken; 3 at most
    used = np.zeros(len(regions))
    out: list[int] = []
    for _ in range(min(HOPELESS, len(regions))):
        cost = 4 * used - near  # what is new in kind counts before what is far
        cost[out] = np.inf
        taken = int(cost.argmin())
        out.append(taken)
        near = np.minimum(near, ((at - at[taken]) ** 2).sum(axis=1))
        for code in codes:
            used += code == code[taken]
    return [regions[n] for n in out]


def _workers(build: Build, todo: list[Region]) -> int:
    """Return how many steps to work on at once: all cores, within a quarter of the memory."""
    arrays = ledger.build_arrays(build)
    largest = 1
    for region in todo:
        step = sum(
            int(np.prod(a.chunk)) * np.dtype(a.layer.work_dtype).itemsize
            for a in layouts.region_arrays(arrays, region)
        )
        largest = max(largest, step * len(region.patches))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fits = memory // 4 // (STEP_COPIES * largest)
    return max(2, min(os.cpu_count() or 2, fits))


def in_threads(build: Build, todo: list[Region], source: Pixels, tally: Tally) -> None:
    """Write regions in threads of this process.

    Steps of the regions in flight share one pool, so that all cores work however few regions a
    cube has. On any error, Ctrl-C among them, what runs ends between two chunks.
    """
    workers = _workers(build, todo)
    steps = ThreadPoolExecutor(workers, thread_name_prefix="cubes-step")
    drivers = ThreadPoolExecutor(DRIVERS, thread_name_prefix="cubes-region")
    # Twice as many ahead as workers: results are taken in order, and a worker that ends before the
    # one of an earlier step must find more to do. What waits is encoded, so it is small.
    crew = Crew(pool=steps, ahead=2 * workers, tick=tally.tick)
    try:
        futures: dict[Future[Record], Region] = {}
        rest = (r for r in todo if not tally.given_up(r))
        while not tally.hopeless:
            # few at a time: a source that refuses at once would fail all before the first is seen
            for region in islice(rest, 0 if tally.doubtful else 2 * DRIVERS - len(futures)):
                futures[drivers.submit(build_region, build, region, source, crew)] = region
            if not futures:
                break
            for future in wait(futures, timeout=0.5, return_when=FIRST_COMPLETED).done:
                _settle(future.exception(), future, futures.pop(future), tally)
    except BaseException:
        crew.stop.set()
        raise
    finally:
        if tally.hopeless:
            crew.stop.set()
        drivers.shutdown(wait=True, cancel_futures=True)
        steps.shutdown(wait=True, cancel_futures=True)


def _settle(error: BaseException | None, future: Any, region: Region, tally: Tally) -> None:
    """Enter a finished region; a source's failure is noted, anything else ends the run."""
    if error is None:
        tally.written.append(future.result())
        tally.alive.add((region.group, region.dim))
    elif isinstance(error, ledger.Superseded):
        raise error
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno)} while writing region {region.id}; finished regions are "
            "kept: free space and run the same write again",
            error.filename,
        ) from error
    elif isinstance(error, CubeError | OSError) or type(error).__name__ == "KilledWorker":
        tally.failed[region.id] = f"{type(error).__name__}: {error}"
    else:
        raise error


# ----------------------------------------------------------------------------------------- dask


def _dask_region(build: Build, region: Region, access: Access) -> Record:
    """Write one region in a dask worker: the plan is read from the store, once per process.

    What may be read comes with the task: the store's own word for it does not count.
    """
    ledger.still(build)
    plan = replace(ledger.build_plan(build), access=access)
    source = PlanPixels(plan=plan, arrays=ledger.build_arrays(build))
    with ThreadPoolExecutor(2, thread_name_prefix="cubes-step") as pool:
        return build_region(build, region, source, Crew(pool=pool))


def on_dask(build: Build, todo: list[Region], client: Any, tally: Tally, access: Access) -> None:
    """Write regions on a dask cluster: futures, at most two per slot in flight, no large graph.

    However it ends, tasks still running are told to stop, and waited for `LEAVE` seconds: one that
    hangs longer in a read finds the store taken from it when it wants to write.
    """
    from distributed import as_completed

    mark = uuid.uuid4().hex[:8]
    waiting = list(reversed(todo))
    there = replace(build, store=build.store.resolve())
    live: dict[str, tuple[Any, Region]] = {}

    def submit() -> Iterator[Any]:
        most = 2 * slots(client)
        while waiting and len(live) < most and not tally.doubtful:
            region = waiting.pop()
            if tally.given_up(region):
                continue
            key = f"cubes-write-{mark}-{region.id}"
            future = client.submit(_dask_region, there, region, access, key=key, pure=False)
            live[key] = (future, region)
            yield future

    flying: Any = as_completed(list(submit()))  # type: ignore[no-untyped-call]
    try:
        for future in flying:
            _, region = live.pop(future.key)
            _settle(future.exception(), future, region, tally)
            tally.tick(region.steps[1] - region.steps[0], region.id)
            if tally.hopeless:
                break
            for new in submit():
                flying.add(new)
    finally:
        if live:
            _leave(build, client, [future for future, _ in live.values()])


def _leave(build: Build, client: Any, futures: list[Any]) -> None:
    """Take the store from the tasks still running, wait for them a little, and cancel them."""
    from distributed import wait as finished

    ledger.renew(build)
    try:
        finished(futures, timeout=LEAVE)  # type: ignore[no-untyped-call]
    except (TimeoutError, OSError):
        pass  # they hang in a read, or the cluster is gone; neither can write any more
    finally:
        client.cancel(futures)


def slots(client: Any) -> int:
    """Return how many tasks a dask client can run at once; 1 for none."""
    return 1 if client is None else max(1, sum(client.nthreads().values()))


class Bar:
    """A progress bar on standard error: share, rate and time left, redrawn five times a second."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.drawn = 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        """Draw the bar."""
        now = time.monotonic()
        if now - self.drawn < 0.2 and done < total:
            return
        self.drawn = now
        share = done / max(1, total)
        left = (now - self.began) * (1 - share) / max(share, 1e-9)
        bar = ("#" * round(24 * share)).ljust(24, ".")
        sys.stderr.write(f"\r[{bar}] {done}/{total} steps, {left:,.0f} s left  {what:<28.28}")
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        if self.drawn:
            sys.stderr.write("\n")
            sys.stderr.flush()
