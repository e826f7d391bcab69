"""HTTP for the stores that need no more of an SDK: connections, and what their errors mean."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from hpcrunner.errors import StoreError
from hpcrunner.stores._files import PIECE
from hpcrunner.stores._retry import Weather

_CONNECTIONS = 64
"""Kept open to one server, by all transfers of the process."""


@lru_cache(maxsize=32)
def connections(ca_file: str | None, timeout: float, proxy: str | None) -> Any:
    """A pool, which several threads may use. `timeout` is in seconds, for every read of a connection."""
    import urllib3

    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=min(timeout, 20), read=timeout), "retries": False, "maxsize": _CONNECTIONS,
        **({"ca_certs": ca_file} if ca_file else {})}
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


def proxy_for(url: str) -> str | None:
    """As this process's environment says (https_proxy, no_proxy)."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


@contextmanager
def request(method: str, url: str, *, ca_file: str | None, timeout: float, shown: str, headers: Mapping[str, str] = {},
            body: Any = None) -> Iterator[Any]:
    """A response whose body is still to be read. Redirects are answers like others. `shown` is the location in
    messages. Raises StoreError, Weather for a connection that failed or a server that is busy."""
    with web_faults(shown, urlsplit(url).netloc.rpartition("@")[2]):
        pool = connections(ca_file, timeout, proxy_for(url))
        response = pool.request(method, url, headers={**headers}, body=body, preload_content=False, redirect=False)
        whole = False
        try:
            if response.status in (408, 429) or (response.status >= 500 and response.status != 501):
                raise Weather(f"{shown}: {urlsplit(url).hostname} is in trouble (status {response.status})")
            yield response
            whole = True
        finally:
            # Back into the pool if it was read to its end; whatever is left of another is not worth reading.
            if whole and response.length_remaining == 0:
                response.release_conn()
            else:
                response.close()


@contextmanager
def web_faults(shown: str, host: str) -> Iterator[None]:
    from urllib3 import exceptions

    try:
        yield
    except exceptions.SSLError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise Weather(f"{shown}: the connection to {host} failed: {_last(error)}") from None
        raise StoreError(f"{shown}: the certificate of {host} is not trusted: {_last(error)}; name its authority as "
                         "ca_file in the site's `stores`") from None
    except (exceptions.LocationParseError, exceptions.LocationValueError, UnicodeError):
        raise StoreError(f"{shown}: is no URL") from None
    except exceptions.TimeoutError:
        raise Weather(f"{shown}: {host} doesn't answer") from None
    except exceptions.HTTPError as error:
        raise Weather(f"{shown}: the connection to {host} failed: {_last(error)}") from None
    except OSError as error:
        raise Weather(f"{shown}: the connection to {host} failed: {error.strerror or error}") from None


def pieces(response: Any) -> Iterator[bytes]:
    """The body as it was sent, even if it says that it is compressed."""
    while data := response.read(PIECE, decode_content=False):
        yield data


def md5_of(text: str | None) -> str:
    """Hexadecimal, of base64; empty if it is none."""
    try:
        digest = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 16 else ""


def _last(error: BaseException) -> str:
    """The innermost text; those further out repeat the URL."""
    inner: Any = error
    while isinstance(deeper := getattr(inner, "reason", None) or inner.__cause__, BaseException):
        inner = deeper
    return str(inner).partition("?")[0][:300]
