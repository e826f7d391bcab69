"""Tars from the network: unpacked without harm, whatever they hold; packed as each generation of clients wants."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import shutil
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import services
from hpcrunner.artifacts import pack as pack_module
from hpcrunner.artifacts import unpack as unpack_module
from hpcrunner.artifacts.pack import compression_for, pack
from hpcrunner.artifacts.style import TarStyle, detect_style
from hpcrunner.artifacts.unpack import Limits, Unpacked, unpack
from hpcrunner.errors import ArchiveError

LIMITS = Limits(10 * 2**20, 1000)
Member = tuple[str, bytes] | tarfile.TarInfo


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0, mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, size, mode
    return info


def link(name: str, target: str) -> tarfile.TarInfo:
    return entry(name, tarfile.SYMTYPE, target)


def tar(*members: Member) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                archive.addfile(entry(member[0], size=len(member[1])), io.BytesIO(member[1]))
    return data.getvalue()


class Place:
    """A folder to unpack into, with neighbours that nothing may touch."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.archive = root / "artifact.tar"
        self.target = root / "inner" / "target"
        self.target.parent.mkdir()
        (root / "victim").write_text("untouched")
        (root / "victims").mkdir()

    def unpack(self, data: bytes, style: TarStyle | None = None, limits: Limits = LIMITS) -> Unpacked:
        self.archive.write_bytes(data)
        return unpack(self.archive, self.target, style, limits)

    def refuses(self, data: bytes, words: str, limits: Limits = LIMITS) -> None:
        with pytest.raises(ArchiveError, match=words):
            self.unpack(data, limits=limits)
        self.check()
        assert list(self.target.parent.iterdir()) == [], "something is left of what was refused"

    def check(self) -> None:
        assert (self.root / "victim").read_text() == "untouched"
        assert list((self.root / "victims").iterdir()) == []
        assert sorted(path.name for path in self.root.iterdir()) == ["artifact.tar", "inner", "victim", "victims"]

    def files(self) -> dict[str, bytes]:
        return {str(path.relative_to(self.target)): path.read_bytes() for path in self.target.rglob("*") if path.is_file()}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# -- what is fine --

PLAIN = tar(("a", b"1"), entry("d", tarfile.DIRTYPE, mode=0o755), ("d/b", b"22"))


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress,
                                      lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
                                      lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:])])
def test_any_compression_is_known_by_its_content(place: Place, compress: Callable[[bytes], bytes]) -> None:
    done = place.unpack(compress(PLAIN))
    assert place.files() == {"a": b"1", "d/b": b"22"}
    assert (done.files, done.bytes, done.skipped) == (2, 3, ())


@pytest.mark.parametrize("program", ["zstd", "lzop"])
def test_compression_by_a_program(place: Place, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than any buffer on the way holds."""
    if shutil.which(program):
        noise = random.Random(1).randbytes(2**20)
        data = subprocess.run([program, "-c"], input=tar(("a", noise)), capture_output=True, check=True).stdout
        assert len(data) > 2**20
        place.unpack(data)
        assert place.files() == {"a": noise}
        shutil.rmtree(place.target)
        place.refuses(data[:-6], f"damaged: {program} ends with exit code 1|ends in the middle")
        place.refuses(data[:len(data) // 2], "ends in the middle of 'a'")
    monkeypatch.setenv("PATH", "")
    place.refuses({"zstd": b"\x28\xb5\x2f\xfd", "lzop": b"\x89LZO"}[program] + bytes(600), f"no program {program}")


@pytest.mark.parametrize(("name", "style", "is_file"), [
    ("./f", TarStyle.NEW, True), ("f", TarStyle.NEW, False), ("./f", TarStyle.OLD, False), ("f", TarStyle.OLD, True),
    ("./f", None, True), ("f", None, False), ("d/f", TarStyle.OLD, False), ("./d/f", TarStyle.NEW, False)])
def test_single_files_are_told_from_folders_by_the_style(place: Place, name: str, style: TarStyle | None, is_file: bool) -> None:
    place.unpack(tar((name, b"x")), style)
    assert place.target.is_file() == is_file
    assert is_file or list(place.files().values()) == [b"x"]


def test_an_empty_tar_is_an_empty_folder(place: Place) -> None:
    place.unpack(tar())
    assert place.target.is_dir() and place.files() == {}


def test_modes_times_and_links_inside(place: Place) -> None:
    script = entry("run", size=2, mode=0o4777)
    script.mtime = 1_000_000_000
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(entry("ro", tarfile.DIRTYPE, mode=0o555))
        archive.addfile(entry("ro/secret", size=1, mode=0o000), io.BytesIO(b"s"))
        archive.addfile(script, io.BytesIO(b"#!"))
        archive.addfile(link("ro/up", "../run"))
        archive.addfile(entry("hard", tarfile.LNKTYPE, "run"))
    place.unpack(data.getvalue())
    run = (place.target / "run").stat()
    assert run.st_mode & 0o7777 == 0o755 and run.st_mtime == 1_000_000_000
    assert (place.target / "ro").stat().st_mode & 0o7777 == 0o755
    assert (place.target / "ro/secret").stat().st_mode & 0o7777 == 0o600
    assert (place.target / "ro/up").readlink() == Path("../run")
    assert (place.target / "hard").read_bytes() == b"#!"


def test_a_later_member_replaces_an_earlier_one(place: Place) -> None:
    place.unpack(tar(("a", b"old"), ("b", b""), ("a", b"new")))
    assert place.files() == {"a": b"new", "b": b""}


def test_names_that_are_not_utf8_survive(place: Place) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        archive.addfile(entry("caf\xe9", size=0))
        archive.addfile(entry("x", size=0))
    place.unpack(data.getvalue())
    assert b"caf\xe9" in [os.fsencode(path.name) for path in place.target.iterdir()]


# -- what is not --

@pytest.mark.parametrize("name", ["../victim", "/tmp/x", "a/../../victim", "..", "a/..", "./../victims/x"])
def test_names_that_lead_outside(place: Place, name: str) -> None:
    place.refuses(tar(("ok", b""), (name, b"evil")), "leads outside")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_no_devices_and_pipes(place: Place, kind: bytes) -> None:
    place.refuses(tar(("ok", b""), entry("dev", kind)), "no file")


@pytest.mark.parametrize("target", ["../victim", "/etc/passwd", "nothing", "../../victim", "link"])
def test_hard_links_only_to_files_of_the_archive(place: Place, target: str) -> None:
    place.refuses(tar(("ok", b""), link("link", "ok"), entry("hard", tarfile.LNKTYPE, target)), "hard link|leads outside")


@pytest.mark.parametrize("links", [
    [("out", "../../victims")], [("out", "/etc")], [("a", "."), ("out", "a/../..")],
    [("deep/d", ".."), ("out", "deep/d/../..")], [("deep/d", ".."), ("out", "deep/d/../../victims")],
    [("a", "b"), ("b", "c"), ("c", "../../victims")],
])
def test_links_that_lead_outside_are_left_out(place: Place, links: list[tuple[str, str]]) -> None:
    done = place.unpack(tar(("ok", b"fine"), *(link(*pair) for pair in links)))
    assert done.skipped and "leads outside" in done.skipped[-1]
    for path in place.target.rglob("*"):
        assert path.resolve().is_relative_to(place.target.resolve()) or not path.exists()
    assert place.files()["ok"] == b"fine"
    place.check()


@pytest.mark.parametrize("links", [[("out", "../../victims")], [("out", ".")], [("in", "."), ("out", "in")]])
def test_nothing_is_written_through_a_link(place: Place, links: list[tuple[str, str]]) -> None:
    try:
        place.unpack(tar(("ok", b""), *(link(*pair) for pair in links), ("out/evil", b"x")))
    except ArchiveError:
        pass
    else:
        assert (place.target / "out").is_dir() and not (place.target / "out").is_symlink()
    place.check()


def test_a_file_in_a_folders_place_and_the_reverse(place: Place) -> None:
    place.refuses(tar(("a/b", b""), ("a", b"")), "both as a folder")
    place.unpack(tar(("a", b"file"), ("a/b", b"in the folder")))
    assert place.files() == {"a/b": b"in the folder"}


def test_bombs(place: Place) -> None:
    zeros = gzip.compress(tar(("zeros", bytes(20 * 2**20))))
    place.refuses(zeros, "more than the 10 MiB")
    place.refuses(gzip.compress(tar(*((f"f{n}", bytes(3 * 2**20)) for n in range(4)))), "more than the 10 MiB")
    place.refuses(tar(*((f"f{n}", b"") for n in range(1001))), "more than 1000 files")
    place.refuses(tar(("/".join("d" * 120) + "/f", b""), ("x", b"")), "deep")
    claimed = entry("huge", size=2**50)
    place.refuses(claimed.tobuf(tarfile.GNU_FORMAT) + bytes(1024), "more than")


def test_a_bomb_in_a_header_is_not_read_into_memory(place: Place) -> None:
    header = entry("././@PaxHeader", tarfile.XHDTYPE, size=2**32).tobuf(tarfile.GNU_FORMAT)
    place.refuses(gzip.compress(header + bytes(2**22)), "header of 4 GiB")
    name = entry("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2**30).tobuf(tarfile.GNU_FORMAT)
    place.refuses(name + bytes(2**20), "header of 1 GiB")


def test_a_sparse_file_counts_with_its_whole_size(place: Place) -> None:
    if not shutil.which("tar"):
        pytest.skip("needs the program tar: install the package tar")
    hole = place.root / "victims" / "hole"
    with hole.open("wb") as file:
        file.truncate(2**32)
    data = subprocess.run(["tar", "-C", str(hole.parent), "-cSf", "-", "hole"], capture_output=True, check=True).stdout
    hole.unlink()
    place.refuses(data, "more than the 10 MiB")


@pytest.mark.parametrize(("data", "words"), [
    (b"", "empty"), (b"PK\3\4" + bytes(600), "zip"), (b"hello" * 200, "no tar"), (PLAIN[:900], "damaged|ends"),
    (gzip.compress(PLAIN)[:40], "damaged"), (b"\x1f\x8b" + bytes(600), "damaged"), (lzma.compress(PLAIN)[:60], "damaged|ends"),
    (tar(("big", bytes(5000)))[:2000], "ends in the middle of 'big'"),
])
def test_what_is_no_tar_or_half_of_one(place: Place, data: bytes, words: str) -> None:
    place.refuses(data, words)


def damaged(data: bytes, at: int) -> bytes:
    """With one bit turned over."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


PADDED = tar(("a", b"1")) + bytes(2**18)
"""Longer after its end than what is read ahead."""


@pytest.mark.parametrize("data", [
    damaged(gzip.compress(PADDED), -8), damaged(gzip.compress(PADDED), -1), gzip.compress(PADDED)[:-1],
    damaged(bz2.compress(PADDED), -3), bz2.compress(PADDED)[:-1], damaged(lzma.compress(PADDED), -30), lzma.compress(PADDED)[:-1],
], ids=["gz sum", "gz size", "gz cut", "bz2 sum", "bz2 cut", "xz", "xz cut"])
def test_checksums_of_the_compression_are_verified(place: Place, data: bytes) -> None:
    place.refuses(data, "damaged")


def test_what_follows_the_end_is_bounded(place: Place) -> None:
    place.refuses(gzip.compress(PLAIN + bytes(2**24 + 2**20)), "16 MiB after its end")
    place.unpack(gzip.compress(PLAIN + bytes(2**20)))


def pax(kind: bytes, **says: str) -> bytes:
    return tarfile.TarInfo._create_pax_generic_header(says, kind, "utf-8")  # type: ignore[attr-defined]


def sparse_map(count: int) -> bytes:
    """GNU's format 1.0: so many pieces of a file without content."""
    content = f"{count}\n".encode() + b"0\n0\n" * count
    content += bytes(-len(content) % 512)
    says = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "0"}
    return pax(tarfile.XHDTYPE, **says) + entry("s", size=len(content)).tobuf(tarfile.USTAR_FORMAT) + content


def old_sparse_map(count: int) -> bytes:
    """The older format: so many blocks of it."""
    head = bytearray(entry("s", tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    head[482] = 1
    head[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(head))[0]  # type: ignore[attr-defined]
    return bytes(head) + (b"0" * 24 * 21 + b"\1" + bytes(7)) * count


@pytest.mark.parametrize("data", [
    b"".join(pax(tarfile.XGLTYPE, **{f"x{number}": "x" * 900_000}) for number in range(10)) + PLAIN,
    b"".join(pax(tarfile.XGLTYPE, **{f"x{number}": "x" * 900_000}) + tar((f"f{number}", b""))[:512] for number in range(10)) + PLAIN,
    b"".join(pax(tarfile.XGLTYPE, **{f"x{number}": "x" * 3000}) + tar((f"f{number}", b""))[:512] for number in range(2000)) + PLAIN,
    b"".join(pax(tarfile.XHDTYPE, comment="x" * 200_000) for _ in range(40)) + PLAIN,
    sparse_map(500_000) + PLAIN,
    old_sparse_map(20_000),
    tar(*(link(f"l{number}", "x" * 900_000) for number in range(10))),
    tar(*(link(f"l{number}", "x" * 5000) for number in range(40))),
    tar(("n" * 300, b"")), tar(("/".join("n" * 60 for _ in range(80)), b"")),
], ids=["global", "global between", "many globals", "local", "sparse", "old sparse", "links", "targets", "part", "name"])
def test_headers_take_no_memory(place: Place, data: bytes) -> None:
    import tracemalloc

    compressed = gzip.compress(data, 1)
    tracemalloc.start()
    place.refuses(compressed, "header|too long|things of all its members", Limits(10**9, 10**6))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 2**20


def test_all_names_together_are_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack_module, "_MOST_NAMES", 1000)
    place.refuses(tar(*((f"{number:03}" + "x" * 97, b"") for number in range(11))), "names of more than")
    place.refuses(tar(*(link(f"{number:03}", "x" * 97) for number in range(11))), "names of more than")
    place.refuses(tar(("/".join(["d" * 20] * 20), b""), ("x", b"")), "names of more than")


def test_what_git_and_others_say_of_all_members_is_fine(place: Place) -> None:
    place.unpack(pax(tarfile.XGLTYPE, comment="0" * 40) + PLAIN)
    assert place.files() == {"a": b"1", "d/b": b"22"}


def test_links_that_no_file_system_takes_are_the_archives_fault(place: Place) -> None:
    for data in (tar(link("n" * 300, "a"), ("a", b"")), tar(("a", b""), entry("n" * 300, tarfile.LNKTYPE, "a")),
                 tar(link("a", "t" * 5000))):
        place.refuses(data, "too long")
    with pytest.raises(ArchiveError) as caught:
        place.unpack(tar(("n" * 100_000, b"")))
    assert len(str(caught.value)) < 500


def test_a_file_has_no_more_hard_links_than_the_file_system_allows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    place.refuses(tar(("a", b""), entry("b", tarfile.LNKTYPE, "a")), "'b', which can't be written: Too many links")


def test_long_ways_of_links(place: Place) -> None:
    """Nobody may be kept busy by them."""
    chain = [link(f"l{number}", f"l{number + 1}") for number in range(3000)]
    done = place.unpack(tar(link("round", "round"), *chain, link("l3000", "../../victims")), limits=Limits(2**30, 10**6))
    assert place.files() == {}
    assert len(done.skipped) == 11 and "too many folders and links" in done.skipped[1]
    place.check()


def test_of_what_is_left_out_only_some_is_told_one_by_one(place: Place) -> None:
    done = place.unpack(tar(("a", b""), *(link(f"l{number}", "/etc") for number in range(500))))
    assert len(done.skipped) == 11 and done.skipped[-1] == "490 more links are left out"


def test_entries_take_room_too(place: Place) -> None:
    place.refuses(tar(*((f"f{number}", b"") for number in range(300))), "more than the 1 MiB", Limits(2**20))
    place.refuses(tar(*(entry(f"d{number}", tarfile.DIRTYPE) for number in range(300))), "more than the 1 MiB", Limits(2**20))
    assert place.unpack(tar(("a", b"x"), ("b", b"")), limits=Limits(2**20)).taken == 2 * 4096 + 1


def test_mutated_archives_end_in_success_or_a_clear_error(tmp_path: Path) -> None:
    chance = random.Random(3)
    base = tar(("a", b"x" * 600), entry("d", tarfile.DIRTYPE), ("d/b", b"y"), link("l", "d/b"), entry("h", tarfile.LNKTYPE, "a"),
               ("ü" * 80, b"long name"), ("z" * 150, b"longer"))
    refused = 0
    for number in range(300):
        data = bytearray(base if number % 2 else gzip.compress(base))
        for _ in range(chance.choice([1, 3, 30])):
            data[chance.randrange(len(data))] = chance.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        place = Place(folder)
        try:
            place.unpack(bytes(data))
        except ArchiveError as error:
            assert str(error).startswith("artifact.tar: ")
            refused += 1
        place.check()
        assert [path.name for path in place.target.parent.iterdir()] in ([], ["target"])
    assert 50 < refused < 300


# -- results --

def made(folder: Path) -> Path:
    source = folder / "made"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "b").write_text("b")
    (source / "a").write_text("a")
    (source / ".git").mkdir()
    (source / "link").symlink_to("sub/b")
    return source


@pytest.mark.parametrize(("style", "names", "single"), [
    (TarStyle.NEW, [".git", "a", "link", "sub", "sub/b"], "./one"),
    (TarStyle.OLD, [".", "./.git", "./a", "./link", "./sub", "./sub/b"], "one")])
def test_members_are_named_as_the_client_wants(tmp_path: Path, style: TarStyle, names: list[str], single: str) -> None:
    assert pack(made(tmp_path), tmp_path / "dir.tar", style) == ()
    with tarfile.open(tmp_path / "dir.tar") as archive:
        assert archive.getnames() == names
        assert archive.getmember(names[-3]).issym() and archive.getmember(names[-1]).size == 1
    (tmp_path / "one").write_text("1")
    pack(tmp_path / "one", tmp_path / "one.tar", style)
    with tarfile.open(tmp_path / "one.tar") as archive:
        assert archive.getnames() == [single]
    assert detect_style(tmp_path / "dir.tar") is style
    back = tmp_path / "back"
    unpack(tmp_path / "one.tar", back, style, LIMITS)
    assert back.read_text() == "1"


def test_the_program_tar_reads_it(tmp_path: Path) -> None:
    pack(made(tmp_path), tmp_path / "old.tar", TarStyle.OLD)
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xf", str(tmp_path / "old.tar"), "-C", str(tmp_path / "out")], check=True)
    assert (tmp_path / "out" / "sub" / "b").read_text() == "b"


def test_what_is_no_file_is_left_out_and_said(tmp_path: Path) -> None:
    source = made(tmp_path)
    os.mkfifo(source / "pipe")
    warnings = pack(source, tmp_path / "t.tar", TarStyle.NEW)
    assert len(warnings) == 1 and "'pipe'" in warnings[0]
    (source / "hard").hardlink_to(source / "a")
    pack(source, tmp_path / "t.tar", TarStyle.NEW)
    with tarfile.open(tmp_path / "t.tar") as archive:
        assert archive.getmember("hard").islnk() and archive.getmember("hard").linkname == "a"


def test_a_file_that_shrinks_does_not_break_the_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made(tmp_path)
    (source / "a").write_bytes(b"x" * 100_000)
    original = pack_module._Packer._header

    def then_shrink(self: Any, name: str, *args: Any) -> None:
        if name == "a":
            os.truncate(source / "a", 10)
        original(self, name, *args)

    monkeypatch.setattr(pack_module._Packer, "_header", then_shrink)
    warnings = pack(source, tmp_path / "t.tar", TarStyle.NEW)
    assert len(warnings) == 1 and "shorter" in warnings[0]
    with tarfile.open(tmp_path / "t.tar") as archive:
        assert archive.getmember("a").size == 100_000 and "sub/b" in archive.getnames()


@pytest.mark.parametrize(("key", "wanted"), [("x.tar", None), ("x.tar.gz", "gz"), ("x.tgz", "gz"), ("x.tar.bz2", "bz2"),
                                             ("x.tar.xz", "xz"), ("x", None), ("x.y.tar.bzip2", "bz2")])
def test_compression_follows_the_key(tmp_path: Path, key: str, wanted: str | None) -> None:
    assert compression_for(key) == wanted
    pack(made(tmp_path), tmp_path / "t", TarStyle.NEW, wanted)
    unpack(tmp_path / "t", tmp_path / "back", None, LIMITS)
    assert (tmp_path / "back" / "sub" / "b").read_text() == "b"


GZIP = """
import sys
from pathlib import Path
if sys.argv[1] == "without": sys.modules["isal"] = None
from hpcrunner.artifacts import pack, stream, unpack
from hpcrunner.artifacts.style import TarStyle
folder = Path(sys.argv[2])
pack.pack(folder / "made", folder / "t.tar.gz", TarStyle.NEW, "gz")
unpack.unpack(folder / "t.tar.gz", folder / "back", None, unpack.Limits(10**6))
print(stream.gzip.__name__, any(name.startswith("isal.") for name in sys.modules))
"""


@pytest.mark.parametrize(("having", "expected"), [("with", "isal.igzip True"), ("without", "gzip False")])
def test_gzip_is_isals_where_that_is_installed(tmp_path: Path, having: str, expected: str) -> None:
    made(tmp_path)
    done = subprocess.run([sys.executable, "-c", GZIP, having, str(tmp_path)], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (expected, "")
    assert (tmp_path / "back" / "sub" / "b").read_text() == "b"
    assert gzip.decompress((tmp_path / "t.tar.gz").read_bytes())[257:262] == b"ustar"


@pytest.mark.parametrize("compression", [None, "gz", "bz2", "xz"])
def test_a_full_disk_is_an_error(tmp_path: Path, compression: str | None) -> None:
    with pytest.raises(OSError, match="No space"):
        pack(made(tmp_path), Path("/dev/full"), TarStyle.NEW, compression)


def refusing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    original = os.open

    def refuse(path: str, *args: int, dir_fd: int | None = None) -> int:
        if path == name:
            raise OSError(number, os.strerror(number))
        return original(path, *args, dir_fd=dir_fd)

    monkeypatch.setattr(pack_module.os, "open", refuse)


def test_what_its_owner_has_closed_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made(tmp_path)
    for name, mode, names in (("a", 0o200, [".git", "link", "sub", "sub/b"]), ("sub", 0o300, [".git", "a", "link", "sub"])):
        before = (source / name).stat().st_mode
        (source / name).chmod(mode)
        with monkeypatch.context() as patch:
            refusing(patch, name, errno.EACCES)  # root may read all
            assert pack(source, tmp_path / "t.tar", TarStyle.NEW) == (
                f"{name!r} can't be read (Permission denied); it is left out",)
        (source / name).chmod(before)
        with tarfile.open(tmp_path / "t.tar") as archive:
            assert archive.getnames() == names
    assert pack(source / "none", tmp_path / "t.tar", TarStyle.NEW)[0].startswith("'./none' can't be read (No such file")


@pytest.mark.parametrize("name", ["a", "sub"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
def test_what_may_come_back_is_not_left_out(tmp_path: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the only copy. Who is kept out though the mode says otherwise has a ticket that expired."""
    source = made(tmp_path)
    refusing(monkeypatch, name, number)
    with pytest.raises(OSError, match=os.strerror(number)):
        pack(source, tmp_path / "t.tar", TarStyle.NEW)


def test_what_vanishes_meanwhile_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "sub"):
        (tmp_path / name).mkdir()
        source = made(tmp_path / name)
        with monkeypatch.context() as patch:
            refusing(patch, name, errno.ENOENT)
            assert "No such file" in pack(source, tmp_path / "t.tar", TarStyle.NEW)[0]


def test_a_folder_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    source, calls = made(tmp_path), []
    (source / ".git" / "head").touch()

    def swap() -> None:
        calls.append(1)
        if len(calls) == 7:  # `sub` was looked at, and will be entered after `.git`.
            (source / "sub").rename(tmp_path / "away")
            (source / "sub").symlink_to(tmp_path / "secret")

    warnings = pack(source, tmp_path / "t.tar", TarStyle.NEW, check=swap)
    with tarfile.open(tmp_path / "t.tar") as archive:
        assert archive.getnames() == [".git", "a", "link", "sub", ".git/head"] and archive.getmember("sub").isdir()
    assert warnings == ("'sub' can't be read (Not a directory); it is left out",)


def test_packing_can_be_stopped(tmp_path: Path) -> None:
    class Stop(Exception): ...

    def stop() -> None:
        calls.append(1)
        if len(calls) == 7:
            raise Stop

    calls: list[int] = []
    source = made(tmp_path)
    (source / "a").write_bytes(bytes(2**24))
    with pytest.raises(Stop):
        pack(source, tmp_path / "t.tar", TarStyle.NEW, check=stop)
    assert (tmp_path / "t.tar").stat().st_size < 2**23


def test_folders_of_any_depth(tmp_path: Path) -> None:
    source = tmp_path / "made"
    source.mkdir()
    folder = os.open(source, os.O_RDONLY)
    for _ in range(1500):  # deeper than a path may be long, or descriptors are allowed
        os.mkdir("deeper", dir_fd=folder)
        inner = os.open("deeper", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=folder))
    os.close(folder)
    try:
        assert pack(source, tmp_path / "t.tar", TarStyle.NEW) == ()
    finally:
        subprocess.run(["rm", "-r", source], check=True)  # pytest can't
    with tarfile.open(tmp_path / "t.tar") as archive:
        assert archive.getnames()[-1] == "deeper/" * 1500 + "file"


def test_a_disk_that_fails_is_an_error_and_no_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> bytes:
        raise OSError(5, "Input/output error")

    source = made(tmp_path)
    monkeypatch.setattr(pack_module.os, "read", fail)
    with pytest.raises(OSError, match="Input/output error"):
        pack(source, tmp_path / "t.tar", TarStyle.NEW)


def test_a_file_that_becomes_a_pipe_or_a_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, original = made(tmp_path), os.lstat
    for change in (lambda path: os.mkfifo(path), lambda path: Path(path).symlink_to("/etc/passwd")):
        def then_change(path: str, *, dir_fd: int, change: Callable[[str], None] = change) -> os.stat_result:
            status = original(path, dir_fd=dir_fd)
            if path == "a" and stat.S_ISREG(status.st_mode):
                (source / "a").unlink()
                change(str(source / "a"))
            return status

        (source / "a").unlink()
        (source / "a").write_text("a")
        with monkeypatch.context() as patch:
            patch.setattr(pack_module.os, "lstat", then_change)
            warnings = pack(source, tmp_path / "t.tar", TarStyle.NEW)
        assert len(warnings) == 1 and "'a'" in warnings[0]


CLIENT = """
import logging, shutil, sys
from studio.storage.storage_util import tar_artifact, untar_artifact
log = logging.getLogger()
if sys.argv[1] == "tar": shutil.move(tar_artifact(sys.argv[2], None, None, log), sys.argv[3])
else: untar_artifact(sys.argv[2], sys.argv[3], log)
"""


@pytest.mark.service("studioml")
def test_the_real_client_reads_ours_and_we_read_its(tmp_path: Path, studioml: services.StudioML) -> None:
    def client(*arguments: object) -> None:
        subprocess.run([str(studioml.python), "-W", "ignore", "-c", CLIENT, *map(str, arguments)], check=True,
                       capture_output=True, env={**os.environ, "HOME": str(tmp_path)})

    source, single = made(tmp_path), tmp_path / "single"
    single.write_text("s")
    (source / "z-hard").hardlink_to(source / "a")
    for name, path in (("dir", source), ("file", single)):
        client("tar", path, tmp_path / f"{name}-theirs.tar")
        unpack(tmp_path / f"{name}-theirs.tar", tmp_path / f"{name}-here", TarStyle.NEW, LIMITS)
        pack(path, tmp_path / f"{name}-ours.tar", TarStyle.NEW)
        client("untar", tmp_path / f"{name}-there", tmp_path / f"{name}-ours.tar")
    assert detect_style(tmp_path / "dir-theirs.tar") is TarStyle.NEW
    for folder in (tmp_path / "dir-here", tmp_path / "dir-there"):
        assert (folder / "sub" / "b").read_text() == "b" and (folder / "link").is_symlink()
        assert (folder / "z-hard").read_text() == "a"
    assert (tmp_path / "file-here").read_text() == (tmp_path / "file-there").read_text() == "s"
