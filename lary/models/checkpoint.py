"""Weights in a single file as released: found, read without running anything in it, and accounted for key by key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.models.spec import ModelContext, ModelSpec
from lary.models.tensors import first_line, read_safetensors, unpickle
from lary.models.weights import HUB_SECONDS
from lary.types import LaryError, UsageError, as_path

if TYPE_CHECKING:
    import torch

WRAPPED = "module."
"""What training on several devices puts into key names."""


def find_checkpoint(spec: ModelSpec, context: ModelContext) -> Path:
    """The weight file of a model whose record names a file: given, in a given folder, or fetched from the hub.

    Raises:
        UsageError: no weights given, no such file, or the hub doesn't give it.
    """
    name = spec.weights.folder if spec.weights else None
    advice = f"Put {name} into MODEL_DIR, or pass --weights FILE." if name else "Pass --weights FILE."
    if context.weights is None:
        raise UsageError(f"Weights of '{spec.name}': none given. {advice}")
    path = as_path(context.weights)
    if path.is_dir() and name:
        path = path / name
    if path.is_file():
        return path
    if spec.weights and name and context.weights == spec.weights.hub:
        return _fetch(spec, name, context.revision or spec.weights.revision, advice)
    raise UsageError(f"Weights of '{spec.name}': {path} is not a file. {advice}")


def _fetch(spec: ModelSpec, name: str, revision: str | None, advice: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    repository = spec.weights.hub if spec.weights else None
    assert repository is not None
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, etag_timeout=HUB_SECONDS))
    except errors.GatedRepoError as error:
        reason = f"is gated: ask for access at https://huggingface.co/{repository} and run `hf auth login`"
        raise UsageError(f"Weights of '{spec.name}': {repository} {reason}. {advice}") from error
    except Exception as error:  # each HTTP library that huggingface_hub has used raises its own
        raise UsageError(
            f"Weights of '{spec.name}': {name} can't be fetched from {repository} ({first_line(error)}). {advice}"
        ) from error


def read_checkpoint(file: Path, entries: Sequence[str] = ("model", "state_dict")) -> dict[str, torch.Tensor]:
    """Tensors by key, floating-point ones in float32; keys lose every ``module.``.

    Args:
        file: safetensors, or a file of ``torch.save`` that holds tensors by key, or has them under one of `entries`.

    Raises:
        LaryError: the file is damaged, holds code, or holds something else than tensors.
    """
    import torch

    content: Any = read_safetensors(file) if file.suffix == ".safetensors" else unpickle(file)
    if isinstance(content, Mapping):
        content = next((content[entry] for entry in entries if isinstance(content.get(entry), Mapping)), content)
    found = list(content.items()) if isinstance(content, Mapping) else []
    if not found or not all(isinstance(value, torch.Tensor) for _, value in found):
        places = " or ".join(f"'{entry}'" for entry in entries)
        raise LaryError(
            f"The weights {file} hold no tensors by name, neither at the top nor under {places}: is it the right one?"
        )
    # Copies, since a file of torch.save is only mapped: what else it holds, such as a training state, is never read.
    return {
        str(key).replace(WRAPPED, ""): value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        for key, value in found
    }


def take(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Remove the tensors whose key starts with `prefix` and return them by the rest of their key."""
    return {key[len(prefix) :]: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}
