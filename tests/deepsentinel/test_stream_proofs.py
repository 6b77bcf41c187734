"""Proofs about the stream: its order, its resumption, its memory, and how soon it begins."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from itertools import chain
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from cubes import CubeError, Layout, Window, plan
from cubes.sampling.sampleset import Samples
from deepsentinel.loading import workers as workers_module
from deepsentinel.loading.batch import Batch, Loader, SampleDataset, loader
from deepsentinel.loading.ring import Ring

_path = Path(__file__).parents[1] / "cubes" / "streams.py"
_spec = importlib.util.spec_from_file_location("streams", _path)
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(120)
TINY = {"layers": ("s1/backscatter", "s2/scl", "s2/clear"), "layout": Layout(patch=32)}
MIB = 2**20


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("proofs") / "cube.zarr"
    streams.write_store(found, shape=(256, 256), **TINY)
    return found


@pytest.fixture(scope="module")
def samples(path: Path) -> Samples:
    """Return 64 samples: 8 batches of 8 an epoch."""
    return plan(path, Window(size=32, dates=3), min_valid=0, seed=2)


def by_id(batch: Batch) -> dict[int, bytes]:
    """Return sample id -> all that the batch says of it, as bytes."""
    tensors = [*batch.stored.values(), *batch.days.values(), *batch.present.values(), batch.place]
    return {
        int(batch.place[i, 3]): b"".join(t[i].numpy().tobytes() for t in tensors)
        for i in range(len(batch))
    }


def epochs(one: Loader, n: int) -> list[dict[int, bytes]]:
    return [by_id(b) for _ in range(n) for b in one]


@pytest.fixture(scope="module")
def flat(samples: Samples) -> list[dict[int, bytes]]:
    """Return the batches of seven epochs."""
    return epochs(loader(samples, 8, seed=7, threads=1), 7)


# ---------------------------------------------------------------------------------------- order


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize(("workers", "world"), [(1, 1), (4, 1), (0, 2), (2, 2), (0, 4), (1, 4)])
def test_same_batches_for_any_workers_and_ranks(
    samples: Samples, flat: list[dict[int, bytes]], workers: int, world: int
) -> None:
    """Byte for byte, sample for sample, in two epochs."""
    parts: list[list[dict[int, bytes]]] = []
    for rank in range(world):
        how: dict[str, Any] = {"rank": rank, "world": world, "prefetch": 1}
        one = loader(samples, 8 // world, seed=7, workers=workers, **how)
        parts.append(epochs(one, 2))
        one.close()
    for step, want in enumerate(flat[:16]):
        pieces = [part[step] for part in parts]
        assert [len(p) for p in pieces] == [8 // world] * world
        joined = dict(chain(*(p.items() for p in pieces)))
        assert joined == want
        assert pieces[0] == dict(list(want.items())[::world]), "in the order of the global batch"


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    n=st.integers(1, 64),
    each=st.integers(1, 9),
    world=st.integers(1, 5),
    key=st.tuples(st.integers(0, 2**40), st.integers(0, 1000)),
    how=st.fixed_dictionaries({"drop_last": st.booleans(), "shuffle": st.booleans()}),
)
def test_every_sample_exactly_once_an_epoch(
    samples: Samples, n: int, each: int, world: int, key: tuple[int, int], how: dict[str, Any]
) -> None:
    some = samples.take(np.arange(n))
    if how["drop_last"] and n < each * world:
        return
    seen: list[int] = []
    for rank in range(world):
        one = loader(some, each, seed=key[0], rank=rank, world=world, **how)
        one.set_epoch(key[1])
        rows = [one.rows(step) for step in range(len(one))]
        assert all(len(r) == each for r in rows[:-1])
        seen += chain(*(r.tolist() for r in rows))
    whole = n // (each * world) * each * world if how["drop_last"] else n
    assert len(seen) == len(set(seen)) == whole


# --------------------------------------------------------------------------------------- resume


def test_resume_at_fifty_random_steps(samples: Samples, flat: list[dict[int, bytes]]) -> None:
    """What follows is what would have followed, the end of an epoch and the next one included."""
    one = loader(samples, 8, seed=7)
    states = [json.dumps(one.state_dict())]
    for _ in range(7):
        for _batch in one:
            states.append(json.dumps(one.state_dict()))
    assert len(states) == 1 + len(flat) == 57
    rng = np.random.default_rng(3)
    for at in rng.choice(len(flat), 50, replace=False).tolist():
        two = loader(samples, 8, seed=7, threads=1 + at % 3, prefetch=1 + at % 2)
        two.load_state_dict(json.loads(states[at]))
        follows = list(zip(flat[at:], chain(two, two), strict=False))
        assert len(follows) > 0
        for number, (want, batch) in enumerate(follows):
            assert list(by_id(batch).items()) == list(want.items()), (at, number)


CHILD = """
import json, os, sys, time
from pathlib import Path
from cubes import Window, plan
from deepsentinel.loading.batch import loader

if __name__ == "__main__":
    store, state, log, workers = sys.argv[1:]
    samples = plan(store, Window(size=32, dates=3), min_valid=0, seed=2)
    one = loader(samples, 8, seed=7, workers=int(workers))
    if os.path.exists(state):
        one.load_state_dict(json.loads(Path(state).read_text()))
    while True:
        for batch in one:
            step = json.dumps({"ids": batch.place[:, 3].tolist(), "state": one.state_dict()})
            running = one.__dict__.get("_made")
            crew = [w.pid for w in running._loader._iterator._workers] if running else []
            Path(state + ".new").write_text(json.dumps(one.state_dict()))
            os.replace(state + ".new", state)
            with open(log, "a") as file:
                file.write(json.dumps([batch.place[:, 3].tolist(), crew]) + "\\n")
            time.sleep(0.002)
"""


def gone(pid: int) -> bool:
    """Return whether a process has ended (or is only waiting to be reaped)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_after_a_kill_is_exact(
    path: Path, samples: Samples, flat: list[dict[int, bytes]], tmp_path: Path, workers: int
) -> None:
    """Killed twice while it runs; each time it goes on from the state that was saved last."""
    script, state, log = tmp_path / "child.py", tmp_path / "state.json", tmp_path / "log"
    script.write_text(CHILD)
    rng = np.random.default_rng(workers)
    crew: list[int] = []
    for _ in range(2):
        before = len(log.read_text().splitlines()) if log.exists() else 0
        until = before + int(rng.integers(3, 20))
        command = [sys.executable, str(script), str(path), str(state), str(log), str(workers)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
            limit = time.monotonic() + 60
            while not log.exists() or len(log.read_text().splitlines()) < until:
                assert child.poll() is None, (child.stderr or io.BytesIO()).read().decode()[-800:]
                assert time.monotonic() < limit
                time.sleep(0.005)
            crew += json.loads(log.read_text().splitlines()[-1])[1]
            os.kill(child.pid, signal.SIGKILL)
            child.wait(10)
            limit = time.monotonic() + 10
            while not all(gone(pid) for pid in crew):
                assert time.monotonic() < limit, "workers outlive their loader"
                time.sleep(0.1)
    assert len(crew) == 2 * workers
    saved = json.loads(state.read_text())
    at = 8 * saved["epoch"] + saved["step"]
    lines = [json.loads(line)[0] for line in log.read_text().splitlines()]
    # a line may be missing where the kill came between saving and writing it, never one too many
    assert at - 2 <= len(lines) <= at
    assert at > 5
    wanted = [list(batch) for batch in flat[:at]]
    rest = iter(wanted)
    assert all(line in rest for line in lines), "each in its turn"
    two = loader(samples, 8, seed=7)
    two.load_state_dict(saved)
    after = [by_id(b) for b in chain(two, two)]
    assert len(after) > 8
    assert all(a == b for a, b in zip(after, flat[at:], strict=False))


# --------------------------------------------------------------------------------------- memory


def resident(pid: int | str = "self", name: str = "") -> int:
    """Return resident bytes of a process; those of one kind where `name` is one of its status."""
    if name:
        status = Path(f"/proc/{pid}/status").read_text()
        return next(int(v.split()[1]) << 10 for v in status.splitlines() if v.startswith(name))
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def settled(name: str) -> int:
    """Return resident bytes of one kind after all that is free was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident(name=name)


def crew_of(one: Loader) -> list[int]:
    made = one.__dict__.get("_made")
    return [w.pid for w in made._loader._iterator._workers] if made else []


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_grow(samples: Samples, workers: int, figure: Any) -> None:
    """20,000 samples and more after 10,000 to warm up; a straight line through what is resident."""
    one = loader(samples.take(np.arange(64).repeat(16)), 32, workers=workers)
    sizes, counts, done = [], [], 0
    while done < 32_000:
        for batch in one:
            done += len(batch)
        if done > 10_000:
            sizes.append(resident() + sum(resident(pid) for pid in crew_of(one)))
            counts.append(done)
    one.close()
    slope = float(np.polyfit(counts, sizes, 1)[0]) * 10_000 / MIB
    kind = f"{workers} workers" if workers else "threads"
    figure(f"resident MiB more for each 10,000 samples, {kind}", slope, "< 1")
    assert slope < 1, (slope, sizes)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Return 40 samples of 5 MB, 8 of them different."""
    found = tmp_path_factory.mktemp("large") / "cube.zarr"
    streams.write_store(
        found, shape=(512, 256), layers=("s1/backscatter", "s2/reflectance"), s1=10, s2=10
    )
    whole = plan(found, Window(size=128, dates=10), min_valid=0)
    return whole.take(np.arange(8).repeat(5))


@pytest.mark.parametrize("prefetch", [1, 3])
def test_peak_is_the_stated_bound(large: Samples, prefetch: int, figure: Any) -> None:
    one = loader(large, 8, prefetch=prefetch)
    slack = Ring(large, 8).size / 2  # of the rest of the process; one buffer more would show
    began, peak = settled("RssAnon"), 0
    for _ in range(3):
        for _batch in one:
            peak = max(peak, resident(name="RssAnon") - began)
    figure(
        f"MiB of memory for a stated {one.memory / MIB:.0f}, prefetch={prefetch}",
        peak / MIB,
        f"<= {one.memory / MIB:.0f} + half a batch",
    )
    assert 0.5 * one.memory < peak <= one.memory + slack


def test_peak_of_workers_is_the_stated_bound(large: Samples, figure: Any) -> None:
    """Shared memory, mapped by all of them: no process holds more, and none is added."""
    one = loader(large, 4, workers=2, prefetch=1)
    assert one.memory == 4 * Ring(large, 4).size
    began, private, shared = settled("RssAnon"), 0, 0
    others = resident(name="RssShmem")
    for _ in range(3):
        for _batch in one:
            private = max(private, resident(name="RssAnon") - began)
            mine = resident(name="RssShmem") - others
            shared = max(shared, mine, *(resident(pid, "RssShmem") for pid in crew_of(one)))
    slots = one.__dict__["_made"]._number
    one.close()
    figure(
        f"MiB of shared memory for a stated {one.memory / MIB:.0f}",
        shared / MIB,
        f"<= {one.memory / MIB:.0f} + 1",
    )
    assert len(slots) * Ring(large, 4).size == one.memory
    assert 0.3 * one.memory < shared <= one.memory + MIB
    assert private < Ring(large, 4).size, "nothing beside the shared buffers"


# ---------------------------------------------------------------------------------- first batch


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("wide") / "cube.zarr"
    streams.write_store(found, shape=(288, 288), s1=40, s2=48, **TINY)
    return found


WIDE = Window(size=32, stride=4, dates=12, period="60D", step="3D")


def sent(value: Any) -> int:
    """Return the bytes that a worker process gets through its pipe."""
    return len(ForkingPickler.dumps(value))


def test_first_batch_of_250_000_samples(wide: Path, figure: Any) -> None:
    """Processor seconds of the whole process: on an idle machine they bound the seconds."""
    next(iter(loader(plan(wide, Window(size=32, dates=2)), 2)))  # imports, page cache
    began = time.process_time()
    many = plan(wide, WIDE)
    planned = time.process_time() - began
    assert len(many) > 250_000
    began = time.process_time()
    one = loader(many, 16)
    batch = next(iter(one))
    first = time.process_time() - began
    assert len(batch) == 16
    dataset = sent(SampleDataset(many))
    worker = sent(workers_module._Decoder(workers_module.Shared(many), [], 16, 1))
    figure(f"s to the first batch of {len(many):,} planned samples", first, "2")
    figure("s to plan them, beside", planned, "both < 4")
    figure("bytes pickled to each worker, our loader's", worker, "20,000")
    figure("bytes pickled to each worker, of a DataLoader over SampleDataset", dataset, "20,000")
    assert first < 2
    assert planned + first < 4
    assert max(worker, dataset) < 20_000


def test_plan_of_250_000_samples_in_memory(wide: Path, figure: Any) -> None:
    plan(wide, Window(size=32, dates=2))
    tracemalloc.start()
    try:
        many = plan(wide, WIDE)
        kept, peak = (v / MIB for v in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert len(many) > 250_000
    figure(f"MiB of a plan of {len(many):,} samples", kept, "300")
    figure("MiB at most while it is made", peak, "300")
    assert kept < peak < 300


def test_samples_in_shared_memory_are_the_same(samples: Samples) -> None:
    """Whatever pickles them: to a worker as a file descriptor, to a file as bytes."""
    import pickle

    twin = pickle.loads(pickle.dumps(SampleDataset(samples, epoch=3)))
    assert twin.samples.sha256 == samples.sha256
    again = pickle.loads(pickle.dumps(twin))
    for name, value in again.samples.read([5], epoch=3).items():
        np.testing.assert_array_equal(value, samples.read([5], epoch=3)[name])
    with pytest.raises(ValueError, match="read-only"):
        twin.samples._table.y[0] = 1


# ------------------------------------------------------------------------------------ bad input


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Samples]:
    found = tmp_path / "own.zarr"
    streams.write_store(found, shape=(64, 64), seed=1, **TINY)
    return found, plan(found, Window(size=32, dates=3), min_valid=0).take(np.arange(4).repeat(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_that_changes_while_it_streams_is_an_error(
    own: tuple[Path, Samples], workers: int
) -> None:
    path, samples = own
    one = loader(samples, 4, workers=workers, prefetch=1, timeout=60)
    batches = iter(one)
    want = {k: v for b in (next(batches), next(batches)) for k, v in by_id(b).items()}
    assert want
    streams.write_store(path, shape=(64, 64), seed=2, force=True, **TINY)
    began = time.monotonic()
    with pytest.raises(CubeError, match=r"own\.zarr.*planned on.*cubes\.plan again"):
        for _ in batches:
            pass
    assert time.monotonic() - began < 30
    one.close()


def test_a_dataloader_of_ones_own(samples: Samples) -> None:
    """Shuffled by torch, two forkserver workers, collated by torch: the samples as we read them."""
    chosen = torch.Generator().manual_seed(1)
    theirs: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        SampleDataset(samples, epoch=3),
        batch_size=12,
        shuffle=True,
        generator=chosen,
        num_workers=2,
        multiprocessing_context="forkserver",
    )
    seen = []
    for batch in theirs:
        ids = batch["place"][:, 3].tolist()
        want = samples.read(ids, epoch=3)
        assert batch.keys() == want.keys()
        for name, value in batch.items():
            np.testing.assert_array_equal(value.numpy(), want[name])
        seen += ids
    assert sorted(seen) == list(range(64))
