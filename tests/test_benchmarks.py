"""The benchmarks themselves: every asv class runs, the rivals write what we write, the bars hold.

A bar that compares is measured as a ratio of runs taken in turns in one process, so that a slow or
busy machine slows both sides.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import pkgutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import benchmarks
from benchmarks import build, common, imports, mixing, stream, train
from benchmarks import open as opening
from benchmarks.race import __main__ as race_main
from benchmarks.race import arrays, field, formats, images, loading

ROOT = Path(__file__).resolve().parent.parent
PREFIXES = ("time_", "track_", "peakmem_", "mem_")


def modules() -> list[ModuleType]:
    names = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__))
    return [importlib.import_module(f"benchmarks.{name}") for name in names]


def methods(cls: type) -> list[str]:
    return [n for n in sorted(vars(cls)) if n.startswith(PREFIXES)]


def classes() -> list[type]:
    return [
        value
        for module in modules()
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and methods(value)
    ]


def combinations(bench: Any) -> Iterator[tuple[Any, ...]]:
    params = getattr(bench, "params", [])
    if not params:
        return iter([()])
    lists = params if isinstance(params[0], list | tuple) else [params]
    return itertools.product(*lists)


def sized(cls: type) -> Any:
    """Return an instance at its quick sizes; those keep every way, kind and mode."""
    small = type(cls.__name__, (cls,), dict(getattr(cls, "quick", {})))
    return small()


@pytest.mark.parametrize("cls", classes(), ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_class_runs(cls: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bench = sized(cls)
    cached = (bench.setup_cache(),) if hasattr(bench, "setup_cache") else ()
    ran = 0
    for params in combinations(bench):
        for name in methods(cls):
            arguments = (*cached, *params)
            if hasattr(bench, "setup"):
                bench.setup(*arguments)
            try:
                value = getattr(bench, name)(*arguments)
            finally:
                if hasattr(bench, "teardown"):
                    bench.teardown(*arguments)
            if name.startswith("track_"):
                assert isinstance(value, int | float), (name, params)
                assert value > 0, (name, params)
            ran += 1
    assert ran


def test_asv_finds_the_same_classes() -> None:
    from asv_runner.discovery import disc_benchmarks

    found = {b.name for b in disc_benchmarks(str(ROOT / "benchmarks"))}
    expected = {
        f"{c.__module__.removeprefix('benchmarks.')}.{c.__name__}.{m}"
        for c in classes()
        for m in methods(c)
    }
    assert expected <= found


def test_start_commands_run() -> None:
    assert {"import cubes", "deepsentinel --help"} <= set(imports.COMMANDS)


# ------------------------------------------------------------------------------------------ open


@pytest.mark.alone
def test_open_thousand_items_bar(figure: Any) -> None:
    """1,000 items x 12 bands under 2 s, at most one task per step, band and source block.

    Processor seconds of the one thread that works: on an idle machine they are the seconds. A
    1,024-px chunk of 512-px blocks is read by one task and made physical by another.
    """
    found = opening.items(1000)
    opening.run("ours", found[:2])
    spent = []
    for _ in range(3):
        began = time.process_time()
        cube = opening.run("ours", found)
        spent.append(time.process_time() - began)
    assert cube.shape == (1000, 12, opening.EDGE, opening.EDGE)
    chunks, opens = 1000 * 12, 1000 + 12
    assert opening.tasks(cube) <= 2 * chunks + opens
    assert opening.tasks(cube) <= chunks * (opening.EDGE // 512) ** 2
    figure("1,000 items x 12 bands to a lazy cube, processor s, best of 3", min(spent), "2")
    figure("its tasks", opening.tasks(cube), f"{chunks * (opening.EDGE // 512) ** 2}")
    assert min(spent) < 2.0, spent


def test_open_counts_grow_with_items_only() -> None:
    counts = [opening.tasks(opening.run("ours", opening.items(n))) for n in (5, 10, 20)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])


# ----------------------------------------------------------------------------------------- build


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("archives")


@pytest.mark.parametrize("kind", build.KINDS)
def test_rivals_write_the_same_zarr(kind: str, archives: Path, tmp_path: Path) -> None:
    archive = common.archive(archives, kind, edge=512, dates=2)
    wrote, layouts = {}, {}
    for way, call in build.ways(archive, **{"odc-stac": (512, 1)}).items():
        call(tmp_path / way)
        wrote[way] = build.stored(archive, way, tmp_path / way)
        layouts[way] = build.layout(archive, way, tmp_path / way)
    assert layouts["ours"] == layouts["odc-stac"] == layouts["stackstac"]
    assert wrote["ours"].dtype == np.dtype("int16" if kind == "radar" else "uint16")
    # Between zones GDAL's approximate transformer may take the neighbour of a pixel whose centre
    # lies on the line between two: a share of them, which is what is asked for here.
    least = 0.97 if kind == "zone" else 1.0
    for way in ("odc-stac", "stackstac"):
        assert build.same(archive, wrote["ours"], wrote[way]) >= least, way


ROUNDS = 7
"""Of everything that is compared, fixed beforehand: a bar that stops at the first round won, or
takes the best of several, is met by noise."""


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_build_bar(archives: Path, tmp_path: Path, figure: Any) -> None:
    """At least as fast as odc-stac, in either chunking, and stackstac: median of paired ratios."""
    archive = common.archive(archives, "optical", edge=1024, dates=4)
    for way, call in build.ways(archive).items():
        call(tmp_path / way)  # imports and page cache, for all of them
    spent = build.paired(archive, tmp_path, ROUNDS)
    times = {way: common.ratio(took, spent["ours"]) for way, took in spent.items()}
    del times["ours"]
    for way, ratio in times.items():
        figure(f"build: {way} / ours, median of {ROUNDS} pairs", ratio, ">= 1")
    assert min(times.values()) >= 1, (times, spent)


# ---------------------------------------------------------------------------------------- stream


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_stream_bars(tmp_path: Path, figure: Any) -> None:
    """At least 20 times xbatcher over dask, and half of what Blosc alone can do from memory.

    Both are medians of paired ratios: 21 rounds beside the codec (a fifth of a second each), 7
    beside xbatcher.
    """
    path = stream.store(tmp_path, edge=512, dates=64, size=256)
    where = stream.race(path, size=256, batch=4, rounds=1)
    ours, codec = stream.ours(where, 2), stream.codec(where, 2)
    documented = stream.xbatcher_documented(where)
    for call in (ours, codec, documented):
        with common.quiet():
            call()
    with common.quiet():
        fast = common.rounds({"ours": ours, "codec": codec}, 3 * ROUNDS)
        slow = common.rounds({"ours": ours, "documented": documented}, ROUNDS)
    of_limit = common.ratio(fast["codec"], fast["ours"])
    times = common.ratio(slow["documented"], slow["ours"])
    figure(f"stream: the codec alone / ours, median of {3 * ROUNDS} pairs", of_limit, ">= 0.5")
    figure(f"stream: xbatcher over dask / ours, median of {ROUNDS} pairs", times, ">= 20")
    assert of_limit >= 0.5, (of_limit, fast)
    assert times >= 20, (times, slow)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_stream_workers_bar(tmp_path: Path, figure: Any) -> None:
    """Two forkserver workers: 0.55 of what Blosc alone can do on two threads, 21 paired rounds.

    Beside it, without a bar, a user's own DataLoader over SampleDataset, collated by torch.
    """
    path = stream.store(tmp_path, edge=512, dates=64, size=256)
    where = stream.race(path, size=256, batch=4, rounds=4)
    calls = {
        "codec": stream.codec(where, 2),
        "workers": stream.ours(where, 2, 2),
        "plain": stream.plain_dataloader(where, 2),
    }
    with common.quiet():
        for call in (*calls.values(), *calls.values()):
            call()
        spent = common.rounds(calls, 3 * ROUNDS)
    of_limit = common.ratio(spent["codec"], spent["workers"])
    plain = common.ratio(spent["codec"], spent["plain"])
    figure(f"stream: codec / 2 workers, median of {3 * ROUNDS} pairs", of_limit, ">= 0.55")
    figure(f"stream: codec / a DataLoader of one's own, {3 * ROUNDS} pairs", plain, "none")
    assert of_limit >= 0.55, (of_limit, spent)


RACE = {
    "TIFF": lambda t, f: images.geotiff(t, f, "zstd", 0),
    "zarr-python": lambda t, f: arrays.zarr(t, f, "our store", stream.PYTHON, "slices"),
    "zarr-python, selection": lambda t, f: arrays.zarr(
        t, f, "uncompressed", stream.PYTHON, "selection"
    ),
    "zarrs, threads": lambda t, f: arrays.zarr(
        t, f, "without shards", stream.ZARRS, "slices, 2 threads"
    ),
    "mapped": lambda t, f: arrays.plain(t, f, arrays.PLAIN[0]),
    "read": lambda t, f: arrays.plain(t, f, arrays.PLAIN[1]),
    "files": lambda t, f: arrays.plain(t, f, arrays.PLAIN[2]),
    "memcpy": lambda t, _: arrays.memcpy(t),
}


@pytest.fixture(scope="module")
def track(tmp_path_factory: pytest.TempPathFactory) -> field.Course:
    folder = tmp_path_factory.mktemp("race")
    return field.course(stream.store(folder, edge=128, dates=16, size=64), size=64, samples=8)


@pytest.mark.parametrize("name", list(RACE))
def test_rivals_deliver_our_batches(name: str, track: field.Course, tmp_path: Path) -> None:
    field.check(RACE[name](track, tmp_path), track)


@pytest.mark.parametrize("layout", ["12 dates", "record per date", "record per date, Blosc"])
def test_records_hold_what_samples_need(layout: str, track: field.Course) -> None:
    found = dict(formats.records(track, layout))
    if layout.startswith("12"):
        for i, record in found.items():
            for name in track.pixels:
                assert np.array_equal(record[loading.key(name)], track.truth[name][i])
        return
    data = formats.pieces(track, lambda: found.__getitem__, layout)
    for i in range(len(data)):
        for name, value in data[i].items():
            equal = np.array_equal(value, track.truth[name][i], equal_nan=value.dtype.kind == "f")
            assert equal, (i, name)


def test_a_rival_that_delivers_something_else_is_found(track: field.Course) -> None:
    good = arrays.memcpy(track)
    for batch in good.start():
        first = {k: v.clone() for k, v in batch.items()}
        break
    first["s2/reflectance"].numpy()[0, 3, 2, 5, 7] += 1
    with pytest.raises(AssertionError, match="s2/reflectance"):
        field.check(dataclasses.replace(good, start=lambda: [first]), track)
    twice = dataclasses.replace(good, start=lambda: [*good.start(), *good.start()])
    with pytest.raises(AssertionError, match="memcpy"):
        field.check(twice, track)


def test_dates_differ_between_the_samples_of_a_patch(track: field.Course) -> None:
    same = [w for w in track.wanted if w.patch == 0]
    assert len(same) == 2
    assert same[0].steps["s2/reflectance"] != same[1].steps["s2/reflectance"]


def test_a_rival_that_is_absent_says_so(track: field.Course, tmp_path: Path) -> None:
    ways = [h for h in race_main.heats(track, tmp_path, quick=True) if h.name.startswith("litdata")]
    if importlib.util.find_spec("litdata"):
        pytest.fail("the project's environment must not have litdata: it would move torch")
    best, told = race_main.qualify(ways[0], track)
    assert best is None
    assert "No module named 'litdata'" in told[0][1]


def test_everyone_is_paired_with_ours(track: field.Course) -> None:
    ran: list[str] = []

    def rival(name: str, n: int) -> field.Rival:
        def start() -> list[Any]:
            ran.append(name)
            return []

        return dataclasses.replace(arrays.memcpy(track), name=name, n=n, start=start)

    found = race_main.turns([rival("ours", 8), rival("a", 4), rival("b", 2)], 2)
    assert ran == [
        "ours",
        "ours",
        "ours",
        "a",
        "ours",
        "b",
        "b",
        "ours",
        "a",
        "ours",
        "ours",
        "ours",
    ]
    assert [len(p.took) for p in found] == [len(p.ours) for p in found] == [2, 2, 2]


def test_race_needs_its_environment(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--make-env"):
        race_main.main(["--env", str(tmp_path / "none")])


def test_a_ratio_is_the_median_of_pairs() -> None:
    # one lucky round of ours, and one unlucky one of theirs, decide nothing
    assert common.ratio([1.0, 1.0, 9.0], [2.0, 0.1, 2.0]) == 4.5
    assert common.ratio([1.0, 1.0, 1.0], [2.0, 0.01, 2.0]) == 0.5


# ----------------------------------------------------------------------------------------- train


def test_resident_source_gives_one_batch(tmp_path: Path) -> None:
    from deepsentinel.training.sources import CubeSource, Source

    path = train.store(tmp_path, edge=64, dates=3)
    found = train.samples(path, size=32, dates=3)
    source = CubeSource(found, train.recipe("nano", batch=2), train.normaliser(found), learn=True)
    resident = train.Resident(source)
    assert isinstance(resident, Source)
    batches = [f.batch for _, f in zip(range(len(source) + 3), resident, strict=False)]
    assert all(b is batches[0] for b in batches)
    assert len(batches[0]) == 2


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(600)
def test_crops_bar(tmp_path: Path, figure: Any) -> None:
    """Random unaligned windows, four a decoded patch: their rate per decoded byte, beside aligned.

    Medians of 21 paired ratios. The aim is 0.8, and it is missed on two threads (here 0.72 to 0.77
    for a quarter of the patch's edge, 0.60 to 0.62 for a half, which delivers as many pixels as
    aligned windows and copies all of them once more); one thread has 0.87 to 0.89 and 0.71. What is
    held is that it does not get worse.
    """
    path = stream.store(tmp_path, edge=512, dates=64, size=256)
    where = stream.race(path, size=256, batch=4, rounds=1)
    calls = {"aligned": stream.ours(where, 2)}
    calls |= {f"1/{n}": stream.ours(stream.crops(where, n), 2) for n in (2, 4)}
    with common.quiet():
        for call in calls.values():
            call()
        spent = common.rounds(calls, 3 * ROUNDS)
    half, quarter = (common.ratio(spent["aligned"], spent[k]) for k in ("1/2", "1/4"))
    figure(
        "stream: 4 crops of half the edge, rate per decoded byte / aligned", half, ">= 0.4, aim 0.8"
    )
    figure(
        "stream: 4 crops of a quarter, rate per decoded byte / aligned", quarter, ">= 0.5, aim 0.8"
    )
    assert half >= 0.4, spent
    assert quarter >= 0.5, spent


# ---------------------------------------------------------------------------------------- mixing


def test_blocks_mix_and_fetch_each_shard_once(figure: Any) -> None:
    """Of 64 shards at a time: batch means within 15 % of independent ones, each shard read once.

    The plan is simulated and the orders are pure functions: the figures are always the same.
    """
    orders = mixing.orders([1, 64])
    blocks, full, bad = orders["blocks, mix=64"], orders["full"], orders["blocks, mix=1"]
    figure("64 shards mixed: noise of batch means, 1: independent", mixing.noise(blocks), "< 1.15")
    figure("64 shards mixed: fetches of a shard, cache of 80", mixing.fetched(blocks, 80), "1")
    figure("full shuffle: fetches of a shard, cache of 80", mixing.fetched(full, 80), "")
    assert mixing.noise(blocks) < 1.15
    assert mixing.fetched(blocks, 80) == 1
    assert mixing.noise(full) == pytest.approx(1, abs=0.03)
    assert mixing.fetched(full, 80) > 40, "what it is for"
    assert mixing.noise(bad) > 3, "and what it would cost without"
