"""The options of object stores: entries of `stores`, and patterns of endpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hpcrunner.config import kinds
from hpcrunner.config.schema import Origin, option

CREDENTIALS = ("artifact", "message", "env", "site", "sdk")
"""Where credentials may come from, in the usual order."""


@dataclass(frozen=True)
class StoreProfile:
    """What the site knows of one endpoint, or of some of its buckets."""

    endpoint: str = option(
        None, kinds.text(r"https?://[^/?#@\s]+/?|gs://", "https://HOST, http://HOST, either with :PORT, or gs://"),
        unset="Amazon's S3, whatever its region",
        doc="URL of the store. Its host and port are those in the location of an object, which lacks the scheme. "
            "`gs://` is Google's.")
    buckets: str = option(
        "*", kinds.text(r"[A-Za-z0-9._*-]+", "the name of a bucket; * stands for any text"),
        doc="Which of its buckets this entry is about.")
    region: str | None = option(
        None, kinds.text(r"[a-z0-9-]+", "a region such as eu-west-1"),
        doc="Its region, where the message tells none.", unset="us-east-1, or what the store says")
    credentials_file: Path | None = option(
        None, kinds.path(),
        doc="The site's own credentials for it: an INI file as ~/.aws/credentials, or for Google the JSON file of a "
            "service account. Nobody but its owner may have access to the file.")
    profile: str | None = option(
        None, kinds.text(r"[^\]\s]+", "the name of a section"),
        doc="Section of `credentials_file`; without that file, of ~/.aws.", unset="`default`")
    ca_file: Path | None = option(
        None, kinds.path(), doc="Certificates of the authorities that are trusted for it, in PEM.",
        unset="those that the system trusts")
    path_style: bool | None = option(
        None, kinds.boolean(), unset="true, but for Amazon's",
        doc="Whether the bucket stands in the path of a request rather than in the name of the host.")
    checksums: str | None = option(
        None, kinds.choice("when_supported", "when_required"), unset="`when_supported` for Amazon's, else the other",
        doc="Whether CRC checksums are sent and verified wherever the API has them. Older and partial servers don't "
            "know them.")


def endpoint_pattern() -> kinds.Scalar[str]:
    """Of a host, with or without its port, in lower case."""
    def parse(given: str, origin: Origin) -> str:
        if not re.fullmatch(r"[A-Za-z0-9.*_-]+(:([0-9]{1,5}|\*))?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?", given):
            raise ValueError
        return given.lower()

    return kinds.Scalar("HOST or HOST:PORT, without a scheme; * stands for any text", "HOST", parse)
