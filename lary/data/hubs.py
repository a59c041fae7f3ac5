"""Where data sets are fetched from: Hugging Face through ``huggingface_hub``, ModelScope through its web interface.

Both answer three questions: which revision is it, which files has it, and give me this one. Interface of ModelScope:
``/api/v1/datasets/<owner>/<name>/repo/tree`` lists a folder page by page, ``.../repo?FilePath=`` gives a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

from lary.files import inside
from lary.types import LaryError, UsageError

SourceName = Literal["huggingface", "modelscope"]
SECONDS = 30
BLOCK = 1 << 20
PAGE = 200
MODELSCOPE = "https://modelscope.cn"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its path, its size in bytes, and the digests that the hub knows of it.

    ``sha256`` is of the content, ``git`` the SHA-1 of the content as a git object; either may be empty.
    """

    path: str
    size: int
    sha256: str = ""
    git: str = ""


class Hub(Protocol):
    """A place that holds data set repositories."""

    def resolve(self, revision: str | None) -> str:
        """The exact revision that a branch, tag or commit stands for; None is the newest. Raises LaryError."""
        ...

    def files(self, revision: str) -> list[RemoteFile]:
        """All files of a revision. Raises LaryError."""
        ...

    def fetch(self, file: RemoteFile, revision: str, folder: Path) -> Path:
        """Fetch a file to its path below `folder`, going on where an earlier try ended. Raises LaryError."""
        ...


def open_hub(source: SourceName, repository: str) -> Hub:
    """The hub called `source`, for a repository ``owner/name``. Raises UsageError for a name of another form."""
    owner, slash, name = repository.partition("/")
    if not (owner and slash and name) or "/" in name or ".." in repository:
        raise UsageError(f"--repo {repository}: expected owner/name, such as meituan-longcat/LARYBench.")
    hub: Hub = HuggingFace(repository) if source == "huggingface" else ModelScope(repository)
    return hub


class HuggingFace:
    """A data set repository on Hugging Face; token and endpoint as ``huggingface_hub`` finds them."""

    def __init__(self, repository: str) -> None:
        self.repository = repository

    def resolve(self, revision: str | None) -> str:
        import huggingface_hub

        with told("Hugging Face", self.repository):
            about = huggingface_hub.HfApi().dataset_info(self.repository, revision=revision, timeout=SECONDS)
        if not about.sha:
            raise LaryError(f"Hugging Face names no commit of {self.repository}.")
        return str(about.sha)

    def files(self, revision: str) -> list[RemoteFile]:
        import huggingface_hub

        found = []
        with told("Hugging Face", self.repository):
            tree = huggingface_hub.HfApi().list_repo_tree(
                self.repository, recursive=True, revision=revision, repo_type="dataset"
            )
            for entry in tree:
                if isinstance(entry, huggingface_hub.hf_api.RepoFile):
                    sha256 = entry.lfs.sha256 if entry.lfs is not None else ""
                    found.append(RemoteFile(entry.path, entry.size, sha256, "" if sha256 else entry.blob_id))
        return found

    def fetch(self, file: RemoteFile, revision: str, folder: Path) -> Path:
        import huggingface_hub

        target = inside(folder, file.path)
        with told("Hugging Face", self.repository):
            huggingface_hub.hf_hub_download(
                self.repository, file.path, revision=revision, repo_type="dataset", local_dir=folder
            )
        return target


class ModelScope:
    """A data set repository on ModelScope. Its revisions are branches or tags: content is pinned by digests."""

    def __init__(self, repository: str, endpoint: str = MODELSCOPE) -> None:
        self.repository = repository
        self._api = f"{endpoint}/api/v1/datasets/{urllib.parse.quote(repository)}/repo"

    def resolve(self, revision: str | None) -> str:
        return revision or "master"

    def files(self, revision: str) -> list[RemoteFile]:
        return list(self._folder(revision, ""))

    def fetch(self, file: RemoteFile, revision: str, folder: Path) -> Path:
        """As `Hub.fetch`: the part that is there already is kept, and asked for no more."""
        target = inside(folder, file.path)
        partial = target.with_name(f".{target.name}.part")
        partial.parent.mkdir(parents=True, exist_ok=True)
        there = partial.stat().st_size if partial.exists() else 0
        if there > file.size:
            partial.unlink()
            there = 0
        if there < file.size or not partial.exists():
            query = urllib.parse.urlencode({"Revision": revision, "FilePath": file.path})
            with self._open(f"{self._api}?{query}", there) as answer, partial.open("ab") as out:
                if there and answer.status != 206:  # the whole file comes, since ranges are not served
                    out.truncate(0)
                while block := answer.read(BLOCK):
                    out.write(block)
            if partial.stat().st_size < file.size:
                raise LaryError(f"ModelScope ended the transfer of {file.path} early: start again, it goes on there.")
        os.replace(partial, target)
        return target

    def _folder(self, revision: str, root: str) -> Iterator[RemoteFile]:
        """Files below a folder; folder by folder, since a recursive listing is not always allowed."""
        page, known = 1, set()
        while True:
            query = {"Revision": revision, "Root": root, "PageNumber": page, "PageSize": PAGE}
            with self._open(f"{self._api}/tree?{urllib.parse.urlencode(query)}") as answer:
                listed = _listed(answer.read(), self.repository)
            new = [entry for entry in listed if entry["Path"] not in known]
            for entry in new:
                known.add(entry["Path"])
                if entry.get("Type") != "tree":
                    yield RemoteFile(str(entry["Path"]), int(entry.get("Size") or 0), str(entry.get("Sha256") or ""))
                elif PurePosixPath(str(entry["Path"])).parent == PurePosixPath(root):
                    yield from self._folder(revision, str(entry["Path"]))
            if len(listed) < PAGE or not new:
                return
            page += 1

    def _open(self, url: str, start: int = 0) -> Any:
        headers = {"User-Agent": "lary"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SECONDS)
        except (urllib.error.URLError, OSError) as error:
            raise LaryError(f"ModelScope doesn't give {self.repository}: {error}. Check network and name.") from error


def _listed(answer: bytes, repository: str) -> list[dict[str, Any]]:
    try:
        files = json.loads(answer)["Data"]["Files"] or []
        assert all(isinstance(entry["Path"], str) for entry in files)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise LaryError(f"ModelScope's list of {repository} can't be read: {error!r}.") from error
    return list(files)


class told:
    """Whatever a hub's library raises becomes one sentence; each HTTP library that it has used has its own errors."""

    def __init__(self, hub: str, repository: str) -> None:
        self._hub, self._repository = hub, repository

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, LaryError):
            reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
            raise LaryError(
                f"{self._hub} doesn't give {self._repository}: {reason}. Check network, name and 'hf auth login'; "
                "the same command goes on where it stopped."
            ) from error


def content_problem(path: Path, file: RemoteFile) -> str:
    """What differs between a fetched file and what the hub says of it, in words; empty if nothing."""
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size} bytes, not {file.size}"
    states = [(hashlib.sha256(), file.sha256)] if file.sha256 else []
    if file.git:
        states.append((hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False), file.git))
    with path.open("rb") as stream:
        while states and (block := stream.read(BLOCK)):
            for state, _ in states:
                state.update(block)
    return "" if all(state.hexdigest() == wanted.lower() for state, wanted in states) else "its digest differs"
