"""Before the job: its input files into the run directory, its image ordered.

`stage` runs in a thread and knows no journal; the main thread records what it returns.
"""

from __future__ import annotations

import shutil
import time

from hpcrunner.artifacts.style import TarStyle
from hpcrunner.engine import checkpoint, imageuse
from hpcrunner.engine.fetch import bring
from hpcrunner.engine.install import Install, log
from hpcrunner.engine.transfers import Transfer
from hpcrunner.errors import MessageError, StoreError
from hpcrunner.files import write_whole
from hpcrunner.layout import RunDir
from hpcrunner.model import Run, State
from hpcrunner.wire.experiment import Experiment
from hpcrunner.wire.requirements import needs_studioml

IMAGE_TAG = "_singularity"
_LARGEST_SOURCE = 4 * 2**20
_OF_ONE_RUN = {"retval", "output", "_metrics", "_metadata"}
"""Artifacts that say what a run did. What checkpoints of a lost job left of them is not what the next one has done; of
all others they are where it may go on."""


def stage(install: Install, experiment: Experiment, run: Run, run_dir: RunDir, transfer: Transfer) -> tuple[str, ...]:
    """Fetches every artifact whose object exists, into a new run directory. Returns notes for the user.

    What a crash left of an earlier try is removed first, but for half downloads: nothing has run in it. Raises
    MessageError or StoreError.
    """
    check_image_source(experiment)
    notes: list[str] = []
    clear_away(run_dir)
    for folder in (run_dir.transfer, run_dir.status, run_dir.home, run_dir.experiment):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    style: TarStyle | None = None
    has_checkpoints = checkpoint.first(experiment, install.site.checkpoint_min, 0.0) is not None
    left = experiment.resources.hdd or install.site.artifact_limit
    # The workspace first: its tar shows in which style this client packs.
    for tag in sorted(experiment.artifacts, key=lambda tag: (tag != "workspace", tag)):
        artifact = experiment.artifacts[tag]
        if run.generation > 1 and has_checkpoints and artifact.mutable and artifact.tag in _OF_ONE_RUN:
            continue
        target = run_dir.given_image if artifact.tag == IMAGE_TAG else run_dir.experiment / artifact.tag
        transfer.begin(f"{experiment.key}: fetching {tag}")
        brought = bring(install, experiment, artifact, target, run_dir.transfer, style, left, transfer)
        if brought is None:
            continue
        style = brought.style
        notes += brought.notes
        left = max(0, left - brought.bytes)
    _check_image(install, run_dir, experiment)
    run_dir.workspace.mkdir(exist_ok=True)
    (run_dir.experiment / "modeldir").mkdir(exist_ok=True)
    _open_log(run_dir, "output" in experiment.artifacts)
    shutil.rmtree(run_dir.transfer)
    # Last, for its presence says that everything else is there.
    write_whole(run_dir.style_file, (style or style_by_version(experiment)).value, 0o600)
    return tuple(notes)


def staged(install: Install, run: Run, notes: tuple[str, ...]) -> Run:
    """Records what `stage` did."""
    return install.journal.move(run, State.STAGED, "input files are in place", run_dir=str(install.run_dir(run).root),
                                notes=tuple(dict.fromkeys([*run.notes, *notes])))


def clear_away(run_dir: RunDir) -> None:
    """Empties a run directory in which nothing has run; transfers that were interrupted may go on."""
    if (run_dir.status / "owner").exists():
        # A job that this journal, restored from a backup maybe, knows nothing of: it keeps its files.
        aside = run_dir.root.with_name(f"{run_dir.root.name}.{time.time_ns()}")
        log.warning("%s is another job's; moved to %s", run_dir.root, aside.name)
        run_dir.root.replace(aside)
    run_dir.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in run_dir.root.iterdir():
        if path == run_dir.transfer:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def check_image_source(experiment: Experiment) -> None:
    """Raises MessageError unless the experiment's own image, if it has one, is a stored file."""
    image = experiment.artifacts.get(IMAGE_TAG)
    if image is not None and image.key is None:
        raise MessageError(f"wants the image {image.location}; this site runs only image files that travel with the "
                           "experiment (studio run --container=FILE)")


def style_by_version(experiment: Experiment) -> TarStyle:
    """How the submitting client packs, told by its version, where there is no tar of its own to look at."""
    for entry in experiment.pythonenv:
        name, _, version = entry.partition("==")
        if name.strip().lower() == "studioml":
            numbers = [int(part) for part in version.split(".")[:3] if part.isdigit()]
            return TarStyle.OLD if (0,) < tuple(numbers) < (0, 0, 44) else TarStyle.NEW
    return TarStyle.NEW


def define(install: Install, run: Run) -> Run:
    """Finds out which image the run needs, and orders it if it has to be built. Raises MessageError, ConfigError."""
    experiment = install.experiment(run)
    run_dir = install.run_dir(run)
    if run_dir.given_image.exists():
        return install.journal.note(run, "its image came with it", image=str(run_dir.given_image))
    if experiment.filename is None:
        raise MessageError("has no script to run, and no image with a run script of its own (_singularity)")
    definition = install.container.define(experiment, studioml=wants_studioml(install, experiment, run_dir))
    imageuse.register(install)
    install.images.order(definition)
    for name, text in definition.files.items():
        (run_dir.root / name).write_text(text, encoding="utf-8")
    return install.journal.note(run, f"needs the image {definition.digest[:12]}: {definition.summary}",
                                image=definition.digest, notes=tuple(dict.fromkeys([*run.notes, *definition.warnings])))


def wants_studioml(install: Install, experiment: Experiment, run_dir: RunDir) -> bool:
    """Whether the job imports StudioML itself, told by its source files unless the site says."""
    if install.site.studioml != "auto":
        return install.site.studioml == "always"
    return needs_studioml(experiment.filename, (
        path.read_text(encoding="utf-8", errors="replace") for path in sorted(run_dir.experiment.rglob("*.py"))
        if path.is_file() and not path.is_symlink() and path.stat().st_size < _LARGEST_SOURCE))


def _check_image(install: Install, run_dir: RunDir, experiment: Experiment) -> None:
    image = run_dir.given_image
    if image.is_dir():
        # One file in a tar is told from a folder with one file by the style only; here it must be a file.
        files = [path for path in image.iterdir() if path.is_file() and not path.is_symlink()]
        if len(files) != 1:
            raise MessageError(f"artifact {IMAGE_TAG} holds {len(files)} files; it must be one image file")
        files[0].replace(image.with_suffix(".one"))
        shutil.rmtree(image)
        image.with_suffix(".one").replace(image)
    if image.exists() and (refusal := install.container.accepts(image)):
        raise MessageError(f"artifact {IMAGE_TAG} {refusal}")


def _open_log(run_dir: RunDir, has_output: bool) -> None:
    """Makes the folder of the log. An `output` that came as a single file becomes the log's beginning."""
    log = run_dir.log(has_output)
    folder = log.parent
    if folder.is_symlink() or folder.is_file():
        before = folder.with_name(".output")
        folder.replace(before)
        folder.mkdir()
        before.replace(log)
    folder.mkdir(exist_ok=True)
    if log.is_symlink():
        raise StoreError("artifact output: its file `output` is a link; it must be a file")
