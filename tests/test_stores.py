"""One suite for all kinds of stores, against real servers. Those that are only read have their objects put there by
other means. What concerns one kind alone is below the suite."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import disks
import services
from hpcrunner.config.site import Site
from hpcrunner.engine.install import open_store
from hpcrunner.errors import ChangedError, StoreError
from hpcrunner.stores._files import disk_fault, require_space, write_pieces
from hpcrunner.stores.base import Access, Store
from storeservers import Proxy, Server, client

MIB = 2**20
PART = 5 * MIB
LARGE = 42 * MIB + 17
S3 = ("seaweedfs", "moto", "rclone-s3")
GOOGLE = ("fake-gcs", "gcs-emulator")
REMOTE_WRITABLE = (*S3, *GOOGLE)
ALL = (*REMOTE_WRITABLE, "local", "http")
BUCKET = "hpcrunner-tests"
KEYS = {"aws": {"access_key": "testkey", "secret_access_key": "testsecret"}}


def each(names: tuple[str, ...]) -> Any:
    """One run for each kind of store; those with a server need it."""
    marks = [pytest.param(name, marks=() if name == "local" else pytest.mark.service(name)) for name in names]
    return pytest.mark.parametrize("name", marks)


@dataclass
class Place:
    """A store of one kind, and a bucket in it."""

    name: str
    tmp: Path
    server: Server | None = None
    proxy: Proxy | None = None

    @property
    def site(self) -> Site:
        return site(self.tmp)

    @property
    def kind(self) -> str:
        return "s3" if self.name in S3 else "gs" if self.name in GOOGLE else self.name

    @property
    def store(self) -> Store:
        return self.opened()

    def opened(self, *, credentials: Any = KEYS, **options: Any) -> Store:
        return open_store(site(self.tmp, **options), self.kind, Access(store=credentials), "a test")

    @property
    def endpoint(self) -> str:
        return str(self.tmp / "store") if self.name == "local" else self.proxy.url if self.proxy else self.server.url

    def location(self, key: str) -> str:
        return self.store.location(self.endpoint, BUCKET, key)

    def put(self, key: str, data: bytes, age: float = 120.0) -> str:
        """By whatever way there is, past the proxy. A file on the web was changed `age` seconds ago: one that was
        just changed has no version, as another may come in the same second."""
        if self.name == "http":
            path = Path(self.server.told["data"], BUCKET, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = self.tmp / "part"
            part.write_bytes(data)
            os.utime(part, (time.time() - age,) * 2)
            part.rename(path)  # Whole at once: the server may look meanwhile.
        else:
            file = self.tmp / f"source-{hashlib.sha256(key.encode()).hexdigest()}"
            file.write_bytes(data)
            plain = Place(self.name, self.tmp, self.server)
            with emulated(self.name, plain.endpoint):
                plain.store.put(file, plain.location(key))
            file.unlink()
        return self.location(key)


def site(tmp: Path, **options: Any) -> Site:
    return Site(**{"state_dir": tmp / "state", "store_roots": (tmp / "store",), "transfer_part": PART,
                   "transfer_timeout": 10.0, **options})


@contextmanager
def emulated(name: str, url: str) -> Iterator[None]:
    """Locations in Google's storage don't say where the emulator is."""
    with pytest.MonkeyPatch.context() as patch:
        if name in GOOGLE:
            patch.setenv("STORAGE_EMULATOR_HOST", url)
        yield


@cache
def bucket_of(name: str) -> Server:
    """The server, with the bucket in it."""
    server = services.require(name)
    assert isinstance(server, Server)
    if name in S3:
        client(server).create_bucket(Bucket=BUCKET)
    elif name in GOOGLE:
        request = urllib.request.Request(f"{server.url}/storage/v1/b?project=test",
                                         json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"})
        urllib.request.urlopen(request).close()
    return server


@pytest.fixture(autouse=True)
def no_metadata(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test may ask a cloud's metadata service, or use the keys of who runs it."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for variable in list(os.environ):
        if variable.startswith(("AWS_ACCESS", "AWS_SECRET", "AWS_SESSION", "AWS_ENDPOINT", "GOOGLE_")):
            monkeypatch.delenv(variable)


@pytest.fixture
def place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    (tmp_path / "state").mkdir()
    found = Place(name, tmp_path, None if name == "local" else bucket_of(name))
    if name in GOOGLE:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", found.endpoint)
    return found


@pytest.fixture
def proxied(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The same through a proxy."""
    place.proxy = Proxy(place.server.url)
    if place.name in GOOGLE:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", place.proxy.url)
    yield place
    place.proxy.close()


@cache
def noise(size: int) -> bytes:
    return os.urandom(size)


def unique(request: pytest.FixtureRequest) -> str:
    return f"experiments/{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return f"{unique(request)}/workspace.tar"


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


# The suite


@each(ALL)
def test_what_is_not_there_is_absent(place: Place, key: str) -> None:
    location, target = place.location(key), place.tmp / "target"
    assert place.store.stat(location) is None
    assert place.store.read(location) is None
    assert place.store.fetch(location, target) is None
    assert not target.exists()


@each(ALL)
@pytest.mark.parametrize("size", [0, 1, 70_000, PART, LARGE])
def test_comes_as_it_was_stored(place: Place, key: str, size: int) -> None:
    data = noise(LARGE)[:size]
    location, target, told = place.put(key, data), place.tmp / "target", []
    stat = place.store.fetch(location, target, told.append)
    assert target.read_bytes() == data
    assert (stat.size, sum(told)) == (size, size)
    assert stat == place.store.stat(location)
    assert stat.version
    assert left(place.tmp) == []


@each((*REMOTE_WRITABLE, "local"))
@pytest.mark.parametrize("size", [0, 70_000, LARGE])
def test_tells_of_what_it_stores(place: Place, key: str, size: int) -> None:
    source, told = place.tmp / "source", []
    source.write_bytes(noise(LARGE)[:size])
    place.store.put(source, place.location(key), told.append)
    assert sum(told) == size
    assert left(place.tmp) == []


@each((*S3, *GOOGLE))
def test_small_objects_have_their_digest(place: Place, key: str) -> None:
    location = place.put(key, b"content")
    assert place.store.stat(location).sha256 == hashlib.sha256(b"content").hexdigest()


@each(("seaweedfs", "moto", "rclone-s3", *GOOGLE, "local", "http"))
@pytest.mark.parametrize("odd", ["a b/ö+%20&c=d.tar", "~x/(1)'!.tar", "per%cent/hash#q?x.tar"])
def test_odd_keys(place: Place, key: str, odd: str) -> None:
    if place.name == "http" and "#" in odd:
        pytest.skip("a store that is only named by URLs has no keys with # or ?: there is nothing to try")
    if place.name == "http":
        location = place.location(f"{key}-{quote(odd)}")
        place.put(f"{key}-{odd}", b"odd")
    else:
        location = place.put(f"{key}-{odd}", b"odd")
    assert place.store.read(location).data == b"odd"
    assert place.store.stat(location).size == 3


@each((*REMOTE_WRITABLE, "local"))
def test_records(place: Place, key: str) -> None:
    location = place.location(key)
    place.store.write(b"first", location)
    first = place.store.read(location)
    assert first.data == b"first"
    place.store.write(b"second", location, replaces=first.version)
    with pytest.raises(ChangedError):
        place.store.write(b"third", location, replaces=first.version)
    assert place.store.read(location).data == b"second"


@each(("seaweedfs", "moto", "fake-gcs"))
def test_a_record_that_changes_between_the_look_and_the_write_is_kept(place: Place, key: str,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    location, store = place.put(key, b"first"), place.store
    first = store.stat(location)
    place.put(key, b"the user's")
    monkeypatch.setattr(store, "stat_once", lambda location: first)
    with pytest.raises(ChangedError):
        store.write(b"ours", location, replaces=first.version)
    monkeypatch.undo()
    with emulated(place.name, place.endpoint):
        assert place.store.read(location).data == b"the user's"


def test_the_web_is_only_read(tmp_path: Path) -> None:
    store = open_store(site(tmp_path), "https", Access(), "a test")
    for call in (lambda: store.put(tmp_path, "https://user:hidden@example.org/x?sig=hidden"),
                 lambda: store.write(b"", "https://user:hidden@example.org/x?sig=hidden")):
        with pytest.raises(StoreError, match="only read") as caught:
            call()
        assert "hidden" not in str(caught.value)


# Killed, and gone on with

WORK = """
import sys
from pathlib import Path
from hpcrunner.config.site import Site
from hpcrunner.engine.install import open_store
from hpcrunner.stores.base import Access
what, kind, location, path, state, part = sys.argv[1:]
site = Site(state_dir=Path(state), transfer_part=int(part), transfer_timeout=10.0)
store = open_store(site, kind, Access(store={"aws": {"access_key": "testkey", "secret_access_key": "testsecret"}}), "x")
if what == "fetch":
    store.fetch(location, Path(path))
else:
    store.put(Path(path), location)
"""


def killed(place: Place, what: str, location: str, path: Path, after: int) -> int:
    """Runs a transfer in a process of its own and kills it when so many bytes have passed; how many did."""
    proxy = place.proxy
    start = proxy.moved
    proxy.rate = 8.0 * MIB
    process = subprocess.Popen([sys.executable, "-c", WORK, what, place.kind, location, path, place.tmp / "state",
                                str(PART)])
    while proxy.moved - start < after and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    proxy.rate = None
    time.sleep(0.3)  # What was on its way.
    return proxy.moved - start


@each((*REMOTE_WRITABLE, "http"))
def test_a_download_goes_on_after_a_kill(proxied: Place, key: str) -> None:
    location, target = proxied.put(key, noise(LARGE)), proxied.tmp / "target"
    first = killed(proxied, "fetch", location, target, 30 * MIB)
    assert not target.exists()
    assert left(proxied.tmp) == [".target.part", ".target.ranges"]
    before, told = proxied.proxy.moved, []
    proxied.store.fetch(location, target, told.append)
    second = proxied.proxy.moved - before
    assert target.read_bytes() == noise(LARGE)
    assert sum(told) == LARGE
    # Four ranges may have lost up to 4 MiB each, none of which is the rule.
    assert first >= 30 * MIB and second < LARGE - 30 * MIB + 17 * MIB < LARGE * 0.75
    assert left(proxied.tmp) == []


@each(REMOTE_WRITABLE)
def test_an_upload_goes_on_after_a_kill(proxied: Place, key: str) -> None:
    location, source = proxied.location(key), proxied.tmp / "source"
    source.write_bytes(noise(LARGE))
    first = killed(proxied, "put", location, source, 32 * MIB)
    assert proxied.store.stat(location) is None
    assert left(proxied.tmp) == [".source.upload"]
    assert Path(proxied.tmp, ".source.upload").stat().st_mode & 0o077 == 0
    before, told = proxied.proxy.moved, []
    proxied.store.put(source, location, told.append)
    second = proxied.proxy.moved - before
    if proxied.name != "fake-gcs":  # It ends an upload when it is asked how far it got.
        assert sum(told) == LARGE
        assert first >= 32 * MIB and second < LARGE - 32 * MIB + 4 * PART + MIB < LARGE * 0.78
    proxied.store.fetch(location, proxied.tmp / "target")
    assert Path(proxied.tmp, "target").read_bytes() == noise(LARGE)
    assert left(proxied.tmp) == []


@each((*REMOTE_WRITABLE, "http"))
def test_a_download_of_an_object_that_is_another_by_now_starts_anew(proxied: Place, key: str) -> None:
    location, target = proxied.put(key, noise(LARGE)), proxied.tmp / "target"
    killed(proxied, "fetch", location, target, 20 * MIB)
    other = noise(LARGE)[::-1]
    proxied.put(key, other)
    proxied.store.fetch(location, target)
    assert target.read_bytes() == other


@each(("seaweedfs", "moto", "fake-gcs"))
@pytest.mark.parametrize("size", [LARGE, 1000])
def test_an_upload_of_a_file_that_is_another_by_now_starts_anew(proxied: Place, key: str, size: int) -> None:
    location, source = proxied.location(key), proxied.tmp / "source"
    source.write_bytes(noise(LARGE))
    killed(proxied, "put", location, source, 20 * MIB)
    other = noise(LARGE)[::-1][:size]
    source.write_bytes(other)
    proxied.store.put(source, location)
    proxied.store.fetch(location, proxied.tmp / "target")
    assert Path(proxied.tmp, "target").read_bytes() == other
    if proxied.name in S3:
        uploads = client(proxied.server).list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        assert [upload for upload in uploads if upload["Key"] == key] == []


@each(("seaweedfs",))  # moto says of all that they were begun in 2010.
def test_parts_of_an_upload_whose_name_was_never_noted_go_with_a_later_one(place: Place, key: str,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one was noted, all others count as ours when they are a day old: somebody else may be at it."""
    s3, source = client(place.server), place.tmp / "source"
    s3.create_multipart_upload(Bucket=BUCKET, Key=key)
    s3.create_multipart_upload(Bucket=BUCKET, Key=f"{key}.other")
    source.write_bytes(noise(LARGE))
    noted = '{"location": "of another"}\n["gone"]\n'
    for notes, after, left_over in ((noted, 86400.0, [key, f"{key}.other"]), (noted, -60.0, [f"{key}.other"]),
                                    ("", 86400.0, [f"{key}.other"])):
        if not notes:
            s3.create_multipart_upload(Bucket=BUCKET, Key=key)
            time.sleep(1.1)  # The server tells whole seconds.
        monkeypatch.setattr("hpcrunner.stores._parts._STRAY_AFTER", after)
        (place.tmp / ".source.upload").write_text(notes)
        place.store.put(source, place.location(key))
        uploads = s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
        assert sorted(upload["Key"] for upload in uploads if upload["Key"].startswith(key)) == left_over


@each(("seaweedfs", "moto", "fake-gcs", "http"))
def test_an_object_that_changes_while_it_is_read_is_read_again(place: Place, key: str) -> None:
    """The version is that of the new object, and none of the old bytes are in it."""
    location, target, other = place.put(key, noise(LARGE)), place.tmp / "target", noise(LARGE)[::-1]
    changed = threading.Event()

    def change(count: int) -> None:
        if count and not changed.is_set():
            changed.set()
            place.put(key, other, age=0)

    stat = place.opened(transfer_threads=1).fetch(location, target, change)
    assert target.read_bytes() == other
    assert stat == place.store.stat(location)


@each(("seaweedfs", "http", "fake-gcs"))
def test_a_server_that_dies_and_comes_back(proxied: Place, key: str) -> None:
    location, target = proxied.put(key, noise(LARGE)), proxied.tmp / "target"
    killer = threading.Thread(target=restart, args=(proxied, 15 * MIB))
    proxied.proxy.rate = 8.0 * MIB
    before = proxied.proxy.moved
    killer.start()
    proxied.store.fetch(location, target)
    killer.join()
    assert target.read_bytes() == noise(LARGE)
    assert proxied.proxy.moved - before < LARGE + 6 * MIB


@each(("seaweedfs",))
def test_a_server_that_dies_and_comes_back_during_an_upload(proxied: Place, key: str) -> None:
    location, source = proxied.location(key), proxied.tmp / "source"
    source.write_bytes(noise(LARGE))
    killer = threading.Thread(target=restart, args=(proxied, 20 * MIB))
    proxied.proxy.rate = 4.0 * MIB
    before = proxied.proxy.moved
    killer.start()
    proxied.store.put(source, location)
    killer.join()
    assert proxied.proxy.moved - before < LARGE + 4 * PART + MIB
    proxied.store.fetch(location, proxied.tmp / "target")
    assert Path(proxied.tmp, "target").read_bytes() == noise(LARGE)


def restart(place: Place, after: int) -> None:
    start = place.proxy.moved
    while place.proxy.moved - start < after:
        time.sleep(0.01)
    place.server.kill()
    time.sleep(0.5)
    place.server.start()


@each(S3)
@pytest.mark.parametrize("way", ["put", "write"])
def test_a_connection_that_dies_before_the_content_came_leaves_the_old_object(
        proxied: Place, key: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrunner.stores._retry.TRIES", 1)
    location, source = proxied.put(key, b"old"), proxied.tmp / "source"
    source.write_bytes(bytes(10_000))
    assert proxied.store.read(location).data == b"old"  # It knows now how to speak to the server.
    proxied.proxy.cut_after = proxied.proxy.moved + 1  # The head of the request passes, and nothing else.
    with pytest.raises(StoreError) as caught:
        if way == "put":
            proxied.store.put(source, location)
        else:
            proxied.store.write(bytes(10_000), location)
    assert caught.value.transient
    time.sleep(0.5)
    proxied.proxy.cut_after = None
    assert proxied.store.read(location).data == b"old"


@each(("moto", "http", "gcs-emulator"))
def test_a_server_that_stays_away_is_weather(proxied: Place, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrunner.stores._retry.TRIES", 2)
    location, target = proxied.put(key, noise(LARGE)), proxied.tmp / "target"
    proxied.proxy.cut_after = proxied.proxy.moved + 20 * MIB
    with pytest.raises(StoreError) as caught:
        proxied.store.fetch(location, target)
    assert caught.value.transient
    assert "hidden" not in str(caught.value) and location in str(caught.value)
    assert not target.exists()
    proxied.proxy.cut_after = None
    before = proxied.proxy.moved
    proxied.store.fetch(location, target)
    assert target.read_bytes() == noise(LARGE)
    assert proxied.proxy.moved - before < LARGE - 15 * MIB


@each(("moto", "http", "gcs-emulator"))
def test_a_stalled_connection_is_given_up(proxied: Place, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcrunner.stores._retry.TRIES", 2)
    location = proxied.put(key, noise(LARGE))
    store = proxied.opened(transfer_timeout=0.5)
    assert store.stat(location)
    proxied.proxy.stalled = True
    start = time.monotonic()
    with pytest.raises(StoreError, match="doesn't answer") as caught:
        store.fetch(location, proxied.tmp / "target")
    assert caught.value.transient
    assert time.monotonic() - start < 5
    proxied.proxy.stalled = False
    assert store.fetch(location, proxied.tmp / "target").size == LARGE


@each(("moto",))
def test_a_slow_connection_is_not_given_up(proxied: Place, key: str) -> None:
    location = proxied.put(key, noise(LARGE)[:MIB])
    proxied.proxy.rate = 0.4 * MIB
    assert proxied.opened(transfer_timeout=1.0).fetch(location, proxied.tmp / "target").size == MIB


# This host's side


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disks.small_disk(tmp_path / "disk", "24m") as folder:
        yield folder


@each(("local",))
def test_two_that_write_one_object_each_write_all_of_it(place: Place, key: str) -> None:
    """One dies in the middle of it, one is slow, and one comes in between."""
    location = place.location(key)
    sources = [place.tmp / name for name in ("slow", "quick")]
    for source in sources:
        source.write_bytes(source.name.encode() * MIB)
    child = os.fork()
    if not child:
        place.store.put(sources[0], location, lambda size: os._exit(9))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    folder = Path(location.removeprefix("file:/")).parent
    assert left(folder), "this can't show that what a crash left is removed"
    seen: list[bytes] = []

    def come_between(size: int) -> None:
        if not seen:
            place.store.put(sources[1], location)
            seen.append(Path(folder, "workspace.tar").read_bytes())

    place.store.put(sources[0], location, come_between)
    assert seen == [sources[1].read_bytes()]
    assert place.store.fetch(location, place.tmp / "target")
    assert (place.tmp / "target").read_bytes() == sources[0].read_bytes()
    assert left(folder) == []


@each(("local",))
def test_it_has_reached_the_disk_before_it_has_its_name(place: Place, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    location, synced = place.location(key), []
    path, original = Path(location.removeprefix("file:/")), os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((Path(f"/proc/self/fd/{fd}").resolve(), path.exists())) or original(fd))
    place.store.write(b"data", location)
    assert [exists for _, exists in synced] == [False, True] and synced[1][0] == path.parent


@each(("local",))
@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS])
def test_where_there_are_no_locks_nothing_is_left_either(place: Place, key: str, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", refuse)
    place.store.write(b"data", place.location(key))
    folder = Path(place.location(key).removeprefix("file:/")).parent
    assert place.store.read(place.location(key)).data == b"data" and left(folder) == []


@each(("local",))
@pytest.mark.parametrize("long", ["\u00e4" * 120, "\U0001f600" * 60, "x" * 255])
def test_names_as_long_as_they_may_be(place: Place, key: str, long: str) -> None:
    location = place.put(f"{key}/{long}", b"data")
    assert place.store.fetch(location, place.tmp / long)
    assert (place.tmp / long).read_bytes() == b"data"


@pytest.mark.parametrize("taken", range(7))
def test_a_disk_that_takes_less_than_it_was_given_is_given_the_rest(
        tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, pieces, at: whole(fd, [b"".join(pieces)[:taken]], at))
    with (tmp_path / "file").open("wb") as file:
        write_pieces(file.fileno(), [b"abc", b"de", b"f"], 2)
    assert (tmp_path / "file").read_bytes() == b"\0\0abcdef"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_what_is_wrong_with_a_whole_file_system_can_be_told(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, however long it takes (engine/ends.py)."""
    with pytest.raises(StoreError) as caught, disk_fault(tmp_path):
        raise OSError(number, os.strerror(number))
    assert (caught.value.errno, caught.value.transient) == (number, True)
    with pytest.raises(StoreError, match="no space left") as caught:
        require_space(tmp_path / "x", 2**60)
    assert (caught.value.errno, caught.value.transient) == (errno.ENOSPC, True)
    store = Place("local", tmp_path).store

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    location = Place("local", tmp_path).put("key", b"data")
    monkeypatch.setattr("hpcrunner.stores.local.write_all", fail)
    with pytest.raises(StoreError) as caught:
        store.fetch(location, tmp_path / "target")
    assert (caught.value.errno, caught.value.transient) == (number, True)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError) as caught:
        store.put(tmp_path / "store" / BUCKET / "key", location)
    assert (caught.value.errno, caught.value.transient) == (number, True)


@each(("seaweedfs", "fake-gcs", "http"))
def test_a_full_disk_is_seen_before_anything_is_moved(proxied: Place, key: str, small_disk: Path) -> None:
    location = proxied.put(key, noise(LARGE))
    with pytest.raises(StoreError, match=r"no space left: 42 MiB are needed and 24 MiB are free") as caught:
        proxied.store.fetch(location, small_disk / "target")
    assert caught.value.transient
    assert proxied.proxy.moved < 10_000


@each(("seaweedfs", "http"))
def test_a_disk_that_fills_up_meanwhile(proxied: Place, key: str, small_disk: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    location, target, ballast = proxied.put(key, noise(LARGE)[:20 * MIB]), small_disk / "target", small_disk / "ballast"
    ballast.write_bytes(bytes(10 * MIB))
    monkeypatch.setattr("hpcrunner.stores._ranged.require_space", lambda path, size: None)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        proxied.store.fetch(location, target)
    assert caught.value.transient
    assert not target.exists()
    ballast.unlink()
    before = proxied.proxy.moved
    proxied.store.fetch(location, target)
    assert target.read_bytes() == noise(LARGE)[:20 * MIB]
    assert proxied.proxy.moved - before < 9 * MIB


@each(("seaweedfs",))
def test_two_at_the_same_file_don_t_disturb_each_other(proxied: Place, key: str) -> None:
    location, target = proxied.put(key, noise(LARGE)), proxied.tmp / "target"
    proxied.proxy.rate = 2.0 * MIB
    first = threading.Thread(target=proxied.store.fetch, args=(location, target))
    first.start()
    while not Path(proxied.tmp, ".target.part").exists():
        time.sleep(0.01)
    with pytest.raises(StoreError, match="another process") as caught:
        proxied.store.fetch(location, target)
    assert caught.value.transient
    proxied.proxy.rate = None
    first.join()
    assert target.read_bytes() == noise(LARGE)


@each(("seaweedfs", "moto", "fake-gcs"))
def test_a_file_that_changes_while_it_is_stored_is_not_stored(place: Place, key: str) -> None:
    source, location = place.tmp / "source", place.location(key)
    source.write_bytes(noise(LARGE))

    def change(_: int) -> None:
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(StoreError, match="changed while it was stored") as caught:
        place.store.put(source, location, change)
    assert caught.value.transient
    place.store.put(source, location)
    assert place.store.stat(location).size == source.stat().st_size


MEMORY = """
import re
store.fetch(location, Path(path + "-back"))
print(int(re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@each(("rclone-s3", "fake-gcs"))
def test_memory_is_bounded(place: Place, key: str) -> None:
    source = place.tmp / "source"
    with source.open("wb") as file:
        file.truncate(300 * MIB)
    done = subprocess.run([sys.executable, "-c", WORK + MEMORY, "put", place.kind, place.location(key), source,
                           place.tmp / "state", str(32 * MIB)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150  # MiB


@each(("seaweedfs", "fake-gcs"))
def test_what_came_wrong_is_not_kept(place: Place, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    location, store, target = place.put(key, b"content"), place.store, place.tmp / "target"
    real = store.chunks

    def wrong(*arguments: Any) -> Iterator[bytes]:
        for chunk in real(*arguments):
            yield chunk[::-1]

    monkeypatch.setattr(store, "chunks", wrong)
    with pytest.raises(StoreError, match="what came is not what the store says") as caught:
        store.fetch(location, target)
    assert caught.value.transient
    assert not target.exists()


# S3's own


@pytest.fixture
def seaweed(tmp_path: Path) -> Place:
    (tmp_path / "state").mkdir()
    return Place("seaweedfs", tmp_path, bucket_of("seaweedfs"))


def every_call(store: Store, location: str, tmp: Path) -> list[Callable[[], object]]:
    (tmp / "file").write_bytes(b"x")
    return [lambda: store.stat(location), lambda: store.read(location), lambda: store.fetch(location, tmp / "target"),
            lambda: store.put(tmp / "file", location), lambda: store.write(b"x", location)]


@pytest.mark.service("seaweedfs")
@pytest.mark.parametrize(("keys", "said"), [
    ({"access_key": "testkey", "secret_access_key": "hidden"}, "the secret key is wrong"),
    ({"access_key": "unknown", "secret_access_key": "hidden"}, "doesn't know the access key"),
    ({"access_key": "readkey", "secret_access_key": "readsecret"}, "denies access to the credentials of the message's"),
    ({"access_key": "$AWS_ACCESS_KEY_ID", "secret_access_key": "$AWS_SECRET_ACCESS_KEY"}, "without credentials"),
])
def test_credentials_that_are_refused(seaweed: Place, key: str, keys: dict[str, str], said: str) -> None:
    location = seaweed.put(key, b"content")
    for call in every_call(seaweed.opened(credentials={"aws": keys}), location, seaweed.tmp):
        with pytest.raises(StoreError, match=said) as caught:
            call()
        assert not caught.value.transient
        assert "hidden" not in str(caught.value)


@each(("moto", "rclone-s3", *GOOGLE))
def test_a_bucket_that_is_missing_is_no_absent_object(place: Place, key: str) -> None:
    location = place.store.location(place.endpoint, "no-such-bucket", key)
    for call in every_call(place.store, location, place.tmp):
        with pytest.raises(StoreError, match=r"no bucket|no such bucket") as caught:
            call()
        assert not caught.value.transient


@each(S3)
def test_absent_objects_of_a_bucket_that_was_seen_are_asked_for_once(proxied: Place, key: str) -> None:
    """The first answer doesn't say whether the bucket is there, so that is asked; once, not for each of thousands."""
    def requests(location: str) -> list[str]:
        proxied.proxy.requests.clear()
        assert proxied.store.stat(location) is None
        return [method for method, _ in proxied.proxy.requests]

    assert requests(proxied.location(key)) == ["HEAD", "GET"]
    assert requests(proxied.location(f"{key}-another")) == ["HEAD"]


@pytest.mark.service("seaweedfs")
def test_a_public_object_is_read_without_credentials(seaweed: Place) -> None:
    client(seaweed.server).create_bucket(Bucket="public")
    store = seaweed.store
    location = store.location(seaweed.endpoint, "public", "shared.tar")
    store.write(b"for all", location)
    nobody = seaweed.opened(credentials=None)
    assert nobody.read(location).data == b"for all"
    assert nobody.fetch(location, seaweed.tmp / "target").size == 7
    with pytest.raises(StoreError, match="denies access"):
        nobody.write(b"", location)


@pytest.mark.service("seaweedfs")
def test_keys_of_this_host_s_user_are_used_for_what_the_site_lists(seaweed: Place, key: str,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    from hpcrunner.config.stores import StoreProfile

    location = seaweed.put(key, b"content")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testkey")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
    listed = StoreProfile(endpoint=seaweed.endpoint, buckets=BUCKET)
    assert seaweed.opened(credentials=None, stores=(listed,)).read(location).data == b"content"
    for options in ({}, {"stores": (StoreProfile(endpoint=seaweed.endpoint, buckets="another"),)},
                    {"stores": (listed,), "store_credentials": ("artifact", "message", "env", "site")}):
        with pytest.raises(StoreError, match="denies access to requests without credentials"):
            seaweed.opened(credentials=None, **options).read(location)


@pytest.mark.service("seaweedfs")
@pytest.mark.parametrize("minutes", [-60, 60])
def test_a_clock_that_is_wrong(seaweed: Place, key: str, minutes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    import botocore.auth

    location = seaweed.put(key, b"content")
    real = botocore.auth.get_current_datetime
    monkeypatch.setattr(botocore.auth, "get_current_datetime",
                        lambda *rest, **more: real(*rest, **more) + datetime.timedelta(minutes=minutes))
    for call in every_call(seaweed.store, location, seaweed.tmp):
        with pytest.raises(StoreError, match="clock") as caught:
            call()
        assert caught.value.transient


@pytest.mark.service("seaweedfs")
def test_https_of_an_authority_of_the_site_s_own(seaweed: Place, key: str) -> None:
    """The location has no scheme: it is probed, once, and remembered."""
    from urllib.parse import urlsplit

    from hpcrunner.config.stores import StoreProfile
    from hpcrunner.stores import _endpoints

    seaweed.put(key, b"content")
    url, ca = seaweed.server.told["https"], Path(seaweed.server.told["ca"])
    location = f"s3://{urlsplit(url).netloc}/{BUCKET}/{key}"
    with pytest.raises(StoreError, match=r"certificate of localhost:[0-9]+ is not trusted") as caught:
        seaweed.store.read(location)
    assert not caught.value.transient
    memory = json.loads((seaweed.tmp / "state" / "endpoints.json").read_text())
    assert memory[urlsplit(url).netloc]["scheme"] == "https"
    _endpoints._schemes.clear()
    profile = StoreProfile(endpoint=url, ca_file=ca)
    assert seaweed.opened(stores=(profile,)).read(location).data == b"content"
    assert _endpoints._schemes == {}
