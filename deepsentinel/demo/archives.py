"""Simulated archives to search: worlds published side by side, and a real STAC API over them."""

from __future__ import annotations

import multiprocessing
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from cubes.types import CubeError
from deepsentinel.demo.stages import THREADS, environment


def publish_all(
    worlds: Sequence[tuple[str, str, int]], out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return, per role, what was published and where: all worlds at once, one process each.

    Parameters
    ----------
    worlds : sequence of (str, str, int)
        Role, parameter row and seed of each world; its role names its folder in `out`.
    out : Path
        Folder for the worlds.
    progress : callable
        Takes a line of text whenever a world gets further.

    Returns
    -------
    dict
        Plain JSON: role -> ``catalog``, ``aoi``, ``server`` (files for an API) and ``proof``
        (files that only a whole archive has), relative to the world's folder, and ``items`` per
        collection.

    Raises
    ------
    CubeError
        A world could not be published; the others are stopped.
    """
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    running: dict[str, BaseProcess] = {}
    for role, row, seed in worlds:
        folder = out / role
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        running[role] = context.Process(
            target=_publish, args=(role, row, seed, str(folder), messages), daemon=True
        )
    # one thread each: there is one process per core already
    with environment(dict.fromkeys(THREADS, "1")):
        for process in running.values():
            process.start()
    return _gather(running, messages, progress)


def _publish(role: str, row: str, seed: int, out: str, messages: Any) -> None:
    """Publish one world and tell the parent how it goes: the body of a child process."""
    from cubes import worlds

    parent = multiprocessing.parent_process()

    def progress(what: str, done: int, total: int) -> None:
        if parent is not None and not parent.is_alive():
            sys.exit("the process that wanted this world is gone")
        messages.put((role, "progress", (done, total, what)))

    try:
        world = worlds.simulate(worlds.load_params(row), seed)
        published = worlds.publish(world, Path(out), progress=progress)
        messages.put((role, "done", _described(Path(out), published)))
    except CubeError as error:
        messages.put((role, "failed", str(error)))
    except Exception:
        messages.put((role, "failed", traceback.format_exc()))


def _described(out: Path, published: Any) -> dict[str, Any]:
    files = [published.catalog, published.aoi, *published.server]
    return {
        "catalog": str(published.catalog.relative_to(out)),
        "aoi": str(published.aoi.relative_to(out)),
        "server": [str(path.relative_to(out)) for path in published.server],
        "proof": [str(path.relative_to(out)) for path in files],
        "items": dict(published.items_by_collection),
        "bytes": bytes_under(out),
    }


def bytes_under(folder: Path) -> int:
    """Return the summed size of every file in a folder, bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _gather(
    running: dict[str, BaseProcess], messages: Any, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Return what each process published; the first failure ends the others."""
    result: dict[str, Any] = {}
    try:
        while len(result) < len(running):
            try:
                role, kind, body = messages.get(timeout=1.0)
            except queue.Empty:
                for role, process in running.items():
                    if not process.is_alive() and role not in result:
                        raise CubeError(
                            f"the process publishing world {role!r} ended with exit code "
                            f"{process.exitcode} and no word; out of memory? Run again, or --quick"
                        ) from None
                continue
            if kind == "failed":
                raise CubeError(f"world {role!r} could not be published: {body}")
            if kind == "done":
                result[role] = body
            else:
                done, total, what = body
                progress(f"{role} {done}/{total} {what}")
    finally:
        for process in running.values():
            if len(result) < len(running):
                process.terminate()
            process.join(timeout=30)
    return {role: result[role] for role in running}


def find_rustac() -> str | None:
    """Return the path of the program ``rustac``: this environment's, else the one on PATH."""
    beside = Path(sys.executable).with_name("rustac")
    return str(beside) if beside.is_file() else shutil.which("rustac")


@contextmanager
def stac_api(files: Sequence[Path]) -> Iterator[str]:
    """Start ``rustac serve`` on a free loopback port; yield its URL; stop it at the end.

    Raises
    ------
    CubeError
        rustac is not installed, or did not start.
    """
    program = find_rustac()
    if program is None:
        raise CubeError("the STAC API of the demo is rustac: pip install 'deepsentinel[demo]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # A file, not a pipe: a pipe that nobody reads would stop a talkative server.
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [program, "serve", "-a", address, *map(str, files)], stdout=said, stderr=said
        )
        try:
            _await_server(process, f"http://{address}", said)
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(timeout=10)


def _await_server(process: subprocess.Popen[bytes], url: str, said: IO[str]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said.seek(0)
            raise CubeError(
                f"rustac serve ended with exit code {process.returncode}: {said.read()[-500:]}"
            )
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise CubeError(f"rustac serve did not answer on {url} within 30 s")
