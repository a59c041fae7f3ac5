"""Frames: exact by index against decoding in order, both image readers alike, and torn files refused."""

import io
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lary.data import frames
from lary.data.frames import read_clip
from lary.data.images import PNG, Reader, read_image
from lary.types import MediaError, UsageError

COUNT = 60


TEXTURE = np.random.default_rng(0).integers(0, 256, (6, 64, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def picture(index: int) -> np.ndarray:
    """48 x 64 pixels of a texture that moves by a pixel per frame: no two alike, each predicted from the last."""
    return np.ascontiguousarray(TEXTURE[:, index % 448 : index % 448 + 64])


def encode(
    path: Path, codec: str, options: dict[str, str], *, count: int = COUNT, gop: int = 12, varied: bool = False
) -> None:
    """A video of `count` pictures; with `varied` time stamps, frames last one to four ticks."""
    rng = np.random.default_rng(0)
    stamps = np.cumsum(rng.integers(1, 5, count)) if varied else np.arange(count)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.gop_size = 64, 48, gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts = int(stamps[index])
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def in_order(path: Path) -> np.ndarray:
    """All frames by plain sequential decoding."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


HIDDEN = {"deadline": "good", "auto-alt-ref": "1", "lag-in-frames": "16"}
"""Options by which VP8 and VP9 make frames that are decoded but not shown."""

KINDS: dict[str, tuple[str, str, dict[str, str], dict[str, Any]]] = {
    "h264-b-frames": ("mp4", "libx264", {"bf": "3", "preset": "veryfast"}, {}),
    "h264-open-gop": ("mp4", "libx264", {"bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}, {}),
    "h264-intra-refresh": ("mp4", "libx264", {"x264-params": "intra-refresh=1:scenecut=0"}, {}),
    "h264-tiny-groups": ("mp4", "libx264", {"bf": "2", "x264-params": "b-adapt=0:scenecut=0"}, {"gop": 3}),
    "h264-varied-rate": ("mp4", "libx264", {"bf": "2"}, {"varied": True}),
    "h264-matroska": ("mkv", "libx264", {"bf": "3"}, {"varied": True}),
    "h264-stream": ("h264", "libx264", {"bf": "3"}, {}),
    "hevc-open-gop": ("mp4", "libx265", {"x265-params": "log-level=none:open-gop=1", "preset": "ultrafast"}, {}),
    "vp9": ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, {}),
    "vp9-hidden-frames": ("webm", "libvpx-vp9", {"cpu-used": "5", **HIDDEN}, {}),
    "vp8-hidden-frames": ("webm", "libvpx", {"cpu-used": "8", **HIDDEN}, {}),
    "av1": ("mp4", "libsvtav1", {"preset": "12", "svtav1-params": "keyint=12"}, {}),
    "mpeg4": ("mp4", "mpeg4", {"bf": "2"}, {}),
    "mpeg4-avi": ("avi", "mpeg4", {}, {}),
    "mjpeg": ("avi", "mjpeg", {}, {}),
}  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, np.ndarray]]:
    folder = tmp_path_factory.mktemp("videos")
    made = {}
    for name, (suffix, codec, options, more) in KINDS.items():
        if codec in av.codecs_available:
            path = folder / f"{name}.{suffix}"
            encode(path, codec, options, **more)
            made[name] = (path, in_order(path))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_sequential_decoding(kind: str, videos: dict[str, tuple[Path, np.ndarray]]) -> None:
    if kind not in videos:
        pytest.skip(f"this FFmpeg has no encoder {KINDS[kind][1]}")
    path, expected = videos[kind]
    assert len(expected) == COUNT
    for index in ([0], [COUNT - 1], [11, 12, 13], [35, 36], list(range(COUNT)), [2, 9, 14, 23, 31, 38, 45, 52, 59]):
        np.testing.assert_array_equal(read_clip([path], index), expected[index], err_msg=f"{kind} {index}")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), index=st.lists(st.integers(0, 2 * COUNT), min_size=1, max_size=9))
def test_indices_repeat_unsorted_and_are_clamped(
    kind: str, index: list[int], videos: dict[str, tuple[Path, np.ndarray]]
) -> None:
    if kind in videos:
        path, expected = videos[kind]
        np.testing.assert_array_equal(read_clip([path], index), expected[np.minimum(index, COUNT - 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_videos_too_large_to_keep_give_the_same(
    kind: str, videos: dict[str, tuple[Path, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "BYTES_KEPT", 100)
    if kind in videos:
        path, expected = videos[kind]
        for index in ([COUNT - 1], [0, COUNT // 2, COUNT // 2 + 1], [*range(0, COUNT, 3)]):
            np.testing.assert_array_equal(read_clip([path], index), expected[index])


def test_seeks_are_used_and_pay(
    videos: dict[str, tuple[Path, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A far frame must not cost the decoding of all before it."""
    path = tmp_path / "long.mp4"
    encode(path, "libx264", {"preset": "ultrafast"}, count=400, gop=20)
    converted = 0
    original = frames.to_rgb

    def counting(frame: Any) -> np.ndarray:
        nonlocal converted
        converted += 1
        return original(frame)

    monkeypatch.setattr(frames, "to_rgb", counting)
    monkeypatch.setattr(frames, "decode_in_order", None)
    started = time.perf_counter()
    clip = read_clip([path], [5, 390])
    seconds = time.perf_counter() - started
    assert converted == 2
    np.testing.assert_array_equal(clip, in_order(path)[[5, 390]])
    print(f"two far frames of 400: {seconds * 1e3:.1f} ms, all: {_timed(path) * 1e3:.1f} ms")


def _timed(path: Path) -> float:
    started = time.perf_counter()
    in_order(path)
    return time.perf_counter() - started


def test_open_groups_are_not_entered_in_the_middle(videos: dict[str, tuple[Path, np.ndarray]]) -> None:
    path, _ = videos["h264-open-gop"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        marked = [packet.pts for packet in packets if packet.is_keyframe]
    with av.open(str(path)) as container:
        table = frames.scan_packets(container, container.streams.video[0])
    assert table is not None
    assert len(table.stamps) == COUNT
    assert len(table.seeks) == 1 < len(marked)


def test_opencv_reads_the_same_pixels(videos: dict[str, tuple[Path, np.ndarray]]) -> None:
    """Bit-equal today; other builds of FFmpeg may round differently by a grey level."""
    path, _ = videos["h264-b-frames"]
    capture = cv2.VideoCapture(str(path))
    theirs = np.stack([cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(COUNT)]).astype(int)
    assert np.abs(theirs - read_clip([path], range(COUNT))).max() <= 1


def test_turned_video_is_upright(videos: dict[str, tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    path, expected = videos["h264-b-frames"]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of a version 0 track header
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    capture = cv2.VideoCapture(str(turned))
    theirs = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB)
    ours = read_clip([turned], [0])[0]
    assert ours.shape == (64, 48, 3)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    np.testing.assert_array_equal(ours, np.rot90(expected[0], -1))


def test_broken_videos_are_refused(videos: dict[str, tuple[Path, np.ndarray]], tmp_path: Path) -> None:
    data = videos["h264-b-frames"][0].read_bytes()
    for name, content in {
        "empty.mp4": b"", "noise.mp4": bytes(range(256)) * 8, "cut.mp4": data[: len(data) // 2],
        "text.mp4": b"version https://git-lfs.github.com/spec/v1\n",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(MediaError, match=name):
            read_clip([path], [0])
    with pytest.raises(MediaError, match=r"none\.mp4.*No such file"):
        read_clip([tmp_path / "none.mp4"], [0])
    avi = videos["mpeg4-avi"][0]
    with av.open(str(avi)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        cut = (packets[30].pos or 0) + packets[30].size // 2
    (tmp_path / "cut.avi").write_bytes(avi.read_bytes()[:cut])
    with pytest.raises(MediaError, match=r"cut\.avi.*ends within a frame"):
        read_clip([tmp_path / "cut.avi"], [0])


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(MediaError, match="no video stream"):
        read_clip([path], [0])


def test_indices_below_zero_are_refused(videos: dict[str, tuple[Path, np.ndarray]]) -> None:
    path, _ = videos["mjpeg"]
    with pytest.raises(UsageError, match="count from 0"):
        read_clip([path], [-1])
    with pytest.raises(UsageError, match="one video"):
        read_clip([path, path], [0])


# Images


def png(image: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", image)[1].tobytes())


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("reader", ["cv2", "pil"])
def test_pair_is_rgb_in_order(reader: Reader, tmp_path: Path) -> None:
    for name, index in (("a.png", 1), ("b.png", 2)):
        (tmp_path / name).write_bytes(png(cv2.cvtColor(picture(index), cv2.COLOR_RGB2BGR)))
    clip = read_clip([tmp_path / "a.png", tmp_path / "b.png"], (), reader)
    assert clip.dtype == np.uint8
    np.testing.assert_array_equal(clip, np.stack([picture(1), picture(2)]))
    (tmp_path / "c.png").write_bytes(png(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(MediaError, match="differ in size: 64x48, 4x4"):
        read_clip([tmp_path / "a.png", tmp_path / "c.png"], (), reader)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def interlaced_png(image: np.ndarray) -> bytes:
    """Seven passes over growing grids (Adam7), which neither library writes."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [b"\0" + row.tobytes() for y, x, dy, dx in passes for row in image[y::dy, x::dx]]
    header = struct.pack(">IIBBBBB", image.shape[1], image.shape[0], 8, 2, 0, 0, 1)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")


IMAGES = {
    "grey": lambda: png(picture(3)[..., 0].copy()),
    "grey, 16 bits": lambda: png((picture(3)[..., 0].astype(np.uint16) << 8) + 77),
    "colour, 16 bits": lambda: png((picture(3).astype(np.uint16) << 8) + 200),
    "alpha": lambda: png(np.dstack([picture(3), picture(4)[..., 0]])),
    "palette": lambda: saved(Image.fromarray(picture(3)).quantize(16), "PNG"),
    "one bit": lambda: saved(Image.fromarray(picture(3)[..., 0] > 99), "PNG"),
    "odd size": lambda: saved(Image.fromarray(picture(3)[:5, :7]), "PNG"),
    "interlaced": lambda: interlaced_png(picture(3)),
    "turned PNG": lambda: saved(Image.fromarray(picture(3)), "PNG", exif=turned_exif()),
    "turned JPEG": lambda: saved(Image.fromarray(picture(3)), "JPEG", quality=95, exif=turned_exif()),
    "progressive JPEG": lambda: saved(Image.fromarray(picture(3)), "JPEG", progressive=True),
    "BMP": lambda: saved(Image.fromarray(picture(3)), "BMP"),
    "WebP": lambda: saved(Image.fromarray(picture(3)), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_both_readers_agree(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(IMAGES[kind]())
    by_cv2, by_pillow = read_image(path, "cv2"), read_image(path, "pil")
    assert by_cv2.shape == by_pillow.shape
    assert np.abs(by_cv2.astype(int) - by_pillow).max() <= (1 if "JPEG" in kind else 0)
    assert ("turned" in kind) == (by_cv2.shape[0] > by_cv2.shape[1])
    np.testing.assert_array_equal(by_cv2, cv2.imread(str(path))[..., ::-1])


def torn_images() -> dict[str, bytes]:
    whole, jpeg = png(picture(3)), saved(Image.fromarray(picture(3)), "JPEG")
    flipped = bytearray(whole)
    flipped[whole.index(b"IDAT") + 40] ^= 255
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0))
    rows = b"".join(b"\0" + row.tobytes() for row in picture(3)[:24])
    bitmap = saved(Image.fromarray(picture(3)), "BMP")
    return {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\n",
        "half a PNG": whole[: len(whole) // 2],
        "PNG without its end": whole[:-12],
        "PNG with a flipped byte": bytes(flipped),
        "PNG with half of its rows": PNG + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""),
        "PNG without pixels": PNG + header + chunk(b"IEND", b""),
        "PNG without header": PNG + chunk(b"IEND", b""),
        "PNG with noise for pixels": PNG + header + chunk(b"IDAT", b"noise") + chunk(b"IEND", b""),
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "JPEG without its end": jpeg[:-2],
        "half a BMP": bitmap[: len(bitmap) // 2],
    }


@pytest.mark.parametrize("reader", ["cv2", "pil"])
@pytest.mark.parametrize("kind", torn_images())
def test_torn_images_are_refused(kind: str, reader: Reader, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "torn.png"
    path.write_bytes(torn_images()[kind])
    with pytest.raises(MediaError, match=r"torn\.png"):
        read_image(path, reader)
    assert capfd.readouterr().err == ""
    with pytest.raises(MediaError, match=r"torn\.png"):
        read_image(path, reader, noisy=True)


def test_missing_image_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(MediaError, match="Is a directory"):
        read_image(tmp_path)


def test_jpeg_with_data_behind_its_end(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    path.write_bytes(saved(Image.fromarray(picture(3)), "JPEG") + b"\x00\x00\xff\xda maker's notes")
    assert read_image(path).shape == (48, 64, 3)
