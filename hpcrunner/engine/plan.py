"""What to do next, decided from what is known. Nothing here looks at a clock, a file or a scheduler.

`plan` gives at most one action for each run; the tick acts, records, and plans again until nothing is left to
do now.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hpcrunner.engine import outcomes
from hpcrunner.engine.actions import (
    Action,
    Adopt,
    Build,
    Cancel,
    Checkpoint,
    Define,
    End,
    Halt,
    Observations,
    Policy,
    Ready,
    Resume,
    Retry,
    Return,
    Running,
    Stage,
    Submit,
    SubmitAgain,
    Tell,
    Waiting,
)
from hpcrunner.engine.outcomes import EXPIRED
from hpcrunner.model import (
    UNKNOWN,
    WITH_SCHEDULER,
    Capacity,
    Gpu,
    Image,
    ImageState,
    JobStatus,
    Outcome,
    Phase,
    Place,
    Request,
    Run,
    State,
)

_FAILURE_STANDS = 600.0
"""Seconds for which a failed image build speaks for every run that needs the image; after that a new run tries."""
_CANCEL_AGAIN = 30.0
"""Seconds beyond the grace after which a job that was told to stop is stopped."""
_GATHERS = 10.0
"""Seconds for which a job that is ready waits for those that are being staged, if a scheduler takes many at once."""
_LONGEST_WAIT = 3600.0
"""Seconds; more than any try is put off."""
_BACKOFF = (2.0, 10.0, 30.0, 120.0, 300.0)


def plan(runs: Iterable[Run], seen: Observations, policy: Policy, now: float) -> list[Action]:
    """The next action of each run that has one. `runs` are the active ones, oldest first."""
    runs = list(runs)
    room = _Room(runs, seen.capacity, policy)
    first: dict[str, int] = {}
    actions = []
    for run in runs:
        # Runs of one experiment write to the same places, from whatever queue they come, so they take turns.
        turn = first.setdefault(run.key, run.id) == run.id
        # One that is farther ahead was noted by a clock that was wrong.
        if now < run.not_before <= now + _LONGEST_WAIT:
            continue
        action = _next(run, seen, policy, now, room, turn) or _aside(run, now)
        if run.id in seen.moving:
            action = _beside_moving(action)
        if action is not None:
            actions.append(action)
    return _gathered(runs, actions, seen, now)


def _gathered(runs: list[Run], actions: list[Action], seen: Observations, now: float) -> list[Action]:
    """Without the submissions that wait a little for those that get ready now, to go out in the same call."""
    coming = any(isinstance(action, (Stage, Define, Ready)) for action in actions) or any(
        run.state is State.RECEIVED and run.id in seen.moving for run in runs)
    if not coming or seen.capacity is not None:  # no queue, no reason to wait
        return actions
    return [one for one in actions if not isinstance(one, Submit) or now >= one.run.updated_at + _GATHERS]


def _aside(run: Run, now: float) -> Action | None:
    """What may be done while nothing else is to be done."""
    status = "running" if run.state is State.RUNNING else "waiting"
    if run.told != status and run.state is not State.ENDING:
        return Tell(run, status)
    if run.state is State.RUNNING and run.save_at is not None and now >= run.save_at:
        return Checkpoint(run)
    return None


def _beside_moving(action: Action | None) -> Action | None:
    """What of it may be done while files of the run are being moved."""
    if isinstance(action, (Stage, Return, Checkpoint, Tell)):
        return None
    # These take the files away from whoever moves them. A job's end is only noted, and needs not wait.
    if isinstance(action, (Retry, Resume)) or (isinstance(action, End) and action.run.state is State.RECEIVED):
        return Halt(action.run)
    return action


def _next(run: Run, seen: Observations, policy: Policy, now: float, room: _Room, turn: bool) -> Action | None:
    if run.state is State.ENDING:
        return Return(run, is_last_try=now >= run.ended_at + policy.store_patience)
    if run.state in WITH_SCHEDULER:
        return _with_scheduler(run, seen, policy, now)
    if reason := _cancelled(run, seen, policy, now):
        return End(run, Outcome.CANCELLED, reason)
    if run.expires_at is not None and run.expires_at <= now:
        return End(run, Outcome.EXPIRED, EXPIRED)
    if not turn:
        return None
    place = seen.places.get(run.id, Place())
    if isinstance(place, str):
        return End(run, Outcome.REJECTED, place)
    if run.state is State.RECEIVED:
        return Stage(run)
    if run.state is State.STAGED:
        return _image(run, seen, room)
    return _submit(run, place, policy, now, room)


def _image(run: Run, seen: Observations, room: _Room) -> Action | None:
    if not run.image:
        return Define(run)
    image = seen.images.get(run.image, Image(ImageState.MISSING))
    if image.state is ImageState.BUILT:
        return Ready(run)
    if image.state is ImageState.FAILED and image.at > run.updated_at - _FAILURE_STANDS:
        return End(run, Outcome.FAILED, image.reason)
    if image.state is ImageState.BUILDING:
        return None if image.reason == run.waiting else Waiting(run, image.reason)
    return Build(run) if room.for_build(run.image, seen.images) else None


def wanted_time(run: Run, policy: Policy, now: float) -> tuple[float, str]:
    """How long its program may run at most, in seconds, and the name of the limit that says so."""
    limits = {"walltime": policy.max_duration}
    if run.max_duration is not None:
        limits["max_duration"] = run.max_duration
    elif policy.default_duration is not None:
        limits["default_duration"] = policy.default_duration
    if run.expires_at is not None:
        limits["lifetime"] = run.expires_at - now
    name = min(limits, key=lambda name: (limits[name], name))
    return limits[name], name


def _submit(run: Run, place: Place, policy: Policy, now: float, room: _Room) -> Action | None:
    limit, name = wanted_time(run, policy, now)
    if place.longest is not None and place.longest < limit:
        limit, name = place.longest, "partition"
    gpus = room.take(run.request)
    return None if gpus is None else Submit(run, limit, name, gpus, place)


def _with_scheduler(run: Run, seen: Observations, policy: Policy, now: float) -> Action | None:
    ended = seen.exits.get(run.id)
    job = seen.jobs.get(run.id, UNKNOWN)
    if ended and not outcomes.wants_explanation(run, ended):
        return outcomes.by_itself(run, ended, run.id in seen.never_started, policy)
    if job.job_id and job.job_id != run.job_id:
        return Adopt(run, job)
    # What counts is when it was looked for: that may be a while ago.
    looked_at = job.seen_at or now
    if run.state is State.SUBMITTING and job.phase is Phase.GONE and looked_at < run.submitted_at + policy.settles:
        return None
    # What lives may have left an exit file before it was requeued.
    if ended and job.phase not in (Phase.PENDING, Phase.RUNNING):
        return outcomes.explained(run, ended, job, run.id in seen.never_started, policy, now)
    if run.state is State.SUBMITTING:
        return SubmitAgain(run) if job.phase is Phase.GONE else None
    if job.phase is Phase.ENDED:
        return outcomes.without_word(run, job, run.id in seen.begun, policy, now)
    if job.phase is Phase.GONE:
        return outcomes.infrastructure(run, job.reason or "the job disappeared without a trace: its host went down, "
                                       "or somebody killed it", policy, node=job.node or run.host)
    # Known first: what runs is cancelled with time to stop.
    if job.phase is Phase.RUNNING and run.state is State.SUBMITTED:
        return Running(run, job.node)
    if reason := _cancelled(run, seen, policy, now) or _too_late(run, job, now):
        if job.phase is Phase.UNKNOWN and run.state is State.SUBMITTED:
            return None if run.cancelling else Cancel(run, reason, is_noted_only=True)
        again = now >= run.cancelled_at + policy.kill_grace + _CANCEL_AGAIN
        return Cancel(run, reason, now=bool(run.cancelled_at)) if again else None
    if job.phase is Phase.RUNNING and job.node and job.node != run.host:
        return Running(run, job.node)
    if job.phase is Phase.PENDING and (run.state is State.RUNNING or run.waiting != job.reason):
        return Waiting(run, job.reason)
    return None


def _cancelled(run: Run, seen: Observations, policy: Policy, now: float) -> str:
    if run.cancelling:
        return run.cancelling
    if run.id in seen.stopped:
        return "stopped by its user (studio runs stop)"
    since = seen.queues_gone.get(run.queue)
    if since is not None and now >= since + policy.queue_gone_grace:
        return f"its queue {run.queue} was deleted"
    return ""


def _too_late(run: Run, job: JobStatus, now: float) -> str:
    """A job that waits beyond the lifetime of its experiment; one that runs looks at the clock itself."""
    late = run.expires_at is not None and run.expires_at <= now and job.phase is Phase.PENDING
    return EXPIRED if late else ""


def backoff(tries: int) -> float:
    """Seconds to wait after so many failed tries."""
    return _BACKOFF[min(tries, len(_BACKOFF)) - 1]


def waited(tries: int) -> float:
    """Seconds that a step has waited in all when it has failed so often. While nobody works on an install no time goes
    by: what it waits for was not looked for."""
    return sum(_BACKOFF[:tries - 1]) + max(0, tries - 1 - len(_BACKOFF)) * _BACKOFF[-1]


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
