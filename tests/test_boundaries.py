"""Who may import whom: the declared order, no torch under cubes, and what `import` costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Imports go only from later to earlier names. A new module must be given its place here.
CUBES = (
    # rows and rules: no input or output
    "errors",
    "types",
    "registry",
    "names",
    "grid",
    "physics",
    "insar",
    "geometry",
    "speckle",
    "series",
    "runs",
    "places",
    "plans",
    # sources of pixels and items
    "access",
    "resample",
    "opener",
    "read",
    "drivers",
    "items",
    "static",
    "stac",
    "files",
    "cslc",
    "worlds",
    "cube",
    "request",
    "rtc",
    # the store
    "shards",
    "layout",
    "metadata",
    "ledger",
    "build",
    "run",
    "tree",
    "opened",
    "store",
    "sen12ts",
    "vectors",
    "polygons",
    "fields",
    "nbar",
    "composites",
    "withhold",
    "remote",
    "card",
    "stacdocs",
    "zones",
    "gathering",
    "corpus",
    "publishing",
    # samples
    "pool",
    "stream",
    "index",
    "sampleset",
    "splits",
    "samples",
    "stats",
    "",
)
DEEPSENTINEL = (
    "ring",
    "normalise",
    "workers",
    "batch",
    "model",
    "backbones",
    "augment",
    "recipe",
    "objectives",
    "sources",
    "checkpoint",
    "train",
    "metrics",
    "baselines",
    "tasks",
    "landcover",
    "gaps",
    "vegetation",
    "evaluate",
    "windows",
    "embedstore",
    "embed",
    "pictures",
    "charts",
    "page",
    "report",
    "explore",
    "stages",
    "archives",
    "demo",
    "cli",
    "",
)
ORDER = {
    f"{package}.{name}".rstrip("."): (package, place)
    for package, names in (("cubes", CUBES), ("deepsentinel", DEEPSENTINEL))
    for place, name in enumerate(names)
}

# Heavy or optional packages, and the only modules that may name them at all.
OWNERS = {
    "pystac_client": {"cubes.stac"},
    "stackstac": {"cubes.stac"},
    "odc.stac": {"cubes.stac"},
    "odc.loader": {"cubes.drivers", "cubes.stac"},
    "planetary_computer": {"cubes.access"},
    "obstore": {"cubes.remote"},
    "geopandas": {"cubes.vectors"},
    "rasterio": {"cubes.opener", "cubes.stac", "cubes.files", "cubes.worlds", "cubes.vectors"},
    "h5py": {"cubes.cslc"},
    "xbatcher": {"cubes.samples"},
    "lightning": {"deepsentinel.train"},
    "matplotlib": {"deepsentinel.pictures", "deepsentinel.charts", "deepsentinel.page"},
    "sklearn": {"deepsentinel.evaluate"},
}
TORCH = ("torch", "lightning", "pytorch_lightning", "torchmetrics", "tensorboard", "safetensors")
LIGHT = ("torch", "lightning", "rasterio", "stackstac", "odc.stac", "pystac_client", "matplotlib")


def _key(module: str) -> str:
    """Return the name in ORDER that `module` counts as (a subpackage counts as one)."""
    parts = module.split(".")
    return ".".join(parts[:2])


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
    unknown = sorted({_key(m) for m, _ in _files(root)} - set(ORDER))
    assert not unknown, f"{unknown} stand in no declared order; add them to {__file__}"


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
LONGEST = {"deepsentinel/model.py": 800, "cubes/types.py": 520}


@pytest.mark.parametrize("package", ["cubes", "deepsentinel"])
def test_modules_are_not_too_long(root: Path, package: str) -> None:
    long = {
        name: n
        for p in (root / package).rglob("*.py")
        if (n := len(p.read_text().splitlines()))
        > LONGEST.get(name := str(p.relative_to(root)), 500)
    }
    assert not long, f"over 500 lines, which noun is missing? {long}"


@pytest.mark.parametrize("package", ["cubes", "deepsentinel", "deepsentinel.cli"])
def test_import_is_light(package: str) -> None:
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
    assert best < 1.0, f"import {package} takes {best:.2f} s"


def test_help_is_quick() -> None:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        run = subprocess.run(
            [sys.executable, "-m", "deepsentinel.cli", "--help"],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        best = min(best, time.perf_counter() - start)
    assert "demo" in run.stdout
    assert best < 0.6, f"deepsentinel --help takes {best:.2f} s"
