"""Where images are built: by a process of this host, or by a job of the scheduler, as the site says.

A job is marked down in the build's folder before it is submitted, `job.json` with the name by which it is found again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcrunner.config.site import Site
from hpcrunner.engine.install import log
from hpcrunner.errors import HpcrunnerError
from hpcrunner.files import write_whole
from hpcrunner.images.cache import Images, builder_command, crash_count
from hpcrunner.model import UNKNOWN, Image, ImageState, JobStatus, Phase
from hpcrunner.schedulers.base import BuildJob, Job, Scheduler, SubmitDeferred, SubmitRefused, SubmitUnclear


def prefix_of(prefix: str) -> str:
    """What the names of all build jobs of an install begin with, from what those of its other jobs do."""
    return "hb" + prefix[2:]


def marks(image_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Digest and mark of each image that a job is to build."""
    for path in sorted((image_dir / "builds").glob("*/job.json")):
        if mark := _mark(path.parent):
            yield path.parent.name, mark


class Builds:
    def __init__(self, site: Site, images: Images, scheduler: Scheduler, prefix: str) -> None:
        self._site, self._images, self._scheduler = site, images, scheduler
        self._prefix = prefix
        self._wanted: set[str] = set()
        self._dropped: set[str] = set()
        """Images that runs wanted a moment ago, and none wants now."""

    def jobs(self, digests: Iterable[str]) -> list[Job]:
        """The jobs that build these images, as far as they were submitted, and those that no run wants any more."""
        wanted = set(digests)
        self._dropped = (self._dropped | self._wanted) - wanted
        self._wanted = wanted
        marked = ((digest, _mark(self._images.folder(digest))) for digest in sorted(wanted | self._dropped))
        return [Job(mark["name"], "", self._images.folder(digest), mark["name"], since=float(mark["at"]))
                for digest, mark in marked if mark]

    def look(self, digests: Collection[str], states: Mapping[str, JobStatus]) -> dict[str, Image]:
        for digest in self._dropped:
            self._drop(digest, states)
        self._dropped.clear()
        return {digest: self._look(digest, states) for digest in digests}

    def start(self, digest: str) -> None:
        """Raises HpcrunnerError if the scheduler does not take it."""
        if not self._scheduler.builds_images:
            self._images.build(digest)
            return
        folder = self._images.folder(digest)
        name = f"{self._prefix}{digest[:6]}{int(time.time() * 1000) % 1000:03}"
        mark = {"name": name, "at": time.time(), "begun": crash_count(folder)[0]}
        write_whole(folder / "job.json", json.dumps(mark), 0o600)
        try:
            job_id = self._scheduler.build(BuildJob(name, folder, *builder_command(folder), self._site.build_timeout))
        except SubmitUnclear as error:
            log.warning("image %s: %s; it is looked for before it is submitted again", digest[:12], error)
        except HpcrunnerError as error:
            (folder / "job.json").unlink()
            if isinstance(error, SubmitRefused):
                # It was the site that chose the job's size, not the experiment.
                raise SubmitDeferred(f"the job that builds its image: {error}") from error
            raise
        else:
            write_whole(folder / "job.json", json.dumps({**mark, "job_id": job_id}), 0o600)
            log.info("image %s: being built by job %s", digest[:12], job_id)

    def _drop(self, digest: str, states: Mapping[str, JobStatus]) -> None:
        """Cancels a build job that has not begun, and that may never begin. One that has may be of use to others."""
        folder = self._images.folder(digest)
        mark = _mark(folder)
        if mark is None or not mark["name"].startswith(self._prefix):
            return  # There is none, or it is that of another install with the same images.
        job = states.get(mark["name"], UNKNOWN)
        job_id = job.job_id or str(mark.get("job_id", ""))
        is_waiting = job.phase in (Phase.PENDING, Phase.UNKNOWN) and crash_count(folder)[0] <= int(mark["begun"])
        if job_id and is_waiting and self._images.look(digest).state is ImageState.MISSING:
            try:
                self._scheduler.cancel([Job(mark["name"], job_id, folder, mark["name"])], now=True)
            except HpcrunnerError as error:
                log.warning("image %s: job %s, which nobody wants, is not cancelled: %s", digest[:12], job_id, error)
            else:
                log.info("image %s: no experiment wants it: job %s is cancelled", digest[:12], job_id)
                (folder / "job.json").unlink()

    def _look(self, digest: str, states: Mapping[str, JobStatus]) -> Image:
        image = self._images.look(digest)
        mark = _mark(self._images.folder(digest))
        if mark is None or image.state is ImageState.BUILDING:
            return image
        job = states.get(mark["name"], UNKNOWN)
        if image.state is ImageState.MISSING and job.phase not in (Phase.ENDED, Phase.GONE):
            return Image(ImageState.BUILDING, job.reason if job.phase is Phase.PENDING else "")
        folder = self._images.folder(digest)
        if image.state is ImageState.MISSING:
            if job.phase is Phase.GONE and time.time() < float(mark["at"]) + self._scheduler.settles:
                return Image(ImageState.BUILDING)
            log.warning("image %s: the job that was to build it ended without a word: %s", digest[:12], job.reason)
            if crash_count(folder)[0] <= int(mark["begun"]):
                # It did not even begin; that counts, or it would be tried for ever.
                with (folder / "begun").open("ab") as begun:
                    begun.write(b".")
        (folder / "job.json").unlink(missing_ok=True)
        return self._images.look(digest)


def _mark(folder: Path) -> dict[str, Any] | None:
    try:
        mark: dict[str, Any] = json.loads((folder / "job.json").read_text())
        return mark
    except (OSError, ValueError):
        return None
