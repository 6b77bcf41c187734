"""What every evaluation task shares: options, the result, and the stream of scored batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cubes import physics
from cubes.sampling.index import legend_of
from cubes.types import CubeError, Layer, Legend, Progress
from deepsentinel.quantised import DIMS, dequantise, quantise

MODEL = "model"
RANDOM = "random encoder"

Inputs = dict[str, Any]
Tile = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How an evaluation is done; the defaults are those of every published number."""

    seed: int = 0
    """Of the choice of pixels, folds and bootstrap draws."""
    batch_size: int = 8
    """Samples that go through the model at once: 0.1 GB each of 64 px and 12 + 12 dates (nano)."""
    train_samples: int = 96
    """Training samples that probes and floors are fitted on, spread evenly; more gain nothing
    that a linear map could hold."""
    train_pixels: int = 100_000
    """Labelled pixels that a probe is fitted on, spread evenly over those samples. With 20,000 each
    contender on the demo lost 0.01 to 0.02 of mIoU to its own fit."""
    pixels: int = 256
    """Pixels per sample that the NDVI task scores and fits on, at every clear date."""
    tile: int = 128
    """Edge in pixels of the ground tiles that intervals are drawn from and folds made of."""
    draws: int = 1000
    """Bootstrap draws of tiles."""
    label: str | None = None
    """Label layer, e.g. ``labels/worldcover``; None takes the only one there is."""
    sensors: tuple[str, ...] | None = None
    """Groups that model and baselines may see; None: all there are."""
    gap: float | None = None
    """NDVI task: days of Sentinel-2 hidden at a time, both sides visible; None hides all."""
    held: tuple[tuple[str, str], ...] | None = None
    """NDVI task: spans of time (ISO 8601, UTC, end excluded) whose Sentinel-2 dates are hidden and
    scored, as `cubes.withhold` returns them; all else may be seen. The floors are fitted on the
    training samples with blocks of `gap` days hidden, by default as long as the first span."""
    controls: bool = True
    """Also score the same model untrained: what it scores, training did not earn."""
    dims: int | None = None
    """Numbers per pixel that are read out, the first of the embedding as `embed` writes them; None
    takes what `embed` takes by itself, 64, or all of a smaller model."""
    dtype: str = "int8"
    """``int8``: read out as they come back from a store; ``float32``: as the model makes them."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found: the table, and what pictures are made of."""

    task: str
    table: pd.DataFrame
    """One row per contender."""
    arrays: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    """``confusion/NAME``, ``map/NAME``, ``density/NAME``, ``example/...``."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON: class names and colours, counts, options."""

    def save(self, folder: str | Path) -> Path:
        """Return `folder` after writing ``TASK.json`` and ``TASK.npz`` into it."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        body = {
            "task": self.task,
            "table": json.loads(self.table.to_json(orient="split", double_precision=15)),
            "meta": dict(self.meta),
        }
        np.savez_compressed(path / f"{self.task}.npz", **dict(self.arrays))  # type: ignore[arg-type]
        # the JSON last: where it stands, the arrays are whole
        (path / f"{self.task}.json").write_text(json.dumps(body, indent=1))
        return path

    @staticmethod
    def load(folder: str | Path, task: str) -> Evaluation:
        """Return the evaluation of `task` that `save` wrote into `folder`.

        Raises
        ------
        CubeError
            There is none.
        """
        path = Path(folder) / f"{task}.json"
        if not path.is_file():
            raise CubeError(f"no evaluation of task {task!r} in {folder}; run evaluate first")
        body = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        split = body["table"]
        table = pd.DataFrame(split["data"], split["index"], split["columns"])
        # JSON has no NaN: an interval that was not given came back as None
        table = table.astype({c: float for c in table if table[c].dtype == object})
        table.index.name = "contender"
        return Evaluation(task=body["task"], table=table, arrays=held, meta=body["meta"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One batch on its way through an evaluation: what the model sees, and where it lies."""

    batch: Any
    """The `Batch` with stored integers."""
    x: Inputs
    """The model's input."""
    layers: Mapping[str, Layer]
    """Layer name -> row, as the samples hold it."""
    legends: Mapping[str, Legend] = field(default_factory=dict)
    """Class layer -> legend, as the samples' stores carry it."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.batch.place)

    def layer(self, name: str) -> Layer:
        """Return the row of a layer as this batch holds it."""
        return self.layers[name]

    def physical(self, name: str) -> npt.NDArray[np.generic] | None:
        """Return a layer's physical values, (B, T, C, H, W), NaN where nodata; None if absent."""
        stored = self.batch.stored.get(name)
        if stored is None:
            return None
        return physics.decode(stored.cpu().numpy(), self.layer(name))

    def tile(self, b: int, edge: int) -> Tile:
        """Return the ground tile that sample `b` begins in: (store, row, column)."""
        store, y, x = (int(v) for v in self.batch.place[b, :3])
        return store, y // edge, x // edge

    def pixels(self, b: int, n: int, seed: int, allowed: npt.NDArray[np.bool_]) -> IntArray:
        """Return up to `n` flat indices of allowed pixels (H, W): a function of seed and place."""
        flat = np.flatnonzero(allowed)
        place = [int(v) & 0xFFFFFFFF for v in self.batch.place[b]]
        rng = np.random.default_rng([seed, *place])
        return np.sort(rng.choice(flat, size=min(n, len(flat)), replace=False))


IntArray = npt.NDArray[np.int64]


def held_out(tile: Tile, seed: int) -> bool:
    """Return whether a tile is in the fifth of training tiles kept aside to tune on."""
    text = json.dumps([seed, *tile]).encode()
    return hashlib.sha256(text).digest()[0] < 51


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """Someone who is told how far the samples of a pass are."""

    progress: Progress
    what: str
    """Of the pass: ``learning`` or ``scoring``."""


def watch(progress: Progress | None, what: str) -> Watch | None:
    """Return who is told of a pass, or None."""
    return None if progress is None else Watch(progress=progress, what=what)


def stream(
    model: Any, samples: Any, options: Options, told: Watch | None = None
) -> Iterator[Scored]:
    """Yield the samples batch by batch, each once, in order, as model inputs on its device.

    The dates of a sample are evenly spread, the same in every call.

    Parameters
    ----------
    model : Fusion
        Its configuration says which layers it takes and how they are normalised.
    samples : Samples, or iterable of Scored
        An iterable is passed on as it is.
    options : Options
        Batch size, and the groups that may be seen.
    told : Watch, optional
        Told after every batch how many samples are done.
    """
    source = _loaded(model, samples, options) if hasattr(samples, "read") else samples
    total = len(samples) if hasattr(samples, "__len__") else 0
    done = 0
    for item in source:
        done += len(item)
        if told is not None:
            told.progress(done, max(total, done), f"samples, {told.what}")
        keep = options.sensors
        if keep is None:
            yield item
        else:
            seen = {k: v for k, v in item.x.items() if k in keep}
            if not seen:
                raise CubeError(
                    f"Options(sensors={keep}) leaves nothing: there are {', '.join(item.x)}"
                )
            yield Scored(batch=item.batch, x=seen, layers=item.layers, legends=item.legends)


def thinned(samples: Any, n: int) -> Any:
    """Return at most `n` of the samples, evenly spread over them; an iterable as it is."""
    if not hasattr(samples, "take") or len(samples) <= n:
        return samples
    return samples.take(np.arange(n) * len(samples) // n)


def _loaded(model: Any, samples: Any, options: Options) -> Iterator[Scored]:
    from deepsentinel.loading.batch import loader
    from deepsentinel.loading.contract import Contract, calibrations

    device = next(iter(model.parameters())).device
    agreed = Contract.of(model).agree(samples.layers, calibrations(samples))
    layers = {**samples.layers, **agreed.rows}
    labels = [n for n in samples.layers if n.startswith("labels/")]
    legends = {n: legend_of(samples.stores, n) for n in labels}
    for batch in loader(samples, options.batch_size, shuffle=False, drop_last=False):
        moved = batch if device.type == "cpu" else batch.to(device)
        x = agreed.inputs(moved)
        yield Scored(batch=agreed.arranged(batch), x=x, layers=layers, legends=legends)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bands:
    """Where the bands of reflectance stand among a model's channels, and their normalisation."""

    place: Mapping[str, int]
    """Band -> channel of the group ``s2``."""
    mean: Mapping[str, float]
    std: Mapping[str, float]

    @staticmethod
    def of(model: Any) -> Bands:
        """Return the bands of a model.

        Raises
        ------
        CubeError
            It was not trained on reflectance.
        """
        from deepsentinel.loading.contract import normaliser

        name = "s2/reflectance"
        norm = normaliser(model)
        if "s2" not in model.config.groups or name not in norm.layers:
            raise CubeError("this model was not trained on s2/reflectance: it predicts no NDVI")
        bands = norm.layers[name].channels
        labels = list(model.config.channels("s2"))
        return Bands(
            place={b: labels.index(f"{name}:{b}") for b in bands},
            mean=dict(zip(bands, norm.mean[name], strict=True)),
            std=dict(zip(bands, norm.std[name], strict=True)),
        )

    def reflectance(self, predicted: npt.NDArray[np.float32], band: str) -> Floats:
        """Return the reflectance of a band, (B, T, H, W), of predictions (B, T, C, H, W)."""
        values = predicted[:, :, self.place[band]]
        return values * np.float32(self.std[band]) + np.float32(self.mean[band])


Floats = npt.NDArray[np.float32]


def features(model: Any, x: Inputs) -> Floats:
    """Return the dense features of a batch, float32, (B, D, H, W)."""
    import torch

    with torch.inference_mode():
        dense = model(x)["dense"].float().cpu().numpy()
    return np.asarray(dense, np.float32)


def embedded(model: Any, x: Inputs, options: Options) -> Floats:
    """Return what `embed` would write of a batch and a reader would get, float32, (B, E, H, W).

    Raises
    ------
    CubeError
        Dims that the model does not have, or another dtype.
    """
    dense = features(model, x)[:, : dims_of(model, options)]
    if options.dtype == "float32":
        return dense
    if options.dtype != "int8":
        raise CubeError(f"dtype={options.dtype!r}: choose 'int8' or 'float32'")
    return np.stack([dequantise(*quantise(values)) for values in dense])


def dims_of(model: Any, options: Options) -> int:
    """Return how many numbers per pixel are read out.

    Raises
    ------
    CubeError
        More than the model makes, or none.
    """
    most = int(model.config.dims)
    if options.dims is None:
        return min(DIMS, most)
    if not 1 <= options.dims <= most:
        raise CubeError(f"dims={options.dims}: this model's embedding has 1 to {most} numbers")
    return options.dims


def embedding_meta(model: Any, options: Options) -> dict[str, Any]:
    """Return what was read out: numbers per pixel, type, and how many of them are fixed.

    ``measured`` numbers are components of statistics over the dates, which no step changes.
    """
    dims = dims_of(model, options)
    order = getattr(model, "order", None)
    fixed = 0 if order is None else int((order[:dims] < model.config.parts[0]).sum())
    return {"dims": dims, "dtype": options.dtype, "measured": fixed}


def random_like(model: Any, seed: int) -> Any:
    """Return the model as it was before its first step: same build, same seed, evaluation mode.

    Of a model whose card does not tell the seed of its training, `seed` is taken. What was fitted
    before the first step (the basis of what an embedding measures) is the trained model's. Wide
    random features are strong under a linear probe, and much of an embedding is statistics: what a
    trained encoder scores above this is what its steps gave.
    """
    import torch

    recipe = dict(getattr(model.config, "card", None) or {}).get("recipe") or {}
    seed = int(recipe.get("seed", seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    if hasattr(model, "measure"):
        fresh.measure.copy_(model.measure)
        fresh.centre.copy_(model.centre)
    return fresh.to(next(iter(model.parameters())).device).eval()


def options_meta(options: Options) -> dict[str, Any]:
    """Return the options as plain JSON."""
    return dict(asdict(options))
