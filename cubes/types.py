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

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox
    from shapely.geometry.base import BaseGeometry

Kernel = Literal["nearest", "average", "bilinear"]
Kind = Literal["continuous", "phase", "class", "mask"]
OnMissing = Literal["raise", "mask"]

FORMAT_VERSION = 1
"""Version of the store layout and ledger; a store of a newer version is refused."""


TIME_COORDS = ("time", "reference_time", "secondary_time")
"""Coordinates that are times: ISO strings in an `Axis`, datetime64[ns] (UTC) in a cube."""


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
    """Decides normalisation and statistics: a phase is used as cosine and sine, a class never
    averaged, a mask is True where usable."""
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
        return next((d for d in self.dims if d in ("pol", "band")), None)

    @property
    def stack_dim(self) -> str | None:
        """``time``, ``pair``, ``track`` or ``year``, or None for a static layer."""
        return next((d for d in self.dims if d in ("time", "pair", "track", "year")), None)

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


@dataclass(frozen=True, kw_only=True, slots=True)
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
    """For example ``EPSG:32631``; None takes the area's UTM zone."""
    snap: float | None = 2560.0
    """Edge of the lattice cells that are covered whole; None covers the area itself, snapped to
    multiples of ``resolution``."""
    shape: tuple[int, int] | None = None
    """Rows and columns around the area's centre, in place of covering it."""
    geobox: GeoBox | None = None
    """An exact grid; then nothing else counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClearPolicy:
    """What counts as clear: a stated choice, never the same thing as valid."""

    classes: tuple[int, ...] = (4, 5, 6, 7, 11)
    """SCL classes that are clear: vegetation, bare, water, unclassified, snow."""
    dilate: int = 0
    """Pixels by which unclear areas grow (a disc)."""


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
    proj: str | None = None
    """JSON of ``{"crs", "shape", "transform"}`` where the item states them, else None."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
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

    def axis(self, layer: Layer) -> Axis | None:
        """Return the axis that `layer` is stacked along, or None for a static layer."""
        return next(
            (a for a in self.axes if (a.group, a.dim) == (layer.group, layer.stack_dim)), None
        )

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
        }
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Plan:
        """Return the plan that `to_json` wrote.

        Raises
        ------
        CubeError
            Written by a newer version.
        """
        from affine import Affine
        from odc.geo.geobox import GeoBox

        body = json.loads(text)
        if body["format"] > FORMAT_VERSION:
            raise CubeError(
                f"this plan has format {body['format']}; this version of cubes reads up to "
                f"{FORMAT_VERSION}: upgrade deepsentinel"
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
class Window:
    """What one sample is: its size in space, and how many dates of each sensor."""

    size: int = 256
    """Edge in pixels."""
    stride: int | None = None
    """Distance between windows; None: `size` (patch-aligned, no overlap)."""
    dates: int = 12
    """Dates kept per stack axis; fewer where a period holds fewer (the rest is padding)."""
    period: str | None = None
    """Length of a sample in time, e.g. ``180D``; None takes the whole cube."""
    step: str | None = None
    """Distance between periods; None: `period`."""


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
    pixels_read: int = 0
    """Source pixels decoded in this run."""
    bytes_written: int = 0
    retries: int = 0
    missing: tuple[str, ...] = ()
    """``item/asset`` that were absent and masked."""
    damaged: tuple[str, ...] = ()
    """Objects whose bytes are not those recorded."""
    seconds: float = 0.0
    tree_sha256: str | None = None
    """Hash over every zarr.json and shard; set once sealed."""

    def __str__(self) -> str:
        """Return one line for a person."""
        parts = [f"{self.store}: {self.state}", f"{self.written} written, {self.reused} reused"]
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if self.damaged:
            parts.append(f"{len(self.damaged)} damaged")
        if self.missing:
            parts.append(f"{len(self.missing)} assets missing and masked")
        parts.append(f"{self.pixels_read:,} px read, {self.bytes_written:,} bytes written")
        return "; ".join(parts)


class Progress(Protocol):
    """A callable told how far along a long job is."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Take the number done, the total, and what was just done."""
        ...
