"""Reading and writing runs. Every change of state goes through `Journal.move`."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hpcrunner.errors import HpcrunnerError, NotFoundError
from hpcrunner.journal.database import connect, connect_read_only, transaction, trouble_is_told
from hpcrunner.journal.lease import Lease
from hpcrunner.model import ACTIVE, TRANSITIONS, Outcome, Request, Run, State

_COLUMNS = tuple(name for name in Run.__dataclass_fields__ if name != "id")
_REPEATS = 3
"""So often the history of a run tells the same in a row; after that only when it was last so."""


class Journal:
    """The journal of one install.

    Opened for writing it holds the lease until `close`; raises BusyError if another process has it.
    Opened with `read_only` it never blocks and is never blocked; raises NotFoundError if there is none.
    Where the disk is full or read-only, opening it and what is done in its `with` raise StoreError.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._lease: Lease | None = None
        self._is_together = False
        self._is_read_only = read_only
        with trouble_is_told(path, read_only=read_only):
            self._db = connect_read_only(path) if read_only else connect(path)
            try:
                self._lease = None if read_only else Lease(self._db, path)
                self.install_id = str(self._db.execute("SELECT value FROM meta WHERE name = 'install'").fetchone()[0])
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        with trouble_is_told(self.path, read_only=self._is_read_only):
            try:
                self.close()
            except sqlite3.OperationalError:
                if error is None:
                    raise
            if isinstance(error, sqlite3.OperationalError):
                raise error

    def close(self) -> None:
        try:
            if self._lease is not None:
                self._lease.release()
        finally:
            self._db.close()

    # -- reading --

    def runs(self, states: Iterable[State] = ACTIVE) -> list[Run]:
        """The runs in these states, oldest first."""
        wanted = [state.value for state in states]
        marks = ",".join("?" * len(wanted))
        rows = self._db.execute(f"SELECT * FROM runs WHERE state IN ({marks}) ORDER BY id", wanted)
        return [_run(row) for row in rows]

    def current(self, run: Run) -> Run:
        """The run as it is now."""
        return self._get(run.id)

    def to_remove(self) -> list[Run]:
        """Runs that are over and whose run directories are still to be removed."""
        return [_run(row) for row in self._db.execute("SELECT * FROM runs WHERE removing")]

    def find(self, key: str) -> list[Run]:
        """All runs of the experiment `key`, oldest first. Raises NotFoundError if there is none."""
        found = [_run(row) for row in self._db.execute("SELECT * FROM runs WHERE key = ? ORDER BY id", (key,))]
        if not found:
            raise NotFoundError(f"{key}: no such experiment in {self.path}; `hpcrunner status` lists them")
        return found

    def message(self, run: Run) -> bytes:
        row = self._db.execute("SELECT payload FROM messages WHERE run = ?", (run.id,)).fetchone()
        return bytes(row[0])

    def events(self, run: Run) -> list[tuple[float, str, str]]:
        """(time, state, text) of everything that happened to a run, oldest first."""
        rows = self._db.execute("SELECT at, state, text FROM events WHERE run = ? ORDER BY at, id", (run.id,))
        return [(row[0], row[1], row[2]) for row in rows]

    def queues_gone(self) -> dict[str, float | None]:
        """Known queues, each with the time since when it is gone (None: it is there)."""
        return {row[0]: row[1] for row in self._db.execute("SELECT name, gone_since FROM queues")}

    def recall(self, name: str) -> str:
        """What was remembered under a name; empty if nothing was."""
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    # -- writing --

    def remember(self, name: str, value: str) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def receive(
        self, queue: str, payload: bytes, *, key: str, request: Request | None = None,
        max_duration: float | None = None, expires_at: float | None = None,
        rejected: str = "", notes: tuple[str, ...] = (), now: float | None = None,
    ) -> Run | None:
        """Takes a message into the inbox, durably, and returns its run; None if it was taken before.

        The same bytes from the same queue are the same submission: a message holds the time at which it
        was made, so this recognises every redelivery. With `rejected` the run is over at once.
        """
        from hashlib import sha256

        at = time.time() if now is None else now
        state = State.DONE if rejected else State.RECEIVED
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO runs (queue, digest, key, state, outcome, reason, request, max_duration, expires_at,"
                " received_at, updated_at, notes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (queue, digest) DO NOTHING",
                (queue, sha256(payload).hexdigest(), key, state.value,
                 Outcome.REJECTED.value if rejected else None, rejected, json.dumps(asdict(request or Request())),
                 max_duration, expires_at, at, at, json.dumps(notes)))
            if cursor.rowcount == 0:
                return None
            run = int(cursor.lastrowid or 0)
            self._db.execute("INSERT INTO messages VALUES (?, ?)", (run, payload))
            self._event(run, at, state, rejected or f"taken from queue {queue}")
            return self._get(run)

    def move(self, run: Run, to: State, text: str = "", **changes: Any) -> Run:
        """Brings a run to another state, with changes of its other fields, in one durable step.

        Raises HpcrunnerError if the move is not in `TRANSITIONS`, or the run is no longer as `run` says:
        both are mistakes of the program, and nothing is written.
        """
        if to not in TRANSITIONS[run.state]:
            raise HpcrunnerError(f"run {run.short_id} of {run.key}: {run.state.value} -> {to.value} is no legal move")
        return self._write(run, to, text, {"tries": 0, "not_before": 0.0, **changes})

    def note(self, run: Run, text: str = "", **changes: Any) -> Run:
        """Changes fields of a run that stays in its state."""
        return self._write(run, run.state, text, changes)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Everything written inside becomes durable in one step at the end, or not at all."""
        with transaction(self._db):
            self.check()
            self._is_together = True
            try:
                yield
            finally:
                self._is_together = False

    def set_queue_gone(self, queue: str, since: float | None) -> None:
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO queues VALUES (?, ?)", (queue, since))

    # -- inside --

    def _write(self, run: Run, to: State, text: str, changes: Mapping[str, Any]) -> Run:
        at = time.time()
        values = {"state": to.value, "updated_at": at, **{name: _value(value) for name, value in changes.items()}}
        names = ", ".join(f"{name} = ?" for name in values)
        with self._transaction():
            done = self._db.execute(
                f"UPDATE runs SET {names} WHERE id = ? AND state = ? AND generation = ?",
                (*values.values(), run.id, run.state.value, run.generation)).rowcount
            if done != 1:
                raise HpcrunnerError(f"run {run.short_id} of {run.key} is no longer {run.state.value}")
            if text:
                self._event(run.id, at, to, text)
            return self._get(run.id)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        if self._is_together:
            yield
            return
        with transaction(self._db):
            self.check()
            yield

    def _event(self, run: int, at: float, state: State, text: str) -> None:
        # What is tried for days, a submission that the site's config spoils, tells the same again and again.
        same = self._db.execute(
            "SELECT id FROM (SELECT id, state, text FROM events WHERE run = ? ORDER BY id DESC LIMIT ?)"
            " WHERE state = ? AND text = ?", (run, 3 * _REPEATS, state.value, text)).fetchall()
        if len(same) >= _REPEATS:
            self._db.execute("UPDATE events SET at = ? WHERE id = ?", (at, same[0]["id"]))
        else:
            self._db.execute("INSERT INTO events (run, at, state, text) VALUES (?, ?, ?, ?)",
                             (run, at, state.value, text))

    def _get(self, run: int) -> Run:
        return _run(self._db.execute("SELECT * FROM runs WHERE id = ?", (run,)).fetchone())

    def check(self) -> None:
        """Raises BusyError if another process took over. To be called before what the journal can't undo, too."""
        if self._lease is None:
            raise HpcrunnerError("the journal is open for reading only")
        self._lease.check()

    def check_from_thread(self) -> None:
        """`check` for another thread than the one that works with this journal."""
        assert self._lease is not None
        self._lease.check_from_thread()

    def check_often(self) -> None:
        """The same, for whoever asks again and again: cheap, and at most some seconds behind. Raises UnavailableError
        if the journal can't say whose the lease is."""
        assert self._lease is not None
        self._lease.check_often()


def _run(row: sqlite3.Row) -> Run:
    values = {name: row[name] for name in _COLUMNS}
    values.update(
        state=State(row["state"]),
        outcome=None if row["outcome"] is None else Outcome(row["outcome"]),
        request=Request(**json.loads(row["request"])),
        removing=bool(row["removing"]),
        gpu_ids=tuple(json.loads(row["gpu_ids"])),
        notes=tuple(json.loads(row["notes"])),
        avoid=tuple(json.loads(row["avoid"])),
    )
    return Run(id=row["id"], **values)


def _value(value: Any) -> Any:
    if isinstance(value, (State, Outcome)):
        return value.value
    return json.dumps(value) if isinstance(value, tuple) else value
