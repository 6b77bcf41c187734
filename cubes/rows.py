"""The nouns that are rows of data: layers, catalogues with their products, legends.

`cubes.types` hands them on; everybody else takes them from there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from cubes.errors import CubeError

Kernel = Literal["nearest", "average", "bilinear"]
Kind = Literal["continuous", "phase", "class", "mask"]

STACK_DIMS = ("time", "pair", "year", "track")
"""Dimensions along which a layer is stacked, in the order in which coordinates are named: where
two axes of a group know a coordinate of one name, the earlier one's keeps the bare name."""
CHANNEL_DIMS = ("pol", "band")


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One kind of measurement: how it is named, resampled, stored and normalised. A row."""

    name: str
    """``group/variable``, e.g. ``s1/backscatter``; unique in the registry."""
    long_name: str
    """For a person: what the numbers are."""
    dims: tuple[str, ...]
    """In order: stack dimension (time, pair, track or year) if any, channel dimension if any,
    ``y``, ``x``."""
    channels: tuple[str, ...] = ()
    """Labels along the channel dimension (pol or band), in order; empty without one."""
    units: str
    """Of the physical values: ``dB``, ``1``, ``rad``, ``degrees``, ``m``."""
    kind: Kind
    """Decides normalisation and statistics: a phase (any angle that starts anew after a turn, such
    as an aspect) is used, averaged and interpolated as cosine and sine, a class never averaged,
    a mask is True where usable."""
    work_dtype: str
    """dtype of working numbers."""
    work_nodata: float | None
    """Nodata of working numbers; NaN for floats."""
    convert: Literal["stored", "power_to_db", "identity"]
    """How working numbers become physical: ``stored``: they already are the stored integers;
    ``power_to_db``: 10 log10; ``identity``: they already are physical."""
    dtype: str
    """dtype of stored numbers."""
    scale: float = 1.0
    """physical = stored * scale + offset."""
    offset: float = 0.0
    """physical = stored * scale + offset."""
    nodata: float | None
    """Nodata of stored numbers (NaN for a float layer); None where every pixel has a value."""
    kernel: Kernel
    """The one stated way to resample this layer (in working numbers)."""
    resolution: float
    """Native resolution in metres, kept in the attributes."""
    valid_range: tuple[float, float]
    """Physical values outside are a sign of wrong units; stored values are clipped to it."""
    derived_from: str | None = None
    """Name of the layer it is computed from in the same cube (``clear`` from ``scl``)."""
    legend: str | None = None
    """Name of the legend of a class layer."""

    @property
    def group(self) -> str:
        """Group of the DataTree, e.g. ``s1``."""
        return self.name.split("/")[0]

    @property
    def variable(self) -> str:
        """Name of the variable in its group, e.g. ``backscatter``."""
        return self.name.split("/")[1]

    @property
    def channel_dim(self) -> str | None:
        """``pol`` or ``band``, or None."""
        return next((d for d in self.dims if d in CHANNEL_DIMS), None)

    @property
    def stack_dim(self) -> str | None:
        """``time``, ``pair``, ``track`` or ``year``, or None for a static layer."""
        return next((d for d in self.dims if d in STACK_DIMS), None)

    @property
    def turn(self) -> float:
        """Radians in a unit of a phase: 1, or pi / 180 of one in degrees."""
        return math.pi / 180 if self.units == "degrees" else 1.0

    def wrapped(self, angle: Any) -> Any:
        """Return angles in radians, -pi..pi, in the units and turn of this phase (0..360)."""
        values = angle / self.turn
        return np.where(values < self.valid_range[0], values + 2 * math.pi / self.turn, values)

    @property
    def n_channels(self) -> int:
        """Length of the channel dimension; 1 without one."""
        return max(1, len(self.channels))

    def pick(self, channels: tuple[str, ...]) -> Layer:
        """Return this layer with some of its channels, in the order given.

        Raises
        ------
        CubeError
            A channel is not one of the row's.
        """
        unknown = [c for c in channels if c not in self.channels]
        if unknown:
            raise CubeError(
                f"layer {self.name!r} has no {self.channel_dim} {unknown[0]!r}; "
                f"it has {', '.join(self.channels)}"
            )
        return replace(self, channels=channels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """What may be opened on behalf of a catalogue: the allow-list that every read passes."""

    schemes: tuple[str, ...] = ("https",)
    """Allowed URL schemes; ``file`` covers plain paths, which must also lie under ``roots``."""
    hosts: tuple[str, ...] = ()
    """Allowed hosts; ``*.example.org`` allows subdomains; empty allows any public host."""
    roots: tuple[str, ...] = ()
    """Folders that ``file`` reads may touch."""
    sign: str | None = None
    """Name of the signer applied just before a read (``planetary-computer``), or None."""
    auth: str | None = None
    """Name of the environment variable holding a bearer token for ``hosts``, or None."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """How one catalogue delivers one layer: collection, asset keys, and what its numbers mean."""

    collection: str
    """STAC collection id."""
    assets: Mapping[str, str]
    """Channel label -> asset key; the empty label for a layer without channels."""
    nodata: float | None
    """Nodata of the source numbers; NaN allowed."""
    zero: Literal["nodata", "below_noise", "valid"] = "valid"
    """What a source 0 means: unflagged border, noise-clipped measurement, or a value."""
    offset_rule: Literal["none", "baseline", "earthsearch_flag", "always"] = "none"
    """Where Sentinel-2's +1000 stands: by ``s2:processing_baseline`` of the product; as
    ``earthsearch:boa_offset_applied`` says; always in the pixels; not in them at all (none)."""
    scale: float = 1.0
    """Working = source * scale (Indigo's incidence is degrees x 100)."""
    calibration: str | None = None
    """For backscatter: beta0, sigma0, gamma0, gamma0_rtc or sigma0_terrain."""
    looks: float | None = None
    """Equivalent number of looks of the source, where known."""
    query: Mapping[str, Any] = field(default_factory=dict)
    """Extra property filters; sent to a STAC API and applied again on our side."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Catalog:
    """A place to search: where it is, what may be read, and how it delivers each layer. A row."""

    name: str
    url: str
    """STAC API landing page, or path or URL of a static ``catalog.json``."""
    kind: Literal["api", "static"]
    access: Access = field(default_factory=Access)
    products: Mapping[str, Product]
    """Layer name -> product."""
    page_size: int | None = None
    """Items per page asked of an API."""

    def __repr__(self) -> str:
        """Return name, kind and layers on one line."""
        return f"<Catalog {self.name!r} ({self.kind}): {', '.join(self.products) or 'no layers'}>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Legend:
    """The classes of a class layer: names, colours, and what must never be scored. A row."""

    name: str
    title: str
    origin: Literal["measured", "mapped"]
    """``mapped`` from satellites themselves: then a score is agreement with the product."""
    nodata: int | None
    """Code of missing data, never a class; None where every code is real."""
    classes: Mapping[int, tuple[str, str]]
    """Code -> (name, colour as ``#rrggbb``)."""
    ignore: tuple[int, ...] = ()
    """Codes that are real in the product but must be left out of losses and scores."""
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Named sets of codes, such as the cropped ones."""
    remap: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """Other legend -> (code here -> code there); what is not listed has no counterpart."""

    @property
    def scored(self) -> tuple[int, ...]:
        """The codes that may be learned and scored, ascending."""
        return tuple(sorted(c for c in self.classes if c not in self.ignore))

    def differing(self, other: Legend) -> str:
        """Return in words where another legend is not this one."""
        for code in sorted({*self.classes, *other.classes}):
            ours, theirs = (v.classes.get(code, ("no class",)) for v in (self, other))
            if ours != theirs:
                return f"code {code} is {theirs[0]!r} ({theirs[-1]}) and {ours[0]!r} ({ours[-1]})"
        parts = [f.name for f in fields(self) if getattr(self, f.name) != getattr(other, f.name)]
        return f"they differ in {', '.join(parts) or 'nothing'}"

    def to_json(self) -> str:
        """Return the legend as one line of JSON, as it stands beside what was coded by it."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Legend:
        """Return the legend that `to_json` wrote; of one text always the same object.

        Raises
        ------
        CubeError
            The text holds no legend.
        """
        return _legend(text)


@lru_cache(maxsize=256)
def _legend(text: str) -> Legend:
    """Return a legend; JSON has turned its codes into text.

    Kept, because samples of many stores hold one each, and pickle equal objects one by one.
    """
    try:
        body = json.loads(text)
        pairs = sorted((int(code), tuple(v)) for code, v in body["classes"].items())
        remap = {k: {int(a): b for a, b in table.items()} for k, table in body["remap"].items()}
        groups = {k: tuple(v) for k, v in body["groups"].items()}
        plain = {**body, "ignore": tuple(body["ignore"])}
        return Legend(**{**plain, "classes": dict(pairs), "remap": remap, "groups": groups})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CubeError(
            f"{text[:80]!r} holds no legend ({type(error).__name__}: {error}); it is "
            "written by cubes.legend(NAME).to_json()"
        ) from None
