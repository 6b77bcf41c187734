"""Values of rows, checked as they are read: a row that is silently misread gives wrong pixels."""

from __future__ import annotations

import difflib
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from cubes.errors import CubeError
from cubes.types import CHANNEL_DIMS, STACK_DIMS, Layer, Legend, Product

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
    if row.kind == "class":
        _class(row, what)
    # 6.28: rows write pi with a few digits
    turn = {"degrees": 360, "rad": 6.28}.get(row.units)
    if row.kind == "phase" and turn is None:
        raise CubeError(f'{what} is of kind "phase" in {row.units!r}; give it in rad or degrees')
    if row.kind == "continuous" and row.valid_range[1] - row.valid_range[0] >= (turn or math.inf):
        raise CubeError(
            f"{what} is an angle of a full turn ({list(row.valid_range)} {row.units}): the mean of "
            '359 and 1 degrees is not 180; give kind = "phase", which goes through cosine and sine'
        )
    return row


def _class(row: Layer, what: str) -> None:
    """Raise unless a class layer works in the codes that it stores."""
    if row.convert != "stored" or row.work_dtype != row.dtype:
        raise CubeError(
            f'{what} is of kind "class": its codes are never converted; give convert = "stored" '
            f"and work_dtype = dtype, not {row.convert!r}, {row.work_dtype!r} and {row.dtype!r}"
        )
    if row.work_nodata != row.nodata:
        raise CubeError(
            f"{what} has work_nodata {row.work_nodata} and nodata {row.nodata}: codes are stored "
            "as they are, and missing pixels would become a class; give both the same number"
        )


CODES = 65534
"""The largest code of a class: labels are uint8 or uint16, and a number stays free for nodata."""


def legend_row(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the row of a legend as keyword arguments of `Legend`, with codes as numbers.

    Raises
    ------
    CubeError
        A key of another kind, a code that is no whole number, a table that is none.
    """
    what = f"legend {name!r}"
    if not isinstance(row, Mapping):
        raise CubeError(f"{what} is {row!r}, not a table")
    for part in ("classes", "groups", "remap"):
        if not isinstance(row.get(part, {}), Mapping):
            raise CubeError(f"{part} of {what} is {row[part]!r}, not a table; {_FORMS[part]}")
    out = {"nodata": None, **row, "name": name}
    out["classes"] = {
        _code(code, what): tuple(v) if isinstance(v, list | tuple) else v
        for code, v in row.get("classes", {}).items()
    }
    out["groups"] = {k: _codes(v, f"group {k!r} of {what}") for k, v in
                     row.get("groups", {}).items()}  # fmt: skip
    out["remap"] = {
        other: {
            code: _code(there, f"remap to {other!r} of {what}")
            for there, codes in _table(table, f"remap to {other!r} of {what}").items()
            for code in _codes(codes, f"remap to {other!r} of {what}")
        }
        for other, table in row.get("remap", {}).items()
    }
    return arguments(Legend, out, what)


_FORMS = {
    "classes": 'write them as classes = { 1 = ["wheat", "#d8b56b"] }',
    "groups": "write them as groups = { cropped = [1, 2] }",
    "remap": "write it as [legends.NAME.remap.OTHER], code there = [codes here]",
}


def _table(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CubeError(f"{what} is {value!r}, not a table; {_FORMS['remap']}")
    return value


def _codes(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, list | tuple):
        raise CubeError(f"{what} is {value!r}; give a list of codes, such as [1, 2]")
    return tuple(_code(v, what) for v in value)


def _code(value: Any, what: str) -> int:
    """Return a code; TOML keys are text, and only their plain form is a number."""
    if isinstance(value, str) and re.fullmatch(r"0|-?[1-9][0-9]*", value, re.ASCII):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise CubeError(f"{what} has the code {value!r}; codes are whole numbers from 0 to {CODES}")


def legend(made: Legend) -> Legend:
    """Return a legend whose codes, names and colours can be used.

    Raises
    ------
    CubeError
        Codes out of bounds, or the nodata among them; a class without name and colour; codes in
        ignore, groups or remap that are no classes.
    """
    what = f"legend {made.name!r}"
    if not made.classes:
        raise CubeError(f"{what} has no classes; {_FORMS['classes']}")
    for code, entry in made.classes.items():
        _entry(code, entry, what)
    if made.nodata is not None:
        if isinstance(made.nodata, bool) or not isinstance(made.nodata, int):
            raise CubeError(f"nodata of {what} is {made.nodata!r}; give a whole number, or none")
        if made.nodata in made.classes:
            raise CubeError(
                f"{what} has the class {made.nodata} ({made.classes[made.nodata][0]}), which is "
                "its nodata too: missing pixels are never a class; give nodata a code of its own, "
                "or leave it out where every code is real"
            )
    uses = {
        "ignore": made.ignore,
        **{f"group {k!r}": v for k, v in made.groups.items()},
        **{f"remap to {k!r}": tuple(v) for k, v in made.remap.items()},
    }
    for part, codes in uses.items():
        strange = [c for c in codes if c not in made.classes]
        if strange:
            raise CubeError(
                f"{part} of {what} names the code {strange[0]}, which is none of its classes: "
                f"{_some(made.classes)}; add the class, or take the code out"
            )
    return made


def _entry(code: Any, entry: Any, what: str) -> None:
    if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code <= CODES:
        raise CubeError(f"{what} has the code {code!r}; codes are whole numbers from 0 to {CODES}")
    if not (
        isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(v, str) for v in entry)
    ):
        shown = json.dumps(entry, default=repr)
        raise CubeError(
            f"class {code} of {what} is {shown}; give its name and its colour: "
            f'{code} = ["wheat", "#d8b56b"]'
        )
    if not entry[0].strip():
        raise CubeError(f"class {code} of {what} has no name; give one")
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", entry[1]):
        raise CubeError(
            f"class {code} ({entry[0]}) of {what} has the colour {entry[1]!r}; give it as "
            "#rrggbb, such as #d8b56b"
        )


def _some(codes: Iterable[int]) -> str:
    every = sorted(codes)
    return ", ".join(map(str, every[:10])) + (", ..." if len(every) > 10 else "")


def fitting(row: Layer, of: Legend) -> None:
    """Raise unless a layer can hold the codes of its legend, and tell them from its nodata.

    Raises
    ------
    CubeError
        A code that the dtype cannot hold, or that is the layer's nodata; a nodata that differs.
    """
    what = f"layer {row.name!r} with legend {of.name!r}"
    most = {"uint8": 255, "uint16": 65535, "int16": 32767}.get(row.dtype)
    if row.kind != "class" or most is None:
        raise CubeError(
            f'{what} is {row.kind} of {row.dtype}: codes are kind "class" of uint8, uint16 or int16'
        )
    large = [c for c in of.classes if c > most]
    if large:
        raise CubeError(
            f"{what} is {row.dtype}, which holds codes up to {most}, and the legend has {large[0]} "
            f"({of.classes[large[0]][0]}); give the layer dtype and work_dtype "
            f'"{"uint16" if max(of.classes) > 255 else "uint8"}", or the class another code'
        )
    if row.nodata is not None and int(row.nodata) in of.classes:
        raise CubeError(
            f"{what} has nodata {row.nodata:g}, which is the class "
            f"{of.classes[int(row.nodata)][0]!r}: its pixels would count as missing; give nodata "
            "and work_nodata a code that is no class"
        )
    if of.nodata is not None and row.nodata != of.nodata:
        raise CubeError(
            f"{what} has nodata {row.nodata}, and the legend {of.nodata}; give both the same number"
        )


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
