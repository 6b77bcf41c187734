"""The race: qualifying, by which each rival gets the best of its layouts, then turns, one table."""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import common, stream
from benchmarks.race import arrays, env, formats, images
from benchmarks.race.field import CORES, Course, Rival, check, course, forget

FULL = {"edge": 512, "dates": 64, "size": 256}
QUICK = {"edge": 128, "dates": 16, "size": 64}

PACKAGES = (
    "deepsentinel", "torch", "numpy", "zarr", "zarrs", "numcodecs", "xbatcher", "dask", "litdata",
    "webdataset", "mosaicml-streaming", "tensorstore", "torchgeo", "rasterio",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Heat:
    """Ways to run one rival, of which the fastest races."""

    name: str
    folder: Path
    make: tuple[tuple[str, Callable[[Path], Rival]], ...]


def heats(track: Course, folder: Path, *, quick: bool) -> list[Heat]:
    """Return the heats: each rival by itself, formats compressed and not."""
    found: list[Heat] = []

    def add(name: str, *make: tuple[str, Callable[[Path], Rival]]) -> None:
        found.append(Heat(name=name, folder=folder, make=make[:1] if quick else make))

    crews = (CORES,) if quick else (CORES, 0)
    for name, form in formats.FORMATS.items():
        for compressed, layouts in formats.LAYOUTS.items():
            ways = [
                (f"{layout}; {w} workers", partial(form, track, layout=layout,
                                                   compressed=compressed, workers=w))
                for layout in layouts for w in (crews if layout[:2] == "12" else crews[:1])
            ]  # fmt: skip
            add(f"{name}, {'' if compressed else 'un'}compressed", *ways)
    for name, kind in (("GeoTIFF", images.geotiff), ("torchgeo", images.torchgeo)):
        ways = [(k, partial(kind, track, layout=k, workers=CORES)) for k in images.TIFF]
        add(f"{name}, compressed", *ways[:2])
        add(f"{name}, uncompressed", *ways[2:])
    for layouts, state in ((arrays.ZARR[:2], "compressed"), (arrays.ZARR[2:], "uncompressed")):
        ways = [(k, partial(arrays.tensorstore, track, layout=k)) for k in layouts]
        add(f"TensorStore, {state}", *ways)
        for name, pipeline in (("zarrs", stream.ZARRS), ("zarr-python", stream.PYTHON)):
            ways = [
                (f"{k}; {w}", partial(arrays.zarr, track, layout=k, pipeline=pipeline, way=w))
                for k in layouts
                for w in ("slices", f"slices, {CORES} threads", "selection")
                # a list of steps of a shard takes a second a sample: chunks only
                if k == arrays.ZARR[1] or w != "selection"
            ]
            add(f"{name}, {state}", *ways)
    add("plain files", *[(k, partial(arrays.plain, track, layout=k)) for k in arrays.PLAIN])
    return found


def fixed(track: Course) -> list[Rival]:
    """Return those that have no layouts of their own: ours, the limits, xbatcher."""
    where, n = track.where, len(track.wanted)
    few = replace(where, rows=where.rows[: min(4, n)])
    some = replace(where, rows=where.rows[: min(8, n)])

    def entry(name: str, layout: str, call: Callable[[], None], of: int, kind: Any = True) -> Rival:
        def start() -> list[Any]:
            call()
            return []

        return Rival(name=name, layout=layout, compressed=kind, path=where.path, n=of,
                     stored=track.patches, start=start)  # fmt: skip

    alone = stream.codec(where, CORES)
    limit = entry("codec alone", f"{CORES} threads, from memory", alone, n, None)
    return [
        entry("ours", f"{CORES} threads", stream.ours(where, CORES), n),
        entry("ours", f"{CORES} forkserver workers", stream.ours(where, CORES, CORES), n),
        replace(limit, path=None),
        arrays.memcpy(track),
        entry("xbatcher", "no dask, zarrs", stream.xbatcher_best(some, stream.ZARRS),
              len(some.rows)),
        entry("xbatcher", "over dask, as documented", stream.xbatcher_documented(few),
              len(few.rows)),
    ]  # fmt: skip


def qualify(heat: Heat, track: Course) -> tuple[Rival | None, list[tuple[str, str]]]:
    """Return the fastest way of a heat, checked number by number, and what each way did."""
    best: tuple[float, Rival] | None = None
    told: list[tuple[str, str]] = []
    for label, make in heat.make:
        began = time.perf_counter()
        # formats write below a folder of their own, named by their layout, shared by its ways
        place = heat.folder / f"{heat.name}-{label.partition(';')[0]}".replace(" ", "-")
        wide = heat.name.partition(",")[0] in formats.FORMATS
        try:
            place = place if wide else heat.folder
            place.mkdir(exist_ok=True)
            one = make(place)
            check(one, track)  # also the warm-up
            took = common.seconds(one.run) / one.n
        except (ImportError, RuntimeError, OSError, ValueError) as error:
            last = str(error).strip().splitlines()[-1]  # a worker's error ends with its cause
            told.append((label, f"{type(error).__name__}: {last[:120]}"))
            continue
        label = one.layout + label.partition(";")[1] + label.partition(";")[2]
        told.append((label, f"{1 / took:.3g}/s"))
        if best is None or took < best[0]:
            best = (took, replace(one, layout=label))
        del one
        gc.collect()  # workers of a DataLoader end with it
        common.show(f"  {heat.name}: {label}: {told[-1][1]}, {time.perf_counter() - began:.0f} s")
    _tidy(heat, None if best is None else best[1])
    return (None if best is None else best[1]), told


def _tidy(heat: Heat, best: Rival | None) -> None:
    """Remove what the losing layouts of a format wrote."""
    for place in heat.folder.glob(f"{heat.name}-*".replace(" ", "-")):
        if best is None or best.path is None or place not in best.path.parents:
            shutil.rmtree(place)


@dataclass(frozen=True)
class Pairs:
    """Seconds a sample of one rival and, right before or after each of its passes, of ours."""

    took: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """How many times our time it takes, the median of pairs."""
        return common.ratio(self.took, self.ours)


def turns(rivals: Sequence[Rival], repeats: int) -> list[Pairs]:
    """Return seconds of everyone, forwards and then backwards, each pass beside one of ours.

    With twenty rivals a turn takes a quarter of a minute: the first of the list would meet another
    state of the machine than the last (five turns on a busy one put TensorStore at 0.7 of our
    time; eleven pairs side by side, at 2.1).
    """
    first, found = rivals[0], [Pairs([], []) for _ in rivals]
    for n in range(repeats):
        order = list(zip(rivals, found, strict=True))
        for one, pairs in order if n % 2 == 0 else reversed(order):
            both = [(first, pairs.ours), (one, pairs.took)]
            for who, seconds in both if n % 2 == 0 else reversed(both):
                seconds.append(common.seconds(who.run) / who.n)
    return found


def cold(rivals: Sequence[Rival], repeats: int) -> dict[int, float]:
    """Return seconds a sample with the pages forgotten before each pass, the best of some turns."""
    os.sync()  # pages that are not written yet are kept
    out: dict[int, list[float]] = {i: [] for i in range(len(rivals))}
    paths = {r.path for r in rivals if r.path is not None}
    for _ in range(repeats):
        for i, one in enumerate(rivals):
            if one.compressed is not None:
                forget(paths)
                out[i].append(common.seconds(one.run) / one.n)
    return {i: min(v) for i, v in out.items() if v}


def table(track: Course, rivals: list[Rival], spent: list[Pairs], chilly: Any) -> str:
    """Return the table of the race."""
    spent[0] = Pairs(*([s for p in spent for s in p.ours],) * 2)  # all of its passes
    mb = sum(v.nbytes for v in track.truth.values()) / len(track.wanted) / 1e6
    every = sum(v.nbytes for v in track.pixels.values()) / track.patches / 1e6
    ours = rivals[0].nbytes / track.patches / 1e6 / every
    rows = []
    for i, (one, took) in enumerate(zip(rivals, spent, strict=True)):
        rate = 1 / statistics.median(took.took)
        each = one.nbytes / one.stored / 1e6 if one.stored and one.nbytes else 0.0
        rows.append(
            (
                one.name,
                one.layout,
                "" if not each else "all" if one.fresh else "12",
                each or "",
                each / (every if one.fresh else mb) / ours if each else "",
                rate,
                rate * mb,
                took.ratio,
                rate / each if each else "",
                1 / chilly[i] if i in chilly else "",
            )
        )
    rows[2:] = sorted(rows[2:], key=lambda r: -float(str(r[5])))
    head = ("who", "layout and way", "dates stored", "MB stored a sample", "bytes over ours",
            "samples/s", "MB/s",
            "x slower than ours", "samples/s per MB stored", "samples/s, cold")  # fmt: skip
    n = len(track.wanted)
    title = (
        f"Race: whole samples of {mb:.1f} MB, 12 dates, {track.size} px, batches of "
        f"{track.where.batch}, {n} a pass; {CORES} threads or processes; medians of "
        f"{len(spent[-1].took)} turns"
    )
    return common.table(title, head, rows, *PACKAGES)


def bars(rivals: list[Rival], spent: list[Pairs]) -> str:
    """Return the bars that the race is held for, each with what this run gave."""
    lines = []

    def line(what: str, value: float, bar: float) -> None:
        lines.append(f"- {what}: {value:.3g} (bar {bar:g}{'' if value >= bar else ', not held'})")

    for one, took in zip(rivals, spent, strict=True):
        name, ratio = f"{one.name}, {one.layout}", took.ratio
        if one.name == "xbatcher" and "documented" in one.layout:
            line(f"ours over {name}", ratio, 60)
        elif one.name == "zarrs":
            line(f"ours over {name}", ratio, 2.5)
        elif one.name in formats.FORMATS or one.name in ("torchgeo RasterDataset", "TensorStore"):
            line(f"ours over {name}", ratio, 1)
        elif one.name == "plain .npy files" and one.stored and rivals[0].stored:
            line(f"ours over {name}", ratio, 0)
            saved = (one.nbytes / one.stored) / (rivals[0].nbytes / rivals[0].stored)
            line(f"ours over {name}, per byte stored", ratio * saved, 1)
    return "\n".join(["Bars (medians of paired ratios):", "", *lines, ""])


def main(arguments: Sequence[str] = ()) -> str:
    """Return the table, the qualifying and what could not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race")
    parser.add_argument("--make-env", type=Path, help="make the throw-away environment, and end")
    parser.add_argument("--env", type=Path, help="run in that environment")
    parser.add_argument("--folder", type=Path, help="keep the store here")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small store, one layout each")
    parser.add_argument("--only", default="", help="rivals whose name contains this")
    chosen = parser.parse_args(list(arguments))
    if chosen.make_env:
        env.make(chosen.make_env)
        return ""
    if chosen.env and Path(sys.prefix).resolve() != chosen.env.resolve():
        sys.exit(env.again(chosen.env.absolute(), list(arguments)))
    size = QUICK if chosen.quick else FULL
    with tempfile.TemporaryDirectory(prefix="race-") as scratch, common.quiet():
        folder = Path(scratch)
        path = stream.store(chosen.folder or folder, **size)
        track = course(path, size=size["size"], samples=16)
        rivals, told, absent = fixed(track), [], []
        for one in rivals:
            one.run()
        for heat in heats(track, folder, quick=chosen.quick):
            if chosen.only not in heat.name:
                continue
            best, how = qualify(heat, track)
            told.append(f"- {heat.name}: " + "; ".join(f"{k} {v}" for k, v in how))
            (absent.append(heat.name) if best is None else rivals.append(best))
        repeats = 2 if chosen.quick else chosen.repeats
        spent = turns(rivals, repeats)
        text = table(track, rivals, spent, cold(rivals, 1 if chosen.quick else 2))
        text += "\n" + bars(rivals, spent)
        rivals.clear()
        gc.collect()
    notes = ["Qualifying (one line a heat; what could not run says why):", "", *told, ""]
    return "\n".join([text, *notes])


if __name__ == "__main__":
    began = time.perf_counter()
    common.show(main(sys.argv[1:]))
    common.show(f"{time.perf_counter() - began:.0f} s")
