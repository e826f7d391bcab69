"""Copies of files and folders that share their blocks with the original, where the file system can do that.

The copies are independent: whoever writes to one changes only that one, which hard links could not give.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from pathlib import Path

_FICLONE = 0x40049409
"""ioctl_ficlone(2); of XFS, Btrfs, bcachefs, OCFS2, and NFS 4.2 before those."""
_BLOCK = 2**24
_answers: dict[tuple[str, str], bool] = {}


def can_clone(source: Path, target: Path) -> bool:
    """Whether files in the folder `source` can be cloned into the folder `target`, tried once in each process. Not
    where nothing can be written just now."""
    pair = (str(source), str(target))
    if pair not in _answers:
        try:
            with tempfile.NamedTemporaryFile(dir=source, prefix=".clone-") as one, \
                    tempfile.NamedTemporaryFile(dir=target, prefix=".clone-") as two:
                one.write(b"x")
                one.flush()
                _answers[pair] = _cloned(one.fileno(), two.fileno())
        except OSError:
            return False
    return _answers[pair]


def copy_file(source: Path, target: Path) -> None:
    """A copy with the same mode under the new name `target`; by the fastest way there is."""
    with source.open("rb") as reader, target.open("xb") as writer:
        _copy(reader.fileno(), writer.fileno())
        os.fchmod(writer.fileno(), stat.S_IMODE(os.fstat(reader.fileno()).st_mode))


def clone_tree(source: Path, target: Path) -> tuple[int, int]:
    """Copies a folder, or a single file, with modes, times and links, also hard ones; returns the number of files and
    their bytes. One that has several names counts once.

    What is neither file, folder nor link is left out: nothing made by `unpack` has such a thing in it.
    """
    if not source.is_dir():
        _clone(str(source), str(target), source.stat())
        return 1, source.stat().st_size
    files = size = 0
    known: dict[int, str] = {}
    folders = [(str(source), str(target))]
    for old, new in folders:  # grows
        os.mkdir(new, 0o700)  # noqa: PTH102 - Path costs more than the call
        with os.scandir(old) as entries:
            for entry in entries:
                path = f"{new}/{entry.name}"
                if entry.is_symlink():
                    Path(path).symlink_to(Path(entry.path).readlink())
                elif entry.is_dir():
                    folders.append((entry.path, path))
                elif entry.is_file():
                    status = entry.stat()
                    if status.st_ino in known:
                        os.link(known[status.st_ino], path)
                        continue
                    if status.st_nlink > 1:
                        known[status.st_ino] = path
                    _clone(entry.path, path, status)
                    files, size = files + 1, size + status.st_size
    for old, new in reversed(folders):
        status = os.stat(old)  # noqa: PTH116
        os.chmod(new, stat.S_IMODE(status.st_mode))  # noqa: PTH101
        os.utime(new, ns=(status.st_mtime_ns, status.st_mtime_ns))
    return files, size


def count_tree(root: Path) -> tuple[int, int]:
    """What `clone_tree` returns for it."""
    if not root.is_dir():
        return 1, root.stat().st_size
    sizes = {status.st_ino: status.st_size for folder, _, files in os.walk(root) for name in files
             if stat.S_ISREG((status := os.lstat(f"{folder}/{name}")).st_mode)}
    return len(sizes), sum(sizes.values())


def _clone(source: str, target: str, status: os.stat_result) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            if status.st_size:
                _copy(reader, writer)
            os.fchmod(writer, stat.S_IMODE(status.st_mode))
            os.utime(writer, ns=(status.st_mtime_ns, status.st_mtime_ns))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _cloned(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError:
        return False
    return True


def _copy(reader: int, writer: int) -> None:
    if _cloned(reader, writer):
        return
    try:
        while os.copy_file_range(reader, writer, _BLOCK):
            pass
        if os.fstat(writer).st_size == os.fstat(reader).st_size:  # Some kernels say 0 where they mean "can't".
            return
    except OSError as error:
        # Between two file systems, or on one that can't.
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
    os.lseek(reader, 0, os.SEEK_SET)
    os.lseek(writer, 0, os.SEEK_SET)
    os.ftruncate(writer, 0)
    while data := os.read(reader, 2**20):
        view = memoryview(data)
        while view:
            view = view[os.write(writer, view):]
