"""Google Cloud Storage, by its JSON API (https://cloud.google.com/storage/docs/json_api/v1). Locations are
`gs://bucket/key`, not percent-encoded. STORAGE_EMULATOR_HOST names another server, as for Google's own libraries.

google-auth makes the tokens. The library google-cloud-storage is not used: importing it takes a third of a second and
56 MB, and the seven requests that are needed here resume and retry by our own rules.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpcrunner.errors import ChangedError, StoreError
from hpcrunner.stores import _endpoints as endpoints
from hpcrunner.stores import _ranged
from hpcrunner.stores._credentials import ANONYMOUS, SOURCES, find_service_account
from hpcrunner.stores._files import Identity, Window, check_unchanged, disk_fault
from hpcrunner.stores._notes import Notes, open_notes
from hpcrunner.stores._retry import Weather, persist
from hpcrunner.stores._web import connections, md5_of, pieces, proxy_for, request, web_faults
from hpcrunner.stores.base import Access, Content, Progress, Stat

_SERVER = "https://storage.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
_LARGEST_RECORD = 64 * 2**20
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

    def fetch(self, location: str, target: Path, progress: Progress | None = None) -> Stat | None:
        return _ranged.fetch(self, location, target, threads=self._site.transfer_threads, part=self._site.transfer_part,
                             progress=progress)

    def put(self, source: Path, location: str, progress: Progress | None = None) -> None:
        _split(location)
        with disk_fault(source):
            fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
            try:
                identity = Identity.of(fd)
                if identity.size > self._site.transfer_part:
                    self._put_large(fd, identity, source, location, progress)
                else:
                    persist(lambda: self._put_small(location, Window(fd, 0, identity.size).pieces, identity.size))
                    if progress:
                        progress(identity.size)
                check_unchanged(fd, identity, source)
            finally:
                os.close(fd)

    def read(self, location: str) -> Content | None:
        def once() -> Content | None:
            stat = self.stat_once(location)
            if stat is None:
                return None
            if stat.size > _LARGEST_RECORD:
                raise StoreError(f"{location}: larger than {_LARGEST_RECORD >> 20} MiB, so it is no record")
            return Content(b"".join(self.chunks(location, stat, 0, stat.size)) if stat.size else b"", stat.version)

        return persist(once)

    def write(self, data: bytes, location: str, replaces: str | None = None) -> None:
        def once() -> None:
            if replaces is not None:
                # Not all servers heed the condition, so it is looked at first, too.
                stat = self.stat_once(location)
                if stat is None or stat.version != replaces:
                    raise ChangedError(f"{location}: changed while it was being written")
            self._put_small(location, lambda: iter((data,)), len(data), replaces)

        persist(once)

    def stat_once(self, location: str) -> Stat | None:
        bucket, key = _split(location)
        with self._request("GET", location, f"/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}") as response:
            if response.status == 404:
                self._require_bucket(location, bucket)
                return None
            self._check(response, location)
            entry = _json(response, location)
        sha256 = str((entry.get("metadata") or {}).get("sha256", "")).lower()
        return Stat(int(entry["size"]), str(entry["generation"]), sha256 if len(sha256) == 64 else "",
                    md5_of(entry.get("md5Hash")))

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
            if not is_whole and response.status != 206:
                raise _ranged.NoRanges
            yield from pieces(response)

    def _put_small(self, location: str, body: Callable[[], Iterator[bytes]], size: int, replaces: str | None = None
                   ) -> None:
        bucket, key = _split(location)
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        for data in body():
            md5.update(data)
            sha256.update(data)
        about = {"name": key, "contentType": "application/octet-stream", "metadata": {"sha256": sha256.hexdigest()},
                 "md5Hash": base64.b64encode(md5.digest()).decode()}
        mark = sha256.hexdigest()  # Which no file holds itself.
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
            response.read()

    def _put_large(self, fd: int, identity: Identity, source: Path, location: str, progress: Progress | None) -> None:
        """By an upload session: one piece after the other, each confirmed with how far the store has got. The notes
        have the session's URL and that."""
        about = {"location": location, **asdict(identity)}
        with open_notes(source.with_name(f".{source.name}.upload"), about) as notes:
            try:
                self._send(fd, identity.size, location, notes, progress)
            except _SessionGone:
                notes.restart()
                self._send(fd, identity.size, location, notes, progress)
            notes.drop()

    def _send(self, fd: int, size: int, location: str, notes: Notes, progress: Progress | None) -> None:
        # Of a piece that was interrupted, the store may have a part: only it can say.
        at, certain = 0, not notes.lines
        session = str(notes.lines[0][0]) if notes.lines else persist(lambda: self._begin(location, size))
        if certain:
            notes.add(session)
        step = self._site.transfer_part // _GRAIN * _GRAIN

        def go_on() -> None:
            nonlocal at, certain
            while at < size:
                end = min(at + step, size)
                if certain:
                    certain = False
                    reached = self._send_piece(fd, location, session, at, end, size)
                else:
                    end = size
                    reached = self._send_piece(fd, location, session, 0, 0, size)
                if reached > end:
                    raise _SessionGone(f"{location}: the store has more than it was sent")
                certain = True
                if progress:
                    progress(max(reached - at, 0))
                at = reached

        persist(go_on, lambda: at)

    def _begin(self, location: str, size: int) -> str:
        bucket, key = _split(location)
        headers = {"X-Upload-Content-Length": str(size), "Content-Type": "application/json; charset=UTF-8"}
        path = f"/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&name={quote(key, safe='')}"
        about = {"name": key, "contentType": "application/octet-stream"}
        with self._request("POST", location, path, headers, json.dumps(about).encode()) as response:
            self._check(response, location)
            response.read()
            session = str(response.headers.get("Location", ""))
        # It is where this host's bytes go, so it must be the server that was asked.
        if not session.startswith(f"{_server()}/"):
            raise StoreError(f"{location}: the server names another server for the upload, which is not followed")
        return session

    def _send_piece(self, fd: int, location: str, session: str, start: int, end: int, size: int) -> int:
        """How far the store has got; `size` when it has the object. Without a piece, only asks."""
        piece = f"{start}-{end - 1}" if end else "*"
        headers = {"Content-Range": f"bytes {piece}/{size}", "Content-Length": str(end - start)}
        with self._request("PUT", location, session, headers, Window(fd, start, end)) as response:
            if response.status == 308:
                response.read()
                received = response.headers.get("Range", "").rpartition("-")[2]
                return int(received) + 1 if received.isdigit() else 0
            if response.status in (400, 404, 410, 416):
                raise _SessionGone(f"{location}: the store has forgotten the upload")
            self._check(response, location)
            if int(_json(response, location).get("size", -1)) != size:
                raise _SessionGone(f"{location}: the store has not what it was sent")
            return size

    def _require_bucket(self, location: str, bucket: str) -> None:
        with self._request("GET", location, f"/storage/v1/b/{quote(bucket)}") as response:
            response.read()
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
        with request(method, url, ca_file=ca_file, timeout=self._site.transfer_timeout, shown=location, headers=headers,
                     body=body) as response:
            yield response

    def _authorization(self, location: str, profile: Any, ca_file: str | None) -> dict[str, str]:
        from google.auth import exceptions
        from google.auth.transport import urllib3 as google_urllib3

        source, account = find_service_account(self._site, self._access, profile)
        if source == ANONYMOUS:
            return {}
        pool = connections(ca_file, self._site.transfer_timeout, proxy_for(_SERVER))
        try:
            with _tokens, web_faults(location, "oauth2.googleapis.com"):
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
            said = str(json.loads(response.read(2**16))["error"]["message"])[:200]
        who = SOURCES[find_service_account(self._site, self._access, endpoints.profile_of(
            self._site, "gs://", _split(location)[0]))[0]]
        if response.status in (401, 403):
            raise StoreError(f"{location}: Google denies access to {who} (status {response.status}: {said}); a role "
                             "with the right to read and write objects of the bucket is needed")
        if response.status == 404:
            raise StoreError(f"{location}: there is no such bucket or object in Google storage ({said})")
        raise StoreError(f"{location}: Google refuses the request (status {response.status}: {said})")


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
        raise StoreError(f"{location}: no location in Google storage, which is gs://BUCKET/KEY")
    return bucket, key


def _json(response: Any, location: str) -> dict[str, Any]:
    try:
        return dict(json.loads(response.read()))
    except ValueError:
        raise Weather(f"{location}: the server's answer is no JSON") from None


backend = GoogleStore
