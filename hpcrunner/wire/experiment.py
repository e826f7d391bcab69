"""An experiment as its message describes it, checked and typed (see `hpcrunner.wire.message`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Resources:
    """What the experiment asks for; sizes in bytes, 0 where it doesn't say."""

    cpus: int = 1
    gpus: int = 0
    ram: int = 0
    hdd: int = 0
    gpu_mem: int = 0
    """Of each card."""
    gpu_count: int = 0


@dataclass(frozen=True)
class Artifact:
    tag: str
    mutable: bool
    """It goes back to the store when the program ends."""
    unpack: bool
    location: str | None
    """The client's `qualified`, or the `url` of one from the web."""
    key: str | None
    bucket: str | None = None
    credentials: Mapping[str, Any] | None = field(default=None, repr=False)
    sha256: str = ""
    """Of the object, in hexadecimal, if the message says it (`hash`)."""
    save_frequency: float | None = None
    """Seconds between its checkpoints, if they are others than the experiment's."""


@dataclass(frozen=True)
class StoreConfig:
    """`config.storage` or `config.database`."""

    type: str
    endpoint: str | None
    bucket: str | None
    credentials: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Experiment:
    key: str
    filename: str | None
    """The script, relative to the workspace; `-m` if the first argument names a module; None: the image's own."""
    args: tuple[str, ...]
    """As the program gets them: the client's quotes for a shell are taken off."""
    pythonenv: tuple[str, ...]
    pip: tuple[str, ...]
    pythonver: str
    """`3.11`, or just `3`."""
    project: str | None
    owner: str | None
    resources: Resources
    max_duration: float | None
    """Seconds."""
    lifetime: float | None
    """Seconds from `time_added`."""
    time_added: float | None
    """Unix seconds by the client's clock."""
    artifacts: Mapping[str, Artifact]
    env: Mapping[str, str] = field(repr=False)
    database: StoreConfig | None
    storage: StoreConfig | None
    save_frequency: float | None
    """Seconds between checkpoints."""
    metrics_frequency: float | None
    """Seconds between lines in `_metrics`."""
    warnings: tuple[str, ...]
