"""Pictures of cubes, embeddings and scores: arrays in, images and matplotlib figures out.

Images are plain arrays, (y, x, 3) uint8, made from physical values; figures are matplotlib
Figures without pyplot (no global state, no display). `png` turns a figure into bytes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from cubes import physics, registry
from cubes.types import CubeError, Legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

INK = "#1f2933"
MUTED = "#7b8794"
NODATA = (236, 238, 240)
NODATA_HEX = "#eceef0"
SERIES = ("#2f6690", "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#5c6b73", "#b07d62", "#00798c")
"""Colours of lines and bars, in order of use; told apart by people with colour blindness."""
STRETCH = {"vv": (-20.0, 0.0), "vh": (-27.0, -7.0), "ratio": (1.0, 14.0)}
"""Backscatter in dB shown as black and white (gamma nought over land)."""


def stretch(values: npt.ArrayLike, low: float, high: float, gamma: float = 1.0) -> Pixels:
    """Return values between `low` and `high` as 0..255, uint8, the same shape; NaN as 0."""
    v = (np.asarray(values, np.float32) - low) / (high - low)
    v = np.clip(np.nan_to_num(v, nan=0.0), 0, 1) ** np.float32(1 / gamma)
    out: Pixels = (v * 255 + 0.5).astype(np.uint8)
    return out


def _shown(channels: Sequence[Pixels], good: npt.NDArray[np.bool_]) -> Pixels:
    return np.where(good[..., None], np.stack(channels, -1), np.array(NODATA, np.uint8))


def layer(cube: xr.DataTree, group: str, variable: str) -> xr.DataArray:
    """Return a layer of a cube.

    Raises
    ------
    CubeError
        The cube does not have it.
    """
    if group not in cube.children or variable not in cube[group].data_vars:
        raise CubeError(
            f"this cube has no {group}/{variable} to show; it has "
            + ", ".join(f"{g}/{v}" for g in cube.children for v in cube[g].data_vars)
        )
    return cube[group].to_dataset()[variable]


def times(cube: xr.DataTree, group: str) -> npt.NDArray[np.datetime64]:
    """Return the dates of a group, datetime64[ns], UTC."""
    dates: npt.NDArray[np.datetime64] = cube[group].to_dataset()["time"].to_numpy()
    return dates


def clear_share(cube: xr.DataTree) -> Floats:
    """Return the clear share of each Sentinel-2 date, float32.

    Of a cube without ``s2/clear`` the share that has data. Counted on every eighth pixel of a cube
    larger than 512 pixels.
    """
    if "clear" in cube["s2"].data_vars:
        good = layer(cube, "s2", "clear")
    else:
        good = layer(cube, "s2", "reflectance").isel(band=0).notnull()
    every = 8 if max(good.sizes["y"], good.sizes["x"]) > 512 else 1
    thin = good.isel(y=slice(None, None, every), x=slice(None, None, every))
    return np.asarray(thin.mean(("y", "x")).to_numpy(), np.float32)


def clearest(cube: xr.DataTree) -> int:
    """Return the index of the Sentinel-2 date with the largest clear share."""
    return int(np.argmax(clear_share(cube)))


def has(cube: xr.DataTree, group: str, variable: str, channels: Sequence[str] = ()) -> bool:
    """Return whether a cube has a layer, and these channels of it."""
    if group not in cube.children or variable not in cube[group].data_vars:
        return False
    data = layer(cube, group, variable)
    dim = next((d for d in ("band", "pol") if d in data.dims), None)
    return not channels or (dim is not None and set(channels) <= set(data[dim].to_numpy()))


def channels(data: xr.DataArray, names: Sequence[str]) -> list[npt.NDArray[Any]]:
    """Return channels of a layer of one date, each (y, x).

    Raises
    ------
    CubeError
        The layer lacks one.
    """
    dim = "band" if "band" in data.dims else "pol"
    there = [str(v) for v in data[dim].to_numpy()]
    for name in names:
        if name not in there:
            raise CubeError(f"this picture needs {dim} {name!r}; the cube has {', '.join(there)}")
    return [data.sel({dim: name}).to_numpy() for name in names]


def true_colour(cube: xr.DataTree, time: int | None = None) -> Pixels:
    """Return Sentinel-2 red, green, blue of a date (the clearest by default), (y, x, 3) uint8."""
    time = clearest(cube) if time is None else time
    data = layer(cube, "s2", "reflectance").isel(time=time)
    bands = channels(data, ("B04", "B03", "B02"))
    good = np.all(np.isfinite(bands), axis=0, keepdims=True)[0]
    return _shown([stretch(b, 0.0, 0.22, 1.4) for b in bands], good)


def radar_colour(cube: xr.DataTree, time: int = 0) -> Pixels:
    """Return Sentinel-1 VV, VH, VV - VH (dB) of a date as red, green, blue, (y, x, 3) uint8."""
    data = layer(cube, "s1", "backscatter").isel(time=time)
    vv, vh = channels(data, ("vv", "vh"))
    good = np.isfinite(vv) & np.isfinite(vh)
    parts = zip((vv, vh, vv - vh), STRETCH.values(), strict=True)
    return _shown([stretch(v, *limits) for v, limits in parts], good)


def ndvi(cube: xr.DataTree, time: int | None = None) -> Floats:
    """Return NDVI of a Sentinel-2 date (the clearest by default), (y, x); NaN where not clear."""
    time = clearest(cube) if time is None else time
    data = layer(cube, "s2", "reflectance").isel(time=time)
    value = physics.ndvi(*channels(data, ("B04", "B08")))
    if "clear" in cube["s2"].data_vars:
        value[~layer(cube, "s2", "clear").isel(time=time).to_numpy().astype(bool)] = np.nan
    return value


def class_colours(codes: npt.ArrayLike, legend: Legend | str) -> Pixels:
    """Return class codes in the colours of their legend, (..., 3) uint8; unknown codes grey."""
    table = np.tile(np.asarray(NODATA, np.uint8), (1 << 16, 1))
    for code, (_, colour) in registry.legend(legend).classes.items():
        table[code] = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return table[np.asarray(codes).astype(np.uint16)]


def labels(cube: xr.DataTree) -> tuple[npt.NDArray[np.generic], Legend]:
    """Return the codes of the latest year of the first label layer, (y, x), and its legend."""
    name = sorted(cube["labels"].data_vars)[0] if "labels" in cube.children else "labels"
    data = layer(cube, "labels", str(name))
    legend = registry.legend(data)
    return data.isel(year=-1).to_numpy() if "year" in data.dims else data.to_numpy(), legend


def components(embedding: npt.ArrayLike, n: int = 3) -> Floats:
    """Return principal components of an embedding, float32, (n, y, x); NaN where nodata.

    Parameters
    ----------
    embedding : array
        (embedding, y, x), NaN where nodata.
    n : int
        Number of components.

    Returns
    -------
    array
        Components of falling variance, each signed so that its longest loading is positive: the
        same embedding always gives the same picture.
    """
    e = np.asarray(embedding, np.float32)
    flat = e.reshape(len(e), -1)
    good = np.isfinite(flat).all(0)
    out = np.full((n, flat.shape[1]), np.nan, np.float32)
    if good.sum() > 1:
        x = flat[:, good].astype(np.float64)
        x -= x.mean(1, keepdims=True)
        _, vectors = np.linalg.eigh(x @ x.T / x.shape[1])
        axes = vectors[:, ::-1][:, :n]
        axes *= np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
        out[: axes.shape[1], good] = axes.T @ x
    return out.reshape(n, *e.shape[1:])


def component_colour(embedding: npt.ArrayLike) -> Pixels:
    """Return the first three principal components as red, green, blue, (y, x, 3) uint8."""
    parts = components(embedding)
    good = np.all(np.isfinite(parts), axis=0, keepdims=True)[0]
    channels = []
    for part in parts:
        low, high = np.nanpercentile(part, [2, 98]) if good.any() else (0, 1)
        channels.append(stretch(part, low, max(high, low + 1e-6)))
    return _shown(channels, good)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One map of a figure: pixels in colour, or values with a colour scale."""

    title: str
    image: npt.NDArray[Any]
    """(y, x, 3) uint8, or (y, x) float with NaN."""
    scale: tuple[str, float, float] | None = None
    """Colour map, lowest and highest value, for a float image."""
    unit: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    """(name, colour) under the map."""


def maps(panels: Sequence[Panel], *, columns: int = 3, width: float = 3.4) -> Figure:
    """Return a figure of maps side by side, with colour bars and legends where they belong.

    Parameters
    ----------
    panels : sequence of Panel
        In reading order.
    columns : int
        Maps per row.
    width : float
        Of a map, inches.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    first = panels[0].image
    height = width * first.shape[0] / first.shape[1] + 0.75
    fig = figure(columns * width, rows * height)
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes, panels, strict=False):
        _map(fig, ax, panel)
    return fig


def _map(fig: Figure, ax: Axes, panel: Panel) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    if panel.scale is None:
        ax.imshow(panel.image, interpolation="antialiased")
    else:
        name, low, high = panel.scale
        cmap = colormaps[name].with_extremes(bad=NODATA_HEX)
        shown = ax.imshow(
            np.ma.masked_invalid(panel.image), cmap=cmap, vmin=low, vmax=high,
            interpolation="antialiased", interpolation_stage="rgba",
        )  # fmt: skip
        # an axis of its own inside the panel's: a colour bar beside it would change its size, and
        # maps of one row would no longer line up
        bar = fig.colorbar(
            shown, cax=ax.inset_axes((0, -0.075, 0.5, 0.03)), orientation="horizontal"
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, labelsize=7, colors=MUTED)
        ax.text(
            0.53, -0.06, panel.unit, fontsize=7, color=MUTED, va="center", transform=ax.transAxes
        )
    if panel.legend:
        handles = [
            Patch(facecolor=colour, edgecolor=MUTED, linewidth=0.4, label=name)
            for name, colour in panel.legend
        ]
        ax.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(-0.03, -0.01), ncol=2,
            fontsize=7, frameon=False, handlelength=1, handleheight=1, labelcolor=INK,
            columnspacing=1,
        )  # fmt: skip
    ax.set_title(panel.title, fontsize=9, color=INK, loc="left", pad=4)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")


def legend_of(codes: npt.ArrayLike, legend: Legend | str) -> tuple[tuple[str, str], ...]:
    """Return (name, colour) of the classes that occur in `codes`, in the order of the legend."""
    row = registry.legend(legend)
    here = set(np.unique(np.asarray(codes)).tolist())
    return tuple(entry for code, entry in row.classes.items() if code in here)


def overview(cube: xr.DataTree) -> list[Panel]:
    """Return the maps that show what a cube holds, each kind of layer once; absent ones left out.

    True colour, NDVI, scene classification and clear of the clearest Sentinel-2 date; radar
    colour, incidence, coherence of the Sentinel-1 date nearest to it; elevation; labels.
    """
    panels: list[Panel] = []
    day: np.datetime64 | None = None
    if has(cube, "s2", "reflectance"):
        day = times(cube, "s2")[clearest(cube)]
        panels += _optical_panels(cube)
    if "s1" in cube.children:
        panels += _radar_panels(cube, day)
    if has(cube, "terrain", "elevation"):
        z = layer(cube, "terrain", "elevation").to_numpy()
        panels.append(Panel(title="Elevation", image=z, scale=("YlOrBr", *_limits(z)), unit="m"))
    if "labels" in cube.children:
        codes, legend = labels(cube)
        panels.append(
            Panel(
                title=f"Labels: {legend.title}",
                image=class_colours(codes, legend),
                legend=legend_of(codes, legend),
            )
        )
    return panels


def _optical_panels(cube: xr.DataTree) -> list[Panel]:
    panels = []
    share = clear_share(cube)
    t = int(np.argmax(share))
    on = str(times(cube, "s2")[t])[:10]
    if has(cube, "s2", "reflectance", ("B04", "B03", "B02")):
        panels.append(Panel(title=f"Sentinel-2 true colour, {on}", image=true_colour(cube, t)))
    if has(cube, "s2", "reflectance", ("B04", "B08")):
        panels.append(
            Panel(title=f"NDVI, {on}", image=ndvi(cube, t), scale=("YlGn", 0, 0.9), unit="NDVI")
        )
    if has(cube, "s2", "scl"):
        # the date whose clear share is nearest to one half shows best what a mask does
        cloudy = int(np.argmin(np.abs(share - 0.5)))
        codes = layer(cube, "s2", "scl").isel(time=cloudy)
        panels.append(
            Panel(
                title=f"Scene classification, {str(times(cube, 's2')[cloudy])[:10]}",
                image=class_colours(codes, registry.legend(codes)),
                legend=legend_of(codes, registry.legend(codes)),
            )
        )
    return panels


def _radar_panels(cube: xr.DataTree, day: np.datetime64 | None) -> list[Panel]:
    dates = times(cube, "s1")
    t = 0 if day is None else int(np.argmin(np.abs(dates - day)))
    on = str(dates[t])[:10]
    panels = []
    if has(cube, "s1", "backscatter", ("vv", "vh")):
        image = radar_colour(cube, t)
        panels.append(Panel(title=f"Sentinel-1 VV, VH, VV / VH, {on}", image=image))
    s1 = cube["s1"].to_dataset()
    if "incidence" in s1:
        angle = s1["incidence"].isel(track=0)
        panels.append(
            Panel(
                title=f"Local incidence, track {angle['track'].item()}",
                image=angle.to_numpy(),
                scale=("cividis", *_limits(angle.to_numpy())),
                unit="degrees",
            )
        )
    if has(cube, "insar", "coherence", ("vv",)):
        pairs = cube["insar"].to_dataset()
        k = int(np.argmin(np.abs(pairs["secondary_time"].to_numpy() - dates[t])))
        pair = pairs["coherence"].isel(pair=k).sel(pol="vv")
        first, second = (
            str(pairs[f"{n}_time"].to_numpy()[k])[:10] for n in ("reference", "secondary")
        )
        panels.append(
            Panel(
                title=f"Coherence VV, {first} to {second[5:]}",
                image=pair.to_numpy(),
                scale=("magma", 0, 1),
                unit="coherence",
            )
        )
    return panels


def _limits(values: npt.NDArray[Any]) -> tuple[float, float]:
    if not np.isfinite(values).any():
        return 0.0, 1.0
    low, high = np.nanpercentile(values, [1, 99])
    return float(low), float(max(high, low + 1e-6))


def png(figure: Figure, path: str | Path | None = None) -> bytes:
    """Return a figure as PNG bytes, and write them to `path` if given."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    data = out.getvalue()
    if path is not None:
        Path(path).write_bytes(data)
    return data
