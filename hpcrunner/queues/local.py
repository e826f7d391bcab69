"""The StudioML client's queues in a local directory.

Two generations share one root, `$STUDIOML_HOME/queue`:

- clients since 0.0.45: a folder per queue, a file per message, named by a random uuid and written in
  place under the soft lock `lock.lock`. The queue exists as long as its folder does.
- older ones: a single queue `local`, its messages flat in the root, which exists as long as the marker
  `is_active.queue` does; locked by `../local_queue.lock`.

A message is taken by renaming it into a folder of this install's beside the queues: a rename succeeds for
one runner only, and a crash leaves the message where the next tick of the same install finds it. That folder
stays, as a witness: where it is missing, so is the file system that had the queues.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar

from hpcrunner.config import kinds
from hpcrunner.config.kinds import Option
from hpcrunner.errors import UnavailableError
from hpcrunner.queues.base import Delivery

_LOCK = "lock.lock"
_MARKER = "is_active.queue"
_FLAT = "local"
_NOT_MESSAGES = frozenset({_LOCK, _MARKER})

_LOCK_WAIT = 5.0
"""Seconds to wait for the client's lock, which it holds for milliseconds."""
_STALE_EMPTY = 30.0
"""An empty lock file is a crashed client's (or one that is just being made): after this many seconds it is broken."""
_STALE = 600.0
"""The same for a lock whose holder is on another host, so nobody here can tell whether it lives."""
_SETTLES = 10.0
"""Seconds that a file which is not whole JSON may still be in the making, by a writer that takes no lock."""
_LARGEST = 256 * 2**20


class LocalQueues:
    """All queues under one root that match. The root itself must exist: an absent one is a mount that is
    missing, not a queue that was deleted."""

    options: ClassVar[Mapping[str, Option]] = {
        "root": Option(kinds.path(), "${STUDIOML_HOME:-~/.studioml}/queue",
                       "Folder of the client's local queues, one folder each."),
        "match": Option(kinds.regex(), "^local", "Only queues whose name matches."),
        "mismatch": Option(kinds.regex(), None, "But none of these."),
    }

    def __init__(self, options: Mapping[str, Any], install_id: str) -> None:
        self._root = Path(options["root"])
        self._match, self._mismatch = options["match"], options["mismatch"]
        self._claims = self._root / f".hpcrunner-{install_id}"

    def names(self) -> list[str]:
        try:
            found = {entry.name for entry in os.scandir(self._root) if entry.is_dir(follow_symlinks=False)
                     and not entry.name.startswith(".")}
        except OSError as error:
            raise UnavailableError(
                f"local queues: {self._root} can't be read: {error.strerror}; the StudioML client makes it at the "
                "first submission to a local queue", transient=True) from error
        if (self._root / _MARKER).exists():
            found.add(_FLAT)
        return sorted(name for name in found if self._match.search(name)
                      and not (self._mismatch and self._mismatch.search(name)))

    def doubt(self, queue: str) -> str:
        witness = self._claims / queue
        try:
            witness.stat()
        except OSError as error:
            return (f"local queues: {witness}, which was made when a message of that queue was taken, can't be seen: "
                    f"{error.strerror}; a mount is missing at {self._root}, or somebody removed that folder: its "
                    "experiments go on")
        return ""

    def receive(self, queue: str) -> Delivery | None:
        if claimed := self._claimed(queue):
            return claimed
        for folder in self._folders(queue):
            if not any(_messages(folder)):
                # Looking costs nothing; only taking needs the lock.
                if folder != self._root and (folder / _LOCK).exists():
                    self._clear(folder)
                continue
            with self._lock(folder):
                for path in _messages(folder):
                    if _is_whole(path) and self._claim(queue, path):
                        return self._claimed(queue)
        return None

    def acknowledge(self, delivery: Delivery) -> None:
        Path(delivery.receipt).unlink(missing_ok=True)

    def release(self, delivery: Delivery) -> None:
        claim = Path(delivery.receipt)
        for folder in self._folders(delivery.queue):
            if folder.is_dir():
                claim.rename(folder / claim.name)
                return

    def peek(self, queue: str) -> Iterator[bytes]:
        for folder in (self._claims / queue, *self._folders(queue)):
            for path in _messages(folder):
                if _is_whole(path):
                    yield _read(path)

    def _folders(self, queue: str) -> list[Path]:
        folders = [self._root / queue]
        if queue == _FLAT and (self._root / _MARKER).exists():
            folders.append(self._root)
        return folders

    def _claim(self, queue: str, path: Path) -> bool:
        folder = self._claims / queue
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            path.rename(folder / path.name)
        except FileNotFoundError:
            return False  # Another runner was faster.
        return True

    def _claimed(self, queue: str) -> Delivery | None:
        for path in _messages(self._claims / queue):
            return Delivery(queue, _read(path), str(path))
        return None

    def _clear(self, folder: Path) -> None:
        """Removes the lock of a dead process, maybe one of ours: clients on other hosts can't tell and would wait."""
        import filelock

        if _is_stale(folder / _LOCK):
            _break(folder / _LOCK, self._claims)
        with suppress(filelock.Timeout), filelock.SoftFileLock(folder / _LOCK, timeout=0):
            pass

    def _lock(self, folder: Path) -> AbstractContextManager[Any]:
        import filelock

        if folder == self._root:
            return filelock.FileLock(self._root.parent / "local_queue.lock", timeout=_LOCK_WAIT)
        path = folder / _LOCK
        if _is_stale(path):
            _break(path, self._claims)
        return _Patient(filelock.SoftFileLock(path, timeout=_LOCK_WAIT), path)


class _Patient:
    """A lock whose time-out is an UnavailableError that says what to do."""

    def __init__(self, lock: Any, path: Path) -> None:
        self._lock, self._path = lock, path

    def __enter__(self) -> None:
        import filelock

        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise UnavailableError(f"local queues: {self._path} is held by another process; its queue is looked at "
                                   "again at the next tick", transient=True) from None

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _messages(folder: Path) -> Iterator[Path]:
    """Files that may be messages, oldest first, as the client orders them. Links are never followed."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in _NOT_MESSAGES or entry.name.startswith("."):
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append((status.st_mtime_ns, entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return
    # One by one: most callers want the first of what may be thousands.
    yield from (folder / name for _, name in sorted(found))


def _is_whole(path: Path) -> bool:
    """False for a file that somebody may still be writing: it isn't JSON yet, and it is young.

    A proper beginning of a JSON object is never itself valid, so whole JSON means a whole file.
    """
    try:
        if time.time() - path.stat().st_mtime > _SETTLES:
            return True
        json.loads(_read(path))
    except OSError:
        return False
    except (ValueError, RecursionError):
        return False
    return True


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)


def _is_stale(lock: Path) -> bool:
    try:
        status = lock.lstat()
    except FileNotFoundError:
        return False
    age = time.time() - status.st_mtime
    return age > (_STALE_EMPTY if status.st_size == 0 else _STALE)


def _break(lock: Path, scratch: Path) -> None:
    """Removes a stale lock, but not the fresh one of somebody who broke it a moment earlier."""
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    away = scratch / f".stale-{os.getpid()}"
    try:
        lock.rename(away)
    except FileNotFoundError:
        return
    if not _is_stale(away):
        with suppress(FileExistsError):
            os.link(away, lock)
    away.unlink()


backend = LocalQueues
