"""SHA-256 of files and of whole folders."""

from __future__ import annotations

import os
import stat
from hashlib import sha256
from pathlib import Path

_BLOCK = 2**20


def digest_of(path: Path) -> str:
    """In hexadecimal: of a file its content's, as sha256sum(1) says; of a folder that of the names, kinds, modes and
    contents of all that is in it."""
    if path.is_dir():
        whole = sha256()
        for line in _lines(path):
            whole.update(line)
        return whole.hexdigest()
    return _file(path)


def _file(path: Path | str) -> str:
    found, buffer = sha256(), bytearray(_BLOCK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        while size := file.readinto(buffer):
            found.update(view[:size])
    return found.hexdigest()


def _lines(root: Path) -> list[bytes]:
    lines = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = f"{folder}/{name}"
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                what = "link " + os.readlink(path)  # noqa: PTH115
            elif stat.S_ISDIR(status.st_mode):
                what = "folder"
            else:
                what = "file " + _file(path)
            relative = os.path.relpath(path, root)
            lines.append(os.fsencode(f"{stat.S_IMODE(status.st_mode):o} {what} {relative}\0"))
    return lines
