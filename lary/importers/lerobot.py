"""Importing a LeRobot data set: image pairs with action chunks, or labelled atomic motions, split by episode.

Written are images and actions below ``DATA_DIR`` (`lerobot_cuts`), for pairs the statistics of the training split
beside them, and tables and record in ``LARY_ROOT/data``. An episode's folders appear whole or not at all, so an import
that was stopped goes on with the next episode.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.data.frames import decode_video, to_rgb
from lary.data.images import PNG, Image, image_problem
from lary.data.spec import DatasetSpec, Split
from lary.data.statistics import write_statistics
from lary.data.tables import write_csv
from lary.files import digest, read_json, write_failures, write_json
from lary.importers.lerobot_cuts import Cut, cut_of, finish_part, part_of, write_file
from lary.importers.lerobot_plan import LeRobotRequest, Plan, by_split, root_of
from lary.importers.lerobot_reader import Episode, LeRobot, embedded_image, frame_numbers, video_seconds
from lary.importers.records import check_name, save_record
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
        LaryError: no episode of a split could be read, or nothing moves in any.
    """
    check_name(request.name)
    root, cut = request.data_dir / root_of(request.name, plan), cut_of(plan)
    prepare_root(root, plan, request, cut)
    failed: dict[int, Failure] = {}
    with progress(len(plan.episodes), f"importing {request.name}", "episode") as bar:
        for episodes in by_file(data, plan):
            failed |= import_group(data, plan, cut, root, episodes, bar)
    failures = list(failed.values())
    write_failures(request.tables / f"{request.name}_import_failures.csv", failures)
    listed: dict[str, list[list[str]]] = {}
    for split, group in by_split(plan).items():
        listed[split] = [row for e in group if e.index not in failed for row in table_rows(e, plan, cut, request, root)]
        if not listed[split]:
            reason = failures[0].reason if failures else "nothing in them moves as far as --threshold says."
            raise LaryError(f"No episode of the {split} split could be imported: {reason}")
    rows = {split: len(found) for split, found in listed.items()}
    spec = make_record(data, plan, request, cut, sum(rows.values()))
    for split, found in listed.items():
        write_csv(request.tables / spec.table_name(split), COLUMNS, found)
    if plan.atomic is None:
        write_statistics(spec, request.tables / spec.table_name("train"), request.data_dir, workers=4)
    return ImportReport(save_record(spec, request.tables), rows, tuple(failures))


def prepare_root(root: Path, plan: Plan, request: LeRobotRequest, cut: Cut) -> None:
    """The folder of an import, with its choices in a file; parts of an episode that was cut short are removed."""
    choices = {"source": str(request.source.resolve()), "camera": plan.camera, **cut.choices()}
    if root.exists():
        same = (root / OPTIONS).is_file() and read_json(root / OPTIONS, "list of choices") == choices
        if not same and not request.overwrite:
            raise UsageError(f"{root} holds something else, or an import with other choices: choose another --name, or "
                             "pass --overwrite.")  # fmt: skip
        if request.overwrite and (root / OPTIONS).is_file():
            shutil.rmtree(root)
        elif not same:
            raise UsageError(f"{root} was not made by an import: it is not replaced. Choose another --name.")
    write_json(root / OPTIONS, choices)
    for part in (*root.glob(".ep_*.part"), *root.glob("*/.ep_*.part")):
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
    data: LeRobot, plan: Plan, cut: Cut, root: Path, episodes: Sequence[Episode], bar: Progress
) -> dict[int, Failure]:
    """Import the episodes of one video (or one episode of images); the failures by episode."""
    failures: dict[int, Failure] = {}
    wanted: dict[int, tuple[Episode, tuple[str, ...]]] = {}
    image = data.features[plan.camera].dtype != "video"
    seconds: npt.NDArray[np.float64] | None = None
    for episode in episodes:
        try:
            if cut.is_done(root, episode):
                continue
            rows = data.table(episode, [*plan.actions, *([plan.camera] if image else [])])
            names = cut.begin(root, episode, data.values(rows, plan.actions))
            if image or not names:
                cells = rows.column(plan.camera) if image else []
                pictures = ((at, embedded_image(cells[at].as_py(), data.folder)) for at in sorted(names))
                write_frames(part_of(root, cut.images, episode), names, pictures)
                finish_part(root, cut.images, episode)
                continue
            path, start = data.video(episode, plan.camera)
            seconds = video_seconds(path) if seconds is None else seconds
            numbers = frame_numbers(seconds, start, rows.column("timestamp").to_pylist(), data.fps)
            wanted |= {int(numbers[at]): (episode, stems) for at, stems in names.items()}
        except LaryError as error:
            failures[episode.index] = Failure(None, f"episode {episode.index}", str(error))
    if wanted:
        failures |= extract_frames(data.video(episodes[0], plan.camera)[0], wanted, root, cut.images)
    bar.advance(len(episodes))
    return failures


def extract_frames(
    path: Path, wanted: Mapping[int, tuple[Episode, tuple[str, ...]]], root: Path, kind: str
) -> dict[int, Failure]:
    """One pass through a video that writes the wanted frames of its episodes; returns the episodes it fails for."""
    left: dict[int, int] = {}
    for episode, _ in wanted.values():
        left[episode.index] = left.get(episode.index, 0) + 1
    last, reason = max(wanted), f"The video {path} ends before the last frame of the episode."
    try:
        for number, frame in enumerate(decode_video(path)):
            if number in wanted:
                episode, stems = wanted[number]
                content = encode(to_rgb(frame))
                for stem in stems:
                    write_file(part_of(root, kind, episode) / f"{stem}.png", content)
                left[episode.index] -= 1
                if not left[episode.index]:
                    finish_part(root, kind, episode)
            if number == last:
                break
    except (MediaError, ValueError) as error:
        reason = str(error)
    return {index: Failure(None, f"episode {index} of {path.name}", reason) for index, count in left.items() if count}


def write_frames(folder: Path, names: Mapping[int, tuple[str, ...]], images: Iterable[tuple[int, bytes]]) -> None:
    """Write images of an episode with the bytes that they have. Raises MediaError for a broken one."""
    for at, content in images:
        if problem := image_problem(content):
            raise MediaError(f"Image {at} of an episode is broken: {problem}.")
        suffix = "png" if content.startswith(PNG) else "jpg"
        for stem in names[at]:
            write_file(folder / f"{stem}.{suffix}", content)


def encode(image: Image) -> bytes:
    """A PNG of a frame (H, W, 3) uint8 RGB; packed fast rather than small."""
    import cv2

    _, content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return content.tobytes()


# Table and record


def table_rows(episode: Episode, plan: Plan, cut: Cut, request: LeRobotRequest, root: Path) -> list[list[str]]:
    """The rows of an episode, as `COLUMNS`."""
    tasks = episode.row.get("tasks")
    task = "; ".join(map(str, tasks)) if isinstance(tasks, list) else ""
    return [[request.name, plan.robot, str(episode.index), task, *row] for row in cut.rows(root, episode)]


def make_record(data: LeRobot, plan: Plan, request: LeRobotRequest, cut: Cut, samples: int) -> DatasetSpec:
    """The record of the imported data set."""
    name, root = request.name, root_of(request.name, plan)
    choices: dict[str, Any] = {**asdict(plan), "episodes": [e.index for e in plan.episodes], "val": sorted(plan.val)}
    what = "atomic motions of " if plan.atomic is not None else ""
    return DatasetSpec(
        name=name,
        title=name,
        media="pair",
        splits={"train": Split(root), "val": Split(root)},
        licences=(plan.licence,),
        embodiment_column="robot_type",
        embodiment=plan.robot,
        revision=digest(repr(sorted(data.info.items())), repr(sorted(choices.items()))),
        samples=samples,
        description=(
            f"Imported from {plan.licence.source} (LeRobot {data.info['codebase_version']}), camera {plan.camera}, "
            f"{what}{', '.join(plan.actions)} at {data.fps:g} frames/s; split by episode."
        ),
        **cut.record(name, root, request.tables / f"{name}_dataset.py"),
    )
