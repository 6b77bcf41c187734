"""Values of rows, checked as they are read: a row that is silently misread gives wrong pixels."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cubes.errors import CubeError
from cubes.types import CHANNEL_DIMS, STACK_DIMS, Layer, Product

_DTYPES = ("bool", "uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_CALIBRATIONS = ("beta0", "sigma0", "gamma0", "gamma0_rtc", "sigma0_terrain")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return that something is unknown, the nearest that is known, and all that is."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}"


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def arguments(cls: type, row: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return a row as keyword arguments of a noun.

    Raises
    ------
    CubeError
        A key that the noun does not have, one that it needs, or a value of another kind.
    """
    known = {f.name: f for f in fields(cls)}
    for key in row:
        if key not in known:
            raise CubeError(unknown(f"key in {what}", key, known))
    for name, one in known.items():
        if name not in row and one.default is MISSING and one.default_factory is MISSING:
            raise CubeError(f"{what} lacks {name!r}")
    made = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    for key, value in made.items():
        _value(_hints(cls)[key], value, f"{key} of {what}")
    return made


def _value(hint: Any, value: Any, what: str) -> None:
    """Raise unless a value is of the kind that the hint of its field names."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return
        rest = [h for h in inner if h is not type(None)]
        if len(rest) == 1:
            _value(rest[0], value, what)
    elif origin is Literal:
        if value not in inner:
            raise CubeError(unknown(f"value for {what}:", str(value), map(str, inner)))
    elif hint is float or hint is int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CubeError(f"{what} is {value!r}, not a number")
    elif hint is str and not isinstance(value, str):
        raise CubeError(f"{what} is {value!r}, not a text")
    elif origin is tuple and not isinstance(value, tuple):
        raise CubeError(f"{what} is {value!r}, not a list")
    elif origin is not None and issubclass(origin, Mapping) and not isinstance(value, Mapping):
        raise CubeError(f"{what} is {value!r}, not a table")


def layer(row: Layer) -> Layer:
    """Return a layer whose fields fit one another.

    Raises
    ------
    CubeError
        Dimensions, channels, dtypes, nodata or range that do not.
    """
    what = f"layer {row.name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*/[A-Za-z][A-Za-z0-9_-]*", row.name):
        raise CubeError(f"{what}: a name is GROUP/VARIABLE, such as s3/temperature")
    order = [*(d for d in row.dims if d in STACK_DIMS), *(d for d in row.dims if d in CHANNEL_DIMS)]
    if row.dims != (*order, "y", "x") or len(order) != len(set(order)):
        raise CubeError(
            f"dims of {what} are {list(row.dims)}; they are at most one of "
            f"{', '.join(STACK_DIMS)}, then at most one of {', '.join(CHANNEL_DIMS)}, then y, x"
        )
    if (row.channel_dim is None) != (not row.channels):
        raise CubeError(f"{what} needs channels where, and only where, dims name pol or band")
    for key in ("work_dtype", "dtype"):
        if getattr(row, key) not in _DTYPES:
            raise CubeError(unknown(f"value for {key} of {what}:", getattr(row, key), _DTYPES))
    if not (len(row.valid_range) == 2 and row.valid_range[0] < row.valid_range[1]):
        raise CubeError(
            f"valid_range of {what} is {list(row.valid_range)}; give [least, most] in {row.units}"
        )
    if row.resolution <= 0 or row.scale == 0:
        raise CubeError(f"resolution and scale of {what} must be above 0")
    return row


def product(made: Product, of: Layer | None, what: str) -> Product:
    """Return a product whose assets and numbers fit its layer, where that is known.

    Raises
    ------
    CubeError
        Channels that the layer has not, a calibration that nobody knows, a scale that leaves
        nothing of whole numbers.
    """
    if made.calibration is not None and made.calibration not in _CALIBRATIONS:
        raise CubeError(unknown(f"value for calibration of {what}:", made.calibration,
                                _CALIBRATIONS))  # fmt: skip
    if of is None:
        return made
    channels = of.channels or ("",)
    strange = [c for c in made.assets if c not in channels]
    if strange:
        wanted = (
            f"channels of {of.name!r} are {', '.join(of.channels)}"
            if of.channels
            else f'layer {of.name!r} has no channels: assets = {{ "" = "KEY" }}'
        )
        raise CubeError(f"assets of {what} name {strange[0]!r}; {wanted}")
    if not of.work_dtype.startswith("float") and made.scale < 1:
        raise CubeError(
            f"scale of {what} is {made.scale:g}: it leads from the source's numbers to the whole "
            f"numbers that {of.name!r} works with, and would leave nothing of them. STAC's "
            "raster:scale is another thing; leave scale out where the source holds those numbers"
        )
    return made
