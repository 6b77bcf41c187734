"""Floors: equal to textbook implementations, fitted on nothing but what they are given."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SkRidge

from cubes.physics import db, power
from deepsentinel.evaluation import baselines


def test_pixel_statistics_equal_numpy_on_the_usable_dates() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 2, 50)).astype(np.float32)
    valid = rng.random(x.shape) < 0.6
    valid[:, 1, 7] = False
    got = baselines.pixel_statistics(np.where(valid, x, 1e6).astype(np.float32), valid)
    got = got.reshape(5, 2, 50)
    for c in range(2):
        for p in range(50):
            seen = x[valid[:, c, p], c, p]
            if not len(seen):
                assert np.isnan(got[:, c, p]).all()
                continue
            want = [seen.mean(), seen.std(), *np.quantile(seen, baselines.QUANTILES)]
            np.testing.assert_allclose(got[:, c, p], want, atol=1e-5)


def test_probe_is_logistic_regression() -> None:
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 1500)
    x = (rng.normal(size=(3, 4))[y] * 0.7 + rng.normal(size=(1500, 4))).astype(np.float32)
    l2 = 1e-3
    probe = baselines.fit_probe(x, y, n_classes=3, fold=np.zeros(1500, bool), penalties=(l2,))
    z = (x - x.mean(0)) / x.std(0)
    # sklearn: C * sum(loss) + |w|^2 / 2; ours: mean(loss) + l2 |w|^2
    other = LogisticRegression(C=1 / (2 * l2 * 1500), max_iter=500).fit(z, y)
    # weights are known up to what softmax cannot see: a shift common to all classes
    ours = probe.weight - probe.weight.mean(1, keepdims=True)
    np.testing.assert_allclose(
        ours, other.coef_.T - other.coef_.T.mean(1, keepdims=True), atol=2e-2
    )
    assert (probe.predict(x) == other.predict(z)).mean() > 0.995


def test_probe_takes_the_penalty_that_held_out_tiles_prefer() -> None:
    # 60 noise features, 80 pixels: without a penalty the training pixels are learned by heart
    rng = np.random.default_rng(2)
    y = rng.integers(0, 2, 400)
    x = rng.normal(size=(400, 60)).astype(np.float32)
    x[:, 0] += 1.2 * y
    fold = np.arange(400) >= 80
    probe = baselines.fit_probe(x, y, n_classes=2, fold=fold, penalties=(1e-6, 1e-1))
    assert probe.l2 == 1e-1


def test_missing_features_count_as_the_mean_and_do_not_poison() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 600)
    x = (rng.normal(size=(600, 3)) + 2 * y[:, None]).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan
    probe = baselines.fit_probe(x, y, n_classes=2, fold=np.zeros(600, bool))
    assert np.isfinite(probe.weight).all()
    assert (probe.predict(x) == y).mean() > 0.9
    with pytest.raises(ValueError, match="no labelled pixel"):
        baselines.fit_probe(x[:0], y[:0], n_classes=2, fold=np.zeros(0, bool))


def test_ridge_from_sums_equals_sklearn_on_all_pixels() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(2, 3, (5, 900)).astype(np.float32)
    y = (x * np.array([1, -2, 0.5, 0, 0])[:, None]).sum(0) + rng.normal(0, 1, 900)
    y = y.astype(np.float32)
    y[10:20] = np.nan
    ridge = baselines.Ridge()
    for part in np.array_split(np.arange(900), 9):
        ridge.add(x[:, part], y[part])
    ridge.fit()
    good = np.isfinite(y)
    z = (x[:, good] - x[:, good].mean(1, keepdims=True)) / x[:, good].std(1, keepdims=True)
    other = SkRidge(alpha=ridge.penalty * good.sum()).fit(z.T, y[good])
    np.testing.assert_allclose(ridge.predict(x[:, good]), other.predict(z.T), atol=1e-3)


def test_ridge_chooses_its_penalty_on_the_other_fold() -> None:
    rng = np.random.default_rng(5)
    weight = np.zeros(40)
    weight[0] = 1
    ridge = baselines.Ridge()
    for fold, n in ((0, 45), (1, 2000)):
        x = rng.normal(size=(40, n)).astype(np.float32)
        ridge.add(x, (weight @ x + rng.normal(0, 2, n)).astype(np.float32), fold=fold)
    ridge.fit()
    assert ridge.penalty == max(baselines.Ridge.penalties)
    with pytest.raises(ValueError, match="no pixel"):
        baselines.Ridge().fit()


def test_ridge_uses_what_missingness_says_and_survives_constant_features() -> None:
    rng = np.random.default_rng(6)
    x = np.stack([rng.normal(size=500), np.ones(500)]).astype(np.float32)
    hole = rng.random(500) < 0.5
    y = np.where(hole, 5.0, x[0]).astype(np.float32)
    x[0, hole] = np.nan
    ridge = baselines.Ridge()
    ridge.add(x, y)
    np.testing.assert_allclose(ridge.fit().predict(x), y, atol=1e-3)


def test_climatology_is_the_mean_of_the_month_and_wraps_round_the_year() -> None:
    clim = baselines.Climatology()
    clim.add(1, np.array([0.1, 0.3, np.nan], np.float32))
    clim.add(7, np.array([0.8], np.float32))
    table = clim.table()
    assert table[0] == pytest.approx(0.2)
    assert table[6] == pytest.approx(0.8)
    assert table[3] == pytest.approx(0.5)  # April, halfway up
    assert table[9] == pytest.approx(0.5)  # October, halfway down to January
    with pytest.raises(ValueError, match="no value"):
        baselines.Climatology().table()


@pytest.mark.parametrize(
    ("day", "month"), [(0.0, 1), (30.99, 1), (31.0, 2), (59.5, 2), (60.0, 3), (9497.4, 1), (-1, 12)]
)
def test_month_of_day_since_2000(day: float, month: int) -> None:
    assert baselines.month_of(day) == month


def _radar(n: int = 6) -> tuple[baselines.Radar, np.ndarray]:
    rng = np.random.default_rng(7)
    linear = power(rng.normal(-12, 3, (n, 2, 4)))
    linear[2, :, 1] = np.nan
    coherence = rng.random((n, 2, 4)).astype(np.float32)
    coherence[0] = np.nan
    days = np.arange(n) * 12.0
    return (
        baselines.Radar(power=linear, coherence=coherence, incidence=None, days=days),
        linear,
    )


def test_radar_features_average_in_linear_power() -> None:
    radar, linear = _radar()
    got = baselines.radar_features(radar, [24.0])
    nearest, narrow = got[0, :3], got[0, 3:6]
    np.testing.assert_allclose(nearest[0, [0, 2, 3]], db(linear[2, 0])[[0, 2, 3]], rtol=1e-5)
    assert np.isnan(nearest[0, 1])  # nodata at the nearest date is missing, not another date
    np.testing.assert_allclose(nearest[2, 0], nearest[1, 0] - nearest[0, 0], rtol=1e-5)
    np.testing.assert_allclose(narrow, nearest, rtol=1e-5)  # 8 days hold that date alone
    wide = got[0, 6:9]
    np.testing.assert_allclose(wide[0], db(np.nanmean(linear[1:4, 0], 0)), rtol=1e-4)
    dec = np.nanmean(db(linear[1:4, 0]), 0)
    assert (wide[0] > dec + 0.05).any()  # averaging decibels would be darker


def test_radar_features_do_not_look_at_the_query_only() -> None:
    radar, _ = _radar()
    got = baselines.radar_features(radar, [0.0, 60.0])
    assert got.shape[0] == 2
    assert got.shape[2] == 4
    assert not np.allclose(got[0], got[1], equal_nan=True)
    alone = baselines.radar_features(radar, [60.0])
    np.testing.assert_array_equal(alone[0], got[1])


def test_a_ridge_knows_that_seasons_differ_between_grounds() -> None:
    # ground of high backscatter greens in spring, that of low backscatter in autumn
    rng = np.random.default_rng(8)
    days = np.arange(0.0, 360.0, 12.0)
    ground = rng.normal(-12, 3, 400)
    power_ = power(ground + rng.normal(0, 0.3, (len(days), 1, 400)))
    radar = baselines.Radar(
        power=np.repeat(power_, 2, 1), coherence=None, incidence=None, days=days
    )
    asked = np.array([45.0, 135.0, 225.0, 315.0])
    x = baselines.radar_features(radar, asked)
    y = np.sin(2 * np.pi * asked[:, None] / 365.25) * (ground + 12) / 3
    ridge = baselines.Ridge()
    wide, flat = np.moveaxis(x, 0, 1).reshape(x.shape[1], -1), y.ravel().astype(np.float32)
    half = np.arange(len(flat)) % 2 == 0
    ridge.add(wide[:, half], flat[half])
    error = ridge.fit().predict(wide[:, ~half]) - flat[~half]
    assert (error**2).mean() < 0.1 * flat.var()


def test_interpolation_is_linear_between_usable_dates_and_constant_beyond() -> None:
    values = np.array([[0.2, np.nan], [np.nan, 0.4], [0.6, np.nan]], np.float32)
    days = np.array([0.0, 10.0, 20.0])
    got = baselines.interpolate(values, days, np.array([-5.0, 5.0, 25.0]))
    np.testing.assert_allclose(got["linear"][:, 0], [0.2, 0.3, 0.6], rtol=1e-5)
    np.testing.assert_allclose(got["last"][:, 0], [0.2, 0.2, 0.6], rtol=1e-5)
    np.testing.assert_allclose(got["linear"][:, 1], [0.4, 0.4, 0.4], rtol=1e-5)
    none = baselines.interpolate(np.full((2, 1), np.nan, np.float32), days[:2], days[:1])
    assert np.isnan(none["linear"]).all()
