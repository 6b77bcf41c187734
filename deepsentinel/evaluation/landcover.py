"""Land cover: a linear probe on the embedding as written, beside pixel statistics and controls.

Every contender gets the same labelled pixels of the training samples, the same probe and the
same choice of penalties on the same held-out tiles; all labelled pixels of the test samples are
scored. Nodata and ignored classes are neither learned nor scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cubes import registry
from cubes.types import CubeError, Legend, Progress
from deepsentinel.evaluation import baselines, metrics
from deepsentinel.evaluation.tasks import (
    MODEL,
    RANDOM,
    Evaluation,
    Options,
    Scored,
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
from deepsentinel.loading.contract import channels_usable

STATISTICS = "pixel statistics"
MAJORITY = "majority class"

Floats = npt.NDArray[np.float32]


def landcover(
    model: Any, train: Any, test: Any, options: Options, progress: Progress | None = None
) -> Evaluation:
    """Return the land-cover evaluation: mIoU, mF1, OA of the model's probe and of its floors.

    Raises
    ------
    CubeError
        No label layer, no labelled pixel to learn from or to score, or only one class.
    """
    encoders = {MODEL: model.eval()}
    if options.controls and hasattr(model, "config"):
        encoders[RANDOM] = random_like(model, options.seed)
    few = thinned(train, options.train_samples)
    learned = _gather(encoders, few, options, watch(progress, "learning"))
    probes = {
        name: baselines.fit_probe(
            np.concatenate(parts),
            learned.labels(),
            n_classes=len(learned.codes),
            fold=learned.folds(),
        )
        for name, parts in learned.x.items()
    }
    counts = np.bincount(learned.labels(), minlength=len(learned.codes))
    target = _Target(learned, int(counts.argmax()), options, watch(progress, "scoring"))
    result = _score(encoders, probes, test, target)
    return Evaluation(
        task="landcover",
        table=_table(result.tally, options),
        arrays=result.arrays(learned.codes),
        meta={
            "legend": learned.legend.name,
            "title": learned.legend.title,
            "origin": learned.legend.origin,
            "codes": list(learned.codes),
            "names": [learned.legend.classes[c][0] for c in learned.codes],
            "colours": [learned.legend.classes[c][1] for c in learned.codes],
            "train_pixels": int(counts.sum()),
            "train_pixels_per_class": counts.tolist(),
            "penalty": {name: p.l2 for name, p in probes.items()},
            "embedding": embedding_meta(model, options),
            "options": options_meta(options),
        },
    )


@dataclass(kw_only=True)
class _Learned:
    """Labelled training pixels, gathered batch by batch."""

    layer: str
    legend: Legend
    x: dict[str, list[Floats]] = field(default_factory=dict)
    y: list[npt.NDArray[np.int64]] = field(default_factory=list)
    fold: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    @property
    def codes(self) -> tuple[int, ...]:
        return self.legend.scored

    def labels(self) -> npt.NDArray[np.int64]:
        return np.concatenate(self.y)

    def folds(self) -> npt.NDArray[np.bool_]:
        return np.concatenate(self.fold)


def _label_layer(item: Scored, options: Options) -> tuple[str, Legend]:
    found = sorted(n for n in item.batch.stored if n.startswith("labels/"))
    name = options.label or (found[0] if len(found) == 1 else None)
    if name is None or name not in found:
        raise CubeError(
            f"the samples hold the label layers {', '.join(found) or 'none'}, asked for "
            f"{options.label or 'the only one'}; build the cube with a labels/ layer and name it "
            "with Options(label=...)"
        )
    row = item.layer(name)
    return name, item.legends.get(name) or registry.legend(row.legend or row.variable)


def _indices(item: Scored, name: str, codes: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return class indices of the latest year, (B, H, W), -1 for nodata, ignored and unknown."""
    stored = item.batch.stored[name][:, -1, 0].cpu().numpy()
    table = np.full(1 << 16, -1, np.int64)
    table[list(codes)] = np.arange(len(codes))
    return np.asarray(table[stored.astype(np.uint16)], np.int64)


def _statistics(model: Any, item: Scored, b: int, pixels: npt.NDArray[np.int64]) -> Floats:
    """Return the statistics over time of every input channel at some pixels, (pixel, F)."""
    parts = []
    for group, values in sorted(item.x.items()):
        x = values["x"][b].cpu().numpy()
        valid = channels_usable(model, group, values)[b]
        if group == "static":
            parts.append(
                np.where(valid, x, np.nan).reshape(len(x), -1)[:, pixels].astype(np.float32)
            )
            continue
        present = values["present"][b].cpu().numpy()
        x = x.reshape(*x.shape[:2], -1)[present][..., pixels]
        valid = valid.reshape(*valid.shape[:2], -1)[present][..., pixels]
        if len(x):
            parts.append(baselines.pixel_statistics(x, valid))
        else:
            n = x.shape[1] * (2 + len(baselines.QUANTILES))
            parts.append(np.full((n, len(pixels)), np.nan, np.float32))
    return np.concatenate(parts).T


def _gather(encoders: dict[str, Any], train: Any, options: Options, told: Watch | None) -> _Learned:
    learned: _Learned | None = None
    per_sample = max(16, options.train_pixels // max(1, _length(train)))
    for item in stream(encoders[MODEL], train, options, told):
        if learned is None:
            name, legend = _label_layer(item, options)
            learned = _Learned(layer=name, legend=legend)
        y = _indices(item, learned.layer, learned.codes)
        chosen = [item.pixels(b, per_sample, options.seed, y[b] >= 0) for b in range(len(item))]
        dense = {name: embedded(encoder, item.x, options) for name, encoder in encoders.items()}
        for b, pixels in enumerate(chosen):
            if not len(pixels):
                continue
            for name, d in dense.items():
                part = d[b].reshape(d.shape[1], -1)[:, pixels].T
                learned.x.setdefault(name, []).append(part)
            learned.x.setdefault(STATISTICS, []).append(
                _statistics(encoders[MODEL], item, b, pixels)
            )
            learned.y.append(y[b].ravel()[pixels])
            fold = held_out(item.tile(b, options.tile), options.seed)
            learned.fold.append(np.full(len(pixels), fold))
    if learned is None or not learned.y:
        raise CubeError(
            "no labelled pixel in the training samples: nodata and ignored classes do not count; "
            "build them where the label layer has data"
        )
    if len(np.unique(learned.labels())) < 2:
        raise CubeError("the training samples hold one class only: there is nothing to tell apart")
    return learned


def _length(samples: Any) -> int:
    try:
        return len(samples)
    except TypeError:
        return 256


@dataclass(frozen=True)
class _Target:
    learned: _Learned
    majority: int
    options: Options
    told: Watch | None


@dataclass
class _Result:
    tally: metrics.Tally = field(default_factory=metrics.Tally)
    patches: dict[str, dict[tuple[int, int], npt.NDArray[np.int64]]] = field(default_factory=dict)
    store: int | None = None

    def arrays(self, codes: tuple[int, ...]) -> dict[str, npt.NDArray[np.generic]]:
        """Return confusion matrices, and the maps of the first store as class codes."""
        out: dict[str, npt.NDArray[np.generic]] = {
            f"confusion/{name}": self.tally.total(name).astype(np.int64)
            for name in self.tally.contenders
        }
        table = np.asarray([*codes, 0], np.uint16)  # index -1 reads the last: unlabelled
        for name, patches in self.patches.items():
            out[f"map/{name}"] = table[mosaic(patches, -1)]
        return out


def mosaic(patches: dict[tuple[int, int], npt.NDArray[Any]], fill: float) -> npt.NDArray[Any]:
    """Return patches keyed by their first row and column as one array; `fill` between them."""
    tops, lefts = (min(p[i] for p in patches) for i in (0, 1))
    height = max(y + a.shape[0] for (y, _), a in patches.items()) - tops
    width = max(x + a.shape[1] for (_, x), a in patches.items()) - lefts
    first = next(iter(patches.values()))
    out = np.full((height, width), fill, first.dtype)
    for (y, x), a in patches.items():
        out[y - tops : y - tops + a.shape[0], x - lefts : x - lefts + a.shape[1]] = a
    return out


def _score(
    encoders: dict[str, Any], probes: dict[str, baselines.Probe], test: Any, target: _Target
) -> _Result:
    learned, options = target.learned, target.options
    n = len(learned.codes)
    result = _Result()
    for item in stream(encoders[MODEL], test, options, target.told):
        legend = item.legends.get(learned.layer, learned.legend)
        if legend is not learned.legend and legend != learned.legend:
            raise CubeError(
                f"{learned.layer} of the test samples came with another legend {legend.name!r} "
                f"than that of the training samples: {learned.legend.differing(legend)}; score "
                "what has the same classes"
            )
        y = _indices(item, learned.layer, learned.codes)
        dense = {name: embedded(encoder, item.x, options) for name, encoder in encoders.items()}
        for b in range(len(item)):
            every = np.arange(y[b].size)
            guesses = {
                name: probes[name].predict(d[b].reshape(d.shape[1], -1).T)
                for name, d in dense.items()
            }
            guesses[STATISTICS] = probes[STATISTICS].predict(
                _statistics(encoders[MODEL], item, b, every)
            )
            guesses[MAJORITY] = np.full(y[b].size, target.majority, np.int64)
            tile = item.tile(b, options.tile)
            for name, guess in guesses.items():
                result.tally.add(name, tile, metrics.confusion(y[b], guess, n))
            _keep(result, item, b, {"truth": y[b], **guesses})
    if not result.tally.sums or not result.tally.total(MODEL).sum():
        raise CubeError(
            "no labelled pixel in the test samples: nodata and ignored classes are not scored"
        )
    return result


def _keep(result: _Result, item: Scored, b: int, maps: dict[str, npt.NDArray[np.int64]]) -> None:
    """Keep the maps of the first store met, for pictures."""
    store, top, left = (int(v) for v in item.batch.place[b, :3])
    result.store = store if result.store is None else result.store
    if store != result.store:
        return
    for name in ("truth", MODEL, STATISTICS):
        patch = maps[name].reshape(maps["truth"].shape)
        result.patches.setdefault(name, {})[top, left] = patch


def _table(tally: metrics.Tally, options: Options) -> pd.DataFrame:
    drawing = metrics.Resampling.of(tally.tiles(), options.draws, options.seed)
    rows, drawn = {}, {}
    for name in tally.contenders:
        scores = metrics.map_scores(tally.total(name))
        drawn[name] = metrics.bootstrap(
            tally.stacked(name), drawing.weights, lambda m: metrics.map_scores(m)["mIoU"]
        )
        low, high = drawing.interval(drawn[name], float(scores["mIoU"]))
        rows[name] = {k: float(v) for k, v in scores.items()}
        rows[name] |= {"mIoU_low": low, "mIoU_high": high}
    for name in tally.contenders:
        gain = rows[MODEL]["mIoU"] - rows[name]["mIoU"]
        low, high = drawing.interval(drawn[MODEL] - drawn[name], gain)
        rows[name] |= {
            "gain": gain,
            "gain_low": low,
            "gain_high": high,
            "pixels": int(tally.total(name).sum()),
            "tiles": drawing.tiles,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "contender"
    return table.sort_values("mIoU", ascending=False, kind="stable")
