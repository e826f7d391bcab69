"""Starts the transfers that the plan wants, and records what became of them. The main thread's side of `transfers`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hpcrunner.engine import checkpoint, ends, finish, prepare, record
from hpcrunner.engine.actions import Action, Checkpoint, Halt, Return, Stage, Tell
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.outbox import read_sent
from hpcrunner.engine.scrape import started_at
from hpcrunner.engine.transfers import Stopped, Transfer, Urgency
from hpcrunner.model import Run

_URGENCY: dict[type[Action], Urgency] = {
    Return: Urgency.RETURN, Tell: Urgency.TELL, Checkpoint: Urgency.CHECKPOINT, Stage: Urgency.STAGE}
_REMOVED_AGAIN = 3600.0
"""Seconds after which a run directory that could not be removed, or not all of it, is tried again."""


def start(install: Install, actions: list[Action]) -> int:
    """Starts as many as there is room for. Returns how many."""
    begun = 0
    for action in sorted(actions, key=lambda action: _URGENCY[type(action)]):
        if install.transfers.room(_URGENCY[type(action)]) <= 0:
            break  # Nor is there for anything less urgent.
        begun += 1
        install.journal.check()
        try:
            _STARTS[type(action)](install, action)
        except Exception as error:
            ends.went_wrong(install, action.run, error)
    return begun


def clear(install: Install) -> None:
    """Starts the removal of the run directories that are not needed any more."""
    now = time.time()
    for run in install.journal.to_remove():
        is_put_off = now < run.not_before <= now + _REMOVED_AGAIN
        if (not is_put_off and run.id not in install.transfers.under_way
                and install.transfers.room(Urgency.REMOVAL) > 0):
            install.transfers.start(run, f"{run.key}: removing its files", Urgency.REMOVAL,
                                    partial(_clear, install, run, install.run_dir(run).root),
                                    partial(_cleared, install, run), partial(ends.went_wrong, install, run))


def reap(install: Install) -> int:
    """Records the transfers that came to an end. Returns how many."""
    done = install.transfers.done()
    for transfer in done:
        install.journal.check()
        if isinstance(transfer.error, Stopped):
            continue  # Whatever stopped it goes on now.
        try:
            if transfer.error is None:
                transfer.record(transfer.result)
            else:
                transfer.failed(transfer.error)
        except Exception as error:
            if transfer.run is None:
                raise
            ends.went_wrong(install, install.journal.current(transfer.run), error)
    return len(done)


def halt(install: Install, action: Halt) -> None:
    install.transfers.stop(action.run.id)


def _stage(install: Install, action: Stage) -> None:
    run, experiment, run_dir = action.run, install.experiment(action.run), install.run_dir(action.run)

    def work(transfer: Transfer) -> tuple[str, ...]:
        for root in _earlier(install, run):
            transfer.begin(f"{run.key}: removing the files of its lost job")
            install.journal.check_from_thread()
            finish.remove(root)
        return prepare.stage(install, experiment, run, run_dir, transfer)

    _start(install, action, "staging", work,
           lambda notes: prepare.staged(install, install.journal.current(run), notes),
           partial(ends.went_wrong, install, run))


def _return(install: Install, action: Return) -> None:
    run = action.run
    run_dir, experiment = install.run_dir(run), install.experiment(run)
    _start(install, action, "returning", lambda transfer: finish.finish(
        install, experiment, run, run_dir, transfer, install.journal.check_from_thread,
        is_last_try=action.is_last_try), partial(_returned, install, run), partial(ends.went_wrong, install, run))


def _returned(install: Install, run: Run, returned: finish.Returned) -> None:
    finish.finished(install, install.journal.current(run), returned)
    clear(install)


def _earlier(install: Install, run: Run) -> list[Path]:
    """The run directories that it had before it was run again, as far as they are still there. They go when it is
    staged anew: there may be more in them than the main thread has time to remove, and no room for both."""
    roots = [install.run_dir(replace(run, generation=number, run_dir="")).root for number in range(1, run.generation)]
    return [root for root in roots if os.path.lexists(root)]


def _clear(install: Install, run: Run, root: Path, transfer: Transfer) -> bool:
    install.journal.check_from_thread()
    return all([finish.remove(one, is_said=not run.tries) for one in (root, *_earlier(install, run))])


def _cleared(install: Install, run: Run, is_gone: bool) -> None:
    changes = {"removing": False, "run_dir": ""} if is_gone else {
        "not_before": time.time() + _REMOVED_AGAIN, "tries": run.tries + 1}
    install.journal.note(install.journal.current(run), **changes)


def _checkpoint(install: Install, action: Checkpoint) -> None:
    run, experiment, run_dir = action.run, install.experiment(action.run), install.run_dir(action.run)

    def saved(_: object) -> None:
        # Counted from its end: one that takes longer than it should be apart doesn't fill all of the time.
        now = time.time()
        plan = checkpoint.due(experiment, read_sent(run_dir.sent_file), install.site.checkpoint_min, now)
        install.journal.note(install.journal.current(run), save_at=plan.next_at)

    def failed(error: Exception) -> None:
        _only_said(run, "no checkpoint this time", error)
        saved(None)

    _start(install, action, "saving", lambda transfer: checkpoint.save(
        install, experiment, run, run_dir, transfer, install.journal.check_from_thread), saved, failed)


def _tell(install: Install, action: Tell) -> None:
    run, experiment, run_dir = action.run, install.experiment(action.run), install.run_dir(action.run)
    changes: dict[str, object] = {"status": action.status, "job_id": run.job_id, "host": run.host}

    def work(transfer: Transfer) -> None:
        if action.status == "running":
            changes["time_started"] = started_at(run, run_dir) or time.time()
        install.journal.check_from_thread()
        record.update(install, experiment, changes, transfer)

    def told(_: object) -> None:
        install.journal.note(install.journal.current(run), told=action.status)

    def failed(error: Exception) -> None:
        _only_said(run, f"the client's record could not be set to {action.status}", error)
        told(None)

    _start(install, action, "telling", work, told, failed)


def _only_said(run: Run, what: str, error: Exception) -> None:
    """What the run itself needs not suffer from."""
    if isinstance(error, ends.NOT_ITS_TROUBLE):
        raise error
    log.warning("%s: %s: %s", run.key, what, error)


def _start(install: Install, action: Action, what: str, work: Callable[[Transfer], object],
           record: Callable[[Any], object], failed: Callable[[Exception], None]) -> None:
    install.transfers.start(action.run, f"{action.run.key}: {what}", _URGENCY[type(action)], work, record, failed)


_STARTS: dict[type[Action], Callable[..., None]] = {
    Stage: _stage, Return: _return, Checkpoint: _checkpoint, Tell: _tell,
}
STARTED = tuple(_STARTS)
"""The actions that are transfers."""
