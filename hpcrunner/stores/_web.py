"""HTTP: connections, bodies, and what their errors mean."""

from __future__ import annotations

import base64
import binascii
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from hpcrunner.errors import ChangedError, RefusedError, StoreError
from hpcrunner.stores._files import PIECE
from hpcrunner.stores._retry import Weather

CONNECTIONS = 64
"""Kept open to one server, by all transfers of the process."""
LARGEST_ANSWER = 2**20
"""Bytes of an answer that is no object's content. A server that sends more means no good."""
_SLOWEST = 1024.0
"""Bytes a second that a server must send, over the time after which one that is silent is given up."""
_TOLD = 1.0
"""Seconds after which bytes are passed on that aren't a whole piece yet."""


@lru_cache(maxsize=32)
def connections(ca_file: str | None, timeout: float, proxy: str | None) -> Any:
    """A pool, which several threads may use. `timeout` is in seconds, for every read of a connection. Raises
    StoreError."""
    import urllib3

    check_ca_file(ca_file)
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=min(timeout, 20), read=timeout), "retries": False, "maxsize": CONNECTIONS,
        **({"ca_certs": ca_file} if ca_file else {})}
    return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)


def check_ca_file(ca_file: str | None) -> None:
    """Raises StoreError for a file that holds no certificates. HTTP libraries don't say which file they mean."""
    if ca_file is None:
        return
    try:
        ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one.
        said = "holds no certificates in PEM" if isinstance(error, ssl.SSLError) else error.strerror or str(error)
        raise StoreError(f"{ca_file}: {said}; correct `ca_file` in the site's `stores`", transient=True) from None


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
        raise tls_fault(error, shown, host) from None
    except (exceptions.LocationParseError, exceptions.LocationValueError, UnicodeError):
        raise RefusedError(f"{shown}: is no URL") from None
    except exceptions.TimeoutError:
        raise Weather(f"{shown}: {host} doesn't answer") from None
    except exceptions.HTTPError as error:
        raise Weather(f"{shown}: the connection to {host} failed: {innermost(error)}") from None
    except OSError as error:
        raise Weather(f"{shown}: the connection to {host} failed: {error.strerror or error}") from None


def tls_fault(error: BaseException, shown: str, host: str) -> StoreError:
    """For whatever library's error of TLS: only a certificate that was refused stays refused."""
    if "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return Weather(f"{shown}: the connection to {host} failed: {innermost(error)}")
    return StoreError(f"{shown}: the certificate of {host} is not trusted: {innermost(error)}; name its authority as "
                      "ca_file in the site's `stores`")


def innermost(error: BaseException) -> str:
    """The innermost text of urllib3's and botocore's errors. Those further out repeat the URL, whose query may be
    signed."""
    inner: Any = error
    while isinstance(deeper := getattr(inner, "kwargs", {}).get("error") or getattr(inner, "reason", None)
                     or inner.__cause__, BaseException):
        inner = deeper
    # Python quotes the value of a header that can't be sent, which may be a token.
    text = "" if isinstance(inner, ValueError) else str(inner)
    return (text or type(inner).__name__).partition("?")[0][:300]


def pieces(response: Any, shown: str, timeout: float) -> Iterator[bytes]:
    """The body of urllib3's `response` as it was sent, even if it says that it is compressed."""
    return paced(lambda size: response.read1(size, decode_content=False) or b"", shown, timeout)


def paced(read1: Callable[[int], bytes], shown: str, timeout: float) -> Iterator[bytes]:
    """What `read1` returns until its end, in pieces; of what comes slowly at least one a second, so that whoever
    takes them can give up. Raises Weather for what comes so slowly that it would come never."""
    waited, received = 0.0, 0
    while True:
        gathered, size, since = [], 0, time.monotonic()
        while size < PIECE:
            before = time.monotonic()
            data = read1(PIECE - size)
            now = time.monotonic()
            waited, received = waited + now - before, received + len(data)
            if not data:
                break
            gathered.append(data)
            size += len(data)
            if now - since >= _TOLD:
                break
        if not gathered:
            return
        yield b"".join(gathered)
        if waited >= timeout:
            if received < _SLOWEST * waited:
                raise Weather(f"{shown}: hardly anything comes ({received} bytes in {waited:.0f} seconds)")
            waited, received = 0.0, 0


def answer_of(response: Any, shown: str, timeout: float) -> bytes:
    """The whole body of an answer that is no object's content. Raises StoreError if it is large."""
    return bounded(pieces(response, shown, timeout), shown)


def bounded(body: Iterator[bytes], shown: str) -> bytes:
    data = b""
    for piece in body:
        data += piece
        if len(data) > LARGEST_ANSWER:
            raise StoreError(f"{shown}: the server's answer is larger than {LARGEST_ANSWER >> 20} MiB, which no answer "
                             "but an object is", transient=True)
    return data


class NoRanges(Exception):
    """The server knows no ranges: the whole object came, or would, or other bytes than were asked for."""


def check_range(said: str | None, start: int, end: int, size: int, shown: str) -> None:
    """Whether an answer's Content-Range is that of the bytes from `start` up to `end` of `size`. Raises ChangedError if
    the object has another size by now, and NoRanges."""
    found = re.fullmatch(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})", (said or "").strip())
    if found and int(found[3]) != size:
        raise ChangedError(f"{shown}: changed while it was read")
    if not found or (int(found[1]), int(found[2])) != (start, end - 1):
        raise NoRanges


def number(text: str | None) -> int | None:
    """A size, or a number of 64 bits such as a generation, or None if it is none."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,19}", text) else None


def md5_of(text: str | None) -> str:
    """Hexadecimal, of base64; empty if it is none."""
    try:
        digest = base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 16 else ""
