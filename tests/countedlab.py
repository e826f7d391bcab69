"""Experiments on a Slurm cluster that count their own runs, and Slurm commands that misbehave."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurmcluster import PATH, Slurm, wait_until
from slurmlab import SlurmLab

SCRIPT = """
import os, sys, time
with open(os.environ["COUNT"], "a") as file: file.write("ran\\n")
while "GATE" in os.environ and not os.path.exists(os.environ["GATE"]): time.sleep(0.05)
time.sleep(float(sys.argv[2]))
open("../retval", "w").write("result of " + sys.argv[1])
"""

_folders = itertools.count(1)


class Commands:
    """A folder for `slurm.bin_dir`: Slurm's own commands, until one is replaced by a script."""

    def __init__(self, slurm: Slurm) -> None:
        self.folder = slurm.folder / "commands" / str(next(_folders))
        self.folder.mkdir(parents=True)
        os.chown(self.folder, slurm.uid, slurm.gid)
        for name in ("sbatch", "squeue", "sacct", "scancel"):
            self.restore(name)

    def replace(self, name: str, script: str) -> None:
        """`script` (bash) stands in for the command, which it may call as "$real". Its calls are counted from now on."""
        (self.folder / f"{name}.calls").unlink(missing_ok=True)
        part = self.folder / f".{name}"
        part.write_text(f"#!/bin/bash\nreal={self._real(name)}\nfolder={self.folder}\n"
                        f'echo "$*" >>"$folder/{name}.calls"\n{script}\n')
        part.chmod(0o755)
        part.replace(self.folder / name)

    def restore(self, name: str) -> None:
        part = self.folder / f".{name}"
        part.symlink_to(self._real(name))
        part.replace(self.folder / name)

    def calls(self, name: str) -> int:
        """How often a replaced command was called."""
        path = self.folder / f"{name}.calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @staticmethod
    def _real(name: str) -> str:
        found = shutil.which(name, path=PATH)
        assert found
        return found


@dataclass
class Tally:
    """What was observed of a lab's experiments."""

    experiments: int = 0
    lost: int = 0
    """Not known to hpcrunner, not ended well, or without their results."""
    run_twice: int = 0

    def add(self, other: Tally) -> None:
        self.experiments += other.experiments
        self.lost += other.lost
        self.run_twice += other.run_twice


class CountedLab(SlurmLab):
    """A submission without an answer settles after 5 s here. The environment of the experiments is made once for
    all labs of a cluster: it is not what is tested."""

    def __init__(self, slurm: Slurm, options: Mapping[str, Any] = {}, **site: Any) -> None:
        images = slurm.folder / "labs" / "images"
        if not images.exists():
            images.mkdir(parents=True)
            os.chown(images, slurm.uid, slurm.gid)
        super().__init__(slurm, {"submit_timeout": "4s", "settle": "1s", **options}, **{"image_dir": str(images), **site})
        self.keys: list[str] = []
        self.log_file = self.root / "log"

    def add(self, *keys: str, seconds: float = 0.3, gate: bool = False, **experiment: Any) -> None:
        """Submits experiments. Behind the gate they run until `open_gate`."""
        for key in keys:
            self.keys.append(key)
            env = {"COUNT": str(self._count(key)), **({"GATE": str(self.root / "gate")} if gate else {})}
            self.submit(key, SCRIPT, args=[key, str(seconds)], config={"env": env}, **experiment)

    def change(self, **site: Any) -> None:
        """Other options of the site, from now on."""
        with self.as_user():
            self.site.write_text(json.dumps({**json.loads(self.site.read_text()), **site}))

    def open_gate(self) -> None:
        (self.root / "gate").touch()

    def times_run(self, key: str) -> int:
        path = self._count(key)
        return len(path.read_text().splitlines()) if path.exists() else 0

    def work(self, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        """hpcrunner with its log in a file, not waited for; `prefix` is a command that runs it."""
        command = self.python(*(arguments or ("-m", "hpcrunner", "submit-from-queue", "--wait")))
        with self.log_file.open("ab") as log:
            return subprocess.Popen([*prefix, *command.pop("args")], **command, stdin=subprocess.DEVNULL,
                                    stdout=subprocess.DEVNULL, stderr=log)

    def tick_until(self, *states: str) -> None:
        """Ticks, as cron does, until all experiments are in one of these states."""
        wait_until(lambda: self.tick() and all(run["state"] in states for run in self.status().values()),
                   f"all are {' or '.join(states)}", 120)

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def run(self, key: str) -> dict[str, Any]:
        """The journal's row of an experiment; `history` holds the texts of its events."""
        run = json.loads(self.hpcrunner("status", key, "--json").stdout)[-1]
        return {**run, "history": "\n".join(event["text"] for event in run["history"])}

    def reaches(self, key: str, *states: str) -> None:
        wait_until(lambda: self.status().get(key, {}).get("state") in states, f"{key} is {' or '.join(states)}", 120)

    def jobs(self) -> dict[str, str]:
        """Name and state of the user's live jobs, by id."""
        rows = self.slurm.run("squeue", "-h", "-r", "-o", "%i %j %T").stdout.splitlines()
        return {row.split()[0]: row.split(maxsplit=1)[1] for row in rows}

    def tally(self) -> Tally:
        runs = self.status()
        lost = [key for key in self.keys if key not in runs or runs[key]["outcome"] != "succeeded"
                or self.record(key)["status"] != "finished" or self.times_run(key) < 1
                or self.result(key, "retval") != {"./retval": f"result of {key}".encode()}]
        return Tally(len(self.keys), len(lost), sum(self.times_run(key) > 1 for key in self.keys))

    def check(self, times: Mapping[str, int] = {}) -> None:
        """All is over: each ran once (or as often as `times` says), its results came back once, and nothing is left."""
        runs = self.status()
        assert sorted(runs) == sorted(self.keys), self.log()
        for key, run in runs.items():
            assert run["outcome"] == "succeeded", run
            assert self.times_run(key) == times.get(key, 1), (key, self.times_run(key), self.run(key)["history"])
            assert self.result(key, "retval") == {"./retval": f"result of {key}".encode()}
            assert self.output(key).count("[hpcrunner] succeeded") == 1
            assert self.record(key)["status"] == "finished"
        if any((self.state / "spool").glob("*")):
            self.tick()  # A job that was known to be over told it, too, after the last look.
        for folder in ("runs", "spool", "arrays"):
            if (self.state / folder).exists():
                assert not any((self.state / folder).iterdir()), folder
        assert not any(self.queue.iterdir())
        assert not any((self.root / "queue").glob(".hpcrunner-*/*/*")), "a message was not acknowledged"
        assert not [path for path in self.store.rglob("*.part")]

    def _count(self, key: str) -> Path:
        return self.root / f"count-{key}"
