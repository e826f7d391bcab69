"""Which runs their users stopped: told by the clients' records, which are read in a thread, beside all other work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hpcrunner.engine import record
from hpcrunner.engine.ends import NOT_ITS_TROUBLE
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.plan import backoff
from hpcrunner.engine.transfers import NO_RUN, Stopped, Transfer, Urgency
from hpcrunner.errors import StoreError
from hpcrunner.model import ACTIVE, Run, State
from hpcrunner.stores.base import Progress
from hpcrunner.wire.experiment import Experiment

_EVERY = 15.0
"""Seconds between two looks."""
_MOST = 100
"""Records that one look reads at most: with more runs than that they take turns."""
_PATIENCE = 10.0
"""Seconds for which a server is waited for. A record is read again and again, so one try each time is enough."""


@dataclass
class Stops:
    found: set[int] = field(default_factory=set)
    """Ids of the runs whose users said `stopped`."""
    _away: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Endpoints that did not answer: how often in a row, and until when they are left alone (monotonic)."""

    def look(self, install: Install) -> None:
        """Starts a look if it is time for one. What it finds is in `found` later."""
        if NO_RUN in install.transfers.under_way:
            return
        now = time.time()
        before, _, last = install.journal.recall("stopped").partition(" ")
        if before and 0 <= now - float(before) < _EVERY:
            return
        runs = [run for run in install.journal.runs(ACTIVE - {State.ENDING}) if not run.cancelling]
        if not runs:
            return
        start = next((index for index, run in enumerate(runs) if run.id > int(last or 0)), 0)
        turn = (runs[start:] + runs[:start])[:_MOST]
        install.journal.remember("stopped", f"{now} {turn[-1].id}")
        asked = [(run, install.experiment(run)) for run in turn]
        site = replace(install.site, transfer_timeout=min(install.site.transfer_timeout, _PATIENCE))
        hasty = replace(install, site=site)
        install.transfers.start(None, "looking for experiments that their users stopped", Urgency.LOOK,
                                lambda transfer: self._read(hasty, asked, transfer), self.found.update, _failed)

    def _read(self, install: Install, asked: Sequence[tuple[Run, Experiment]], transfer: Transfer) -> set[int]:
        """In a thread. One record that can't be read, for whatever reason, says nothing of the others."""
        found = set()
        for run, experiment in asked:
            where = experiment.database
            endpoint = f"{where.type} {where.endpoint}" if where else ""
            tries, until = self._away.get(endpoint, (0, 0.0))
            if time.monotonic() < until:
                continue
            try:
                if record.status(install, experiment, _once(transfer)) == "stopped":
                    found.add(run.id)
                self._away.pop(endpoint, None)
            except (*NOT_ITS_TROUBLE, Stopped):
                raise
            except Exception as error:
                # Not said louder: where it matters, as when results are returned, it is.
                log.debug("%s: its record can't be read: %s", run.key, error)
                if getattr(error, "transient", False):
                    self._away[endpoint] = tries + 1, time.monotonic() + backoff(tries + 1)
        return found


def _once(transfer: Transfer) -> Progress:
    """Asked before each try, it allows one."""
    asked = 0

    def progress(count: int) -> None:
        nonlocal asked
        transfer(count)
        asked += 1
        if asked > 1:
            raise StoreError("the database can't be reached", transient=True)

    return progress


def _failed(error: Exception) -> None:
    if isinstance(error, NOT_ITS_TROUBLE):
        raise error
    log.warning("%s", error)
