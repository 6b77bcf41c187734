"""Scores from sums agree with independent implementations, and intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics import F1Score, JaccardIndex

from deepsentinel.evaluation import metrics


def test_map_scores_equal_torchmetrics_with_unknown_pixels_left_out() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(-1, 5, 4000)  # -1: nodata or ignored
    guess = np.where(rng.random(4000) < 0.6, np.maximum(truth, 0), rng.integers(0, 5, 4000))
    matrix = metrics.confusion(truth, guess, 6)  # class 5 occurs nowhere
    assert matrix.sum() == (truth >= 0).sum()
    scores = metrics.map_scores(matrix)
    t, g = torch.from_numpy(truth), torch.from_numpy(guess)
    kind = {"task": "multiclass", "num_classes": 6, "ignore_index": -1, "average": "macro"}
    assert scores["mIoU"] == pytest.approx(float(JaccardIndex(**kind)(g, t)), abs=1e-6)
    assert scores["mF1"] == pytest.approx(float(F1Score(**kind)(g, t)), abs=1e-6)
    known = truth >= 0
    assert scores["OA"] == pytest.approx(reference.accuracy_score(truth[known], guess[known]))
    assert np.isnan(metrics.class_scores(matrix)["iou"][5])


def test_a_guess_that_is_no_class_is_refused_but_ignored_pixels_may_hold_anything() -> None:
    assert metrics.confusion([-1, 0], [99, 0], 2).sum() == 1
    with pytest.raises(ValueError, match=r"0\.\.1"):
        metrics.confusion([0], [2], 2)


def test_an_empty_map_scores_nan_without_a_warning() -> None:
    scores = metrics.map_scores(np.zeros((3, 3)))
    assert all(np.isnan(v) for v in scores.values())


def test_regression_scores_equal_sklearn() -> None:
    rng = np.random.default_rng(1)
    y = rng.normal(0.5, 0.2, 3000)
    p = 0.8 * y + rng.normal(0.1, 0.1, 3000)
    floor = np.full(3000, 0.45)
    dirty = np.append(y, np.nan)
    sums = metrics.regression_sums(dirty, np.append(p, 0.3))
    base = metrics.regression_sums(y, floor)
    scores = metrics.regression_scores(sums, base)
    assert sums[0] == 3000
    assert scores["R2"] == pytest.approx(reference.r2_score(y, p))
    assert scores["MAE"] == pytest.approx(reference.mean_absolute_error(y, p))
    assert scores["RMSE"] == pytest.approx(reference.root_mean_squared_error(y, p))
    assert scores["bias"] == pytest.approx((p - y).mean())
    assert scores["r"] == pytest.approx(np.corrcoef(y, p)[0, 1])
    skill = 1 - ((p - y) ** 2).sum() / ((floor - y) ** 2).sum()
    assert scores["skill"] == pytest.approx(skill)
    same = metrics.regression_scores(base, base)
    assert same["skill"] == 0
    assert np.isnan(same["r"])


def test_sums_of_parts_are_sums_of_the_whole() -> None:
    rng = np.random.default_rng(2)
    y, p = rng.normal(size=(2, 500))
    tally = metrics.Tally()
    for tile, part in enumerate(np.array_split(np.arange(500), 7)):
        tally.add("a", (0, tile), metrics.regression_sums(y[part], p[part]))
    np.testing.assert_allclose(tally.total("a"), metrics.regression_sums(y, p))
    assert tally.stacked("a").shape == (7, 9)


def test_contenders_scored_on_different_tiles_are_refused() -> None:
    tally = metrics.Tally()
    tally.add("a", 1, np.ones(3))
    tally.add("b", 2, np.ones(3))
    with pytest.raises(ValueError, match="b was scored on other tiles"):
        tally.tiles()


def test_bootstrap_interval_by_tile_covers_where_one_by_pixel_would_not() -> None:
    # 40 tiles whose means differ: the interval must be that of a mean of 40, not of 4,000.
    rng = np.random.default_rng(3)
    hits, widths = 0, []
    weights = metrics.draws(40, 400, seed=0)
    for _ in range(100):
        tiles = rng.normal(0, 1, 40)[:, None] + rng.normal(0, 0.1, (40, 100))
        stacked = np.stack([np.full(40, 100.0), tiles.sum(1)], 1)
        drawn = metrics.bootstrap(stacked, weights, lambda s: s[:, 1] / s[:, 0])
        low, high = metrics.interval(drawn)
        hits += low <= 0 <= high
        widths.append(high - low)
    assert 85 <= hits <= 100
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.15)
    assert (metrics.draws(40, 400, seed=0) == weights).all()
    assert (weights.sum(1) == 40).all()


def test_paired_draws_see_a_small_lead_that_unpaired_ones_would_not() -> None:
    rng = np.random.default_rng(4)
    base = rng.normal(0, 1, 50)
    weights = metrics.draws(50, 500, seed=1)

    def mean(s: np.ndarray) -> np.ndarray:
        return s[:, 0] / 50

    a = metrics.bootstrap((base + 0.1)[:, None], weights, mean)
    b = metrics.bootstrap(base[:, None], weights, mean)
    low, high = metrics.interval(a - b)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


def test_interval_of_nothing_is_nan() -> None:
    assert all(np.isnan(metrics.interval(np.array([np.nan]))))


def _mean(s: np.ndarray) -> np.ndarray:
    return s[:, 1] / s[:, 0]


def test_too_few_tiles_give_no_interval() -> None:
    for n in (1, 2, 7, 8):
        drawing = metrics.Resampling.of(list(range(n)), 200, 0)
        values = np.random.default_rng(n).normal(1, 0.01, n)
        drawn = metrics.bootstrap(np.stack([np.ones(n), values], 1), drawing.weights, _mean)
        low, high = drawing.interval(drawn, float(values.mean()))
        assert np.isfinite([low, high]).all() == (n >= 8), n
        assert ("tiles of ground" in drawing.lacking) == (n < 8)
    one = metrics.Resampling.crossed(list(range(9)), [0] * 9, 50, 0)
    assert "one block of dates" in one.lacking
    assert np.isnan(one.interval(np.ones(50), 1.0)).all()


@pytest.mark.parametrize(("tiles", "blocks", "of_tile"), [(16, 3, 0.0), (12, 6, 1.0), (30, 4, 0.5)])
def test_an_interval_covers_errors_that_a_block_of_dates_or_a_tile_shares(
    tiles: int, blocks: int, of_tile: float
) -> None:
    # what weather did to a block strikes all of its tiles; drawn cell by cell, 95 % cover 36 %
    rng = np.random.default_rng(5)
    keys = [(t, b) for t in range(tiles) for b in range(blocks)]
    ground, dates = [t for t, _ in keys], [b for _, b in keys]
    drawing = metrics.Resampling.crossed(ground, dates, 300, 0)
    assert (drawing.tiles, drawing.blocks) == (tiles, blocks)
    alone = metrics.draws(len(keys), 300, 0)
    hits = naive = 0
    for _ in range(200):
        shared = rng.normal(0, of_tile, (tiles, 1)) + rng.normal(0, 1, (1, blocks))
        cell = (shared + rng.normal(0, 0.5, (tiles, blocks))).ravel()
        stacked = np.stack([np.ones(len(cell)), cell], 1)
        drawn = metrics.bootstrap(stacked, drawing.weights, _mean)
        low, high = drawing.interval(drawn, float(cell.mean()))
        hits += low <= 0 <= high
        low, high = metrics.interval(metrics.bootstrap(stacked, alone, _mean))
        naive += low <= 0 <= high
    assert hits >= 180, hits  # of 200: 95 % is 190, and two standard errors are 6
    assert naive < 140, naive
