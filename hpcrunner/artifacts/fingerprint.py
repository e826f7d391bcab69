"""Whether a file or a folder has changed, told without reading what is in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

_SETTLES = 5.0
"""Seconds. What was written so short a time before a look may be written again without showing a later time: clocks
of file systems tick as rarely as every two seconds, and those of hosts differ."""


@dataclass(frozen=True)
class Fingerprint:
    digest: str
    """Of the paths, kinds, sizes, times and inodes."""
    newest: float
    """The latest change, Unix seconds."""
    size: int = 0
    """Bytes of all files."""

    def is_settled(self, now: float) -> bool:
        """Whether any change after a look at `now` shows in another digest."""
        return self.newest < now - _SETTLES


def fingerprint(source: Path) -> Fingerprint:
    """Of a file, a link or a whole folder. What can't be looked at counts as absent."""
    digest, newest, size = sha256(), 0.0, 0
    paths = [source]
    if source.is_dir() and not source.is_symlink():
        paths += (Path(folder, name) for folder, folders, files in os.walk(source) for name in [*folders, *files])
    for path in sorted(paths):
        try:
            status = path.lstat()
        except OSError:
            continue
        # The time of the inode's change can't be set back, as that of the content can.
        known = (path.relative_to(source), status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
                 status.st_ino)
        digest.update(repr(known).encode("utf-8", "surrogateescape"))
        newest = max(newest, status.st_mtime, status.st_ctime)
        size += status.st_size
    return Fingerprint(digest.hexdigest(), newest, size)
