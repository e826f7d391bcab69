"""Files that appear whole."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

_LONGEST = 180
"""Bytes of a name that has 255 at most with what is put around it."""


def beside(path: Path, end: str) -> Path:
    """A hidden file in the same folder, `.<name>.<end>`, for what becomes `path`. A long name is told by its digest."""
    name = os.fsencode(path.name)
    return path.with_name(f".{path.name if len(name) <= _LONGEST else sha256(name).hexdigest()}.{end}")


def sync_folder(folder: Path) -> None:
    """Returns when the names in it have reached the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems know no such thing: there a name is on the server when it was made.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str, mode: int) -> None:
    """Readable as `mode` says from the start, and under its name only when all of it is written and closed.

    Not waited for until it is on the disk: what a crash of the whole host loses of a job's files, the job itself
    notices (templates/job.sh.j2), and it is run again. On network file systems closing is what shows it to others.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:  # noqa: PTH123
            file.write(text.encode("utf-8", "surrogateescape"))
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        # That a disk is full is said without the file's name.
        raise OSError(error.errno, error.strerror, str(path)) from error
