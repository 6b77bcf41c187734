"""Learning side of DeepSentinel: batches, the fusion model, training, evaluation, embeddings.

Names are imported when first used, so that ``import deepsentinel`` costs nothing and torch is
loaded only by those who need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepsentinel.embedding.embed import embed, open_embeddings
    from deepsentinel.evaluation.evaluate import Evaluation, Options, assess, evaluate
    from deepsentinel.loading.batch import Batch, Normaliser, inputs, loader
    from deepsentinel.model import Fusion, FusionConfig
    from deepsentinel.pictures.report import report
    from deepsentinel.recipe import Recipe, load_recipe
    from deepsentinel.training.train import Run, train

__version__ = "0.1.0"

_WHERE = {
    "Batch": "loading.batch",
    "Evaluation": "evaluation.evaluate",
    "Fusion": "model",
    "FusionConfig": "model",
    "Normaliser": "loading.batch",
    "Options": "evaluation.evaluate",
    "Recipe": "recipe",
    "Run": "training.train",
    "assess": "evaluation.evaluate",
    "embed": "embedding.embed",
    "evaluate": "evaluation.evaluate",
    "inputs": "loading.batch",
    "load_recipe": "recipe",
    "loader": "loading.batch",
    "open_embeddings": "embedding.embed",
    "report": "pictures.report",
    "train": "training.train",
}

__all__ = [
    "Batch",
    "Evaluation",
    "Fusion",
    "FusionConfig",
    "Normaliser",
    "Options",
    "Recipe",
    "Run",
    "assess",
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
