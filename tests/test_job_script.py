"""The job script by itself: time as it may pass, and its claim on a run directory on a disk that may be full."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hpcrunner.layout import RunDir
from hpcrunner.render import job
from test_golden import a_site

WORLD = """
printf '9.50 0\\n' >uptime
status() {{ cat status/suspended 2>/dev/null || echo none; }}
place() {{ mkdir -p status; printf '%s\\n' "$2" >"status/$1"; }}
date() {{ read -r up _ <uptime; echo "${{up%.*}}"; }}
sleeps=0
sleep() {{
    sleeps=$((sleeps + 1))
    read -r up _ <uptime
    up=$((10#${{up/./}} + 10#${{1/./}} + 1))
    case $sleeps in {happens} esac
    printf '%d.%02d 0\\n' $((up / 100)) $((up % 100)) >uptime
}}
"""


def run_for(seconds: int, folder: Path, happens: str = "", expires: float | None = None) -> list[str]:
    """The code that `run_for` returns, the uptime when it did, how often it slept, and for how long it was suspended."""
    parts = job.Script(RunDir(folder, "e"), "hr1", "e", ["true"], 60.0, "walltime", folder, folder / "log", expires=expires)
    text = job.script(a_site(folder), "direct.sh.j2", parts)
    [function] = re.findall(r"^run_for\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    script = WORLD.format(happens=happens) + function.replace("/proc/uptime", "uptime")
    script += f"\nrun_for {seconds}; code=$?; read -r up _ <uptime; echo $code $up $sleeps $(status)"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(("seconds", "happens", "wanted"), [
    (1, "", "0 10.51 1 none"),
    (7, "", "0 16.51 2 none"),  # What each step takes beside its sleep adds up to nothing.
    (3600, "", "0 3609.51 719 none"),
    (60, "3) up=$((up + 400));;", "0 69.51 12 none"),  # a busy node
    # Suspended for 100 s in the third step, of which half counts: the job has run for 60 s, give or take 2.5.
    (60, "3) up=$((up + 10000));;", "0 172.02 13 102"),
    (60, "2 | 4) up=$((up + 3000));;", "0 134.53 13 65"),
    (1, "1) up=$((up + 1000));;", "0 21.02 2 10"),
    (60, "3) return 143;;", "143 19.52 3 none"),  # killed
])
def test_time_that_a_job_runs(seconds: int, happens: str, wanted: str, tmp_path: Path) -> None:
    assert run_for(seconds, tmp_path, happens) == wanted.split()


def test_the_lifetime_goes_on_while_a_job_is_suspended(tmp_path: Path) -> None:
    assert run_for(60, tmp_path, "3) up=$((up + 10000));;", 100) == ["0", "124.53", "3", "102"]
    assert run_for(60, tmp_path, "", 20)[1] == "69.51"  # Otherwise the limit is within it from the beginning.


# -- the claim --


class Folder:
    """A run directory, and the script of Slurm's jobs for it, whose program leaves a line in a file elsewhere."""

    def __init__(self, root: Path) -> None:
        self.dir, self.bin, self.ran = RunDir(root / "run", "e"), root / "bin", root / "ran"
        for folder in (self.dir.status, self.dir.workspace, self.dir.log(False).parent, self.bin, root / "spool"):
            folder.mkdir(parents=True)
        self.dir.env_file.write_text(job.env_file({}, ""))
        program = ["/bin/sh", "-c", "ulimit -f unlimited; echo >>$0", str(self.ran)]
        values = {"header": [], "modules": [], "warn": 0, "walltime": 600}
        parts = job.Script(self.dir, "hr1", "e", program, 60.0, "walltime", root / "spool", self.dir.log(False),
                           scheduler=values)
        self.script = root / "job.sh"
        self.script.write_text(job.script(a_site(root), "sbatch.sh.j2", parts))

    def start(self, job_id: str, *, is_full: bool = False) -> int:
        # Beyond that size, which is none, writing fails as it does on a full disk.
        full = "trap '' XFSZ; ulimit -S -f 0; " if is_full else ""
        done = subprocess.run(["bash", "-c", f'{full}exec bash "$0"', self.script], capture_output=True, text=True,
                              env={"PATH": f"{self.bin}:/usr/bin:/bin", "SLURM_JOB_ID": job_id, "SLURM_JOB_NAME": "hr1",
                                   "SLURMD_NODENAME": "n1"})
        return done.returncode

    @property
    def owner(self) -> str:
        return (self.dir.status / "owner").read_text()

    def times(self) -> int:
        return len(self.ran.read_text()) if self.ran.exists() else 0

    def duplicates(self) -> list[str]:
        return [path.name for path in self.dir.status.glob("duplicate.*")]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_claim_that_cant_be_written_is_none(has_links: bool, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    if not has_links:
        (folder.bin / "ln").symlink_to("/bin/false")
    assert folder.start("7", is_full=True) == 73
    assert (folder.times(), folder.duplicates()) == (0, [])
    # The same job again, or another one: the folder is still to be had.
    assert folder.start("8") == 0
    assert (folder.times(), folder.owner) == (1, "hr1 n1 8 hr1\n")
    assert folder.start("7") == 0
    assert (folder.times(), folder.duplicates()) == (1, ["duplicate.7"])


def test_a_job_that_is_requeued_keeps_its_claim_on_a_full_disk(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    assert folder.start("7") == 0
    status = folder.dir.status
    (status / "exit").unlink()
    # As if the node had gone down in the midst of its claim.
    (status / ".owner.7").hardlink_to(status / "owner")
    assert folder.start("7", is_full=True) == 0
    assert (folder.times(), folder.owner, folder.duplicates()) == (2, "hr1 n1 7 hr1\n", [])
    (status / "exit").unlink(missing_ok=True)
    assert folder.start("7") == 0
    assert (folder.times(), folder.owner) == (3, "hr1 n1 7 hr1\n")
