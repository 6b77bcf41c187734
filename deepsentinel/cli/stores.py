"""Commands on stores that are there: what is in them, whether they are whole, mending them."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from deepsentinel.cli.shared import Command, progress


def add(command: Command) -> None:
    """Add info, repair and resume."""
    made = command("info", "what is in stores or corpora, and whether their bytes are those sealed")
    made.set_defaults(run=_info)
    made.add_argument("stores", nargs="+", type=Path, help="stores, or folders of corpora")
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
    made.add_argument("--catalog", help="row that says what may be read (the one its plan names)")
    made.add_argument("--url", help="where the catalogue is, in place of its row's url")


def _access(options: argparse.Namespace, store: Path, *, begun: bool) -> Any:
    """Return who vouches for what a store's plan reads, None: the catalogue that it names."""
    import cubes

    if options.url is None:
        return None if options.catalog is None else cubes.catalog(options.catalog)
    return cubes.catalog(options.catalog or _catalog(options.url, store, begun), url=options.url)


def _catalog(url: str, store: Path, begun: bool) -> str:
    """Return the name of the catalogue that a store's plan was made from.

    That of the cube begun in the store's place, where `begun` and there is one.
    """
    import cubes
    from cubes.store import swap

    swap.settle(store)  # as the verbs do first: else there may be nothing at its path
    plan = cubes.load_plan((swap.begun(store) if begun else None) or store)
    name = plan.attrs.get("catalog")
    if not name:
        raise cubes.CubeError(
            f"--url {url}: the plan of {store} names no catalogue that this could be the url of; "
            "name one with --catalog, or leave --url out"
        )
    return str(name)


def _info(options: argparse.Namespace) -> int:
    import cubes
    from deepsentinel.embedding import embedstore

    code = 0
    for store in options.stores:
        verify: Any = cubes.verify
        again = ""
        if (store / embedstore.FOLDER).is_dir():
            import deepsentinel

            verify = embedstore.verify_embeddings
            embedding = deepsentinel.open_embeddings(store, partial=True)
            again = _embed_again(store, embedding)
            print(embedding)
        elif (store / "collection.json").is_file():
            verify, again = cubes.verify_corpus, _corpus(store)
        else:
            print(cubes.open(store, partial=True))
        if options.verify or options.quick:
            report = verify(store, quick=not options.verify)
            by = "hash" if options.verify else "size"
            print(_verdict(store, report, by, again))
            code = max(code, 0 if report.state == "sealed" else 1)
    return code


def _corpus(folder: Path) -> str:
    """Say what a corpus holds and how it is opened; return the command that publishes it again."""
    import cubes

    corpus = cubes.open_corpus(folder)
    table, names = corpus.table, [str(name) for name in corpus.table.index]
    size = float(table["bytes"].sum()) / 2**20
    dates = f"{table['start'].min():%Y-%m-%d} to {table['end'].max():%Y-%m-%d}"
    print(f"corpus {corpus.name!r}: {len(corpus):,} cubes, {size:,.1f} MiB, {dates}")
    print(f"layers: {', '.join(sorted({layer for row in table['layers'] for layer in row}))}")
    shown = table[["start", "end", "crs", "bytes"]].head(10)
    print(shown.to_string())
    if len(table) > len(shown):
        print(f"... and {len(table) - len(shown):,} more")
    print(
        f"Open it: corpus = cubes.open_corpus({str(folder)!r}), one cube: "
        f"corpus.open({names[0]!r}), its samples: cubes.plan(corpus)"
    )
    return f"deepsentinel publish STORES {shlex.quote(str(folder))} --name {corpus.name}"


def _embed_again(store: Path, embedding: Any) -> str:
    """Return the command that makes an embedding whole: the one that it was written by."""
    from deepsentinel.embedding import embedstore

    plan, overlap = embedstore.read_plan(store), embedding.attrs["deepsentinel:overlap_px"]
    return (
        f"deepsentinel embed MODEL STORE {shlex.quote(str(store))} --dims {plan['dims']} "
        f"--dtype {plan['dtype']} --overlap {overlap} (the model and the store it was made from)"
    )


def _verdict(store: Path, report: Any, by: str, again: str) -> str:
    """Return in words what a check found, and what to do about it.

    `again` makes an embedding or a corpus whole; empty for a cube.
    """
    name = shlex.quote(str(store))
    if report.state == "sealed":
        return f"{store}: sealed; {report.reused:,} objects checked by {by}, all as recorded"
    if report.damaged:
        some = ", ".join(report.damaged[:5]) + (", ..." if len(report.damaged) > 5 else "")
        do = again or f"deepsentinel repair {name}"
        return f"{store}: {len(report.damaged):,} objects damaged or lost: {some}. Mend it: {do}"
    resume = f"deepsentinel resume {name}"
    return f"{store}: not finished ({report.state}). Go on: {again or resume}"


def _repair(options: argparse.Namespace) -> int:
    import cubes

    code = 0
    for store in options.stores:
        report = cubes.repair(store, access=_access(options, store, begun=False))
        print(report)
        code = max(code, 0 if report.state == "sealed" else 1)
    return code


def _resume(options: argparse.Namespace) -> int:
    import cubes

    code = 0
    for store in options.stores:
        access = _access(options, store, begun=True)
        report = cubes.resume(store, access=access, progress=progress("resume"))
        print(report)
        code = max(code, 0 if report.state == "sealed" else 1)
    return code
