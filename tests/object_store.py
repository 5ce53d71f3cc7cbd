"""An S3 server on this machine (moto), and what cuts connections to it."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

BUCKET = "s3://studies"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}


@contextmanager
def serving() -> Iterator[str]:
    """A server with an empty bucket; its endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with client(endpoint) as s3:
        s3.create_bucket(Bucket=BUCKET.removeprefix("s3://"))
    try:
        yield endpoint
    finally:
        server.stop()


@contextmanager
def client(endpoint: str) -> Iterator[Any]:
    """Amazon's own client: what a bucket holds, seen without our code."""
    import boto3

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    s3 = boto3.client("s3", endpoint_url=endpoint, **keys)
    try:
        yield s3
    finally:
        s3.close()


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str, home: Path) -> None:
    """Let this process, and those that it starts, use a server; working state goes to `home`."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": endpoint, "NEUROTALLY_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)


def put_folder(endpoint: str, folder: Path, prefix: str) -> None:
    """Copy a folder's files into the bucket."""
    with client(endpoint) as s3:
        for path in folder.rglob("*"):
            if path.is_file():
                name = f"{prefix}/{path.relative_to(folder).as_posix()}"
                s3.put_object(Bucket=BUCKET.removeprefix("s3://"), Key=name, Body=path.read_bytes())


def objects(endpoint: str, prefix: str) -> dict[str, bytes]:
    """Name below the prefix: content."""
    bucket = BUCKET.removeprefix("s3://")
    with client(endpoint) as s3:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key.removeprefix(f"{prefix}/"): s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys
        }  # fmt: skip


class CuttingProxy:
    """A proxy on loopback that passes bytes on until it is told to cut all connections, now and in the next."""

    def __init__(self, endpoint: str):
        self._target = endpoint.removeprefix("http://").split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: set[socket.socket] = set()
        self.cuts = 0
        self.is_down = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection that is open, in the middle of whatever it carries."""
        self.cuts += 1
        for one in list(self._open):
            _end(one)

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._listener.accept()
            except OSError:
                return
            if self.is_down:
                _end(ours)
                continue
            theirs = socket.create_connection((self._target[0], int(self._target[1])))
            self._open |= {ours, theirs}
            for source, target in ((ours, theirs), (theirs, ours)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(2**16):
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            _end(one)
            self._open.discard(one)

    def close(self) -> None:
        """End it."""
        self._listener.close()
        self.cut()


def _end(one: socket.socket) -> None:
    """With a reset, as a network that fails does; a thread that reads from it would keep it open otherwise."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def refusing(status: int | None) -> Iterator[str]:
    """The endpoint of a server that answers as S3 does where one may not look; None: of no server."""
    if status is None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Forbidden)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class _Forbidden(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_PUT = do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""
