"""A store is data: what a stranger wrote into it grants nothing, and its seal proves its ledger."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cubes
from cubes import registry
from cubes.reading import access as gate
from cubes.store import build, ledger
from cubes.store import verbs as store
from cubes.types import Access, Catalog, CubeError, Layout, Plan, Report

_spec = importlib.util.spec_from_file_location(
    "store_plans", Path(__file__).with_name("store_plans.py")
)
assert _spec is not None
assert _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)

LAYOUT: Layout = small.LAYOUT
SHARD = "s2/reflectance/c/1/0/1/1"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Access]:
    """Return what each read was allowed to open."""
    seen: list[Access] = []
    real = build._read_block

    def read(array: Any, step: int, geobox: Any, plan: Plan) -> Any:
        seen.append(plan.access)
        return real(array, step, geobox, plan)

    monkeypatch.setattr(build, "_read_block", read)
    return seen


def _edit(path: Path, change: Change) -> None:
    """Do what a stranger does: edit the plan, and its hash where it is kept."""
    folder = path / ledger.FOLDER
    body = json.loads((folder / "plan.json").read_text())
    change(body)
    (folder / "plan.json").write_text(json.dumps(body, sort_keys=True, separators=(",", ":")))
    sha = Plan.from_json((folder / "plan.json").read_text()).sha256
    for name in ("build.json", "sealed.json"):
        text = json.loads((folder / name).read_text()) | {"plan_sha256": sha}
        if name == "sealed.json" and "build_sha256" in text:
            text["build_sha256"] = ledger._body_sha256(ledger.load_build(path))
        (folder / name).write_text(json.dumps(text, sort_keys=True))


STRANGERS = {
    "schemes": ["https", "file"], "hosts": ["127.0.0.1"], "roots": ["/"], "sign": None,
    "auth": "MY_CLOUD_SECRET",
}  # fmt: skip


@pytest.fixture
def gift(plan: Plan, tmp_path: Path) -> Path:
    """Return a store from elsewhere: its plan asks for much, and one shard is damaged."""
    path = tmp_path / "deep" / "in" / "gift.zarr"
    store.write(plan, path, layout=LAYOUT)
    _edit(path, lambda body: body.update(access=STRANGERS))
    (path / SHARD).write_bytes(b"x")
    return path


# ----------------------------------------------------------------------------------------- access


def test_a_plan_in_a_store_grants_no_access(gift: Path, reads: list[Access], plan: Plan) -> None:
    for verb in (
        store.repair,
        lambda path: store.write(cubes.load_plan(path), path),
        lambda path: cubes.cube.open_plan(cubes.load_plan(path)),
    ):
        with pytest.raises(CubeError, match=r"not granted on its own word.*cubes\.add") as error:
            verb(gift)
        assert "MY_CLOUD_SECRET" in str(error.value), "a person must see what was asked"
    assert not reads
    mended = store.repair(gift, access=plan.access)
    assert (mended.state, mended.written) == ("sealed", 1)
    assert set(reads) == {plan.access}


def test_the_row_that_a_plan_names_says_what_may_be_read(
    gift: Path, reads: list[Access], archive: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _edit(gift, lambda body: body["attrs"].update(catalog="planetary-computer"))
    with pytest.raises(CubeError, match=r"outside of the folders that may be read \(none\)"):
        store.repair(gift)
    _edit(gift, lambda body: body["attrs"].update(catalog="mine"))
    file = tmp_path / "mine.toml"
    file.write_text(
        f'[catalogs.mine]\nurl = "https://example.org"\nkind = "api"\n'
        f'access = {{schemes = ["file"], roots = ["{archive}"]}}\n'
    )
    monkeypatch.setitem(registry._rows._tables, "catalogs", {**registry._rows.table("catalogs")})
    cubes.add(file)
    assert store.repair(gift).state == "sealed"
    assert {a.roots for a in reads} == {(str(archive.resolve()),)}
    assert {a.auth for a in reads} == {None}


@pytest.mark.parametrize("kind", ["row", "file", "access"])
def test_a_person_may_vouch(gift: Path, archive: Path, tmp_path: Path, kind: str) -> None:
    access = Access(schemes=("file",), roots=(str(archive),))
    row = Catalog(name="mine", url="https://x", kind="api", access=access, products={})
    file = tmp_path / "mine.toml"
    file.write_text(
        f'[catalogs.mine]\nurl = "https://example.org"\nkind = "api"\n'
        f'access = {{schemes = ["file"], roots = ["{archive}"]}}\n'
    )
    by = {"row": row, "file": file, "access": access}[kind]
    assert store.repair(gift, access=by).state == "sealed"


def test_what_this_process_wrote_it_may_read_again(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another process says who vouches; the hash stays, so the same store goes on."""
    from cubes import grants

    path = tmp_path / "own.zarr"
    first = store.write(plan, path, layout=LAYOUT)
    (path / SHARD).unlink()
    assert store.repair(path).tree_sha256 == first.tree_sha256
    (path / SHARD).unlink()
    monkeypatch.setattr(grants, "_known", {})
    with pytest.raises(CubeError, match="own word"):
        store.repair(path)
    assert store.repair(path, access=plan.access).tree_sha256 == first.tree_sha256
    assert store.repair(path).written == 0, "nothing to read, nobody needs to vouch"


# ------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize("name", ["../../../pwned/x", "/pwned", "a/b", "..", "zarr.json", ""])
@pytest.mark.parametrize("where", ["coordinate", "dim", "group"])
def test_names_of_axes_lead_nowhere_else(gift: Path, name: str, where: str) -> None:
    def change(body: dict[str, Any]) -> None:
        axis = body["axes"][0]
        if where == "coordinate":
            axis["coords"][name] = ["hello"] * 5
        else:
            axis["coords"][name] = axis["coords"]["time"]
            axis[where] = name

    before = set(gift.parent.parent.rglob("*"))
    _edit(gift, change)
    for verb in (store.repair, store.open, store.verify):
        with pytest.raises(CubeError, match="cannot be a name"):
            verb(gift)
    after = {p for p in gift.parent.parent.rglob("*") if p.name != "lock"}
    assert after <= before


def test_a_persons_own_coordinate_may_be_called_as_other_tools_do(
    whole: tuple[Path, Report], tmp_path: Path
) -> None:
    tree = store.open(whole[0], chunks=None).load()
    data = tree["s2"].to_dataset().assign_coords({"eo:cloud cover": ("time", np.arange(5.0))})
    tree["s2"] = cubes_tree = type(tree)(data)
    assert cubes_tree is not None
    path = tmp_path / "own.zarr"
    assert store.write(tree, path, layout=LAYOUT).state == "sealed"
    assert store.open(path)["s2"]["eo:cloud cover"].to_numpy().tolist() == [0, 1, 2, 3, 4]


def test_a_link_in_a_store_leads_no_write_outside(gift: Path, plan: Plan, tmp_path: Path) -> None:
    outside = tmp_path / "home"
    (gift / "s2" / "reflectance").rename(outside)
    (gift / "s2" / "reflectance").symlink_to(outside)
    before = {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()}
    report = store.repair(gift, access=plan.access)
    assert "leads out of the store" in next(iter(report.failed.values()))
    assert {p: p.read_bytes() for p in outside.rglob("*") if p.is_file()} == before


def test_keys_of_a_ledger_lead_nowhere_else(gift: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of mine")
    _retable(gift, lambda t: t["object_key"].__setitem__(0, "../../../secret"))
    for verb in (store.verify, store.repair, lambda p: cubes.corpus([p], name="c")):
        with pytest.raises(CubeError, match="outside of its store"):
            verb(gift)


# ------------------------------------------------------------------------------------------- seal


def _retable(path: Path, change: Change) -> None:
    file = path / ledger.FOLDER / "table.npz"
    table = {k: np.array(v) for k, v in np.load(file).items()}
    change(table)
    np.savez_compressed(file, **table)


def _swap(path: Path) -> None:
    """Put other bytes in the place of a shard, and their hash in the table."""
    data = (path / "s2/reflectance/c/0/0/1/1").read_bytes()
    (path / SHARD).write_bytes(data)

    def change(table: dict[str, Any]) -> None:
        number = table["object_key"].tolist().index(SHARD)
        table["object_sha256"][number] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
        table["object_size"][number] = len(data)

    _retable(path, change)


def _drop(path: Path) -> None:
    """Take a shard and its row away: then it reads as nodata."""
    (path / SHARD).unlink()

    def change(table: dict[str, Any]) -> None:
        keep = [n for n, key in enumerate(table["object_key"].tolist()) if key != SHARD]
        for name in ("object_key", "object_sha256", "object_size"):
            table[name] = table[name][keep]

    _retable(path, change)


def _no_counts(path: Path) -> None:
    file = path / ledger.FOLDER / "valid.npz"
    counts = {k: np.array(v) for k, v in np.load(file).items()}
    counts["s2/reflectance"][:] = 0
    np.savez_compressed(file, **counts)


def _garble(path: Path) -> None:
    (path / ledger.FOLDER / "table.npz").write_bytes(b"not a table")


@pytest.mark.parametrize(
    ("harm", "file"),
    [(_swap, "table.npz"), (_drop, "table.npz"), (_no_counts, "valid.npz"), (_garble, "table.npz")],
)
def test_the_seal_binds_the_ledger(
    plan: Plan, whole: tuple[Path, Report], tmp_path: Path, harm: Callable[[Path], None], file: str
) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    made = cubes.corpus([path], name="c")
    harm(path)
    for quick in (False, True):
        report = store.verify(path, quick=quick)
        assert (report.state, report.tree_sha256) == ("damaged", None)
        assert f"{ledger.FOLDER}/{file}" in report.damaged
    for verb in (
        lambda: cubes.corpus([path], name="c"),
        lambda: cubes.publish(made, tmp_path / "out"),
        lambda: store.write(plan, path, layout=LAYOUT),
        lambda: store.open(path),
    ):
        with pytest.raises(CubeError, match=rf"{file}.* changed after the cube was sealed|lacks"):
            verb()
    assert not (tmp_path / "out").exists()
    mended = store.repair(path)
    assert mended.state == "sealed"
    assert mended.tree_sha256 == whole[1].tree_sha256, "as it was"
    assert store.verify(path).state == "sealed"
    np.testing.assert_array_equal(
        ledger.valid_fractions(path)["s2/reflectance"],
        ledger.valid_fractions(whole[0])["s2/reflectance"],
    )


def test_how_a_store_was_begun_is_sealed_and_the_run_is_not(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    file = path / ledger.FOLDER / "build.json"
    body = json.loads(file.read_text())
    file.write_text(json.dumps(body | {"id": "another"}))
    assert store.verify(path).state == "sealed"
    file.write_text(json.dumps(body | {"source": "tree 00"}))
    assert store.verify(path).damaged == (f"{ledger.FOLDER}/build.json",)
    with pytest.raises(CubeError, match="fresh copy"):
        store.repair(path)


def test_a_seal_of_before_holds(plan: Plan, tmp_path: Path) -> None:
    """Seals made before counts and build were hashed lack those hashes, and the run its id."""
    path = tmp_path / "a.zarr"
    store.write(plan, path, layout=LAYOUT)
    for name, gone in (("sealed.json", "valid_sha256"), ("build.json", "id")):
        file = path / ledger.FOLDER / name
        body = json.loads(file.read_text())
        del body[gone]
        file.write_text(json.dumps(body))
    assert store.verify(path).state == "sealed"
    (path / SHARD).unlink()
    assert store.write(plan, path, layout=LAYOUT).written == 1


def test_a_run_stops_where_another_has_taken_the_store(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    first = store.write(plan, path, layout=LAYOUT)
    mine = ledger.load_build(path)
    before = small.files(path)
    ledger.renew(mine)
    region = ledger.build_regions(mine)[0]
    from concurrent.futures import ThreadPoolExecutor

    source = build.PlanPixels(plan=plan, arrays=ledger.build_arrays(mine))
    with ThreadPoolExecutor(1) as pool, pytest.raises(CubeError, match="belongs to another run"):
        build.build_region(mine, region, source, build.Crew(pool=pool))
    assert small.files(path) == before
    assert not small.litter(path)
    assert not ledger.records(mine)
    assert store.verify(path).tree_sha256 == first.tree_sha256


# --------------------------------------------------------------------------------------- messages


def test_no_message_shows_the_password_of_a_url() -> None:
    with pytest.raises(CubeError, match="not a URL") as error:
        ledger.store_path("https://bob:hunter2@example.org/a.zarr")
    assert "hunter2" not in str(error.value)
    with pytest.raises(CubeError, match="credentials") as error:
        gate.permit("s3://bob:hunter2@other/a.tif", Access(schemes=("s3",), hosts=("mine",)))
    assert "hunter2" not in str(error.value)
    with pytest.raises(CubeError) as error:
        cubes.open_corpus("ftp://bob:hunter2@example.org/corpus")
    assert "hunter2" not in str(error.value)
    assert gate.redact("see https://bob:p@ss@host/x, mail me@host") == (
        "see https://[redacted]@host/x, mail me@host"
    )


def test_a_report_says_why_and_what_to_do() -> None:
    why = "AssetReadError: item 'item-3', asset 'SCL': HTTP 503 (after 4 attempts)"
    report = Report(store="a.zarr", state="partial", failed={"s2.time.1.0.0": why, "x": "other"})
    assert f"2 failed, first s2.time.1.0.0: {why}" in str(report)
    assert "run the same call again" in str(report)
    assert "cubes.repair" not in str(report)
    broken = Report(store="a.zarr", state="damaged", damaged=("s2/scl/c/0/0/0",))
    assert "1 damaged, first s2/scl/c/0/0/0" in str(broken)
    assert "cubes.repair(store)" in str(broken)
