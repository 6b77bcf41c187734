"""A store found or started: locked, refused where it is something else, its differences said."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cubes.store import disk, ledger, metadata, swap
from cubes.store import layout as layouts
from cubes.store.ledger import Build
from cubes.store.tree import CubeSource
from cubes.types import CubeError, Layout, Plan


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the store's lock; a folder made for it goes away again if nothing came of it."""
    _refuse_foreign(path)
    swap.settle(path)
    made = not path.exists()
    with ledger.lock(path):
        swap.clear(path)
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


def found(path: Path) -> Build | None:
    """Return the build of the store at `path`, swept of what a killed writer left, or None."""
    if not (path / ledger.FOLDER / "build.json").exists():
        return None
    build = ledger.load_build(path)
    if ledger.sealed(build) is None:
        ledger.sweep(path)
    return build


def start(
    path: Path, work: CubeSource, layout: Layout | None, *, force: bool, slots: int
) -> tuple[Build, bool]:
    """Return the store's build, and whether another cube lies there that it is to replace.

    It is the one found if that is this plan's; where there is none it is started. With `force` one
    whose ledger or plan is not what was written is replaced, as that of another plan is.

    Raises
    ------
    CubeError
        Another cube lies there, or what is left of one, and not `force`; no permission, or no
        place to switch them.
    """
    try:
        old, torn = found(path), False
    except disk.Torn:
        if not force:
            raise
        old, torn = None, True
    wanted_layout = layout or (old.layout if old and not force else Layout())
    plan = work.plan
    wanted = Build(
        store=path,
        plan_sha256=plan.sha256,
        layout=wanted_layout,
        span=work.spans(layouts.array_layouts(plan, wanted_layout), slots),
        source=work.name,
    )
    if old is not None or torn:
        same = ("plan_sha256", "layout", "source")
        if old is not None and all(getattr(old, n) == getattr(wanted, n) for n in same):
            if not force or _sound(old):
                return old, False
        elif old is not None and not force:
            raise CubeError(_refusal(old, wanted, plan))
        _check_writable(path.resolve().parent)
        swap.refuse_occupied(path)
        return wanted, True
    fresh(wanted, plan)
    return wanted, False


def _sound(build: Build) -> bool:
    """Return whether the plan and the ledger of a store are those that were written there."""
    try:
        # the file, not what this process remembers of it
        ledger.read_plan(str(build.folder / "plan.json"), build.plan_sha256)
        return not ledger.broken(build)
    except CubeError:
        return False


def fresh(build: Build, plan: Plan) -> None:
    """Start a store, taking out what lies there; its lock is kept."""
    path = build.store
    _check_writable(path)
    _empty(path)
    first, _ = metadata.metadata(plan, build.layout)
    for key, data in first.items():
        ledger.write_atomic(disk.place(path, key), data)
    ledger.save_build(build, plan)


def _refusal(old: Build, wanted: Build, plan: Plan) -> str:
    text = f"{old.store} holds another cube: {'; '.join(_differences(old, wanted, plan))}. "
    if ledger.sealed(old) is None and old.source == "plan":
        text += "It is not finished: cubes.resume(store) finishes it as it was planned. Or write"
    else:
        text += "Write"
    return f"{text} to another path, or replace it with force=True"


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
