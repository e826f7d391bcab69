"""The builder: `python -m hpcrunner.images.build FOLDER` builds one image, alone, and says how it ended.

It may run on any host that sees the folder. Two builders of one image exclude each other by a lock where the
file system has locks; where it hasn't, both build, and the last rename wins, which is harmless.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hpcrunner import plugins
from hpcrunner.containers.base import Container
from hpcrunner.errors import HpcrunnerError


def main(folder: Path) -> None:
    order = json.loads((folder / "order.json").read_text())
    site = SimpleNamespace(**{name: _path(name, value) for name, value in order["site"].items()})
    container: Container = plugins.load("containers", order["engine"])(site, order["engine"])
    digest = str(order["digest"])
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if container.is_built(digest):
            return
        for old in ("failed.json", "built.json"):
            (folder / old).unlink(missing_ok=True)
        with (folder / "begun").open("ab") as begun:
            begun.write(b".")
        started = time.time()
        try:
            with (folder / "build.log").open("wb") as log:
                container.build(folder, digest, log)
        except (HpcrunnerError, OSError) as error:
            tail = last_lines(folder / "build.log")
            _place(folder / "failed.json", {"reason": f"{error}\n{tail}" if tail else str(error), "at": time.time()})
        else:
            seconds = round(time.time() - started, 1)
            image = container.image(digest)
            _place(folder / "built.json", {"digest": digest, "summary": order["summary"], "at": time.time(),
                                           "seconds": seconds, "sha256": file_digest(image) if image.is_file() else ""})
        (folder / "begun").unlink(missing_ok=True)


def last_lines(log: Path, lines: int = 12, size: int = 4000) -> str:
    """The end of a log, for people."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - size))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def file_digest(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    found = sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def _path(name: str, value: Any) -> Any:
    return Path(value) if value is not None and name.endswith(("_dir", "_tmpdir")) else value


def _place(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content))
    part.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
