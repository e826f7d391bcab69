"""What a kind of store must be able to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hpcrunner.errors import StoreError

Progress = Callable[[int], None]
"""Told of bytes as they are moved; those that an earlier, interrupted try had moved are told at once, and those that
must be moved again are taken back. Called from any thread, also with 0: before each try, while it is waited for the
next one, and before anything is made visible. It may raise, which stops the transfer: what it raises comes out of the
call, and what the call leaves is what an interrupted one leaves."""
LARGEST_RECORD = 64 * 2**20
"""Bytes that `Store.read` returns at most."""


def unwatched(count: int) -> None:
    """The Progress of a call that nobody follows."""


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
    """Another one whenever the content is another: an entity tag, a generation. Empty if the store has none of which
    that is sure."""
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

    def fetch(self, location: str, target: Path, progress: Progress | None = None, limit: int | None = None
              ) -> Stat | None:
        """Copies an object to the file `target`, which appears when it is whole and verified. None, and no file, if
        there is no such object. An object of more than `limit` bytes is refused for good.

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

    def write(self, data: bytes, location: str, replaces: str | None = None, progress: Progress | None = None) -> None:
        """Like `put`, for a small object. With `replaces`, only over that version: raises ChangedError where the
        store can tell that the object is another by now."""
        ...


def shown(location: str) -> str:
    """A location for people, without what may be secret: a password, whatever characters are in it, and the query of
    a URL, which may be signed."""
    scheme, mark, rest = location.partition("://")
    user, at, host = rest.rpartition("@")
    # An `@` may stand in a path, too; without a `:` before it, it can't end a password.
    if at and (":" in user or not re.search("[/?#]", user)):
        rest = host
    if scheme.lower() in ("http", "https"):
        rest = re.sub(r"[?#].*", "?...", rest, flags=re.DOTALL)
    return scheme + mark + rest


def check_size(location: str, size: int, limit: int | None) -> None:
    """Raises StoreError for an object of more than `limit` bytes."""
    if limit is not None and size > limit:
        raise StoreError(f"{shown(location)}: larger than {limit} bytes, which is all that it may have")


def check_record(location: str, size: int) -> None:
    """Raises StoreError for what is too large for `Store.read`."""
    if size > LARGEST_RECORD:
        raise StoreError(f"{shown(location)}: larger than {LARGEST_RECORD >> 20} MiB, so it is no record")
