"""Fixtures shared by all tests, and the rule that nothing may skip where that is asked for."""

from __future__ import annotations

import contextlib
import os
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests measured, beside the bars that they had to keep."""
    rows = [
        (value, report.nodeid.rpartition("::")[2])
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", ())
        if name == "figure"
    ]
    if rows:
        terminalreporter.section("measured")
        width = max(len(value) for value, _ in rows)
        for value, test in rows:
            terminalreporter.write_line(f"{value:<{width}}  {test}")


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, object, str], None]:
    """Return a function that notes a measured figure and its bar, for the end of the run.

    ``figure("incidence of the look vectors, degrees", 38.9, "39 +- 2")``. It decides nothing: the
    test asserts.
    """

    def note(what: str, value: object, bar: str) -> None:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        record_property("figure", f"{what}: {text} (bar {bar})")

    return note


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
    from deepsentinel.demo.archives import find_rustac, stac_api

    if find_rustac() is None:
        pytest.skip("rustac is not installed (pip install rustac): no STAC API to start")
    with contextlib.ExitStack() as running:
        yield lambda *hrefs: running.enter_context(stac_api([Path(href) for href in hrefs]))
