"""Images and jobs with a real Apptainer, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import services
from lab import Lab

pytestmark = pytest.mark.service("apptainer")


@pytest.fixture
def lab(tmp_path: Path, apptainer: services.Apptainer) -> Lab:
    return Lab(tmp_path, engine="apptainer", base_images={"any": str(apptainer.base_image)})


def test_built_image_runs_the_program_in_it(lab: Lab) -> None:
    script = """
import os, sys, six
print("container", os.path.exists("/.singularity.d"), six.__version__)
print("home", os.path.expanduser("~"), os.access(os.path.expanduser("~"), os.W_OK))
open("../modeldir/m", "w").write("m")
open("../retval", "w").write("r")
"""
    lab.submit("boxed", script, args=["'a b'"], pythonenv=["six==1.16.0", "pip==23.0", "setuptools==60"], pythonver="3.11")
    run = lab.run_all()["boxed"]
    assert run["outcome"] == "succeeded", lab.output("boxed")
    assert "container True 1.16.0" in lab.output("boxed") and "True" in lab.output("boxed").splitlines()[1]
    assert lab.result("boxed", "modeldir") == {"m": b"m"} and lab.result("boxed", "retval") == {"./retval": b"r"}
    image = lab.state / "images" / f"{run['image']}.sif"
    assert image.exists() and image.read_bytes()[32:41] == b"SIF_MAGIC"
    labels = lab.hpcrunner("recipe", "labels", str(image)).stdout
    assert "org.hpcrunner.python: 3.11" in labels
    # The same environment again: no second build.
    before = image.read_bytes()  # It holds an id of its own and its time: no second build makes the same one.
    lab.submit("boxed2", script, pythonenv=["six==1.16.0"], pythonver="3.11")
    assert lab.run_all()["boxed2"]["image"] == run["image"]
    assert image.read_bytes() == before


NASTY = {
    "QUOTES": "it's \"quoted\"", "DOLLAR": "$HOME ${PATH} $$", "COMMAND": "$(touch /tmp/hpcrunner-nasty)",
    "BACKTICKS": "`touch /tmp/hpcrunner-nasty`", "NEWLINE": "one\ntwo\n", "BACKSLASH": "ends with \\", "COMMA": "a,b=c,d",
    "TILDE": "~/x:~", "UNICODE": "ünïcødé 💥", "EMPTY": "", "BLANKS": "  padded\t", "PERCENT": "%s %d 100%",
    "SEMICOLON": "a; b & c | d > e < f", "STAR": "* ? [a]", "HASH": "# not a comment", "BANG": "!! !x", "EQUALS": "=a=b",
    "CR": "a\rb", "CONTROL": "\x01\x1b[31m", "BRACES": "{a,b} {{ x }}", "PARENS": "(a) ((b))", "LONG": "x" * 100_000,
    "NAMED": "APPTAINERENV_X=1", "IFS_ISH": "${IFS}",
}


def test_environment_arrives_unchanged_in_the_container(lab: Lab) -> None:
    script = "import json, os; json.dump(dict(os.environ), open('../modeldir/env.json', 'w'))"
    lab.submit("nasty", script, config={"env": NASTY}, pythonver="3.11")
    assert lab.run_all()["nasty"]["outcome"] == "succeeded", lab.output("nasty")
    seen = json.loads(lab.result("nasty", "modeldir")["env.json"])
    assert {name: seen.get(name) for name in NASTY} == NASTY
    assert not Path("/tmp/hpcrunner-nasty").exists()
    assert seen["CUDA_VISIBLE_DEVICES"] == "-1"


def test_image_that_is_no_image_is_rejected(lab: Lab) -> None:
    key = lab.put_tar({"./image.simg": b"not an image" * 100})
    lab.submit("noimage", artifacts={"_singularity": lab.artifact("_singularity", key, mutable=False)})
    run = lab.run_all()["noimage"]
    assert run["outcome"] == "rejected" and "not a Singularity image" in run["reason"]


def test_damaged_image_is_reported_as_not_started(lab: Lab, apptainer: services.Apptainer) -> None:
    key = lab.put_tar({"./image.sif": apptainer.base_image.read_bytes()[:100_000]})
    lab.submit("damaged", artifacts={"_singularity": lab.artifact("_singularity", key, mutable=False)})
    run = lab.run_all()["damaged"]
    assert run["outcome"] == "failed" and "container did not start" in run["reason"]
    assert "FATAL" in lab.output("damaged")


def test_container_without_a_script_runs_its_own(lab: Lab, tmp_path: Path, apptainer: services.Apptainer) -> None:
    image = own_image(tmp_path, apptainer.base_image, "echo own run script; pwd > ../modeldir/pwd")
    key = lab.put_tar({"./box.sif": image.read_bytes()})
    lab.submit("own", filename=None, artifacts={"_singularity": lab.artifact("_singularity", key, mutable=False)})
    assert lab.run_all()["own"]["outcome"] == "succeeded", lab.output("own")
    assert "own run script" in lab.output("own")
    assert lab.result("own", "modeldir")["pwd"].decode().strip().endswith("/experiments/own/workspace")


def test_program_is_stopped_gently_in_the_container(lab: Lab) -> None:
    script = """
import signal, sys, time
def stop(*_):
    import decimal
    open("../modeldir/saved", "w").write("saved"); sys.exit(9)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
time.sleep(60)
"""
    lab.submit("gentle", script, max_duration="2s", pythonver="3.11")
    run = lab.run_all()["gentle"]
    assert run["outcome"] == "failed" and "max_duration" in run["reason"]
    assert lab.result("gentle", "modeldir") == {"saved": b"saved"}


def test_failed_build_is_reported_with_its_log(lab: Lab) -> None:
    lab.submit("unbuildable", pythonenv=["no-such-package-by-hpcrunner==1.0"], pythonver="3.11")
    run = lab.run_all()["unbuildable"]
    assert run["outcome"] == "failed" and "no-such-package-by-hpcrunner" in run["reason"]
    assert not list((lab.state / "images").glob(".*.sif")) and not list((lab.state / "images").glob("*.sif"))


def test_only_jobs_with_a_gpu_get_nv(lab: Lab, tmp_path: Path) -> None:
    """No GPU here: NVML is a stand-in, and the engine's `--nv` is shown by the nvidia-smi it binds."""
    stand_in = tmp_path / "stand-in"
    stand_in.mkdir()
    (stand_in / "pynvml.py").write_text("""
class NVMLError(Exception): pass
NVML_DEVICE_MIG_ENABLE = 1
class Memory: total = 8 * 2**30
nvmlInit = nvmlShutdown = lambda: None
nvmlDeviceGetCount = lambda: 2
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetUUID = lambda index: f"GPU-{index}"
nvmlDeviceGetName = lambda index: "Card"
nvmlDeviceGetMemoryInfo = lambda index: Memory
def nvmlDeviceGetMigMode(index): raise NVMLError
""")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho smi\n")
    smi.chmod(0o755)
    script = ("import os, shutil; "
              "print(os.environ['CUDA_VISIBLE_DEVICES'], bool(shutil.which('nvidia-smi')), flush=True); "
              "__import__('time').sleep(1)")
    env = {"PYTHONPATH": str(stand_in), "PATH": f"{smi.parent}:{os.environ['PATH']}"}
    for name, gpus in (("cpu", 0), ("gpu1", 1), ("gpu2", 1)):
        lab.submit(name, script, pythonver="3.11", resources_needed={"cpus": 1, "gpus": gpus, "gpuMem": "4g"})
    lab.submit("toobig", script, resources_needed={"cpus": 1, "gpus": 1, "gpuMem": "80g"})
    runs = lab.run_all(env={**env, "HPCRUNNER_MAX_CORES": "4"})
    assert runs["toobig"]["outcome"] == "rejected" and "80 GiB" in runs["toobig"]["reason"]
    assert lab.output("cpu").startswith("-1 False\n")
    assert sorted(lab.output(name).splitlines()[0] for name in ("gpu1", "gpu2")) == ["GPU-0 True", "GPU-1 True"]


@pytest.mark.skipif(os.geteuid() != 0, reason="already runs as an ordinary user")
def test_as_an_ordinary_user(tmp_path: Path, apptainer: services.Apptainer) -> None:
    """What a cluster is: nobody is root. Runs with Debian's own Python, which every user can reach."""
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("there is no /usr/bin/python3, the only Python that another user can surely run")
    name = "hpcrunner-test"
    subprocess.run(["useradd", "--create-home", name], capture_output=True)
    home = Path(f"/home/{name}")
    folder = home / tmp_path.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        base = folder / "base.sif"
        shutil.copy(apptainer.base_image, base)
        lab = Lab(folder / "lab", engine="apptainer", base_images={"any": str(base)})
        lab.submit("user", "import os, six; print('uid', os.getuid() != 0, six.__version__)", pythonenv=["six==1.16.0"],
                   pythonver="3.11")
        # The package and its libraries, where that user can read them.
        shutil.copytree(Path(__file__).parent.parent / "hpcrunner", folder / "code" / "hpcrunner")
        for data in ("templates", "recipes", "site-configs"):
            shutil.copytree(Path(__file__).parent.parent / data, folder / "code" / data)
        import filelock
        import jinja2
        import markupsafe
        import yaml

        for module in (jinja2, markupsafe, yaml, filelock):
            source = Path(str(module.__file__)).parent
            shutil.copytree(source, folder / "code" / source.name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        subprocess.run(["chown", "-R", f"{name}:{name}", str(folder)], check=True)
        env = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(folder / "code"),
               "HPCRUNNER_SITE": str(lab.site), "USER": name, "PYTHONDONTWRITEBYTECODE": "1",
               **{key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_"))}}
        done = subprocess.run(["setpriv", f"--reuid={name}", f"--regid={name}", "--init-groups", str(python), "-m",
                               "hpcrunner", "submit-from-queue", "--wait"], env=env, cwd=folder, capture_output=True,
                              text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "uid True 1.16.0" in lab.output("user"), done.stderr
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def own_image(folder: Path, base: Path, runscript: str) -> Path:
    """An image with a run script of its own."""
    definition = folder / "own.def"
    definition.write_text(f"Bootstrap: localimage\nFrom: {base}\n\n%runscript\n    {runscript}\n")
    image = folder / "own.sif"
    root = ["--fakeroot"] if os.geteuid() == 0 else []
    subprocess.run(["apptainer", "-q", "build", *root, str(image), str(definition)], check=True, capture_output=True,
                   timeout=300, env={**os.environ, "APPTAINER_MKSQUASHFS_ARGS": "-comp zstd -Xcompression-level 1"})
    return image
