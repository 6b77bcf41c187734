"""A web server of files that answers late: ranges, entity tags, HTTP/1.1, and nothing else.

Speaks enough for ``http://`` and for reading ``s3://bucket/key`` with this server as endpoint
(signatures are not looked at). `Slow` runs on a thread; ``python -m benchmarks.slow FOLDER`` as a
process of its own, so that it takes no interpreter time from whoever measures.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

COUNT = "/.requests"
"""Answered at once with the number of requests so far, itself not counted."""


class Slow:
    """Serves `folder` on a free port of the loopback interface, each answer `latency` s late.

    Attributes
    ----------
    asked
        Method, path and range of every request.
    fault
        Given path and range, the HTTP status to fail with, or None.
    """

    def __init__(self, folder: str | Path, latency: float = 0.0) -> None:
        self.folder, self.latency = Path(folder), latency
        self.asked: list[tuple[str, str, str]] = []
        self.fault: Callable[[str, str], int | None] = lambda _path, _span: None
        self.tags = True
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._started.wait(10)

    @property
    def url(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """End the server; safe to call again."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=512)
        )
        self.port = int(server.sockets[0].getsockname()[1])
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                names = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
                status, extra, body = await self._answer(method, target, names)
                lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *extra]
                writer.write("\r\n".join([*lines, "", ""]).encode())
                if method != "HEAD":
                    writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, method: str, target: str, names: dict[str, str]
    ) -> tuple[int, list[str], bytes]:
        path, span = unquote(urlsplit(target).path), names.get("range", "")
        if path == COUNT:
            return 200, [], str(len(self.asked)).encode()
        self.asked.append((method, path, span))
        await asyncio.sleep(self.latency)
        status = self.fault(path, span)
        if status is not None:
            return status, [], b""
        file = self.folder / path.lstrip("/")
        if ".." in path or not file.is_file():
            return 404, [], b""
        found = file.stat()
        tag = f'"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"'
        if names.get("if-match", tag) != tag:
            return 412, [], b""
        extra = ["last-modified: Thu, 01 Jan 2026 00:00:00 GMT"] + [f"etag: {tag}"] * self.tags
        if not span:
            return 200, extra, file.read_bytes()
        first, _, last = span.removeprefix("bytes=").partition("-")
        low = int(first) if first else max(0, found.st_size - int(last))
        high = min(int(last) + 1 if first and last else found.st_size, found.st_size)
        if low >= high:
            return 416, [], b""
        with file.open("rb") as opened:
            opened.seek(low)
            body = opened.read(high - low)
        return 206, [*extra, f"content-range: bytes {low}-{high - 1}/{found.st_size}"], body


@contextmanager
def process(folder: str | Path, latency: float) -> Iterator[str]:
    """Run the server as a process of its own and yield its URL."""
    command = [sys.executable, "-m", "benchmarks.slow", str(folder), str(latency)]
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def requests(url: str) -> int:
    """Return how many requests a server has had."""
    with urllib.request.urlopen(f"{url}{COUNT}", timeout=10) as answer:
        return int(answer.read())


if __name__ == "__main__":
    running = Slow(sys.argv[1], float(sys.argv[2]))
    print(running.url, flush=True)  # noqa: T201 - what whoever started it reads
    threading.Event().wait()
