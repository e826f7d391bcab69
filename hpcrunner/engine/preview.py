"""What would be submitted for a message, rendered without a journal, a store or a scheduler."""

from __future__ import annotations

import time
from dataclasses import dataclass

from hpcrunner import plugins
from hpcrunner.config.site import Site
from hpcrunner.containers.base import Container, Launch
from hpcrunner.engine.install import choose_engine
from hpcrunner.engine.intake import expiry_of, request_of
from hpcrunner.engine.plan import Observations, Policy, Submit, plan
from hpcrunner.engine.prepare import IMAGE_TAG, check_image_source
from hpcrunner.errors import MessageError
from hpcrunner.layout import RunDir, StateDir
from hpcrunner.model import Run, State
from hpcrunner.render import job
from hpcrunner.wire.message import Experiment, parse, safe_name
from hpcrunner.wire.requirements import needs_studioml


@dataclass(frozen=True)
class Preview:
    experiment: Experiment
    summary: str
    """What the image would be."""
    files: dict[str, str]
    """Name to text of everything that would be written: definition, package list, job script, environment."""


def preview(site: Site, payload: bytes) -> Preview:
    """Renders all that hpcrunner would make of a message.

    Whether the job needs StudioML itself shows only when its files are there; here the script's name decides.
    Raises MessageError for what would be refused.
    """
    experiment = parse(payload)
    check_image_source(experiment)
    if refusal := job.too_long(experiment):
        raise MessageError(refusal)
    now = time.time()
    name = safe_name(experiment.key)
    run_dir = RunDir(site.working_dir / f"{name}-0.1", name)
    run = Run(0, "", experiment.key, State.READY, request=request_of(experiment),
              max_duration=experiment.max_duration, expires_at=expiry_of(experiment, now), run_dir=str(run_dir.root))
    policy = Policy(site.max_duration, site.retries, site.queue_gone_grace, 0.0)
    # Without its lifetime, which for a recorded message is long over.
    action = plan([Run(**{**vars(run), "expires_at": None})], Observations(), policy, now)[0]
    assert isinstance(action, Submit)
    engine = choose_engine(site)
    container: Container = plugins.load("containers", engine)(site, engine)
    files = {}
    if IMAGE_TAG in experiment.artifacts:
        image, summary = run_dir.given_image, "the image that comes with it"
    elif experiment.filename is None:
        raise MessageError("has no script to run, and no image with a run script of its own (_singularity)")
    else:
        studioml = site.studioml == "always" or (
            site.studioml == "auto" and needs_studioml(experiment.filename, ()))
        definition = container.define(experiment, studioml=studioml)
        image, summary = container.image(definition.digest), definition.summary
        files.update(definition.files)
    gpus = [str(index) for index in range(run.request.gpus)]
    launch = Launch(job.arguments(experiment), run_dir.root, run_dir.workspace, gpus=len(gpus))
    known = {"PATH": container.default_path, "HOME": str(run_dir.home)}
    files["env.sh"] = job.env_file(job.variables(experiment, run_dir, site.env, gpus, known), container.env_prefix)
    files["job.sh"] = job.script(
        site, site.scheduler, run_dir, tag="hr" + "0" * 13, experiment=experiment,
        command=container.command(image, launch), limit=action.limit, limit_name=action.limit_name,
        spool_dir=StateDir(site.state_dir).spool, has_output="output" in experiment.artifacts)
    return Preview(experiment, summary, files)
