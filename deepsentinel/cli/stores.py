"""Commands on stores that are there: what is in them, whether they are whole, mending them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deepsentinel.cli.shared import Command, progress


def add(command: Command) -> None:
    """Add info, repair and resume."""
    made = command("info", "what is in stores, and whether their bytes are those sealed")
    made.set_defaults(run=_info)
    made.add_argument("stores", nargs="+", type=Path)
    made.add_argument("--verify", action="store_true", help="check every object by its hash")
    made.add_argument("--quick", action="store_true", help="check every object by its size")

    made = command("repair", "write anew what is damaged or lost in sealed stores")
    made.set_defaults(run=_repair)
    made.add_argument("stores", nargs="+", type=Path)
    _add_access(made)

    made = command("resume", "finish a store that was interrupted, by its own plan")
    made.set_defaults(run=_resume)
    made.add_argument("stores", nargs="+", type=Path)
    _add_access(made)


def _add_access(made: argparse.ArgumentParser) -> None:
    made.add_argument("--catalog", help="row that says what may be read (that of the plan)")
    made.add_argument("--url", help="where the catalogue is, in place of its row's url")


def _access(options: argparse.Namespace) -> Any:
    import cubes

    if options.catalog is None:
        return None
    return cubes.catalog(options.catalog, **({"url": options.url} if options.url else {}))


def _info(options: argparse.Namespace) -> int:
    import cubes
    from deepsentinel.embedding import embedstore

    code = 0
    for store in options.stores:
        verify: Any = cubes.verify
        embedding = (store / embedstore.FOLDER).is_dir()
        if embedding:
            import deepsentinel

            verify = embedstore.verify_embeddings
            print(deepsentinel.open_embeddings(store, partial=True))
        else:
            print(cubes.open(store, partial=True))
        if options.verify or options.quick:
            report = verify(store, quick=not options.verify)
            by = "hash" if options.verify else "size"
            print(_verdict(store, report, by, embedding=embedding))
            code = max(code, 0 if report.state == "sealed" else 1)
    return code


def _verdict(store: Path, report: Any, by: str, *, embedding: bool) -> str:
    """Return in words what a check found, and what to do about it."""
    if report.state == "sealed":
        return f"{store}: sealed; {report.reused:,} objects checked by {by}, all as recorded"
    if report.damaged:
        some = ", ".join(report.damaged[:5]) + (", ..." if len(report.damaged) > 5 else "")
        do = "write it again (embed --force)" if embedding else f"deepsentinel repair {store}"
        return f"{store}: {len(report.damaged):,} objects damaged or lost: {some}. Mend it: {do}"
    return f"{store}: not finished ({report.state}). Go on: deepsentinel resume {store}"


def _repair(options: argparse.Namespace) -> int:
    import cubes

    code = 0
    for store in options.stores:
        report = cubes.repair(store, access=_access(options))
        print(report)
        code = max(code, 0 if report.state == "sealed" else 1)
    return code


def _resume(options: argparse.Namespace) -> int:
    import cubes

    code = 0
    for store in options.stores:
        report = cubes.resume(store, access=_access(options), progress=progress("resume"))
        print(report)
        code = max(code, 0 if report.state == "sealed" else 1)
    return code
