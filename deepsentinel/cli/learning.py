"""Commands of the learning side: stats, train, evaluate, embed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from deepsentinel.cli.samples import (
    add_samples,
    divided,
    flags,
    planned,
    recall,
    refuse_held,
    refuse_overlap,
    remember,
    trained_on,
)
from deepsentinel.cli.shared import Command, load_model, progress

DEVICE = "where the model runs, e.g. cuda (cpu)"
MODEL = "run folder, or folder with model.safetensors"


def add(command: Command) -> None:
    """Add the commands of this module."""
    _add_stats(command)
    _add_train(command)
    _add_evaluate(command)
    _add_embed(command)


# -- stats and train ---------------------------------------------------------------------------


def _add_stats(command: Command) -> None:
    made = command("stats", "statistics of training samples per layer and channel")
    made.set_defaults(run=_stats)
    add_samples(made)
    made.add_argument("--all", action="store_true", help="of all samples, not the training split")
    made.add_argument("--out", type=Path, help="JSON file")


def _stats(options: argparse.Namespace) -> None:
    import cubes

    asked = flags(options)
    samples = planned(options.stores, asked)
    if not options.all:
        way_out = "Of all samples, where none of them will be tested on: --all"
        samples = divided(samples, asked, way_out=way_out)["train"]
    statistics = cubes.stats(samples)
    if options.out:
        options.out.write_text(json.dumps(statistics.to_dict(), default=str), encoding="utf-8")
    print(f"{len(samples):,} samples, values in the layers' units")
    columns = ["count", "mean", "std", "min", "max"]
    print(statistics[columns].to_dataframe().to_string(float_format="{:.4g}".format))


def _add_train(command: Command) -> None:
    made = command("train", "train a model; prints its folder")
    made.set_defaults(run=_train)
    add_samples(made)
    made.add_argument("--recipe", default="default", help="a name, or a TOML file")
    made.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change a key")
    made.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if there")


def _train(options: argparse.Namespace) -> None:
    import deepsentinel
    from deepsentinel.training.heap import keep_heap

    keep_heap()
    asked = flags(options)
    recipe = deepsentinel.load_recipe(options.recipe, options.set)
    parts = divided(planned(options.stores, asked), asked)
    for name, part in parts.items():
        print(f"{name}: {len(part):,} samples", file=sys.stderr)
    run = deepsentinel.train(recipe, parts, out=options.out, progress=progress("train"))
    # after the run: a folder that refused these samples keeps what it remembers
    remember(options.out, options.stores, asked)
    print(run.model)


# -- evaluate ----------------------------------------------------------------------------------


def _add_evaluate(command: Command) -> None:
    made = command("evaluate", "score a model beside plain baselines and itself untrained")
    made.set_defaults(run=_evaluate)
    made.add_argument("model", type=Path, help=MODEL)
    add_samples(made, stores="*")
    made.add_argument("--task", choices=("landcover", "ndvi"), required=True)
    made.add_argument("--test", nargs="+", type=Path, help="stores to score (the test split)")
    made.add_argument("--label", help="label layer, e.g. labels/worldcover (the only one)")
    made.add_argument("--gap", type=float, help="ndvi: days of Sentinel-2 hidden at a time (all)")
    made.add_argument(
        "--held", action="append", metavar="START/END",
        help="ndvi: a span of dates held out and scored, UTC; may be repeated",
    )  # fmt: skip
    made.add_argument("--tile", type=int, help="edge in pixels of the tiles drawn (128)")
    made.add_argument("--dims", type=int, help="numbers per pixel read out (as embed writes: 64)")
    made.add_argument("--device", help=DEVICE)
    made.add_argument(
        "--unchecked", action="store_true",
        help="score although it cannot be ruled out that the model was trained on the same ground",
    )  # fmt: skip
    made.add_argument("--out", type=Path, help="folder for the table and its pictures' data")
    made.add_argument("--csv", action="store_true")


def _evaluate(options: argparse.Namespace) -> None:
    import cubes
    from deepsentinel.evaluation.evaluate import Options, assess

    model = load_model(options.model, options.device)
    record = recall(options.model)
    asked = flags(options, record)
    stores = options.stores or (record or {}).get("stores") or []
    if not stores:
        raise cubes.CubeError("name the stores after the model: its run does not tell them")
    held = _held(options.held)
    if options.unchecked:
        learned = divided(planned(stores, asked), asked)["train"]
    else:
        sha256 = dict(model.config.card).get("samples_sha256")
        learned = trained_on(options.stores, asked, record, sha256)
    if options.test:
        scored = planned(options.test, asked)
    else:
        scored = divided(planned(stores, asked), asked)["test"]
    if held and not options.unchecked:
        refuse_held(learned, held)
    elif not options.unchecked:
        refuse_overlap(learned, scored)
    chosen = {"label": options.label, "gap": options.gap, "held": held, "dims": options.dims}
    if options.tile is not None:
        chosen["tile"] = options.tile
    found = assess(
        model,
        scored,
        task=options.task,
        train_samples=learned,
        options=Options(**chosen),
        progress=progress("evaluate"),
    )
    if options.out:
        found.save(options.out)
    print(found.table.to_string() if not options.csv else found.table.to_csv(), end="\n")


def _held(spans: list[str] | None) -> tuple[tuple[str, str], ...] | None:
    """Return spans of dates from START/END."""
    import numpy as np

    import cubes

    out = []
    for span in spans or ():
        first, _, last = span.partition("/")
        try:
            forwards = bool(np.datetime64(first, "s") < np.datetime64(last, "s"))
        except ValueError:
            forwards = False
        if not forwards:
            raise cubes.CubeError(
                f"--held {span}: two dates, the first before the second, such as "
                "2022-04-10/2022-05-20 (the second is not held out any more)"
            )
        out.append((first, last))
    return tuple(out) or None


# -- embed -------------------------------------------------------------------------------------


def _add_embed(command: Command) -> None:
    made = command("embed", "write an embedding of every pixel of a store")
    made.set_defaults(run=_embed)
    made.add_argument("model", type=Path, help=MODEL)
    made.add_argument("store", type=Path, help="a sealed store")
    made.add_argument("out", type=Path, help="path of the embedding store")
    made.add_argument("--dims", type=int, default=64, choices=(16, 32, 64, 128))
    made.add_argument("--dtype", default="int8", choices=("int8", "float32"))
    made.add_argument(
        "--overlap", type=int, default=32, help="pixels around each window, trimmed (32)"
    )
    made.add_argument("--device", help=DEVICE)


def _embed(options: argparse.Namespace) -> None:
    from deepsentinel.embedding.embed import Job

    job = Job.of(
        load_model(options.model, options.device),
        options.store,
        dims=options.dims,
        dtype=options.dtype,
        overlap=options.overlap,
    )
    print(job.write(options.out, progress("embed")))
