"""Integrity: no flipped bit of a store reaches a batch; the error names store, array and patch."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cubes import CubeError, Layout, Window, plan
from cubes.sampling import stored
from cubes.sampling.sampleset import Samples
from cubes.store import shards

_spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("streams.py"))
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(100)
LAYERS = ("s1/backscatter", "s1/incidence", "s2/reflectance", "s2/scl", "terrain/elevation")
STEPS = 5


def write(path: Path, layout: Layout) -> Samples:
    """Return samples of four patches, three of five dates: what lies of the others is not read."""
    options = {"shape": (128, 128), "layers": LAYERS, "bands": ("B04", "B08"), "layout": layout}
    streams.write_store(path, s1=STEPS, s2=STEPS, **options)
    return plan(path, Window(size=64, dates=3), min_valid=0)


def objects(path: Path) -> list[Path]:
    """Return every object of the layers; coordinates are read from the plan, not from arrays."""
    return sorted(p for name in LAYERS for p in (path / name / "c").rglob("*") if p.is_file())


def flip(file: Path, place: int, bit: int) -> None:
    """Flip one bit in place: also a file that is mapped changes."""
    with file.open("r+b") as opened:
        opened.seek(place)
        value = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([value ^ 1 << bit]))


def sample(file: Path, path: Path) -> tuple[str, tuple[int, int], int]:
    """Return layer, patch and sample that an object belongs to."""
    name, _, key = file.relative_to(path).as_posix().partition("/c/")
    row, column = (int(n) for n in key.split("/")[-2:])
    return name, (row, column), 2 * row + column


def attempt(samples: Samples, row: int) -> tuple[dict[str, np.ndarray], str]:
    """Return a sample, or the error that came instead."""
    try:
        return samples.read([row]), ""
    except CubeError as error:
        return {}, str(error)


def outcome(samples: Samples, good: Any, path: Path, file: Path) -> str:
    """Read what a damaged file belongs to: "refused" and named, or "unread" and the same bytes."""
    name, (row, column), which = sample(file, path)
    stored.MAPS.clear()
    read, error = attempt(samples, which)
    if error:
        where = rf"{re.escape(str(path / name))}: .*patch row {row}, column {column}\D.*repair"
        assert re.search(where, error), error
        return "refused"
    for key, value in read.items():
        assert value.tobytes() == good[key][which].tobytes(), f"{file} changed {key}"
    return "unread"


@pytest.mark.parametrize(
    ("layout", "flips"),
    [
        (Layout(patch=64), 500),
        (Layout(patch=64, codec="zstd"), 80),
        (Layout(patch=64, codec="none"), 80),
        (Layout(patch=64, shards=False), 80),
    ],
    ids=["lz4", "zstd", "none", "lz4, no shards"],
)
def test_no_flipped_bit_reaches_a_batch(
    tmp_path: Path, layout: Layout, flips: int, figure: Any
) -> None:
    """Random bits of random bytes of all objects; a fifth of them in the index of a shard."""
    path = tmp_path / "bits.zarr"
    samples = write(path, layout)
    good = {k: v.copy() for k, v in samples.read(np.arange(4)).items()}
    files = objects(path)
    sizes = np.array([f.stat().st_size for f in files])
    rng = np.random.default_rng(4)
    seen: Counter[str] = Counter()
    for number in range(flips):
        file = files[rng.choice(len(files), p=sizes / sizes.sum())]
        low, high = 0, file.stat().st_size
        if number % 5 == 0 and layout.shards:
            low = high - shards.index_size(1 if "terrain" in str(file) else 2)
        place, bit = int(rng.integers(low, high)), int(rng.integers(8))
        flip(file, place, bit)
        seen[outcome(samples, good, path, file)] += 1
        flip(file, place, bit)
    figure(f"of {flips} flipped bits refused, the others never read", seen["refused"], "no other")
    assert seen["refused"] > flips / 3
    assert seen["unread"] > 0, "dates that no sample wants"
    stored.MAPS.clear()
    again = samples.read(np.arange(4))
    assert all(np.array_equal(again[k], good[k]) for k in good), "mended: as before"


def test_no_flipped_bit_of_metadata_reaches_a_batch(tmp_path: Path) -> None:
    """What an array is, and the seal, as another process finds them."""
    path = tmp_path / "meta.zarr"
    samples = write(path, Layout(patch=64))
    good = {k: v.copy() for k, v in samples.read([0]).items()}
    rng = np.random.default_rng(5)
    seal = path / "__cubes__" / "sealed.json"
    names = [str(path / name) for name in LAYERS]
    files = [*(path / name / "zarr.json" for name in LAYERS), seal]
    refused = 0
    for number in range(60):
        file = files[number % len(files)]
        place, bit = int(rng.integers(file.stat().st_size)), int(rng.integers(8))
        flip(file, place, bit)
        stored._SEALED.clear()
        stored.MAPS.clear()
        read, error = attempt(samples, 0)
        if error:
            refused += 1
            assert str(path) in error, error
            assert file == seal or any(n in error for n in names), error
        else:
            assert file == seal, f"{file} is not what was planned on"
            assert all(np.array_equal(read[k], good[k]) for k in good)
        flip(file, place, bit)
    assert refused >= 50
    stored._SEALED.clear()
    samples.read([0])
