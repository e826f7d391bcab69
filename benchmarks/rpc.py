"""What watching costs Slurm and the login node, on a real cluster with 1, 100 and 5,000 live jobs.

Last line: `rpc squeue_per_tick=Q tick_cpu_s=C per_hour_1=A per_hour_100=B per_hour_5000=D`: Q calls of squeue in one
tick and C seconds of CPU of that tick (process and children, start included), both with 5,000 jobs; A, B, D requests
that slurmctld counted (sdiag) in an hour of ticks, one a minute as cron does. The hour's clock is moved by hand,
everything else is real: the first minutes see a change, then all jobs wait. Needs root, as the cluster does.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import services
from slurmlab import SlurmLab

SIZES = (1, 100, 5000)
TICKS = 5

FILL = """
import json, subprocess, sys, time
from pathlib import Path
from hpcrunner.config.load import load
from hpcrunner.engine.install import Install
from hpcrunner.engine.submit import tag_of
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir
from hpcrunner.model import State

site, count, message = load(Path(sys.argv[1])).site, int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
with Journal(StateDir(site.state_dir).journal) as journal:
    runs = []
    with journal.together():
        for number in range(count):
            message["experiment"]["key"] = f"e{number}"
            runs.append(journal.receive("local_test", json.dumps(message).encode(), key=f"e{number}"))
    name = tag_of(journal.install_id, runs[0])
    job = subprocess.run(["sbatch", "--parsable", f"--job-name={name}", f"--array=0-{count - 1}", "--mem=10M",
                          "--wrap=true"], check=True, capture_output=True, text=True).stdout.strip()
    with journal.together():
        for number, run in enumerate(runs):
            for state, changes in ((State.STAGED, {"run_dir": str(site.working_dir / run.key)}), (State.READY, {}),
                                   (State.SUBMITTING, {"tag": tag_of(journal.install_id, run), "job_name": name,
                                                       "task": number, "submitted_at": time.time()}),
                                   (State.SUBMITTED, {"job_id": f"{job}_{number}"})):
                run = journal.move(run, state, "", **changes)
"""

HOUR = """
import sys, time
from pathlib import Path
from hpcrunner.config.load import load
from hpcrunner.engine import tick as ticks
from hpcrunner.engine.install import Install
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir

site, real, shift = load(Path(sys.argv[1])).site, time.time, 0.0
time.time = lambda: real() + shift
with Journal(StateDir(site.state_dir).journal) as journal:
    for minute in range(60):
        install = Install(site, journal)  # As a new process would: what it remembers is in files.
        ticks.tick(install)
        shift += 60
"""

COUNTER = """#!/bin/sh
echo >>{log}
exec {squeue} "$@"
"""


def main() -> None:
    slurm = services.SERVICES["slurm"]()
    # They wait all the time: a job that runs costs no more, its end is learnt from a file.
    slurm.root("scontrol", "update", "partition=cpu", "state=down")
    per_hour = {}
    for count in SIZES:
        lab = filled(slurm, count)
        before = requests(slurm)
        slurm.run(slurm.python, "-c", HOUR, lab.site, timeout=1800)
        per_hour[count] = requests(slurm) - before
        print(f"{count:6} jobs: {per_hour[count]} requests in an hour", flush=True)
        if count == max(SIZES):
            squeue, cpu = one_tick(lab)
        slurm.root("scancel", f"--user={slurm.user}")
        while slurm.root("squeue", "--noheader").stdout.strip():
            time.sleep(0.2)
    print(f"rpc squeue_per_tick={squeue:.1f} tick_cpu_s={cpu:.2f} "
          + " ".join(f"per_hour_{count}={number}" for count, number in per_hour.items()))


def filled(slurm: object, count: int) -> SlurmLab:
    """A lab whose journal has so many live jobs, all of them real ones of one array."""
    options = {"poll_min": "30s", "poll_max": "3m"}
    lab = SlurmLab(slurm, options)
    lab.submit("e0")
    message = next(lab.queue.iterdir())
    slurm.run(slurm.python, "-c", FILL, lab.site, str(count), message, timeout=600)
    with lab.as_user():
        message.unlink()
    return lab


def requests(slurm: object) -> int:
    """Requests of the lab's user that slurmctld has counted."""
    text = slurm.root("sdiag").stdout.partition("by user")[2]
    match = re.search(rf"^\s*{re.escape(slurm.user)}\s*\(\s*{slurm.uid}\) count:(\d+)", text, re.MULTILINE)
    return int(match[1]) if match else 0


def one_tick(lab: SlurmLab) -> tuple[float, float]:
    """Calls of squeue in a tick that is due, and its CPU seconds: medians."""
    slurm = lab.slurm
    folder, log = lab.root / "bin", lab.root / "calls"
    real = slurm.run("which", "squeue").stdout.strip()
    with lab.as_user():
        folder.mkdir()
        (folder / "squeue").write_text(COUNTER.format(log=log, squeue=real))
        (folder / "squeue").chmod(0o755)
    calls, cpu = [], []
    for _ in range(TICKS):
        with lab.as_user():
            (lab.state / "slurm.json").unlink(missing_ok=True)  # It is due.
            log.write_text("")
        done = slurm.run(slurm.python, "-c", MEASURE, lab.site, env={
            "HPCRUNNER_SITE": str(lab.site), "PATH": f"{folder}:{slurm.environment()['PATH']}"}, timeout=300)
        cpu.append(float(done.stdout.split()[-1]))
        calls.append(len(log.read_text().splitlines()))
    print(f"CPU of a tick: {min(cpu):.2f} s min, {statistics.median(cpu):.2f} s median, {max(cpu):.2f} s max")
    return statistics.median(calls), statistics.median(cpu)


MEASURE = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "hpcrunner", "submit-from-queue"], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""

if __name__ == "__main__":
    main()
