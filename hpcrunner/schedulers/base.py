"""What a scheduler must be able to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hpcrunner.errors import HpcrunnerError
from hpcrunner.model import Capacity, JobStatus, Place, Request


@dataclass(frozen=True)
class Job:
    """A job as the journal knows it."""

    tag: str
    job_id: str
    """Empty if nobody knows whether the scheduler has it: it is looked for by its name."""
    run_dir: Path
    name: str
    task: int | None = None
    since: float = 0.0
    """When its submission began, Unix seconds."""
    is_running: bool = False
    """As far as the journal knows."""
    is_cancelled: bool = False
    """Somebody wanted it cancelled, so that nothing is strange if it is gone."""


@dataclass(frozen=True)
class BuildJob:
    """A job that builds an image."""

    name: str
    folder: Path
    argv: Sequence[str]
    env: Mapping[str, str]
    timeout: float
    """Seconds."""


@dataclass(frozen=True)
class LiveJob:
    """A job that the scheduler has, whoever knows of it."""

    job_id: str
    name: str
    state: str


@dataclass(frozen=True)
class Submission:
    """A job to be submitted. Equal ones differ in the tag and in the paths only."""

    tag: str
    script: Path
    run_dir: Path
    request: Request
    limit: float
    """Seconds that the program may run."""
    place: Place = Place()
    image: str = ""
    avoid: tuple[str, ...] = ()
    """Nodes that it shall not run on."""


@dataclass(frozen=True)
class Batch:
    """What goes to the scheduler in one call: a single job, or a job array."""

    name: str
    jobs: tuple[Submission, ...]

    @property
    def is_array(self) -> bool:
        return len(self.jobs) > 1


class SubmitUnclear(HpcrunnerError):
    """The scheduler gave no clear answer: the job may exist. Look before submitting again."""

    transient = True


class SubmitRefused(HpcrunnerError):
    """The scheduler will never take the job."""


class SubmitDeferred(HpcrunnerError):
    """The scheduler certainly did not take the job, for a reason that is not the job's: it can't be reached, or
    has too many jobs now. Worth trying again, for however long it takes."""

    transient = True
    is_limit = False
    """It has too many jobs."""
    again_at_once = False
    """It would take a smaller batch, maybe."""


class NodesRefused(SubmitDeferred):
    """The scheduler did not take the job because of the nodes that it shall avoid: no others are left that fit, or
    one of them is no more."""


class Scheduler(Protocol):
    settles: float
    """Seconds after which a job that was submitted without an answer must be visible, if it exists."""
    exit_grace: float
    """Seconds that the exit file of a job that ended may take to become visible here."""
    template: str
    """The job script's template."""
    binds_gpus: bool
    """Whether the scheduler itself chooses a job's GPUs and tells it in CUDA_VISIBLE_DEVICES."""
    builds_images: bool
    """Whether the site wants images to be built by jobs."""

    def __init__(self, site: Any) -> None: ...

    def capacity(self, *, gpus: bool) -> Capacity | None:
        """What jobs may use together; None if the scheduler has a queue and decides itself. GPUs are looked
        for only if asked for, since that takes time."""
        ...

    def place(self, request: Request, walltime: float) -> Place | str:
        """Where a job of this size runs, or why it can never run here, naming the limit. `walltime`: seconds that
        it wants, which may be more than it gets."""
        ...

    def script_values(self, submission: Submission) -> Mapping[str, Any]:
        """What its template needs beside what all have in common."""
        ...

    def room(self, partition: str) -> int | None:
        """How many jobs it is worth handing over for a partition now; None if no limit is known."""
        ...

    def batches(self, submissions: Sequence[Submission]) -> list[Batch]:
        """How they go out: equal ones together, where the scheduler can take them so."""
        ...

    def submit(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Sequence[str] | HpcrunnerError]]:
        """The jobs' ids, or what went wrong, for each batch as its answer comes.

        SubmitUnclear: it may have been accepted. SubmitDeferred: it was not, and that says nothing of the job.
        SubmitRefused: it was not, and never will be. Any other HpcrunnerError: it was not, try again if `transient`.
        """
        ...

    def build(self, job: BuildJob) -> str:
        """Submits the build of an image; returns the job's id. Raises as `submit` answers."""
        ...

    def begin(self) -> None:
        """A new tick: what was looked at before may be looked at again."""
        ...

    def states(self, jobs: Iterable[Job], *, urgent: bool = False) -> Mapping[str, JobStatus]:
        """The state of each, by tag. `urgent`: something waits for the answer."""
        ...

    def cancel(self, jobs: Iterable[Job], *, now: bool = False) -> None:
        """Asks them to stop: SIGTERM, the site's grace, SIGKILL; `now` leaves no time. Returns at once."""
        ...

    def live(self, prefix: str) -> list[LiveJob]:
        """The jobs that exist now and whose names begin so. Raises UnavailableError."""
        ...

    def problems(self) -> list[str]:
        """What of the scheduler has not answered for long, in words for a person."""
        ...
