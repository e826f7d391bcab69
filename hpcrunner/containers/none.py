"""Engine `none`: a cached virtual environment, for hosts without a container engine."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from hpcrunner import proc
from hpcrunner.containers.base import BuildError, Definition, Launch
from hpcrunner.errors import MessageError
from hpcrunner.wire.experiment import Experiment
from hpcrunner.wire.requirements import requirements

_READY = ".hpcrunner-ready"


class VirtualEnv:
    env_prefix = ""

    def __init__(self, site: Any, name: str) -> None:
        self._site = site

    @property
    def default_path(self) -> str:
        return os.environ.get("PATH", os.defpath)

    def define(self, experiment: Experiment, *, studioml: bool) -> Definition:
        wanted = requirements(experiment.pythonenv, experiment.pip, keep_studioml=studioml)
        python, warnings = self._python(experiment.pythonver)
        lines = "".join(f"{line}\n" for line in wanted.lines)
        files = {"requirements.txt": lines, "python.txt": f"{python}\n"}
        inputs = "\0".join(["venv", python, os.uname().machine, lines, *self._site.pip_args])
        return Definition(sha256(inputs.encode()).hexdigest(), files, f"{python} with {len(wanted.lines)} packages",
                          (*wanted.warnings, *warnings))

    def image(self, digest: str) -> Path:
        return Path(self._site.image_dir) / f"{digest}.venv"

    def is_built(self, digest: str) -> bool:
        return (self.image(digest) / _READY).exists()

    def build(self, folder: Path, digest: str, log: IO[bytes]) -> None:
        # Scripts in an environment name its path, so it is made in place and a marker tells that it is whole.
        target = self.image(digest)
        if target.exists():
            shutil.rmtree(target)
        python = (folder / "python.txt").read_text().strip()
        self._run([python, "-m", "venv", str(target)], folder, log, "the virtual environment can't be made "
                  "(on Debian it needs the package python3-venv)")
        pip = [str(target / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--no-input",
               *self._site.pip_args, "--requirement", "requirements.txt"]
        if (folder / "requirements.txt").read_text():
            try:
                self._run(pip, folder, log, "")
            except BuildError:
                log.write(b"hpcrunner: the packages don't go together by their own words; installing just what is "
                          b"listed\n")
                log.flush()
                self._run([*pip, "--no-deps"], folder, log, "pip could not install the experiment's packages")
        (target / _READY).touch()

    def accepts(self, image: Path) -> str | None:
        return "can't be used: this site runs experiments without containers (engine: none)"

    def command(self, image: Path, launch: Launch) -> Sequence[str]:
        return [str(image / "bin" / "python"), *launch.argv]

    def _python(self, version: str) -> tuple[str, tuple[str, ...]]:
        """The interpreter for a version, and warnings. Raises MessageError if there is none."""
        pythons = dict(self._site.pythons)
        if version in pythons:
            return str(pythons[version]), ()
        if found := shutil.which(f"python{version}"):
            # Maybe a link in somebody's virtual environment, which may go.
            return os.path.realpath(found), ()
        own = "{}.{}".format(*sys.version_info)
        if self._site.python_match == "major" and version.split(".")[0] == "3":
            # The base of a virtual environment, not the environment that hpcrunner itself lives in.
            chosen = str(pythons.get("any") or getattr(sys, "_base_executable", sys.executable))
            exact = version in (own, "3") and "any" not in pythons
            return chosen, () if exact else (f"asked for Python {version}; runs with {chosen}",)
        raise MessageError(f"asks for Python {version}; this site has Python {own} (pythons, python_match)")

    def _run(self, argv: list[str], folder: Path, log: IO[bytes], failure: str) -> None:
        done = proc.run(argv, timeout=self._site.build_timeout, env=proc.clean_environment(network=True), cwd=folder,
                        log=log)
        if done.timed_out:
            raise BuildError(f"the environment took longer than build_timeout ({self._site.build_timeout:.0f} s)")
        if done.code != 0:
            raise BuildError(f"{failure}: exit code {done.code}")


backend = VirtualEnv
