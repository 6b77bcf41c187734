"""Simulated worlds with known truth, published as COG and STAC."""

from .params import CLASSES, Params, load_params, shipped_params
from .publish import Published, publish
from .truth import truth
from .world import World, simulate

__all__ = [
    "CLASSES",
    "Params",
    "Published",
    "World",
    "load_params",
    "publish",
    "shipped_params",
    "simulate",
    "truth",
]
