"""Batches of samples with as many dates: one shape each, every sample once, in a pure order."""

from __future__ import annotations

import functools
import importlib.util
import json
import operator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cubes import CubeError, Samples, Window, plan
from deepsentinel.loading.batch import Batch, Loader, loader
from deepsentinel.loading.ring import Ring

_path = Path(__file__).parents[1] / "cubes" / "streams.py"
_spec = importlib.util.spec_from_file_location("streams", _path)
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(100)
WINDOW = Window(size=32, dates=8, bucket=2)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """64 windows with 2 to 12 usable dates of Sentinel-2."""
    path = tmp_path_factory.mktemp("buckets") / "gaps.zarr"
    lacking = np.zeros((12, 1, 256, 256), bool)
    last = np.random.default_rng(0).integers(2, 13, (8, 8))
    for row, column in np.ndindex(8, 8):
        tile = np.s_[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
        lacking[(slice(last[row, column], None), slice(None), *tile)] = True
    streams.write_store(
        path, layers=("s1/backscatter", "s2/reflectance"), bands=("B02",), s1=12, s2=12,
        nodata={"s2/reflectance": lacking},
    )  # fmt: skip
    return plan(path, WINDOW)


def ids(batches: Any) -> list[list[int]]:
    return [b.place[:, 3].tolist() for b in batches]


def test_every_batch_is_of_one_bucket(samples: Samples) -> None:
    shapes, of = samples.shapes(), samples.buckets()
    assert len(shapes) == 4
    seen = set()
    for batch in loader(samples, 4, drop_last=False, seed=1):
        rows = batch.place[:, 3].numpy()
        (bucket,) = set(of[rows].tolist())
        length = int(shapes.s2[bucket])
        assert batch.stored["s2/reflectance"].shape == (len(rows), length, 1, 32, 32)
        assert batch.days["s2"].shape == batch.present["s2"].shape == (len(rows), length)
        assert batch.present["s2"].sum(1).min() > length - 2, "padded to the bucket only"
        want = samples.read(rows, epoch=0)
        for name, value in batch.stored.items():
            np.testing.assert_array_equal(value.numpy(), want[name], err_msg=name)
        seen.add(length)
    assert seen == set(shapes.s2)


@pytest.mark.parametrize("shuffle", [True, "blocks", False])
def test_every_sample_once_whoever_reads(samples: Samples, shuffle: Any) -> None:
    how = {"shuffle": shuffle, "seed": 3, "drop_last": False}
    one = loader(samples, 4, **how)
    orders = []
    for epoch in range(3):
        one.set_epoch(epoch)
        orders.append([one.rows(step).tolist() for step in range(len(one))])
        assert sorted(functools.reduce(operator.iadd, orders[-1], [])) == list(range(64))
    assert (orders[0] == orders[1]) == (shuffle is False)
    for world in (2, 4):
        ranks = [loader(samples, 4 // world, rank=r, world=world, **how) for r in range(world)]
        for step, whole in enumerate(orders[0]):
            parts = [r.rows(step).tolist() if step < len(r) else [] for r in ranks]
            assert [parts[i % world][i // world] for i in range(len(whole))] == whole
        assert max(map(len, ranks)) == len(one)
        assert all(len(r.rows(s)) for r in ranks for s in range(len(r))), "no empty batch"


def test_the_last_of_each_bucket_is_dropped(samples: Samples) -> None:
    counts = samples.shapes().samples
    one = loader(samples, 4)
    assert len(one) == sum(n // 4 for n in counts)
    for epoch in range(3):
        one.set_epoch(epoch)
        rows = [one.rows(step) for step in range(len(one))]
        assert {len(r) for r in rows} == {4}
        left = set(range(64)) - {int(i) for r in rows for i in r}
        lost = np.bincount(samples.buckets()[sorted(left)], minlength=len(counts))
        assert lost.tolist() == [n % 4 for n in counts]
    with pytest.raises(CubeError, match=r"no bucket of these samples fills a batch of 60.*smaller"):
        loader(samples, 60)
    assert len(loader(samples, 60, drop_last=False)) == len(counts)


def test_buckets_come_mixed(samples: Samples) -> None:
    """A batch comes where it fills: each fifth of an epoch has its share of every shape."""
    one = loader(samples.take(np.arange(64).repeat(20)), 4)
    of = np.array([one.samples.buckets()[one.rows(step)[0]] for step in range(len(one))])
    share = np.bincount(of) / len(of)
    for part in np.array_split(of, 5):
        np.testing.assert_allclose(np.bincount(part, minlength=4) / len(part), share, atol=0.15)


def test_workers_deliver_the_same(samples: Samples) -> None:
    want = [b.clone() for b in loader(samples, 4, drop_last=False, seed=2)]
    one = loader(samples, 4, workers=2, drop_last=False, seed=2)
    try:
        for ours, theirs in zip(one, want, strict=True):
            same(ours, theirs)
    finally:
        one.close()


def same(one: Batch, two: Batch) -> None:
    assert ids([one]) == ids([two])
    for name, value in two.stored.items():
        torch.testing.assert_close(one.stored[name], value, rtol=0, atol=0)
    for name, value in two.days.items():
        torch.testing.assert_close(one.days[name], value, rtol=0, atol=0, equal_nan=True)


def test_resumed_at_every_third_step(samples: Samples) -> None:
    def fresh() -> Loader:
        return loader(samples, 4, seed=5)

    one = fresh()
    whole = ids(one) + ids(one)
    for cut in range(0, len(one) + 1, 3):
        begun = fresh()
        for _ in zip(range(cut), begun, strict=False):
            pass
        state = json.dumps(begun.state_dict())
        assert len(state) < 200
        again = fresh()
        again.load_state_dict(json.loads(state))
        rest = ids(again)
        assert rest == (whole[cut : len(one)] or whole[len(one) :])
    other = plan(samples.stores[0].path, replace(WINDOW, bucket=4))
    with pytest.raises(CubeError, match="other samples"):
        loader(other, 4, seed=5).load_state_dict(one.state_dict())


def test_crops_of_a_cell_stay_together(samples: Samples) -> None:
    window = replace(WINDOW, size=16, within=32, crops=4)
    crops = plan(samples.stores[0].path, window)
    assert crops.shapes().samples.tolist() == [4 * n for n in samples.shapes().samples]
    one = loader(crops, 8, drop_last=False)
    rows = [one.rows(step) for step in range(len(one))]
    assert sorted(np.concatenate(rows)) == list(range(256))
    for r in rows:
        assert (r.reshape(-1, 4) // 4 == r[::4, None] // 4).all()
        assert len(set(crops.buckets()[r])) == 1


def test_buffers_are_those_of_the_longest(samples: Samples) -> None:
    one = loader(samples, 4)
    usual = plan(samples.stores[0].path, replace(WINDOW, bucket=None))
    assert one.memory == loader(usual, 4).memory
    ring = Ring(samples, 4)
    short = np.flatnonzero(samples.buckets() == 0)[:4]
    lease = ring.take(short)
    assert lease.arrays["s2/reflectance"].shape[1] == int(samples.shapes().s2[0])
    assert lease.slot.nbytes == ring.size
