"""Cutting and reversing videos: H.264 by the ffmpeg executable or by PyAV, without sound, whole or not at all."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from lary.data.frames import decode_video
from lary.files import atomic_write, create_temporary
from lary.types import MediaError, UsageError

Backend = Literal["auto", "ffmpeg", "pyav"]

ENCODER = {"preset": "ultrafast", "crf": "23"}
EVEN = "ceil(iw/2)*2:ceil(ih/2)*2"
"""H.264 with halved colour needs even sides: a line is added at the right and below."""

TURNS = {1: ("transpose=cclock",), 2: ("hflip", "vflip"), 3: ("transpose=clock",)}
"""Filters that set a picture upright, by quarter turns against the clock."""

HALF_TICK = Fraction(1, 2_000_000)
"""Slack of times in seconds, half of FFmpeg's microsecond."""

BLOCK = 48
"""Frames held at once while reversing: 150 MB of 1080p pictures."""

REVERSED_BITS = 64
"""Bits per pixel that a reversed clip may take, as OpenCV's writer allows: it adds no visible loss."""

MPEG4_TICKS = 65535
"""Largest number of ticks a second in MPEG-4 (ISO/IEC 14496-2, vop_time_increment_resolution)."""


def find_ffmpeg(backend: Backend = "auto") -> str | None:
    """The ffmpeg executable; None where PyAV cuts. Raises UsageError if ffmpeg is asked for and missing."""
    found = None if backend == "pyav" else shutil.which("ffmpeg")
    if found is None and backend == "ffmpeg":
        raise UsageError("There is no ffmpeg executable in PATH: install it, or cut with --backend pyav.")
    return found


def cut_forward(source: Path, start: float, duration: float, out: Path, ffmpeg: str | None = None) -> None:
    """Cut `duration` seconds from `start` on, frame-exact, as H.264, by the ffmpeg executable or by PyAV.

    Raises:
        MediaError: the recording is broken, or holds no frame in that span.
    """
    if ffmpeg is None:
        _cut_with_pyav(source, start, duration, out)
    else:
        _cut_with_ffmpeg(ffmpeg, source, start, duration, out)


def _cut_with_ffmpeg(executable: str, source: Path, start: float, duration: float, out: Path) -> None:
    handle, name = create_temporary(out)
    os.close(handle)
    options = [item for key, value in ENCODER.items() for item in (f"-{key}", value)]
    command = [executable, "-nostdin", "-v", "error", "-y", "-ss", str(start), "-t", str(duration)]
    command += ["-i", str(source.absolute()), "-vf", f"pad={EVEN}", "-c:v", "libx264", *options, "-threads", "1"]
    command += ["-pix_fmt", "yuv420p", "-an", "-f", "mp4", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise MediaError(f"ffmpeg can't cut {source}: {lines[-1]}.")
        try:
            next(decode_video(Path(name)))
        except MediaError:
            raise MediaError(f"The recording {source} has no frame from {start} s on.") from None
        os.replace(name, out)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def _failing_as(what: str) -> Iterator[None]:
    """What PyAV and the disk raise in the block as a MediaError."""
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise MediaError(f"{what}: {getattr(error, 'strerror', None) or error}.") from error


def _cut_with_pyav(source: Path, start: float, duration: float, out: Path) -> None:
    import av

    with _failing_as(f"{source} can't be cut"), av.open(str(source)) as container:
        if not container.streams.video:
            raise ValueError("it holds no video stream")
        stream: Any = container.streams.video[0]
        stream.codec_context.thread_count = 1
        # Cuts are counted from the recording's start, as ffmpeg does.
        begin = Fraction(container.start_time or 0, 1_000_000) + Fraction(str(start))
        if start > 0:
            container.seek(int((begin - HALF_TICK) / stream.time_base), stream=stream, backward=True)
        frames = _span(container.demux(stream), begin - HALF_TICK, Fraction(str(duration)))
        first = next(frames, None)
        if first is None:
            raise ValueError(f"it has no frame from {start} s on")
        upright = _upright(itertools.chain([first], frames), first)
        _encode(upright, out, stream.average_rate or Fraction(30), begin)


def _span(packets: Iterable[Any], begin: Fraction, duration: Fraction) -> Iterator[Any]:
    """The frames from `begin` on, for `duration` from the first of them on (so does ffmpeg), both in seconds."""
    first = None
    for packet in packets:
        if packet.size and packet.is_corrupt:
            raise ValueError("the file ends within a frame")
        for frame in packet.decode():
            if frame.pts is None:
                raise ValueError("its frames have no time stamps")
            if frame.pts * frame.time_base < begin:
                continue
            first = frame.pts if first is None else first
            if frame.pts - first >= round(duration / frame.time_base):
                return
            yield frame


def _upright(frames: Iterable[Any], first: Any) -> Iterator[Any]:
    """Frames turned as their recording says, padded to even sides, in the pixel format of H.264."""
    import av

    graph = av.filter.Graph()
    # No stream is handed over: its time base may differ from the frames'.
    source = graph.add_buffer(
        width=first.width, height=first.height, format=first.format, time_base=first.time_base
    )  # fmt: skip
    turn = round(getattr(first, "rotation", 0) / 90) % 4
    links = [source]
    for text in (*TURNS.get(turn, ()), f"pad={EVEN}", "format=yuv420p"):
        name, _, arguments = text.partition("=")
        links.append(graph.add(name, arguments or None))
    links.append(graph.add("buffersink"))
    for before, after in itertools.pairwise(links):
        before.link_to(after)
    graph.configure()
    for frame in frames:
        source.push(frame)
        yield links[-1].pull()


def cut_reversed(forward: Path, out: Path) -> None:
    """All frames of a clip in reverse order, MPEG-4, at its rate and size.

    Raises:
        MediaError: the forward clip is broken.
    """
    import av

    with _failing_as(f"{forward} can't be reversed"):
        with av.open(str(forward)) as container:
            rate = container.streams.video[0].average_rate or Fraction(30)
        rate = rate.limit_denominator(max(1, min(1001, int(MPEG4_TICKS / rate))))
        count = sum(1 for _ in decode_video(forward))
        # The frames from the last to the first, a block of them in memory at a time.
        blocks = ((max(0, stop - BLOCK), stop) for stop in range(count, 0, -BLOCK))
        frames = (
            frame
            for start, stop in blocks
            for frame in reversed(list(itertools.islice(decode_video(forward), start, stop)))
        )
        _encode(frames, out, rate)


def _encode(frames: Iterable[Any], out: Path, rate: Fraction, origin: Fraction | None = None) -> None:
    """Write frames as H.264 with their own times, counted from `origin` in seconds; without it evenly as MPEG-4."""
    import av

    with atomic_write(out) as file, av.open(file, "w", format="mp4") as container:
        stream: Any = None
        ticks = -1
        for frame in frames:
            if stream is None:
                stream = container.add_stream(
                    "mpeg4" if origin is None else "libx264", rate=rate, options={} if origin is None else ENCODER
                )
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
                stream.codec_context.thread_count = 1
                if origin is None:
                    stream.bit_rate = int(min(REVERSED_BITS * rate * frame.width * frame.height, 2**30))
                else:
                    stream.codec_context.time_base = frame.time_base
            unit = 1 / stream.codec_context.rate if origin is None else stream.codec_context.time_base
            own = 0 if origin is None else int((frame.pts * frame.time_base - origin) / unit + Fraction(1, 2))
            ticks = max(own, ticks + 1)  # ascending, also where two frames have one time
            frame.pts, frame.time_base, frame.pict_type = ticks, unit, 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
