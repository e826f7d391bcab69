"""Uploads of any size in bounded memory: parts side by side, put together by the store when all are there.

Beside the source lies `.<name>.upload`, notes of the upload's name and of each part that the store has confirmed. They
hold as long as the file is the same.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hpcrunner.errors import StoreError
from hpcrunner.stores._files import Digests, Identity, Window, check_unchanged, disk_fault
from hpcrunner.stores._notes import Notes, is_line, open_notes
from hpcrunner.stores._retry import persist
from hpcrunner.stores.base import Progress, unwatched

_MOST_PARTS = 10_000
"""S3's limit."""
_STRAY_AFTER = 86400.0
"""Seconds after which an upload of which we know nothing is taken for one that nobody goes on with."""


class UploadGone(StoreError):
    """The store knows nothing of the upload, or of its parts, or no more."""

    transient = True


class Sink(Protocol):
    """What a store does for uploads. All raise StoreError, Weather for what passes."""

    def put_small(self, location: str, body: Window, digests: Digests) -> None:
        """The store takes nothing but what has these digests."""
        ...

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

    def unfinished(self, location: str, before: float) -> list[str]:
        """Names of uploads of that object that were begun before then (Unix seconds), and neither completed nor
        aborted."""
        ...


def put(sink: Sink, source: Path, location: str, *, threads: int, part: int, progress: Progress = unwatched) -> None:
    """See `Store.put`. Files of up to `part` bytes go in one piece."""
    with disk_fault(source):
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            identity = Identity.of(fd)
            file = source.with_name(f".{source.name}.upload")
            was_interrupted = file.exists()  # this one, or one of another file that lay there
            if identity.size <= part:
                persist(partial(put_small, sink, fd, source, location, identity, progress), progress)
                progress(identity.size)
                if was_interrupted:
                    with open_notes(file, {}, lambda lines: False) as notes:
                        _end_strays(sink, location, notes)
                        notes.drop()
                return
            step = max(part, -(-identity.size // _MOST_PARTS))
            about = {"location": location, "part": step, **asdict(identity)}
            check = partial(_are_notes, -(-identity.size // step))
            with open_notes(file, about, check) as notes:
                if not notes.lines:
                    if was_interrupted:
                        _end_strays(sink, location, notes)  # Before they are forgotten.
                    notes.restart()
                upload = _Upload(sink, location, fd, source, identity, notes, step, progress)
                try:
                    upload.run(threads)
                except UploadGone:
                    notes.restart()
                    _Upload(sink, location, fd, source, identity, notes, step, progress).run(threads)
                notes.drop()
        finally:
            os.close(fd)


class SmallSink(Protocol):
    def put_small(self, location: str, body: Window, digests: Digests) -> None: ...


def put_small(sink: SmallSink, fd: int, source: Path, location: str, identity: Identity, progress: Progress) -> None:
    """One try. What is stored is what the file was while it was this one. Raises StoreError."""
    body = Window(fd, 0, identity.size, progress)
    digests = Digests.of(body.pieces())
    check_unchanged(fd, identity, source)
    body.seek(0)
    sink.put_small(location, body, digests)


class _Upload:
    def __init__(self, sink: Sink, location: str, fd: int, source: Path, identity: Identity, notes: Notes, step: int,
                 progress: Progress) -> None:
        self._sink, self._location, self._fd, self._source = sink, location, fd, source
        self._identity, self._notes, self._step, self._progress = identity, notes, step, progress
        self._upload = str(notes.lines[0][0]) if notes.lines else ""
        self._tags: dict[int, str] = dict(notes.lines[1:])
        self._count = -(-identity.size // step)
        self._todo = deque(number for number in range(1, self._count + 1) if number not in self._tags)
        self._error: BaseException | None = None

    def run(self, threads: int) -> None:
        if not self._upload:
            self._upload = persist(lambda: self._sink.begin(self._location), self._progress)
            self._notes.add(self._upload)
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
            with contextlib.suppress(StoreError):
                self._sink.abort(self._location, self._upload)
            self._notes.drop()
            raise
        tags = [self._tags[number] for number in range(1, self._count + 1)]
        try:
            persist(lambda: self._sink.complete(self._location, self._upload, tags), self._progress)
        except UploadGone:
            if not persist(lambda: self._sink.is_complete(self._location, self._identity.size, tags), self._progress):
                raise

    def _work(self) -> None:
        while self._todo and not self._error:
            try:
                number = self._todo.popleft()
            except IndexError:
                return
            try:
                self._tags[number] = persist(partial(self._put_part, number), self._asked)
                self._notes.add(number, self._tags[number])
                self._progress(self._length(number))
            except Exception as error:
                self._error = self._error or error

    def _put_part(self, number: int) -> str:
        start = (number - 1) * self._step
        body = Window(self._fd, start, start + self._length(number), self._asked)
        return self._sink.put_part(self._location, self._upload, number, body)

    def _asked(self, count: int) -> None:
        """Ends what the other threads are at when one has failed."""
        if self._error:
            raise self._error
        self._progress(count)

    def _length(self, number: int) -> int:
        return min(self._step, self._identity.size - (number - 1) * self._step)


def _are_notes(count: int, lines: list[Any]) -> bool:
    """The upload's name, and the tags of its parts."""
    return not lines or (is_line(lines[0], str) and all(is_line(line, int, str) and 0 < line[0] <= count
                                                        for line in lines[1:]))


def _end_strays(sink: Sink, location: str, notes: Notes) -> None:
    """Ends what interrupted tries have left: stores charge for parts until somebody does.

    If none is noted, a try was killed before it could note the name, and the store is asked, if it tells us: a young
    one may be ours. Else only what is old counts, as somebody else may be at it.
    """
    noted = [notes.void[1][0]] if len(notes.void) > 1 and is_line(notes.void[1], str) else []
    with contextlib.suppress(StoreError):
        noted += sink.unfinished(location, time.time() - (_STRAY_AFTER if noted else 0.0))
    for upload in dict.fromkeys(noted):
        with contextlib.suppress(StoreError):
            sink.abort(location, upload)
