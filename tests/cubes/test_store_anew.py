"""Damaged plans and ledgers built anew with force=True; what is and is not a cut switch."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import cubes
from cubes.store import begin, disk, ledger, swap
from cubes.store import verbs as store
from cubes.types import CubeError, Layout, Plan, Report

_spec = importlib.util.spec_from_file_location(
    "store_plans", Path(__file__).with_name("store_plans.py")
)
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

LAYOUT: Layout = small.LAYOUT
files = small.files


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def _other_span(folder: Path) -> None:
    file = folder / "build.json"
    body = json.loads(file.read_text())
    body["span"] = {k: v + 3 for k, v in body["span"].items()}
    file.write_text(json.dumps(body))


def _other_plan(folder: Path) -> None:
    file = folder / "plan.json"
    text = file.read_text()
    assert "32631" in text
    file.write_text(text.replace("32631", "32632"))


def _torn(name: str) -> Callable[[Path], None]:
    def tear(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[:40])

    return tear


def _no_plan(folder: Path) -> None:
    (folder / "plan.json").unlink()


@pytest.mark.parametrize(
    "hurt",
    [
        _other_span,
        _other_plan,
        _no_plan,
        _torn("plan.json"),
        _torn("build.json"),
        _torn("sealed.json"),
    ],
    ids=["span", "plan", "no plan", "torn plan", "torn build", "torn seal"],
)
def test_force_builds_anew_what_contradicts_itself(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, hurt: Callable[[Path], None]
) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    hurt(path / ledger.FOLDER)
    ledger._plan_of.cache_clear()  # as in another process
    for verb in (store.open, store.repair, lambda at: store.write(plan, at, layout=LAYOUT)):
        with pytest.raises(CubeError, match="force=True"):
            verb(path)
    seen = []

    def look(done: int, total: int, what: str) -> None:
        seen.append(swap.beside(path).exists())

    report = store.write(plan, path, layout=LAYOUT, force=True, progress=look)
    assert (report.state, report.written, report.store) == ("sealed", 7, str(path))
    assert all(seen), "the old one stays until the new one is whole"
    assert report.tree_sha256 == whole[1].tree_sha256
    assert files(path) == files(whole[0])
    assert store.verify(path).state == "sealed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"]


def test_force_mends_a_table_too(plan: Plan, whole: tuple[Path, Report], tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    _torn("table.npz")(path / ledger.FOLDER)
    with pytest.raises(CubeError, match=r"cubes\.repair"):
        store.open(path)
    report = store.write(plan, path, layout=LAYOUT, force=True)
    assert (report.state, report.tree_sha256) == ("sealed", whole[1].tree_sha256)


def test_force_leaves_what_is_sound(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    report = store.write(plan, path, layout=LAYOUT, force=True)
    assert (report.state, report.written, report.pixels_read) == ("sealed", 0, 0)


def test_a_folder_of_ones_own_is_no_cut_switch(tmp_path: Path) -> None:
    (tmp_path / "a.zarr.old").mkdir()
    for verb in (cubes.open, cubes.resume, store.repair):
        with pytest.raises(CubeError, match="no store at"):
            verb(tmp_path / "a.zarr")
    (tmp_path / "a.zarr.old" / ledger.FOLDER).mkdir()
    (tmp_path / "a.zarr.old" / ledger.FOLDER / disk.MARK).touch()
    with pytest.raises(CubeError, match=r"was being replaced.*cubes\.resume"):
        cubes.open(tmp_path / "a.zarr")


def test_repair_mends_the_cube_that_it_locked(
    plan: Plan, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process replaces the cube between the call and its lock."""
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    other = small.plan(archive, steps=4)
    real = begin.writing

    @contextmanager
    def late(at: Path) -> Iterator[None]:
        monkeypatch.setattr(begin, "writing", real)
        store.write(other, path, layout=LAYOUT, force=True)
        (path / "s2/scl/c/0/0/0").unlink()
        with real(at):
            yield

    monkeypatch.setattr(begin, "writing", late)
    report = store.repair(path)
    assert (report.state, report.written) == ("sealed", 1)
    assert store.verify(path).state == "sealed"
    assert store.open(path)["s1"].sizes["time"] == 4
