"""After the job: its results to the store, its end into the client's record, its files away."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcrunner.engine import record, scrape
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.outbox import Outbox
from hpcrunner.engine.prepare import clear_away
from hpcrunner.engine.transfers import Transfer
from hpcrunner.errors import StoreError
from hpcrunner.layout import RunDir
from hpcrunner.model import Outcome, Run, State
from hpcrunner.wire.experiment import Experiment

_LARGEST_LOG = 16 * 2**20
"""Bytes of a log that are kept for `hpcrunner logs`."""


def finish(install: Install, experiment: Experiment, run: Run, run_dir: RunDir, transfer: Transfer,
           confirm: Callable[[], None], *, is_last_try: bool) -> tuple[str, ...]:
    """Returns everything the run made, whatever its outcome; in a thread. May be repeated after a crash.

    Returns what could not be returned for good. Raises StoreError (transient) or OSError if it should be tried again
    later; then everything is still here.
    """
    if not run_dir.style_file.exists():
        # It ended before all of its files were here. What is here must not replace what is whole in the store; only
        # the reason goes where the user looks.
        clear_away(run_dir)
    has_output = "output" in experiment.artifacts
    run_dir.env_file.unlink(missing_ok=True)
    sign_off(run_dir.log(has_output), run)
    scrape.scrape(experiment, run, run_dir, is_over=True)
    outbox = Outbox(install, experiment, run_dir, transfer, confirm)
    problems = outbox.finish(is_last_try=is_last_try)
    transfer.begin(f"{experiment.key}: writing its record")
    confirm()
    problems += _write_record(install, run, experiment, is_last_try)
    _keep_log(install, run, run_dir.log(has_output))
    return tuple(problems)


def finished(install: Install, run: Run, problems: tuple[str, ...]) -> Run:
    """Records what `finish` did."""
    text = "results are returned"
    changes: dict[str, Any] = {}
    if problems:
        text = "not everything could be returned: " + "; ".join(problems)
        changes["notes"] = tuple(dict.fromkeys([*run.notes, *problems,
                                                f"the files are kept in {install.run_dir(run).root}"]))
        log.error("%s: %s", run.key, text)
    return install.journal.move(run, State.DONE, text, removing=not problems and not _keeps(install, run), waiting="",
                                **changes)


def release(run_dir: RunDir, run: Run) -> None:
    """Takes a run directory from its job, which has certainly ended, so that another one may go on there."""
    shutil.rmtree(run_dir.status / "claim", ignore_errors=True)
    for name in ("exit", "interrupted", "owner"):
        path = run_dir.status / name
        if path.exists():
            path.replace(run_dir.status / f"{name}.{run.attempt}")


def sign_off(path: Path, run: Run) -> None:
    """Ends the user's own log with the outcome, once."""
    line = f"[hpcrunner] {run.outcome.value if run.outcome else 'ended'}: {run.reason}\n"
    text = "".join(f"[hpcrunner] note: {note}\n" for note in run.notes) + line
    path.parent.mkdir(parents=True, exist_ok=True)
    # The program may have put a link there, to make us write elsewhere.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        log.warning("%s: the outcome can't be added to %s: %s", run.key, path, error.strerror)
        return
    with open(descriptor, "r+b", buffering=0) as file:  # noqa: PTH123
        size = file.seek(0, os.SEEK_END)
        data = text.encode("utf-8", "replace")
        file.seek(max(0, size - len(data)))
        end = file.read()
        if end == data:
            return
        file.write((b"" if not size or end.endswith(b"\n") else b"\n") + data)


def _write_record(install: Install, run: Run, experiment: Experiment, is_last_try: bool) -> list[str]:
    changes: dict[str, Any] = {"status": "finished", "outcome": run.outcome.value if run.outcome else None,
                               "reason": run.reason, "exit_code": run.exit_code, "host": run.host,
                               "job_id": run.job_id, "partition": run.partition}
    if run.started_at is not None:
        changes["time_started"] = run.started_at
    if run.finished_at is not None:
        changes["time_finished"] = changes["time_last_checkpoint"] = run.finished_at
    else:
        changes["time_finished"] = run.updated_at
    try:
        record.update(install, experiment, changes)
    except StoreError as error:
        if error.transient and not is_last_try:
            raise
        return [f"record: {error}"]
    return []


def _keep_log(install: Install, run: Run, path: Path) -> None:
    """A copy of the log stays for `hpcrunner logs` when the run directory goes."""
    if path.is_symlink() or not path.is_file():
        return
    kept = log_copy(install.state.logs, run)
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = kept.with_name(f".{kept.name}.{os.getpid()}")
    with path.open("rb") as log_file, part.open("wb") as copy:
        cut = log_file.seek(0, os.SEEK_END) - _LARGEST_LOG
        log_file.seek(max(0, cut))
        if cut > 0:
            copy.write(b"[hpcrunner] the beginning is left out; all of it is in the artifact `output`\n")
        shutil.copyfileobj(log_file, copy, 2**20)
    part.replace(kept)


def log_copy(folder: Path, run: Run) -> Path:
    return folder / (re.sub(r"[^A-Za-z0-9_.-]", "_", run.key)[:60] + f"-{run.short_id}.log")


def _keeps(install: Install, run: Run) -> bool:
    keep = "all" if install.site.debug else install.site.keep
    return keep == "all" or (keep == "failed" and run.outcome is not Outcome.SUCCEEDED)


def remove(folder: Path) -> None:
    """Removes a run directory, read-only folders in it too. What can't be removed is only worth a warning."""
    try:
        for path, _, _ in os.walk(folder):
            os.chmod(path, 0o700)  # noqa: PTH101
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s: can't be removed: %s", error.filename or folder, error.strerror)
