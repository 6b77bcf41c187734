"""The truth of a published world, kept apart from its archive."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from cubes.types import CubeError

from .geometry import aoi_window
from .noise import Array
from .optics import OpticalScene
from .params import CLASSES
from .radar import RadarScene
from .season import state
from .world import World

if TYPE_CHECKING:
    import xarray as xr


class TruthWriter:
    """Collects the truth of a world over its AOI and writes it on leaving."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.rows, self.columns = aoi_window(world.params)
        self.s2: list[tuple[OpticalScene, dict[str, Any]]] = []
        self.parts: dict[str, list[Any]] = {}

    def __enter__(self) -> TruthWriter:
        """Return itself."""
        return self

    def _cut(self, a: Any) -> Any:
        return a[self.rows, self.columns]

    def optical(self, scene: OpticalScene) -> None:
        """Keep an optical scene's truth."""
        add = self.parts.setdefault
        add("s2_time", []).append(np.datetime64(scene.date.time.replace(tzinfo=None), "ns"))
        add("ndvi", []).append(_pack(self._cut(scene.ndvi), 1e-4))
        clear = np.repeat(np.repeat(scene.clear, 2, axis=0), 2, axis=1)
        add("clear", []).append(self._cut(clear))
        add("s2_shift", []).append(scene.shift)

    def radar(self, scene: RadarScene) -> None:
        """Keep a pass's truth."""
        add = self.parts.setdefault
        now = state(self.world.params, self.world.land, self.world.season, scene.day)
        time = np.datetime64(scene.time.replace(tzinfo=None), "ns")
        add("s1_time", []).append(time)
        add("s1_track", []).append(scene.track)
        add("s1_shift", []).append(scene.shift)
        db = [10 * np.log10(np.maximum(self._cut(g), 1e-5)) for g in scene.gamma0]
        add("gamma0", []).append(np.stack([_pack(d, 1e-2) for d in db]))
        for name, layer, step in (
            ("lai", now.lai, 1e-3),
            ("canopy_water", now.water, 1e-3),
            ("structure", now.structure, 1e-3),
            ("soil_moisture", now.moisture, 1e-4),
            ("phase_screen", scene.screen, 1e-3),
        ):
            add(name, []).append(_pack(self._cut(layer), step))
        if scene.coherence is not None:
            add("pair_time", []).append(time)
            add("pair_track", []).append(scene.track)
            add("coherence", []).append(
                np.stack([_pack(self._cut(c), 1e-4) for c in scene.coherence])
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what was kept, unless an error passes through."""
        if kind is None:
            _write(self.folder, self.world, self.parts, (self.rows, self.columns))


SCALES = {
    "ndvi": (("s2_time", "y", "x"), 1e-4),
    "gamma0": (("s1_time", "pol", "y", "x"), 1e-2),
    "lai": (("s1_time", "y", "x"), 1e-3),
    "canopy_water": (("s1_time", "y", "x"), 1e-3),
    "structure": (("s1_time", "y", "x"), 1e-3),
    "soil_moisture": (("s1_time", "y", "x"), 1e-4),
    "phase_screen": (("s1_time", "y", "x"), 1e-3),
    "coherence": (("pair_time", "pol", "y", "x"), 1e-4),
}


def _pack(a: Array, step: float) -> Any:
    return np.clip(np.rint(a / np.float32(step)), -32767, 32767).astype(np.int16)


def _write(folder: Path, world: World, parts: dict[str, list[Any]], window: tuple[slice, slice]) -> None:
    folder.mkdir(parents=True)
    rows, columns = window
    land = world.land
    arrays: dict[str, Any] = {k: np.stack(v) for k, v in parts.items()}
    views = [world.view(t) for t in range(len(world.params.tracks))]
    arrays["incidence"] = np.stack([v.local[rows, columns] for v in views])
    arrays["elevation"] = land.elevation[rows, columns]
    arrays["label"] = land.label[rows, columns]
    arrays["parcel"] = land.parcel[rows, columns]
    x, y = land.grid.centres()
    arrays["x"], arrays["y"] = x[columns], y[rows]
    for name, array in sorted(arrays.items()):
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    manifest = {
        "world": world.params.name,
        "version": world.params.version,
        "seed": world.seed,
        "crs": f"EPSG:{land.grid.epsg}",
        "classes": list(CLASSES),
        "tracks": [[t.relative_orbit, t.orbit_state] for t in world.params.tracks],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def truth(path: str | Path) -> xr.Dataset:
    """Return the truth of a published world on its AOI's grid, float32 in physical units.

    For oracles and tests alone: no model may see it.

    Parameters
    ----------
    path : str or Path
        The folder that was published to, or its ``truth`` folder.

    Returns
    -------
    Dataset
        ``label`` (y, x) uint8 codes of attribute ``classes``; ``parcel`` (y, x) int32;
        ``elevation`` (y, x) m; ``incidence`` (track, y, x) degrees, local; ``ndvi`` and ``clear``
        (s2_time, y, x); ``gamma0`` (s1_time, pol, y, x) dB without speckle and noise; ``lai``,
        ``canopy_water``, ``structure`` (s1_time, y, x); ``soil_moisture`` (s1_time, y, x) m3/m3;
        ``phase_screen`` (s1_time, y, x) rad; ``coherence`` (pair_time, pol, y, x), noise included,
        of the 12-day pair that ends then. Pixel centres; no nodata.

    Raises
    ------
    CubeError
        No truth there.
    """
    import xarray as xr

    folder = Path(path)
    if not (folder / "manifest.json").is_file():
        folder = folder / "truth"
    if not (folder / "manifest.json").is_file():
        raise CubeError(
            f"no truth of a simulated world under {str(path)!r}: expected manifest.json in it or "
            "in its folder truth/"
        )
    manifest = json.loads((folder / "manifest.json").read_text())

    def load(name: str) -> Any:
        return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    data: dict[str, Any] = {
        name: (dims, load(name) * np.float32(step)) for name, (dims, step) in SCALES.items()
    }
    data["clear"] = (("s2_time", "y", "x"), load("clear"))
    data["s2_shift"] = (("s2_time", "axis"), load("s2_shift"))
    data["s1_shift"] = (("s1_time", "axis"), load("s1_shift"))
    data["incidence"] = (("track", "y", "x"), load("incidence"))
    for name in ("elevation", "label", "parcel"):
        data[name] = (("y", "x"), load(name))
    orbits = manifest["tracks"]
    return xr.Dataset(
        data,
        coords={
            "x": load("x"),
            "y": load("y"),
            "s2_time": load("s2_time"),
            "s1_time": load("s1_time"),
            "pair_time": load("pair_time"),
            "pol": ["vv", "vh"],
            "s1_track": ("s1_time", load("s1_track")),
            "pair_track": ("pair_time", load("pair_track")),
            "relative_orbit": ("track", [o for o, _ in orbits]),
            "orbit_state": ("track", [s for _, s in orbits]),
        },
        attrs={k: manifest[k] for k in ("world", "version", "seed", "crs", "classes")},
    )
