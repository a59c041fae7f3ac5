"""Contact sheets: what a table's clips or episodes look like, nine frames a row."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from lary.files import write_bytes
from lary.simulate.plan import PAIR_SPLITS, STRIDE
from lary.types import LaryError, UsageError

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
        UsageError: there is no such table, or `rows` is less than 1.
        LaryError: a frame or video can't be read.
    """
    import numpy as np

    from lary.simulate.episodes import encode_png

    path = out / "data" / f"{table}.csv"
    if rows < 1:
        raise UsageError(f"A contact sheet of {rows} rows for each verb: expected 1 or more.")
    if not path.is_file():
        raise UsageError(f"There is no table {path}: run 'lary simulate {out}' first.")
    with path.open(newline="", encoding="utf-8") as stream:
        records = list(csv.DictReader(stream))
    strips = []
    for label, shown in _chosen(records, rows):
        frames = _clip_frames(out, shown[0]) if "video_path" in shown[0] else _pair_frames(out, table, shown)
        strips.append(np.concatenate([_label(label, frames[0].shape[0]), *frames], axis=1))
    write_bytes(target, encode_png(np.concatenate(strips)))
    return len(strips)


def _chosen(records: list[dict[str, str]], rows: int) -> list[tuple[list[str], list[dict[str, str]]]]:
    """Label and records of every row: one record of a clip, all records of an episode."""
    groups: dict[tuple[str, ...], dict[str, list[dict[str, str]]]] = {}
    for record in records:
        clip = "video_path" in record
        key: tuple[str, ...] = (record["action"],) if clip else (record["robot_type"], record["scene"])
        unit = record["video_path"] if clip else record["src_img"].rsplit("/", 1)[0]
        groups.setdefault(key, {}).setdefault(unit, []).append(record)
    result = []
    for key in sorted(groups):
        units = list(groups[key].values())
        by_robot = [
            [unit for unit in units if unit[0]["robot_type"] == robot]
            for robot in sorted({u[0]["robot_type"] for u in units})
        ]
        mixed = [unit for turn in range(len(units)) for some in by_robot for unit in some[turn : turn + 1]]
        result += [([*key, unit[0]["robot_type"]] if len(key) == 1 else list(key), unit) for unit in mixed[:rows]]
    return result


def _label(lines: list[str], height: int) -> Any:
    import cv2
    import numpy as np

    image = np.full((height, MARGIN, 3), 255, np.uint8)
    for number, line in enumerate(lines):
        cv2.putText(
            image, line, (6, height // 2 + 18 * number), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (20, 20, 20), 1, cv2.LINE_AA
        )
    return image


def _clip_frames(out: Path, record: dict[str, str]) -> list[Any]:
    import av

    path = out / "data" / "classification" / record["video_path"]
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return [frames[int(index)] for index in record["sample_indices"].split(",")]
    except (OSError, IndexError) as error:
        raise LaryError(f"The clip {path} can't be read: {error}.") from error


def _pair_frames(out: Path, table: str, records: list[dict[str, str]]) -> list[Any]:
    import cv2
    import numpy as np

    names = [record["src_img"] for record in records] + [records[-1]["tgt_img"]]
    root = out / "data" / "regression" / "simarm" / f"{table.rsplit('_', 1)[1]}_stride{STRIDE}"
    frames = []
    for step in range(FRAMES):
        path = root / names[math.floor(step * (len(names) - 1) / (FRAMES - 1) + 0.5)]
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR) if path.is_file() else None
        if image is None:
            raise LaryError(f"The frame {path} can't be read.")
        frames.append(image[..., ::-1])
    return frames
