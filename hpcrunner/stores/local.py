"""Stores in a folder, as the client's `type: local` lays them out: `<endpoint>/<bucket>/<key>`.

The client writes their URLs as `file:/` + absolute path, so `file://home/...` has no host in it
(StudioML 0.0.49, LocalStorageHandler.get_qualified_location). Since a message names these paths, only
what lies in the site's `store_roots` is read or written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat as modes
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from hpcrunner.errors import ChangedError, RefusedError, StoreError
from hpcrunner.files import beside, sync_folder
from hpcrunner.stores._files import disk_fault, write_all
from hpcrunner.stores.base import (
    LARGEST_RECORD,
    Access,
    Content,
    Progress,
    Stat,
    check_record,
    check_size,
    unwatched,
)

_TRANSIENT = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT,
              errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ENOLCK}
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LocalStore:
    def __init__(self, site: Any, access: Access) -> None:
        self._roots = [Path(os.path.realpath(root)) for root in site.store_roots]
        # The same after a crash, so that what was half-written then is removed; another install's differs.
        self._mark = sha256(os.fsencode(site.state_dir)).hexdigest()[:12]

    def location(self, endpoint: str | None, bucket: str | None, key: str) -> str:
        # A `~` travels as it is in the message and means the home of whoever reads it.
        root = os.path.realpath(Path(endpoint or "~").expanduser())  # no link may survive in it
        return f"file:/{root}/{bucket or 'storage'}/{key}"

    def stat(self, location: str) -> Stat | None:
        try:
            return _stat(self._path(location).stat())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failed("can't be read", location, error) from error

    def fetch(self, location: str, target: Path, progress: Progress | None = None, limit: int | None = None
              ) -> Stat | None:
        part, progress = beside(target, "part"), progress or unwatched
        with self._opened(location) as reader:
            if reader is None:
                return None
            stat = _stat(os.fstat(reader.fileno()))
            check_size(location, stat.size, limit)
            size = 0
            try:
                with disk_fault(target):
                    writer = part.open("wb", buffering=0)
                with writer:
                    while data := _read(reader, 2**20, location):
                        size += len(data)
                        check_size(location, size, limit)
                        with disk_fault(target):
                            write_all(writer.fileno(), data)
                        progress(len(data))
                stat = _stat(os.fstat(reader.fileno()))
                with disk_fault(target):
                    part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            return stat

    def put(self, source: Path, location: str, progress: Progress | None = None) -> None:
        def copy(writer: BinaryIO) -> None:
            with source.open("rb") as reader:
                while data := reader.read(2**20):
                    writer.write(data)
                    (progress or unwatched)(len(data))

        self._place(location, copy, progress=progress or unwatched)

    def read(self, location: str, progress: Progress | None = None) -> Content | None:
        with self._opened(location) as reader:
            if reader is None:
                return None
            data = _read(reader, LARGEST_RECORD + 1, location)
            check_record(location, len(data))
            return Content(data, _stat(os.fstat(reader.fileno())).version)

    @contextmanager
    def _opened(self, location: str) -> Iterator[BinaryIO | None]:
        """None if there is no such file. Raises StoreError for what is none."""
        path = self._path(location)
        try:
            # Whoever may write there may have put a pipe, which nobody writes to.
            reader = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        except (FileNotFoundError, NotADirectoryError):
            reader = None
        except OSError as error:
            raise _failed("can't be read", location, error) from error
        if reader is None:
            yield None
            return
        with reader:
            if not modes.S_ISREG(os.fstat(reader.fileno()).st_mode):
                raise StoreError(f"{location}: can't be read: it is no regular file")
            yield reader

    def write(self, data: bytes, location: str, replaces: str | None = None, progress: Progress | None = None) -> None:
        def check() -> None:
            stat = self.stat(location)
            if replaces is not None and (stat is None or stat.version != replaces):
                raise ChangedError(f"{location}: changed while it was being written")

        self._place(location, lambda writer: writer.write(data), check, progress or unwatched)

    def _place(self, location: str, make: Callable[[BinaryIO], object], check: Callable[[], None] = lambda: None,
               progress: Progress = unwatched) -> None:
        path = self._path(location)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path(location)  # Again, now that all of its folders exist.
            with _own_part(path, self._mark) as (part, writer):
                make(writer)
                writer.flush()
                # The run directory may be removed as soon as this returns.
                os.fsync(writer.fileno())
                progress(0)
                check()  # As late as can be: a file system has no way to do both at once.
                part.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise _failed("can't be written", location, error) from error

    def _path(self, location: str) -> Path:
        """The file of a location. Raises StoreError for one outside `store_roots`, by whatever `..` or link."""
        if not location.startswith("file:"):
            raise RefusedError(f"{location}: not a location in a local store, which begins with file:/")
        if "\0" in location:
            raise RefusedError(f"{location!r}: a location can't hold NUL")
        path = Path("/" + location[len("file:"):].lstrip("/"))
        try:
            real = Path(os.path.realpath(path))
        except OSError as error:
            raise _failed("can't be looked up", location, error) from error
        for root in self._roots:
            if real != root and real.is_relative_to(root):
                return real
        allowed = ", ".join(str(root) for root in self._roots) or "none is set"
        raise RefusedError(f"{location}: outside the folders that this site lets experiments use "
                           f"(store_roots: {allowed})")


@contextmanager
def _own_part(path: Path, mark: str) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path` that nobody else writes to; whoever renames it is the last to touch it. It is gone if
    something is raised.

    What a crash left has the same name, and no lock any more, so it is used again. Beside another writer, and where
    there are no locks, it is one of its own.
    """
    part = beside(path, f"{mark}.part")
    descriptor = _locked(part)
    if descriptor is None:
        part = beside(path, f"{mark}-{uuid.uuid4().hex}.part")
        descriptor = os.open(part, _FLAGS | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as writer:  # noqa: PTH123
            writer.truncate(0)
            yield part, writer
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _locked(part: Path) -> int | None:
    """A descriptor of a file that is locked for this writer; None if that can't be."""
    try:
        descriptor = os.open(part, _FLAGS, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have renamed it just before it was locked, or somebody linked it to what is not his.
        there = part.lstat()
        if os.path.samestat(there, os.fstat(descriptor)) and modes.S_ISREG(there.st_mode) and there.st_nlink == 1:
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        part.unlink(missing_ok=True)  # Nobody's, as nobody can have its lock.
    os.close(descriptor)
    return None


def _stat(status: os.stat_result) -> Stat:
    return Stat(status.st_size, f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}")


def _read(reader: BinaryIO, size: int, location: str) -> bytes:
    try:
        return reader.read(size)
    except OSError as error:
        raise _failed("can't be read", location, error) from error


def _failed(what: str, location: str, error: OSError) -> StoreError:
    return StoreError(f"{location}: {what}: {error.strerror or error}", transient=error.errno in _TRANSIENT,
                      errno=error.errno)


backend = LocalStore
