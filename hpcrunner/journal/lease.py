"""One process at a time writes a journal, on whatever host it runs.

The lease is a row that names its holder: host, boot, pid and the process's start time. On the holder's
own host the kernel tells whether it lives; from another host only its beat does. Every takeover counts
the epoch up, and every write of the journal checks the epoch, so that a holder that was stopped for
longer than the lease lasts can't write when it wakes.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from hpcrunner import proc
from hpcrunner.errors import BusyError, HpcrunnerError
from hpcrunner.journal.database import connect, transaction

LASTS = 120.0
"""Seconds without a beat after which another host may take over."""
_BEAT_EVERY = 20.0
_SAFE = 90.0
"""Seconds after the last beat for which nobody else can have taken over, clocks that run a little apart included."""


@dataclass(frozen=True)
class Holder:
    host: str
    boot: str
    pid: int
    started: str
    beat_at: float = 0.0


def me() -> Holder:
    pid = os.getpid()
    return Holder(proc.host_name(), proc.boot_id(), pid, proc.start_time(pid) or "", time.time())


def is_free(holder: Holder, mine: Holder, start_time: Callable[[int], str | None], now: float) -> bool:
    """Whether the lease of `holder` may be taken by `mine`."""
    if holder.pid == 0:
        return True
    if holder.host == mine.host:
        return holder.boot != mine.boot or start_time(holder.pid) != holder.started
    # A clock that runs ahead over there must not hold the lease for ever.
    return not now - LASTS <= holder.beat_at <= now + LASTS


def _clock() -> float:
    """Seconds, those counted in which the host slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """Held from the constructor to `release`; beats in a thread of its own while it lives.

    Raises BusyError, naming the holder, if another live process has it.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = db, path
        self._stop = threading.Event()
        mine = me()
        self._beaten = _clock()
        with transaction(db):
            row = db.execute("SELECT epoch, host, boot, pid, started, beat_at FROM lease").fetchone()
            if row is not None:
                holder = Holder(*tuple(row)[1:])
                if not is_free(holder, mine, proc.start_time, mine.beat_at):
                    raise BusyError(
                        f"{path}: another hpcrunner works on this install: process {holder.pid} on {holder.host}, "
                        f"last heard of {max(0, mine.beat_at - holder.beat_at):.0f} s ago; "
                        "it is enough to let it work")
            self.epoch = 1 if row is None else row["epoch"] + 1
            db.execute("INSERT OR REPLACE INTO lease VALUES (1, ?, ?, ?, ?, ?, ?)",
                       (self.epoch, mine.host, mine.boot, mine.pid, mine.started, mine.beat_at))
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises BusyError if somebody took over. Call inside a transaction, before its writes."""
        row = self._db.execute("SELECT epoch FROM lease").fetchone()
        if row is None or row[0] != self.epoch:
            raise self._lost()

    def check_from_thread(self) -> None:
        """The same from any thread, with a connection of its own."""
        with closing(connect(self._path)) as db:
            row = db.execute("SELECT epoch FROM lease").fetchone()
        if row is None or row[0] != self.epoch:
            raise self._lost()

    def check_clock(self) -> None:
        """Raises BusyError if the last beat is so long ago that somebody may have taken over. Costs nothing; may be
        called from any thread."""
        if _clock() > self._beaten + _SAFE:
            raise BusyError(f"{self._path}: the lease on this install could not be renewed for {_SAFE:.0f} s; this "
                            "process stops, since another one may work on it")

    def _lost(self) -> BusyError:
        return BusyError(f"{self._path}: another hpcrunner took over this install; this process stops")

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        with transaction(self._db):
            self._db.execute("UPDATE lease SET pid = 0 WHERE epoch = ?", (self.epoch,))

    def _beat(self) -> None:
        db: sqlite3.Connection | None = None
        while not self._stop.wait(_BEAT_EVERY):
            try:
                if db is None:
                    db = connect(self._path)
                at = _clock()
                with transaction(db):
                    beat = db.execute("UPDATE lease SET beat_at = ? WHERE epoch = ?", (time.time(), self.epoch))
                if beat.rowcount:
                    self._beaten = at
            except (sqlite3.Error, HpcrunnerError, OSError):
                continue  # A full disk or a long lock: the next beat may get through, and `check` guards the rest.
        if db is not None:
            db.close()
