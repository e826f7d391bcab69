"""Sends the artifacts of one run to their store, and remembers what the store has.

What was sent is noted in a file of the run directory, and a packed tar stays there until the store has confirmed it:
after a crash, or a failure of the store, nothing is packed or sent twice. Runs in a thread, knows no journal.

Whether a checkpoint is worth sending is told by names, sizes and times alone. That is not enough for results: what a
program writes through a mapping shows no new time until it is flushed, and network file systems show times late. So at
the end everything is packed, and only a tar that the store has already, byte by byte, is not sent.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hpcrunner.artifacts.digest import digest_of
from hpcrunner.artifacts.fingerprint import fingerprint
from hpcrunner.artifacts.pack import compression_for, pack
from hpcrunner.artifacts.style import TarStyle
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.transfers import Transfer
from hpcrunner.errors import RefusedError, StoreError
from hpcrunner.files import write_whole
from hpcrunner.layout import RunDir
from hpcrunner.model import Run
from hpcrunner.units import format_size
from hpcrunner.wire.experiment import Artifact, Experiment
from hpcrunner.wire.message import safe_name

_SUBMITTING = 5.0
"""Seconds. The client's completion service takes a result for its own if that is younger than its submission, whose
time it notes once the broker has confirmed it, for which it looks once a second. A quick job is over before that."""
_SKEW = 3600.0
"""Seconds by which a client's clock may be ahead of ours and its results still count."""
_PACKS = 2
"""So often a folder that changes while it is packed is packed again, before it is taken as it comes."""


@dataclass(frozen=True)
class Sent:
    """What the store has of an artifact."""

    at: float
    """When it was last looked at, Unix seconds."""
    digest: str = ""
    """Of the files as they were then (`artifacts.fingerprint`); empty if they may have changed unseen."""
    tar: str = ""
    """SHA-256 of the tar that the store has; empty if that isn't certain."""
    is_final: bool = False
    is_packed: bool = False
    """The tar that lies there is the final one, which the store has not confirmed yet."""
    left_out: tuple[str, ...] = ()
    """What the final tar lacks, and why."""


class Outbox:
    """`confirm` raises BusyError if another process has taken over: asked before anything is sent."""

    def __init__(self, install: Install, experiment: Experiment, run: Run, run_dir: RunDir, transfer: Transfer,
                 confirm: Callable[[], None]) -> None:
        self._install, self._experiment, self._run_dir = install, experiment, run_dir
        submitted_at = max(run.received_at, min(experiment.time_added or 0.0, run.received_at + _SKEW))
        self._not_before = submitted_at + _SUBMITTING
        self._transfer, self._confirm = transfer, confirm
        self.sent = read_sent(run_dir.sent_file)
        run_dir.transfer.mkdir(mode=0o700, exist_ok=True)
        self._style = TarStyle.NEW
        with suppress(ValueError, FileNotFoundError):  # It was never staged; or the program has written there.
            self._style = TarStyle(run_dir.style_file.read_text())

    def artifacts(self) -> Iterator[tuple[Artifact, Path]]:
        """The mutable artifacts that exist. Raises OSError if that can't be told."""
        for artifact in self._experiment.artifacts.values():
            source = self._run_dir.experiment / artifact.tag
            if not artifact.mutable:
                continue
            with suppress(FileNotFoundError, NotADirectoryError):
                source.lstat()
                yield artifact, source

    def save(self, tags: Iterable[str]) -> bool:
        """A checkpoint of these, while the program writes to them. Whether anything had changed. Raises StoreError."""
        wanted, changed = set(tags), False
        for artifact, source in self.artifacts():
            if artifact.tag not in wanted or artifact.location is None:
                continue
            before, at = fingerprint(source), time.time()
            known = self.sent.get(artifact.tag, Sent(0.0))
            tar = known.tar
            if known.digest != before.digest:
                packed = self._packed(artifact.tag)
                _check_space(packed, before.size)
                for _ in range(_PACKS):
                    before, at = fingerprint(source), time.time()
                    self._pack(artifact, source, packed)
                    if fingerprint(source).digest == before.digest:
                        break
                tar = digest_of(packed)
                # Once it is being sent, nobody knows which one the store has.
                self._note(artifact.tag, Sent(known.at))
                self._put(artifact, packed)
                changed = True
            self._remember(artifact.tag, Sent(at, before.digest if before.is_settled(at) else "", tar))
        return changed

    def finish(self, *, is_last_try: bool) -> list[str]:
        """All of them as they are now; nothing writes to them any more.

        Returns what can't be sent for good, and what of it could not be read. Raises StoreError or OSError for what may
        be sent later, once all others are sent; with `is_last_try` that is not sent for good either. No refusal of a
        store counts as its last word before: quotas are raised, keys and buckets mended. What this site itself refuses
        is never sent.
        """
        problems: list[str] = []
        later: StoreError | OSError | None = None
        for artifact, source in self.artifacts():
            tag = artifact.tag
            if artifact.location is None:
                problems.append(f"{tag}: the message says nowhere where to put it")
                continue
            try:
                if not (known := self.sent.get(tag, Sent(0.0))).is_final:
                    self._finish(artifact, source, known)
            except (StoreError, OSError) as error:
                if is_last_try or isinstance(error, RefusedError):
                    problems.append(f"{tag}: {error}")
                else:
                    later = later or error
            problems += [f"{tag}: {text}" for text in (self.sent[tag].left_out if tag in self.sent else ())]
        if later is not None:
            raise later
        return problems

    def _finish(self, artifact: Artifact, source: Path, known: Sent) -> None:
        packed = self._packed(artifact.tag)
        if not (known.is_packed and packed.exists()):
            left_out = self._pack(artifact, source, packed)
            known = Sent(time.time(), tar=known.tar, is_packed=True, left_out=left_out)
            self._note(artifact.tag, known)
        if not known.tar or digest_of(packed) != known.tar:
            self._note(artifact.tag, replace(known, tar=""))
            self._put(artifact, packed)
        self._remember(artifact.tag, replace(known, is_final=True, is_packed=False))

    def _pack(self, artifact: Artifact, source: Path, packed: Path) -> tuple[str, ...]:
        """Returns what had to be left out."""
        self._transfer.begin(f"{self._experiment.key}: packing {artifact.tag}")
        part = packed.with_name(f".{packed.name}.pack")
        left_out = pack(source, part, self._style, compression_for(artifact.key or artifact.location or ""),
                        not_before=self._not_before if artifact.tag == "retval" else 0.0, check=self._transfer.check)
        for text in left_out:
            log.warning("%s: %s: %s", self._experiment.key, artifact.tag, text)
        part.replace(packed)
        return tuple(left_out)

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


def _check_space(packed: Path, size: int) -> None:
    """Raises StoreError if a checkpoint's tar would take most of what is free where the job itself writes."""
    free = shutil.disk_usage(packed.parent).free
    if 2 * size > free:
        raise StoreError(f"{packed}: its tar would take {format_size(size)}, and the job needs what is free there, "
                         f"{format_size(free)}", transient=True)


def read_sent(path: Path) -> dict[str, Sent]:
    """By tag; empty if nothing is known."""
    try:
        return {str(tag): Sent(float(one["at"]), str(one["digest"]), str(one["tar"]), one["is_final"] is True,
                               one["is_packed"] is True, tuple(map(str, one["left_out"])))
                for tag, one in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
