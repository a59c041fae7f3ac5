"""Importing a LeRobot data set as pairs with actions or labels, split by episode.

Images and actions go below ``DATA_DIR``, for pairs with the statistics of the
training split beside them; tables and record go to ``LARY_ROOT/data``.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from lary.arrays import Floats, Ints
from lary.data.configs import LeRobotConfig, MotionOptions, RelativeConfig
from lary.data.images import image_problem
from lary.data.normalisation import write_relative
from lary.data.spec import ActionSpace, DatasetSpec, LabelSpace, Licence, Normalisation
from lary.files import digest, read_json, write_json
from lary.importers.episodes import (
    AtomicRule,
    Cut,
    MotionCut,
    PairCut,
    SourceEpisode,
    TaskCut,
    find_column,
    find_position,
    import_episodes,
)
from lary.importers.lerobot_reader import BOOKKEEPING, Episode, EpisodeVideo, LeRobot, Members
from lary.importers.records import ImportReport, check_new, pair_record, save_import
from lary.registry import suggest
from lary.runtime import log
from lary.settings import Settings
from lary.types import JsonDict, LaryError, MediaError, UsageError

VALIDATION = ("val", "validation", "valid", "eval", "test")
FREE = {"apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc0-1.0", "cc-by-sa-4.0"}
"""Licences of data set cards that allow commercial use."""
PAIRS_PER_SECOND = 3
OPTIONS = "import.json"
STATE = "observation.state"
COLUMNS = ("dataset", "robot_type", "episode", "task", "src_img", "tgt_img", "action")


class LeRobotImport:
    """What is imported and how, with every choice that the command leaves open.

    By default: the first camera without wrist or depth, ``action``,
    ``actions`` or else the state, a stride of a third of a second. `val` are
    the validating episodes. Raises UsageError, or LaryError if labels need the
    gripper's range and no episode can be read.
    """

    def __init__(self, data: LeRobot, config: LeRobotConfig, name: str, settings: Settings) -> None:
        self.data, self.config, self.name, self.settings = data, config, name, settings
        self.data_dir, self.tables = settings.path("DATA_DIR"), settings.path("LARY_ROOT") / "data"
        self.robot = config.robot or (data.meta.robot_type or "").strip() or "unknown"
        self.cameras = config.camera or (default_camera(data),)
        named = self.cameras[0] if len(self.cameras) == 1 else self.cameras
        usual = [key for key in ("action", "actions") if key in data.features]
        self.replaces_action = not config.actions and not usual and STATE in data.vectors
        self.actions = config.actions or tuple([STATE] if self.replaces_action else usual[:1] or ["action"])
        for option, keys, known in (("camera", self.cameras, data.cameras), ("actions", self.actions, data.vectors)):
            for key in (key for key in keys if key not in known):
                if option == "actions" and key in data.features and key not in BOOKKEEPING:
                    kind, shape = data.features[key].dtype, data.features[key].shape
                    raise UsageError(f"--actions {key}: it is '{kind}' of shape {shape}, which can't be decoded.")
                raise UsageError(f"--{option} {key}: {data.folder} has none of this name.{suggest(key, known)}")
        atomic = config.labels == "atomic"
        if atomic and config.stride is not None:
            raise UsageError(f"--stride {config.stride}: atomic motions end where the hand stops; leave it out.")
        motion = [*vars(MotionOptions()), "position", "gripper"]
        if not atomic and any(getattr(config, name) != getattr(LeRobotConfig, name) for name in motion):
            raise UsageError("--position, --gripper, --threshold and so on are of labels: add --labels atomic.")
        if config.seed < 0:
            raise UsageError(f"--seed {config.seed}: must be at least 0.")
        if not 0 < config.share < 1:
            raise UsageError(f"--val-share {config.share:g}: expected a share between 0 and 1.")
        cut, rate = (TaskCut, 1) if config.labels else (PairCut, PAIRS_PER_SECOND)
        pairs = cut(max(1, round(data.fps / rate)) if config.stride is None else config.stride)
        shortest = 1 if atomic else pairs.stride
        self.episodes = [episode for episode in data.episodes[: config.episodes] if episode.length > shortest]
        if len(self.episodes) < 2:
            found = f"has {len(self.episodes)} episodes of more than {shortest} frames"
            raise UsageError(f"{data.folder} {found}; at least two are needed: lower --stride or raise --episodes.")
        self.members: dict[Path, Members] = {}
        for camera in self.cameras if "{video_key}" in (data.meta.video_path or "") else self.cameras[:1]:
            self.members |= data.members(camera) if self._is_video(camera) else {}
        self._opened = lru_cache(maxsize=1)(lambda path: EpisodeVideo(path, self.members[path], data.fps))
        self.numbers: dict[tuple[str, int], Ints] = {}
        self.in_order: set[int] = set()
        self.texts = sorted({text for item in self.episodes if (text := text_of_task(item))})
        if config.labels == "task" and len(self.texts) < 2:
            raise UsageError(f"--labels task: {data.folder} has {len(self.texts)} texts of tasks, and two are needed.")
        self.dims = data.dimension_names(self.actions)
        self.val = self._choose_validation()
        self.licence = read_licence(data, config.licence)
        self.cut: Cut = self._motion_cut() if atomic else pairs
        self.root = self.data_dir / self.cut.task / name
        self.labels = {"labels": "task"} if config.labels == "task" else {}
        self.choices = {"camera": named, "actions": self.actions}

    def _motion_cut(self) -> MotionCut:
        self.data.fetch(self.data.data_path(episode) for episode in self.episodes)
        position, gripper = find_position(self.config.position, self.dims), self.config.gripper
        column = next((number for number, name in enumerate(self.dims) if "grip" in name.lower()), None)
        if gripper is not None:
            column = None if gripper.lower() == "none" else find_column("--gripper", gripper, self.dims)
        middle = AtomicRule.grip
        if column is not None and self.config.grip is None:
            ends: list[float] = []
            for episode in self.episodes:
                with contextlib.suppress(LaryError):  # the import names it as a failure
                    values = self.data.values(episode, self.actions)[:, column]
                    ends += [values.min(), values.max()]
            if not ends:
                raise LaryError("No episode can be read, so the gripper's range is not known: name --grip.")
            middle = float(min(ends) + max(ends)) / 2
        return MotionCut(position, column, AtomicRule.of(self.config, middle))

    def _choose_validation(self) -> set[int]:
        """Episodes that validate, as declared (``"40:50"``) or a random share."""
        numbers = [episode.index for episode in self.episodes]
        declared = self.data.meta.splits or {}
        for name in VALIDATION:
            ends = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", str(declared.get(name)))
            chosen = {number for number in numbers if ends and number in range(*map(int, ends.groups()))}
            if 0 < len(chosen) < len(numbers):
                return chosen
        count = min(max(1, round(self.config.share * len(numbers))), len(numbers) - 1)
        return {*np.random.default_rng(self.config.seed).permutation(numbers)[:count].tolist()}

    def preview(self) -> str:
        data, cut = self.data, self.cut
        lines = [f"{data.origin or data.folder}: LeRobot {data.meta.codebase_version}, {self.robot}"]
        for key in (*data.cameras, *data.vectors):
            kind = "camera" if key in data.cameras else "values"
            mark = "*" if key in (*self.cameras, *self.actions) else " "
            sides = " x ".join(map(str, data.features[key].shape))
            depth = ", depth" if key in data.cameras and data.shows_depth(key) else ""
            lines.append(f"{kind} {mark} {key} ({sides}{depth})")
        if self.replaces_action:
            lines.append(f"There is no action or actions: {STATE} is decoded in its place; --actions names another.")
        lines.append(f"dimensions: {', '.join(self.dims)}")
        if isinstance(cut, TaskCut):
            lines.append(f"labels: {len(self.texts)} tasks, such as '{self.texts[0]}'")
        if isinstance(cut, PairCut):
            lines.append(f"stride: {cut.stride} frames of {data.fps:g} in a second")
        else:
            position, grip = ", ".join(self.dims[column] for column in cut.position), "none"
            if cut.gripper is not None:
                side = "above" if cut.rule.open_high else "below"
                grip = f"{self.dims[cut.gripper]}, open {side} {cut.rule.grip:.4g}"
            lines.append(f"labels: atomic motions of {position}; gripper: {grip}")
        lines.append(f"episodes: {len(self.episodes)}, of which {len(self.val)} validate")
        return "\n".join([*lines, f"licence: {self.licence.name}", f"to: {self.root} and {self.tables}"])

    def run(self) -> ImportReport:
        """Write all that is imported; episodes that fail are left out and named.

        Raises UsageError for a taken name or folder; LaryError if a split has
        no rows.
        """
        check_new(self.name, self.tables)
        data = self.data
        wanted = {item.index for item in self.episodes}
        files = {data.data_path(item) for item in self.episodes}
        files |= {path for path, members in self.members.items() if wanted.intersection(item[2] for item in members)}
        data.fetch(files)
        self._prepare_root()
        sources = []
        for camera in self.cameras:
            # Episodes of one video come one after the other, so that it is decoded once.
            for item in sorted(self.episodes, key=partial(self._place, camera)):
                reads = partial(self._values, camera, item), partial(self._images, camera, item)
                text = text_of_task(item) if isinstance(self.cut, TaskCut) else ""
                sources.append(SourceEpisode(self._folder(camera, item), f"episode {item.index}", *reads, text))
        found, failures = import_episodes(sources, self.cut, self.root, resume=True)
        if self.in_order:
            numbers = ", ".join(map(str, sorted(self.in_order)[:10]))
            log.warning(
                "%s: the time stamps of %d episodes contradict their videos, which have a frame per row: "
                "these are taken in order (episodes %s%s)",
                *(self.name, len(self.in_order), numbers, ", ..." if len(self.in_order) > 10 else ""),
            )
        rows = []
        for item in self.episodes:
            cells = [self.name, self.robot, str(item.index), "; ".join(map(str, item.tasks))]
            split = "val" if item.index in self.val else "train"
            own = (found.get(self._folder(camera, item), []) for camera in self.cameras)
            rows += [(split, [*cells, *row]) for part in own for row in part]
        spec = self._record(self.tables / f"{self.name}_dataset.py", len(rows))
        report = save_import(spec, self.tables, self.data_dir, COLUMNS, rows, failures)
        if isinstance(spec.target, ActionSpace):
            tables = tuple(self.tables / spec.table_name(split) for split in report.rows)
            write_relative(RelativeConfig(dataset=self.name, csv=tables), self.settings)
        return report

    def _is_video(self, camera: str) -> bool:
        return self.data.features[camera].dtype == "video"

    def _place(self, camera: str, item: Episode) -> tuple[Path, float]:
        """Video of an episode and where it begins there; nothing for images."""
        with contextlib.suppress(LaryError):
            if self._is_video(camera):
                return self.data.video(item, camera)
        return Path(), 0.0

    def _folder(self, camera: str, item: Episode) -> str:
        short = re.sub(r"[^\w-]+", "_", camera.rpartition(".")[2])
        return f"ep_{item.index}" if len(self.cameras) == 1 else f"{self.cameras.index(camera)}_{short}/ep_{item.index}"

    def _prepare_root(self) -> None:
        """Make the folder of the import. Raises UsageError."""
        cut: JsonDict = {"stride": self.cut.stride} if self.cut.stride else {"atomic": asdict(self.cut)}
        chosen = {"source": str(self.data.folder.resolve()), **self.choices, **cut, **self.labels}
        choices = json.loads(json.dumps(chosen))  # tuples become lists, as in the file
        path, overwrite = self.root / OPTIONS, self.config.overwrite
        if self.root.exists():
            if not path.is_file() or not (overwrite or read_json(path, "list of choices") == choices):
                raise UsageError(
                    f"{self.root} holds something else, or an import with other choices: choose another --name, or "
                    "pass --overwrite."
                )
            if overwrite:
                shutil.rmtree(self.root)
        write_json(path, choices)

    def _images(self, camera: str, item: Episode, length: int, wanted: list[int]) -> Iterable[bytes]:
        if not self._is_video(camera):
            cells = self.data.table(item, [camera]).column(camera)
            return (stored_image(cells[at].as_py()) for at in wanted)
        return self._video(camera, item).images(self.numbers.pop((camera, item.index))[wanted].tolist())

    def _video(self, camera: str, item: Episode) -> EpisodeVideo:
        return self._opened(self.data.video(item, camera)[0])

    def _values(self, camera: str, item: Episode) -> Floats:
        """The values of an episode, once its frames are known."""
        if self._is_video(camera):
            stamps = self.data.table(item, []).column("timestamp").to_pylist()
            self.numbers[camera, item.index], in_order = self._video(camera, item).numbers(item.index, stamps)
            if in_order:
                self.in_order.add(item.index)
        return self.data.values(item, self.actions)

    def _record(self, plugin: Path, samples: int) -> DatasetSpec:
        data, name, stride = self.data, self.name, self.cut.stride
        choices = {
            **self.choices,
            **self.labels,
            "atomic": None if stride else asdict(self.cut),
            "dims": self.dims,
            "episodes": [episode.index for episode in self.episodes],
            "licence": asdict(self.licence),
            "robot": self.robot,
            "stride": stride or 1,
            "val": sorted(self.val),
        }
        words = f"--dataset {name}"
        normalisation = Normalisation(
            stats_file=f"{self.cut.task}/{name}/{name}_stats.json",
            command=f"lary data stats {words} --plugin {plugin}",
            relative_command=f"lary data relative {words} --csv data/{name}_metadata_train.csv --plugin {plugin}",
        )
        what = f"{'' if stride else 'atomic motions of '}{', '.join(self.actions)}"
        fields: JsonDict = {} if len(self.cameras) == 1 else {"group_column": "episode"}
        if isinstance(self.cut, TaskCut):
            what = "texts of tasks"
            fields = {"group_column": "episode", "target": LabelSpace(tuple(self.texts))}
        return pair_record(
            name,
            self.cut,
            self.dims,
            normalisation,
            **fields,
            licences=(self.licence,),
            embodiment_column="robot_type",
            embodiment=self.robot,
            samples=samples,
            revision=digest(repr(sorted(data.info.items())), repr(sorted(choices.items()))),
            description=(
                f"Imported from {self.licence.source} (LeRobot {data.info['codebase_version']}), camera "
                f"{' and '.join(self.cameras)}, {what} at {data.fps:g} frames/s; split by episode."
            ),
        )


def text_of_task(item: Episode) -> str:
    """The text of an episode's task; empty for none or several."""
    texts = {str(text).strip() for text in item.tasks}
    return texts.pop() if len(texts) == 1 else ""


def default_camera(data: LeRobot) -> str:
    """The first camera without depth, on no wrist if there is one. Raises UsageError."""
    cameras = [key for key in data.cameras if not data.shows_depth(key)]
    if data.cameras and not cameras:
        raise UsageError(
            f"{data.folder} has cameras of depth alone: name one with --camera: {', '.join(data.cameras)}."
        )
    outside = [key for key in cameras if not re.search(r"wrist|hand|gripper", key.rpartition(".")[2])]
    return [*outside, *cameras, "observation.image"][0]


def stored_image(cell: Any) -> bytes:
    """The bytes of the image file in a cell. Raises MediaError."""
    content: Any = cell.get("bytes") if isinstance(cell, dict) else None
    if problem := image_problem(content) if content else "its cell holds no bytes":
        raise MediaError(f"An image of the episode is broken: {problem}.")
    return bytes(content)


def read_licence(data: LeRobot, name: str | None) -> Licence:
    """The licence of the command, or of the data set's README.md."""
    card = data.folder / "README.md"
    if name is None and card.is_file():
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(1 << 16)
        found = re.match(r"---\n(?:(?!---).*\n)*?license: *([\w.+-]+) *\n", text)
        name = found[1] if found else None
    url = f"https://huggingface.co/datasets/{data.origin}" if data.origin else ""
    return Licence(data.origin or data.folder.name, name or "not stated", str(name).lower() in FREE, url)
