"""What a kind of queue must be able to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from hpcrunner.config.kinds import Option


@dataclass(frozen=True)
class Delivery:
    """One message, held for us until it is acknowledged or released."""

    queue: str
    payload: bytes
    receipt: Any
    """What the backend needs to acknowledge it; nobody else looks inside."""


class Queues(Protocol):
    """A broker, or a folder, with any number of queues. One instance per entry of the site's `queues`.

    Every method raises UnavailableError if the broker can't be reached: that says nothing about the queues.
    """

    options: ClassVar[Mapping[str, Option]]
    """The keys of an entry, besides `type`."""

    def __init__(self, options: Mapping[str, Any], install_id: str) -> None: ...

    def names(self) -> list[str]:
        """The queues that exist now, whether or not they hold messages."""
        ...

    def doubt(self, queue: str) -> str:
        """Why the absence of a queue, of which a message was taken, doesn't tell that it was deleted; empty if it
        does."""
        ...

    def receive(self, queue: str) -> Delivery | None:
        """The oldest message, taken so that no other runner gets it; None if there is none."""
        ...

    def acknowledge(self, delivery: Delivery) -> None:
        """Removes the message from the queue for good. Doing it twice is harmless."""
        ...

    def release(self, delivery: Delivery) -> None:
        """Gives the message back to its queue."""
        ...

    def peek(self, queue: str) -> Iterator[bytes]:
        """The messages, oldest first, without taking or changing anything."""
        ...
