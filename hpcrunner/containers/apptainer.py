"""Apptainer and SingularityCE, through their own command.

Facts about the command that shaped this file were measured with Apptainer 1.4.5; where SingularityCE or an
older version differs, the options are left out by version.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from hpcrunner import proc
from hpcrunner.containers.base import BuildError, Definition, Launch
from hpcrunner.errors import MessageError, UnavailableError
from hpcrunner.render import environment
from hpcrunner.wire.experiment import Experiment
from hpcrunner.wire.requirements import requirements

_REMOTE = re.compile(r"(docker|oras|library)://")
_LAUNCHER = """: >"$1"; shift
for python in /opt/hpcrunner/python python python3; do
    if command -v "$python" >/dev/null 2>&1; then exec "$python" "$@"; fi
done
echo "hpcrunner: there is no Python in this image" >&2
exit 127"""
"""Runs inside the image: leaves a mark that the container did start, since exit code 255 may be the engine's
as well as the program's, and finds Python."""


class Apptainer:
    default_path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def __init__(self, site: Any, name: str) -> None:
        self._site = site
        self._program = find_program(site.engine_path, name)
        self._version: tuple[int, ...] | None = None
        self._is_ce = False

    @property
    def env_prefix(self) -> str:
        # Apptainer takes the old prefix too, but says so on every run.
        return "SINGULARITYENV_" if self._ce() else "APPTAINERENV_"

    def define(self, experiment: Experiment, *, studioml: bool) -> Definition:
        site = self._site
        wanted = requirements(experiment.pythonenv, experiment.pip, keep_studioml=studioml)
        base = choose_base(site, experiment.pythonver)
        header = _header(base)
        lines = "".join(f"{line}\n" for line in wanted.lines)
        text = environment.definition(f"{site.recipe}.def.j2", {
            **header, "pythonver": experiment.pythonver, "exact": site.python_match == "minor",
            "pip_args": list(site.pip_args), "packages": len(wanted.lines), "needs_git": wanted.needs_git,
        }, site.template_dirs)
        files = {"image.def": text, "requirements.txt": lines}
        inputs = "\0".join([base_identity(base), os.uname().machine, text, lines])
        return Definition(sha256(inputs.encode()).hexdigest(), files,
                          f"Python {experiment.pythonver} with {len(wanted.lines)} packages on {Path(base).name}",
                          wanted.warnings)

    def image(self, digest: str) -> Path:
        return Path(self._site.image_dir) / f"{digest}.sif"

    def is_built(self, digest: str) -> bool:
        return self.image(digest).exists()

    def build(self, folder: Path, digest: str, log: IO[bytes]) -> None:
        site, target = self._site, self.image(digest)
        part = target.with_name(f".{digest}.{proc.host_name()}.{os.getpid()}.sif")
        scratch = site.build_tmpdir or _scratch()
        prefix = "SINGULARITY_" if self._ce() else "APPTAINER_"
        settings = {"TMPDIR": str(scratch), "MKSQUASHFS_ARGS": site.mksquashfs_args}
        env = proc.clean_environment({prefix + name: value for name, value in settings.items() if value}, network=True)
        # As root only --fakeroot works everywhere: root in a container host may lack capabilities.
        root = ["--fakeroot"] if os.geteuid() == 0 else []
        try:
            done = proc.run([self._program, "build", *root, *site.build_args, str(part), "image.def"],
                            timeout=site.build_timeout, env=env, cwd=folder, log=log)
            if done.timed_out:
                raise BuildError(f"the image build took longer than build_timeout ({site.build_timeout:.0f} s)")
            if done.code != 0:
                raise BuildError(f"the image build failed: {Path(self._program).name} ended with exit code {done.code}")
            looked = proc.run([self._program, "inspect", str(part)], timeout=60)
            if looked.code != 0:
                raise BuildError(f"the built image can't be read: {looked.err.strip()[-300:]}")
            with part.open("rb") as image:
                os.fsync(image.fileno())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def accepts(self, image: Path) -> str | None:
        with image.open("rb") as file:
            head = file.read(64)
        # SIF: magic at byte 32, after the launch script. Older images are squashfs or begin with a script.
        if head[32:42] == b"SIF_MAGIC\0" or head[:4] in (b"hsqs", b"sqsh") or head[:2] == b"#!":
            return None
        return "is not a Singularity image (neither SIF nor squashfs)"

    def command(self, image: Path, launch: Launch) -> Sequence[str]:
        run_dir = str(launch.run_dir)
        modern = self._at_least(3, 10) if self._ce() else self._at_least(1, 1)
        options = ["--pid", "--cleanenv", *(["--no-eval"] if modern else []),
                   "--home", f"{run_dir}/home", "--bind", f"{run_dir}:{run_dir}", "--pwd", str(launch.workspace)]
        for bind in self._site.binds:
            options += ["--bind", bind]
        if launch.gpus:
            options.append("--rocm" if self._site.gpu_vendor == "amd" else "--nv")
        if os.geteuid() == 0:
            options.append("--userns")
        start = [self._program, "-q", "exec" if launch.argv else "run", *options, *self._site.exec_args, str(image)]
        if not launch.argv:
            return start
        return [*start, "/bin/sh", "-c", _LAUNCHER, "sh", f"{run_dir}/status/program", *launch.argv]

    def _ask(self) -> None:
        if self._version is None:
            said = proc.run([self._program, "--version"], timeout=60).out
            self._is_ce = "singularity" in said.lower()
            self._version = tuple(int(part) for part in re.findall(r"\d+", said)[:3])

    def _ce(self) -> bool:
        self._ask()
        return self._is_ce

    def _at_least(self, *version: int) -> bool:
        self._ask()
        return (self._version or ()) >= version


def find_program(path: Path | str | None, name: str) -> str:
    """Raises UnavailableError if the engine is not installed."""
    if path is not None:
        found = shutil.which(str(path))
        if not found:
            raise UnavailableError(f"engine_path {path}: no such program")
        return found
    for candidate in ("apptainer", "singularity") if name == "apptainer" else ("singularity", "apptainer"):
        if found := shutil.which(candidate):
            return found
    raise UnavailableError(f"engine {name}: neither apptainer nor singularity is on PATH; install one, give its path "
                           "as engine_path, or set `engine: none` to run in virtual environments")


def choose_base(site: Any, pythonver: str) -> str:
    """The site's base image for a Python version. Raises MessageError if it has none."""
    images: dict[str, str] = dict(site.base_images)
    if not images:
        raise MessageError("needs an image to be built, and this site has no base images to build on; its admin can "
                           "name one: `base_images: {any: /shared/python.sif}`")
    if pythonver in images:
        return images[pythonver]
    if site.python_match == "major":
        same = sorted(version for version in images if version.split(".")[0] == pythonver.split(".")[0])
        if "any" in images or same:
            return images.get("any") or images[same[-1]]
    elif "any" in images:
        return images["any"]
    raise MessageError(f"asks for Python {pythonver}; this site has base images for {', '.join(sorted(images))} "
                       "(base_images)")


def base_identity(base: str) -> str:
    """What makes two bases equal: the SHA-256 of an image file, the reference of a remote one.

    A folder is known by its path and time only: hashing a whole root would take longer than building.
    Raises UnavailableError if a local base does not exist.
    """
    if _REMOTE.match(base):
        return base
    path = Path(base)
    try:
        if path.is_dir():
            return f"{path}@{path.stat().st_mtime_ns}"
        digest = sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        return digest.hexdigest()
    except OSError as error:
        raise UnavailableError(f"base_images: {base}: {error.strerror}", transient=True) from error


def _header(base: str) -> dict[str, str]:
    if remote := _REMOTE.match(base):
        return {"bootstrap": remote[1], "base": base[remote.end():]}
    return {"bootstrap": "localimage", "base": base}


def _scratch() -> Path:
    """A folder in memory for the unpacked image if it fits (ten times faster), otherwise the usual one.

    The engine needs one where programs may be run.
    """
    memory = Path("/dev/shm")
    try:
        status = os.statvfs(memory)
    except OSError:
        return Path(os.environ.get("TMPDIR", "/tmp"))
    room = status.f_frsize * status.f_bavail
    usable = not status.f_flag & (os.ST_NOEXEC | os.ST_NODEV) and os.access(memory, os.W_OK)
    return memory if usable and room > 8 * 2**30 else Path(os.environ.get("TMPDIR", "/tmp"))


backend = Apptainer
