"""Parts of a real Slurm go down under running, waiting and new experiments: that is weather. All of them end right,
none runs twice for it, and the log says it once."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from countedlab import Commands, CountedLab
from hpcrunner.schedulers.slurm.pacing import Health, Memory
from slurmcluster import Slurm, wait_until

pytestmark = pytest.mark.service("slurm")

@pytest.fixture(autouse=True)
def free_nodes(slurm: Slurm) -> Iterator[None]:
    """What fails must not keep the nodes from the next test."""
    yield
    slurm.root("scancel", f"--user={slurm.user}")


WHOLE_NODE = {"cpus": 16, "gpus": 0}


def fill(lab: CountedLab) -> None:
    """Two experiments that have all there is of the partition, and one that waits for it."""
    lab.add("runs1", "runs2", gate=True, resources_needed=WHOLE_NODE)
    lab.reaches("runs1", "running")
    lab.reaches("runs2", "running")
    lab.add("waits", resources_needed=WHOLE_NODE)
    lab.reaches("waits", "submitted")


def warnings(lab: CountedLab) -> list[str]:
    return [line for line in lab.log().splitlines() if " WARNING " in line or " ERROR " in line]


def said(lab: CountedLab, what: str) -> list[str]:
    return [line for line in warnings(lab) if what in line]


def down(slurm: Slurm, seconds: float) -> None:
    lab = CountedLab(slurm)
    working = lab.work()
    try:
        fill(lab)
        slurm.stop("slurmctld")
        since = time.monotonic()
        try:
            lab.add(*(f"new{number}" for number in range(12)))
            lab.add("other", resources_needed={"cpus": 2, "gpus": 0})
            lab.open_gate()
            # What runs needs no controller to end.
            lab.reaches("runs1", "done")
            lab.reaches("runs2", "done")
            while time.monotonic() < since + seconds:
                time.sleep(0.1)
        finally:
            slurm.start("slurmctld")
        assert working.wait(240) == 0, lab.log()
    finally:
        working.kill()
        working.wait()
    lab.check()
    assert len(said(lab, "slurmctld can't be asked")) == 1, lab.log()
    assert len(said(lab, "slurmctld answers again")) == 1, lab.log()
    assert len(warnings(lab)) <= 4, lab.log()


def test_the_controller_is_down(slurm: Slurm) -> None:
    down(slurm, 20)


@pytest.mark.soak
def test_the_controller_is_down_for_a_minute(slurm: Slurm) -> None:
    down(slurm, 60)


def test_the_controller_hangs_while_jobs_are_submitted(slurm: Slurm) -> None:
    commands = Commands(slurm)
    commands.replace("sbatch", """touch "$folder/called"; until [[ -e $folder/go ]]; do sleep 0.05; done; exec "$real" "$@" """)
    (commands.folder / "go").touch()
    lab = CountedLab(slurm, {"query_timeout": "4s", "bin_dir": str(commands.folder)})
    working = lab.work()
    try:
        fill(lab)
        for name in ("called", "go"):
            (commands.folder / name).unlink()
        lab.add("new1", "new2", "new3")
        wait_until((commands.folder / "called").exists, "sbatch is called", 120)
        slurm.pause("slurmctld")
        try:
            (commands.folder / "go").touch()
            wait_until(lambda: said(lab, "it is looked for before it is submitted again"), "sbatch gave up", 120)
            lab.add("later")
            lab.open_gate()
            lab.reaches("runs1", "done")
            lab.reaches("runs2", "done")
        finally:
            slurm.resume("slurmctld")
        assert working.wait(240) == 0, lab.log()
    finally:
        working.kill()
        working.wait()
    lab.check()
    for key in ("new1", "new2", "new3"):
        run = lab.run(key)
        assert run["attempt"] == 1, run["history"]
    assert len(said(lab, "slurmctld can't be asked")) == 1, lab.log()
    assert len(said(lab, "slurmctld answers again")) == 1, lab.log()
    assert len(warnings(lab)) == 3, lab.log()


def test_the_accounting_is_down(slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    working = lab.work()
    try:
        fill(lab)
        lab.add("cancelled", resources_needed=WHOLE_NODE)
        lab.reaches("cancelled", "submitted")
        slurm.stop("slurmdbd")
        try:
            lab.add("new1", "new2")
            # Only the accounting knows by whom; it is not waited for.
            slurm.root("scancel", lab.run("cancelled")["job_id"])
            lab.reaches("cancelled", "done")
            lab.open_gate()
            for key in ("runs1", "runs2", "waits", "new1", "new2"):
                lab.reaches(key, "done")
        finally:
            slurm.start("slurmdbd")
        assert working.wait(240) == 0, lab.log()
    finally:
        working.kill()
        working.wait()
    run = lab.run("cancelled")
    assert (run["outcome"], lab.times_run("cancelled")) == ("cancelled", 0), run
    lab.keys.remove("cancelled")
    assert (lab.tally().lost, lab.tally().run_twice) == (0, 0)
    assert len(said(lab, "slurmdbd can't be asked")) == 1, lab.log()
    assert len(warnings(lab)) == 2, lab.log()


def test_a_node_is_lost_under_a_running_job(slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    working = lab.work()
    try:
        fill(lab)
        node = lab.run("runs1")["host"]
        slurm.crash(node)
        try:
            lab.add("new1", "new2")
            wait_until(lambda: lab.run("runs1")["generation"] == 2, "it is run again", 120)
        finally:
            slurm.restore(node)
        lab.open_gate()
        assert working.wait(240) == 0, lab.log()
    finally:
        working.kill()
        working.wait()
    # The first time nobody could help.
    lab.check(times={"runs1": 2})
    run = lab.run("runs1")
    assert run["avoid"] == [node]
    assert run["host"] != node
    assert f"its node {node} went down (NODE_FAIL); run again" in run["history"]
    assert len(warnings(lab)) == 1, lab.log()


def test_slurmd_alone_starts_anew(slurm: Slurm) -> None:
    lab = CountedLab(slurm)
    working = lab.work()
    try:
        fill(lab)
        node = lab.run("runs1")["host"]
        os.kill(slurm.pid(f"slurmd-{node}"), 9)
        (slurm.folder / "run" / f"slurmd-{node}.pid").unlink()
        lab.add("new1", "new2")
        lab.open_gate()
        lab.reaches("runs1", "done")
        slurm.restore(node)
        assert working.wait(240) == 0, lab.log()
    finally:
        working.kill()
        working.wait()
    lab.check()
    assert not warnings(lab), lab.log()


@pytest.mark.soak
def test_nobody_can_prove_who_he_is(slurm: Slurm) -> None:
    lab = CountedLab(slurm, {"query_timeout": "4s"})
    munged = int((slurm.folder / "run" / "munge" / "munged.pid").read_text())
    working = lab.work()
    try:
        fill(lab)
        os.kill(munged, 19)
        try:
            lab.add("new1", "new2")
            lab.open_gate()
            lab.reaches("runs1", "done")
            lab.reaches("runs2", "done")
            wait_until(lambda: said(lab, "slurmctld can't be asked"), "it is noticed", 120)
        finally:
            os.kill(munged, 18)
        assert working.wait(240) == 0, lab.log()
    finally:
        working.kill()
        working.wait()
    lab.check()
    assert len(said(lab, "slurmctld can't be asked")) == 1, lab.log()


def test_after_five_failures_it_is_left_alone_for_ten_minutes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "hpcrunner")
    file = tmp_path / "slurm.json"
    at, waits = 1000.0, []
    for _ in range(7):
        # Each time a new process, as under cron.
        memory = Memory.load(file)
        assert memory.is_due(at, 30.0, urgent=True)
        memory.controller.failed(at, "Unable to contact slurm controller")
        memory.save(file)
        waits.append(memory.controller.blocked_until - at)
        assert not Memory.load(file).is_due(at + waits[-1] - 1, 30.0, urgent=True)
        at += waits[-1]
    assert waits == [5, 10, 20, 40, 600, 600, 600]
    memory = Memory.load(file)
    memory.polled(at, "", 30.0, 180.0)
    assert memory.controller == Health("slurmctld")
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR", "WARNING"]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "slurmctld can't be asked", "slurmctld did not answer 5 times in a row; it is left alone for 10 minutes",
        "slurmctld answers again, after 1875 s"]


def test_while_it_is_left_alone_nothing_is_called(slurm: Slurm) -> None:
    commands = Commands(slurm)
    for name in ("sbatch", "squeue", "sacct"):
        commands.replace(name, "exit 1")
    lab = CountedLab(slurm, {"bin_dir": str(commands.folder)})
    memory = Memory()
    for _ in range(5):
        memory.controller.failed(time.time(), "down")
    lab.state.mkdir()
    memory.save(lab.state / "slurm.json")
    os.chown(lab.state, slurm.uid, slurm.gid)
    os.chown(lab.state / "slurm.json", slurm.uid, slurm.gid)
    lab.add("e1", "e2")
    for _ in range(3):
        lab.tick()
    assert {run["state"] for run in lab.status().values()} <= {"staged", "ready"}
    assert not any(commands.calls(name) for name in ("sbatch", "squeue", "sacct"))
