"""The real road: a field in Belgium and five places in the world, from files to scores and maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

import cubes
import deepsentinel
from deepsentinel import Options, assess

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent.parent / "real"
FIELD = GeoBox((64, 64), Affine(10, 0, 501360, 0, -10, 5629680), "EPSG:32631")
LAYERS = ("s1/backscatter", "s2/reflectance", "s2/scl", "s2/clear")


def test_gaps_of_a_field_in_flanders(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NDVI of clear dates, one block of 45 days in three held out, all contenders on a par."""
    monkeypatch.setenv("DEEPSENTINEL_REAL", str(real))
    whole, known = tmp_path / "flanders.zarr", tmp_path / "known.zarr"
    request = cubes.Request.of(
        (3.0194, 50.8132, 3.0283, 50.8188),
        "2017-08/2018-11",
        LAYERS,
        catalog=HERE / "flanders.toml",
        grid=FIELD,
    )
    cubes.write(request, whole)
    rest, held = cubes.withhold(cubes.open(whole), "45D", every=3)
    cubes.write(rest, known)
    assert cubes.open(whole)["s2"].sizes["time"] == 118
    assert cubes.open(known)["s2"].sizes["time"] == 118 - 39

    learn = cubes.Window(size=64, dates=16, period="135D", step="15D")
    ask = cubes.Window(size=64, dates=64, period="135D")
    train = cubes.plan(known, learn, max_gap=None)
    test = cubes.plan(whole, ask, max_gap=None)
    recipe = deepsentinel.load_recipe("flanders", ["train.steps=12"])
    run = deepsentinel.train(recipe, {"train": train}, out=tmp_path / "run")
    model = deepsentinel.Fusion.from_pretrained(run.model)
    options = Options(held=held, tile=16, pixels=512, batch_size=1, draws=200)
    found = assess(model, test, task="ndvi", train_samples=train, options=options)
    table = found.table
    floors = {"ridge", "linear interpolation", "last clear date", "month climatology"}
    assert {"model", *floors} <= set(table.index)
    assert table["pixels"].nunique() == 1
    assert table["pixels"].iloc[0] > 5000
    # After 12 steps nothing is claimed of the model; what lies on both sides of a gap tells a lot.
    assert table.loc["linear interpolation", "skill"] > 0.3
    assert table["gain_low"].lt(table["gain_high"]).drop("model").all()
    assert table["tiles"].iloc[0] == 16
    assert table["blocks"].iloc[0] == 3  # the last of the four spans is in no whole period
    assert "random encoder" in table.index

    embedding = deepsentinel.embed(model, known, tmp_path / "embedding.zarr", dims=64)
    values = embedding["embeddings"]
    assert dict(values.sizes) == {"time": 1, "embedding": 64, "y": 64, "x": 64}
    assert np.isfinite(values).all()
    assert float(values.std("x").mean()) > 0.05  # fields differ


def test_five_places_of_one_date_in_five_zones(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEPSENTINEL_REAL", str(real))
    stores = []
    for number, path in enumerate(sorted((real / "places" / "sentinel-2-l2a").glob("*/*.json"))):
        item = json.loads(path.read_text())
        shape, transform = (item["assets"]["B02"][f"proj:{k}"] for k in ("shape", "transform"))
        request = cubes.Request.of(
            tuple(item["bbox"]),
            "2015/2025",
            ("s1/backscatter", "s2/reflectance", "labels/io-lulc"),
            catalog=HERE / "places.toml",
            grid=GeoBox(tuple(shape), Affine(*transform[:6]), item["properties"]["proj:code"]),
        )
        stores.append(tmp_path / f"{number}.zarr")
        assert cubes.write(request, stores[-1]).state == "sealed"
    samples = cubes.plan(stores, cubes.Window(size=64, dates=2), max_gap=None, min_valid=0.9)
    assert len(set(samples.table()["crs"])) == 5
    parts = cubes.split(samples, by="aoi", fractions=(0.6, 0.4), seed=1)
    recipe = deepsentinel.load_recipe("flanders", ["train.steps=4"])
    run = deepsentinel.train(recipe, {"train": parts["train"]}, out=tmp_path / "run")
    model = deepsentinel.Fusion.from_pretrained(run.model)
    found = assess(model, parts["test"], task="landcover", train_samples=parts["train"])
    assert found.table["pixels"].iloc[0] > 10_000
    assert found.meta["origin"] == "mapped"  # so the score is agreement with the product
