"""File systems of their own for tests in which a disk is full or read-only."""

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
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    done = mount("-o", f"remount,{options}", str(folder))
    assert done.returncode == 0, done.stderr


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)
