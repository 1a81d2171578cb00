"""The daemon's HTTP server: bounded in connections, time and bytes, so that no client can hold the daemon up.

At most 16 connections, each with 10 s for all of it and 8 KiB for the request; GET and HEAD only; one request a
connection. ``pages`` makes the answers. The server has threads of its own and is never waited for by the main loop.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.server
import io
import socket
import socketserver
import ssl
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import edgeopt
from edgeopt.config.schema import Http
from edgeopt.daemon import pages
from edgeopt.daemon.pages import Answer, View
from edgeopt.errors import ConfigError, PortInUse

CONNECTIONS = 16
REQUEST_BYTES = 8 << 10
DEADLINE_S = 10.0
_SCRYPT_COST = {"n": 1 << 13, "r": 8, "p": 1}


def parse_listen(text: str) -> tuple[str, int]:
    """``127.0.0.1:9188``, ``[::1]:9188`` or ``:9188`` as host and port; raises :class:`~edgeopt.errors.ConfigError`."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"http.listen is {text!r:.80}", hint='Write it as "127.0.0.1:9188".')
    return host.strip("[]"), int(port)


def hash_password(password: str, salt: bytes) -> str:
    """The hash that stands behind ``user:`` in the file that ``http.basic_auth`` names: ``scrypt$SALT$HASH`` in hex."""
    digest = hashlib.scrypt(password.encode(), salt=salt, **_SCRYPT_COST)
    return f"scrypt${salt.hex()}${digest.hex()}"


class HttpServer:
    """Serves a :class:`~edgeopt.daemon.pages.View` from :meth:`start` to :meth:`stop`."""

    def __init__(self, settings: Http, view: View) -> None:
        self._settings = settings
        self._view = view
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """``host:port`` as really bound (the port may have been 0); empty while not running."""
        if self._server is None:
            return ""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def start(self) -> None:
        """Listen; raises :class:`~edgeopt.errors.PortInUse` where that is not possible now.

        Raises :class:`~edgeopt.errors.ConfigError` where the certificate or the password file cannot be used.
        """
        host, port = parse_listen(self._settings.listen)
        users = _users(self._settings.basic_auth)
        tls = _tls_context(self._settings)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._server = _Server((host, port), family, self._view)
        except OSError as fault:
            raise PortInUse(
                f"{self._settings.listen} cannot be listened on: {fault.strerror or fault}",
                hint="Choose another http.listen or end the other program; the daemon tries again by itself.",
            ) from fault
        self._server.users = users
        self._server.tls = tls
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.5}, name="http")
        self._thread.daemon = True
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; requests in progress are cut off when the process ends."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(timeout=2.0)
        self._server = self._thread = None


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, view: View) -> None:
        self.address_family = family
        self.view = view
        self.users: dict[str, str] = {}
        self.tls: ssl.SSLContext | None = None
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # without HTTPServer's look-up of its own name, which may wait for a name server
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._free.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            if self.tls is not None:
                request.settimeout(DEADLINE_S)
                request = self.tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:
            self.shutdown_request(request)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away or stalls is no news; the connection is closed by the caller."""


class _Bounded(io.RawIOBase):
    """The request's bytes: no more than 8 KiB of them, none after the deadline."""

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._connection = connection
        self._deadline_s = deadline_s
        self._left = REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0 or self._left <= 0:
            raise TimeoutError
        self._connection.settimeout(left_s)
        size = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= size
        return size


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.0"  # one request a connection

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Bounded(self.connection, time.monotonic() + DEADLINE_S), buffer_size=1024)

    def version_string(self) -> str:
        return f"edgeopt/{edgeopt.__version__}"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the base class' name
        """Requests are not logged: a scrape every 15 s would be most of the log."""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        # probes of the process' health ask without a password, as systemd and container engines do
        if self.server.users and path not in ("/healthz", "/readyz") and not self._knows_password():
            challenge = {"WWW-Authenticate": 'Basic realm="edgeopt", charset="UTF-8"'}
            answer = Answer(status=401, body=b"a user and a password are needed\n", headers=challenge)
        else:
            answer = pages.answer(self.server.view, path)
        self.connection.settimeout(DEADLINE_S)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def _knows_password(self) -> bool:
        scheme, _, encoded = self.headers.get("Authorization", "").partition(" ")
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        if scheme.lower() != "basic":
            return False
        known = self.server.users.get(user, "scrypt$00$00")
        return hmac.compare_digest(known, hash_password(password, bytes.fromhex(known.split("$")[1])))


def _users(path: str | None) -> dict[str, str]:
    if path is None:
        return {}
    users: dict[str, str] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"http.basic_auth: {path} cannot be read: {fault}", hint="Name a readable file.") from fault
    for line in lines:
        user, _, digest = line.partition(":")
        parts = digest.split("$")
        with suppress(ValueError, IndexError):
            if user and parts[0] == "scrypt" and bytes.fromhex(parts[1]) and bytes.fromhex(parts[2]):
                users[user] = digest
                continue
        raise ConfigError(f"http.basic_auth: {path} holds a line that is not user:scrypt$SALT$HASH")
    if not users:
        raise ConfigError(f"http.basic_auth: {path} names no user", hint="Add a line user:scrypt$SALT$HASH.")
    return users


def _tls_context(settings: Http) -> ssl.SSLContext | None:
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except (OSError, ssl.SSLError) as fault:
        raise ConfigError(f"http.tls: the certificate cannot be used: {fault}", hint="Check both files.") from fault
    return context
