"""Contact sheets: what a table's clips or episodes look like, nine frames a row."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from lary.data.frames import read_clip
from lary.data.images import Image, read_image
from lary.data.tables import read_csv
from lary.files import write_bytes
from lary.simulate.episodes import encode_png
from lary.simulate.plan import PAIR_SPLITS, STRIDE
from lary.types import UsageError

Record = dict[str, str]
TABLES = ("simarm_actions_metadata_train", "simarm_actions_metadata_val", *(
    f"simarm_metadata_{split}" for split in PAIR_SPLITS
))  # fmt: skip
FRAMES = 9
MARGIN = 96
"""Pixels for a row's label."""


def write_sheets(out: Path, rows: int = 2) -> list[Path]:
    """Contact sheets of all tables of a simulation, as ``out/sheets/<table>.png``; returns their paths."""
    targets = [out / "sheets" / f"{table}.png" for table in TABLES]
    for table, target in zip(TABLES, targets, strict=True):
        contact_sheet(out, table, target, rows)
    return targets


def contact_sheet(out: Path, table: str, target: Path, rows: int = 2) -> int:
    """Draw `rows` examples of each verb (or of each robot type and scene) of a table as a PNG; returns the row count.

    `table` is the name of a table in ``out/data`` without ``.csv``, such as ``simarm_actions_metadata_val``.

    Raises:
        UsageError: there is no such table.
        MediaError: a frame or video can't be read.
    """
    path = out / "data" / f"{table}.csv"
    if not path.is_file():
        raise UsageError(f"There is no table {path}: run 'lary simulate {out}' first.")
    columns, cells = read_csv(path)
    clips = "video_path" in columns
    strips = []
    for label, records in examples([dict(zip(columns, row, strict=True)) for row in cells], rows):
        frames = clip_frames(out, records[0]) if clips else pair_frames(out, table, records)
        strips.append(np.concatenate([label_image(label, frames[0].shape[0]), *frames], axis=1))
    write_bytes(target, encode_png(np.concatenate(strips)))
    return len(strips)


def examples(records: Sequence[Record], rows: int) -> list[tuple[list[str], list[Record]]]:
    """Label and records of every row: one record of a clip, all records of an episode; robots by turns."""
    groups: dict[tuple[str, ...], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        clip = "video_path" in record
        key: tuple[str, ...] = (record["action"],) if clip else (record["robot_type"], record["scene"])
        groups[key][record["video_path"] if clip else record["src_img"].rsplit("/", 1)[0]].append(record)
    found = []
    for key in sorted(groups):
        by_robot: dict[str, list[list[Record]]] = defaultdict(list)
        for unit in groups[key].values():
            by_robot[unit[0]["robot_type"]].append(unit)
        longest = max(map(len, by_robot.values()))
        mixed = [
            unit for turn in range(longest) for robot in sorted(by_robot) for unit in by_robot[robot][turn : turn + 1]
        ]
        found += [([*key, unit[0]["robot_type"]] if len(key) == 1 else list(key), unit) for unit in mixed[:rows]]
    return found


def label_image(lines: Sequence[str], height: int) -> Image:
    """The label of a row (H, MARGIN, 3)."""
    image = np.full((height, MARGIN, 3), 255, np.uint8)
    for number, line in enumerate(lines):
        place = (6, height // 2 + 18 * number)
        cv2.putText(image, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA)
    return image


def clip_frames(out: Path, record: Record) -> list[Image]:
    """The sampled frames of a clip, (H, W, 3) each."""
    indices = [int(index) for index in record["sample_indices"].split(",")]
    return list(read_clip([out / "data" / "classification" / record["video_path"]], indices, clamp=False))


def pair_frames(out: Path, table: str, records: Sequence[Record]) -> list[Image]:
    """Frames (H, W, 3) of an episode, evenly from its first image to its last."""
    names = [record["src_img"] for record in records] + [records[-1]["tgt_img"]]
    root = out / "data" / "regression" / "simarm" / f"{table.rsplit('_', 1)[1]}_stride{STRIDE}"
    steps = [math.floor(step * (len(names) - 1) / (FRAMES - 1) + 0.5) for step in range(FRAMES)]
    return [read_image(root / names[step]) for step in steps]
