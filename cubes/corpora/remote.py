"""Where a corpus lies: a folder, or an object store through obstore. Bytes in, bytes out."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from cubes.reading.access import redact
from cubes.reading.opener import RETRYABLE
from cubes.store import ledger
from cubes.types import CubeError

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "http", "https")


CLIENT = (
    "allow_http", "allow_invalid_certificates", "connect_timeout", "default_content_type",
    "http1_only", "http2_only", "pool_idle_timeout", "pool_max_idle_per_host", "proxy_url",
    "timeout", "user_agent",
)  # fmt: skip
"""Options of the connection, not of the store: obstore takes them apart and panics otherwise."""

_KNOWN = (
    "options of S3: endpoint, region, access_key_id, secret_access_key, session_token, "
    "skip_signature, virtual_hosted_style_request; of any: " + ", ".join(CLIENT)
)

_STATUS = re.compile(r"status code: (\d{3})")


class Passing(Exception):
    """A request failed in a way that may pass by itself."""


class Altered(Exception):
    """An object is not the one whose tag was given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Some bytes of an object."""

    data: memoryview
    size: int
    """Of the whole object."""
    tag: str | None
    """The object's strong entity tag, if the server gives one."""


class Remote(Protocol):
    """A flat space of objects under one URL."""

    url: str
    access: Mapping[str, Any]
    """``options`` and ``requester_pays`` it was opened with; may hold credentials."""

    def get(self, key: str) -> bytes:
        """Return an object; FileNotFoundError where there is none."""
        ...

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object whole, from bytes or from a file."""
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size of every object under a prefix."""
        ...

    def same(self, key: str, path: Path, sha256: str) -> bool:
        """Return whether the object is certain to hold a file's bytes, without fetching it."""
        ...

    def zarr(self, key: str) -> Any:
        """Return what zarr-python opens a cube from."""
        ...


def connect(
    url: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    requester_pays: bool | str = False,
) -> Remote:
    """Return the place that a URL or a path names.

    Parameters
    ----------
    url : str or path
        A folder, or ``s3://``, ``gs://``, ``az://``, ``http(s)://`` (the last for reading alone).
    options : mapping, optional
        Settings of obstore for that store, such as ``{"endpoint": ..., "region": ...,
        "skip_signature": True}``, and of its connections (`CLIENT`), ``{"timeout": "60s"}``;
        credentials are by default taken from the environment.
    requester_pays : bool or str
        Whether the reader pays: True for S3, the name of the project that is billed for GCS.

    Raises
    ------
    CubeError
        An unknown scheme; obstore missing; requester pays where there is none.
    """
    text = os.fspath(url)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme in ("", "file"):
        return Folder(unquote(urlsplit(text).path) if scheme else text)
    if scheme not in SCHEMES:
        raise CubeError(
            f"a corpus lies in a folder or at one of {', '.join(s + '://' for s in SCHEMES)}, not "
            f"at {redact(text)!r}"
        )
    return Cloud(text.rstrip("/"), dict(options or {}), requester_pays)


class Folder:
    """A folder of this machine."""

    def __init__(self, path: str) -> None:
        self.root = Path(path)
        self.url = str(self.root)
        self.access: Mapping[str, Any] = {}

    def get(self, key: str) -> bytes:
        """Return an object."""
        return (self.root / key).read_bytes()

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object whole."""
        target = self.root / key
        if isinstance(data, bytes):
            ledger.write_atomic(target, data)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{ledger.PARTIAL}")
        try:
            shutil.copyfile(data, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size of every object under a prefix."""
        out = {}
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                path = Path(folder, name)
                out[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return out

    def same(self, key: str, path: Path, sha256: str) -> bool:
        """Return whether the object holds a file's bytes."""
        target = self.root / key
        return target.stat().st_size == path.stat().st_size and (
            ledger.file_sha256(target) == sha256
        )

    def zarr(self, key: str) -> Any:
        """Return the folder of a cube."""
        return str(self.root / key)


class Cloud:
    """An object store."""

    def __init__(self, url: str, options: dict[str, Any], requester_pays: bool | str) -> None:
        self.url = redact(url)
        self.access: Mapping[str, Any] = {
            "options": dict(options), "requester_pays": requester_pays
        }  # fmt: skip
        self._url, self._options = url, _options(url, options, requester_pays)
        self._store = self._at("")
        self._tags: dict[str, str] = {}

    def __repr__(self) -> str:
        """Return the URL; never the options, which may hold credentials."""
        return f"Cloud({self.url!r})"

    def _at(self, key: str) -> Any:
        store = _obstore().store.from_url
        try:
            return store(f"{self._url}/{key}" if key else self._url, **self._options)
        except Exception as error:
            raise CubeError(f"cannot use {self.url}: {_first(error)}; {_KNOWN}") from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # what obstore's Rust ends in
                raise
            said = ", ".join(sorted(map(str, self._options.get("config", {}))))
            raise CubeError(
                f"cannot use {self.url}: obstore gave up on the options {said} ({_first(error)}); "
                f"{_KNOWN}"
            ) from None

    def get(self, key: str) -> bytes:
        """Return an object."""
        try:
            return bytes(_obstore().get(self._store, key).bytes())
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self.failed("read", key, error) from None

    async def part(
        self, key: str, *, span: tuple[int, int] | int | None = None, tag: str | None = None
    ) -> Part:
        """Return bytes of an object, in one request that is not tried again.

        Parameters
        ----------
        key : str
            Which object.
        span : (int, int) or int, optional
            First byte and one past the last, or how many from the end; all of it by default.
        tag : str, optional
            The object must still have this tag.

        Raises
        ------
        FileNotFoundError
            There is none.
        Altered
            It is another one by now.
        Passing
            Worth another try: no connection, a server in trouble, an answer cut short.
        CubeError
            Refused, or anything else that stays.
        """
        wanted: Any = {"suffix": span} if isinstance(span, int) else span
        options = {"range": wanted, "if_match": tag}
        faults = _obstore().exceptions
        try:
            found = await _obstore().get_async(
                self._store, key, options={k: v for k, v in options.items() if v is not None}
            )
            data = memoryview(await found.bytes_async())
        except FileNotFoundError:
            raise
        except faults.PreconditionError:
            raise Altered(key) from None
        except faults.GenericError as error:
            said = str(error)
            status = _STATUS.search(said)
            if int(status[1]) not in RETRYABLE if status else "partial" in said.lower():
                raise self.failed("read", key, error) from None
            raise Passing(_first(error)) from None
        except Exception as error:
            raise self.failed("read", key, error) from None
        size, now = int(found.meta["size"]), found.meta["e_tag"]
        if tag is not None and now is not None and now != tag:
            raise Altered(key)  # a server that does not know If-Match
        low, high = found.range
        if len(data) != high - low or (isinstance(span, tuple) and (low, high) != span):
            raise Passing(f"the answer has {len(data)} bytes")
        return Part(data=data, size=size, tag=None if str(now or "W/").startswith("W/") else now)

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object whole; large files in parts."""
        try:
            _obstore().put(self._store, key, data)
        except Exception as error:
            raise self.failed("write", key, error) from None

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the size of every object under a prefix."""
        out: dict[str, int] = {}
        try:
            for page in _obstore().list(self._store, prefix or None):
                for entry in page:
                    out[entry["path"]] = int(entry["size"])
                    self._tags[entry["path"]] = str(entry["e_tag"] or "").strip('"')
        except Exception as error:
            raise self.failed("list", prefix, error) from None
        return out

    def same(self, key: str, path: Path, sha256: str) -> bool:
        """Return whether the tag seen when listing is the MD5 of a file.

        So it is on S3 for objects written in one part without a key of the customer's; else the
        file is written again.
        """
        del sha256
        tag = self._tags.get(key)
        with path.open("rb") as file:
            return tag == hashlib.file_digest(file, "md5").hexdigest()

    def zarr(self, key: str) -> Any:
        """Return a read-only Zarr store of a cube."""
        from zarr.storage import ObjectStore

        return ObjectStore(self._at(key), read_only=True)

    def failed(self, verb: str, key: str, error: Exception) -> CubeError:
        """Return the error that says where and why something cannot be read or written."""
        return CubeError(
            f"cannot {verb} {self.url}/{key}: {type(error).__name__}: {_first(error)}. Check the "
            "bucket, the credentials (environment or options=) and, where the reader pays, "
            "requester_pays"
        )


def _first(error: BaseException) -> str:
    """Return what an error says: obstore's show requests and responses in full, over many lines."""
    return redact(str(error)).strip().splitlines()[0][:300] if str(error) else ""


def _obstore() -> Any:
    try:
        import obstore
        import obstore.exceptions
        import obstore.store
    except ImportError:
        raise CubeError("object stores need obstore: pip install 'deepsentinel[cloud]'") from None
    return obstore


def _options(url: str, options: dict[str, Any], requester_pays: bool | str) -> dict[str, Any]:
    """Return keyword arguments of obstore's ``from_url``."""
    scheme = urlsplit(url).scheme
    client = dict(options.pop("client_options", {}))
    client.update({key: options.pop(key) for key in CLIENT if key in options})
    retries = options.pop("retry_config", None)
    if requester_pays:
        if scheme in ("s3", "s3a"):
            options["request_payer"] = True
        elif scheme == "gs" and isinstance(requester_pays, str):
            client["default_headers"] = {
                **client.get("default_headers", {}), "x-goog-user-project": requester_pays
            }  # fmt: skip
        elif scheme == "gs":
            raise CubeError(
                "on GCS the reader's project pays: give its name, requester_pays='my-project'"
            )
        else:
            raise CubeError(f"{scheme}:// knows no requester pays; leave it out")
    if str(options.get("endpoint", url)).startswith("http://"):
        client.setdefault("allow_http", True)
    out: dict[str, Any] = {}
    if options:
        out["config"] = options
    if client:
        out["client_options"] = client
    if retries is not None:
        out["retry_config"] = retries
    return out
