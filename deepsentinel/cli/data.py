"""Commands of the data side that ask or send elsewhere: search, build, publish, fetch."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepsentinel.cli.shared import Command, area, progress

if TYPE_CHECKING:
    from cubes import Plan, Request

AREA_HELP = (
    "WEST,SOUTH,EAST,NORTH or LON,LAT (with --size), a known name, or a GeoJSON file; "
    "write --area=-121,36,... where the first number is negative"
)


def add(command: Command) -> None:
    """Add the commands of this module."""
    _add_search(command)
    _add_build(command)
    _add_publish(command)
    _add_fetch(command)


# -- search ------------------------------------------------------------------------------------


def _add_search(command: Command) -> None:
    made = command("search", "what a catalogue has for an area; reads no pixel")
    made.set_defaults(run=_search)
    _add_request(made)
    made.add_argument("--json", action="store_true", help="print the plan itself")


def _search(options: argparse.Namespace) -> None:
    import pandas as pd

    request = _request(options)
    plan = request.plan()
    if options.json:
        print(plan.to_json())
        return
    print(_size(plan))
    for axis in plan.axes:
        print(f"\n{axis.group}.{axis.dim}: {len(axis)} steps")
        names = [axis.dim, *(n for n in axis.coords if n not in (axis.dim, "items"))]
        # A column that no item fills says nothing: view angles of most catalogues.
        table = pd.DataFrame({n: axis.coords[n] for n in names}).dropna(axis="columns", how="all")
        # orbits count from 1: a cube holds 0 where a catalogue does not say
        for name in {"relative_orbit", "absolute_orbit"} & set(table):
            table[name] = table[name].replace(0, "")
        print(table.to_string(index=False))
    if plan.missing:
        print(f"\n{len(plan.missing)} assets missing and masked: {', '.join(plan.missing[:5])}")


def _size(plan: Plan) -> str:
    """Return the size of a cube in words, and how much of it is the area asked for."""
    import shapely

    from cubes.grid import lonlat_bounds

    said = repr(plan).strip("<>").replace("Plan of ", "", 1)
    wkt = str(plan.attrs.get("aoi_wkt", ""))
    area_ = shapely.from_wkt(wkt) if wkt.startswith(("POLYGON", "MULTI")) else None
    if area_ is not None:
        share = area_.area / shapely.box(*lonlat_bounds(plan.geobox)).area
        if share < 0.5:
            said += (
                f"\nthe area is {100 * share:.1f} % of it, the rest fills whole cells of 2,560 m "
                "(--fit covers the area alone)"
            )
    return said


# -- build -------------------------------------------------------------------------------------


def _add_build(command: Command) -> None:
    made = command("build", "write the cube of an area into a Zarr store; run it again")
    made.set_defaults(run=_build)
    made.add_argument(
        "store",
        nargs="?",
        help="path of the store; with --like: the area, or with --area the folder",
    )
    _add_request(made, required=False)
    group = made.add_argument_group("a predecessor's recipe: many cubes, dates by its rule")
    group.add_argument("--like", metavar="RECIPE", help="sen12ts or deepsentinel-1k")
    group.add_argument("--out", type=Path, help="folder (RECIPE-AREA)")
    group.add_argument("--limit", type=int, help="most patches: the first of a whole run")
    group.add_argument("--dry-run", action="store_true", help="say what it would come to, and stop")
    group.add_argument("--seed", type=int, default=0, help="of points, pairs and caps")
    group.add_argument("--without", action="append", default=[], metavar="LAYER")
    made.add_argument("--patch", type=int, default=256, help="edge of a shard in pixels")
    made.add_argument("--codec", choices=("lz4", "zstd", "none"), default="lz4")
    made.add_argument("--force", action="store_true", help="replace a store of another plan")


def _build(options: argparse.Namespace) -> int:
    import cubes

    if options.like:
        return _gather(options)
    if options.dry_run:
        raise cubes.CubeError("--dry-run belongs to --like; deepsentinel search reads no pixel")
    lost = [f"--{n}" for n in ("area", "time") if getattr(options, n) is None]
    lost += ["STORE"] if options.store is None else []
    if lost:
        raise cubes.CubeError(f"{', '.join(lost)} missing; see deepsentinel build --help")
    options.store = Path(options.store)
    plan = _request(options).plan()
    print(_size(plan), file=sys.stderr)
    layout = cubes.Layout(patch=options.patch, codec=options.codec)
    report = cubes.write(
        plan, options.store, layout=layout, progress=progress("build"), force=options.force
    )
    print(report)
    return 0 if report.state == "sealed" else 1


def _named(where: str | None) -> str:
    """Return an area as part of a folder's name."""
    if where is None:
        return "land"
    name = Path(where).stem if where.endswith((".json", ".geojson")) else where
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)


def _gather(options: argparse.Namespace) -> int:
    import cubes
    from cubes.corpora import foretelling, gathering, recipes

    changes: dict[str, Any] = {"seed": options.seed, "without": options.without}
    if options.time is not None:
        first, _, last = options.time.partition("/")
        changes["time"] = (first, last or first)
    where = options.area or options.store
    folder = Path(options.store) if options.area and options.store else None
    if folder is not None and options.out is not None:
        raise cubes.CubeError(
            f"where to: {folder} or --out {options.out}? With --area one of them is the folder"
        )
    for flag in ("layers", "bands", "pols", "size", "resolution", "crs"):
        if getattr(options, flag) is not None:
            raise cubes.CubeError(
                f"--{flag} has no effect with --like: the recipe decides it (--without leaves "
                "layers out)"
            )
    if options.fit or options.force:
        raise cubes.CubeError("--fit and --force have no effect with --like")
    out = options.out or folder or Path(f"{options.like}-{_named(where)}")
    made, place = recipes.recipe(options.like, **changes), area(where) if where else None
    source = _catalog(options)
    gathering.fits(made, source, place)
    print(foretelling.foretell(made, place, out, limit=options.limit), file=sys.stderr)
    if options.dry_run:
        return 0
    table = gathering.gather(
        made,
        place,
        out,
        catalog=source,
        limit=options.limit,
        progress=progress("build"),
    )
    told = table.drop(columns=["reason", "store", "items"], errors="ignore")
    print(told.to_string(index=False))
    if (table["state"] == gathering.UNMATCHED).any():
        for reason, lost in table[table["state"] == gathering.UNMATCHED].groupby("reason"):
            print(f"{len(lost)} of {len(table)} without a match: {reason}")
    print(f"{(table['state'] == gathering.MATCHED).sum()} cubes in {out / 'cubes'}")
    return 0


# -- publish ----------------------------------------------------------------------------------


def _add_publish(command: Command) -> None:
    made = command("publish", "write sealed stores as one corpus to a folder or an object store")
    made.set_defaults(run=_publish)
    made.add_argument("stores", nargs="+", type=Path, help="sealed stores")
    made.add_argument("url", help="a folder, or s3://, gs://, az://; run again to add or finish")
    made.add_argument("--name", required=True, help="id of the corpus")
    made.add_argument("--title", default="", help="for people (the name)")
    made.add_argument("--license", default="", help="SPDX id (that of the sources)")
    made.add_argument("--requester-pays", action="store_true")


def _publish(options: argparse.Namespace) -> None:
    import cubes

    made = cubes.corpus(
        options.stores, name=options.name, title=options.title, license=options.license
    )
    report = cubes.publish(
        made,
        options.url,
        requester_pays=options.requester_pays,
        progress=progress("publish"),
    )
    print(report)


def _add_fetch(command: Command) -> None:
    made = command("fetch", "bring a published corpus here, byte for byte; run it again")
    made.set_defaults(run=_fetch)
    made.add_argument("url", help="of the corpus: a folder, s3://, gs://, az:// or https://")
    made.add_argument("folder", type=Path, help="its cubes become FOLDER/ID.zarr")
    made.add_argument("--only", action="append", metavar="ID", help="this cube (repeatable)")
    made.add_argument("--requester-pays", action="store_true")


def _fetch(options: argparse.Namespace) -> None:
    import cubes

    corpus = cubes.open_corpus(options.url, requester_pays=options.requester_pays)
    print(
        cubes.fetch_corpus(corpus, options.folder, names=options.only, progress=progress("fetch"))
    )


# -- a request, from flags ---------------------------------------------------------------------


def _add_request(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--area", required=required, help=AREA_HELP)
    parser.add_argument("--time", required=required, help='"2023-04/2023-10", or one "2023"; UTC')
    parser.add_argument("--layers", help="comma-separated, e.g. s1/backscatter,s2/reflectance")
    parser.add_argument("--catalog", default="planetary-computer", help="a name, or a TOML file")
    parser.add_argument("--url", help="where the catalogue is, in place of its row's url")
    parser.add_argument(
        "--rows", action="append", default=[], type=Path, help="TOML file of your own rows to add"
    )
    parser.add_argument("--size", type=float, help="edge of the square around a point, metres")
    parser.add_argument("--bands", help="comma-separated, e.g. B04,B08")
    parser.add_argument("--pols", help="comma-separated, e.g. vv,vh")
    parser.add_argument("--resolution", type=float, help="pixel edge, metres (default 10)")
    parser.add_argument("--crs", help="e.g. EPSG:3035 (default: the area's UTM zone)")
    parser.add_argument(
        "--fit", action="store_true", help="cover the area alone, not whole cells of 2,560 m"
    )
    parser.add_argument("--on-missing", choices=("raise", "mask"), default="raise")
    parser.add_argument("--max-gib", type=float, default=200.0, help="refuse larger cubes")


def _request(options: argparse.Namespace) -> Request:
    import cubes

    catalog = _catalog(options)
    given: dict[str, Any] = {"on_missing": options.on_missing, "max_gib": options.max_gib}
    if options.size is not None:
        given["size"] = options.size
    for name in ("bands", "pols"):
        if getattr(options, name):
            given[name] = tuple(getattr(options, name).split(","))
    if options.resolution is not None or options.crs is not None or options.fit:
        snap = None if options.fit else cubes.Grid().snap
        resolution = 10.0 if options.resolution is None else options.resolution
        given["grid"] = cubes.Grid(resolution=resolution, crs=options.crs, snap=snap)
    layers = options.layers.split(",") if options.layers else None
    return cubes.Request.of(area(options.area), options.time, layers, catalog=catalog, **given)


def _catalog(options: argparse.Namespace) -> Any:
    """Return the catalogue asked for, after adding the user's own rows."""
    import cubes

    for path in options.rows:
        cubes.add(path)
    return cubes.catalog(
        options.catalog, **({"url": options.url} if options.url is not None else {})
    )
