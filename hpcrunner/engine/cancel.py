"""Ending what somebody wants ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpcrunner.engine import finish
from hpcrunner.engine.actions import Cancel
from hpcrunner.engine.install import Install, log
from hpcrunner.errors import HpcrunnerError
from hpcrunner.files import write_whole
from hpcrunner.model import ACTIVE, State


def cancel(install: Install, actions: Sequence[Cancel]) -> None:
    """Tells the scheduler, many jobs in one call; the journal knows first."""
    at = time.time()
    with install.journal.together():
        for action in actions:
            text = "its time to stop is over" if action.now else f"cancelling: {action.reason}"
            install.journal.note(action.run, text, cancelling=action.reason,
                                 cancelled_at=0.0 if action.is_noted_only else at)
    for now in (False, True):
        runs = [action.run for action in actions if action.now is now and not action.is_noted_only]
        if not runs:
            continue
        log.info("cancelling %s", ", ".join(run.key for run in runs[:5]) + (", ..." if len(runs) > 5 else ""))
        try:
            install.scheduler.cancel([install.job(run) for run in runs], now=now)
        except HpcrunnerError as error:
            log.warning("not cancelled yet: %s", error)
            with install.journal.together():
                for run in runs:
                    install.journal.note(run, f"not cancelled yet: {error}", cancelled_at=0.0)


def request(folder: Path, content: dict[str, Any]) -> Path:
    """Leaves a request for whoever works on the install, under a name that says when it was made."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{time.time_ns()}.json"
    write_whole(path, json.dumps(content), 0o600)
    return path


def take_requests(install: Install) -> None:
    """Puts what commands asked for into the journal."""
    for path, asked in _requests(install.state.requests):
        try:
            if "cancel" in asked:
                _cancel_key(install, str(asked["cancel"]), str(asked.get("reason") or "by hpcrunner cancel"))
            elif "return" in asked:
                _return_again(install, str(asked["return"]))
            elif "resolve" in asked:
                _resolve(install, str(asked["resolve"]), asked.get("job"))
        except HpcrunnerError as error:
            log.warning("%s: %s", path.name, error)
        path.unlink(missing_ok=True)


def _requests(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*.json")):
        try:
            asked = json.loads(path.read_text())
        except (OSError, ValueError):
            asked = {}
        yield path, asked if isinstance(asked, dict) else {}


def _cancel_key(install: Install, key: str, reason: str) -> None:
    for run in install.journal.find(key):
        if run.state in ACTIVE and run.state is not State.ENDING and not run.cancelling:
            install.journal.note(run, f"to be cancelled: {reason}", cancelling=reason)


def _return_again(install: Install, key: str) -> None:
    """Results that were kept are to be returned, with new patience."""
    for run in install.journal.find(key):
        if finish.has_kept(run):
            install.journal.move(run, State.ENDING, "its results are to be returned, says the operator",
                                 ended_at=time.time(), notes=finish.other_notes(run))


def _resolve(install: Install, key: str, job_id: Any) -> None:
    """Somebody looked himself whether a job exists whose submission had no answer."""
    for run in install.journal.find(key):
        if run.state is State.SUBMITTING and job_id:
            # An array's own id would mean all of its elements, also to scancel.
            element = str(job_id) if run.task is None or "_" in str(job_id) else f"{job_id}_{run.task}"
            install.journal.move(run, State.SUBMITTED, f"is job {element}, says the operator", job_id=element)
        elif run.state is State.SUBMITTING:
            install.journal.move(run, State.READY, "there is no job, says the operator; submitted again", gpu_ids=())
