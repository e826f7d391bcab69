"""File systems of their own for tests: a disk that is full or read-only, or one on which files can share blocks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str, uid: int = 0) -> Iterator[Path]:
    """Mounts one of this size at `folder`, which is made; it belongs to the user. Skips the test where nobody may."""
    folder.mkdir(exist_ok=True)
    done = mount("-t", "tmpfs", "-o", f"size={size},mode=700,uid={uid}", "tmpfs", str(folder))
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()}): run the tests as root, where that is allowed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def mounted(make: str, folder: Path) -> Iterator[Path]:
    """A file system of 400 MiB on a loop device in `folder`. Raises CalledProcessError."""
    image, root = folder / "disk", folder / "mounted"
    root.mkdir()
    with image.open("wb") as disk:
        disk.truncate(400 * 2**20)
    for command in ([make, "-q", str(image)], ["mount", "-o", "loop", str(image), str(root)]):
        subprocess.run(command, check=True, capture_output=True, text=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", str(root)], check=True)


def remount(folder: Path, options: str) -> None:
    done = mount("-o", f"remount,{options}", str(folder))
    assert done.returncode == 0, done.stderr


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)
