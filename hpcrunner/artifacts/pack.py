"""Packs a result as the submitting client expects it."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hpcrunner.artifacts.style import TarStyle

_COMPRESSION = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".bzip2": "bz2", ".tbz": "bz2", ".tbz2": "bz2", ".xz": "xz"}


def compression_for(key: str) -> str | None:
    """What the suffix of an object's key promises: `gz`, `bz2`, `xz`, or None."""
    return _COMPRESSION.get(Path(key).suffix.lower())


def pack(source: Path, archive: Path, style: TarStyle, compression: str | None = None) -> tuple[str, ...]:
    """Writes the tar of a folder or a single file. Returns what had to be left out, in words.

    Links are stored as links. A file that changes its size while it is read is cut or padded with zeros to the
    size it had: the program it belongs to has ended, but something may still be writing.
    """
    warnings: list[str] = []
    form = tarfile.GNU_FORMAT if style is TarStyle.OLD else tarfile.PAX_FORMAT
    with tarfile.open(archive, f"w:{compression or ''}", format=form) as tar:  # type: ignore[call-overload]
        for path, name in _members(source, style):
            _add(tar, path, name, warnings)
    return tuple(warnings)


def _members(source: Path, style: TarStyle) -> Iterator[tuple[Path, str]]:
    """(file, member name), folders before what is in them, always in the same order."""
    old = style is TarStyle.OLD
    if source.is_symlink() or not source.is_dir():
        yield source, source.name if old else f"./{source.name}"
        return
    if old:
        yield source, "."
    for folder, folders, files in os.walk(source):
        folders.sort()
        relative = Path(folder).relative_to(source)
        for name in sorted([*folders, *files]):
            inside = str(relative / name)
            yield Path(folder, name), f"./{inside}" if old else inside


def _add(tar: tarfile.TarFile, path: Path, name: str, warnings: list[str]) -> None:
    try:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            warnings.append(f"{name!r} is no file, folder or link; it is left out")
            return
        info = tar.gettarinfo(path, arcname=name)
        info.name = name  # tarfile strips what it takes for noise, such as `./`.
        # Who ran it here means nothing where it is read.
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        if not info.isreg():
            if info.islnk():
                info.type, info.size = tarfile.REGTYPE, status.st_size
            else:
                tar.addfile(info)
                return
        with path.open("rb") as file:
            tar.addfile(info, _Exactly(file, info.size, name, warnings))  # type: ignore[arg-type]
    except OSError as error:
        if isinstance(error.filename, (str, Path)) and str(error.filename) != str(path):
            raise  # The archive itself can't be written.
        if error.filename is None:
            raise
        warnings.append(f"{name!r} can't be read ({error.strerror}); it is left out")


class _Exactly:
    """As many bytes of a file as its header says."""

    def __init__(self, file: IO[bytes], size: int, name: str, warnings: list[str]) -> None:
        self._file, self._left, self._name, self._warnings = file, size, name, warnings
        self._short = False

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        data = self._file.read(size)
        if len(data) < size:
            if not self._short:
                self._warnings.append(f"{self._name!r} became shorter while it was read; zeros replace its end")
                self._short = True
            data += bytes(size - len(data))
        self._left -= size
        return data
