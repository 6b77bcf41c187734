"""Recipes: everything that decides a training run, as TOML, and changes from the command line.

A recipe is frozen dataclasses filled from a TOML file and then from ``a.b=c`` overrides. A key
that nobody reads is an error: a run must never differ silently from what was asked for.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cubes.types import CubeError

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number may be."""

    low: float
    high: float = math.inf
    open: str = ""
    """Which ends are left out: ``(``, ``)`` or both."""

    def hold(self, value: float) -> bool:
        """Return whether a number is inside; NaN is not."""
        above = value > self.low if "(" in self.open else value >= self.low
        return above and (value < self.high if ")" in self.open else value <= self.high)

    def __str__(self) -> str:
        """Return it for a person: ``at least 0 and below 1``."""
        text = f"{'above' if '(' in self.open else 'at least'} {self.low:g}"
        if math.isfinite(self.high):
            text += f" and {'below' if ')' in self.open else 'at most'} {self.high:g}"
        return text


_SHARE, _COUNT, _SOME = Bounds(0, 1), Bounds(0), Bounds(1)
BOUNDS: dict[str, Bounds] = {
    "seed": Bounds(0, 2**63 - 1),
    **{f"model.{n}": _SOME for n in ("width", "heads", "stem", "detail", "neck", "patch", "pools")},
    "model.dims": _SOME, "model.depth_t": _COUNT, "model.depth_f": _COUNT, "model.reach": _COUNT,
    "model.measured": Bounds(0, 1, ")"), "model.min_usable": _SHARE,
    "data.batch_size": _SOME, "data.crop": _SOME, "data.crops": _SOME,
    "data.workers": _COUNT, "data.threads": _SOME,
    "train.steps": _SOME, "train.lr": Bounds(0, 10, "("), "train.lr_end": _SHARE,
    "train.warmup": _COUNT, "train.betas": Bounds(0, 1, ")"),
    "train.weight_decay": Bounds(0, math.inf, ")"), "train.clip": Bounds(0, math.inf, "("),
    "train.accumulate": _SOME, "train.ema": Bounds(0, 1, ")"), "train.save_every": _SOME,
    "train.log_every": _SOME, "train.validate_every": _SOME, "train.validate_batches": _SOME,
    "train.max_bad": _COUNT,
}  # fmt: skip
"""Key -> what its number may be; every key of a number is here."""


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
    measured: float | None = None
    min_usable: float | None = None
    """See `deepsentinel.FusionConfig`."""

    def options(self) -> dict[str, Any]:
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
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    """Where; one device."""
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

    def __post_init__(self) -> None:
        """Refuse numbers outside their bounds: a negative rate climbs where it should descend."""
        for key, bounds in BOUNDS.items():
            *sections, name = key.split(".")
            value = getattr(getattr(self, sections[0]) if sections else self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and not bounds.hold(one):
                    raise CubeError(f"{key} is {value}; it must be {bounds}")

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
        No such recipe, an unknown key (with the nearest one), or a value of the wrong type or
        out of bounds.
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
    return make_recipe(overridden(body, overrides))


def overridden(body: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return plain values of a recipe with ``key=value`` changes, as `load_recipe` takes them.

    Raises
    ------
    CubeError
        No ``key=value``, or a section that is a value.
    """
    changed = copy.deepcopy(dict(body))
    for override in overrides:
        _override(changed, override)
    return changed


def make_recipe(body: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a mapping of plain values describes.

    Raises
    ------
    CubeError
        An unknown key, or a value of the wrong type or out of bounds.
    """
    made: Recipe = build(Recipe, body)
    return made


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
