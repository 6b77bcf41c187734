"""Bringing a published corpus here, byte for byte, proved against what was published."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from cubes.corpora.corpus import Corpus, fetch
from cubes.corpora.publishing import in_threads, listed
from cubes.corpora.remote import Remote
from cubes.store import ledger
from cubes.types import CubeError, Progress, Report

SEAL = f"{ledger.FOLDER}/sealed.json"


def fetch_corpus(
    corpus: Corpus,
    folder: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return a report, after bringing the cubes of a published corpus into a folder as they are.

    Every object is checked against its published SHA-256 before it is kept, and each cube's seal,
    written last, against the corpus table: what lies there then is what was published, to the tree
    hash. An interrupted run is finished by running it again; whole objects are not fetched twice.

    Parameters
    ----------
    corpus : Corpus
        Opened by `cubes.open_corpus`.
    folder : path
        Cubes become ``folder/<id>.zarr``.
    names : sequence of str, optional
        Ids of the cubes wanted; all by default.
    progress : callable, optional
        Told (done, total, what).

    Returns
    -------
    Report
        ``written`` and ``reused`` count objects.

    Raises
    ------
    CubeError
        Not a published corpus; no such cube; an object missing or changed; another cube in its
        place in the folder.
    """
    began = time.monotonic()
    if corpus.remote is None:
        raise CubeError("this corpus lies here already; its cubes: Corpus.places")
    wanted = [str(n) for n in (corpus.table.index if names is None else names)]
    for name in wanted:
        if name not in corpus.table.index:
            raise CubeError(
                f"corpus {corpus.name!r} has no cube {name!r}; it has "
                f"{', '.join(map(str, corpus.table.index[:5]))}, ..."
            )
        _refuse_another(Path(folder, f"{name}.zarr"), str(corpus.table.loc[name, "tree_sha256"]))
    rows = [r for r in listed(corpus) if r[0].split("/")[1].removesuffix(".zarr") in wanted]
    jobs = [
        (corpus.remote, Path(folder, *key.split("/")[1:]), row) for row in rows for key in row[:1]
    ]
    # seals last: a cube that was cut short has none
    first = [job for job in jobs if not job[2][0].endswith(SEAL)]
    last = [job for job in jobs if job[2][0].endswith(SEAL)]
    written = size = done = 0
    for part in (first, last):
        for new, count in in_threads(_bring, iter(part)):
            done += 1
            written += new
            size += count
            if progress and (done % 100 == 0 or done == len(jobs)):
                progress(done, len(jobs), f"{written} fetched")
    for name in wanted:
        seal = ledger.proved(ledger.load_build(Path(folder, f"{name}.zarr")))
        if seal["tree_sha256"] != corpus.table.loc[name, "tree_sha256"]:
            raise CubeError(
                f"{name!r} at {corpus.remote.url} is not the cube in the corpus table; it was "
                "changed after it was published"
            )
    return Report(
        store=os.fspath(folder),
        state="sealed",
        written=written,
        reused=len(jobs) - written,
        bytes_written=size,
        seconds=time.monotonic() - began,
    )


def _refuse_another(path: Path, tree_sha256: str) -> None:
    """Raise if a finished cube other than the wanted one lies at its place."""
    if not (path / SEAL).is_file():
        return
    seal = ledger.sealed(ledger.load_build(path))
    if seal is None or seal["tree_sha256"] != tree_sha256:
        raise CubeError(f"{path} is another cube than the corpus has; give another folder")


def _bring(remote: Remote, path: Path, row: tuple[str, str, int]) -> tuple[bool, int]:
    """Fetch one object unless it is there; return whether it was, and its bytes."""
    key, sha256, size = row
    if path.is_file() and path.stat().st_size == size and ledger.file_sha256(path) == sha256:
        return False, 0
    data = fetch(remote, key)
    if ledger.sha256(data) != sha256:
        raise CubeError(
            f"{remote.url}/{key} does not hold the bytes that were published "
            "(cubes.verify_corpus names all such objects)"
        )
    ledger.write_atomic(path, data)
    return True, size
