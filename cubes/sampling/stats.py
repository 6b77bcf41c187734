"""Mean, deviation and quantiles per layer and channel, from exact histograms of stored integers.

Sixteen-bit numbers have 65,536 values: counting them once gives every moment and quantile without
a second pass, without rounding that depends on order, and histograms of parts add up to the
histogram of the whole (`merge`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import xarray as xr

from cubes.sampling.sampleset import Read, Samples
from cubes.types import CubeError, Layer

BINS = 65536
QUANTILES = (0.001, 0.01, 0.02, 0.05, 0.25, 0.5, 0.75, 0.95, 0.98, 0.99, 0.999)


def stats(
    samples: Samples, *, threads: int = 2, limit: int | None = None, allow: str = "train"
) -> xr.Dataset:
    """Return mean, standard deviation, range and quantiles of each continuous channel.

    Every sample counts once, with its evenly spread dates. Only valid pixels count; where a
    sensor has a mask ``clear``, only clear ones (a cloud says nothing about the ground, and one
    in twenty pixels of cloud doubles the deviation of reflectance). Phases are used as cosine and
    sine, classes as they are: neither has statistics. Of a split only the training part counts: a
    model normalised by numbers of its test has seen it.

    Parameters
    ----------
    samples
        What to count.
    threads
        Decoding and counting threads.
    limit
        Count at most this many samples, evenly spaced, 1 or more; None counts all.
    allow
        Which part of a split may be counted; ``"test"`` to describe a test part. Samples that
        `split` did not make are no part, and always may.

    Returns
    -------
    xarray.Dataset
        Along ``entry`` (``s2/reflectance/B04``; layers without channels ``s1/incidence``):
        ``count`` int64 pixels, ``mean, std, min, max`` and ``quantile`` (q, entry) float64 in the
        layer's physical units, NaN where nothing was counted, and ``histogram`` (entry, bin)
        int64, bin = stored integer minus the least of its dtype (float layers: 65,536 equal bins
        over the layer's valid range). Coordinates of an entry: ``layer, channel, units`` and
        ``calibration`` (of backscatter, else empty). Attribute ``samples``: number counted.

    Raises
    ------
    CubeError
        There are no samples, or no continuous layer among theirs; no thread, or a limit below 1;
        another part of a split than allowed.
    """
    if samples.part not in ("", allow) and set(samples.part.split("/")) != {allow}:
        raise CubeError(
            f"these samples are the part {samples.part!r} of a split, and statistics are those of "
            f"{allow!r}: what a model is normalised by must come from what it learns from. To "
            f"describe this part alone, allow={samples.part!r}"
        )
    for name, number in (("threads", threads), ("limit", limit)):
        if number is not None and number < 1:
            raise CubeError(f"{name}={number}: 1 or more")
    rows = np.arange(len(samples))
    if limit is not None and limit < len(rows):
        rows = rows[np.arange(limit) * len(rows) // limit]
    if not len(rows):
        raise CubeError("there are no samples to take statistics of")
    counted = [n for n, layer in samples.layers.items() if layer.kind == "continuous"]
    if not counted:
        raise CubeError(f"no continuous layer among {', '.join(samples.layers)}")
    masks = {n: m for n in counted if (m := _mask_of(n, samples.layers)) is not None}
    mine = samples.select(dict.fromkeys([*counted, *masks.values()]))
    totals = {n: np.zeros((samples.layers[n].n_channels, BINS), np.int64) for n in counted}
    lock, local, buckets = threading.Lock(), threading.local(), mine.buckets()

    def count(row: int) -> None:
        buffers, bucket = local.__dict__.setdefault("buffers", {}), int(buckets[row])
        if bucket not in buffers:
            buffers[bucket] = mine.empty([row])
        read = mine.read([row], buffers[bucket], epoch=None)
        store = mine.stores[int(read["place"][0, 0])]
        for name in counted:
            if name not in store.entries:
                continue
            steps = _steps(mine, row, name, read)
            mask = read[masks[name]][0, steps] if name in masks else None
            found = _histogram(read[name][0, steps], mask, samples.layers[name])
            with lock:
                totals[name] += found

    with ThreadPoolExecutor(threads) as workers:
        for _ in workers.map(count, rows.tolist()):
            pass
    calibration = {n: e.calibration for s in samples.stores for n, e in s.entries.items()}
    return _summary(totals, samples.layers, calibration, len(rows))


def merge(parts: Sequence[xr.Dataset]) -> xr.Dataset:
    """Return the statistics of several parts (of `stats`) as if they had been counted at once.

    Raises
    ------
    CubeError
        They are of different layers, channels or calibrations, or stored in different ways.
    """
    if not parts:
        raise CubeError("no statistics to merge")
    first = parts[0]
    for part in parts[1:]:
        if part["entry"].to_numpy().tolist() != first["entry"].to_numpy().tolist():
            raise CubeError("these statistics are of different layers or channels")
        one, two = (_calibrations(d) for d in (first, part))
        differ = [n for n in one if n in two and one[n] != two[n]]
        if differ:
            raise CubeError(
                f"{differ[0]} is {one[differ[0]] or 'not stated'} in one part and "
                f"{two[differ[0]] or 'not stated'} in another: calibrations do not mix"
            )
        if any((part[k] != first[k]).any() for k in ("scale", "offset", "low")):
            raise CubeError("these statistics are of layers stored in different ways")
    total = np.sum([p["histogram"].to_numpy() for p in parts], axis=0)
    rest = first.drop_vars(["count", "mean", "std", "min", "max", "quantile", "histogram"])
    return _described(rest, total).assign_attrs(samples=sum(p.attrs["samples"] for p in parts))


def _calibrations(part: xr.Dataset) -> dict[str, str]:
    """Return entry -> calibration, nothing where `part` was made before they were noted."""
    if "calibration" not in part.coords:
        return {}
    return dict(zip(part["entry"].to_numpy(), part["calibration"].to_numpy(), strict=True))


def _mask_of(name: str, layers: dict[str, Layer]) -> str | None:
    """Return the mask ``clear`` of the same group and dates, if there is one.

    By its name: a mask of water, or of a user's own, says nothing about clouds.
    """
    mine = layers[name]
    other = layers.get(f"{mine.group}/clear")
    if other is None or other.kind != "mask" or other.stack_dim != mine.stack_dim:
        return None
    return other.name


def _steps(samples: Samples, row: int, name: str, read: Read) -> slice | np.ndarray:
    """Return which steps of a layer are the sample's own, and not padding of the batch."""
    entry = samples.stores[int(read["place"][0, 0])].entries[name]
    if entry.clock is None:
        return slice(entry.length if entry.layer.stack_dim == "track" else 1)
    if entry.steps is not None:  # dates on which no pair ends
        return np.flatnonzero(entry.steps[samples.dates(row, entry.clock, epoch=None)] >= 0)
    return slice(int(read[f"{entry.clock}/present"][0].sum()))


def _histogram(stored: np.ndarray, mask: np.ndarray | None, layer: Layer) -> np.ndarray:
    """Return (channel, bin) int64 counts of valid pixels of (step, channel, y, x)."""
    bins = _bins(stored, layer)
    if mask is not None:
        bins = np.where(mask.astype(bool), bins, BINS)
    out = np.empty((stored.shape[1], BINS), np.int64)
    for channel in range(stored.shape[1]):
        counts = np.bincount(bins[:, channel].ravel(), minlength=BINS + 1)
        out[channel] = counts[:BINS]
    if layer.nodata is not None and np.dtype(layer.dtype).kind != "f":
        out[:, int(layer.nodata) - np.iinfo(layer.dtype).min] = 0
    return out


def _bins(stored: np.ndarray, layer: Layer) -> np.ndarray:
    """Return the bin of each pixel, BINS where it has none."""
    dtype = np.dtype(layer.dtype)
    if dtype.kind != "f":
        if dtype.itemsize > 2:
            raise CubeError(f"{layer.name} is stored as {dtype}: at most 16 bits can be counted")
        return stored.astype(np.intp) - np.iinfo(dtype).min
    low, high = layer.valid_range
    with np.errstate(invalid="ignore"):
        bins = np.floor((stored * layer.scale + layer.offset - low) / (high - low) * BINS)
        good = np.isfinite(stored) & (stored != layer.nodata)
    return np.where(good, np.clip(np.nan_to_num(bins), 0, BINS - 1), BINS).astype(np.intp)


def _summary(
    totals: dict[str, np.ndarray],
    layers: dict[str, Layer],
    calibration: dict[str, str],
    samples: int,
) -> xr.Dataset:
    entries, rows = [], []
    for name in totals:
        layer = layers[name]
        dtype = np.dtype(layer.dtype)
        # physical = bin * scale + offset
        scale, offset, low = layer.scale, layer.offset, 0.0
        if dtype.kind == "f":
            scale = (layer.valid_range[1] - layer.valid_range[0]) / BINS
            offset = layer.valid_range[0] + scale / 2
        else:
            low = float(np.iinfo(dtype).min)
        for channel in layer.channels or ("",):
            entries.append(f"{name}/{channel}".rstrip("/"))
            rows.append((name, channel, layer.units, calibration[name], scale, offset, low))
    columns = list(zip(*rows, strict=True))
    words = ("layer", "channel", "units", "calibration")
    named = dict(zip((*words, "scale", "offset", "low"), columns, strict=True))
    dataset = xr.Dataset(
        {k: ("entry", np.array(named[k], np.float64)) for k in ("scale", "offset", "low")},
        {"entry": entries, **{k: ("entry", list(named[k])) for k in words}},
        {"samples": samples},
    )
    return _described(dataset, np.concatenate(list(totals.values())))


def _described(dataset: xr.Dataset, histogram: np.ndarray) -> xr.Dataset:
    """Return `dataset` with what follows from the histogram (entry, bin)."""
    count = histogram.sum(axis=1)
    value = np.arange(BINS)[None, :] + dataset["low"].to_numpy()[:, None]
    scale, offset = (dataset[k].to_numpy() for k in ("scale", "offset"))
    some = count > 0
    safe = np.maximum(count, 1)
    mean = (histogram * value).sum(axis=1) / safe
    # Around the mean, not as E[x^2] - mean^2, which cancels.
    variance = (histogram * (value - mean[:, None]) ** 2).sum(axis=1) / safe
    cumulated = np.cumsum(histogram, axis=1)

    def physical(stored: np.ndarray) -> Any:
        return np.where(some, stored * scale + offset, np.nan)

    def rank(q: float) -> Any:
        # the smallest value that at least q of the pixels do not exceed
        least = np.maximum(np.ceil(q * count), 1)
        at = np.array([np.searchsorted(c, n) for c, n in zip(cumulated, least, strict=True)])
        return np.minimum(at, BINS - 1) + dataset["low"].to_numpy()

    quantiles = np.stack([physical(rank(q)) for q in QUANTILES])
    return dataset.assign(
        count=("entry", count),
        mean=("entry", physical(mean)),
        std=("entry", np.where(some, np.sqrt(variance) * np.abs(scale), np.nan)),
        min=("entry", physical(rank(0.0))),
        max=("entry", physical(rank(1.0))),
        quantile=(("q", "entry"), quantiles),
        histogram=(("entry", "bin"), histogram),
    ).assign_coords(q=list(QUANTILES))
