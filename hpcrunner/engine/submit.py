"""Handing a job to the scheduler, once: intent, submission, id. A lost answer is looked up, never repeated."""

from __future__ import annotations

import os
import time
from hashlib import sha256
from pathlib import Path

from hpcrunner.engine.install import Install, log
from hpcrunner.engine.jobfiles import job_files
from hpcrunner.engine.plan import Submit, backoff
from hpcrunner.errors import HpcrunnerError
from hpcrunner.layout import RunDir
from hpcrunner.model import Run, State
from hpcrunner.schedulers.base import Submission, SubmitUnclear
from hpcrunner.wire.message import Experiment

_TRIES = 5


def tag_of(install_id: str, run: Run) -> str:
    """The job's name: unique to one attempt of one generation of one run. 15 characters, safe everywhere."""
    from base64 import b32encode

    identity = f"{install_id}\0{run.id}\0{run.generation}\0{run.attempt}"
    return "hr" + b32encode(sha256(identity.encode()).digest())[:13].decode().lower()


def submit(install: Install, action: Submit) -> Run:
    """Raises MessageError if the job can't be rendered, HpcrunnerError if the scheduler refuses it for good."""
    run = action.run
    experiment = install.experiment(run)
    run_dir = install.run_dir(run)
    tag = tag_of(install.journal.install_id, run)
    script = render(install, action, experiment, run_dir, tag)
    run = install.journal.move(run, State.SUBMITTING, "handing it to the scheduler", tag=tag, gpu_ids=action.gpus,
                               attempt=run.attempt + 1)
    try:
        job_id = install.scheduler.submit(Submission(tag, script, run_dir.root, run.request, action.limit))
    except SubmitUnclear as error:
        log.warning("%s: %s; it is looked for before it is submitted again", run.key, error)
        return run
    except HpcrunnerError as error:
        tries = run.tries + 1
        if not error.transient or tries > _TRIES:
            raise
        log.warning("%s: not submitted (%s); tried again later", run.key, error)
        return submit_again(install, run, tries)
    return install.journal.move(run, State.SUBMITTED, f"submitted as job {job_id}", job_id=job_id)


def submit_again(install: Install, run: Run, tries: int = 0) -> Run:
    """Back to where it can be submitted: the scheduler certainly has no such job."""
    return install.journal.move(run, State.READY, "no such job; it will be submitted again", gpu_ids=(), tries=tries,
                                not_before=time.time() + backoff(tries) if tries else 0.0)


def render(install: Install, action: Submit, experiment: Experiment, run_dir: RunDir, tag: str) -> Path:
    """Writes the job script and the environment's file, down to the disk."""
    script, env = job_files(install.site, install.container, experiment, run_dir, action, tag, action.gpus)
    write_durably(run_dir.env_file, env, 0o600)
    write_durably(run_dir.script, script, 0o700)
    install.state.spool.mkdir(mode=0o700, parents=True, exist_ok=True)
    return run_dir.script


def write_durably(path: Path, text: str, mode: int) -> None:
    """The file is whole and on the disk before its name appears, and readable as `mode` says from the start."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:  # noqa: PTH123
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
