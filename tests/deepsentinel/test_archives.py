"""Worlds published side by side, and the STAC API over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cubes.types import CubeError
from deepsentinel.demo import archives


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("worlds")
    lines: list[str] = []
    result = archives.publish_all([("one", "tiny", 1), ("two", "tiny", 2)], out, lines.append)
    assert any(line.startswith("two ") for line in lines)
    return out, result


@pytest.mark.slow
def test_two_seeds_are_two_worlds(published: tuple[Path, dict[str, Any]]) -> None:
    out, result = published
    assert list(result) == ["one", "two"]
    for role, world in result.items():
        assert all((out / role / name).is_file() for name in world["proof"])
        assert world["bytes"] == archives.bytes_under(out / role)
        assert world["items"]["sentinel-1-rtc"] > 10
    scenes = [sorted((out / role).glob("archive/sentinel-1-rtc/**/*.tif*")) for role in result]
    assert scenes[0]
    assert scenes[0][0].read_bytes() != scenes[1][0].read_bytes()


@pytest.mark.slow
@pytest.mark.server
def test_the_api_pages_and_names_files_by_url(
    published: tuple[Path, dict[str, Any]],
) -> None:
    import pystac_client

    if archives.find_rustac() is None:
        pytest.skip("rustac is not installed")
    out, result = published
    files = [out / "one" / name for name in result["one"]["server"]]
    with archives.stac_api(files) as url:
        client = pystac_client.Client.open(url)
        found = client.search(collections=["sentinel-1-rtc"], limit=10)
        pages = [len(page["features"]) for page in found.pages_as_dicts()]
        items = list(client.search(collections=["sentinel-1-rtc"], limit=10).items())
    assert len(pages) > 1
    assert max(pages) <= 10
    assert len({item.id for item in items}) == result["one"]["items"]["sentinel-1-rtc"]
    assert all(i.assets["vv"].href.startswith("file:///") for i in items)


def test_a_world_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match=r"world 'one' .*nearest is 'tiny'"):
        archives.publish_all([("one", "tinny", 1)], tmp_path, print)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    if archives.find_rustac() is None:
        pytest.skip("rustac is not installed")
    with (
        pytest.raises(CubeError, match="rustac serve ended with exit code"),
        archives.stac_api([tmp_path / "no-such-items.json"]),
    ):
        pass
