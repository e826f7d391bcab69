"""Servers, messages and jobs that are broken or mean harm: what they say is not believed, what they send has bounds, and
whoever must stop can. No real server does these things, so here are some that do."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hpcrunner.config.site import Site
from hpcrunner.config.stores import StoreProfile
from hpcrunner.engine.install import open_store
from hpcrunner.errors import BusyError, StoreError
from hpcrunner.stores import _endpoints, _notes
from hpcrunner.stores._credentials import find_keys
from hpcrunner.stores._retry import Weather, persist
from hpcrunner.stores.base import Access, Store, shown

MIB = 2**20
KEYS = {"aws": {"access_key": "A", "secret_access_key": "S"}}
OLD = "Mon, 02 Jan 2023 10:00:00 GMT"


@pytest.fixture(autouse=True)
def three_tries(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrunner.stores._retry.TRIES", 3)


class Scripted:
    """A server that does what `answer` does with each request."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler, bytes], None] = lambda handler, body: reply(handler)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.asked.append((self.command, self.path, dict(self.headers)))
                outer.answer(self, body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = any

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # Clients go away amidst answers here.

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def methods(self) -> list[str]:
        return [method for method, _, _ in self.asked]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int = 200, body: bytes = b"", length: int | None = None,
          **headers: str) -> None:
    """`length` -1: none is said, and the connection ends with the body."""
    handler.send_response_only(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    if length == -1:
        handler.close_connection = True
    else:
        handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def serve(handler: BaseHTTPRequestHandler, content: bytes, **headers: str) -> None:
    """As a server of files would."""
    wanted = handler.headers.get("Range")
    if not wanted:
        reply(handler, body=content, **headers)
        return
    start, _, last = wanted.partition("=")[2].partition("-")
    part = content[int(start):int(last) + 1]
    reply(handler, 206, part, Content_Range=f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}", **headers)


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    yield scripted
    scripted.close()


@pytest.fixture
def google(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{server.host}")
    return server


def site(tmp: Path, **options: Any) -> Site:
    return Site(**{"state_dir": tmp, "store_roots": (tmp / "store",), "transfer_timeout": 2.0, "transfer_part": 5 * MIB,
                   **options})


def s3(tmp: Path, server: Scripted, *, scheme: str = "http", keys: Any = KEYS, **options: Any) -> Store:
    return open_store(site(tmp, **options), "s3", Access(store=keys, endpoint=f"{scheme}://{server.host}"), "x")


def web(tmp: Path, **options: Any) -> Store:
    return open_store(site(tmp, **options), "http", Access(), "x")


# Two objects in one file


@pytest.mark.parametrize("versions", [
    lambda: {"Last-Modified": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())},
    lambda: {"ETag": 'W/"1"'}, dict], ids=["this second", "weak tag", "nothing"])
@pytest.mark.parametrize("size", [11 * MIB, 12 * MIB], ids=["same size", "another size"])
def test_an_object_of_no_sure_version_comes_in_one_piece(tmp_path: Path, server: Scripted, versions: Any, size: int) -> None:
    """Replaced after the first answer, as by rclone's server within a second."""
    old, new = b"o" * 11 * MIB, b"n" * size
    told = {name.replace("-", "_"): value for name, value in versions().items()}

    def answer(handler: Any, body: bytes) -> None:
        serve(handler, old if len(server.asked) < 3 else new, Date=time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
              **told)

    server.answer = answer
    stat = web(tmp_path, transfer_threads=1).fetch(f"http://{server.host}/x", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() in (old, new)
    assert stat.version == ""


@pytest.mark.parametrize("kind", ["http", "s3"])
@pytest.mark.parametrize("said", ["bytes 0-5242879/11534336", "bytes 5242880-10485759/99", "bytes */11534336", "nonsense", ""])
def test_ranges_other_than_those_that_were_asked_for_are_not_taken(tmp_path: Path, server: Scripted, kind: str, said: str) -> None:
    content = os.urandom(11 * MIB)

    def answer(handler: Any, body: bytes) -> None:
        if handler.headers.get("Range", "").startswith("bytes=5242880-"):
            reply(handler, 206, content[:5 * MIB], ETag='"1"', **({"Content_Range": said} if said else {}))
        else:
            serve(handler, content, ETag='"1"')

    server.answer = answer
    store = web(tmp_path) if kind == "http" else s3(tmp_path, server)
    try:
        store.fetch(f"{kind}://{server.host}/bucket/key", tmp_path / "target")
    except StoreError as error:  # The total is another's, each time.
        assert "changed while it was read" in str(error) and said.endswith("/99")
    else:
        assert (tmp_path / "target").read_bytes() == content


def test_one_unbroken_answer_that_breaks_is_begun_anew(tmp_path: Path, server: Scripted) -> None:
    content, told = os.urandom(MIB), []

    def answer(handler: Any, body: bytes) -> None:
        if "Range" in handler.headers:
            serve(handler, content)
        elif server.methods.count("GET") == 2:
            reply(handler, body=content[:MIB // 2], length=MIB)
            handler.close_connection = True
        else:
            serve(handler, content)

    server.answer = answer
    web(tmp_path).fetch(f"http://{server.host}/x", tmp_path / "target", told.append)
    assert (tmp_path / "target").read_bytes() == content
    assert sum(told) == MIB


# More than is good


@pytest.mark.parametrize("size", [2**46, 10**17])
@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_size_that_is_a_lie_costs_nothing(tmp_path: Path, server: Scripted, kind: str, size: int) -> None:
    def answer(handler: Any, body: bytes) -> None:
        if handler.command == "HEAD":
            reply(handler, ETag='"1"', length=size)
        else:
            reply(handler, 206, b"x", ETag='"1"', Content_Range=f"bytes 0-0/{size}")

    server.answer = answer
    store = web(tmp_path) if kind == "http" else s3(tmp_path, server)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used() + 200 * MIB, limit[1]))
    try:
        with pytest.raises(StoreError, match=r"no space left|no object has"):
            store.fetch(f"{kind}://{server.host}/bucket/key", tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert not (tmp_path / "target").exists()


def used() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("length", [None, -1], ids=["measured", "unmeasured"])
def test_an_object_over_the_limit_is_refused(tmp_path: Path, server: Scripted, length: int | None) -> None:
    server.answer = lambda handler, body: reply(handler, body=b"x" * 3 * MIB, length=length)
    location = f"http://{server.host}/x"
    with pytest.raises(StoreError, match="larger than") as caught:
        web(tmp_path).fetch(location, tmp_path / "target", limit=2 * MIB)
    assert not caught.value.transient
    assert [path.name for path in tmp_path.iterdir()] == []
    assert web(tmp_path).fetch(location, tmp_path / "target", limit=3 * MIB).size == 3 * MIB


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x").write_bytes(bytes(100))
    store = open_store(site(tmp_path), "local", Access(), "x")
    with pytest.raises(StoreError, match="larger than"):
        store.fetch(f"file:/{tmp_path}/store/x", tmp_path / "target", limit=99)
    assert store.fetch(f"file:/{tmp_path}/store/x", tmp_path / "target", limit=100).size == 100


@pytest.mark.parametrize("status", [200, 400, 503])
def test_an_error_of_any_size_stays_small_in_memory(tmp_path: Path, server: Scripted, status: int) -> None:
    sent = 0

    def answer(handler: Any, body: bytes) -> None:
        nonlocal sent
        reply(handler, status, length=600 * MIB)
        while sent < 600 * MIB:
            handler.wfile.write(b"x" * MIB)
            sent += MIB

    server.answer = answer
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StoreError, match="larger than 1 MiB"):
        s3(tmp_path, server).put(tmp_path / "file", f"s3://{server.host}/bucket/key")
    assert sent < 50 * MIB


# Slow ones


@pytest.mark.parametrize("kind", ["http", "s3", "gs"])
def test_a_server_that_drips_holds_nobody(tmp_path: Path, server: Scripted, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "gs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{server.host}")

    def answer(handler: Any, body: bytes) -> None:
        if handler.headers.get("Range") or handler.command == "HEAD":
            reply(handler, 206 if kind == "http" else 200, b"x", ETag='"1"', Content_Range="bytes 0-0/100000", length=100_000 if kind == "s3" else 1)
        elif kind == "gs" and "alt=media" not in handler.path:
            reply(handler, body=b'{"size": "100000", "generation": "1"}')
        else:
            reply(handler, ETag='"1"', length=100_000)
            for _ in range(600):
                handler.wfile.write(b"x")
                time.sleep(0.1)

    server.answer = answer
    location = f"gs://bucket/key" if kind == "gs" else f"{kind}://{server.host}/bucket/key"  # noqa: F541
    store = open_store(site(tmp_path), kind, Access(store=KEYS, endpoint=f"http://{server.host}"), "x")

    class Enough(Exception):
        pass

    def stop(count: int) -> None:
        if count:
            raise Enough

    start = time.monotonic()
    with pytest.raises(Enough):
        store.fetch(location, tmp_path / "target", stop)
    assert time.monotonic() - start < 4
    monkeypatch.setattr("hpcrunner.stores._retry.TRIES", 1)
    with pytest.raises(StoreError, match="hardly anything comes") as caught:
        store.fetch(location, tmp_path / "target")
    assert caught.value.transient
    assert time.monotonic() - start < 10


def test_what_drips_is_not_tried_for_ever() -> None:
    moved = 0

    def drip() -> None:
        nonlocal moved
        moved += 10
        raise Weather("x")

    with pytest.raises(Weather):
        persist(drip, moved=lambda: moved)
    assert moved == 30


def test_a_pipe_in_a_local_store_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    os.mkfifo(tmp_path / "store" / "pipe")
    store, location = open_store(site(tmp_path), "local", Access(), "x"), f"file:/{tmp_path}/store/pipe"
    for call in (lambda: store.fetch(location, tmp_path / "target"), lambda: store.read(location)):
        with pytest.raises(StoreError, match="no regular file"):
            call()


def test_a_host_that_does_not_answer_a_probe_holds_up_no_other(tmp_path: Path, server: Scripted,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    probing, over = threading.Event(), threading.Event()

    def probe(host: str, location: str) -> str:
        if host == "silent":
            probing.set()
            assert over.wait(10)
        return "http"

    monkeypatch.setattr(_endpoints, "_probe", probe)
    thread = threading.Thread(target=_endpoints.base_url, args=(site(tmp_path), "silent", None, None, "x"))
    thread.start()
    assert probing.wait(10)
    done: list[str] = []
    other = threading.Thread(target=lambda: done.append(_endpoints.base_url(site(tmp_path), "other", None, None, "x")))
    other.start()
    other.join(3)
    found = list(done)
    over.set()
    thread.join()
    other.join()
    assert found == ["http://other"]
    assert "silent" in (tmp_path / "endpoints.json").read_text() and "other" in (tmp_path / "endpoints.json").read_text()


def test_what_a_probe_said_holds_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["http", "https"])
    monkeypatch.setattr(_endpoints, "_probe", lambda host, location: next(answers))
    assert _endpoints.base_url(site(tmp_path), "h", None, None, "x") == "http://h"
    assert _endpoints.base_url(site(tmp_path), "h", None, None, "x") == "http://h"
    now = time.time()
    monkeypatch.setattr(_endpoints.time, "time", lambda: now + 86500)
    assert _endpoints.base_url(site(tmp_path), "h", None, None, "x") == "https://h"


def test_google_taking_nothing_is_weather(tmp_path: Path, google: Scripted) -> None:
    def answer(handler: Any, body: bytes) -> None:
        if handler.command == "POST":
            reply(handler, Location=f"http://{google.host}/session")
        else:
            reply(handler, 308)

    google.answer = answer
    (tmp_path / "file").write_bytes(bytes(6 * MIB))
    with pytest.raises(StoreError, match="took nothing") as caught:
        open_store(site(tmp_path), "gs", Access(), "x").put(tmp_path / "file", "gs://bucket/key")
    assert caught.value.transient
    assert len(google.asked) < 10


# To whom


@pytest.mark.parametrize("host", ["127.0.0.1:9#.good.org", "127.0.0.1:9?.good.org", "127.0.0.1\\.good.org", "a b.good.org",
                                  "[::1].good.org", "evil.org:9\n.good.org", "evil.org:99999", "127.0.0.1:.good.org"])
@pytest.mark.parametrize("allowed", [("*.good.org",), None])
def test_what_is_no_plain_host_is_refused(tmp_path: Path, host: str, allowed: Any) -> None:
    with pytest.raises(StoreError, match="is no host") as caught:
        open_store(site(tmp_path, store_endpoints=allowed), "s3", Access(store=KEYS), "x").stat(f"s3://{host}/bucket/key")
    assert not caught.value.transient


@pytest.mark.parametrize("host", ["168.63.129.16", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[2002:a9fe:a9fe::1]",
                                  "[::169.254.169.254]", "0.0.0.0", "[::]", "[::ffff:0:a9fe:a9fe]"])
def test_addresses_of_no_store_in_any_form(tmp_path: Path, host: str) -> None:
    with pytest.raises(StoreError, match="at which no store may be"):
        _endpoints.check_allowed(site(tmp_path), host, "x")


def test_loopback_is_an_address_like_others(tmp_path: Path) -> None:
    for host in ("127.0.0.1:9000", "[::1]:9000"):
        _endpoints.check_allowed(site(tmp_path, store_endpoints=(host,)), host, "x")
        _endpoints.check_allowed(site(tmp_path, store_endpoints=(host.rpartition(":")[0],)), host, "x")


@pytest.mark.parametrize("bucket", ["arn:aws:s3:eu-west-1:123456789012:accesspoint", "b--use1-az4--x-s3", "a b", "..", "-b", "ü"])
def test_what_is_no_plain_bucket_is_refused(tmp_path: Path, bucket: str) -> None:
    for kind, location in (("s3", f"s3://s3.amazonaws.com/{bucket}/key"), ("gs", f"gs://{bucket}/key")):
        with pytest.raises(StoreError, match="can't be a bucket: letters") as caught:
            open_store(site(tmp_path), kind, Access(store=KEYS), "x").stat(location)
        assert not caught.value.transient


@pytest.mark.parametrize("location", ["gs://bk/..", "gs://bk/.", "gs://bk/x/../../other/y", "gs://../x", "s3://h/bucket/../other/x",
                                      "s3://h/bucket/\ud800", "gs://bk/\ud800", "http://h/\ud800", "http://[", "http://h:x/"])
def test_keys_that_would_be_another_s_or_none_are_refused(tmp_path: Path, location: str) -> None:
    store = open_store(site(tmp_path), location.partition(":")[0], Access(store=KEYS), "x")
    (tmp_path / "file").touch()
    for call in (lambda: store.stat(location), lambda: store.fetch(location, tmp_path / "t"), lambda: store.put(tmp_path / "file", location)):
        with pytest.raises(StoreError) as caught:
            call()
        assert not caught.value.transient


@pytest.mark.parametrize("endpoint", ["http://[", "http://h:port", "http://h:99999"])
def test_an_endpoint_that_is_no_url_is_a_store_error(tmp_path: Path, endpoint: str) -> None:
    store = open_store(site(tmp_path), "s3", Access(store=KEYS, endpoint=endpoint), "x")
    for call in (lambda: store.location(endpoint, "bucket", "key"), lambda: store.stat("s3://127.0.0.1:9/bucket/key")):
        with pytest.raises(StoreError, match="no URL"):
            call()


def test_a_message_can_t_have_a_site_s_token_sent_in_clear(tmp_path: Path) -> None:
    profile = StoreProfile(endpoint="https://store.example:9000", buckets="lab-*")
    listed = site(tmp_path, stores=(profile,))
    for found in (profile, None):  # What is pinned holds for all buckets.
        assert _endpoints.base_url(listed, "store.example:9000", found, "http://store.example:9000", "x") == "https://store.example:9000"


def test_a_planted_note_sends_no_token_elsewhere(tmp_path: Path, google: Scripted) -> None:
    """A job may have written it."""
    other = Scripted()
    other.answer = lambda handler, body: reply(handler, body=b'{"size": "%d"}' % (6 * MIB))

    def answer(handler: Any, body: bytes) -> None:
        sent = handler.headers.get("Content-Range", "")
        if sent.startswith("bytes 0-"):
            reply(handler, 308, Range=f"bytes=0-{5 * MIB - 1}")
        else:
            reply(handler, body=b'{"size": "%d"}' % (6 * MIB), Location=f"http://{google.host}/session")

    google.answer = answer
    file = tmp_path / "file"
    file.write_bytes(bytes(6 * MIB))
    store = open_store(site(tmp_path), "gs", Access(), "x")
    planted = [f'["http://{other.host}/session"]', "[]", "[[]]", "5", '{"0": 1}', '["a", 1]', "[1]"]
    for line in planted:
        plant(file, "gs://bucket/key", line)
        store.put(file, "gs://bucket/key")
        assert not (tmp_path / ".file.upload").exists()
    other.close()
    assert other.asked == []
    assert google.methods == ["POST", "PUT", "PUT"] * len(planted)  # In two pieces.


def plant(file: Path, location: str, *lines: str, **more: Any) -> None:
    status = file.stat()
    about = {"location": location, **more, "size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
    note = file.with_name(f".{file.name}.upload")
    note.write_bytes(_notes._encoded(about) + "".join(f"{line}\n" for line in lines).encode())


@pytest.mark.parametrize("lines", [["[]"], ["[[]]"], ['["up"]', "[1]"], ['["up"]', '["1", "tag"]'], ['["up"]', '[99, "tag"]'], ["7"],
                                   ['["up", 1]'], ['["up"]', '[true, "tag"]']])
def test_damaged_notes_of_an_upload_are_void(tmp_path: Path, server: Scripted, lines: list[str]) -> None:
    file, location = tmp_path / "file", f"s3://{server.host}/bucket/key"
    file.write_bytes(bytes(6 * MIB))
    plant(file, location, *lines, part=5 * MIB)
    server.answer = multipart
    s3(tmp_path, server).put(file, location)
    assert "/bucket/key?uploads" in [asked[1] for asked in server.asked], "a new one is begun"
    assert not (tmp_path / ".file.upload").exists()


def multipart(handler: Any, body: bytes) -> None:
    """A store of S3 that takes anything."""
    if handler.path.endswith("?uploads"):
        reply(handler, body=b"<R><UploadId>fresh</UploadId></R>")
    elif handler.command == "PUT":
        reply(handler, ETag='"tag"')
    else:
        reply(handler, body=b"<R><ETag>x</ETag></R>")


@pytest.mark.parametrize("code", ["InvalidPart", "InvalidPartOrder"])
def test_parts_that_the_store_has_otherwise_are_sent_anew(tmp_path: Path, server: Scripted, code: str) -> None:
    def answer(handler: Any, body: bytes) -> None:
        if handler.command == "POST" and "uploadId" in handler.path and server.methods.count("POST") == 2:
            reply(handler, 400, f"<Error><Code>{code}</Code></Error>".encode())
        elif handler.command == "HEAD":
            reply(handler, 404)
        elif handler.command == "GET":
            reply(handler, 404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            multipart(handler, body)

    server.answer = answer
    (tmp_path / "file").write_bytes(bytes(6 * MIB))
    s3(tmp_path, server).put(tmp_path / "file", f"s3://{server.host}/bucket/key")
    assert server.methods.count("PUT") == 4


@pytest.mark.parametrize(("status", "code"), [(403, "QuotaExceeded"), (507, "InsufficientStorage")])
def test_a_store_that_is_full_says_so_and_is_tried_later(tmp_path: Path, server: Scripted, status: int, code: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    server.answer = lambda handler, body: reply(handler, status, f"<Error><Code>{code}</Code></Error>".encode())
    with pytest.raises(StoreError, match="a quota is used up; make room there") as raised:
        s3(tmp_path, server).put(file, f"s3://{server.host}/bucket/key")
    assert raised.value.transient and len(server.asked) == 1


@pytest.mark.parametrize("code", ["IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"])
def test_a_body_that_came_damaged_is_sent_again(tmp_path: Path, server: Scripted, code: str) -> None:
    server.answer = lambda handler, body: reply(handler, 400, f"<Error><Code>{code}</Code></Error>".encode()) \
        if len(server.asked) == 1 else reply(handler)
    (tmp_path / "file").write_bytes(b"x")
    s3(tmp_path, server).put(tmp_path / "file", f"s3://{server.host}/bucket/key")
    assert len(server.asked) == 2


# What is said


@contextmanager
def tls(tmp: Path, behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """A port at which TLS goes wrong."""
    over = False
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def accept() -> None:
            while not over:
                try:
                    connection, _ = listener.accept()
                    with connection:
                        behave(connection)
                except OSError:
                    pass

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        over = True
        listener.shutdown(socket.SHUT_RDWR)


def hang_up(connection: socket.socket) -> None:
    connection.recv(10)
    connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_hiccup_of_tls_is_weather(tmp_path: Path, kind: str) -> None:
    with tls(tmp_path, hang_up) as host:
        location = f"{'s3' if kind == 's3' else 'https'}://{host}/bucket/key"
        store = open_store(site(tmp_path), kind, Access(store=KEYS, endpoint=f"https://{host}"), "x")
        with pytest.raises(StoreError) as caught:
            store.read(location)
    assert caught.value.transient and "not trusted" not in str(caught.value)


@pytest.mark.parametrize("kind", ["s3", "http"])
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl: install the package openssl")
def test_a_certificate_that_nobody_knows_is_not_trusted(tmp_path: Path, kind: str) -> None:
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key", "-out", tmp_path / "cert",
                    "-days", "2", "-subj", "/CN=127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with tls(tmp_path, lambda connection: context.wrap_socket(connection, server_side=True).close()) as host:
        location = f"{'s3' if kind == 's3' else 'https'}://{host}/bucket/key"
        with pytest.raises(StoreError, match="not trusted") as caught:
            open_store(site(tmp_path), kind, Access(store=KEYS, endpoint=f"https://{host}"), "x").read(location)
    assert not caught.value.transient


@pytest.mark.parametrize("kind", ["s3", "http"])
@pytest.mark.parametrize(("text", "said"), [(None, "No such file"), ("nonsense", "no certificates")])
def test_a_ca_file_that_won_t_do_is_named(tmp_path: Path, server: Scripted, kind: str, text: str | None, said: str) -> None:
    file = tmp_path / "ca.pem"
    if text:
        file.write_text(text)
    scheme = "s3" if kind == "s3" else "https"
    profile = StoreProfile(endpoint=f"https://{server.host}", ca_file=file)
    store = open_store(site(tmp_path, stores=(profile,)), kind, Access(store=KEYS), "x")
    with pytest.raises(StoreError, match=f"ca.pem: .*{said}.*ca_file") as caught:
        store.read(f"{scheme}://{server.host}/bucket/key")
    assert caught.value.transient  # The site mends it, and it goes on.
    assert server.asked == []


@pytest.mark.parametrize(("location", "expected"), [
    ("https://user:p@ss@host/x", "https://host/x"), ("https://user:pa/ss@host/x", "https://host/x"),
    ("https://user:p?a#s@host/x", "https://host/x"), ("https://user@host/x", "https://host/x"),
    ("https://host/x.tar?X-Amz-Signature=abc", "https://host/x.tar?..."), ("https://u:p@host/x?sig=a@b", "https://b"),
    ("HTTPS://host/x#frag", "HTTPS://host/x?..."), ("https://host/path@v1/x", "https://host/path@v1/x"),
    ("s3://host/bucket/a?b#c", "s3://host/bucket/a?b#c"), ("file://home/a@b", "file://home/a@b")])
def test_a_location_is_shown_without_what_is_secret(location: str, expected: str) -> None:
    assert shown(location) == expected


@pytest.mark.parametrize("name", ["access_key", "secret_access_key", "session_token"])
def test_a_key_with_a_line_break_is_quoted_nowhere(tmp_path: Path, server: Scripted, name: str) -> None:
    keys = {"access_key": "A", "secret_access_key": "S", "session_token": "T"}
    assert find_keys(site(tmp_path), Access({"aws": {**keys, name: f"{keys[name]}\n"}}), None) \
        == find_keys(site(tmp_path), Access({"aws": keys}), None)
    with pytest.raises(StoreError, match="can't be used") as caught:
        s3(tmp_path, server, keys={"aws": {**keys, name: "hid\nden"}}).read(f"s3://{server.host}/bucket/key")
    assert "hid" not in str(caught.value) and server.asked == []


def test_a_token_of_the_environment_with_a_line_break_is_quoted_nowhere(tmp_path: Path, server: Scripted,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "hid\nden")
    profile = StoreProfile(endpoint=f"http://{server.host}")
    with pytest.raises(StoreError) as caught:
        open_store(site(tmp_path, stores=(profile,)), "s3", Access(), "x").read(f"s3://{server.host}/bucket/key")
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize(("kind", "answer"), [
    ("http", {"status": 206, "Content_Range": "bytes 0-0/\xb2"}), ("http", {"status": 206, "Content_Range": f"bytes 0-0/{'9' * 5000}"}),
    ("http", {"status": 302, "Location": "http://["}), ("s3", {"length": -1}), ("gs", {"body": b"[]"}), ("gs", {"body": b"{}"}),
    ("gs", {"body": b'{"size": "x", "generation": 1}'}), ("s3", {"body": b"<", "status": 400}), ("s3", {"body": b"junk", "status": 200})])
def test_answers_that_make_no_sense_are_store_errors(tmp_path: Path, google: Scripted, kind: str, answer: dict[str, Any]) -> None:
    google.answer = lambda handler, body: reply(handler, **answer)
    location = "gs://bucket/key" if kind == "gs" else f"{kind}://{google.host}/bucket/key"
    store = open_store(site(tmp_path), kind, Access(store=KEYS, endpoint=f"http://{google.host}"), "x")
    for call in (lambda: store.stat(location), lambda: store.read(location), lambda: store.fetch(location, tmp_path / "target")):
        try:
            call()
        except StoreError:
            assert not (tmp_path / "target").exists()


def test_a_full_disk_is_a_store_error_in_a_local_store_too(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x").write_bytes(bytes(100))
    store = open_store(site(tmp_path), "local", Access(), "x")
    with pytest.raises(StoreError, match="No such file") as caught:
        store.fetch(f"file:/{tmp_path}/store/x", tmp_path / "gone" / "target")
    assert "gone" in str(caught.value)


# Whoever must stop


def test_a_lost_lease_ends_tries_and_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrunner.stores._retry._FIRST_PAUSE", 5.0)
    start, calls = time.monotonic(), []

    def guard(count: int) -> None:
        if time.monotonic() - start > 0.2:
            raise BusyError("lost")

    def call() -> None:
        calls.append(1)
        raise Weather("x")

    with pytest.raises(BusyError):
        persist(call, guard)
    assert len(calls) == 1 and time.monotonic() - start < 2


@pytest.mark.parametrize("kind", ["s3", "gs", "local"])
@pytest.mark.parametrize("way", ["put", "write", "large"])
def test_who_lost_the_lease_makes_nothing_visible(tmp_path: Path, google: Scripted, kind: str, way: str) -> None:
    """Lost after some requests, wherever."""
    (tmp_path / "store").mkdir()

    def multipart_or_google(handler: Any, body: bytes) -> None:
        if kind == "s3":
            multipart(handler, body)
        elif handler.command == "POST":
            reply(handler, Location=f"http://{google.host}/session")
        else:
            reply(handler, 308, Range=handler.headers["Content-Range"].split("/")[0].replace("bytes ", "bytes="))

    google.answer = multipart_or_google
    location = {"s3": f"s3://{google.host}/bucket/key", "gs": "gs://bucket/key", "local": f"file:/{tmp_path}/store/key"}[kind]
    store = open_store(site(tmp_path), kind, Access(store=KEYS, endpoint=f"http://{google.host}"), "x")
    file = tmp_path / "file"
    file.write_bytes(bytes(11 * MIB if way == "large" else 1000))
    asked = 0

    def guard(count: int) -> None:
        nonlocal asked
        asked += 1
        if len(google.asked) >= 2 if way == "large" and kind != "local" else asked >= (2 if way == "large" else 1):
            raise BusyError("lost")

    with pytest.raises(BusyError):
        if way == "write":
            store.write(b"x", location, progress=guard)
        else:
            store.put(file, location, guard)
    assert [path for method, path, _ in google.asked if method == "POST" and "uploadId" in path] == []
    assert way == "large" or google.asked == []
    assert list((tmp_path / "store").iterdir()) == []


def test_a_guard_that_speaks_in_a_helper_s_thread_is_heard(tmp_path: Path, server: Scripted) -> None:
    server.answer = multipart
    main = threading.current_thread()
    (tmp_path / "file").write_bytes(bytes(20 * MIB))

    def guard(count: int) -> None:
        if threading.current_thread() is not main and count:
            raise BusyError("lost")
        time.sleep(0.01)

    with pytest.raises(BusyError):
        s3(tmp_path, server).put(tmp_path / "file", f"s3://{server.host}/bucket/key", guard)
    assert server.methods.count("POST") == 1


# Keys that change, and files that do


def test_renewed_keys_of_this_host_s_user_are_seen(tmp_path: Path, server: Scripted) -> None:
    profile = StoreProfile(endpoint=f"http://{server.host}")
    store = open_store(site(tmp_path, stores=(profile,)), "s3", Access(), "x")
    for key in ("FIRST", "SECOND"):
        (tmp_path / "aws").write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=S\n")
        store.read(f"s3://{server.host}/bucket/key")
        assert f"Credential={key}/" in server.asked[-1][2]["Authorization"]


def test_keys_of_a_message_need_no_profile_of_this_host(tmp_path: Path, server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "stale")
    assert s3(tmp_path, server).read(f"s3://{server.host}/bucket/key").data == b""


@pytest.mark.parametrize("kind", ["s3", "gs"])
def test_a_small_file_that_changed_is_not_stored(tmp_path: Path, google: Scripted, kind: str) -> None:
    (tmp_path / "file").write_bytes(b"first")
    location = "gs://bucket/key" if kind == "gs" else f"s3://{google.host}/bucket/key"
    store = open_store(site(tmp_path), kind, Access(store=KEYS, endpoint=f"http://{google.host}"), "x")

    def change(count: int) -> None:
        with (tmp_path / "file").open("ab") as file:
            file.write(b"more")

    with pytest.raises(StoreError, match="changed while it was stored"):
        store.put(tmp_path / "file", location, change)
    assert google.asked == []


def test_another_s_upload_of_the_same_object_is_left_alone(tmp_path: Path, server: Scripted) -> None:
    """Only those that were noted, or that are older than a day; wherever they stand in the list."""
    now, ago = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "2020-01-01T00:00:00Z"

    def listed(*uploads: tuple[str, str, str], more: bool = False) -> bytes:
        entries = "".join(f"<Upload><Key>{key}</Key><UploadId>{name}</UploadId><Initiated>{at}</Initiated></Upload>" for key, name, at in uploads)
        then = f"<IsTruncated>{str(more).lower()}</IsTruncated><NextKeyMarker>key</NextKeyMarker><NextUploadIdMarker>young</NextUploadIdMarker>"
        return f"<ListMultipartUploadsResult>{then}{entries}</ListMultipartUploadsResult>".encode()

    def answer(handler: Any, body: bytes) -> None:
        if handler.command == "GET":
            reply(handler, body=listed(("key", "old", ago), ("key.other", "others", ago)) if "upload-id-marker" in handler.path
                  else listed(("key", "young", now), more=True))
        else:
            multipart(handler, body)

    server.answer = answer
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / ".file.upload").write_text('{"location": "another"}\n["noted"]\n')
    s3(tmp_path, server).put(tmp_path / "file", f"s3://{server.host}/bucket/key")
    assert [path.partition("uploadId=")[2] for method, path, _ in server.asked if method == "DELETE"] == ["noted", "old"]
