"""Publishing a corpus, and proving that what lies there is what was published."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Literal

from cubes.corpora import card, stacdocs
from cubes.corpora.corpus import (
    FORMAT,
    KEYS,
    Corpus,
    beside,
    collection_of,
    fetch,
    open_corpus,
    sources_of,
)
from cubes.corpora.remote import Remote, connect
from cubes.store import ledger
from cubes.types import CubeError, Progress, Report

THREADS = 16
"""Objects in flight: small ones, of which the round trip is the cost."""

LEDGER = ("build.json", "plan.json", "table.npz", "valid.npz", "sealed.json")
"""What is published of a cube's ledger."""


def publish(
    corpus: Corpus,
    url: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    requester_pays: bool | str = False,
    progress: Progress | None = None,
) -> Report:
    """Return a report, after writing a corpus of this machine to a folder or an object store.

    Every object is checked against its cube's ledger before it is written; what lies there already
    is left alone, so an interrupted run is finished by running it again, and cubes can be added
    later. ``collection.json`` is written last.

    Parameters
    ----------
    corpus : Corpus
        Made by `corpus`.
    url, options, requester_pays
        See `cubes.corpora.remote.connect`.
    progress : callable, optional
        Told (done, total, what).

    Returns
    -------
    Report
        ``written`` and ``reused`` count objects of cubes.

    Raises
    ------
    CubeError
        A damaged cube, or one written anew since the corpus was made; another corpus at `url`, or
        one whose cubes this one lacks or has changed.
    """
    began = time.monotonic()
    remote = connect(url, options=options, requester_pays=requester_pays)
    if not corpus.stores:
        raise CubeError("this corpus was opened from elsewhere; publish one made by cubes.corpus")
    _check_seals(corpus)
    _check_successor(corpus, remote)
    there = remote.sizes("cubes")
    manifest: list[tuple[str, str, int]] = []
    written = size = 0
    jobs = ((remote, there, job) for job in _objects(corpus))
    total = int(corpus.table["objects"].sum()) + len(LEDGER) * len(corpus)
    for done, (entry, new) in enumerate(in_threads(_send, jobs), 1):
        manifest.append(entry)
        written += new
        size += entry[2] if new else 0
        if progress and (done % 100 == 0 or done == total):
            progress(done, total, entry[0])
    _write_tables(corpus, remote, sorted(manifest))
    return Report(
        store=remote.url,
        state="sealed",
        written=written,
        reused=len(manifest) - written,
        bytes_written=size,
        seconds=time.monotonic() - began,
    )


def _check_seals(corpus: Corpus) -> None:
    """Refuse cubes that are not those of the corpus table, before anything is sent."""
    for name, path in corpus.stores.items():
        seal = ledger.proved(ledger.load_build(path))
        if seal["tree_sha256"] != corpus.table.loc[name, "tree_sha256"]:
            raise CubeError(
                f"{path} was written anew since the corpus {corpus.name!r} was made of it; make "
                "the corpus again with cubes.corpus"
            )


def _check_successor(corpus: Corpus, remote: Remote) -> None:
    """Refuse a place that holds another corpus, or cubes that this one would orphan."""
    try:
        body = json.loads(remote.get("collection.json"))
    except FileNotFoundError:
        return
    if body.get("id") != corpus.name:
        raise CubeError(
            f"{remote.url} holds the corpus {body.get('id')!r}, not {corpus.name!r}; publish to "
            "another place"
        )
    old = stacdocs.read_items(fetch(remote, "items.parquet"))
    gone = [n for n in old.index if n not in corpus.table.index]
    if gone:
        raise CubeError(
            f"{remote.url} has {len(gone)} cubes that this corpus lacks, first {gone[0]!r}; a "
            "published corpus only grows: publish to another place"
        )
    both = old["tree_sha256"]
    changed = both[both != corpus.table["tree_sha256"].reindex(both.index)]
    if len(changed):
        raise CubeError(
            f"{len(changed)} cubes differ from those published at {remote.url}, first "
            f"{changed.index[0]!r}; give them other ids, or publish to another place"
        )


Job = tuple[str, Path, str | None]
"""Key, file, and the SHA-256 that the ledger has for it."""


def _objects(corpus: Corpus) -> Iterator[Job]:
    for name, path in corpus.stores.items():
        table = ledger.load_table(ledger.load_build(path))
        for key, (sha256, _) in sorted(table.objects.items()):
            yield f"cubes/{name}.zarr/{key}", path / key, sha256
        for file in LEDGER:
            yield f"cubes/{name}.zarr/{ledger.FOLDER}/{file}", path / ledger.FOLDER / file, None


def _send(remote: Remote, there: Mapping[str, int], job: Job) -> tuple[tuple[str, str, int], bool]:
    """Write one object unless it is there; return its key, hash and size, and whether it is new."""
    key, path, expected = job
    try:
        sha256, size = ledger.file_sha256(path), path.stat().st_size
    except FileNotFoundError:
        raise CubeError(f"{path} is missing from its cube; cubes.repair mends it") from None
    if expected is not None and sha256 != expected:
        raise CubeError(
            f"{path} does not hold the bytes that its ledger recorded; cubes.repair mends the cube"
        )
    if there.get(key) == size and remote.same(key, path, sha256):
        return (key, sha256, size), False
    remote.put(key, path)
    return (key, sha256, size), True


def in_threads(function: Any, jobs: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
    """Yield the results of a function as they come, a bounded number in flight."""
    pending: set[Future[Any]] = set()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for job in jobs:
                pending.add(pool.submit(function, *job))
                if len(pending) >= 4 * THREADS:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (d.result() for d in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (d.result() for d in done)
        except BaseException:
            for future in pending:
                future.cancel()
            raise


def _write_tables(corpus: Corpus, remote: Remote, manifest: list[tuple[str, str, int]]) -> None:
    table = corpus.table
    rows = {str(name): row for name, row in table.iterrows()}
    catalogs, items = set(), []
    for name, path in corpus.stores.items():
        plan = ledger.build_plan(ledger.load_build(path))
        catalogs.add(str(plan.attrs.get("catalog", "")))
        body = stacdocs.item(name, rows[name], plan, corpus.name)
        items.append((remote, f"items/{name}.json", _json(body)))
    for _ in in_threads(lambda where, key, data: where.put(key, data), items):
        pass
    found = sources_of(table, catalogs)
    simulated = found == [card.SIMULATED]
    layers = dict.fromkeys(n for row in table["layers"] for n in row)
    meta = {
        "name": corpus.name,
        "title": corpus.title,
        "description": corpus.description,
        "license": corpus.license,
        "attribution": corpus.attribution,
        "unstated": card.unstated(layers, simulated=simulated),
        "format": FORMAT,
    }
    files = {
        "items": ("items.parquet", stacdocs.PARQUET, "stac-items",
                  stacdocs.items_parquet(table, corpus.name)),
        "objects": ("objects.parquet", stacdocs.PARQUET, "metadata", _manifest(manifest)),
        "card": ("README.md", "text/markdown", "metadata",
                 card.text(meta, table, found).encode()),
        "map": ("map.svg", "image/svg+xml", "overview", card.map_svg(table).encode()),
    }  # fmt: skip
    assets = {}
    for label, (key, kind, role, data) in files.items():
        remote.put(key, data)
        assets[label] = {
            "href": key,
            "type": kind,
            "roles": [role],
            "file:size": len(data),
            "file:checksum": stacdocs.multihash(ledger.sha256(data)),
        }
    remote.put("collection.json", _json(stacdocs.collection(meta, table, found, assets)))


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, indent=1, ensure_ascii=False, allow_nan=False).encode()


def _manifest(entries: Sequence[tuple[str, str, int]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    keys, hashes, sizes = zip(*entries, strict=True)
    rows = pa.table({"key": list(keys), "sha256": list(hashes), "size": list(sizes)})
    out = io.BytesIO()
    parquet.write_table(rows, out, compression="zstd")
    return out.getvalue()


# ---------------------------------------------------------------------------------------- verify


def verify_corpus(corpus: Corpus | str | os.PathLike[str], *, quick: bool = False) -> Report:
    """Return a report on whether every object of a published corpus holds its recorded bytes.

    Parameters
    ----------
    corpus : Corpus, or where it was published
        Opened by `open_corpus`; a folder or URL is opened so, without options.
    quick : bool
        List sizes only, in place of the SHA-256 of every byte.

    Returns
    -------
    Report
        ``damaged`` lists keys that are missing or changed, and cubes (``cubes/<id>.zarr``) whose
        objects do not make the hash in the corpus table; ``reused`` counts those found whole.

    Raises
    ------
    CubeError
        Not a published corpus; tables that are not those the collection names.
    """
    if not isinstance(corpus, Corpus):
        corpus = open_corpus(corpus)
    if corpus.remote is None:
        raise CubeError("this corpus is not published; verify its cubes with cubes.verify(store)")
    began = time.monotonic()
    remote = corpus.remote
    body = collection_of(remote)
    damaged = [KEYS[label] for label in ("card", "map") if not _whole(remote, body, label)]
    wanted = listed(corpus)
    damaged += _not_in_table(corpus, wanted)
    if quick:
        there = remote.sizes("cubes")
        damaged += [key for key, _, size in wanted if there.get(key) != size]
    else:
        jobs = ((remote, key, sha256) for key, sha256, _ in wanted)
        damaged += [key for key, good in in_threads(_intact, jobs) if not good]
    state: Literal["sealed", "damaged"] = "damaged" if damaged else "sealed"
    return Report(
        store=remote.url,
        state=state,
        reused=len(wanted) - len({k for k, _, _ in wanted}.intersection(damaged)),
        damaged=tuple(sorted(damaged)),
        seconds=time.monotonic() - began,
    )


def listed(corpus: Corpus) -> list[tuple[str, str, int]]:
    """Return key, SHA-256 and size of every object of a published corpus's cubes.

    Raises
    ------
    CubeError
        Not published; a list that is not the one that the collection names, or that names keys
        outside of the cubes.
    """
    from pyarrow import parquet

    remote = corpus.remote
    if remote is None:
        raise CubeError(f"corpus {corpus.name!r} is not published: it has no list of objects")
    data = beside(remote, collection_of(remote), "objects")
    rows = parquet.read_table(io.BytesIO(data)).to_pydict()
    wanted = list(zip(rows["key"], rows["sha256"], rows["size"], strict=True))
    for key, _, _ in wanted:
        if ".." in key.split("/") or not key.startswith("cubes/") or key.count("/") < 2:
            raise CubeError(f"{remote.url}/objects.parquet names a key outside of cubes: {key!r}")
    return wanted


def _not_in_table(corpus: Corpus, wanted: Iterable[tuple[str, str, int]]) -> list[str]:
    """Return the cubes whose listed objects do not make the tree hash of the corpus table."""
    cubes: dict[str, dict[str, tuple[str, int]]] = {str(n): {} for n in corpus.table.index}
    for key, sha256, size in wanted:
        _, store, inner = key.split("/", maxsplit=2)
        objects = cubes.get(store.removesuffix(".zarr"))
        if objects is not None and not inner.startswith(f"{ledger.FOLDER}/"):
            objects[inner] = (sha256, size)
    known = corpus.table["tree_sha256"]
    return [f"cubes/{n}.zarr" for n, o in cubes.items() if ledger.tree_sha256(o) != known[n]]


def _whole(remote: Remote, body: Mapping[str, Any], label: str) -> bool:
    try:
        beside(remote, body, label)
    except CubeError:
        return False
    return True


def _intact(remote: Remote, key: str, sha256: str) -> tuple[str, bool]:
    try:
        return key, ledger.sha256(remote.get(key)) == sha256
    except FileNotFoundError:
        return key, False
