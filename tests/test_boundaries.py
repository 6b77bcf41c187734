"""Who may import whom: the declared order, no torch under cubes, and what `import` costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Imports go only from later to earlier names: rooms one below the other, and the files of a room
# likewise. A folder stands as a whole, so no two folders can need each other. A new module must be
# given its place here; the inside of `worlds`, `sen12ts`, `registry`, `names` and `cli` is its own.
CUBES: dict[str, tuple[str, ...]] = {
    # nouns, rules and rows: no pixels, no network
    "errors": (),
    "rows": (),
    "windows": (),
    "types": (),
    "bounds": (),
    "reading": ("access", "resample", "opener", "read", "drivers"),
    "registry": (),
    "names": (),
    "grid": (),
    "times": (),
    "physics": (),
    "radar": ("look", "insar", "geometry", "tracks", "speckle", "regridding"),
    "optical": ("nbar", "composites"),
    "series": (),
    "runs": (),
    "zones": (),
    "places": (),
    "schema": (),
    "steps": (),
    "plans": (),
    "grants": (),
    # sources
    "worlds": (),
    "stac": ("items", "static", "remembered", "search", "arrays"),
    "cube": (),
    "joining": (),
    "request": (),
    "files": ("geotiff", "annotation", "hdf5", "laying", "placing", "cslc", "rtc"),
    # stores, and what is made of them
    "store": (
        "shards", "layout", "metadata", "disk", "ledger", "swap", "build", "run", "tree", "begin",
        "opened", "verbs",
    ),
    "sen12ts": (),
    "fields": ("vectors", "polygons", "writing", "extract"),
    "corpora": (
        "remote", "card", "stacdocs", "corpus", "publishing", "fetching",
        "recipes", "gathering", "foretelling",
    ),
    "sampling": (
        "pool", "cache", "inflight", "stored", "remote", "stream", "index", "draws", "tables",
        "calendar", "sampleset", "areas", "splits", "rules", "samples", "choosing", "stats",
        "withhold",
    ),
    "": (),
}  # fmt: skip
DEEPSENTINEL: dict[str, tuple[str, ...]] = {
    "model": (),
    "flops": (),
    "quantised": (),
    "loading": ("ring", "normalise", "workers", "batch", "contract"),
    "recipe": (),
    "training": (
        "heap",
        "augment",
        "objectives",
        "sources",
        "basis",
        "checkpoint",
        "folder",
        "train",
    ),
    "measuring": ("codec", "steps", "device", "bench"),
    "evaluation": (
        "metrics",
        "baselines",
        "tasks",
        "landcover",
        "gaps",
        "vegetation",
        "bars",
        "evaluate",
    ),
    "embedding": ("tiling", "reading", "encoding", "embedstore", "embed"),
    "pictures": ("figures", "charts", "page", "report"),
    "demo": ("stages", "archives", "road"),
    "cli": (),
    "": (),
}


def _order() -> dict[str, tuple[str, int]]:
    """Return each module's package and place: rooms first, within a room its files."""
    places: dict[str, tuple[str, int]] = {}
    for package, rooms in (("cubes", CUBES), ("deepsentinel", DEEPSENTINEL)):
        for room, files in rooms.items():
            for name in (room, *(f"{room}.{file}" for file in files)):
                places[f"{package}.{name}".rstrip(".")] = (package, len(places))
    return places


ORDER = _order()

# Heavy or optional packages, and the only modules that may name them at all.
OWNERS = {
    "pystac_client": {"cubes.stac.search"},
    "stackstac": {"cubes.stac.arrays"},
    "odc.stac": {"cubes.stac.arrays"},
    "odc.loader": {"cubes.reading.drivers", "cubes.stac.arrays"},
    "planetary_computer": {"cubes.reading.access"},
    "obstore": {"cubes.corpora.remote"},
    "geopandas": {"cubes.fields.vectors"},
    "rasterio": {
        "cubes.reading.opener",
        "cubes.stac.arrays",
        "cubes.files.geotiff",
        "cubes.worlds",
        "cubes.fields.vectors",
    },
    "h5py": {"cubes.files.hdf5"},
    "xbatcher": {"cubes.sampling.samples"},
    "lightning": {"deepsentinel.training.train"},
    "matplotlib": {
        "deepsentinel.pictures.figures",
        "deepsentinel.pictures.charts",
        "deepsentinel.pictures.page",
    },
    "sklearn": set(),  # the tests' reference
}
TORCH = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "tensorboard", "safetensors")
LIGHT = ("torch", "lightning", "rasterio", "stackstac", "odc.stac", "pystac_client", "matplotlib")


def _key(module: str) -> str:
    """Return the name in ORDER that `module` counts as: itself, or what it lies in."""
    while module and module not in ORDER:
        module = module.rpartition(".")[0]
    return module


def _imports(path: Path, module: str) -> Iterator[tuple[str, int]]:
    """Yield every module named by an import statement anywhere in a file, and its line."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")
                base = ".".join([*parent[: len(parent) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                # `from cubes import store` names a module, `from cubes import Plan` a name.
                inner = f"{base}.{alias.name}"
                yield (inner if inner in ORDER else base), node.lineno


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for package in ("cubes", "deepsentinel"):
        for path in sorted((root / package).rglob("*.py")):
            parts = list(path.relative_to(root).with_suffix("").parts)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_every_module_has_its_place(root: Path) -> None:
    rooms = ("worlds", "sen12ts", "registry", "names")
    whole = {f"cubes.{name}" for name in rooms} | {"deepsentinel.cli"}
    unknown = sorted(
        module
        for module, _ in _files(root)
        if module not in ORDER and ".".join(module.split(".")[:2]) not in whole
    )
    assert not unknown, f"{unknown} stand in no declared order; add them to {__file__}"


def test_every_place_has_its_module(root: Path) -> None:
    gone = sorted(set(ORDER) - {module for module, _ in _files(root)})
    assert not gone, f"{gone} stand in the declared order and nowhere else"


def test_imports_go_down(root: Path) -> None:
    wrong = []
    for module, path in _files(root):
        package, place = ORDER[_key(module)]
        for name, line in _imports(path, module):
            target = ORDER.get(_key(name))
            if target is None or _key(name) == _key(module):
                continue
            downward = target[1] < place if target[0] == package else package == "deepsentinel"
            # Reading the version from one's own package, as `import deepsentinel`, is no upward
            # step where the package imports its modules lazily.
            lazy_root = name == package == "deepsentinel"
            if not (downward or lazy_root):
                wrong.append(f"{path}:{line}: {module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_cubes_never_imports_torch(root: Path) -> None:
    wrong = [
        f"{path}:{line}: {name}"
        for module, path in _files(root)
        if _key(module).startswith("cubes")
        for name, line in _imports(path, module)
        if name.split(".")[0] in (*TORCH, "deepsentinel")
    ]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_have_one_owner(root: Path) -> None:
    wrong = []
    for module, path in _files(root):
        for name, line in _imports(path, module):
            for heavy, owners in OWNERS.items():
                if (name == heavy or name.startswith(f"{heavy}.")) and _key(module) not in owners:
                    wrong.append(f"{path}:{line}: {module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_model_file_needs_torch_alone(root: Path) -> None:
    path = root / "deepsentinel" / "model.py"
    allowed = {"torch", "safetensors", *sys.stdlib_module_names}
    names = {name.split(".")[0] for name, _ in _imports(path, "deepsentinel.model")}
    assert names <= allowed, f"model.py is copied by users into other projects; {names - allowed}"


# One file on purpose: users copy it into other projects, where its parts would get lost.
LONGEST = {"deepsentinel/model.py": 800}


@pytest.mark.parametrize("package", ["cubes", "deepsentinel"])
def test_modules_are_not_too_long(root: Path, package: str) -> None:
    long = {
        name: n
        for p in (root / package).rglob("*.py")
        if (n := len(p.read_text().splitlines()))
        > LONGEST.get(name := str(p.relative_to(root)), 500)
    }
    assert not long, f"over 500 lines, which noun is missing? {long}"


@pytest.mark.alone
@pytest.mark.parametrize("package", ["cubes", "deepsentinel", "deepsentinel.cli"])
def test_import_is_light(package: str, figure: Any) -> None:
    code = (
        "import json, sys, time; start = time.perf_counter(); "
        f"import {package}; seconds = time.perf_counter() - start; "
        "print(json.dumps([seconds, sorted(sys.modules)]))"
    )
    best = float("inf")
    for _ in range(3):
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        seconds, modules = json.loads(run.stdout)
        loaded = [name for name in LIGHT if name in modules]
        assert not loaded, f"import {package} loads {loaded}"
        best = min(best, seconds)
    figure(f"import {package}, seconds, best of 3", best, "1")
    assert best < 1.0, f"import {package} takes {best:.2f} s"


@pytest.mark.alone
def test_help_is_quick(figure: Any) -> None:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", "deepsentinel.cli", "--help"],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        best = min(best, time.perf_counter() - start)
    figure("deepsentinel --help, seconds, best of 3", best, "0.6")
    assert "demo" in run.stdout
    assert best < 0.6, f"deepsentinel --help takes {best:.2f} s"
