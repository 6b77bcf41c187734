"""Stages of a long job: progress for a person, reuse by hash, and the memory all of it took.

A stage is done when its key (a hash of its inputs and of the source code that makes it) and the
hashes of its small outputs are those on record, and its check of the big ones (the seal of a
cube) passes. Then it is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from cubes.types import Progress

Result = dict[str, Any]


class Console:
    """Progress as lines of text: one line that is rewritten on a terminal, a few in a log.

    In a log a stage reports at most every `every` seconds, so that eight minutes make tens of
    lines and no stretch of silence outlasts a reader's patience.
    """

    def __init__(self, out: TextIO | None = None, *, every: float = 5.0) -> None:
        self.out = out or sys.stderr
        self.start = time.monotonic()
        self.every = every
        self._last = 0.0
        self._open = False
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Write a line with the seconds since the start."""
        with self._lock:
            self._write(text, end="\n")

    def update(self, text: str) -> None:
        """Show where a stage is, replacing what stood there before on a terminal."""
        now = time.monotonic()
        with self._lock:
            if self.out.isatty():
                if now - self._last > 0.1:
                    self._last = now
                    self._write(text, end="")
                    self._open = True
            elif now - self._last > self.every:
                self._last = now
                self._write(text, end="\n")

    def progress(self, stage: str) -> Progress:
        """Return a callable ``(done, total, what)`` that reports the progress of `stage`."""

        def report(done: int, total: int, what: str) -> None:
            self.update(f"{stage:<10} {done}/{total} {what}".rstrip())

        return report

    def _write(self, text: str, *, end: str) -> None:
        seconds = time.monotonic() - self.start
        clear = "\r\x1b[2K" if self._open else ""
        self.out.write(f"{clear}[{seconds:6.1f} s] {text}{end}")
        self.out.flush()
        self._open = False


class Memory:
    """The largest summed resident memory of this process and all its descendants, sampled.

    Shared pages count once per process, so the figure errs on the high side.
    """

    def __init__(self, *, every: float = 0.5) -> None:
        self.peak = 0
        self.every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Memory:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        import psutil

        me = psutil.Process(os.getpid())
        while not self._stop.wait(self.every):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it ended between being listed and being asked
                    continue
            self.peak = max(self.peak, total)


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that say how many threads numeric libraries start, read when they are first loaded."""


@contextmanager
def environment(changes: Mapping[str, str] | None = None) -> Iterator[None]:
    """Make `changes` to the environment, and in the end leave it as it was, whoever changed it.

    A dask cluster sets ``OMP_NUM_THREADS=1`` for its workers in the process that starts them and
    leaves it there; torch, loaded after that, trained the demo on one core of two.
    """
    before = dict(os.environ)
    os.environ.update(changes or {})
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def cpu_seconds() -> float:
    """Return the processor time of this process and of its ended children, seconds."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def digest(*parts: Any) -> str:
    """Return the SHA-256 of `parts` as canonical JSON (a path counts by its text)."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def source_digest(modules: Iterable[str]) -> str:
    """Return the SHA-256 of the source files of packages and modules, by their dotted names."""
    root = Path(__file__).resolve().parents[2]
    total = hashlib.sha256()
    for module in sorted(modules):
        base = root.joinpath(*module.split("."))
        if base.is_dir():
            files = [p for p in base.rglob("*") if p.suffix in (".py", ".toml", ".geojson")]
        else:
            files = [base.with_suffix(".py")]
        for path in sorted(files):
            total.update(str(path.relative_to(root)).encode())
            total.update(path.read_bytes())
    return total.hexdigest()


@dataclass(kw_only=True)
class Stages:
    """What is done in a folder: one record per stage, kept in ``stages.json``, written last."""

    folder: Path
    console: Console
    records: dict[str, Result] = field(default_factory=dict)
    """Stage -> key, result, files with their hashes, seconds it took when it ran."""
    reused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the records that an earlier run left."""
        path = self.folder / "stages.json"
        if path.is_file():
            try:
                self.records = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                self.console.line(f"{path} is not readable: every stage runs again")

    def run(
        self,
        name: str,
        key: str,
        make: Callable[[], tuple[Result, list[Path]]],
        *,
        check: Callable[[Result], bool] | None = None,
    ) -> Result:
        """Return the stage's result (plain JSON): on record if it still holds, else made now.

        Parameters
        ----------
        name : str
            Name of the stage.
        key : str
            Hash of everything the stage depends on.
        make : callable
            Does the work; returns the result and the small files that prove it by their hash.
        check : callable
            Given the result on record, verifies what is too big to hash here.
        """
        start, cpu = time.monotonic(), cpu_seconds()
        record = self.records.get(name)
        if record is not None and record["key"] == key and self._holds(record):
            if check is None or check(record["result"]):
                self.reused.append(name)
                self.console.line(
                    f"{name:<10} reused, verified in {time.monotonic() - start:.1f} s "
                    f"(made in {record['seconds']:.1f} s)"
                )
                result: Result = record["result"]
                return result
            self.console.line(f"{name:<10} what an earlier run left is damaged: made again")
        self.console.line(f"{name:<10} ...")
        result, files = make()
        seconds = time.monotonic() - start
        self.records[name] = {
            "key": key,
            "result": result,
            "files": {str(p.relative_to(self.folder)): file_digest(p) for p in files},
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds() - cpu, 2),
        }
        self._save()
        self.console.line(
            f"{name:<10} done in {seconds:.1f} s ({self.records[name]['cpu_seconds']:.1f} s of CPU)"
        )
        return result

    @property
    def seconds(self) -> Mapping[str, float]:
        """Seconds each stage took when it ran."""
        return {name: record["seconds"] for name, record in self.records.items()}

    def _holds(self, record: Result) -> bool:
        return all(
            (self.folder / name).is_file() and file_digest(self.folder / name) == value
            for name, value in record["files"].items()
        )

    def _save(self) -> None:
        part = self.folder / "stages.json.part"
        part.write_text(json.dumps(self.records, indent=1, sort_keys=True), encoding="utf-8")
        part.replace(self.folder / "stages.json")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
