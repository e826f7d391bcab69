"""Files that appear whole, and files that are what they seem."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast


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


def open_plain(path: Path | str, flags: int, mode: int = 0o600, *, folder: int | None = None) -> BinaryIO:
    """Opens a file where a program may have put anything: a link to make us read or write elsewhere, a pipe to have us
    wait for ever. `path` may be below the open `folder`. Raises OSError, also for what is no file.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    how = "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb"
    return cast("BinaryIO", open(descriptor, how))  # noqa: PTH123
