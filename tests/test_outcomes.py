"""How runs end: what the job left, what the scheduler says, and what is made of the two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpcrunner.engine.actions import Action, Cancel, End, Observations, Policy, Resume, Retry, Running, Waiting
from hpcrunner.engine.outcomes import wants_explanation
from hpcrunner.engine.plan import plan
from hpcrunner.model import UNKNOWN, Ending, Exit, JobStatus, Outcome, Phase, Request, Run, State

NOW = 1_000_000.0
GRACE = 60.0
POLICY = Policy(max_duration=3600, retries=2, queue_gone_grace=60, settles=30, exit_grace=GRACE)
GIB = 2**30
BY_SLURM = set(Ending) - {Ending.COMPLETED, Ending.FAILED}
"""Ends that Slurm brings about; of the others the job itself knows more."""
CAUSES = ("exit", "max_duration", "default_duration", "walltime", "partition", "lifetime", "cancelled", "preempted", "setup", "crashed")


def a_run(state: State = State.RUNNING, **fields: Any) -> Run:
    return Run(id=1, queue="q", key="key", state=state, **{
        "job_id": "45", "host": "n1", "told": "running" if state is State.RUNNING else "waiting", "submitted_at": NOW - 1000, "request": Request(memory=4 * GIB), **fields})


def an_exit(code: int = 0, cause: str = "exit", ago: float = 30) -> Exit:
    return Exit(code, cause, NOW - 90 - ago, NOW - ago, "n1")


def ended(ending: Ending, **fields: Any) -> JobStatus:
    return JobStatus(Phase.ENDED, "45", reason=ending.value, ending=ending, **{"node": "n1", "seen_at": NOW - GRACE, **fields})


def action_for(run: Run, job: JobStatus, left: Exit | None = None, *, begun: bool = True, never_started: bool = False,
               now: float = NOW, policy: Policy = POLICY) -> Action | None:
    seen = Observations(jobs={1: job}, exits={1: left} if left else {}, begun=frozenset({1} if begun else ()),
                        never_started=frozenset({1} if never_started else ()))
    actions = plan([run], seen, policy, now)
    return actions[0] if actions else None


def end_of(run: Run, job: JobStatus, left: Exit | None = None, **settings: Any) -> End:
    action = action_for(run, job, left, **settings)
    assert isinstance(action, End), action
    return action


# -- the scheduler's word alone --

TOLD: dict[Ending, tuple[type[Action], Outcome | None, str]] = {
    Ending.OUT_OF_MEMORY: (End, Outcome.FAILED, "ask for more with resources_needed.ram"),
    Ending.TIMEOUT: (End, Outcome.FAILED, "ask for a longer max_duration"),
    Ending.DEADLINE: (End, Outcome.FAILED, "a shorter max_duration"),
    Ending.CANCELLED: (End, Outcome.CANCELLED, "submit it again"),
    Ending.PREEMPTED: (Resume, None, "continues in its run directory"),
    Ending.NODE_FAIL: (Retry, None, "run again (1 of 2 retries)"),
    Ending.BOOT_FAIL: (Retry, None, "run again (1 of 2 retries)"),
    Ending.REVOKED: (Retry, None, "run again (1 of 2 retries)"),
}
"""What becomes of a job that Slurm ended, and what its user reads of what he can do."""


def test_every_end_by_slurm_is_in_the_table() -> None:
    assert TOLD.keys() == BY_SLURM


@pytest.mark.parametrize("state", [State.SUBMITTED, State.RUNNING])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("ending", sorted(TOLD))
def test_what_slurm_did_is_told(ending: Ending, begun: bool, state: State) -> None:
    kind, outcome, says = TOLD[ending]
    action = action_for(a_run(state), ended(ending), begun=begun)
    assert type(action) is kind
    assert isinstance(action, (End, Retry, Resume))
    assert f"({ending.value})" in action.reason
    assert says in action.reason
    assert not isinstance(action, End) or action.outcome is outcome


@pytest.mark.parametrize("ending", sorted(Ending))
def test_whatever_ended_a_cancelled_job_it_was_cancelled(ending: Ending) -> None:
    action = end_of(a_run(cancelling="by hpcrunner cancel"), ended(ending))
    assert (action.outcome, action.reason, action.exit) == (Outcome.CANCELLED, "by hpcrunner cancel", None)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("ending", sorted(Ending))
@pytest.mark.parametrize("cancelling", ["", "by hpcrunner cancel"])
def test_an_exit_file_may_appear_late(ending: Ending, begun: bool, cancelling: str) -> None:
    """On network file systems. Slurm's word for the end of a job whose program had ended just before, as when its node
    fails in that moment, must not have it run again."""
    run, job = a_run(cancelling=cancelling, cancelled_at=NOW), ended(ending, code=0, seen_at=NOW)
    assert action_for(run, job, begun=begun, now=NOW + GRACE - 1) is None
    assert end_of(run, job, an_exit(0), begun=begun, now=NOW + GRACE - 1).outcome is Outcome.SUCCEEDED
    assert action_for(run, job, begun=begun, now=NOW + GRACE) is not None


@pytest.mark.parametrize("ending", sorted({Ending.CANCELLED, Ending.DEADLINE, Ending.BOOT_FAIL, Ending.REVOKED}))
@pytest.mark.parametrize("cancelling", ["", "by hpcrunner cancel"])
def test_a_job_that_never_had_a_node_has_left_nothing_to_wait_for(ending: Ending, cancelling: str) -> None:
    run, job = a_run(State.SUBMITTED, cancelling=cancelling), ended(ending, node="", seen_at=NOW)
    assert isinstance(action_for(run, job, begun=False), (End, Retry))
    assert action_for(run, job, begun=True) is None  # It ran once, and was requeued.


def test_a_job_that_never_began_could_not_see_its_run_directory() -> None:
    action = action_for(a_run(), ended(Ending.FAILED, code=73), begun=False)
    assert isinstance(action, Retry)
    assert "could not be started on n1 (FAILED)" in action.reason
    assert "working_dir" in action.reason
    assert action.avoid == "n1"


def test_a_job_that_slurm_starts_in_the_wrong_folder_completes_and_did_not_run() -> None:
    """Where --chdir is missing on the node, Slurm runs it in /tmp: COMPLETED, exit code 0."""
    action = action_for(a_run(), ended(Ending.COMPLETED, code=0), begun=False)
    assert isinstance(action, Retry)
    assert "could not be started on n1 (COMPLETED)" in action.reason


def test_a_job_script_that_was_killed_is_run_again_elsewhere() -> None:
    action = action_for(a_run(), ended(Ending.FAILED, code=0, signal=9))
    assert isinstance(action, Retry)
    assert "killed by signal 9 on n1 (FAILED)" in action.reason
    assert action.avoid == "n1"
    # Without accounting nothing is known of code and signal.
    action = action_for(a_run(), ended(Ending.FAILED, node=""))
    assert isinstance(action, Retry)
    assert "ended without saying how (FAILED)" in action.reason
    assert action.avoid == ""


def test_what_has_run_to_its_end_is_not_run_again() -> None:
    """The disk was full: it could leave no exit file."""
    for job in (ended(Ending.COMPLETED, code=0), ended(Ending.COMPLETED)):
        action = action_for(a_run(), job)
        assert isinstance(action, End)
        assert (action.outcome, action.reason) == (
            Outcome.SUCCEEDED, "finished, by the scheduler's word (COMPLETED); it could not leave its exit file: was the disk full?")


def test_the_exit_code_of_accounting_is_the_last_resort() -> None:
    """Accounting of Slurm before 25.11 shows 128 and more as what is left after subtracting 128."""
    action = end_of(a_run(), ended(Ending.FAILED, code=7))
    assert action.outcome is Outcome.FAILED
    assert "exit code 7 or 135" in action.reason
    assert "accounting" in action.reason


@pytest.mark.parametrize(("run", "job", "says"), [
    (a_run(), ended(Ending.OUT_OF_MEMORY), "it had 4 GiB;"),
    (a_run(), ended(Ending.OUT_OF_MEMORY, peak_memory=5 * GIB), "it had 4 GiB and used 5 GiB;"),
    (a_run(request=Request()), ended(Ending.OUT_OF_MEMORY), "it had the site's default;"),
    (a_run(), ended(Ending.CANCELLED, by="ada"), "by ada"),
    (a_run(), ended(Ending.CANCELLED), "accounting would tell by whom"),
    (a_run(), ended(Ending.NODE_FAIL, node="n7"), "its node n7 went down"),
    (a_run(host="n8"), ended(Ending.NODE_FAIL, node=""), "its node n8 went down"),
    (a_run(), ended(Ending.BOOT_FAIL, node="n7"), "its node n7 could not be booted"),
    (a_run(), ended(Ending.PREEMPTED, node="n7"), "preempted on n7"),
    (a_run(), ended(Ending.REVOKED), "another cluster"),
])
def test_reasons_say_what_is_known(run: Run, job: JobStatus, says: str) -> None:
    action = action_for(run, job)
    assert isinstance(action, (End, Retry, Resume))
    assert says in action.reason


# -- both --


@pytest.mark.parametrize("job", [*map(ended, sorted(Ending)), JobStatus(Phase.GONE), UNKNOWN,
                                 JobStatus(Phase.RUNNING, "45", node="n1"), JobStatus(Phase.PENDING, "45")],
                         ids=lambda job: job.reason or job.phase.value)
@pytest.mark.parametrize(("code", "cause", "outcome"), [
    (0, "exit", Outcome.SUCCEEDED), (1, "exit", Outcome.FAILED), (130, "exit", Outcome.FAILED),
    (143, "max_duration", Outcome.FAILED), (143, "walltime", Outcome.FAILED), (143, "partition", Outcome.FAILED),
    (143, "lifetime", Outcome.EXPIRED), (73, "crashed", Outcome.LOST)])
def test_a_job_that_told_its_own_end_is_believed(job: JobStatus, code: int, cause: str, outcome: Outcome) -> None:
    """Whatever the scheduler says, and without asking it."""
    left = an_exit(code, cause)
    assert not wants_explanation(a_run(), left)
    for run in (a_run(), a_run(cancelling="by hand")):
        action = end_of(run, job, left)
        assert (action.outcome, action.exit) == (outcome, left)


def test_a_program_that_sigterm_ended_was_told_so_by_somebody() -> None:
    """Slurm's SIGTERM reaches the program too, maybe before the job script knows of it."""
    assert wants_explanation(a_run(), an_exit(143, "exit"))


@pytest.mark.parametrize("ending", sorted(Ending))
@pytest.mark.parametrize(("code", "cause"), [(143, "cancelled"), (143, "preempted"), (0, "preempted"), (137, "exit")])
def test_what_came_from_outside_is_explained_by_the_scheduler(ending: Ending, code: int, cause: str) -> None:
    run, left = a_run(partition="cpu"), an_exit(code, cause)
    assert wants_explanation(run, left)
    action = action_for(run, ended(ending), left)
    if ending in BY_SLURM:
        kind, outcome, says = TOLD[ending]
        assert f"({ending.value})" in getattr(action, "reason", "")
        assert says in getattr(action, "reason", "")
    else:
        kind, outcome, says = {
            "cancelled": (Retry, None, "stopped from outside (SIGTERM)"),
            "preempted": (Resume, None, "continues in its run directory"),
            "exit": (End, Outcome.FAILED, "SIGKILL")}[cause]
        assert says in getattr(action, "reason", "")
    assert type(action) is kind
    assert not isinstance(action, End) or (action.outcome, action.exit) == (outcome, left)


@pytest.mark.parametrize("ending", sorted(Ending))
@pytest.mark.parametrize("cause", ["cancelled", "preempted"])
def test_what_we_did_ourselves_needs_no_explanation(ending: Ending, cause: str) -> None:
    run, left = a_run(cancelling="by hand"), an_exit(143, cause)
    assert not wants_explanation(run, left)
    for job in (ended(ending), UNKNOWN, JobStatus(Phase.GONE), JobStatus(Phase.PENDING, "45"),
                JobStatus(Phase.RUNNING, "45")):
        action = end_of(run, job, left)
        assert (action.outcome, action.reason, action.exit) == (Outcome.CANCELLED, "by hand", left)


@pytest.mark.parametrize("ending", [Ending.CANCELLED, Ending.PREEMPTED, Ending.NODE_FAIL, Ending.BOOT_FAIL, Ending.REVOKED])
def test_a_program_that_was_killed_while_it_was_cancelled_is_neither_retried_nor_explained(ending: Ending) -> None:
    action = end_of(a_run(cancelling="by hand"), ended(ending), an_exit(137))
    assert (action.outcome, action.reason) == (Outcome.CANCELLED, "by hand")


@pytest.mark.parametrize("cause", [cause for cause in CAUSES if cause not in ("cancelled", "preempted", "exit")])
def test_only_ends_from_outside_wait(cause: str) -> None:
    for code in (0, 1, 137, 143):
        assert not wants_explanation(a_run(), an_exit(code, cause))


def test_exit_code_137_waits_for_the_explanation() -> None:
    run, left = a_run(), an_exit(137, ago=GRACE - 1)
    assert action_for(run, UNKNOWN, left) is None
    assert action_for(run, JobStatus(Phase.RUNNING, "45", node="n1"), left) is None  # COMPLETING
    explained = end_of(run, ended(Ending.OUT_OF_MEMORY, peak_memory=5 * GIB), left)
    assert "OUT_OF_MEMORY" in explained.reason
    assert "used 5 GiB" in explained.reason
    assert explained.exit is left
    # It was killed by something else.
    for job in (ended(Ending.FAILED), ended(Ending.COMPLETED), JobStatus(Phase.GONE)):
        assert "SIGKILL" in end_of(run, job, left).reason
    # A scheduler that can't tell is not waited for for ever: the job did end.
    assert "SIGKILL" in end_of(run, UNKNOWN, an_exit(137, ago=GRACE)).reason


@pytest.mark.parametrize("cause", ["cancelled", "preempted"])
def test_a_job_that_was_stopped_from_outside_waits_for_the_explanation_however_long(cause: str) -> None:
    """It may be about to be started again, under the same id: then nothing may go on in its place."""
    left = an_exit(143, cause, ago=99999)
    assert action_for(a_run(), UNKNOWN, left) is None
    assert isinstance(action_for(a_run(), JobStatus(Phase.GONE), left), Retry if cause == "cancelled" else Resume)


@pytest.mark.parametrize("left", [an_exit(143, "cancelled"), an_exit(143, "preempted"), an_exit(0, "preempted"),
                                  an_exit(137)])
def test_a_job_that_was_requeued_has_a_stale_exit_file(left: Exit) -> None:
    """Slurm took its node, and has it wait, or run, again: what it left the first time is no end."""
    waits, runs = JobStatus(Phase.PENDING, "45", reason="BeginTime"), JobStatus(Phase.RUNNING, "45", node="n2")
    was_running = a_run()
    assert action_for(was_running, waits, left) == Waiting(was_running, "BeginTime")
    queued = a_run(State.SUBMITTED, waiting="BeginTime")
    assert action_for(queued, waits, left) is None
    assert action_for(queued, runs, left) == Running(queued, "n2")
    assert action_for(a_run(host="n2"), runs, left) is None
    # The next time it says it anew.
    assert end_of(a_run(), ended(Ending.COMPLETED), an_exit(0)).outcome is Outcome.SUCCEEDED
    # What somebody wants of it counts all the same.
    late = replace(queued, expires_at=NOW)
    assert isinstance(action_for(late, waits, left), Cancel)


def test_a_preempted_job_that_waits_can_be_cancelled() -> None:
    told = a_run(State.SUBMITTED, cancelling="by hand", cancelled_at=NOW)
    for left in (an_exit(143, "preempted"), an_exit(143, "cancelled")):
        action = end_of(told, JobStatus(Phase.PENDING, "45"), left)
        assert (action.outcome, action.reason) == (Outcome.CANCELLED, "by hand")


def test_a_container_that_was_killed_at_its_start_says_so() -> None:
    killed = end_of(a_run(), ended(Ending.FAILED), an_exit(137), never_started=True)
    assert "container did not start" in killed.reason
    assert "OUT_OF_MEMORY" in end_of(a_run(), ended(Ending.OUT_OF_MEMORY), an_exit(137), never_started=True).reason


# -- trying again --


@pytest.mark.parametrize("job", [ended(Ending.NODE_FAIL), ended(Ending.BOOT_FAIL), ended(Ending.FAILED),
                                 JobStatus(Phase.GONE)], ids=lambda job: job.reason or job.phase.value)
def test_retries_have_a_cap_and_avoid_the_node(job: JobStatus) -> None:
    for generation in (1, 2):
        action = action_for(a_run(generation=generation), job)
        assert isinstance(action, Retry)
        assert f"run again ({generation} of 2 retries)" in action.reason
        assert action.avoid == "n1"
    last = end_of(a_run(generation=3), job)
    assert last.outcome is Outcome.LOST
    assert "given up after 3 runs" in last.reason
    assert end_of(a_run(), job, policy=replace(POLICY, retries=0)).outcome is Outcome.LOST


def test_a_node_that_was_not_at_fault_is_not_avoided() -> None:
    for job, left in ((ended(Ending.REVOKED), None), (ended(Ending.FAILED), an_exit(143, "cancelled"))):
        action = action_for(a_run(), job, left)
        assert isinstance(action, Retry)
        assert action.avoid == ""


def test_a_node_where_modules_cant_be_loaded_is_avoided() -> None:
    action = action_for(a_run(), UNKNOWN, an_exit(73, "setup"))
    assert isinstance(action, Retry)
    assert "`module load` or the site's prologue failed" in action.reason
    assert action.avoid == "n1"


@pytest.mark.parametrize("generation", [1, 3, 99])
def test_preemption_takes_no_retries(generation: int) -> None:
    for job, left in ((ended(Ending.PREEMPTED), None), (ended(Ending.PREEMPTED), an_exit(143, "preempted")),
                      (JobStatus(Phase.GONE), an_exit(0, "preempted"))):
        assert isinstance(action_for(a_run(generation=generation, resumes=7), job, left), Resume)
