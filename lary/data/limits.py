"""What is held against limits before a decoder sees it: sizes of pictures, kinds of containers.

A header of a few bytes can ask a decoder for gigabytes, and a "video" can be a list of other files or addresses.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import Any

LARGEST_FILE = 1 << 30
"""Bytes of one image file."""
LARGEST_PICTURE = 1 << 26
"""Pixels of an image or of a frame: 8192 x 8192."""

CONTAINERS = (
    "aac,asf,av1,avi,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,mpegvideo,obu,ogg,wav,webm,"
    "yuv4mpegpipe"
)
"""Demuxers that read one file; playlists and scripts (hls, concat, dash) open others, so they are not among them."""
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers that start a frame (ITU-T T.81, table B.1)."""


def size_problem(width: int, height: int) -> str:
    """Why a picture of this size is not decoded, in words; empty if it is."""
    if width * height <= LARGEST_PICTURE:
        return ""
    return f"it announces {width} x {height} pixels, more than the {LARGEST_PICTURE} that are decoded"


def jpeg_problem(data: bytes) -> str:
    """Whether a JPEG announces too large a picture, from its frame headers (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return size_problem(width, height)
        if marker == 0xDA:
            return ""
        at += 2 if marker == 1 or 0xD0 <= marker <= 0xD8 else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return ""


def check_regular(path: Path) -> None:
    """Raise OSError for what is no regular file: a pipe would be waited for without end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(22, "it is no regular file")


def open_video(av: Any, path: Path) -> Any:
    """A container that PyAV reads from this file alone. Raises OSError, ValueError, av.error.FFmpegError."""
    check_regular(path)
    return av.open(str(path), options=OPTIONS)


def limit_decoder(stream: Any) -> None:
    """Bound the pictures of a PyAV video stream, as announced and as decoded. Raises ValueError."""
    codec = stream.codec_context
    if problem := size_problem(codec.width, codec.height):
        raise ValueError(problem)
    codec.options = {**codec.options, "max_pixels": str(LARGEST_PICTURE)}
