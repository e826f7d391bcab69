"""What a container engine must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from hpcrunner.errors import HpcrunnerError
from hpcrunner.wire.experiment import Experiment


class BuildError(HpcrunnerError):
    """An image could not be built. The build's log says more."""


@dataclass(frozen=True)
class Definition:
    """What an image is made from. Equal content has an equal digest, whatever else differs."""

    digest: str
    """SHA-256 over all inputs, in hexadecimal."""
    files: dict[str, str]
    """Name to text: what the build finds in its folder."""
    summary: str
    """For people: "Python 3.11 with 74 packages"."""
    warnings: tuple[str, ...] = ()
    """What is not quite as the experiment asked for."""


@dataclass(frozen=True)
class Launch:
    """A program to be run in an image."""

    argv: tuple[str, ...]
    """Empty: the image's own run script."""
    run_dir: Path
    workspace: Path
    gpus: int = 0


class Container(Protocol):
    env_prefix: str
    """How a variable must be called on the host to get its bare name inside."""
    default_path: str
    """PATH inside, for values such as `%PATH%:./bin`."""

    def __init__(self, site: Any, name: str) -> None: ...

    def define(self, experiment: Experiment, *, studioml: bool) -> Definition:
        """What to build for this experiment. Pure but for looking at the base image. Raises MessageError for
        what can't be had here, ConfigError for what the site lacks."""
        ...

    def image(self, digest: str) -> Path:
        """Where the image of that digest is, once it is built."""
        ...

    def is_built(self, digest: str) -> bool: ...

    def build(self, folder: Path, digest: str, log: IO[bytes]) -> None:
        """Builds from the files in `folder`; the image appears whole or not at all. Raises BuildError."""
        ...

    def accepts(self, image: Path) -> str | None:
        """Why a file that came with an experiment is no image for this engine; None if it is one."""
        ...

    def command(self, image: Path, launch: Launch) -> Sequence[str]:
        """The command line that runs a program in the image."""
        ...
