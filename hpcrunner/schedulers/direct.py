"""No scheduler: jobs are processes of this host, each in a session of its own, which outlive hpcrunner.

A job claims its run directory as its first act (see templates/direct.sh.j2), by the file `owner`: tag,
host, boot id, pid and the process's start time. That file is all this backend knows of a job, so it
needs no memory; a process is the job's only if all of them match.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrunner import proc
from hpcrunner.errors import HpcrunnerError, UnavailableError
from hpcrunner.gpus import detect
from hpcrunner.model import UNKNOWN, Capacity, Gpu, JobStatus, Phase, Place, Request
from hpcrunner.schedulers.base import Batch, BuildJob, Job, LiveJob, Submission
from hpcrunner.units import format_size


@dataclass(frozen=True)
class Owner:
    tag: str
    host: str
    boot: str
    pid: int
    started: str

    @property
    def job_id(self) -> str:
        return f"{self.pid}@{self.host}"


class DirectScheduler:
    settles = 0.0
    exit_grace = 0.0
    template = "direct.sh.j2"
    binds_gpus = False
    builds_images = False

    def __init__(self, site: Any) -> None:
        self._site = site
        self._gpus: tuple[Gpu, ...] | None = None

    def capacity(self, *, gpus: bool) -> Capacity:
        if gpus and self._gpus is None:
            self._gpus = () if self._site.cpu_only else tuple(detect()[: self._site.max_gpus])
        return _capacity(self._site, self._gpus or ())

    def place(self, request: Request, walltime: float) -> Place | str:
        return misfit(request, self.capacity(gpus=request.gpus > 0)) or Place()

    def script_values(self, submission: Submission) -> Mapping[str, Any]:
        return {}

    def room(self, partition: str) -> int | None:
        return None

    def batches(self, submissions: Sequence[Submission]) -> list[Batch]:
        return [Batch(one.tag, (one,)) for one in submissions]

    def submit(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Sequence[str] | HpcrunnerError]]:
        for batch in batches:
            try:
                yield batch, [self._start(one) for one in batch.jobs]
            except HpcrunnerError as error:
                yield batch, error

    def build(self, job: BuildJob) -> str:
        raise UnavailableError("images are built by hpcrunner itself here")

    def begin(self) -> None:
        pass

    def states(self, jobs: Iterable[Job], *, urgent: bool = False) -> Mapping[str, JobStatus]:
        for child in list(_children):
            if child.poll() is not None:
                _children.remove(child)
        jobs = list(jobs)
        states = {job.tag: self._state(job) for job in jobs}
        # A process that was started a moment ago may not have come to its claim yet.
        missing = {job.tag for job in jobs if not job.job_id and states[job.tag].phase is Phase.GONE}
        found = _processes(missing) if missing else {}
        return {**states, **{tag: JobStatus(Phase.PENDING, job_id, tag) for tag, job_id in found.items()}}

    def _start(self, submission: Submission) -> str:
        log = submission.run_dir / "job.log"
        try:
            with log.open("ab") as stream:
                child = subprocess.Popen(
                    ["/bin/bash", str(submission.script)], cwd=submission.run_dir, stdin=subprocess.DEVNULL,
                    stdout=stream, stderr=stream, start_new_session=True,
                    env=proc.clean_environment({"HPCRUNNER_TAG": submission.tag}))
        except OSError as error:
            raise UnavailableError(f"/bin/bash {submission.script}: can't be started: {error.strerror}",
                                   transient=True) from error
        _children.append(child)
        return f"{child.pid}@{proc.host_name()}"

    def cancel(self, jobs: Iterable[Job], *, now: bool = False) -> None:
        for job in jobs:
            owner = _owner(job)
            if owner is None:
                continue
            if _lives(owner):
                with suppress(ProcessLookupError):
                    os.kill(owner.pid, signal.SIGTERM)
            else:
                _kill_orphans(owner)

    def live(self, prefix: str) -> list[LiveJob]:
        return [LiveJob(job_id, tag, "RUNNING") for tag, job_id in _processes(None).items() if tag.startswith(prefix)]

    def problems(self) -> list[str]:
        return []

    def _state(self, job: Job) -> JobStatus:
        owner = _owner(job)
        if owner is None:
            pid, _, host = job.job_id.partition("@")
            if job.job_id and host != proc.host_name():
                return UNKNOWN
            is_there = bool(pid) and _has_tag(int(pid), job.tag)
            return JobStatus(Phase.PENDING if is_there else Phase.GONE, job.job_id, job.tag)
        if not job.job_id and owner.tag != job.tag:
            return JobStatus(Phase.GONE)
        if owner.host != proc.host_name():
            return UNKNOWN if job.job_id else JobStatus(Phase.RUNNING, owner.job_id, job.tag)
        return JobStatus(Phase.RUNNING if _lives(owner) else Phase.GONE, owner.job_id, job.tag, node=owner.host)


_children: list[subprocess.Popen[bytes]] = []
"""Children of this very process, to be reaped when they end; whoever restarts leaves that to init."""


def misfit(request: Request, capacity: Capacity) -> str | None:
    """Why `request` exceeds all that there is, naming the option that would change it; None if it doesn't."""
    for asked, there, what, show in (
        (request.cpus, capacity.cpus, "cores|max_cores", str),
        (request.memory, capacity.memory, "of memory|max_mem", format_size),
        (request.disk, capacity.disk, "of disk|max_disk", format_size),
    ):
        if asked > there:
            name, _, option = what.partition("|")
            return f"asks for {show(asked)} {name}, more than the {show(there)} that this site gives jobs ({option})"
    if request.gpus:
        fitting = sum(gpu.memory >= request.gpu_memory for gpu in capacity.gpus)
        if request.gpus > fitting:
            size = f" with {format_size(request.gpu_memory)} each" if request.gpu_memory else ""
            return (f"asks for {request.gpus} GPUs{size}; this site has {fitting} such "
                    "(found by NVML, CUDA_VISIBLE_DEVICES, max_gpus)")
    return None


def _capacity(site: Any, gpus: tuple[Gpu, ...]) -> Capacity:
    volume = site.working_dir
    while not volume.exists():
        volume = volume.parent
    status = os.statvfs(volume)
    return Capacity(
        cpus=site.max_cores or len(os.sched_getaffinity(0)),
        memory=site.max_mem or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk=site.max_disk or status.f_frsize * status.f_bavail,
        gpus=gpus)


def _owner(job: Job) -> Owner | None:
    try:
        fields = (job.run_dir / "status" / "owner").read_text().split()
        return Owner(fields[0], fields[1], fields[2], int(fields[3]), fields[4])
    except (OSError, IndexError, ValueError):
        return None


def _lives(owner: Owner) -> bool:
    return (owner.host == proc.host_name() and owner.boot == proc.boot_id()
            and proc.start_time(owner.pid) == owner.started)


def _kill_orphans(owner: Owner) -> None:
    """Kills what a job script that was itself killed has left running.

    The kernel gives a pid to nobody while it names a session, so who is in the session of the dead script is its own.
    """
    if owner.host != proc.host_name() or owner.boot != proc.boot_id() or proc.start_time(owner.pid) is not None:
        return
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and proc.session(int(entry.name)) == owner.pid:
            with suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)


def _has_tag(pid: int, tag: str) -> bool:
    try:
        return f"HPCRUNNER_TAG={tag}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _processes(tags: set[str] | None) -> dict[str, str]:
    """Ids of the processes that carry one of the tags (None: any) in the environment they were started with."""
    found: dict[str, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            for item in environ:
                name, _, value = item.decode("utf-8", "replace").partition("=")
                if name == "HPCRUNNER_TAG" and (tags is None or value in tags):
                    found.setdefault(value, f"{entry.name}@{proc.host_name()}")
    return found


backend = DirectScheduler
