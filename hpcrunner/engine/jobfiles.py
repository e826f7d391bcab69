"""The files that a job starts from: its script, and its environment."""

from __future__ import annotations

import os
from pathlib import Path

from hpcrunner.config.site import Site
from hpcrunner.containers.base import Container, Launch
from hpcrunner.engine.actions import Submit
from hpcrunner.errors import MessageError
from hpcrunner.layout import RunDir, StateDir
from hpcrunner.render import job
from hpcrunner.schedulers.base import Scheduler, Submission
from hpcrunner.wire.experiment import Experiment


def submission_of(action: Submit, run_dir: RunDir, tag: str) -> Submission:
    run = action.run
    return Submission(tag, run_dir.script, run_dir.root, run.request, action.limit, action.place, run.image, run.avoid)


def job_files(site: Site, container: Container, scheduler: Scheduler, experiment: Experiment, run_dir: RunDir,
              action: Submit, submission: Submission) -> tuple[str, str]:
    """(job script, environment file) as texts. Raises MessageError for what no program can be given."""
    if refusal := job.too_long(experiment):
        raise MessageError(refusal)
    run, gpus = action.run, action.run.request.gpus
    image = run_dir.given_image if run.image == str(run_dir.given_image) else container.image(run.image)
    launch = Launch(job.arguments(experiment), run_dir.root, run_dir.workspace, gpus=gpus)
    known = {"PATH": container.default_path, "HOME": str(run_dir.home), "USER": os.environ.get("USER", "")}
    # Which cards a job has is known before it starts only if it is hpcrunner that chooses.
    values = job.variables(experiment, run_dir, site.env, None if gpus and scheduler.binds_gpus else action.gpus, known)
    script = job.script(site, scheduler.template, job.Script(
        run_dir, submission.tag, experiment.key, container.command(image, launch), action.limit, action.limit_name,
        StateDir(site.state_dir).spool, run_dir.log("output" in experiment.artifacts), container.env_prefix, gpus,
        () if scheduler.binds_gpus else action.gpus, _metrics(experiment, run_dir), experiment.metrics_frequency,
        run.expires_at, scheduler.script_values(submission)))
    return script, job.env_file(values, container.env_prefix)


def _metrics(experiment: Experiment, run_dir: RunDir) -> Path | None:
    """The client expects a single file, and only in the artifact that it made for it."""
    artifact = experiment.artifacts.get("_metrics")
    return run_dir.experiment / artifact.tag if artifact is not None and artifact.mutable else None
