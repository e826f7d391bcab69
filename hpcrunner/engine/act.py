"""Does what the plan says, one action at a time, and turns what goes wrong into a later try or an end."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

from hpcrunner.engine import finish, prepare, record, submit
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.observe import observe
from hpcrunner.engine.plan import (
    Action,
    Adopt,
    Build,
    Cancel,
    Define,
    End,
    Policy,
    Ready,
    Retry,
    Return,
    Running,
    Stage,
    Submit,
    SubmitAgain,
    backoff,
    plan,
)
from hpcrunner.errors import BusyError, HpcrunnerError, MessageError, StoreError
from hpcrunner.model import Outcome, Run, State

_TRIES = 5
"""So often a step that may succeed later is tried before the run counts as lost."""


def move_all(install: Install) -> int:
    """Observes, plans and acts until nothing is left to do now. Returns the number of runs that are not over."""
    for run in install.journal.to_remove():
        finish.clear(install, run)
    while runs := install.journal.runs():
        actions = plan(runs, observe(install, runs), policy(install), time.time())
        if not sum([_act(install, action) for action in actions]):
            break
    active = install.journal.runs()
    _sweep_spool(install, active)
    return len(active)


def policy(install: Install) -> Policy:
    site = install.site
    return Policy(max_duration=site.max_duration, retries=site.retries, queue_gone_grace=site.queue_gone_grace,
                  settles=install.scheduler.settles, max_jobs=site.max_jobs, max_builds=site.max_builds)


def _act(install: Install, action: Action) -> bool:
    """Does one action, and turns what goes wrong into a later try or an end. True if the run moved on."""
    run = action.run
    try:
        _ACTS[type(action)](install, action)
        return True
    except (BusyError, sqlite3.Error):
        raise  # Not this run's trouble: the journal can't be written, or is somebody else's now.
    except HpcrunnerError as error:
        _failed(install, run, error, error.transient)
    except OSError as error:
        _failed(install, run, error, True)
    except Exception as error:
        log.exception("%s: the step after %s failed", run.key, run.state.value)
        _failed(install, run, error, False)
    return False


def _failed(install: Install, run: Run, error: Exception, transient: bool) -> None:
    run = install.journal.current(run)
    tries = run.tries + 1
    reason = str(error) or type(error).__name__
    # Results are never given up: they stay here until the store takes them.
    if run.state is State.ENDING or (transient and tries <= _TRIES):
        wait = backoff(tries)
        log.warning("%s: %s; tried again in %.0f s", run.key, reason, wait)
        install.journal.note(run, f"{reason}; tried again in {wait:.0f} s", tries=tries, not_before=time.time() + wait)
        return
    if isinstance(error, (MessageError, StoreError)) and not transient:
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
    install.images.build(action.run.image)
    install.journal.note(action.run, "building its image")


def _ready(install: Install, action: Ready) -> None:
    install.journal.move(action.run, State.READY, "its image is there")


def _submit(install: Install, action: Submit) -> None:
    run = submit.submit(install, action)
    log.info("%s: %s", run.key, f"submitted as job {run.job_id}" if run.job_id else "being submitted")


def _adopt(install: Install, action: Adopt) -> None:
    install.journal.move(action.run, State.SUBMITTED, f"found again as job {action.job_id}", job_id=action.job_id)


def _submit_again(install: Install, action: SubmitAgain) -> None:
    submit.submit_again(install, action.run)


def _running(install: Install, action: Running) -> None:
    run = install.journal.move(action.run, State.RUNNING, "running")
    try:
        record.update(install, install.experiment(run), {"status": "running", "time_started": time.time()})
    except HpcrunnerError as error:
        log.warning("%s: the client's record could not be set to running: %s", run.key, error)


def _cancel(install: Install, action: Cancel) -> None:
    log.info("%s: cancelling: %s", action.run.key, action.reason)
    run = install.journal.note(action.run, f"cancelling: {action.reason}", cancelling=action.reason)
    install.scheduler.cancel([install.job(run)])


def _retry(install: Install, action: Retry) -> None:
    run = action.run
    log.warning("%s: %s", run.key, action.reason)
    # Nothing of the lost job may run on beside the new one.
    install.scheduler.cancel([install.job(run)])
    finish.remove(install.run_dir(run).root)
    install.journal.move(run, State.RECEIVED, action.reason, generation=run.generation + 1, attempt=0, run_dir="",
                         image="", tag="", job_id="", gpu_ids=())


def _end(install: Install, action: End) -> None:
    run, ended = action.run, action.exit
    log.log(20 if action.outcome is Outcome.SUCCEEDED else 30, "%s: %s: %s", run.key, action.outcome.value,
            action.reason.splitlines()[0])
    changes = {} if ended is None else {"exit_code": ended.code, "started_at": ended.started_at,
                                        "finished_at": ended.finished_at, "host": ended.host}
    if ended is None and run.job_id:
        install.scheduler.cancel([install.job(run)])
    install.journal.move(run, State.ENDING, f"{action.outcome.value}: {action.reason}", outcome=action.outcome,
                         reason=action.reason, gpu_ids=(), **changes)


def _return(install: Install, action: Return) -> None:
    finish.finish(install, action.run)


_ACTS: dict[type[Action], Callable[..., None]] = {
    Stage: _stage, Define: _define, Build: _build, Ready: _ready, Submit: _submit, Adopt: _adopt,
    SubmitAgain: _submit_again, Running: _running, Cancel: _cancel, Retry: _retry, End: _end, Return: _return,
}


def _sweep_spool(install: Install, active: list[Run]) -> None:
    """Removes the spool files of runs that are over."""
    tags = {run.tag for run in active}
    try:
        names = [path for path in install.state.spool.iterdir() if path.name not in tags]
    except FileNotFoundError:
        return
    for path in names:
        if not path.name.startswith("."):
            path.unlink(missing_ok=True)
