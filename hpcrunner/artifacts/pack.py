"""Packs a result as the submitting client expects it.

The headers are tarfile's; the rest of its writing side is not used, which looks up users and groups for each file and
takes four times as long for a folder of small files. Folders are entered by their descriptors, one by one: a program
that puts a link in a folder's place makes us read nothing elsewhere.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcrunner.artifacts.style import TarStyle

_COMPRESSION = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".bzip2": "bz2", ".tbz": "bz2", ".tbz2": "bz2", ".xz": "xz"}
_BLOCK = 2**20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A file may have become something else since it was looked at: a link elsewhere, or a pipe, which would be waited for.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV)
"""It vanished, or is something else by now. Nothing else is left out: a disk that fails may come back."""


def compression_for(key: str) -> str | None:
    """What the suffix of an object's key promises: `gz`, `bz2`, `xz`, or None."""
    return _COMPRESSION.get(Path(key).suffix.lower())


def pack(source: Path, archive: Path, style: TarStyle, compression: str | None = None, *,
         not_before: float = 0.0, check: Callable[[], None] = lambda: None) -> tuple[str, ...]:
    """Writes the tar of a folder or a single file. Returns what had to be left out for good, in words: what vanished,
    what this user may not read, what is no file.

    Links are stored as links, several names of one file as hard links, times in whole seconds, and none of them earlier
    than `not_before` (Unix seconds). A file that changes its size while it is read is cut or padded with zeros to the
    size it had: the program it belongs to has ended, but something may still be writing. `check` is called for each
    member and each MiB, and may raise. Raises OSError if the archive can't be written, or the disk fails.
    """
    form = tarfile.GNU_FORMAT if style is TarStyle.OLD else tarfile.PAX_FORMAT
    with _opened(archive, compression) as out:
        packer = _Packer(out, form, not_before, check)
        packer.pack(source, style)
        # Two empty blocks end it; tar(1) fills up the last of the records in which tapes were written.
        end = 2 * tarfile.BLOCKSIZE
        out.write(bytes(end + -(packer.size + end) % tarfile.RECORDSIZE))
    return tuple(packer.warnings)


def _opened(archive: Path, compression: str | None) -> Any:
    """A file-like object to write to."""
    if compression == "gz":
        try:
            from isal import igzip_threaded
        except ImportError:
            import gzip

            return gzip.open(archive, "wb", compresslevel=1)
        opened: Any = igzip_threaded.open
        return opened(archive, "wb", compresslevel=1, threads=1)
    if compression == "bz2":
        import bz2

        return bz2.open(archive, "wb")
    if compression == "xz":
        import lzma

        return lzma.open(archive, "wb")
    return archive.open("wb", buffering=_BLOCK)


class _Packer:
    def __init__(self, out: Any, form: Any, not_before: float, check: Callable[[], None]) -> None:
        self._out, self._form, self._not_before, self._check = out, form, not_before, check
        self._names: dict[tuple[int, int], str] = {}
        self.size = 0
        self.warnings: list[str] = []

    def pack(self, source: Path, style: TarStyle) -> None:
        """Folders before what is in them, always in the same order."""
        is_old = style is TarStyle.OLD
        parent = os.open(source.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if source.is_symlink() or not source.is_dir():
                self._add(parent, source.name, source.name if is_old else f"./{source.name}")
                return
            if is_old:
                self._add(parent, source.name, ".")
            todo = [""]
            while todo:
                inside = todo.pop()
                prefix = ("./" if is_old else "") + (f"{inside}/" if inside else "")
                with self._entered(parent, (source.name, *inside.split("/")) if inside else (source.name,),
                                   prefix[:-1] or ".") as folder:
                    if folder is None:
                        continue
                    found = [f"{inside}/{name}" if inside else name for name in sorted(os.listdir(folder))  # noqa: PTH208
                             if self._add(folder, name, prefix + name)]
                todo += reversed(found)
        finally:
            os.close(parent)

    @contextmanager
    def _entered(self, parent: int, path: tuple[str, ...], shown: str) -> Iterator[int | None]:
        """A descriptor of the folder `path` below another one; None if it can't be read, which is said."""
        folder = os.dup(parent)
        try:
            for part in path:
                try:
                    inner = os.open(part, _FOLDER, dir_fd=folder)
                except OSError as error:
                    self._left_out(shown, error, _status(folder, part))
                    yield None
                    return
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)

    def _add(self, folder: int, name: str, shown: str) -> bool:
        """Writes one member, unless it can't be read. Whether it is a folder."""
        self._check()
        try:
            status = os.lstat(name, dir_fd=folder)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFREG:
                descriptor = os.open(name, _FILE, dir_fd=folder)
            target = os.readlink(name, dir_fd=folder) if kind == stat.S_IFLNK else ""
        except OSError as error:
            self._left_out(shown, error, _status(folder, name))
            return False
        if kind == stat.S_IFREG:
            try:
                self._file(descriptor, shown)
            finally:
                os.close(descriptor)
        elif kind in (stat.S_IFDIR, stat.S_IFLNK):
            self._header(shown, tarfile.DIRTYPE if kind == stat.S_IFDIR else tarfile.SYMTYPE, status, target)
        else:
            self.warnings.append(f"{shown!r} is no file, folder or link; it is left out")
        return kind == stat.S_IFDIR

    def _file(self, descriptor: int, shown: str) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.warnings.append(f"{shown!r} is no longer a file; it is left out")
            return
        inode = (status.st_dev, status.st_ino)
        if inode in self._names:
            self._header(shown, tarfile.LNKTYPE, status, self._names[inode])
            return
        if status.st_nlink > 1:
            self._names[inode] = shown
        self._header(shown, tarfile.REGTYPE, status)
        left = status.st_size
        while left and (data := os.read(descriptor, min(left, _BLOCK))):
            self._check()
            self._out.write(data)
            left -= len(data)
        if left:
            self.warnings.append(f"{shown!r} became shorter while it was read; zeros replace its end")
        padding = -status.st_size % tarfile.BLOCKSIZE
        self.size += status.st_size + padding
        left += padding
        while left:
            self._check()
            self._out.write(bytes(min(left, _BLOCK)))
            left -= min(left, _BLOCK)

    def _header(self, shown: str, kind: bytes, status: os.stat_result, target: str = "") -> None:
        """Without owner and group: who ran it here means nothing where it is read."""
        info = tarfile.TarInfo(shown)
        info.type, info.linkname = kind, target
        info.mode, info.mtime = stat.S_IMODE(status.st_mode), int(max(status.st_mtime, self._not_before))
        info.size = status.st_size if kind == tarfile.REGTYPE else 0
        header = info.tobuf(self._form, "utf-8", "surrogateescape")
        self._out.write(header)
        self.size += len(header)

    def _left_out(self, shown: str, error: OSError, status: os.stat_result) -> None:
        """Says so. Raises the error again if it may be another one tomorrow."""
        if error.errno not in _GONE and not (error.errno in (errno.EACCES, errno.EPERM) and _is_closed(status)):
            raise error
        self.warnings.append(f"{shown!r} can't be read ({error.strerror}); it is left out")


def _status(folder: int, name: str) -> os.stat_result:
    """Of what can't be looked at, that of its folder, which is the reason."""
    try:
        return os.lstat(name, dir_fd=folder)
    except OSError:
        return os.fstat(folder)


def _is_closed(status: os.stat_result) -> bool:
    """Whether its mode keeps this user out. If not, a network file system may only want a ticket that has expired."""
    whose = 6 if status.st_uid == os.geteuid() else 3 if status.st_gid in (os.getegid(), *os.getgroups()) else 0
    wanted = 0o5 if stat.S_ISDIR(status.st_mode) else 0o4
    return status.st_mode >> whose & wanted != wanted
