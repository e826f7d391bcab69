"""Which images lie in the folder of images, and how one is removed while others may reach for it.

An image's time is that of its last use: `Images.order` sets it before anything relies on the image. Removing renames
first and looks at the time again: if somebody came in between, the image gets its name back; who came later finds none,
and it is built again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from hpcrunner.images.build import file_digest
from hpcrunner.images.cache import is_locked

_NAME = re.compile(r"([0-9a-f]{64})\.(sif|venv)|\.([0-9a-f]{64})\..*\.sif")
_GONE = re.compile(r"\.gone-.*")
_BUILDING = 86400.0
"""Seconds for which what is not whole counts as being built, even if nobody holds its lock: there may be none."""


@dataclass(frozen=True)
class Kept:
    digest: str
    path: Path
    kind: str
    """`image`, `venv`, or `part`: not whole."""
    size: int
    used: float
    """Unix seconds."""
    about: str


def images(folder: Path) -> list[Kept]:
    """All that lie in `image_dir`, used longest ago first. Files that hpcrunner did not make are none."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if _GONE.fullmatch(path.name):
            _delete(path)  # Whoever was at it was killed.
        elif match:
            digest = match[1] or match[3]
            is_whole = match[2] == "sif" or (match[2] == "venv" and (path / ".hpcrunner-ready").exists())
            kind = ("image" if match[2] == "sif" else "venv") if is_whole else "part"
            try:
                found.append(Kept(digest, path, kind, _size(path), path.lstat().st_mtime,
                                  str(_note(folder, digest, "built.json").get("summary", ""))))
            except FileNotFoundError:
                continue
    return sorted(found, key=lambda kept: kept.used)


def is_being_built(folder: Path, kept: Kept) -> bool:
    return is_locked(folder / "builds" / kept.digest / "lock") or (
        kept.kind == "part" and kept.used > time.time() - _BUILDING)


def remove(kept: Kept) -> bool:
    """False if somebody came to use it meanwhile; then it is still there."""
    gone = kept.path.with_name(f".gone-{kept.path.name}-{os.getpid()}")
    try:
        kept.path.rename(gone)
    except FileNotFoundError:
        return True
    if gone.lstat().st_mtime != kept.used:
        gone.rename(kept.path)
        return False
    _delete(gone)
    return True


def problem_of(folder: Path, kept: Kept) -> str:
    """What is wrong with an image; empty if nothing is, or if nothing can be told."""
    if kept.kind == "venv":
        python = kept.path / "bin" / "python"
        return "" if python.exists() else f"its interpreter {os.path.realpath(python)} is gone"
    if kept.kind == "part":
        return ""
    wanted = _note(folder, kept.digest, "built.json").get("sha256")
    if wanted and (found := file_digest(kept.path)) != wanted:
        return f"its SHA-256 is {found}, and was {wanted} when it was built"
    return ""


def _note(folder: Path, digest: str, name: str) -> dict[str, object]:
    try:
        note: dict[str, object] = json.loads((folder / "builds" / digest / name).read_text())
        return note
    except (OSError, ValueError):
        return {}


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.lstat().st_size
    return sum(os.lstat(f"{folder}/{name}").st_size for folder, _, files in os.walk(path) for name in files)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
