"""A lab whose artifacts and records lie on a real S3 server."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

from lab import Lab
from storeservers import Server, client

KEYS = {"aws": {"access_key": "testkey", "secret_access_key": "testsecret"}}


class InS3(Lab):
    """Mixed into a lab of any kind, before its class. `endpoint` is where messages say that the server is."""

    def place(self, server: Server, bucket: str, endpoint: str | None = None) -> None:
        """To be called first."""
        self.s3, self.bucket, self.endpoint = client(server), bucket, endpoint or server.url
        self.s3.create_bucket(Bucket=bucket)

    def artifact(self, tag: str, key: str, *, mutable: bool, unpack: bool = True) -> dict[str, Any]:
        host = self.endpoint.partition("//")[2]
        return {**super().artifact(tag, key, mutable=mutable, unpack=unpack), "qualified": f"s3://{host}/{self.bucket}/{key}"}

    def put_tar(self, members: Mapping[str, str | bytes], key: str | None = None) -> str:
        key = super().put_tar(members, key)
        path = self.store / "artifacts" / key
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=path.read_bytes())
        path.unlink()
        return key

    def message(self, key: str, script: str = "print('hello')", **experiment: Any) -> dict[str, Any]:
        where = {"type": "s3", "endpoint": self.endpoint, "bucket": self.bucket, "credentials": KEYS}
        config = {"database": where, "storage": where, **experiment.pop("config", {})}
        return super().message(key, script, config=config, **experiment)

    def enqueue(self, message: dict[str, Any] | bytes) -> None:
        assert isinstance(message, dict)
        experiment = message["experiment"]
        self.s3.put_object(Bucket=self.bucket, Key=f"experiments/{experiment['key']}", Body=json.dumps(experiment).encode())
        super().enqueue(message)

    def record(self, key: str) -> dict[str, Any]:
        loaded = json.loads(self._read(f"experiments/{key}"))
        assert isinstance(loaded, dict)
        return loaded

    def result(self, key: str, tag: str) -> dict[str, bytes]:
        try:
            data = self._read(f"experiments/{key}/{tag}.tar")
        except self.s3.exceptions.NoSuchKey:
            return {}
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return {member.name: file.read() for member in tar if (file := tar.extractfile(member))}

    def _read(self, key: str) -> bytes:
        data = self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        assert isinstance(data, bytes)
        return data
