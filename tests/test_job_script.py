"""Parts of the job script by themselves, with time as it may pass."""

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
