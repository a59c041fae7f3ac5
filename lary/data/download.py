"""Fetching the published data sets: listed at run time, pinned, checked, resumed, unpacked into the benchmark's layout.

``DATA_DIR/lary_download.json`` says which revision was fetched, with which digests, and what became of every file; it
is written after each of them, so the same command goes on where it stopped.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lary.data.archives import SCRATCH, group_parts, is_archive, member_names, unpack, whole_name
from lary.data.hubs import Hub, RemoteFile, content_problem
from lary.data.spec import DATASETS, DatasetSpec, Licence
from lary.files import inside, read_json, write_bytes, write_json
from lary.runtime import log, progress
from lary.types import Failure, LaryError, UsageError

MANIFEST = "lary_download.json"
CACHE = ".lary_download"
VERSION = 1
TRACKS = ("classification", "regression")
FETCHED, DONE = "fetched", "done"
TRIES = 2


@dataclass(frozen=True, kw_only=True)
class DownloadRequest:
    """What to fetch.

    Attributes:
        specs: data sets whose files are wanted.
        data_dir: ``$DATA_DIR``.
        tables: folder for metadata tables, ``$LARY_ROOT/data``.
        source: name of the hub, for the manifest.
        repository: owner/name.
        revision: branch, tag or commit; None is the one in the manifest, or else the newest.
        patterns: shell patterns on paths; files must match one, if there are any.
        whole: every file of the repository, whatever data set it is of.
        keep_archives: leave archives in place once they are unpacked.
    """

    specs: tuple[DatasetSpec, ...]
    data_dir: Path
    tables: Path
    source: str
    repository: str
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    whole: bool = False
    keep_archives: bool = False


@dataclass(frozen=True)
class DownloadReport:
    """What was done: the pinned revision, files fetched and kept, archives unpacked, failures."""

    revision: str
    fetched: int
    kept: int
    unpacked: int
    failures: tuple[Failure, ...]


@dataclass
class Manifest:
    """What lies in ``DATA_DIR`` and where it is from; ``files`` has size, sha256, git and state by path."""

    path: Path
    source: str = ""
    repository: str = ""
    revision: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest, empty if there is none. Raises LaryError for one that can't be read or is newer."""
        if not path.exists():
            return cls(path)
        found = read_json(path, "download manifest")
        if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
            raise LaryError(f"The download manifest {path} is damaged: move it away, and files are checked anew.")
        if found.get("version", 0) > VERSION:
            raise LaryError(f"The download manifest {path} was written by a newer lary: update lary.")
        return cls(path, found["source"], found["repository"], found["revision"], found["files"])

    def state(self, file: RemoteFile) -> str:
        """How far a file has come; empty if it is new or has changed."""
        entry = self.files.get(file.path, {})
        same = (entry.get("size"), entry.get("sha256"), entry.get("git")) == (file.size, file.sha256, file.git)
        return str(entry.get("state", "")) if same else ""

    def put(self, file: RemoteFile, state: str) -> None:
        """Note how far a file has come, and save."""
        self.files[file.path] = {"size": file.size, "sha256": file.sha256, "git": file.git, "state": state}
        self.save()

    def save(self) -> None:
        keys = ("source", "repository", "revision", "files")
        write_json(self.path, {"version": VERSION, **{key: getattr(self, key) for key in keys}})


# Licences


def downloadable(names: Sequence[str]) -> tuple[DatasetSpec, ...]:
    """The records of `names`, or of all data sets that are published. Raises UsageError for one that isn't."""
    if not names:
        return tuple(spec for spec in DATASETS if spec.repository)
    specs = tuple(DATASETS.get(name) for name in dict.fromkeys(names))
    for spec in specs:
        if not spec.repository:
            raise UsageError(f"Data set '{spec.name}' is not published: there is nothing to download.")
    return specs


def licences(specs: Iterable[DatasetSpec]) -> tuple[Licence, ...]:
    """The sources of data sets with their terms, each once."""
    return tuple(dict.fromkeys(licence for spec in specs for licence in spec.licences))


def licence_text(specs: Sequence[DatasetSpec]) -> str:
    """The terms of every source, as they are shown before the first byte."""
    lines = [f"Sources and terms of: {', '.join(spec.name for spec in specs)}"]
    for licence in licences(specs):
        use = "commercial use allowed" if licence.commercial else "no commercial use"
        lines.append(f"  {licence.source}: {licence.name}; {use}; {licence.url}")
    lines.append("Each part keeps the terms of its source; taken together the strictest of them apply.")
    return "\n".join(lines)


def accept(specs: Sequence[DatasetSpec], accepted: bool, ask: Callable[[str], str] | None) -> None:
    """Have the terms accepted: by an option, or by typing yes where `ask` can reach a person.

    Raises:
        UsageError: nobody accepted them.
    """
    print(licence_text(specs), flush=True)
    if accepted:
        return
    if ask is None:
        raise UsageError("The terms above are not accepted: pass --accept-licenses if you do.")
    if ask("Do you accept the terms of every source? Type yes: ").strip().lower() != "yes":
        raise UsageError("The terms were not accepted; nothing was downloaded.")


# Choosing


def folded(text: str) -> str:
    """Letters and digits in lower case, for names that are spelled in several ways."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def known_folders(specs: Iterable[DatasetSpec]) -> tuple[str, ...]:
    """Folders of the layout below ``DATA_DIR``: roots of splits, what is above them, and those named by a source."""
    found: dict[str, None] = {}
    for spec in specs:
        for split in spec.splits.values():
            parts = PurePosixPath(split.root).parts
            for end in range(2, len(parts) + 1):
                found["/".join(parts[:end])] = None
            if len(parts) == 1:
                found |= {f"{parts[0]}/{licence.source}": None for licence in spec.licences}
    return tuple(found)


def belongs(path: str, spec: DatasetSpec) -> bool:
    """Whether a file of the repository is of a data set, by the folders and names of its record."""
    parts = PurePosixPath(path).parts
    words = {folded(spec.name)} | {folded(PurePosixPath(folder).parts[1]) for folder in known_folders([spec])}
    tracks = {PurePosixPath(split.root).parts[0] for split in spec.splits.values()}
    named = [part for part in parts if part in TRACKS]
    if named and named[0] not in tracks:
        return False
    return any(word in folded(part) for word in words for part in parts)


def choose(files: Sequence[RemoteFile], request: DownloadRequest) -> list[RemoteFile]:
    """The files that are wanted: archives, tables, and what lies in the folders of the layout.

    Raises:
        UsageError: a data set or pattern has none; names what there is.
    """
    useful = [
        file
        for file in files
        if is_archive(file.path) or file.path.endswith(".csv") or set(PurePosixPath(file.path).parts[:-1]) & set(TRACKS)
    ]
    chosen = useful if request.whole else [f for f in useful if any(belongs(f.path, spec) for spec in request.specs)]
    there = ", ".join(sorted({whole_name(file.path) for file in useful})[:20]) or "none"
    missing = [spec.name for spec in request.specs if not any(belongs(file.path, spec) for file in chosen)]
    if missing and not request.whole and not request.patterns:
        raise UsageError(
            f"{request.repository} has no files of {', '.join(missing)} by their names. It has: {there}. Choose with "
            "--files PATTERN."
        )
    if request.patterns:
        chosen = [file for file in useful if any(fnmatch.fnmatch(file.path, pattern) for pattern in request.patterns)]
        if not chosen:
            raise UsageError(f"No file of {request.repository} matches --files. It has: {there}.")
    return chosen


# Placing


def find_place(archive: str, names: Sequence[str], folders: Sequence[str]) -> Callable[[str], str] | None:
    """Where the members of an archive belong below ``DATA_DIR``; None if nothing tells.

    In this order: members name their track (``regression/calvin/...``); they start with a folder of the layout
    (``calvin/...``); the archive lies in one or is called like one (``regression/calvin.tar``).
    """
    tops = {name.removeprefix("./").split("/")[0] for name in names} - {"", "."}
    split = [[part for part in name.split("/") if part not in ("", ".")] for name in names]
    if any(track in parts[:3] for parts in split for track in TRACKS):
        return _from_track
    short = {PurePosixPath(folder).parts[1]: folder for folder in folders if folder.count("/") == 1}
    if tops and tops <= set(short):
        usual = short[min(tops)]  # only the first members were looked at: others go beside them
        return lambda name: f"{short.get(name.split('/')[0], usual).split('/')[0]}/{name}"
    path = PurePosixPath(archive)
    stem = re.split(r"\.(?:tar|tgz|zip)\b", path.name, maxsplit=1)[0]
    above = _from_track(str(path.parent)) if set(path.parts) & set(TRACKS) else ""
    if tops != {stem}:
        if f"{above}/{stem}" in folders:
            above = f"{above}/{stem}"
        elif not above:
            above = short.get(stem, "")
    return (lambda name: f"{above}/{name}") if above else None


def _from_track(name: str) -> str:
    parts = name.split("/")
    at = next((index for index, part in enumerate(parts[:3]) if part in TRACKS), 0)
    return "/".join(parts[at:])


# Fetching


def download(request: DownloadRequest, hub: Hub) -> DownloadReport:
    """Fetch, check, unpack. The terms must have been accepted (`accept`).

    Raises:
        UsageError: the folder holds another repository, or nothing is chosen.
        LaryError: the hub can't be reached, or there is no space.
    """
    for rest in request.data_dir.glob(f"{SCRATCH}*"):  # of a run that was killed
        shutil.rmtree(rest, ignore_errors=True)
    manifest = Manifest.read(request.data_dir / MANIFEST)
    if manifest.repository not in ("", request.repository) or manifest.source not in ("", request.source):
        raise UsageError(f"{request.data_dir} holds files of {manifest.repository} from {manifest.source}: choose "
                         "another DATA_DIR.")  # fmt: skip
    revision = hub.resolve(request.revision or manifest.revision or None)
    if manifest.revision not in ("", revision):
        log.info("moving from revision %s to %s: changed files are fetched again", manifest.revision, revision)
    files = choose(hub.files(revision), request)
    manifest.source, manifest.repository, manifest.revision = request.source, request.repository, revision
    open_files = [file for file in files if manifest.state(file) != DONE]
    cache = request.data_dir / CACHE
    check_space(request, [file for file in open_files if manifest.state(file) != FETCHED], cache)
    log.info("%s at %s: %d files, %s", request.repository, revision, len(files), in_words(sum(f.size for f in files)))
    manifest.save()
    fetched, failures = fetch_all(open_files, revision, hub, cache, manifest)
    unpacked, more = finish(request, files, cache, manifest)
    if not failures and not more and not request.keep_archives:
        shutil.rmtree(cache, ignore_errors=True)
    return DownloadReport(revision, fetched, len(files) - len(open_files), unpacked, (*failures, *more))


def check_space(request: DownloadRequest, files: Sequence[RemoteFile], cache: Path) -> None:
    """Raises LaryError if the files don't fit on the disk."""
    request.data_dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(request.data_dir).free
    there = [cache / file.path for file in files]
    needed = sum(file.size for file in files) - sum(path.stat().st_size for path in there if path.exists())
    if needed > free:
        raise LaryError(
            f"{request.data_dir} has {in_words(free)} free, and {in_words(needed)} are needed: choose fewer data sets "
            "with --include, or another DATA_DIR."
        )


def fetch_all(
    files: Sequence[RemoteFile], revision: str, hub: Hub, cache: Path, manifest: Manifest
) -> tuple[int, list[Failure]]:
    """Fetch and check what is not there yet; one file that fails doesn't stop the others."""
    fetched, failures = 0, []
    with progress(len(files), "fetching", "file") as bar:
        for file in files:
            if manifest.state(file) == FETCHED and (cache / file.path).is_file():
                bar.advance()
                continue
            try:
                fetch_one(file, revision, hub, cache)
            except (LaryError, OSError) as error:
                failures.append(Failure(None, file.path, str(error)))
            else:
                manifest.put(file, FETCHED)
                fetched += 1
            bar.advance()
    return fetched, failures


def fetch_one(file: RemoteFile, revision: str, hub: Hub, cache: Path) -> None:
    """Fetch a file until its size and digest are right. Raises LaryError after the second try."""
    problem = ""
    for _ in range(TRIES):
        path = hub.fetch(file, revision, cache)
        problem = content_problem(path, file)
        if not problem:
            return
        path.unlink()
    raise LaryError(f"{file.path} arrived damaged {TRIES} times: {problem}.")


def finish(
    request: DownloadRequest, files: Sequence[RemoteFile], cache: Path, manifest: Manifest
) -> tuple[int, list[Failure]]:
    """Unpack archives whose parts are all here, and put single files in their places."""
    by_path = {file.path: file for file in files}
    failures: list[Failure] = []
    unpacked = 0
    try:
        groups = group_parts(list(by_path))
    except LaryError as error:
        return 0, [Failure(None, request.repository, str(error))]
    for whole, parts in groups.items():
        if all(manifest.state(by_path[part]) == DONE for part in parts):
            continue
        if any(manifest.state(by_path[part]) != FETCHED and manifest.state(by_path[part]) != DONE for part in parts):
            continue  # a part has failed, which is told already
        try:
            unpack_archive(request, whole, [inside(cache, part) for part in parts])
        except LaryError as error:
            failures.append(Failure(None, whole, str(error)))
            continue
        unpacked += 1
        for part in parts:
            manifest.put(by_path[part], DONE)
        for part in () if request.keep_archives else parts:  # only now: a stop before leaves all that is needed
            inside(cache, part).unlink(missing_ok=True)
    for file in files:
        if not is_archive(file.path) and manifest.state(file) == FETCHED:
            try:
                put_file(request, file.path, inside(cache, file.path))
            except (LaryError, OSError) as error:
                failures.append(Failure(None, file.path, str(error)))
                continue
            manifest.put(file, DONE)
    return unpacked, failures


def unpack_archive(request: DownloadRequest, whole: str, parts: Sequence[Path]) -> None:
    """Unpack one archive into the layout. Raises LaryError if it is refused or nothing tells where it belongs."""
    names = member_names(parts)
    place = find_place(whole, names, known_folders(spec for spec in DATASETS if spec.repository))
    if place is None:
        raise LaryError(f"Nothing tells where {whole} belongs, which holds {', '.join(names[:3])}: unpack {parts[0]} "
                        "by hand, and see docs/import.md for the layout.")  # fmt: skip
    with progress(sum(path.stat().st_size for path in parts), f"unpacking {whole}", "byte") as bar:
        unpack(parts, place, request.data_dir, progress=bar)


def put_file(request: DownloadRequest, path: str, source: Path) -> None:
    """A single file: tables to the tables, others into the layout; a table of one's own is never replaced."""
    table = path.endswith(".csv") and not set(PurePosixPath(path).parts) & set(TRACKS)
    target = request.tables / source.name if table else inside(request.data_dir, _from_track(path))
    if target.exists() and target.read_bytes() != source.read_bytes():
        raise LaryError(f"{target} exists with other content than in {request.repository}: move it away.")
    target.parent.mkdir(parents=True, exist_ok=True)
    if table:
        write_bytes(target, source.read_bytes())
    else:
        os.replace(source, target)


def in_words(size: float) -> str:
    """Bytes with a unit of powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size:.0f} bytes"
        size /= 1000
    return f"{size:.3g} TB"
