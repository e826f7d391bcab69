"""Reading a tar of any compression without believing a word of it."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from hpcrunner.errors import ArchiveError
from hpcrunner.units import format_size


def _gzip() -> tuple[Any, Any]:
    """The fastest module to read gzip with, and the exception that it has for itself."""
    try:
        from isal import igzip, isal_zlib
    except ImportError:
        import gzip

        return gzip, zlib.error
    return igzip, isal_zlib.error


gzip, _error = _gzip()
_LARGEST_HEADER = 2**18
"""Bytes that describe one member: long names, pax headers and maps of sparse files, which tarfile reads whole."""
_LARGEST_GLOBAL = 4096
_MOST_GLOBALS = 100
"""Bytes of a pax header for all members that follow, and how many things it may say; git writes one of 52 bytes."""
_LONGEST_PART, _LONGEST_NAME, _LONGEST_TARGET = 255, 4096, 4095
"""Bytes that Linux allows between two slashes, in a path, and in what a link says."""
_LONGEST_END = 2**24
"""Bytes after the last member; tar(1) fills up one record."""
_PROGRAMS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x89LZO": "lzop"}
_BUFFER = 2**17
_CORRUPT = (tarfile.TarError, EOFError, zlib.error, _error, lzma.LZMAError, gzip.BadGzipFile, ValueError,
            OverflowError, RecursionError, KeyError, IndexError)


def longest(limit: int) -> int:
    """Bytes of a tar that unpacks to `limit`: headers and padding count too; real ones take far less than the files."""
    return limit + limit // 2 + 64 * _LARGEST_HEADER


class Tar:
    """The members of a tar, one after the other."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = _Bounded(stream, limit)
        self._file = tarfile.TarFile(fileobj=self._stream, errorlevel=1, tarinfo=_Member, encoding="utf-8",
                                     errors="surrogateescape")

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        while True:
            self._stream.headers = _LARGEST_HEADER
            member = self._file.next()
            # tarfile remembers every member; a million of them is a lot of memory.
            self._file.members = []  # type: ignore[attr-defined]
            if member is None:
                return
            self._stream.headers = None
            if len(self._file.pax_headers) > _MOST_GLOBALS:
                raise ArchiveError(f"says more than {_MOST_GLOBALS} things of all its members")
            _check_names(member)
            yield member

    def content(self, member: tarfile.TarInfo) -> Any:
        """A file-like object with the content of the last member that came."""
        # Of a plain file it comes next, and is read without the layers that tarfile puts between.
        return self._file.extractfile(member) if member.issparse() else self._stream

    def read_end(self) -> None:
        """What follows the last member, where some compressions have their checksum."""
        self._stream.headers, left = None, _LONGEST_END
        while data := self._stream.read(2**16):
            left -= len(data)
            if left < 0:
                raise ArchiveError(f"goes on for more than {format_size(_LONGEST_END)} after its end")


@contextmanager
def open_tar(archive: Path, limit: int, *, is_whole: bool = True) -> Iterator[Tar]:
    """The tar in `archive`, judged by its content, never by its name. At most `limit` bytes of files come out of it.
    Unless only the beginning is wanted, `is_whole`, checksums are verified at the end of the `with` block.

    Raises ArchiveError, also for whatever is wrong with it while it is read.
    """
    program: subprocess.Popen[bytes] | None = None
    try:
        with archive.open("rb", buffering=_BUFFER) as file:
            head = file.read(512)
            file.seek(0)
            stream: Any = file
            if name := next((name for magic, name in _PROGRAMS.items() if head.startswith(magic)), None):
                program = _decompress(name, file)
                assert program.stdout is not None
                stream = program.stdout
            elif head[:2] == b"\x1f\x8b":
                stream = gzip.open(file)
            elif head[:3] == b"BZh":
                stream = bz2.BZ2File(file)
            elif head[:6] == b"\xfd7zXZ\0" or head[:3] == b"\x5d\0\0":
                stream = lzma.LZMAFile(file)  # noqa: SIM115 - lives as long as `file`
            elif head[:4] == b"PK\3\4":
                raise ArchiveError("is a zip file; it must be a tar")
            elif not head:
                raise ArchiveError("is empty, not even a tar without files")
            tar = Tar(stream, limit)
            yield tar
            if is_whole and stream is not file:
                tar.read_end()
                if program is not None and program.wait():
                    raise ArchiveError(f"is damaged: {name} ends with exit code {program.returncode}")
    except ArchiveError:
        raise
    except _CORRUPT as error:
        raise _damaged(error) from error
    except OSError as error:
        # bz2 has no exception of its own for what is damaged.
        if error.errno is None:
            raise _damaged(error) from error
        raise
    finally:
        if program is not None:
            program.kill()
            program.communicate()


def _damaged(error: Exception) -> ArchiveError:
    return ArchiveError(f"is no tar, or a damaged one: {str(error)[:200] or type(error).__name__}")


def _decompress(program: str, file: IO[bytes]) -> subprocess.Popen[bytes]:
    if not shutil.which(program):
        raise ArchiveError(f"is compressed by {program}, and there is no program {program} here to unpack it")
    # The program gets the descriptor, which is where Python's buffer has read to.
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    return subprocess.Popen([program, "-dc"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


class _Member(tarfile.TarInfo):
    """Looks at each header before tarfile reads what it announces."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        member = super().frombuf(buf, encoding, errors)
        if member.type == tarfile.XGLTYPE and member.size > _LARGEST_GLOBAL:
            raise ArchiveError(f"has a header of {format_size(member.size)} for all its members; no tar needs one over "
                               f"{format_size(_LARGEST_GLOBAL)}")
        return member


def _check_names(member: tarfile.TarInfo) -> None:
    """Raises ArchiveError for names that no Linux file system takes."""
    name = os.fsencode(member.name)
    if len(name) > _LONGEST_NAME or any(len(part) > _LONGEST_PART for part in name.split(b"/")):
        raise ArchiveError(f"holds the name {member.name!r:.200}, which is too long")
    if len(os.fsencode(member.linkname)) > _LONGEST_TARGET:
        raise ArchiveError(f"holds the link {member.name!r:.200}, whose target is too long")


class _Bounded(io.RawIOBase):
    """A stream that only goes forward, and only so far. While `headers` is set, no more bytes than that are read."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream, self._limit, self._at = stream, limit, 0
        self.headers: int | None = _LARGEST_HEADER

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self.headers is not None:
            # tarfile reads them whole, so a bomb in one would be in memory before anybody could look at it.
            self.headers -= size
            if size < 0 or size > _LARGEST_HEADER:
                raise ArchiveError(f"has a header of {format_size(size) if size > 0 else 'unknown size'}; no tar needs "
                                   f"one over {format_size(_LARGEST_HEADER)}")
            if self.headers < 0:
                raise ArchiveError(f"has more than {format_size(_LARGEST_HEADER)} of headers for one member")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        parts = []
        while size > 0 and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
            self._at += len(part)
            if self._at > longest(self._limit):
                raise ArchiveError(f"unpacks to more than the {format_size(self._limit)} that are allowed")
        return b"".join(parts)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self._at:
            raise ArchiveError("jumps backwards")
        while self._at < position:
            if not self._read(min(position - self._at, 2**16)):
                break
        return self._at

    def tell(self) -> int:
        return self._at
