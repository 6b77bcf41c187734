"""Parameters of a simulated world: frozen nouns read from a TOML file, one section per process.

Every process (relief, land, canopy, weather, optics, clouds, registration, speckle, radar,
decorrelation, delay) has a section and a function of its own, so that each can be fitted to
measured pixels, or replaced, without touching another.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

CLASSES: tuple[str, ...] = (
    "nodata",
    "winter_wheat",
    "winter_barley",
    "rapeseed",
    "maize",
    "sugar_beet",
    "potato",
    "grass",
    "broadleaf",
    "conifer",
    "water",
    "built_up",
    "bare",
)
"""Class names of the truth, in order of their codes; 0 is nodata."""

WORLDCOVER = (0, 40, 40, 40, 40, 40, 40, 30, 10, 10, 80, 50, 60)
"""ESA WorldCover code of each class of `CLASSES`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the world lies and when its season begins."""

    epsg: int
    """UTM zone of the AOI (32601..32660), in which the latents live."""
    x0: float
    """Western edge of the AOI, metres; a multiple of 2,560."""
    y0: float
    """Southern edge of the AOI, metres; a multiple of 2,560."""
    width: int
    """Width of the AOI in pixels of 10 m."""
    height: int
    """Height of the AOI in pixels of 10 m."""
    margin: int
    """Pixels of 10 m simulated around the AOI."""
    start: str
    """First day of the season, ISO date, UTC."""
    days: int
    """Length of the season in days."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relief:
    """Fractal surface."""

    height: float
    """Standard deviation of elevation in metres before the plains are flattened."""
    base: float
    """Mean elevation, metres above the geoid."""
    hurst: float
    """Hurst exponent: 1 smooth, 0.5 rough."""
    plain: float
    """Quantile of height below which relief is flattened to a tenth (valley floors)."""
    scarp: float
    """Height of the one escarpment in metres: where layover and shadow come from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Land:
    """Fields, woods, water, villages."""

    parcel: float
    """Mean parcel size in metres."""
    forest: float
    """Share of parcels that are woods."""
    grass: float
    """Share of parcels that are grassland."""
    bare: float
    """Share of parcels that stay bare (quarries, fallow)."""
    water: float
    """Share of pixels in lakes."""
    villages: int
    """Number of villages per 100 km2."""
    crops: dict[str, float]
    """Relative frequency of each crop."""
    vigour: float
    """Log standard deviation of canopy density within a parcel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """Double-logistic season and radar coefficients of one class."""

    sos: float
    """Day of year of fastest greening."""
    eos: float
    """Day of year of fastest yellowing."""
    rise: float
    """Time scale of greening, days."""
    fall: float
    """Time scale of yellowing, days."""
    lai_min: float
    """Leaf area index outside the season."""
    lai_max: float
    """Leaf area index at the peak."""
    harvest: float = 0.0
    """Days after `eos` at which the canopy is cut; 0 is never."""
    till: float = 0.0
    """Days before `sos` at which the soil is tilled; 0 is never."""
    mow: float = 0.0
    """Mean days between two cuts; 0 is never."""
    nir: float = 1.0
    """Near-infrared reflectance of its leaves, relative."""
    flower: float = 0.0
    """Days after `sos` of full bloom (yellow); 0 is never."""
    stand: float
    """Structure (stems, ears, wood) at full growth, relative."""
    water_lag: float
    """Days by which canopy water trails greenness."""
    a_vv: float
    """Water-cloud A of VV, linear power of a full closed canopy."""
    b_vv: float
    """Water-cloud B of VV, nepers per unit of canopy water."""
    a_vh: float
    """Water-cloud A of VH."""
    b_vh: float
    """Water-cloud B of VH."""
    soil_vv: float
    """Backscatter of the dry ground beneath, VV, dB at 38 degrees."""
    soil_vh: float
    """Backscatter of the dry ground beneath, VH, dB at 38 degrees."""
    coherence: float
    """12-day coherence of the undisturbed ground without canopy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Canopy:
    """Spread of the seasons between parcels and what couples greenness to the radar."""

    shift: float
    """Days added to every season (the shifted worlds' knob)."""
    sos_sd: float
    """Standard deviation of the start between parcels, days."""
    eos_sd: float
    """Standard deviation of the end between parcels, days."""
    amplitude_sd: float
    """Log standard deviation of the peak between parcels."""
    structure_sd: float
    """Log standard deviation of structure between parcels, independent of greenness."""
    water_sd: float
    """Log standard deviation of canopy water between parcels, independent of greenness."""
    dependence: float
    """1: the radar sees each parcel's own canopy; 0: only its class and the season (the
    negative-control world)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """Rain, soil moisture, frost."""

    rain_probability: float
    """Chance of rain on a day."""
    rain_mean: float
    """Mean rain of a rainy day, mm (exponential)."""
    dry_days: float
    """e-folding time of soil drying, days."""
    moisture_min: float
    """Residual volumetric moisture, m3/m3."""
    moisture_max: float
    """Saturated volumetric moisture, m3/m3."""
    moisture_sd: float
    """Spatial standard deviation of moisture, m3/m3."""
    temperature: float
    """Mean annual temperature, degrees C at the base elevation."""
    temperature_amplitude: float
    """Half the difference of summer and winter, degrees C."""
    temperature_sd: float
    """Day-to-day standard deviation, degrees C."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optics:
    """Sentinel-2 acquisitions."""

    dates: int
    """Number of acquisitions."""
    step: int
    """Days between acquisitions."""
    first: int
    """Day of the season of the first one."""
    noise: float
    """Standard deviation of reflectance noise per band and pixel."""
    texture: float
    """Log standard deviation of within-class brightness, constant in time."""
    illumination: float
    """How much of the terrain's cosine of sun incidence is left in the product (0..1)."""
    haze: float
    """Standard deviation of residual aerosol reflectance in the blue."""
    old_baseline: float
    """Share of acquisitions published with a baseline before 04.00 (no offset)."""
    swath_edge: bool
    """Whether every other relative orbit cuts the north-western corner of the area."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clouds:
    """Clouds, shadows and the errors of their mask."""

    clear: float
    """Share of acquisitions with almost no cloud."""
    overcast: float
    """Share of acquisitions that are nearly covered."""
    mean: float
    """Mean cloud fraction of the others."""
    slope: float
    """Spectral slope of the cloud field (power law exponent of its amplitude)."""
    thickness: float
    """Optical thickness per standard deviation above the cloud's edge."""
    cirrus: float
    """Chance of a cirrus veil."""
    miss: float
    """Optical thickness below which the classification sees nothing."""
    false_bright: float
    """Chance that a bright built-up or bare 20 m pixel is called cloud."""
    shadow_miss: float
    """Share of shadow that is not marked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """Misregistration, in pixels of 10 m."""

    s2_sd: float
    """Per acquisition and axis, standard deviation."""
    s1_offset: float
    """Length of each track's constant offset."""
    s1_sd: float
    """Per acquisition and axis, standard deviation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """One Sentinel-1 track."""

    relative_orbit: int
    orbit_state: str
    """``ascending`` or ``descending``."""
    first: int
    """Day of the season of the first pass."""
    time: str
    """UTC time of day, HH:MM:SS."""
    look_azimuth: float
    """Azimuth from target to sensor, degrees clockwise from true north."""
    incidence: float
    """Ellipsoid incidence at the area's centre, degrees."""
    epsg: int
    """UTM zone of the scenes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Radar:
    """Sentinel-1 acquisitions and backscatter."""

    dates: int
    """Passes per track, 12 days apart."""
    moisture_db: float
    """Change of the ground's backscatter with moisture, dB per m3/m3."""
    roughness_db: float
    """Standard deviation of soil roughness between parcels, dB."""
    texture_db: float
    """Standard deviation of pixel texture, constant in time, dB."""
    angle_power: float
    """gamma nought falls as cos(incidence) to this power."""
    frost_db: float
    """Change on frozen ground and canopy, dB."""
    calibration_db: float
    """Standard deviation of each acquisition's calibration, dB."""
    noise_db: float
    """Noise-equivalent gamma nought, dB."""
    noise_residual: float
    """Share of the noise power that the processor's subtraction leaves behind."""
    clip_db: float
    """Values below are clipped to it after noise subtraction, dB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Speckle:
    """Point spread of the complex image and multilooking, metres (standard deviations)."""

    psf_range: float
    """Of the complex amplitude along x."""
    psf_azimuth: float
    """Of the complex amplitude along y."""
    look_range: float
    """Of the intensity average along x."""
    look_azimuth: float
    """Of the intensity average along y."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decorrelation:
    """What lowers the coherence of a 12-day pair."""

    growth: float
    """Nepers per unit of change in canopy structure plus water."""
    volume: float
    """Nepers per unit of canopy water (wind)."""
    rain: float
    """Nepers per m3/m3 of change in soil moisture."""
    event: float
    """Coherence factor left by harvest, mowing or tillage."""
    cross: float
    """VH coherence = VV coherence to this power."""
    patchiness: float
    """Log standard deviation of the loss in space."""
    window_range: int
    """Estimation window along x in 5 m samples."""
    window_azimuth: int
    """Estimation window along y in 10 m samples."""
    posting: int
    """Pixel size of the published pairs, metres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delay:
    """Residual atmosphere in the interferometric phase."""

    turbulent: float
    """Standard deviation of one date's turbulent phase, rad."""
    slope: float
    """Power law exponent of its amplitude spectrum."""
    stratified: float
    """Standard deviation of one date's phase per 100 m of height, rad."""
    ramp: float
    """Standard deviation of one date's residual ramp across the area, rad."""
    moisture: float
    """Phase per m3/m3 of soil moisture, rad."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """Awkward shapes of the published archive."""

    west: tuple[float, float]
    """Extent of the western MGRS tile along x, as fractions of the world."""
    east: tuple[float, float]
    """Extent of the eastern MGRS tile along x, as fractions of the world."""
    split_granules: int
    """S2 acquisitions published as two complementary granules of one tile."""
    duplicates: int
    """S2 acquisitions published twice, the second time reprocessed with a newer baseline."""
    split_slices: int
    """Passes per track published as two overlapping slices."""
    zero_border: float
    """Width of the zero-filled border of RTC scenes, metres."""
    missing_corner: bool
    """Whether one RTC pass per track misses part of the area."""
    drop_asset: str = ""
    """An S2 asset left out of the second acquisition; empty for none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Params:
    """Everything that, with a seed, makes a world."""

    name: str
    version: int
    place: Place
    relief: Relief
    land: Land
    canopy: Canopy
    weather: Weather
    optics: Optics
    clouds: Clouds
    registration: Registration
    radar: Radar
    tracks: tuple[Track, ...]
    speckle: Speckle
    decorrelation: Decorrelation
    delay: Delay
    shapes: Shapes
    classes: dict[str, Crop]

    @property
    def start(self) -> datetime:
        """First day of the season, midnight UTC."""
        return datetime.fromisoformat(self.place.start).replace(tzinfo=UTC)
