"""What to do next, decided from what is known. Nothing here looks at a clock, a file or a scheduler.

`plan` gives at most one action for each run; the tick acts, records, and plans again until nothing is left to
do now.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from hpcrunner.model import (
    WITH_SCHEDULER,
    Capacity,
    Exit,
    Gpu,
    Image,
    ImageState,
    Outcome,
    Request,
    Run,
    State,
)
from hpcrunner.units import format_duration

_FAILURE_STANDS = 600.0
"""Seconds for which a failed image build speaks for every run that needs the image; after that a new run tries."""
_CANCEL_AGAIN = 60.0
_BACKOFF = (2.0, 10.0, 30.0, 120.0, 300.0)


class Seen(Enum):
    """What the scheduler says of a job."""

    PENDING = "pending"
    RUNNING = "running"
    GONE = "gone"
    """Neither there nor has it left an exit file, looked for afterwards."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Observations:
    """All that is known of the world outside the journal, by run id, digest or queue name."""

    jobs: Mapping[int, Seen] = field(default_factory=dict)
    exits: Mapping[int, Exit] = field(default_factory=dict)
    never_started: frozenset[int] = frozenset()
    """Runs that ended without their program having started in its container."""
    found: Mapping[int, str] = field(default_factory=dict)
    """Job ids of runs that were being submitted when somebody crashed."""
    images: Mapping[str, Image] = field(default_factory=dict)
    refusals: Mapping[int, str] = field(default_factory=dict)
    """Why the scheduler can never run it."""
    capacity: Capacity | None = None
    queues_gone: Mapping[str, float] = field(default_factory=dict)
    """Since when, Unix seconds."""


@dataclass(frozen=True)
class Policy:
    """The site's options that decisions depend on. Durations in seconds."""

    max_duration: float
    retries: int
    queue_gone_grace: float
    settles: float
    max_jobs: int | None = None
    max_builds: int = 1


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


@dataclass(frozen=True)
class Adopt(Action):
    """A job was found that an interrupted submission had made."""

    job_id: str = ""


@dataclass(frozen=True)
class SubmitAgain(Action):
    """An interrupted submission certainly made no job."""


@dataclass(frozen=True)
class Running(Action):
    pass


@dataclass(frozen=True)
class Cancel(Action):
    reason: str = ""


@dataclass(frozen=True)
class Retry(Action):
    """Run it once more, from the start, in a new run directory."""

    reason: str = ""


@dataclass(frozen=True)
class End(Action):
    outcome: Outcome = Outcome.FAILED
    reason: str = ""
    exit: Exit | None = None


@dataclass(frozen=True)
class Return(Action):
    """Give back its results and write the client's record."""


def plan(runs: Iterable[Run], seen: Observations, policy: Policy, now: float) -> list[Action]:
    """The next action of each run that has one. `runs` are the active ones, oldest first."""
    runs = list(runs)
    room = _Room(runs, seen.capacity, policy)
    first: dict[tuple[str, str], int] = {}
    actions = []
    for run in runs:
        # Runs of one experiment write to the same places, so they take turns.
        turn = first.setdefault((run.queue, run.key), run.id) == run.id
        if run.not_before > now:
            continue
        action = _next(run, seen, policy, now, room, turn)
        if action is not None:
            actions.append(action)
    return actions


def waiting_for(run: Run, seen: Observations) -> str:
    """Why nothing happens to a run, in words for a person; empty if something does."""
    if run.state is State.STAGED and run.image:
        image = seen.images.get(run.image)
        return "waiting: image build" if image and image.state is not ImageState.BUILT else ""
    if run.state is State.READY:
        return "waiting: cores, memory, disk or GPUs in use by other jobs"
    return ""


def _next(run: Run, seen: Observations, policy: Policy, now: float, room: _Room, turn: bool) -> Action | None:
    if run.state is State.ENDING:
        return Return(run)
    if run.state in WITH_SCHEDULER:
        return _with_scheduler(run, seen, policy, now)
    if reason := _cancelled(run, seen, policy, now):
        return End(run, Outcome.CANCELLED, reason)
    if run.expires_at is not None and run.expires_at <= now:
        return End(run, Outcome.EXPIRED, "its lifetime was over before it could start")
    if not turn:
        return None
    if run.state is State.RECEIVED:
        if refusal := seen.refusals.get(run.id):
            return End(run, Outcome.REJECTED, refusal)
        return Stage(run)
    if run.state is State.STAGED:
        return _image(run, seen, room)
    return _submit(run, policy, now, room)


def _image(run: Run, seen: Observations, room: _Room) -> Action | None:
    if not run.image:
        return Define(run)
    image = seen.images.get(run.image, Image(ImageState.MISSING))
    if image.state is ImageState.BUILT:
        return Ready(run)
    if image.state is ImageState.FAILED and image.at > run.updated_at - _FAILURE_STANDS:
        return End(run, Outcome.FAILED, image.reason)
    if image.state is ImageState.BUILDING:
        return None
    return Build(run) if room.for_build(run.image, seen.images) else None


def _submit(run: Run, policy: Policy, now: float, room: _Room) -> Action | None:
    limits = {"walltime": policy.max_duration}
    if run.max_duration is not None:
        limits["max_duration"] = run.max_duration
    if run.expires_at is not None:
        limits["lifetime"] = run.expires_at - now
    name = min(limits, key=lambda name: (limits[name], name))
    gpus = room.take(run.request)
    return None if gpus is None else Submit(run, limits[name], name, gpus)


def _with_scheduler(run: Run, seen: Observations, policy: Policy, now: float) -> Action | None:
    if ended := seen.exits.get(run.id):
        return _ended(run, ended, run.id in seen.never_started, policy)
    job = seen.jobs.get(run.id, Seen.UNKNOWN)
    if run.state is State.SUBMITTING:
        if job_id := seen.found.get(run.id):
            return Adopt(run, job_id)
        if job is Seen.GONE and now >= run.updated_at + policy.settles:
            return SubmitAgain(run)
        return None
    if job is Seen.GONE:
        if run.cancelling:
            return End(run, Outcome.CANCELLED, run.cancelling)
        return _infrastructure(run, "the job disappeared without a trace: its host went down, or somebody killed it",
                               policy)
    if run.state is State.SUBMITTED and job is Seen.RUNNING:
        return Running(run)
    if reason := run.cancelling or _cancelled(run, seen, policy, now):
        return Cancel(run, reason) if not run.cancelling or now >= run.updated_at + _CANCEL_AGAIN else None
    return None


def _ended(run: Run, ended: Exit, never_started: bool, policy: Policy) -> Action:
    took = format_duration(max(0.0, ended.finished_at - ended.started_at))
    if ended.cause == "max_duration":
        return End(run, Outcome.FAILED, f"stopped after {took}: it ran longer than its max_duration", ended)
    if ended.cause == "walltime":
        return End(run, Outcome.FAILED, f"stopped after {took}: the longest that this site lets a job run "
                                        "(max_duration of the site)", ended)
    if ended.cause == "lifetime":
        return End(run, Outcome.EXPIRED, f"stopped after {took}: its lifetime was over", ended)
    if ended.cause == "cancelled":
        if run.cancelling:
            return End(run, Outcome.CANCELLED, run.cancelling, ended)
        return _infrastructure(run, "the job was stopped from outside (SIGTERM)", policy, ended)
    if ended.code == 0:
        return End(run, Outcome.SUCCEEDED, f"finished after {took}", ended)
    if never_started:
        return End(run, Outcome.FAILED, f"the container did not start (exit code {ended.code}); its message is in the "
                                        "log", ended)
    return End(run, Outcome.FAILED, f"the program ended {_code(ended.code)} after {took}", ended)


def _infrastructure(run: Run, reason: str, policy: Policy, ended: Exit | None = None) -> Action:
    if run.generation <= policy.retries:
        return Retry(run, f"{reason}; run again ({run.generation} of {policy.retries} retries)")
    return End(run, Outcome.LOST, f"{reason}; given up after {run.generation} runs", ended)


def _code(code: int) -> str:
    try:
        return f"with exit code {code}, as if by signal {signal.Signals(code - 128).name}"
    except ValueError:
        return f"with exit code {code}"


def _cancelled(run: Run, seen: Observations, policy: Policy, now: float) -> str:
    since = seen.queues_gone.get(run.queue)
    if since is not None and now >= since + policy.queue_gone_grace:
        return f"its queue {run.queue} was deleted"
    return ""


def backoff(tries: int) -> float:
    """Seconds to wait after so many failed tries."""
    return _BACKOFF[min(tries, len(_BACKOFF)) - 1]


class _Room:
    """What is free, counted down as the plan hands it out. Requests are kept in order: a big one that waits is
    not overtaken for ever by small ones that came later."""

    def __init__(self, runs: list[Run], capacity: Capacity | None, policy: Policy) -> None:
        taken = [run for run in runs if run.state in WITH_SCHEDULER]
        self._jobs = None if policy.max_jobs is None else policy.max_jobs - len(taken)
        self._builds = policy.max_builds
        self._started: set[str] = set()
        self._capacity = capacity
        self._blocked = False
        if capacity is not None:
            self._cpus = capacity.cpus - sum(run.request.cpus for run in taken)
            self._memory = capacity.memory - sum(run.request.memory for run in taken)
            self._disk = capacity.disk - sum(run.request.disk for run in taken)
            held = {gpu for run in taken for gpu in run.gpu_ids}
            self._gpus = [gpu for gpu in capacity.gpus if gpu.uuid not in held]

    def take(self, request: Request) -> tuple[str, ...] | None:
        """The GPUs for a job that may start now; None if it may not."""
        if self._jobs is not None and self._jobs <= 0:
            return None
        chosen: list[Gpu] = []
        if self._capacity is not None:
            if self._blocked:
                return None
            # The smallest cards that do, so that the large ones stay free.
            fitting = [gpu for gpu in self._gpus if gpu.memory >= request.gpu_memory]
            chosen = sorted(fitting, key=lambda gpu: gpu.memory)[: request.gpus]
            if (request.cpus > self._cpus or request.memory > self._memory or request.disk > self._disk
                    or len(chosen) < request.gpus):
                self._blocked = True
                return None
            self._cpus -= request.cpus
            self._memory -= request.memory
            self._disk -= request.disk
            self._gpus = [gpu for gpu in self._gpus if gpu not in chosen]
        if self._jobs is not None:
            self._jobs -= 1
        return tuple(gpu.uuid for gpu in chosen)

    def for_build(self, digest: str, images: Mapping[str, Image]) -> bool:
        building = sum(image.state is ImageState.BUILDING for image in images.values())
        if digest in self._started or building + len(self._started) >= self._builds:
            return False
        self._started.add(digest)
        return True
