"""What the packages export: sorted, importable, documented, and callable under the verb's name."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

PACKAGES = ["cubes", "cubes.worlds", "deepsentinel"]


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted(package: str) -> None:
    names = importlib.import_module(package).__all__
    assert names == sorted(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_importable_and_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        value = getattr(module, name)
        assert not isinstance(value, ModuleType), f"{package}.{name} is a module, not a name of it"
        if callable(value):
            assert (value.__doc__ or "").strip(), f"{package}.{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_dir_lists_all(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) <= set(dir(module))


def test_unknown_names_are_attribute_errors() -> None:
    module = importlib.import_module("deepsentinel")
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        _ = module.tarin


@pytest.mark.parametrize("package", ["cubes", "deepsentinel"])  # those that import lazily
def test_no_module_can_take_the_place_of_a_verb(package: str) -> None:
    """Importing a module binds its name in its package: a verb of that name would be gone."""
    module = importlib.import_module(package)
    assert module.__file__ is not None
    folder = Path(module.__file__).parent
    taken = [n for n in module.__all__ if (folder / n).is_dir() or (folder / f"{n}.py").exists()]
    assert not taken, f"{taken} are verbs of {package} and modules in it: rename the modules"
