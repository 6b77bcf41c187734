"""Charts of cubes, scores and training: lines, bars, matrices, as matplotlib Figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from deepsentinel.pictures.figures import (
    INK,
    MUTED,
    SERIES,
    clear_share,
    figure,
    labels,
    ndvi,
    times,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _plain(ax: Axes, title: str = "", x: str = "", y: str = "") -> None:
    ax.set_title(title, fontsize=9, color=INK, loc="left")
    ax.set_xlabel(x, fontsize=8, color=MUTED)
    ax.set_ylabel(y, fontsize=8, color=MUTED)
    ax.tick_params(labelsize=7, colors=MUTED, length=2)
    ax.grid(True, color="#e4e7eb", lw=0.6)
    ax.set_axisbelow(True)
    for name, spine in ax.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color("#cbd2d9")


def timeline(cube: xr.DataTree) -> Figure:
    """Return a figure of every acquisition of a cube, Sentinel-2 dates by their clear share."""
    from matplotlib import dates as mdates

    fig = figure(9.6, 1.9)
    ax = fig.subplots()
    rows: list[str] = []
    if "s2" in cube.children:
        share = clear_share(cube)
        shown = ax.scatter(
            times(cube, "s2"), np.zeros(len(share)), c=share, cmap="YlGn", vmin=0, vmax=1,
            s=46, edgecolors=MUTED, linewidths=0.6, zorder=3,
        )  # fmt: skip
        bar = fig.colorbar(shown, ax=ax, fraction=0.02, pad=0.01)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7, colors=MUTED, length=2)
        bar.set_label("clear share", fontsize=7, color=MUTED)
        rows.append("Sentinel-2")
    if "s1" in cube.children:
        s1 = cube["s1"].to_dataset()
        states = s1["orbit_state"].to_numpy().astype(str)
        for state in sorted(set(states)):
            days = s1["time"].to_numpy()[states == state]
            ax.scatter(days, np.full(len(days), len(rows)), marker="|", s=90, color=SERIES[0])
            rows.append(f"Sentinel-1 {state}")
    if "insar" in cube.children:
        pairs = cube["insar"].to_dataset()
        spans = zip(
            pairs["reference_time"].to_numpy(), pairs["secondary_time"].to_numpy(), strict=True
        )
        for i, span in enumerate(spans):
            at = len(rows) + (i % 3 - 1) * 0.18
            ax.plot(list(span), [at, at], color=SERIES[4], lw=1.6, solid_capstyle="butt")
        rows.append("interferometric pairs")
    _plain(ax)
    ax.set_yticks(range(len(rows)), rows)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(False, axis="y")
    concise: Any = mdates.ConciseDateFormatter  # untyped in matplotlib
    # ticks name their months: beside them the year alone is missing
    offset = ["", "%Y", "%Y", "%Y-%m-%d", "%Y-%m-%d", "%Y-%m-%d %H:%M"]
    ax.xaxis.set_major_formatter(concise(ax.xaxis.get_major_locator(), offset_formats=offset))
    return fig


def ndvi_series(cube: xr.DataTree, *, every: int = 4) -> Figure:
    """Return a figure of NDVI over time per class: median and middle half of the clear pixels.

    Parameters
    ----------
    cube : DataTree
        With s2/reflectance, s2/clear and a label layer.
    every : int
        Every how manyth pixel in y and x is used.
    """
    codes, legend = labels(cube)
    thin = (slice(None, None, every),) * 2
    codes = codes[thin]
    dates = times(cube, "s2")
    stack = np.stack([ndvi(cube, t)[thin] for t in range(len(dates))])
    fig = figure(9.6, 3.0)
    ax = fig.subplots()
    for code in legend.scored:
        inside = stack[:, codes == code]
        # fewer than 200 pixels on a date are an edge of a cloud, not a class
        enough = np.isfinite(inside).sum(1) >= 200
        if not enough.any():
            continue
        low, middle, high = np.nanpercentile(inside[enough], [25, 50, 75], axis=1)
        name, colour = legend.classes[code]
        line = colour if _dark(colour) else _darker(colour)
        ax.plot(dates[enough], middle, "o-", color=line, lw=1.4, ms=3, label=name)
        ax.fill_between(dates[enough], low, high, color=colour, alpha=0.18, lw=0)
    _plain(ax, "NDVI of clear pixels by class: median and middle half", "", "NDVI")
    ax.legend(
        fontsize=7, frameon=False, ncol=6, labelcolor=INK, loc="upper left",
        bbox_to_anchor=(0, -0.1),
    )  # fmt: skip
    return fig


def _dark(colour: str) -> bool:
    return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5)) < 480


def _darker(colour: str) -> str:
    return "#" + "".join(f"{int(int(colour[i : i + 2], 16) * 0.72):02x}" for i in (1, 3, 5))


def confusion(matrix: npt.ArrayLike, names: Sequence[str], title: str = "") -> Figure:
    """Return a figure of a confusion matrix in shares of the truth; classes without truth left out.

    Parameters
    ----------
    matrix : array
        Counts, (class, class), rows truth.
    names : sequence of str
        Of the classes.
    title : str
        Above the figure.
    """
    m = np.asarray(matrix, np.float64)
    rows = np.flatnonzero(m.sum(1)).tolist()
    columns = np.flatnonzero(m.sum(0) + m.sum(1)).tolist()
    share = m[np.ix_(rows, columns)] / m[rows].sum(1, keepdims=True)
    fig = figure(1.6 + 0.62 * len(columns), 1.4 + 0.46 * len(rows))
    ax = fig.subplots()
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(share.shape):
        if share[i, j] >= 0.005:
            ax.text(
                j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=7,
                color="white" if share[i, j] > 0.55 else INK,
            )  # fmt: skip
    _plain(ax, title, "mapped as, % of the true class", "truth")
    ax.set_xticks(range(len(columns)), [names[c] for c in columns], rotation=35, ha="right")
    ax.set_yticks(range(len(rows)), [names[r] for r in rows])
    ax.grid(False)
    return fig


def density(counts: Mapping[str, npt.ArrayLike], edges: npt.ArrayLike) -> Figure:
    """Return a figure of prediction against truth, one panel per contender, shade by pixels.

    Parameters
    ----------
    counts : mapping
        Contender -> counts (truth bin, prediction bin).
    edges : array
        Of the bins, both ways.
    """
    from matplotlib.colors import LogNorm

    e = np.asarray(edges)
    fig = figure(2.5 * len(counts), 2.7)
    axes = fig.subplots(1, len(counts), squeeze=False, sharey=True).ravel()
    for ax, (name, c) in zip(axes, counts.items(), strict=True):
        c = np.asarray(c, np.float64)
        _plain(ax, name, "measured NDVI", "predicted NDVI" if ax is axes[0] else "")
        ax.grid(False)
        norm = LogNorm(1, max(c.max(), 2))
        ax.pcolormesh(e, e, np.ma.masked_less(c.T, 1), cmap="viridis", norm=norm, rasterized=True)
        ax.plot(e[[0, -1]], e[[0, -1]], color="white", lw=1.6)
        ax.plot(e[[0, -1]], e[[0, -1]], color=SERIES[1], lw=0.9)
        ax.set_aspect("equal")
    return fig


def bars(table: pd.DataFrame, column: str, *, title: str = "", label: str = "") -> Figure:
    """Return a figure of one score of every contender with its interval, best on top.

    Parameters
    ----------
    table : DataFrame
        Of `evaluate`; ``COLUMN_low`` and ``COLUMN_high`` are the interval where they stand.
    column : str
        The score.
    title, label : str
        Of the figure and of its axis.
    """
    rows = table.sort_values(column)
    fig = figure(5.2, 0.7 + 0.33 * len(rows))
    ax = fig.subplots()
    y = np.arange(len(rows))
    colours = [SERIES[0] if str(n).startswith("model") else "#b8c4ce" for n in rows.index]
    ax.barh(y, rows[column], color=colours, height=0.62)
    if f"{column}_low" in rows:
        for at, (low, high) in enumerate(rows[[f"{column}_low", f"{column}_high"]].to_numpy()):
            ax.plot([low, high], [at, at], color=INK, lw=1.2, solid_capstyle="butt")
    _plain(ax, title, label)
    ax.set_yticks(y, [str(n) for n in rows.index])
    ax.tick_params(axis="y", labelsize=8, colors=INK, length=0)
    ax.axvline(0, color=MUTED, lw=0.8)
    ax.grid(False, axis="y")
    return fig


def curves(
    history: pd.DataFrame, columns: Sequence[str], *, title: str = "", log: bool = False
) -> Figure:
    """Return a figure of columns of a training history over its steps.

    Parameters
    ----------
    history : DataFrame
        Index or column ``step``; NaN where a column was not logged.
    columns : sequence of str
        What to draw; absent ones are left out. More than 60 points are smoothed over 1/40 of
        them, the raw ones faint behind.
    title : str
        Above the figure.
    log : bool
        Logarithmic axis.
    """
    data = history.set_index("step") if "step" in history else history
    fig = figure(4.7, 2.7)
    ax = fig.subplots()
    for name, colour in zip([c for c in columns if c in data], SERIES, strict=False):
        values = data[name].dropna()
        if len(values) > 60:
            ax.plot(values.index, values, color=colour, lw=0.6, alpha=0.25)
            values = values.rolling(len(values) // 40 + 1, center=True, min_periods=1).mean()
        ax.plot(values.index, values, color=colour, lw=1.5, label=name)
    if log:
        ax.set_yscale("log")
    _plain(ax, title, "step")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, frameon=False, labelcolor=INK)
    return fig


def monthly(by_month: Mapping[str, Mapping[str, Mapping[str, float]]], score: str) -> Figure:
    """Return a figure of one score per calendar month and contender, over the share of pixels.

    Parameters
    ----------
    by_month : mapping
        Contender -> month ("1".."12") -> scores and ``n``, as in an NDVI evaluation.
    score : str
        Which score.
    """
    fig = figure(5.2, 3.0)
    ax = fig.subplots()
    colours = iter(SERIES)
    lowest = 0.0
    for name, months in by_month.items():
        at = [int(m) for m in months]
        values = [months[m][score] for m in months]
        if np.allclose(np.nan_to_num(values), 0):
            continue  # the floor itself
        ax.plot(at, values, "o-", ms=3, lw=1.4, color=next(colours, MUTED), label=name)
        lowest = min(lowest, *values)
    _plain(ax, f"{score} by month", "month", score)
    ax.set_ylim(max(lowest * 1.1, -1.0), 1.0)
    ax.set_xticks(range(1, 13))
    ax.axhline(0, color=MUTED, lw=0.8)
    first = next(iter(by_month.values()))
    n = np.array([first[m]["n"] for m in first])
    back = ax.twinx()
    back.bar([int(m) for m in first], n / n.sum(), color="#e9eef2", width=0.8)
    back.set_ylim(0, 1)
    back.set_axis_off()
    ax.set_zorder(back.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.legend(
        fontsize=7, frameon=False, labelcolor=INK, ncol=2, loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
    )  # fmt: skip
    return fig
