"""What became of jobs, told from recorded and made-up answers of squeue and sacct, under a clock that is moved by hand.

Each tick begins with a new object and the memory's file, as under cron.
"""

from __future__ import annotations

import json
import logging
import pwd
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hpcrunner.errors import UnavailableError
from hpcrunner.model import UNKNOWN, Ending, JobStatus, Phase
from hpcrunner.schedulers.base import Job
from hpcrunner.schedulers.slurm import pacing, watch
from hpcrunner.schedulers.slurm.options import SlurmOptions
from hpcrunner.schedulers.slurm.pacing import Memory
from hpcrunner.schedulers.slurm.states import SEPARATOR, AccountRow, QueueRow, parse_accounting, parse_queue, split_id
from hpcrunner.schedulers.slurm.watch import Watch

RECORDED = Path(__file__).parent / "data" / "slurm" / "22.05"
NAME, TAG = "hrabcdaaaaaaaaa", "hrabcdaaaaaaaaa"
PENDING, RUNNING, GONE = Phase.PENDING, Phase.RUNNING, Phase.GONE
COMPLETED, FAILED, CANCELLED, TIMEOUT = Ending.COMPLETED, Ending.FAILED, Ending.CANCELLED, Ending.TIMEOUT
PREEMPTED, NODE_FAIL, BOOT_FAIL, OUT_OF_MEMORY = Ending.PREEMPTED, Ending.NODE_FAIL, Ending.BOOT_FAIL, Ending.OUT_OF_MEMORY
DISABLED = UnavailableError("sacct ended with code 1: Slurm accounting storage is disabled", transient=True)
DOWN = UnavailableError("squeue ended with code 1: Unable to contact slurm controller (connect failure)", transient=True)
DBD_DOWN = UnavailableError("sacct ended with code 1: Problem talking to the database: Connection refused", transient=True)


def queued(job_id: str, state: str, reason: str = "None", node: str = "", name: str = NAME, folder: str = "/w") -> str:
    return SEPARATOR.join((job_id, state, reason, node, folder, name)) + "\n"


def accounted(job_id: str, state: str, exit_code: str = "0:0", node: str = "n1", submitted: str = "2026-11-25T04:00:00", peak: str = "",
              requested: str = "100M", name: str = NAME) -> str:
    return SEPARATOR.join((job_id, state, exit_code, node, submitted, "Unknown", "Unknown", peak, requested, name)) + "\n"


@dataclass
class Slurm:
    """Answers what it is told to, as text or as an error."""

    squeue: str | UnavailableError = ""
    sacct: str | UnavailableError = ""
    polls: int = 0
    asked: list[tuple[list[str], list[str], float]] = field(default_factory=list)
    """What sacct was asked for: ids, names, since when."""

    def queue(self) -> list[QueueRow]:
        self.polls += 1
        if isinstance(self.squeue, UnavailableError):
            raise self.squeue
        return list(parse_queue(self.squeue))

    def accounting(self, *, ids: Iterable[str] = (), names: Iterable[str] = (), since: float) -> list[AccountRow]:
        ids, names = list(ids), list(names)
        self.asked.append((ids, names, since))
        if isinstance(self.sacct, UnavailableError):
            raise self.sacct
        return [row for row in parse_accounting(self.sacct) if row.job_id in ids or split_id(row.job_id)[0] in ids or row.name in names]


class World:
    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.slurm, self.at = folder, Slurm(), 1_800_000_000.0
        self.options = SlurmOptions(**{"poll_min": 30.0, "poll_max": 180.0, "lost_after": 300.0, "settle": 180.0, **options})
        self.file = folder / "slurm.json"
        self.watch = self.begin()

    def now(self) -> float:
        return self.at

    def begin(self) -> Watch:
        self.memory = Memory.load(self.file)
        self.watch = Watch(self.options, self.slurm, self.memory, self.folder / "arrays")  # type: ignore[arg-type]
        self.watch.begin()
        return self.watch

    def later(self, seconds: float) -> World:
        self.at += seconds
        return self

    def tick(self, *jobs: Job, urgent: bool = False) -> list[JobStatus]:
        """One tick in which all these are asked for."""
        found = self.begin().statuses(jobs, urgent=urgent)
        self.memory.save(self.file)
        return [found[job.tag] for job in jobs]

    def see(self, job: Job, after: float = 0.0) -> JobStatus:
        """The answer of one tick that is sure to ask Slurm, so many seconds later than now."""
        self.at += after
        self.memory = Memory.load(self.file)
        self.memory.polled_at = 0.0
        self.memory.save(self.file)
        [status] = self.tick(job)
        return status

    def job(self, job_id: str = "45", *, name: str = NAME, tag: str = TAG, since: float | None = None, **fields: Any) -> Job:
        task = split_id(job_id)[1] if job_id else None
        run_dir = self.folder / "runs" / tag
        (run_dir / "status").mkdir(parents=True, exist_ok=True)
        return Job(tag, job_id, run_dir, name, **{"task": task, "since": self.at - 1000 if since is None else since, **fields})

    def patient(self, job: Job) -> JobStatus:
        """What it says of a job that has been away for long enough, when the accounting has had its time."""
        assert self.see(job) == UNKNOWN
        return self.see(job, 11)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return a_world(tmp_path, monkeypatch)


def a_world(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> World:
    made = World(folder, **options)
    monkeypatch.setattr(watch, "now", made.now)
    monkeypatch.setattr(pacing, "now", made.now)
    monkeypatch.setattr(pacing.random, "uniform", lambda low, high: (low + high) / 2)
    monkeypatch.setattr(watch.pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name={0: "root", 1001: "user"}[uid]))
    return made


def recorded(world: World, case: str, job_id: str, **fields: Any) -> Job:
    """A job as the recording has it; both commands answer as recorded."""
    for attribute in ("squeue", "sacct"):
        path = RECORDED / f"{case}.{attribute}"
        setattr(world.slurm, attribute, path.read_text() if path.exists() else "")
    rows: list[QueueRow | AccountRow] = [*parse_queue(world.slurm.squeue), *parse_accounting(world.slurm.sacct)]  # type: ignore[arg-type]
    [name] = {row.name for row in rows if split_id(row.job_id)[0] == split_id(job_id)[0]} - {"allocation"}
    return world.job(job_id, name=name, **fields)


# -- how often Slurm is asked --


def test_one_squeue_a_tick_however_often_it_is_asked(world: World) -> None:
    first, second = world.job("45"), world.job("46", tag="other")
    world.slurm.squeue = queued("45", "RUNNING", node="n1") + queued("46", "PENDING", "Priority")
    for _ in range(3):
        found = world.watch.statuses([first, second], urgent=True)
        assert (found[TAG].phase, found["other"].phase) == (RUNNING, PENDING)
    assert world.watch.statuses([second], urgent=False)["other"].reason == "Priority"
    assert (world.slurm.polls, world.slurm.asked) == (1, [])
    # Nor is it asked once more where it did not answer.
    world.slurm.squeue = DOWN
    world.later(100).begin()
    for _ in range(3):
        assert world.watch.statuses([first], urgent=True) == {TAG: UNKNOWN}
    assert world.slurm.polls == 2


def test_a_tick_that_takes_long_asks_once_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_world(tmp_path, monkeypatch, poll_min=0.5, poll_max=2.0)
    world.slurm.squeue = queued("45", "RUNNING")
    for _ in range(3):
        assert world.watch.statuses([world.job()], urgent=True)[TAG].phase is RUNNING
        world.later(100)
    assert world.slurm.polls == 1


def test_one_process_looks_anew_in_every_tick(world: World) -> None:
    """As under `submit-from-queue --wait`."""
    job = world.job()
    for state, phase in (("PENDING", PENDING), ("RUNNING", RUNNING), ("COMPLETED", Phase.ENDED)):
        world.slurm.squeue = queued("45", state)
        assert world.watch.statuses([job], urgent=False)[TAG].phase is phase
        world.later(100)
        world.watch.begin()
    # What was seen in another tick says nothing of this one.
    world.slurm.squeue = DOWN
    assert world.watch.statuses([job], urgent=False) == {TAG: UNKNOWN}
    assert not world.watch.is_anothers(world.job(name="another"))


def test_nothing_is_asked_for_no_job(world: World) -> None:
    assert world.tick() == [] and world.slurm.polls == 0


def test_nothing_is_asked_before_it_is_time(world: World) -> None:
    world.slurm.squeue = queued("45", "RUNNING")
    assert world.tick(world.job())[0].phase is RUNNING
    assert world.later(29.9).tick(world.job()) == [UNKNOWN]
    assert world.slurm.polls == 1
    assert world.later(0.2).tick(world.job())[0].phase is RUNNING
    assert world.slurm.polls == 2


def test_what_something_waits_for_is_asked_after_five_seconds(world: World) -> None:
    world.slurm.squeue = queued("45", "RUNNING")
    world.tick(world.job())
    assert world.later(4.9).tick(world.job(), urgent=True) == [UNKNOWN]
    assert world.later(0.2).tick(world.job(), urgent=True)[0].phase is RUNNING
    assert world.slurm.polls == 2
    # Within one tick too, where what was asked first could wait.
    world.later(6).begin()
    assert world.watch.statuses([world.job()], urgent=False) == {TAG: UNKNOWN}
    assert world.watch.statuses([world.job()], urgent=True)[TAG].phase is RUNNING


def test_a_site_that_wants_it_quick_gets_it_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_world(tmp_path, monkeypatch, poll_min=0.5, poll_max=2.0)
    world.tick(world.job())
    assert world.slurm.polls == 1
    world.later(0.6).tick(world.job(), urgent=True)
    assert world.slurm.polls == 2


def test_a_clock_that_was_set_back_stops_nothing(world: World) -> None:
    world.tick(world.job())
    world.later(-86400).tick(world.job(since=0))
    assert world.slurm.polls == 2
    world.slurm.squeue = DOWN
    world.later(200).tick(world.job(since=0))
    world.later(-86400).tick(world.job(since=0))
    assert world.slurm.polls == 4


def test_the_interval_grows_while_nothing_changes_and_falls_back_on_a_change(world: World) -> None:
    same, other = queued("45", "RUNNING"), queued("45", "COMPLETED")
    found = []
    for answer in (same, same, same, same, same, same, other, other, same):
        world.slurm.squeue = answer
        world.tick(world.job())
        found.append(world.memory.interval)
        world.later(1000)
    assert found == pytest.approx([30, 45, 67.5, 101.25, 151.875, 180, 30, 45, 30])


def test_a_new_job_brings_the_next_look_near(world: World) -> None:
    world.slurm.squeue = queued("45", "RUNNING")
    for _ in range(6):
        world.tick(world.job())
        world.later(1000)
    assert world.memory.interval == 180
    world.memory.hurry(30)
    assert world.memory.interval == 30
    world.memory.interval = 10
    world.memory.hurry(30)
    assert world.memory.interval == 10


def test_installs_do_not_ask_in_step(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    memory, found = Memory(), set()
    for number in range(200):
        memory.polled(float(number), str(number), 30, 180)
        found.add(memory.interval)
        assert 24 <= memory.interval <= 36
    assert len(found) > 100
    for number in range(200):
        memory.polled(float(number), "same", 30, 180)
    assert 144 <= memory.interval <= 216


# -- Slurm that does not answer --


def said(caplog: pytest.LogCaptureFixture, about: str = "") -> list[str]:
    found = [record.getMessage() for record in caplog.records if about in record.getMessage()]
    caplog.clear()
    return found


def test_a_controller_that_is_down_is_left_alone_for_longer_and_longer(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hpcrunner")
    world.slurm.squeue = DOWN
    waits = []
    for _ in range(7):
        assert world.tick(world.job(), urgent=True) == [UNKNOWN]
        begun, polls = world.at, world.slurm.polls
        while world.slurm.polls == polls:
            world.later(1).tick(world.job(), urgent=True)
        waits.append(world.at - begun)
    # After five in a row it is left alone for ten minutes at a time.
    assert waits == [5, 10, 20, 40, 600, 600, 600]
    messages = said(caplog)
    assert len(messages) == 2
    assert messages[0] == f"slurmctld can't be asked: {DOWN}; jobs go on, and it is asked again"
    assert messages[1] == "slurmctld did not answer 5 times in a row; it is left alone for 10 minutes"
    # It is back: one line more, and all is as before.
    world.slurm.squeue = queued("45", "RUNNING", node="n1")
    assert world.later(601).tick(world.job())[0].phase is RUNNING
    down = sum(waits) + 601
    assert said(caplog) == [f"slurmctld answers again, after {down:.0f} s"]
    assert (world.memory.controller.failures, world.memory.controller.problem) == (0, "")
    world.later(31).tick(world.job())
    assert said(caplog) == []
    world.slurm.squeue = DOWN
    world.later(100).tick(world.job())
    assert len(said(caplog)) == 1 and world.memory.controller.failures == 1


def test_an_outage_ends_no_job(world: World) -> None:
    job = world.job()
    world.slurm.squeue = queued("45", "RUNNING", node="n1")
    assert world.see(job).phase is RUNNING
    world.slurm.squeue = DOWN
    for _ in range(50):
        assert world.see(job, 3600) == UNKNOWN
    assert world.slurm.asked == []
    world.slurm.squeue = queued("45", "RUNNING", node="n1")
    assert world.see(job, 3600).phase is RUNNING


def test_accounting_that_does_not_answer_ends_no_job(world: World, caplog: pytest.LogCaptureFixture) -> None:
    job = world.job()
    world.slurm.sacct = DBD_DOWN
    for _ in range(50):
        assert world.see(job, 3600) == UNKNOWN
    assert len(said(caplog, "slurmdbd")) == 2
    assert world.memory.database.failures == 50 and world.memory.controller.failures == 0
    # It is left alone as well.
    calls = len(world.slurm.asked)
    assert world.see(job, 60) == UNKNOWN and len(world.slurm.asked) == calls
    world.slurm.sacct = accounted("45", "FAILED", "7:0")
    status = world.see(job, 600)
    assert (status.ending, status.code) == (FAILED, 7)
    assert [message for message in said(caplog) if "slurmdbd answers again" in message]
    assert world.memory.has_accounting is True


def test_accounting_that_is_not_there_is_found_out_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hpcrunner")
    job = world.job()
    world.slurm.sacct = DISABLED
    statuses = [world.see(job, 200) for _ in range(3)]
    assert [status.phase for status in statuses] == [Phase.UNKNOWN, Phase.UNKNOWN, GONE]
    assert len(world.slurm.asked) == 1 and world.memory.has_accounting is False
    assert said(caplog) == ["this Slurm keeps no accounting: squeue alone tells what became of jobs"]
    # What squeue has of an end is all there is.
    world.slurm.squeue = queued("45", "FAILED", "NonZeroExitCode", "n1")
    status = world.see(job, 200)
    assert (status.ending, status.code, status.node, status.reason, status.seen_at) == (FAILED, None, "n1", "FAILED", world.at)


def test_accounting_that_was_there_is_only_away(world: World) -> None:
    world.slurm.sacct = accounted("45", "COMPLETED")
    assert world.see(world.job()).ending is COMPLETED
    world.slurm.sacct = DISABLED
    for _ in range(10):
        assert world.see(world.job("46"), 3600) == UNKNOWN
    assert world.memory.has_accounting is True


# -- recorded answers --

N = dict[str, Any]


def told(ending: Ending, code: int | None = None, signal: int = 0, node: str = "cpu1", by: str = "", **more: Any) -> N:
    return {"phase": Phase.ENDED, "ending": ending, "code": code, "signal": signal, "node": node, "by": by, **more}


def waits(reason: str) -> N:
    return {"phase": PENDING, "reason": reason, "ending": None, "node": ""}


RUNS: N = {"phase": RUNNING, "reason": "", "ending": None, "node": "cpu1"}

CASES: list[tuple[str, str, N]] = [
    ("submitted-just-now", "369", waits("JobHeldUser")),
    ("submitted-just-now-array", "370_2", waits("JobHeldUser")),
    ("running-just-now", "371", RUNS), ("running", "288", RUNS), ("suspended", "298", RUNS), ("stopped", "297", RUNS), ("stopped-2", "299", RUNS),
    # squeue's word is the last: the processes are still being ended.
    ("completing", "288", RUNS), ("completing-array", "295_0", RUNS), ("requeue-at-once", "300", RUNS),
    ("exit-0", "276", told(COMPLETED)),
    ("quick-0", "275", told(COMPLETED)),
    ("exit-7", "277", told(FAILED, 7)),
    ("exit-137", "278", told(FAILED, 9)),
    ("exit-255", "279", told(FAILED, 127)),
    ("killed-9", "280", told(FAILED, 0, 9)),
    ("killed-segv", "281", told(FAILED, 0, 11)),
    ("bad-output-dir", "282", told(FAILED, 0, 53)),
    ("bad-interpreter", "284", told(FAILED, 2)),
    ("srun-step-fails", "287", told(COMPLETED)),
    ("over-memory", "285", told(OUT_OF_MEMORY, 0, 9, peak_memory=215716 * 1024)),
    ("over-memory-exec", "286", told(OUT_OF_MEMORY, 0, 9, peak_memory=212824 * 1024)),
    ("documented", "101", told(OUT_OF_MEMORY, 0, 125, "gpu1", peak_memory=4000000 * 1024)),
    ("documented", "102", told(BOOT_FAIL, node="gpu1")),
    ("documented", "115_3", told(FAILED, 137, node="gpu1")),
    ("cancelled-running-by-user", "288", told(CANCELLED, 0, by="user")),
    ("cancelled-running-ignores-term", "289", told(CANCELLED, 0, by="user")),
    ("cancelled-running-by-root", "290", told(CANCELLED, 0, by="root")),
    ("cancelled-pending-by-user", "292", told(CANCELLED, 0, node="", by="user")),
    ("cancelled-pending-by-root", "291", told(CANCELLED, 0, node="", by="root")),
    ("signalled-term-exit-143", "294", told(FAILED, 15)),
    ("timeout", "271", told(TIMEOUT)),
    ("timeout-ignores-term", "272", told(TIMEOUT)),
    ("deadline", "376", told(Ending.DEADLINE, node="")),
    ("requeue-pending", "300", waits("BeginTime")), ("requeue-ended", "300", told(COMPLETED)), ("requeue-of-ended", "368", waits("BeginTime")),
    ("requeuehold", "301", waits("job requeued in held state")), ("special-exit", "302", waits("job requeued in held state")),
    ("requeuehold-cancelled", "301", told(CANCELLED, 0, node="", by="user")),
    ("preempted-no-requeue", "303", told(PREEMPTED, node="gpu2")),
    ("preempted-requeue-at-once", "305", waits("BeginTime")), ("preempted-requeue", "305", waits("BeginTime")),
    ("preempted-requeue-ended", "305", told(COMPLETED, node="gpu2")),
    ("node-fail-no-requeue", "307", told(NODE_FAIL, node="gpu1")),
    ("node-fail-requeue-at-once", "308", waits("")), ("node-fail-requeue", "308", waits("BeginTime")),
    ("node-fail-requeue-ended", "308", told(COMPLETED, node="gpu1")),
    ("pending-node-down", "309", waits("ReqNodeNotAvail, UnavailableNodes:gpu1")), ("pending-partition-time-limit", "314", waits("PartitionTimeLimit")),
    ("pending-qos-not-allowed", "332", waits("Job's QOS not permitted to use this partition (gpu allows high not normal)")),
    ("pending-array-throttled", "327_0", RUNS), ("pending-array-throttled", "327_5", waits("JobArrayTaskLimit")),
    ("pending-array-throttled-cancelled", "327_0", told(CANCELLED, 0, by="user")),
    ("pending-array-throttled-cancelled", "327_4", told(CANCELLED, 0, node="", by="user")),
    ("array-ends", "333_0", told(COMPLETED)), ("array-ends", "333_2", told(FAILED, 2)),
    ("array-mixed-states", "362_2", told(FAILED, 0, 9)), ("array-mixed-states", "362_3", RUNS), ("array-mixed-states", "362_4", told(CANCELLED, 0, by="user")),
    # sacct's row of those that wait still names one that runs, or that was cancelled as it ran: its own row counts.
    ("array-element-cancelled-running", "334_0", told(CANCELLED, 0, by="user")), ("array-element-cancelled-running", "334_2", RUNS),
    ("array-element-cancelled-running", "334_4", waits("JobArrayTaskLimit")),
    ("array-cancelled-mixed", "334_2", told(CANCELLED, 0, by="user")), ("array-cancelled-mixed", "334_4", told(CANCELLED, 0, node="", by="user")),
    ("array-element-requeued", "344_0", waits("JobArrayTaskLimit")), ("array-element-requeued", "344_1", RUNS),
    ("array-element-split-cancelled", "342_2", told(CANCELLED, 0, node="", by="user")), ("array-element-split-cancelled", "342_3", waits("JobHeldUser")),
    # squeue has but the array's bare id for those that were cancelled as they waited.
    ("array-state-pending-cancels-all", "342_0", told(CANCELLED, 0, node="", by="user")),
    ("array-state-pending-cancels-all", "342_2", told(CANCELLED, 0, node="", by="user")),
    ("array-cancelled-pending", "341_3", told(CANCELLED, 0, node="", by="user")),
    ("array-cancelled-pending", "341_5", told(CANCELLED, 0, node="", by="user")),
    ("array-large-cancelled", "347_2996", told(CANCELLED, 0, node="", by="user")), ("array-large-pending", "347_2989", waits("JobHeldUser")),
    ("array-irregular-cancelled", "381_1041", told(CANCELLED, 0, node="", by="user")),
    ("two-attempts", "348", told(FAILED, 3)), ("two-attempts", "349", told(COMPLETED)),
]


@pytest.mark.parametrize(("case", "job_id", "expected"), CASES, ids=[f"{case}:{job_id}" for case, job_id, _ in CASES])
def test_recorded(world: World, case: str, job_id: str, expected: N) -> None:
    """What is asked for in a tick that looks at once; the accounting may only add what squeue can't tell."""
    job = recorded(world, case, job_id)
    status = world.see(job)
    # What sacct has of a good end, or of one that squeue explains, is not asked for.
    asked = {name: value for name, value in expected.items() if name != "code" or value is not None}
    assert {name: getattr(status, name) for name in asked} == asked
    assert (status.job_id, status.job_name, status.task) == (job_id, job.name, split_id(job_id)[1])
    assert status.seen_at == (world.at if status.phase is Phase.ENDED else 0.0)


def test_sacct_is_asked_only_for_what_squeue_cannot_tell(world: World) -> None:
    states = ["RUNNING", "PENDING", "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY"]
    jobs = [world.job(str(number), tag=f"t{number}", since=world.at - 100 - number) for number in range(len(states))]
    world.slurm.squeue = "".join(queued(str(number), state) for number, state in enumerate(states))
    elements = [world.job(f"{array}_{index}", tag=f"e{array}{index}", since=world.at - 500) for array in (60, 61) for index in range(3)]
    world.slurm.squeue += queued("60_[0-1]", "PENDING") + queued("60_2", "CANCELLED") + queued("61_0", "RUNNING")
    nameless = world.job("", tag="new", name="hrabcdaaaaaaabb", since=world.at - 200)
    world.tick(*jobs, *elements, nameless)
    [(ids, names, since)] = world.slurm.asked
    assert ids == ["3", "4", "60", "61", "8"] and names == ["hrabcdaaaaaaabb"]
    # Slurm's clock and ours may differ, and a submission takes its time.
    assert since == world.at - 500 - 300


def test_a_job_that_is_younger_than_the_look_is_not_judged_by_it(world: World) -> None:
    world.begin()
    old, new = world.job("44", tag="old"), world.job("45", since=world.at)
    world.slurm.squeue = queued("44", "RUNNING")
    assert world.watch.statuses([old, world.job("47", tag="at once", since=world.at)], urgent=True)["at once"] == UNKNOWN
    world.later(2)
    assert world.watch.statuses([old, new, world.job("46", tag="newer", since=world.at)], urgent=True)[TAG] == UNKNOWN
    assert world.slurm.asked == [] and world.memory.absent == {}
    # If it is there, it counts.
    world.slurm.squeue += queued("45", "PENDING", "Priority")
    assert world.see(new).reason == "Priority"


def test_nor_when_the_accounting_was_asked_for_another(world: World) -> None:
    old, new = world.job("44", tag="old"), world.job("45", since=world.at)
    world.slurm.sacct = accounted("44", "COMPLETED") + accounted("45", "FAILED")
    found = world.tick(old, new)
    assert (found[0].ending, found[1]) == (COMPLETED, UNKNOWN)
    assert world.slurm.asked[0][0] == ["44"] and world.memory.absent.keys() == {"old"}


# -- absence --


def test_a_job_that_left_squeue_ends_as_sacct_says(world: World) -> None:
    world.slurm.sacct = accounted("45", "FAILED", "7:0", "n3", peak="") + accounted("45.batch", "FAILED", "7:0", peak="2000K", name="batch")
    status = world.see(world.job())
    assert status == JobStatus(Phase.ENDED, "45", NAME, None, "FAILED", FAILED, "", 7, 0, "n3", 2000 * 1024, world.at)
    at = world.at
    assert world.see(world.job(), 100).seen_at == at


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "CANCELLED by 1001", "REVOKED"])
def test_ends_that_are_final_count_at_once(world: World, state: str) -> None:
    world.slurm.sacct = accounted("45", state)
    assert world.see(world.job()).ending is Ending(state.partition(" ")[0])


@pytest.mark.parametrize("ending", [PREEMPTED, NODE_FAIL, BOOT_FAIL])
def test_an_end_that_may_be_followed_by_another_run_counts_only_when_none_came(world: World, ending: Ending) -> None:
    job = world.job()
    world.slurm.sacct = accounted("45", ending.value, node="n1")
    assert world.see(job) == UNKNOWN
    assert world.see(job, 9) == UNKNOWN  # twice, but too soon
    status = world.see(job, 1)
    assert (status.ending, status.node, status.seen_at) == (ending, "n1", world.at)


def test_a_requeued_job_is_back(world: World) -> None:
    job = world.job()
    world.slurm.sacct = accounted("45", "PREEMPTED")
    assert world.see(job) == UNKNOWN
    world.slurm.squeue = queued("45", "PENDING", "BeginTime")
    assert world.see(job, 100).phase is PENDING
    # The patience begins anew.
    world.slurm.squeue = ""
    assert world.see(job, 100) == UNKNOWN
    # sacct knows of the new run only: not over, whatever became of the one before.
    world.slurm.sacct += accounted("45", "RUNNING", submitted="2026-11-25T04:10:00")
    assert world.see(job, 100) == UNKNOWN
    world.slurm.sacct = accounted("45", "PREEMPTED") + accounted("45", "COMPLETED", submitted="2026-11-25T04:10:00")
    assert world.see(job, 100).ending is COMPLETED


def test_a_run_that_was_requeued_is_no_end(world: World) -> None:
    job = world.job()
    world.slurm.sacct = accounted("45", "REQUEUED")
    assert [world.see(job, 100).phase for _ in range(5)] == [Phase.UNKNOWN] * 5


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_what_the_accounting_has_as_live_is_not_lost_for_hours(world: World, state: str) -> None:
    """squeue may answer nothing, and mean nothing by it; in the end it is a runaway of the accounting."""
    job = world.job()
    world.slurm.sacct = accounted("45", state)
    assert {world.see(job, 3600).phase for _ in range(6)} == {Phase.UNKNOWN}
    assert world.see(job, 3600).phase is GONE


def test_a_slurmctld_that_lost_its_state_cancels_nothing(world: World) -> None:
    """A new one registers, and slurmdbd writes off what that doesn't know: CANCELLED, by nobody."""
    job = world.job()
    world.slurm.sacct = accounted("45", "CANCELLED")
    assert [world.see(job, 100) for _ in range(4)] == [UNKNOWN] * 3 + [
        JobStatus(GONE, reason="slurmctld lost its state, and the job with it")]
    cancelled = world.job("46", tag="other", is_cancelled=True)
    world.slurm.sacct = accounted("46", "CANCELLED")
    assert world.see(cancelled).ending is CANCELLED


def test_a_job_that_was_renamed_is_still_its_own(world: World) -> None:
    job = world.job()
    world.slurm.squeue = queued("45", "RUNNING", node="n1", name="mine", folder=str(job.run_dir))
    assert world.see(job).phase is Phase.RUNNING
    assert not world.watch.is_anothers(job)
    world.slurm.squeue = queued("45", "FAILED", name="mine", folder=str(job.run_dir))
    world.slurm.sacct = accounted("45", "FAILED", "7:0", name="mine")
    (job.run_dir / "status" / "owner").write_text(f"{TAG} n1 45 mine\n")
    assert (world.see(job).ending, world.see(job).code) == (FAILED, 7)
    # The id is given again.
    world.slurm.squeue = queued("45", "RUNNING", name="mine", folder="/elsewhere")
    assert world.see(job).phase is not Phase.RUNNING
    assert world.watch.is_anothers(job)


def test_an_array_that_was_renamed_is_still_its_own(world: World) -> None:
    job = world.job("45_1")
    world.slurm.squeue = queued("45_1", "RUNNING", name="mine", folder=str(world.folder / "arrays"))
    assert world.see(job).phase is Phase.RUNNING
    # All arrays of an install are submitted from one folder.
    world.slurm.squeue = queued("45_1", "RUNNING", name=NAME[:6] + "another", folder=str(world.folder / "arrays"))
    assert world.see(job).phase is Phase.UNKNOWN


def test_a_clock_that_was_ahead_at_the_submission_hides_no_end(world: World) -> None:
    job = world.job(since=world.at + 86400)
    world.slurm.squeue = queued("45", "TIMEOUT", node="n1")
    assert world.see(job).ending is TIMEOUT
    gone = world.job("46", tag="gone", since=world.at + 86400)
    assert [world.see(gone, 100).phase for _ in range(4)] == [Phase.UNKNOWN] * 3 + [GONE]


def test_a_job_is_lost_only_after_three_good_looks_and_its_time(world: World) -> None:
    job = world.job()
    assert world.see(job) == UNKNOWN
    assert world.see(job, 10000) == UNKNOWN  # twice
    assert world.see(job, 1) == JobStatus(GONE)


def test_looks_alone_do_not_make_a_job_lost(world: World) -> None:
    job = world.job()
    for _ in range(10):
        assert world.see(job, 33) == UNKNOWN
    assert world.see(job, 33) == JobStatus(GONE)


def test_looks_without_an_answer_do_not_count(world: World) -> None:
    job = world.job()
    assert world.see(job) == UNKNOWN
    for squeue, sacct in ((DOWN, ""), ("", DBD_DOWN), (DOWN, DBD_DOWN)) * 2:
        world.slurm.squeue, world.slurm.sacct = squeue, sacct
        assert world.see(job, 1000) == UNKNOWN
    world.slurm.squeue, world.slurm.sacct = "", ""
    assert world.see(job, 1000) == UNKNOWN
    assert world.see(job, 1) == JobStatus(GONE)


def test_a_job_that_was_seen_again_is_missed_anew(world: World) -> None:
    job = world.job()
    for _ in range(2):
        assert world.see(job, 400) == UNKNOWN
    world.slurm.squeue = queued("45", "RUNNING")
    assert world.see(job, 1).phase is RUNNING
    world.slurm.squeue = ""
    assert [world.see(job, 200).phase for _ in range(3)] == [Phase.UNKNOWN, Phase.UNKNOWN, GONE]


def test_one_that_somebody_wanted_to_end_is_not_missed_for_long(world: World) -> None:
    assert world.patient(world.job(is_cancelled=True)) == JobStatus(GONE)


def test_what_is_lost_without_accounting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_world(tmp_path, monkeypatch)
    world.memory.has_accounting = False
    world.memory.save(world.file)
    job = world.job()
    assert [world.see(job, 200).phase for _ in range(3)] == [Phase.UNKNOWN, Phase.UNKNOWN, GONE]
    assert world.slurm.asked == []


# -- ids and names --


def test_an_id_that_is_another_jobs_by_now_tells_nothing(world: World) -> None:
    job = world.job()
    for state in ("RUNNING", "COMPLETED", "CANCELLED"):
        world.slurm.squeue = queued("45", state, name="somebody else's")
        world.slurm.sacct = accounted("45", "COMPLETED", name="somebody else's")
        assert world.see(job, 1) == UNKNOWN
        assert world.watch.is_anothers(job)
    assert world.see(job, 1000) == JobStatus(GONE)
    # The accounting remembers both.
    world.slurm.sacct += accounted("45", "FAILED", "3:0", submitted="2026-11-01T00:00:00")
    assert world.see(job, 1).code == 3


def test_only_a_foreign_name_makes_an_id_anothers(world: World) -> None:
    job = world.job()
    assert not world.watch.is_anothers(job)
    world.slurm.squeue = queued("45", "RUNNING")
    world.see(job)
    assert not world.watch.is_anothers(job)
    world.slurm.squeue = ""
    world.see(job, 10)
    assert not world.watch.is_anothers(job)


def test_a_job_that_ended_before_its_record_came_is_called_allocation(world: World) -> None:
    world.slurm.sacct = accounted("45", "FAILED", "7:0", requested="16?", name="allocation")
    assert world.see(world.job()).code == 7


def test_what_squeue_shows_as_failed_is_explained_by_sacct_when_it_has_the_record(world: World) -> None:
    job = recorded(world, "signalled-term", "293")
    first = world.at
    assert world.see(job) == UNKNOWN  # `allocation`, and without the memory that it asked for
    assert isinstance(world.slurm.sacct, str)
    world.slurm.sacct = world.slurm.sacct.replace("allocation", job.name).replace("16?", "100M")
    status = world.see(job, 5)
    assert (status.ending, status.signal, status.seen_at) == (FAILED, 15, first)


@pytest.mark.parametrize("sacct", ["", accounted("45", "RUNNING"), accounted("45", "PREEMPTED"), accounted("45", "PENDING", requested="16?", name="allocation")])
@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_accounting_that_stays_behind_is_waited_for_ten_seconds(world: World, state: str, sacct: str) -> None:
    job = world.job()
    # That there is accounting is known.
    world.slurm.sacct = accounted("44", "COMPLETED")
    world.see(world.job("44", tag="other"))
    world.slurm.squeue, world.slurm.sacct = queued("45", state, "None", "n2"), sacct
    first = world.later(1).at
    assert world.see(job) == UNKNOWN
    assert world.see(job, 9) == UNKNOWN
    status = world.see(job, 1)
    # Nothing of an earlier run, or of one that has not ended, is told of this one.
    assert status == JobStatus(Phase.ENDED, "45", NAME, None, state, Ending(state), node="n2", seen_at=first)


@pytest.mark.parametrize("state", ["COMPLETED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"])
def test_an_end_that_squeue_explains_waits_for_no_accounting(world: World, state: str) -> None:
    world.memory.has_accounting = True
    world.memory.save(world.file)
    world.slurm.squeue = queued("45", state, node="n2")
    status = world.see(world.job())
    assert (status.ending, status.node, status.seen_at) == (Ending(state), "n2", world.at)


@pytest.mark.parametrize(("by_squeue", "by_sacct", "node"), [("n2", "None assigned", "n2"), ("", "n3", "n3"), ("n2", "n3", "n3"), ("", "None assigned", "")])
def test_the_node_is_told_by_either(world: World, by_squeue: str, by_sacct: str, node: str) -> None:
    world.slurm.squeue, world.slurm.sacct = queued("45", "FAILED", node=by_squeue), accounted("45", "FAILED", "7:0", by_sacct)
    assert world.see(world.job()).node == node


def test_accounting_that_is_away_delays_no_end_for_long(world: World) -> None:
    world.slurm.squeue, world.slurm.sacct = queued("45", "FAILED", "NonZeroExitCode", "n2"), DBD_DOWN
    status = world.see(world.job())
    assert (status.ending, status.code) == (FAILED, None)
    world.memory.has_accounting = True
    world.memory.save(world.file)
    job = world.job(tag="other")
    assert world.see(job, 100) == UNKNOWN
    assert world.see(job, 11).ending is FAILED


def test_a_job_that_ended_and_was_requeued_lives(world: World) -> None:
    """`scontrol requeue` of a job that had ended."""
    job = world.job()
    world.slurm.squeue = queued("45", "COMPLETED")
    first = world.see(job).seen_at
    world.slurm.squeue = queued("45", "PENDING", "BeginTime")
    assert world.see(job, 50).phase is PENDING
    world.slurm.squeue = queued("45", "COMPLETED")
    assert world.see(job, 50).seen_at == first + 100


# -- jobs whose id nobody knows --


def test_a_submission_without_an_answer_is_found_by_its_name(world: World) -> None:
    job = world.job("")
    world.slurm.squeue = queued("50", "PENDING", "Priority") + queued("51", "RUNNING", name="another")
    assert world.see(job) == JobStatus(PENDING, "50", NAME, None, "Priority")


@pytest.mark.parametrize(("rows", "job_id"), [
    # Of several the one that runs, then one that waits; the older of equals.
    ([("50", "PENDING"), ("51", "RUNNING"), ("52", "RUNNING"), ("49", "COMPLETED")], "51"),
    ([("100", "PENDING"), ("99", "PENDING"), ("49", "COMPLETED")], "99"),
    ([("51", "COMPLETED"), ("50", "COMPLETED")], "50"),
    # Parts of a heterogeneous job are nobody's.
    ([("40+0", "RUNNING"), ("40+1", "RUNNING"), ("50", "PENDING")], "50"),
])
def test_which_of_several_jobs_of_one_name(world: World, rows: list[tuple[str, str]], job_id: str) -> None:
    world.slurm.squeue = "".join(queued(*row) for row in rows)
    assert world.see(world.job("")).job_id == job_id


def test_an_element_of_an_array_without_an_answer_is_found_by_name_and_index(world: World) -> None:
    world.slurm.squeue = queued("50_[3-4]", "PENDING", "Resources") + queued("50_2", "RUNNING", node="n2")
    found = world.tick(*(world.job("", tag=f"t{task}", task=task) for task in (2, 3, 7)))
    assert [(status.job_id, status.task, status.node) for status in found[:2]] == [("50_2", 2, "n2"), ("50_3", 3, "")]
    assert found[2] == UNKNOWN


def test_a_submission_without_an_answer_that_has_ended_is_found_in_sacct(world: World) -> None:
    world.slurm.sacct = accounted("50_3", "FAILED", "7:0") + accounted("50_4", "COMPLETED") + accounted("51", "COMPLETED")
    status = world.see(world.job("", task=3))
    assert (status.job_id, status.task, status.ending, status.code) == ("50_3", 3, FAILED, 7)
    assert [(ids, names) for ids, names, _ in world.slurm.asked] == [([], [NAME])]
    assert world.see(world.job("", tag="other")).job_id == "51"
    # One that waits, by a row of many
    world.slurm.sacct = accounted("50_[3-5]", "PENDING")
    status = world.see(world.job("", tag="third", task=4))
    assert (status.job_id, status.phase) == ("50_4", PENDING)


def test_a_submission_without_an_answer_that_has_ended_is_explained(world: World) -> None:
    world.slurm.squeue, world.slurm.sacct = queued("50", "FAILED", "NonZeroExitCode", "n1"), accounted("50", "FAILED", "7:0")
    status = world.see(world.job(""))
    assert (status.job_id, status.ending, status.code) == ("50", FAILED, 7)


def test_what_sacct_has_of_other_names_is_not_taken_for_it(world: World) -> None:
    world.slurm.sacct = accounted("44", "COMPLETED", name="hrabcdaaaaaaabb")
    found = world.tick(world.job("44", tag="other", name="hrabcdaaaaaaabb"), world.job(""))
    assert (found[0].ending, found[1]) == (COMPLETED, UNKNOWN)


def test_that_there_is_no_such_job_is_believed_when_it_was_looked_for_twice(world: World) -> None:
    """A controller that hung may answer squeue before it looks at the submission that waited with it."""
    job = world.job("")
    assert world.see(job) == UNKNOWN
    assert world.see(job, 179) == UNKNOWN
    status = world.see(job, 1)
    assert (status.phase, status.seen_at) == (GONE, world.at)


def test_that_there_is_no_such_job_is_not_believed_without_accounting(world: World) -> None:
    job = world.job("")
    world.slurm.sacct = DBD_DOWN
    for _ in range(10):
        assert world.see(job, 1000) == UNKNOWN


# -- whose run directory it is --


def owner(job: Job, text: str) -> None:
    (job.run_dir / "status" / "owner").write_text(text)


def test_another_job_that_has_its_run_directory_is_adopted(world: World) -> None:
    for job_id in ("45", "46", ""):
        job = world.job(job_id)
        owner(job, f"{TAG} n7 44 hrabcdaaaaaaabb\n")
        world.slurm.squeue = queued("46", "COMPLETED")
        assert world.see(job, 1) == JobStatus(RUNNING, "44", "hrabcdaaaaaaabb", None, node="n7")
    job = world.job("50_3")
    owner(job, f"{TAG} n7 44_2 hrabcdaaaaaaabb\n")
    assert world.see(job, 1) == JobStatus(RUNNING, "44_2", "hrabcdaaaaaaabb", 2, node="n7")


def test_the_owner_of_a_live_job_is_not_asked_for(world: World) -> None:
    job = world.job()
    owner(job, f"{TAG} n7 44 hrabcdaaaaaaabb\n")
    world.slurm.squeue = queued("45", "PENDING", "Priority")
    assert world.see(job).job_id == "45"


@pytest.mark.parametrize("text", [f"{TAG} n1 45 {NAME}\n", "", "x", "a b c", "a b c d e", "\xff\xfe"])
def test_an_owner_that_is_itself_or_makes_no_sense_is_nobody(world: World, text: str) -> None:
    job = world.job()
    (job.run_dir / "status" / "owner").write_bytes(text.encode("latin-1"))
    world.slurm.sacct = accounted("45", "COMPLETED")
    assert world.see(job).ending is COMPLETED


# -- arrays --


def test_an_element_that_was_cancelled_by_itself_leaves_no_trace(world: World) -> None:
    """Recorded: 334_3 is neither in squeue nor, when the next has begun, in sacct."""
    job = recorded(world, "array-element-cancelled-running", "334_3")
    first = world.at
    assert world.see(job) == UNKNOWN
    assert world.see(job, 9) == UNKNOWN
    assert world.see(job, 2) == JobStatus(Phase.ENDED, "334_3", job.name, 3, "CANCELLED while it waited", CANCELLED, seen_at=first)


@pytest.mark.parametrize(("case", "job_id"), [("array-element-cancelled-pending", "334_3"), ("array-held-element-cancelled", "341_5")])
def test_sacct_may_name_such_an_element_for_long(world: World, case: str, job_id: str) -> None:
    """Until then its row of those that wait has it as PENDING."""
    status = world.patient(recorded(world, case, job_id))
    assert (status.ending, status.reason) == (CANCELLED, "CANCELLED while it waited")


def test_it_is_enough_that_sacct_knows_the_array(world: World) -> None:
    world.slurm.sacct = accounted("45_0", "COMPLETED") + accounted("45_2", "COMPLETED")
    assert world.patient(world.job("45_1")).ending is CANCELLED


def test_an_array_of_which_nothing_is_left_is_lost_and_not_cancelled(world: World) -> None:
    job = world.job("45_1")
    assert world.patient(job) == UNKNOWN
    assert world.see(job, 300) == JobStatus(GONE)
    # A controller that lost its state: sacct goes on with what it heard last.
    other = world.job("46_1", tag="other")
    world.slurm.sacct = accounted("46_[0-2]", "PENDING")
    assert world.patient(other) == UNKNOWN
    assert world.see(other, 300) == JobStatus(GONE)


def test_an_element_that_has_begun_was_not_cancelled_as_it_waited(world: World) -> None:
    world.slurm.squeue = queued("45_0", "RUNNING")
    runs, began = world.job("45_1", is_running=True), world.job("45_2", tag="other")
    owner(began, f"other n1 45_2 {NAME}\n")
    for job in (runs, began):
        assert world.patient(job) == UNKNOWN
        assert world.see(job, 300) == JobStatus(GONE)


def test_without_accounting_an_element_vanishes_too(world: World) -> None:
    world.memory.has_accounting = False
    world.memory.save(world.file)
    world.slurm.squeue = queued("45_0", "RUNNING")
    assert world.patient(world.job("45_1")).ending is CANCELLED


def test_single_jobs_do_not_vanish(world: World) -> None:
    world.slurm.squeue = queued("45_0", "RUNNING")
    assert world.patient(world.job("45")) == UNKNOWN


def test_the_last_of_a_regular_rest_waits(world: World) -> None:
    """squeue --array would leave it out."""
    world.slurm.squeue = queued("45_[0-20:2]", "PENDING", "Resources")
    assert {status.reason for status in world.tick(*(world.job(f"45_{index}", tag=f"t{index}") for index in range(0, 21, 2)))} == {"Resources"}
    assert world.slurm.asked == []


def test_an_array_cancelled_whole_has_its_bare_id_in_both(world: World) -> None:
    """If it was cancelled within seconds."""
    world.slurm.squeue, world.slurm.sacct = queued("45", "CANCELLED", "JobHeldUser"), accounted("45", "CANCELLED by 1001", node="None assigned")
    for index in (0, 7):
        status = world.see(world.job(f"45_{index}", tag=f"t{index}"), 1)
        assert (status.job_id, status.task, status.ending, status.by) == (f"45_{index}", index, CANCELLED, "user")
    # squeue forgets it.
    world.slurm.squeue = ""
    status = world.see(world.job("45_8", tag="t8"), 1)
    assert (status.job_id, status.by) == ("45_8", "user")


def test_an_array_cancelled_whole_without_accounting(world: World) -> None:
    world.memory.has_accounting = False
    world.memory.save(world.file)
    world.slurm.squeue = queued("45", "CANCELLED", "JobHeldUser")
    assert world.see(world.job("45_3")).ending is CANCELLED


def test_an_array_cancelled_whole_that_sacct_has_as_waiting_still(world: World) -> None:
    world.slurm.squeue, world.slurm.sacct = queued("45", "CANCELLED", "JobHeldUser"), accounted("45_[0-7]", "PENDING")
    job = world.job("45_3")
    assert world.see(job) == UNKNOWN
    status = world.see(job, 10)
    assert (status.ending, status.reason) == (CANCELLED, "CANCELLED")


def test_an_element_of_which_sacct_has_a_run_did_not_vanish(world: World) -> None:
    world.slurm.squeue = queued("45_0", "RUNNING")
    world.slurm.sacct = accounted("45_1", "RUNNING")
    job = world.job("45_1")
    assert world.patient(job) == UNKNOWN
    assert world.see(job, 300) == UNKNOWN


def test_the_bare_id_tells_nothing_of_elements_that_have_their_own_record(world: World) -> None:
    world.slurm.squeue = queued("45", "CANCELLED", "JobHeldUser")
    world.slurm.sacct = (accounted("45_0", "COMPLETED", node="n4") + accounted("45_1", "FAILED", "7:0") + accounted("45_[2-3]", "CANCELLED by 1001", node="None assigned"))
    found = world.tick(*(world.job(f"45_{index}", tag=f"t{index}") for index in range(4)))
    assert [(status.ending, status.code, status.by) for status in found] == [(COMPLETED, 0, ""), (FAILED, 7, ""), (CANCELLED, 0, "user"), (CANCELLED, 0, "user")]


def test_the_bare_id_of_a_job_that_has_just_begun_is_its_last_element(world: World) -> None:
    world.slurm.squeue = queued("45_0", "RUNNING")
    world.slurm.sacct = accounted("45", "COMPLETED", name="allocation")
    assert world.patient(world.job("45_1")).reason == "CANCELLED while it waited"


def test_an_array_of_another_name_tells_nothing(world: World) -> None:
    world.slurm.squeue = queued("45", "CANCELLED", name="another") + queued("45_1", "RUNNING", name="another")
    world.slurm.sacct = accounted("45", "CANCELLED", name="another") + accounted("45_1", "COMPLETED", name="another")
    assert world.see(world.job("45_1")) == UNKNOWN


# -- who and how much --


def test_who_cancelled_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.slurm.sacct = accounted("45", "CANCELLED by 1001")
    assert world.see(world.job()).by == "user"
    monkeypatch.undo()
    monkeypatch.setattr(watch, "now", world.now)
    unknown = next(uid for uid in range(54321, 64321) if uid not in {entry.pw_uid for entry in pwd.getpwall()})
    world.slurm.sacct = accounted("45", f"CANCELLED by {unknown}")
    assert world.see(world.job(), 1).by == f"user {unknown}"
    world.slurm.sacct = accounted("45", "CANCELLED")
    assert world.see(world.job(), 1).by == ""


@pytest.mark.parametrize(("exit_code", "requested", "peak", "ending"), [
    ("0:9", "50M", "51201K", OUT_OF_MEMORY), ("0:9", "50M", "50M", OUT_OF_MEMORY), ("0:9", "50M", "40M", FAILED), ("0:9", "50Mn", "60M", OUT_OF_MEMORY),
    # Per core, or not known: nothing to compare with
    ("0:9", "50Mc", "60M", FAILED), ("0:9", "", "60M", FAILED), ("0:9", "16?", "60M", FAILED), ("0:9", "50M", "", FAILED),
    ("1:0", "50M", "60M", FAILED), ("0:15", "50M", "60M", FAILED), ("9:0", "50M", "60M", FAILED),
])
def test_a_job_that_was_killed_over_its_memory(world: World, exit_code: str, requested: str, peak: str, ending: Ending) -> None:
    world.slurm.sacct = accounted("45", "FAILED", exit_code, requested=requested) + accounted("45.batch", "CANCELLED by 0", exit_code, peak=peak, requested="", name="batch")
    assert world.see(world.job()).ending is ending


def test_a_cancelled_job_is_no_victim_of_its_memory(world: World) -> None:
    world.slurm.sacct = accounted("45", "CANCELLED by 1001", "0:9", requested="50M") + accounted("45.batch", "CANCELLED", "0:9", peak="60M", name="batch")
    status = world.see(world.job())
    assert (status.ending, status.peak_memory) == (CANCELLED, 60 * 2**20)


# -- memory --


def test_the_memory_outlives_a_tick(world: World) -> None:
    world.slurm.squeue = queued("45", "RUNNING")
    world.see(world.job())
    world.slurm.squeue = ""
    world.see(world.job(), 100)
    again = Memory.load(world.file)
    assert again == world.memory
    assert again.absent == {TAG: [world.at, 1]} and again.has_accounting is True
    assert not [path for path in world.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "7", '"text"', "{}", '{"controller": {}}', "\x00\x01", '{"controller": 7, "database": []}',
                                  '{"controller": {"what": "slurmctld", "gone": 1}, "database": {"what": "slurmdbd"}}'])
def test_a_memory_that_makes_no_sense_is_begun_anew(world: World, text: str) -> None:
    world.file.write_text(text)
    assert Memory.load(world.file) == Memory()
    world.slurm.squeue = queued("45", "RUNNING")
    assert world.tick(world.job())[0].phase is RUNNING
    assert Memory.load(world.file) == world.memory


def test_a_lost_memory_costs_patience_and_nothing_else(world: World) -> None:
    job = world.job()
    for _ in range(2):
        world.see(job, 400)
    world.file.unlink()
    assert [world.see(job, 400).phase for _ in range(3)] == [Phase.UNKNOWN, Phase.UNKNOWN, GONE]
    world.file.write_bytes(b"\xff\xfe")
    assert world.see(job, 400) == UNKNOWN


def test_memories_of_older_and_newer_versions(world: World) -> None:
    world.see(world.job())
    held = json.loads(world.file.read_text())
    older = {name: value for name, value in held.items() if name not in ("largest_array", "ended", "fingerprint")}
    world.file.write_text(json.dumps(older))
    assert Memory.load(world.file).absent == world.memory.absent
    world.file.write_text(json.dumps({**held, "of_a_later_version": 1}))
    assert Memory.load(world.file) == Memory()


def test_a_memory_makes_the_folder_that_it_needs(world: World) -> None:
    world.file = world.folder / "a" / "b" / "slurm.json"
    world.tick(world.job())
    assert Memory.load(world.file) == world.memory


def test_a_memory_that_cannot_be_written_stops_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.file = world.folder / "file" / "slurm.json"
    (world.folder / "file").write_text("")
    world.slurm.squeue = queued("45", "RUNNING")
    assert world.tick(world.job())[0].phase is RUNNING
    [message] = said(caplog)
    assert "can't be written" in message


def test_what_is_long_over_is_forgotten(world: World) -> None:
    world.slurm.squeue = queued("46", "COMPLETED")
    world.tick(world.job(), world.job("46", tag="other"))
    assert world.memory.absent.keys() == {TAG} and world.memory.ended.keys() == {"other"}
    world.slurm.squeue = queued("47", "RUNNING")
    world.see(world.job("47", tag="third"), 6 * 86400)
    assert world.memory.absent and world.memory.ended
    world.see(world.job("47", tag="third"), 86401)
    assert world.memory.absent == {} and world.memory.ended == {}
