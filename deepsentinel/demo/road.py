"""The demo: the whole road on two simulated worlds, from their publication to a report.

Worlds are published in parallel processes and served by a real STAC API; each is searched, built
into a cube on a dask cluster, cut into samples, and the nano model is trained on the one and
evaluated on the other, which has another seed and other parameters. Every stage is reused by
hash on the next run (`deepsentinel.demo.stages`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cubes.types import CubeError
from deepsentinel.demo.archives import bytes_under, publish_all, stac_api
from deepsentinel.demo.stages import (
    Console,
    Memory,
    Result,
    Stages,
    cpu_seconds,
    digest,
    environment,
    source_digest,
)
from deepsentinel.quantised import DIMS

if TYPE_CHECKING:
    from cubes import Request, Samples
    from deepsentinel.evaluation.bars import Judgement

LAYERS = (
    "s1/backscatter",
    "s1/incidence",
    "insar/coherence",
    "insar/phase",
    "s2/reflectance",
    "s2/scl",
    "s2/clear",
    "terrain/elevation",
    "labels/worldcover",
)
PAGE_SIZE = 10
"""Items per page asked of the API: small, so that the search pages as it does on big archives."""

TASKS = ("landcover", "ndvi")

WORKER_MEMORY = "1500MiB"
"""Limit of each of the two dask workers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large a demo is."""

    worlds: tuple[tuple[str, str, int], ...]
    """Role, parameter row and seed of each world."""
    recipe: str
    overrides: tuple[str, ...] = ()
    """Changes to the recipe, as ``--set`` takes them."""
    window: int = 64
    """Edge of a sample in pixels."""
    dates: int = 12
    """Dates of each sensor in a sample."""
    block: float
    """Edge of the squares that keep splits apart, metres."""
    buffer: float
    """Distance kept between training samples and the other splits, metres."""


FULL = Size(
    worlds=(("train", "demo-train", 1), ("test", "demo-test", 2)),
    recipe="demo",
    block=1280.0,
    buffer=0.0,
)
QUICK = Size(
    worlds=(("train", "tiny", 1), ("test", "tiny", 2)),
    recipe="demo",
    overrides=("train.steps=20",),
    dates=6,
    block=640.0,
    buffer=0.0,
)


def demo(out: str | Path, *, quick: bool = False, console: Console | None = None) -> Path:
    """Return the path of the report that the whole road ends in.

    Parameters
    ----------
    out : Path
        Folder for everything: worlds, cubes, the run, embeddings, ``report.html``.
    quick : bool
        Two `tiny` worlds and a few steps of training: walks the road, proves nothing; its bars
        are judged all the same.
    console : Console, optional
        Where progress goes; standard error by default.

    Raises
    ------
    CubeError
        A stage failed; what was done before stays and is reused.
    """
    console = console or Console()
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    job = _Job(
        out=folder, size=QUICK if quick else FULL, stages=Stages(folder=folder, console=console)
    )
    with Memory() as memory:
        worlds = publish_worlds(job)
        built = build_cubes(job, worlds)
        trained = train_model(job, built)
        evaluate_model(job, built, trained)
        embed_cube(job, built, trained)
        report = write_report(job)
    job.record_run(memory)
    for bar in judged(folder):
        console.line(f"bar {'met' if bar.met else 'MISSED':<6} {bar.text}")
    console.line(
        f"report     {report} ({len(job.stages.reused)} of {len(job.stages.records)} stages "
        f"reused; peak memory of all processes {memory.peak / 2**30:.2f} GiB)"
    )
    return report


def judged(out: str | Path) -> list[Judgement]:
    """Return whether each bar was met by the scores of a finished demo.

    Parameters
    ----------
    out : Path
        The demo's folder.

    Raises
    ------
    CubeError
        It holds no scores.
    """
    from deepsentinel.evaluation.bars import judge
    from deepsentinel.evaluation.tasks import Evaluation

    folder = Path(out) / "scores"
    return judge({task: Evaluation.load(folder, task).table for task in TASKS})


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One run of the demo: where, how large, and what is done already."""

    out: Path
    size: Size
    stages: Stages

    @property
    def console(self) -> Console:
        """Where progress goes."""
        return self.stages.console

    def key(self, *parts: Any, sources: Sequence[str]) -> str:
        """Return the key of a stage that depends on `parts` and on some modules' source."""
        return digest(source_digest(sources), *parts)

    def done(self, name: str) -> str:
        """Return the key that a finished stage has on record: what later stages build on."""
        return str(self.stages.records[name]["key"])

    def record_run(self, memory: Memory) -> None:
        """Write what this run took, for people and benchmarks."""
        body = {
            "seconds": round(time.monotonic() - self.console.start, 2),
            "cpu_seconds": round(cpu_seconds(), 2),
            "peak_memory_bytes": memory.peak,
            "stages_seconds": dict(self.stages.seconds),
            "reused": self.stages.reused,
            "cpus": os.cpu_count(),
        }
        (self.out / "last-run.json").write_text(json.dumps(body, indent=1), encoding="utf-8")


# -- worlds ------------------------------------------------------------------------------------


def publish_worlds(job: _Job) -> Result:
    """Return, per role, where a world was published; both at once, one process each."""
    key = job.key(
        job.size.worlds, sources=("cubes.worlds", "cubes.types", "cubes.physics", "cubes.grid")
    )

    def make() -> tuple[Result, list[Path]]:
        result = publish_all(
            job.size.worlds,
            job.out / "worlds",
            lambda text: job.console.update(f"worlds     {text}"),
        )
        return result, [
            job.out / "worlds" / role / path for role in result for path in result[role]["proof"]
        ]

    def check(result: Result) -> bool:
        return all(
            bytes_under(job.out / "worlds" / role) == result[role]["bytes"] for role in result
        )

    return job.stages.run("worlds", key, make, check=check)


# -- cubes and samples -------------------------------------------------------------------------


def build_cubes(job: _Job, worlds: Result) -> Result:
    """Return, per role, the sealed store of a world's cube, searched and built on dask."""
    import cubes

    key = job.key(job.done("worlds"), LAYERS, PAGE_SIZE, sources=("cubes",))

    def make() -> tuple[Result, list[Path]]:
        from distributed import Client, LocalCluster

        result = {}
        with (
            environment(),
            LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=2,
                threads_per_worker=1,
                memory_limit=WORKER_MEMORY,
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,  # type: ignore[no-untyped-call]
        ):
            for role, _, _ in job.size.worlds:
                result[role] = _build(job, role, worlds[role], client)
        return result, []

    def check(result: Result) -> bool:
        stores = [job.out / result[role]["store"] for role in result]
        return all(s.exists() and cubes.verify(s, quick=True).state == "sealed" for s in stores)

    return job.stages.run("cubes", key, make, check=check)


def request_for(world: Path, published: Result, url: str) -> Request:
    """Return the request for a published world's whole area and season, searched at `url`."""
    import cubes

    catalog = cubes.catalog(
        "simulated",
        url=url,
        kind="api",
        page_size=PAGE_SIZE,
        access=cubes.Access(schemes=("file",), roots=(str(world),)),
    )
    time = _season((world / published["catalog"]).parent)
    return cubes.Request.of(world / published["aoi"], time, layers=LAYERS, catalog=catalog)


def _season(archive: Path) -> tuple[str, str]:
    """Return first and last moment that an archive's radar and optical collections state."""
    intervals = []
    for name in ("sentinel-1-rtc", "sentinel-2-l2a"):
        text = (archive / name / "collection.json").read_text(encoding="utf-8")
        intervals.append(json.loads(text)["extent"]["temporal"]["interval"][0])
    return min(first for first, _ in intervals), max(last for _, last in intervals)


def _build(job: _Job, role: str, published: Result, client: Any) -> Result:
    import cubes

    world = job.out / "worlds" / role
    store = job.out / "cubes" / f"{role}.zarr"
    store.parent.mkdir(parents=True, exist_ok=True)
    with stac_api([world / name for name in published["server"]]) as url:
        plan = request_for(world, published, url).plan()
    axes = ", ".join(f"{len(a)} {a.group}.{a.dim}" for a in plan.axes)
    rows, columns = plan.geobox.shape
    job.console.line(f"cubes      {role}: {rows:,} x {columns:,} px, {axes}")
    # The regions of an interrupted run are kept; a store of another plan makes way.
    report = cubes.write(
        plan,
        store,
        client=client,
        progress=job.console.progress(f"cubes      {role}"),
        force=True,
    )
    job.console.line(f"cubes      {report}")
    if report.state != "sealed":
        region, why = next(iter(report.failed.items()), ("?", "no reason was given"))
        raise CubeError(
            f"cube {role!r} is not whole: {len(report.failed)} regions failed, the first is "
            f"{region}: {why}. What is written stays; run again"
        )
    return {
        "store": str(store.relative_to(job.out)),
        "shape": [rows, columns],
        "steps": {f"{a.group}.{a.dim}": len(a) for a in plan.axes},
        "tree_sha256": report.tree_sha256,
        "seconds": round(report.seconds, 2),
        "pixels_read": report.pixels_read,
    }


def plan_samples(job: _Job, built: Result) -> dict[str, Samples]:
    """Return training, validation and test samples; the test world is one split by itself."""
    import cubes

    window = cubes.Window(size=job.size.window, dates=job.size.dates)
    # A world's ascending and descending passes leave pixels without data along slanted borders.
    samples = cubes.plan(job.out / built["train"]["store"], window, min_valid=0.5, seed=1)
    parts = cubes.split(
        samples, block=job.size.block, buffer=job.size.buffer, fractions=(0.85, 0.15), seed=1
    )
    test = cubes.plan(job.out / built["test"]["store"], window, min_valid=0.5, seed=1)
    return {"train": parts["train"], "val": parts["test"], "test": test}


# -- model -------------------------------------------------------------------------------------


def train_model(job: _Job, built: Result) -> Result:
    """Return the folder of the model trained on the training world."""
    import deepsentinel
    from deepsentinel.training.heap import keep_heap

    keep_heap()
    recipe = deepsentinel.load_recipe(job.size.recipe, list(job.size.overrides))
    samples = plan_samples(job, built)
    counts = ", ".join(f"{len(part):,} {name}" for name, part in samples.items())
    job.console.line(f"samples    {counts} of {job.size.window} px")
    key = job.key(
        recipe.sha256,
        {name: part.sha256 for name, part in samples.items()},
        sources=("cubes", *_LEARNING),
    )

    def make() -> tuple[Result, list[Path]]:
        out, mark = job.out / "run", job.out / "run.key"
        if not (mark.is_file() and mark.read_text() == key):
            shutil.rmtree(out, ignore_errors=True)
            mark.write_text(key)
        # Under the same key an interrupted run is gone on with from its last checkpoint.
        run = deepsentinel.train(
            recipe,
            {name: samples[name] for name in ("train", "val")},
            out=out,
            progress=job.console.progress("train"),
        )
        model = Path(run.model)
        return (
            {"model": str(model.relative_to(job.out)), "samples": counts},
            sorted(p for p in model.iterdir() if p.is_file()),
        )

    return job.stages.run("train", key, make)


# Rooms as wholes: a file that moves within one still counts.
_LEARNING = tuple(
    f"deepsentinel.{name}" for name in ("loading", "training", "model", "recipe", "recipes")
)
_PAGE = ("deepsentinel.pictures",)
_EMBEDDING = ("deepsentinel.embedding", "deepsentinel.quantised")
_SCORING = ("deepsentinel.evaluation", "deepsentinel.quantised")


def evaluate_model(job: _Job, built: Result, trained: Result) -> Result:
    """Return where the scores on the test world are, model and baselines."""
    import deepsentinel
    from deepsentinel.evaluation.evaluate import assess

    key = job.key(job.done("train"), job.done("cubes"), sources=_SCORING)

    def make() -> tuple[Result, list[Path]]:
        samples = plan_samples(job, built)
        model = deepsentinel.Fusion.from_pretrained(job.out / trained["model"])
        folder = job.out / "scores"
        for task in TASKS:
            found = assess(
                model,
                samples["test"],
                task=task,
                train_samples=samples["train"],
                progress=job.console.progress(f"evaluate   {task}"),
            )
            found.save(folder)
            job.console.line(f"evaluate   {task}\n{found.table.round(3).to_string()}")
        return {"folder": "scores"}, sorted(folder.iterdir())

    return job.stages.run("evaluate", key, make)


def embed_cube(job: _Job, built: Result, trained: Result) -> Result:
    """Return the sealed store of the test world's embedding."""
    import deepsentinel
    from deepsentinel.embedding.embed import OVERLAP, Job
    from deepsentinel.embedding.embedstore import verify_embeddings

    key = job.key(
        job.done("train"),
        job.done("cubes"),
        sources=("cubes", *_LEARNING, *_EMBEDDING),
    )
    store = job.out / "embedding.zarr"

    def make() -> tuple[Result, list[Path]]:
        shutil.rmtree(store, ignore_errors=True)
        model = deepsentinel.Fusion.from_pretrained(job.out / trained["model"])
        cube = job.out / built["test"]["store"]
        made = Job.of(model, cube, dims=DIMS, dtype="int8", overlap=OVERLAP)
        made.write(store, job.console.progress("embed"))
        return {"store": store.name}, []

    def check(result: Result) -> bool:
        return verify_embeddings(job.out / result["store"], quick=True).state == "sealed"

    return job.stages.run("embed", key, make, check=check)


def write_report(job: _Job) -> Path:
    """Return the path of the page with pictures and numbers."""
    import deepsentinel

    key = job.key(job.done("evaluate"), job.done("embed"), sources=(*_PAGE, *_SCORING))

    def make() -> tuple[Result, list[Path]]:
        page = deepsentinel.report(job.out, job.out / "report.html")
        return {"page": Path(page).name}, [Path(page)]

    return job.out / str(job.stages.run("report", key, make)["page"])
