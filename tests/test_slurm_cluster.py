"""The Slurm cluster of the tests itself: that it behaves as the tests of hpcrunner take for granted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from slurmcluster import Slurm, wait_until
from slurmlab import SlurmLab

pytestmark = pytest.mark.service("slurm")


class Jobs:
    def __init__(self, slurm: Slurm) -> None:
        self.slurm = slurm
        self.folder = slurm.folder / "jobs"
        self.folder.mkdir(exist_ok=True)
        self.folder.chmod(0o1777)
        self.submitted: list[str] = []

    def submit(self, command: str, *options: str) -> str:
        job = self.slurm.run("sbatch", "--parsable", "--output=%j.out", "--open-mode=append", *options, "--wrap",
                             command, cwd=self.folder).stdout.strip()
        self.submitted.append(job)
        return job

    def state(self, job: str) -> str:
        return self.slurm.run("squeue", "-h", "-t", "all", "-o", "%T", "-j", job).stdout.strip()

    def reaches(self, job: str, state: str) -> None:
        wait_until(lambda: self.state(job) == state, f"{job} is {state}")

    def output(self, job: str) -> str:
        """What it printed until now."""
        path = self.folder / f"{job}.out"
        return path.read_text() if path.exists() else ""

    def accounted(self, job: str) -> str:
        return self.slurm.run("sacct", "-nXP", "-j", job, "-o", "State,ExitCode").stdout.strip()


@pytest.fixture
def jobs(slurm: Slurm) -> Iterator[Jobs]:
    found = Jobs(slurm)
    yield found
    slurm.run("scancel", *found.submitted)


def test_jobs_get_different_gpus(jobs: Jobs) -> None:
    # The first one waits for the second, so that both hold their GPUs at once.
    two = ("-p", "gpu", "-w", "gpu1", "--gres=gpu:a100:2")
    first = jobs.submit("echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES; until [ -e second ]; do sleep 0.1; done", *two)
    second = jobs.submit("echo $CUDA_VISIBLE_DEVICES; touch second", *two)
    jobs.reaches(first, "COMPLETED")
    assert (jobs.output(first), jobs.output(second)) == ("gpu1 0,1\n", "2,3\n")


def test_exit_code_is_accounted(jobs: Jobs) -> None:
    job = jobs.submit("exit 7")
    jobs.reaches(job, "FAILED")
    wait_until(lambda: jobs.accounted(job) == "FAILED|7:0", "sacct knows")


def test_lost_node(slurm: Slurm, jobs: Jobs) -> None:
    job = jobs.submit("sleep 300", "-w", "cpu2", "--no-requeue")
    jobs.reaches(job, "RUNNING")
    slurm.crash("cpu2")
    jobs.reaches(job, "NODE_FAIL")
    slurm.restore("cpu2")
    back = jobs.submit("hostname", "-w", "cpu2")
    jobs.reaches(back, "COMPLETED")


def test_preempted_job_is_warned_ended_and_requeued(jobs: Jobs) -> None:
    # No trap for SIGCONT, which comes with every signal: of two at once, bash at times forgets one.
    command = "trap 'echo warned' USR1; echo run ${SLURM_RESTART_COUNT-0}; while :; do sleep 0.1; done"
    low = jobs.submit(command, "-p", "preempt", "-w", "gpu2", "--gres=gpu:4", "--requeue", "--signal=B:USR1@60")
    wait_until(lambda: jobs.output(low) == "run 0\n", "its trap is set")
    high = jobs.submit("true", "-p", "gpu", "-w", "gpu2", "--gres=gpu:4")
    jobs.reaches(high, "COMPLETED")
    assert jobs.output(low).startswith("run 0\nwarned\n")
    jobs.reaches(low, "PENDING")


def test_controller_comes_back(slurm: Slurm, jobs: Jobs) -> None:
    job = jobs.submit("sleep 300")
    jobs.reaches(job, "RUNNING")
    slurm.stop("slurmctld")
    slurm.start("slurmctld")
    jobs.reaches(job, "RUNNING")


def test_database_comes_back(slurm: Slurm, jobs: Jobs) -> None:
    slurm.stop("slurmdbd")
    assert slurm.run("sacct", check=False).returncode != 0
    job = jobs.submit("true")
    jobs.reaches(job, "COMPLETED")
    slurm.start("slurmdbd")
    wait_until(lambda: jobs.accounted(job) == "COMPLETED|0:0", "sacct knows")


@pytest.mark.service("slurm-plain")
def test_two_clusters_side_by_side(slurm: Slurm, slurm_plain: Slurm) -> None:
    assert slurm.run("sbatch", "--wrap", "true", "-o", "/dev/null").returncode == 0
    done = slurm_plain.run("sacct", check=False)
    assert done.returncode != 0
    assert "accounting storage is disabled" in done.stderr


def test_lab_belongs_to_the_user(slurm: Slurm) -> None:
    lab = SlurmLab(slurm, scheduler="direct")
    lab.submit("one", "import os; print(os.getuid())")
    assert lab.run_all()["one"]["outcome"] == "succeeded"
    assert f"{slurm.uid}\n" in lab.output("one")
