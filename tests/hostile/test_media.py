"""Images and videos that ask a decoder for gigabytes, open other files, or never end."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lary.data.frames import announced_frames, decode_video, read_clip
from lary.data.images import read_image
from tests.hostile.harness import MEBIBYTE, bounded, deflated_zeros, refused
from tests.tree import frame, write_video

READERS = ("cv2", "pil")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def png(width: int, height: int, stream: bytes, *, interlaced: int = 0, extra: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("interlaced", [0, 1])
def test_png_that_announces_a_giant_picture(tmp_path: Path, reader: Any, interlaced: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(100_000, 100_000, zlib.compress(bytes(300_001)), interlaced=interlaced))
    refused(tmp_path, lambda: read_image(path, reader), "announces 100000 x 100000 pixels")


@pytest.mark.parametrize("reader", READERS)
def test_png_that_holds_a_giant_picture(tmp_path: Path, reader: Any) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(60_000, 60_000, b"\x78\xda" + deflated_zeros(8192 * MEBIBYTE)))
    assert path.stat().st_size < 10 * MEBIBYTE
    refused(tmp_path, lambda: read_image(path, reader), "announces 60000 x 60000 pixels")


@pytest.mark.parametrize("interlaced", [0, 1])
def test_small_png_with_a_bomb_behind_its_pixels(tmp_path: Path, interlaced: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 4, b"\x78\xda" + deflated_zeros(8192 * MEBIBYTE), interlaced=interlaced))
    refused(tmp_path, lambda: read_image(path), "more than the picture")


@pytest.mark.parametrize("reader", READERS)
def test_jpeg_that_announces_a_giant_picture(tmp_path: Path, reader: Any) -> None:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "JPEG")
    jpeg = bytearray(data.getvalue())
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg)
    refused(tmp_path, lambda: read_image(path, reader), "4225000000 pixels")


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF"])
def test_other_formats_that_announce_a_giant_picture(tmp_path: Path, kind: str) -> None:
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (17, 19)).save(data, kind)
    content = bytearray(data.getvalue())
    if kind == "BMP":
        content[18:26] = struct.pack("<ii", 40_000, 40_000)
    elif kind == "GIF":
        content = bytearray(content.replace(struct.pack("<HH", 17, 19), struct.pack("<HH", 60_000, 60_000)))
    else:
        for tag, value in ((256, 17), (257, 19)):
            old = struct.pack("<HHII", tag, 4, 1, value)
            short = struct.pack("<HHIHH", tag, 3, 1, value, 0)
            assert old in content or short in content
            new = struct.pack("<HHII", tag, 4, 1, 60_000)
            content = bytearray(content.replace(old, new).replace(short, new))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    refused(tmp_path, lambda: read_image(path), "broken")


def test_image_that_is_a_terabyte(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    os.truncate(path, 1 << 40)
    refused(tmp_path, lambda: read_image(path), "more than the")


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_media_that_are_no_files(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    read = read_image if name.endswith("png") else lambda path: read_clip([path], (0, 1))
    refused(tmp_path, lambda: read(path), "no regular file")


@pytest.mark.parametrize("read", [read_image, lambda path: read_clip([path], (0,)), announced_frames])
def test_path_with_a_nul_letter(tmp_path: Path, read: Callable[[Path], object]) -> None:
    refused(tmp_path, lambda: read(tmp_path / "a\0b"), "null byte")


def motion_jpeg(path: Path, side: int) -> Path:
    """A video of one small frame whose own header announces `side` x `side` pixels."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    head = b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", 32, 32)
    assert head in data
    path.write_bytes(data.replace(head, b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", side, side)))
    return path


def test_video_whose_frames_grow(tmp_path: Path) -> None:
    path = motion_jpeg(tmp_path / "a.avi", 40_000)
    refused(tmp_path, lambda: read_clip([path], (0,)), "can't be read")
    refused(tmp_path, lambda: list(decode_video(path)), "can't be read")


def test_video_that_announces_a_giant_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, [frame(0.5, 0.5, (200, 60, 60))] * 2)
    data = path.read_bytes()
    at = data.rindex(b"avc1") + 4 + 24  # width and height of a sample entry (ISO/IEC 14496-12)
    assert data[at : at + 4] == struct.pack(">HH", 48, 48)
    path.write_bytes(data[:at] + struct.pack(">HH", 65_000, 65_000) + data[at + 4 :])
    with bounded():
        assert read_clip([path], (0, 1)).shape == (2, 48, 48, 3), "the stream's own size counts"


@pytest.mark.parametrize("kind", ["concat", "playlist", "sdp", "list of addresses"])
def test_video_that_opens_other_files(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.mp4"
    write_video(secret, [frame(0.5, 0.5, (200, 60, 60))] * 3)
    text = {
        "concat": "ffconcat version 1.0\nfile secret.mp4\n",
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 26\n",
        "list of addresses": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    }[kind]
    path = tmp_path / ("a.m3u8" if "#EXT" in text else "a.mp4")
    path.write_text(text)
    refused(tmp_path, lambda: read_clip([path], (0, 1)), "can't be read")
    refused(tmp_path, lambda: announced_frames(path), "can't be read")
