"""Pictures show what the numbers say, and the page stands by itself."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cubes import registry
from cubes.types import CubeError
from deepsentinel.evaluation.bars import verdict
from deepsentinel.evaluation.tasks import Evaluation
from deepsentinel.pictures import charts
from deepsentinel.pictures import figures as pictures
from deepsentinel.pictures.report import report, score_table

GREY = list(pictures.NODATA)


@pytest.fixture(scope="module")
def cube(land: ModuleType) -> Any:
    tree = land.landscape(seed=8)
    # a fourth band makes true colour possible
    s2 = tree["s2"].to_dataset()
    blue = s2["reflectance"].sel(band=["B03"]).assign_coords(band=["B02"]) * 0.8
    import xarray as xr

    tree["s2"] = xr.DataTree(
        s2.drop_vars(["reflectance", "band"]).assign(
            reflectance=xr.concat([blue, s2["reflectance"]], "band").transpose(
                "time", "band", "y", "x"
            )
        )
    )
    return tree


def test_true_and_radar_colour_grow_with_their_values_and_are_grey_without(cube: Any) -> None:
    t = pictures.clearest(cube)
    image = pictures.true_colour(cube)
    assert image.shape == (128, 192, 3)
    assert image.dtype == np.uint8
    assert (image[:40, :30] == GREY).all()
    red = cube["s2"]["reflectance"].isel(time=t).sel(band="B04").to_numpy()
    seen = np.isfinite(red)
    order = np.argsort(red[seen])
    assert (np.diff(image[..., 0][seen][order].astype(int)) >= 0).all()
    radar = pictures.radar_colour(cube, 3)
    vv = cube["s1"]["backscatter"].isel(time=3).sel(pol="vv").to_numpy()
    assert (radar[:40, :30] == GREY).all()
    assert radar[..., 0][vv >= 0].min(initial=255) == 255
    bright, dark = radar[..., 0][vv > -9].mean(), radar[..., 0][vv < -14].mean()
    assert bright > dark + 40


def test_ndvi_is_hidden_under_clouds(cube: Any) -> None:
    value = pictures.ndvi(cube, 2)
    clear = cube["s2"]["clear"].isel(time=2).to_numpy()
    assert np.isnan(value[~clear]).all()
    assert np.isfinite(value[clear]).all()
    counts = cube["s2"]["clear"].mean(("y", "x")).to_numpy()
    assert counts[pictures.clearest(cube)] == counts.max()


def test_classes_wear_the_colours_of_their_legend(cube: Any) -> None:
    codes, legend = pictures.labels(cube)
    image = pictures.class_colours(codes, legend)
    assert legend.name == "worldcover"
    for code, (_, colour) in registry.legend("worldcover").classes.items():
        here = image[codes == code]
        assert (here == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all()
    assert (image[codes == 0] == GREY).all()
    names = [name for name, _ in pictures.legend_of(codes, legend)]
    assert names == ["tree cover", "grassland", "cropland", "permanent water"]


def test_components_are_principal_signed_and_blind_to_nodata() -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(2, 40, 50)) * np.array([5, 1])[:, None, None]
    mix = np.linalg.qr(rng.normal(size=(8, 8)))[0][:, :2]
    e = np.tensordot(mix, parts, 1).astype(np.float32)
    e[:, 0, 0] = np.nan
    found = pictures.components(e, 2)
    assert np.isnan(found[:, 0, 0]).all()
    r = np.corrcoef(found[0].ravel()[1:], parts[0].ravel()[1:])[0, 1]
    assert abs(r) > 0.999
    np.testing.assert_allclose(found, pictures.components(e.copy(), 2))
    np.testing.assert_allclose(np.abs(found), np.abs(pictures.components(-e, 2)), atol=1e-4)
    colour = pictures.component_colour(e)
    assert (colour[0, 0] == GREY).all()
    assert (pictures.component_colour(np.full((8, 4, 4), np.nan)) == GREY).all()


def test_stretch_is_linear_clipped_and_black_for_nan() -> None:
    got = pictures.stretch([-1, 0, 0.5, 1, 9, np.nan], 0, 1)
    assert got.tolist() == [0, 0, 128, 255, 255, 0]


def test_overview_leaves_out_what_is_absent(cube: Any) -> None:
    titles = [p.title for p in pictures.overview(cube)]
    assert len(titles) == 8
    import xarray as xr

    radar = xr.DataTree.from_dict({"/s1": cube["s1"].to_dataset()})
    assert len(pictures.overview(radar)) == 2
    with pytest.raises(CubeError, match="s2/reflectance"):
        pictures.true_colour(radar, 0)


def test_figures_are_png_the_same_every_time(cube: Any) -> None:
    first, again = (pictures.png(charts.timeline(cube)) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert first == again
    pictures.png(charts.ndvi_series(cube, every=2))


def test_a_confusion_matrix_leaves_out_classes_that_do_not_occur() -> None:
    matrix = np.array([[8, 2, 0, 0], [0, 5, 0, 5], [0, 0, 0, 0], [0, 0, 0, 0]])
    ax = charts.confusion(matrix, ["a", "b", "c", "d"]).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "d"]
    assert sorted(t.get_text() for t in ax.texts) == ["20", "50", "50", "80"]


def test_curves_take_only_what_was_logged() -> None:
    history = pd.DataFrame({"step": range(200), "loss": np.linspace(2, 1, 200)})
    ax = charts.curves(history, ["loss", "val_loss"]).axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["loss"]


def _evaluation(
    task: str, score: str, rival: str, gain: tuple[float, float, float], **options: Any
) -> Evaluation:
    names = ["model", rival]
    rows: dict[str, Any] = {
        score: [0.6, 0.6 - gain[0]],
        f"{score}_low": [0.5, 0.4],
        f"{score}_high": [0.7, 0.6],
        "gain": [0.0, gain[0]],
        "gain_low": [0.0, gain[1]],
        "gain_high": [0.0, gain[2]],
        "pixels": [900, 900],
        "tiles": [9, 9],
    }
    table = pd.DataFrame(rows, names)
    table.index.name = "contender"
    month = {n: {"5": {"n": 900.0, "skill": 0.1}} for n in names}
    meta: dict[str, Any] = {"by_month": month, "examples": []}
    meta["options"] = {"gap": None, "held": None, **options}
    meta["embedding"] = {"dims": 64, "dtype": "int8", "measured": 40}
    if task == "landcover":
        meta |= {
            "names": ["tree cover", "grassland"], "codes": [10, 30], "legend": "worldcover",
            "colours": ["#006400", "#ffff4c"],
            "title": "ESA <WorldCover>", "origin": "mapped", "train_pixels": 50,
        }  # fmt: skip
    arrays = {
        "confusion/model": np.array([[5, 1], [2, 6]]),
        "map/truth": np.full((8, 8), 10, np.uint16),
        "map/model": np.full((8, 8), 30, np.uint16),
    }
    return Evaluation(task=task, table=table, arrays=arrays, meta=meta)


def test_a_lead_is_only_called_one_when_its_interval_says_so() -> None:
    for gain, word in (((0.1, 0.05, 0.2), "above"), ((-0.1, -0.2, -0.05), "below"),
                       ((0.1, -0.1, 0.3), "not told apart")):  # fmt: skip
        table = _evaluation("ndvi", "skill", "ridge", gain).table
        assert verdict(table, "ridge").startswith(word)


def test_the_page_stands_alone_and_shows_what_the_folder_holds(
    fields: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "cubes").mkdir()
    (tmp_path / "cubes" / "train.zarr").symlink_to(fields["train"])
    _evaluation("landcover", "mIoU", "pixel statistics", (0.1, 0.05, 0.2)).save(tmp_path / "scores")
    _evaluation("ndvi", "skill", "ridge", (-0.1, -0.2, -0.05)).save(tmp_path / "scores")
    (tmp_path / "run").mkdir()
    history = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.5]})
    history.to_csv(tmp_path / "run" / "history.csv", index=False)
    text = report(tmp_path).read_text()
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == [
        "The train cube", "Land cover from the frozen embedding", "NDVI from Sentinel-1 alone",
        "Training", "How this was made",
    ]  # fmt: skip
    # nothing is fetched: every source is inside the page
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(sources) >= 6
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert "<script" not in text
    assert "ESA &lt;WorldCover&gt;" in text
    assert "above pixel statistics (+0.100" in text
    assert "below ridge (-0.100" in text
    assert text.count('alt="') == text.count("<img")


def test_one_or_two_tiles_are_no_verdict() -> None:
    table = _evaluation("ndvi", "skill", "ridge", (0.1, np.nan, np.nan)).table.assign(tiles=2)
    words = verdict(table, "ridge")
    assert words.startswith("not judged against ridge (+0.100, too few tiles")
    assert "2 tiles" in words
    shown = score_table(table.assign(skill_low=np.nan, skill_high=np.nan), "skill")
    assert "nan" not in shown
    assert shown.count("too few tiles") == 3  # two intervals and a lead


def test_the_page_says_what_training_adds_and_what_of_the_embedding_is_fixed(
    tmp_path: Path,
) -> None:
    _evaluation("landcover", "mIoU", "random encoder", (0.01, -0.01, 0.03)).save(tmp_path / "a")
    with pytest.raises(CubeError, match="holds no cubes"):
        report(tmp_path)
    for task, score in (("landcover", "mIoU"), ("ndvi", "skill")):
        found = _evaluation(task, score, "random encoder", (0.01, -0.01, 0.03))
        rival = "pixel statistics" if task == "landcover" else "ridge"
        found.table.loc[rival] = found.table.loc["random encoder"]
        found.meta["by_month"][rival] = {"5": {"n": 900.0, "skill": 0.1}}
        found.save(tmp_path / "scores")
    text = report(tmp_path).read_text()
    assert text.count("Training adds nothing here that can be measured") == 2
    assert text.count("40 of them (62 %) are principal components") == 2
    cards = re.findall(r"<b>(.*?)</b><span>(.*?)</span>", text)
    assert [n for n, what in cards if "the same model untrained" in what] == ["0.590", "0.590"]


def test_dates_held_out_are_not_called_radar_alone(tmp_path: Path) -> None:
    held = [["2022-04-10", "2022-04-20"], ["2022-05-20T12:00:00", "2022-06-08"]]
    gain = (-0.1, -0.2, -0.05)
    _evaluation("ndvi-gap", "skill", "ridge", gain, held=held).save(tmp_path / "scores")
    text = report(tmp_path).read_text()
    assert "<h2>NDVI of 2 spans of dates held out</h2>" in text
    assert "Sentinel-2 of 2 spans of dates between 2022-04-10 and 2022-06-08 hidden" in text
    assert "Sentinel-1 alone" not in text
    assert "all of Sentinel-2" not in text
    assert "drawn by block of dates and tile of ground" in text


def test_a_run_folder_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    pd.DataFrame({"step": [1, 2], "loss": [3.0, 2.0]}).to_csv(tmp_path / "history.csv", index=False)
    text = report(tmp_path).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Training", "How this was made"]
    _evaluation("ndvi", "skill", "ridge", (0.1, 0.05, 0.2)).save(tmp_path)  # evaluate --out RUN
    assert "NDVI from Sentinel-1 alone" in report(tmp_path).read_text()


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CubeError, match="deepsentinel demo"):
        report(tmp_path)
    with pytest.raises(CubeError, match="no folder"):
        report(tmp_path / "missing")
