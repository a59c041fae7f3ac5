"""Images: both readers agree, torn files are refused, and no header makes a decoder allocate gigabytes."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from lary.data.frames import read_clip
from lary.data.images import PNG, Reader, read_image
from lary.types import MediaError
from tests.helpers import fails
from tests.hostile.harness import MEBIBYTE, deflated_zeros, refused

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
READERS = ("cv2", "pil")


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", np.ascontiguousarray(image))[1].tobytes())


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def built(width: int, height: int, stream: bytes, interlaced: int = 0) -> bytes:
    """A PNG of 8 bit colour with this stream of pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced))
    return PNG + header + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def saved(image: Any, kind: str, **options: Any) -> bytes:
    if options.pop("turned", False):
        options["exif"] = Pillow.Exif()
        options["exif"][0x0112] = 6
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def interlaced_png(image: np.ndarray) -> bytes:
    """Seven passes over growing grids (Adam7), which neither library writes."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [b"\0" + row.tobytes() for y, x, dy, dx in passes for row in image[y::dy, x::dx]]
    return built(image.shape[1], image.shape[0], zlib.compress(b"".join(rows)), 1)


IMAGES = {
    "grey, 16 bits": png((PICTURE[..., 0].astype(np.uint16) << 8) + 77),
    "colour, 16 bits": png((PICTURE.astype(np.uint16) << 8) + 200),
    "alpha": png(np.dstack([PICTURE, PICTURE[..., 0]])),
    "one bit": saved(PICTURE[..., 0] > 99, "PNG"),
    "interlaced": interlaced_png(PICTURE),
    "turned PNG": saved(PICTURE, "PNG", turned=True),
    "turned JPEG": saved(PICTURE, "JPEG", quality=95, turned=True),
    "JPEG with data behind its end": saved(PICTURE, "JPEG") + b"\x00\x00\xff\xda maker's notes",
    "BMP": saved(PICTURE, "BMP"),
    "WebP": saved(PICTURE, "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_both_readers_agree(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(IMAGES[kind])
    by_cv2, by_pillow = read_image(path, "cv2"), read_image(path, "pil")
    assert by_cv2.shape == by_pillow.shape
    assert np.abs(by_cv2.astype(int) - by_pillow).max() <= (1 if "JPEG" in kind else 0)
    assert ("turned" in kind) == (by_cv2.shape[0] > by_cv2.shape[1])
    np.testing.assert_array_equal(by_cv2, cv2.imread(str(path), cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize("reader", READERS)
def test_pair_is_rgb_in_order(reader: Reader, tmp_path: Path) -> None:
    for name, picture in (("a.png", PICTURE), ("b.png", 255 - PICTURE), ("c.png", np.zeros((4, 4, 3), np.uint8))):
        (tmp_path / name).write_bytes(png(picture[..., ::-1]))
    clip = read_clip([tmp_path / "a.png", tmp_path / "b.png"], (), reader)
    np.testing.assert_array_equal(clip, np.stack([PICTURE, 255 - PICTURE]))
    fails(MediaError, "differ in size: 64x48, 4x4", read_clip, [tmp_path / "a.png", tmp_path / "c.png"], (), reader)


WHOLE, WHOLE_JPEG = png(PICTURE), saved(PICTURE, "JPEG")
HALF_OF_ROWS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in PICTURE[:24]))
AT = WHOLE.index(b"IDAT") + 40


def announcing(kind: str) -> bytes:
    """A small image of a kind whose header announces a giant picture."""
    content = saved(np.zeros((19, 17, 3), np.uint8), kind)
    if kind == "JPEG":
        at = content.index(b"\xff\xc0") + 5
        return content[:at] + struct.pack(">HH", 65_000, 65_000) + content[at + 4 :]
    return content.replace(struct.pack("<HH", 17, 19), struct.pack("<HH", 60_000, 60_000))


BOMB = b"\x78\xda" + deflated_zeros(8192 * MEBIBYTE)
REFUSED = {
    "empty": (b"", "torn"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "torn"),
    "half a PNG": (WHOLE[: len(WHOLE) // 2], "torn"),
    "PNG without its end": (WHOLE[:-12], "torn"),
    "PNG with a flipped byte": (WHOLE[:AT] + bytes([WHOLE[AT] ^ 255]) + WHOLE[AT + 1 :], "torn"),
    "PNG with half of its rows": (built(64, 48, HALF_OF_ROWS), "torn"),
    "PNG without header": (PNG + chunk(b"IEND", b""), "torn"),
    "PNG with noise for pixels": (built(64, 48, b"noise"), "torn"),
    "half a JPEG": (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "torn"),
    "JPEG without its end": (WHOLE_JPEG[:-2], "torn"),
    "giant PNG": (built(100_000, 100_000, zlib.compress(bytes(300_001))), "10000000000 pixels"),
    "packed PNG": (built(60_000, 60_000, BOMB), "3600000000 pixels"),
    "behind the pixels": (built(4, 4, BOMB), "more than the picture"),
    "behind passes": (built(4, 4, BOMB, 1), "more than the picture"),
    **{kind: (announcing(kind), "broken") for kind in ("JPEG", "GIF")},
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", REFUSED)
def test_torn_images_and_those_that_ask_for_gigabytes_are_refused(tmp_path: Path, kind: str, reader: Reader) -> None:
    content, words = REFUSED[kind]
    path = tmp_path / "torn.png"
    path.write_bytes(content)
    refused(tmp_path, lambda: read_image(path, reader), words)


def test_giant_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "giant.png").write_bytes(PNG)
    os.truncate(tmp_path / "giant.png", 1 << 40)
    refused(tmp_path, lambda: read_image(tmp_path / "giant.png"), "more than the")
