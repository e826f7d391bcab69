"""What a scheduler must be able to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from hpcrunner.errors import HpcrunnerError
from hpcrunner.model import Capacity, Request


class JobState(Enum):
    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"
    """Not there any more. Whether it ended well is for the job's own exit file to say."""
    UNKNOWN = "unknown"
    """The scheduler can't tell now; ask again later."""


@dataclass(frozen=True)
class Job:
    """A submitted job, as the journal knows it."""

    tag: str
    job_id: str
    run_dir: Path


@dataclass(frozen=True)
class Submission:
    tag: str
    """Name of the job, unique to this attempt."""
    script: Path
    run_dir: Path
    request: Request
    walltime: float
    """Seconds."""


class SubmitUnclear(HpcrunnerError):
    """The scheduler gave no clear answer: the job may exist. Look before submitting again."""

    transient = True


class Scheduler(Protocol):
    """Jobs are found again by the tag, which the scheduler keeps as the job's name."""

    settles: float
    """Seconds after which a job that was submitted without an answer must be visible to `find`, if it exists."""

    def __init__(self, site: Any) -> None: ...

    def capacity(self, *, gpus: bool) -> Capacity | None:
        """What jobs may use together; None if the scheduler has a queue and decides itself. GPUs are looked
        for only if asked for, since that takes time."""
        ...

    def refusal(self, request: Request, walltime: float) -> str | None:
        """Why a job of this size can never run here, naming the limit; None if it can."""
        ...

    def submit(self, submission: Submission) -> str:
        """Returns the job's id. Raises SubmitUnclear if it may have been accepted, any other HpcrunnerError
        (with its `transient`) if it certainly was not."""
        ...

    def find(self, jobs: Iterable[Job]) -> Mapping[str, str]:
        """The ids of those that exist or existed, by tag."""
        ...

    def states(self, jobs: Iterable[Job]) -> Mapping[str, JobState]:
        """The state of each, by tag."""
        ...

    def cancel(self, jobs: Iterable[Job]) -> None:
        """Asks them to stop: SIGTERM, the site's grace, SIGKILL. Returns at once."""
        ...
