"""The `#SBATCH` lines of a job script. Pure: values in, lines out; every line is checked to be one harmless line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from hpcrunner.errors import ConfigError
from hpcrunner.model import Request
from hpcrunner.schedulers.base import BuildJob, Submission
from hpcrunner.schedulers.slurm.options import Partition, SlurmOptions
from hpcrunner.schedulers.slurm.partitions import SPARE

_MIB = 2**20


def directives(options: SlurmOptions, job: Submission, kill_grace: float, *, name: str, folder: Path, log: Path,
               array: int = 0) -> list[str]:
    """The options of sbatch for a job, or for an array of so many like it, each as it stands after `#SBATCH`.

    They are those of sbatch(1) in every version from 20.11 on.
    """
    partition = dict(options.partitions).get(job.place.partition, Partition())
    lines = [f"--job-name={name}", *_lines(options, partition, job, kill_grace)]
    if array:
        throttle = f"%{options.array_throttle}" if options.array_throttle else ""
        lines.append(f"--array=0-{array - 1}{throttle}")
    # One file for Slurm's own messages and those of the script; the program's output goes elsewhere.
    lines += [f"--chdir={path(folder)}", f"--output={pattern(log)}", "--open-mode=append"]
    return [check(line) for line in (*lines, *options.directives, *partition.directives)]


def build_directives(options: SlurmOptions, job: BuildJob) -> list[str]:
    """Those of a job that builds an image."""
    partition = dict(options.partitions).get(options.build_partition or "", Partition())
    # A job that asks for more time than a partition gives waits for ever.
    longest = math.inf if partition.max_walltime is None else partition.max_walltime // 60
    lines = [f"--job-name={job.name}", *_partition(partition, options.build_partition or ""),
             *_charged(options, partition),
             "--nodes=1", "--ntasks=1", f"--cpus-per-task={options.build_cpus}",
             *_memory(options, Request(options.build_cpus, options.build_memory)), *_features(options, partition),
             f"--time={_time(int(min(longest, math.ceil((job.timeout + SPARE) / 60))))}", "--no-requeue",
             f"--export={options.export}",
             f"--chdir={path(job.folder)}", f"--output={pattern(job.folder / 'builder.log')}", "--open-mode=append"]
    return [check(line) for line in (*lines, *options.directives, *partition.directives)]


def minutes(limit: float, kill_grace: float) -> int:
    """Slurm's time limit for a program that may run `limit` seconds."""
    return math.ceil((limit + kill_grace + SPARE) / 60)


def check(line: str) -> str:
    """Raises ConfigError for what would be more than one directive."""
    if not line.isprintable():
        raise ConfigError(f"slurm: {line!r} can't be one #SBATCH line")
    return line


def path(location: Path) -> str:
    """A path as a directive holds it: quotes keep blanks together."""
    text = str(location)
    return text if re.fullmatch(r"[A-Za-z0-9_./%@:+,=-]+", text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def pattern(location: Path) -> str:
    """The same where sbatch has patterns such as `%j`, which a backslash would switch off and be lost itself."""
    if "\\" in str(location):
        raise ConfigError(f"slurm: {str(location)!r}: Slurm writes to no file with a backslash in its path")
    return path(Path(str(location).replace("%", "%%")))


def _lines(options: SlurmOptions, partition: Partition, job: Submission, kill_grace: float) -> Iterator[str]:
    request, place = job.request, job.place
    yield from _partition(partition, place.partition)
    yield from _charged(options, partition)
    yield "--nodes=1"
    yield "--ntasks=1"
    yield f"--cpus-per-task={request.cpus}"
    yield from _memory(options, request)
    yield from _gpus(options, partition, job)
    if options.disk_flag == "tmp" and request.disk:
        yield f"--tmp={_mib(request.disk)}"
    yield f"--time={_time(minutes(job.limit, kill_grace))}"
    if options.warn:
        yield f"--signal=B:USR2@{math.ceil(options.warn)}"
    may_requeue = options.requeue == "always" or (options.requeue == "preemptible" and partition.preemptible)
    yield "--requeue" if may_requeue else "--no-requeue"
    yield f"--export={options.export}"
    if job.avoid:
        yield f"--exclude={','.join(job.avoid)}"


def _partition(partition: Partition, entry: str) -> Iterator[str]:
    if entry and partition.partition != "-":
        yield f"--partition={partition.partition or entry}"


def _charged(options: SlurmOptions, partition: Partition) -> Iterator[str]:
    for name in ("account", "qos"):
        if value := getattr(partition, name) or getattr(options, name):
            yield f"--{name}={value}"


def _memory(options: SlurmOptions, request: Request) -> Iterator[str]:
    memory = request.memory or options.default_memory
    if not memory or options.memory_flag == "none":
        return
    if options.memory_flag == "mem-per-cpu":
        yield f"--mem-per-cpu={_mib(memory, request.cpus)}"
    elif options.memory_flag == "mem-per-gpu" and request.gpus:
        yield f"--mem-per-gpu={_mib(memory, request.gpus)}"
    else:
        yield f"--mem={_mib(memory)}"


def _gpus(options: SlurmOptions, partition: Partition, job: Submission) -> Iterator[str]:
    count, kind = job.request.gpus, job.place.gpu_type
    feature = ""
    if count and options.gpu_type_flag == "constraint":
        feature, kind = kind, ""
    if count and options.gpu_flag != "none":
        typed = f"{kind}:{count}" if kind else str(count)
        yield f"--gres=gpu:{typed}" if options.gpu_flag == "gres" else f"--{options.gpu_flag}={typed}"
    yield from _features(options, partition, feature)


def _features(options: SlurmOptions, partition: Partition, more: str = "") -> Iterator[str]:
    if wanted := [feature for feature in (partition.constraint or options.constraint, more) if feature]:
        yield f"--constraint={'&'.join(f'({one})' if '|' in one and len(wanted) > 1 else one for one in wanted)}"


def _mib(size: int, parts: int = 1) -> str:
    return f"{max(1, math.ceil(size / parts / _MIB))}M"


def _time(whole_minutes: int) -> str:
    """D-HH:MM:SS, which every version reads the same."""
    days, rest = divmod(whole_minutes, 24 * 60)
    return f"{days}-{rest // 60:02}:{rest % 60:02}:00"
