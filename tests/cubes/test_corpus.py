"""Corpora in a folder and on an S3 endpoint: published, opened from metadata, verified."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

import cubes
from cubes.corpora import card, publishing, remote, stacdocs
from cubes.corpora.corpus import Corpus, _footprint, corpus, open_corpus
from cubes.corpora.publishing import publish, verify_corpus
from cubes.store import verbs as store
from cubes.types import Layout
from cubes.zones import by_zone

HERE = Path(__file__).parent


def _tree(seed: int, epsg: int = 32631, size: int = 24) -> xr.DataTree:
    rng = np.random.default_rng(seed)
    box = GeoBox((size, size), Affine(10, 0, 500000 + 2560 * seed, 0, -10, 5000000), f"EPSG:{epsg}")
    times = np.array(["2021-03-01T10:00", "2021-03-13T10:00"], "datetime64[ns]")
    values = rng.normal(-12, 3, (2, 1, size, size)).astype("float32")
    values[1, 0, : size // 2] = np.nan
    clear = rng.random((2, size, size)) < 0.75
    coords = {**xr_coords(box), "time": times}
    s1 = xr.Dataset(
        {
            "backscatter": (
                ("time", "pol", "y", "x"), values, {"calibration": "gamma0_rtc", "units": "dB"},
            )
        },
        coords={
            **coords, "pol": ["vv"], "platform": ("time", ["sentinel-1a"] * 2),
            "relative_orbit": ("time", [15, 15]), "orbit_state": ("time", ["ascending"] * 2),
        },
    )  # fmt: skip
    reflectance = rng.uniform(0, 0.5, (2, 2, size, size)).astype("float32")
    s2 = xr.Dataset(
        {
            "reflectance": (("time", "band", "y", "x"), reflectance),
            "clear": (("time", "y", "x"), clear),
        },
        coords={**coords, "band": ["B04", "B08"], "platform": ("time", ["sentinel-2a"] * 2)},
    )
    year = {**xr_coords(box), "year": [2021]}
    labels = xr.Dataset(
        {"worldcover": (("year", "y", "x"), np.full((1, size, size), 40, "uint8"))}, coords=year
    )
    return xr.DataTree.from_dict({"s1": s1, "s2": s2, "labels": labels})


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("cubes")
    paths = []
    for seed, epsg in ((0, 32631), (1, 32631), (2, 32632)):
        path = folder / f"place-{seed}.zarr"
        assert store.write(_tree(seed, epsg), path, layout=Layout(patch=16)).state == "sealed"
        paths.append(path)
    return paths


@pytest.fixture
def made(stores: list[Path]) -> Corpus:
    return corpus(stores, name="three", title="Three places", description="For tests.")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Return options for a moto server, run as its own process, with a bucket ``corpora``."""
    pytest.importorskip("obstore", reason="pip install deepsentinel[cloud]")
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        pytest.skip("no S3 endpoint: pip install 'moto[s3]' flask flask-cors")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    # werkzeug's development server closes each connection by default: 1.1 keeps them
    code = (
        "import sys; from werkzeug.serving import WSGIRequestHandler as H; "
        "H.protocol_version = 'HTTP/1.1'; "
        "from moto.server import main; main(sys.argv[1:])"
    )
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, "-H", "127.0.0.1", "-p", str(port)],
        stdout=log, stderr=log, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _await(f"{endpoint}/corpora", server)
        yield {
            "endpoint": endpoint, "access_key_id": "test", "secret_access_key": "test",
            "region": "us-east-1",
        }  # fmt: skip
    finally:
        # it keeps everything in memory, and takes its time to take leave of 20,000 objects
        server.kill()
        server.wait(60)
        log.close()


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert server.poll() is None, "the S3 endpoint did not start"
        try:
            request = urllib.request.Request(url, method="PUT")
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the S3 endpoint did not answer in 30 s")


def _same(ours: xr.DataTree, theirs: xr.DataTree) -> None:
    for group in ("s1", "s2", "labels"):
        xr.testing.assert_identical(
            ours[group].to_dataset().load(), theirs[group].to_dataset().load()
        )


# ---------------------------------------------------------------------------------------- gather


def test_the_table_says_what_there_is(made: Corpus) -> None:
    table = made.table
    assert table.index.tolist() == ["place-0", "place-1", "place-2"]
    row = table.loc["place-0"]
    assert row["crs"] == "EPSG:32631"
    assert row["shape"] == (24, 24)
    assert row["start"] == pd.Timestamp("2021-03-01T10:00")
    assert row["end"] == pd.Timestamp("2021-03-13T10:00")
    assert row["steps"] == {
        "s1/backscatter": 2, "s2/reflectance": 2, "s2/clear": 2, "labels/worldcover": 1,
    }  # fmt: skip
    assert row["valid"]["s1/backscatter"] == 0.75
    assert row["valid"]["s2/clear"] == pytest.approx(float(_tree(0)["s2/clear"].mean()), abs=1e-6)
    west, south, east, north = row["geometry"].bounds
    assert west == pytest.approx(3.0, abs=1e-6)
    assert (east - west, north - south) == pytest.approx((0.0031, 0.0022), abs=2e-4)
    assert made.license == "other"
    assert any("modified Copernicus Sentinel data 2021" in line for line in made.attribution)
    assert any("WorldCover" in line for line in made.attribution)
    _same(made.open("place-1"), cubes.open(made.stores["place-1"]))


def test_what_cannot_be_a_corpus_is_named(stores: list[Path], tmp_path: Path) -> None:
    with pytest.raises(cubes.CubeError, match="at least one cube"):
        corpus([], name="none")
    with pytest.raises(cubes.CubeError, match="two cubes are called 'place-0'"):
        corpus([stores[0], stores[0]], name="twice")
    with pytest.raises(cubes.CubeError, match=r"corpus id '\.\./up' cannot be a key"):
        corpus(stores, name="../up")
    (tmp_path / "half.zarr").mkdir()
    with pytest.raises(cubes.CubeError, match="not a cube"):
        corpus([tmp_path / "half.zarr"], name="half")
    shutil.copytree(stores[0], tmp_path / "open.zarr")
    (tmp_path / "open.zarr" / "__cubes__" / "sealed.json").unlink()
    with pytest.raises(cubes.CubeError, match="not finished"):
        corpus([tmp_path / "open.zarr"], name="half")


# ---------------------------------------------------------------------------------------- folder


def test_a_folder_holds_what_was_published(made: Corpus, tmp_path: Path) -> None:
    report = publish(made, tmp_path / "out")
    assert (report.state, report.reused) == ("sealed", 0)
    assert report.written == made.table["objects"].sum() + 3 * len(publishing.LEDGER)
    again = open_corpus(tmp_path / "out")
    pd.testing.assert_frame_equal(again.table[made.table.columns], made.table, check_dtype=False)
    assert (again.title, again.attribution) == (made.title, made.attribution)
    for name in made.table.index:
        _same(again.open(name), cubes.open(made.stores[name]))
        # and each is a store like any other
        assert cubes.verify(tmp_path / "out" / "cubes" / f"{name}.zarr").state == "sealed"
    assert verify_corpus(again).state == "sealed"
    assert not list((tmp_path / "out").rglob("*.partial"))
    with pytest.raises(cubes.CubeError, match="has no cube 'place-9'"):
        again.open("place-9")


def test_opening_reads_two_objects(made: Corpus, tmp_path: Path, monkeypatch) -> None:
    publish(made, tmp_path / "out")
    read: list[str] = []
    plain = remote.Folder.get
    monkeypatch.setattr(remote.Folder, "get", lambda self, k: (read.append(k), plain(self, k))[1])
    opened = open_corpus(tmp_path / "out")
    assert read == ["collection.json", "items.parquet"]
    shutil.rmtree(tmp_path / "out" / "cubes" / "place-0.zarr" / "s1")
    assert len(opened) == 3


def test_a_second_run_finishes_the_first_and_adds_cubes(
    stores: list[Path], made: Corpus, tmp_path: Path, monkeypatch
) -> None:
    plain, sent = remote.Folder.put, []

    def dies(self, key, data):
        sent.append(key)
        if len(sent) == 50:
            raise OSError("unplugged")
        plain(self, key, data)

    two = corpus(stores[:2], name="three")
    monkeypatch.setattr(remote.Folder, "put", dies)
    with pytest.raises(OSError, match="unplugged"):
        publish(two, tmp_path / "out")
    monkeypatch.setattr(remote.Folder, "put", plain)
    with pytest.raises(cubes.CubeError, match=r"no collection\.json"):
        open_corpus(tmp_path / "out")
    report = publish(two, tmp_path / "out")
    assert report.reused > 0
    assert report.written + report.reused == two.table["objects"].sum() + 10
    assert publish(two, tmp_path / "out").written == 0
    grown = publish(made, tmp_path / "out")
    assert grown.reused == report.written + report.reused
    assert len(open_corpus(tmp_path / "out")) == 3
    assert verify_corpus(open_corpus(tmp_path / "out")).state == "sealed"
    with pytest.raises(cubes.CubeError, match="1 cubes that this corpus lacks, first 'place-2'"):
        publish(two, tmp_path / "out")
    with pytest.raises(cubes.CubeError, match="holds the corpus 'three', not 'other'"):
        publish(corpus(stores, name="other"), tmp_path / "out")


def test_changed_cubes_are_refused(stores: list[Path], tmp_path: Path) -> None:
    publish(corpus(stores[:1], name="one"), tmp_path / "out")
    other = tmp_path / "place-0.zarr"
    store.write(_tree(7), other, layout=Layout(patch=16))
    with pytest.raises(cubes.CubeError, match=r"1 cubes differ .* first 'place-0'"):
        publish(corpus([other], name="one"), tmp_path / "out")


def test_a_cube_written_anew_is_refused_before_anything_is_sent(
    stores: list[Path], tmp_path: Path
) -> None:
    copy = tmp_path / "place-0.zarr"
    shutil.copytree(stores[0], copy)
    made = corpus([stores[1], copy], name="two")
    store.write(_tree(7), copy, layout=Layout(patch=16), force=True)
    with pytest.raises(cubes.CubeError, match=r"place-0\.zarr was written anew .*cubes\.corpus"):
        publish(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert publish(corpus([stores[1], copy], name="two"), tmp_path / "out").state == "sealed"


def test_objects_that_do_not_make_the_hash_in_the_table_are_damage(
    made: Corpus, tmp_path: Path
) -> None:
    """Whoever changes a shard, its row and the checksum of the rows leaves the hash of the cube."""
    publish(made, tmp_path / "out")
    key = next(k for k in remote.Folder(str(tmp_path / "out")).sizes("cubes") if "/c/0/0/" in k)
    (tmp_path / "out" / key).write_bytes(b"mine")
    rows = pd.read_parquet(tmp_path / "out" / "objects.parquet")
    rows.loc[rows["key"] == key, ["sha256", "size"]] = [hashlib.sha256(b"mine").hexdigest(), 4]
    rows.to_parquet(tmp_path / "out" / "objects.parquet")
    path = tmp_path / "out" / "collection.json"
    body = json.loads(path.read_text())
    data = (tmp_path / "out" / "objects.parquet").read_bytes()
    body["assets"]["objects"]["file:checksum"] = stacdocs.multihash(
        hashlib.sha256(data).hexdigest()
    )
    path.write_text(json.dumps(body))
    for quick in (False, True):
        report = verify_corpus(open_corpus(tmp_path / "out"), quick=quick)
        assert (report.state, report.damaged) == ("damaged", ("/".join(key.split("/")[:2]),))


def test_damage_is_found_before_and_after(stores: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "place-0.zarr"
    shutil.copytree(stores[0], copy)
    shard = next(p for p in (copy / "s1/backscatter/c").rglob("*") if p.is_file())
    good = shard.read_bytes()
    shard.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(cubes.CubeError, match=r"cubes\.repair"):
        publish(corpus([copy], name="one"), tmp_path / "out")
    shard.write_bytes(good)
    publish(corpus([copy], name="one"), tmp_path / "out")
    there = tmp_path / "out/cubes/place-0.zarr" / shard.relative_to(copy)
    there.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    opened = open_corpus(tmp_path / "out")
    assert verify_corpus(opened, quick=True).state == "sealed"  # sizes only
    report = verify_corpus(opened)
    key = f"cubes/place-0.zarr/{shard.relative_to(copy).as_posix()}"
    assert (report.state, report.damaged) == ("damaged", (key,))
    there.unlink()
    assert verify_corpus(opened, quick=True).damaged == (key,)
    assert verify_corpus(opened).damaged == (key,)
    (tmp_path / "out" / "README.md").write_text("mine")
    assert "README.md" in verify_corpus(opened).damaged
    (tmp_path / "out" / "items.parquet").write_bytes(b"not the table")
    with pytest.raises(cubes.CubeError, match=r"items\.parquet is not the file"):
        open_corpus(tmp_path / "out")


def test_a_corpus_is_verified_by_its_place(made: Corpus, tmp_path: Path) -> None:
    publish(made, tmp_path / "out")
    for place in (tmp_path / "out", str(tmp_path / "out")):
        report = verify_corpus(place, quick=True)
        assert report == replace(
            verify_corpus(open_corpus(tmp_path / "out"), quick=True), seconds=report.seconds
        )
        assert report.reused > 0
    next((tmp_path / "out" / "cubes").rglob("c/**/0")).write_bytes(b"x")
    assert verify_corpus(tmp_path / "out").damaged
    with pytest.raises(cubes.CubeError, match="no corpus at"):
        verify_corpus(tmp_path / "nothing")


def test_a_strangers_corpus_cannot_reach_outside(made: Corpus, tmp_path: Path) -> None:
    publish(made, tmp_path / "out")
    path = tmp_path / "out" / "collection.json"
    body = json.loads(path.read_text())
    for hostile in ("../../etc", "a/b", "..", ".hidden"):
        table = made.table.rename(index={"place-0": hostile})
        data = stacdocs.items_parquet(table, "three")
        (tmp_path / "out" / "items.parquet").write_bytes(data)
        from cubes.store.ledger import sha256

        body["assets"]["items"]["file:checksum"] = stacdocs.multihash(sha256(data))
        path.write_text(json.dumps(body))
        with pytest.raises(cubes.CubeError, match="cannot be a key"):
            open_corpus(tmp_path / "out")
    path.write_text(json.dumps({**body, "cubes:format": 2}))
    with pytest.raises(cubes.CubeError, match=r"format 2.*upgrade"):
        open_corpus(tmp_path / "out")
    path.write_text(json.dumps({"type": "Collection"}))
    with pytest.raises(cubes.CubeError, match="not that of a corpus"):
        open_corpus(tmp_path / "out")


# -------------------------------------------------------------------------------- STAC, the card


def test_stac_is_what_other_tools_read(made: Corpus, tmp_path: Path) -> None:
    import pystac

    publish(made, tmp_path / "out")
    found = pystac.Collection.from_file(str(tmp_path / "out" / "collection.json"))
    assert found.license == "other"
    items = {i.id: i for i in found.get_items()}
    assert list(items) == made.table.index.tolist()
    item = items["place-2"]
    assert item.properties["proj:code"] == "EPSG:32632"
    assert item.properties["proj:shape"] == [24, 24]
    dims = item.properties["cube:dimensions"]
    for variable in item.properties["cube:variables"].values():
        assert set(variable["dimensions"]) <= set(dims)
    assert dims["s1/time"]["extent"] == ["2021-03-01T10:00:00Z", "2021-03-13T10:00:00Z"]
    assert dims["s2/band"]["values"] == ["B04", "B08"]
    assert dims["x"]["extent"] == pytest.approx([505125, 505355])
    assert shapely.geometry.shape(item.geometry).equals(made.table.loc["place-2", "geometry"])
    asset = item.assets["cube"]
    assert Path(asset.get_absolute_href()).resolve() == (
        tmp_path / "out" / "cubes" / "place-2.zarr"
    )
    assert {link.rel for link in found.links} >= {"license", "item", "items"}
    for file in found.assets.values():
        assert (tmp_path / "out" / file.href).stat().st_size == file.extra_fields["file:size"]


def test_the_table_is_geoparquet(made: Corpus, tmp_path: Path) -> None:
    gpd = pytest.importorskip("geopandas")
    publish(made, tmp_path / "out")
    table = gpd.read_parquet(tmp_path / "out" / "items.parquet")
    assert table.crs.to_epsg() == 4326 or table.crs.to_string() == "OGC:CRS84"
    assert table["id"].tolist() == made.table.index.tolist()
    assert table.geometry.iloc[0].equals(made.table["geometry"].iloc[0])
    part = gpd.read_parquet(tmp_path / "out" / "items.parquet", bbox=(8, 44, 10, 46))
    assert part["id"].tolist() == ["place-2"]


def test_the_card_counts_and_attributes(made: Corpus, tmp_path: Path) -> None:
    publish(made, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "# Three places" in text
    assert "| cubes | 3 |" in text
    assert "EPSG:32631 (2), EPSG:32632 (1)" in text
    assert "| `s1/backscatter` | 3 | 2 | 0.750 |" in text
    assert "> Contains modified Copernicus Sentinel data 2021" in text
    assert "CC-BY-4.0" in text
    assert text.count(f"{made.table['bytes'].sum():,} bytes") == 1
    svg = (tmp_path / "out" / "map.svg").read_text()
    assert svg.count("<circle") == 3
    import xml.dom.minidom

    xml.dom.minidom.parseString(svg)


def test_sources_follow_the_layers() -> None:
    names = [s.title for s in card.sources(["s1/backscatter", "s2/scl", "labels/cdl"])]
    assert names == ["Copernicus Sentinel-1 and Sentinel-2", "USDA NASS Cropland Data Layer"]
    assert card.unstated(["s1/backscatter", "labels/mine"]) == ["labels/mine"]
    assert card.sources(["s1/backscatter"], simulated=True) == [card.SIMULATED]


# ------------------------------------------------------------------------------------------- S3


@pytest.mark.server
def test_s3_holds_what_was_published(made: Corpus, s3: dict[str, Any]) -> None:
    url = "s3://corpora/three"
    report = publish(made, url, options=s3)
    again = publish(made, url, options=s3)
    assert (again.written, again.reused) == (0, report.written)
    opened = open_corpus(url, options=s3)
    pd.testing.assert_frame_equal(opened.table[made.table.columns], made.table, check_dtype=False)
    for chunks in ("stored", None):
        _same(opened.open("place-2", chunks=chunks), cubes.open(made.stores["place-2"]))
    assert verify_corpus(opened).state == "sealed"
    assert verify_corpus(opened, quick=True).state == "sealed"
    assert "test" not in repr(opened.remote)


def _here(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def _fetched(made: Corpus, url: str, options: dict[str, Any] | None, out: Path) -> None:
    there = open_corpus(url, options=options)
    report = cubes.fetch_corpus(there, out)
    assert report.reused == 0
    for name, path in made.stores.items():
        ours, theirs = _here(out / f"{name}.zarr"), _here(path)
        # records of a build are merged into its table; nothing else is left behind
        assert ours == {k: v for k, v in theirs.items() if k in ours}
        assert not {k for k in set(theirs) - set(ours) if not k.startswith("__cubes__/")}
        assert cubes.verify(out / f"{name}.zarr").state == "sealed"
    again = cubes.fetch_corpus(there, out)
    assert (again.written, again.reused) == (0, report.written)


def test_a_corpus_comes_back_byte_for_byte(made: Corpus, tmp_path: Path) -> None:
    publish(made, tmp_path / "there")
    _fetched(made, str(tmp_path / "there"), None, tmp_path / "here")
    there = open_corpus(tmp_path / "there")
    one = cubes.fetch_corpus(there, tmp_path / "one", names=["place-1"])
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["place-1.zarr"]
    (tmp_path / "one" / "place-1.zarr" / "zarr.json").write_text("{}")
    assert cubes.fetch_corpus(there, tmp_path / "one", names=["place-1"]).written == 1
    assert one.written > 1
    with pytest.raises(cubes.CubeError, match="no cube 'place-9'"):
        cubes.fetch_corpus(there, tmp_path / "one", names=["place-9"])
    with pytest.raises(cubes.CubeError, match="lies here already"):
        cubes.fetch_corpus(made, tmp_path / "one")
    (tmp_path / "one" / "place-1.zarr").rename(tmp_path / "one" / "place-2.zarr")
    with pytest.raises(cubes.CubeError, match="another cube than the corpus has"):
        cubes.fetch_corpus(there, tmp_path / "one")


def test_a_fetch_of_damage_leaves_no_sealed_cube(made: Corpus, tmp_path: Path) -> None:
    publish(made, tmp_path / "there")
    shard = max((tmp_path / "there" / "cubes" / "place-1.zarr").rglob("c/**/*"),
                key=lambda p: p.is_file() and p.stat().st_size)  # fmt: skip
    body = bytearray(shard.read_bytes())
    body[len(body) // 2] ^= 1
    shard.write_bytes(body)
    with pytest.raises(cubes.CubeError, match="does not hold the bytes that were published"):
        cubes.fetch_corpus(open_corpus(tmp_path / "there"), tmp_path / "here")
    assert not list((tmp_path / "here").rglob("sealed.json"))


@pytest.mark.server
def test_s3_comes_back_byte_for_byte(made: Corpus, s3: dict[str, Any], tmp_path: Path) -> None:
    publish(made, "s3://corpora/back", options=s3)
    _fetched(made, "s3://corpora/back", s3, tmp_path / "here")


def test_options_of_the_connection_work_and_unknown_ones_are_named() -> None:
    """obstore ends in a panic, no Exception, on options of the connection among the store's."""
    pytest.importorskip("obstore")
    made = remote.connect("s3://b/x", options={"allow_http": True, "timeout": "3s"})
    assert made.url == "s3://b/x"
    with pytest.raises(cubes.CubeError, match=r"'anon' is not valid .* skip_signature"):
        remote.connect("s3://b/x", options={"anon": True})
    with pytest.raises(cubes.CubeError, match="gave up on the options http2_keep_alive"):
        remote.connect("s3://b/x", options={"http2_keep_alive_timeout": "3s"})


@pytest.mark.server
def test_s3_damage_is_found(made: Corpus, s3: dict[str, Any]) -> None:
    url = "s3://corpora/damaged"
    publish(made, url, options=s3)
    opened = open_corpus(url, options=s3)
    assert opened.remote is not None
    key = "cubes/place-1.zarr/zarr.json"
    body = opened.remote.get(key)
    opened.remote.put(key, body[:-1] + b" ")
    assert verify_corpus(opened, quick=True).state == "sealed"
    assert verify_corpus(opened).damaged == (key,)
    assert publish(made, url, options=s3).written == 1
    assert verify_corpus(opened).state == "sealed"


@pytest.mark.server
def test_s3_cubes_survive_pickling(made: Corpus, s3: dict[str, Any]) -> None:
    import pickle

    publish(made, "s3://corpora/pickled", options=s3)
    cube = open_corpus("s3://corpora/pickled", options=s3).open("place-0")
    again = pickle.loads(pickle.dumps(cube))
    xr.testing.assert_identical(again["s1"].to_dataset().load(), cube["s1"].to_dataset().load())


@pytest.mark.server
def test_no_bucket_is_explained(made: Corpus, s3: dict[str, Any]) -> None:
    with pytest.raises(cubes.CubeError, match="no corpus at s3://corpora/nothing"):
        open_corpus("s3://corpora/nothing", options=s3)
    with pytest.raises(cubes.CubeError, match="s3://nowhere") as error:
        publish(made, "s3://nowhere/three", options={**s3, "secret_access_key": "hush-hush"})
    assert "hush-hush" not in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.server
def test_requester_pays_is_said_in_every_request(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    server = subprocess.Popen(
        [sys.executable, str(HERE / "recording_server.py")], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        options = {
            "endpoint": f"http://127.0.0.1:{port}", "access_key_id": "a",
            "secret_access_key": "b", "region": "us-east-1",
        }  # fmt: skip
        for pays in (True, False):
            with pytest.raises(cubes.CubeError, match="no corpus at"):
                open_corpus("s3://bucket/c", options=options, requester_pays=pays)
            seen = json.loads(server.stdout.readline())
            assert "collection.json" in seen["path"]
            assert seen["headers"].get("x-amz-request-payer") == ("requester" if pays else None)
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


def test_addresses_are_checked() -> None:
    with pytest.raises(cubes.CubeError, match="not at 'ftp://host/x'"):
        remote.connect("ftp://host/x")
    pytest.importorskip("obstore")
    with pytest.raises(cubes.CubeError, match="requester_pays='my-project'"):
        remote.connect("gs://bucket/x", requester_pays=True)
    with pytest.raises(cubes.CubeError, match="knows no requester pays"):
        remote.connect("az://account/container/x", requester_pays=True)
    assert isinstance(remote.connect("file:///tmp/a%20b"), remote.Folder)
    assert remote.connect("file:///tmp/a%20b").url == "/tmp/a b"


def test_no_obstore_is_explained(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(cubes.CubeError, match=r"deepsentinel\[cloud\]"):
        open_corpus("s3://bucket/three")


# ----------------------------------------------------------------------------------------- scale


def _tiny(tmp_path: Path, count: int) -> Corpus:
    """Return a corpus of one tiny cube under many names, linked."""
    box = GeoBox((16, 16), Affine(10, 0, 600000, 0, -10, 5000000), "EPSG:32631")
    data = xr.Dataset(
        {"elevation": (("y", "x"), np.ones((16, 16), "float32"))}, coords=xr_coords(box)
    )
    tree = xr.DataTree.from_dict({"/": xr.Dataset(), "terrain": data})
    tree.attrs["time"] = ["2021-01-01", "2021-12-31"]
    store.write(tree, tmp_path / "one.zarr")
    paths = [tmp_path / "many" / f"sample-{i:04d}.zarr" for i in range(count)]
    for path in paths:
        shutil.copytree(tmp_path / "one.zarr", path, copy_function=os.link)
    return corpus(paths, name="many")


@pytest.mark.slow
def test_a_thousand_samples_open_in_two_seconds(tmp_path: Path, figure) -> None:
    many = _tiny(tmp_path, 1000)
    publish(many, tmp_path / "out")
    began = time.perf_counter()
    opened = open_corpus(tmp_path / "out")
    seconds = time.perf_counter() - began
    assert len(opened) == 1000
    figure("1,000 samples opened from a folder, seconds", seconds, "2")
    assert seconds < 2, f"opening took {seconds:.2f} s"
    assert verify_corpus(opened).reused == many.table["objects"].sum() + 5000


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_samples_on_s3_open_in_two_seconds(
    tmp_path: Path, s3: dict[str, Any], figure
) -> None:
    many = _tiny(tmp_path, 1000)
    publish(many, "s3://corpora/many", options=s3)
    began = time.perf_counter()
    opened = open_corpus("s3://corpora/many", options=s3)
    seconds = time.perf_counter() - began
    assert len(opened) == 1000
    figure("1,000 samples opened from S3, seconds", seconds, "2")
    assert seconds < 2, f"opening took {seconds:.2f} s"
    assert verify_corpus(opened).state == "sealed"


# ----------------------------------------------------------------------------------------- zones


def test_footprints_over_180_degrees_and_a_pole_are_cut_there() -> None:
    """RFC 7946, 3.1.9 and 5.2: a part on either side, and a bbox whose west is above its east."""
    from cubes.bounds import lonlat_bbox, outline
    from cubes.grid import as_aoi, geobox

    box = geobox(as_aoi((179.999, -16.9), size=2560))
    found = _footprint(SimpleNamespace(geobox=box))  # type: ignore[arg-type]
    assert found.geom_type == "MultiPolygon"
    sides = [part.bounds for part in found.geoms]
    assert {(b[0] == -180, b[2] == 180) for b in sides} == {(True, False), (False, True)}
    width = sum(b[2] - b[0] for b in sides)
    assert width == pytest.approx(2560 / (111_320 * np.cos(np.deg2rad(16.9))), rel=0.02)
    west, _, east, _ = lonlat_bbox(found)
    assert 179.9 < west < 180
    assert -180 < east < -179.9
    # one cube around the North Pole, on a polar grid: every longitude, up to 90 degrees
    polar = outline((-500_000, -500_000, 500_000, 500_000), "EPSG:3413", 5000.0)
    assert polar.is_valid
    assert polar.bounds[0] == -180
    assert polar.bounds[2:] == (180, 90)
    assert 83 < polar.bounds[1] < 86
    assert shapely.contains_xy(polar, 100.0, 89.0)
    # and what is wide, but does not cross, stays as it is
    assert lonlat_bbox(shapely.box(-180, -10, 180, 10)) == (-180, -10, 180, 10)


def test_an_area_over_two_zones_becomes_two() -> None:
    area = shapely.box(5.5, 50.0, 6.5, 50.5)
    parts = by_zone(area)
    assert [(a.name[-4:], g.crs) for a, g in parts] == [
        ("-z31", "EPSG:32631"),
        ("-z32", "EPSG:32632"),
    ]
    assert shapely.union_all([a.geometry for a, _ in parts]).equals(area)
    assert parts[0][0].geometry.bounds[2] == 6
    boxes = [cubes.grid.geobox(a, g) for a, g in parts]
    assert [str(b.crs) for b in boxes] == ["EPSG:32631", "EPSG:32632"]


def test_an_area_in_one_zone_stays_whole() -> None:
    aoi = cubes.aoi((3.1, 50.0, 3.3, 50.2), name="here")
    assert by_zone(aoi) == [(aoi, cubes.Grid(crs="EPSG:32631"))]
    point = cubes.aoi((6.1, 50.0), size=2560)
    assert by_zone(point) == [(point, cubes.Grid(crs="EPSG:32632"))]


def test_norway_and_svalbard_are_exceptions() -> None:
    # 4 degrees east lies in zone 31 south of 56 degrees and in 32 between 56 and 64
    parts = by_zone(shapely.box(4.0, 55.0, 5.0, 57.0))
    assert [g.crs for _, g in parts] == ["EPSG:32631", "EPSG:32632"]
    assert parts[0][0].geometry.bounds == (4, 55, 5, 56)
    parts = by_zone(shapely.box(8.0, 73.0, 10.0, 74.0))
    assert [g.crs for _, g in parts] == ["EPSG:32631", "EPSG:32633"]
    assert parts[1][0].geometry.bounds[0] == 9


def test_every_place_of_a_cut_lies_in_its_zone() -> None:
    from cubes.grid import utm_zone

    rng = np.random.default_rng(3)
    area = shapely.Point(6.2, 60.5).buffer(7.4)
    parts = by_zone(area)
    assert len(parts) == 4
    for lon, lat in rng.uniform((-1, 53.2), (13.4, 67.8), (400, 2)):
        here = [g.crs for a, g in parts if a.geometry.contains(shapely.Point(lon, lat))]
        inside = area.contains(shapely.Point(lon, lat))
        assert here == ([f"EPSG:{32600 + utm_zone(lon, lat)}"] if inside else [])
