"""Slurm, by its own commands: sbatch, squeue, sacct, scancel; text output only, from 20.11 on."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`site_options` are read by every command, the rest is needed by those that talk to Slurm."""
    if name == "site_options":
        from hpcrunner.schedulers.slurm.options import SlurmOptions

        return SlurmOptions
    if name == "backend":
        from hpcrunner.schedulers.slurm.scheduler import SlurmScheduler

        return SlurmScheduler
    raise AttributeError(name)
