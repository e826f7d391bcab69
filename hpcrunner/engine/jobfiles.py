"""The files that a job starts from: its script, and its environment."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hpcrunner.config.site import Site
from hpcrunner.containers.base import Container, Launch
from hpcrunner.engine.plan import Submit
from hpcrunner.errors import MessageError
from hpcrunner.layout import RunDir, StateDir
from hpcrunner.render import job
from hpcrunner.wire.message import Experiment


def job_files(site: Site, container: Container, experiment: Experiment, run_dir: RunDir, action: Submit, tag: str,
              gpus: Sequence[str]) -> tuple[str, str]:
    """(job script, environment file) as texts. Raises MessageError for what no program can be given."""
    if refusal := job.too_long(experiment):
        raise MessageError(refusal)
    run = action.run
    image = run_dir.given_image if run.image == str(run_dir.given_image) else container.image(run.image)
    launch = Launch(job.arguments(experiment), run_dir.root, run_dir.workspace, gpus=len(gpus) or run.request.gpus)
    known = {"PATH": container.default_path, "HOME": str(run_dir.home), "USER": os.environ.get("USER", "")}
    values = job.variables(experiment, run_dir, site.env, gpus, known)
    script = job.script(
        site, site.scheduler, run_dir, tag=tag, experiment=experiment, command=container.command(image, launch),
        limit=action.limit, limit_name=action.limit_name, spool_dir=StateDir(site.state_dir).spool,
        has_output="output" in experiment.artifacts)
    return script, job.env_file(values, container.env_prefix)
