"""Reading parameter files: TOML to nouns, every unknown, missing or ill-typed key by name."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import MISSING, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

from cubes.types import CubeError

from .params import CLASSES, Crop, Params, Track


def shipped_params() -> tuple[str, ...]:
    """Return the names of the parameter files that come with the package."""
    folder = resources.files("cubes.worlds") / "params"
    return tuple(
        sorted(
            p.name[:-5]
            for p in folder.iterdir()
            if p.name.endswith(".toml") and p.name != "base.toml"
        )
    )


def load_params(name: str | Path) -> Params:
    """Return the parameters of a shipped row or of a TOML file.

    Parameters
    ----------
    name : str or Path
        A shipped name (``demo-train``, ``demo-test``, ``tiny``), or a path ending in ``.toml``.
        A file states only what differs from the package's ``base.toml``.

    Raises
    ------
    CubeError
        Unknown name, unreadable file, unknown or missing key, or a value of the wrong type.
    """
    base = tomllib.loads((resources.files("cubes.worlds") / "params" / "base.toml").read_text())
    text, where = _read(name)
    try:
        row = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CubeError(f"{where} is not valid TOML: {error}") from error
    params: Params = _build(Params, _merge(base, row), where)
    _check(params, where)
    return params


def _read(name: str | Path) -> tuple[str, str]:
    if str(name).endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise CubeError(f"no parameter file at {str(path)!r}")
        return path.read_text(), str(path)
    known = shipped_params()
    if str(name) not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"; nearest is {near[0]!r}" if near else ""
        raise CubeError(
            f"no simulated world named {str(name)!r}; shipped are {', '.join(known)}{hint}. "
            "A file of your own is named by its path, ending in .toml"
        )
    file = resources.files("cubes.worlds") / "params" / f"{name}.toml"
    return file.read_text(), f"{name}.toml"


def _merge(base: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in row.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict) and key != "crops"
        out[key] = _merge(out[key], value) if nested else value
    return out


def _build(cls: type, row: dict[str, Any], where: str) -> Any:
    """Return `cls` from a table, refusing unknown and missing keys by name."""
    known = {f.name: f for f in fields(cls)}
    for key in row:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; nearest is {near[0]!r}" if near else ""
            raise CubeError(
                f"{where}: unknown key {key!r} in [{cls.__name__.lower()}]; "
                f"known are {', '.join(known)}{hint}"
            )
    missing = [n for n, f in known.items() if n not in row and f.default is MISSING]
    if missing:
        raise CubeError(f"{where}: [{cls.__name__.lower()}] lacks {', '.join(missing)}")
    hints = get_type_hints(cls)
    return cls(**{k: _value(hints[k], v, k, where) for k, v in row.items()})


def _value(hint: Any, value: Any, key: str, where: str) -> Any:
    if isinstance(hint, type) and hasattr(hint, "__dataclass_fields__"):
        return _build(hint, value, where)
    if hint == dict[str, Crop]:
        return {k: _build(Crop, v, where) for k, v in value.items()}
    if hint == tuple[Track, ...]:
        return tuple(_build(Track, v, where) for v in value)
    if hint == tuple[float, float]:
        return float(value[0]), float(value[1])
    if hint == dict[str, float]:
        return {k: float(v) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint):
        raise CubeError(
            f"{where}: {key} = {value!r} is {type(value).__name__}, not {hint.__name__}"
        )
    return value


def _check(params: Params, where: str) -> None:
    place = params.place
    if place.x0 % 2560 or place.y0 % 2560:
        raise CubeError(
            f"{where}: place.x0 = {place.x0:g}, place.y0 = {place.y0:g}; both must be multiples "
            "of 2,560 m, so that the cube of the area is exactly the area"
        )
    if place.width % 256 or place.height % 256 or min(place.width, place.height) <= 0:
        raise CubeError(
            f"{where}: place.width x place.height = {place.width} x {place.height}; "
            "both must be positive multiples of 256 pixels"
        )
    if not 32601 <= place.epsg <= 32660:
        raise CubeError(f"{where}: place.epsg = {place.epsg} is no northern UTM zone (32601-32660)")
    need = [c for c in CLASSES[1:] if c not in params.classes]
    if need:
        raise CubeError(f"{where}: [classes] lacks {', '.join(need)}")
    last = [t.first + 12 * (params.radar.dates - 1) for t in params.tracks]
    last.append(params.optics.first + params.optics.step * (params.optics.dates - 1))
    if max(last) >= place.days:
        raise CubeError(
            f"{where}: the last acquisition falls on day {max(last)} of a season of "
            f"place.days = {place.days}; lengthen it or take fewer dates"
        )
