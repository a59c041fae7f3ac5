"""Unpacking: honest archives in every form come out whole, hostile ones leave nothing behind."""

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from lary.data.archives import SCRATCH, Limits, unpack, whole_name
from lary.types import LaryError
from tests.helpers import contents, fails
from tests.hostile import harness
from tests.hostile.harness import write_zip

CONTENT = {"calvin/a.txt": b"first", "calvin/deep/b.bin": bytes(range(256)) * 500, "calvin/empty": b""}
NOISE = bytes((number * 7919 >> 3) & 255 for number in range(30000))
SUFFIXES = ("tar", "tar.gz", "tgz", "tar.bz2", "tar.xz", "zip")
NAMES = ("../evil", "a/../../evil", "/tmp/evil", "C:/evil", "..\\evil", "a\nb", "a/" * 3000 + "b", "a" * 300)
SPECIAL = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z", tarfile.GNUTYPE_SPARSE)
KINDS = {tarfile.SYMTYPE: "a link", tarfile.LNKTYPE: "a link"} | dict.fromkeys(SPECIAL, "a special file")


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.linkname = len(content), kind, ".."
    return entry, content


def packed(*members: tuple[tarfile.TarInfo, bytes], packing: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{packing}") as tar:  # type: ignore[call-overload]
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def write_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path.write_bytes(packed(*members, packing=path.suffix[1:].replace("tgz", "gz").replace("tar", "")))
    return path


def write(path: Path, content: Mapping[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return write_zip(path, {"calvin/": b"", **content})
    files = (member(f"./{name}", data) for name, data in content.items())
    return write_tar(path, member("./calvin", kind=tarfile.DIRTYPE), *files)


def run(*parts: Path, limits: Limits | None = None) -> dict[str, bytes]:
    out = parts[0].parent / "out"
    unpack(parts, lambda name: name, out, limits)
    return contents(out)


def refused(archive: Path, words: str, limits: Limits | None = None) -> None:
    """Refused with a reason, and the target as well as its surroundings stay as they were."""
    before = contents(archive.parent)
    fails(LaryError, words, run, archive, limits=limits)
    assert (list((archive.parent / "out").iterdir()), contents(archive.parent)) == ([], before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_archive_comes_out_whole_also_in_parts_but_not_torn(tmp_path: Path, suffix: str) -> None:
    whole = write(tmp_path / f"a.{suffix}", CONTENT)
    data, cut = whole.read_bytes(), len(whole.read_bytes()) // 3
    parts = [tmp_path / f"b.{suffix}.part-a{letter}" for letter in "abcd"]
    for part, piece in zip(parts, (data[:cut], b"", data[cut : cut + 7], data[cut + 7 :]), strict=True):
        part.write_bytes(piece)
    assert run(*parts) == run(whole) == CONTENT
    (tmp_path / "torn").mkdir()
    torn = write(tmp_path / "torn" / f"a.{suffix}", {"a": NOISE, "b": NOISE[::-1]})
    data = torn.read_bytes()
    # A tar's own end is padded: a few bytes less of it are no loss.
    ends = [int(len(data) * share) for share in (0.1, 0.5, 0.8)] + [len(data) - 4] * (suffix != "tar")
    for end in ends:
        torn.write_bytes(data[:end])
        refused(torn, "Fetch it again")
    if suffix == "tar":
        torn.write_bytes(data * 2)
        refused(torn, "behind its end")
        for damaged in (data[:31232], data[:31242] + b"?" + data[31243:]):  # in the last header
            torn.write_bytes(damaged)
            refused(torn, "it ends early, or a header is wrong")
    elif suffix in ("tar.gz", "tgz", "tar.xz"):
        torn.write_bytes(data[:-6] + bytes([data[-6] ^ 1]) + data[-5:])  # in the checksum
        refused(torn, "Fetch it again")


def test_names_of_archives_and_parts(tmp_path: Path) -> None:
    (tmp_path / "a.tar.zst").write_bytes(b"(\xb5/\xfd")
    fails(LaryError, r"a\.tar\.zst is packed by zstd.* 'zstd -d' first", run, tmp_path / "a.tar.zst")
    for name in ("a.tar.part.00", "a.tar.aa", "a.tar", "a.tar.part-ab", "a.tar_003"):
        assert whole_name(name) == "a.tar"
    assert [whole_name(name) for name in ("a.TGZ", "r/a.tar.gz", "a.zip.aa")] == ["a.TGZ", "r/a.tar.gz", "a.zip"]
    assert [whole_name(name) for name in ("a.png", "tar", "a.csv")] == [""] * 3


def test_hostile_tar_is_refused(tmp_path: Path) -> None:
    for members, words in (
        *(([member(name, b"x")], "no plain path below the target") for name in NAMES),
        *(([member("a", kind=kind), member("a/evil", b"x")], words) for kind, words in KINDS.items()),
        ([member("a", b"x"), member("./a", b"y")], "twice"),
        ([member("a", b"x"), member("a/b", b"y")], "as a file and as a folder"),
        ([member("./", b"x")], "as a file and as a folder"),
    ):
        refused(write_tar(tmp_path / "a.tar.gz", member("good", b"good"), *members), words)


def test_extended_headers_that_lie_nest_or_repeat_are_refused(tmp_path: Path) -> None:
    """Each would be a size, a map or a depth that tarfile acts on before the content is read."""
    facts = (
        ({"size": "1" + "0" * 30}, "larger than allowed"),
        ({"size": "-5"}, "larger than allowed"),
        ({"size": "zebra"}, "Fetch it again"),
        ({"path": "../../evil"}, "no plain path"),
        ({"GNU.sparse.map": "a,b", "GNU.sparse.size": "z"}, "Fetch it again"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}, "Fetch it again"),
    )
    for fields, words in facts:
        entry, content = member("a", b"9" * 512)
        entry.pax_headers = fields
        refused(write_tar(tmp_path / "a.tar", member("good", b"good"), (entry, content)), words)
    name, archive = tarfile.TarInfo("long"), tmp_path / "a.tar.gz"
    name.size, name.type = 5, tarfile.GNUTYPE_LONGNAME
    nested = (name.tobuf(tarfile.GNU_FORMAT) + b"aaaa".ljust(512, b"\0")) * 5000
    archive.write_bytes(gzip.compress(nested + packed(member("good", b"good"))))
    refused(archive, "Fetch it again")
    equal = tarfile.TarInfo("same").tobuf(tarfile.USTAR_FORMAT) * 5000
    archive.write_bytes(gzip.compress(equal + bytes(10240)))
    refused(archive, "twice")
    archive.write_bytes(gzip.compress(packed(member("good", b"good")) + bytes(1 << 26)))
    refused(archive, "behind its end")


def test_hostile_zip_is_refused(tmp_path: Path) -> None:
    link, device = stat.S_IFLNK | 0o777, stat.S_IFCHR
    kinds = [("a", link, "a link"), ("a/", link, "a link"), ("a", device, "special file")]
    for name, mode, words in (*kinds, *((name, stat.S_IFREG, "no plain path") for name in ("../evil", "/evil"))):
        entry = zipfile.ZipInfo(name)
        entry.create_system, entry.external_attr = 3, mode << 16
        refused(write_zip(tmp_path / "a.zip", {"good": b"good", entry: b"x"}), words)
    archive = write_zip(tmp_path / "a.zip", {"abc": b"x" * 100_000})
    data, size = archive.read_bytes(), (100_000).to_bytes(4, "little")
    archive.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    refused(archive, "Fetch it again")
    archive.write_bytes(data.replace(b"abc", b"a\0c"))
    refused(archive, "no plain path")


def test_sizes_are_checked_before_a_byte_is_written(tmp_path: Path) -> None:
    archive, huge, header = tmp_path / "a.tar", tarfile.TarInfo("huge"), tarfile.TarInfo("x")
    huge.size, header.type, header.size = 1 << 50, tarfile.XHDTYPE, 1 << 30
    archive.write_bytes(huge.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024)
    refused(archive, "larger than allowed")
    refused(archive, "no space", Limits(total_bytes=1 << 60, free_bytes=1 << 60))
    archive.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(4096)))
    refused(archive, "header that is too large")
    sparse, content = member("a", b"x" * 512)
    holes = {"map": "0,1,1000000000000,511", "size": "1000000000511", "major": "0", "minor": "1"}
    sparse.pax_headers = {f"GNU.sparse.{key}": value for key, value in holes.items()}
    refused(write_tar(archive, (sparse, content)), "sparse")


def test_limits_on_members_total_and_growth(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "a.tar", *(member(f"f{number}", b"x" * 600) for number in range(5)))
    refused(archive, "larger than allowed, at member 5", Limits(members=4))
    refused(archive, "larger than allowed, at member 4", Limits(total_bytes=2000))
    assert len(run(archive, limits=Limits(members=5, total_bytes=3000))) == 5
    zeros, empty, small = bytes(1 << 19), (member(f"f{number}") for number in range(3000)), Limits(free_bytes=1 << 20)
    many = "more than 200 times its size"
    (tmp_path / "growth").mkdir()
    refused(write_tar(tmp_path / "growth/b.tar.gz", member("zeros", zeros * 16)), many, small)
    refused(write_tar(tmp_path / "growth/c.tar.xz", *empty), many, small)
    refused(write_zip(tmp_path / "growth/b.zip", {f"{number}": zeros for number in range(20)}), many, small)


def test_files_that_are_there_are_kept_or_stop_the_move(tmp_path: Path) -> None:
    archive, folder = write(tmp_path / "a.tar", CONTENT), tmp_path / "out" / "calvin"
    assert run(archive) == run(archive) == CONTENT
    (folder / "a.txt").write_bytes(b"own work")
    (folder / "empty").unlink()
    fails(LaryError, r"a\.txt exists with other content", run, archive)
    del (left := {**CONTENT, "calvin/a.txt": b"own work"})["calvin/empty"]
    assert contents(tmp_path / "out") == left, "nothing is moved where a conflict stops"


@pytest.mark.parametrize(("swapped", "words"), [("calvin", "exchanged"), ("a.txt", "became a link")])
def test_target_that_is_swapped_for_a_link(tmp_path: Path, swapped: str, words: str) -> None:
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir()
    (outside / "a.txt").write_text("secret")
    archive = write_tar(tmp_path / "a.tar", *(member(name, b"1") for name in ("a.txt", "calvin/a.txt", "calvin/b.txt")))

    def place(name: str) -> str:
        if name.endswith("b.txt"):
            path = next(target.glob(f"{SCRATCH}*")) / swapped
            path.rename(tmp_path / "moved")
            path.symlink_to(outside / swapped.replace("calvin", ""))
        return name

    harness.refused(outside, lambda: unpack([archive], place, target), words)
    assert (contents(outside), list(target.iterdir())) == ({"a.txt": b"secret"}, [])
