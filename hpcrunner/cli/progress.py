"""The display of `submit-from-queue` on a terminal."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.spinner import Spinner
from rich.text import Text

from hpcrunner.engine.install import Install
from hpcrunner.model import State
from hpcrunner.units import format_size


class Progress:
    """One line that says how many experiments are where, and one for each transfer; log lines scroll above them."""

    def __init__(self, install: Install) -> None:
        self._install = install
        self._console = Console(stderr=True)
        self._counts = "looking for experiments"
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._render, console=self._console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Progress:
        import logging

        root = logging.getLogger()
        self._handlers = root.handlers
        root.handlers = [RichHandler(console=self._console, show_path=False, log_time_format="%H:%M:%S")]
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        import logging

        logging.getLogger().handlers = self._handlers
        self._live.stop()

    def __call__(self, active: int) -> None:
        counts = Counter(run.state for run in self._install.journal.runs())
        parts = [f"{counts[state]} {state.value}" for state in State if counts[state]]
        self._counts = ", ".join(parts) or "nothing to do"

    def _render(self) -> Group:
        """Called by the display's own thread, so it looks at no journal."""
        self._spinner.update(text=Text(self._counts))
        return Group(self._spinner, *(Text("  " + transfer_line(*one)) for one in self._install.transfers.shown()))


def transfer_line(what: str, moved: int, total: int | None) -> str:
    """What is being moved, and how far it is. Keys come from messages: no control characters reach the terminal."""
    what = "".join(char if char.isprintable() else "?" for char in what)
    if total:
        return f"{what}: {format_size(moved)} of {format_size(total)} ({min(100, 100 * moved // total)} %)"
    return f"{what}: {format_size(moved)}" if moved else what
