"""What a site says of its Slurm: the keys of `slurm` in a site config."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrunner.config import kinds
from hpcrunner.config.kinds import Scalar, option
from hpcrunner.config.schema import Origin

_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"
_ACCOUNT = r"[A-Za-z0-9][A-Za-z0-9_.+@-]*"
_TYPE = r"[A-Za-z0-9][A-Za-z0-9_.+:-]*"
_MANAGED = {
    "account": "account", "array": "max_array, array_throttle", "begin": "", "chdir": "working_dir", "clusters": "",
    "constraint": "constraint", "cpus-per-gpu": "", "cpus-per-task": "", "dependency": "", "error": "", "exclude": "",
    "export": "export", "export-file": "export", "gpus": "gpu_flag", "gpus-per-node": "gpu_flag",
    "gpus-per-socket": "gpu_flag", "gpus-per-task": "gpu_flag", "gres": "gpu_flag", "help": "", "hold": "", "input": "",
    "job-name": "", "mem": "memory_flag, default_memory", "mem-per-cpu": "memory_flag", "mem-per-gpu": "memory_flag",
    "no-requeue": "requeue", "nodes": "", "ntasks": "", "ntasks-per-node": "", "open-mode": "", "output": "",
    "parsable": "", "partition": "partitions", "qos": "qos", "quiet": "", "requeue": "requeue", "signal": "warn",
    "test-only": "", "time": "max_duration, default_duration, max_walltime", "time-min": "", "tmp": "disk_flag",
    "usage": "", "version": "", "wait": "", "wrap": "",
}
"""Options of sbatch(1) that hpcrunner itself decides, or that would change what it relies on; and the options of the
site that have a say in it."""


def name(allowed: str) -> Scalar[str]:
    return kinds.text(_NAME, allowed)


def size() -> Scalar[int]:
    """With a unit: a number that somebody copied from sinfo is in MB."""
    return kinds.size().but(r"([1-9][0-9]*)\+?", r"without a unit; sinfo's \1 is \1MiB")


def walltime() -> Scalar[float]:
    """With a unit, or as Slurm prints it: a number alone is in minutes there, and in seconds elsewhere here."""
    kind = kinds.duration(60)
    kind.allowed = "a duration such as 90m, 1h30m or 2d, or in Slurm's forms 2-12:00:00, 2-12 or 12:00:00"
    return kind.but(r"([0-9]+)", r"without a unit; Slurm's \1 is \1m").but(
        "infinite|unlimited", "leave it out for no limit")


def directive() -> Scalar[str]:
    """One option of sbatch, as it would stand after `#SBATCH`."""
    def parse(given: str, origin: Origin) -> str:
        match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:[= ](.*))?", given)
        if not match:
            raise ValueError
        # sbatch takes unambiguous beginnings of its options, as getopt_long(3) does.
        if managed := sorted(word for word in _MANAGED if word.startswith(match[1])):
            instead = _MANAGED[managed[0]]
            raise ValueError(f"--{managed[0]} is set by hpcrunner itself"
                             + (f"; the site's options for it: {instead}" if instead else ""))
        if not given.isprintable():
            raise ValueError("it must be one line")
        # Read as sbatch reads the line: in words, with quotes.
        option, *values = shlex.split(given, comments=True)
        if len(values) > 1 or (values and ("=" in option or values[0].startswith("-"))):
            raise ValueError("it must be one option; blanks in its value need quotes")
        return given

    return Scalar("a long option of sbatch, such as --reservation=maintenance or --licenses=matlab:1", "OPTION", parse)


def export_mode() -> Scalar[str]:
    def parse(given: str, origin: Origin) -> str:
        if given.upper() in ("ALL", "NONE", "NIL"):
            return given.upper()
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(,[A-Za-z_][A-Za-z0-9_]*)*", given):
            raise ValueError
        return given

    return Scalar("ALL, NONE, NIL, or names of variables with commas between", "EXPORT", parse)


@dataclass(frozen=True)
class Partition:
    """One entry of `partitions`: what jobs may ask for there. Sizes are bytes, durations seconds."""

    partition: str | None = option(
        None, kinds.text(rf"{_NAME}|-", "the name of a partition, or -"), "What Slurm calls it, where several entries "
        "are one partition with different QOS. `-`: no partition is named, as where the QOS alone decides.",
        unset="the name of the entry")

    max_walltime: float | None = option(
        None, walltime(), "The longest that a job may be given there (MaxTime of `scontrol show partition`).",
        unset="no limit")
    max_cpus: int | None = option(None, kinds.integer(1), "Cores of its largest node.", unset="no limit")
    max_memory: int | None = option(None, size(), "Memory of its largest node.", unset="no limit")
    max_disk: int | None = option(None, size(), "Local disk of its largest node.", unset="no limit")
    max_gpus: int = option("0", kinds.integer(), "GPUs of its largest node; 0 for a partition without.")
    min_gpus: int = option("0", kinds.integer(), "The fewest GPUs that a job must ask for there.")
    gpu_types: tuple[str, ...] = option(
        (), kinds.ListOf(kinds.text(_TYPE, "the name of a type")),
        "Which of the `gpu_types` it has. Empty: all of them.")
    preemptible: bool = option(
        "false", kinds.boolean(), "Its jobs may lose their nodes to others; they are requeued, and continue in "
        "the same run directory.")
    account: str | None = option(
        None, kinds.text(_ACCOUNT, "an account"), "Account for its jobs.", unset="`account` of the site")
    qos: str | None = option(None, name("a QOS"), "QOS for its jobs.", unset="`qos` of the site")
    constraint: str | None = option(
        None, kinds.text(r"[!-~]+", "features as sbatch --constraint takes them"), "Features that its jobs need.",
        unset="`constraint` of the site")
    directives: tuple[str, ...] = option(
        (), kinds.ListOf(directive()), "More options of sbatch for its jobs, after the site's.")


@dataclass(frozen=True)
class SlurmOptions:
    account: str | None = option(
        None, kinds.text(_ACCOUNT, "an account"), "Account that jobs are charged to.",
        unset="the user's default account")
    qos: str | None = option(None, name("a QOS"), "QOS of jobs.", unset="the account's default QOS")
    partitions: Mapping[str, Partition] = option(
        {}, kinds.MappingOf("names of partitions", _NAME, kinds.Section(Partition)),
        "The partitions that experiments may use, with their limits. An experiment goes to the first in which it "
        "fits, in the order of the file: one without GPUs if it asks for none, and one whose `max_walltime` is long "
        "enough, as far as there are such. One that fits in none is rejected. Empty: Slurm's default partition, and "
        "no limits are known.")
    constraint: str | None = option(
        None, kinds.text(r"[!-~]+", "features as sbatch --constraint takes them"), "Features that nodes must have.")
    memory_flag: str = option(
        "mem", kinds.choice("mem", "mem-per-cpu", "mem-per-gpu", "none"),
        "How memory is asked for: per node, per core, per GPU (per node for experiments without), or not at all.")
    default_memory: int | None = option(
        None, size(), "Memory for experiments that don't say.", unset="what Slurm gives by default")
    gpu_flag: str = option(
        "gres", kinds.choice("gres", "gpus", "gpus-per-node", "none"),
        "How GPUs are asked for: `--gres=gpu:N`, `--gpus=N`, `--gpus-per-node=N`, or not at all (a partition says it).")
    gpu_types: Mapping[str, int] = option(
        {}, kinds.MappingOf("names of GPU types", _TYPE, size()),
        "Memory of each type of GPU, by the name that Slurm has for it. An experiment that asks for `gpuMem` gets "
        "the smallest type that has it.")
    gpu_type_flag: str = option(
        "gres", kinds.choice("gres", "constraint"),
        "How a type is asked for: in the GPU flag (`gpu:a100:2`), or as a feature of the node (`--constraint`).")
    gpu_type_always: bool = option(
        "false", kinds.boolean(), "Name a type even if the experiment doesn't ask for `gpuMem`: the smallest there is.")
    disk_flag: str = option(
        "none", kinds.choice("tmp", "none"),
        "Whether `hdd` of an experiment becomes `--tmp`. Only for sites whose nodes say their TmpDisk: Slurm "
        "refuses such jobs elsewhere.")
    requeue: str = option(
        "preemptible", kinds.choice("preemptible", "always", "never"),
        "Which jobs Slurm itself may start again: those in partitions that are `preemptible`, all, or none. Jobs that "
        "it may not are tried again by hpcrunner, without the node that failed.")
    warn: float = option(
        "60s", kinds.duration(), "How long before a preemption a job is warned, by SIGTERM to its program: as long as "
        "the site's preemption leaves, GraceTime of the partition. 0: no warning.")
    export: str = option(
        "ALL", export_mode(), "What of the environment sbatch hands on (`--export`). It is a clean one in any case: "
        "HOME, USER, LOGNAME, PATH, LANG, LC_ALL, TZ and TMPDIR, as hpcrunner has them; for other variables there is "
        "`env`. ALL: these. NONE: none of them; Slurm loads the user's login environment on the node. Names: the login "
        "environment, and of these variables the named ones. NIL: nothing at all, PATH neither; Slurm 22.05 doesn't "
        "know the word and takes it as NONE.")
    modules: tuple[str, ...] = option(
        (), kinds.ListOf(kinds.text(r"[A-Za-z0-9][A-Za-z0-9_.+/-]*", "the name of a module")),
        "Environment modules that the job script loads first, such as `apptainer/1.3`.")
    directives: tuple[str, ...] = option(
        (), kinds.ListOf(directive()), "More options of sbatch for all jobs. Those that hpcrunner sets are refused.")
    max_array: int = option(
        "1000", kinds.integer(1), "Most jobs in one array, at most MaxArraySize - 1 of `scontrol show config`. 1: no "
        "arrays.")
    array_throttle: int | None = option(
        None, kinds.integer(1), "Most jobs of one array that run at once.", unset="no limit")
    submit_parallel: int = option("4", kinds.integer(1), "Calls of sbatch at the same time.")
    submit_timeout: float = option(
        "150s", kinds.duration(1), "The longest that sbatch may take to answer. It tries for two minutes itself while "
        "Slurm has too many jobs.")
    query_timeout: float = option("60s", kinds.duration(1), "The longest that squeue, sacct and scancel may take.")
    poll_min: float = option(
        "30s", kinds.duration(0.1), "Time between two calls of squeue while something changes. Ends of jobs are known "
        "without: this is for what else may happen to them.")
    poll_max: float = option(
        "3m", kinds.duration(0.1), "The same while nothing changes.")
    settle: float = option(
        "3m", kinds.duration(), "How long a job may stay invisible whose submission had no answer. After that, and "
        "only if squeue and sacct both say that there is none, it is submitted again. Without accounting at least "
        "5m.")
    lost_after: float = option(
        "5m", kinds.duration(), "How long a job must be gone from squeue and sacct, seen three times, to count as "
        "lost.")
    exit_grace: float = option(
        "1m", kinds.duration(), "How long the exit file of a job that ended may take to appear: network file systems "
        "show files late.")
    accounting: str = option(
        "auto", kinds.choice("auto", "yes", "no"), "Whether sacct works here. `auto` finds out.")
    bin_dir: Path | None = option(None, kinds.path(), "Where sbatch and the others are.", unset="on PATH")
    conf: Path | None = option(
        None, kinds.path(), "Slurm's configuration file.", unset="SLURM_CONF of the environment, or Slurm's own place")
    build_partition: str | None = option(
        None, name("a partition"), "Partition (an entry of `partitions`, or one that Slurm has) in which images are "
        "built, each by a job of its own.",
        unset="images are built on this host")
    build_cpus: int = option("4", kinds.integer(1), "Cores of such a job.")
    build_memory: int = option("8GiB", size(), "Memory of such a job.")

    def mistakes(self, site: Any) -> Iterator[tuple[tuple[str, ...], str]]:
        from hpcrunner.schedulers.slurm import checks

        return checks.mistakes(self, site)

    def missing(self) -> Iterator[tuple[tuple[str, ...], str]]:
        from hpcrunner.schedulers.slurm import checks

        return checks.missing(self)
