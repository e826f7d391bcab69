"""The planner in a simulated world, which crashes it, loses its answers and kills its jobs, by chance but from a seed.

The journal is a dictionary that accepts only legal moves; the scheduler tells the truth, but late, or not now. Half of
the worlds run jobs as processes of one host, the others have a Slurm: its jobs are preempted, requeued under the same
id, lose their nodes, run out of memory, are cancelled by others, and forgotten after a while.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

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
from hpcrunner.engine.plan import plan
from hpcrunner.model import (
    ACTIVE,
    TRANSITIONS,
    UNKNOWN,
    WITH_SCHEDULER,
    Capacity,
    Ending,
    Exit,
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

SEEDS = 600
CHAOS_STEPS = 60
"""After so many steps nothing goes wrong any more, and everything has to come to an end."""
CARDS = (Gpu("a", 10), Gpu("b", 10), Gpu("c", 40))
QUEUES = ("q1", "q2")
REMEMBERED = 40.0
"""Seconds for which a Slurm without accounting knows jobs that ended."""


class Crash(Exception):
    """hpcrunner is killed."""


@dataclass
class Moving:
    """Files of a run that are being moved, by a thread of hpcrunner: a crash ends it without a word."""

    action: Action
    halted: bool = False


@dataclass
class Job:
    """What the scheduler knows."""

    id: str
    tag: str
    run: int
    generation: int
    request: Request
    gpus: tuple[str, ...]
    limit_name: str
    visible_at: float
    may_requeue: bool = False
    phase: Phase = Phase.PENDING
    reason: str = "Priority"
    ending: Ending | None = None
    ended_at: float = 0.0
    signal: int = 0
    node: str = ""
    told: bool = False
    """It got SIGTERM from hpcrunner."""
    warned: bool = False
    """Its node will be taken; it has stopped its program, and waits for that."""

    @property
    def lives(self) -> bool:
        return self.phase in (Phase.PENDING, Phase.RUNNING)


@dataclass
class Folder:
    """The run directory of one generation."""

    owner: str = ""
    begun: bool = False
    exit: Exit | None = None
    visible_at: float = 0.0
    """When hpcrunner's host shows the exit file."""
    interrupted: bool = False
    crashes: int = 0
    works: int = 0
    """How many jobs, or starts of one job, have worked in it."""


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        pick = self.random.choice
        self.now = 0.0
        self.is_calm = False
        self.is_slurm = seed % 2 == 1
        self.has_accounting = pick((True, True, False))
        self.capacity = None if self.is_slurm else pick((None, Capacity(4, 100, 100, CARDS)))
        self.policy = Policy(max_duration=50, retries=pick((0, 1, 2)), queue_gone_grace=pick((0, 20)), settles=pick((0, 7)),
                             exit_grace=5 if self.is_slurm else 0, kill_grace=pick((1, 10)),
                             max_jobs=pick((None, 1, 3)), max_builds=pick((1, 2)))
        self.runs: dict[int, Run] = {}
        self.over: dict[int, Run] = {}
        self.jobs: list[Job] = []
        self.folders: dict[tuple[int, int], Folder] = {}
        self.images: dict[str, Image] = {}
        self.gone: dict[str, float] = {}
        self.stopped: set[int] = set()
        self.dark_until = 0.0
        """No answer of the scheduler before."""
        self.seen_at: dict[str, float] = {}
        self.view: tuple[float, dict[str, JobStatus]] | None = None
        self.judged: dict[str, JobStatus] = {}
        self.counts: Counter[object] = Counter()
        self.moving: dict[int, Moving] = {}
        self.told: dict[int, str] = {}
        """What the clients' records say."""
        self.saved: set[int] = set()

    def happens(self, chance: float) -> bool:
        """Something that goes wrong."""
        return not self.is_calm and self.random.random() < chance

    # -- the journal --

    def write(self, run: Run, state: State, **changes: Any) -> Run:
        if self.happens(0.02):
            raise Crash
        assert self.runs[run.id] == run, "a stale row"
        assert state is run.state or state in TRANSITIONS[run.state], f"{run.state} -> {state}"
        assert run.id not in self.over
        if state is not run.state:
            changes = {"tries": 0, "not_before": 0.0, **changes}
        self.runs[run.id] = run = replace(run, state=state, updated_at=self.now, **changes)
        if state is State.DONE:
            self.over[run.id] = run
            self.counts[run.outcome] += 1
        if self.happens(0.02):
            raise Crash
        return run

    # -- one tick --

    def tick(self) -> None:
        self.view = None
        self.judged.clear()
        while runs := [run for run in self.runs.values() if run.state in ACTIVE]:
            moved = sum([self.arrive(number) for number in list(self.moving) if self.random.random() < 0.5])
            runs = [run for run in self.runs.values() if run.state in ACTIVE]
            actions = plan(runs, self.look(runs), self.policy, self.now)
            assert len({action.run.id for action in actions}) == len(actions)
            if not moved + sum([self.act(action) for action in actions]):
                return

    def arrive(self, number: int) -> bool:
        """Files have been moved, or not: the main thread learns of it."""
        moving = self.moving.pop(number)
        run, action = self.runs[number], moving.action
        if moving.halted and self.random.random() < 0.5:  # else it was through before it could be stopped
            self.counts["halted"] += 1
            return True
        if self.happens(0.1):
            self.counts["not moved"] += 1
            if isinstance(action, (Stage, Return)):
                self.write(run, run.state, tries=run.tries + 1, not_before=self.now + 3)
                return True
        match action:
            case Stage():
                self.folders[run.id, run.generation] = Folder()
                self.write(run, State.STAGED)
            case Return():
                self.told[run.id] = "finished"
                self.write(run, State.DONE)
            case Checkpoint():
                self.saved.add(run.id)
                self.write(run, run.state, save_at=self.now + 5)
            case Tell():
                assert run.id not in self.over
                self.told[run.id] = action.status
                self.write(run, run.state, told=action.status)
        return True

    def look(self, runs: list[Run]) -> Observations:
        jobs = {run.id: self.status(run) for run in runs if run.state in WITH_SCHEDULER}
        if self.happens(0.05):
            self.go_on()  # The world doesn't wait between two looks.
        exits = {}
        for run in runs:
            folder = self.folder(run)
            if folder.exit and folder.visible_at <= self.now and run.state in WITH_SCHEDULER:
                exits[run.id] = folder.exit
        over = [run for run in runs if run.id in jobs and jobs[run.id].phase is Phase.ENDED and run.id not in exits]
        return Observations(
            jobs=jobs, exits=exits, begun=frozenset(run.id for run in over if self.folder(run).begun),
            images=dict(self.images), places={run.id: self.place(run) for run in runs}, stopped=frozenset(self.stopped),
            queues_gone=dict(self.gone), capacity=self.capacity, moving=frozenset(self.moving))

    def folder(self, run: Run) -> Folder:
        return self.folders.get((run.id, run.generation), Folder())

    def place(self, run: Run) -> Place | str:
        if self.capacity and run.request.cpus > self.capacity.cpus:
            return "too big"
        return Place("cpu", 40.0) if self.is_slurm else Place()

    def status(self, run: Run) -> JobStatus:
        """As the schedulers' `states` tells it: Slurm is asked, and each job judged, once in a tick."""
        if not self.is_slurm:
            self.view = None
            return self.judge(run)
        if run.tag not in self.judged:
            self.judged[run.tag] = self.judge(run)
        return self.judged[run.tag]

    def judge(self, run: Run) -> JobStatus:
        if self.view is None:
            known = {} if self.now < self.dark_until else {
                job.tag: self.describe(job) for job in self.jobs if job.visible_at <= self.now and not self.forgets(job)}
            self.view = self.now, known
        at, known = self.view
        if at < self.dark_until:
            return UNKNOWN
        job = known.get(run.tag)
        if job is not None and job.phase in (Phase.PENDING, Phase.RUNNING):
            return job
        if self.is_slurm and run.submitted_at >= at:
            return UNKNOWN
        owner = self.folder(run).owner
        if owner and owner != run.job_id:
            return JobStatus(Phase.RUNNING, owner)
        return job or JobStatus(Phase.GONE)

    def describe(self, job: Job) -> JobStatus:
        if job.phase is Phase.ENDED and not self.is_slurm:
            return JobStatus(Phase.GONE)
        seen_at = self.seen_at.setdefault(f"{job.id} {job.ended_at}", self.now) if job.phase is Phase.ENDED else 0.0
        reason = job.reason if job.phase is Phase.PENDING else ""
        code = 0 if job.phase is Phase.ENDED and self.has_accounting else None
        return JobStatus(job.phase, job.id, job.tag, reason=reason, ending=job.ending, code=code, signal=job.signal,
                         node=job.node, seen_at=seen_at)

    def forgets(self, job: Job) -> bool:
        return self.is_slurm and not self.has_accounting and not job.lives and self.now > job.ended_at + REMEMBERED

    def act(self, action: Action) -> bool:
        self.counts[type(action)] += 1
        run = action.run
        if isinstance(action, (Stage, Return, Checkpoint, Tell)):
            assert run.id not in self.moving, "two transfers for one run"
            assert not isinstance(action, Checkpoint) or run.state is State.RUNNING
            self.moving[run.id] = Moving(action)
            return True
        if isinstance(action, Halt):
            self.moving[run.id].halted = True
            return False
        if self.happens(0.05) and not isinstance(action, (Cancel, Waiting)):  # it fails, and is tried again later
            self.write(run, run.state, tries=run.tries + 1, not_before=self.now + 3)
            return False
        match action:
            case Define():
                self.write(run, State.STAGED, image=self.random.choice(("image1", "image2", "image3")))
            case Build():
                self.images[run.image] = Image(ImageState.BUILDING)
                self.write(run, State.STAGED)
            case Ready():
                self.write(run, State.READY)
            case Submit():
                self.submit(action)
            case Adopt():
                assert action.job.job_id
                self.write(run, State.SUBMITTED if run.state is State.SUBMITTING else run.state, job_id=action.job.job_id)
            case SubmitAgain():
                self.write(run, State.READY, gpu_ids=())
            case Running():
                save_at = self.random.choice((None, self.now + 2)) if run.save_at is None else run.save_at
                self.write(run, State.RUNNING, host=action.node, waiting="", save_at=save_at)
            case Waiting():
                self.write(run, State.SUBMITTED if run.state is State.RUNNING else run.state, waiting=action.reason)
            case Cancel():
                run = self.write(run, run.state, cancelling=action.reason,
                                 cancelled_at=0.0 if action.is_noted_only else self.now)
                if not action.is_noted_only:
                    self.cancel(run, now=action.now)
            case Retry():
                assert not run.cancelling
                assert run.id not in self.moving, "its files are taken away while they are moved"
                job = next((job for job in self.jobs if job.id == run.job_id), None)
                assert job is None or not job.lives, "a live job is given up"
                # What was preempted goes on where it was, unless nobody can know that any more.
                assert job is None or job.ending is not Ending.PREEMPTED or self.forgets(job)
                self.cancel(run, now=True)
                self.folders.pop((run.id, run.generation), None)
                self.write(run, State.RECEIVED, generation=run.generation + 1, attempt=0, image="", tag="", job_id="",
                           gpu_ids=(), host="", waiting="", avoid=tuple({*run.avoid, action.avoid} - {""}))
            case Resume():
                assert not run.cancelling
                assert run.id not in self.moving, "another job begins to write while files are moved"
                assert not any(job.id == run.job_id and job.lives for job in self.jobs), "its job will come back"
                folder = self.folder(run)
                folder.owner, folder.exit, folder.interrupted = "", None, False
                self.write(run, State.READY, resumes=run.resumes + 1, gpu_ids=(), job_id="", waiting="")
            case End():
                if action.exit is None or action.exit.cause in ("cancelled", "preempted"):
                    self.cancel(run, now=True)
                assert run.state is not State.RECEIVED or run.id not in self.moving, "it ends while it is fetched"
                if run.id in self.moving:
                    self.counts["ended while moving"] += 1
                    self.moving[run.id].halted = True
                self.write(run, State.ENDING, outcome=action.outcome, reason=action.reason, gpu_ids=(), waiting="",
                           ended_at=self.now)
            case _:
                raise AssertionError(action)
        self.check()
        return not isinstance(action, (Cancel, Waiting))

    def submit(self, action: Submit) -> None:
        run = action.run
        tag = f"{run.id}.{run.generation}.{run.attempt}"
        run = self.write(run, State.SUBMITTING, tag=tag, gpu_ids=action.gpus, attempt=run.attempt + 1, waiting="",
                         submitted_at=self.now)
        if self.happens(0.1) or self.now < self.dark_until:  # refused, for now
            self.write(run, State.READY, gpu_ids=(), not_before=self.now + 3)
            return
        if self.happens(0.1):  # no answer, and no job
            return
        job = Job(str(len(self.jobs) + 1), tag, run.id, run.generation, run.request, action.gpus, action.limit_name,
                  self.now + self.random.uniform(0, self.policy.settles), self.random.random() < 0.5)
        self.jobs.append(job)
        if self.happens(0.1):  # no answer, but a job
            return
        job.visible_at = self.now
        self.write(run, State.SUBMITTED, job_id=job.id)

    def cancel(self, run: Run, *, now: bool) -> None:
        """As the schedulers do it: a job that runs, as far as the journal knows, gets a signal, others are removed."""
        for job in self.jobs:
            if job.id != run.job_id or not job.lives:
                continue
            signals = run.state is State.RUNNING and not now
            if job.phase is Phase.RUNNING:
                job.told = True
                if now and self.is_slurm:
                    self.end(job, Ending.CANCELLED, signal=9)
            elif not signals:
                self.end(job, Ending.CANCELLED)

    # -- what others do meanwhile --

    def step(self) -> None:
        self.now += self.random.choice((0.5, 2, 10))
        chance = self.random.random
        if not self.is_calm and chance() < 0.3:
            number = len(self.runs) + 1
            request = Request(self.random.choice((1, 1, 2, 4, 5)), 10, 10, self.random.choice((0, 0, 1, 2)),
                              self.random.choice((0, 20)))
            if request.gpu_memory:
                request = replace(request, gpus=min(request.gpus, 1))
            self.runs[number] = Run(
                number, self.random.choice(QUEUES), f"key{self.random.randrange(5)}", State.RECEIVED, request=request,
                max_duration=self.random.choice((None, 30)), updated_at=self.now,
                expires_at=self.random.choice((None, None, self.now + 60)))
        if self.happens(0.01):
            self.gone.setdefault(self.random.choice(QUEUES), self.now)
        if self.happens(0.05) and self.runs:
            self.stopped.add(self.random.choice(list(self.runs)))
        if self.happens(0.05):
            self.dark_until = self.now + self.random.choice((1, 10, 100))
        for digest, image in self.images.items():
            if image.state is ImageState.BUILDING and chance() < 0.3:
                failed = self.happens(0.2)
                self.images[digest] = Image(ImageState.FAILED, "no", self.now) if failed else Image(ImageState.BUILT)
            elif self.happens(0.02):  # somebody cleans up the cache
                self.images[digest] = Image(ImageState.MISSING)
        self.go_on()

    def go_on(self) -> None:
        """Jobs start, work and end."""
        for job in self.jobs:
            if job.phase is Phase.PENDING and self.random.random() < 0.4:
                self.start(job)
            elif job.phase is Phase.PENDING and self.is_slurm:
                job.reason = self.random.choice(("Priority", "Resources"))
                if self.happens(0.02):
                    self.end(job, Ending.CANCELLED)  # by another hand
            elif job.phase is Phase.RUNNING and self.random.random() < 0.25:
                (self.work if self.is_slurm else self.work_here)(job)

    def start(self, job: Job) -> None:
        """What the job script does first (templates/sbatch.sh.j2)."""
        assert (job.run, job.generation) in self.folders, "a job without a run directory"
        folder = self.folders[job.run, job.generation]
        job.node = self.random.choice(("n1", "n2", "n3"))
        job.phase, job.visible_at = Phase.RUNNING, min(job.visible_at, self.now)
        if self.is_slurm and self.happens(0.03):
            self.take_node(job, Ending.BOOT_FAIL)
            return
        if folder.owner and folder.owner != job.id:
            self.counts["duplicate"] += 1
            self.end(job, Ending.COMPLETED)
            return
        if folder.owner:
            if folder.exit and folder.exit.cause not in ("cancelled", "preempted"):
                self.counts["ended before"] += 1
                self.end(job, Ending.COMPLETED if folder.exit.code == 0 else Ending.FAILED)
                return
            if not folder.exit and not folder.interrupted:
                folder.crashes += 1
                if folder.crashes > self.policy.retries:
                    self.leave(job, 73, "crashed")
                    self.end(job, Ending.FAILED)
                    return
            self.counts["started again"] += 1
        elif folder.begun:
            self.counts["continued"] += 1
        folder.owner, folder.exit, folder.interrupted, folder.begun = job.id, None, False, True
        folder.works += 1

    def work_here(self, job: Job) -> None:
        """A process of this host ends."""
        if not self.happens(0.2):  # its host dies
            self.leave(job, *self.own_end(job))
        self.end(job, None)

    def own_end(self, job: Job) -> tuple[int, str]:
        if job.told or self.happens(0.1):  # hpcrunner, or the end of its host
            return 143, "cancelled"
        return self.random.choice(((0, "exit"), (0, "exit"), (1, "exit"), (143, job.limit_name)))

    def work(self, job: Job) -> None:
        """A job of Slurm ends, or is ended."""
        if job.warned:
            self.take_node(job, Ending.PREEMPTED)
            return
        if job.told or not self.happens(0.7):
            code, cause = self.own_end(job)
            self.leave(job, code, cause)
            self.end(job, Ending.FAILED if code else Ending.COMPLETED)
            if self.happens(0.1):  # its node is lost in this very moment
                job.phase = Phase.RUNNING
                self.take_node(job, Ending.NODE_FAIL)
            return
        event = self.random.choice(("warned", "preempted", "node", "memory", "time", "deadline", "scancel", "killed", "revoked"))
        self.counts[event] += 1
        if event == "warned":
            self.leave(job, self.random.choice((0, 143)), "preempted")
            job.warned = True
        elif event == "preempted":
            self.leave(job, 143, "cancelled")
            self.folders[job.run, job.generation].interrupted = True
            self.take_node(job, Ending.PREEMPTED)
        elif event == "node":
            self.take_node(job, Ending.NODE_FAIL)
        elif event == "memory":
            if self.random.random() < 0.5:  # else the job script dies of it too
                self.leave(job, 137, "exit")
            self.end(job, Ending.OUT_OF_MEMORY, signal=9)
        elif event == "killed":
            self.end(job, Ending.FAILED, signal=9)
        else:
            if self.random.random() < 0.5:
                self.leave(job, 143, "cancelled")
            self.end(job, {"time": Ending.TIMEOUT, "deadline": Ending.DEADLINE, "scancel": Ending.CANCELLED,
                           "revoked": Ending.REVOKED}[event])

    def had_ended(self, job: Job) -> bool:
        """Slurm lost its node right after its own end, and will start it once more, for nothing."""
        folder = self.folders.get((job.run, job.generation), Folder())
        return job.phase is Phase.PENDING and folder.owner == job.id and folder.exit is not None and (
            folder.exit.cause not in ("cancelled", "preempted"))

    def take_node(self, job: Job, ending: Ending) -> None:
        if not job.may_requeue:
            self.end(job, ending)
            return
        self.counts["requeued"] += 1
        job.phase, job.ending, job.warned, job.told, job.node, job.reason = Phase.PENDING, None, False, False, "", "BeginTime"

    def leave(self, job: Job, code: int, cause: str) -> None:
        """The exit file, which the network file system shows late."""
        folder = self.folders[job.run, job.generation]
        assert folder.owner == job.id
        late = self.policy.exit_grace * 0.9 if self.happens(0.5) else 0.0
        folder.exit, folder.visible_at = Exit(code, cause, self.now - 1, self.now, job.node), self.now + late

    def end(self, job: Job, ending: Ending | None, signal: int = 0) -> None:
        job.phase, job.ending, job.ended_at, job.signal, job.warned = Phase.ENDED, ending, self.now, signal, False

    # -- what must hold at every moment --

    def check(self) -> None:
        alive = [job for job in self.jobs if job.lives and not self.had_ended(job)]
        assert max(Counter(job.run for job in alive).values(), default=0) <= 1, "two live jobs for one run"
        assert not self.counts["duplicate"], "the fence in the job script had to help"
        for job in alive:
            assert self.runs[job.run].state in WITH_SCHEDULER, "a job that nobody watches"
            assert self.runs[job.run].generation == job.generation
        assert self.policy.max_jobs is None or len(alive) <= self.policy.max_jobs
        if self.capacity:
            assert sum(job.request.cpus for job in alive) <= self.capacity.cpus
            assert sum(job.request.memory for job in alive) <= self.capacity.memory
            assert sum(job.request.disk for job in alive) <= self.capacity.disk
            held = [gpu for job in alive for gpu in job.gpus]
            assert len(held) == len(set(held)), "one card for two jobs"
            sizes = {gpu.uuid: gpu.memory for gpu in self.capacity.gpus}
            for job in alive:
                assert len(job.gpus) == job.request.gpus
                assert all(sizes[gpu] >= job.request.gpu_memory for gpu in job.gpus)
        building = sum(image.state is ImageState.BUILDING for image in self.images.values())
        assert building <= self.policy.max_builds
        turns = Counter((run.queue, run.key) for run in self.runs.values()
                        if run.state in {State.STAGED, State.READY} | WITH_SCHEDULER)
        assert max(turns.values(), default=0) <= 1, "two runs of one experiment at a time"
        assert all(self.runs[number] is run for number, run in self.over.items()), "a run that was over has changed"
        assert all(run.generation <= self.policy.retries + 1 for run in self.runs.values())

    def check_end(self) -> None:
        """What must hold when everything is over."""
        assert {run.state for run in self.runs.values()} <= {State.DONE}, "some runs never end"
        assert not self.moving
        assert self.told == dict.fromkeys(self.runs, "finished"), "a record was overwritten"
        for (number, generation), folder in self.folders.items():
            run, left = self.runs[number], folder.exit
            assert generation == run.generation, "a run directory of an earlier generation is left"
            if left and (left.code, left.cause) == (0, "exit"):
                assert run.outcome is Outcome.SUCCEEDED, run.reason
            assert run.outcome is not Outcome.SUCCEEDED or (left and left.code == 0)
        for run in self.runs.values():
            wanted = run.id in self.stopped or run.queue in self.gone or "(CANCELLED)" in run.reason
            assert run.outcome is not Outcome.CANCELLED or wanted, run.reason
            assert run.outcome is not Outcome.EXPIRED or run.expires_at is not None
            if run.outcome is Outcome.LOST:
                assert run.generation == self.policy.retries + 1 or "node was lost" in run.reason


def simulate(seed: int) -> Counter[object]:
    world = World(seed)
    for number in range(1500):
        world.is_calm = number >= CHAOS_STEPS
        world.step()
        try:
            world.tick()
        except Crash:
            world.counts[Crash] += 1
            world.moving.clear()
        world.check()
        if world.is_calm and len(world.over) == len(world.runs):
            break
    world.check_end()
    return world.counts


def test_whatever_happens_every_run_ends_once() -> None:
    counts: Counter[object] = Counter()
    for seed in range(SEEDS):
        try:
            counts += simulate(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    # The seeds lead everywhere, so that this test means something.
    for what in (Crash, *Outcome, Stage, Define, Build, Ready, Submit, Adopt, SubmitAgain, Running, Waiting, Cancel, Retry,
                 Resume, End, Return, Checkpoint, Tell, Halt, "halted", "not moved", "ended while moving", "requeued", "started again", "continued", "ended before", "warned", "preempted", "node",
                 "memory", "time", "deadline", "scancel", "killed", "revoked"):
        assert counts[what] > 20, what
