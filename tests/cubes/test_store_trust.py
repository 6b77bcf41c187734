"""A store is data: what a stranger wrote into it grants nothing, and its seal proves its ledger."""

from __future__ import annotations

import pytest

import cubes
from cubes.reading import access as gate
from cubes.store import ledger
from cubes.types import Access, CubeError


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
