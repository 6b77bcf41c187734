"""A run ends early where its sources are dead, and only there: what is healthy is written."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cubes.store import build, layout, run
from cubes.store import verbs as store
from cubes.store.layout import Region
from cubes.types import AssetReadError, Layout, Plan, Report

_spec = importlib.util.spec_from_file_location(
    "store_plans", Path(__file__).with_name("store_plans.py")
)
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

LAYOUT: Layout = small.LAYOUT
EACH, ALL = 27, 63
"""Regions of one patch: three blocks of steps at nine places of s1 and of s2, nine of terrain."""

Bad = Callable[[Any, int, Any], bool]


@pytest.fixture(autouse=True)
def regions_of_one_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(layout, "STEP_BYTES", 1)


def _failing(monkeypatch: pytest.MonkeyPatch, bad: Bad) -> None:
    real = build._read_block

    def read(array: Any, step: int, geobox: Any, plan: Plan) -> Any:
        if bad(array, step, geobox):
            raise AssetReadError(f"item-{step}", array.layer.name, reason="403")
        return real(array, step, geobox, plan)

    monkeypatch.setattr(build, "_read_block", read)


def test_one_bad_block_of_dates_does_not_starve_the_others(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, lambda array, step, _: array.layer.group != "terrain" and step < 2)
    report = store.write(small.plan(archive), tmp_path / "a.zarr", layout=LAYOUT)
    assert report.state == "partial"
    assert (report.written, len(report.failed), report.untried) == (ALL - 18, 18, 0)
    assert {name.split(".")[2] for name in report.failed} == {"0"}
    assert "not tried" not in str(report)


def test_one_bad_tile_does_not_starve_the_others(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = 600000 + 64 * 10
    _failing(monkeypatch, lambda *args: args[2].extent.centroid.coords[0][0] < edge)
    report = store.write(small.plan(archive), tmp_path / "a.zarr", layout=LAYOUT)
    assert (report.written, len(report.failed), report.untried) == (ALL - 21, 21, 0)


def test_a_dead_group_is_given_up_and_the_others_are_written(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, lambda array, *_: array.layer.group == "s2")
    report = store.write(small.plan(archive), tmp_path / "a.zarr", layout=LAYOUT)
    assert report.written == ALL - EACH
    assert run.HOPELESS <= len(report.failed) < EACH
    assert report.untried == EACH - len(report.failed) > 0
    assert f"{report.untried} not tried" in str(report)


def test_what_a_dead_source_left_is_counted(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, lambda *_: True)
    report = store.write(small.plan(archive), tmp_path / "a.zarr", layout=LAYOUT)
    assert report.written == 0
    assert report.untried == ALL - len(report.failed) >= ALL - run.HOPELESS - 2 * run.DRIVERS
    assert f"{report.untried} not tried" in str(report)
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", lambda _: None)
    again = store.write(small.plan(archive), tmp_path / "a.zarr", layout=LAYOUT)
    assert (again.state, again.written, again.untried) == ("sealed", ALL, 0)


def test_a_cluster_gives_up_too(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.Client(
        processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None
    ) as client:
        with pytest.MonkeyPatch.context() as patch:
            _failing(patch, lambda array, step, _: array.layer.group != "terrain" and step < 2)
            some = store.write(
                small.plan(archive), tmp_path / "some.zarr", layout=LAYOUT, client=client
            )
        assert (some.written, len(some.failed), some.untried) == (ALL - 18, 18, 0)
        _failing(monkeypatch, lambda *_: True)
        none = store.write(
            small.plan(archive), tmp_path / "none.zarr", layout=LAYOUT, client=client
        )
    assert run.HOPELESS <= len(none.failed) <= run.HOPELESS + 4
    assert none.untried == ALL - len(none.failed)


def _region(group: str, block: int, row: int, column: int) -> Region:
    return Region(
        group=group,
        dim="time",
        block=block,
        steps=(block, block + 1),
        rows=(row, row + 1),
        columns=(column, column + 1),
    )


def test_the_first_regions_lie_apart_in_time_and_space() -> None:
    def grid(group: str, blocks: int, edge: int) -> list[Region]:
        cells = range(edge)
        return [_region(group, b, r, c) for b in range(blocks) for r in cells for c in cells]

    first = run.apart(grid("s2", 40, 20))
    assert len(first) == len({r.block for r in first}) == run.HOPELESS
    assert len({(r.rows, r.columns) for r in first}) == run.HOPELESS
    assert max(r.block for r in first) - min(r.block for r in first) > 30
    assert len({r.rows for r in first}) > 2
    assert len({r.columns for r in first}) > 2
    assert first == run.apart(grid("s2", 40, 20))

    two = run.apart(grid("s1", 3, 3) + grid("s2", 3, 3))
    assert {r.group for r in two} == {"s1", "s2"}
    assert {r.block for r in two} == {0, 1, 2}
    assert len({(r.rows, r.columns) for r in two}) == run.HOPELESS
    assert len(run.apart(grid("s2", 30, 1))) == run.HOPELESS
    assert run.apart(grid("s2", 1, 1)) == grid("s2", 1, 1)
    assert run.apart([]) == []


def test_a_report_says_what_was_not_tried() -> None:
    report = Report(store="a.zarr", state="partial", failed={"s2.time.1.0.0": "403"}, untried=9)
    assert "9 not tried" in str(report)
    assert "run the same call again" in str(report)
