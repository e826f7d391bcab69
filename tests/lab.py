"""A site in a folder: queue, store and state of its own, and messages as the StudioML client writes them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def end_jobs(folder: Path) -> None:
    """Kills the jobs of labs below a folder that their test has left running, as jobs are meant to outlive all else."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(word.startswith(f"{folder}/") and word.endswith("/job.sh") for word in words):
                session = os.getsid(int(process.name))
                for other in Path("/proc").glob("[0-9]*"):
                    with suppress(OSError):
                        if os.getsid(int(other.name)) == session:
                            os.kill(int(other.name), signal.SIGKILL)


TAGS = ("modeldir", "retval", "output", "tb", "_metrics", "_metadata")


class Lab:
    """Everything below one folder; experiments run in virtual environments unless the site says otherwise."""

    python_version = "{}.{}".format(*sys.version_info)
    """What experiments ask for."""

    def __init__(self, root: Path, **site: Any) -> None:
        self.root = root
        self.queue = root / "queue" / "local_test"
        self.store = root / "store"
        self.state = root / "state"
        for folder in (self.queue, self.store):
            folder.mkdir(parents=True)
        options = {
            "state_dir": str(self.state),
            "queues": [{"type": "local", "root": str(root / "queue")}],
            "store_roots": [str(self.store)],
            "engine": "none",
            "poll_interval": "0.1s",
            "kill_grace": "2s",
            "queue_gone_grace": "0s",
            **site,
        }
        self.site = root / "site.yaml"
        self.site.write_text(json.dumps(options))  # JSON is YAML

    # -- submitting --

    def artifact(self, tag: str, key: str, *, mutable: bool, unpack: bool = True) -> dict[str, Any]:
        return {"unpack": unpack, "mutable": mutable, "key": key, "local": f"/nowhere/{tag}",
                "qualified": f"file:/{self.store}/artifacts/{key}"}

    def put_tar(self, members: Mapping[str, str | bytes], key: str | None = None) -> str:
        """Stores a tar with these files and returns its key."""
        key = key or f"blobstore/{uuid.uuid4().hex}.tar"
        path = self.store / "artifacts" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                data = content.encode() if isinstance(content, str) else content
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(data), 0o755
                tar.addfile(info, io.BytesIO(data))
        return key

    def message(self, key: str, script: str = "print('hello')", *, args: Sequence[str] = (), **experiment: Any) -> dict[str, Any]:
        config = experiment.pop("config", {})
        workspace = self.put_tar({"main.py": script})
        artifacts = {"workspace": self.artifact("workspace", workspace, mutable=False)}
        for tag in TAGS:
            artifacts[tag] = self.artifact(tag, f"experiments/{key}/{tag}.tar", mutable=True)
        artifacts.update(experiment.pop("artifacts", {}))
        return {
            "experiment": {
                "key": key, "filename": "main.py", "args": list(args), "pythonenv": [],
                "pythonver": self.python_version, "project": None,
                "resources_needed": {"cpus": 1, "gpus": 0}, "status": "waiting", "time_added": time.time(),
                "time_started": None, "time_finished": None, "info": {}, "git": None, "metric": None,
                "max_duration": None, "owner": "guest", "artifacts": artifacts, **experiment,
            },
            "config": {
                "database": {"type": "local", "endpoint": str(self.store), "bucket": "meta"},
                "storage": {"type": "local", "endpoint": str(self.store), "bucket": "artifacts"},
                **config,
            },
        }

    def enqueue(self, message: dict[str, Any] | bytes) -> None:
        """Puts a message on the queue, and its record into the database, as the client does."""
        if isinstance(message, dict):
            experiment = message["experiment"]
            record = self.store / "meta" / "experiments" / str(experiment["key"])
            if record.resolve().is_relative_to(self.store):
                record.parent.mkdir(parents=True, exist_ok=True)
                record.write_text(json.dumps(experiment))
            message = json.dumps(message).encode()
        part = self.queue / f".{uuid.uuid4()}"
        part.write_bytes(message)
        part.rename(self.queue / part.name[1:])

    def submit(self, key: str, script: str = "print('hello')", **experiment: Any) -> None:
        self.enqueue(self.message(key, script, **experiment))

    # -- running --

    def python(self, *arguments: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Arguments for subprocess.Popen that run this lab's Python."""
        return {"args": [sys.executable, *arguments],
                "env": {**os.environ, "HPCRUNNER_SITE": str(self.site), **(env or {})}}

    def start(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """hpcrunner, not waited for: its pid is the one to kill."""
        return subprocess.Popen(**self.python("-m", "hpcrunner", *arguments, env=env), stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def hpcrunner(self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None,
                  timeout: float = 300) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(**self.python("-m", "hpcrunner", *arguments, env=env), capture_output=True, text=True,
                              timeout=timeout)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done

    def tick(self, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return self.hpcrunner("submit-from-queue", *arguments, **settings)

    def run_all(self, **settings: Any) -> dict[str, dict[str, Any]]:
        """Ticks until nothing is left to do; the experiments by key."""
        self.tick("--wait", **settings)
        return self.status()

    # -- looking --

    def status(self) -> dict[str, dict[str, Any]]:
        runs = json.loads(self.hpcrunner("status", "--json").stdout)
        return {run["key"]: run for run in runs}

    def record(self, key: str) -> dict[str, Any]:
        loaded = json.loads((self.store / "meta" / "experiments" / key).read_text())
        assert isinstance(loaded, dict)
        return loaded

    def result(self, key: str, tag: str) -> dict[str, bytes]:
        """What came back of an artifact, by member name; empty if nothing did."""
        path = self.store / "artifacts" / "experiments" / key / f"{tag}.tar"
        if not path.exists():
            return {}
        with tarfile.open(path) as tar:
            return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}

    def output(self, key: str) -> str:
        return self.result(key, "output")["output"].decode()
