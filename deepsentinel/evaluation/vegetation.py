"""NDVI of a date from Sentinel-1 alone, or across a gap in Sentinel-2, beside honest floors.

All contenders see the same dates and are scored on the same clear pixels. The model is frozen and
read out as the baselines are: by a ridge regression, on what it says of the date and on its dense
features; what its decoder says by itself stands beside it. Skill is measured over
the month climatology of the training samples (no class known): most of NDVI's variance is season,
so total R2 flatters whoever knows the calendar.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cubes import physics
from cubes.types import CubeError, Progress
from deepsentinel.evaluation import baselines, metrics
from deepsentinel.evaluation.gaps import View, held_views, views
from deepsentinel.evaluation.tasks import (
    MODEL,
    RANDOM,
    Bands,
    Evaluation,
    Options,
    Scored,
    Tile,
    Watch,
    embedded,
    embedding_meta,
    held_out,
    options_meta,
    random_like,
    stream,
    thinned,
    watch,
)

DECODER = "model, decoder alone"
RIDGE = "ridge"
RIDGE_AREA = "ridge, 5 x 5 neighbourhood"
CLIMATOLOGY = "month climatology"
LINEAR = "linear interpolation"
LAST = "last clear date"

BINS = np.linspace(-0.2, 1.0, 61)
"""Edges of the density of prediction against truth."""
EXAMPLES = 4

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def ndvi(
    model: Any, train: Any, test: Any, options: Options, progress: Progress | None = None
) -> Evaluation:
    """Return the NDVI evaluation: R2, skill, MAE, RMSE, bias, r of the model and its floors.

    Raises
    ------
    CubeError
        The cubes lack Sentinel-1 or the bands B04 and B08, or hold no clear pixel.
    """
    encoders = {MODEL: model.eval()}
    if options.controls:
        encoders[RANDOM] = random_like(model, options.seed)
    few = thinned(train, options.train_samples)
    floors = _fit(encoders, few, options, watch(progress, "learning"))
    result = _Result(options=options)
    for item in stream(model, test, options, watch(progress, "scoring")):
        for view in held_views(item, options) if options.held else views(item, options):
            _score(encoders, floors, view, result)
    if not result.tally.sums:
        raise CubeError(
            "no clear pixel with Sentinel-1 in the test samples: nothing to score NDVI on"
        )
    return Evaluation(
        task="ndvi" if options.gap is None and not options.held else "ndvi-gap",
        table=_table(result.tally, options),
        arrays=result.arrays(),
        meta={
            "climatology": floors.climatology.table().tolist(),
            "train_pixels": int(floors.climatology.n.sum()),
            "by_month": result.by_month(),
            "examples": result.example_days(),
            "penalty": {k: r.penalty for k, r in floors.ridges.items()},
            "embedding": embedding_meta(model, options),
            "options": options_meta(options),
        },
    )


@dataclass(kw_only=True)
class _Floors:
    climatology: baselines.Climatology
    ridges: dict[str, baselines.Ridge]


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What one sample of a view asks at the chosen pixels: features of every contender."""

    b: int
    queries: npt.NDArray[np.int64]
    """Rows of the Sentinel-2 dates asked for."""
    pixels: npt.NDArray[np.int64]
    """Flat indices of the pixels."""
    y: Floats
    """(Q, P), NaN where not clear."""
    days: Doubles
    """(Q,)"""


def _asked(view: View, options: Options) -> list[_Asked]:
    out = []
    present = view.item.batch.present["s1"].cpu().numpy().astype(bool)
    for b in range(len(view.item)):
        queries = np.flatnonzero(view.hidden[b])
        if not len(queries) or not present[b].any():
            continue
        truth = view.truth[b, queries]
        pixels = view.item.pixels(b, options.pixels, options.seed, np.isfinite(truth).any(0))
        if not len(pixels):
            continue
        y = truth.reshape(len(queries), -1)[:, pixels]
        out.append(_Asked(b=b, queries=queries, pixels=pixels, y=y, days=view.days[b, queries]))
    return out


class _Radar:
    """Sentinel-1 of a batch in physical units, pixel by pixel or averaged over 5 x 5."""

    def __init__(self, item: Scored) -> None:
        self.item = item
        self.days = item.batch.days["s1"].cpu().numpy().astype(np.float64)
        self.present = item.batch.present["s1"].cpu().numpy().astype(bool)
        backscatter = item.physical("s1/backscatter")
        if backscatter is None:
            raise CubeError("the NDVI task needs s1/backscatter in the cube")
        self.power = physics.power(backscatter)
        self.coherence = item.physical("insar/coherence")
        self.incidence = self._incidence()
        self.area = _box(self.power)
        self.area_coherence = None if self.coherence is None else _box(self.coherence)

    def _incidence(self) -> Floats | None:
        """Return incidence per date, (B, T, H, W) degrees: each date takes its track's."""
        values = self.item.physical("s1/incidence")
        if values is None:
            return None
        track = self.item.batch.track.cpu().numpy()
        known = (track >= 0)[:, :, None, None]
        rows = np.arange(len(track))[:, None]
        return np.where(known, values[rows, np.maximum(track, 0), 0], np.nan).astype(np.float32)

    def features(self, b: int, pixels: Any, queries: Doubles, *, area: bool) -> Floats:
        """Return what a ridge sees at some pixels and dates, (Q, F, P)."""
        here = self.present[b]
        power = self.area if area else self.power
        coherence = self.area_coherence if area else self.coherence

        def pick(values: Any) -> Any:
            return None if values is None else _flat(values[b, here])[..., pixels]

        return baselines.radar_features(
            baselines.Radar(
                power=pick(power),
                coherence=pick(coherence),
                incidence=pick(self.incidence),
                days=self.days[b, here],
            ),
            queries,
        )


def _flat(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    # a view may leave no date at all: -1 cannot be told of nothing
    return values.reshape(*values.shape[:-2], values.shape[-2] * values.shape[-1])


def _box(values: npt.NDArray[Any]) -> Floats:
    """Return 5 x 5 means of (..., H, W) without NaN; NaN where the centre is."""
    flat = torch.from_numpy(np.ascontiguousarray(values, np.float32)).flatten(0, -3)[:, None]
    good = flat.isfinite()
    pool = torch.nn.AvgPool2d(5, stride=1, padding=2)
    total, share = pool(torch.where(good, flat, 0.0)), pool(good.float())
    mean = torch.where(good, total / share.clamp_min(1e-6), torch.nan)
    return mean.reshape(values.shape).numpy()


def _model_ndvi(model: Any, view: View) -> tuple[Floats, Floats]:
    """Return the model's NDVI (B, T, H, W) and bands (B, T, C, H, W) at Sentinel-2's dates."""
    device = next(iter(model.parameters())).device
    known = np.isfinite(view.days) & view.hidden
    fill = np.where(known, view.days, 0).max(1, keepdims=True)
    days = torch.from_numpy(np.where(known, view.days, fill).astype(np.float32)).to(device)
    with torch.inference_mode():
        bands: Floats = (
            model.predict(view.x, query={"group": "s2", "days": days}).float().cpu().numpy()
        )
    told = Bands.of(model)
    red, nir = (told.reflectance(bands, b) for b in ("B04", "B08"))
    # reflectance below 0.1 % makes the ratio explode; the sensor does not measure it either
    index = physics.ndvi(np.maximum(red, 1e-3), np.maximum(nir, 1e-3))
    return np.clip(index, -1, 1), bands


def _readout(guess: Floats, bands: Floats, dense: Floats, asked: _Asked) -> Floats:
    """Return what the linear readout of the frozen model sees, (Q, F, P)."""
    b, q, pixels = asked.b, asked.queries, asked.pixels
    first = _flat(guess[b, q])[:, None, pixels]
    told = _flat(bands[b, q])[..., pixels]
    place = np.broadcast_to(_flat(dense[b])[None, :, pixels], (len(q), dense.shape[1], len(pixels)))
    doy = baselines.season(asked.days).T[:, :, None]
    return np.concatenate(
        [first, told, place, np.broadcast_to(doy, (len(q), doy.shape[1], len(pixels)))], 1
    )


class _Seen:
    """What every contender sees of a view; each encoder runs once."""

    def __init__(self, encoders: Mapping[str, Any], view: View, options: Options) -> None:
        self.view, self.options = view, options
        self.radar = _Radar(view.item)
        self.told = {
            name: (*_model_ndvi(encoder, view), embedded(encoder, view.x, options))
            for name, encoder in encoders.items()
        }

    def of(self, a: _Asked) -> dict[str, Floats]:
        """Return features (Q, F, P) of the fitted contenders, guesses (Q, P) of the others."""
        x: dict[str, Floats] = {
            RIDGE: self.radar.features(a.b, a.pixels, a.days, area=False),
            RIDGE_AREA: self.radar.features(a.b, a.pixels, a.days, area=True),
            DECODER: _flat(self.told[MODEL][0][a.b, a.queries])[:, a.pixels],
        }
        x |= {name: _readout(*told, a) for name, told in self.told.items()}
        if not self.view.gapped:
            return x
        view = self.view
        known = ~view.hidden[a.b] & np.isfinite(view.truth[a.b]).any((1, 2))
        order = np.argsort(view.days[a.b, known])
        seen = _flat(view.truth[a.b, known])[order][:, a.pixels]
        both = baselines.interpolate(seen, view.days[a.b, known][order], a.days)
        x[LINEAR], x[LAST] = both["linear"], both["last"]
        for name in (RIDGE, RIDGE_AREA):  # the same information as the model
            x[name] = np.concatenate([x[name], both["linear"][:, None]], 1)
        return x


def _fit(encoders: Mapping[str, Any], train: Any, options: Options, told: Watch | None) -> _Floors:
    floors = _Floors(
        climatology=baselines.Climatology(),
        ridges={
            name: baselines.Ridge(gaps=name not in encoders)
            for name in (*encoders, RIDGE, RIDGE_AREA)
        },
    )
    for item in stream(encoders[MODEL], train, options, told):
        for view in views(item, options):
            wanted = _asked(view, options)
            if not wanted:
                continue
            seen = _Seen(encoders, view, options)
            for asked in wanted:
                x = seen.of(asked)
                fold = int(held_out(item.tile(asked.b, options.tile), options.seed))
                for row, day in enumerate(asked.days):
                    floors.climatology.add(baselines.month_of(float(day)), asked.y[row])
                for name, ridge in floors.ridges.items():
                    wide = np.moveaxis(x[name], 0, 1).reshape(x[name].shape[1], -1)
                    ridge.add(wide, asked.y.ravel(), fold=fold)
    if not floors.climatology.n.any():
        raise CubeError(
            "no clear pixel with Sentinel-1 in the training samples: no floor can be fitted"
        )
    for ridge in floors.ridges.values():
        ridge.fit()
    return floors


@dataclass(kw_only=True)
class _Result:
    options: Options
    tally: metrics.Tally = field(default_factory=metrics.Tally)
    months: metrics.Tally = field(default_factory=metrics.Tally)
    density: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    examples: list[tuple[float, int, float, dict[str, Floats]]] = field(default_factory=list)
    count: int = 0

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return densities, and the example images from the most varied down."""
        out: dict[str, npt.NDArray[np.generic]] = {
            f"density/{name}": d for name, d in self.density.items()
        }
        out["density_edges"] = BINS
        for i, (_, _, _, images) in enumerate(sorted(self.examples, reverse=True)):
            out |= {f"example/{i}/{name}": image for name, image in images.items()}
        return out

    def example_days(self) -> list[float]:
        return [day for _, _, day, _ in sorted(self.examples, reverse=True)]

    def by_month(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return scores per contender and calendar month."""
        floor = self.months.sums.get(CLIMATOLOGY, {})
        return {
            name: {
                str(month): {
                    "n": float(sums[0].item()),
                    **{
                        k: float(v)
                        for k, v in metrics.regression_scores(sums, floor[month]).items()
                    },
                }
                for month, sums in sorted(tiles.items(), key=lambda kv: int(str(kv[0])))
            }
            for name, tiles in self.months.sums.items()
        }


def _score(encoders: Mapping[str, Any], floors: _Floors, view: View, result: _Result) -> None:
    climatology = floors.climatology.table()
    wanted = _asked(view, result.options)
    if not wanted:
        return
    seen = _Seen(encoders, view, result.options)
    for asked in wanted:
        x = seen.of(asked)
        tiles = _tiles(view, asked, result.options)
        for row, day in enumerate(asked.days):
            block = int(view.block[asked.b, asked.queries[row]])
            month = baselines.month_of(float(day))
            y = asked.y[row]
            clear = {t: here for t, here in tiles.items() if np.isfinite(y[here]).any()}
            floor = np.full(y.shape, climatology[month - 1], np.float32)
            guesses: dict[str, Floats] = {CLIMATOLOGY: floor, DECODER: x[DECODER][row]}
            for name, ridge in floors.ridges.items():
                guesses[name] = np.clip(ridge.predict(x[name][row]), -1, 1)
            for name in (LINEAR, LAST):
                if name in x:
                    guesses[name] = np.where(np.isfinite(x[name][row]), x[name][row], floor)
            for name, guess in guesses.items():
                for tile, here in clear.items():
                    sums = metrics.regression_sums(y[here], guess[here])
                    result.tally.add(name, (*tile, block), sums)
                    result.months.add(name, month, sums)
                if name != CLIMATOLOGY:
                    _densify(result, name, y, guess)
    _examples(seen, floors, result)


def _tiles(view: View, asked: _Asked, options: Options) -> dict[Tile, Any]:
    """Return which of the pixels asked for lie in which ground tile."""
    store, top, left = (int(v) for v in view.item.batch.place[asked.b, :3])
    width = view.truth.shape[-1]
    y, x = (top + asked.pixels // width, left + asked.pixels % width)
    keys = np.stack([y // options.tile, x // options.tile], 1)
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    return {(store, int(r), int(c)): inverse.ravel() == k for k, (r, c) in enumerate(unique)}


def _densify(result: _Result, name: str, y: Floats, guess: Floats) -> None:
    good = np.isfinite(y)
    lo, hi = BINS[0], BINS[-1]
    counts = np.histogram2d(
        np.clip(y[good], lo, hi), np.clip(guess[good], lo, hi), bins=(BINS, BINS)
    )[0]
    held = result.density.setdefault(name, np.zeros(counts.shape, np.int64))
    held += counts.astype(np.int64)


def _examples(seen: _Seen, floors: _Floors, result: _Result) -> None:
    """Keep the scenes of most varied NDVI among the nearly cloudless ones, for pictures."""
    view = seen.view
    clear = np.isfinite(view.truth).mean((2, 3))
    present = view.item.batch.present["s1"].cpu().numpy().any(1)
    worth = np.zeros(clear.shape)
    for b, t in zip(*np.nonzero((clear > 0.98) & view.hidden & present[:, None]), strict=True):
        worth[b, t] = np.nanstd(view.truth[b, t])
    for b in range(len(worth)):
        t = int(worth[b].argmax())
        full = len(result.examples) == EXAMPLES
        if worth[b, t] == 0 or (full and worth[b, t] <= result.examples[0][0]):
            continue
        truth, day = view.truth[b, t], view.days[b, t]
        x = seen.of(
            _Asked(
                b=b,
                queries=np.array([t]),
                pixels=np.arange(truth.size),
                y=truth.reshape(1, -1),
                days=view.days[b, t : t + 1],
            )
        )
        images = {"truth": truth}
        for name in (MODEL, RIDGE):
            told = floors.ridges[name].predict(x[name][0])
            images[name] = np.clip(told, -1, 1).reshape(truth.shape)
        result.count += 1
        entry = (float(worth[b, t]), result.count, float(day), images)
        (heapq.heapreplace if full else heapq.heappush)(result.examples, entry)


def _table(tally: metrics.Tally, options: Options) -> pd.DataFrame:
    cells: list[Any] = tally.tiles()
    gapped = options.gap is not None or bool(options.held)
    if gapped:
        ground, blocks = [c[:-1] for c in cells], [c[-1] for c in cells]
        drawing = metrics.Resampling.crossed(ground, blocks, options.draws, options.seed)
    else:
        drawing = metrics.Resampling.of(cells, options.draws, options.seed)
    floor = tally.stacked(CLIMATOLOGY)
    rows, drawn = {}, {}
    for name in tally.contenders:
        # contender and floor side by side, so that one draw takes both from the same tiles
        pair = np.stack([tally.stacked(name), floor], 1)
        drawn[name] = metrics.bootstrap(
            pair, drawing.weights, lambda s: metrics.regression_scores(s[:, 0], s[:, 1])["skill"]
        )
        scores = metrics.regression_scores(tally.total(name), floor.sum(0))
        low, high = drawing.interval(drawn[name], float(scores["skill"]))
        rows[name] = {k: float(v) for k, v in scores.items()}
        rows[name] |= {"skill_low": low, "skill_high": high}
    for name in tally.contenders:
        gain = rows[MODEL]["skill"] - rows[name]["skill"]
        low, high = drawing.interval(drawn[MODEL] - drawn[name], gain)
        rows[name] |= {
            "gain": gain,
            "gain_low": low,
            "gain_high": high,
            "pixels": int(tally.total(name)[0]),
            "tiles": drawing.tiles,
        }
        if drawing.blocks is not None:
            rows[name]["blocks"] = drawing.blocks
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "contender"
    return table.sort_values("skill", ascending=False, kind="stable")
