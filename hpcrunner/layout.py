"""Where everything lies in a run directory and in the state directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDir:
    """The folder of one run. The part below `studioml` is what StudioML code expects to find itself in:
    the working directory is `$STUDIOML_HOME/experiments/<name>/workspace`, every other artifact its sibling.
    """

    root: Path
    name: str
    """The experiment's key as a file name; what the job sees as STUDIOML_EXPERIMENT."""

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def studioml_home(self) -> Path:
        return self.root / "studioml"

    @property
    def experiment(self) -> Path:
        return self.studioml_home / "experiments" / self.name

    @property
    def workspace(self) -> Path:
        return self.experiment / "workspace"

    @property
    def status(self) -> Path:
        return self.root / "status"

    @property
    def exit_file(self) -> Path:
        return self.status / "exit"

    @property
    def program_mark(self) -> Path:
        return self.status / "program"

    @property
    def script(self) -> Path:
        return self.root / "job.sh"

    @property
    def env_file(self) -> Path:
        """Values of the experiment's variables: secrets may be among them."""
        return self.root / "env.sh"

    @property
    def given_image(self) -> Path:
        """An image that came with the experiment."""
        return self.root / "image"

    @property
    def style_file(self) -> Path:
        """In which style results are to be tarred."""
        return self.root / "tar-style"

    @property
    def transfer(self) -> Path:
        """What is on its way from or to the store, and what is known of it."""
        return self.root / "transfer"

    @property
    def sent_file(self) -> Path:
        """What of it the store has confirmed."""
        return self.transfer / "sent.json"

    @property
    def scraped_file(self) -> Path:
        """What was gathered of the program's metadata, and how far its log was read."""
        return self.transfer / "scraped.json"

    def log(self, has_output: bool) -> Path:
        """Where the program's stdout and stderr go: into the artifact `output`, if the experiment has it."""
        return (self.experiment if has_output else self.root) / "output" / "output"


@dataclass(frozen=True)
class StateDir:
    root: Path

    @property
    def journal(self) -> Path:
        return self.root / "journal.sqlite"

    @property
    def spool(self) -> Path:
        """A job that ended leaves a file here, named by its tag."""
        return self.root / "spool"

    @property
    def arrays(self) -> Path:
        """Scripts of job arrays, and which run directory each element has."""
        return self.root / "arrays"

    @property
    def requests(self) -> Path:
        """What commands want of the hpcrunner that works on this install, one file each."""
        return self.root / "requests"

    @property
    def dead_letters(self) -> Path:
        return self.root / "dead-letters"

    @property
    def logs(self) -> Path:
        """Copies of the programs' output, kept when run directories are removed."""
        return self.root / "logs"
