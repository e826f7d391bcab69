"""botocore's client of S3: how it is made, and how what it asks for is sent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hpcrunner.stores import _web as web
from hpcrunner.stores._credentials import ANONYMOUS, Keys


@dataclass(frozen=True)
class Settings:
    """All that a client depends on."""

    url: str | None
    region: str | None
    keys: Keys
    ca_file: str | None
    path_style: bool
    checksums: str
    timeout: float
    stamp: tuple[object, ...]
    """Another one when this host's user has other credentials by now."""


@lru_cache(maxsize=32)
def client_of(settings: Settings) -> Any:
    """Kept, with its connections: making one takes a tenth of a second. May be used by several threads."""
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    web.check_ca_file(settings.ca_file)
    keys = settings.keys
    config: dict[str, Any] = {
        "signature_version": UNSIGNED if keys.source == ANONYMOUS else "s3v4",
        "retries": {"mode": "standard", "total_max_attempts": 1},
        "s3": {"addressing_style": "path" if settings.path_style else "auto"},
        "request_checksum_calculation": settings.checksums, "response_checksum_validation": settings.checksums}
    # Whatever is wrong with ~/.aws is no business of keys that came from elsewhere.
    session = Session(profile=keys.profile) if keys.source == "sdk" else Session(
        {"profile": (None, None, None, None), "config_file": (None, None, os.devnull, None),
         "credentials_file": (None, None, os.devnull, None)})
    explicit = {} if not keys.access_key else {
        "aws_access_key_id": keys.access_key, "aws_secret_access_key": keys.secret_key,
        "aws_session_token": keys.session_token or None}
    region = settings.region or (session.get_config_variable("region") if keys.is_of_site else None) or "us-east-1"
    client = session.create_client("s3", region_name=region, endpoint_url=settings.url, config=Config(**config),
                                   **explicit)
    client.meta.events.register("before-send.s3", _Sender(settings, session.get_config_variable("ca_bundle")))
    return client


class _Sender:
    """Sends botocore's requests. Its own way of doing so reads answers that are no objects into memory, however large,
    and waits for a whole piece of an object, however slowly it comes."""

    def __init__(self, settings: Settings, ca_file: str | None) -> None:
        from botocore.httpsession import URLLib3Session
        from botocore.utils import get_environ_proxies

        self._settings, self._verify = settings, settings.ca_file or ca_file or True
        self._make, self._proxies = URLLib3Session, get_environ_proxies
        self._sessions: dict[str, Any] = {}

    def __call__(self, request: Any, **_: Any) -> Any:
        server = request.url.partition("?")[0]
        proxies = self._proxies(server)
        known = json.dumps(proxies, sort_keys=True)
        if known not in self._sessions:
            timeout = self._settings.timeout
            self._sessions[known] = self._make(
                verify=self._verify, proxies=proxies, timeout=(min(timeout, 20), timeout),
                max_pool_connections=web.CONNECTIONS)
        request.stream_output = True  # Else it is read before we see it.
        answer = self._sessions[known].send(request)
        answer.raw = _Body(answer.raw, server, self._settings.timeout)
        return answer


class _Body:
    """What botocore reads an answer from: of what comes, as much as there is."""

    def __init__(self, raw: Any, shown: str, timeout: float) -> None:
        self._raw, self._shown, self._timeout = raw, shown, timeout

    def read(self, size: int) -> bytes:
        return self._raw.read1(size) or b""

    def stream(self) -> Iterator[bytes]:
        """The whole, of an answer that is no object."""
        try:
            yield web.bounded(web.paced(self.read, self._shown, self._timeout), self._shown)
        except BaseException:
            self.close()
            raise
        self._raw.release_conn()

    def close(self) -> None:
        self._raw.close()


def stamp_of_user() -> tuple[object, ...]:
    """Of what botocore reads of ~/.aws, once for each client."""
    paths = [Path(os.environ.get(name, usual)).expanduser() for name, usual in (
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config"))]
    files = [(status.st_mtime_ns, status.st_ino) if (status := _status(path)) else None for path in paths]
    # A digest, as some of these are secret.
    said = sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return (*files, hashlib.sha256(repr(said).encode("utf-8", "surrogateescape")).hexdigest())


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
