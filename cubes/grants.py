"""Who vouches for what a plan reads: the row of its catalogue, or the person; never its file.

A plan says where its pixels come from and what its catalogue's row let it read: hosts, folders, the
variable that holds a token. A plan made in this process has that from a row. A plan read from a
file has it from whoever wrote the file, so that part of it is not taken: else mending a store got
from a stranger would send one's token to the stranger's host.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

from cubes import registry
from cubes.reading.access import scheme_of, under
from cubes.types import Access, Catalog, CubeError, Plan

Voucher = str | Path | Catalog | Access | None
"""Who vouches: a catalogue (name, TOML file or object), or what may be read, in so many words."""

_known: dict[str, Access] = {}
"""Hash of each plan that this process made and wrote -> what it may read."""


def remember(plan: Plan) -> None:
    """Let the same plan, read back from its store, read what it may read now.

    A plan's hash covers every address in it and its access: no other plan gets this.
    """
    if plan.trusted:
        _known[plan.sha256] = plan.access


def granted(plan: Plan, by: Voucher = None) -> Access:
    """Return what may be read for a plan.

    Parameters
    ----------
    plan : Plan
        Made in this process, or read from a file.
    by : str, Path, Catalog or Access, optional
        Who vouches for a plan read from a file. Default: the known catalogue (shipped, or made
        known with `cubes.add`) that the plan names.

    Raises
    ------
    CubeError
        Nobody vouches: no such catalogue is known; or the plan names local files outside of the
        folders that may be read.
    """
    if by is None and plan.trusted:
        return plan.access
    if by is None and plan.sha256 in _known:
        return _known[plan.sha256]
    if not any(array.steps for array in plan.arrays):
        return Access(schemes=())  # nothing is read for it
    if isinstance(by, Access):
        access = by
    else:
        if by is None and plan.attrs.get("catalog") not in registry.catalogs():
            raise CubeError(_nobody(plan))
        access = registry.catalog(by or str(plan.attrs["catalog"])).access
    _refuse_folders(plan, access)
    return access


REMEDY = (
    "say who vouches for it: access=NAME of a catalogue or its file or row, such as "
    'cubes.resume(store, access=cubes.catalog("simulated", url=...)), or access=cubes.Access(...); '
    "or make the catalogue known with cubes.add(path)"
)


def _nobody(plan: Plan) -> str:
    name = plan.attrs.get("catalog")
    made = f"catalogue {name!r}, which is not known here" if name else "no catalogue by name"
    asks = plan.access
    lists = {"schemes": asks.schemes, "hosts": asks.hosts, "roots": asks.roots}
    wants = [f"{k} {', '.join(v)}" for k, v in lists.items() if v]
    wants += [f"{k} {v}" for k, v in {"sign": asks.sign, "auth": asks.auth}.items() if v]
    return (
        f"this plan was read from a file and made from {made}. It asks to read with "
        f"{'; '.join(wants)}, which is not granted on its own word; if you trust it, {REMEDY}"
    )


def _refuse_folders(plan: Plan, access: Access) -> None:
    roots = [Path(r) for r in access.roots]
    for folder in sorted(set(_folders(plan))):
        if "file" not in access.schemes or not any(under(Path(folder), r) for r in roots):
            raise CubeError(
                f"this plan was read from a file and names files in {str(folder)!r}, outside of "
                f"the folders that may be read ({', '.join(access.roots) or 'none'}); if you "
                f"trust it, {REMEDY}"
            )


def _folders(plan: Plan) -> Iterator[PurePath]:
    for array in plan.arrays:
        for step in array.steps:
            for assets in step.values():
                for asset in assets:
                    if scheme_of(asset.href) == "file":
                        href = asset.href
                        path = unquote(urlsplit(href).path) if href.startswith("file:") else href
                        yield PurePath(path).parent
