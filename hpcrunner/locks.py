"""Locks between processes, threads and hosts, which the kernel gives back when their holder dies.

All names share one file: each has a byte of its own in it, by its digest, so that no lock file ever has to be
removed, which can't be done without a race. They are open file description locks (fcntl(2), F_OFD_SETLK): unlike
traditional ones they exclude threads of one process too, and closing another descriptor of the file keeps them. On
NFS, GPFS and Lustre mounted with `flock` they hold between hosts.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from hashlib import sha256
from pathlib import Path

from hpcrunner.errors import UnavailableError

_BUSY = (errno.EAGAIN, errno.EACCES)


class Lock:
    """The lock of one name, free at first. Never waits. To be used in one thread, in a `with` block, which frees it."""

    def __init__(self, file: Path, name: str) -> None:
        self._file = file
        self._at = int.from_bytes(sha256(name.encode()).digest()[:7], "big")
        self._descriptor = -1

    def __enter__(self) -> Lock:
        try:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # It can still be shared there, and asked about.
            self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def share(self) -> bool:
        """Whether it is held together with others now. An exclusive lock becomes a shared one, without a gap.

        Raises UnavailableError on a file system that has no locks.
        """
        return self._set(fcntl.F_RDLCK)

    def exclude(self) -> bool:
        """Whether it is held alone now. Raises UnavailableError as `share` does, OSError on a read-only file system."""
        return self._set(fcntl.F_WRLCK)

    def is_free(self) -> bool:
        """Whether nobody else holds it just now."""
        answer = fcntl.fcntl(self._descriptor, fcntl.F_OFD_GETLK, self._wanted(fcntl.F_WRLCK))
        return bool(struct.unpack_from("h", answer)[0] == fcntl.F_UNLCK)

    def free(self) -> None:
        self._set(fcntl.F_UNLCK)

    def _wanted(self, kind: int) -> bytes:
        # struct flock of 64-bit Linux: type, whence, start, length, pid (must be 0).
        return struct.pack("hhqqixxxx", kind, os.SEEK_SET, self._at, 1, 0)

    def _set(self, kind: int) -> bool:
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, self._wanted(kind))
        except OSError as error:
            if error.errno in _BUSY:
                return False
            if error.errno == errno.EBADF:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self._file)) from error
            raise UnavailableError(f"{self._file}: the file system it is on has no locks ({error.strerror})") from error
        return True
