"""The frames of a clip that are shown: where it moves, or at equal distances.

As in the benchmark's MGSampler (arXiv 2104.09952), motion between two frames
is 1 - SSIM (Wang et al. 2004, 7 x 7 uniform window) of their 224 x 224 gray
pictures. The cumulative sum of its root is cut into equal parts. Clips of at
most two frames per wanted index are sampled uniformly.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from lary.arrays import Doubles, Ints, Pixels
from lary.data.configs import IndicesConfig
from lary.data.frames import count_frames, decode_video, to_rgb
from lary.data.tables import INDEX_COLUMN, MEDIA_COLUMNS, read_frame, write_csv
from lary.files import file_digest, inside, write_failures, write_text
from lary.runtime import in_threads, progress
from lary.settings import Settings
from lary.types import Failure, MediaError, UsageError

Method = Literal["motion", "uniform"]

FRAMES = 9
"""Indices per clip in the published tables."""
VIDEO_COLUMN = MEDIA_COLUMNS["clip"][0]
SIDE = 224
WINDOW = 7
STABILISERS = (0.01 * 255) ** 2, (0.03 * 255) ** 2
"""C1 and C2 of SSIM for 8 bit pictures."""


def frame_motion(pictures: Iterable[Pixels]) -> Doubles:
    """1 - SSIM between neighbouring gray pictures (H, W) uint8, (n - 1,) float64.

    As scikit-image's defaults for uint8 but for rounding, in a tenth of the
    time.
    """
    import cv2

    def box(values: Doubles) -> Doubles:
        return np.asarray(cv2.blur(values, (WINDOW, WINDOW)))

    (c1, c2), sample = STABILISERS, WINDOW**2 / (WINDOW**2 - 1)  # variances of a sample
    edge = slice(WINDOW // 2, -(WINDOW // 2))  # windows inside the picture
    found, before = [], None
    for picture in pictures:
        y = picture.astype(np.float64)
        mean_y = box(y)
        var_y = box(y * y) - mean_y * mean_y
        if before:
            x, mean_x, var_x = before
            product = mean_x * mean_y
            covariance = sample * (box(x * y) - product)
            values = (2 * product + c1) * (2 * covariance + c2)
            values /= (mean_x * mean_x + mean_y * mean_y + c1) * (sample * (var_x + var_y) + c2)
            found.append(1.0 - values[edge, edge].mean())
        before = y, mean_y, var_y
    return np.array(found)


def gray_frames(path: Path) -> Iterator[Pixels]:
    """All frames of a video as (224, 224) gray pictures, uint8. Raises MediaError."""
    import cv2

    for frame in decode_video(path):
        gray = cv2.cvtColor(to_rgb(frame), cv2.COLOR_RGB2GRAY)
        yield np.asarray(cv2.resize(gray, (SIDE, SIDE)), np.uint8)


def motion_picks(differences: Doubles, count: int) -> Ints:
    """The later frame at each of `count` equal parts of the motion, (count,) int64.

    Without any motion, every pick is frame 1, as published.
    """
    with np.errstate(invalid="ignore"):
        roots = np.sqrt(differences)
    if not roots.sum() > 0:
        return np.ones(count, np.int64)
    share = np.cumsum(roots / roots.sum())
    middles = (np.arange(count)[:, None] + 0.5) / count
    return np.asarray(np.abs(share - middles).argmin(1) + 1, np.int64)


def uniform_picks(frames: int, count: int) -> Ints:
    """The first frame of each of `count` equal parts of a clip, (count,) int64."""
    return (frames / count * np.arange(count)).astype(np.int64)


def stored_indices(picks: Iterable[int], count: int) -> tuple[int, ...]:
    """The indices of a table: sorted, padded with the last; empty for one frame."""
    chosen = sorted(set(map(int, picks)))
    if chosen in ([], [0]):
        return ()
    return tuple((chosen + [chosen[-1]] * count)[:count])


def sample_video(path: Path, count: int = FRAMES, method: Method = "motion") -> tuple[int, ...]:
    """Choose the indices of a video. Raises MediaError."""
    frames = count_frames(path)
    if method == "motion" and frames > 2 * count:
        picks = motion_picks(frame_motion(gray_frames(path)), count)
    else:
        picks = uniform_picks(frames, count)
    if indices := stored_indices(picks, count):
        return indices
    raise MediaError(f"The video {path} has {frames} frame, at least two are needed.")


class IndexReport(NamedTuple):
    out: Path
    rows: int
    failures: tuple[Failure, ...]


def write_indices(table: Path, config: IndicesConfig, settings: Settings) -> IndexReport:
    """Write a table with the indices of its clips, without those that fail."""
    root = config.root or settings.path("DATA_DIR") / "classification"
    frame = read_frame(table, needed=(VIDEO_COLUMN,))
    config.check_counts("frames", "workers")
    out = config.out or table.with_name(f"{table.stem}_indices.csv")
    if out.resolve() == table.resolve():
        raise UsageError(f"--out {out} is the input itself: name another file.")

    def sampled(cell: str) -> tuple[str, str]:
        try:
            path, kept = inside(root, cell), None
            if config.cache and path.is_file():  # by content: copies are found again
                kept = config.cache / f"{file_digest(path)}_{config.method}_{config.frames}_counted.txt"
                if kept.is_file():
                    return kept.read_text("utf-8"), ""
            text = ",".join(map(str, sample_video(path, config.frames, config.method)))
        except (MediaError, UsageError) as error:
            return "", str(error)
        if kept:
            write_text(kept, text)
        return text, ""

    cells = frame[VIDEO_COLUMN].tolist()
    distinct = list(dict.fromkeys(cells))
    with progress(len(distinct), "sampling", "clip") as bar:
        found = dict(zip(distinct, in_threads(sampled, distinct, config.workers, bar=bar), strict=True))
    frame[INDEX_COLUMN] = [found[cell][0] for cell in cells]
    failures = [Failure(row, cell, found[cell][1]) for row, cell in enumerate(cells) if found[cell][1]]
    kept = frame[frame[INDEX_COLUMN] != ""]
    write_csv(out, kept.columns, kept.to_numpy())
    write_failures(out.with_name(f"{out.stem}_failures.csv"), failures)
    return IndexReport(out, len(kept), tuple(failures))
