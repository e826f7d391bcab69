"""A user of the real StudioML client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import services
from lab import Lab

READ_BACK = """
import json, os, sys
from studio import model
config = model.get_config(sys.argv[1])
db = model.get_db_provider(config)
experiment = db.get_experiment(sys.argv[2], getinfo=False)
found = {}
for tag in sys.argv[3:]:
    path = db.get_artifact(experiment.artifacts[tag], local_path=os.path.join(os.getcwd(), "back-" + tag), only_newer=False)
    if path and os.path.isdir(path):
        found[tag] = {name: open(os.path.join(path, name)).read() for name in sorted(os.listdir(path))}
    elif path and os.path.exists(path):
        found[tag] = open(path).read()
print("READ " + json.dumps({"status": experiment.status, "started": experiment.time_started,
                            "finished": experiment.time_finished, "found": found}))
"""


class Researcher:
    """A user with the client, a project folder and a configuration file."""

    def __init__(self, lab: Lab, client: services.StudioML, store: Mapping[str, Any] | None = None) -> None:
        """`store`: what the configuration says of it; the lab's own if it is None."""
        self.lab, self.client = lab, client
        store = store or {"type": "local", "endpoint": str(lab.store)}
        self.home = lab.root / "home"
        self.project = lab.root / "my project"
        for folder in (self.home, self.project):
            folder.mkdir()
        self.config = lab.root / "studioml.yaml"
        self.config.write_text(json.dumps({
            "database": {**store, "bucket": "meta", "authentication": "none"},
            "storage": {**store, "bucket": "artifacts"},
            "saveMetricsFrequency": "1m", "saveWorkspaceFrequency": "1m", "verbose": "error",
            "env": {"MY_VAR": "hello $world"}, "resources_needed": {"cpus": 1, "ram": "100m", "hdd": "1g", "gpus": 0},
        }))
        self.env = {**os.environ, "HOME": str(self.home), "STUDIOML_HOME": str(lab.root), "PYTHONWARNINGS": "ignore",
                    "PATH": f"{client.venv}/bin:{os.environ['PATH']}"}

    def submit(self, key: str, *arguments: str, whole: bool = False) -> None:
        done = subprocess.run([str(self.client.run), f"--config={self.config}", "--queue=local_test", f"--experiment={key}",
                               "--force-git", *arguments], cwd=self.project, env=self.env, capture_output=True, text=True,
                              timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        if whole:
            return
        # All packages of the client's environment would take half a minute to install; one test does that.
        for path in self.lab.queue.iterdir():
            message = json.loads(path.read_text())
            message["experiment"]["pythonenv"] = [
                entry for entry in message["experiment"]["pythonenv"] if entry.startswith("studioml==")]
            message["experiment"]["pythonver"] = "{}.{}".format(*sys.version_info)
            path.write_text(json.dumps(message))

    def read_back(self, key: str, *tags: str) -> dict[str, Any]:
        folder = self.lab.root / f"reads-{key}"
        folder.mkdir(exist_ok=True)
        done = subprocess.run([str(self.client.python), "-c", READ_BACK, str(self.config), key, *tags], cwd=folder,
                              env=self.env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        loaded = json.loads(done.stdout.rpartition("READ ")[2])
        assert isinstance(loaded, dict)
        return loaded
