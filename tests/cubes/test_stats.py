"""Statistics: equal to NumPy's of the same pixels, and the same in parts as at once."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cubes import CubeError, Window, physics, plan, split, stats
from cubes.sampling.stats import QUANTILES, merge

_spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("streams.py"))
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(60)
BANDS = ("B02", "B08")


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    path = tmp_path_factory.mktemp("stats") / "cube.zarr"
    nodata = {
        "s1/backscatter": (slice(2, 4), slice(None), slice(0, 3), slice(0, 100)),
        "s2/reflectance": (1, slice(0, 1), slice(5, 9), slice(0, 64)),
    }
    return path, streams.write_store(path, bands=BANDS, nodata=nodata)


def pixels(stored: dict[str, np.ndarray], name: str, channel: int) -> np.ndarray:
    """Return the float64 physical values that count, of all dates."""
    layer = streams.row(name, BANDS)
    values = physics.decode(stored[name], layer).astype(np.float64)[:, channel]
    keep = np.isfinite(values)
    if name == "s2/reflectance":
        keep &= stored["s2/clear"][:, 0].astype(bool)
    return np.asarray(values[keep])


@pytest.mark.parametrize(
    ("name", "channel"),
    [("s1/backscatter", 0), ("s1/backscatter", 1), ("s2/reflectance", 0), ("s2/reflectance", 1),
     ("s1/incidence", 0)],
)  # fmt: skip
def test_equal_to_numpy(cube: Any, name: str, channel: int) -> None:
    path, stored = cube
    found = stats(plan(path, Window(size=64, dates=12), min_valid=0), threads=2)
    entry = found.isel(entry=np.flatnonzero(found["layer"].to_numpy() == name)[channel])
    want = pixels(stored, name, channel)
    assert int(entry["count"]) == want.size
    scale = streams.row(name, BANDS).scale
    np.testing.assert_allclose(entry["mean"], want.mean(), rtol=1e-5)
    np.testing.assert_allclose(entry["std"], want.std(), rtol=1e-4)
    np.testing.assert_allclose([entry["min"], entry["max"]], [want.min(), want.max()], atol=1e-5)
    np.testing.assert_allclose(
        entry["quantile"],
        np.quantile(want, QUANTILES, method="inverted_cdf"),
        atol=1.01 * scale,
    )


def test_float_layers_within_a_bin(cube: Any) -> None:
    path, stored = cube
    found = stats(plan(path, Window(size=128, dates=2)))
    entry = found.sel(entry="terrain/elevation")
    want = stored["terrain/elevation"].astype(float)
    width = 10_000 / 65536  # the row's valid range in 65,536 bins
    assert abs(float(entry["mean"]) - want.mean()) < width
    assert abs(float(entry["std"]) - want.std()) < width
    assert abs(float(entry["quantile"].sel(q=0.5)) - np.median(want)) < width


def test_phases_classes_and_masks_have_none(cube: Any) -> None:
    found = stats(plan(cube[0], Window(size=128, dates=2)))
    assert set(found["layer"].to_numpy()) == {
        "s1/backscatter", "s1/incidence", "insar/coherence", "s2/reflectance", "terrain/elevation",
    }  # fmt: skip
    assert found["units"].sel(entry="s1/backscatter/vv") == "dB"


def test_parts_merge_to_the_whole(cube: Any) -> None:
    samples = plan(cube[0], Window(size=64, dates=3))
    whole = stats(samples, threads=1)
    parts = [stats(samples.take(np.arange(len(samples)) % 3 == k)) for k in range(3)]
    merged = merge(parts)
    assert merged.equals(whole)
    assert merged.attrs == whole.attrs == {"samples": 16}
    with pytest.raises(CubeError, match="different layers"):
        merge([whole, stats(samples.select(["s1/backscatter"]))])


def test_limit_and_errors(cube: Any) -> None:
    samples = plan(cube[0], Window(size=64, dates=3))
    few = stats(samples, limit=4)
    assert few.attrs["samples"] == 4
    assert few.equals(stats(samples.take([0, 4, 8, 12])))
    with pytest.raises(CubeError, match="no samples"):
        stats(samples.take([]))
    with pytest.raises(CubeError, match="no continuous layer among s2/scl"):
        stats(samples.select(["s2/scl"]))


def test_nothing_valid_is_nan_and_not_zero(tmp_path: Path) -> None:
    path = tmp_path / "empty.zarr"
    streams.write_store(
        path, layers=("s1/backscatter", "insar/coherence"), s1=4, nodata={"insar/coherence": 0}
    )
    samples = plan(path, Window(size=128, dates=3)).select(["insar/coherence"])
    found = stats(samples.take([0]))
    assert (found["count"] > 0).all()
    streams.write_store(
        tmp_path / "none.zarr",
        layers=("s1/backscatter", "insar/coherence"), s1=4,
        nodata={"insar/coherence": slice(None)},
    )  # fmt: skip
    found = stats(plan(tmp_path / "none.zarr", Window(size=128)).select(["insar/coherence"]))
    assert (found["count"] == 0).all()
    assert np.isnan(found["mean"]).all()
    assert np.isnan(found["quantile"]).all()


def test_padding_is_not_counted_where_there_is_no_nodata(tmp_path: Path) -> None:
    """A row without nodata: only how many steps a sample has tells padding from pixels."""
    for name, dates in (("short", 3), ("long", 6)):
        streams.write_store(
            tmp_path / name, shape=(64, 64), s1=dates,
            layers=("s1/backscatter", "s1/incidence", "insar/coherence")[: 3 if dates > 3 else 1],
        )  # fmt: skip
    samples = plan([tmp_path / "short", tmp_path / "long"], Window(size=64, dates=6))
    usual = stats(samples)["count"].to_series().to_dict()
    samples.layers = {k: replace(v, nodata=None) for k, v in samples.layers.items()}
    for store in samples.stores:
        for name, entry in store.entries.items():
            object.__setattr__(entry, "layer", samples.layers[name])
    assert stats(samples)["count"].to_series().to_dict() == usual
    assert usual["s1/backscatter/vv"] == 9 * 64 * 64


def test_calibrations_do_not_merge(tmp_path: Path) -> None:
    parts = []
    for calibration in ("gamma0_rtc", "sigma0"):
        path = tmp_path / calibration
        streams.write_store(
            path, shape=(64, 64), layers=("s1/backscatter",), s1=3, calibration=calibration
        )
        parts.append(stats(plan(path, Window(size=64, dates=3))))
        assert set(parts[-1]["calibration"].to_numpy()) == {calibration}
    with pytest.raises(CubeError, match=r"gamma0_rtc.*sigma0|sigma0.*gamma0_rtc"):
        merge(parts)
    older = [p.drop_vars("calibration") for p in parts]  # of a version that did not say it
    assert int(merge(older)["count"][0]) == 2 * 3 * 64 * 64


def test_only_the_training_part_of_a_split_is_counted(cube: Any) -> None:
    samples = plan(cube[0], Window(size=32, dates=2))
    parts = split(samples, block=640, seed=1)
    assert [p.part for p in parts.values()] == ["train", "val", "test"]
    few = parts["test"].take([0]).select(["s1/backscatter"])
    with pytest.raises(CubeError, match=r"part 'test' of a split.*allow='test'"):
        stats(few)
    assert stats(few, allow="test")["count"].sum() > 0
    assert stats(parts["train"].take([0]))["count"].sum() > 0
    again = split(parts["test"], block=320, fractions=(0.5, 0.5))["train"]
    with pytest.raises(CubeError, match="part 'test/train'"):
        stats(again)
    assert stats(again, limit=1, allow="test/train")["count"].sum() > 0
