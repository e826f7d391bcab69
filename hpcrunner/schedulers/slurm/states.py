"""Slurm's words for states, and the output of squeue and sacct. Pure.

Facts and their sources: squeue(1) and sacct(1), JOB STATE CODES; recorded outputs are in tests/data/slurm.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hpcrunner.model import Ending, Phase
from hpcrunner.units import parse_size

SEPARATOR = "\x1f"
"""No field that Slurm prints before the job's name holds it."""

QUEUE_FORMAT = SEPARATOR.join(("%i", "%T", "%r", "%N", "%Z", "%j"))
"""For squeue: id, state, reason, nodes, working directory, name. The name is last: it may hold anything in others'
jobs."""
ACCOUNT_FIELDS = ("JobID", "State", "ExitCode", "NodeList", "Submit", "Start", "End", "MaxRSS", "ReqMem", "JobName")
"""For sacct: all of them are known to every version from 20.11 on."""

_OURS = re.compile("hr[a-z2-7]{13}")
"""Names of hpcrunner's jobs, of whatever install."""
_PENDING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
                      "EXPEDITING"})
_RUNNING = frozenset({"RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING", "CONFIGURING", "RESIZING",
                      "STOPPED"})
_ENDED = {ending.value: ending for ending in Ending}
MAY_COME_BACK = frozenset({Ending.PREEMPTED, Ending.NODE_FAIL, Ending.BOOT_FAIL})
"""States of a run that Slurm may start once more under the same id (sbatch --requeue)."""


@dataclass(frozen=True)
class QueueRow:
    job_id: str
    """`45`, or `45_3` for an element of an array."""
    name: str
    phase: Phase
    ending: Ending | None
    word: str
    """The state as Slurm wrote it."""
    reason: str
    node: str
    folder: str = ""
    """Its working directory."""


@dataclass(frozen=True)
class AccountRow:
    job_id: str
    name: str
    phase: Phase
    ending: Ending | None
    word: str
    by: str
    """User id of who cancelled it."""
    code: int
    signal: int
    node: str
    submitted: str
    """As sacct prints times: 2026-01-31T12:00:00."""
    requested_memory: int
    peak_memory: int
    """Bytes, of its batch step; 0 if not known."""
    is_shared: bool = False
    """From the row of all elements that wait, which goes on naming those that have left it."""


def phase_of(word: str) -> tuple[Phase, Ending | None]:
    """What a state means: `CANCELLED by 1001` is the first word's. An unknown word is live: a new version of Slurm
    must not end anybody's job."""
    first = word.partition(" ")[0].rstrip("+")
    if first in _ENDED:
        return Phase.ENDED, _ENDED[first]
    return (Phase.PENDING, None) if first in _PENDING else (Phase.RUNNING, None)


def is_known(word: str) -> bool:
    return word.partition(" ")[0].rstrip("+") in _PENDING | _RUNNING | _ENDED.keys()


def parse_queue(text: str) -> Iterator[QueueRow]:
    """The rows of `squeue --noheader --states=all --format=QUEUE_FORMAT`. Lines that are none are left out."""
    for line in text.splitlines():
        fields = line.split(SEPARATOR, 5)
        if len(fields) != 6:
            continue
        job_id, word, reason, node, folder, name = (field.strip() for field in fields)
        phase, ending = phase_of(word)
        # Others' arrays may have a million elements, all in one row. Ours may have been renamed.
        is_ours = _OURS.fullmatch(name) or folder.endswith("/arrays")
        for one in expand(job_id) if is_ours else [job_id]:
            yield QueueRow(one, name, phase, ending, word, "" if reason == "None" else reason, _node(node), folder)


def parse_accounting(text: str) -> list[AccountRow]:
    """The rows of `sacct --noheader --parsable2 --duplicates --format=ACCOUNT_FIELDS`, one for each run of each job in
    the order of sacct; what their batch steps used is put into them."""
    rows: list[AccountRow] = []
    for line in text.splitlines():
        fields = line.split(SEPARATOR, len(ACCOUNT_FIELDS) - 1)
        if len(fields) != len(ACCOUNT_FIELDS):
            continue
        job_id, word, exit_code, node, submitted, _, _, peak, requested, name = (field.strip() for field in fields)
        job_id, _, step = job_id.partition(".")
        if step:
            _add_step(rows, job_id, step, peak)
            continue
        phase, ending = phase_of(word)
        code, _, signal = exit_code.partition(":")
        by = match[1] if (match := re.match(r"CANCELLED by (\d+)", word)) else ""
        rows += [AccountRow(one, name, phase, ending, word, by, _int(code), _int(signal), _node(node), submitted,
                            _size(requested), 0, one != job_id) for one in expand(job_id)]
    return rows


def expand(job_id: str) -> list[str]:
    """The elements that a row stands for: `45_[1,3-4%2]` is 45_1, 45_3 and 45_4. Other ids stand for themselves."""
    match = re.fullmatch(r"(\d+)_\[([0-9,:-]+)(?:%\d+)?\]", job_id) if "[" in job_id else None
    if not match:
        return [job_id]
    spans = [range(int(span[1]), int(span[2] or span[1]) + 1, int(span[3] or 1)) for part in match[2].split(",")
             if (span := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part))]
    return [f"{match[1]}_{index}" for span in spans for index in span]


def split_id(job_id: str) -> tuple[str, int | None]:
    """The job and the index in its array: `45_3` is 45 and 3."""
    base, _, index = job_id.partition("_")
    return base, int(index) if index.isdigit() else None


def newest(rows: Iterable[AccountRow]) -> AccountRow | None:
    """The last run of a job that was requeued: its rows have the same id, and later times of submission, in the order
    of sacct where those are equal. An element's own row counts more than one of many elements."""
    found = list(rows)
    return max(reversed(found), key=lambda row: (not row.is_shared, row.submitted), default=None)


def _add_step(rows: list[AccountRow], job_id: str, step: str, peak: str) -> None:
    if step == "batch" and rows and rows[-1].job_id == job_id:
        from dataclasses import replace

        rows[-1] = replace(rows[-1], peak_memory=_size(peak))


def _node(text: str) -> str:
    return "" if text in ("None assigned", "(null)", "n/a") else text


def _int(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _size(text: str) -> int:
    """Bytes, from sacct's `100M`, `2Gn` (per node), `500Mc` (per core: not comparable to a peak) and `12345K`."""
    try:
        return 0 if text.endswith("c") else parse_size(text.removesuffix("n") or "0")
    except ValueError:
        return 0
