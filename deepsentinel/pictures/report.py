"""One self-contained page with the pictures and numbers of a run folder.

The page is made of what is there: cubes, scores, a training history, an embedding, the record of
stages. What is missing is left out and said so. It needs no network, no script, no other file.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from cubes.types import CubeError, Legend
from deepsentinel.evaluation.bars import BARS, training_adds, verdict
from deepsentinel.evaluation.tasks import RANDOM, Evaluation
from deepsentinel.pictures import charts
from deepsentinel.pictures import figures as pictures
from deepsentinel.pictures.page import Page, facts, paragraph, picture, row

_HEADS = {
    "mIoU": "mIoU",
    "mF1": "mean F1",
    "OA": "accuracy",
    "R2": "R²",
    "skill": "skill",
    "MAE": "MAE",
    "RMSE": "RMSE",
    "bias": "bias",
    "r": "r",
}


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Return the path of the page written: pictures and numbers of a demo or run folder.

    Parameters
    ----------
    folder : path
        Holds any of ``cubes/*.zarr``, ``scores/`` (of `Evaluation.save`), ``run/`` (of `train`),
        ``embedding.zarr``, ``stages.json``; or is itself the run folder of `train`.
    out : path, optional
        The page; ``folder/report.html`` by default.

    Raises
    ------
    CubeError
        The folder holds nothing to show.
    """
    root = Path(folder)
    if not root.is_dir():
        raise CubeError(f"no folder {root} to report on")
    found = _Found.of(root)
    if not found.anything:
        raise CubeError(
            f"{root} holds no cubes/, scores/, embedding.zarr or history of a run: run "
            "`deepsentinel demo` or `train`, or `evaluate --out` into it, first"
        )
    title = "DeepSentinel: one road, end to end" if found.cubes else "DeepSentinel: a training run"
    page = Page(title=title, lead=_lead(found))
    page.cards += _cards(found)
    for name, cube in found.cubes.items():
        _cube_section(page, name, cube)
    _landcover_section(page, found.scores.get("landcover"))
    for task in ("ndvi", "ndvi-gap"):
        _ndvi_section(page, found.scores.get(task))
    if found.embedding is not None:
        _embedding_section(page, found)
    _training_section(page, found)
    _making_section(page, found)
    path = Path(out) if out is not None else root / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(page.html(), encoding="utf-8")
    part.replace(path)
    return path


def score_table(table: pd.DataFrame, score: str) -> str:
    """Return an evaluation's table as HTML: scores, interval, and the model's lead over each row.

    Parameters
    ----------
    table : DataFrame
        Of `evaluate`.
    score : str
        The column whose interval and lead are shown.
    """
    shown = [c for c in _HEADS if c in table]
    heads = ["", *(_HEADS[c] for c in shown), "95 % interval", "model leads by"]
    rows = []
    for name, values in table.to_dict("index").items():
        cells = [html.escape(str(name)), *(_number(values[c]) for c in shown)]
        span = [float(values[f"{score}_{end}"]) for end in ("low", "high")]
        known = bool(np.isfinite(span).all())
        cells.append(f"{_number(span[0])} to {_number(span[1])}" if known else "too few tiles")
        cells.append("" if name == "model" else _lead_cell(values))
        kind = ' class="model"' if str(name).startswith("model") else ""
        rows.append(f"<tr{kind}>{''.join(f'<td>{c}</td>' for c in cells)}</tr>")
    head = "".join(f"<th>{h}</th>" for h in heads)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _number(value: Any) -> str:
    value = float(value)
    return "–" if not np.isfinite(value) else f"{value:.3f}"


def _lead_cell(row: Mapping[Any, Any]) -> str:
    low, high = float(row["gain_low"]), float(row["gain_high"])
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"{float(row['gain']):+.3f} (too few tiles)"
    kind = "good" if low > 0 else "bad" if high < 0 else ""
    return f'<span class="{kind}">{float(row["gain"]):+.3f}</span> ({low:+.3f} to {high:+.3f})'


@dataclass(kw_only=True)
class _Found:
    """What a folder holds."""

    root: Path
    cubes: dict[str, xr.DataTree] = field(default_factory=dict)
    scores: dict[str, Evaluation] = field(default_factory=dict)
    embedding: xr.DataTree | None = None
    history: pd.DataFrame | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Any] = field(default_factory=dict)

    @property
    def anything(self) -> bool:
        """Whether there is something to show."""
        return bool(self.cubes or self.scores) or not (
            self.embedding is None and self.history is None
        )

    @staticmethod
    def of(root: Path) -> _Found:
        """Return what `root` holds; cubes and embedding opened without dask."""
        import cubes
        from deepsentinel.embedding.embed import open_embeddings

        found = _Found(root=root)
        # `evaluate --out RUN` writes beside the model, the demo into folders of its own
        run = root if (root / "run.json").is_file() or (root / "recipe.json").is_file() else None
        scores = root / "scores" if (root / "scores").is_dir() else root
        for store in sorted((root / "cubes").glob("*.zarr"), key=_order):
            found.cubes[store.stem] = cubes.open(store, chunks=None)
        for task in ("landcover", "ndvi", "ndvi-gap"):
            if (scores / f"{task}.json").is_file():
                found.scores[task] = Evaluation.load(scores, task)
        if (root / "embedding.zarr").is_dir():
            found.embedding = open_embeddings(root / "embedding.zarr")
        run = run or root / "run"
        found.history = _history(run)
        found.config = _json(next(iter(sorted(run.rglob("config.json"))), None))
        found.stages = _json(root / "stages.json")
        return found


def _order(store: Path) -> tuple[bool, str]:
    """Return a key that puts the training cube first."""
    return store.stem != "train", store.stem


def _json(path: Path | None) -> Mapping[str, Any]:
    if path is None or not path.is_file():
        return {}
    body: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def _history(run: Path) -> pd.DataFrame | None:
    for name in ("history.csv", "metrics.csv"):
        for path in sorted(run.rglob(name)):
            table = pd.read_csv(path)
            if "step" in table:
                return table
    return None


def _lead(found: _Found) -> str:
    area = [
        f"{cube.sizes['y']:,} × {cube.sizes['x']:,} pixels ({name})"
        for name, cube in found.cubes.items()
    ]
    if not area:
        return "How a model was trained, and what it scores beside plain baselines where it was."
    return (
        "From a catalogue search to a lazy cube, to Zarr, to samples, to a trained fusion model, "
        "its scores beside plain baselines, and an embedding of every pixel"
        + f": cubes of {' and '.join(area)}."
    )


def _cards(found: _Found) -> list[tuple[str, str]]:
    """Return the scores of the model and of whom it must beat, the untrained model among them."""
    cards = []
    told = {
        "landcover": ("mIoU", "mIoU, linear probe on {}", "the embedding as it is written"),
        "ndvi": ("skill", "skill over month climatology, NDVI from radar: {}", "the model"),
    }
    for task, (score, text, mine) in told.items():
        scored = found.scores.get(task)
        if scored is None:
            continue
        names = {"model": mine, RANDOM: "the same model untrained"}
        for name in ("model", RANDOM, BARS[task][0]):
            if name in scored.table.index:
                what = text.format(names.get(name, name))
                cards.append((_number(scored.table[score][name]), what))
    return cards


def _numbers(scored: Evaluation) -> str:
    """Return in words what of an embedding was read out, and what of it no training can change."""
    told = scored.meta.get("embedding")
    if not told:
        return ""
    dims, fixed = int(told["dims"]), int(told["measured"])
    text = f"Read out are the {dims} numbers per pixel that are written, {told['dtype']}"
    if not fixed:
        return f"{text}. "
    share = f"{100 * fixed / dims:.0f} %"
    return (
        f"{text}; {fixed} of them ({share}) are principal components of the pixel's statistics "
        "over the dates, found in the training data before the first step; no step changes them. "
    )


def _cube_section(page: Page, name: str, cube: xr.DataTree) -> None:
    parts = page.section(f"The {name} cube")
    box = cube[next(iter(cube.children))].to_dataset().odc.geobox
    size = (
        f"{cube.sizes['y']:,} × {cube.sizes['x']:,} pixels of {abs(box.resolution.x):g} m, "
        f"{_crs(box)}"
    )
    steps = ", ".join(
        f"{cube[g].sizes[d]} {what}"
        for g, d, what in (
            ("s1", "time", "Sentinel-1 dates"),
            ("insar", "pair", "interferometric pairs"),
            ("s2", "time", "Sentinel-2 dates"),
        )
        if g in cube.children
    )
    parts.append(paragraph(f"{size}; {steps}. One grid, one clock per sensor."))
    parts.append(picture(charts.timeline(cube), "Every acquisition in the cube."))
    parts.append(
        picture(
            pictures.maps(pictures.overview(cube)),
            "What the cube holds, each kind of layer once. Grey is no data; in the NDVI map it is "
            "cloud as well.",
        )
    )
    if "labels" in cube.children and pictures.has(cube, "s2", "reflectance", ("B04", "B08")):
        parts.append(
            picture(charts.ndvi_series(cube), "The season of each class, clear pixels only.")
        )


def _crs(box: Any) -> str:
    return f"EPSG:{box.crs.epsg}" if box.crs.epsg else str(box.crs.proj.name)


def _landcover_section(page: Page, scored: Evaluation | None) -> None:
    if scored is None:
        return
    parts = page.section("Land cover from the frozen embedding")
    meta, table = scored.meta, scored.table
    parts.append(
        paragraph(
            "One linear map from features to classes, fitted on "
            f"{meta['train_pixels']:,} labelled pixels of the training samples and scored on "
            f"{int(table['pixels'].iloc[0]):,} pixels of the test samples. Every contender gets "
            "the same pixels and the same probe; nodata and ignored classes are never scored. "
            f"{_numbers(scored)}By mIoU the model is {verdict(table, 'pixel statistics')}. "
            f"{training_adds(table)}"
        )
    )
    parts.append(score_table(table, "mIoU"))
    if meta["origin"] == "mapped":
        parts.append(
            paragraph(
                f"{meta['title']} is itself mapped from satellites: the scores say how well "
                "the product is reproduced.",
                note=True,
            )
        )
    figure = charts.confusion(
        scored.arrays["confusion/model"], meta["names"], "model, linear probe"
    )
    chart = charts.bars(table, "mIoU", title="mIoU with 95 % interval", label="mIoU")
    parts.append(
        row(
            picture(figure, "Where the pixels of each true class went."),
            picture(chart, "Every contender. The interval is drawn by tile of ground."),
        )
    )
    legend = _legend(meta)
    panels = [
        pictures.Panel(
            title=title,
            image=pictures.class_colours(scored.arrays[f"map/{name}"], legend),
            legend=pictures.legend_of(scored.arrays[f"map/{name}"], legend),
        )
        for name, title in (
            ("truth", "labels"),
            ("model", "model, linear probe"),
            ("pixel statistics", "pixel statistics, same probe"),
        )
        if f"map/{name}" in scored.arrays
    ]
    parts.append(picture(pictures.maps(panels), "The test samples, mapped as they were scored."))


def _legend(meta: Mapping[str, Any]) -> Legend:
    """Return the legend of what was scored, from the scores themselves: it needs no row here."""
    entries = zip(meta["names"], meta["colours"], strict=True)
    return Legend(
        name=meta["legend"], title=meta["title"], origin=meta["origin"], nodata=None,
        classes=dict(zip(meta["codes"], entries, strict=True)),
    )  # fmt: skip


def _ndvi_section(page: Page, scored: Evaluation | None) -> None:
    if scored is None:
        return
    title, hidden, seen, drawn = _hiding(scored.meta["options"])
    parts = page.section(title)
    table = scored.table
    rivals = [n for n in table.index if str(n).startswith(("ridge", "linear"))]
    parts.append(
        paragraph(
            f"The frozen model is asked for a Sentinel-2 date with {hidden} hidden and read out "
            f"by a ridge regression; the other ridge regressions see {seen}, at the same "
            "dates; all are fitted on the same pixels of the training samples. "
            f"{_numbers(scored)}"
            f"{int(table['pixels'].iloc[0]):,} clear pixels are scored. Skill is 1 - SSE / SSE of "
            "the month's mean in the training samples: most of NDVI's variance is season, so R² "
            "alone flatters whoever knows the calendar. The model is "
            + "; ".join(verdict(table, str(n)) for n in rivals)
            + f". {training_adds(table)}"
        )
    )
    parts.append(score_table(table, "skill"))
    density = {
        str(n): scored.arrays[f"density/{n}"]
        for n in table.index
        if f"density/{n}" in scored.arrays
    }
    if density:
        parts.append(
            picture(
                charts.density(density, scored.arrays["density_edges"]),
                "Prediction against measurement, number of pixels on a logarithmic scale.",
            )
        )
    parts.append(
        row(
            picture(
                charts.bars(table, "skill", title="Skill over month climatology", label="skill"),
                f"0 is the month's mean. The interval is drawn by {drawn}.",
            ),
            picture(
                charts.monthly(
                    {str(n): scored.meta["by_month"][str(n)] for n in table.index}, "skill"
                ),
                "Skill by calendar month; the bars behind are the share of the pixels.",
            ),
        )
    )
    panels = list(_example_panels(scored))
    if panels:
        parts.append(
            picture(
                pictures.maps(panels, columns=6, width=1.75),
                "The nearly cloudless test scenes of most varied NDVI.",
            )
        )


def _hiding(options: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return title, what was hidden, what ridges saw and what intervals were drawn by."""
    gap, held = options.get("gap"), options.get("held")
    seen = "the radar itself and the interpolation between the dates left"
    drawn = "block of dates and tile of ground"
    if held:
        first, last = (str(v)[:10] for v in (held[0][0], held[-1][1]))
        spans = f"{len(held)} spans of dates" if len(held) > 1 else "one span of dates"
        hidden = f"Sentinel-2 of {spans} between {first} and {last}"
        return f"NDVI of {spans} held out", hidden, seen, drawn
    if gap is not None:
        return f"NDVI across gaps of {gap:g} days", f"Sentinel-2 for {gap:g} days", seen, drawn
    hidden = "all of Sentinel-2"
    return "NDVI from Sentinel-1 alone", hidden, "the radar itself", "tile of ground"


def _example_panels(scored: Evaluation) -> Iterable[pictures.Panel]:
    days = scored.meta["examples"]
    for i, day in enumerate(days):
        date = np.datetime64("2000-01-01") + np.timedelta64(int(day), "D")
        for name, title in (("truth", f"measured, {date}"), ("model", "model"), ("ridge", "ridge")):
            image = scored.arrays.get(f"example/{i}/{name}")
            if image is not None:
                yield pictures.Panel(title=title, image=image, scale=("YlGn", 0, 0.9), unit="NDVI")


def _embedding_section(page: Page, found: _Found) -> None:
    assert found.embedding is not None
    parts = page.section("The embedding")
    data = found.embedding.to_dataset()["embeddings"]
    n = data.sizes["embedding"]
    parts.append(
        paragraph(
            f"{n} numbers for each of {data.sizes['y']:,} × {data.sizes['x']:,} pixels, computed "
            "in overlapping windows whose margins are trimmed. The picture shows the first three "
            "principal components as red, green and blue: like colours mean like places."
        )
    )
    # every second pixel of a large cube is enough for a picture, and a quarter of the memory
    every = 2 if data.sizes["y"] > 700 else 1
    values = data.isel(time=0, y=slice(None, None, every), x=slice(None, None, every)).to_numpy()
    panels = [pictures.Panel(title="embedding", image=pictures.component_colour(values))]
    cube = found.cubes.get("test") or next(iter(found.cubes.values()), None)
    if cube is not None and cube.sizes["y"] == data.sizes["y"]:
        kinds = ("Sentinel-2 true colour", "Labels")
        panels += [p for p in pictures.overview(cube) if p.title.startswith(kinds)]
    parts.append(picture(pictures.maps(panels), "The embedding beside what it was made of."))


def _training_section(page: Page, found: _Found) -> None:
    if found.history is None:
        return
    parts = page.section("Training")
    history = found.history
    names = [str(c) for c in history]
    losses = [c for c in names if "loss" in c.lower()][:4]
    others = [c for c in names if "rank" in c.lower() or "uniform" in c.lower()][:3]
    blocks = [picture(charts.curves(history, losses, title="Loss"), "Loss over the steps.")]
    if others:
        blocks.append(
            picture(
                charts.curves(history, others, title="Is the embedding collapsing?"),
                "Effective rank falls to 1, uniformity rises to 0 when it does.",
            )
        )
    parts.append(row(*blocks))


def _making_section(page: Page, found: _Found) -> None:
    rows: dict[str, Any] = {}
    for name, record in found.stages.items():
        rows[f"stage {name}"] = f"{record['seconds']:.1f} s"
    config = found.config
    for key in ("width", "depth_t", "depth_f", "patch", "dims"):
        if key in config:
            rows[f"model {key}"] = config[key]
    for key, value in dict(config.get("card", {})).items():
        name = value.get("name", "") if isinstance(value, Mapping) else value
        rows[f"model {key}"] = name
    for name, cube in found.cubes.items():
        if "plan_sha256" in cube.attrs:
            rows[f"plan of {name}"] = cube.attrs["plan_sha256"]
    rows |= _software()
    parts = page.section("How this was made")
    parts.append(facts(rows))
    if "simulated" in json.dumps([dict(c.attrs) for c in found.cubes.values()], default=str):
        parts.append(
            paragraph(
                "The pixels are simulated. Scores on simulated worlds rank methods against each "
                "other on these worlds; they are not comparable with scores on measured data.",
                note=True,
            )
        )


def _software() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    found["processors"] = str(os.cpu_count())
    for name in ("deepsentinel", "torch", "xarray", "zarr", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
