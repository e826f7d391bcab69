"""The command as a person meets it: help, mistakes, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from disks import remount, small_disk
from hpcrunner.engine.cancel import request
from lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def hpcrunner(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hpcrunner", *arguments], capture_output=True, text=True,
                          env={**os.environ, **env})


@pytest.mark.parametrize("command", [[], ["submit-from-queue"], ["status"], ["logs"], ["render"], ["site"], ["site", "check"],
                                     ["recipe", "import"], ["completion"]])
def test_every_help_has_an_example(command: list[str]) -> None:
    done = hpcrunner(*command, "--help")
    assert done.returncode == 0
    assert "example" in done.stdout or command in ([], ["site"])
    if not command:
        assert "exit codes:" in done.stdout


@pytest.mark.parametrize(("arguments", "code", "words"), [
    ([], 64, ["COMMAND", "--help"]),
    (["submit"], 64, ["submit-from-queue"]),
    (["submit-from-queue"], 64, ["no site config", "--site", "HPCRUNNER_SITE"]),
    (["submit-from-queue", "--site", "/nowhere.yaml"], 78, ["/nowhere.yaml"]),
    (["submit-from-queue", "--max", "0", "--site", "laptop"], 64, ["1 or more"]),
    (["submit-from-queue", "--max", "many", "--site", "laptop"], 64, ["--max"]),
    (["render", "/nowhere.json", "--out", "/tmp/x", "--site", "laptop"], 66, ["/nowhere.json"]),
    (["recipe", "import", "/nowhere"], 66, ["/nowhere"]),
    (["recipe", "labels", "/nowhere.sif"], 66, ["/nowhere.sif"]),
    (["completion", "fish"], 64, ["bash", "zsh"]),
])
def test_mistakes_are_named_with_the_remedy(arguments: list[str], code: int, words: list[str]) -> None:
    done = hpcrunner(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_bad_values_everywhere_are_reported_at_once(lab: Lab) -> None:
    lab.site.write_text(lab.site.read_text()[:-1] + ', "max_cores": "many", "keeep": "all"}')
    done = lab.hpcrunner("submit-from-queue", "--max-mem", "lots", check=False, env={"HPCRUNNER_RETRIES": "-1"})
    assert done.returncode == 78
    for word in ("max_cores", "keeep", "did you mean", "keep", "--max-mem", "HPCRUNNER_RETRIES", str(lab.site)):
        assert word in done.stderr
    assert not lab.state.exists(), "nothing is made with a bad configuration"


def test_command_line_beats_environment_beats_file(lab: Lab) -> None:
    lab.site.write_text(lab.site.read_text()[:-1] + ', "max_duration": "3h"}')
    message = lab.root / "message.json"
    message.write_text(json.dumps(lab.message("k")))

    def limit(*arguments: str, **env: str) -> str:
        lab.hpcrunner("render", str(message), "--out", str(lab.root / "out"), *arguments, env=env)
        script = (lab.root / "out" / "job.sh").read_text()
        found = re.search(r"^limit=([0-9]+)$", script, re.MULTILINE)
        return found[1] if found else ""

    assert limit() == "10800"
    assert limit(HPCRUNNER_MAX_DURATION="4h") == "14400"
    assert limit("--max-duration", "5h", HPCRUNNER_MAX_DURATION="4h") == "18000"


def test_status_and_logs(lab: Lab) -> None:
    assert lab.hpcrunner("status").stdout == "no experiments yet\n"
    assert lab.hpcrunner("status", "--json").stdout == "[]\n"
    lab.submit("one", "print('printed')")
    lab.submit("two", "raise SystemExit(2)")
    lab.enqueue(b"{}")
    for path in lab.queue.iterdir():
        os.utime(path, (1, 1))
    lab.run_all()
    table = lab.hpcrunner("status").stdout
    assert "one" in table and "succeeded" in table and "failed" in table and "exit code 2" in table
    assert "1 message could not be understood" in table
    shown = lab.hpcrunner("status", "two").stdout
    assert "exit code: 2" in shown and "history:" in shown and "submitted as job" in shown
    assert lab.hpcrunner("logs", "one").stdout.startswith("printed\n")
    assert lab.hpcrunner("logs", "-f", "one").stdout.startswith("printed\n")
    for command in (["status", "three"], ["logs", "three"]):
        done = lab.hpcrunner(*command, check=False)
        assert done.returncode == 66 and "three: no such experiment" in done.stderr


def test_logs_follow_a_running_experiment(lab: Lab) -> None:
    lab.submit("slow", "import time\nfor n in range(5): print('line', n, flush=True); time.sleep(0.3)")
    with subprocess.Popen([sys.executable, "-m", "hpcrunner", "submit-from-queue", "--wait"],
                          env={**os.environ, "HPCRUNNER_SITE": str(lab.site)}, stderr=subprocess.DEVNULL) as worker:
        while not any(lab.state.glob("runs/*/status/started")):
            assert worker.poll() is None
        followed = lab.hpcrunner("logs", "-f", "slow").stdout
        assert worker.wait(60) == 0
    assert [line for line in followed.splitlines() if line.startswith("line")] == [f"line {n}" for n in range(5)]
    assert followed.endswith("[hpcrunner] succeeded: " + lab.status()["slow"]["reason"] + "\n")


def test_control_characters_of_a_message_do_not_reach_the_terminal(lab: Lab) -> None:
    lab.submit("k", pythonenv=["\x1b[31mred"])
    lab.run_all()
    assert "\x1b" not in lab.hpcrunner("status").stdout + lab.hpcrunner("status", "k").stdout


def test_a_second_tick_at_the_same_time_leaves_with_75(lab: Lab) -> None:
    lab.submit("slow", "import time; time.sleep(3)")
    with subprocess.Popen([sys.executable, "-m", "hpcrunner", "submit-from-queue", "--wait"],
                          env={**os.environ, "HPCRUNNER_SITE": str(lab.site)}, stderr=subprocess.DEVNULL) as worker:
        while not any(lab.state.glob("runs/*/status/started")):
            assert worker.poll() is None
        done = lab.hpcrunner("submit-from-queue", check=False)
        assert done.returncode == 75 and f"process {worker.pid}" in done.stderr
        assert worker.wait(60) == 0


def test_render_writes_all_files_and_keeps_secrets_to_the_owner(lab: Lab) -> None:
    message = lab.root / "message.json"
    message.write_text(json.dumps(lab.message("k", config={"env": {"TOKEN": "sesame"}})))
    out = lab.root / "out"
    shown = lab.hpcrunner("render", str(message), "--out", str(out)).stdout
    assert sorted(path.name for path in out.iterdir()) == ["env.sh", "job.sh", "python.txt", "requirements.txt"]
    assert str(out / "job.sh") in shown
    assert (out / "env.sh").stat().st_mode & 0o777 == 0o600
    assert "sesame" in (out / "env.sh").read_text() and "sesame" not in (out / "job.sh").read_text()
    message.write_text("{")
    done = lab.hpcrunner("render", str(message), "--out", str(out), check=False)
    assert done.returncode == 65 and "not JSON" in done.stderr


def test_site_check_and_show(lab: Lab) -> None:
    assert "good" in lab.hpcrunner("site", "check", str(lab.site)).stdout
    shown = lab.hpcrunner("site", "show", str(lab.site)).stdout
    assert "engine: none" in shown and "site.yaml" in shown and "default" in shown
    assert "good" in lab.hpcrunner("site", "check", "laptop").stdout


def test_a_dockerfile_becomes_a_recipe_for_review(lab: Lab) -> None:
    dockerfile = lab.root / "Dockerfile"
    dockerfile.write_text("FROM python:3.11\nENV A=b\nRUN echo '{{ x }}' && pip install six\nWORKDIR /srv\n")
    shown = lab.hpcrunner("recipe", "import", str(dockerfile)).stdout
    assert "Bootstrap: docker" in shown and "From: python:3.11" in shown and "pip install six" in shown
    out = lab.root / "mine.def.j2"
    lab.hpcrunner("recipe", "import", str(dockerfile), "--out", str(out))
    from hpcrunner.render.environment import definition

    assert "echo '{{ x }}'" in definition(out.name, {}, [lab.root])
    assert lab.hpcrunner("recipe", "import", str(dockerfile), "--out", str(out), check=False).returncode != 0


def test_completion_scripts_are_good_shell() -> None:
    script = hpcrunner("completion", "bash").stdout
    assert "submit-from-queue" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert hpcrunner("completion", "zsh").stdout.startswith("#compdef hpcrunner")


def test_progress_on_a_terminal(lab: Lab) -> None:
    if not shutil.which("script"):
        pytest.skip("needs the program `script` (util-linux) to make a terminal")
    lab.submit("e", "print(1)")
    done = subprocess.run(["script", "-qec", f"{sys.executable} -m hpcrunner submit-from-queue --wait", "/dev/null"],
                          env={**os.environ, "HPCRUNNER_SITE": str(lab.site), "TERM": "xterm"}, capture_output=True,
                          stdin=subprocess.DEVNULL, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "succeeded" in done.stdout and "\x1b[" in done.stdout


def test_the_engine_is_missed_before_anything_is_taken(lab: Lab) -> None:
    lab.submit("e")
    done = lab.hpcrunner("submit-from-queue", "--engine", "apptainer", "--engine-path", "/nowhere/apptainer", check=False)
    assert done.returncode in (69, 78) and "/nowhere/apptainer" in done.stderr
    assert len(list(lab.queue.iterdir())) == 1


# -- a state_dir that can't be written --


@pytest.fixture
def on_small_disk(tmp_path: Path) -> Iterator[Lab]:
    """A lab with one experiment that waits, whose state_dir is a file system of its own."""
    lab = Lab(tmp_path, working_dir=str(tmp_path / "runs"), image_dir=str(tmp_path / "images"), max_cores=1)
    with small_disk(lab.state, "1m"):
        lab.submit("e", "import time; time.sleep(60)", max_duration="20s")
        lab.tick()
        yield lab


def said(lab: Lab, *arguments: str) -> tuple[int, str]:
    done = lab.hpcrunner(*arguments, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_full_disk_is_told_in_a_sentence(on_small_disk: Lab) -> None:
    lab = on_small_disk
    with suppress(OSError), (lab.state / "fill").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    code, text = said(lab, "submit-from-queue")
    assert code == 74 and f"the disk of {lab.state} is full" in text, text
    for command in (["status"], ["doctor"]):
        code, text = said(lab, *command)
        assert code == 0 or (code == 74 and f"the disk of {lab.state} is full" in text), text
    code, text = said(lab, "cancel", "e")
    assert code == 74 and str(lab.state) in text and ("is full" in text or "No space left" in text), text
    # As it is where SQLite still finds room for reading.
    folder = lab.state / "requests"
    folder.mkdir(exist_ok=True)
    with pytest.raises(OSError, match=rf"No space left on device: '{folder}/\d+\.json'"):
        request(folder, {"cancel": "e"})
    assert list(folder.iterdir()) == []
    (lab.state / "fill").unlink()
    assert said(lab, "cancel", "e")[0] == 0
    assert lab.run_all()["e"]["outcome"] == "cancelled"


def test_a_read_only_disk_can_be_looked_at(on_small_disk: Lab) -> None:
    lab = on_small_disk
    remount(lab.state, "ro")
    assert lab.status()["e"]["state"] == "staged"
    assert said(lab, "doctor") == (0, "nothing found\n")
    for command in (["cancel", "e"], ["submit-from-queue"]):
        code, text = said(lab, *command)
        assert code == 74 and str(lab.state) in text and "read-only" in text.lower(), text
