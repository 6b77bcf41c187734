"""The command line ``deepsentinel``: the verbs of both packages, one command each.

Everything heavy is imported inside the command that needs it, so that ``--help`` answers at once.
What a command produces goes to standard output, progress to standard error. A mistake of the
user's is one line and exit code 2; damage found, or a bar missed, is exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from deepsentinel.cli import data, learning, measuring, showing, stores
from deepsentinel.cli.shared import spoken

__all__ = ["main"]


LEARN = ("torch", "lightning", "safetensors", "matplotlib", "tensorboard")
"""What `cubes` does without."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 or 2 (see above), or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) went away. Python would complain again at exit otherwise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped; what was finished stays, run again to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name in LEARN:
            error = ModuleNotFoundError(
                f"this needs {error.name}, which comes with the learning side: "
                "pip install '.[learn]' in the clone"
            )
        elif not _is_users(error):
            raise
        print(f"deepsentinel {options.command}: {spoken(str(error))}", file=sys.stderr)
        return 2
    return code


def _is_users(error: Exception) -> bool:
    """Return whether an error is for the person at the keyboard: ours, or a file not there."""
    from cubes.types import CubeError

    if isinstance(error, CubeError | FileNotFoundError):
        return True
    # model.py stands alone, without cubes, and so has an error of its own
    model = sys.modules.get("deepsentinel.model")
    return model is not None and isinstance(error, model.ModelError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepsentinel",
        description="Sentinel-1 and Sentinel-2 cubes, from catalogue search to embeddings.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    # in the order of the road
    showing.add_demo(command)
    data.add(command)
    stores.add(command)
    learning.add(command)
    measuring.add(command)
    showing.add_report(command)
    return parser
