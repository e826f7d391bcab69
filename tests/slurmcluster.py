"""Real Slurm clusters for the tests: one process of scripts/slurm-cluster holds each, and ends it when the session
ends, however that happens."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"
USER = "hpcrunner-test"
"""Made by scripts/install-slurm."""
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
PASSED_ON = re.compile(r"(PIP|SSL|UV)_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|\w+_(proxy|PROXY)")
"""How this machine reaches package indexes. The user needs nothing else of root's environment."""
TAKEN = 75
"""Exit code of `slurm-cluster hold`: another session holds that number."""


class CannotStart(Exception):
    """The text says why."""


@dataclass(frozen=True)
class Slurm:
    """A cluster on this host; scripts/slurm-cluster says which nodes, partitions and QOS it has."""

    number: int
    accounting: bool
    folder: Path
    """All of its files. The user may enter it, and owns what lies in `labs`."""
    env: Mapping[str, str]
    """What its clients and daemons need, such as SLURM_CONF."""

    user = USER
    """Submits the jobs. Can't read below /root, where the checkout may lie."""

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.user).pw_uid

    @property
    def gid(self) -> int:
        return pwd.getpwnam(self.user).pw_gid

    @property
    def python(self) -> Path:
        """The user's. Has hpcrunner as this checkout had it when the cluster was started."""
        return self.folder / "venv" / "bin" / "python"

    def environment(self, **more: str) -> dict[str, str]:
        """The user's."""
        kept = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}
        home = pwd.getpwnam(self.user).pw_dir
        return {**kept, "PATH": PATH, "HOME": home, "USER": self.user, "LOGNAME": self.user, "LANG": "C.UTF-8",
                **self.env, **more}

    def as_user(self, *argv: str | Path) -> list[str]:
        """The command that runs `argv` as the user, in one process."""
        return ["setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", *map(str, argv)]

    def run(self, *argv: str | Path, check: bool = True, timeout: float = 60, cwd: Path | None = None,
            env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command as the user, in the home folder unless `cwd` says otherwise."""
        environment = self.environment(**(env or {}))
        return run(self.as_user(*argv), environment, cwd or Path(environment["HOME"]), check, timeout)

    def root(self, *argv: str | Path, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command as root."""
        return run([*map(str, argv)], {**os.environ, "PATH": PATH, **self.env}, Path("/"), check, timeout)

    def share(self, path: Path) -> Path:
        """A copy of a file, such as a base image, that the user can read."""
        copy = self.folder / "shared" / path.name
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
            copy.chmod(0o755 if os.access(path, os.X_OK) else 0o644)
        return copy

    def crash(self, node: str, *, noticed: bool = True) -> None:
        """Kills the node's slurmd and all that runs there. Slurm is told of it at once, or notices after some 25 s."""
        self._script("crash", node)
        if noticed:
            self.root("scontrol", "update", f"nodename={node}", "state=down", "reason=crashed")

    def restore(self, node: str) -> None:
        """Brings a crashed node back."""
        self._script("node", node)

    def pid(self, daemon: str) -> int:
        return int((self.folder / "run" / f"{daemon}.pid").read_text())

    def stop(self, daemon: str) -> None:
        """Ends slurmctld or slurmdbd. Jobs go on."""
        pid = self.pid(daemon)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: ended(pid), f"{daemon} ends")

    def start(self, daemon: str) -> None:
        """Starts slurmctld or slurmdbd again, and waits until it answers."""
        self.root(daemon)
        if daemon == "slurmctld":
            self.answers()
        else:
            wait_until(lambda: self.root("sacctmgr", "-n", "show", "cluster", check=False).returncode == 0,
                       "slurmdbd answers")

    def answers(self) -> None:
        """Waits until slurmctld does."""
        wait_until(lambda: " UP" in self.root("scontrol", "ping", check=False).stdout, "slurmctld answers")

    def pause(self, daemon: str) -> None:
        """Lets slurmctld or slurmdbd hang: clients connect and get no answer."""
        os.kill(self.pid(daemon), signal.SIGSTOP)

    def resume(self, daemon: str) -> None:
        os.kill(self.pid(daemon), signal.SIGCONT)

    def _script(self, *arguments: str) -> None:
        run([str(SCRIPTS / "slurm-cluster"), "-n", str(self.number), *arguments],
            {**os.environ, "HPCRUNNER_SLURM_DIR": str(self.folder.parent)}, Path("/"), True, 60)


def run(argv: list[str], env: Mapping[str, str], cwd: Path, check: bool,
        timeout: float) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout)
    if check:
        assert done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done


def wait_until(true: Callable[[], object], what: str, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def ended(pid: int) -> bool:
    """Also true for a zombie, which has no program any more."""
    try:
        (Path("/proc") / str(pid) / "exe").readlink()
    except OSError:
        return True
    return False


_holders: list[subprocess.Popen[str]] = []


def start(folder: Path, *, accounting: bool, settings: Mapping[str, str]) -> Slurm:
    """Starts a fresh cluster below `folder`. Raises CannotStart.

    Several sessions may run at once: each takes the first number that is free.
    """
    if os.geteuid() != 0:
        raise CannotStart("only root can run a cluster, whose jobs run as other users")
    if not shutil.which("slurmctld", path=PATH):
        raise CannotStart("Slurm is not installed")
    env = {**os.environ, **settings, "HPCRUNNER_SLURM_DIR": str(folder), "PYTHON": sys.executable}
    plain = () if accounting else ("--no-accounting",)
    # 0 is left to who calls the script by hand.
    for number in range(1, 10):
        with tempfile.TemporaryFile("w+") as complaints:
            # In a session of its own: Ctrl-C is for pytest, which ends the cluster when it is done.
            holder = subprocess.Popen(
                [SCRIPTS / "slurm-cluster", "-n", str(number), *plain, "hold"], env=env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True)
            _holders.append(holder)
            assert holder.stdout is not None
            if holder.stdout.readline():
                break
            if holder.wait(60) != TAKEN:
                complaints.seek(0)
                raise CannotStart(complaints.read().strip())
    else:
        raise CannotStart("other sessions hold all numbers")

    home = folder / str(number)
    variables = dict(re.findall(r"(?m)^export (\w+)='(.*)'$", (home / "env.sh").read_text()))
    made = subprocess.run([SCRIPTS / "slurm-user-venv", home / "venv"], env=env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=600)
    if made.returncode != 0:
        raise CannotStart(made.stderr.strip())
    return Slurm(number, accounting, home, variables)


def stop_all() -> None:
    """Ends the clusters that this session started."""
    for holder in _holders:
        if holder.stdin is not None:
            holder.stdin.close()
    for holder in _holders:
        holder.wait(120)
        if holder.stdout is not None:
            holder.stdout.close()
    _holders.clear()
