"""To whom requests for objects go, with whose credentials, and what is said when they are refused. No server is needed:
those that answer here say what they are told to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hpcrunner.config.load import load
from hpcrunner.config.site import Site
from hpcrunner.config.stores import StoreProfile
from hpcrunner.engine.install import open_store
from hpcrunner.errors import ConfigError, StoreError
from hpcrunner.stores import _endpoints
from hpcrunner.stores._credentials import find_keys, find_service_account
from hpcrunner.stores.base import Access

pytestmark = pytest.mark.usefixtures("alone")
PAIR = {"access_key": "A", "secret_access_key": "S"}


class Answers:
    """A server that answers everything alike, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, b"", {}
        self.good_after, self.good = 0, b""
        """After so many requests it answers with this."""
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                if outer.good_after and len(outer.asked) == outer.good_after:
                    outer.status, outer.body = 200, outer.good
                outer.asked.append((self.command, self.path, dict(self.headers)))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(outer.status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(outer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(outer.body)

            do_GET = do_HEAD = do_PUT = do_POST = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def s3_error(self, status: int, code: str, **more: str) -> None:
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in {"Code": code, "Message": "said", **more}.items())
        self.status, self.body = status, f"<Error>{inner}</Error>".encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Answers]:
    answers = Answers()
    yield answers
    answers.close()


def site(tmp: Path, **options: Any) -> Site:
    return Site(**{"state_dir": tmp, "transfer_timeout": 2.0, **options})


# Whose credentials


def test_the_first_that_has_keys_wins_and_the_site_may_forbid_any(tmp_path: Path) -> None:
    def pair(name: str) -> dict[str, Any]:
        return {"aws": {"access_key": name, "secret_access_key": "S"}}

    file = tmp_path / "keys"
    file.write_text("[default]\naws_access_key_id = site\naws_secret_access_key = S\n[other]\naws_access_key_id = other\n"
                    "aws_secret_access_key = S\naws_session_token = T\nregion = eu-west-1\n")
    file.chmod(0o600)
    profile = StoreProfile(credentials_file=file)
    access = Access(pair("artifact"), pair("message"), {"AWS_ACCESS_KEY_ID": "env", "AWS_SECRET_ACCESS_KEY": "S"})
    order = ["artifact", "message", "env", "site"]
    for index, expected in enumerate(order):
        found = find_keys(site(tmp_path, store_credentials=tuple(order[index:])), access, profile)
        assert (found.source, found.access_key) == (expected, expected)
    assert find_keys(site(tmp_path, store_credentials=("site", "artifact")), access, profile).source == "site"
    other = find_keys(site(tmp_path), Access(), StoreProfile(credentials_file=file, profile="other"))
    assert (other.access_key, other.session_token, other.region) == ("other", "T", "eu-west-1")
    assert find_keys(site(tmp_path, store_credentials=()), access, profile).source == "nobody"


def test_the_site_s_own_are_only_for_what_it_lists(tmp_path: Path) -> None:
    assert find_keys(site(tmp_path), Access(), None).source == "nobody"
    assert find_keys(site(tmp_path), Access(), StoreProfile()).source == "sdk"
    assert find_service_account(site(tmp_path), Access(), None) == ("nobody", None)
    assert find_service_account(site(tmp_path), Access(), StoreProfile(endpoint="gs://")) == ("sdk", None)
    listed = site(tmp_path, stores=(StoreProfile(endpoint="https://s3.example.org", buckets="lab-*"),))
    assert _endpoints.profile_of(listed, "s3.example.org", "lab-1")
    assert _endpoints.profile_of(listed, "s3.example.org:443", "lab-1")
    for host, bucket in (("s3.example.org", "other"), ("s3.example.org:9000", "lab-1"), ("s3.example.org.evil", "lab-1"),
                         ("s3.amazonaws.com", "lab-1"), ("gs://", "lab-1")):
        assert _endpoints.profile_of(listed, host, bucket) is None
    assert _endpoints.profile_of(site(tmp_path, stores=(StoreProfile(),)), "s3.eu-west-1.amazonaws.com", "any")
    assert not _endpoints.profile_of(site(tmp_path, stores=(StoreProfile(),)), "s3.amazonaws.com.evil.org", "any")


@pytest.mark.parametrize("given", [
    {"aws": {"access_key": "$KEY", "secret_access_key": "$SECRET"}}, {"aws": {"access_key": "A"}}, {"aws": "text"},
    {"aws": {"access_key": 1, "secret_access_key": 2}}, {"aws": {"profile": "default"}}, {"aws": None}, {}, [], "text"])
def test_what_is_no_pair_of_keys_is_passed_over(tmp_path: Path, given: Any) -> None:
    found = find_keys(site(tmp_path), Access(given, {"aws": PAIR}), None)
    assert (found.source, found.profile) == ("message", None)


def test_no_path_of_a_message_is_read_and_no_address_taken(tmp_path: Path) -> None:
    info = {"private_key": "K", "client_email": "E", "token_uri": "http://169.254.169.254/", "credential_source": {"file": "/etc/passwd"}}
    source, found = find_service_account(site(tmp_path), Access({"google": info}), None)
    assert source == "artifact"
    assert found == {"type": "service_account", "private_key": "K", "client_email": "E",
                     "token_uri": "https://oauth2.googleapis.com/token"}
    access = Access(env={"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "x"), "AWS_SHARED_CREDENTIALS_FILE": "/x"})
    assert find_service_account(site(tmp_path), access, None)[0] == find_keys(site(tmp_path), access, None).source == "nobody"


@pytest.mark.parametrize(("text", "mode", "said"), [
    ("[default]\naws_access_key_id = A\naws_secret_access_key = hidden\n", 0o644, "chmod 600"),
    ("[default]\naws_access_key_id = hidden\n", 0o600, "lacks aws_secret_access_key"),
    ("[other]\nx = hidden\n", 0o600, r"no section \[default\]; there are: other"),
    ("hidden", 0o600, "no INI file"),
    (None, 0o600, "can't be read")])
def test_files_of_credentials_that_won_t_do(tmp_path: Path, text: str | None, mode: int, said: str) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
        file.chmod(mode)
    with pytest.raises(StoreError, match=said) as caught:
        find_keys(site(tmp_path), Access(), StoreProfile(credentials_file=file))
    assert "hidden" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    pair = {"access_key": "A", "secret_access_key": "hidden", "session_token": "hidden"}
    access = Access({"aws": pair}, {"aws": pair}, {"X": "hidden"})
    assert "hidden" not in repr(access) + repr(find_keys(Site(), access, None))


@pytest.fixture
def google(server: Answers, monkeypatch: pytest.MonkeyPatch) -> Answers:
    monkeypatch.setattr("hpcrunner.stores.gs._SERVER", f"http://{server.host}")
    return server


@pytest.fixture(scope="session")
def private_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                             serialization.NoEncryption()).decode()


def account(tmp: Path, private_key: str, host: str) -> Site:
    file = tmp / "account.json"
    file.write_text(json.dumps({"type": "service_account", "client_email": "someone@example.org",
                                "private_key": private_key, "token_uri": f"http://{host}/token"}))
    file.chmod(0o600)
    return site(tmp, stores=(StoreProfile(endpoint="gs://", buckets="ours", credentials_file=file),))


def test_a_service_account_of_the_site(tmp_path: Path, google: Answers, private_key: str) -> None:
    """One token for all requests, and none for buckets that the site doesn't list."""
    google.body = json.dumps({"access_token": "token", "expires_in": 3600, "token_type": "Bearer", "size": "7",
                              "generation": "1"}).encode()
    store = open_store(account(tmp_path, private_key, google.host), "gcloud", Access(), "x")
    assert store.stat("gs://ours/key").size == 7
    assert store.stat("gs://ours/key").version == "1"
    assert store.stat("gs://theirs/key").size == 7
    assert [path for _, path, _ in google.asked] == [
        "/token", "/storage/v1/b/ours/o/key", "/storage/v1/b/ours/o/key", "/storage/v1/b/theirs/o/key"]
    assert [headers.get("Authorization", headers.get("authorization")) for _, _, headers in google.asked] == [
        None, "Bearer token", "Bearer token", None]


def test_a_service_account_that_was_withdrawn(tmp_path: Path, google: Answers, private_key: str) -> None:
    google.status, google.body = 400, b'{"error": "invalid_grant", "error_description": "hidden"}'
    store = open_store(account(tmp_path, private_key, google.host), "gs", Access(), "x")
    with pytest.raises(StoreError, match="give no token") as caught:
        store.stat("gs://ours/key")
    assert caught.value.transient and "hidden" not in str(caught.value)


def test_a_private_key_of_a_message_that_is_broken(tmp_path: Path, google: Answers) -> None:
    access = Access({"google": {"private_key": "hidden", "client_email": "someone@example.org"}})
    with pytest.raises(StoreError, match="the artifact's own credentials give no token") as caught:
        open_store(site(tmp_path), "gs", access, "x").stat("gs://ours/key")
    assert not caught.value.transient and "hidden" not in str(caught.value)


@pytest.mark.parametrize(("status", "said"), [(403, "denies access"), (401, "denies access"), (400, "refuses")])
def test_google_s_errors(tmp_path: Path, google: Answers, status: int, said: str) -> None:
    google.status, google.body = status, b'{"error": {"message": "its words"}}'
    store = open_store(site(tmp_path), "gs", Access(), "x")
    (tmp_path / "file").write_bytes(b"x")
    for call in (lambda: store.stat("gs://b/k"), lambda: store.read("gs://b/k"), lambda: store.write(b"", "gs://b/k"),
                 lambda: store.put(tmp_path / "file", "gs://b/k")):
        with pytest.raises(StoreError, match=f"{said}.*its words") as caught:
            call()
        assert not caught.value.transient


# To whom


@pytest.mark.parametrize("location", [
    "s3://169.254.169.254/latest/meta-data", "s3://[fe80::1]/b/k", "s3://[::ffff:169.254.169.254]/b/k",
    "s3://[fd00:ec2::254]/b/k", "http://169.254.169.254/latest/meta-data/", "http://2852039166/latest/",
    "https://100.100.100.200/x", "http://[::ffff:a9fe:a9fe]/x"])
def test_no_metadata_service_is_asked(tmp_path: Path, location: str) -> None:
    store = open_store(site(tmp_path, store_endpoints=("*",)), location.partition(":")[0], Access(), location)
    with pytest.raises(StoreError, match="at which no store may be") as caught:
        store.read(location)
    assert not caught.value.transient


def test_a_redirect_to_a_metadata_service_is_not_followed(tmp_path: Path, server: Answers) -> None:
    server.status, server.headers = 302, {"Location": "http://169.254.169.254/latest/meta-data/"}
    with pytest.raises(StoreError, match="at which no store may be"):
        open_store(site(tmp_path), "http", Access(), "x").read(f"http://{server.host}/x")


def test_a_password_is_not_taken_along_to_another_host(tmp_path: Path, server: Answers) -> None:
    other = Answers()
    server.status, server.headers = 302, {"Location": f"http://{other.host}/y"}
    other.body = b"content"
    assert open_store(site(tmp_path), "http", Access(), "x").read(f"http://user:pw@{server.host}/x").data == b"content"
    other.close()
    assert server.asked[0][2]["Authorization"] == "Basic dXNlcjpwdw=="
    assert "Authorization" not in other.asked[0][2]


def test_only_hosts_that_the_site_allows(tmp_path: Path, server: Answers) -> None:
    access = Access(store={"aws": PAIR}, endpoint=f"http://{server.host}")
    location = f"s3://{server.host}/bucket/key"
    server.body = b"content"
    for allowed in (("127.0.0.1",), (server.host,), ("*.example.org", "127.0.*"), None):
        assert open_store(site(tmp_path, store_endpoints=allowed), "s3", access, "x").read(location)
    server.asked.clear()
    for refused in ((), ("example.org",), ("127.0.0.1:1",)):
        with pytest.raises(StoreError, match="store_endpoints"):
            open_store(site(tmp_path, store_endpoints=refused), "s3", access, "x").read(location)
        with pytest.raises(StoreError, match="store_endpoints"):
            open_store(site(tmp_path, store_endpoints=refused), "http", access, "x").read(f"http://{server.host}/key")
    assert server.asked == []


def test_the_scheme_is_told_or_listed_or_probed_once(tmp_path: Path) -> None:
    def scheme(host: str, told: str | None = None, profile: StoreProfile | None = None) -> str:
        return _endpoints.base_url(site(tmp_path), host, profile, told, "x")

    assert scheme("store.example:9000", "https://store.example:9000/") == "https://store.example:9000"
    assert scheme("store.example", "http://store.example:80") == "http://store.example"
    assert scheme("store.example", None, StoreProfile(endpoint="https://store.example")) == "https://store.example"
    assert scheme("s3.eu-west-1.amazonaws.com") == "https://s3.eu-west-1.amazonaws.com"
    listener = Answers()
    assert scheme(listener.host, "https://another.example") == f"http://{listener.host}"
    listener.close()
    _endpoints._schemes.clear()
    assert scheme(listener.host) == f"http://{listener.host}"  # Nobody answers there any more: it is remembered.
    with pytest.raises(StoreError, match="nothing answers") as caught:
        scheme(f"127.0.0.1:{unused_port()}")
    assert caught.value.transient


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# What is said


@pytest.mark.parametrize(("status", "code", "said", "transient"), [
    (400, "ExpiredToken", "has expired.*submit again with fresh credentials", False),
    (403, "RequestTimeTooSkewed", "set this host's clock", True),
    (403, "InvalidAccessKeyId", "doesn't know the access key", False),
    (403, "SignatureDoesNotMatch", "the secret key is wrong", False),
    (403, "AccessDenied", "no such object and the right to list the bucket is lacking", False),
    (404, "NoSuchBucket", "no bucket 'bucket'", False),
    (301, "PermanentRedirect", "in another region", False),
    (400, "AuthorizationHeaderMalformed", "in another region", False),
    (503, "SlowDown", "in trouble", True),
    (500, "InternalError", "in trouble", True),
    (429, "TooManyRequests", "in trouble|less haste", True),
    (403, "InvalidObjectState", "archived", False),
    (501, "NotImplemented", "refuses the request", False)])
def test_s3_errors(tmp_path: Path, server: Answers, status: int, code: str, said: str, transient: bool,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrunner.stores._retry.TRIES", 2)
    keys = {**PAIR, "secret_access_key": "hidden", "session_token": "hidden"}
    store = open_store(site(tmp_path), "s3", Access(store={"aws": keys}, endpoint=f"http://{server.host}"), "x")
    server.s3_error(status, code)
    location = f"s3://{server.host}/bucket/key"
    (tmp_path / "file").write_bytes(b"x")
    for call in (lambda: store.stat(location), lambda: store.read(location), lambda: store.write(b"", location),
                 lambda: store.fetch(location, tmp_path / "target"), lambda: store.put(tmp_path / "file", location)):
        with pytest.raises(StoreError, match=said) as caught:
            call()
        assert caught.value.transient == transient
        assert "hidden" not in str(caught.value) and location in str(caught.value)


def test_weather_passes(tmp_path: Path, server: Answers) -> None:
    store = open_store(site(tmp_path), "s3", Access(store={"aws": PAIR}, endpoint=f"http://{server.host}"), "x")
    server.s3_error(503, "SlowDown")
    server.good_after, server.good = 3, b"content"
    assert store.read(f"s3://{server.host}/bucket/key").data == b"content"
    assert len(server.asked) == 4


def test_the_site_s_expired_token_may_be_renewed(tmp_path: Path, server: Answers) -> None:
    (tmp_path / "aws").write_text("[default]\naws_access_key_id=A\naws_secret_access_key=S\naws_session_token=T\n")
    (tmp_path / "aws").chmod(0o600)
    profile = StoreProfile(endpoint=f"http://{server.host}", credentials_file=tmp_path / "aws")
    server.s3_error(400, "ExpiredToken")
    with pytest.raises(StoreError, match="renew it") as caught:
        open_store(site(tmp_path, stores=(profile,)), "s3", Access(), "x").read(f"s3://{server.host}/bucket/key")
    assert caught.value.transient


def test_a_region_and_a_session_token_of_the_message_are_used(tmp_path: Path, server: Answers) -> None:
    keys = {**PAIR, "session_token": "T", "region": "eu-north-1"}
    store = open_store(site(tmp_path), "s3", Access({"aws": keys}, endpoint=f"http://{server.host}"), "x")
    store.write(b"x", f"s3://{server.host}/bucket/key")
    headers = server.asked[0][2]
    assert "/eu-north-1/s3/" in headers["Authorization"] and headers["X-Amz-Security-Token"] == "T"
    assert server.asked[0][1] == "/bucket/key"


@pytest.mark.parametrize(("kind", "location"), [
    ("s3", "s3://host"), ("s3", "s3://host/bucket"), ("s3", "s3:///bucket/key"), ("s3", "gs://bucket/key"),
    ("s3", "s3://user:hidden@host/bucket/key"), ("gs", "gs://bucket"), ("gs", "gs:///key"), ("http", "http:///x"),
    ("http", "http://"), ("http", "https://[x/y"), ("s3", "s3://host:port/b/k")])
def test_what_is_no_location(tmp_path: Path, kind: str, location: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(site(tmp_path), kind, Access(), "x").stat(location)
    assert not caught.value.transient and "hidden" not in str(caught.value)


def test_the_web_denies_access(tmp_path: Path, server: Answers) -> None:
    server.status = 403
    with pytest.raises(StoreError, match="denies access") as caught:
        open_store(site(tmp_path), "http", Access(), "x").read(f"http://{server.host}/x?signature=hidden")
    assert "hidden" not in str(caught.value)


def test_an_answer_of_unknown_length(tmp_path: Path) -> None:
    """As of an archive that is made on the way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def answer() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
                                       b"7\r\ncontent\r\n0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        store = open_store(site(tmp_path), "http", Access(), "x")
        stat = store.fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/x", tmp_path / "target")
    assert stat.size == 7 and (tmp_path / "target").read_bytes() == b"content"


def test_options(tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(json.dumps({
        "queues": [{"type": "local", "root": "queue"}], "store_credentials": ["artifact", "site"], "store_endpoints": ["*.Example.org:9000"],
        "stores": [{"endpoint": "https://s3.example.org:9000", "buckets": "lab-*", "credentials_file": "keys",
                    "ca_file": "ca.pem", "path_style": "true", "checksums": "when_required", "region": "eu-west-1"}]}))
    loaded = load(file, environ={"HOME": str(tmp_path)}).site
    assert loaded.store_credentials == ("artifact", "site")
    assert loaded.store_endpoints == ("*.example.org:9000",)
    assert loaded.stores[0].credentials_file == tmp_path / "keys" and loaded.stores[0].path_style is True
    file.write_text(json.dumps({
        "queues": [{"type": "local", "root": "queue"}], "store_credentials": ["me"], "store_endpoints": ["https://x"], "transfer_part": "1M",
        "stores": [{"endpoint": "s3.example.org", "bucket": "x", "checksums": "never"}]}))
    with pytest.raises(ConfigError) as caught:
        load(file, environ={"HOME": str(tmp_path)})
    said = str(caught.value)
    for part in ("store_credentials[0]: holds 'me'; allowed: artifact, message, env, site or sdk",
                 "store_endpoints[0]: holds 'https://x'; allowed: HOST or HOST:PORT",
                 "stores[0].endpoint: holds 's3.example.org'; allowed: https://HOST",
                 "stores[0].bucket: unknown; did you mean buckets?", "stores[0].checksums", "less than 5 MiB"):
        assert part in said
