"""Slurm, by its own commands: sbatch, squeue, sacct, scancel; text output only, from 20.11 on."""

from hpcrunner.schedulers.slurm.scheduler import SlurmScheduler as backend

__all__ = ["backend"]
