"""What xbatcher cannot express (docs/samples.md): each test fails on the day that it can.

A test that fails here is good news: its message says what of ours may then go.
"""

from __future__ import annotations

import inspect
import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import xarray as xr
import xbatcher

pytestmark = pytest.mark.timeout(60)


def cube(edge: int = 10, dates: int = 6, **how: Any) -> xr.Dataset:
    values = np.arange(dates * edge * edge, dtype="i4").reshape(dates, edge, edge)
    return xr.Dataset({"v": (("time", "y", "x"), values)}, **how)


def test_partial_windows_at_the_far_edges_are_left_out() -> None:
    windows = xbatcher.BatchGenerator(cube(10), {"y": 4, "x": 4})
    reached = max(int(w["v"].max()) for w in windows)
    assert len(windows) == 4, (
        "xbatcher now keeps partial windows: plan() may offer them, and its docstring and "
        "docs/samples.md must say what becomes of the far edges"
    )
    assert reached == 5 * 100 + 7 * 10 + 7


def test_dates_are_slices_only() -> None:
    windows = xbatcher.BatchGenerator(cube(), {"time": 3, "y": 5, "x": 5})
    kinds = {type(v) for (s,) in windows._batch_selectors.selectors.values() for v in s.values()}
    assert kinds == {slice}, (
        "xbatcher now selects by something else than slices: it may choose scattered dates, which "
        "Samples.dates does by itself"
    )


def test_places_are_on_a_lattice_only() -> None:
    windows = xbatcher.BatchGenerator(cube(12), {"y": 4, "x": 4}, input_overlap={"y": 1, "x": 1})
    starts = {s[d].start for (s,) in windows._batch_selectors.selectors.values() for d in "yx"}
    assert starts == {0, 3, 6}
    with pytest.raises(TypeError):
        xbatcher.BatchGenerator(cube(12), {"y": 4, "x": 4}, seed=0)  # type: ignore[call-arg]


def test_a_window_cannot_be_judged() -> None:
    """There is no predicate (xbatcher issue 158): windows of nodata alone are given out too."""
    known = set(inspect.signature(xbatcher.BatchGenerator).parameters)
    assert known == {
        "ds", "input_dims", "input_overlap", "batch_dims", "concat_input_dims", "preload_batch",
        "cache", "cache_preprocess",
    }, "xbatcher has a new argument: if it judges windows, plan() may hand it counts"  # fmt: skip


def test_a_batch_that_was_loaded_comes_back_lazy() -> None:
    computed = []

    def count(block: np.ndarray) -> np.ndarray:
        computed.append(block.shape)
        return block

    lazy = cube(8, 2).chunk({"time": 1, "y": 8, "x": 8})
    lazy["v"] = lazy["v"].copy(data=lazy["v"].data.map_blocks(count, dtype="i4", meta=np.empty(0)))
    windows = xbatcher.BatchGenerator(
        lazy, {"y": 4, "x": 4}, batch_dims={"time": 1}, concat_input_dims=True, preload_batch=True
    )
    batch = windows[0]
    first = len(computed)
    assert first >= 1, "it was computed to preload it"
    batch.load()
    assert len(computed) > first, (
        "xbatcher no longer computes a concatenated batch twice: drop this from docs/samples.md, "
        "and let benchmarks/stream.py race it with concat_input_dims=True"
    )


def test_every_item_computes_alone() -> None:
    """Windows of one chunk decode it once each: nothing is shared between items."""
    computed = []

    def count(block: np.ndarray) -> np.ndarray:
        computed.append(block.shape)
        return block

    lazy = cube(8, 1).chunk({"time": 1, "y": 8, "x": 8})
    lazy["v"] = lazy["v"].copy(data=lazy["v"].data.map_blocks(count, dtype="i4", meta=np.empty(0)))
    windows = xbatcher.BatchGenerator(lazy, {"y": 4, "x": 4})
    for window in windows:
        window.load()
    assert len(computed) == len(windows) == 4, (
        "xbatcher now shares chunks between items: measure it again in benchmarks/stream.py"
    )


def test_a_selector_costs_hundreds_of_bytes() -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    grid = xr.Dataset({"v": (("y", "x"), np.broadcast_to(np.zeros((), bool), (800, 800)))})
    windows = xbatcher.BatchGenerator(grid, {"y": 8, "x": 8}, preload_batch=False)
    each = (tracemalloc.get_traced_memory()[0] - before) / len(windows)
    tracemalloc.stop()
    assert each > 200, (
        f"a selector of xbatcher now costs {each:.0f} bytes: _windows in cubes/sampling/samples.py "
        "may keep them in place of integers"
    )


def test_the_json_of_a_schema_is_not_the_schema() -> None:
    windows = xbatcher.BatchGenerator(cube(8), {"y": 4, "x": 4})
    said = json.loads(windows._batch_selectors.to_json())
    assert said["concat_input_dims"] == {"y": 4, "x": 4}, "xbatcher mended to_json: a bool now"
    assert said["selector"].keys() == {"y", "x"}, (
        "xbatcher's to_json now holds every selector: a plan could be saved in its words"
    )


def test_an_overlap_as_large_as_the_window_is_no_error_of_ours() -> None:
    with pytest.raises(ValueError, match="overlap must be less"):
        xbatcher.BatchGenerator(cube(8), {"y": 4}, input_overlap={"y": 4})
