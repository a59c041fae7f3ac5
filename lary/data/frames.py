"""Frames as pixels: image pairs and the wanted frames of a clip, uint8 RGB (T, H, W, 3).

Images are held against their container before they are decoded (every PNG chunk and its checksum, the end of a JPEG),
because decoders differ in what they make of a torn file: nothing, grey rows or zeros. Orientation from EXIF is
applied by both readers, as ``cv2.imread`` does. Clips are decoded by PyAV, exact by index: frame n is the n-th in
order of presentation, whatever its time stamp.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lary.data.limits import LARGEST_FILE, jpeg_problem, limit_decoder, open_video, size_problem
from lary.fileio import read_limited
from lary.types import MediaError, UsageError

Image = npt.NDArray[np.uint8]
Reader = Literal["cv2", "pil"]

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values per pixel by PNG colour type."""

SEEKABLE = frozenset({"av1", "ffv1", "h264", "hevc", "mjpeg", "mpeg4", "vp9"})
"""Codecs that store one shown frame per packet, so that packets can be counted instead of decoded."""

NEAR = 8
"""A key frame at most this many frames ahead is reached sooner by decoding on than by a seek."""


def read_clip(
    paths: Sequence[Path], frame_index: Sequence[int], reader: Reader = "cv2", *, clamp: bool = True
) -> Image:
    """Decode a sample's frames, (T, H, W, 3) uint8 RGB.

    Args:
        paths: the images of a pair, or one video.
        frame_index: empty for images; for a video the wanted frames from 0, in any order, also repeated; an index
            behind the last frame gives the last frame.
        reader: library that decodes images.
        clamp: whether an index behind the last frame is allowed.

    Raises:
        MediaError: a file is missing, torn, empty or of no known format, or the images differ in size.
    """
    if frame_index:
        if len(paths) != 1:
            raise UsageError(f"Frame indices belong to one video, not to {len(paths)} files.")
        return read_video(paths[0], frame_index, clamp=clamp)
    images = [read_image(path, reader) for path in paths]
    if len({image.shape for image in images}) > 1:
        sizes = ", ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images)
        raise MediaError(f"The images of {paths[0]} differ in size: {sizes}.")
    return np.stack(images)


# Images


def read_image(path: Path, reader: Reader = "cv2") -> Image:
    """Decode a whole image, (H, W, 3) uint8 RGB; alpha is dropped, 16 bits are cut to the upper 8.

    Raises:
        MediaError: the file is missing, torn or of no known format.
    """
    try:
        data = read_limited(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise MediaError(f"The image {path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    if problem := image_problem(data):
        raise MediaError(f"The image {path} is broken: {problem}.")
    return decode_with_cv2(path, data) if reader == "cv2" else decode_with_pillow(path, data)


def decode_with_cv2(path: Path, data: bytes) -> Image:
    """As ``cv2.imread(path)`` does, then BGR to RGB. Raises MediaError."""
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise MediaError(f"The image {path} can't be decoded: {error.err}.") from error
    if image is None:
        raise MediaError(f"The image {path} can't be decoded: unknown format or broken content.")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def decode_with_pillow(path: Path, data: bytes) -> Image:
    """By Pillow, turned as EXIF says. Raises MediaError."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with Pillow.open(io.BytesIO(data)) as image:
            turned = ImageOps.exif_transpose(image)
            if turned.mode.startswith("I;16"):  # convert() would clip to 255 instead of scaling
                return np.repeat((np.asarray(turned) >> 8).astype(np.uint8)[..., None], 3, axis=2)
            return np.array(turned.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise MediaError(f"The image {path} can't be decoded: {error}.") from error


def image_problem(data: bytes) -> str:
    """What is wrong with an image file as a container, in words; empty if nothing."""
    if not data:
        return "the file is empty"
    if data.startswith(PNG):
        return png_problem(data)
    # Some cameras append data behind a JPEG's end marker, so it is looked for, not expected at the very end.
    if data.startswith(JPEG) and data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda"):
        return jpeg_problem(data)
    return foreign_problem(data)


def png_problem(data: bytes) -> str:
    """Walk a PNG (ISO/IEC 15948): all chunks with their checksums, the end chunk, and as many pixels as announced."""
    at, header, pixels = len(PNG), b"", []
    while True:
        if at + 12 > len(data):
            return "the PNG ends early"
        size, kind = struct.unpack_from(">I4s", data, at)
        if at + 12 + size > len(data):
            return "the PNG ends early"
        content = memoryview(data)[at + 8 : at + 8 + size]
        if zlib.crc32(content, zlib.crc32(kind)) != struct.unpack_from(">I", data, at + 8 + size)[0]:
            return f"wrong checksum in PNG chunk {kind.decode('latin-1')}"
        if kind == b"IHDR":
            header = bytes(content)
        elif kind == b"IDAT":
            pixels.append(content)
        elif kind == b"IEND":
            return pixel_problem(header, b"".join(pixels))
        at += 12 + size


def pixel_problem(header: bytes, stream: bytes) -> str:
    """Whether a PNG's stream of pixels is complete; Pillow fills a short one with zeros and says nothing."""
    if len(header) != 13:
        return "the PNG has no header"
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if problem := size_problem(width, height):
        return problem
    rows = 1 if interlaced else height
    wanted = rows * (1 + (width * depth * PNG_SAMPLES.get(colour, 1) + 7) // 8)
    # Interlaced rows are up to twice as many; what is packed behind the picture would cost decoders hours.
    most = 2 * wanted * height if interlaced else wanted
    inflate = zlib.decompressobj()
    try:
        found = len(inflate.decompress(stream, most + 1))
    except zlib.error:
        return "the PNG's pixels can't be unpacked"
    if len(inflate.unconsumed_tail) > 1024:
        return "the PNG holds more than the picture that it announces"
    return "" if found >= wanted else "the PNG holds fewer pixels than it announces"


def foreign_problem(data: bytes) -> str:
    """Formats whose container isn't walked here are decoded once by Pillow, which refuses what ends early."""
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(data)) as image:
            if problem := size_problem(*image.size):
                return problem
            image.load()
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        return str(error).split(" <_io")[0] or type(error).__name__
    return ""


# Videos


@dataclass(frozen=True)
class FrameTable:
    """Where the frames of a video are, from its packets: time stamps in order of presentation, and seek points.

    Attributes:
        stamps: of all frames, ascending; the n-th belongs to frame n.
        seeks: frames from which decoding can start, ascending; the first is always frame 0.
        targets: the time stamp to seek to for each of `seeks`.
    """

    stamps: tuple[int, ...]
    seeks: tuple[int, ...]
    targets: tuple[int, ...]


def read_video(path: Path, frame_index: Sequence[int], *, clamp: bool = True) -> Image:
    """The wanted frames of a video, (T, H, W, 3) uint8 RGB, in the order asked for; see `read_clip`.

    Only the packets are read in full; pictures are decoded from the last key frame before a wanted one, and the
    wanted ones alone are converted. Where packets don't tell the frames, all are decoded in order.

    Raises:
        MediaError: the video is missing, torn or holds no frames, or, without `clamp`, ends before an index.
    """
    if min(frame_index) < 0:
        raise UsageError(f"Frame indices count from 0: {min(frame_index)} is none.")
    try:
        with open_video(_av(), path) as container:
            stream = _video_stream(container)
            table = scan_packets(container, stream)
            frames = pick_frames(container, stream, table, frame_index) if table else None
        if frames is None:
            with open_video(_av(), path) as container:
                frames = decode_in_order(container, _video_stream(container), frame_index)
    except (_av().error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"The video {path} can't be read: {reason}.") from error
    last = max(frames)
    if not clamp and max(frame_index) > last:
        raise MediaError(f"The video {path} ends with frame {last}, and frame {max(frame_index)} is asked for.")
    return np.stack([frames[min(index, last)] for index in frame_index])


def scan_packets(container: Any, stream: Any) -> FrameTable | None:
    """Read all packets once. None where they don't tell which frame is which. Raises ValueError for a torn file."""
    stamps: list[int] = []
    keys: list[tuple[int, int]] = []
    countable = codec_name(stream) in SEEKABLE
    for packet in container.demux(stream):
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise ValueError("the file ends within a frame")
        if packet.pts is None:
            countable = False
        if not countable or packet.is_discard:
            continue
        stamps.append(packet.pts)
        if packet.is_keyframe and starts_afresh(packet, stream):
            # Containers are indexed by either stamp; the smaller one never lands behind the key frame.
            keys.append((packet.pts, packet.pts if packet.dts is None else min(packet.pts, packet.dts)))
    if not countable or len(set(stamps)) < len(stamps) or not keys:
        return None
    stamps.sort()
    order = {stamp: index for index, stamp in enumerate(stamps)}
    points = sorted((order[pts], target) for pts, target in keys)
    if points[0][0] != 0:
        return None
    return FrameTable(tuple(stamps), tuple(index for index, _ in points), tuple(target for _, target in points))


def codec_name(stream: Any) -> str:
    """Name of the format, not of the library that decodes it (``av1``, not ``libdav1d``)."""
    codec = stream.codec_context.codec
    return str(getattr(codec, "canonical_name", codec.name))


def starts_afresh(packet: Any, stream: Any) -> bool:
    """Whether every later frame can be decoded from this key packet on.

    Containers also mark H.264 recovery points (open groups, intra refresh) as key frames; only an instantaneous
    refresh (NAL type 5, ITU-T H.264 table 7-1) is free of what came before.
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


def pick_frames(container: Any, stream: Any, table: FrameTable, frame_index: Sequence[int]) -> dict[int, Image] | None:
    """The wanted frames by index; None where decoding doesn't give what the packets announce."""
    last = len(table.stamps) - 1
    wanted = sorted({min(index, last) for index in frame_index})
    found: dict[int, Image] = {}
    position = -NEAR - 2  # the last frame decoded; far before the start, so that the first group seeks
    index_of = {table.stamps[index]: index for index in wanted}
    decoder: Iterator[Any] = iter(())
    for index in wanted:
        if index in found:
            continue
        point = bisect_right(table.seeks, index) - 1
        if table.seeks[point] > position + NEAR:
            container.seek(table.targets[point], stream=stream, backward=True)
            decoder = container.decode(stream)
        for frame in decoder:
            if frame.pts is None:
                return None
            position = bisect_right(table.stamps, frame.pts) - 1
            if frame.pts in index_of:
                found[index_of[frame.pts]] = to_rgb(frame)
            if position >= index:
                break
        if index not in found:
            return None
    return found


def decode_in_order(container: Any, stream: Any, frame_index: Sequence[int]) -> dict[int, Image]:
    """The wanted frames by decoding from the start to the last of them. Raises ValueError if there is no frame."""
    wanted, final = set(frame_index), max(frame_index)
    found: dict[int, Image] = {}
    frame, count = None, 0
    for frame in container.decode(stream):
        if count in wanted:
            found[count] = to_rgb(frame)
        count += 1
        if count > final:
            return found
    if frame is None:
        raise ValueError("it holds no frames")
    found[count - 1] = to_rgb(frame)
    return found


def decode_video(path: Path) -> Iterator[Any]:
    """All frames of a video in order of presentation, as PyAV has them, decoded as they are asked for.

    Raises:
        MediaError: the video is missing, torn, damaged or holds no frames; the frames before that are given.
    """
    count = 0
    try:
        with open_video(_av(), path) as container:
            for packet in container.demux(_video_stream(container)):
                if packet.size and packet.is_corrupt:
                    raise ValueError("the file ends within a frame")
                for frame in packet.decode():
                    if frame.is_corrupt:
                        raise ValueError(f"frame {count} is damaged")
                    count += 1
                    yield frame
        if not count:
            raise ValueError("it holds no frames")
    except (_av().error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"The video {path} can't be read: {reason}.") from error


def announced_frames(path: Path) -> int:
    """The number of frames that a video's container announces, as OpenCV reads it; 0 where it doesn't say.

    Raises:
        MediaError: the video is missing, torn or holds no video stream.
    """
    try:
        with open_video(_av(), path) as container:
            stream = _video_stream(container)
            if stream.frames or not stream.average_rate:
                return int(stream.frames)
            seconds = stream.duration * stream.time_base if stream.duration else (container.duration or 0) / 1e6
            return int(seconds * stream.average_rate + 0.5)
    except (_av().error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"The video {path} can't be read: {reason}.") from error


def to_rgb(frame: Any) -> Image:
    """A decoded frame as (H, W, 3) uint8 RGB, upright: the arithmetic of OpenCV's reader, bicubic chroma.

    Raises:
        ValueError: the decoder marked the frame as damaged.
    """
    if frame.is_corrupt:
        raise ValueError("a wanted frame is damaged")
    image = frame.reformat(format="rgb24", interpolation="BICUBIC").to_ndarray()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns), dtype=np.uint8)


def _video_stream(container: Any) -> Any:
    """The first video stream, decoded by one thread: parallel work is over samples. Raises ValueError."""
    if not container.streams.video:
        raise ValueError("it holds no video stream")
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    limit_decoder(stream)
    return stream


@functools.cache
def _av() -> Any:
    """PyAV with the log of its C libraries off: what they complain about comes as an exception."""
    import av

    av.logging.set_level(av.logging.PANIC)
    return av
