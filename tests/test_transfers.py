"""The pool of threads that move files, and the tick around it."""

from __future__ import annotations

import errno
import itertools
import json
import re
import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes3 import FakeS3
from hpcrunner.config.load import load
from hpcrunner.engine import act, finish, record
from hpcrunner.engine import outbox as outbox_module
from hpcrunner.engine.actions import Retry
from hpcrunner.engine.checkpoint import Due
from hpcrunner.engine.install import Install
from hpcrunner.engine.outbox import Sent, read_sent
from hpcrunner.engine.prepare import stage
from hpcrunner.engine.tick import settle, tick
from hpcrunner.engine.transfers import Stopped, Transfer, Transfers, Urgency
from hpcrunner.errors import BusyError, RefusedError, StoreError, UnavailableError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import RunDir, StateDir
from hpcrunner.model import Outcome, Run, State
from hpcrunner.schedulers import direct
from hpcrunner.stores.local import LocalStore
from lab import Lab, end_jobs
from s3lab import InS3

PATIENCE = 20.0


def a_run(number: int) -> Run:
    return Run(number, "q", f"key{number}", State.RECEIVED)


class Pool(Transfers):
    """With work that waits for a word."""

    def __init__(self, limit: int = 2, guard: Callable[[], None] = lambda: None) -> None:
        super().__init__(limit, guard)
        self.go = threading.Event()
        self.began: list[int] = []
        self.lock = threading.Lock()
        self.at_once = self.most = 0

    def add(self, number: int, urgency: Urgency = Urgency.STAGE) -> None:
        def work(transfer: Transfer) -> int:
            with self.lock:
                self.began.append(number)
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            while not self.go.wait(0.005):
                transfer(1)
            with self.lock:
                self.at_once -= 1
            return number

        self.start(a_run(number), f"work {number}", urgency, work, lambda result: None, lambda error: None)

    def finish(self) -> list[Transfer]:
        self.go.set()
        done: list[Transfer] = []
        end = time.monotonic() + PATIENCE
        while self.under_way and time.monotonic() < end:
            self.wait(0.1)
            done += self.done()
        assert not self.under_way
        return done


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool() as pool:
        yield pool


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.005)


def test_so_many_at_once_and_the_most_urgent_next(pool: Pool) -> None:
    stage, removal, checkpoint = Urgency.STAGE, Urgency.REMOVAL, Urgency.CHECKPOINT
    for number, urgency in ((1, removal), (2, removal), (3, removal), (4, checkpoint), (5, stage), (6, checkpoint)):
        pool.add(number, urgency)
        until(lambda number=number: number > 2 or number in pool.began)
    assert pool.under_way == {1, 2, 3, 4, 5, 6}
    assert sorted(pool.began) == [1, 2]
    done = pool.finish()
    assert {one.result for one in done} == {1, 2, 3, 4, 5, 6}
    assert pool.most == 2
    assert pool.began[2:4] in ([4, 6], [6, 4]) and set(pool.began[4:]) == {5, 3}


def test_a_result_is_taken_once_and_holds_the_run_until_then(pool: Pool) -> None:
    pool.add(1)
    pool.go.set()
    assert pool.wait(PATIENCE)
    assert pool.has_news and pool.under_way == {1}
    assert [one.result for one in pool.done()] == [1]
    assert pool.done() == [] and not pool.under_way and not pool.has_news
    assert not pool.wait(PATIENCE)  # at once, as nothing is under way
    pool.add(1)


def test_what_was_raised_is_kept(pool: Pool) -> None:
    def work(transfer: Transfer) -> None:
        raise ValueError("no")

    pool.start(a_run(1), "work", Urgency.STAGE, work, lambda result: None, lambda error: None)
    [done] = pool.finish()
    assert isinstance(done.error, ValueError)


def test_one_that_works_stops_with_its_next_bytes_and_one_that_waits_at_once(pool: Pool) -> None:
    for number in (1, 2, 3):
        pool.add(number)
    until(lambda: len(pool.began) == 2)
    pool.stop(3)
    assert [one.run.id for one in pool.done()] == [3]
    pool.stop(1)
    pool.stop(1)
    until(lambda: pool.has_news)
    [done] = pool.done()
    assert done.run.id == 1 and isinstance(done.error, Stopped)
    pool.stop(9)  # nobody
    assert pool.under_way == {2} and not pool.has_news


def test_whoever_may_have_lost_the_lease_moves_nothing_more() -> None:
    lost = threading.Event()

    def guard() -> None:
        if lost.is_set():
            raise BusyError("taken over")

    with Pool(guard=guard) as pool:
        pool.add(1)
        until(lambda: pool.began)
        lost.set()
        until(lambda: pool.has_news)
        assert isinstance(pool.done()[0].error, BusyError)
        pool.add(2)
        until(lambda: pool.has_news)
        assert pool.began == [1], "it was begun"


def test_the_end_stops_all() -> None:
    with Pool(limit=1) as pool:
        pool.add(1)
        pool.add(2)
        until(lambda: pool.began)
    assert not [thread for thread in threading.enumerate() if thread.name == "transfer"]
    assert pool.began == [1]


def test_results_wait_for_no_download(pool: Pool) -> None:
    for number in range(1, 17):
        pool.add(number)
    until(lambda: len(pool.began) == 2)
    assert pool.room(Urgency.STAGE) <= 0 < pool.room(Urgency.TELL) == pool.room(Urgency.RETURN) == 16
    for number, urgency in ((21, Urgency.TELL), (22, Urgency.TELL), (23, Urgency.RETURN), (24, Urgency.LOOK)):
        pool.add(number, urgency)
    until(lambda: len(pool.began) == 5)
    assert set(pool.began[2:]) == {21, 23, 24}, "also where a user's server holds up what he is told"
    pool.finish()


def test_a_host_that_lets_no_thread_start_holds_up_nothing_for_ever(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fails)
        for number, urgency in ((1, Urgency.STAGE), (2, Urgency.RETURN)):
            pool.add(number, urgency)
            [done] = pool.done()
            assert isinstance(done.error, UnavailableError) and done.error.transient and "ulimit -u" in str(done.error)
        assert not pool.under_way
    pool.add(1)
    until(lambda: pool.began == [1])
    monkeypatch.setattr(threading.Thread, "start", fails)
    pool.add(2)  # by the thread that there is
    assert {one.result for one in pool.finish()} == {1, 2}


def test_the_display_shows_what_is_being_moved(pool: Pool) -> None:
    for number in (1, 2, 3):
        pool.add(number)
    until(lambda: len(pool.began) == 2 and all(moved for _, moved, _ in pool.shown()))
    assert sorted(what for what, _, _ in pool.shown()) == ["work 1", "work 2"]
    from hpcrunner.cli.progress import transfer_line

    assert transfer_line("k\x1b[1m: sending tb", 512 * 1024, 2**20) == "k?[1m: sending tb: 512 KiB of 1 MiB (50 %)"
    assert transfer_line("k: fetching tb", 1024, None) == "k: fetching tb: 1 KiB"
    assert transfer_line("k: unpacking tb", 0, None) == "k: unpacking tb"


# -- the tick around it --


@pytest.fixture(scope="module", autouse=True)
def images(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Built beforehand, by a process that doesn't leave its builder to these tests."""
    lab = a_lab(tmp_path_factory.mktemp("first"))
    lab.submit("e")
    lab.run_all()


@pytest.fixture(autouse=True)
def no_job_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    end_jobs(tmp_path)


def a_lab(tmp_path: Path, **site: Any) -> Lab:
    """All of them with the same images: what is tested here is not the building."""
    return Lab(tmp_path, image_dir=str(tmp_path.parent / "images"), **site)


@contextmanager
def install_of(lab: Lab) -> Iterator[Install]:
    site = load(lab.site, overrides={}).site
    with Journal(StateDir(site.state_dir).journal) as journal:
        install = Install(site, journal)
        try:
            with install.transfers:
                yield install
        finally:
            while direct._children:  # they would outlive this process, on purpose
                child = direct._children.pop()
                child.kill()
                child.wait()


def go_on(install: Install, true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, [run for run in install.journal.runs()]
        tick(install)
        install.transfers.wait(0.02)
        time.sleep(0.02)


def state(install: Install, key: str) -> State | None:
    """None if no message of it was taken yet."""
    return next((run.state for run in install.journal.runs(State) if run.key == key), None)


class Gate:
    """Holds up a method of the store for some locations, or has it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str, part: str) -> None:
        self.open = threading.Event()
        self.calls: list[str] = []
        self.fails: StoreError | None = None
        original = getattr(LocalStore, method)
        place = 2 if method == "put" else 1

        def wrapped(*arguments: Any) -> Any:
            location, progress = arguments[place], arguments[3]
            self.calls.append(location)
            if part in location:
                if self.fails:
                    raise self.fails
                while not self.open.wait(0.01):
                    progress(1)
            return original(*arguments)

        monkeypatch.setattr(LocalStore, method, wrapped)


def test_others_go_on_while_one_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "fetch", "slow")
    message = lab.message("slow")
    message["experiment"]["artifacts"]["big"] = lab.artifact("big", lab.put_tar({"a": "b"}, "blobstore/slow.tar"), mutable=False)
    with install_of(lab) as install:
        lab.enqueue(message)
        go_on(install, lambda: install.transfers.under_way)
        lab.submit("quick")  # a message that comes meanwhile
        go_on(install, lambda: any(run.key == "quick" for run in install.journal.runs([State.DONE])))
        assert state(install, "slow") is State.RECEIVED
        gate.open.set()
        go_on(install, lambda: state(install, "slow") is State.DONE)
    assert lab.status()["slow"]["outcome"] == "succeeded"


def test_a_result_comes_back_while_all_threads_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path, max_transfers=1), Gate(monkeypatch, "fetch", "slow")
    lab.submit("e", WRITES)
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.RUNNING)
        for number in range(10):
            message = lab.message(f"slow{number}")
            key = lab.put_tar({"a": "b"}, f"blobstore/slow{number}.tar")
            message["experiment"]["artifacts"]["big"] = lab.artifact("big", key, mutable=False)
            lab.enqueue(message)
        go_on(install, lambda: any("slow" in location for location in gate.calls))
        run = install.journal.find("e")[0]
        (Path(run.run_dir) / "studioml/experiments/e/modeldir/go").touch()
        go_on(install, lambda: state(install, "e") is State.DONE)
        assert not gate.open.is_set()


def test_who_is_cancelled_while_he_is_fetched_is_not_fetched_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "fetch", "blobstore")
    # What the store has of it must not be replaced by what came half.
    lab.put_tar({"old": "whole"}, "experiments/e/modeldir.tar")
    with install_of(lab) as install:
        lab.submit("e")
        go_on(install, lambda: install.transfers.under_way)
        run = install.journal.find("e")[0]
        half = install.run_dir(run).experiment / "modeldir"
        until(half.parent.is_dir)
        half.mkdir()
        (half / "half").touch()
        install.journal.note(run, cancelling="by hand")
        go_on(install, lambda: state(install, "e") is State.DONE)
        assert not gate.open.is_set()
    assert lab.status()["e"]["outcome"] == "cancelled"
    assert lab.result("e", "modeldir") == {"old": b"whole"}
    assert "[hpcrunner] cancelled: by hand" in lab.output("e")


def test_nothing_is_sent_by_whoever_lost_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when that happens after the main thread looked."""
    lab = a_lab(tmp_path)
    lab.submit("e", "open('../retval', 'w').write('1')")
    gate = Gate(monkeypatch, "put", "nowhere")
    original = outbox_module.pack

    def pack(*arguments: Any, **options: Any) -> Any:
        db = sqlite3.connect(StateDir(lab.state).journal)
        with db:
            db.execute("UPDATE lease SET epoch = epoch + 1")
        db.close()
        return original(*arguments, **options)

    monkeypatch.setattr(outbox_module, "pack", pack)
    with pytest.raises(BusyError, match="took over"), install_of(lab) as install:
        go_on(install, lambda: False)
    assert gate.calls == []


def test_results_wait_for_the_store_and_are_neither_packed_nor_sent_twice(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "put", "retval")
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.05)
    gate.fails = StoreError("the store is away", transient=True)
    packed: list[str] = []
    original = outbox_module.pack

    def pack(source: Path, *arguments: Any, **options: Any) -> Any:
        packed.append(source.name)
        return original(source, *arguments, **options)

    monkeypatch.setattr(outbox_module, "pack", pack)
    lab.submit("e", "open('../retval', 'w').write('1'); open('../modeldir/m', 'w').write('2')")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.ENDING and install.journal.find("e")[0].tries > 8)
        assert lab.result("e", "modeldir") == {"m": b"2"}, "what can be sent is sent"
        assert lab.record("e")["status"] == "running", "the record comes last"
        assert len([1 for _, _, text in install.journal.events(install.journal.find("e")[0]) if "away" in text]) == 1
    table = lab.hpcrunner("status").stdout
    assert "results wait for the store: the store is away" in table
    with install_of(lab) as install:  # as after a restart
        gate.fails = None
        gate.open.set()
        go_on(install, lambda: state(install, "e") is State.DONE)
        go_on(install, lambda: not install.journal.to_remove())
    assert lab.result("e", "retval") == {"./retval": b"1"}
    assert sorted(packed) == ["_metadata", "_metrics", "modeldir", "output", "retval"]
    sent = [Path(location).stem for location in gate.calls]
    assert sent.count("modeldir") == sent.count("output") == 1 and sent.count("retval") > 8
    assert lab.record("e")["status"] == "finished"
    assert not any((lab.state / "runs").iterdir())


def test_when_patience_is_over_the_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path, store_patience="1s"), Gate(monkeypatch, "put", "retval")
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.3)
    gate.fails = StoreError("the store is away", transient=True)
    lab.submit("e", "open('../retval', 'w').write('1')")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE)
        run = install.journal.find("e")[0]
    assert any("store is away" in note for note in run.notes) and any("files are kept in" in note for note in run.notes)
    assert (Path(run.run_dir) / "studioml/experiments/e/retval").read_text() == "1"
    assert lab.record("e")["status"] == "finished"


def test_what_this_site_does_not_allow_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "put", "retval")
    gate.fails = RefusedError("this site exchanges no files with it")
    lab.submit("e", "open('../retval', 'w').write('1'); open('../modeldir/m', 'w').write('2')")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE)
    run = lab.status()["e"]
    assert "this site exchanges no files with it" in run["notes"][0] and run["outcome"] == "succeeded"
    assert lab.result("e", "modeldir") == {"m": b"2"}
    assert list((lab.state / "runs").iterdir()), "the only copy"


def test_results_that_were_kept_are_returned_when_somebody_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path, store_patience="0s"), Gate(monkeypatch, "put", "retval")
    gate.fails = StoreError("the quota is used up")
    lab.submit("e", "open('../retval', 'w').write('1'); open('../modeldir/m', 'w').write('2')")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE)
        settle(install)
    assert any("the quota is used up" in note for note in lab.status()["e"]["notes"]) and not lab.result("e", "retval")
    sent = (lab.store / "artifacts/experiments/e/modeldir.tar").stat().st_mtime_ns
    done = lab.hpcrunner("return-results", "e")
    assert "results of 1 experiment are returned" in done.stdout
    assert lab.result("e", "retval") == {"./retval": b"1"}
    assert (lab.store / "artifacts/experiments/e/modeldir.tar").stat().st_mtime_ns == sent, "it was there already"
    run = lab.status()["e"]
    assert (run["state"], run["outcome"], run["notes"]) == ("done", "succeeded", [])
    assert not any((lab.state / "runs").iterdir())
    again = lab.hpcrunner("return-results", "e", check=False)
    assert again.returncode == 64 and "no results that could not be returned" in again.stderr


def test_half_a_download_is_gone_on_with_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "fetch", "blobstore")
    lab.submit("e")
    with install_of(lab) as install:
        go_on(install, lambda: gate.calls)
        [folder] = (lab.state / "runs").iterdir()
    (folder / "transfer" / ".workspace.fetched.half").write_text("half")
    (folder / "studioml" / "rest").write_text("of a try before")
    seen: list[set[str]] = []
    original = LocalStore.fetch

    def fetch(*arguments: Any) -> Any:
        seen.append({path.name for path in (folder / "transfer").iterdir()})
        return original(*arguments)

    gate.open.set()
    monkeypatch.setattr(LocalStore, "fetch", fetch)
    with install_of(lab) as install:
        go_on(install, lambda: seen)
        assert ".workspace.fetched.half" in seen[0]
        assert not (folder / "studioml" / "rest").exists()
        go_on(install, lambda: state(install, "e") is State.DONE)
        settle(install)
        assert not install.transfers.under_way


def test_one_tick_returns_when_nothing_is_moving_any_more(tmp_path: Path) -> None:
    lab = a_lab(tmp_path)
    for number in range(12):
        lab.submit(f"e{number}")
        lab.put_tar({"m": "x" * 2**24}, f"experiments/e{number}/modeldir.tar")
    lab.tick()
    assert "received" not in {run["state"] for run in lab.status().values()}
    assert not list((lab.state / "runs").glob("*/transfer"))


def test_a_tick_in_which_a_download_takes_long_looks_at_the_queue_all_the_same(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrunner.engine.tick._AS_CRON", 0.3)
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "fetch", "slow")
    message = lab.message("slow")
    message["experiment"]["artifacts"]["big"] = lab.artifact("big", lab.put_tar({"a": "b"}, "blobstore/slow.tar"), mutable=False)
    lab.enqueue(message)
    with install_of(lab) as install:
        tick(install)
        assert install.transfers.under_way
        for key in ("one", "two"):
            lab.submit(key)
        seen: list[set[str]] = []

        def show(active: int) -> None:
            seen.append({run.key for run in install.journal.runs(State)})
            if {"one", "two"} <= seen[-1]:
                gate.open.set()

        settle(install, 1, show)
        assert {len(keys) for keys in seen} == {1, 2, 3}, "at most one message each time"
        assert install.journal.find("slow")[0].state is not State.RECEIVED


def test_a_tick_comes_to_its_end_whatever_checkpoints_are_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = a_lab(tmp_path, checkpoint_min="1s")
    gate = Gate(monkeypatch, "put", "modeldir")
    for key in ("one", "two"):
        lab.submit(key, WRITES, config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        go_on(install, lambda: len([1 for location in gate.calls if "modeldir" in location]) == 2)
        gate.open.set()
        monkeypatch.setattr("hpcrunner.engine.moving.checkpoint.due", lambda *_: Due((), 0.0))  # again at once
        settle(install)
        assert not install.transfers.under_way
        assert {run.state for run in install.journal.runs()} == {State.RUNNING}


# -- looking for what users stopped --


class Silent:
    """A server that takes connections and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self.connections.append(self._listener.accept()[0])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self.connections:
            connection.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    with closing(Silent()) as server:
        yield server


def in_database(server: Silent) -> dict[str, Any]:
    """For `config` of a message: its record lies there."""
    keys = {"aws": {"access_key": "k", "secret_access_key": "s"}}
    return {"database": {"type": "s3", "endpoint": server.url, "bucket": "meta", "credentials": keys}}


def test_a_database_that_never_answers_holds_up_no_tick_and_nobody_elses_stop(
        tmp_path: Path, silent: Silent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrunner.engine.stops._PATIENCE", 1.0)
    lab = a_lab(tmp_path, max_jobs=1)
    with install_of(lab) as install:
        lab.submit("e", WRITES)
        go_on(install, lambda: state(install, "e") is State.RUNNING)
        for number in range(6):
            lab.submit(f"dead{number}", config=in_database(silent))
        longest = 0.0

        def is_stopped() -> bool:
            nonlocal longest
            install.journal.remember("stopped", "")  # look again
            start = time.monotonic()
            tick(install)
            longest = max(longest, time.monotonic() - start)
            return state(install, "e") is State.DONE

        go_on(install, lambda: lab.record("e")["status"] == "running")
        path = lab.store / "meta/experiments/e"
        part = path.with_suffix(".new")
        part.write_text(json.dumps({**lab.record("e"), "status": "stopped"}))
        part.replace(path)
        go_on(install, is_stopped)
        assert silent.connections, "it was asked"
        assert longest < 5
    assert lab.status()["e"]["outcome"] == "cancelled"


def test_one_record_that_cant_be_read_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = a_lab(tmp_path)
    original = record.status

    def status(install: Install, experiment: Any, *more: Any) -> str:
        if experiment.key == "odd":
            raise RecursionError("too deep")
        return original(install, experiment, *more)

    monkeypatch.setattr(record, "status", status)
    with install_of(lab) as install:
        lab.submit("odd", WRITES)
        lab.submit("e", WRITES)
        go_on(install, lambda: lab.record("e")["status"] == "running")
        path = lab.store / "meta/experiments/e"
        path.write_text(json.dumps({**lab.record("e"), "status": "stopped"}))
        install.journal.remember("stopped", "")
        go_on(install, lambda: state(install, "e") is State.DONE)
        assert state(install, "odd") is State.RUNNING


# -- checkpoints --

WRITES = """
import pathlib, time
pathlib.Path("../modeldir/first").write_text("1")
print("so far", flush=True)
here = pathlib.Path("../modeldir/go")
while not here.exists(): time.sleep(0.02)
pathlib.Path("../modeldir/second").write_text("2")
"""


def test_what_runs_is_saved_and_only_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path, checkpoint_min="1s"), Gate(monkeypatch, "put", "nowhere")
    monkeypatch.setattr("hpcrunner.artifacts.fingerprint._SETTLES", 0.0)
    lab.submit("e", WRITES, config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        go_on(install, lambda: lab.record("e").get("time_last_checkpoint"))
        run = install.journal.find("e")[0]
        assert run.state is State.RUNNING
        assert lab.result("e", "modeldir") == {"first": b"1"}
        assert lab.output("e") == "so far\n"
        assert lab.record("e")["status"] == "running" and lab.record("e")["job_id"] == run.job_id
        before, at = len(gate.calls), lab.record("e")["time_last_checkpoint"]
        go_on(install, lambda: (install.journal.find("e")[0].save_at or 0) > time.time() + 0.5 > at + 3)
        assert len(gate.calls) == before, "nothing had changed"
        experiment = Path(run.run_dir) / "studioml/experiments/e"
        (experiment / "modeldir/more").write_text("m")
        go_on(install, lambda: len(gate.calls) > before)
        assert [Path(location).stem for location in gate.calls[before:]] == ["modeldir"]
        (experiment / "modeldir/go").touch()
        go_on(install, lambda: state(install, "e") is State.DONE)
    assert lab.result("e", "modeldir") == {"first": b"1", "more": b"m", "go": b"", "second": b"2"}
    assert lab.record("e")["time_last_checkpoint"] == lab.record("e")["time_finished"]


def test_a_checkpoint_that_hangs_holds_up_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path, checkpoint_min="1s"), Gate(monkeypatch, "put", "modeldir")
    lab.submit("e", WRITES, config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        go_on(install, lambda: any("modeldir" in location for location in gate.calls))
        run = install.journal.find("e")[0]
        (Path(run.run_dir) / "studioml/experiments/e/modeldir/go").touch()
        calls = len(gate.calls)
        go_on(install, lambda: state(install, "e") is State.ENDING)
        go_on(install, lambda: len(gate.calls) > calls)  # the return has begun, though the store is still held up
        gate.open.set()
        go_on(install, lambda: state(install, "e") is State.DONE)
    assert lab.result("e", "modeldir") == {"first": b"1", "go": b"", "second": b"2"}


def test_a_failing_checkpoint_is_only_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           caplog: pytest.LogCaptureFixture) -> None:
    lab, gate = a_lab(tmp_path, checkpoint_min="1s"), Gate(monkeypatch, "put", "modeldir")
    gate.fails = StoreError("no", transient=True)
    lab.submit("e", WRITES, config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        go_on(install, lambda: "no checkpoint this time: no" in caplog.text)
        run = install.journal.find("e")[0]
        assert run.tries == 0 and run.not_before == 0 and run.save_at and run.save_at > time.time()
        gate.fails = None
        gate.open.set()
        go_on(install, lambda: lab.result("e", "modeldir"))
        (Path(run.run_dir) / "studioml/experiments/e/modeldir/go").touch()
        go_on(install, lambda: state(install, "e") is State.DONE)


def test_stopped_by_the_user_is_not_overwritten_by_a_checkpoint(tmp_path: Path) -> None:
    lab = a_lab(tmp_path, checkpoint_min="1s")
    lab.submit("e", WRITES, config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        go_on(install, lambda: lab.record("e")["status"] == "running")
        record = lab.store / "meta/experiments/e"
        part = record.with_suffix(".new")
        part.write_text(json.dumps({**lab.record("e"), "status": "stopped"}))
        part.replace(record)
        go_on(install, lambda: lab.record("e").get("time_last_checkpoint"))
        assert lab.record("e")["status"] == "stopped"
        install.journal.remember("stopped", "")  # its turn to be looked at
        go_on(install, lambda: state(install, "e") is State.DONE)
    assert lab.status()["e"]["outcome"] == "cancelled" and lab.record("e")["status"] == "stopped"


def test_what_a_program_wrote_last_is_returned_also_where_no_time_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a mapping, to a page that was written to before: neither time of the file changes."""
    lab = a_lab(tmp_path, checkpoint_min="1s")
    monkeypatch.setattr("hpcrunner.artifacts.fingerprint._SETTLES", 0.2)
    gate = Gate(monkeypatch, "put", "nowhere")
    go = tmp_path / "go"
    lab.submit("e", f"""
import mmap, pathlib, time
pathlib.Path("../tb").mkdir()
pathlib.Path("../tb/same").write_text("same")
with open("../modeldir/weights", "w+b") as file:
    file.truncate(4096)
    weights = mmap.mmap(file.fileno(), 4096)
weights[:5] = b"older"
while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.02)
weights[:5] = b"final"
""", config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.RUNNING)
        run = install.journal.find("e")[0]
        sent = install.run_dir(run).sent_file
        go_on(install, lambda: read_sent(sent).get("modeldir", Sent(0)).digest)
        assert lab.result("e", "modeldir")["weights"].startswith(b"older")
        go_on(install, lambda: read_sent(sent).get("tb", Sent(0)).tar)
        go.touch()
        go_on(install, lambda: state(install, "e") is State.DONE)
    assert lab.result("e", "modeldir")["weights"].startswith(b"final")
    assert sum("/tb." in location for location in gate.calls) == 1, "the store had it already"


def test_results_wait_also_for_a_store_that_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is full, say, or a key was taken away: somebody mends that."""
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "put", "retval")
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.05)
    gate.fails = StoreError("the quota is used up")
    lab.submit("e", "open('../retval', 'w').write('1')")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.ENDING and install.journal.find("e")[0].tries > 2)
        gate.fails = None
        gate.open.set()
        go_on(install, lambda: state(install, "e") is State.DONE)
        go_on(install, lambda: not install.journal.to_remove())
    assert lab.result("e", "retval") == {"./retval": b"1"}


def test_what_could_not_be_read_keeps_the_files_also_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "put", "modeldir")
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.05)
    gate.fails = StoreError("the store is away", transient=True)
    original = outbox_module.pack

    def pack(source: Path, *arguments: Any, **options: Any) -> Any:
        left_out = original(source, *arguments, **options)
        return (*left_out, "'m' can't be read") if source.name == "modeldir" else left_out

    monkeypatch.setattr(outbox_module, "pack", pack)
    lab.submit("e", "open('../modeldir/m', 'w').write('2')")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.ENDING and install.journal.find("e")[0].tries)
    with install_of(lab) as install:
        gate.fails = None
        gate.open.set()
        go_on(install, lambda: state(install, "e") is State.DONE)
        run = install.journal.find("e")[0]
        assert not install.journal.to_remove()
    assert "not returned: modeldir: 'm' can't be read" in run.notes
    assert (Path(run.run_dir) / "studioml/experiments/e/modeldir/m").read_text() == "2"


def test_results_wait_for_a_mount_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "put", "retval")
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.05)
    gate.fails = StoreError("the store is away", transient=True)
    lab.submit("e", "open('../retval', 'w').write('1')")
    runs, away = lab.state / "runs", lab.state / "away"
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.ENDING and install.journal.find("e")[0].tries)
    runs.rename(away)
    runs.mkdir()
    gate.fails = None
    gate.open.set()
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE or "not be mounted" in install.journal.find("e")[0].waiting)
        assert not any(runs.iterdir()), "nothing is written below an empty mount point"
        runs.rmdir()
        away.rename(runs)
        go_on(install, lambda: state(install, "e") is State.DONE)
    assert lab.result("e", "retval") == {"./retval": b"1"}


def test_a_mount_that_goes_while_results_are_packed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = a_lab(tmp_path)
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.05)
    lab.submit("e", "open('../modeldir/m', 'w').write('2'); open('../retval', 'w').write('1')")
    runs, away = lab.state / "runs", lab.state / "away"
    original = outbox_module.Outbox.artifacts

    def artifacts(outbox: Any) -> Any:
        runs.rename(away)
        yield from original(outbox)

    monkeypatch.setattr(outbox_module.Outbox, "artifacts", artifacts)
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE or (
            state(install, "e") is State.ENDING and install.journal.find("e")[0].tries))
        monkeypatch.setattr(outbox_module.Outbox, "artifacts", original)
        away.rename(runs)
        go_on(install, lambda: state(install, "e") is State.DONE)
    assert lab.result("e", "retval") == {"./retval": b"1"}


def test_whatever_goes_wrong_a_run_ends_when_patience_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = a_lab(tmp_path, store_patience="0s")
    lab.submit("e", "open('../retval', 'w').write('1')")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(outbox_module.Outbox, "finish", broken)
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE)
        run = install.journal.find("e")[0]
    assert "not returned: a mistake" in run.notes and Path(run.run_dir).is_dir()
    assert lab.record("e")["status"] == "finished"


def test_a_record_that_can_not_be_written_keeps_no_files(tmp_path: Path) -> None:
    lab = a_lab(tmp_path)
    lab.submit("e")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is not None)
        # So deep that no parser follows.
        (lab.store / "meta/experiments/e").write_text('{"a":' * 100_000)
        go_on(install, lambda: state(install, "e") is State.DONE)
        go_on(install, lambda: not install.journal.to_remove())
        run = install.journal.find("e")[0]
        assert any("record could not be written" in note for note in run.notes) and run.outcome is Outcome.SUCCEEDED
    assert not any((lab.state / "runs").iterdir())


def test_a_spoilt_record_stops_no_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = a_lab(tmp_path)
    lab.submit("e", "import time; time.sleep(1)")

    def broken(*_: Any) -> Any:
        raise AttributeError("what nobody thought of")

    monkeypatch.setattr("hpcrunner.engine.record.status", broken)
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE)


def test_the_record_has_the_times_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of whatever was noted last."""
    lab, gate = a_lab(tmp_path), Gate(monkeypatch, "put", "retval")
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.5)
    go = tmp_path / "go"
    lab.submit("e", f"import os, time\nopen('../retval', 'w')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.02)")
    with install_of(lab) as install:
        go_on(install, lambda: lab.record("e")["status"] == "running")
        run = install.journal.find("e")[0]
        started = install.run_dir(run).status / "started"
        until(started.exists)
        install.journal.note(run, "something", told="waiting")
        go_on(install, lambda: lab.record("e")["time_started"] == float(started.read_text()))
        go.touch()
        gate.fails = StoreError("the store is away", transient=True)
        go_on(install, lambda: install.journal.find("e")[0].tries)
        install.journal.note(install.journal.find("e")[0], finished_at=None)  # as of a job that could not say it
        gate.fails = None
        gate.open.set()
        go_on(install, lambda: state(install, "e") is State.DONE)
        assert lab.record("e")["time_finished"] == install.journal.find("e")[0].ended_at


def test_a_run_directory_that_can_not_be_removed_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = a_lab(tmp_path)
    lab.submit("e")
    tried: list[Path] = []

    original = shutil.rmtree

    def rmtree(folder: Path, **options: Any) -> None:
        if folder.parent != lab.state / "runs":
            return original(folder, **options)
        tried.append(folder)
        raise OSError(errno.EBUSY, "Device or resource busy", str(folder))

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with install_of(lab) as install:
        go_on(install, lambda: tried)
        settle(install)
        tick(install)
        settle(install)
        [run] = install.journal.to_remove()
        assert Path(run.run_dir).is_dir() and len(tried) == 1, "not again and again"
        monkeypatch.undo()
        install.journal.note(run, not_before=0.0)
        go_on(install, lambda: not install.journal.to_remove())
    assert not any((lab.state / "runs").iterdir())


def test_a_run_that_is_over_does_not_end_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = a_lab(tmp_path)
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.01)
    lab.submit("e")

    def broken(folder: Path) -> bool:
        raise RuntimeError("a mistake")

    with install_of(lab) as install:
        monkeypatch.setattr("hpcrunner.engine.finish.remove", broken)
        go_on(install, lambda: state(install, "e") is State.DONE and install.journal.find("e")[0].tries > 6)
        assert install.journal.find("e")[0].outcome is Outcome.SUCCEEDED
        monkeypatch.undo()
        go_on(install, lambda: not install.journal.to_remove())


# -- before the job --


def test_inputs_are_waited_for_while_their_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path, cache_size="0"), Gate(monkeypatch, "fetch", "blobstore")
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.05)
    gate.fails = StoreError("the store is away", transient=True)
    lab.submit("e")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE or len(gate.calls) > 8)
        assert "the store is away" in install.journal.events(install.journal.find("e")[0])[-1][2]
        gate.fails = None
        gate.open.set()
        go_on(install, lambda: state(install, "e") is State.DONE)
    assert lab.status()["e"]["outcome"] == "succeeded"


def test_they_are_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path, cache_size="0", store_patience="10m"), Gate(monkeypatch, "fetch", "blobstore")
    monkeypatch.setattr("hpcrunner.engine.ends.backoff", lambda tries: 0.01)
    gate.fails = StoreError("the store is away", transient=True)
    lab.submit("e")
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.DONE)
        assert install.journal.find("e")[0].outcome is Outcome.LOST
    assert len(gate.calls) == 7, "2 s, 10 s, 30 s, 2 min, 5 min, 5 min"


def test_a_retry_goes_on_from_checkpoints_but_has_no_results_yet(tmp_path: Path) -> None:
    lab = a_lab(tmp_path)
    for key, config in (("saved", {"saveWorkspaceFrequency": "1h"}), ("plain", {})):
        lab.submit(key, config=config)
        for tag in ("retval", "output", "_metrics", "_metadata", "modeldir"):
            lab.put_tar({f"./{tag}" if tag == "retval" else "x": "before"}, f"experiments/{key}/{tag}.tar")
    with install_of(lab) as install:
        go_on(install, lambda: len(install.journal.runs(State)) == 2)
        for run in install.journal.runs(State):
            for generation in (1, 2):
                now = replace(run, generation=generation)
                run_dir = RunDir(tmp_path / f"{run.key}{generation}", run.key)
                transfer = Transfer(now, "", lambda _: None, lambda _: None, lambda _: None, lambda: None)
                stage(install, install.experiment(now), now, run_dir, transfer)
                assert (run_dir.experiment / "modeldir/x").read_text() == "before"
                is_new = run.key == "saved" and generation == 2
                assert [(run_dir.experiment / tag).exists() for tag in ("retval", "_metrics", "_metadata", "output/x")] == (
                    [not is_new] * 4)


def test_a_checkpoint_leaves_the_job_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              caplog: pytest.LogCaptureFixture) -> None:
    lab, gate = a_lab(tmp_path, checkpoint_min="1s"), Gate(monkeypatch, "put", "nowhere")
    monkeypatch.setattr(outbox_module, "shutil", SimpleNamespace(disk_usage=lambda path: SimpleNamespace(free=3)))
    lab.submit("e", WRITES, config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        go_on(install, lambda: "the job needs what is free there, 3 bytes" in caplog.text)
        assert not [location for location in gate.calls if "modeldir" in location]
        run = install.journal.find("e")[0]
        (Path(run.run_dir) / "studioml/experiments/e/modeldir/go").touch()
        go_on(install, lambda: state(install, "e") is State.DONE)  # results are not held back by it
    assert "second" in lab.result("e", "modeldir")


def test_what_always_changes_is_packed_twice_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, gate = a_lab(tmp_path, checkpoint_min="1s"), Gate(monkeypatch, "put", "modeldir")
    changes = itertools.count()
    original, packed = outbox_module.fingerprint, []
    monkeypatch.setattr(outbox_module, "fingerprint", lambda source: replace(original(source), digest=str(next(changes))))
    pack = outbox_module.pack

    def counted(source: Path, *arguments: Any, **options: Any) -> Any:
        packed.append(source.name)
        return pack(source, *arguments, **options)

    monkeypatch.setattr(outbox_module, "pack", counted)
    lab.submit("e", WRITES, config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        go_on(install, lambda: any("modeldir" in location for location in gate.calls))
        assert packed.count("modeldir") == 2


def test_the_files_of_a_lost_job_are_removed_beside_all_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = a_lab(tmp_path)
    threads: list[str] = []
    original = finish.remove

    def remove(folder: Path, **options: Any) -> bool:
        threads.append(threading.current_thread().name)
        return original(folder, **options)

    monkeypatch.setattr(finish, "remove", remove)
    lab.submit("e", WRITES)
    with install_of(lab) as install:
        go_on(install, lambda: state(install, "e") is State.RUNNING)
        lost = install.journal.find("e")[0]
        act._retry(install, Retry(lost, "its node went down"))
        assert threads == []
    with install_of(lab) as install:  # also when a crash comes in between
        go_on(install, lambda: state(install, "e") is State.RUNNING)
        again = install.journal.find("e")[0]
        assert again.run_dir != lost.run_dir and not Path(lost.run_dir).exists()
        assert threads == ["transfer"]


# -- a server that is not as it should be --


class S3Lab(InS3, Lab):
    pass


@pytest.fixture
def server() -> Iterator[FakeS3]:
    with closing(FakeS3()) as server:
        yield server


def an_s3_lab(tmp_path: Path, server: FakeS3, **site: Any) -> S3Lab:
    lab = S3Lab(tmp_path, image_dir=str(tmp_path.parent / "images"), **site)
    lab.place(server, "bucket")  # type: ignore[arg-type]
    return lab


@pytest.mark.parametrize("refused", ["PUT /bucket/experiments/e/retval.tar?$", "PUT .*partNumber=", "POST .*uploadId=",
                                     "PUT /bucket/experiments/e?$"], ids=["whole", "parts", "complete", "record"])
def test_who_lost_the_lease_in_a_pause_overwrites_nothing(tmp_path: Path, server: FakeS3, refused: str) -> None:
    """The store is away, meanwhile another host takes over and puts what is final; then the store is back."""
    lab = an_s3_lab(tmp_path, server, transfer_part="5MiB", transfer_threads=3)
    size = 12 * 2**20 if "upload" in refused or "part" in refused else 1
    with pytest.raises(BusyError, match="took over"), install_of(lab) as install:
        lab.submit("e", f"import time; time.sleep(3); open('../retval', 'w').write('x' * {size})")
        go_on(install, lambda: state(install, "e") is State.RUNNING and install.journal.find("e")[0].told == "running")
        server.is_busy = lambda request: bool(re.match(refused.replace("?", r"\?"), request))
        end = time.monotonic() + 60
        while not server.refused and time.monotonic() < end:  # with no look at the lease by this thread once it is lost
            tick(install)
            time.sleep(0.02)
        db = sqlite3.connect(StateDir(lab.state).journal)
        with db:
            db.execute("UPDATE lease SET epoch = epoch + 1")
        db.close()
        places = [f"/bucket/experiments/e{rest}" for rest in ("", "/retval.tar")]
        server.objects.update(dict.fromkeys(places, b"FINAL"))
        time.sleep(1.5)
        server.is_busy = lambda request: False
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "transfer"])
        assert [server.objects[place] for place in places] == [b"FINAL"] * 2
        tick(install)


def test_a_checkpoint_to_a_server_that_never_answers_holds_up_no_result(tmp_path: Path, server: FakeS3) -> None:
    lab = an_s3_lab(tmp_path, server, checkpoint_min="1s", transfer_timeout="1s")
    lab.submit("e", WRITES, config={"saveWorkspaceFrequency": "1s"})
    with install_of(lab) as install:
        server.hangs = lambda request: "PUT" in request and "output.tar" in request
        go_on(install, lambda: server.hung)
        run = install.journal.find("e")[0]
        (Path(run.run_dir) / "studioml/experiments/e/modeldir/go").touch()
        go_on(install, lambda: state(install, "e") is State.ENDING)
        ended = time.monotonic()
        go_on(install, lambda: "second" in lab.result("e", "modeldir"))  # by the return: output is still held up
        assert time.monotonic() < ended + 15
        server.hangs = lambda request: False
        go_on(install, lambda: state(install, "e") is State.DONE)
