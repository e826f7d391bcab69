"""From the queues into the journal: journal first, then acknowledge."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hpcrunner.engine.install import Install, log
from hpcrunner.errors import HpcrunnerError, MessageError, UnavailableError
from hpcrunner.model import Request, Run
from hpcrunner.queues.base import Delivery, Queues

if TYPE_CHECKING:
    from hpcrunner.wire.experiment import Experiment


def intake(install: Install, limit: int | None) -> list[Run]:
    """Takes messages in fair turns, one from each queue, until all are empty or `limit` are taken."""
    taken: list[Run] = []
    install.unanswered = ""
    waiting = [(source, name) for source, names in _watched(install) for name in names]
    while waiting and (limit is None or len(taken) < limit):
        still = []
        for source, name in waiting:
            if limit is not None and len(taken) >= limit:
                break
            try:
                delivery = source.receive(name)
            except UnavailableError as error:
                log.warning("%s", error)
                install.unanswered = str(error)
                continue
            if delivery is None:
                continue
            if not taken:
                _ready_to_work(install, source, delivery)
            still.append((source, name))
            if run := _take(install, source, delivery):
                taken.append(run)
        waiting = still
    return taken


def _ready_to_work(install: Install, source: Queues, delivery: Delivery) -> None:
    """Nothing is taken by an install that can't run it: without its engine, say, the message goes back."""
    try:
        _ = install.scheduler, install.container
    except HpcrunnerError:
        source.release(delivery)
        raise


def _watched(install: Install) -> Iterator[tuple[Queues, list[str]]]:
    """The queues, and a note of those that came or went since the last look."""
    known = install.journal.queues_gone()
    for source, names in install.queues():
        for name in names:
            if known.get(name, 0.0) is not None:
                install.journal.set_queue_gone(name, None)
        yield source, names


def note_gone_queues(install: Install, runs: list[Run]) -> dict[str, float]:
    """Since when each queue of the active `runs` is gone. Only an answer of every broker counts: while one
    can't be asked, or all doubt their own answer, nothing is known to be gone."""
    wanted = {run.queue for run in runs}
    if not wanted:
        return {}
    there: set[str] = set()
    answered = 0
    for _, names in install.queues():
        answered += 1
        there.update(names)
    all_answered = answered == len(install.sources)
    known = install.journal.queues_gone()
    gone = {}
    for name in wanted:
        since = known.get(name)
        if name in there or (all_answered and _is_doubted(install, name)):
            if since is not None:
                install.journal.set_queue_gone(name, None)
        elif all_answered or since is not None:
            if since is None:
                since = time.time()
                install.journal.set_queue_gone(name, since)
            gone[name] = since
    return gone


def _is_doubted(install: Install, queue: str) -> bool:
    """Whether each broker doubts that a queue is gone: a message of it was taken from one of them."""
    doubts = [source.doubt(queue) for source in install.sources]
    if not all(doubts):
        return False
    if not install.unanswered:  # Once a tick is enough.
        install.unanswered = "; ".join(doubts)
        log.warning("%s", install.unanswered)
    return True


def request_of(experiment: Experiment) -> Request:
    asked = experiment.resources
    return Request(asked.cpus, asked.ram, asked.hdd, asked.gpus, asked.gpu_mem)


def expiry_of(experiment: Experiment, received_at: float) -> float | None:
    """When its lifetime is over; counted from receipt if the client didn't say when it was submitted."""
    if experiment.lifetime is None:
        return None
    return (experiment.time_added or received_at) + experiment.lifetime


def _take(install: Install, source: Queues, delivery: Delivery) -> Run | None:
    from hpcrunner.wire.message import parse, peek_key

    now = time.time()
    try:
        experiment = parse(delivery.payload)
    except MessageError as error:
        key = peek_key(delivery.payload) or f"(message without a key, {len(delivery.payload)} bytes)"
        dead_letter(install.state.dead_letters, delivery, str(error), now)
        run = install.journal.receive(delivery.queue, delivery.payload, key=key, rejected=str(error), now=now)
        log.error("%s: message from queue %s refused: %s", key, delivery.queue, error)
    else:
        run = install.journal.receive(
            delivery.queue, delivery.payload, key=experiment.key, request=request_of(experiment),
            max_duration=experiment.max_duration, expires_at=expiry_of(experiment, now), notes=experiment.warnings,
            now=now)
        if run is None:
            log.info("%s: came again from queue %s; it is known and runs once", experiment.key, delivery.queue)
        else:
            log.info("%s: taken from queue %s", experiment.key, delivery.queue)
    source.acknowledge(delivery)
    return run


def dead_letter(folder: Path, delivery: Delivery, reason: str, now: float) -> Path:
    """Keeps a message that can't be understood: `message` as it came, `reason.json` beside it.

    The folder's name comes from the content, so that a crash and a second try leave one letter.
    """
    from hashlib import sha256

    queue = re.sub(r"[^A-Za-z0-9_.-]", "_", delivery.queue)[:60]
    letter = folder / f"{queue}-{sha256(delivery.payload).hexdigest()[:16]}"
    letter.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, data in (
        ("message", delivery.payload),
        ("reason.json", json.dumps({"queue": delivery.queue, "at": now, "reason": reason}, indent=1).encode()),
    ):
        part = letter / f".{name}.{os.getpid()}"
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(letter / name)
    return letter
