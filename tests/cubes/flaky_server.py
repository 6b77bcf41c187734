"""A file server with range requests that fails as it is told to; run as a process of its own.

Inside the process of a test it would deadlock with rasterio on the interpreter's lock and look
like a hang of GDAL. ``python flaky_server.py FOLDER`` prints its port on the first line.

Control, all as JSON: ``POST /_plan {"path": "/a.tif", "faults": [503, "reset"], "forever": null}``
gives each coming request of a path one fault (an HTTP status, ``reset``, ``short``, ``stall``,
``redirect:URL``, or null for none), then `forever`; ``"token": true`` demands an unexpired
``?se=<unix time>&sig=...``. ``GET /_log`` returns the requests so far, ``POST /_clear`` forgets.
``GET /sas/account/container`` hands out a token of ``life`` seconds (set by /_plan "life").
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = Path()
LOCK = threading.Lock()
PLANS: dict[str, dict[str, Any]] = {}
LOG: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _json(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        with LOCK:
            if self.path == "/_plan":
                PLANS[body["path"]] = body
            elif self.path == "/_clear":
                PLANS.clear()
                LOG.clear()
        self._json({})

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        if self.path == "/_log":
            with LOCK:
                self._json(list(LOG))
        else:
            self._serve(body=True)

    def _fault(self, path: str, query: dict[str, list[str]]) -> Any:
        with LOCK:
            plan = PLANS.get(path, {})
            faults = plan.get("faults") or []
            fault = faults.pop(0) if faults else plan.get("forever")
        if fault is None and plan.get("token") and float(query.get("se", ["0"])[0]) < time.time():
            fault = 403
        return fault

    def _serve(self, *, body: bool) -> None:
        url = urlsplit(self.path)
        fault = self._fault(url.path, parse_qs(url.query))
        entry = {
            "method": self.command, "path": url.path, "query": url.query, "fault": fault,
            "range": self.headers.get("Range"), "auth": self.headers.get("Authorization"),
        }  # fmt: skip
        with LOCK:
            LOG.append(entry)
        if isinstance(fault, int):
            self._json({"error": fault}, fault)
        elif isinstance(fault, str) and fault.startswith("redirect:"):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("redirect:"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif url.path.startswith("/sas/"):
            ends = time.time() + PLANS.get("/sas", {}).get("life", 3600)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
            self._json({"token": f"se={ends}&sig=SECRET{len(LOG)}", "msft:expiry": stamp})
        else:
            self._file(url.path, fault, body=body)

    def _file(self, path: str, fault: str | None, *, body: bool) -> None:
        file = ROOT / path.lstrip("/")
        if not file.is_file():
            self._json({"error": 404}, 404)
            return
        data = file.read_bytes()
        first, last, status = 0, len(data) - 1, 200
        if wanted := self.headers.get("Range"):
            a, _, b = wanted.removeprefix("bytes=").partition("-")
            first, last, status = int(a), min(int(b) if b else last, last), 206
        part = data[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Type", "image/tiff")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if not body:
            return
        if fault == "stall":
            time.sleep(60)
        if fault in ("short", "reset"):
            self.wfile.write(part[: len(part) // 2])
            self.wfile.flush()
            if fault == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return
        self.wfile.write(part)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that hangs up is what some tests are about."""


def main() -> None:
    global ROOT  # noqa: PLW0603 - one folder per process
    ROOT = Path(sys.argv[1])
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)  # noqa: T201 - how the port is told
    server.serve_forever()


if __name__ == "__main__":
    main()
