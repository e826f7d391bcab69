"""Stores in a folder, as the client's `type: local` lays them out: `<endpoint>/<bucket>/<key>`.

The client writes their URLs as `file:/` + absolute path, so `file://home/...` has no host in it
(StudioML 0.0.49, LocalStorageHandler.get_qualified_location). Since a message names these paths, only
what lies in the site's `store_roots` is read or written.
"""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from hpcrunner.errors import ChangedError, StoreError
from hpcrunner.files import beside, sync_folder
from hpcrunner.stores.base import Access, Content, Progress, Stat

_TRANSIENT = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ENOSPC, errno.EDQUOT,
              errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ENOLCK}
_LARGEST_RECORD = 64 * 2**20
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


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

    def fetch(self, location: str, target: Path, progress: Progress | None = None) -> Stat | None:
        source, part = self._path(location), beside(target, "part")
        try:
            with source.open("rb") as reader, part.open("wb") as writer:
                _copy(reader, writer, progress)
                stat = _stat(os.fstat(reader.fileno()))
            part.replace(target)
        except OSError as error:
            part.unlink(missing_ok=True)
            if isinstance(error, (FileNotFoundError, NotADirectoryError)) and not source.exists():
                return None
            raise _failed("can't be read", location, error) from error
        return stat

    def put(self, source: Path, location: str, progress: Progress | None = None) -> None:
        def copy(writer: BinaryIO) -> None:
            with source.open("rb") as reader:
                _copy(reader, writer, progress)

        self._place(location, copy)

    def read(self, location: str) -> Content | None:
        path = self._path(location)
        try:
            with path.open("rb") as reader:
                data = reader.read(_LARGEST_RECORD + 1)
                version = _stat(os.fstat(reader.fileno())).version
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _failed("can't be read", location, error) from error
        if len(data) > _LARGEST_RECORD:
            raise StoreError(f"{location}: larger than {_LARGEST_RECORD >> 20} MiB, so it is no record")
        return Content(data, version)

    def write(self, data: bytes, location: str, replaces: str | None = None) -> None:
        def check() -> None:
            stat = self.stat(location)
            if replaces is not None and (stat is None or stat.version != replaces):
                raise ChangedError(f"{location}: changed while it was being written")

        self._place(location, lambda writer: writer.write(data), check)

    def _place(self, location: str, make: Callable[[BinaryIO], object], check: Callable[[], None] = lambda: None
               ) -> None:
        path = self._path(location)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path(location)  # Again, now that all of its folders exist.
            with _own_part(path, self._mark) as (part, writer):
                make(writer)
                writer.flush()
                # The run directory may be removed as soon as this returns.
                os.fsync(writer.fileno())
                check()  # As late as can be: a file system has no way to do both at once.
                part.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise _failed("can't be written", location, error) from error

    def _path(self, location: str) -> Path:
        """The file of a location. Raises StoreError for one outside `store_roots`, by whatever `..` or link."""
        if not location.startswith("file:"):
            raise StoreError(f"{location}: not a location in a local store, which begins with file:/")
        if "\0" in location:
            raise StoreError(f"{location!r}: a location can't hold NUL")
        path = Path("/" + location[len("file:"):].lstrip("/"))
        try:
            real = Path(os.path.realpath(path))
        except OSError as error:
            raise _failed("can't be looked up", location, error) from error
        for root in self._roots:
            if real != root and real.is_relative_to(root):
                return real
        allowed = ", ".join(str(root) for root in self._roots) or "none is set"
        raise StoreError(f"{location}: outside the folders that this site lets experiments use "
                         f"(store_roots: {allowed})")


@contextmanager
def _own_part(path: Path, mark: str) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path` that nobody else writes to; whoever renames it is the last to touch it. It is gone if
    something is raised.

    What a crash left has the same name, and no lock any more, so it is used again. Beside another writer, and where
    there are no locks, it is one of its own.
    """
    part = beside(path, f"{mark}.part")
    descriptor = os.open(part, _FLAGS, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have renamed or removed it just before it was locked.
        is_own = os.path.samestat(part.lstat(), os.fstat(descriptor))
    except (BlockingIOError, FileNotFoundError):
        is_own = False
    except OSError:
        part.unlink(missing_ok=True)  # Nobody's, as nobody can have its lock.
        is_own = False
    if not is_own:
        os.close(descriptor)
        part = beside(path, f"{mark}-{uuid.uuid4().hex}.part")
        descriptor = os.open(part, _FLAGS | os.O_EXCL, 0o666)
    try:
        with open(descriptor, "wb") as writer:  # noqa: PTH123
            writer.truncate(0)
            yield part, writer
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _stat(status: os.stat_result) -> Stat:
    return Stat(status.st_size, f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}")


def _copy(reader: BinaryIO, writer: BinaryIO, progress: Progress | None) -> None:
    while data := reader.read(2**20):
        writer.write(data)
        if progress:
            progress(len(data))


def _failed(what: str, location: str, error: OSError) -> StoreError:
    return StoreError(f"{location}: {what}: {error.strerror or error}", transient=error.errno in _TRANSIENT,
                      errno=error.errno)


backend = LocalStore
