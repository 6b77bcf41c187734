"""Rows become nouns: layers, catalogues, legends and named areas, the shipped ones and a user's.

A user's own file has the tables ``[layers.NAME]``, ``[catalogs.NAME]``, ``[legends.NAME]`` and
``[aois.NAME]`` (``wkt``, or ``bbox``, and ``size`` for points). ``add(path)`` makes its rows known
by name in this process; ``catalog(path)`` uses a file with one catalogue without adding it. Paths
in it may hold environment variables (``$DATA/catalog.json``). Workers need no registry: a plan
carries the rows that it uses.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cubes.registry import checks
from cubes.types import AOI, Access, Catalog, CubeError, Layer, Legend, Product

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

_Row = dict[str, Any]


def _shipped(name: str) -> _Row:
    return tomllib.loads(files(__name__).joinpath(name).read_text(encoding="utf-8"))


class _Rows:
    """Raw tables by kind, filled on first use so that importing costs nothing."""

    def __init__(self) -> None:
        self._tables: dict[str, _Row] = {}

    def table(self, kind: str) -> _Row:
        if kind not in self._tables:
            if kind == "aois":
                text = files(__name__).joinpath("aois.geojson").read_text(encoding="utf-8")
                self._tables[kind] = {
                    f["properties"]["name"]: {"geojson": f["geometry"]}
                    for f in json.loads(text)["features"]
                }
            elif kind == "legends":
                folder = files(__name__).joinpath("legends")
                self._tables[kind] = {
                    name: row
                    for path in sorted(folder.iterdir(), key=lambda p: p.name)
                    for name, row in _shipped(f"legends/{path.name}").items()
                }
            else:
                self._tables[kind] = _shipped(f"{kind}.toml")
        return self._tables[kind]

    def row(self, kind: str, name: str) -> _Row:
        table = self.table(kind)
        if name not in table:
            raise CubeError(checks.unknown(kind[:-1], name, table))
        row: _Row = table[name]
        return row


_rows = _Rows()
_KINDS = ("legends", "layers", "catalogs", "aois")
"""In the order in which they need one another."""


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> _Row:
    """Return `base` with the tables of `over` laid over it, level by level."""
    out = dict(base)
    for key, value in over.items():
        # a map of assets is one value: laying one over another would mix two catalogues' keys
        nested = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if nested and key != "assets" else value
    return out


def layer(name: str | Layer) -> Layer:
    """Return the layer called `name` with its default channels, or the object itself.

    Raises
    ------
    CubeError
        No such layer; the nearest name is given.
    """
    if isinstance(name, Layer):
        return name
    row = {"nodata": None, "work_nodata": None, **_rows.row("layers", name)}
    defaults = row.pop("default_channels", None)
    given = checks.arguments(Layer, {**row, "name": name}, f"layer {name!r}")
    made = checks.layer(Layer(**given))
    return made.pick(tuple(defaults)) if defaults else made


def all_channels(name: str) -> tuple[str, ...]:
    """Return every channel that the layer's row allows."""
    return tuple(_rows.row("layers", name).get("channels", ()))


def layers() -> dict[str, Layer]:
    """Return every known layer by name."""
    return {name: layer(name) for name in _rows.table("layers")}


def catalog(name: str | Path | Catalog, **changes: Any) -> Catalog:
    """Return a catalogue by name, from a user's file with one ``[catalogs.NAME]``, or as it is.

    Parameters
    ----------
    name : str, Path or Catalog
        A known name, a path ending in ``.toml``, or a `Catalog`.
    **changes
        Fields to replace, for example ``url=`` of a server or static catalogue.

    Raises
    ------
    CubeError
        Unknown name or key, or a file with no or several catalogues.
    """
    if isinstance(changes.get("url"), os.PathLike):  # as `cubes.worlds.publish` returns it
        changes["url"] = os.fspath(changes["url"])
    if isinstance(name, Catalog):
        return replace(name, **changes) if changes else name
    if str(name).endswith(".toml"):
        path = Path(name)
        known = _read(path)
        # layers, legends and areas that stand beside a catalogue are what it delivers, and where
        _add(path, {kind: rows for kind, rows in known.items() if kind != "catalogs"})
        rows = known.get("catalogs", {})
        if len(rows) != 1:
            raise CubeError(
                f"{path} holds {len(rows)} catalogues ({', '.join(rows) or 'none'}); "
                "cubes.add(path) makes them known by name, then pass catalog=NAME"
            )
        (key, row), folder = next(iter(rows.items())), path.resolve().parent
        return _catalog(key, {**row, **changes}, folder)
    row = _rows.row("catalogs", str(name))
    return _catalog(str(name), _merged(row, changes), Path(row.get("_folder", ".")))


def _catalog(name: str, row: Mapping[str, Any], folder: Path) -> Catalog:
    row = {k: v for k, v in row.items() if k != "_folder"}
    seen = [name]
    while "extends" in row:
        base = str(row["extends"])
        if base in seen:
            raise CubeError(f"catalogue {name!r} extends itself: {' -> '.join([*seen, base])}")
        seen.append(base)
        parent = _rows.row("catalogs", base)
        row = _merged(parent, {k: v for k, v in row.items() if k != "extends"})
        if "extends" in parent:
            row["extends"] = parent["extends"]
    products = {
        of: _product(of, p, f"product {of!r} of catalogue {name!r}")
        for of, p in row.get("products", {}).items()
    }
    access = row.get("access", {})
    if not isinstance(access, Access):
        given = checks.arguments(Access, access, f"access of catalogue {name!r}")
        given["sign"] = given.get("sign") or None
        given["roots"] = tuple(
            str((folder / os.path.expandvars(r)).resolve()) for r in given.get("roots", ())
        )
        access = Access(**given)
    plain = {k: v for k, v in row.items() if k not in ("products", "access")}
    body = checks.arguments(
        Catalog, {**plain, "name": name, "products": products, "access": access},
        f"catalogue {name!r}",
    )  # fmt: skip
    if body["kind"] == "api" and "://" not in body["url"]:
        raise CubeError(
            f'catalogue {name!r} has kind = "api" and url {body["url"]!r}, which is no web '
            'address; a catalog.json on a disk has kind = "static"'
        )
    if body.get("kind") == "static" and body.get("url") and "://" not in str(body["url"]):
        body["url"] = str((folder / os.path.expandvars(str(body["url"]))).resolve())
        if not access.roots and "file" in access.schemes:
            # a static catalogue on disk may read what lies beside it, and nothing else
            body["access"] = replace(access, roots=(str(Path(body["url"]).parent),))
    return Catalog(**body)


def _product(of: str, row: Mapping[str, Any], what: str) -> Product:
    made = Product(**checks.arguments(Product, {"nodata": None, **row}, what))
    if of not in _rows.table("layers"):
        return checks.product(made, None, what)
    every = replace(layer(of), channels=all_channels(of))
    return checks.product(made, every, what)


def catalogs() -> tuple[str, ...]:
    """Return the names of the known catalogues."""
    return tuple(_rows.table("catalogs"))


CARRIED = "legend_json"
"""Attribute of a class layer of a cube: its legend, as `Legend.to_json` writes it."""


def legend(of: str | Legend | xr.DataArray) -> Legend:
    """Return the legend called by a name, the one a layer of a cube came with, or `of` itself.

    Parameters
    ----------
    of : str, Legend or DataArray
        A known name; a legend; or a class layer of a cube. A layer's own legend stands in its
        attributes and wins over one of the same name that is known here: its codes were written
        by it. Where none stands there, the name in its attribute ``legend``, or its own, is known.

    Raises
    ------
    CubeError
        No such legend, or one that cannot be used.
    """
    if isinstance(of, Legend):
        return checks.legend(of)
    if not isinstance(of, str):
        if CARRIED in of.attrs:
            return checks.legend(Legend.from_json(str(of.attrs[CARRIED])))
        of = str(of.attrs.get("legend", of.name))
    return checks.legend(Legend(**checks.legend_row(_rows.row("legends", of), of)))


def legends() -> tuple[str, ...]:
    """Return the names of the known legends."""
    return tuple(_rows.table("legends"))


def translate(
    codes: np.ndarray, legend_: str | Legend | xr.DataArray, to: str | Legend
) -> np.ndarray:
    """Return class codes of one legend as codes of another.

    Parameters
    ----------
    codes : array
        Any shape, whole numbers; ignored codes are allowed, and nodata: the legend's, or that of
        its layer of labels where every code of the legend is real.
    legend_, to : str, Legend or DataArray
        Where the codes come from (see `legend`), and the legend wanted.

    Returns
    -------
    array
        uint8 (uint16 where codes pass 255), same shape; nodata of `to` where a code is nodata,
        ignored, or has no counterpart.

    Raises
    ------
    CubeError
        No table between the two; a code that the legend does not have, or that is no whole number.
    """
    import numpy as np

    from cubes.registry.labels import label_layer

    one, other = legend(legend_), legend(to)
    if other.name not in one.remap:
        raise CubeError(
            f"legend {one.name!r} has no table to {other.name!r}; it has "
            f"{', '.join(one.remap) or 'none'}"
        )
    if other.nodata is None:
        raise CubeError(f"legend {other.name!r} has no nodata for codes without a counterpart")
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu" and codes.size:
        raise CubeError(
            f"codes of legend {one.name!r} are {codes.dtype}, not whole numbers: open labels with "
            "mask_and_scale=False, or put its nodata where NaN is and cast them"
        )
    # a legend in which every code is real leaves nodata to its labels
    nodata = label_layer(one).nodata if one.nodata is None else one.nodata
    known = {*one.classes, *(() if nodata is None else (int(nodata),))}
    strange = sorted(set(np.unique(codes).tolist()) - known)
    if strange:
        raise CubeError(
            f"codes {strange[:5]} are not in legend {one.name!r} ({one.title}): another legend, or "
            "resampled with a kernel that invents values"
        )
    size = max(known) + 1
    dtype = np.uint8 if max(other.classes) < 256 else np.uint16
    table = np.full(size, other.nodata, dtype)
    for code, there in one.remap[other.name].items():
        if code not in one.ignore:
            table[code] = there
    out: np.ndarray = table[codes.astype(np.int64)]
    return out


def named_aoi(name: str) -> AOI:
    """Return the area called `name`.

    Raises
    ------
    CubeError
        No such area.
    """
    import shapely
    from shapely.geometry import shape

    row = _rows.row("aois", name)
    if "geojson" in row:
        wkt = shapely.to_wkt(shape(row["geojson"]), rounding_precision=9, trim=True)
    elif "bbox" in row:
        wkt = shapely.to_wkt(shapely.box(*row["bbox"]), rounding_precision=9, trim=True)
    else:
        wkt = row.get("wkt", "")
        try:
            shapely.from_wkt(wkt)
        except shapely.errors.ShapelyError as error:
            raise CubeError(
                f"aoi {name!r} has no bbox, and its wkt is no geometry: {error}"
            ) from None
    return AOI(name=name, wkt=wkt, size=row.get("size"))


def aois() -> tuple[str, ...]:
    """Return the names of the known areas."""
    return tuple(_rows.table("aois"))


def _read(path: Path) -> _Row:
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CubeError(f"no such file: {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise CubeError(f"{path} is not valid TOML: {error}") from None
    for key in rows:
        if key not in _KINDS:
            raise CubeError(checks.unknown(f"table in {path.name}", key, _KINDS))
        if not isinstance(rows[key], Mapping):
            raise CubeError(f"{key} in {path.name} is {rows[key]!r}, not tables [{key}.NAME]")
    return rows


def add(path: str | Path) -> tuple[str, ...]:
    """Return the names of the rows that were made known by name from a user's TOML file.

    Relative paths in it (a static catalogue's url, roots) are taken from the file's folder.

    Raises
    ------
    CubeError
        No such file, not TOML, an unknown table, or a row that cannot be used: then none of the
        file's rows is known.
    """
    path = Path(path)
    return _add(path, _read(path))


def _add(path: Path, tables: Mapping[str, Mapping[str, _Row]]) -> tuple[str, ...]:
    """Return the names of rows after making them known: all of a file's, or none of them."""
    before = {kind: dict(_rows.table(kind)) for kind in tables}
    added = []
    make = {"layers": layer, "legends": legend, "catalogs": catalog, "aois": named_aoi}
    try:
        for kind in sorted(tables, key=_KINDS.index):  # a catalogue's products need their layers
            for name, row in tables[kind].items():
                if not isinstance(row, Mapping):
                    raise CubeError(f"[{kind}] {name} is {row!r}, not a table")
                extra = {"_folder": str(path.resolve().parent)} if kind == "catalogs" else {}
                _rows.table(kind)[name] = {**row, **extra}
                make[kind](name)
                added.append(name)
        _agree(tables)
    except CubeError as error:
        for kind, rows in before.items():
            _rows.table(kind).clear()
            _rows.table(kind).update(rows)
        raise CubeError(f"{path}: {error}") from None
    return tuple(added)


def _agree(tables: Mapping[str, Mapping[str, _Row]]) -> None:
    """Raise unless layers and legends of which one is new fit one another."""
    for name, row in _rows.table("layers").items():
        of = row.get("legend")
        if of and (name in tables.get("layers", ()) or of in tables.get("legends", ())):
            checks.fitting(layer(name), legend(of))
