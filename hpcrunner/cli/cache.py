"""`hpcrunner cache`."""

from __future__ import annotations

import argparse

from hpcrunner.artifacts.cache import Cache, Entry
from hpcrunner.cli import stock
from hpcrunner.cli.common import configuration
from hpcrunner.config.site import Site


def run(arguments: argparse.Namespace) -> int:
    return stock.run(arguments, CacheStock(configuration(arguments).site))


class CacheStock:
    def __init__(self, site: Site) -> None:
        self.where, self.limit = site.cache_dir, site.cache_size
        # One that isn't there is not made by looking.
        self._cache = Cache(self.where, site.cache_size) if self.where.is_dir() else None
        self._entries: dict[stock.Item, Entry] = {}

    def items(self) -> list[stock.Item]:
        if self._cache is None:
            return []
        for entry in self._cache.entries(parts=True):
            kind = "part" if entry.is_part else entry.kind
            user = "a run that is being staged in" if self._cache.is_in_use(entry) else ""
            self._entries[stock.Item(entry.key, kind, entry.size, entry.used, entry.source, user)] = entry
        return list(self._entries)

    def remove(self, item: stock.Item) -> bool:
        assert self._cache is not None
        return self._cache.remove(self._entries[item])

    def check(self, item: stock.Item) -> str:
        assert self._cache is not None
        entry = self._entries[item]
        if entry.is_part or self._cache.is_right(entry):
            return ""
        return f"its content is no longer that with the SHA-256 {entry.sha256}"
