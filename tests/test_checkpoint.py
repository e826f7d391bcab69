"""When checkpoints are due, and what counts as changed."""

from __future__ import annotations

import json
import mmap
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcrunner.artifacts.fingerprint import fingerprint
from hpcrunner.config.load import load
from hpcrunner.engine.checkpoint import Due, due, first
from hpcrunner.engine.install import Install
from hpcrunner.engine.outbox import Outbox, Sent, read_sent
from hpcrunner.engine.transfers import Transfer
from hpcrunner.errors import StoreError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import RunDir, StateDir
from hpcrunner.model import Run, State
from hpcrunner.stores.local import LocalStore
from hpcrunner.wire.experiment import Experiment
from hpcrunner.wire.message import parse
from lab import Lab, end_jobs

NOW = 1_000_000.0


@pytest.fixture(autouse=True)
def no_job_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    end_jobs(tmp_path)


def an_experiment(tmp_path: Path, frequency: Any = None, **own: Any) -> Experiment:
    message = Lab(tmp_path).message("e", config={"saveWorkspaceFrequency": frequency})
    artifacts = message["experiment"]["artifacts"]
    message["experiment"]["artifacts"] = {
        "workspace": {**artifacts["workspace"], "saveFrequency": 1},
        **{tag: {**artifacts[tag], **({"saveFrequency": own[tag]} if tag in own else {})} for tag in ("tb", "output")}}
    return parse(json.dumps(message).encode())


def test_every_artifact_at_its_own_time(tmp_path: Path) -> None:
    experiment = an_experiment(tmp_path, "5m", tb=60)
    assert due(experiment, {}, 30, NOW) == Due(("tb", "output"), NOW + 60)
    sent = {"tb": Sent(NOW - 60), "output": Sent(NOW - 60)}
    assert due(experiment, sent, 30, NOW) == Due(("tb",), NOW + 60)
    assert due(experiment, {**sent, "output": Sent(NOW - 290)}, 30, NOW) == Due(("tb",), NOW + 10)
    assert due(experiment, {**sent, "output": Sent(NOW - 300)}, 30, NOW) == Due(("tb", "output"), NOW + 60)
    assert due(experiment, {**sent, "output": Sent(NOW + 9999)}, 30, NOW).tags == ("tb", "output"), "the clock was set back"
    assert first(experiment, 30, NOW) == NOW + 60


def test_the_site_has_the_last_word_on_how_often(tmp_path: Path) -> None:
    experiment = an_experiment(tmp_path, "1s", tb="1h")
    assert first(experiment, 30, NOW) == NOW + 30
    assert due(experiment, {"output": Sent(NOW - 29), "tb": Sent(NOW - 29)}, 30, NOW) == Due((), NOW + 1)


@pytest.mark.parametrize("never", [None, 0, "0", "0m", "nonsense"])
def test_who_wants_no_checkpoints_gets_none(tmp_path: Path, never: Any) -> None:
    experiment = an_experiment(tmp_path / "1", never)
    assert first(experiment, 30, NOW) is None
    assert due(experiment, {}, 30, NOW) == Due((), None)
    assert due(an_experiment(tmp_path / "2", never, tb=60), {}, 30, NOW) == Due(("tb",), NOW + 60)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"tb": 1}', '{"tb": {"at": "x"}}', "[" * 9999,
                                  '{"tb": {"at": 1, "digest": "", "more": 1}}'])
def test_what_a_program_left_in_the_notes_does_no_harm(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sent.json"
    assert read_sent(path) == {}
    path.write_text(text)
    assert read_sent(path) == {}


def test_a_change_shows(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    file = folder / "b" / "c"
    file.write_text("1")
    seen = [fingerprint(folder).digest]
    assert fingerprint(folder).digest == seen[0]

    def changes() -> None:
        seen.append(fingerprint(folder).digest)
        assert seen[-1] not in seen[:-1]

    file.write_text("22")
    changes()
    status = file.stat()
    file.write_text("33")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as some programs do
    changes()
    file.rename(folder / "b" / "d")
    changes()
    (folder / "e").symlink_to("nowhere")
    changes()
    (folder / "b" / "d").unlink()
    changes()
    assert fingerprint(folder / "e").digest != fingerprint(folder / "none").digest


def test_what_was_written_a_moment_ago_may_be_written_again_unseen(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1")
    newest = file.stat().st_ctime
    taken = fingerprint(tmp_path)
    assert not taken.is_settled(newest + 4)
    assert taken.is_settled(newest + 6)


# -- what is sent --


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Callable[[], Outbox], Path, list[str]]]:
    """(makes an outbox, as each process does; a folder that it sends; what was put into the store so far)."""
    lab = Lab(tmp_path)
    put: list[str] = []
    original = LocalStore.put

    def noted(store: LocalStore, source: Path, location: str, *more: Any) -> None:
        put.append(location)
        original(store, source, location, *more)

    monkeypatch.setattr(LocalStore, "put", noted)
    experiment = parse(json.dumps(lab.message("e")).encode())
    run_dir = RunDir(tmp_path / "run", "e")
    folder = run_dir.experiment / "modeldir"
    folder.mkdir(parents=True)
    run_dir.style_file.write_text("new")
    run = Run(1, "q", "e", State.RUNNING)
    transfer = Transfer(run, "", print, print, print, lambda: None)
    site = load(lab.site, overrides={}).site
    with Journal(StateDir(site.state_dir).journal) as journal:
        yield lambda: Outbox(Install(site, journal), experiment, run, run_dir, transfer, lambda: None), folder, put


Saved = tuple[Callable[[], Outbox], Path, list[str]]


def test_what_was_written_just_now_is_sent_once_more(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be written again without showing it: through a mapping, to a page that is not on the disk yet."""
    monkeypatch.setattr("hpcrunner.artifacts.fingerprint._SETTLES", 1.0)
    outbox, folder, put = saved
    with (folder / "m").open("w+b") as file:
        file.truncate(4096)
        with mmap.mmap(file.fileno(), 4096) as mapped:
            mapped[:3] = b"old"
            before = fingerprint(folder)
            assert outbox().save(["modeldir"])
            mapped[:3] = b"new"
            assert fingerprint(folder) == before, "it does not show"
            assert outbox().save(["modeldir"]) and len(put) == 2
    with tarfile.open(put[-1].partition(":/")[2]) as tar:
        member = tar.extractfile("m")
        assert member and member.read(3) == b"new"
    time.sleep(1.1)
    assert outbox().save(["modeldir"]), "now it is known for sure"
    assert not outbox().save(["modeldir"]) and not outbox().save(["modeldir"]) and len(put) == 3


def test_the_same_tar_is_not_sent_again_at_the_end(saved: Saved) -> None:
    outbox, folder, put = saved
    (folder / "m").write_text("1")
    assert outbox().save(["modeldir"])
    assert outbox().finish(is_last_try=False) == [] and len(put) == 1
    assert outbox().finish(is_last_try=False) == [] and len(put) == 1, "as after a crash"


def test_after_an_upload_that_was_cut_off_nobody_knows_what_the_store_has(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, folder, put = saved
    (folder / "m").write_text("1")
    at = (folder / "m").stat()
    assert outbox().save(["modeldir"])
    (folder / "m").write_text("2")
    original = LocalStore.put

    def cut_off(*arguments: Any) -> None:
        original(*arguments)
        raise StoreError("no answer", transient=True)

    monkeypatch.setattr(LocalStore, "put", cut_off)
    with pytest.raises(StoreError):
        outbox().save(["modeldir"])
    monkeypatch.setattr(LocalStore, "put", original)
    (folder / "m").write_text("1")  # as it was, also by its time
    os.utime(folder / "m", ns=(at.st_atime_ns, at.st_mtime_ns))
    assert outbox().finish(is_last_try=False) == [] and len(put) == 3
