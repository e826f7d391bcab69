"""`hpcrunner status`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

from hpcrunner.cli.common import configuration
from hpcrunner.config.site import Site
from hpcrunner.errors import NotFoundError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir
from hpcrunner.model import Run, State
from hpcrunner.units import format_duration, format_size

_USUAL = 10.0
"""Seconds in which a scheduler usually answers to a submission."""


def run(arguments: argparse.Namespace) -> int:
    site = configuration(arguments).site
    state = StateDir(site.state_dir)
    try:
        journal = Journal(state.journal, read_only=True)
    except NotFoundError:
        if arguments.key:
            raise
        print("[]" if arguments.json else "no experiments yet")
        return 0
    with journal:
        runs = journal.find(arguments.key) if arguments.key else journal.runs(State)
        if arguments.json:
            print(json.dumps([_record(journal, run, bool(arguments.key)) for run in runs], indent=1))
        elif arguments.key:
            for run in runs:
                _show(journal, site, run)
        else:
            _table(runs)
            letters = sum(1 for _ in state.dead_letters.iterdir()) if state.dead_letters.is_dir() else 0
            if letters:
                print(f"\n{letters} message{'s' * (letters > 1)} could not be understood: {state.dead_letters}")
    return 0


def state_text(run: Run) -> str:
    return run.outcome.value if run.state is State.DONE and run.outcome else run.state.value


def _table(runs: list[Run]) -> None:
    if not runs:
        print("no experiments yet")
        return
    now = time.time()
    rows = [["EXPERIMENT", "QUEUE", "STATE", "AGE", "RAN", "EXIT", "REASON"]]
    for run in runs:
        reason = (_unsent(run) or run.reason or run.cancelling or _pending(run)).splitlines() or [""]
        rows.append([printable(run.key), run.queue, state_text(run), format_duration(int(now - run.received_at)),
                     _ran(run), "" if run.exit_code is None else str(run.exit_code), printable(reason[0])])
    widths = [min(48, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    for row in rows:
        cells = [_cut(cell, width) for cell, width in zip(row[:-1], widths, strict=False)]
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=False)), row[-1]]).rstrip())


def _show(journal: Journal, site: Site, run: Run) -> None:
    asked = run.request
    events = journal.events(run)
    last = events[-1][2] if events and run.tries else ""
    sizes = [f"{asked.cpus} cores", *(f"{format_size(size)} {what}" for size, what in (
        (asked.memory, "memory"), (asked.disk, "disk")) if size), *([f"{asked.gpus} GPUs"] if asked.gpus else [])]
    facts = [("queue", run.queue), ("state", state_text(run)), ("reason", run.reason or _pending(run, last)),
             ("results", _unsent(run)), ("cancelled", "" if run.state is State.DONE else run.cancelling),
             ("asks for", ", ".join(sizes)), ("run", run.short_id), ("job", run.job_id), ("job name", run.job_name),
             ("array", "" if run.task is None else f"element {run.task}"),
             ("partition", run.partition), ("host", run.host), ("avoids", ", ".join(run.avoid)),
             ("image", run.image), ("directory", run.run_dir), ("ran", _ran(run)),
             ("exit code", "" if run.exit_code is None else str(run.exit_code)),
             *(("note", note) for note in run.notes)]
    print(printable(run.key))
    for name, value in facts:
        if value:
            print(f"  {name + ':':11}" + "\n             ".join(printable(line) for line in str(value).splitlines()))
    print("  history:")
    for at, state, text in events:
        print(f"    {datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}  {state:10}  {printable(text.splitlines()[0])}")


def _unsent(run: Run) -> str:
    """Why its results are not in the store yet, if that was tried."""
    return f"results wait for the store: {run.waiting}" if run.state is State.ENDING and run.waiting else ""


def _pending(run: Run, last: str = "") -> str:
    """Why it does not go on. `last`: what its history says last, of a run that is tried again."""
    if run.state is State.READY and run.waiting:
        return run.waiting
    if run.state is State.SUBMITTING:
        if time.time() < run.submitted_at + _USUAL:
            return "being handed to the scheduler"
        return f"its submission had no clear answer; it is looked for (job name {run.job_name})"
    if run.state is State.SUBMITTED:
        return f"pending in the scheduler: {run.waiting}" if run.waiting else "handed to the scheduler"
    if run.tries:
        return last or "trying again: see `hpcrunner status KEY`"
    if run.state is State.STAGED and run.image:
        return "waiting for its image to be built" + (f" (job pending: {run.waiting})" if run.waiting else "")
    if run.state is State.READY:
        return "waiting for free cores, memory, disk or GPUs, or for the scheduler to take more jobs"
    return ""


def _ran(run: Run) -> str:
    if run.started_at is None or run.finished_at is None:
        return ""
    return format_duration(round(max(0.0, run.finished_at - run.started_at), 1))


def _record(journal: Journal, run: Run, history: bool) -> dict[str, Any]:
    record = asdict(run)
    record["state"], record["outcome"] = run.state.value, run.outcome.value if run.outcome else None
    del record["removing"]
    if history:
        record["history"] = [{"at": at, "state": state, "text": text} for at, state, text in journal.events(run)]
    return record


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def printable(text: str) -> str:
    """Keys and reasons come from messages: no control characters reach the terminal."""
    encoding = sys.stdout.encoding or "utf-8"
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text.encode(encoding, "replace").decode(encoding)
