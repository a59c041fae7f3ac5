"""Inspection of single files, in worker processes since files can hang or crash a decoder; what is remembered."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lary.data.actions import read_chunk
from lary.data.frames import decode_video
from lary.data.images import read_image
from lary.data.spec import ActionSpace
from lary.files import digest, file_digest, write_text
from lary.types import MediaError, UsageError
from lary.workers import Answer, NoAnswer, Pool, Question

JOURNAL_VERSION = MANIFEST_VERSION = 1
PATIENCE = 4
"""How much longer a file may take that failed to answer, when it is tried again with fewer others at work."""
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


def ask_all(questions: Sequence[Question], workers: int, seconds: float) -> Iterator[tuple[int, Answer]]:
    """Position of every question and its answer as `answer` gives it, in order of completion.

    Files without an answer are asked about once more at the end by at most two workers and with more time, so that a
    crowded machine accuses no good file; without an answer then, they are corrupt.

    Raises:
        LaryError: no worker process can be started.
    """
    again = []
    setup = f"{__name__}:answers"
    with Pool(setup, min(workers, len(questions))) as pool:
        for position, found in pool.map(questions, seconds):
            if isinstance(found, NoAnswer):
                again.append(position)
            else:
                yield position, found
    with Pool(setup, min(workers, len(again), 2)) as pool:
        for position, found in pool.map([questions[position] for position in again], PATIENCE * seconds):
            yield again[position], verdict("corrupt", str(found)) if isinstance(found, NoAnswer) else found


def answers() -> Callable[[Question], Answer]:
    """What answers questions in a worker process: libraries are loaded before time is measured."""
    import av
    import cv2
    from PIL import Image

    Image.init()
    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    return answer


def answer(question: Question) -> Answer:
    """Inspect a file.

    Args:
        question: ``places`` (paths, the first that exists counts), ``media`` (image, video or npy), ``depth``
            (``headers`` or ``decode``), ``shape`` (K and A of an action file, or None), ``sha256`` (a known digest that
            replaces decoding, or None) and ``hash`` (whether the digest is wanted).

    Returns:
        ``status`` (ok, missing or corrupt) and ``reason``; for an ok file ``shape`` (as decoded, or None), ``size`` in
        bytes and ``sha256`` where wanted.
    """
    try:
        path, size = find([Path(place) for place in question["places"]])
        if path is None:
            return verdict("missing", "file does not exist")
        sha256 = file_digest(path, 64) if question["hash"] and question["depth"] == "decode" else None
        shape = None
        if question["depth"] == "headers":
            inspect_header(path, question["media"])
        elif question["sha256"] is None:
            shape = decode(path, question["media"], question["shape"])
        elif question["sha256"] != sha256:
            return verdict("corrupt", "the content differs from the manifest")
        return verdict("ok", "", shape=shape, size=size, sha256=sha256)
    except MediaError as error:
        return verdict("corrupt", str(error))
    except OSError as error:
        return verdict("corrupt", f"{type(error).__name__}: {error.strerror or error}")
    except MemoryError:
        return verdict("corrupt", "it does not fit into memory")
    except Exception as error:  # a reader that fails in a way of its own is a finding about the file
        return verdict("corrupt", f"{type(error).__name__}: {error}")


def verdict(status: str, reason: str, **found: object) -> Answer:
    """An answer."""
    return {"status": status, "reason": reason, **found}


def find(places: Sequence[Path]) -> tuple[Path | None, int]:
    """The first path that exists, with its size. Raises MediaError if that is no regular file."""
    for path in places:
        try:
            about = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISREG(about.st_mode):
            raise MediaError("path is not a file")
        return path, about.st_size
    return None, 0


def inspect_header(path: Path, media: str) -> None:
    """Inspect what the published checker does: an image's header, a video's streams, nothing of an array."""
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
        with path.open("rb") as file:
            head = file.read(4)
        known = {suffix: name for name, (_, suffixes) in IMAGE_FORMATS.items() for suffix in suffixes}
        for name, (magic, _) in IMAGE_FORMATS.items():
            if head.startswith(magic) and known.get(path.suffix.lower(), name) != name:
                raise MediaError(f"wrong extension: the file is {name}, not {path.suffix}")
        return [height, width]
    if media == "video":
        names = container_format(path)
        if VIDEO_FORMATS.get(path.suffix.lower(), names.split(",")[0]) not in names.split(","):
            raise MediaError(f"wrong extension: the file is {names}, not {path.suffix}")
        count = height = width = 0
        for frame in decode_video(path):
            count, height, width = count + 1, frame.height, frame.width
        return [count, height, width]
    if shape is not None:
        horizon, size = shape
        read_chunk(path, ActionSpace(tuple(map(str, range(size))), horizon))
    return shape


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


class Manifest:
    """Digests of files that were decoded and found whole.

    Lines of JSON: the version, then ``[path below DATA_DIR, SHA-256, size in bytes, kind, shape]`` each, sorted.
    """

    def __init__(self, path: Path | None, root: Path) -> None:
        self._path, self._root = path, root.absolute()
        self._entries: dict[str, list[Any]] = {}
        if path is not None and path.exists():
            try:
                first, *lines = path.read_text(encoding="utf-8").splitlines()
                if json.loads(first)["manifest"] != MANIFEST_VERSION:
                    raise ValueError(f"it has another version than {MANIFEST_VERSION}, make a new one")
                self._entries = {name: rest for name, *rest in map(json.loads, lines)}
                if not all(len(entry) == 4 for entry in self._entries.values()):
                    raise ValueError("an entry doesn't have five parts")
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{path} is no manifest of 'lary data check': {error}.") from error
        self._read = self._text()
        self.digest = digest(json.dumps(sorted(self._entries.items()))) if path is not None else ""

    def digest_of(self, path: str, kind: str, shape: tuple[int, int] | None) -> str | None:
        """The known digest of a file that was checked as this kind and, for an array, against this shape."""
        known, _, known_kind, known_shape = self._entries.get(self._name(path), (None,) * 4)
        return known if known_kind == kind and (shape is None or known_shape == list(shape)) else None

    def add(self, path: str, kind: str, found: Answer) -> list[int] | None:
        """Take in a file that a worker found whole; its shape, which is known where it was not decoded."""
        name = self._name(path)
        shape: list[int] | None = found["shape"] or self._entries.get(name, [None])[-1]
        if found["sha256"] and self._path is not None:
            self._entries[name] = [found["sha256"], found["size"], kind, shape]
        return shape

    def write(self) -> None:
        """Write the manifest if it has changed."""
        if self._path is not None and (self._text() != self._read or not self._path.exists()):
            write_text(self._path, self._text())

    def _text(self) -> str:
        lines = [json.dumps({"manifest": MANIFEST_VERSION})]
        lines += [json.dumps([name, *entry], ensure_ascii=False) for name, entry in sorted(self._entries.items())]
        return "\n".join(lines) + "\n"

    def _name(self, path: str) -> str:
        pure = Path(path)
        return pure.relative_to(self._root).as_posix() if pure.is_relative_to(self._root) else path


def read_journal(path: Path, request: str) -> dict[str, Answer]:
    """The answers of an unfinished run about files that were whole, by key; none of another request."""
    try:
        first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        if json.loads(first) != {"version": JOURNAL_VERSION, "request": request}:
            return {}
    except (OSError, ValueError):
        return {}
    known = {}
    for line in lines:
        try:
            key, known_answer = json.loads(line)
        except ValueError:  # torn when the run was killed
            continue
        known[key] = known_answer
    return known
