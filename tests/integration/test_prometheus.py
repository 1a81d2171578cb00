"""A real Prometheus with the shipped scrape configuration and rules, on a running daemon."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, look: Callable[[], Any], *, timeout_s: float = 40.0) -> Any:
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        try:
            if seen := look():
                return seen
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"{what} did not come about within {timeout_s:g} s")


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


@contextmanager
def running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[str]:
    """The address of a real, idle daemon."""
    address = f"127.0.0.1:{free_port()}"
    config = tmp_path / "edgeopt.yaml"
    config.write_text(
        f'inbox: inbox\npublished: published\nrejected: rejected\nstate: state\nhttp: {{listen: "{address}"}}\n'
    )
    with running([sys.executable, "-m", "edgeopt", "serve", "-c", str(config)], tmp_path / "daemon.log"):
        wait_for("the daemon", lambda: fetch(f"http://{address}/readyz"))
        yield address


@pytest.fixture
def prometheus(daemon: str, tmp_path: Path) -> Iterator[str]:
    """The API of a Prometheus that runs the shipped configuration, only aimed at this daemon and in a hurry."""
    text = (ROOT / "deploy/prometheus.yml").read_text()
    text = text.replace("127.0.0.1:9188", daemon).replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(text)
    shutil.copy(ROOT / "deploy/alerts.yml", tmp_path / "alerts.yml")
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/tsdb",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with running(command, tmp_path / "prometheus.log"):
        wait_for("Prometheus", lambda: fetch(f"http://{address}/-/ready"))
        yield f"http://{address}/api/v1"


def query(api: str, expression: str) -> list[dict[str, Any]]:
    answer = json.loads(fetch(f"{api}/query?{urllib.parse.urlencode({'query': expression})}"))
    return list(answer["data"]["result"])


def test_prometheus_scrapes_a_running_daemon_and_its_rules_are_quiet(prometheus: str, daemon: str) -> None:
    found = wait_for("a scrape", lambda: query(prometheus, 'up{job="edgeopt"} == 1'))
    assert found[0]["metric"]["instance"] == daemon
    assert query(prometheus, "edgeopt_build_info")[0]["metric"]["version"]
    assert float(query(prometheus, 'edgeopt_jobs{state="queued"}')[0]["value"][1]) == 0.0
    wait_for("a scan", lambda: query(prometheus, "time() - edgeopt_watch_scan_timestamp_seconds < 120"))

    def quiet() -> bool:
        groups = json.loads(fetch(f"{prometheus}/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        # before the first scrape there is no target, which is what EdgeoptDown waits for
        return bool(rules) and all((rule["health"], rule["state"]) == ("ok", "inactive") for rule in rules)

    wait_for("quiet rules, every one evaluated", quiet)
