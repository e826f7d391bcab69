"""Every error that hpcrunner raises on purpose, and the exit code of each.

The codes are those of BSD's <sysexits.h>, so that cron jobs and scripts can tell them apart:

    HpcrunnerError          70 EX_SOFTWARE
    |-- UsageError          64 EX_USAGE      the command line is wrong
    |-- MessageError        65 EX_DATAERR    a queue message can't be understood or accepted
    |-- NotFoundError       66 EX_NOINPUT    a key or a file that was named doesn't exist
    |-- UnavailableError    69 EX_UNAVAILABLE a program or a service that is needed can't be had
    |-- StoreError          74 EX_IOERR      an object can't be read or written
    |   |-- RefusedError                     this site exchanges nothing with what a location names, or it names nothing
    |   `-- ArchiveError                     a tar can't be unpacked safely
    |-- BusyError           75 EX_TEMPFAIL   another process runs this install
    `-- ConfigError         78 EX_CONFIG     the site config or an option is wrong
"""

from __future__ import annotations


class HpcrunnerError(Exception):
    """Base of all. The text says what, where, and what would be right, in words for a person."""

    exit_code = 70
    transient = False
    """True if the same call may succeed later without anybody changing anything."""

    def __init__(self, message: str, *, transient: bool | None = None) -> None:
        super().__init__(message)
        if transient is not None:
            self.transient = transient


class UsageError(HpcrunnerError):
    exit_code = 64


class MessageError(HpcrunnerError):
    exit_code = 65


class NotFoundError(HpcrunnerError):
    exit_code = 66


class UnavailableError(HpcrunnerError):
    exit_code = 69


class StoreError(HpcrunnerError):
    exit_code = 74

    def __init__(self, message: str, *, transient: bool | None = None, errno: int | None = None) -> None:
        """`errno` is what a file system here said, if it was one: what is wrong with all of it is waited for."""
        super().__init__(message, transient=transient)
        self.errno = errno or 0


class RefusedError(StoreError):
    """No store was asked, as the location is none, or is not allowed at this site: waiting helps nobody."""


class ChangedError(StoreError):
    """An object was replaced between reading and writing it."""

    transient = True


class ArchiveError(StoreError):
    pass


class BusyError(HpcrunnerError):
    exit_code = 75
    transient = True


class ConfigError(HpcrunnerError):
    """Holds every problem found, one line each, so that all can be mended in one go."""

    exit_code = 78

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))
