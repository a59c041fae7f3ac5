"""Importing a LeRobot data set: image pairs with action chunks, or labelled atomic motions, split by episode.

Images and actions go below ``DATA_DIR``, for pairs with the statistics of the training split beside them; tables and
record go to ``LARY_ROOT/data``. An episode's folder is filled under another name and renamed once it is complete, so
that an import that was stopped resumes with the next episode.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lary.data.catalog import EPISODE
from lary.data.frames import decode_video, to_rgb
from lary.data.images import PNG, image_problem
from lary.data.normalisation import measure_table
from lary.data.spec import ActionSpace, DatasetSpec, LabelSpace, Normalisation, Split
from lary.data.tables import write_csv
from lary.files import digest, read_json, write_failures, write_json
from lary.importers.episodes import (
    ATOMIC_CLASSES,
    LABELS,
    Cut,
    ImportReport,
    PairCut,
    Segment,
    image_bytes,
    image_stems,
)
from lary.importers.lerobot_plan import LeRobotPlan
from lary.importers.lerobot_reader import Episode, embedded_image, frame_numbers, video_seconds
from lary.importers.records import check_name, save_record
from lary.runtime import progress
from lary.types import Failure, LaryError, MediaError, Progress, UsageError

OPTIONS = "import.json"
COLUMNS = ("dataset", "robot_type", "episode", "task", "src_img", "tgt_img", "action")


def import_lerobot(plan: LeRobotPlan) -> ImportReport:
    """Write images, actions, tables, statistics and record; episodes that fail are left out and named.

    Raises:
        UsageError: the name is taken, or the folder holds an import with other choices.
        LaryError: no episode of a split could be read, or nothing moves in any.
    """
    check_name(plan.name)
    plan.data.fetch(plan.files())
    root = plan.data_dir / plan.root
    prepare_root(root, plan)
    failed: dict[int, Failure] = {}
    with progress(len(plan.episodes), f"importing {plan.name}", "episode") as bar:
        for episodes in group_by_file(plan):
            failed |= import_group(plan, root, episodes, bar)
    for index in failed:
        shutil.rmtree(root / f".ep_{index}.part", ignore_errors=True)
    failures = tuple(failed.values())
    write_failures(plan.tables / f"{plan.name}_import_failures.csv", failures)
    listed: dict[str, list[list[str]]] = {}
    for split, group in plan.by_split().items():
        listed[split] = [
            row for episode in group if episode.index not in failed for row in table_rows(plan, root, episode)
        ]
        if not listed[split]:
            reason = failures[0].reason if failures else "nothing in them moves as far as --threshold says."
            raise LaryError(f"No episode of the {split} split could be imported: {reason}")
    rows = {split: len(found) for split, found in listed.items()}
    spec = lerobot_record(plan, sum(rows.values()))
    for split, found in listed.items():
        write_csv(plan.tables / spec.table_name(split), COLUMNS, found)
    if isinstance(plan.cut, PairCut):
        measure_table(spec, plan.tables / spec.table_name("train"), plan.data_dir, workers=4)
    return ImportReport(save_record(spec, plan.tables), rows, failures)


def prepare_root(root: Path, plan: LeRobotPlan) -> None:
    """Make the folder of an import, with its choices in a file; remove the parts of an episode that was cut short."""
    cut = {"stride": plan.cut.stride} if plan.cut.stride else {"atomic": asdict(plan.cut)}
    chosen = {"source": str(plan.data.folder.resolve()), "camera": plan.camera, "actions": plan.actions, **cut}
    choices = json.loads(json.dumps(chosen))  # tuples become lists, as in the file
    if root.exists():
        same = (root / OPTIONS).is_file() and read_json(root / OPTIONS, "list of choices") == choices
        if not same and not plan.overwrite:
            raise UsageError(
                f"{root} holds something else, or an import with other choices: choose another --name, or "
                "pass --overwrite."
            )
        if plan.overwrite and (root / OPTIONS).is_file():
            shutil.rmtree(root)
        elif not same:
            raise UsageError(f"{root} was not made by an import: it is not replaced. Choose another --name.")
    write_json(root / OPTIONS, choices)
    for part in (*root.glob(".ep_*.part"), *root.glob("*/.ep_*.part")):
        shutil.rmtree(part)


def group_by_file(plan: LeRobotPlan) -> Iterable[list[Episode]]:
    """Episodes in groups that share a video, so that each is decoded once; images one by one."""
    groups: dict[Path | int, list[Episode]] = {}
    for episode in plan.episodes:
        key = plan.data.video(episode, plan.camera)[0] if plan.is_video else episode.index
        groups.setdefault(key, []).append(episode)
    return groups.values()


def import_group(plan: LeRobotPlan, root: Path, episodes: Sequence[Episode], bar: Progress) -> dict[int, Failure]:
    """Import the episodes of one video (or one episode of images); the failures by episode."""
    data, cut, failures = plan.data, plan.cut, {}
    wanted: dict[int, tuple[Episode, tuple[str, ...]]] = {}
    seconds: npt.NDArray[np.float64] | None = None
    cells: Any = None
    for episode in episodes:
        try:
            if all((root / kind / f"ep_{episode.index}").is_dir() for kind in cut.folders):
                continue
            rows = data.table(episode, [*plan.actions, *([] if plan.is_video else [plan.camera])])
            values = data.values(rows, plan.actions)
            segments = cut.segments(values)
            for name, content in cut.files(values, segments).items():
                write_part(root, episode, name, content)
            stems = image_stems(cut, segments)
            if not stems:
                finish_episode(root, episode, cut)
            elif plan.is_video:
                path, start = data.video(episode, plan.camera)
                seconds = video_seconds(path) if seconds is None else seconds
                numbers = frame_numbers(seconds, start, rows.column("timestamp").to_pylist(), data.fps)
                wanted |= {int(numbers[at]): (episode, names) for at, names in stems.items()}
            else:
                cells = rows.column(plan.camera)
                wanted = {at: (episode, names) for at, names in stems.items()}
        except LaryError as error:
            failures[episode.index] = Failure(None, f"episode {episode.index}", str(error))
    if wanted:
        if plan.is_video:
            film = data.video(episodes[0], plan.camera)[0]
            source, contents = f" of {film.name}", video_images(film, wanted)
        else:
            source, contents = "", stored_images(cells, sorted(wanted), data.folder)
        failures |= write_images(root, cut, wanted, contents, source)
    bar.advance(len(episodes))
    return failures


def write_images(
    root: Path,
    cut: Cut,
    wanted: Mapping[int, tuple[Episode, tuple[str, ...]]],
    contents: Iterator[tuple[int, bytes]],
    source: str,
) -> dict[int, Failure]:
    """Write the wanted frames of some episodes in one pass over them; the failures by episode.

    An episode takes its name with its last image, so that those before a damaged frame of a shared video are whole.
    """
    left = Counter(episode.index for episode, _ in wanted.values())
    reason = "The video ends before the last frame of the episode."
    try:
        for number, content in contents:
            episode, stems = wanted[number]
            suffix = "png" if content.startswith(PNG) else "jpg"
            for stem in stems:
                write_part(root, episode, f"{cut.folders[-1]}/{stem}.{suffix}".lstrip("/"), content)
            left[episode.index] -= 1
            if not left[episode.index]:
                finish_episode(root, episode, cut)
    except (MediaError, ValueError) as error:
        reason = str(error)
    return {index: Failure(None, f"episode {index}{source}", reason) for index, count in left.items() if count}


def video_images(path: Path, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """Number and PNG file of the wanted frames of a video. Raises MediaError or ValueError at a damaged frame."""
    last = max(wanted)
    for number, frame in enumerate(decode_video(path)):
        if number in wanted:
            yield number, image_bytes(to_rgb(frame))
        if number == last:
            break


def stored_images(cells: Any, wanted: Iterable[int], folder: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of the wanted images of a column, with the bytes that they have. Raises MediaError."""
    for at in wanted:
        content = embedded_image(cells[at].as_py(), folder)
        if problem := image_problem(content):
            raise MediaError(f"Image {at} of an episode is broken: {problem}.")
        yield at, content


# Files of an episode


def write_part(root: Path, episode: Episode, name: str, content: bytes) -> None:
    """Write a file to the folder that an episode has until it is complete."""
    path = root / f".ep_{episode.index}.part" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def finish_episode(root: Path, episode: Episode, cut: Cut) -> None:
    """Move the finished folders of an episode to where they belong."""
    part = root / f".ep_{episode.index}.part"
    for kind in cut.folders:
        target = root / kind / f"ep_{episode.index}"
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        (part / kind).rename(target)
    shutil.rmtree(part, ignore_errors=True)


# Table and record


def table_rows(plan: LeRobotPlan, root: Path, episode: Episode) -> list[list[str]]:
    """The rows of a finished episode, as `COLUMNS`. Raises LaryError if its list of motions is damaged."""
    folder = root / plan.cut.folders[-1] / f"ep_{episode.index}"
    if isinstance(plan.cut, PairCut):
        segments = plan.cut.grid(episode.length)
    else:
        try:
            found = read_json(folder / LABELS, "list of motions")
            segments = [Segment(int(start), int(end), str(label)) for start, end, label in found]
        except (TypeError, ValueError) as error:
            raise LaryError(f"{folder / LABELS} is torn: remove {folder} and import again.") from error
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    files = {name.rpartition(".")[0]: name for name in names}
    tasks = episode.row.get("tasks")
    task = "; ".join(map(str, tasks)) if isinstance(tasks, list) else ""
    return [
        [plan.name, plan.robot, str(episode.index), task, *row] for row in plan.cut.rows(folder.name, segments, files)
    ]


def lerobot_record(plan: LeRobotPlan, samples: int) -> DatasetSpec:
    """The record of the imported data set."""
    data, name, licence, stride = plan.data, plan.name, plan.licence, plan.cut.stride
    choices = {
        "actions": plan.actions,
        "atomic": None if stride else asdict(plan.cut),
        "camera": plan.camera,
        "dims": plan.dims,
        "episodes": [episode.index for episode in plan.episodes],
        "licence": asdict(licence),
        "robot": plan.robot,
        "stride": stride or 1,
        "val": sorted(plan.val),
    }
    plugin = plan.tables / f"{name}_dataset.py"
    normalisation = Normalisation(
        stats_file=f"{plan.root}/{name}_stats.json",
        command=f"lary data stats --dataset {name} --plugin {plugin}",
        relative_command=f"lary data relative --dataset {name} --csv data/{name}_metadata_train.csv --plugin {plugin}",
    )
    return DatasetSpec(
        name=name,
        title=name,
        media="pair",
        splits={"train": Split(plan.root), "val": Split(plan.root)},
        target=ActionSpace(plan.dims, stride, normalisation) if stride else LabelSpace(ATOMIC_CLASSES),
        stride=stride,
        media_depth=0 if stride else None,
        group_pattern=EPISODE if stride else r"^([^/]+)/",
        licences=(licence,),
        embodiment_column="robot_type",
        embodiment=plan.robot,
        samples=samples,
        revision=digest(repr(sorted(data.info.items())), repr(sorted(choices.items()))),
        description=(
            f"Imported from {licence.source} (LeRobot {data.info['codebase_version']}), camera {plan.camera}, "
            f"{'' if stride else 'atomic motions of '}{', '.join(plan.actions)} at {data.fps:g} frames/s; split by "
            "episode."
        ),
    )
