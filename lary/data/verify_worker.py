"""One file at a time, looked at in a process of its own, because files can hang a reader or crash a decoder.

``python -m lary.data.verify_worker`` answers each line of stdin (a question as JSON) with a line of stdout, after a
first line that says it is ready.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from lary.data.actions import read_chunk
from lary.data.frames import decode_video
from lary.data.images import read_image
from lary.data.spec import ActionSpace
from lary.types import MediaError
from lary.workers import serve

IMAGE_FORMATS: dict[str, tuple[tuple[bytes, ...], tuple[str, ...]]] = {
    "PNG": ((b"\x89PNG",), (".png",)),
    "JPEG": ((b"\xff\xd8\xff",), (".jpg", ".jpeg")),
    "GIF": ((b"GIF8",), (".gif",)),
    "BMP": ((b"BM",), (".bmp",)),
    "WebP": ((b"RIFF",), (".webp",)),
    "TIFF": ((b"II*\x00", b"MM\x00*"), (".tif", ".tiff")),
}
"""First bytes and extensions."""

VIDEO_FORMATS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi",
}  # fmt: skip
"""What a container of an extension is called among FFmpeg's names."""


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Look at a file.

    Args:
        question: ``places`` (paths, the first that exists counts), ``media`` (image, video or npy), ``depth``
            (``headers`` or ``decode``), ``shape`` (K and A of an action file, or None), ``sha256`` (a known digest that
            stands for decoding, or None) and ``hash`` (whether the digest is wanted).

    Returns:
        ``status`` (ok, missing or corrupt) and ``reason``; for an ok file ``shape`` (as decoded, or None), ``size`` in
        bytes and ``sha256`` where wanted.
    """
    try:
        path, size = find([Path(place) for place in question["places"]])
        if path is None:
            return verdict("missing", "file does not exist")
        found: dict[str, Any] = {"shape": None, "size": size, "sha256": None}
        if question["depth"] == "headers":
            look(path, question["media"])
            return verdict("ok", "", **found)
        if question["hash"]:
            found["sha256"] = digest(path)
            if question["sha256"] is not None:
                if question["sha256"] != found["sha256"]:
                    return verdict("corrupt", "the content differs from the manifest")
                return verdict("ok", "", **found)
        found["shape"] = decode(path, question["media"], question["shape"])
        return verdict("ok", "", **found)
    except MediaError as error:
        return verdict("corrupt", str(error))
    except OSError as error:
        return verdict("corrupt", f"{type(error).__name__}: {error.strerror or error}")
    except MemoryError:
        return verdict("corrupt", "it does not fit into memory")
    except Exception as error:  # a reader that fails in a way of its own is a finding about the file
        return verdict("corrupt", f"{type(error).__name__}: {error}")


def verdict(status: str, reason: str, **found: Any) -> dict[str, Any]:
    """An answer."""
    return {"status": status, "reason": reason, **found}


def find(places: list[Path]) -> tuple[Path | None, int]:
    """The first place that exists, with its size. Raises MediaError if that is no regular file."""
    for path in places:
        try:
            about = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISREG(about.st_mode):
            raise MediaError("path is not a file")
        return path, about.st_size
    return None, 0


def look(path: Path, media: str) -> None:
    """What the published checker looks at: an image's header, a video's streams, nothing of an array."""
    if media == "image":
        from PIL import Image

        try:
            with Image.open(path) as image:
                image.verify()
        except Exception as error:  # Pillow's readers raise what their parsing happens to raise
            raise MediaError(f"{type(error).__name__}: {error}") from error
    elif media == "video":
        container_format(path)


def decode(path: Path, media: str, shape: list[int] | None) -> list[int] | None:
    """Decode the whole file; returns (H, W), (T, H, W) or (K, A). Raises MediaError."""
    if media == "image":
        height, width, _ = read_image(path).shape
        check_image_name(path)
        return [height, width]
    if media == "video":
        names = container_format(path)
        wanted = VIDEO_FORMATS.get(path.suffix.lower())
        if wanted is not None and wanted not in names.split(","):
            raise MediaError(f"wrong extension: the file is {names}, not {path.suffix}")
        count = height = width = 0
        for frame in decode_video(path):
            count, height, width = count + 1, frame.height, frame.width
        return [count, height, width]
    if shape is not None:
        horizon, size = shape
        read_chunk(path, ActionSpace(tuple(str(index) for index in range(size)), horizon))
    return shape


def check_image_name(path: Path) -> None:
    """Raise MediaError where an image's extension is that of another format."""
    with path.open("rb") as file:
        head = file.read(4)
    for name, (magic, suffixes) in IMAGE_FORMATS.items():
        others = {suffix for _, known in IMAGE_FORMATS.values() for suffix in known} - set(suffixes)
        if head.startswith(magic) and path.suffix.lower() in others:
            raise MediaError(f"wrong extension: the file is {name}, not {path.suffix}")


def container_format(path: Path) -> str:
    """FFmpeg's names of a container. Raises MediaError if it can't be opened or holds no video stream."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError("no video stream")
            return str(container.format.name)
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}") from error


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


def main() -> None:
    """Answer until stdin ends."""
    import av
    import cv2
    from PIL import Image

    Image.init()
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    serve(answer)


if __name__ == "__main__":
    main()
