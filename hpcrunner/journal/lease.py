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
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from hpcrunner import proc
from hpcrunner.errors import BusyError, HpcrunnerError, UnavailableError
from hpcrunner.journal.database import connect, transaction

LASTS = 120.0
"""Seconds without a beat after which another host may take over."""
_BEAT_EVERY = 20.0
_SAFE = 90.0
"""Seconds after the last beat for which nobody else can have taken over, clocks that run a little apart included."""
_FRESH = 1.0
"""Seconds for which the journal's word holds for those that ask often."""


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
        self._looking = threading.Lock()
        self._beaten = self._seen = _clock()
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
        """The same from any thread, with a connection of its own. Renews what is so old that another host may take it
        in a moment."""
        if self._stop.is_set():
            raise BusyError(f"{self._path}: this process has given the lease on this install back")
        if self._is_old():
            self._renew()
            return
        at = _clock()
        with closing(connect(self._path)) as db:
            row = db.execute("SELECT epoch FROM lease").fetchone()
        if row is None or row[0] != self.epoch:
            raise self._lost()
        self._seen = at

    def check_often(self) -> None:
        """`check_from_thread` for those that ask again and again, as for every piece of a file: the journal is looked
        at once in `_FRESH` seconds, by one thread. Raises UnavailableError if the lease is over, and the journal can't
        say whose it is now."""
        if self._is_fresh() or not self._looking.acquire(blocking=self._is_old()):
            return
        try:
            if not self._is_fresh():  # nor made so by another one, which was waited for
                self.check_from_thread()
        except BusyError:
            raise
        except (sqlite3.Error, HpcrunnerError, OSError) as error:
            if self._is_old():
                raise UnavailableError(f"{self._path}: the lease on this install could not be renewed for "
                                       f"{_SAFE:.0f} s: {error}; no files are moved until it can be, since another "
                                       "hpcrunner may work on it", transient=True) from error
        finally:
            self._looking.release()

    def _is_fresh(self) -> bool:
        return _clock() <= self._seen + _FRESH and not self._stop.is_set()

    def _is_old(self) -> bool:
        """Whether somebody may have taken over."""
        return _clock() > self._beaten + _SAFE

    def _renew(self) -> None:
        """Raises BusyError if somebody took over."""
        at = _clock()
        with closing(connect(self._path)) as db, transaction(db):
            done = db.execute("UPDATE lease SET beat_at = ? WHERE epoch = ?", (time.time(), self.epoch))
        if not done.rowcount:
            raise self._lost()
        self._beaten = self._seen = at

    def _lost(self) -> BusyError:
        return BusyError(f"{self._path}: another hpcrunner took over this install; this process stops")

    def release(self) -> None:
        self._stop.set()
        self._thread.join()
        with transaction(self._db):
            self._db.execute("UPDATE lease SET pid = 0 WHERE epoch = ?", (self.epoch,))

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_EVERY):
            # A full disk or a long lock: the next beat may get through. Who took over is told by the checks.
            with suppress(sqlite3.Error, HpcrunnerError, OSError):
                self._renew()
