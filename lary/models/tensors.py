"""Tensors of weight files and networks: read without running anything in a file, accounted for key by key."""

from __future__ import annotations

import hashlib
import pickletools
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lary.types import LaryError

if TYPE_CHECKING:
    import torch

LISTED = 8
"""How many keys an error names before it only counts."""
SHARED = 8
"""How often a byte of a file may stand in tensors, on average."""


def sha256_of(file: Path) -> str:
    """The hexadecimal SHA-256 of a file's content."""
    state = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def first_line(error: Exception) -> str:
    """The beginning of another library's message, without its full stop; a heading with what stands under it."""
    first, *rest = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if first.endswith(":") and rest:
        first = f"{first} {rest[0]}"
    return first.rstrip(".:")


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
    import torch

    packed = False
    try:
        packed = zipfile.is_zipfile(file)
        if packed:
            check_stored(file)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # it is read, or it is refused below
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=packed)
        check_sizes(content, file.stat().st_size)
        return content
    except Exception as error:  # the unpickler of a hostile or broken file may raise anything
        if strange := strange_names(file):
            raise LaryError(
                f"The weights {file} are refused: besides tensors they hold {listed(strange)}, and reading that would "
                "run code. Convert them to safetensors, where you trust them."
            ) from error
        raise LaryError(
            f"The weights {file} can't be read as plain tensors{_reason(error, packed)}: the file is damaged, cut off "
            "or of another kind. Fetch it again."
        ) from error


def _reason(error: Exception, packed: bool) -> str:
    """An unpickler's message in brackets, where it says more than that the file is none of its own.

    Torch advises to read a file that it refuses without its safeguard. Nobody is told that here.
    """
    telling = isinstance(error, ValueError) or (packed and "weights_only" not in str(error))
    return f" ({first_line(error)})" if telling else ""


def strange_names(file: Path) -> list[str]:
    """Names of classes and functions besides tensors that a pickled file asks for; nothing of it is run."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        return sorted(map(str, get_unsafe_globals_in_checkpoint(file)))
    except Exception:  # not a file of torch.save, or cut off
        return pickled_names(file)


def pickled_names(file: Path) -> list[str]:
    """Names of classes and functions besides tensors that plain pickles ask for; none for a file that has no whole one.

    Torch's older files begin with three pickles about themselves.
    """
    names: set[str] = set()
    with file.open("rb") as stream:
        for _ in range(4):
            try:
                names |= _names_of_next(stream)
            except Exception:  # cut off, or no pickle
                break
    return sorted(name for name in names if not name.startswith(("torch.", "collections.OrderedDict")))


def _names_of_next(stream: BinaryIO) -> set[str]:
    """Names that the pickle at the stream's place asks for."""
    names, texts = set(), [""]
    for operation, value, _ in pickletools.genops(stream):
        if operation.name == "GLOBAL":
            names.add(str(value).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))
        elif isinstance(value, str):
            texts = [texts[-1], value]
    return names


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


def check_stored(file: Path) -> None:
    """Refuse a zip that torch did not write: it packs nothing, so no entry unpacks to more. Raises ValueError."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch's files are not")
    if sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise ValueError("its entries announce more bytes than it has")


def check_sizes(content: Any, size: int) -> None:
    """Refuse tensors that spread a few bytes over a giant shape: their first copy would fill the memory.

    Tensors that are shared count every time; the most that checkpoints share is a few embeddings.

    Raises:
        ValueError: the tensors of nested dictionaries and lists announce far more than `size` bytes.
    """
    import torch

    announced, waiting, seen = 0, [content], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            announced += item.numel() * item.element_size()
        elif isinstance(item, Mapping | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, Mapping) else item
    if announced > SHARED * size:
        raise ValueError(f"its tensors announce {announced} bytes and it has {size}")


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
