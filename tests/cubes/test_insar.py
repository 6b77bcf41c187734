"""Coherence of simulated pairs against the closed form; chunks do not matter; phase stays."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import wrap_xr, xr_coords
from scipy.ndimage import gaussian_filter

from cubes.radar import insar
from cubes.types import CubeError

SIZE = 700


def pair(true: float, *, oversample: int = 1, seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """Return two circular Gaussian images of known coherence, band-limited by `oversample`."""
    rng = np.random.default_rng([seed, round(true * 1000), oversample])
    n = SIZE // oversample

    def noise() -> np.ndarray:
        white = rng.normal(size=(n, n)) + 1j * rng.normal(size=(n, n))
        if oversample == 1:
            return white
        spectrum = np.fft.fftshift(np.fft.fft2(white))
        pad = (SIZE - n) // 2
        padded = np.pad(spectrum, ((pad, SIZE - n - pad),) * 2)
        return np.fft.ifft2(np.fft.ifftshift(padded)) * oversample**2

    common, own = noise(), noise()
    other = true * common + np.sqrt(1 - true**2) * own
    return tuple(xr.DataArray(v.astype("complex64"), dims=("y", "x")) for v in (common, other))  # type: ignore[return-value]


# Touzi's mean for independent looks, tabulated by the paper for 3x3, 5x5, 7x7, 5x15
KNOWN = {9: (0.301, 0.396, 0.621, 0.901), 25: (0.180, 0.332, 0.607, 0.901),
         49: (0.126, 0.312, 0.600, 0.900), 75: (0.102, 0.311, 0.603, 0.901)}  # fmt: skip


@pytest.mark.parametrize("looks", KNOWN)
def test_closed_form_agrees_with_tabulated_values(looks: int) -> None:
    got = insar.expected_coherence([0.0, 0.3, 0.6, 0.9], looks)
    np.testing.assert_allclose(got, KNOWN[looks], atol=0.012)
    assert insar.expected_coherence(1.0, looks) == 1


@pytest.mark.parametrize("window", [(3, 3), (5, 5), (7, 7)])
@pytest.mark.parametrize("true", [0.0, 0.3, 0.6, 0.9])
def test_independent_looks_are_within_a_hundredth_of_the_closed_form(
    window: tuple[int, int], true: float, figure
) -> None:
    a, b = pair(true)
    mean = float(insar.coherence(a, b, window=window)["coherence"][8:-8, 8:-8].mean())
    off = mean - float(insar.expected_coherence(true, window[0] * window[1]))
    figure(f"coherence {true}, {window} independent looks, off the closed form", off, "0.01")
    assert SIZE**2 > 1e5
    assert abs(off) < 0.01


@pytest.mark.parametrize(("window", "within"), [((3, 3), 0.025), ((5, 5), 0.01), ((5, 15), 0.01)])
@pytest.mark.parametrize("true", [0.0, 0.3, 0.6, 0.9])
def test_oversampled_images_follow_their_effective_looks(
    window: tuple[int, int], within: float, true: float, figure
) -> None:
    a, b = pair(true, oversample=2)
    looks = insar.effective_looks(a, window)
    assert looks < window[0] * window[1] / 2
    mean = float(insar.coherence(a, b, window=window)["coherence"][16:-16, 16:-16].mean())
    off = mean - float(insar.expected_coherence(true, looks))
    figure(f"coherence {true}, {window} 2 x oversampled, L_eff {looks:.1f}, off", off, f"{within}")
    assert abs(off) < within


def test_white_speckle_is_worth_its_pixels() -> None:
    a, _ = pair(0.0)
    assert insar.effective_looks(a, (5, 5)) == pytest.approx(25, rel=0.02)
    assert insar.effective_looks(a, (1, 1), multilook=(2, 4)) == pytest.approx(8, rel=0.02)


@pytest.mark.parametrize("chunk", [(64, 100), (33, 700), (700, 17)])
def test_any_chunking_gives_the_same(chunk: tuple[int, int], figure) -> None:
    a, b = (v[:300, :300] for v in pair(0.5))
    a[100:120, 50:200] = np.nan
    whole = insar.coherence(a, b, window=(5, 10), multilook=(1, 2))
    y, x = (min(c, 300) for c in chunk)
    lazy = insar.coherence(a.chunk(y=y, x=x), b.chunk(y=y, x=x), window=(5, 10), multilook=(1, 2))
    assert lazy["coherence"].chunks is not None
    for name in ("coherence", "phase"):
        np.testing.assert_allclose(lazy[name], whole[name], atol=1e-6)
        worst = float(np.nanmax(np.abs(lazy[name].to_numpy() - whole[name].to_numpy())))
        figure(f"{name}, chunks {chunk}, off the whole", worst, "1e-6")


def test_nan_stays_where_it_is() -> None:
    a, b = (v[:60, :60] for v in pair(0.9))
    a[20:30, 20:30] = np.nan
    found = insar.coherence(a, b, window=(3, 3))
    hole = np.zeros((60, 60), bool)
    hole[20:30, 20:30] = True
    # of the corners' windows 4 of 9 pixels lie in the image
    hole[np.ix_([0, -1], [0, -1])] = True
    for name in ("coherence", "phase"):
        np.testing.assert_array_equal(np.isnan(found[name]), hole)
        assert found[name].attrs["least_valid_share"] == 0.5
    # from either image, and down to one pixel where that is asked for
    np.testing.assert_array_equal(
        np.isnan(insar.coherence(b, a.where(True), window=(3, 3))["coherence"]), hole
    )
    hole[np.ix_([0, -1], [0, -1])] = False
    loose = insar.coherence(a, b, window=(3, 3), share=0)["coherence"]
    np.testing.assert_array_equal(np.isnan(loose), hole)
    nothing = insar.coherence(a.where(False), b, window=(3, 3))
    assert np.isnan(nothing["coherence"]).all()
    assert np.isnan(nothing["phase"]).all()
    with pytest.raises(CubeError, match=r"share 2 must lie in 0\.\.1"):
        insar.coherence(a, b, share=2)


@pytest.mark.parametrize(("multilook", "side"), [((1, 1), 1), ((1, 2), 2)])
def test_noise_beside_no_data_is_not_coherent(multilook, side: int, figure) -> None:
    """Where images end, windows shrink; noise of one column would read 0.4, of one pixel 1."""
    a, b = (v[:, :200].copy() for v in pair(0.0))
    a[:, 101:] = np.nan
    found = insar.coherence(a, b, multilook=multilook)["coherence"][8:-8]
    edge = -(-101 // side)
    assert np.isnan(found[:, edge:]).all()
    assert np.isfinite(found[:, 4 : edge - 1]).all()
    columns = found[:, 4:edge].mean("y", skipna=True)
    bar = float(insar.expected_coherence(0, 25)) + 0.02
    figure(f"noise at the rim of the data, multilook {multilook}", float(columns.max()), f"{bar}")
    assert float(columns.max()) < bar
    rng = np.random.default_rng(5)
    lone = a.where(xr.DataArray(rng.random(a.shape) < 0.02, dims=a.dims))
    assert np.isnan(insar.coherence(lone, b, multilook=multilook)["coherence"]).all()


def test_phase_is_reference_times_conjugate_of_secondary() -> None:
    a, b = (v[:60, :60] for v in pair(0.95))
    turned = insar.coherence(a * np.complex64(np.exp(1j)), b, window=(9, 9))["phase"]
    assert float(np.angle(np.exp(1j * turned).mean())) == pytest.approx(1.0, abs=0.02)
    assert insar.coherence(a, b)["phase"].attrs["sign"] == "reference * conj(secondary)"


def test_bias_is_taken_off_the_mean() -> None:
    a, b = pair(0.3)
    sample = insar.coherence(a, b, window=(5, 5))["coherence"]
    assert float(sample.mean()) == pytest.approx(0.332, abs=0.01)
    floor = insar.significance(25, level=0.05)
    noise = insar.coherence(*pair(0.0), window=(5, 5))["coherence"][8:-8, 8:-8]
    assert float((noise > floor).mean()) == pytest.approx(0.05, abs=0.005)
    table = insar.expected_coherence(np.array([0.2, 0.5, 0.8]), 25)
    np.testing.assert_allclose(insar.unbiased_coherence(table, 25), [0.2, 0.5, 0.8], atol=2e-3)
    assert insar.unbiased_coherence(0.1, 25) == 0


def test_a_wrapped_ramp_stays_a_ramp(figure) -> None:
    box = GeoBox((80, 80), Affine(10, 0, 500000, 0, -10, 5000000), "EPSG:32631")
    x = box.coordinates["x"].values
    ramp = np.angle(np.exp(1j * 2 * np.pi * (x - 500000) / 90))
    phase = wrap_xr(np.tile(ramp, (80, 1)).astype("float32"), box)
    shifted = GeoBox((70, 70), Affine(10, 0, 500043, 0, -10, 4999960), "EPSG:32631")
    got = insar.regrid_phase(phase, shifted)
    expected = 2 * np.pi * (shifted.coordinates["x"].values - 500000) / 90
    error = np.angle(np.exp(1j * (got.to_numpy()[5:-5, 5:-5] - expected[None, 5:-5])))
    figure("wrapped ramp regridded, worst error in radians", float(np.abs(error).max()), "a ramp")
    assert np.abs(error).max() < 0.05
    # what interpolating the angle itself would have given: wrong by up to pi at every wrap
    naive = phase.odc.reproject(shifted, resampling="bilinear").to_numpy()[5:-5, 5:-5]
    wrong = np.angle(np.exp(1j * (naive - expected[None, 5:-5])))
    assert np.abs(wrong).max() > 1


def placed(image: xr.DataArray, crs: str) -> xr.DataArray:
    box = GeoBox(image.shape, Affine(10, 0, 500000, 0, -10, 4000000), crs)
    return image.assign_coords(xr_coords(box))


def test_pairs_that_say_what_they_are_in_two_ways_are_taken() -> None:
    a, b = (placed(v[:50, :50], "EPSG:32610") for v in pair(0.5))
    a.attrs.update(polarisation="VV", time="2021-01-01T01:00:00+02:00")
    b.attrs.update(polarisation="vv", time="2021-01-01")
    assert insar.coherence(a, b)["coherence"].odc.crs == "EPSG:32610"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a, b: (a, b[:-1]), "different grids"),
        (lambda a, b: (a.assign_coords(x=range(50)), b.assign_coords(x=range(1, 51))), "shifted"),
        (lambda a, b: (a.real, b), "needs complex"),
        (lambda a, b: (a.assign_attrs(burst="t1"), b.assign_attrs(burst="t2")), "different bursts"),
        (lambda a, b: (a.assign_attrs(time="t"), b.assign_attrs(time="t")), "baseline is zero"),
        (lambda a, b: (a.assign_attrs(polarisation="vv"), b.assign_attrs(polarisation="vh")),
         "different polarisations, vv and vh"),
        (lambda a, b: (a.assign_attrs(time="2021-01-13T00:00:00"),
                       b.assign_attrs(time="2021-01-01T00:00:00")), "later than the secondary"),
        (lambda a, b: (a.assign_attrs(time="2021-01-01"),
                       b.assign_attrs(time="2021-01-01T00:00:00.000000")), "one instant"),
        (lambda a, b: (a.assign_attrs(time="2021-01-01T02:00:00+02:00"),
                       b.assign_attrs(time="2021-01-01T00:00:00")), "one instant"),
        (lambda a, b: (a.assign_attrs(time="soon"), b.assign_attrs(time="2021-01-01")),
         "'soon' is no ISO 8601 time"),
        (lambda a, b: (placed(a, "EPSG:32610"), placed(b, "EPSG:32611")),
         "different CRSs, EPSG:32610 and EPSG:32611"),
        (lambda a, b: (a[:3], b[:3]), "larger than the image"),
        (lambda a, b: (a.rename(y="v"), b), "end in"),
    ],
)  # fmt: skip
def test_wrong_pairs_are_refused(change, word: str) -> None:
    a, b = (v[:50, :50] for v in pair(0.5))
    with pytest.raises(CubeError, match=word):
        insar.coherence(*change(a, b))


def test_effective_looks_ignore_slow_contrast() -> None:
    """Fields of other brightness are not correlated speckle."""
    a, _ = pair(0.0)
    rng = np.random.default_rng(1)
    fields = np.exp(gaussian_filter(rng.normal(size=(SIZE, SIZE)), 25) * 40)
    assert insar.effective_looks(a * fields, (5, 5)) == pytest.approx(25, rel=0.1)


@pytest.mark.parametrize(
    ("window", "multilook", "wanted"),
    [
        ((5, 10), (1, 1), 50),
        ((1, 1), (5, 10), 50),
        ((1, 1), (1, 1), 1),
        # a window of 10 moved by one pixel: the two outermost columns count half
        ((5, 10), (1, 2), 5 / (9 * 0.1**2 + 2 * 0.05**2)),
    ],
)
def test_nominal_looks_are_those_of_white_speckle(
    window: tuple[int, int], multilook: tuple[int, int], wanted: float
) -> None:
    a, b = pair(0.5, seed=3)
    found = insar.coherence(a, b, window=window, multilook=multilook)
    assert found.coherence.attrs["nominal_looks"] == pytest.approx(wanted, abs=1e-3)
    assert insar.effective_looks(a, window, multilook=multilook) == pytest.approx(wanted, rel=0.03)


def _summed(true: float, looks: float, terms: int) -> float:
    """Return the closed form term by term, each from the one before: no gamma function but one."""
    from math import gamma, log, log1p

    front = log(gamma(1.5)) if looks > 100 else log(gamma(looks) * gamma(1.5) / gamma(looks + 0.5))
    if looks > 100:  # Gamma(L) / Gamma(L + 1/2), Tricomi and Erdelyi 1951
        front += -0.5 * log(looks) + log1p(1 / (8 * looks) + 1 / (128 * looks**2))
    k = np.arange(terms, dtype=np.float64)
    steps = np.log((1.5 + k) / (looks + 0.5 + k)) + 2 * np.log((looks + k) / (1 + k))
    logs = np.concatenate([[0.0], np.cumsum(steps + 2 * log(true))])
    return float(np.exp(logs + front + looks * log1p(-(true**2))).sum())


@pytest.mark.parametrize(
    ("true", "looks"),
    [(0.99, 50), (0.99, 500), (0.99, 1000), (0.9999, 50), (0.999, 1.5), (0.9995, 200), (0.3, 2000),
     (0.9999, 2), (0.6, 3.7)],
)  # fmt: skip
def test_the_closed_form_holds_for_many_looks_and_high_coherence(true: float, looks: float) -> None:
    got = float(insar.expected_coherence(true, looks))
    assert got == pytest.approx(_summed(true, looks, 2_000_000), abs=1e-6)
    assert true - 1e-9 <= got <= 1


def test_expected_coherence_is_no_number_where_the_true_one_is_none() -> None:
    got = insar.expected_coherence([np.nan, 0.5, 1.0], 10)
    assert np.isnan(got[0])
    assert got[2] == 1


def test_bias_is_taken_off_many_looks_too() -> None:
    true = np.array([0.2, 0.9, 0.99, 0.9995])
    sample = insar.expected_coherence(true, 300)
    np.testing.assert_allclose(insar.unbiased_coherence(sample, 300), true, atol=1e-3)
    assert insar.unbiased_coherence([1.0], 300)[0] == 1
    with pytest.raises(CubeError, match="say nothing about coherence"):
        insar.unbiased_coherence([0.5], 1)


def test_a_phase_without_a_place_is_refused() -> None:
    phase = xr.DataArray(np.zeros((4, 4), "float32"), dims=("y", "x"))
    box = GeoBox((4, 4), Affine(10, 0, 0, 0, -10, 0), "EPSG:32631")
    with pytest.raises(CubeError, match="no grid with a CRS"):
        insar.regrid_phase(phase, box)
