"""Unpacking: honest archives in every form come out whole, hostile ones leave nothing behind."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies

from lary.data import archive_streams
from lary.data.archives import Limits, Unpacked, group_parts, is_archive, member_names, safe_name, unpack, whole_name
from lary.types import LaryError

CONTENT = {"calvin/a.txt": b"first", "calvin/deep/b.bin": bytes(range(256)) * 500, "calvin/empty": b""}
Change = Callable[[tarfile.TarInfo], None]


def member(name: str, content: bytes = b"", change: Change | None = None) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    if change is not None:
        change(entry)
    return entry, content


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    return path


def honest(path: Path, mode: str = "w") -> Path:
    def folder(entry: tarfile.TarInfo) -> None:
        entry.type = tarfile.DIRTYPE

    return write_tar(
        path, [member("./calvin", change=folder), *(member(f"./{name}", content) for name, content in CONTENT.items())],
        mode,
    )  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    return folder


def run(archive: Path, tmp_path: Path, limits: Limits | None = None) -> Unpacked:
    return unpack([archive], lambda name: name, out(tmp_path), limits or Limits())


def refused(archive: Path, tmp_path: Path, words: str, limits: Limits | None = None) -> None:
    """Refused with a reason, and the target as well as its surroundings stay as they were."""
    before = tree(tmp_path)
    with pytest.raises(LaryError, match=words):
        run(archive, tmp_path, limits)
    assert list(out(tmp_path).iterdir()) == []
    assert tree(tmp_path) == before


@pytest.mark.parametrize(("suffix", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"),
                                              ("tar.xz", "w:xz")])  # fmt: skip
def test_tar_comes_out_whole(tmp_path: Path, suffix: str, mode: str) -> None:
    done = run(honest(tmp_path / f"a.{suffix}", mode), tmp_path)
    assert tree(out(tmp_path)) == CONTENT
    assert done == Unpacked(3, sum(map(len, CONTENT.values())), 0)


def test_zip_comes_out_whole(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("calvin") if hasattr(archive, "mkdir") else archive.writestr("calvin/", b"")
        for name, content in CONTENT.items():
            archive.writestr(name, content)
    assert run(tmp_path / "a.zip", tmp_path).files == 3
    assert tree(out(tmp_path)) == CONTENT


@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_parts_are_read_as_one(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(whole, "w") as archive:
            for name, content in CONTENT.items():
                archive.writestr(name, content)
    else:
        honest(whole, "w:gz")
    data = whole.read_bytes()
    cut = len(data) // 3
    parts = []
    for number, piece in enumerate((data[:cut], data[cut : cut + 7], data[cut + 7 :])):
        parts.append(tmp_path / f"a.{suffix}.part-a{chr(97 + number)}")
        parts[-1].write_bytes(piece)
    assert any("calvin/a.txt" in name for name in member_names(parts))
    assert unpack(parts, lambda name: name, out(tmp_path)).files == 3
    assert tree(out(tmp_path)) == CONTENT


def test_parts_are_grouped_in_order_and_gaps_are_told() -> None:
    names = [f"r/b.tar.gz.{number:03d}" for number in range(12)] + [
        "r/a.tar.part-ab",
        "r/a.tar.part-aa",
        "c.zip",
        "x.csv",
    ]
    groups = group_parts(names)
    assert groups["r/a.tar"] == ("r/a.tar.part-aa", "r/a.tar.part-ab")
    assert groups["r/b.tar.gz"] == tuple(names[:12])
    assert groups["c.zip"] == ("c.zip",)
    assert set(groups) == {"r/a.tar", "r/b.tar.gz", "c.zip"}
    with pytest.raises(LaryError, match="gap"):
        group_parts(["a.tar.001", "a.tar.003"])
    with pytest.raises(LaryError, match="both"):
        group_parts(["a.tar", "a.tar.001"])


def test_names_of_archives() -> None:
    assert all(is_archive(name) for name in ("a.tar", "a.TGZ", "a.tar.gz.part_03", "a.zip.aa"))
    assert not any(is_archive(name) for name in ("a.png", "tar", "a.csv"))
    assert whole_name("a.tar.part.00") == whole_name("a.tar.aa") == whole_name("a.tar") == "a.tar"


def kind(number: bytes, target: str = "") -> Change:
    def change(entry: tarfile.TarInfo) -> None:
        entry.type, entry.linkname = number, target

    return change


HOSTILE = {
    "upwards": ([member("../evil", b"x")], "leaves the target"),
    "upwards inside": ([member("a/../../evil", b"x")], "leaves the target"),
    "absolute": ([member("/tmp/evil", b"x")], "leaves the target"),
    "drive": ([member("C:/evil", b"x")], "leaves the target"),
    "backslash": ([member("..\\evil", b"x")], "leaves the target"),
    "control character": ([member("a\nb", b"x")], "no plain name"),
    "long name": ([member("a/" * 700 + "b", b"x")], "no plain name"),
    "long part": ([member("a" * 300, b"x")], "no plain name"),
    "symbolic link": ([member("a", change=kind(tarfile.SYMTYPE, "/etc"))], "a link"),
    "link, then through it": ([member("a", change=kind(tarfile.SYMTYPE, "..")), member("a/evil", b"x")], "a link"),
    "hard link": ([member("a", b"x"), member("b", change=kind(tarfile.LNKTYPE, "a"))], "a link"),
    "device": ([member("a", change=kind(tarfile.CHRTYPE))], "a device"),
    "block device": ([member("a", change=kind(tarfile.BLKTYPE))], "a device"),
    "pipe": ([member("a", change=kind(tarfile.FIFOTYPE))], "a device"),
    "unknown type": ([member("a", change=kind(b"Z"))], "a member of type"),
    "twice": ([member("a", b"x"), member("./a", b"y")], "twice"),
    "file, then folder": ([member("a", b"x"), member("a/b", b"y")], "both a file and a folder"),
    "no name": ([member("./", b"x")], "without a name"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_hostile_tar_is_refused(tmp_path: Path, case: str, mode: str) -> None:
    members, words = HOSTILE[case]
    archive = write_tar(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), [member("good", b"good"), *members], mode)
    refused(archive, tmp_path, words)


def test_sparse_file_is_refused(tmp_path: Path) -> None:
    entry, content = member("a", b"x" * 512)
    entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1,1000000000000,511",
                         "GNU.sparse.size": "1000000000511"}  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(content))
    refused(tmp_path / "a.tar", tmp_path, "sparse")


def test_huge_declared_size_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("huge")
    entry.size = 1 << 50
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024)
    refused(tmp_path / "a.tar", tmp_path, "larger than allowed")
    refused(tmp_path / "a.tar", tmp_path, "no space", Limits(member_bytes=1 << 60, total_bytes=1 << 60))


def test_limits_on_members_and_total(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", [member(f"f{number}", b"x" * 600) for number in range(5)])
    refused(archive, tmp_path, "more than 4 members", Limits(members=4))
    refused(archive, tmp_path, "larger than allowed", Limits(total_bytes=2000))
    refused(archive, tmp_path, "larger than allowed", Limits(member_bytes=599))
    assert run(archive, tmp_path, Limits(members=5, total_bytes=3000, member_bytes=600)).files == 5


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_streams, "FREE_RATIO", 1 << 20)
    monkeypatch.setattr("lary.data.archives.FREE_RATIO", 1 << 20)
    zeros = bytes(8 << 20)
    refused(write_tar(tmp_path / "a.tar.gz", [member("zeros", zeros)], "w:gz"), tmp_path, "times its size")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", zeros)
    refused(tmp_path / "a.zip", tmp_path, "times its size")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"zeros{number}", zeros[: 1 << 19])
    refused(tmp_path / "b.zip", tmp_path, "times its size")


def test_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("./PaxHeaders/x")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 30
    with gzip.open(tmp_path / "a.tar.gz", "wb") as stream:
        stream.write(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    refused(tmp_path / "a.tar.gz", tmp_path, "header that is too large")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_torn_archive_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    archive = tmp_path / f"a.{suffix}"
    noise = bytes((number * 7919 >> 3) & 255 for number in range(30000))
    if suffix == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("a", noise)
    else:
        mode = "w" if suffix == "tar" else f"w:{suffix[4:]}"
        write_tar(archive, [member("a", noise), member("b", noise[::-1])], mode)
    data = archive.read_bytes()
    # A tar ends in padding: what is cut must reach into its content.
    end = len(data) - (8192 if suffix == "tar" else 0)
    archive.write_bytes(data[: int(end * share)])
    refused(archive, tmp_path, "Fetch it again")


def test_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", [member("a", b"x" * 512), member("b", b"y" * 512)])
    data = bytearray(archive.read_bytes())
    data[1024 + 10] ^= 255  # in the name of the second header: its checksum is wrong now
    archive.write_bytes(data)
    refused(archive, tmp_path, "ends early or is damaged")


def test_data_behind_the_end_is_refused(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", [member("a", b"x")])
    archive.write_bytes(archive.read_bytes() * 2)
    refused(archive, tmp_path, "behind its end")


def entry_of(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (entry_of("../evil", stat.S_IFREG), "leaves the target"),
        (entry_of("/evil", stat.S_IFREG), "leaves the target"),
        (entry_of("a", stat.S_IFLNK | 0o777), "a link"),
        (entry_of("a", stat.S_IFCHR), "special file"),
        (entry_of("a/", stat.S_IFLNK), "special file"),
        (entry_of("a\\..\\evil", stat.S_IFREG), "odd name"),
    ],
)
def test_hostile_zip_is_refused(tmp_path: Path, entry: zipfile.ZipInfo, words: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good", b"good")
        archive.writestr(entry, b"x")
    refused(tmp_path / "a.zip", tmp_path, words)


def test_zip_that_lies_about_a_size_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"x" * 100_000)
    data = (tmp_path / "a.zip").read_bytes()
    size = (100_000).to_bytes(4, "little")
    assert data.count(size) == 2
    (tmp_path / "a.zip").write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    refused(tmp_path / "a.zip", tmp_path, "Fetch it again|longer than it announces")


def test_files_that_are_there_are_kept_or_stop_the_move(tmp_path: Path) -> None:
    archive = honest(tmp_path / "a.tar")
    run(archive, tmp_path)
    assert run(archive, tmp_path).kept == 3
    (out(tmp_path) / "calvin" / "a.txt").write_bytes(b"own work")
    (out(tmp_path) / "calvin" / "empty").unlink()
    with pytest.raises(LaryError, match=r"a\.txt exists with other content"):
        run(archive, tmp_path)
    assert (out(tmp_path) / "calvin" / "a.txt").read_bytes() == b"own work"
    assert not (out(tmp_path) / "calvin" / "empty").exists(), "nothing is moved where a conflict stops"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=strategies.lists(strategies.integers(0, 40), min_size=1, max_size=5),
    steps=strategies.lists(strategies.tuples(strategies.integers(0, 150), strategies.integers(0, 60)), max_size=8),
)
def test_parts_read_like_one_file(tmp_path: Path, sizes: list[int], steps: list[tuple[int, int]]) -> None:
    content = bytes(number & 255 for number in range(sum(sizes)))
    parts, start = [], 0
    for number, size in enumerate(sizes):
        parts.append(tmp_path / f"p{number}")
        parts[-1].write_bytes(content[start : start + size])
        start += size
    whole = io.BytesIO(content)
    with archive_streams.JoinedFile(parts) as joined:
        for place, count in steps:
            assert joined.seek(place) == whole.seek(place)
            assert joined.read(count) == whole.read(count)
            assert joined.tell() == whole.tell()


MOVES = strategies.tuples(strategies.integers(-500, 3000), strategies.integers(0, 2000))


@settings(max_examples=60, deadline=None)
@given(steps=strategies.lists(MOVES, max_size=9))
def test_guard_reads_forward_and_a_little_back(steps: list[tuple[int, int]]) -> None:
    content = bytes(number * 31 & 255 for number in range(6000))
    whole = io.BytesIO(content)
    joined = archive_streams.JoinedFile([])
    guard = archive_streams.Guard("a.tar", io.BytesIO(content), joined, Limits())
    reached = 0
    for move, count in steps:
        reached = max(reached, guard.tell())
        place = max(guard.tell() + move, reached - archive_streams.KEPT, 0)
        guard.seek(place)
        whole.seek(min(place, len(content)))
        assert guard.tell() == whole.tell()
        assert guard.read(count) == whole.read(count)


def test_zstd_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar.zst").write_bytes(b"(\xb5/\xfd")
    refused(tmp_path / "a.tar.zst", tmp_path, "zstd")


def test_safe_names() -> None:
    assert safe_name("./a//b/.") == "a/b"
    assert safe_name("./") == ""
    assert safe_name("..a/b..") == "..a/b.."
    assert [safe_name(name) for name in ("..", "a/..", "\udcff", "a\x00b", "c:x")] == [None] * 5
