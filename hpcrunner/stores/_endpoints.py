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
from hpcrunner.errors import RefusedError, StoreError
from hpcrunner.files import write_whole
from hpcrunner.stores._retry import Weather
from hpcrunner.stores.base import shown

_METADATA = {ipaddress.ip_address(address) for address in (
    "100.100.100.200", "fd00:ec2::254", "192.0.0.192", "168.63.129.16")}
"""Where clouds hand out the host's own credentials, beside link-local addresses: Alibaba, AWS, Oracle, Azure."""
_IN_IPV6 = [(ipaddress.ip_network(network), shift) for network, shift in (
    ("::/96", 0), ("::ffff:0:0/96", 0), ("::ffff:0:0:0/96", 0), ("64:ff9b::/96", 0), ("64:ff9b:1::/48", 0),
    ("2002::/16", 80))]
"""What of IPv6 stands for an address of IPv4, and how many bits are to its right there: compatible, mapped, translated,
NAT64 and 6to4."""
_HOST = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,253}|\[(?P<ipv6>[0-9A-Fa-f:.]{2,45})\])(:(?P<port>[0-9]{1,5}))?")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
"""As Amazon allowed them once, which is more than it does today."""
_OTHER_KINDS = ("--x-s3", "--ol-s3", ".mrap")
"""What ends names of Amazon's that lead to other servers than those of buckets."""
_REMEMBERED = 86400.0
"""Seconds for which a probe holds."""
_PROBE_TIMEOUT = 10.0
_AMAZON = re.compile(r"s3(?:[.-](?:dualstack\.)?(?P<region>[a-z]{2}(?:-[a-z]+)+-[0-9]))?\.amazonaws\.com(\.cn)?(:443)?")
_lock = threading.Lock()
_schemes: dict[str, tuple[str, float]] = {}
"""What was found out, by host, and when (Unix seconds)."""
_probing: dict[str, threading.Lock] = {}
"""By host: one that doesn't answer holds up only those that ask for it."""


def host_of(url: str) -> str:
    """`host:port` of a URL, in lower case, without a port if it is the usual one of http or https.

    Raises StoreError.
    """
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        raise RefusedError(f"{shown(url)!r} is no URL of a store, such as https://HOST:PORT") from None
    host = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{host}:{port}" if port and port != usual else host


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
    named = host_of(url)
    default = {"http": 80, "https": 443}.get(urlsplit(url).scheme)
    names = {named, f"{urlsplit(url).hostname}:{urlsplit(url).port or default}"}
    return "gs://" not in (host, url) and host.lower() in names


def check_bucket(bucket: str, location: str) -> None:
    """Raises StoreError for what is no plain name of a bucket: SDKs take others for orders to ask another server."""
    if not _BUCKET.fullmatch(bucket) or bucket.endswith(_OTHER_KINDS):
        raise RefusedError(f"{location}: {bucket!r} can't be a bucket: letters, digits, dots and hyphens are allowed, "
                           "and no directory buckets or access points of Amazon's")


def check_key(key: str, location: str) -> None:
    """Raises StoreError for keys that would be another's where a server or a library takes them for a path, and for
    those that can't be sent."""
    if any(part in (".", "..") for part in key.split("/")):
        raise RefusedError(f"{location}: a key can't have `.` or `..` between its slashes")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{location!r}: a key must be Unicode text, without halves of surrogate pairs") from None


def check_allowed(site: Any, host: str, location: str) -> None:
    """Raises StoreError for what is no host (with or without port), one that the site doesn't allow, or whose address
    is link-local or otherwise such that no store can be there. Loopback is allowed, unless the site says otherwise.

    A message comes from a network, and so does the host it names: a cloud's metadata service, which answers whoever
    asks on this host with this host's credentials, must never be asked on its behalf.
    """
    # Strictly: whatever else stands there, some library would see another host in it than was checked.
    if not (parts := _HOST.fullmatch(host)) or int(parts["port"] or 1) not in range(1, 65536):
        raise RefusedError(f"{location}: {host!r} is no host, which is NAME, NAME:PORT, [IPV6] or [IPV6]:PORT")
    named, port = parts["name"].lower(), int(parts["port"] or 443)
    bare = (parts["ipv6"] or named).lower()
    if site.store_endpoints is not None:
        names = {named, f"{named}:{port}"} if parts["port"] else {named}
        if not any(_matches(name, pattern) for name in names for pattern in site.store_endpoints):
            raise RefusedError(f"{location}: this site exchanges no files with {host} (store_endpoints: "
                               f"{', '.join(site.store_endpoints) or 'none'})")
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        if _is_proxied(bare):
            return  # The proxy knows the name, this host doesn't.
        lasting = isinstance(error, UnicodeError)
        raise (StoreError if lasting else Weather)(f"{location}: there is no host {host}: {error}") from None
    for text in found:
        for address in _meant(ipaddress.ip_address(text.partition("%")[0])):
            if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
                raise RefusedError(f"{location}: {host} is {address}, an address at which no store may be")


def _matches(name: str, pattern: str) -> bool:
    # What stands in [] is an address, and no set of characters.
    return name == pattern if pattern.startswith("[") else fnmatchcase(name, pattern)


def _meant(address: Any) -> list[Any]:
    """An address, and those of IPv4 that it stands for."""
    return [address, *(ipaddress.IPv4Address(int(address) >> shift & 0xFFFFFFFF)
                       for network, shift in _IN_IPV6 if address in network)]


def _is_proxied(host: str) -> bool:
    from urllib.request import getproxies, proxy_bypass

    return bool(getproxies()) and not proxy_bypass(host)


def base_url(site: Any, host: str, profile: StoreProfile | None, told: str | None, location: str) -> str:
    """The URL of the server `host`, whose scheme the location has lost: as the site says, of whichever bucket, or else
    the message's own settings, or as a probe finds out, once. Raises StoreError."""
    # The site's first: no message may have its credentials sent in clear.
    for url in (profile and profile.endpoint, *(listed.endpoint for listed in site.stores), told):
        if url and url.startswith(("http://", "https://")) and _same(host, url):
            return f"{urlsplit(url).scheme}://{host}"
    if is_amazon(host):
        return f"https://{host}"
    return f"{_scheme(site.state_dir / 'endpoints.json', host, location)}://{host}"


def _scheme(memory: Path, host: str, location: str) -> str:
    with _lock:
        probing = _probing.setdefault(host, threading.Lock())
    with probing:
        scheme, at = _schemes.get(host, ("", 0.0))
        if 0 <= time.time() - at < _REMEMBERED:
            return scheme
        known = _remembered(memory)
        if host not in known:
            found = {"scheme": _probe(host, location), "at": time.time()}
            with _lock, suppress(OSError):  # It only saves the next process the probe.
                known = {**_remembered(memory), host: found}
                write_whole(memory, json.dumps(known), 0o600)
            known = {host: found}
        _schemes[host] = known[host]["scheme"], known[host]["at"]
        return _schemes[host][0]


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
