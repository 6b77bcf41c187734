"""From cubes to a model's inputs: layers become rows, crops stay aligned, calibrations agree."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cubes import registry
from cubes.types import CubeError
from deepsentinel.loading.batch import Batch
from deepsentinel.loading.contract import calibrations, chosen, group_rows
from deepsentinel.loading.normalise import Normaliser, inputs
from deepsentinel.model import Fusion, FusionConfig
from deepsentinel.training.augment import crop

NAMES = ("s1/backscatter", "s1/incidence", "insar/coherence", "insar/phase", "s2/reflectance",
         "s2/scl", "s2/clear", "terrain/elevation")  # fmt: skip
BANDS = ("B03", "B04", "B08")


def normaliser() -> Normaliser:
    layers = {n: registry.layer(n) for n in NAMES}
    layers["s2/reflectance"] = layers["s2/reflectance"].pick(BANDS)
    named = {n: r for n, r in layers.items() if r.kind == "continuous"}
    return Normaliser(
        layers=layers,
        mean={n: (1.0,) * r.n_channels for n, r in named.items()},
        std={n: (2.0,) * r.n_channels for n, r in named.items()},
    )


def batch(size: int = 16) -> Batch:
    g = torch.Generator().manual_seed(0)

    def ints(*shape: int) -> torch.Tensor:
        return torch.randint(1, 3000, (*shape, size, size), generator=g, dtype=torch.int16)

    stored = {
        "s1/backscatter": ints(2, 3, 2), "s1/incidence": ints(2, 2, 1),
        "insar/coherence": ints(2, 3, 2), "insar/phase": ints(2, 3, 2),
        "s2/reflectance": ints(2, 4, 3), "s2/scl": ints(2, 4, 1),
        "s2/clear": torch.ones(2, 4, 1, size, size, dtype=torch.uint8),
        "terrain/elevation": ints(2, 1, 1),
    }  # fmt: skip
    return Batch(
        stored=stored,
        days={"s1": torch.arange(6.0).reshape(2, 3), "s2": torch.arange(8.0).reshape(2, 4)},
        present={"s1": torch.ones(2, 3).bool(), "s2": torch.ones(2, 4).bool()},
        track=torch.tensor([[0, 1, 0], [1, 0, -1]], dtype=torch.int16),
        place=torch.tensor([[0, 64, 128, 7], [1, 0, 32, 9]]),
        lonlat=torch.zeros(2, 2, dtype=torch.float64),
    )


def test_rows_of_a_model_follow_the_registry() -> None:
    norm = normaliser()
    groups = group_rows(norm, {"s1/backscatter": "gamma0_rtc"})
    assert list(groups) == ["s1", "s2", "static"]
    rows = {r["name"]: r for g in groups.values() for r in g["layers"]}
    assert rows["s1/backscatter"]["calibration"] == "gamma0_rtc"
    assert rows["s1/backscatter"]["units"] == "dB"
    assert rows["insar/phase"]["channels"] == ["vv cos", "vv sin", "vh cos", "vh sin"]
    assert "mean" not in rows["insar/phase"]
    assert [n for n, r in rows.items() if r.get("aux")] == ["s1/incidence"]
    data = inputs(batch(), norm)
    model = Fusion(FusionConfig.sized("nano", groups)).eval()
    for group, values in data.items():
        assert values["x"].shape[-3] == len(model.config.channels(group))
        assert values["valid"].shape[-3] == len(model.config.layers(group))
    assert model(data)["dense"].shape == (2, 128, 16, 16)


def test_chosen_layers_keep_the_masks_that_go_with_them() -> None:
    kept = chosen(normaliser(), ("s1/backscatter", "s2/reflectance"))
    assert set(kept.layers) == {"s1/backscatter", "s2/reflectance", "s2/clear"}
    assert set(kept.mean) == {"s1/backscatter", "s2/reflectance"}
    assert "clear" in inputs(batch(), kept)["s2"]
    with pytest.raises(CubeError, match="no layer 's3/lst'"):
        chosen(normaliser(), ("s3/lst",))


def test_crops_of_all_layers_show_the_same_ground() -> None:
    whole = batch()
    made = crop(whole, 8, each=3, generator=torch.Generator().manual_seed(1))
    assert len(made) == 6
    corners = set()
    for j in range(6):
        i = j // 3
        y, x = (made.place[j, 1:3] - whole.place[i, 1:3]).tolist()
        corners.add((y, x))
        assert (made.place[j, 0], made.place[j, 3]) == (whole.place[i, 0], whole.place[i, 3])
        for name, values in whole.stored.items():
            assert torch.equal(made.stored[name][j], values[i][..., y : y + 8, x : x + 8]), name
        assert made.track is not None
        assert whole.track is not None
        assert torch.equal(made.track[j], whole.track[i])
    assert len(corners) > 3
    assert torch.equal(whole.place, batch().place), "the batch that was cropped has moved"
    assert crop(whole, 16, generator=torch.Generator()) is whole
    with pytest.raises(CubeError, match="crops of 32 px from samples of 16 x 16 px"):
        crop(whole, 32, generator=torch.Generator())


def stores(tmp_path: Path, *kinds: str | None) -> Any:
    found = []
    for i, kind in enumerate(kinds):
        folder = tmp_path / f"{i}.zarr" / "s1" / "backscatter"
        folder.mkdir(parents=True)
        note = {"attributes": {} if kind is None else {"calibration": kind}}
        (folder / "zarr.json").write_text(json.dumps(note))
        found.append(SimpleNamespace(path=str(tmp_path / f"{i}.zarr")))
    return SimpleNamespace(stores=found, layers={"s1/backscatter": None, "s2/scl": None})


def test_stores_of_one_calibration(tmp_path: Path) -> None:
    assert calibrations(stores(tmp_path, "gamma0_rtc", None, "gamma0_rtc")) == {
        "s1/backscatter": "gamma0_rtc"
    }


def test_a_mix_of_calibrations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match=r"gamma0_rtc in .*0\.zarr and sigma0 in .*1\.zarr"):
        calibrations(stores(tmp_path, "gamma0_rtc", "sigma0"))
