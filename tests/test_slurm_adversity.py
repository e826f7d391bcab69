"""What admins, users and full disks do to jobs of a real Slurm: whatever it is, nothing runs twice, and nothing is
ended for a wrong reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from countedlab import Commands, CountedLab
from disks import remount, small_disk
from slurmcluster import Slurm, wait_until

pytestmark = pytest.mark.service("slurm")


@pytest.fixture(autouse=True)
def free_nodes(slurm: Slurm) -> Iterator[None]:
    """What fails must not keep the nodes from the next test."""
    yield
    slurm.root("scancel", f"--user={slurm.user}")


def ends(lab: CountedLab, key: str) -> dict[str, object]:
    wait_until(lambda: lab.tick() and lab.status()[key]["state"] == "done", f"{key} ends", 120)
    return lab.run(key)


def reaches(lab: CountedLab, key: str, state: str) -> str:
    """Its job's id then."""
    wait_until(lambda: lab.tick() and lab.status()[key]["state"] == state, f"{key} is {state}", 60)
    return str(lab.status()[key]["job_id"])


def goes_on(lab: CountedLab) -> None:
    """Ticks for longer than `lost_after`."""
    end = time.monotonic() + 8
    while time.monotonic() < end:
        lab.tick()


@pytest.mark.service("slurm-plain")
def test_a_renamed_job_is_not_run_beside_itself(slurm_plain: Slurm) -> None:
    """Without accounting, which would still have it as running."""
    slurm, lab = slurm_plain, CountedLab(slurm_plain)
    lab.add("single", gate=True)
    lab.add("array1", "array2", gate=True, resources_needed={"cpus": 2, "gpus": 0})
    jobs = [reaches(lab, key, "running") for key in ("single", "array1", "array2")]
    for job in jobs:
        slurm.run("scontrol", "update", f"jobid={job}", "jobname=mine")
    goes_on(lab)
    assert [lab.status()[key]["state"] for key in ("single", "array1", "array2")] == ["running"] * 3
    lab.hpcrunner("cancel", "array1")
    assert ends(lab, "array1")["outcome"] == "cancelled"
    assert jobs[1] not in lab.jobs()
    lab.open_gate()
    for key in ("single", "array2"):
        assert ends(lab, key)["outcome"] == "succeeded"
        assert lab.times_run(key) == 1


def test_a_program_that_fills_the_disk_is_not_run_again(slurm: Slurm) -> None:
    with small_disk(slurm.folder / "labs" / "small-disk", "2m", slurm.uid) as disk:
        lab = CountedLab(slurm, working_dir=str(disk))
        lab.submit("full", f"""
import os, shutil
open({str(lab.root / "count")!r}, "a").write("ran\\n")
open("../retval", "w").write("42")
file = open("../modeldir/big", "wb", buffering=0)
for size in (65536, 1):
    try:
        while True: file.write(bytes(size))
    except OSError: pass
shutil.rmtree("../../../../status", ignore_errors=True)
""")
        # Packing its results needs room, too: they wait for it.
        wait_until(lambda: lab.tick() and lab.status()["full"]["state"] == "ending", "it is over", 60)
        remount(disk, "size=20m")
        assert ends(lab, "full")["outcome"] == "succeeded"
        assert lab.result("full", "retval") == {"./retval": b"42"}
        assert (lab.root / "count").read_text() == "ran\n"


def test_no_room_to_stage_is_waited_for(slurm: Slurm) -> None:
    with small_disk(slurm.folder / "labs" / "full-disk", "64k", slurm.uid) as disk:
        lab = CountedLab(slurm, working_dir=str(disk))
        with lab.as_user():
            (disk / "filler").write_bytes(bytes(60_000))
        lab.add("e")
        for _ in range(7):
            lab.tick()
            edit(lab, "UPDATE runs SET not_before = 0")
        run = lab.run("e")
        assert run["state"] == "received" and "No space left on device" in str(run["history"]), run
        assert str(disk) in str(run["history"])
        (disk / "filler").unlink()
        remount(disk, "size=20m")
        assert ends(lab, "e")["outcome"] == "succeeded"


def edit(lab: CountedLab, statement: str) -> None:
    lab.slurm.run(lab.slurm.python, "-c", "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute(sys.argv[2]); db.commit()",
                  lab.state / "journal.sqlite", statement)


@pytest.fixture
def unclear(slurm: Slurm) -> tuple[CountedLab, str]:
    """Three equal experiments that were accepted as one array, whose id nobody heard."""
    commands = Commands(slurm)
    commands.replace("sbatch", '"$real" --hold "$@" >"$folder/id"; exit 1')
    commands.replace("squeue", "exit 1")
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder)})
    lab.add("a0", "a1", "a2")
    lab.tick_until("submitting")
    (lab.state / "slurm.json").unlink(missing_ok=True)
    job = (commands.folder / "id").read_text().strip()
    commands.restore("sbatch")
    return lab, job


def test_resolve_with_an_arrays_own_id_means_the_element(unclear: tuple[CountedLab, str], slurm: Slurm) -> None:
    lab, job = unclear
    lab.hpcrunner("resolve", "a1", "--job", job)
    assert lab.run("a1")["job_id"] == f"{job}_1"
    lab.change(slurm={**json.loads(lab.site.read_text())["slurm"], "bin_dir": None})
    slurm.run("scontrol", "release", job)
    for key in ("a0", "a1", "a2"):
        assert ends(lab, key)["outcome"] == "succeeded"
        assert lab.times_run(key) == 1


def test_resolve_takes_nothing_but_an_id(unclear: tuple[CountedLab, str]) -> None:
    lab, _ = unclear
    for job in ("nonsense", "7; 8", "", "45_", "0x1"):
        done = lab.hpcrunner("resolve", "a1", f"--job={job}", check=False)
        assert done.returncode == 64 and "no job's id" in done.stderr
    assert lab.run("a1")["state"] == "submitting"


def test_a_silent_squeue_and_a_scancel_that_reaches_nobody(slurm: Slurm) -> None:
    """What sacct has as running is not run beside, and what can't be cancelled is not given up."""
    commands = Commands(slurm)
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder)})
    lab.add("e", gate=True)
    reaches(lab, "e", "running")
    wait_until(lambda: "RUNNING" in slurm.run("sacct", "-nX", "-ostate").stdout, "sacct knows it")
    commands.replace("squeue", "exit 0")
    goes_on(lab)
    assert lab.status()["e"]["state"] == "running" and lab.times_run("e") == 1
    commands.restore("squeue")
    commands.replace("scancel", "echo 'scancel: error: Kill job error on job id 1: Unable to contact slurm controller (connect failure)' >&2; exit 8")
    lab.hpcrunner("cancel", "e")
    assert "not cancelled yet: scancel reached nobody" in str(lab.run("e")["history"])
    commands.restore("scancel")
    assert ends(lab, "e")["outcome"] == "cancelled"


def test_a_slurmctld_that_lost_its_state_cancels_nobody(slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    lab.add("e", gate=True)
    reaches(lab, "e", "running")
    wait_until(lambda: "RUNNING" in slurm.run("sacct", "-nX", "-ostate").stdout, "sacct knows it")
    slurm.stop("slurmctld")
    slurm.root("slurmctld", "-c")  # without its state
    slurm.answers()
    wait_until(lambda: lab.tick() and lab.run("e")["generation"] == 2, "it is run again", 90)
    assert "slurmctld lost its state" in str(lab.run("e")["history"])
    lab.open_gate()
    assert ends(lab, "e")["outcome"] == "succeeded"


def test_a_restored_journal_gives_no_name_again(slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    lab.add("first")
    ends(lab, "first")
    backup = lab.root / "backup"
    with lab.as_user():
        shutil.copytree(lab.state, backup)
    lab.add("second", gate=True)
    reaches(lab, "second", "running")
    name = lab.status()["second"]["job_name"]
    for path in lab.state.glob("journal.sqlite*"):
        path.unlink()
    with lab.as_user():
        for path in backup.glob("journal.sqlite*"):
            shutil.copy(path, lab.state)
    lab.add("third")
    assert ends(lab, "third")["outcome"] == "succeeded"
    assert lab.run("third")["id"] == 2 and lab.run("third")["job_name"] != name
    assert lab.times_run("second") == lab.times_run("third") == 1
    assert name in lab.hpcrunner("doctor", check=False).stdout


def test_when_all_nodes_are_to_be_avoided_none_is(slurm: Slurm) -> None:
    """The reason is what failed, and not that no node is left."""
    lab = CountedLab(slurm, {"modules": ["no-such-module"]}, retries=3)
    lab.add("e")
    run = ends(lab, "e")
    assert run["outcome"] == "lost" and run["generation"] == 4
    assert "`module load` or the site's prologue failed" in str(run["reason"])
    assert "no more nodes are avoided" in str(run["history"])


CRASH_IN_RESUME = """
import os, sys
from hpcrunner.engine import submit
def release(*_):
    original(*_)
    os._exit(9)
original, submit.release = submit.release, release
from hpcrunner.cli.main import main
sys.exit(main(["submit-from-queue"]))
"""


def test_a_kill_while_its_directory_changes_hands_loses_no_checkpoint(slurm: Slurm) -> None:
    lab = CountedLab(slurm, {"partitions": {"preempt-cancel": {
        "max_walltime": "1d", "max_gpus": 4, "preemptible": True, "directives": ["--nodelist=gpu2"]}}})
    lab.submit("e", """
import os, time
if os.path.exists("../modeldir/checkpoint"): raise SystemExit(0)
open("../modeldir/checkpoint", "w").write("x")
time.sleep(600)
""")
    reaches(lab, "e", "running")
    checkpoint = Path(lab.run("e")["run_dir"]) / "studioml" / "experiments" / "e" / "modeldir" / "checkpoint"
    wait_until(checkpoint.exists, "the checkpoint is written")
    other = slurm.run("sbatch", "--parsable", "--partition=gpu", "--nodelist=gpu2", "--exclusive", "--time=10",
                      "--chdir=/tmp", "--output=/dev/null", "--wrap=sleep 600").stdout.strip()
    wait_until(lambda: "RUNNING" in slurm.run("squeue", "-h", "-j", other, "-o%T").stdout, "it is preempted", 90)
    command = lab.python("-c", CRASH_IN_RESUME)
    wait_until(lambda: subprocess.run(**command, capture_output=True).returncode == 9, "it is killed there")
    slurm.run("scancel", other)
    run = ends(lab, "e")
    assert (run["outcome"], run["generation"], run["resumes"]) == ("succeeded", 1, 1), run


def test_what_comes_during_the_epilogue_is_not_about_the_program(slurm: Slurm) -> None:
    """Nor does a program that has ended run again for it."""
    lab = CountedLab(slurm, {"warn": "1s"}, epilogue="sleep 6", kill_grace="2s")
    lab.add("warned", "cancelled", seconds=0)
    lab.add("limited", seconds=0, max_duration="2s")
    jobs = {key: reaches(lab, key, "running") for key in ("warned", "cancelled", "limited")}
    for key, signal in (("warned", "USR2"), ("cancelled", "TERM")):
        wait_until((Path(lab.run(key)["run_dir"]) / "status" / "exit").exists, "the program has ended")
        slurm.run("scancel", "--batch", f"--signal={signal}", jobs[key])
    for key in jobs:
        run = ends(lab, key)
        assert (run["outcome"], run["exit_code"], run["attempt"]) == ("succeeded", 0, 1), run
        assert lab.times_run(key) == 1
        assert float(run["finished_at"]) - float(run["started_at"]) < 5


@pytest.mark.parametrize("prologue", ["exit 3", "set -e; false", "set -euo pipefail; true | false | true"])
def test_a_prologue_that_fails_is_the_nodes_fault(slurm: Slurm, prologue: str) -> None:
    lab = CountedLab(slurm, prologue=prologue, retries=0)
    lab.add("e")
    run = ends(lab, "e")
    assert run["outcome"] == "lost" and "the site's prologue failed there" in str(run["reason"])
    assert lab.times_run("e") == 0


def test_a_strict_prologue_is_not_strict_with_the_rest(slurm: Slurm) -> None:
    lab = CountedLab(slurm, prologue="set -euo pipefail; export FROM_PROLOGUE=seen", engine="none")
    lab.submit("e", "import os; print(os.environ.get('FROM_PROLOGUE')); raise SystemExit(3)")
    run = ends(lab, "e")
    assert (run["outcome"], run["exit_code"]) == ("failed", 3), run
    assert "seen" in lab.output("e")
