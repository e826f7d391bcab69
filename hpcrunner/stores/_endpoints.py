"""Which server a location means, and whether anything may be sent to it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hpcrunner.config.stores import StoreProfile
from hpcrunner.errors import StoreError
from hpcrunner.files import write_whole
from hpcrunner.stores._retry import Weather

_METADATA = {ipaddress.ip_address(address) for address in ("100.100.100.200", "fd00:ec2::254", "192.0.0.192")}
"""Where clouds hand out the host's own credentials, beside link-local addresses: Alibaba, AWS, Oracle."""
_REMEMBERED = 86400.0
"""Seconds for which a probe holds."""
_PROBE_TIMEOUT = 10.0
_AMAZON = re.compile(r"s3(?:[.-](?:dualstack\.)?(?P<region>[a-z]{2}(?:-[a-z]+)+-[0-9]))?\.amazonaws\.com(\.cn)?(:443)?")
_lock = threading.Lock()
_schemes: dict[str, str] = {}


def host_of(url: str) -> str:
    """`host:port` of a URL, in lower case, without a port if it is the usual one of http or https."""
    parts = urlsplit(url if "://" in url else f"//{url}")
    host = (parts.hostname or "").lower()
    host = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{host}:{parts.port}" if parts.port and parts.port != usual else host


def is_amazon(host: str) -> bool:
    return _AMAZON.fullmatch(host.lower()) is not None


def region_of(host: str) -> str | None:
    match = _AMAZON.fullmatch(host.lower())
    return match["region"] if match else None


def profile_of(site: Any, host: str, bucket: str) -> StoreProfile | None:
    """The first of the site's `stores` that is about the bucket. For Google's, `host` is `gs://`."""
    for profile in site.stores:
        if fnmatchcase(bucket, profile.buckets) and (
                is_amazon(host) if profile.endpoint is None else profile.endpoint == host == "gs://"
                or _same(host, profile.endpoint)):
            return profile  # type: ignore[no-any-return]
    return None


def _same(host: str, url: str) -> bool:
    """A location's host lacks the scheme, and with it what its port usually is."""
    default = {"http": 80, "https": 443}.get(urlsplit(url).scheme)
    names = {host_of(url), f"{urlsplit(url).hostname}:{urlsplit(url).port or default}"}
    return "gs://" not in (host, url) and host.lower() in names


def check_allowed(site: Any, host: str, location: str) -> None:
    """Raises StoreError for a host (with or without port) that the site doesn't allow, or whose address is for this
    host alone.

    A message comes from a network, and so does the host it names: a cloud's metadata service, which answers whoever
    asks on this host with this host's credentials, must never be asked on its behalf.
    """
    try:
        parts = urlsplit(f"//{host}")
        bare, port = parts.hostname or "", parts.port
    except ValueError:
        raise StoreError(f"{location}: {host!r} is no host") from None
    if site.store_endpoints is not None:
        names = {host.lower(), bare, f"[{bare}]"}
        if not any(fnmatchcase(name, pattern) for name in names for pattern in site.store_endpoints):
            raise StoreError(f"{location}: this site exchanges no files with {host} (store_endpoints: "
                             f"{', '.join(site.store_endpoints) or 'none'})")
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(bare, port or 443, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        if _is_proxied(bare):
            return  # The proxy knows the name, this host doesn't.
        lasting = isinstance(error, UnicodeError)
        raise (StoreError if lasting else Weather)(f"{location}: there is no host {host}: {error}") from None
    for text in found:
        address: Any = ipaddress.ip_address(text.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_link_local or address.is_multicast or address in _METADATA:
            raise StoreError(f"{location}: {host} is {address}, an address at which no store may be")


def _is_proxied(host: str) -> bool:
    from urllib.request import getproxies, proxy_bypass

    return bool(getproxies()) and not proxy_bypass(host)


def base_url(site: Any, host: str, profile: StoreProfile | None, told: str | None, location: str) -> str:
    """The URL of the server `host`, whose scheme the location has lost: as the message's own settings or the site
    say, or else as a probe finds out, once. Raises StoreError."""
    for url in (told, profile and profile.endpoint):
        if url and url.startswith(("http://", "https://")) and _same(host, url):
            return f"{urlsplit(url).scheme}://{host}"
    if is_amazon(host):
        return f"https://{host}"
    return f"{_scheme(site.state_dir / 'endpoints.json', host, location)}://{host}"


def _scheme(memory: Path, host: str, location: str) -> str:
    with _lock:
        if host in _schemes:
            return _schemes[host]
        known = _remembered(memory)
        if host not in known:
            known[host] = {"scheme": _probe(host, location), "at": time.time()}
            with suppress(OSError):  # It only saves the next process the probe.
                write_whole(memory, json.dumps(known), 0o600)
        _schemes[host] = known[host]["scheme"]
        return _schemes[host]


def _remembered(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_bytes())
        return {host: entry for host, entry in known.items()
                if entry["scheme"] in ("http", "https") and 0 <= time.time() - entry["at"] < _REMEMBERED}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return {}


def _probe(host: str, location: str) -> str:
    """Says nothing secret, so whose certificate it is doesn't matter yet."""
    parts = urlsplit(f"//{host}")
    ports = {"https": parts.port or 443, "http": parts.port or 80}
    for scheme, port in ports.items():
        try:
            with socket.create_connection((parts.hostname or "", port), _PROBE_TIMEOUT) as connection:
                if scheme == "http":
                    return scheme
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                with context.wrap_socket(connection, server_hostname=parts.hostname):
                    return scheme
        except (ssl.SSLError, ConnectionError, TimeoutError):
            continue
        except OSError as error:
            raise Weather(f"{location}: {host} can't be reached: {error.strerror or error}") from error
    raise Weather(f"{location}: nothing answers at {host}, neither to https nor to http")


def environment_endpoint(*names: str) -> str | None:
    """A URL from this process's environment, such as an emulator's."""
    found = next((os.environ[name] for name in names if os.environ.get(name)), None)
    return found if found is None or "://" in found else f"http://{found}"


def dig(mapping: Mapping[str, Any] | None, *path: str) -> Any:
    """What lies at `path` in nested objects of a message, or None if they are made otherwise."""
    value: Any = mapping
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
