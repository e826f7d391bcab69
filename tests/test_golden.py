"""Every recorded message of the real client is refused with the right reason or rendered as recorded.

`UPDATE_GOLDEN=1 pytest tests/test_golden.py` writes the recordings anew; look at the difference before you commit.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from hpcrunner.config.load import load
from hpcrunner.engine.preview import preview
from hpcrunner.errors import MessageError

DATA = Path(__file__).parent / "data"
PAYLOADS = sorted((DATA / "payloads").glob("*.json"))
REFUSED = {"encrypted": "encrypted", "container_shub_0.0.34": "wants the image shub://.*; this site runs only image files"}


def rendered(payload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    engine = tmp_path / "apptainer"
    engine.write_text("#!/bin/sh\necho apptainer version 1.4.5\n")
    engine.chmod(0o755)
    site = tmp_path / "site.yaml"
    site.write_text(json.dumps({
        "state_dir": "/srv/hpcrunner", "queues": [{"type": "local", "root": "/srv/queue"}], "store_roots": ["/srv/store"],
        "engine": "apptainer", "engine_path": str(engine), "max_duration": "48h",
        "base_images": {"any": "docker://example.org/python@sha256:" + "0" * 64},
    }))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # Root gets other options.
    files = preview(load(site).site, payload.read_bytes()).files
    return {name: re.sub(r"\b[1-9a-f][0-9a-f]{63}\.sif", "DIGEST.sif", text).replace(str(engine), "/usr/bin/apptainer")
            for name, text in files.items()}


def test_all_payloads_are_here() -> None:
    assert len(PAYLOADS) == 9


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda path: path.stem)
def test_message(payload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := REFUSED.get(payload.stem):
        with pytest.raises(MessageError, match=reason):
            rendered(payload, tmp_path, monkeypatch)
        return
    files = rendered(payload, tmp_path, monkeypatch)
    folder = DATA / "golden" / payload.stem
    if os.environ.get("UPDATE_GOLDEN"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
    recorded = {path.name: path.read_text() for path in folder.iterdir()}
    assert files == recorded


@pytest.mark.parametrize("payload", [path for path in PAYLOADS if path.stem not in REFUSED], ids=lambda path: path.stem)
def test_every_field_that_matters_has_its_effect(payload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent of the recordings: what the message asks for is looked up in the rendered files."""
    message = json.loads(payload.read_text())
    experiment, config = message["experiment"], message["config"]
    files = rendered(payload, tmp_path, monkeypatch)
    script, env = files["job.sh"], files["env.sh"]
    for name, value in config.get("env", {}).items():
        assert f"export APPTAINERENV_{name}={shlex.quote(value)}\n" in env
    assert f"export APPTAINERENV_STUDIOML_EXPERIMENT={experiment['key']}\n" in env
    command = shlex.split(script[script.index("exec /usr/bin/apptainer"):script.index("\n) &\n")])
    gpus = experiment["resources_needed"]["gpus"]
    assert ("--nv" in command) == bool(gpus)
    assert f"CUDA_VISIBLE_DEVICES={','.join(map(str, range(gpus))) if gpus else '-1'}\n" in env
    program = [experiment["filename"], *(shlex.split(word)[0] for word in experiment["args"])] if experiment["filename"] else []
    assert command[len(command) - len(program):] == program
    assert ("exec" if program else "run") in command
    minutes = {"20m": 1200, "10m": 600}.get(experiment["max_duration"], 48 * 3600)
    assert f"{{ sleep {minutes}; kill" in script
    has_image = "_singularity" in experiment["artifacts"]
    assert ("image.def" in files) == (not has_image)
    if not has_image:
        assert f"wanted={experiment['pythonver']}\n" in files["image.def"]
        pinned = {entry for entry in experiment["pythonenv"] if not entry.startswith(("pip==", "setuptools==", "studioml=="))}
        lines = set(files["requirements.txt"].splitlines())
        assert pinned <= lines
        assert any(line.startswith("studioml==") for line in lines) == (payload.stem == "completion_service")
