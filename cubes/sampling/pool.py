"""Decoding threads: jobs made of units of work, passed from batch to batch without a barrier."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import lru_cache

from cubes.types import CubeError


class Job:
    """A batch under way: what makes its units, how many are left, and how it ended."""

    def __init__(self, prepare: Callable[[], list[Callable[[], None]]]) -> None:
        self.prepare: Callable[[], list[Callable[[], None]]] | None = prepare
        self.units: deque[Callable[[], None]] = deque()
        self.running = 0
        self.error: BaseException | None = None
        self.finished = threading.Event()

    def wait(self, timeout: float | None = None) -> None:
        """Return when the buffers are filled.

        Raises
        ------
        CubeError
            What went wrong in a thread; or nothing came for `timeout` seconds.
        """
        if not self.finished.wait(timeout):
            raise CubeError(f"no batch for {timeout} s: is the file system answering?")
        if self.error is not None:
            raise self.error


class Pool:
    """Decoding threads that pass from one job to the next without waiting for its last unit."""

    def __init__(self, threads: int) -> None:
        self._jobs: deque[Job] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._loop, name=f"cubes-stream-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> Job:
        """Queue `job` and return it."""
        with self._change:
            self._jobs.append(job)
            self._change.notify_all()
        return job

    def close(self) -> None:
        """End the threads; jobs that have not begun end with an error."""
        with self._change:
            self._closed = True
            for job in self._jobs:
                job.error = job.error or CubeError("the reader was closed")
                job.units.clear()
                job.finished.set()
            self._jobs.clear()
            self._change.notify_all()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _take(self) -> tuple[Job, Callable[[], None] | None] | None:
        """Return a unit (None: prepare the job), or None when closed. Called under the lock."""
        while not self._closed:
            # Preparing comes first: a remote job asks for its bytes then, and they travel while
            # the jobs before it are decoded.
            for job in self._jobs:
                if job.prepare is not None and not job.running:
                    job.running += 1
                    return job, None
            for job in self._jobs:
                if job.units:
                    job.running += 1
                    return job, job.units.popleft()
            self._change.wait()
        return None

    def _loop(self) -> None:
        while True:
            with self._change:
                taken = self._take()
            if taken is None:
                return
            job, unit = taken
            units: list[Callable[[], None]] = []
            try:
                if unit is not None:
                    unit()
                elif job.prepare is not None:
                    units = job.prepare()
            except BaseException as error:  # handed to whoever waits for the batch
                job.error = error
            with self._change:
                job.running -= 1
                if unit is None:
                    job.prepare = None
                    job.units.extend(units)
                    self._change.notify_all()
                if job.error is not None:
                    job.units.clear()
                if not job.units and not job.running:
                    if job in self._jobs:
                        self._jobs.remove(job)
                    job.finished.set()
            # A thread that waits must not keep the buffers of its last unit from being reused.
            del taken, job, unit, units


@lru_cache(maxsize=8)
def pool(threads: int) -> Pool:
    """Return this process's shared pool of `threads` decoding threads."""
    return Pool(threads)
