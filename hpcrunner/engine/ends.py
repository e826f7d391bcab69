"""How runs come to their end, and what becomes of a step that failed: a later try, or an end."""

from __future__ import annotations

import errno
import sqlite3
import time

from hpcrunner.engine.actions import End
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.plan import backoff, waited
from hpcrunner.errors import BusyError, HpcrunnerError, MessageError, StoreError, UnavailableError
from hpcrunner.model import Outcome, Run, State
from hpcrunner.schedulers.base import SubmitDeferred, SubmitRefused

_WEATHER = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE}
"""What is wrong with a whole file system of ours, and not with one run: it is waited for, however long it takes."""
_TRIES = 5
"""So often a step that may succeed later is tried before the run counts as lost."""
NOT_ITS_TROUBLE = (BusyError, sqlite3.Error)
"""Raised by what a run does, but nothing of the run: the journal can't be written, or is somebody else's now."""


def end(install: Install, action: End) -> None:
    """Notes how a run ended; its results are returned next."""
    run, ended = action.run, action.exit
    log.log(20 if action.outcome is Outcome.SUCCEEDED else 30, "%s: %s: %s", run.key, action.outcome.value,
            action.reason.splitlines()[0])
    changes = {} if ended is None else {"exit_code": ended.code, "started_at": ended.started_at,
                                        "finished_at": ended.finished_at, "host": ended.host}
    # A checkpoint has no point any more: all of it is returned next.
    install.transfers.stop(run.id)
    # One that was stopped from outside may be waiting to be started again.
    if run.job_id and (ended is None or ended.cause in ("cancelled", "preempted")):
        install.scheduler.cancel([install.job(run)], now=True)
    install.journal.move(run, State.ENDING, f"{action.outcome.value}: {action.reason}", outcome=action.outcome,
                         reason=action.reason, gpu_ids=(), waiting="", ended_at=time.time(), **changes)


def went_wrong(install: Install, run: Run, error: Exception) -> None:
    """Turns what a step raised into a later try or an end. Raises it again if it is not the run's trouble."""
    if isinstance(error, NOT_ITS_TROUBLE):
        raise error
    if not isinstance(error, (HpcrunnerError, OSError)):
        log.error("%s: the step after %s failed", run.key, run.state.value, exc_info=error)
    _failed(install, run, error, isinstance(error, OSError) or getattr(error, "transient", False))


def _failed(install: Install, run: Run, error: Exception, transient: bool) -> None:
    run = install.journal.current(run)
    tries = run.tries + 1
    reason = str(error) or type(error).__name__
    # Results are never given up: they stay here until the store takes them.
    is_weather = isinstance(error, SubmitDeferred) or getattr(error, "errno", 0) in _WEATHER or (
        transient and isinstance(error, UnavailableError)) or (
        transient and isinstance(error, StoreError) and waited(tries) < install.site.store_patience)
    if run.state is State.ENDING or is_weather or (transient and tries <= _TRIES):
        wait = backoff(tries)
        log.warning("%s: %s; tried again in %.0f s", run.key, reason, wait)
        waits = {"waiting": reason} if run.state is State.ENDING else {}
        # Not told again and again in the history: it may go on for days.
        text = "" if waits and run.waiting == reason else f"{reason}; tried again in {wait:.0f} s"
        install.journal.note(run, text, tries=tries, not_before=time.time() + wait, **waits)
        return
    if isinstance(error, (MessageError, StoreError, SubmitRefused)) and not transient:
        outcome = Outcome.REJECTED
    else:
        outcome = Outcome.LOST if transient else Outcome.FAILED
    end(install, End(run, outcome, reason))
