"""Every option of a site. This is the schema: the loader, the command line and docs/site-config.md follow it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcrunner.config import kinds
from hpcrunner.config.backends import QueueEntry, QueueSource, SchedulerOptions, backend
from hpcrunner.config.schema import Option, option, options_of
from hpcrunner.config.stores import CREDENTIALS, StoreProfile, endpoint_pattern

_VERSION = ('a Python version such as 3.11, or "any"', r"[0-9]+\.[0-9]+|any")
_TEMPLATE = kinds.text(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", "the name of a file, not a path")


@dataclass(frozen=True)
class Site:
    """What the site's admin decided. Sizes are bytes, durations seconds, paths absolute."""

    state_dir: Path = option(
        "~/.hpcrunner", kinds.path(), heading="Folders",
        doc="The journal, dead letters and logs of this install. One folder is one install: whoever shares it "
            "takes turns.")
    working_dir: Path = option(
        None, kinds.path(), unset="`runs` in `state_dir`",
        doc="Run directories of experiments. Hosts that run jobs must see it under the same path. Several installs may "
            "share it.")
    image_dir: Path = option(
        None, kinds.path(), unset="`images` in `state_dir`",
        doc="Images that were built, each once for all experiments with the same environment. Several installs may "
            "share it.")
    cache_dir: Path = option(
        None, kinds.path(), unset="`cache` in `state_dir`",
        doc="Objects that experiments read, each fetched once for all that need it. Several installs of one account "
            "may share it, on several hosts too if its file system has locks that hold between them.")
    cache_size: int = option(
        "20GiB", kinds.size(), doc="What `cache_dir` may hold; what was used longest ago is removed. `0`: no cache.")
    store_roots: tuple[Path, ...] = option(
        (), kinds.ListOf(kinds.path()),
        doc="Folders in which experiments' local (`file:`) stores may lie. Nothing outside of them is read or "
            "written, whatever a message says.")

    stores: tuple[StoreProfile, ...] = option(
        (), kinds.ListOf(kinds.Section(StoreProfile)), heading="Object stores",
        doc="What this site knows of object stores: a list of mappings, whose keys are below. The first entry that "
            "fits an endpoint and a bucket counts.")
    store_credentials: tuple[str, ...] = option(
        CREDENTIALS, kinds.ListOf(kinds.choice(*CREDENTIALS)),
        doc="Where credentials may come from, and in which order they are looked for: the `artifact`'s own, the "
            "`message`'s settings of its store, the message's variables (`env`), the entries of `stores` (`site`), and "
            "the cloud's own ways, such as ~/.aws and ~/.config/gcloud (`sdk`). The last two are the site's, and are "
            "only used for what `stores` lists. Without any, objects are read as anybody may.")
    store_endpoints: tuple[str, ...] = option(
        None, kinds.ListOf(endpoint_pattern()), unset="all; but never link-local addresses such as 169.254.169.254",
        doc="Hosts of object stores that messages may name, such as `s3.example.org:9000` or `*.amazonaws.com`; "
            "`*` stands for any text, and without a port any will do. Nothing is sent to others.")
    transfer_threads: int = option(
        "4", kinds.integer(1), doc="Connections that one object is moved over.")
    transfer_part: int = option(
        "32MiB", kinds.size(5 * 2**20), doc="What an object is moved in: larger ones in parts of this size, several at "
        "once.")
    transfer_timeout: float = option(
        "1m", kinds.duration(0.1), doc="A connection over which nothing came for so long is taken for dead.")

    queues: tuple[QueueSource, ...] = option(
        (), kinds.ListOf(QueueEntry()), heading="Queues",
        doc="Where experiments come from: a list of mappings with `type` and the options of that type, which are "
            "below.")
    queue_match: re.Pattern[str] | None = option(
        None, kinds.regex(), doc="Only queues whose name matches, on top of each entry's own `match`.",
        unset="all queues")
    queue_mismatch: re.Pattern[str] | None = option(
        None, kinds.regex(), doc="No queues whose name matches, on top of each entry's own `mismatch`.",
        unset="no queue is left out")
    queue_gone_grace: float = option(
        "60s", kinds.duration(), doc="A queue that was removed for this long takes its experiments with it: they "
        "are cancelled.")

    scheduler: str = option(
        "direct", backend("schedulers"), heading="Jobs",
        doc="What starts jobs. `direct` starts them on this host, within the limits below; `slurm` submits them.")
    slurm: Any = option(
        None, SchedulerOptions("slurm"), unset="every key has its default",
        doc="How this site's Slurm is used, for `scheduler: slurm`; its keys are below.")
    max_cores: int | None = option(
        None, kinds.integer(1), doc="Cores that all running jobs may use together.", unset="all of this host")
    max_mem: int | None = option(
        None, kinds.size(), doc="Memory that all running jobs may use together.", unset="all of this host")
    max_disk: int | None = option(
        None, kinds.size(), doc="Disk space that all running jobs may use together.",
        unset="what is free where `working_dir` lies")
    max_gpus: int | None = option(
        None, kinds.integer(), doc="GPUs that jobs may use together.", unset="all that are visible")
    cpu_only: bool = option("false", kinds.boolean(), doc="Look for no GPUs, and give jobs none.")
    max_jobs: int | None = option(
        None, kinds.integer(1), doc="Jobs that exist at once, those that wait in Slurm counted in.",
        unset="as many as fit")
    max_duration: float = option(
        "96h", kinds.duration(1), doc="The longest that one attempt of an experiment runs, whatever it asks for.")
    default_duration: float | None = option(
        None, kinds.duration(1), doc="The same for experiments that don't say how long they run (`max_duration`).",
        unset="`max_duration`")
    kill_grace: float = option(
        "30s", kinds.duration(1), doc="Time between SIGTERM and SIGKILL for a job that is stopped.")
    retries: int = option(
        "2", kinds.integer(), doc="How often an experiment is started again after the infrastructure failed. The "
        "user's own failures are never tried again.")
    env: Mapping[str, str] = option(
        {}, kinds.MappingOf("names of variables", r"[A-Za-z_][A-Za-z0-9_]*", kinds.text()),
        doc="Variables for every job. The experiment's own come after them and win.")
    prologue: str | None = option(
        None, kinds.text(), doc="Shell lines (bash) that the job script runs first, outside of the container, such as "
        "`module load apptainer`. If they exit, or fail after a `set -e`, the host counts as faulty, and the "
        "experiment is run elsewhere. Variables with lower-case names are the script's own: use others.")
    epilogue: str | None = option(
        None, kinds.text(), doc="Shell lines (bash) that the job script runs last, when its program has ended, "
        "whatever way. How it ended is written down before them. A job that was killed, or that never began, does not "
        "come to them.")
    job_template: str | None = option(
        None, _TEMPLATE, doc="Template of the job script, to be found in `template_dirs` or among the shipped ones.",
        unset="the one of the scheduler, such as `direct.sh.j2`")
    template_dirs: tuple[Path, ...] = option(
        (), kinds.ListOf(kinds.path()), doc="Folders with templates and recipes, searched before the shipped ones.")

    engine: str = option(
        "auto", backend("containers", "auto"), heading="Containers and environments",
        doc="What experiments run in. `auto` takes Apptainer or Singularity where one is installed, and otherwise "
            "`none`: virtual environments.")
    engine_path: str | None = option(
        None, kinds.program(), doc="The engine's program.", unset="looked for on PATH under the engine's name")
    base_images: Mapping[str, str] = option(
        {}, kinds.MappingOf(*_VERSION, kinds.base_image()),
        doc="Images with Python and pip that experiments' images are built on, by Python version. `any` stands for "
            "all versions that have no entry. A reference with a digest (`@sha256:...`) always means the same image.")
    python_match: str = option(
        "major", kinds.choice("minor", "major"),
        doc="How far a base image's or an interpreter's Python version must agree with the experiment's: `minor` "
            "wants 3.11 for 3.11, `major` takes another 3.x if need be, with a warning.")
    pythons: Mapping[str, Path] = option(
        {}, kinds.MappingOf(*_VERSION, kinds.path()),
        doc="Interpreters for `engine: none`, by Python version. Others are looked for on PATH.")
    recipe: str = option(
        "python", _TEMPLATE,
        doc="Recipe of the definition file: `python` means `python.def.j2`, in `template_dirs` or among the shipped "
            "ones.")
    studioml: str = option(
        "auto", kinds.choice("auto", "always", "never"),
        doc="Whether the package `studioml` is installed for the experiment. `auto` looks whether its code needs it.")
    binds: tuple[str, ...] = option(
        (), kinds.ListOf(kinds.bind()), doc="Folders of the host that every container sees.")
    gpu_vendor: str = option(
        "nvidia", kinds.choice("nvidia", "amd"),
        doc="Whose GPUs containers are given: `--nv` or `--rocm` of the engine.")
    exec_args: tuple[str, ...] = option(
        (), kinds.ListOf(kinds.text()), doc="More arguments for the engine's `exec` and `run`.")
    build_args: tuple[str, ...] = option(
        (), kinds.ListOf(kinds.text()), doc="More arguments for the engine's `build`.")
    pip_args: tuple[str, ...] = option(
        (), kinds.ListOf(kinds.text()), doc="More arguments for `pip install`, such as `--index-url=...`.")
    build_timeout: float = option("1h", kinds.duration(1), doc="The longest that building one image may take.")
    build_tmpdir: Path | None = option(
        None, kinds.path(), doc="Where images are unpacked while they are built.",
        unset="/dev/shm where it has room, otherwise $TMPDIR or /tmp")
    mksquashfs_args: str = option(
        "-comp zstd -Xcompression-level 3", kinds.text(), doc="Arguments for mksquashfs, which packs images.")
    max_builds: int = option("1", kinds.integer(1), doc="Images that are built at once.")

    artifact_limit: int = option(
        "100GiB", kinds.size(), heading="Files and results",
        doc="What an experiment's files may take when they are unpacked, if it doesn't ask for disk space itself. Each "
            "file and folder counts as 4 KiB more than its content.")
    max_transfers: int = option(
        "4", kinds.integer(1),
        doc="Experiments whose files are fetched or returned at once. One more may be returned, and one more of the "
            "clients' records be read and one written: results wait for no download.")
    checkpoint_min: float = option(
        "30s", kinds.duration(1),
        doc="Checkpoints of one experiment are at least so far apart, however often it wants them "
            "(`saveWorkspaceFrequency`, `saveFrequency` of an artifact).")
    store_patience: float = option(
        "7d", kinds.duration(),
        doc="How long experiments wait for a store that does not answer, to get their inputs, and results for one that "
            "does not take them. After that the experiments count as lost, and results stay in the run directory.")
    keep: str = option(
        "none", kinds.choice("none", "failed", "all"),
        doc="Which run directories stay when their results are returned. Logs always stay.")
    debug: bool = option("false", kinds.boolean(), doc="The same as `keep: all`.")

    poll_interval: float = option(
        "1s", kinds.duration(0.05), heading="The command itself",
        doc="Time between two looks under `submit-from-queue --wait`.")
    log_level: str = option(
        "info", kinds.choice("debug", "info", "warning", "error"), doc="The least that is logged.")

    def __post_init__(self) -> None:
        for name, folder in (("working_dir", "runs"), ("image_dir", "images"), ("cache_dir", "cache")):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.state_dir / folder)


OPTIONS: dict[str, Option] = options_of(Site)
"""In the order in which people are shown them."""
