"""One cube in place of another, killed at any moment; an interrupted one finished as planned."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zarr

import cubes
from cubes.store import build, ledger
from cubes.store import verbs as store
from cubes.types import AssetReadError, CubeError, Layout, Plan, Report

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


@pytest.fixture
def other(archive: Path) -> Plan:
    """Return the plan of another cube: with one step less."""
    out: Plan = small.plan(archive, steps=4)
    return out


def _breaking(monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], None]:
    """Let reads of one step fail; return what mends the source."""
    real = build._read_block

    def broken(array: Any, number: int, geobox: Any, plan: Plan) -> Any:
        if number == step:
            raise AssetReadError(f"item-{number}", array.layer.name, reason="HTTP 503", attempts=4)
        return real(array, number, geobox, plan)

    monkeypatch.setattr(build, "_read_block", broken)
    return lambda: monkeypatch.setattr(build, "_read_block", real)


# -------------------------------------------------------------------------------------- replacing


def test_a_failing_source_leaves_the_old_cube(
    plan: Plan, other: Plan, whole: tuple[Path, Report], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    mend = _breaking(monkeypatch, 3)
    report = store.write(other, path, layout=LAYOUT, force=True)
    assert report.state == "partial"
    assert report.store == str(path) + ".new"
    assert "HTTP 503" in str(report)
    assert files(path) == files(whole[0])
    assert store.verify(path).state == "sealed"
    assert store.open(path)["s1"].sizes["time"] == 5
    again = store.write(plan, path, layout=LAYOUT)
    assert (again.state, again.written) == ("sealed", 0), "the old one is still written like any"
    mend()
    report = store.write(other, path, layout=LAYOUT, force=True)
    assert (report.state, report.store) == ("sealed", str(path))
    assert report.reused > 0, "what was read is kept"
    assert store.open(path)["s1"].sizes["time"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"]


def test_readers_of_the_old_cube_see_the_old_or_an_error(
    plan: Plan, other: Plan, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    before = store.open(path)
    seen: list[int] = []

    def look(done: int, total: int, what: str) -> None:
        seen.append(store.open(path)["s1"].sizes["time"])

    store.write(other, path, layout=LAYOUT, force=True, progress=look)
    assert set(seen) == {5}, "until it is whole"
    with pytest.raises(CubeError, match="written anew since it was opened"):
        before["s1"].backscatter[0].load()
    assert store.open(path)["s1"].backscatter[0].load().notnull().any()


@pytest.mark.parametrize("fails", [False, True])
def test_a_cube_replaced_during_a_read_is_said(
    plan: Plan, other: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    before = store.open(path, chunks=None)
    real = zarr.open_array

    def late(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(zarr, "open_array", real)
        store.write(other, path, layout=LAYOUT, force=True)
        if fails:
            raise FileNotFoundError("zarr.json")
        return real(*args, **options)

    monkeypatch.setattr(zarr, "open_array", late)
    with pytest.raises(CubeError, match="written anew since it was opened"):
        before["s1"].backscatter[0].load()
    assert store.open(path)["s1"].backscatter[0].load().notnull().any()


def test_a_failed_read_of_the_same_cube_stays_what_it_is(
    whole: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = store.open(whole[0], chunks=None)

    def broken(*_: Any, **__: Any) -> Any:
        raise PermissionError("zarr.json")

    monkeypatch.setattr(zarr, "open_array", broken)
    with pytest.raises(PermissionError):
        tree["s1"].backscatter[0].load()


def test_a_reader_does_not_mind_a_repair(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    before = store.open(path)
    (path / "s2/scl/c/0/0/0").unlink()
    assert store.repair(path).written == 1
    assert (before["s2"].scl[0, :64, :64] > 0).any()


def test_no_room_beside_is_said(plan: Plan, other: Plan, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    (tmp_path / "a.zarr.new").mkdir()
    (tmp_path / "a.zarr.new" / "thesis.txt").write_text("years of work")
    with pytest.raises(CubeError, match=r"a\.zarr\.new exists and is not a cube.*left alone"):
        store.write(other, path, layout=LAYOUT, force=True)
    assert (tmp_path / "a.zarr.new" / "thesis.txt").exists()
    (tmp_path / "a.zarr.new").rename(tmp_path / "a.zarr.old")
    monkeypatch.setattr(build, "_read_block", None)
    with pytest.raises(CubeError, match=r"a\.zarr\.old stands where"):
        store.write(other, path, layout=LAYOUT, force=True)
    assert not (tmp_path / "a.zarr.new").exists()
    assert store.verify(path).state == "sealed"


KILLED = """
import os, sys
sys.path.insert(0, {here!r})
import store_plans as small
from pathlib import Path
from cubes.store import disk, swap, verbs
os.fsync = lambda _: None
left = int({step})
def dying(real):
    def call(*args):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return real(*args)
    return call
def switch(path, real=swap.switch):
    # every step of the switch, from its mark to the last removal, may be the last
    if {fallback}:
        swap.exchange = lambda one, other: False
    disk.write_atomic = dying(disk.write_atomic)
    swap.exchange = dying(swap.exchange)
    Path.rename = dying(Path.rename)
    swap.shutil.rmtree = dying(swap.shutil.rmtree)
    real(path)
swap.switch = switch
verbs.write(small.plan(Path({archive!r}), steps=4), {path!r}, layout=small.LAYOUT, force=True)
"""


@pytest.fixture(scope="module")
def both(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], ...]:
    """Return the objects of the old and of the new cube."""
    folder = tmp_path_factory.mktemp("both")
    for name, steps in (("old", 5), ("new", 4)):
        store.write(small.plan(archive, steps=steps), folder / name, layout=LAYOUT)
    return files(folder / "old"), files(folder / "new")


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 6])
def test_killed_at_the_switch(
    plan: Plan, other: Plan, archive: Path, tmp_path: Path, both: tuple[dict[str, bytes], ...],
    step: int, *, fallback: bool,
) -> None:  # fmt: skip
    """Whenever it dies, one whole cube is there, and the same call ends what it began."""
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    code = KILLED.format(
        here=str(Path(__file__).parent), step=step, fallback=fallback, archive=str(archive),
        path=str(path),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    if path.exists():
        assert files(path) in both
        assert store.verify(path).state == "sealed"
    else:
        with pytest.raises(CubeError, match=r"was being replaced.*cubes\.resume"):
            store.open(path)
        assert fallback
        assert files(tmp_path / "a.zarr.old") == both[0]
        assert files(tmp_path / "a.zarr.new") == both[1]
    report = store.write(other, path, layout=LAYOUT, force=True)
    assert (report.state, report.written, report.store) == ("sealed", 0, str(path))
    assert files(path) == both[1]
    assert store.verify(path).state == "sealed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr"]


# ----------------------------------------------------------------------------------------- resume


def test_a_catalogue_that_grew_does_not_cost_the_work(
    plan: Plan, whole: tuple[Path, Report], archive: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "a.zarr"
    mend = _breaking(monkeypatch, 3)
    begun = store.write(plan, path, layout=LAYOUT)
    assert begun.state == "partial"
    mend()
    grown = replace(plan, attrs={**plan.attrs, "items": "one more"})
    with pytest.raises(CubeError, match=r"cubes\.resume\(store\) .*force=True") as error:
        store.write(grown, path, layout=LAYOUT)
    text = str(error.value)
    assert text.index("cubes.resume") < text.index("force=True")
    report = cubes.resume(path)
    assert (report.state, report.reused) == ("sealed", begun.written)
    assert report.tree_sha256 == whole[1].tree_sha256
    again = cubes.resume(path)
    assert (again.state, again.written, again.pixels_read) == ("sealed", 0, 0)


def test_resume_takes_nobody_at_a_stores_word(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cubes import grants

    path = tmp_path / "a.zarr"
    mend = _breaking(monkeypatch, 3)
    store.write(plan, path, layout=LAYOUT)
    mend()
    monkeypatch.setattr(grants, "_known", {})
    with pytest.raises(CubeError, match="own word"):
        cubes.resume(path)
    assert cubes.resume(path, access=plan.access).state == "sealed"


def test_resume_finishes_a_replacement(
    plan: Plan, other: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    mend = _breaking(monkeypatch, 3)
    assert store.write(other, path, layout=LAYOUT, force=True).state == "partial"
    assert cubes.resume(path).state == "partial"
    mend()
    report = cubes.resume(path)
    assert (report.state, report.store) == ("sealed", str(path))
    assert store.open(path)["s1"].sizes["time"] == 4
    assert not (tmp_path / "a.zarr.new").exists()


def test_what_resume_refuses(whole: tuple[Path, Report], tmp_path: Path) -> None:
    with pytest.raises(CubeError, match="no store at"):
        cubes.resume(tmp_path / "nothing.zarr")
    assert not (tmp_path / "nothing.zarr").exists()
    tree = store.open(whole[0], chunks=None).load()
    store.write(tree, tmp_path / "own.zarr", layout=LAYOUT)
    assert cubes.resume(tmp_path / "own.zarr").state == "sealed"
    (tmp_path / "own.zarr/s2/scl/c/0/0/0").unlink()
    with pytest.raises(CubeError, match=r"cubes\.write\(tree, store\)"):
        cubes.resume(tmp_path / "own.zarr")
    with ledger.lock(tmp_path / "own.zarr"), pytest.raises(CubeError, match="being written"):
        cubes.resume(tmp_path / "own.zarr")
