"""Frames of clips: exact by index against decoding in order; torn and hostile videos are refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lary.data import frames
from lary.data.frames import announced_frames, decode_video, read_clip
from lary.types import MediaError, UsageError
from tests.hostile.harness import bounded, refused
from tests.tree import frame, write_video

COUNT = 60
TEXTURE = np.random.default_rng(0).integers(0, 256, (6, 64, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
Videos = dict[str, tuple[Path, np.ndarray]]


def picture(index: int) -> np.ndarray:
    """48 x 64 pixels of a texture that moves by a pixel per frame: no two alike, each predicted from the last."""
    return np.ascontiguousarray(TEXTURE[:, index % 448 : index % 448 + 64])


def encode(
    path: Path, codec: str, options: dict[str, str], *, count: int = COUNT, gop: int = 12, varied: bool = False
) -> None:
    """A video of `count` pictures; with `varied` time stamps, frames last one to four ticks."""
    stamps = np.cumsum(np.random.default_rng(0).integers(1, 5, count)) if varied else np.arange(count)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.gop_size = 64, 48, gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(count):
            shown = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            shown.pts = int(stamps[index])
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))


def in_order(path: Path) -> np.ndarray:
    """All frames by plain sequential decoding."""
    with av.open(str(path)) as container:
        return np.stack([shown.to_ndarray(format="rgb24") for shown in container.decode(video=0)])


def cut_short(path: Path) -> bytes:
    """A video's bytes up to the middle of its packet 30."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][30]
    return path.read_bytes()[: (packet.pos or 0) + packet.size // 2]


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
def videos(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    folder = tmp_path_factory.mktemp("videos")
    made = {}
    for name, (suffix, codec, options, more) in KINDS.items():
        if codec in av.codecs_available:
            path = folder / f"{name}.{suffix}"
            encode(path, codec, options, **more)
            made[name] = (path, in_order(path))
    return made


@pytest.mark.parametrize("kept", [frames.BYTES_KEPT, 100], ids=["kept", "too large to keep"])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_sequential_decoding(
    kind: str, kept: int, videos: Videos, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind not in videos:
        pytest.skip(f"this FFmpeg has no encoder {KINDS[kind][1]}")
    monkeypatch.setattr(frames, "BYTES_KEPT", kept)
    path, expected = videos[kind]
    assert len(expected) == COUNT
    for index in ([0], [COUNT - 1], [11, 12, 13], [35, 36], list(range(COUNT)), [2, 9, 14, 23, 31, 38, 45, 52, 59]):
        np.testing.assert_array_equal(read_clip([path], index), expected[index], err_msg=f"{kind} {index}")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), index=st.lists(st.integers(0, 2 * COUNT), min_size=1, max_size=9))
def test_indices_repeat_unsorted_and_are_clamped(kind: str, index: list[int], videos: Videos) -> None:
    if kind not in videos:
        return
    path, expected = videos[kind]
    np.testing.assert_array_equal(read_clip([path], index), expected[np.minimum(index, COUNT - 1)])
    if max(index) >= COUNT:
        with pytest.raises(MediaError, match=rf"ends with frame {COUNT - 1}, and frame {max(index)} is asked for"):
            read_clip([path], index, clamp=False)


def test_far_frames_cost_no_decoding_of_all_before_them(videos: Videos, tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    encode(path, "libx264", {"preset": "ultrafast"}, count=400, gop=20)
    np.testing.assert_array_equal(read_clip([path], [5, 390]), in_order(path)[[5, 390]])
    with frames.opened_video(path) as (container, stream):
        table = frames.scan_packets(container, stream, keep=True)
        assert table is not None
        assert (len(table.stamps), len(table.seeks)) == (400, 20)
        assert set(frames.pick_frames(container, stream, table, [5, 390]) or {}) == {5, 390}
    # Open groups are not entered in the middle, although the container marks their first frames as key frames.
    with frames.opened_video(videos["h264-open-gop"][0]) as (container, stream):
        marked = [packet.pts for packet in container.demux(stream) if packet.size and packet.is_keyframe]
    with frames.opened_video(videos["h264-open-gop"][0]) as (container, stream):
        table = frames.scan_packets(container, stream)
    assert table is not None
    assert (len(table.stamps), len(table.seeks)) == (COUNT, 1)
    assert len(marked) > 1
    assert announced_frames(videos["h264-b-frames"][0]) == COUNT
    assert announced_frames(videos["vp9"][0]) == COUNT, "from duration and rate"
    assert len(list(decode_video(videos["vp9"][0]))) == COUNT


def test_opencv_reads_the_same_pixels_also_of_a_turned_video(videos: Videos, tmp_path: Path) -> None:
    """Bit-equal today; other builds of FFmpeg may round differently by a grey level."""
    path, expected = videos["h264-b-frames"]
    capture = cv2.VideoCapture(str(path))
    theirs = np.stack([cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(COUNT)]).astype(int)
    assert np.abs(theirs - read_clip([path], range(COUNT))).max() <= 1
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of a version 0 track header
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    opencv = cv2.cvtColor(cv2.VideoCapture(str(turned)).read()[1], cv2.COLOR_BGR2RGB)
    ours = read_clip([turned], [0])[0]
    assert ours.shape == (64, 48, 3)
    assert np.abs(ours.astype(int) - opencv).max() <= 1
    np.testing.assert_array_equal(ours, np.rot90(expected[0], -1))


# Torn and hostile videos


def test_broken_videos_are_refused(videos: Videos, tmp_path: Path) -> None:
    data, avi = videos["h264-b-frames"][0].read_bytes(), videos["mpeg4-avi"][0]
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, content, words in (
        ("empty.mp4", b"", "can't be read"),
        ("noise.mp4", bytes(range(256)) * 8, "can't be read"),
        ("half.mp4", data[: len(data) // 2], "can't be read"),
        ("text.mp4", b"version https://git-lfs.github.com/spec/v1\n", "can't be read"),
        ("cut.avi", cut_short(avi), "ends within a frame"),
        ("sound.wav", None, "no video stream"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=rf"{name}.*{words}"):
            read_clip([tmp_path / name], [0])
        with pytest.raises(MediaError, match=rf"{name}"):
            list(decode_video(tmp_path / name))
    with pytest.raises(UsageError, match="count from 0"):
        read_clip([avi], [-1])
    with pytest.raises(UsageError, match="one video"):
        read_clip([avi, avi], [0])


def test_paths_that_are_no_videos(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    for name, words in (
        ("pipe.mp4", "no regular file"), ("device.mp4", "no regular file"), ("a\0b", "null byte"),
        ("none.mp4", "No such file"),
    ):  # fmt: skip
        for read in (lambda path: read_clip([path], (0, 1)), announced_frames):
            refused(tmp_path, lambda name=name, read=read: read(tmp_path / name), words)  # type: ignore[misc]


def test_videos_that_announce_giant_pictures(tmp_path: Path) -> None:
    """A motion JPEG whose only frame announces 40,000 x 40,000 pixels, and a container whose own size is not used."""
    path = tmp_path / "a.avi"
    encode(path, "mjpeg", {}, count=1)
    head, size = b"\xff\xc0\x00\x11\x08", struct.pack(">HH", 48, 64)
    assert head + size in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(head + size, head + struct.pack(">HH", 40_000, 40_000)))
    refused(tmp_path, lambda: read_clip([path], (0,)), "can't be read")
    refused(tmp_path, lambda: list(decode_video(path)), "can't be read")
    path = tmp_path / "a.mp4"
    encode(path, "libx264", {}, count=2)
    data = path.read_bytes()
    at = data.rindex(b"avc1") + 4 + 24  # width and height of a sample entry (ISO/IEC 14496-12)
    assert data[at : at + 4] == struct.pack(">HH", 64, 48)
    path.write_bytes(data[:at] + struct.pack(">HH", 65_000, 65_000) + data[at + 4 :])
    with bounded():
        assert read_clip([path], (0, 1)).shape == (2, 48, 64, 3), "the stream's own size counts"


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
