"""The job script of one run and the file with its environment."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcrunner.layout import RunDir
from hpcrunner.render import environment
from hpcrunner.wire.experiment import Experiment

_LARGEST_STRING = 128 * 1024 - 1
"""Linux refuses a longer single argument or variable (execve(2), MAX_ARG_STRLEN)."""
_SHORTEST = 10
"""Seconds between two lines of metrics: looking at all processes of a node is not free."""
_EXPANDED = ("PATH", "HOME", "USER")


def variables(experiment: Experiment, run_dir: RunDir, site_env: Mapping[str, str], gpus: Sequence[str] | None,
              known: Mapping[str, str]) -> dict[str, str]:
    """All variables that the program gets on top of a clean environment. `gpus` None: the scheduler will tell which.

    `%NAME%` in the experiment's own values stands for the variable of that name (`known`), as it does in the
    Go runner, for PATH, HOME and USER; anything else is delivered as it is.
    """
    def expand(value: str) -> str:
        return re.sub("%(" + "|".join(_EXPANDED) + ")%", lambda match: known.get(match[1], match[0]), value)

    cards = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus) or "-1",
                                     "NVIDIA_VISIBLE_DEVICES": ",".join(gpus) or "void"}
    return {
        **site_env,
        **{name: expand(value) for name, value in experiment.env.items()},
        "PYTHONUNBUFFERED": "TRUE",
        "STUDIOML_EXPERIMENT": run_dir.name,
        "STUDIOML_HOME": str(run_dir.studioml_home),
        "HPCRUNNER_EXPERIMENT": experiment.key,
        "HPCRUNNER_RUN_DIR": str(run_dir.root),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **cards,
    }


def too_long(experiment: Experiment) -> str | None:
    """Names the first value that no Linux program can be given; None if all can."""
    for what, value in (*((f"config.env.{name}", value) for name, value in experiment.env.items()),
                        *((f"argument {number}", value) for number, value in enumerate(experiment.args, 1))):
        size = len(os.fsencode(value))
        if size > _LARGEST_STRING - 100:
            return f"{what} has {size} bytes; Linux passes at most {_LARGEST_STRING} to a program: put it in a file"
    return None


ENV_END = "true  # That is all."
"""The last line of the file with the environment, by which a job sees that it has all of it. What it ends with must not
depend on the last variable: bash keeps some to itself."""


def env_file(values: Mapping[str, str], prefix: str) -> str:
    """Shell text that exports every value unchanged, under the engine's prefix."""
    exports = (f"export {prefix}{name}={shlex.quote(value)}\n" for name, value in sorted(values.items()))
    return "".join([*exports, ENV_END, "\n"])


def arguments(experiment: Experiment) -> tuple[str, ...]:
    """What follows `python`: the script or `-m module`, and the arguments. Empty for a container's own run script."""
    if experiment.filename is None:
        return ()
    script = experiment.filename
    if script.startswith("-") and script != "-m":
        script = f"./{script}"
    return (script, *experiment.args)


@dataclass(frozen=True)
class Script:
    """What a job script is made of beside the site's options. Durations in seconds."""

    run_dir: RunDir
    tag: str
    key: str
    command: Sequence[str]
    limit: float
    limit_name: str
    spool_dir: Path
    log: Path
    env_prefix: str = ""
    gpus: int = 0
    gpu_ids: Sequence[str] = ()
    """Those that hpcrunner chose; empty where the scheduler chooses."""
    metrics: Path | None = None
    """Where lines about the job's use of CPU, memory and GPUs go."""
    metrics_every: float | None = None
    """Time between them, at least `_SHORTEST`; None: one at the end only."""
    expires: float | None = None
    """Unix seconds after which it must not run."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """What the scheduler's own template needs besides."""


def script(site: Any, template: str, parts: Script) -> str:
    """Raises ConfigError if the template is at fault."""
    return environment.shell(site.job_template or template, {
        "tag": parts.tag,
        # One line of a comment: what a key may hold besides is no business of the shell's.
        "key": "".join(char if char.isprintable() else "?" for char in parts.key),
        "run_dir": parts.run_dir.root,
        "workspace": parts.run_dir.workspace,
        "env_file": parts.run_dir.env_file,
        "env_end": ENV_END,
        "log": parts.log,
        "spool_dir": parts.spool_dir,
        "command": list(parts.command),
        "limit": max(1, int(parts.limit)),
        "limit_name": parts.limit_name,
        "grace": max(1, int(site.kill_grace)),
        "prologue": site.prologue,
        "epilogue": site.epilogue,
        "env_prefix": parts.env_prefix,
        "gpus": parts.gpus,
        "gpu_ids": ",".join(parts.gpu_ids),
        "metrics": parts.metrics,
        "metrics_every": None if parts.metrics_every is None else max(_SHORTEST, int(parts.metrics_every)),
        "expires": None if parts.expires is None else int(parts.expires),
        "retries": site.retries,
        **parts.scheduler,
    }, site.template_dirs)
