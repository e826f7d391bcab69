"""Handing jobs to the scheduler, once: intent, submission, id. A lost answer is looked up, never repeated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from hashlib import sha256

from hpcrunner.engine.actions import Submit
from hpcrunner.engine.finish import release
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.jobfiles import job_files, submission_of
from hpcrunner.engine.plan import backoff
from hpcrunner.errors import HpcrunnerError
from hpcrunner.files import write_whole
from hpcrunner.layout import RunDir
from hpcrunner.model import Run, State
from hpcrunner.schedulers.base import Batch, NodesRefused, Submission, SubmitDeferred, SubmitUnclear

_TRIES = 5
_WRITERS = 4
_DEFERRED = 60.0
"""Seconds at most between two tries of what the scheduler does not take now."""


def prefix_of(install_id: str) -> str:
    """What the names of all jobs of one install begin with."""
    return "hr" + _base32(f"install\0{install_id}")[:4]


def tag_of(install_id: str, run: Run) -> str:
    """The job's name: unique to one attempt of one generation of one run. 15 characters, safe everywhere."""
    # Ids are given again by a journal that was restored from a backup; the message and its time are not.
    identity = f"{install_id}\0{run.id}\0{run.key}\0{run.received_at!r}\0{run.generation}\0{run.attempt}"
    return prefix_of(install_id) + _base32(identity)[:9]


def _base32(identity: str) -> str:
    from base64 import b32encode

    return b32encode(sha256(identity.encode()).digest()).decode().lower()


def submit(install: Install, actions: Sequence[Submit], failed: Callable[[Run, Exception], None]) -> int:
    """Submits all, equal ones in one call. Returns how many moved on.

    `failed` is told of runs that can't be rendered, or that the scheduler refuses for good.
    """
    ready = _render(install, actions, failed)
    if not ready:
        return 0
    batches = install.scheduler.batches([submission for _, submission in ready])
    runs = _intend(install, batches, {submission.tag: action for action, submission in ready})
    moved, said = 0, set[str]()
    for batch, answer in install.scheduler.submit(batches):
        members = [runs[one.tag] for one in batch.jobs]
        if isinstance(answer, HpcrunnerError):
            moved += _refused(install, members, answer, failed, said)
            continue
        with install.journal.together():
            for run, job_id in zip(members, answer, strict=True):
                install.journal.move(run, State.SUBMITTED, f"submitted as job {job_id}", job_id=job_id, waiting="")
        for run, job_id in zip(members, answer, strict=True):
            log.info("%s: submitted as job %s", run.key, job_id)
        moved += len(members)
    return moved


def _render(install: Install, actions: Sequence[Submit], failed: Callable[[Run, Exception], None]
            ) -> list[tuple[Submit, Submission]]:
    """Writes the files of all jobs. Making files takes a while where many users do, so it goes on beside rendering."""
    from concurrent.futures import Future, ThreadPoolExecutor

    def write(run_dir: RunDir, script: str, env: str) -> None:
        write_whole(run_dir.env_file, env, 0o600)
        write_whole(run_dir.script, script, 0o700)

    install.state.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    written: list[tuple[Submit, Submission, Future[None]]] = []
    with ThreadPoolExecutor(_WRITERS) as pool:
        for action in actions:
            try:
                run, run_dir = action.run, install.run_dir(action.run)
                if run.job_id:
                    release(run_dir, run)  # Of the job before, which had to leave its node.
                submission = submission_of(action, run_dir, tag_of(install.journal.install_id, run))
                script, env = job_files(install.site, install.container, install.scheduler, install.experiment(run),
                                        run_dir, action, submission)
                written.append((action, submission, pool.submit(write, run_dir, script, env)))
            except Exception as error:
                failed(action.run, error)
    ready = []
    for action, submission, future in written:
        try:
            future.result()
        except OSError as problem:
            failed(action.run, problem)
        else:
            ready.append((action, submission))
    return ready


def _intend(install: Install, batches: Sequence[Batch], actions: dict[str, Submit]) -> dict[str, Run]:
    """The intent, by which a crash is survived: what is about to be submitted, and under what name to look for it."""
    runs = {}
    with install.journal.together():
        for batch in batches:
            for index, one in enumerate(batch.jobs):
                action = actions[one.tag]
                run, note = action.run, action.place.note
                runs[one.tag] = install.journal.move(
                    run, State.SUBMITTING, "handing it to the scheduler", tag=one.tag, job_name=batch.name,
                    task=index if batch.is_array else None, partition=action.place.partition, gpu_ids=action.gpus,
                    job_id="", attempt=run.attempt + 1, submitted_at=time.time(), tries=run.tries,
                    notes=tuple(dict.fromkeys([*run.notes, *([note] if note else [])])))
    return runs


def _refused(install: Install, runs: Sequence[Run], error: HpcrunnerError, failed: Callable[[Run, Exception], None],
             said: set[str]) -> int:
    """What becomes of a batch that got no ids. Returns how many may be tried again now."""
    first = runs[0].key if len(runs) == 1 else f"{runs[0].key} and {len(runs) - 1} more"
    # Said once, not at every try and for every one of many.
    level = 10 if str(error) in said or runs[0].waiting == str(error) else 30
    said.add(str(error))
    if isinstance(error, SubmitUnclear):
        text = f"{error}; it is looked for before it is submitted again"
        log.warning("%s: %s", first, text)
        with install.journal.together():
            for run in runs:
                # It may have waited for its turn since the intent: only now the time begins in which it must appear.
                install.journal.note(run, text, submitted_at=time.time())
        return 0
    if isinstance(error, NodesRefused):
        text = f"{error}; no more nodes are avoided"
        log.warning("%s: %s", first, text)
        with install.journal.together():
            for run in runs:
                submit_again(install, install.journal.note(run, avoid=()), 0, text)
        return len(runs)
    if isinstance(error, SubmitDeferred) or (error.transient and runs[0].tries < _TRIES):
        at_once = isinstance(error, SubmitDeferred) and error.again_at_once
        when = "in smaller parts" if at_once else "later"
        log.log(level, "%s: not submitted: %s; tried again %s", first, error, when)
        with install.journal.together():
            for run in runs:
                submit_again(install, run, 0 if at_once else run.tries + 1, str(error))
        return len(runs) if at_once else 0
    for run in runs:
        failed(run, error)
    return len(runs)


def submit_again(install: Install, run: Run, tries: int = 0, reason: str = "no such job; it will be submitted again"
                 ) -> Run:
    """Back to where it can be submitted: the scheduler certainly has no such job."""
    wait = min(_DEFERRED, backoff(tries)) if tries else 0.0
    return install.journal.move(run, State.READY, reason, gpu_ids=(), tries=tries, waiting=reason if tries else "",
                                not_before=time.time() + wait if tries else 0.0)
