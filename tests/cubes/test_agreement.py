"""Geometry and radiometry beside references that share no code: bounds of docs/cross-check.md."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    ("part", "bounds"),
    [
        # median and 95th percentile of the difference; degrees, then reflectance and dB
        ("opera", [(0.1, 0.4), (0.03, 0.15)]),
        ("morocco", [(0.05, 0.06), (0.05, 0.25), (0.3, 0.6)]),
        ("reflectance", [(1e-7, 1e-7), (1e-5, 1e-5)]),
    ],
)
def test_differences_stay_within_what_is_published(
    real: Path, part: str, bounds: list[tuple[float, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import agreement

    monkeypatch.setenv("DEEPSENTINEL_REAL", str(real))
    found = getattr(agreement, part)(real)
    assert len(found) == len(bounds)
    for row, (median, p95) in zip(found, bounds, strict=True):
        assert row.n > 10_000, row
        assert abs(row.median) < median, row
        assert row.p95 < p95, row
        assert row.correlation > 0.6, row
