"""Does what the plan says, one action at a time, and turns what goes wrong into a later try or an end."""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Callable

from hpcrunner.engine import cancel, finish, prepare, record, submit
from hpcrunner.engine.actions import (
    Action,
    Adopt,
    Build,
    Cancel,
    Define,
    End,
    Policy,
    Ready,
    Resume,
    Retry,
    Return,
    Running,
    Stage,
    Submit,
    SubmitAgain,
    Waiting,
)
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.observe import observe
from hpcrunner.engine.plan import backoff, plan
from hpcrunner.errors import BusyError, HpcrunnerError, MessageError, StoreError, UnavailableError
from hpcrunner.model import Outcome, Run, State
from hpcrunner.schedulers.base import SubmitDeferred, SubmitRefused

_WEATHER = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE}
"""What is wrong with a whole file system of ours, and not with one run: it is waited for, however long it takes."""
_TRIES = 5
"""So often a step that may succeed later is tried before the run counts as lost."""


def move_all(install: Install) -> int:
    """Observes, plans and acts until nothing is left to do now. Returns the number of runs that are not over."""
    for run in install.journal.to_remove():
        finish.clear(install, run)
    install.scheduler.begin()
    stopped = cancel.stopped_by_users(install)
    while runs := install.journal.runs():
        now = time.time()
        actions = plan(runs, observe(install, runs, policy(install), stopped), policy(install), now)
        if not _do(install, actions):
            break
    active = install.journal.runs()
    _sweep(install, active)
    return len(active)


def policy(install: Install) -> Policy:
    site = install.site
    return Policy(max_duration=site.max_duration, default_duration=site.default_duration, retries=site.retries,
                  queue_gone_grace=site.queue_gone_grace, settles=install.scheduler.settles,
                  exit_grace=install.scheduler.exit_grace, kill_grace=site.kill_grace, max_jobs=site.max_jobs,
                  max_builds=site.max_builds)


def _do(install: Install, actions: list[Action]) -> int:
    """Does all actions; those that are one call for many runs together. Returns how many runs moved on."""
    submits = [action for action in actions if isinstance(action, Submit)]
    cancels = [action for action in actions if isinstance(action, Cancel)]
    waits = [action for action in actions if isinstance(action, Waiting)]
    moved = sum([_act(install, action) for action in actions if not isinstance(action, (Submit, Cancel, Waiting))])
    if waits:
        with install.journal.together():
            for action in waits:
                _waiting(install, action)
    if cancels:
        cancel.cancel(install, cancels)
    if submits := _as_many_as_fit(install, submits):
        moved += submit.submit(install, submits, lambda run, error: _went_wrong(install, run, error))
    return moved


def _as_many_as_fit(install: Install, actions: list[Submit]) -> list[Submit]:
    """Not more than the scheduler takes of each partition, as far as that is known."""
    left = {partition: install.scheduler.room(partition)
            for partition in {action.place.partition for action in actions}}
    chosen = []
    for action in actions:
        room = left[action.place.partition]
        if room is None or room > 0:
            chosen.append(action)
            left[action.place.partition] = None if room is None else room - 1
    return chosen


def _act(install: Install, action: Action) -> bool:
    """Does one action, and turns what goes wrong into a later try or an end. True if the run moved on."""
    install.journal.check()
    try:
        _ACTS[type(action)](install, action)
        return True
    except Exception as error:
        _went_wrong(install, action.run, error)
    return False


def _went_wrong(install: Install, run: Run, error: Exception) -> None:
    if isinstance(error, (BusyError, sqlite3.Error)):
        raise error  # Not this run's trouble: the journal can't be written, or is somebody else's now.
    if not isinstance(error, (HpcrunnerError, OSError)):
        log.error("%s: the step after %s failed", run.key, run.state.value, exc_info=error)
    _failed(install, run, error, isinstance(error, OSError) or getattr(error, "transient", False))


def _failed(install: Install, run: Run, error: Exception, transient: bool) -> None:
    run = install.journal.current(run)
    tries = run.tries + 1
    reason = str(error) or type(error).__name__
    # Results are never given up: they stay here until the store takes them.
    is_weather = isinstance(error, SubmitDeferred) or getattr(error, "errno", 0) in _WEATHER or (
        transient and isinstance(error, UnavailableError))
    if run.state is State.ENDING or is_weather or (transient and tries <= _TRIES):
        wait = backoff(tries)
        log.warning("%s: %s; tried again in %.0f s", run.key, reason, wait)
        install.journal.note(run, f"{reason}; tried again in {wait:.0f} s", tries=tries, not_before=time.time() + wait)
        return
    if isinstance(error, (MessageError, StoreError, SubmitRefused)) and not transient:
        outcome = Outcome.REJECTED
    else:
        outcome = Outcome.LOST if transient else Outcome.FAILED
    _end(install, End(run, outcome, reason))


def _stage(install: Install, action: Stage) -> None:
    prepare.stage(install, action.run)


def _define(install: Install, action: Define) -> None:
    prepare.define(install, action.run)


def _build(install: Install, action: Build) -> None:
    log.info("%s: building image %s", action.run.key, action.run.image[:12])
    install.builds.start(action.run.image)
    install.journal.note(action.run, "building its image")


def _ready(install: Install, action: Ready) -> None:
    install.journal.move(action.run, State.READY, "its image is there", waiting="")


def _adopt(install: Install, action: Adopt) -> None:
    run, job = action.run, action.job
    changes = {"job_id": job.job_id, "job_name": job.job_name or run.job_name, "task": job.task}
    if run.state is State.SUBMITTING:
        install.journal.move(run, State.SUBMITTED, f"found again as job {job.job_id}", **changes)
    else:
        install.journal.note(run, f"job {job.job_id} has its run directory, job {run.job_id} left it alone", **changes)


def _submit_again(install: Install, action: SubmitAgain) -> None:
    submit.submit_again(install, action.run)


def _running(install: Install, action: Running) -> None:
    run = action.run
    if run.state is State.RUNNING:
        install.journal.note(run, f"running on {action.node}", host=action.node)
        return
    install.journal.move(run, State.RUNNING, f"running on {action.node}" if action.node else "running",
                         host=action.node, waiting="")
    changes = {"status": "running", "time_started": time.time(), "job_id": run.job_id, "host": action.node}
    try:
        record.update(install, install.experiment(run), changes)
    except HpcrunnerError as error:
        log.warning("%s: the client's record could not be set to running: %s", run.key, error)


def _waiting(install: Install, action: Waiting) -> None:
    run = action.run
    if run.state is State.RUNNING:
        log.info("%s: requeued by the scheduler", run.key)
        install.journal.move(run, State.SUBMITTED, "requeued by the scheduler", waiting=action.reason)
    else:
        install.journal.note(run, waiting=action.reason)


def _retry(install: Install, action: Retry) -> None:
    run = action.run
    log.warning("%s: %s", run.key, action.reason)
    # Nothing of the lost job may run on beside the new one.
    install.scheduler.cancel([install.job(run)], now=True)
    finish.remove(install.run_dir(run).root)
    avoid = tuple(dict.fromkeys([*run.avoid, *([action.avoid] if action.avoid else [])]))
    install.journal.move(run, State.RECEIVED, action.reason, generation=run.generation + 1, attempt=0, run_dir="",
                         image="", tag="", job_name="", task=None, job_id="", gpu_ids=(), host="", waiting="",
                         avoid=avoid)


def _resume(install: Install, action: Resume) -> None:
    run = action.run
    log.info("%s: %s", run.key, action.reason)
    # The id stays until the next submission: that takes the run directory from the job that had it.
    install.journal.move(run, State.READY, action.reason, resumes=run.resumes + 1, gpu_ids=(), waiting="")


def _end(install: Install, action: End) -> None:
    run, ended = action.run, action.exit
    log.log(20 if action.outcome is Outcome.SUCCEEDED else 30, "%s: %s: %s", run.key, action.outcome.value,
            action.reason.splitlines()[0])
    changes = {} if ended is None else {"exit_code": ended.code, "started_at": ended.started_at,
                                        "finished_at": ended.finished_at, "host": ended.host}
    # One that was stopped from outside may be waiting to be started again.
    if run.job_id and (ended is None or ended.cause in ("cancelled", "preempted")):
        install.scheduler.cancel([install.job(run)], now=True)
    install.journal.move(run, State.ENDING, f"{action.outcome.value}: {action.reason}", outcome=action.outcome,
                         reason=action.reason, gpu_ids=(), waiting="", **changes)


def _return(install: Install, action: Return) -> None:
    finish.finish(install, action.run)


_ACTS: dict[type[Action], Callable[..., None]] = {
    Stage: _stage, Define: _define, Build: _build, Ready: _ready, Adopt: _adopt, SubmitAgain: _submit_again,
    Running: _running, Retry: _retry, Resume: _resume, End: _end, Return: _return,
}


def _sweep(install: Install, active: list[Run]) -> None:
    """Removes the spool files of runs that are over, and the files of arrays that have no run left; of both also those
    that a crash kept from getting their names."""
    for folder, names in ((install.state.spool, {run.tag for run in active}),
                          (install.state.arrays, {run.job_name for run in active})):
        try:
            over = [path for path in folder.iterdir() if path.name.lstrip(".").partition(".")[0] not in names]
        except FileNotFoundError:
            continue
        for path in over:
            path.unlink(missing_ok=True)
