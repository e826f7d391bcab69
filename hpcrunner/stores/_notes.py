"""Notes of an unfinished transfer, from which a later call goes on, whatever became of the process that made them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcrunner.errors import StoreError

Check = Callable[[list[Any]], bool]
"""Whether lines are such as the caller writes."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""File systems without them are no reason not to work."""


class Notes:
    """A file of JSON lines. The first says what of; notes of anything else are void, and so are those with lines that
    are none of ours: a job may have written them. A line that a crash tore is left out, and what comes after it.

    Unless they are `resumed`, void notes stay in the file until `restart`, which comes before `add`."""

    def __init__(self, fd: int, path: Path, about: Mapping[str, Any], check: Check) -> None:
        self._fd, self._path = fd, path
        self._about = json.loads(json.dumps(about))
        found = _lines(fd)
        self.resumed = bool(found) and found[0] == self._about and check(found[1:])
        self.lines: list[Any] = found[1:] if self.resumed else []
        self.void: list[Any] = found if not self.resumed else []
        """Lines about something else, the first included."""
        if self.resumed:
            self._write([self._about, *self.lines])  # Without what was torn.

    def add(self, *line: object) -> None:
        os.write(self._fd, _encoded(line))

    def restart(self) -> None:
        self.resumed, self.lines = False, []
        self._write([self._about])

    def drop(self) -> None:
        """Removes the file: the transfer is done."""
        self._path.unlink(missing_ok=True)

    def _write(self, lines: list[Any]) -> None:
        os.ftruncate(self._fd, 0)
        os.write(self._fd, b"".join(map(_encoded, lines)))


@contextmanager
def open_notes(path: Path, about: Mapping[str, Any], check: Check) -> Iterator[Notes]:
    """Only the owner may read them: an upload's name is enough to write into it.

    Raises StoreError if another process is at the same transfer, and OSError.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            _lock(fd, path)
            # Another process may have been done with it, and removed it, just before it was locked.
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                yield Notes(fd, path, about, check)
                return
        finally:
            os.close(fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreError(f"{path.parent}: another process is moving the same file ({path.name} is locked)",
                         transient=True) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _lines(fd: int) -> list[Any]:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        data = file.read()
    found = []
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return found


def is_line(line: Any, *kinds: type) -> bool:
    """Whether a line is a list of so many values, of these types."""
    return isinstance(line, list) and len(line) == len(kinds) and all(
        type(value) is kind for value, kind in zip(line, kinds, strict=True))


def _encoded(line: object) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"
