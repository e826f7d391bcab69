"""`hpcrunner submit-from-queue`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from hpcrunner.cli.common import configuration, set_up_logging
from hpcrunner.config.site import Site
from hpcrunner.engine.install import Install
from hpcrunner.engine.tick import settle, tick
from hpcrunner.errors import UnavailableError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir

_PATIENCE = 60.0
"""Seconds for which `--wait` goes on looking at queues that don't answer, when nothing else is left to do."""


def run(arguments: argparse.Namespace) -> int:
    site = configuration(arguments).site
    set_up_logging(site.log_level)
    if arguments.dry_run:
        from hpcrunner.cli import dry_run

        return dry_run.run(site, arguments.max)
    with Journal(StateDir(site.state_dir).journal) as journal:
        return _work(Install(site, journal), arguments)


def _work(install: Install, arguments: argparse.Namespace) -> int:
    with install.transfers, _progress(install) as show:
        if not arguments.wait:
            show(tick(install, arguments.max).active)
            settle(install, arguments.max, show)
            return 0
        left = arguments.max
        seen_at = time.monotonic()
        while True:
            done = tick(install, left)
            left = None if left is None else left - done.taken
            show(done.active)
            if not install.unanswered:
                seen_at = time.monotonic()
            if not done.taken and not done.active and not install.transfers.under_way:
                if not install.unanswered:
                    return 0
                # A queue that can't be looked at is not known to be empty.
                if time.monotonic() - seen_at > _PATIENCE:
                    raise UnavailableError(install.unanswered)
            _pause(install, install.site)


def _pause(install: Install, site: Site) -> None:
    """Until the next look, or until a job drops its file into the spool, or files have arrived."""
    spool = install.state.spool
    before = _stamp(spool)
    until = time.monotonic() + site.poll_interval
    while (left := until - time.monotonic()) > 0 and _stamp(spool) == before and not install.transfers.has_news:
        step = min(0.05, left)
        if install.transfers.under_way:
            install.transfers.wait(step)
        else:
            time.sleep(step)


def _stamp(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _progress(install: Install) -> AbstractContextManager[Callable[[int], None]]:
    if not sys.stderr.isatty():
        return nullcontext(lambda active: None)
    from hpcrunner.cli.progress import Progress

    return Progress(install)
