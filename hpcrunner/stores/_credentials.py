"""Whose credentials are used for what: first those that came with the message, then the site's own.

The site's own are more than a message's sender may have. They go only to endpoints and buckets that the site lists in
`stores`; otherwise a message could name any bucket that this host's user may read, and have it read (a "confused
deputy"). Paths and names of profiles in messages are of the sender's machine, and never followed here.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpcrunner.config.stores import StoreProfile
from hpcrunner.errors import StoreError
from hpcrunner.stores._endpoints import dig
from hpcrunner.stores.base import Access

ANONYMOUS = "nobody"
SOURCES = {"artifact": "the artifact's own credentials", "message": "the credentials of the message's store settings",
            "env": "the keys in the message's env", "site": "the site's credentials for this store",
            "sdk": "the credentials of this host's user",
            ANONYMOUS: "requests without credentials, of which none were found that this site lets be used"}


@dataclass(frozen=True)
class Keys:
    """For S3. Without `access_key` of the sources `sdk` (the SDK looks itself) and ANONYMOUS."""

    source: str = ANONYMOUS
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str | None = None
    profile: str | None = None
    """Section of ~/.aws, for the SDK."""

    @property
    def described(self) -> str:
        return SOURCES[self.source]

    @property
    def is_of_site(self) -> bool:
        return self.source in ("site", "sdk")


def find_keys(site: Any, access: Access, profile: StoreProfile | None) -> Keys:
    """Access keys, from the first place that has them. Raises StoreError."""
    for source in site.store_credentials:
        if source == "artifact":
            found = _keys_of(source, dig(access.artifact, "aws"))
        elif source == "message":
            found = _keys_of(source, dig(access.store, "aws"))
        elif source == "env":
            names = {"access_key": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY",
                     "session_token": "AWS_SESSION_TOKEN", "region": "AWS_DEFAULT_REGION"}
            found = _keys_of(source, {key: access.env.get(name) for key, name in names.items()})
        elif profile is None:
            found = None
        elif source == "site":
            found = _keys_of_file(profile) if profile.credentials_file else None
        else:
            found = Keys("sdk", profile=profile.profile) if not profile.credentials_file else None
        if found:
            return found
    return Keys()


def _keys_of(source: str, given: Any) -> Keys | None:
    names = ("access_key", "secret_access_key", "session_token", "region")
    texts = [value if isinstance(value := dig(given, name), str) else "" for name in names]
    # What a client could not replace stays as `$NAME`.
    if not texts[0] or not texts[1] or texts[0].startswith("$") or texts[1].startswith("$"):
        return None
    access_key, secret_key, session_token, region = (text.strip() for text in texts)
    return _checked(Keys(source, access_key, secret_key, session_token, region or None))


def _keys_of_file(profile: StoreProfile) -> Keys:
    path, section = profile.credentials_file, profile.profile or "default"
    assert path is not None
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(read_private(path))
        entries = dict(parser.items(section))
    except configparser.NoSectionError:
        raise StoreError(f"{path}: has no section [{section}]; there are: {', '.join(parser.sections()) or 'none'}"
                         ) from None
    except configparser.Error:
        # Its text would quote a line of the file.
        raise StoreError(f"{path}: is no INI file as ~/.aws/credentials is") from None
    missing = [name for name in ("aws_access_key_id", "aws_secret_access_key") if not entries.get(name)]
    if missing:
        raise StoreError(f"{path}: section [{section}] lacks {' and '.join(missing)}")
    return _checked(Keys("site", entries["aws_access_key_id"], entries["aws_secret_access_key"],
                         entries.get("aws_session_token", ""), entries.get("region")))


def _checked(keys: Keys) -> Keys:
    """Raises StoreError for what can't stand in a header: the error of it would quote what is secret."""
    for name in ("access_key", "secret_key", "session_token", "region"):
        if not re.fullmatch("[!-~]*", getattr(keys, name) or ""):
            raise StoreError(f"{keys.described} can't be used: the {name.replace('_', ' ')} has blanks, line breaks or "
                             "other characters that none has", transient=keys.is_of_site)
    return keys


def find_service_account(site: Any, access: Access, profile: StoreProfile | None
                         ) -> tuple[str, Mapping[str, Any] | None]:
    """For Google: the source, and the content of a service account's JSON file, if the source isn't `sdk` or
    ANONYMOUS. Variables of a message hold only paths, so `env` has none. Raises StoreError."""
    for source in site.store_credentials:
        if source in ("artifact", "message"):
            given = access.artifact if source == "artifact" else access.store
            for name in ("google", "gcloud", "gcp"):
                info = dig(given, name)
                if isinstance(info, Mapping) and info.get("private_key"):
                    return source, _checked_account(info)
        elif source == "site" and profile is not None and profile.credentials_file:
            path = profile.credentials_file
            try:
                info = json.loads(read_private(path))
            except ValueError:
                info = None
            if dig(info, "type") != "service_account":
                raise StoreError(f"{path}: is no JSON file of a service account of Google")
            return source, info
        elif source == "sdk" and profile is not None and not profile.credentials_file:
            return source, None
    return ANONYMOUS, None


def _checked_account(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message must not choose where this host asks for tokens."""
    return {"type": "service_account", "private_key": str(info["private_key"]),
            "client_email": str(info.get("client_email", "")), "token_uri": "https://oauth2.googleapis.com/token"}


def read_private(path: Path) -> str:
    """The text of a file that only its owner may read. Raises StoreError."""
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise StoreError(f"{path}: holds credentials, and others than its owner have access to it; mend it "
                                 "with `chmod 600`")
            return file.read(2**20).decode("utf-8", "replace")
    except OSError as error:
        raise StoreError(f"{path}: the site's credentials can't be read: {error.strerror}") from error
