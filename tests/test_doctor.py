"""`hpcrunner doctor`: what it finds, and what it doesn't take for a finding."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hpcrunner import plugins
from hpcrunner.cli import doctor
from hpcrunner.engine.submit import prefix_of
from hpcrunner.errors import UnavailableError
from hpcrunner.journal.store import Journal
from hpcrunner.model import Run, State
from hpcrunner.schedulers.base import LiveJob
from hpcrunner.schedulers.slurm import states
from hpcrunner.schedulers.slurm.pacing import Health

RECORDED = Path(__file__).parent / "data" / "slurm" / "22.05"
DIGEST = "d" * 64


def a_run(key: str = "e", state: State = State.SUBMITTED, **fields: Any) -> Run:
    return Run(hash((key, state)), "q", key, state, **fields)


def said(findings: Iterator[tuple[str, str]]) -> list[str]:
    return [finding for finding, _ in findings]


# Runs


@pytest.mark.parametrize("reason", [
    "PartitionTimeLimit", "PartitionNodeLimit", "PartitionConfig", "BadConstraints", "QOSMaxWallDurationPerJobLimit",
    "AssocMaxCpuPerJobLimit", "QOSMaxCpuPerNode", "QOSMinGRES", "AccountNotAllowed", "InvalidQOS"])
def test_reasons_that_only_somebodys_change_ends(reason: str) -> None:
    [(finding, remedy)] = doctor._hopeless([a_run("e", waiting=reason, job_id="4711")])
    assert finding == f"e (job 4711): its job waits for what won't come by itself: {reason}"
    assert "hpcrunner cancel" in remedy


@pytest.mark.parametrize("name", ["pending-qos-not-allowed", "pending-account-not-allowed"])
def test_reasons_that_are_sentences(name: str) -> None:
    [reason] = {row.reason for row in states.parse_queue((RECORDED / f"{name}.squeue").read_text()) if "Job's" in row.reason}
    assert len(list(doctor._hopeless([a_run(waiting=reason)]))) == 1


@pytest.mark.parametrize("reason", [
    "", "Priority", "Resources", "QOSMaxCpuPerUserLimit", "QOSMaxJobsPerUserLimit", "QOSMaxGRESPerUser", "AssocGrpCpuLimit",
    "BeginTime", "JobArrayTaskLimit", "ReqNodeNotAvail, UnavailableNodes:gpu1", "PartitionDown", "JobHeldUser"])
def test_reasons_that_pass(reason: str) -> None:
    assert list(doctor._hopeless([a_run(waiting=reason)])) == []


def test_only_jobs_that_wait_are_hopeless() -> None:
    assert list(doctor._hopeless([a_run(state=State.RUNNING, waiting="PartitionTimeLimit")])) == []


def test_a_build_job_that_waits_for_ever() -> None:
    [(finding, remedy)] = doctor._hopeless([a_run(state=State.STAGED, waiting="PartitionTimeLimit", image=DIGEST)])
    assert finding == "e: the job that builds its image waits for what won't come by itself: PartitionTimeLimit"
    assert "build_timeout" in remedy


def test_what_is_the_same_of_many_is_said_once() -> None:
    runs = [a_run(f"e{number}", waiting="PartitionTimeLimit") for number in range(5)]
    assert said(doctor._hopeless(runs)) == ["e0 and 4 more: its job waits for what won't come by itself: PartitionTimeLimit"]


def test_submissions_that_the_site_config_keeps_from_succeeding() -> None:
    refusal = "Slurm refuses what the site config says: Invalid account or account/partition combination specified"
    build = f"the job that builds its image: {refusal}"
    runs = [a_run("a", State.READY, waiting=refusal, tries=3), a_run("b", State.READY, waiting=refusal, tries=1),
            a_run("c", State.READY, waiting="sbatch: can't be started: No such file or directory", tries=9),
            a_run("d", State.STAGED, tries=2, image=DIGEST),
            a_run("e", State.READY, waiting="Slurm has too many jobs now: QOSMaxSubmitJobPerUserLimit", tries=1),
            a_run("f", State.READY, waiting="slurmctld can't be asked: it is down", tries=1)]
    assert said(doctor._refused(runs, {runs[3].id: f"{build}; tried again in 10 s"})) == [
        f"a and 1 more: {refusal}", "c: sbatch: can't be started: No such file or directory", f"d: {build}"]


def test_submissions_that_are_unclear_for_long() -> None:
    now = time.time()
    runs = [a_run("new", State.SUBMITTING, submitted_at=now - 100, job_name="hrx"),
            a_run("old", State.SUBMITTING, submitted_at=now - 400, job_name="hry"),
            a_run("done", State.DONE, submitted_at=now - 400, job_name="hrz")]
    [(finding, remedy)] = doctor._unclear(runs, 100)
    assert finding == "old: since 6m40s it isn't known whether its job hry exists"
    assert "hpcrunner resolve old --job ID" in remedy


# Jobs


def test_jobs_that_nobody_waits_for() -> None:
    old, now = 1000.0, time.time()
    runs = [a_run("runs", State.RUNNING, job_name="hra1"), a_run("array", State.RUNNING, job_name="hra2", tag="hra3"),
            a_run("just", State.DONE, job_name="hra4", updated_at=now), a_run("over", State.DONE, job_name="hra5", updated_at=old),
            a_run("builds", State.STAGED, image=DIGEST)]
    jobs = [LiveJob("1", "hra1", "RUNNING"), LiveJob("2_1", "hra2", "PENDING"), LiveJob("4", "hra4", "RUNNING"),
            LiveJob("5", "hra5", "RUNNING"), LiveJob("6", "hra5", "COMPLETING"), LiveJob("7", "hra9", "COMPLETING"),
            LiveJob("8", "hra8", "PENDING"), LiveJob("9", "hba1", "PENDING"), LiveJob("10", "hba2", "PENDING"),
            LiveJob("11", "hba2", "RUNNING"), LiveJob("12", "hba3", "PENDING")]
    found = list(doctor._unknown(jobs, runs, {"hba1": DIGEST, "hba2": "e" * 64}, "slurm"))
    assert [finding for finding, _ in found] == [
        "job 5 (hra5, RUNNING) is of over, which is over",
        "job 8 (hra8, PENDING) is of this install, and its journal doesn't know it",
        "job 10 (hba2, PENDING) is of an image that no experiment wants, eeeeeeeeeeee",
        "job 12 (hba3, PENDING) is of this install, and its journal doesn't know it"]
    assert "scancel 8" in found[1][1]


# The scheduler


@dataclass
class FakeScheduler:
    jobs: list[LiveJob] = field(default_factory=list)
    error: str = ""
    down: list[str] = field(default_factory=list)
    settles: float = 1.0

    def live(self, prefix: str) -> list[LiveJob]:
        if self.error:
            raise UnavailableError(self.error)
        return [job for job in self.jobs if job.name.startswith(prefix)]

    def problems(self) -> list[str]:
        return self.down


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    fake, load = FakeScheduler(), plugins.load
    monkeypatch.setattr(plugins, "load", lambda group, name: (lambda site: fake) if group == "schedulers" else load(group, name))
    return fake


def findings(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    site = folder / "site.yaml"
    site.write_text(f"extends: laptop\nstate_dir: {folder}/state\n")
    code = doctor.run(argparse.Namespace(site=site, json=True))
    found = [one["finding"] for one in json.loads(capsys.readouterr().out)]
    assert code == bool(found)
    return found


def test_before_the_first_tick_the_scheduler_is_asked(tmp_path: Path, scheduler: FakeScheduler,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(tmp_path, capsys) == []
    scheduler.error = "squeue: can't be started"
    assert findings(tmp_path, capsys) == ["direct can't be asked for its jobs: squeue: can't be started"]


def test_jobs_of_other_installs_are_left_alone(tmp_path: Path, scheduler: FakeScheduler, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "state" / "journal.sqlite") as journal:
        prefix = prefix_of(journal.install_id)
    scheduler.jobs = [LiveJob("1", f"{prefix}a", "PENDING"), LiveJob("2", f"hb{prefix[2:]}b", "PENDING"),
                      LiveJob("3", "hr0000a", "PENDING"), LiveJob("4", "hb0000b", "PENDING"), LiveJob("5", "mine", "RUNNING")]
    found = findings(tmp_path, capsys)
    assert [text.partition(" (")[0] for text in found] == ["job 1", "job 2"]
    scheduler.jobs, scheduler.down = [], ["slurmdbd has not answered for 20m"]
    assert findings(tmp_path, capsys) == ["slurmdbd has not answered for 20m"]


def test_an_outage_is_told_after_ten_minutes_and_only_while_it_is_asked() -> None:
    health = Health("slurmdbd")
    assert health.outage(0.0) == ""
    for at in (0.0, 5.0, 15.0, 35.0, 75.0):
        health.failed(1000 + at, "no answer")
    assert health.outage(1500) == ""
    assert health.outage(1700) == "slurmdbd has not answered for 11m40s, 5 times: no answer"
    # Nothing needed it since: what it would say now nobody knows.
    assert health.outage(90_000) == ""
    health.worked(1800)
    assert health.outage(1801) == ""


def test_elements_of_an_array_have_one_name() -> None:
    """The last of them is over; the others aren't strangers for that."""
    over = time.time() - 3600
    runs = [a_run("a0", State.RUNNING, job_name="hrx", job_id="45_0"),
            a_run("a1", State.DONE, job_name="hrx", job_id="45_1", updated_at=over)]
    live = [LiveJob("45_0", "hrx", "RUNNING")]
    assert list(doctor._unknown(live, runs, {}, "slurm")) == []
    assert list(doctor._unknown(live, runs[::-1], {}, "slurm")) == []
    assert said(doctor._unknown(live, runs[1:], {}, "slurm")) == ["job 45_0 (hrx, RUNNING) is of a1, which is over"]
