"""S3 with signature version 4: Amazon's, and every server that speaks it. Locations are `s3://host[:port]/bucket/key`,
not percent-encoded, as the client makes them of the endpoint's URL, whose scheme they lose.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcrunner.errors import ChangedError, RefusedError, StoreError
from hpcrunner.stores import _endpoints as endpoints
from hpcrunner.stores import _parts, _ranged
from hpcrunner.stores import _web as web
from hpcrunner.stores._credentials import Keys, find_keys
from hpcrunner.stores._files import Digests, Window
from hpcrunner.stores._retry import Weather, persist
from hpcrunner.stores._s3_client import Settings, client_of, stamp_of_user
from hpcrunner.stores._s3_faults import ABSENT, code_of, response_of, s3_faults
from hpcrunner.stores.base import Access, Content, Progress, Stat, check_record, unwatched

_AMAZON = "s3.amazonaws.com"
_MOST_LISTED = 100
"""Uploads in one answer, and answers that are asked for: those of one object are few."""
_BUCKET_STAYS = 60.0
"""Seconds for which a bucket that was seen is taken to be there."""
_buckets: dict[tuple[str | None, str], float] = {}
"""Those that were seen, by URL and name, and when (monotonic)."""


class S3Store:
    md5_is_sure = False

    def __init__(self, site: Any, access: Access) -> None:
        self._site, self._access = site, access

    def location(self, endpoint: str | None, bucket: str | None, key: str) -> str:
        host = endpoints.host_of(endpoint) if endpoint else _AMAZON
        # The client takes over the host as it stands in the URL, with its port.
        return f"s3://{host}/{bucket or 'storage'}/{key}"

    def stat(self, location: str) -> Stat | None:
        return persist(lambda: self.stat_once(location))

    def fetch(self, location: str, target: Path, progress: Progress | None = None, limit: int | None = None
              ) -> Stat | None:
        return _ranged.fetch(self, location, target, threads=self._site.transfer_threads, part=self._site.transfer_part,
                             progress=progress or unwatched, limit=limit)

    def put(self, source: Path, location: str, progress: Progress | None = None) -> None:
        self._place(location)
        _parts.put(self, source, location, threads=self._site.transfer_threads, part=self._site.transfer_part,
                   progress=progress or unwatched)

    def read(self, location: str, progress: Progress | None = None) -> Content | None:
        return persist(lambda: self._read(location), progress or unwatched)

    def write(self, data: bytes, location: str, replaces: str | None = None, progress: Progress | None = None) -> None:
        persist(lambda: self._write(data, location, replaces), progress or unwatched)

    def stat_once(self, location: str) -> Stat | None:
        place = self._place(location)
        with place.faults():
            try:
                answer = place.client.head_object(Bucket=place.bucket, Key=place.key)
            except Exception as error:
                self._check_absent(place, error)
                return None
        if (size := answer.get("ContentLength")) is None:
            raise StoreError(f"{location}: {place.host} doesn't say how large it is, so it is no server of S3")
        return _stat(answer, size)

    def chunks(self, location: str, stat: Stat, start: int, end: int) -> Generator[bytes, None, None]:
        place = self._place(location)
        options = {} if (start, end) == (0, stat.size) else {"Range": f"bytes={start}-{end - 1}"}
        if stat.version:
            options["IfMatch"] = stat.version
        with place.faults():
            try:
                answer = place.client.get_object(Bucket=place.bucket, Key=place.key, **options)
            except Exception as error:
                if code_of(error) in ABSENT:
                    raise ChangedError(f"{location}: removed while it was read") from None
                raise
            body = answer["Body"]
            try:
                if stat.version and answer.get("ETag", stat.version) != stat.version:
                    raise ChangedError(f"{location}: changed while it was read")
                if "Range" in options:
                    web.check_range(answer.get("ContentRange"), start, end, stat.size, location)
                elif answer.get("ContentLength", stat.size) != stat.size:
                    raise ChangedError(f"{location}: changed while it was read")
                yield from place.pieces(body)
            finally:
                body.close()

    def put_small(self, location: str, body: Window, digests: Digests) -> None:
        place = self._place(location)
        with place.faults():
            place.client.put_object(Bucket=place.bucket, Key=place.key, Body=body, **_told(digests))

    def begin(self, location: str) -> str:
        place = self._place(location)
        with place.faults():
            return str(place.client.create_multipart_upload(Bucket=place.bucket, Key=place.key)["UploadId"])

    def put_part(self, location: str, upload: str, number: int, body: Window) -> str:
        place = self._place(location)
        with place.faults():
            answer = place.client.upload_part(Bucket=place.bucket, Key=place.key, UploadId=upload, PartNumber=number,
                                              Body=body)
        return str(answer["ETag"])

    def complete(self, location: str, upload: str, tags: list[str]) -> None:
        place = self._place(location)
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        with place.faults():
            place.client.complete_multipart_upload(Bucket=place.bucket, Key=place.key, UploadId=upload,
                                                   MultipartUpload={"Parts": parts})

    def is_complete(self, location: str, size: int, tags: list[str]) -> bool:
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html: the MD5 of the
        # parts' MD5s, and their number.
        try:
            joined = b"".join(bytes.fromhex(tag.strip('"')) for tag in tags)
        except ValueError:
            return False
        expected = f'"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(tags)}"'
        stat = self.stat_once(location)
        return stat is not None and (stat.size, stat.version) == (size, expected)

    def abort(self, location: str, upload: str) -> None:
        place = self._place(location)
        with place.faults():
            place.client.abort_multipart_upload(Bucket=place.bucket, Key=place.key, UploadId=upload)

    def unfinished(self, location: str, before: float) -> list[str]:
        place = self._place(location)
        found: list[str] = []
        marker: dict[str, str] = {}
        for _ in range(_MOST_LISTED):
            with place.faults():
                answer = place.client.list_multipart_uploads(Bucket=place.bucket, Prefix=place.key,
                                                             MaxUploads=_MOST_LISTED, **marker)
            found += [str(one["UploadId"]) for one in answer.get("Uploads", [])
                      if one["Key"] == place.key and one["Initiated"].timestamp() < before]
            # Keys that only begin like this one come after it.
            if not answer.get("IsTruncated") or answer.get("NextKeyMarker") != place.key:
                break
            marker = {"KeyMarker": place.key, "UploadIdMarker": answer.get("NextUploadIdMarker", "")}
        return found

    def _read(self, location: str) -> Content | None:
        place = self._place(location)
        with place.faults():
            try:
                answer = place.client.get_object(Bucket=place.bucket, Key=place.key)
            except Exception as error:
                self._check_absent(place, error)
                return None
            body = answer["Body"]
            try:
                data, size = b"", answer.get("ContentLength", 0)
                check_record(location, size)
                for piece in place.pieces(body):
                    data += piece
                    check_record(location, len(data))
                if len(data) < size:
                    raise Weather(f"{location}: the connection ended before the object did")
                return Content(data, str(answer.get("ETag", "")))
            finally:
                body.close()

    def _write(self, data: bytes, location: str, replaces: str | None) -> None:
        place = self._place(location)
        if replaces is not None:
            # Not all servers heed If-Match, so it is looked at first, too.
            stat = self.stat_once(location)
            if stat is None or stat.version != replaces:
                raise ChangedError(f"{location}: changed while it was being written")
        with place.faults():
            options = _told(Digests.of([data]))
            try:
                condition = {"IfMatch": replaces} if replaces else {}
                place.client.put_object(Bucket=place.bucket, Key=place.key, Body=data, **options, **condition)
            except Exception as error:
                if code_of(error) == "NotImplemented" and replaces:
                    place.client.put_object(Bucket=place.bucket, Key=place.key, Body=data, **options)
                elif code_of(error) in ABSENT:
                    raise ChangedError(f"{location}: removed while it was being written") from None
                else:
                    raise

    def _check_absent(self, place: _Place, error: Exception) -> None:
        """Returns if there is no such object, and else raises. An answer to HEAD has no body that says whether it is
        the bucket that is missing, and why access is denied; an answer to GET has."""
        status = response_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
        if status in (400, 403, 404, 301) and code_of(error) in ("400", "403", "404", "301"):
            known = place.settings.url, place.bucket
            # Most of what an experiment may have is absent when it is staged: half of all requests would be these.
            if status == 404 and time.monotonic() < _buckets.get(known, -_BUCKET_STAYS) + _BUCKET_STAYS:
                return
            try:
                place.client.get_object(Bucket=place.bucket, Key=place.key, Range="bytes=0-0")["Body"].close()
            except Exception as second:
                if code_of(second) not in ABSENT:
                    raise second from None
                _buckets[known] = time.monotonic()
                return
            # It is there after all.
            raise Weather(f"{place.location}: appeared while it was looked for")
        if code_of(error) not in ABSENT:
            raise error

    def _place(self, location: str) -> _Place:
        """Raises StoreError for what is no location, or not allowed at this site."""
        host, bucket, key = _split(location)
        endpoints.check_bucket(bucket, location)
        profile = endpoints.profile_of(self._site, host, bucket)
        keys = find_keys(self._site, self._access, profile)
        amazon = endpoints.is_amazon(host)
        told = endpoints.environment_endpoint("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if amazon else None
        if not told:
            endpoints.check_allowed(self._site, host, location)
        url = told or (None if amazon else
                       endpoints.base_url(self._site, host, profile, self._access.endpoint, location))
        region = keys.region or (profile and profile.region) or endpoints.region_of(host)
        path_style = profile.path_style if profile else None
        checksums = profile.checksums if profile else None
        settings = Settings(
            url, region, keys, str(profile.ca_file) if profile and profile.ca_file else None,
            path_style if path_style is not None else url is not None,
            checksums or ("when_required" if url else "when_supported"), self._site.transfer_timeout,
            stamp_of_user() if keys.source == "sdk" else ())
        return _Place(location, host, bucket, key, keys, settings)


@dataclass(frozen=True)
class _Place:
    """Where an object is, and how to get there."""

    location: str
    host: str
    bucket: str
    key: str
    keys: Keys
    settings: Settings = field(repr=False)

    @property
    def client(self) -> Any:
        return client_of(self.settings)

    def pieces(self, body: Any) -> Iterator[bytes]:
        return web.paced(body.read, self.location, self.settings.timeout)

    def faults(self) -> Any:
        return s3_faults(self.location, self.host, self.bucket, self.keys)


def _told(digests: Digests) -> dict[str, Any]:
    """Of an object that goes in one piece. Given its MD5, no server takes less for all of it: SeaweedFS 4 stores an
    empty object if the connection dies before the content comes."""
    return {"ContentMD5": base64.b64encode(digests.md5).decode(), "Metadata": {"sha256": digests.sha256}}


def _split(location: str) -> tuple[str, str, str]:
    parts = location.removeprefix("s3://").split("/", 2)
    if not location.startswith("s3://") or len(parts) != 3 or not all(parts):
        raise RefusedError(f"{location}: no location in S3, which is s3://HOST/BUCKET/KEY")
    host, bucket, key = parts
    endpoints.check_key(key, location)
    if "@" in host:
        raise RefusedError(f"s3://***@{host.rpartition('@')[2]}/{bucket}/{key}: a location in S3 holds no password; "
                           "credentials belong into the message's `credentials`")
    return host, bucket, key


def _stat(answer: Any, size: int) -> Stat:
    version = str(answer.get("ETag", ""))
    metadata = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
    sha256 = str(metadata.get("sha256", "")).lower()
    tag = version.strip('"')
    # Of an object that was stored in one piece, and not encrypted with a key of KMS or of the client's own.
    is_md5 = len(tag) == 32 and all(char in "0123456789abcdef" for char in tag) \
        and "KMS" not in answer.get("ServerSideEncryption", "").upper() and not answer.get("SSECustomerAlgorithm")
    return Stat(size, version, sha256 if len(sha256) == 64 else "", tag if is_md5 else "")


backend = S3Store
