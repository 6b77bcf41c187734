"""Samples per second from a server that answers late: ours at 1, 8 and 32 requests in flight.

The store of `benchmarks.stream` behind a web server on the loopback interface, a process of its
own, that waits 30 ms before it answers each request. Everyone delivers the same samples, 12 of 60
or more dates of each sensor, into the same batch buffer. Beside ours: zarr-python over obstore and
over fsspec, one slice of a step after another and many at once in threads, and how fast the server
itself can hand out those bytes without the wait. All in turns; ratios are medians of paired passes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cubes
from benchmarks import common, slow
from benchmarks.stream import FULL, QUICK, Race, race, store

LATENCY = 0.03
IN_FLIGHT = (1, 8, 32)


def ours(where: Race, url: str, *, cache: Path | None = None, keep: bool = False, **how: Any) -> (
    Callable[[], None]
):  # fmt: skip
    """Return our loader over the samples of the race, from `url`; cold unless `keep`."""
    from cubes.sampling import remote
    from deepsentinel.loading.batch import loader

    storage = cubes.Storage(cache=cache, **how)
    samples = cubes.plan(url, where.samples.window, storage=storage).take(where.rows)

    def run() -> None:
        if not keep:
            remote._indexes.clear()
            if cache is not None:
                for entry in Path(cache).glob("*/"):
                    shutil.rmtree(entry)
        one = loader(samples, where.batch, shuffle=False, threads=2, drop_last=False)
        for batch in one:
            assert len(batch)

    return run


def slices(where: Race, opened: Callable[[str], Any], threads: int) -> Callable[[], None]:
    """Return Zarr slices, one step at a time on each thread, into the batch buffer."""
    table, size = where.samples.table(), where.samples.window.size
    out = where.samples.empty(where.batch)
    arrays = {name: opened(name) for name in where.samples.layers}
    pool = ThreadPoolExecutor(threads)

    def copy(job: tuple[int, int, int, str, int]) -> None:
        i, t, row, name, step = job
        y, x = int(table.y[row]), int(table.x[row])
        window = (slice(y, y + size), slice(x, x + size))
        out[name][i, t] = arrays[name][(step, ..., *window)]

    def run() -> None:
        for rows in where.batches():
            jobs = [
                (i, t, row, name, step)
                for i, row in enumerate(rows.tolist())
                for name in arrays
                for t, step in enumerate(where.steps(row, name))
            ]
            list(pool.map(copy, jobs))

    return run


def by_obstore(url: str) -> Callable[[str], Any]:
    """Return what opens an array through zarr-python's ObjectStore."""
    import zarr
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    def opened(name: str) -> Any:
        there = from_url(f"{url}/{name}", client_options={"allow_http": True})
        return zarr.open_array(ObjectStore(there, read_only=True), mode="r")

    return opened


def by_fsspec(url: str) -> Callable[[str], Any]:
    """Return what opens an array through zarr-python's FsspecStore (aiohttp)."""
    import zarr
    from zarr.storage import FsspecStore

    return lambda name: zarr.open_array(
        FsspecStore.from_url(f"{url}/{name}", read_only=True), mode="r"
    )


def server_limit(where: Race, url: str) -> Callable[[], None]:
    """Return the same objects whole from a server that does not wait, 32 at once, bytes dropped."""
    import asyncio

    import obstore
    from obstore.store import from_url

    there = from_url(url, client_options={"allow_http": True})
    keys = [p.relative_to(where.path).as_posix() for p in where.path.glob("*/*/c/**/*")
            if p.is_file()]  # fmt: skip

    async def everything() -> None:
        slots = asyncio.Semaphore(32)

        async def one(key: str) -> None:
            async with slots:
                await (await obstore.get_async(there, key)).bytes_async()

        await asyncio.gather(*(one(key) for key in keys))

    return lambda: asyncio.run(everything())


def wanted_bytes(where: Race) -> int:
    """Return the encoded bytes of the chunks that a pass needs."""
    size, table, total = where.samples.window.size, where.samples.table(), 0
    for row in where.rows.tolist():
        for name in where.samples.layers:
            array = where.samples.stores[0].array(name)
            place = (int(table.y[row]) // size, int(table.x[row]) // size)
            for step in where.steps(row, name):
                shard = array.map((step // array.shard[0], 0, *place))
                total += 0 if shard is None else shard.index[step % array.shard[0]][1]
    return total


class Remote:
    """Seconds that a pass takes, each request answered 30 ms late."""

    params = [["1 in flight", "8 in flight", "32 in flight", "cache"]]
    param_names = ["way"]
    number, repeat, warmup_time = 1, 3, 0.0
    size = QUICK
    quick = {"size": QUICK}

    def setup(self, way: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="remote-"))
        where = race(store(self.folder, **self.size), size=self.size["size"], rounds=1)
        self.server = slow.process(self.folder, LATENCY)
        url = f"{self.server.__enter__()}/{where.path.name}"
        if way == "cache":
            self.run = ours(where, url, cache=self.folder / "cache", keep=True)
        else:
            self.run = ours(where, url, in_flight=int(way.split(maxsplit=1)[0]))
        self.run()

    def teardown(self, way: str) -> None:
        self.server.__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)

    def time_pass(self, way: str) -> None:
        self.run()


def main(arguments: Sequence[str] = ()) -> str:
    """Return the table of samples per second, requests and bytes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote")
    parser.add_argument("--folder", type=Path, help="keep the store here")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small store")
    parser.add_argument("--gaps", action="store_true", help="ours with several gaps instead")
    chosen = parser.parse_args(list(arguments))
    size = QUICK if chosen.quick else FULL
    with tempfile.TemporaryDirectory(prefix="remote-") as scratch, common.quiet():
        folder = chosen.folder or Path(scratch)
        path = store(folder, **size)
        where = race(path, size=size["size"], rounds=1)
        n, mb = len(where.rows), wanted_bytes(where) / 1e6
        with slow.process(folder, LATENCY) as late, slow.process(folder, 0.0) as quick:
            url = f"{late}/{path.name}"
            calls: dict[str, Callable[[], None]] = {}
            if chosen.gaps:
                for gap in (0, 32, 128, 512, 2048):
                    calls[f"ours, gap {gap} KiB"] = ours(where, url, gap=gap * 2**10)
            else:
                for k in IN_FLIGHT:
                    calls[f"ours, {k} in flight"] = ours(where, url, in_flight=k)
                cache = Path(scratch) / "cache"
                calls["ours, 32 in flight, filling a cache"] = ours(where, url, cache=cache)
                kept = Path(scratch) / "kept"
                calls["ours, from the cache"] = ours(where, url, cache=kept, keep=True)
                calls["ours, from the folder"] = _local(where)
                for threads in (1, 32):
                    calls[f"zarr-python over obstore, {threads} at once"] = slices(
                        where, by_obstore(url), threads
                    )
                calls["zarr-python over fsspec, 1 at once"] = slices(where, by_fsspec(url), 1)
                calls["server alone, whole objects, no wait"] = server_limit(
                    where, f"{quick}/{path.name}"
                )
            rows = _measured(calls, chosen.repeats, (late, n, mb, where))
    head = ("from a server 30 ms away", "samples/s", "MB/s needed", "x one in flight",
            "requests a pass")  # fmt: skip
    title = (
        f"Remote: {n} samples a pass, {mb / n:.1f} MB encoded each, 12 of {size['dates']} dates, "
        f"{size['size']} px; best and median ratio of {chosen.repeats} passes in turns"
    )
    return common.table(title, head, rows, "deepsentinel", "obstore", "zarr", "fsspec", "aiohttp")


def _local(where: Race) -> Callable[[], None]:
    from benchmarks import stream

    return stream.ours(where, 2)


def _measured(
    calls: dict[str, Callable[[], None]], repeats: int, about: tuple[str, int, float, Race]
) -> list[tuple[Any, ...]]:
    late, n, mb, where = about
    asked: dict[str, int] = {}
    for name, call in calls.items():  # opens connections, fills the cache that is kept
        call()
        before = slow.requests(late)
        if "zarr-python" not in name:
            call()
            asked[name] = slow.requests(late) - before
    spent = common.rounds(calls, repeats)
    first = spent[next(iter(calls))]
    rows = []
    for name, took in spent.items():
        whole = "server" in name
        files = [p for p in where.path.glob("*/*/c/**/*") if whole and p.is_file()]
        size = sum(p.stat().st_size for p in files) / 1e6 if whole else mb
        rows.append((
            name, "" if whole else n / min(took), size / min(took),
            "" if whole else common.ratio(first, took), asked.get(name, ""),
        ))  # fmt: skip
    return rows


if __name__ == "__main__":
    common.show(main(sys.argv[1:]))
