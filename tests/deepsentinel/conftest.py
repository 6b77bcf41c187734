"""Small cubes with known answers, written once."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _beside(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def land() -> ModuleType:
    """Return the helper that makes landscapes."""
    return _beside("landscape")


@pytest.fixture(scope="session")
def fields(tmp_path_factory: pytest.TempPathFactory, land: ModuleType) -> dict[str, Path]:
    """Return the stores of two landscapes: train and test."""
    folder = tmp_path_factory.mktemp("landscapes")
    return {
        role: land.write(folder / f"{role}.zarr", seed=seed)
        for role, seed in (("train", 1), ("test", 2))
    }
