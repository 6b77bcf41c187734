"""Static STAC catalogues: files that link to files, on a disk or behind a URL."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from cubes.errors import NothingFound
from cubes.reading.access import MAX_REDIRECTS, permit, redact, scheme_of, under
from cubes.stac.items import absolute
from cubes.types import Catalog, CubeError

MAX_DOCUMENTS = 100_000
"""Most documents followed in one walk: a catalogue whose links never end is stopped here."""

MAX_JSON = 256 * 2**20
"""Largest JSON document read from a URL, bytes."""

TIMEOUT = (10, 60)
"""Seconds to connect, and between bytes."""

Item = tuple[dict[str, Any], str | None]
"""A STAC item's JSON, and where it stands."""


def walk(catalog: Catalog, collection: str) -> Iterator[Item]:
    """Yield the items of one collection (JSON, where it stands), following a catalogue's links.

    Collections of other names are not entered.

    Raises
    ------
    CubeError
        No such collection; a document that cannot be read, or that a link may not lead to.
    """
    root = catalog.url
    if not root:
        raise CubeError(
            f"catalogue {catalog.name!r} has no url of its own: say where it lies, "
            f'cubes.catalog({catalog.name!r}, url="FOLDER/catalog.json")'
        )
    if scheme_of(root) == "file":
        root = os.path.abspath(root.removeprefix("file://"))  # noqa: PTH100 - keeps links
    seen: set[str] = set()
    waiting = [root]
    collections: set[str] = set()
    while waiting:
        href = waiting.pop()
        if href in seen:
            continue
        seen.add(href)
        if len(seen) > MAX_DOCUMENTS:
            raise CubeError(f"catalogue {catalog.name!r} has more than {MAX_DOCUMENTS:,} documents")
        body = _document(href, catalog, root)
        kind = body.get("type")
        if kind == "Feature":
            yield body, href
            continue
        if kind == "FeatureCollection":
            yield from ((item, href) for item in body.get("features", ()))
            continue
        if kind == "Collection":
            collections.add(str(body.get("id")))
            if body.get("id") != collection:
                continue
        links = [
            absolute(str(link["href"]), href)
            for link in body.get("links", ())
            if link.get("rel") in ("child", "item", "items") and link.get("href")
        ]
        waiting += reversed(links)  # first link first
    if collections and collection not in collections:
        near = difflib.get_close_matches(collection, collections, 1)
        raise NothingFound(
            f"catalogue {catalog.name!r} ({redact(catalog.url)}) has no collection {collection!r}; "
            f"it has {', '.join(sorted(collections))}"
            + (f". Did you mean {near[0]!r}?" if near else "")
        )


def _document(href: str, catalog: Catalog, root: str) -> dict[str, Any]:
    try:
        if scheme_of(href) == "file":
            body = json.loads(_local_text(href, catalog, root))
        else:
            body = json.loads(_remote_text(href, catalog, root))
    except CubeError:
        raise
    except (OSError, ValueError) as error:
        raise CubeError(
            f"catalogue {catalog.name!r}: {redact(href)} cannot be read: {redact(str(error))}"
        ) from None
    if not isinstance(body, dict):
        raise CubeError(f"catalogue {catalog.name!r}: {redact(href)} is not a STAC document")
    return body


def _local_text(href: str, catalog: Catalog, root: str) -> str:
    path = Path(href.removeprefix("file://"))
    allowed = [Path(r) for r in catalog.access.roots]
    if scheme_of(root) == "file":
        allowed.append(Path(root).parent)
    if not any(under(path, folder) for folder in allowed):
        raise CubeError(
            f"catalogue {catalog.name!r} links to {str(path)!r}, outside its own folder and "
            "access.roots"
        )
    return path.read_text(encoding="utf-8")


def _remote_text(href: str, catalog: Catalog, root: str) -> bytes:
    import requests

    # requests would follow a redirect anywhere: each hop must be one that a link could lead to
    location = href
    for _ in range(MAX_REDIRECTS + 1):
        if urlsplit(location).netloc != urlsplit(root).netloc:
            permit(location, catalog.access)
        with requests.get(location, timeout=TIMEOUT, stream=True, allow_redirects=False) as answer:
            if answer.is_redirect:
                location = urljoin(location, answer.headers["Location"])
                continue
            answer.raise_for_status()
            body = answer.raw.read(MAX_JSON + 1, decode_content=True)
        if len(body) > MAX_JSON:
            raise CubeError(f"{redact(href)} is larger than {MAX_JSON:,} bytes")
        return bytes(body)
    raise CubeError(f"{redact(href)} redirects more than {MAX_REDIRECTS} times")
