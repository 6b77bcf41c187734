"""Samples and splits asked for by flags, and what a run remembers of them.

`train` leaves its flags in the run folder. `evaluate` takes them from there, so that a model is
scored on the test split of the very division that it was trained with, and compares what it scores
with what was trained on before it scores anything.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepsentinel.cli.shared import model_folder

if TYPE_CHECKING:
    from cubes import Samples

FLAGS = "flags.json"
"""In a run folder, beside ``split.json``, which says what became of them."""

DEFAULTS: Mapping[str, Any] = {
    "window": 256,
    "stride": None,
    "dates": 12,
    "period": None,
    "step": None,
    "max_gap": "3D",
    "min_valid": 0.99,
    "seed": 0,
    "by": "block",
    "block": None,
    "buffer": 0.0,
    "fractions": "0.7,0.15,0.15",
    "split_seed": 0,
}
Flags = dict[str, Any]


def add_samples(parser: argparse.ArgumentParser, *, stores: str = "+") -> None:
    """Add the flags that say which samples, and how they are divided."""
    parser.add_argument("stores", nargs=stores, type=Path, help="sealed stores")
    group = parser.add_argument_group("samples")
    group.add_argument("--window", type=int, help="edge in pixels (256)")
    group.add_argument("--stride", type=int, help="distance between windows (the window)")
    group.add_argument("--dates", type=int, help="dates kept per sensor (12)")
    group.add_argument("--period", help="length of a sample in time, e.g. 180D (the whole cube)")
    group.add_argument("--step", help="distance between periods (the period)")
    group.add_argument("--max-gap", help="largest gap between sensors (3D)")
    group.add_argument("--min-valid", type=float, help="of pixels with data (0.99)")
    group.add_argument("--seed", type=int, help="of the dates drawn (0)")
    group = parser.add_argument_group("split")
    group.add_argument("--by", choices=("block", "time", "aoi"), help="(block)")
    group.add_argument("--block", type=float, help="metres (days with --by time)")
    group.add_argument("--buffer", type=float, help="metres (days with --by time) (0)")
    group.add_argument("--fractions", help="train,val,test (0.7,0.15,0.15)")
    group.add_argument("--split-seed", type=int, help="of the blocks dealt to the splits (0)")


def flags(options: argparse.Namespace, record: Mapping[str, Any] | None = None) -> Flags:
    """Return every flag: as given, else as the run had it, else its default."""
    known = {**DEFAULTS, **(record or {}).get("flags", {})}
    given = {name: getattr(options, name) for name in DEFAULTS}
    return {name: known[name] if given[name] is None else given[name] for name in DEFAULTS}


def planned(stores: Sequence[Path | str], asked: Flags) -> Samples:
    """Return every sample of some stores."""
    import cubes

    window = cubes.Window(
        size=asked["window"],
        stride=asked["stride"],
        dates=asked["dates"],
        period=asked["period"],
        step=asked["step"],
    )
    return cubes.plan(
        list(stores),
        window,
        max_gap=asked["max_gap"],
        min_valid=asked["min_valid"],
        seed=asked["seed"],
    )


def divided(samples: Samples, asked: Flags, *, way_out: str = "") -> dict[str, Samples]:
    """Return the samples by split; `way_out` says what to do where they cannot be divided."""
    import cubes

    block, buffer = asked["block"], asked["buffer"]
    if asked["by"] == "time":  # lengths of time, which the flags give in days
        block, buffer = (None if v is None else f"{v}D" for v in (block, buffer))
    fractions = _fractions(asked["fractions"])
    try:
        return cubes.split(
            samples,
            by=asked["by"],
            block=block,
            buffer=buffer,
            fractions=fractions,
            seed=asked["split_seed"],
        )
    except cubes.CubeError as error:
        if not way_out:
            raise
        raise cubes.CubeError(f"{error}. {way_out}") from None


def _fractions(text: str) -> tuple[float, ...]:
    import cubes

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise cubes.CubeError(
            f"--fractions {text}: two or three numbers with sum 1, such as 0.7,0.15,0.15"
        ) from None


# -- what a run remembers ----------------------------------------------------------------------


def remember(run: Path, stores: Sequence[Path], asked: Flags) -> None:
    """Write into a run folder how its samples were asked for."""
    body = {"stores": [str(Path(s).resolve()) for s in stores], "flags": asked}
    part = run / f".{FLAGS}.part"
    part.write_text(json.dumps(body, indent=1), encoding="utf-8")
    part.replace(run / FLAGS)


def recall(model: Path) -> Mapping[str, Any] | None:
    """Return how the samples of a model's run were asked for, None if it does not say.

    Raises
    ------
    CubeError
        What it says cannot be read.
    """
    import cubes

    path = model_folder(model).resolve().parent / FLAGS
    if not path.is_file():
        return None
    try:
        body = dict(json.loads(path.read_text(encoding="utf-8")))
        return {"stores": list(body["stores"]), "flags": dict(body["flags"])}
    except (ValueError, TypeError, KeyError) as error:
        raise cubes.CubeError(
            f"{path} cannot be read ({error!r}): remove it, and give stores and flags as they were"
        ) from error


def trained_on(
    stores: Sequence[Path], asked: Flags, record: Mapping[str, Any] | None, sha256: str | None
) -> Samples:
    """Return the samples that a model was trained on, made again and proved by their hash.

    Parameters
    ----------
    stores, asked
        As on the command line; where a run remembers its own, those are taken.
    record
        Of `recall`.
    sha256
        Of the training samples, from the model's card.

    Raises
    ------
    CubeError
        What is made again is not what the model was trained on.
    """
    import cubes

    if record is not None:
        known = {**DEFAULTS, **record["flags"]}
        try:
            found = divided(planned(stores or record["stores"], known), known)["train"]
        except FileNotFoundError as error:
            raise cubes.CubeError(
                f"the stores that this model was trained on are not there ({error}): give them "
                "after the model"
            ) from error
    else:
        found = divided(planned(stores, asked), asked)["train"]
    if sha256 is not None and found.sha256 == sha256:
        return found
    why = (
        "they have changed since, or are others"
        if record is not None
        else "its run folder does not say how they were made, and the flags given make others"
    )
    raise cubes.CubeError(
        f"the samples that this model was trained on cannot be made again ({why}), so that it "
        "might be scored on what it has seen; give stores and flags as they were, or --unchecked"
    )


def refuse_overlap(trained: Samples, scored: Samples) -> None:
    """Refuse to score ground that was trained on at that time.

    Raises
    ------
    CubeError
        Samples of both share ground and time.
    """
    import cubes
    from cubes.sampling import splits

    found = splits.leaks({"train": trained, "scored": scored})
    if len(found):
        n = found["other_id"].nunique()
        raise cubes.CubeError(
            f"{n} of the {len(scored)} samples to be scored overlap samples that this model was "
            f"trained on (the first is sample {found['other_id'].iloc[0]}): leave the split flags "
            "away, so that those of the run are taken, or name other stores with --test"
        )


def refuse_held(trained: Samples, held: Sequence[tuple[str, str]]) -> None:
    """Refuse spans of dates as held out that the training samples have Sentinel-2 in.

    Raises
    ------
    CubeError
        A store trained on has such dates.
    """
    import numpy as np

    import cubes

    for store in trained.stores:
        tree = cubes.open(store.path)
        if "s2" not in tree.children:
            continue
        times = tree["s2"].to_dataset()["time"].to_numpy()
        for first, last in held:
            inside = (times >= np.datetime64(first)) & (times < np.datetime64(last))
            if inside.any():
                raise cubes.CubeError(
                    f"{store.path} was trained on and has {int(inside.sum())} Sentinel-2 dates in "
                    f"--held {first}/{last}: train on a cube without them (cubes.withhold)"
                )
