"""Stages of a long job: reuse by hash, checks, and what a person sees."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from deepsentinel.demo.stages import (
    Console,
    Memory,
    Result,
    Stages,
    digest,
    environment,
    source_digest,
)


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def _stages(folder: Path, log: io.StringIO) -> Stages:
    return Stages(folder=folder, console=Console(log))


class Work:
    """A stage that writes a file and counts how often it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def __call__(self) -> tuple[Result, list[Path]]:
        self.runs += 1
        path = self.folder / "made.txt"
        path.write_text(f"run {self.runs}")
        return {"value": 7}, [path]


def test_a_finished_stage_is_reused(tmp_path: Path, log: io.StringIO) -> None:
    work = Work(tmp_path)
    assert _stages(tmp_path, log).run("one", "key", work) == {"value": 7}
    second = _stages(tmp_path, log)
    assert second.run("one", "key", work) == {"value": 7}
    assert work.runs == 1
    assert second.reused == ["one"]
    assert "reused" in log.getvalue()


def test_another_key_runs_it_again(tmp_path: Path, log: io.StringIO) -> None:
    work = Work(tmp_path)
    _stages(tmp_path, log).run("one", "key", work)
    _stages(tmp_path, log).run("one", "another key", work)
    assert work.runs == 2


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_output_is_made_again(tmp_path: Path, log: io.StringIO, damage: str) -> None:
    work = Work(tmp_path)
    _stages(tmp_path, log).run("one", "key", work)
    if damage == "gone":
        (tmp_path / "made.txt").unlink()
    else:
        (tmp_path / "made.txt").write_text("by someone else")
    _stages(tmp_path, log).run("one", "key", work)
    assert work.runs == 2


def test_a_failed_check_runs_it_again(tmp_path: Path, log: io.StringIO) -> None:
    work = Work(tmp_path)
    stages = _stages(tmp_path, log)
    stages.run("one", "key", work, check=lambda result: result["value"] == 7)
    stages.run("one", "key", work, check=lambda result: result["value"] == 7)
    assert work.runs == 1
    stages.run("one", "key", work, check=lambda result: result["value"] == 8)
    assert work.runs == 2
    assert "damaged" in log.getvalue()


def test_a_stage_that_fails_leaves_no_record(tmp_path: Path, log: io.StringIO) -> None:
    def fails() -> tuple[Result, list[Path]]:
        raise RuntimeError("half way")

    stages = _stages(tmp_path, log)
    with pytest.raises(RuntimeError, match="half way"):
        stages.run("one", "key", fails)
    assert not (tmp_path / "stages.json").exists()
    work = Work(tmp_path)
    _stages(tmp_path, log).run("one", "key", work)
    assert work.runs == 1


def test_unreadable_records_run_everything_again(tmp_path: Path, log: io.StringIO) -> None:
    (tmp_path / "stages.json").write_text('{"one": ')
    work = Work(tmp_path)
    _stages(tmp_path, log).run("one", "key", work)
    assert work.runs == 1
    assert "not readable" in log.getvalue()
    assert json.loads((tmp_path / "stages.json").read_text())["one"]["key"] == "key"


def test_digest_is_of_values_not_of_order() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": (2, 3), "a": 1})
    assert digest("a", "b") != digest("ab")


def test_source_digest_covers_packages_and_modules() -> None:
    one = source_digest(["cubes.types"])
    assert one == source_digest(["cubes.types"])
    assert one != source_digest(["cubes.types", "cubes.registry"])
    with pytest.raises(FileNotFoundError):
        source_digest(["cubes.no_such_module"])


def test_a_log_is_not_flooded(log: io.StringIO) -> None:
    report = Console(log, every=60.0).progress("stage")
    for done in range(1000):
        report(done, 1000, "x")
    assert len(log.getvalue().splitlines()) <= 1


def test_memory_sees_children() -> None:
    import subprocess
    import sys

    size = 200 * 2**20
    with Memory(every=0.05) as memory:
        subprocess.run(
            [sys.executable, "-c", f"import time; x = b'1' * {size}; time.sleep(0.5)"], check=True
        )
    assert memory.peak > size


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELD", "before")
    monkeypatch.delenv("GIVEN", raising=False)
    with environment({"GIVEN": "1"}):
        assert os.environ["GIVEN"] == "1"
        os.environ.update(HELD="changed", OMP_NUM_THREADS_OF_A_CLUSTER="1")
    assert os.environ["HELD"] == "before"
    assert not {"GIVEN", "OMP_NUM_THREADS_OF_A_CLUSTER"} & set(os.environ)
