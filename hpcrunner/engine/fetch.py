"""One artifact from its store to its place, through the cache. Knows nothing of the journal; safe in several threads.

Whether a message may read an object is asked of the store with the message's own credentials before anything of the
cache is used. What it may then see is what lies under that very location: entries are known by location *and*
content, so that nobody gets at another's object by naming one of his own after its digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from hpcrunner.artifacts.cache import Cache, Made, settle
from hpcrunner.artifacts.clone import copy_file
from hpcrunner.artifacts.digest import digest_of
from hpcrunner.artifacts.stream import longest
from hpcrunner.artifacts.style import TarStyle, detect_style
from hpcrunner.artifacts.tree import place_tree
from hpcrunner.artifacts.unpack import Limits, taken, unpack
from hpcrunner.engine.install import Install
from hpcrunner.errors import MessageError, StoreError
from hpcrunner.files import beside
from hpcrunner.stores.base import Progress, Store, shown
from hpcrunner.units import format_size
from hpcrunner.wire.experiment import Artifact, Experiment

_BLOB = re.compile(r"/blobstore/([0-9a-f]{64})\.t[a-z0-9.]+$")
"""The client names what it uploads by the SHA-256 of the tar (StudioML 0.0.49)."""
_TRIES = 3
"""So often an object that is replaced while it is read is begun anew."""


@dataclass(frozen=True)
class Brought:
    bytes: int = 0
    """Of disk, about."""
    notes: tuple[str, ...] = ()
    style: TarStyle | None = None
    """How this client packs."""


def bring(install: Install, experiment: Experiment, artifact: Artifact, target: Path, scratch: Path,
          style: TarStyle | None, limit: int, progress: Progress | None = None) -> Brought | None:
    """Puts an artifact at `target`, unpacked if that is wanted, where it may take `limit` bytes. None if it is a
    mutable one that isn't in the store yet. What does not go through the cache is fetched into the folder `scratch`.

    `style` is how this client packs, as far as it is known; the workspace's tar shows it. Raises MessageError,
    StoreError.
    """
    if artifact.location is None:
        if artifact.mutable:
            return None
        raise MessageError(f"artifact {artifact.tag} says nowhere where it is stored (neither `qualified` nor `url`)")
    most = longest(limit) if artifact.unpack else limit - taken(0, 1)
    with _fetched(install.cache, install.store(experiment, artifact), artifact, scratch, progress, most) as found:
        if found is None:
            if artifact.mutable:
                return None
            raise MessageError(f"artifact {artifact.tag} is not in the store: there is no {shown(artifact.location)}")
        packed, key = found
        if not artifact.unpack:
            copy_file(packed, target) if key else packed.replace(target)
            return Brought(taken(target.stat().st_size, 1), style=style)
        if artifact.tag == "workspace":
            style = detect_style(packed)
        limits = Limits(limit)
        if key and install.cache:
            done = place_tree(install.cache, key, packed, target, style or TarStyle.NEW, limits, artifact.tag)
        else:
            done = unpack(packed, target, style, limits, artifact.tag)
        return Brought(done.taken, tuple(f"{artifact.tag}: {text}" for text in done.skipped), style)


@contextmanager
def _fetched(cache: Cache | None, store: Store, artifact: Artifact, scratch: Path, progress: Progress | None,
             most: int) -> Iterator[tuple[Path, str] | None]:
    """(file, its key in the cache, or nothing if it isn't there), of `most` bytes. It may not be changed, and stays
    until the end of the `with` block. None if there is no such object."""
    location = artifact.location or ""
    digest = expected_digest(artifact)
    for _ in range(_TRIES):
        stat = store.stat(location)
        if stat is None:
            yield None
            return
        _check_size(artifact, stat.size, most)
        known_by = digest or stat.version
        if cache is None or not known_by:
            break
        key = sha256(f"{location}\0{known_by}".encode()).hexdigest()
        make = partial(_fetch, store, artifact, digest, stat.version, progress, most)
        try:
            with cache.use(key, "object", shown(location), stat.size, make) as entry:
                if entry is None:
                    break
                _check_size(artifact, entry.size, most)  # Not every store says it before.
                yield entry.data, key
                return
        except _ReplacedError:
            continue
    else:
        raise StoreError(f"artifact {artifact.tag}: {shown(location)} was replaced each time while it was being read",
                         transient=True)
    packed = beside(scratch / artifact.tag, "fetched")
    try:
        if store.fetch(location, packed, progress, most) is None:
            yield None
            return
        _verify(artifact, digest_of(packed) if digest else "", digest)
        yield packed, ""
    finally:
        packed.unlink(missing_ok=True)


def _check_size(artifact: Artifact, size: int, most: int) -> None:
    if size > most:
        raise StoreError(f"artifact {artifact.tag}: {shown(artifact.location or '')} has {format_size(size)}, which is "
                         "more than is allowed (hdd of the experiment, or artifact_limit of the site)")


class _ReplacedError(StoreError):
    """The object is no longer the one that was asked for."""


def _fetch(store: Store, artifact: Artifact, digest: str, version: str, progress: Progress | None, most: int,
           data: Path) -> Made:
    """Makes an object's entry of the cache."""
    # What was whole before a crash is taken only if its content says that it is the right one.
    if not (digest and data.exists()):
        data.unlink(missing_ok=True)
        stat = store.fetch(artifact.location or "", data, progress, most)
        if stat is None or (not digest and stat.version != version):
            raise _ReplacedError(f"artifact {artifact.tag}: replaced while it was being read")
    made = Made(data.stat().st_size, settle(data))
    _verify(artifact, made.sha256, digest)
    return made


def _verify(artifact: Artifact, found: str, digest: str) -> None:
    if digest and found != digest:
        says = "its `hash`" if artifact.sha256 else "its name"
        raise StoreError(f"artifact {artifact.tag}: {shown(artifact.location or '')} is damaged or another: its "
                         f"SHA-256 is {found}, and must be {digest}, as {says} says")


def expected_digest(artifact: Artifact) -> str:
    """The SHA-256 that an object must have, in hexadecimal; empty if nothing says it."""
    named = _BLOB.search(artifact.location or "")
    return artifact.sha256 or (named[1] if named and not artifact.mutable else "")
