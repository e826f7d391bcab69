"""The planner in a simulated world, which crashes it, loses its answers and kills its jobs, by chance but from a seed.

The journal is a dictionary that accepts only legal moves; the scheduler tells the truth, but late, or not now.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from hpcrunner.engine.plan import (
    Action,
    Adopt,
    Build,
    Cancel,
    Define,
    End,
    Observations,
    Policy,
    Ready,
    Retry,
    Return,
    Running,
    Seen,
    Stage,
    Submit,
    SubmitAgain,
    plan,
)
from hpcrunner.model import (
    ACTIVE,
    TRANSITIONS,
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

SEEDS = 400
CHAOS_STEPS = 60
"""After so many steps nothing goes wrong any more, and everything has to come to an end."""
CARDS = (Gpu("a", 10), Gpu("b", 10), Gpu("c", 40))
QUEUES = ("q1", "q2")


class Crash(Exception):
    """hpcrunner is killed."""


@dataclass
class Job:
    """What the scheduler knows."""

    tag: str
    run: int
    generation: int
    request: Request
    gpus: tuple[str, ...]
    limit_name: str
    visible_at: float
    state: Seen = Seen.PENDING
    cancelled: bool = False


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        pick = self.random.choice
        self.now = 0.0
        self.is_calm = False
        self.policy = Policy(max_duration=50, retries=pick((0, 1, 2)), queue_gone_grace=pick((0, 20)), settles=pick((0, 7)),
                             max_jobs=pick((None, 1, 3)), max_builds=pick((1, 2)))
        self.capacity = pick((None, Capacity(4, 100, 100, CARDS)))
        self.runs: dict[int, Run] = {}
        self.over: dict[int, Run] = {}
        self.jobs: list[Job] = []
        self.claims: dict[tuple[int, int], Job] = {}
        """Who owns the run directory of a generation."""
        self.exits: dict[tuple[int, int], Exit] = {}
        self.images: dict[str, Image] = {}
        self.gone: dict[str, float] = {}
        self.counts: Counter[object] = Counter()

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
        while runs := [run for run in self.runs.values() if run.state in ACTIVE]:
            actions = plan(runs, self.look(runs), self.policy, self.now)
            assert len({action.run.id for action in actions}) == len(actions)
            if not sum([self.act(action) for action in actions]):
                return

    def look(self, runs: list[Run]) -> Observations:
        blind = self.happens(0.1)
        jobs, found = {}, {}
        for run in runs:
            if run.state in WITH_SCHEDULER and not blind:
                job = next((job for job in self.jobs if job.tag == run.tag and job.visible_at <= self.now), None)
                if run.state is State.SUBMITTING and job:
                    found[run.id] = job.tag
                else:
                    jobs[run.id] = job.state if job else Seen.GONE
        refusals = {run.id: "too big" for run in runs if self.capacity and run.request.cpus > self.capacity.cpus}
        exits = {run.id: self.exits[run.id, run.generation] for run in runs if (run.id, run.generation) in self.exits}
        return Observations(
            jobs=jobs, found=found, exits=exits, images=dict(self.images), refusals=refusals, queues_gone=dict(self.gone),
            capacity=self.capacity)

    def act(self, action: Action) -> bool:
        self.counts[type(action)] += 1
        run = action.run
        if self.happens(0.05):  # the step fails, and is tried again later
            self.write(run, run.state, tries=run.tries + 1, not_before=self.now + 3)
            return False
        match action:
            case Stage():
                self.write(run, State.STAGED)
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
                self.write(run, State.SUBMITTED, job_id=action.job_id)
            case SubmitAgain():
                self.write(run, State.READY, gpu_ids=())
            case Running():
                self.write(run, State.RUNNING)
            case Cancel():
                run = self.write(run, run.state, cancelling=action.reason)
                for job in self.jobs:
                    job.cancelled |= job.tag == run.tag
            case Retry():
                self.write(run, State.RECEIVED, generation=run.generation + 1, attempt=0, image="", tag="", job_id="",
                           gpu_ids=())
            case End():
                self.write(run, State.ENDING, outcome=action.outcome, reason=action.reason, gpu_ids=())
            case Return():
                self.write(run, State.DONE)
            case _:
                raise AssertionError(action)
        self.check()
        return True

    def submit(self, action: Submit) -> None:
        run = action.run
        tag = f"{run.id}.{run.generation}.{run.attempt}"
        run = self.write(run, State.SUBMITTING, tag=tag, gpu_ids=action.gpus, attempt=run.attempt + 1)
        if self.happens(0.1):  # refused, for now
            self.write(run, State.READY, gpu_ids=(), not_before=self.now + 3)
            return
        if self.happens(0.1):  # no answer, and no job
            return
        job = Job(tag, run.id, run.generation, run.request, action.gpus, action.limit_name,
                  self.now + self.random.uniform(0, self.policy.settles))
        self.jobs.append(job)
        if self.happens(0.1):  # no answer, but a job
            return
        job.visible_at = self.now
        self.write(run, State.SUBMITTED, job_id=tag)

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
        for digest, image in self.images.items():
            if image.state is ImageState.BUILDING and chance() < 0.3:
                failed = self.happens(0.2)
                self.images[digest] = Image(ImageState.FAILED, "no", self.now) if failed else Image(ImageState.BUILT)
            elif self.happens(0.02):  # somebody cleans up the cache
                self.images[digest] = Image(ImageState.MISSING)
        for job in self.jobs:
            if job.state is Seen.PENDING and chance() < 0.5:
                if self.claims.setdefault((job.run, job.generation), job) is job:
                    job.state = Seen.RUNNING
                else:
                    job.state = Seen.GONE
                    self.counts["duplicate"] += 1
            elif job.state is Seen.RUNNING and chance() < 0.2:
                self.end(job)

    def end(self, job: Job) -> None:
        job.state = Seen.GONE
        if self.happens(0.2):  # its host dies
            return
        if job.cancelled:
            code, cause = 143, "cancelled"
        else:
            code, cause = self.random.choice(((0, "exit"), (0, "exit"), (1, "exit"), (143, job.limit_name)))
            if self.happens(0.1):  # its host is shut down
                code, cause = 143, "cancelled"
        assert (job.run, job.generation) not in self.exits
        self.exits[job.run, job.generation] = Exit(code, cause, self.now - 1, self.now, "node")

    # -- what must hold at every moment --

    def check(self) -> None:
        alive = [job for job in self.jobs if job.state in (Seen.PENDING, Seen.RUNNING)]
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


def simulate(seed: int) -> Counter[object]:
    world = World(seed)
    for number in range(1500):
        world.is_calm = number >= CHAOS_STEPS
        world.step()
        try:
            world.tick()
        except Crash:
            world.counts[Crash] += 1
        world.check()
        if world.is_calm and len(world.over) == len(world.runs):
            break
    assert {run.state for run in world.runs.values()} <= {State.DONE}, "some runs never end"
    for (number, _), ended in world.exits.items():
        if (ended.code, ended.cause) == (0, "exit"):
            assert world.runs[number].outcome is Outcome.SUCCEEDED
    return world.counts


def test_whatever_happens_every_run_ends_once() -> None:
    counts: Counter[object] = Counter()
    for seed in range(SEEDS):
        try:
            counts += simulate(seed)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
    # The seeds lead everywhere, so that this test means something.
    for what in (Crash, *Outcome, Stage, Define, Build, Ready, Submit, Adopt, SubmitAgain, Running, Cancel, Retry, End, Return):
        assert counts[what] > 20, what
