"""Slurm's commands: the only place that calls them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hpcrunner import proc
from hpcrunner.errors import HpcrunnerError, UnavailableError
from hpcrunner.schedulers.base import SubmitDeferred
from hpcrunner.schedulers.slurm import answers, states
from hpcrunner.schedulers.slurm.options import SlurmOptions

_IDS_PER_CANCEL = 100
_IDS_PER_QUERY = 500
"""A single argument is limited to 128 KiB (execve(2))."""


_SIGNAL_TIMEOUT = 3.0


class Client:
    """Raises UnavailableError (transient) if a command can't answer: that says nothing of any job."""

    def __init__(self, options: SlurmOptions) -> None:
        self._options = options

    def environment(self) -> dict[str, str]:
        """A clean one: SLURM_* and SBATCH_* of whoever started hpcrunner would change what the commands do. Only where
        Slurm's configuration is stays."""
        extra = {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CONF_SERVER", "LD_LIBRARY_PATH", "KRB5CCNAME")
                 if name in os.environ}
        if self._options.conf:
            extra["SLURM_CONF"] = str(self._options.conf)
        # Without it lists of array elements are cut after 64 characters.
        return proc.clean_environment({**extra, "SLURM_BITSTR_LEN": "0"})

    def submit(self, script: Path) -> str:
        """The id of the job or array. Raises what `answers.error` says."""
        try:
            done = self._run("sbatch", ["--parsable", str(script)], self._options.submit_timeout)
        except UnavailableError as error:
            raise SubmitDeferred(str(error)) from error
        # An id counts, whatever else was said: it may be accepted and warned of.
        found = answers.job_id(done.out)
        if found is None or (done.code != 0 and not done.out.strip()):
            raise answers.error(done.code, done.out, done.err, done.timed_out)
        return found

    def queue(self) -> list[states.QueueRow]:
        """All jobs of this user that Slurm still remembers, elements of arrays one by one."""
        # Not with --array: of `45_[0-20:2]` it leaves out 45_20 (seen with 22.05).
        done = self._ask("squeue", ["--noheader", "--me", "--states=all", f"--format={states.QUEUE_FORMAT}"])
        return list(states.parse_queue(done))

    def accounting(self, *, ids: Iterable[str] = (), names: Iterable[str] = (), since: float
                   ) -> list[states.AccountRow]:
        """What the accounting has of jobs since a time (Unix seconds); steps are left out but for what they used."""
        found = []
        # In the host's own time zone an hour comes twice a year, and which run of a job is the last would be unclear.
        env = {**self.environment(), "TZ": "UTC"}
        for option, values in (("--jobs", list(ids)), ("--name", list(names))):
            for chunk in _chunks(values, _IDS_PER_QUERY):
                out = self._ask("sacct", [
                    "--noheader", "--parsable2", f"--delimiter={states.SEPARATOR}", "--duplicates",
                    f"{option}={','.join(chunk)}",
                    f"--starttime={time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(since))}",
                    f"--format={','.join(states.ACCOUNT_FIELDS)}"], env)
                found += states.parse_accounting(out)
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        """SIGTERM to all that a running job consists of, SIGKILL after Slurm's KillWait; a waiting one is removed."""
        # Ids that Slurm has forgotten, or that ended meanwhile, are no problem.
        for chunk in _chunks(ids, _IDS_PER_CANCEL):
            self._tell(["--quiet", *chunk])

    def signal(self, ids: Sequence[str]) -> None:
        """SIGTERM to the scripts of running jobs alone."""
        options = ["--quiet", "--batch", "--signal=TERM", "--state=RUNNING"]
        for chunk in _chunks([one for one in ids if "_" not in one], _IDS_PER_CANCEL):
            self._tell([*options, *chunk])
        # For an element of an array that has others waiting, scancel delivers the signal and then tries again and
        # again for minutes (seen with 22.05), ten at a time.
        elements = list(_chunks([one for one in ids if "_" in one], 10))
        if elements:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(len(elements[:10])) as pool:
                list(pool.map(lambda chunk: self._run("scancel", [*options, *chunk], _SIGNAL_TIMEOUT), elements))

    def _tell(self, arguments: list[str]) -> None:
        """Calls scancel. Whether a job was ended shows in what becomes of it, but for a call that reached nobody."""
        done = self._run("scancel", arguments, self._options.query_timeout)
        if done.timed_out or (done.code != 0 and answers.is_unreachable(done.err)):
            said = done.err.strip()[-300:] or f"no answer in {self._options.query_timeout:.0f} s"
            raise UnavailableError(f"scancel reached nobody: {said}", transient=True)

    def _ask(self, program: str, arguments: list[str], env: dict[str, str] | None = None) -> str:
        done = self._run(program, arguments, self._options.query_timeout, env)
        if done.timed_out:
            raise UnavailableError(f"{program} did not answer in {self._options.query_timeout:.0f} s", transient=True)
        if done.code != 0:
            raise UnavailableError(f"{program} ended with code {done.code}: {done.err.strip()[-300:] or 'no message'}",
                                   transient=True)
        return done.out

    def _run(self, program: str, arguments: list[str], timeout: float, env: dict[str, str] | None = None
             ) -> proc.Completed:
        folder = self._options.bin_dir
        return proc.run([str(folder / program) if folder else program, *arguments], timeout=timeout,
                        env=env or self.environment())


def _chunks(values: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), size):
        yield values[start:start + size]


def is_disabled(error: HpcrunnerError) -> bool:
    """Whether sacct said that this cluster keeps no accounting (AccountingStorageType=accounting_storage/none), or
    there is no sacct at all."""
    return bool(re.search("accounting storage is disabled|can't be started: No such file", str(error), re.IGNORECASE))
