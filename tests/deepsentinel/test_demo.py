"""The whole road in small: every stage, then the second run that reuses them all."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path

import pytest

import cubes
from deepsentinel.demo.archives import find_rustac
from deepsentinel.demo.road import LAYERS, demo
from deepsentinel.demo.stages import Console

STAGES = ["worlds", "cubes", "train", "evaluate", "embed", "report"]


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
