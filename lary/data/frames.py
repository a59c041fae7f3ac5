"""Frames as pixels: those of image pairs and clips, uint8 RGB (T, H, W, 3).

Clips are decoded by PyAV, exact by index: frame n is the n-th in order of
presentation, whatever its time stamp.
"""

import functools
import math
import os
import re
import stat
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lary.arrays import Pixels
from lary.data.images import Reader, read_image, size_problem
from lary.types import LaryError, MediaError

Kept = TypeVar("Kept")

CONTAINERS = (
    "aac,asf,av1,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,"
    "mpegvideo,obu,ogg,wav,webm,yuv4mpegpipe"
)
"""Demuxers that read one file; playlists and scripts (hls, concat, dash) open others."""

SEEKABLE = {"av1", "ffv1", "h264", "hevc", "mjpeg", "mpeg4", "vp9"}
"""Codecs that store one shown frame per packet, so that packets number the frames."""

BYTES_KEPT = 64_000_000
"""Packets of a clip are kept; a longer video is decoded from its start, without them."""

LARGEST_FRAME = 35_651_584
"""Luma samples of the highest levels: ITU-T H.264 and H.265 6.2 (tables A-1, A.8), AV1 6.3 (A.3)."""
MOST_HELD = 10
"""Pictures of this size in a decoder: those levels allow five or six (A.3.1, A.4.2), and some wait for output."""


def read_clip(paths: Sequence[Path], frame_index: Sequence[int], reader: Reader = "cv2") -> Pixels:
    """Decode a sample's frames, (T, H, W, 3) uint8 RGB; see `read_frames`."""
    return np.stack(read_frames(paths, frame_index, reader, fit=np.asarray))


def read_frames(
    paths: Sequence[Path],
    frame_index: Sequence[int],
    reader: Reader = "cv2",
    *,
    clamp: bool = True,
    fit: Callable[[Pixels], Kept],
) -> list[Kept]:
    """What `fit` makes of a sample's T frames, (H, W, 3) uint8 RGB of one size. Raises MediaError.

    Args:
        paths: the images of a pair, or one video.
        frame_index: empty for images; for a video the wanted frames from 0, in any order.
        reader: library that decodes images.
        clamp: whether an index behind the last frame is allowed and gives the last frame.
        fit: called on each frame as it is decoded, so that one is in memory at a time.
    """
    first: list[tuple[int, ...]] = []

    def keep(image: Pixels) -> Kept:
        first[:] = first or [image.shape]
        if first[0] != image.shape:
            sizes = ", ".join(f"{width}x{height}" for height, width, _ in (first[0], image.shape))
            raise MediaError(f"The frames of {paths[0]} differ in size: {sizes}.")
        return fit(image)

    if frame_index:
        return video_frames(paths[0], frame_index, lambda frame: keep(to_rgb(frame)), clamp=clamp)
    return [keep(read_image(path, reader)) for path in paths]


class FrameTable(NamedTuple):
    """Where the frames of a video are, as its packets announce them.

    Attributes:
        stamps: time stamps of all frames, ascending.
        starts: frames where decoding can start, and their packets' numbers.
        reordered: whether stamps don't ascend in the file (B-frames).
        packets: all packets in the file's order; empty if too large.
    """

    stamps: tuple[int, ...]
    starts: tuple[tuple[int, int], ...]
    reordered: bool
    packets: tuple[Any, ...] = ()


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """A container that PyAV reads from this file alone, and its `main_stream`. Raises MediaError."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
            raise OSError(22, "it is no regular file")
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        with _av().open(str(path), options=options) as container:
            if "matroska" in container.format.name and is_cut_off(path):
                raise ValueError("the file is cut off")
            stream = main_stream(container)
            codec = stream.codec_context
            codec.thread_count = 1  # samples are read in parallel
            if problem := size_problem(codec.width, codec.height, LARGEST_FRAME):
                raise ValueError(problem)
            # A frame's own header counts too: it may announce another size.
            codec.options = {**codec.options, "max_pixels": str(LARGEST_FRAME)}
            yield container, stream
    except LaryError:
        raise
    except (_av().error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"The video {path} can't be read: {reason}.") from error


def main_stream(container: Any) -> Any:
    """The first video stream that is neither a cover picture nor depth. Raises ValueError."""
    kinds = _av().stream.Disposition
    covers = kinds.attached_pic | kinds.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & covers]
    for stream in streams:
        named = " ".join(stream.metadata.values()).lower()
        # Depth is stored as gray of more than 8 bits: gray10le, gray16le, grayf32le.
        if "depth" not in named and not re.match("gray.", stream.codec_context.pix_fmt or ""):
            return stream
    raise ValueError("its only video stream is depth" if streams else "it holds no video stream")


def is_cut_off(path: Path) -> bool:
    """Whether a Matroska file ends before its segment (RFC 8794, 6), which FFmpeg ignores."""
    with path.open("rb") as file:
        head = file.read(4096)
    at = head.find(b"\x18\x53\x80\x67", 0, 4000)
    if at < 0:
        return False
    at += 4  # behind the segment's identifier is its size, whose leading zero bits count its bytes
    length = 9 - head[at].bit_length()
    unknown = (1 << 7 * length) - 1  # of recordings that were written live
    size = int.from_bytes(head[at : at + length], "big") & unknown
    return size != unknown and at + length + size > path.stat().st_size


def whole_packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, in the file's order. Raises ValueError for one that is torn."""
    for packet in container.demux(stream):
        if packet.size and packet.is_corrupt:
            raise ValueError("the file ends within a frame")
        yield packet


def decoded(packets: Iterable[Any], held: set[int] | None = None) -> Iterator[Any]:
    """The frames of packets. Raises ValueError for more in memory than a level allows.

    `held` collects where the decoder keeps its pictures: it uses the memory
    again of those let go.
    """
    held = set() if held is None else held
    for packet in packets:
        codec, found = packet.stream.codec_context, packet.decode()
        # Other formats refer to eight pictures at most; these two to as many as a file claims.
        if codec.name in ("h264", "hevc"):
            held.update(frame.planes[0].buffer_ptr for frame in found)
            if max(len(held), codec.reorder_depth) * codec.width * codec.height > MOST_HELD * LARGEST_FRAME:
                raise ValueError("its pictures refer to more others than any level allows")
        yield from found


def video_frames(
    path: Path, frame_index: Sequence[int], keep: Callable[[Any], Kept], *, clamp: bool = True
) -> list[Kept]:
    """What `keep` makes of the wanted frames of a video, from PyAV, in the order asked for.

    The packets are read in full; pictures are decoded from the last key frame before a
    wanted one on. Where packets don't number frames, or are too large to be kept, all are
    decoded in order. Raises MediaError.
    """
    frames = None
    with opened_video(path) as (container, stream):
        table = scan_packets(container, stream)
        if table and table.packets:
            frames = pick_frames(stream, table, frame_index, keep)
    if frames is None:
        with opened_video(path) as (container, stream):
            frames = decode_in_order(container, stream, frame_index, keep)
    last = max(frames)
    if not clamp and max(frame_index) > last:
        raise MediaError(f"The video {path} ends with frame {last}, and frame {max(frame_index)} is asked for.")
    return [frames[min(index, last)] for index in frame_index]


def scan_packets(container: Any, stream: Any) -> FrameTable | None:
    """Read all packets once; None where they don't number the frames. Raises ValueError."""
    stamps, keys, packets, budget = list[Any](), list[tuple[Any, int]](), list[Any](), BYTES_KEPT
    countable = codec_name(stream) in SEEKABLE
    for number, packet in enumerate(whole_packets(container, stream)):
        budget -= packet.size
        if budget >= 0 and countable:
            packets.append(packet)
        # The last packet is empty; one outside the edit list is decoded but never shown.
        if not packet.size or packet.is_discard:
            continue
        stamps.append(packet.pts)
        if packet.is_keyframe and starts_afresh(packet, stream):
            keys.append((packet.pts, number))
    if not countable or not keys or None in stamps or len(set(stamps)) < len(stamps):
        return None
    shown = tuple(sorted(stamps))
    order = {stamp: index for index, stamp in enumerate(shown)}
    starts = sorted((order[pts], number) for pts, number in keys)
    if starts[0][0] != 0 or keys != sorted(keys):
        return None
    reordered = shown != tuple(stamps)
    return FrameTable(shown, tuple(starts), reordered, tuple(packets) if budget >= 0 else ())


def codec_name(stream: Any) -> str:
    """Name of the format, not of the library that decodes it (``av1``, not ``libdav1d``)."""
    codec = stream.codec_context.codec
    return str(getattr(codec, "canonical_name", codec.name))


def starts_afresh(packet: Any, stream: Any) -> bool:
    """Whether every later frame can be decoded from this key packet on.

    Containers mark H.264 recovery points as key frames too; only an
    instantaneous refresh (NAL type 5, ITU-T H.264 table 7-1) needs nothing
    before.
    """
    if codec_name(stream) != "h264":
        return True
    data, extra = bytes(packet), bytes(stream.codec_context.extradata or b"")
    if not extra or extra[0] != 1:  # byte stream with start codes
        return any(unit and unit[0] & 31 == 5 for unit in data.split(b"\x00\x00\x01")[1:])
    width, at = (extra[4] & 3) + 1, 0
    while at + width < len(data):
        if data[at + width] & 31 == 5:
            return True
        at += width + int.from_bytes(data[at : at + width], "big")
    return False


def pick_frames(
    stream: Any, table: FrameTable, frame_index: Sequence[int], keep: Callable[[Any], Kept]
) -> dict[int, Kept] | None:
    """What `keep` makes of the wanted frames, by index; None where decoding gives others than announced."""
    last, context = len(table.stamps) - 1, stream.codec_context
    missing = sorted({min(index, last) for index in frame_index})
    index_of, found = {table.stamps[index]: index for index in missing}, dict[int, Kept]()
    # H.264 says whether others refer to a picture (nal_ref_idc): if none, it is skipped.
    # HEVC says it for one temporal layer only.
    # AVI and ASF keep no presentation times: FFmpeg counts packets, though frames may come in
    # another order. So where stamps ascend in the file, none is skipped and each is checked.
    droppable = table.reordered and codec_name(stream) == "h264"
    at, before, held = 0, -math.inf, set[int]()
    for number, packet in enumerate(table.packets):
        first, start = table.starts[bisect_left(table.starts, (missing[0] + 1, 0)) - 1]
        if number < start:
            continue
        if number == start:
            context.flush_buffers()
            at, before = first, -math.inf
        if droppable:
            context.skip_frame = "DEFAULT" if packet.pts in index_of else "NONREF"
        for frame in decoded([packet], held):
            stamp = frame.pts
            if stamp is None or stamp <= before:
                return None
            if not table.reordered and table.stamps[at : at + 1] != (stamp,):
                return None
            at, before = at + 1, stamp
            if stamp in index_of:
                found[index_of[stamp]] = keep(frame)
        missing = [index for index in missing if index not in found]
        if not missing:
            return found
    return None


def decode_in_order(
    container: Any, stream: Any, frame_index: Sequence[int], keep: Callable[[Any], Kept]
) -> dict[int, Kept]:
    """What `keep` makes of the wanted frames, decoded from the start on. Raises ValueError."""
    wanted, found, frame, number = set(frame_index), {}, None, 0
    for number, frame in enumerate(decoded(container.demux(stream))):
        if number in wanted:
            found[number] = keep(frame)
        if number == max(wanted):
            return found
    if frame is None:
        raise ValueError("it holds no frames")
    found[number] = keep(frame)
    return found


def decode_video(path: Path) -> Iterator[Any]:
    """All frames of a video in order of presentation, from PyAV. Raises MediaError."""
    count = 0
    with opened_video(path) as (container, stream):
        for frame in decoded(whole_packets(container, stream)):
            if frame.is_corrupt:
                raise ValueError(f"frame {count} is damaged")
            count += 1
            yield frame
        if not count:
            raise ValueError("it holds no frames")


def count_frames(path: Path) -> int:
    """The number of frames that can be read. Raises MediaError."""
    with opened_video(path) as (container, stream):
        table = scan_packets(container, stream)
        if table:
            last = len(table.stamps) - 1
            if not table.packets or pick_frames(stream, table, [last], to_rgb):
                return last + 1
    with opened_video(path) as (container, stream):
        return sum(1 for _ in decoded(container.demux(stream)))


def to_rgb(frame: Any) -> Pixels:
    """A decoded frame as (H, W, 3) uint8 RGB, upright. Raises ValueError."""
    if frame.is_corrupt:
        raise ValueError("a wanted frame is damaged")
    if not hasattr(_own, "reformatter"):
        _own.reformatter = _av().video.reformatter.VideoReformatter()
    # As in OpenCV's reader, chroma is bicubic: seen at odd heights, and for more than 8 bits.
    image = _own.reformatter.reformat(frame, format="rgb24", interpolation="BICUBIC").to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns), np.uint8)


_own = threading.local()
"""Each thread's converter, since setting one up takes time."""


@functools.cache
def _av() -> Any:
    """PyAV with the log of its C libraries off: what they complain about is raised."""
    import av

    av.logging.set_level(av.logging.PANIC)
    return av
