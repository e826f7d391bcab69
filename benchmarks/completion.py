"""How soon the results of a job can be read in an S3 store: from its last instruction to its `retval`, with
`submit-from-queue --wait` running, and the site's own settings as they come.

The job writes the time into its `retval` as the last thing it does; this process asks the store for that object every
5 ms, and takes the time when it has read it. So up to 5 ms and one request of each figure are the measurement's own.
Jobs come one after the other, beside one that runs all the time and keeps hpcrunner waiting; no checkpoints. Also told
is when the client's record says `finished`, before which a StudioML client does not look for results.

Last line: `completion direct_p50_s=D slurm_p50_s=S p95_s=P`: medians for jobs on this host and on a real Slurm, and the
worse of both 95th percentiles. Needs root, as the cluster does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import services
import slurmcluster
import storeservers
from lab import Lab
from s3lab import InS3
from slurmlab import SlurmLab

POLL = 0.005
PATIENCE = 300.0
DEFAULTS = dict.fromkeys(("poll_interval", "kill_grace", "queue_gone_grace"))
SLURM_DEFAULTS = dict.fromkeys(("poll_min", "poll_max", "exit_grace", "lost_after", "settle", "submit_timeout"))
"""Not what labs for tests set."""

SCRIPT = "import time; open('../retval', 'w').write(repr(time.time()))"
KEEPER = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.1)"


class DirectLab(InS3, Lab):
    pass


class ClusterLab(InS3, SlurmLab):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=30, help="of each kind")
    jobs = parser.parse_args().jobs
    server = services.SERVICES["seaweedfs"]()
    try:
        with tempfile.TemporaryDirectory() as folder:
            direct = latencies(DirectLab(Path(folder), **DEFAULTS), server, "direct", jobs)
        slurm = latencies(ClusterLab(services.SERVICES["slurm"](), SLURM_DEFAULTS, **DEFAULTS), server, "slurm", jobs)
    finally:
        slurmcluster.stop_all()
        storeservers.stop_all()
    for name, both in (("direct", direct), ("slurm", slurm)):
        for what, values in zip(("result", "record"), both, strict=True):
            print(f"{name:7}{what:7}{min(values):7.3f} s min {statistics.median(values):7.3f} median "
                  f"{p95(values):7.3f} p95 {max(values):7.3f} max of {len(values)}")
    direct, slurm = direct[0], slurm[0]
    print(f"completion direct_p50_s={statistics.median(direct):.3f} slurm_p50_s={statistics.median(slurm):.3f} "
          f"p95_s={max(p95(direct), p95(slurm)):.3f}")


def latencies(lab: Any, server: storeservers.Server, name: str, jobs: int) -> tuple[list[float], list[float]]:
    """Seconds until each `retval`, and each finished record, can be read."""
    lab.place(server, f"completion-{name}")
    gate = lab.root / "gate"
    # Its image is built by then, too.
    lab.submit("keeper", KEEPER, args=[str(gate)])
    process = lab.start("submit-from-queue", "--wait")
    try:
        first(lambda: lab.record("keeper")["status"] == "running")
        results, records = [], []
        for number in range(jobs):
            lab.submit(f"e{number}", SCRIPT)
            key = f"e{number}"
            members, at = first(lambda key=key: lab.result(key, "retval"))
            begun = float(next(iter(members.values())))
            results.append(at - begun)
            records.append(first(lambda key=key: lab.record(key)["status"] == "finished")[1] - begun)
        gate.touch()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
    assert {run["outcome"] for run in lab.status().values()} == {"succeeded"}
    return results, records


def first(look: Callable[[], Any]) -> tuple[Any, float]:
    """What is there when there is something, and the time."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(POLL)
    return found, time.time()


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    main()
