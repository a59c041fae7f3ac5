"""Download of the published data sets: pinned, checked against digests, resumed, unpacked into the benchmark's layout.

``DATA_DIR/lary_download.json`` names the revision that was fetched, the digests, and how far every file has come; it is
written after each of them, so that the same command resumes where it stopped.
"""

from __future__ import annotations

import filecmp
import fnmatch
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lary.data.archives import SCRATCH, group_parts, is_archive, member_names, unpack, whole_name
from lary.data.configs import DownloadConfig
from lary.data.hubs import HuggingFace, ModelScope, RemoteFile, content_problem
from lary.data.spec import DATASETS, DatasetSpec
from lary.files import inside, read_json, write_bytes, write_json
from lary.runtime import log, progress
from lary.settings import Settings
from lary.types import Failure, LaryError, UsageError

MANIFEST = "lary_download.json"
CACHE = ".lary_download"
VERSION = 1
TRACKS = ("classification", "regression")
FETCHED, DONE = "fetched", "done"
TRIES = 2


@dataclass(frozen=True)
class DownloadReport:
    """The pinned revision, the chosen files, how many were fetched or there already, archives unpacked, failures."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]
    fetched: int = 0
    kept: int = 0
    unpacked: int = 0
    failures: tuple[Failure, ...] = ()


# Licences


def downloadable(names: Sequence[str] = ()) -> tuple[DatasetSpec, ...]:
    """The records of `names`, or of all data sets that are published. Raises UsageError for one that isn't."""
    if not names:
        return tuple(spec for spec in DATASETS if spec.repository)
    specs = tuple(DATASETS.get(name) for name in dict.fromkeys(names))
    for spec in specs:
        if not spec.repository:
            raise UsageError(f"Data set '{spec.name}' is not published: there is nothing to download.")
    return specs


def accept(specs: Sequence[DatasetSpec], accepted: bool, ask: Callable[[str], str] | None) -> None:
    """Show the terms of every source and have them accepted: by an option, or by typing yes to `ask`.

    Raises:
        UsageError: nobody accepted them.
    """
    print(f"Sources and terms of: {', '.join(spec.name for spec in specs)}")
    for licence in dict.fromkeys(licence for spec in specs for licence in spec.licences):
        use = "commercial use allowed" if licence.commercial else "no commercial use"
        print(f"  {licence.source}: {licence.name}; {use}; {licence.url}")
    print("Each part keeps the terms of its source; taken together the strictest of them apply.", flush=True)
    if accepted:
        return
    if ask is None:
        raise UsageError("The terms above are not accepted: pass --accept-licenses if you do.")
    if ask("Do you accept the terms of every source? Type yes: ").strip().lower() != "yes":
        raise UsageError("The terms were not accepted; nothing was downloaded.")


# The layout


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

    def folded(text: str) -> str:  # names are spelled in several ways
        return re.sub(r"[^a-z0-9]", "", text.lower())

    parts = PurePosixPath(path).parts
    words = {folded(name) for name in (spec.name, *(folder.split("/")[1] for folder in known_folders([spec])))}
    named = [part for part in parts if part in TRACKS]
    if named and named[0] not in {PurePosixPath(split.root).parts[0] for split in spec.splits.values()}:
        return False
    return any(word in folded(part) for word in words for part in parts)


def choose(
    files: Sequence[RemoteFile], specs: Sequence[DatasetSpec], config: DownloadConfig, repository: str
) -> list[RemoteFile]:
    """The files that are wanted: archives, tables, and what is in the folders of the layout.

    Raises:
        UsageError: a data set or pattern has none; names what there is.
    """
    useful = [
        file
        for file in files
        if is_archive(file.path) or file.path.endswith(".csv") or set(PurePosixPath(file.path).parts[:-1]) & set(TRACKS)
    ]
    there = ", ".join(sorted({whole_name(file.path) for file in useful})[:20]) or "none"
    if config.files:
        chosen = [file for file in useful if any(fnmatch.fnmatch(file.path, pattern) for pattern in config.files)]
        if not chosen:
            raise UsageError(f"No file of {repository} matches --files. It has: {there}.")
        return chosen
    if not config.include:
        return useful
    missing = [spec.name for spec in specs if not any(belongs(file.path, spec) for file in useful)]
    if missing:
        raise UsageError(
            f"{repository} has no files of {', '.join(missing)} by their names. It has: {there}. Choose with --files "
            "PATTERN."
        )
    return [file for file in useful if any(belongs(file.path, spec) for spec in specs)]


def find_place(archive: str, names: Sequence[str], folders: Sequence[str]) -> Callable[[str], str] | None:
    """Where the members of an archive belong below ``DATA_DIR``; None if nothing says so.

    In this order: members name their track (``regression/calvin/...``); they start with a folder of the layout
    (``calvin/...``); the archive is in one or is called like one (``regression/calvin.tar``).
    """
    split = [[part for part in name.split("/") if part not in ("", ".")] for name in names]
    tops = {parts[0] for parts in split if parts}
    if any(track in parts[:3] for parts in split for track in TRACKS):
        return from_track
    short = {folder.split("/")[1]: folder for folder in folders if folder.count("/") == 1}
    if tops and tops <= set(short):
        usual = short[min(tops)]  # only the first members were read: others are put beside them
        return lambda name: f"{short.get(name.split('/')[0], usual).split('/')[0]}/{name}"
    path = PurePosixPath(archive)
    stem = re.split(r"\.(?:tar|tgz|zip)\b", path.name, maxsplit=1)[0]
    above = from_track(str(path.parent)) if set(path.parts) & set(TRACKS) else ""
    if tops != {stem}:
        if f"{above}/{stem}" in folders:
            above = f"{above}/{stem}"
        elif not above:
            above = short.get(stem, "")
    return (lambda name: f"{above}/{name}") if above else None


def from_track(name: str) -> str:
    """A path from its ``classification`` or ``regression`` on."""
    parts = name.split("/")
    at = next((index for index, part in enumerate(parts[:3]) if part in TRACKS), 0)
    return "/".join(parts[at:])


# Fetching


@dataclass
class DownloadManifest:
    """What is in ``DATA_DIR`` and where it is from; ``files`` has size, sha256, git and state by path."""

    path: Path
    source: str = ""
    repository: str = ""
    revision: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> DownloadManifest:
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
        entry = {"path": file.path, **self.files.get(file.path, {})}
        state = entry.pop("state", "")
        return str(state) if entry == asdict(file) else ""

    def put(self, file: RemoteFile, state: str) -> None:
        """Note how far a file has come, and save."""
        self.files[file.path] = {"size": file.size, "sha256": file.sha256, "git": file.git, "state": state}
        self.save()

    def save(self) -> None:
        keys = ("source", "repository", "revision", "files")
        write_json(self.path, {"version": VERSION, **{key: getattr(self, key) for key in keys}})


def download(config: DownloadConfig, settings: Settings, ask: Callable[[str], str] | None = None) -> DownloadReport:
    """Show the terms, then fetch, check and unpack; with `config.dry_run` only choose the files.

    Args:
        ask: asks a person whether the terms are accepted; None where there is none.

    Raises:
        UsageError: the terms are not accepted, the folder holds another repository, or nothing is chosen.
        LaryError: the hub can't be reached, or there is no space.
    """
    specs = downloadable([key for part in config.include for key in part.split(",") if key])
    repositories = {config.repo} if config.repo else {spec.repository for spec in specs}
    if len(repositories) != 1:
        raise UsageError(
            f"These data sets are in several repositories, {', '.join(sorted(repositories))}: download them one by one."
        )
    repository = repositories.pop()
    if ".." in repository or not re.fullmatch(r"[^/]+/[^/]+", repository):
        raise UsageError(f"--repo {repository}: expected owner/name, such as meituan-longcat/LARYBench.")
    hub: HuggingFace | ModelScope = (
        HuggingFace(repository) if config.source == "huggingface" else ModelScope(repository)
    )
    data_dir = settings.path("DATA_DIR")
    if not config.dry_run:
        accept(specs, config.accept_licenses, ask)
    manifest = DownloadManifest.read(data_dir / MANIFEST)
    if manifest.repository not in ("", repository) or manifest.source not in ("", config.source):
        raise UsageError(
            f"{data_dir} holds files of {manifest.repository} from {manifest.source}: choose another DATA_DIR."
        )
    revision, listed = hub.files(config.revision or manifest.revision or None)
    files = choose(listed, specs, config, repository)
    report = DownloadReport(repository, revision, tuple(files))
    if config.dry_run:
        return report
    if manifest.revision not in ("", revision):
        log.info("moving from revision %s to %s: changed files are fetched again", manifest.revision, revision)
    log.info("%s at %s: %d files, %s", repository, revision, len(files), in_words(sum(file.size for file in files)))
    manifest.source, manifest.repository, manifest.revision = config.source, repository, revision
    kept = sum(manifest.state(file) == DONE for file in files)
    run = _Download(config, settings, hub, manifest)
    fetched, unpacked = run.run(files)
    return replace(report, fetched=fetched, kept=kept, unpacked=unpacked, failures=tuple(run.failures))


class _Download:
    """One run: the chosen files are fetched into a folder beside the data, then unpacked or moved into the layout."""

    def __init__(
        self, config: DownloadConfig, settings: Settings, hub: HuggingFace | ModelScope, manifest: DownloadManifest
    ) -> None:
        self.config, self.hub, self.manifest = config, hub, manifest
        self.data_dir, self.tables = settings.path("DATA_DIR"), settings.path("LARY_ROOT") / "data"
        self.cache = self.data_dir / CACHE
        self.failures: list[Failure] = []

    def run(self, files: Sequence[RemoteFile]) -> tuple[int, int]:
        """How many files were fetched, and how many archives unpacked."""
        for rest in self.data_dir.glob(f"{SCRATCH}*"):  # of a run that was killed
            shutil.rmtree(rest, ignore_errors=True)
        waiting = [file for file in files if self.manifest.state(file) != DONE]
        self.check_space([file for file in waiting if self.manifest.state(file) != FETCHED])
        self.manifest.save()
        fetched = 0
        with progress(len(waiting), "fetching", "file") as bar:
            for file in waiting:
                there = self.manifest.state(file) == FETCHED and (self.cache / file.path).is_file()
                if not there and self.tried(file.path, self.fetch, file):
                    self.manifest.put(file, FETCHED)
                    fetched += 1
                bar.advance()
        unpacked = self.unpack(files)
        for file in waiting:
            fits = not is_archive(file.path) and self.manifest.state(file) == FETCHED
            if fits and self.tried(file.path, self.put, file.path):
                self.manifest.put(file, DONE)
        if not self.failures and not self.config.keep_archives:
            shutil.rmtree(self.cache, ignore_errors=True)
        return fetched, unpacked

    def tried(self, path: str, action: Callable[..., None], *arguments: Any) -> bool:
        """Whether an action worked; a failure is noted and doesn't stop the others."""
        try:
            action(*arguments)
        except (LaryError, OSError) as error:
            self.failures.append(Failure(None, path, str(error)))
            return False
        return True

    def check_space(self, files: Sequence[RemoteFile]) -> None:
        """Raises LaryError if the files don't fit on the disk."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.data_dir).free
        there = [self.cache / file.path for file in files]
        needed = sum(file.size for file in files) - sum(path.stat().st_size for path in there if path.exists())
        if needed > free:
            raise LaryError(
                f"{self.data_dir} has {in_words(free)} free, and {in_words(needed)} are needed: choose fewer data sets "
                "with --include, or another DATA_DIR."
            )

    def fetch(self, file: RemoteFile) -> None:
        """Fetch a file until its size and digest are right. Raises LaryError after the second try."""
        path, problem = inside(self.cache, file.path), ""
        for _ in range(TRIES):
            self.hub.fetch(file, self.manifest.revision, self.cache)
            problem = content_problem(path, file)
            if not problem:
                return
            path.unlink()
        raise LaryError(f"{file.path} arrived damaged {TRIES} times: {problem}.")

    def unpack(self, files: Sequence[RemoteFile]) -> int:
        """Unpack the archives whose parts are all here; how many."""
        unpacked, by_path, groups = 0, {file.path: file for file in files}, {}
        self.tried(self.manifest.repository, lambda: groups.update(group_parts(list(by_path))))
        for whole, parts in groups.items():
            states = {self.manifest.state(by_path[part]) for part in parts}
            # A part without a state has failed, which is reported already.
            if states == {DONE} or "" in states or not self.tried(whole, self.unpack_one, whole, parts):
                continue
            unpacked += 1
            for part in parts:
                self.manifest.put(by_path[part], DONE)
            for part in () if self.config.keep_archives else parts:  # only now: a stop before leaves all that is needed
                inside(self.cache, part).unlink(missing_ok=True)
        return unpacked

    def unpack_one(self, whole: str, names: Sequence[str]) -> None:
        """Unpack an archive into the layout. Raises LaryError if it is refused or nothing says where it belongs."""
        parts = [inside(self.cache, name) for name in names]
        members = member_names(parts)
        place = find_place(whole, members, known_folders(downloadable()))
        if place is None:
            raise LaryError(
                f"Nothing tells where {whole} belongs, which holds {', '.join(members[:3])}: unpack "
                f"{parts[0]} by hand, and see docs/import.md for the layout."
            )
        with progress(sum(path.stat().st_size for path in parts), f"unpacking {whole}", "byte") as bar:
            unpack(parts, place, self.data_dir, progress=bar)

    def put(self, path: str) -> None:
        """Move a file to its place, where none of other content is replaced: a table to the tables."""
        source = inside(self.cache, path)
        table = path.endswith(".csv") and not set(PurePosixPath(path).parts) & set(TRACKS)
        target = self.tables / source.name if table else inside(self.data_dir, from_track(path))
        if target.exists() and not filecmp.cmp(source, target, shallow=False):
            raise LaryError(f"{target} exists with other content than in {self.manifest.repository}: move it away.")
        target.parent.mkdir(parents=True, exist_ok=True)
        if table:  # perhaps on another file system
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
