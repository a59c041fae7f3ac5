"""Checkpoints as single files: the file that a model's authors released, or the one in a library's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.fileio import digest, read_json
from lary.models import randomly
from lary.models.spec import ModelContext, ModelSpec
from lary.models.tensors import first_line, listed, read_safetensors, sha256_of, unpickle
from lary.models.weights import CONFIG
from lary.types import RANDOM, LaryError, UsageError, as_path

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layout:
    """In which files a model's checkpoint comes.

    Attributes:
        files: names under a folder or repository; the first that is there is read.
        kind: field and value in ``config.json`` beside the weights by which a library's folder is known; without
            them the file is the released one, and the record describes the network.
        unused: beginnings of keys that play no part in encoding; they may be absent and aren't kept.
        section: entry of a released pickled file that holds the tensors; None if it holds nothing else.
    """

    files: tuple[str, ...]
    kind: tuple[str, str]
    unused: tuple[str, ...] = ()
    section: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found, or that there are random weights instead.

    Attributes:
        file: the weights; the word for random ones.
        config: the library's configuration beside them; None for a released file.
        digest: of the weights and their configuration.
        revision: the hub's commit, if they came from there.
        seed: of random weights; None where a file is read.
    """

    file: Path
    config: Mapping[str, Any] | None
    digest: str
    revision: str | None = None
    seed: int | None = None


def find_checkpoint(spec: ModelSpec, context: ModelContext, layout: Layout) -> Checkpoint:
    """The checkpoint that ``context.weights`` names: a file, a folder, a repository of the hub, or random weights.

    Raises:
        UsageError: none given, the hub can't be reached or doesn't give it, or no known file is there.
    """
    location = context.weights
    if location == RANDOM:
        return Checkpoint(Path(RANDOM), None, randomly.weights_name(context.seed), seed=context.seed)
    if location is None:
        raise UsageError(f"Weights of '{spec.name}': none given. {_advice(spec, layout)}")
    path, revision = as_path(location), None
    if not path.exists():
        pinned = spec.weights.revision if spec.weights and location == spec.weights.hub else None
        path = _fetch(spec, location, context.revision or pinned, layout)
        revision = path.name
    if path.is_dir():
        found = [path / name for name in layout.files if (path / name).is_file()]
        if not found:
            raise UsageError(f"Weights of '{spec.name}': {path} holds no {' or '.join(layout.files)}.")
        path = found[0]
    config = _library_config(path.parent / CONFIG, layout)
    files = [path] if config is None else [path.parent / CONFIG, path]
    parts = (part for file in files for part in (file.name, sha256_of(file)))
    return Checkpoint(path, config, digest(*parts), revision)


def _advice(spec: ModelSpec, layout: Layout) -> str:
    variable = spec.weights.variable if spec.weights else None
    target = f"Set {variable} to" if variable else "Name"
    return f"{target} {' or '.join(layout.files)} or its folder, or pass --weights."


def _library_config(file: Path, layout: Layout) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    config = read_json(file, "model configuration")
    field, value = layout.kind
    return config if isinstance(config, dict) and config.get(field) == value else None


def _fetch(spec: ModelSpec, repository: str, revision: str | None, layout: Layout) -> Path:
    """Download the first of the layout's files that the repository has, or find it in the cache; returns the folder."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        for name in layout.files:
            patterns = [name, (Path(name).parent / CONFIG).as_posix()]
            folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
            if (folder / name).is_file():
                return folder
        reason = f"holds no {' or '.join(layout.files)}"
    except errors.GatedRepoError:
        reason = f"is gated: ask for access at https://huggingface.co/{repository} and run `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "is neither a file here nor a public repository"
    except errors.HFValidationError:
        reason = "is neither a file here nor the name of a repository"
    except Exception as error:  # each HTTP library that huggingface_hub has used raises its own
        reason = f"can't be fetched from the hub ({first_line(error)})"
    raise UsageError(f"Weights of '{spec.name}': {repository} {reason}. {_advice(spec, layout)}")


def read_checkpoint(found: Checkpoint, layout: Layout) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by their key in the file, float32 where they are floating, without unused ones.

    Raises:
        LaryError: the file is damaged, holds more than tensors, or lacks the section.
    """
    import torch

    if found.file.suffix == ".safetensors":
        tensors = read_safetensors(found.file, layout.unused)
    else:
        tensors = _read_pickled(found.file, layout)
    return {
        key: value.to(torch.float32) if value.is_floating_point() else value
        for key, value in tensors.items()
        if not key.startswith(layout.unused)
    }


def _read_pickled(file: Path, layout: Layout) -> dict[str, torch.Tensor]:
    """Tensors of a file of ``torch.save``. Only what is used is read, since these files also hold training states."""
    import torch

    content = unpickle(file)
    if layout.section is not None:
        if not isinstance(content, dict) or layout.section not in content:
            there = listed(map(str, content)) if isinstance(content, dict) else type(content).__name__
            raise LaryError(f"The weights {file} have no entry '{layout.section}', only {there}: wrong file?")
        content = content[layout.section]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise LaryError(f"The weights {file} are not a dictionary of tensors: is this the released file?")
    return {key: value.clone() for key, value in content.items() if not key.startswith(layout.unused)}
