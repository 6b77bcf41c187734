"""Samples from cubes on HTTP and S3: the same batches and errors, few requests, a bounded cache."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cubes
from benchmarks.slow import Slow, process
from cubes import CubeError, Layout, Storage, Window, plan
from cubes.sampling import cache, inflight, remote

pytest.importorskip("obstore", reason="pip install deepsentinel[cloud]")

_spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("streams.py"))
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(60)
S1 = "s1/backscatter"
WINDOW = Window(size=64, dates=4)
SECRET = "A-SECRET-KEY"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder ``bucket`` with a cube of every kind of layer; never changed."""
    folder = tmp_path_factory.mktemp("served")
    streams.write_store(
        folder / "bucket" / "c.zarr", shape=(128, 128), s1=8, layout=Layout(patch=64),
        nodata={"s2/scl": (slice(None), slice(None), slice(0, 64), slice(0, 64))},
    )  # fmt: skip
    return folder


@pytest.fixture
def server(made: Path) -> Iterator[Slow]:
    running = Slow(made)
    yield running
    running.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Slow]:
    """Return a server of a folder of the test's own, with a small cube ``c.zarr``."""
    small(tmp_path / "served" / "c.zarr")
    running = Slow(tmp_path / "served")
    yield running
    running.close()


def small(path: Path, **options: Any) -> dict[str, np.ndarray]:
    """Write four patches of 64 px and four dates; return what is stored."""
    given = {"shape": (128, 128), "layers": (S1,), "s1": 4, "layout": Layout(patch=64)}
    stored: dict[str, np.ndarray] = streams.write_store(path, **(given | options))
    return stored


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def s3(server: Slow, **more: Any) -> Storage:
    options = {
        "endpoint": server.url, "access_key_id": "k", "secret_access_key": SECRET,
        "region": "us-east-1",
    }  # fmt: skip
    return Storage(options=options, **more)


# --------------------------------------------------------------------------------- the same


@pytest.mark.parametrize("window", [WINDOW, Window(size=48, stride=40, dates=3)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("scheme", ["http", "s3"])
@pytest.mark.parametrize("tags", [True, False])
def test_batches_are_those_of_the_folder(
    made: Path, server: Slow, window: Window, threads: int, scheme: str, tags: bool
) -> None:
    server.tags = tags
    here = plan(made / "bucket" / "c.zarr", window)
    url = f"{server.url}/bucket/c.zarr" if scheme == "http" else "s3://bucket/c.zarr"
    there = plan(url, window, storage=s3(server) if scheme == "s3" else None)
    assert there.sha256 == here.sha256
    assert set(there.table()["store"]) == {url}
    rows = np.random.default_rng(3).permutation(len(here))
    for epoch in (0, 1, None):
        same(
            there.read(rows, threads=threads, epoch=epoch),
            here.read(rows, threads=threads, epoch=epoch),
        )


@pytest.mark.parametrize("codec", ["zstd", "no shards"])
def test_layouts_read_by_zarr_python_are_the_same(tmp_path: Path, codec: Any) -> None:
    layout = (
        Layout(patch=64, shards=False) if codec == "no shards" else Layout(patch=64, codec=codec)
    )
    path = tmp_path / "c.zarr"
    small(path, layout=layout)
    server = Slow(tmp_path)
    try:
        there = plan(f"{server.url}/c.zarr", WINDOW)
        same(there.read(range(4)), plan(path, WINDOW).read(range(4)))
        lost = sorted(p for p in (path / S1 / "c").rglob("*") if p.is_file())[0]
        lost.unlink()
        with pytest.raises(CubeError, match=r"c\.zarr/s1/backscatter: .*is lost .*step 0"):
            there.read([0])
    finally:
        server.close()


def test_planning_reads_metadata_and_ledger_alone(server: Slow) -> None:
    samples = plan(f"{server.url}/bucket/c.zarr", WINDOW)
    paths = [path for _, path, _ in server.asked]
    assert not [p for p in paths if "/c/" in p]
    # the seal first, with the ledger and last, four files of that, the root and each array
    assert len(paths) == 3 + 4 + 1 + len(samples.layers)
    again = len(server.asked)
    plan(f"{server.url}/bucket/c.zarr", WINDOW)
    assert len(server.asked) - again <= 2


def test_few_bytes_and_few_requests(server: Slow, made: Path) -> None:
    samples = plan(f"{server.url}/bucket/c.zarr", WINDOW).select([S1])
    samples.read([0])  # opens the array
    server.asked.clear()
    samples.read([1])
    objects = [(p, span) for _, p, span in server.asked if "/c/" in p]
    # the end of the object, then the chunks: neighbours, so in one request
    assert [span.startswith("bytes=-") for _, span in objects] == [True, False]
    apart = plan(f"{server.url}/bucket/c.zarr", WINDOW, storage=Storage(gap=0)).select([S1])
    server.asked.clear()
    apart.read([3], epoch=None)  # every other one of eight dates
    spans = [span for _, p, span in server.asked if "/c/" in p and not span.startswith("bytes=-")]
    assert len(spans) == 4
    size = sum(int(b) - int(a) + 1 for a, b in (s[6:].split("-") for s in spans))
    (whole,) = (made / "bucket" / "c.zarr" / S1 / "c").glob("*/*/1/1")
    assert size < 0.6 * whole.stat().st_size


def test_a_corpus_is_planned_as_a_whole(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "served"
    small(tmp_path / "a.zarr", seed=1)
    small(tmp_path / "b.zarr", seed=2)
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    local = cubes.corpus(paths, name="two")
    cubes.publish(local, folder / "two")
    server = Slow(folder)
    try:
        there = cubes.open_corpus(f"{server.url}/two")
        samples = plan(there, WINDOW, storage=Storage(cache=tmp_path / "cache"))
        assert len(samples) == 8
        assert samples.sha256 == plan(local, WINDOW).sha256 == plan(paths, WINDOW).sha256
        same(samples.read(range(8)), plan(local, WINDOW).read(range(8)))
        same(samples.read([0]), plan(cubes.open_corpus(folder / "two"), WINDOW).read([0]))
        there.table.loc["b", "tree_sha256"] = "0" * 64
        with pytest.raises(
            CubeError, match=r"b\.zarr is not the cube in the table of corpus 'two'"
        ):
            plan(there, WINDOW)
    finally:
        server.close()


# -------------------------------------------------------------------------------- the cache


def test_a_second_epoch_from_the_cache_makes_no_request(
    made: Path, server: Slow, tmp_path: Path, figure: Any
) -> None:
    url, storage = f"{server.url}/bucket/c.zarr", Storage(cache=tmp_path / "cache")
    here, there = plan(made / "bucket" / "c.zarr", WINDOW), plan(url, WINDOW, storage=storage)
    there.read(range(4), epoch=None)
    before = len(server.asked)
    same(there.read(range(4), threads=2, epoch=None), here.read(range(4), epoch=None))
    figure("requests of a second epoch from the cache", len(server.asked) - before, "0")
    assert len(server.asked) == before
    # another process finds the entries: it asks for seal, metadata and ledger alone
    code = (
        "import sys, cubes; s = cubes.plan(sys.argv[1], cubes.Window(size=64, dates=4), "
        "storage=cubes.Storage(cache=sys.argv[2])); s.read(range(4), epoch=None)"
    )
    subprocess.run(
        [sys.executable, "-c", code, url, str(tmp_path / "cache")], check=True, timeout=50
    )
    new = [p for _, p, _ in server.asked[before:]]
    assert new
    assert not [p for p in new if "/c/" in p]


def test_damaged_and_vanished_entries_are_fetched_again(own: Slow, tmp_path: Path) -> None:
    url, folder = f"{own.url}/c.zarr", tmp_path / "cache"
    there = plan(url, WINDOW, storage=Storage(cache=folder))
    wanted = there.read(range(4))
    entries = sorted(p for p in folder.rglob("*") if p.is_file() and p.name.isdigit())
    assert len(entries) == 16
    for n, path in enumerate(entries):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes([bytes(data), b"", bytes(data[:-7]), bytes(data) * 2][n % 4])
    for path in folder.rglob("index"):
        path.write_bytes(path.read_bytes()[:9])
    remote._indexes.clear()
    same(there.read(range(4)), wanted)
    # gone between the look and the read
    units = there.units(np.arange(4), out := there.empty(4))
    shutil.rmtree(next(p for p in folder.iterdir() if p.is_dir()))
    for unit in units:
        unit()
    same(out, wanted)
    before = len(own.asked)
    same(there.read(range(4)), wanted)
    assert len(own.asked) == before


def test_the_cache_keeps_its_bound_and_drops_the_oldest(tmp_path: Path) -> None:
    kept = cache.Cache(str(tmp_path / "c"), 10 * cache.BLOCK)
    for n in range(10):
        kept.put(f"s/a/0/{n}", bytes([n]) * 4000)
        os.utime(tmp_path / "c" / f"s/a/0/{n}", ns=(n, n))
    assert kept.used() == 10 * cache.BLOCK
    assert kept.get("s/a/0/0") == bytes(4000)  # used: no longer the oldest
    kept.put("s/b/0/0", b"x")
    left = {p.relative_to(tmp_path / "c").as_posix() for p in (tmp_path / "c").rglob("*")
            if p.is_file()}  # fmt: skip
    assert left == {"lock", "s/b/0/0", *(f"s/a/0/{n}" for n in (0, *range(2, 10)))}
    assert kept.used() == 10 * cache.BLOCK
    with pytest.raises(CubeError, match="does not fit in the cache of 40,960 bytes"):
        kept.put("s/a/0/big", bytes(50_000))
    (tmp_path / "c" / "s" / "x.partial").write_bytes(bytes(99))  # of a killed process
    again = cache.Cache(str(tmp_path / "c"), 4 * cache.BLOCK)  # a smaller bound
    again.put("s/c/0/0", b"y")
    files = [p for p in (tmp_path / "c" / "s").rglob("*") if p.is_file()]
    assert len(files) <= 4
    assert not [p for p in files if p.suffix == ".partial"]


def test_processes_share_the_bound(tmp_path: Path) -> None:
    code = """
import os, sys
from cubes.sampling.cache import Cache
kept, me = Cache(sys.argv[1], 64 * 4096), sys.argv[2]
for n in range(300):
    kept.put(f"s/a/{me}/{n}", bytes([n % 256]) * 4096)
    found = kept.get(f"s/a/{sys.argv[3]}/{n}")
    assert found is None or found == bytes([n % 256]) * 4096
    with kept._locked():
        files = sum(len(f) for d, _, f in os.walk(sys.argv[1])) - 1
    assert files <= 64, files
"""
    crew = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c"), *pair])
        for pair in ("xy", "yx", "zx")
    ]
    assert [one.wait(50) for one in crew] == [0, 0, 0]
    kept = cache.Cache(str(tmp_path / "c"), 64 * 4096)
    files = sum(len(f) for _, _, f in os.walk(tmp_path / "c")) - 1
    assert kept.used() == files * 4096 <= 64 * 4096


def test_a_small_cache_stays_small_and_the_batches_right(
    own: Slow, tmp_path: Path, made: Path
) -> None:
    here = plan(tmp_path / "served" / "c.zarr", WINDOW)
    need = sum(v.nbytes for v in here.empty(1).values())
    storage = Storage(cache=tmp_path / "cache", cache_bytes=need + 4096)
    there = plan(f"{own.url}/c.zarr", WINDOW, storage=storage)
    for _ in range(2):
        for row in range(4):
            same(there.read([row]), here.read([row]))
    used = sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert 0 < used <= need + 4096
    with pytest.raises(CubeError, match=r"a batch may need .* cache at .*raise Storage"):
        there.read([0, 1])


# --------------------------------------------------------------------------------- mishaps


def test_damaged_chunks_and_lost_objects_are_named(own: Slow, tmp_path: Path) -> None:
    there = plan(f"{own.url}/c.zarr", WINDOW)
    first, second, third = sorted((tmp_path / "served" / "c.zarr" / S1).glob("c/*/*/*/*"))[:3]
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(data)
    with pytest.raises(CubeError, match=r"s1/backscatter: a chunk fails its crc32c \(patch row 0"):
        there.read([0])
    data = bytearray(second.read_bytes())
    data[-10] ^= 1
    second.write_bytes(data)
    with pytest.raises(
        CubeError, match=r"the shard index fails its crc32c \(patch row 0, column 1"
    ):
        there.read([1])
    third.unlink()
    with pytest.raises(CubeError, match=r"an object that was written is lost \(patch row 1"):
        there.read([2])
    there.read([3])


@pytest.mark.parametrize("warm", [False, True])
def test_a_store_that_was_written_again_is_refused(own: Slow, tmp_path: Path, warm: bool) -> None:
    path, url = tmp_path / "served" / "c.zarr", f"{own.url}/c.zarr"
    storage = Storage(cache=tmp_path / "cache")
    there = plan(url, WINDOW, storage=storage)
    first = there.read([0])
    if warm:
        there.read([1])
    second = small(path, seed=9, force=True)
    same(there.read([0]), first)  # from the cache: what was planned
    with pytest.raises(CubeError, match=r"planned on: it was written again.*cubes\.plan again"):
        there.read([1, 2])
    new = plan(url, WINDOW, storage=storage)
    assert new.sha256 != there.sha256
    np.testing.assert_array_equal(new.read([0])[S1][0], second[S1][:, :, :64, :64])
    (path / "__cubes__" / "sealed.json").unlink()
    with pytest.raises(CubeError, match="is not sealed any more"):
        new.read([3])
    with pytest.raises(CubeError, match=r"c\.zarr is not finished \(not sealed\)"):
        plan(url, WINDOW, storage=storage)


def test_objects_copied_over_one_by_one_are_seen(own: Slow, tmp_path: Path) -> None:
    """The seal still is the old one: tags and sizes tell, not the checksums of the chunks."""
    there = plan(f"{own.url}/c.zarr", WINDOW)
    there.read([0])
    small(tmp_path / "other.zarr", seed=9)
    for name in sorted((tmp_path / "other.zarr" / S1).glob("c/*/*/*/*")):
        target = tmp_path / "served" / "c.zarr" / name.relative_to(tmp_path / "other.zarr")
        shutil.copyfile(name, target)
    for row in (0, 1):
        with pytest.raises(CubeError, match=r"its object has [\d,]+ bytes, the ledger says"):
            there.read([row], epoch=3)
    shutil.copytree(tmp_path / "served" / "c.zarr", tmp_path / "whole.zarr")


def test_the_same_bytes_sent_again_are_no_change(own: Slow, tmp_path: Path) -> None:
    there = plan(f"{own.url}/c.zarr", WINDOW)
    wanted = there.read(range(4))
    for path in (tmp_path / "served" / "c.zarr" / S1).glob("c/*/*/*/*"):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)
        os.utime(path, ns=(5, 5))  # another tag
    same(there.read(range(4)), wanted)


def test_failures_that_pass_are_tried_again(own: Slow, tmp_path: Path, monkeypatch) -> None:
    there = plan(f"{own.url}/c.zarr", WINDOW)
    wanted = plan(tmp_path / "served" / "c.zarr", WINDOW).read(range(4))
    seen: dict[tuple[str, str], int] = {}

    def twice(path: str, span: str) -> int | None:
        seen[path, span] = seen.get((path, span), 0) + 1
        return [503, 429, None][min(seen[path, span], 3) - 1]

    own.fault = twice
    same(there.read(range(4), threads=2), wanted)
    assert {n for (path, _), n in seen.items() if "/c/" in path} == {3}
    monkeypatch.setenv("CUBES_READ_BUDGET", "0.5")
    own.fault = lambda path, _: 500 if "/c/" in path else None
    fresh = plan(f"{own.url}/c.zarr", WINDOW, storage=Storage(gap=1))
    remote._indexes.clear()
    began = time.monotonic()
    with pytest.raises(CubeError, match=r"cannot read .*after \d attempts: .*500"):
        fresh.read([0])
    assert time.monotonic() - began < 5
    own.fault = lambda path, _: 403 if "/c/" in path else None
    began = time.monotonic()
    with pytest.raises(CubeError, match="PermissionDeniedError"):
        fresh.read([1])
    assert time.monotonic() - began < 2


def test_what_cannot_be_planned_is_named(server: Slow, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("CUBES_READ_BUDGET", "0.5")
    url = f"{server.url}/bucket/c.zarr"
    with pytest.raises(CubeError, match=r"there is no cube at s3://wrong/c\.zarr"):
        plan("s3://wrong/c.zarr", WINDOW, storage=s3(server))
    with pytest.raises(CubeError, match="not at 'ftp://x'"):
        plan("ftp://x/c.zarr", WINDOW)
    with pytest.raises(CubeError, match="carries credentials"):
        plan(f"{url.replace('//', '//me:word@')}", WINDOW)
    with pytest.raises(CubeError, match=r"carries credentials") as error:
        plan("https://example.org/cubes?sig=abcd/c.zarr", WINDOW)
    assert "abcd" not in str(error.value)
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "cache", Path("/proc/nowhere")):
        with pytest.raises(CubeError, match=r"cannot be used: .*; give Storage"):
            plan(url, WINDOW, storage=Storage(cache=folder))
    with pytest.raises(CubeError, match=r"in_flight=0"):
        Storage(in_flight=0)
    server.fault = lambda _path, _span: 403
    began = time.monotonic()
    with pytest.raises(CubeError, match="PermissionDeniedError"):
        plan("s3://bucket/c.zarr", WINDOW, storage=s3(server))
    assert time.monotonic() - began < 5
    server.close()
    with pytest.raises(CubeError, match=r"cannot read http.* after \d attempts"):
        plan(url, WINDOW, storage=Storage(gap=2))


def test_a_ledger_that_was_changed_is_refused_by_its_url(own: Slow, tmp_path: Path) -> None:
    path = tmp_path / "served" / "c.zarr" / "__cubes__" / "valid.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(CubeError, match=r"http://127.*/c\.zarr: __cubes__/valid\.npz changed"):
        plan(f"{own.url}/c.zarr", WINDOW)
    path.unlink()
    with pytest.raises(CubeError, match=r"lacks __cubes__/valid\.npz: it was not copied whole"):
        plan(f"{own.url}/c.zarr", WINDOW)


def test_keys_of_a_strangers_plan_stay_in_the_folder(own: Slow, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    place, prefix = inflight.place(f"{own.url}/c.zarr", Storage())
    plan_file = tmp_path / "served" / "c.zarr" / "__cubes__" / "plan.json"
    body = plan_file.read_text().replace('"s1/backscatter"', '"../../backscatter"')
    plan_file.write_text(body)
    with pytest.raises(CubeError):
        inflight.begin(remote._mirror(place, prefix, "url", folder)).result()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "served"]


def test_credentials_are_neither_shown_nor_kept(server: Slow, tmp_path: Path, caplog) -> None:
    there = plan("s3://bucket/c.zarr", WINDOW, storage=s3(server, cache=tmp_path / "cache"))
    there.read([0])
    kept = pickle.dumps(there)
    shown = repr(there) + repr(there.stores) + there.table().to_json() + caplog.text
    assert SECRET not in shown
    assert SECRET.encode() not in kept
    for path in (tmp_path / "cache").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()
    again = pickle.loads(kept)
    assert again.stores[0].storage.options == {
        "endpoint": server.url, "region": "us-east-1",
    }  # fmt: skip
    with pytest.raises(CubeError, match="without the options access_key_id, secret_access_key"):
        again.read([0])
    free = Storage(options={"endpoint": server.url, "skip_signature": True, "region": "x"})
    same(pickle.loads(pickle.dumps(plan("s3://bucket/c.zarr", WINDOW, storage=free))).read([0]),
         there.read([0]))  # fmt: skip


def test_a_seal_that_is_none_is_named(own: Slow, tmp_path: Path) -> None:
    seal = tmp_path / "served" / "c.zarr" / "__cubes__" / "sealed.json"
    seal.write_text(json.dumps(["no"]))
    with pytest.raises(CubeError, match="is not a seal"):
        plan(f"{own.url}/c.zarr", WINDOW)


def test_units_that_are_dropped_ask_no_more(own: Slow) -> None:
    there = plan(f"{own.url}/c.zarr", WINDOW, storage=Storage(in_flight=1))
    there.read([0])
    own.latency = 0.2
    units = there.units(np.arange(1, 4), there.empty(3))
    time.sleep(0.1)
    del units
    time.sleep(1)
    # indexes are kept for others; chunks that nobody waits for are not asked for
    spans = [span for _, path, span in own.asked if "/c/" in path]
    assert len(spans) > 2
    assert [s for s in spans if not s.startswith("bytes=-")] == spans[1:2]


# ----------------------------------------------------------------------------------- speed


@pytest.mark.alone
def test_requests_in_flight_hide_the_latency(made: Path, figure: Any) -> None:
    """30 ms a request: 32 in flight against one, in turns, each with connections that are open."""
    window = Window(size=64, dates=6)
    spent: dict[int, list[float]] = {1: [], 32: []}
    with process(made, 0.03) as url:
        ways = {
            n: plan(f"{url}/bucket/c.zarr", window, storage=Storage(in_flight=n, gap=0))
            for n in spent
        }
        for there in ways.values():
            there.read(range(4))
        for epoch in range(3):
            for n, there in ways.items():
                remote._indexes.clear()
                began = time.perf_counter()
                there.read(range(4), threads=2, epoch=epoch)
                spent[n].append(time.perf_counter() - began)
    ratio = float(np.median([a / b for a, b in zip(spent[1], spent[32], strict=True)]))
    figure("32 requests in flight against one, 30 ms each, times the rate", ratio, ">= 10")
    assert ratio >= 10
