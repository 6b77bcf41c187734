"""SEN12TS's triplets: which dates of a cube make one, and the files that it becomes.

A triplet (Conlon 2022, SEN12TS) is a radar series, a Sentinel-2 image and a label map of one tile:

* ``s1/``: float32, four dates newest first, each VH, VV (dB), coherence, phase (rad); then local
  incidence and slope (degrees), and a mask that is 1 where all of it is usable (what the data set
  calls shadow and layover);
* ``s2/``: int16, twelve bands (reflectance x 10,000, clipped to 0..10,000), scene classification,
  and a mask that is 1 where clear;
* ``labels/``: int16, one code, one file per tile.

Missing numbers are -3000 in all three. Rule of the series: four dates 12 days apart on one track,
each with coherence of a 12-day pair that ends there; the Sentinel-2 image within three days of the
newest, by calendar date as the file names have them.
"""

from __future__ import annotations

from cubes.sen12ts.bands import Optical, Radar
from cubes.sen12ts.choose import Rule, candidates, series
from cubes.sen12ts.read import inventory, read, read_all
from cubes.sen12ts.write import export, label, optical, radar

__all__ = [
    "Optical",
    "Radar",
    "Rule",
    "candidates",
    "export",
    "inventory",
    "label",
    "optical",
    "radar",
    "read",
    "read_all",
    "series",
]
