"""How clients of different ages lay out the tar of an artifact. Each misreads the other's results."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from hpcrunner.artifacts.stream import open_tar


class TarStyle(Enum):
    """For a folder with `x` in it, and for a single file."""

    NEW = "new"
    """Clients since 0.0.44: `x`, and `./file`."""
    OLD = "old"
    """Clients up to 0.0.34: `.` and `./x`, and `file`."""


def style_of(name: str) -> TarStyle:
    """By the first member of a folder's tar."""
    return TarStyle.OLD if name == "." or name.startswith("./") else TarStyle.NEW


def detect_style(archive: Path) -> TarStyle | None:
    """The style in which a folder (a job's workspace) was packed; None for an empty tar. Raises ArchiveError."""
    with open_tar(archive, 2**20, is_whole=False) as tar:
        first = next(iter(tar), None)
        return None if first is None else style_of(first.name or ".")
