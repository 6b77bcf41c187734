"""Training: it learns, it resumes to the last bit, and nothing it writes can be half there."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from toy import GROUPS, Toy, ToySource, landscape

from cubes.types import CubeError
from deepsentinel.loading.batch import Loader
from deepsentinel.model import Fusion, FusionConfig, usable
from deepsentinel.recipe import BOUNDS, ModelRecipe, Recipe, load_recipe, make_recipe
from deepsentinel.training import checkpoint
from deepsentinel.training.augment import Hiding, compact, hide
from deepsentinel.training.objectives import (
    Masked,
    check_names,
    collapse,
    info_nce,
    ndvi,
    ndvi_constants,
    objective,
)
from deepsentinel.training.train import Run, Training, learning_rate, mixed, train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def toy() -> Toy:
    return landscape(3, edge=64, n_s1=6, n_s2=6)


def recipe(*overrides: str) -> Recipe:
    small = ("train.warmup=2", "train.log_every=2", "train.validate_every=4")
    sizes = {"width": 16, "heads": 2, "stem": 4, "detail": 8, "neck": 8, "dims": 16}
    return load_recipe(
        "demo",
        [
            "train.steps=8",
            *small,
            *(f"model.{k}={v}" for k, v in sizes.items()),
            "model.layers=[]",
            *overrides,
        ],
    )


# -- recipes -----------------------------------------------------------------------------------


def test_shipped_recipes_are_whole(root: Path) -> None:
    for path in (root / "deepsentinel" / "recipes").glob("*.toml"):
        made = load_recipe(path.stem)
        assert made.name == path.stem
        objective(made.objective.name, **dict(made.objective.options))
        assert load_recipe(path).sha256 == made.sha256


def test_overrides_change_recipe_and_hash() -> None:
    plain = load_recipe("demo")
    changed = load_recipe("demo", ["train.steps=20", "model.size=tiny", "train.lr=1"])
    assert (changed.train.steps, changed.model.size, changed.train.lr) == (20, "tiny", 1.0)
    assert changed.sha256 != plain.sha256
    assert load_recipe("demo").sha256 == plain.sha256


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", "unknown key 'train.stepz'.*did you mean 'steps'"),
        ("trian.steps=3", "did you mean 'train'"),
        ("train.steps=many", "train.steps must be int, got 'many'"),
        ("train.steps=1.5", "train.steps must be int"),
        ("train.steps=0", "at least 1"),
        ("train.devices=2", "unknown key 'train.devices'"),
        ("train.clip=-1", "train.clip is -1.0; it must be above 0"),
        ("train.clip=nan", "train.clip is nan; it must be above 0"),
        ("train.lr=-1", "train.lr is -1.0; it must be above 0 and at most 10"),
        ("train.warmup=-5", "train.warmup is -5; it must be at least 0"),
        ("train.betas=[0.9, 1.0]", "train.betas is .*at least 0 and below 1"),
        ("train.accelerator=foo", "train.accelerator must be 'auto' or 'cpu' or 'cuda'"),
        ("model.patch=0", "model.patch is 0; it must be at least 1"),
        ("model.dims=0", "model.dims is 0; it must be at least 1"),
        ("model.measured=1.0", "model.measured is 1.0; it must be at least 0 and below 1"),
        ("model.min_usable=2.0", "model.min_usable is 2.0; .* at most 1"),
        ("data.crop=0", "data.crop is 0; it must be at least 1"),
        ("seed=-1", "seed is -1; it must be at least 0"),
        ("train.ema=1.0", "below 1"),
        ("model.size=huge", "'nano' or 'tiny'"),
        ("train.betas=[0.9]", "train.betas"),
        ("train.steps", "write key=value"),
        ("seed.x=3", "is a value, not a section"),
        ("train=3", "train must be a section"),
    ],
)
def test_wrong_recipe_keys(override: str, message: str) -> None:
    with pytest.raises(CubeError, match=message):
        load_recipe("demo", [override])


def test_every_number_of_a_recipe_has_bounds() -> None:
    names = set()
    for section in ("model", "data", "train"):
        part = getattr(load_recipe("demo"), section)
        for field in dataclasses.fields(part):
            if "int" in str(field.type) or "float" in str(field.type):
                names.add(f"{section}.{field.name}")
    assert set(BOUNDS) == names | {"seed"}


def test_a_recipe_reaches_every_number_of_the_model() -> None:
    fields = {f.name for f in dataclasses.fields(FusionConfig)}
    keys = {f.name for f in dataclasses.fields(ModelRecipe)}
    assert keys - {"size", "layers"} == fields - {"groups", "normaliser", "card"}
    made = load_recipe("demo", ["model.measured=0.5", "model.min_usable=0.75"]).model.options()
    config = FusionConfig.sized("nano", GROUPS, **made)
    assert (config.measured, config.min_usable) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"hiding": {"sensor": {"s3": 0.5}}},
            r"hiding\.sensor names 's3'.*s1, s2.*mean 's",
        ),
        ({"hiding": {"sensor": {"static": 0.5}}}, "names 'static'"),
        ({"groups": {"s22": 1.0}}, "groups names 's22'.*did you mean 's2'"),
        ({"layers": {"s1/typo": 1.0}}, "layers names 's1/typo'.*s1/backscatter.*did you mean"),
    ],
)
def test_names_that_nobody_answers_to(
    toy: Toy, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    wrong = make_recipe({"objective": {"options": options}, "train": {"steps": 1}})
    with pytest.raises(CubeError, match=message):
        train(wrong, {"train": ToySource(toy)}, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_recipe_for_two_sensors_serves_one() -> None:
    made = load_recipe("demo").objective
    s1 = {"s1": GROUPS["s1"]}
    check_names(objective(made.name, **dict(made.options)), made.options, s1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries is 0; it must be at least 1"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"alone": -1.0}, "alone is -1.0; a weight must be at least 0"),
        ({"groups": {"s1": -1.0}}, r"groups\.s1 is -1.0; a weight"),
        ({"hiding": {"blocks": 1.5}}, "blocks is 1.5; .* at most 1"),
        ({"hiding": {"block": 0}}, "block is 0; it must be at least 1"),
        ({"hiding": {"sensor": {"s1": float("nan")}}}, "sum to <= 1"),
    ],
)
def test_bounds_of_the_objective(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CubeError, match=message):
        objective("masked", **options)


def test_unknown_recipe_and_objective() -> None:
    with pytest.raises(CubeError, match="did you mean 'demo'"):
        load_recipe("dmeo")
    with pytest.raises(CubeError, match="did you mean 'masked'"):
        objective("maskd")
    with pytest.raises(CubeError, match=r"objective\.options\.querys.*did you mean 'queries'"):
        objective("masked", querys=3)
    with pytest.raises(CubeError, match="sum to <= 1"):
        objective("masked", hiding={"sensor": {"s1": 0.6, "s2": 0.6}})
    with pytest.raises(CubeError, match="unknown key 'stepz'"):
        make_recipe({"train": {}, "stepz": 1})


# -- hiding and the objective ------------------------------------------------------------------


def test_hiding_is_a_function_of_its_generator_and_touches_no_value(toy: Toy) -> None:
    g = torch.Generator().manual_seed(0)
    inputs, _ = toy.sample(64, 64, dates=4, generator=g)
    inputs["s2"]["present"][:, -1] = False
    hiding = Hiding(sensor={"s2": 0.4, "s1": 0.1})
    view, hidden = hide(inputs, hiding, torch.Generator().manual_seed(1))
    again, _ = hide(inputs, hiding, torch.Generator().manual_seed(1))
    other, _ = hide(inputs, hiding, torch.Generator().manual_seed(2))
    assert all(torch.equal(view[k]["present"], again[k]["present"]) for k in ("s1", "s2"))
    assert any(not torch.equal(view[k]["present"], other[k]["present"]) for k in ("s1", "s2"))
    gone = {k: ~view[k]["present"].any(1) for k in ("s1", "s2")}
    assert 0.2 < gone["s2"].float().mean() < 0.6
    assert gone["s1"].any()
    assert not (gone["s1"] & gone["s2"]).any(), "a sample was left with nothing"
    for group in ("s1", "s2"):
        assert view[group]["x"] is inputs[group]["x"]
        assert not (view[group]["present"] & ~inputs[group]["present"]).any()
        seen = usable(view[group]).any(2)
        assert not (seen & hidden[group]).any()
        assert torch.equal(seen | (hidden[group] & usable(inputs[group]).any(2)),
                           usable(inputs[group]).any(2))  # fmt: skip
    alone = gone["s2"]
    share = 1 - view["s1"]["present"][alone].float().mean()
    assert share <= 0.3, "with S2 hidden, most dates of S1 stay"


def test_compact_view_says_the_same(toy: Toy) -> None:
    inputs, _ = toy.sample(32, 3, dates=6, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]).bool()
    view = {**inputs, "s1": {**inputs["s1"], "present": present}}
    small = compact(view)
    assert small["s1"]["x"].shape[1] == 4
    assert small["s2"]["x"].shape[1] == 6
    assert small["static"] is inputs["static"]
    torch.manual_seed(0)
    model = Fusion(FusionConfig.sized("nano", GROUPS)).eval()
    with torch.no_grad():
        for key, value in model(view).items():
            assert torch.allclose(value, model(small)[key], atol=1e-5), key
    none = {**inputs, "s2": {**inputs["s2"], "present": torch.zeros(3, 6, dtype=torch.bool)}}
    assert "s2" not in compact(none)


def test_hidden_together_is_hidden_in_every_sample(toy: Toy) -> None:
    inputs, _ = toy.sample(16, 8, dates=3, generator=torch.Generator().manual_seed(0))
    hiding = Hiding(sensor={"s2": 0.5}, together=True)
    seen = set()
    for seed in range(12):
        view, _ = hide(inputs, hiding, torch.Generator().manual_seed(seed))
        seen.add(int(view["s2"]["present"].any(1).sum()))
    assert seen == {0, 8}


def test_only_hidden_valid_and_clear_pixels_count(toy: Toy) -> None:
    g = torch.Generator().manual_seed(0)
    inputs, _ = toy.sample(32, 4, dates=4, generator=g)
    torch.manual_seed(0)
    model = Fusion(FusionConfig.sized("nano", GROUPS))
    masked = Masked(hiding=Hiding(sensor={"s2": 1.0}, blocks=0.0, alone=(0.0, 0.0)))

    def loss(x: torch.Tensor) -> float:
        data = {**inputs, "s2": {**inputs["s2"], "x": x}}
        with torch.no_grad():
            figures = masked(model, data, generator=torch.Generator().manual_seed(5))
        return float(figures["loss"])

    x = inputs["s2"]["x"]
    base = loss(x)
    clouds = torch.where(inputs["s2"]["clear"], x, 1e6)
    assert loss(clouds) == base, "a cloud changed the loss"
    assert loss(torch.where(inputs["s2"]["clear"], x + 1, x)) != base


def test_ndvi_and_its_constants() -> None:
    rows = GROUPS["s2"]["layers"]
    constants = ndvi_constants(rows)
    assert constants is not None
    red, nir = 0.05, 0.35
    z = torch.zeros(4)
    z[1], z[2] = (red - 0.10) / 0.06, (nir - 0.28) / 0.12
    assert float(ndvi(z, constants)) == pytest.approx((nir - red) / (nir + red), abs=1e-5)
    assert ndvi_constants([{"name": "x", "channels": ["B04"], "mean": [0], "std": [1]}]) is None


def test_signs_of_collapse() -> None:
    g = torch.Generator().manual_seed(0)
    spread = collapse(torch.randn(256, 32, generator=g))
    one = collapse(torch.randn(256, 1, generator=g) @ torch.randn(1, 32, generator=g))
    same = collapse(torch.ones(16, 8) + 1e-3 * torch.randn(16, 8, generator=g))
    assert spread["rank"] > 28
    assert one["rank"] < 1.1
    assert same["cosine"] > 0.99
    assert same["uniformity"] > -0.01 > spread["uniformity"]


def test_info_nce_wants_the_two_views_of_a_sample_together() -> None:
    x = torch.eye(4, 8)
    right, wrong = info_nce(x, x), info_nce(x, x.roll(1, 0))
    assert right < 0.01
    assert wrong > 5
    chance = info_nce(torch.ones(4, 8), torch.ones(4, 8))
    assert float(chance) == pytest.approx(math.log(4), abs=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert info_nce(x.bfloat16(), x.bfloat16()).dtype == torch.float32


def test_contrast_adds_a_second_view(toy: Toy) -> None:
    inputs, _ = toy.sample(16, 2, dates=3, generator=torch.Generator().manual_seed(0))
    model = Fusion(FusionConfig.sized("nano", GROUPS))
    figures = Masked(contrast=0.1)(model, inputs, generator=torch.Generator().manual_seed(0))
    assert figures["contrast"] > 0
    figures["loss"].backward()


def test_overfits_one_batch(toy: Toy) -> None:
    """A smooth truth without noise, S1 alone: the error of S2 falls to a few hundredths."""
    inputs, _ = toy.sample(16, 2, dates=3, generator=torch.Generator().manual_seed(0))
    pool = torch.nn.AvgPool2d(8)
    up = torch.nn.Upsample(scale_factor=8)
    x = inputs["s2"]["x"]
    inputs["s2"]["x"] = up(pool(x.flatten(0, 1))).reshape(x.shape).clamp(-2, 2)
    inputs["s2"]["clear"] = torch.ones_like(inputs["s2"]["clear"])
    torch.manual_seed(0)
    model = Fusion(FusionConfig.sized("nano", GROUPS, width=32, depth_f=1))
    hiding = Hiding(sensor={"s2": 1.0}, dates=(0, 0), alone=(0, 0), blocks=0.0)
    masked = Masked(hiding=hiding, groups={"s2": 1.0}, index=0.0)
    steps = 120
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    first = last = math.nan
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 10, (steps - step) / 50)
        figures = masked(model, inputs, generator=torch.Generator().manual_seed(1))
        figures["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = float(figures["rec/s2"])
        first = last if step == 0 else first
    assert first > 0.5
    assert last < 0.05


# -- runs --------------------------------------------------------------------------------------


def test_a_run_and_its_folder(toy: Toy, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    parts = {"train": ToySource(toy), "val": ToySource(toy)}
    run = train(recipe(), parts, out=tmp_path, progress=lambda *a: told.append(a))
    assert (run.steps, run.batches, run.skipped, run.resumed) == (8, 8, 0, None)
    assert [t[:2] for t in told] == [(2, 8), (4, 8), (6, 8), (8, 8)]
    header, *rows = (tmp_path / "history.csv").read_text().splitlines()
    assert {"step", "loss", "val_loss", "rank", "uniformity", "lr"} <= set(header.split(","))
    assert len(rows) == 4
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert not list(tmp_path.rglob("*.pkl")) + list(tmp_path.rglob("*.ckpt"))
    model = Fusion.from_pretrained(run.model, groups=GROUPS)
    assert checkpoint.digest(model.state_dict()) == run.weights_sha256
    assert model.config.card["recipe_sha256"] == recipe().sha256
    began = time.monotonic()
    assert train(recipe(), parts, out=tmp_path) == run
    assert time.monotonic() - began < 1, "a finished run was trained again"
    with pytest.raises(CubeError, match=r"another recipe.*force=True"):
        train(recipe("seed=1"), parts, out=tmp_path)
    other = train(recipe("seed=1"), parts, out=tmp_path, force=True)
    assert other.weights_sha256 != run.weights_sha256


def test_accumulation_takes_several_batches_per_step(toy: Toy, tmp_path: Path) -> None:
    some = recipe("train.accumulate=3", "train.steps=4")
    run = train(some, {"train": ToySource(toy)}, out=tmp_path)
    assert (run.steps, run.batches) == (4, 12)
    assert run.val_loss is None


def test_accumulation_is_the_mean_of_the_batches_that_count(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is not finite is left out: the others of its step neither wait nor weigh less.

    Seen by the optimiser: steps after 4, 4 and 4 batches, of which 3 count in the first.
    """
    heard: list[tuple[str, int]] = []
    monkeypatch.setattr(
        Training, "manual_backward",
        lambda self, loss: (heard.append(("back", self.batches)), loss.backward()),
    )  # fmt: skip
    before = Training._average

    def average(self: Training) -> None:
        heard.append(("step", self.batches))
        before(self)

    monkeypatch.setattr(Training, "_average", average)
    source = ToySource(toy)
    source.poison = {1}
    some = recipe("train.accumulate=4", "train.steps=3")
    with pytest.warns(UserWarning, match="batch 1 is not finite"):
        run = train(some, {"train": source}, out=tmp_path / "run")
    steps = [i for i, (what, _) in enumerate(heard) if what == "step"]
    assert [heard[i][1] for i in steps] == [4, 8, 12]
    assert [b - a - 1 for a, b in zip([-1, *steps], steps, strict=False)] == [3, 4, 4]
    assert (run.steps, run.batches, run.skipped) == (3, 12, 1)


def test_the_gradient_of_a_step_is_divided_by_its_finite_batches(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def clipped(parameters: Any, most: float) -> Any:
        norm = clip(parameters, most)
        norms.append(float(norm))
        return norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    # the same batch throughout, and then with two of four left out: the same mean
    for poison in (set(), {1, 2}):
        source = Same(toy)
        source.poison = poison
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = recipe("train.accumulate=4", "train.steps=1", *STILL)
            train(made, {"train": source}, out=tmp_path / str(len(poison)))
    assert norms[0] > 0
    assert norms[1] == pytest.approx(norms[0], rel=0.35)  # the draws of what is hidden differ


STILL = ("objective.options.hiding.sensor={s1=0.0}", "objective.options.hiding.dates=[0.0,0.0]")


class Same(ToySource):
    """One batch again and again, but for the poisoned ones."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            number, self.number = self.number, 0 if self.number not in self.poison else self.number
            fetched = next(super().__iter__())
            self.number = number + 1
            yield fetched._replace(position={"number": number + 1})


@pytest.mark.parametrize("what", ["normaliser", "val", "calibration"])
def test_a_run_of_other_statistics_or_validation_is_another_run(
    toy: Toy, tmp_path: Path, what: str
) -> None:
    short = recipe("train.steps=1", "train.warmup=0")
    first = {"train": ToySource(toy), "val": ToySource(toy)}
    run = train(short, first, out=tmp_path)
    other = {"train": ToySource(toy), "val": ToySource(toy)}
    if what == "val":
        other["val"].sha256 = "another"
    elif what == "normaliser":
        other["train"].normaliser = {"mean": {"s1/backscatter": [5.0, 5.0]}}
    else:
        rows = json.loads(json.dumps(GROUPS))
        rows["s1"]["layers"][0]["calibration"] = "sigma0"
        other["train"].groups = rows
    named = "set of validation samples" if what == "val" else "normaliser or calibration"
    with pytest.raises(CubeError, match=rf"run of another {named}.*--out.*force=True.*rm -r"):
        train(short, other, out=tmp_path)
    assert train(short, first, out=tmp_path) == run
    again = train(short, other, out=tmp_path, force=True)
    assert again.weights_sha256
    assert (tmp_path / "run.json").is_file()


def test_a_run_folder_is_written_by_one(toy: Toy, tmp_path: Path) -> None:
    short = recipe("train.steps=2", "train.warmup=0", "train.log_every=1")

    def tell(*_: Any) -> None:
        with pytest.raises(CubeError, match=rf"trained into by process {os.getpid()} on"):
            train(short, {"train": ToySource(toy)}, out=tmp_path)

    train(short, {"train": ToySource(toy)}, out=tmp_path, progress=tell)
    # what a dead process left is no lock
    (tmp_path / "lock").write_text("process 999999999 on another")
    (tmp_path / "run.json").unlink()
    assert train(short, {"train": ToySource(toy)}, out=tmp_path).steps == 2


def test_a_run_remembers_its_split(
    land: ModuleType, fields: dict[str, Path], tmp_path: Path
) -> None:
    whole = land.samples(fields["train"])
    parts = {"train": whole.take(range(4)), "val": whole.take(range(8, 12)), "test": whole.take([])}
    short = recipe("train.steps=1", "train.warmup=0", "train.validate_batches=1")
    run = train(short, parts, out=tmp_path)
    found = json.loads((tmp_path / "split.json").read_text())
    assert {k: v["n"] for k, v in found.items()} == {"train": 4, "val": 4, "test": 0}
    assert found["val"]["ids"] == [8, 9, 10, 11]
    assert found["train"]["sha256"] == parts["train"].sha256
    assert found["train"]["stores"] == [
        {"path": str(fields["train"]), "identity": whole.stores[0].identity}
    ]
    assert found["train"]["window"]["size"] == 32
    assert Fusion.from_pretrained(run.model).config.card["catalogs"] == [""]


def test_training_leaves_the_allocator_alone(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set once, mallopt holds for good: a notebook would never give memory back again."""

    def no(*_: Any) -> None:
        raise AssertionError("the allocator of the whole process was changed")

    import ctypes

    monkeypatch.setattr(ctypes, "CDLL", no)
    train(recipe("train.steps=1", "train.warmup=0"), {"train": ToySource(toy)}, out=tmp_path)


def test_batches_of_cubes_arrive_where_the_trainer_is(
    land: ModuleType, fields: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    before = Loader.on

    def on(self: Loader, device: Any) -> None:
        told.append(device)
        before(self, device)

    monkeypatch.setattr(Loader, "on", on)
    parts = {"train": land.samples(fields["train"])}
    short = recipe("train.steps=1", "train.warmup=0", "train.accelerator=cpu")
    train(short, parts, out=tmp_path)
    assert told == [torch.device("cpu")]


SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from toy import ToySource, landscape
from test_train import recipe
from deepsentinel.training.train import train

if __name__ == "__main__":
    source = ToySource(landscape(3, edge=64, n_s1=6, n_s2=6))
    more = ["train.steps=24", "train.save_every=2"]
    run = train(recipe(*more), {"train": source}, out=sys.argv[2])
    print(run.weights_sha256, run.resumed)
"""


def test_killed_and_resumed_run_ends_with_the_same_bits(toy: Toy, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    here = str(Path(__file__).parent)

    def command(out: str) -> list[str]:
        return [sys.executable, "-W", "ignore", str(script), here, str(tmp_path / out)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen(command("killed"), env=environment, stderr=subprocess.DEVNULL)
    saved = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(saved.glob("step-*"))) < 2:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "killed" / "run.json").exists()

    more = recipe("train.steps=24", "train.save_every=2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draft left by the kill is no reason to fail
        resumed = train(more, {"train": ToySource(toy)}, out=tmp_path / "killed")
        undisturbed = train(more, {"train": ToySource(toy)}, out=tmp_path / "whole")
    assert resumed.resumed is not None
    assert 2 <= resumed.resumed < 24
    assert resumed.weights_sha256 == undisturbed.weights_sha256
    history = [(tmp_path / d / "history.csv").read_text() for d in ("killed", "whole")]
    steps = [[line.split(",")[0] for line in h.splitlines()] for h in history]
    assert steps[0] == steps[1]


def test_steps_that_are_not_finite_are_skipped_and_named(toy: Toy, tmp_path: Path) -> None:
    source = ToySource(toy)
    source.poison = {2, 4}
    with pytest.warns(UserWarning, match="is not finite; the step is skipped") as told:
        run = train(recipe(), {"train": source}, out=tmp_path / "some")
    assert "batch 2" in str(told[0].message)
    assert "toy 2.0; toy 2.1" in str(told[0].message)
    assert (run.steps, run.batches, run.skipped) == (8, 10, 2)
    notes = [json.loads(x) for x in (tmp_path / "some" / "bad.jsonl").read_text().splitlines()]
    assert [n["samples"] for n in notes] == [["toy 2.0", "toy 2.1"], ["toy 4.0", "toy 4.1"]]
    model = Fusion.from_pretrained(run.model)
    assert all(v.isfinite().all() for v in model.state_dict().values())


def test_too_many_bad_steps_end_the_run_and_keep_the_checkpoint(toy: Toy, tmp_path: Path) -> None:
    source = ToySource(toy)
    source.poison = set(range(4, 100))
    few = recipe("train.max_bad=2", "train.save_every=2")
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(CubeError, match=r"toy 6\.0.*lower train\.lr"),
    ):
        train(few, {"train": source}, out=tmp_path)
    found = checkpoint.load(tmp_path / "checkpoints")
    assert found is not None
    assert found[1]["step"] == 4
    assert not (tmp_path / "model").exists()


def test_wrong_options_fail_before_any_work(toy: Toy, tmp_path: Path) -> None:
    wrong = make_recipe({"objective": {"options": {"querys": 3}}})
    with pytest.raises(CubeError, match="querys"):
        train(wrong, {"train": ToySource(toy)}, out=tmp_path / "x")
    with pytest.raises(CubeError, match="no 'train'"):
        train(recipe(), {"val": ToySource(toy)}, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_learning_rate_warms_up_and_falls() -> None:
    t = make_recipe({"train": {"steps": 100, "warmup": 10, "lr": 1.0, "lr_end": 0.1}}).train
    rates = [learning_rate(t, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_step_seeds_differ() -> None:
    assert len({mixed(s, n) for s in range(20) for n in range(-10, 100)}) == 20 * 110
    assert all(0 <= mixed(s, n) < 2**63 for s in (0, 1, 2**62) for n in (-5, 0, 7))


# -- checkpoints -------------------------------------------------------------------------------


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((1000,), value), "b": torch.tensor(3, dtype=torch.int64)}


def test_checkpoints_come_back_and_only_two_stay(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, tensors(step), {"note": [step, None, 1.5]})
    assert [p.name for p in checkpoint.files(tmp_path)] == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert torch.equal(found[0]["a"], tensors(3)["a"])
    assert found[1]["note"] == [3, None, 1.5]
    assert checkpoint.load(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["cut", "empty", "flip"])
def test_damaged_checkpoint_falls_back_with_a_warning(tmp_path: Path, damage: str) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})
    newest = checkpoint.save(tmp_path, 2, tensors(2), {})
    data = bytearray(newest.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    newest.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "flip": data}[damage])
    with pytest.warns(UserWarning, match=r"step-00000002\.safetensors is damaged"):
        found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    (tmp_path / "step-00000001.safetensors").write_bytes(b"x")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CubeError, match="remove the folder"),
    ):
        checkpoint.load(tmp_path)


WRITER = """
import sys, torch
from deepsentinel.training import checkpoint
big = {"a": torch.zeros(5_000_000)}
step = 1
checkpoint.save(sys.argv[1], step, big, {})
print("ready", flush=True)
while True:
    step += 1
    big["a"] += 1
    checkpoint.save(sys.argv[1], step, big, {})
"""


def test_kill_while_writing_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """Killed as soon as a draft is there, so in the middle of writing, three times."""
    code = [sys.executable, "-c", WRITER, str(tmp_path)]
    caught = 0
    for _ in range(3):
        process = subprocess.Popen(code, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not list(tmp_path.glob(".step-*.tmp")):
            pass
        process.kill()
        process.wait()
        process.stdout.close()
        caught += bool(list(tmp_path.glob(".step-*.tmp")))
        found = checkpoint.load(tmp_path)  # any warning would fail this test
        assert found is not None
        assert float(found[0]["a"][0]) == found[1]["step"] - 1
    assert caught, "no kill came during a write; the test proves nothing"
    checkpoint.save(tmp_path, 10**7, tensors(0), {})
    assert not list(tmp_path.glob(".*")), "drafts of killed writers stay for ever"


def test_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    checkpoint.save(tmp_path, 1, tensors(1), {})

    def full(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, tensors(2), {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.safetensors"]
    assert checkpoint.load(tmp_path) is not None


def test_drafts_of_a_living_writer_are_left_alone(tmp_path: Path) -> None:
    living, dead = (tmp_path / f".step-00000009.safetensors.{p}.tmp" for p in (os.getppid(), 2**22))
    for draft in (living, dead):
        draft.write_bytes(b"half")
    checkpoint.save(tmp_path, 1, {"a": torch.zeros(3)}, {})
    assert living.exists()
    assert not dead.exists()


def test_two_writers_do_not_trip_over_each_other(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def write(first: int) -> None:
        try:
            for i in range(30):
                checkpoint.save(tmp_path, first + i, {"a": torch.zeros(30_000)}, {})
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(k,)) for k in (1000, 2000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed


def test_newer_checkpoints_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "FORMAT_VERSION", 99)
        checkpoint.save(tmp_path, 1, tensors(1), {})
    with pytest.raises(CubeError, match="format 99"):
        checkpoint.load(tmp_path)


def test_global_generators_come_back() -> None:
    import random

    import numpy as np

    saved, state = checkpoint.random_state()
    state = json.loads(json.dumps(state))
    draw = lambda: (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random())  # noqa: E731, NPY002
    first = draw()
    checkpoint.set_random_state(saved, state)
    assert draw() == first


def test_run_is_a_plain_noun(toy: Toy, tmp_path: Path) -> None:
    run = train(recipe("train.steps=1"), {"train": ToySource(toy)}, out=tmp_path)
    assert Run(**json.loads((tmp_path / "run.json").read_text())) == run
