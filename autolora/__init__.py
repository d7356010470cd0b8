"""autolora: an overfitting-aware auto-tuning LoRA trainer; `autolora.api` describes the functions to call."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autolora.api import (
        configure,
        export_best,
        load_dataset,
        load_model,
        open_session,
        recipe,
        run_study,
        score_lora,
        train_recipe,
        verify_lora,
    )

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "configure",
    "export_best",
    "load_dataset",
    "load_model",
    "open_session",
    "recipe",
    "run_study",
    "score_lora",
    "train_recipe",
    "verify_lora",
]


def __getattr__(name: str) -> Any:
    """Return a function of the public API; `autolora.api` is imported only when one is asked for."""
    if name in __all__:
        return getattr(import_module("autolora.api"), name)
    raise AttributeError(f"module 'autolora' has no attribute '{name}'")
