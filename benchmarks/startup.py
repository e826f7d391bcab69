"""How long the commands take that cron and people run all the time, as multiples of a bare interpreter.

Last line: `startup ratio=R bare_ms=.. help_ms=.. status_ms=.. idle_ms=..`, medians; R = an idle tick on a local
queue over `python -c pass`, both measured in turn in this one run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 15


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "queue" / "local_bench").mkdir(parents=True)
        site = root / "site.yaml"
        site.write_text(json.dumps({"state_dir": str(root / "state"), "engine": "none",
                                    "queues": [{"type": "local", "root": str(root / "queue")}]}))
        hpcrunner = [sys.executable, "-m", "hpcrunner"]
        commands = {
            "bare": [sys.executable, "-c", "pass"],
            "help": [*hpcrunner, "--help"],
            "status": [*hpcrunner, "status", "--site", str(site)],
            "idle": [*hpcrunner, "submit-from-queue", "--site", str(site)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for number in range(ROUNDS + 2):
            for name, command in commands.items():
                took = run(command)
                if number >= 2:  # The first rounds write byte code and warm the disk's cache.
                    times[name].append(took)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:8}{min(values):7.1f} ms min {median[name]:7.1f} ms median {max(values):7.1f} ms max")
    print(f"startup ratio={median['idle'] / median['bare']:.1f} " +
          " ".join(f"{name}_ms={value:.0f}" for name, value in median.items()))


def run(command: list[str]) -> float:
    """Milliseconds that a command takes. Byte code is kept, as in an installation."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=env)
    return (time.perf_counter() - start) * 1000


if __name__ == "__main__":
    main()
