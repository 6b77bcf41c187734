"""Learning side of DeepSentinel: batches, the fusion model, training, evaluation, embeddings.

Names are imported when first used, so that ``import deepsentinel`` costs nothing and torch is
loaded only by those who need it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepsentinel.batch import Batch, Normaliser, inputs, loader
    from deepsentinel.embed import embed, open_embeddings
    from deepsentinel.evaluate import evaluate
    from deepsentinel.model import Fusion, FusionConfig
    from deepsentinel.recipe import Recipe, load_recipe
    from deepsentinel.report import report
    from deepsentinel.train import Run, train

__version__ = "0.1.0"

_WHERE = {
    "Batch": "batch",
    "Fusion": "model",
    "FusionConfig": "model",
    "Normaliser": "batch",
    "Recipe": "recipe",
    "Run": "train",
    "embed": "embed",
    "evaluate": "evaluate",
    "inputs": "batch",
    "load_recipe": "recipe",
    "loader": "batch",
    "open_embeddings": "embed",
    "report": "report",
    "train": "train",
}

__all__ = [
    "Batch",
    "Fusion",
    "FusionConfig",
    "Normaliser",
    "Recipe",
    "Run",
    "embed",
    "evaluate",
    "inputs",
    "load_recipe",
    "loader",
    "open_embeddings",
    "report",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import and return an exported name on first use."""
    if name not in _WHERE:
        raise AttributeError(f"module 'deepsentinel' has no attribute {name!r}")
    value = getattr(import_module(f"deepsentinel.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the exported names and the module's own."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Package in which verbs that share a module's name (train, embed, evaluate) stay verbs.

    Importing ``deepsentinel.train`` would otherwise bind the module over the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _WHERE and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
