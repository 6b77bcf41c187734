"""The command line ``deepsentinel``: the verbs of both packages, one command each.

Everything heavy is imported inside the command that needs it, so that ``--help`` answers at once.
What a command produces goes to standard output, progress to standard error. A mistake of the
user's is one line and exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubes import Request, Samples

AREA_HELP = (
    "WEST,SOUTH,EAST,NORTH or LON,LAT (with --size), a known name, or a GeoJSON file; "
    "write --area=-121,36,... where the first number is negative"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
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
        if not _is_users(error):
            raise
        print(f"deepsentinel {options.command}: {error}", file=sys.stderr)
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


# -- commands ----------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> None:
    import signal

    from deepsentinel.demo.road import demo

    # Ended from outside, it still ends its server and workers: exit runs what `finally` says.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(demo(options.out, quick=options.quick))


def _search(options: argparse.Namespace) -> None:
    import pandas as pd

    request = _request(options)
    plan = request.plan()
    if options.json:
        print(plan.to_json())
        return
    rows, columns = plan.geobox.shape
    print(f"{request.aoi.name}: {rows:,} x {columns:,} px, {plan.geobox.crs}")
    for axis in plan.axes:
        print(f"\n{axis.group}.{axis.dim}: {len(axis)} steps")
        names = [axis.dim, *(n for n in axis.coords if n not in (axis.dim, "items"))]
        # A column that no item fills says nothing: view angles of most catalogues.
        table = pd.DataFrame({n: axis.coords[n] for n in names}).dropna(axis="columns", how="all")
        print(table.to_string(index=False))
    if plan.missing:
        print(f"\n{len(plan.missing)} assets missing and masked: {', '.join(plan.missing[:5])}")


def _build(options: argparse.Namespace) -> int:
    import cubes

    if options.like:
        return _gather(options)
    lost = [f"--{n}" for n in ("area", "time") if getattr(options, n) is None]
    lost += ["STORE"] if options.store is None else []
    if lost:
        raise cubes.CubeError(f"{', '.join(lost)} missing; see deepsentinel build --help")
    options.store = Path(options.store)
    plan = _request(options).plan()
    layout = cubes.Layout(patch=options.patch, codec=options.codec)
    report = cubes.write(
        plan, options.store, layout=layout, progress=_progress("build"), force=options.force
    )
    print(report)
    return 0 if report.state == "sealed" else 1


def _gather(options: argparse.Namespace) -> int:
    from cubes.corpora import gathering

    changes: dict[str, Any] = {"seed": options.seed, "without": options.without}
    if options.time is not None:
        first, _, last = options.time.partition("/")
        changes["time"] = (first, last or first)
    area = options.store or options.area
    out = options.out or Path(f"{options.like}-{options.store or 'land'}")
    table = gathering.gather(
        gathering.recipe(options.like, **changes),
        _area(area) if area else None,
        out,
        catalog=_catalog(options),
        limit=options.limit,
        progress=_progress("build"),
    )
    told = table.drop(columns=["reason", "store", "items"], errors="ignore")
    print(told.to_string(index=False))
    if (table["state"] == gathering.UNMATCHED).any():
        for reason, lost in table[table["state"] == gathering.UNMATCHED].groupby("reason"):
            print(f"{len(lost)} of {len(table)} without a match: {reason}")
    print(f"{(table['state'] == gathering.MATCHED).sum()} cubes in {out / 'cubes'}")
    return 0


def _progress(stage: str) -> Any:
    from deepsentinel.demo.stages import Console

    return Console().progress(stage)


def _info(options: argparse.Namespace) -> int:
    import cubes
    from deepsentinel.embedding import embedstore

    code = 0
    for store in options.stores:
        verify: Any = cubes.verify
        if (store / embedstore.FOLDER).is_dir():
            import deepsentinel

            verify = embedstore.verify_embeddings
            print(deepsentinel.open_embeddings(store, partial=True))
        else:
            print(cubes.open(store, partial=True))
        if options.verify:
            report = verify(store, quick=options.verify == "quick")
            print(report)
            code = max(code, 0 if report.state == "sealed" else 1)
    return code


def _stats(options: argparse.Namespace) -> None:
    import cubes

    samples = _samples(options)
    if not options.all:
        samples = _split(options, samples)["train"]
    statistics = cubes.stats(samples)
    if options.out:
        options.out.write_text(json.dumps(statistics.to_dict(), default=str), encoding="utf-8")
    print(f"{len(samples):,} samples, values in the layers' units")
    columns = ["count", "mean", "std", "min", "max"]
    print(statistics[columns].to_dataframe().to_string(float_format="{:.4g}".format))


def _train(options: argparse.Namespace) -> None:
    import deepsentinel

    recipe = deepsentinel.load_recipe(options.recipe, options.set)
    parts = _split(options, _samples(options))
    for name, part in parts.items():
        print(f"{name}: {len(part):,} samples", file=sys.stderr)
    run = deepsentinel.train(recipe, parts, out=options.out, progress=_progress("train"))
    print(run.model)


def _evaluate(options: argparse.Namespace) -> None:
    import deepsentinel
    from deepsentinel.evaluation.evaluate import assess

    model = deepsentinel.Fusion.from_pretrained(options.model)
    parts = _split(options, _samples(options))
    scored = _samples(options, options.test) if options.test else parts["test"]
    found = assess(model, scored, task=options.task, train_samples=parts["train"])
    if options.out:
        found.save(options.out)
    print(found.table.to_string() if not options.csv else found.table.to_csv(), end="\n")


def _embed(options: argparse.Namespace) -> None:
    import deepsentinel

    model = deepsentinel.Fusion.from_pretrained(options.model)
    print(
        deepsentinel.embed(
            model, options.store, options.out, dims=options.dims, dtype=options.dtype
        )
    )


def _report(options: argparse.Namespace) -> None:
    import deepsentinel

    print(deepsentinel.report(options.folder, options.out or options.folder / "report.html"))


# -- what the commands share -------------------------------------------------------------------


def _area(text: str) -> Any:
    """Return coordinates as numbers, anything else as it is."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text


def _request(options: argparse.Namespace) -> Request:
    import cubes

    catalog = _catalog(options)
    given: dict[str, Any] = {"on_missing": options.on_missing, "max_gib": options.max_gib}
    if options.size is not None:
        given["size"] = options.size
    for name in ("bands", "pols"):
        if getattr(options, name):
            given[name] = tuple(getattr(options, name).split(","))
    if options.resolution is not None or options.crs is not None:
        given["grid"] = cubes.Grid(resolution=options.resolution or 10.0, crs=options.crs)
    layers = options.layers.split(",") if options.layers else None
    return cubes.Request.of(_area(options.area), options.time, layers, catalog=catalog, **given)


def _catalog(options: argparse.Namespace) -> Any:
    """Return the catalogue asked for, after adding the user's own rows."""
    import cubes

    for path in options.rows:
        cubes.add(path)
    return cubes.catalog(
        options.catalog, **({"url": options.url} if options.url is not None else {})
    )


def _samples(options: argparse.Namespace, stores: Sequence[Path] | None = None) -> Samples:
    import cubes

    window = cubes.Window(
        size=options.window,
        stride=options.stride,
        dates=options.dates,
        period=options.period,
        step=options.step,
    )
    return cubes.plan(
        list(stores or options.stores),
        window,
        max_gap=options.max_gap,
        min_valid=options.min_valid,
        seed=options.seed,
    )


def _split(options: argparse.Namespace, samples: Samples) -> dict[str, Samples]:
    import cubes

    return cubes.split(
        samples,
        by=options.by,
        block=options.block,
        buffer=options.buffer,
        fractions=tuple(float(f) for f in options.fractions.split(",")),
        seed=options.seed,
    )


def _add_request(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--area", required=required, help=AREA_HELP)
    parser.add_argument("--time", required=required, help='"2023-04/2023-10", or one "2023"; UTC')
    parser.add_argument("--layers", help="comma-separated, e.g. s1/backscatter,s2/reflectance")
    parser.add_argument("--catalog", default="planetary-computer", help="a name, or a TOML file")
    parser.add_argument("--url", help="where the catalogue is, in place of its row's url")
    parser.add_argument(
        "--rows", action="append", default=[], type=Path, help="TOML file of your own rows to add"
    )
    parser.add_argument("--size", type=float, help="edge of the square around a point, metres")
    parser.add_argument("--bands", help="comma-separated, e.g. B04,B08")
    parser.add_argument("--pols", help="comma-separated, e.g. vv,vh")
    parser.add_argument("--resolution", type=float, help="pixel edge, metres (default 10)")
    parser.add_argument("--crs", help="e.g. EPSG:3035 (default: the area's UTM zone)")
    parser.add_argument("--on-missing", choices=("raise", "mask"), default="raise")
    parser.add_argument("--max-gib", type=float, default=200.0, help="refuse larger cubes")


def _add_samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stores", nargs="+", type=Path, help="sealed stores")
    group = parser.add_argument_group("samples")
    group.add_argument("--window", type=int, default=256, help="edge in pixels (256)")
    group.add_argument("--stride", type=int, help="distance between windows (the window)")
    group.add_argument("--dates", type=int, default=12, help="dates kept per sensor (12)")
    group.add_argument("--period", help="length of a sample in time, e.g. 180D (the whole cube)")
    group.add_argument("--step", help="distance between periods (the period)")
    group.add_argument("--max-gap", default="3D", help="largest gap between sensors (3D)")
    group.add_argument("--min-valid", type=float, default=0.99, help="of pixels with data (0.99)")
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("split")
    group.add_argument("--by", choices=("block", "time", "aoi"), default="block")
    group.add_argument("--block", type=float, help="metres (days with --by time)")
    group.add_argument("--buffer", type=float, default=0.0, help="metres (days with --by time)")
    group.add_argument("--fractions", default="0.7,0.15,0.15", help="train,val,test")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepsentinel",
        description="Sentinel-1 and Sentinel-2 cubes, from catalogue search to embeddings.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        return made

    made = command("demo", _demo, "the whole road on two simulated worlds, up to report.html")
    made.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything")
    made.add_argument("--quick", action="store_true", help="tiny worlds, a few steps")

    made = command("search", _search, "what a catalogue has for an area; reads no pixel")
    _add_request(made)
    made.add_argument("--json", action="store_true", help="print the plan itself")

    made = command("build", _build, "write the cube of an area into a Zarr store; run it again")
    made.add_argument("store", nargs="?", help="path of the store; with --like: the area")
    _add_request(made, required=False)
    group = made.add_argument_group("a predecessor's recipe: many cubes, dates by its rule")
    group.add_argument("--like", metavar="RECIPE", help="sen12ts or deepsentinel-1k")
    group.add_argument("--out", type=Path, help="folder (RECIPE-AREA)")
    group.add_argument("--limit", type=int, help="most patches")
    group.add_argument("--seed", type=int, default=0, help="of points, pairs and caps")
    group.add_argument("--without", action="append", default=[], metavar="LAYER")
    made.add_argument("--patch", type=int, default=256, help="edge of a shard in pixels")
    made.add_argument("--codec", choices=("lz4", "zstd", "none"), default="lz4")
    made.add_argument("--force", action="store_true", help="replace a store of another plan")

    made = command("info", _info, "what is in stores, and whether their bytes are those sealed")
    made.add_argument("stores", nargs="+", type=Path)
    made.add_argument(
        "--verify", nargs="?", const="full", choices=("full", "quick"),
        help="check every object: by hash, or (quick) by size",
    )  # fmt: skip

    made = command("stats", _stats, "statistics of training samples per layer and channel")
    _add_samples(made)
    made.add_argument("--all", action="store_true", help="of all samples, not the training split")
    made.add_argument("--out", type=Path, help="JSON file")

    made = command("train", _train, "train a model; prints its folder")
    _add_samples(made)
    made.add_argument("--recipe", default="default", help="a name, or a TOML file")
    made.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change a key")
    made.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if there")

    made = command("evaluate", _evaluate, "score a model beside plain baselines")
    made.add_argument("model", type=Path, help="folder with model.safetensors")
    _add_samples(made)
    made.add_argument("--task", choices=("landcover", "ndvi"), required=True)
    made.add_argument("--test", nargs="+", type=Path, help="stores to score (the test split)")
    made.add_argument("--out", type=Path, help="folder for the table and its pictures' data")
    made.add_argument("--csv", action="store_true")

    made = command("embed", _embed, "write an embedding of every pixel of a store")
    made.add_argument("model", type=Path, help="folder with model.safetensors")
    made.add_argument("store", type=Path, help="a sealed store")
    made.add_argument("out", type=Path, help="path of the embedding store")
    made.add_argument("--dims", type=int, default=64, choices=(16, 32, 64, 128))
    made.add_argument("--dtype", default="int8", choices=("int8", "float32"))

    made = command("report", _report, "pictures and numbers of a demo or run folder as one page")
    made.add_argument("folder", type=Path)
    made.add_argument("--out", type=Path, help="path of the page (FOLDER/report.html)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
