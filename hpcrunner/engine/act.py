"""Does what the plan says, one action at a time, and turns what goes wrong into a later try or an end."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpcrunner.engine import cancel, checkpoint, ends, moving, prepare, submit
from hpcrunner.engine.actions import (
    Action,
    Adopt,
    Build,
    Cancel,
    Checkpoint,
    Define,
    End,
    Halt,
    Policy,
    Ready,
    Resume,
    Retry,
    Running,
    Submit,
    SubmitAgain,
    Waiting,
)
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.observe import observe
from hpcrunner.engine.plan import plan
from hpcrunner.model import Run, State

_SHORT = 0.02
"""Seconds for which transfers are waited for before a look counts as having found nothing to do."""


def move_all(install: Install, *, periodic: bool = False) -> int:
    """Observes, plans and acts until nothing is left to do now; transfers go on meanwhile, and after it. With
    `periodic` also what comes again and again is begun: checkpoints, and looks for experiments that users stopped.

    Returns the number of runs that are not over.
    """
    moving.clear(install)
    install.scheduler.begin()
    if periodic:
        install.stops.look(install)
    while True:
        moved = moving.reap(install)
        runs = install.journal.runs()
        now = time.time()
        seen = observe(install, runs, policy(install), frozenset(install.stops.found))
        actions = plan(runs, seen, policy(install), now)
        moved += _do(install, [one for one in actions if periodic or not isinstance(one, Checkpoint)])
        if not moved and not install.transfers.wait(_SHORT):
            break
    # Read again: what did not move on may have got its job's name meanwhile, as a submission without an answer does.
    active = install.journal.runs()
    _sweep(install, active)
    return len(active)


def policy(install: Install) -> Policy:
    site = install.site
    return Policy(max_duration=site.max_duration, default_duration=site.default_duration, retries=site.retries,
                  queue_gone_grace=site.queue_gone_grace, settles=install.scheduler.settles,
                  exit_grace=install.scheduler.exit_grace, kill_grace=site.kill_grace, max_jobs=site.max_jobs,
                  max_builds=site.max_builds, store_patience=site.store_patience)


def _do(install: Install, actions: list[Action]) -> int:
    """Does all actions; those that are one call for many runs together. Returns how many runs moved on."""
    submits = [action for action in actions if isinstance(action, Submit)]
    cancels = [action for action in actions if isinstance(action, Cancel)]
    waits = [action for action in actions if isinstance(action, Waiting)]
    others = (Submit, Cancel, Waiting, Halt, *moving.STARTED)
    moved = sum([_act(install, action) for action in actions if not isinstance(action, others)])
    for action in actions:
        if isinstance(action, Halt):
            moving.halt(install, action)
    moved += moving.start(install, [action for action in actions if isinstance(action, moving.STARTED)])
    if waits:
        with install.journal.together():
            for action in waits:
                _waiting(install, action)
    if cancels:
        cancel.cancel(install, cancels)
    if submits := _as_many_as_fit(install, submits):
        moved += submit.submit(install, submits, lambda run, error: ends.went_wrong(install, run, error))
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
        ends.went_wrong(install, action.run, error)
    return False


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
    save_at = run.save_at
    if save_at is None:
        save_at = checkpoint.first(install.experiment(run), install.site.checkpoint_min, time.time())
    install.journal.move(run, State.RUNNING, f"running on {action.node}" if action.node else "running",
                         host=action.node, waiting="", save_at=save_at)


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
    # Its files are removed when it is staged anew (`moving`): here that could take the main thread hours.
    avoid = tuple(dict.fromkeys([*run.avoid, *([action.avoid] if action.avoid else [])]))
    install.journal.move(run, State.RECEIVED, action.reason, generation=run.generation + 1, attempt=0, run_dir="",
                         image="", tag="", job_name="", task=None, job_id="", gpu_ids=(), host="", waiting="",
                         avoid=avoid, save_at=None)


def _resume(install: Install, action: Resume) -> None:
    run = action.run
    log.info("%s: %s", run.key, action.reason)
    # The id stays until the next submission: that takes the run directory from the job that had it.
    install.journal.move(run, State.READY, action.reason, resumes=run.resumes + 1, gpu_ids=(), waiting="")


_ACTS: dict[type[Action], Callable[..., None]] = {
    Define: _define, Build: _build, Ready: _ready, Adopt: _adopt, SubmitAgain: _submit_again, Running: _running,
    Retry: _retry, Resume: _resume, End: ends.end,
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
