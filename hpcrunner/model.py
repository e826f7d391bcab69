"""What the journal knows of an experiment: its states, its outcomes and the legal moves between them.

A *run* is one intended execution of one message. It goes

    received -> staged -> ready -> submitting -> submitted -> running -> ending -> done

and may go to `ending` from anywhere: every end, good or bad, passes there to return its results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class State(str, Enum):
    RECEIVED = "received"
    """In the journal; the queue no longer holds it."""
    STAGED = "staged"
    """Its input files lie in the run directory."""
    READY = "ready"
    """Its image exists and its job script is rendered."""
    SUBMITTING = "submitting"
    """Written before the scheduler is called: a crash here means "look before you submit again"."""
    SUBMITTED = "submitted"
    """The scheduler has it."""
    RUNNING = "running"
    ENDING = "ending"
    """The outcome is known; results and the client's record are still to be written."""
    DONE = "done"


class Outcome(str, Enum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The user's code, or the environment it asked for."""
    REJECTED = "rejected"
    """Can never run here."""
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    LOST = "lost"
    """The infrastructure failed, and retries are used up."""


TRANSITIONS: dict[State, frozenset[State]] = {
    State.RECEIVED: frozenset({State.STAGED, State.ENDING}),
    State.STAGED: frozenset({State.READY, State.ENDING}),
    State.READY: frozenset({State.SUBMITTING, State.ENDING}),
    # Back to ready: the scheduler certainly has no such job; or the job was preempted, and another continues in
    # the same run directory.
    # Back to received: a retry, as a new generation in a new run directory.
    State.SUBMITTING: frozenset({State.SUBMITTED, State.READY, State.ENDING, State.RECEIVED}),
    State.SUBMITTED: frozenset({State.RUNNING, State.READY, State.ENDING, State.RECEIVED}),
    # Back to submitted: the scheduler took it off its node, and has it wait again.
    State.RUNNING: frozenset({State.SUBMITTED, State.READY, State.ENDING, State.RECEIVED}),
    State.ENDING: frozenset({State.DONE}),
    # Back to ending: somebody wants results returned that had to be kept.
    State.DONE: frozenset({State.ENDING}),
}

WITH_SCHEDULER = frozenset({State.SUBMITTING, State.SUBMITTED, State.RUNNING})
"""States in which a job may exist, so its cores, memory and GPUs count as taken."""

ACTIVE = frozenset(State) - {State.DONE}


@dataclass(frozen=True)
class Request:
    """What one run asks of a scheduler. Sizes in bytes, 0 where the experiment didn't say."""

    cpus: int = 1
    memory: int = 0
    disk: int = 0
    gpus: int = 0
    gpu_memory: int = 0
    """Memory that each card must have."""


@dataclass(frozen=True)
class Run:
    """One row of the journal. Times are Unix seconds."""

    id: int
    queue: str
    key: str
    state: State
    generation: int = 1
    attempt: int = 0
    outcome: Outcome | None = None
    reason: str = ""
    request: Request = field(default_factory=Request)
    max_duration: float | None = None
    """Seconds that one attempt may run, as the experiment asked."""
    expires_at: float | None = None
    received_at: float = 0.0
    updated_at: float = 0.0
    not_before: float = 0.0
    """No action before this time: a retry is being held back."""
    tries: int = 0
    """Failed tries of the step in hand."""
    run_dir: str = ""
    image: str = ""
    tag: str = ""
    """Unique to one attempt (see `hpcrunner.engine.submit.tag_of`); what the job signs with when it ends."""
    job_name: str = ""
    """What the scheduler calls the job: the tag, or for an element of an array the array's name."""
    task: int | None = None
    """Index in the array."""
    job_id: str = ""
    partition: str = ""
    submitted_at: float = 0.0
    """When handing it to the scheduler began."""
    waiting: str = ""
    """Why it waits: for the scheduler, in the scheduler's word; when it ended, for its results to be taken."""
    avoid: tuple[str, ...] = ()
    """Nodes that failed under it."""
    resumes: int = 0
    """How often it was continued after a preemption, beside what the scheduler itself requeued."""
    gpu_ids: tuple[str, ...] = ()
    exit_code: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    host: str = ""
    cancelling: str = ""
    """Why the run is being cancelled; empty if it isn't."""
    cancelled_at: float = 0.0
    """When the scheduler was last told to cancel it."""
    told: str = "waiting"
    """What the client's record says of it, as far as we wrote it."""
    save_at: float | None = None
    """When its next checkpoint is due; None if it has none."""
    ended_at: float = 0.0
    """Since when its outcome is known."""
    removing: bool = False
    """It is over, and its run directory is to go."""
    notes: tuple[str, ...] = ()
    """Warnings for the user, shown in status and at the end of the log."""

    @property
    def short_id(self) -> str:
        return f"{self.id}.{self.generation}"


@dataclass(frozen=True)
class Exit:
    """What a job wrote of its own end (`status/exit` in its run directory). Times are Unix seconds."""

    code: int
    """Exit code of the program; 128 + N if signal N ended it."""
    cause: str
    """`exit`: it ended by itself; `max_duration`, `default_duration`, `lifetime`, `walltime`,
    `partition`: that limit; `cancelled`: told
    to stop; `preempted`: told that it will lose its node; `setup`: it never started; `crashed`: its node failed too
    often."""
    started_at: float
    finished_at: float
    host: str = ""


class Phase(Enum):
    """How far a scheduler says that a job is."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    GONE = "gone"
    """Looked for where it must be if it exists, several times, and not there."""
    UNKNOWN = "unknown"
    """The scheduler can't tell now; ask again later."""


class Ending(str, Enum):
    """Why a scheduler says that a job ended; the words are Slurm's (squeue(1), JOB STATE CODES)."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    TIMEOUT = "TIMEOUT"
    DEADLINE = "DEADLINE"
    CANCELLED = "CANCELLED"
    PREEMPTED = "PREEMPTED"
    NODE_FAIL = "NODE_FAIL"
    BOOT_FAIL = "BOOT_FAIL"
    REVOKED = "REVOKED"


@dataclass(frozen=True)
class JobStatus:
    """What a scheduler says of a job."""

    phase: Phase
    job_id: str = ""
    """The id that it has; found by name for a submission whose answer was lost, or another one's that runs instead."""
    job_name: str = ""
    task: int | None = None
    reason: str = ""
    """Why it waits, or how it ended, in the scheduler's words."""
    ending: Ending | None = None
    by: str = ""
    """Who cancelled it, if that is known."""
    code: int | None = None
    """Exit code as the scheduler has it, which is not always the program's."""
    signal: int = 0
    node: str = ""
    peak_memory: int = 0
    """Bytes, by the scheduler's accounting."""
    seen_at: float = 0.0
    """When it was first seen to have ended; of one whose id nobody knows, when it was looked for. Unix seconds."""


UNKNOWN = JobStatus(Phase.UNKNOWN)


@dataclass(frozen=True)
class Place:
    """Where on a scheduler a job fits."""

    partition: str = ""
    longest: float | None = None
    """Seconds that a program may run there; None if nothing is known of a limit."""
    gpu_type: str = ""
    note: str = ""
    """What is not quite as the experiment asked for."""


@dataclass(frozen=True)
class Gpu:
    """A card, or a MIG instance of one, that jobs may be bound to."""

    uuid: str
    memory: int
    """Bytes."""
    name: str = ""


@dataclass(frozen=True)
class Capacity:
    """What jobs may use together on a scheduler that has no queue of its own. Sizes in bytes."""

    cpus: int
    memory: int
    disk: int
    gpus: tuple[Gpu, ...] = ()


class ImageState(Enum):
    MISSING = "missing"
    BUILDING = "building"
    BUILT = "built"
    FAILED = "failed"


@dataclass(frozen=True)
class Image:
    """How far an image is."""

    state: ImageState
    reason: str = ""
    at: float = 0.0
    """When the build failed, Unix seconds."""
