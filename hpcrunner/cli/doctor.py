"""`hpcrunner doctor`: what is not as it should be, each with its remedy."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator

from hpcrunner import plugins
from hpcrunner.cli.common import configuration
from hpcrunner.config.site import Site
from hpcrunner.engine.submit import prefix_of
from hpcrunner.errors import HpcrunnerError, NotFoundError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir
from hpcrunner.model import Run, State
from hpcrunner.schedulers.base import Scheduler
from hpcrunner.units import format_duration

_NEVER = "^(Partition(TimeLimit|NodeLimit|Config)|BadConstraints|Invalid(QOS|Account)|.*PerJob|.*WallDuration.*)"
"""Reasons of squeue(1) for waiting that only somebody's change ends."""


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0 if nothing was found, 1 otherwise."""
    site = configuration(arguments).site
    findings = list(_findings(site))
    if arguments.json:
        print(json.dumps([{"finding": finding, "remedy": remedy} for finding, remedy in findings], indent=1))
    else:
        for finding, remedy in findings:
            print(f"- {finding}\n  {remedy}")
        if not findings:
            print("nothing found")
    return int(bool(findings))


def _findings(site: Site) -> Iterator[tuple[str, str]]:
    try:
        with Journal(StateDir(site.state_dir).journal, read_only=True) as journal:
            install_id, runs = journal.install_id, journal.runs()
    except NotFoundError as error:
        print(f"hpcrunner: {error}", file=sys.stderr)
        return
    scheduler: Scheduler = plugins.load("schedulers", site.scheduler)(site)
    yield from _unclear(runs, scheduler.settles)
    yield from _hopeless(runs)
    try:
        live = scheduler.live(prefix_of(install_id))
    except HpcrunnerError as error:
        yield (f"{site.scheduler} can't be asked for its jobs: {error}",
               "jobs go on without; see whether the command works in your shell")
        return
    known = {name for run in runs for name in (run.job_name, run.tag) if name}
    for job in live:
        if job.name not in known:
            yield (f"job {job.job_id} ({job.name}, {job.state}) is of this install, and its journal doesn't know it",
                   f"it can't return results: cancel it, `scancel {job.job_id}`" if site.scheduler == "slurm"
                   else f"it can't return results: end process {job.job_id}")


def _hopeless(runs: list[Run]) -> Iterator[tuple[str, str]]:
    """Jobs that the scheduler took although no node of theirs will do."""
    for run in runs:
        if run.state is State.SUBMITTED and re.search(_NEVER, run.waiting):
            yield (f"{run.key}: job {run.job_id} waits for what won't come by itself: {run.waiting}",
                   "bring the site config in line with the partition's limits, or cancel it: "
                   f"`hpcrunner cancel {run.key}`")


def _unclear(runs: list[Run], settles: float) -> Iterator[tuple[str, str]]:
    now = time.time()
    for run in runs:
        waited = now - run.submitted_at
        if run.state is State.SUBMITTING and waited > 2 * settles + 60:
            yield (f"{run.key}: since {format_duration(waited)} it isn't known whether its job {run.job_name} exists",
                   f"look yourself; then `hpcrunner resolve {run.key} --job ID`, or `--no-job` if there is none")
