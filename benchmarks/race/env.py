"""The throw-away environment: what the project needs, and the rivals, none of which moves torch."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from benchmarks import common

ROOT = Path(__file__).resolve().parents[2]
RIVALS = ROOT / "benchmarks" / "race-requirements.txt"
VISION = "torchvision==0.28.0"
"""Which torchgeo imports; the release that belongs to the torch of the constraints."""
MODULES = ("litdata", "webdataset", "streaming.base", "tensorstore", "torchgeo.datasets")


def make(folder: Path) -> None:
    """Make a virtual environment in `folder`: torch alone first, our needs, then the rivals.

    torch has the version of the constraints; the rivals come without their dependencies, which
    would bring another torch, and with those that they import (`race-requirements.txt`).

    Parameters
    ----------
    folder
        Where; made if it is not there. Nothing outside of it is installed or changed.
    """
    if sys.version_info[:2] != (3, 11):
        common.show("note: the versions of constraints.txt are those of Python 3.11")
    venv.create(folder, with_pip=True)
    pins = ROOT / "constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["fast"]]
    needs += project["optional-dependencies"]["learn"]
    needs += project["optional-dependencies"]["vectors"]
    torch = next(p for p in pins.read_text().splitlines() if p.startswith("torch=="))
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    for what in ([torch], needs, ["--no-deps", "-r", str(RIVALS)]):
        common.show(f"installing {what[0] if len(what) == 1 else f'{len(what)} requirements'}")
        subprocess.run([*pip, "-c", str(pins), *what], check=True)
    subprocess.run([*pip, "--no-deps", VISION], check=True)
    if why := missing(python, "torchvision"):
        # Its wheels are built for a torch with CUDA, and half an installation breaks those that
        # look whether it is there.
        subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torchvision"], check=True)
        common.show(f"torchvision: removed again, torchgeo cannot run: {why}")
    for module in MODULES:
        common.show(f"{module}: {missing(python, module) or 'imports'}")


def missing(python: str, module: str) -> str:
    """Return why a module does not import in an environment; nothing if it does."""
    code = f"import importlib; importlib.import_module({module!r})"
    if module == "streaming.base":
        code = "from benchmarks.race import formats; formats.base()"
    run = subprocess.run(
        [python, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return "" if run.returncode == 0 else (run.stderr.strip().splitlines() or ["?"])[-1]


def again(folder: Path, arguments: list[str]) -> int:
    """Run the race in that environment and return its exit status."""
    python = folder / "bin" / "python"
    if not python.is_file():
        raise SystemExit(
            f"no environment at {folder}: python -m benchmarks.race --make-env {folder}"
        )
    command = [str(python), "-m", "benchmarks.race", *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode
