"""Publishing a world: COG and STAC for all to read, the truth apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cubes.types import CubeError

from . import products_optical, products_radar, products_static
from .documents import aoi_feature, write_catalogue, write_server_files
from .geometry import aoi_bounds
from .truth import TruthWriter
from .world import World

Progress = Callable[[str, int, int], None]
"""Called with what was written, the steps done, and their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Where a published world lies."""

    catalog: Path
    """``archive/catalog.json``: a static STAC catalogue with relative links."""
    aoi: Path
    """``archive/aoi.geojson``: the area that the cube of the world has."""
    truth: Path
    """``truth/``: what the observations were made from; `truth` opens it."""
    server: tuple[Path, ...]
    """Files for a STAC API server, in order: ``rustac serve *server -a 127.0.0.1:PORT``."""
    items_by_collection: dict[str, int]
    """Number of items per collection."""


def publish(world: World, out: str | Path, *, progress: Progress | None = None) -> Published:
    """Return where a world was published: ``archive/``, ``truth/`` and ``server/`` under `out`.

    Files under ``archive/`` and ``truth/`` are a pure function of parameters and seed.

    Parameters
    ----------
    world : World
    out : str or Path
        A folder that does not exist yet, or is empty.
    progress : callable, optional
        Called as ``progress(name, done, total)`` after every acquisition.

    Raises
    ------
    CubeError
        `out` exists and is not empty.
    """
    root = Path(out)
    if root.exists() and any(root.iterdir()):
        raise CubeError(
            f"cannot publish to {str(root)!r}: it is not empty. Give a new folder, or remove it"
        )
    archive = root / "archive"
    items: dict[str, list[dict[str, Any]]] = {}
    total = world.params.optics.dates + len(world.params.tracks) * world.params.radar.dates + 1
    truth = TruthWriter(root / "truth", world)
    for done, (name, made) in enumerate(_steps(world, archive, truth), 1):
        if progress is not None:
            progress(name, done, total)
        for document in made:
            items.setdefault(document["collection"], []).append(document)
    truth.close()
    ordered = {
        kind: sorted(items[kind], key=lambda i: (str(i["properties"]["datetime"]), i["id"]))
        for kind in sorted(items)
    }
    aoi = aoi_feature(world.params.place.epsg, aoi_bounds(world.params))
    catalog = write_catalogue(archive, f"{world.params.name}-{world.seed}", aoi, ordered)
    return Published(
        catalog=catalog,
        aoi=archive / "aoi.geojson",
        truth=root / "truth",
        server=write_server_files(root / "server", archive, ordered),
        items_by_collection={kind: len(members) for kind, members in ordered.items()},
    )


def _steps(
    world: World, archive: Path, truth: TruthWriter
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the name and items of each step, one acquisition at a time."""
    yield "static layers", products_static.write_static(world, archive)
    optical = products_optical.OpticalWriter(world, archive)
    for date in world.s2_dates:
        scene = world.s2(date)
        truth.optical(scene)
        yield f"S2 {date.time:%Y-%m-%d}", optical.write(scene)
    for track in range(len(world.params.tracks)):
        writer = products_radar.TrackWriter(world, track, archive)
        for pass_ in world.s1(track):
            truth.radar(pass_)
            yield f"S1 {pass_.time:%Y-%m-%d}", writer.write(pass_)
