"""Gathers what the program printed as JSON, and what hpcrunner knows of the run, into the artifact `_metadata`.

The file's name and the members under `studioml` are those of the Go runner: `scrape-host-<host>-<start>.json`, the
start in seconds written with 62 digits. Runs in a thread, knows no journal.
"""

from __future__ import annotations

import json
import os
import re
import string
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hpcrunner.engine.install import log
from hpcrunner.files import write_whole
from hpcrunner.layout import RunDir
from hpcrunner.metadata.document import Document
from hpcrunner.metadata.patch import merge
from hpcrunner.model import Run
from hpcrunner.stores.base import shown
from hpcrunner.wire.experiment import Experiment

TAG = "_metadata"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECONDS = 10.0
"""Time for the lines of one program; at a checkpoint what is left is for the next one."""


def scrape(experiment: Experiment, run: Run, run_dir: RunDir, *, is_over: bool) -> None:
    """Brings the document up to date with the log; does nothing for an experiment without `_metadata`.

    Raises nothing: whatever a program does to its log or its files holds up no results.
    """
    artifact = experiment.artifacts.get(TAG)
    if artifact is None or not artifact.mutable or not run_dir.style_file.exists():
        return
    try:
        _scrape(experiment, run, run_dir, is_over)
    except Exception as error:
        log.warning("%s: its metadata can't be gathered: %s: %s", experiment.key, type(error).__name__, error)


def _scrape(experiment: Experiment, run: Run, run_dir: RunDir, is_over: bool) -> None:
    document, name = _recall(run_dir.scraped_file)
    path = run_dir.log("output" in experiment.artifacts)
    if path.is_file() and not path.is_symlink():
        with path.open("rb") as output:
            document.read(output, is_complete=is_over, seconds=_SECONDS)
    started = _started(run, run_dir)
    # Once there it stays, also if the job goes on elsewhere.
    name = name or f"scrape-host-{_plain(run.host or os.uname().nodename)}-{base62(int(started or 0))}.json"
    run_dir.transfer.mkdir(mode=0o700, exist_ok=True)
    write_whole(run_dir.scraped_file, json.dumps({"name": name, **asdict(document)}), 0o600)
    value = merge(document.value, {"studioml": _facts(experiment, run, run_dir, started)})
    _place(run_dir.experiment / TAG, name, json.dumps(value).encode())


def base62(number: int) -> str:
    """Digits, upper case, lower case."""
    text = ""
    while True:
        number, digit = divmod(number, 62)
        text = _DIGITS[digit] + text
        if not number:
            return text


def _facts(experiment: Experiment, run: Run, run_dir: RunDir, started: float | None) -> dict[str, Any]:
    return {
        "load_time": _time(run_dir.style_file.stat().st_mtime), "host": run.host or None, "start_time": _time(started),
        "stop_time": _time(run.finished_at), "experiment": {"key": experiment.key, "project": experiment.project},
        "artifacts": {tag: shown(one.location or "") for tag, one in experiment.artifacts.items()},
    }


def _started(run: Run, run_dir: RunDir) -> float | None:
    if run.started_at is not None:
        return run.started_at
    try:
        return float((run_dir.status / "started").read_text())
    except (OSError, ValueError):
        return None


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _plain(host: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]", "_", host)[:100]


def _recall(path: Path) -> tuple[Document, str]:
    try:
        kept = json.loads(path.read_text())
        name = kept.pop("name")
        return Document(**kept), name
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Document(), ""


def _place(folder: Path, name: str, data: bytes) -> None:
    """Into that very folder: a program may have put a link there, to make us write elsewhere."""
    if not os.path.lexists(folder):
        folder.mkdir()
    where = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        with suppress(OSError), open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=where), "rb") as file:  # noqa: PTH123
            if file.read(len(data) + 1) == data:
                return  # Untouched, so that it isn't uploaded again.
        part = f".{name}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(part, flags, 0o644, dir_fd=where), "wb") as file:  # noqa: PTH123
            file.write(data)
        os.replace(part, name, src_dir_fd=where, dst_dir_fd=where)
    finally:
        os.close(where)
