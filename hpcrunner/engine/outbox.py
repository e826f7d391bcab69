"""Sends the artifacts of one run to their store, and remembers what the store has.

What was sent is noted in a file of the run directory, and a packed tar stays there until the store has confirmed it:
after a crash, or a failure of the store, nothing is packed or sent twice. Runs in a thread, knows no journal.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcrunner.artifacts.fingerprint import fingerprint
from hpcrunner.artifacts.pack import compression_for, pack
from hpcrunner.artifacts.style import TarStyle
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.transfers import Transfer
from hpcrunner.errors import StoreError
from hpcrunner.files import write_whole
from hpcrunner.layout import RunDir
from hpcrunner.wire.experiment import Artifact, Experiment
from hpcrunner.wire.message import safe_name

_PACKS = 3
"""So often a folder that changes while it is packed is packed again, before it is taken as it comes."""


@dataclass(frozen=True)
class Sent:
    """What the store has of an artifact."""

    at: float
    """When it was last looked at, Unix seconds."""
    digest: str = ""
    """Of the files as they were then (`artifacts.fingerprint`); empty if they may have changed unseen."""
    is_final: bool = False
    is_packed: bool = False
    """The tar that lies there is the final one, which the store has not confirmed yet."""


class Outbox:
    """`confirm` raises BusyError if another process has taken over: asked before anything is sent."""

    def __init__(self, install: Install, experiment: Experiment, run_dir: RunDir, transfer: Transfer,
                 confirm: Callable[[], None]) -> None:
        self._install, self._experiment, self._run_dir = install, experiment, run_dir
        self._transfer, self._confirm = transfer, confirm
        self.sent = read_sent(run_dir.sent_file)
        run_dir.transfer.mkdir(mode=0o700, exist_ok=True)
        try:
            self._style = TarStyle(run_dir.style_file.read_text())
        except (OSError, ValueError):
            self._style = TarStyle.NEW

    def artifacts(self) -> Iterator[tuple[Artifact, Path]]:
        """The mutable artifacts that exist."""
        for artifact in self._experiment.artifacts.values():
            source = self._run_dir.experiment / artifact.tag
            if artifact.mutable and os.path.lexists(source):
                yield artifact, source

    def save(self, tags: Iterable[str]) -> bool:
        """A checkpoint of these, while the program writes to them. Whether anything had changed. Raises StoreError."""
        wanted, changed = set(tags), False
        for artifact, source in self.artifacts():
            if artifact.tag not in wanted or artifact.location is None:
                continue
            before, at = fingerprint(source), time.time()
            known = self.sent.get(artifact.tag)
            if known is None or known.digest != before.digest:
                packed = self._packed(artifact.tag)
                for _ in range(_PACKS):
                    before, at = fingerprint(source), time.time()
                    self._pack(artifact, source, packed)
                    if fingerprint(source).digest == before.digest:
                        break
                self._put(artifact, packed)
                changed = True
            self._remember(artifact.tag, Sent(at, before.digest if before.is_settled(at) else ""))
        return changed

    def finish(self, *, is_last_try: bool) -> list[str]:
        """All that have not been sent as they are now; nothing writes to them any more.

        Returns what can't be sent for good. Raises StoreError (transient) or OSError for what may be sent
        later, once all others are sent; with `is_last_try` that is not sent for good either.
        """
        problems: list[str] = []
        later: StoreError | OSError | None = None
        for artifact, source in self.artifacts():
            if artifact.location is None:
                problems.append(f"{artifact.tag}: the message says nowhere where to put it")
                continue
            known = self.sent.get(artifact.tag)
            if known and (known.is_final or (known.digest and known.digest == fingerprint(source).digest)):
                continue
            packed = self._packed(artifact.tag)
            try:
                if not (known and known.is_packed and packed.exists()):
                    self._pack(artifact, source, packed)
                    self._note(artifact.tag, Sent(time.time(), is_packed=True))
                self._put(artifact, packed)
                self._remember(artifact.tag, Sent(time.time(), is_final=True))
            except (StoreError, OSError) as error:
                if not is_last_try and (isinstance(error, OSError) or error.transient):
                    later = later or error
                else:
                    problems.append(f"{artifact.tag}: {error}")
        if later is not None:
            raise later
        return problems

    def _pack(self, artifact: Artifact, source: Path, packed: Path) -> None:
        self._transfer.begin(f"{self._experiment.key}: packing {artifact.tag}")
        part = packed.with_name(f".{packed.name}.pack")
        for warning in pack(source, part, self._style, compression_for(artifact.key or artifact.location or "")):
            log.warning("%s: %s: %s", self._experiment.key, artifact.tag, warning)
        part.replace(packed)

    def _put(self, artifact: Artifact, packed: Path) -> None:
        assert artifact.location is not None
        self._confirm()
        self._transfer.begin(f"{self._experiment.key}: sending {artifact.tag}", packed.stat().st_size)
        self._install.store(self._experiment, artifact).put(packed, artifact.location, self._transfer)

    def _packed(self, tag: str) -> Path:
        """One name for checkpoints and results: by what an interrupted one leaves there, the next one has the store
        forget its parts."""
        return self._run_dir.transfer / f"{safe_name(tag)}.tar"

    def _remember(self, tag: str, sent: Sent) -> None:
        """First noted, then the tar is removed: after a crash in between it is only a waste of space."""
        self._note(tag, sent)
        self._packed(tag).unlink(missing_ok=True)

    def _note(self, tag: str, sent: Sent) -> None:
        self.sent[tag] = sent
        write_whole(self._run_dir.sent_file, json.dumps({tag: asdict(one) for tag, one in self.sent.items()}), 0o600)


def read_sent(path: Path) -> dict[str, Sent]:
    """By tag; empty if nothing is known."""
    try:
        return {str(tag): Sent(float(one["at"]), str(one["digest"]), one["is_final"] is True, one["is_packed"] is True)
                for tag, one in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
