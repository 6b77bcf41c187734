"""Write a cube to Zarr so that it can be killed and run again, open it, verify it, mend it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from cubes.grants import Voucher
from cubes.store import begin, disk, ledger, metadata, opened, run, swap, tree
from cubes.store import layout as layouts
from cubes.store.layout import ArrayLayout, Region
from cubes.store.ledger import Build, Table
from cubes.store.tree import CubeSource
from cubes.types import CubeError, Layout, Progress, Report

StorePath = str | os.PathLike[str]

# ---------------------------------------------------------------------------------------- write


def write(
    source: Any,
    store: StorePath,
    *,
    layout: Layout | None = None,
    client: Any = None,
    progress: bool | Progress | None = None,
    force: bool = False,
) -> Report:
    """Return a report, after writing a cube; run it again to finish what was interrupted.

    Parameters
    ----------
    source : Plan, Request or xarray.DataTree
        A plan, anything with ``plan()``, or your own cube in physical units (`cubes.check`; of a
        group of your own its layers and coordinates are kept, not the attributes of the group).
    store : path
        Folder of the cube. A second run with the same source writes only what is missing; a sealed
        cube is left alone: no pixel is read or written.
    layout : Layout, optional
        How the cube lies in Zarr. Default: that of the store where there is one, else
        ``Layout()``.
    client : dask.distributed.Client, optional
        Where to run; threads of this process by default. Its workers must see `store`.
    progress : bool or callable, optional
        True draws a bar on standard error; a callable gets (done, total, what).
    force : bool
        Replace a cube of another plan or layout that lies in `store`, or one whose plan or ledger
        is not what was written; a sound one of the same plan is left alone. The new one is built
        beside it (``<store>.new``, so there must be room for both) and takes its place once it is
        whole: until then, and if its source fails, the old one stays as it is.

    Returns
    -------
    Report
        ``state`` is ``sealed``, or ``partial`` where regions failed (``failed`` says why; the
        others are kept, and a second run tries the rest); ``store`` is then the folder beside,
        where another cube was to be replaced. Where a few regions of a group, far apart in time
        and space, all failed and none of it was written, its others are not tried (``untried``).

    Raises
    ------
    CubeError
        `store` holds something else, is being written, or was written by a newer version; its
        ledger is not the one that was sealed; a plan read from a file is of a catalogue that is
        not known here.
    OSError
        The disk is full; what is written stays valid.
    """
    began = time.monotonic()
    work = tree.source(source)
    path = ledger.store_path(store)
    with begin.writing(path):
        build, instead = begin.start(path, work, layout, force=force, slots=run.slots(client))
        if instead:
            with begin.writing(swap.beside(path)):
                new, other = begin.start(
                    swap.beside(path), work, build.layout, force=True, slots=run.slots(client)
                )
                if other:
                    begin.fresh(new, work.plan)
                report = _finish(new, lambda: work, client=client, progress=progress)
                report = _switched(report, path)
        else:
            report = _finish(build, lambda: work, client=client, progress=progress)
    return replace(report, seconds=time.monotonic() - began)


def resume(
    store: StorePath,
    *,
    client: Any = None,
    progress: bool | Progress | None = None,
    access: Voucher = None,
) -> Report:
    """Return a report, after finishing an interrupted `write` as it was planned.

    The catalogue is not searched again, so what it gained meanwhile is left out: the plan in the
    store says what is to be read. A replacement begun with ``write(..., force=True)`` is finished
    and takes the cube's place.

    Parameters
    ----------
    store : path
        Folder of the cube.
    client, progress
        As for `write`.
    access : str, Path, Catalog or Access, optional
        Who vouches for what the plan reads, since a store is never taken at its own word: a
        catalogue by name or file or as a row, or an `Access`. Default: the catalogue that the plan
        names, if it is a shipped one or made known with `cubes.add`; a plan that this process
        wrote itself is known.

    Returns
    -------
    Report
        As of `write`.

    Raises
    ------
    CubeError
        Not a cube; one written from a DataTree (`write` it again); nobody vouches for its plan.
    """
    began = time.monotonic()
    path = ledger.store_path(store)
    swap.settle(path)
    ledger.load_build(path)  # not a cube: say so before a lock is put there
    with begin.writing(path):
        new = swap.begun(path)
        with begin.writing(new) if new else nullcontext():
            build = begin.found(new or path)
            assert build is not None, "read above, under our lock"
            report = _finish(
                build, lambda: tree.again(build, access=access), client=client, progress=progress
            )
            if new:
                report = _switched(report, path)
    return replace(report, seconds=time.monotonic() - began)


def _finish(
    build: Build,
    work: Callable[[], CubeSource],
    *,
    client: Any,
    progress: bool | Progress | None,
) -> Report:
    """Write what is missing in a store; nothing where nothing is."""
    ledger.refuse_broken(build)
    table = ledger.load_table(build)
    todo = [r for r in ledger.build_regions(build) if not _whole(build, table, r)]
    seal = ledger.sealed(build)
    missing = ledger.build_plan(build).missing
    if seal and not todo and not ledger.records(build) and _metadata_whole(build, table):
        return Report(
            store=str(build.store),
            state="sealed",
            reused=len(table.done),
            missing=missing,
            tree_sha256=seal["tree_sha256"],
        )
    source = work() if todo else None
    return replace(_run(build, source, todo, client=client, progress=progress), missing=missing)


def _switched(report: Report, path: Path) -> Report:
    """Put a cube that is whole in the place of the one at `path`, which else stays."""
    if report.state != "sealed":
        return report
    swap.switch(path)
    return replace(report, store=str(path))


# ------------------------------------------------------------------------- what is done already


def _whole(build: Build, table: Table, region: Region) -> bool:
    """Return whether a region is recorded and its objects have the recorded sizes."""
    if region.id not in table.done:
        return False
    for array in layouts.region_arrays(ledger.build_arrays(build), region):
        for key in layouts.region_keys(array, region):
            if _size(build.store / key) != table.objects.get(key, (None, None))[1]:
                return False
    return True


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _metadata_whole(build: Build, table: Table) -> bool:
    keys = [k for k in table.objects if not _is_pixels(k, build)]
    return bool(keys) and all(_size(build.store / k) == table.objects[k][1] for k in keys)


def _is_pixels(key: str, build: Build) -> bool:
    return any(key.startswith(f"{name}/c/") for name in ledger.build_arrays(build))


def _pixel_keys(build: Build) -> Iterator[str]:
    arrays = ledger.build_arrays(build)
    for region in ledger.build_regions(build):
        yield from _region_keys(arrays, region)


def _region_keys(arrays: dict[str, ArrayLayout], region: Region) -> Iterator[str]:
    for array in layouts.region_arrays(arrays, region):
        yield from layouts.region_keys(array, region)


# ------------------------------------------------------------------------------------------ run


def _run(
    build: Build,
    work: CubeSource | None,
    todo: list[Region],
    *,
    client: Any,
    progress: bool | Progress | None,
) -> Report:
    """Write the regions to do (from `work`), seal if then all are done, and report."""
    build = ledger.renew(build)
    everything = ledger.build_regions(build)
    arrays = ledger.build_arrays(build)
    bar = run.Bar() if progress is True else None
    tell = bar or (None if isinstance(progress, bool) else progress)
    todo, tally = run.planned(build, todo, tell)
    pixels = work.pixels(arrays, client) if work else None
    try:
        if client is not None and isinstance(work, tree.PlanSource):
            run.on_dask(build, todo, client, tally, work.access)
        elif pixels is not None:
            run.in_threads(build, todo, pixels, tally)
    finally:
        if bar:
            bar.close()
    if client is not None:
        ledger.sweep(build.store)  # what workers left that died on the way
    table = ledger.load_table(build)
    tree_hash = None
    if not tally.failed and table.done.issuperset(r.id for r in everything):
        ledger.still(build)
        _write_metadata(build, table)
        tree_hash = ledger.seal(build, table)
    return Report(
        store=str(build.store),
        state="partial" if tree_hash is None else "sealed",
        written=len(tally.written),
        reused=len(everything) - len(todo),
        failed=tally.failed,
        untried=len(todo) - len(tally.written) - len(tally.failed),
        pixels_read=sum(r.pixels_read for r in tally.written),
        bytes_written=sum(r.size for r in tally.written),
        retries=sum(r.retries for r in tally.written),
        clipped=dict(getattr(pixels, "clipped", {})),
        tree_sha256=tree_hash,
    )


def _write_metadata(build: Build, table: Table) -> None:
    """Write (again) every object that is not pixels, the root last, and enter them in `table`."""
    first, last = metadata.metadata(ledger.build_plan(build), build.layout)
    ours = set(_pixel_keys(build))
    table.objects = {k: v for k, v in table.objects.items() if k in ours}
    for key, data in {**first, **last}.items():
        path = disk.place(build.store, key)
        if not path.exists() or path.read_bytes() != data:
            ledger.write_atomic(path, data)
        table.objects[key] = (ledger.sha256(data), len(data))


# ----------------------------------------------------------------------------------------- open


def open(  # the verb of the package: cubes.open
    store: StorePath,
    *,
    chunks: Literal["stored"] | Mapping[str, int] | None = "stored",
    partial: bool = False,
) -> xr.DataTree:
    """Return the cube in a store, lazy, in physical units.

    Parameters
    ----------
    store : path
        Folder of the cube.
    chunks : "stored", None or dict
        dask chunks: one per shard; None: no dask, values are read when indexed or loaded; or by
        dimension.
    partial : bool
        Open also what is not finished or has lost objects: they read as nodata (masks as False),
        and the root's attributes ``missing_regions`` and ``missing_objects`` say how many.

    Returns
    -------
    xarray.DataTree
        As `cubes.open_aoi` gives it: float32 with NaN for nodata (backscatter dB, incidence
        degrees, coherence 1, phase rad, reflectance 1), classes uint8 with their nodata, masks
        bool (True = usable), times datetime64[ns] in UTC.

    Raises
    ------
    CubeError
        Not a cube; of a newer version; not finished, or lacking an object that was written, unless
        `partial`. Later, when values are read: the store was written anew since.
    """
    return opened.cube(ledger.load_build(store), chunks, partial=partial)


# ------------------------------------------------------------------------------- verify, repair


def verify(store: StorePath, *, quick: bool = False) -> Report:
    """Return a report on whether every object of a store holds the bytes that were recorded.

    Parameters
    ----------
    store : path
        Folder of the cube, sealed or not.
    quick : bool
        Compare sizes only, in place of SHA-256 of every byte.

    Returns
    -------
    Report
        ``damaged`` lists keys that are missing, changed, or there without a record, and files of
        the ledger (``__cubes__/...``) that are not those that were sealed; ``state`` is
        ``damaged`` if there are any, else ``sealed`` or ``partial``. Whether it is the cube that
        somebody else means, ``tree_sha256`` says.
    """
    began = time.monotonic()
    build = ledger.load_build(store)
    table = ledger.load_table(build)
    damaged = ledger.broken(build)
    damaged += [k for k in sorted(table.objects) if not _intact(build, table, k, quick=quick)]
    for region in ledger.build_regions(build):
        if region.id in table.done:
            for array in layouts.region_arrays(ledger.build_arrays(build), region):
                keys = layouts.region_keys(array, region)
                damaged += [
                    k for k in keys if k not in table.objects and (build.store / k).exists()
                ]
    seal = ledger.sealed(build)
    # regions written anew since the seal: a repair that was interrupted
    whole: Literal["sealed", "partial"] = (
        "sealed" if seal and not ledger.records(build) else "partial"
    )
    return Report(
        store=str(build.store),
        state="damaged" if damaged else whole,
        reused=len(table.done),
        damaged=tuple(damaged),
        missing=ledger.build_plan(build).missing,
        seconds=time.monotonic() - began,
        tree_sha256=seal["tree_sha256"] if seal and whole == "sealed" and not damaged else None,
    )


def _intact(build: Build, table: Table, key: str, *, quick: bool) -> bool:
    path, (digest, size) = build.store / key, table.objects[key]
    return _size(path) == size and (quick or ledger.file_sha256(path) == digest)


def repair(
    store: StorePath,
    *,
    client: Any = None,
    source: xr.DataTree | None = None,
    access: Voucher = None,
) -> Report:
    """Return a report, after writing again every region of which an object is damaged.

    Parameters
    ----------
    store : path
        Folder of the cube.
    client : dask.distributed.Client, optional
        As for `write`.
    source : DataTree, optional
        The cube's own data, where it was written from a DataTree; a cube written from a plan is
        read again from its assets.
    access : str, Path, Catalog or Access, optional
        Who vouches for what its plan reads, see `resume`.

    Returns
    -------
    Report
        ``written`` regions mended, ``damaged`` the keys found damaged. Where the ledger itself is
        not the one that was sealed, every region is written again.

    Raises
    ------
    CubeError
        A DataTree is needed, or the one given is not the one written; nobody vouches for the
        plan; the store says no longer how it was begun.
    """
    began = time.monotonic()
    path = ledger.store_path(store)
    swap.settle(path)
    ledger.load_build(path)  # not a cube: say so before a lock is put there
    with begin.writing(path):
        build = ledger.load_build(path)  # again: until the lock another cube may have come here
        ledger.sweep(path)
        found = verify(store)
        bad = set(found.damaged)
        if not bad:
            return replace(found, seconds=time.monotonic() - began)
        if f"{ledger.FOLDER}/build.json" in bad:
            raise CubeError(
                f"{path}: {ledger.FOLDER}/build.json is not the one that was sealed, so how the "
                "cube lies in its objects is not known; take a fresh copy of the store, or write "
                "the cube again with force=True"
            )
        arrays = ledger.build_arrays(build)
        table = ledger.load_table(build)
        everything = any(k.startswith(f"{ledger.FOLDER}/") for k in bad)
        todo = [
            r
            for r in ledger.build_regions(build)
            if everything or (r.id in table.done and bad.intersection(_region_keys(arrays, r)))
        ]
        work = tree.again(build, source, access) if todo else None
        report = _run(build, work, todo, client=client, progress=None)
    return replace(report, damaged=found.damaged, seconds=time.monotonic() - began)
