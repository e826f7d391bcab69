"""What is wrong between options of `slurm`: the keys at which to say so, and what to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hpcrunner.config.schema import suggest
from hpcrunner.schedulers.slurm.options import SlurmOptions
from hpcrunner.schedulers.slurm.partitions import SPARE, program_time
from hpcrunner.units import format_duration

Told = tuple[tuple[str, ...], str]


def mistakes(options: SlurmOptions, site: Any) -> Iterator[Told]:
    """Options that don't go together."""
    for name, partition in options.partitions.items():
        at = "partitions", name
        for kind in partition.gpu_types:
            if kind not in options.gpu_types:
                # It would count as none, and every type as one that the partition has.
                known = suggest(kind, options.gpu_types) if options.gpu_types else "that is empty"
                yield (*at, "gpu_types"), f"holds {kind!r}, which is not in slurm.gpu_types; {known}"
        if partition.min_gpus > partition.max_gpus:
            yield (*at, "min_gpus"), f"is more than max_gpus, {partition.max_gpus}: nothing would fit"
        if partition.max_walltime is not None and program_time(partition.max_walltime, site.kill_grace) <= 0:
            yield (*at, "max_walltime"), (f"leaves a program no time beside kill_grace, "
                                          f"{format_duration(site.kill_grace)}, and {format_duration(SPARE)}")
    if options.poll_min > options.poll_max:
        yield ("poll_min",), f"is more than poll_max, {format_duration(options.poll_max)}"


def missing(options: SlurmOptions) -> Iterator[Told]:
    """What is not on this host."""
    if options.bin_dir is not None and not (options.bin_dir / "sbatch").is_file():
        yield ("bin_dir",), f"there is no sbatch in {options.bin_dir} on this host"
    if options.conf is not None and not options.conf.is_file():
        yield ("conf",), f"there is no file {options.conf} on this host"
