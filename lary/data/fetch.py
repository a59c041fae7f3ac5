"""Download of the published data sets: pinned, checked, resumed, and unpacked.

``DATA_DIR/lary_download.json`` has the revision and the digest of every file
in its place; it is written after each file, so that the same command resumes.
"""

import filecmp
import fnmatch
import hashlib
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lary.data.archives import SCRATCH, unpack, whole_name
from lary.data.configs import DownloadConfig
from lary.data.spec import DATASETS, DatasetSpec
from lary.files import file_digest, inside, read_json, reason_of, write_bytes, write_json
from lary.runtime import log, progress
from lary.settings import Settings
from lary.types import Failure, JsonDict, LaryError, UsageError

MANIFEST = "lary_download.json"
CACHE = ".lary_download"
VERSION = 1
TRACKS = {"classification", "regression"}
TRIES = 2
SECONDS, SECONDS_TO_LIST, MOST_FILES = 30, 120, 200_000


# Hubs


class RemoteFile(NamedTuple):
    """A file of a repository.

    `sha256` is of the content, `git` its SHA-1 as a git object; either may be
    empty.
    """

    path: str
    size: int
    sha256: str = ""
    git: str = ""

    @property
    def entry(self) -> JsonDict:
        return {"size": self.size, "sha256": self.sha256, "git": self.git, "state": "done"}

    def problem(self, path: Path) -> str:
        """How a fetched file differs from what the hub says; empty if it doesn't."""
        size = path.stat().st_size
        if size != self.size:
            return f"it has {size} bytes, not {self.size}"
        head = f"blob {size}\0".encode()
        state = hashlib.sha256() if self.sha256 else hashlib.sha1(head, usedforsecurity=False)
        wanted = self.sha256 or self.git
        return "its digest differs" if wanted and file_digest(path, 64, state) != wanted.lower() else ""


Listing = tuple[str, list[RemoteFile]]
"""The commit or revision of a repository, and its files."""


class HuggingFace:
    """A repository on Hugging Face; token and endpoint as ``huggingface_hub`` finds them."""

    def __init__(self, repository: str) -> None:
        import huggingface_hub

        self.repository, self._hub = repository, huggingface_hub

    def commit(self, revision: str | None) -> str:
        """The commit of a revision; None: the newest."""
        return str(self._hub.HfApi().dataset_info(self.repository, revision=revision, timeout=SECONDS).sha)

    def files(self, revision: str | None) -> Listing:
        api, commit, found = self._hub.HfApi(), self.commit(revision), []
        for entry in api.list_repo_tree(self.repository, recursive=True, revision=commit, repo_type="dataset"):
            if isinstance(entry, self._hub.hf_api.RepoFile):
                sha256 = entry.lfs.sha256 if entry.lfs is not None else ""
                found.append(RemoteFile(entry.path, entry.size, sha256, "" if sha256 else entry.blob_id))
            if len(found) > MOST_FILES:
                raise ValueError(f"it lists more than {MOST_FILES} files")
        return commit, found

    def fetch(self, path: str, revision: str, folder: Path) -> None:
        """Fetch a file to its path below `folder`, resuming an earlier try."""
        self._hub.hf_hub_download(self.repository, path, revision=revision, repo_type="dataset", local_dir=folder)


class ModelScope:
    """A repository on ModelScope, pinned by digests, since revisions are branches or tags."""

    def __init__(self, repository: str) -> None:
        try:
            import modelscope_hub
        except ImportError:
            raise UsageError("--source modelscope needs its library: pip install 'lary[modelscope]'.") from None
        self.repository, self._api = repository, modelscope_hub.HubApi()

    def files(self, revision: str | None) -> Listing:
        revision = revision or "master"
        listed = self._api.list_repo_files(self.repository, "dataset", revision=revision)
        return revision, [RemoteFile(file.path, file.size, file.sha256 or "") for file in listed if not file.is_dir]

    def fetch(self, path: str, revision: str, folder: Path) -> None:
        self._api.download_file(self.repository, "dataset", path, revision=revision, local_dir=folder)


def list_files(hub: Any, revision: str | None) -> Listing:
    """What `files` of a hub gives in time. Raises any error."""
    from pydantic import TypeAdapter

    found: list[Any] = []

    def work() -> None:
        try:
            found.append(hub.files(revision))
        except Exception as error:
            found.append(error)

    (thread := threading.Thread(target=work, daemon=True)).start()
    thread.join(SECONDS_TO_LIST)
    if not found or isinstance(found[0], Exception):
        raise found[0] if found else TimeoutError("its list has no end")
    return TypeAdapter(Listing).validate_python(found[0], strict=True)


@contextmanager
def hub_errors(hub: str, repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        login = "hf auth login" if hub == "huggingface" else "modelscope login"
        raise LaryError(
            f"{hub} doesn't give {repository}: {reason_of(error)}. Check network, name and '{login}'; the same "
            "command resumes where it stopped."
        ) from error


# Licences


def downloadable(names: Sequence[str] = ()) -> list[DatasetSpec]:
    """The records of `names`, or all published ones. Raises UsageError."""
    if not names:
        return [spec for spec in DATASETS if spec.repository]
    specs = [DATASETS.get(name) for name in dict.fromkeys(names)]
    for spec in specs:
        if not spec.repository:
            raise UsageError(f"Data set '{spec.name}' is not published: there is nothing to download.")
    return specs


def accept(specs: Sequence[DatasetSpec], accepted: bool, ask: Callable[[str], str] | None) -> None:
    """Show the terms of sources. Raises UsageError if they aren't accepted."""
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


def known_folders(specs: Iterable[DatasetSpec]) -> list[str]:
    """Folders of the layout: roots of splits, their parents, and those of sources."""
    found = []
    for spec in specs:
        for split in spec.splits.values():
            _, *folders = accumulate(split.root.split("/"), "{}/{}".format)
            found += folders or [f"{split.root}/{licence.source}" for licence in spec.licences]
    return found


def belongs(path: str, spec: DatasetSpec) -> bool:
    """Whether a file is of a data set, by its record's folders and names."""

    def folded(text: str) -> str:  # names are spelled in several ways
        return re.sub(r"[^a-z0-9]", "", text.lower())

    parts = path.split("/")
    words = {folded(name) for name in (spec.name, *(folder.split("/")[1] for folder in known_folders([spec])))}
    tracks = {None, *(split.root.split("/")[0] for split in spec.splits.values())}
    track = next((part for part in parts if part in TRACKS), None)
    return track in tracks and any(word in folded(part) for word in words for part in parts)


def choose(files: Sequence[RemoteFile], specs: Sequence[DatasetSpec], config: DownloadConfig) -> list[RemoteFile]:
    """The wanted files among archives, tables, and files in the layout's folders.

    Raises UsageError for none.
    """
    every = [file.path for file in files]
    paths = [path for path in every if whole_name(path) or path.endswith(".csv") or TRACKS & {*path.split("/")[:-1]}]
    wanted = {"data": paths}
    if config.files:
        wanted = {pattern: fnmatch.filter(paths, pattern) for pattern in config.files}
    elif config.include:
        wanted = {spec.name: [path for path in paths if belongs(path, spec)] for spec in specs}
    if missing := ", ".join(name for name, found in wanted.items() if not found):
        there = ", ".join(sorted({whole_name(path) or path for path in paths})[:20]) or "nothing"
        raise UsageError(f"There are no files of {missing}: choose with --files PATTERN from {there}.")
    chosen = {path for found in wanted.values() for path in found}
    return [file for file in files if file.path in chosen]


def find_place(archive: str, folders: Sequence[str]) -> Callable[[str], str]:
    """Where the members of an archive belong, among the folders of the layout.

    In this order: by the member's track (``regression/calvin/...``) or folder
    (``calvin/...``), the archive's folder or name (``regression/calvin.tar``).
    """
    short = {folder.split("/")[1]: folder for folder in folders if folder.count("/") == 1}
    path = PurePosixPath(archive)
    stem = re.split(r"\.(?:tar|tgz|zip)\b", path.name, maxsplit=1)[0]
    above = from_track(str(path.parent)) if TRACKS.intersection(path.parts) else ""
    inner = f"{above}/{stem}" if f"{above}/{stem}" in folders else above or short.get(stem, "")

    def place(name: str) -> str:
        first, *rest = name.split("/")
        if TRACKS & {first, *rest[:2]}:
            return from_track(name)
        root = above if first == stem else inner
        if first in short:
            root = short[first].split("/")[0]
        if not root:
            raise LaryError(
                f"Nothing says where {archive} belongs, which holds {name}: unpack it by hand into "
                "the layout of docs/guide-data.md."
            )
        return f"{root}/{name}"

    return place


def from_track(name: str) -> str:
    """A path from its ``classification`` or ``regression`` on."""
    parts = name.split("/")
    at = next((index for index, part in enumerate(parts[:3]) if part in TRACKS), 0)
    return "/".join(parts[at:])


# Fetching


class Download:
    """One run: files are fetched beside the data, then unpacked or moved into the layout."""

    def __init__(self, config: DownloadConfig, settings: Settings, repository: str) -> None:
        self.config, self.repository = config, repository
        self.hub = (HuggingFace if config.source == "huggingface" else ModelScope)(repository)
        self.data_dir, self.tables = settings.path("DATA_DIR"), settings.path("LARY_ROOT") / "data"
        self.cache, self.manifest = self.data_dir / CACHE, self.data_dir / MANIFEST
        self.fetched = self.kept = self.unpacked = 0
        self.files: list[RemoteFile] = []
        self.failures: list[Failure] = []
        self.origin = {"version": VERSION, "source": config.source, "repository": repository}
        found = read_json(self.manifest, "download manifest") if self.manifest.exists() else {**self.origin}
        if not isinstance(found, dict) or not isinstance(found.setdefault("files", {}), dict):
            raise LaryError(f"The download manifest {self.manifest} is damaged: move it away.")
        if not self.origin.items() <= found.items():
            other = ", ".join(f"{key} {found.get(key)}" for key in self.origin)
            raise UsageError(f"{self.data_dir} has files of {other}: choose another DATA_DIR, or update lary.")
        self.revision = str(found.get("revision", ""))
        self.entries: JsonDict = found["files"]

    def is_done(self, file: RemoteFile) -> bool:
        """Whether a file is in its place, and the same on the hub."""
        return bool(self.entries.get(file.path) == file.entry)

    def run(self) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        for rest in self.data_dir.glob(f"{SCRATCH}*"):  # of a run that was killed
            shutil.rmtree(rest, ignore_errors=True)
        groups = dict[str, list[RemoteFile]]()
        for file in sorted(self.files, key=lambda file: (len(file.path), file.path)):  # part 2 before part 10
            groups.setdefault(whole_name(file.path) or file.path, []).append(file)
        groups = {whole: parts for whole, parts in groups.items() if not all(map(self.is_done, parts))}
        wanted = (file for parts in groups.values() for file in parts)
        needed = sum(file.size for file in wanted if not (self.cache / file.path).is_file())
        free = shutil.disk_usage(self.data_dir).free
        log.info("%s at %s: %.3f GB to fetch", self.repository, self.revision, needed / 1e9)
        if needed > free:
            raise LaryError(
                f"{self.data_dir} has {free / 1e9:.3f} GB free, and {needed / 1e9:.3f} GB are needed: choose fewer "
                "data sets with --include, or another DATA_DIR."
            )
        for whole, parts in groups.items():
            try:  # a failure costs its own archive
                self.place(whole, [self.fetch(file) for file in parts])
            except (LaryError, OSError) as error:
                self.failures.append(Failure(None, whole, str(error)))
                continue
            self.entries |= {file.path: file.entry for file in parts}
            write_json(self.manifest, {**self.origin, "revision": self.revision, "files": self.entries})
            for file in () if self.config.keep_archives else parts:  # a stop before leaves all that is needed
                (self.cache / file.path).unlink(missing_ok=True)
        if not self.failures and not self.config.keep_archives:
            shutil.rmtree(self.cache, ignore_errors=True)

    def fetch(self, file: RemoteFile) -> Path:
        """Fetch a file, twice if it arrives damaged. Raises LaryError."""
        path = inside(self.cache, file.path)
        problem, left = file.problem(path) if path.is_file() else "it is missing", TRIES
        while problem and left:
            left -= 1
            path.unlink(missing_ok=True)
            with hub_errors(self.config.source, self.repository):
                self.hub.fetch(file.path, self.revision, self.cache)
            problem = file.problem(path)
            self.fetched += not problem
        if problem:
            path.unlink()
            raise LaryError(f"{file.path} arrived damaged {TRIES} times: {problem}.")
        return path

    def place(self, name: str, paths: Sequence[Path]) -> None:
        """Unpack an archive, or move a file, replacing no other content.

        Raises LaryError.
        """
        if whole_name(name):
            where = find_place(name, known_folders(downloadable()))
            with progress(sum(path.stat().st_size for path in paths), f"unpacking {name}", "byte") as bar:
                unpack(paths, where, self.data_dir, progress=bar)
            self.unpacked += 1
            return
        source, table = paths[0], name.endswith(".csv") and not TRACKS & {*name.split("/")}
        target = self.tables / source.name if table else inside(self.data_dir, from_track(name))
        if target.exists() and not filecmp.cmp(source, target, shallow=False):
            raise LaryError(f"{target} exists with other content than in {self.repository}: move it away.")
        target.parent.mkdir(parents=True, exist_ok=True)
        if table:  # perhaps on another file system
            write_bytes(target, source.read_bytes())
        else:
            source.replace(target)


def download(config: DownloadConfig, settings: Settings, ask: Callable[[str], str] | None = None) -> Download:
    """Show the terms, fetch, check and unpack; a dry run chooses the files.

    `ask` asks a person. Raises UsageError for refused terms, another
    repository in the folder, or no files, LaryError for an unreachable hub or
    too little space.
    """
    specs = downloadable([key for part in config.include for key in part.split(",") if key])
    repository = config.repo or ", ".join(sorted({spec.repository for spec in specs}))
    if ".." in repository or not re.fullmatch(r"[^/, ]+/[^/, ]+", repository):
        raise UsageError(f"--repo {repository}: expected one owner/name, such as meituan-longcat/LARYBench.")
    run = Download(config, settings, repository)
    if not config.dry_run:
        accept(specs, config.accept_licenses, ask)
    with hub_errors(config.source, repository):
        run.revision, listed = list_files(run.hub, config.revision or run.revision or None)
    run.files = choose(listed, specs, config)
    run.kept = sum(map(run.is_done, run.files))
    if not config.dry_run:
        run.run()
    return run
