"""Cubes on disk: values, bytes, other readers, what is refused, cubes of your own."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import odc.geo.xr  # noqa: F401  registers the accessor
import pytest
import xarray as xr
import zarr

from cubes import cube, registry, schema
from cubes.store import build, layout, ledger, metadata, shards
from cubes.store import verbs as store
from cubes.types import FORMAT_VERSION, CubeError, Layout, Plan, Report

_spec = importlib.util.spec_from_file_location(
    "store_plans", Path(__file__).with_name("store_plans.py")
)
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

LAYOUT: Layout = small.LAYOUT
GROUPS = ("s1", "s2", "terrain")
files = small.files


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Leave out fsync, 6 ms each and 230 a cube, here: no test pulls the plug of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


# --------------------------------------------------------------------------------------- values


def test_stored_integers_are_the_sources(whole: tuple[Path, Report], archive: Path) -> None:
    path, report = whole
    assert report.state == "sealed"
    root = zarr.open_group(path, mode="r")
    for t in range(small.STEPS):
        for number, band in enumerate(small.BANDS):
            got = root["s2/reflectance"][t, number]
            np.testing.assert_array_equal(got, small.pixels(archive, f"{t}_{band}"))
        for number, pol in enumerate(("vv", "vh")):
            power = small.pixels(archive, f"{t}_{pol}").astype(np.float64)
            want = np.rint(1000 * np.log10(np.where(power > 0, power, 1)))
            got = root["s1/backscatter"][t, number]
            np.testing.assert_array_equal(got == -32768, np.isnan(power))
            off = np.abs(got - want)[~np.isnan(power)]
            # log10 in float32 may fall on the other side of a half
            assert off.max() <= 1
            assert (off == 0).mean() > 0.999
    np.testing.assert_array_equal(root["terrain/elevation"][:], small.pixels(archive, "dem"))


def test_opened_is_the_lazy_cube(whole: tuple[Path, Report], plan: Plan) -> None:
    got, want = store.open(whole[0]), cube.open_plan(plan)
    assert list(got.children) == list(want.children)
    for group in GROUPS:
        a, b = got[group].to_dataset().load(), want[group].to_dataset().load()
        if group == "s1":  # stored in steps of 0.01 dB
            np.testing.assert_allclose(a.backscatter, b.backscatter, atol=0.00501)
            b["backscatter"] = b.backscatter.copy(data=a.backscatter.data)
        xr.testing.assert_identical(a, b)
    assert got.attrs == want.attrs
    assert got["s2"].clear.dtype == bool
    assert got["s1"].backscatter.dtype == np.float32
    assert got["s2"].to_dataset().odc.geobox == plan.geobox


@pytest.mark.parametrize("chunks", [None, {"time": 1, "y": 50}])
def test_chunks_do_not_change_values(whole: tuple[Path, Report], chunks: Any) -> None:
    a, b = store.open(whole[0])["s2"], store.open(whole[0], chunks=chunks)["s2"]
    if chunks is None:
        assert b.reflectance.chunks is None
        assert not b.reflectance.variable._in_memory, "nothing is read before it is asked for"
    else:
        assert b.reflectance.chunks[0] == (1,) * small.STEPS
        assert b.reflectance.chunks[2] == (50, 50, 50, 10)
    pick = {"time": [4, 0], "y": slice(3, 150, 7), "x": 9}
    np.testing.assert_array_equal(a.reflectance.isel(pick), b.reflectance.isel(pick))
    np.testing.assert_array_equal(a.clear, b.clear)


def test_one_date_of_a_dask_cube_reads_one_step(
    whole: tuple[Path, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cubes.store import opened

    seen: list[tuple[int, ...]] = []
    real_read = opened._Physical._read

    def read(self: Any, key: Any) -> Any:
        out = real_read(self, key)
        seen.append(out.shape)
        return out

    monkeypatch.setattr(opened._Physical, "_read", read)
    one = store.open(whole[0])["s2"].reflectance.isel(time=3).load()
    assert one.shape == (3, small.SIZE, small.SIZE)
    assert len(seen) == 9, "one read per patch"
    assert all(np.prod(s) <= 3 * 64 * 64 for s in seen), seen


def test_equal_names_for_an_equal_store(whole: tuple[Path, Report]) -> None:
    a, b = store.open(whole[0])["s2"].scl, store.open(whole[0])["s2"].scl
    assert a.data.name == b.data.name


def test_clear_does_not_depend_on_regions(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One patch per region, with a cloud's halo over its edges, gives the same bytes as one."""
    monkeypatch.setattr(layout, "STEP_BYTES", 1)
    report = store.write(plan, tmp_path / "b.zarr", layout=LAYOUT)
    assert report.written == 9 * (3 + 3) + 9 > whole[1].written
    assert report.tree_sha256 == whole[1].tree_sha256


# ---------------------------------------------------------------------------- other people's eyes


def test_plain_readers_see_the_cube_without_a_warning(
    whole: tuple[Path, Report], plan: Plan
) -> None:
    path = whole[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Use `@` matmul", PendingDeprecationWarning)
        tree = xr.open_datatree(path, engine="zarr")
        group = xr.open_zarr(path, group="s2")
        zarr.open_group(path, mode="r").tree()
    mine = store.open(path)
    assert set(tree.children) == set(GROUPS)
    for data in (group, tree["s2"].to_dataset()):
        np.testing.assert_allclose(data.reflectance, mine["s2"].reflectance, atol=1e-7)
        np.testing.assert_array_equal(data.clear, mine["s2"].clear)
        np.testing.assert_array_equal(data.scl, mine["s2"].scl)
        assert data.clear.dtype == bool
        assert data.scl.dtype == np.uint8
        assert data.time.dtype == "datetime64[ns]"
        np.testing.assert_array_equal(data.time, np.array(small.TIMES, "datetime64[ns]"))
        assert data["items"].to_numpy().tolist() == [f"item-{t}" for t in range(small.STEPS)]
        assert data.platform.to_numpy().tolist()[-2:] == ["sentinel-2a", ""]
        assert np.isnan(data.cloud_cover[-1])
        assert data.band.to_numpy().tolist() == list(small.BANDS)
        assert data.odc.geobox == plan.geobox
    np.testing.assert_allclose(
        tree["s1"].backscatter, mine["s1"].backscatter, atol=1e-4, equal_nan=True
    )
    attrs = dict(zarr.open_group(path, mode="r", path="s1").attrs)
    assert attrs["proj:code"] == "EPSG:32631"
    assert attrs["spatial:transform"] == [10, 0, 600000, 0, -10, 5000000]
    assert attrs["spatial:bbox"] == [600000, 4998400, 601600, 5000000]


def test_group_metadata_is_found_without_listing(whole: tuple[Path, Report]) -> None:
    """A server of files cannot list folders: every group carries its members' metadata."""
    for group, member in (("s1", "backscatter"), ("", "s2/clear")):
        body = json.loads((whole[0] / group / "zarr.json").read_text())
        assert member in body["consolidated_metadata"]["metadata"]


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("sharded", [True, False])
def test_bytes_are_zarr_pythons(
    plan: Plan, tmp_path: Path, codec: shards.Codec, *, sharded: bool
) -> None:
    """Our shards equal those that zarr-python writes from the same metadata and numbers."""
    ours, theirs = tmp_path / "ours.zarr", tmp_path / "theirs.zarr"
    store.write(plan, ours, layout=replace(LAYOUT, codec=codec, shards=sharded))
    compared = 0
    for name in ("s1/backscatter", "s2/reflectance", "s2/scl", "s2/clear", "terrain/elevation"):
        (theirs / name).mkdir(parents=True)
        (theirs / name / "zarr.json").write_bytes((ours / name / "zarr.json").read_bytes())
        numbers = zarr.open_array(ours, path=name, mode="r")[...]
        zarr.open_array(theirs, path=name, mode="r+")[...] = numbers
        assert files(theirs / name) == files(ours / name), name
        compared += len(files(theirs / name)) - 1
    # without shards one object per step; the first reflectance patch holds nothing
    want = 9 * 4 * (3 if sharded else 5) + 9 - (3 if sharded else 5)
    assert compared == want


def test_layouts_hold_the_same_values(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path
) -> None:
    want = store.open(whole[0])
    layouts = {
        "zstd": Layout(patch=64, steps=2, codec="zstd"),
        "plain": Layout(patch=64, shards=False),
        "one": Layout(patch=256, steps=None),
        "lossless": Layout(patch=64, steps=2, lossless=True),
    }
    for name, wanted in layouts.items():
        store.write(plan, tmp_path / name, layout=wanted)
        got = store.open(tmp_path / name)
        for group in ("s2", "terrain"):
            xr.testing.assert_identical(
                got[group].to_dataset().load(), want[group].to_dataset().load()
            )
    lossless = store.open(tmp_path / "lossless")["s1"].backscatter
    exact = cube.open_plan(plan)["s1"].backscatter
    np.testing.assert_array_equal(lossless, exact)
    assert lossless.attrs["units"] == "dB"
    raw = xr.open_zarr(tmp_path / "lossless", group="s1").backscatter
    assert raw.attrs["units"] == "1"
    assert raw.dtype == np.float32
    assert store.open(tmp_path / "one")["s2"].reflectance.chunks == ((5,), (3,), (160,), (160,))


# ---------------------------------------------------------------------------------------- refusals


def test_another_plan_or_layout_is_refused_with_what_differs(
    plan: Plan, archive: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    shorter: Plan = small.plan(archive, steps=4)
    cases = [
        (shorter, LAYOUT, "s1 has 5 steps along time, asked for 4"),
        (plan, replace(LAYOUT, codec="zstd"), "its layout is .* asked for"),
        (replace(plan, geobox=plan.geobox[:64, :64]), LAYOUT, "160 x 160 px .* asked for 64 x 64"),
        (
            replace(plan, arrays=plan.arrays[:1]),
            LAYOUT,
            "its layers are .*asked for s1/backscatter",
        ),
        (small.plan(archive, dilate=0), LAYOUT, "items, assets or options"),
    ]
    for other, wanted, message in cases:
        with pytest.raises(CubeError, match=message) as info:
            store.write(other, path, layout=wanted)
        assert "another path" in str(info.value)
        assert "force=True" in str(info.value)
    assert store.verify(path).state == "sealed", "a refusal changes nothing"
    report = store.write(shorter, path, layout=LAYOUT, force=True)
    assert report.state == "sealed"
    assert store.open(path)["s1"].sizes["time"] == 4
    assert store.verify(path).state == "sealed"
    assert not (path / "s1/backscatter/c/2").exists()


def test_what_is_not_ours_is_left_alone(plan: Plan, tmp_path: Path) -> None:
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(CubeError, match="left alone"):
            store.write(plan, other, force=force)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(CubeError, match="is a file"):
        store.write(plan, file)
    with pytest.raises(CubeError, match="not a URL"):
        store.write(plan, "s3://bucket/a.zarr")
    with pytest.raises(CubeError, match="not a cube written by"):
        store.open(other)
    with pytest.raises(CubeError, match="cannot write a dict"):
        store.write({}, tmp_path / "b.zarr")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert store.write(plan, empty, layout=LAYOUT).state == "sealed", "an empty folder will do"


def test_a_newer_store_is_refused(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    file = path / ledger.FOLDER / "build.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": FORMAT_VERSION + 1}))
    for verb in (store.open, store.verify, store.repair, lambda p: store.write(plan, p)):
        with pytest.raises(CubeError, match="upgrade deepsentinel"):
            verb(path)


def test_a_second_writer_is_refused(plan: Plan, whole: tuple[Path, Report]) -> None:
    with ledger.lock(whole[0]):
        with pytest.raises(CubeError, match=rf"being written by process {os.getpid()}"):
            store.write(plan, whole[0], layout=LAYOUT)
        with pytest.raises(CubeError, match="being written"):
            store.repair(whole[0])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Layout(patch=8), "at least 16"),
        (Layout(steps=0), "1 or more"),
        (Layout(codec="gzip"), "lz4, zstd or none"),  # type: ignore[arg-type]
    ],
)
def test_impossible_layouts(plan: Plan, tmp_path: Path, wanted: Layout, message: str) -> None:
    with pytest.raises(CubeError, match=message):
        store.write(plan, tmp_path / "a.zarr", layout=wanted)
    assert not (tmp_path / "a.zarr").exists()


def test_a_derived_layer_needs_its_source(plan: Plan, tmp_path: Path) -> None:
    poor = replace(plan, arrays=tuple(a for a in plan.arrays if a.layer.name != "s2/scl"))
    report = store.write(poor, tmp_path / "a.zarr", layout=LAYOUT)
    assert report.state == "partial"
    assert "derived from 's2/scl', which the plan lacks" in next(iter(report.failed.values()))


# ------------------------------------------------------------------------------- your own DataTree


def in_memory(path: Path) -> xr.DataTree:
    return store.open(path, chunks=None).load()


@pytest.mark.parametrize("where", ["memory", "lazy", "odd chunks"])
def test_a_datatree_goes_back_to_the_same_bytes(
    whole: tuple[Path, Report], plan: Plan, tmp_path: Path, where: str
) -> None:
    """Physical values encode to the bytes that the plan's own build wrote, whatever the chunks."""
    path = tmp_path / "own.zarr"
    tree = {
        "memory": lambda: in_memory(whole[0]),
        "lazy": lambda: cube.open_plan(plan),
        "odd chunks": lambda: store.open(whole[0], chunks={"time": 3, "y": 100, "x": 70}),
    }[where]()
    report = store.write(tree, path, layout=LAYOUT)
    assert report.state == "sealed"
    pixels = {k: v for k, v in files(path).items() if "/c/" in k}
    assert pixels == {k: v for k, v in files(whole[0]).items() if "/c/" in k}
    again = store.write(tree, path, layout=LAYOUT)
    assert (again.written, again.pixels_read) == (0, 0)
    back, first = store.open(path), store.open(whole[0])
    for group in GROUPS:
        xr.testing.assert_identical(
            back[group].to_dataset().load(), first[group].to_dataset().load()
        )


def test_a_datatree_is_recognised_by_its_pixels(whole: tuple[Path, Report], tmp_path: Path) -> None:
    tree, path = in_memory(whole[0]), tmp_path / "own.zarr"
    store.write(tree, path, layout=LAYOUT)
    (path / "s2/scl/c/0/0/0").unlink()
    with pytest.raises(CubeError, match=r"repair\(store, source=tree\)"):
        store.repair(path)
    other = in_memory(whole[0])
    other["s2"].scl.data[0, 0, 0] += 1
    with pytest.raises(CubeError, match="its pixels come from other data"):
        store.write(other, path, layout=LAYOUT)
    with pytest.raises(CubeError, match="not the DataTree"):
        store.repair(path, source=other)
    assert store.repair(path, source=tree).state == "sealed"
    assert store.verify(path).state == "sealed"


def test_a_datatree_that_is_no_cube_is_refused(whole: tuple[Path, Report], tmp_path: Path) -> None:
    tree = in_memory(whole[0])
    bad = xr.DataTree.from_dict({"/s2": tree["s2"].to_dataset().rename(reflectance="rho")})
    with pytest.raises(CubeError, match="rho"):
        store.write(bad, tmp_path / "bad.zarr")
    assert not (tmp_path / "bad.zarr").exists()


def test_two_axes_of_a_group_may_share_a_name(tmp_path: Path, plan: Plan) -> None:
    """Times and tracks both know an orbit: the second coordinate says whose it is."""
    from cubes.types import Axis

    track = Axis(group="s1", dim="track", coords={"track": ("10A",), "orbit_state": ("ascending",)})
    two = replace(plan, axes=(plan.axes[0], track))
    coords = metadata.coordinates(two, "s1")
    assert coords["orbit_state"].dims == ("time",)
    assert coords["track_orbit_state"].dims == ("track",)
    assert registry.layer("s1/incidence").stack_dim == "track"


# ------------------------------------------------------------------------------------- every layer


def numbers(array: Any, step: int, geobox: Any, _: Plan) -> tuple[np.ndarray, int, int]:
    """Return working numbers of any layer with a tenth of nodata, a function of place and step."""
    layer = array.layer
    shape = (layer.n_channels, *geobox.shape)
    rng = np.random.default_rng([step, len(layer.name), int(geobox.affine.c + geobox.affine.f)])
    low, high = layer.valid_range
    if layer.convert == "power_to_db":
        out = rng.gamma(4.4, 0.02, shape)
    elif layer.convert == "identity":
        out = rng.uniform(low, high, shape)
    else:
        scale = layer.scale if layer.kind == "continuous" else 1
        out = np.rint((rng.uniform(low, high, shape) - layer.offset) / scale)
    if layer.work_nodata is not None:
        out[rng.random(shape) < 0.1] = layer.work_nodata
    return out.astype(layer.work_dtype), out.size, 0


def everything() -> Plan:
    """Return a plan with every layer of the registry, on every axis."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from cubes.types import ArrayPlan, Axis

    times = small.TIMES[:3]
    orbit: dict[str, tuple[Any, ...]] = {
        "relative_orbit": (132, 132, 139),
        "orbit_state": ("ascending", "ascending", "descending"),
    }
    axes = (
        Axis(group="s1", dim="time", coords={"time": times, "platform": ("s1a",) * 3, **orbit}),
        Axis(
            group="s1",
            dim="track",
            coords={
                "track": ("132A", "139D"),
                "relative_orbit": (132, 139),
                "orbit_state": ("ascending", "descending"),
            },
        ),
        Axis(
            group="insar",
            dim="pair",
            coords={
                "pair": ("a", "b"),
                "reference_time": (times[0], times[1]),
                "secondary_time": (times[1], None),
                "temporal_baseline": (12, 12),
                "perpendicular_baseline": (None, -40.5),
                "relative_orbit": (132, 132),
                "orbit_state": ("ascending", "ascending"),
            },
        ),
        Axis(group="s2", dim="time", coords={"time": times, "platform": ("s2a",) * 3}),
        Axis(group="labels", dim="year", coords={"year": (2020, 2021)}),
    )
    lengths = {(a.group, a.dim): len(a) for a in axes}
    arrays = []
    for layer in registry.layers().values():
        n = lengths.get((layer.group, layer.stack_dim or ""), 1)
        steps = () if layer.derived_from else ({},) * n
        attrs = {"calibration": "gamma0_rtc"} if layer.name == "s1/backscatter" else {}
        arrays.append(ArrayPlan(layer=layer, steps=steps, attrs=attrs))
    return Plan(
        geobox=GeoBox((70, 50), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32631"),
        axes=axes,
        arrays=tuple(sorted(arrays, key=lambda a: a.layer.derived_from is not None)),
        attrs={"aoi": "all"},
    )


def test_every_layer_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_read_block", numbers)
    wanted, path = everything(), tmp_path / "all.zarr"
    assert store.write(wanted, path, layout=Layout(patch=32, steps=2)).state == "sealed"
    tree = store.open(path).load()
    schema.check(tree)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = xr.open_datatree(path, engine="zarr").load()
    for array in wanted.arrays:
        layer = array.layer
        got = tree[layer.name]
        assert got.dims == layer.dims
        assert got.dtype == {"mask": "bool", "class": layer.dtype}.get(layer.kind, "float32")
        if layer.kind != "mask":
            good = cube.valid(got)
            assert 0.85 < float(good.mean()) < 0.95, layer.name
            assert float(got.where(good).min()) >= layer.valid_range[0] - 1e-3
            assert float(got.where(good).max()) <= layer.valid_range[1] + 1e-3
        np.testing.assert_allclose(plain[layer.name], got, atol=1e-4, rtol=1e-6)
        share = ledger.valid_fractions(path, [layer.name])[layer.name]
        assert share.shape[1:] == (3, 2)
        assert share.max() <= 1
    insar = tree["insar"].to_dataset()
    assert insar.reference_time.dtype == "datetime64[ns]"
    assert np.isnat(insar.secondary_time[1])
    assert np.isnat(plain["insar"].secondary_time[1])
    assert np.isnan(insar.perpendicular_baseline[0])
    assert insar.temporal_baseline.dtype == np.int64
    s1 = tree["s1"].to_dataset()
    assert s1.relative_orbit.dims == ("time",)
    assert s1.track_relative_orbit.to_numpy().tolist() == [132, 139]
    assert tree["labels"].year.to_numpy().tolist() == [2020, 2021]


def test_names_that_are_paths_are_refused(plan: Plan, tmp_path: Path) -> None:
    evil = replace(plan.arrays[0].layer, name="../../outside/backscatter")
    bad = replace(plan, arrays=(replace(plan.arrays[0], layer=evil),))
    with pytest.raises(CubeError, match="is not group/variable"):
        store.write(bad, tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())
