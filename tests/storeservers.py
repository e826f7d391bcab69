"""Servers of stores for the tests: one process of scripts/store-server holds each, and ends it when the session ends,
however that happens. And a proxy, which counts what passes, and can be made to lose, slow down or stall it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SCRIPT = Path(__file__).parents[1] / "scripts" / "store-server"
_REQUEST = re.compile(rb"([A-Z]+) ([^ ?]+)[^ ]* HTTP/1\.1\r\n")


class CannotStart(Exception):
    """The text says why."""


@dataclass(frozen=True)
class Server:
    name: str
    told: Mapping[str, Any]
    """What the script says of it: `url` and more."""
    holder: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return str(self.told["url"])

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def kill(self) -> None:
        """As a crash would."""
        self._command("kill")

    def start(self) -> None:
        """Again, on the same port."""
        self._command("start")

    def _command(self, word: str) -> None:
        assert self.holder.stdin and self.holder.stdout
        self.holder.stdin.write(f"{word}\n")
        self.holder.stdin.flush()
        assert self.holder.stdout.readline().strip() == word


_servers: dict[str, Server] = {}


def start(venv: Path, name: str) -> Server:
    """The one of this session. Raises CannotStart."""
    if name not in _servers:
        # In a session of its own: Ctrl-C is for pytest, which ends the server when it is done.
        holder = subprocess.Popen([SCRIPT, venv, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert holder.stdout and holder.stderr
        line = holder.stdout.readline()
        if not line:
            raise CannotStart(holder.communicate()[1].strip()[-500:])
        _servers[name] = Server(name, json.loads(line), holder)
    return _servers[name]


def stop_all() -> None:
    """Ends those that this session started."""
    for server in _servers.values():
        server.holder.communicate()
    _servers.clear()


def client(server: Server) -> Any:
    """For a server that speaks S3."""
    from botocore.config import Config
    from botocore.session import Session

    return Session().create_client("s3", region_name="us-east-1", endpoint_url=server.url,
                                   aws_access_key_id="testkey", aws_secret_access_key="testsecret",
                                   config=Config(retries={"total_max_attempts": 8}))


class Proxy:
    """Passes TCP connections on to a server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "", parts.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.host = urlsplit(self.url).netloc
        self.up = self.down = 0
        """Bytes from clients to the server, and back."""
        self.requests: list[tuple[str, str]] = []
        """(method, path) of each, as they came."""
        self.rate: float | None = None
        """Bytes a second of each connection."""
        self.cut_after: int | None = None
        """Cuts all connections once so many bytes passed, and those that come later, until it is None."""
        self.stalled = False
        """Passes nothing on, and says nothing."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def moved(self) -> int:
        return self.up + self.down

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            for source, target, up in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, target, up), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self.cut_after is not None and self.moved >= self.cut_after:
                    break
                while self.stalled:
                    time.sleep(0.02)
                if up:
                    self.up += len(data)
                    # Clients send all headers of a request at once, after the whole of the one before.
                    if request := _REQUEST.match(data):
                        self.requests.append((request[1].decode(), request[2].decode()))
                else:
                    self.down += len(data)
                target.sendall(data)
                if self.rate:
                    time.sleep(len(data) / self.rate)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
