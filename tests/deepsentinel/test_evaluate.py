"""Evaluation on landscapes with known answers: it finds what is there, and nothing that is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cubes.types import CubeError
from deepsentinel.evaluation.evaluate import Evaluation, Options, assess, evaluate
from deepsentinel.evaluation.gaps import truth_ndvi
from deepsentinel.evaluation.tasks import stream

EPOCH, DAY = np.datetime64("2000-01-01", "s"), np.timedelta64(1, "D")
FAST = Options(batch_size=8, draws=200, controls=False, tile=32, train_pixels=1500, pixels=128)


class Stub(nn.Module):
    """A model in whose place a test answers; keeps the configuration of a real one."""

    def __init__(self, config: Any, dense: Any = None, predict: Any = None) -> None:
        super().__init__()
        self.config, self.answer, self.guess = config, dense, predict
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"dense": self.answer(x)}

    def predict(self, x: dict[str, dict[str, Tensor]], query: dict[str, Any]) -> Tensor:
        answer: Tensor = self.guess(x, query)
        return answer


def mean_colour(x: dict[str, dict[str, Tensor]]) -> Tensor:
    """Return the mean over clear dates of every Sentinel-2 channel, (B, C, H, W)."""
    s2 = x["s2"]
    good = (s2["valid"] & s2["clear"]).float()
    return (s2["x"] * good).sum(1) / good.sum(1).clamp(min=1)


def noise(x: dict[str, dict[str, Tensor]]) -> Tensor:
    """Return features that know nothing."""
    b, _, _, h, w = x["s2"]["x"].shape
    return torch.randn(b, 16, h, w, generator=torch.Generator().manual_seed(h * b))


@pytest.fixture(scope="module")
def config(land: ModuleType, fields: dict[str, Path]) -> Any:
    return land.model(fields["train"]).config


@pytest.fixture(scope="module")
def parts(land: ModuleType, fields: dict[str, Path]) -> dict[str, Any]:
    return {role: land.samples(path) for role, path in fields.items()}


def run(stub: Stub, parts: dict[str, Any], task: str, options: Options = FAST) -> Evaluation:
    return assess(stub, parts["test"], task=task, train_samples=parts["train"], options=options)


def test_landcover_finds_what_features_hold_and_nothing_in_noise(
    config: Any, parts: dict[str, Any]
) -> None:
    good = run(Stub(config, mean_colour), parts, "landcover")
    bad = run(Stub(config, noise), parts, "landcover")
    table = good.table
    assert table.loc["model", "mIoU"] > 0.9
    assert table.loc["pixel statistics", "mIoU"] > 0.9
    assert bad.table.loc["model", "mIoU"] < 0.25
    assert bad.table.loc["pixel statistics", "gain_high"] < -0.5
    assert table.loc["majority class", "gain_low"] > 0.5
    assert (table["mIoU_low"] <= table["mIoU"]).all()
    assert (table["mIoU"] <= table["mIoU_high"]).all()
    assert good.meta["names"][0] == "tree cover"


def test_unlabelled_pixels_are_never_scored(
    config: Any, parts: dict[str, Any], land: ModuleType
) -> None:
    found = run(Stub(config, mean_colour), parts, "landcover")
    truth = land.landscape(seed=2)["labels"]["worldcover"].to_numpy()[0]
    assert found.table.loc["model", "pixels"] == (truth != 0).sum() < truth.size
    confusion = found.arrays["confusion/model"]
    assert confusion.sum() == (truth != 0).sum()
    here = [found.meta["codes"].index(c) for c in land.CLASSES]
    np.testing.assert_array_equal(
        confusion.sum(1)[here], [(truth == c).sum() for c in land.CLASSES]
    )
    assert np.delete(confusion.sum(1), here).sum() == 0
    np.testing.assert_array_equal(found.arrays["map/truth"], truth)
    assert (found.arrays["map/model"][truth == 0] != 0).all()  # mapped, though not scored


def test_nothing_labelled_is_an_error(config: Any, land: ModuleType, tmp_path: Path) -> None:
    tree = land.landscape(shape=(64, 64), hole=False)
    tree["labels"]["worldcover"][...] = 0
    import cubes
    from cubes.types import Layout

    cubes.write(tree, tmp_path / "bare.zarr", layout=Layout(patch=64))
    bare = land.samples(tmp_path / "bare.zarr")
    stub = Stub(config, mean_colour)
    with pytest.raises(CubeError, match="no labelled pixel in the training samples"):
        run(stub, {"train": bare, "test": bare}, "landcover")
    land.write(tmp_path / "full.zarr", shape=(64, 64), hole=False)
    full = land.samples(tmp_path / "full.zarr")
    with pytest.raises(CubeError, match="no labelled pixel in the test samples"):
        run(stub, {"train": full, "test": bare}, "landcover")
    with pytest.raises(CubeError, match="worldcover"):
        run(stub, {"train": full, "test": full}, "landcover", Options(label="labels/x"))


def test_scores_do_not_depend_on_the_batch_size(config: Any, parts: dict[str, Any]) -> None:
    stub = Stub(config, mean_colour)
    small = run(stub, parts, "landcover", replace(FAST, batch_size=3))
    large = run(stub, parts, "landcover", replace(FAST, batch_size=16))
    np.testing.assert_allclose(small.table, large.table, atol=5e-3)


def test_sensors_can_be_withheld_from_model_and_baselines(
    config: Any, parts: dict[str, Any]
) -> None:
    seen: list[set[str]] = []

    def radar_only(x: dict[str, dict[str, Tensor]]) -> Tensor:
        seen.append(set(x))
        return x["s1"]["x"].mean(1)

    options = replace(FAST, sensors=("s1",))
    table = run(Stub(config, radar_only), parts, "landcover", options).table
    assert seen
    assert all(s == {"s1"} for s in seen)
    # reflectance told the classes apart; backscatter follows vigour, not class
    assert table.loc["pixel statistics", "mIoU"] < 0.4


def truth_like(land: ModuleType, config: Any, seed: int) -> Any:
    """Return a predictor that reads the greenness out of VV at the nearest date."""
    names = config.channels("s2")
    rows = {r["name"]: r for r in config.layers("s1")}["s1/backscatter"]
    red, nir = (names.index(f"s2/reflectance:{b}") for b in ("B04", "B08"))
    s2 = {r["name"]: r for r in config.layers("s2")}["s2/reflectance"]

    def predict(x: dict[str, dict[str, Tensor]], query: dict[str, Any]) -> Tensor:
        assert "s2" not in x, "the task let the model see what it is asked for"
        days = query["days"]
        lag = (x["s1"]["days"][:, None] - days[:, :, None]).abs()
        at = lag.argmin(-1)
        vv = x["s1"]["x"][:, :, 0] * rows["std"][0] + rows["mean"][0]
        b = torch.arange(len(days))[:, None]
        ndvi = ((vv[b, at] + 18) / 12).clamp(-0.9, 0.9)
        out = torch.zeros(*days.shape, len(names), *vv.shape[-2:])
        out[:, :, red] = (0.08 - s2["mean"][1]) / s2["std"][1]
        bright = 0.08 * (1 + ndvi) / (1 - ndvi)
        out[:, :, nir] = (bright - s2["mean"][2]) / s2["std"][2]
        return out

    return predict


def truth_blind(x: dict[str, dict[str, Tensor]], query: dict[str, Any]) -> Tensor:
    return torch.zeros(*query["days"].shape, 4, *x["s1"]["x"].shape[-2:])


def flat(x: dict[str, dict[str, Tensor]]) -> Tensor:
    b, _, _, h, w = x["s1"]["x"].shape
    return torch.zeros(b, 4, h, w)


def test_ndvi_from_radar_where_radar_knows_it(
    config: Any, parts: dict[str, Any], land: ModuleType
) -> None:
    stub = Stub(config, flat, truth_like(land, config, 1))
    found = run(stub, parts, "ndvi")
    table = found.table
    # one radar date in twelve days: the nearest is up to six days of growth away
    assert table.loc["model, decoder alone", "skill"] > 0.8
    assert table.loc["model", "skill"] > table.loc["model, decoder alone", "skill"]
    assert table.loc["ridge", "skill"] > 0.8
    assert table.loc["month climatology", "skill"] == 0
    assert table["pixels"].nunique() == 1
    assert table.loc["model", "R2"] > table.loc["model", "skill"]
    assert 0 < len(found.meta["examples"]) <= 4
    assert np.isfinite(found.arrays["example/0/ridge"]).all()
    assert found.arrays["density/model"].sum() == table.loc["model", "pixels"]


def test_no_skill_where_radar_knows_nothing(config: Any, land: ModuleType, tmp_path: Path) -> None:
    # the negative control: only season is left, and that is the floor itself
    blind = {
        role: land.samples(land.write(tmp_path / f"{role}.zarr", seed=seed, blind=True))
        for role, seed in (("train", 3), ("test", 4))
    }
    table = run(Stub(config, flat, truth_like(land, config, 1)), blind, "ndvi").table
    assert table.loc["ridge", "skill"] < 0.6  # within a month NDVI still moves with the day
    assert table.loc["ridge", "R2"] < 0.75
    informed = table.loc["ridge", "skill"]
    assert table.loc["model, decoder alone", "skill"] < informed


def test_only_clear_pixels_are_scored(config: Any, parts: dict[str, Any]) -> None:
    # clouds are bright and grey (NDVI 0): scoring one would cost dearly
    found = run(
        Stub(config, flat, lambda _, q: torch.zeros(*q["days"].shape, 4, 32, 32)), parts, "ndvi"
    )
    assert found.table.loc["ridge", "MAE"] < 0.05


def test_gaps_hide_the_asked_dates_and_nothing_else(config: Any, parts: dict[str, Any]) -> None:
    asked: list[tuple[int, int]] = []

    def predict(x: dict[str, dict[str, Tensor]], query: dict[str, Any]) -> Tensor:
        s2 = x["s2"]
        gone = ~s2["present"]
        assert not s2["x"][gone].any()
        assert not s2["valid"][gone].any()
        assert not s2["clear"][gone].any()
        asked.append((int(s2["present"].sum()), int(gone.sum())))
        return torch.zeros(*query["days"].shape, 4, *s2["x"].shape[-2:])

    table = run(Stub(config, flat, predict), parts, "ndvi", replace(FAST, gap=20)).table
    everything = replace(FAST, gap=2000)  # one block: no date is left, and nothing to interpolate
    alone = run(Stub(config, flat, truth_blind), parts, "ndvi", everything).table
    assert np.isfinite(alone.loc["linear interpolation", "skill"])
    assert alone["gain_low"].isna().all()
    assert all(there and gone for there, gone in asked)
    assert table.loc["linear interpolation", "skill"] > table.loc["last clear date", "skill"]
    assert {"ridge", "month climatology", "model, decoder alone"} <= set(table.index)


def test_dates_held_out_are_hidden_and_they_alone_are_scored(
    config: Any, parts: dict[str, Any]
) -> None:
    held = (("2022-04-10", "2022-04-20"), ("2022-05-20T12:00:00", "2022-06-08"))
    spans = [[float((np.datetime64(v, "s") - EPOCH) / DAY) for v in span] for span in held]
    views = []

    def inside(days: Any) -> Any:
        return sum((days >= start) & (days < end) for start, end in spans) > 0

    def predict(x: dict[str, dict[str, Tensor]], query: dict[str, Any]) -> Tensor:
        views.append((x["s2"]["days"], x["s2"]["present"]))
        return torch.zeros(*query["days"].shape, 4, *x["s2"]["x"].shape[-2:])

    stub = Stub(config, flat, predict)
    options = replace(FAST, held=held, tile=16, pixels=32 * 32)
    found = run(stub, parts, "ndvi", options)
    assert found.task == "ndvi-gap"
    # in the views that are scored, at the end, all of the 9 dates are there but the 3 held out
    days, present = views[-1]
    assert present.sum(1).tolist() == [6] * len(days)
    assert not (present & inside(days)).any()
    scored, tiles = 0, set()
    for item in stream(stub, parts["test"], options):
        ndvi, at, _ = truth_ndvi(item)
        asked = np.isfinite(ndvi) & inside(at)[:, :, None, None]
        scored += int(asked.sum())
        for b, t in np.argwhere(asked.any((2, 3))):
            block = int(at[b, t] > spans[0][1])
            y, x = np.nonzero(asked[b, t])
            tiles |= {
                (*(int(k) + v // 16 for k, v in zip(place // 16, at_px, strict=True)), block)
                for place in [item.batch.place[b, 1:3].numpy()]
                for at_px in zip(y, x, strict=True)
            }
    table = found.table
    assert table["pixels"].iloc[0] == scored
    # ground by 16 px and spans of dates are drawn each for itself: a cell of both is no witness
    assert table["tiles"].iloc[0] == len({tile[:2] for tile in tiles})
    assert table["blocks"].iloc[0] == len({tile[2] for tile in tiles}) == 2
    assert table.loc["linear interpolation", "skill"] > 0.5
    with pytest.raises(CubeError, match="no clear pixel"):
        run(stub, parts, "ndvi", replace(options, held=(("1999-01-01", "1999-02-01"),)))


def test_the_probe_reads_what_embed_would_write(config: Any, parts: dict[str, Any]) -> None:
    def late(x: dict[str, dict[str, Tensor]]) -> Tensor:
        """Return numbers of which only the last four, after the 64 written, know anything."""
        b, _, _, h, w = x["s2"]["x"].shape
        return torch.cat([torch.zeros(b, 64, h, w), mean_colour(x)], 1)

    def faint(x: dict[str, dict[str, Tensor]]) -> Tensor:
        """Return numbers so far below the largest of the pixel that int8 loses them."""
        known = mean_colour(x)
        return torch.cat([torch.full_like(known[:, :1], 1e4), known], 1)

    def score(answer: Any, **options: Any) -> float:
        found = run(Stub(config, answer), parts, "landcover", replace(FAST, **options))
        assert found.meta["embedding"]["dims"] == (options.get("dims") or 64)
        return float(found.table.loc["model", "mIoU"])

    assert score(late) < 0.25
    assert score(late, dims=68) > 0.9
    assert score(faint) < 0.25
    assert score(faint, dtype="float32") > 0.9
    with pytest.raises(CubeError, match="dims=500: this model's embedding has 1 to 128 numbers"):
        score(late, dims=500)
    with pytest.raises(CubeError, match="choose 'int8' or 'float32'"):
        score(late, dtype="int4")


def test_readouts_see_the_numbers_that_embed_writes(
    land: ModuleType, fields: dict[str, Path]
) -> None:
    from deepsentinel.evaluation.tasks import embedded

    model = land.model(fields["test"])
    item = next(
        stream(model, land.samples(fields["test"], size=128, dates=10).take([0]), Options())
    )
    got = embedded(model, item.x, Options(dims=32))[0]
    y, x = (int(v) for v in item.batch.place[0, 1:3])
    import cubes
    import deepsentinel

    cube = cubes.open(fields["test"], chunks=None)
    cut = cube.isel(y=slice(y, y + 128), x=slice(x, x + 128))
    written = deepsentinel.embed(model, cut, dims=32, overlap=0)["embeddings"][0].to_numpy()
    seen = np.isfinite(written).all(0)
    step = np.abs(written[:, seen]).max(0) / 127
    assert seen.mean() > 0.5
    # the model adds up in another order in windows of another shape: at most a step of int8 apart
    assert (np.abs(got[:, seen] - written[:, seen]) <= 1.01 * step).all()


def test_few_tiles_give_no_interval(config: Any, parts: dict[str, Any], tmp_path: Path) -> None:
    found = run(Stub(config, mean_colour), parts, "landcover", replace(FAST, tile=128))
    table = found.table
    assert table["tiles"].iloc[0] < 8
    for name in ("mIoU_low", "mIoU_high", "gain_low", "gain_high"):
        assert table[name].isna().all(), name
    assert table["gain"].notna().all()
    again = Evaluation.load(found.save(tmp_path), "landcover").table
    assert again["gain_low"].isna().all()
    assert again["gain_low"].dtype == float


def test_the_untrained_model_is_the_trained_one_before_its_first_step(
    land: ModuleType, fields: dict[str, Path]
) -> None:
    from deepsentinel.evaluation.tasks import embedding_meta, random_like

    model = land.model(fields["train"], seed=5, card={"recipe": {"seed": 5}})
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1)
    before = land.model(fields["train"], seed=5).state_dict()
    again = random_like(model, 0).state_dict()
    assert all(torch.equal(before[name], again[name]) for name in before)
    # Five statistics for each of the nine channels over dates; every one of them is read out.
    assert embedding_meta(model, Options()) == {"dims": 64, "dtype": "int8", "measured": 5 * 9}


def test_progress_tells_of_both_passes(config: Any, parts: dict[str, Any]) -> None:
    told: list[tuple[int, int, str]] = []
    assess(
        Stub(config, mean_colour), parts["test"], task="landcover", train_samples=parts["train"],
        options=FAST, progress=lambda done, total, what: told.append((done, total, what)),
    )  # fmt: skip
    n = len(parts["train"])
    assert told[0] == (8, n, "samples, learning")
    assert (n, n, "samples, learning") in told
    assert told[-1] == (len(parts["test"]), len(parts["test"]), "samples, scoring")


def test_an_evaluation_survives_the_disk(
    config: Any, parts: dict[str, Any], tmp_path: Path
) -> None:
    found = run(Stub(config, mean_colour), parts, "landcover")
    again = Evaluation.load(found.save(tmp_path), "landcover")
    np.testing.assert_allclose(again.table, found.table)
    assert list(again.table.index) == list(found.table.index)
    assert again.meta == found.meta
    np.testing.assert_array_equal(again.arrays["map/model"], found.arrays["map/model"])
    with pytest.raises(CubeError, match="run evaluate first"):
        Evaluation.load(tmp_path, "ndvi")


def test_the_real_model_goes_through_with_its_control(
    land: ModuleType, fields: dict[str, Path]
) -> None:
    model = land.model(fields["train"])
    parts = {r: land.samples(p).take(np.arange(6)) for r, p in fields.items()}
    options = Options(draws=50, train_pixels=600, pixels=32)
    cover = evaluate(
        model, parts["test"], task="landcover", train_samples=parts["train"], options=options
    )
    assert "random encoder" in cover.index
    green = evaluate(
        model, parts["test"], task="ndvi", train_samples=parts["train"], options=options
    )
    assert np.isfinite(green["skill"]).all()
    assert "random encoder" in green.index
    # trained or not: a model that is no better than itself untrained has gained nothing
    assert abs(green.loc["random encoder", "gain"]) < 0.2


def test_unknown_task_names_the_nearest(config: Any, parts: dict[str, Any]) -> None:
    with pytest.raises(CubeError, match="did you mean 'landcover'"):
        run(Stub(config), parts, "landcovr")
