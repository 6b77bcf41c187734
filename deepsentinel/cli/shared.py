"""What several commands share: who makes a command, progress, catalogue rows of one's own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubes.types import Progress

Command = Callable[[str, str], argparse.ArgumentParser]
"""Name and text -> the parser of a new command."""


def progress(stage: str) -> Progress:
    """Return who tells on one line of the terminal how far a stage is."""
    from deepsentinel.demo.stages import Console

    return Console().progress(stage)


_SPOKEN = (
    (r'\bon_missing="mask"', "--on-missing mask"),
    (r"\bGrid\(resolution=\)", "--resolution"),
    (r"\bGrid\(crs=(\.\.\.)?\)", "--crs"),
    (r"\bcubes\.catalog\('[\w-]+', url=\"([^\"]*)\"\)", r"--url \1"),
    (r"\bcubes\.repair\(store\)", "deepsentinel repair STORE"),
    (r"\bcubes\.resume\(store\)", "deepsentinel resume STORE"),
    (r"\bcubes\.write\(request, \.\.\.\)", "deepsentinel build"),
    (r"\bforce=True", "--force"),
    (
        r"\b(max_gib|max_gap|min_valid|without|bands|pols|size|layers|block|buffer|fractions|dims)="
        r"(?=[\s,;.)(]|$)",
        lambda m: f"--{m[1].replace('_', '-')} ",
    ),
)


def spoken(text: str) -> str:
    """Return a message with the arguments of functions as the flags of this command line."""
    for pattern, flag in _SPOKEN:
        text = re.sub(pattern, flag, text)
    return text.replace("  ", " ").replace(" ,", ",").replace(" )", ")").strip()


def area(text: str) -> Any:
    """Return coordinates as numbers, anything else as it is."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text


def model_folder(path: Path) -> Path:
    """Return the folder with the weights: the one given, or ``model`` in a run folder."""
    inner = path / "model"
    return inner if not (path / "config.json").is_file() and inner.is_dir() else path


def load_model(path: Path, device: str | None) -> Any:
    """Return a model on a device.

    Raises
    ------
    CubeError
        No such device here.
    """
    import cubes
    import deepsentinel

    model = deepsentinel.Fusion.from_pretrained(model_folder(path))
    if device is None:
        return model
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises for names and for absence
        why = str(error).splitlines()[0]
        raise cubes.CubeError(
            f"--device {device}: {why}; name a device that this machine has, such as cpu, cuda or "
            "cuda:1"
        ) from error
