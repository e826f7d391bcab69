"""One install of hpcrunner with all its parts: what every step of the tick works with."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hpcrunner import plugins
from hpcrunner.config.site import Site
from hpcrunner.errors import RefusedError, UnavailableError
from hpcrunner.journal.store import Journal
from hpcrunner.layout import RunDir, StateDir
from hpcrunner.model import Run, State
from hpcrunner.queues.base import Queues

if TYPE_CHECKING:
    from hpcrunner.artifacts.cache import Cache
    from hpcrunner.containers.base import Container
    from hpcrunner.engine.builds import Builds
    from hpcrunner.engine.stops import Stops
    from hpcrunner.engine.transfers import Transfers
    from hpcrunner.images.cache import Images
    from hpcrunner.schedulers.base import Job, Scheduler
    from hpcrunner.stores.base import Access, Store
    from hpcrunner.wire.experiment import Artifact, Experiment

log = logging.getLogger("hpcrunner")

_KEPT = 500
"""Experiments, of some ten kilobytes each, that are kept in memory."""
_KINDS = {"file": "local", "https": "http", "gcloud": "gs"}
"""Backends of stores by the scheme of a location, or the `type` in a client's configuration, where they differ."""


@dataclass
class Install:
    site: Site
    journal: Journal
    unanswered: str = ""
    """What the last look at the queues could not see, and why; empty if it saw all of them."""
    _experiments: dict[int, Experiment] = field(default_factory=dict, repr=False)

    @cached_property
    def state(self) -> StateDir:
        return StateDir(self.site.state_dir)

    @cached_property
    def scheduler(self) -> Scheduler:
        backend: Scheduler = plugins.load("schedulers", self.site.scheduler)(self.site)
        return backend

    @cached_property
    def transfers(self) -> Transfers:
        from hpcrunner.engine.transfers import Transfers

        return Transfers(self.site.max_transfers, self.journal.check_often)

    @cached_property
    def stops(self) -> Stops:
        from hpcrunner.engine.stops import Stops

        return Stops()

    @cached_property
    def engine(self) -> str:
        return choose_engine(self.site)

    @cached_property
    def container(self) -> Container:
        backend: Container = plugins.load("containers", self.engine)(self.site, self.engine)
        return backend

    @cached_property
    def cache(self) -> Cache | None:
        """None if there is none: then every experiment fetches what it needs for itself."""
        from hpcrunner.artifacts.cache import Cache

        if not self.site.cache_size:
            return None
        try:
            return Cache(self.site.cache_dir, self.site.cache_size)
        except (OSError, UnavailableError) as error:
            log.warning("cache_dir %s can't be used, so objects are fetched for each experiment anew: %s",
                        self.site.cache_dir, error)
            return None

    @cached_property
    def images(self) -> Images:
        from hpcrunner.images.cache import Images

        return Images(self.site, self.engine, self.container)

    @cached_property
    def builds(self) -> Builds:
        from hpcrunner.engine import builds
        from hpcrunner.engine.submit import prefix_of

        return builds.Builds(self.site, self.images, self.scheduler,
                             builds.prefix_of(prefix_of(self.journal.install_id)))

    @cached_property
    def mark(self) -> str:
        """Four characters that tell what is this install's where others may have theirs."""
        from hpcrunner.engine.submit import prefix_of

        return prefix_of(self.journal.install_id)[2:]

    @cached_property
    def sources(self) -> list[Queues]:
        """The site's queue brokers, in the order of the site config."""
        return [plugins.load("queues", source.type)(source.options, self.journal.install_id)
                for source in self.site.queues]

    def queues(self) -> Iterator[tuple[Queues, list[str]]]:
        """Each broker that answers, with the queues it has now."""
        for source in self.sources:
            try:
                names = source.names()
            except UnavailableError as error:
                log.warning("%s", error)
                self.unanswered = str(error)
                continue
            yield source, [name for name in names if self._wanted(name)]

    def _wanted(self, queue: str) -> bool:
        match, mismatch = self.site.queue_match, self.site.queue_mismatch
        return (not match or bool(match.search(queue))) and not (mismatch and mismatch.search(queue))

    def experiment(self, run: Run) -> Experiment:
        """Kept for a while: every step of a run reads it."""
        from hpcrunner.wire.message import parse

        if run.id not in self._experiments:
            while len(self._experiments) >= _KEPT:
                del self._experiments[next(iter(self._experiments))]
            self._experiments[run.id] = parse(self.journal.message(run))
        return self._experiments[run.id]

    def run_dir(self, run: Run) -> RunDir:
        """Its folder; the name holds the install and the run's id, so no two runs share one. Other installs may have
        the same `working_dir`, and the same experiments."""
        from hpcrunner.wire.message import safe_name

        name = safe_name(run.key)
        if run.run_dir:
            return RunDir(Path(run.run_dir), name)
        return RunDir(self.site.working_dir / f"{name}-{self.mark}-{run.id}.{run.generation}", name)

    def job(self, run: Run) -> Job:
        from hpcrunner.schedulers.base import Job

        return Job(run.tag, run.job_id, self.run_dir(run).root, run.job_name, run.task, run.submitted_at,
                   run.state is State.RUNNING, bool(run.cancelling))

    def store(self, experiment: Experiment, artifact: Artifact) -> Store:
        """The store of an artifact, which must have a location. Raises StoreError for a kind that this hpcrunner
        doesn't know."""
        from hpcrunner.stores.base import Access, shown

        assert artifact.location is not None
        scheme = artifact.location.partition(":")[0]
        config = experiment.storage
        access = Access(artifact.credentials, config.credentials if config else None, experiment.env,
                        config.endpoint if config else None)
        return open_store(self.site, scheme, access, shown(artifact.location))


def open_store(site: Site, kind: str, access: Access, what: str) -> Store:
    kind = _KINDS.get(kind, kind)
    if not plugins.is_known("stores", kind):
        raise RefusedError(f"{what}: there is no store of the kind {kind!r} in this hpcrunner; it has "
                           f"{', '.join(plugins.names('stores'))}")
    store: Store = plugins.load("stores", kind)(site, access)
    return store


def choose_engine(site: Site) -> str:
    """`engine: auto` means a container engine if one is installed, else virtual environments."""
    if site.engine != "auto":
        return site.engine
    import shutil

    for name in ("apptainer", "singularity"):
        if shutil.which(str(site.engine_path) if site.engine_path else name):
            return name
    return "none"
