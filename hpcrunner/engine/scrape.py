"""Gathers what the program printed as JSON, and what hpcrunner knows of the run, into the artifact `_metadata`.

The file's name and the members under `studioml` are those of the Go runner: `scrape-host-<host>-<start>.json`, the
start in seconds written with 62 digits. Runs in a thread, knows no journal.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import string
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import Any

from hpcrunner.engine.install import log
from hpcrunner.errors import HpcrunnerError
from hpcrunner.files import open_plain, write_whole
from hpcrunner.layout import RunDir
from hpcrunner.metadata.document import LARGEST, Document
from hpcrunner.metadata.patch import merge
from hpcrunner.model import Run
from hpcrunner.stores.base import shown
from hpcrunner.units import format_size
from hpcrunner.wire.experiment import Experiment

TAG = "_metadata"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SECONDS = 10.0
"""Time for the lines of one program at a checkpoint; what is left is for the next one. At the end so many at a time:
how far it came is kept after each."""
_SECONDS_AT_THE_END = 900.0
"""In all. The last lines are those that count; but a program's output may be one huge riddle."""


def scrape(experiment: Experiment, run: Run, run_dir: RunDir, *, is_over: bool,
           check: Callable[[], None] = lambda: None) -> tuple[str, ...]:
    """Brings the document up to date with the log; does nothing for an experiment without `_metadata`. If the run
    `is_over`, returns what of its metadata could not be used, in words.

    Raises nothing but what `check` does, which is called every few seconds: whatever a program does to its log or its
    files holds up no results.
    """
    artifact = experiment.artifacts.get(TAG)
    if artifact is None or not artifact.mutable or not run_dir.style_file.exists():
        return ()
    notes: list[str] = []
    try:
        unread = 1
        until = monotonic() + _SECONDS_AT_THE_END
        while unread:
            document, unread = _scrape(experiment, run, run_dir, is_over)
            check()
            if not is_over:
                return ()
            if monotonic() > until:
                break
        if unread:
            notes.append(f"{TAG}: the last {format_size(unread)} of the output were not looked at, it took too long")
        if document.refused:
            notes.append(f"{TAG}: {document.refused} lines of JSON could not be used: a patch must fit what is there, "
                         f"and the document stays below {LARGEST >> 20} MiB")
    except (HpcrunnerError, sqlite3.Error):
        raise
    except Exception as error:
        notes.append(f"{TAG}: can't be gathered: {type(error).__name__}: {error}")
    for note in notes:
        log.warning("%s: %s", experiment.key, note)
    return tuple(notes)


def _scrape(experiment: Experiment, run: Run, run_dir: RunDir, is_over: bool) -> tuple[Document, int]:
    """Returns also how many bytes of the log are left."""
    document, name = _recall(run_dir.scraped_file)
    unread = 0
    with suppress(OSError), open_plain(run_dir.log("output" in experiment.artifacts), os.O_RDONLY) as output:
        document.read(output, is_complete=is_over, seconds=_SECONDS)
        unread = output.seek(0, os.SEEK_END) - document.offset
    started = started_at(run, run_dir)
    # Once there it stays, also if the job goes on elsewhere.
    name = name or f"scrape-host-{_plain(run.host or os.uname().nodename)}-{base62(int(started or 0))}.json"
    run_dir.transfer.mkdir(mode=0o700, exist_ok=True)
    write_whole(run_dir.scraped_file, json.dumps({"name": name, **asdict(document)}), 0o600)
    value = merge(document.value, {"studioml": _facts(experiment, run, run_dir, started)})
    _place(run_dir.experiment / TAG, name, json.dumps(value).encode())
    return document, unread


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


def started_at(run: Run, run_dir: RunDir) -> float | None:
    """When its job began, Unix seconds; None if it did not, or this host doesn't see it yet."""
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
        with suppress(OSError), open_plain(name, os.O_RDONLY, folder=where) as file:
            if file.read(len(data) + 1) == data:
                return  # Untouched, so that it isn't uploaded again.
        part = f".{name}.part"
        with suppress(FileNotFoundError):
            os.unlink(part, dir_fd=where)
        with open_plain(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, folder=where) as file:
            file.write(data)
        os.replace(part, name, src_dir_fd=where, dst_dir_fd=where)
    finally:
        os.close(where)
