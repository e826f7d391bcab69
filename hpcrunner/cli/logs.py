"""`hpcrunner logs`."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from hpcrunner.cli.common import configuration
from hpcrunner.engine.finish import log_copy
from hpcrunner.errors import NotFoundError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import RunDir, StateDir
from hpcrunner.model import Run, State
from hpcrunner.wire.message import safe_name


def run(arguments: argparse.Namespace) -> int:
    state = StateDir(configuration(arguments).site.state_dir)
    with Journal(state.journal, read_only=True) as journal:
        shown = 0
        while True:
            latest = journal.find(arguments.key)[-1]
            path = _path(state, latest)
            if path is not None:
                shown = _print_from(path, shown)
            if latest.state is State.DONE or not arguments.follow:
                break
            time.sleep(0.5)
        if path is None:
            raise NotFoundError(f"{arguments.key}: no log yet; it is {latest.state.value}"
                                + (f": {latest.reason}" if latest.reason else ""))
    return 0


def _path(state: StateDir, run: Run) -> Path | None:
    """The log in the run directory while there is one, then the copy that is kept."""
    if run.run_dir:
        run_dir = RunDir(Path(run.run_dir), safe_name(run.key))
        for path in (run_dir.log(True), run_dir.log(False)):
            if path.is_file():
                return path
    kept = log_copy(state.logs, run)
    return kept if kept.is_file() else None


def _print_from(path: Path, start: int) -> int:
    try:
        with path.open("rb") as log:
            log.seek(start)
            sys.stdout.flush()
            shutil.copyfileobj(log, sys.stdout.buffer)
            sys.stdout.flush()
            return log.tell()
    except FileNotFoundError:
        return start  # Removed this moment: the copy is shown next.


