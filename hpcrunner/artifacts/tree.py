"""Unpacked artifacts, kept in the cache where the file system can clone them: unpacked once for all experiments."""

from __future__ import annotations

import logging
from hashlib import sha256
from pathlib import Path

from hpcrunner.artifacts.cache import Cache, Entry, Made
from hpcrunner.artifacts.clone import can_clone, clone_tree, count_tree
from hpcrunner.artifacts.style import TarStyle
from hpcrunner.artifacts.unpack import Limits, Unpacked, remove, unpack
from hpcrunner.errors import ArchiveError
from hpcrunner.files import beside

log = logging.getLogger("hpcrunner")


def place_tree(cache: Cache, key: str, packed: Path, target: Path, style: TarStyle, limits: Limits,
               name: str) -> Unpacked:
    """Puts the content of `packed`, the object `key` of the cache, at `target`: cloned from a tree that the cache has,
    or unpacked. What it may take is the same either way.

    Raises ArchiveError, which calls the artifact `name`, and StoreError.
    """
    size = cache.fact(key, "unpacked") or packed.stat().st_size
    if size <= cache.limit and can_clone(cache.folder, target.parent):
        def make(data: Path) -> Made:
            remove(data)
            done = unpack(packed, data, style, limits, name)
            files, size = count_tree(data)
            # One that is too large for the cache is not unpacked there again.
            cache.note(key, unpacked=size)
            return Made(size, facts={"files": files, "bytes": done.bytes, "entries": done.entries,
                                     "skipped": done.skipped})

        tree = sha256(f"{key}\0{style.value}".encode()).hexdigest()
        with cache.use(tree, "tree", name, size, make) as entry:
            if entry is not None and (done := _cloned(entry, target, limits, name)):
                return done
        if entry is not None:
            log.warning("%s: its tree in the cache is damaged, and is removed", name)
            cache.remove(entry)
    return unpack(packed, target, style, limits, name)


def _cloned(entry: Entry, target: Path, limits: Limits, name: str) -> Unpacked | None:
    """None if something of it is missing: nobody waits until all files of a tree have reached the disk."""
    facts = entry.facts
    done = Unpacked(facts["files"], facts["bytes"], tuple(facts["skipped"]), facts["entries"])
    try:
        limits.check(done.bytes, done.entries)
    except ArchiveError as error:
        raise ArchiveError(f"{name}: {error}") from error
    part = beside(target, "part")
    remove(part)
    if clone_tree(entry.data, part) != (done.files, entry.size):
        remove(part)
        return None
    part.replace(target)
    return done
