"""Scores of a model beside the floors that it must beat, with intervals drawn by tile.

>>> table = evaluate(model, test, task="landcover", train_samples=train)

Tasks: ``landcover`` (linear probe on frozen features) and ``ndvi`` (NDVI of a date from
Sentinel-1 alone; with ``Options(gap=30)`` across gaps of 30 days in Sentinel-2).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import pandas as pd

from cubes.types import CubeError, Progress
from deepsentinel.evaluation.landcover import landcover
from deepsentinel.evaluation.tasks import Evaluation, Options
from deepsentinel.evaluation.vegetation import ndvi

__all__ = ["TASKS", "Evaluation", "Options", "assess", "evaluate"]

TASKS: dict[str, Callable[[Any, Any, Any, Options, Progress | None], Evaluation]] = {
    "landcover": landcover,
    "ndvi": ndvi,
}


def evaluate(
    model: Any,
    samples: Any,
    *,
    task: str,
    train_samples: Any,
    options: Options | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Return the scores of a model and of its floors, one row per contender, best first.

    Parameters
    ----------
    model : Fusion
        Frozen: only linear readouts are fitted here.
    samples : Samples
        What is scored; of a world or area that the model never saw.
    task : str
        ``landcover`` or ``ndvi``.
    train_samples : Samples
        What probes, ridges and climatology are fitted on: the model's own training samples.
    options : Options, optional
        Pixels, tiles, draws, seed, label layer, sensors that may be seen, numbers read out.
    progress : callable, optional
        Told (samples done, samples, what) after every batch.

    Returns
    -------
    DataFrame
        Index: contender. ``landcover``: mIoU, mF1, OA, 95 % interval of mIoU; ``ndvi``: R2, skill
        over month climatology, MAE, RMSE, bias, r, 95 % interval of skill. ``gain`` is the
        model's lead over the row's contender with its interval, paired by tile; ``pixels`` and
        ``tiles`` say how many were scored, with gaps ``blocks`` of dates too. The model stands
        beside itself untrained. Intervals of fewer than 8 tiles are NaN.

    Raises
    ------
    CubeError
        Unknown task, or samples without what it needs.
    """
    found = assess(
        model,
        samples,
        task=task,
        train_samples=train_samples,
        options=options,
        progress=progress,
    )
    return found.table


def assess(
    model: Any,
    samples: Any,
    *,
    task: str,
    train_samples: Any,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Return what `evaluate` returns, and the matrices, maps and examples behind it.

    Raises
    ------
    CubeError
        As `evaluate`.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CubeError(f"unknown task {task!r}{hint} Known: {', '.join(TASKS)}")
    return TASKS[task](model, train_samples, samples, options or Options(), progress)
