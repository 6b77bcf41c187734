"""The ledger: atomic files, records, tables, seal, lock, and the counts of valid pixels."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from cubes import registry
from cubes.store import ledger
from cubes.store.layout import (
    ArrayLayout,
    array_layout,
    array_layouts,
    cells,
    region_keys,
    regions,
    spans,
)
from cubes.store.ledger import Build, Record
from cubes.types import ArrayPlan, Axis, CubeError, Layout, Plan


def a_plan(size: int = 100, steps: int = 5) -> Plan:
    times = tuple(f"2021-01-0{1 + t}T00:00:00" for t in range(steps))
    return Plan(
        geobox=GeoBox((size, size), Affine(10, 0, 0, 0, -10, 0), "EPSG:32631"),
        axes=(Axis(group="s2", dim="time", coords={"time": times}),),
        arrays=(
            ArrayPlan(layer=registry.layer("s2/reflectance").pick(("B02", "B03")), steps=()),
            ArrayPlan(layer=registry.layer("s2/scl"), steps=()),
            ArrayPlan(layer=registry.layer("terrain/elevation"), steps=()),
        ),
    )


@pytest.fixture
def build(tmp_path: Path) -> Build:
    plan, layout = a_plan(), Layout(patch=32, steps=2)
    out = Build(
        store=tmp_path / "a.zarr",
        plan_sha256=plan.sha256,
        layout=layout,
        span={"s2.time": 2, "terrain.": 3},
        source="plan",
    )
    ledger.save_build(out, plan)
    return out


def a_record(build: Build, number: int = 0, seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    region = ledger.build_regions(build)[number]
    arrays = ledger.build_arrays(build)
    mine = [a for a in arrays.values() if a.layer.group == region.group]
    steps = region.steps[1] - region.steps[0]

    def counts(array: ArrayLayout) -> np.ndarray:
        parts = cells(array)
        shape = (steps, *parts.numbers[parts.of(region)].shape)
        return rng.integers(0, parts.edge**2 + 1, shape).astype(parts.dtype)

    return Record(
        region=region.id,
        plan_sha256=build.plan_sha256,
        objects={k: ("ab" * 32, 5) for a in mine for k in region_keys(a, region)[1:]},
        valid={a.name: counts(a) for a in mine},
        pixels_read=7,
    )


def test_regions_part_the_cube(build: Build) -> None:
    arrays = ledger.build_arrays(build)
    keys: list[str] = []
    for region in ledger.build_regions(build):
        for array in arrays.values():
            if (array.layer.group, array.layer.stack_dim or "") == (region.group, region.dim):
                keys += region_keys(array, region)
    # ceil(100/32) = 4 patches an edge, ceil(5/2) = 3 time shards, two S2 layers, one static
    assert len(keys) == len(set(keys)) == 4 * 4 * 3 * 2 + 4 * 4
    assert len({r.id for r in ledger.build_regions(build)}) == len(ledger.build_regions(build))


def test_a_region_is_as_large_as_one_step_may_be() -> None:
    arrays = array_layouts(a_plan(size=20480), Layout())
    span = spans(arrays)
    # two bands of uint16: 256 MiB hold 1,024 patches of 256 KiB; 80 patches make 3 regions of 27
    assert span["s2.time"] == 27
    assert len(list(regions(arrays, spans(arrays, slots=200)))) >= 200


@pytest.mark.parametrize("patches", [1, 4, 13, 15, 43, 80, 400])
def test_source_blocks_are_rarely_decoded_twice(patches: int) -> None:
    """With ten bands and blocks of 512 px on another lattice: at most 1.3 times on average."""
    edge = patches * 256
    layer = registry.layer("s2/reflectance")
    assert len(layer.channels) == 10
    plan = replace(a_plan(size=edge), arrays=(ArrayPlan(layer=layer, steps=()),))
    arrays = array_layouts(plan, Layout())
    span = spans(arrays)["s2.time"] * 256
    ratios = []
    for shift in range(0, 512, 16):
        touched = sum(
            (min(start + span, edge) - 1 + shift) // 512 - (start + shift) // 512 + 1
            for start in range(0, edge, span)
        )
        once = (edge - 1 + shift) // 512 - shift // 512 + 1
        ratios.append((touched / once) ** 2)
    assert np.mean(ratios) <= 1.3


def test_atomic_write_leaves_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x" / "a.json"
    ledger.write_atomic(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ledger.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_sweep_takes_only_half_written_files(build: Build) -> None:
    litter = build.store / "s2" / "scl" / "c" / ".0.1-ab.partial"
    litter.parent.mkdir(parents=True)
    litter.write_bytes(b"x")
    kept = litter.with_name("0")
    kept.write_bytes(b"y")
    assert ledger.sweep(build.store) == 1
    assert kept.exists()
    assert not litter.exists()


def test_records_and_sealed_table_say_the_same(build: Build) -> None:
    for number in range(len(ledger.build_regions(build))):
        ledger.save_record(build, a_record(build, number, seed=number))
    before = ledger.load_table(build)
    tree = ledger.seal(build, before)
    after = ledger.load_table(build)
    assert not list((build.folder / "regions").iterdir())
    assert after.done == before.done
    assert after.objects == before.objects
    assert tree == ledger.tree_sha256(dict(reversed(after.objects.items())))
    for name, counts in before.valid.items():
        np.testing.assert_array_equal(after.valid[name], counts)
        assert counts.any(), name
    seal = ledger.sealed(build)
    assert seal is not None
    assert seal["tree_sha256"] == tree
    with np.load(build.folder / "valid.npz") as saved:
        assert saved["s2/scl"].shape == (5, 16, 16)


def test_a_newer_record_takes_the_place_of_the_table(build: Build) -> None:
    for number in range(len(ledger.build_regions(build))):
        ledger.save_record(build, a_record(build, number))
    ledger.seal(build, ledger.load_table(build))
    new = a_record(build, 1, seed=99)
    key = next(iter(new.objects))
    ledger.save_record(build, new.__class__(**{**_fields(new), "objects": {key: ("cd" * 32, 6)}}))
    table = ledger.load_table(build)
    assert table.objects[key] == ("cd" * 32, 6)
    region = next(r for r in ledger.build_regions(build) if r.id == new.region)
    gone = [k for k in new.objects if k != key]
    assert gone
    assert not set(gone) & set(table.objects), "objects of the old record must go"
    place = cells(ledger.build_arrays(build)["s2/scl"]).of(region)
    got = table.valid["s2/scl"][slice(*region.steps), *place]
    np.testing.assert_array_equal(got, new.valid["s2/scl"])


def _fields(record: Record) -> dict[str, Any]:
    return {n: getattr(record, n) for n in Record.__dataclass_fields__}


@pytest.mark.parametrize("torn", ["", "{", '{"region": "s2.time.0.0.0"}', "[1]"])
def test_a_torn_record_counts_as_not_done(build: Build, torn: str) -> None:
    record = a_record(build)
    ledger.save_record(build, record)
    assert ledger.load_table(build).done == {record.region}
    (build.folder / "regions" / f"{record.region}.json").write_text(torn)
    assert ledger.load_table(build).done == set()


def test_a_record_of_another_plan_counts_as_not_done(build: Build) -> None:
    ledger.save_record(build, Record(**{**_fields(a_record(build)), "plan_sha256": "0" * 64}))
    assert ledger.load_table(build).done == set()


def test_fractions_know_ragged_edges(build: Build) -> None:
    arrays = ledger.build_arrays(build)
    parts = cells(arrays["s2/scl"])
    assert (parts.edge, parts.per_patch, parts.grid) == (8, (4, 4), (16, 16))
    assert parts.numbers.sum() == 100 * 100
    assert parts.numbers[0, 0] == 8 * 8
    assert parts.numbers[12, 12] == 4 * 4
    assert (parts.numbers[13:] == 0).all()
    by_id = {r.id: r for r in ledger.build_regions(build)}
    for number, region in enumerate(by_id.values()):
        full = {
            name: np.broadcast_to(parts.numbers[parts.of(region)], counts.shape).astype("uint16")
            for name, counts in a_record(build, number).valid.items()
        }
        if region.group == "s2" and region.block == 1:
            continue
        ledger.save_record(build, Record(**{**_fields(a_record(build, number)), "valid": full}))
    got = ledger.valid_fractions(build.store)
    assert got["s2/scl"].shape == (5, 4, 4)
    assert (got["s2/scl"][[0, 1, 4]] == 1).all()
    assert (got["s2/scl"][[2, 3]] == 0).all(), "not written is no data"
    assert list(ledger.valid_fractions(build.store, ["terrain/elevation"])) == ["terrain/elevation"]


def test_plan_comes_back_and_a_changed_one_is_noticed(build: Build) -> None:
    assert ledger.load_plan(build.store).sha256 == a_plan().sha256
    file = build.folder / "plan.json"
    text = file.read_text()
    ledger._plan_of.cache_clear()
    file.write_text(text.replace('"B03"', '"B04"'))
    with pytest.raises(CubeError, match=r"is not the plan .* force=True"):
        ledger.load_plan(build.store)


def test_refusals_name_the_remedy(build: Build, tmp_path: Path) -> None:
    with pytest.raises(CubeError, match=r"no store at .*cubes\.write"):
        ledger.load_build(tmp_path / "nothing")
    with pytest.raises(CubeError, match="not a cube written by"):
        ledger.load_build(tmp_path)
    with pytest.raises(CubeError, match="not a URL") as info:
        ledger.store_path("https://example.org/a.zarr?sig=SECRET")
    assert "SECRET" not in str(info.value)
    file = build.folder / "build.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 99}))
    with pytest.raises(CubeError, match=r"format 99.*upgrade"):
        ledger.load_build(build.store)


def _hold(path: str, ready: Any, go: Any) -> None:
    with ledger.lock(Path(path)):
        ready.set()
        go.wait(30)


def test_one_writer_at_a_time_and_a_dead_one_frees_the_store(build: Build) -> None:
    context = multiprocessing.get_context("spawn")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(build.store), ready, go))
    other.start()
    try:
        assert ready.wait(30)
        with (
            pytest.raises(CubeError, match=rf"being written by process {other.pid}"),
            ledger.lock(build.store),
        ):
            pass
    finally:
        other.kill()
        other.join(30)
    with (
        ledger.lock(build.store),
        pytest.raises(CubeError, match="being written"),
        ledger.lock(build.store),
    ):
        pass
    with ledger.lock(build.store):
        pass


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), channels=st.integers(1, 3),
    patch=st.sampled_from([16, 24, 32, 40]), seed=st.integers(0, 2**16),
    share=st.sampled_from([0, 0.5, 1]),
)  # fmt: skip
def test_cells_count_what_plain_counting_does(
    height: int, width: int, channels: int, patch: int, seed: int, share: float
) -> None:
    layer = registry.layer("s2/reflectance").pick(("B02", "B03", "B04")[:channels])
    array = array_layout(layer, 3, (height, width), Layout(patch=patch))
    parts = cells(array)
    assert parts.numbers.sum() == height * width * channels
    # windows find their cells by dividing by the edge, across patches too
    assert parts.grid == (parts.per_patch[0],) * 2 or array.patch[0] % parts.edge == 0
    rng = np.random.default_rng(seed)
    good = rng.random((channels, min(height, patch), min(width, patch))) < share
    got = parts.count(good)
    for row, column in np.ndindex(*got.shape):
        e = parts.edge
        piece = good[:, row * e : (row + 1) * e, column * e : (column + 1) * e]
        assert got[row, column] == piece.sum()


def test_cells_grow_with_the_cube() -> None:
    layer = registry.layer("s2/scl")
    edges = [
        cells(array_layout(layer, steps, (size, size), Layout())).edge
        for size, steps in ((66, 159), (1024, 1000), (10_980, 150))
    ]
    assert edges == [8, 16, 128]
