"""Where a model's weights are, and their digest.

They are a file, a library's folder, a
hub repository or its cache, or random.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lary.files import digest, file_digest, inside, read_json, reason_of
from lary.models.spec import ModelContext, ModelSpec, builtin_tables, remedy
from lary.models.tensors import CONFIG, Layout, first_names
from lary.runtime import in_threads, log
from lary.types import RANDOM, JsonDict, LaryError, UsageError, WeightsIdentity, as_path

TRANSFORMERS = Layout()
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
HUB_SECONDS = 10
"""Seconds until the hub's cache, or an error, answers in its place."""
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, or random weights, whose only file is ``random`` and which have a `seed`.

    `config` is a library's, if the layout names its kind.
    """

    files: tuple[Path, ...]
    config: Mapping[str, Any] | None
    identity: WeightsIdentity
    seed: int | None = None

    @property
    def file(self) -> Path:
        return self.files[0]

    @property
    def folder(self) -> Path:
        return self.file if self.seed is not None else self.file.parent


def random_weights(seed: int, configuration: str = "") -> Checkpoint:
    """Weights that are drawn from the seed; `configuration` is one that the record lacks."""
    name = f"random weights, seed {seed}" + (f", configuration {digest(configuration)}" if configuration else "")
    return Checkpoint((Path(RANDOM),), None, WeightsIdentity(name, random=True), seed)


def find_weights(spec: ModelSpec, context: ModelContext, layout: Layout = TRANSFORMERS) -> Checkpoint:
    """The checkpoint that ``context.weights`` names.

    Raises UsageError where none is given, the hub refuses it, or no known file is there.
    """
    location = context.weights
    if location == RANDOM:
        return random_weights(context.seed)
    if location is None:
        raise _missing(spec, layout, "none given")
    path, revision = as_path(location), None
    if not path.exists():
        pinned = spec.weights.revision if spec.weights and location == spec.weights.hub else None
        try:
            path = hub_folder(location, context.revision or pinned, layout)
        except HubRefusal as error:
            raise _missing(spec, layout, f"{location} {error}") from error
        revision = path.name  # the cache names folders after commits
    elif context.revision is not None:
        raise UsageError(
            f"--revision {context.revision}: the weights of '{spec.name}' are on disk, in {path}, and only the hub "
            "has revisions. Leave the option out, or name a repository by --weights."
        )
    files = _files_at(spec, path, layout)
    beside, config = files[0].parent / CONFIG, None
    if layout.kind and beside.is_file():
        content = read_json(beside, "model configuration")
        config = content if isinstance(content, dict) and content.get(layout.kind[0]) == layout.kind[1] else None
    described = config or (not layout.files and beside.is_file())
    named = [beside, *files] if described else files
    parts = chain.from_iterable(in_threads(lambda file: (file.name, file_digest(file, 64)), named, 4))
    return Checkpoint(files, config, WeightsIdentity(digest(*parts), revision))


def _missing(spec: ModelSpec, layout: Layout, reason: str) -> UsageError:
    return UsageError(f"Weights of '{spec.name}': {reason}. {remedy(spec, layout.expected)}")


def read_config(folder: Path) -> JsonDict:
    """``config.json`` of a folder of transformers. Raises LaryError."""
    config = read_json(folder / CONFIG, "model configuration")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise LaryError(f"{folder / CONFIG} has no model_type: it configures no transformers model.")
    return config


def _files_at(spec: ModelSpec, path: Path, layout: Layout) -> tuple[Path, ...]:
    if layout.files:
        if not path.is_dir():
            return (path,)
        for name in layout.files:
            if (path / name).is_file():
                return (path / name,)
        raise _missing(spec, layout, f"{path} holds no {layout.expected}")
    if not path.is_file():
        return weight_files(path)
    if path.name == CONFIG:
        return weight_files(path.parent)
    if path.suffix not in SUFFIXES:
        raise _missing(spec, layout, f"{path} is no weight file ({', '.join(SUFFIXES)})")
    return (path,)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder of transformers.

    Safetensors come before pickled files, single files before shards. Raises
    UsageError for none, or several without an index, LaryError for a wrong
    index.
    """
    for suffix, single in ((".safetensors", "model"), (".bin", "pytorch_model")):
        if (file := folder / f"{single}{suffix}").is_file():
            return (file,)
        index = folder / f"{single}{suffix}.index.json"
        if index.is_file():
            content = read_json(index, "index of weight files")
            names = content.get("weight_map") if isinstance(content, dict) else None
            if not isinstance(names, dict) or not names:
                raise LaryError(f"{index} lists no weight files under weight_map.")
            files = tuple(inside(folder, str(name)) for name in sorted(set(names.values())))
            if missing := [file.name for file in files if not file.is_file()]:
                raise LaryError(f"{index} names files that are not there: {first_names(missing)}.")
            return files
        found = sorted(folder.glob(f"*{suffix}"))
        if len(found) > 1:
            raise UsageError(
                f"{folder} holds {len(found)} {suffix} files and no {index.name}: name the one that is meant."
            )
        if found:
            return tuple(found)
    raise UsageError(f"{folder} holds no weights: expected {TRANSFORMERS.expected}.")


class HubRefusal(LaryError):
    """Why the hub gives no files, as the rest of a sentence.

    `known`: the hub has answered, or its cache has the repository.
    """

    def __init__(self, reason: str, known: bool = True) -> None:
        super().__init__(reason)
        self.known = known


def hub_folder(repository: str, revision: str | None, layout: Layout) -> Path:
    """The folder of a repository's files, named after its commit.

    It is downloaded or cached: a cached commit needs no
    network, else the hub is asked first. Raises HubRefusal.
    """
    import huggingface_hub
    from huggingface_hub import errors

    cached, complete = None, False
    try:
        with suppress(errors.LocalEntryNotFoundError):  # of an earlier download
            cached = Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
        complete = cached is not None and _is_complete(cached, layout)
        if cached and complete and COMMIT.fullmatch(revision or ""):
            return cached
        hub = huggingface_hub.HfApi()
        about = hub.model_info(repository, revision=revision, timeout=HUB_SECONDS)
        if about.gated:  # all may read about it, few have its files
            hub.auth_check(repository)
        if wanted := _wanted([file.rfilename for file in about.siblings or ()], layout):
            return Path(huggingface_hub.snapshot_download(repository, revision=about.sha, allow_patterns=wanted))
    except Exception as error:  # each version of huggingface_hub raises its own
        denials = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError)
        denied = isinstance(error, denials)
        if cached and complete and not denied:
            log.info("the hub can't be reached: %s comes from its cache", repository)
            return cached
        raise HubRefusal(_refusal(error, repository, revision), denied or cached is not None) from error
    raise HubRefusal(f"holds no {layout.expected}")


def _is_complete(folder: Path, layout: Layout) -> bool:
    if layout.files:
        return any((folder / name).is_file() for name in layout.files)
    try:
        return bool(weight_files(folder)) and (folder / CONFIG).is_file()
    except LaryError:
        return False


def fetch_file(repository: str, names: tuple[str, ...], revision: str | None) -> Path | None:
    """The folder of the first of some files of a repository, if it has one to give.

    Raises UsageError if neither hub nor cache answers.
    """
    try:
        return hub_folder(repository, revision, Layout(files=names))
    except HubRefusal as error:
        if error.known:  # where the hub denies it, the error for the weights says so
            return None
        reason = f"the hub can't be asked for its {names[0]}: {repository} {error}"
        raise UsageError(f"Model 'hf:{repository}': {reason}. Name a folder, or go online once.") from error


def _wanted(names: Sequence[str], layout: Layout) -> list[str]:
    """The needed files of a repository; pickled only without safetensors."""
    if layout.files:
        name = next((name for name in layout.files if name in names), None)
        return [name, (Path(name).parent / CONFIG).as_posix()] if name else []
    for suffix in (".safetensors", ".bin"):
        if any(name.endswith(suffix) for name in names):
            return [CONFIG, f"*{suffix}*"]
    return []


def _refusal(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub import errors

    # In order: a repository that is gated is not found, too.
    for kind, reason in builtin_tables()["refusals"].items():
        if isinstance(error, getattr(errors, kind)):
            return str(reason.format(repository=repository, revision=revision))
    return f"can't be fetched from the hub ({reason_of(error)})"
