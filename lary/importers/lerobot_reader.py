"""Reading LeRobot data sets, formats v2.0, v2.1 and v3.0, by pyarrow and PyAV alone.

By the documentation of ``huggingface/lerobot``, ``meta/info.json`` names version, rate, robot,
features and path templates. v2 has ``meta/episodes.jsonl``, and a Parquet file and a video per
camera for each episode. v3 joins episodes in files; ``meta/episodes/*/*.parquet`` gives file and
seconds of each. Images are video frames, or PNG and JPEG ``bytes`` in a column.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from lary.arrays import Doubles, Floats, Ints
from lary.data.fetch import HuggingFace, hub_errors
from lary.data.frames import decode_video, opened_video, scan_packets
from lary.files import first_error, inside, read_json
from lary.types import JsonDict, LaryError, MediaError, UsageError, as_path

BOOKKEEPING = frozenset(
    ("index", "frame_index", "episode_index", "task_index", "timestamp", "next.done", "next.reward", "next.success")
)
"""Columns that every data set has, which are no actions or states."""
LONGEST = 1 << 31
"""Frames of an episode: two years at 30 frames/s."""
FIELD = re.compile(r"\{(\w+)(?::(0?\d{1,2}d))?\}")


class Feature(BaseModel):
    """One column or camera: its kind, its shape, and the names of its values if it has them."""

    dtype: str
    shape: tuple[int, ...] = ()
    names: Any = None


class Info(BaseModel):
    """The fields of ``meta/info.json`` that an import reads."""

    codebase_version: str = Field(pattern=r"^v[23]\.\d+")
    fps: float = Field(gt=0)
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
    """A LeRobot data set in a folder: `cameras`, and `vectors` of actions and states, by key.

    A snapshot of the hub has its repository as `origin`, and its commit. Raises UsageError if
    the folder holds none, LaryError for damaged metadata.
    """

    def __init__(self, folder: Path, origin: str = "", commit: str = "") -> None:
        self.folder, self.origin, self.commit = folder, origin, commit
        path = folder / "meta" / "info.json"
        if not path.is_file():
            raise UsageError(f"{folder} is no LeRobot data set: it has no meta/info.json.")
        self.info: JsonDict = read_json(path, "description")
        try:
            self.meta = Info.model_validate(self.info)
        except ValidationError as error:
            where, why = first_error(error)
            raise LaryError(f"{path} is wrong at '{where}', or not of v2 or v3: {why}.") from error
        self.version = int(self.meta.codebase_version[1])
        self.fps, self.features = self.meta.fps, self.meta.features
        self.cameras, self.vectors = [], []
        for key, feature in self.features.items():
            if feature.dtype in ("video", "image"):
                self.cameras.append(key)
            elif feature.dtype.startswith(("float", "int")) and len(feature.shape) == 1 and key not in BOOKKEEPING:
                self.vectors.append(key)

    @cached_property
    def episodes(self) -> list[Episode]:
        """All episodes, by number. Raises LaryError if the metadata are damaged."""
        from pyarrow import parquet

        meta = self.folder / "meta"
        rows = list[Any]()
        try:
            if self.version == 2:
                lines = (meta / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
                rows = [json.loads(line) for line in lines if line.strip()]
            for path in sorted((meta / "episodes").glob("*/*.parquet")) if self.version == 3 else ():
                names = [name for name in parquet.read_schema(path).names if not name.startswith("stats/")]
                rows += parquet.read_table(path, columns=names).to_pylist()
            found = {item.index: item for item in map(Episode.model_validate, rows)}
        except (OSError, ValueError, TypeError) as error:
            raise LaryError(f"The list of episodes in {meta} can't be read: {_short(error)}.") from error
        if not found or len(found) < len(rows):
            raise LaryError(f"The list of episodes in {meta} is empty, or names one twice.")
        return [found[index] for index in sorted(found)]

    def dimension_names(self, keys: Sequence[str]) -> tuple[str, ...]:
        """Distinct names of the values of some features, made up where there are none."""
        names = list[str]()
        for key in keys:
            feature, short = self.features[key], key.rsplit(".", 1)[-1]
            own = list(_flat_names(feature.names))
            for at in range(feature.shape[0]):
                name = own[at] if len(own) == feature.shape[0] else f"{short}_{at}"
                names.append(name if name not in names else f"{short}_{at}_{name}")
        return tuple(names)

    def fetch(self, paths: Iterable[Path]) -> None:
        """Fetch files from the hub that the data set is of, if it is of one. Raises LaryError."""
        if self.origin:
            _snapshot(self.origin, self.commit, sorted({path.relative_to(self.folder).as_posix() for path in paths}))

    def table(self, episode: Episode, columns: Sequence[str]) -> Any:
        """The rows of an episode, as a pyarrow table in the order of its frames. Raises MediaError."""
        import pyarrow
        from pyarrow import parquet

        path = self.data_path(episode)
        wanted = list(dict.fromkeys([*columns, "episode_index", "frame_index", "timestamp"]))
        try:
            rows = parquet.read_table(path, columns=wanted, filters=[("episode_index", "=", episode.index)])
            rows = rows.select(wanted).sort_by("frame_index")
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise MediaError(f"The table {path} of episode {episode.index} can't be read: {_short(error)}.") from error
        if rows.num_rows != episode.length:
            raise MediaError(f"Episode {episode.index} has {rows.num_rows} rows in {path}, not {episode.length}.")
        return rows

    def values(self, episode: Episode, keys: Sequence[str]) -> Floats:
        """Numbers of some features side by side, (frames, A). Raises MediaError as `table`."""
        rows, parts = self.table(episode, keys), []
        for key in keys:
            shape = episode.length, self.features[key].shape[0]
            try:
                part: Any = np.array(rows.column(key).to_pylist(), dtype=np.float32).reshape(episode.length, -1)
            except (ValueError, TypeError):
                part = np.full(1, np.nan, np.float32)
            if part.shape != shape or not np.isfinite(part).all():
                raise MediaError(f"The column '{key}' is not {shape[1]} finite numbers in every frame.")
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def data_path(self, episode: Episode) -> Path:
        """The Parquet file that holds an episode's rows. Raises LaryError."""
        return self._file(self.meta.data_path, episode, "data")

    def video(self, episode: Episode, camera: str) -> tuple[Path, float]:
        """A camera's video, and the second at which the episode begins in it."""
        part = f"videos/{camera}"
        start = self._number(episode, f"{part}/from_timestamp") if self.version == 3 else 0.0
        return self._file(self.meta.video_path or "{video_path}", episode, part, camera), start

    def _number(self, episode: Episode, key: str) -> float:
        """A number of an episode's metadata. Raises LaryError if it is missing or none."""
        value = (episode.model_extra or {}).get(key)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise LaryError(f"The metadata of {self.folder} give '{value}' as '{key}' of episode {episode.index}.")
        return value

    def _file(self, template: str, episode: Episode, part: str, camera: str = "") -> Path:
        """A path of the data set: fields of the template filled, and never outside the folder."""
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
    """Names of values, flat: data sets write a list, lists by group, or positions by name."""
    if isinstance(found, dict) and found and all(isinstance(at, int) for at in found.values()):
        yield from sorted(map(str, found), key=lambda name: found[name])
    elif isinstance(found, dict | list):
        for part in found.values() if isinstance(found, dict) else found:
            yield from _flat_names(part)
    elif found is not None:
        yield str(found)


def open_lerobot(source: str, revision: str | None = None) -> LeRobot:
    """A data set in a folder, or on the hub, whose metadata are fetched. Raises LaryError."""
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


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# Frames


def video_seconds(path: Path) -> Doubles:
    """The second at which every frame of a video is shown, ascending. Raises MediaError."""
    with opened_video(path) as (container, stream):
        table = scan_packets(container, stream)
        if table is not None:
            return np.asarray(float(stream.time_base or 0) * np.array(table.stamps, dtype=np.float64))
    stamps = [frame.time for frame in decode_video(path)]  # the packets don't name the frames
    if None in stamps or sorted(set(stamps)) != stamps:
        raise MediaError(f"The video {path} has no ascending time stamps.")
    return np.array(stamps, dtype=np.float64)


def frame_numbers(seconds: Doubles, start: float, stamps: Sequence[float], fps: float) -> Ints:
    """The frames nearest to an episode's rows, (rows,) int64, from the `seconds` of all frames.

    The episode begins at second `start`; its rows are at `stamps` from there. Raises MediaError
    if a row has no frame within half a frame's time, or two rows share one.
    """
    import pandas

    times: Any = start + np.asarray(stamps, dtype=np.float64)
    near = pandas.Index(seconds).get_indexer(times, method="nearest", tolerance=0.5 / fps)  # -1 where none is near
    if (near < 0).any():
        raise MediaError(f"No frame is shown within half a frame of some row between {times[0]} and {times[-1]} s.")
    if (np.diff(near) <= 0).any():
        raise MediaError("Two rows of the episode fall on the same frame: rate and time stamps contradict each other.")
    return near.astype(np.int64)
