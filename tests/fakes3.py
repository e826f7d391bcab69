"""A small S3 server in this process that can be told to misbehave: what no real one does at a word."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class FakeS3:
    """Objects by `/bucket/key`. Heeds no signatures and no conditions."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refused: list[str] = []
        """What was answered with 503, as `METHOD path?query`."""
        self.hangs: Callable[[str], bool] = lambda request: False
        """Of which requests, told by such a text, the answer never comes."""
        self.is_busy: Callable[[str], bool] = lambda request: False
        """Which are answered with 503."""
        self.hung: list[str] = []
        self._parts: dict[str, dict[int, bytes]] = {}
        self._closing = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake._answer(self, body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        parts = urlsplit(handler.path)
        path, query = unquote(parts.path), parse_qs(parts.query, keep_blank_values=True)
        request = f"{handler.command} {path}?{parts.query}"
        if self.hangs(request):
            self.hung.append(request)
            self._closing.wait()
            handler.close_connection = True
            return
        if self.is_busy(request):
            self.refused.append(request)
            self._send(handler, 503, b"<Error><Code>SlowDown</Code></Error>")
        elif handler.command == "PUT" and "uploadId" in query:
            self._parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
            self._send(handler, 200, b"", body)
        elif handler.command == "PUT":
            if path.count("/") > 1:
                self.objects[path] = body
            self._send(handler, 200, b"", body)
        elif handler.command == "POST" and "uploads" in query:
            upload = f"upload{len(self._parts)}"
            self._parts[upload] = {}
            self._send(handler, 200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
                                     "</InitiateMultipartUploadResult>".encode())
        elif handler.command == "POST":
            sent = self._parts[query["uploadId"][0]]
            self.objects[path] = b"".join(sent[int(number)] for number in re.findall(rb"<PartNumber>(\d+)<", body))
            self._send(handler, 200, b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>")
        elif handler.command == "DELETE":
            self._send(handler, 204, b"")
        elif "uploads" in query:
            self._send(handler, 200, b"<ListMultipartUploadsResult></ListMultipartUploadsResult>")
        elif path in self.objects:
            self._get(handler, self.objects[path])
        else:
            self._send(handler, 404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _get(self, handler: BaseHTTPRequestHandler, data: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range") or "")
        if not wanted:
            self._send(handler, 200, data, data)
            return
        start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        self._send(handler, 206, data[start:end], data, {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, whole: bytes = b"",
              more: dict[str, str] | None = None) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(more or {}),
                            "ETag": f'"{hashlib.md5(whole, usedforsecurity=False).hexdigest()}"'}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)
