"""The part of the audit that opens files: constant action dimensions, motion, pictures under other names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from lary.data.actions import Floats, read_chunk
from lary.data.audit import AuditRequest, Finding
from lary.data.audit_part import Part, share
from lary.data.hashing import FARTHEST, FrameHash, FrameSource, hash_sources, nearest
from lary.runtime import progress
from lary.types import Failure, MediaError, UsageError

CONSTANT = 1e-6
"""Range of an action dimension over a whole split at which it counts as constant."""

AHEAD = 4096
"""Files that are read ahead at most."""


# Actions


def look_into_actions(part: Part, request: AuditRequest) -> list[Finding]:
    """Dimensions that never change, per robot type; pairs in which nothing moves; files that can't be read."""
    space, rows = part.table.spec.actions, len(part.table)
    ranges: dict[str, tuple[Floats, Floats]] = {}
    still: list[str] = []
    failures: list[Failure] = []
    for row, chunk in read_chunks(part, request.workers):
        if isinstance(chunk, Failure):
            failures.append(chunk)
            continue
        low, high = chunk.min(axis=0), chunk.max(axis=0)
        if (high - low <= request.still).all():
            still.append(part.media[0][row])
        known = ranges.get(part.embodiments[row], (low, high))
        ranges[part.embodiments[row]] = np.minimum(known[0], low), np.maximum(known[1], high)
    found = unreadable(part.name, failures, rows, "action files")
    for robot, (low, high) in sorted(ranges.items()):
        names = [space.dims[index] for index in np.flatnonzero(high - low <= CONSTANT)]
        if names:
            text = f"{share(len(names), len(space.dims), 'action dimensions')} of {robot or '(empty)'} never change"
            found.append(Finding("warning", "constant_dimension", (part.name,), len(names), len(space.dims), text,
                                 tuple(names)))  # fmt: skip
    read = rows - len(failures)
    if still:
        text = f"{share(len(still), read, 'pairs')} show no motion: no action changes by more than {request.still:g}"
        found.append(Finding("note", "no_motion", (part.name,), len(still), read, text, tuple(still[:3])))
    return found


def read_chunks(part: Part, workers: int) -> Iterator[tuple[int, Floats | Failure]]:
    """The action chunk of every row, read by threads."""
    table, space = part.table, part.table.spec.actions

    def one(row: int) -> Floats | Failure:
        try:
            return read_chunk(table.action_path(table[row]), space)
        except MediaError as error:
            return Failure(row, part.targets[row], str(error))

    with ThreadPoolExecutor(max(workers, 1)) as pool, progress(len(table), f"actions of {part.name}", "file") as bar:
        for start in range(0, len(table), AHEAD):
            numbers = range(start, min(start + AHEAD, len(table)))
            for row, chunk in zip(numbers, pool.map(one, numbers), strict=True):
                yield row, chunk
                bar.advance()


# Frames


@dataclass(frozen=True)
class Frames:
    """The hashed frames of a split: where each comes from, its group, and its hashes; n of each."""

    names: list[str]
    groups: list[str]
    hashes: list[FrameHash]

    def first_by_content(self) -> dict[bytes, int]:
        """One frame for each content."""
        found: dict[bytes, int] = {}
        for index, item in enumerate(self.hashes):
            found.setdefault(item.content, index)
        return found

    def looks(self, rows: Iterable[int]) -> tuple[list[int], npt.NDArray[np.uint8]]:
        """Of these frames those that show something, one for each look, and their perceptual hashes (m, 32) uint8."""
        found: dict[bytes, int] = {}
        for index in rows:
            if self.hashes[index].look:
                found.setdefault(self.hashes[index].look, index)
        data = np.frombuffer(b"".join(found), dtype=np.uint8).reshape(-1, 32)
        return list(found.values()), data


def look_into_frames(parts: Sequence[Part], request: AuditRequest) -> list[Finding]:
    """Equal and alike pictures between splits, equal ones under several names and pairs without motion within one.

    Raises:
        UsageError: a distance that can't be searched.
    """
    if not 0 <= request.distance <= FARTHEST:
        raise UsageError(f"--distance {request.distance}: expected 0 to {FARTHEST} bits.")
    found, hashed = [], []
    for part in parts:
        frames, findings = hash_part(part, request)
        hashed.append(frames)
        found += findings
    for (one, mine), (other, theirs) in combinations(list(zip(parts, hashed, strict=True)), 2):
        found += compare_frames((one.name, other.name), mine, theirs, request.distance)
    return found


def hash_part(part: Part, request: AuditRequest) -> tuple[Frames, list[Finding]]:
    """Hash the images of pairs, or the first, middle and last sampled frame of clips; what the split says by itself."""
    sources, names, groups = sources_of(part)
    frames, failures = Frames([], [], []), []
    content: dict[str, bytes] = {}
    with progress(len(sources), f"frames of {part.name}", "file") as bar:
        outcomes = hash_sources(sources, workers=request.workers, cache=request.cache, progress=bar)
        for index, outcome in outcomes:
            if isinstance(outcome, Failure):
                failures.append(outcome)
                continue
            content[names[index]] = outcome[0].content
            frames.names.extend([names[index]] * len(outcome))
            frames.groups.extend([groups[index]] * len(outcome))
            frames.hashes.extend(outcome)
    found = unreadable(part.name, failures, len(sources), "images or clips")
    if part.table.spec.media == "pair":
        pairs = [pair for pair in zip(*part.media, strict=True) if all(path in content for path in pair)]
        still = [source for source, target in pairs if source != target and content[source] == content[target]]
        if still:
            text = f"{share(len(still), len(pairs), 'pairs')} show no motion: both images are equal"
            found.append(Finding("warning", "equal_images", (part.name,), len(still), len(pairs), text,
                                 tuple(still[:3])))  # fmt: skip
    first = frames.first_by_content()
    pictures = [
        (frames.names[first[item.content]], name)
        for item, name in zip(frames.hashes, frames.names, strict=True)
        if frames.names[first[item.content]] != name
    ]
    if pictures:
        text = f"{share(len(pictures), len(frames.names), 'frames')} are those of another file"
        examples = tuple(f"{name} = {known}" for known, name in pictures[:3])
        found.append(Finding("note", "repeated_frame", (part.name,), len(pictures), len(frames.names), text, examples))
    return frames, found


def sources_of(part: Part) -> tuple[list[FrameSource], list[str], list[str]]:
    """Every file of a split once: where its frames come from, its name, its group."""
    sources: dict[str, tuple[FrameSource, str]] = {}
    for row, group in enumerate(part.groups):
        if all(column[row] in sources for column in part.media):
            continue
        sample = part.table[row]
        chosen: tuple[int, ...] = ()
        if index := sample.frame_index:
            chosen = tuple(sorted({index[0], index[len(index) // 2], index[-1]}))
        for column, path in zip(part.media, part.table.media_path(sample), strict=True):
            sources.setdefault(column[row], (FrameSource(path, chosen), group))
    return [source for source, _ in sources.values()], list(sources), [group for _, group in sources.values()]


def compare_frames(splits: tuple[str, str], one: Frames, other: Frames, distance: int) -> list[Finding]:
    """Pictures of the second split that the first one has: equal ones leak, alike ones are a warning."""
    found, known, names, groups = [], one.first_by_content(), set(one.names), set(one.groups)
    same = {name: one.names[known[item.content]] for item, name in zip(other.hashes, other.names, strict=True)
            if item.content in known}  # fmt: skip
    renamed = {name: twin for name, twin in same.items() if name not in names}
    total = len(set(other.names))
    if renamed:
        text = f"{share(len(renamed), total, 'files')} of {splits[1]} show frames of {splits[0]} under another name"
        examples = tuple(f"{name} = {twin}" for name, twin in list(renamed.items())[:3])
        found.append(Finding("leak", "same_frame_content", splits, len(renamed), total, text, examples))
    # Neighbours within an episode look alike: what the splits share by name is reported already.
    rows = [row for row, group in enumerate(other.groups) if group not in groups and other.names[row] not in same]
    (mine, base), (theirs, queries) = one.looks(range(len(one.names))), other.looks(rows)
    near, bits = nearest(queries, base, distance)
    alike = {}
    for query in np.flatnonzero(near >= 0):
        name, twin = other.names[theirs[query]], one.names[mine[near[query]]]
        alike[name] = f"{name} ~ {twin} ({bits[query]} bits)"
    if alike:
        text = (
            f"{share(len(alike), total, 'files')} of {splits[1]} look like frames of {splits[0]}: hashes of 256 bits "
            f"that differ in {distance} at most"
        )
        found.append(Finding("warning", "alike_frame", splits, len(alike), total, text, tuple(alike.values())[:3]))
    return found


def unreadable(split: str, failures: Sequence[Failure], total: int, what: str) -> list[Finding]:
    """What could not be read, and so was not audited."""
    if not failures:
        return []
    text = f"{share(len(failures), total, what)} can't be read and are not audited"
    return [Finding("warning", "unreadable", (split,), len(failures), total, text,
                    tuple(failure.reason for failure in failures[:3]))]  # fmt: skip
