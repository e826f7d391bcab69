"""The Slurm backend: from what hpcrunner wants to Slurm's commands, and from their answers to what became of jobs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from hpcrunner.errors import HpcrunnerError
from hpcrunner.files import write_whole
from hpcrunner.layout import StateDir
from hpcrunner.model import Capacity, JobStatus, Phase, Place, Request
from hpcrunner.render import environment
from hpcrunner.schedulers.base import (
    Batch,
    BuildJob,
    Job,
    LiveJob,
    NodesRefused,
    Submission,
    SubmitDeferred,
    SubmitRefused,
)
from hpcrunner.schedulers.slurm import answers, arrays, partitions
from hpcrunner.schedulers.slurm.client import Client
from hpcrunner.schedulers.slurm.directives import build_directives, directives, minutes
from hpcrunner.schedulers.slurm.options import SlurmOptions
from hpcrunner.schedulers.slurm.pacing import Memory, now
from hpcrunner.schedulers.slurm.watch import Watch


class SlurmScheduler:
    template = "sbatch.sh.j2"
    binds_gpus = True

    def __init__(self, site: Any) -> None:
        self._site = site
        self._options: SlurmOptions = site.slurm or SlurmOptions()
        self._client = Client(self._options)
        self._memory_file: Path = site.state_dir / "slurm.json"
        self._memory = Memory.load(self._memory_file)
        if self._options.accounting != "auto":
            self._memory.has_accounting = self._options.accounting == "yes"
        self._watch = Watch(self._options, self._client, self._memory, StateDir(site.state_dir).arrays)
        self.exit_grace = self._options.exit_grace
        self._lock = Lock()
        self._full: dict[str, SubmitDeferred] = {}
        """Partitions to which Slurm takes nothing more in this tick."""

    @property
    def builds_images(self) -> bool:
        return self._options.build_partition is not None

    @property
    def settles(self) -> float:
        """Without accounting a job that ended can be found for MinJobAge only, which is 300 s by default."""
        known = self._memory.has_accounting is not False
        return self._options.submit_timeout + (self._options.settle if known else max(300.0, self._options.settle))

    def capacity(self, *, gpus: bool) -> Capacity | None:
        return None

    def place(self, request: Request, walltime: float) -> Place | str:
        return partitions.place(self._options, request, walltime, self._site.kill_grace)

    def script_values(self, submission: Submission) -> Mapping[str, Any]:
        header = directives(self._options, submission, self._site.kill_grace, name=submission.tag,
                            folder=submission.run_dir, log=submission.run_dir / "job.log")
        return {"header": header, "modules": list(self._options.modules), "warn": math.ceil(self._options.warn),
                "walltime": 60 * minutes(submission.limit, self._site.kill_grace)}

    def room(self, partition: str) -> int | None:
        """Where Slurm lately had too many jobs, only what it may take by now: the rest need not even be rendered."""
        if partition in self._full or self._memory.controller.is_blocked(now()):
            return 0
        largest = self._memory.largest_array
        return max(self._options.submit_parallel, 2 * largest) if largest else None

    def batches(self, submissions: Sequence[Submission]) -> list[Batch]:
        largest = min(self._options.max_array, self._memory.largest_array or self._options.max_array)
        return arrays.batches(submissions, largest, self._site.kill_grace)

    def submit(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Sequence[str] | HpcrunnerError]]:
        """A few calls of sbatch at a time: the client's own time is the longer part of each."""
        from concurrent.futures import ThreadPoolExecutor, as_completed

        self._memory.hurry(self._options.poll_min)
        scripts: dict[Batch, Path] = {}
        for batch in batches:
            try:
                scripts[batch] = (arrays.write(self._site, self._options, batch) if batch.is_array
                                  else batch.jobs[0].script)
            except HpcrunnerError as error:
                yield batch, error
            except OSError as error:
                yield batch, SubmitDeferred(f"{error.filename}: {error.strerror}")
        with ThreadPoolExecutor(self._options.submit_parallel) as pool:
            pending = {pool.submit(self._submit, batch, script): batch for batch, script in scripts.items()}
            try:
                for done in as_completed(pending):
                    yield pending[done], done.result()
            except BaseException:
                # Interrupted, or the lease is lost: what sbatch was not yet called for must not go out any more.
                pool.shutdown(cancel_futures=True)
                raise
        self._memory.save(self._memory_file)

    def build(self, job: BuildJob) -> str:
        header = build_directives(self._options, job)
        values = {"header": header, "modules": list(self._options.modules), "command": list(job.argv),
                  "env": dict(job.env)}
        script = job.folder / "build.sh"
        write_whole(script, environment.shell("build.sh.j2", values, self._site.template_dirs), 0o700)
        return self._client.submit(script)

    def begin(self) -> None:
        self._full.clear()
        self._watch.begin()

    def states(self, jobs: Iterable[Job], *, urgent: bool = False) -> Mapping[str, JobStatus]:
        before = self._memory.polled_at, self._memory.controller.failures
        found = self._watch.statuses(jobs, urgent=urgent)
        if before != (self._memory.polled_at, self._memory.controller.failures):
            self._memory.save(self._memory_file)
        return found

    def cancel(self, jobs: Iterable[Job], *, now: bool = False) -> None:
        """A running job's script is told by a signal, so that it has the site's grace and not Slurm's KillWait. One
        that waits is removed, and so is one that had its time."""
        known = [job for job in jobs if job.job_id and not self._watch.is_anothers(job)]
        running = [job.job_id for job in known if job.is_running and not now]
        others = [job.job_id for job in known if not job.is_running or now]
        if others:
            self._client.cancel(others)
        if running:
            self._client.signal(running)

    def live(self, prefix: str) -> list[LiveJob]:
        """This user's jobs whose names begin with `prefix`. Raises UnavailableError."""
        return [LiveJob(row.job_id, row.name, row.word) for row in self._client.queue()
                if row.name.startswith(prefix) and row.phase is not Phase.ENDED]

    def problems(self) -> list[str]:
        return [said for health in (self._memory.controller, self._memory.database) if (said := health.outage(now()))]

    def _submit(self, batch: Batch, script: Path) -> Sequence[str] | HpcrunnerError:
        memory = self._memory
        if memory.controller.is_blocked(now()):
            return SubmitDeferred(f"slurmctld can't be asked: {memory.controller.problem}")
        if full := self._full.get(batch.jobs[0].place.partition):
            return full
        try:
            job_id = self._client.submit(script)
        except HpcrunnerError as error:
            with self._lock:
                return self._not_submitted(batch, error)
        if memory.largest_array:
            grown = max(memory.largest_array + 1, 2 * len(batch.jobs))
            memory.largest_array = grown if grown < self._options.max_array else 0
        return [f"{job_id}_{index}" for index in range(len(batch.jobs))] if batch.is_array else [job_id]

    def _not_submitted(self, batch: Batch, error: HpcrunnerError) -> HpcrunnerError:
        memory = self._memory
        if answers.is_unreachable(str(error)):
            if not memory.controller.is_blocked(now()):
                memory.controller.failed(now(), str(error))
        elif batch.jobs[0].avoid and answers.is_about_nodes(str(error)):
            return NodesRefused(str(error))
        elif batch.is_array and (isinstance(error, SubmitRefused) or (isinstance(error, SubmitDeferred)
                                                                      and error.is_limit)):
            # There may be room for some of them; or the array is too long, which is no fault of its jobs.
            memory.largest_array = max(1, len(batch.jobs) // 2)
            error = SubmitDeferred(str(error))
            error.again_at_once = True
        elif isinstance(error, SubmitDeferred):
            # The next one would get the same answer, maybe after two minutes.
            self._full[batch.jobs[0].place.partition] = error
            memory.largest_array = 1 if error.is_limit else memory.largest_array
        return error
