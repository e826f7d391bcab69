"""The planner: every state against every observation, who comes first, and how runs end."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

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
    backoff,
    plan,
    waiting_for,
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

NOW = 1_000_000.0
POLICY = Policy(max_duration=3600, retries=2, queue_gone_grace=60, settles=30)
GIB = 2**30

MOVES = {
    Stage: State.STAGED, Define: None, Build: None, Ready: State.READY, Submit: State.SUBMITTING, Adopt: State.SUBMITTED,
    SubmitAgain: State.READY, Running: State.RUNNING, Cancel: None, Retry: State.RECEIVED, End: State.ENDING,
    Return: State.DONE,
}
"""To what state each action brings its run, as the tick does it; None: it stays."""


def a_run(state: State, number: int = 1, **fields: Any) -> Run:
    fields = {"queue": "q", "key": f"key{number}", "updated_at": NOW - 1000, "received_at": NOW - 2000, **fields}
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
CAUSES = ("exit", "max_duration", "walltime", "lifetime", "cancelled", "setup")


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_whatever_is_seen_the_move_is_legal(state: State) -> None:
    seen_kinds = set()
    for image, job, ended, found, gone, refused, cancelling, generation, has_digest in product(
            IMAGES, (None, *Seen), (None, *((code, cause) for code in (0, 143) for cause in CAUSES)), (False, True),
            (None, NOW - 61), (False, True), ("", "by hand"), (1, 3), (False, True)):
        run = a_run(state, image=DIGEST if has_digest else "", cancelling=cancelling, generation=generation)
        seen = Observations(
            jobs={} if job is None else {1: job}, exits={1: an_exit(*ended)} if ended else {},
            found={1: "job7"} if found else {}, images=image, refusals={1: "too big"} if refused else {},
            capacity=Capacity(1, GIB, GIB), queues_gone={} if gone is None else {"q": gone})
        action = only(run, seen)
        if action is None:
            continue
        seen_kinds.add(type(action))
        to = MOVES[type(action)]
        assert to is None or to in TRANSITIONS[state], (action, seen)
        if isinstance(action, (End, Retry)):
            assert action.reason, (action, seen)
    assert seen_kinds  # no state is a dead end


def test_an_end_of_every_state_is_a_legal_move() -> None:
    """A step that fails for good ends its run, in whatever state it is."""
    assert all(State.ENDING in TRANSITIONS[state] for state in ACTIVE - {State.ENDING})
    assert TRANSITIONS[State.DONE] == frozenset()


@pytest.mark.parametrize(("fields", "seen", "wanted"), [
    ({"state": State.RECEIVED}, {}, Stage),
    ({"state": State.RECEIVED}, {"refusals": {1: "asks for 9 cores"}}, End),
    ({"state": State.RECEIVED}, {"refusals": {2: "another run"}}, Stage),
    ({"state": State.STAGED}, {}, Define),
    ({"state": State.STAGED, "image": DIGEST}, {}, Build),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.MISSING)}}, Build),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.BUILDING)}}, None),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.BUILT)}}, Ready),
    ({"state": State.STAGED, "image": DIGEST}, {"images": {DIGEST: Image(ImageState.FAILED, "x", NOW)}}, End),
    ({"state": State.READY}, {}, Submit),
    ({"state": State.READY}, {"capacity": Capacity(1, 0, 0)}, Submit),
    ({"state": State.READY}, {"capacity": Capacity(0, 0, 0)}, None),
    ({"state": State.SUBMITTING}, {}, None),
    ({"state": State.SUBMITTING}, {"found": {1: "7@host"}}, Adopt),
    ({"state": State.SUBMITTING}, {"jobs": {1: Seen.UNKNOWN}}, None),
    ({"state": State.SUBMITTING}, {"jobs": {1: Seen.GONE}}, SubmitAgain),
    ({"state": State.SUBMITTING, "updated_at": NOW - 29}, {"jobs": {1: Seen.GONE}}, None),
    ({"state": State.SUBMITTING, "updated_at": NOW - 30}, {"jobs": {1: Seen.GONE}}, SubmitAgain),
    ({"state": State.SUBMITTING}, {"exits": {1: an_exit()}}, End),
    ({"state": State.SUBMITTING}, {"exits": {1: an_exit(143, "cancelled")}}, Retry),
    ({"state": State.SUBMITTED}, {}, None),
    ({"state": State.SUBMITTED}, {"jobs": {1: Seen.PENDING}}, None),
    ({"state": State.SUBMITTED}, {"jobs": {1: Seen.UNKNOWN}}, None),
    ({"state": State.SUBMITTED}, {"jobs": {1: Seen.RUNNING}}, Running),
    ({"state": State.SUBMITTED}, {"jobs": {1: Seen.GONE}}, Retry),
    ({"state": State.SUBMITTED}, {"jobs": {1: Seen.GONE}, "exits": {1: an_exit()}}, End),
    ({"state": State.SUBMITTED}, {"jobs": {1: Seen.RUNNING}, "exits": {1: an_exit()}}, End),
    ({"state": State.RUNNING}, {}, None),
    ({"state": State.RUNNING}, {"jobs": {1: Seen.RUNNING}}, None),
    ({"state": State.RUNNING}, {"jobs": {1: Seen.PENDING}}, None),
    ({"state": State.RUNNING}, {"jobs": {1: Seen.UNKNOWN}}, None),
    ({"state": State.RUNNING}, {"jobs": {1: Seen.GONE}}, Retry),
    ({"state": State.RUNNING}, {"exits": {1: an_exit(1)}}, End),
    ({"state": State.RUNNING}, {"exits": {1: an_exit(143, "cancelled")}}, Retry),
    ({"state": State.ENDING}, {}, Return),
    ({"state": State.ENDING}, {"jobs": {1: Seen.GONE}, "queues_gone": {"q": 0.0}}, Return),
])
def test_next_action(fields: dict[str, Any], seen: dict[str, Any], wanted: type[Action] | None) -> None:
    run = a_run(**fields)
    action = only(run, Observations(**seen))
    assert type(action) is (type(None) if wanted is None else wanted)
    assert action is None or action.run is run


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_a_run_that_is_held_back_is_left_alone(state: State) -> None:
    seen = Observations(jobs={1: Seen.GONE}, exits={1: an_exit()}, queues_gone={"q": 0.0})
    held = a_run(state, not_before=NOW + 1, expires_at=NOW - 1)
    assert only(held, seen) is None
    assert only(held, seen, now=NOW + 1) is not None


def test_adopt_takes_the_id_that_was_found() -> None:
    assert only(a_run(State.SUBMITTING), Observations(found={1: "7@host"})) == Adopt(a_run(State.SUBMITTING), "7@host")


def test_backoff_grows_and_then_stays() -> None:
    waits = [backoff(tries) for tries in range(1, 20)]
    assert waits == sorted(waits)
    assert waits[0] > 0
    assert waits[-1] == waits[10] <= 3600


@pytest.mark.parametrize(("fields", "images", "wanted"), [
    ({"state": State.STAGED}, {}, ""),
    ({"state": State.STAGED, "image": DIGEST}, {DIGEST: Image(ImageState.BUILDING)}, "image"),
    ({"state": State.STAGED, "image": DIGEST}, {DIGEST: Image(ImageState.MISSING)}, "image"),
    ({"state": State.STAGED, "image": DIGEST}, {DIGEST: Image(ImageState.BUILT)}, ""),
    ({"state": State.READY}, {}, "cores"),
    ({"state": State.RUNNING}, {}, ""),
])
def test_waiting_for(fields: dict[str, Any], images: dict[str, Image], wanted: str) -> None:
    said = waiting_for(a_run(**fields), Observations(images=images))
    assert wanted in said if wanted else said == ""


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
    assert plan([first, second], Observations(jobs={1: Seen.RUNNING}), POLICY, NOW) == []
    assert plan([replace(first, state=State.ENDING), second], Observations(), POLICY, NOW) == [
        Return(replace(first, state=State.ENDING))]
    assert plan([second], Observations(), POLICY, NOW) == [Stage(second)]
    held = a_run(State.READY, 1, key="same", not_before=NOW + 9)
    assert plan([held, second], Observations(), POLICY, NOW) == []
    elsewhere = replace(second, queue="other")
    assert plan([held, elsewhere], Observations(), POLICY, NOW) == [Stage(elsewhere)]


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


# -- ends --


@pytest.mark.parametrize(("code", "cause", "outcome", "says"), [
    (0, "exit", Outcome.SUCCEEDED, "finished"),
    (1, "exit", Outcome.FAILED, "exit code 1"),
    (143, "exit", Outcome.FAILED, "SIGTERM"),
    (137, "exit", Outcome.FAILED, "SIGKILL"),
    (128 + 99, "exit", Outcome.FAILED, "exit code 227"),
    (143, "max_duration", Outcome.FAILED, "max_duration"),
    (0, "max_duration", Outcome.FAILED, "max_duration"),
    (143, "walltime", Outcome.FAILED, "site"),
    (143, "lifetime", Outcome.EXPIRED, "lifetime"),
])
@pytest.mark.parametrize("state", [State.SUBMITTING, State.SUBMITTED, State.RUNNING])
def test_how_a_job_ended(state: State, code: int, cause: str, outcome: Outcome, says: str) -> None:
    ended = an_exit(code, cause)
    action = end_of(a_run(state), Observations(exits={1: ended}, jobs={1: Seen.GONE}))
    assert action.outcome is outcome
    assert says in action.reason
    assert action.exit is ended


def test_a_container_that_did_not_start_is_told_from_a_program_that_failed() -> None:
    seen = Observations(exits={1: an_exit(255)}, never_started=frozenset({1}))
    assert "container did not start" in end_of(a_run(State.RUNNING), seen).reason
    seen = Observations(exits={1: an_exit(255)}, never_started=frozenset({2}))
    assert "program ended with exit code 255" in end_of(a_run(State.RUNNING), seen).reason


@pytest.mark.parametrize("seen", [
    Observations(jobs={1: Seen.GONE}), Observations(exits={1: an_exit(143, "cancelled")})])
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
    action = end_of(a_run(State.RECEIVED), Observations(refusals={1: "asks for 9 cores"}))
    assert (action.outcome, action.reason) == (Outcome.REJECTED, "asks for 9 cores")


@pytest.mark.parametrize("state", [State.RECEIVED, State.STAGED, State.READY])
def test_a_lifetime_can_end_before_the_start(state: State) -> None:
    assert end_of(a_run(state, expires_at=NOW), Observations()).outcome is Outcome.EXPIRED
    assert not isinstance(only(a_run(state, expires_at=NOW + 1)), End)
    # Also while an earlier run of the same experiment holds it up.
    first = a_run(State.RUNNING, 1, key="same")
    late = a_run(state, 2, key="same", expires_at=NOW)
    assert [action.run for action in plan([first, late], Observations(), POLICY, NOW)] == [late]


@pytest.mark.parametrize("state", sorted(WITH_SCHEDULER))
def test_a_job_with_the_scheduler_is_not_expired_by_the_plan(state: State) -> None:
    """Its own time limit ends it."""
    assert only(a_run(state, expires_at=NOW - 1), Observations(jobs={1: Seen.UNKNOWN})) is None


@pytest.mark.parametrize("state", [State.RECEIVED, State.STAGED, State.READY, State.SUBMITTED, State.RUNNING])
def test_a_deleted_queue_cancels_after_the_grace(state: State) -> None:
    job = {1: Seen.PENDING if state is State.SUBMITTED else Seen.RUNNING}
    early = only(a_run(state), Observations(jobs=job, queues_gone={"q": NOW - 59}))
    assert not isinstance(early, (End, Cancel))
    assert only(a_run(state), Observations(jobs=job, queues_gone={"other": 0.0})) == only(a_run(state),
                                                                                         Observations(jobs=job))
    action = only(a_run(state), Observations(jobs=job, queues_gone={"q": NOW - 60}))
    assert isinstance(action, Cancel if state in WITH_SCHEDULER else End)
    assert "queue q was deleted" in action.reason
    if isinstance(action, End):
        assert action.outcome is Outcome.CANCELLED


def test_cancelling_is_repeated_but_not_at_every_look() -> None:
    seen = Observations(jobs={1: Seen.RUNNING}, queues_gone={"q": 0.0})
    assert only(a_run(State.RUNNING, cancelling="why", updated_at=NOW - 59), seen) is None
    again = only(a_run(State.RUNNING, cancelling="why", updated_at=NOW - 60), seen)
    assert isinstance(again, Cancel)
    assert again.reason == "why"


@pytest.mark.parametrize(("seen", "outcome"), [
    (Observations(exits={1: an_exit(143, "cancelled")}), Outcome.CANCELLED),
    (Observations(jobs={1: Seen.GONE}), Outcome.CANCELLED),
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
    seen = Observations(jobs={6: Seen.RUNNING, 7: Seen.GONE}, capacity=Capacity(4, GIB, GIB, CARDS))
    assert plan(runs, seen, POLICY, NOW) == plan(iter(runs), seen, POLICY, NOW)
