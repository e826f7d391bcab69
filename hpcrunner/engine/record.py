"""The client's record of an experiment: `experiments/<key>` in its database bucket, a JSON object.

The client knows the states waiting, running, finished and stopped; how it really ended stands in fields of our
own, which the client ignores. Whoever reads the whole object must write it back whole, so it is read right
before it is written, and `stopped`, which only the user writes, is never overwritten.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any

from hpcrunner.engine.install import Install, log, open_store
from hpcrunner.errors import ChangedError, StoreError
from hpcrunner.stores.base import Access, Content, Progress, Store
from hpcrunner.wire.experiment import Experiment

_TRIES = 5
"""So often a record that somebody else is writing, too, is read and written again."""


def update(install: Install, experiment: Experiment, changes: dict[str, Any],
           progress: Progress | None = None) -> bool:
    """Writes `changes` into the record; does nothing if there is none (the user may have deleted it).

    Returns whether it was written. Raises StoreError, and what `progress` raises, which is asked before each try.
    """
    if (place := _place(install, experiment)) is None:
        return False
    store, location = place
    for _ in range(_TRIES):
        content = store.read(location, progress)
        if content is None:
            log.warning("%s: no record at %s; nothing is written there", experiment.key, location)
            return False
        record = _parse(content, location)
        kept = {"status": "stopped"} if record.get("status") == "stopped" else {}
        try:
            store.write(json.dumps({**record, **changes, **kept}).encode(), location, content.version, progress)
            return True
        except ChangedError as error:
            changed = error
    raise changed


def status(install: Install, experiment: Experiment, progress: Progress | None = None) -> str:
    """What the record says now; empty if there is none. Raises StoreError."""
    place = _place(install, experiment)
    content = place[0].read(place[1], progress) if place else None
    return str(_parse(content, place[1]).get("status", "")) if place and content else ""


def _place(install: Install, experiment: Experiment) -> tuple[Store, str] | None:
    database = experiment.database
    if database is None:
        return None
    key = f"experiments/{experiment.key}"
    if posixpath.normpath(key) != key:
        log.warning("%s: its record is left alone: the key is no plain name in the database", experiment.key)
        return None
    access = Access(None, database.credentials, experiment.env, database.endpoint)
    store = open_store(install.site, database.type, access, "config.database")
    return store, store.location(database.endpoint, database.bucket or "studioml-meta", key)


def _parse(content: Content, location: str) -> dict[str, Any]:
    try:
        record = json.loads(content.data)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{location}: the client's record is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise StoreError(f"{location}: the client's record is not a JSON object")
    return record
