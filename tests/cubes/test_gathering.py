"""The predecessors' recipes on a simulated archive: what is kept, and why a patch has nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cubes
from cubes import gathering, sen12ts, store, worlds
from cubes.types import Catalog, CubeError

pytestmark = pytest.mark.timeout(300)

RULE = sen12ts.Rule(max_cloud=60.0, size=128)
"""The tiny world's summer is cloudy, and its tiles are small."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> worlds.Published:
    made = worlds.simulate(worlds.load_params("tiny"), 7)
    return worlds.publish(made, tmp_path_factory.mktemp("gathering") / "tiny")


@pytest.fixture(scope="module")
def catalog(world: worlds.Published) -> Catalog:
    return cubes.catalog("simulated", url=str(world.catalog))


@pytest.fixture(scope="module")
def triplets() -> gathering.Recipe:
    return gathering.recipe("sen12ts", time=("2021-05-01", "2021-08-01"), edge=2560.0, rule=RULE)


def test_sen12ts_from_search_to_triplets(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path
) -> None:
    table = gathering.gather(triplets, world.aoi, tmp_path / "out", catalog=catalog)
    assert list(pd.read_csv(tmp_path / "out" / "patches.csv")["name"]) == list(table["name"])
    matched = table[table["state"] == "matched"]
    assert len(matched) >= 2
    assert matched["series"].sum() >= 1
    for row in matched.to_dict("records"):
        tree = cubes.open(row["store"])
        assert (tree["s1"].sizes["time"], tree["s2"].sizes["time"]) == (row["s1"], row["s2"])
        # what the restricted cube holds is what the whole year would have given
        whole = cubes.Request.of(
            world.aoi, triplets.time, triplets.layers, catalog=catalog, bands=triplets.bands
        ).open()
        found = sen12ts.candidates(whole, RULE)
        dates = {whole["s1"].to_dataset()["time"].to_numpy()[i] for r in found["s1"] for i in r}
        assert set(tree["s1"].to_dataset()["time"].to_numpy()) == dates
        written = sen12ts.export(row["store"], tmp_path / "triplets" / row["name"], rule=RULE)
        assert (
            len(written[written["name"].str.contains("s1date")]["name"].unique()) == row["series"]
        )
        seasons = sen12ts.series(row["store"], RULE)
        assert (seasons.groupby(["place", "season"]).size() <= 4).all()


def test_again_reads_no_pixel_and_chooses_the_same(
    world: worlds.Published,
    catalog: Catalog,
    triplets: gathering.Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog, limit=1)
    reports = []
    write = store.write
    monkeypatch.setattr(
        store, "write", lambda *a, **k: reports.append(write(*a, **k)) or reports[-1]
    )
    again = gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog, limit=1)
    pd.testing.assert_frame_equal(first, again)
    assert [r.pixels_read for r in reports] == [0] * len(reports)


def test_patches_without_a_match_say_why(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path
) -> None:
    clear = replace(triplets, rule=replace(RULE, max_cloud=0.0))
    table = gathering.gather(clear, world.aoi, tmp_path, catalog=catalog)
    assert set(table["state"]) == {"unmatched"}
    assert table["reason"].str.contains("at most 0.0 % cloud").all()
    assert not (tmp_path / "cubes").exists()


def test_what_a_catalogue_lacks_is_named_before_anything(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path
) -> None:
    products = {k: v for k, v in catalog.products.items() if not k.startswith("insar")}
    poor = replace(catalog, products=products)
    with pytest.raises(
        CubeError, match=r"insar/coherence: the catalogue has no such layer; insar/p"
    ):
        gathering.gather(triplets, world.aoi, tmp_path / "a", catalog=poor)
    with pytest.raises(
        CubeError, match=r"insar/coherence: collection 'sim-insar' has nothing there"
    ):
        gathering.gather(replace(triplets, time=("2001", "2002")), world.aoi, tmp_path / "a",
                         catalog=catalog)  # fmt: skip
    assert not (tmp_path / "a").exists()
    with pytest.raises(CubeError, match="all land: s1/backscatter: the catalogue has no such"):
        gathering.gather("deepsentinel-1k", None, tmp_path / "a", catalog="earth-search")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gathering.recipe("sen12s"), "did you mean 'sen12ts'"),
        (lambda: gathering.recipe("sen12ts", without=["s1/x"]), "has no layer 's1/x'"),
        (lambda: gathering.recipe("sen12ts", without=["insar/phase"]), "chooses its dates by"),
        (lambda: gathering.gather("sen12ts", None, "x", catalog="simulated"), "covers an area"),
    ],
)
def test_wrong_names(call, message: str) -> None:
    with pytest.raises(CubeError, match=message):
        call()


def test_points_with_one_pair_each(
    world: worlds.Published, catalog: Catalog, tmp_path: Path
) -> None:
    made = gathering.recipe(
        "deepsentinel-1k", time=("2021-05-01", "2021-06-17"), edge=640.0, seed=3
    )
    area = json.loads(world.aoi.read_text())
    table = gathering.gather(made, area, tmp_path, catalog=catalog, limit=6)
    matched = table[table["state"] == "matched"]
    assert len(matched) == 6
    assert (matched["gap_hours"].abs() <= 72).all()
    assert matched["name"].is_unique
    for path in matched["store"]:
        tree = cubes.open(path)
        assert tree["s1"].sizes["time"] == tree["s2"].sizes["time"] == 1
        assert tree["s2"].sizes["y"] == tree["s2"].sizes["x"] == 64
    rest = table[table["state"] == "unmatched"]
    assert rest["reason"].str.len().gt(10).all()
    again = gathering.gather(made, area, tmp_path, catalog=catalog, limit=6)
    assert list(again["name"]) == list(table["name"])
    assert len(cubes.corpus(list(matched["store"]), name="points").table) == 6
    assert np.isfinite(matched["cloud_cover"].astype(float)).all()
