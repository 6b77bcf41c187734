"""A world: its parameters, its latents, and observations made as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .land import Landscape, landscape
from .load import load_params
from .optics import OpticalDate, OpticalScene, observe, optical_dates
from .params import Params
from .radar import RadarScene, Viewing, observe_track, viewing
from .season import Season, season


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class World:
    """Parameters, a seed, and the latents that follow from them."""

    params: Params
    seed: int
    land: Landscape
    season: Season

    @property
    def s2_dates(self) -> list[OpticalDate]:
        """Sentinel-2 acquisitions in order of time."""
        return optical_dates(self.params, self.seed)

    def s2(self, date: OpticalDate) -> OpticalScene:
        """Return one Sentinel-2 acquisition over the whole world, made now."""
        return observe(self.params, self.seed, (self.land, self.season), date)

    def view(self, track: int) -> Viewing:
        """Return the static geometry of a track."""
        return viewing(self.land, self.params.tracks[track])

    def s1(self, track: int) -> Iterator[RadarScene]:
        """Yield the passes of a track, made one after the other."""
        return observe_track(self.params, self.seed, (self.land, self.season), track)


def simulate(params: Params | str | Path, seed: int) -> World:
    """Return a world; the same parameters and seed make the same world to the last bit.

    Parameters
    ----------
    params : Params, str or Path
        Or the name of a shipped row, or the path of a TOML file.
    seed : int
        Not negative.

    Raises
    ------
    CubeError
        Unknown name, or bad parameters.
    """
    row = params if isinstance(params, Params) else load_params(params)
    land = landscape(row, seed)
    return World(params=row, seed=seed, land=land, season=season(row, seed, land))
