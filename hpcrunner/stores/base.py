"""What a kind of store must be able to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Store(Protocol):
    """Objects by location, a URL as the StudioML client writes it (`qualified` of an artifact).

    All methods raise StoreError; its `transient` says whether trying again may help.
    """

    def __init__(self, site: Any, credentials: Mapping[str, Any] | None) -> None: ...

    def location(self, endpoint: str | None, bucket: str | None, key: str) -> str:
        """The URL of the object `key` in a store of the client's configuration file."""
        ...

    def fetch(self, location: str, target: Path) -> bool:
        """Copies an object to the file `target`. False, and no file, if there is no such object."""
        ...

    def put(self, source: Path, location: str) -> None:
        """Stores a file so that a reader sees the old object or the whole new one."""
        ...

    def read(self, location: str) -> bytes | None:
        """A small object, or None if there is none."""
        ...

    def write(self, data: bytes, location: str) -> None:
        """Like `put`, for a small object."""
        ...
