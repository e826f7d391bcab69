"""Job arrays: equal jobs that go out in one call of sbatch, each with its own run directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcrunner.files import write_whole
from hpcrunner.layout import StateDir
from hpcrunner.model import Request
from hpcrunner.render import environment
from hpcrunner.schedulers.base import Batch, Submission
from hpcrunner.schedulers.slurm.directives import directives, minutes
from hpcrunner.schedulers.slurm.options import SlurmOptions


def batches(submissions: Sequence[Submission], largest: int, kill_grace: float) -> list[Batch]:
    """Equal ones together, at most `largest` in each, in the order in which they came. An array has the name that
    its first job would have alone."""
    groups: dict[tuple[object, ...], list[Submission]] = {}
    for job in submissions:
        groups.setdefault(_shape(job, kill_grace), []).append(job)
    return [Batch(group[start].tag, tuple(group[start:start + largest]))
            for group in groups.values() for start in range(0, len(group), largest)]


def write(site: Any, options: SlurmOptions, batch: Batch) -> Path:
    """Writes the array's script, and the list that tells each element its run directory. Returns the script.

    An element reads the list when it starts, so both stay until the last one has ended.
    """
    folder = StateDir(site.state_dir).arrays
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    members = folder / f"{batch.name}.list"
    header = directives(options, batch.jobs[0], site.kill_grace, name=batch.name, folder=folder,
                        log=folder / f"{batch.name}.log", array=len(batch.jobs))
    write_whole(members, "".join(f"{job.run_dir}\n" for job in batch.jobs), 0o600)
    script = folder / f"{batch.name}.sh"
    write_whole(script, environment.shell("array.sh.j2", {"header": header, "members": members},
                                            site.template_dirs), 0o700)
    return script


def _shape(job: Submission, kill_grace: float) -> tuple[object, ...]:
    request: Request = job.request
    return request, job.place.partition, job.place.gpu_type, job.image, job.avoid, minutes(job.limit, kill_grace)
