"""What may be opened: the allow-list, signing just before a read, redaction, GDAL's settings.

An href is data from a catalogue, so it is not trusted: `permit` turns it into something GDAL may
open or refuses it, and nothing in `cubes` opens an href that did not pass.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urljoin, urlsplit, urlunsplit

from cubes.types import Access, CubeError

GDAL_ENV: dict[str, str] = {
    # No directory listing beside each file: hundreds of requests saved on a bucket.
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    # We retry (counted, with a budget, reopening the file); a second loop inside would hide it.
    "GDAL_HTTP_MAX_RETRY": "0",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "60",
    # Below 1 kB/s for 10 s is a stalled server, not a slow one. GDAL asks up to three times
    # before it reports, so a stall costs half of the budget for retries.
    "GDAL_HTTP_LOW_SPEED_TIME": "10",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1000",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    # The header of most COGs in one request.
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    # GDAL caches failures and truncated bodies: without this a process keeps failing after the
    # server is well again (FAULTS: measured on 429, 500, 503, 403, 404 and short bodies).
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/",
    "VSI_CACHE": "NO",
    # never GDAL_NUM_THREADS: with a failed range request it made all-zero images, no exception
}
"""Every GDAL setting a read runs under; an environment variable of the same name overrides."""

DRIVERS = {".jp2": "JP2OpenJPEG"}
"""Driver by extension; anything else must be a GeoTIFF. One driver per open: a VRT, whatever its
name, would read other files and other hosts."""

MAX_REDIRECTS = 5
"""Most redirects followed for one file."""

_S3 = {"s3": "/vsis3/", "gs": "/vsigs/"}
_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/?#\s'\"<>]*@")
_QUERY = re.compile(r"\?[\w.%~-]+=[^\s'\"<>,]*")
_SECRET = re.compile(
    r"(?i)(authorization\s*[:=]\s*(?:bearer\s+|basic\s+)?|bearer\s+|"
    r"\b(?:sig|token|signature)\s*[=:]\s*)[^\s&'\",}]+"
)


def redact(text: str) -> str:
    """Return `text` with users and queries of URLs and files, and bearer tokens, taken out."""
    text = _USER.sub(r"\1[redacted]@", text)
    return _SECRET.sub(r"\1[redacted]", _QUERY.sub("?[redacted]", text))


_SIGNATURES = {
    "sig", "signature", "x-amz-signature", "x-amz-security-token", "x-goog-signature", "policy",
    "token", "access_token", "access_key", "apikey", "api_key", "api-key", "subscription-key",
}  # fmt: skip


def signed(href: str) -> bool:
    """Return whether an address carries a signature, a token or a password."""
    parts = urlsplit(href)
    if parts.username or parts.password:
        return True
    return any(name.lower() in _SIGNATURES for name, _ in parse_qsl(parts.query))


def without_secrets(url: str) -> str:
    """Return an address without its query and without a user's name and password."""
    if scheme_of(url) == "file":
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


heard: ContextVar[list[str] | None] = ContextVar("heard", default=None)
"""What GDAL logs while a read runs: only there does it say which HTTP status a read met."""


class _Redacting(logging.Filter):
    """Rewrites records that carry a URL with a query, so that no signature reaches a log."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        listening = heard.get()
        if listening is not None:
            listening.append(text)
        clean = redact(text)
        if clean != text:
            record.msg, record.args = clean, ()
        return True


_REDACTING = _Redacting()
LOGGERS = (
    "rasterio", "rasterio._base", "rasterio._env", "rasterio._err", "rasterio._filepath",
    "rasterio._io", "rasterio._vsiopener", "rasterio._warp", "rasterio.env", "rasterio.session",
    "urllib3.connectionpool", "urllib3.util.retry", "odc.loader._rio", "odc.loader._builder",
    "stackstac.rio_reader", "pystac_client.client", "pystac_client.stac_api_io",
    "pystac_client.item_search",
)  # fmt: skip
"""Loggers of the libraries below us that print URLs; a filter works only on the logger itself."""


def quiet_secrets() -> None:
    """Put the redacting filter on every logger of `LOGGERS`; safe to call again."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_REDACTING)


quiet_secrets()


def _listed(host: str, hosts: tuple[str, ...]) -> bool:
    return any(
        host == h or (h.startswith("*.") and host.endswith(h[1:])) for h in map(str.lower, hosts)
    )


@lru_cache(maxsize=1024)
def _public(host: str, hour: int) -> bool:  # noqa: ARG001 - part of the cache key
    """Return whether every address of `host` is public; asked again every hour."""
    try:
        found = socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
    except OSError as error:
        raise ConnectionError(f"could not resolve host {host!r}: {error}") from None
    return all(ipaddress.ip_address(str(a[4][0]).split("%")[0]).is_global for a in found)


def _check_host(host: str, access: Access, href: str) -> None:
    if access.hosts and not _listed(host, access.hosts):
        raise CubeError(
            f"{redact(href)!r}: host {host!r} is not among the hosts this catalogue row allows "
            f"({', '.join(access.hosts)}); add it to the row's access.hosts if you trust it"
        )
    # Only an entry written out in full opens a private network: *.example.org may point anywhere.
    if host not in map(str.lower, access.hosts) and not _public(host, int(time.time()) // 3600):
        raise CubeError(
            f"{redact(href)!r}: host {host!r} is on a loopback, link-local or private network; "
            f"add {host!r} to the row's access.hosts if that is meant"
        )


def _local(href: str, access: Access) -> str:
    path = Path(unquote(urlsplit(href).path) if href.startswith("file:") else href)
    if not path.is_absolute() or "\0" in href or str(path).startswith("/vsi"):
        raise CubeError(
            f"{redact(href)!r} is not an absolute path of a file; give an absolute path, or an URL "
            f"with one of the schemes {', '.join(access.schemes)}"
        )
    if not any(under(path, Path(root)) for root in access.roots):
        raise CubeError(
            f"{str(path)!r} is outside the folders this catalogue row may read "
            f"({', '.join(access.roots) or 'none'}); add its folder to the row's access.roots"
        )
    return str(path)


def scheme_of(href: str) -> str:
    """Return the scheme of `href`, ``file`` for a plain path."""
    # A one-letter scheme is a drive of Windows.
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", href)
    return match[1].lower() if match else "file"


def permit(href: str, access: Access) -> str:
    """Return `href` in the form that may be opened, still unsigned.

    Parameters
    ----------
    href : str
        URL or absolute path, from a catalogue.
    access : Access
        The catalogue row's allow-list.

    Returns
    -------
    str
        A plain path, an ``http(s)`` URL, or a ``/vsis3/`` or ``/vsigs/`` path.

    Raises
    ------
    CubeError
        The scheme, host or folder is not on the list.
    ConnectionError
        The host's name could not be resolved; worth another try.
    """
    scheme = scheme_of(href)
    if scheme not in access.schemes:
        raise CubeError(
            f"{redact(href)!r}: scheme {scheme!r} is not allowed here; this catalogue row allows "
            f"{', '.join(access.schemes) or 'none'} (access.schemes)"
        )
    if scheme == "file":
        return _local(href, access)
    parts = urlsplit(href)
    host = (parts.hostname or "").lower()
    if not host or parts.username or parts.password:
        raise CubeError(f"{redact(href)!r} has no host, or carries credentials in it")
    if scheme in _S3:
        # a bucket stands where a host would
        if access.hosts and not _listed(host, access.hosts):
            raise CubeError(
                f"{redact(href)!r}: bucket {host!r} is not in access.hosts "
                f"({', '.join(access.hosts)})"
            )
        return f"{_S3[scheme]}{parts.netloc}{unquote(parts.path)}"
    if scheme not in ("http", "https"):
        raise CubeError(f"scheme {scheme!r} cannot be read; https, http, s3, gs and file can")
    _check_host(host, access, href)
    return href


def settle(location: str, access: Access) -> str:
    """Return where `location` ends after redirects, each of them permitted.

    GDAL follows redirects anywhere and cannot be told not to. Rows with a list of hosts trust
    them; without one (any public host) every hop is asked for here first, one request per open.

    Raises
    ------
    CubeError
        A redirect leads where nothing may be read, or there are more than `MAX_REDIRECTS`.
    ConnectionError
        The host does not answer; worth another try.
    """
    if access.hosts or not location.startswith("http"):
        return location
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    for _ in range(MAX_REDIRECTS + 1):
        parts = urlsplit(location)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        asking = kind(parts.netloc, timeout=10)
        try:
            asking.request("HEAD", f"{parts.path or '/'}{'?' * bool(parts.query)}{parts.query}")
            answer = asking.getresponse()
            target = answer.getheader("Location") if 300 <= answer.status < 400 else None
        except (OSError, HTTPException) as error:
            raise ConnectionError(f"{parts.hostname} does not answer: {error}") from None
        finally:
            asking.close()
        if target is None:
            return location
        location = permit(urljoin(location, target), access)
    raise CubeError(f"{redact(location)!r} redirects more than {MAX_REDIRECTS} times")


def driver_of(href: str) -> str:
    """Return the one GDAL driver that may open `href`."""
    return DRIVERS.get(Path(urlsplit(href).path).suffix.lower(), "GTiff")


def gdal_env(access: Access, location: str) -> dict[str, str]:
    """Return GDAL's settings for one read; credentials only for hosts on the row's own list.

    Raises
    ------
    CubeError
        The row names a variable for a token and the environment lacks it.
    """
    env = {key: os.environ.get(key, value) for key, value in GDAL_ENV.items()}
    if location.startswith("/vsis3/") and not os.environ.get("AWS_ACCESS_KEY_ID"):
        env["AWS_NO_SIGN_REQUEST"] = "YES"
    if access.auth is not None and location.startswith("https://"):
        if not access.hosts:
            raise CubeError(
                f"access.auth = {access.auth!r} needs access.hosts: a token goes to listed hosts "
                "only"
            )
        token = os.environ.get(access.auth)
        if not token:
            raise CubeError(
                f"this catalogue needs a token: set the environment variable {access.auth}"
            )
        env["GDAL_HTTP_AUTH"] = "BEARER"
        env["GDAL_HTTP_BEARER"] = token
    return env


SAS_URL = "https://planetarycomputer.microsoft.com/api/sas/v1/token"
"""Where the Planetary Computer hands out read tokens; ``PC_SDK_SAS_URL`` overrides, as in its
own SDK."""

_tokens: dict[tuple[str, str], tuple[str, float]] = {}
_token_lock = threading.Lock()


def _blob(url: str) -> tuple[str, str] | None:
    """Return account and container of a blob URL; None for any other host."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    container = parts.path.lstrip("/").split("/")[0]
    if not host.endswith(".blob.core.windows.net") or not container:
        return None
    return host.split(".")[0], container


def _sign_planetary(url: str) -> str:
    """Return `url` with a read token; one token per container, shared, renewed before it ends."""
    blob = _blob(url)
    if blob is None:
        return url
    with _token_lock:
        token, ends = _tokens.get(blob, ("", 0.0))
        if ends - time.time() < 60:
            token, ends = _ask_token(*blob)
            _tokens[blob] = token, ends
    base, _, _ = url.partition("?")
    return f"{base}?{token}"


def _ask_token(account: str, container: str) -> tuple[str, float]:
    import json
    import urllib.error
    import urllib.request
    from datetime import datetime

    base = os.environ.get("PC_SDK_SAS_URL", SAS_URL).rstrip("/")
    request = urllib.request.Request(f"{base}/{account}/{container}")
    key = os.environ.get("PC_SDK_SUBSCRIPTION_KEY")
    if key:
        request.add_header("Ocp-Apim-Subscription-Key", key)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            body: dict[str, Any] = json.load(answer)
    except urllib.error.HTTPError as error:
        # Named so that the reader's classification sees the status: 429 is worth waiting for.
        raise ConnectionError(
            f"HTTP response code: {error.code} asking for a read token of {account}/{container}"
        ) from None
    except OSError as error:
        raise ConnectionError(
            f"could not ask for a read token of {account}/{container}: {redact(str(error))}"
        ) from None
    ends = datetime.fromisoformat(body["msft:expiry"].replace("Z", "+00:00")).timestamp()
    return str(body["token"]), ends


def _forget_planetary(url: str) -> None:
    blob = _blob(url)
    if blob is not None:
        with _token_lock:
            _tokens.pop(blob, None)


SIGNERS: dict[str, tuple[Callable[[str], str], Callable[[str], None]]] = {
    "planetary-computer": (_sign_planetary, _forget_planetary)
}
"""Name -> (sign a URL, forget its token after a refusal)."""


def _signer(name: str) -> tuple[Callable[[str], str], Callable[[str], None]]:
    try:
        return SIGNERS[name]
    except KeyError:
        raise CubeError(
            f"unknown signer {name!r}; known: {', '.join(SIGNERS)} (access.sign)"
        ) from None


def sign(location: str, access: Access) -> str:
    """Return `location` signed for this moment, if the row signs; never stored, never printed.

    Raises
    ------
    CubeError
        Unknown signer.
    ConnectionError
        The signing service failed; worth another try.
    """
    if not access.sign or not location.startswith("http"):
        return location
    return _signer(access.sign)[0](location)


def unsign(location: str, access: Access) -> bool:
    """Drop the token of `location` so that the next `sign` asks anew; return whether it can."""
    if not access.sign or not location.startswith("http"):
        return False
    _signer(access.sign)[1](location)
    return True


def under(path: Path, root: Path) -> bool:
    """Return whether the resolved `path` lies in the resolved `root`."""
    resolved, base = path.resolve(), root.resolve()
    return resolved == base or base in resolved.parents
