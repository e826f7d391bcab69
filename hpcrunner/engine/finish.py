"""After the job: its results to the store, its end into the client's record, its files away."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from hpcrunner.artifacts.pack import compression_for, pack
from hpcrunner.artifacts.style import TarStyle
from hpcrunner.engine import record
from hpcrunner.engine.install import Install, log
from hpcrunner.errors import HpcrunnerError, StoreError
from hpcrunner.layout import RunDir
from hpcrunner.model import Outcome, Run, State
from hpcrunner.wire.message import Experiment

_LARGEST_LOG = 16 * 2**20
"""Bytes of a log that are kept for `hpcrunner logs`."""


def finish(install: Install, run: Run) -> Run:
    """Returns everything the run made, whatever its outcome, and ends it. May be repeated after a crash.

    Raises StoreError (transient) if it should be tried again later; then everything is still here.
    """
    experiment = install.experiment(run)
    run_dir = install.run_dir(run)
    if not run_dir.root.exists():
        # It ended before it had a run directory: the reason still goes where the user looks.
        run_dir.root.mkdir(mode=0o700, parents=True)
        run = install.journal.note(run, run_dir=str(run_dir.root))
    has_output = "output" in experiment.artifacts
    run_dir.env_file.unlink(missing_ok=True)
    sign_off(run_dir.log(has_output), run)
    problems = _return_artifacts(install, run, experiment, run_dir)
    problems += _write_record(install, run, experiment)
    _keep_log(install, run, run_dir.log(has_output))
    text = "results are returned"
    changes: dict[str, Any] = {}
    if problems:
        text = "not everything could be returned: " + "; ".join(problems)
        changes["notes"] = tuple(dict.fromkeys([*run.notes, *problems, f"the files are kept in {run_dir.root}"]))
        log.error("%s: %s", run.key, text)
    done = install.journal.move(run, State.DONE, text, removing=not problems and not _keeps(install, run), **changes)
    return clear(install, done) if done.removing else done


def clear(install: Install, run: Run) -> Run:
    """Removes the run directory of a run that is over."""
    remove(install.run_dir(run).root)
    return install.journal.note(run, removing=False, run_dir="")


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


def _return_artifacts(install: Install, run: Run, experiment: Experiment, run_dir: RunDir) -> list[str]:
    """Uploads every mutable artifact that exists. Returns what can't be uploaded for good."""
    try:
        style = TarStyle(run_dir.style_file.read_text())
    except (OSError, ValueError):
        style = TarStyle.NEW
    problems = []
    for artifact in experiment.artifacts.values():
        source = run_dir.experiment / artifact.tag
        if not artifact.mutable or not os.path.lexists(source):
            continue
        if artifact.location is None:
            problems.append(f"{artifact.tag}: the message says nowhere where to put it")
            continue
        packed = run_dir.root / f".{artifact.tag[:100]}.tar"
        try:
            packed.unlink(missing_ok=True)
            for warning in pack(source, packed, style, compression_for(artifact.key or artifact.location)):
                log.warning("%s: %s: %s", run.key, artifact.tag, warning)
            # Whoever took over may have returned it, and removed what was packed here.
            install.journal.check()
            install.store(experiment, artifact).put(packed, artifact.location)
        except StoreError as error:
            if error.transient:
                raise
            problems.append(f"{artifact.tag}: {error}")
        finally:
            packed.unlink(missing_ok=True)
    return problems


def _write_record(install: Install, run: Run, experiment: Experiment) -> list[str]:
    changes: dict[str, Any] = {"status": "finished", "outcome": run.outcome.value if run.outcome else None,
                               "reason": run.reason, "exit_code": run.exit_code, "host": run.host,
                               "job_id": run.job_id, "partition": run.partition}
    if run.started_at is not None:
        changes["time_started"] = run.started_at
    if run.finished_at is not None:
        changes["time_finished"] = changes["time_last_checkpoint"] = run.finished_at
    else:
        changes["time_finished"] = run.updated_at
    install.journal.check()
    try:
        record.update(install, experiment, changes)
    except HpcrunnerError as error:
        if error.transient:
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
