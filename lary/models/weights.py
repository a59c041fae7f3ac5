"""Weights from a folder or the hub: safe formats only, every key accounted for, and a digest that names them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.fileio import digest, inside, read_json
from lary.models.spec import ModelContext, ModelSpec
from lary.models.tensors import first_line, listed, read_safetensors, sha256_of, told, unpickle
from lary.runtime import log
from lary.types import LaryError, UsageError, as_path

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
HUB_SECONDS = 10
"""How long the hub may take to answer before its cache, or an error, answers instead."""


@dataclass(frozen=True)
class Source:
    """Where weights were found: a folder, the hub's commit if they came from there, and the folder's digest.

    The digest covers the names and contents of ``config.json`` and of the weight files that are read.
    """

    folder: Path
    files: tuple[Path, ...]
    digest: str
    revision: str | None = None


def find_weights(spec: ModelSpec, context: ModelContext) -> Source:
    """The folder of a model's weights, fetched from the hub where they don't lie on disk.

    Raises:
        UsageError: no weights given, the hub can't be reached or doesn't give them, or the folder holds none.
    """
    location = context.weights
    if location is None:
        raise UsageError(f"Weights of '{spec.name}': none given. {_advice(spec)}")
    path, revision = as_path(location), None
    if not path.exists():
        pinned = spec.weights.revision if spec.weights and location == spec.weights.hub else None
        path = fetch(spec, location, context.revision or pinned)
        revision = path.name
    elif path.is_file():
        path = path.parent
    files = weight_files(path)
    return Source(path, files, _digest([path / CONFIG, *files]), revision)


def fetch(spec: ModelSpec, repository: str, revision: str | None) -> Path:
    """Configuration and weights of a hub repository, downloaded or from the hub's cache; returns their folder.

    A pinned commit that lies in the cache needs no network. Pickled weights are fetched only from a repository that
    has no safetensors.

    Raises:
        UsageError: why the hub doesn't give them, and which setting names a folder instead.
    """
    import huggingface_hub
    from huggingface_hub import errors

    cached = None
    try:
        cached = _cached(repository, revision)
        if cached is not None and revision is not None:
            return cached
        about = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=HUB_SECONDS)
        safe = any(file.rfilename.endswith(".safetensors") for file in about.siblings or ())
        wanted = [CONFIG, "*.safetensors*" if safe else "*.bin*"]
        return Path(huggingface_hub.snapshot_download(repository, revision=about.sha, allow_patterns=wanted))
    except errors.GatedRepoError as error:
        reason = f"is gated: ask for access at https://huggingface.co/{repository} and run `hf auth login`"
        raise UsageError(_refusal(spec, repository, reason)) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(_refusal(spec, repository, "is neither a folder here nor a public repository")) from error
    except errors.HFValidationError as error:
        raise UsageError(_refusal(spec, repository, "is neither a folder here nor the name of a repository")) from error
    except Exception as error:  # each HTTP library that huggingface_hub has used raises its own
        if cached is not None:
            log.info("%s: the hub can't be reached, %s comes from its cache", spec.name, repository)
            return cached
        raise UsageError(_refusal(spec, repository, f"can't be fetched from the hub ({first_line(error)})")) from error


def _cached(repository: str, revision: str | None) -> Path | None:
    """The folder of a complete earlier download."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
        weight_files(folder)
    except (LocalEntryNotFoundError, LaryError):
        return None
    return folder if (folder / CONFIG).is_file() else None


def _refusal(spec: ModelSpec, repository: str, reason: str) -> str:
    return f"Weights of '{spec.name}': {repository} {reason}. {_advice(spec)}"


def _advice(spec: ModelSpec) -> str:
    variable = spec.weights.variable if spec.weights else None
    target = f"Set {variable} to" if variable else "Name"
    return f"{target} a folder with {CONFIG} and model.safetensors, or pass --weights."


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint folder, safetensors before pickled ones, single files before shards.

    Raises:
        UsageError: none, or several that no index orders.
    """
    for suffix, single in ((".safetensors", "model"), (".bin", "pytorch_model")):
        if (file := folder / f"{single}{suffix}").is_file():
            return (file,)
        index = folder / f"{single}{suffix}.index.json"
        if index.is_file():
            return _shards(index)
        found = sorted(folder.glob(f"*{suffix}"))
        if len(found) > 1:
            raise UsageError(f"{folder} holds {len(found)} {suffix} files and no {index.name}: which are the weights?")
        if found:
            return (found[0],)
    raise UsageError(f"{folder} holds no weights: expected model.safetensors beside {CONFIG}.")


def _shards(index: Path) -> tuple[Path, ...]:
    content = read_json(index, "index of weight files")
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise LaryError(f"{index} lists no weight files under weight_map.")
    files = tuple(inside(index.parent, str(name)) for name in sorted(set(names.values())))
    if missing := [file.name for file in files if not file.is_file()]:
        raise LaryError(f"{index} names files that are not there: {listed(missing)}.")
    return files


def _digest(files: Sequence[Path]) -> str:
    there = [file for file in files if file.is_file()]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        values = list(pool.map(sha256_of, there))
    return digest(*(part for file, value in zip(there, values, strict=True) for part in (file.name, value)))


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder.

    Raises:
        LaryError: missing, or no JSON object with a ``model_type``.
    """
    config = read_json(folder / CONFIG, "model configuration")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise LaryError(f"{folder / CONFIG} has no model_type: it is not the configuration of a transformers model.")
    return config


def read_tensors(files: Sequence[Path], unused: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """All tensors of these files by their key on disk, except those whose key starts with one of `unused`.

    Pickled files are read with ``weights_only``: what is not a dictionary of tensors is refused, never run.

    Raises:
        LaryError: a file is damaged, or holds more than tensors.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        found = read_safetensors(file, unused) if file.suffix == ".safetensors" else unpickle(file)
        if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
            raise LaryError(
                f"The weights {file} are refused: expected a dictionary of tensors. Convert them to safetensors."
            )
        tensors.update((key, value) for key, value in found.items() if not key.startswith(unused))
    return tensors


def load_transformers(
    model_class: Any, config: Any, tensors: dict[str, torch.Tensor], *, unused: tuple[str, ...], folder: Path
) -> torch.nn.Module:
    """A transformers model in float32 and eval mode that holds exactly these tensors.

    Keys are those of the checkpoint on disk; the library maps them to its own. Missing, unexpected and misshaped
    keys stop, except missing ones that start with one of `unused`.

    Raises:
        LaryError: the keys and the configuration don't belong together.
    """
    import torch

    with quiet_transformers():
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    problems = {
        "missing": sorted(key for key in report["missing_keys"] if not key.startswith(unused)),
        "unexpected": sorted(report["unexpected_keys"]),
        "misshaped": sorted(map(_misshaped, report["mismatched_keys"])),
        "failed": sorted(str(message) for message in report.get("error_msgs", ())),
    }
    if any(problems.values()):
        raise LaryError(
            f"The weights in {folder} don't fit {model_class.__name__} as its {CONFIG} describes it: {told(problems)}."
        )
    module: torch.nn.Module = model.eval().requires_grad_(False)
    return module


def _misshaped(entry: Any) -> str:
    """An entry of the library's report: key, shape found and shape wanted, or before transformers 5 the key alone."""
    if isinstance(entry, str):
        return entry
    key, found, wanted = entry
    return f"{key} {list(found)} for {list(wanted)}"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and reports of the library while weights load: what matters is checked and told by us."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
