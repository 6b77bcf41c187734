"""Cubes on disk: values, bytes, resume after kill -9, damage and repair, refusals, own data."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import odc.geo.xr  # noqa: F401  registers the accessor
import pytest
import xarray as xr
import zarr

from cubes import build, cube, layout, ledger, metadata, registry, shards, store
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
GROUPS = ("s1", "s2", "terrain")


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Leave out fsync, 6 ms each and 230 a cube, here: no test pulls the plug of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = small.sources(tmp_path_factory.mktemp("archive"))
    return folder


@pytest.fixture(scope="module")
def plan(archive: Path) -> Plan:
    out: Plan = small.plan(archive)
    return out


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Return an undisturbed cube, which tests must leave as it is, and its report."""
    path = tmp_path_factory.mktemp("whole") / "a.zarr"
    return path, store.write(plan, path, layout=LAYOUT)


def files(path: Path) -> dict[str, bytes]:
    """Return every object of a store that is not its ledger."""
    return {
        str(p.relative_to(path)): p.read_bytes()
        for p in sorted(path.rglob("*"))
        if p.is_file() and ledger.FOLDER not in p.parts
    }


def child_of_ours(archive: Path, path: Path, wait: float, *more: str) -> dict[str, Any]:
    """Return the arguments that start the process which writes the archive's cube, slowly."""
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH")
    return {
        "args": [sys.executable, small.__file__, str(archive), str(path), str(wait), *more],
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, [before])])},
        "text": True,
    }


def litter(path: Path) -> list[Path]:
    return list(path.rglob("*.partial"))


# --------------------------------------------------------------------------------------- values


def test_stored_integers_are_the_sources(whole: tuple[Path, Report], archive: Path) -> None:
    path, report = whole
    assert report.state == "sealed"
    root = zarr.open_group(path, mode="r")
    for t in range(small.STEPS):
        for number, band in enumerate(small.BANDS):
            got = root["s2/reflectance"][t, number]
            np.testing.assert_array_equal(got, small.pixels(archive, f"{t}_{band}"))
        for number, pol in enumerate(("vv", "vh")):
            power = small.pixels(archive, f"{t}_{pol}").astype(np.float64)
            want = np.rint(1000 * np.log10(np.where(power > 0, power, 1)))
            got = root["s1/backscatter"][t, number]
            np.testing.assert_array_equal(got == -32768, np.isnan(power))
            off = np.abs(got - want)[~np.isnan(power)]
            # log10 in float32 may fall on the other side of a half
            assert off.max() <= 1
            assert (off == 0).mean() > 0.999
    np.testing.assert_array_equal(root["terrain/elevation"][:], small.pixels(archive, "dem"))


def test_opened_is_the_lazy_cube(whole: tuple[Path, Report], plan: Plan) -> None:
    got, want = store.open(whole[0]), cube.open_plan(plan)
    assert list(got.children) == list(want.children)
    for group in GROUPS:
        a, b = got[group].to_dataset().load(), want[group].to_dataset().load()
        if group == "s1":  # stored in steps of 0.01 dB
            np.testing.assert_allclose(a.backscatter, b.backscatter, atol=0.00501)
            b["backscatter"] = b.backscatter.copy(data=a.backscatter.data)
        xr.testing.assert_identical(a, b)
    assert got.attrs == want.attrs
    assert got["s2"].clear.dtype == bool
    assert got["s1"].backscatter.dtype == np.float32
    assert got["s2"].to_dataset().odc.geobox == plan.geobox


@pytest.mark.parametrize("chunks", [None, {"time": 1, "y": 50}])
def test_chunks_do_not_change_values(whole: tuple[Path, Report], chunks: Any) -> None:
    a, b = store.open(whole[0])["s2"], store.open(whole[0], chunks=chunks)["s2"]
    if chunks is None:
        assert b.reflectance.chunks is None
        assert not b.reflectance.variable._in_memory, "nothing is read before it is asked for"
    else:
        assert b.reflectance.chunks[0] == (1,) * small.STEPS
        assert b.reflectance.chunks[2] == (50, 50, 50, 10)
    pick = {"time": [4, 0], "y": slice(3, 150, 7), "x": 9}
    np.testing.assert_array_equal(a.reflectance.isel(pick), b.reflectance.isel(pick))
    np.testing.assert_array_equal(a.clear, b.clear)


def test_one_date_of_a_dask_cube_reads_one_step(
    whole: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cubes import opened

    seen: list[tuple[int, ...]] = []
    real_read = opened._Physical._read

    def read(self: Any, key: Any) -> Any:
        out = real_read(self, key)
        seen.append(out.shape)
        return out

    monkeypatch.setattr(opened._Physical, "_read", read)
    one = store.open(whole[0])["s2"].reflectance.isel(time=3).load()
    assert one.shape == (3, small.SIZE, small.SIZE)
    assert len(seen) == 9, "one read per patch"
    assert all(np.prod(s) <= 3 * 64 * 64 for s in seen), seen


def test_equal_names_for_an_equal_store(whole: tuple[Path, Report]) -> None:
    a, b = store.open(whole[0])["s2"].scl, store.open(whole[0])["s2"].scl
    assert a.data.name == b.data.name


def test_clear_does_not_depend_on_regions(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One patch per region, with a cloud's halo over its edges, gives the same bytes as one."""
    monkeypatch.setattr(layout, "STEP_BYTES", 1)
    report = store.write(plan, tmp_path / "b.zarr", layout=LAYOUT)
    assert report.written == 9 * (3 + 3) + 9 > whole[1].written
    assert report.tree_sha256 == whole[1].tree_sha256


# ---------------------------------------------------------------------------- other people's eyes


def test_plain_readers_see_the_cube_without_a_warning(
    whole: tuple[Path, Report], plan: Plan
) -> None:
    path = whole[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Use `@` matmul", PendingDeprecationWarning)
        tree = xr.open_datatree(path, engine="zarr")
        group = xr.open_zarr(path, group="s2")
        zarr.open_group(path, mode="r").tree()
    mine = store.open(path)
    assert set(tree.children) == set(GROUPS)
    for data in (group, tree["s2"].to_dataset()):
        np.testing.assert_allclose(data.reflectance, mine["s2"].reflectance, atol=1e-7)
        np.testing.assert_array_equal(data.clear, mine["s2"].clear)
        np.testing.assert_array_equal(data.scl, mine["s2"].scl)
        assert data.clear.dtype == bool
        assert data.scl.dtype == np.uint8
        assert data.time.dtype == "datetime64[ns]"
        np.testing.assert_array_equal(data.time, np.array(small.TIMES, "datetime64[ns]"))
        assert data["items"].to_numpy().tolist() == [f"item-{t}" for t in range(small.STEPS)]
        assert data.platform.to_numpy().tolist()[-2:] == ["sentinel-2a", ""]
        assert np.isnan(data.cloud_cover[-1])
        assert data.band.to_numpy().tolist() == list(small.BANDS)
        assert data.odc.geobox == plan.geobox
    np.testing.assert_allclose(
        tree["s1"].backscatter, mine["s1"].backscatter, atol=1e-4, equal_nan=True
    )
    attrs = dict(zarr.open_group(path, mode="r", path="s1").attrs)
    assert attrs["proj:code"] == "EPSG:32631"
    assert attrs["spatial:transform"] == [10, 0, 600000, 0, -10, 5000000]
    assert attrs["spatial:bbox"] == [600000, 4998400, 601600, 5000000]


def test_group_metadata_is_found_without_listing(whole: tuple[Path, Report]) -> None:
    """A server of files cannot list folders: every group carries its members' metadata."""
    body = json.loads((whole[0] / "s1" / "zarr.json").read_text())
    assert "backscatter" in body["consolidated_metadata"]["metadata"]
    body = json.loads((whole[0] / "zarr.json").read_text())
    assert "s2/clear" in body["consolidated_metadata"]["metadata"]


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("sharded", [True, False])
def test_bytes_are_zarr_pythons(
    plan: Plan, tmp_path: Path, codec: shards.Codec, *, sharded: bool
) -> None:
    """Our shards equal those that zarr-python writes from the same metadata and numbers."""
    ours, theirs = tmp_path / "ours.zarr", tmp_path / "theirs.zarr"
    store.write(plan, ours, layout=replace(LAYOUT, codec=codec, shards=sharded))
    compared = 0
    for name in ("s1/backscatter", "s2/reflectance", "s2/scl", "s2/clear", "terrain/elevation"):
        (theirs / name).mkdir(parents=True)
        (theirs / name / "zarr.json").write_bytes((ours / name / "zarr.json").read_bytes())
        numbers = zarr.open_array(ours, path=name, mode="r")[...]
        zarr.open_array(theirs, path=name, mode="r+")[...] = numbers
        assert files(theirs / name) == files(ours / name), name
        compared += len(files(theirs / name)) - 1
    # without shards one object per step; the first reflectance patch holds nothing
    want = 9 * 4 * (3 if sharded else 5) + 9 - (3 if sharded else 5)
    assert compared == want


def test_layouts_hold_the_same_values(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    want = store.open(whole[0])
    layouts = {
        "zstd": Layout(patch=64, steps=2, codec="zstd"),
        "plain": Layout(patch=64, shards=False),
        "one": Layout(patch=256, steps=None),
        "lossless": Layout(patch=64, steps=2, lossless=True),
    }
    for name, wanted in layouts.items():
        store.write(plan, tmp_path / name, layout=wanted)
        got = store.open(tmp_path / name)
        for group in ("s2", "terrain"):
            xr.testing.assert_identical(
                got[group].to_dataset().load(), want[group].to_dataset().load()
            )
    lossless = store.open(tmp_path / "lossless")["s1"].backscatter
    exact = cube.open_plan(plan)["s1"].backscatter
    np.testing.assert_array_equal(lossless, exact)
    assert lossless.attrs["units"] == "dB"
    raw = xr.open_zarr(tmp_path / "lossless", group="s1").backscatter
    assert raw.attrs["units"] == "1"
    assert raw.dtype == np.float32
    assert store.open(tmp_path / "one")["s2"].reflectance.chunks == ((5,), (3,), (160,), (160,))


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
        until = time.monotonic() + 40
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
            until = time.monotonic() + 40
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
    assert 8 <= len(report.failed) < 30, "63 regions, but the first failures were enough"


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


# -------------------------------------------------------------------------------- damage and repair


def test_damage_is_found_and_mended(plan: Plan, whole: tuple[Path, Report], tmp_path: Path) -> None:
    path = tmp_path / "damaged.zarr"
    store.write(plan, path, layout=LAYOUT)
    flipped, lost = path / "s2/reflectance/c/1/0/1/1", path / "s1/backscatter/c/2/0/0/2"
    stray, text = path / "s2/reflectance/c/0/0/0/0", path / "s2/scl/zarr.json"
    body = bytearray(flipped.read_bytes())
    body[len(body) // 3] ^= 4
    flipped.write_bytes(body)
    lost.unlink()
    stray.write_bytes(b"not one of ours")
    text.write_text(text.read_text().replace("uint8", "int8"))
    with pytest.raises(Exception, match=r"(?i)checksum|crc"):
        store.open(path)["s2"].reflectance[2:4].load()
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


# ---------------------------------------------------------------------------------------- refusals


def test_another_plan_or_layout_is_refused_with_what_differs(
    plan: Plan, archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    shorter: Plan = small.plan(archive, steps=4)
    cases = [
        (shorter, LAYOUT, "s1 has 5 steps along time, asked for 4"),
        (plan, replace(LAYOUT, codec="zstd"), "its layout is .* asked for"),
        (replace(plan, geobox=plan.geobox[:64, :64]), LAYOUT, "160 x 160 px .* asked for 64 x 64"),
        (
            replace(plan, arrays=plan.arrays[:1]),
            LAYOUT,
            "its layers are .*asked for s1/backscatter",
        ),
        (small.plan(archive, dilate=0), LAYOUT, "items, assets or options"),
    ]
    for other, wanted, message in cases:
        with pytest.raises(CubeError, match=message) as info:
            store.write(other, path, layout=wanted)
        assert "another path" in str(info.value)
        assert "force=True" in str(info.value)
    assert store.verify(path).state == "sealed", "a refusal changes nothing"
    report = store.write(shorter, path, layout=LAYOUT, force=True)
    assert report.state == "sealed"
    assert store.open(path)["s1"].sizes["time"] == 4
    assert store.verify(path).state == "sealed"
    assert not (path / "s1/backscatter/c/2").exists()


def test_what_is_not_ours_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(CubeError, match="left alone"):
            store.write(plan, other, force=force)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CubeError, match="is a file"):
        store.write(plan, file)
    with pytest.raises(CubeError, match="not a URL"):
        store.write(plan, "s3://bucket/a.zarr")
    with pytest.raises(CubeError, match="not a cube written by"):
        store.open(other)
    with pytest.raises(CubeError, match="cannot write a dict"):
        store.write({}, tmp_path / "b.zarr")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert store.write(plan, empty, layout=LAYOUT).state == "sealed", "an empty folder will do"


def test_a_newer_store_is_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    file = path / ledger.FOLDER / "build.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    for verb in (store.open, store.verify, store.repair, lambda p: store.write(plan, p)):
        with pytest.raises(CubeError, match="upgrade deepsentinel"):
            verb(path)


def test_a_second_writer_is_refused(plan: Plan, whole: tuple[Path, Report]) -> None:
    with ledger.lock(whole[0]):
        with pytest.raises(CubeError, match=rf"being written by process {os.getpid()}"):
            store.write(plan, whole[0], layout=LAYOUT)
        with pytest.raises(CubeError, match="being written"):
            store.repair(whole[0])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Layout(patch=8), "at least 16"),
        (Layout(steps=0), "1 or more"),
        (Layout(codec="gzip"), "lz4, zstd or none"),  # type: ignore[arg-type]
    ],
)
def test_impossible_layouts(plan: Plan, tmp_path: Path, wanted: Layout, message: str) -> None:
    with pytest.raises(CubeError, match=message):
        store.write(plan, tmp_path / "a.zarr", layout=wanted)
    assert not (tmp_path / "a.zarr").exists()


def test_a_derived_layer_needs_its_source(plan: Plan, tmp_path: Path) -> None:
    poor = replace(plan, arrays=tuple(a for a in plan.arrays if a.layer.name != "s2/scl"))
    report = store.write(poor, tmp_path / "a.zarr", layout=LAYOUT)
    assert report.state == "partial"
    assert "derived from 's2/scl', which the plan lacks" in next(iter(report.failed.values()))


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


SLOW_READS = """
import time
from cubes import build
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
        until = time.monotonic() + 40
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


# ------------------------------------------------------------------------------- your own DataTree


def in_memory(path: Path) -> xr.DataTree:
    return store.open(path, chunks=None).load()


@pytest.mark.parametrize("where", ["memory", "lazy", "odd chunks"])
def test_a_datatree_goes_back_to_the_same_bytes(
    whole: tuple[Path, Report], plan: Plan, tmp_path: Path, where: str
) -> None:
    """Physical values encode to the bytes that the plan's own build wrote, whatever the chunks."""
    path = tmp_path / "own.zarr"
    tree = {
        "memory": lambda: in_memory(whole[0]),
        "lazy": lambda: cube.open_plan(plan),
        "odd chunks": lambda: store.open(whole[0], chunks={"time": 3, "y": 100, "x": 70}),
    }[where]()
    report = store.write(tree, path, layout=LAYOUT)
    assert report.state == "sealed"
    pixels = {k: v for k, v in files(path).items() if "/c/" in k}
    assert pixels == {k: v for k, v in files(whole[0]).items() if "/c/" in k}
    again = store.write(tree, path, layout=LAYOUT)
    assert (again.written, again.pixels_read) == (0, 0)
    back, first = store.open(path), store.open(whole[0])
    for group in GROUPS:
        xr.testing.assert_identical(
            back[group].to_dataset().load(), first[group].to_dataset().load()
        )


def test_a_datatree_is_recognised_by_its_pixels(whole: tuple[Path, Report], tmp_path: Path) -> None:
    tree, path = in_memory(whole[0]), tmp_path / "own.zarr"
    store.write(tree, path, layout=LAYOUT)
    (path / "s2/scl/c/0/0/0").unlink()
    with pytest.raises(CubeError, match=r"repair\(store, source=tree\)"):
        store.repair(path)
    other = in_memory(whole[0])
    other["s2"].scl.data[0, 0, 0] += 1
    with pytest.raises(CubeError, match="its pixels come from other data"):
        store.write(other, path, layout=LAYOUT)
    with pytest.raises(CubeError, match="not the DataTree"):
        store.repair(path, source=other)
    assert store.repair(path, source=tree).state == "sealed"
    assert store.verify(path).state == "sealed"


def test_a_datatree_that_is_no_cube_is_refused(whole: tuple[Path, Report], tmp_path: Path) -> None:
    tree = in_memory(whole[0])
    bad = xr.DataTree.from_dict({"/s2": tree["s2"].to_dataset().rename(reflectance="rho")})
    with pytest.raises(CubeError, match="rho"):
        store.write(bad, tmp_path / "bad.zarr")
    assert not (tmp_path / "bad.zarr").exists()


def test_two_axes_of_a_group_may_share_a_name(tmp_path: Path, plan: Plan) -> None:
    """Times and tracks both know an orbit: the second coordinate says whose it is."""
    from cubes.types import Axis

    track = Axis(group="s1", dim="track", coords={"track": ("10A",), "orbit_state": ("ascending",)})
    two = replace(plan, axes=(plan.axes[0], track))
    coords = metadata.coordinates(two, "s1")
    assert coords["orbit_state"].dims == ("time",)
    assert coords["track_orbit_state"].dims == ("track",)
    assert registry.layer("s1/incidence").stack_dim == "track"


# ------------------------------------------------------------------------------------- every layer


def numbers(array: Any, step: int, geobox: Any, _: Plan) -> tuple[np.ndarray, int, int]:
    """Return working numbers of any layer with a tenth of nodata, a function of place and step."""
    layer = array.layer
    shape = (layer.n_channels, *geobox.shape)
    rng = np.random.default_rng([step, len(layer.name), int(geobox.affine.c + geobox.affine.f)])
    low, high = layer.valid_range
    if layer.convert == "power_to_db":
        out = rng.gamma(4.4, 0.02, shape)
    elif layer.convert == "identity":
        out = rng.uniform(low, high, shape)
    else:
        scale = layer.scale if layer.kind == "continuous" else 1
        out = np.rint((rng.uniform(low, high, shape) - layer.offset) / scale)
    if layer.work_nodata is not None:
        out[rng.random(shape) < 0.1] = layer.work_nodata
    return out.astype(layer.work_dtype), out.size, 0


def everything() -> Plan:
    """Return a plan with every layer of the registry, on every axis."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from cubes.types import ArrayPlan, Axis

    times = small.TIMES[:3]
    orbit: dict[str, tuple[Any, ...]] = {
        "relative_orbit": (132, 132, 139),
        "orbit_state": ("ascending", "ascending", "descending"),
    }
    axes = (
        Axis(group="s1", dim="time", coords={"time": times, "platform": ("s1a",) * 3, **orbit}),
        Axis(
            group="s1",
            dim="track",
            coords={
                "track": ("132A", "139D"),
                "relative_orbit": (132, 139),
                "orbit_state": ("ascending", "descending"),
            },
        ),
        Axis(
            group="insar",
            dim="pair",
            coords={
                "pair": ("a", "b"),
                "reference_time": (times[0], times[1]),
                "secondary_time": (times[1], None),
                "temporal_baseline": (12, 12),
                "perpendicular_baseline": (None, -40.5),
                "relative_orbit": (132, 132),
                "orbit_state": ("ascending", "ascending"),
            },
        ),
        Axis(group="s2", dim="time", coords={"time": times, "platform": ("s2a",) * 3}),
        Axis(group="labels", dim="year", coords={"year": (2020, 2021)}),
    )
    lengths = {(a.group, a.dim): len(a) for a in axes}
    arrays = []
    for layer in registry.layers().values():
        n = lengths.get((layer.group, layer.stack_dim or ""), 1)
        steps = () if layer.derived_from else ({},) * n
        attrs = {"calibration": "gamma0_rtc"} if layer.name == "s1/backscatter" else {}
        arrays.append(ArrayPlan(layer=layer, steps=steps, attrs=attrs))
    return Plan(
        geobox=GeoBox((70, 50), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32631"),
        axes=axes,
        arrays=tuple(sorted(arrays, key=lambda a: a.layer.derived_from is not None)),
        attrs={"aoi": "all"},
    )


def test_every_layer_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_read_block", numbers)
    wanted, path = everything(), tmp_path / "all.zarr"
    assert store.write(wanted, path, layout=Layout(patch=32, steps=2)).state == "sealed"
    tree = store.open(path).load()
    cube.check(tree)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_datatree(path, engine="zarr").load()
    for array in wanted.arrays:
        layer = array.layer
        got = tree[layer.name]
        assert got.dims == layer.dims
        assert got.dtype == {"mask": "bool", "class": layer.dtype}.get(layer.kind, "float32")
        if layer.kind != "mask":
            good = cube.valid(got)
            assert 0.85 < float(good.mean()) < 0.95, layer.name
            assert float(got.where(good).min()) >= layer.valid_range[0] - 1e-3
            assert float(got.where(good).max()) <= layer.valid_range[1] + 1e-3
        np.testing.assert_allclose(plain[layer.name], got, atol=1e-4, rtol=1e-6)
        share = ledger.valid_fractions(path, [layer.name])[layer.name]
        assert share.shape[1:] == (3, 2)
        assert share.max() <= 1
    insar = tree["insar"].to_dataset()
    assert insar.reference_time.dtype == "datetime64[ns]"
    assert np.isnat(insar.secondary_time[1])
    assert np.isnat(plain["insar"].secondary_time[1])
    assert np.isnan(insar.perpendicular_baseline[0])
    assert insar.temporal_baseline.dtype == np.int64
    s1 = tree["s1"].to_dataset()
    assert s1.relative_orbit.dims == ("time",)
    assert s1.track_relative_orbit.to_numpy().tolist() == [132, 139]
    assert tree["labels"].year.to_numpy().tolist() == [2020, 2021]


def test_names_that_are_paths_are_refused(plan: Plan, tmp_path: Path) -> None:
    evil = replace(plan.arrays[0].layer, name="../../outside/backscatter")
    bad = replace(plan, arrays=(replace(plan.arrays[0], layer=evil),))
    with pytest.raises(CubeError, match="is not group/variable"):
        store.write(bad, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
