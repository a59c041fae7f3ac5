"""Reading LeRobot data sets, formats v2.0, v2.1 and v3.0, by pyarrow and PyAV alone.

By the documentation of ``huggingface/lerobot``: v2 has a Parquet file and a
video per camera for each episode, v3 joins episodes in files. Images are video
frames, or ``bytes`` in a column.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from lary.arrays import Doubles, Floats, Ints, read_rows
from lary.data.fetch import HuggingFace, hub_errors
from lary.data.frames import FrameTable, decode_video, decoded, opened_video, scan_packets, whole_packets
from lary.files import LARGEST_JSON, inside, open_regular, parsed, read_json, read_limited, reason_of
from lary.importers.episodes import MOST_VALUES, video_images
from lary.types import JsonDict, LaryError, MediaError, UsageError, as_path

BOOKKEEPING = {
    *("index", "frame_index", "episode_index", "task_index", "timestamp"),
    *("next.done", "next.reward", "next.success"),
}
"""Columns that every data set has, which are no actions or states."""
LONGEST = 1 << 31
"""Frames of an episode: two years at 30 frames/s."""
EXACT = 1 << 24
"""Up to here float32 holds every integer."""
IMAGE, EPISODE = 1 << 16, 1 << 12
"""Bytes of an image besides pixels, and of an episode's metadata."""
Members = list[tuple[float, int, int]]
"""Start, rows and number of the episodes in a video, ascending by start."""
FIELD = re.compile(r"\{(\w+)(?::(0?\d{1,2}d))?\}")


class Feature(BaseModel, extra="allow"):
    """One column or camera, with any names of its values."""

    dtype: str
    shape: tuple[int, ...] = ()
    names: Any = None

    @property
    def size(self) -> int:
        """Values in a frame; those of several axes are read row by row."""
        return math.prod(self.shape)


class Info(BaseModel):
    """The fields of ``meta/info.json`` that an import reads."""

    codebase_version: str = Field(pattern=r"^v[23]\.\d+")
    fps: float = Field(gt=0, lt=1e6)
    features: dict[str, Feature]
    robot_type: str | None = None
    splits: JsonDict | None = None
    chunks_size: int = Field(1000, gt=0)
    data_path: str
    video_path: str | None = None


class Episode(BaseModel, extra="allow"):
    """One episode: its row in the metadata."""

    index: int = Field(ge=0, alias="episode_index")
    length: int = Field(ge=0, le=LONGEST)
    tasks: list[Any] = []


class LeRobot:
    """A LeRobot data set in a folder, or a snapshot of the hub's repository `origin`.

    `cameras`, and `vectors` of actions and states, are keys of features.
    Raises UsageError, LaryError for damaged metadata.
    """

    def __init__(self, folder: Path, origin: str = "", commit: str = "") -> None:
        self.folder, self.origin, self.commit = folder, origin, commit
        path = folder / "meta" / "info.json"
        if not path.is_file():
            raise UsageError(f"{folder} is no LeRobot data set: it has no meta/info.json; name the folder above meta/.")
        self.info: JsonDict = read_json(path, "description")
        self.meta = parsed(Info, self.info, f"{path}, of LeRobot v2 or v3,")
        self.version = int(self.meta.codebase_version[1])
        self.fps, self.features = self.meta.fps, self.meta.features
        self.cameras, self.vectors = [], []
        for key, feature in self.features.items():
            if feature.dtype in ("video", "image"):
                self.cameras.append(key)
            elif feature.dtype.startswith(("float", "int", "uint", "bool")) and feature.size and key not in BOOKKEEPING:
                self.vectors.append(key)

    @cached_property
    def episodes(self) -> list[Episode]:
        """All episodes, by number. Raises LaryError if the metadata are damaged."""
        from pyarrow import parquet

        meta = self.folder / "meta"
        rows = list[Any]()
        try:
            if self.version == 2:
                lines = read_limited(meta / "episodes.jsonl", LARGEST_JSON).decode().splitlines()
                rows = [json.loads(line) for line in lines if line.strip()]
            for path in sorted((meta / "episodes").glob("*/*.parquet")) if self.version == 3 else ():
                with open_regular(path) as file:
                    names = [name for name in parquet.read_schema(file).names if not name.startswith("stats/")]
                rows += read_rows(path, names, LARGEST_JSON // EPISODE, EPISODE).to_pylist()
            found = {item.index: item for item in map(Episode.model_validate, rows)}
        except (OSError, ValueError, TypeError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise LaryError(f"The list of episodes in {meta} can't be read: {reason}.") from error
        if not found or len(found) < len(rows):
            raise LaryError(f"The list of episodes in {meta} is empty, or names one twice.")
        return [found[index] for index in sorted(found)]

    def shows_depth(self, camera: str) -> bool:
        """Whether a camera shows depth by its key, or by a mark in its features."""
        details = json.dumps(self.features[camera].model_extra)
        return "depth" in camera.lower() or bool(re.search(r'\bis_depth\w*": "?(true|1\b)', details))

    def dimension_names(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Distinct names of values of features, made up where there are none."""
        names = list[str]()
        for key in keys:
            feature, short = self.features[key], key.rpartition(".")[2]
            if feature.size > MOST_VALUES:
                raise UsageError(f"--actions {key}: {feature.size} values, more than {MOST_VALUES}.")
            own = list(_flat_names(feature.names))
            for at in range(feature.size):
                name = own[at] if len(own) == feature.size else f"{short}_{at}"
                names.append(name if name not in names else f"{short}_{at}_{name}")
        return tuple(names)

    def fetch(self, paths: Iterable[Path]) -> None:
        """Fetch files of a data set of the hub. Raises LaryError."""
        if self.origin:
            _snapshot(self.origin, self.commit, sorted({path.relative_to(self.folder).as_posix() for path in paths}))

    def table(self, episode: Episode, columns: Sequence[str]) -> Any:
        """The rows of an episode in the order of its frames. Raises MediaError."""
        import pyarrow

        path = self.data_path(episode)
        if not path.is_file():  # a pipe would be waited for without end
            raise MediaError(f"The table {path} of episode {episode.index} does not exist, or is no regular file.")
        wanted = list(dict.fromkeys([*columns, "episode_index", "frame_index", "timestamp"]))
        sizes = ((self.features[key].size, key in self.cameras) for key in columns)
        size = 64 + sum(count + IMAGE if image else 8 * count + 64 for count, image in sizes)
        try:
            only = "episode_index", episode.index
            rows = read_rows(path, wanted, episode.length, size, only).sort_by("frame_index")
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise MediaError(
                f"The table {path} of episode {episode.index} can't be read: {reason_of(error)}."
            ) from error
        if rows.num_rows != episode.length:
            raise MediaError(f"Episode {episode.index} has {rows.num_rows} rows in {path}, not {episode.length}.")
        return rows

    def values(self, episode: Episode, keys: Sequence[str]) -> Floats:
        """Numbers of features side by side, (frames, A). Raises MediaError."""
        rows, parts = self.table(episode, keys), []
        for key in keys:
            feature = self.features[key]
            try:
                exact: Any = np.array(rows.column(key).to_pylist(), np.float64).reshape(episode.length, -1)
            except (ValueError, TypeError):
                exact = np.full(1, np.nan)
            with np.errstate(over="ignore"):
                part = exact.astype(np.float32)
            if part.shape != (episode.length, feature.size) or not np.isfinite(part).all():
                raise MediaError(f"The column '{key}' is not {feature.size} finite numbers in every frame.")
            if not feature.dtype.startswith("float") and np.abs(exact).max() > EXACT:
                raise MediaError(f"The column '{key}' has integers above {EXACT}, which float32 does not hold exactly.")
            parts.append(part)
        return np.hstack(parts)

    def data_path(self, episode: Episode) -> Path:
        """The Parquet file that holds an episode's rows. Raises LaryError."""
        return self._file(self.meta.data_path, episode, "data")

    def video(self, episode: Episode, camera: str) -> tuple[Path, float]:
        """A camera's video, and the second at which the episode begins."""
        part = f"videos/{camera}"
        start = self._number(episode, f"{part}/from_timestamp") if self.version == 3 else 0.0
        return self._file(self.meta.video_path or "{video_path}", episode, part, camera), start

    def members(self, camera: str) -> dict[Path, Members]:
        """The episodes in each video of a camera."""
        found: dict[Path, Members] = {}
        for item in self.episodes:
            with contextlib.suppress(LaryError):  # reading the episode names what is missing
                path, start = self.video(item, camera)
                found.setdefault(path, []).append((start, item.length, item.index))
        return {path: sorted(found[path]) for path in found}

    def _number(self, episode: Episode, key: str) -> float:
        """A number of an episode's metadata. Raises LaryError."""
        value = (episode.model_extra or {}).get(key)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise LaryError(f"The metadata of {self.folder} give '{value}' as '{key}' of episode {episode.index}.")
        return value

    def _file(self, template: str, episode: Episode, part: str, camera: str = "") -> Path:
        """A path of the data set, from a template, never outside."""
        fields: JsonDict = {"episode_index": episode.index, "video_key": camera}
        fields["episode_chunk"] = episode.index // self.meta.chunks_size
        for name in ("chunk_index", "file_index") if self.version == 3 else ():
            fields[name] = int(self._number(episode, f"{part}/{name}"))
        try:  # a pattern of our own, since str.format would reach attributes of what it is given
            path = FIELD.sub(lambda found: format(fields[found[1]], found[2] or ""), template)
        except (KeyError, ValueError) as error:
            raise LaryError(f"The template '{template}' of {self.folder} can't be filled: {error}.") from error
        return inside(self.folder, path)


def _flat_names(found: Any) -> Iterator[str]:
    """Names of values from a list, lists by group, or positions."""
    if isinstance(found, dict) and found and all(isinstance(at, int) for at in found.values()):
        yield from sorted(map(str, found), key=lambda name: found[name])
    elif isinstance(found, dict | list):
        for part in found.values() if isinstance(found, dict) else found:
            yield from _flat_names(part)
    elif found is not None:
        yield str(found)


def open_lerobot(source: str, revision: str | None = None) -> LeRobot:
    """A data set in a folder, or on the hub. Raises LaryError."""
    folder = as_path(source)
    if folder.is_dir():
        return LeRobot(folder)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        raise UsageError(f"There is no folder {source}, and it is no data set on the hub, which are called owner/name.")
    with hub_errors("Hugging Face", source):
        commit = HuggingFace(source).commit(revision)
    return LeRobot(_snapshot(source, commit, ["meta/*", "meta/**", "README.md"]), source, commit)


def _snapshot(source: str, commit: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with hub_errors("Hugging Face", source):
        return Path(snapshot_download(source, repo_type="dataset", revision=commit, allow_patterns=patterns))


# Frames


def video_times(path: Path) -> tuple[Doubles, FrameTable | None]:
    """Seconds of all frames of a video, and their table if packets name them.

    Raises MediaError.
    """
    with opened_video(path) as (container, stream):
        table = scan_packets(container, stream)
        if table:
            seconds = float(stream.time_base or 0) * np.array(table.stamps, np.float64)
            return seconds, table._replace(packets=())
    stamps = [frame.time for frame in decode_video(path)]
    if None in stamps or sorted(set(stamps)) != stamps:
        raise MediaError(f"The video {path} has no ascending time stamps.")
    return np.array(stamps, np.float64), None


def frame_numbers(seconds: Doubles, start: float, stamps: Sequence[float], fps: float) -> Ints:
    """The frames nearest to an episode's rows, (rows,) int64, from the `seconds` of all frames.

    Rows are at `stamps` from second `start` on. Raises MediaError if a row has
    no frame within half a frame's time, or two rows share one.
    """
    import pandas

    times: Any = start + np.asarray(stamps, np.float64)
    near = pandas.Index(seconds).get_indexer(times, method="nearest", tolerance=0.5 / fps)
    if (near < 0).any():
        raise MediaError(f"No frame is shown within half a frame of some row between {times[0]} and {times[-1]} s.")
    if (np.diff(near) <= 0).any():
        raise MediaError("Two rows of the episode fall on the same frame: rate and time stamps contradict each other.")
    return near.astype(np.int64)


class EpisodeVideo:
    """A video and its episodes, read forward.

    Raises MediaError.
    """

    def __init__(self, path: Path, members: Members, fps: float) -> None:
        self.path, self.fps = path, fps
        self.seconds, self.table = video_times(path)
        self.frames: Iterator[tuple[int, Any]] = enumerate(decode_video(path))
        starts, rows = np.array([item[:2] for item in members]).T
        rows = rows.astype(np.int64)
        first = first_frames(self.seconds, starts, fps)
        if len(members) == 1 and len(self.seconds) == rows[0]:
            first[0] = 0  # the whole video is the episode, whenever it begins
        ends = stretch_ends(first, rows, len(self.seconds))
        numbers = [item[2] for item in members]
        self.stretches = dict(zip(numbers, zip(starts, first.tolist(), ends.tolist(), strict=True), strict=True))

    def numbers(self, episode: int, stamps: Sequence[float]) -> tuple[Ints, bool]:
        """The frames of an episode's rows, and whether in order, as stamps contradict them.

        Raises MediaError where there are not as many frames as rows, either.
        """
        start, first, end = self.stretches[episode]
        try:
            near = frame_numbers(self.seconds, start, stamps, self.fps)
            if near[0] < first or near[-1] >= end:
                raise MediaError(
                    f"The starts and lengths of the episodes in {self.path} contradict each other or its "
                    f"{len(self.seconds)} frames: some of the frames {near[0]} to {near[-1]} may be of another episode."
                )
        except MediaError:
            if end - first != len(stamps):
                raise
            return np.arange(first, end, dtype=np.int64), True
        return near, False

    def images(self, wanted: list[int]) -> Iterator[bytes]:
        """Image files of some frames, ascending. Raises MediaError, for these alone."""
        try:
            content = next(video_images(self.frames, wanted[:1]))
        except (LaryError, ValueError):  # a damaged picture of an earlier episode has ended the reading
            if not self.table:
                raise
            self.frames = decode_from(self.path, self.table, wanted[0])
            content = next(video_images(self.frames, wanted[:1]))
        yield content
        yield from video_images(self.frames, wanted[1:])


def first_frames(seconds: Doubles, starts: Doubles, fps: float) -> Ints:
    """The frame nearest to each start, (episodes,) int64, also outside the video."""
    import pandas

    first: Ints = pandas.Index(seconds).get_indexer(starts, method="nearest").astype(np.int64)  # type: ignore[arg-type]
    away = np.clip(np.rint((starts - seconds[first]) * fps), -LONGEST, LONGEST).astype(np.int64)
    return np.where((first == 0) | (first == len(seconds) - 1), first + away, first)


def stretch_ends(first: Ints, rows: Ints, count: int) -> Ints:
    """Where the stretches of a video's episodes end, (episodes,) int64: empty for lost ones.

    Episodes begin at the frames `first`. Of runs without a gap, one that fits
    to the start or end of the video, of `count` frames, is right.
    """
    ends = first + rows
    if rows.sum() == count:  # nothing is lost, so the order alone gives the places
        return np.where(ends == np.cumsum(rows), ends, first)
    before, after = np.insert(ends[:-1], 0, 0), np.minimum(np.append(first[1:], count), count)
    lost = ends > after
    gaps = bool((first > before).any()) or ends[-1] < count
    for run in np.split(np.arange(len(rows)), np.flatnonzero(first[1:] != ends[:-1]) + 1):
        low, high = run[0], run[-1]
        outside = first[low] < 0 or ends[high] > count
        fits = first[low] == 0 or ends[high] == count
        clashes = first[low] < before[low] or lost[high]
        # Without a gap between the stretches, an overlap alone tells whose frames are lost.
        if outside or (clashes and gaps and not fits):
            lost[run] = True
            lost[max(low - 1, 0)] |= rows.sum() > count  # the one before may have lost frames
    return np.where(lost, first, after)


def decode_from(path: Path, table: FrameTable, wanted: int) -> Iterator[tuple[int, Any]]:
    """Numbered frames of a video from the last key frame up to `wanted` on."""
    number, packet_number = [start for start in table.starts if start[0] <= wanted][-1]
    key = table.stamps[number]
    with opened_video(path) as (container, stream):
        for frame in decoded(islice(whole_packets(container, stream), packet_number, None)):
            if frame.pts is not None and frame.pts < key:
                continue  # shown before the key frame, and decoded from frames before it
            if frame.is_corrupt or table.stamps[number : number + 1] != (frame.pts,):
                raise ValueError(f"frame {number} is damaged")
            yield number, frame
            number += 1
