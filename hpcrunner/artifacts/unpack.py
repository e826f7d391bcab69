"""Unpacks a tar that may have been made to do harm.

Files are written first, links are made last, so nothing is ever written through a link. All happens in a
folder of its own, which gets its final name when it is whole.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hpcrunner.artifacts.stream import Tar, open_tar
from hpcrunner.artifacts.style import TarStyle
from hpcrunner.errors import ArchiveError
from hpcrunner.files import beside
from hpcrunner.units import format_size

_DEEPEST = 100
_BLOCK = 2**20
_ENTRY = 4096
"""Bytes of disk that each file, folder or link takes beside its content."""
_MOST_NAMES = 2**27
"""Characters of all names and link targets, which are held in memory."""
_FARTHEST = 200
"""Folders and links on the way to where a link ends; the kernel follows 40 links."""
_FAULTS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EMLINK, errno.EINVAL, errno.EILSEQ)
_SKIPPED = 10
"""What is left out and told one by one; of the rest only how many they are."""


@dataclass(frozen=True)
class Limits:
    bytes: int
    entries: int = 1_000_000

    def check(self, size: int, entries: int) -> None:
        """Raises ArchiveError if that much is too much; `size` are bytes of content."""
        if entries > self.entries:
            raise ArchiveError(f"holds more than {self.entries} files")
        if size < 0 or taken(size, entries) > self.bytes:
            raise ArchiveError(f"unpacks to more than the {format_size(self.bytes)} that are allowed "
                               "(hdd of the experiment, or artifact_limit of the site)")


def taken(size: int, entries: int) -> int:
    """Bytes of disk, about: a million empty files are gigabytes too."""
    return size + entries * _ENTRY


@dataclass(frozen=True)
class Unpacked:
    files: int
    bytes: int
    """Of content."""
    skipped: tuple[str, ...]
    """What was left out and why, in words."""
    entries: int = 0
    """Files, folders and links."""

    @property
    def taken(self) -> int:
        """Bytes of disk, about."""
        return taken(self.bytes, self.entries)


def unpack(archive: Path, target: Path, style: TarStyle | None, limits: Limits, name: str | None = None) -> Unpacked:
    """Unpacks to `target`, which must not exist: a folder, or the file itself if a single file was packed.
    Errors call the archive `name`.

    Raises ArchiveError naming what is wrong; then nothing of it is left.
    """
    part = beside(target, "part")
    remove(part)
    part.mkdir(mode=0o700)
    try:
        writer = _Writer(part, limits)
        with open_tar(archive, limits.bytes) as tar:
            for member in tar:
                writer.add(tar, member)
        writer.make_links()
        single = _single(writer.names, style or TarStyle.NEW)
        if single is not None and (part / single).is_file():
            (part / single).replace(target)
            part.rmdir()
        else:
            writer.finish_folders()
            part.replace(target)
    except ArchiveError as error:
        remove(part)
        raise ArchiveError(f"{name or archive.name}: {error}") from error.__cause__
    except BaseException:
        remove(part)
        raise
    return Unpacked(writer.files, writer.bytes, writer.skipped(), writer.entries)


def _single(names: list[str], style: TarStyle) -> str | None:
    """The name of the only member if that means "a file" rather than "a folder with one file in it"."""
    if len(names) != 1:
        return None
    dotted = names[0].startswith("./")
    name = posixpath.normpath(names[0])
    if "/" in name or dotted != (style is TarStyle.NEW):
        return None
    return name


class _Writer:
    def __init__(self, root: Path, limits: Limits) -> None:
        self._root, self._limits = root, limits
        self._folders: dict[str, int] = {}
        self._links: dict[str, str] = {}
        self._written: set[str] = set()
        self.names: list[str] = []
        self.files = self.bytes = self.entries = 0
        self._skipped: list[str] = []
        self._skips = self._length = 0

    def skipped(self) -> tuple[str, ...]:
        rest = self._skips - len(self._skipped)
        return (*self._skipped, *([f"{rest} more links are left out"] if rest else []))

    def add(self, tar: Tar, member: tarfile.TarInfo) -> None:
        self.entries += 1
        self._limits.check(self.bytes, self.entries)
        if len(self.names) < 2:
            self.names.append(member.name)
        name = self._checked(member.name)
        if member.isdir():
            self._folder(name, member.mode)
        elif member.isreg():
            self._file(tar, member, name)
        elif member.issym():
            self._link(name, member.linkname)
        elif member.islnk():
            self._hard_link(name, member.linkname)
        else:
            raise ArchiveError(f"holds {member.name!r:.200}, which is a device, a pipe or something else that is no "
                               "file")

    def make_links(self) -> None:
        for name, target in self._links.items():
            path = self._root / name
            self._parents(name)
            if os.path.lexists(path):
                raise ArchiveError(f"holds {name!r:.200} twice, once as a link")
            # Links may lead through each other, so where each one ends shows only now.
            if self._stays_inside(name):
                with _writing(name):
                    path.symlink_to(target)

    def _stays_inside(self, name: str) -> bool:
        """Whether a link ends in the folder; says so if not. It is told by what is known of the links, not by following
        them: on the disk that would take as long as whoever made them likes."""
        at, todo = posixpath.dirname(name), self._links[name].split("/")[::-1]
        for _ in range(_FARTHEST):
            if not todo:
                return True
            part = todo.pop()
            if part == "..":
                if not at:
                    return self._skip(name, "leads outside")
                at = posixpath.dirname(at)
            elif part not in ("", "."):
                path = f"{at}/{part}" if at else part
                if path in self._links:
                    todo += self._links[path].split("/")[::-1]
                else:
                    at = path
        return self._skip(name, "leads through too many folders and links")

    def _skip(self, name: str, reason: str) -> bool:
        self._skips += 1
        if len(self._skipped) < _SKIPPED:
            self._skipped.append(f"the link {name!r:.200} {reason}; it is left out")
        return False

    def _remember(self, *names: str) -> None:
        self._length += sum(map(len, names))
        if self._length > _MOST_NAMES:
            raise ArchiveError(f"holds names of more than {_MOST_NAMES:,} characters")

    def finish_folders(self) -> None:
        """Folders get their own mode last: a read-only one could not be filled before."""
        for name, mode in sorted(self._folders.items(), reverse=True):
            (self._root / name).chmod(0o700 | mode & 0o755)

    def _checked(self, name: str) -> str:
        """The name relative to the folder. Raises ArchiveError for one that leads anywhere else."""
        if "\0" in name or name.startswith("/") or ".." in name.split("/"):
            raise ArchiveError(f"holds the name {name!r:.200}, which leads outside of its folder")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if len(parts) > _DEEPEST:
            raise ArchiveError(f"holds folders nested more than {_DEEPEST} deep")
        return "/".join(parts)

    def _parents(self, name: str) -> None:
        folder = posixpath.dirname(name)
        if folder and folder not in self._folders:
            self._folder(folder, 0o755)

    def _folder(self, name: str, mode: int) -> None:
        known = name in self._folders
        if name:
            self._folders[name] = mode
        if known or not name:
            return
        self._remember(name)
        self._parents(name)
        self._free(name)
        with _writing(name):
            (self._root / name).mkdir(mode=0o700)

    def _file(self, tar: Tar, member: tarfile.TarInfo, name: str) -> None:
        if not name:
            raise ArchiveError(f"holds a file without a name ({member.name!r:.200})")
        self._room_for(member.size)
        self._parents(name)
        self._free(name)
        source, left = tar.content(member), member.size
        with _writing(name):
            # By descriptor, and not by Path: there may be a hundred thousand of them.
            descriptor = os.open(f"{self._root}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                while left and (data := source.read(min(left, _BLOCK))):
                    left -= len(data)
                    _write(descriptor, data)
                os.fchmod(descriptor, 0o600 | member.mode & 0o755)
                if 0 <= member.mtime < 2**33:
                    os.utime(descriptor, (member.mtime, member.mtime))
            finally:
                os.close(descriptor)
        if left:
            raise ArchiveError(f"ends in the middle of {name!r:.200}: it is damaged")
        self._remember(name)
        self._written.add(name)
        self.files += 1

    def _room_for(self, size: int) -> None:
        self.bytes += size
        self._limits.check(self.bytes if size >= 0 else size, self.entries)

    def _link(self, name: str, target: str) -> None:
        if not name or not target or "\0" in target:
            raise ArchiveError(f"holds the link {name!r:.200} to {target!r:.200}, which is none")
        self._parents(name)
        end = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if target.startswith("/") or end == ".." or end.startswith("../"):
            self._skip(name, "leads outside")
            return
        self._free(name)
        self._remember(name, target)
        self._links[name] = target

    def _hard_link(self, name: str, target: str) -> None:
        source = self._checked(target)
        if source not in self._written or not name:
            raise ArchiveError(f"holds {name!r:.200} as a hard link to {target!r:.200}, which is no earlier file of "
                               "the archive")
        if source == name:
            return
        self._parents(name)
        self._free(name)
        with _writing(name):
            (self._root / name).hardlink_to(self._root / source)
        self._remember(name)
        self._written.add(name)
        self.files += 1

    def _free(self, name: str) -> None:
        """A later member of the same name replaces an earlier file, as tar does."""
        if name in self._written:
            (self._root / name).unlink()
            self._written.discard(name)
        elif name in self._links:
            del self._links[name]
        elif name in self._folders and (self._root / name).exists():
            raise ArchiveError(f"holds {name!r:.200} both as a folder and as something else")


def _write(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


@contextmanager
def _writing(name: str) -> Iterator[None]:
    """Raises ArchiveError for what is an archive's own fault (a name too long for the disk, a file in a folder's place,
    more hard links than a file can have), OSError for what is the disk's."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FAULTS:
            raise
        raise ArchiveError(f"holds {name!r:.200}, which can't be written: {error.strerror}") from error


def remove(path: Path) -> None:
    """A file or a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
