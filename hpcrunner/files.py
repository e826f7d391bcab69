"""Files that are whole and on the disk before their names appear."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_THREADS = 8


def write_durably(path: Path, text: str, mode: int) -> None:
    """Readable as `mode` says from the start. The folder is synced too."""
    _write([(path, text, mode)])


def write_all_durably(files: Sequence[tuple[Path, str, int]]) -> None:
    """Many files at the cost of few waits: a sync is a round trip or a wait for the disk, and needs no processor.

    Files of one folder should stand together.
    """
    share = max(8, -(-len(files) // _THREADS))
    shares = [files[start:start + share] for start in range(0, len(files), share)]
    if len(shares) < 2:
        _write(files)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(shares)) as pool:
        list(pool.map(_write, shares))


def _write(files: Sequence[tuple[Path, str, int]]) -> None:
    for path, text, mode in files:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:  # noqa: PTH123
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    for folder in dict.fromkeys(path.parent for path, _, _ in files):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
