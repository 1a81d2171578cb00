"""The HTTP server over real sockets: its pages, and that no client can hold it up."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest

from edgeopt.config.schema import Http
from edgeopt.daemon import http
from edgeopt.daemon.http import CONNECTIONS, HttpServer, hash_password, parse_listen
from edgeopt.daemon.pages import Row, View, answer
from edgeopt.errors import ConfigError, PortInUse

JOB: Row = {
    "id": "1",
    "name": "digits",
    "state": "rejected",
    "stage": "ingest",
    "progress": None,
    "message": "<script>alert(1)</script>",
    "updated": 0.0,
}
MODEL: Row = {
    "name": "digits",
    "version": 2,
    "pinned": True,
    "speedup": 1.5,
    "bytes_ratio": None,
    "quality_kind": "accuracy",
}


@pytest.fixture
def view(tmp_path: Path) -> View:
    report = tmp_path / "published" / "digits" / "2" / "report.html"
    report.parent.mkdir(parents=True)
    report.write_text("<!doctype html><title>r</title>")
    (tmp_path / "published" / "digits" / "current").symlink_to("2")
    (tmp_path / "secret").write_text("canary")
    return View(
        metrics=lambda: b"edgeopt_up 1\n",
        healthy=lambda: True,
        unready=lambda: None,
        jobs=lambda: [JOB],
        models=lambda: [MODEL],
        published=tmp_path / "published",
    )


@pytest.fixture
def server(view: View) -> Iterator[HttpServer]:
    running = HttpServer(Http(listen="127.0.0.1:0"), view)
    running.start()
    yield running
    running.stop()


def get(server: HttpServer, path: str, **headers: str) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(f"http://{server.address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as got:
            return got.status, got.headers, got.read()
    except urllib.error.HTTPError as got:
        with got:
            return got.code, got.headers, got.read()


def raw(server: HttpServer, data: bytes) -> bytes:
    host, port = server.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        try:
            connection.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            return b""
        got = b""
        try:
            while chunk := connection.recv(65536):
                got += chunk
        except ConnectionResetError:
            pass
        return got


def test_every_page_answers(server: HttpServer) -> None:
    assert get(server, "/metrics")[2] == b"edgeopt_up 1\n"
    assert get(server, "/metrics")[1]["Content-Type"].startswith("text/plain; version=0.0.4")
    assert get(server, "/healthz")[0] == 200
    assert get(server, "/readyz")[::2] == (200, b"ready\n")
    assert json.loads(get(server, "/api/v1/jobs")[2]) == {"jobs": [JOB]}
    assert json.loads(get(server, "/api/v1/models?x=1")[2]) == {"models": [MODEL]}
    assert get(server, "/models/digits/report")[2].startswith(b"<!doctype html>")
    assert get(server, "/nothing")[0] == 404


def test_unwell_daemon_says_why(view: View) -> None:
    unwell = replace(view, healthy=lambda: False, unready=lambda: "the disk is full")
    assert answer(unwell, "/healthz").status == 503
    assert (answer(unwell, "/readyz").status, answer(unwell, "/readyz").body) == (503, b"the disk is full\n")


def test_status_page_is_escaped_and_allows_itself_nothing(server: HttpServer) -> None:
    status, headers, body = get(server, "/")
    page = body.decode()
    assert status == 200
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    assert style is not None
    assert base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode() in policy

    class Parser(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.foreign: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            known = {
                "html",
                "head",
                "meta",
                "title",
                "style",
                "body",
                "h1",
                "h2",
                "p",
                "table",
                "thead",
                "tbody",
                "tr",
                "th",
                "td",
                "a",
            }
            self.foreign += [tag] if tag not in known or any(name.startswith("on") for name, _ in attrs) else []

    parser = Parser()
    parser.feed(page)
    assert parser.foreign == []


def test_status_page_can_be_switched_off(view: View) -> None:
    assert answer(replace(view, status_page=False), "/").status == 404


@pytest.mark.parametrize(
    "name", ["../../secret", "..", "%2e%2e", "digits/../..", "", "digits\x00", "x" * 5000, "nobody"]
)
def test_report_of_no_model_is_nothing(view: View, name: str) -> None:
    got = answer(view, f"/models/{name}/report")
    assert got.status == 404
    assert b"canary" not in got.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_only_get_and_head_are_answered(server: HttpServer, method: str) -> None:
    assert b" 501 " in raw(server, f"{method} /metrics HTTP/1.1\r\nHost: x\r\n\r\n".encode()).split(b"\r\n")[0]


def test_head_has_no_body(server: HttpServer) -> None:
    got = raw(server, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert got.startswith(b"HTTP/1.0 200")
    assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200_000,
        b"\x16\x03\x01" * 5000,
        b"\0\0\0\n\n",
    ],
)
def test_hostile_request_is_dropped_and_the_next_one_answered(server: HttpServer, data: bytes) -> None:
    assert b"edgeopt_up" not in raw(server, data)
    assert get(server, "/healthz")[0] == 200


def test_slow_clients_are_cut_off_and_scrapes_go_on(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 1.0)
    host, port = server.address.rsplit(":", 1)
    slow = [socket.create_connection((host, int(port)), timeout=5) for _ in range(CONNECTIONS + 20)]
    try:
        for connection in slow:
            try:
                connection.sendall(b"GET /met")
            except OSError:
                continue
        started_s = time.monotonic()
        while True:
            try:
                if get(server, "/metrics")[0] == 200:
                    break
            except OSError:
                assert time.monotonic() - started_s < 5.0
                time.sleep(0.05)
        names = [thread.name for thread in threading.enumerate() if "process_request" in thread.name]
        assert len(names) <= CONNECTIONS
    finally:
        for connection in slow:
            connection.close()


def test_port_in_use_is_named(view: View, server: HttpServer) -> None:
    with pytest.raises(PortInUse, match=re.escape(server.address)):
        HttpServer(Http(listen=server.address), view).start()


def test_password_is_asked_for_but_not_of_health_probes(view: View, tmp_path: Path) -> None:
    users = tmp_path / "users"
    users.write_text(f"anna:{hash_password('right', b'salt')}\n")
    server = HttpServer(Http(listen="127.0.0.1:0", basic_auth=str(users)), view)
    server.start()
    try:
        assert get(server, "/metrics")[0] == 401
        assert get(server, "/healthz")[0] == 200
        for pair, status in (("anna:right", 200), ("anna:wrong", 401), ("bert:right", 401), ("anna", 401)):
            token = base64.b64encode(pair.encode()).decode()
            assert get(server, "/metrics", Authorization=f"Basic {token}")[0] == status
        assert get(server, "/metrics", Authorization="Basic ???")[0] == 401
    finally:
        server.stop()


@pytest.mark.parametrize("text", ["", "anna", "anna:plain", "anna:scrypt$zz$11", "anna:scrypt$11"])
def test_password_file_with_a_mistake_is_refused(view: View, tmp_path: Path, text: str) -> None:
    (tmp_path / "users").write_text(text)
    with pytest.raises(ConfigError, match="basic_auth"):
        HttpServer(Http(listen="127.0.0.1:0", basic_auth=str(tmp_path / "users")), view).start()


@pytest.mark.parametrize(
    ("text", "parts"), [("127.0.0.1:9188", ("127.0.0.1", 9188)), ("[::1]:80", ("::1", 80)), (":9188", ("", 9188))]
)
def test_listen_is_host_and_port(text: str, parts: tuple[str, int]) -> None:
    assert parse_listen(text) == parts


@pytest.mark.parametrize("text", ["", "9188", "host:", "host:99999", "host:port"])
def test_listen_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.listen"):
        parse_listen(text)


def test_certificate_that_cannot_be_used_is_refused(view: View, tmp_path: Path) -> None:
    (tmp_path / "cert").write_text("no certificate")
    with pytest.raises(ConfigError, match="certificate"):
        HttpServer(Http(listen="127.0.0.1:0", tls_certificate=str(tmp_path / "cert")), view).start()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_serves_and_a_plain_client_holds_nobody_up(view: View, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", *subject]
    subprocess.run(["openssl", "req", *options, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    server = HttpServer(Http(listen="127.0.0.1:0", tls_certificate=str(certificate), tls_key=str(key)), view)
    server.start()
    try:
        assert b"edgeopt_up" not in raw(server, b"GET /metrics HTTP/1.0\r\n\r\n")
        trusting = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"https://{server.address}/metrics", timeout=5, context=trusting) as got:
            assert got.read() == b"edgeopt_up 1\n"
    finally:
        server.stop()
