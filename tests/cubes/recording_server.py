"""A process that answers 404 and prints each request's method, path and headers as JSON lines."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class Recorder(BaseHTTPRequestHandler):
    """Prints what it is asked."""

    def do_GET(self) -> None:
        headers = {k.lower(): v for k, v in self.headers.items()}
        line = {"path": self.path, "method": self.command, "headers": headers}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_HEAD = do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", 0), Recorder)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
