"""Weights from a folder or the hub: safe formats only, every key accounted for, and a digest that names them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.files import digest, inside, read_json
from lary.models import hub
from lary.models.randomly import weights_name
from lary.models.spec import ModelContext, ModelSpec, remedy
from lary.models.tensors import configured_by, listed, read_safetensors, sha256_of, told, unpickle
from lary.types import RANDOM, LaryError, UsageError, WeightsIdentity, as_path

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
EXPECTED = f"model.safetensors beside {CONFIG}"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """Where weights were found: a folder and files in it, or that there are random weights instead.

    Attributes:
        folder: the folder of ``config.json``; the word for random weights.
        files: the weight files.
        digest: of the names and contents of ``config.json`` and of the weight files.
        revision: the hub's commit, if they came from there.
        seed: of random weights; None where files are read.
    """

    folder: Path
    files: tuple[Path, ...]
    digest: str
    revision: str | None = None
    seed: int | None = None

    @property
    def identity(self) -> WeightsIdentity:
        """What names these weights."""
        return WeightsIdentity(self.digest, self.revision, self.seed is not None)


def find_weights(spec: ModelSpec, context: ModelContext) -> Source:
    """The weights in a library's folder, fetched from the hub where they don't lie on disk, or random ones.

    Raises:
        UsageError: no weights given, the hub can't be reached or doesn't give them, or the folder holds none.
    """
    location = context.weights
    if location == RANDOM:
        return Source(Path(RANDOM), (), weights_name(context.seed), seed=context.seed)
    if location is None:
        raise UsageError(f"Weights of '{spec.name}': none given. {remedy(spec, EXPECTED)}")
    path, revision = as_path(location), None
    if path.exists():
        refuse_revision(spec, context, path)
    else:
        path = hub.fetch(
            spec,
            context.revision,
            location,
            choose=_choose,
            complete=_is_complete,
            expected=EXPECTED,
        )
        revision = path.name
    if path.is_file() and path.name != CONFIG:
        if path.suffix not in SUFFIXES:
            kinds = ", ".join(SUFFIXES)
            raise UsageError(f"Weights of '{spec.name}': {path} is no weight file ({kinds}). {remedy(spec, EXPECTED)}")
        folder, files = path.parent, [path]
    else:
        folder = path.parent if path.is_file() else path
        files = list(weight_files(folder))
    return Source(folder, tuple(files), _digest([folder / CONFIG, *files]), revision)


def refuse_revision(spec: ModelSpec, context: ModelContext, path: Path) -> None:
    """Refuse ``--revision`` for weights on disk. Raises UsageError."""
    if context.revision is not None:
        raise UsageError(
            f"--revision {context.revision}: the weights of '{spec.name}' are on disk, in {path}, and only the hub has "
            "revisions. Leave the option out, or name a repository by --weights."
        )


def _choose(names: Sequence[str]) -> list[str]:
    """Pickled weights are fetched only from a repository that has no safetensors."""
    for suffix in (".safetensors", ".bin"):
        if any(name.endswith(suffix) for name in names):
            return [CONFIG, f"*{suffix}*"]
    return []


def _is_complete(folder: Path) -> bool:
    try:
        weight_files(folder)
    except LaryError:
        return False
    return (folder / CONFIG).is_file()


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
            raise UsageError(
                f"{folder} holds {len(found)} {suffix} files and no {index.name}: name the one that is meant."
            )
        if found:
            return (found[0],)
    raise UsageError(f"{folder} holds no weights: expected {EXPECTED}.")


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
    from concurrent.futures import ThreadPoolExecutor

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
            raise LaryError(f"The weights {file} are refused: expected a dictionary of tensors. Is it the right file?")
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

    with quiet_transformers(), configured_by(folder, model_class.__name__):
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
            f"The weights in {folder} don't fit {model_class.__name__} as its {CONFIG} describes it: {told(problems)}. "
            f"Weights and {CONFIG} have to be of one checkpoint."
        )
    module: torch.nn.Module = model.eval()
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
