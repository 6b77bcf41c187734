"""The command that measures: bench."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from deepsentinel.cli.samples import add_samples, flags, planned, recall
from deepsentinel.cli.shared import Command, load_model, progress


def add(command: Command) -> None:
    """Add the command of this module."""
    made = command("bench", "what holds training back on this machine: disk, codec, loader, device")
    made.set_defaults(run=_bench)
    add_samples(made)
    made.add_argument("--model", type=Path, help="run folder whose step is measured (the recipe's)")
    made.add_argument("--recipe", help="a name, or a TOML file (default; the model's)")
    made.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change a key")
    made.add_argument("--device", help="cpu, cuda or mps (the recipe's)")
    made.add_argument(
        "--threads", type=int, nargs="+", default=[],
        help="decoding threads tried (1, the recipe's, and the cores)",
    )  # fmt: skip
    made.add_argument("--workers", type=int, default=2, help="worker processes tried (2)")
    made.add_argument("--seconds", type=float, default=10, help="about, for each part (10)")
    made.add_argument("--json", action="store_true")


def _bench(options: argparse.Namespace) -> None:
    import cubes
    from deepsentinel.measuring.bench import Effort, measure
    from deepsentinel.recipe import load_recipe, make_recipe, overridden
    from deepsentinel.training.heap import keep_heap

    if min([1, *options.threads]) < 1 or options.workers < 0 or not options.seconds > 0:
        raise cubes.CubeError(
            f"--threads {options.threads or 1} --workers {options.workers} --seconds "
            f"{options.seconds:g}: threads from 1, workers from 0, seconds above 0"
        )
    keep_heap()  # as train does
    model, record = None, None
    if options.model is not None:
        model, record = load_model(options.model, None), recall(options.model)
    changes = [*options.set]
    if options.device is not None:
        changes.append(f"train.accelerator={options.device}")
    if model is None or options.recipe is not None:
        recipe = load_recipe(options.recipe or "default", changes)
    else:
        body = dict(model.config.card).get("recipe")
        if body is None:
            raise cubes.CubeError(
                f"{options.model} does not say by which recipe it was trained: give the one whose "
                "step is to be measured with --recipe"
            )
        recipe = make_recipe(overridden(body, changes))
    samples = planned(options.stores, flags(options, record))
    effort = Effort(
        seconds=options.seconds, threads=tuple(sorted({*options.threads})), workers=options.workers
    )
    found = measure(samples, recipe, model=model, effort=effort, progress=progress("bench"))
    print(json.dumps(found.to_dict(), indent=1) if options.json else text(found))


def text(found: Any) -> str:
    """Return what was measured as lines for a person."""
    sample, device = found.sample, found.device
    crops = f", {sample['crops']} crops of each" if sample["crops"] > 1 else ""
    lines = [
        f"{sample['samples']:,} samples of {sample['mb']:.3g} MB decoded, "
        f"{sample['batch']} a batch{crops}: {', '.join(sample['layers'])}",
        f"{device['name']}: {device['model']}, {device['precision']}; "
        f"{device['flops'] / 1e9:,.3g} GFLOP a step, first step {device['first_step']:.3g} s",
        "",
        f"{'by itself':<32}{'samples/s':>12}{'MB/s':>10}",
    ]
    lines += [f"{r.what:<32}{r.samples:>12,.1f}{r.mb:>10,.0f}" for r in found.rates]
    head = f"{'samples/s':>12}{'MB/s':>10}{'p50, s':>10}{'p95, s':>10}{'waits':>8}"
    lines += ["", f"{'steps of training':<32}{head}"]
    for s in found.steps:
        alone = s.what == "resident"
        mb, waits = ("-", "-") if alone else (f"{s.mb:,.0f}", f"{s.waited:.1%}")
        name = "a batch that is there" if alone else "with loading"
        lines.append(f"{name:<32}{s.samples:>12,.1f}{mb:>10}{s.p50:>10.3g}{s.p95:>10.3g}{waits:>8}")
    lines += [
        "",
        f"with loading / without: {device['ratio']:.2f}; a step uses {device['mfu']:.0%} of "
        f"{device['ceiling'] / 1e12:.3g} TFLOP/s ({device['ceiling_from']})",
        found.verdict,
    ]
    return "\n".join(lines)
