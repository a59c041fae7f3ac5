"""Named records, loaded on first use, open to plug-ins, with hints for wrong names."""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from lary.files import digest, path_problem, reason_of
from lary.runtime import log
from lary.types import UsageError, as_path


class Named(Protocol):
    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=Named)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table for people: every column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def suggest(wrong: str, known: Sequence[str]) -> str:
    """``' Did you mean x?'``, or where none is near the three nearest names."""
    import difflib

    if near := difflib.get_close_matches(wrong, known, n=2):
        return f" Did you mean {' or '.join(near)}?"
    near = difflib.get_close_matches(wrong, known, cutoff=0.0)
    return f" The nearest of {len(known)}: {', '.join(near)}." if near else ""


record_folder: list[Path] = []
"""The data/ of the last LARY_ROOT, whose records of data sets are known by name."""


class Registry(Generic[Record]):
    """Records of one kind by name.

    ``modules`` are imported at the first look-up (they register what they
    define), then every entry point of ``group`` that other packages declare.
    ``kind`` is for messages, and every look-up asks ``source`` for further
    records.
    """

    def __init__(
        self,
        kind: str,
        *,
        modules: Sequence[str] = (),
        group: str | None = None,
        source: Callable[[], Mapping[str, Record]] = dict,
    ) -> None:
        self.kind = kind
        self._modules, self._group, self._source = modules, group, source
        self._records: dict[str, Record] = {}
        self._families: list[Callable[[str], Record | None]] = []
        self._loaded = False

    def add(self, record: Record) -> Record:
        """Register a record. Raises UsageError if its name is taken."""
        if record.name in self._records:
            raise UsageError(f"The {self.kind} '{record.name}' is registered twice: choose another name.")
        self._records[record.name] = record
        return record

    def add_family(self, make: Callable[[str], Record | None]) -> None:
        """Register records that are made from their name.

        `make` returns one, or None for a name of another form.
        """
        self._families.append(make)

    def get(self, name: str) -> Record:
        """The record of a name. Raises UsageError with a suggestion."""
        known = self._all()
        if name in known:
            return known[name]
        for make in self._families:
            if record := make(name):
                return record
        raise UsageError(f"Unknown {self.kind} '{name}'.{suggest(name, list(known))}")

    def names(self) -> list[str]:
        """All names, in the order in which they were registered."""
        return list(self._all())

    def _all(self) -> dict[str, Record]:
        if not self._loaded:
            self._loaded = True
            for module in self._modules:
                importlib.import_module(module)
            from importlib.metadata import entry_points

            for point in entry_points(group=self._group) if self._group else ():
                try:
                    point.load()
                except (Exception, SystemExit) as error:
                    where = f"{point.value} of {point.dist.name if point.dist else '?'}"
                    log.warning("left out: %s fails: %s: %s", where, type(error).__name__, reason_of(error))
        return {**self._source(), **self._records}

    def __iter__(self) -> Iterator[Record]:
        return iter(self._all().values())


PLUGIN = "lary_plugin_"
_plugins: dict[str, Path] = {}


def loaded_plugins() -> tuple[Path, ...]:
    """The plug-ins that ran in this process, for the processes that it starts."""
    return tuple(_plugins.values())


def load_named_plugins(named: Any, file: Path) -> None:
    """Run the plug-ins that a file names, from its folder on. Raises UsageError."""
    found = [named] if isinstance(named, str) else named or []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UsageError(f"{file}: plug-ins are named as one Python file or a list of them.")
    for each in found:
        load_plugin(file.parent / each)


def load_plugin(path: str | Path) -> None:
    """Run a Python file that registers models or data sets, once per process.

    Raises UsageError where it doesn't exist, or fails when run.
    """
    file = as_path(path).absolute()
    if problem := path_problem(str(file)):
        raise UsageError(f"Plug-in {str(path)[:60]!r} is no file: {problem}.")
    file = file.resolve()
    name = f"{PLUGIN}{file.stem}_{digest(str(file))}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file) if file.is_file() else None
    if not spec or not spec.loader:
        raise UsageError(f"Plug-in {file} is not a Python file that can be read: correct its path.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its classes are pickled by this name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())[:500]
        raise UsageError(f"Plug-in {file} failed{line_in(file, error)}: {type(error).__name__}: {reason}") from error
    _plugins[name] = file


def line_in(file: Path, error: BaseException) -> str:
    """`` in FILE, line N``: the last line below the folder of `file`, in no installed package, of an error."""
    place, here = "", Path(__file__).parent
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        own = path.is_relative_to(file.parent) and not path.is_relative_to(here)
        if own and "site-packages" not in path.relative_to(file.parent).parts:
            place = f" in {path}, line {frame.lineno}"
    return place
