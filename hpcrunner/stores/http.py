"""Files on the web, by their URL: they can only be read."""

from __future__ import annotations

import base64
import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

from hpcrunner.errors import ChangedError, RefusedError, StoreError
from hpcrunner.stores import _endpoints as endpoints
from hpcrunner.stores import _ranged
from hpcrunner.stores import _web as web
from hpcrunner.stores._files import disk_fault, write_all
from hpcrunner.stores._retry import persist
from hpcrunner.stores.base import Access, Content, Progress, Stat, check_record, check_size, shown, unwatched

_MOST_REDIRECTS = 5
_STEADY = 60.0
"""Seconds that a time of change must be past to tell versions apart: it says only the second, and more changes may
come within it (RFC 9110, 8.8.2.2)."""
_SAFE = "/%:@!$&'()*+,;=~-._?"
"""Stays as it is in a URL; people write others as they are, such as blanks."""


class HttpStore:
    md5_is_sure = False

    def __init__(self, site: Any, access: Access) -> None:
        self._site = site

    def location(self, endpoint: str | None, bucket: str | None, key: str) -> str:
        return "/".join(part.strip("/") for part in (endpoint or "", bucket or "", key) if part)

    def stat(self, location: str) -> Stat | None:
        return persist(lambda: self.stat_once(location))

    def fetch(self, location: str, target: Path, progress: Progress | None = None, limit: int | None = None
              ) -> Stat | None:
        progress = progress or unwatched
        stat = persist(lambda: self.stat_once(location), progress)
        if stat is not None and stat.size < 0:
            return persist(lambda: self._fetch_unmeasured(location, target, progress, limit), progress)
        return _ranged.fetch(self, location, target, threads=self._site.transfer_threads, part=self._site.transfer_part,
                             progress=progress, limit=limit)

    def put(self, source: Path, location: str, progress: Progress | None = None) -> None:
        raise RefusedError(f"{shown(location)}: can't be written: what is named by its URL is only read; give the "
                           "artifact a place in an S3, Google or local store")

    def write(self, data: bytes, location: str, replaces: str | None = None, progress: Progress | None = None) -> None:
        self.put(Path(), location)

    def read(self, location: str, progress: Progress | None = None) -> Content | None:
        def once() -> Content | None:
            with self._get(location) as response:
                if _is_absent(response):
                    return None
                data = b""
                for piece in self._pieces(response, location):
                    data += piece
                    check_record(location, len(data))
                return Content(data, _stat(response).version)

        return persist(once, progress or unwatched)

    def stat_once(self, location: str) -> Stat | None:
        """The size is -1 if the server doesn't say it."""
        # Not HEAD: what is signed for GET refuses it, and so do some servers.
        with self._get(location, 0, 1) as response:
            if _is_absent(response):
                return None
            return _stat(response)

    def chunks(self, location: str, stat: Stat, start: int, end: int) -> Generator[bytes, None, None]:
        is_whole = (start, end) == (0, stat.size)
        with self._get(location, *(() if is_whole else (start, end))) as response:
            found = _stat(response)
            # Without a version the size is all that may tell.
            if (_is_absent(response) or response.status == 416 or found.size not in (stat.size, -1)
                    or (stat.version and found.version != stat.version)):
                raise ChangedError(f"{shown(location)}: changed while it was read")
            if not is_whole:
                web.check_range(response.headers.get("Content-Range"), start, end, stat.size, shown(location))
            yield from self._pieces(response, location)

    def _pieces(self, response: Any, location: str) -> Iterator[bytes]:
        return web.pieces(response, shown(location), self._site.transfer_timeout)

    def _fetch_unmeasured(self, location: str, target: Path, progress: Progress, limit: int | None) -> Stat | None:
        """An answer that the server makes up as it goes, such as an archive of a repository."""
        part = target.with_name(f".{target.name}.part")
        with self._get(location) as response:
            if _is_absent(response):
                return None
            size = 0
            try:
                with disk_fault(target):
                    writer = part.open("wb", buffering=0)
                with writer:
                    for piece in self._pieces(response, location):
                        check_size(location, size + len(piece), limit)
                        with disk_fault(target):
                            write_all(writer.fileno(), piece)
                        size += len(piece)
                        progress(len(piece))
                with disk_fault(target):
                    part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                progress(-size)
                raise
            return Stat(size, _stat(response).version)

    @contextmanager
    def _get(self, location: str, start: int = 0, end: int = 0) -> Iterator[Any]:
        """Follows redirects, each to a host that is allowed."""
        url, name = location, shown(location)
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-{end - 1}"} if end else {})}
        for _ in range(_MOST_REDIRECTS + 1):
            parts = _parsed(url, name)
            host = parts.netloc.rpartition("@")[2]
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise RefusedError(f"{name}: not a URL on the web, which is http://HOST/PATH or https://HOST/PATH")
            endpoints.check_allowed(self._site, host, name)
            profile = endpoints.profile_of(self._site, endpoints.host_of(url), "")
            clean = urlunsplit((parts.scheme, host, quote(parts.path, _SAFE), quote(parts.query, _SAFE), ""))
            with web.request("GET", clean, headers={**headers, **_authorization(parts)}, shown=name,
                         ca_file=str(profile.ca_file) if profile and profile.ca_file else None,
                         timeout=self._site.transfer_timeout) as response:
                if response.status in (301, 302, 303, 307, 308) and response.headers.get("Location"):
                    try:
                        url = urljoin(url, response.headers["Location"])
                    except ValueError:
                        raise StoreError(f"{name}: {host} redirects to what is no URL") from None
                    continue
                if response.status in (401, 403):
                    raise StoreError(f"{name}: {host} denies access (status {response.status}); put it where this host "
                                     "may read it, or write https://USER:PASSWORD@... in front")
                if response.status not in (200, 206, 404, 410, 416):
                    raise StoreError(f"{name}: {host} refuses the request (status {response.status})")
                yield response
                return
        raise StoreError(f"{name}: redirected more than {_MOST_REDIRECTS} times")


def _parsed(url: str, name: str) -> Any:
    try:
        url.encode()
        return urlsplit(url)
    except ValueError:
        raise RefusedError(f"{name!r}: is no URL; what stands in [] must be an IPv6 address") from None


def _authorization(parts: Any) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _is_absent(response: Any) -> bool:
    return response.status in (404, 410)


def _stat(response: Any) -> Stat:
    """What an answer says of the whole object; its size is -1 if it doesn't."""
    headers = response.headers
    total = headers.get("Content-Range", "").rpartition("/")[2] if response.status in (206, 416) \
        else headers.get("Content-Length", "")
    digest = re.search(r"md5=([\w+/=]+)", headers.get("x-goog-hash", ""))
    return Stat(size if (size := web.number(total)) is not None else -1, _version(headers, total),
                md5=web.md5_of(digest[1] if digest else ""))


def _version(headers: Mapping[str, str], total: str) -> str:
    tag, changed = headers.get("ETag", ""), headers.get("Last-Modified", "")
    # A weak tag is the same for other bytes that mean the same.
    if tag and not tag.startswith("W/"):
        return tag
    try:
        age = parsedate_to_datetime(headers.get("Date", "")) - parsedate_to_datetime(changed)
        return f"{changed}, {total}" if age.total_seconds() >= _STEADY else ""
    except (ValueError, TypeError, OverflowError):
        return ""


backend = HttpStore
