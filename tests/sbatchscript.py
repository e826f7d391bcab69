"""What sbatch reads of a script, and commands that stand in for Slurm's where only that is of interest."""

from __future__ import annotations

import shlex
from pathlib import Path


def directives_of(script: str) -> list[str]:
    """What sbatch takes for its options: lines before the first command (sbatch(1), DESCRIPTION)."""
    found = []
    for line in script.splitlines()[1:]:
        if line and not line.startswith("#"):
            break
        if line.startswith("#SBATCH"):
            found.append(line.removeprefix("#SBATCH").strip())
    return found


def options_of(script: str) -> dict[str, str]:
    """The options by name, read as sbatch reads them: in words, as a shell takes quotes."""
    found = {}
    for line in directives_of(script):
        [word] = shlex.split(line, comments=True)
        name, _, value = word.removeprefix("--").partition("=")
        assert word.startswith("--"), line
        assert name not in found, f"{name} is there twice"
        found[name] = value
    return found


def pretend(folder: Path) -> Path:
    """A folder for `slurm.bin_dir` with an sbatch that starts jobs at once, as processes of this host, and keeps their
    scripts beside itself; there is no accounting, and squeue has forgotten all of them."""
    folder.mkdir()
    for name, text in {"sbatch": _SBATCH, "squeue": "", "scancel": "",
                       "sacct": "echo Slurm accounting storage is disabled >&2\nexit 1\n"}.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755)
    return folder


_SBATCH = r"""
folder=$(dirname "$0")
until number=$(date +%s%N) && mkdir "$folder/$number"; do :; done
script=$folder/$number/job.sh
cp "${!#}" "$script"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$script")
export SLURM_JOB_NAME=$(sed -n 's/^#SBATCH --job-name=//p' "$script") SLURMD_NODENAME=here SLURM_JOB_ID=$number
if [[ $last ]]; then
    export SLURM_ARRAY_JOB_ID=$number
    for ((task = 0; task <= last; task++)); do
        SLURM_ARRAY_TASK_ID=$task setsid bash "$script" </dev/null >/dev/null 2>&1 &
    done
else
    setsid bash "$script" </dev/null >/dev/null 2>&1 &
fi
echo "$number"
"""
