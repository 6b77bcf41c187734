"""What a model must beat for its scores to mean anything, and whether it did, in words.

A bar is met when the whole 95 % interval of the model's lead, paired by tile, lies above nought.
The untrained model of the same build is a rival like any other: part of an embedding is fixed
statistics, and what it scores without a step of training is nothing that training earned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from deepsentinel.evaluation.tasks import RANDOM

BARS: Mapping[str, tuple[str, ...]] = {
    "landcover": ("pixel statistics", RANDOM),
    "ndvi": ("ridge", "ridge, 5 x 5 neighbourhood", RANDOM),
}
"""Task -> contenders that the model must be above."""

SCORES = {"landcover": "mIoU", "ndvi": "skill", "ndvi-gap": "skill"}
"""Task -> the score that leads are leads in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """Whether one bar was met."""

    task: str
    rival: str
    met: bool
    text: str
    """``landcover: the model is above ... (figures)``."""


def verdict(table: pd.DataFrame, other: str) -> str:
    """Return in words whether the model is above another contender, by the paired interval."""
    low, high = (float(table["gain_" + end][other]) for end in ("low", "high"))
    lead = float(table["gain"][other])
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"not judged against {other} ({lead:+.3f}, {_too_few(table)})"
    span = f"{lead:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, paired by tile"
    if low > 0:
        return f"above {other} ({span})"
    if high < 0:
        return f"below {other} ({span})"
    return f"not told apart from {other} ({span})"


def _too_few(table: pd.DataFrame) -> str:
    counts = f"{int(table['tiles'].iloc[0])} tiles of ground"
    if "blocks" in table:
        counts += f" and {int(table['blocks'].iloc[0])} blocks of dates"
    return f"too few tiles for an interval: {counts}"


def training_adds(table: pd.DataFrame) -> str:
    """Return in a sentence what training added to the untrained model of the same build.

    Parameters
    ----------
    table : DataFrame
        Of `evaluate`; without a row of the random encoder the sentence says that this is unknown.
    """
    if RANDOM not in table.index:
        return "What training adds is not known: no untrained model was scored."
    lead = verdict(table, RANDOM)
    if lead.startswith("above"):
        return f"Training adds to this: the model is {lead}."
    if lead.startswith("below"):
        return f"Training takes from this: the model is {lead}."
    if lead.startswith("not judged"):
        return f"What training adds cannot be said: the model is {lead}."
    return f"Training adds nothing here that can be measured: the model is {lead}."


def judge(tables: Mapping[str, pd.DataFrame]) -> list[Judgement]:
    """Return a judgement of every bar of the tasks given; a rival without a row is a bar missed.

    Parameters
    ----------
    tables : mapping
        Task -> table of `evaluate`.
    """
    found = []
    for task, rivals in BARS.items():
        table = tables.get(task)
        for rival in rivals:
            if table is None or rival not in table.index:
                why = "task not evaluated" if table is None else f"{rival} was not scored"
                text, met = f"{task}: {why}", False
            else:
                words = verdict(table, rival)
                text, met = f"{task}: the model is {words}", words.startswith("above")
            found.append(Judgement(task=task, rival=rival, met=met, text=text))
    return found
