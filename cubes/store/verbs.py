"""Write a cube to Zarr so that it can be killed and run again, open it, verify it, mend it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from cubes.store import layout as layouts
from cubes.store import ledger, metadata, opened, run, tree
from cubes.store.layout import Region
from cubes.store.ledger import Build, Table
from cubes.store.tree import CubeSource
from cubes.types import CubeError, Layout, Plan, Progress, Report

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
        A plan, anything with ``plan()``, or your own cube in physical units (`cubes.check`).
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
        Replace a cube of another plan or layout that lies in `store`.

    Returns
    -------
    Report
        ``state`` is ``sealed``, or ``partial`` where regions failed (``failed`` says why; the
        others are kept, and a second run tries the rest).

    Raises
    ------
    CubeError
        `store` holds something else, is being written, or was written by a newer version.
    OSError
        The disk is full; what is written stays valid.
    """
    began = time.monotonic()
    work = tree.source(source)
    path = ledger.store_path(store)
    with _writing(path):
        build = _start(path, work, layout, force=force, slots=run.slots(client))
        table = ledger.load_table(build)
        todo = [r for r in ledger.build_regions(build) if not _whole(build, table, r)]
        seal = ledger.sealed(build)
        if seal and not todo and _metadata_whole(build, table):
            return Report(
                store=str(path),
                state="sealed",
                reused=len(table.done),
                missing=work.plan.missing,
                seconds=time.monotonic() - began,
                tree_sha256=seal["tree_sha256"],
            )
        report = _run(build, work, todo, client=client, progress=progress)
    return replace(report, missing=work.plan.missing, seconds=time.monotonic() - began)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Hold the store's lock; a folder made for it goes away again if nothing came of it."""
    _refuse_foreign(path)
    made = not path.exists()
    with ledger.lock(path):
        try:
            yield
        finally:
            if made and not (path / ledger.FOLDER / "build.json").exists():
                shutil.rmtree(path, ignore_errors=True)


def _refuse_foreign(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise CubeError(f"{path} is a file; give a folder for the cube, such as {path}.zarr")
    if (path / ledger.FOLDER).exists():
        return
    if any(path.iterdir()):
        raise CubeError(
            f"{path} exists and is not a cube written by cubes.write; it is left alone, also with "
            "force=True: choose another path or move it away yourself"
        )


def _start(
    path: Path, work: CubeSource, layout: Layout | None, *, force: bool, slots: int
) -> Build:
    """Return the store's build: as found if it is this plan's, else started here."""
    there = (path / ledger.FOLDER / "build.json").exists()
    found = ledger.load_build(path) if there else None
    wanted_layout = layout or (found.layout if found and not force else Layout())
    plan = work.plan
    arrays = layouts.array_layouts(plan, wanted_layout)
    wanted = Build(
        store=path,
        plan_sha256=plan.sha256,
        layout=wanted_layout,
        span=work.spans(arrays, slots),
        source=work.name,
    )
    if found is not None:
        differs = _differences(found, wanted, plan)
        if not differs:
            if ledger.sealed(found) is None:
                ledger.sweep(path)
            return found
        if not force:
            raise CubeError(
                f"{path} holds another cube: {'; '.join(differs)}. Write to another path, or "
                "replace it with force=True"
            )
    _check_writable(path)
    _empty(path)
    first, _ = metadata.metadata(plan, wanted_layout)
    for key, data in first.items():
        ledger.write_atomic(path / key, data)
    ledger.save_build(wanted, plan)
    return wanted


def _check_writable(path: Path) -> None:
    if not os.access(path, os.W_OK):
        raise CubeError(f"cannot write to {path}: permission denied; choose another path")


def _empty(path: Path) -> None:
    """Take a cube out of `path`, the seal first, keeping the lock that we hold."""
    folder = path / ledger.FOLDER
    for name in ("sealed.json", "build.json"):
        (folder / name).unlink(missing_ok=True)
    for entry in [*path.iterdir(), *folder.iterdir()]:
        if entry in (folder, folder / "lock"):
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _differences(found: Build, wanted: Build, plan: Plan) -> list[str]:
    """Say in what way the store's plan and layout are not the wanted ones."""
    out = []
    if found.layout != wanted.layout:
        out.append(f"its layout is {found.layout}, asked for {wanted.layout}")
    if found.source != wanted.source:
        kinds = [s.split()[0] for s in (found.source, wanted.source)]
        out.append(
            "its pixels come from other data"
            if kinds[0] == kinds[1]
            else f"its pixels come from a {kinds[0]}, not a {kinds[1]}"
        )
    if found.plan_sha256 == wanted.plan_sha256:
        return out
    old = ledger.build_plan(found)
    if old.geobox != plan.geobox:
        out.append(f"its grid is {_grid(old)}, asked for {_grid(plan)}")
    names = [{a.layer.name for a in p.arrays} for p in (old, plan)]
    if names[0] != names[1]:
        out.append(f"its layers are {_list(names[0])}, asked for {_list(names[1])}")
    for axis in plan.axes:
        other = next((a for a in old.axes if (a.group, a.dim) == (axis.group, axis.dim)), None)
        if other is not None and other != axis:
            out.append(
                f"its {axis.group} has {len(other)} steps along {axis.dim}, asked for {len(axis)}"
                if len(other) != len(axis)
                else f"its {axis.group} has other steps along {axis.dim}"
            )
    return out or ["its items, assets or options are not those asked for"]


def _grid(plan: Plan) -> str:
    box = plan.geobox
    return f"{box.shape[0]} x {box.shape[1]} px of {abs(box.resolution.x):g} in {box.crs}"


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


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


# ------------------------------------------------------------------------------------------ run


def _run(
    build: Build,
    work: CubeSource,
    todo: list[Region],
    *,
    client: Any,
    progress: bool | Progress | None,
) -> Report:
    """Write the regions to do, seal if then all are done, and report."""
    everything = ledger.build_regions(build)
    arrays = ledger.build_arrays(build)
    todo = sorted(todo, key=lambda r: -run.weight(build, r))
    steps = sum(r.steps[1] - r.steps[0] for r in todo)
    bar = run.Bar() if progress is True else None
    tally = run.Tally(total=steps, tell=bar or (None if isinstance(progress, bool) else progress))
    try:
        if client is not None and work.remote:
            run.on_dask(build, todo, client, tally)
        else:
            run.in_threads(build, todo, work.pixels(arrays, client), tally)
    finally:
        if bar:
            bar.close()
    if client is not None:
        ledger.sweep(build.store)  # what workers left that died on the way
    table = ledger.load_table(build)
    tree_hash = None
    if not tally.failed and len(table.done) == len(everything):
        _write_metadata(build, table)
        tree_hash = ledger.seal(build, table)
    return Report(
        store=str(build.store),
        state="partial" if tree_hash is None else "sealed",
        written=len(tally.written),
        reused=len(everything) - len(todo),
        failed=tally.failed,
        pixels_read=sum(r.pixels_read for r in tally.written),
        bytes_written=sum(r.size for r in tally.written),
        retries=sum(r.retries for r in tally.written),
        tree_sha256=tree_hash,
    )


def _write_metadata(build: Build, table: Table) -> None:
    """Write (again) every object that is not pixels, the root last, and enter them in `table`."""
    first, last = metadata.metadata(ledger.build_plan(build), build.layout)
    for key, data in {**first, **last}.items():
        path = build.store / key
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
        Open also what is not finished: regions not yet written read as nodata (masks as False),
        and the root's attribute ``missing_regions`` says how many there are.

    Returns
    -------
    xarray.DataTree
        As `cubes.open_aoi` gives it: float32 with NaN for nodata (backscatter dB, incidence
        degrees, coherence 1, phase rad, reflectance 1), classes uint8 with their nodata, masks
        bool (True = usable), times datetime64[ns] in UTC.

    Raises
    ------
    CubeError
        Not a cube; of a newer version; not finished, unless `partial`.
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
        ``damaged`` lists keys that are missing, changed, or there without a record; ``state`` is
        ``damaged`` if there are any, else ``sealed`` or ``partial``.
    """
    began = time.monotonic()
    build = ledger.load_build(store)
    table = ledger.load_table(build)
    damaged = [k for k in sorted(table.objects) if not _intact(build, table, k, quick=quick)]
    for region in ledger.build_regions(build):
        if region.id in table.done:
            for array in layouts.region_arrays(ledger.build_arrays(build), region):
                keys = layouts.region_keys(array, region)
                damaged += [
                    k for k in keys if k not in table.objects and (build.store / k).exists()
                ]
    seal = ledger.sealed(build)
    whole: Literal["sealed", "partial"] = "sealed" if seal else "partial"
    return Report(
        store=str(build.store),
        state="damaged" if damaged else whole,
        reused=len(table.done),
        damaged=tuple(damaged),
        missing=ledger.build_plan(build).missing,
        seconds=time.monotonic() - began,
        tree_sha256=seal["tree_sha256"] if seal and not damaged else None,
    )


def _intact(build: Build, table: Table, key: str, *, quick: bool) -> bool:
    path, (digest, size) = build.store / key, table.objects[key]
    return _size(path) == size and (quick or ledger.file_sha256(path) == digest)


def repair(store: StorePath, *, client: Any = None, source: xr.DataTree | None = None) -> Report:
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

    Returns
    -------
    Report
        ``written`` regions mended, ``damaged`` the keys found damaged.

    Raises
    ------
    CubeError
        A DataTree is needed, or the one given is not the one written.
    """
    began = time.monotonic()
    build = ledger.load_build(store)
    with ledger.lock(build.store):
        ledger.sweep(build.store)
        found = verify(store)
        bad = set(found.damaged)
        work = tree.again(build, source)
        arrays = ledger.build_arrays(build)
        table = ledger.load_table(build)
        todo = [
            r
            for r in ledger.build_regions(build)
            if r.id in table.done
            and any(
                bad.intersection(layouts.region_keys(a, r))
                for a in layouts.region_arrays(arrays, r)
            )
        ]
        if not bad:
            return replace(found, seconds=time.monotonic() - began)
        report = _run(build, work, todo, client=client, progress=None)
    return replace(report, damaged=found.damaged, seconds=time.monotonic() - began)
