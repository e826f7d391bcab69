"""Looks at the world: jobs, exit files, images. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hpcrunner.engine.install import Install
from hpcrunner.engine.intake import note_gone_queues
from hpcrunner.engine.plan import Observations, Seen
from hpcrunner.model import WITH_SCHEDULER, Capacity, Exit, Image, ImageState, Run, State
from hpcrunner.schedulers.base import JobState

_SEEN = {JobState.PENDING: Seen.PENDING, JobState.RUNNING: Seen.RUNNING, JobState.UNKNOWN: Seen.UNKNOWN}


def observe(install: Install, runs: list[Run]) -> Observations:
    jobs, exits, found = _jobs(install, [run for run in runs if run.state in WITH_SCHEDULER])
    return Observations(
        jobs=jobs,
        exits=exits,
        never_started=frozenset(run.id for run in runs if run.id in exits and _never_started(install, run)),
        found=found,
        images=_images(install, runs),
        refusals=_refusals(install, runs),
        capacity=_capacity(install, runs),
        queues_gone=note_gone_queues(install, runs),
    )


def read_exit(path: Path) -> Exit | None:
    """The exit file of a job: code, cause, start, end, host. None if there is none, or it makes no sense."""
    try:
        code, cause, started, finished, host = path.read_text(errors="replace").split()
        return Exit(int(code), cause, float(started), float(finished), host)
    except (OSError, ValueError):
        return None


def _jobs(install: Install, runs: list[Run]) -> tuple[dict[int, Seen], dict[int, Exit], dict[int, str]]:
    if not runs:
        return {}, {}, {}
    # The order matters: a job that is gone *before* its exit file is looked for, and has none, has none for good.
    states = install.scheduler.states([install.job(run) for run in runs if run.state is not State.SUBMITTING])
    interrupted = [run for run in runs if run.state is State.SUBMITTING]
    names = install.scheduler.find([install.job(run) for run in interrupted]) if interrupted else {}
    ended = _spooled(install)
    exits = {run.id: exit for run in runs
             if (run.tag in ended or run.state is State.SUBMITTING or states.get(run.tag) is JobState.GONE)
             and (exit := read_exit(install.run_dir(run).exit_file))}
    jobs = {run.id: _SEEN.get(states.get(run.tag, JobState.UNKNOWN), Seen.GONE) for run in runs
            if run.state is not State.SUBMITTING}
    jobs.update({run.id: Seen.GONE for run in interrupted if run.tag not in names})
    return jobs, exits, {run.id: names[run.tag] for run in interrupted if run.tag in names}


def _spooled(install: Install) -> set[str]:
    """Tags of the jobs that said they ended: one look at a folder, however many jobs there are."""
    try:
        return {path.name for path in install.state.spool.iterdir()}
    except FileNotFoundError:
        return set()


def _never_started(install: Install, run: Run) -> bool:
    """Only a container leaves the mark, and only when it runs a program rather than its own run script."""
    run_dir = install.run_dir(run)
    return bool(install.container.env_prefix) and run.exit_code is None and not run_dir.program_mark.exists() \
        and install.experiment(run).filename is not None


def _images(install: Install, runs: Iterable[Run]) -> dict[str, Image]:
    wanted = {run.image for run in runs if run.state is State.STAGED and run.image}
    return {image: _image(install, image) for image in wanted}


def _image(install: Install, image: str) -> Image:
    if "/" in image:  # A file that came with the experiment.
        return Image(ImageState.BUILT)
    return install.images.look(image)


def _refusals(install: Install, runs: Iterable[Run]) -> dict[int, str]:
    refusals = {}
    for run in runs:
        if run.state is State.RECEIVED and (refusal := install.scheduler.refusal(run.request, run.max_duration or 0.0)):
            refusals[run.id] = refusal
    return refusals


def _capacity(install: Install, runs: list[Run]) -> Capacity | None:
    if any(run.state is State.READY for run in runs):
        return install.scheduler.capacity(gpus=any(run.request.gpus for run in runs))
    return None
