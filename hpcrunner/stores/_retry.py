"""What passes by itself, and trying again until it has."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from hpcrunner.errors import StoreError
from hpcrunner.stores.base import Progress, unwatched

T = TypeVar("T")
TRIES = 8
"""In a row without any progress; with the pauses between them half a minute, in which most servers restart."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.3, 10.0
_SLICE = 0.5
"""Seconds of a pause between which it is asked whether to go on at all."""
_WORTH = 64 * 2**10
"""Bytes that a try must have moved to be no failure: a server that drips holds nobody for ever."""


class Weather(StoreError):
    """A busy server, a lost connection: worth trying again at once."""

    transient = True


def persist(call: Callable[[], T], progress: Progress = unwatched, moved: Callable[[], int] = lambda: 0) -> T:
    """Calls until there is no Weather. Whatever moves `moved` (bytes) on starts the count of tries anew.

    `progress` is asked before each try and during the pauses: what a process did that has lost its install meanwhile
    would be done over the work of another. Raises what it raises, and what `call` raises; the Weather of the last try.
    """
    tries, before = 0, moved()
    while True:
        progress(0)
        try:
            return call()
        except Weather:
            if moved() - before >= _WORTH:
                tries, before = 0, moved()
            tries += 1
            if tries == TRIES:
                raise
        # Not all clients of a server that was away come back at the same instant.
        pause = min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE) * random.uniform(0.75, 1.25)
        end = time.monotonic() + pause
        while (rest := end - time.monotonic()) > 0:
            time.sleep(min(rest, _SLICE))
            progress(0)
