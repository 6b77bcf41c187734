"""Variable numbers of dates: each sample is padded to its bucket, and holds what it held."""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cubes import CubeError, Samples, Series, Window, plan, stats
from cubes.sampling import draws

_spec = importlib.util.spec_from_file_location("streams", Path(__file__).with_name("streams.py"))
assert _spec is not None
assert _spec.loader is not None
streams = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(streams)

pytestmark = pytest.mark.timeout(60)
LAYERS = ("s1/backscatter", "insar/coherence", "s2/reflectance", "terrain/elevation")
WINDOW = Window(size=64, dates=10, bucket=4)


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube whose Sentinel-2 dates lack pixels, more of them to the south."""
    path = tmp_path_factory.mktemp("buckets") / "gaps.zarr"
    lacking = np.zeros((14, 1, 256, 256), bool)
    for row in range(4):
        lacking[4 * row :, :, 64 * row : 64 * row + 64] = True
    lacking[:, :, :64] = False  # 14 dates, then 4, 8 and 12
    streams.write_store(
        path, layers=LAYERS, bands=("B02",), s1=14, s2=14, nodata={"s2/reflectance": lacking}
    )
    return path


def test_dates_round_up_to_the_bucket(cube: Path) -> None:
    samples = plan(cube, WINDOW)
    assert samples.table().groupby("y").s2_dates.max().tolist() == [14, 4, 8, 12]
    shapes = samples.shapes()
    assert shapes.to_dict("list") == {"s1": [10, 10, 10], "s2": [4, 8, 10], "samples": [4, 4, 8]}
    assert (
        shapes.s2.to_numpy()[samples.buckets()].tolist() == [10] * 4 + [4] * 4 + [8] * 4 + [10] * 4
    )
    for bucket, want in ((1, [4, 8, 10]), (3, [6, 9, 10]), (5, [5, 10]), (99, [10])):
        assert plan(cube, replace(WINDOW, bucket=bucket)).shapes().s2.tolist() == want
    whole = plan(cube, replace(WINDOW, bucket=None))
    assert whole.shapes().to_dict("list") == {"s1": [10], "s2": [10], "samples": [16]}
    assert whole.buckets().tolist() == [0] * 16
    assert whole.sha256 != samples.sha256
    assert samples.take([4, 5]).shapes().to_dict("list") == {"s1": [10], "s2": [4], "samples": [2]}


@pytest.mark.parametrize("epoch", [None, 2])
def test_a_bucket_cuts_padding_alone(cube: Path, epoch: int | None) -> None:
    samples, whole = plan(cube, WINDOW), plan(cube, replace(WINDOW, bucket=None))
    for rows in ([4, 5, 6], [9], [5, 9], np.arange(16)):
        got, want = samples.read(rows, epoch=epoch), whole.read(rows, epoch=epoch)
        length = int(samples.shapes().s2.to_numpy()[samples.buckets()[rows]].max())
        assert got["s2/reflectance"].shape == (len(rows), length, 1, 64, 64)
        assert not want["s2/present"][:, length:].any()
        for name, array in want.items():
            cut = array[:, :length] if name.startswith("s2/") else array
            np.testing.assert_array_equal(got[name], cut, err_msg=name)


def test_no_date_of_a_sensor_is_one_bucket(cube: Path) -> None:
    samples = plan(cube, replace(WINDOW, period="10D", step="10D"), max_gap=None)
    none = np.flatnonzero(samples.table().s2_dates == 0)
    assert len(none)
    assert samples.read(none[:2])["s2/reflectance"].shape[1] == 4


def test_matches_by_rule_are_bucketed(cube: Path) -> None:
    rule = Series(dates=2, gap="15D", match="all")
    samples = plan(cube, replace(WINDOW, rule=rule, bucket=2))
    shapes = samples.shapes()
    assert set(shapes.s1) == {2}
    assert len(shapes) > 1
    dates = samples.table().s2_dates.to_numpy()
    np.testing.assert_array_equal(shapes.s2.to_numpy()[samples.buckets()], -(-dates // 2) * 2)


def test_buffers_of_another_bucket_are_refused(cube: Path) -> None:
    samples = plan(cube, WINDOW)
    samples.read([4, 5], samples.empty([4, 5]))
    with pytest.raises(CubeError, match=r"s1/backscatter|s2/reflectance.*\(2, 4, 1, 64, 64\)"):
        samples.read([4, 5], samples.empty([0, 1]))
    with pytest.raises(CubeError, match=r"bucket=0.*multiple, such as 4"):
        plan(cube, replace(WINDOW, bucket=0))
    with pytest.raises(CubeError, match=r"bucket=2.5.*whole number"):
        plan(cube, replace(WINDOW, bucket=2.5))  # type: ignore[arg-type]


def test_statistics_do_not_depend_on_buckets(cube: Path) -> None:
    some: list[Samples] = [plan(cube, replace(WINDOW, bucket=b)) for b in (None, 4)]
    one, two = (stats(s) for s in some)
    assert one.equals(two)


def test_batches_come_as_they_fill() -> None:
    """Against walking the order with a heap for each bucket."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, kinds, each = (int(rng.integers(low, high)) for low, high in ((1, 60), (1, 5), (1, 9)))
        order, bucket = rng.permutation(n), rng.integers(0, kinds, n)
        full: list[list[int]] = []
        heaps: dict[int, list[int]] = {}
        for position in order.tolist():
            heap = heaps.setdefault(int(bucket[position]), [])
            heap.append(position)
            if len(heap) == each:
                full.append(heaps.pop(int(bucket[position])))
        # the larger first; of two as large the one whose last came earlier
        place = np.argsort(order)
        rest = sorted(heaps.values(), key=lambda h: (-len(h), place[h[-1]]))
        got, edges = draws.bucketed(order, bucket, each)
        batches = [got[a:b].tolist() for a, b in itertools.pairwise(edges)]
        assert batches == [*full, *rest]
