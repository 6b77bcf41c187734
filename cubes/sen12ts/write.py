"""A cube's triplets as the files of SEN12TS."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from cubes import names, registry
from cubes.cube import NO_NODATA
from cubes.files import geotiff as files
from cubes.sen12ts.bands import (
    BANDS,
    NODATA,
    OPTICAL_FILLS,
    POLS,
    PUBLISHED,
    S1_NAMES,
    S2_NAMES,
    UNKNOWN,
    Array,
    Optical,
    Radar,
)  # fmt: skip
from cubes.sen12ts.choose import (
    Row,
    Rule,
    Tile,
    coherence_of,
    cut,
    group,
    prepared,
    series,
    tile_geobox,
    track_index,
)  # fmt: skip
from cubes.types import CubeError

# ----------------------------------------------------------------------------------------- export


def radar(cube: xr.DataTree, row: Row, *, pol: str = "vv") -> Radar:
    """Return the radar part of a triplet (a row of `series`), read from the cube."""
    s1, insar, tile = group(cube, "s1"), group(cube, "insar"), row["tile"]
    one = insar.sel(pol=coherence_of(insar, pol)).isel(pair=list(row["pairs"]))
    track = track_index(cube, str(row["track"]))
    out = Radar(
        backscatter=cut(
            s1["backscatter"].sel(pol=list(POLS)).isel(time=list(row["s1"])), tile
        ).to_numpy(),
        coherence=cut(one["coherence"], tile).to_numpy(),
        phase=cut(one["phase"], tile).to_numpy(),
        incidence=cut(s1["incidence"].isel(track=track), tile).to_numpy(),
        slope=cut(group(cube, "terrain")["slope"], tile).to_numpy(),
        usable=np.empty((0, 0), np.uint8),
    )
    return _with_usable(out, s1, track, row)


def _with_usable(part: Radar, s1: xr.Dataset, track: int, row: Row) -> Radar:
    """Return the radar part with its mask: as it was read, or from static mask and data."""
    if "series_valid" in s1:
        stated = cut(s1["series_valid"].isel(time=row["s1"][0]), row["tile"]).to_numpy()
        if (stated != UNKNOWN).any():
            return replace(part, usable=np.asarray(stated))
    good = ~np.isnan(part.backscatter).any(axis=(0, 1))
    good &= ~(np.isnan(part.coherence) | np.isnan(part.phase)).any(axis=0)
    if "layover_shadow" in s1:
        good &= cut(s1["layover_shadow"].isel(track=track), row["tile"]).to_numpy() == 0
    return replace(part, usable=np.asarray(good, np.uint8))


def optical(cube: xr.DataTree, row: Row) -> Optical:
    """Return the optical part of a triplet (a row of `series`), read from the cube."""
    one = group(cube, "s2").isel(time=row["s2"])
    fills = [int(one[n]) if n in one.coords else NODATA for n in OPTICAL_FILLS]
    return Optical(
        reflectance=cut(one["reflectance"].sel(band=list(BANDS)), row["tile"]).to_numpy(),
        scl=cut(one["scl"], row["tile"]).to_numpy(),
        clear=cut(one["clear"], row["tile"]).to_numpy(),
        fills=(fills[0], fills[1]),
    )


def label(
    cube: xr.DataTree, tile: Tile, legend: str | None = None
) -> tuple[int, str, Array] | None:
    """Return year, legend and codes (1, y, x) int16 of a tile's label map, or None without one.

    Raises
    ------
    CubeError
        The cube has several label maps and `legend` does not say which, or has not that one.
    """
    labels = group(cube, "labels")
    have = [str(v) for v in labels.data_vars]
    if not have and legend is None:
        return None
    if legend not in have and (legend is not None or len(have) > 1):
        raise CubeError(f"the cube has labels {', '.join(have) or '(none)'}: name one, legend=")
    name = legend or have[0]
    data = cut(labels[name].isel(year=-1), tile)
    codes = data.to_numpy().astype(np.int16)
    missing = data.attrs.get("nodata")
    if missing is None:
        missing = registry.layer(f"labels/{name}").nodata
    if missing not in (None, NO_NODATA):
        codes[codes == missing] = int(data.attrs.get("nodata_number", NODATA))
    return int(labels["year"][-1]), name, codes[None]


def export(
    cube: xr.DataTree | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    rule: Rule | None = None,
    legend: str | None = None,
) -> pd.DataFrame:
    """Return the triplets written to a folder, after writing them as SEN12TS's files.

    Parameters
    ----------
    cube : DataTree or path
        A cube, or the store of one.
    folder : path
        Gets ``s1/``, ``s2/`` and ``labels/`` (where the cube has labels).
    rule : Rule, optional
        See `series`.
    legend : str, optional
        Which label map, where the cube has several.

    Returns
    -------
    DataFrame
        As `series`, with ``bytes``: the size of the two image files. What a name cannot hold is
        in tags of the files where it is known: calibration (unless sigma0_terrain, the published
        one), times of day, platforms, cloud cover, what counts as clear, legend.

    Raises
    ------
    CubeError
        See `series` and `label`.
    """
    tree = prepared(cube)
    table = series(tree, rule)
    pol = (rule or Rule()).coherence_pol
    out = Path(folder)
    sizes = []
    for row in table.to_dict("records"):
        box = tile_geobox(tree, row["tile"])
        s1, s2 = out / "s1" / row["name"], out / "s2" / row["name"]
        sizes.append(
            files.write_tif(s1, radar(tree, row, pol=pol).bands(), box, nodata=NODATA,
                            names=S1_NAMES, tags=_radar_tags(tree, row))
            + files.write_tif(s2, optical(tree, row).bands(), box, nodata=NODATA,
                              names=S2_NAMES, tags=_optical_tags(tree, row))
        )  # fmt: skip
    for row in table.drop_duplicates("place").to_dict("records"):
        found = label(tree, row["tile"], legend)
        if found is not None:
            lat, lon = row["place"].removeprefix("lat_").split("_lon_")
            name = names.Sen12tsLabel(lat=lat, lon=lon, year=found[0])
            box = tile_geobox(tree, row["tile"])
            of = registry.legend(group(tree, "labels")[found[1]])
            tags = {"LEGEND": found[1], "LEGEND_JSON": of.to_json()}
            files.write_tif(out / "labels" / str(name), found[2], box, nodata=NODATA, tags=tags)
    return table.assign(bytes=sizes)


def _radar_tags(cube: xr.DataTree, row: Row) -> dict[str, str]:
    s1 = group(cube, "s1").isel(time=list(row["s1"]))
    times = pd.DatetimeIndex(s1["time"].to_numpy())
    tags = {}
    calibration = str(s1["backscatter"].attrs.get("calibration", PUBLISHED))
    if calibration != PUBLISHED:
        tags["CALIBRATION"] = calibration
    if (times != times.normalize()).any():
        tags["TIMES"] = ",".join(t.isoformat() for t in times)
    if "platform" in s1.coords and any(s1["platform"].to_numpy()):
        tags["PLATFORMS"] = ",".join(str(p) for p in s1["platform"].to_numpy())
    return tags


def _optical_tags(cube: xr.DataTree, row: Row) -> dict[str, str]:
    s2 = group(cube, "s2").isel(time=row["s2"])
    time = pd.Timestamp(s2["time"].item())
    tags = {}
    if time != time.normalize():
        tags["TIMES"] = time.isoformat()
    if "platform" in s2.coords and s2["platform"].item():
        tags["PLATFORMS"] = str(s2["platform"].item())
    policy = s2["clear"].attrs
    if "clear_classes" in policy and "clear_rule" not in policy:  # a policy, not what was seen
        tags["CLEAR_CLASSES"] = ",".join(str(int(c)) for c in policy["clear_classes"])
        tags["CLEAR_DILATE_PX"] = str(int(policy.get("clear_dilate_px", 0)))
    if "cloud_cover" in s2.coords and not np.isnan(s2["cloud_cover"].item()):
        tags["CLOUD_COVER"] = repr(float(s2["cloud_cover"]))
    return tags
