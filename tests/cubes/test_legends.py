"""Every code has a name and a colour; legends translate; nodata and ignored are never classes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cubes import registry
from cubes.types import CubeError

COLOUR = re.compile(r"^#[0-9a-f]{6}$")


@pytest.mark.parametrize("name", registry.legends())
def test_rows_are_whole(name: str) -> None:
    legend = registry.legend(name)
    assert legend.nodata not in legend.classes
    assert set(legend.ignore) <= set(legend.classes)
    assert set(legend.scored).isdisjoint(legend.ignore)
    for words, colour in legend.classes.values():
        assert words
        assert COLOUR.match(colour), colour
    for codes in legend.groups.values():
        assert set(codes) <= set(legend.classes)
    for other, table in legend.remap.items():
        there = registry.legend(other)
        assert set(table) == set(legend.classes), f"{name} -> {other} leaves codes out"
        assert set(table.values()) <= {*there.classes, there.nodata}


def test_sizes_are_the_known_ones() -> None:
    assert len(registry.legend("cdl").classes) == 133  # 134 with the background
    assert len(registry.legend("sigpac").classes) == 171
    assert [len(registry.legend(f"corine{s}").classes) for s in ("", "-2", "-1")] == [44, 15, 5]
    assert registry.legend("sigpac").nodata is None
    assert 0 in registry.legend("sigpac").scored
    cropped = registry.legend("cdl").groups["cropped"]
    assert {1, 36, 58, 204, 250} <= set(cropped)
    assert {59, 61, 63, 73, 176, 254}.isdisjoint(cropped)


def test_ignored_and_nodata_never_become_a_class() -> None:
    codes = np.array([[0, 81, 88], [1, 63, 111]])
    np.testing.assert_array_equal(
        registry.translate(codes, "cdl", "common"), [[0, 0, 0], [5, 2, 1]]
    )
    np.testing.assert_array_equal(registry.translate([10, 0], "io-lulc", "common"), [0, 0])


def test_corine_levels() -> None:
    codes = np.arange(1, 45)
    assert np.unique(registry.translate(codes, "corine", "corine-1")).tolist() == [1, 2, 3, 4, 5]
    assert registry.translate([12, 48], "corine", "corine-2").tolist() == [21, 0]


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: registry.translate([7], "worldcover", "common"), r"codes \[7\] are not in"),
        (lambda: registry.translate([1], "scl", "common"), "no table to 'common'"),
        (lambda: registry.legend("cdll"), "did you mean 'cdl'"),
    ],
)
def test_unknown_codes_are_refused(call, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        call()


def _sheets(path: Path) -> list[list[int]]:
    """Return the whole numbers of the first column of each sheet, by the XML inside."""
    out = []
    with zipfile.ZipFile(path) as book:
        for name in sorted(n for n in book.namelist() if n.startswith("xl/worksheets/sheet")):
            text = book.read(name).decode()
            cells = re.findall(r'<c r="A\d+"(?![^>]*t="s")[^>]*><v>([^<]+)</v>', text)
            out.append([int(float(c)) for c in cells])
    return out


@pytest.mark.real
def test_every_code_of_the_workbook_is_known(real: Path, figure) -> None:
    sheets = _sheets(next((real / "legends").glob("*.xlsx")))
    assert [len(s) for s in sheets] == [134, 171, 11, 12]
    for codes, name in zip(sheets, ("cdl", "sigpac", "worldcover", "scl"), strict=True):
        legend = registry.legend(name)
        assert set(codes) <= {*legend.classes, legend.nodata}, name
        figure(f"codes of {name} in the workbook, unknown to the legend", 0, f"0 of {len(codes)}")
