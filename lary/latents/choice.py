"""Which frames of a sample a model sees.

They are the table's, or as many as the model's record asks for.
Without a distance, these are spread over the sample's own, in a
video also between them. With one, the sample's span is in their
middle, and the ends are repeated. Controls repeat or reorder these.
"""

import functools
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lary.arrays import Ints, Pixels
from lary.data.frames import count_frames, opened_video, read_frames
from lary.data.tables import SampleTable
from lary.models.preprocess import resize_frame
from lary.models.spec import ModelSpec, Preprocess
from lary.types import MediaError, UsageError

PAIRS_CHECKED = 64
"""Pairs of a table, of which one needs frames around it."""


def read_chosen(paths: Sequence[Path], index: Sequence[int], preprocess: Preprocess) -> list[Pixels]:
    """Decode and resize the frames that a model sees, T arrays (H', W', 3) uint8.

    `paths` and `index` are as in `lary.data.frames.read_frames`. Raises MediaError,
    and LaryError for an unfit size.
    """
    count, step = preprocess.frames, preprocess.stride
    if count is None:
        pass
    elif not index and step is not None:
        paths = images_around(paths, count, step)
    elif not index:
        paths = [paths[place] for place in spread(range(len(paths)), count)]
    elif preprocess.rate is None and step is None:
        index = spread(index, count).tolist()
    else:
        index = video_around(paths[0], index, preprocess)
    fit = functools.partial(resize_frame, preprocess=preprocess)
    return read_frames(paths, index, preprocess.reader, clamp=preprocess.clamp, fit=fit)


def spread(values: Sequence[int] | Ints, count: int) -> Ints:
    """`count` numbers evenly along others, ends included, (count,) int64."""
    places = np.linspace(0, len(values) - 1, count)
    found = np.interp(places, np.arange(len(values)), values)
    return np.floor(found + 0.5).astype(np.int64)


def centred(shown: Sequence[int], count: int, step: float) -> Ints:
    """Frames at a distance, in whose middle is the span of the shown ones.

    They are in the order of these, (count,) int64.
    """
    middle = (min(shown) + max(shown)) / 2
    steps = np.arange(count) - (count - 1) / 2
    # Halves are rounded up, which keeps distances equal.
    numbers: Ints = np.floor(middle + steps * step + 0.5).astype(np.int64)
    ranks = np.unique(shown, return_inverse=True)[1]
    if not ranks.any():  # a single frame, such as that of a static pair
        return np.full(count, shown[0], dtype=np.int64)
    if (np.diff(ranks) < 0).any():  # in another order than that of time
        return numbers[spread(ranks * (count - 1) // ranks.max(), count)]
    return numbers


def video_around(path: Path, shown: Sequence[int], preprocess: Preprocess) -> list[int]:
    """Frame numbers of a video around a sample's own. Raises MediaError."""
    step, last = float(preprocess.stride or 1), count_frames(path) - 1
    if max(shown) > last and not preprocess.clamp:
        asked = f"frame {max(shown)} is asked for"
        raise MediaError(f"The video {path} ends with frame {last}, and {asked}.")
    if preprocess.rate is not None:
        with opened_video(path) as (_, stream):
            speed = float(stream.average_rate or 0)
        if speed <= 0:
            raise MediaError(f"The video {path} names no frame rate.")
        step = speed / preprocess.rate
    numbers = centred(shown, preprocess.frames or 1, step)
    found: list[int] = numbers.clip(0, last).tolist()
    return found


def images_around(pair: Sequence[Path], count: int, step: int) -> list[Path]:
    """Images at a distance around a pair's.

    They are named as its own but for one number. Raises MediaError.
    """
    if pair[0] == pair[1]:
        return [pair[0]] * count
    first, second = (re.split(r"([0-9]+)", str(path)) for path in pair)
    both = enumerate(zip(first, second, strict=False))
    differ = [at for at, (one, other) in both if one != other]
    if len(first) != len(second) or len(differ) != 1 or differ[0] % 2 == 0:
        raise MediaError(f"{pair[0]} and {pair[1]} differ in no number.")
    at = differ[0]
    width = min(len(first[at]), len(second[at]))
    files = {int(first[at]): pair[0], int(second[at]): pair[1]}
    low, high = sorted(files)
    numbers = centred([int(first[at]), int(second[at])], count, step).tolist()
    for number in numbers:
        name = "".join([*first[:at], str(number).zfill(width), *first[at + 1 :]])
        if number >= 0 and number not in files and Path(name).is_file():
            files[number] = Path(name)
        elif low < number < high:
            raise MediaError(f"{name}, a frame between those of a pair, isn't there.")
    return [files[min(files, key=lambda other: abs(other - number))] for number in numbers]


def check_frames_there(table: SampleTable, model: ModelSpec, preprocess: Preprocess) -> None:
    """Refuse a record whose frames a data set can't give. Raises UsageError."""
    count, step = preprocess.frames, preprocess.stride
    around = step is not None or preprocess.rate is not None
    if table.spec.media == "clip" or count is None or not around:
        return
    asked = f"Model '{model.name}' takes {count} frames"
    if step is None:
        raise UsageError(
            f"{asked}, {preprocess.rate:g} per second, and the image pairs of "
            f"'{table.spec.name}' have no times: give its record a stride."
        )
    tried = [table.media_path(table[row]) for row in range(min(len(table), PAIRS_CHECKED))]
    tried = [pair for pair in tried if all(map(Path.is_file, pair))]
    for pair in tried:
        with suppress(MediaError):
            found = {*images_around(pair, count, step)}
            if count <= len(pair) or pair[0] == pair[1] or found - {*pair}:
                return
    if tried:
        raise UsageError(
            f"{asked} at a stride of {step} around a pair, and none of the first {len(tried)} "
            f"pairs of '{table.spec.name}' has images beside its own."
        )
