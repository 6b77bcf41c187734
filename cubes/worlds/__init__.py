"""Simulated worlds with known truth, published as COG and STAC."""

from .load import load_params, shipped_params
from .params import CLASSES, Params
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
