"""The folder of built images, and what is being built in it.

`<image_dir>/builds/<digest>/` holds what one build needs (`order.json`, definition, package list), its log
and, if it failed, the reason. The builder is a process of its own: it goes on when hpcrunner ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpcrunner import proc
from hpcrunner.containers.base import Container, Definition
from hpcrunner.model import Image, ImageState

_ORDERED = ("engine_path", "image_dir", "build_args", "build_timeout", "build_tmpdir", "mksquashfs_args", "pip_args")
"""The site's options that a builder needs."""
_CRASHES = 3
"""So many builders may die without a word before the build counts as failed."""


class Images:
    def __init__(self, site: Any, engine: str, container: Container) -> None:
        self._site, self._engine, self._container = site, engine, container
        self._builders: list[subprocess.Popen[bytes]] = []

    def folder(self, digest: str) -> Path:
        return Path(self._site.image_dir) / "builds" / digest

    def order(self, definition: Definition) -> None:
        """Puts down what is to be built, so that any later process can start it."""
        folder = self.folder(definition.digest)
        folder.mkdir(parents=True, exist_ok=True)
        # Tells `hpcrunner images prune` that somebody comes to use it (hpcrunner.images.inventory).
        # It may not be there, or have been built by another account.
        with suppress(OSError):
            os.utime(self._container.image(definition.digest))
        order = {"engine": self._engine, "digest": definition.digest, "summary": definition.summary,
                 "site": {name: _plain(getattr(self._site, name)) for name in _ORDERED}}
        for name, text in {**definition.files, "order.json": json.dumps(order, indent=1)}.items():
            part = folder / f".{name}.{os.getpid()}"
            part.write_text(text, encoding="utf-8")
            part.replace(folder / name)

    def look(self, digest: str) -> Image:
        if self._container.is_built(digest):
            return Image(ImageState.BUILT)
        self._builders = [builder for builder in self._builders if builder.poll() is None]
        folder = self.folder(digest)
        if is_locked(folder / "lock"):
            return Image(ImageState.BUILDING)
        if self._container.is_built(digest):  # It was finished between the two looks.
            return Image(ImageState.BUILT)
        try:
            failed = json.loads((folder / "failed.json").read_text())
            return Image(ImageState.FAILED, str(failed["reason"]), float(failed["at"]))
        except FileNotFoundError:
            pass
        crashes, at = crash_count(folder)
        if crashes >= _CRASHES:
            return Image(ImageState.FAILED, f"the image build was killed {crashes} times; its log is "
                                            f"{folder / 'build.log'}", at)
        return Image(ImageState.MISSING)

    def build(self, digest: str) -> None:
        """Starts the builder and returns once it has its lock, so that `look` says "building"."""
        folder = self.folder(digest)
        argv, env = builder_command(folder)
        with (folder / "builder.log").open("ab") as log:
            builder = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                       cwd=folder, env=env)
        self._builders.append(builder)
        while builder.poll() is None and not is_locked(folder / "lock"):
            time.sleep(0.01)


def builder_command(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The builder's command line and environment, on whatever host it runs."""
    return ([sys.executable, "-m", "hpcrunner.images.build", str(folder)],
            proc.clean_environment({"PYTHONPATH": _python_path()}, network=True))


def _python_path() -> str:
    """So that the builder runs this very hpcrunner, be it installed or a checkout."""
    here = str(Path(__file__).parent.parent.parent)
    return os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))


def crash_count(folder: Path) -> tuple[int, float]:
    """How many builders began here without ending, and when the last one began."""
    try:
        path = folder / "begun"
        return len(path.read_bytes()), path.stat().st_mtime
    except FileNotFoundError:
        return 0, 0.0


def is_locked(path: Path) -> bool:
    """Whether some process builds there."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
