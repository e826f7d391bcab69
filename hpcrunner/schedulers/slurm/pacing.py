"""How often Slurm is asked, and what is remembered between two ticks: cron starts a new process for each.

Login nodes are shared and slurmctld is one process for all users: one squeue for all jobs, rarer while nothing changes
(poll_min to poll_max), and none for a while if it can't answer.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpcrunner.units import format_duration

log = logging.getLogger("hpcrunner")

_SLOWER = 1.5
_JITTER = 0.2
_FAILURES = 5
"""So many in a row open the circuit."""
_OPEN = 600.0
_KEEP = 7 * 86400.0
_URGENT = 5.0
"""Seconds between two calls when something waits for the answer, if poll_min is not less."""


@dataclass
class Health:
    """Of one of Slurm's daemons, by how calls to it went. It is weather: said once when it turns bad, and once when
    it is good again."""

    what: str
    failures: int = 0
    since: float = 0.0
    blocked_until: float = 0.0
    problem: str = ""

    def is_blocked(self, now: float) -> bool:
        # A clock that was set back must not stop it.
        return self.blocked_until - _OPEN <= now < self.blocked_until

    def failed(self, now: float, problem: str) -> None:
        if not self.failures:
            self.since = now
            log.warning("%s can't be asked: %s; jobs go on, and it is asked again", self.what, problem)
        self.failures += 1
        self.problem = problem
        wait = _OPEN if self.failures >= _FAILURES else 5.0 * 2 ** (self.failures - 1)
        if self.failures == _FAILURES:
            log.error("%s did not answer %d times in a row; it is left alone for %.0f minutes", self.what, _FAILURES,
                      _OPEN / 60)
        self.blocked_until = now + wait

    def outage(self, now: float) -> str:
        """How long it has not answered, if that is more than a moment; empty if nobody asked it lately."""
        is_current = now < self.blocked_until + _OPEN
        if not self.failures or not is_current or now - self.since < _OPEN:
            return ""
        return (f"{self.what} has not answered for {format_duration(now - self.since)}, {self.failures} times: "
                f"{self.problem}")

    def worked(self, now: float) -> None:
        if self.failures:
            log.warning("%s answers again, after %.0f s", self.what, now - self.since)
        self.failures, self.since, self.blocked_until, self.problem = 0, 0.0, 0.0, ""


@dataclass
class Memory:
    """Kept in a file. Losing it costs some calls of squeue, and the patience with vanished jobs begins anew."""

    polled_at: float = 0.0
    interval: float = 0.0
    fingerprint: str = ""
    has_accounting: bool | None = None
    largest_array: int = 0
    """What Slurm took of late, after it refused a larger one for its number of jobs; 0: no limit was met."""
    controller: Health = field(default_factory=lambda: Health("slurmctld"))
    database: Health = field(default_factory=lambda: Health("slurmdbd"))
    absent: dict[str, list[float]] = field(default_factory=dict)
    """Tag to when a job was first seen to be gone, and how many times since."""
    ended: dict[str, float] = field(default_factory=dict)
    """Tag to when a job was first seen to have ended."""

    @classmethod
    def load(cls, path: Path) -> Memory:
        try:
            held = json.loads(path.read_text())
            return cls(**{**held, "controller": Health(**held["controller"]), "database": Health(**held["database"])})
        except (OSError, ValueError, TypeError, KeyError):
            return cls()

    def save(self, path: Path) -> None:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.write_text(json.dumps(asdict(self)))
            part.replace(path)
        except OSError as error:
            log.warning("%s: can't be written: %s", path, error.strerror)

    def is_due(self, now: float, poll_min: float, *, urgent: bool) -> bool:
        """Whether squeue is to be called now."""
        if self.controller.is_blocked(now):
            return False
        wait = min(_URGENT, poll_min) if urgent else max(poll_min, self.interval)
        # A clock that was set back must not stop it.
        return not self.polled_at <= now < self.polled_at + wait

    def polled(self, now: float, fingerprint: str, poll_min: float, poll_max: float) -> None:
        """Notes a good answer, and chooses the next interval: longer, as long as the answer stays the same."""
        changed = fingerprint != self.fingerprint
        grown = poll_min if changed else min(poll_max, max(poll_min, self.interval) * _SLOWER)
        self.polled_at, self.fingerprint = now, fingerprint
        self.interval = grown * random.uniform(1 - _JITTER, 1 + _JITTER)
        self.controller.worked(now)

    def forget(self, now: float) -> None:
        """Drops what is long over."""
        self.absent = {tag: held for tag, held in self.absent.items() if now - held[0] < _KEEP}
        self.ended = {tag: at for tag, at in self.ended.items() if now - at < _KEEP}

    def hurry(self, poll_min: float) -> None:
        """Something new is under way: the next look is to come soon."""
        self.interval = min(self.interval, poll_min)


def now() -> float:
    return time.time()
