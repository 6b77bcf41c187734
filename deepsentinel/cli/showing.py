"""Commands that show: the demo and the report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deepsentinel.cli.shared import Command


def add_demo(command: Command) -> None:
    """Add the command ``demo``."""
    made = command("demo", "the whole road on two simulated worlds, up to report.html")
    made.set_defaults(run=_demo)
    made.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything")
    made.add_argument("--quick", action="store_true", help="tiny worlds, a few steps")
    made.add_argument(
        "--check", action="store_true", help="exit with 1 where a bar is missed, and say which"
    )


def _demo(options: argparse.Namespace) -> int:
    import signal

    from deepsentinel.demo import road

    # Ended from outside, it still ends its server and workers: exit runs what `finally` says.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(road.demo(options.out, quick=options.quick))
    missed = [bar for bar in road.judged(options.out) if not bar.met]
    if not options.check:
        return 0
    for bar in missed:
        print(f"bar missed: {bar.text}", file=sys.stderr)
    return 1 if missed else 0


def add_report(command: Command) -> None:
    """Add the command ``report``."""
    made = command("report", "pictures and numbers of a demo or run folder as one page")
    made.set_defaults(run=_report)
    made.add_argument("folder", type=Path, help="of `demo`, or of `train`")
    made.add_argument("--out", type=Path, help="path of the page (FOLDER/report.html)")


def _report(options: argparse.Namespace) -> None:
    import deepsentinel

    print(deepsentinel.report(options.folder, options.out or options.folder / "report.html"))
