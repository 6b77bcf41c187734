"""Recipes: everything that decides a training run, as TOML, and changes from the command line.

A recipe is frozen dataclasses filled from a TOML file and then from ``a.b=c`` overrides. A key
that nobody reads is an error: a run must never differ silently from what was asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cubes.types import CubeError

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecipe:
    """Which Fusion. A number left out is that of the size."""

    size: Literal["nano", "tiny", "small", "base"] = "nano"
    layers: tuple[str, ...] = ()
    """Names of the layers used; empty: every one in the samples that is an input."""
    width: int | None = None
    depth_t: int | None = None
    depth_f: int | None = None
    heads: int | None = None
    stem: int | None = None
    detail: int | None = None
    neck: int | None = None
    patch: int | None = None
    pools: int | None = None
    dims: int | None = None
    reach: int | None = None
    """See `deepsentinel.FusionConfig`."""

    def options(self) -> dict[str, int]:
        """Return the numbers that were given, by name."""
        rest = dataclasses.asdict(self)
        return {k: v for k, v in rest.items() if k not in ("size", "layers") and v is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """How samples become batches."""

    batch_size: int = 8
    """Samples decoded per step."""
    crop: int | None = None
    """Edge in pixels of random crops of the samples; None: samples whole."""
    crops: int = 1
    """Random crops of every decoded sample, so a step sees ``batch_size * crops``."""
    workers: int = 0
    """0: decoding threads of this process; otherwise forkserver processes."""
    threads: int = 1
    """Decoding threads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveRecipe:
    """What is learned: a name of `deepsentinel.training.objectives.OBJECTIVES` and its options."""

    name: str = "masked"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Checked against the objective itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRecipe:
    """How the weights are moved."""

    steps: int = 500
    lr: float = 2e-3
    """Peak; reached after `warmup` steps, then a cosine down to `lr_end` times it."""
    lr_end: float = 0.02
    warmup: int = 30
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    """Of weight matrices; vectors (biases, norms, tokens) are not decayed."""
    clip: float = 1.0
    """Largest gradient norm."""
    accumulate: int = 1
    """Batches per step of the optimiser."""
    ema: float = 0.98
    """Decay of the averaged weights that are evaluated and saved; 0: the last weights."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = False
    """Compile every block of the model (torch.compile); for GPUs."""
    accelerator: str = "auto"
    devices: int = 1
    save_every: int = 100
    """Steps between checkpoints; the last two are kept."""
    log_every: int = 10
    validate_every: int = 100
    validate_batches: int = 8
    """Batches of the validation split, always the same ones with the same parts hidden."""
    max_bad: int = 10
    """Steps with a loss or gradient that is not finite that are skipped before giving up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One training run, whole."""

    name: str = "recipe"
    seed: int = 0
    """Of the weights, the order of samples, crops and everything hidden."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    objective: ObjectiveRecipe = field(default_factory=ObjectiveRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)

    def to_json(self) -> str:
        """Return the recipe as canonical JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON: two runs with the same one were asked for the same."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe: one that ships (``demo``, ``flanders``), or a TOML file, with changes.

    Parameters
    ----------
    name
        Name or path.
    overrides
        ``key=value`` with dotted keys, e.g. ``train.steps=20``; values as in TOML, and a bare
        word is text.

    Raises
    ------
    CubeError
        No such recipe, an unknown key (with the nearest one), or a value of the wrong type.
    """
    shipped = {p.stem: p for p in sorted(FOLDER.glob("*.toml"))}
    path = shipped.get(str(name), Path(name))
    if not path.is_file():
        near = difflib.get_close_matches(str(name), shipped, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CubeError(
            f"no recipe {str(name)!r}: give a TOML file, or one of {', '.join(shipped)}{hint}"
        )
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CubeError(f"{path.name} is no TOML: {error}") from None
    body.setdefault("name", path.stem)
    for override in overrides:
        _override(body, override)
    return make_recipe(body)


def make_recipe(body: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a mapping of plain values describes.

    Raises
    ------
    CubeError
        An unknown key, or a value of the wrong type.
    """
    recipe: Recipe = build(Recipe, body)
    for key, low in (("train.steps", 1), ("data.batch_size", 1), ("data.crops", 1),
                     ("train.accumulate", 1), ("train.save_every", 1), ("train.log_every", 1),
                     ("train.validate_every", 1)):  # fmt: skip
        section, name = key.split(".")
        value = getattr(getattr(recipe, section), name)
        if value < low:
            raise CubeError(f"{key} is {value}; it must be at least {low}")
    if not 0 <= recipe.train.ema < 1:
        raise CubeError(f"train.ema is {recipe.train.ema}; it must be at least 0 and below 1")
    return recipe


def _override(body: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise CubeError(f"{override!r} is no override; write key=value, e.g. train.steps=20")
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, last = key.strip().split(".")
    for section in sections:
        body = body.setdefault(section, {})
        if not isinstance(body, dict):
            raise CubeError(f"{key!r}: {section!r} is a value, not a section")
    body[last] = value


def build(kind: Any, body: Any, where: str = "") -> Any:
    """Return `body`, plain values, as a value of the type `kind`: a dataclass, recursively.

    Raises
    ------
    CubeError
        An unknown key (with the nearest one), or a value of the wrong type.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(body, kind):
            return body
        if not isinstance(body, Mapping):
            raise CubeError(f"{where or kind.__name__} must be a section, got {body!r}")
        hints = typing.get_type_hints(kind)
        names = [f.name for f in dataclasses.fields(kind)]
        for key in body:
            if key not in names:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise CubeError(
                    f"unknown key {_join(where, key)!r}; known here: {', '.join(names)}{hint}"
                )
        return kind(**{k: build(hints[k], v, _join(where, k)) for k, v in body.items()})
    return _value(kind, body, where)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _value(kind: Any, value: Any, where: str) -> Any:
    """Return a value as `kind`: a literal, an optional, a tuple, a mapping or a plain type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or (origin is Literal and value in inner):
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        return _value(next(k for k in inner if k is not type(None)), value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if inner[1:] == (Ellipsis,) else list(inner)
        if len(kinds) == len(value):
            return tuple(_value(k, v, where) for k, v in zip(kinds, value, strict=True))
    elif origin is not tuple and isinstance(origin, type) and isinstance(value, Mapping):
        return {str(k): _value(inner[1], v, _join(where, str(k))) for k, v in value.items()}
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif kind is type(value):
        return value
    wanted = " or ".join(repr(v) for v in inner) if origin is Literal else _name(kind)
    raise CubeError(f"{where} must be {wanted}, got {value!r}")


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
