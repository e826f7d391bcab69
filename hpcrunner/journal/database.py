"""Opening the journal's file safely: what kind of file system it lies on decides how SQLite may write it."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpcrunner.errors import HpcrunnerError, NotFoundError, StoreError

_WAITS = 30.0
"""Seconds for which a lock of SQLite is waited for."""
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "tmpfs", "ramfs", "overlay"})

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    digest TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL,
    generation INTEGER NOT NULL DEFAULT 1,
    attempt INTEGER NOT NULL DEFAULT 0,
    outcome TEXT,
    reason TEXT NOT NULL DEFAULT '',
    request TEXT NOT NULL DEFAULT '{}',
    max_duration REAL,
    expires_at REAL,
    received_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    not_before REAL NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0,
    run_dir TEXT NOT NULL DEFAULT '',
    image TEXT NOT NULL DEFAULT '',
    tag TEXT NOT NULL DEFAULT '',
    job_id TEXT NOT NULL DEFAULT '',
    gpu_ids TEXT NOT NULL DEFAULT '[]',
    exit_code INTEGER,
    started_at REAL,
    finished_at REAL,
    host TEXT NOT NULL DEFAULT '',
    cancelling TEXT NOT NULL DEFAULT '',
    removing INTEGER NOT NULL DEFAULT 0,
    notes TEXT NOT NULL DEFAULT '[]',
    job_name TEXT NOT NULL DEFAULT '',
    task INTEGER,
    partition TEXT NOT NULL DEFAULT '',
    submitted_at REAL NOT NULL DEFAULT 0,
    waiting TEXT NOT NULL DEFAULT '',
    avoid TEXT NOT NULL DEFAULT '[]',
    resumes INTEGER NOT NULL DEFAULT 0,
    cancelled_at REAL NOT NULL DEFAULT 0,
    told TEXT NOT NULL DEFAULT 'waiting',
    save_at REAL,
    ended_at REAL NOT NULL DEFAULT 0,
    UNIQUE (queue, digest)
);
CREATE INDEX runs_by_state ON runs (state);
CREATE INDEX runs_by_key ON runs (key);
CREATE TABLE messages (run INTEGER PRIMARY KEY REFERENCES runs (id), payload BLOB NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id),
    at REAL NOT NULL,
    state TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX events_by_run ON events (run);
CREATE TABLE queues (name TEXT PRIMARY KEY, gone_since REAL);
CREATE TABLE lease (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    host TEXT NOT NULL,
    boot TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    beat_at REAL NOT NULL
);
"""
VERSION = 3
_UPGRADES = {1: (
    "ALTER TABLE runs ADD COLUMN job_name TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN task INTEGER",
    "ALTER TABLE runs ADD COLUMN partition TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN submitted_at REAL NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN waiting TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE runs ADD COLUMN avoid TEXT NOT NULL DEFAULT '[]'",
    "ALTER TABLE runs ADD COLUMN resumes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN cancelled_at REAL NOT NULL DEFAULT 0",
    "UPDATE runs SET job_name = tag, submitted_at = updated_at",
), 2: (
    "ALTER TABLE runs ADD COLUMN told TEXT NOT NULL DEFAULT 'waiting'",
    "ALTER TABLE runs ADD COLUMN save_at REAL",
    "ALTER TABLE runs ADD COLUMN ended_at REAL NOT NULL DEFAULT 0",
    "UPDATE runs SET told = 'running', save_at = 0 WHERE state = 'running'",
    "UPDATE runs SET ended_at = updated_at WHERE state = 'ending'",
)}
"""What brings a journal of that version to the next one."""


def connect(path: Path) -> sqlite3.Connection:
    """Opens the journal for writing, making it if there is none. Readable by its owner only: messages hold keys.

    Raises HpcrunnerError if the file is not a journal or is of a newer hpcrunner.
    """
    _create(path)
    db = _open(f"{path.as_uri()}?mode=rw", path)
    try:
        version = _version(db, path)
        # WAL needs memory shared between processes, which network file systems don't give.
        # https://www.sqlite.org/wal.html
        _set_mode(db, "wal" if file_system(path) in _LOCAL else "delete")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        if version == 0:
            with transaction(db):
                if _version(db, path) == 0:
                    for statement in _SCHEMA.split(";\n"):
                        db.execute(statement)
                    db.execute("INSERT INTO meta VALUES ('install', ?)", (os.urandom(8).hex(),))
                    db.execute(f"PRAGMA user_version = {VERSION}")
        elif version < VERSION:
            _upgrade(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _set_mode(db: sqlite3.Connection, mode: str) -> None:
    """Changing the mode fails at once where somebody else has the file open: SQLite does not wait for that."""
    end = time.monotonic() + _WAITS
    while db.execute("PRAGMA journal_mode").fetchone()[0] != mode:
        try:
            db.execute(f"PRAGMA journal_mode = {mode}")
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    with transaction(db):
        for version in range(_version(db, path), VERSION):
            for statement in _UPGRADES[version]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")


def connect_read_only(path: Path) -> sqlite3.Connection:
    """Opens the journal for looking only. Raises NotFoundError if there is none yet."""
    if not path.exists():
        raise NotFoundError(f"{path}: no journal yet; `hpcrunner submit-from-queue` makes it")
    db = _open(f"{path.as_uri()}?mode=ro", path)
    try:
        try:
            version = _version(db, path)
        except sqlite3.OperationalError:
            if not _is_at_rest(path):
                raise
            db.close()
            db = _open(f"{path.as_uri()}?immutable=1", path)
            version = _version(db, path)
        if version == 0:
            raise NotFoundError(f"{path}: the journal is empty; `hpcrunner submit-from-queue` fills it")
        if version < VERSION:
            raise HpcrunnerError(f"{path}: written by an older hpcrunner; `hpcrunner submit-from-queue` upgrades it")
    except BaseException:
        db.close()
        raise
    return db


def _is_at_rest(path: Path) -> bool:
    """Whether it is whole and nobody can be writing it: where files can't be made, which SQLite needs even for reading,
    and nobody left any."""
    others = [path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal")]
    return not os.access(path.parent, os.W_OK) and not any(other.exists() for other in others)


def _create(path: Path) -> None:
    """Makes an empty file for the journal, if there is none.

    An existing one must not even be opened and closed: that would release every lock that this process
    holds on it through SQLite (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        if not path.is_file():
            raise HpcrunnerError(f"{path}: the journal can't be made: {error.strerror}") from error


def _open(uri: str, path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(uri, uri=True, timeout=_WAITS, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise HpcrunnerError(f"{path}: the journal can't be opened: {error}") from error
    db.row_factory = sqlite3.Row
    return db


@contextmanager
def trouble_is_told(path: Path, *, read_only: bool) -> Iterator[None]:
    """Raises StoreError for what is no fault of hpcrunner's, with the reason, which SQLite doesn't say."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if not re.search("disk|readonly|unable to open|lock", str(error)):
            raise
        # What is not in the journal was not done, or is found again.
        text = "read" if read_only else "written"
        rest = "" if read_only else "; nothing is lost, and it goes on with the next tick that can"
        raise StoreError(f"{path}: the journal can't be {text}: {error}{_why(path)}{rest}", transient=True) from error


def _why(path: Path) -> str:
    try:
        disk = os.statvfs(path.parent)
    except OSError as error:
        return f" ({path.parent}: {error.strerror})"
    if disk.f_flag & os.ST_RDONLY:
        return f" (the file system of {path.parent} is read-only)"
    if not disk.f_bavail or (disk.f_files and not disk.f_favail):
        return f" (the disk of {path.parent} is full)"
    if not all(os.access(place, os.R_OK | os.W_OK) for place in (path.parent, path)):
        return f" (this user may not write to {path.parent})"
    return ""


def _version(db: sqlite3.Connection, path: Path) -> int:
    try:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.OperationalError:
        raise  # That says nothing of what the file is.
    except sqlite3.DatabaseError as error:
        raise HpcrunnerError(f"{path}: can't be read as a journal of hpcrunner: {error}") from error
    if version > VERSION:
        raise HpcrunnerError(f"{path}: written by a newer hpcrunner (journal version {version}, "
                             f"this one knows {VERSION}); upgrade hpcrunner")
    return version


class transaction:
    """`with transaction(db):` one durable all-or-nothing change; takes the write lock at once."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            # Also after a COMMIT that failed, which may leave the transaction open.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")


def file_system(path: Path, mounts: str | None = None) -> str:
    """Type of the file system that holds `path`, as /proc/self/mounts names it (proc(5)); "" if unknown."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape")
        except OSError:
            return ""
    where, found, length = str(path.resolve()), "", -1
    for line in mounts.split("\n"):
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Blanks, tabs, newlines and backslashes are written as three octal digits.
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[1]).rstrip("/")
        if (where == point or where.startswith(point + "/")) and len(point) >= length:
            found, length = fields[2], len(point)
    return found
