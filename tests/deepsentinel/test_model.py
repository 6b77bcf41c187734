"""Fusion: what is missing is absent, what it costs, and what comes back from disk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deepsentinel.flops import flops
from deepsentinel.model import (
    DIMS,
    SIZES,
    Fusion,
    FusionConfig,
    ModelError,
    check_groups,
    order_statistics,
    patchify,
    rotation,
    unpatchify,
)

sys.path.insert(0, str(Path(__file__).parent))
from toy import GROUPS, landscape


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sample() -> dict[str, dict[str, torch.Tensor]]:
    """Two samples of 32 px with 4 dates of S1 and 5 of S2."""
    toy = landscape(1, edge=64, n_s1=4, n_s2=5)
    g = torch.Generator().manual_seed(0)
    return toy.sample(32, 2, dates=None, generator=g)[0]


def nano(**other: Any) -> Fusion:
    torch.manual_seed(0)
    return Fusion(FusionConfig.sized("nano", GROUPS, **other)).eval()


def outputs(model: Fusion, inputs: Any) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        days = inputs.get("s2", inputs.get("s1"))["days"][:, :2] + 3
        return {**model(inputs), "predict": model.predict(inputs, {"group": "s2", "days": days})}


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 1e-5) -> bool:
    return all(torch.allclose(a[k], b[k], atol=atol) for k in a)


def test_shapes_and_unit_vectors(sample: Any) -> None:
    out = outputs(nano(), sample)
    assert out["dense"].shape == (2, 128, 32, 32)
    assert out["patch"].shape == (2, 128, 4, 4)
    assert out["pooled"].shape == (2, 128)
    assert out["predict"].shape == (2, 2, 4, 32, 32)
    for key in ("dense", "patch", "pooled"):
        assert torch.allclose(out[key].mean(1), torch.zeros(()), atol=1e-5)
        assert torch.allclose(out[key].var(1, correction=0), torch.ones(()), atol=1e-2)


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [("nano", 0.4, 1), ("tiny", 5, 9), ("small", 20, 35), ("base", 90, 140)],
)
def test_sizes(size: str, low: float, high: float) -> None:
    assert set(SIZES) == {"nano", "tiny", "small", "base"}
    with torch.device("meta"):
        model = Fusion(FusionConfig.sized(size, GROUPS))
    assert low < sum(p.numel() for p in model.parameters()) / 1e6 < high


def test_a_bigger_size_runs(sample: Any) -> None:
    model = Fusion(FusionConfig.sized("tiny", GROUPS)).eval()
    assert all(v.isfinite().all() for v in outputs(model, sample).values())


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_masked_values_never_matter(sample: Any, garbage: float) -> None:
    g = torch.Generator().manual_seed(1)
    clean: dict[str, dict[str, torch.Tensor]] = {}
    for name, data in sample.items():
        clean[name] = dict(data)
        clean[name]["valid"] = data["valid"] & (torch.rand(data["valid"].shape, generator=g) > 0.2)
    clean["s1"]["present"] = torch.tensor([[True, False, True, True], [True, True, False, True]])
    dirty = {name: dict(data) for name, data in clean.items()}
    for name in ("s1", "s2", "static"):
        mask = clean[name]["valid"]
        if "clear" in clean[name]:
            mask = mask & clean[name]["clear"]
        if "present" in clean[name]:
            mask = mask & clean[name]["present"][:, :, None, None, None]
        index = [i for i, r in enumerate(GROUPS[name]["layers"]) for _ in r["channels"]]
        dim = 1 if name == "static" else 2
        dirty[name]["x"] = torch.where(mask.index_select(dim, torch.tensor(index)),
                                       clean[name]["x"], garbage)  # fmt: skip
    dirty["s1"]["days"] = torch.where(clean["s1"]["present"], clean["s1"]["days"], garbage)
    model = nano()
    a, b = outputs(model, clean), outputs(model, dirty)
    for key in a:
        assert torch.equal(a[key], b[key]), key
        assert a[key].isfinite().all()


def test_gradients_stay_finite_under_masked_garbage(sample: Any) -> None:
    dirty = {k: dict(v) for k, v in sample.items()}
    dirty["s2"]["x"] = torch.where(sample["s2"]["clear"], sample["s2"]["x"], float("nan"))
    model = nano()
    model.predict(dirty, {"group": "s2", "days": sample["s2"]["days"]}).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_missing_sensor_equals_absent_key_and_hidden_dates(sample: Any) -> None:
    model = nano()
    absent = {k: v for k, v in sample.items() if k != "s2"}
    hidden = {**sample, "s2": {**sample["s2"], "present": torch.zeros(2, 5, dtype=torch.bool)}}
    invalid = {**sample, "s2": {**sample["s2"], "valid": torch.zeros_like(sample["s2"]["valid"])}}
    days = sample["s2"]["days"]
    with torch.no_grad():
        for other in (hidden, invalid):
            for key, value in model(absent).items():
                assert torch.allclose(value, model(other)[key], atol=1e-5), key
            a = model.predict(absent, {"group": "s2", "days": days})
            assert torch.allclose(a, model.predict(other, {"group": "s2", "days": days}), atol=1e-5)


def test_padding_and_order_of_dates_do_not_matter(sample: Any) -> None:
    model = nano()
    reference = outputs(model, sample)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {**sample, "s1": {k: v[:, order] for k, v in sample["s1"].items()}}
    padded = {
        **sample,
        "s1": {k: torch.cat([v, v[:, :2]], 1) for k, v in sample["s1"].items()},
    }
    padded["s1"]["present"] = padded["s1"]["present"].clone()
    padded["s1"]["present"][:, 4:] = False
    assert close(reference, outputs(model, shuffled))
    assert close(reference, outputs(model, padded))


def test_each_thing_that_is_there_matters(sample: Any) -> None:
    model = nano()
    reference = model(sample)["dense"]
    for group in ("s1", "s2", "static"):
        changed = {**sample, group: {**sample[group], "x": sample[group]["x"] + 1.0}}
        assert not torch.allclose(reference, model(changed)["dense"], atol=1e-3), group
    later = {**sample, "s1": {**sample["s1"], "days": sample["s1"]["days"] + 40}}
    assert not torch.allclose(reference, model(later)["dense"], atol=1e-3)


def test_samples_of_a_batch_do_not_see_each_other(sample: Any) -> None:
    model = nano()
    first = {g: {k: v[:1] for k, v in d.items()} for g, d in sample.items()}
    a, b = outputs(model, sample), outputs(model, first)
    for key in a:
        assert torch.allclose(a[key][:1], b[key], atol=1e-5), key


def test_unobserved_ground_is_filled_and_left_out_of_pooling(sample: Any) -> None:
    model = nano()
    valid = {g: sample[g]["valid"].clone() for g in ("s1", "s2")}
    for v in valid.values():
        v[..., :8, :] = False
    holey = {**sample, **{g: {**sample[g], "valid": v} for g, v in valid.items()}}
    e = model.encode(holey)
    assert not e.known_BN[:, :4].any()
    assert e.known_BN[:, 4:].all()
    assert model(holey)["dense"].isfinite().all()


def test_window_of_any_size(sample: Any) -> None:
    odd = {
        g: {k: (v[..., :29, :21] if v.ndim >= 4 else v) for k, v in d.items()}
        for g, d in sample.items()
    }
    out = outputs(nano(), odd)
    assert out["dense"].shape[-2:] == (29, 21)
    assert out["predict"].shape[-2:] == (29, 21)


def test_finite_reach_makes_far_ground_irrelevant() -> None:
    toy = landscape(1, edge=128, n_s1=3, n_s2=3)
    g = torch.Generator().manual_seed(0)
    inputs, _ = toy.sample(128, 1, dates=None, generator=g)
    model = nano(reach=1)
    far = {**inputs, "s1": {**inputs["s1"], "x": inputs["s1"]["x"].clone()}}
    far["s1"]["x"][..., 96:] += 5  # patch 12 on: two blocks of reach 1 get to patch 10
    with torch.no_grad():
        a, b = model(inputs)["dense"], model(far)["dense"]
    assert torch.allclose(a[..., :72], b[..., :72], atol=1e-5)
    assert not torch.allclose(a[..., 96:], b[..., 96:], atol=1e-3)


@pytest.mark.parametrize("dates", [1, 2, 5, 12, 16, 19])
def test_order_statistics_are_numpys(dates: int) -> None:
    g = torch.Generator().manual_seed(dates)
    x = torch.randn(2, dates, 3, 8, 8, generator=g)
    usable = torch.rand(x.shape, generator=g) > 0.3
    usable[:, :, 0, 0] = False
    got = order_statistics(torch.where(usable, x, 0.0), usable).unflatten(1, (5, 3)).numpy()
    masked = np.ma.masked_array(x.numpy(), ~usable.numpy())
    assert np.allclose(got[:, 0], masked.mean(1).filled(0), atol=1e-5)
    assert np.allclose(got[:, 1], masked.std(1).filled(0), atol=1e-5)
    n = usable.sum(1).numpy()
    ordered = np.sort(np.where(usable.numpy(), x.numpy(), np.inf), 1)
    for row, q in ((2, 0.1), (3, 0.5), (4, 0.9)):
        place = np.round(q * (np.maximum(n, 1) - 1)).astype(int)
        want = np.take_along_axis(ordered, place[:, None], 1)[:, 0]
        assert np.allclose(got[:, row], np.where(n > 0, want, 0), atol=1e-6)


def fitted(sample: Any, **config: Any) -> tuple[Fusion, torch.Tensor]:
    """Return a model that was fitted to the statistics of a sample, and those."""
    model = nano(**config)
    rows = model.statistics(sample)
    model.fit(rows)
    return model, rows


def test_the_measured_part_is_the_principal_components(sample: Any) -> None:
    model, rows = fitted(sample)
    parts = (rows - model.centre) @ model.measure
    assert parts.mean(0).abs().max() < 1e-3
    m = model.config.parts[0]
    spread = torch.cov(parts.double().T)
    off = spread - torch.diag(spread.diag())
    assert off.abs().max() < 1e-3 * spread.diag().max()
    # the square root of a component's variance, strongest first, on average 1
    assert (spread.diag().diff() <= 1e-4).all()
    variance = torch.linalg.eigvalsh(torch.cov(rows.double().T)).flip(0)[:m].clamp(min=1e-4)
    got, want = spread.diag(), variance.sqrt() / variance.sqrt().mean()
    assert torch.allclose(got[want > 0.1], want[want > 0.1].to(got), rtol=1e-2)
    again = nano()
    again.fit(rows)
    assert torch.equal(model.measure, again.measure)


def test_nothing_linear_in_the_statistics_is_lost(sample: Any) -> None:
    """What was measured of a pixel comes back from its embedding by the inverse of the basis."""
    model, rows = fitted(sample)
    e = model.encode(sample)
    back = torch.empty_like(model.order)
    back[model.order] = torch.arange(len(back))
    m = model.config.parts[0]
    assert m == rows.shape[1], "here there are fewer statistics than numbers"
    told = e.embedding_BNPE[..., back][..., :m]  # components, up to a shift and a scale per pixel
    basis = torch.cat([model.measure.double(), torch.full((1, m), m**-0.5).double()])
    want = torch.cat([e.series[g].statistics_BNPF for g in ("s1", "s2")], -1)
    got = torch.linalg.lstsq(basis.T, told.double().flatten(0, -2).T).solution[: want.shape[-1]]
    ever = torch.cat([e.series[g].ever_BNPL.amin(-1) for g in ("s1", "s2")], 0).flatten()
    seen = torch.stack([e.series[g].ever_BNPL.amin(-1) for g in ("s1", "s2")]).amin(0).flatten() > 0
    assert ever.any()
    pair = got.T[seen].float(), (want - model.centre).flatten(0, -2)[seen]
    assert torch.cosine_similarity(*pair, dim=-1).quantile(0.01) > 0.99


def test_short_embeddings_have_their_share_of_both() -> None:
    model = nano()
    m = model.config.parts[0]
    for cut in DIMS:
        measured = int((model.order[:cut] < m).sum())
        assert measured == min(m, round(0.9 * cut)) or measured == m


@pytest.mark.parametrize("rows", [5, 80, 300])
def test_rotations_keep_lengths(rows: int) -> None:
    q = rotation(rows, 80)
    assert q.shape == (rows, 80)
    assert torch.equal(q, rotation(rows, 80))
    gram = q @ q.T if rows <= 80 else q.T @ q
    assert torch.allclose(gram, gram[0, 0] * torch.eye(len(gram)), atol=1e-4)
    x = torch.randn(2000, rows)
    assert (x @ q).var() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("measured", [0.0, 0.995])
def test_all_learned_and_all_but_one_measured(sample: Any, measured: float) -> None:
    out = outputs(nano(measured=measured), sample)
    assert all(v.isfinite().all() for v in out.values())


def test_patches_and_back() -> None:
    x = torch.arange(2 * 3 * 4 * 16 * 24.0).reshape(2, 3, 4, 16, 24)
    y = patchify(x, 8)
    assert y.shape == (2, 6, 3, 64, 4)
    assert torch.equal(y[0, 1, 2, 9], x[0, 2, :, 1, 9])
    assert torch.equal(unpatchify(y, 8, 24), x)


def test_short_embeddings_are_the_first_numbers(sample: Any) -> None:
    model = nano()
    e = model.encode(sample)
    changed = e._replace(embedding_BNPE=torch.cat(
        [e.embedding_BNPE[..., :16], torch.randn_like(e.embedding_BNPE[..., 16:])], -1
    ))  # fmt: skip
    days = sample["s2"]["days"]
    for dims in DIMS:
        a, b = (model.decoder(x, "s2", days, dims=dims) for x in (e, changed))
        assert torch.allclose(a, b) == (dims == 16)


def test_every_weight_learns(sample: Any) -> None:
    model = nano()
    out = model(sample)
    days = sample["s2"]["days"][:, :2]
    total = sum(v.square().mean() * 0 + (v * torch.randn_like(v)).mean() for v in out.values())
    e = model.encode(sample)
    for group in ("s1", "s2"):
        total = total + model.predict(sample, {"group": group, "days": days}).square().mean()
        total = total + model.decoder.summarise(e.embedding_BNPE, group).square().mean()
    total.backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A static layer has one "date" and no season: nothing to choose among.
    idle = {f"groups.static.{n}" for n in ("embed_time.weight", "score.weight", "score.bias")}
    assert set(dead) == idle


@pytest.mark.parametrize("queries", [None, {"s2": 3, "s1": 2}])
def test_flops_are_those_of_the_closed_form(sample: Any, queries: dict[str, int] | None) -> None:
    model = nano()
    one = {g: {k: v[:1] for k, v in d.items()} for g, d in sample.items()}
    counter = FlopCounterMode(display=False)
    # The math backend is made of matrix products, which the counter knows on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        if queries is None:
            model(one)
        else:
            e = model.encode(one)
            for group, q in queries.items():
                model.decoder(e, group, one["s2"]["days"][:, :q])
    dates = {"s1": 4, "s2": 5, "static": 1}
    assert flops(model.config, size=32, dates=dates, queries=queries) == counter.get_total_flops()


def test_bfloat16_is_near_float32(sample: Any) -> None:
    model = nano()
    reference = outputs(model, sample)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = outputs(model, sample)
    for key in reference:
        cosine = torch.cosine_similarity(reference[key].flatten(), half[key].float().flatten(), 0)
        assert cosine > 0.99, key


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_equals_eager(sample: Any) -> None:
    """As captured by torch.compile (no C++ compiler needed): no branch or date code is lost."""
    model = nano()
    reference = outputs(model, sample)
    for module in model.modules():
        if type(module).__name__ in ("Block", "GroupEncoder", "Detail"):
            module.compile(dynamic=False, backend="aot_eager", fullgraph=True)
    assert close(reference, outputs(model, sample), atol=1e-4)


def test_saved_model_comes_back(sample: Any, tmp_path: Path) -> None:
    config = FusionConfig.sized("nano", GROUPS, normaliser={"mean": [1]}, card={"recipe": "x"})
    model = Fusion(config).eval()
    folder = model.save_pretrained(tmp_path / "m")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = Fusion.from_pretrained(folder, groups=GROUPS)
    a, b = outputs(model, sample), outputs(again, sample)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert again.config == config


def altered(group: str, number: int, **change: Any) -> dict[str, Any]:
    rows = [dict(r) for r in GROUPS[group]["layers"]]
    rows[number].update(change)
    return {**GROUPS, group: {"layers": rows}}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (altered("s1", 0, calibration="sigma0"), "calibration 'sigma0'.*'gamma0_rtc'"),
        (altered("s1", 0, units="1"), "units"),
        (altered("s2", 0, channels=["B04", "B03", "B08", "B11"]), "channels"),
        (altered("s1", 1, name="insar/coherense"), "nearest.*insar/coherence"),
        ({"s3": {"layers": [{"name": "s3/lst", "channels": ["x"]}]}}, "not trained on"),
    ],
)
def test_other_layers_or_radiometry_are_refused(tmp_path: Path, groups: Any, message: str) -> None:
    nano().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        Fusion.from_pretrained(tmp_path, groups=groups)


def test_fewer_layers_are_no_other_layers() -> None:
    check_groups(GROUPS, {"s1": {"layers": GROUPS["s1"]["layers"][:1]}})


def test_clear_errors(sample: Any, tmp_path: Path) -> None:
    model = nano()
    with pytest.raises(ModelError, match="did you mean 'small'"):
        FusionConfig.sized("smal", GROUPS)
    with pytest.raises(ModelError, match="multiple of 4 x heads"):
        FusionConfig.sized("nano", GROUPS, heads=6)
    with pytest.raises(ModelError, match="measured=1: a share"):
        FusionConfig.sized("nano", GROUPS, measured=1)
    with pytest.raises(ModelError, match="this model predicts s1, s2"):
        model.predict(sample, {"group": "static", "days": sample["s2"]["days"]})
    with pytest.raises(ModelError, match="at least one of s1, s2"):
        model({"static": sample["static"]})
    fewer = {**sample, "s2": {**sample["s2"], "x": sample["s2"]["x"][:, :, :3]}}
    with pytest.raises(ModelError, match="3 channels; this model has 4: s2/reflectance:B03"):
        model(fewer)
    with pytest.raises(ModelError, match=r"has no config\.json"):
        Fusion.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    note = tmp_path / "config.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "format": 99}))
    with pytest.raises(ModelError, match=r"format 99.*upgrade"):
        Fusion.from_pretrained(tmp_path)
    note.write_text(json.dumps({**json.loads(note.read_text()), "format": 1}))
    with pytest.raises(ModelError, match=r"format 1.*train it again"):
        Fusion.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="without statistics"):
        _ = model.normaliser
    with pytest.raises(ModelError, match="at least one group"):
        replace(model.config, groups={})


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config.json", b"{"),
        ("config.json", b"[3]"),
        ("config.json", b"\xff\xfe\x00"),
        ("config.json", b'{"model": "Fusion"}'),
        ("config.json", b'{"format": 3, "model": "Fusion", "groups": {"s1": 3}, "foo": 1}'),
        ("config.json", b'{"format": 3, "model": "Fusion", "groups": {"s1": 3}}'),
        ("config.json", b'{"format": "two", "model": "Fusion", "groups": {}}'),
        ("model.safetensors", b""),
        ("model.safetensors", None),  # cut
        ("model.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "),  # no tensor in it
    ],
)
def test_a_broken_folder_is_one_clear_error(tmp_path: Path, name: str, data: bytes | None) -> None:
    nano().save_pretrained(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:1000] if data is None else data)
    with pytest.raises(ModelError, match=r"no whole Fusion .* \(\w+.*copy it again"):
        Fusion.from_pretrained(tmp_path)


def test_the_folder_of_a_run_names_its_model(tmp_path: Path) -> None:
    nano().save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(ModelError, match=r"has no config\.json.*did you mean .*run.model\?"):
        Fusion.from_pretrained(tmp_path / "run")


def test_the_file_works_alone(root: Path, tmp_path: Path) -> None:
    """Copied elsewhere, without the packages, it runs with torch alone."""
    source = (root / "deepsentinel" / "model.py").read_text()
    (tmp_path / "copied.py").write_text(source)
    code = (
        "import sys, torch, copied\n"
        "groups = {'s1': {'layers': [{'name': 'a', 'channels': ['vv']}]}}\n"
        "m = copied.Fusion(copied.FusionConfig.sized('nano', groups))\n"
        "x = {'s1': {'x': torch.zeros(1, 2, 1, 16, 16), 'days': torch.zeros(1, 2),\n"
        "     'valid': torch.ones(1, 2, 1, 16, 16, dtype=torch.bool)}}\n"
        "assert m(x)['dense'].shape == (1, 128, 16, 16)\n"
        "assert not {'cubes', 'deepsentinel', 'lightning', 'xarray'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
