"""The truth of a published world, kept apart from its archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cubes.types import CubeError

from .geometry import aoi_window
from .optics import OpticalScene
from .params import CLASSES
from .radar import RadarScene
from .season import state
from .world import World

if TYPE_CHECKING:
    import xarray as xr
    import zarr

# Name: dimensions, step of the stored int16 (0: stored as is), units.
LAYERS: dict[str, tuple[tuple[str, ...], float, str]] = {
    "ndvi": (("s2_time", "y", "x"), 1e-4, "1"),
    "clear": (("s2_time", "y", "x"), 0, ""),
    "gamma0": (("s1_time", "pol", "y", "x"), 1e-2, "dB"),
    "lai": (("s1_time", "y", "x"), 1e-3, "1"),
    "canopy_water": (("s1_time", "y", "x"), 1e-3, "1"),
    "structure": (("s1_time", "y", "x"), 1e-3, "1"),
    "soil_moisture": (("s1_time", "y", "x"), 1e-4, "m3 m-3"),
    "phase_screen": (("s1_time", "y", "x"), 1e-3, "rad"),
    "coherence": (("pair_time", "pol", "y", "x"), 1e-4, "1"),
}


class TruthWriter:
    """Writes the truth of a world over its AOI as a Zarr v3 group, one acquisition at a time."""

    def __init__(self, folder: Path, world: World) -> None:
        import zarr

        self.world, self.window = world, aoi_window(world.params)
        p = world.params
        attributes = {
            "world": p.name,
            "version": p.version,
            "seed": world.seed,
            "crs": f"EPSG:{p.place.epsg}",
            "classes": list(CLASSES),
        }
        self.group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
        n_s1 = len(p.tracks) * p.radar.dates
        self.sizes = {
            "s2_time": p.optics.dates,
            "s1_time": n_s1,
            "pair_time": n_s1 - len(p.tracks),
            "pol": 2,
            "y": p.place.height,
            "x": p.place.width,
        }
        self.done = {"s2_time": 0, "s1_time": 0, "pair_time": 0}
        self.shifts: dict[str, list[tuple[float, float]]] = {"s2": [], "s1": []}
        self.times: dict[str, list[Any]] = {"s2_time": [], "s1_time": [], "pair_time": []}
        self.tracks: dict[str, list[int]] = {"s1_time": [], "pair_time": []}
        self.arrays = {name: self._create(name) for name in LAYERS}

    def _create(self, name: str) -> zarr.Array[Any]:
        dims, step, units = LAYERS[name]
        shape = tuple(self.sizes[d] for d in dims)
        attributes: dict[str, Any] = {"dtype": "bool"}
        if step:
            attributes = {"scale_factor": step, "units": units}
        return self.group.create_array(
            name,
            shape=shape,
            chunks=(1, *shape[1:]),
            dtype="int16" if step else "int8",
            compressors=_codec(),
            dimension_names=dims,
            attributes=attributes,
        )

    def _add(self, name: str, *layers: NDArray[Any]) -> None:
        dims, step, _ = LAYERS[name]
        rows, columns = self.window
        cut = np.stack([a[rows, columns] for a in layers])
        if step:
            cut = np.clip(np.rint(cut / np.float32(step)), -32767, 32767)
        stored = cut.astype(np.int16 if step else np.int8)
        self.arrays[name][self.done[dims[0]]] = stored if dims[1] == "pol" else stored[0]

    def optical(self, scene: OpticalScene) -> None:
        """Write an optical scene's truth."""
        self._add("ndvi", scene.ndvi)
        self._add("clear", np.repeat(np.repeat(scene.clear, 2, axis=0), 2, axis=1))
        self.times["s2_time"].append(np.datetime64(scene.date.time.replace(tzinfo=None), "s"))
        self.shifts["s2"].append(scene.shift)
        self.done["s2_time"] += 1

    def radar(self, scene: RadarScene) -> None:
        """Write a pass's truth."""
        now = state(self.world.params, self.world.land, self.world.season, scene.day)
        time = np.datetime64(scene.time.replace(tzinfo=None), "s")
        self._add("gamma0", *(10 * np.log10(np.maximum(g, 1e-5)) for g in scene.gamma0))
        self._add("lai", now.lai)
        self._add("canopy_water", now.water)
        self._add("structure", now.structure)
        self._add("soil_moisture", now.moisture)
        self._add("phase_screen", scene.screen)
        self.times["s1_time"].append(time)
        self.tracks["s1_time"].append(scene.track)
        self.shifts["s1"].append(scene.shift)
        self.done["s1_time"] += 1
        if scene.coherence is not None:
            self._add("coherence", *scene.coherence)
            self.times["pair_time"].append(time)
            self.tracks["pair_time"].append(scene.track)
            self.done["pair_time"] += 1

    def close(self) -> None:
        """Write what does not change and the coordinates."""
        world, (rows, columns) = self.world, self.window
        land, tracks = world.land, world.params.tracks
        x, y = land.grid.centres()
        put = self._put
        put("x", ("x",), x[columns])
        put("y", ("y",), y[rows])
        put("elevation", ("y", "x"), land.elevation[rows, columns], units="m")
        put("label", ("y", "x"), land.label[rows, columns])
        put("parcel", ("y", "x"), land.parcel[rows, columns])
        views = np.stack([world.view(t).local[rows, columns] for t in range(len(tracks))])
        put("incidence", ("track", "y", "x"), views, units="degrees")
        put("relative_orbit", ("track",), np.array([t.relative_orbit for t in tracks]))
        ascending = np.array([t.orbit_state == "ascending" for t in tracks], np.int8)
        put("ascending", ("track",), ascending, dtype="bool")
        for dim, times in self.times.items():
            seconds = np.array(times).astype("datetime64[s]").astype(np.int64)
            put(dim, (dim,), seconds, units="seconds since 1970-01-01", calendar="standard")
        for dim, index in self.tracks.items():
            put(dim.replace("time", "track"), (dim,), np.array(index, np.int64))
        for sensor, shifts in self.shifts.items():
            put(f"{sensor}_shift", (f"{sensor}_time", "axis"), np.array(shifts), units="m")

    def _put(self, name: str, dims: tuple[str, ...], values: NDArray[Any], **attrs: Any) -> None:
        array = self.group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            compressors=_codec(),
            dimension_names=dims,
            attributes=dict(attrs),
        )
        array[...] = values


def _codec() -> Any:
    from zarr.codecs import ZstdCodec

    return ZstdCodec(level=1)


def truth(path: str | Path) -> xr.Dataset:
    """Return the truth of a published world on its AOI's grid, lazily, in physical units.

    For oracles and tests alone: no model may see it.

    Parameters
    ----------
    path : str or Path
        The folder that was published to, or its ``truth`` folder.

    Returns
    -------
    Dataset
        Coordinates are pixel centres; no nodata. ``label`` (y, x) uint8 codes of the attribute
        ``classes``; ``parcel`` (y, x) int32; ``elevation`` (y, x) m; ``incidence`` (track, y, x)
        degrees, local; ``ndvi`` (s2_time, y, x) of the surface; ``clear`` (s2_time, y, x) bool,
        True without cloud and shadow; ``gamma0`` (s1_time, pol, y, x) dB without speckle and noise;
        ``lai``, ``canopy_water``, ``structure`` (s1_time, y, x); ``soil_moisture``
        (s1_time, y, x) m3 m-3; ``phase_screen`` (s1_time, y, x) rad; ``coherence``
        (pair_time, pol, y, x), noise included, of the 12-day pair that ends at pair_time;
        ``s1_track`` and ``pair_track`` index (track,).

    Raises
    ------
    CubeError
        No truth there.
    """
    import xarray as xr

    folder = Path(path)
    if not (folder / "gamma0").is_dir():
        folder = folder / "truth"
    if not (folder / "gamma0").is_dir():
        raise CubeError(
            f"no truth of a simulated world at {str(path)!r}: it is neither a folder that was "
            "published to nor its folder truth/"
        )
    data: xr.Dataset = xr.open_zarr(folder, consolidated=False, chunks=None, zarr_format=3)
    return data.assign_coords(pol=["vv", "vh"])
