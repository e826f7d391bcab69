"""Downloads of any size in bounded memory: ranges side by side, each written where it belongs.

Beside the target lie `.<name>.part`, with as many bytes as the object has, and `.<name>.ranges`, notes of how far each
range has come. Both outlive a kill, and a server's end; of a crash of this host only the notes may be left, and bytes
they speak of be lost, so they hold for one boot of one host.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from hpcrunner import proc
from hpcrunner.errors import ChangedError, StoreError
from hpcrunner.stores._files import PIECE, disk_fault, require_space, write_pieces
from hpcrunner.stores._notes import Notes, is_line, open_notes
from hpcrunner.stores._retry import Weather, persist
from hpcrunner.stores._web import NoRanges
from hpcrunner.stores.base import Progress, Stat, check_size, unwatched
from hpcrunner.units import format_size

_NOTED = 4 * 2**20
"""Bytes of a range that a kill may cost."""
_HELD = 4
"""Pieces that are written in one go: the kernel takes half a MiB at once in two thirds of the time."""
_TRIES = 3
"""Of an object that is replaced while it is read, or doesn't come as it was sent."""
_MOST_RANGES = 10_000
"""Those of a larger object are longer: whatever size a server claims, they fit into memory."""
_LARGEST = 2**47
"""Bytes. More than any store takes, so that whoever claims it lies."""


class Source(Protocol):
    """What a store does for downloads. All raise StoreError, Weather for what passes."""

    md5_is_sure: bool
    """False where an entity tag only looks like an MD5."""

    def stat_once(self, location: str) -> Stat | None: ...

    def chunks(self, location: str, stat: Stat, start: int, end: int) -> Generator[bytes, None, None]:
        """Bytes from `start` up to `end` in small pieces. Raises ChangedError if `stat` is outdated, and NoRanges,
        unless it is the whole object."""
        ...


def fetch(source: Source, location: str, target: Path, *, threads: int, part: int, progress: Progress = unwatched,
          limit: int | None = None) -> Stat | None:
    """See `Store.fetch`. `part` is the length of a range in bytes."""
    digests: list[str] = []
    for _ in range(_TRIES):
        stat = persist(lambda: source.stat_once(location), progress)
        if stat is None:
            for left in (_part(target), _notes(target)):
                left.unlink(missing_ok=True)
            return None
        check_size(location, stat.size, limit)
        if stat.size > _LARGEST:
            raise StoreError(f"{location}: the server says that it has {format_size(stat.size)}, which no object has")
        step = max(part, -(-stat.size // _MOST_RANGES))
        check = partial(_are_notes, step, stat.size)
        try:
            with disk_fault(target), open_notes(_notes(target), _about(location, stat, step), check) as notes:
                # Without a version nothing would tell that two ranges are of the same object.
                download = _Download(source, location, stat, target, notes, step if stat.version else 0, progress)
                try:
                    download.run(threads)
                except NoRanges:
                    download.take_back()
                    download = _Download(source, location, stat, target, notes, 0, progress)
                    download.run(1)
                wrong = download.wrong_digest()
                # An entity tag that no download agrees with is no digest.
                if not wrong or (wrong in digests and not stat.sha256 and not source.md5_is_sure):
                    _part(target).replace(target)
                    notes.drop()
                    return stat
                notes.drop()
            digests.append(wrong)
            problem = StoreError(f"{location}: what came is not what the store says it is: its digest is {wrong}, not "
                                 f"{stat.sha256 or stat.md5}; whoever stored it must store it again", transient=True)
        except ChangedError as error:
            problem = error
    raise problem


class _Download:
    """In ranges of `part` bytes, or with 0 in one unbroken answer, which is never gone on with."""

    def __init__(self, source: Source, location: str, stat: Stat, target: Path, notes: Notes, part: int,
                 progress: Progress) -> None:
        self._source, self._location, self._stat, self._target = source, location, stat, target
        self._notes, self._progress, self._is_unbroken = notes, progress, not part
        path, step = _part(target), part or max(stat.size, 1)
        usable = notes.resumed and part and path.exists() and path.stat().st_size == stat.size
        self._at = {start: start for start in range(0, stat.size, step)}
        self._end = {start: min(start + step, stat.size) for start in self._at}
        if usable:
            for start, at in notes.lines:
                self._at[start] = max(self._at[start], at)
        else:
            notes.restart()
            path.unlink(missing_ok=True)
        self._todo = deque(start for start in self._at if self._at[start] < self._end[start])
        self._error: BaseException | None = None
        # An entity tag that may be an MD5 is worth a look, not the time that it takes for what came in several parts.
        md5 = stat.md5 if source.md5_is_sure or len(self._at) == 1 else ""
        self._expected = stat.sha256 or md5
        self._digest = hashlib.sha256() if stat.sha256 else hashlib.md5(usedforsecurity=False)
        self._digested = 0 if self._expected else stat.size
        self._digesting = threading.Lock()

    def wrong_digest(self) -> str:
        """The digest of what came, if the store says another; else empty."""
        found = self._digest.hexdigest()
        return "" if found == self._expected or not self._expected else found

    def take_back(self) -> None:
        """Tells that what was moved is moved again."""
        self._progress(-sum(at - start for start, at in self._at.items()))

    def run(self, threads: int) -> None:
        moved = sum(at - start for start, at in self._at.items())
        require_space(self._target, self._stat.size - moved)
        self._fd = os.open(_part(self._target), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.ftruncate(self._fd, self._stat.size)
            self._progress(moved)
            helpers = [threading.Thread(target=self._work, daemon=True)
                       for _ in range(min(threads, len(self._todo)) - 1)]
            for helper in helpers:
                helper.start()
            try:
                self._work()
            except BaseException as error:  # Ctrl-C: the helpers must not write into a file that is closed.
                self._error = error
                raise
            finally:
                for helper in helpers:
                    helper.join()
            if self._error:
                raise self._error
            self._digest_ranges()
        finally:
            os.close(self._fd)

    def _work(self) -> None:
        while self._todo and not self._error:
            try:
                start = self._todo.popleft()
            except IndexError:
                return
            try:
                persist(lambda start=start: self._move(start), self._progress,  # type: ignore[misc]
                        lambda start=start: 0 if self._is_unbroken else self._at[start])  # type: ignore[misc]
                self._digest_ranges()
            except Exception as error:
                self._error = self._error or error

    def _move(self, start: int) -> None:
        """Goes on with one range, unless another failed."""
        if self._is_unbroken and self._at[start] < self._end[start]:
            self.take_back()
            self._at[start] = start
        at, end = self._at[start], self._end[start]
        noted = at
        held: list[bytes] = []

        def write() -> None:
            write_pieces(self._fd, held, self._at[start])
            self._at[start] = at
            held.clear()

        if self._error or at == end:
            return
        chunks = self._source.chunks(self._location, self._stat, at, end)
        try:
            for chunk in chunks:
                if self._error:
                    return
                if len(chunk) > end - at:
                    raise StoreError(f"{self._location}: the server sent more than it was asked for")
                held.append(chunk)
                at += len(chunk)
                self._progress(len(chunk))
                if len(held) == _HELD:
                    write()
                    if at - noted >= _NOTED and not self._is_unbroken:
                        self._notes.add(start, at)
                        noted = at
        finally:
            chunks.close()
            try:
                write()
            finally:  # A full disk took some of it before.
                if self._at[start] != noted and not self._is_unbroken:
                    self._notes.add(start, self._at[start])
        if at != end:
            raise Weather(f"{self._location}: the connection ended before the object did")

    def _digest_ranges(self) -> None:
        """Goes on with the digest over the ranges that are whole, in their order, while other threads move bytes."""
        if not self._digesting.acquire(blocking=False):
            return
        try:
            while (at := self._digested) < self._stat.size and self._at[at] == self._end[at]:
                while at < self._end[self._digested]:
                    data = os.pread(self._fd, min(PIECE, self._end[self._digested] - at), at)
                    self._digest.update(data)
                    at += len(data)
                self._digested = at
        finally:
            self._digesting.release()


def _about(location: str, stat: Stat, part: int) -> dict[str, object]:
    return {"location": location, "version": stat.version, "size": stat.size, "part": part, "host": proc.host_name(),
            "boot": proc.boot_id()}


def _are_notes(step: int, size: int, lines: list[Any]) -> bool:
    return all(is_line(line, int, int) and line[0] % step == 0 and 0 <= line[0] <= line[1] <= min(line[0] + step, size)
               for line in lines)


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _notes(target: Path) -> Path:
    return target.with_name(f".{target.name}.ranges")
