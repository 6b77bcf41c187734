"""Killed, stopped, out of disk, damaged, on a cluster: always the same bytes in the end."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import odc.geo.xr  # noqa: F401  registers the accessor
import pytest
import xarray as xr

from cubes.store import build, layout, ledger, run
from cubes.store import verbs as store
from cubes.types import AssetReadError, CubeError, Layout, Plan, Report

_spec = importlib.util.spec_from_file_location(
    "store_plans", Path(__file__).with_name("store_plans.py")
)
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

# On a busy machine making a folder takes distributed more than a second, of which it warns.
pytestmark = pytest.mark.filterwarnings("ignore:Creating scratch directories:UserWarning")

LAYOUT: Layout = small.LAYOUT
files, litter, child_of_ours = small.files, small.litter, small.child_of_ours


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Leave out fsync, 6 ms each and 230 a cube, here: no test pulls the plug of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


# -------------------------------------------------------------------------- interrupted, run again


def test_a_second_write_touches_nothing(
    plan: Plan, whole: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, first = whole
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.name != "lock"}

    def never(*_: Any) -> Any:
        raise AssertionError("a pixel was read")

    monkeypatch.setattr(build, "_read_block", never)
    again = store.write(plan, path, layout=LAYOUT)
    assert (again.state, again.written, again.pixels_read, again.bytes_written) == (
        "sealed", 0, 0, 0,
    )  # fmt: skip
    assert again.reused == first.written
    assert again.tree_sha256 == first.tree_sha256
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.name != "lock"}
    assert "0 written, 7 reused" in str(again)


def test_a_second_write_needs_no_layout(plan: Plan, whole: tuple[Path, Report]) -> None:
    again = store.write(plan, whole[0])
    assert (again.state, again.written) == ("sealed", 0)


def test_ctrl_c_in_a_terminal(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "sigint.zarr"
    with subprocess.Popen(
        **child_of_ours(archive, path, 0.2), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        until = time.monotonic() + 120
        while not list(path.glob("__cubes__/regions/*.json")):
            assert child.poll() is None, child.stderr.read() if child.stderr else ""
            assert time.monotonic() < until
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, text = child.communicate(timeout=20)
    assert "KeyboardInterrupt" in text
    assert not litter(path)
    assert store.verify(path).state == "partial"


def test_killed_and_run_again_gives_the_same_bytes(
    plan: Plan, archive: Path, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    path = tmp_path / "killed.zarr"
    for wanted in (2, 4):
        with subprocess.Popen(
            **child_of_ours(archive, path, 0.15), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as child:
            until = time.monotonic() + 120
            while len(list(path.glob("__cubes__/regions/*.json"))) < wanted:
                assert child.poll() is None, child.stderr.read() if child.stderr else ""
                assert time.monotonic() < until
                time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
    done = len(list(path.glob("__cubes__/regions/*.json")))
    assert 4 <= done < 7
    with pytest.raises(CubeError, match=rf"{7 - done} of 7 regions are missing.*partial=True"):
        store.open(path)
    with pytest.raises(Exception, match=r"(?i)no group|not found|not a valid|unable"):
        xr.open_datatree(path, engine="zarr")  # no reader takes it for a whole cube
    report = store.write(plan, path, layout=LAYOUT)
    assert report.state == "sealed"
    assert report.reused == done, "finished regions are not redone"
    assert report.written == 7 - done
    assert report.tree_sha256 == whole[1].tree_sha256
    assert files(path) == files(whole[0])
    assert not litter(path)
    assert store.verify(path).state == "sealed"


def test_a_failed_region_is_named_and_the_rest_kept(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "failed.zarr"
    real_read = build._read_block

    def broken(array: Any, step: int, geobox: Any, p: Plan) -> Any:
        if array.layer.name == "s2/scl" and step == 3:
            raise AssetReadError("item-3", "SCL", reason="503", attempts=4)
        return real_read(array, step, geobox, p)

    monkeypatch.setattr(build, "_read_block", broken)
    report = store.write(plan, path, layout=LAYOUT)
    assert report.state == "partial"
    assert list(report.failed) == ["s2.time.1.0.0"]
    assert "item 'item-3', asset 'SCL'" in report.failed["s2.time.1.0.0"]
    assert (report.written, report.tree_sha256) == (6, None)
    assert not litter(path)
    assert store.verify(path).state == "partial"
    with pytest.raises(CubeError, match="1 of 7 regions are missing"):
        store.open(path)
    part = store.open(path, partial=True)
    assert part.attrs["missing_regions"] == 1
    got = part["s2"].reflectance
    assert got[[2, 3]].isnull().all()
    assert got[[0, 1, 4]].notnull().any()
    assert not part["s2"].clear[[2, 3]].any()
    np.testing.assert_array_equal(
        ledger.valid_fractions(path)["s2/scl"][:, 0, 0] > 0, [True, True, False, False, True]
    )
    monkeypatch.setattr(build, "_read_block", real_read)
    report = store.write(plan, path, layout=LAYOUT)
    assert (report.written, report.reused) == (1, 6)
    assert report.tree_sha256 == whole[1].tree_sha256


def test_a_dead_source_ends_the_run_early(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(array: Any, step: int, *_: Any) -> Any:
        raise AssetReadError(f"item-{step}", array.layer.name, reason="403")

    monkeypatch.setattr(build, "_read_block", dead)
    monkeypatch.setattr(layout, "STEP_BYTES", 1)
    report = store.write(small.plan(archive), tmp_path / "dead.zarr", layout=LAYOUT)
    assert report.state == "partial"
    assert 8 <= len(report.failed) <= 8 + 4, "63 regions, but the first failures were enough"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_ctrl_c_and_bugs_end_the_run_cleanly(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "stopped.zarr"

    def stop(done: int, total: int, what: str) -> None:
        assert total == 5 + 5 + 1
        assert what
        if done >= 5:
            raise error

    with pytest.raises(error):
        store.write(plan, path, layout=LAYOUT, progress=stop)
    assert not litter(path)
    report = store.write(plan, path, layout=LAYOUT)
    assert report.tree_sha256 == whole[1].tree_sha256


def test_a_full_disk_is_named_and_the_store_stays_good(
    plan: Plan, archive: Path, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    path = tmp_path / "full.zarr"
    # RLIMIT_FSIZE: the largest shard does not fit, smaller ones do
    done = subprocess.run(
        **child_of_ours(archive, path, 0, "40000"), capture_output=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "while writing region" in done.stderr
    assert "run the same write again" in done.stderr
    assert not litter(path)
    assert store.verify(path).state == "partial"
    report = store.write(plan, path, layout=LAYOUT)
    assert report.tree_sha256 == whole[1].tree_sha256


def test_large_regions_wait_on_disk(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoded bytes over the limit go to the half-written files; the bytes are the same."""
    monkeypatch.setattr(build, "BUFFER_BYTES", 1000)
    report = store.write(plan, tmp_path / "a.zarr", layout=LAYOUT)
    assert report.tree_sha256 == whole[1].tree_sha256


def test_progress_counts_every_step(plan: Plan, tmp_path: Path, capsys: Any) -> None:
    seen: list[tuple[int, int]] = []
    store.write(
        plan, tmp_path / "a.zarr", layout=LAYOUT, progress=lambda d, t, _w: seen.append((d, t))
    )
    assert [d for d, _ in seen] == list(range(1, 12))
    store.write(plan, tmp_path / "b.zarr", layout=LAYOUT, progress=True)
    assert "11/11 steps" in capsys.readouterr().err


# -------------------------------------------------------------------------------- damage and repair


def test_damage_is_found_and_mended(plan: Plan, whole: tuple[Path, Report], tmp_path: Path) -> None:
    path = tmp_path / "damaged.zarr"
    store.write(plan, path, layout=LAYOUT)
    flipped, lost = path / "s2/reflectance/c/1/0/1/1", path / "s1/backscatter/c/2/0/0/2"
    stray, text = path / "s2/reflectance/c/0/0/0/0", path / "s2/scl/zarr.json"
    body = bytearray(flipped.read_bytes())
    body[len(body) // 3] ^= 4
    flipped.write_bytes(body)
    with pytest.raises(Exception, match=r"(?i)checksum|crc"):
        store.open(path)["s2"].reflectance[2:4].load()
    lost.unlink()
    stray.write_bytes(b"not one of ours")
    text.write_text(text.read_text().replace("uint8", "int8"))
    with pytest.raises(CubeError, match=r"lacks 1 objects .*s1/backscatter/c/2/0/0/2.*repair"):
        store.open(path)
    part = store.open(path, partial=True)
    assert part.attrs["missing_objects"] == 1
    assert part["s1"].backscatter[4, 0, :64, 128:].isnull().all()
    report = store.verify(path)
    assert report.state == "damaged"
    assert set(report.damaged) == {str(p.relative_to(path)) for p in (flipped, lost, stray, text)}
    assert "4 damaged" in str(report)
    quick = store.verify(path, quick=True)
    assert str(flipped.relative_to(path)) not in quick.damaged, "a flipped bit keeps its size"
    assert str(lost.relative_to(path)) in quick.damaged
    mended = store.repair(path)
    assert (mended.state, mended.written) == ("sealed", 3)
    assert set(mended.damaged) == set(report.damaged)
    assert mended.tree_sha256 == whole[1].tree_sha256
    assert files(path) == files(whole[0])
    assert store.repair(path).written == 0


def test_write_mends_what_is_lost(plan: Plan, whole: tuple[Path, Report], tmp_path: Path) -> None:
    path = tmp_path / "lost.zarr"
    store.write(plan, path, layout=LAYOUT)
    (path / "terrain/elevation/c/1/1").unlink()
    (path / "zarr.json").unlink()
    report = store.write(plan, path, layout=LAYOUT)
    assert (report.written, report.reused) == (1, 6)
    assert report.tree_sha256 == whole[1].tree_sha256
    assert files(path) == files(whole[0])


def test_a_catalogue_may_move_between_two_runs(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    """A server on another port is the same catalogue: what is written is kept, byte for byte."""
    first, moved = (
        replace(plan, attrs={**plan.attrs, "catalog_url": f"http://127.0.0.1:{port}"})
        for port in (8001, 8002)
    )
    path = tmp_path / "moved.zarr"
    begun = store.write(first, path, layout=LAYOUT)
    (path / "terrain/elevation/c/1/1").unlink()
    report = store.write(moved, path, layout=LAYOUT, force=True)
    assert (report.written, report.reused) == (1, 6)
    assert report.tree_sha256 == begun.tree_sha256
    elsewhere = replace(plan, attrs={**plan.attrs, "aoi": "elsewhere"})
    assert elsewhere.sha256 != plan.sha256 == replace(moved, attrs=plan.attrs).sha256


# -------------------------------------------------------------------------------------------- dask


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "60s"}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as running,
    ):
        yield running


def test_a_dask_cluster_writes_the_same_bytes(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, client: Any
) -> None:
    path, seen = tmp_path / "dask.zarr", []
    report = store.write(
        plan, path, layout=LAYOUT, client=client, progress=lambda d, _t, _w: seen.append(d)
    )
    assert report.tree_sha256 == whole[1].tree_sha256
    assert report.written == 7
    assert report.pixels_read == whole[1].pixels_read, "counted in the workers"
    assert seen[-1] == 11
    assert files(path) == files(whole[0])
    (path / "s2/scl/c/0/0/0").unlink()
    assert store.repair(path, client=client).tree_sha256 == whole[1].tree_sha256


HANGING = """
import time
from cubes.store import build
quick = build._read_block
def slow(*args):
    time.sleep(0.4)
    return quick(*args)
build._read_block = slow
"""


@pytest.mark.parametrize("leave", [0.0, 10.0])
def test_tasks_of_an_interrupted_writer_touch_nothing_more(
    plan: Plan, archive: Path, tmp_path: Path, client: Any, monkeypatch: pytest.MonkeyPatch,
    leave: float,
) -> None:  # fmt: skip
    """They outlive it: what they still read must not land in the cube of the next one."""
    monkeypatch.setattr(run, "LEAVE", leave, raising=False)
    path = tmp_path / "taken.zarr"
    client.run(exec, HANGING, {})

    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(plan, path, layout=LAYOUT, client=client, progress=interrupt)
    other: Plan = small.plan(archive, dilate=0)
    report = store.write(other, path, layout=LAYOUT, force=True)
    before = files(path)
    until = time.monotonic() + 20
    while any(client.processing().values()) or any(client.run(_busy).values()):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert files(path) == before
    assert store.verify(path).state == "sealed"
    assert store.verify(path).tree_sha256 == report.tree_sha256
    client.restart()


def _busy(dask_worker: Any) -> bool:
    return bool(dask_worker.state.executing_count) or any(
        thread.name.startswith("cubes-step") for thread in threading.enumerate()
    )


SLOW_READS = """
import time
from cubes.store import build
quick = build._read_block
def slow(*args):
    time.sleep(0.2)
    return quick(*args)
build._read_block = slow
"""


def test_a_killed_worker_costs_its_regions_only(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, client: Any
) -> None:
    path = tmp_path / "killed.zarr"
    client.run(exec, SLOW_READS, {})
    pids = client.run(os.getpid)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(store.write, plan, path, layout=LAYOUT, client=client)
        until = time.monotonic() + 120
        while len(list(path.glob("__cubes__/regions/*.json"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(next(iter(pids.values())), signal.SIGKILL)
        report = job.result(60)
    assert report.state == "sealed", report.failed
    assert report.tree_sha256 == whole[1].tree_sha256
    assert files(path) == files(whole[0]), "and no litter of the dead worker's"


def test_a_region_that_fails_on_dask_is_named(
    plan: Plan, archive: Path, tmp_path: Path, client: Any
) -> None:
    arrays = list(plan.arrays)
    gone = {"": (replace(arrays[4].steps[0][""][0], href=str(archive / "gone.tif")),)}
    arrays[4] = replace(arrays[4], steps=(gone,))
    broken = replace(plan, arrays=tuple(arrays))
    report = store.write(broken, tmp_path / "a.zarr", layout=LAYOUT, client=client)
    assert (report.state, report.written) == ("partial", 6)
    assert "item 'item-dem'" in report.failed["terrain.static.0.0.0"]


# ------------------------------------------------------------------------------------ what is empty


def test_an_empty_patch_has_no_object_and_is_done(whole: tuple[Path, Report]) -> None:
    path = whole[0]
    assert not (path / "s2/reflectance/c/0/0/0/0").exists()
    assert (path / "s2/reflectance/c/0/0/0/1").exists()
    fractions = ledger.valid_fractions(path)
    assert (fractions["s2/reflectance"][:, 0, 0] == 0).all()
    assert (fractions["s2/reflectance"][:, 2, 2] == 1).all()
    assert store.verify(path).state == "sealed"


def test_fractions_are_those_of_the_pixels(whole: tuple[Path, Report]) -> None:
    path, fractions = whole[0], ledger.valid_fractions(whole[0])
    tree = store.open(path, chunks=None)
    for name, good in {
        "s1/backscatter": tree["s1"].backscatter.notnull().mean("pol"),
        "s2/scl": tree["s2"].scl != 0,
        "s2/clear": tree["s2"].clear,
    }.items():
        for row, column in ((0, 0), (1, 2), (2, 2)):
            part = good[:, row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
            want = part.mean(("y", "x"))
            np.testing.assert_allclose(fractions[name][:, row, column], want, atol=1.1 / (32 * 32))
