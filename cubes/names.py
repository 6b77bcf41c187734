"""Product ids: parse and build; pure strings, strict, platforms open-ended.

Sources: Sentinel-1 Product Definition (naming), Sentinel-2 Products Specification Document 14.9
(compact naming, datastrip ids).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cubes.types import CubeError

_S2_PRODUCT = re.compile(
    r"^(?P<platform>S2[A-Z])_MSI(?P<level>L1C|L2A)_(?P<time>\d{8}T\d{6})"
    r"(?:_N(?P<baseline>\d{4}))?_R(?P<orbit>\d{3})_T(?P<tile>\d{2}[A-Z]{3})"
    r"_(?P<generated>\d{8}T\d{6})(?:\.SAFE)?$"
)
_S2_DATASTRIP = re.compile(
    r"^(?P<platform>S2[A-Z])_(?P<file_class>[A-Z]{4})_MSI_(?P<level>L1C|L2A)_DS_"
    r"(?P<centre>[A-Z0-9_]{4})_(?P<created>\d{8}T\d{6})_S(?P<time>\d{8}T\d{6})"
    r"_N(?P<baseline>\d{2}\.\d{2})$"
)
_S1_PRODUCT = re.compile(
    r"^(?P<platform>S1[A-Z])_(?P<mode>IW|EW|SM|S[1-6]|WV)_(?P<kind>GRD[FHM]|SLC_|RAW_|OCN_)"
    r"_(?P<level>\d)(?P<product_class>[SANC])(?P<polarisation>SV|SH|DV|DH|VV|HH|VH|HV)"
    r"_(?P<start>\d{8}T\d{6})_(?P<stop>\d{8}T\d{6})_(?P<orbit>\d{6})_(?P<datatake>[0-9A-F]{6})"
    r"(?:_(?P<unique>[0-9A-F]{4}))?(?P<suffix>_rtc)?(?:\.SAFE)?$"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class S2Product:
    """A Sentinel-2 product id; `baseline` is None in the Planetary Computer's shortened form."""

    platform: str
    level: str
    time: str
    """Datatake sensing start, ``yyyymmddThhmmss``."""
    baseline: str | None
    """``0509`` for 05.09."""
    orbit: int
    tile: str
    generated: str

    def __str__(self) -> str:
        """Return the id."""
        baseline = f"_N{self.baseline}" if self.baseline else ""
        return (
            f"{self.platform}_MSI{self.level}_{self.time}{baseline}"
            f"_R{self.orbit:03d}_T{self.tile}_{self.generated}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class S2Datastrip:
    """A Sentinel-2 datastrip id."""

    platform: str
    file_class: str
    level: str
    centre: str
    """Four characters, padded with ``_``."""
    created: str
    time: str
    """Acquisition (validity) start."""
    baseline: str
    """``05.09``."""

    def __str__(self) -> str:
        """Return the id."""
        return (
            f"{self.platform}_{self.file_class}_MSI_{self.level}_DS_{self.centre}"
            f"_{self.created}_S{self.time}_N{self.baseline}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class S1Product:
    """A Sentinel-1 product id; `unique` and `suffix` (``_rtc``) are optional."""

    platform: str
    mode: str
    kind: str
    level: str
    product_class: str
    polarisation: str
    start: str
    stop: str
    orbit: int
    """Absolute orbit."""
    datatake: str
    unique: str | None
    suffix: str | None

    @property
    def relative_orbit(self) -> int | None:
        """Relative orbit 1..175, by ESA's rule for A and B; None for platforms without one here.

        Source: Sentinel-1 orbit numbering as used by ESA's SNAP and ASF: A: (orbit - 73) mod 175
        + 1, B: (orbit - 27) mod 175 + 1.
        """
        shift = {"S1A": 73, "S1B": 27}.get(self.platform)
        return None if shift is None else (self.orbit - shift) % 175 + 1

    def __str__(self) -> str:
        """Return the id."""
        unique = f"_{self.unique}" if self.unique else ""
        return (
            f"{self.platform}_{self.mode}_{self.kind}_{self.level}{self.product_class}"
            f"{self.polarisation}_{self.start}_{self.stop}_{self.orbit:06d}_{self.datatake}"
            f"{unique}{self.suffix or ''}"
        )


def _match(pattern: re.Pattern[str], text: str, what: str, example: str) -> dict[str, str | None]:
    found = pattern.match(text)
    if found is None:
        raise CubeError(f"{text!r} is not a {what} id such as {example}")
    return found.groupdict()


def parse_s2_product(text: str) -> S2Product:
    """Return the parts of a Sentinel-2 product id (with or without baseline and ``.SAFE``).

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = _match(
        _S2_PRODUCT,
        text,
        "Sentinel-2 product",
        "S2A_MSIL2A_20230116T021341_N0509_R060_T50KPC_20230116T112621",
    )
    return S2Product(**{**g, "orbit": int(g["orbit"] or 0)})  # type: ignore[arg-type]


def parse_s2_datastrip(text: str) -> S2Datastrip:
    """Return the parts of a Sentinel-2 datastrip id.

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = _match(
        _S2_DATASTRIP,
        text,
        "Sentinel-2 datastrip",
        "S2B_OPER_MSI_L2A_DS_2BPS_20230820T124817_S20230820T094908_N05.09",
    )
    return S2Datastrip(**g)  # type: ignore[arg-type]


def parse_s1_product(text: str) -> S1Product:
    """Return the parts of a Sentinel-1 product id (also in the Planetary Computer's RTC form).

    Raises
    ------
    CubeError
        Not such an id.
    """
    g = _match(
        _S1_PRODUCT,
        text,
        "Sentinel-1 product",
        "S1A_IW_GRDH_1SDV_20220518T054334_20220518T054359_043261_052A9D_60B6",
    )
    return S1Product(**{**g, "orbit": int(g["orbit"] or 0)})  # type: ignore[arg-type]
