"""The stream: same batches for any threads, workers and ranks; resumed exactly; never a hang."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cubes import CubeError, Window, physics, plan, stats
from cubes.sampling.sampleset import Samples
from deepsentinel.loading import workers as workers_module
from deepsentinel.loading.batch import (
    Batch,
    Loader,
    Normaliser,
    SampleDataset,
    Stream,
    inputs,
    loader,
)

_path = Path(__file__).parents[1] / "cubes" / "streams.py"
_spec = importlib.util.spec_from_file_location("streams", _path)
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(100)
BANDS = ("B04", "B08")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("batch") / "cube.zarr"
    nodata = {"s1/backscatter": (4, 1, slice(0, 10), slice(0, 10))}
    return path, streams.write_store(path, bands=BANDS, nodata=nodata)


@pytest.fixture(scope="module")
def samples(cube: Any) -> Samples:
    return plan(cube[0], Window(size=64, dates=4), min_valid=0, seed=2)


def digest(batch: Batch) -> tuple[Any, ...]:
    """Return everything in a batch as bytes."""
    tensors = [*batch.stored.values(), *batch.days.values(), *batch.present.values(), batch.place]
    return tuple(t.numpy().tobytes() for t in tensors)


def ids(one: Loader) -> list[list[int]]:
    return [batch.place[:, 3].tolist() for batch in one]


def passes(one: Loader, n: int) -> list[list[tuple[Any, ...]]]:
    return [[digest(b) for b in one] for _ in range(n)]


@pytest.fixture(scope="module")
def reference(samples: Samples) -> list[list[tuple[Any, ...]]]:
    """Two epochs read plainly, in the order that `Loader.rows` states."""
    one = loader(samples, 4, seed=7)
    out = []
    for epoch in range(2):
        one.set_epoch(epoch)
        batches = []
        for step in range(len(one)):
            read = samples.read(one.rows(step), epoch=epoch)
            names = [*samples.layers, *(f"{c}/days" for c in samples.clocks),
                     *(f"{c}/present" for c in samples.clocks), "place"]  # fmt: skip
            batches.append(tuple(read[n].tobytes() for n in names))
        out.append(batches)
    return out


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_give_the_stated_batches(
    samples: Samples, reference: list[Any], threads: int
) -> None:
    assert passes(loader(samples, 4, seed=7, threads=threads), 2) == reference
    assert reference[0] != reference[1]
    assert passes(loader(samples, 4, seed=8), 1)[0] != reference[0]


@pytest.fixture(scope="module")
def with_workers(samples: Samples) -> Iterator[Loader]:
    one = loader(samples, 4, seed=7, workers=2, prefetch=1)
    yield one
    one.close()


def test_workers_give_the_same_batches(with_workers: Loader, reference: list[Any]) -> None:
    with_workers.set_epoch(0)
    assert passes(with_workers, 2) == reference
    # broken off in the middle, the processes and buffers serve the next pass
    with_workers.set_epoch(0)
    for batch in with_workers:
        assert digest(batch) == reference[0][0]
        break
    del batch
    with_workers.set_epoch(1)
    # more batches kept than there are shared buffers: each still has memory of its own
    kept = list(with_workers)
    assert [digest(b) for b in kept] == reference[1]


def test_a_killed_worker_is_an_error_and_not_a_hang(samples: Samples) -> None:
    one = loader(samples.take([0, 1, 2, 3] * 30), 4, workers=1, prefetch=1, timeout=60)
    batches = iter(one)
    next(batches)
    os.kill(one.__dict__["_made"]._loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(CubeError, match="worker process of the loader ended"):
        list(batches)
    one.close()


def test_ranks_share_out_every_sample(samples: Samples) -> None:
    whole = ids(loader(samples, 4, seed=3))
    for world in (2, 4):
        ranks = [
            [
                b.place[:, 3].tolist()
                for b in loader(samples, 4 // world, seed=3, rank=r, world=world)
            ]
            for r in range(world)
        ]
        for step, batch in enumerate(whole):
            assert sorted(chain(*(ranks[r][step] for r in range(world)))) == sorted(batch)
    odd = samples.take(np.arange(11))
    parts = [ids(loader(odd, 2, rank=r, world=2, drop_last=False)) for r in range(2)]
    assert sorted(chain(*chain(*parts))) == list(range(11))


@pytest.fixture(scope="module")
def crops(cube: Any) -> Samples:
    """Four crops in each of nine cells, that lie across patches."""
    return plan(cube[0], Window(size=32, within=96, stride=80, crops=4, dates=3), min_valid=0)


def test_crops_of_a_cell_stay_together(crops: Samples) -> None:
    assert len(crops) == 9 * 4
    one = loader(crops, 8, drop_last=False, seed=1)
    for _ in range(2):
        batches = ids(one)
        assert [len(b) for b in batches] == [8, 8, 8, 8, 4]
        assert sorted(chain(*batches)) == list(range(36))
        for batch in batches:
            cells = np.array(batch).reshape(-1, 4)
            assert (cells == cells[:, :1] + np.arange(4)).all()
            assert (cells[:, 0] % 4 == 0).all()
    one.set_epoch(0)
    whole = ids(one)
    ranks = [ids(loader(crops, 4, drop_last=False, seed=1, rank=r, world=2)) for r in range(2)]
    assert [len(r) for r in ranks] == [len(loader(crops, 4, drop_last=False, rank=r, world=2))
                                       for r in range(2)]  # fmt: skip
    for step, batch in enumerate(whole):
        assert sorted(chain(*(r[step] for r in ranks if step < len(r)))) == sorted(batch)
    workers = loader(crops, 8, drop_last=False, seed=1, workers=1)
    one.set_epoch(0)
    assert passes(workers, 1) == passes(one, 1)
    workers.close()


def test_blocks_are_read_one_after_another(cube: Any) -> None:
    samples = plan(cube[0], Window(size=16, dates=2, period="20D"), min_valid=0, max_gap=None)
    block = samples.blocks()
    table = samples.table()
    assert len(np.unique(block)) == 4, "four patches; all dates lie in one shard"
    for number in range(4):
        mine = table[block == number]
        assert len(mine[["y", "x"]].floordiv(128).drop_duplicates()) == 1
    one = loader(samples, 8, shuffle="blocks", mix=1, seed=4)
    orders = []
    for epoch in range(3):
        one.set_epoch(epoch)
        rows = np.concatenate([one.rows(step) for step in range(len(one))])
        assert sorted(rows) == list(range(len(samples))), "each once"
        assert (np.diff(block[rows]) != 0).sum() == 3, "a block is never returned to"
        orders.append(rows.tolist())
    assert len({tuple(block[np.array(o)[::128]]) for o in orders}) > 1
    two = loader(samples, 8, shuffle="blocks", mix=2, seed=4)
    half = len(samples) // 2
    rows = np.concatenate([two.rows(step) for step in range(len(two))])
    assert len(np.unique(block[rows[:half]])) == 2
    assert (np.diff(block[rows]) != 0).sum() > half / 2, "and the two are mixed"
    ranks = [loader(samples, 4, shuffle="blocks", mix=2, seed=4, rank=r, world=2) for r in (0, 1)]
    for step in range(len(two)):
        shared = np.concatenate([r.rows(step) for r in ranks])
        assert sorted(shared) == sorted(two.rows(step))
    state = two.state_dict()
    assert all(type(v) is int for v in state.values())
    loader(samples, 8, shuffle="blocks", mix=2, seed=4).load_state_dict(state)
    for other in (one, loader(samples, 8, seed=4), loader(samples, 8, shuffle=False, seed=4)):
        with pytest.raises(CubeError, match="shuffle or mix was another"):
            other.load_state_dict(state)
    with pytest.raises(CubeError, match="True, False or 'blocks'"):
        loader(samples, 8, shuffle="block")


def test_crops_need_whole_cells(crops: Samples) -> None:
    with pytest.raises(CubeError, match=r"would part the 4 crops.*such as 4 or 8"):
        loader(crops, 6)
    with pytest.raises(CubeError, match=r"multiple of 4, such as 4$"):
        loader(crops, 3)
    with pytest.raises(CubeError, match="do not hold all 4 crops"):
        loader(crops.take(np.arange(2, 10)), 4)
    assert len(loader(crops.take(np.arange(8, 20)), 4)) == 3


@pytest.mark.parametrize("at", [0, 1, 3, 4, 6])
def test_resume_is_exact(samples: Samples, reference: list[Any], at: int) -> None:
    flat = list(chain(*reference))
    one = loader(samples, 4, seed=7)
    seen = []
    state = json.dumps(one.state_dict())
    while len(seen) < at:
        for batch in one:
            seen.append(digest(batch))
            state = json.dumps(one.state_dict())
            if len(seen) == at:
                break
    two = loader(samples, 4, seed=7, threads=1)
    two.load_state_dict(json.loads(state))
    while len(seen) < len(flat):
        seen += [digest(b) for b in two]
    assert seen == flat


def test_resume_refuses_what_is_not_the_same(samples: Samples) -> None:
    state = loader(samples, 4, seed=7).state_dict()
    assert all(type(v) is int for v in state.values())
    others = [
        (loader(samples.take(np.arange(12)), 4, seed=7), "other samples.*fingerprint"),
        (loader(samples, 4, seed=8), "another seed"),
        (loader(samples, 2, seed=7), "another batch size"),
        (loader(samples.select(["s2/scl"]), 4, seed=7), "other samples"),
        (loader(samples, 4, seed=7, shuffle=False), "shuffle or mix was another"),
        (loader(samples, 4, seed=7, drop_last=False), "drop_last was another"),
    ]
    for other, match in others:
        with pytest.raises(CubeError, match=match):
            other.load_state_dict(state)
    loader(samples, 2, seed=7, world=2).load_state_dict(state)  # same global batch


def test_a_pass_broken_off_is_followed_by_the_next_epoch(samples: Samples) -> None:
    one = loader(samples, 4)
    next(iter(one))
    gc.collect()
    assert len(list(one)) == 4
    assert one.epoch == 1
    still = loader(samples, 4, shuffle=False, drop_last=False)
    first, second = passes(still, 2)
    assert first == second, "without shuffling every pass is the same"
    assert ids(still)[0] == [0, 1, 2, 3]


def test_buffers_are_reused_but_never_under_a_batch(samples: Samples) -> None:
    big = samples.take(np.arange(12).repeat(4))
    one = loader(big, 2)
    addresses = {b.place.data_ptr() for b in one}
    assert len(addresses) <= one.stream.prefetch + 2, "24 batches in a ring"
    kept, copies = [], []
    for batch in one:
        kept.append(batch.stored["s2/reflectance"][1])  # a view of a view is enough
        copies.append(kept[-1].clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    assert batch.clone().place.data_ptr() != batch.place.data_ptr()


def test_loader_errors(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("did you mean 'shuffle'", {"shufle": True}),
        ("inherits the locks", {"context": "fork"}),
        ("rank 2 of 2", {"rank": 2, "world": 2}),
        ("do not fill one batch of 4 x 8 ranks", {"world": 8}),
        ("prefetch=0", {"prefetch": 0}),
    ]
    for match, how in cases:
        with pytest.raises(CubeError, match=match):
            loader(samples, 4, **how)
    with pytest.raises(CubeError, match="no samples to load"):
        loader(samples.take([]), 1)

    class Tiny:
        free = 1000

    monkeypatch.setattr(workers_module.shutil, "disk_usage", lambda _: Tiny)
    with pytest.raises(CubeError, match=r"MiB of shared memory.*shm-size"):
        next(iter(loader(samples, 4, workers=1)))


def test_damage_reaches_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "bad.zarr"
    streams.write_store(path, shape=(64, 64), layers=("s1/backscatter",), s1=4)
    shard = next(p for p in (path / "s1" / "backscatter" / "c").rglob("*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[100] ^= 4
    shard.write_bytes(data)
    with pytest.raises(CubeError, match=r"fails its crc32c.*cubes\.repair"):
        list(loader(plan(path, Window(size=64, dates=4)), 1))


def test_plain_dataloader(samples: Samples) -> None:
    dataset = SampleDataset(samples, epoch=3)
    plain = torch.utils.data.DataLoader(dataset, batch_size=3)
    batch = next(iter(plain))
    want = samples.read([0, 1, 2], epoch=3)
    assert batch.keys() == want.keys()
    for name, value in batch.items():
        np.testing.assert_array_equal(value.numpy(), want[name])
    forked = torch.utils.data.DataLoader(dataset, num_workers=1, multiprocessing_context="fork")
    with pytest.raises(CubeError, match="forked"):
        next(iter(forked))


# --------------------------------------------------------------------------------------- inputs


@pytest.fixture(scope="module")
def norm(samples: Samples) -> Normaliser:
    return Normaliser.of(stats(samples), samples.layers)


def test_channel_order_follows_the_rows(norm: Normaliser) -> None:
    groups = norm.groups()
    assert {g: [layer.name for layer in rows] for g, rows in groups.items()} == {
        "s1": ["s1/backscatter", "insar/coherence", "insar/phase", "s1/incidence"],
        "s2": ["s2/reflectance"],
        "static": ["terrain/elevation"],
    }
    assert [c for layer in groups["s1"] for c in norm.channels(layer)] == [
        "vv", "vh", "vv", "vh", "vv cos", "vv sin", "vh cos", "vh sin", "incidence",
    ]  # fmt: skip


def test_inputs_equal_numpy(samples: Samples, norm: Normaliser) -> None:
    batch = next(iter(loader(samples, 4, shuffle=False)))
    x = inputs(batch, norm)
    s1 = x["s1"]
    assert s1["x"].shape == (4, 4, 9, 64, 64)
    assert s1["x"].dtype == torch.float32
    assert s1["valid"].shape == (4, 4, 4, 64, 64)
    for name, channel, start in (("s1/backscatter", 1, 0), ("insar/coherence", 0, 2)):
        layer = samples.layers[name]
        value = physics.decode(batch.stored[name].numpy(), layer)[:, :, channel]
        want = (value - norm.mean[name][channel]) / norm.std[name][channel]
        got = s1["x"][:, :, start + channel].numpy()
        np.testing.assert_allclose(got, np.nan_to_num(want), atol=2e-5)
        everywhere = physics.valid(batch.stored[name].numpy(), layer).all(axis=2)
        which = [row.name for row in norm.groups()["s1"]].index(name)
        np.testing.assert_array_equal(s1["valid"][:, :, which].numpy(), everywhere)
    phase = physics.decode(batch.stored["insar/phase"].numpy(), samples.layers["insar/phase"])
    both = np.stack([np.cos(phase), np.sin(phase)], axis=3).reshape(4, 4, 4, 64, 64)
    np.testing.assert_allclose(s1["x"][:, :, 4:8].numpy(), np.nan_to_num(both), atol=1e-5)
    assert not s1["valid"][:, 0, 1].any(), "the first date of a track has no pair"
    assert s1["valid"][:, 0, 0].any()


def test_inputs_incidence_follows_the_track(samples: Samples, norm: Normaliser) -> None:
    batch = next(iter(loader(samples, 4)))
    x = inputs(batch, norm, layers=["s1/incidence"])["s1"]["x"]
    plane = physics.decode(batch.stored["s1/incidence"].numpy(), samples.layers["s1/incidence"])
    assert batch.track is not None
    mean, std = norm.mean["s1/incidence"][0], norm.std["s1/incidence"][0]
    for b in range(4):
        for t in range(4):
            want = (plane[b, int(batch.track[b, t]), 0] - mean) / std
            np.testing.assert_allclose(x[b, t, 0].numpy(), want, atol=2e-5)
    assert set(batch.track.unique().tolist()) == {0, 1}


def test_inputs_masks_and_padding(cube: Any, norm: Normaliser) -> None:
    samples = plan(cube[0], Window(size=64, dates=3, period="14D"), min_valid=0, max_gap=None)
    batch = next(iter(loader(samples, len(samples))))
    x = inputs(batch, norm)
    s2, s1 = x["s2"], x["s1"]
    assert (~s2["present"]).any()
    padded = ~s2["present"]
    assert (s2["days"][padded] == 0).all()
    assert not s2["valid"][padded].any()
    assert not s2["clear"][padded].any()
    assert (s2["x"][padded] == 0).all()
    assert torch.isfinite(s1["x"]).all()
    clear = batch.stored["s2/clear"].bool()
    assert torch.equal(s2["clear"], clear & s2["present"][:, :, None, None, None])
    assert not torch.equal(s2["clear"], s2["valid"]), "clouds are valid pixels"
    assert abs(float(s2["x"][s2["clear"].expand_as(s2["x"])].mean())) < 0.1
    assert x["static"]["x"].shape == (len(samples), 1, 64, 64)
    assert x["static"]["valid"].all()


def test_inputs_of_some_layers(samples: Samples, norm: Normaliser) -> None:
    batch = next(iter(loader(samples.select(["s1/backscatter", "s2/scl"]), 2)))
    assert list(inputs(batch, norm)) == ["s1"]
    assert inputs(batch, norm)["s1"]["x"].shape[2] == 2
    with pytest.raises(CubeError, match="the batch has no s2/reflectance"):
        inputs(batch, norm, layers=["s2/reflectance"])
    with pytest.raises(CubeError, match="no layer 's2/ndvi'"):
        inputs(batch, norm, layers=["s2/ndvi"])


def test_normaliser_round_trip(norm: Normaliser, samples: Samples) -> None:
    text = norm.to_json()
    again = Normaliser.from_json(text)
    assert again.to_json() == text
    json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    batch = next(iter(loader(samples, 2)))
    one, two = inputs(batch, norm), inputs(batch, again)
    assert all(torch.equal(one[g][k], two[g][k]) for g in one for k in one[g])


def test_normaliser_refuses_layers_without_pixels(cube: Any, samples: Samples) -> None:
    found = stats(samples.select(["s1/backscatter"]))
    with pytest.raises(CubeError, match="no statistics of s1/incidence"):
        Normaliser.of(found, samples.layers)
    empty = found.assign(count=found["count"] * 0)
    with pytest.raises(CubeError, match="s1/backscatter has no valid pixel"):
        Normaliser.of(empty, samples.select(["s1/backscatter"]).layers)


def test_stream_defaults_are_documented() -> None:
    assert Stream() == Stream(shuffle=True, drop_last=True, rank=0, world=1, threads=2, prefetch=2)
