"""What the planner decides with and between: observations and policy in, actions out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hpcrunner.model import UNKNOWN, Capacity, Exit, Image, JobStatus, Outcome, Place, Run


@dataclass(frozen=True)
class Observations:
    """All that is known of the world outside the journal, by run id, digest or queue name."""

    jobs: Mapping[int, JobStatus] = field(default_factory=dict)
    exits: Mapping[int, Exit] = field(default_factory=dict)
    """Looked for after the jobs: one that is gone and has left no exit file has none for good."""
    begun: frozenset[int] = frozenset()
    """Runs whose job ended, by the scheduler, and had begun to work."""
    never_started: frozenset[int] = frozenset()
    """Runs that ended without their program having started in its container."""
    images: Mapping[str, Image] = field(default_factory=dict)
    places: Mapping[int, Place | str] = field(default_factory=dict)
    """Where the scheduler runs it, or why it never can."""
    stopped: frozenset[int] = frozenset()
    """Runs whose user said `stopped` in the client's record."""
    capacity: Capacity | None = None
    queues_gone: Mapping[str, float] = field(default_factory=dict)
    """Since when, Unix seconds."""
    moving: frozenset[int] = frozenset()
    """Runs whose files, or whose record, are being moved right now."""


@dataclass(frozen=True)
class Policy:
    """The site's options that decisions depend on. Durations in seconds."""

    max_duration: float
    retries: int
    queue_gone_grace: float
    settles: float
    default_duration: float | None = None
    """For runs that don't say."""
    exit_grace: float = 0.0
    kill_grace: float = 30.0
    max_jobs: int | None = None
    max_builds: int = 1
    store_patience: float = 7 * 86400.0
    """How long results wait for a store that does not take them."""


@dataclass(frozen=True)
class Action:
    run: Run


@dataclass(frozen=True)
class Stage(Action):
    """Fetch its inputs."""


@dataclass(frozen=True)
class Define(Action):
    """Find out what image it needs."""


@dataclass(frozen=True)
class Build(Action):
    """Start building its image."""


@dataclass(frozen=True)
class Ready(Action):
    """Its image is there."""


@dataclass(frozen=True)
class Submit(Action):
    limit: float = 0.0
    """Seconds the program may run."""
    limit_name: str = ""
    gpus: tuple[str, ...] = ()
    place: Place = Place()


@dataclass(frozen=True)
class Adopt(Action):
    """A job was found that an interrupted submission had made, or that runs instead of the one we know of."""

    job: JobStatus = UNKNOWN


@dataclass(frozen=True)
class SubmitAgain(Action):
    """An interrupted submission certainly made no job."""


@dataclass(frozen=True)
class Running(Action):
    node: str = ""


@dataclass(frozen=True)
class Waiting(Action):
    """The scheduler has it wait, for another reason than before, or again."""

    reason: str = ""


@dataclass(frozen=True)
class Cancel(Action):
    reason: str = ""
    now: bool = False
    """It had its time to stop."""
    is_noted_only: bool = False
    """Whether it runs is not known at the moment; a job that runs is cancelled otherwise than one that waits."""


@dataclass(frozen=True)
class Retry(Action):
    """Run it once more, from the start, in a new run directory."""

    reason: str = ""
    avoid: str = ""
    """The node that failed."""


@dataclass(frozen=True)
class Resume(Action):
    """Submit it once more; it goes on in its run directory, with the files that are there."""

    reason: str = ""


@dataclass(frozen=True)
class End(Action):
    outcome: Outcome = Outcome.FAILED
    reason: str = ""
    exit: Exit | None = None


@dataclass(frozen=True)
class Return(Action):
    """Give back its results and write the client's record."""

    is_last_try: bool = False
    """What the store doesn't take now stays here for good."""


@dataclass(frozen=True)
class Checkpoint(Action):
    """Upload what it has made so far."""


@dataclass(frozen=True)
class Tell(Action):
    """Write into the client's record how far it is."""

    status: str = ""


@dataclass(frozen=True)
class Halt(Action):
    """Stop moving its files: nobody wants them where they go."""
