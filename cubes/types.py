"""Every noun of `cubes`: what flows between its modules, frozen, and small enough to pickle.

Three kinds of numbers appear below and are never mixed:

* *source* numbers are what a file holds (digital numbers, linear power, its own nodata);
* *working* numbers are a layer's own after reading and mosaicking: source numbers made comparable
  (Sentinel-2 offset harmonised, unflagged zeros made nodata), still linear, so that they may be
  resampled and averaged (dtype ``Layer.work_dtype``, nodata ``Layer.work_nodata``);
* *stored* numbers are the small integers in a Zarr store; ``stored * scale + offset`` are the
  *physical* values that a person sees (float32, NaN where nodata).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from cubes.errors import AssetReadError as AssetReadError
from cubes.errors import CubeError as CubeError
from cubes.rows import CHANNEL_DIMS as CHANNEL_DIMS
from cubes.rows import STACK_DIMS as STACK_DIMS
from cubes.rows import Access as Access
from cubes.rows import Catalog as Catalog
from cubes.rows import Kernel as Kernel
from cubes.rows import Kind as Kind
from cubes.rows import Layer as Layer
from cubes.rows import Legend as Legend
from cubes.rows import Product as Product
from cubes.windows import Series as Series
from cubes.windows import Window as Window

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

OnMissing = Literal["raise", "mask"]

FORMAT_VERSION = 2
"""Version of plan, store layout and ledger; a store of another version is refused.

2: a plan carries the legends of its class layers, and no projection metadata of its assets."""


TIME_COORDS = ("time", "reference_time", "secondary_time")
"""Coordinates that are times: ISO strings in an `Axis`, datetime64[ns] (UTC) in a cube."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AOI:
    """An area of interest: a name and a geometry in longitude and latitude."""

    name: str
    wkt: str
    """Polygon, MultiPolygon or Point in EPSG:4326."""
    size: float | None = None
    """For a point: edge of the square around it, metres."""

    @property
    def geometry(self) -> BaseGeometry:
        """The shapely geometry, EPSG:4326."""
        import shapely

        return shapely.from_wkt(self.wkt)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The wanted pixel grid, before an area gives it a place.

    Without ``geobox`` the area's UTM zone (northern zones also south of the equator) is covered
    by whole cells of ``snap`` metres, the lattice on which cubes of one zone never gap or overlap.
    """

    resolution: float = 10.0
    """Pixel edge, units of the CRS (metres)."""
    crs: str | None = None
    """Projected, for example ``EPSG:32631``; None takes the area's UTM zone."""
    snap: float | None = 2560.0
    """Edge of the lattice cells that are covered whole; None covers the area itself, snapped to
    multiples of ``resolution``."""
    shape: tuple[int, int] | None = None
    """Rows and columns around the area's centre, in place of covering it."""
    geobox: GeoBox | None = None
    """An exact grid; then nothing else counts."""


SCL_CODES = range(1, 12)
"""Codes of Sentinel-2's scene classification that are classes: those of the legend ``scl``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClearPolicy:
    """What counts as clear: a stated choice, never the same thing as valid."""

    classes: tuple[int, ...] = (4, 5, 6, 7, 11)
    """SCL classes that are clear: vegetation, bare, water, unclassified, snow."""
    dilate: int = 0
    """Pixels by which unclear areas grow (a disc). Missing pixels do not grow: they say nothing of
    their neighbours, as little as the edge of the cube does."""

    def __post_init__(self) -> None:
        """Refuse what no scene classification can mean."""
        wrong = [c for c in self.classes if c not in SCL_CODES]
        if wrong:
            raise CubeError(
                f"ClearPolicy.classes holds {wrong[0]!r}; codes of a scene classification are "
                "whole numbers from 1 to 11 (0 is nodata, never clear), such as (4, 5, 6)"
            )
        if self.dilate < 0 or self.dilate != int(self.dilate):
            raise CubeError(f"ClearPolicy.dilate is {self.dilate!r}; give whole pixels, 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """Where the pixels of one channel of one granule lie, and what its numbers mean."""

    href: str
    """Unsigned; signed just before each read, and never stored signed."""
    item: str
    key: str
    """STAC item id and asset key, for error messages and provenance."""
    bbox: tuple[float, float, float, float] | None = None
    """Of the granule, EPSG:4326 (west > east across the antimeridian); None: unknown, always
    opened."""
    nodata: float | None = None
    """Nodata of the source numbers; None trusts the file."""
    zero: Literal["nodata", "below_noise", "valid"] = "valid"
    """See `Product.zero`."""
    shift: float = 0.0
    """Added to valid source numbers (1000 for Sentinel-2 before baseline 04.00)."""
    scale: float = 1.0
    """working = source * scale + shift, where valid."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A stack dimension of one group: its length and the coordinates along it."""

    group: str
    dim: str
    coords: Mapping[str, tuple[Any, ...]]
    """Name -> one plain value per step (ISO strings for times); the one named like `dim` is the
    index (for ``pair`` and ``track`` a label)."""

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(next(iter(self.coords.values()), ()))


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayPlan:
    """One array of a cube: the layer, and for each step and channel the assets that fill it."""

    layer: Layer
    steps: tuple[Mapping[str, tuple[Asset, ...]], ...]
    """One mapping per step along the stack dimension (one in all for a static layer): channel
    (empty label without channels) -> assets in mosaic order; the first valid pixel wins. Empty
    for derived layers; a channel without assets is all nodata (``on_missing="mask"``)."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Extra attributes: calibration, noise equivalent looks, rule applied."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Plan:
    """A cube, decided: grid, axes and, for each array and step, the assets. No pixels, no search.

    A pure function of the request and the items; its hash names the cube's bytes.
    """

    geobox: GeoBox
    axes: tuple[Axis, ...]
    arrays: tuple[ArrayPlan, ...]
    clear: ClearPolicy = field(default_factory=ClearPolicy)
    access: Access = field(default_factory=Access)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """AOI, time range, catalogue, request: provenance that is plain JSON."""
    missing: tuple[str, ...] = ()
    """``item/asset`` that were absent and masked."""
    legends: tuple[Legend, ...] = ()
    """Of the class layers: with them a store says what its classes are wherever it is opened."""

    trusted: bool = field(default=True, compare=False)
    """Whether `access` counts: False for a plan read from a file, see `cubes.grants`."""

    @property
    def nbytes(self) -> int:
        """Stored bytes of all arrays before compression."""
        from math import prod

        import numpy as np

        pixels = prod(self.geobox.shape)
        return sum(
            pixels * (len(axis) if (axis := self.axis(a.layer)) else 1) * a.layer.n_channels
            * np.dtype(a.layer.dtype).itemsize
            for a in self.arrays
        )  # fmt: skip

    def __repr__(self) -> str:
        """Return what a person wants to know before it is built, on one line."""
        rows, columns = self.geobox.shape
        steps = ", ".join(f"{a.group} {len(a)} along {a.dim}" for a in self.axes)
        layers = ", ".join(a.layer.name for a in self.arrays)
        return (
            f"<Plan of {self.attrs.get('aoi', 'a cube')!r}: {rows:,} x {columns:,} px of "
            f"{abs(self.geobox.resolution.x):g} m in {self.geobox.crs}; {steps or 'no dates'}; "
            f"{layers}; {self.nbytes / 2**30:.3g} GiB uncompressed>"
        )

    def axis(self, layer: Layer) -> Axis | None:
        """Return the axis that `layer` is stacked along, or None for a static layer."""
        return next(
            (a for a in self.axes if (a.group, a.dim) == (layer.group, layer.stack_dim)), None
        )

    def coordinates(self, group: str) -> dict[str, tuple[str, tuple[Any, ...]]]:
        """Return the coordinates along the axes of a group: name in the cube -> (dim, values).

        A bare name belongs to time or pair. A track's carry its dimension (``track_orbit_state``),
        whatever else the group holds and whatever the order that its layers were asked for in; so
        do a pair's or a year's where an axis earlier in `STACK_DIMS` has the name.
        """
        out: dict[str, tuple[str, tuple[Any, ...]]] = {}
        mine = [a for a in self.axes if a.group == group]
        for axis in sorted(mine, key=lambda a: STACK_DIMS.index(a.dim)):
            for name, values in axis.coords.items():
                bare = name == axis.dim or (axis.dim != "track" and name not in out)
                out[name if bare else f"{axis.dim}_{name}"] = (axis.dim, values)
        return out

    def array(self, name: str) -> ArrayPlan:
        """Return the array of the layer called `name`.

        Raises
        ------
        CubeError
            The plan has no such layer.
        """
        for array in self.arrays:
            if array.layer.name == name:
                return array
        names = ", ".join(a.layer.name for a in self.arrays)
        raise CubeError(f"this plan has no layer {name!r}; it has {names}")

    def to_json(self) -> str:
        """Return the plan as canonical JSON: sorted keys, unsigned hrefs, no times of its own."""
        body = {
            "format": FORMAT_VERSION,
            "grid": {
                "crs": str(self.geobox.crs),
                "shape": list(self.geobox.shape),
                "transform": list(self.geobox.transform)[:6],
            },
            "axes": [asdict(a) for a in self.axes],
            "arrays": [
                {
                    "layer": asdict(a.layer),
                    "attrs": dict(a.attrs),
                    "steps": [{c: [_plain(x) for x in v] for c, v in s.items()} for s in a.steps],
                }
                for a in self.arrays
            ],
            "clear": asdict(self.clear),
            "access": asdict(self.access),
            "attrs": dict(self.attrs),
            "missing": list(self.missing),
            "legends": [asdict(v) for v in self.legends],
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Plan:
        """Return the plan that `to_json` wrote.

        Raises
        ------
        CubeError
            Written by another version.
        """
        from affine import Affine
        from odc.geo.geobox import GeoBox

        body = json.loads(text)
        if body["format"] > FORMAT_VERSION:
            raise CubeError(
                f"this plan has format {body['format']}; this version of cubes reads up to "
                f"{FORMAT_VERSION}: upgrade deepsentinel"
            )
        if body["format"] < FORMAT_VERSION:
            raise CubeError(
                f"this plan has format {body['format']}, from before the first release; this "
                f"version of cubes reads {FORMAT_VERSION}: make it again from its request, and "
                "write its store again into an empty folder"
            )
        grid = body["grid"]
        return Plan(
            geobox=GeoBox(tuple(grid["shape"]), Affine(*grid["transform"]), grid["crs"]),
            axes=tuple(
                Axis(
                    group=a["group"],
                    dim=a["dim"],
                    coords={k: tuple(v) for k, v in a["coords"].items()},
                )
                for a in body["axes"]
            ),
            arrays=tuple(_array_from_json(a) for a in body["arrays"]),
            clear=ClearPolicy(
                classes=tuple(body["clear"]["classes"]), dilate=body["clear"]["dilate"]
            ),
            access=Access(**{k: _tupled(v) for k, v in body["access"].items()}),
            attrs=body["attrs"],
            missing=tuple(body["missing"]),
            trusted=False,
            legends=tuple(Legend.from_json(json.dumps(v, sort_keys=True)) for v in body["legends"]),
        )

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON without the address at which the catalogue was asked.

        A mirror, or the same server on another port, gives the same cube: a store begun from one
        is gone on with and repaired from the other.
        """
        attrs = {k: v for k, v in self.attrs.items() if k != "catalog_url"}
        return hashlib.sha256(replace(self, attrs=attrs).to_json().encode()).hexdigest()


def _plain(asset: Asset) -> dict[str, Any]:
    """Return an asset's fields, all plain values: asdict copies each deeply, 8x as long."""
    return {name: getattr(asset, name) for name in Asset.__slots__}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _array_from_json(body: dict[str, Any]) -> ArrayPlan:
    return ArrayPlan(
        layer=Layer(**{k: _tupled(v) for k, v in body["layer"].items()}),
        attrs=body["attrs"],
        steps=tuple(
            {
                c: tuple(Asset(**{k: _tupled(v) for k, v in x.items()}) for x in assets)
                for c, assets in step.items()
            }
            for step in body["steps"]
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a cube lies in Zarr: one shard per patch x time block, one inner chunk per step."""

    patch: int = 256
    """Edge of a shard in pixels (smaller cubes get one smaller patch)."""
    steps: int | None = 64
    """Steps per shard along the stack dimension; None: all in one."""
    shards: bool = True
    """False writes plain chunks (GDAL cannot read shards)."""
    codec: Literal["lz4", "zstd", "none"] = "lz4"
    """``lz4``: Blosc LZ4 + bitshuffle + crc32c, for training; ``zstd`` with its own checksum,
    for archives."""
    lossless: bool = False
    """Store working dtype and nodata instead of the row's small integers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `write`, `verify` or `repair` did: counts a person can check."""

    store: str
    state: Literal["sealed", "partial", "damaged"]
    written: int = 0
    """Regions written in this run."""
    reused: int = 0
    """Regions found done and left alone."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Region -> error."""
    untried: int = 0
    """Regions not tried, since those of their group tried first all failed."""
    pixels_read: int = 0
    """Source pixels decoded in this run."""
    bytes_written: int = 0
    retries: int = 0
    missing: tuple[str, ...] = ()
    """``item/asset`` that were absent and masked."""
    damaged: tuple[str, ...] = ()
    """Objects whose bytes are not those recorded."""
    clipped: Mapping[str, int] = field(default_factory=dict)
    """Layer -> numbers of a person's own cube that lay outside its range and were stored as the
    nearest one inside, in this run."""
    seconds: float = 0.0
    tree_sha256: str | None = None
    """Hash over every zarr.json and shard; set once sealed."""

    def __str__(self) -> str:
        """Return one line for a person: counts, the first failure's reason, what to do."""
        parts = [f"{self.store}: {self.state}", f"{self.written} written, {self.reused} reused"]
        if self.failed:
            region, why = next(iter(self.failed.items()))
            parts.append(f"{len(self.failed)} failed, first {region}: {why.strip()[:400]}")
        if self.untried:
            parts.append(f"{self.untried} not tried, since the first of their group all failed")
        if self.damaged:
            parts.append(f"{len(self.damaged)} damaged, first {self.damaged[0]}")
        if self.missing:
            parts.append(f"{len(self.missing)} assets missing and masked")
        if self.clipped:
            parts.append(f"{sum(self.clipped.values()):,} numbers clipped to their layer's range")
        parts.append(f"{self.pixels_read:,} px read, {self.bytes_written:,} bytes written")
        if self.failed:
            parts.append("run the same call again to try what failed once more")
        if self.state == "damaged":
            parts.append("cubes.repair(store) makes what is damaged again")
        return "; ".join(parts)


class Progress(Protocol):
    """A callable told how far along a long job is."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take the number done, the total, and what was just done."""
        ...
