"""One experiment and many, from the queue to the results, on real processes (engine: none)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hpcrunner.engine.finish import remove
from lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_results_log_and_record_come_back(lab: Lab) -> None:
    script = """
import os, sys
print("args", sys.argv[1:])
print("to stderr", file=sys.stderr)
open("../modeldir/weights", "w").write("w")
open("../retval", "w").write("42")
os.mkdir("../tb"); open("../tb/event", "w").write("e")
"""
    lab.submit("e1", script, args=["plain", "'y z'"], max_duration="10m")
    run = lab.run_all()["e1"]
    assert (run["state"], run["outcome"], run["exit_code"]) == ("done", "succeeded", 0)
    assert lab.result("e1", "modeldir") == {"weights": b"w"}
    assert lab.result("e1", "retval") == {"./retval": b"42"}
    assert lab.result("e1", "tb") == {"event": b"e"}
    [(name, metadata)] = lab.result("e1", "_metadata").items()
    assert name.startswith("scrape-host-") and json.loads(metadata)["studioml"]["experiment"]["key"] == "e1"
    output = lab.output("e1")
    assert "args ['plain', 'y z']" in output and "to stderr" in output
    assert output.endswith(f"[hpcrunner] succeeded: {run['reason']}\n")
    record = lab.record("e1")
    assert record["status"] == "finished" and record["exit_code"] == 0 and record["outcome"] == "succeeded"
    assert record["time_added"] < record["time_started"] <= record["time_finished"]
    assert record["filename"] == "main.py" and record["artifacts"]["workspace"]


@pytest.mark.parametrize(("ahead", "least"), [(0.0, 4.0), (600.0, 604.0), (1e6, 3604.0)])
def test_a_quick_result_is_younger_than_its_submission(lab: Lab, ahead: float, least: float) -> None:
    """Else the completion service takes it for an earlier one's, and waits for ever. Its clock may be ahead of ours."""
    message = lab.message("e1", "open('../retval', 'w').write('42'); open('../modeldir/weights', 'w').write('w')")
    message["experiment"]["time_added"] = time.time() + ahead
    before = time.time()
    lab.enqueue(message)
    lab.run_all()
    times = {}
    for tag in ("retval", "modeldir"):
        with tarfile.open(lab.store / "artifacts" / "experiments" / "e1" / f"{tag}.tar") as tar:
            times[tag] = tar.getmembers()[-1].mtime
    assert before + least <= times["retval"] <= time.time() + least + 1
    assert times["modeldir"] <= time.time()


def test_failing_script_ends_failed_with_its_code_and_returns_everything(lab: Lab) -> None:
    lab.submit("bad", "open('../modeldir/half', 'w').write('h'); print('so far'); raise SystemExit(3)")
    run = lab.run_all()["bad"]
    assert (run["outcome"], run["exit_code"]) == ("failed", 3)
    assert "exit code 3" in run["reason"]
    assert lab.result("bad", "modeldir") == {"half": b"h"}
    lines = lab.output("bad").splitlines()
    assert lines[0] == "so far" and "exit code 3" in lines[-1]
    assert lab.record("bad")["status"] == "finished" and lab.record("bad")["exit_code"] == 3


def test_the_record_says_running_while_it_runs_and_stopped_is_kept(lab: Lab) -> None:
    lab.submit("slow", "import time, pathlib\nwhile not pathlib.Path('../modeldir/go').exists(): time.sleep(0.05)")
    until(lambda: lab.tick() and lab.status()["slow"]["state"] == "running")
    assert lab.record("slow")["status"] == "running"
    record = lab.record("slow")
    (lab.store / "meta/experiments/slow").write_text(json.dumps({**record, "status": "stopped"}))
    (Path(lab.status()["slow"]["run_dir"]) / "studioml/experiments/slow/modeldir/go").touch()
    lab.run_all()
    assert lab.record("slow")["status"] == "stopped"
    assert lab.record("slow")["outcome"] == "succeeded"


def test_environment_working_directory_and_siblings(lab: Lab) -> None:
    script = """
import json, os
print(json.dumps({"env": dict(os.environ), "cwd": os.getcwd(), "siblings": sorted(os.listdir(".."))}))
"""
    lab.submit("k", script, config={"env": {"GREETING": "it's $HOME `x`", "NUMBER": 3, "NOTHING": None}})
    lab.run_all(env={"AWS_SECRET_ACCESS_KEY": "not for jobs", "SLURM_JOB_ID": "7"})
    seen = json.loads(lab.output("k").splitlines()[0])
    env = seen["env"]
    assert env["GREETING"] == "it's $HOME `x`" and env["NUMBER"] == "3" and "NOTHING" not in env
    assert env["STUDIOML_EXPERIMENT"] == "k" and env["PYTHONUNBUFFERED"] == "TRUE"
    assert seen["cwd"] == env["STUDIOML_HOME"] + "/experiments/k/workspace"
    assert seen["siblings"] == ["modeldir", "output", "workspace"]
    assert "AWS_SECRET_ACCESS_KEY" not in env and "SLURM_JOB_ID" not in env


def test_variables_that_bash_keeps_to_itself_are_left_out(tmp_path: Path) -> None:
    names = subprocess.run(["bash", "-c", "declare -rp"], capture_output=True, text=True).stdout
    read_only = dict.fromkeys(re.findall(r"^declare -\w+ (\w+)=", names, re.MULTILINE), "0")
    assert "UID" in read_only
    lab = Lab(tmp_path, env=read_only)  # the site's own: bash says in the log that it can't
    lab.submit("e", "print('ran in spite of it')", config={"env": read_only})
    assert lab.run_all()["e"]["outcome"] == "succeeded"
    output = lab.output("e")
    assert "ran in spite of it\n" in output
    assert all(f"config.env.{name}: bash keeps" in output for name in read_only)


def test_max_duration_ends_it_and_says_so(lab: Lab) -> None:
    lab.submit("long", "import time; print('begun', flush=True); time.sleep(60)", max_duration="1s")
    run = lab.run_all()["long"]
    assert run["outcome"] == "failed" and "max_duration" in run["reason"]
    assert "begun" in lab.output("long")


def test_lifetime_over_on_arrival(lab: Lab) -> None:
    lab.submit("late", time_added=time.time() - 7200, config={"experimentLifetime": "1h"})
    run = lab.run_all()["late"]
    assert run["outcome"] == "expired" and "lifetime" in lab.output("late")


def test_too_large_for_the_site_is_rejected_with_the_limit(lab: Lab) -> None:
    lab.submit("big", resources_needed={"cpus": 100000, "gpus": 0})
    lab.submit("gpu", resources_needed={"cpus": 1, "gpus": 1})
    runs = lab.run_all(env={"HPCRUNNER_CPU_ONLY": "yes"})
    assert runs["big"]["outcome"] == "rejected" and "max_cores" in runs["big"]["reason"]
    assert runs["gpu"]["outcome"] == "rejected" and "GPU" in runs["gpu"]["reason"]
    assert "max_cores" in lab.output("big") and lab.record("big")["status"] == "finished"


def test_missing_workspace_is_rejected_and_named(lab: Lab) -> None:
    message = lab.message("gone")
    Path(message["experiment"]["artifacts"]["workspace"]["qualified"].replace("file:/", "")).unlink()
    lab.enqueue(message)
    run = lab.run_all()["gone"]
    assert run["outcome"] == "rejected" and "workspace is not in the store" in run["reason"]


def test_mutable_workspace_of_a_grid_search_is_fetched(lab: Lab) -> None:
    key = lab.put_tar({"main.py": "print('from grid')"}, "experiments/grid/workspace.tar")
    lab.submit("grid", artifacts={"workspace": {**lab.artifact("workspace", key, mutable=True), "unpack": None}})
    assert lab.run_all()["grid"]["outcome"] == "succeeded"
    assert "from grid" in lab.output("grid")


def test_old_clients_get_results_in_their_style(lab: Lab) -> None:
    key = lab.put_tar({"./main.py": "open('../retval', 'w').write('1'); open('../modeldir/m', 'w').write('2')"})
    lab.submit("old", artifacts={"workspace": lab.artifact("workspace", key, mutable=False)})
    assert lab.run_all()["old"]["outcome"] == "succeeded"
    assert lab.result("old", "retval") == {"retval": b"1"}
    assert lab.result("old", "modeldir") == {"./m": b"2"}


def test_deleting_the_queue_cancels_its_experiments(lab: Lab) -> None:
    lab.submit("waits", "import time; time.sleep(60)")
    until(lambda: lab.tick() and lab.status()["waits"]["state"] == "running")
    for path in [*lab.queue.iterdir(), lab.queue]:
        path.rmdir() if path.is_dir() else path.unlink()
    run = lab.run_all()["waits"]
    assert run["outcome"] == "cancelled" and "queue local_test was deleted" in run["reason"]


def test_an_empty_mount_point_is_no_deleted_queue(lab: Lab) -> None:
    lab.submit("waits", "import time; time.sleep(60)")
    until(lambda: lab.tick() and lab.status()["waits"]["state"] == "running")
    root, away = lab.queue.parent, lab.root / "away"
    root.rename(away)
    root.mkdir()
    for _ in range(3):
        said = lab.tick().stderr
        assert said.count("a mount is missing") == 1 and f"local queues: {root}/.hpcrunner-" in said
    # The client made another queue there, and that was taken from: it says nothing of the first one.
    lab.queue.with_name("local_other").mkdir()
    lab.queue, first = lab.queue.with_name("local_other"), lab.queue
    lab.submit("other")
    assert "a mount is missing" in lab.tick().stderr
    assert lab.status()["waits"]["state"] == "running"
    shutil.rmtree(root)
    away.rename(root)
    assert "local_test" not in lab.tick().stderr
    assert lab.status()["waits"]["state"] == "running"
    shutil.rmtree(first)
    assert "queue local_test was deleted" in lab.run_all()["waits"]["reason"]


def test_installs_may_share_a_working_dir(tmp_path: Path) -> None:
    shared = {"working_dir": str(tmp_path / "runs"), "retries": 0}
    first, second = Lab(tmp_path / "first", **shared), Lab(tmp_path / "second", **shared)
    go = tmp_path / "go"
    first.submit("same", f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.1)\nprint('of the first')")
    until(lambda: first.tick() and first.status()["same"]["state"] == "running")
    second.submit("same", "print('of the second')")
    assert second.run_all()["same"]["outcome"] == "succeeded"
    go.touch()
    assert first.run_all()["same"]["outcome"] == "succeeded"
    assert "of the first" in first.output("same") and "of the second" in second.output("same")


def test_the_same_message_again_runs_once(lab: Lab) -> None:
    message = lab.message("once", "print('ran')")
    lab.enqueue(message)
    lab.run_all()
    lab.enqueue(message)
    lab.run_all()
    assert list(lab.status()) == ["once"]
    assert lab.output("once").count("ran\n") == 1


def test_one_environment_is_built_once_for_fifty(lab: Lab) -> None:
    for number in range(50):
        lab.submit(f"e{number}", f"print({number})")
    runs = lab.run_all()
    assert [run["outcome"] for run in runs.values()] == ["succeeded"] * 50
    images = {run["image"] for run in runs.values()}
    assert len(images) == 1
    built = (lab.state / "images").glob("builds/*/built.json")
    assert len(list(built)) == 1
    events = [event["text"] for key in runs for event in
              json.loads(lab.hpcrunner("status", key, "--json").stdout)[0]["history"]]
    assert events.count("building its image") == 1
    lab.submit("later", "print('again')")
    lab.run_all()
    history = json.loads(lab.hpcrunner("status", "later", "--json").stdout)[0]["history"]
    assert "building its image" not in [event["text"] for event in history]


def test_packages_that_cannot_be_had_fail_with_pips_words(lab: Lab) -> None:
    lab.submit("nope", pythonenv=["no-such-package-by-hpcrunner==1.0"])
    run = lab.run_all(env={"PIP_NO_INDEX": "1"})["nope"]
    assert run["outcome"] == "failed" and "no-such-package-by-hpcrunner" in run["reason"]
    assert "no-such-package-by-hpcrunner" in lab.output("nope")


def test_max_takes_no_more_and_limits_bound_what_runs_at_once(lab: Lab) -> None:
    for number in range(4):
        lab.submit(f"e{number}", "import time; time.sleep(0.5)", resources_needed={"cpus": 2, "gpus": 0})
    lab.tick("--max", "3")
    assert len(list(lab.queue.iterdir())) == 1
    until(lambda: lab.tick("--max", "1", "--max-cores", "4") and any(
        run["state"] in ("submitted", "running") for run in lab.status().values()))
    live = [run for run in lab.status().values() if run["state"] in ("submitting", "submitted", "running")]
    assert 1 <= len(live) <= 2
    assert {run["outcome"] for run in lab.run_all(env={"HPCRUNNER_MAX_CORES": "4"}).values()} == {"succeeded"}


def test_a_job_that_is_killed_with_its_script_is_run_again(lab: Lab) -> None:
    script = """
import os, pathlib, signal, time
first = pathlib.Path(os.environ["COUNT"])
with first.open("a") as file: file.write("x")
if first.stat().st_size == 1: time.sleep(60)
"""
    count = lab.root / "count"
    lab.submit("lost", script, config={"env": {"COUNT": str(count)}})
    until(lambda: lab.tick() and lab.status()["lost"]["state"] == "running" and count.exists())
    run = lab.status()["lost"]
    owner = (Path(run["run_dir"]) / "status" / "owner").read_text().split()
    os.kill(int(owner[3]), signal.SIGKILL)
    run = lab.run_all()["lost"]
    assert (run["outcome"], run["generation"]) == ("succeeded", 2)
    assert count.read_text() == "xx"
    session = owner[3]
    left = [path for path in Path("/proc").glob("[0-9]*/stat") if session_of(path) == session]
    assert left == [], "what the killed script had started runs on"


def test_without_a_queue_yet_a_tick_and_its_dry_run_warn(lab: Lab) -> None:
    shutil.rmtree(lab.queue.parent)
    assert "the StudioML client makes it at the first submission" in lab.tick().stderr
    shown = lab.tick("--dry-run").stdout
    assert "the StudioML client makes it at the first submission" in shown and "empty" not in shown


def test_dry_run_touches_nothing_and_shows_the_script(lab: Lab) -> None:
    lab.submit("dry", config={"env": {"TOKEN": "sesame-secret"}})
    before = sorted((path, path.stat().st_mtime_ns) for path in lab.root.rglob("*"))
    shown = lab.tick("--dry-run").stdout
    assert "#!/bin/bash" in shown and "dry" in shown and "sesame-secret" not in shown
    assert sorted((path, path.stat().st_mtime_ns) for path in lab.root.rglob("*")) == before


def until(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def session_of(stat: Path) -> str:
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[3]


@pytest.mark.parametrize("spoil", [
    "shutil.rmtree('../output'); open('../output', 'w')", "os.unlink('../output/output'); os.mkfifo('../output/output')",
    "os.unlink('../output/output'); os.mkdir('../output/output')", "os.unlink('../output/output'); os.symlink('/', '../output/output')",
])
def test_no_program_keeps_its_run_from_ending(lab: Lab, spoil: str) -> None:
    lab.submit("e", f"import os, shutil\nopen('../retval', 'w').write('1')\n{spoil}")
    lab.tick("--wait", timeout=60)
    run = lab.status()["e"]
    assert (run["state"], run["outcome"]) == ("done", "succeeded")
    assert lab.result("e", "retval") == {"./retval": b"1"}


def test_a_folder_that_can_not_be_listed_is_removed() -> None:
    """Not as root, who lists all."""
    nobody = 65534
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        (folder / "a/b").mkdir(parents=True)
        (folder / "a/b/file").touch()
        (folder / "a/b").chmod(0o300)
        (folder / "a").chmod(0o300)
        if os.geteuid() == 0:
            for path in (Path(root), folder, folder / "a", folder / "a/b", folder / "a/b/file"):
                os.chown(path, nobody, nobody)
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                if os.geteuid() == 0:
                    os.setresgid(nobody, nobody, nobody)
                    os.setresuid(nobody, nobody, nobody)
                os._exit(0 if remove(folder) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not folder.exists()
