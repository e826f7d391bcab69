"""What a kind of store must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Progress = Callable[[int], None]
"""Told of bytes as they are moved; those that an earlier, interrupted try had moved are told at once. Called from
any thread. It may raise, which stops the transfer: what it raises comes out of the call, and what the call leaves is
what an interrupted one leaves."""


@dataclass(frozen=True)
class Access:
    """What a message says of how to reach its objects. A backend takes credentials from the first place that has
    them, among those that the site allows."""

    artifact: Mapping[str, Any] | None = field(default=None, repr=False)
    """`credentials` of the artifact."""
    store: Mapping[str, Any] | None = field(default=None, repr=False)
    """`credentials` of the message's `config.storage`, or of `config.database` for records."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The experiment's variables, in which old clients put keys."""
    endpoint: str | None = None
    """URL of the message's store, with the scheme that locations of objects have lost."""


@dataclass(frozen=True)
class Stat:
    """What a store says of an object that wasn't read."""

    size: int
    """Bytes."""
    version: str = ""
    """Another one whenever the content is another: an entity tag, a generation. Empty if the store has none."""
    sha256: str = ""
    """Of the content, in hexadecimal, if the store knows it."""
    md5: str = ""


@dataclass(frozen=True)
class Content:
    """A small object."""

    data: bytes = field(repr=False)
    version: str = ""


class Store(Protocol):
    """Objects by location, a URL as the StudioML client writes it (`qualified` of an artifact).

    All methods raise StoreError; its `transient` says whether trying again may help. Methods may be called from
    several threads at once.
    """

    def __init__(self, site: Any, access: Access) -> None: ...

    def location(self, endpoint: str | None, bucket: str | None, key: str) -> str:
        """The URL of the object `key` in a store of the client's configuration file."""
        ...

    def stat(self, location: str) -> Stat | None:
        """None if there is no such object."""
        ...

    def fetch(self, location: str, target: Path, progress: Progress | None = None) -> Stat | None:
        """Copies an object to the file `target`, which appears when it is whole and verified. None, and no file, if
        there is no such object.

        What an interrupted call left beside `target` (names that begin with a dot and its name) is gone on with,
        if the object is still the same.
        """
        ...

    def put(self, source: Path, location: str, progress: Progress | None = None) -> None:
        """Stores a file so that a reader sees the old object or the whole new one.

        What an interrupted call noted beside `source` is gone on with, if the file is still the same.
        """
        ...

    def read(self, location: str) -> Content | None:
        """A small object, or None if there is none."""
        ...

    def write(self, data: bytes, location: str, replaces: str | None = None) -> None:
        """Like `put`, for a small object. With `replaces`, only over that version: raises ChangedError where the
        store can tell that the object is another by now."""
        ...
