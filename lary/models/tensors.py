"""Tensors of weight files and networks: read without running anything in a file, accounted for key by key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lary.types import LaryError

if TYPE_CHECKING:
    import torch

LISTED = 8
"""How many keys an error names before it only counts."""


def sha256_of(file: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    state = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def first_line(error: Exception) -> str:
    """The beginning of another library's message, without its full stop."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def listed(keys: Iterable[str]) -> str:
    """The first keys by name, the rest as a number."""
    names = list(keys)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def told(problems: Mapping[str, Sequence[str]]) -> str:
    """Keys by what is wrong with them as half a sentence; empty if nothing is."""
    return "; ".join(f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys)


def read_safetensors(file: Path, unused: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Tensors by key, without those whose key starts with one of `unused`. Raises LaryError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as stream:
            return {key: stream.get_tensor(key) for key in stream.keys() if not key.startswith(unused)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LaryError(
            f"The weights {file} can't be read as safetensors ({first_line(error)}): the file is damaged, cut off or "
            "of another kind. Fetch it again."
        ) from error


def unpickle(file: Path) -> Any:
    """The content of a file of ``torch.save``. Its tensors are mapped: what nobody uses is never read.

    Raises:
        LaryError: the file is damaged, or holds something that would run.
    """
    import zipfile

    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # the unpickler of a hostile or broken file may raise anything
        if strange := strange_names(file):
            raise LaryError(
                f"The weights {file} are refused: besides tensors they hold {listed(strange)}, and reading that would "
                "run code. Convert them to safetensors, where you trust them."
            ) from error
        raise LaryError(
            f"The weights {file} can't be read as plain tensors ({first_line(error)}): the file is damaged, cut off or "
            "of another kind. Fetch it again."
        ) from error


def strange_names(file: Path) -> list[str]:
    """Names of classes and functions besides tensors that a file of ``torch.save`` asks for; nothing of it is run."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return sorted(map(str, get_unsafe_globals_in_checkpoint(file)))
    except Exception:  # not a file of torch.save, or cut off
        return []


def take(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Remove the tensors whose key starts with `prefix` and return them by the rest of their key."""
    return {key[len(prefix) :]: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


@contextmanager
def configured_by(origin: object, name: str) -> Iterator[None]:
    """In here a network is built from a configuration that a user has given: what is wrong with it is told.

    Args:
        origin: the configuration, for errors.
        name: of the network, for errors.

    Raises:
        LaryError: the configuration describes no network.
    """
    try:
        yield
    except LaryError:
        raise
    except Exception as error:  # each library has its own for values that it can't use
        raise LaryError(f"The configuration of {origin} describes no {name}: {first_line(error)}.") from error


def fill(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], origin: object) -> None:
    """Put exactly these tensors into a network, which may be without memory yet.

    Args:
        origin: the file, for errors.

    Raises:
        LaryError: keys are missing, unexpected or of another shape; all of them are counted, the first named.
    """
    want = {key: list(value.shape) for key, value in network.state_dict().items()}
    have = {key: list(value.shape) for key, value in tensors.items()}
    problems = {
        "missing": [key for key in want if key not in have],
        "unexpected": [key for key in have if key not in want],
        "misshaped": [f"{key} {have[key]} for {want[key]}" for key in want if have.get(key, want[key]) != want[key]],
    }
    if any(problems.values()):
        raise LaryError(
            f"The weights {origin} don't fit {type(network).__name__} as configured: {told(problems)}. Name the file "
            "that belongs to this model."
        )
    network.load_state_dict(dict(tensors), assign=True)
