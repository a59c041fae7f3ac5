"""Images as pixels: uint8 RGB (H, W, 3), validated before they are decoded.

Files are untrusted: a short header can ask for gigabytes, and decoders make
nothing, grey rows or zeros of a torn PNG. So Pillow examines them, and a PNG's
pixels are counted here.
"""

import contextlib
import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from lary.arrays import Pixels
from lary.files import read_limited, reason_of
from lary.types import MediaError

Reader = Literal["cv2", "pil"]

LARGEST_FILE = 1 << 30
"""Bytes of one image file."""
LARGEST_PICTURE = 1 << 26
"""Pixels of an image: 8192 x 8192."""

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Values per pixel by PNG colour type."""
UNREADABLE = (OSError, SyntaxError, ValueError, IndexError, zlib.error)
"""What Pillow raises for broken files."""
UNCOUNTED = 1 << 18
"""Bytes that even the densest packing, 1 to 1032, unpacks in a moment."""


def size_problem(width: int, height: int, most: int = LARGEST_PICTURE) -> str:
    """Why a picture of this size is not decoded, in words; empty if it is."""
    if width * height <= most:
        return ""
    return f"it announces {width} x {height} pixels, more than the {most} that are decoded"


def read_image(path: Path, reader: Reader = "cv2") -> Pixels:
    """Decode an image, (H, W, 3) uint8 RGB, upright, without alpha. Raises MediaError.

    Of 16 bits, the upper 8 stay.
    """
    if reader == "cv2":
        import cv2
    try:
        data = read_limited(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise MediaError(f"The image {path} can't be read: {getattr(error, 'strerror', None) or error}.") from error
    # OpenCV 5 itself refuses a torn PNG: there is no need to unpack it twice.
    if problem := image_problem(data, pixels=reader != "cv2" or cv2.__version__ < "5"):
        raise MediaError(f"The image {path} is broken: {problem}.")
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        if reader == "pil":
            return _decode_with_pillow(data)
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            if image is not None:
                return np.asarray(image, np.uint8)
    raise MediaError(f"The image {path} can't be decoded: {image_problem(data) or 'its content is broken'}.")


def png_bytes(image: Pixels, packing: int) -> bytes:
    """An image (H, W, 3) uint8 RGB as a PNG file, from `packing` 0, fast, to 9, small."""
    import cv2

    return cv2.imencode(".png", image[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, packing])[1].tobytes()


def _decode_with_pillow(data: bytes) -> Pixels:
    from PIL import Image as Pillow
    from PIL import ImageOps

    with Pillow.open(io.BytesIO(data)) as image:
        turned = ImageOps.exif_transpose(image)
        if turned.mode.startswith("I;16"):  # convert() would clip to 255 instead of scaling
            grey = (np.asarray(turned) >> 8).astype(np.uint8)
            return np.repeat(grey[..., None], 3, 2)
        return np.array(turned.convert("RGB"))


def image_problem(data: bytes, *, pixels: bool = True) -> str:
    """What is wrong with an image file, in words; empty if nothing.

    The pixels of a large PNG are always counted, those of a small one with
    `pixels` set.
    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(data)) as image:
            if problem := size_problem(*image.size):
                return problem
            if data.startswith(PNG):
                if not pixels and len(data) <= UNCOUNTED:
                    return ""
                image.verify()  # the checksums of all chunks up to the last
                return _pixels_problem(data, *image.size)
            # A JPEG with its end marker, behind which some cameras append data, is whole.
            if not data.startswith(JPEG) or data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
                image.load()
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning, *UNREADABLE) as error:
        return reason_of(error).split(" <_io")[0]
    return ""


def _pixels_problem(data: bytes, width: int, height: int) -> str:
    """How a PNG's pixels (ISO/IEC 15948) differ in number from its size."""
    at, kind, stream = len(PNG), b"", bytearray()
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            stream += data[at + 8 : at + 8 + size]
        at += 12 + size
    depth, colour, interlaced = data[24], data[25], data[28]
    # Pillow silently fills a short stream with zeros. Interlaced rows are up to twice as
    # many; data packed behind the picture would cost decoders hours.
    row = 1 + (width * min(depth, 16) * PNG_SAMPLES.get(colour, 1) + 7) // 8
    least, most = (row, 2 * row * height) if interlaced else (row * height, row * height)
    inflate = zlib.decompressobj()
    found = len(inflate.decompress(stream, most + 1))
    if len(inflate.unconsumed_tail) > 1024:
        return "the PNG holds more than the picture that it announces"
    return "" if found >= least else "the PNG holds fewer pixels than it announces"
