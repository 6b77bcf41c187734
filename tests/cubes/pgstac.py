"""A private stac-fastapi.pgstac on a private PostgreSQL, started for the tests and stopped after.

The server's packages live in an environment of their own: ``DEEPSENTINEL_PGSTAC`` names its
interpreter, by default ``.venvpgstac/bin/python`` in the project's root; ``.ci/run`` makes it.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
"""Longest wait for the database, and for the API."""


def interpreter() -> Path | None:
    """Return the Python that has the server, or None."""
    path = Path(os.environ.get("DEEPSENTINEL_PGSTAC", ROOT / ".venvpgstac" / "bin" / "python"))
    return path if path.is_file() else None


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs (Debian keeps them off PATH), or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    if found:
        return found[0].parent
    there = shutil.which("initdb")
    return Path(there).parent if there else None


def missing() -> str | None:
    """Say what this machine lacks to run the server; None where it lacks nothing."""
    if binaries() is None:
        return "no PostgreSQL (Debian: postgresql-15, postgresql-15-postgis-3)"
    if interpreter() is None:
        return "no environment with stac-fastapi.pgstac: see .ci/run, or set DEEPSENTINEL_PGSTAC"
    return None


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Database:
    """A PostgreSQL cluster in a folder of its own, run by a user who is not root."""

    def __init__(self, folder: Path) -> None:
        self.data, self.log = folder / "data", folder / "log"
        self.port = free_port()
        self.user = "postgres" if os.geteuid() == 0 else None
        if self.user:  # PostgreSQL refuses to run as root
            owner = pwd.getpwnam(self.user)
            os.chown(folder, owner.pw_uid, owner.pw_gid)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "stac",
            "PGPASSWORD": "stac",
            "PGDATABASE": "postgres",
        }

    def program(self, name: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs; raise with its words if it fails."""
        folder = binaries()
        assert folder is not None
        done = subprocess.run(
            [str(folder / name), *arguments],
            user=self.user,
            cwd=self.data.parent,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode:
            log = self.log.read_text()[-2000:] if self.log.exists() else ""
            raise RuntimeError(f"{name} failed: {done.stderr[-2000:]}{done.stdout[-500:]}{log}")

    def start(self) -> None:
        """Make the cluster and start it; no disk is waited for, nothing here is to last."""
        secret = self.data.parent / "secret"
        secret.write_text("stac")
        secret.chmod(0o644)
        self.program(
            "initdb", "-D", str(self.data), "-U", "stac", "-A", "scram-sha-256",
            f"--pwfile={secret}", "-E", "UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        options = (
            f"-c listen_addresses=127.0.0.1 -c port={self.port} -c fsync=off "
            f"-c unix_socket_directories='' -c full_page_writes=off"
        )
        # its log goes to a file: a pipe held open by the server would never end
        self.program(
            "pg_ctl", "-D", str(self.data), "-l", str(self.log), "-w", "-o", options, "start"
        )

    def stop(self) -> None:
        """Stop it, open connections or not, if it ever ran."""
        if not (self.data / "postmaster.pid").exists():
            return
        self.program("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop")


def load(database: Database, collections: Sequence[Any], items: Sequence[Any]) -> None:
    """Put collections and items into the database, whatever of the same id was there before."""
    python = interpreter()
    assert python is not None
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("collections", collections), ("items", items)):
            path = Path(folder) / f"{name}.ndjson"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            command(database, "load", name, str(path), "--method", "upsert")


def command(database: Database, *arguments: str) -> None:
    """Run ``pypgstac``."""
    python = interpreter()
    assert python is not None
    done = subprocess.run(
        [str(python.with_name("pypgstac")), *arguments],
        env={**os.environ, **database.environment},
        capture_output=True,
        text=True,
        timeout=4 * SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"pypgstac {arguments[0]} failed: {done.stderr[-3000:]}")


@contextmanager
def running() -> Iterator[tuple[str, Database]]:
    """Start database and API; yield the API's URL and the database; stop both at the end."""
    python = interpreter()
    assert python is not None, missing()
    with tempfile.TemporaryDirectory(prefix="pgstac-") as name:
        folder = Path(name)
        database = Database(folder)
        api: subprocess.Popen[bytes] | None = None
        try:
            database.start()
            command(database, "migrate")
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            log = folder / "api.log"
            with log.open("wb") as out:
                api = subprocess.Popen(
                    [str(python), "-m", "uvicorn", "--factory",
                     "stac_fastapi.pgstac.app:create_app", "--host", "127.0.0.1",
                     "--port", str(port), "--no-access-log"],
                    env=_settings(database.environment), stdout=out, stderr=out, cwd=folder,
                )  # fmt: skip
            _wait(url, api, log)
            yield url, database
        finally:
            if api is not None:
                api.terminate()
                try:
                    api.wait(20)
                except subprocess.TimeoutExpired:
                    api.kill()
                    api.wait(20)
            database.stop()


def _settings(database: Mapping[str, str]) -> dict[str, str]:
    pool = {"DB_MIN_CONN_SIZE": "1", "DB_MAX_CONN_SIZE": "4", "USE_API_HYDRATE": "false"}
    return {**os.environ, **database, **pool}


def _wait(url: str, api: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if api.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"the STAC API did not come up: {log.read_text()[-3000:]}")
