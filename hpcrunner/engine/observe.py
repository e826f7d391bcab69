"""Looks at the world: jobs, exit files, images, the client's records. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from hpcrunner.engine.actions import Observations, Policy
from hpcrunner.engine.install import Install
from hpcrunner.engine.intake import note_gone_queues
from hpcrunner.engine.outcomes import wants_explanation
from hpcrunner.engine.plan import wanted_time
from hpcrunner.model import (
    UNKNOWN,
    WITH_SCHEDULER,
    Capacity,
    Exit,
    Image,
    ImageState,
    JobStatus,
    Phase,
    Place,
    Run,
    State,
)
from hpcrunner.schedulers.base import Job


def observe(install: Install, runs: list[Run], policy: Policy, stopped: frozenset[int] = frozenset()) -> Observations:
    images = {run.image for run in runs if run.state is State.STAGED and run.image}
    gone = note_gone_queues(install, runs)
    wanted = stopped | {run.id for run in runs if run.cancelling or run.queue in gone}
    builds = install.builds.jobs(image for image in images if "/" not in image)
    jobs, exits, states = _jobs(install, [run for run in runs if run.state in WITH_SCHEDULER], builds, wanted)
    over = [run for run in runs if run.id in jobs and jobs[run.id].phase is Phase.ENDED and run.id not in exits]
    return Observations(
        jobs=jobs,
        exits=exits,
        begun=frozenset(run.id for run in over if _has_begun(install, run)),
        never_started=frozenset(run.id for run in runs if run.id in exits and _never_started(install, run)),
        images=_images(install, images, states),
        places=_places(install, runs, policy),
        stopped=stopped,
        capacity=_capacity(install, runs),
        queues_gone=gone,
        moving=install.transfers.under_way,
    )


def read_exit(path: Path) -> Exit | None:
    """The exit file of a job: code, cause, start, end, host. None if there is none, or it makes no sense."""
    try:
        code, cause, started, finished, host = path.read_text(errors="replace").split()
        return Exit(int(code), cause, float(started), float(finished), host)
    except (OSError, ValueError):
        return None


def _jobs(install: Install, runs: list[Run], builds: list[Job], wanted: Collection[int]
          ) -> tuple[dict[int, JobStatus], dict[int, Exit], Mapping[str, JobStatus]]:
    """The spool first: who told his own end needs no scheduler. Then one look at the scheduler for all others."""
    if not runs and not builds:
        return {}, {}, {}
    spooled = _spooled(install)
    exits = {run.id: ended for run in runs if run.tag in spooled and (ended := _exit(install, run))}
    asked = [run for run in runs if run.id not in exits or wants_explanation(run, exits[run.id])]
    urgent = any(run.id in exits or run.state is State.SUBMITTING or run.id in wanted for run in asked)
    jobs = [*(install.job(run) for run in asked), *builds]
    states = install.scheduler.states(jobs, urgent=urgent or bool(builds)) if jobs else {}
    # The order matters: a job that is gone *before* its exit file is looked for, and has none, has none for good.
    for run in asked:
        looked = states.get(run.tag, UNKNOWN)
        if run.id not in exits and (looked.phase in (Phase.ENDED, Phase.GONE) or run.state is State.SUBMITTING):
            exits.update({run.id: ended} if (ended := _exit(install, run)) else {})
    return {run.id: states[run.tag] for run in asked if run.tag in states}, exits, states


def _exit(install: Install, run: Run) -> Exit | None:
    return read_exit(install.run_dir(run).exit_file)


def _spooled(install: Install) -> set[str]:
    """Tags of the jobs that said they ended: one look at a folder, however many jobs there are."""
    try:
        return {path.name for path in install.state.spool.iterdir()}
    except FileNotFoundError:
        return set()


def _has_begun(install: Install, run: Run) -> bool:
    """By the mark that its script leaves; a program that removed the folder has certainly begun, too."""
    status = install.run_dir(run).status
    return (status / "started").exists() or (status.parent.exists() and not status.exists())


def _never_started(install: Install, run: Run) -> bool:
    """Only a container leaves the mark, and only when it runs a program rather than its own run script."""
    run_dir = install.run_dir(run)
    return bool(install.container.env_prefix) and run.exit_code is None and not run_dir.program_mark.exists() \
        and install.experiment(run).filename is not None


def _images(install: Install, wanted: set[str], states: Mapping[str, JobStatus]) -> dict[str, Image]:
    # A path is the file that came with an experiment.
    found = {image: Image(ImageState.BUILT) for image in wanted if "/" in image}
    return {**found, **install.builds.look(wanted - found.keys(), states)}


def _places(install: Install, runs: Iterable[Run], policy: Policy) -> dict[int, Place | str]:
    now = time.time()
    return {run.id: install.scheduler.place(run.request, wanted_time(run, policy, now)[0])
            for run in runs if run.state in (State.RECEIVED, State.READY)}


def _capacity(install: Install, runs: list[Run]) -> Capacity | None:
    if any(run.state is State.READY for run in runs):
        return install.scheduler.capacity(gpus=any(run.request.gpus for run in runs))
    return None
