"""The only place that starts programs and waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hpcrunner.errors import UnavailableError

_KEEP = ("HOME", "USER", "LOGNAME", "PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_RUNTIME_DIR")
_KEEP_NETWORK = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "PIP_CERT", "PIP_INDEX_URL",
                 "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE", "http_proxy", "https_proxy",
                 "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Completed:
    code: int
    """Exit code, or -N if signal N ended it."""
    out: str
    err: str
    timed_out: bool = False


def clean_environment(extra: Mapping[str, str] | None = None, *, network: bool = False) -> dict[str, str]:
    """The few variables a child needs; the caller's secrets and SLURM_* don't leak.

    `network` adds what pip needs to reach its index: proxies and certificates.
    """
    names = _KEEP + _KEEP_NETWORK if network else _KEEP
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {**kept, **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: IO[bytes] | None = None,
) -> Completed:
    """Runs `argv` in a process group of its own and waits at most `timeout` seconds.

    With `log`, both output streams go there as they come. Past the time the whole group gets
    SIGTERM, and SIGKILL five seconds later.

    Raises UnavailableError if the program can't be started.
    """
    try:
        child = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=log or subprocess.PIPE, stderr=log or subprocess.PIPE,
            env=clean_environment() if env is None else dict(env), cwd=cwd, start_new_session=True,
        )
    except OSError as error:
        raise UnavailableError(f"{argv[0]}: can't be started: {error.strerror or error}") from error
    timed_out = False
    out: bytes | None
    err: bytes | None
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        out, err = _stop(child)
    except BaseException:
        _stop(child)
        raise
    return Completed(child.returncode, _text(out), _text(err), timed_out)


def _stop(child: subprocess.Popen[bytes]) -> tuple[bytes | None, bytes | None]:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        try:
            return child.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            continue
    return None, None


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", "replace")


def boot_id() -> str:
    """Identifies this boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> str | None:
    """When process `pid` started, in clock ticks since boot: with the pid it names a process for good.

    None if there is no such process.
    """
    fields = _stat(pid)
    return None if not fields or fields[0] in "ZX" else fields[19]


def session(pid: int) -> int | None:
    """The session of process `pid`; None if there is no such process."""
    fields = _stat(pid)
    return int(fields[3]) if fields else None


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat (proc(5)) from the third on, which is the state."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def host_name() -> str:
    return os.uname().nodename
