"""Pairs of frames for the training of latent action models, from mixtures of data sets.

A sample is a function of the seed and its number alone.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from itertools import count, islice
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lary.arrays import Ints
from lary.data.frames import count_frames
from lary.data.spec import DATASETS, DatasetSpec
from lary.data.splits import find_table
from lary.data.tables import SampleTable, read_table
from lary.files import digest, media_facts
from lary.importers.plain import IMAGES, VIDEOS, numbered
from lary.latents.choice import read_chosen
from lary.latents.pipeline import MOST_WORKERS
from lary.latents.reading import Batch, idle_readers
from lary.models.preprocess import to_planes
from lary.models.spec import Preprocess
from lary.registry import suggest
from lary.runtime import in_threads, log, tell_once, usable_cores
from lary.settings import Settings
from lary.types import JsonDict, LaryError, MediaError, Sample, UsageError, as_path

if TYPE_CHECKING:
    from torch import Tensor

DISTANCE = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
HELD_OUT, FEWEST = 0.05, 64  # share of groups, and pairs
STATIC = 0.05  # of all pairs
ATTEMPTS = 10  # at another sample
MOST_DIGESTS, THREADS = 10_000, 16  # of files


def pick_source(seed: int, number: int, weights: Sequence[float]) -> int:
    """Which data set a sample is from, as published. `weights` add up to 1."""
    draw = np.random.RandomState((seed + number) % 2**32)
    return int(draw.choice(len(weights), p=weights))


def pick_unit(seed: int, number: int, units: int) -> int:
    """Which of the videos of its data set a sample is from, as published."""
    return random.Random((seed + number) % 2**32).choice(range(units))


def pick_pair(draw: random.Random, frames: int, low: int, high: int) -> tuple[int, int]:
    """Two frames [low, high] apart, as published: the last takes the place of later ones."""
    first = draw.randint(0, frames - 1)
    return first, min(draw.randint(first + low, first + high), frames - 1)


@dataclass(frozen=True)
class PairUnit:
    """A video from `start` on, images in order, or a pair (0 frames)."""

    id: str
    paths: tuple[str, ...]
    start: int
    frames: int

    def sample(self, pair: tuple[int, int], row: int) -> tuple[Sample, list[str]]:
        """Two frames as the readers take them: a sample, and its paths."""
        images = len(self.paths) > 1
        paths = [self.paths[number] for number in pair] if images else [*self.paths]
        index = () if images else tuple(self.start + number for number in pair)
        return Sample(self.id, row, tuple(paths), index, "", "", ""), paths


class PairSource:
    """Units of a data set or folder, made by `unit`; whole groups are held out."""

    def __init__(
        self,
        name: str,
        groups: Sequence[str],
        distance: str | None,
        weight: float,
        unit: Callable[[int], PairUnit],
        about: JsonDict,
    ) -> None:
        if not groups:
            raise UsageError(f"There are no pairs in {name}: it has no images, videos or rows for it.")
        self.name = name
        self.weight = weight
        self.unit = unit
        self._about, self.count = about, len(groups)
        self.distance = None if distance is None else parse_distance(distance, name)
        counts, held, pairs = Counter(groups), set[str](), 0
        names = sorted(counts, key=digest)  # the same on every machine
        for group in names[: -(-len(names) // 4)] if len(names) > 1 else ():
            if pairs >= FEWEST and len(held) >= HELD_OUT * len(names):
                break
            held.add(group)
            pairs += counts[group]
        if not held:
            log.warning("%s is one video or episode, of which the held-out pairs are, too", name)
        inside = np.array([group in held for group in groups])
        self.units: Ints = np.flatnonzero(~inside)
        self.heldout: Ints = np.flatnonzero(inside) if held else self.units
        self.groups = sorted(counts.keys() - held)

    def manifest(self) -> JsonDict:
        """Ids, groups, digests and licences of what is trained on."""
        units = list(map(self.unit, self.units.tolist()))
        files = [unit.paths[0] for unit in units[:: -(-len(units) // MOST_DIGESTS)]]
        own = {name: getattr(self, name) for name in ("name", "weight", "distance", "groups")}
        content = sorted({*in_threads(content_digest, files, THREADS, batch=16)} - {""})
        samples = [unit.id for unit in units]
        return {**self._about, **own, "heldout": len(self.heldout), "samples": samples, "digests": content}


def table_source(table: SampleTable, distance: str | None, weight: float, excluded: int = 0) -> PairSource:
    """Rows of a table: image pairs, or the spans of clips. Raises UsageError."""
    spec = table.spec
    name = f"{spec.name}:{table.split}"

    def unit(position: int) -> PairUnit:
        sample = table[position]
        paths = tuple(map(str, table.media_path(sample)))
        # Not the whole video: other splits may have their spans in it.
        low = min(sample.frame_index, default=0)
        high = max(sample.frame_index, default=-1)
        return PairUnit(sample.id, paths, low, high - low + 1)

    if distance and spec.media == "pair":
        log.warning("--distance %s is not used by %s, whose pairs are those of its table", distance, name)
    about = {"dataset": spec.name, "table": table.digest, "excluded": excluded}
    about["licences"] = [asdict(licence) for licence in spec.licences]
    return PairSource(name, table.groups(), None if spec.media == "pair" else distance or "1", weight, unit, about)


def folder_source(folder: Path, distance: str | None, weight: float) -> PairSource:
    """Videos, and folders of images, below a folder. Raises UsageError."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (path.parent, numbered(path))):
        kind = path.suffix.lower()
        if kind in (*IMAGES, *VIDEOS):
            group = path.parent if kind in IMAGES else path
            found.setdefault(str(group.relative_to(folder)), []).append(path)
    frames = dict(zip(found, in_threads(_frames_of, list(found.values()), THREADS), strict=True))
    names = [name for name in found if frames[name] > 1]

    def unit(position: int) -> PairUnit:
        name = names[position]
        return PairUnit(digest(name), tuple(map(str, found[name])), 0, frames[name])

    about = {"folder": str(folder.absolute()), "licences": []}
    return PairSource(str(folder), names, distance or "1", weight, unit, about)


class PairMixture:
    """Pairs (2, 3, size, size) uint8 of several sources, by global sample numbers. Raises UsageError."""

    def __init__(self, parts: Sequence[PairSource], seed: int, size: int, *, workers: int | None = None) -> None:
        total = sum(part.weight for part in parts)
        if not parts or min(part.weight for part in parts) < 0 or not 0 < total < inf:
            raise UsageError("A mixture needs weights that are not negative and not all 0.")
        self.parts = list(parts)
        self.seed = seed
        self.ordered = False
        self.weights = [part.weight / total for part in parts]
        # A hash, as samples of seeds 0 and 1 would else be the same, one apart.
        self._seed = int(digest("pairs", str(seed), length=8), 16)
        self.preprocess = Preprocess(size=size, resize="pil_bilinear", reader="pil")
        self._workers = workers or max(1, min(MOST_WORKERS, usable_cores()))
        self._stream: Generator[Tensor, None, None] | None = None
        self._next: tuple[int, ...] = ()
        self._last: tuple[int, ...] = ()

    def pick(self, number: int, *, heldout: bool = False) -> tuple[PairSource, PairUnit, tuple[int, int]]:
        """Source, unit and frames of a sample. Raises LaryError."""
        part = self.parts[pick_source(self._seed, number, self.weights)]
        positions = part.heldout if heldout else part.units
        at = number % len(positions) if self.ordered else pick_unit(self._seed, number, len(positions))
        unit = part.unit(int(positions[at]))
        if part.distance is None or not unit.frames:
            return part, unit, (0, 1)
        draw = random.Random(f"{self._seed}/{number}")
        return part, unit, pick_pair(draw, unit.frames, *part.distance)

    def batch(self, step: int, numbers: Sequence[int]) -> Tensor:
        """The pairs (B, 2, 3, H, W) of these samples; the next are read ahead."""
        wanted = tuple(numbers)
        if self._stream is None or wanted != self._next:
            self.close()
            apart = wanted[0] - self._last[0] if self._last else len(wanted)
            plan = (tuple(number + ahead * apart for number in wanted) for ahead in count())
            self._stream = self._read(plan, len(wanted))
            self._apart = apart
        found = next(self._stream)
        self._last = wanted
        self._next = tuple(number + self._apart for number in wanted)
        return found

    def ids(self, numbers: Sequence[int]) -> list[str]:
        """Names of samples, such as ``robot_1st:train/0123abcd/7-12``."""
        picked = map(self.pick, numbers)
        return [f"{part.name}/{unit.id}/{first}-{last}" for part, unit, (first, last) in picked]

    def heldout(self, pairs: int) -> Tensor:
        """Fixed pairs (N, 2, 3, H, W) of held-out groups. Raises UsageError if all are static."""
        import torch

        size = min(pairs, 32)
        plan = (range(first, first + size) for first in range(0, pairs, size))
        with closing(self._read(plan, size, heldout=True)) as stream:
            found = torch.cat(list(stream))[:pairs]
        static = (found[:, 0] == found[:, 1]).flatten(1).all(1).float().mean().item()
        names = ", ".join(part.name for part in self.parts)
        if static == 1:
            raise UsageError(f"All pairs of {names} are static: raise --distance or check the media.")
        if static > STATIC:
            log.warning("%.0f %% of the pairs of %s are static: both frames are equal", 100 * static, names)
        return found

    def manifest(self) -> JsonDict:
        """What can be seen, by source."""
        return {"version": 1, "seed": self.seed, "parts": [part.manifest() for part in self.parts]}

    def close(self) -> None:
        """End the reading ahead."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _read(
        self, plan: Iterator[Sequence[int]], size: int, *, heldout: bool = False
    ) -> Generator[Tensor, None, None]:
        """Pairs of planned numbers, batch by batch. Raises LaryError."""
        import torch

        def planned() -> Iterator[Batch]:
            for numbers in plan:
                chosen = [self.pick(number, heldout=heldout)[1:] for number in numbers]
                rows = range(len(chosen))
                both = [unit.sample(pair, row) for row, (unit, pair) in zip(rows, chosen, strict=True)]
                waiting.append(numbers)
                yield Batch(0, rows, rows, [each for each, _ in both], [paths for _, paths in both])

        waiting: list[Sequence[int]] = []
        with (
            idle_readers(self._workers) as readers,
            closing(readers.read(planned(), self.preprocess, size, 2, seconds=60.0)) as read,
        ):
            for batch in read:
                numbers = waiting.pop(0)
                found = torch.from_numpy(batch.clips.copy())
                for row, reason in batch.problems.items():
                    found[row] = torch.from_numpy(self._instead(numbers[row], reason, heldout))
                yield found

    def _instead(self, number: int, reason: str, heldout: bool) -> np.ndarray:
        """The next readable pair, in place of another."""
        tell_once(f"an unreadable sample is replaced: {reason}")
        out = np.empty((2, 3, self.preprocess.size, self.preprocess.size), np.uint8)
        for other in islice(count(number + 1), ATTEMPTS):
            with suppress(MediaError):
                unit, pair = self.pick(other, heldout=heldout)[1:]
                sample, paths = unit.sample(pair, 0)
                to_planes(read_chosen([*map(Path, paths)], sample.frame_index, self.preprocess), out)
                return out
        raise LaryError(f"{reason} Nor can the {ATTEMPTS} samples behind it: check the media.")


def parse_distance(text: str, name: str) -> tuple[int, int]:
    """The range of ``10-20``, or of ``10`` as published: 10 to 15. Raises UsageError."""
    low = high = 0
    if match := DISTANCE.fullmatch(text):
        low = int(match[1])
        high = int(match[2] or 1.5 * low)
    if not 0 < low <= high:
        raise UsageError(f"--distance {text} of {name}: expected frames, such as 10 or 10-15, of at least 1.")
    return low, high


def open_mixture(
    names: Sequence[str],
    settings: Settings,
    seed: int,
    size: int,
    *,
    weights: Sequence[float] = (),
    distances: Sequence[str] = (),
    exclude: bool = True,
    workers: int | None = None,
) -> PairMixture:
    """The mixture of these sources; a single distance is that of all. Raises UsageError."""
    distances = [*distances] * (len(names) if len(distances) == 1 else 1)
    for option, given in (("weight", weights), ("distance", distances)):
        if len(given) not in (0, len(names)):
            raise UsageError(f"--{option}: there are {len(given)} for {len(names)} data sets; give one for each.")
    each = zip(names, distances or [""] * len(names), weights or [1.0] * len(names), strict=True)
    parts = [open_source(name, settings, distance or None, weight, exclude=exclude) for name, distance, weight in each]
    return PairMixture(parts, seed, size, workers=workers)


def open_source(
    name: str, settings: Settings, distance: str | None, weight: float = 1.0, *, exclude: bool
) -> PairSource:
    """The source of ``KEY``, ``KEY:SPLIT`` or a folder; `exclude` drops groups of other splits. Raises UsageError."""
    key, _, split = name.partition(":")
    if key not in DATASETS.names():
        folder = as_path(name)
        if folder.is_dir():
            return folder_source(folder, distance, weight)
        raise UsageError(f"--dataset {name}: it is neither a folder nor a data set.{suggest(key, DATASETS.names())}")
    spec = DATASETS.get(key)
    roles = spec.roles(spec.split_sets[0] if exclude and spec.split_sets else None)
    train = roles.pop("train")
    table = _table(spec, split or train, settings)
    if not exclude:
        return table_source(table, distance, weight)
    evaluated = set[str]()
    for other in set(roles.values()) - {split}:
        with suppress(UsageError):  # a table that isn't here
            evaluated |= {*_table(spec, other, settings).groups()}
    kept = [at for at, group in enumerate(table.groups()) if group not in evaluated]
    if left := len(table) - len(kept):
        log.info("%s: %d of %d rows are left out, since evaluation has their groups", name, left, len(table))
    return table_source(table.take(kept), distance, weight, left)


def _table(spec: DatasetSpec, split: str, settings: Settings) -> SampleTable:
    path = find_table(spec, split, settings.path("LARY_ROOT"))
    return read_table(spec, split, path=path, data_dir=settings.path("DATA_DIR"))


def content_digest(path: str) -> str:
    """The digest of a file's content; empty where it can't be read."""
    with suppress(OSError, ValueError):
        return media_facts(Path(path))[:16]
    return ""


def _frames_of(paths: Sequence[Path]) -> int:
    """The frames of a video, 0 of an unreadable one, or images."""
    if paths[0].suffix.lower() in IMAGES:
        return len(paths)
    try:
        return count_frames(paths[0])
    except MediaError as error:
        log.warning("left out: %s", error)
        return 0
