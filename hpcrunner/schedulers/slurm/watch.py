"""What became of jobs, told from one squeue for all of them, and from sacct for those that it can't explain.

Absence is not an end: a job counts as gone only after it was looked for several times, in both, with good answers.
"""

from __future__ import annotations

import pwd
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from hpcrunner.errors import UnavailableError
from hpcrunner.model import UNKNOWN, Ending, JobStatus, Phase
from hpcrunner.schedulers.base import Job
from hpcrunner.schedulers.slurm.client import Client, is_disabled
from hpcrunner.schedulers.slurm.options import SlurmOptions
from hpcrunner.schedulers.slurm.pacing import Memory, log, now
from hpcrunner.schedulers.slurm.states import MAY_COME_BACK, AccountRow, QueueRow, is_known, newest, split_id

_ACCOUNTING_LAG = 10.0
"""Seconds after which a run that Slurm requeues has its new row, in squeue or in sacct."""
_POLLS = 3
_RUNAWAY = 6 * 3600.0
"""Seconds after which a job that squeue does not have, and that sacct still has as live, is one whose end never reached
the accounting (sacctmgr show runaway)."""
_AHEAD = 600.0
"""Seconds that a time in the journal or in memory may be ahead; beyond that the clock was wrong when it was noted."""
_PREFIX = 6
"""Characters with which the names of all jobs of one install begin (hpcrunner.engine.submit.prefix_of)."""
_NAMELESS = "allocation"
"""The name that sacct shows while the record of a job's start is still on its way."""


@dataclass
class Snapshot:
    at: float
    rows: dict[str, QueueRow]
    arrays: set[str] = field(default_factory=set)
    """Ids of the arrays that have an element here."""
    by_name: dict[str, list[QueueRow]] = field(default_factory=lambda: defaultdict(list))
    accounts: dict[str, list[AccountRow]] = field(default_factory=lambda: defaultdict(list))
    has_accounts: bool = False
    """sacct answered, or there is no accounting to be asked."""


class Watch:
    def __init__(self, options: SlurmOptions, client: Client, memory: Memory, arrays: Path) -> None:
        self._options, self._client, self._memory, self._arrays = options, client, memory, arrays
        self._snapshot: Snapshot | None = None
        self._may_look = True
        self._judged: dict[str, JobStatus] = {}

    def begin(self) -> None:
        self._snapshot, self._may_look = None, True
        self._judged.clear()

    def statuses(self, jobs: Iterable[Job], *, urgent: bool) -> Mapping[str, JobStatus]:
        """The status of each job by tag; all unknown where Slurm was not asked now, or did not answer."""
        jobs = list(jobs)
        if jobs and self._may_look and self._memory.is_due(now(), self._options.poll_min, urgent=urgent):
            self._may_look = False
            self._look(jobs)
        if self._snapshot is None:
            return {job.tag: UNKNOWN for job in jobs}
        return {job.tag: self._status(job, self._snapshot) for job in jobs}

    def is_anothers(self, job: Job) -> bool:
        """Whether the job's id is another job's by now, as far as Slurm was looked at in this tick."""
        row = self._snapshot.rows.get(job.job_id) if self._snapshot else None
        return row is not None and not self._is_of(row, job)

    def _is_of(self, row: QueueRow, job: Job) -> bool:
        """Whether a row with the job's id is the job's: ids are used again, and names may be changed (by a plugin of
        the site, by `scontrol update`). No other job has its working directory; all arrays have the same one."""
        folder = job.run_dir if job.task is None else self._arrays
        is_renamed = row.folder == str(folder) and row.name[:_PREFIX] != job.name[:_PREFIX]
        return row.name == job.name or is_renamed

    def _look(self, jobs: list[Job]) -> None:
        memory, at = self._memory, now()
        try:
            rows = self._client.queue()
        except UnavailableError as error:
            memory.controller.failed(now(), str(error))
            return
        seen = Snapshot(at, {row.job_id: row for row in rows})
        for row in rows:
            seen.by_name[row.name].append(row)
            base, task = split_id(row.job_id)
            if task is not None:
                seen.arrays.add(base)
        for word in sorted({row.word for row in rows if not is_known(row.word)}):
            log.warning("squeue says %s, which this hpcrunner doesn't know; such a job counts as running", word)
        text = "\n".join(f"{row.job_id} {row.word}" for row in rows)
        memory.polled(now(), sha256(text.encode()).hexdigest(), self._options.poll_min, self._options.poll_max)
        self._snapshot = seen
        self._ask_accounting(jobs, seen)
        memory.forget(at)

    def _ask_accounting(self, jobs: list[Job], seen: Snapshot) -> None:
        """sacct for what squeue can't tell: jobs that left it, and by whom or how those ended that it has."""
        memory = self._memory
        if memory.has_accounting is False:
            seen.has_accounts = True
            return
        ids: set[str] = set()
        names: set[str] = set()
        since = seen.at
        for job in jobs:
            row = self._row_of(job, seen)
            if row is None and _since(job, seen) < seen.at:
                # The array's own id brings all its elements, and the one row of an array that was cancelled whole.
                (ids if job.job_id else names).add(split_id(job.job_id)[0] or job.name)
            elif row is not None and row.ending in (Ending.FAILED, Ending.CANCELLED, Ending.OUT_OF_MEMORY):
                ids.add(split_id(row.job_id)[0])
            else:
                continue
            since = min(since, _since(job, seen))
        if not ids and not names:
            return
        if memory.database.is_blocked(now()):
            return
        try:
            for account in self._client.accounting(ids=sorted(ids), names=sorted(names), since=since - 300):
                seen.accounts[account.job_id].append(account)
        except UnavailableError as error:
            if is_disabled(error) and memory.has_accounting is None:
                memory.has_accounting, seen.has_accounts = False, True
                log.info("this Slurm keeps no accounting: squeue alone tells what became of jobs")
            else:
                memory.database.failed(now(), str(error))
            return
        memory.has_accounting = seen.has_accounts = True
        memory.database.worked(now())

    def _status(self, job: Job, seen: Snapshot) -> JobStatus:
        if job.tag not in self._judged:
            self._judged[job.tag] = self._judge(job, seen)
        return self._judged[job.tag]

    def _judge(self, job: Job, seen: Snapshot) -> JobStatus:
        row = self._row_of(job, seen)
        if row is not None and (row.phase is not Phase.ENDED or row.job_id == job.job_id):
            self._memory.absent.pop(job.tag, None)
        if row is not None and row.phase is not Phase.ENDED:
            self._memory.ended.pop(job.tag, None)
            return _status_of(job, row)
        if _since(job, seen) >= seen.at:
            return UNKNOWN
        # Maybe another job of the same generation runs instead: its submission had no answer.
        claim = _claim(job)
        if claim is not None and claim.job_id != job.job_id:
            return claim
        job_id = job.job_id or (row.job_id if row else "")
        of_id = seen.accounts.get(job_id, [])
        accounts = [account for account in of_id if account.name in (job.name, _NAMELESS)]
        accounts = accounts or (of_id if claim else [])  # It was renamed, and it has its run directory.
        if row is not None and row.job_id != job_id and any(not account.is_shared for account in accounts):
            row = None  # The array's bare id is not for an element that has a record of its own.
        # A job that has just begun is called `allocation` for some seconds; what has the array's bare id is then its
        # last element, and otherwise what was cancelled before it became an element.
        accounts = accounts or [account for account in seen.accounts.get(split_id(job_id)[0], ())
                                if account.name == job.name]
        if row is not None:
            return self._ended(job, _status_of(job, row), newest(accounts), seen)
        if not job.job_id:
            named = [account for rows in seen.accounts.values() for account in rows
                     if account.name == job.name and split_id(account.job_id)[1] == job.task]
            if found := newest(named):
                return self._accounted(job, found)
            return self._never_seen(job, seen)
        return self._absent(job, newest(accounts), seen)

    def _row_of(self, job: Job, seen: Snapshot) -> QueueRow | None:
        """By id, if it is the job's row. By name for one whose id nobody knows."""
        if job.job_id:
            base, task = split_id(job.job_id)
            # Elements that were cancelled while they waited, all that was left of an array, have the array's bare id.
            row = seen.rows.get(job.job_id) or (seen.rows.get(base) if task is not None else None)
            return row if row is not None and self._is_of(row, job) else None
        # Not the parts of a heterogeneous job, `45+0`: none of ours is one.
        rows = [row for row in seen.by_name.get(job.name, ())
                if split_id(row.job_id)[1] == job.task and split_id(row.job_id)[0].isdigit()]
        order = (Phase.RUNNING, Phase.PENDING, Phase.ENDED)
        return min(rows, key=lambda row: (order.index(row.phase), int(split_id(row.job_id)[0])), default=None)

    def _never_seen(self, job: Job, seen: Snapshot) -> JobStatus:
        """A job whose submission had no answer. Once is not enough: a controller that hung answers squeue, maybe,
        before it looks at the submission that has waited with it."""
        if not seen.has_accounts:
            return UNKNOWN
        first, _ = self._memory.absent.setdefault(job.tag, [seen.at, 0])
        return JobStatus(Phase.GONE, seen_at=seen.at) if seen.at >= first + self._options.settle else UNKNOWN

    def _absent(self, job: Job, account: AccountRow | None, seen: Snapshot) -> JobStatus:
        """A job that squeue no longer has."""
        if not seen.has_accounts:
            return UNKNOWN
        held = self._memory.absent.setdefault(job.tag, [seen.at, 0])
        if held[0] > seen.at + _AHEAD:
            held[:] = [seen.at, 0]
        held[1] += 1
        first, polls = held
        waited = seen.at - first
        is_patient = polls >= 2 and waited >= min(_ACCOUNTING_LAG, self._options.lost_after)
        # Whoever cancels a job is named. Slurm's accounting itself writes off what a new slurmctld doesn't know.
        is_forgotten = account is not None and account.ending is Ending.CANCELLED and not (account.by
                                                                                         or job.is_cancelled)
        if account is not None and account.phase is Phase.ENDED and not is_forgotten:
            if account.ending in MAY_COME_BACK and not is_patient:
                return UNKNOWN
            return self._accounted(job, account)
        if is_patient and _has_vanished(job, account, seen):
            return JobStatus(Phase.ENDED, job.job_id, job.name, job.task, "CANCELLED while it waited",
                             Ending.CANCELLED, seen_at=first)
        is_live = account is not None and account.phase is not Phase.ENDED and not account.is_shared
        if is_live and waited < _RUNAWAY:
            return UNKNOWN  # The two contradict each other, and only one of them says that it is over.
        if is_patient and (job.is_cancelled or (polls >= _POLLS and waited >= self._options.lost_after)):
            return JobStatus(Phase.GONE, reason="slurmctld lost its state, and the job with it" if is_forgotten else "")
        return UNKNOWN

    def _accounted(self, job: Job, account: AccountRow) -> JobStatus:
        status = JobStatus(account.phase, job.job_id or account.job_id, job.name, job.task, account.word,
                           account.ending, node=account.node)
        return self._ended(job, status, account, None) if account.phase is Phase.ENDED else status

    def _ended(self, job: Job, status: JobStatus, account: AccountRow | None, seen: Snapshot | None) -> JobStatus:
        """With what only the accounting knows: who cancelled it, its exit code, the memory that it used."""
        at = self._memory.ended.setdefault(job.tag, now())
        is_late = seen is not None and seen.at - at < _ACCOUNTING_LAG
        # Without the name the memory that it asked for is missing too. Another ending is that of an earlier run.
        if account is None or account.ending is not status.ending or (account.name == _NAMELESS and is_late):
            wants = status.ending in (Ending.CANCELLED, Ending.FAILED) and self._memory.has_accounting
            if wants and is_late:
                return UNKNOWN  # The accounting is some seconds behind.
            return replace(status, seen_at=at)
        ending = status.ending
        is_over = account.requested_memory and account.peak_memory >= account.requested_memory
        if ending is Ending.FAILED and account.signal == 9 and is_over:
            # JobAcctGatherParams=OverMemoryKill: Slurm kills it, and says no more than that it failed.
            ending = Ending.OUT_OF_MEMORY
        return replace(status, ending=ending, by=_user(account.by), code=account.code, signal=account.signal,
                       node=account.node or status.node, peak_memory=account.peak_memory, seen_at=at)


def _since(job: Job, seen: Snapshot) -> float:
    return job.since if job.since < seen.at + _AHEAD else 0.0


def _status_of(job: Job, row: QueueRow) -> JobStatus:
    reason = row.word if row.phase is Phase.ENDED else row.reason
    return JobStatus(row.phase, job.job_id or row.job_id, job.name, job.task, reason, row.ending, node=row.node)


def _claim(job: Job) -> JobStatus | None:
    """The job that claimed the run directory, if one did (see templates/sbatch.sh.j2)."""
    try:
        _, host, job_id, name = (job.run_dir / "status" / "owner").read_text().split()
    except (OSError, ValueError):
        return None
    return JobStatus(Phase.RUNNING, job_id, name, split_id(job_id)[1], node=host)


def _has_vanished(job: Job, account: AccountRow | None, seen: Snapshot) -> bool:
    """Whether it is an element of an array that was cancelled by itself while it waited. Slurm has no trace of it, but
    that sacct's row of those that wait may name it until the next of them begins."""
    base, task = split_id(job.job_id)
    if task is None or job.is_running or (job.run_dir / "status" / "owner").exists():
        return False
    if account is not None:
        return account.is_shared and base in seen.arrays
    return base in seen.arrays or any(split_id(known)[0] == base for known in seen.accounts)


def _user(uid: str) -> str:
    if not uid:
        return ""
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except KeyError:
        return f"user {uid}"
