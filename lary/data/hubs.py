"""Data set repositories on Hugging Face and ModelScope: their lists of files with digests, and single files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lary.types import LaryError, UsageError

SECONDS = 30


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its path, its size in bytes, and the digests that the hub knows of it.

    ``sha256`` is of the content, ``git`` the SHA-1 of the content as a git object; either may be empty.
    """

    path: str
    size: int
    sha256: str = ""
    git: str = ""


class HuggingFace:
    """A data set repository on Hugging Face; token and endpoint as ``huggingface_hub`` finds them."""

    def __init__(self, repository: str) -> None:
        self.repository = repository

    def files(self, revision: str | None) -> tuple[str, list[RemoteFile]]:
        """The commit that a branch, tag or commit stands for (None: the newest), and its files. Raises LaryError."""
        import huggingface_hub

        with hub_errors("Hugging Face", self.repository):
            commit = huggingface_hub.HfApi().dataset_info(self.repository, revision=revision, timeout=SECONDS).sha
            tree = huggingface_hub.HfApi().list_repo_tree(
                self.repository, recursive=True, revision=commit, repo_type="dataset"
            )
            files = [entry for entry in tree if isinstance(entry, huggingface_hub.hf_api.RepoFile)]
        digests = [entry.lfs.sha256 if entry.lfs is not None else "" for entry in files]
        return str(commit), [
            RemoteFile(entry.path, entry.size, sha256, "" if sha256 else entry.blob_id)
            for entry, sha256 in zip(files, digests, strict=True)
        ]

    def fetch(self, file: RemoteFile, revision: str, folder: Path) -> None:
        """Fetch a file to its path below `folder`, resuming an earlier try. Raises LaryError."""
        import huggingface_hub

        with hub_errors("Hugging Face", self.repository):
            huggingface_hub.hf_hub_download(
                self.repository, file.path, revision=revision, repo_type="dataset", local_dir=folder
            )


class ModelScope:
    """A data set repository on ModelScope. Its revisions are branches or tags: content is pinned by digests."""

    def __init__(self, repository: str) -> None:
        try:
            import modelscope_hub
        except ImportError:
            raise UsageError(
                "--source modelscope needs ModelScope's own library: pip install 'lary[modelscope]'."
            ) from None
        self.repository, self._api = repository, modelscope_hub.HubApi()

    def files(self, revision: str | None) -> tuple[str, list[RemoteFile]]:
        """As `HuggingFace.files`; the revision stays a name."""
        revision = revision or "master"
        with hub_errors("ModelScope", self.repository):
            listed = self._api.list_repo_files(self.repository, "dataset", revision=revision)
        return revision, [RemoteFile(file.path, file.size, file.sha256 or "") for file in listed if not file.is_dir]

    def fetch(self, file: RemoteFile, revision: str, folder: Path) -> None:
        """As `HuggingFace.fetch`."""
        with hub_errors("ModelScope", self.repository):
            self._api.download_file(self.repository, "dataset", file.path, revision=revision, local_dir=folder)


@contextmanager
def hub_errors(hub: str, repository: str) -> Iterator[None]:
    """Turn whatever a hub's library raises into one sentence; each HTTP library below it has its own errors."""
    try:
        yield
    except LaryError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise LaryError(
            f"{hub} doesn't give {repository}: {reason}. Check network, name and 'hf auth login'; the same command "
            "resumes where it stopped."
        ) from error


def content_problem(path: Path, file: RemoteFile) -> str:
    """The difference between a fetched file and what the hub knows of it, in words; empty if there is none."""
    size = path.stat().st_size
    if size != file.size:
        return f"it has {size} bytes, not {file.size}"
    states = [(hashlib.sha256(), file.sha256)] if file.sha256 else []
    if file.git:
        states.append((hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False), file.git))
    with path.open("rb") as stream:
        while states and (block := stream.read(1 << 20)):
            for state, _ in states:
                state.update(block)
    return "" if all(state.hexdigest() == wanted.lower() for state, wanted in states) else "its digest differs"
