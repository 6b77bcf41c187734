"""Start of a process: how long until `cubes` is there, until the command line answers."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from benchmarks import common

COMMANDS = {
    "python": ["-c", "pass"],
    "import cubes": ["-c", "import cubes"],
    "cubes.open": ["-c", "import cubes; cubes.open"],
    "deepsentinel --help": ["-m", "deepsentinel.cli", "--help"],
}
"""Name -> arguments of a fresh interpreter; ``python`` alone is what nothing can be faster than."""


def start(command: str) -> None:
    """Run one of `COMMANDS` to its end.

    Raises
    ------
    CalledProcessError
        It failed.
    """
    subprocess.run([sys.executable, *COMMANDS[command]], check=True, capture_output=True)


class Start:
    """Seconds of a fresh interpreter that imports and ends."""

    params = list(COMMANDS)
    param_names = ["command"]
    number, repeat, warmup_time = 1, 5, 0.0

    def time_start(self, command: str) -> None:
        start(command)


def main(repeats: int = 7) -> str:
    """Return a table of start-up times (the best of some runs: a process has no average)."""
    names = list(COMMANDS)
    calls: dict[str, Any] = {name: lambda name=name: start(name) for name in names}
    found = common.rounds(calls, repeats)
    bare = min(found["python"])
    rows = [(n, min(found[n]), min(found[n]) - bare) for n in names]
    head = ("command", "s, best", "s over a bare interpreter")
    return common.table(f"Start, best of {repeats}", head, rows, "deepsentinel", "numpy", "xarray")


if __name__ == "__main__":
    common.show(main())
