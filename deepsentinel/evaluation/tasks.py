"""What every evaluation task shares: options, the result, and the stream of scored batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cubes import physics
from cubes.types import CubeError, Layer

if TYPE_CHECKING:
    from deepsentinel.loading.normalise import Normaliser

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
    train_pixels: int = 20_000
    """Labelled pixels that a probe is fitted on, spread evenly over those samples."""
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
    """Also score an encoder of the same shape with random weights."""


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


def stream(model: Any, samples: Any, options: Options) -> Iterator[Scored]:
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
    """
    source = _loaded(model, samples, options) if hasattr(samples, "read") else samples
    for item in source:
        keep = options.sensors
        if keep is None:
            yield item
        else:
            seen = {k: v for k, v in item.x.items() if k in keep}
            if not seen:
                raise CubeError(
                    f"Options(sensors={keep}) leaves nothing: there are {', '.join(item.x)}"
                )
            yield Scored(batch=item.batch, x=seen, layers=item.layers)


def thinned(samples: Any, n: int) -> Any:
    """Return at most `n` of the samples, evenly spread over them; an iterable as it is."""
    if not hasattr(samples, "take") or len(samples) <= n:
        return samples
    return samples.take(np.arange(n) * len(samples) // n)


def _loaded(model: Any, samples: Any, options: Options) -> Iterator[Scored]:
    from deepsentinel.loading.batch import inputs, loader

    device = next(iter(model.parameters())).device
    norm = normaliser(model)
    names = [row["name"] for g in model.config.groups for row in model.config.layers(g)]
    there = [name for name in names if name in samples.layers]
    for batch in loader(samples, options.batch_size, shuffle=False, drop_last=False):
        moved = batch if device.type == "cpu" else batch.to(device)
        yield Scored(batch=batch, x=inputs(moved, norm, layers=there), layers=dict(samples.layers))


def normaliser(model: Any) -> Normaliser:
    """Return the statistics that a model's inputs are made with.

    Raises
    ------
    CubeError
        The model carries none.
    """
    from deepsentinel.loading.normalise import Normaliser

    body = dict(model.config.normaliser)
    if not body:
        raise CubeError(
            "this model carries no normalisation statistics: train it with deepsentinel.train, or "
            "set FusionConfig(normaliser=json.loads(Normaliser.of(...).to_json()))"
        )
    return Normaliser.from_json(json.dumps(body))


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


def usable(model: Any, group: str, values: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Return which numbers of a group's ``x`` may be used, bool, the shape of ``x``.

    Each layer's mask counts for its channels; a mask of clear pixels counts for all.
    """
    counts = [len(row["channels"]) for row in model.config.layers(group)]
    layer_of = np.repeat(np.arange(len(counts)), counts)
    valid: npt.NDArray[np.bool_] = values["valid"].cpu().numpy()
    mask = np.take(valid, layer_of, axis=-3)
    clear = values.get("clear")
    return mask if clear is None else mask & clear.cpu().numpy()


def features(model: Any, x: Inputs) -> Floats:
    """Return the dense features of a batch, float32, (B, D, H, W)."""
    import torch

    with torch.inference_mode():
        dense = model(x)["dense"].float().cpu().numpy()
    return np.asarray(dense, np.float32)


def random_like(model: Any, seed: int) -> Any:
    """Return a model of the same shape with fresh random weights, in evaluation mode.

    Wide random features are strong under a linear probe: what a trained encoder scores above
    this is what training gave.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    return fresh.to(next(iter(model.parameters())).device).eval()


def options_meta(options: Options) -> dict[str, Any]:
    """Return the options as plain JSON."""
    return dict(asdict(options))
