"""The predecessors' recipes on a simulated archive: what is kept, and why a patch has nothing."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cubes
from cubes import grid, sen12ts, worlds
from cubes.corpora import foretelling, gathering
from cubes.store import verbs as store
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
        # what the restricted cube holds is what the whole period would have given
        whole = cubes.Request.of(
            world.aoi, triplets.time, triplets.layers, catalog=catalog, bands=triplets.bands,
            like=tree["s2"].to_dataset(),
        ).open()  # fmt: skip
        found = sen12ts.candidates(whole, RULE)
        dates = {whole["s1"].to_dataset()["time"].to_numpy()[i] for r in found["s1"] for i in r}
        assert set(tree["s1"].to_dataset()["time"].to_numpy()) == dates
        written = sen12ts.export(row["store"], tmp_path / "triplets" / row["name"], rule=RULE)
        assert (
            len(written[written["name"].str.contains("s1date")]["name"].unique()) == row["series"]
        )
        seasons = sen12ts.series(row["store"], RULE)
        assert f"; {len(seasons)} stay with at most 4 a tile and season" in seasons.attrs["why"]
        none = sen12ts.series(row["store"], replace(RULE, max_cloud=-1))
        assert none.empty
        assert re.search(r"; 0 of \d+ Sentinel-2 scenes have .* -1 % cloud", none.attrs["why"])
        assert "0 of the series end within" in none.attrs["why"]
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


def test_each_zone_has_its_own_cells_and_slivers_have_none(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path
) -> None:
    table = gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog)
    zones = {str(cubes.load_plan(path).geobox.crs) for path in table["store"].dropna()}
    assert zones == {"EPSG:32631", "EPSG:32632"}
    every = replace(triplets, min_share=0.0)
    assert len(gathering.gather(every, world.aoi, tmp_path, catalog=catalog)) == len(table) + 1


def test_cells_share_one_search_per_collection(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from cubes.stac import search

    walked = []
    walk = search.walk
    monkeypatch.setattr(search, "walk", lambda *a: walked.append(a[1]) or walk(*a))
    table = gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog)
    assert len(table) == 3
    collections = {catalog.products[n].collection for n in triplets.layers if n in catalog.products}
    # two zones are two blocks, and the check for lacking layers walks once more
    assert len(walked) <= 3 * len(collections)
    assert set(walked) == collections


def test_a_patch_that_fails_stops_no_other_and_is_named(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(world.catalog.parent.parent, copy)
    here = copy / world.catalog.relative_to(world.catalog.parent.parent)
    broken = cubes.catalog("simulated", url=str(here))
    whole = gathering.gather(triplets, world.aoi, tmp_path / "whole", catalog=broken, limit=2)
    # pixels that only the second cell reads: break what its labels come from, file by file
    target = whole["store"].iloc[1]
    plan = cubes.load_plan(target)
    first = {a.href for x in cubes.load_plan(whole["store"].iloc[0]).arrays for s in x.steps
             for v in s.values() for a in v}  # fmt: skip
    own = [a.href for x in plan.arrays for s in x.steps for v in s.values() for a in v
           if a.href not in first]  # fmt: skip
    if not own:
        pytest.fail("the second cell reads nothing of its own: the test proves nothing")
    Path(own[0].removeprefix("file://")).write_bytes(b"no TIFF")
    with pytest.raises(CubeError, match=r"1 of 2 patches failed, the first \(.*run again"):
        gathering.gather(triplets, world.aoi, tmp_path / "out", catalog=broken, limit=2)
    told = pd.read_csv(tmp_path / "out" / "patches.csv")
    assert sorted(told["state"]) == ["failed", "matched"]
    assert told["reason"].dropna().str.len().gt(10).all()


def test_a_search_that_fails_stops_no_other_and_loses_no_row(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog)
    assert len(whole) == 3
    # the same again asks nothing: what is finished is finished
    asked = []
    plan = cubes.Request.plan
    monkeypatch.setattr(cubes.Request, "plan", lambda self: asked.append(self) or plan(self))
    done = (whole["state"] == "matched").sum()
    again = gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog)
    assert len(asked) == len(whole) - done
    assert list(again["name"]) == list(whole["name"])
    # a server that fails once, for a patch that is not there any more
    shutil.rmtree(whole["store"].dropna().iloc[0])

    def fails(self: cubes.Request) -> None:
        raise CubeError("searching catalogue 'x' failed: 503")

    monkeypatch.setattr(cubes.Request, "plan", fails)
    with pytest.raises(CubeError, match=r"of 3 patches failed.*503.*run again"):
        gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog)
    told = pd.read_csv(tmp_path / "patches.csv")
    assert list(told["name"]) == list(whole["name"])
    monkeypatch.setattr(cubes.Request, "plan", plan)
    assert list(gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog)["state"]) == list(
        whole["state"]
    )


def test_a_fault_of_the_program_stops_no_other_patch_and_is_shown(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It ended the run, hours in, and no later patch was tried."""
    plan, tried = cubes.Request.plan, []

    def fails(self: cubes.Request) -> object:
        tried.append(self)
        if len(tried) == 1:
            raise ZeroDivisionError("division by zero")
        return plan(self)

    monkeypatch.setattr(cubes.Request, "plan", fails)
    shown = r"(?s)1 of 3 patches failed.*fault of the program:.*in fails.*ZeroDivisionError"
    with pytest.raises(CubeError, match=shown):
        gathering.gather(triplets, world.aoi, tmp_path, catalog=catalog)
    told = pd.read_csv(tmp_path / "patches.csv")
    assert len(tried) == len(told) == 3
    assert told["state"].iloc[0] == "failed"
    assert told["traceback"].notna().tolist() == [True, False, False]
    assert "matched" in set(told["state"])
    # in the search for a block of cells as well
    monkeypatch.setattr(gathering.search, "searched", lambda *_: 1 / 0)
    with pytest.raises(CubeError, match="fault of the program"):
        gathering.gather(replace(triplets, seed=1), world.aoi, tmp_path / "b", catalog=catalog)
    assert len(pd.read_csv(tmp_path / "b" / "patches.csv")) == 3


def test_a_catalogue_that_is_down_ends_a_run_early(
    world: worlds.Published, catalog: Catalog, triplets: gathering.Recipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tried = []

    def fails(self: cubes.Request) -> None:
        tried.append(self)
        raise CubeError("503")

    monkeypatch.setattr(cubes.Request, "plan", fails)
    small = replace(triplets, edge=320.0)
    with pytest.raises(CubeError, match="8 of 8 patches failed"):
        gathering.gather(small, world.aoi, tmp_path, catalog=catalog)
    assert len(tried) == gathering.HOPELESS


def test_areas_have_their_own_labels(tmp_path: Path) -> None:
    for area, label in (("iowa", "cdl"), ("catalonia", "sigpac"), ("uganda", "worldcover")):
        lacks = rf"for {area}: .*labels/{label}: the catalogue has no such"
        with pytest.raises(CubeError, match=lacks):
            gathering.gather("sen12ts", area, tmp_path, catalog="earth-search")


@pytest.mark.parametrize(
    ("area", "label"),
    [
        ((-93.2, 41.9, -93.1, 42.0), "cdl"),  # a box in Iowa, under no name
        ("iowa", "cdl"),
        ("central-valley", "cdl"),
        ("california", "cdl"),
        ((-124.6, 40.3, -124.0, 40.5), "cdl"),  # half of it sea
        ((1.0, 41.5, 1.2, 41.6), "sigpac"),
        ("catalonia", "sigpac"),
        ((2.0, 48.0, 2.1, 48.1), "worldcover"),  # France
        ((-4.0, 40.0, -3.9, 40.1), "worldcover"),  # Spain, not Catalonia
        ((-150.0, 64.0, -149.0, 65.0), "worldcover"),  # Alaska has no CDL
        ((-98.0, 48.5, -97.0, 52.0), "worldcover"),  # more of Canada than of the United States
        ("uganda", "worldcover"),
    ],
)  # fmt: skip
def test_labels_go_by_place_and_are_told_before(area: Any, label: str, tmp_path: Path) -> None:
    made = gathering.recipe("sen12ts")
    where = grid.as_aoi(area)
    found = [n for n in gathering.there(made, where).layers if n.startswith("labels/")]
    assert found == [f"labels/{label}"]
    if not isinstance(area, str):  # named areas have thousands of cells
        told = foretelling.foretell(made, area, tmp_path)
        assert f"labels: {label}," in str(told)
    without = gathering.recipe("sen12ts", without=["labels/worldcover"])
    assert gathering.there(without, where) is without


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


def test_fewer_points_are_the_first_of_all(
    world: worlds.Published, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By window of time, as the whole recipe draws them."""
    made = gathering.recipe(
        "deepsentinel-1k", time=("2021-05-01", "2021-06-17"), edge=640.0, points=9
    )
    matched = {"state": "matched", "reason": ""}
    monkeypatch.setattr(
        gathering._Gathering, "row",
        lambda _, aoi, _box, time: {"name": aoi.name, "start": time[0], **matched},
    )  # fmt: skip
    area = json.loads(world.aoi.read_text())
    every = gathering.gather(made, area, tmp_path / "a", catalog=catalog)
    for limit in (2, 5):
        few = gathering.gather(made, area, tmp_path / f"{limit}", catalog=catalog, limit=limit)
        assert len(few) == limit
        for start, names in few.groupby("start")["name"]:
            assert list(names) == list(every[every["start"] == start]["name"])[: len(names)]
