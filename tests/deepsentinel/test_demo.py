"""The whole road in small: every stage, then the second run that reuses them all."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cubes
from deepsentinel.demo import road
from deepsentinel.demo.archives import find_rustac
from deepsentinel.demo.road import LAYERS, demo, judged
from deepsentinel.demo.stages import Console, source_digest
from deepsentinel.evaluation import bars
from deepsentinel.evaluation.tasks import Evaluation

STAGES = ["worlds", "cubes", "train", "evaluate", "embed", "report"]


def tables(**leads: tuple[float, float]) -> dict[str, pd.DataFrame]:
    """Return tables in which the model leads every rival by 0.05 to 0.15, or as is said."""
    out = {}
    for task, rivals in bars.BARS.items():
        spans = [(0.0, 0.0), *(leads.get(r.split(",")[0].replace(" ", "_"), (0.05, 0.15))
                               for r in rivals)]  # fmt: skip
        low, high = np.array(spans).T
        out[task] = pd.DataFrame(
            {"gain": (low + high) / 2, "gain_low": low, "gain_high": high, "tiles": 64},
            ["model", *rivals],
        )
    return out


def test_bars_are_met_only_by_leads_whose_interval_says_so() -> None:
    assert all(bar.met for bar in bars.judge(tables()))
    assert len(bars.judge(tables())) == 5
    for bad in ((-0.15, -0.05), (-0.05, 0.15), (np.nan, np.nan)):
        found = bars.judge(tables(pixel_statistics=bad))
        assert [(b.task, b.rival) for b in found if not b.met] == [
            ("landcover", "pixel statistics")
        ]
    # what an untrained model scores is no merit of the trained one, in either task
    missed = [b for b in bars.judge(tables(random_encoder=(-0.01, 0.01))) if not b.met]
    assert [b.task for b in missed] == ["landcover", "ndvi"]
    assert "not told apart from random encoder" in missed[0].text
    lost = tables()
    lost["ndvi"] = lost["ndvi"].drop("random encoder")
    assert [b.text for b in bars.judge(lost) if not b.met] == [
        "ndvi: random encoder was not scored"
    ]
    assert [b.task for b in bars.judge({}) if not b.met] == ["landcover"] * 2 + ["ndvi"] * 3


@pytest.mark.parametrize(
    ("lead", "said"),
    [
        ((0.05, 0.15), "Training adds to this: the model is above random encoder (+0.100"),
        ((-0.15, -0.05), "Training takes from this: the model is below random encoder (-0.100"),
        ((-0.05, 0.05), "Training adds nothing here that can be measured"),
        ((np.nan, np.nan), "What training adds cannot be said"),
    ],
)
def test_the_sentence_on_training_goes_both_ways(lead: tuple[float, float], said: str) -> None:
    table = tables(random_encoder=lead)["landcover"]
    assert bars.training_adds(table).startswith(said)
    assert "not known" in bars.training_adds(table.drop("random encoder"))


@pytest.mark.parametrize(("lead", "code"), [((0.05, 0.15), 0), ((-0.15, -0.05), 1)])
def test_check_exits_1_where_a_bar_is_missed(
    lead: tuple[float, float],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from deepsentinel import cli

    for task, table in tables(pixel_statistics=lead).items():
        Evaluation(task=task, table=table).save(tmp_path / "scores")
    monkeypatch.setattr(road, "demo", lambda out, **_: Path(out) / "report.html")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert cli.main(["demo", "--out", str(tmp_path), "--check"]) == code
    said = capsys.readouterr().err
    assert ("bar missed: landcover: the model is below pixel statistics" in said) == bool(code)


def test_every_source_that_a_stage_depends_on_is_there() -> None:
    for names in (road._LEARNING, road._PAGE, road._EMBEDDING, road._SCORING):
        assert len(source_digest(names)) == 64, names


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(900)
def test_the_road_and_back(tmp_path: Path) -> None:
    if find_rustac() is None:
        pytest.skip("rustac is not installed: no STAC API to search")
    log = io.StringIO()
    page = demo(tmp_path, quick=True, console=Console(log))
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/png;base64") >= 5
    assert 'src="http' not in text  # one file, nothing fetched
    first = json.loads((tmp_path / "last-run.json").read_text())
    assert sorted(first["stages_seconds"]) == sorted(STAGES)
    # 20 steps prove nothing, and the judgement is made of what was scored, whichever way it goes
    told = judged(tmp_path)
    for bar in told:
        table = Evaluation.load(tmp_path / "scores", bar.task).table
        assert bar.met == (table.loc[bar.rival, "gain_low"] > 0), bar
        assert f"bar {'met' if bar.met else 'MISSED':<6} {bar.text}" in log.getvalue()
    assert len(told) == 5
    assert first["reused"] == []
    assert first["peak_memory_bytes"] < 6 * 2**30

    cube = cubes.open(tmp_path / "cubes" / "train.zarr")
    for name in LAYERS:
        assert cube[name].size, name
    assert cube["insar"].sizes["pair"] == 10
    for role in ("train", "test"):
        assert cubes.verify(tmp_path / "cubes" / f"{role}.zarr").state == "sealed"

    demo(tmp_path, quick=True, console=Console(log))
    again = json.loads((tmp_path / "last-run.json").read_text())
    assert again["reused"] == STAGES, log.getvalue()[-2000:]

    # What is lost is made again, and only that: the other regions of the cube are left alone.
    shutil.rmtree(tmp_path / "cubes" / "train.zarr" / "s2" / "scl" / "c")
    demo(tmp_path, quick=True, console=Console(log))
    mended = json.loads((tmp_path / "last-run.json").read_text())
    assert mended["reused"] == [name for name in STAGES if name != "cubes"]
    assert cubes.verify(tmp_path / "cubes" / "train.zarr").state == "sealed"
    # the test world's cube was whole: all of its regions, however many, were left alone
    assert re.search(r"0 written, [1-9]\d* reused", log.getvalue()), log.getvalue()[-2000:]
