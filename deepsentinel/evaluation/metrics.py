"""Scores that add up: per-tile sums from which every metric and its interval is computed.

Nothing here sees a pixel twice or keeps one: a map score is a confusion matrix, a regression
score nine sums, each kept per tile of ground so that an interval can be had by drawing tiles
(neighbouring pixels are no independent witnesses). numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SUMS = ("n", "y", "yy", "p", "pp", "yp", "error", "squared", "absolute")
"""Sums kept of truth y, prediction p and error p - y."""


def confusion(truth: npt.ArrayLike, guess: npt.ArrayLike, n_classes: int) -> IntArray:
    """Return the confusion matrix, rows truth and columns guess, int64, (class, class).

    Parameters
    ----------
    truth, guess : array of int
        Class indices, same shape; pixels whose truth is outside 0..n_classes-1 (nodata, ignored)
        are not counted.
    n_classes : int
        Number of classes.

    Raises
    ------
    ValueError
        A guess is outside 0..n_classes-1 where the truth is known: every known pixel must be
        answered, or a contender could choose what it is scored on.
    """
    t, g = np.asarray(truth).ravel().astype(np.int64), np.asarray(guess).ravel().astype(np.int64)
    known = (t >= 0) & (t < n_classes)
    t, g = t[known], g[known]
    if g.size and (g.min() < 0 or g.max() >= n_classes):
        raise ValueError(f"guesses must lie in 0..{n_classes - 1}, got {g.min()}..{g.max()}")
    return np.bincount(t * n_classes + g, minlength=n_classes**2).reshape(n_classes, n_classes)


def class_scores(matrix: npt.ArrayLike) -> dict[str, FloatArray]:
    """Return ``iou`` and ``f1`` per class; NaN for a class neither in truth nor in guesses.

    Parameters
    ----------
    matrix : array
        Confusion matrices, (..., class, class), rows truth.
    """
    m = np.asarray(matrix, np.float64)
    hit = np.diagonal(m, axis1=-2, axis2=-1)
    truth, guess = m.sum(-1), m.sum(-2)
    union = truth + guess - hit
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.where(union > 0, hit / union, np.nan)
        f1 = np.where(union > 0, 2 * hit / (truth + guess), np.nan)
    return {"iou": iou, "f1": f1}


def map_scores(matrix: npt.ArrayLike) -> dict[str, FloatArray]:
    """Return ``mIoU``, ``mF1`` (macro) and ``OA`` of confusion matrices (..., class, class).

    Macro means run over the classes that occur in truth or guesses, as torchmetrics' do: a class
    guessed where there is none costs, a class absent from both does not. All NaN when empty.
    """
    m = np.asarray(matrix, np.float64)
    per_class = class_scores(m)
    total = m.sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        accuracy = np.where(total > 0, np.trace(m, axis1=-2, axis2=-1) / total, np.nan)
    return {
        "mIoU": _nanmean(per_class["iou"]),
        "mF1": _nanmean(per_class["f1"]),
        "OA": np.asarray(accuracy),
    }


def _nanmean(values: FloatArray) -> FloatArray:
    """Return the mean over the last axis without NaN, and NaN (no warning) where all are."""
    good = ~np.isnan(values)
    n = good.sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(n > 0, np.where(good, values, 0).sum(-1) / n, np.nan)


def regression_sums(truth: npt.ArrayLike, guess: npt.ArrayLike) -> FloatArray:
    """Return the sums named in `SUMS` over the pixels where both are finite, float64, (9,)."""
    y = np.asarray(truth, np.float64).ravel()
    p = np.asarray(guess, np.float64).ravel()
    both = np.isfinite(y) & np.isfinite(p)
    y, p = y[both], p[both]
    e = p - y
    return np.array(
        [y.size, y.sum(), y @ y, p.sum(), p @ p, y @ p, e.sum(), e @ e, np.abs(e).sum()]
    )


def regression_scores(sums: npt.ArrayLike, floor: npt.ArrayLike) -> dict[str, FloatArray]:
    """Return ``R2``, ``skill``, ``MAE``, ``RMSE``, ``bias``, ``r`` from sums (..., 9).

    Parameters
    ----------
    sums : array
        Sums of the contender, last axis as in `SUMS`.
    floor : array
        Sums of the floor (month climatology) over the same pixels: skill is
        1 - SSE / SSE(floor). Total R2 of NDVI is mostly season; skill is what is left.
    """
    s, f = np.asarray(sums, np.float64), np.asarray(floor, np.float64)
    n, y, yy, p, pp, yp, error, squared, absolute = (s[..., i] for i in range(len(SUMS)))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = yy - y * y / n
        spread_p = pp - p * p / n
        return {
            "R2": np.where(spread > 0, 1 - squared / spread, np.nan),
            "skill": np.where(f[..., 7] > 0, 1 - squared / f[..., 7], np.nan),
            "MAE": absolute / n,
            "RMSE": np.sqrt(squared / n),
            "bias": error / n,
            "r": np.where(
                (spread > 0) & (spread_p > 1e-12 * n),
                (yp - y * p / n) / np.sqrt(spread * np.maximum(spread_p, 0)),
                np.nan,
            ),
        }


@dataclass(kw_only=True)
class Tally:
    """Sums per contender and tile; grows as batches are scored, and is small for ever."""

    sums: dict[str, dict[Hashable, npt.NDArray[np.generic]]] = field(default_factory=dict)

    def add(self, contender: str, tile: Hashable, values: npt.NDArray[np.generic]) -> None:
        """Add `values` to what `contender` has at `tile`."""
        tiles = self.sums.setdefault(contender, {})
        tiles[tile] = tiles[tile] + values if tile in tiles else values.copy()  # type: ignore[operator]

    @property
    def contenders(self) -> list[str]:
        """Names in order of first appearance."""
        return list(self.sums)

    def tiles(self) -> list[Hashable]:
        """Return the tiles every contender was scored on.

        Raises
        ------
        ValueError
            Contenders were scored on different tiles.
        """
        sets = {name: set(tiles) for name, tiles in self.sums.items()}
        first = next(iter(sets.values()), set())
        odd = [name for name, tiles in sets.items() if tiles != first]
        if odd:
            raise ValueError(
                f"{', '.join(odd)} was scored on other tiles than {self.contenders[0]}"
            )
        return sorted(first, key=str)

    def stacked(self, contender: str) -> FloatArray:
        """Return the sums of a contender, float64, (tile, ...), tiles in the order of `tiles`."""
        return np.stack([self.sums[contender][t] for t in self.tiles()]).astype(np.float64)

    def total(self, contender: str) -> FloatArray:
        """Return the sums of a contender over all tiles."""
        return np.asarray(self.stacked(contender).sum(0))


FEWEST = 8
"""Tiles below which no interval is given: resampling so few says nothing of ground elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How sums per tile, or per tile and block of dates, are drawn again for intervals.

    Weather strikes a whole block of dates and soil a whole tile, so cells that share either are
    no independent witnesses. Blocks are drawn and tiles are drawn, and a cell counts as often as
    the product says (the pigeonhole bootstrap, Owen 2007), which holds for errors of both kinds.
    """

    weights: FloatArray
    """(draw, cell); the same for all contenders, which pairs them."""
    tiles: int
    blocks: int | None = None
    """Blocks of dates, None where dates are not what was drawn."""

    @staticmethod
    def of(cells: Sequence[Hashable], n: int, seed: int) -> Resampling:
        """Return `n` draws of tiles, one of each cell."""
        return Resampling(weights=draws(len(cells), n, seed), tiles=len(cells))

    @staticmethod
    def crossed(
        tiles: Sequence[Hashable], blocks: Sequence[Hashable], n: int, seed: int
    ) -> Resampling:
        """Return `n` draws of date blocks and of tiles, given the tile and block of each cell."""
        ground, in_tile = _numbered(tiles)
        times, in_block = _numbered(blocks)
        by_tile, by_block = draws(ground, n, seed), draws(times, n, seed + 1)
        weights = by_tile[:, in_tile] * by_block[:, in_block]
        return Resampling(weights=weights, tiles=ground, blocks=times)

    @property
    def lacking(self) -> str:
        """What there is too little of for an interval, in words; empty where there is enough."""
        if self.tiles < FEWEST:
            return f"{self.tiles} tiles of ground, and {FEWEST} are the least"
        if self.blocks is not None and self.blocks < 2:
            return "one block of dates, which says nothing of other weather"
        return ""

    def interval(self, values: FloatArray, estimate: float) -> tuple[float, float]:
        """Return the 95 % interval of a score from its draws; NaN, NaN where too few were drawn.

        Percentiles of a bootstrap of n witnesses are too narrow by sqrt((n - 1) / n) and by the
        normal's quantile in place of Student's: at 4 blocks of dates by half. They are widened
        about the estimate by both.
        """
        if self.lacking:
            return float("nan"), float("nan")
        low, high = interval(values)
        n = self.tiles if self.blocks is None else min(self.tiles, self.blocks)
        wide = np.sqrt(n / (n - 1)) * student(n - 1) / 1.959964
        return estimate + wide * (low - estimate), estimate + wide * (high - estimate)


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def _numbered(keys: Sequence[Hashable]) -> tuple[int, IntArray]:
    """Return how many different keys there are, and which of them each is."""
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return len(number), np.array([number[key] for key in keys], np.int64)


def draws(n_tiles: int, n_draws: int, seed: int) -> FloatArray:
    """Return how often each tile is taken in each bootstrap draw, float64, (draw, tile)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_tiles, np.full(n_tiles, 1 / n_tiles), size=n_draws).astype(np.float64)


def interval(values: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap values; NaN, NaN if none is finite."""
    good = values[np.isfinite(values)]
    if good.size == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap(
    stacked: FloatArray, weights: FloatArray, score: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """Return `score` of the weighted sums of each draw, float64, (draw,).

    Parameters
    ----------
    stacked : array
        Sums per tile, (tile, ...).
    weights : array
        From `draws`, (draw, tile). The same weights for two contenders pair them.
    score : callable
        Sums (draw, ...) -> (draw,).
    """
    flat = stacked.reshape(len(stacked), -1)
    return score((weights @ flat).reshape(len(weights), *stacked.shape[1:]))
