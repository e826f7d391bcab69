"""Every recorded message of the real client is refused with the right reason or rendered as recorded: for jobs of this
host (`data/golden`) and for Slurm (`data/golden-slurm`).

`UPDATE_GOLDEN=1 pytest tests/test_golden.py` writes the recordings anew; look at the difference before you commit.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpcrunner.config.load import load
from hpcrunner.config.site import Site
from hpcrunner.engine.preview import preview
from hpcrunner.errors import ConfigError, MessageError
from hpcrunner.model import Place, Request
from hpcrunner.schedulers.base import Batch, BuildJob, Submission
from hpcrunner.schedulers.slurm import arrays
from hpcrunner.schedulers.slurm.client import Client
from hpcrunner.schedulers.slurm.scheduler import SlurmScheduler
from hpcrunner.wire.message import parse
from sbatchscript import directives_of, options_of
from slurmcluster import Slurm
from slurmlab import SlurmLab

DATA = Path(__file__).parent / "data"
PAYLOADS = sorted((DATA / "payloads").glob("*.json"))
REFUSED = {"encrypted": "encrypted", "container_shub_0.0.34": "wants the image shub://.*; this site runs only image files"}
RENDERED = [path for path in PAYLOADS if path.stem not in REFUSED]
DIRECT: dict[str, Any] = {}
SLURM: dict[str, Any] = {"scheduler": "slurm", "slurm": {
    "account": "main", "qos": "normal",
    "partitions": {
        "cpu": {"max_walltime": "1d", "max_cpus": 16, "max_memory": "8000MB"},
        "gpu": {"max_walltime": "1d", "max_gpus": 4, "preemptible": True, "directives": ["--mail-type=NONE"]},
    },
    "gpu_types": {"a100": "40GiB"}, "modules": ["apptainer/1.4"], "build_partition": "cpu", "build_memory": "2GiB", "array_throttle": 9,
    "directives": ['--comment="it has blanks"'],
}}
"""For the partitions, the account and the QOS of the cluster that tests start, so that it can say what it thinks."""
TEMPLATES = {"golden": DIRECT, "golden-slurm": SLURM}


def a_site(folder: Path, **options: Any) -> Site:
    engine = folder / "apptainer"
    engine.write_text("#!/bin/sh\necho apptainer version 1.4.5\n")
    engine.chmod(0o755)
    site = folder / "site.yaml"
    site.write_text(json.dumps({
        "state_dir": "/srv/hpcrunner", "queues": [{"type": "local", "root": "/srv/queue"}], "store_roots": ["/srv/store"],
        "engine": "apptainer", "engine_path": str(engine), "max_duration": "48h",
        "base_images": {"any": "docker://example.org/python@sha256:" + "0" * 64}, **options,
    }))
    return load(site).site


def rendered(payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Mapping[str, Any] = DIRECT
             ) -> dict[str, str]:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # Root gets other options.
    files = preview(a_site(tmp_path, **options), payload).files
    return {name: re.sub(r"\b[1-9a-f][0-9a-f]{63}\.sif", "DIGEST.sif", text).replace(
        str(tmp_path / "apptainer"), "/usr/bin/apptainer") for name, text in files.items()}


def as_recorded(folder: Path, files: Mapping[str, str]) -> None:
    if os.environ.get("UPDATE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    assert files == {path.name: path.read_text() for path in folder.iterdir()}


def test_all_payloads_are_here() -> None:
    assert len(PAYLOADS) == 9


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda path: path.stem)
def test_message(payload: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := REFUSED.get(payload.stem):
        with pytest.raises(MessageError, match=reason):
            rendered(payload.read_bytes(), tmp_path, monkeypatch, TEMPLATES[kind])
        return
    files = rendered(payload.read_bytes(), tmp_path, monkeypatch, TEMPLATES[kind])
    if kind != "golden":  # How its image is built is the same everywhere.
        files = {name: files[name] for name in ("job.sh", "env.sh")}
    as_recorded(DATA / kind / payload.stem, files)


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("payload", RENDERED, ids=lambda path: path.stem)
def test_every_field_that_matters_has_its_effect(payload: Path, kind: str, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent of the recordings: what the message asks for is looked up in the rendered files."""
    message = json.loads(payload.read_text())
    experiment, config = message["experiment"], message["config"]
    files = rendered(payload.read_bytes(), tmp_path, monkeypatch, TEMPLATES[kind])
    script, env = files["job.sh"], files["env.sh"]
    for name, value in config.get("env", {}).items():
        assert f"export APPTAINERENV_{name}={shlex.quote(value)}\n" in env
    assert f"export APPTAINERENV_STUDIOML_EXPERIMENT={experiment['key']}\n" in env
    command = shlex.split(script[script.index("exec /usr/bin/apptainer"):script.index("\n) &\n")])
    needed = experiment["resources_needed"]
    gpus = needed["gpus"]
    assert ("--nv" in command) == bool(gpus)
    if kind == "golden-slurm" and gpus:  # Slurm tells which: they reach the program from the job's own environment.
        assert "VISIBLE_DEVICES" not in env
        assert "{CUDA,NVIDIA,ROCR,HIP}_VISIBLE_DEVICES" in script
    else:
        assert f"CUDA_VISIBLE_DEVICES={','.join(map(str, range(gpus))) if gpus else '-1'}\n" in env
        assert "{CUDA,NVIDIA,ROCR,HIP}_VISIBLE_DEVICES" not in script
    program = [experiment["filename"], *(shlex.split(word)[0] for word in experiment["args"])] if experiment["filename"] else []
    assert command[len(command) - len(program):] == program
    assert ("exec" if program else "run") in command
    # The partitions of the Slurm site let a job run for a day, the end of the job itself not counted in.
    seconds = {"20m": 1200, "10m": 600}.get(experiment["max_duration"], 48 * 3600 if kind == "golden" else 86400 - 90)
    assert f"\nlimit={seconds}\n" in script
    has_image = "_singularity" in experiment["artifacts"]
    assert ("image.def" in files) == (not has_image)
    if not has_image:
        assert f"wanted={experiment['pythonver']}\n" in files["image.def"]
        pinned = {entry for entry in experiment["pythonenv"] if not entry.startswith(("pip==", "setuptools==", "studioml=="))}
        lines = set(files["requirements.txt"].splitlines())
        assert pinned <= lines
        assert any(line.startswith("studioml==") for line in lines) == (payload.stem == "completion_service")
    if kind == "golden-slurm":
        asked = options_of(script)
        assert asked["cpus-per-task"] == str(needed["cpus"])
        assert asked["partition"] == ("gpu" if gpus else "cpu")
        assert asked.get("gres") == (f"gpu:{'a100:' if needed.get('gpuMem') else ''}{gpus}" if gpus else None)
        assert ("requeue" in asked, "no-requeue" in asked) == (bool(gpus), not gpus)
        days, _, clock = asked["time"].partition("-")
        hours, minutes, _ = map(int, clock.split(":"))
        # Slurm's own limit comes after ours: the end of the job, and that Slurm looks every 30 s only.
        assert 90 <= (int(days) * 24 * 60 + hours * 60 + minutes) * 60 - seconds < 150


# -- what sbatch reads of a script --


ALWAYS = {"job-name", "partition", "account", "qos", "nodes", "ntasks", "cpus-per-task", "time", "signal", "export", "chdir",
          "output", "open-mode", "comment"}


@pytest.mark.parametrize("payload", RENDERED, ids=lambda path: path.stem)
def test_options_stand_where_sbatch_looks(payload: Path) -> None:
    script = (DATA / "golden-slurm" / payload.stem / "job.sh").read_text()
    assert script.startswith("#!/bin/bash\n#SBATCH --job-name=hr0000000000000\n")
    assert script.count("#SBATCH") == len(directives_of(script))
    options = options_of(script)
    assert options.keys() >= ALWAYS
    assert options.keys() - ALWAYS <= {"mem", "gres", "requeue", "no-requeue", "mail-type"}
    assert options["comment"] == "it has blanks"
    assert options["chdir"] == f"/srv/hpcrunner/runs/{json.loads(payload.read_text())['experiment']['key']}-0.1"
    assert options["output"] == f"{options['chdir']}/job.log"


def a_submission(folder: Path, number: int) -> Submission:
    run_dir = folder / f"runs/e{number}"
    return Submission(f"hr{number:013}", run_dir / "job.sh", run_dir, Request(2, 3 * 2**30, 0, 1), 3600.0, Place("gpu"))


def array_and_build(folder: Path, monkeypatch: pytest.MonkeyPatch, options: Mapping[str, Any] = SLURM) -> dict[str, str]:
    """The other scripts that go to sbatch, by name."""
    site = a_site(folder, **{**options, "state_dir": str(folder)})
    script = arrays.write(site, site.slurm, Batch("hrarray", tuple(a_submission(folder, number) for number in range(3))))
    build = folder / "image_dir/builds/digest"
    build.mkdir(parents=True)
    monkeypatch.setattr(Client, "submit", lambda self, script: "45")
    job = BuildJob("hbimage", build, ["/usr/bin/python3", "-m", "it's", str(build)], {"PATH": "/bin:/usr/bin", "A": "$x y"}, 600)
    assert SlurmScheduler(site).build(job) == "45"
    files = {"array.sh": script, "array.list": script.with_suffix(".list"), "build.sh": build / "build.sh"}
    return {name: path.read_text().replace(str(folder), "/srv/hpcrunner") for name, path in files.items()}


def test_scripts_of_arrays_and_of_image_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = array_and_build(tmp_path, monkeypatch)
    as_recorded(DATA / "golden-slurm" / "other", files)
    array, build = options_of(files["array.sh"]), options_of(files["build.sh"])
    assert (array["array"], array["job-name"], array["mem"], array["gres"]) == ("0-2%9", "hrarray", "3072M", "gpu:1")
    assert (build["partition"], build["time"], build["cpus-per-task"], build["mem"]) == ("cpu", "0-00:11:00", "4", "2048M")
    assert "no-requeue" in build
    assert shlex.split(files["build.sh"].splitlines()[-1]) == [
        "exec", "/usr/bin/python3", "-m", "it's", "/srv/hpcrunner/image_dir/builds/digest"]


SCRIPTS = sorted({*DATA.glob("golden/*/job.sh"), *DATA.glob("golden-slurm/*/*.sh")} - {*DATA.glob("golden-slurm/*/env.sh")})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parts[-3]}-{path.parent.name}-{path.stem}")
def test_scripts_are_good_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if shellcheck := shutil.which("shellcheck"):
        # SC2209: the word `exit` is meant, not the command. SC2034: not every scheduler's script needs the timer.
        done = subprocess.run([shellcheck, "--norc", "--shell=bash", "--severity=warning", "--exclude=SC2209,SC2034", script],
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


# -- hostile values --

SEVERAL_LINES = ["a\n#SBATCH --wrap=reboot", "a\r\n#SBATCH --uid=0\n", "a\n\ntouch flag\n", "\u2028#SBATCH --hold",
                 "\x85#SBATCH --hold", "a\x0b#SBATCH --hold", "\x1b[2J", "\0"]
ONE_LINE = ["$(touch flag)", "`touch flag`", "a'; touch flag; '", 'a"; touch flag; "', "a#SBATCH --hold", "#SBATCH --hold",
            "%j %x %%", "\\", "-", "~root", "&& touch flag", "| touch flag", ">flag", "{{ 7 * 7 }}", "{% raw %}", "{#", "x" * 900]


def with_value(where: str, value: str) -> bytes:
    """A message with a value at some place in it."""
    message = json.loads((DATA / "payloads" / "local.json").read_text())
    experiment = message["experiment"]
    if where == "key":
        experiment["key"] = value
    elif where == "argument":
        experiment["args"] = [value]
    elif where == "script":
        experiment["filename"] = value
    else:
        message["config"]["env"] = {"VALUE": value}
    return json.dumps(message).encode()


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("key", SEVERAL_LINES, ids=ascii)
def test_a_key_of_several_lines_is_refused(key: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MessageError, match="printable"):
        rendered(with_value("key", key), tmp_path, monkeypatch, TEMPLATES[kind])


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("where", ["key", "argument", "script", "variable"])
def test_hostile_values_are_nothing_but_values(where: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = rendered(with_value(where, "plain"), tmp_path, monkeypatch, TEMPLATES[kind])["job.sh"]
    for value in [*ONE_LINE, *(SEVERAL_LINES[:-1] if where != "key" else ())]:
        try:
            files = rendered(with_value(where, value), tmp_path, monkeypatch, TEMPLATES[kind])
        except MessageError:
            assert where == "script"  # The name of a script may not hold everything.
            continue
        script = files["job.sh"]
        assert options_of(script).keys() == options_of(plain).keys()
        changed = {name for name, held in options_of(script).items() if held != options_of(plain)[name]}
        assert changed == ({"chdir", "output"} if where == "key" and kind == "golden-slurm" else set())
        for text in files["env.sh"], script:
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), value


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("gpus", [0, 1])
def test_a_message_does_not_choose_its_gpus(gpus: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = json.loads((DATA / "payloads" / "local.json").read_text())
    message["experiment"]["resources_needed"]["gpus"], message["config"]["env"] = gpus, {}
    files = rendered(json.dumps(message).encode(), tmp_path, monkeypatch, TEMPLATES[kind])
    template = (Path(__file__).parents[1] / "templates" / "sbatch.sh.j2").read_text()
    [names] = re.findall(r"for name in (.*); do", template)
    chosen = subprocess.run(["bash", "-c", f"echo {names}"], capture_output=True, text=True).stdout.split()
    assert len(chosen) == 6
    message["config"]["env"] = dict.fromkeys(chosen, "0,1,2,3")
    assert rendered(json.dumps(message).encode(), tmp_path, monkeypatch, TEMPLATES[kind]) == files
    warnings = parse(json.dumps(message).encode()).warnings
    assert all(any(f"config.env.{name}:" in warning for warning in warnings) for name in chosen)


FOLDERS = ["a b", "it's", 'say "x"', "$(touch x)$HOME", "`id`", "100%", "%j%x", "#SBATCH", "a#b", "ä", "&;|<>*?", "{x}"]


@pytest.mark.parametrize("name", FOLDERS, ids=ascii)
def test_odd_folders_are_quoted_for_sbatch_and_for_the_shell(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**SLURM, "working_dir": str(tmp_path / name).replace("$", "$$")}
    script = rendered((DATA / "payloads" / "local.json").read_bytes(), tmp_path, monkeypatch, options)["job.sh"]
    asked = options_of(script)
    assert asked["chdir"] == f"{tmp_path / name}/exp_local_1-0.1"
    assert asked["output"] == f"{asked['chdir']}/job.log".replace("%", "%%")  # which has patterns
    # The shell changes into it.
    (tmp_path / name / "exp_local_1-0.1").mkdir(parents=True)
    [line] = [line for line in script.split("\n") if line.startswith("cd ")]
    done = subprocess.run(["bash", "-c", f"{line}; pwd"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path / name}/exp_local_1-0.1\n", "")


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "a\n#SBATCH --hold", "a\tb", "a\x85b"], ids=ascii)
def test_a_folder_that_sbatch_cant_be_told_of_is_an_error(name: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    options = {**SLURM, "working_dir": str(tmp_path / name)}
    with pytest.raises(ConfigError, match=r"one #SBATCH line|backslash"):
        rendered((DATA / "payloads" / "local.json").read_bytes(), tmp_path, monkeypatch, options)


def test_a_folder_of_several_lines_is_no_trouble_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"working_dir": str(tmp_path / "a\ntouch flag\n#")}
    script = rendered((DATA / "payloads" / "local.json").read_bytes(), tmp_path, monkeypatch, options)["job.sh"]
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 73  # there is no such folder
    assert not (tmp_path / "flag").exists()


# -- what the real sbatch says --


@pytest.mark.service("slurm")
def test_slurm_runs_jobs_in_odd_folders(slurm: Slurm) -> None:
    lab = SlurmLab(slurm, engine="none", keep="all")
    folder = lab.root / "%j ".join(FOLDERS)
    lab.site.write_text(json.dumps({**json.loads(lab.site.read_text()), "working_dir": str(folder).replace("$", "$$")}))
    lab.submit("e", "print('ran')")
    run = lab.run_all()["e"]
    assert run["outcome"] == "succeeded", run["reason"]
    assert "ran" in lab.output("e")
    assert list(folder.glob("e-????-1.1/job.log")), [str(path) for path in lab.root.rglob("job.log")]


@pytest.mark.service("slurm")
@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.parts[-3] == "golden-slurm"],
                         ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_sbatch_takes_them(script: Path, slurm: Slurm) -> None:
    done = slurm.run("sbatch", "--test-only", slurm.share(script), check=False)
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr
