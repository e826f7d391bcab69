"""Lines about what a job uses, in the artifact `_metrics`, as the StudioML client writes them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from lab import Lab

LINE = re.compile(r"time: ([0-9]+\.[0-9]+) CPU: ([0-9]+\.[0-9]) mem: ([0-9]+) (gpu [0-9]+ util: [0-9]+ %, mem [0-9]+)? \n")

BUSY = """
import os, time
held = bytearray(b"x") * (64 << 20)
if os.fork() == 0:  # children count
    os.setsid()  # and may leave the session
    held = held * 2
    end = time.monotonic() + 4
    while time.monotonic() < end: pass
    os._exit(0)
os.wait()
"""


def lines(lab: Lab, key: str) -> list[tuple[float, float, int, str]]:
    result = lab.result(key, "_metrics")
    assert list(result) == ["./_metrics"]
    text = result["./_metrics"].decode()
    found = [match for line in text.splitlines(keepends=True) if (match := LINE.fullmatch(line))]
    assert len(found) == text.count("\n"), text
    return [(float(one[1]), float(one[2]), int(one[3]), one[4] or "") for one in found]


def test_what_a_job_uses_is_written_as_the_client_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path, prologue="sleep() { command sleep \"${1/#10/1}\"; }")  # so that ten seconds are one
    begin = time.time()
    lab.submit("e", BUSY, config={"saveMetricsFrequency": "1s"})
    assert lab.run_all()["e"]["outcome"] == "succeeded"
    found = lines(lab, "e")
    assert len(found) >= 3
    times = [line[0] for line in found]
    assert times == sorted(times) and begin <= times[0] and times[-1] <= time.time()
    assert max(memory for _, _, memory, _ in found) >= 192 << 20
    assert max(cpu for _, cpu, _, _ in found[:-1]) > 5 and 0 < found[-1][1] <= 101
    assert all(not gpu for _, _, _, gpu in found)


def test_one_line_at_the_end_without_a_frequency_and_cards_if_there_are_any(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "nvidia-smi").write_text('#!/bin/bash\n[[ "$2" == GPU-1 ]] && echo "3, 35, 1024"\n')
    (tools / "nvidia-smi").chmod(0o755)
    lab = Lab(tmp_path, prologue=f"PATH={tools}:$PATH")
    lab.submit("e")
    lab.run_all()
    assert len(lines(lab, "e")) == 1
    from hpcrunner.config.load import load
    from hpcrunner.layout import RunDir
    from hpcrunner.render.job import Script, script

    site = load(lab.site, overrides={}).site
    text = script(site, "direct.sh.j2", Script(RunDir(tmp_path, "x"), "tag", "x", ["true"], 9, "walltime", tmp_path, tmp_path / "log",
                                               gpus=1, gpu_ids=("GPU-1",), metrics=tmp_path / "out"))
    begin, end = text.index("measured_ticks=0"), text.index("# Program and timer get")
    import subprocess

    subprocess.run(["/bin/bash", "-c", f"now() {{ date +%s.%N; }}; started=$(now); {text[begin:end]}\nmeasure"], check=True,
                   env={"PATH": f"{tools}:/usr/bin:/bin"})
    match = LINE.fullmatch((tmp_path / "out").read_text())
    assert match and match[4] == "gpu 3 util: 35 %, mem 1073741824"


@pytest.mark.parametrize("how", ["absent", "immutable"])
def test_nothing_is_written_where_nobody_wants_it(tmp_path: Path, how: str) -> None:
    lab = Lab(tmp_path)
    message = lab.message("e")
    if how == "absent":
        del message["experiment"]["artifacts"]["_metrics"]
    else:
        message["experiment"]["artifacts"]["_metrics"]["mutable"] = False
        lab.put_tar({"./_metrics": "old"}, "experiments/e/_metrics.tar")
    lab.enqueue(message)
    assert lab.run_all()["e"]["outcome"] == "succeeded"
    assert lab.result("e", "_metrics") == ({} if how == "absent" else {"./_metrics": b"old"})


def test_measuring_takes_no_time_from_the_program(tmp_path: Path) -> None:
    """nvidia-smi may take ten seconds; what ended in time has ended in time."""
    lab = Lab(tmp_path, prologue="cat() { sleep 4; command cat \"$@\"; }")
    lab.submit("e", "import time; time.sleep(0.5)", max_duration="3s")
    done = lab.run_all()["e"]
    assert done["outcome"] == "succeeded" and done["finished_at"] - done["started_at"] < 3
    assert len(lines(lab, "e")) == 1, "and yet it is measured"


def test_a_pipe_or_a_driver_that_hangs_holds_up_no_end(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.submit("e", "import os; os.mkfifo('../_metrics')", config={"saveMetricsFrequency": "1s"})
    lab.tick("--wait", timeout=60)
    assert lab.status()["e"]["outcome"] == "succeeded"
    hangs = Lab(tmp_path / "hangs", prologue="getconf() { while :; do sleep 1; done; }")
    hangs.submit("e")
    hangs.tick("--wait", timeout=60)
    assert hangs.status()["e"]["outcome"] == "succeeded"
