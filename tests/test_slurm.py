"""Experiments through a real Slurm, as an ordinary user, from the queue to the results."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from services import Apptainer
from slurmcluster import Slurm, wait_until
from slurmlab import QUICK, SlurmLab

pytestmark = pytest.mark.service("slurm")

SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep({seconds})
    pathlib.Path("../retval").write_text("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("../modeldir/begun").touch()
print("begun", flush=True)
time.sleep(300)
"""


def begun(lab: SlurmLab, *keys: str) -> bool:
    return all(any(lab.state.glob(f"runs/{key}-*/studioml/experiments/{key}/modeldir/begun")) for key in keys)


def tick_until(lab: SlurmLab, true: Any, what: str, timeout: float = 90) -> None:
    wait_until(lambda: bool(lab.tick()) and true(), what, timeout)


def test_results_log_and_record_come_back(slurm: Slurm) -> None:
    lab = SlurmLab(slurm)
    lab.submit("e1", "import sys; print('hello', sys.argv[1:]); open('../retval', 'w').write('42')", args=["'a b'"])
    lab.submit("bad", "raise SystemExit(3)", resources_needed={"cpus": 2, "gpus": 0})
    runs = lab.run_all()
    assert (runs["e1"]["outcome"], runs["e1"]["exit_code"]) == ("succeeded", 0), runs
    assert lab.result("e1", "retval") == {"./retval": b"42"}
    assert "hello ['a b']" in lab.output("e1")
    assert (runs["bad"]["outcome"], runs["bad"]["exit_code"]) == ("failed", 3)
    record = lab.record("e1")
    assert record["status"] == "finished" and record["partition"] == "cpu"
    assert record["job_id"] == runs["e1"]["job_id"] and record["host"] in ("cpu1", "cpu2")


def test_without_accounting_it_is_the_same(slurm_plain: Slurm) -> None:
    lab = SlurmLab(slurm_plain)
    lab.submit("good", "print('x')")
    lab.submit("bad", "raise SystemExit(7)")
    runs = lab.run_all()
    assert (runs["good"]["outcome"], runs["bad"]["outcome"], runs["bad"]["exit_code"]) == ("succeeded", "failed", 7)


def test_equal_experiments_go_out_as_one_array(slurm: Slurm) -> None:
    lab = SlurmLab(slurm, {"array_throttle": 4})
    script = "import time; time.sleep(0.5); open('../retval', 'w').write('{0}'); raise SystemExit({0} % 2)"
    for number in range(6):
        lab.submit(f"e{number}", script.format(number))
    runs = lab.run_all()
    for number in range(6):
        run = runs[f"e{number}"]
        assert run["outcome"] == ("failed" if number % 2 else "succeeded"), run
        assert lab.result(f"e{number}", "retval") == {"./retval": str(number).encode()}
    assert len({run["job_id"].partition("_")[0] for run in runs.values()}) == 1
    assert sorted(run["task"] for run in runs.values()) == list(range(6))
    assert not any((lab.state / "arrays").iterdir())


def test_arrays_stay_within_what_the_site_allows(slurm: Slurm) -> None:
    lab = SlurmLab(slurm, {"max_array": 2})
    for number in range(5):
        lab.submit(f"e{number}")
    runs = lab.run_all()
    assert {run["outcome"] for run in runs.values()} == {"succeeded"}
    assert len({run["job_id"].partition("_")[0] for run in runs.values()}) == 3


def test_an_array_whose_files_cant_be_written_waits_and_says_why(slurm: Slurm) -> None:
    lab = SlurmLab(slurm)
    arrays = lab.state / "arrays"
    with lab.as_user():
        arrays.mkdir(parents=True)
        arrays.chmod(0o500)
    for key in ("e0", "e1"):
        lab.submit(key)
    lab.submit("alone", resources_needed={"cpus": 2, "gpus": 0})
    tick_until(lab, lambda: lab.status()["alone"]["state"] == "done", "the one without an array has ended")
    for key in ("e0", "e1"):
        run = lab.status()[key]
        assert run["state"] == "ready" and f"{arrays}/" in run["waiting"] and "Permission denied" in run["waiting"], run
    arrays.chmod(0o700)
    assert {run["outcome"] for run in lab.run_all().values()} == {"succeeded"}


def test_one_element_is_cancelled_and_the_others_go_on(slurm: Slurm) -> None:
    lab = SlurmLab(slurm, {"array_throttle": 2}, kill_grace="10s")
    for number in range(4):
        lab.submit(f"e{number}", SAVES.format(seconds=3))
    tick_until(lab, lambda: begun(lab, "e0", "e1"), "two run")
    tick_until(lab, lambda: lab.status()["e0"]["state"] == "running", "that is known")
    # One that runs and must have its time to save, one that waits.
    lab.hpcrunner("cancel", "e0", "e3", "--reason", "not needed")
    tick_until(lab, lambda: all(lab.status()[key]["state"] == "done" for key in ("e0", "e3")), "both have ended")
    status = lab.status()
    for key in ("e0", "e3"):
        assert status[key]["outcome"] == "cancelled" and status[key]["reason"] == "not needed", status[key]
    assert lab.result("e0", "retval") == {"./retval": b"saved"}
    assert lab.output("e3").endswith("[hpcrunner] cancelled: not needed\n")
    tick_until(lab, lambda: begun(lab, "e1", "e2"), "the others run")
    assert {lab.status()[key]["outcome"] for key in ("e1", "e2")} == {None}
    lab.hpcrunner("cancel", "e1", "e2")
    tick_until(lab, lambda: {run["state"] for run in lab.status().values()} == {"done"}, "all have ended")
    assert {run["outcome"] for run in lab.status().values()} == {"cancelled"}
    assert slurm.run("squeue", "--noheader", "--me", "--states=PD,R").stdout == ""


def test_cancelling_gives_a_running_job_its_grace_beyond_slurms_own(slurm: Slurm) -> None:
    """The cluster's KillWait is 2 s."""
    lab = SlurmLab(slurm, kill_grace="20s")
    lab.submit("slow", SAVES.format(seconds=5))
    tick_until(lab, lambda: begun(lab, "slow") and lab.status()["slow"]["state"] == "running", "it runs")
    assert "being cancelled" in lab.hpcrunner("cancel", "slow").stdout
    lab.tick("--wait")
    assert lab.status()["slow"]["outcome"] == "cancelled"
    assert lab.result("slow", "retval") == {"./retval": b"saved"}


def test_cancel_names_what_it_does_not_know_and_then_does_nothing(slurm: Slurm) -> None:
    lab = SlurmLab(slurm)
    lab.submit("e", "print('x')")
    lab.tick()
    done = lab.hpcrunner("cancel", "e", "nonsense", check=False)
    assert done.returncode == 66 and "nonsense: no such experiment" in done.stderr
    lab.tick("--wait")
    assert lab.status()["e"]["outcome"] == "succeeded"
    assert "over already" in lab.hpcrunner("cancel", "e").stdout


def test_a_hundred_are_cancelled_by_few_calls(slurm: Slurm) -> None:
    lab = SlurmLab(slurm, {"bin_dir": str(counting(slurm)), "array_throttle": 1, "max_array": 60})
    for number in range(120):
        lab.submit(f"e{number}", "import time; time.sleep(100)")
    tick_until(lab, lambda: all(run["job_id"] for run in lab.status().values()), "all are submitted")
    before = calls(slurm, "scancel")
    lab.hpcrunner("cancel", *lab.status())
    assert calls(slurm, "scancel") - before <= 4
    tick_until(lab, lambda: {run["state"] for run in lab.status().values()} == {"done"}, "all have ended", 120)
    assert {run["outcome"] for run in lab.status().values()} == {"cancelled"}


def test_a_tick_asks_squeue_once_and_sbatch_once_for_equal_experiments(slurm: Slurm) -> None:
    lab = SlurmLab(slurm, {"bin_dir": str(counting(slurm))})
    for number in range(8):
        lab.submit(f"e{number}", "import time; time.sleep(30)")
    tick_until(lab, lambda: all(run["job_id"] for run in lab.status().values()), "all are submitted")
    assert calls(slurm, "sbatch") == 1
    time.sleep(0.6)  # poll_min, so that the next look is due
    before = calls(slurm, "squeue"), calls(slurm, "sacct")
    lab.tick()
    assert calls(slurm, "squeue") - before[0] == 1 and calls(slurm, "sacct") == before[1]
    lab.hpcrunner("cancel", *lab.status())
    lab.tick("--wait")


def test_doctor_reports_jobs_that_the_journal_does_not_know(slurm: Slurm) -> None:
    lab = SlurmLab(slurm)
    lab.submit("e", "import time; time.sleep(60)")
    tick_until(lab, lambda: lab.status()["e"]["state"] == "running", "it runs")
    assert lab.hpcrunner("doctor").stdout == "nothing found\n"
    assert json.loads(lab.hpcrunner("doctor", "--json").stdout) == []
    name = lab.status()["e"]["job_name"]
    # No name of hpcrunner holds a 0.
    foreign = slurm.run("sbatch", "--parsable", f"--job-name={name[:-1]}0", "--hold", "--wrap=true").stdout.strip()
    slurm.run("sbatch", "--parsable", "--job-name=mine", "--hold", "--wrap=true")
    done = lab.hpcrunner("doctor", check=False)
    assert done.returncode == 1 and f"job {foreign} ({name[:-1]}0, PENDING)" in done.stdout
    assert f"scancel {foreign}" in done.stdout and "mine" not in done.stdout
    slurm.run("scancel", "--me")
    lab.tick("--wait")


def test_a_submission_without_an_answer_can_be_resolved_by_hand(slurm: Slurm) -> None:
    """sbatch fails without a word, and neither squeue nor sacct can be asked: only the operator can know."""
    folder = fake_commands(slurm, "resolve", sbatch="exit 1", squeue="exit 1", sacct="exit 1")
    lab = SlurmLab(slurm, {"bin_dir": str(folder)})
    lab.submit("e", "print('x')")
    tick_until(lab, lambda: lab.status()["e"]["state"] == "submitting", "it is unclear")
    for name in ("sbatch", "squeue", "sacct"):
        (folder / name).unlink()
        (folder / name).symlink_to(f"/usr/bin/{name}")
    (lab.state / "slurm.json").unlink()
    assert "submitted again" in lab.hpcrunner("resolve", "e", "--no-job").stdout
    lab.tick("--wait")
    assert lab.status()["e"]["outcome"] == "succeeded" and lab.status()["e"]["attempt"] == 2
    done = lab.hpcrunner("resolve", "e", "--no-job", check=False)
    assert done.returncode == 64 and "nothing to resolve" in done.stderr


@pytest.mark.service("apptainer")
def test_images_are_built_by_a_job_where_the_site_says(slurm: Slurm, apptainer: Apptainer) -> None:
    lab = SlurmLab(slurm, {"build_partition": "debug", "build_memory": "2000MiB", "build_cpus": 1}, engine="apptainer",
                   build_timeout="20m", base_images={"any": str(slurm.share(apptainer.base_image))})
    for number in range(3):
        lab.submit(f"e{number}", "import six; print('six', six.__version__)", pythonenv=["six==1.16.0"])
    seen: set[str] = set()

    def over() -> bool:
        seen.update(slurm.run("squeue", "--noheader", "--me", "--format=%P %j").stdout.split("\n"))
        return {run["state"] for run in lab.status().values()} == {"done"}

    tick_until(lab, over, "all have ended", 300)
    assert {run["outcome"] for run in lab.status().values()} == {"succeeded"}, lab.status()
    assert "six 1.16.0" in lab.output("e0")
    builds = {line for line in seen if line.startswith("debug hb")}
    assert len(builds) == 1, seen
    # Nobody held a node while the image was built.
    assert not any(line.startswith("cpu ") for line in seen if builds & {line})


def test_a_build_job_that_can_not_run_is_an_end_with_a_reason(slurm: Slurm, apptainer: Apptainer) -> None:
    lab = SlurmLab(slurm, {"build_partition": "cpu", "build_memory": "2000MiB", "build_cpus": 1,
                           "modules": ["no-such-module"]}, engine="apptainer",
                   base_images={"any": str(slurm.share(apptainer.base_image))})
    lab.submit("e", "print('x')", pythonenv=["six==1.15.0"])
    tick_until(lab, lambda: lab.status()["e"]["state"] == "done", "it has ended", 300)
    run = lab.status()["e"]
    assert run["outcome"] == "failed" and "image build" in run["reason"], run


def test_a_build_job_that_waits_for_ever_is_told_and_goes_with_its_last_experiment(slurm: Slurm, apptainer: Apptainer) -> None:
    """The partition's MaxTime, 30 minutes, is less than build_timeout, and the site config doesn't say so."""
    lab = SlurmLab(slurm, {"build_partition": "debug", "build_memory": "2000MiB", "build_cpus": 1}, engine="apptainer",
                   build_timeout="1h", base_images={"any": str(slurm.share(apptainer.base_image))})
    for key in ("e1", "e2"):
        lab.submit(key, "print('x')", pythonenv=["six==1.14.0"])
    tick_until(lab, lambda: lab.status()["e1"]["waiting"] == "PartitionTimeLimit", "the build waits")
    done = lab.hpcrunner("doctor", check=False)
    assert done.returncode == 1 and "that builds its image waits for what won't come by itself: PartitionTimeLimit" in done.stdout
    builds = lambda: [line for line in slurm.run("squeue", "--noheader", "--me", "--format=%j").stdout.split() if line.startswith("hb")]  # noqa: E731
    lab.hpcrunner("cancel", "e1")
    lab.tick()
    assert len(builds()) == 1
    lab.hpcrunner("cancel", "e2")
    wait_until(lambda: not builds(), "its job is cancelled", 20)
    lab.tick("--wait")
    assert lab.hpcrunner("doctor").stdout == "nothing found\n"


def test_gpu_jobs_see_exactly_their_cards(slurm: Slurm) -> None:
    lab = SlurmLab(slurm)
    script = "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES')); time.sleep(3)"
    wish = {"env": {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}}
    for key in ("g1", "g2"):
        lab.submit(key, script, resources_needed={"cpus": 1, "gpus": 2, "gpuMem": "10g"}, config=wish)
    lab.submit("c", script, config=wish)
    lab.run_all()
    seen = {key: lab.output(key).splitlines()[0] for key in ("g1", "g2", "c")}
    assert seen["c"] == "-1" and {seen["g1"], seen["g2"]} == {"0,1", "2,3"}


def test_the_time_of_a_suspended_job_stands_still(slurm: Slurm) -> None:
    lab = SlurmLab(slurm)
    lab.submit("e", "import time\nfor i in range(60): print('second', flush=True); time.sleep(1)", max_duration="8s")
    tick_until(lab, lambda: lab.status()["e"]["state"] == "running", "it runs")
    job = lab.status()["e"]["job_id"]
    slurm.root("scontrol", "suspend", job)
    time.sleep(14)
    slurm.root("scontrol", "resume", job)
    run = lab.run_all()["e"]
    assert run["outcome"] == "failed" and "longer than its max_duration" in run["reason"], run
    assert run["finished_at"] - run["started_at"] > 17
    assert 5 <= lab.output("e").count("second") <= 12


def test_nothing_of_the_callers_environment_reaches_sbatch_or_the_job(slurm: Slurm) -> None:
    lab = SlurmLab(slurm)
    lab.submit("e", "import os; print(sorted(os.environ))")
    lab.run_all(env={"SBATCH_PARTITION": "nonsense", "SLURM_TIME_FORMAT": "%s", "SQUEUE_FORMAT": "%i", "SECRET": "s",
                     "SACCT_FORMAT": "jobid", "SQUEUE_STATES": "PD", "SBATCH_TIMELIMIT": "1"})
    assert lab.status()["e"]["outcome"] == "succeeded" and "SECRET" not in lab.output("e")


@pytest.mark.parametrize(("export", "is_login"), [("ALL", False), ("NONE", True), ("TZ,HOME", True)])
def test_what_the_job_has_of_an_environment(export: str, is_login: bool, slurm: Slurm) -> None:
    lab = SlurmLab(slurm, {"export": export})
    with lab.as_user():
        lab.site.write_text(json.dumps({**json.loads(lab.site.read_text()), "prologue": f"env >{lab.root}/seen"}))
    lab.submit("e", "print('x')")
    lab.run_all(env={"TZ": "Asia/Tokyo"})
    seen = dict(line.split("=", 1) for line in (lab.root / "seen").read_text().splitlines() if "=" in line)
    # Debian's /etc/profile names the folders of games.
    assert ("games" in seen["PATH"]) == is_login, seen
    assert seen.get("TZ") == (None if export == "NONE" else "Asia/Tokyo")


def test_an_experiment_that_no_partition_holds_is_rejected_with_the_limit(slurm: Slurm) -> None:
    lab = SlurmLab(slurm)
    lab.submit("wide", resources_needed={"cpus": 17, "gpus": 0})
    lab.submit("cards", resources_needed={"cpus": 1, "gpus": 5})
    lab.submit("memory", resources_needed={"cpus": 1, "gpus": 1, "gpuMem": "80g"})
    lab.tick()
    status = lab.status()
    assert {run["outcome"] for run in status.values()} == {"rejected"}
    assert "17 cores" in status["wide"]["reason"] and "max_cpus" in status["wide"]["reason"]
    assert "max_gpus" in status["cards"]["reason"] and "gpu_types" in status["memory"]["reason"]
    assert not any(run["job_id"] for run in status.values())


def test_many_partitions_and_options_are_taken_by_the_real_sbatch(slurm: Slurm) -> None:
    options = {
        "partitions": {"gpu": {**QUICK["partitions"]["gpu"], "qos": "high", "directives": ["--nice=10"]}},
        "account": "other", "memory_flag": "mem-per-gpu", "gpu_flag": "gpus-per-node", "gpu_type_always": True,
        "requeue": "always", "export": "NIL", "directives": ["--mail-type=NONE"]}
    lab = SlurmLab(slurm, options, env={"PATH": "/usr/bin:/bin"})
    lab.submit("e", "import time; time.sleep(5)", resources_needed={"cpus": 1, "gpus": 2, "ram": "200m"})
    tick_until(lab, lambda: lab.status()["e"]["state"] == "running", "it runs")
    shown = slurm.run("scontrol", "show", "job", lab.status()["e"]["job_id"]).stdout
    wanted = ("Account=other QOS=high", "Requeue=1", "TresPerNode=gres:gpu:a100:2", "MemPerTres=gres:gpu:100", "Partition=gpu")
    for part in wanted:
        assert part in shown.replace("gres/", "gres:"), shown
    lab.tick("--wait")
    assert lab.status()["e"]["outcome"] == "succeeded"


# -- commands that count, or fail --


def counting(slurm: Slurm) -> Path:
    """A folder of Slurm's commands that count their calls."""
    return fake_commands(slurm, "counting", **{name: f'echo >>"$0.calls"; exec /usr/bin/{name} "$@"'
                                              for name in ("sbatch", "squeue", "sacct", "scancel")})


def calls(slurm: Slurm, name: str) -> int:
    path = slurm.folder / "shared" / "counting" / f"{name}.calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def fake_commands(slurm: Slurm, kind: str, **scripts: str) -> Path:
    folder = slurm.folder / "shared" / kind
    folder.mkdir(parents=True, exist_ok=True)
    os.chown(folder, slurm.uid, slurm.gid)
    for name in ("sbatch", "squeue", "sacct", "scancel"):
        path = folder / name
        path.unlink(missing_ok=True)
        Path(f"{path}.calls").unlink(missing_ok=True)
        body = scripts.get(name, f'exec /usr/bin/{name} "$@"')
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    return folder
