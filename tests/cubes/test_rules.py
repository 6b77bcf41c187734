"""Samples by rule: runs of Sentinel-1 on one track, Sentinel-2 matched, against brute force."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox

from cubes import CubeError, Series, Window, plan, split
from cubes.sampling import samples as planning
from cubes.sampling.splits import leaks
from cubes.store import verbs

_spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("streams.py"))
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(60)

HOLES = {
    "s1/backscatter": (4, slice(None), slice(0, 128), slice(0, 100)),
    "s2/reflectance": (slice(4, 6), slice(None), slice(128, 256), slice(0, 128)),
    "insar/coherence": (4, slice(None), slice(128, 256), slice(128, 256)),
    # the pair that ends at date 6
}
"""Patches whose pixels are lacking at some steps."""
TRACK = np.arange(10) % 2
S1 = 6.0 * np.arange(10)
S2 = 1.125 + 5.0 * np.arange(8)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("rules") / "runs.zarr"
    return path, streams.write_store(path, bands=("B02",), nodata=HOLES)


def hole(name: str, step: int, y: int, x: int) -> bool:
    """Return whether a patch lacks pixels of a layer at a step."""
    steps, _, rows, columns = HOLES[name]
    mine = steps == step if isinstance(steps, int) else step in range(steps.start, steps.stop)
    return bool(mine) and y == rows.start and x == columns.start


def expected(rule: Series) -> set[tuple[Any, ...]]:
    """Return (y, x, radar steps, optical steps) of every sample, by looking at all of them."""
    step, gap = pd.Timedelta(rule.step).days, pd.Timedelta(rule.gap) / pd.Timedelta("1D")
    out = set()
    for y, x, first in product((0, 128), (0, 128), range(10)):
        radar = [i for i in range(first, 10) if (S1[i] - S1[first]) % step == 0][: rule.dates]
        if len(radar) < rule.dates or len({TRACK[i] for i in radar}) > 1:
            continue
        if any(hole("s1/backscatter", i, y, x) for i in radar):
            continue
        # pairs look back 12 days, are numbered by their later date, and begin with the third
        if rule.pairs and any(i < 2 or hole("insar/coherence", i - 2, y, x) for i in radar):
            continue
        apart = {j: abs(S2[j] - S1[radar[-1]]) for j in range(8)}
        near = [j for j, far in apart.items() if far <= gap]
        near = [j for j in near if not hole("s2/reflectance", j, y, x)]
        if rule.match == "nearest":
            near = sorted(near, key=lambda j: apart[j])[:1]
        if near:
            out.add((y, x, tuple(radar), tuple(near)))
    return out


def found(samples: Any) -> list[tuple[Any, ...]]:
    """Return the same of a plan, from its table and dates."""
    table = samples.table()
    dates = [[tuple(samples.dates(r, c)) for c in ("s1", "s2")] for r in range(len(samples))]
    return [(y, x, *d) for y, x, d in zip(table.y, table.x, dates, strict=True)]


@pytest.mark.parametrize("match", ["nearest", "all"])
@pytest.mark.parametrize("pairs", [False, True], ids=["runs", "pairs"])
@pytest.mark.parametrize("dates", [1, 2, 3])
@pytest.mark.parametrize("gap", ["3D", "8D"])
def test_rules_against_brute_force(
    cube: Any, dates: int, pairs: bool, match: Any, gap: str
) -> None:
    rule = Series(dates=dates, pairs=pairs, gap=gap, match=match)
    samples = plan(cube[0], Window(size=128, rule=rule), max_gap=None)
    got = found(samples)
    assert len(set(got)) == len(got)
    assert set(got) == expected(rule)
    table = samples.table()
    assert (table.s1_dates == dates).all()
    start = pd.Timestamp("2022-03-01T06:00")
    for row, (_, _, radar, optical) in zip(table.itertuples(), got, strict=True):
        every = [*(S1[i] for i in radar), *(S2[j] for j in optical)]
        assert row.start == start + pd.Timedelta(days=min(every))
        assert row.end == start + pd.Timedelta(days=max(every))
        assert row.s2_dates == len(optical)
    times = [radar[-1] for _, _, radar, _ in got]
    assert times == sorted(times), "in the order of time, then of windows"


def test_blocks_of_windows_change_nothing(cube: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(size=128, rule=Series(dates=2, gap="8D", match="all"))
    whole = plan(cube[0], window)
    monkeypatch.setattr(planning, "BLOCK", 30)  # three windows at a time, then one
    parts = plan(cube[0], window)
    assert parts.sha256 == whole.sha256
    pd.testing.assert_frame_equal(parts.table(), whole.table())


def test_the_holes_matter() -> None:
    """The brute force itself: each kind of hole drops some samples."""
    rule = Series(dates=2, pairs=True)
    whole = len(expected(rule))
    for name, one in list(HOLES.items()):
        HOLES[name] = (99, *one[1:])
        try:
            assert len(expected(replace(rule, gap="8D"))) >= whole
            assert len(expected(rule)) > whole, name
        finally:
            HOLES[name] = one


@pytest.mark.parametrize("epoch", [None, 0, 3])
def test_what_is_read_is_what_was_stored(cube: Any, epoch: int | None) -> None:
    path, stored = cube
    rule = Series(dates=3, pairs=True, gap="8D", match="random")
    samples = plan(path, Window(size=48, within=128, crops=2, rule=rule))
    read = samples.read(np.arange(len(samples)), threads=2, epoch=epoch)
    assert read["s1/backscatter"].shape[1:] == (3, 2, 48, 48)
    assert read["s2/reflectance"].shape[1:] == (1, 1, 48, 48)
    assert read["s1/present"].all()
    assert read["s2/present"].all()
    for i in range(len(samples)):
        y, x = read["place"][i, 1:3]
        radar, optical = (samples.dates(i, c, epoch=epoch) for c in ("s1", "s2"))
        steps = {"s1/backscatter": radar, "insar/coherence": radar - 2, "s2/reflectance": optical}
        for name, wanted in steps.items():
            want = stored[name][wanted][..., y : y + 48, x : x + 48]
            np.testing.assert_array_equal(read[name][i], want, err_msg=name)


def test_a_random_match_is_a_pure_function(cube: Any) -> None:
    rule = Series(dates=2, gap="8D", match="random")
    window = Window(size=64, within=128, crops=2, rule=rule)
    samples = plan(cube[0], window, seed=4)
    every = plan(cube[0], replace(window, rule=replace(rule, match="all")), seed=4)
    seen: list[set[int]] = [set() for _ in range(len(samples))]
    for epoch in range(40):
        for row in range(len(samples)):
            (step,) = samples.dates(row, "s2", epoch=epoch).tolist()
            seen[row].add(step)
            assert samples.take([row]).dates(0, "s2", epoch=epoch).tolist() == [step]
    assert seen[0::2] == seen[1::2], "crops of a cell share their dates"
    assert seen == [set(every.dates(r, "s2").tolist()) for r in range(len(every))]
    assert max(map(len, seen)) > 2
    other = plan(cube[0], window, seed=5)
    draws = [[s.dates(r, "s2").tolist() for r in range(len(s))] for s in (samples, other)]
    assert draws[0] != draws[1]
    few = plan(cube[0], Window(size=128, dates=2, rule=replace(rule, match="all")))
    assert max(len(few.dates(r, "s2")) for r in range(len(few))) == 2
    assert few.read([0])["s2/reflectance"].shape[1] == 2
    assert few.table().s2_dates.max() > 2, "usable ones, as for every sample"


def _again(path: Path, change: Any) -> Path:
    """Write the cube at `path` again beside it, with its datasets changed."""
    nodes = {
        n: node.to_dataset(inherit=False) for n, node in streams.WRITTEN[path].subtree_with_keys
    }
    new = path.with_name(f"{change.__name__}.zarr")
    change(nodes)
    verbs.write(xr.DataTree.from_dict(nodes), new)
    return new


def test_pairs_look_back_one_step(cube: Any) -> None:
    """A date with pairs of 12 and 24 days has the one that the rule asks for."""

    def longer(nodes: dict[str, xr.Dataset]) -> None:
        one = nodes["insar"]
        back = one["reference_time"] - np.timedelta64(12, "D")
        two = one.assign_coords(
            pair=[f"q{i}" for i in range(8)],
            reference_time=("pair", back.to_numpy()),
            temporal_baseline=("pair", np.full(8, 24.0)),
        )
        nodes["insar"] = xr.concat([one, two.isel(pair=slice(2, None))], "pair")

    path = _again(cube[0], longer)
    stored = cube[1]["insar/coherence"]
    window = Window(size=128, rule=Series(dates=2, step="24D", pairs=True, gap="20D"))
    samples = plan(path, window)
    read = samples.read(np.arange(len(samples)))
    assert len(samples)
    for i in range(len(samples)):
        y, x = read["place"][i, 1:3]
        radar = samples.dates(i, "s1")
        want = stored[radar - 2][..., y : y + 128, x : x + 128]
        assert radar.min() >= 4, "two steps back"
        np.testing.assert_array_equal(read["insar/coherence"][i], want)
    entry = samples.stores[0].entries["insar/coherence"]
    assert entry.steps[[4, 9]].tolist() == [8, 13], "of 24 days, not the shorter"
    assert entry.since[9] == pytest.approx(samples.stores[0].days["s1"][9] - 24)
    usual = plan(path, Window(size=128)).stores[0].entries["insar/coherence"]
    assert usual.steps[[4, 9]].tolist() == [2, 7]


def test_of_two_equally_near_the_earlier(tmp_path: Path) -> None:
    first = tmp_path / "first.zarr"
    streams.write_store(
        first, shape=(64, 64), layers=("s1/backscatter", "s2/reflectance"), bands=("B02",),
        every=(6, 4), lag=0,
    )  # fmt: skip

    def tied(nodes: dict[str, xr.Dataset]) -> None:
        nodes["s2"] = nodes["s2"].assign_coords(time=nodes["s2"].time - np.timedelta64(3, "h"))

    samples = plan(_again(first, tied), Window(size=64, rule=Series(gap="2D")))
    got = {tuple(samples.dates(r, "s1")): samples.dates(r, "s2").tolist() for r in range(6)}
    assert got[(1,)] == [1], "days 4 and 8 beside day 6"
    assert got[(2,)] == [3]
    assert len(samples) == 6, "exactly two days count; days 30 and later have none"


def test_several_stores_and_missing_sensors(tmp_path: Path) -> None:
    layers = ("s1/backscatter", "s2/reflectance")
    west = GeoBox.from_bbox((440320, 5601280, 441600, 5602560), "EPSG:32632", resolution=10)
    paths = {}
    for name, own, more in (
        ("both", layers, {"seed": 1}),
        ("radar", layers[:1], {"geobox": west, "seed": 2}),
        ("optical", layers[1:], {"seed": 3}),
    ):
        paths[name] = tmp_path / f"{name}.zarr"
        streams.write_store(paths[name], shape=(128, 128), layers=own, bands=("B02",), **more)
    window = Window(size=128, rule=Series(dates=2, gap="8D", match="all"))
    samples = plan(list(paths.values()), window)
    table = samples.table().groupby("aoi")
    assert set(table.groups) == {"both", "radar"}, "without S1 there is no run"
    assert table.s2_dates.max()["radar"] == 0
    assert table.s2_dates.min()["both"] >= 1
    rows = np.array([0, len(samples) - 1])
    read = samples.read(rows)
    assert read["s2/present"].any(axis=1).tolist() == [True, False]
    assert (read["s2/reflectance"][1] == 0).all(), "nodata where the sensor is missing"
    assert read["s1/present"].all()
    assert len(plan([paths["radar"]], window)) == len(table.groups["radar"])
    with pytest.raises(CubeError, match="no sample left: 0 windows of 128 px times runs by Series"):
        plan([paths["optical"]], window)
    with pytest.raises(CubeError, match="no sample left: 0 windows"):  # no pair at all
        plan([paths["both"]], replace(window, rule=Series(dates=2, pairs=True)))


def test_the_hash_covers_listed_steps(cube: Any) -> None:
    window = Window(size=128, rule=Series(dates=2, gap="8D", match="all"))
    samples = plan(cube[0], window)
    assert plan(cube[0], window).sha256 == samples.sha256
    steps = samples._table.steps["s2"]
    row = int(np.flatnonzero((steps >= 0).sum(axis=1) > 2)[0])
    one = steps[row, 1]
    steps[row, 1] = steps[row, 0]  # the range stays
    assert plan(cube[0], window).sha256 != samples.sha256
    steps[row, 1] = one
    for change in ({"gap": "3D"}, {"match": "random"}, {"dates": 1}):
        rule = replace(window.rule, **change)  # type: ignore[type-var]
        assert plan(cube[0], replace(window, rule=rule)).sha256 != samples.sha256


def test_runs_are_split_by_time(cube: Any) -> None:
    samples = plan(cube[0], Window(size=128, rule=Series(dates=1)))
    parts = split(samples, by="time", block="12D", fractions=(0.5, 0.5))
    assert leaks(parts).empty
    usual = split(samples, by="time", fractions=(0.5, 0.5), block=None)
    assert {len(p) > 0 for p in usual.values()} == {True}


@pytest.mark.parametrize(
    ("window", "match"),
    [
        (Window(rule=Series(dates=0)), r"Series\(dates=0\).*at least 1"),
        (Window(rule=Series(dates=1.5)), "dates=1.5.*whole number"),  # type: ignore[arg-type]
        (Window(rule=Series(step="0D")), "step='0D'.*longer than nothing"),
        (Window(rule=Series(step="12")), "Series.step='12' is no length"),
        (Window(rule=Series(gap="-3D")), "Series.gap='-3D' is no length"),
        (Window(rule=Series(match="near")), "match='near'.*'nearest', 'random'"),  # type: ignore[arg-type]
        (Window(rule=Series(), period="60D"), "period='60D'.*or by a rule"),
        (Window(size=128, rule=Series(dates=9)), "no sample left.*fewer dates or another step"),
        (Window(size=128, rule=Series(step="5D", dates=2)), "0 windows of 128 px times runs"),
    ],
)
def test_rules_that_make_no_sense(cube: Any, window: Window, match: str) -> None:
    with pytest.raises(CubeError, match=match):
        plan(cube[0], window)
