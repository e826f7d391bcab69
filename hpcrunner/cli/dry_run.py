"""`hpcrunner submit-from-queue --dry-run`."""

from __future__ import annotations

from hpcrunner import plugins
from hpcrunner.config.site import Site
from hpcrunner.engine.intake import expiry_of, request_of
from hpcrunner.engine.preview import preview
from hpcrunner.errors import HpcrunnerError, NotFoundError, UnavailableError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import StateDir
from hpcrunner.queues.base import Queues
from hpcrunner.schedulers.base import Scheduler


def run(site: Site, limit: int | None) -> int:
    """Shows what a tick would take and submit. Reads queues without taking, and makes nothing."""
    import time

    try:
        with Journal(StateDir(site.state_dir).journal, read_only=True) as journal:
            install_id, active = journal.install_id, journal.runs()
    except NotFoundError:
        install_id, active = "none", []
    for run in active:
        print(f"# {run.key}: already taken, {run.state.value}")
    shown, unanswered = 0, False
    scheduler: Scheduler = plugins.load("schedulers", site.scheduler)(site)
    for source in site.queues:
        broker: Queues = plugins.load("queues", source.type)(source.options, install_id)
        try:
            names = broker.names()
        except UnavailableError as error:
            # As a tick has it: there may be none yet.
            print(f"# {error}")
            unanswered = True
            continue
        for queue in names:
            for payload in broker.peek(queue):
                if limit is not None and shown >= limit:
                    return 0
                shown += 1
                try:
                    rendered = preview(site, payload)
                    experiment = rendered.experiment
                    print(f"# {experiment.key} from queue {queue}: {rendered.summary}")
                    expires = expiry_of(experiment, time.time())
                    place = scheduler.place(request_of(experiment), experiment.max_duration or site.max_duration)
                    if isinstance(place, str):
                        print(f"# would be rejected: {place}")
                    elif expires is not None and expires <= time.time():
                        print("# would end as expired: its lifetime is over")
                    else:
                        print(rendered.files["job.sh"])
                except HpcrunnerError as error:
                    print(f"# a message from queue {queue} would be refused: {error}")
    if not shown and not unanswered:
        print("# the queues are empty")
    return 0
