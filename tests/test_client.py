"""The real StudioML client submits to its local queue, hpcrunner runs, the client's own API reads back."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

import services
from lab import Lab
from researcher import Researcher

pytestmark = pytest.mark.service("studioml")

@pytest.fixture
def researcher(tmp_path: Path, studioml: services.StudioML) -> Researcher:
    return Researcher(Lab(tmp_path), studioml)


def test_awkward_arguments_arrive_and_results_are_read_by_the_client(researcher: Researcher) -> None:
    (researcher.project / "train.py").write_text("""
import json, os, sys
json.dump(sys.argv[1:], open("../modeldir/args.json", "w"))
open("../retval", "w").write(os.environ["MY_VAR"])
print("trained")
""")
    awkward = ["two words", "it's", 'say "hi"', "$HOME", "`id`", "a;b", "--flag=x y", "*", "", "\\n", "ünï"]
    researcher.submit("awkward", "--max-duration=5m", "train.py", *awkward)
    run = researcher.lab.run_all()["awkward"]
    assert run["outcome"] == "succeeded", run
    back = researcher.read_back("awkward", "modeldir", "retval", "output")
    assert json.loads(back["found"]["modeldir"]["args.json"]) == awkward
    assert back["found"]["retval"] == "hello $world"
    assert back["found"]["output"]["output"].startswith("trained\n")
    assert back["status"] == "finished" and back["finished"] >= back["started"] > 1e9


def test_a_failing_script(researcher: Researcher) -> None:
    (researcher.project / "bad.py").write_text("open('../modeldir/partial', 'w').write('p'); import sys; sys.exit(5)")
    researcher.submit("bad", "bad.py")
    run = researcher.lab.run_all()["bad"]
    assert (run["outcome"], run["exit_code"]) == ("failed", 5)
    back = researcher.read_back("bad", "modeldir", "output")
    assert back["found"]["modeldir"] == {"partial": "p"}
    assert "exit code 5" in back["found"]["output"]["output"].splitlines()[-1]
    assert researcher.lab.record("bad")["exit_code"] == 5


def test_captured_inputs_and_outputs(researcher: Researcher) -> None:
    data = researcher.lab.root / "data"
    data.mkdir()
    (data / "points.csv").write_text("1,2\n")
    single = researcher.lab.root / "one.txt"
    single.write_text("single")
    (researcher.project / "use.py").write_text("""
import os
points = open("../data/points.csv").read()
one = open("../one").read()
os.makedirs("../made", exist_ok=True)
open("../made/out", "w").write(points + one)
""")
    researcher.submit("captured", f"--capture-once={data}:data", f"--capture-once={single}:one",
                      f"--capture={researcher.lab.root}/made:made", "use.py")
    assert researcher.lab.run_all()["captured"]["outcome"] == "succeeded"
    assert researcher.read_back("captured", "made")["found"]["made"] == {"out": "1,2\nsingle"}


def test_code_that_calls_the_clients_artifact_functions(researcher: Researcher) -> None:
    """The program runs with the client's own library, as in an image that has StudioML in it."""
    (researcher.project / "lib.py").write_text(f"""
import sys
sys.path.insert(0, {str(next(researcher.client.venv.glob("lib/python*/site-packages")))!r})
from studio import fs_tracker
open(fs_tracker.get_artifact("modeldir") + "/a", "w").write("a")
open(fs_tracker.get_model_directory() + "/b", "w").write("b")
print("artifacts", sorted(fs_tracker.get_artifacts()))
""")
    lab = researcher.lab
    lab.site.write_text(json.dumps({**json.loads(lab.site.read_text()), "studioml": "never"}))
    researcher.submit("lib", "lib.py")
    run = lab.run_all()["lib"]
    assert run["outcome"] == "succeeded", lab.output("lib")
    assert researcher.read_back("lib", "modeldir")["found"]["modeldir"] == {"a": "a", "b": "b"}
    assert "artifacts ['modeldir', 'output', 'workspace']" in lab.output("lib")


@pytest.mark.service("apptainer")
def test_a_local_container_image(researcher: Researcher, apptainer: services.Apptainer) -> None:
    (researcher.project / "where.py").write_text("""
import os
print("container", os.path.exists("/.singularity.d"))
open("../modeldir/here", "w").write(os.environ["MY_VAR"])
""")
    lab = researcher.lab
    lab.site.write_text(json.dumps({**json.loads(lab.site.read_text()), "engine": "apptainer"}))
    researcher.submit("boxed", f"--container={apptainer.base_image}", "where.py")
    assert lab.run_all()["boxed"]["outcome"] == "succeeded", lab.output("boxed")
    assert "container True" in lab.output("boxed")
    assert researcher.read_back("boxed", "modeldir")["found"]["modeldir"] == {"here": "hello $world"}


@pytest.mark.slow
@pytest.mark.service("apptainer")
def test_code_that_imports_studioml_finds_it_in_its_image(researcher: Researcher, apptainer: services.Apptainer) -> None:
    """With the whole environment of the real client, as it sends it."""
    (researcher.project / "uses.py").write_text("""
import os
from studio import fs_tracker
print("in a container", os.path.exists("/.singularity.d"))
open(fs_tracker.get_model_directory() + "/weights", "w").write("w")
os.makedirs(fs_tracker.get_tensorboard_dir() if hasattr(fs_tracker, "get_tensorboard_dir") else "../tb", exist_ok=True)
open("../tb/event", "w").write("e")
""")
    lab = researcher.lab
    lab.site.write_text(json.dumps({**json.loads(lab.site.read_text()), "engine": "apptainer",
                                    "base_images": {"any": str(apptainer.base_image)}}))
    researcher.submit("uses", "uses.py", whole=True)
    assert lab.run_all(timeout=900)["uses"]["outcome"] == "succeeded", lab.output("uses")
    assert "in a container True" in lab.output("uses")
    back = researcher.read_back("uses", "modeldir", "tb")
    assert back["found"] == {"modeldir": {"weights": "w"}, "tb": {"event": "e"}}
    assert any(line.startswith("studioml==") for line in next(
        (lab.state / "images" / "builds").glob("*/requirements.txt")).read_text().splitlines())


def test_its_whole_environment_is_understood(researcher: Researcher) -> None:
    """All that `pip freeze` of the real client's environment gives becomes requirements."""
    (researcher.project / "x.py").write_text("print(1)")
    done = subprocess.run([str(researcher.client.run), f"--config={researcher.config}", "--queue=local_test",
                           "--experiment=whole", "--force-git", "x.py"], cwd=researcher.project, env=researcher.env,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    message = next(researcher.lab.queue.iterdir())
    researcher.lab.hpcrunner("render", str(message), "--out", str(researcher.lab.root / "out"))
    lines = (researcher.lab.root / "out" / "requirements.txt").read_text().splitlines()
    assert len(lines) > 40 and not any(line.lower().startswith(("pip==", "setuptools==", "studioml==")) for line in lines)
    with tarfile.open(next((researcher.lab.store / "artifacts" / "blobstore").iterdir())) as tar:
        assert "x.py" in tar.getnames()
