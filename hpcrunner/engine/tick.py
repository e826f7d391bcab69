"""One tick: everything is moved as far as it can go now. Cron and the daemon run the same one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from hpcrunner.engine.install import Install
from hpcrunner.engine.intake import intake

_AS_CRON = 60.0
"""Seconds after which `settle` makes a whole tick."""


@dataclass(frozen=True)
class Ticked:
    """What a tick did."""

    taken: int
    """Messages taken from queues."""
    active: int
    """Runs that are not over yet."""


def tick(install: Install, max_messages: int | None = None, *, periodic: bool = True) -> Ticked:
    """Takes messages and moves every run as far as it can go; `periodic`: see `move_all`. Safe to be killed at any
    instant.

    Files may still be moving when it returns: see `install.transfers`, and `settle`.
    Raises BusyError if another process has taken over.
    """
    # Before a message is taken in the name of this install, and where nothing else would show that it is another's.
    install.journal.check()
    taken = len(intake(install, max_messages))
    if install.state.requests.is_dir() and any(install.state.requests.iterdir()):
        from hpcrunner.engine.cancel import take_requests

        take_requests(install)
    if not (install.journal.runs() or install.journal.to_remove() or _leftovers(install)):
        return Ticked(taken, 0)
    # Only now: most ticks find nothing to do, and shall cost nothing.
    from hpcrunner.engine.act import move_all

    return Ticked(taken, move_all(install, periodic=periodic))


def settle(install: Install, max_messages: int | None = 0, show: Callable[[int], None] = lambda active: None) -> None:
    """Goes on until no files are moving any more.

    Begins nothing periodic: with many jobs there is always a checkpoint due. While something takes long, a large
    download say, every call by cron finds the install busy; so this makes a whole tick in its place each minute, with
    at most `max_messages` (None: any number; 0: no such tick).
    """
    ticked_at = time.monotonic()
    while install.transfers.under_way:
        install.transfers.wait(install.site.poll_interval)
        is_whole = max_messages != 0 and time.monotonic() >= ticked_at + _AS_CRON
        if is_whole:
            ticked_at = time.monotonic()
        show(tick(install, max_messages if is_whole else 0, periodic=is_whole).active)


def _leftovers(install: Install) -> bool:
    """Whether there are files of jobs that are over: a crash came before they were swept up, or a job came late."""
    folders = (install.state.spool, install.state.arrays)
    return any(folder.is_dir() and any(folder.iterdir()) for folder in folders)
