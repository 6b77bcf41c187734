"""Blocks of dates held out: what stays, what is named, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import cubes
from cubes.types import CubeError


def cube(days: int, step: int = 5) -> xr.DataTree:
    time = np.datetime64("2021-03-01T10:30:00", "ns") + np.arange(0, days, step).astype("m8[D]")
    radar = np.datetime64("2021-03-02T05:40:00", "ns") + np.arange(0, days, 6).astype("m8[D]")
    return xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs={"aoi": "here"}),
            "s1": xr.Dataset({"backscatter": ("time", np.arange(len(radar)))}, {"time": radar}),
            "s2": xr.Dataset({"scl": ("time", np.arange(len(time)))}, {"time": time}),
            "terrain": xr.Dataset({"elevation": ("x", np.zeros(3))}),
        }
    )


def test_middle_blocks_go_and_are_named() -> None:
    whole = cube(180)
    rest, held = cubes.withhold(whole, "30D", every=3)
    assert held == (
        ("2021-03-31T10:30:00", "2021-04-30T10:30:00"),
        ("2021-06-29T10:30:00", "2021-07-29T10:30:00"),
    )
    before, after = (t["s2"]["time"].to_numpy() for t in (whole, rest))
    inside = np.zeros(len(before), bool)
    for start, end in held:
        inside |= (before >= np.datetime64(start)) & (before < np.datetime64(end))
    np.testing.assert_array_equal(after, before[~inside])
    np.testing.assert_array_equal(rest["s2"]["scl"], np.flatnonzero(~inside))
    assert inside.sum() == 12
    for name in ("s1", "terrain"):
        xr.testing.assert_identical(rest[name].to_dataset(), whole[name].to_dataset())
    assert rest.attrs == whole.attrs


def test_another_sensor_and_every_second_block() -> None:
    rest, held = cubes.withhold(cube(120), "24D", every=2, group="s1")
    assert rest["s2"].sizes["time"] == 24
    assert rest["s1"].sizes["time"] == 12
    assert len(held) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": "s3"}, "no group 's3' with dates here; there are s1, s2"),
        ({"group": "terrain"}, "no group 'terrain' with dates"),
        ({"every": 1}, "every=1"),
        ({"block": "a month"}, "'a month' is not a length"),
        ({"block": "-3D"}, "longer than nothing"),
        ({"block": "NaT"}, "'NaT' is not a length"),
        ({"block": "45"}, "'45' is not a length"),
        ({"block": 45}, "45 is not a length"),
        ({"block": "400D"}, "2021-03-01 to 2021-08-23, too short"),
    ],
)
def test_what_leaves_nothing_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(CubeError, match=message):
        cubes.withhold(cube(180), **options)  # type: ignore[arg-type]
