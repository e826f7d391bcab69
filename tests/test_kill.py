"""kill -9 of hpcrunner at every point where it writes something: one run, results once, nothing lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab import Lab

# Each is a place in the program, by module and function; the process dies right before or right after it.
POINTS = [
    "hpcrunner.journal.store:Journal.receive",
    "hpcrunner.queues.local:LocalQueues._claim",
    "hpcrunner.queues.local:LocalQueues.acknowledge",
    "hpcrunner.engine.prepare:stage",
    "hpcrunner.engine.prepare:staged",
    "hpcrunner.artifacts.unpack:unpack",
    "hpcrunner.engine.prepare:define",
    "hpcrunner.images.cache:Images.build",
    "hpcrunner.engine.submit:job_files",
    "hpcrunner.files:write_whole",
    "hpcrunner.engine.submit:_intend",
    "hpcrunner.schedulers.direct:DirectScheduler._start",
    "hpcrunner.engine.finish:sign_off",
    "hpcrunner.engine.scrape:scrape",
    "hpcrunner.engine.outbox:Outbox._remember",
    "hpcrunner.engine.finish:finished",
    "hpcrunner.artifacts.pack:pack",
    "hpcrunner.stores.local:LocalStore.put",
    "hpcrunner.engine.record:update",
    "hpcrunner.engine.finish:remove",
    *(f"move:{state}" for state in ("staged", "ready", "submitting", "submitted", "running", "ending", "done")),
]

KILLER = '''
import importlib, os, signal, sys
point, when, *arguments = sys.argv[1:]
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
if point.startswith("move:"):
    module, name, only = "hpcrunner.journal.store", "Journal.move", point[5:]
else:
    (module, name), only = point.split(":"), None
holder = importlib.import_module(module)
*path, last = name.split(".")
for part in path: holder = getattr(holder, part)
original = getattr(holder, last)
def wrapped(*args, **kwargs):
    if only is not None and args[2].value != only: return original(*args, **kwargs)
    if when == "before": die()
    result = original(*args, **kwargs)
    die()
setattr(holder, last, wrapped)
for name, loaded in list(sys.modules.items()):
    if name.startswith("hpcrunner") and getattr(loaded, last, None) is original: setattr(loaded, last, wrapped)
import hpcrunner.engine.tick
for name, loaded in list(sys.modules.items()):
    if name.startswith("hpcrunner") and getattr(loaded, last, None) is original: setattr(loaded, last, wrapped)
from hpcrunner.cli.main import main
sys.exit(main(arguments))
'''

SCRIPT = """
import os, time
with open(os.environ["COUNT"], "a") as file: file.write("ran\\n")
time.sleep(0.3)
open("../retval", "w").write("result")
"""


def submit(lab: Lab, key: str) -> Path:
    count = lab.root / f"count-{key}"
    lab.submit(key, SCRIPT, config={"env": {"COUNT": str(count)}})
    return count


def start(lab: Lab, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *command], env={**os.environ, "HPCRUNNER_SITE": str(lab.site)},
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def check(lab: Lab, counts: dict[str, Path]) -> None:
    runs = json.loads(lab.hpcrunner("status", "--json").stdout)
    assert sorted(run["key"] for run in runs) == sorted(counts)
    for run in runs:
        assert run["outcome"] == "succeeded", run
        assert counts[run["key"]].read_text() == "ran\n", "it must run once"
        assert lab.result(run["key"], "retval") == {"./retval": b"result"}
        assert lab.output(run["key"]).count("[hpcrunner] succeeded") == 1
        assert lab.record(run["key"])["status"] == "finished"
    assert not any((lab.state / "runs").iterdir()), "run directories are left"
    assert not any((lab.state / "spool").iterdir())
    assert not any(lab.queue.iterdir())
    assert not [path for path in lab.store.rglob("*.part")]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at(point: str, when: str, tmp_path: Path) -> None:
    lab = Lab(tmp_path, image_dir=str(shared_images(tmp_path)) if point != "hpcrunner.images.cache:Images.build" else None)
    counts = {"e": submit(lab, "e")}
    killed = start(lab, "-c", KILLER, point, when, "submit-from-queue", "--wait")
    assert killed.wait(120) == -signal.SIGKILL, "the point was never reached"
    lab.tick("--wait")
    check(lab, counts)


CHECKPOINTS = [
    "hpcrunner.engine.checkpoint:save",
    "hpcrunner.artifacts.fingerprint:fingerprint",
    "hpcrunner.artifacts.pack:pack",
    "hpcrunner.stores.local:LocalStore.put",
    "hpcrunner.engine.outbox:Outbox._remember",
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", CHECKPOINTS)
def test_killed_while_it_saves(point: str, when: str, tmp_path: Path) -> None:
    lab = Lab(tmp_path, image_dir=str(shared_images(tmp_path)), checkpoint_min="1s")
    count, go = lab.root / "count-e", lab.root / "go"
    lab.submit("e", SCRIPT + f"while not os.path.exists({str(go)!r}): time.sleep(0.05)\n",
               config={"env": {"COUNT": str(count)}, "saveWorkspaceFrequency": "1s"})
    killed = start(lab, "-c", KILLER, point, when, "submit-from-queue", "--wait")
    assert killed.wait(120) == -signal.SIGKILL, "the point was never reached"
    whole = lab.result("e", "retval")
    assert whole in ({}, {"./retval": b"result"}), "never half of it"
    go.touch()
    lab.tick("--wait")
    check(lab, {"e": count})


def shared_images(tmp_path: Path) -> Path:
    """One folder of images for all tests of this run: what is tested here is not the building."""
    return tmp_path.parent / "images"


def campaign(lab: Lab, experiments: int, seed: int) -> int:
    """Kills hpcrunner at random moments over a stream of experiments; returns the number of kills."""
    chance = random.Random(seed)
    counts = {}
    kills = 0
    for number in range(experiments):
        counts[f"e{number}"] = submit(lab, f"e{number}")
        process = start(lab, "-m", "hpcrunner", "submit-from-queue", "--wait")
        try:
            process.wait(chance.uniform(0.05, 1.2))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    lab.tick("--wait", timeout=600)
    check(lab, counts)
    return kills


def test_random_kills(tmp_path: Path) -> None:
    kills = campaign(Lab(tmp_path), experiments=20, seed=1)
    assert kills >= 5


@pytest.mark.soak
def test_many_random_kills(tmp_path: Path) -> None:
    kills = 0
    for seed in range(10):
        (tmp_path / str(seed)).mkdir()
        kills += campaign(Lab(tmp_path / str(seed)), experiments=40, seed=seed)
    print(f"\nkills={kills} experiments=400 lost=0 run_twice=0")


def test_the_job_survives_the_kill(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.submit("e", "import time; time.sleep(2); open('../retval', 'w').write('late')")
    process = start(lab, "-m", "hpcrunner", "submit-from-queue", "--wait")
    end = time.monotonic() + 60
    while time.monotonic() < end and not any(lab.state.glob("runs/*/status/started")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert lab.run_all()["e"]["outcome"] == "succeeded"
    assert lab.result("e", "retval") == {"./retval": b"late"}
