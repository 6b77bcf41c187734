"""A corpus: many cubes and one table; published to a folder or an object store, opened from there.

::

    <url>/collection.json      STAC collection; written last, so that it stands for a whole corpus
          items.parquet        GeoParquet, one STAC item per row: all that `open_corpus` reads
          objects.parquet      SHA-256 and size of every object of every cube: what `verify` reads
          items/<id>.json      STAC items (projection, datacube)
          README.md, map.svg   the data card
          cubes/<id>.zarr/     the cubes as `cubes.write` left them, ledger included
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
import xarray as xr

from cubes.bounds import outline
from cubes.corpora import card, stacdocs
from cubes.corpora.remote import Remote, connect
from cubes.store import ledger, opened
from cubes.types import TIME_COORDS, CubeError, Layout, Plan

FORMAT = 1
"""Version of the layout above; a newer one is refused."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
"""Ids become keys and paths, also when a stranger's corpus is opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Many cubes and one table."""

    name: str
    title: str
    description: str = ""
    license: str
    """SPDX id, or ``other`` where each source has its own."""
    attribution: tuple[str, ...]
    """Lines that users must show."""
    table: pd.DataFrame = field(repr=False)
    """One row per cube, index ``id``: ``geometry`` (footprint, longitude and latitude), ``start``,
    ``end`` (datetime64[ns] UTC), ``crs``, ``shape``, ``transform``, ``layers``, ``steps`` (layer ->
    steps), ``valid`` (layer -> share of pixels with data; for ``s2/clear`` clear ones), ``bytes``,
    ``objects``, ``tree_sha256``, ``plan_sha256``."""
    stores: Mapping[str, Path] = field(default_factory=dict, repr=False)
    """Id -> folder, of a corpus on this machine."""
    remote: Remote | None = field(default=None, repr=False)
    """Where it was opened from."""

    def __len__(self) -> int:
        """Return the number of cubes."""
        return len(self.table)

    @property
    def places(self) -> list[str]:
        """Where its cubes lie, in the order of the table: paths or URLs, as `cubes.plan` takes."""
        if self.remote is None:
            return [str(self.stores[name]) for name in self.table.index]
        return [f"{self.remote.url}/cubes/{name}.zarr" for name in self.table.index]

    @property
    def access(self) -> Mapping[str, Any]:
        """How it was opened: ``options`` and ``requester_pays``; may hold credentials."""
        return {} if self.remote is None else self.remote.access

    def open(self, name: str, *, chunks: opened.Chunks = "stored") -> xr.DataTree:
        """Return one cube, lazy, as `cubes.open` does; reads its plan and no pixel.

        Parameters
        ----------
        name : str
            Its id: a label of the table's index.
        chunks : "stored", dict or None
            See `cubes.open`.

        Raises
        ------
        CubeError
            No such cube; its plan is not the one in the table.
        """
        if name not in self.table.index:
            some = ", ".join(map(str, self.table.index[:5]))
            raise CubeError(f"corpus {self.name!r} has no cube {name!r}; it has {some}, ...")
        row = self.table.loc[name]
        if self.remote is None:
            return opened.cube(ledger.load_build(self.stores[name]), chunks, partial=False)
        key = f"cubes/{name}.zarr"
        build = json.loads(fetch(self.remote, f"{key}/{ledger.FOLDER}/build.json"))
        plan = Plan.from_json(fetch(self.remote, f"{key}/{ledger.FOLDER}/plan.json").decode())
        if plan.sha256 != row["plan_sha256"]:
            raise CubeError(
                f"the plan of {name!r} at {self.remote.url} is not the one in the corpus table; "
                "the corpus was changed after it was published"
            )
        token = str(row["tree_sha256"])
        layout = Layout(**build["layout"])
        return opened.assembled(plan, layout, self.remote.zarr(key), chunks=chunks, token=token)


def fetch(remote: Remote, key: str) -> bytes:
    """Return an object of a corpus.

    Raises
    ------
    CubeError
        There is none.
    """
    try:
        return remote.get(key)
    except FileNotFoundError:
        raise CubeError(f"{remote.url} lacks {key}; is it a corpus, and whole?") from None


# ---------------------------------------------------------------------------------------- gather


def corpus(
    stores: Iterable[str | os.PathLike[str]],
    *,
    name: str,
    title: str = "",
    description: str = "",
    license: str = "",
    attribution: Sequence[str] = (),
) -> Corpus:
    """Return a corpus of cubes on this machine; reads their ledgers and no pixel.

    Parameters
    ----------
    stores : iterable of paths
        Sealed cubes, as `cubes.write` leaves them. A folder's name, without ``.zarr``, is the
        cube's id.
    name : str
        Id of the corpus: letters, digits, dots, dashes and underscores.
    title, description : str
        For people.
    license : str
        SPDX id; by default that of the one source, or ``other`` where each has its own.
    attribution : sequence of str
        Lines that users must show; by default those of the sources of the layers.

    Raises
    ------
    CubeError
        No cube; not a cube, or not sealed; a ledger that is not the one that was sealed; ids that
        repeat or cannot be keys.
    """
    _check_name(name, "corpus")
    paths: dict[str, Path] = {}
    for store in stores:
        path = ledger.store_path(store)
        label = path.name.removesuffix(".zarr")
        _check_name(label, "cube")
        if label in paths:
            raise CubeError(
                f"two cubes are called {label!r}: {paths[label]} and {path}; rename a folder"
            )
        paths[label] = path
    if not paths:
        raise CubeError("a corpus needs at least one cube")
    rows, catalogs = [], set()
    for path in paths.values():
        row, catalog = _row(path)
        rows.append(row)
        catalogs.add(catalog)
    table = pd.DataFrame(rows, index=pd.Index(list(paths), name="id"))
    table = table.astype({"start": "datetime64[ns]", "end": "datetime64[ns]"})
    found = sources_of(table, catalogs)
    licenses = {s.license for s in found}
    one = licenses.pop() if len(licenses) == 1 else "other"
    return Corpus(
        name=name,
        title=title or name,
        description=description,
        # STAC knows SPDX ids alone: the terms of Copernicus have none, and are linked
        license=license or (one if " " not in one else "other"),
        attribution=tuple(attribution) or card.attribution(found, table),
        table=table,
        stores=paths,
    )


def _check_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name) or ".." in name:
        raise CubeError(
            f"{what} id {name!r} cannot be a key; use letters, digits, dots, dashes and "
            "underscores, at most 120, the first a letter or digit"
        )


def sources_of(table: pd.DataFrame, catalogs: Iterable[str]) -> list[card.Source]:
    """Return whose data the layers of a corpus table are."""
    layers = dict.fromkeys(n for row in table["layers"] for n in row)
    return card.sources(layers, simulated=set(catalogs) == {"simulated"})


def _row(path: Path) -> tuple[dict[str, Any], str]:
    """Return a cube's row, and the catalogue that it came from."""
    build = ledger.load_build(path)
    seal = ledger.proved(build)
    plan = ledger.build_plan(build)
    table, arrays = ledger.load_table(build), ledger.build_arrays(build)
    box = plan.geobox
    start, end = _span(plan)
    numbers = {n: int(np.prod(a.shape)) for n, a in arrays.items()}
    row = {
        "geometry": _footprint(plan),
        "start": start,
        "end": end,
        "crs": f"EPSG:{box.crs.epsg}" if box.crs and box.crs.epsg else str(box.crs),
        "shape": tuple(int(v) for v in box.shape),
        "transform": tuple(float(v) for v in tuple(box.transform)[:6]),
        "layers": tuple(arrays),
        "steps": {n: a.steps for n, a in arrays.items()},
        "valid": {n: round(float(table.valid[n].sum()) / max(1, numbers[n]), 6) for n in arrays},
        "bytes": sum(size for _, size in table.objects.values()),
        "objects": len(table.objects),
        "tree_sha256": str(seal["tree_sha256"]),
        "plan_sha256": build.plan_sha256,
    }
    return row, str(plan.attrs.get("catalog", ""))


def _footprint(plan: Plan) -> Any:
    box = plan.geobox
    if box.crs is None:
        raise CubeError("a cube without a CRS has no place on Earth; it cannot be published")
    # its edges bend: over 5 km by 0.5 m at 45 degrees of latitude, by 3 m at 80
    step = 5000.0 if box.crs.projected else 0.05
    found = outline(box.boundingbox.bbox, box.crs.proj, step)
    return shapely.transform(found, lambda xy: xy.round(7))


def _span(plan: Plan) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Return first and last time of a cube; of one without times the range that was asked for."""
    times = [
        pd.Timestamp(v)
        for axis in plan.axes
        for name, values in axis.coords.items()
        if name in TIME_COORDS
        for v in values
        if v is not None
    ]
    if not times:
        years = [int(y) for a in plan.axes if a.dim == "year" for y in a.coords["year"]]
        asked = [f"{min(years)}-01-01", f"{max(years)}-12-31"] if years else []
        times = [pd.Timestamp(t) for t in plan.attrs.get("time", ()) or asked]
    if not times:
        raise CubeError(
            "a cube without times (only static layers) needs the attribute time = [start, end] to "
            "be published: cube.attrs['time'] = ['2021-01-01', '2021-12-31'] before cubes.write"
        )
    return min(times), max(times)


# ------------------------------------------------------------------------------------------ open


def open_corpus(
    url: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    requester_pays: bool | str = False,
) -> Corpus:
    """Return a published corpus; reads its collection and its table, two objects in all.

    Parameters
    ----------
    url, options, requester_pays
        See `cubes.corpora.remote.connect`.

    Raises
    ------
    CubeError
        No corpus there; of a newer version; a table that is not the one the collection names.
    """
    remote = connect(url, options=options, requester_pays=requester_pays)
    body = collection_of(remote)
    data = beside(remote, body, "items")
    table = stacdocs.read_items(data)
    for name in table.index:
        _check_name(str(name), "cube")
    return Corpus(
        name=str(body["id"]),
        title=str(body.get("title", body["id"])),
        description=str(body.get("description", "")),
        license=str(body.get("license", "other")),
        attribution=tuple(body.get("cubes:attribution", ())),
        table=table,
        remote=remote,
    )


def collection_of(remote: Remote) -> dict[str, Any]:
    """Return the collection of a published corpus.

    Raises
    ------
    CubeError
        None there, not one of ours, or of a newer version.
    """
    try:
        body = json.loads(remote.get("collection.json"))
    except FileNotFoundError:
        raise CubeError(
            f"there is no corpus at {remote.url}: it has no collection.json. Either the URL is "
            "another one, or cubes.publish has not finished"
        ) from None
    except ValueError as error:
        raise CubeError(f"{remote.url}/collection.json is not JSON: {error}") from None
    version = body.get("cubes:format") if isinstance(body, dict) else None
    if not isinstance(version, int):
        raise CubeError(f"{remote.url}/collection.json is not that of a corpus of cubes")
    if version > FORMAT:
        raise CubeError(
            f"{remote.url} has corpus format {version}; this version of cubes reads up to "
            f"{FORMAT}: upgrade deepsentinel"
        )
    return dict(body)


KEYS = {"items": "items.parquet", "objects": "objects.parquet", "card": "README.md",
         "map": "map.svg"}  # fmt: skip


def beside(remote: Remote, body: Mapping[str, Any], label: str) -> bytes:
    """Return a file beside the collection, checked against the checksum in it.

    Raises
    ------
    CubeError
        Missing, or not the one that the collection names.
    """
    data = fetch(remote, KEYS[label])
    expected = body.get("assets", {}).get(label, {}).get("file:checksum")
    if expected != stacdocs.multihash(ledger.sha256(data)):
        raise CubeError(
            f"{remote.url}/{KEYS[label]} is not the file that collection.json names (checksum); "
            "it was changed, or cubes.publish is running"
        )
    return data
