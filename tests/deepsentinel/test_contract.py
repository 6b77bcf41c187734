"""What a model takes and what a cube holds: other form is reconciled, other meaning refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import cubes
from cubes import registry
from cubes.types import CubeError, Layout
from deepsentinel.embedding.embed import embed
from deepsentinel.evaluation.evaluate import Options, evaluate
from deepsentinel.evaluation.tasks import stream
from deepsentinel.loading.batch import loader
from deepsentinel.loading.normalise import Normaliser, inputs
from deepsentinel.model import Fusion
from deepsentinel.recipe import load_recipe
from deepsentinel.training.sources import CubeSource

SHAPE = (64, 96)
FAST = Options(draws=20, train_pixels=200, pixels=16, tile=32, controls=False)
Change = Callable[[dict[str, xr.Dataset]], None]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def groups(land: ModuleType, seed: int = 2) -> dict[str, xr.Dataset]:
    tree = land.landscape(shape=SHAPE, seed=seed, hole=False)
    return {g: tree[g].to_dataset(inherit=False) for g in tree.children}


def store(path: Path, parts: dict[str, xr.Dataset]) -> Path:
    tree = xr.DataTree.from_dict(
        {"/": xr.Dataset(attrs={"aoi": "a"}), **{f"/{g}": d for g, d in parts.items()}}
    )
    cubes.write(tree, path, layout=Layout(patch=32))
    return path


@pytest.fixture(scope="module")
def plain(land: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store(tmp_path_factory.mktemp("plain") / "plain.zarr", groups(land))


@pytest.fixture(scope="module")
def model(land: ModuleType, plain: Path) -> Any:
    return land.model(plain, reach=1)


@pytest.fixture(scope="module")
def dense(model: Any, plain: Path) -> np.ndarray:
    return values(model, plain)


def values(model: Any, path: Path) -> np.ndarray:
    made: np.ndarray = embed(model, path, dims=16, dtype="float32")["embeddings"].to_numpy()
    return made


def fed(model: Any, land: ModuleType, path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return what an evaluation feeds the model of the first batch."""
    return next(iter(stream(model, land.samples(path), Options(batch_size=4)))).x


def reversed_bands(parts: dict[str, xr.Dataset]) -> None:
    parts["s2"] = parts["s2"].isel(band=[3, 2, 1, 0])
    parts["s1"] = parts["s1"].isel(pol=[1, 0])


def another_band(parts: dict[str, xr.Dataset]) -> None:
    data = parts["s2"]
    more = data[["reflectance"]].isel(band=[0]).assign_coords(band=["B02"]) * 0 + 0.3
    both = xr.concat([more["reflectance"], data["reflectance"]], "band")
    parts["s2"] = data.drop_dims("band").assign(reflectance=both)


@pytest.mark.parametrize("change", [reversed_bands, another_band])
def test_channels_go_by_their_names(
    change: Change, model: Any, dense: np.ndarray, plain: Path, land: ModuleType, tmp_path: Path
) -> None:
    parts = groups(land)
    change(parts)
    path = store(tmp_path / "other.zarr", parts)
    mine, want = fed(model, land, path), fed(model, land, plain)
    for group, data in want.items():
        for key, value in data.items():
            assert torch.equal(mine[group][key], value), (group, key)
    np.testing.assert_array_equal(values(model, path), dense)
    item = next(iter(stream(model, land.samples(path), Options(batch_size=4))))
    assert item.layer("s2/reflectance").channels == land.BANDS  # what the floors are made of


def test_another_scale_is_the_same_ground(
    model: Any,
    dense: np.ndarray,
    plain: Path,
    land: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = registry._rows.table("layers")
    row = table["s1/backscatter"]
    monkeypatch.setitem(table, "s1/backscatter", {**row, "scale": 0.005, "nodata": -32767})
    path = store(tmp_path / "other.zarr", groups(land))
    monkeypatch.undo()
    name = "s1/backscatter"
    here, there = cubes.open(path)[name], cubes.open(plain)[name]
    assert 0 < float(abs(here - there).max()) < 0.0051, "the two stores differ by rounding alone"
    mine, want = fed(model, land, path)["s1"]["x"], fed(model, land, plain)["s1"]["x"]
    assert float((mine - want).abs().max()) < 0.01
    assert float(np.nanmax(abs(values(model, path) - dense))) < 0.05


@pytest.mark.parametrize("use", ["evaluate", "embed"])
def test_another_calibration_is_refused(
    use: str, model: Any, plain: Path, land: ModuleType, tmp_path: Path
) -> None:
    parts = groups(land)
    parts["s1"]["backscatter"].attrs["calibration"] = "sigma0"
    path = store(tmp_path / "sigma.zarr", parts)
    learn, test = land.samples(plain), land.samples(path)
    ways: dict[str, Callable[[], Any]] = {
        "embed": lambda: embed(model, path),
        "evaluate": lambda: evaluate(
            model, test, task="landcover", train_samples=learn, options=FAST
        ),
    }
    with pytest.raises(CubeError, match=r"calibration 'sigma0'.*'gamma0_rtc'.*convert the data"):
        ways[use]()


@pytest.mark.parametrize("use", ["evaluate", "embed"])
def test_lacking_channels_are_refused(
    use: str, model: Any, plain: Path, land: ModuleType, tmp_path: Path
) -> None:
    parts = groups(land)
    parts["s2"] = parts["s2"].isel(band=[0, 1, 2])
    path = store(tmp_path / "few.zarr", parts)
    why = r"B03, B04, B08, and this model takes B03, B04, B08, B11: B11 is missing"
    learn, test = land.samples(plain), land.samples(path)
    ways: dict[str, Callable[[], Any]] = {
        "embed": lambda: embed(model, path),
        "evaluate": lambda: evaluate(
            model, test, task="landcover", train_samples=learn, options=FAST
        ),
    }
    with pytest.raises(CubeError, match=why):
        ways[use]()


def test_no_dated_layer_is_refused(model: Any, land: ModuleType, tmp_path: Path) -> None:
    parts = groups(land)
    path = store(tmp_path / "labels.zarr", {g: parts[g] for g in ("labels", "terrain")})
    with pytest.raises(CubeError, match=r"none of the dated layers.*s1/backscatter"):
        embed(model, path)


@pytest.mark.parametrize("lost", [["insar"], ["s2"], ["insar", "terrain"], ["s1"]])
def test_a_layer_that_is_not_there_is_absent_and_not_refused(
    lost: list[str], model: Any, dense: np.ndarray, plain: Path, land: ModuleType, tmp_path: Path
) -> None:
    parts = groups(land)
    for name in lost:
        del parts[name]
    path = store(tmp_path / "few.zarr", parts)
    mine, want = fed(model, land, path), fed(model, land, plain)
    assert set(mine) == set(want) - ({"s2"} & set(lost)) - (
        {"static"} if "terrain" in lost else set()
    )
    for group, data in mine.items():
        assert data["x"].shape[-3] == want[group]["x"].shape[-3]
        rows = [r["name"].split("/")[0] for r in model.config.layers(group)]
        gone = [i for i, name in enumerate(rows) if name in lost]
        assert not data["valid"][..., gone, :, :].any()
        if "s1" not in lost:
            kept = [i for i, name in enumerate(rows) if name not in lost]
            assert torch.equal(
                data["valid"][..., kept, :, :], want[group]["valid"][..., kept, :, :]
            )
    got = values(model, path)
    assert np.isfinite(got).all()
    assert not np.allclose(got, dense, atol=1e-3)


def test_a_lacking_incidence_is_absent(model: Any, land: ModuleType, tmp_path: Path) -> None:
    parts = groups(land)
    parts["s1"] = parts["s1"].drop_vars(["incidence", "track"])
    path = store(tmp_path / "few.zarr", parts)
    assert np.isfinite(values(model, path)).all()
    table = evaluate(
        model, land.samples(path), task="landcover", train_samples=land.samples(path), options=FAST
    )
    assert "model" in table.index


def test_a_cube_without_a_cloud_mask_keeps_its_sentinel_2_beside_one_that_has_it(
    model: Any, plain: Path, land: ModuleType, tmp_path: Path
) -> None:
    parts = groups(land, seed=3)
    parts["s2"] = parts["s2"].drop_vars(["clear", "scl"])
    bare = store(tmp_path / "bare.zarr", parts)
    both = cubes.plan([plain, bare], cubes.Window(size=32, dates=9), min_valid=0.0)
    share: dict[int, list[float]] = {0: [], 1: []}
    for item in stream(model, both, Options(batch_size=1)):
        s2 = item.x["s2"]
        usable = s2["valid"] & s2["clear"] & s2["present"][:, :, None, None, None]
        share[int(item.batch.place[0, 0])].append(float(usable.float().mean()))
    assert np.mean(share[1]) == 1.0, "no mask hides nothing"
    assert 0.5 < np.mean(share[0]) < 0.95


def test_a_mask_of_something_else_is_no_cloud_mask(plain: Path, land: ModuleType) -> None:
    parts = land.samples(plain)
    norm = Normaliser.of(cubes.stats(parts), parts.layers)
    water = replace(norm.layers["s2/clear"], name="s1/water")
    batch = next(iter(loader(parts, 2)))
    stored = {**batch.stored, "s1/water": torch.zeros_like(batch.stored["s2/clear"])}
    made = inputs(
        replace(batch, stored=stored), replace(norm, layers={**norm.layers, "s1/water": water})
    )
    assert "clear" not in made["s1"]
    assert "clear" in made["s2"]


def test_a_constant_channel_is_not_blown_up(plain: Path, land: ModuleType) -> None:
    parts = land.samples(plain)
    found = cubes.stats(parts)
    flat = (found["layer"] == "terrain/elevation").to_numpy()
    found["std"][flat] = 0.0
    norm = Normaliser.of(found, parts.layers)
    assert norm.std["terrain/elevation"] == (1.0,)
    made = inputs(next(iter(loader(parts, 4))), norm)
    assert float(made["static"]["x"].abs().max()) < 1000


def test_statistics_of_other_layers_are_refused(model: Any, plain: Path) -> None:
    body = json.loads(json.dumps(dict(model.config.normaliser)))
    body["layers"]["s2/reflectance"]["channels"] = ["B11", "B08", "B04", "B03"]
    wrong = Fusion(replace(model.config, normaliser=body))
    with pytest.raises(CubeError, match="statistics are of"):
        embed(wrong, plain)
    broken = Fusion(replace(model.config, normaliser={"layers": 3}))
    with pytest.raises(CubeError, match=r"cannot be read.*config\.json"):
        embed(broken, plain)


def test_validation_samples_keep_the_contract_of_training(
    plain: Path, land: ModuleType, tmp_path: Path
) -> None:
    recipe = load_recipe("default", ["data.batch_size=2"])
    parts = land.samples(plain)
    norm = Normaliser.of(cubes.stats(parts), parts.layers)
    learned = CubeSource(parts, recipe, norm, learn=True)
    other = groups(land, seed=4)
    reversed_bands(other)
    del other["insar"]
    watched = CubeSource(
        land.samples(store(tmp_path / "val.zarr", other)),
        recipe, norm, learn=False, contract=learned.contract,
    )  # fmt: skip
    g = torch.Generator()
    mine, theirs = (s.inputs(next(iter(s)).batch, g) for s in (watched, learned))
    assert {k: v["x"].shape for k, v in mine.items()} == {
        k: v["x"].shape for k, v in theirs.items()
    }
    other["s1"]["backscatter"].attrs["calibration"] = "sigma0"
    sigma = land.samples(store(tmp_path / "sigma.zarr", other))
    with pytest.raises(CubeError, match="calibration 'sigma0'"):
        CubeSource(sigma, recipe, norm, learn=False, contract=learned.contract)


def test_the_first_validation_batches_are_of_everywhere(plain: Path, land: ModuleType) -> None:
    """Plan order would watch one corner: what has the weather of one place."""
    recipe = load_recipe("default", ["data.batch_size=2"])
    parts = cubes.plan(plain, cubes.Window(size=16, dates=4), min_valid=0.0)
    norm = Normaliser.of(cubes.stats(parts), parts.layers)
    source = CubeSource(parts, recipe, norm, learn=False)
    some = [next(iter(source)).batch.place[:, 1:3]]
    source.rewind()
    for _, fetched in zip(range(5), source, strict=False):
        some.append(fetched.batch.place[:, 1:3])
    rows = torch.cat(some[1:])
    assert len(set(rows[:, 0].tolist())) >= 3, "of the four rows of windows"
    assert torch.equal(some[0], some[1]), "the same ones every time"
    again = CubeSource(parts, replace(recipe, seed=5), norm, learn=False)
    assert torch.equal(next(iter(again)).batch.place[:, 1:3], some[0]), "for every seed"
