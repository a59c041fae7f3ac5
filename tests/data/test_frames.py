"""Frames of clips: exact by index against decoding in order; torn and hostile videos are refused."""

import os
import struct
import weakref
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from lary.data import frames
from lary.data.frames import count_frames, decode_video, read_clip, read_frames, to_rgb
from lary.data.images import png_bytes, read_image
from lary.latents.choice import read_chosen
from lary.models.spec import Preprocess
from lary.types import MediaError
from tests.helpers import fails
from tests.hostile.harness import bounded, refused

COUNT = 60
TEXTURE = np.random.default_rng(0).integers(0, 256, (12, 128, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
Videos = dict[str, tuple[Path, np.ndarray]]


def encode(
    path: Path, codec: str, options: dict[str, str], *,
    count: int = COUNT, gop: int = 12, varied: bool = False, height: int = 48,
) -> None:  # fmt: skip
    """A texture that moves by a pixel per frame; with `varied` time stamps, frames last one to four ticks."""
    stamps = np.cumsum(np.random.default_rng(0).integers(1, 5, count)) if varied else np.arange(count)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.gop_size = 64, height, gop
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for index in range(count):
            picture = np.ascontiguousarray(TEXTURE[:height, index % 448 : index % 448 + 64])
            shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
            shown.pts = int(stamps[index])
            container.mux(stream.encode(shown))
        container.mux(stream.encode(None))


def in_order(path: Path) -> np.ndarray:
    """All frames by plain sequential decoding."""
    with av.open(str(path)) as container:
        return np.stack([to_rgb(shown) for shown in container.decode(video=0)])


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
    "h264-matroska": ("mkv", "libx264", {"bf": "3"}, {"varied": True}),
    "h264-avi": ("avi", "libx264", {"bf": "1", "x264-params": "b-adapt=0"}, {}),
    "h264-avi-open-gop": ("avi", "libx264", {"bf": "3", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}, {}),
    "h264-asf": ("asf", "libx264", {"bf": "3"}, {}),
    "h264-avi-no-b-frames": ("avi", "libx264", {"bf": "0"}, {}),
    "h264-stream": ("h264", "libx264", {"bf": "3"}, {}),
    "hevc-open-gop": ("mp4", "libx265", {"x265-params": "log-level=none:open-gop=1", "preset": "ultrafast"}, {}),
    "vp9": ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}, {}),
    "vp9-hidden-frames": ("webm", "libvpx-vp9", {"cpu-used": "5", **HIDDEN}, {}),
    "vp8-hidden-frames": ("webm", "libvpx", {"cpu-used": "8", **HIDDEN}, {}),
    "av1": ("mp4", "libsvtav1", {"preset": "12", "svtav1-params": "keyint=12"}, {}),
    "mpeg4": ("mp4", "mpeg4", {"bf": "2"}, {}),
    "mjpeg": ("avi", "mjpeg", {}, {}),
}  # fmt: skip


CHOICES = (
    [0], [1], [5], [26], [11, 12, 13], [35, 36], range(COUNT), [2, 9, 14, 23, 31, 38, 45, 52, 59], [59, 3, 3, 99, 40]
)  # fmt: skip


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Videos:
    folder, made = tmp_path_factory.mktemp("videos"), {}
    for name, (suffix, codec, options, more) in KINDS.items():
        if codec in av.codecs_available:
            path = folder / f"{name}.{suffix}"
            encode(path, codec, options, **more)
            made[name] = (path, in_order(path))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_sequential_decoding_unsorted_repeated_or_clamped(kind: str, videos: Videos) -> None:
    if kind not in videos:
        pytest.skip(f"this FFmpeg has no encoder {KINDS[kind][1]}")
    path, expected = videos[kind]
    assert len(expected) == COUNT == len(list(decode_video(path))) == count_frames(path)
    for index in CHOICES:
        wanted = expected[np.minimum(index, COUNT - 1)]
        np.testing.assert_array_equal(read_clip([path], index), wanted, err_msg=f"{kind} {index}")
    wrong = "ends with frame 59, and frame 99 is asked for"
    fails(MediaError, wrong, read_frames, [path], [0, 99], clamp=False, fit=np.size)


def test_far_frames_cost_no_decoding_of_all_before_them(videos: Videos) -> None:
    """And open groups are not entered in the middle, though the container marks their first frames as key frames."""
    for kind, groups in (("h264-tiny-groups", 20), ("h264-open-gop", 1), ("vp9", 5)):
        with frames.opened_video(videos[kind][0]) as (container, stream):
            table = frames.scan_packets(container, stream)
            assert table is not None
            assert (len(table.stamps), len(table.starts)) == (COUNT, groups)
            # Without the packets in between, what is asked for can still be decoded.
            _, start = table.starts[-1]
            table = table._replace(packets=(None,) * start + table.packets[start:])
            assert set(frames.pick_frames(stream, table, [59], to_rgb) or {}) == {59}


def test_one_frame_is_in_memory_at_a_time_at_full_size(videos: Videos, tmp_path: Path) -> None:
    path, expected = videos["h264-b-frames"]
    images = [tmp_path / f"{number}.png" for number in range(9)]
    for number, image in enumerate(images):
        image.write_bytes(png_bytes(expected[number], packing=1))
    for paths, index in (([path], range(0, COUNT, 7)), (images, ())):
        seen: list[Any] = []

        def fit(image: np.ndarray, seen: list[Any] = seen) -> int:
            assert sum(other() is not None for other in seen) <= 1
            seen.append(weakref.ref(image))
            return int(image[0, 0, 0])

        assert read_frames(paths, index, fit=fit) == [frame[0, 0, 0] for frame in expected[index or range(9)]]
        for how in ("none", "cv2_cubic"):  # what is cut out of a frame doesn't keep all of it
            for frame in read_chosen(paths, index, Preprocess(size=16, short_side=24, resize=how)):  # type: ignore[arg-type]
                assert frame.nbytes == 16 * 16 * 3
                assert frame.base is None or frame.base.nbytes == frame.nbytes


def test_videos_that_refer_to_more_pictures_than_any_level_allows(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(frames, "LARGEST_FRAME", 64 * 48)
    reads = (lambda path: len(read_clip([path], (0, 59))), lambda path: sum(1 for _ in decode_video(path)))
    for name, options in (("refs", "ref=16:bframes=0"), ("delay", "ref=16:bframes=16:b-pyramid=none")):
        encode(tmp_path / f"{name}.mp4", "libx264", {"x264-params": f"{options}:scenecut=0"}, gop=COUNT)
        for read in reads[: 1 + (name == "refs")]:
            fails(MediaError, "refer to more others than any level allows", read, tmp_path / f"{name}.mp4")
    encode(tmp_path / "six.mp4", "libx264", {"x264-params": "ref=5:bframes=3:scenecut=0"}, gop=COUNT)
    assert [read(tmp_path / "six.mp4") for read in reads] == [2, COUNT]  # type: ignore[no-untyped-call]
    monkeypatch.setattr(frames, "LARGEST_FRAME", 64 * 48 - 1)
    fails(MediaError, "64 x 48 pixels, more than the 3071", reads[0], tmp_path / "six.mp4")


def test_frames_stamped_in_another_order_are_counted_in_the_order_of_decoding(videos: Videos, tmp_path: Path) -> None:
    """AVI keeps no presentation times, and what FFmpeg makes up is copied into other containers."""
    path, expected = videos["h264-avi"]
    for suffix in ("mp4", "mkv", "ts"):
        copied = tmp_path / f"copied.{suffix}"
        with av.open(str(path)) as source, av.open(str(copied), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
        np.testing.assert_array_equal(in_order(copied), expected)
        for index in range(0, COUNT, 7):
            np.testing.assert_array_equal(read_clip([copied], [index])[0], expected[index], err_msg=f"{suffix} {index}")


def test_packets_that_an_edit_list_leaves_out_are_no_frames(videos: Videos, tmp_path: Path) -> None:
    """An edit that begins between key frames: the frames before it are decoded and not shown."""
    path, expected = videos["h264-b-frames"]
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 16  # media time of the first entry (ISO/IEC 14496-12)
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        tick = round(1 / (stream.time_base * stream.average_rate))
    data[at : at + 4] = struct.pack(">i", struct.unpack(">i", data[at : at + 4])[0] + 5 * tick)
    edited = tmp_path / "edited.mp4"
    edited.write_bytes(data)
    with av.open(str(edited)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 5
    np.testing.assert_array_equal(in_order(edited), expected[5:])
    for index in ([0], [10], [30, 40], list(range(COUNT - 5))):
        np.testing.assert_array_equal(read_clip([edited], index), expected[5:][index])
    assert count_frames(edited) == COUNT - 5


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_neither_cover_pictures_nor_depth_are_taken_for_the_video(tmp_path: Path, suffix: str) -> None:
    """A cover that is stream 0 of an MP4, and a depth stream that is stream 0 of a Matroska file."""
    path, depth = tmp_path / f"a.{suffix}", suffix == "mkv"
    with av.open(str(path), "w") as container:
        other: Any = container.add_stream("ffv1" if depth else "mjpeg", rate=30)
        stream: Any = container.add_stream("libx264", rate=30)
        other.pix_fmt, stream.pix_fmt = "gray16le" if depth else "yuvj420p", "yuv420p"
        if not depth:
            other.disposition = av.stream.Disposition.attached_pic
        for each in (other, stream):
            each.width, each.height = 64, 48
        for each, count in ((other, COUNT if depth else 1), (stream, COUNT)):
            for index in range(count):
                shown = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * index * (each is stream), np.uint8))
                shown.pts = index
                container.mux(each.encode(shown))
            container.mux(each.encode(None))
    if not depth:  # the user data, which hold the cover, are put before the tracks
        data = path.read_bytes()
        tracks, user = data.index(b"trak") - 4, data.index(b"udta") - 4
        path.write_bytes(data[:tracks] + data[user:] + data[tracks:user])
    with av.open(str(path)) as container:
        assert [each.codec_context.name for each in container.streams.video][1] == "h264"
    means = [picture.mean() for picture in read_clip([path], [0, 30, 59])]
    np.testing.assert_allclose(means, [0, 120, 236], atol=3)
    assert count_frames(path) == len(list(decode_video(path))) == COUNT


def test_a_file_with_depth_alone_is_refused(tmp_path: Path) -> None:
    for name, pixels, title in (("gray.mkv", "gray10le", ""), ("named.mkv", "yuv420p", "Depth of the camera")):
        with av.open(str(tmp_path / name), "w") as container:
            stream: Any = container.add_stream("ffv1", rate=30)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
            stream.metadata["title"] = title
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
            container.mux(stream.encode(None))
        fails(MediaError, "its only video stream is depth", read_clip, [tmp_path / name], [0])


def by_opencv(path: Path, count: int = 1) -> np.ndarray:
    capture = cv2.VideoCapture(str(path))
    return np.stack([cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(count)]).astype(int)


def test_opencv_reads_the_same_pixels_also_of_a_turned_video(videos: Videos, tmp_path: Path) -> None:
    """Bit-equal today; other builds of FFmpeg may round differently by a grey level."""
    path, expected = videos["h264-b-frames"]
    assert np.abs(by_opencv(path, COUNT) - read_clip([path], range(COUNT))).max() <= 1
    if "vp9" in videos:  # of an odd height, where the interpolation of the chroma is seen, by up to 40 levels
        encode(tmp_path / "odd.webm", "libvpx-vp9", {}, count=2, height=37)
        assert np.abs(by_opencv(tmp_path / "odd.webm") - read_clip([tmp_path / "odd.webm"], [0])).max() <= 8
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the matrix of a version 0 track header
    data[at : at + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    ours = read_clip([turned], [0])
    assert np.abs(ours - by_opencv(turned)).max() <= 1
    np.testing.assert_array_equal(ours[0], np.rot90(expected[0], -1))


# Torn and hostile videos


def test_broken_videos_are_refused(videos: Videos, tmp_path: Path) -> None:
    data = videos["h264-b-frames"][0].read_bytes()
    encode(tmp_path / "whole.avi", "mpeg4", {})
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    for name, content, words in (
        ("empty.mp4", b"", "can't be read"), ("noise.mp4", bytes(range(256)) * 8, "can't be read"),
        ("half.mp4", data[: len(data) // 2], "can't be read"), ("sound.wav", None, "no video stream"),
        ("cut.mkv", cut_short(videos["h264-matroska"][0]), "the file is cut off"),
        ("end.webm", videos["vp9"][0].read_bytes()[:-1], "the file is cut off"),
        ("cut.avi", cut_short(tmp_path / "whole.avi"), "ends within a frame"),
    ):  # fmt: skip
        if content is not None:
            (tmp_path / name).write_bytes(content)
        for read in (lambda path: read_clip([path], [0]), lambda path: list(decode_video(path))):
            fails(MediaError, rf"{name}.*{words}", read, tmp_path / name)


def test_paths_that_are_no_media_and_videos_that_open_others(videos: Videos, tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(videos["h264-b-frames"][0].read_bytes())
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "device.mp4").symlink_to("/dev/zero")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    (tmp_path / "list.m3u8").write_text(playlist.format(f"file://{secret}"))
    (tmp_path / "net.m3u8").write_text(playlist.format("http://127.0.0.1:9/a.ts"))
    (tmp_path / "sdp.mp4").write_text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 26\n")
    reads = (lambda path: read_clip([path], (0, 1)), count_frames)
    for name in ("concat.mp4", "list.m3u8", "net.m3u8", "sdp.mp4"):
        for read in reads:
            refused(tmp_path, lambda name=name, read=read: read(tmp_path / name), "can't be read")  # type: ignore[misc]
    for name, words in (("pipe.mp4", "no regular file"), ("device.mp4", "no regular file"), ("a\0b", "null byte"),
                        ("none.mp4", "No such file"), (".", "Is a directory|no regular file")):  # fmt: skip
        for read in (*reads, read_image):
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
