"""The planner: every state against every observation, who comes first, and how runs end."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

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
from hpcrunner.engine.plan import backoff, plan
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

NOW = 1_000_000.0
POLICY = Policy(max_duration=3600, retries=2, queue_gone_grace=60, settles=30, exit_grace=60, kill_grace=10)
GIB = 2**30
PENDING, RUNNING, GONE = JobStatus(Phase.PENDING, "7"), JobStatus(Phase.RUNNING, "7", node="n1"), JobStatus(Phase.GONE)

MOVES = {
    Stage: State.STAGED, Define: None, Build: None, Ready: State.READY, Submit: State.SUBMITTING,
    SubmitAgain: State.READY, Cancel: None, Retry: State.RECEIVED, Resume: State.READY, End: State.ENDING,
    Return: State.DONE, Checkpoint: None, Tell: None, Halt: None,
}
"""To what state each action brings its run, as the tick does it; None: it stays."""


def move_of(action: Action) -> State | None:
    """The same for all actions, those too that depend on where the run is."""
    state = action.run.state
    if isinstance(action, Adopt):
        return State.SUBMITTED if state is State.SUBMITTING else None
    if isinstance(action, Running):
        return None if state is State.RUNNING else State.RUNNING
    if isinstance(action, Waiting):
        return State.SUBMITTED if state is State.RUNNING else None
    return MOVES[type(action)]


def a_run(state: State, number: int = 1, **fields: Any) -> Run:
    fields = {"queue": "q", "key": f"key{number}", "updated_at": NOW - 1000, "received_at": NOW - 2000,
              "submitted_at": NOW - 1000, "job_id": "7" if state in (State.SUBMITTED, State.RUNNING) else "",
              "host": "n1" if state is State.RUNNING else "", "told": "running" if state is State.RUNNING else "waiting",
              "ended_at": NOW - 100 if state is State.ENDING else 0.0, **fields}
    return Run(id=number, state=state, **fields)


def an_exit(code: int = 0, cause: str = "exit") -> Exit:
    return Exit(code, cause, NOW - 90, NOW - 30, "node")


def only(run: Run, seen: Observations | None = None, policy: Policy = POLICY, now: float = NOW) -> Action | None:
    """The one action for a run that is alone."""
    actions = plan([run], seen or Observations(), policy, now)
    assert len(actions) <= 1
    return actions[0] if actions else None


def end_of(run: Run, seen: Observations, policy: Policy = POLICY) -> End:
    action = only(run, seen, policy)
    assert isinstance(action, End)
    return action


# -- every state against every observation --

DIGEST = "d" * 64
IMAGES: tuple[dict[str, Image], ...] = ({}, *({DIGEST: Image(state, "why", NOW)} for state in ImageState))
CAUSES = ("exit", "max_duration", "default_duration", "walltime", "partition", "lifetime", "cancelled", "preempted", "setup", "crashed")
JOBS: tuple[JobStatus | None, ...] = (
    None, UNKNOWN, PENDING, RUNNING, GONE, JobStatus(Phase.PENDING, "8", reason="Priority"),
    JobStatus(Phase.RUNNING, "8", node="n2"),
    *(JobStatus(Phase.ENDED, "7", reason=ending.value, ending=ending, code=1, seen_at=NOW - 61) for ending in Ending),
    JobStatus(Phase.ENDED, "8", reason="FAILED", ending=Ending.FAILED, seen_at=NOW))


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_whatever_is_seen_the_move_is_legal(state: State) -> None:
    seen_kinds = set()
    with_scheduler = state in WITH_SCHEDULER
    for image, job, ended, place, gone, cancelling, generation, expires, begun, has_digest in product(
            IMAGES if not with_scheduler else IMAGES[:1], JOBS,
            (None, *((code, cause) for code in (0, 137, 143) for cause in CAUSES)) if with_scheduler else (None, (1, "exit")),
            (Place(), Place("cpu", 60), "too big") if not with_scheduler else (Place(),), (None, NOW - 61),
            ("", "by hand", EXPIRED), (1, 3), (None, NOW - 1), (False, True), (False, True)):
        run = a_run(state, image=DIGEST if has_digest else "", cancelling=cancelling, generation=generation,
                    expires_at=expires, cancelled_at=NOW - 100 if cancelling else 0.0)
        seen = Observations(
            jobs={} if job is None else {1: job}, exits={1: an_exit(*ended)} if ended else {}, images=image,
            begun=frozenset({1} if begun else ()), places={1: place},
            capacity=Capacity(1, GIB, GIB), queues_gone={} if gone is None else {"q": gone})
        action = only(run, seen)
        if action is None:
            continue
        seen_kinds.add(type(action))
        to = move_of(action)
        assert to is None or to in TRANSITIONS[state], (action, seen)
        if isinstance(action, (End, Retry, Resume, Cancel)):
            assert action.reason, (action, seen)
        if isinstance(action, (Retry, Resume)):
            assert not cancelling, "nobody wants it any more"
        # A job that could not be set up says so itself, and has ended by that.
        if isinstance(action, (Retry, Resume, SubmitAgain)) and not (ended and ended[1] == "setup"):
            assert job is not None
            assert job.phase in (Phase.ENDED, Phase.GONE), "a second job beside it"
    assert seen_kinds  # no state is a dead end


@pytest.mark.parametrize("state", [State.SUBMITTED, State.RUNNING, State.SUBMITTING])
@pytest.mark.parametrize("ended", [None, *((code, cause) for code in (0, 1, 137, 143) for cause in CAUSES)])
@pytest.mark.parametrize("cancelling", ["", "by hand"])
def test_once_all_is_told_something_is_done(state: State, ended: tuple[int, str] | None, cancelling: str) -> None:
    """A job that is over never leaves its run waiting, once every patience is over."""
    run = a_run(state, cancelling=cancelling, job_id="7", submitted_at=NOW - 9999)
    for job in (GONE, *(JobStatus(Phase.ENDED, "7", ending=ending, seen_at=NOW - 9999) for ending in Ending)):
        seen = Observations(jobs={1: job}, exits={1: an_exit(*ended)} if ended else {})
        action = only(run, seen)
        if state is State.SUBMITTING and job is not GONE and not ended:
            continue  # Only a job that it does not know yet is possible: it is adopted first.
        assert isinstance(action, (End, Retry, Resume, SubmitAgain)), (job, action)


def test_an_end_of_every_state_is_a_legal_move() -> None:
    """A step that fails for good ends its run, in whatever state it is."""
    assert all(State.ENDING in TRANSITIONS[state] for state in ACTIVE - {State.ENDING})
    assert TRANSITIONS[State.DONE] == frozenset()


@pytest.mark.parametrize(("fields", "seen", "wanted"), [
    ({"state": State.RECEIVED}, {}, Stage),
    ({"state": State.RECEIVED}, {"places": {1: "asks for 9 cores"}}, End),
    ({"state": State.RECEIVED}, {"places": {2: "another run"}}, Stage),
    ({"state": State.RECEIVED}, {"places": {1: Place("cpu")}}, Stage),
    ({"state": State.STAGED}, {}, Define),
    ({"state": State.STAGED, "image": DIGEST}, {}, Build),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.MISSING)}}, Build),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.BUILDING)}}, None),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.BUILDING, "Priority")}}, Waiting),
    ({"state": State.STAGED, "image": DIGEST, "waiting": "x"}, {"images": {DIGEST: Image(ImageState.BUILDING, "x")}}, None),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.BUILT)}}, Ready),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.FAILED, "x", NOW)}}, End),
    ({"state": State.READY}, {}, Submit),
    ({"state": State.READY}, {"places": {1: "the site has changed"}}, End),
    ({"state": State.READY}, {"capacity": Capacity(1, 0, 0)}, Submit),
    ({"state": State.READY}, {"capacity": Capacity(0, 0, 0)}, None),
    ({"state": State.SUBMITTING}, {}, None),
    ({"state": State.SUBMITTING}, {"jobs": {1: PENDING}}, Adopt),
    ({"state": State.SUBMITTING}, {"jobs": {1: RUNNING}}, Adopt),
    ({"state": State.SUBMITTING}, {"jobs": {1: JobStatus(Phase.ENDED, "7", ending=Ending.FAILED)}}, Adopt),
    ({"state": State.SUBMITTING}, {"jobs": {1: UNKNOWN}}, None),
    ({"state": State.SUBMITTING}, {"jobs": {1: GONE}}, SubmitAgain),
    ({"state": State.SUBMITTING, "submitted_at": NOW - 29}, {"jobs": {1: GONE}}, None),
    ({"state": State.SUBMITTING, "submitted_at": NOW - 30}, {"jobs": {1: GONE}}, SubmitAgain),
    ({"state": State.SUBMITTING, "updated_at": NOW}, {"jobs": {1: GONE}}, SubmitAgain),
    # It was looked for some time ago.
    ({"state": State.SUBMITTING, "submitted_at": NOW - 40}, {"jobs": {1: replace(GONE, seen_at=NOW - 11)}}, None),
    ({"state": State.SUBMITTING, "submitted_at": NOW - 40}, {"jobs": {1: replace(GONE, seen_at=NOW - 10)}}, SubmitAgain),
    ({"state": State.SUBMITTING}, {"exits": {1: an_exit()}}, End),
    ({"state": State.SUBMITTING}, {"exits": {1: an_exit(143, "cancelled")}}, None),
    ({"state": State.SUBMITTING}, {"exits": {1: an_exit(143, "cancelled")}, "jobs": {1: GONE}}, Retry),
    ({"state": State.SUBMITTING}, {"exits": {1: an_exit(137)}, "jobs": {1: GONE}}, End),
    # Another one may have left it, and the job of this submission may still appear.
    ({"state": State.SUBMITTING, "submitted_at": NOW - 29}, {"exits": {1: an_exit(143, "preempted")}, "jobs": {1: GONE}}, None),
    ({"state": State.SUBMITTED}, {}, None),
    ({"state": State.SUBMITTED}, {"jobs": {1: PENDING}}, None),
    ({"state": State.SUBMITTED}, {"jobs": {1: replace(PENDING, reason="Priority")}}, Waiting),
    ({"state": State.SUBMITTED, "waiting": "Priority"}, {"jobs": {1: replace(PENDING, reason="Priority")}}, None),
    ({"state": State.SUBMITTED, "waiting": "Priority"}, {"jobs": {1: replace(PENDING, reason="Resources")}}, Waiting),
    ({"state": State.SUBMITTED}, {"jobs": {1: UNKNOWN}}, None),
    ({"state": State.SUBMITTED}, {"jobs": {1: RUNNING}}, Running),
    ({"state": State.SUBMITTED}, {"jobs": {1: GONE}}, Retry),
    ({"state": State.SUBMITTED}, {"jobs": {1: GONE}, "exits": {1: an_exit()}}, End),
    ({"state": State.SUBMITTED}, {"jobs": {1: RUNNING}, "exits": {1: an_exit()}}, End),
    ({"state": State.RUNNING}, {}, None),
    ({"state": State.RUNNING}, {"jobs": {1: RUNNING}}, None),
    ({"state": State.RUNNING}, {"jobs": {1: replace(RUNNING, node="n2")}}, Running),
    ({"state": State.RUNNING}, {"jobs": {1: replace(RUNNING, node="")}}, None),
    ({"state": State.RUNNING}, {"jobs": {1: PENDING}}, Waiting),
    ({"state": State.RUNNING}, {"jobs": {1: UNKNOWN}}, None),
    ({"state": State.RUNNING}, {"jobs": {1: GONE}}, Retry),
    ({"state": State.RUNNING}, {"exits": {1: an_exit(1)}}, End),
    ({"state": State.RUNNING}, {"exits": {1: an_exit(143, "cancelled")}}, None),
    ({"state": State.RUNNING}, {"exits": {1: an_exit(143, "cancelled")}, "jobs": {1: GONE}}, Retry),
    ({"state": State.ENDING}, {}, Return),
    ({"state": State.ENDING}, {"jobs": {1: GONE}, "queues_gone": {"q": 0.0}}, Return),
])
def test_next_action(fields: dict[str, Any], seen: dict[str, Any], wanted: type[Action] | None) -> None:
    run = a_run(**fields)
    action = only(run, Observations(**seen))
    assert type(action) is (type(None) if wanted is None else wanted)
    assert action is None or action.run is run


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_a_run_that_is_held_back_is_left_alone(state: State) -> None:
    seen = Observations(jobs={1: GONE}, exits={1: an_exit()}, queues_gone={"q": 0.0})
    held = a_run(state, not_before=NOW + 1, expires_at=NOW - 1)
    assert only(held, seen) is None
    assert only(held, seen, now=NOW + 1) is not None


def test_adopt_takes_the_job_that_was_found() -> None:
    found = JobStatus(Phase.RUNNING, "45_3", "hrname", 3)
    assert only(a_run(State.SUBMITTING), Observations(jobs={1: found})) == Adopt(a_run(State.SUBMITTING), found)


@pytest.mark.parametrize("job", [replace(RUNNING, job_id="8", job_name="hrother"),
                                 JobStatus(Phase.ENDED, "8", ending=Ending.NODE_FAIL, seen_at=NOW - 99)])
@pytest.mark.parametrize("state", [State.SUBMITTED, State.RUNNING])
def test_the_job_that_claimed_the_run_directory_is_the_one(state: State, job: JobStatus) -> None:
    """A submission whose answer was lost made one job, the next try another, and only one of them runs. Whatever became
    of it, its end is not taken for the end of the job that left the run directory alone."""
    assert only(a_run(state), Observations(jobs={1: job})) == Adopt(a_run(state), job)
    # An exit file is the owner's: it counts whoever that was.
    assert isinstance(only(a_run(state), Observations(jobs={1: job}, exits={1: an_exit()})), End)


def test_backoff_grows_and_then_stays() -> None:
    waits = [backoff(tries) for tries in range(1, 20)]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert waits[-1] == waits[10] <= 3600


# -- who comes first --


def ready(*requests: Request, first: int = 1, **fields: Any) -> list[Run]:
    return [a_run(State.READY, number, request=request, **fields) for number, request in enumerate(requests, first)]


def submitted(runs: list[Run], capacity: Capacity | None, policy: Policy = POLICY) -> dict[int, tuple[str, ...]]:
    """The runs that may start, each with its GPUs."""
    actions = plan(runs, Observations(capacity=capacity), policy, NOW)
    assert all(isinstance(action, Submit) for action in actions)
    return {action.run.id: action.gpus for action in actions if isinstance(action, Submit)}


@pytest.mark.parametrize("field", ["cpus", "memory", "disk"])
def test_jobs_start_until_something_is_used_up(field: str) -> None:
    capacity = replace(Capacity(100, 100, 100), **{field: 5})
    requests = [replace(Request(0, 0, 0), **{field: amount}) for amount in (2, 2, 1, 1)]
    assert list(submitted(ready(*requests), capacity)) == [1, 2, 3]


@pytest.mark.parametrize("state", sorted(State))
def test_what_jobs_hold_is_not_given_out_again(state: State) -> None:
    holder = a_run(state, 1, request=Request(3, 3, 3, 1), gpu_ids=("GPU-a",))
    capacity = Capacity(4, 4, 4, (Gpu("GPU-a", GIB),))
    small, gpu = ready(Request(2, 0, 0), Request(0, 0, 0, 1), first=2)
    others = [holder] if state in WITH_SCHEDULER else []
    assert list(submitted([*others, small], capacity)) == ([] if others else [2])
    assert list(submitted([*others, gpu], capacity)) == ([] if others else [3])


def test_a_big_job_is_not_overtaken() -> None:
    holder = a_run(State.RUNNING, 1, request=Request(cpus=1))
    big, small = ready(Request(cpus=4), Request(cpus=1), first=2)
    assert submitted([holder, big, small], Capacity(4, GIB, GIB)) == {}
    assert list(submitted([big, small], Capacity(4, GIB, GIB))) == [2]
    assert list(submitted([small], Capacity(4, GIB, GIB))) == [3]


def test_a_scheduler_with_a_queue_of_its_own_gets_everything() -> None:
    requests = [Request(cpus=1000, memory=2**50, gpus=64)] * 3
    assert submitted(ready(*requests), None) == {1: (), 2: (), 3: ()}


def test_max_jobs() -> None:
    runs = [a_run(State.RUNNING, 1), a_run(State.SUBMITTING, 2), *ready(Request(), Request(), first=3)]
    seen = {limit: list(submitted(runs, None, replace(POLICY, max_jobs=limit))) for limit in (None, 0, 2, 3, 4, 9)}
    assert seen == {None: [3, 4], 0: [], 2: [], 3: [3], 4: [3, 4], 9: [3, 4]}
    assert list(submitted(runs, Capacity(9, 0, 0), replace(POLICY, max_jobs=3))) == [3]


CARDS = (Gpu("big", 80 * GIB), Gpu("small", 10 * GIB), Gpu("middle", 40 * GIB), Gpu("small2", 10 * GIB))


@pytest.mark.parametrize(("requests", "wanted"), [
    ([Request(0, gpus=0)], {1: ()}),
    ([Request(0, gpus=1)], {1: ("small",)}),
    ([Request(0, gpus=1, gpu_memory=10 * GIB)], {1: ("small",)}),
    ([Request(0, gpus=1, gpu_memory=10 * GIB + 1)], {1: ("middle",)}),
    ([Request(0, gpus=2)], {1: ("small", "small2")}),
    ([Request(0, gpus=3)], {1: ("small", "small2", "middle")}),
    ([Request(0, gpus=2, gpu_memory=20 * GIB)], {1: ("middle", "big")}),
    ([Request(0, gpus=3, gpu_memory=20 * GIB)], {}),
    ([Request(0, gpus=1)] * 5, {1: ("small",), 2: ("small2",), 3: ("middle",), 4: ("big",)}),
    ([Request(0, gpus=1, gpu_memory=80 * GIB), Request(0, gpus=1, gpu_memory=80 * GIB)], {1: ("big",)}),
])
def test_gpus_go_to_jobs_by_memory_and_once(requests: list[Request], wanted: dict[int, tuple[str, ...]]) -> None:
    assert submitted(ready(*requests), Capacity(9, 0, 0, CARDS)) == wanted


def test_a_card_that_a_job_holds_stays_its_own() -> None:
    holder = a_run(State.SUBMITTED, 1, gpu_ids=("small", "big"), request=Request(0, gpus=2))
    runs = [holder, *ready(Request(0, gpus=2), first=2)]
    assert submitted(runs, Capacity(9, 0, 0, CARDS)) == {2: ("small2", "middle")}


def test_runs_of_one_experiment_take_turns() -> None:
    first, second = a_run(State.RUNNING, 1, key="same"), a_run(State.RECEIVED, 2, key="same")
    assert plan([first, second], Observations(jobs={1: RUNNING}), POLICY, NOW) == []
    ending = replace(first, state=State.ENDING, ended_at=NOW)
    assert plan([ending, second], Observations(), POLICY, NOW) == [Return(ending)]
    assert plan([second], Observations(), POLICY, NOW) == [Stage(second)]
    held = a_run(State.READY, 1, key="same", not_before=NOW + 9)
    assert plan([held, second], Observations(), POLICY, NOW) == []
    # Where results and records go depends on the key alone.
    assert plan([held, replace(second, queue="other")], Observations(), POLICY, NOW) == []
    other = replace(second, key="other")
    assert plan([held, other], Observations(), POLICY, NOW) == [Stage(other)]


# -- transfers, checkpoints, the client's record --

HERE = Observations(jobs={1: RUNNING})


def beside(seen: Observations) -> Observations:
    return replace(seen, moving=frozenset({1}))


def test_a_run_has_one_transfer_at_a_time() -> None:
    for run, seen, wanted in (
            (a_run(State.RECEIVED), Observations(), Stage), (a_run(State.ENDING), Observations(), Return),
            (a_run(State.RUNNING, save_at=NOW), HERE, Checkpoint), (a_run(State.RUNNING, told="waiting"), HERE, Tell)):
        assert type(only(run, seen)) is wanted
        assert only(run, beside(seen)) is None
        assert type(only(run, replace(seen, moving=frozenset({2})))) is wanted


@pytest.mark.parametrize("fields", [{"cancelling": "why"}, {"expires_at": NOW}])
def test_who_is_not_wanted_any_more_is_not_fetched_to_the_end(fields: dict[str, Any]) -> None:
    run = a_run(State.RECEIVED, **fields)
    assert isinstance(only(run), End)
    assert only(run, beside(Observations())) == Halt(run)  # and then comes the end


def test_a_checkpoint_holds_up_no_end() -> None:
    run = a_run(State.RUNNING, save_at=NOW)
    ended = Observations(exits={1: an_exit()})
    assert isinstance(only(run, beside(ended)), End)
    # But nothing takes its files away, or has another job write to them, meanwhile.
    for job in (GONE, JobStatus(Phase.ENDED, "7", ending=Ending.PREEMPTED, seen_at=NOW - 61)):
        seen = Observations(jobs={1: job})
        assert isinstance(only(run, seen), (Retry, Resume))
        assert only(run, beside(seen)) == Halt(run)
    cancelled = replace(run, cancelling="why")
    assert isinstance(only(cancelled, beside(HERE)), Cancel)


@pytest.mark.parametrize(("state", "save_at", "wanted"), [
    (State.RUNNING, None, False), (State.RUNNING, NOW + 1, False), (State.RUNNING, NOW, True),
    (State.SUBMITTED, NOW, False), (State.SUBMITTING, NOW, False), (State.STAGED, NOW, False), (State.ENDING, NOW, False),
])
def test_what_runs_is_saved_when_it_is_due(state: State, save_at: float | None, wanted: bool) -> None:
    seen = Observations(jobs={1: PENDING if state is State.SUBMITTED else RUNNING})
    assert isinstance(only(a_run(state, save_at=save_at), seen), Checkpoint) is wanted


@pytest.mark.parametrize(("state", "told", "wanted"), [
    (State.RUNNING, "waiting", "running"), (State.RUNNING, "running", None), (State.SUBMITTED, "running", "waiting"),
    (State.SUBMITTED, "waiting", None), (State.ENDING, "waiting", None), (State.ENDING, "running", None),
])
def test_the_record_is_told_how_far_it_is(state: State, told: str, wanted: str | None) -> None:
    run = a_run(state, told=told)
    action = only(run, Observations(jobs={1: PENDING if state is State.SUBMITTED else RUNNING}))
    assert (action.status if isinstance(action, Tell) else None) == wanted


def test_the_record_comes_after_what_moves_the_run() -> None:
    run = a_run(State.RUNNING, told="waiting", save_at=NOW)
    assert isinstance(only(run, Observations(exits={1: an_exit()})), End)
    assert isinstance(only(run, HERE), Tell)


def test_results_wait_for_the_store_as_long_as_the_site_says() -> None:
    policy = replace(POLICY, store_patience=100)
    for ended_at, is_last in ((NOW - 99, False), (NOW - 100, True)):
        run = a_run(State.ENDING, ended_at=ended_at, tries=50)
        assert only(run, policy=policy) == Return(run, is_last_try=is_last)


def test_jobs_that_are_ready_wait_a_little_for_those_that_are_being_fetched() -> None:
    """So that a scheduler with a queue gets them in one call."""
    ready, coming = a_run(State.READY, 1, updated_at=NOW - 9), a_run(State.RECEIVED, 2)
    moving = frozenset({2})

    def submits(run: Run, seen: Observations, *others: Run) -> bool:
        return any(isinstance(action, Submit) for action in plan([run, *others], seen, POLICY, NOW))

    assert not submits(ready, Observations(moving=moving), coming)
    assert not submits(ready, Observations(), coming), "it begins to be fetched now"
    assert submits(ready, Observations())
    staged = replace(coming, state=State.STAGED, image="i")
    assert submits(ready, Observations(moving=moving), staged), "a build takes long"
    assert not submits(ready, Observations(), replace(staged, image=""))
    assert not submits(ready, Observations(images={"i": Image(ImageState.BUILT)}), staged)
    assert submits(ready, Observations(), replace(coming, not_before=NOW + 1)), "nobody knows when it comes"
    assert submits(replace(ready, updated_at=NOW - 10), Observations(moving=moving), coming)
    assert submits(ready, Observations(moving=moving, capacity=Capacity(9, GIB, GIB)), coming)  # no queue, no reason to wait


# -- images --


def staged(*digests: str) -> list[Run]:
    return [a_run(State.STAGED, number, image=digest) for number, digest in enumerate(digests, 1)]


@pytest.mark.parametrize(("max_builds", "wanted"), [(1, ["a"]), (2, ["a", "b"]), (9, ["a", "b", "c"])])
def test_each_image_is_built_once_and_few_at_a_time(max_builds: int, wanted: list[str]) -> None:
    actions = plan(staged("a", "a", "b", "a", "c", "c"), Observations(), replace(POLICY, max_builds=max_builds), NOW)
    assert [(type(action), action.run.image) for action in actions] == [(Build, digest) for digest in wanted]


def test_a_build_under_way_counts() -> None:
    runs = staged("a", "b")
    images = {"a": Image(ImageState.BUILDING)}
    assert plan(runs, Observations(images=images), POLICY, NOW) == []
    assert plan(runs, Observations(images=images), replace(POLICY, max_builds=2), NOW) == [Build(runs[1])]


@pytest.mark.parametrize(("failed_ago", "waits_since", "wanted"), [
    (0, 1000, End),  # it failed while this run waited for it
    (599, 0, End),  # a new run of the same environment learns at once
    (601, 0, Build),  # but not for ever: what was broken outside may be mended
    (1599, 1000, End),
    (1601, 1000, Build),
])
def test_a_failed_build_speaks_for_a_while(failed_ago: float, waits_since: float, wanted: type[Action]) -> None:
    run = replace(staged("a")[0], updated_at=NOW - waits_since)
    action = only(run, Observations(images={"a": Image(ImageState.FAILED, "pip: no such package", NOW - failed_ago)}))
    assert type(action) is wanted
    if isinstance(action, End):
        assert (action.outcome, action.reason) == (Outcome.FAILED, "pip: no such package")


# -- limits --


@pytest.mark.parametrize(("max_duration", "lifetime", "wanted"), [
    (None, None, (3600, "walltime")),
    (60, None, (60, "max_duration")),
    (7200, None, (3600, "walltime")),
    (None, 90, (90, "lifetime")),
    (60, 90, (60, "max_duration")),
    (90, 60, (60, "lifetime")),
    (7200, 86400, (3600, "walltime")),
    (3600, None, (3600, "max_duration")),
])
def test_the_shortest_limit_counts(max_duration: float | None, lifetime: float | None, wanted: tuple[float, str]) -> None:
    run = a_run(State.READY, max_duration=max_duration, expires_at=None if lifetime is None else NOW + lifetime)
    action = only(run)
    assert isinstance(action, Submit)
    assert (action.limit, action.limit_name) == wanted


@pytest.mark.parametrize(("default", "max_duration", "wanted"), [
    (None, None, (3600, "walltime")),
    (600, None, (600, "default_duration")),
    (9999, None, (3600, "walltime")),
    (600, 1200, (1200, "max_duration")),
])
def test_who_says_nothing_gets_what_the_site_gives(default: float | None, max_duration: float | None,
                                                   wanted: tuple[float, str]) -> None:
    policy = replace(POLICY, default_duration=default)
    action = only(a_run(State.READY, max_duration=max_duration), policy=policy)
    assert isinstance(action, Submit)
    assert (action.limit, action.limit_name) == wanted


@pytest.mark.parametrize(("longest", "wanted"), [
    (None, (600, "max_duration")),
    (599, (599, "partition")),
    (600, (600, "max_duration")),  # it asked for no more
    (86400, (600, "max_duration")),
])
def test_a_partition_has_a_limit_of_its_own(longest: float | None, wanted: tuple[float, str]) -> None:
    place = Place("cpu", longest, "a100", "a note")
    action = only(a_run(State.READY, max_duration=600), Observations(places={1: place}))
    assert isinstance(action, Submit)
    assert (action.limit, action.limit_name, action.place) == (*wanted, place)


def test_the_job_says_which_partition_stopped_it() -> None:
    ended = end_of(a_run(State.RUNNING, partition="debug"), Observations(exits={1: an_exit(143, "partition")}))
    assert ended.outcome is Outcome.FAILED
    assert "partition debug" in ended.reason
    assert "max_walltime" in ended.reason


# -- ends --


@pytest.mark.parametrize(("code", "cause", "outcome", "says"), [
    (0, "exit", Outcome.SUCCEEDED, "finished"),
    (1, "exit", Outcome.FAILED, "exit code 1"),
    (143, "exit", Outcome.FAILED, "SIGTERM"),
    (137, "exit", Outcome.FAILED, "SIGKILL"),
    (143, "partition", Outcome.FAILED, "partition"),
    (143, "default_duration", Outcome.FAILED, "default_duration"),
    (73, "crashed", Outcome.LOST, "node was lost 3 times"),
    (128 + 99, "exit", Outcome.FAILED, "exit code 227"),
    (143, "max_duration", Outcome.FAILED, "max_duration"),
    (0, "max_duration", Outcome.FAILED, "max_duration"),
    (143, "walltime", Outcome.FAILED, "site"),
    (143, "lifetime", Outcome.EXPIRED, "lifetime"),
])
@pytest.mark.parametrize("state", [State.SUBMITTING, State.SUBMITTED, State.RUNNING])
def test_how_a_job_ended(state: State, code: int, cause: str, outcome: Outcome, says: str) -> None:
    ended = an_exit(code, cause)
    action = end_of(a_run(state), Observations(exits={1: ended}, jobs={1: GONE}))
    assert action.outcome is outcome
    assert says in action.reason
    assert action.exit is ended


def test_a_container_that_did_not_start_is_told_from_a_program_that_failed() -> None:
    seen = Observations(exits={1: an_exit(255)}, never_started=frozenset({1}))
    assert "container did not start" in end_of(a_run(State.RUNNING), seen).reason
    seen = Observations(exits={1: an_exit(255)}, never_started=frozenset({2}))
    assert "program ended with exit code 255" in end_of(a_run(State.RUNNING), seen).reason


@pytest.mark.parametrize("seen", [
    Observations(jobs={1: GONE}),
    Observations(exits={1: an_exit(143, "cancelled")}, jobs={1: GONE}),
    Observations(exits={1: an_exit(73, "setup")}),
    Observations(jobs={1: JobStatus(Phase.ENDED, "7", ending=Ending.NODE_FAIL, node="n1", seen_at=NOW - 60)}),
])
def test_infrastructure_failures_are_retried_with_a_cap(seen: Observations) -> None:
    for generation in (1, 2):
        action = only(a_run(State.RUNNING, generation=generation), seen)
        assert isinstance(action, Retry)
        assert f"{generation} of 2 retries" in action.reason
    last = end_of(a_run(State.RUNNING, generation=3), seen)
    assert last.outcome is Outcome.LOST
    assert "3 runs" in last.reason
    assert end_of(a_run(State.RUNNING), seen, replace(POLICY, retries=0)).outcome is Outcome.LOST


def test_the_programs_own_failures_are_not_retried() -> None:
    assert end_of(a_run(State.RUNNING), Observations(exits={1: an_exit(1)})).outcome is Outcome.FAILED


def test_too_big_for_the_site_is_rejected() -> None:
    action = end_of(a_run(State.RECEIVED), Observations(places={1: "asks for 9 cores"}))
    assert (action.outcome, action.reason) == (Outcome.REJECTED, "asks for 9 cores")


@pytest.mark.parametrize("state", [State.RECEIVED, State.STAGED, State.READY])
def test_a_lifetime_can_end_before_the_start(state: State) -> None:
    assert end_of(a_run(state, expires_at=NOW), Observations()).outcome is Outcome.EXPIRED
    assert not isinstance(only(a_run(state, expires_at=NOW + 1)), End)
    # Also while an earlier run of the same experiment holds it up.
    first = a_run(State.RUNNING, 1, key="same")
    late = a_run(state, 2, key="same", expires_at=NOW)
    assert [action.run for action in plan([first, late], Observations(), POLICY, NOW)] == [late]


@pytest.mark.parametrize("job", [UNKNOWN, RUNNING])
@pytest.mark.parametrize("state", sorted(WITH_SCHEDULER))
def test_a_job_that_may_run_is_not_expired_by_the_plan(state: State, job: JobStatus) -> None:
    """It looks at the clock itself."""
    run = a_run(state, expires_at=NOW - 1, host="n1")
    assert not isinstance(only(run, Observations(jobs={1: job})), (Cancel, End))


@pytest.mark.parametrize("state", [State.SUBMITTED, State.RUNNING])
def test_a_job_that_waits_beyond_its_lifetime_is_cancelled_and_expired(state: State) -> None:
    waits = Observations(jobs={1: PENDING})
    assert not isinstance(only(a_run(state, expires_at=NOW + 1), waits), Cancel)
    action = only(a_run(state, expires_at=NOW), waits)
    assert action == Cancel(a_run(state, expires_at=NOW), EXPIRED)
    told = a_run(state, expires_at=NOW, cancelling=EXPIRED, cancelled_at=NOW)
    assert only(told, waits) is None
    for seen in (Observations(jobs={1: GONE}),
                 Observations(jobs={1: JobStatus(Phase.ENDED, "7", ending=Ending.CANCELLED, seen_at=NOW)}),  # it never had a node
                 Observations(jobs={1: PENDING}, exits={1: an_exit(143, "preempted")}),
                 Observations(exits={1: an_exit(143, "cancelled")})):
        action = end_of(told, seen)
        assert (action.outcome, action.reason) == (Outcome.EXPIRED, EXPIRED)


@pytest.mark.parametrize("state", [State.RECEIVED, State.STAGED, State.READY, State.SUBMITTED, State.RUNNING])
def test_a_deleted_queue_cancels_after_the_grace(state: State) -> None:
    job = {1: PENDING if state is State.SUBMITTED else RUNNING}
    early = only(a_run(state), Observations(jobs=job, queues_gone={"q": NOW - 59}))
    assert not isinstance(early, (End, Cancel))
    assert only(a_run(state), Observations(jobs=job, queues_gone={"other": 0.0})) == only(a_run(state),
                                                                                         Observations(jobs=job))
    action = only(a_run(state), Observations(jobs=job, queues_gone={"q": NOW - 60}))
    assert isinstance(action, Cancel if state in WITH_SCHEDULER else End)
    assert "queue q was deleted" in action.reason
    if isinstance(action, End):
        assert action.outcome is Outcome.CANCELLED


@pytest.mark.parametrize("job", [RUNNING, PENDING, UNKNOWN])
def test_cancelling_is_repeated_but_not_at_every_look(job: JobStatus) -> None:
    seen = Observations(jobs={1: job})
    asked = a_run(State.RUNNING, cancelling="why", updated_at=NOW - 9999)
    assert only(asked, seen) == Cancel(asked, "why")
    # The site's grace, and a little more for what stands between; what goes on in the journal meanwhile is no matter.
    for ago, again in ((0, False), (39, False), (40, True), (9999, True)):
        told = replace(asked, cancelled_at=NOW - ago, updated_at=NOW)
        assert only(told, seen) == (Cancel(told, "why", now=True) if again else None)


def test_a_job_that_runs_is_cancelled_otherwise_than_one_that_waits() -> None:
    """So it is noted first that it runs, and one of which nothing is known at the moment is not touched."""
    asked = a_run(State.SUBMITTED, cancelling="why")
    assert only(asked, Observations(jobs={1: RUNNING})) == Running(asked, "n1")
    assert only(asked, Observations(jobs={1: PENDING})) == Cancel(asked, "why")
    assert only(asked, Observations(jobs={1: UNKNOWN})) is None
    stopped = Observations(jobs={1: UNKNOWN}, stopped=frozenset({1}))
    noted = only(a_run(State.SUBMITTED), stopped)
    assert isinstance(noted, Cancel)
    assert noted.is_noted_only
    # What it waits for is no matter any more.
    assert only(replace(asked, cancelled_at=NOW), Observations(jobs={1: replace(PENDING, reason="Priority")})) is None


@pytest.mark.parametrize("state", sorted(ACTIVE - {State.SUBMITTING, State.ENDING}))
def test_a_user_who_stops_his_experiment_is_obeyed(state: State) -> None:
    seen = Observations(jobs={1: PENDING if state is State.SUBMITTED else RUNNING}, stopped=frozenset({1}))
    action = only(a_run(state), seen)
    assert isinstance(action, Cancel if state in WITH_SCHEDULER else End)
    assert "stopped by its user" in action.reason
    assert not isinstance(only(a_run(state), replace(seen, stopped=frozenset({2}))), (Cancel, End))


def test_a_submission_without_an_answer_is_not_cancelled_before_it_is_found() -> None:
    """There is no id to cancel, and forgetting it would leave a job that nobody watches."""
    asked = a_run(State.SUBMITTING, cancelling="why")
    assert only(asked, Observations(jobs={1: UNKNOWN})) is None
    assert isinstance(only(asked, Observations(jobs={1: PENDING})), Adopt)
    gone = only(asked, Observations(jobs={1: GONE}))
    assert isinstance(gone, SubmitAgain)
    assert end_of(replace(asked, state=State.READY), Observations()).outcome is Outcome.CANCELLED


@pytest.mark.parametrize(("seen", "outcome"), [
    (Observations(exits={1: an_exit(143, "cancelled")}), Outcome.CANCELLED),
    (Observations(jobs={1: GONE}), Outcome.CANCELLED),
    (Observations(jobs={1: GONE}, exits={1: an_exit(143, "preempted")}), Outcome.CANCELLED),
    (Observations(exits={1: an_exit(143, "preempted")}, jobs={1: PENDING}), Outcome.CANCELLED),
    (Observations(exits={1: an_exit(73, "setup")}), Outcome.CANCELLED),
    # It was faster than the cancelling.
    (Observations(exits={1: an_exit(0)}), Outcome.SUCCEEDED),
    (Observations(exits={1: an_exit(1)}), Outcome.FAILED),
])
def test_how_a_cancelled_job_ends(seen: Observations, outcome: Outcome) -> None:
    action = end_of(a_run(State.RUNNING, cancelling="its queue was deleted"), seen)
    assert action.outcome is outcome
    if outcome is Outcome.CANCELLED:
        assert action.reason == "its queue was deleted"


def test_planning_changes_nothing() -> None:
    runs = [a_run(state, number) for number, state in enumerate(sorted(ACTIVE), 1)]
    seen = Observations(jobs={6: RUNNING, 7: GONE}, capacity=Capacity(4, GIB, GIB, CARDS))
    assert plan(runs, seen, POLICY, NOW) == plan(iter(runs), seen, POLICY, NOW)
