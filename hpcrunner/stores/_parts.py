"""Uploads of any size in bounded memory: parts side by side, put together by the store when all are there.

Beside the source lies `.<name>.upload`, notes of the upload's name and of each part that the store has confirmed. They
hold as long as the file is the same.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from hpcrunner.errors import StoreError
from hpcrunner.stores._files import Identity, Window, check_unchanged, disk_fault
from hpcrunner.stores._notes import Notes, open_notes
from hpcrunner.stores._retry import persist
from hpcrunner.stores.base import Progress

_MOST_PARTS = 10_000
"""S3's limit."""


class UploadGone(StoreError):
    """The store knows nothing of the upload, or no more."""

    transient = True


class Sink(Protocol):
    """What a store does for uploads. All raise StoreError, Weather for what passes."""

    def put_small(self, location: str, body: Window) -> None: ...

    def begin(self, location: str) -> str:
        """The name of a new upload."""
        ...

    def put_part(self, location: str, upload: str, number: int, body: Window) -> str:
        """What `complete` needs to know of the part. Numbers are from 1. Raises UploadGone."""
        ...

    def complete(self, location: str, upload: str, tags: list[str]) -> None:
        """Raises UploadGone."""
        ...

    def is_complete(self, location: str, size: int, tags: list[str]) -> bool:
        """Whether the object is certainly what this upload makes: an answer to `complete` may have been lost."""
        ...

    def abort(self, location: str, upload: str) -> None: ...

    def unfinished(self, location: str) -> list[str]:
        """Names of uploads of that object that were begun, and neither completed nor aborted."""
        ...


def put(sink: Sink, source: Path, location: str, *, threads: int, part: int, progress: Progress | None = None) -> None:
    """See `Store.put`. Files of up to `part` bytes go in one piece."""
    with disk_fault(source):
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            identity = Identity.of(fd)
            file = source.with_name(f".{source.name}.upload")
            was_interrupted = file.exists()  # this one, or one of another file that lay there
            if identity.size <= part:
                persist(lambda: sink.put_small(location, Window(fd, 0, identity.size)))
                check_unchanged(fd, identity, source)
                if progress:
                    progress(identity.size)
                if was_interrupted:
                    with open_notes(file, {}) as notes:
                        _abort_strays(sink, location, notes)
                        notes.drop()
                return
            step = max(part, -(-identity.size // _MOST_PARTS))
            about = {"location": location, "part": step, **asdict(identity)}
            with open_notes(file, about) as notes:
                upload = _Upload(sink, location, fd, source, identity, notes, step, progress)
                try:
                    upload.run(threads)
                except UploadGone:
                    notes.restart()
                    _Upload(sink, location, fd, source, identity, notes, step, progress).run(threads)
                if was_interrupted:
                    _abort_strays(sink, location, notes)
                notes.drop()
        finally:
            os.close(fd)


class _Upload:
    def __init__(self, sink: Sink, location: str, fd: int, source: Path, identity: Identity, notes: Notes, step: int,
                 progress: Progress | None) -> None:
        self._sink, self._location, self._fd, self._source = sink, location, fd, source
        self._identity, self._notes, self._step, self._progress = identity, notes, step, progress
        self._upload = str(notes.lines[0][0]) if notes.lines else ""
        self._tags: dict[int, str] = dict(notes.lines[1:])
        self._count = -(-identity.size // step)
        self._todo = deque(number for number in range(1, self._count + 1) if number not in self._tags)
        self._error: BaseException | None = None

    def run(self, threads: int) -> None:
        if not self._upload:
            self._upload = persist(lambda: self._sink.begin(self._location))
            self._notes.add(self._upload)
        if self._progress and self._tags:
            self._progress(sum(map(self._length, self._tags)))
        helpers = [threading.Thread(target=self._work, daemon=True) for _ in range(min(threads, len(self._todo)) - 1)]
        for helper in helpers:
            helper.start()
        try:
            self._work()
        except BaseException as error:  # Ctrl-C: the helpers must not read a file that is closed.
            self._error = error
            raise
        finally:
            for helper in helpers:
                helper.join()
        if self._error:
            raise self._error
        try:
            check_unchanged(self._fd, self._identity, self._source)
        except StoreError:
            self._sink.abort(self._location, self._upload)
            self._notes.drop()
            raise
        tags = [self._tags[number] for number in range(1, self._count + 1)]
        try:
            persist(lambda: self._sink.complete(self._location, self._upload, tags))
        except UploadGone:
            if not persist(lambda: self._sink.is_complete(self._location, self._identity.size, tags)):
                raise

    def _work(self) -> None:
        while self._todo and not self._error:
            try:
                number = self._todo.popleft()
            except IndexError:
                return
            start = (number - 1) * self._step
            try:
                tag = persist(lambda number=number, start=start: self._sink.put_part(  # type: ignore[misc]
                    self._location, self._upload, number, Window(self._fd, start, start + self._length(number))))
            except Exception as error:
                self._error = self._error or error
                return
            self._tags[number] = tag
            self._notes.add(number, tag)
            if self._progress:
                self._progress(self._length(number))

    def _length(self, number: int) -> int:
        return min(self._step, self._identity.size - (number - 1) * self._step)


def _abort_strays(sink: Sink, location: str, notes: Notes) -> None:
    """Ends what interrupted tries have left of an object that is whole by now: stores charge for parts until somebody
    does. The store is asked, if it tells us, since a kill may come before the upload's name is noted."""
    strays = [str(notes.void[1][0])] if len(notes.void) > 1 else []
    with contextlib.suppress(StoreError):
        strays += sink.unfinished(location)
    for upload in dict.fromkeys(strays):
        with contextlib.suppress(StoreError):
            sink.abort(location, upload)
