"""Repositories of the Hugging Face hub: the files that are needed, from its cache or the network, or why not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lary.models.spec import ModelSpec, remedy
from lary.models.tensors import first_line
from lary.runtime import log
from lary.types import UsageError

SECONDS = 10
"""How long the hub may take to answer before its cache, or an error, answers instead."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch(
    spec: ModelSpec,
    context_revision: str | None,
    repository: str,
    *,
    choose: Callable[[Sequence[str]], Sequence[str]],
    complete: Callable[[Path], bool],
    expected: str,
) -> Path:
    """The folder of a repository's files, named after its commit: downloaded, or from the cache of earlier downloads.

    A commit that lies in the cache needs no network. Nothing is downloaded before the hub has said that it gives it.

    Args:
        context_revision: commit, branch or tag from ``--revision``; without one, what the record pins.
        choose: of a repository's file names, those (or patterns of those) that are needed; empty if it has none.
        complete: whether a folder of the cache has all that is needed.
        expected: the files in words, for errors.

    Raises:
        UsageError: why the hub doesn't give them, and what to do.
    """
    import huggingface_hub

    pinned = spec.weights.revision if spec.weights and repository == spec.weights.hub else None
    revision = context_revision or pinned
    cached: Path | None = None
    try:
        cached = find_in_cache(repository, revision, complete)
        if cached is not None and revision is not None and COMMIT.fullmatch(revision):
            return cached
        hub = huggingface_hub.HfApi()
        about = hub.model_info(repository, revision=revision, timeout=SECONDS)
        if about.gated:  # anybody may read about it, few may have its files
            hub.auth_check(repository)
        wanted = choose([file.rfilename for file in about.siblings or ()])
        if wanted:
            folder = huggingface_hub.snapshot_download(repository, revision=about.sha, allow_patterns=list(wanted))
            return Path(folder)
        reason, cause = f"holds no {expected}", None
    except Exception as error:  # each HTTP library that huggingface_hub has used raises its own
        reason, cause = refusal(error, repository, revision), error
        if cached is not None and not is_denial(error):
            log.info("%s: the hub can't be reached, %s comes from its cache", spec.name, repository)
            return cached
    raise UsageError(f"Weights of '{spec.name}': {repository} {reason}. {remedy(spec, expected)}") from cause


def fetch_file(repository: str, name: str, revision: str | None = None) -> Path | None:
    """One file of a repository, from the hub or its cache; None where the repository has none, or isn't to be had.

    The hub is asked once, without the retries that its library announces line by line.

    Raises:
        UsageError: the hub can't be reached, and nothing is known about the file.
    """
    import huggingface_hub

    known: object = None
    try:
        known = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
        hub = huggingface_hub.HfApi()
        about = hub.model_info(repository, revision=revision, timeout=SECONDS)
        if all(file.rfilename != name for file in about.siblings or ()):
            return None
        if about.gated:
            hub.auth_check(repository)
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=about.sha))
    except Exception as error:  # see above
        if is_denial(error):  # the weights are fetched next, and their error names what is wrong
            return None
        if known is not None:  # a path, or that the file was asked for before and isn't there
            return Path(known) if isinstance(known, str) else None
        reason = f"the hub can't be asked for its {name}: {repository} {refusal(error, repository, revision)}"
        raise UsageError(f"Model 'hf:{repository}': {reason}. Name a folder, or go online once.") from error


def find_in_cache(repository: str, revision: str | None, complete: Callable[[Path], bool]) -> Path | None:
    """The folder of an earlier download that has all that is needed, or None."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if complete(folder) else None


def is_denial(error: Exception) -> bool:
    """Whether the hub has answered, and said no."""
    from huggingface_hub import errors

    return isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError))


def refusal(error: Exception, repository: str, revision: str | None) -> str:
    """Why a repository's files can't be had, as the rest of a sentence that begins with its name."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"is gated: ask for access at https://huggingface.co/{repository}, then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return "is neither on this machine nor a public repository of the hub"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision '{revision}': name a commit, branch or tag of it, or leave --revision out"
    if isinstance(error, errors.HFValidationError):
        return "is neither on this machine nor the name of a repository"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it: unset that once"
    return f"can't be fetched from the hub ({first_line(error)})"
