"""A folder of things that are costly to get, each kept once for all that need it: packed artifacts, unpacked trees.

    <cache_dir>/lock                 locks of all entries (hpcrunner.locks), and of `room`
    <cache_dir>/entries/<key>/       data (a file or a folder) and entry.json; it appears by one rename, whole
    <cache_dir>/parts/<key>/         the same while it is made, so that whoever comes after a crash goes on with it
    <cache_dir>/trash/               what is being removed

Who makes an entry holds its lock alone, who uses one shares it, and only what nobody holds is removed; a process that
is killed lets go of everything. Any number of processes, installs and hosts may work in one folder at once, if its
file system has locks that hold between them. There is no index that could be wrong: sizes stand in each entry.json,
whose time is that of the last use.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcrunner.artifacts.digest import digest_of
from hpcrunner.errors import HpcrunnerError, StoreError, UnavailableError
from hpcrunner.locks import Lock

log = logging.getLogger("hpcrunner")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_STALE = 86400.0
"""Seconds after which nobody will go on with a part."""
_STALLED = 900.0
"""Seconds without any progress after which another process that makes an entry isn't waited for any longer."""


@dataclass(frozen=True)
class Entry:
    key: str
    kind: str
    """`object`, as it lies in a store; `tree`, unpacked."""
    source: str
    """Where it came from, for people."""
    size: int
    """Bytes; of one that is being made, those it will have."""
    sha256: str = ""
    """Of its content (`digest_of`)."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What its maker wants to know again."""
    used: float = 0.0
    """Unix seconds of its last use."""
    folder: Path = Path()
    is_part: bool = False

    @property
    def data(self) -> Path:
        return self.folder / "data"


@dataclass(frozen=True)
class Made:
    """What the maker of an entry says of it."""

    size: int
    sha256: str = ""
    """Found out here if it is empty."""
    facts: Mapping[str, Any] = field(default_factory=dict)


Maker = Callable[[Path], Made]
"""Makes the entry's data under the path it is given, where an earlier try that was interrupted may have left something.
After a transient error what it made so far is kept for the next try."""


class Cache:
    """May be used from several threads. Raises UnavailableError if `folder` is on a file system without locks,
    OSError if it can't be made. From one that is read-only by now, what it has is still used."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._entries, self._parts, self._trash = folder / "entries", folder / "parts", folder / "trash"
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self._entries, self._parts, self._trash):
            path.mkdir(exist_ok=True)
        self._known: dict[tuple[str, int], Entry] = {}
        self._told = ""
        with self._lock("room") as lock:
            lock.share()

    @contextmanager
    def use(self, key: str, kind: str, source: str, size: int, make: Maker) -> Iterator[Entry | None]:
        """The entry of that key, made if it is not there; while another process makes it, that is waited for. It stays
        until the end of the `with` block. None if it must be done without: it is larger than the limit, all else is in
        use, or the disk is full or broken.

        Raises the HpcrunnerErrors of `make`, and StoreError (transient) if another process makes no progress.
        """
        with ExitStack() as held:
            entry = None
            try:
                lock = held.enter_context(self._lock(key))
                entry = self._hold(lock, Entry(key, kind, source, size, folder=self._entries / key), make)
            except (OSError, UnavailableError, StoreError) as error:
                held.close()
                # A store that tells of a file system means the one where the entry is made.
                if isinstance(error, StoreError) and not error.errno:
                    raise
                if str(error) != self._told:
                    log.warning("cache_dir %s can't be used just now: %s", self.folder, error)
                    self._told = str(error)
            yield entry

    def _hold(self, lock: Lock, wanted: Entry, make: Maker) -> Entry | None:
        patience = _Patience(self._parts / wanted.key, wanted.source)
        while True:
            if wanted.folder.exists():
                if lock.share():
                    if entry := self._whole(wanted.folder):
                        with suppress(OSError):
                            os.utime(wanted.folder / "entry.json")
                        return replace(entry, used=time.time())
                    if wanted.folder.exists() and lock.exclude():
                        self._discard(wanted.folder)  # The host went down before all of it had reached the disk.
                    lock.free()
            elif lock.exclude():
                # NFS remembers for a while which names are not there, but not across opening the folder.
                os.close(os.open(self._entries, os.O_RDONLY))
                entry = None if wanted.folder.exists() else self._make(wanted, make)
                lock.free() if entry is None else lock.share()
                if entry is not None or not wanted.folder.exists():
                    return entry
            patience.wait()

    def _make(self, wanted: Entry, make: Maker) -> Entry | None:
        """Once more with more room if the disk is full: that of a quota can't be seen before."""
        try:
            return self._try(wanted, make)
        except (OSError, StoreError) as error:
            if error.errno not in _FULL:
                raise
            try:
                if self._reserve(wanted, wanted.size):
                    return self._try(wanted, make)
            except (OSError, StoreError) as again:
                if again.errno not in _FULL:
                    raise
            self._discard(self._parts / wanted.key)
            return None

    def _try(self, wanted: Entry, make: Maker) -> Entry | None:
        part = self._parts / wanted.key
        if not self._reserve(wanted):
            return None
        try:
            made = make(part / "data")
            entry = replace(wanted, size=made.size, sha256=made.sha256 or settle(part / "data"), facts=made.facts)
        except (HpcrunnerError, OSError) as error:
            if isinstance(error, HpcrunnerError) and not error.transient:
                self._discard(part)
            raise
        if made.size > wanted.size and not self._reserve(entry):
            self._discard(part)
            return None
        _write(part, entry)
        part.replace(wanted.folder)
        return entry

    def _reserve(self, wanted: Entry, at_least: int = 0) -> bool:
        """Frees the bytes that an entry will take, on a disk that has them, and counts them as taken. False if that
        can't be, also if no `at_least` bytes can be freed."""
        if wanted.size > self.limit:
            return False
        part = self._parts / wanted.key
        with self._lock("room") as lock:
            patience = _Patience(self._trash, "room in the cache")
            while not lock.exclude():
                patience.wait()
            self._tidy()
            others = [entry for entry in self.entries(parts=True) if entry.key != wanted.key]
            taken, freed = sum(entry.size for entry in others), 0
            missing = self._missing(wanted)
            for entry in others:
                if taken + wanted.size <= self.limit and missing <= 0 and freed >= at_least:
                    break
                if self.remove(entry):
                    taken -= entry.size
                    freed += entry.size
                    missing = self._missing(wanted)
            if taken + wanted.size > self.limit or missing > 0 or freed < at_least:
                return False
            part.mkdir(exist_ok=True)
            _write(part, wanted)
        return True

    def _missing(self, wanted: Entry) -> int:
        """Bytes that the disk has too few for it."""
        status, there = os.statvfs(self.folder), 0
        part = self._parts / wanted.key
        if (part / "data").exists():
            return 0
        for path in part.glob(".data*"):
            with suppress(OSError):
                there += path.lstat().st_blocks * 512  # of an earlier try
        return wanted.size - there - status.f_bavail * status.f_frsize

    def entries(self, *, parts: bool = False) -> list[Entry]:
        """All entries, those that were used longest ago first. With `parts` also those that are not whole."""
        found = []
        for folder in (self._entries, *([self._parts] if parts else [])):
            with os.scandir(folder) as listed:
                found += [entry for each in listed if (entry := self._read(each.path))]
        if len(self._known) > 2 * len(found) + 1000:
            self._known.clear()
        return sorted(found, key=lambda entry: entry.used)

    def remove(self, entry: Entry) -> bool:
        """Removes an entry or a part, unless somebody uses or makes it. True if it was removed."""
        with self._lock(entry.key) as lock:
            if not lock.exclude():
                return False
            self._discard(entry.folder)
            return True

    def is_in_use(self, entry: Entry) -> bool:
        """Just now."""
        with self._lock(entry.key) as lock:
            return not lock.is_free()

    def note(self, key: str, **facts: Any) -> None:
        """Adds to the facts of an entry in use. They may be lost."""
        with suppress(OSError), self._lock("room") as lock:
            if lock.exclude() and (entry := self._read(str(self._entries / key))):
                _write(entry.folder, replace(entry, facts={**entry.facts, **facts}))

    def fact(self, key: str, name: str) -> Any:
        """None if there is none."""
        entry = self._read(str(self._entries / key))
        return entry and entry.facts.get(name)

    def is_right(self, entry: Entry) -> bool:
        """Whether an entry still has the content that it was made with."""
        with self._lock(entry.key) as lock:
            while not lock.share():
                time.sleep(0.05)
            try:
                return digest_of(entry.data) == entry.sha256
            except FileNotFoundError:
                # Removed meanwhile, or its data is missing.
                return not entry.folder.exists()

    def _tidy(self) -> None:
        """Removes what nobody will go on with, and what somebody was removing when he was killed."""
        for path in self._trash.iterdir():
            shutil.rmtree(path, ignore_errors=True)
        for path in self._parts.iterdir():
            with suppress(FileNotFoundError):
                if max(each.stat().st_mtime for each in (path, *path.iterdir())) < time.time() - _STALE:
                    self.remove(Entry(path.name, "", "", 0, folder=path))

    def _discard(self, folder: Path) -> None:
        """By a rename first: nobody may find an entry that is half removed."""
        gone = self._trash / uuid.uuid4().hex
        with suppress(FileNotFoundError):
            folder.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _read(self, folder: str) -> Entry | None:
        try:
            # As a text, and only what may have changed: there may be ten thousand of them.
            status = os.stat(f"{folder}/entry.json")  # noqa: PTH116
            known = self._known.get((folder, status.st_ino))
            if known is None or known.used != status.st_mtime:
                path = Path(folder)
                content = json.loads((path / "entry.json").read_text())
                known = Entry(**content, used=status.st_mtime, folder=path, is_part=path.parent == self._parts)
                self._known[folder, status.st_ino] = known
            return known
        except (OSError, ValueError, TypeError):
            return None

    def _whole(self, folder: Path) -> Entry | None:
        entry = self._read(str(folder))
        if entry is None:
            return None
        try:
            status = entry.data.stat()
        except OSError:
            return None
        return entry if stat.S_ISDIR(status.st_mode) or status.st_size == entry.size else None

    def _lock(self, name: str) -> Lock:
        return Lock(self.folder / "lock", name)


class _Patience:
    """Waits for another process as long as something changes in the folder it works in."""

    def __init__(self, folder: Path, what: str) -> None:
        self._folder, self._what = folder, what
        self._pause, self._seen, self._since = 0.01, None, time.monotonic()

    def wait(self) -> None:
        time.sleep(self._pause * random.uniform(0.5, 1))
        self._pause = min(0.5, self._pause * 1.5)
        seen: Any = None
        with suppress(OSError):
            seen = sorted((path.name, path.stat().st_mtime_ns) for path in self._folder.iterdir())
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        elif time.monotonic() - self._since > _STALLED:
            raise StoreError(f"{self._what}: waited {_STALLED / 60:.0f} minutes for another process, which gets "
                             f"nowhere with it in {self._folder}", transient=True)


def settle(data: Path) -> str:
    """Returns the digest of an entry's data, which then has reached the disk: a crash of the host can't leave less than
    all of it under its final name. The many files of a tree are not waited for; it is counted whenever it is used."""
    from concurrent.futures import ThreadPoolExecutor

    if data.is_dir():
        return digest_of(data)
    with data.open("rb") as file, ThreadPoolExecutor(1) as other:
        synced = other.submit(os.fsync, file.fileno())
        digest = digest_of(data)
        synced.result()
    return digest


def _write(folder: Path, entry: Entry) -> None:
    content = {name: value for name, value in asdict(entry).items() if name not in ("used", "folder", "is_part")}
    part = folder / ".entry.json"
    part.write_text(json.dumps(content))
    part.replace(folder / "entry.json")
