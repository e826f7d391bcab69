"""Google Cloud Storage, by its JSON API (https://cloud.google.com/storage/docs/json_api/v1). Locations are
`gs://bucket/key`, not percent-encoded. STORAGE_EMULATOR_HOST names another server, as for Google's own libraries.

google-auth makes the tokens. The library google-cloud-storage is not used: importing it takes a third of a second and
56 MB, and the seven requests that are needed here resume and retry by our own rules.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpcrunner.errors import ChangedError, RefusedError, StoreError
from hpcrunner.stores import _endpoints as endpoints
from hpcrunner.stores import _ranged
from hpcrunner.stores import _web as web
from hpcrunner.stores._credentials import ANONYMOUS, SOURCES, find_service_account
from hpcrunner.stores._files import Digests, Identity, Window, check_unchanged, disk_fault
from hpcrunner.stores._notes import Notes, is_line, open_notes
from hpcrunner.stores._parts import put_small
from hpcrunner.stores._retry import Weather, persist
from hpcrunner.stores.base import Access, Content, Progress, Stat, check_record, unwatched

_SERVER = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_GRAIN = 256 * 2**10
"""Pieces of an upload are multiples of this."""
_tokens = threading.Lock()


class GoogleStore:
    md5_is_sure = True

    def __init__(self, site: Any, access: Access) -> None:
        self._site, self._access = site, access

    def location(self, endpoint: str | None, bucket: str | None, key: str) -> str:
        return f"gs://{bucket or 'storage'}/{key}"

    def stat(self, location: str) -> Stat | None:
        return persist(lambda: self.stat_once(location))

    def fetch(self, location: str, target: Path, progress: Progress | None = None, limit: int | None = None
              ) -> Stat | None:
        return _ranged.fetch(self, location, target, threads=self._site.transfer_threads, part=self._site.transfer_part,
                             progress=progress or unwatched, limit=limit)

    def put(self, source: Path, location: str, progress: Progress | None = None) -> None:
        _split(location)
        progress = progress or unwatched
        with disk_fault(source):
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                identity = Identity.of(fd)
                if identity.size > self._site.transfer_part:
                    self._put_large(fd, identity, source, location, progress)
                else:
                    persist(partial(put_small, self, fd, source, location, identity, progress), progress)
                    progress(identity.size)
            finally:
                os.close(fd)

    def read(self, location: str, progress: Progress | None = None) -> Content | None:
        def once() -> Content | None:
            stat = self.stat_once(location)
            if stat is None:
                return None
            check_record(location, stat.size)
            data = b""
            for piece in self.chunks(location, stat, 0, stat.size) if stat.size else ():
                data += piece
                check_record(location, len(data))
            if len(data) < stat.size:
                raise Weather(f"{location}: the connection ended before the object did")
            return Content(data, stat.version)

        return persist(once, progress or unwatched)

    def write(self, data: bytes, location: str, replaces: str | None = None, progress: Progress | None = None) -> None:
        def once() -> None:
            if replaces is not None:
                # Not all servers heed the condition, so it is looked at first, too.
                stat = self.stat_once(location)
                if stat is None or stat.version != replaces:
                    raise ChangedError(f"{location}: changed while it was being written")
            self._put(location, lambda: iter((data,)), len(data), Digests.of([data]), replaces)

        persist(once, progress or unwatched)

    def stat_once(self, location: str) -> Stat | None:
        bucket, key = _split(location)
        with self._request("GET", location, f"/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}") as response:
            if response.status == 404:
                self._require_bucket(location, bucket)
                return None
            self._check(response, location)
            entry = self._json(response, location)
        # Some servers leave out what is 0.
        size, generation = web.number(str(entry.get("size", 0))), web.number(str(entry.get("generation")))
        if size is None or generation is None:
            raise Weather(f"{location}: the server's answer says no size and generation")
        sha256 = str(endpoints.dig(entry, "metadata", "sha256") or "").lower()
        return Stat(size, str(generation), sha256 if len(sha256) == 64 else "", web.md5_of(str(entry.get("md5Hash"))))

    def chunks(self, location: str, stat: Stat, start: int, end: int) -> Generator[bytes, None, None]:
        bucket, key = _split(location)
        path = f"/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}?alt=media&generation={stat.version}"
        is_whole = (start, end) == (0, stat.size)
        # gzip: what was stored compressed comes as it is.
        headers = {"Accept-Encoding": "gzip", **({} if is_whole else {"Range": f"bytes={start}-{end - 1}"})}
        with self._request("GET", location, path, headers) as response:
            if response.status in (404, 412, 416):
                raise ChangedError(f"{location}: changed while it was read")
            self._check(response, location)
            if not is_whole:
                web.check_range(response.headers.get("Content-Range"), start, end, stat.size, location)
            yield from web.pieces(response, location, self._site.transfer_timeout)

    def put_small(self, location: str, body: Window, digests: Digests) -> None:
        self._put(location, body.pieces, len(body), digests)

    def _put(self, location: str, body: Callable[[], Iterator[bytes]], size: int, digests: Digests,
             replaces: str | None = None) -> None:
        bucket, key = _split(location)
        about = {"name": key, "contentType": "application/octet-stream", "metadata": {"sha256": digests.sha256},
                 "md5Hash": base64.b64encode(digests.md5).decode()}
        mark = digests.sha256  # Which no file holds itself.
        head = (f"--{mark}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{json.dumps(about)}\r\n--{mark}\r\n"
                "Content-Type: application/octet-stream\r\n\r\n").encode()
        tail = f"\r\n--{mark}--\r\n".encode()

        def parts() -> Iterator[bytes]:
            yield head
            yield from body()
            yield tail

        condition = f"&ifGenerationMatch={replaces}" if replaces is not None else ""
        headers = {"Content-Type": f"multipart/related; boundary={mark}",
                   "Content-Length": str(len(head) + size + len(tail))}
        with self._request("POST", location, f"/upload/storage/v1/b/{quote(bucket)}/o?uploadType=multipart{condition}",
                           headers, parts()) as response:
            if response.status == 412:
                raise ChangedError(f"{location}: changed while it was being written")
            self._check(response, location)
            self._read(response, location)

    def _put_large(self, fd: int, identity: Identity, source: Path, location: str, progress: Progress) -> None:
        """By an upload session: one piece after the other, each confirmed with how far the store has got. The notes
        have the session's URL and that."""
        about = {"location": location, **asdict(identity)}
        with open_notes(source.with_name(f".{source.name}.upload"), about, _are_notes) as notes:
            if not notes.lines:
                notes.restart()
            try:
                self._send(fd, identity, source, location, notes, progress)
            except _SessionGone:
                notes.restart()
                self._send(fd, identity, source, location, notes, progress)
            notes.drop()

    def _send(self, fd: int, identity: Identity, source: Path, location: str, notes: Notes, progress: Progress) -> None:
        # Of a piece that was interrupted, the store may have a part: only it can say.
        at, certain, size = 0, not notes.lines, identity.size
        session = notes.lines[0][0] if notes.lines else persist(lambda: self._begin(location, size), progress)
        if certain:
            notes.add(session)
        step = self._site.transfer_part // _GRAIN * _GRAIN

        def go_on() -> None:
            nonlocal at, certain
            while at < size:
                end = min(at + step, size)
                progress(0)
                if certain:
                    certain = False
                    if end == size:
                        check_unchanged(fd, identity, source)  # With this piece it becomes visible.
                    reached = self._send_piece(location, session, at, end, size, Window(fd, at, end, progress))
                    if reached <= at:
                        raise Weather(f"{location}: the store took nothing of what it was sent")
                else:
                    end = size
                    reached = self._send_piece(location, session, 0, 0, size, b"")
                if reached > end:
                    raise _SessionGone(f"{location}: the store has more than it was sent")
                certain = True
                progress(max(reached - at, 0))
                at = reached

        persist(go_on, progress, lambda: at)

    def _begin(self, location: str, size: int) -> str:
        bucket, key = _split(location)
        headers = {"X-Upload-Content-Length": str(size), "Content-Type": "application/json; charset=UTF-8"}
        path = f"/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&name={quote(key, safe='')}"
        about = {"name": key, "contentType": "application/octet-stream"}
        with self._request("POST", location, path, headers, json.dumps(about).encode()) as response:
            self._check(response, location)
            self._read(response, location)
            session = str(response.headers.get("Location", ""))
        if not _is_session(session):
            raise StoreError(f"{location}: the server names another server for the upload, which is not followed")
        return session

    def _send_piece(self, location: str, session: str, start: int, end: int, size: int, body: Any) -> int:
        """How far the store has got; `size` when it has the object. Without a piece, only asks."""
        piece = f"{start}-{end - 1}" if end else "*"
        headers = {"Content-Range": f"bytes {piece}/{size}", "Content-Length": str(end - start)}
        with self._request("PUT", location, session, headers, body) as response:
            if response.status == 308:
                self._read(response, location)
                received = web.number(response.headers.get("Range", "").rpartition("-")[2])
                return 0 if received is None else received + 1
            if response.status in (400, 404, 410, 416):
                raise _SessionGone(f"{location}: the store has forgotten the upload")
            self._check(response, location)
            if web.number(str(self._json(response, location).get("size"))) != size:
                raise _SessionGone(f"{location}: the store has not what it was sent")
            return size

    def _require_bucket(self, location: str, bucket: str) -> None:
        with self._request("GET", location, f"/storage/v1/b/{quote(bucket)}") as response:
            self._read(response, location)
            if response.status == 404:
                raise StoreError(f"{location}: there is no bucket {bucket!r} in Google storage; create it, or correct "
                                 "`bucket` in the client's configuration")

    @contextmanager
    def _request(self, method: str, location: str, path: str, headers: Mapping[str, str] = {}, body: Any = None
                 ) -> Iterator[Any]:
        url = path if "://" in path else _server() + path
        profile = endpoints.profile_of(self._site, "gs://", _split(location)[0])
        ca_file = str(profile.ca_file) if profile and profile.ca_file else None
        if not endpoints.environment_endpoint("STORAGE_EMULATOR_HOST"):
            endpoints.check_allowed(self._site, endpoints.host_of(_server()), location)
            headers = {**headers, **self._authorization(location, profile, ca_file)}
        with web.request(method, url, ca_file=ca_file, timeout=self._site.transfer_timeout, shown=location,
                         headers=headers, body=body) as response:
            yield response

    def _authorization(self, location: str, profile: Any, ca_file: str | None) -> dict[str, str]:
        from google.auth import exceptions
        from google.auth.transport import urllib3 as google_urllib3

        source, account = find_service_account(self._site, self._access, profile)
        if source == ANONYMOUS:
            return {}
        pool = web.connections(ca_file, self._site.transfer_timeout, web.proxy_for(_SERVER))
        try:
            with _tokens, web.web_faults(location, "oauth2.googleapis.com"):
                credentials = _credentials(json.dumps(account) if account is not None else "")
                if not credentials.valid:
                    credentials.refresh(google_urllib3.Request(pool))  # type: ignore[no-untyped-call]
                return {"Authorization": f"Bearer {credentials.token}"}
        except exceptions.TransportError:
            raise Weather(f"{location}: Google's server of tokens can't be reached") from None
        except (exceptions.GoogleAuthError, ValueError):
            # Its text may quote the key.
            raise StoreError(f"{location}: {SOURCES[source]} give no token; look whether the key is whole, was not "
                             "withdrawn, and this host's clock is right", transient=source in ("site", "sdk")) from None

    def _check(self, response: Any, location: str) -> None:
        """Raises StoreError for an answer that is an error."""
        if response.status < 300:
            return
        said = ""
        with suppress(ValueError, KeyError, TypeError):
            said = str(json.loads(self._read(response, location))["error"]["message"])[:200]
        who = SOURCES[find_service_account(self._site, self._access, endpoints.profile_of(
            self._site, "gs://", _split(location)[0]))[0]]
        if response.status in (401, 403):
            raise StoreError(f"{location}: Google denies access to {who} (status {response.status}: {said}); a role "
                             "with the right to read and write objects of the bucket is needed")
        if response.status == 404:
            raise StoreError(f"{location}: there is no such bucket or object in Google storage ({said})")
        raise StoreError(f"{location}: Google refuses the request (status {response.status}: {said})")

    def _read(self, response: Any, location: str) -> bytes:
        return web.answer_of(response, location, self._site.transfer_timeout)

    def _json(self, response: Any, location: str) -> dict[str, Any]:
        try:
            return dict(json.loads(self._read(response, location)))
        except (ValueError, TypeError, RecursionError):
            raise Weather(f"{location}: the server's answer is no object in JSON") from None


class _SessionGone(StoreError):
    transient = True


@lru_cache(maxsize=32)
def _credentials(account: str) -> Any:
    """Keeps the token, which holds for an hour. Without an account the SDK looks for one."""
    import google.auth
    from google.oauth2.service_account import Credentials

    if account:
        return Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
            json.loads(account), scopes=[_SCOPE])
    return google.auth.default(scopes=[_SCOPE])[0]


def _server() -> str:
    return (endpoints.environment_endpoint("STORAGE_EMULATOR_HOST") or _SERVER).rstrip("/")


def _split(location: str) -> tuple[str, str]:
    bucket, _, key = location.removeprefix("gs://").partition("/")
    if not location.startswith("gs://") or not bucket or not key:
        raise RefusedError(f"{location}: no location in Google storage, which is gs://BUCKET/KEY")
    endpoints.check_bucket(bucket, location)
    endpoints.check_key(key, location)
    return bucket, key


def _is_session(url: str) -> bool:
    """It is where this host's bytes and its token go, so it must be the server that is asked for all else."""
    return url.startswith(f"{_server()}/")


def _are_notes(lines: list[Any]) -> bool:
    return not lines or (len(lines) == 1 and is_line(lines[0], str) and _is_session(lines[0][0]))


backend = GoogleStore
