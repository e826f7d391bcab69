"""How fast experiments reach Slurm, beside a bare loop of sbatch over the same scripts, in turn, on a real cluster.

Last line: `submit single=S array=A e2e_per_s=E`: S and A are the rates from 200 staged experiments to 200 accepted and
journalled jobs, one by one and as job arrays, as multiples of the loop's rate; E is experiments a second from messages
on the queue to journalled jobs, as arrays. Medians of the rounds. Needs root, as the cluster does.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import services
from slurmlab import SlurmLab

COUNT, ROUNDS = 200, 5

STAGED = """
import json, sys, time
from pathlib import Path
from hpcrunner.config.load import load
from hpcrunner.engine import act, submit
from hpcrunner.engine.actions import Submit
from hpcrunner.engine.install import Install
from hpcrunner.engine.intake import intake
from hpcrunner.engine.observe import observe
from hpcrunner.engine.plan import plan
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir
from hpcrunner.model import State

site = load(Path(sys.argv[1])).site
with Journal(StateDir(site.state_dir).journal) as journal:
    install = Install(site, journal)
    intake(install, None)
    while True:
        runs = journal.runs()
        actions = plan(runs, observe(install, runs, act.policy(install)), act.policy(install), time.time())
        if all(isinstance(action, Submit) for action in actions) and len(actions) == len(runs):
            break
        act._do(install, [action for action in actions if not isinstance(action, Submit)])
        time.sleep(0.05)
    start = time.perf_counter()
    act._do(install, actions)
    took = time.perf_counter() - start
    runs = journal.runs()
    assert len(runs) == int(sys.argv[2]) and {run.state for run in runs} == {State.SUBMITTED}
    assert all(run.job_id for run in runs)
    print(json.dumps({"took": took, "scripts": [str(install.run_dir(run).script) for run in runs]}))
"""

LOOP = """
import json, subprocess, sys, time
scripts = json.load(open(sys.argv[1]))
start = time.perf_counter()
for script in scripts:
    subprocess.run(["sbatch", "--parsable", script], check=True, stdout=subprocess.DEVNULL)
print(time.perf_counter() - start)
"""


def main() -> None:
    slurm = services.SERVICES["slurm"]()
    # Accepted, and never started: what is measured is the submission.
    slurm.root("scontrol", "update", "partition=cpu", "state=down")
    rates: dict[str, list[float]] = {name: [] for name in ("loop", "single", "array", "e2e")}
    for _ in range(ROUNDS):
        single, scripts = staged(slurm, {"max_array": 1})
        rates["single"].append(COUNT / single)
        rates["loop"].append(COUNT / loop(slurm, scripts))
        rates["array"].append(COUNT / staged(slurm, {})[0])
        rates["e2e"].append(COUNT / end_to_end(slurm))
    for name, values in rates.items():
        print(f"{name:7}{min(values):8.1f} /s min {statistics.median(values):8.1f} median {max(values):8.1f} max")
    ratio = {name: statistics.median(mine / bare for mine, bare in zip(rates[name], rates["loop"], strict=True))
             for name in ("single", "array")}
    print(f"submit single={ratio['single']:.2f} array={ratio['array']:.1f} "
          f"e2e_per_s={statistics.median(rates['e2e']):.0f}")


def laboratory(slurm: object, options: dict[str, object]) -> SlurmLab:
    lab = SlurmLab(slurm, options)
    for number in range(COUNT):
        lab.submit(f"e{number}")
    return lab


def staged(slurm: object, options: dict[str, object]) -> tuple[float, list[str]]:
    """Seconds from staged to journalled, and the job scripts."""
    lab = laboratory(slurm, options)
    done = lab.slurm.run(lab.slurm.python, "-c", STAGED, lab.site, str(COUNT), timeout=600)
    result = json.loads(done.stdout.splitlines()[-1])
    clear(slurm)
    return result["took"], result["scripts"]


def loop(slurm: object, scripts: list[str]) -> float:
    """Seconds that a bare sequential loop of sbatch takes over these scripts."""
    listed = Path(slurm.folder, "shared", "scripts.json")
    listed.parent.mkdir(exist_ok=True)
    listed.write_text(json.dumps(scripts))
    took = float(slurm.run(slurm.python, "-c", LOOP, listed, timeout=600).stdout)
    clear(slurm)
    return took


def end_to_end(slurm: object) -> float:
    """Seconds of one tick from messages on the queue to journalled jobs; the image exists already."""
    lab = laboratory(slurm, {})
    lab.submit("first")
    while lab.status().get("e0", {}).get("state") not in ("ready", "submitted"):
        lab.tick("--max", "1")
    start = time.perf_counter()
    while True:
        lab.tick()
        states = [run["state"] for run in lab.status().values()]
        if states.count("submitted") >= COUNT:
            break
    took = time.perf_counter() - start
    clear(slurm)
    return took


def clear(slurm: object) -> None:
    slurm.root("scancel", f"--user={slurm.user}")
    while slurm.root("squeue", "--noheader").stdout.strip():
        time.sleep(0.1)


if __name__ == "__main__":
    main()
