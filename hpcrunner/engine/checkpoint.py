"""While the job runs: what it has made so far goes to the store, as often as its user wants and the site allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpcrunner.engine import record, scrape
from hpcrunner.engine.install import Install
from hpcrunner.engine.outbox import Outbox, Sent, read_sent
from hpcrunner.engine.transfers import Transfer
from hpcrunner.layout import RunDir
from hpcrunner.model import Run
from hpcrunner.wire.experiment import Experiment


@dataclass(frozen=True)
class Due:
    tags: tuple[str, ...]
    """What is to be saved now."""
    next_at: float | None
    """When the next one is to be saved, Unix seconds; None if none ever is."""


def due(experiment: Experiment, sent: Mapping[str, Sent], shortest: float, now: float) -> Due:
    """Every mutable artifact at its own `saveFrequency`, or at the experiment's `saveWorkspaceFrequency`; none more
    often than the site's `shortest` seconds."""
    tags, times = [], []
    for artifact in experiment.artifacts.values():
        wanted = artifact.save_frequency or experiment.save_frequency
        if not artifact.mutable or artifact.location is None or wanted is None:
            continue
        every = max(shortest, wanted)
        last = sent[artifact.tag].at if artifact.tag in sent else 0.0
        # A clock that was set back must not put it off for ever.
        if not now - every < last <= now:
            tags.append(artifact.tag)
            last = now
        times.append(last + every)
    return Due(tuple(tags), min(times, default=None))


def first(experiment: Experiment, shortest: float, now: float) -> float | None:
    """When a job that starts now is saved first."""
    return due(experiment, {}, shortest, now).next_at


def save(install: Install, experiment: Experiment, run: Run, run_dir: RunDir, transfer: Transfer,
         confirm: Callable[[], None]) -> None:
    """Uploads what is due and has changed, and notes the time in the client's record. Raises StoreError, OSError."""
    tags = due(experiment, read_sent(run_dir.sent_file), install.site.checkpoint_min, time.time()).tags
    if scrape.TAG in tags:
        transfer.begin(f"{experiment.key}: gathering its metadata")
        scrape.scrape(experiment, run, run_dir, is_over=False)
    if Outbox(install, experiment, run, run_dir, transfer, confirm).save(tags):
        confirm()
        record.update(install, experiment, {"time_last_checkpoint": time.time()}, transfer)
