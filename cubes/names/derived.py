"""Names of products made from Sentinel data: OPERA, HyP3, SEN12TS.

Sources: the product specifications of OPERA RTC-S1 (JPL D-108758) and CSLC-S1 (JPL D-108278), the
naming section of HyP3's Sentinel-1 RTC product guide, and the published names of SEN12TS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cubes.names.common import OtherForm, check_track, matched, parts
from cubes.types import CubeError

BURSTS = 375_887
"""Bursts of one cycle of interferometric wide swath, which ESA numbers from 1."""

_BURST = r"T(?P<track>[0-9]{3})-(?P<burst>[0-9]{6})-(?P<swath>IW[123])"
_OPERA = (
    re.compile(
        rf"^OPERA_L2_(?P<kind>RTC-S1)_{_BURST}_(?P<time>[0-9]{{8}}T[0-9]{{6}})Z"
        r"_(?P<generated>[0-9]{8}T[0-9]{6})Z_(?P<platform>S1[A-Z])_(?P<posting>[0-9]+)_v(?P<version>[0-9]+\.[0-9]+)"
        r"(?:_(?P<layer>VV|VH|HH|HV|mask|BROWSE))?(?:\.(?:tif|h5|png))?$"
    ),
    re.compile(
        rf"^OPERA_L2_(?P<kind>RTC-S1-STATIC)_{_BURST}_(?P<time>[0-9]{{8}})_(?P<platform>S1[A-Z])"
        r"_(?P<posting>[0-9]+)_v(?P<version>[0-9]+\.[0-9]+)"
        r"(?:_(?P<layer>local_incidence_angle|incidence_angle|number_of_looks|mask|BROWSE"
        r"|rtc_anf_gamma0_to_beta0|rtc_anf_gamma0_to_sigma0))?(?:\.(?:tif|h5|png))?$"
    ),
    re.compile(
        rf"^OPERA_L2_(?P<kind>CSLC-S1)_{_BURST}_(?P<time>[0-9]{{8}}T[0-9]{{6}})Z"
        r"_(?P<generated>[0-9]{8}T[0-9]{6})Z_(?P<platform>S1[A-Z])_(?P<polarisation>VV|VH|HH|HV)"
        r"_v(?P<version>[0-9]+\.[0-9]+)(?:_(?P<layer>BROWSE))?(?:\.(?:h5|png))?$"
    ),
    re.compile(
        rf"^OPERA_L2_(?P<kind>CSLC-S1-STATIC)_{_BURST}_(?P<time>[0-9]{{8}})_(?P<platform>S1[A-Z])"
        r"_v(?P<version>[0-9]+\.[0-9]+)(?:\.h5)?$"
    ),
)
_PLACE = r"lat_(?P<lat>-?[0-9]{1,2}\.[0-9]{1,4})_lon_(?P<lon>-?[0-9]{1,3}\.[0-9]{1,4})"
_SEN12TS_PAIR = re.compile(
    rf"^{_PLACE}_s1date_(?P<s1_date>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})_s2date_(?P<s2_date>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})"
    r"_s1track_(?P<track>[A-Za-z]*[0-9]{1,3})_s1lookpass_(?P<look_pass>[A-Za-z]+)(?:\.tif)?$"
)
_SEN12TS_LABEL = re.compile(rf"^{_PLACE}_date_(?P<year>[0-9]{{4}})_lulc_label(?:\.tif)?$")

_LOOKS = {
    "ascending": "ascending", "asc": "ascending", "a": "ascending",
    "descending": "descending", "desc": "descending", "d": "descending", "unknown": "",
}  # fmt: skip
"""Look passes as SEN12TS, and tools that write its names, spell them."""
_HYP3_RTC = re.compile(
    r"^(?P<platform>S1[A-Z])_(?P<mode>IW|EW|SM|S[1-6])_(?P<time>[0-9]{8}T[0-9]{6})"
    r"_(?P<polarisation>[SD][VH])(?P<orbits>[PRO])_RTC(?P<posting>[0-9]{2})_(?P<software>G)"
    r"_(?P<options>[gs][pda][uw][nf][ec][dm])_(?P<unique>[0-9A-F]{4})(?:_(?P<layer>VV|VH|HH|HV|rgb"
    r"|dem|inc_map|inc_map_ell|ls_map|area))?(?P<extension>\.tif|\.zip)?$"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class OperaProduct:
    """An OPERA product id or file name: RTC-S1, RTC-S1-STATIC, CSLC-S1, CSLC-S1-STATIC."""

    kind: str
    track: int
    """Relative orbit."""
    burst: int
    swath: str
    time: str
    """Acquisition start ``yyyymmddThhmmss``, UTC; for STATIC the day ``yyyymmdd`` it is valid
    from."""
    generated: str | None = None
    """Time of processing; None for STATIC."""
    platform: str
    posting: int | None = None
    """Pixel edge in metres, RTC only."""
    polarisation: str | None = None
    """CSLC-S1 only."""
    version: str
    layer: str | None = None
    """Last part of a file name: ``VV``, ``mask``, ``local_incidence_angle``; None: the product."""

    @property
    def burst_id(self) -> str:
        """``T137-292318-IW1``, as in the name."""
        return f"T{self.track:03d}-{self.burst:06d}-{self.swath}"

    def __str__(self) -> str:
        """Return the id, without extension."""
        static = self.kind.endswith("STATIC")
        parts = [
            f"OPERA_L2_{self.kind}",
            self.burst_id,
            self.time if static else f"{self.time}Z",
            None if self.generated is None else f"{self.generated}Z",
            self.platform,
            None if self.posting is None else str(self.posting),
            self.polarisation,
            f"v{self.version}",
            self.layer,
        ]
        return "_".join(p for p in parts if p is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sen12tsPair:
    """Name of a SEN12TS file under ``s1/`` or ``s2/``; the same for both."""

    lat: str
    lon: str
    """Of the tile's centre, degrees, as written: up to four decimals, no trailing zeros."""
    s1_date: str
    """Newest of the four radar dates, ``yyyy-mm-dd``."""
    s2_date: str
    track: str
    """Relative orbit as written."""
    look_pass: str
    """``ascending`` or ``descending``, as written."""

    @property
    def place(self) -> str:
        """``lat_..._lon_...``: what the files of one tile share."""
        return f"lat_{self.lat}_lon_{self.lon}"

    @property
    def relative_orbit(self) -> int:
        """The digits of `track`."""
        return int(re.sub(r"\D", "", self.track))

    @property
    def orbit_state(self) -> str:
        """``ascending`` or ``descending``; empty where `look_pass` is ``unknown``."""
        return _LOOKS.get(self.look_pass.lower(), "")

    def __str__(self) -> str:
        """Return the file name."""
        return (
            f"{self.place}_s1date_{self.s1_date}_s2date_{self.s2_date}"
            f"_s1track_{self.track}_s1lookpass_{self.look_pass}.tif"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sen12tsLabel:
    """Name of a SEN12TS file under ``labels/``: one per tile."""

    lat: str
    lon: str
    year: int

    @property
    def place(self) -> str:
        """``lat_..._lon_...``: what the files of one tile share."""
        return f"lat_{self.lat}_lon_{self.lon}"

    def __str__(self) -> str:
        """Return the file name."""
        return f"{self.place}_date_{self.year:04d}_lulc_label.tif"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyp3Rtc:
    """A HyP3 RTC product or file name."""

    platform: str
    mode: str
    time: str
    """Acquisition start, ``yyyymmddThhmmss``."""
    polarisation: str
    """``DV``, ``DH``, ``SV`` or ``SH``."""
    orbits: str
    """``P`` precise, ``R`` restituted, ``O`` predicted."""
    posting: int
    """Metres."""
    software: str
    options: str
    """Six letters: gamma0 or sigma0 (g, s); power, decibel or amplitude (p, d, a); unmasked or
    water masked (u, w); not filtered or filtered (n, f); entire or clipped (e, c); by dead
    reckoning or matched to the DEM (d, m)."""
    unique: str
    layer: str | None
    extension: str | None

    def __str__(self) -> str:
        """Return the name."""
        layer = f"_{self.layer}" if self.layer else ""
        return (
            f"{self.platform}_{self.mode}_{self.time}_{self.polarisation}{self.orbits}"
            f"_RTC{self.posting:02d}_{self.software}_{self.options}_{self.unique}{layer}"
            f"{self.extension or ''}"
        )


def parse_opera(text: str) -> OperaProduct:
    """Return the parts of an OPERA product id or file name, of any of the four Sentinel-1 kinds.

    Raises
    ------
    CubeError
        Not such an id; a date, time, relative orbit or burst that there is not.
    """
    for pattern in _OPERA:
        found = pattern.fullmatch(text)
        if found is not None:
            g = parts(found, "OPERA")
            check_track(int(g["track"]), text)
            if not 1 <= int(g["burst"]) <= BURSTS:
                raise CubeError(f"{text!r} names burst {g['burst']}; there are 1 to {BURSTS}")
            numbers = {k: int(g[k]) for k in ("track", "burst", "posting") if g.get(k)}
            return OperaProduct(**{**g, **numbers})
    raise OtherForm(
        f"{text!r} is not an OPERA RTC-S1, CSLC-S1 or STATIC id such as "
        "OPERA_L2_RTC-S1_T137-292318-IW1_20250102T015857Z_20250102T190143Z_S1A_30_v1.0_VV.tif"
    )


def parse_sen12ts(text: str) -> Sen12tsPair | Sen12tsLabel:
    """Return the parts of a SEN12TS file name: of an image file or of a label file.

    Raises
    ------
    CubeError
        Not such a name; a date, place, relative orbit, look or year that there is not.
    """
    found = _SEN12TS_PAIR.fullmatch(text)
    if found is not None:
        pair = Sen12tsPair(**parts(found, "SEN12TS"))
        _check_place(pair.lat, pair.lon, text)
        check_track(pair.relative_orbit, text)
        if pair.look_pass.lower() not in _LOOKS:
            raise CubeError(f"{text!r} looks {pair.look_pass!r}; known are {', '.join(_LOOKS)}")
        return pair
    g = matched(
        _SEN12TS_LABEL,
        text,
        "SEN12TS",
        "lat_36.1234_lon_-119.5_s1date_2020-06-20_s2date_2020-06-19_s1track_137"
        "_s1lookpass_ascending.tif or lat_36.1234_lon_-119.5_date_2020_lulc_label.tif",
    )
    _check_place(g["lat"], g["lon"], text)
    if not 1900 <= int(g["year"]) <= 2100:
        raise CubeError(f"{text!r} is of year {g['year']}; labels are of 1900 to 2100")
    return Sen12tsLabel(lat=g["lat"], lon=g["lon"], year=int(g["year"]))


def _check_place(lat: str, lon: str, text: str) -> None:
    if abs(float(lat)) > 90 or abs(float(lon)) > 180:
        raise CubeError(f"{text!r} is at latitude {lat}, longitude {lon}: there is no such place")


def parse_hyp3_rtc(text: str) -> Hyp3Rtc:
    """Return the parts of the name of a HyP3 RTC product or of one of its files.

    Raises
    ------
    CubeError
        Not such a name; a time that there is not.
    """
    g = matched(_HYP3_RTC, text, "HyP3 RTC", "S1A_IW_20180128T161201_DVP_RTC30_G_gpuned_FD6A")
    return Hyp3Rtc(**{**g, "posting": int(g["posting"])})
