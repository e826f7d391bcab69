"""Slurm's words and rows: recorded output of squeue and sacct, and all states of their manuals.

The recordings and their cases are told of in data/slurm/README.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcrunner.model import Ending, Phase
from hpcrunner.schedulers.slurm.states import (
    ACCOUNT_FIELDS,
    MAY_COME_BACK,
    QUEUE_FORMAT,
    SEPARATOR,
    AccountRow,
    expand,
    is_known,
    newest,
    parse_accounting,
    parse_queue,
    phase_of,
    split_id,
)

RECORDED = Path(__file__).parent / "data" / "slurm" / "22.05"
P, R = Phase.PENDING, Phase.RUNNING
COMPLETED, FAILED, OUT_OF_MEMORY, TIMEOUT, DEADLINE = (
    Ending.COMPLETED, Ending.FAILED, Ending.OUT_OF_MEMORY, Ending.TIMEOUT, Ending.DEADLINE)
CANCELLED, PREEMPTED, NODE_FAIL, BOOT_FAIL, REVOKED = (
    Ending.CANCELLED, Ending.PREEMPTED, Ending.NODE_FAIL, Ending.BOOT_FAIL, Ending.REVOKED)
MIB = 2**20
EXIT, LAUNCH = "NonZeroExitCode", "JobLaunchFailure"
THROTTLED, HELD = "JobArrayTaskLimit", "JobHeldUser"

Told = Phase | Ending
"""A phase, or how it ended."""

QUEUE: dict[str, list[tuple[str, Told, str, str]]] = {
    "array-cancelled-mixed": [("334_4", CANCELLED, THROTTLED, ""), ("334_2", CANCELLED, "", "cpu1"), ("334_0", CANCELLED, "", "cpu1"), ("334_1", CANCELLED, "", "cpu1")],
    "array-cancelled-pending": [("341_1", CANCELLED, HELD, ""), ("341_3", CANCELLED, HELD, "")],
    "array-element-cancelled-pending": [("334_2", P, THROTTLED, ""), ("334_4", P, THROTTLED, ""), ("334_0", R, "", "cpu1"), ("334_1", R, "", "cpu1")],
    "array-element-cancelled-running": [("334_0", CANCELLED, "", "cpu1"), ("334_4", P, THROTTLED, ""), ("334_2", R, "", "cpu1"), ("334_1", R, "", "cpu1")],
    "array-element-requeued": [("344_0", P, THROTTLED, ""), ("344_2", P, THROTTLED, ""), ("344_1", R, "", "cpu1")],
    "array-element-split-cancelled": [("342_2", CANCELLED, HELD, ""), *((f"342_{index}", P, HELD, "") for index in (0, 1, 3, 4))],
    "array-ends": [("333_0", COMPLETED, "", "cpu1"), *((f"333_{index}", FAILED, EXIT, "cpu1") for index in (1, 2, 3))],
    "array-held-element-cancelled": [("341_1", P, HELD, ""), ("341_3", P, HELD, "")],
    # Its last element, 347_2996, is not there: a mistake of squeue --array.
    "array-large-cancelled": [(f"347_{index}", CANCELLED, HELD, "") for index in range(0, 2990, 7)],
    "array-large-pending": [(f"347_{index}", P, HELD, "") for index in range(0, 2990, 7)],
    "array-mixed-states": [("362_4", CANCELLED, "", "cpu1"), ("362_1", COMPLETED, "", "cpu1"), ("362_2", FAILED, LAUNCH, "cpu1"), ("362_3", R, "", "cpu1")],
    "array-pending-held": [("341_1", P, HELD, ""), ("341_3", P, HELD, ""), ("341_5", P, HELD, "")],
    "array-state-pending-cancels-all": [("342", CANCELLED, HELD, ""), ("342_2", CANCELLED, HELD, "")],
    "bad-chdir": [("283", COMPLETED, "", "cpu1")],
    "bad-interpreter": [("284", FAILED, EXIT, "cpu1")],
    "bad-output-dir": [("282", FAILED, LAUNCH, "cpu1")],
    "cancelled-invalid-dep": [("367", CANCELLED, "DependencyNeverSatisfied", "")],
    "cancelled-pending-by-root": [("291", CANCELLED, HELD, "")],
    "cancelled-pending-by-user": [("292", CANCELLED, HELD, "")],
    "cancelled-running-by-root": [("290", CANCELLED, "", "cpu1")],
    "cancelled-running-by-user": [("288", CANCELLED, "", "cpu1")],
    "cancelled-running-ignores-term": [("289", CANCELLED, "", "cpu1")],
    "completing": [("288", R, "", "cpu1")],
    "completing-array": [("295_0", R, "", "cpu1"), ("295_1", R, "", "cpu1")],
    "deadline": [("376", DEADLINE, "DeadLine", "")],
    "documented": [
        ("101", OUT_OF_MEMORY, "OutOfMemory", "gpu1"), ("102", BOOT_FAIL, "", "gpu1"),
        ("103", R, "", "gpu1"), ("104", R, "", "gpu1"), ("105", R, "", "gpu1"), ("106", R, "", "gpu1"),
        ("107", P, "", ""), ("108", P, "", ""), ("109", P, "", ""), ("110", P, "job requeued in held state", ""),
        ("111", P, "ReservationDeleted", ""), ("112", REVOKED, "", ""), ("113", R, "", ""), ("114", R, "", ""),
        ("115_3", FAILED, "RaisedSignal:9(Killed)", "gpu1"), ("116", FAILED, "RaisedSignal:53(Real-time_signal_19)", "gpu1"),
        ("117", P, "launch failed requeued held", ""), ("118", P, "AssocMaxSubmitJobLimit", ""), ("119", P, "JobHoldMaxRequeue", ""),
        ("120", R, "", "gpu[1-2],cpu1")],
    "exit-0": [("276", COMPLETED, "", "cpu1")],
    "exit-137": [("278", FAILED, EXIT, "cpu1")],
    "exit-255": [("279", FAILED, EXIT, "cpu1")],
    "exit-7": [("277", FAILED, EXIT, "cpu1")],
    "foreign-name": [("372", P, HELD, "")],
    "het-job": [("373+1", P, HELD, ""), ("373+0", P, HELD, "")],
    "killed-9": [("280", FAILED, LAUNCH, "cpu1")],
    "killed-segv": [("281", FAILED, LAUNCH, "cpu1")],
    "node-fail-no-requeue": [("307", NODE_FAIL, "NodeDown", "gpu1")],
    "node-fail-requeue": [("308", P, "BeginTime", "")],
    "node-fail-requeue-at-once": [("308", P, "", "")],
    "node-fail-requeue-ended": [("308", COMPLETED, "", "gpu1")],
    "over-memory": [("285", FAILED, LAUNCH, "cpu1")],
    "over-memory-exec": [("286", FAILED, LAUNCH, "cpu1")],
    "pending-account-not-allowed": [("358", P, "Job's account not permitted to use this partition (gpu allows main not other)", "")],
    "pending-array-throttled": [*((f"327_{index}", P, THROTTLED, "") for index in (2, 3, 4, 5)), ("327_0", R, "", "cpu1"), ("327_1", R, "", "cpu1")],
    "pending-array-throttled-cancelled": [*((f"327_{index}", CANCELLED, THROTTLED, "") for index in (2, 3, 4, 5)), ("327_0", CANCELLED, "", "cpu1"), ("327_1", CANCELLED, "", "cpu1")],
    "pending-assoc-grp-cpu": [("357", P, "AssocGrpCpuLimit", "")],
    "pending-begin-time": [("313", P, "BeginTime", "")],
    "pending-dependency": [("311", P, "Dependency", "")],
    "pending-dependency-never": [("312", P, "DependencyNeverSatisfied", "")],
    "pending-held-admin": [("317", P, "JobHeldAdmin", "")],
    "pending-held-admin-2": [("318", P, "JobHeldAdmin", "")],
    "pending-held-user": [("310", P, HELD, "")],
    "pending-node-down": [("309", P, "ReqNodeNotAvail, UnavailableNodes:gpu1", "")],
    "pending-partition-down": [("326", P, "PartitionDown", "")],
    "pending-partition-time-limit": [("314", P, "PartitionTimeLimit", "")],
    "pending-priority": [("361", P, "Priority", "")],
    "pending-qos-max-cpu-user": [("352", P, "QOSMaxCpuPerUserLimit", "")],
    "pending-qos-max-gres-user": [("355", P, "QOSMaxGRESPerUser", "")],
    "pending-qos-max-jobs-user": [("322", P, "QOSMaxJobsPerUserLimit", "")],
    "pending-qos-max-wall": [("353", P, "QOSMaxWallDurationPerJobLimit", "")],
    "pending-qos-not-allowed": [("332", P, "Job's QOS not permitted to use this partition (gpu allows high not normal)", "")],
    "pending-reserved-node": [("328", P, "ReqNodeNotAvail, May be reserved for other job", "")],
    "pending-resources": [("360", P, "Resources", "")],
    "pending-too-many-cpus": [("315", P, "PartitionConfig", "")],
    "pending-too-many-nodes": [("316", P, "PartitionNodeLimit", "")],
    "preempted-no-requeue": [("303", PREEMPTED, "", "gpu2")],
    "preempted-requeue": [("305", P, "BeginTime", "")],
    "preempted-requeue-at-once": [("305", P, "BeginTime", "")],
    "preempted-requeue-ended": [("305", COMPLETED, "", "gpu2")],
    "quick-0": [("275", COMPLETED, "", "cpu1")],
    "quick-1": [("275", COMPLETED, "", "cpu1")],
    "quick-2": [("275", COMPLETED, "", "cpu1")],
    "requeue-at-once": [("300", R, "", "cpu1")],
    "requeue-ended": [("300", COMPLETED, "", "cpu1")],
    "requeue-of-ended": [("368", P, "BeginTime", "")],
    "requeue-pending": [("300", P, "BeginTime", "")],
    "requeuehold": [("301", P, "job requeued in held state", "")],
    "requeuehold-cancelled": [("301", CANCELLED, "job requeued in held state", "")],
    "running": [("288", R, "", "cpu1")],
    "running-just-now": [("371", R, "", "cpu1")],
    "signalled-term": [("293", FAILED, LAUNCH, "cpu1")],
    "signalled-term-exit-143": [("294", FAILED, EXIT, "cpu1")],
    "special-exit": [("302", P, "job requeued in held state", "")],
    "srun-step-fails": [("287", COMPLETED, "", "cpu1")],
    "stopped": [("297", R, "", "cpu1")],
    "stopped-2": [("299", R, "", "cpu1")],
    "submitted-just-now": [("369", P, HELD, "")],
    "submitted-just-now-array": [("370_0", P, HELD, ""), ("370_1", P, HELD, ""), ("370_2", P, HELD, "")],
    "suspended": [("298", R, "", "cpu1")],
    "timeout": [("271", TIMEOUT, "TimeLimit", "cpu1")],
    "timeout-ignores-term": [("272", TIMEOUT, "TimeLimit", "cpu1")],
    "two-attempts": [("349", COMPLETED, "", "cpu1"), ("348", FAILED, EXIT, "cpu1")],
}
"""What squeue says in each case: id, what it is, reason, node."""

IRREGULAR = [0, 2, 6, 12, 20, 30, 42, 56, 59, 72, 76, 89, 90, 110, 125, 127, 132, 156, 168, 172, 180, 182, 193, 201, 210, 240, 262, 263, 271, 272,
             302, 306, 315, 335, 338, 342, 358, 380, 409, 417, 420, 431, 434, 456, 462, 485, 506, 549, 552, 556, 563, 565, 568, 600, 643, 650, 658,
             669, 702, 704, 715, 725, 756, 762, 791, 809, 812, 842, 867, 868, 870, 895, 915, 930, 976, 982, 983, 992, 1021, 1041]
ME, ROOT = "1001", "0"


def account(job_id: str, told: Told, exit_code: str = "0:0", node: str = "", by: str = "") -> tuple[str, Told, str, str, str]:
    return job_id, told, exit_code, node, by


ACCOUNTS: dict[str, list[tuple[str, Told, str, str, str]]] = {
    # An element's own row, and the row of those that wait, which may name it still.
    "array-cancelled-mixed": [*(account(f"334_{index}", CANCELLED, "0:0", "cpu1", ME) for index in (0, 1, 2)), account("334_2", CANCELLED, by=ME), account("334_4", CANCELLED, by=ME)],
    "array-cancelled-pending": [account(f"341_{index}", CANCELLED, by=ME) for index in (1, 3, 5)],
    "array-element-cancelled-pending": [account("334_0", R, node="cpu1"), account("334_1", R, node="cpu1"), *(account(f"334_{index}", P) for index in (2, 3, 4))],
    "array-element-cancelled-running": [account("334_0", CANCELLED, node="cpu1", by=ME), account("334_1", R, node="cpu1"), account("334_2", R, node="cpu1"), account("334_2", P), account("334_4", P)],
    "array-element-requeued": [account("344_0", P, node="cpu1"), account("344_1", R, node="cpu1"), account("344_1", P), account("344_2", P), account("344_0", P)],
    "array-element-split-cancelled": [account("342_2", CANCELLED, by=ME), *(account(f"342_{index}", P) for index in (0, 1, 3, 4))],
    "array-ends": [account("333_0", COMPLETED, "0:0", "cpu1"), *(account(f"333_{code}", FAILED, f"{code}:0", "cpu1") for code in (1, 2, 3))],
    "array-held-element-cancelled": [account(f"341_{index}", P) for index in (1, 3, 5)],
    "array-irregular-cancelled": [account(f"381_{index}", CANCELLED, by=ME) for index in IRREGULAR],
    "array-irregular-pending": [account(f"381_{index}", P) for index in IRREGULAR],
    "array-irregular-truncated": [],
    "array-large-cancelled": [account(f"347_{index}", CANCELLED, by=ME) for index in range(0, 2997, 7)],
    "array-large-pending": [],
    "array-mixed-states": [account("362_1", COMPLETED, node="cpu1"), account("362_2", FAILED, "0:9", "cpu1"), account("362_3", R, node="cpu1"), account("362_4", CANCELLED, node="cpu1", by=ME)],
    "array-pending-held": [account(f"341_{index}", P) for index in (1, 3, 5)],
    "array-state-pending-cancels-all": [account(f"342_{index}", CANCELLED, by=ME) for index in (2, 0, 1, 3, 4)],
    "bad-chdir": [account("283", COMPLETED, node="cpu1")],
    "bad-interpreter": [account("284", FAILED, "2:0", "cpu1")],
    "bad-output-dir": [account("282", FAILED, "0:53", "cpu1")],
    "cancelled-invalid-dep": [account("367", CANCELLED)],
    "cancelled-pending-by-root": [account("291", CANCELLED, by=ROOT)],
    "cancelled-pending-by-user": [account("292", CANCELLED, by=ME)],
    "cancelled-running-by-root": [account("290", CANCELLED, node="cpu1", by=ROOT)],
    "cancelled-running-by-user": [account("288", CANCELLED, node="cpu1", by=ME)],
    "cancelled-running-ignores-term": [account("289", CANCELLED, node="cpu1", by=ME)],
    "completing-array": [account("295_0", CANCELLED, node="cpu1", by=ME), account("295_1", CANCELLED, node="cpu1", by=ME)],
    "deadline": [account("376", DEADLINE, "1:0")],
    "documented": [
        account("101", OUT_OF_MEMORY, "0:125", "gpu1"), account("102", BOOT_FAIL, node="gpu1"), account("104", R, node="gpu1"),
        account("108", P, node="gpu1"), account("108", P), account("112", REVOKED), account("113", R, node="gpu1"),
        account("115_3", FAILED, "137:0", "gpu1"), account("116", NODE_FAIL, "1:0", "gpu1"), account("120", R, node="gpu[1-2],cpu1")],
    "exit-0": [account("276", COMPLETED, node="cpu1")],
    # Before 25.11 sacct takes 128 off codes of 128 and more.
    "exit-137": [account("278", FAILED, "9:0", "cpu1")],
    "exit-255": [account("279", FAILED, "127:0", "cpu1")],
    "exit-7": [account("277", FAILED, "7:0", "cpu1")],
    "foreign-name": [account("372", CANCELLED, by=ME)],
    "het-job": [account("373+0", P), account("373+1", P)],
    "killed-9": [account("280", FAILED, "0:9", "cpu1")],
    "killed-segv": [account("281", FAILED, "0:11", "cpu1")],
    "node-fail-no-requeue": [account("307", NODE_FAIL, node="gpu1")],
    "node-fail-requeue": [account("308", NODE_FAIL, node="gpu1")],
    "node-fail-requeue-at-once": [account("308", NODE_FAIL, node="gpu1")],
    "node-fail-requeue-ended": [account("308", NODE_FAIL, node="gpu1"), account("308", COMPLETED, node="gpu1")],
    "over-memory": [account("285", FAILED, "0:9", "cpu1")],
    "over-memory-exec": [account("286", FAILED, "0:9", "cpu1")],
    "pending-account-not-allowed": [account("358", P)],
    "pending-array-throttled": [account("327_0", R, node="cpu1"), account("327_1", R, node="cpu1"), *(account(f"327_{index}", P) for index in (2, 3, 4, 5))],
    "pending-array-throttled-cancelled": [*(account(f"327_{index}", CANCELLED, node="cpu1", by=ME) for index in (0, 1)), *(account(f"327_{index}", CANCELLED, by=ME) for index in (2, 3, 4, 5))],
    "pending-assoc-grp-cpu": [account("357", P)],
    "pending-begin-time": [account("313", P)],
    "pending-dependency": [account("311", P)],
    "pending-dependency-never": [account("312", P)],
    "pending-held-admin": [account("317", P)],
    "pending-held-admin-2": [account("318", P)],
    "pending-held-user": [account("310", P)],
    "pending-node-down": [account("309", P)],
    "pending-partition-down": [account("326", P)],
    "pending-partition-time-limit": [account("314", P)],
    "pending-priority": [account("361", P)],
    "pending-qos-max-cpu-user": [account("352", P)],
    "pending-qos-max-gres-user": [account("355", P)],
    "pending-qos-max-jobs-user": [account("322", P)],
    "pending-qos-max-wall": [account("353", P)],
    "pending-qos-not-allowed": [account("332", P)],
    "pending-reserved-node": [account("328", P)],
    "pending-resources": [account("360", P)],
    "pending-too-many-cpus": [account("315", P)],
    "pending-too-many-nodes": [account("316", P)],
    "preempted-no-requeue": [account("303", PREEMPTED, node="gpu2")],
    "preempted-requeue": [account("305", PREEMPTED, node="gpu2"), account("305", P)],
    "preempted-requeue-at-once": [account("305", PREEMPTED, node="gpu2")],
    "preempted-requeue-ended": [account("305", PREEMPTED, node="gpu2"), account("305", COMPLETED, node="gpu2")],
    "quick-0": [account("275", COMPLETED, node="cpu1")],
    "quick-1": [account("275", COMPLETED, node="cpu1")],
    "quick-2": [account("275", COMPLETED, node="cpu1")],
    # REQUEUED is no end: the run that follows is not in sacct at once.
    "requeue-at-once": [account("300", P, node="cpu1")],
    "requeue-ended": [account("300", P, node="cpu1"), account("300", COMPLETED, node="cpu1")],
    "requeue-of-ended": [account("368", P, node="cpu1"), account("368", P)],
    "requeue-pending": [account("300", P, node="cpu1"), account("300", P)],
    "requeuehold": [account("301", P, node="cpu1"), account("301", P)],
    "requeuehold-cancelled": [account("301", P, node="cpu1"), account("301", CANCELLED, by=ME)],
    "running": [account("288", R, node="cpu1")],
    "running-just-now": [account("371", P, node="cpu1")],
    "signalled-term": [account("293", FAILED, "0:15", "cpu1")],
    "signalled-term-exit-143": [account("294", FAILED, "15:0", "cpu1")],
    "special-exit": [account("302", P, node="cpu1"), account("302", P)],
    "srun-step-fails": [account("287", COMPLETED, node="cpu1")],
    "stopped": [account("297", R, node="cpu1")],
    "stopped-2": [account("299", R, node="cpu1")],
    "submitted-just-now": [],
    "submitted-just-now-array": [],
    "suspended": [account("298", R, node="cpu1")],
    "timeout": [account("271", TIMEOUT, node="cpu1")],
    "timeout-ignores-term": [account("272", TIMEOUT, node="cpu1")],
    "two-attempts": [account("348", FAILED, "3:0", "cpu1"), account("349", COMPLETED, node="cpu1")],
    "two-attempts-by-name": [account("348", FAILED, "3:0", "cpu1"), account("349", COMPLETED, node="cpu1")],
    "two-names": [account("348", FAILED, "3:0", "cpu1"), *(account(job, COMPLETED, node="cpu1") for job in ("349", "350_0", "350_1"))],
    "unknown-id": [],
}
"""What sacct says in each case, row by row: id, what it is, exit code and signal, node, who cancelled it."""


def recorded(name: str) -> str:
    return (RECORDED / name).read_text()


def told(row: object) -> Told:
    ending: Ending | None = row.ending  # type: ignore[attr-defined]
    phase: Phase = row.phase  # type: ignore[attr-defined]
    assert (phase is Phase.ENDED) == (ending is not None)
    return ending or phase


def queue_line(*fields: str, folder: str = "/w") -> str:
    return SEPARATOR.join((*fields[:4], folder, *fields[4:])) + "\n"


def account_line(job_id: str = "45", state: str = "COMPLETED", exit_code: str = "0:0", node: str = "n1", submitted: str = "2026-11-25T04:00:00",
                 peak: str = "", requested: str = "100M", name: str = "hrabcdaaaaaaaaa") -> str:
    return SEPARATOR.join((job_id, state, exit_code, node, submitted, "Unknown", "Unknown", peak, requested, name)) + "\n"


# -- recordings --


def test_the_tables_name_every_recording() -> None:
    assert QUEUE.keys() == {path.stem for path in RECORDED.glob("*.squeue")}
    assert ACCOUNTS.keys() == {path.stem for path in RECORDED.glob("*.sacct")}


@pytest.mark.parametrize("case", QUEUE)
def test_recorded_squeue(case: str) -> None:
    rows = list(parse_queue(recorded(f"{case}.squeue")))
    assert [(row.job_id, told(row), row.reason, row.node) for row in rows] == QUEUE[case]
    if case != "foreign-name":
        assert {row.name[:6] for row in rows} == {"hrabcd"}


@pytest.mark.parametrize("case", ACCOUNTS)
def test_recorded_sacct(case: str) -> None:
    rows = parse_accounting(recorded(f"{case}.sacct"))
    assert [(row.job_id, told(row), f"{row.code}:{row.signal}", row.node, row.by) for row in rows] == ACCOUNTS[case]


def test_whatever_name_another_job_has_its_row_is_one_row() -> None:
    [row] = parse_queue(recorded("foreign-name.squeue"))
    assert row.name == 'a b|c"d\té'
    [row] = parse_accounting(recorded("foreign-name.sacct"))
    assert row.name == "a b|c`d\té"


def test_memory_that_the_batch_step_used_is_put_to_its_job() -> None:
    [row] = parse_accounting(recorded("over-memory.sacct"))
    assert (row.requested_memory, row.peak_memory) == (50 * MIB, 215716 * 1024)
    [row, *_] = parse_accounting(recorded("documented.sacct"))
    assert (row.requested_memory, row.peak_memory) == (4096 * MIB, 4000000 * 1024)
    first, second = parse_accounting(recorded("requeue-ended.sacct"))
    assert (first.peak_memory, second.peak_memory) == (4016 * 1024, 4244 * 1024)
    # Its other steps are left out, whatever became of them.
    [row] = parse_accounting(recorded("srun-step-fails.sacct"))
    assert (row.name, row.peak_memory) == ("hrabcdaaaaaaaaq", 0)


def test_a_job_that_has_just_begun_has_neither_name_nor_memory_in_sacct() -> None:
    for case in ("running-just-now", "quick-0", "requeue-at-once", "cancelled-invalid-dep"):
        [row] = parse_accounting(recorded(f"{case}.sacct"))
        assert (row.name, row.requested_memory) == ("allocation", 0), case


@pytest.mark.parametrize(("case", "job", "last"), [
    ("requeue-ended", "300", COMPLETED), ("requeue-pending", "300", P), ("requeue-at-once", "300", P), ("requeuehold-cancelled", "301", CANCELLED),
    ("requeue-of-ended", "368", P), ("special-exit", "302", P),
    ("preempted-requeue-at-once", "305", PREEMPTED), ("preempted-requeue", "305", P), ("preempted-requeue-ended", "305", COMPLETED),
    ("node-fail-requeue", "308", NODE_FAIL), ("node-fail-requeue-ended", "308", COMPLETED),
    ("array-element-requeued", "344_0", P),
    # An element's own row counts, not the one of those that wait, though both were submitted at once.
    ("array-element-requeued", "344_1", R), ("array-element-cancelled-running", "334_2", R), ("array-element-cancelled-running", "334_4", P),
    ("array-cancelled-mixed", "334_2", CANCELLED), ("array-cancelled-mixed", "334_4", CANCELLED),
])
def test_the_newest_run_of_a_job(case: str, job: str, last: Told) -> None:
    found = newest(row for row in parse_accounting(recorded(f"{case}.sacct")) if row.job_id == job)
    assert found is not None and told(found) is last
    if case == "array-cancelled-mixed":
        assert found.node == ("cpu1" if job == "334_2" else "")


def test_of_runs_that_were_submitted_in_one_second_the_later_line_is_the_newest() -> None:
    rows = parse_accounting(account_line(state="PREEMPTED") + account_line(state="COMPLETED"))
    found = newest(rows)
    assert found is not None and found.ending is COMPLETED
    rows = parse_accounting(account_line(state="COMPLETED", submitted="2026-11-25T04:00:01") + account_line(state="NODE_FAIL"))
    found = newest(rows)
    assert found is not None and found.ending is COMPLETED
    assert newest([]) is None


# -- states --

WORDS: dict[str, Told] = {
    # squeue(1) and sacct(1), JOB STATE CODES, 20.11 to 26.05: base states
    "PENDING": P, "RUNNING": R, "SUSPENDED": R, "COMPLETED": COMPLETED, "CANCELLED": CANCELLED, "FAILED": FAILED, "TIMEOUT": TIMEOUT,
    "NODE_FAIL": NODE_FAIL, "PREEMPTED": PREEMPTED, "BOOT_FAIL": BOOT_FAIL, "DEADLINE": DEADLINE, "OUT_OF_MEMORY": OUT_OF_MEMORY,
    # flags, which are shown instead of the base state
    "COMPLETING": R, "STAGE_OUT": R, "CONFIGURING": R, "EXPEDITING": P, "RESIZING": R, "REQUEUED": P, "REQUEUE_FED": P, "REQUEUE_HOLD": P,
    "SPECIAL_EXIT": P, "STOPPED": R, "REVOKED": REVOKED, "RESV_DEL_HOLD": P, "SIGNALING": R,
}


@pytest.mark.parametrize("word", WORDS)
def test_every_state_of_slurm(word: str) -> None:
    expected = WORDS[word]
    assert phase_of(word) == ((Phase.ENDED, expected) if isinstance(expected, Ending) else (expected, None))
    assert is_known(word)


@pytest.mark.parametrize("word", ["", "?", "UNKNOWN", "LAUNCH_FAILED", "HIBERNATING", "completed", "COMPLETED_LATER", "FAILED?", "F"])
def test_an_unknown_word_ends_no_job(word: str) -> None:
    assert phase_of(word) == (Phase.RUNNING, None)
    assert not is_known(word)


@pytest.mark.parametrize("word", ["CANCELLED by 1001", "CANCELLED by 0", "CANCELLED+", "CANCELLED"])
def test_cancelled_in_all_its_forms(word: str) -> None:
    assert phase_of(word) == (Phase.ENDED, CANCELLED)
    assert is_known(word)


def test_what_may_come_back_is_what_slurm_requeues() -> None:
    assert {PREEMPTED, NODE_FAIL, BOOT_FAIL} == MAY_COME_BACK


# -- fields --


def test_formats_ask_for_what_is_parsed() -> None:
    assert QUEUE_FORMAT == "%i\x1f%T\x1f%r\x1f%N\x1f%Z\x1f%j"
    # Every version from 20.11 on knows them: sacct fails over one that it does not know.
    assert ACCOUNT_FIELDS == ("JobID", "State", "ExitCode", "NodeList", "Submit", "Start", "End", "MaxRSS", "ReqMem", "JobName")


@pytest.mark.parametrize(("text", "size"), [
    ("100M", 100 * MIB), ("2Gn", 2048 * MIB), ("1.50G", 1536 * MIB), ("0", 0), ("0n", 0), ("", 0), ("16?", 0), ("?", 0),
    ("500Mc", 0),  # per core: nothing to compare a peak with
    ("12345K", 12345 * 1024), ("1T", 2**40), ("-5M", 0),
])
def test_memory_as_sacct_writes_it(text: str, size: int) -> None:
    [row] = parse_accounting(account_line(requested=text))
    assert row.requested_memory == size
    [row] = parse_accounting(account_line() + account_line(job_id="45.batch", name="batch", peak=text))
    assert row.peak_memory == size


@pytest.mark.parametrize(("text", "code", "signal"), [
    ("0:0", 0, 0), ("7:0", 7, 0), ("0:9", 0, 9), ("137:0", 137, 0), ("0:125", 0, 125), ("", 0, 0), (":", 0, 0), ("3", 3, 0), ("x:y", 0, 0)])
def test_exit_codes(text: str, code: int, signal: int) -> None:
    [row] = parse_accounting(account_line(exit_code=text))
    assert (row.code, row.signal) == (code, signal)


@pytest.mark.parametrize(("text", "node"), [
    ("None assigned", ""), ("", ""), ("(null)", ""), ("n/a", ""), ("gpu[1-2],cpu1", "gpu[1-2],cpu1"), (" n1 ", "n1")])
def test_nodes(text: str, node: str) -> None:
    [row] = parse_accounting(account_line(node=text))
    assert row.node == node
    [queued] = parse_queue(queue_line("45", "RUNNING", "None", text, "hrabcd"))
    assert queued.node == node


def test_reasons_may_hold_blanks_commas_and_apostrophes() -> None:
    for reason in ("ReqNodeNotAvail, UnavailableNodes:gpu[1-3,7]", "Job's QOS not permitted to use this partition (gpu allows high not normal)",
                   "(Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions)"):
        [row] = parse_queue(queue_line("45", "PENDING", reason, "", "hrabcd"))
        assert (row.reason, row.word) == (reason, "PENDING")
    [row] = parse_queue(queue_line("45", "PENDING", "None", "", "hrabcd"))
    assert row.reason == ""


def test_who_cancelled_it_stands_in_the_state() -> None:
    for word, by in (("CANCELLED by 1001", "1001"), ("CANCELLED by 0", "0"), ("CANCELLED", ""), ("CANCELLED by someone", ""), ("FAILED by 7", "")):
        [row] = parse_accounting(account_line(state=word))
        assert row.by == by, word


# -- lines that are none, and hostile names --

HOSTILE = ["a\x1fb", "\x1f\x1f\x1f\x1f\x1f", "two\nlines", "45", "None", "a\x1f" * 12, "é\u2028ü", "a\x0bb\x0cc\x1cd\x1dd\x1ed\x85e", "", " ", "x" * 1000,
           "'; rm -rf /", "a\rb"]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_hostile_name_does_not_touch_the_rows_of_others(name: str) -> None:
    """They are names of this user's other jobs: they come last in a row, and what they break is their own row."""
    ours = ("46", "PENDING", "Priority", "", "hrabcdaaaaaaaab")
    text = queue_line("45", "RUNNING", "None", "n1", name) + queue_line(*ours)
    rows = list(parse_queue(text))
    assert len(rows) == 2
    assert (rows[0].job_id, rows[0].phase, rows[0].node) == ("45", R, "n1")
    assert (rows[1].job_id, rows[1].reason, rows[1].name) == ("46", "Priority", "hrabcdaaaaaaaab")
    accounts = parse_accounting(account_line(state="FAILED", exit_code="7:0", name=name) + account_line(job_id="46"))
    assert [(row.job_id, row.ending, row.code) for row in accounts] == [("45", FAILED, 7), ("46", COMPLETED, 0)]


@pytest.mark.parametrize("line", ["", "slurm_load_jobs: notice", "45|RUNNING|None|n1|name", queue_line("45", "RUNNING", "None", "n1"), "\x00", "\x1f" * 3])
def test_lines_that_are_no_rows_are_left_out(line: str) -> None:
    good = queue_line("46", "RUNNING", "None", "n1", "hrabcd")
    assert [row.job_id for row in parse_queue(f"{line}\n{good}{line}\n")] == ["46"]
    assert [row.job_id for row in parse_accounting(f"{line}\n{account_line()}{line}\n")] == ["45"]


def test_a_batch_step_without_its_job_is_left_out() -> None:
    assert parse_accounting(account_line(job_id="45.batch", name="batch", peak="5M")) == []
    rows = parse_accounting(account_line(job_id="44") + account_line(job_id="45.batch", peak="5M") + account_line(job_id="44.extern", peak="7M"))
    assert [(row.job_id, row.peak_memory) for row in rows] == [("44", 0)]


# -- arrays --


@pytest.mark.parametrize(("job_id", "elements"), [
    ("45", ["45"]),
    ("45_3", ["45_3"]),
    ("45_[3]", ["45_3"]),
    ("45_[1,3-5]", ["45_1", "45_3", "45_4", "45_5"]),
    ("45_[0-4,6-8%2]", [f"45_{index}" for index in (0, 1, 2, 3, 4, 6, 7, 8)]),
    ("45_[3%1]", ["45_3"]),
    # A regular rest comes with its step (squeue of 22.05: the elements 0, 2, ... 20 of an array wait)
    ("45_[0-20:2]", [f"45_{index}" for index in range(0, 21, 2)]),
    ("45_[0-20:7%2]", ["45_0", "45_7", "45_14"]),
    ("45_[1,10-30:10]", ["45_1", "45_10", "45_20", "45_30"]),
    # What it can't read stands for itself, and so for no job of ours.
    ("45_[0,2,...]", ["45_[0,2,...]"]), ("45_[]", ["45_[]"]), ("45_[a-b]", ["45_[a-b]"]), ("373+0", ["373+0"]), ("", [""]), ("[1-3]", ["[1-3]"]),
    ("45_[3-1]", []),
])
def test_what_an_id_stands_for(job_id: str, elements: list[str]) -> None:
    assert expand(job_id) == elements


def test_rows_of_many_elements_are_known_as_such() -> None:
    rows = parse_accounting(account_line(job_id="45_[1-2]", state="PENDING") + account_line(job_id="45_0") + account_line(job_id="46"))
    assert [(row.job_id, row.is_shared) for row in rows] == [("45_1", True), ("45_2", True), ("45_0", False), ("46", False)]


def test_a_giant_array_of_somebody_else_is_one_row() -> None:
    def rows(name: str, elements: str, folder: str = "/w") -> list[str]:
        return [row.job_id for row in parse_queue(queue_line(f"45_[{elements}]", "PENDING", "Priority", "", name, folder=folder))]
    assert rows("sweep", "0-3999999%50") == ["45_[0-3999999%50]"]
    assert rows("sweep", "0,2-2000:2,9") == ["45_[0,2-2000:2,9]"]
    # One of ours, maybe under another name.
    assert len(rows("hrab2defghijk7m", "0-1999")) == 2000
    assert rows("sweep", "7,0-1998", "/state/arrays")[:2] == ["45_7", "45_0"]


def test_waiting_elements_in_one_row_of_squeue() -> None:
    """The form without --array, which of a regular rest leaves out the last."""
    rows = list(parse_queue(queue_line("45_[0-20:2%4]", "PENDING", "JobArrayTaskLimit", "", "hrabcdaaaaaaaaa") + queue_line("45_1", "RUNNING", "None", "n1", "hrabcd")))
    assert [row.job_id for row in rows] == [*(f"45_{index}" for index in range(0, 21, 2)), "45_1"]
    assert {(row.phase, row.reason) for row in rows[:-1]} == {(P, "JobArrayTaskLimit")}


@pytest.mark.parametrize(("job_id", "parts"), [
    ("45", ("45", None)), ("45_0", ("45", 0)), ("45_3", ("45", 3)), ("45_[1-3]", ("45", None)), ("373+0", ("373+0", None)), ("", ("", None))])
def test_the_parts_of_an_id(job_id: str, parts: tuple[str, int | None]) -> None:
    assert split_id(job_id) == parts


def test_newest_takes_any_iterable() -> None:
    row = AccountRow("45", "n", Phase.ENDED, COMPLETED, "COMPLETED", "", 0, 0, "", "2026-11-25T04:00:00", 0, 0)
    assert newest(iter([row])) is row
