"""A small archive, a plan over it and its cube, shared by the tests of the store."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from cubes.store import verbs as store
from cubes.types import Plan, Report

_spec = importlib.util.spec_from_file_location(
    "store_plans", Path(__file__).with_name("store_plans.py")
)
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = small.sources(tmp_path_factory.mktemp("archive"))
    return folder


@pytest.fixture(scope="session")
def plan(archive: Path) -> Plan:
    out: Plan = small.plan(archive)
    return out


@pytest.fixture(scope="session")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Return an undisturbed cube, which tests must leave as it is, and its report."""
    path = tmp_path_factory.mktemp("whole") / "a.zarr"
    return path, store.write(plan, path, layout=small.LAYOUT)
