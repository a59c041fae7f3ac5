"""Checkpoints as single files: the file that a model's authors released, or the one in a library's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import digest, read_json
from lary.models import hub, randomly
from lary.models.spec import ModelContext, ModelSpec, remedy
from lary.models.tensors import listed, read_safetensors, sha256_of, unpickle
from lary.models.weights import CONFIG, refuse_revision
from lary.types import RANDOM, LaryError, UsageError, WeightsIdentity, as_path

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layout:
    """In which files a model's checkpoint comes.

    Attributes:
        files: names under a folder or repository; the first that is there is read.
        kind: field and value in ``config.json`` beside the weights by which a library's folder is known; without
            them, or where no library has the model, the file is the released one and the record describes the network.
        unused: beginnings of keys that play no part in encoding; they may be absent and aren't kept.
        sections: entries of a pickled file under which the tensors may stand; else they stand at the top.
        wrappers: parts of keys that training around the model has left; they are taken out wherever they stand.
    """

    files: tuple[str, ...]
    kind: tuple[str, str] | None = None
    unused: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()


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

    @property
    def identity(self) -> WeightsIdentity:
        """What names these weights."""
        return WeightsIdentity(self.digest, self.revision, self.seed is not None)


def find_checkpoint(spec: ModelSpec, context: ModelContext, layout: Layout) -> Checkpoint:
    """The checkpoint that ``context.weights`` names: a file, a folder, a repository of the hub, or random weights.

    Raises:
        UsageError: none given, the hub can't be reached or doesn't give it, or no known file is there.
    """
    location, expected = context.weights, " or ".join(layout.files)
    if location == RANDOM:
        return Checkpoint(Path(RANDOM), None, randomly.weights_name(context.seed), seed=context.seed)
    if location is None:
        raise UsageError(f"Weights of '{spec.name}': none given. {remedy(spec, expected)}")
    path, revision = as_path(location), None
    if path.exists():
        refuse_revision(spec, context, path)
    else:
        path = _fetch(spec, location, context.revision, layout)
        revision = path.name
    if path.is_dir():
        found = [path / name for name in layout.files if (path / name).is_file()]
        if not found:
            raise UsageError(f"Weights of '{spec.name}': {path} holds no {expected}. {remedy(spec, expected)}")
        path = found[0]
    config = _library_config(path.parent / CONFIG, layout)
    files = [path] if config is None else [path.parent / CONFIG, path]
    parts = (part for file in files for part in (file.name, sha256_of(file)))
    return Checkpoint(path, config, digest(*parts), revision)


def _library_config(file: Path, layout: Layout) -> dict[str, Any] | None:
    if layout.kind is None or not file.is_file():
        return None
    config = read_json(file, "model configuration")
    field, value = layout.kind
    return config if isinstance(config, dict) and config.get(field) == value else None


def _fetch(spec: ModelSpec, repository: str, revision: str | None, layout: Layout) -> Path:
    """The folder of a repository with the first of the layout's files that it has."""

    def choose(names: Sequence[str]) -> list[str]:
        name = next((name for name in layout.files if name in names), None)
        return [] if name is None else [name, (Path(name).parent / CONFIG).as_posix()]

    return hub.fetch(
        spec,
        revision,
        repository,
        choose=choose,
        complete=lambda folder: any((folder / name).is_file() for name in layout.files),
        expected=" or ".join(layout.files),
    )


def read_checkpoint(file: Path, layout: Layout) -> dict[str, torch.Tensor]:
    """The tensors of a file by their key, float32 where they are floating, without unused ones.

    Raises:
        LaryError: the file is damaged, holds code or something else than tensors by name, or one key twice.
    """
    import torch

    pickled = file.suffix != ".safetensors"
    content = _section(unpickle(file), file, layout) if pickled else read_safetensors(file, layout.unused)
    tensors: dict[str, torch.Tensor] = {}
    for key, value in content.items():
        name = str(key)
        for wrapper in layout.wrappers:
            name = name.replace(wrapper, "")
        if name in tensors:
            raise LaryError(f"The weights {file} hold {name} twice, within and without a wrapper: which is meant?")
        if not name.startswith(layout.unused):
            # A copy of what is used, since a file of torch.save is only mapped: a training state in it is never read.
            kind = torch.float32 if value.is_floating_point() else value.dtype
            tensors[name] = value.to(kind, copy=pickled)
    return tensors


def _section(content: Any, file: Path, layout: Layout) -> Mapping[Any, torch.Tensor]:
    """The part of an unpickled file that holds the tensors."""
    import torch

    found = content
    if isinstance(content, Mapping):
        found = next((content[name] for name in layout.sections if isinstance(content.get(name), Mapping)), content)
    if isinstance(found, Mapping) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
        return found
    places = " or ".join(["at the top", *(f"under '{name}'" for name in layout.sections)])
    there = f"entries {listed(map(str, content))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise LaryError(f"The weights {file} hold no tensors by name {places}, only {there}. Is it the right file?")
