"""The real services that tests use: where they are, and whether a test may go on without them.

`make services` gets them, into HPCRUNNER_TEST_CACHE or ~/.cache/hpcrunner-test; HPCRUNNER_BASE_IMAGE,
HPCRUNNER_STUDIOML, HPCRUNNER_STUDIOML_OLD and HPCRUNNER_SERVERS name others. Slurm clusters lie below HPCRUNNER_SLURM_DIR; the first test that needs one starts
it, and it ends with the session. HPCRUNNER_REQUIRE names the services that must be there, so that continuous
integration can't pass by skipping.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import slurmcluster
import storeservers
from disks import mounted
from slurmcluster import Slurm

SETTINGS = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("HPCRUNNER_")}
"""Taken out of the environment, where they would set options of the command that is tested."""


class Missing(Exception):
    """The service can't be had here; the text says why."""


@dataclass(frozen=True)
class Apptainer:
    program: Path
    base_image: Path
    """Debian's Python 3 with pip, and bash (scripts/make-base-image)."""


@dataclass(frozen=True)
class StudioML:
    venv: Path
    """Where the client is installed; its Python worker would install packages into it, so never run that."""

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def run(self) -> Path:
        """`studio run`, keeping the quoting of arguments."""
        return self.venv / "bin" / "studio-run"


@cache
def apptainer() -> Apptainer:
    """Raises Missing unless a program in the base image can be run by this user."""
    program = shutil.which("apptainer") or shutil.which("singularity")
    if not program:
        raise Missing("neither apptainer nor singularity is on PATH")
    image = _path("HPCRUNNER_BASE_IMAGE", "base.sif")
    # Root may lack the capabilities that the engine asks for outside a user namespace.
    options = ["--userns"] if os.geteuid() == 0 else []
    done = subprocess.run([program, "-q", "exec", *options, "--pwd", "/", str(image), "true"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        said = done.stderr.strip()[-300:]
        raise Missing(f"{program} can't run {image} (exit code {done.returncode}): {said}")
    return Apptainer(Path(program), image)


def studioml() -> StudioML:
    """Raises Missing unless the client is installed."""
    return _client("HPCRUNNER_STUDIOML", "studioml")


def studioml_old() -> StudioML:
    """Release 0.0.34, which packs artifacts in another way. Raises Missing unless it is installed."""
    return _client("HPCRUNNER_STUDIOML_OLD", "studioml-0.0.34")


@cache
def _client(variable: str, name: str) -> StudioML:
    client = StudioML(_path(variable, name))
    if not client.run.exists():
        raise Missing(f"no StudioML client in {client.venv}")
    return client


def slurm() -> Slurm:
    """Raises Missing unless a cluster can be started."""
    return _cluster(accounting=True)


def slurm_plain() -> Slurm:
    """Another cluster, without accounting. Raises Missing unless it can be started."""
    return _cluster(accounting=False)


def _store_server(name: str) -> storeservers.Server:
    """Raises Missing unless it can be started."""
    if name not in _cannot:
        try:
            return storeservers.start(_path("HPCRUNNER_SERVERS", "servers"), name)
        except storeservers.CannotStart as error:
            _cannot[name] = str(error)
    raise Missing(_cannot[name])


@cache
def _file_system(kind: str) -> str:
    """The program that makes one, by path. Raises Missing unless one can be mounted from a file."""
    make = shutil.which(f"mkfs.{kind}", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if make is None:
        raise Missing(f"there is no mkfs.{kind}")
    if os.geteuid() != 0:
        raise Missing("only root can mount it")
    with TemporaryDirectory() as work:
        try:
            with mounted(make, Path(work)):
                return make
        except subprocess.CalledProcessError as error:
            raise Missing(f"can't be mounted here: {error.stderr.strip()}") from error


CLONING = ("btrfs", "xfs")
"""File systems on which files can share blocks."""
STORES = ("seaweedfs", "moto", "rclone-s3", "http", "fake-gcs", "gcs-emulator")
"""Servers of stores, each started by the first test that needs it."""
SERVICES: dict[str, Callable[[], object]] = {
    "apptainer": apptainer, "studioml": studioml, "studioml-old": studioml_old, "slurm": slurm, "slurm-plain": slurm_plain,
    **{name: partial(_store_server, name) for name in STORES}, **{name: partial(_file_system, name) for name in CLONING}}


def required() -> set[str]:
    """The names in HPCRUNNER_REQUIRE, between blanks or commas. Raises ValueError for an unknown one."""
    names = set(re.findall(r"[^\s,]+", SETTINGS.get("HPCRUNNER_REQUIRE", "")))
    if unknown := ", ".join(sorted(names - set(SERVICES))):
        raise ValueError(f"HPCRUNNER_REQUIRE names {unknown}; there are {', '.join(SERVICES)}")
    return names


def require(name: str) -> object:
    """The service, or else the running test is skipped; it fails if the service is required."""
    try:
        return SERVICES[name]()
    except Missing as reason:
        text = f"{name}: {reason}; `make services` gets it where it can"
    if name in required():
        pytest.fail(f"required by HPCRUNNER_REQUIRE: {text}", pytrace=False)
    pytest.skip(text)


_cannot: dict[str, str] = {}
"""Why servers of stores can't be had."""
_clusters: dict[bool, Slurm | Missing] = {}
"""With and without accounting. A failure to start is kept too: it takes a while, and won't pass."""


def _cluster(*, accounting: bool) -> Slurm:
    if accounting not in _clusters:
        folder = Path(SETTINGS.get("HPCRUNNER_SLURM_DIR") or "/tmp/hpcrunner-slurm").absolute()
        try:
            _clusters[accounting] = slurmcluster.start(folder, accounting=accounting, settings=SETTINGS)
        except slurmcluster.CannotStart as error:
            _clusters[accounting] = Missing(str(error))
    found = _clusters[accounting]
    if isinstance(found, Missing):
        raise found
    return found


def _path(variable: str, name: str) -> Path:
    """What the variable says, or else where `make services` puts it. Raises Missing if nothing is there."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(SETTINGS.get("HPCRUNNER_TEST_CACHE") or Path(home, "hpcrunner-test"))
    path = Path(SETTINGS.get(variable) or folder / name).absolute()
    if not path.exists():
        raise Missing(f"{path} does not exist")
    return path
