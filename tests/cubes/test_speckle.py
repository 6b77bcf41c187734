"""Filters cut speckle, keep power and edges, and do not care about chunks."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from cubes import physics
from cubes.radar import speckle
from cubes.types import CubeError

LOOKS = 4.4


def scene(dates: int = 6, size: int = 120, seed: int = 0) -> tuple[xr.DataArray, np.ndarray]:
    """Return speckled dB (time, y, x) of two halves 6 dB apart, and the true power."""
    rng = np.random.default_rng(seed)
    true = np.full((dates, size, size), 0.05)
    true[:, :, size // 2 :] *= 4
    true *= np.linspace(1, 2, dates)[:, None, None]
    noisy = true * rng.gamma(LOOKS, 1 / LOOKS, true.shape)
    data = xr.DataArray(physics.db(noisy), dims=("time", "y", "x"), attrs={"units": "dB"})
    return data, true


def looks(data: xr.DataArray) -> float:
    linear = physics.power(data)[..., 15:-15, 10:45]
    return float(np.mean(linear.mean((-2, -1)) ** 2 / linear.var((-2, -1))))


def test_lee_cuts_speckle_and_keeps_power_and_edges() -> None:
    data, true = scene()
    out = speckle.lee(data, size=7, looks=LOOKS)
    assert looks(out) > 5 * looks(data)
    left = physics.power(out)[..., 10:45].mean((1, 2))
    np.testing.assert_allclose(left, true[:, 0, 0], rtol=0.03)
    edge = physics.power(out)[..., 61:64].mean() / physics.power(out)[..., 56:59].mean()
    assert edge > 2.5  # a plain mean of 7 px leaves 1.9
    assert out.attrs["speckle_filter"].startswith("Lee 7x7")


def test_multitemporal_averages_over_dates_and_keeps_each_date_s_level() -> None:
    data, true = scene(dates=10)
    out = speckle.multitemporal(data, size=7)
    assert looks(out) > 5 * looks(data)
    left = physics.power(out)[..., 10:45].mean((1, 2))
    np.testing.assert_allclose(left, true[:, 0, 0], rtol=0.05)


@pytest.mark.parametrize("name", ["lee", "multitemporal"])
def test_chunks_do_not_matter_and_nothing_is_computed_early(name: str) -> None:
    data, _ = scene(dates=3)
    data[1, 30:50, 20:90] = np.nan
    function = getattr(speckle, name)
    lazy = function(data.chunk(time=1, y=50, x=37), size=7)
    assert hasattr(lazy.data, "dask")
    np.testing.assert_allclose(lazy, function(data, size=7), atol=1e-4)
    assert np.isnan(lazy[1, 30:50, 20:90]).all()
    assert np.isfinite(lazy[0]).all()


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda d: speckle.lee(d, size=4), "no centre"),
        (lambda d: speckle.lee(d, looks=0.5), "at least 1"),
        (lambda d: speckle.lee(d, looks=float("nan")), "looks nan must be a number of at least 1"),
        (lambda d: speckle.lee(d.assign_attrs(units="1")), "not dB"),
        (lambda d: speckle.multitemporal(d[0]), "dimension time"),
        (lambda d: speckle.multitemporal(d.assign_coords(relative_orbit=("time", [1, 2, 1]))),
         "several tracks"),
        (lambda d: speckle.lee(d.rename(y="v")), "end in"),
    ],
)  # fmt: skip
def test_what_cannot_be_filtered_is_refused(call, word: str) -> None:
    data, _ = scene(dates=3, size=30)
    with pytest.raises(CubeError, match=word):
        call(data)


@pytest.mark.parametrize("chunk", [6, 4])
def test_a_window_may_be_wider_than_the_image(chunk: int) -> None:
    data, _ = scene(2, size=6)
    lazy = data.chunk(x=chunk)
    for function in (speckle.lee, speckle.multitemporal):
        out = function(lazy, size=15)
        assert out.chunks[1:] == lazy.chunks[1:], "the chunks that came in"
        np.testing.assert_allclose(out, function(data, size=15), atol=1e-5)


@pytest.mark.parametrize("name", ["lee", "multitemporal"])
@pytest.mark.parametrize("chunks", [None, {"y": 60, "x": 60}])
def test_linear_power_is_refused_whatever_it_says_of_itself(name: str, chunks) -> None:
    data, _ = scene(dates=2)
    power = xr.DataArray(physics.power(data.to_numpy()), dims=data.dims)
    numbers = power * 1e5
    numbers[:, ::7, ::7] = -10  # where noise was taken off
    for values, match in ((power, "linear power and not dB"), (numbers, "no dB of any surface")):
        for attrs in ({}, {"units": "dB"}):
            given = values.assign_attrs(attrs)
            with pytest.raises(CubeError, match=match):
                getattr(speckle, name)(given if chunks is None else given.chunk(chunks)).compute()
    # a bright reflector is no reason
    data[:, 50:60, 50:60] = 55.0
    assert np.isfinite(getattr(speckle, name)(data)).all()


@pytest.mark.parametrize("name", ["lee", "multitemporal"])
def test_looks_of_the_source_are_not_those_of_the_filtered(name: str) -> None:
    data = scene(dates=2, size=30)[0].assign_attrs(equivalent_looks=4.3)
    attrs = getattr(speckle, name)(data).attrs
    assert "equivalent_looks" not in attrs
    assert attrs["equivalent_looks_unfiltered"] == 4.3
    assert attrs["units"] == "dB"
    assert data.attrs["equivalent_looks"] == 4.3


@pytest.mark.parametrize("name", ["lee", "multitemporal"])
def test_chunks_beside_a_bright_target_give_the_same_bits(name: str, figure) -> None:
    """A target of +50 dB, 75 dB above the fields: what it adds to a sum must leave with it."""
    rng = np.random.default_rng(0)
    power = rng.gamma(LOOKS, 1 / LOOKS, size=(2, 200, 200)) * 10**-2.5
    power[:, 100, 3] = 1e5
    data = xr.DataArray(physics.db(power), dims=("time", "y", "x"), attrs={"units": "dB"})
    function = getattr(speckle, name)
    whole = function(data)
    for edge in (64, 33, 7):
        off = float(np.abs(function(data.chunk(y=edge, x=edge)) - whole).max())
        figure(f"{name} beside +50 dB, chunks of {edge} off the whole, dB", off, "0")
        assert off == 0
