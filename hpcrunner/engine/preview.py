"""What would be submitted for a message, rendered without a journal, a store or a scheduler."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from hpcrunner import plugins
from hpcrunner.config.site import Site
from hpcrunner.containers.base import Container
from hpcrunner.engine.actions import Observations, Policy, Submit
from hpcrunner.engine.install import choose_engine
from hpcrunner.engine.intake import request_of
from hpcrunner.engine.jobfiles import job_files, submission_of
from hpcrunner.engine.plan import plan, wanted_time
from hpcrunner.engine.prepare import IMAGE_TAG, check_image_source
from hpcrunner.errors import MessageError
from hpcrunner.layout import RunDir
from hpcrunner.model import Place, Run, State
from hpcrunner.schedulers.base import Scheduler
from hpcrunner.wire.experiment import Experiment
from hpcrunner.wire.message import parse, safe_name
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
    name = safe_name(experiment.key)
    run_dir = RunDir(site.working_dir / f"{name}-0.1", name)
    engine = choose_engine(site)
    container: Container = plugins.load("containers", engine)(site, engine)
    files = {}
    if IMAGE_TAG in experiment.artifacts:
        image, summary = str(run_dir.given_image), "the image that comes with it"
    elif experiment.filename is None:
        raise MessageError("has no script to run, and no image with a run script of its own (_singularity)")
    else:
        studioml = site.studioml == "always" or (
            site.studioml == "auto" and needs_studioml(experiment.filename, ()))
        definition = container.define(experiment, studioml=studioml)
        image, summary = definition.digest, definition.summary
        files.update(definition.files)
    run = Run(0, "", experiment.key, State.READY, request=request_of(experiment), image=image,
              max_duration=experiment.max_duration, run_dir=str(run_dir.root))
    scheduler: Scheduler = plugins.load("schedulers", site.scheduler)(site)
    policy = Policy(site.max_duration, site.retries, site.queue_gone_grace, 0.0, site.default_duration)
    now = time.time()
    # Whether this very host has the GPUs is no matter here; a partition that has them is.
    place = scheduler.place(run.request, wanted_time(run, policy, now)[0]) if scheduler.binds_gpus else Place()
    if isinstance(place, str):
        raise MessageError(place)
    # Without its lifetime, which for a recorded message is long over.
    action = plan([run], Observations(places={run.id: place}), policy, now)[0]
    assert isinstance(action, Submit)
    action = replace(action, gpus=tuple(str(index) for index in range(run.request.gpus)))
    files["job.sh"], files["env.sh"] = job_files(site, container, scheduler, experiment, run_dir, action,
                                                 submission_of(action, run_dir, "hr" + "0" * 13))
    return Preview(experiment, summary, files)
