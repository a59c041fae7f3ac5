"""What the checker remembers: a journal of an unfinished run, and a manifest of files that were found whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from lary.files import digest, write_text
from lary.types import UsageError

JOURNAL_VERSION = MANIFEST_VERSION = 1


class Journal:
    """Answers of a run that isn't finished, a line of JSON each; only whole files are remembered.

    The first line names the request: a journal of another one (other tables, root or depth) is not used. A line that
    was torn when the run was killed is passed over.
    """

    def __init__(self, path: Path, identity: str, *, fresh: bool = False) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = {} if fresh else self._read(path, identity)
        header = [json.dumps({"version": JOURNAL_VERSION, "request": identity})]
        lines = header + [json.dumps([key, answer]) for key, answer in self.known.items()]
        write_text(path, "\n".join(lines) + "\n")
        self._file: IO[str] = path.open("a", encoding="utf-8")

    @staticmethod
    def _read(path: Path, identity: str) -> dict[str, dict[str, Any]]:
        try:
            first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            if json.loads(first) != {"version": JOURNAL_VERSION, "request": identity}:
                return {}
        except (OSError, ValueError):
            return {}
        known = {}
        for line in lines:
            try:
                key, answer = json.loads(line)
            except ValueError:
                continue
            known[key] = answer
        return known

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Remember an answer if the file is whole; others are looked at again."""
        if answer["status"] == "ok":
            self._file.write(json.dumps([key, answer]) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """The run is finished."""
        self.path.unlink(missing_ok=True)


class Manifest:
    """Digests of files that were decoded and found whole.

    Lines of JSON: the version, then ``[path below DATA_DIR, SHA-256, size in bytes, kind, shape]`` each, sorted.
    """

    def __init__(self, path: Path | None, root: Path, entries: dict[str, list[Any]]) -> None:
        self._path, self._root, self._entries = path, root.absolute(), entries
        self._changed = False
        self.digest = digest(json.dumps(sorted(entries.items()))) if path is not None else ""

    @classmethod
    def read(cls, path: Path | None, root: Path) -> Manifest:
        """Read a manifest; one that isn't there yet is empty. Raises UsageError for a file of another kind."""
        if path is None or not path.exists():
            return cls(path, root, {})
        try:
            first, *lines = path.read_text(encoding="utf-8").splitlines()
            if json.loads(first)["manifest"] != MANIFEST_VERSION:
                raise UsageError(f"The manifest {path} has another version than {MANIFEST_VERSION}: make a new one.")
            entries = {name: rest for name, *rest in map(json.loads, lines)}
            if not all(len(entry) == 4 for entry in entries.values()):
                raise ValueError("an entry doesn't have five parts")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is no manifest of 'lary data check': {error}.") from error
        return cls(path, root, entries)

    def digest_of(self, path: str, kind: str, shape: tuple[int, int] | None) -> str | None:
        """The known digest of a file that was checked as this kind and, for an array, against this shape."""
        entry = self._entries.get(self._name(path))
        if entry is None or entry[2] != kind or (shape is not None and entry[3] != list(shape)):
            return None
        return str(entry[0])

    def shape_of(self, path: str) -> list[int] | None:
        """The decoded shape of a known file."""
        entry = self._entries.get(self._name(path))
        return entry[3] if entry is not None else None

    def add(self, path: str, sha256: str, size: int, kind: str, shape: list[int] | None) -> None:
        """Remember a whole file."""
        name, entry = self._name(path), [sha256, size, kind, shape]
        if self._path is not None and self._entries.get(name) != entry:
            self._entries[name], self._changed = entry, True

    def write(self) -> None:
        """Write the manifest if it has changed."""
        if self._path is not None and (self._changed or not self._path.exists()):
            lines = [json.dumps({"manifest": MANIFEST_VERSION})]
            lines += [json.dumps([name, *entry], ensure_ascii=False) for name, entry in sorted(self._entries.items())]
            write_text(self._path, "\n".join(lines) + "\n")

    def _name(self, path: str) -> str:
        pure = Path(path)
        return pure.relative_to(self._root).as_posix() if pure.is_relative_to(self._root) else path
