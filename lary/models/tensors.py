"""Tensors of weight files, read without running code in them, and renamed."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lary.files import reason_of
from lary.models.spec import builtin_tables, with_tuples
from lary.types import LaryError

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
"""Tensors by their keys."""

CONFIG = "config.json"
LISTED = 8
"""How many keys an error names before it only counts."""
SHARED = 8
"""How many tensors may share a byte of a file, on average."""


@dataclass(frozen=True)
class Layout:
    """In which files a model's checkpoint comes, and what of them is read.

    Attributes:
        files: names of which the first that is there is read;
            empty for a folder of transformers.
        kind: field and value in ``config.json`` that mark
            a library's folder; without them, the file is the
            released one and the record describes the network.
        unused: prefixes of keys without a part in encoding.
        sections: entries of a pickled file with the tensors.
        wrappers: parts of keys that are dropped, as published.
    """

    files: tuple[str, ...] = ()
    kind: tuple[str, str] | None = None
    unused: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    wrappers: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        return " or ".join(self.files) or f"model.safetensors beside {CONFIG}"


def weight_layout(name: str) -> Layout:
    """A layout of ``records.json`` by its name."""
    return Layout(**with_tuples(builtin_tables()["layouts"][name]))


def first_names(keys: Iterable[str]) -> str:
    """The first keys by name, the number of the others."""
    names = list(keys)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def read_tensors(files: Sequence[Path], layout: Layout) -> Tensors:
    """The tensors of files by their key, float32 where they are floating.

    Raises LaryError for a damaged file, code, other content, or one key twice.
    """
    import torch

    tensors: Tensors = {}
    for file in files:
        pickled = file.suffix != ".safetensors"
        content = _section(_unpickle(file), file, layout.sections) if pickled else _read_safetensors(file, layout)
        for key, value in content.items():
            name = str(key)
            for wrapper in layout.wrappers:
                name = name.replace(wrapper, "")
            if name in tensors:
                raise LaryError(f"The weights {file} hold {name} twice, in two files or within and without a wrapper.")
            if not name.startswith(layout.unused):
                # Copied from a mapped file, whose training state is never read.
                kind = torch.float32 if value.is_floating_point() else value.dtype
                tensors[name] = value.to(kind, copy=pickled)
    return tensors


def _section(content: Any, file: Path, sections: tuple[str, ...]) -> Mapping[Any, Tensor]:
    import torch

    found, there = content, f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        found = next((content[name] for name in sections if isinstance(content.get(name), Mapping)), content)
        there = f"entries {first_names(map(str, content))}"
    if isinstance(found, Mapping) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
        total, size = sum(value.numel() * value.element_size() for value in found.values()), file.stat().st_size
        if total > SHARED * size:  # few bytes spread over giant shapes: a copy would fill the memory
            raise _unreadable(file, "plain tensors", f"its tensors announce {total} bytes and it has {size}")
        return found
    places = " or ".join(["at the top", *(f"under '{name}'" for name in sections)])
    raise LaryError(f"The weights {file} hold no tensors by name {places}, only {there}. Is it the right file?")


def _read_safetensors(file: Path, layout: Layout) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt", device="cpu") as stream:
            used = [key for key in stream.keys() if not key.startswith(layout.unused)]  # noqa: SIM118
            return {key: stream.get_tensor(key) for key in used}
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, "safetensors", reason_of(error)) from error


def _unreadable(file: Path, kind: str, reason: str) -> LaryError:
    detail = f" ({reason})" if reason else ""
    return LaryError(
        f"The weights {file} can't be read as {kind}{detail}: the file is damaged, cut off or of another kind. Fetch "
        "it again."
    )


def _unpickle(file: Path) -> Any:
    """The content of a file of ``torch.save``, mapped until used. Raises LaryError."""
    import torch

    packed = False
    try:
        packed = zipfile.is_zipfile(file)
        if packed:
            _check_stored(file)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # read, or refused below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # hostile or broken files may raise anything
        if others := _names_besides_tensors(file):
            raise LaryError(
                f"The weights {file} are refused: besides tensors they hold {first_names(others)}, and reading that "
                "would run code. Convert them to safetensors, where you trust them."
            ) from error
        # Torch's advice to drop its safeguard isn't passed on.
        telling = isinstance(error, ValueError) or (packed and "weights_only" not in str(error))
        raise _unreadable(file, "plain tensors", reason_of(error) if telling else "") from error


def _names_besides_tensors(file: Path) -> list[str]:
    """Names in a pickled file besides tensors, found without running it."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    names: set[str] = set()
    with suppress(Exception):  # not a file of torch.save, or cut off
        return sorted(map(str, get_unsafe_globals_in_checkpoint(file)))
    with file.open("rb") as stream, suppress(Exception):  # cut off, or no pickle
        for _ in range(4):  # torch's older files begin with three pickles about themselves
            names |= _names_of_next(stream)
    return sorted(name for name in names if not name.startswith(("torch.", "collections.OrderedDict")))


def _names_of_next(stream: BinaryIO) -> set[str]:
    """Names that the pickle at the stream's position asks for."""
    names, texts = set(), [""]
    for operation, value, _ in pickletools.genops(stream):
        if operation.name == "GLOBAL":
            names.add(str(value).replace(" ", "."))
        elif operation.name == "STACK_GLOBAL":
            names.add(".".join(texts[-2:]))  # module and name are the last strings
        elif isinstance(value, str):
            texts = [texts[-1], value]
    return names


def _check_stored(file: Path) -> None:
    """Raise ValueError for a zip that torch, which packs nothing, did not write."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed, which torch's files are not")
    if sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise ValueError("its entries announce more bytes than it has")


def split_off(tensors: Tensors, prefix: str) -> Tensors:
    """Take out the tensors under `prefix`, by the rest of their key."""
    return {key[len(prefix) :]: tensors.pop(key) for key in list(tensors) if key.startswith(prefix)}


def rename(key: str, table: str) -> str:
    """A key's name in the library, by a table of prefixes, in which a star is a number.

    Other keys are marked, fit nothing and are reported.
    """
    for source, target in builtin_tables()["keys"][table].items():
        pattern = re.escape(source).replace(r"\*", r"(\d+)")
        if match := re.match(rf"{pattern}(?=\.|$)", key):
            for number in match.groups():
                target = target.replace("*", number, 1)
            return str(target + key[match.end() :])
    return f"{key} (unknown)"


def rename_keys(tensors: Tensors, table: str) -> Tensors:
    """The same tensors under the library's names, rows of ``qkv`` under three."""
    out: Tensors = {}
    for key, value in tensors.items():
        parts = {key: value}
        if ".qkv." in key and value.shape[0] % 3 == 0:
            names = (key.replace(".qkv.", f".{name}.") for name in ("query", "key", "value"))
            parts = dict(zip(names, value.chunk(3), strict=True))
        out |= {rename(name, table): part for name, part in parts.items()}
    return out
