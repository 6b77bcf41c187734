"""Keeping samples by what the ledger counted: clear pixels and classes. No pixel is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from cubes.sampling.index import EPOCH, StoreIndex, all_classes, legend_of
from cubes.sampling.samples import data_share
from cubes.sampling.sampleset import Samples
from cubes.types import CubeError


def where(
    samples: Samples,
    *,
    clear: float | Mapping[str, float] = 0.0,
    labels: str | None = None,
    labelled: float = 0.0,
    classes: Mapping[int | str, float] | None = None,
) -> Samples:
    """Return the samples that hold enough; reads the ledger's counts, no pixel.

    Counts are of cells of the ledger, as for ``min_valid`` of `plan`; where samples are crops drawn
    in a cell (``Window.within``), of that whole cell.

    Parameters
    ----------
    samples
        What to choose from.
    clear
        Least mean share of clear pixels over a sample's usable dates (``<sensor>_clear`` of
        `Samples.table`), for every sensor with a cloud mask, or by sensor: ``{"s2": 0.5}``. Cubes
        without such a mask lose no sample.
    labels
        The class layer that is meant, such as ``"labels/worldcover"``; None: the only one. Of a
        layer with a plane a year, the year nearest to the middle of the sample.
    labelled
        Least share of pixels that carry a class of that layer.
    classes
        Code or name of a class -> least share of all pixels; each must be met.

    Raises
    ------
    CubeError
        No sample is left (it says what dropped how many); no such layer, class or mask; a store
        written before classes were counted.
    """
    wanted = {} if classes is None else dict(classes)
    given = [("labelled", labelled), *_by_sensor(samples, clear).items(), *wanted.items()]
    for what, value in given:
        if not 0 <= value <= 1:
            raise CubeError(f"{what}={value!r} is a fraction between 0 and 1")
    tests: dict[str, np.ndarray] = {}
    found = samples.table()
    for sensor, least in _by_sensor(samples, clear).items():
        shares = found[f"{sensor}_clear"].to_numpy()
        tests[f"clear {sensor} >= {least:g}"] = np.isnan(shares) | (shares >= least - 1e-6)
    if labelled or wanted:
        name = _labels(samples, labels)
        codes = {key: _code(samples, name, key) for key in wanted}
        held = class_shares(samples, name, codes.values())
        if labelled:
            tests[f"labelled >= {labelled:g}"] = held[None] >= labelled - 1e-6
        for key, code in codes.items():
            tests[f"class {key!r} >= {wanted[key]:g}"] = held[code] >= wanted[key] - 1e-6
    keep = np.ones(len(samples), bool)
    story = []
    for what, ok in tests.items():
        story.append(f"{what} dropped {int((keep & ~ok).sum()):,} (alone {int((~ok).sum()):,})")
        keep &= ok
    if not keep.any():
        raise CubeError(
            f"no sample left of {len(samples):,}: {', then '.join(story) or 'there was none'}; ask "
            "for less, or plan over more cubes or shorter periods"
        )
    return samples.take(keep)


def class_shares(
    samples: Samples, name: str, codes: Iterable[int] = ()
) -> dict[int | None, np.ndarray]:
    """Return code -> (n,) float64 share of a sample's pixels of that class; None: of any class.

    Samples of a store without the layer have none of it.

    Raises
    ------
    CubeError
        A store was written before classes were counted.
    """
    wanted = sorted(set(codes))
    out: dict[int | None, np.ndarray] = {c: np.zeros(len(samples)) for c in (None, *wanted)}
    table, size = samples.table(), samples.window.cell
    place = table[["y", "x"]].to_numpy()
    for number in np.unique(samples.numbers):
        store = samples.stores[number]
        if name not in store.entries:
            continue
        _counted(store, name)
        rows = np.flatnonzero(samples.numbers == number)
        planes = _planes(samples, store, name)[rows]
        corners, inverse = np.unique(place[rows], axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        for code, column in out.items():
            of = data_share(store, name if code is None else f"{name}={code}", corners, size)
            column[rows] = of[inverse, planes]
    return out


def _by_sensor(samples: Samples, clear: float | Mapping[str, float]) -> dict[str, float]:
    masks = [k.removesuffix("_clear") for k in samples.table().columns if k.endswith("_clear")]
    given = dict(clear) if isinstance(clear, Mapping) else dict.fromkeys(masks, clear)
    unknown = [k for k in given if k not in masks]
    if unknown or (not masks and clear):
        raise CubeError(
            f"clear={clear!r}: {unknown[0] if unknown else 'none of these cubes'} has no cloud "
            f"mask; there are masks of {', '.join(masks) or 'no sensor'}"
        )
    return {k: v for k, v in given.items() if v}


def _labels(samples: Samples, name: str | None) -> str:
    known = {
        n: entry
        for s in samples.stores
        for n, entry in s.entries.items()
        if entry.layer.kind == "class" and entry.layer.stack_dim != "time"
    }
    if name is None and len(known) == 1:
        return next(iter(known))
    if name not in known:
        raise CubeError(
            f"labels={name!r}: say which class layer is meant; there are "
            f"{', '.join(sorted(known)) or 'none in these cubes'}"
        )
    return name


def _code(samples: Samples, name: str, key: int | str) -> int:
    """Return the code of a class given by code or name."""
    entry = next(s.entries[name] for s in samples.stores if name in s.entries)
    if entry.legend is None and entry.layer.legend is None:
        if isinstance(key, str):
            raise CubeError(f"{name} has no legend: give the class {key!r} by its code")
        return int(key)
    legend = legend_of(samples.stores, name)
    for code, (title, _) in legend.classes.items():
        if key in (code, title) or (isinstance(key, str) and key.lower() == title.lower()):
            return code
    known = ", ".join(f"{code} {title}" for code, (title, _) in legend.classes.items())
    raise CubeError(f"{legend.name} has no class {key!r}; it has {known}")


def _counted(store: StoreIndex, name: str) -> None:
    """Raise CubeError where the ledger has the layer's pixels but not all of their classes."""
    if not all_classes(store, name):
        raise CubeError(
            f"{store.path} was written before classes were counted, so it cannot be asked for "
            f"shares of {name}: write it again with force=True"
        )


def _planes(samples: Samples, store: StoreIndex, name: str) -> np.ndarray:
    """Return (n,) the plane of a layer that each sample reads."""
    years = np.array(store.entries[name].years)
    if not len(years):
        return np.zeros(len(samples), np.intp)
    start, end = samples.span()
    middle = np.nan_to_num((start + end) / 2, nan=np.inf)
    days = np.where(np.isfinite(middle), middle, 0)
    year = (EPOCH + (days * 86400).astype("timedelta64[s]")).astype("datetime64[Y]").astype(int)
    planes: np.ndarray = np.abs(years[None] - (year[:, None] + 1970)).argmin(axis=1)
    planes[~np.isfinite(middle)] = len(years) - 1
    return planes
