"""lary: how much of an action does a visual representation hold?

The names in `__all__` are the public interface; all others may change. They
are loaded on first use, so that ``import lary`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lary import compat  # noqa: F401 (keeps the import paths of version 0.1)

if TYPE_CHECKING:
    from lary.data.spec import ActionSpace, DatasetSpec, LabelSpace, Split, register_dataset
    from lary.models.running import load_model
    from lary.models.spec import ModelSpec, Preprocess, Weights, register_model
    from lary.results.compare import compare, load_results, load_samples
    from lary.results.report import write_report
    from lary.runs.api import classify, controls, extract, reconstruct, regress, run, train_lam
    from lary.types import Encoder, Latents

__version__ = "0.2.0"

# The names of the imports above, which only type checkers read.
_HOMES = {
    "lary.data.spec": ("ActionSpace", "DatasetSpec", "LabelSpace", "Split", "register_dataset"),
    "lary.models.running": ("load_model",),
    "lary.models.spec": ("ModelSpec", "Preprocess", "Weights", "register_model"),
    "lary.results.compare": ("compare", "load_results", "load_samples"),
    "lary.results.report": ("write_report",),
    "lary.runs.api": ("classify", "controls", "extract", "reconstruct", "regress", "run", "train_lam"),
    "lary.types": ("Encoder", "Latents"),
}
__all__ = [
    "ActionSpace",
    "DatasetSpec",
    "Encoder",
    "LabelSpace",
    "Latents",
    "ModelSpec",
    "Preprocess",
    "Split",
    "Weights",
    "classify",
    "compare",
    "controls",
    "extract",
    "load_model",
    "load_results",
    "load_samples",
    "reconstruct",
    "register_dataset",
    "register_model",
    "regress",
    "run",
    "train_lam",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Load a name of the public interface on its first use."""
    import importlib

    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'lary' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
