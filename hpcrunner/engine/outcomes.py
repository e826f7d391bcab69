"""How a run ended, told from what its job left and from what the scheduler says. Pure.

A job's own word counts; the scheduler explains what a job can't know of its own end: that it ran out of memory, that
its node went down. Every reason names the scheduler's word for it and what the user can do.
"""

from __future__ import annotations

import signal

from hpcrunner.engine.actions import Action, End, Policy, Resume, Retry
from hpcrunner.model import Ending, Exit, JobStatus, Outcome, Phase, Run
from hpcrunner.units import format_duration, format_size

EXPIRED = "its lifetime was over before it could start"


def wants_explanation(run: Run, ended: Exit) -> bool:
    """Whether only the scheduler knows why it ended: somebody stopped it from outside, or killed its program."""
    if ended.cause in ("cancelled", "preempted"):
        return not run.cancelling
    return ended.cause == "exit" and ended.code in (128 + signal.SIGKILL, 128 + signal.SIGTERM)


def explained(run: Run, ended: Exit, job: JobStatus, never_started: bool, policy: Policy, now: float) -> Action | None:
    """What the exit file and the scheduler say together; None while the scheduler has not said its last word."""
    plain = by_itself(run, ended, never_started, policy)
    if job.phase is Phase.UNKNOWN:
        return plain if ended.cause == "exit" and now >= ended.finished_at + policy.exit_grace else None
    if job.phase is Phase.ENDED and job.ending not in (Ending.COMPLETED, Ending.FAILED):
        return _by_scheduler(run, job, policy, ended) or plain
    return plain


def without_word(run: Run, job: JobStatus, has_begun: bool, policy: Policy, now: float) -> Action | None:
    """The scheduler says that it ended, and there is no exit file."""
    has_run = has_begun or job.node or job.ending in (Ending.COMPLETED, Ending.FAILED)
    if has_run and now < job.seen_at + policy.exit_grace:
        return None  # Its own word may come late: whatever ended it, its program may have ended before.
    if run.cancelling:
        return as_wanted(run)
    if action := _by_scheduler(run, job, policy):
        return action
    where = f" on {job.node}" if job.node else ""
    if has_begun and job.ending is Ending.COMPLETED and not job.signal:
        # Its script ends with the program's own exit code. What has run to its end is not run again.
        return End(run, Outcome.SUCCEEDED, "finished, by the scheduler's word (COMPLETED); it could not leave its exit "
                                           "file: was the disk full?")
    if not has_begun:
        return infrastructure(run, f"the job could not be started{where} ({job.reason}); hosts that run jobs must see "
                               "the run directories (working_dir)", policy, node=job.node)
    if job.signal or not job.code:
        how = f"was killed by signal {job.signal}" if job.signal else "ended without saying how"
        return infrastructure(run, f"the job script {how}{where} ({job.reason})", policy, node=job.node)
    # Accounting of Slurm before 25.11 shows 128 and more as what is left after subtracting 128.
    return End(run, Outcome.FAILED, f"the program ended with exit code {job.code} or {job.code + 128}, by the "
                                    "scheduler's accounting; it left no exit file")


def _by_scheduler(run: Run, job: JobStatus, policy: Policy, ended: Exit | None = None) -> Action | None:
    """The ends that a scheduler brings about, each with what the user can do about it."""
    where = f" on {job.node}" if job.node else ""
    if job.ending is Ending.OUT_OF_MEMORY:
        asked = format_size(run.request.memory) if run.request.memory else "the site's default"
        used = f" and used {format_size(job.peak_memory)}" if job.peak_memory else ""
        return End(run, Outcome.FAILED, f"ran out of memory (OUT_OF_MEMORY): it had {asked}{used}; ask for more with "
                                        "resources_needed.ram (studio run --ram=...)", ended)
    if job.ending is Ending.TIMEOUT:
        return End(run, Outcome.FAILED, "reached the scheduler's time limit (TIMEOUT); ask for a longer max_duration, "
                                        "or save what you have when SIGTERM comes", ended)
    if job.ending is Ending.DEADLINE:
        return End(run, Outcome.FAILED, "could not end before its deadline (DEADLINE), which the site's options or its "
                                        "admin set; a shorter max_duration may fit", ended)
    if run.cancelling and job.ending in (Ending.CANCELLED, Ending.PREEMPTED):
        return as_wanted(run, ended)
    if job.ending is Ending.CANCELLED:
        by = f"by {job.by}" if job.by else "with the scheduler's own means; accounting would tell by whom"
        return End(run, Outcome.CANCELLED, f"cancelled in the scheduler {by} (CANCELLED); submit it again if that was "
                                           "not wanted", ended)
    if job.ending is Ending.PREEMPTED:
        return Resume(run, f"preempted{where} (PREEMPTED): another job needed the node; it continues in its run "
                           "directory")
    if job.ending in (Ending.NODE_FAIL, Ending.BOOT_FAIL):
        what = "went down" if job.ending is Ending.NODE_FAIL else "could not be booted"
        return infrastructure(run, f"its node {job.node or run.host} {what} ({job.ending.value})", policy, ended,
                               job.node or run.host)
    if job.ending is Ending.REVOKED:
        return infrastructure(run, "the scheduler moved it to another cluster (REVOKED)", policy, ended)
    return None


def as_wanted(run: Run, ended: Exit | None = None) -> End:
    return End(run, Outcome.EXPIRED if run.cancelling == EXPIRED else Outcome.CANCELLED, run.cancelling, ended)


def by_itself(run: Run, ended: Exit, never_started: bool, policy: Policy) -> Action:
    took = format_duration(max(0.0, ended.finished_at - ended.started_at))
    if ended.cause == "max_duration":
        return End(run, Outcome.FAILED, f"stopped after {took}: it ran longer than its max_duration", ended)
    if ended.cause == "walltime":
        return End(run, Outcome.FAILED, f"stopped after {took}: the longest that this site lets a job run "
                                        "(max_duration of the site)", ended)
    if ended.cause == "default_duration":
        return End(run, Outcome.FAILED, f"stopped after {took}: what this site gives experiments that don't say how "
                                        "long they run (default_duration); ask for more with max_duration", ended)
    if ended.cause == "partition":
        return End(run, Outcome.FAILED, f"stopped after {took}: the longest that partition {run.partition} lets a job "
                                        "run (its max_walltime); save checkpoints, and submit it again to go on", ended)
    if ended.cause == "lifetime":
        return End(run, Outcome.EXPIRED, f"stopped after {took}: its lifetime was over", ended)
    if ended.cause == "crashed":
        return End(run, Outcome.LOST, f"its node was lost {policy.retries + 1} times; given up", ended)
    if ended.cause == "setup":
        return infrastructure(run, f"the job could not be set up on {ended.host}: `module load` or the site's prologue "
                              "failed there, or its files had not arrived", policy, ended, ended.host)
    if ended.cause in ("cancelled", "preempted") and run.cancelling:
        return as_wanted(run, ended)
    if ended.cause == "preempted":
        return Resume(run, f"told to leave {ended.host}, by a warning of the scheduler; it continues in its run "
                           "directory")
    if ended.cause == "cancelled":
        return infrastructure(run, "the job was stopped from outside (SIGTERM)", policy, ended)
    if ended.code == 0:
        return End(run, Outcome.SUCCEEDED, f"finished after {took}", ended)
    if never_started:
        return End(run, Outcome.FAILED, f"the container did not start (exit code {ended.code}); its message is in the "
                                        "log", ended)
    return End(run, Outcome.FAILED, f"the program ended {_code(ended.code)} after {took}", ended)


def infrastructure(run: Run, reason: str, policy: Policy, ended: Exit | None = None, node: str = "") -> Action:
    if run.cancelling:
        return as_wanted(run, ended)
    if run.generation <= policy.retries:
        return Retry(run, f"{reason}; run again ({run.generation} of {policy.retries} retries)", node)
    return End(run, Outcome.LOST, f"{reason}; given up after {run.generation} runs", ended)


def _code(code: int) -> str:
    try:
        return f"with exit code {code}, as if by signal {signal.Signals(code - 128).name}"
    except ValueError:
        return f"with exit code {code}"
