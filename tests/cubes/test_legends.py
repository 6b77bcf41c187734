"""Every code has a name and a colour; legends translate; nodata and ignored are never classes."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cubes import registry
from cubes.registry import checks
from cubes.registry.labels import label_layer
from cubes.types import SCL_CODES, ClearPolicy, CubeError

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
        (lambda: registry.translate([11], "corine-2", "common"), "no table to 'common'"),
        (
            lambda: registry.translate(np.array([10.0, 80.0]), "worldcover", "common"),
            "float64, not",
        ),
        (
            lambda: registry.translate(np.array([10, np.nan]), "worldcover", "common"),
            "float64, not",
        ),
        (lambda: registry.translate(np.array([True]), "worldcover", "common"), "bool, not whole"),
        (lambda: registry.translate([254], "sigpac", "common"), r"codes \[254\] are not in"),
        (lambda: registry.legend("cdll"), "did you mean 'cdl'"),
    ],
)
def test_unknown_codes_are_refused(call, word: str) -> None:
    with pytest.raises(CubeError, match=word):
        call()


LAYER = {
    "long_name": '"x"', "dims": '["year", "y", "x"]', "units": '"1"', "kind": '"class"',
    "work_dtype": '"uint8"', "work_nodata": "255", "convert": '"stored"', "dtype": '"uint8"',
    "nodata": "255", "kernel": '"nearest"', "resolution": "10", "valid_range": "[0, 254]",
    "legend": '"crops"',
}  # fmt: skip
LEGEND = {"title": '"Crops"', "origin": '"measured"', "nodata": "255"}


def _add(folder: Path, classes: str, more: str, row: dict[str, str]) -> None:
    """Add a legend and its layer from a file, as a user would."""
    lines = ["[legends.crops]", *(f"{k} = {v}" for k, v in LEGEND.items())]
    lines += [f"classes = {classes}", more, '[layers."labels/crops"]']
    lines += [f"{k} = {v}" for k, v in {**LAYER, **row}.items()]
    path = folder / "crops.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    registry.add(path)


WHEAT = '{ 1 = ["wheat", "#d8b56b"] }'


@pytest.mark.parametrize(
    ("classes", "more", "row", "words"),
    [
        ('{ 1 = "wheat" }', "", {}, r'class 1 of legend \'crops\' is "wheat"; give its name and'),
        ('{ 1 = ["a"] }', "", {}, r'class 1 of legend \'crops\' is \["a"\]; give its name and its'),
        ('{ 1 = ["a", 3] }', "", {}, r'class 1 of .* is \["a", 3\]'),
        ('{ 1 = ["", "#112233"] }', "", {}, "class 1 of .* has no name"),
        ('{ a = ["wheat", "#d8b56b"] }', "", {}, "has the code 'a'; codes are whole numbers"),
        ('{ "1.5" = ["a", "#d8b56b"] }', "", {}, r"has the code '1\.5'"),
        ('{ "1_0" = ["a", "#d8b56b"] }', "", {}, "has the code '1_0'"),
        ('{ "\u0663" = ["a", "#d8b56b"] }', "", {}, "has the code '\u0663'"),
        ('{ "-1" = ["a", "#d8b56b"] }', "", {}, "has the code -1; codes are whole numbers from 0"),
        ('{ 70000 = ["a", "#d8b56b"] }', "", {}, "has the code 70000"),
        ('{ 1 = ["wheat", "red"] }', "", {},
         r"class 1 \(wheat\) of legend 'crops' has the colour 'red'; give it as #rrggbb"),
        ('{ 255 = ["x", "#112233"] }', "", {}, r"has the class 255 \(x\), which is its nodata too"),
        ('{ 300 = ["x", "#112233"] }', "", {},
         r"layer 'labels/crops' .*uint8, .*holds codes up to 255, and the legend has 300 \(x\)"),
        ("{}", "", {}, "has no classes"),
        ("3", "", {}, "classes of legend 'crops' is 3, not a table"),
        (WHEAT, "ignore = [2]", {}, "ignore of legend 'crops' names the code 2, which is none of"),
        (WHEAT, "groups = { g = [3] }", {}, "group 'g' of legend 'crops' names the code 3"),
        (WHEAT, "groups = { g = 3 }", {}, "group 'g' of legend 'crops' is 3; give a list"),
        (WHEAT, "remap = { common = 3 }", {}, "remap to 'common' of legend 'crops' is 3, not a"),
        (WHEAT, "", {"nodata": "1", "work_nodata": "1"}, "nodata 1, which is the class 'wheat'"),
        (WHEAT, "", {"nodata": "0", "work_nodata": "0"}, "has nodata 0, and the legend 255"),
        (WHEAT, "", {"work_nodata": "0"}, "work_nodata 0 and nodata 255: codes are stored as they"),
        (WHEAT, "", {"convert": '"identity"'}, "codes are never converted"),
        (WHEAT, "", {"work_dtype": '"uint16"'}, "codes are never converted"),
        (WHEAT, "", {"dtype": '"float32"', "work_dtype": '"float32"'}, "codes are kind"),
        (WHEAT, "", {"legend": '"crop"'}, "unknown legend 'crop'; did you mean 'crops'"),
    ],
)  # fmt: skip
def test_a_legend_that_cannot_be_used_is_refused_when_it_is_read(
    tmp_path: Path, classes: str, more: str, row: dict[str, str], words: str
) -> None:
    before = repr((registry.legends(), registry.layers()))  # of rows with NaN, equal as told
    with pytest.raises(CubeError, match=words) as raised:
        _add(tmp_path, classes, more, row)
    assert "crops.toml: " in str(raised.value)
    # all of a file's rows or none
    assert repr((registry.legends(), registry.layers())) == before


def test_rows_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    for text, match in [("legends = 3", "legends in a.toml is 3"),
                        ("[legends]\ncrops = 3", "legends. crops is 3, not a table")]:  # fmt: skip
        (tmp_path / "a.toml").write_text(text)
        with pytest.raises(CubeError, match=match):
            registry.add(tmp_path / "a.toml")


def test_shipped_layers_fit_their_legends() -> None:
    for layer in registry.layers().values():
        if layer.legend:
            checks.fitting(layer, registry.legend(layer.legend))


def test_a_policy_knows_the_classes_of_the_scene_classification() -> None:
    assert set(SCL_CODES) == set(registry.legend("scl").classes)
    with pytest.raises(CubeError, match=r"ClearPolicy.classes holds 99; .* from 1 to 11"):
        ClearPolicy(classes=(4, 99))


def test_labels_of_a_legend_without_nodata_can_be_harmonised() -> None:
    """SIGPAC's 0 is a class, so that its labels keep nodata beside the legend."""
    nodata = label_layer("sigpac").nodata
    assert nodata == 255
    found = registry.translate(np.array([[0, 13], [nodata, 37]], np.uint8), "sigpac", "common")
    common = registry.legend("common")
    assert found[1, 0] == common.nodata
    assert set(found.ravel()[[0, 1, 3]].tolist()) <= set(common.classes)


def test_scl_has_water_and_snow_in_common_and_nothing_else() -> None:
    found = registry.translate(np.arange(12), "scl", "common")
    assert found.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 8]
    assert registry.translate(np.array([]), "scl", "common").size == 0


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
        unknown = set(codes) - {*legend.classes, legend.nodata}
        figure(f"codes of {name} in the workbook, unknown to the legend", len(unknown),
               f"0 of {len(codes)}")  # fmt: skip
        assert not unknown, name
