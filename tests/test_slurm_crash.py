"""kill -9 of hpcrunner, false answers and full disks at every step of a submission to a real Slurm: whatever happens,
each experiment runs exactly once, and its results come back once."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from countedlab import Commands, CountedLab, Tally
from disks import small_disk
from slurmcluster import Slurm, wait_until
from test_kill import KILLER

pytestmark = pytest.mark.service("slurm")

LIE = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
NO_ACCOUNTING = 'echo "sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection" >&2; exit 1'


def kill_at(lab: CountedLab, point: str, when: str) -> None:
    """Runs hpcrunner until it kills itself there."""
    killed = lab.work("-c", KILLER, point, when, "submit-from-queue", "--wait")
    assert killed.wait(120) == -signal.SIGKILL, f"{point} was never reached: {lab.log()}"


# Point, before or after it. tests/test_kill.py has those that are the same for every scheduler.
UNDECIDED = [
    ("hpcrunner.engine.submit:_intend", "after"),
    ("hpcrunner.schedulers.slurm.client:Client.submit", "before"),
]
SUBMISSION = [
    ("hpcrunner.engine.submit:_intend", "before"),
    ("hpcrunner.schedulers.slurm.client:Client.submit", "after"),
    ("move:submitted", "before"),
    ("move:submitted", "after"),
]
POINTS = [
    ("hpcrunner.journal.store:Journal.receive", "before"),
    ("hpcrunner.journal.store:Journal.receive", "after"),
    *SUBMISSION,
    ("hpcrunner.schedulers.slurm.pacing:Memory.save", "before"),
    ("hpcrunner.schedulers.slurm.client:Client.queue", "after"),
    ("hpcrunner.stores.local:LocalStore.put", "before"),
    ("hpcrunner.stores.local:LocalStore.put", "after"),
    ("hpcrunner.engine.record:update", "before"),
]


@pytest.mark.parametrize(("point", "when"), POINTS)
def test_killed_at(point: str, when: str, slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    lab.add("e")
    kill_at(lab, point, when)
    lab.run_all()
    lab.check()
    assert lab.run("e")["attempt"] == 1, lab.run("e")["history"]


@pytest.mark.parametrize(("point", "when"), SUBMISSION)
def test_an_array_killed_at(point: str, when: str, slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    lab.add("e0", "e1", "e2")
    kill_at(lab, point, when)
    lab.run_all()
    lab.check()
    for index, key in enumerate(lab.keys):
        run = lab.run(key)
        assert (run["attempt"], run["task"]) == (1, index), run["history"]


@pytest.mark.parametrize(("point", "when"), UNDECIDED)
def test_killed_before_sbatch_it_looks_first_and_submits_once_more(point: str, when: str, slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    lab.add("e0", "e1", "e2")
    lab.add("alone", resources_needed={"cpus": 2, "gpus": 0})
    kill_at(lab, point, when)
    lab.run_all()
    lab.check()
    for key in lab.keys:
        run = lab.run(key)
        assert run["attempt"] == 2, run["history"]
        assert "no such job; it will be submitted again" in run["history"]


HALFWAY = """
import os, signal, sys
from hpcrunner.stores import local
original = local.LocalStore.put
def put(*args, **more):
    def fsync(descriptor):
        os.ftruncate(descriptor, 100)
        os.kill(os.getpid(), signal.SIGKILL)
    os.fsync = fsync
    original(*args, **more)
local.LocalStore.put = put
from hpcrunner.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_killed_in_the_middle_of_an_upload(slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    lab.add("e")
    assert lab.work("-c", HALFWAY, "submit-from-queue", "--wait").wait(120) == -signal.SIGKILL
    assert [path.stat().st_size for path in lab.store.rglob("*.part")] == [100]
    assert not (lab.store / "artifacts" / "experiments").exists() or not any(
        path.suffix == ".tar" for path in (lab.store / "artifacts" / "experiments").rglob("*"))
    lab.run_all()
    lab.check()


@pytest.mark.parametrize("size", [1, 3])
def test_killed_after_sbatch_was_accepted_and_before_its_answer_was_read(size: int, slurm: Slurm) -> None:
    commands = Commands(slurm)
    commands.replace("sbatch", '"$real" "$@" >/dev/null && kill -KILL $PPID')
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder)})
    lab.add(*(f"e{number}" for number in range(size)), gate=True)
    assert lab.work().wait(60) == -signal.SIGKILL
    # Slurm knows nothing of hpcrunner's end.
    wait_until(lambda: all(lab.times_run(key) for key in lab.keys), "the jobs run")
    working = lab.work()
    lab.reaches(lab.keys[-1], "running")
    lab.open_gate()
    assert working.wait(120) == 0
    lab.check()
    assert commands.calls("sbatch") == 1
    for index, key in enumerate(lab.keys):
        run = lab.run(key)
        assert f"found again as job {run['job_id']}" in run["history"]
        assert run["task"] == (index if size > 1 else None)


def test_several_sbatch_under_way_when_it_is_killed(slurm: Slurm) -> None:
    commands = Commands(slurm)
    # The second one that is accepted kills; the others go on without anybody to read their answers.
    commands.replace("sbatch", 'sleep 0.$RANDOM; "$real" "$@" && ! mkdir "$folder/first" && kill -KILL $PPID')
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder), "max_array": 1})
    lab.add(*(f"e{number}" for number in range(6)))
    assert lab.work().wait(60) == -signal.SIGKILL
    commands.restore("sbatch")
    lab.run_all()
    lab.check()


@pytest.mark.parametrize(("size", "seconds"), [(1, 0.0), (3, 0.0), (3, 7.0)])
def test_sbatch_says_that_it_timed_out_and_the_job_is_there(size: int, seconds: float, slurm: Slurm) -> None:
    commands = Commands(slurm)
    commands.replace("sbatch", f'"$real" "$@" >/dev/null; {LIE}')
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder)})
    lab.add(*(f"e{number}" for number in range(size)), seconds=seconds)
    assert lab.work().wait(120) == 0, lab.log()
    lab.check()
    assert commands.calls("sbatch") == 1, lab.log()
    assert lab.log().count("it is looked for before it is submitted again") == 1, lab.log()
    for key in lab.keys:
        run = lab.run(key)
        assert run["attempt"] == 1
        # One that ended at once said so itself, before anybody asked Slurm.
        assert ("found again as job" in run["history"]) == bool(seconds), run["history"]


def test_without_an_answer_a_job_that_left_squeue_is_found_in_the_accounting(slurm: Slurm) -> None:
    commands = Commands(slurm)
    commands.replace("sbatch", f'"$real" --nodelist=cpu1 "$@" >/dev/null; {LIE}')
    commands.replace("squeue", "exit 0")  # as it is after MinJobAge
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder)})
    lab.add("e")
    slurm.root("scontrol", "update", "nodename=cpu1", "state=drain", "reason=test")
    try:
        lab.tick_until("submitting")
        job = next(job for job, what in lab.jobs().items() if what.split()[0] == lab.run("e")["tag"])
        slurm.root("scancel", job)
    finally:
        slurm.root("scontrol", "update", "nodename=cpu1", "state=resume")
    run = lab.run_all()["e"]
    assert (run["outcome"], run["job_id"]) == ("cancelled", job)
    assert "by root" in run["reason"]
    assert commands.calls("sbatch") == 1
    assert lab.times_run("e") == 0


def test_with_squeue_and_sacct_blind_a_job_without_an_answer_tells_who_it_is(slurm: Slurm) -> None:
    commands = Commands(slurm)
    commands.replace("sbatch", f'"$real" "$@" >/dev/null; {LIE}')
    commands.replace("squeue", "exit 0")
    commands.replace("sacct", NO_ACCOUNTING)
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder)})
    lab.add("e", gate=True)
    working = lab.work()
    lab.reaches("e", "running")
    lab.open_gate()
    assert working.wait(120) == 0
    lab.check()
    assert "found again as job" in lab.run("e")["history"]


def test_with_sacct_down_it_waits_and_submits_nothing_twice(slurm: Slurm) -> None:
    commands = Commands(slurm)
    # No job is made, but how should hpcrunner know?
    commands.replace("sbatch", "echo 'sbatch: error: Batch job submission failed: Unexpected message received' >&2; exit 1")
    commands.replace("sacct", NO_ACCOUNTING)
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder), "submit_timeout": "2s"})
    lab.add("e")
    working = lab.work()
    lab.reaches("e", "submitting")
    # Otherwise it would be submitted again by then.
    settled = lab.run("e")["submitted_at"] + 4
    wait_until(lambda: commands.calls("sacct") and time.time() > settled, "sacct is asked in vain", 120)
    assert lab.run("e")["state"] == "submitting"
    assert commands.calls("sbatch") == 1
    commands.restore("sbatch")
    commands.restore("sacct")
    assert working.wait(120) == 0
    lab.check()
    assert lab.run("e")["attempt"] == 2
    assert lab.log().count("slurmdbd can't be asked") == 1, lab.log()
    assert lab.log().count("slurmdbd answers again") == 1, lab.log()


def by_hand(lab: CountedLab, script: Path) -> str:
    return lab.slurm.run("sbatch", "--parsable", script).stdout.strip()


def test_of_a_job_submitted_again_by_hand_one_runs(slurm: Slurm) -> None:
    lab = CountedLab(slurm, keep="all")
    lab.add("e", gate=True)
    lab.tick_until("submitted", "running")
    run = lab.run("e")
    wait_until(lambda: lab.times_run("e"), "it runs")
    second = by_hand(lab, Path(run["run_dir"]) / "job.sh")
    marker = Path(run["run_dir"]) / "status" / f"duplicate.{second}"
    wait_until(marker.exists, "the second one leaves its mark")
    lab.open_gate()
    done = lab.run_all()["e"]
    assert (done["outcome"], done["job_id"], lab.times_run("e")) == ("succeeded", run["job_id"], 1)
    assert [path.name for path in marker.parent.glob("duplicate.*")] == [marker.name]


@pytest.mark.parametrize("size", [1, 3])
def test_the_one_that_runs_is_adopted(size: int, slurm: Slurm) -> None:
    commands = Commands(slurm)
    commands.replace("sbatch", '"$real" --hold "$@"')
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder)}, keep="all")
    lab.add(*(f"e{number}" for number in range(size)), gate=True)
    lab.tick_until("submitted")
    runs = {key: lab.run(key) for key in lab.keys}
    first = runs["e0"]["job_id"].partition("_")[0]
    name = runs["e0"]["job_name"]
    second = by_hand(lab, lab.state / "arrays" / f"{name}.sh" if size > 1 else Path(runs["e0"]["run_dir"]) / "job.sh")
    wait_until(lambda: all(lab.times_run(key) for key in lab.keys), "the second ones run")
    slurm.run("scontrol", "release", first)
    working = lab.work()
    for key in lab.keys:
        wait_until(lambda key=key: lab.run(key)["job_id"].partition("_")[0] == second, f"{key} is adopted", 120)
    lab.open_gate()
    assert working.wait(120) == 0
    for key, run in runs.items():
        done = lab.run(key)
        assert (done["outcome"], done["generation"], lab.times_run(key)) == ("succeeded", 1, 1), done
        assert f"job {done['job_id']} has its run directory, job {run['job_id']} left it alone" in done["history"]
        marks = [path.name for path in (Path(run["run_dir"]) / "status").glob("duplicate.*")]
        assert marks == [f"duplicate.{run['job_id']}"]


LOGIN2 = ("unshare", "--uts", "sh", "-c", 'hostname login2 && exec "$@"', "sh")
IMPATIENT = """
import sys
from hpcrunner.cli.main import main
from hpcrunner.journal import lease
lease.LASTS = 1.0
sys.exit(main(sys.argv[1:]))
"""


def stand_still(lab: CountedLab, process: subprocess.Popen[bytes]) -> None:
    """Stops it where it holds no lock of SQLite's or of the queue: those are the kernel's and the client's, and whoever
    is stopped with one in his hands is waited for."""
    for _ in range(100):
        process.send_signal(signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(lab.state / "journal.sqlite", timeout=0.2, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
                db.execute("ROLLBACK")
                if not (lab.queue / "lock.lock").exists():
                    return
            except sqlite3.OperationalError:
                pass
        process.send_signal(signal.SIGCONT)
        time.sleep(0.1)
    raise AssertionError("it always holds a lock")


def test_two_login_nodes_take_turns(slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    lab.add("e", gate=True)
    first = lab.work()
    others = []
    try:
        lab.reaches("e", "running")
        others.append(refused := lab.work(prefix=LOGIN2))
        assert refused.wait(60) == 75, lab.log()
        assert f"process {first.pid} on {os.uname().nodename}" in lab.log()
        # The first one stands still for longer than its lease lasts.
        stand_still(lab, first)
        lab.add("later", gate=True)
        time.sleep(1.5)  # LASTS of the second one
        others.append(second := lab.work("-c", IMPATIENT, "submit-from-queue", "--wait", prefix=LOGIN2))
        lab.reaches("later", "running")
        # It comes back, sees the same ends, and may not act on them. There is work for as long as it may need to see it.
        lab.add("last", seconds=8)
        lab.reaches("last", "running")
        first.send_signal(signal.SIGCONT)
        lab.open_gate()
        assert first.wait(60) == 75, lab.log()
        assert second.wait(120) == 0, lab.log()
    finally:
        for process in (first, *others):
            process.kill()
            process.wait()
    assert "another hpcrunner took over this install; this process stops" in lab.log()
    lab.check()


FILLER = """
import importlib, sys
point, when, path, *arguments = sys.argv[1:]
module, name = point.split(":")
holder = importlib.import_module(module)
*parts, last = name.split(".")
for part in parts: holder = getattr(holder, part)
original = getattr(holder, last)
def fill():
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)): pass
        except OSError: pass
def wrapped(*args, **kwargs):
    if when == "before": fill()
    result = original(*args, **kwargs)
    if when == "after": fill()
    return result
setattr(holder, last, wrapped)
from hpcrunner.cli.main import main
sys.exit(main(arguments))
"""


# Where the disk is full, whether the message is acknowledged by then, and how many jobs there are.
@pytest.mark.parametrize(("point", "when", "acknowledged", "jobs"), [
    ("hpcrunner.cli.submit:run", "before", False, 0),
    ("hpcrunner.journal.store:Journal.receive", "before", False, 0),
    ("hpcrunner.engine.submit:_intend", "before", True, 0),
    ("hpcrunner.schedulers.slurm.client:Client.submit", "after", True, 1),
])
def test_disk_full_at(point: str, when: str, acknowledged: bool, jobs: int, slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    with small_disk(lab.state, "2m", slurm.uid):
        # What lies in the state directory by default is larger.
        lab.change(working_dir=str(lab.root / "work"))
        lab.add("before")
        lab.run_all()
        lab.add("e", gate=True)
        live = set(lab.jobs())
        stopped = lab.work("-c", FILLER, point, when, str(lab.state / "fill"), "submit-from-queue", "--wait")
        assert stopped.wait(60) == 74, lab.log()
        assert "the journal can't be written" in lab.log()
        assert "Traceback" not in lab.log()
        message = [*lab.queue.iterdir(), *(lab.root / "queue").glob(".hpcrunner-*/*/*")]
        assert (len(message) == 0) == acknowledged, message
        assert len(lab.jobs().keys() - live) == jobs
        (lab.state / "fill").unlink()
        lab.open_gate()
        lab.run_all()
        lab.check()


@pytest.mark.service("slurm-plain")
def test_somebody_elses_job_with_our_id_is_not_taken_for_ours(slurm_plain: Slurm) -> None:
    slurm = slurm_plain
    commands = Commands(slurm)
    commands.replace("sbatch", '"$real" --hold "$@"')
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder), "lost_after": "1s", "poll_max": "0.5s"})
    lab.add("e")
    lab.tick_until("submitted")
    ours = lab.run("e")["job_id"]
    # The controller forgets everything, and counts from 1 again.
    slurm.stop("slurmctld")
    shutil.rmtree(slurm.folder / "state")
    (slurm.folder / "state").mkdir()
    slurm.start("slurmctld")
    commands.restore("sbatch")
    other = ""
    while other != ours:
        assert int(other or 0) < int(ours), "the ids did not begin anew"
        other = slurm.run("sbatch", "--parsable", "--job-name=other", "--output=/dev/null", "--wrap", "sleep 600").stdout.strip()
    try:
        done = lab.run_all()["e"]
        assert (done["outcome"], done["generation"]) == ("succeeded", 2), lab.run("e")["history"]
        assert done["job_id"] != ours
        assert "disappeared without a trace" in lab.run("e")["history"]
        lab.check()
        assert lab.jobs()[ours].split()[0] == "other", "the other job was cancelled"
    finally:
        slurm.run("scancel", "--name=other")


@pytest.mark.service("slurm-plain")
def test_without_accounting_a_job_is_found_again_by_its_name(slurm_plain: Slurm) -> None:
    lab = CountedLab(slurm_plain)
    lab.add("e0", "e1")
    lab.add("other", resources_needed={"cpus": 2, "gpus": 0})
    kill_at(lab, "hpcrunner.schedulers.slurm.client:Client.submit", "after")
    lab.run_all()
    lab.check()


def campaign(lab: CountedLab, experiments: int, seed: int) -> tuple[int, Tally]:
    """Kills hpcrunner at random moments over a stream of experiments, alone and in arrays."""
    chance = random.Random(seed)
    kills = 0
    while len(lab.keys) < experiments:
        size = chance.choice((1, 1, 1, 2, 4))
        lab.add(*(f"e{len(lab.keys) + number}" for number in range(size)), seconds=chance.choice((0.0, 0.3, 1.0)))
        working = lab.work()
        try:
            working.wait(chance.uniform(0.1, 1.2))
        except subprocess.TimeoutExpired:
            working.kill()
            working.wait()
            kills += 1
    # A client's lock file that it was killed in writing is respected for 30 s.
    wait_until(lambda: lab.tick("--wait", timeout=600) and not any(lab.queue.iterdir()), "all messages are taken", 300)
    return kills, lab.tally()


def test_random_kills(slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    kills, tally = campaign(lab, experiments=25, seed=1)
    print(f"\nkills={kills} experiments={tally.experiments} lost={tally.lost} run_twice={tally.run_twice}")
    assert kills >= 4
    lab.check()


@pytest.mark.soak
def test_300_random_kills(slurm: Slurm) -> None:
    kills, total, seed = 0, Tally(), 0
    while kills < 300:
        seed += 1
        lab = CountedLab(slurm)
        more, tally = campaign(lab, experiments=60, seed=seed)
        kills += more
        total.add(tally)
        print(f"\nkills={kills} experiments={total.experiments} lost={total.lost} run_twice={total.run_twice}", flush=True)
        lab.check()
    assert (total.lost, total.run_twice) == (0, 0)
