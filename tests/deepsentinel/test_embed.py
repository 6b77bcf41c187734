"""Embeddings: windows that partition, no seam, the same from store and tree, resumable."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import cubes
from cubes.types import CubeError, Layout
from deepsentinel.embedding import embedstore
from deepsentinel.embedding.embed import (
    Job,
    embed,
    open_embeddings,
    quantise,
    verify_embeddings,
)
from deepsentinel.embedding.encoding import Encoder
from deepsentinel.embedding.tiling import tiles
from deepsentinel.model import Fusion


@pytest.mark.parametrize("shape", [(256, 512), (64, 64), (130, 700), (257, 40), (512, 300)])
@pytest.mark.parametrize(
    ("core", "overlap", "patch"),
    [(128, 32, 8), (64, 0, 8), (64, 40, 8), (128, 36, 12), (128, 0, 12), (128, 35, 5)],
)
def test_cores_partition_and_windows_stay_on_the_patch_lattice(
    shape: tuple[int, int], core: int, overlap: int, patch: int
) -> None:
    count = np.zeros(shape, int)
    for y in range(0, shape[0], 256):
        for x in range(0, shape[1], 256):
            block = (slice(y, min(y + 256, shape[0])), slice(x, min(x + 256, shape[1])))
            for t in tiles(shape, block, core=core, overlap=overlap, patch=patch):
                count[t.core] += 1
                assert t.y0 % patch == t.x0 % patch == 0
                assert (t.y1 - t.y0) % patch == 0 or t.y1 == shape[0]
                assert (t.x1 - t.x0) % patch == 0 or t.x1 == shape[1]
                assert 0 <= t.y0 < t.y1 <= shape[0]
                assert 0 <= t.x0 < t.x1 <= shape[1]
                assert t.keep[0].start >= 0
                assert t.keep[1].stop <= t.x1 - t.x0
                margins = (
                    t.core[0].start - t.y0, t.y1 - t.core[0].stop,
                    t.core[1].start - t.x0, t.x1 - t.core[1].stop,
                )  # fmt: skip
                edges = (t.y0 == 0, t.y1 == shape[0], t.x0 == 0, t.x1 == shape[1])
                assert all(m >= overlap or e for m, e in zip(margins, edges, strict=True))
    assert (count == 1).all()


@pytest.fixture(scope="module")
def wide(land: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store wider than a block, so that there are seams of blocks and of windows."""
    path: Path = land.write(tmp_path_factory.mktemp("wide") / "wide.zarr", shape=(136, 320), seed=5)
    return path


@pytest.fixture(scope="module")
def near(land: ModuleType, wide: Path) -> Any:
    """Return a model whose joint attention reaches one patch: 16 px of place, 3 of detail."""
    return land.model(wide, reach=1)


@pytest.fixture(scope="module")
def made(near: Any, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "embedding.zarr"
    embed(near, wide, path)
    return path


def test_no_seam_where_the_margin_covers_what_a_pixel_sees(
    near: Any, wide: Path, made: Path
) -> None:
    # one window over the whole cube knows no seam; trimmed windows must say the same
    encoder = Encoder.of(near, wide)
    whole, seen = encoder.run([encoder.reader.read(slice(0, 136), slice(0, 320))], 64)
    got = open_embeddings(made)["embeddings"].to_numpy()[0]
    there = np.broadcast_to(seen[0], got.shape)
    np.testing.assert_array_equal(np.isfinite(got), there)
    step = np.abs(np.where(there, got, 1)).max(axis=0) / 127
    error = np.abs(got - whole[0]) / step
    assert error[there].max() <= 0.51  # half a step of int8, and float32 rounding
    bare = embed(near, wide, dtype="float32", overlap=0)["embeddings"].to_numpy()[0]
    seams = np.abs(bare - whole[0])
    assert seams[:, 50:, 120:136].max() > 1e-2  # without margins there is a seam to be seen
    exact = embed(near, wide, dtype="float32")["embeddings"].to_numpy()[0]
    assert np.abs(exact - whole[0])[there].max() < 1e-3


def test_pixels_that_nobody_saw_are_nodata(made: Path) -> None:
    data = open_embeddings(made)["embeddings"].to_numpy()[0]
    raw = embedstore.lazy(made)
    assert np.isnan(data[:, :40, :30]).all()
    assert np.isinf(raw["scales"].to_numpy()[0, :40, :30]).all()
    assert np.isfinite(data[:, 48:, 40:]).all()


def test_store_and_tree_give_the_same(near: Any, wide: Path, made: Path) -> None:
    tree = embed(near, cubes.open(wide, chunks=None), dims=64)
    stored = open_embeddings(made)
    np.testing.assert_array_equal(tree["embeddings"].to_numpy(), stored["embeddings"].to_numpy())
    xr.testing.assert_equal(
        tree.to_dataset().drop_vars("embeddings"),
        stored.to_dataset().drop_vars("embeddings").compute(),
    )


def test_int8_is_within_half_a_step_and_keeps_nodata() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(16, 9, 7)).astype(np.float32) * rng.random((9, 7)).astype("f4") * 9
    values[:, 2, 3] = np.nan
    values[:, 4, 4] = 0
    numbers, scales = quantise(values)
    assert numbers.dtype == np.int8
    assert np.abs(numbers.astype(int)).max() == 127
    assert np.isinf(scales[2, 3])
    good = np.isfinite(scales)
    error = np.abs(numbers * np.where(good, scales, 0) - values)
    assert (error[:, good] <= 0.5 * scales[good] + 1e-6).all()


def test_a_matryoshka_cut_is_the_first_numbers(near: Any, wide: Path) -> None:
    long = embed(near, wide, dims=128, dtype="float32")["embeddings"].to_numpy()
    short = embed(near, wide, dims=16, dtype="float32")["embeddings"].to_numpy()
    np.testing.assert_array_equal(short, long[:, :16])


def test_plain_readers_open_it_without_a_warning(made: Path) -> None:
    import odc.geo.xr  # noqa: F401

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=PendingDeprecationWarning)  # odc-geo, affine
        data = xr.open_zarr(made)
        tree = xr.open_datatree(made, engine="zarr")
        box = data.odc.geobox
    assert data["embeddings"].dims == ("time", "embedding", "y", "x")
    assert data["embeddings"].dtype == np.int8
    assert box.shape == (136, 320)
    assert box.crs.epsg == 32631
    assert set(tree.children) == set()
    attrs = data.attrs
    names = {c["name"] for c in attrs["zarr_conventions"]}
    assert {"geoemb:"} <= names
    assert len(names) == 3
    required = {"type", "dimensions", "model", "source_data", "data_type"}
    assert required <= {k.split(":")[1] for k in attrs if k.startswith("geoemb:")}
    assert attrs["geoemb:quantization"]["scale"]["array_name"] in data
    array = zarr.open_array(made, path="embeddings", mode="r")
    assert array.shards == (1, 64, 256, 256)


def test_killed_and_called_again_it_goes_on_to_the_same_bytes(
    near: Any, wide: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "again.zarr"
    real, calls = embedstore.write_block, []

    def dies(*args: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(args[2].id)
        real(*args)

    monkeypatch.setattr(embedstore, "write_block", dies)
    with pytest.raises(KeyboardInterrupt):
        embed(near, wide, path)
    assert verify_embeddings(path).state == "partial"
    with pytest.raises(CubeError, match="not finished"):
        open_embeddings(path)
    half = open_embeddings(path, partial=True)["embeddings"].to_numpy()[0]
    assert np.isfinite(half[:, 48:, 40:256]).all()
    assert np.isnan(half[:, :, 256:]).all()

    def counts(*args: Any) -> None:
        calls.append(args[2].id)
        real(*args)

    monkeypatch.setattr(embedstore, "write_block", counts)
    embed(near, wide, path)
    assert calls == ["0000-0000", "0000-0001"]
    embed(near, wide, path)
    assert len(calls) == 2  # sealed: nothing computed, nothing written
    seals = [json.loads((p / "__embedding__" / "sealed.json").read_text()) for p in (path, made)]
    assert seals[0] == seals[1]


def test_damage_is_found_and_mended(near: Any, wide: Path, tmp_path: Path) -> None:
    path = tmp_path / "hurt.zarr"
    embed(near, wide, path)
    shard = path / "embeddings" / "c" / "0" / "0" / "0" / "1"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert verify_embeddings(path, quick=True).state == "sealed"  # sizes agree
    report = verify_embeddings(path)
    assert report.state == "damaged"
    assert report.damaged == ("embeddings/c/0/0/0/1",)
    shard.unlink()
    assert verify_embeddings(path, quick=True).state == "damaged"
    embed(near, wide, path)
    assert verify_embeddings(path).state == "sealed"


def test_another_embedding_is_never_overwritten(
    near: Any, wide: Path, made: Path, land: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(CubeError, match="holds another embedding"):
        embed(land.model(wide, seed=1, reach=1), wide, made)
    with pytest.raises(CubeError, match="holds another embedding"):
        embed(near, wide, made, dims=32)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(CubeError, match="no embedding store"):
        embed(near, wide, tmp_path)
    with pytest.raises(CubeError, match="not an embedding store"):
        open_embeddings(tmp_path)


def test_bad_arguments_name_what_is_allowed(near: Any, wide: Path, land: ModuleType) -> None:
    with pytest.raises(CubeError, match="16, 32, 64, 128; the nearest is 64"):
        embed(near, wide, dims=60)
    with pytest.raises(CubeError, match="int8"):
        embed(near, wide, dtype="int4")
    with pytest.raises(CubeError, match="overlap=-1"):
        embed(near, wide, overlap=-1)
    tree = land.landscape(shape=(64, 64), seed=6)
    tree["s1"]["backscatter"].attrs["calibration"] = "sigma0"
    with pytest.raises(CubeError, match="calibration 'sigma0'"):
        embed(near, tree)
    only = xr.DataTree.from_dict({"/": xr.Dataset(), "/labels": tree["labels"].to_dataset()})
    with pytest.raises(CubeError, match="none of the dated layers"):
        embed(near, only)


def test_a_cube_without_one_sensor_is_embedded_from_the_other(near: Any, land: ModuleType) -> None:
    tree = land.landscape(shape=(72, 60), seed=7)
    radar = xr.DataTree.from_dict({f"/{g}": tree[g].to_dataset() for g in ("s1", "insar")})
    both, alone = (embed(near, t)["embeddings"].to_numpy() for t in (tree, radar))
    assert alone.shape == both.shape == (1, 64, 72, 60)
    assert np.isfinite(alone[..., 48:, 40:]).all()
    assert not np.allclose(alone[..., 48:, 40:], both[..., 48:, 40:], atol=0.1)


def test_nothing_is_left_behind_by_a_store_that_could_not_be_made(
    near: Any, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(embedstore, "_make_arrays", full)
    with pytest.raises(OSError, match="no space"):
        embed(near, wide, tmp_path / "new.zarr")
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("change", [{"min_usable": 0.9}, {"reach": 2}, {"card": {"model": "x"}}])
def test_what_has_no_weight_is_part_of_the_identity_too(
    near: Any, wide: Path, change: dict[str, Any]
) -> None:
    other = Fusion(replace(near.config, **change))
    other.load_state_dict(near.state_dict())
    made = [Job.of(m, wide, dims=16, dtype="int8", overlap=32).identity for m in (near, other)]
    assert made[0] != made[1]


def test_no_seam_with_patches_that_do_not_divide_the_core(
    land: ModuleType, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = land.model(wide, reach=1, patch=12)
    encoder = Encoder.of(odd, wide)
    whole, seen = encoder.run([encoder.reader.read(slice(0, 136), slice(0, 320))], 16)
    got = embed(odd, wide, dims=16, dtype="float32", overlap=36)["embeddings"].to_numpy()[0]
    there = np.broadcast_to(seen[0], got.shape)
    assert np.abs(got - whole[0])[there].max() < 1e-4


def test_progress_is_told_by_block(near: Any, wide: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    job = Job.of(near, wide, dims=16, dtype="int8", overlap=32)
    job.write(tmp_path / "e.zarr", lambda done, total, _: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_simulated_ground_alone_is_no_teacher_of_real_ground(near: Any, land: ModuleType) -> None:
    tree = land.landscape(shape=(32, 32), seed=6, hole=False)
    for catalogs, warns in ((["simulated"], True), (["simulated", "x"], False), ([], False)):
        model = Fusion(replace(near.config, card={"catalogs": catalogs})).eval()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            embed(model, tree, dims=16)
        said = [str(w.message) for w in told if "simulated ground alone" in str(w.message)]
        assert bool(said) == warns
        assert all(w.filename == __file__ for w in told if "simulated" in str(w.message))


def test_a_store_of_working_numbers_is_refused(near: Any, land: ModuleType, tmp_path: Path) -> None:
    tree = land.landscape(shape=(32, 32), seed=6, hole=False)
    cubes.write(tree, tmp_path / "l.zarr", layout=Layout(patch=32, lossless=True))
    with pytest.raises(CubeError, match=r"working numbers.*cubes\.open"):
        embed(near, tmp_path / "l.zarr", dims=16)


def test_embedding_needs_no_evaluation() -> None:
    root = Path(__file__).parents[2] / "deepsentinel" / "embedding"
    assert not [p.name for p in root.glob("*.py") if "deepsentinel.evaluation" in p.read_text()]


# -- a cube that is not, or no longer, what its seal says ---------------------------------------


def _shards(store: Path) -> list[Path]:
    return [p for p in sorted(store.glob("s2/reflectance/c/**/*")) if p.is_file()]


def test_a_lost_object_of_the_cube_is_never_nodata(near: Any, wide: Path, tmp_path: Path) -> None:
    cube = tmp_path / "cube.zarr"
    shutil.copytree(wide, cube)
    encoder = Encoder.of(near, cube)
    encoder.reader.read(slice(0, 64), slice(0, 64))
    lost = _shards(cube)[0]
    lost.unlink()
    key = str(lost.relative_to(cube))
    with pytest.raises(CubeError, match=rf"lacks 1 objects.*{key}.*cubes\.repair"):
        encoder.reader.read(slice(0, 64), slice(0, 64))  # lost since it was opened
    for out in (None, tmp_path / "e.zarr"):
        with pytest.raises(CubeError, match=rf"lacks 1 objects.*{key}.*cubes\.repair"):
            embed(near, cube, out, dims=16)
    assert not (tmp_path / "e.zarr").exists()


def test_a_cube_whose_ledger_was_changed_is_not_embedded(
    near: Any, wide: Path, tmp_path: Path
) -> None:
    cube = tmp_path / "cube.zarr"
    shutil.copytree(wide, cube)
    (cube / "__cubes__" / "valid.npz").write_bytes(b"")
    with pytest.raises(CubeError, match=r"valid\.npz changed after the cube was sealed"):
        embed(near, cube, dims=16)


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_cube_written_anew_is_not_read_under_its_old_name(
    near: Any, land: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    cube = tmp_path / "cube.zarr"
    land.write(cube, shape=(64, 64), seed=5)
    reader = Encoder.of(near, cube).reader
    real = zarr.open_array

    def anew(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(zarr, "open_array", real)
        cubes.write(land.landscape(shape=(64, 64), seed=6), cube, force=True)
        return real(*args, **options)

    if moment == "before":
        cubes.write(land.landscape(shape=(64, 64), seed=6), cube, force=True)
    else:
        monkeypatch.setattr(zarr, "open_array", anew)
    with pytest.raises(CubeError, match=r"was written anew since.* open it again"):
        reader.read(slice(0, 64), slice(0, 64))


def test_a_cube_repaired_meanwhile_is_still_the_same(
    near: Any, land: ModuleType, tmp_path: Path
) -> None:
    tree, cube = land.landscape(shape=(64, 64), seed=5), tmp_path / "cube.zarr"
    cubes.write(tree, cube)
    reader = Encoder.of(near, cube).reader
    name, part = "s2/reflectance", (slice(0, 64), slice(0, 64))
    before = reader.read(*part).stored[name]
    _shards(cube)[0].unlink()
    assert cubes.repair(cube, source=tree).state == "sealed"
    np.testing.assert_array_equal(reader.read(*part).stored[name], before)


# -- damage of the embedding itself --------------------------------------------------------------


def _flip(file: Path, place: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("place", [0.5, 0.999], ids=["numbers", "index"])
def test_damage_of_the_same_size_is_mended_by_calling_again(
    near: Any,
    wide: Path,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: float,
) -> None:
    path = tmp_path / "hurt.zarr"
    shutil.copytree(made, path)
    real, calls = embedstore.write_block, []

    def counts(*args: Any) -> None:
        calls.append(args[2].id)
        assert not embedstore.sealed(path)  # a kill here leaves a store that says not finished
        real(*args)

    monkeypatch.setattr(embedstore, "write_block", counts)
    _flip(path / "embeddings" / "c" / "0" / "0" / "0" / "1", place)
    embed(near, wide, path)
    assert calls == ["0000-0001"]
    for name in ("scales/c/0/0/1", "embeddings/c/0/0/0/1", "__embedding__/sealed.json"):
        assert (path / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.parametrize("how", ["torn", "gone", "another"])
def test_a_record_that_is_not_the_one_sealed_is_damage(
    near: Any, wide: Path, made: Path, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "hurt.zarr"
    shutil.copytree(made, path)
    record = path / "__embedding__" / "blocks" / "0000-0001.json"
    if how == "torn":
        record.write_text(record.read_text()[:40])
    elif how == "gone":
        record.unlink()
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"objects": {}}))
    report = verify_embeddings(path)
    assert report.state == "damaged"
    assert all(key.startswith("__embedding__/") for key in report.damaged)
    embed(near, wide, path)
    assert verify_embeddings(path).state == "sealed"
    name = "__embedding__/sealed.json"
    assert (path / name).read_bytes() == (made / name).read_bytes()
