"""Moving files in threads, beside the one thread that has the journal.

The pool knows nothing of the journal: it runs a function and keeps what it returned or raised until the main thread
takes it (`done`). What is under way is told to the planner, which plans nothing beside it; so each run has at most one
transfer. All of it may vanish at any instant: the journal changes only when the result is taken.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from hpcrunner.errors import HpcrunnerError, UnavailableError
from hpcrunner.model import Run

_BACKLOG = 8
"""Transfers that are begun ahead, for each thread; more would only hold memory."""
_LAST_WORDS = 5.0
"""Seconds for which threads that are told to stop are waited for at the end."""


class Urgency(IntEnum):
    """What comes first among those that wait. Results before inputs: somebody waits for them, and they free a disk."""

    RETURN = 0
    LOOK = 1
    TELL = 2
    CHECKPOINT = 3
    STAGE = 4
    REMOVAL = 5


_OWN = frozenset({Urgency.RETURN, Urgency.LOOK, Urgency.TELL})
"""Each of these has a thread of its own, beside those for all: downloads may take days, and a server that doesn't
answer holds a thread for minutes."""
NO_RUN = 0
"""Stands for what is of no run; their ids begin with 1."""


class Stopped(HpcrunnerError):
    """The transfer was told to stop."""

    transient = True


@dataclass
class Transfer:
    """One transfer. It is called with the bytes that were moved, from any thread (`stores.base.Progress`)."""

    run: Run | None
    what: str
    """For the display."""
    work: Callable[[Transfer], Any]
    record: Callable[[Any], object]
    """Called by the main thread with what `work` returned."""
    failed: Callable[[Exception], None]
    """Called by the main thread with what `work` raised, unless it was told to stop."""
    guard: Callable[[], None]
    """Raises if this process must not touch anything any more."""
    urgency: Urgency = Urgency.STAGE
    moved: int = 0
    """Bytes. For the display only: threads that add at the same time may lose some."""
    total: int | None = None
    """Bytes, where it is known."""
    result: Any = None
    error: Exception | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> int:
        return self.run.id if self.run else NO_RUN

    def __call__(self, count: int) -> None:
        self.check()
        self.moved += count

    def check(self) -> None:
        """Raises Stopped, or BusyError if the lease is over. Called often, so it is cheap."""
        if self.stopping.is_set():
            raise Stopped(f"{self.what}: told to stop")
        self.guard()

    def begin(self, what: str, total: int | None = None) -> None:
        """The next part of it."""
        self.check()
        self.what, self.total, self.moved = what, total, 0


class Transfers:
    """At most `limit` at a time, and one more of each kind in `_OWN`; the most urgent of those that wait is next.
    `guard`: see `Transfer`.

    `with Transfers(...)`: at its end all are stopped, as by a crash.
    """

    def __init__(self, limit: int, guard: Callable[[], None]) -> None:
        self._limit, self._guard = limit, guard
        self._changed = threading.Condition()
        self._waiting: list[tuple[Urgency, int, Transfer]] = []
        self._numbers = itertools.count()
        self._all: dict[int, Transfer] = {}
        self._done: list[Transfer] = []
        self._threads: dict[threading.Thread, Urgency | None] = {}
        """What each works on; None: on everything."""

    def __enter__(self) -> Transfers:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._waiting.clear()
            for transfer in self._all.values():
                transfer.stopping.set()
            self._changed.wait_for(lambda: not self._threads, _LAST_WORDS)

    @property
    def under_way(self) -> frozenset[int]:
        """Ids of the runs that have a transfer whose result was not taken yet, and maybe NO_RUN."""
        return frozenset(self._all)

    def room(self, urgency: Urgency) -> int:
        """How many more of these it is worth starting now; what is less urgent takes no room from them."""
        return self._limit * _BACKLOG - sum(one.urgency <= urgency for one in self._all.values())

    @property
    def has_news(self) -> bool:
        return bool(self._done)

    def shown(self) -> list[tuple[str, int, int | None]]:
        """(what, bytes moved, of how many) of those that are being worked on, for the display."""
        with self._changed:
            idle = {id(transfer) for _, _, transfer in self._waiting} | {id(transfer) for transfer in self._done}
            return [(one.what, one.moved, one.total) for one in self._all.values() if id(one) not in idle]

    def start(self, run: Run | None, what: str, urgency: Urgency, work: Callable[[Transfer], Any],
              record: Callable[[Any], object], failed: Callable[[Exception], None]) -> None:
        """Has `work` done by a thread. See `Transfer` for the rest."""
        transfer = Transfer(run, what, work, record, failed, self._guard, urgency)
        with self._changed:
            assert transfer.key not in self._all, "a run has one transfer at a time"
            self._all[transfer.key] = transfer
            entry = (urgency, next(self._numbers), transfer)
            self._waiting.append(entry)
            if (error := self._have_threads_for(urgency)) is not None:
                self._waiting.remove(entry)
                self._end(transfer, UnavailableError(f"{what}: no thread can be started for it: {error}; how many "
                                                     "threads a user may have is told by `ulimit -u`", transient=True))

    def _have_threads_for(self, urgency: Urgency) -> Exception | None:
        """Starts a thread if one more may be. Returns what prevented that if there is none that does it in its turn."""
        working = list(self._threads.values())
        kind = urgency if urgency in _OWN and urgency not in working else None
        if kind is None and working.count(None) >= self._limit:
            return None
        # Not waited for at exit: that is a crash like any other.
        thread = threading.Thread(target=self._serve, args=(kind,), name="transfer", daemon=True)
        self._threads[thread] = kind
        try:
            thread.start()
        except RuntimeError as error:
            del self._threads[thread]
            return None if None in working or urgency in working else error
        return None

    def stop(self, key: int) -> None:
        """Tells a transfer to stop; at once if it only waits, else when its next bytes have moved."""
        with self._changed:
            if (transfer := self._all.get(key)) is None:
                return
            transfer.stopping.set()
            for entry in self._waiting:
                if entry[2] is transfer:
                    self._waiting.remove(entry)
                    self._end(transfer, Stopped(f"{transfer.what}: stopped before it began"))
                    break

    def done(self) -> list[Transfer]:
        """Those that came to an end, each once, whose runs may have another one now."""
        with self._changed:
            done, self._done = self._done, []
            for transfer in done:
                del self._all[transfer.key]
            return done

    def wait(self, seconds: float) -> bool:
        """Until one comes to an end; whether one did. At once if none is under way."""
        with self._changed:
            return self._changed.wait_for(lambda: self._done or not self._all, seconds) and bool(self._done)

    def _serve(self, kind: Urgency | None) -> None:
        while True:
            with self._changed:
                entry = min((entry for entry in self._waiting if kind in (None, entry[0])), default=None)
                if entry is None:
                    del self._threads[threading.current_thread()]
                    self._changed.notify_all()
                    return
                self._waiting.remove(entry)
                transfer = entry[2]
            error: Exception | None = None
            try:
                transfer.check()
                transfer.result = transfer.work(transfer)
            except Exception as raised:
                error = raised
            with self._changed:
                self._end(transfer, error)

    def _end(self, transfer: Transfer, error: Exception | None) -> None:
        transfer.error = error
        self._done.append(transfer)
        self._changed.notify_all()
