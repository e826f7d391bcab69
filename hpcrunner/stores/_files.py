"""The local side of a transfer: disks that are full, files that are read piece by piece."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcrunner.errors import StoreError
from hpcrunner.stores.base import Progress, unwatched
from hpcrunner.units import format_size

PIECE = 127 * 2**10
"""Bytes in memory at a time, for each connection. glibc has the kernel make room anew for every larger piece
(mallopt(3), M_MMAP_THRESHOLD): with four times as many, downloads take three times as long."""
_LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


@contextmanager
def disk_fault(path: Path) -> Iterator[None]:
    """Makes an OSError of this host's file system a StoreError that names the file."""
    try:
        yield
    except OSError as error:
        hint = "; free space there, and it goes on" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise StoreError(f"{path}: {error.strerror or error}{hint}", transient=error.errno not in _LASTING,
                         errno=error.errno) from error


def require_space(path: Path, size: int) -> None:
    """Raises StoreError if `size` more bytes certainly don't fit where `path` lies: before anything is moved."""
    status = os.statvfs(path.parent)
    free = status.f_bavail * status.f_frsize
    if size > free:
        raise StoreError(f"{path}: no space left: {format_size(size)} are needed and {format_size(free)} are free; "
                         "free space there, and it goes on", transient=True, errno=errno.ENOSPC)


def write_all(fd: int, data: bytes) -> None:
    """Where the last one ended. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def write_pieces(fd: int, pieces: list[bytes], at: int) -> None:
    """One after the other, from `at`. Raises OSError."""
    written = os.pwritev(fd, pieces, at)
    rest = memoryview(b"".join(pieces)) if written < sum(map(len, pieces)) else memoryview(b"")
    while written < len(rest):
        written += os.pwrite(fd, rest[written:], at + written)


@dataclass(frozen=True)
class Identity:
    """Tells whether a file was changed."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, fd: int) -> Identity:
        status = os.fstat(fd)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def check_unchanged(fd: int, identity: Identity, path: Path) -> None:
    """Raises StoreError."""
    if Identity.of(fd) != identity:
        raise StoreError(f"{path}: changed while it was stored", transient=True)


@dataclass(frozen=True)
class Digests:
    """Of a small object, told to the store when it is sent."""

    md5: bytes
    sha256: str
    """Hexadecimal."""

    @classmethod
    def of(cls, pieces: Iterable[bytes]) -> Digests:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        for data in pieces:
            sha256.update(data)
            md5.update(data)
        return cls(md5.digest(), sha256.hexdigest())


class Window:
    """A part of an open file, as HTTP clients read bodies. Several windows of one file don't disturb each other.

    `progress` is asked whenever something is read, so that whoever must not send any more stops amidst a body.
    """

    def __init__(self, fd: int, start: int, end: int, progress: Progress = unwatched) -> None:
        self._fd, self._start, self._size, self._at, self._progress = fd, start, end - start, 0, progress

    def read(self, size: int | None = -1) -> bytes:
        """May return more than asked for: clients ask for so little that the calls cost more than the bytes."""
        self._progress(0)
        rest = self._size - self._at
        wanted = rest if size is None or size < 0 else min(rest, max(size, PIECE))
        data = os.pread(self._fd, wanted, self._start + self._at)
        self._at += len(data)
        return data

    def pieces(self) -> Iterator[bytes]:
        """All of it, from its start."""
        self.seek(0)
        while data := self.read(1):
            yield data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def __len__(self) -> int:
        return self._size
