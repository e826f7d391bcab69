"""Packs a result as the submitting client expects it.

The headers are tarfile's; the rest of its writing side is not used, which looks up users and groups for each file and
takes four times as long for a folder of small files.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hpcrunner.artifacts.style import TarStyle

_COMPRESSION = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".bzip2": "bz2", ".tbz": "bz2", ".tbz2": "bz2", ".xz": "xz"}
_BLOCK = 2**20


def compression_for(key: str) -> str | None:
    """What the suffix of an object's key promises: `gz`, `bz2`, `xz`, or None."""
    return _COMPRESSION.get(Path(key).suffix.lower())


def pack(source: Path, archive: Path, style: TarStyle, compression: str | None = None) -> tuple[str, ...]:
    """Writes the tar of a folder or a single file. Returns what had to be left out, in words.

    Links are stored as links, times in whole seconds. A file that changes its size while it is read is cut or padded
    with zeros to the size it had: the program it belongs to has ended, but something may still be writing. Raises
    OSError if the archive can't be written, or the disk fails in the middle of a file.
    """
    warnings: list[str] = []
    form = tarfile.GNU_FORMAT if style is TarStyle.OLD else tarfile.PAX_FORMAT
    with _opened(archive, compression) as out:
        size = sum(_add(out, path, name, form, warnings) for path, name in _members(str(source), style))
        # Two empty blocks end it; tar(1) fills up the last of the records in which tapes were written.
        end = 2 * tarfile.BLOCKSIZE
        out.write(bytes(end + -(size + end) % tarfile.RECORDSIZE))
    return tuple(warnings)


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


def _members(source: str, style: TarStyle) -> Iterator[tuple[str, str]]:
    """(file, member name), folders before what is in them, always in the same order."""
    old = style is TarStyle.OLD
    # Not islink and isdir: below a file, or where nothing is, there is nothing to walk through either.
    if Path(source).is_symlink() or not Path(source).is_dir():
        name = Path(source).name
        yield source, name if old else f"./{name}"
        return
    if old:
        yield source, "."
    for folder, folders, files in os.walk(source):
        folders.sort()
        inside = folder[len(source):].lstrip("/")
        prefix = ("./" if old else "") + (f"{inside}/" if inside else "")
        for name in sorted([*folders, *files]):
            yield f"{folder}/{name}", prefix + name


def _add(out: IO[bytes], path: str, name: str, form: Any, warnings: list[str]) -> int:
    """Writes one member, unless it can't be read; returns how many bytes that were."""
    try:
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            # It may have become something else since: a link elsewhere, or a pipe, which would be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        target = os.readlink(path) if kind == stat.S_IFLNK else ""  # noqa: PTH115
    except OSError as error:
        warnings.append(f"{name!r} can't be read ({error.strerror}); it is left out")
        return 0
    if kind == stat.S_IFREG:
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                warnings.append(f"{name!r} is no longer a file; it is left out")
                return 0
            header = _header(name, tarfile.REGTYPE, status, "", form)
            out.write(header)
            _copy(out, descriptor, status.st_size, name, warnings)
            return len(header) + status.st_size + -status.st_size % tarfile.BLOCKSIZE
        finally:
            os.close(descriptor)
    if kind not in (stat.S_IFDIR, stat.S_IFLNK):
        warnings.append(f"{name!r} is no file, folder or link; it is left out")
        return 0
    header = _header(name, tarfile.DIRTYPE if kind == stat.S_IFDIR else tarfile.SYMTYPE, status, target, form)
    out.write(header)
    return len(header)


def _header(name: str, kind: bytes, status: os.stat_result, target: str, form: Any) -> bytes:
    """Without owner and group: who ran it here means nothing where it is read."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, target, stat.S_IMODE(status.st_mode), int(status.st_mtime)
    info.size = status.st_size if kind == tarfile.REGTYPE else 0
    return info.tobuf(form, "utf-8", "surrogateescape")


def _copy(out: IO[bytes], descriptor: int, size: int, name: str, warnings: list[str]) -> None:
    left = size
    while left and (data := os.read(descriptor, min(left, _BLOCK))):
        out.write(data)
        left -= len(data)
    if left:
        warnings.append(f"{name!r} became shorter while it was read; zeros replace its end")
    left += -size % tarfile.BLOCKSIZE
    while left:
        out.write(bytes(min(left, _BLOCK)))
        left -= min(left, _BLOCK)
