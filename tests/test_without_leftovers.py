"""scripts/without-leftovers, by which continuous integration finds processes that outlive the tests."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "without-leftovers"
LEAK = "env -i setsid sleep 1000 >/dev/null 2>&1 & echo $!"
"""Leaves a process with another session and environment, and prints its pid."""


def start(command: str) -> subprocess.Popen[str]:
    guarded = [sys.executable, SCRIPT, "--grace", "0.3", "--", "bash", "-c", command]
    return subprocess.Popen(guarded, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("exit 7", 7), ("kill -KILL $$", 137)])
def test_exit_code_is_the_commands(command: str, code: int) -> None:
    with start(command) as guard:
        said, complaint = guard.communicate(timeout=60)
    assert (guard.returncode, said, complaint) == (code, "", "")


def test_leftover_is_named_and_ended() -> None:
    with start(LEAK) as guard:
        pid, complaint = guard.communicate(timeout=60)
    assert guard.returncode == 1
    assert complaint == f"without-leftovers: left behind: {pid.strip()} sleep 1000\n"
    assert not Path(f"/proc/{pid.strip()}").exists()


def test_what_ends_within_the_grace_is_no_leftover() -> None:
    with start("setsid sleep 0.05 & disown") as guard:
        guard.communicate(timeout=60)
    assert guard.returncode == 0


def test_all_end_when_it_is_terminated() -> None:
    with start(f"{LEAK}; echo $$; sleep 1000") as guard:
        assert guard.stdout
        pids = [guard.stdout.readline().strip() for _ in range(2)]
        guard.send_signal(signal.SIGTERM)
        guard.communicate(timeout=60)
    assert guard.returncode == 128 + signal.SIGTERM
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
