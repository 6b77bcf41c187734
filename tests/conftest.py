"""Fixtures shared by all tests, and the rule that nothing may skip where that is asked for."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NO_SKIP = os.environ.get("DEEPSENTINEL_NO_SKIP") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn every skip into a failure where DEEPSENTINEL_NO_SKIP=1 (xfails stay what they are)."""
    report = yield
    if NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although DEEPSENTINEL_NO_SKIP=1: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole module into a failure where DEEPSENTINEL_NO_SKIP=1."""
    report = yield
    if NO_SKIP and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped although DEEPSENTINEL_NO_SKIP=1: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the project."""
    return ROOT


@pytest.fixture(scope="session")
def real() -> Path:
    """Return the folder of real Sentinel data; skip where it is absent."""
    folder = Path(os.environ.get("DEEPSENTINEL_REAL", str(ROOT.parent / "shared" / "real")))
    if not (folder / "flanders" / "catalog.json").is_file():
        pytest.skip(f"no real data at {folder}; point DEEPSENTINEL_REAL to it")
    return folder.resolve()


@pytest.fixture(scope="session")
def server() -> Iterator[Callable[..., str]]:
    """Return a function that serves STAC files over a real API and returns its URL.

    ``server("collections.json", "items.json")`` starts one ``rustac serve`` process on a free
    loopback port; all of them end with the session.
    """
    program = Path(sys.executable).with_name("rustac")
    command = str(program) if program.is_file() else shutil.which("rustac")
    if command is None:
        pytest.skip("rustac is not installed (pip install rustac): no STAC API to start")
    started: list[subprocess.Popen[bytes]] = []

    def serve(*hrefs: str | Path) -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [command, "serve", "-a", f"127.0.0.1:{port}", *map(str, hrefs)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert process.poll() is None, f"rustac serve ended with {process.returncode}"
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return url
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise AssertionError(f"rustac serve did not answer on {url} in 30 s")

    yield serve
    for process in started:
        process.terminate()
    for process in started:
        process.wait(timeout=10)
