"""After the job: its results to the store, its end into the client's record, its files away."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrunner.engine import record, scrape
from hpcrunner.engine.ends import NOT_ITS_TROUBLE
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.outbox import Outbox
from hpcrunner.engine.prepare import clear_away
from hpcrunner.engine.transfers import Stopped, Transfer
from hpcrunner.errors import StoreError
from hpcrunner.files import open_plain
from hpcrunner.layout import RunDir
from hpcrunner.model import Outcome, Run, State
from hpcrunner.wire.experiment import Experiment

_LARGEST_LOG = 16 * 2**20
"""Bytes of a log that are kept for `hpcrunner logs`."""
_UNSENT, _KEPT = "not returned: ", "the files are kept in "
"""How the notes about results that stay here begin."""


@dataclass(frozen=True)
class Returned:
    """What became of the results."""

    problems: tuple[str, ...] = ()
    """What could not be returned for good: the files are kept."""
    notes: tuple[str, ...] = ()
    """What the user should know beside that."""


def finish(install: Install, experiment: Experiment, run: Run, run_dir: RunDir, transfer: Transfer,
           confirm: Callable[[], None], *, is_last_try: bool) -> Returned:
    """Returns everything the run made, whatever its outcome; in a thread. May be repeated after a crash.

    Raises StoreError or OSError if it should be tried again later; then everything is still here. On the last try
    whatever goes wrong is a problem like others: no program can keep its run from ending.
    """
    problems: list[str] = []
    notes: tuple[str, ...] = ()
    try:
        if run.run_dir:
            _check_there(run_dir)
        else:
            # It ended before all of its files were here. What is here must not replace what is whole in the store;
            # only the reason goes where the user looks.
            clear_away(run_dir)
        log_path = run_dir.log("output" in experiment.artifacts)
        run_dir.env_file.unlink(missing_ok=True)
        notes = scrape.scrape(experiment, run, run_dir, is_over=True, check=transfer.check)
        sign_off(log_path, run, notes)
        problems += Outbox(install, experiment, run, run_dir, transfer, confirm).finish(is_last_try=is_last_try)
        if run.run_dir:
            _check_there(run_dir)  # What vanishes meanwhile looks like artifacts that were never made.
        _keep_log(install, run, log_path)
    except (Stopped, *NOT_ITS_TROUBLE):
        raise
    except Exception as error:
        if not is_last_try:
            raise
        problems.append(str(error) or type(error).__name__)
    transfer.begin(f"{experiment.key}: writing its record")
    confirm()
    notes += _write_record(install, run, experiment, transfer, is_last_try)
    return Returned(tuple(problems), notes)


def finished(install: Install, run: Run, returned: Returned) -> Run:
    """Records what `finish` did."""
    root, problems = install.run_dir(run).root, returned.problems
    notes, text = [*run.notes, *returned.notes], "results are returned"
    if problems:
        text = "not everything could be returned: " + "; ".join(problems)
        notes += [*(f"{_UNSENT}{problem}" for problem in problems), f"{_KEPT}{root}"]
        log.error("%s: %s", run.key, text)
    # From now on its folder stays this one, wherever the site has new ones.
    return install.journal.move(run, State.DONE, text, removing=not problems and not _keeps(install, run), waiting="",
                                run_dir=str(root), notes=tuple(dict.fromkeys(notes)))


def has_kept(run: Run) -> bool:
    """Whether results of a run that is over are in its run directory and not in the store."""
    return run.state is State.DONE and any(note.startswith(_KEPT) for note in run.notes)


def other_notes(run: Run) -> tuple[str, ...]:
    """Those that are not about results that were kept."""
    return tuple(note for note in run.notes if not note.startswith((_UNSENT, _KEPT)))


def _check_there(run_dir: RunDir) -> None:
    """Raises StoreError (transient) or OSError unless the files that were staged are seen."""
    try:
        run_dir.style_file.lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{run_dir.root}: its files are not there; a file system may not be mounted, or somebody "
                         "removed them", transient=True) from error


def release(run_dir: RunDir, run: Run) -> None:
    """Takes a run directory from its job, which has certainly ended, so that another one may go on there."""
    shutil.rmtree(run_dir.status / "claim", ignore_errors=True)
    for name in ("exit", "interrupted", "owner"):
        path = run_dir.status / name
        if path.exists():
            path.replace(run_dir.status / f"{name}.{run.attempt}")


def sign_off(path: Path, run: Run, notes: tuple[str, ...] = ()) -> None:
    """Ends the user's own log with the outcome, once. Raises nothing: the program may have left anything there."""
    line = f"[hpcrunner] {run.outcome.value if run.outcome else 'ended'}: {run.reason}\n"
    text = "".join(f"[hpcrunner] note: {note}\n" for note in dict.fromkeys([*run.notes, *notes])) + line
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_plain(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644) as file:
            size = file.seek(0, os.SEEK_END)
            data = text.encode("utf-8", "replace")
            file.seek(max(0, size - len(data)))
            end = file.read()
            if end == data:
                return
            file.write((b"" if not size or end.endswith(b"\n") else b"\n") + data)
    except OSError as error:
        log.warning("%s: the outcome can't be added to %s: %s", run.key, path, error.strerror)


def _write_record(install: Install, run: Run, experiment: Experiment, transfer: Transfer, is_last_try: bool
                  ) -> tuple[str, ...]:
    """Returns notes. Raises StoreError (transient)."""
    ended_at = run.finished_at if run.finished_at is not None else run.ended_at
    changes: dict[str, Any] = {"status": "finished", "outcome": run.outcome.value if run.outcome else None,
                               "reason": run.reason, "exit_code": run.exit_code, "host": run.host,
                               "job_id": run.job_id, "partition": run.partition, "time_finished": ended_at}
    if run.started_at is not None:
        changes["time_started"] = run.started_at
    if run.finished_at is not None:
        changes["time_last_checkpoint"] = run.finished_at
    try:
        record.update(install, experiment, changes, transfer)
    except StoreError as error:
        if error.transient and not is_last_try:
            raise
        # Its results are in the store: nothing has to be kept for that.
        log.warning("%s: the client's record could not be written: %s", run.key, error)
        return (f"the client's record could not be written: {error}",)
    return ()


def _keep_log(install: Install, run: Run, path: Path) -> None:
    """A copy of the log stays for `hpcrunner logs` when the run directory goes. Raises nothing: it is only a copy."""
    kept = log_copy(install.state.logs, run)
    part = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        with open_plain(path, os.O_RDONLY) as log_file:
            kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with part.open("wb") as copy:
                cut = log_file.seek(0, os.SEEK_END) - _LARGEST_LOG
                log_file.seek(max(0, cut))
                if cut > 0:
                    copy.write(b"[hpcrunner] the beginning is left out; all of it is in the artifact `output`\n")
                shutil.copyfileobj(log_file, copy, 2**20)
            part.replace(kept)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s: its log can't be kept: %s: %s", run.key, error.filename or path, error.strerror)
        with suppress(OSError):
            part.unlink(missing_ok=True)


def log_copy(folder: Path, run: Run) -> Path:
    return folder / (re.sub(r"[^A-Za-z0-9_.-]", "_", run.key)[:60] + f"-{run.short_id}.log")


def _keeps(install: Install, run: Run) -> bool:
    keep = "all" if install.site.debug else install.site.keep
    return keep == "all" or (keep == "failed" and run.outcome is not Outcome.SUCCEEDED)


def remove(folder: Path, *, is_said: bool = True) -> bool:
    """Removes a run directory, folders that are read-only or can't be listed in it too. Whether it is gone: what can't
    be removed is only worth a warning, if `is_said`."""
    try:
        folder.chmod(0o700)
        for path, folders, _ in os.walk(folder):
            # Before it is looked into.
            for name in folders:
                if not os.path.islink(inner := f"{path}/{name}"):  # noqa: PTH114
                    os.chmod(inner, 0o700)  # noqa: PTH101
        shutil.rmtree(folder)
    except FileNotFoundError:
        return True
    except OSError as error:
        if is_said:
            log.warning("%s: can't be removed, which is tried again: %s", error.filename or folder, error.strerror)
        return False
    return True
