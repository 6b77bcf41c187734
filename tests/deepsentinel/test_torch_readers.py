"""What needs torch beside the data side: the loader over object stores, xbatcher's own dataset."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray as xr
import xbatcher

from benchmarks.slow import Slow
from cubes import Layout, Storage, Window, plan
from deepsentinel import loader


def streams() -> ModuleType:
    """Return the helper of the data side that writes stores."""
    path = Path(__file__).parents[1] / "cubes" / "streams.py"
    spec = importlib.util.spec_from_file_location("streams", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.timeout(120)
def test_the_loader_streams_from_s3_with_threads_and_workers(tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="pip install deepsentinel[cloud]")
    window = Window(size=64, dates=4)
    folder = tmp_path / "bucket"
    streams().write_store(folder / "c.zarr", shape=(128, 128), s1=8, layout=Layout(patch=64))
    server = Slow(tmp_path)
    try:
        options = {
            "endpoint": server.url, "access_key_id": "k", "secret_access_key": "s",
            "region": "us-east-1",
        }  # fmt: skip
        storage = Storage(options=options, cache=tmp_path / "cache")
        there = plan("s3://bucket/c.zarr", window, storage=storage)
        wanted = [batch.clone() for batch in loader(plan(folder / "c.zarr", window), 2, seed=5)]
        for workers in (0, 2):
            one = loader(there, 2, seed=5, workers=workers, timeout=50)
            found = [batch.clone() for batch in one]
            one.close()
            assert len(found) == len(wanted) == 2
            for a, b in zip(found, wanted, strict=True):
                for name, values in b.stored.items():
                    assert (a.stored[name] == values).all(), name
                assert (a.place == b.place).all()
    finally:
        server.close()


def cube(size: int) -> xr.Dataset:
    values = np.arange(size * size, dtype="i4").reshape(size, size)
    return xr.Dataset({"v": (("y", "x"), values)})


def test_xbatcher_s_map_dataset_has_no_batches() -> None:
    from xbatcher.loaders.torch import MapDataset

    dataset = MapDataset(xbatcher.BatchGenerator(cube(8)["v"], {"y": 4, "x": 4}))
    assert not hasattr(dataset, "__getitems__"), (
        "xbatcher's MapDataset now takes whole batches: compare it with our SampleDataset"
    )
    with pytest.raises(NotImplementedError, match="single integer"):
        dataset[[0, 1]]
    both = cube(8).assign(w=cube(8)["v"])
    two = MapDataset(xbatcher.BatchGenerator(both, {"y": 4, "x": 4}))
    with pytest.raises(ValueError, match="squeeze"):  # several layers become no dict of tensors
        two[0]
