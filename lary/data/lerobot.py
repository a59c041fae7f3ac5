"""Importing a LeRobot data set: image pairs at a stride with their action chunks, split by episode.

Written are ``DATA_DIR/regression/<name>/images/ep_<n>/frame_<t>.png`` and ``actions/ep_<n>/action_<t>to<u>.npy``, the
statistics of the training split beside them, and tables and record in ``LARY_ROOT/data``. An episode's folders appear
whole or not at all, so an import that was stopped goes on with the next episode.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary import fileio
from lary.data.catalog import EPISODE
from lary.data.frames import PNG, Image, decode_video, image_problem, to_rgb
from lary.data.lerobot_plan import LeRobotRequest, Plan, by_split, root_of, sources
from lary.data.lerobot_reader import Episode, LeRobot, embedded_image, frame_numbers, video_seconds
from lary.data.records import check_name, save_record
from lary.data.samples import write_csv, write_failures
from lary.data.spec import ActionSpace, DatasetSpec, Normalisation, Split
from lary.data.statistics import write_statistics
from lary.runtime import progress
from lary.types import Failure, LaryError, MediaError, Progress, UsageError

OPTIONS = "import.json"
COLUMNS = ("dataset", "robot_type", "episode", "task", "src_img", "tgt_img", "action")


@dataclass(frozen=True)
class ImportReport:
    """What was imported: the plug-in to pass on, rows by split, failures."""

    plugin: Path
    rows: Mapping[str, int]
    failures: tuple[Failure, ...]


# Import


def import_lerobot(data: LeRobot, plan: Plan, request: LeRobotRequest) -> ImportReport:
    """Write images, actions, tables, statistics and record; episodes that fail are left out and named.

    Raises:
        UsageError: the name is taken, or the folder holds an import with other choices.
        LaryError: no episode of a split could be read.
    """
    check_name(request.name)
    root = request.data_dir / root_of(request.name)
    prepare_root(root, plan, request)
    failures: list[Failure] = []
    with progress(len(plan.episodes), f"importing {request.name}", "episode") as bar:
        for episodes in by_file(data, plan):
            failures += import_group(data, plan, root, episodes, bar)
    bad = {failure.row for failure in failures}
    rows: dict[str, int] = {}
    spec = make_record(data, plan, request)
    tables = {split: request.tables / spec.table_name(split) for split in spec.splits}
    write_failures(request.tables / f"{request.name}_import_failures.csv", failures)
    for split, group in by_split(plan).items():
        listed = [row for e in group if e.index not in bad for row in table_rows(e, plan, request.name, root)]
        if not listed:
            raise LaryError(f"No episode of the {split} split could be imported: {failures[0].reason}")
        write_csv(tables[split], COLUMNS, listed)
        rows[split] = len(listed)
    write_statistics(spec, tables["train"], request.data_dir, workers=4)
    return ImportReport(save_record(spec, request.tables), rows, tuple(failures))


def prepare_root(root: Path, plan: Plan, request: LeRobotRequest) -> None:
    """The folder of an import, with its choices in a file; parts of an episode that was cut short are removed."""
    choices = {"source": str(request.source.resolve()), "camera": plan.camera, "actions": list(plan.actions),
               "stride": plan.stride}  # fmt: skip
    if root.exists():
        same = (root / OPTIONS).is_file() and fileio.read_json(root / OPTIONS, "list of choices") == choices
        if not same and not request.overwrite:
            raise UsageError(f"{root} holds something else, or an import with other choices: choose another --name, or "
                             "pass --overwrite.")  # fmt: skip
        if request.overwrite and (root / OPTIONS).is_file():
            shutil.rmtree(root)
        elif not same:
            raise UsageError(f"{root} was not made by an import: it is not replaced. Choose another --name.")
    fileio.write_json(root / OPTIONS, choices)
    for part in root.glob("*/.ep_*.part"):
        shutil.rmtree(part)


def by_file(data: LeRobot, plan: Plan) -> Iterator[list[Episode]]:
    """Episodes in groups that share a video, so that each is decoded once; images one by one."""
    if data.features[plan.camera].dtype != "video":
        yield from ([episode] for episode in plan.episodes)
        return
    groups: dict[Path, list[Episode]] = {}
    for episode in plan.episodes:
        groups.setdefault(data.video(episode, plan.camera)[0], []).append(episode)
    yield from groups.values()


def import_group(
    data: LeRobot, plan: Plan, root: Path, episodes: Sequence[Episode], bar: Progress
) -> list[Failure]:  # fmt: skip
    """Import the episodes of one video (or one episode of images)."""
    failures: list[Failure] = []
    wanted: dict[int, tuple[Episode, int]] = {}
    image = data.features[plan.camera].dtype != "video"
    seconds: npt.NDArray[np.float64] | None = None
    for episode in episodes:
        try:
            if folder_of(root, "images", episode).is_dir() and folder_of(root, "actions", episode).is_dir():
                continue
            rows = data.table(episode, [*plan.actions, *([plan.camera] if image else [])])
            write_actions(root, episode, plan.stride, data.values(rows, plan.actions))
            if image:
                cells = rows.column(plan.camera)
                write_frames(root, episode, ((at, embedded_image(cells[at].as_py(), data.folder)) for at in
                             grid(episode, plan.stride)))  # fmt: skip
                continue
            path, start = data.video(episode, plan.camera)
            seconds = video_seconds(path) if seconds is None else seconds
            numbers = frame_numbers(seconds, start, rows.column("timestamp").to_pylist(), data.fps)
            wanted |= {int(numbers[at]): (episode, at) for at in grid(episode, plan.stride)}
        except (MediaError, LaryError) as error:
            failures.append(Failure(episode.index, f"episode {episode.index}", str(error)))
    if wanted:
        failures += extract_frames(data.video(episodes[0], plan.camera)[0], wanted, root, plan.stride)
    bar.advance(len(episodes))
    return failures


def extract_frames(path: Path, wanted: Mapping[int, tuple[Episode, int]], root: Path, stride: int) -> list[Failure]:
    """One pass through a video that writes the wanted frames of its episodes; returns the episodes it fails for."""
    left = {episode.index: len(grid(episode, stride)) for episode, _ in wanted.values()}
    last, reason = max(wanted), f"The video {path} ends before the last frame of the episode."
    try:
        for number, frame in enumerate(decode_video(path)):
            if number in wanted:
                episode, at = wanted[number]
                write_image(part_of(root, "images", episode) / f"frame_{at:06d}.png", encode(to_rgb(frame)))
                left[episode.index] -= 1
                if not left[episode.index]:
                    finish_part(root, "images", episode)
            if number == last:
                break
    except (MediaError, ValueError) as error:
        reason = str(error)
    return [Failure(index, path.name, reason) for index, count in left.items() if count]


def grid(episode: Episode, stride: int) -> range:
    """Frames of an episode that are sources or targets."""
    return range(0, sources(episode, stride)[-1] + stride + 1, stride)


def write_frames(root: Path, episode: Episode, images: Iterator[tuple[int, bytes]]) -> None:
    """Write the images of an episode with the bytes that they have. Raises MediaError for a broken one."""
    for at, content in images:
        if problem := image_problem(content):
            raise MediaError(f"Image {at} of episode {episode.index} is broken: {problem}.")
        suffix = "png" if content.startswith(PNG) else "jpg"
        write_image(part_of(root, "images", episode) / f"frame_{at:06d}.{suffix}", content)
    finish_part(root, "images", episode)


def encode(image: Image) -> bytes:
    """A PNG of a frame (H, W, 3) uint8 RGB; packed fast rather than small."""
    import cv2

    _, content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return content.tobytes()


def write_image(path: Path, content: bytes) -> None:
    """A file in the unfinished folder of an episode, which takes its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_actions(root: Path, episode: Episode, stride: int, values: npt.NDArray[np.float32]) -> None:
    """The action chunks (K, A) of an episode from its values (frames, A)."""
    shutil.rmtree(folder_of(root, "actions", episode), ignore_errors=True)
    for at in sources(episode, stride):
        content = io.BytesIO()
        np.save(content, values[at : at + stride], allow_pickle=False)
        write_image(part_of(root, "actions", episode) / action_name(at, stride), content.getvalue())
    finish_part(root, "actions", episode)


def action_name(at: int, stride: int) -> str:
    """``action_000005to000009.npy``: first and last frame of the chunk."""
    return f"action_{at:06d}to{at + stride - 1:06d}.npy"


def folder_of(root: Path, kind: str, episode: Episode) -> Path:
    return root / kind / f"ep_{episode.index}"


def part_of(root: Path, kind: str, episode: Episode) -> Path:
    return root / kind / f".ep_{episode.index}.part"


def finish_part(root: Path, kind: str, episode: Episode) -> None:
    """Give the finished folder of an episode its name."""
    target = folder_of(root, kind, episode)
    shutil.rmtree(target, ignore_errors=True)
    part_of(root, kind, episode).rename(target)


# Table and record


def table_rows(episode: Episode, plan: Plan, name: str, root: Path) -> list[list[str]]:
    """The rows of an episode, as `COLUMNS`."""
    images = {path.stem: path.name for path in folder_of(root, "images", episode).iterdir()}
    tasks = episode.row.get("tasks")
    task = "; ".join(map(str, tasks)) if isinstance(tasks, list) else ""
    place = f"ep_{episode.index}"
    return [
        [
            name, plan.robot, str(episode.index), task,
            f"images/{place}/{images[f'frame_{at:06d}']}",
            f"images/{place}/{images[f'frame_{at + plan.stride:06d}']}",
            f"actions/{place}/{action_name(at, plan.stride)}",
        ]
        for at in sources(episode, plan.stride)
    ]  # fmt: skip


def make_record(data: LeRobot, plan: Plan, request: LeRobotRequest) -> DatasetSpec:
    """The record of the imported data set."""
    name, root = request.name, root_of(request.name)
    plugin = request.tables / f"{name}_dataset.py"
    choices: dict[str, Any] = {**asdict(plan), "episodes": [e.index for e in plan.episodes], "val": sorted(plan.val)}
    return DatasetSpec(
        name=name,
        title=name,
        media="pair",
        stride=plan.stride,
        target=ActionSpace(
            dims=plan.dims,
            horizon=plan.stride,
            normalisation=Normalisation(
                stats_file=f"{root}/{name}_stats.json",
                command=f"lary data stats --dataset {name} --plugin {plugin}",
                relative_command=(
                    f"lary data relative --dataset {name} --csv data/{name}_metadata_train.csv --plugin {plugin}"
                ),
            ),
        ),
        splits={"train": Split(root), "val": Split(root)},
        licences=(plan.licence,),
        group_pattern=EPISODE,
        media_depth=0,
        embodiment_column="robot_type",
        embodiment=plan.robot,
        revision=fileio.digest(repr(sorted(data.info.items())), repr(sorted(choices.items()))),
        samples=sum(len(sources(episode, plan.stride)) for episode in plan.episodes),
        description=(
            f"Imported from {plan.licence.source} (LeRobot {data.info['codebase_version']}), camera {plan.camera}, "
            f"{', '.join(plan.actions)} at {data.fps:g} frames/s; split by episode."
        ),
    )
