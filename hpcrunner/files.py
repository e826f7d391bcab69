"""Files that appear whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


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
