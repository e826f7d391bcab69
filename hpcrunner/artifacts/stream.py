"""Reading a tar of any compression without believing a word of it."""

from __future__ import annotations

import bz2
import io
import lzma
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
_LARGEST_HEADER = 2**20
"""Longest single read that tarfile may ask for: names and pax headers are read whole."""
_PROGRAMS = {b"\x28\xb5\x2f\xfd": "zstd", b"\x89LZO": "lzop"}
_BUFFER = 2**17
_CORRUPT = (tarfile.TarError, EOFError, zlib.error, _error, lzma.LZMAError, gzip.BadGzipFile, ValueError,
            OverflowError, RecursionError, KeyError, IndexError)


@contextmanager
def open_tar(archive: Path, limit: int) -> Iterator[tarfile.TarFile]:
    """The tar in `archive`, judged by its content, never by its name. At most `limit` bytes come out of it.

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
            with tarfile.open(fileobj=_Bounded(stream, limit), mode="r:", errorlevel=1,
                              encoding="utf-8", errors="surrogateescape") as tar:
                yield tar
    except ArchiveError:
        raise
    except _CORRUPT as error:
        raise ArchiveError(f"is no tar, or a damaged one: {error or type(error).__name__}") from error
    finally:
        if program is not None:
            program.kill()
            program.communicate()


def _decompress(program: str, file: IO[bytes]) -> subprocess.Popen[bytes]:
    if not shutil.which(program):
        raise ArchiveError(f"is compressed by {program}, and there is no program {program} here to unpack it")
    return subprocess.Popen([program, "-dc"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


class _Bounded(io.RawIOBase):
    """A stream that only goes forward, only so far, and in reads of a bounded size: tarfile reads names and pax
    headers whole, so a bomb in one would be in memory before anybody could look at it."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream, self._limit, self._at = stream, limit, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > _LARGEST_HEADER:
            raise ArchiveError(f"has a header of {format_size(size) if size > 0 else 'unknown size'}; no tar needs one "
                               f"over {format_size(_LARGEST_HEADER)}")
        parts = []
        while size > 0 and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
            self._at += len(part)
            # Headers and padding count too; real ones take far less than the files.
            if self._at > self._limit + self._limit // 2 + 64 * _LARGEST_HEADER:
                raise ArchiveError(f"unpacks to more than the {format_size(self._limit)} that are allowed")
        return b"".join(parts)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self._at:
            raise ArchiveError("jumps backwards")
        while self._at < position:
            if not self.read(min(position - self._at, 2**16)):
                break
        return self._at

    def tell(self) -> int:
        return self._at
