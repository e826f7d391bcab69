"""`hpcrunner doctor`: what is not as it should be, each with its remedy."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping

from hpcrunner import plugins
from hpcrunner.cli.common import configuration
from hpcrunner.config.site import Site
from hpcrunner.engine import builds
from hpcrunner.engine.submit import prefix_of
from hpcrunner.errors import HpcrunnerError, NotFoundError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir
from hpcrunner.model import ACTIVE, Run, State
from hpcrunner.schedulers.base import LiveJob, Scheduler
from hpcrunner.units import format_duration

_NEVER = (r"^(Partition(TimeLimit|NodeLimit|Config)|BadConstraints|Invalid(QOS|Account)|(Account|QOS)NotAllowed"
          r"|QOSMin|.*(PerJob|PerNode|WallDuration)|Job's (account|QOS) not permitted)")
"""Reasons of squeue(1) for waiting that only somebody's change ends."""
_REFUSED = r"Slurm refuses what the site config says|can't be started"
"""The same of submissions (see schedulers/slurm/answers.py)."""
_ENDING = 300.0
"""Seconds that a job may go on after its run is over, for Slurm's KillWait and the site's epilog."""

Finding = tuple[str, str]


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


def _findings(site: Site) -> Iterator[Finding]:
    scheduler: Scheduler = plugins.load("schedulers", site.scheduler)(site)
    try:
        journal = Journal(StateDir(site.state_dir).journal, read_only=True)
    except NotFoundError as error:
        # Before the first tick all that can be told is whether the scheduler answers.
        print(f"hpcrunner: {error}", file=sys.stderr)
        yield from _live(site, scheduler, "hr", [])
        return
    with journal:
        # What is written down before it is submitted is looked at after the jobs; what is removed when a job is over,
        # before them too.
        prefix = prefix_of(journal.install_id)
        building = {mark["name"]: digest for digest, mark in builds.marks(site.image_dir)}
        live: list[LiveJob] = []
        yield from _live(site, scheduler, "h", live)
        runs = journal.runs(State)
        building.update((mark["name"], digest) for digest, mark in builds.marks(site.image_dir))
        active = [run for run in runs if run.state in ACTIVE]
        yield from _unclear(active, scheduler.settles)
        yield from _hopeless(active)
        yield from _refused(active, {run.id: journal.events(run)[-1][2] for run in active if run.tries})
    ours = [job for job in live if job.name.startswith((prefix, builds.prefix_of(prefix)))]
    yield from _unknown(ours, runs, building, site.scheduler)
    for problem in scheduler.problems():
        yield problem, "jobs go on, and it is asked again; if it stays so, tell whoever looks after the cluster"


def _live(site: Site, scheduler: Scheduler, prefix: str, found: list[LiveJob]) -> Iterator[Finding]:
    """Fills `found` with the jobs that the scheduler has; a finding if it can't be asked."""
    try:
        found += scheduler.live(prefix)
    except HpcrunnerError as error:
        yield (f"{site.scheduler} can't be asked for its jobs: {error}",
               "jobs go on without; see whether the command works in your shell")


def _unknown(live: Iterable[LiveJob], runs: Iterable[Run], building: Mapping[str, str], scheduler: str
             ) -> Iterator[Finding]:
    """Jobs that nobody waits for. `building`: the images that jobs are known to build, by name of the job."""
    # The elements of an array have one name; as long as one of them goes on, the name tells nothing of the others.
    known = {name: run for run in sorted(runs, key=lambda run: run.state in ACTIVE)
             for name in (run.job_name, run.tag) if name}
    wanted = {run.image for run in runs if run.state in ACTIVE}
    now = time.time()
    for job in live:
        run = known.get(job.name)
        if job.state == "COMPLETING":
            continue  # It is being cleaned up, and its run went on or is over.
        what = f"job {job.job_id} ({job.name}, {job.state}) is of "
        cure = f"cancel it, `scancel {job.job_id}`" if scheduler == "slurm" else f"end process {job.job_id}"
        if image := building.get(job.name):
            if job.state == "PENDING" and image not in wanted:
                yield f"{what}an image that no experiment wants, {image[:12]}", f"nobody waits for it: {cure}"
        elif run is None:
            yield f"{what}this install, and its journal doesn't know it", f"it can't return results: {cure}"
        elif run.state is State.DONE and now > run.updated_at + _ENDING:
            yield f"{what}{run.key}, which is over", f"nobody waits for it: {cure}"


def _hopeless(runs: Iterable[Run]) -> Iterator[Finding]:
    """Jobs that the scheduler took although no node of theirs will do."""
    for state, what, remedy in (
        (State.SUBMITTED, "its job",
         "bring the site config in line with the partition's limits, or cancel it: `hpcrunner cancel KEY`"),
        (State.STAGED, "the job that builds its image",
         "bring build_partition, build_cpus, build_memory and build_timeout in line with that partition's limits, and "
         "scancel the job, whose name begins with hb"),
    ):
        texts = {run: run.waiting for run in runs if run.state is state and re.search(_NEVER, run.waiting)}
        for who, text in _together(texts):
            yield f"{who}: {what} waits for what won't come by itself: {text}", remedy


def _refused(runs: Iterable[Run], last: Mapping[int, str]) -> Iterator[Finding]:
    """Submissions that can't succeed before somebody mends something. `last`: the last event of runs that are tried
    again; of jobs that build images it is told only there."""
    said = {run: (run.waiting or last.get(run.id, "")).partition("; tried again")[0] for run in runs
            if run.state in (State.STAGED, State.READY)}
    for who, text in _together({run: text for run, text in said.items() if re.search(_REFUSED, text)}):
        yield f"{who}: {text}", "mend the site config, or PATH where a command can't be started; it goes on by itself"


def _unclear(runs: Iterable[Run], settles: float) -> Iterator[Finding]:
    now = time.time()
    for run in runs:
        waited = now - run.submitted_at
        if run.state is State.SUBMITTING and waited > 2 * settles + 60:
            yield (f"{run.key}: since {format_duration(waited)} it isn't known whether its job {run.job_name} exists",
                   f"look yourself; then `hpcrunner resolve {run.key} --job ID`, or `--no-job` if there is none")


def _together(texts: Mapping[Run, str]) -> Iterator[tuple[str, str]]:
    """Of whom each text is to be said: in one line, however many they are."""
    groups: dict[str, list[Run]] = {}
    for run, text in texts.items():
        groups.setdefault(text, []).append(run)
    for text, (first, *others) in groups.items():
        job = f" (job {first.job_id})" if first.job_id else ""
        yield f"{first.key}{job}" + (f" and {len(others)} more" if others else ""), text
