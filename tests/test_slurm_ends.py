"""Every way in which a job of Slurm can end, made by a real job, and what its user then reads.

What this kind of cluster can't make (OUT_OF_MEMORY told by a cgroup, BOOT_FAIL) is shown from recorded output elsewhere.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import services
from slurmcluster import Slurm, wait_until
from slurmlab import SlurmLab

pytestmark = pytest.mark.service("slurm")

PATIENCE = 150.0
"""Seconds; far more than anything here takes."""

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
SAVES = """
import os, signal, sys, time
def save(*_):
    time.sleep(7)
    open("../modeldir/saved", "w").write("saved")
    sys.exit(9)
signal.signal(signal.SIGTERM, save)
open("../modeldir/ready", "w").close()
time.sleep(600)
"""
"""Needs longer to save than Slurm itself leaves: KillWait, and at least 5 s."""
SAVES_QUICKLY = SAVES.replace("sleep(7)", "sleep(0.5)")
ONCE_THEN_FINE = """
import os, sys, time
if not os.path.exists(os.environ["MARK"]):
    open(os.environ["MARK"], "w").close()
    {once}
print("fine")
"""
"""Does something in its first run only, whatever the run directory."""
CHECKPOINTS = """
import os, signal, sys, time
before = open("../modeldir/steps").read() if os.path.exists("../modeldir/steps") else ""
print("begins with", before or "nothing", flush=True)
if before: sys.exit()
def leave(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm sends another one when the grace is over.
    time.sleep(6)
    open("../modeldir/steps", "w").write("two steps")
    sys.exit(1)
signal.signal(signal.SIGTERM, leave)
open("../modeldir/ready", "w").close()
time.sleep(600)
"""
"""Goes on from its checkpoint, and must be warned ahead to write one: Slurm's own SIGTERM leaves it 5 s."""
CHECKPOINTS_QUICKLY = CHECKPOINTS.replace("sleep(6)", "sleep(0)")


@dataclass(frozen=True)
class End:
    """How an experiment ended, as status, the user's log and the client's record say alike."""

    outcome: str
    reason: str
    exit_code: int | None
    host: str
    job_id: str
    run: Mapping[str, Any]
    log: str
    record: Mapping[str, Any]


class Site(SlurmLab):
    """A lab with an hpcrunner that works in the background until everything has ended."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, slurm: Slurm, options: Mapping[str, Any] = {}, **site: Any) -> None:
        # One environment for all of them.
        images = str(user_folder(slurm, "images"))
        super().__init__(slurm, options, **{"image_dir": images, "poll_interval": "0.5s", **site})
        self.working_dir = self.state / "runs"

    def work(self) -> None:
        with (self.root / "hpcrunner.log").open("ab") as log:
            self.process = subprocess.Popen(**self.python("-m", "hpcrunner", "submit-from-queue", "--wait"),
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def has_died(self) -> bool:
        return self.process is not None and self.process.poll() not in (None, 0)

    def said(self) -> str:
        log = self.root / "hpcrunner.log"
        return log.read_text()[-3000:] if log.exists() else ""

    def until(self, true: Callable[[], object], what: str) -> None:
        try:
            wait_until(lambda: self.has_died() or true(), what, PATIENCE)
        except AssertionError as error:
            raise AssertionError(f"{error}; hpcrunner says: {self.said()}") from None
        assert not self.has_died(), self.said()

    def running(self, key: str) -> dict[str, Any]:
        """The client's record, when that says that it runs."""
        self.until(lambda: self.record(key)["status"] == "running", f"{key} runs")
        return self.record(key)

    def waiting(self, key: str) -> dict[str, Any]:
        """Its status, when the scheduler has it wait."""
        self.until(lambda: self.see(key)["state"] == "submitted", f"{key} is submitted")
        return self.see(key)

    def see(self, key: str) -> dict[str, Any]:
        """Its status; of one that is still on the queue, that."""
        return self.status().get(key, {"state": "queued", "waiting": ""})

    def ready(self, key: str) -> None:
        """Returns when its program says that it handles SIGTERM."""
        mark = f"studioml/experiments/{key}/modeldir/ready"
        self.until(lambda: any(self.working_dir.glob(f"{key}-*/{mark}")), f"{key} is ready")

    def printed(self, key: str, text: str) -> None:
        """Returns when this is in the log of one that runs."""
        logs = f"{key}-*/studioml/experiments/{key}/output/output"
        self.until(lambda: any(text in log.read_text() for log in self.working_dir.glob(logs)), f"{key} prints {text!r}")

    def end(self, key: str) -> End:
        self.until(lambda: self.record(key).get("outcome"), f"{key} ends")
        self.until(lambda: self.status()[key]["state"] == "done", f"{key} is done")
        run, record, log = self.status()[key], self.record(key), self.output(key)
        names = ("outcome", "reason", "exit_code", "job_id", "host", "partition")
        assert {name: record[name] for name in names} == {name: run[name] for name in names}
        assert log.splitlines()[-1] == f"[hpcrunner] {run['outcome']}: {run['reason']}"
        return End(run["outcome"], run["reason"], run["exit_code"], run["host"], run["job_id"], run, log, record)


def user_folder(slurm: Slurm, name: str) -> Path:
    """A folder that the user may write to."""
    folder = slurm.folder / "labs" / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.chown(folder, slurm.uid, slurm.gid)
    return folder


sites: list[Site] = []


def site(slurm: Slurm, options: Mapping[str, Any] = {}, **more: Any) -> Site:
    made = Site(slurm, options, **more)
    sites.append(made)
    return made


@pytest.fixture(scope="module", autouse=True)
def nothing_stays() -> Iterator[None]:
    yield
    for one in sites:
        one.stop()
    for cluster in {id(one.slurm): one.slurm for one in sites}.values():
        cluster.run("scancel", f"--user={cluster.user}")
    sites.clear()


def stop(lab: SlurmLab, key: str) -> None:
    """What `studio runs stop` does: it writes the record whole."""
    path = lab.store / "meta" / "experiments" / key
    with lab.as_user():
        part = path.with_suffix(".part")
        part.write_text(json.dumps({**lab.record(key), "status": "stopped"}))
        part.rename(path)


def requeued(slurm: Slurm, job: str, times: int = 1) -> None:
    """Waits until Slurm has put the job back into its queue for so many times, and has it start soon."""
    wait_until(lambda: f"Restarts={times} " in slurm.run("scontrol", "-o", "show", "job", job).stdout, "requeued", PATIENCE)
    # The node refuses its old credential if it comes back within the same second. It may run already.
    slurm.root("scontrol", "update", f"jobid={job}", "starttime=now+2", check=False)


@contextmanager
def held_partition(slurm: Slurm, name: str) -> Iterator[str]:
    """A partition that starts nothing until it is set up."""
    slurm.root("scontrol", "create", f"partitionname={name}", "nodes=cpu1,cpu2", "state=down")
    yield name
    slurm.run("scancel", f"--partition={name}")
    slurm.root("scontrol", "delete", f"partitionname={name}")


# -- many ends at once, with accounting --


@pytest.fixture(scope="module")
def many(slurm: Slurm) -> Site:
    """Most ends, in one stream of experiments; they are array elements, as equal experiments are."""
    partitions = {"cpu": {"max_walltime": "1d", "max_cpus": 4, "max_memory": "1000MiB"},
                  # Whatever comes here waits for a busy node, until it could not end in time.
                  "debug": {"max_walltime": "30m", "max_cpus": 8,
                            "directives": ["--nodelist=gpu2", "--exclusive", "--deadline=now+135seconds"]}}
    slurm.run("sbatch", "--partition=debug", "--nodelist=gpu2", "--output=/dev/null", "--chdir=/tmp", "--time=10",
              "--job-name=busy", "--wrap=sleep 600")
    lab = site(slurm, {"partitions": partitions})
    mark = str(lab.root / "mark")
    lab.submit("fine", "print('hello')")
    lab.submit("seven", "raise SystemExit(7)")
    lab.submit("code200", "raise SystemExit(200)")
    lab.submit("sigkill", "import os; os.kill(os.getpid(), 9)")
    lab.submit("sigsegv", "import os; os.kill(os.getpid(), 11)")
    lab.submit("script-killed", ONCE_THEN_FINE.format(once="os.kill(os.getppid(), 9); time.sleep(600)"),
               config={"env": {"MARK": mark}})
    lab.submit("memory", "import time; hog = bytearray(250 * 2**20); time.sleep(600)",
               resources_needed={"cpus": 1, "gpus": 0, "ram": "100m"})
    lab.submit("too-long", SLEEP, max_duration="2s")
    lab.submit("too-late", SLEEP, config={"experimentLifetime": "40s"})
    lab.submit("deadline", SLEEP, resources_needed={"cpus": 5, "gpus": 0}, max_duration="10s")
    lab.submit("too-large", resources_needed={"cpus": 9, "gpus": 0})
    for key, script in {"time": SLEEP, "time-deaf": DEAF, "by-root": SLEEP}.items():
        lab.submit(key, script)
    mine = {"by-me": SLEEP, "by-me-deaf": DEAF, "by-me-saving": SAVES_QUICKLY}
    for key, script in mine.items():
        lab.submit(key, script)
    lab.work()
    for key in ("time", "time-deaf"):
        slurm.root("scontrol", "update", f"jobid={lab.running(key)['job_id']}", "endtime=now+1")
    slurm.root("scancel", lab.running("by-root")["job_id"])
    lab.ready("by-me-saving")
    slurm.run("scancel", *(lab.running(key)["job_id"] for key in mine))
    return lab


# What takes longest is begun first.
@pytest.mark.usefixtures("tiny", "containers", "stopping", "plain", "late")
@pytest.mark.service("slurm-plain", "apptainer")
def test_good_end(many: Site) -> None:
    end = many.end("fine")
    assert (end.outcome, end.exit_code) == ("succeeded", 0)
    assert end.reason.startswith("finished after")
    assert end.host in ("cpu1", "cpu2") and end.record["partition"] == "cpu"
    assert re.fullmatch(r"\d+_\d+", end.job_id), "an element of an array"


def test_exit_code_of_the_program(many: Site) -> None:
    end = many.end("seven")
    assert (end.outcome, end.exit_code) == ("failed", 7)
    assert re.fullmatch(r"the program ended with exit code 7 after .*", end.reason)


def test_exit_code_that_slurms_accounting_gets_wrong(slurm: Slurm, many: Site) -> None:
    end = many.end("code200")
    assert (end.outcome, end.exit_code) == ("failed", 200)
    assert "exit code 200" in end.reason
    wait_until(lambda: "FAILED" in accounted(slurm, end.job_id), "sacct knows")
    assert accounted(slurm, end.job_id) in ("FAILED|72:0", "FAILED|200:0")


def test_killed_program(many: Site) -> None:
    killed, crashed = many.end("sigkill"), many.end("sigsegv")
    assert (killed.outcome, killed.exit_code) == ("failed", 137) and "SIGKILL" in killed.reason
    assert (crashed.outcome, crashed.exit_code) == ("failed", 139) and "SIGSEGV" in crashed.reason


def test_killed_job_script_is_run_again_on_another_node(many: Site) -> None:
    end = many.end("script-killed")
    assert end.outcome == "succeeded" and "fine" in end.log
    assert end.run["generation"] == 2
    assert len(end.run["avoid"]) == 1 and end.host not in end.run["avoid"]
    assert "the job script was killed by signal 9" in history(many, "script-killed")


def test_out_of_memory(many: Site) -> None:
    end = many.end("memory")
    assert end.outcome == "failed"
    match = re.fullmatch(r"ran out of memory \(OUT_OF_MEMORY\): it had (.*) and used (.*); ask for more with "
                         r"resources_needed.ram \(studio run --ram=...\)", end.reason)
    assert match, end.reason
    assert end.run["generation"] == 1, "more of the same would not help"


def test_deadline(slurm: Slurm, many: Site) -> None:
    end = many.end("deadline")
    slurm.run("scancel", "--name=busy")
    assert end.outcome == "failed" and end.record["partition"] == "debug"
    assert "could not end before its deadline (DEADLINE)" in end.reason


def test_max_duration(many: Site) -> None:
    end = many.end("too-long")
    assert end.outcome == "failed" and "it ran longer than its max_duration" in end.reason


@pytest.mark.parametrize("key", ["by-me", "by-me-deaf", "by-me-saving"])
def test_cancelled_by_the_users_own_scancel(many: Site, key: str) -> None:
    end = many.end(key)
    assert (end.outcome, end.run["generation"]) == ("cancelled", 1)
    assert end.reason.startswith(f"cancelled in the scheduler by {many.slurm.user} (CANCELLED); ")
    # What SIGTERM made it do has its time, and comes back.
    assert (many.result(key, "modeldir").get("saved"), end.exit_code == 9) == (
        (b"saved", True) if key == "by-me-saving" else (None, False))


def test_cancelled_by_the_admin(many: Site) -> None:
    end = many.end("by-root")
    assert (end.outcome, end.run["generation"]) == ("cancelled", 1)
    assert end.reason.startswith("cancelled in the scheduler by root (CANCELLED); ")


def test_what_no_partition_holds_is_rejected_at_once(many: Site) -> None:
    end = many.end("too-large")
    assert (end.outcome, end.job_id, end.exit_code) == ("rejected", "", None)
    assert end.reason == ("partition cpu: asks for 9 cores, it has 4 (max_cpus); "
                          "partition debug: asks for 9 cores, it has 8 (max_cpus)")


# -- before it starts --


def test_job_that_cant_reach_its_files(slurm: Slurm) -> None:
    with held_partition(slurm, "blind") as partition:
        lab = site(slurm, {"partitions": {partition: {}}})
        lab.submit("blind")
        lab.until(lambda: lab.tick() and lab.see("blind")["state"] == "submitted", "it is submitted")
        job = lab.see("blind")["job_id"]
        # As if the node did not have the file system. This host, which is the node, has it again when it looks.
        lab.working_dir.chmod(0)
        slurm.root("scontrol", "update", f"partitionname={partition}", "state=up")
        wait_until(lambda: accounted(slurm, job) == "FAILED|0:53", "the job can't be started", PATIENCE)
        lab.working_dir.chmod(0o700)
        lab.work()
        end = lab.end("blind")
    assert (end.outcome, end.run["generation"]) == ("succeeded", 2)
    assert end.host not in end.run["avoid"]
    assert re.search(r"the job could not be started on cpu\d \(FAILED\); hosts that run jobs must see the run "
                     r"directories \(working_dir\)", history(lab, "blind"))


def test_mistake_in_the_site_config_waits_until_it_is_mended(slurm: Slurm) -> None:
    lab = site(slurm, {"partitions": {"nosuch": {"max_walltime": "1d"}}})
    lab.submit("e")
    lab.until(lambda: lab.tick() and lab.see("e")["waiting"], "it is refused")
    run = lab.status()["e"]
    assert (run["state"], run["outcome"]) == ("ready", None)
    assert re.search("Slurm refuses what the site config says: .*nosuch", run["waiting"])
    assert run["waiting"] in history(lab, "e")
    lab.site.write_text(lab.site.read_text().replace("nosuch", "cpu"))
    lab.work()
    end = lab.end("e")
    assert (end.outcome, end.record["partition"], end.run["generation"]) == ("succeeded", "cpu", 1)


# -- lost nodes --


@pytest.fixture(scope="module")
def lost_nodes(slurm: Slurm) -> tuple[Site, Site]:
    """Of two sites: one where hpcrunner tries again, and one where Slurm does."""
    partitions = {"gpu": {"max_walltime": "1d", "max_gpus": 4}}
    ours = site(slurm, {"partitions": partitions})
    mark = ours.root / "mark"
    ours.submit("again", ONCE_THEN_FINE.format(once="time.sleep(600)"), config={"env": {"MARK": str(mark)}})
    slurms = site(slurm, {"partitions": partitions, "requeue": "always"}, retries=1)
    slurms.submit("admin", CHECKPOINTS_QUICKLY)
    slurms.submit("doomed", SLEEP, resources_needed={"cpus": 2, "gpus": 0})
    ours.work()
    slurms.work()

    slurms.ready("admin")
    job = slurms.running("admin")["job_id"]
    slurm.root("scontrol", "requeuehold", job)
    slurms.until(lambda: slurms.see("admin")["state"] == "submitted", "status says that it waits again")
    slurm.root("scontrol", "release", job)
    requeued(slurm, job)
    slurms.end("admin")

    ours.until(mark.exists, "it has begun")
    slurms.printed("doomed", "up")
    job = slurms.running("doomed")["job_id"]
    lose(slurm, {ours.running("again")["host"], node_of(slurm, job)})
    requeued(slurm, job)
    slurms.printed("doomed", "continues on")
    lose(slurm, {node_of(slurm, job)})
    requeued(slurm, job, 2)
    return ours, slurms


def node_of(slurm: Slurm, job: str) -> str:
    return slurm.run("squeue", "-h", "-o", "%N", "-j", job).stdout.strip()


def lose(slurm: Slurm, nodes: set[str]) -> None:
    """Crashes nodes. They come back, with nothing of what ran there."""
    for node in nodes:
        slurm.crash(node)
    for node in nodes:
        slurm.restore(node)


def test_lost_node_is_avoided(lost_nodes: tuple[Site, Site]) -> None:
    ours = lost_nodes[0]
    end = ours.end("again")
    assert (end.outcome, end.run["generation"]) == ("succeeded", 2)
    [lost] = end.run["avoid"]
    assert end.host != lost
    assert f"its node {lost} went down (NODE_FAIL); run again (1 of 2 retries)" in history(ours, "again")


def test_nodes_lost_too_often_under_a_job_that_slurm_requeues(lost_nodes: tuple[Site, Site]) -> None:
    slurms = lost_nodes[1]
    end = slurms.end("doomed")
    assert (end.outcome, end.reason, end.run["generation"]) == ("lost", "its node was lost 2 times; given up", 1)
    assert end.log.count("continues on") == 1


def test_requeued_by_the_admin(lost_nodes: tuple[Site, Site]) -> None:
    slurms = lost_nodes[1]
    end = slurms.end("admin")
    assert (end.outcome, end.run["generation"], end.run["attempt"]) == ("succeeded", 1, 1)
    assert "begins with two steps" in end.log and f"continues on {end.host}" in end.log
    assert "requeued by the scheduler" in history(slurms, "admin")


# -- preemption --


@pytest.fixture(scope="module")
def preempted(slurm: Slurm, lost_nodes: object) -> dict[str, Site]:
    """Two jobs in a partition that requeues what it preempts, and two where they are cancelled. After `lost_nodes`,
    which takes the same nodes away."""
    labs = {}
    for node, partition in (("gpu1", "preempt"), ("gpu2", "preempt-cancel")):
        lab = site(slurm, {"partitions": {partition: {
            "max_walltime": "1d", "max_gpus": 4, "preemptible": True, "directives": [f"--nodelist={node}"]}}}, retries=0)
        two = {"cpus": 1, "gpus": 2}
        lab.submit("saving", CHECKPOINTS, resources_needed=two)
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        lab.submit("deaf", ONCE_THEN_FINE.format(once=deaf), resources_needed=two, config={"env": {"MARK": str(lab.root / "mark")}})
        lab.work()
        labs[partition] = lab
    for node, lab in zip(("gpu1", "gpu2"), labs.values(), strict=True):
        lab.ready("saving")
        lab.until((lab.root / "mark").exists, "the other one has begun")
        slurm.run("sbatch", "--partition=gpu", f"--nodelist={node}", "--gres=gpu:4", "--output=/dev/null", "--wrap", "true")
    for key in ("saving", "deaf"):
        requeued(slurm, labs["preempt"].running(key)["job_id"])
    return labs


@pytest.mark.parametrize(("partition", "node"), [("preempt", "gpu1"), ("preempt-cancel", "gpu2")])
def test_preempted_job_is_warned_and_goes_on_where_it_was(preempted: dict[str, Site], partition: str, node: str) -> None:
    end = preempted[partition].end("saving")
    assert (end.outcome, end.run["generation"]) == ("succeeded", 1)
    lines = end.log.splitlines()
    assert lines[0] == "begins with nothing" and "begins with two steps" in lines
    assert any(line.startswith(f"[hpcrunner] continues on {node}") for line in lines)


@pytest.mark.parametrize("partition", ["preempt", "preempt-cancel"])
def test_preemption_of_what_does_not_heed_the_warning_is_no_crash(preempted: dict[str, Site], partition: str) -> None:
    end = preempted[partition].end("deaf")
    assert (end.outcome, end.run["generation"]) == ("succeeded", 1)
    assert "fine" in end.log.splitlines()


def test_slurm_resumes_what_it_requeues_and_hpcrunner_the_rest(preempted: dict[str, Site]) -> None:
    slurms, ours = preempted["preempt"].end("saving").run, preempted["preempt-cancel"].end("saving").run
    assert [(run["attempt"], run["resumes"]) for run in (slurms, ours)] == [(1, 0), (2, 1)]
    assert "preempted on gpu2 (PREEMPTED): another job needed the node" in history(preempted["preempt-cancel"], "saving")


# -- GPUs --


IN_CONTAINER = """
import os, time
print(os.path.exists("/.singularity.d"), os.environ.get("CUDA_VISIBLE_DEVICES"), "SLURM_JOB_ID" in os.environ, flush=True)
print(*(os.environ.get(name) for name in ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")), flush=True)
meeting, others = os.environ["MEETING"], os.environ["OTHERS"].split()
open(f"{meeting}/{os.environ['HPCRUNNER_EXPERIMENT']}", "w").close()
end = time.time() + 200
while not set(others) <= set(os.listdir(meeting)) and time.time() < end: time.sleep(0.1)
"""
"""All run at the same time: each waits for the others."""


@pytest.fixture(scope="module")
def containers(slurm: Slurm, apptainer: services.Apptainer) -> Site:
    """Builds its image while other tests run. Its prologue sets what a Slurm with other makers' cards sets."""
    others = "ROCR_VISIBLE_DEVICES=$mine HIP_VISIBLE_DEVICES=$mine GPU_DEVICE_ORDINAL=$mine ZE_AFFINITY_MASK=$mine"
    partitions = {"cpu": {"max_walltime": "1d"},
                  "gpu": {"max_walltime": "1d", "max_gpus": 4, "directives": ["--nodelist=gpu1"]}}
    lab = site(slurm, {"partitions": partitions}, engine="apptainer", keep="all",
               base_images={"any": str(slurm.share(apptainer.base_image))}, binds=[str(meeting_place(slurm))], prologue=f"mine=$CUDA_VISIBLE_DEVICES; export {others}")
    in_container(lab, "cpu", gpus=0, others="cpu")
    lab.work()
    return lab


def meeting_place(slurm: Slurm) -> Path:
    return user_folder(slurm, "meeting")


def in_container(lab: Site, key: str, *, gpus: int, others: str) -> None:
    lab.submit(key, IN_CONTAINER, pythonver="3.11", resources_needed={"cpus": 1, "gpus": gpus, "ram": "1g"},
               config={"env": {"MEETING": str(meeting_place(lab.slurm)), "OTHERS": others}})


@pytest.mark.service("apptainer")
def test_job_without_gpus_sees_none(containers: Site) -> None:
    end = containers.end("cpu")
    assert end.outcome == "succeeded", end.log
    assert end.log.splitlines()[0] == "True -1 False"
    assert "--nv" not in command(end)


@pytest.mark.service("apptainer")
def test_jobs_on_one_node_see_different_gpus_in_their_containers(containers: Site, preempted: object) -> None:
    containers.end("cpu")
    for key in ("gpus1", "gpus2"):
        in_container(containers, key, gpus=2, others="gpus1 gpus2")
    containers.work()
    ends = [containers.end(key) for key in ("gpus1", "gpus2")]
    assert [(end.outcome, end.host) for end in ends] == [("succeeded", "gpu1")] * 2
    firsts = [end.log.splitlines()[0].split() for end in ends]
    assert [(inside, slurms) for inside, _, slurms in firsts] == [("True", "False")] * 2
    seen = [set(cards.split(",")) for _, cards, _ in firsts]
    assert [len(cards) for cards in seen] == [2, 2]
    for end in ends:
        first, second = end.log.splitlines()[:2]
        assert second.split() == [first.split()[1]] * 4
    assert seen[0] | seen[1] == {"0", "1", "2", "3"}
    assert all("--nv" in command(end) for end in ends)


def command(end: End) -> list[str]:
    """The words of its job script that start the container."""
    script = (Path(end.run["run_dir"]) / "job.sh").read_text()
    [line] = re.findall(r"^ +exec (?!<).*", script, re.MULTILINE)
    return line.split()


# -- by hpcrunner, and by hand while it waits --


@pytest.fixture(scope="module")
def stopping(slurm: Slurm) -> Site:
    """An array of which two run and three wait, and jobs of their own."""
    partitions = {"cpu": {"max_walltime": "1d", "max_cpus": 16}}
    lab = site(slurm, {"partitions": partitions, "array_throttle": 2}, kill_grace="20s")
    for number in range(5):
        lab.submit(f"element{number}", SAVES)
    lab.submit("stopped", SAVES, resources_needed={"cpus": 2, "gpus": 0})
    lab.submit("single", SAVES, resources_needed={"cpus": 3, "gpus": 0})
    lab.work()
    slurm.run("scancel", lab.waiting("element4")["job_id"])
    stop(lab, "element3")
    lab.ready("stopped")
    stop(lab, "stopped")
    return lab


@pytest.fixture(scope="module")
def without_queue(stopping: Site) -> Site:
    """The same, its queue deleted while two elements run and one waits."""
    for key in ("element3", "element4", "stopped"):
        stopping.end(key)
    for key in ("element0", "element1", "single"):
        stopping.ready(key)
    stopping.queue.rmdir()
    return stopping


def test_waiting_element_that_is_cancelled_by_hand_and_vanishes(stopping: Site) -> None:
    end = stopping.end("element4")
    assert (end.outcome, end.exit_code, end.host) == ("cancelled", None, "")
    assert end.reason.startswith("cancelled in the scheduler")


def test_stopped_by_the_client_while_it_waits(stopping: Site) -> None:
    end = stopping.end("element3")
    assert (end.outcome, end.reason) == ("cancelled", "stopped by its user (studio runs stop)")
    assert (end.record["status"], end.host) == ("stopped", "")


def test_stopped_by_the_client_with_time_to_save(stopping: Site) -> None:
    end = stopping.end("stopped")
    assert (end.outcome, end.reason) == ("cancelled", "stopped by its user (studio runs stop)")
    assert (end.record["status"], end.exit_code) == ("stopped", 9)
    assert stopping.result("stopped", "modeldir")["saved"] == b"saved"


@pytest.mark.parametrize("key", ["element0", "element1", "single"])
def test_deleted_queue_ends_its_jobs_with_time_to_save(without_queue: Site, key: str) -> None:
    end = without_queue.end(key)
    assert (end.outcome, end.exit_code) == ("cancelled", 9)
    assert end.reason == "its queue local_test was deleted"
    assert without_queue.result(key, "modeldir")["saved"] == b"saved"


def test_deleted_queue_ends_what_waits(without_queue: Site) -> None:
    end = without_queue.end("element2")
    assert (end.outcome, end.reason, end.host) == ("cancelled", "its queue local_test was deleted", "")


# -- without accounting --


@pytest.fixture(scope="module")
def plain(slurm_plain: Slurm) -> Site:
    """Single jobs on a cluster where sacct knows nothing."""
    partitions = {"cpu": {"max_walltime": "1d", "max_cpus": 4}, "debug": {"max_walltime": "2m", "max_cpus": 8}}
    lab = site(slurm_plain, {"partitions": partitions, "max_array": 1}, retries=1, kill_grace="40s")
    # Of the two minutes that the partition gives, 20 s are left for the program.
    lab.submit("capped", SLEEP, resources_needed={"cpus": 5, "gpus": 0}, max_duration="1h")
    lab.submit("code200", "raise SystemExit(200)")
    lab.submit("sigkill", "import os; os.kill(os.getpid(), 9)")
    lab.submit("script-killed", ONCE_THEN_FINE.format(once="os.kill(os.getppid(), 9); time.sleep(600)"),
               config={"env": {"MARK": str(lab.root / "mark")}})
    lab.submit("memory", "import time; hog = bytearray(250 * 2**20); time.sleep(600)",
               resources_needed={"cpus": 1, "gpus": 0, "ram": "100m"})
    for key in ("time", "by-me", "by-root"):
        lab.submit(key, SLEEP)
    lab.work()
    slurm_plain.root("scontrol", "update", f"jobid={lab.running('time')['job_id']}", "endtime=now+1")
    slurm_plain.root("scancel", lab.running("by-root")["job_id"])
    slurm_plain.run("scancel", lab.running("by-me")["job_id"])
    return lab


@pytest.mark.service("slurm-plain")
def test_ends_without_accounting(plain: Site) -> None:
    code, killed = plain.end("code200"), plain.end("sigkill")
    assert (code.outcome, code.exit_code, killed.outcome, killed.exit_code) == ("failed", 200, "failed", 137)
    again = plain.end("script-killed")
    assert (again.outcome, again.run["generation"]) == ("succeeded", 2)
    assert again.host not in again.run["avoid"]


@pytest.mark.service("slurm-plain")
@pytest.mark.parametrize("key", ["by-me", "by-root"])
def test_who_cancelled_it_is_not_known_without_accounting(plain: Site, key: str) -> None:
    end = plain.end(key)
    assert (end.outcome, end.run["generation"]) == ("cancelled", 1)
    assert "cancelled in the scheduler with the scheduler's own means; accounting would tell by whom" in end.reason


@pytest.mark.service("slurm-plain")
def test_slurms_time_limit_without_accounting(plain: Site) -> None:
    end = plain.end("time")
    assert end.outcome == "failed" and "(TIMEOUT)" in end.reason


@pytest.mark.service("slurm-plain")
def test_slurm_killing_for_memory_looks_like_a_crash_without_accounting(plain: Site) -> None:
    end = plain.end("memory")
    assert (end.outcome, end.run["generation"]) == ("lost", 2)
    assert "the job script ended without saying how" in end.reason


# -- too many jobs --


@pytest.fixture(scope="module")
def tiny(slurm: Slurm) -> list[Site]:
    """Six experiments each, by array and alone, where the user may have two jobs at a time in all."""
    labs = [site(slurm, {"qos": "tiny"}), site(slurm, {"qos": "tiny", "max_array": 1})]
    for lab in labs:
        for number in range(6):
            lab.submit(f"e{number}", f"print({number})")
        lab.work()
    return labs


@pytest.mark.parametrize("which", [0, 1])
def test_too_many_jobs_is_no_failure(tiny: list[Site], which: int) -> None:
    lab = tiny[which]
    ends = [lab.end(f"e{number}") for number in range(6)]
    assert [(end.outcome, end.run["generation"]) for end in ends] == [("succeeded", 1)] * 6
    assert [end.log.splitlines()[0] for end in ends] == [str(number) for number in range(6)]
    assert "Slurm has too many jobs now: QOSMaxSubmitJobPerUserLimit" in lab.said()


# -- when time is over --


@pytest.mark.parametrize("key", ["time", "time-deaf"])
def test_slurms_time_limit(many: Site, key: str) -> None:
    end = many.end(key)
    assert end.outcome == "failed"
    assert "reached the scheduler's time limit (TIMEOUT); ask for a longer max_duration" in end.reason


def test_lifetime_is_over_while_it_runs(many: Site) -> None:
    end = many.end("too-late")
    assert end.outcome == "expired" and end.reason.endswith("its lifetime was over")
    assert "up" in end.log


@pytest.fixture(scope="module")
def late(slurm: Slurm) -> Iterator[Site]:
    with held_partition(slurm, "down") as partition:
        lab = site(slurm, {"partitions": {partition: {}}})
        lab.submit("late", config={"experimentLifetime": "60s"})
        lab.work()
        lab.until(lambda: lab.see("late")["waiting"] == "PartitionDown", "status says why it waits")
        yield lab


def test_lifetime_is_over_while_it_waits(slurm: Slurm, late: Site) -> None:
    end = late.end("late")
    assert (end.outcome, end.reason) == ("expired", "its lifetime was over before it could start")
    assert (bool(end.job_id), end.host, end.exit_code) == (True, "", None)
    assert not slurm.run("squeue", "-h", "-p", "down").stdout


@pytest.mark.service("slurm-plain")
def test_partition_that_gives_less_time(plain: Site) -> None:
    end = plain.end("capped")
    assert (end.outcome, end.record["partition"]) == ("failed", "debug")
    assert re.fullmatch(r"stopped after .*: the longest that partition debug lets a job run \(its max_walltime\); "
                        "save checkpoints, and submit it again to go on", end.reason)
    assert "[hpcrunner] note: asks to run for 1h; partition debug lets it run for 20s" in end.log.splitlines()


def accounted(slurm: Slurm, job: str) -> str:
    return slurm.run("sacct", "-nXP", "-j", job, "-o", "State,ExitCode").stdout.strip()


def history(lab: SlurmLab, key: str) -> str:
    """All that status tells of it, which includes what became of its earlier runs."""
    return lab.hpcrunner("status", key).stdout
