"""What passes by itself, and trying again until it has."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from hpcrunner.errors import StoreError

T = TypeVar("T")
TRIES = 8
"""In a row without any progress; with the pauses between them half a minute, in which most servers restart."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.3, 10.0


class Weather(StoreError):
    """A busy server, a lost connection: worth trying again at once."""

    transient = True


def persist(call: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
    """Calls until there is no Weather. Whatever moves `progress` on starts the count of tries anew.

    Raises what `call` raises; the Weather of the last try.
    """
    tries, before = 0, progress()
    while True:
        try:
            return call()
        except Weather:
            if progress() != before:
                tries, before = 0, progress()
            tries += 1
            if tries == TRIES:
                raise
        # Not all clients of a server that was away come back at the same instant.
        time.sleep(min(_FIRST_PAUSE * 2 ** (tries - 1), _LONGEST_PAUSE) * random.uniform(0.75, 1.25))
