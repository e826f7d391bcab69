"""Which partition holds an experiment, and with which GPUs. Pure."""

from __future__ import annotations

from hpcrunner.model import Place, Request
from hpcrunner.schedulers.slurm.options import Partition, SlurmOptions
from hpcrunner.units import format_duration, format_size

SPARE = 60.0
"""Seconds between the end of a program's own time and Slurm's limit, beside the site's `kill_grace`: Slurm looks at
limits only every 30 s."""


def place(options: SlurmOptions, request: Request, walltime: float, kill_grace: float) -> Place | str:
    """The partition for a request, or why there is none, naming the limit of each.

    The rule is told in the documentation of the option `partitions`. `walltime` 0: any will do.
    """
    partitions = dict(options.partitions)
    if not partitions:
        kind = gpu_type(options, request, ())
        return kind if isinstance(kind, Place) else f"asks for {kind}"
    fitting: list[tuple[str, Partition, Place]] = []
    refusals = []
    for name, partition in partitions.items():
        kind = gpu_type(options, request, partition.gpu_types)
        unfit = misfit(partition, request) or _too_short(partition, kill_grace)
        if refusal := unfit or (kind if isinstance(kind, str) else ""):
            refusals.append((name, refusal))
        else:
            assert isinstance(kind, Place)
            fitting.append((name, partition, kind))
    if not fitting:
        return "; ".join(f"partition {name}: asks for {refusal}" for name, refusal in refusals)
    needed = walltime + kill_grace + SPARE
    long_enough = [item for item in fitting if (item[1].max_walltime or float("inf")) >= needed]
    if not long_enough:
        longest = max(item[1].max_walltime or 0.0 for item in fitting)
        long_enough = [item for item in fitting if item[1].max_walltime == longest]
    without = [item for item in long_enough if not item[1].max_gpus]
    name, partition, kind = (without if not request.gpus and without else long_enough)[0]
    longest_run = None if partition.max_walltime is None else program_time(partition.max_walltime, kill_grace)
    note = kind.note
    if walltime and longest_run is not None and walltime > longest_run:
        note = f"asks to run for {format_duration(walltime)}; partition {name} lets it run for " \
               f"{format_duration(longest_run)}"
    return Place(name, longest_run, kind.gpu_type, note)


def misfit(partition: Partition, request: Request) -> str:
    """What of a request exceeds the partition, naming the option that says so; empty if it fits."""
    for asked, limit, what, show in (
        (request.cpus, partition.max_cpus, "cores|max_cpus", str),
        (request.memory, partition.max_memory, "of memory|max_memory", format_size),
        (request.disk, partition.max_disk, "of disk|max_disk", format_size),
        (request.gpus, partition.max_gpus, "GPUs|max_gpus", str),
    ):
        if limit is not None and asked > limit:
            unit, _, option = what.partition("|")
            return f"{show(asked)} {unit}, it has {show(limit)} ({option})"
    if request.gpus < partition.min_gpus:
        return f"{request.gpus} GPUs, it wants at least {partition.min_gpus} (min_gpus)"
    return ""


def program_time(max_walltime: float, kill_grace: float) -> float:
    """Seconds for the program itself. Slurm counts in minutes."""
    return max_walltime // 60 * 60 - kill_grace - SPARE


def _too_short(partition: Partition, kill_grace: float) -> str:
    if partition.max_walltime is None or program_time(partition.max_walltime, kill_grace) > 0:
        return ""
    return f"time beside the kill_grace of {format_duration(kill_grace)}, it has " \
           f"{format_duration(partition.max_walltime)} (max_walltime)"


def gpu_type(options: SlurmOptions, request: Request, has: tuple[str, ...]) -> Place | str:
    """The smallest type of GPU that has the memory asked for, or what there isn't."""
    if not request.gpus:
        return Place()
    types = {name: size for name, size in options.gpu_types.items() if not has or name in has}
    if not types:
        note = f"asks for GPUs with {format_size(request.gpu_memory)}; the site does not say what its GPUs have " \
               "(gpu_types)" if request.gpu_memory else ""
        return Place(note=note)
    if not request.gpu_memory and not options.gpu_type_always:
        return Place()
    fitting = sorted((size, name) for name, size in types.items() if size >= request.gpu_memory)
    if not fitting:
        largest = max(types.values())
        return f"GPUs with {format_size(request.gpu_memory)}, the largest there have {format_size(largest)} (gpu_types)"
    return Place(gpu_type=fitting[0][1])
