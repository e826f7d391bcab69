"""The journal: taking messages in, legal moves, who may write it, and what damage it notices."""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from hpcrunner import proc
from hpcrunner.errors import BusyError, HpcrunnerError, NotFoundError, UnavailableError
from hpcrunner.journal import database, lease
from hpcrunner.journal.database import connect, connect_read_only, file_system, transaction
from hpcrunner.journal.lease import LASTS, Holder, is_free
from hpcrunner.journal.store import Journal
from hpcrunner.model import ACTIVE, TRANSITIONS, Outcome, Request, Run, State

ORDER = [State.STAGED, State.READY, State.SUBMITTING, State.SUBMITTED, State.RUNNING, State.ENDING, State.DONE]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as journal:
        yield journal


def receive(journal: Journal, key: str = "key", queue: str = "q", **fields: Any) -> Run:
    run = journal.receive(queue, json.dumps({"key": key}).encode(), key=key, **fields)
    assert run is not None
    return run


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another process with this code, which can print to us and wait for us."""
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, text=True)


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


# -- taking in --


def test_receive_keeps_everything(journal: Journal) -> None:
    payload = b'{"odd": "\xff\\u0000"}'
    request = Request(2, 3, 4, 5, 6)
    run = journal.receive("q", payload, key="a 'key' \u00e4", request=request, max_duration=1.5, expires_at=9.5,
                          notes=("one", "two"), now=7.0)
    assert run == Run(1, "q", "a 'key' \u00e4", State.RECEIVED, request=request, max_duration=1.5, expires_at=9.5,
                      received_at=7.0, updated_at=7.0, notes=("one", "two"))
    assert journal.runs() == journal.find("a 'key' \u00e4") == [journal.current(run)] == [run]
    assert journal.message(run) == payload
    assert journal.events(run) == [(7.0, "received", "taken from queue q")]


def test_a_message_that_comes_again_is_known(journal: Journal) -> None:
    run = journal.receive("q", b"one", key="k")
    assert run is not None
    assert journal.receive("q", b"one", key="k") is None
    assert journal.receive("q", b"one", key="another") is None  # the bytes decide
    assert journal.runs() == [run]
    assert len(journal.events(run)) == 1
    for other in (journal.receive("q", b"two", key="k"), journal.receive("p", b"one", key="k")):
        assert other is not None
    assert len(journal.find("k")) == 3


def test_a_message_is_known_for_ever(path: Path) -> None:
    with Journal(path) as journal:
        run = receive(journal)
        for state in (State.ENDING, State.DONE):
            run = journal.move(run, state)
    with Journal(path) as journal:
        assert journal.receive("q", journal.message(run), key="key") is None


def test_only_a_known_message_is_called_known(journal: Journal) -> None:
    """Anything else that the database refuses must not pass for a redelivery, which is acknowledged."""
    with pytest.raises(sqlite3.IntegrityError):
        journal.receive("q", b"one", key=None)  # type: ignore[arg-type]
    assert journal.receive("q", b"one", key="k") is not None


def test_a_rejected_message_is_over_at_once(journal: Journal) -> None:
    run = journal.receive("q", b"junk", key="?", rejected="it is not JSON")
    assert run is not None
    assert (run.state, run.outcome, run.reason) == (State.DONE, Outcome.REJECTED, "it is not JSON")
    assert journal.runs() == []
    assert journal.receive("q", b"junk", key="?", rejected="it is not JSON") is None


def test_runs_come_oldest_first_and_by_state(journal: Journal) -> None:
    runs = [receive(journal, key) for key in "zax"]
    moved = journal.move(runs[1], State.STAGED)
    assert journal.runs() == [runs[0], moved, runs[2]]
    assert journal.runs([State.STAGED]) == [moved]
    assert journal.runs([]) == []
    with pytest.raises(NotFoundError, match="nobody"):
        journal.find("nobody")


# -- moving --


@pytest.mark.parametrize("to", sorted(State))
@pytest.mark.parametrize("start", sorted(ACTIVE))
def test_only_legal_moves(tmp_path: Path, start: State, to: State) -> None:
    with Journal(tmp_path / "journal") as journal:
        run = receive(journal)
        for state in ORDER[: ORDER.index(start) + 1] if start in ORDER else ():
            run = journal.move(run, state)
        assert run.state is start
        if to in TRANSITIONS[start]:
            assert journal.move(run, to).state is to
        else:
            with pytest.raises(HpcrunnerError, match="legal"):
                journal.move(run, to, "text")
            assert journal.current(run) == run
            assert len(journal.events(run)) == 1


def test_from_done_only_results_that_were_kept_lead_back(journal: Journal) -> None:
    run = journal.move(journal.move(receive(journal), State.ENDING), State.DONE)
    for state in set(State) - {State.ENDING}:
        with pytest.raises(HpcrunnerError, match="legal"):
            journal.move(run, state)


def test_every_field_comes_back_as_it_was_written(journal: Journal) -> None:
    run = journal.move(receive(journal), State.STAGED)
    changes: dict[str, Any] = {
        "generation": 2, "attempt": 3, "outcome": Outcome.LOST, "reason": "r\n\0", "not_before": 1.25, "tries": 4,
        "run_dir": "/a b", "image": "i", "tag": "t", "job_id": "7", "gpu_ids": ("a", "b"), "exit_code": -9,
        "started_at": 2.5, "finished_at": 3.5, "host": "h", "cancelling": "c", "removing": True, "notes": ("n", ""),
        "max_duration": 5.5, "expires_at": 6.5, "job_name": "hrname", "task": 3, "partition": "gpu", "submitted_at": 7.5,
        "waiting": "Priority", "avoid": ("n1", "n2"), "resumes": 5, "cancelled_at": 8.5,
            "told": "running", "save_at": 9.5, "ended_at": 10.5}
    noted = journal.note(run, "said", **changes)
    assert noted == replace(run, **changes, updated_at=noted.updated_at)
    given = {"id", "queue", "key", "state", "request", "received_at", "updated_at"}
    assert {field.name for field in fields(Run)} == given | changes.keys()  # a new field belongs into this test
    assert journal.events(run)[-1][1:] == ("staged", "said")
    changed = journal.note(noted, gpu_ids=(), removing=False, outcome=None, task=None, avoid=())
    assert (changed.outcome, changed.task, changed.avoid) == (None, None, ())
    assert len(journal.events(run)) == 2  # no text, no event


def test_a_move_ends_waiting_and_counting(journal: Journal) -> None:
    run = journal.note(receive(journal), tries=3, not_before=99.0)
    moved = journal.move(run, State.STAGED)
    assert (moved.tries, moved.not_before) == (0, 0.0)
    moved = journal.move(moved, State.READY, not_before=5.0)
    assert moved.not_before == 5.0


def test_what_is_tried_for_days_does_not_fill_the_history(journal: Journal) -> None:
    run = journal.receive("q", b"x", key="e")
    assert run
    journal.note(run, "once")
    for number in range(300):
        journal.note(run, "being tried")
        journal.note(run, "not taken")
        if number == 150:
            journal.note(run, "another reason")
    texts = [text for _, _, text in journal.events(run)]
    assert 5 < len(texts) < 20
    assert texts[:2] == ["taken from queue q", "once"] and "another reason" in texts
    # The last is the last.
    assert texts[-2:] == ["being tried", "not taken"]
    assert journal.events(run)[-1][0] == journal.current(run).updated_at


def test_a_stale_row_writes_nothing(journal: Journal) -> None:
    old = receive(journal)
    new = journal.move(old, State.STAGED)
    with pytest.raises(HpcrunnerError, match="no longer"):
        journal.move(old, State.ENDING, reason="late")
    with pytest.raises(HpcrunnerError, match="no longer"):
        journal.note(old, reason="late")
    with pytest.raises(HpcrunnerError, match="no longer"):
        journal.note(replace(new, generation=2), reason="other generation")
    assert journal.current(new) == new
    assert [event[1] for event in journal.events(new)] == ["received"]


def test_queues_that_went(journal: Journal) -> None:
    assert journal.queues_gone() == {}
    journal.set_queue_gone("a", 5.0)
    journal.set_queue_gone("b", None)
    journal.set_queue_gone("a", 6.0)
    assert journal.queues_gone() == {"a": 6.0, "b": None}


def test_what_is_to_be_removed(journal: Journal) -> None:
    run = journal.move(receive(journal), State.ENDING)
    run = journal.move(run, State.DONE, removing=True)
    assert journal.to_remove() == [run]
    journal.note(run, removing=False)
    assert journal.to_remove() == []


def test_what_is_remembered(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.recall("stopped") == ""
        journal.remember("stopped", "1 2")
        journal.remember("stopped", "3 \u00e4\n'")
    with Journal(path, read_only=True) as reader:
        assert reader.recall("stopped") == "3 \u00e4\n'"
        with pytest.raises(HpcrunnerError, match="reading only"):
            reader.remember("stopped", "")


# -- many changes at once --


def test_what_is_written_together_is_there_together(journal: Journal, path: Path) -> None:
    runs = [receive(journal, key) for key in "abc"]
    commits: list[str] = []
    journal._db.set_trace_callback(lambda statement: commits.append(statement) if statement == "COMMIT" else None)
    with journal.together():
        moved = [journal.move(run, State.STAGED, "together") for run in runs]
        journal.note(moved[0], "again", reason="seen inside")
        journal.remember("name", "value")
        assert [run.state for run in journal.runs()] == [State.STAGED] * 3
        with Journal(path, read_only=True) as reader:  # and not outside
            assert [run.state for run in reader.runs()] == [State.RECEIVED] * 3
    assert commits == ["COMMIT"]
    with Journal(path, read_only=True) as reader:
        assert [run.reason for run in reader.runs([State.STAGED])] == ["seen inside", "", ""]
        assert reader.recall("name") == "value"
    # After that everything is a step of its own again.
    journal.move(journal.current(runs[1]), State.READY)
    journal.note(journal.current(runs[1]), reason="alone")
    assert commits == ["COMMIT"] * 3


@pytest.mark.parametrize("error", [RuntimeError("odd"), KeyboardInterrupt()])
def test_what_fails_together_is_not_there_at_all(journal: Journal, error: BaseException) -> None:
    first, second = receive(journal, "a"), receive(journal, "b")
    with pytest.raises(type(error)), journal.together():
        journal.move(first, State.STAGED, "lost")
        journal.remember("name", "lost")
        raise error
    with pytest.raises(HpcrunnerError, match="no longer"), journal.together():
        journal.move(first, State.STAGED, "lost")
        journal.note(replace(second, generation=7), "stale")
    assert journal.runs() == [first, second]
    assert journal.recall("name") == ""
    assert [len(journal.events(run)) for run in (first, second)] == [1, 1]
    # Nothing of it hangs on.
    with journal.together():
        journal.move(first, State.STAGED)
    assert journal.move(second, State.STAGED).state is State.STAGED


def test_killed_in_the_midst_of_writing_together(path: Path) -> None:
    child = python("""
        import os, signal, sys
        from pathlib import Path
        from hpcrunner.journal.store import Journal
        from hpcrunner.model import State
        with Journal(Path(sys.argv[1])) as journal:
            runs = [journal.receive("q", bytes([number]), key="k") for number in range(50)]
            with journal.together():
                for run in runs[:-1]:
                    journal.move(run, State.STAGED, "together")
                os.kill(os.getpid(), signal.SIGKILL)
    """, path)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    with Journal(path) as journal:
        assert [run.state for run in journal.runs()] == [State.RECEIVED] * 50


def test_only_the_holder_of_the_lease_writes_together(path: Path) -> None:
    with Journal(path) as old:
        run = receive(old)
        with (Journal(path, read_only=True) as reader, pytest.raises(HpcrunnerError, match="reading only"),
              reader.together()):
            pass
        _be_elsewhere(path, beat_at=0.0)
        with Journal(path) as new:
            with pytest.raises(BusyError, match="took over"), old.together():
                old.move(run, State.STAGED)
            assert new.runs() == [run]


# -- an older journal --

OLD = Path(__file__).parent / "data" / "journal-1.sql"
NEW_FIELDS = ("job_name", "task", "partition", "submitted_at", "waiting", "avoid", "resumes", "cancelled_at")


@pytest.fixture
def old(path: Path) -> Path:
    """A journal as it was written by version 1."""
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.executescript(OLD.read_text())
    db.close()
    path.chmod(0o600)
    return path


def dump(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Everything in a database, but for who works on it."""
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'lease'")]
    found = {name: [dict(row) for row in db.execute(f"SELECT * FROM {name} ORDER BY 1")] for name in names}
    db.close()
    return found


def test_an_older_journal_is_upgraded_without_loss(old: Path) -> None:
    before = dump(old)
    assert len(before["runs"]) == 9
    with Journal(old) as journal:
        assert journal.install_id == "0123456789abcdef"
        runs = {run.key: run for state in State for run in journal.runs([state])}
        assert journal.queues_gone() == {"local_test": None, "local_old": 5.0}
        assert journal.message(runs["?"]) == b"\xff\0junk"
        assert journal.receive("local_test", journal.message(runs["received"]), key="received") is None
    after = dump(old)
    for table, rows in before.items():
        kept = [{name: row[name] for name in rows[0]} for row in after[table]]
        assert kept == rows, table
    # A job of the direct scheduler is still found by its tag, and its submission counts from when it was noted.
    assert (runs["running"].job_name, runs["running"].job_id) == (runs["running"].tag, "704@host") == ("hraaaa000000004", "704@host")
    assert runs["submitting"].submitted_at == runs["submitting"].updated_at
    for run in runs.values():
        assert (run.task, run.partition, run.waiting, run.avoid, run.resumes, run.cancelled_at) == (None, "", "", (), 0, 0.0)
    assert {key: run.told for key, run in runs.items() if run.told != "waiting"} == {"running": "running"}
    # What ran is looked at soon, and gets its checkpoints from then on.
    assert {key: run.save_at for key, run in runs.items() if run.save_at is not None} == {"running": 0.0}
    assert runs["received"].request == Request(2, 3 * 2**30, 4, 1, 5)
    assert runs["received"].notes == ("a note", "it's")


def test_results_that_wait_in_an_older_journal_do_so_since_their_last_change(old: Path) -> None:
    db = sqlite3.connect(old)
    with db:
        db.execute("UPDATE runs SET state = 'ending' WHERE key = 'running'")
    db.close()
    with Journal(old) as journal:
        run, other = journal.find("running")[0], journal.find("received")[0]
    assert (run.ended_at, run.told, other.ended_at) == (run.updated_at, "waiting", 0.0)


def test_an_upgraded_journal_is_like_a_new_one(old: Path, tmp_path: Path) -> None:
    with Journal(old) as journal:
        run = journal.move(journal.find("running")[0], State.SUBMITTED, task=3, avoid=("n1",), waiting="Priority")
        assert (run.task, run.avoid, run.waiting) == (3, ("n1",), "Priority")
    with Journal(tmp_path / "new"):
        pass

    def columns(path: Path) -> list[tuple[Any, ...]]:
        db = sqlite3.connect(path)
        found = [tuple(row[1:]) for row in db.execute("PRAGMA table_info(runs)")]
        assert db.execute("PRAGMA user_version").fetchone()[0] == database.VERSION
        db.close()
        return found

    assert columns(old) == columns(tmp_path / "new")
    with Journal(old) as journal, Journal(old, read_only=True) as reader:
        assert reader.runs() == journal.runs()


def test_whoever_only_looks_is_told_to_upgrade(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(HpcrunnerError, match=r"older hpcrunner; `hpcrunner submit-from-queue` upgrades it"):
        Journal(old, read_only=True)
    assert old.read_bytes() == before


def test_an_upgrade_happens_whole_or_not_at_all(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dump(old)
    statements = database._UPGRADES[1]
    monkeypatch.setitem(database._UPGRADES, 1, (*statements, "UPDATE runs SET nonsense = 1"))
    with pytest.raises(sqlite3.OperationalError, match="nonsense"):
        Journal(old)
    assert dump(old) == before
    monkeypatch.undo()
    with Journal(old) as journal:
        assert len(journal.runs()) == 7


def test_an_upgrade_waits_for_nobody_twice(old: Path) -> None:
    """Two that open it at once: the second finds it upgraded."""
    first, second = database.connect(old), database._open(f"{old.as_uri()}?mode=rw", old)
    database._upgrade(second, old)  # as if it had looked at the version before the first one upgraded
    assert second.execute("SELECT count(*) FROM runs").fetchone()[0] == 9
    first.close()
    second.close()


# -- reading only --


def test_reading_only(path: Path) -> None:
    with pytest.raises(NotFoundError, match="no journal yet"):
        Journal(path, read_only=True)
    assert not path.exists()
    with Journal(path) as journal:
        run = receive(journal)
        for _ in range(2):
            with Journal(path, read_only=True) as reader:  # the writer doesn't block it
                assert reader.runs() == [run]
                assert reader.install_id == journal.install_id
                with pytest.raises(HpcrunnerError, match="reading only"):
                    reader.move(run, State.STAGED)
                with pytest.raises(HpcrunnerError, match="reading only"):
                    reader.receive("q", b"x", key="x")
                with pytest.raises(sqlite3.OperationalError, match="readonly"):
                    reader._db.execute("DELETE FROM runs")
        moved = journal.move(run, State.STAGED)  # and isn't blocked by it
    with Journal(path, read_only=True) as reader:
        assert reader.runs() == [moved]


def test_an_empty_file_is_no_journal_yet(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with pytest.raises(NotFoundError, match="empty"):
        Journal(path, read_only=True)
    with Journal(path) as journal:
        assert journal.runs() == []


# -- the file --


@pytest.mark.parametrize("is_local", [True, False])
def test_only_the_owner_can_read_it(path: Path, is_local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "file_system", lambda path: "ext4" if is_local else "nfs4")
    before = os.umask(0)
    try:
        with Journal(path) as journal:
            receive(journal)
            with transaction(journal._db):  # while it writes there are more files
                journal._db.execute("INSERT INTO queues VALUES ('q', 1)")
                modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert len(modes) > 1
    assert set(modes.values()) == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_install_ids_differ_and_stay(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "b", "a"):
        with Journal(tmp_path / name) as journal:
            ids.append(journal.install_id)
    assert ids[0] == ids[2] != ids[1]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_of_something_else_is_refused_and_left_alone(path: Path, read_only: bool) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is somebody's diary\n" * 100)
    before = path.read_bytes()
    with pytest.raises(HpcrunnerError, match="journal"):
        Journal(path, read_only=read_only)
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_the_journal_of_a_newer_hpcrunner_is_refused(path: Path, read_only: bool) -> None:
    with Journal(path):
        pass
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {database.VERSION + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(HpcrunnerError, match="newer hpcrunner"):
        Journal(path, read_only=read_only)
    assert path.read_bytes() == before


def test_a_folder_that_cant_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HpcrunnerError, match="can't be made"):
        Journal(tmp_path / "file" / "journal.sqlite")
    (tmp_path / "folder").mkdir()
    with pytest.raises(HpcrunnerError, match="folder"):
        Journal(tmp_path / "folder")


def test_many_can_open_a_new_journal_at_once(path: Path) -> None:
    """One gets it, the others hear that it is busy, and nobody meets a half-made one."""
    code = """
        import sys
        from pathlib import Path
        from hpcrunner.errors import BusyError
        from hpcrunner.journal.store import Journal
        print("up", flush=True)
        sys.stdin.readline()
        try:
            with Journal(Path(sys.argv[1])):
                print("mine", flush=True)
                sys.stdin.readline()
        except BusyError:
            print("busy", flush=True)
    """
    children = [python(code, path) for _ in range(6)]
    assert [said(child) for child in children] == ["up"] * 6
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = sorted(said(child) for child in children)
    assert [child.communicate("stop\n") for child in children]
    assert answers == ["busy"] * 5 + ["mine"]
    assert [child.returncode for child in children] == [0] * 6


def test_a_full_disk_loses_nothing(path: Path) -> None:
    """What can't be written is reported and not half there; afterwards the journal goes on."""
    with Journal(path) as journal:
        run = receive(journal)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
            with pytest.raises(sqlite3.OperationalError):
                journal.receive("q", b"x" * 2**20, key="big")
            with pytest.raises(sqlite3.OperationalError):
                journal.note(run, reason="x" * 2**20)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
        assert journal.runs() == [run]
        assert journal.receive("q", b"x" * 2**20, key="big") is not None
    with Journal(path, read_only=True) as reader:
        assert len(reader.runs()) == 2
        assert reader._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_a_commit_that_fails_leaves_no_transaction_open(path: Path) -> None:
    """A reader that stays blocks the commit in a rollback journal; the next change must still be possible."""
    db = connect(path)
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA busy_timeout = 10")
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM meta").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="locked"), transaction(db):
        db.execute("INSERT INTO queues VALUES ('lost', 1)")
    reader.close()
    with transaction(db):
        db.execute("INSERT INTO queues VALUES ('kept', 1)")
    assert [row[0] for row in db.execute("SELECT name FROM queues")] == ["kept"]
    db.close()


def test_opening_it_again_doesnt_lose_the_locks_of_this_process(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """POSIX drops all locks of a process on a file when it closes any descriptor of it; the beat opens it again."""
    monkeypatch.setattr(database, "file_system", lambda path: "nfs4")
    db = connect(path)
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    with transaction(db):
        db.execute("INSERT INTO queues VALUES ('q', 1)")
        _close(database._open(f"{path.as_uri()}?mode=rw", path))  # SQLite itself knows how to
        database._create(path)
        other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert "database is locked" in other.stderr
    other = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert other.returncode == 0, other.stderr
    db.close()


def _close(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA user_version").fetchone()
    db.close()


# -- the file system --

MOUNTS = r"""
sysfs /sys sysfs rw 0 0
/dev/vda1 / ext4 rw 0 0
server:/home /home nfs4 rw 0 0
/dev/vdb1 /home/local xfs rw 0 0
mds:/scratch /lustre/with\040blank\011tab lustre rw 0 0
gpfs1 /gpfs\134x gpfs rw 0 0
/dev/vdc1 /data ext4 rw 0 0
server:/data /data nfs rw 0 0
short line
"""


@pytest.mark.parametrize(("path", "wanted"), [
    ("/var/lib/x", "ext4"),
    ("/", "ext4"),
    ("/home/me/.hpcrunner/journal.sqlite", "nfs4"),
    ("/home", "nfs4"),
    ("/homestead/x", "ext4"),
    ("/home/local/me", "xfs"),
    ("/home/localhost", "nfs4"),
    ("/lustre/with blank\ttab/x", "lustre"),
    ("/lustre/x", "ext4"),
    ("/gpfs\\x/y", "gpfs"),
    ("/data/x", "nfs"),  # mounted over the other one
])
def test_the_file_system_of_a_path(path: str, wanted: str) -> None:
    assert file_system(Path(path), MOUNTS) == wanted


def test_an_unknown_file_system() -> None:
    assert file_system(Path("/x"), "") == ""
    assert file_system(Path("/proc/self")) == "proc"


@pytest.mark.parametrize(("kind", "mode"), [
    ("ext4", "wal"), ("xfs", "wal"), ("tmpfs", "wal"), ("overlay", "wal"), ("nfs", "delete"), ("nfs4", "delete"),
    ("lustre", "delete"), ("gpfs", "delete"), ("beegfs", "delete"), ("fuse.sshfs", "delete"), ("", "delete"),
])
def test_wal_on_local_disks_only(path: Path, kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "file_system", lambda path: kind)
    for _ in range(2):
        db = connect(path)
        assert db.execute("PRAGMA journal_mode").fetchone()[0] == mode
        assert db.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        db.close()


def test_a_journal_that_moved_to_another_file_system(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, mode in (("ext4", "wal"), ("nfs4", "delete"), ("ext4", "wal")):
        monkeypatch.setattr(database, "file_system", lambda path, kind=kind: kind)
        with Journal(path) as journal:
            journal.receive("q", kind.encode() + mode.encode(), key="k")
            assert journal._db.execute("PRAGMA journal_mode").fetchone()[0] == mode
    db = connect_read_only(path)
    assert db.execute("SELECT count(*) FROM runs").fetchone()[0] == 2
    db.close()


# -- the lease --

NOW = 1_000_000.0
MINE = Holder("here", "boot1", 10, "100", NOW)


@pytest.mark.parametrize(("holder", "wanted"), [
    (Holder("here", "boot1", 77, "555", NOW - 5), False),  # lives
    (Holder("here", "boot1", 77, "555", NOW - 9999), False),  # lives, but couldn't beat: a full disk
    (Holder("here", "boot1", 78, "555", NOW), True),  # no such process
    (Holder("here", "boot1", 77, "554", NOW), True),  # the pid is another process's now
    (Holder("here", "boot0", 77, "555", NOW), True),  # before the last boot
    (Holder("there", "boot2", 77, "555", NOW), False),
    (Holder("there", "boot2", 77, "1", NOW - LASTS + 1), False),
    (Holder("there", "boot2", 77, "1", NOW - LASTS - 1), True),
    (Holder("there", "boot2", 77, "1", NOW + LASTS - 1), False),  # its clock is a little ahead
    (Holder("there", "boot2", 77, "1", NOW + LASTS + 1), True),  # and shall not hold it for ever
    (Holder("there", "boot2", 0, "", NOW), True),  # given back
])
def test_when_a_lease_is_free(holder: Holder, wanted: bool) -> None:
    assert is_free(holder, MINE, {77: "555"}.get, NOW) is wanted


def test_one_writer_at_a_time(path: Path) -> None:
    with Journal(path) as journal:
        with pytest.raises(BusyError, match=f"process {os.getpid()} on {proc.host_name()}"):
            Journal(path)
        epoch = journal._lease.epoch if journal._lease else 0
        receive(journal)
    with Journal(path) as journal:
        assert journal._lease is not None
        assert journal._lease.epoch == epoch + 1


HOLD = """
    import sys
    from pathlib import Path
    from hpcrunner.journal.store import Journal
    with Journal(Path(sys.argv[1])) as journal:
        print("held", flush=True)
        sys.stdin.readline()
"""


def test_a_killed_holder_is_followed_at_once(path: Path) -> None:
    child = python(HOLD, path)
    assert said(child) == "held"
    with pytest.raises(BusyError, match=f"process {child.pid}"):
        Journal(path)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # still a zombie: dead all the same
    with Journal(path) as journal:
        receive(journal)
    child.communicate()


def test_a_holder_that_lost_the_lease_cant_write(path: Path) -> None:
    """It was stopped for longer than the lease lasts, on another host."""
    old = Journal(path)
    run = receive(old)
    _be_elsewhere(path, beat_at=0.0)
    with Journal(path) as new:
        with pytest.raises(BusyError, match="took over"):
            old.move(run, State.STAGED)
        with pytest.raises(BusyError, match="took over"):
            old.receive("q", b"late", key="late")
        with pytest.raises(BusyError, match="took over"):
            old.set_queue_gone("q", 1.0)
        assert new.runs() == [run]
        old.close()  # takes nothing from the new holder
        with pytest.raises(BusyError):
            Journal(path)
        assert new.move(run, State.STAGED).state is State.STAGED


def test_a_holder_on_another_host_is_waited_for(path: Path) -> None:
    with Journal(path):
        pass
    _be_elsewhere(path, beat_at=time.time())
    with pytest.raises(BusyError, match="process 77 on elsewhere"):
        Journal(path)


def _be_elsewhere(path: Path, beat_at: float) -> None:
    db = connect(path)
    db.execute("UPDATE lease SET host = 'elsewhere', pid = 77, beat_at = ?", (beat_at,))
    db.close()


def test_the_lease_beats_whatever_happens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = threading.Semaphore(0)
    failures: list[Exception] = [sqlite3.OperationalError("full"), OSError(5, "stale"), HpcrunnerError("odd")]

    def failing(path: Path) -> sqlite3.Connection:
        beats.release()
        if failures:
            raise failures.pop()
        return connect(path)

    with Journal(path):
        pass
    monkeypatch.setattr(lease, "_BEAT_EVERY", 0.01)
    monkeypatch.setattr(lease, "connect", failing)
    with Journal(path) as journal:
        for _ in range(4):
            assert beats.acquire(timeout=60)
        first = _beat_at(journal)
        for _ in range(6000):
            if _beat_at(journal) > first:
                break
            threading.Event().wait(0.01)
        assert _beat_at(journal) > first
        receive(journal)  # beating and writing go together
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds by which the lease's clock is put forward, as if the process had been suspended so long."""
    ahead = [0.0]
    original = lease._clock
    monkeypatch.setattr(lease, "_clock", lambda: original() + ahead[0])
    yield ahead


def test_who_was_suspended_and_still_has_the_lease_goes_on(path: Path, clock: list[float]) -> None:
    with Journal(path) as journal:
        first = _beat_at(journal)
        clock[0] = 1000
        journal.check_often()
        assert _beat_at(journal) > first, "renewed, so that nobody else takes it now"


def test_who_was_suspended_and_lost_the_lease_stops(path: Path, clock: list[float]) -> None:
    old = Journal(path)
    _be_elsewhere(path, beat_at=0.0)
    with Journal(path) as new:
        clock[0] = 1000
        before = _beat_at(new)
        for _ in range(2):
            with pytest.raises(BusyError, match="took over"):
                old.check_often()
        assert _beat_at(new) == before
        old.close()


def test_who_loses_the_lease_knows_it_within_a_second_or_so(path: Path, clock: list[float]) -> None:
    journal = Journal(path)
    _be_elsewhere(path, beat_at=0.0)
    with Journal(path):
        journal.check_often()  # it was ours a moment ago: that costs nothing
        clock[0] = 1.1
        with pytest.raises(BusyError, match="took over"):
            journal.check_often()
        journal.close()


def test_a_journal_that_cant_be_asked_stops_transfers_only_when_the_lease_is_over(
        path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> sqlite3.Connection:
        raise sqlite3.OperationalError("disk I/O error")

    with Journal(path) as journal:
        monkeypatch.setattr(lease, "connect", failing)
        clock[0] = 60
        journal.check_often()
        clock[0] = 100
        with pytest.raises(UnavailableError, match=r"could not be renewed.*disk I/O error") as caught:
            journal.check_often()
        assert caught.value.transient
        monkeypatch.undo()
        journal.check_often()
    with pytest.raises(BusyError):
        journal.check_often()  # a thread that outlives the journal


def _beat_at(journal: Journal) -> float:
    return float(journal._db.execute("SELECT beat_at FROM lease").fetchone()[0])
