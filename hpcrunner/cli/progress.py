"""The display of `submit-from-queue --wait` on a terminal."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler
from rich.status import Status

from hpcrunner.journal.store import Journal
from hpcrunner.model import State


class Progress:
    """One line that says how many experiments are where; log lines scroll above it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._console = Console(stderr=True)
        self._status = Status("looking for experiments", console=self._console)

    def __enter__(self) -> Progress:
        import logging

        root = logging.getLogger()
        self._handlers = root.handlers
        root.handlers = [RichHandler(console=self._console, show_path=False, log_time_format="%H:%M:%S")]
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        import logging

        logging.getLogger().handlers = self._handlers
        self._status.stop()

    def __call__(self, active: int) -> None:
        counts = Counter(run.state for run in self._journal.runs())
        parts = [f"{counts[state]} {state.value}" for state in State if counts[state]]
        self._status.update(", ".join(parts) or "nothing to do")
