"""OPERA RTC-S1 and RTC-S1-STATIC from files on a disk, as a catalogue of their own.

RTC-S1 is gamma nought in linear power, radiometrically terrain-corrected, by burst; its zeros are
measurements clipped at the noise floor, not missing data. Names and layers: product specification
JPL D-108758.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import xarray as xr

from cubes import grid as grids
from cubes import names
from cubes.files import geotiff as files
from cubes.files.geotiff import PathLike
from cubes.request import Request
from cubes.types import Access, Catalog, CubeError, Product

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

RTC, RTC_STATIC = "OPERA_L2_RTC-S1", "OPERA_L2_RTC-S1-STATIC"
_STATIC_ASSETS = {"s1/incidence": "local_incidence_angle", "s1/layover_shadow": "mask"}


def catalog(folder: PathLike) -> Catalog:
    """Return the catalogue row of a folder of OPERA RTC-S1 files, for ``items=items(folder)``.

    Reads are confined to the folder. Zeros are measurements below the noise floor, never no data.
    """
    root = str(Path(folder).resolve())
    pols = {p.lower(): p for p in ("VV", "VH", "HH", "HV")}
    return Catalog(
        name="opera-rtc-files",
        url=root,
        kind="static",
        access=Access(schemes=("file",), roots=(root,)),
        products={
            "s1/backscatter": Product(
                collection=RTC, assets=pols, nodata=float("nan"), zero="below_noise",
                calibration="gamma0_rtc",
            ),
            "s1/incidence": Product(
                collection=RTC_STATIC, assets={"": "local_incidence_angle"}, nodata=float("nan")
            ),
            "s1/layover_shadow": Product(collection=RTC_STATIC, assets={"": "mask"}, nodata=255),
        },
    )  # fmt: skip


def items(folder: PathLike, *, orbit_state: str | None = None) -> list[dict[str, Any]]:
    """Return OPERA RTC-S1 and RTC-S1-STATIC files as STAC items, one per burst and acquisition.

    Parameters
    ----------
    folder : path
        Searched with its subfolders for files named as OPERA names them.
    orbit_state : str, optional
        ``ascending`` or ``descending``, where the files' own tag ``ORBIT_PASS_DIRECTION`` is
        missing (cropped files lose it).

    Raises
    ------
    CubeError
        No such file, or one that is no GeoTIFF.
    """
    products: dict[str, list[tuple[names.OperaProduct, Path]]] = {}
    for path in sorted(Path(folder).resolve().rglob("OPERA_L2_RTC-S1*.tif")):
        try:
            parsed = names.parse_opera(path.name)
        except CubeError:
            continue  # a file of someone's own making beside the products
        if parsed.layer is not None:
            products.setdefault(path.name.rsplit(f"_{parsed.layer}", 1)[0], []).append(
                (parsed, path)
            )
    if not products:
        raise CubeError(
            f"{folder} holds no OPERA RTC-S1 files, such as OPERA_L2_RTC-S1_T137-292318-IW1_"
            "20250102T015857Z_20250102T190143Z_S1A_30_v1.0_VV.tif"
        )
    return [_item(name, found, orbit_state) for name, found in products.items()]


def _item(
    name: str, found: Sequence[tuple[names.OperaProduct, Path]], orbit_state: str | None
) -> dict[str, Any]:
    product, first = found[0]
    header = files.read_tif(first, pixels=False)
    box = header.geobox
    state = header.tags.get("ORBIT_PASS_DIRECTION", orbit_state or "").lower() or None
    west, south, east, north = grids.lonlat_bounds(box)
    properties = {
        "datetime": pd.Timestamp(product.time).isoformat() + "Z",
        "platform": product.platform,
        "sat:relative_orbit": product.track,
        "sat:orbit_state": state,
        "processing:version": product.version,
        "opera:burst_id": product.burst_id,
        "proj:code": str(box.crs),
        "proj:shape": list(box.shape),
        "proj:transform": list(box.transform)[:6],
    }
    if product.generated is not None:
        properties["processing:datetime"] = pd.Timestamp(product.generated).isoformat() + "Z"
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": name,
        "collection": RTC_STATIC if product.kind.endswith("STATIC") else RTC,
        "bbox": [west, south, east, north],
        "geometry": {
            "type": "Polygon",
            "coordinates": [
                [[west, south], [east, south], [east, north], [west, north], [west, south]]
            ],
        },
        "properties": properties,
        "assets": {str(p.layer): {"href": str(path)} for p, path in found},
        "links": [],
    }


def request(
    folder: PathLike,
    *,
    pols: Sequence[str] = ("vv", "vh"),
    burst: str | None = None,
    geobox: GeoBox | None = None,
    on_missing: Literal["raise", "mask"] = "raise",
    orbit_state: str | None = None,
) -> Request:
    """Return a request for OPERA RTC-S1 files; ``.open()`` is lazy, `cubes.write` takes it.

    Parameters
    ----------
    folder : path
        See `items`.
    pols : sequence of str
        Polarisations.
    burst : str, optional
        Such as ``T137-292318-IW1``; by default all, mosaicked by pass.
    geobox : GeoBox, optional
        The grid; by default the bursts' own, 30 m, all of it covered.
    on_missing : {"raise", "mask"}
        What to do where an acquisition lacks a polarisation.
    orbit_state : str, optional
        See `items`.

    Returns
    -------
    Request
        Of group ``s1``: backscatter (time, pol, y, x) dB, gamma0_rtc, zero kept at -50 dB as below
        noise; incidence (degrees) and layover_shadow (track, y, x) where RTC-S1-STATIC files are
        there too. Of STATIC files alone those two: with `cubes.join` they go beside backscatter of
        another catalogue, such as Planetary Computer's, whose items carry no geometry.

    Raises
    ------
    CubeError
        No files, no such burst, or bursts in several zones without `geobox`.
    """
    found = items(folder, orbit_state=orbit_state)
    bursts = sorted({i["properties"]["opera:burst_id"] for i in found})
    if burst is not None:
        if burst not in bursts:
            raise CubeError(f"{folder} has no burst {burst!r}; it has {', '.join(bursts)}")
        found = [i for i in found if i["properties"]["opera:burst_id"] == burst]
    times = sorted(i["properties"]["datetime"] for i in found if i["collection"] == RTC)
    box = geobox if geobox is not None else _covering(found)
    static = {k for i in found if i["collection"] == RTC_STATIC for k in i["assets"]}
    layers = [n for n, key in _STATIC_ASSETS.items() if key in static]
    return Request.of(
        grids.lonlat_bounds(box),
        (times[0], times[-1]) if times else found[0]["properties"]["datetime"],
        ["s1/backscatter", *layers] if times else layers,
        catalog=catalog(folder),
        items=found,
        pols=tuple(pols),
        grid=box,
        on_missing=on_missing,
    )


def open_rtc(folder: PathLike, **options: Any) -> xr.DataTree:
    """Return OPERA RTC-S1 files as a lazy cube with the group ``s1``; see `request`."""
    return request(folder, **options).open()


def _covering(items: Sequence[Mapping[str, Any]]) -> GeoBox:
    """Return the smallest grid on the bursts' own lattice that covers all of them.

    Raises
    ------
    CubeError
        They lie in several projections, or on lattices that do not meet.
    """
    from affine import Affine
    from odc.geo.geobox import GeoBox

    grids_of = {
        (p["proj:code"], tuple(p["proj:transform"]), tuple(p["proj:shape"]))
        for p in (i["properties"] for i in items)
    }
    codes = sorted({code for code, _, _ in grids_of})
    if len(codes) > 1:
        raise CubeError(
            f"the bursts lie in {', '.join(codes)}: give geobox=, or burst= for one of them"
        )
    (_, first, _), *_ = sorted(grids_of)
    step_x, step_y = first[0], first[4]
    edges = []
    for _, transform, (rows, columns) in grids_of:
        a, _, left, _, e, top = transform
        off = [(left - first[2]) / step_x, (top - first[5]) / step_y]
        if (a, e) != (step_x, step_y) or any(abs(v - round(v)) > 1e-6 for v in off):
            raise CubeError("the bursts lie on lattices that do not meet: give geobox=")
        edges.append((left, top + e * rows, left + a * columns, top))
    lefts, bottoms, rights, tops = zip(*edges, strict=True)
    left, bottom, right, top = min(lefts), min(bottoms), max(rights), max(tops)
    shape = (round((bottom - top) / step_y), round((right - left) / step_x))
    return GeoBox(shape, Affine(step_x, 0, left, 0, step_y, top), codes[0])
