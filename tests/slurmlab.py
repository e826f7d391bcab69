"""A lab whose jobs run on a Slurm cluster, as the cluster's ordinary user."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import Lab
from slurmcluster import Slurm

QUICK = {
    "partitions": {
        "cpu": {"max_walltime": "1d", "max_cpus": 16, "max_memory": "8000MiB"},
        "gpu": {"max_walltime": "1d", "max_cpus": 16, "max_memory": "8000MiB", "max_gpus": 4},
    },
    "gpu_types": {"a100": "40GiB"},
    "default_memory": "50MiB", "poll_min": "0.5s", "poll_max": "2s", "exit_grace": "2s", "lost_after": "4s", "settle": "2s",
    "submit_timeout": "20s",
}
"""The cluster's partitions, and patience for tests."""

_numbers = itertools.count(1)


class SlurmLab(Lab):
    """Everything in it belongs to the cluster's user, and so does the process of hpcrunner.

    The folder is `labs/N` of the cluster; it stays until the next cluster of that number is started.
    """

    def __init__(self, slurm: Slurm, options: Mapping[str, Any] = {}, **site: Any) -> None:
        self.slurm = slurm
        self.python_version = slurm.run(
            slurm.python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))").stdout.strip()
        root = slurm.folder / "labs" / str(next(_numbers))
        root.mkdir(parents=True)
        os.chown(root, slurm.uid, slurm.gid)
        # Jobs can't run what lies below /root, so not the Python of these tests either.
        with self.as_user():
            super().__init__(root, **{"scheduler": "slurm", "slurm": {**QUICK, **options},
                                      "pythons": {"any": "/usr/bin/python3"}, **site})

    @contextmanager
    def as_user(self) -> Iterator[None]:
        """What is written inside belongs to the user. All of this process is the user meanwhile."""
        os.setegid(self.slurm.gid)
        os.seteuid(self.slurm.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    def put_tar(self, members: Mapping[str, str | bytes], key: str | None = None) -> str:
        with self.as_user():
            return super().put_tar(members, key)

    def enqueue(self, message: dict[str, Any] | bytes) -> None:
        with self.as_user():
            super().enqueue(message)

    def python(self, *arguments: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        return {"args": self.slurm.as_user(self.slurm.python, *arguments), "cwd": self.root,
                "env": self.slurm.environment(HPCRUNNER_SITE=str(self.site), **(env or {}))}

    def share(self, path: Path) -> str:
        """A copy of a file, such as a base image, that the user can read."""
        return str(self.slurm.share(path))
