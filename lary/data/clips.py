"""Clips of SSv2 and EgoDex, cut and reversed out of their recordings.

Neither source may be redistributed, so the benchmark ships seed tables:
``video_path``, and in ``seed_output`` lines such as ``0.5 - 2.0 pick up``.
Clips have no sound, are cut by PyAV, and appear whole.
"""

import functools
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np

from lary.data.configs import ClipConfig
from lary.data.frames import decode_video, decoded, opened_video, to_rgb, whole_packets
from lary.data.tables import read_frame
from lary.files import atomic_write, inside, write_failures
from lary.runtime import in_threads, progress, usable_cores
from lary.settings import Settings
from lary.types import Failure, MediaError, UsageError

Times = Literal["clock", "published"]

NUMBER = r"(\d+(?:\.\d*)?)"
SECONDS = re.compile(rf"{NUMBER}\s*-\s*{NUMBER}")
CLOCK_TIME = r"((?:\d+:)?\d{1,2}:\d{2}(?:\.\d*)?)"
CLOCK = re.compile(rf"{CLOCK_TIME}\s*-\s*{CLOCK_TIME}")
"""``mm:ss`` or ``h:mm:ss``, with decimals."""

UNPACKED = "unzipped/"
"""EgoDex paths of the seed table are those behind this folder."""
SUFFIX, REVERSED = ".mp4", "_rev"
CLIP_TABLES = ("human_1st_metadata_train.csv", "human_1st_metadata_val.csv")
"""Tables that name the clips."""
EGODEX = "EgoDex"
SOURCES = ("SSv2", EGODEX)
"""Values of the column ``dataset``, and first folders of the clips."""

HALF_TICK = Fraction(1, 2_000_000)
"""Slack of times in seconds, half of FFmpeg's microsecond."""
BLOCK = 100_000_000
"""Pixels held at once while reversing: 48 frames of 1080p, 150 MB."""
REVERSED_BITS = 64
"""Most bits per pixel of a reversed clip, as in OpenCV's writer: no visible loss."""
MPEG4_TICKS = 65535
"""Largest number of ticks a second in MPEG-4 (ISO/IEC 14496-2)."""


class Task(NamedTuple):
    """A clip to make; start and duration are in seconds."""

    source: Path
    start: float
    duration: float
    out: Path
    reverse: bool

    @property
    def forward(self) -> Path:
        name = self.out.name
        return self.out.with_name(name.removesuffix(SUFFIX).removesuffix(REVERSED) + SUFFIX)


def parse_clips(value: object, times: Times = "clock") -> list[tuple[int, float, float]]:
    """Line (from 0), start and duration in seconds of the spans of a cell of the seed table.

    The first range of a line counts. ``clock`` reads minutes and seconds;
    ``published``, as the published tool, the numbers beside the dash (``00:01
    - 00:05`` gives nothing).
    """
    found = []
    for number, line in enumerate(str(value).replace("\\n", "\n").strip().split("\n")):
        clock = CLOCK.search(line) if times == "clock" else None
        if match := clock or SECONDS.search(line):
            parts = (map(float, text.split(":")) for text in match.groups())
            start, end = (functools.reduce(lambda total, part: total * 60 + part, each) for each in parts)
            if (duration := round(end - start, 2)) > 0:
                found.append((number, start, duration))
    return found


def clip_tasks(
    source: str, seeds: Iterable[Sequence[str]], root: Path, out: Path, wanted: set[str], times: Times
) -> list[Task]:
    """The wanted clips of `seeds` (``video_path``, ``seed_output``), forward first.

    Named ``SSv2/<row>_<line>[_rev].mp4`` and
    ``EgoDex/<video>/<row>_<line>[_rev].mp4``.
    """
    tasks = []
    for row, (video, text) in enumerate(seeds):
        path = PurePosixPath(video.replace("\\", "/"))
        inner, stem = path.name, f"{source}/{row}"
        if source == EGODEX:  # its recordings are in folders of tasks
            stem = f"{source}/{path.stem}/{row}"
            inner = str(path).split(UNPACKED, 1)[1] if UNPACKED in str(path) else path.name
        for line, start, duration in parse_clips(text, times):
            for ending in (SUFFIX, REVERSED + SUFFIX):
                name = f"{stem}_{line}{ending}"
                if name in wanted:
                    # Untrusted tables give both: neither may lead out of its folder.
                    recording, target = inside(root, inner), inside(out, name)
                    tasks.append(Task(recording, start, duration, target, ending != SUFFIX))
    return tasks


class ClipReport(NamedTuple):
    wanted: int
    made: int
    kept: int
    failures: tuple[Failure, ...]
    listed: Path


def prepare_clips(config: ClipConfig, settings: Settings) -> ClipReport:
    """Cut every missing clip that the tables name, a reversed one from its forward clip.

    Raises UsageError.
    """
    folder = settings.path("LARY_ROOT") / "data"
    given = zip(SOURCES, (config.ssv2_root, config.egodex_root), strict=True)
    roots = {name: root for name, root in given if root}
    if not roots:
        raise UsageError("Name --ssv2-root, --egodex-root or both: the folders of the recordings.")
    for name, root in roots.items():
        if not root.is_dir():
            raise UsageError(f"The {name} folder {root} does not exist.")
    tables = config.metadata or tuple(filter(Path.is_file, map(folder.joinpath, CLIP_TABLES)))
    if not tables:
        raise UsageError(f"{folder} has none of {', '.join(CLIP_TABLES)}: set LARY_ROOT or pass --metadata.")
    out = config.output_dir or settings.path("DATA_DIR") / "classification"
    rows = [row for table in tables for row in read_columns(table, "dataset", "video_path")]
    wanted = {path.strip().replace("\\", "/") for source, path in rows if source.strip() in roots}
    groups = defaultdict[Path, list[Task]](list)
    for source, root in roots.items():
        named = config.seed_egodex if source == EGODEX else config.seed_ssv2
        seeds = read_columns(named or folder / f"seed_{source.lower()}.csv", "video_path", "seed_output")
        for task in clip_tasks(source, seeds, root, out, wanted, config.times):
            groups[task.forward].append(task)
    found = {task.out.relative_to(out).as_posix() for group in groups.values() for task in group}
    results = dict.fromkeys(wanted - found, "no line of the seed table gives this clip")
    workers = min(config.workers, 4 * usable_cores())
    with progress(len(found), "cutting", "clip") as bar:
        for done in in_threads(make_clips, list(groups.values()), workers):
            results |= {path.relative_to(out).as_posix(): result for path, result in done.items()}
            bar.advance(len(done))
    counts = Counter(results.values())
    failures = tuple(Failure(None, *item) for item in sorted(results.items()) if item[1] not in ("made", "kept"))
    listed = out / "clip_failures.csv"
    write_failures(listed, failures)
    return ClipReport(len(wanted), counts["made"], counts["kept"], failures, listed)


def read_columns(table: Path, *names: str) -> list[list[str]]:
    """The rows of some columns of a CSV. Raises UsageError."""
    return read_frame(table, needed=names)[list(names)].to_numpy(object).tolist()


def make_clips(tasks: Sequence[Task]) -> dict[Path, str]:
    """Make the clips of one span; ``made``, ``kept`` or the failure by file."""
    done = {}
    for task in tasks:
        try:
            if task.out.is_file():  # a clip appears whole
                done[task.out] = "kept"
                continue
            if not task.forward.is_file():
                if not task.source.is_file():
                    raise MediaError(f"The recording {task.source} does not exist.")
                cut_forward(task.source, task.start, task.duration, task.forward)
            if task.reverse:
                cut_reversed(task.forward, task.out)
            done[task.out] = "made"
        except (MediaError, OSError) as error:
            done[task.out] = str(error)
    return done


def cut_forward(source: Path, start: float, duration: float, out: Path) -> None:
    """Cut `duration` seconds from `start`, frame-exact, as H.264. Raises MediaError."""
    with opened_video(source) as (container, stream):
        # Cuts are counted from the recording's start, as the ffmpeg executable does.
        begin = Fraction(container.start_time or 0, 1_000_000) + Fraction(str(start))
        if start > 0:
            container.seek(int((begin - HALF_TICK) / stream.time_base), stream=stream, backward=True)
        frames = _span(whole_packets(container, stream), begin - HALF_TICK, Fraction(str(duration)))
        _encode(frames, out, "libx264", stream.average_rate or Fraction(30), origin=begin)


def cut_reversed(forward: Path, out: Path) -> None:
    """Reverse a clip, as MPEG-4 at its rate and size. Raises MediaError."""
    with opened_video(forward) as (_, stream):
        rate = stream.average_rate or Fraction(30)
        rate = rate.limit_denominator(max(1, min(1001, int(MPEG4_TICKS / rate))))
        count, block = sum(1 for _ in decode_video(forward)), max(1, BLOCK // (stream.width * stream.height or 1))
        frames = (
            frame
            for stop in range(count, 0, -block)
            for frame in reversed(list(itertools.islice(decode_video(forward), max(0, stop - block), stop)))
        )
        _encode(frames, out, "mpeg4", rate)


def _span(packets: Iterable[Any], begin: Fraction, duration: Fraction) -> Iterator[Any]:
    """The upright frames from `begin` on, for `duration` seconds."""
    import av

    first, before = None, -math.inf
    for frame in decoded(packets):
        if frame.pts is None:
            raise ValueError("its frames have no time stamps")
        if frame.pts < before:  # of H.264 with B-frames in AVI, which FFmpeg makes up
            raise ValueError("the time stamps of its frames don't rise")
        before = frame.pts
        if frame.pts * frame.time_base < begin:
            continue
        first = frame.pts if first is None else first
        if frame.pts - first >= round(duration / frame.time_base):
            return
        picture = to_rgb(frame)
        height, width, _ = picture.shape  # halved colour needs even sides
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)))
        shown = av.VideoFrame.from_ndarray(even, format="rgb24")
        shown.pts, shown.time_base = frame.pts, frame.time_base
        yield shown
    if first is None:
        raise ValueError(f"it has no frame from {float(begin):g} s on")


def _encode(frames: Iterable[Any], out: Path, codec: str, rate: Fraction, origin: Fraction | None = None) -> None:
    """Write frames with their own times, from `origin` in seconds, or evenly."""
    import av

    with atomic_write(out) as file, av.open(file, "w", format="mp4") as container:
        options = {} if origin is None else {"preset": "ultrafast", "crf": "23"}
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        ticks = -1
        for frame in frames:
            if ticks < 0:
                stream.width, stream.height = frame.width, frame.height
                unit = 1 / rate if origin is None else frame.time_base
                stream.codec_context.time_base = unit
                if origin is None:
                    stream.bit_rate = int(min(REVERSED_BITS * rate * frame.width * frame.height, 2**30))
            own = 0 if origin is None else int((frame.pts * frame.time_base - origin) / unit + Fraction(1, 2))
            ticks = max(own, ticks + 1)  # ascending, also where two frames have one time
            frame.pts, frame.time_base, frame.pict_type = ticks, unit, 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
