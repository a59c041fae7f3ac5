"""The column ``sample_indices`` of a table of clips, and contact sheets of what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lary.data.frames import Image, read_video
from lary.data.samples import INDEX_COLUMN, MEDIA_COLUMNS, read_csv, write_csv
from lary.data.sampling import FRAMES, DifferenceCache, Method, Sampled, sample_video
from lary.files import inside, write_bytes, write_failures
from lary.runtime import progress
from lary.types import Failure, MediaError, UsageError

VIDEO_COLUMN = MEDIA_COLUMNS["clip"][0]
ROWS_PER_SHEET = 12
THUMB_HEIGHT, CURVE_HEIGHT, LABEL_HEIGHT = 96, 28, 16


@dataclass(frozen=True, kw_only=True)
class IndexRequest:
    """What to sample.

    Attributes:
        table: CSV with the column video_path.
        root: Folder that its paths start from.
        out: CSV to write; None adds ``_indices`` to the table's name.
        method: motion, or uniform.
        frames: indices per clip.
        cache: folder of the motion of clips; None computes it each time.
        workers: threads.
        visualize: folder for contact sheets.
        sheet_clips: clips shown in them, from the start of the table.
    """

    table: Path
    root: Path
    out: Path | None = None
    method: Method = "motion"
    frames: int = FRAMES
    cache: Path | None = None
    workers: int = 4
    visualize: Path | None = None
    sheet_clips: int = 48


@dataclass(frozen=True)
class IndexReport:
    """What was written: the table, its rows, the rows that were left out and why, and the sheets."""

    out: Path
    rows: int
    failures: tuple[Failure, ...]
    sheets: tuple[Path, ...]


def write_indices(request: IndexRequest) -> IndexReport:
    """Sample every clip of a table and write the table with its indices; clips that fail are left out and named.

    Raises:
        UsageError: the table can't be read, has no column video_path, or would be written over itself.
    """
    columns, rows = read_csv(request.table)
    if VIDEO_COLUMN not in columns:
        raise UsageError(f"{request.table} has no column '{VIDEO_COLUMN}'; it has: {', '.join(columns)}.")
    if request.frames < 1 or request.workers < 1:
        raise UsageError("--frames and --workers must be at least 1.")
    out = request.out or request.table.with_name(f"{request.table.stem}_indices.csv")
    if out.resolve() == request.table.resolve():
        raise UsageError(f"--out {out} is the input itself: name another file.")
    at = columns.index(VIDEO_COLUMN)
    found = sample_all(request, [row[at] for row in rows])
    if INDEX_COLUMN not in columns:
        columns, rows = [*columns, INDEX_COLUMN], [[*row, ""] for row in rows]
    target, kept, failures = columns.index(INDEX_COLUMN), [], []
    for number, row in enumerate(rows):
        result = found[row[at]]
        if isinstance(result, str):
            failures.append(Failure(number, row[at], result))
        else:
            row[target] = ",".join(map(str, result.indices))
            kept.append(row)
    write_csv(out, columns, kept)
    write_failures(out.with_name(f"{out.stem}_failures.csv"), failures)
    sheets = draw_sheets(request, [(row[at], found[row[at]]) for row in kept[: request.sheet_clips]])
    return IndexReport(out, len(kept), tuple(failures), sheets)


def sample_all(request: IndexRequest, cells: Sequence[str]) -> dict[str, Sampled | str]:
    """How each distinct clip is sampled, or why it can't be."""
    cache = DifferenceCache(request.cache) if request.cache is not None else None

    def one(cell: str) -> Sampled | str:
        try:
            return sample_video(inside(request.root, cell), request.frames, request.method, cache)
        except (MediaError, UsageError) as error:
            return str(error)

    found: dict[str, Sampled | str] = {}
    distinct = list(dict.fromkeys(cells))
    with progress(len(distinct), "sampling", "clip") as bar, ThreadPoolExecutor(request.workers) as pool:
        for cell, result in zip(distinct, pool.map(one, distinct), strict=True):
            found[cell] = result
            bar.advance()
    return found


# Contact sheets


def draw_sheets(request: IndexRequest, clips: Sequence[tuple[str, Sampled | str]]) -> tuple[Path, ...]:
    """PNG files that show the chosen frames of clips, a row each, above the motion that they were chosen by."""
    import cv2

    if request.visualize is None:
        return ()
    paths = []
    for start in range(0, len(clips), ROWS_PER_SHEET):
        strips = [
            strip(cell, read_video(inside(request.root, cell), result.indices), result)
            for cell, result in clips[start : start + ROWS_PER_SHEET]
            if not isinstance(result, str)
        ]
        width = max(part.shape[1] for part in strips)
        padded = [np.pad(part, ((0, 6), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in strips]
        _, data = cv2.imencode(".png", cv2.cvtColor(np.concatenate(padded), cv2.COLOR_RGB2BGR))
        path = request.visualize / f"{request.table.stem}_{start // ROWS_PER_SHEET:03d}.png"
        write_bytes(path, data.tobytes())
        paths.append(path)
    return tuple(paths)


def strip(label: str, frames: Image, sampled: Sampled) -> Image:
    """One clip: label, the chosen frames (T, H, W, 3) with their numbers, and the curve of motion with their marks."""
    import cv2

    width = max(1, round(frames.shape[2] * THUMB_HEIGHT / frames.shape[1]))
    thumbs = []
    for number, picture in zip(sampled.indices, frames, strict=True):
        small = cv2.resize(picture, (width, THUMB_HEIGHT), interpolation=cv2.INTER_AREA)
        _write(small, str(number), (3, THUMB_HEIGHT - 5), (255, 255, 255))
        thumbs.append(small)
    row = np.concatenate(thumbs, axis=1)
    title = np.full((LABEL_HEIGHT, row.shape[1], 3), 255, dtype=np.uint8)
    _write(title, label, (3, LABEL_HEIGHT - 5), (0, 0, 0))
    return np.concatenate([title, row, curve(sampled, row.shape[1])]).astype(np.uint8)


def curve(sampled: Sampled, width: int) -> Image:
    """Motion over time as bars, chosen frames marked in red; only the marks where motion wasn't looked at."""
    values = sampled.differences
    area = np.full((CURVE_HEIGHT, width, 3), 245, dtype=np.uint8)
    frames = len(values) + 1 if values is not None else max(sampled.indices) + 1
    at = (np.arange(frames) + 0.5) * width / frames
    if values is not None and (top := values.max(initial=0)) > 0:
        for column in range(width):
            share = values[min(int(column * frames / width), frames - 2)] / top
            area[CURVE_HEIGHT - int(share * CURVE_HEIGHT) :, column] = (120, 150, 190)
    for index in sampled.indices:
        area[:, int(at[min(index, frames - 1)])] = (200, 30, 30)
    return area


def _write(picture: Any, text: str, at: tuple[int, int], colour: tuple[int, int, int]) -> None:
    import cv2

    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, colour, 1, cv2.LINE_AA)
