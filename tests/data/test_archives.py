"""Unpacking: honest archives in every form come out whole, hostile ones leave nothing behind."""

from __future__ import annotations

import gzip
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lary.data.archives import SCRATCH, Limits, group_parts, is_archive, member_names, safe_name, unpack, whole_name
from lary.types import LaryError
from tests.hostile import harness

CONTENT = {"calvin/a.txt": b"first", "calvin/deep/b.bin": bytes(range(256)) * 500, "calvin/empty": b""}
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> Member:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = len(content), kind, target
    return entry, content


def write_tar(path: Path, members: list[Member], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    return path


def write_zip(path: Path, content: dict[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def honest(path: Path) -> Path:
    if path.suffix == ".zip":
        return write_zip(path, {"calvin/": b"", **CONTENT})
    files = [member(f"./{name}", content) for name, content in CONTENT.items()]
    mode = {".tar": "w", ".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}[path.suffix]
    return write_tar(path, [member("./calvin", kind=tarfile.DIRTYPE), *files], mode)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(archive: Path, limits: Limits | None = None) -> Path:
    out = archive.parent / "out"
    unpack([archive], lambda name: name, out, limits or Limits())
    return out


def refused(archive: Path, words: str, limits: Limits | None = None) -> None:
    """Refused with a reason, and the target as well as its surroundings stay as they were."""
    before = tree(archive.parent)
    with pytest.raises(LaryError, match=words):
        run(archive, limits)
    assert list((archive.parent / "out").iterdir()) == []
    assert tree(archive.parent) == before


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip"])
def test_archive_comes_out_whole_also_in_parts(tmp_path: Path, suffix: str) -> None:
    whole = honest(tmp_path / f"a.{suffix}")
    assert tree(run(whole)) == CONTENT
    data = whole.read_bytes()
    cut = len(data) // 3
    parts = [tmp_path / f"b.{suffix}.part-a{letter}" for letter in "abcd"]
    for part, piece in zip(parts, (data[:cut], b"", data[cut : cut + 7], data[cut + 7 :]), strict=True):
        part.write_bytes(piece)
    assert any("calvin/a.txt" in name for name in member_names(parts))
    unpack(parts, lambda name: name, tmp_path / "parts")
    assert tree(tmp_path / "parts") == CONTENT


def test_names_and_parts_in_order() -> None:
    numbered = [f"r/b.tar.gz.{number:03d}" for number in range(12)]
    groups = group_parts([*numbered, "r/c.tar.part-ab", "r/c.tar.part-aa", "c.zip", "x.csv"])
    assert groups == {
        "r/c.tar": ("r/c.tar.part-aa", "r/c.tar.part-ab"), "r/b.tar.gz": tuple(numbered), "c.zip": ("c.zip",)
    }  # fmt: skip
    for words, names in (
        ("gap", "a.tar.001 a.tar.003"),
        ("gap", "a.tar.part-az a.tar.part-ba"),
        ("both", "a.tar a.tar.001"),
    ):
        with pytest.raises(LaryError, match=words):
            group_parts(names.split())
    assert all(is_archive(name) for name in ("a.tar", "a.TGZ", "a.tar.gz.part_03", "a.zip.aa"))
    assert not any(is_archive(name) for name in ("a.png", "tar", "a.csv"))
    assert whole_name("a.tar.part.00") == whole_name("a.tar.aa") == whole_name("a.tar") == "a.tar"
    assert [safe_name(name) for name in ("./a//b/.", "./", "..a/b..")] == ["a/b", "", "..a/b.."]
    assert [safe_name(name) for name in ("..", "a/..", "\udcff", "a\x00b", "c:x")] == [None] * 5


HOSTILE = {
    "upwards": ([member("../evil", b"x")], "leaves the target"),
    "upwards inside": ([member("a/../../evil", b"x")], "leaves the target"),
    "absolute": ([member("/tmp/evil", b"x")], "leaves the target"),
    "drive": ([member("C:/evil", b"x")], "leaves the target"),
    "backslash": ([member("..\\evil", b"x")], "leaves the target"),
    "control character": ([member("a\nb", b"x")], "no plain name"),
    "long name": ([member("a/" * 700 + "b", b"x")], "no plain name"),
    "long part": ([member("a" * 300, b"x")], "no plain name"),
    "symbolic link": ([member("a", kind=tarfile.SYMTYPE, target="/etc")], "a link"),
    "link, then through it": ([member("a", kind=tarfile.SYMTYPE, target=".."), member("a/evil", b"x")], "a link"),
    "hard link": ([member("a", b"x"), member("b", kind=tarfile.LNKTYPE, target="a")], "a link"),
    "device": ([member("a", kind=tarfile.CHRTYPE)], "a device"),
    "block device": ([member("a", kind=tarfile.BLKTYPE)], "a device"),
    "pipe": ([member("a", kind=tarfile.FIFOTYPE)], "a device"),
    "unknown type": ([member("a", kind=b"Z")], "a member of type"),
    "twice": ([member("a", b"x"), member("./a", b"y")], "twice"),
    "file, then folder": ([member("a", b"x"), member("a/b", b"y")], "both a file and a folder"),
    "no name": ([member("./", b"x")], "without a name"),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_hostile_tar_is_refused(tmp_path: Path, case: str, suffix: str) -> None:
    members, words = HOSTILE[case]
    mode = "w" if suffix == "tar" else "w:gz"
    refused(write_tar(tmp_path / f"a.{suffix}", [member("good", b"good"), *members], mode), words)


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    entry, content = member("a", b"x" * 512)
    entry.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1,1000000000000,511",
                         "GNU.sparse.size": "1000000000511"}  # fmt: skip
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(entry, io.BytesIO(content))
    refused(tmp_path / "a.tar", "sparse")
    refused(write_tar(tmp_path / "b.tar", [member("a", kind=tarfile.GNUTYPE_SPARSE)]), "sparse")


def test_huge_declared_sizes_are_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("huge")
    entry.size = 1 << 50
    (tmp_path / "a.tar").write_bytes(entry.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024)
    refused(tmp_path / "a.tar", "larger than allowed")
    refused(tmp_path / "a.tar", "no space", Limits(total_bytes=1 << 60))
    entry.name, entry.type, entry.size = "./PaxHeaders/x", tarfile.XHDTYPE, 1 << 30
    with gzip.open(tmp_path / "b.tar.gz", "wb") as stream:
        stream.write(entry.tobuf(tarfile.GNU_FORMAT) + bytes(4096))
    refused(tmp_path / "b.tar.gz", "header that is too large")


def test_limits_on_members_total_and_growth(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", [member(f"f{number}", b"x" * 600) for number in range(5)])
    refused(archive, "more than 4 members", Limits(members=4))
    refused(archive, "larger than allowed", Limits(total_bytes=2000))
    zeros, small = bytes(8 << 20), Limits(free_bytes=1 << 20)
    refused(write_tar(tmp_path / "b.tar.gz", [member("zeros", zeros)], "w:gz"), "more than 200 times its size", small)
    refused(write_zip(tmp_path / "a.zip", {"zeros": zeros}), "times its size", small)
    many = write_zip(tmp_path / "b.zip", {f"zeros{number}": zeros[: 1 << 19] for number in range(20)})
    refused(many, "times its size", small)
    assert len(tree(run(archive, Limits(members=5, total_bytes=3000)))) == 5


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_torn_archive_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    archive = tmp_path / f"a.{suffix}"
    noise = bytes((number * 7919 >> 3) & 255 for number in range(30000))
    if suffix == "zip":
        write_zip(archive, {"a": noise})
    else:
        mode = "w" if suffix == "tar" else f"w:{suffix[4:]}"
        write_tar(archive, [member("a", noise), member("b", noise[::-1])], mode)
    data = archive.read_bytes()
    # A tar ends in padding: what is cut must reach into its content.
    end = len(data) - (8192 if suffix == "tar" else 0)
    archive.write_bytes(data[: int(end * share)])
    refused(archive, "Fetch it again")


def test_damaged_header_is_not_taken_for_the_end_and_nothing_is_behind_it(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", [member("a", b"x" * 512), member("b", b"y" * 512)])
    data = bytearray(archive.read_bytes())
    archive.write_bytes(data * 2)
    refused(archive, "behind its end")
    archive.write_bytes(data[:1024])
    refused(archive, "ends early or is damaged")
    data[1024 + 10] ^= 255  # in the name of the second header: its checksum is wrong now
    archive.write_bytes(data)
    refused(archive, "ends early or is damaged")


def test_hostile_zip_is_refused(tmp_path: Path) -> None:
    for name, mode, words in (
        ("../evil", stat.S_IFREG, "leaves the target"), ("/evil", stat.S_IFREG, "leaves the target"),
        ("a", stat.S_IFLNK | 0o777, "a link"), ("a", stat.S_IFCHR, "special file"), ("a/", stat.S_IFLNK, "a link"),
        ("a\\..\\evil", stat.S_IFREG, "no plain name"),
    ):  # fmt: skip
        entry = zipfile.ZipInfo(name)
        entry.create_system, entry.external_attr = 3, mode << 16
        refused(write_zip(tmp_path / "a.zip", {"good": b"good", entry: b"x"}), words)
    archive = write_zip(tmp_path / "a.zip", {"a": b"x" * 100_000})
    data, size = archive.read_bytes(), (100_000).to_bytes(4, "little")
    assert data.count(size) == 2
    archive.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    refused(archive, "Fetch it again")
    archive.write_bytes(write_zip(tmp_path / "b.zip", {"abc": b"x"}).read_bytes().replace(b"abc", b"a\0c"))
    refused(archive, "odd name")
    (tmp_path / "a.tar.zst").write_bytes(b"(\xb5/\xfd")
    refused(tmp_path / "a.tar.zst", "zstd")


def test_files_that_are_there_are_kept_or_stop_the_move(tmp_path: Path) -> None:
    archive = honest(tmp_path / "a.tar")
    out = run(archive)
    run(archive)
    assert tree(out) == CONTENT
    (out / "calvin" / "a.txt").write_bytes(b"own work")
    (out / "calvin" / "empty").unlink()
    with pytest.raises(LaryError, match=r"a\.txt exists with other content"):
        run(archive)
    assert (out / "calvin" / "a.txt").read_bytes() == b"own work"
    assert not (out / "calvin" / "empty").exists(), "nothing is moved where a conflict stops"
    assert not list(out.glob(".*"))


def swap_folder(scratch: Path, outside: Path) -> None:
    shutil.rmtree(scratch / "calvin")
    (scratch / "calvin").symlink_to(outside)


def swap_file(scratch: Path, outside: Path) -> None:
    (scratch / "a.txt").unlink()
    (scratch / "a.txt").symlink_to(outside / "secret")


@pytest.mark.parametrize(("swap", "words"), [(swap_folder, "exchanged"), (swap_file, "became a link")])
def test_target_that_is_swapped_for_a_link(tmp_path: Path, swap: Callable[[Path, Path], None], words: str) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    for folder in (outside, target):
        folder.mkdir()
    (outside / "secret").write_text("secret")
    archive = write_tar(tmp_path / "a.tar", [member(name, b"1") for name in ("a.txt", "calvin/a.txt", "calvin/b.txt")])

    def place(name: str) -> str:
        if name.endswith("b.txt"):
            (scratch,) = target.glob(f"{SCRATCH}*")
            swap(scratch, outside)
        return name

    harness.refused(outside, lambda: unpack([archive], place, target), words)
    assert tree(outside) == {"secret": b"secret"}
    assert list(target.iterdir()) == []
