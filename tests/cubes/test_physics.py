"""Units and masks; the two ways to stored integers agree to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cubes import physics, registry
from cubes.types import ClearPolicy, CubeError, Layer

MEASURED = [v for v in registry.layers().values() if v.kind != "mask"]


def working(layer: Layer, draw: st.DataObject) -> np.ndarray:
    shape = (5, 7)
    dtype = np.dtype(layer.work_dtype)
    if dtype.kind == "f":
        low, high = {"power_to_db": (0.0, 100.0)}.get(layer.convert, (-4.0, 4.0))
        values = draw.draw(hnp.arrays(dtype, shape, elements=st.floats(low, high, width=32)))
        holes = draw.draw(hnp.arrays(bool, shape))
        values[holes] = np.nan
        return values
    info = np.iinfo(dtype)
    return draw.draw(hnp.arrays(dtype, shape, elements=st.integers(info.min, info.max)))


@pytest.mark.parametrize("layer", MEASURED, ids=lambda v: v.name)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_straight_and_through_physical_values_agree_to_the_bit(
    layer: Layer, data: st.DataObject
) -> None:
    work = working(layer, data)
    straight = physics.to_stored(work.copy(), layer)
    around = physics.encode(physics.to_physical(work.copy(), layer), layer)
    assert straight.dtype == around.dtype == np.dtype(layer.dtype)
    np.testing.assert_array_equal(straight, around)
    np.testing.assert_array_equal(
        physics.valid(straight, layer), physics.is_valid(physics.to_physical(work, layer),
        np.nan if layer.kind in ("continuous", "phase") else layer.work_nodata)
    )  # fmt: skip


@pytest.mark.parametrize("name", ["s1/backscatter", "insar/phase", "insar/coherence"])
def test_every_stored_integer_survives_a_round_trip(name: str) -> None:
    layer = registry.layer(name)
    low, high = (round((v - layer.offset) / layer.scale) for v in layer.valid_range)
    stored = np.arange(low, high + 1).clip(-32767, 32767).astype(layer.dtype)
    np.testing.assert_array_equal(physics.encode(physics.decode(stored, layer), layer), stored)


def test_every_digital_number_survives_a_round_trip() -> None:
    layer = registry.layer("s2/reflectance")
    stored = np.arange(65536, dtype=np.uint16)
    values = physics.decode(stored, layer)
    assert np.isnan(values[0])
    assert values[1] == np.float32(-0.0999)  # negative reflectance lives
    assert values[1000] == 0
    np.testing.assert_array_equal(physics.encode(values, layer), stored)


def test_db_of_zero_and_below_is_nan_and_power_inverts() -> None:
    np.testing.assert_array_equal(physics.db([1.0, 10.0, 0.0, -1.0]), [0, 10, np.nan, np.nan])
    np.testing.assert_allclose(physics.db(physics.power([-23.4, 5.0])), [-23.4, 5.0], rtol=1e-6)


def test_values_outside_the_row_are_clipped_never_wrapped() -> None:
    layer = registry.layer("s1/backscatter")
    stored = physics.encode(np.array([-1e6, 1e6, np.nan], np.float32), layer)
    assert stored.tolist() == [-6000, 4000, -32768]


def test_wrong_working_dtype_is_refused() -> None:
    with pytest.raises(CubeError, match="works in float32"):
        physics.to_stored(np.zeros((2, 2), np.uint16), registry.layer("s1/backscatter"))


def test_clear_follows_the_policy_and_nodata_is_never_clear() -> None:
    scl = np.array([[0, 4, 9], [5, 8, 3]], np.uint8)
    clear = physics.clear(scl, ClearPolicy(classes=(4, 5)))
    np.testing.assert_array_equal(clear, [[False, True, False], [True, False, False]])


def test_unclear_areas_grow_as_discs_and_nodata_does_not() -> None:
    scl = np.full((9, 9), 4, np.uint8)
    scl[4, 4] = 9
    scl[0, 0] = 0
    grown = ~physics.clear(scl, ClearPolicy(classes=(4,), dilate=2))
    rows, columns = np.indices(scl.shape)
    disc = (rows - 4) ** 2 + (columns - 4) ** 2 <= 4
    disc[0, 0] = True  # nodata is not clear, but neighbours stay
    np.testing.assert_array_equal(grown, disc)


def test_indices_on_known_reflectance() -> None:
    assert physics.ndvi(0.05, 0.45) == pytest.approx(0.8, rel=1e-6)
    assert np.isnan(physics.ndvi(-0.1, 0.05))
    expected = 2.5 * 0.4 / (0.45 + 6 * 0.05 - 7.5 * 0.03 + 1)
    assert physics.evi(0.03, 0.05, 0.45) == pytest.approx(expected, rel=1e-6)
    sine, cosine = physics.sin_cos(np.array([np.pi, -np.pi]))
    np.testing.assert_allclose(cosine, [-1, -1])
    np.testing.assert_allclose(sine, [0, 0], atol=1e-6)
